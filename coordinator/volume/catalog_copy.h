#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_image.h"
#include "coordinator/volume/volume.h"
#include "coordinator/volume/volume_format.h"

namespace csv::volume {

/// Copies of the catalog on the volume's own LUN: two, taken in turn, each in allocation groups of
/// its own (docs/volume-format.md). They are found without the catalog and without superblocks, by
/// what each group's first block says.
struct CatalogCopy {
  std::uint32_t slot = 0;
  std::uint64_t sequence = 0;  ///< Grows with every copy of a volume.
  WallTime taken_at{};
  std::uint64_t pages = 0;
  std::vector<std::uint64_t> places;  ///< Of its groups, on the LUN, in order.
  std::vector<std::uint32_t> sums;    ///< Of each group.
  VolumeInfo info;                    ///< What the superblocks said at the time.
};

inline constexpr std::uint32_t kCopySlots = 2;
/// "copy 1 of the catalog, taken 2026-01-31 12:00:00 UTC"
std::string in_words(const CatalogCopy& copy);

/// Groups that a copy of so many pages takes.
inline std::size_t copy_groups(std::uint64_t pages) {
  return static_cast<std::size_t>((pages + disk::kPagesPerCopyGroup - 1) /
                                  disk::kPagesPerCopyGroup);
}

/// The first block of group `index` of a copy.
Buffer encode_copy_header(const CatalogCopy& copy, std::size_t index);
/// What the first blocks of groups say: copies of which every group is there, newest first. Groups
/// may begin at `first` and every `step` behind it. Content is not looked at.
Expected<std::vector<CatalogCopy>> find_copies(iscsi::BlockingLun& lun,
                                               const std::optional<VolumeId>& volume,
                                               std::uint64_t first, std::uint64_t step);
/// The sequence and time of what a slot's first group holds; zeros if that is no whole header.
struct CopyMark {
  std::uint64_t sequence = 0;
  WallTime taken_at{};
};
Expected<CopyMark> read_copy_mark(iscsi::BlockingLun& lun, const VolumeId& volume,
                                  std::uint64_t place);
/// Writes a copy to a new file at `path`, which is a database then. Errc::corrupt where one byte of
/// it is not what it was.
Expected<void> extract_copy(iscsi::BlockingLun& lun, const CatalogCopy& copy,
                            const std::string& path);

/// What a Catalog knows of its copies. Both are for bodies of changes.
class CopySpace {
 public:
  virtual ~CopySpace() = default;
  /// Where copy `slot` (0, 1) of a catalog of so many pages goes on the volume's LUN: groups of its
  /// own, taken if it has none yet or too few. Fewer than it needs where no group is wholly free.
  virtual Expected<std::vector<std::uint64_t>> copy_places(std::uint32_t slot,
                                                           std::uint64_t pages) = 0;
  /// Pages that the database has by now.
  virtual Expected<std::uint64_t> pages() = 0;
};
CopySpace& copy_space(Catalog& catalog);

/// Takes a copy of a catalog that goes on being changed, a piece at a time: pages as they were when
/// it began. On the catalog's thread, between its transactions. Destroying it gives the copy up.
class CopyTaker {
 public:
  struct Piece {
    std::uint32_t page = 0;
    Buffer content;
  };
  /// The store's log has just been copied back, and nothing has been written since. `places`: where
  /// on the LUN it goes, if anywhere; whatever is there is overwritten.
  static Expected<std::unique_ptr<CopyTaker>> begin(CatalogStore& store, CatalogCopy target);
  ~CopyTaker();

  /// The next pages, at most a MiB of them but for those that the catalog overwrote meanwhile; they
  /// are on the LUN by then. Empty: that was all.
  Expected<std::vector<Piece>> next();
  /// After the last piece: from here on the copy on the LUN counts, if it is still on_lun(): a thin
  /// LUN may have had no space for it.
  Expected<void> finish();
  [[nodiscard]] const CatalogCopy& copy() const { return copy_; }
  [[nodiscard]] std::uint64_t done() const { return done_; }
  [[nodiscard]] bool on_lun() const { return !copy_.places.empty(); }

 private:
  CopyTaker(CatalogStore& store, CatalogImages& images, CatalogCopy target)
      : store_{&store}, images_{&images}, copy_{std::move(target)} {}
  Expected<void> put(const std::function<Expected<void>()>& write);

  CatalogStore* store_;
  CatalogImages* images_;
  CatalogCopy copy_;
  std::vector<std::uint32_t> sums_;  ///< Of each page.
  std::uint64_t done_ = 0;
};

}  // namespace csv::volume
