// An iSCSI LUN against LIO, the kernel's target, where one is: its URL is in CSV_LIO_URL
// (scripts/lab up --target lio; tests/lab/lio.sh). The first 8 MiB and all reservations are lost.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

#include "csvfs/base/buffer.h"
#include "iscsi/iscsi_session.h"
#include "iscsi/lun_url.h"
#include "iscsi/scsi_commands.h"
#include "tests/iscsi/conformance.h"
#include "tests/iscsi/lun_waiting.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

constexpr Key kA{0x4711'0100'0000'0001}, kB{0x4711'0200'0000'0002};
constexpr auto kType = ReservationType::exclusive_access_all_registrants;

LunOptions named(const std::string& name, std::uint64_t seed = 1, int sessions = 1) {
  LunOptions options;
  options.initiator = "iqn.2026-01.org.csvfs.test:" + name;
  options.isid_seed = seed;
  options.sessions = sessions;
  options.role = "process" + std::to_string(seed);
  return options;
}

struct Bench {
  struct AsItIs {};
  explicit Bench(AsItIs) {
    if (const char* given = std::getenv("CSV_LIO_URL")) url = given;
  }
  /// Nothing that was reserved before is any more, where there is a LIO.
  Bench() : Bench{AsItIs{}} {
    if (url.empty()) {
      MESSAGE("skipped: no LIO (CSV_LIO_URL)");
      return;
    }
    auto janitor = open(named("janitor", 99));
    REQUIRE(home.calls(*janitor).register_key(kA));
    REQUIRE(home.calls(*janitor).clear(kA));
    home.drop(std::move(janitor));
  }
  explicit operator bool() const { return !url.empty(); }
  std::unique_ptr<Lun> open(LunOptions options) {
    auto lun = home.open(url, std::move(options));
    REQUIRE_MESSAGE(lun, lun.error().message());
    return *std::move(lun);
  }
  Expected<void> write(Lun& lun, std::uint64_t offset, std::byte fill, std::size_t size = 4096) {
    std::vector<std::byte> bytes(size, fill);
    return home.calls(lun).write(offset, bytes);
  }
  /// What a fence is here, by the profile.
  Expected<void> fence(Lun& by, Key mine, Key victim) {
    auto calls = home.calls(by);
    REQUIRE(!by.profile().preempt_and_abort);
    CSV_TRY(calls.preempt(mine, victim, kType, false));
    return calls.reset();
  }
  std::string url;
  Home home;
};

int raw_byte(std::byte value) { return std::to_integer<int>(value); }

/// A nexus that can send what a Lun would not.
struct RawNexus {
  RawNexus(AsioLoop& loop, const std::string& url, const std::string& name) {
    auto parsed = parse_lun_url(url);
    REQUIRE(parsed);
    const auto* address = std::get_if<IscsiAddress>(&*parsed);
    REQUIRE(address);
    IscsiSession::Options options;
    options.initiator = "iqn.2026-01.org.csvfs.test:" + name;
    options.target = address->target;
    options.portal = address->portals.front();
    options.lun = address->lun;
    options.isid = 77;
    IscsiSession::Events events;
    events.connected = [this](Expected<void> said) { connected.set_value(std::move(said)); };
    events.answered = [this](IscsiSession::Batch batch) {
      answered.set_value(batch.front()->result);
    };
    events.refused = [](auto) {};
    events.ended = [](const Error&, const IscsiSession::Batch&) {};
    loop.post([&, options, events = std::move(events)]() mutable {
      session = std::make_unique<IscsiSession>(loop, options, std::move(events));
    });
    REQUIRE(connected.get_future().get());
  }
  Expected<void> reserve_out(ReserveOut action, Key key, Key other) {
    auto parameters = reserve_out_parameters(key, other, true);
    return send(reserve_out_cdb(action, kType), parameters, ScsiPurpose::reservation);
  }
  /// COMPARE AND WRITE (SBC-3, 5.2) of one block: `to` takes the place of `from`, if that is there.
  Expected<void> compare_and_write(std::uint32_t lba, std::byte from, std::byte to) {
    std::vector<std::byte> both(1024, from);
    std::fill(both.begin() + 512, both.end(), to);
    Cdb cdb;
    cdb.size = 16;
    cdb.bytes[0] = 0x89;
    for (int i = 0; i < 4; ++i) cdb.bytes[9 - i] = static_cast<std::uint8_t>(lba >> (8 * i));
    cdb.bytes[13] = 1;
    return send(cdb, both, ScsiPurpose::data);
  }
  Expected<void> send(const Cdb& cdb, std::span<const std::byte> out, ScsiPurpose purpose) {
    answered = {};
    auto command = std::make_unique<ScsiCommand>();
    command->cdb = cdb;
    command->out = out;
    command->purpose = purpose;
    session->submit(std::move(command));
    return answered.get_future().get();
  }
  /// Sessions end on their loop.
  void end(AsioLoop& loop) {
    std::promise<void> ended;
    loop.post([&] {
      session.reset();
      ended.set_value();
    });
    ended.get_future().get();
  }
  std::promise<Expected<void>> connected, answered;
  std::unique_ptr<IscsiSession> session;
};

}  // namespace

TEST_CASE("lio: its LUN keeps the promises of every Lun") {
  Bench bench;
  if (!bench) return;
  check_conformance({.connect = [&](AsioLoop& home, const std::string& initiator, int index) {
    LunOptions login;
    login.initiator = initiator;
    login.isid_seed = static_cast<std::uint64_t>(index) + 1;
    login.role = "process" + std::to_string(index);
    std::promise<Expected<std::unique_ptr<Lun>>> opened;
    open_lun(home, bench.url, login, [&](auto result) { opened.set_value(std::move(result)); });
    auto lun = opened.get_future().get();
    REQUIRE_MESSAGE(lun, lun.error().message());
    return *std::move(lun);
  }});
}

TEST_CASE("lio: the profile has the whole set, also where a reservation keeps the asker out") {
  Bench bench;
  if (!bench) return;
  auto check = [](const TargetProfile& profile) {
    CHECK(profile.vendor == "LIO-ORG");
    CHECK(profile.identity.starts_with("naa.6001405"));
    // It is there, but ends too little.
    CHECK(!profile.preempt_and_abort);
    CHECK(profile.name_is_nexus);
    CHECK(profile.read_full_status);
    CHECK(profile.aptpl);
    CHECK(profile.all_registrants);
    CHECK(profile.write_same);
    CHECK(profile.unmap);
    CHECK(profile.thin);
  };
  auto a = bench.open(named("a"));
  check(a->profile());
  auto calls = bench.home.calls(*a);
  REQUIRE(calls.register_key(kA));
  REQUIRE(calls.reserve(kA, kType));
  auto b = bench.open(named("b"));
  check(b->profile());
  CHECK(calls.read_keys()->keys == std::vector{kA});
  bench.home.drop(std::move(a));
  bench.home.drop(std::move(b));
}

TEST_CASE("lio: two sessions are two nexuses with one key, and fall to one fence") {
  Bench bench;
  if (!bench) return;
  auto a = bench.open(named("a", 1, 2)), b = bench.open(named("b"));
  auto calls_a = bench.home.calls(*a), calls_b = bench.home.calls(*b);
  REQUIRE(calls_a.register_key(kA));
  REQUIRE(calls_b.register_key(kB));
  REQUIRE(calls_b.reserve(kB, kType));
  CHECK(calls_b.read_keys()->keys.size() == 3);
  CHECK(bench.write(*a, 0, std::byte{1}));
  REQUIRE(bench.fence(*b, kB, kA));
  CHECK(calls_b.read_keys()->keys == std::vector{kB});
  CHECK(bench.write(*a, 0, std::byte{1}).error() == Errc::fenced);
  CHECK(bench.write(*b, 0, std::byte{2}));
  bench.home.drop(std::move(a));
  bench.home.drop(std::move(b));
}

TEST_CASE("lio: a login under an ISID in use ends the older session, and has its registration") {
  Bench bench;
  if (!bench) return;
  auto older = bench.open(named("a"));
  std::promise<Error> lost;
  older->on_lost([&](Error why) { lost.set_value(std::move(why)); });
  REQUIRE(bench.home.calls(*older).register_key(kA));
  REQUIRE(bench.home.calls(*older).reserve(kA, kType));
  auto newer = bench.open(named("a"));
  auto ended = lost.get_future();
  REQUIRE(ended.wait_for(20s) == std::future_status::ready);
  CHECK(ended.get() == Errc::lun_lost);
  CHECK(bench.home.calls(*newer).read_keys()->keys == std::vector{kA});
  // It needs no key of its own for what the older one was allowed.
  CHECK(bench.write(*newer, 0, std::byte{1}));
  auto other = bench.open(named("a", 2));
  CHECK(bench.write(*other, 0, std::byte{2}).error() == Errc::reservation_conflict);
  for (auto* each : {&older, &newer, &other}) bench.home.drop(std::move(*each));
}

TEST_CASE("lio: of a killed process's writes none lands after its key is fenced") {
  Bench bench;
  if (!bench) return;
  constexpr std::size_t kBlock = 64 << 10, kBlocks = 64;
  // The child knows nothing but the URL; it tells with one byte that it is writing.
  int told[2];
  REQUIRE(::pipe(told) == 0);
  auto child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    Home home;
    auto lun = home.open(bench.url, named("victim", 1, 2));
    if (!lun || !home.calls(**lun).register_key(kA)) ::_exit(1);
    auto fill = Buffer::zeroed(kBlock);
    std::vector<BlockingLun::Write> writes;
    for (std::size_t i = 0; i < kBlocks; ++i) writes.push_back({i * kBlock, fill.span()});
    for (int turn = 1;; ++turn) {
      (void)home.calls(**lun).write(writes, {}, 64);
      if (turn == 1) (void)!::write(told[1], "w", 1);
    }
  }
  ::close(told[1]);  // so that it is heard if the child ends instead
  char byte = 0;
  REQUIRE(::read(told[0], &byte, 1) == 1);
  auto lun = bench.open(named("fencer"));
  auto calls = bench.home.calls(*lun);
  REQUIRE(calls.register_key(kB));
  REQUIRE(calls.reserve(kB, kType));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  REQUIRE(bench.fence(*lun, kB, kA));
  CHECK(calls.read_keys()->keys == std::vector{kB});
  std::vector<std::byte> mark(kBlock * kBlocks, std::byte{0xee}), found(kBlock * kBlocks);
  REQUIRE(calls.write(0, mark));
  std::this_thread::sleep_for(std::chrono::seconds{1});
  REQUIRE(calls.read(0, found));
  CHECK(found == mark);
  ::close(told[0]);
  bench.home.drop(std::move(lun));
}

TEST_CASE("lio: nexuses of one name have one another's access, so each has a name of its own") {
  Bench bench;
  if (!bench) return;
  auto fencer = bench.open(named("fencer"));
  auto calls = bench.home.calls(*fencer);
  REQUIRE(calls.register_key(kB));
  REQUIRE(calls.reserve(kB, kType));
  // As one process of a node is fenced while another lives.
  auto mount = bench.open(named("node", 1, 2)), coordinator = bench.open(named("node", 2, 2));
  REQUIRE(bench.home.calls(*mount).register_key(kA));
  CHECK(bench.write(*coordinator, 0, std::byte{1}).error() == Errc::reservation_conflict);
  REQUIRE(bench.home.calls(*coordinator).register_key(Key{3}));
  REQUIRE(bench.fence(*fencer, kB, kA));
  CHECK(bench.write(*mount, 0, std::byte{1}).error() == Errc::fenced);
  for (int i = 0; i < 40; ++i)  // through both sessions
    CHECK(bench.write(*coordinator, 0, std::byte{2}, 1 << 20));
  // Nor does a nexus that never had a key gain by the others'.
  auto stranger = bench.open(named("node", 3));
  CHECK(bench.write(*stranger, 0, std::byte{3}).error() == Errc::reservation_conflict);
  for (auto* each : {&fencer, &mount, &coordinator, &stranger}) bench.home.drop(std::move(*each));
}

// Nothing of ours uses it: reservations decide who may write, and the superblocks have one writer.
TEST_CASE("lio: COMPARE AND WRITE changes a block or nothing, and not for who is fenced") {
  Bench bench;
  if (!bench) return;
  auto fencer = bench.open(named("fencer"));
  auto calls = bench.home.calls(*fencer);
  REQUIRE(bench.write(*fencer, 0, std::byte{1}));
  auto holds = [&](std::byte expected) {
    std::vector<std::byte> found(4096);
    REQUIRE(calls.read(0, found));
    CHECK(found[511] == expected);
    CHECK(found[512] == std::byte{1});
  };
  RawNexus nexus{bench.home.loop, bench.url, "victim"};
  CHECK(nexus.compare_and_write(0, std::byte{1}, std::byte{2}));
  holds(std::byte{2});
  CHECK(!nexus.compare_and_write(0, std::byte{1}, std::byte{3}));
  holds(std::byte{2});
  REQUIRE(nexus.reserve_out(ReserveOut::register_and_ignore_existing_key, Key{}, kA));
  REQUIRE(calls.register_key(kB));
  REQUIRE(calls.reserve(kB, kType));
  CHECK(nexus.compare_and_write(0, std::byte{2}, std::byte{4}));
  holds(std::byte{4});
  REQUIRE(bench.fence(*fencer, kB, kA));
  CHECK(!nexus.compare_and_write(0, std::byte{4}, std::byte{5}));
  holds(std::byte{4});
  nexus.end(bench.home.loop);
  bench.home.drop(std::move(fencer));
}

// With `scripts/lab san slow 128K`: a write takes its time in the target.
TEST_CASE("slow lio: PREEMPT AND ABORT leaves a write that is being executed, a fence does not") {
  Bench bench;
  if (!bench) return;
  constexpr std::size_t kSize = 512 << 10;
  for (bool fenced : {false, true}) {
    CAPTURE(fenced);
    RawNexus raw_fencer{bench.home.loop, bench.url, "raw"};
    auto fencer = bench.open(named("fencer")), victim = bench.open(named("victim"));
    auto calls = bench.home.calls(*fencer);
    REQUIRE(calls.register_key(kB));
    REQUIRE(calls.reserve(kB, kType));
    REQUIRE(raw_fencer.reserve_out(ReserveOut::register_and_ignore_existing_key, Key{}, Key{9}));
    REQUIRE(bench.home.calls(*victim).register_key(kA));
    std::vector<std::byte> old(kSize, std::byte{0x11}), late(kSize, std::byte(0x20 + fenced)),
        found(4096);
    // The first goes through at once, what follows it waits for a second or four.
    REQUIRE(calls.write(kSize, old));
    std::promise<Expected<void>> written;
    victim->write(0, late, {}, [&](Expected<void> said) { written.set_value(std::move(said)); });
    std::this_thread::sleep_for(std::chrono::milliseconds{300});
    auto begin = bench.home.loop.now();
    if (fenced) {
      REQUIRE(bench.fence(*fencer, kB, kA));
    } else {
      REQUIRE(raw_fencer.reserve_out(ReserveOut::preempt_and_abort, Key{9}, kA));
    }
    auto took = bench.home.loop.now() - begin;
    CHECK(std::ranges::count(calls.read_keys()->keys, kA) == 0);
    REQUIRE(calls.read(0, found));
    auto then = found[0];
    std::this_thread::sleep_for(std::chrono::seconds{6});
    REQUIRE(calls.read(0, found));
    MESSAGE(std::string{fenced ? "the fence" : "PREEMPT AND ABORT"}
            << " took " << took / 1ms << " ms; what was read before and after: " << raw_byte(then)
            << ", " << raw_byte(found[0]));
    if (fenced) CHECK(then == found[0]);
    // Should this fail one day, LIO has learned it: see apply_quirks().
    if (!fenced) CHECK(then != found[0]);
    bench.home.drop(std::move(fencer));
    bench.home.drop(std::move(victim));
    raw_fencer.end(bench.home.loop);
  }
}

// Between the two its machine is lost and started again (tests/lab/lio.sh).
TEST_CASE("lio before its end: registrations of two names, and a reservation") {
  Bench bench;
  if (!bench) return;
  auto a = bench.open(named("a")), b = bench.open(named("b"));
  REQUIRE(bench.home.calls(*a).register_key(kA));
  REQUIRE(bench.home.calls(*b).register_key(kB));
  // LIO reads its own "res_type=08" as an octal number: a holder of type 8 would not be restored.
  REQUIRE(bench.home.calls(*a).reserve(kA, ReservationType::exclusive_access_registrants_only));
  bench.home.drop(std::move(a));
  bench.home.drop(std::move(b));
}

TEST_CASE("lio after its end: a name that logs in again has what it had, and others do not") {
  if (std::getenv("CSV_LIO_URL") == nullptr) {
    MESSAGE("skipped: no LIO (CSV_LIO_URL)");
    return;
  }
  Bench bench{Bench::AsItIs{}};
  // Only when the holder is back is there a reservation again.
  auto stranger = bench.open(named("stranger"));
  CHECK(bench.home.calls(*stranger).read_keys()->keys.empty());
  auto a = bench.open(named("a"));
  CHECK(bench.home.calls(*stranger).read_keys()->keys == std::vector{kA});
  auto reservation = bench.home.calls(*a).read_reservation();
  REQUIRE(reservation);
  CHECK(reservation->type == ReservationType::exclusive_access_registrants_only);
  CHECK(reservation->holder == kA);
  CHECK(bench.write(*stranger, 0, std::byte{1}).error() == Errc::reservation_conflict);
  auto b = bench.open(named("b"));
  CHECK(bench.home.calls(*a).read_keys()->keys.size() == 2);
  CHECK(bench.write(*b, 0, std::byte{2}));
  for (auto* each : {&a, &b, &stranger}) bench.home.drop(std::move(*each));
}
