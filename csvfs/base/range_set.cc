#include "csvfs/base/range_set.h"

#include <algorithm>
#include <iterator>

namespace csv {

void RangeSet::add(Range range) {
  if (range.empty()) return;
  auto next = ranges_.upper_bound(range.begin);
  if (next != ranges_.begin()) {
    auto before = std::prev(next);
    if (before->second >= range.begin) {
      range.begin = before->first;
      range.end = std::max(range.end, before->second);
      next = ranges_.erase(before);
    }
  }
  while (next != ranges_.end() && next->first <= range.end) {
    range.end = std::max(range.end, next->second);
    next = ranges_.erase(next);
  }
  ranges_.emplace_hint(next, range.begin, range.end);
}

void RangeSet::remove(Range range) {
  if (range.empty()) return;
  auto at = ranges_.upper_bound(range.begin);
  if (at != ranges_.begin()) --at;
  while (at != ranges_.end() && at->first < range.end) {
    Range piece{at->first, at->second};
    if (piece.end <= range.begin) {
      ++at;
      continue;
    }
    at = ranges_.erase(at);
    if (piece.begin < range.begin) ranges_.emplace(piece.begin, range.begin);
    if (piece.end > range.end) at = ranges_.emplace(range.end, piece.end).first;
  }
}

bool RangeSet::overlaps(Range range) const {
  if (range.empty()) return false;
  auto next = ranges_.lower_bound(range.end);
  return next != ranges_.begin() && std::prev(next)->second > range.begin;
}

bool RangeSet::covers(Range range) const {
  if (range.empty()) return true;
  auto next = ranges_.upper_bound(range.begin);
  return next != ranges_.begin() && std::prev(next)->second >= range.end;
}

std::vector<Range> RangeSet::within(Range range) const {
  std::vector<Range> found;
  if (range.empty()) return found;
  auto at = ranges_.upper_bound(range.begin);
  if (at != ranges_.begin() && std::prev(at)->second > range.begin) --at;
  for (; at != ranges_.end() && at->first < range.end; ++at)
    found.push_back({std::max(at->first, range.begin), std::min(at->second, range.end)});
  return found;
}

std::vector<Range> RangeSet::all() const {
  std::vector<Range> found;
  for (auto [begin, end] : ranges_) found.push_back({begin, end});
  return found;
}

void RangeSet::coarsen(std::size_t most) {
  if (ranges_.size() <= most) return;
  for (auto at = ranges_.begin(); at != ranges_.end(); ++at) {
    auto next = std::next(at);
    if (next == ranges_.end()) return;
    at->second = next->second;
    ranges_.erase(next);
  }
}

}  // namespace csv
