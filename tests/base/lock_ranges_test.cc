#include "csvfs/base/lock_ranges.h"

#include <doctest/doctest.h>

#include <array>
#include <optional>
#include <vector>

#include "csvfs/base/random.h"

using namespace csv;

namespace {

constexpr std::uint64_t kBytes = 12;
using Map = std::array<std::optional<LockType>, kBytes>;

std::vector<LockRanges::Held> held(const LockRanges& ranges) {
  std::vector<LockRanges::Held> all;
  ranges.each([&](const LockRanges::Held& each) { all.push_back(each); });
  return all;
}

std::vector<LockRanges::Held> held(const Map& map) {
  std::vector<LockRanges::Held> all;
  for (std::uint64_t at = 0; at < kBytes; ++at) {
    if (!map[at]) continue;
    if (at > 0 && map[at - 1] == map[at])
      all.back().range.last = at;
    else
      all.push_back({{at, at}, *map[at]});
  }
  return all;
}

}  // namespace

TEST_CASE("lock ranges: as a map of bytes would have them, and as few as possible") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Random random{seed};
    LockRanges ranges;
    Map map{};
    for (int step = 0; step < 300; ++step) {
      auto first = random.below(kBytes), last = first + random.below(kBytes - first);
      auto what = random.below(4);
      auto type = what == 1 ? LockType::read : LockType::write;
      if (what == 3) {
        std::optional<LockRanges::Held> obstacle;
        for (std::uint64_t at = first; at <= last && !obstacle; ++at)
          if (map[at] == LockType::write || (map[at] && step % 2 == 0))
            obstacle = LockRanges::Held{{at, at}, *map[at]};
        auto found =
            ranges.against({first, last}, step % 2 == 0 ? LockType::write : LockType::read);
        REQUIRE(found.has_value() == obstacle.has_value());
        if (found) CHECK(found->range.overlaps(obstacle->range));
        continue;
      }
      for (auto at = first; at <= last; ++at)
        map[at] = what == 0 ? std::nullopt : std::optional{type};
      if (what == 0)
        ranges.clear({first, last});
      else
        ranges.set({first, last}, type);
      REQUIRE(held(ranges) == held(map));
    }
  }
}

TEST_CASE("lock ranges: up to the last byte there can be") {
  LockRanges ranges;
  ranges.set({}, LockType::write);
  ranges.set({10, 19}, LockType::read);
  CHECK(held(ranges) == std::vector<LockRanges::Held>{{{0, 9}, LockType::write},
                                                      {{10, 19}, LockType::read},
                                                      {{20, LockRange::kLast}, LockType::write}});
  ranges.clear({15, LockRange::kLast});
  CHECK(held(ranges) ==
        std::vector<LockRanges::Held>{{{0, 9}, LockType::write}, {{10, 14}, LockType::read}});
  CHECK(!ranges.against({15, LockRange::kLast}, LockType::write));
  ranges.clear({});
  CHECK(ranges.empty());
}
