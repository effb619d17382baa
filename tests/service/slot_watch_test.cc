#include "coordinator/service/slot_watch.h"

#include <doctest/doctest.h>

using namespace csv;
using namespace csv::service;

namespace {

constexpr SessionId kSession{7};
constexpr Key kKey{70};

/// One mount, read once a second.
struct Bed {
  void round(const Expected<HeartbeatSlot>& slot, Duration after = 1s, Key key = kKey) {
    now += after;
    watch.begin({{kSession, key}}, now);
    watch.saw(kSession, slot, now);
  }
  [[nodiscard]] SlotWatch::State state() const {
    auto found = watch.of(kSession);
    REQUIRE(found);
    return *found;
  }
  SlotWatch watch;
  TimePoint now{100s};
};

HeartbeatSlot slot(std::uint64_t counter, Key key = kKey) { return {key, counter, 0, {}, {}}; }
Error damaged() { return Error{Errc::corrupt, "torn"}; }

}  // namespace

TEST_CASE("slot watch: a slot moves with its counter, and stands still after several reads") {
  Bed bed;
  for (std::uint64_t counter = 1; counter <= 10; ++counter) {
    bed.round(slot(counter));
    CHECK(bed.state().moved == bed.now);
    CHECK_FALSE(bed.state().still);
  }
  auto last = bed.now;
  for (int i = 1; i < SlotWatch::kStill; ++i) {
    bed.round(slot(10));
    CHECK_FALSE(bed.state().still);
  }
  bed.round(slot(10));
  CHECK(bed.state().still);
  CHECK(bed.state().moved == last);
  bed.round(slot(11));
  CHECK_FALSE(bed.state().still);
}

TEST_CASE("slot watch: one torn write is no standstill, and a slow one neither") {
  Bed bed;
  std::uint64_t counter = 1;
  for (int i = 0; i < 20; ++i) {
    bed.round(slot(++counter));
    bed.round(damaged());
    bed.round(slot(counter));
    bed.round(slot(counter));
    CHECK_FALSE(bed.state().still);
  }
}

TEST_CASE("slot watch: while nobody reads, nobody stands still") {
  Bed bed;
  bed.round(slot(1));
  for (int i = 1; i < SlotWatch::kStill; ++i) bed.round(slot(1));
  // The LUN answered nobody for a while: the writer could not write either.
  bed.round(slot(1), 20s);
  CHECK_FALSE(bed.state().still);
  for (int i = 2; i < SlotWatch::kStill; ++i) bed.round(slot(1));
  CHECK_FALSE(bed.state().still);
  bed.round(slot(1));
  CHECK(bed.state().still);
}

TEST_CASE("slot watch: what another life has left in the slot is none of this one's signs") {
  Bed bed;
  for (int i = 0; i < SlotWatch::kStill; ++i)
    bed.round(slot(static_cast<std::uint64_t>(i) + 1000, Key{69}));
  CHECK(bed.state().still);
  bed.round(slot(1));
  CHECK_FALSE(bed.state().still);
  // Admitted anew under another key: it counts from the beginning.
  bed.round(slot(1, Key{71}), 1s, Key{71});
  CHECK(bed.state().moved == bed.now);
}

TEST_CASE("slot watch: a mount that is not admitted cannot write, and stands still after a while") {
  Bed bed;
  bed.round(slot(1));
  for (int i = 0; i < SlotWatch::kStill; ++i) bed.round(slot(99), 1s, Key{});
  CHECK(bed.state().still);
}

TEST_CASE(
    "slot watch: what a slot says of its node's lease is what it said last; ended sessions go") {
  Bed bed;
  auto said = slot(1);
  said.quorate = true;
  bed.round(said);
  CHECK(bed.state().quorate == true);
  said = slot(2);
  said.quorate = false;
  bed.round(said);
  CHECK(bed.state().quorate == false);
  bed.round(slot(3));
  CHECK_FALSE(bed.state().quorate);
  bed.watch.begin({}, bed.now);
  CHECK_FALSE(bed.watch.of(kSession));
}
