#include <doctest/doctest.h>

#include <vector>

#include "coordinator/service/inode_locks.h"
#include "coordinator/service/layouts.h"
#include "csvfs/base/random.h"
#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::service;
using csv::fakes::ManualLoop;
using Mode = InodeLocks::Mode;

namespace {

constexpr InodeId kFile{7};

/// Takes a lock, notes it, and keeps it until told.
Task<void> hold(InodeLocks& locks, Blocks range, Mode mode, int number, std::vector<int>& got,
                Signal& let_go) {
  auto held = co_await locks.lock(kFile, range, mode);
  got.push_back(number);
  co_await let_go.wait();
}

}  // namespace

TEST_CASE("locks: readers share, a writer waits for them, and later readers wait for the writer") {
  ManualLoop loop;
  InodeLocks locks{loop};
  Signal first{loop}, second{loop}, third{loop};
  std::vector<int> got;
  TaskScope tasks;
  tasks.spawn(hold(locks, {0, 10}, Mode::shared, 1, got, first));
  tasks.spawn(hold(locks, {5, 10}, Mode::shared, 2, got, first));
  tasks.spawn(hold(locks, {9, 20}, Mode::exclusive, 3, got, second));
  tasks.spawn(hold(locks, {15, 16}, Mode::shared, 4, got, third));
  tasks.spawn(hold(locks, {20, 30}, Mode::exclusive, 5, got, third));
  loop.settle();
  CHECK(got == std::vector{1, 2, 5});
  first.notify();
  loop.settle();
  CHECK(got == std::vector{1, 2, 5, 3});
  second.notify();
  loop.settle();
  CHECK(got == std::vector{1, 2, 5, 3, 4});
  third.notify();
  loop.settle();
  CHECK(!locks.locked(kFile));
}

TEST_CASE("locks: one that is given up while it waits lets those behind it go on") {
  ManualLoop loop;
  InodeLocks locks{loop};
  Signal release{loop};
  std::vector<int> got;
  TaskScope tasks;
  tasks.spawn(hold(locks, {0, 10}, Mode::shared, 1, got, release));
  {
    TaskScope impatient;
    impatient.spawn(hold(locks, {0, 10}, Mode::exclusive, 2, got, release));
    tasks.spawn(hold(locks, {0, 10}, Mode::shared, 3, got, release));
    loop.settle();
    CHECK(got == std::vector{1});
  }
  loop.settle();
  CHECK(got == std::vector{1, 3});
}

TEST_CASE("block set: says after any additions and removals what a bitmap says") {
  Random random{42};
  for (int run = 0; run < 50; ++run) {
    BlockSet set;
    std::vector<bool> bits(64);
    for (int step = 0; step < 60; ++step) {
      auto first = random.below(64), end = first + random.below(64 - first + 1);
      bool adds = random.chance(1, 2);
      if (adds)
        set.add({first, end});
      else
        set.remove({first, end});
      for (auto i = first; i < end; ++i) bits[i] = adds;
      auto from = random.below(64), to = from + 1 + random.below(64 - from);
      bool any = false;
      for (auto i = from; i < to; ++i) any = any || bits[i];
      CHECK(set.overlaps({from, to}) == any);
    }
    CHECK(set.empty() == std::none_of(bits.begin(), bits.end(), [](bool bit) { return bit; }));
  }
}

TEST_CASE("layouts: a hold keeps back what it says, and what it does not say goes on") {
  ManualLoop loop;
  Layouts layouts{loop};
  auto writes_only = layouts.hold(kFile, {10, 20}, false);
  CHECK(layouts.held_back(kFile, {19, 30}, Layouts::Kind::write));
  CHECK(!layouts.held_back(kFile, {20, 30}, Layouts::Kind::write));
  CHECK(!layouts.held_back(kFile, {10, 20}, Layouts::Kind::read));
  auto all = layouts.hold(kFile, {10, 20}, true);
  CHECK(layouts.held_back(kFile, {10, 20}, Layouts::Kind::read));
  all.release();
  writes_only.release();
  CHECK(!layouts.held_back(kFile, kWholeFile, Layouts::Kind::write));
}

TEST_CASE("layouts: a recall of write layouts leaves what may be read") {
  ManualLoop loop;
  Layouts layouts{loop};
  SessionId one{1}, two{2};
  layouts.add(kFile, one, {0, 100}, Layouts::Kind::write);
  layouts.add(kFile, two, {50, 60}, Layouts::Kind::read);
  CHECK(layouts.holders(kFile, {55, 56}, false) == std::vector{one});
  CHECK(layouts.holders(kFile, {55, 56}, true) == std::vector{one, two});
  layouts.dropped(kFile, one, {0, 60}, false);
  CHECK(layouts.holders(kFile, {0, 60}, false).empty());
  CHECK(layouts.holders(kFile, {0, 10}, true) == std::vector{one});
  CHECK(layouts.holders(kFile, {60, 100}, false) == std::vector{one});
  layouts.dropped(kFile, one, kWholeFile, true);
  CHECK(layouts.count(one) == 0);
  layouts.drop(two);
  CHECK(layouts.holders(kFile, kWholeFile, true).empty());
}

TEST_CASE("layouts: a file becomes shipped by two contended writes within a second, for a while") {
  ManualLoop loop;
  Layouts layouts{loop};
  SessionId one{1}, two{2};
  SUBCASE("not by one writer alone") {
    for (int i = 0; i < 5; ++i) layouts.note_contended_write(kFile, one, 10s);
    CHECK(!layouts.shipped(kFile));
  }
  SUBCASE("not if they are far apart") {
    layouts.note_contended_write(kFile, one, 10s);
    loop.run_for(2s);
    layouts.note_contended_write(kFile, two, 10s);
    CHECK(!layouts.shipped(kFile));
  }
  SUBCASE("until ten seconds have passed without one") {
    layouts.note_contended_write(kFile, one, 10s);
    layouts.note_contended_write(kFile, two, 10s);
    CHECK(layouts.shipped(kFile));
    loop.run_for(9s);
    layouts.note_contended_write(kFile, one, 10s);
    loop.run_for(9s);
    CHECK(layouts.shipped(kFile));
    loop.run_for(2s);
    CHECK(!layouts.shipped(kFile));
  }
}
