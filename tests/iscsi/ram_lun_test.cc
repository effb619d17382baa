#include "iscsi/ram_lun.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <vector>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/log.h"
#include "iscsi/blocking_lun.h"
#include "tests/iscsi/conformance.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

void conform(const std::shared_ptr<RamDisk>& disk) {
  check_conformance({.connect = [&](Loop& home, const std::string& initiator, int index) {
    LunOptions login;
    login.initiator = initiator;
    login.isid_seed = static_cast<std::uint64_t>(index);
    auto lun = disk->connect(home, login);
    REQUIRE(lun);
    return *std::move(lun);
  }});
}

void conform(RamDiskOptions options, std::uint32_t block_size) {
  options.geometry = {.block_size = block_size, .block_count = (64u << 20) / block_size};
  conform(RamDisk::create(options));
}

}  // namespace

TEST_CASE("ram lun, full profile, 512: it does what lun.h says") { conform({}, 512); }
TEST_CASE("ram lun, full profile, 4096: it does what lun.h says") { conform({}, 4096); }
TEST_CASE("ram lun, like tgt, 512: it does what lun.h says") {
  conform(RamDiskOptions::like_tgt(), 512);
}

TEST_CASE("ram lun, like LIO, 512: it does what lun.h says") {
  conform(RamDiskOptions::like_lio(), 512);
}
TEST_CASE("ram lun, like tgt, 4096, volatile cache: it does what lun.h says") {
  auto options = RamDiskOptions::like_tgt();
  options.write_cache = true;
  conform(options, 4096);
}

namespace {

constexpr Key kA{0xa}, kB{0xb};
constexpr auto kType = ReservationType::exclusive_access_all_registrants;

struct Bench {
  explicit Bench(RamDiskOptions options = {}) : disk{RamDisk::create(std::move(options), &loop)} {
    loop.start("ram-test");
  }
  std::unique_ptr<Lun> open(const std::string& initiator, RamPlan plan = {},
                            Duration deadline = 10s) {
    LunOptions login;
    login.initiator = initiator;
    login.isid_seed = 1;
    login.deadline = deadline;
    auto lun = disk->connect(loop, login, std::move(plan));
    REQUIRE(lun);
    return *std::move(lun);
  }
  /// Everything queued on the loop, and `delay` worth of timers, have run.
  void settle(Duration delay = {}) {
    blocking.wait([&](std::function<void()> wake) {
      loop.post([this, delay, wake = std::move(wake)] { loop.after(delay, wake); });
    });
  }
  std::vector<std::byte> content(std::uint64_t offset, std::size_t length) const {
    std::vector<std::byte> bytes(length);
    disk->peek(offset, bytes);
    return bytes;
  }

  AsioLoop loop;
  ThreadBlocking blocking;
  std::shared_ptr<RamDisk> disk;
};

std::vector<std::byte> filled(std::size_t length, int with) {
  return std::vector<std::byte>(length, static_cast<std::byte>(with));
}

RamDiskOptions cached() {
  RamDiskOptions options;
  options.write_cache = true;
  return options;
}

/// Writes take `inside` in the target; all else is at once.
RamPlan slow_writes(Duration to_target, Duration inside, bool lands_late) {
  return [=](const RamCommand& command) {
    RamFate fate;
    if (command.kind != RamCommand::Kind::write) return fate;
    fate.to_target = to_target;
    fate.inside = inside;
    fate.lands_late = lands_late;
    return fate;
  };
}

}  // namespace

TEST_CASE("ram lun: a power loss takes back only what was not flushed, block by block") {
  int kept = 0, lost = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Bench bench{cached()};
    auto lun = bench.open("a");
    BlockingLun io{*lun, bench.blocking};
    REQUIRE(io.write(0, filled(8 * 512, 1)));
    REQUIRE(io.flush());
    CHECK(bench.disk->unflushed_blocks() == 0);
    REQUIRE(io.write(2 * 512, filled(4 * 512, 2)));
    REQUIRE(io.write(5 * 512, filled(512, 3), {.fua = true}));
    CHECK(bench.disk->unflushed_blocks() == 3);
    Random random{seed};
    bench.disk->power_loss(random);
    auto after = bench.content(0, 8 * 512);
    for (int block = 0; block < 8; ++block) {
      auto now = std::span{after}.subspan(static_cast<std::size_t>(block) * 512, 512);
      CHECK(std::all_of(now.begin(), now.end(), [&](std::byte b) { return b == now[0]; }));
      if (block == 5) {
        CHECK(now[0] == std::byte{3});
      } else if (block < 2 || block > 4) {
        CHECK(now[0] == std::byte{1});
      } else {
        ++(now[0] == std::byte{2} ? kept : lost);
      }
    }
    CHECK(io.flush().error() == Errc::lun_lost);
  }
  CHECK(kept > 0);
  CHECK(lost > 0);
}

TEST_CASE("ram lun: a power loss forgets reservations, or keeps them where APTPL persists") {
  for (bool aptpl : {false, true}) {
    CAPTURE(aptpl);
    RamDiskOptions options;
    options.aptpl = aptpl;
    Bench bench{options};
    auto lun = bench.open("a");
    BlockingLun io{*lun, bench.blocking};
    REQUIRE(io.register_key(kA));
    REQUIRE(io.reserve(kA, kType));
    Random random{1};
    bench.disk->power_loss(random);
    auto again = bench.open("a"), stranger = bench.open("b");
    BlockingLun mine{*again, bench.blocking}, other{*stranger, bench.blocking};
    auto keys = mine.read_keys();
    REQUIRE(keys);
    CHECK(keys->generation == 0);
    CHECK(keys->keys.size() == (aptpl ? 1u : 0u));
    CHECK(bool(other.write(0, filled(512, 1))) == !aptpl);
    CHECK(mine.write(0, filled(512, 2)));
  }
}

TEST_CASE("ram lun: without zombies a nexus that logs in again still has its registration") {
  for (bool zombies : {false, true}) {
    CAPTURE(zombies);
    RamDiskOptions options;
    options.zombies = zombies;
    Bench bench{options};
    auto keeper = bench.open("keeper");
    BlockingLun keep{*keeper, bench.blocking};
    REQUIRE(keep.register_key(kB));
    REQUIRE(keep.reserve(kB, kType));
    auto first = bench.open("a");
    REQUIRE(BlockingLun(*first, bench.blocking).register_key(kA));
    auto second = bench.open("a");
    BlockingLun again{*second, bench.blocking};
    CHECK(BlockingLun(*first, bench.blocking).flush().error() == Errc::lun_lost);
    CHECK(bool(again.write(0, filled(512, 1))) == !zombies);
    auto keys = keep.read_keys();
    REQUIRE(keys);
    CHECK(keys->keys == std::vector{kB, kA});
  }
}

TEST_CASE("ram lun: a write of a dead initiator lands late, with what it was sent with") {
  Bench bench;
  auto lun = bench.open("a", slow_writes(20ms, {}, true));
  auto buffer = filled(512, 1);
  Expected<void> answer;
  lun->write(0, buffer, {}, [&](Expected<void> said) { answer = std::move(said); });
  lun->close();
  bench.settle();
  CHECK(answer.error() == Errc::lun_lost);
  std::fill(buffer.begin(), buffer.end(), std::byte{9});
  CHECK(bench.disk->late_commands() == 1);
  CHECK(bench.content(0, 512) == filled(512, 0));
  bench.settle(40ms);
  CHECK(bench.disk->late_commands() == 0);
  CHECK(bench.content(0, 512) == filled(512, 1));
}

TEST_CASE("ram lun: it lands as much later as it is told to") {
  Bench bench;
  auto plan = [slow = slow_writes(1ms, {}, true)](const RamCommand& command) {
    auto fate = slow(command);
    fate.late_by = 500ms;
    return fate;
  };
  auto lun = bench.open("a", plan);
  auto buffer = filled(512, 1);
  lun->write(0, buffer, {}, [](Expected<void>) {});
  lun->close();
  bench.settle(50ms);
  CHECK(bench.disk->late_commands() == 1);
  CHECK(bench.content(0, 512) == filled(512, 0));
  bench.settle(600ms);
  CHECK(bench.disk->late_commands() == 0);
  CHECK(bench.content(0, 512) == filled(512, 1));
}

TEST_CASE("ram lun: a late write that arrives after the fence of its key is refused") {
  Bench bench;
  auto fencer = bench.open("b"), lun = bench.open("a", slow_writes(30ms, {}, true));
  BlockingLun fence{*fencer, bench.blocking}, io{*lun, bench.blocking};
  REQUIRE(fence.register_key(kB));
  REQUIRE(io.register_key(kA));
  REQUIRE(fence.reserve(kB, kType));
  auto buffer = filled(512, 1);
  lun->write(0, buffer, {}, [](Expected<void>) {});
  lun->close();
  REQUIRE(fence.preempt(kB, kA, kType, false));
  bench.settle(60ms);
  CHECK(bench.disk->late_commands() == 0);
  CHECK(bench.content(0, 512) == filled(512, 0));
}

TEST_CASE("ram lun: what passed its check before the fence still lands, unless it is aborted") {
  enum class Fence { preempt, preempt_and_abort, preempt_and_reset };
  for (auto how : {Fence::preempt, Fence::preempt_and_abort, Fence::preempt_and_reset}) {
    for (bool dead : {false, true}) {
      CAPTURE(static_cast<int>(how));
      CAPTURE(dead);
      Bench bench;
      auto fencer = bench.open("b"), lun = bench.open("a", slow_writes({}, 40ms, true));
      BlockingLun fence{*fencer, bench.blocking}, io{*lun, bench.blocking};
      REQUIRE(fence.register_key(kB));
      REQUIRE(io.register_key(kA));
      REQUIRE(fence.reserve(kB, kType));
      auto buffer = filled(512, 1);
      Expected<void> answer;
      lun->write(0, buffer, {}, [&](Expected<void> said) { answer = std::move(said); });
      if (dead) lun->close();
      REQUIRE(fence.preempt(kB, kA, kType, how == Fence::preempt_and_abort));
      if (how == Fence::preempt_and_reset) REQUIRE(fence.reset());
      bench.settle(80ms);
      bool landed = bench.content(0, 512) == filled(512, 1);
      CHECK(landed == (how == Fence::preempt));
      if (!dead) CHECK(bool(answer) == landed);
      if (!dead && !landed) CHECK(answer.error() == Errc::fenced);
    }
  }
}

TEST_CASE("ram lun: a write that a reset aborted is repeated, its Lun notices nothing") {
  Bench bench;
  auto lun = bench.open("a", slow_writes({}, 30ms, false)), other = bench.open("b");
  auto buffer = filled(512, 1);
  bool answered = false;
  lun->write(0, buffer, {}, [&](Expected<void> said) { answered = bool(said); });
  REQUIRE(BlockingLun(*other, bench.blocking).reset());
  bench.settle(60ms);
  CHECK(answered);
  CHECK(lun->counters().retries == 1);
  CHECK(bench.content(0, 512) == filled(512, 1));
}

TEST_CASE("ram lun: a torn write leaves the new beginning and the old rest") {
  Bench bench;
  auto plan = [](const RamCommand& command) {
    RamFate fate;
    if (command.kind != RamCommand::Kind::write) return fate;
    fate.failure = Error{std::errc::io_error, "torn"};
    fate.torn_blocks = 3;
    return fate;
  };
  auto lun = bench.open("a", plan);
  BlockingLun io{*lun, bench.blocking};
  CHECK(io.write(0, filled(8 * 512, 1)).error() == std::errc::io_error);
  CHECK(bench.content(0, 3 * 512) == filled(3 * 512, 1));
  CHECK(bench.content(3 * 512, 5 * 512) == filled(5 * 512, 0));
}

TEST_CASE(
    "ram lun: a flush that fails may take what the cache held, and is told to everybody once") {
  Bench bench{cached()};
  std::atomic<bool> fails{true};
  std::atomic<int> said{0};
  auto plan = [&](const RamCommand& command) {
    RamFate fate;
    fate.failed = [&said] { ++said; };
    if (command.kind != RamCommand::Kind::flush || !fails.exchange(false)) return fate;
    fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
    fate.forgets = fate.tells_all = true;
    return fate;
  };
  auto one = bench.open("a", plan), other = bench.open("b", plan);
  BlockingLun mine{*one, bench.blocking}, theirs{*other, bench.blocking};
  REQUIRE(theirs.write(512, filled(512, 2)));
  CHECK(mine.flush().error() == Errc::not_durable);
  CHECK(bench.content(512, 512) == filled(512, 0));
  CHECK(theirs.write(0, filled(512, 3)).error() == Errc::not_durable);
  CHECK(bench.content(0, 512) == filled(512, 0));
  CHECK(said == 2);
  CHECK(theirs.write(0, filled(512, 3)));
  CHECK(theirs.flush());
  CHECK(mine.flush());
  CHECK(said == 2);
}

TEST_CASE("ram lun: an UNMAP may be answered before it is done") {
  Bench bench;
  auto plan = [](const RamCommand& command) {
    RamFate fate;
    if (command.kind != RamCommand::Kind::unmap) return fate;
    fate.early = true;
    fate.inside = 20ms;
    return fate;
  };
  auto lun = bench.open("a", plan);
  BlockingLun io{*lun, bench.blocking};
  REQUIRE(io.unmap(0, 64 << 10));
  REQUIRE(io.write(0, filled(512, 1)));
  CHECK(bench.content(0, 512) == filled(512, 1));
  CHECK(bench.disk->late_commands() == 1);
  bench.settle(40ms);
  CHECK(bench.disk->late_commands() == 0);
  CHECK(bench.content(0, 512) == filled(512, 0));
}

TEST_CASE("ram lun: a command that exceeds the deadline ends the Lun before its buffer is free") {
  Bench bench;
  auto lun = bench.open("a", slow_writes(1h, {}, false), 20ms);
  BlockingLun io{*lun, bench.blocking};
  Error why;
  lun->on_lost([&](Error error) { why = std::move(error); });
  CHECK(io.write(0, filled(512, 1)).error() == Errc::lun_lost);
  CHECK(io.read_keys().error() == Errc::lun_lost);
  bench.settle();
  CHECK(why == Errc::lun_lost);
  CHECK(lun->counters().timeouts == 1);
}

TEST_CASE("ram lun: a lost answer leaves the effect, and ends the Lun") {
  Bench bench;
  auto plan = [](const RamCommand&) {
    RamFate fate;
    fate.answer_lost = true;
    return fate;
  };
  auto lun = bench.open("a", plan);
  CHECK(BlockingLun(*lun, bench.blocking).write(0, filled(512, 1)).error() == Errc::lun_lost);
  CHECK(bench.content(0, 512) == filled(512, 1));
}

TEST_CASE("ram lun: an initiator cut off loses its sessions and cannot log in until it is back") {
  Bench bench;
  auto lun = bench.open("a"), other = bench.open("b");
  bench.disk->set_reachable("a", false);
  CHECK(BlockingLun(*lun, bench.blocking).flush().error() == Errc::lun_lost);
  CHECK(BlockingLun(*other, bench.blocking).flush());
  LunOptions login;
  login.initiator = std::string(1, 'a');
  CHECK(bench.disk->connect(bench.loop, login).error() == Errc::lun_lost);
  bench.disk->set_reachable("a", true);
  CHECK(bench.disk->connect(bench.loop, login));
}

TEST_CASE(
    "ram lun: an exhausted thin LUN takes rewrites but nothing new, until something is unmapped") {
  RamDiskOptions options;
  options.thin_bytes = 128 << 10;
  Bench bench{options};
  auto lun = bench.open("a");
  BlockingLun io{*lun, bench.blocking};
  REQUIRE(io.write(0, filled(128 << 10, 1)));
  CHECK(io.write(1 << 20, filled(512, 1)).error() == std::errc::no_space_on_device);
  CHECK(io.write(0, filled(512, 2)));
  REQUIRE(io.unmap(0, 64 << 10));
  CHECK(io.write(1 << 20, filled(512, 1)));
  CHECK(io.write(2 << 20, filled(512, 1)).error() == std::errc::no_space_on_device);
  bench.disk->set_thin_bytes(192 << 10);
  CHECK(io.write(2 << 20, filled(512, 1)));
}

TEST_CASE("ram lun: a write-protected LUN reads and says that it is write-protected") {
  RamDiskOptions options;
  options.write_protected = true;
  Bench bench{options};
  auto lun = bench.open("a");
  BlockingLun io{*lun, bench.blocking};
  CHECK(lun->profile().write_protected);
  CHECK(!io.write(0, filled(512, 1)));
  std::vector<std::byte> bytes(512);
  CHECK(io.read(0, bytes));
}

TEST_CASE("image lun: an image holds what was written, and is one disk for all Luns of a process") {
  auto path = std::filesystem::temp_directory_path() /
              fmt::format("csv-image-{}.img", static_cast<long>(::getpid()));
  { std::ofstream{path}.close(); }
  std::filesystem::resize_file(path, 8 << 20);
  AsioLoop loop;
  loop.start("image-test");
  ThreadBlocking blocking;
  {
    auto first = RamDisk::open_file(path), second = RamDisk::open_file(path);
    REQUIRE(first);
    REQUIRE(second);
    CHECK(*first == *second);
    CHECK(RamDisk::open_file(path, 4096).error() == Errc::refused);
    auto lun = (*first)->connect(loop, {});
    REQUIRE(lun);
    BlockingLun io{**lun, blocking};
    CHECK((*lun)->profile().write_cache);
    REQUIRE(io.write(4096, filled(4096, 7), {.fua = true}));
    REQUIRE(io.write_zeroes(8192, 4096));

    // Another process (as flock sees it: another open file) is kept out.
    int fd = ::open(path.c_str(), O_RDWR);
    CHECK(::flock(fd, LOCK_EX | LOCK_NB) != 0);
    ::close(fd);
  }
  std::ifstream image{path, std::ios::binary};
  image.seekg(4096);
  CHECK(image.get() == 7);
  image.close();
  std::filesystem::remove(path);
  CHECK(!RamDisk::open_file(path));
}

TEST_CASE("image lun, 512: it does what lun.h says") {
  auto path = std::filesystem::temp_directory_path() /
              fmt::format("csv-conform-{}.img", static_cast<long>(::getpid()));
  { std::ofstream{path}.close(); }
  std::filesystem::resize_file(path, 16 << 20);
  {
    auto disk = RamDisk::open_file(path);
    REQUIRE(disk);
    conform(*disk);
  }
  std::filesystem::remove(path);
}
