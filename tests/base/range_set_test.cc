#include "csvfs/base/range_set.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bitset>

#include "csvfs/base/random.h"

using namespace csv;

TEST_CASE("range set: says what a set of numbers says, in as few ranges as there can be") {
  Random random{11};
  RangeSet set;
  std::bitset<200> model;
  for (int turn = 0; turn < 20'000; ++turn) {
    std::uint64_t a = random.next() % 190, b = a + random.next() % 10;
    Range range{a, b};
    bool adds = random.next() % 2 == 0;
    for (auto i = a; i < b; ++i) model[i] = adds;
    adds ? set.add(range) : set.remove(range);
    std::uint64_t c = random.next() % 190, d = c + random.next() % 12;
    bool any = false, all = true;
    std::uint64_t count = 0;
    for (auto i = c; i < d; ++i) {
      any = any || model[i];
      all = all && model[i];
      count += model[i] ? 1 : 0;
    }
    REQUIRE(set.overlaps({c, d}) == any);
    REQUIRE(set.covers({c, d}) == all);
    std::uint64_t within = 0;
    for (auto each : set.within({c, d})) {
      REQUIRE(each.begin >= c);
      REQUIRE(each.end <= d);
      within += each.end - each.begin;
    }
    REQUIRE(within == count);
    std::size_t runs = 0;
    for (std::size_t i = 0; i < model.size(); ++i) runs += model[i] && (i == 0 || !model[i - 1]);
    REQUIRE(set.size() == runs);
  }
}

TEST_CASE("range set: coarser, it holds what it held") {
  RangeSet set;
  for (std::uint64_t i = 0; i < 100; ++i) set.add({i * 10, i * 10 + 3});
  set.coarsen(100);
  CHECK(set.size() == 100);
  set.coarsen(99);
  CHECK(set.size() == 50);
  for (std::uint64_t i = 0; i < 100; ++i) CHECK(set.covers({i * 10, i * 10 + 3}));
  CHECK(set.all().front().begin == 0);
  CHECK(set.all().back().end == 993);
}
