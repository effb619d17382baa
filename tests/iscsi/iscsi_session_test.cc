// An iSCSI LUN against a target that answers what no good target answers.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <thread>

#include "csvfs/base/buffer.h"
#include "tests/iscsi/lun_waiting.h"
#include "tests/iscsi/scripted_target.h"

using namespace csv;
using namespace csv::iscsi;
using Target = ScriptedTarget;
using Kind = Target::Answer::Kind;

namespace {

constexpr std::uint8_t kRead = 0x28, kWrite = 0x2a, kSync = 0x35, kWriteSame = 0x93,
                       kReserveOut = 0x5f, kReserveIn = 0x5e, kModeSense = 0x5a, kInquiry = 0x12,
                       kCapacity = 0x9e;

LunOptions hasty() {
  LunOptions options;
  options.deadline = 500ms;
  return options;
}

/// A target with a script for some commands, and an open Lun on it.
struct Bench {
  explicit Bench(Target::Script script, Target::Options options = {}, LunOptions lun_options = {})
      : target{std::move(options), std::move(script)} {
    auto opened = home.open(target.url(), std::move(lun_options));
    REQUIRE_MESSAGE(opened, opened.error().message());
    lun = *std::move(opened);
  }
  ~Bench() { home.drop(std::move(lun)); }
  BlockingLun calls() { return home.calls(*lun); }
  Expected<void> read_one() {
    std::vector<std::byte> block(512);
    return calls().read(0, block);
  }

  Target target;
  Home home;
  std::unique_ptr<Lun> lun;
};

/// Answers the first `times` commands with `opcode` so, all others as a disk.
Target::Script first(std::uint8_t opcode, std::uint64_t times, Target::Answer answer) {
  return [=](const Target::Command& command) {
    return command.opcode() == opcode && command.number <= times ? answer : Target::good();
  };
}

/// Probes at opening are commands too: counts from the command after them.
Target::Script after(std::uint8_t opcode, std::uint64_t skipped, Target::Answer answer) {
  return [=](const Target::Command& command) {
    return command.opcode() == opcode && command.number > skipped ? answer : Target::good();
  };
}

std::vector<std::byte> be64(std::initializer_list<std::uint64_t> values) {
  std::vector<std::byte> bytes;
  for (auto value : values)
    for (int shift = 56; shift >= 0; shift -= 8) bytes.push_back(std::byte(value >> shift));
  return bytes;
}

}  // namespace

TEST_CASE("what a target did not do yet is sent again until it does it") {
  struct Row {
    const char* what;
    Target::Answer answer;
  };
  for (auto& row : {Row{"busy", Target::status(0x08)}, Row{"task set full", Target::status(0x28)},
                    Row{"aborted", Target::status(0x40)}, Row{"power on", Target::sense(6, 0x2900)},
                    Row{"mode parameters changed", Target::sense(6, 0x2a01)},
                    Row{"aborted command", Target::sense(0xb, 0x4700)},
                    Row{"becoming ready", Target::sense(2, 0x0401)}}) {
    CAPTURE(row.what);
    Bench bench{first(kWrite, 3, row.answer)};
    std::vector<std::byte> out(1024, std::byte{5}), in(1024);
    auto retries = bench.lun->counters().retries;
    CHECK(bench.calls().write(512, out));
    CHECK(bench.lun->counters().retries == retries + 3);
    CHECK(bench.target.count(kWrite) == 4);
    CHECK(bench.calls().read(512, in));
    CHECK(in == out);
  }
}

TEST_CASE("a full task set makes the Lun send fewer at a time, and nothing is lost") {
  std::atomic<int> inside{0};
  Bench bench{[&](const Target::Command& command) {
    if (command.opcode() != kWrite) return Target::good();
    return command.number % 5 == 0 ? Target::status(0x28) : Target::good();
  }};
  std::vector<Buffer> buffers;
  std::vector<BlockingLun::Write> writes;
  for (std::size_t i = 0; i < 200; ++i) {
    buffers.push_back(Buffer::zeroed(512));
    buffers.back().data()[0] = std::byte(i);
    writes.push_back({i * 512, buffers[i].span()});
  }
  CHECK(bench.calls().write(writes));
  for (std::size_t i = 0; i < 200; ++i) {
    std::vector<std::byte> block(512);
    REQUIRE(bench.calls().read(i * 512, block));
    CHECK(block[0] == std::byte(i));
  }
}

TEST_CASE(
    "a command that never gets through ends: aborted for ever it fails, busy for ever the Lun is "
    "lost") {
  {
    Bench bench{after(kRead, 1, Target::status(0x40))};
    CHECK(bench.read_one().error() == std::errc::io_error);
    std::vector<std::byte> block(512);
    CHECK(bench.calls().write(0, block));
  }
  {
    Bench bench{after(kRead, 1, Target::status(0x08)), {}, hasty()};
    CHECK(bench.read_one().error() == Errc::lun_lost);
    CHECK(bench.lun->counters().timeouts == 1);
  }
}

TEST_CASE("a PREEMPT that was aborted is not sent again, and its outcome is unknown") {
  Bench bench{after(kReserveOut, 1, Target::status(0x40))};
  auto before = bench.target.count(kReserveOut);
  auto result = bench.calls().preempt(Key{1}, Key{2},
                                      ReservationType::exclusive_access_registrants_only, false);
  CHECK(result.error() == Errc::unknown_outcome);
  CHECK(bench.target.count(kReserveOut) == before + 1);
}

TEST_CASE(
    "no answer within the deadline loses the Lun; the connection is gone before anybody is told") {
  Bench bench{after(kRead, 1, Target::of(Kind::nothing)), {}, hasty()};
  std::promise<Error> lost;
  bench.lun->on_lost([&](Error why) { lost.set_value(std::move(why)); });
  auto begin = bench.home.loop.now();
  auto result = bench.read_one();
  auto took = bench.home.loop.now() - begin;
  CHECK(result.error() == Errc::lun_lost);
  CHECK(took >= 500ms);
  CHECK(took < 3s);
  auto why = lost.get_future();
  REQUIRE(why.wait_for(5s) == std::future_status::ready);
  CHECK(why.get() == Errc::lun_lost);
  CHECK(bench.lun->counters().timeouts == 1);
  for (int i = 0; i < 500 && bench.target.connections() > 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  CHECK(bench.target.connections() == 0);
  // Nobody connects again underneath.
  CHECK(bench.target.logins() == 1);
  CHECK(bench.read_one().error() == Errc::lun_lost);
  CHECK(bench.calls().register_key(Key{1}).error() == Errc::lun_lost);
  CHECK(bench.calls().reset().error() == Errc::lun_lost);
  CHECK(bench.calls().flush().error() == Errc::lun_lost);
}

TEST_CASE(
    "the deadline of a command counts from when it was sent, not from when it was given to us") {
  // Two sessions' worth of commands, each kept for more than half of the deadline.
  constexpr int kAtOnce = 64, kCount = 2 * kAtOnce;
  std::atomic<bool> hold{false};
  LunOptions options;
  options.deadline = 4s;
  Bench bench{[&](const Target::Command& command) {
                return command.opcode() == kRead && hold ? Target::of(Kind::nothing)
                                                         : Target::good();
              },
              {},
              options};
  hold = true;
  std::vector<Buffer> buffers;
  for (int i = 0; i < kCount; ++i) buffers.emplace_back(512);
  std::atomic<int> left{kCount}, failed{0};
  std::promise<void> all;
  auto begin = bench.home.loop.now();
  for (auto& each : buffers)
    bench.lun->read(0, each.span(), [&](Expected<void> result) {
      if (!result) ++failed;
      if (--left == 0) all.set_value();
    });
  auto done = all.get_future();
  while (done.wait_for(2200ms) == std::future_status::timeout) bench.target.release();
  CHECK(failed == 0);
  CHECK(bench.home.loop.now() - begin > options.deadline);  // otherwise the run proved nothing
}

TEST_CASE("garbage, and an end in the middle, lose the Lun and every command in flight") {
  for (auto kind : {Kind::garbage, Kind::hang_up}) {
    Bench bench{after(kRead, 20, Target::of(kind)), {}, hasty()};
    std::atomic<int> answers{0}, good{0}, lost{0};
    std::promise<void> all;
    std::vector<Buffer> buffers;
    for (int i = 0; i < 60; ++i) buffers.emplace_back(512);
    for (auto& each : buffers)
      bench.lun->read(0, each.span(), [&](Expected<void> result) {
        if (result) ++good;
        if (result.error() == Errc::lun_lost) ++lost;
        if (++answers == 60) all.set_value();
      });
    REQUIRE(all.get_future().wait_for(10s) == std::future_status::ready);
    CHECK(good + lost == 60);
    CHECK(lost >= 40);
  }
}

TEST_CASE("a read that comes back short has failed") {
  Bench bench{after(kRead, 1, Target::with(std::vector<std::byte>(256)))};
  auto result = bench.read_one();
  REQUIRE(!result);
  CHECK(result.error() == std::errc::io_error);
}

TEST_CASE("a write refused before all its data was sent leaves nothing of its buffer in use") {
  for (auto refusal : {Target::sense(7, 0x2707), Target::status(0x18), Target::status(0x08)}) {
    refusal.early = true;
    // Large, so that most of it is still to be sent when the refusal comes.
    Bench bench{first(kWrite, 1, refusal)};
    auto buffer = std::make_unique<std::vector<std::byte>>(1 << 20, std::byte{9});
    auto result = bench.calls().write(0, *buffer);
    buffer.reset();  // under the address sanitizer a late look at it ends the test
    if (refusal.status == 0x08)
      CHECK(result);
    else
      CHECK(!result);
    std::vector<std::byte> out(64 << 10, std::byte{3}), in(64 << 10);
    CHECK(bench.calls().write(2 << 20, out));
    CHECK(bench.calls().read(2 << 20, in));
    CHECK(in == out);
  }
}

TEST_CASE("a part of a write that failed does not hide that others have no known outcome") {
  Bench bench{[](const Target::Command& command) {
    if (command.opcode() != kWrite) return Target::good();
    // The first is refused, and then the connection ends with the rest at the target.
    if (command.number == 1) return Target::sense(7, 0x2707);
    return Target::of(command.number < 4 ? Kind::nothing : Kind::hang_up);
  }};
  std::vector<std::byte> bytes(4 << 20);
  CHECK(bench.calls().write(0, bytes).error() == Errc::lun_lost);
}

TEST_CASE("a flush that failed says that content may be gone, and one that was not done does not") {
  Bench lossy{first(kSync, 1, Target::sense(3, 0x0c00))};
  CHECK(lossy.calls().flush().error() == Errc::not_durable);
  CHECK(lossy.calls().flush());
  Bench without{after(kSync, 0, Target::sense(5, 0x2400))};
  CHECK(without.calls().flush().error() == Errc::unsupported_by_target);
}

TEST_CASE("losing one of several sessions ends them all, once, before anything is answered") {
  LunOptions options = hasty();
  options.sessions = 3;
  std::atomic<bool> hold{false};
  Bench bench{[&](const Target::Command& command) {
                if (command.opcode() != kRead || !hold) return Target::good();
                return command.connection == 1 ? Target::of(Kind::hang_up)
                                               : Target::of(Kind::nothing);
              },
              {},
              options};
  CHECK(bench.target.logins() == 3);
  std::atomic<int> told{0}, answers{0}, lost{0};
  bench.lun->on_lost([&](const Error&) { ++told; });
  bench.home.settle();
  hold = true;
  std::promise<void> all;
  std::vector<Buffer> buffers;
  for (int i = 0; i < 30; ++i) buffers.emplace_back(512);
  for (auto& each : buffers)
    bench.lun->read(0, each.span(), [&](Expected<void> result) {
      if (result.error() == Errc::lun_lost) ++lost;
      if (++answers == 30) all.set_value();
    });
  // Well before the deadline of those that are never answered.
  REQUIRE(all.get_future().wait_for(10s) == std::future_status::ready);
  bench.home.settle();
  CHECK(lost == 30);
  CHECK(told == 1);
}

TEST_CASE(
    "a unit attention that tells of a preempted registration fences every session of the Lun") {
  LunOptions options;
  options.sessions = 2;
  std::atomic<bool> taken{false};
  Bench bench{[&](const Target::Command& command) {
                if (command.opcode() == kReserveOut) return Target::status(0);
                if (taken && command.opcode() == kRead) return Target::sense(6, 0x2a05);
                return Target::good();
              },
              {},
              options};
  REQUIRE(bench.calls().register_key(Key{7}));
  std::promise<Error> lost;
  bench.lun->on_lost([&](Error why) { lost.set_value(std::move(why)); });
  taken = true;
  CHECK(bench.read_one().error() == Errc::fenced);
  CHECK(lost.get_future().get() == Errc::fenced);
  std::vector<std::byte> block(512);
  CHECK(bench.calls().write(0, block).error() == Errc::fenced);
}

TEST_CASE("a conflict says reservation_conflict to who never registered, and the Lun lives on") {
  Bench bench{after(kRead, 1, Target::status(0x18))};
  CHECK(bench.read_one().error() == Errc::reservation_conflict);
  CHECK(bench.lun->counters().conflicts >= 1);
  std::vector<std::byte> block(512);
  CHECK(bench.calls().write(0, block));
}

TEST_CASE("a LUN RESET waits for our own commands, and holds new ones back until it is answered") {
  LunOptions options;
  options.sessions = 2;
  std::atomic<bool> hold{false};
  Bench bench{[&](const Target::Command& command) {
                return command.opcode() == kRead && hold ? Target::of(Kind::nothing)
                                                         : Target::good();
              },
              {},
              options};
  hold = true;
  std::vector<std::byte> block(512);
  std::promise<Expected<void>> read, reset;
  bench.lun->read(0, block, [&](Expected<void> result) { read.set_value(std::move(result)); });
  while (bench.target.count(kRead) < 2) std::this_thread::yield();
  bench.lun->reset([&](Expected<void> result) { reset.set_value(std::move(result)); });
  std::promise<Expected<void>> write;
  auto wrote = write.get_future();
  bench.home.settle();
  bench.home.settle();
  bench.lun->write(0, block, {},
                   [&](Expected<void> result) { write.set_value(std::move(result)); });
  CHECK(wrote.wait_for(100ms) == std::future_status::timeout);
  CHECK(bench.target.resets() == 0);
  bench.target.release();
  CHECK(read.get_future().get());
  CHECK(reset.get_future().get());
  CHECK(wrote.get());
  CHECK(bench.target.resets() == 1);
}

TEST_CASE("a LUN RESET that a target does not answer while it serves costs no Lun") {
  Target::Options options;
  options.reset_hangs = true;
  Bench bench{nullptr, options, hasty()};
  std::promise<Expected<void>> reset;
  auto ended = reset.get_future();
  bench.lun->reset([&](Expected<void> result) { reset.set_value(std::move(result)); });
  while (bench.target.resets() < 1) std::this_thread::yield();
  // Our own commands are held back no longer than it takes to see that it serves.
  CHECK(bench.read_one());
  CHECK(ended.wait_for(0s) == std::future_status::timeout);
  auto said = ended.get();
  CHECK(said.error() == Errc::reset_unanswered);
  CHECK(bench.read_one());
  // What comes now is not taken for the answer to another one.
  std::promise<Expected<void>> again;
  auto second = again.get_future();
  bench.lun->reset([&](Expected<void> result) { again.set_value(std::move(result)); });
  while (bench.target.resets() < 2) std::this_thread::yield();
  bench.target.release();
  CHECK(second.get());
  CHECK(bench.read_one());
}

TEST_CASE("a target that answers nothing after a LUN RESET costs the Lun") {
  Target::Options options;
  options.reset_hangs = true;
  Bench bench{[](const Target::Command& command) {
                return command.opcode() == 0 ? Target::of(Kind::nothing) : Target::good();
              },
              options, hasty()};
  CHECK(bench.calls().reset().error() == Errc::lun_lost);
}

TEST_CASE("no more is read at a time than the kernel takes while we stand still") {
  std::atomic<std::size_t> asked{0};
  Target::Options options;
  options.segment = 256 << 10;
  Bench bench{[&](const Target::Command& command) {
                if (command.opcode() != kRead || command.cdb[7] == 0) return Target::good();
                asked += 1 << 20;
                return Target::of(Kind::nothing);
              },
              options};
  // By default tcp_rmem lets a socket have 6 MiB, newer kernels' 32.
  constexpr std::size_t kReads = 24;
  std::vector<std::vector<std::byte>> buffers(kReads, std::vector<std::byte>(1 << 20));
  std::atomic<std::size_t> done{0};
  for (auto& each : buffers)
    bench.lun->read(0, each, [&](Expected<void> result) {
      CHECK(result);
      ++done;
    });
  while (asked == 0) std::this_thread::yield();
  std::this_thread::sleep_for(100ms);
  CHECK(asked <= 12 << 20);
  while (done < kReads) {
    bench.target.release();
    std::this_thread::yield();
  }
  CHECK(asked == kReads << 20);
}

TEST_CASE("a target without LUN RESET says so") {
  Target::Options options;
  options.reset_response = 5;
  Bench bench{nullptr, options};
  CHECK(bench.calls().reset().error() == Errc::unsupported_by_target);
  CHECK(bench.read_one());
}

TEST_CASE("a login that cannot be is refused or given up, saying where and why") {
  Home home;
  auto open = [&](Target::Options options, Target::Script script = nullptr) {
    Target target{std::move(options), std::move(script)};
    auto result = home.open(target.url(), hasty());
    REQUIRE(!result);
    CAPTURE(result.error().message());
    CHECK(result.error().message().find(Target::kTarget) != std::string::npos);
    return result.error();
  };
  Target::Options hangs;
  hangs.login_hangs = true;
  CHECK(open(hangs) == Errc::lun_lost);
  Target::Options refuses;
  refuses.login_status = 0x0201;
  CHECK(open(refuses) == Errc::lun_lost);
  Target::Options block_size;
  block_size.block_size = 1024;
  CHECK(open(block_size) == Errc::refused);

  auto inquiry = [](std::uint8_t first_byte) {
    std::vector<std::byte> answer(36, std::byte{' '});
    answer[0] = std::byte{first_byte};
    return first(kInquiry, 1, Target::with(std::move(answer)));
  };
  CHECK(open({}, inquiry(0x7f)) == Errc::refused);
  CHECK(open({}, inquiry(0x05)) == Errc::refused);
  CHECK(open({}, inquiry(0x20)) == Errc::refused);
  CHECK(open({}, first(kCapacity, 1, Target::sense(2, 0x3a00))) == std::errc::io_error);
  CHECK(open({}, first(kCapacity, 1, Target::of(Kind::hang_up))) == Errc::lun_lost);

  // Nobody listens.
  std::string nowhere;
  {
    Target target{{}, nullptr};
    nowhere = target.url();
  }
  CHECK(home.open(nowhere, hasty()).error() == Errc::lun_lost);
  LunOptions digests;
  digests.data_digest = true;
  CHECK(home.open(nowhere, digests).error() == Errc::refused);
  LunOptions many;
  many.sessions = 33;
  CHECK(home.open(nowhere, many).error() == Errc::refused);
}

TEST_CASE("a login that is redirected goes where it was sent, but not round in circles") {
  Home home;
  Target there{{}, nullptr};
  Target::Options options;
  options.login_status = 0x0101;
  options.redirect_to = there.portal();
  Target here{options, nullptr};
  auto lun = home.open(here.url());
  REQUIRE_MESSAGE(lun, lun.error().message());
  CHECK(there.logins() == 1);
  home.drop(*std::move(lun));
}

TEST_CASE("sessions go round the portals") {
  Home home;
  Target one{{}, nullptr}, two{{}, nullptr};
  LunOptions options;
  options.sessions = 3;
  auto lun = home.open(
      "iscsi://" + one.portal() + "," + two.portal() + "/" + Target::kTarget + "/1", options);
  REQUIRE_MESSAGE(lun, lun.error().message());
  CHECK(one.logins() == 2);
  CHECK(two.logins() == 1);
  home.drop(*std::move(lun));
}

TEST_CASE(
    "zeros are written where the target turns out to have no WRITE SAME, and only asked for once") {
  Bench bench{nullptr};
  std::vector<std::byte> out(4 << 20, std::byte{1}), in(4 << 20);
  REQUIRE(bench.calls().write(0, out));
  CHECK(bench.calls().write_zeroes(512, (4 << 20) - 1024));
  auto asked = bench.target.count(kWriteSame);
  CHECK(asked >= 1);
  CHECK(bench.calls().write_zeroes(512, 512));
  CHECK(bench.target.count(kWriteSame) == asked);
  std::fill(out.begin() + 512, out.end() - 512, std::byte{0});
  REQUIRE(bench.calls().read(0, in));
  CHECK(in == out);
}

TEST_CASE(
    "a durable write is one with FUA, or followed by a flush, or neither where nothing is "
    "volatile") {
  struct Row {
    bool cache, fua, safe;
    std::uint8_t flag;
    std::uint64_t flushes;
  };
  for (auto& row : {Row{true, true, false, 0x08, 0}, Row{true, false, false, 0, 1},
                    Row{false, true, false, 0, 0}, Row{true, false, true, 0, 0}}) {
    CAPTURE(row.cache);
    CAPTURE(row.fua);
    std::atomic<int> flags{-1};
    Target::Options options;
    options.write_cache = row.cache;
    options.fua = row.fua;
    LunOptions lun_options;
    lun_options.write_cache_safe = row.safe;
    Bench bench{[&](const Target::Command& command) {
                  if (command.opcode() == kWrite) flags = command.cdb[1];
                  return Target::good();
                },
                options, lun_options};
    CHECK(bench.lun->profile().write_cache == (row.cache && !row.safe));
    std::vector<std::byte> block(512);
    CHECK(bench.calls().write(0, block, {.fua = true}));
    CHECK(flags == row.flag);
    CHECK(bench.target.count(kSync) == row.flushes);
    CHECK(bench.calls().flush());
    CHECK(bench.target.count(kSync) == row.flushes + (row.cache && !row.safe ? 1 : 0));
  }
}

TEST_CASE("flushes join: of many at once the target sees one that runs and one that comes after") {
  std::atomic<bool> hold{true};
  Bench bench{[&](const Target::Command& command) {
    return command.opcode() == kSync && command.number == 1 ? Target::of(Kind::nothing)
                                                            : Target::good();
  }};
  std::atomic<int> left{50};
  std::promise<void> all;
  for (int i = 0; i < 50; ++i)
    bench.lun->flush([&](Expected<void> result) {
      CHECK(result);
      if (--left == 0) all.set_value();
    });
  while (bench.target.count(kSync) == 0) std::this_thread::yield();
  bench.home.settle();
  CHECK(left == 50);
  bench.target.release();
  all.get_future().get();
  CHECK(bench.target.count(kSync) == 2);
}

TEST_CASE("a cache that may be asked about only by registrants is asked about when we are one") {
  std::atomic<bool> registered{false};
  Bench bench{[&](const Target::Command& command) {
    if (command.opcode() == kReserveOut && command.cdb[1] == 6) {
      registered = true;
      return Target::status(0);
    }
    if (command.opcode() == kModeSense && !registered) return Target::status(0x18);
    return Target::good();
  }};
  CHECK(bench.lun->profile().write_cache);
  CHECK(!bench.lun->profile().fua);
  REQUIRE(bench.calls().register_key(Key{1}));
  CHECK(bench.lun->profile().fua);
  CHECK(bench.calls().register_key(Key{2}));
  CHECK(bench.target.count(kModeSense) == 2);
}

TEST_CASE("who is kept out tries whether WRITE SAME is, too, and does not use it if not") {
  for (bool guarded : {true, false}) {
    CAPTURE(guarded);
    Bench bench{[&](const Target::Command& command) {
      if (command.opcode() == kRead) return Target::status(0x18);
      if (command.opcode() == kWriteSame) {
        // Beyond the end, whatever else: the probe must not be able to write.
        CHECK(command.cdb[8] == 0x80);
        return guarded ? Target::status(0x18) : Target::sense(5, 0x2100);
      }
      return Target::good();
    }};
    CHECK(bench.lun->profile().write_same == guarded);
  }
}

static Target::Answer lio_inquiry() {
  std::string text{"\0\0\x05\x02\x1f\0\0\x02LIO-ORG disk1           4.0 ", 36};
  std::vector<std::byte> answer(36);
  std::memcpy(answer.data(), text.data(), text.size());
  return Target::with(std::move(answer));
}

TEST_CASE("a probe of WRITE SAME says nothing where a place beyond the end is refused first") {
  bool lio = false;
  SUBCASE("so it is not used") {}
  SUBCASE("but with LIO, of which it is known") { lio = true; }
  Bench bench{[&](const Target::Command& command) {
    if (lio && command.opcode() == kInquiry && (command.cdb[1] & 1) == 0) return lio_inquiry();
    bool beyond = command.cdb[8] == 0x80 || command.cdb[4] == 0x80;
    if (command.opcode() == kRead && !beyond) return Target::status(0x18);
    if (beyond) return Target::sense(5, 0x2100);
    return command.opcode() == 0x42 ? Target::status(0x18) : Target::good();
  }};
  CHECK(bench.lun->profile().write_same == lio);
}

TEST_CASE("a size that only registrants are told is asked for when we are one") {
  std::atomic<bool> registered{false};
  Bench bench{[&](const Target::Command& command) {
    if (command.opcode() == kReserveOut && command.cdb[1] == 6) {
      registered = true;
      return Target::status(0);
    }
    bool asks = command.opcode() == kCapacity || command.opcode() == kModeSense;
    if ((asks || command.opcode() == kRead) && !registered) return Target::status(0x18);
    // Without a size there is no place beyond the end but the last there can be.
    if (command.opcode() == kWriteSame && !registered) CHECK(command.cdb[2] == 0xff);
    return Target::good();
  }};
  CHECK(!bench.lun->geometry().known());
  CHECK(bench.read_one().error() == Errc::reservation_conflict);
  REQUIRE(bench.calls().register_key(Key{1}));
  CHECK(bench.lun->geometry().block_count == 32768);
  CHECK(bench.read_one());
  CHECK(bench.calls().register_key(Key{2}));
  CHECK(bench.target.count(kCapacity) == 2);
}

TEST_CASE("of LIO each session takes a name of its own, and it is fenced with PREEMPT and reset") {
  auto script = [](const Target::Command& command) {
    if (command.opcode() != kInquiry || (command.cdb[1] & 1) != 0) return Target::good();
    return lio_inquiry();
  };
  LunOptions options;
  options.initiator = "iqn.2026-01.org.csvfs.test:node1";
  {
    // A tool: alone under its name.
    Bench bench{script, {}, options};
    CHECK(bench.target.initiators() == std::vector{options.initiator});
  }
  options.role = "mount";
  options.sessions = 2;
  Bench bench{script, {}, options};
  auto names = bench.target.initiators();
  REQUIRE(names.size() == 4);
  std::sort(names.begin() + 2, names.end());
  CHECK(names[1] == options.initiator);
  CHECK(names[2] == options.initiator + ":mount.0");
  CHECK(names[3] == options.initiator + ":mount.1");
  CHECK(bench.lun->profile().name_is_nexus);
  CHECK(!bench.lun->profile().preempt_and_abort);
  CHECK(bench.lun->profile().all_registrants);
  std::vector<std::byte> block(512);
  CHECK(bench.calls().write(0, block));
}

TEST_CASE("PREEMPT AND ABORT is there if a key of nobody's is answered with a conflict") {
  auto script = [](Target::Answer answer) {
    return [=](const Target::Command& command) {
      return command.opcode() == kReserveOut && command.cdb[1] == 5 ? answer : Target::good();
    };
  };
  Bench has{script(Target::status(0x18))};
  CHECK(has.lun->profile().preempt_and_abort);
  Bench lacks{script(Target::sense(5, 0x2400))};
  CHECK(!lacks.lun->profile().preempt_and_abort);
  auto before = lacks.target.count(kReserveOut);
  CHECK(lacks.calls()
            .preempt(Key{1}, Key{2}, ReservationType::exclusive_access_registrants_only, true)
            .error() == Errc::unsupported_by_target);
  CHECK(lacks.target.count(kReserveOut) == before);
}

TEST_CASE("a list of keys that does not fit the first time is asked for again, whole") {
  std::vector<std::byte> all(8 + 8 * 1000);
  auto head = be64({0x0000'0007'0000'1f40});
  std::copy(head.begin(), head.end(), all.begin());
  for (std::uint64_t i = 0; i < 1000; ++i) {
    auto key = be64({i + 1});
    std::copy(key.begin(), key.end(), all.begin() + static_cast<std::ptrdiff_t>(8 + 8 * i));
  }
  Bench bench{[&](const Target::Command& command) {
    if (command.opcode() != kReserveIn || command.cdb[1] != 0) return Target::good();
    auto allocation = static_cast<std::size_t>(command.cdb[7] << 8 | command.cdb[8]);
    return Target::with(
        {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(std::min(allocation, all.size()))});
  }};
  auto keys = bench.calls().read_keys();
  REQUIRE_MESSAGE(keys, keys.error().message());
  CHECK(keys->generation == 7);
  REQUIRE(keys->keys.size() == 1000);
  CHECK(keys->keys.back() == Key{1000});
}

TEST_CASE("a thin LUN without space says so, and a LUN that was taken away ends the Lun") {
  Bench full{after(kWrite, 0, Target::sense(7, 0x2707))};
  std::vector<std::byte> block(512);
  CHECK(full.calls().write(0, block).error() == std::errc::no_space_on_device);
  CHECK(full.read_one());
  Bench gone{after(kRead, 1, Target::sense(5, 0x2500))};
  CHECK(gone.read_one().error() == Errc::lun_lost);
}

TEST_CASE("a Lun may be destroyed with commands in flight, and by who is just being answered") {
  {
    Bench bench{after(kRead, 1, Target::of(Kind::nothing))};
    auto token = std::make_shared<int>(0);
    std::vector<Buffer> buffers;
    for (int i = 0; i < 20; ++i) buffers.emplace_back(512);
    for (auto& each : buffers)
      bench.lun->read(0, each.span(),
                      [token](const Expected<void>&) { FAIL("nobody is left to be told"); });
    bench.lun->read_keys([token](const auto&) {});
    bench.lun->reset([token](const auto&) {});
    bench.home.drop(std::move(bench.lun));
    bench.home.settle();
    CHECK(token.use_count() == 1);
  }
  {
    Bench bench{nullptr};
    std::promise<void> gone;
    std::vector<std::byte> block(512);
    bench.lun->read(0, block, [&](const Expected<void>&) {
      bench.lun.reset();
      gone.set_value();
    });
    gone.get_future().get();
  }
  {
    Bench bench{nullptr};
    std::promise<void> gone;
    bench.lun->register_key(Key{1}, [&](const Expected<void>&) {
      bench.lun.reset();
      gone.set_value();
    });
    gone.get_future().get();
  }
  {
    Bench bench{after(kRead, 1, Target::of(Kind::hang_up))};
    std::promise<void> gone;
    bench.lun->on_lost([&](const Error&) {
      bench.lun.reset();
      gone.set_value();
    });
    bench.home.settle();
    std::vector<std::byte> block(512);
    bench.lun->read(0, block, [&](const Expected<void>&) {});
    gone.get_future().get();
  }
}
