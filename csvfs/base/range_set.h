#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace csv {

/// [begin, end) of a file, in whatever unit its user counts.
struct Range {
  std::uint64_t begin = 0, end = 0;
  [[nodiscard]] bool empty() const { return begin >= end; }
  [[nodiscard]] bool overlaps(const Range& other) const {
    return begin < other.end && other.begin < end;
  }
  bool operator==(const Range&) const = default;
};

/// A set of numbers as disjoint ranges, as few as possible. One thread.
class RangeSet {
 public:
  void add(Range range);
  void remove(Range range);
  void clear() { ranges_.clear(); }
  [[nodiscard]] bool overlaps(Range range) const;
  [[nodiscard]] bool covers(Range range) const;
  /// What of `range` is in the set, in order.
  [[nodiscard]] std::vector<Range> within(Range range) const;
  [[nodiscard]] std::vector<Range> all() const;
  /// Where there are more than `most` ranges: fills gaps between neighbours until there are half.
  void coarsen(std::size_t most);
  [[nodiscard]] bool empty() const { return ranges_.empty(); }
  [[nodiscard]] std::size_t size() const { return ranges_.size(); }

 private:
  std::map<std::uint64_t, std::uint64_t> ranges_;  // begin -> end
};

}  // namespace csv
