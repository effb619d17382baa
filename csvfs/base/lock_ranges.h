#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

namespace csv {

enum class LockType : std::uint8_t { read = 1, write = 2 };

/// Which locks can be in each other's way: those on bytes (fcntl(2): record locks and those of open
/// file descriptions) and those on the whole file (flock(2)) do not see each other.
enum class LockKind : std::uint8_t { bytes = 0, whole_file = 1 };

/// The bytes [first, last] of a file.
struct LockRange {
  static constexpr std::uint64_t kLast = (1ull << 63) - 1;  ///< The kernel's OFFSET_MAX.
  std::uint64_t first = 0, last = kLast;
  [[nodiscard]] bool overlaps(const LockRange& other) const {
    return first <= other.last && other.first <= last;
  }
  bool operator==(const LockRange&) const = default;
};

/// What one owner has locked of one file: disjoint ranges, as few as possible.
class LockRanges {
 public:
  struct Held {
    LockRange range;
    LockType type{};
    bool operator==(const Held&) const = default;
  };
  /// All of `range` becomes `type`, whatever it was.
  void set(LockRange range, LockType type);
  void clear(LockRange range);
  /// The first that keeps another owner from having `type` in `range`.
  [[nodiscard]] std::optional<Held> against(LockRange range, LockType type) const;
  [[nodiscard]] bool empty() const { return held_.empty(); }
  [[nodiscard]] std::size_t size() const { return held_.size(); }
  template <typename F>
  void each(F&& say) const {
    for (const auto& [first, rest] : held_) say(Held{{first, rest.last}, rest.type});
  }

 private:
  struct Rest {
    std::uint64_t last = 0;
    LockType type{};
  };
  std::map<std::uint64_t, Rest> held_;  // by first byte
};

}  // namespace csv
