#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/random.h"
#include "iscsi/blocking_lun.h"

namespace csv::volume {

inline constexpr std::uint32_t kBlockSize = 4096;                 ///< The volume's block, whatever the LUN's.
inline constexpr std::uint64_t kRegionAlignment = 1ull << 20;
inline constexpr std::uint64_t kChunkSize = 64ull << 20;          ///< Of the catalog database.
inline constexpr std::uint64_t kGroupSize = 64ull << 20;          ///< An allocation group.

using VolumeId = std::array<std::byte, 16>;

/// Orders configurations of clusters: compared member by member.
struct ClusterTag {
  std::uint64_t forced = 0, epoch = 0, sequence = 0;
  auto operator<=>(const ClusterTag&) const = default;
};

/// What the superblocks say: identity, geometry, and who coordinates. A value; written whole.
struct VolumeInfo {
  std::uint64_t sequence = 0;       ///< Of this copy; grows with every rewrite.
  VolumeId id{};
  std::string label;                ///< The volume's name; at most 63 bytes.
  std::string lun_identity;         ///< VPD 83h at format; another one means a cloned LUN. At most 127 bytes.
  std::uint16_t cluster = 0;
  Epoch epoch{};
  NodeId coordinator{};
  Key coordinator_key{};
  ClusterTag tag;
  std::uint64_t lun_size = 0;       ///< Bytes, as formatted.
  std::uint64_t slots_offset = 0;   ///< Heartbeat slots: 256 of 4 KiB.
  std::uint64_t wal_offset = 0, wal_size = 0;
  std::uint64_t data_offset = 0, data_size = 0;  ///< Whole allocation groups but the last.
  std::vector<std::uint64_t> chunks;             ///< LUN offsets of the catalog's chunks, in order.
};

/// The heartbeat slot of (node, role): its offset on the LUN.
std::uint64_t slot_offset(const VolumeInfo& info, NodeId node, KeyRole role);

/// One process's sign of life, as it lies in its slot.
struct HeartbeatSlot {
  Key key{};
  std::uint64_t counter = 0;
  std::uint64_t mode = 0;
  WallTime written_at{};
};
std::array<std::byte, kBlockSize> encode(const HeartbeatSlot& slot, const VolumeId& volume);
Expected<HeartbeatSlot> decode_slot(std::span<const std::byte> block, const VolumeId& volume);

/// Reads both superblocks, takes the newer valid copy. `repair`: rewrites a copy that is damaged or
/// older before returning (a coordinator; a mount does not). Both damaged: Errc::corrupt. Not ours:
/// Errc::refused with what was recognised. Newer incompatible format: Errc::refused.
Expected<VolumeInfo> read_superblocks(iscsi::BlockingLun& lun, bool repair);
/// Copy A, flush, copy B, flush; raises info.sequence. On an error the outcome is unknown.
Expected<void> write_superblocks(iscsi::BlockingLun& lun, VolumeInfo& info);

struct FormatOptions {
  std::string label;
  std::uint16_t cluster = 0;
  bool overwrite = false;  ///< --yes: whatever is on it, and whoever's keys are registered.
  std::uint64_t wal_size = 64ull << 20;
};
/// What stands on a LUN, in words ("an ext4 file system"), or empty: an unformatted one.
Expected<std::string> recognise(iscsi::BlockingLun& lun);
/// Makes an empty volume: everything of it is written before the superblocks. Refuses a LUN that is
/// write-protected, too small (the message says the least size), recognisably in use, or on which
/// keys or a reservation stand, unless options.overwrite.
Expected<VolumeInfo> format(iscsi::BlockingLun& lun, const FormatOptions& options, Random& random,
                            WallTime now);

/// Where the catalog's SQLite database lives: a VFS of its own over a LUN's WAL region and chunks
/// (C1-C6 of docs/volume-format.md). Used by the volume's writer thread alone.
class CatalogStore {
 public:
  virtual ~CatalogStore() = default;
  /// For sqlite3_open_v2: the VFS's name and the file name in it.
  [[nodiscard]] virtual const char* vfs() const = 0;
  [[nodiscard]] virtual const char* path() const = 0;
  /// Database pages of 4096 bytes that the mapped chunks hold (PRAGMA max_page_count).
  [[nodiscard]] virtual std::uint32_t mapped_pages() const = 0;
  /// Maps one more chunk at LUN offset `at`: header written, both superblocks rewritten. The caller
  /// has made the space used in a durable transaction before.
  virtual Expected<void> add_chunk(std::uint64_t at) = 0;
  [[nodiscard]] virtual const VolumeInfo& info() const = 0;
  /// The first error any read, write or flush of the catalog had. After it nothing was, and nothing
  /// will be, written: the outcome of what ran is unknown and the volume must be given up (A12).
  [[nodiscard]] virtual Expected<void> health() const = 0;
  virtual iscsi::BlockingLun& lun() = 0;
};

/// Registers the VFS and reads the WAL region into memory. `lun`, used by the calling thread only,
/// must outlive it. `random` feeds SQLite's salts, so that a simulation replays.
Expected<std::unique_ptr<CatalogStore>> open_catalog_store(iscsi::BlockingLun& lun, VolumeInfo info,
                                                           Random& random);

}  // namespace csv::volume
