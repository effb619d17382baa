#include "coordinator/volume/catalog_source.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "coordinator/volume/bad_blocks.h"
#include "coordinator/volume/log_chain.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

constexpr std::uint64_t kReadSize = 1ull << 20;
constexpr std::size_t kMostProblems = 100;

std::uint32_t big_endian(const std::byte* at) {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = (value << 8) | std::to_integer<std::uint32_t>(at[i]);
  return value;
}
}  // namespace

void CatalogSource::problem(std::string text) {
  if (problems_.size() < kMostProblems) problems_.push_back(std::move(text));
}

Expected<std::unique_ptr<CatalogSource>> CatalogSource::open(iscsi::BlockingLun& lun,
                                                             const VolumeInfo& info) {
  std::unique_ptr<CatalogSource> source{new CatalogSource{lun, info}};
  if (auto read = source->read_log(); !read) return read.error().within("reading the log");
  CSV_TRY(source->look_at_chunks());
  CSV_TRY(source->find_size());
  return source;
}

Expected<void> CatalogSource::read_log() {
  log_ = Buffer{info_.wal_size};
  std::vector<iscsi::BlockingLun::Read> reads;
  for (std::uint64_t at = 0; at < info_.wal_size; at += kReadSize)
    reads.push_back(
        {info_.wal_offset + at, log_.span().subspan(at, std::min(kReadSize, info_.wal_size - at))});
  auto unreadable = CSV_TRY(read_around_bad_blocks(*lun_, reads));
  unreadable_.add(unreadable);

  auto bytes = std::span<const std::byte>{log_.span()};
  auto end_of_log = bytes.size() - sizeof(disk::LogMark);
  auto mark = decode_log_mark(bytes.subspan(end_of_log), info_.id);
  if (!mark && mark.error() != Errc::corrupt) return mark.error();
  if (auto why = unreadable.within(info_.wal_offset + end_of_log, sizeof(disk::LogMark));
      !why.empty())
    problem("the log's mark at " + why);
  bool known = mark && *mark;
  auto retired = known ? std::uint64_t{(*mark)->retired} : 0;
  bool marked = known && (*mark)->salts != LogSalts{};
  if (retired != 0) {
    log_whole_ = false;
    problem("the log was put aside by a repair that was interrupted");
    // Not by the superblocks' own sequence: attempts to take the volume over may have raised it.
    if (CSV_TRY(newest_chunk()) >= retired) return {};  // it belongs to the catalog before
  }
  bytes = bytes.first(end_of_log);

  auto first = bytes.first(disk::kWalHeaderSize);
  bool zeros = std::all_of(first.begin(), first.end(), [](auto b) { return b == std::byte{}; });
  auto header = read_log_header(first);
  if (auto why = unreadable.within(info_.wal_offset, first.size()); !why.empty()) {
    log_whole_ = false;
    problem("the log's header at " + why);
  }
  if (zeros && !marked) return {};
  bool header_good = header.has_value();
  if (!header_good) {
    log_whole_ = false;
    problem(marked ? "the log's header is damaged: its frames are told by the log's mark"
                   : "the log's header is damaged: transactions that were not yet in the database "
                     "are lost");
    if (!marked) return {};
    header.emplace();
    header->big_endian = std::endian::native == std::endian::big;
    header->salts = (*mark)->salts;
  }
  std::size_t must = marked && (*mark)->salts == header->salts ? std::size_t{(*mark)->frames} : 0;

  // A frame is summed up from the sum that stands in the frame before it: so each can be judged.
  std::vector<LogFrame> frames;
  auto sum = header->sum;
  for (auto at = disk::kWalHeaderSize; at + disk::kFrameSize <= bytes.size();
       at += disk::kFrameSize) {
    frames.push_back(read_log_frame(*header, sum, bytes.subspan(at, disk::kFrameSize)));
    sum = frames.back().sum;
  }
  if (!header_good && !frames.empty()) {
    // What the header's sum would have told of the first frame is lost; its salts are as good.
    const auto* salts = bytes.data() + disk::kWalHeaderSize + 8;
    frames.front().valid = std::memcmp(salts, header->salts.data(), header->salts.size()) == 0;
  }
  auto is_good = [](const LogFrame& frame) { return frame.valid; };
  auto bad = std::find_if_not(frames.begin(), frames.end(), is_good);
  auto end = bad;  // what counts
  if (bad != frames.end()) {
    auto at = info_.wal_offset + disk::kWalHeaderSize +
              static_cast<std::uint64_t>(bad - frames.begin()) * disk::kFrameSize;
    if (auto why = unreadable.within(at, disk::kFrameSize); !why.empty()) {
      log_whole_ = false;
      problem(fmt::format("the log is damaged: frame {} at {}", bad - frames.begin() + 1, why));
    }
  }
  // Behind the damage: what the mark speaks of; else a transaction's end, and frames of one after.
  auto marked_end = frames.begin() + static_cast<std::ptrdiff_t>(std::min(must, frames.size()));
  auto committed =
      std::find_if(bad, frames.end(), [](auto& f) { return f.valid && f.commit != 0; });
  if (bad < marked_end)
    end = std::find_if_not(marked_end, frames.end(), is_good);
  else if (must == 0 && committed != frames.end() &&
           std::any_of(committed + 1, frames.end(), is_good))
    while (end != frames.end() && std::any_of(end, frames.end(), is_good)) ++end;
  if (end != bad) {
    log_whole_ = false;
    auto lost = std::count_if(bad, end, [](const LogFrame& f) { return !f.valid; });
    problem(
        fmt::format("the log is damaged: from frame {} on {} of its frames cannot be read, and "
                    "{} frames of committed changes lie behind it",
                    bad - frames.begin() + 1, lost, end - bad - lost));
  }
  while (end != frames.begin() && !(std::prev(end)->valid && std::prev(end)->commit != 0)) --end;
  for (auto frame = frames.begin(); frame != end; ++frame)
    if (frame->valid)
      in_log_[frame->page] = disk::kWalHeaderSize +
                             static_cast<std::size_t>(frame - frames.begin()) * disk::kFrameSize +
                             disk::kFrameHeaderSize;
  if (end != frames.begin()) page_count_ = std::prev(end)->commit;
  return {};
}

/// The highest sequence in the headers of the volume's chunks.
Expected<std::uint64_t> CatalogSource::newest_chunk() {
  std::uint64_t newest = 0;
  auto count = static_cast<std::uint32_t>(info_.chunks.size());
  for (const auto& header : CSV_TRY(read_chunk_headers(*lun_, info_, 0, count)))
    newest = std::max(newest, header.sequence);
  return newest;
}

Expected<void> CatalogSource::look_at_chunks() {
  // Its pages say by their checksums whether they are ours.
  for (auto& text : CSV_TRY(chunk_problems(*lun_, info_))) problem(std::move(text));
  return {};
}

Expected<void> CatalogSource::find_size() {
  if (page_count_ == 0) {
    if (auto first = page(1)) page_count_ = big_endian(first->data() + 28);
  }
  CSV_TRY(Expected<void>{health_});
  auto mapped = static_cast<std::uint32_t>(info_.chunks.size() * disk::kPagesPerChunk);
  if (page_count_ == 0 || page_count_ > mapped) {
    // Nothing says: whatever has a checksum of ours is a page.
    page_count_ = mapped;
    size_known_ = false;
  }
  return {};
}

std::optional<std::span<const std::byte>> CatalogSource::page(std::uint32_t number) {
  if (number == 0 || !health_) return {};
  if (auto found = in_log_.find(number); found != in_log_.end())
    return std::span<const std::byte>{log_.data() + found->second, disk::kPageSize};
  if (number > info_.chunks.size() * disk::kPagesPerChunk) return {};
  if (number < piece_first_ || number >= piece_first_ + piece_pages_) {
    auto chunk_end = ((number - 1) / disk::kPagesPerChunk + 1) * disk::kPagesPerChunk + 1;
    auto pages = std::min<std::uint32_t>(kReadSize / disk::kPageSize, chunk_end - number);
    if (piece_.empty()) piece_ = Buffer{kReadSize};
    piece_pages_ = 0;
    if (auto read = lun_->read(place_of_page(info_, number),
                               piece_.span().first(std::uint64_t{pages} * disk::kPageSize));
        !read) {
      // One block that the LUN cannot read must not cost its neighbours.
      pages = 1;
      read = lun_->read(place_of_page(info_, number), piece_.span().first(disk::kPageSize));
      if (!read && (read.error() == Errc::lun_lost || read.error() == Errc::fenced)) {
        health_ = read;
        return {};
      }
      if (!read) {
        unreadable_.add(place_of_page(info_, number), disk::kPageSize, read.error());
        problem(fmt::format("catalog page {}: {}", number, read.error().message()));
        return {};
      }
    }
    piece_first_ = number;
    piece_pages_ = pages;
  }
  auto bytes = std::span<const std::byte>{piece_.span()}.subspan(
      std::uint64_t{number - piece_first_} * disk::kPageSize, disk::kPageSize);
  disk::PageTail tail;
  std::memcpy(&tail, bytes.data() + disk::kPageSize - sizeof tail, sizeof tail);
  if (tail.crc == page_checksum(info_.id, number, bytes)) return bytes;
  if (page_count_ == 0 || (size_known_ && number <= page_count_))
    problem(fmt::format("catalog page {} at LUN offset {}: its checksum is wrong", number,
                        place_of_page(info_, number)));
  return {};
}

}  // namespace csv::volume
