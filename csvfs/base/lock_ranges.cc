#include "csvfs/base/lock_ranges.h"

#include <iterator>

namespace csv {

void LockRanges::clear(LockRange range) {
  auto at = held_.upper_bound(range.first);
  if (at != held_.begin() && std::prev(at)->second.last >= range.first) --at;
  while (at != held_.end() && at->first <= range.last) {
    auto [first, rest] = *at;
    at = held_.erase(at);
    if (first < range.first) held_[first] = {range.first - 1, rest.type};
    if (rest.last > range.last) held_[range.last + 1] = rest;
  }
}

void LockRanges::set(LockRange range, LockType type) {
  clear(range);
  auto at = held_.emplace(range.first, Rest{range.last, type}).first;
  if (auto next = std::next(at);
      next != held_.end() && next->second.type == type && next->first == at->second.last + 1) {
    at->second.last = next->second.last;
    held_.erase(next);
  }
  if (at == held_.begin()) return;
  auto before = std::prev(at);
  if (before->second.type != type || before->second.last + 1 != at->first) return;
  before->second.last = at->second.last;
  held_.erase(at);
}

std::optional<LockRanges::Held> LockRanges::against(LockRange range, LockType type) const {
  auto at = held_.upper_bound(range.first);
  if (at != held_.begin() && std::prev(at)->second.last >= range.first) --at;
  for (; at != held_.end() && at->first <= range.last; ++at)
    if (type == LockType::write || at->second.type == LockType::write)
      return Held{{at->first, at->second.last}, at->second.type};
  return std::nullopt;
}

}  // namespace csv
