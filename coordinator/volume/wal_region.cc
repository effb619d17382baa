#include "coordinator/volume/wal_region.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

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

}  // namespace

WalRegion::WalRegion(iscsi::BlockingLun& lun, std::uint64_t offset, std::uint64_t size)
    : lun_{&lun}, offset_{offset}, capacity_{size} {
  const auto& geometry = lun.lun().geometry();
  unit_ = std::clamp<std::uint64_t>(geometry.physical_block_size, geometry.block_size, 4096);
  pages_.resize(size / disk::kFrameSize + 1);
}

Expected<WalRegion> WalRegion::open(iscsi::BlockingLun& lun, std::uint64_t offset,
                                    std::uint64_t size) {
  WalRegion region{lun, offset, size};
  if (auto loaded = region.load(); !loaded) return loaded.error().within("reading the log");
  return region;
}

/// Doubles the memory, up to the region's size.
void WalRegion::make_room(std::uint64_t size) {
  if (size <= memory_.size()) return;
  auto grown = Buffer::zeroed(std::min(std::max(std::bit_ceil(size), kReadSize), capacity_));
  if (!memory_.empty()) std::memcpy(grown.data(), memory_.data(), memory_.size());
  memory_ = std::move(grown);
}

Expected<void> WalRegion::load() {
  std::uint64_t loaded = 0;
  while (loaded < capacity_) {
    auto step = loaded == 0 ? kReadSize : kReadDepth * kReadSize;  // Most logs are empty.
    auto end = std::min<std::uint64_t>(loaded + step, capacity_);
    make_room(end);
    std::vector<iscsi::BlockingLun::Read> reads;
    for (auto at = loaded; at < end; at += kReadSize)
      reads.push_back(
          {offset_ + at, memory_.span().subspan(at, std::min<std::uint64_t>(kReadSize, end - at))});
    CSV_TRY(lun_->read(reads, kReadDepth));
    loaded = end;
    if (ends_before(loaded)) break;
  }
  size_ = has_header() ? loaded : 0;
  return {};
}

bool WalRegion::has_header() const {
  auto header = memory_.span().first(disk::kWalHeaderSize);
  return std::any_of(header.begin(), header.end(), [](std::byte b) { return b != std::byte{}; });
}

/// Recovery stops at the first frame whose salts are not the header's, so no more than up to there
/// need be read. (It may stop earlier: it looks at the checksums too.)
bool WalRegion::ends_before(std::uint64_t loaded) const {
  if (!has_header()) return true;
  const auto* salts = memory_.data() + 16;
  for (auto at = disk::kWalHeaderSize; at + disk::kFrameHeaderSize <= loaded;
       at += disk::kFrameSize)
    if (std::memcmp(memory_.data() + at + 8, salts, 8) != 0) return true;
  return false;
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
                                            capacity_ >> 20)};
  make_room(offset + data.size());
  std::memcpy(memory_.data() + offset, data.data(), data.size());
  dirty(offset, offset + data.size());
  size_ = std::max(size_, offset + data.size());
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
  const auto& profile = lun_->lun().profile();
  bool fua = profile.write_cache && profile.fua && writes.size() <= kFuaWrites;
  CSV_TRY(lun_->write(writes, {.fua = fua}, kWriteDepth));
  if (profile.write_cache && !fua) CSV_TRY(lun_->flush());
  dirty_.clear();
  return {};
}

Expected<void> WalRegion::remove() {
  truncate(0);
  return sync();
}

}  // namespace csv::volume
