#include "coordinator/volume/superblock_search.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "coordinator/volume/bad_blocks.h"
#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

using State = FoundSuperblock::State;

std::size_t good_chunks(iscsi::BlockingLun& lun, const VolumeInfo& info) {
  auto problems = chunk_problems(lun, info);
  return problems ? info.chunks.size() - problems->size() : 0;
}

struct Best {
  const char* name = "";
  VolumeInfo info;
};
/// Of copies that cannot both be in force, the one whose chunks are there, then the newer.
std::optional<Best> best_of(iscsi::BlockingLun& lun, const SuperblockCopies& copies) {
  std::optional<Best> best;
  std::size_t best_chunks = 0;
  const std::pair<const char*, const FoundSuperblock*> all[] = {
      {"A", &copies.a}, {"B", &copies.b}, {"C", &copies.c}};
  for (auto [name, each] : all) {
    if (each->state != State::valid) continue;
    auto chunks = good_chunks(lun, each->info);
    if (best &&
        std::pair{chunks, each->info.sequence} <= std::pair{best_chunks, best->info.sequence})
      continue;
    best = Best{name, each->info};
    best_chunks = chunks;
  }
  return best;
}

Expected<std::optional<CatalogCopy>> newest_copy_anywhere(iscsi::BlockingLun& lun) {
  auto copies = CSV_TRY(find_copies(lun, {}, disk::kWalOffset, kGroupSize));
  if (copies.empty()) copies = CSV_TRY(find_copies(lun, {}, disk::kWalOffset, kRegionAlignment));
  if (copies.empty()) return std::optional<CatalogCopy>{};
  return std::optional<CatalogCopy>{std::move(copies.front())};
}

/// The data area begins behind the log, a chunk at a multiple of its size behind that.
Expected<VolumeInfo> from_chunks(iscsi::BlockingLun& lun, const FoundChunks& found,
                                 const Unsaid& unsaid) {
  if (!check_label(unsaid.label) || unsaid.cluster == 0)
    return Error{
        Errc::refused,
        fmt::format("no superblock is left, but the catalog of volume {} was found: say "
                    "the volume's name and cluster (--name, --cluster-id; --log-size if it "
                    "was not 64 MiB), and its superblocks are made anew",
                    to_string(found.volume))};
  VolumeInfo info;
  info.sequence = found.sequence + 1;
  info.id = found.volume;
  info.label = unsaid.label;
  info.lun_identity = lun_identity(lun.lun().profile());
  info.cluster = unsaid.cluster;
  info.formatted_at = unsaid.now;
  info.lun_size = lun.lun().geometry().size_bytes();
  info.slots_offset = disk::kSlotsOffset;
  info.wal_offset = disk::kWalOffset;
  info.wal_size = unsaid.wal_size;
  info.data_offset = info.wal_offset + info.wal_size;
  auto end = (info.lun_size - disk::kTailSize) / kRegionAlignment * kRegionAlignment;
  if (end <= info.data_offset)
    return Error{Errc::refused, fmt::format("the LUN is too small for a log of {} MiB (--log-size)",
                                            info.wal_size >> 20)};
  info.data_size = end - info.data_offset;
  info.chunks = found.places;
  for (auto at : info.chunks)
    if (at < info.data_offset || (at - info.data_offset) % kGroupSize != 0)
      return Error{Errc::refused, fmt::format("a catalog chunk lies at LUN offset {}, which does "
                                              "not fit a log of {} MiB (--log-size)",
                                              at, info.wal_size >> 20)};
  return info;
}

}  // namespace

Expected<std::optional<FoundChunks>> find_chunks(iscsi::BlockingLun& lun,
                                                 const std::optional<VolumeId>& volume,
                                                 std::uint64_t first, std::uint64_t step) {
  struct Place {
    std::uint64_t at = 0, sequence = 0;
  };
  std::map<VolumeId, std::map<std::uint32_t, Place>> found;
  constexpr std::size_t kAtOnce = 64;
  std::vector<Buffer> headers(kAtOnce);
  for (auto& each : headers) each = Buffer{sizeof(disk::ChunkHeader)};
  auto end = lun.lun().geometry().size_bytes();
  for (auto at = first; at + kChunkSize <= end;) {
    std::vector<iscsi::BlockingLun::Read> reads;
    for (; reads.size() < kAtOnce && at + kChunkSize <= end; at += step)
      reads.push_back({at, headers[reads.size()].span()});
    CSV_TRY(read_around_bad_blocks(lun, reads));
    for (const auto& one : reads) {
      disk::ChunkHeader header;
      std::memcpy(&header, one.out.data(), sizeof header);
      if (header.magic != disk::kChunkMagic || header.crc != crc32c(one.out.subspan(12)) ||
          header.lun_offset != one.offset || header.index >= kMaxChunks ||
          (volume && header.volume_id != *volume))
        continue;
      auto& place = found[header.volume_id][header.index];
      if (place.at == 0 || header.sequence > place.sequence) place = {one.offset, header.sequence};
    }
  }
  if (found.empty()) return std::optional<FoundChunks>{};
  // Of several volumes that were on this LUN the youngest cannot be told: the one with most chunks.
  auto most = std::max_element(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return a.second.size() < b.second.size();
  });
  FoundChunks out;
  out.volume = most->first;
  for (const auto& [index, place] : most->second) {
    if (index != out.places.size()) break;  // what lies behind a gap has no use
    out.places.push_back(place.at);
    out.sequence = std::max(out.sequence, place.sequence);
  }
  if (out.places.empty()) return std::optional<FoundChunks>{};
  return std::optional<FoundChunks>{std::move(out)};
}

Expected<std::optional<SuperblockLeft>> find_superblock_left(iscsi::BlockingLun& lun,
                                                             const SuperblockCopies& copies,
                                                             const Unsaid& unsaid) {
  SuperblockLeft left;
  if (auto best = best_of(lun, copies)) {
    left.info = best->info;
    left.source = fmt::format("superblock {}, sequence {}", best->name, best->info.sequence);
    // It may be one change behind: the headers on the LUN say which chunks there are.
    auto chunks = CSV_TRY(find_chunks(lun, left.info.id, left.info.data_offset, kGroupSize));
    if (chunks && chunks->places.size() > left.info.chunks.size())
      left.info.chunks = chunks->places;
    if (chunks) left.info.sequence = std::max(left.info.sequence, chunks->sequence);
  } else if (auto copy = CSV_TRY(newest_copy_anywhere(lun))) {
    left.info = copy->info;
    left.source = fmt::format("the one that lies with copy {} of the catalog", copy->slot);
    auto chunks = CSV_TRY(find_chunks(lun, left.info.id, left.info.data_offset, kGroupSize));
    if (chunks) {
      left.info.chunks = chunks->places;
      left.info.sequence = std::max(left.info.sequence, chunks->sequence);
    }
  } else {
    auto chunks = CSV_TRY(find_chunks(lun, {}, disk::kWalOffset, kGroupSize));
    if (!chunks) chunks = CSV_TRY(find_chunks(lun, {}, disk::kWalOffset, kRegionAlignment));
    if (!chunks) return std::optional<SuperblockLeft>{};
    left.info = CSV_TRY(from_chunks(lun, *chunks, unsaid));
    left.source = fmt::format("the headers of {} catalog chunks", left.info.chunks.size());
  }
  return std::optional{std::move(left)};
}

}  // namespace csv::volume
