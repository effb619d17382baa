// An iSCSI LUN against tgt, a real target.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "csvfs/base/buffer.h"
#include "tests/iscsi/conformance.h"
#include "tests/iscsi/lun_waiting.h"
#include "tests/iscsi/tgt.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

constexpr Key kA{0x4711'0100'0000'0001}, kB{0x4711'0200'0000'0002};
constexpr auto kType = ReservationType::exclusive_access_registrants_only;

LunOptions named(const std::string& name, std::uint64_t seed = 1, int sessions = 1) {
  LunOptions options;
  options.initiator = "iqn.2026-01.org.csvfs.test:" + name;
  options.isid_seed = seed;
  options.sessions = sessions;
  return options;
}

void conform(const Tgt::Options& options) {
  auto tgt = Tgt::start(options);
  if (!tgt) return;
  check_conformance({.connect = [&](AsioLoop& home, const std::string& initiator, int index) {
    LunOptions login;
    login.initiator = initiator;
    login.isid_seed = static_cast<std::uint64_t>(index) + 1;
    std::promise<Expected<std::unique_ptr<Lun>>> opened;
    open_lun(home, tgt->url(), login, [&](auto result) { opened.set_value(std::move(result)); });
    auto lun = opened.get_future().get();
    REQUIRE_MESSAGE(lun, lun.error().message());
    return *std::move(lun);
  }});
}

struct Bench {
  explicit Bench(const Tgt::Options& options = {}) : tgt{Tgt::start(options)} {}
  explicit operator bool() const { return tgt != nullptr; }
  std::unique_ptr<Lun> open(LunOptions options) {
    auto lun = home.open(tgt->url(), std::move(options));
    REQUIRE_MESSAGE(lun, lun.error().message());
    return *std::move(lun);
  }
  Expected<void> write(Lun& lun, std::uint64_t offset, std::byte fill, std::size_t size = 4096) {
    std::vector<std::byte> bytes(size, fill);
    return home.calls(lun).write(offset, bytes);
  }
  std::unique_ptr<Tgt> tgt;
  Home home;
};

}  // namespace

TEST_CASE("tgt: a LUN of 512-byte blocks keeps the promises of every Lun") { conform({}); }

TEST_CASE("tgt: a LUN of 4096-byte blocks keeps the promises of every Lun") {
  Tgt::Options options;
  options.block_size = 4096;
  conform(options);
}

TEST_CASE("tgt: the profile says what this target really does, not what it claims") {
  Bench bench;
  if (!bench) return;
  auto lun = bench.open(named("a"));
  const auto& profile = lun->profile();
  CHECK(profile.vendor == "IET");
  CHECK(profile.identity.starts_with("naa."));
  CHECK(profile.write_cache);
  CHECK(profile.fua);
  CHECK(!profile.preempt_and_abort);
  CHECK(!profile.read_full_status);
  CHECK(!profile.aptpl);
  // A fence does not stop these here, so they must not be used.
  CHECK(!profile.write_same);
  CHECK(!profile.unmap);
  CHECK(profile.thin);  // which is so whether it can be unmapped or not
  CHECK(!profile.all_registrants);
  bench.home.drop(std::move(lun));
}

TEST_CASE("tgt: two sessions are two nexuses with one key, and fall to one fence") {
  Bench bench;
  if (!bench) return;
  auto a = bench.open(named("a", 1, 2)), b = bench.open(named("b"));
  auto calls_a = bench.home.calls(*a), calls_b = bench.home.calls(*b);
  REQUIRE(calls_a.register_key(kA));
  REQUIRE(calls_b.register_key(kB));
  REQUIRE(calls_b.reserve(kB, kType));
  CHECK(calls_b.read_keys()->keys == std::vector{kA, kA, kB});
  std::vector<Buffer> buffers;
  std::vector<BlockingLun::Write> writes;
  for (std::size_t i = 0; i < 64; ++i) {
    buffers.push_back(Buffer::zeroed(4096));
    writes.push_back({i * 4096, buffers.back().span()});
  }
  CHECK(calls_a.write(writes));  // through both
  REQUIRE(calls_b.preempt(kB, kA, kType, false));
  REQUIRE(calls_b.reset());
  CHECK(calls_b.read_keys()->keys == std::vector{kB});
  CHECK(calls_a.write(writes).error() == Errc::fenced);
  CHECK(bench.write(*b, 0, std::byte{1}));
  bench.home.drop(std::move(a));
  bench.home.drop(std::move(b));
}

TEST_CASE(
    "tgt: with type 6 the fencer of the holder becomes the holder, and the reservation never "
    "pauses") {
  Bench bench;
  if (!bench) return;
  auto a = bench.open(named("a")), b = bench.open(named("b")), stranger = bench.open(named("c"));
  auto calls_a = bench.home.calls(*a), calls_b = bench.home.calls(*b);
  REQUIRE(calls_a.register_key(kA));
  REQUIRE(calls_b.register_key(kB));
  REQUIRE(calls_a.reserve(kA, kType));
  REQUIRE(calls_b.preempt(kB, kA, kType, false));
  auto now = calls_b.read_reservation();
  REQUIRE(now);
  CHECK(now->type == kType);
  CHECK(now->holder == kB);
  // One more registration is what the all-registrants types break on here.
  REQUIRE(bench.home.calls(*stranger).register_key(Key{3}));
  now = calls_b.read_reservation();
  REQUIRE(now);
  CHECK(now->holder == kB);
  for (auto* each : {&a, &b, &stranger}) bench.home.drop(std::move(*each));
}

TEST_CASE("tgt: CHAP lets in who knows the secret, and says so to who does not") {
  Tgt::Options options;
  options.chap_user = "csvfs";
  options.chap_secret = "a secret of 12 and more";
  Bench bench{options};
  if (!bench) return;
  auto good = named("a");
  good.chap_user = options.chap_user;
  good.chap_secret = options.chap_secret;
  bench.home.drop(bench.open(good));

  auto url = bench.tgt->url();
  auto with_secret = "iscsi://csvfs%" + options.chap_secret + "@" + url.substr(8);
  auto named_in_url = bench.home.open(with_secret, named("b"));
  REQUIRE_MESSAGE(named_in_url, named_in_url.error().message());
  bench.home.drop(*std::move(named_in_url));

  auto wrong = good;
  wrong.chap_secret = "another secret altogether";
  auto refused = bench.home.open(url, wrong);
  REQUIRE(!refused);
  CHECK(refused.error().message().find("login") != std::string::npos);
  CHECK(refused.error().message().find(wrong.chap_secret) == std::string::npos);
  CHECK(!bench.home.open(url, named("c")));
}

TEST_CASE("tgt: with CHAP, too, a login ends no session but its own") {
  Tgt::Options options;
  options.chap_user = "csvfs";
  options.chap_secret = "a secret of 12 and more";
  Bench bench{options};
  if (!bench) return;
  auto same = named("a");
  same.chap_user = options.chap_user;
  same.chap_secret = options.chap_secret;
  auto older = bench.open(same), newer = bench.open(same);
  CHECK(bench.write(*newer, 0, std::byte{1}));
  CHECK(bench.write(*older, 0, std::byte{2}));
  bench.home.drop(std::move(older));
  bench.home.drop(std::move(newer));
}

TEST_CASE("tgt: header digests may be asked for") {
  Bench bench;
  if (!bench) return;
  auto options = named("a");
  options.header_digest = true;
  auto lun = bench.open(options);
  CHECK(bench.write(*lun, 0, std::byte{1}, 1 << 20));
  bench.home.drop(std::move(lun));
}

TEST_CASE("tgt: what is no usable LUN is refused with the reason") {
  Bench bench;
  if (!bench) return;
  auto options = named("a");
  options.deadline = 3s;
  // LUN 0 is tgt's controller.
  auto controller = bench.home.open(bench.tgt->url(0), options);
  CHECK(controller.error() == Errc::refused);
  CHECK(controller.error().message().find("not a disk") != std::string::npos);
  auto none = bench.home.open(bench.tgt->url(9), options);
  CHECK(none.error() == Errc::refused);
  CHECK(none.error().message().find("no LUN with this number") != std::string::npos);
  auto other = bench.home.open(
      "iscsi://" + bench.tgt->portal() + "/iqn.2026-01.org.csvfs.test:other/1", options);
  CHECK(other.error() == Errc::lun_lost);
}

TEST_CASE("tgt: a write-protected LUN says so and refuses writes") {
  Tgt::Options options;
  options.write_protected = true;
  Bench bench{options};
  if (!bench) return;
  auto lun = bench.open(named("a"));
  CHECK(lun->profile().write_protected);
  CHECK(bench.write(*lun, 0, std::byte{1}).error() == std::errc::read_only_file_system);
  std::vector<std::byte> block(512);
  CHECK(bench.home.calls(*lun).read(0, block));
  bench.home.drop(std::move(lun));
}

TEST_CASE(
    "tgt: a target that hears but does not answer costs the Lun at the deadline, and a new one "
    "works") {
  Bench bench;
  if (!bench) return;
  auto options = named("a", 1, 2);
  options.deadline = 1s;
  auto lun = bench.open(options);
  std::promise<Error> lost;
  lun->on_lost([&](Error why) { lost.set_value(std::move(why)); });
  REQUIRE(bench.write(*lun, 0, std::byte{1}));
  bench.tgt->stop();
  auto begin = bench.home.loop.now();
  CHECK(bench.write(*lun, 0, std::byte{2}).error() == Errc::lun_lost);
  auto took = bench.home.loop.now() - begin;
  CHECK(took >= 1s);
  CHECK(took < 4s);
  CHECK(lost.get_future().get() == Errc::lun_lost);
  bench.tgt->go_on();
  auto again = bench.open(options);
  CHECK(bench.write(*again, 0, std::byte{3}));
  bench.home.drop(std::move(lun));
  bench.home.drop(std::move(again));
}

TEST_CASE(
    "tgt: when the target dies the Lun is lost at once, and what it comes back with is forgotten") {
  Bench bench;
  if (!bench) return;
  auto lun = bench.open(named("a"));
  auto calls = bench.home.calls(*lun);
  REQUIRE(calls.register_key(kA));
  REQUIRE(calls.reserve(kA, kType));
  std::promise<Error> lost;
  lun->on_lost([&](Error why) { lost.set_value(std::move(why)); });
  auto begin = bench.home.loop.now();
  bench.tgt->kill();
  CHECK(lost.get_future().get() == Errc::lun_lost);
  CHECK(bench.home.loop.now() - begin < 5s);
  CHECK(bench.write(*lun, 0, std::byte{2}).error() == Errc::lun_lost);
  bench.tgt->restart();
  auto again = bench.open(named("a"));
  auto keys = bench.home.calls(*again).read_keys();
  REQUIRE(keys);
  CHECK(keys->keys.empty());
  CHECK(keys->generation == 0);
  bench.home.drop(std::move(lun));
  bench.home.drop(std::move(again));
}

TEST_CASE(
    "tgt: of a killed process's writes none lands after its key is preempted and the LUN was "
    "reset") {
  Bench bench;
  if (!bench) return;
  constexpr std::size_t kBlock = 64 << 10, kBlocks = 128;
  // The child knows nothing but the URL; it tells with one byte that it is writing.
  int told[2];
  REQUIRE(::pipe(told) == 0);
  auto url = bench.tgt->url();
  auto child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    Home home;
    auto lun = home.open(url, named("victim", 1, 2));
    if (!lun || !home.calls(**lun).register_key(kA)) ::_exit(1);
    std::vector<Buffer> buffers;
    for (std::size_t i = 0; i < kBlocks; ++i) buffers.push_back(Buffer::zeroed(kBlock));
    std::atomic<unsigned> round{0};
    for (int turn = 1;; ++turn) {
      for (auto& each : buffers) std::fill_n(each.data(), kBlock, std::byte(turn));
      std::vector<BlockingLun::Write> writes;
      for (std::size_t i = 0; i < kBlocks; ++i) writes.push_back({i * kBlock, buffers[i].span()});
      (void)home.calls(**lun).write(writes, {}, 64);
      if (turn == 2) (void)!::write(told[1], "w", 1);
    }
  }
  ::close(told[1]);  // so that it is heard if the child ends instead
  char byte = 0;
  REQUIRE(::read(told[0], &byte, 1) == 1);
  auto lun = bench.open(named("fencer", 1));
  auto calls = bench.home.calls(*lun);
  REQUIRE(calls.register_key(kB));
  // The target stands still while the writer dies, so that much is on its way.
  bench.tgt->stop();
  std::this_thread::sleep_for(std::chrono::milliseconds{50});
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  bench.tgt->go_on();

  auto reserved = calls.reserve(kB, kType);
  REQUIRE(reserved);
  REQUIRE(calls.preempt(kB, kA, kType, false));
  REQUIRE(calls.reset());
  CHECK(calls.read_keys()->keys == std::vector{kB});
  std::vector<std::byte> mark(kBlock * kBlocks, std::byte{0xee}), found(kBlock * kBlocks);
  REQUIRE(calls.write(0, mark));
  std::this_thread::sleep_for(std::chrono::seconds{1});
  REQUIRE(calls.read(0, found));
  CHECK(found == mark);
  ::close(told[0]);
  bench.home.drop(std::move(lun));
}
