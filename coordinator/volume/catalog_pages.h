#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/volume/catalog_image.h"
#include "coordinator/volume/volume.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/buffer.h"

namespace csv::volume {

/// The first block of the catalog chunk that is number `index` of the volume and lies at `at`,
/// named first by the superblock with `sequence`.
Buffer encode_chunk_header(const VolumeId& volume, std::uint32_t index, std::uint64_t at,
                           std::uint64_t sequence);
/// Why these bytes are not the header of chunk `index` of this volume; empty if they are.
std::string chunk_header_problem(std::span<const std::byte> bytes, const VolumeInfo& info,
                                 std::uint32_t index);

struct ChunkHeaderFound {
  std::string problem;         ///< Why it is not the chunk's header; empty if it is.
  std::uint64_t sequence = 0;  ///< If it is.
};
/// Of `count` of the volume's chunks from `first` on. One that the LUN cannot read is a problem, no
/// error.
Expected<std::vector<ChunkHeaderFound>> read_chunk_headers(iscsi::BlockingLun& lun,
                                                           const VolumeInfo& info,
                                                           std::uint32_t first,
                                                           std::uint32_t count);

/// Where database page `page` (from 1) lies on the LUN. It must be in a mapped chunk.
std::uint64_t place_of_page(const VolumeInfo& info, std::uint32_t page);
/// The checksum that belongs in the page's tail.
std::uint32_t page_checksum(const VolumeId& volume, std::uint32_t page,
                            std::span<const std::byte> bytes);

/// The database file that SQLite sees, over the catalog's chunks. What a checkpoint writes is held
/// in memory until sync(), which sends it sorted and at depth; a page gets its checksum on the way
/// and is verified when it comes back. After an error it must not be used any more.
class CatalogPages {
 public:
  /// `info`, whose chunks are the map, must outlive it.
  static Expected<CatalogPages> open(iscsi::BlockingLun& lun, const VolumeInfo& info);

  [[nodiscard]] std::uint64_t size() const { return size_; }
  /// How much of `out`, which lies within one page (else Errc::corrupt), lies before the end; the
  /// rest becomes zeros. Errc::corrupt names the page and its place. A part of the first 100 bytes
  /// is SQLite's look at the file's header before the log is recovered: it is given what is there,
  /// because a checkpoint that a crash cut short may have left the page torn, and the log has it
  /// whole. SQLite decides by the page itself afterwards.
  Expected<std::size_t> read(std::uint64_t offset, std::span<std::byte> out);
  Expected<void> write(std::uint64_t offset, std::span<const std::byte> data);
  void truncate(std::uint64_t size);
  Expected<void> sync();
  /// CatalogImages: what sync() would overwrite is read and kept before, until it is asked
  /// for.
  Expected<std::uint32_t> begin_image();
  Expected<std::vector<CatalogImages::ImagePage>> more_image(std::size_t limit);
  void end_image() { image_.reset(); }
  /// The LUN holds this chunk's header, as it should.
  Expected<void> verify_chunk(std::uint32_t index);

 private:
  CatalogPages(iscsi::BlockingLun& lun, const VolumeInfo& info) : lun_{&lun}, info_{&info} {}
  [[nodiscard]] std::uint32_t mapped_pages() const;
  Expected<void> fetch(std::uint32_t page, std::span<std::byte> out);
  struct Image {
    std::uint32_t next = 1;
    std::vector<bool> taken;  ///< By page number: given out, or kept.
    /// Pages that the database does not use. SQLite need never have written them, so they are not
    /// read, and are zeros in the image.
    std::vector<bool> unused;
    std::vector<CatalogImages::ImagePage> kept;
    Expected<void> failed;  ///< A page of it is damaged: the image is, and nothing else.
  };
  Expected<void> find_unused();
  Expected<void> keep_for_image();
  Expected<void> fetch_all(std::vector<CatalogImages::ImagePage>& pages);
  [[nodiscard]] Expected<void> verify(std::uint32_t page, std::span<const std::byte> bytes) const;

  iscsi::BlockingLun* lun_;
  const VolumeInfo* info_;
  std::uint64_t size_ = 0;
  std::map<std::uint32_t, Buffer> held_;  ///< Written since the last sync(), with their checksums.
  std::optional<Image> image_;
  std::vector<bool> verified_;  ///< Of each chunk: its header has been looked at.
};

}  // namespace csv::volume
