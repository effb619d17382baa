#include "coordinator/volume/allocator.h"

#include <algorithm>
#include <optional>

namespace csv::volume {

namespace {
/// A run at the goal shorter than this, and shorter than what is asked for, is left for smaller
/// files.
constexpr std::uint64_t kWorthTaking = (1ull << 20) / kBlockSize;
constexpr std::size_t kCandidates = 16;
constexpr std::size_t kCachedGroups = 8192;  ///< 16 MiB.

Error no_space(std::uint64_t blocks) {
  return {std::errc::no_space_on_device, "no " + std::to_string(blocks) + " free blocks"};
}
std::uint64_t distance(std::uint64_t a, std::uint64_t b) { return a < b ? b - a : a - b; }
}  // namespace

Allocator::Allocator(Database& database, Counters& counters, std::uint64_t first_block,
                     std::uint64_t blocks)
    : database_{database}, counters_{counters}, first_block_{first_block}, blocks_{blocks} {}

Expected<void> Allocator::create() {
  counters_.free = blocks_;
  CSV_TRY(database_.run(insert_fresh_, 0, groups()));
  return {};
}

Expected<void> Allocator::extend(std::uint64_t before) {
  auto covered = (before + kGroupBlocks - 1) / kGroupBlocks;
  // A last group that was cut short: what was behind the end was marked used.
  if (auto rest = before % kGroupBlocks; rest > 0) {
    auto group = covered - 1;
    std::optional<GroupMap> bits;
    {
      auto query = database_.use(select_, group);
      if (CSV_TRY(query.row())) bits = GroupMap::from_bytes(query.bytes(0));
    }
    if (bits) {
      bits->set(rest, size_of(group) - rest, false);
      CSV_TRY(store(group, *bits));
    }
  }
  if (groups() > covered) CSV_TRY(database_.run(insert_fresh_, covered, groups() - covered));
  return {};
}

// --- Bitmaps ----------------------------------------------------------------

Expected<bool> Allocator::is_fresh(std::uint64_t group) {
  auto query = database_.use(fresh_at_, group);
  return CSV_TRY(query.row()) && group - query.u64(0) < query.u64(1);
}

Expected<Allocator::GroupMap*> Allocator::bitmap(std::uint64_t group) {
  if (auto found = cache_.find(group); found != cache_.end()) return &found->second;
  if (cache_.size() >= kCachedGroups) cache_.clear();  // the rows are the truth
  {
    auto query = database_.use(select_, group);
    if (CSV_TRY(query.row())) return &(cache_[group] = GroupMap::from_bytes(query.bytes(0)));
  }
  if (!CSV_TRY(is_fresh(group)))
    return Error{Errc::corrupt, "allocation group " + std::to_string(group) + " has no row"};
  auto& bits = cache_[group];
  bits.set(size_of(group), kGroupBlocks - size_of(group), true);
  return &bits;
}

bool Allocator::has_reservations(std::uint64_t group) const {
  auto start = group * kGroupBlocks;
  auto after = reserved_.lower_bound(start + kGroupBlocks);
  return after != reserved_.begin() && std::prev(after)->second > start;
}

Expected<Allocator::GroupMap> Allocator::busy(std::uint64_t group) {
  auto bits = *CSV_TRY(bitmap(group));
  auto start = group * kGroupBlocks, end = start + kGroupBlocks;
  auto at = reserved_.upper_bound(start);
  if (at != reserved_.begin() && std::prev(at)->second > start) --at;
  for (; at != reserved_.end() && at->first < end; ++at) {
    auto first = std::max(at->first, start), last = std::min(at->second, end);
    bits.set(first - start, last - first, true);
  }
  return bits;
}

Expected<void> Allocator::leave_fresh(std::uint64_t group) {
  std::uint64_t first = 0, count = 0;
  {
    auto query = database_.use(fresh_at_, group);
    if (!CSV_TRY(query.row()) || group - query.u64(0) >= query.u64(1))
      return Error{Errc::corrupt, "allocation group " + std::to_string(group) + " has no row"};
    first = query.u64(0);
    count = query.u64(1);
  }
  CSV_TRY(database_.run(delete_fresh_, first));
  if (group > first) CSV_TRY(database_.run(insert_fresh_, first, group - first));
  if (auto rest = first + count - group - 1; rest > 0)
    CSV_TRY(database_.run(insert_fresh_, group + 1, rest));
  return {};
}

Expected<void> Allocator::store(std::uint64_t group, const GroupMap& bits) {
  std::uint64_t free = kGroupBlocks - bits.count(0, kGroupBlocks), longest = 0;
  for (std::size_t at = 0; at < kGroupBlocks;) {
    at = bits.next(false, at, kGroupBlocks);
    auto end = bits.next(true, at, kGroupBlocks);
    longest = std::max<std::uint64_t>(longest, end - at);
    at = end;
  }
  changed_.insert(group);
  auto bytes = bits.bytes(kGroupBlocks);
  if (CSV_TRY(database_.run(update_, group, free, longest, bytes)) == 0) {
    CSV_TRY(leave_fresh(group));
    CSV_TRY(database_.run(insert_, group, free, longest, bytes));
  }
  cache_[group] = bits;
  return {};
}

Expected<void> Allocator::mark(std::span<const Run> runs, bool used) {
  std::map<std::uint64_t, GroupMap> after;  // nothing is stored before all of it was found right
  for (const auto& run : runs) {
    if (!contains(run))
      return Error{Errc::refused,
                   "block " + std::to_string(run.lun_block) + " is outside the data area"};
    for (auto at = run.lun_block - first_block_, end = at + run.count; at < end;) {
      auto group = at / kGroupBlocks, offset = at % kGroupBlocks;
      auto here = std::min(end - at, kGroupBlocks - offset);
      auto found = after.find(group);
      if (found == after.end()) found = after.emplace(group, *CSV_TRY(bitmap(group))).first;
      if (found->second.next(used, offset, offset + here) != offset + here)
        return Error{Errc::refused, "a block at " + std::to_string(first_block_ + at) +
                                        (used ? " is in use already" : " is free already")};
      found->second.set(offset, here, used);
      at += here;
    }
  }
  for (const auto& [group, bits] : after) CSV_TRY(store(group, bits));
  return {};
}

Expected<void> Allocator::use(std::span<const Run> runs) {
  CSV_TRY(mark(runs, true));
  for (const auto& run : runs) {
    counters_.free -= run.count;
    if (is_reserved(run)) used_.push_back(run);
  }
  return {};
}

Expected<void> Allocator::release(std::span<const Run> runs) {
  CSV_TRY(mark(runs, false));
  for (const auto& run : runs) counters_.free += run.count;
  return {};
}

// --- Reservations -----------------------------------------------------------

void Allocator::add_reservation(const Run& run) {
  auto first = run.lun_block - first_block_, end = first + run.count;
  auto after = reserved_.lower_bound(first);
  if (after != reserved_.end() && after->first == end) {
    end = after->second;
    after = reserved_.erase(after);
  }
  if (after != reserved_.begin() && std::prev(after)->second == first)
    std::prev(after)->second = end;
  else
    reserved_.emplace(first, end);
  reserved_blocks_ += run.count;
}

void Allocator::cancel(std::span<const Run> runs) {
  for (const auto& run : runs) {
    auto first = run.lun_block - first_block_, end = first + run.count;
    auto at = reserved_.upper_bound(first);
    if (at != reserved_.begin() && std::prev(at)->second > first) --at;
    while (at != reserved_.end() && at->first < end) {
      auto [from, to] = *at;
      at = reserved_.erase(at);
      if (from < first) reserved_.emplace(from, first);
      if (to > end) at = reserved_.emplace(end, to).first;
      reserved_blocks_ -= std::min(to, end) - std::max(from, first);
    }
  }
}

bool Allocator::is_reserved(const Run& run) const {
  auto first = run.lun_block - first_block_;
  auto at = reserved_.upper_bound(first);
  return at != reserved_.begin() && std::prev(at)->second >= first + run.count;
}

std::uint64_t Allocator::available() const {
  auto reserved = reserved_blocks_;
  for (const auto& run : used_) reserved -= run.count;  // they are not free any more
  return counters_.free - std::min(counters_.free, reserved);
}

// --- Finding space ----------------------------------------------------------

Expected<std::uint64_t> Allocator::free_at(std::uint64_t at, std::uint64_t count) {
  std::uint64_t found = 0;
  while (found < count && at < blocks_) {
    auto group = at / kGroupBlocks, offset = at % kGroupBlocks, size = size_of(group);
    auto bits = CSV_TRY(busy(group));
    auto end = bits.next(true, offset, size);
    found += end - offset;
    if (end < size) break;
    at += end - offset;
  }
  return std::min(found, count);
}

Expected<Allocator::Span> Allocator::fit(std::uint64_t group, std::uint64_t from,
                                         std::uint64_t count) {
  auto bits = CSV_TRY(busy(group));
  Span longest;
  for (auto [at, end] :
       {std::pair{from, kGroupBlocks}, std::pair{std::uint64_t{0}, kGroupBlocks}}) {
    while (at < end) {
      at = bits.next(false, at, end);
      auto stop = bits.next(true, at, end);
      if (stop - at >= count) return Span{at, count};
      if (stop - at > longest.count) longest = {at, stop - at};
      at = stop;
    }
  }
  return longest;
}

Expected<std::vector<std::uint64_t>> Allocator::candidates(std::uint64_t near,
                                                           std::uint64_t count) {
  std::vector<std::uint64_t> found, crowded;
  for (bool before : {true, false}) {  // the fresh groups next to `near`, on both sides
    auto query = database_.use(before ? fresh_at_ : fresh_after_, near);
    if (!CSV_TRY(query.row())) continue;
    auto first = query.u64(0), last = first + query.u64(1) - 1;
    auto group = before ? std::min(near, last) : first;
    // Only the last group of all can be too short.
    if (size_of(group) >= count && !has_reservations(group)) found.push_back(group);
    if (has_reservations(group)) crowded.push_back(group);
    if (before && group > first && has_reservations(group)) crowded.push_back(group - 1);
    if (!before && last > first && has_reservations(group)) crowded.push_back(group + 1);
  }
  {
    auto query = database_.use(fitting_, count);
    while (found.size() < kCandidates && CSV_TRY(query.row())) {
      // What is reserved there is not in the row: such a group needs a closer look.
      (has_reservations(query.u64(0)) ? crowded : found).push_back(query.u64(0));
    }
  }
  for (auto group : crowded)
    if (CSV_TRY(fit(group, 0, count)).count >= count) found.push_back(group);
  std::sort(found.begin(), found.end(), [&](auto a, auto b) {
    return std::pair{distance(a, near), a} < std::pair{distance(b, near), b};
  });
  return found;
}

void Allocator::take(std::vector<Run>& runs, std::uint64_t at, std::uint64_t count) {
  Run run{first_block_ + at, count};
  add_reservation(run);
  if (in_change_) made_.push_back(run);
  if (!runs.empty() && runs.back().lun_block + runs.back().count == run.lun_block)
    runs.back().count += count;
  else
    runs.push_back(run);
}

Expected<std::vector<Run>> Allocator::reserve(std::uint64_t count, std::uint64_t goal,
                                              std::size_t most_runs, bool partly) {
  std::vector<Run> runs;
  if (count == 0) return runs;
  if (available() < (partly ? 1 : count)) return no_space(count);
  auto at = goal >= first_block_ && goal - first_block_ < blocks_ ? goal - first_block_ : 0;
  auto left = count;
  auto longest_anywhere = kGroupBlocks;  // as far as this search has found out
  auto look = [&]() -> Expected<Run> {   // the best next run, at an offset in the area
    if (auto free = CSV_TRY(free_at(at, left)); free >= std::min(left, kWorthTaking))
      return Run{at, free};
    auto want = std::min(left, longest_anywhere);
    auto group = at / kGroupBlocks;
    auto near = CSV_TRY(fit(group, at % kGroupBlocks, want));
    if (near.count >= want) return Run{group * kGroupBlocks + near.first, want};
    for (auto other : CSV_TRY(candidates(group, want)))
      if (auto span = CSV_TRY(fit(other, 0, want)); span.count >= want)
        return Run{other * kGroupBlocks + span.first, want};
    // Nowhere in one piece: the longest there is.
    Run longest{group * kGroupBlocks + near.first, near.count};
    auto consider = [&](std::uint64_t other) -> Expected<void> {
      auto span = CSV_TRY(fit(other, 0, want));
      if (span.count > longest.count) longest = {other * kGroupBlocks + span.first, span.count};
      return {};
    };
    CSV_TRY(consider(groups() - 1));  // fresh groups are whole but for the last one
    std::vector<std::uint64_t> others;
    {
      // Reservations may have left nothing of the first ones, never of more groups than they touch.
      auto query = database_.use(longest_, kGroupBlocks + 1);
      while (others.size() < kCandidates + reserved_.size() && CSV_TRY(query.row())) {
        if (query.u64(1) == 0) break;
        others.push_back(query.u64(0));
      }
    }
    for (auto other : others) {
      CSV_TRY(consider(other));
      if (longest.count > 0 && others.size() > kCandidates && other == others[kCandidates]) break;
    }
    if (longest.count == 0) {  // what is left lies in fresh groups between reservations
      for (auto [first, end] : reserved_) {
        for (auto edge : {first == 0 ? 0 : first - 1, end})
          if (edge < blocks_ && longest.count == 0) CSV_TRY(consider(edge / kGroupBlocks));
      }
    }
    longest_anywhere = std::max<std::uint64_t>(longest.count, 1);
    return longest;
  };
  while (left > 0) {
    auto next = look();
    if (!next) {
      cancel(runs);
      return next.error();
    }
    bool joins = !runs.empty() &&
                 runs.back().lun_block + runs.back().count == first_block_ + next->lun_block;
    if (next->count == 0 || (runs.size() == most_runs && !joins)) break;
    take(runs, next->lun_block, next->count);
    left -= next->count;
    at = next->lun_block + next->count;
    if (at >= blocks_) at = 0;
  }
  if (left > 0 && (!partly || runs.empty())) {
    cancel(runs);
    return no_space(count);
  }
  return runs;
}

Expected<Run> Allocator::whole_group() {
  std::optional<std::uint64_t> lowest;
  std::uint64_t after = 0;
  for (bool first = true;; first = false) {
    auto query = database_.use(first ? fresh_at_ : fresh_after_, after);
    if (!CSV_TRY(query.row())) {
      if (first) continue;
      break;
    }
    for (auto group = query.u64(0); group < query.u64(0) + query.u64(1) && !lowest; ++group)
      if (size_of(group) == kGroupBlocks && !has_reservations(group) && !is_avoided(group))
        lowest = group;
    if (lowest) break;
    after = query.u64(0);
  }
  auto query = database_.use(fitting_, kGroupBlocks);
  while (CSV_TRY(query.row())) {
    if (has_reservations(query.u64(0)) || is_avoided(query.u64(0))) continue;
    if (!lowest || query.u64(0) < *lowest) lowest = query.u64(0);
    break;
  }
  if (!lowest) return Error{std::errc::no_space_on_device, "no allocation group is wholly free"};
  return Run{first_block_ + *lowest * kGroupBlocks, kGroupBlocks};
}

std::uint64_t Allocator::start_of_folder(InodeId folder) const {
  // Not in the last quarter, which is used when the rest is full: the catalog grows by whole
  // groups, and many small folders would leave none.
  auto spread = groups() - groups() / 4;
  // Multiplicative hashing: neighbours in number lie far apart.
  auto group = (raw(folder) * 0x9e3779b97f4a7c15ull >> 16) % spread;
  return first_block_ + group * kGroupBlocks;
}

// --- Changes and transactions -------------------------------------------------

void Allocator::begin_change() {
  in_change_ = true;
  made_before_ = made_.size();
  used_before_ = used_.size();
}

void Allocator::undo_change() {
  cancel(std::span{made_}.subspan(made_before_));
  made_.resize(made_before_);
  used_.resize(used_before_);
  for (auto group : changed_) cache_.erase(group);
}

void Allocator::committed() {
  cancel(used_);
  in_change_ = false;
  made_.clear();
  used_.clear();
  changed_.clear();
}

void Allocator::undo_all() {
  cancel(made_);
  for (auto group : changed_) cache_.erase(group);
  in_change_ = false;
  made_.clear();
  used_.clear();
  changed_.clear();
}

}  // namespace csv::volume
