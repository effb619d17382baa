#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/random.h"
#include "iscsi/blocking_lun.h"

namespace csv::volume {

inline constexpr std::uint32_t kBlockSize = 4096;  ///< The volume's block, whatever the LUN's.
inline constexpr std::uint64_t kRegionAlignment = 1ull << 20;
inline constexpr std::uint64_t kChunkSize = 64ull << 20;  ///< Of the catalog database.
inline constexpr std::uint64_t kGroupSize = 64ull << 20;  ///< An allocation group.

using VolumeId = std::array<std::byte, 16>;

/// Told now and then, by who works, how much of a long work is done.
using Progress = std::function<void(std::uint64_t done, std::uint64_t of)>;

/// What the superblocks say: identity, geometry, and who coordinates. A value; written whole.
struct VolumeInfo {
  std::uint64_t sequence = 0;  ///< Of this copy; grows with every rewrite.
  VolumeId id{};
  std::string label;  ///< The volume's name; at most 63 bytes.
  std::string
      lun_identity;  ///< VPD 83h at format; another one means a cloned LUN. At most 127 bytes.
  std::uint16_t cluster = 0;
  Epoch epoch{};
  NodeId coordinator{};
  Key coordinator_key{};  ///< None: it was closed in good order, by `closed_key`.
  Key closed_key{};
  ClusterTag tag;
  WallTime formatted_at{};
  std::uint64_t lun_size = 0;      ///< Bytes, as formatted.
  std::uint64_t slots_offset = 0;  ///< Heartbeat slots: 256 of 4 KiB.
  std::uint64_t wal_offset = 0, wal_size = 0;
  std::uint64_t data_offset = 0, data_size = 0;  ///< Whole allocation groups but the last.
  std::vector<std::uint64_t> chunks;             ///< LUN offsets of the catalog's chunks, in order.
  bool operator==(const VolumeInfo&) const = default;
};
/// As many chunks as a volume can have: 240 GiB of catalog.
inline constexpr std::size_t kMaxChunks = 3840;
/// Chunks that format() maps, from the start of the data area on (so that they are its first
/// groups). All but the first are the reserve of C4: only what frees space may need them.
inline constexpr std::size_t kFirstChunks = 3;

/// A LUN's identity as VolumeInfo keeps it (shortened where it is too long). Differs from
/// info.lun_identity: this LUN is a clone of the one that was formatted; use neither beside the
/// other.
std::string lun_identity(const iscsi::TargetProfile& profile);

/// The heartbeat slot of (node, role): its offset on the LUN. Its bytes:
/// csvfs/base/heartbeat_slot.h.
std::uint64_t slot_offset(const VolumeInfo& info, NodeId node, KeyRole role);

/// Reads both superblocks, takes the newer valid copy. `repair`: rewrites a copy that is damaged or
/// older before returning, and sees to it that B is past a volatile cache (a coordinator; a mount
/// does not). Both damaged: Errc::corrupt. Not ours:
/// Errc::refused with what was recognised. Newer incompatible format: Errc::refused.
Expected<VolumeInfo> read_superblocks(iscsi::BlockingLun& lun, bool repair);
/// Copy A, flush, copy B, flush (now the change counts), copy C; raises info.sequence. On an error
/// the outcome is unknown. While a CatalogStore is open it alone may write superblocks.
Expected<void> write_superblocks(iscsi::BlockingLun& lun, VolumeInfo& info);
/// For check(): what is wrong with the copies that are not in force, in words. Errors as
/// read_superblocks().
Expected<std::vector<std::string>> superblock_problems(iscsi::BlockingLun& lun);
/// For check(): what is wrong with the headers of info's catalog chunks, in words.
Expected<std::vector<std::string>> chunk_problems(iscsi::BlockingLun& lun, const VolumeInfo& info);

struct FormatOptions {
  std::string label;
  std::uint16_t cluster = 0;
  bool overwrite = false;  ///< --yes: whatever is on it, and whoever's keys are registered.
  std::uint64_t wal_size = 64ull << 20;  ///< A multiple of 1 MiB, 4 MiB to 1 GiB.
  /// On a thin LUN, writes slots, WAL region and first chunks through, so that metadata never runs
  /// out of space; later chunks too. A simulation saves itself the time.
  bool claim_space = true;
  Progress progress = {};  ///< Of the writing through, in bytes.
};
/// Bytes a LUN must have for a volume.
std::uint64_t least_size(const FormatOptions& options);
/// What stands on a LUN, in words ("an ext4 file system"), or empty: an unformatted one.
Expected<std::string> recognise(iscsi::BlockingLun& lun);
/// Makes an empty volume: everything of it is written before the superblocks. Refuses a LUN that is
/// write-protected, too small (the message says the least size), recognisably in use, or on which
/// keys or a reservation stand, unless options.overwrite.
Expected<VolumeInfo> format(iscsi::BlockingLun& lun, const FormatOptions& options, Random& random,
                            WallTime now);

/// Where the catalog's SQLite database lives: a VFS of its own over a LUN's WAL region and chunks
/// (docs/volume-format.md). Used by the volume's writer thread alone: several connections may be
/// open at once, all on that thread, and all are closed before the store is destroyed.
///
/// The database's pages have 4096 bytes of which 8 are reserved (SQLITE_FCNTL_RESERVE_BYTES, before
/// the first table); journal_mode WAL from the start and for ever; synchronous FULL, else a commit
/// is not durable when it returns. A page that fails its checksum is SQLITE_IOERR_CORRUPTFS.
class CatalogStore {
 public:
  virtual ~CatalogStore() = default;
  /// For sqlite3_open_v2: the VFS's name and the file name in it.
  [[nodiscard]] virtual const char* vfs() const = 0;
  [[nodiscard]] virtual const char* path() const = 0;
  /// Database pages of 4096 bytes that the mapped chunks hold (PRAGMA max_page_count).
  [[nodiscard]] virtual std::uint32_t mapped_pages() const = 0;
  /// Takes the space of a chunk to be at LUN offset `at`, which is free, from a thin LUN, so that
  /// its pages never run out of it. std::errc::no_space_on_device: it has none; Errc::bad_medium:
  /// it cannot write there. Nothing changed then.
  virtual Expected<void> claim_chunk(std::uint64_t at) = 0;
  /// Maps one more chunk at LUN offset `at`: header written, both superblocks rewritten. The caller
  /// has made the space used in a durable transaction before.
  virtual Expected<void> add_chunk(std::uint64_t at) = 0;
  [[nodiscard]] virtual const VolumeInfo& info() const = 0;
  /// The first error any read, write or flush of the catalog had. After it nothing was, and nothing
  /// will be, written: the outcome of what ran is unknown and the volume must be given up (A12).
  [[nodiscard]] virtual Expected<void> health() const = 0;
  virtual iscsi::BlockingLun& lun() = 0;
};

enum class StoreAccess { read_write, read_only };

/// Registers the VFS and reads the WAL into memory. `lun`, used by the calling thread only, and
/// `random` must outlive it. `random` feeds SQLite's salts, so that a simulation replays. read_only
/// writes nothing to the LUN: changes fail with SQLITE_READONLY, the log is recovered in memory.
Expected<std::unique_ptr<CatalogStore>> open_catalog_store(
    iscsi::BlockingLun& lun, VolumeInfo info, Random& random,
    StoreAccess access = StoreAccess::read_write);

}  // namespace csv::volume
