#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "csvfs/base/endian.h"

/// Every byte of ours on a LUN but for heartbeat slots (csvfs/base/heartbeat_slot, because mounts
/// write them too) and the inside of the catalog's pages, which is SQLite's.
/// docs/volume-format.md draws the same for people. Numbers are little-endian, reserved bytes are
/// written as zero and not looked at.
///
/// A volume on a LUN of `size` bytes, offsets in MiB:
///
///        0  superblock A (16 KiB), the rest of the MiB zero
///        1  heartbeat slots, 256 of 4 KiB
///        8  superblock B (16 KiB); from 2 MiB to here, and from here on, reserved
///       16  the catalog's write-ahead log (WAL), 64 MiB unless asked for otherwise
///     then  the data area, in allocation groups of 64 MiB; catalog chunks are taken from it
///     last  superblock C, in the last 16 KiB that are a multiple of 16 KiB from the start
namespace csv::volume::disk {

using Magic = std::array<char, 8>;
using VolumeUuid = std::array<std::byte, 16>;

/// The end of line and ^Z make a copy that was taken for text recognisable as damaged.
inline constexpr Magic kSuperblockMagic = {'C', 'S', 'V', 'O', 'L', '\r', '\n', '\x1a'};
inline constexpr Magic kChunkMagic = {'C', 'S', 'V', 'C', 'H', 'N', 'K', '\x1a'};
inline constexpr Magic kLogMarkMagic = {'C', 'S', 'V', 'L', 'M', 'R', 'K', '\x1a'};

inline constexpr Magic kCopyMagic = {'C', 'S', 'V', 'C', 'O', 'P', 'Y', '\x1a'};

/// Of every structure here. A reader refuses what is above its own.
inline constexpr std::uint32_t kFormatVersion = 1;

/// Bits this program knows. A volume with an unknown bit: incompatible, refused; read-only
/// compatible, refused too by whoever writes; compatible, ignored and, when rewritten, cleared,
/// which tells the newer program that an older one has been there.
inline constexpr std::uint64_t kCompatible = 0;
inline constexpr std::uint64_t kReadOnlyCompatible = 0;
inline constexpr std::uint64_t kIncompatible = 0;

inline constexpr std::uint64_t kSuperblockA = 0;
inline constexpr std::uint64_t kSuperblockB = 8ull << 20;
inline constexpr std::uint64_t kSlotsOffset = 1ull << 20;
inline constexpr std::uint32_t kSlotCount = 256;
inline constexpr std::uint64_t kSlotSize = 4096;
inline constexpr std::uint64_t kWalOffset = 16ull << 20;
inline constexpr std::uint64_t kLargestWal = 1ull << 30;  ///< It is kept in memory.
inline constexpr std::uint64_t kTailSize =
    1ull << 20;  ///< Behind the data area: superblock C and slack.

/// Catalog chunks a superblock can name: 240 GiB of catalog.
inline constexpr std::uint32_t kChunkPlaces = 3840;
/// A chunk's place is kept in this unit, so that 32 bits reach 4 PiB.
inline constexpr std::uint64_t kChunkPlaceUnit = 1ull << 20;

/// Identity, geometry and coordinator of a volume. Three copies: A and B count, C is for repair.
/// A rewrite goes to A, is flushed, goes to B, is flushed (now it counts), and at last to C; so at
/// any moment one of A and B is whole, and outside a rewrite both say the same. The newer valid one
/// is in force.
///
///   offset   size
///        0      8  magic           tells our blocks from everything else
///        8      4  crc             CRC-32C of bytes [12, 16384): torn writes, rot
///       12      4  format_version  a newer layout read with this one's eyes
///       16      8  compatible      feature bits, see above
///       24      8  read_only_compatible
///       32      8  incompatible
///       40      8  sequence        grows by one with every rewrite: which copy is the newer
///       48     16  volume_id       random: copies that are of two volumes
///       64      4  copy            0 A, 1 B, 2 C: a block that was written to, or copied to,
///       another place 68      2  cluster         the cluster that formatted it: mounting a
///       neighbour's volume 70      1  coordinator     node number of the last coordinator 71 1
///       reserved 72      8  epoch           of the last coordinator: two coordinators that take
///       themselves for one (A5) 80      8  coordinator_key reservation key of the last
///       coordinator: whom to fence first 88      8  tag_forced      configuration of the cluster
///       that coordinates, compared in this 96      8  tag_epoch         order: an older cluster
///       that takes the volume from a newer one
///      104      8  tag_sequence
///      112      8  lun_size        bytes, as formatted: a LUN that shrank; also where copy C is
///      120      8  slots_offset    bytes
///      128      8  wal_offset      bytes
///      136      8  wal_size        bytes
///      144      8  data_offset     bytes
///      152      8  data_size       bytes
///      160      8  formatted_at    ns since 1970, for people
///      168      4  chunk_count
///      172      4  reserved
///      176     64  label           UTF-8, padded with NUL, at most 63 bytes
///      240    128  lun_identity    VPD page 83h, padded with NUL, at most 127 bytes: a clone of
///      the LUN
///                                  presented beside it
///      368      8  closed_key      of who closed it in good order: not one that died taking it
///      over 376    648  reserved
///     1024  15360  chunks          3840 x 4: offset of each catalog chunk in MiB, in order; 0 if
///     unused
struct Superblock {
  Magic magic;
  Le32 crc;
  Le32 format_version;
  Le64 compatible;
  Le64 read_only_compatible;
  Le64 incompatible;
  Le64 sequence;
  VolumeUuid volume_id;
  Le32 copy;
  Le16 cluster;
  std::uint8_t coordinator;
  std::uint8_t reserved1;
  Le64 epoch;
  Le64 coordinator_key;
  Le64 tag_forced;
  Le64 tag_epoch;
  Le64 tag_sequence;
  Le64 lun_size;
  Le64 slots_offset;
  Le64 wal_offset;
  Le64 wal_size;
  Le64 data_offset;
  Le64 data_size;
  Le64 formatted_at;
  Le32 chunk_count;
  Le32 reserved2;
  std::array<char, 64> label;
  std::array<char, 128> lun_identity;
  Le64 closed_key;
  std::array<std::byte, 648> reserved3;
  std::array<Le32, kChunkPlaces> chunks;
};
static_assert(sizeof(Superblock) == 16384 && alignof(Superblock) == 1);
static_assert(offsetof(Superblock, crc) == 8 && offsetof(Superblock, format_version) == 12);
static_assert(offsetof(Superblock, incompatible) == 32 && offsetof(Superblock, sequence) == 40);
static_assert(offsetof(Superblock, volume_id) == 48 && offsetof(Superblock, copy) == 64);
static_assert(offsetof(Superblock, cluster) == 68 && offsetof(Superblock, epoch) == 72);
static_assert(offsetof(Superblock, tag_forced) == 88 && offsetof(Superblock, lun_size) == 112);
static_assert(offsetof(Superblock, data_size) == 152 && offsetof(Superblock, chunk_count) == 168);
static_assert(offsetof(Superblock, label) == 176 && offsetof(Superblock, lun_identity) == 240);
static_assert(offsetof(Superblock, closed_key) == 368 && offsetof(Superblock, chunks) == 1024);
static_assert(std::is_trivially_copyable_v<Superblock>);
inline constexpr std::uint64_t kSuperblockSize = sizeof(Superblock);

/// The first block of a catalog chunk; the chunk's database pages follow it. With these the chunk
/// map can be rebuilt when all superblocks are gone.
///
///   offset  size
///        0     8  magic
///        8     4  crc             CRC-32C of bytes [12, 4096)
///       12     4  format_version
///       16    16  volume_id       a chunk of another volume, or of this LUN's former one
///       32     8  lun_offset      where this header itself lies: a copy of it elsewhere
///       40     4  index           the chunk's number: a map in the wrong order
///       44     4  reserved
///       48     8  sequence        the superblock's that names it first: of two with one index the
///                                 higher is the chunk, the other an attempt that a crash ended
///       56  4040  reserved
struct ChunkHeader {
  Magic magic;
  Le32 crc;
  Le32 format_version;
  VolumeUuid volume_id;
  Le64 lun_offset;
  Le32 index;
  Le32 reserved1;
  Le64 sequence;
  std::array<std::byte, 4040> reserved2;
};
static_assert(sizeof(ChunkHeader) == 4096 && alignof(ChunkHeader) == 1);
static_assert(offsetof(ChunkHeader, volume_id) == 16 && offsetof(ChunkHeader, lun_offset) == 32);
static_assert(offsetof(ChunkHeader, index) == 40 && offsetof(ChunkHeader, sequence) == 48);
static_assert(std::is_trivially_copyable_v<ChunkHeader>);

/// The first block of an allocation group that holds a piece of a copy of the catalog. At 16 KiB in
/// the first of a copy's groups stands the superblock as it was, as copy C; from 32 KiB on in each
/// of them pages of the database, with their tails.
///
///   offset  size
///        0     8  magic
///        8     4  crc             CRC-32C of bytes [12, 4096)
///       12     4  format_version
///       16    16  volume_id       a copy of another volume's catalog
///       32     8  lun_offset      where this header itself lies: a copy of it elsewhere
///       40     4  slot            0 or 1: there are two copies, taken in turn
///       44     4  index           the group's number in the copy
///       48     8  sequence        of the copy; the higher is the newer. Groups of two copies
///       56     8  taken_at        ns since 1970
///       64     8  pages           of the database
///       72     4  groups          of the copy: one that is not complete
///       76     4  sums            CRC-32C of the checksums of this group's pages (4 bytes each, in
///                                 order): pages of an older copy, whole by themselves
///       80     8  epoch           of the coordinator that took it, for people
///       88  4008  reserved
struct CopyHeader {
  Magic magic;
  Le32 crc;
  Le32 format_version;
  VolumeUuid volume_id;
  Le64 lun_offset;
  Le32 slot;
  Le32 index;
  Le64 sequence;
  Le64 taken_at;
  Le64 pages;
  Le32 groups;
  Le32 sums;
  Le64 epoch;
  std::array<std::byte, 4008> reserved;
};
static_assert(sizeof(CopyHeader) == 4096 && alignof(CopyHeader) == 1);
static_assert(offsetof(CopyHeader, lun_offset) == 32 && offsetof(CopyHeader, sequence) == 48);
static_assert(offsetof(CopyHeader, pages) == 64 && offsetof(CopyHeader, epoch) == 80);
static_assert(std::is_trivially_copyable_v<CopyHeader>);
inline constexpr std::uint64_t kCopySuperblockOffset = 16384;
inline constexpr std::uint64_t kCopyPagesOffset = 32768;

/// The end of every database page: SQLite leaves these bytes alone ("reserved bytes" 8), we fill
/// them in when a page goes to the LUN.
///
///   offset  size   within the page of 4096
///     4088     4   crc       CRC-32C of volume id (16), page number (4, from 1) and bytes [0,
///     4088):
///                            rot, torn writes, a page that was written to another's place, or that
///                            another volume left there
///     4092     4   reserved
struct PageTail {
  Le32 crc;
  Le32 reserved;
};
static_assert(sizeof(PageTail) == 8);
inline constexpr std::uint32_t kPageSize = 4096;
inline constexpr std::uint32_t kPageReserve = sizeof(PageTail);
inline constexpr std::uint32_t kPagesPerChunk = (64u << 20) / kPageSize - 1;
inline constexpr std::uint32_t kPagesPerCopyGroup = ((64u << 20) - kCopyPagesOffset) / kPageSize;

/// The WAL region is an SQLite WAL file with pages of 4096 bytes, as SQLite defines it: a header of
/// 32 bytes (of which one without content has zeros), then frames of 24 + 4096 bytes. The region's
/// last block is not the log's, but its mark.
inline constexpr std::uint64_t kWalHeaderSize = 32;
inline constexpr std::uint64_t kFrameHeaderSize = 24;
inline constexpr std::uint64_t kFrameSize = kFrameHeaderSize + kPageSize;

/// How far the log must reach: written beside every transaction's frames. A log that ends before
/// these frames has lost some that were durable; one that ends behind them may have had another
/// transaction under way.
///
///   offset  size
///        0     8  magic
///        8     4  crc             CRC-32C of bytes [12, 4096)
///       12     4  format_version
///       16    16  volume_id       a mark left from before the LUN was formatted anew
///       32     8  salts           of the log's header, whose round the frames are of; 0: no log
///       40     8  frames          of it that were durable when this was written
///       48     8  retired         not 0: a repair replaces the catalog below this log, which is of
///                                 no use from the superblocks with this sequence on
///       56  4040  reserved
struct LogMark {
  Magic magic;
  Le32 crc;
  Le32 format_version;
  VolumeUuid volume_id;
  std::array<std::byte, 8> salts;
  Le64 frames;
  Le64 retired;
  std::array<std::byte, 4040> reserved;
};
static_assert(sizeof(LogMark) == 4096 && alignof(LogMark) == 1);
static_assert(offsetof(LogMark, salts) == 32 && offsetof(LogMark, frames) == 40);
static_assert(offsetof(LogMark, retired) == 48);
static_assert(std::is_trivially_copyable_v<LogMark>);

}  // namespace csv::volume::disk
