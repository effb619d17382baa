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
  layouts.dropped(kFile, one, {.range = {0, 60}});
  CHECK(layouts.holders(kFile, {0, 60}, false).empty());
  CHECK(layouts.holders(kFile, {0, 10}, true) == std::vector{one});
  CHECK(layouts.holders(kFile, {60, 100}, false) == std::vector{one});
  layouts.dropped(kFile, one, {.range = kWholeFile, .reads_too = true});
  CHECK(layouts.count(one) == 0);
  layouts.drop(two);
  CHECK(layouts.holders(kFile, kWholeFile, true).empty());
}

TEST_CASE("layouts: the answer to a recall says nothing of what was given after it was sent") {
  ManualLoop loop;
  Layouts layouts{loop};
  SessionId one{1};
  SUBCASE("pages") {
    Layouts::Recall first{.range = {0, 100}, .pages = true, .number = 1};
    layouts.add_pages(kFile, one, {0, 10}, true);
    layouts.recalled(kFile, one, first);
    CHECK(layouts.pages_in_the_way(kFile, {5, 6}, false, {}));
    layouts.add_pages(kFile, one, {50, 60}, true);
    layouts.came_back(kFile, one, first);
    CHECK(!layouts.pages_in_the_way(kFile, {0, 50}, true, {}));
    CHECK(layouts.pages_in_the_way(kFile, {0, 100}, false, {}));
    layouts.dropped(kFile, one, {.range = kWholeFile, .pages = true});
    CHECK(layouts.count(one) == 0);
  }
  SUBCASE("layouts") {
    Layouts::Recall writes{.range = {0, 100}, .number = 1};
    Layouts::Recall all{.range = {0, 100}, .reads_too = true, .number = 2};
    layouts.add(kFile, one, {0, 10}, Layouts::Kind::write);
    layouts.recalled(kFile, one, writes);
    layouts.recalled(kFile, one, all);
    CHECK(layouts.holders(kFile, {0, 10}, false) == std::vector{one});
    layouts.add(kFile, one, {20, 30}, Layouts::Kind::read);
    SUBCASE("in the order they were sent") {
      layouts.came_back(kFile, one, writes);
      CHECK(layouts.holders(kFile, {0, 100}, false).empty());
      CHECK(layouts.holders(kFile, {0, 10}, true) == std::vector{one});
    }
    layouts.came_back(kFile, one, all);
    CHECK(layouts.holders(kFile, {20, 30}, true) == std::vector{one});
    layouts.dropped(kFile, one, {.range = kWholeFile, .reads_too = true});
    CHECK(layouts.count(one) == 0);
  }
  SUBCASE("a recall that nobody waits for any more is answered by a later one") {
    layouts.add_pages(kFile, one, {0, 10}, false);
    layouts.recalled(kFile, one, {.range = {0, 10}, .pages = true, .number = 1});
    Layouts::Recall later{.range = {5, 10}, .pages = true, .number = 2};
    layouts.recalled(kFile, one, later);
    layouts.came_back(kFile, one, later);
    CHECK(!layouts.pages_in_the_way(kFile, {5, 10}, true, {}));
    CHECK(layouts.pages_in_the_way(kFile, {0, 5}, true, {}));
  }
}

TEST_CASE("layouts: a claim that knows of an earlier end does not trim what a later one knows") {
  ManualLoop loop;
  Layouts layouts{loop};
  SessionId one{1};
  auto first = layouts.add_pages(kFile, one, {0, 1000}, false);
  SUBCASE("alone") {
    layouts.trim_pages(kFile, one, {10, 1000}, first);
    CHECK(!layouts.pages_in_the_way(kFile, {10, 1000}, true, {}));
    CHECK(layouts.pages_in_the_way(kFile, {9, 10}, true, {}));
  }
  SUBCASE("while the file grows") {
    auto second = layouts.add_pages(kFile, one, {12, 1000}, false);
    layouts.trim_pages(kFile, one, {10, 1000}, first);
    layouts.trim_pages(kFile, one, {20, 1000}, second);
    CHECK(layouts.pages_in_the_way(kFile, {12, 20}, true, {}));
    CHECK(!layouts.pages_in_the_way(kFile, {20, 1000}, true, {}));
  }
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
