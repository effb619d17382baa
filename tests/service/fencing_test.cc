// What a fence does beside taking keys away: by the target's profile, and by what is listed.
#include "coordinator/service/fencing.h"

#include <doctest/doctest.h>

#include <optional>

#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service;
using namespace csv::service::test;

namespace {

/// A coordinator's nexus that counts the resets it sends, and a victim's.
struct Bench {
  explicit Bench(iscsi::RamDiskOptions options) : world{std::move(options)} {
    auto count = [this](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (command.kind != iscsi::RamCommand::Kind::reset) return fate;
      if (++resets <= unanswered) fate.failure = Error{Errc::reset_unanswered, "no answer"};
      return fate;
    };
    lun = connected(world.lun_options(77), count);
    victim = connected(world.lun_options(78), {});
    iscsi::BlockingLun mine{*lun, blocking}, other{*victim, blocking};
    REQUIRE(mine.register_key(kMine));
    REQUIRE(other.register_key(kVictim));
    REQUIRE(mine.reserve(kMine, iscsi::ReservationType::exclusive_access_registrants_only));
    fencing.emplace(world.loop, *lun, kMine);
    fencing->set_type(iscsi::ReservationType::exclusive_access_registrants_only);
  }
  ~Bench() {
    world.run([this] {
      tasks.cancel_all();
      fencing.reset();
      lun.reset();
      victim.reset();
    });
  }
  std::unique_ptr<iscsi::Lun> connected(iscsi::LunOptions options, iscsi::RamPlan plan) {
    auto made = world.disk->connect(world.loop, std::move(options), std::move(plan));
    REQUIRE(made);
    return *std::move(made);
  }
  static Task<void> removing(Bench& self, std::vector<Key> victims, Fencing::Left left) {
    auto task = self.fencing->remove(std::move(victims), left);
    self.removed = co_await task;
  }
  /// How many resets it took.
  int remove(std::vector<Key> victims, Fencing::Left left, bool succeeds = true) {
    resets = 0;
    removed.reset();
    world.run([&] { tasks.spawn(removing(*this, victims, left)); });
    REQUIRE(world.eventually([this] { return removed.has_value(); }));
    CHECK(bool(*removed) == succeeds);
    return resets;
  }

  static constexpr Key kMine{0x1267'0100'0000'0001}, kVictim{0x1267'0200'0000'0002};
  static constexpr Key kGone{0x1267'0300'0000'0003};
  World world;
  ThreadBlocking blocking;
  TaskScope tasks;
  std::unique_ptr<iscsi::Lun> lun, victim;
  std::optional<Fencing> fencing;
  std::optional<Expected<void>> removed;
  int resets = 0, unanswered = 0;
};

}  // namespace

TEST_CASE("fencing: PREEMPT AND ABORT needs no reset, but for keys that somebody else took away") {
  Bench bench{{}};
  CHECK(bench.remove({Bench::kVictim}, Fencing::Left::maybe) == 0);
  // He may have died before his abort had ended.
  CHECK(bench.remove({Bench::kVictim}, Fencing::Left::maybe) == 1);
  CHECK(bench.remove({Bench::kGone}, Fencing::Left::nothing) == 0);
}

TEST_CASE("fencing: without PREEMPT AND ABORT it ends with a reset, whatever is listed") {
  Bench bench{iscsi::RamDiskOptions::like_tgt()};
  CHECK(bench.remove({Bench::kVictim}, Fencing::Left::maybe) == 1);
  CHECK(bench.remove({}, Fencing::Left::maybe) == 1);
  CHECK(bench.remove({Bench::kGone}, Fencing::Left::nothing) == 0);
}

TEST_CASE("fencing: keys that may have gone unseen cost a reset, whatever the target has") {
  Bench bench{{}};
  CHECK(bench.remove({Bench::kVictim}, Fencing::Left::others) == 1);
}

TEST_CASE(
    "fencing: a reset that is not answered is told to who takes over, and repeated by who serves") {
  Bench bench{iscsi::RamDiskOptions::like_tgt()};
  bench.unanswered = 3;
  CHECK(bench.remove({Bench::kVictim}, Fencing::Left::maybe, false) == 1);
  CHECK(bench.removed->error() == Errc::reset_unanswered);
  CHECK(bench.removed->error().message().find("ss -K") != std::string::npos);
  bench.fencing->be_patient();
  CHECK(bench.remove({Bench::kVictim}, Fencing::Left::maybe) == 4);
}
