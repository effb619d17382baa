#include "coordinator/volume/wal_region.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string_view>

#include "coordinator/volume/bad_blocks.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

constexpr std::uint64_t kReadSize = 1ull << 20;
constexpr int kReadDepth = 16;
constexpr std::uint64_t kWriteSize = 1ull << 20;
constexpr int kWriteDepth = 32;
/// Up to so many writes FUA costs less than a flush of the whole LUN.
constexpr std::size_t kFuaWrites = 8;
constexpr const char* kLost =
    "changes that were answered are lost if it is taken for the end. Nothing was changed; the "
    "volume stays closed until it is repaired (csvctl volume check LUN --repair)";

/// The number of the frame whose page is exactly this range.
std::optional<std::size_t> page_at(std::uint64_t offset, std::size_t length) {
  constexpr auto first = disk::kWalHeaderSize + disk::kFrameHeaderSize;
  if (length != disk::kPageSize || offset < first || (offset - first) % disk::kFrameSize != 0)
    return {};
  return (offset - first) / disk::kFrameSize;
}

/// The number of the frame that is exactly this range.
std::optional<std::size_t> frame_at(std::uint64_t offset, std::size_t length) {
  if (length != disk::kFrameSize || offset < disk::kWalHeaderSize ||
      (offset - disk::kWalHeaderSize) % disk::kFrameSize != 0)
    return {};
  return (offset - disk::kWalHeaderSize) / disk::kFrameSize;
}

/// As decode_log_mark(). One that the LUN cannot read is damaged.
Expected<std::optional<disk::LogMark>> read_log_mark(iscsi::BlockingLun& lun, std::uint64_t at,
                                                     const VolumeId& volume) {
  Buffer block{sizeof(disk::LogMark)};
  const std::array<iscsi::BlockingLun::Read, 1> read = {{{at, block.span()}}};
  auto bad = CSV_TRY(read_around_bad_blocks(lun, read));
  if (auto why = bad.within(at, block.size()); !why.empty())
    return Error{Errc::corrupt, "the mark of the catalog's log is damaged: " + why};
  return decode_log_mark(block.span(), volume);
}

Error repair_interrupted() {
  return Error{Errc::corrupt,
               "a repair of the volume was interrupted: do it again (csvctl volume check LUN "
               "--repair)"};
}

}  // namespace

std::uint64_t place_of_log_mark(const VolumeInfo& info) {
  return info.wal_offset + info.wal_size - sizeof(disk::LogMark);
}

Buffer encode_log_mark(const VolumeId& volume, const LogSalts& salts, std::uint64_t frames,
                       std::uint64_t retired) {
  disk::LogMark mark{};
  mark.magic = disk::kLogMarkMagic;
  mark.format_version = disk::kFormatVersion;
  mark.volume_id = volume;
  mark.salts = salts;
  mark.frames = frames;
  mark.retired = retired;
  mark.crc = crc32c(std::as_bytes(std::span{&mark, 1}).subspan(12));
  return Buffer::copy_of(std::as_bytes(std::span{&mark, 1}));
}

Expected<std::optional<disk::LogMark>> decode_log_mark(std::span<const std::byte> bytes,
                                                       const VolumeId& volume) {
  disk::LogMark mark;
  CSV_CHECK(bytes.size() == sizeof mark);
  std::memcpy(&mark, bytes.data(), sizeof mark);
  if (mark.magic != disk::kLogMarkMagic || mark.volume_id != volume)
    return std::optional<disk::LogMark>{};
  if (mark.crc != crc32c(bytes.subspan(12)))
    return Error{Errc::corrupt, "the mark of the catalog's log is damaged"};
  if (mark.format_version != disk::kFormatVersion)
    return Error{Errc::refused, fmt::format("the log's mark has format version {}, this program "
                                            "knows {}",
                                            +mark.format_version, disk::kFormatVersion)};
  return std::optional{mark};
}

WalRegion::WalRegion(iscsi::BlockingLun& lun, const VolumeInfo& info)
    : lun_{&lun},
      volume_{info.id},
      offset_{info.wal_offset},
      capacity_{info.wal_size - sizeof(disk::LogMark)},
      memory_{capacity_} {
  const auto& geometry = lun.lun().geometry();
  unit_ = std::clamp<std::uint64_t>(geometry.physical_block_size, geometry.block_size, 4096);
  pages_.resize(capacity_ / disk::kFrameSize + 1);
}

Expected<WalRegion> WalRegion::open(iscsi::BlockingLun& lun, const VolumeInfo& info) {
  WalRegion region{lun, info};
  if (auto loaded = region.load(); !loaded) return loaded.error().within("reading the log");
  return region;
}

Expected<void> WalRegion::clear(iscsi::BlockingLun& lun, const VolumeInfo& info) {
  // In this order: a mark without a log is refused, a log without a mark would be opened.
  CSV_TRY(lun.write_zeroes(info.wal_offset, disk::kPageSize));
  CSV_TRY(lun.flush());
  auto none = encode_log_mark(info.id, {}, 0);
  CSV_TRY(lun.write(place_of_log_mark(info), none.span()));
  return lun.flush();
}

Expected<void> WalRegion::retire(iscsi::BlockingLun& lun, const VolumeInfo& info,
                                 std::uint64_t sequence) {
  auto mark = read_log_mark(lun, place_of_log_mark(info), info.id);
  if (!mark && mark.error() != Errc::corrupt) return mark.error();
  bool known = mark && *mark;
  // Of a repair that was interrupted: what it wrote is not what the log is of, either.
  if (known && (*mark)->retired != 0)
    sequence = std::min(sequence, std::uint64_t{(*mark)->retired});
  auto block = encode_log_mark(info.id, known ? (*mark)->salts : LogSalts{},
                               known ? std::uint64_t{(*mark)->frames} : 0, sequence);
  CSV_TRY(lun.write(place_of_log_mark(info), block.span()));
  return lun.flush();
}

Expected<void> check_repair_ended(iscsi::BlockingLun& lun, const VolumeInfo& info) {
  auto mark = read_log_mark(lun, place_of_log_mark(info), info.id);
  // A damaged one says nothing, as to who opens the log.
  if (!mark) return mark.error() == Errc::corrupt ? Expected<void>{} : mark.error();
  if (*mark && (*mark)->retired != 0) return repair_interrupted();
  return {};
}

Expected<void> WalRegion::load() {
  // First, because another may be writing: the frames it speaks of are there when it is.
  CSV_TRY(read_mark());
  std::uint64_t loaded = 0;
  BadBlocks unreadable;
  while (loaded < capacity_ && !broken_) {
    // Most logs are empty, or short: what is read beyond them the target's other users wait for.
    auto step = std::clamp(loaded, kReadSize, kReadDepth * kReadSize);
    auto end = std::min<std::uint64_t>(loaded + step, capacity_);
    std::vector<iscsi::BlockingLun::Read> reads;
    for (auto at = loaded; at < end; at += kReadSize)
      reads.push_back(
          {offset_ + at, memory_.span().subspan(at, std::min<std::uint64_t>(kReadSize, end - at))});
    unreadable.add(CSV_TRY(read_around_bad_blocks(*lun_, reads, kReadDepth)));
    loaded = end;
    follow(loaded);
    if (!broken_) continue;
    // A write that was under way leaves what can be read: here something is lost.
    auto at = offset_ + (header_ ? disk::kWalHeaderSize + whole_ * disk::kFrameSize : 0);
    if (auto why = unreadable.within(at, header_ ? disk::kFrameSize : disk::kWalHeaderSize);
        !why.empty())
      return Error{Errc::corrupt, "the catalog's log is damaged: " + why + ": " + kLost};
  }
  CSV_TRY(judge(loaded));
  size_ = has_header() ? loaded : 0;
  return {};
}

/// Behind what the mark says is there for certain stands the last transaction, whose writer may
/// have died, or been told that it failed, while all of it was in the target's cache. It is written
/// again: a flush is not enough, since after one that failed a cache may take for written out what
/// it has lost, and shows it all the same.
Expected<void> WalRegion::settle() {
  if (!has_header() || !lun_->lun().profile().write_cache) return {};
  bool of_this_round = marked_ == header_->salts;
  if (of_this_round && marked_frames_ >= end_) return {};
  // The first of its round stands on nothing, not even a header.
  auto from = of_this_round ? marked_frames_ : 0;
  dirty(from == 0 ? 0 : disk::kWalHeaderSize + from * disk::kFrameSize,
        disk::kWalHeaderSize + end_ * disk::kFrameSize);
  lowest_ = from;
  return sync();
}

bool WalRegion::has_header() const {
  auto header = memory_.span().first(disk::kWalHeaderSize);
  return std::any_of(header.begin(), header.end(), [](std::byte b) { return b != std::byte{}; });
}

/// Goes on along the frames that are whole, as far as the log was loaded.
void WalRegion::follow(std::uint64_t loaded) {
  if (!header_) {
    header_ = read_log_header(memory_.span().first(disk::kWalHeaderSize));
    broken_ = !header_;
    if (broken_) return;
    sum_ = header_->sum;
  }
  for (;;) {
    auto at = disk::kWalHeaderSize + whole_ * disk::kFrameSize;
    if (at + disk::kFrameSize > loaded) return;
    auto frame = read_log_frame(*header_, sum_, memory_.span().subspan(at, disk::kFrameSize));
    broken_ = !frame.valid;
    if (broken_) return;
    sum_ = frame.sum;
    ++whole_;
    if (frame.commit != 0) end_ = whole_;
  }
}

/// Whether all is there that must be: see LogMark.
Expected<void> WalRegion::judge(std::uint64_t loaded) const {
  if (retired_) return repair_interrupted();
  if (!has_header()) {
    if (marked_ == LogSalts{}) return {};
    return Error{Errc::corrupt,
                 fmt::format("the catalog's log is damaged: its header at LUN offset {} is zeros "
                             "though there was one: {}",
                             offset_, kLost)};
  }
  if (!header_)
    return Error{Errc::corrupt,
                 fmt::format("the catalog's log is damaged: its header at LUN offset {} is not "
                             "whole: {}",
                             offset_, kLost)};
  // A mark of another round: the log was restarted, and the first transaction of this round was
  // never answered.
  if (marked_ != header_->salts || end_ >= marked_frames_) return {};
  CSV_CHECK(broken_ || loaded == capacity_);
  return Error{Errc::corrupt,
               fmt::format("the catalog's log is damaged: frame {} at LUN offset {} is not whole, "
                           "but {} frames were written for certain: {}",
                           whole_ + 1, offset_ + disk::kWalHeaderSize + whole_ * disk::kFrameSize,
                           marked_frames_, kLost)};
}

Expected<void> WalRegion::read_mark() {
  auto mark = read_log_mark(*lun_, offset_ + capacity_, volume_);
  if (!mark && mark.error() != Errc::corrupt) return mark.error();
  if (!mark) {
    log::warning("{}, so whether the log is whole cannot be seen lun_offset={}",
                 mark.error().message(), offset_ + capacity_);
    return {};
  }
  if (!*mark) return {};
  marked_ = (*mark)->salts;
  marked_frames_ = (*mark)->frames;
  retired_ = (*mark)->retired != 0;
  return {};
}

Expected<std::size_t> WalRegion::read(std::uint64_t offset, std::span<std::byte> out) {
  auto there = offset < size_ ? std::min<std::uint64_t>(out.size(), size_ - offset) : 0;
  if (there > 0) std::memcpy(out.data(), memory_.data() + offset, there);
  if (there < out.size()) {
    std::memset(out.data() + there, 0, out.size() - there);
    return there;
  }
  if (auto frame = frame_at(offset, out.size()); frame && !pages_[*frame].known) {
    // Recovery reads whole frames and checks their own sums.
    pages_[*frame] = {true, crc32c(out.subspan(disk::kFrameHeaderSize))};
  } else if (auto page = page_at(offset, out.size()); page && pages_[*page].known) {
    if (pages_[*page].crc != crc32c(out))
      return Error{Errc::corrupt,
                   fmt::format("frame {} of the log changed in this machine's memory since it was "
                               "written: check the memory of this node",
                               *page)};
  }
  return there;
}

Expected<void> WalRegion::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset > capacity_ || data.size() > capacity_ - offset)
    return Error{Errc::refused, fmt::format("the catalog's log would grow beyond its {} MiB: "
                                            "transactions without a checkpoint",
                                            (capacity_ + sizeof(disk::LogMark)) >> 20)};
  std::memcpy(memory_.data() + offset, data.data(), data.size());
  dirty(offset, offset + data.size());
  size_ = std::max(size_, offset + data.size());
  if (offset >= disk::kWalHeaderSize)
    lowest_ = std::min(lowest_, (offset - disk::kWalHeaderSize) / disk::kFrameSize);
  forget_pages(offset, offset + data.size());
  if (auto page = page_at(offset, data.size())) pages_[*page] = {true, crc32c(data)};
  return {};
}

/// SQLite writes pages whole; of one that is touched otherwise nothing is known.
void WalRegion::forget_pages(std::uint64_t from, std::uint64_t to) {
  constexpr auto first_page = disk::kWalHeaderSize + disk::kFrameHeaderSize;
  auto page = from < first_page ? 0 : (from - first_page) / disk::kFrameSize;
  for (; first_page + page * disk::kFrameSize < to && page < pages_.size(); ++page)
    if (first_page + page * disk::kFrameSize + disk::kPageSize > from) pages_[page].known = false;
}

void WalRegion::truncate(std::uint64_t size) {
  if (size >= size_) return;
  size_ = size;
  if (size > 0) return;  // Frames beyond it are of no valid chain any more: SQLite sees to that.
  lowest_ = kNone;
  std::memset(memory_.data(), 0, disk::kWalHeaderSize);
  dirty(0, disk::kWalHeaderSize);
}

void WalRegion::dirty(std::uint64_t from, std::uint64_t to) {
  from = from / unit_ * unit_;
  to = (to + unit_ - 1) / unit_ * unit_;
  auto next = dirty_.upper_bound(from);
  if (next != dirty_.begin() && std::prev(next)->second >= from) next = std::prev(next);
  while (next != dirty_.end() && next->first <= to) {
    from = std::min(from, next->first);
    to = std::max(to, next->second);
    next = dirty_.erase(next);
  }
  dirty_.emplace(from, to);
}

Expected<void> WalRegion::sync() {
  std::vector<iscsi::BlockingLun::Write> writes;
  for (auto [from, to] : dirty_)
    for (auto at = from; at < to; at += kWriteSize)
      writes.push_back(
          {offset_ + at, memory_.span().subspan(at, std::min<std::uint64_t>(kWriteSize, to - at))});
  if (writes.empty()) return {};
  Buffer mark_block;
  if (!has_header() && marked_ != LogSalts{}) {
    // A mark without a log is damage, so it goes first.
    mark_block = encode_log_mark(volume_, {}, 0);
    marked_ = {};
    CSV_TRY(write({{offset_ + capacity_, mark_block.span()}}));
  } else if (has_header() && lowest_ != kNone) {
    std::memcpy(marked_.data(), memory_.data() + 16, marked_.size());
    mark_block = encode_log_mark(volume_, marked_, lowest_);
    writes.push_back({offset_ + capacity_, mark_block.span()});
  }
  CSV_TRY(write(writes));
  dirty_.clear();
  lowest_ = kNone;
  return {};
}

/// Past the volatile cache.
Expected<void> WalRegion::write(const std::vector<iscsi::BlockingLun::Write>& writes) {
  const auto& profile = lun_->lun().profile();
  bool fua = profile.write_cache && profile.fua && writes.size() <= kFuaWrites;
  CSV_TRY(lun_->write(writes, {.fua = fua}, kWriteDepth));
  if (profile.write_cache && !fua) CSV_TRY(lun_->flush());
  return {};
}

Expected<void> WalRegion::remove() {
  truncate(0);
  return sync();
}

}  // namespace csv::volume
