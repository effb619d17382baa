#include <algorithm>
#include <cstring>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/claim.h"
#include "coordinator/volume/lun_vfs.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume.h"
#include "coordinator/volume/volume_format.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/heartbeat_slot.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

constexpr std::uint64_t kLeastWal = 4ull << 20, kMostWal = disk::kLargestWal;

Expected<void> check_options(const FormatOptions& options) {
  CSV_TRY(check_label(options.label));
  if (options.cluster == 0) return Error{Errc::refused, "the cluster's number must be 1 to 65535"};
  if (options.wal_size % kRegionAlignment != 0 || options.wal_size < kLeastWal ||
      options.wal_size > kMostWal)
    return Error{Errc::refused, "the catalog's log must have 4 MiB to 1 GiB, in whole MiB"};
  return {};
}

/// Whose the LUN is, by its reservation: refuses one in use.
Expected<void> check_reservations(iscsi::BlockingLun& lun) {
  auto keys = lun.read_keys();
  if (!keys && keys.error() == Errc::unsupported_by_target)
    return Error{Errc::refused,
                 "the target has no persistent reservations, without which csvfs cannot fence"};
  if (!keys) return keys.error().within("reading the LUN's keys");
  auto held = lun.read_reservation();
  if (!held) return held.error().within("reading the LUN's reservation");
  if (keys->keys.empty() && held->type == iscsi::ReservationType::none) return {};
  std::string list;
  for (auto key : keys->keys) list += fmt::format(" {:#018x}", raw(key));
  return Error{
      Errc::refused,
      fmt::format("the LUN is in use: {} keys are registered{}{}; stop its users, or give "
                  "--yes to throw them out",
                  keys->keys.size(), list,
                  held->type == iscsi::ReservationType::none ? "" : ", and a reservation is held")};
}

/// Throws everybody out, keys and reservation.
Expected<void> clear_reservations(iscsi::BlockingLun& lun, std::uint16_t cluster, Random& random) {
  auto keys = CSV_TRY(lun.read_keys());
  auto held = CSV_TRY(lun.read_reservation());
  if (keys.keys.empty() && held.type == iscsi::ReservationType::none) return {};
  auto mine = make_key({.cluster = cluster, .number = 1 + random.below((1ull << 38) - 1)});
  CSV_TRY(lun.register_key(mine));
  return lun.clear(mine);
}

Expected<void> check_content(iscsi::BlockingLun& lun) {
  auto found = CSV_TRY(recognise(lun));
  if (found.empty()) return {};
  return Error{Errc::refused, fmt::format("the LUN holds {}; give --yes to destroy it", found)};
}

/// Where everything goes.
VolumeInfo lay_out(iscsi::BlockingLun& lun, const FormatOptions& options, Random& random,
                   WallTime now) {
  VolumeInfo info;
  for (std::size_t i = 0; i < info.id.size(); i += 8) {
    auto bits = random.next();
    for (std::size_t j = 0; j < 8; ++j) info.id[i + j] = static_cast<std::byte>(bits >> (8 * j));
  }
  info.label = options.label;
  info.lun_identity = lun_identity(lun.lun().profile());
  info.cluster = options.cluster;
  info.formatted_at = now;
  info.lun_size = lun.lun().geometry().size_bytes();
  info.slots_offset = disk::kSlotsOffset;
  info.wal_offset = disk::kWalOffset;
  info.wal_size = options.wal_size;
  info.data_offset = info.wal_offset + info.wal_size;
  auto end = (info.lun_size - disk::kTailSize) / kRegionAlignment * kRegionAlignment;
  info.data_size = end - info.data_offset;
  for (std::size_t i = 0; i < kFirstChunks; ++i)
    info.chunks.push_back(info.data_offset + i * kChunkSize);
  return info;
}

/// Nothing of what was there is recognisable any more, nor is a former volume of ours.
Expected<void> wipe(iscsi::BlockingLun& lun, std::uint64_t size) {
  auto block = lun.lun().geometry().block_size;
  auto tail = (size - disk::kTailSize) / block * block;
  CSV_TRY(lun.write_zeroes(0, disk::kWalOffset));
  CSV_TRY(lun.write_zeroes(tail, size - tail));
  return lun.flush();
}

/// Signs of life of nobody, which are no zeros.
Expected<void> claim_slots(iscsi::BlockingLun& lun, const VolumeInfo& info) {
  if (!lun.lun().profile().thin) return {};
  Buffer slots{disk::kSlotCount * disk::kSlotSize};
  auto nobody = encode(HeartbeatSlot{}, info.id);
  for (std::size_t at = 0; at < slots.size(); at += nobody.size())
    std::memcpy(slots.data() + at, nobody.data(), nobody.size());
  return lun.write(info.slots_offset, slots.span());
}

/// The log's region and the first chunks lie side by side; in pieces, so that somebody can be told
/// how it goes on.
Expected<void> claim_catalog(iscsi::BlockingLun& lun, const VolumeInfo& info,
                             const Progress& progress) {
  if (!lun.lun().profile().thin) return {};
  constexpr std::uint64_t kPiece = 16ull << 20;
  auto size = info.wal_size + info.chunks.size() * kChunkSize;
  for (std::uint64_t done = 0; done < size;) {
    auto piece = std::min(kPiece, size - done);
    CSV_TRY(claim(lun, info.wal_offset + done, piece));
    done += piece;
    if (progress) progress(done, size);
  }
  return {};
}

/// The regions behind the superblocks, as an empty catalog wants to find them.
Expected<void> prepare_catalog(iscsi::BlockingLun& lun, const VolumeInfo& info,
                               const FormatOptions& options) {
  if (options.claim_space) {
    CSV_TRY(claim_slots(lun, info));
    CSV_TRY(claim_catalog(lun, info, options.progress));
  }
  // No log, and a database without a first page.
  CSV_TRY(WalRegion::clear(lun, info));
  CSV_TRY(lun.write_zeroes(place_of_page(info, 1), disk::kPageSize));
  for (std::uint32_t i = 0; i < info.chunks.size(); ++i) {
    auto header = encode_chunk_header(info.id, i, info.chunks[i], info.sequence + 1);
    CSV_TRY(lun.write(info.chunks[i], header.span()));
  }
  return lun.flush();
}

Expected<void> create_catalog(iscsi::BlockingLun& lun, const VolumeInfo& info, Random& random,
                              WallTime now) {
  auto store =
      CSV_TRY(open_store(lun, info, random, StoreAccess::read_write, Publication::unpublished));
  CSV_TRY(Catalog::create(*store, static_cast<std::int64_t>(now)));
  return store->health();
}

}  // namespace

std::uint64_t least_size(const FormatOptions& options) {
  return disk::kWalOffset + options.wal_size + (kFirstChunks + 1) * kGroupSize + disk::kTailSize;
}

Expected<VolumeInfo> format(iscsi::BlockingLun& lun, const FormatOptions& options, Random& random,
                            WallTime now) {
  CSV_TRY(check_options(options));
  auto size = lun.lun().geometry().size_bytes();
  if (lun.lun().profile().write_protected)
    return Error{Errc::refused, "the LUN is write-protected"};
  if (size < least_size(options))
    return Error{
        Errc::refused,
        fmt::format("the LUN has {} MiB; a volume with a log of {} MiB needs at least {} MiB",
                    size >> 20, options.wal_size >> 20, least_size(options) >> 20)};
  if (options.overwrite) {
    if (auto cleared = clear_reservations(lun, options.cluster, random); !cleared)
      return cleared.error().within("clearing the LUN's reservations");
  } else {
    CSV_TRY(check_reservations(lun));
    CSV_TRY(check_content(lun));
  }

  auto info = lay_out(lun, options, random, now);
  if (auto wiped = wipe(lun, size); !wiped) return wiped.error().within("wiping the LUN");
  if (auto ready = prepare_catalog(lun, info, options); !ready)
    return ready.error().within("preparing the catalog's space");
  if (auto made = create_catalog(lun, info, random, now); !made)
    return made.error().within("creating the catalog");
  // From here on it is a volume, and whole.
  CSV_TRY(lun.flush());
  CSV_TRY(write_superblocks(lun, info));
  auto found = CSV_TRY(read_superblocks(lun, false));
  if (!(found == info))
    return Error{Errc::corrupt, "the superblocks do not read back as they were written"};
  log::info("formatted volume={} id={} size={} cluster={}", info.label, to_string(info.id),
            info.lun_size, info.cluster);
  return info;
}

}  // namespace csv::volume
