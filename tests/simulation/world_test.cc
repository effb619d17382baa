#include "tests/simulation/world.h"

#include <doctest/doctest.h>

#include <vector>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/task.h"
#include "iscsi/blocking_lun.h"
#include "iscsi/ram_lun.h"
#include "tests/simulation/content.h"
#include "tests/simulation/history.h"
#include "tests/simulation/network.h"
#include "tests/simulation/worker.h"

using namespace csv;
using namespace csv::sim;

namespace {

constexpr NodeId kHere{1}, kThere{2};

protocol::Message message(std::uint64_t id) {
  protocol::Message made;
  made.frame.set_id(id);
  made.frame.mutable_resume_done();
  return made;
}

/// Two processes on two nodes with a stream between them.
struct Pair {
  explicit Pair(std::uint64_t seed) : world{seed}, network{world} {
    a.enter([&] { from = network.door(a, kHere); });
    b.enter([&] {
      to = network.door(b, kThere);
      auto listening = to->listen("there", [this](auto accepted) {
        incoming = std::move(accepted);
        incoming->start([this](protocol::Message got) { received.push_back(got.frame.id()); },
                        [this](Error) { told = true; });
      });
      REQUIRE(listening);
      listener = *std::move(listening);
    });
    a.enter([&] {
      from->connect(kThere, "there", [this](auto made) {
        REQUIRE(made);
        outgoing = *std::move(made);
        outgoing->start([](protocol::Message) {}, [this](Error) { broken = true; });
      });
    });
    run(1s);
    REQUIRE(outgoing);
    REQUIRE(incoming);
  }
  void send(std::uint64_t id) {
    a.enter([&] { outgoing->send(message(id)); });
  }
  void run(Duration time) {
    world.run([] { return false; }, world.now() + time);
    world.at(world.now() + 1ns, [] {});
  }

  World world;
  Network network;
  SimLoop a{world, "a", {}}, b{world, "b", {}};
  std::unique_ptr<protocol::Transport> from, to;
  std::unique_ptr<protocol::Transport::Listener> listener;
  std::unique_ptr<protocol::Connection> outgoing, incoming;
  std::vector<std::uint64_t> received;
  bool told = false, broken = false;
};

}  // namespace

TEST_CASE("world: a loop whose clock runs fast sees its timers early by the world's time only") {
  World world{1};
  SimLoop fast{world, "fast", {.boot = 5s, .parts_per_mille = 10, .wall = {}}};
  TimePoint began, ended;
  Duration at{};
  fast.enter([&] {
    began = fast.now();
    fast.after(10s, [&] {
      ended = fast.now();
      at = world.now();
    });
  });
  world.run([] { return false; }, 1min);
  CHECK(began == TimePoint{5s});
  CHECK(ended - began >= 10s);
  CHECK(at < 10s);
  CHECK(at > 9800ms);
}

TEST_CASE("world: a frozen process finds everything that was due when it wakes, in order") {
  World world{1};
  SimLoop loop{world, "loop", {}};
  std::vector<int> order;
  Duration at{};
  loop.enter([&] {
    loop.after(1s, [&] { order.push_back(1); });
    loop.after(2s, [&] {
      order.push_back(2);
      at = world.now();
    });
    auto never = loop.after(3s, [&] { order.push_back(3); });
    loop.after(4s, [&, never] {
      loop.cancel(never);
      order.push_back(4);
    });
  });
  loop.freeze(10s);
  world.run([] { return false; }, 1min);
  CHECK(at == 10s);
  CHECK(order == std::vector{1, 2, 3, 4});
}

TEST_CASE("world: a timer that comes due in a process frozen twice can still be cancelled") {
  World world{1};
  SimLoop loop{world, "loop", {}};
  bool ran = false;
  Loop::TimerId timer{};
  loop.enter([&] { timer = loop.after(1s, [&] { ran = true; }); });
  loop.freeze(5s);
  world.at(4s, [&] { loop.freeze(10s); });
  world.at(7s, [&] { loop.enter([&] { loop.cancel(timer); }); });
  world.run([] { return false; }, 1min);
  CHECK(!ran);
}

TEST_CASE("worker: while it waits for the LUN virtual time goes on, and nothing runs beside it") {
  World world{1};
  SimLoop disk_loop{world, "disk", {}}, loop{world, "loop", {}};
  auto disk = iscsi::RamDisk::create({}, &disk_loop);
  auto slow = [](const iscsi::RamCommand&) {
    iscsi::RamFate fate;
    fate.inside = 3s;
    return fate;
  };
  auto lun = disk->connect(loop, {}, slow);
  REQUIRE(lun);
  auto worker = std::make_unique<SimWorker>(world, loop);
  std::vector<std::byte> block(512, std::byte{7});
  Duration after{};
  bool written = false;
  worker->post([&] {
    iscsi::BlockingLun blocking{**lun, worker->blocking()};
    written = bool(blocking.write(0, block));
    after = world.now();
  });
  world.run([&] { return written; }, 1min);
  CHECK(written);
  CHECK(after >= 3s);
  CHECK(after < 3001ms);
  worker->post([&] { written = false; });
  worker.reset();
  CHECK(!written);
}

TEST_CASE("network: messages come in order and whole, after a while") {
  Pair pair{1};
  for (std::uint64_t id = 1; id <= 100; ++id) pair.send(id);
  CHECK(pair.received.empty());
  pair.run(1s);
  REQUIRE(pair.received.size() == 100);
  CHECK(std::is_sorted(pair.received.begin(), pair.received.end()));
}

TEST_CASE("network: what was sent into a short partition arrives after it, a long one ends it") {
  for (bool is_long : {false, true}) {
    CAPTURE(is_long);
    Pair pair{2};
    pair.network.part(kHere, kThere);
    pair.send(1);
    pair.run(is_long ? 20s : 1s);
    CHECK(pair.received.empty());
    pair.network.join(kHere, kThere);
    pair.run(5s);
    CHECK(pair.received.empty() == is_long);
    CHECK(pair.told == is_long);
    CHECK(pair.broken == is_long);
  }
}

TEST_CASE("network: a dead process's last messages arrive, a node without power says nothing") {
  for (bool power : {true, false}) {
    CAPTURE(power);
    Pair pair{3};
    pair.send(1);
    if (!power) pair.network.unplug(kHere);
    pair.a.enter([&] {
      pair.outgoing.reset();
      pair.from.reset();
    });
    pair.run(1s);
    CHECK(pair.received.size() == (power ? 1u : 0u));
    CHECK(pair.told == power);
    pair.run(20s);
    CHECK(pair.told);
  }
}

TEST_CASE("history: an answer that no order of operations explains is found") {
  History history{10};
  Op make;
  make.kind = Op::Kind::make_file;
  make.parent = 10;
  make.name = "a";
  make.mode = 0644;
  Op lookup;
  lookup.kind = Op::Kind::lookup;
  lookup.parent = 10;
  lookup.name = "a";
  Outcome made;
  made.inode = 11;
  made.mode = 0100644;
  made.nlink = 1;
  Outcome none;
  none.error = ENOENT;

  SUBCASE("after a create was answered nobody may miss the file") {
    auto first = history.begin(make);
    CHECK(history.end(first, made));
    auto look = history.begin(lookup);
    CHECK(!history.end(look, none));
  }
  SUBCASE("while it is under way both are right, and after somebody saw it only one") {
    auto first = history.begin(make);
    auto look = history.begin(lookup);
    CHECK(history.end(look, none));
    auto again = history.begin(lookup);
    CHECK(history.end(again, made));
    auto third = history.begin(lookup);
    CHECK(!history.end(third, none));
    CHECK(history.end(first, made));
  }
  SUBCASE("one that was abandoned may happen later, but not once it is over") {
    auto first = history.begin(make);
    auto look = history.begin(lookup);
    CHECK(history.end(look, none));
    history.settle(first);
    auto again = history.begin(lookup);
    CHECK(history.end(again, none));
    auto third = history.begin(lookup);
    CHECK(!history.end(third, made));
  }
  SUBCASE("of two creates at once one must lose") {
    auto first = history.begin(make), second = history.begin(make);
    CHECK(history.end(first, made));
    auto other = made;
    other.inode = 12;
    CHECK(!history.end(second, other));
  }
}

TEST_CASE("content: a read shows the last write, or one under way, and nothing else") {
  std::vector<std::byte> bytes(4096);
  FileContent content;
  auto first = content.begin(0, 4096, 1, 10ms);
  content.end(first, 20ms);
  fill_pattern(bytes, 0, 1);
  CHECK(!content.judge(0, bytes, 30ms, 31ms));
  std::vector<std::byte> zeros(4096);
  CHECK(content.judge(0, zeros, 30ms, 31ms));
  CHECK(!content.judge(0, zeros, 15ms, 31ms));
  auto second = content.begin(1024, 2048, 2, 40ms);
  CHECK(!content.judge(0, bytes, 50ms, 51ms));
  fill_pattern(std::span{bytes}.subspan(1024, 512), 1024, 2);
  CHECK(!content.judge(0, bytes, 50ms, 51ms));
  content.end(second, 60ms);
  CHECK(content.judge(0, bytes, 70ms, 71ms));
  CHECK(!content.judge(0, bytes, 55ms, 71ms));
}

TEST_CASE("content: a write of unknown outcome may have been made or not, but not both in turn") {
  std::vector<std::byte> zeros(1024), bytes(1024);
  fill_pattern(bytes, 0, 1);
  FileContent content;
  auto write = content.begin(0, 1024, 1, 10ms);
  content.settle(write, 20ms);
  // Half of it was made.
  auto half = bytes;
  std::fill(half.begin() + 512, half.end(), std::byte{});
  CHECK(!content.judge(0, half, 30ms, 31ms));
  CHECK(!content.judge(0, half, 40ms, 41ms));
  CHECK(content.judge(0, bytes, 50ms, 51ms));
  CHECK(content.judge(0, zeros, 60ms, 61ms));
  // A read that was under way all the time may show what was there before that read.
  CHECK(!content.judge(0, zeros, 15ms, 70ms));
}

TEST_CASE("content: what was behind the end of a file when that was seen does not come to show") {
  std::vector<std::byte> bytes(2048), short_one(1024), grown(2048);
  fill_pattern(bytes, 0, 1);
  fill_pattern(short_one, 0, 1);
  fill_pattern(grown, 0, 1);
  std::fill(grown.begin() + 1024, grown.end(), std::byte{});
  for (bool seen : {false, true}) {
    CAPTURE(seen);
    FileContent content;
    content.end(content.begin(0, 1024, 1, 1ms), 2ms);
    auto append = content.begin(1024, 2048, 1, 10ms);
    // As long as something may yet come of it the end says nothing.
    content.ends_at(1024, 12ms);
    content.settle(append, 20ms);
    content.ends_at(1024, 15ms);
    content.ends_at(1500, 30ms);
    if (seen) content.ends_at(1024, 30ms);
    CHECK(!content.judge(0, short_one, 30ms, 31ms));
    CHECK(content.judge(0, bytes, 40ms, 41ms).has_value());
    CHECK(!content.judge(0, grown, 50ms, 51ms));
    auto partly = grown;
    std::copy(bytes.begin() + 1024, bytes.begin() + 1500, partly.begin() + 1024);
    CHECK(content.judge(1024, std::span{partly}.subspan(1024, 476), 60ms, 61ms).has_value());
  }
  FileContent content;
  content.settle(content.begin(1024, 2048, 1, 10ms), 20ms);
  content.ends_at(1500, 30ms);
  CHECK(!content.judge(1024, std::span{bytes}.subspan(1024, 476), 40ms, 41ms));
}

TEST_CASE("content: a loss is told to whoever had something unsynced, once") {
  FileContent content;
  int mine = 0, others = 0;
  auto write = [&content](const void* by, Duration from, Duration to) {
    content.end(content.begin(0, 512, 1, from, {.by = by}), to);
  };
  auto told = [&content](FileContent::Refused who) { return content.told_of_loss(who); };
  write(&mine, 1ms, 2ms);
  CHECK(!told({.by = &mine, .handle = 1, .now = 3ms}));
  SUBCASE("of power") {
    content.power_loss();
    // Of which it has not heard yet.
    CHECK(!told({.by = &mine, .handle = 1, .now = 3ms}));
  }
  SUBCASE("that is only suspected") {}
  content.suspect(&mine);
  CHECK(!told({.by = &others, .handle = 1, .now = 4ms}));
  CHECK(told({.by = &mine, .handle = 1, .now = 5ms}));
  CHECK(!told({.by = &mine, .handle = 1, .now = 6ms}));
  // Others that were open then, and writes that were under way.
  CHECK(told({.by = &mine, .handle = 2, .since = 3ms, .now = 7ms}));
  CHECK(told({.by = &mine, .since = 4ms, .now = 7ms}));
  CHECK(!told({.by = &mine, .handle = 3, .since = 6ms, .now = 8ms}));
  CHECK(!told({.by = &mine, .since = 6ms, .now = 8ms}));
  // Told once more, though nothing was written since it was told before.
  content.suspect(&mine, 3ms);
  CHECK(!told({.by = &mine, .handle = 1, .now = 9ms}));
  // What was synced before is lost by nothing that comes later.
  write(&mine, 10ms, 11ms);
  content.synced(&mine, 12ms);
  content.suspect(&mine);
  CHECK(!told({.by = &mine, .handle = 4, .since = 9ms, .now = 13ms}));
  write(&mine, 14ms, 15ms);
  CHECK(!told({.by = &mine, .handle = 4, .since = 9ms, .now = 16ms}));
  content.suspect(&mine, 10ms);
  CHECK(told({.by = &mine, .handle = 4, .since = 9ms, .now = 17ms}));
  // A write that was under way when it was told may be part of what is lost.
  auto crossing = content.begin(0, 512, 2, 20ms, {.by = &mine});
  content.suspect(&mine, 18ms);
  content.end(crossing, 21ms);
  CHECK(told({.by = &mine, .handle = 4, .since = 9ms, .now = 22ms}));
  CHECK(!told({.by = &mine, .handle = 4, .since = 9ms, .now = 23ms}));
}

TEST_CASE("history: what a look under way may have seen does not multiply the explanations") {
  History history{10};
  Op make;
  make.kind = Op::Kind::make_file;
  make.parent = 10;
  make.name = "log";
  make.mode = 0644;
  Outcome made;
  made.inode = 11;
  made.mode = 0100644;
  made.nlink = 1;
  REQUIRE(history.end(history.begin(make), made));
  Op append;
  append.kind = Op::Kind::append;
  append.inode = 11;
  append.length = 100;
  append.open = true;
  Op read;
  read.kind = Op::Kind::read;
  read.inode = 11;
  read.length = 1 << 20;
  read.open = true;
  auto lost = history.begin(append);
  history.abandon(lost);
  auto slow = history.begin(read);
  for (int i = 0; i < 200; ++i) REQUIRE(history.end(history.begin(append), Outcome{}));
  CHECK(history.explanations() <= 2);
  Outcome got;
  got.length = 20200;
  CHECK(!history.end(history.begin(read), got));
  got.length = 5000;
  CHECK(history.end(slow, got));
  got.length = 20100;
  CHECK(history.end(history.begin(read), got));
  history.settle(lost);
  got.length = 20000;
  CHECK(!history.end(history.begin(read), got));
}

TEST_CASE("content: a log must have every answered record once and whole") {
  LogContent log;
  log.begin(1, 1ms);
  log.end(1, 2ms);
  log.begin(2, 3ms);
  auto one = LogContent::record(1, 100), two = LogContent::record(2, 60);
  std::vector<std::byte> all = one;
  CHECK(!log.judge(all, 5ms));
  CHECK(log.judge({}, 5ms));
  all.insert(all.end(), two.begin(), two.end());
  CHECK(!log.judge(all, 5ms));
  all.pop_back();
  CHECK(log.judge(all, 5ms));
  auto twice = one;
  twice.insert(twice.end(), one.begin(), one.end());
  CHECK(log.judge(twice, 5ms));
  auto swapped = two;
  swapped.insert(swapped.end(), one.begin(), one.end());
  CHECK(log.judge(swapped, 5ms));
}
