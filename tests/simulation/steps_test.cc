#include <algorithm>
#include <string>

#include "tests/simulation/stage.h"

// A takeover, and a volume that is given up in good order, each ended or held up after each command
// that it sends to the LUN. Another node completes what was begun; the judges see to it that there
// is one writer, that no two sides speak, and that everything a program was told is there.

using namespace csv;
using namespace csv::sim;
using namespace csv::sim::stage;
using namespace std::chrono_literals;

#ifndef CSV_SIM_STEPS
#define CSV_SIM_STEPS 7
#endif

namespace {

enum class Deed { takeover, closing };
enum class Harm { killed, stands_still };

constexpr auto kStandstill = 20s;

ClusterOptions on_disk(iscsi::RamDiskOptions disk, bool unfenced) {
  auto with = three_nodes(false);
  with.broken.unfenced = unfenced;
  disk.geometry = with.disk.geometry;
  disk.write_cache = true;
  with.disk = std::move(disk);
  return with;
}

/// Somebody coordinates, and a file of another's mount is being written. What the first one began
/// to fence, a former mount of his own node, is left to whoever takes over.
class Steps : public Stage {
 public:
  Steps(const iscsi::RamDiskOptions& disk, Deed deed, bool unfenced = false)
      : Stage{on_disk(disk, unfenced)}, deed_{deed} {
    cluster.stop_governing();
    first_ = *cluster.coordinator();
    taker_ = (first_ + 1) % 3;
    third_ = (first_ + 2) % 3;
  }

  /// False: the deed was done before it had come to its n-th command. In the end another one has
  /// the volume, and who stood still is awake again.
  bool play(Harm harm, std::uint64_t n) {
    auto victim = deed_ == Deed::takeover ? taker_ : first_;
    bool over = false, harmed = false;
    std::uint64_t sent = 0;
    auto hurt = [&, victim] {
      harmed = true;
      if (harm == Harm::killed) return cluster.kill_csvd(victim);
      cluster.csvd(victim)->process().loop->freeze(world.now() + kStandstill);
    };
    begin_work();
    if (deed_ == Deed::takeover) die_in_a_fence();
    cluster.on_csvd_sends = [&, victim](std::size_t node, const iscsi::RamCommand&) {
      if (node != victim || over || ++sent != n) return;
      // The command is on its way when its sender has gone.
      world.after(Duration::zero(), hurt);
    };
    if (deed_ == Deed::takeover)
      cluster.csvd(victim)->start_volume();
    else
      cluster.csvd(victim)->stop_volume([&over] { over = true; });
    bool ended = until(60s, [&] {
      over = over || (deed_ == Deed::takeover && serves(victim));
      return over || harmed;
    });
    cluster.on_csvd_sends = {};
    REQUIRE(ended);
    cluster.csvd(third_)->start_volume();
    REQUIRE(until(120s, [&] { return serves(third_); }));
    if (harmed && harm == Harm::stands_still) pass(kStandstill + 2s);
    return harmed;
  }
  /// As if nothing had been.
  void all_is_well() {
    look_at_work();
    come_back();
    look_at_content();
    end();
    CHECK(violation == "");
  }

 private:
  bool serves(std::size_t node) {
    auto* csvd = cluster.csvd(node);
    return csvd != nullptr && csvd->state() == service::Coordination::State::serving;
  }
  /// On the third node, which is there all the time.
  void begin_work() {
    begin(third_, write(mount(third_), handles[third_], 2, written_));
    begin(third_, create(mount(third_), "under_way", made_));
  }
  void look_at_work() {
    REQUIRE(until(60s, [&] { return written_->has_value() && made_->has_value(); }));
    CHECK(bool(**written_));
    REQUIRE(bool(**made_));
    CHECK(shown(third_, {1, 2}) == 2);
  }
  /// Its row says fenced, and its key may be on the LUN or not.
  void die_in_a_fence() {
    bool begun = false;
    cluster.on_csvd_sends = [&](std::size_t node, const iscsi::RamCommand& command) {
      begun = begun || (node == first_ && command.kind == iscsi::RamCommand::Kind::reservation);
    };
    cluster.kill_mount(first_);
    cluster.start_mount(first_);
    REQUIRE(until(30s, [&] { return begun; }));
    cluster.on_csvd_sends = {};
    cluster.kill_csvd(first_);
  }
  void come_back() {
    for (std::size_t node = 0; node < cluster.size(); ++node) cluster.start_csvd(node);
    REQUIRE(until(120s, [&] { return all_direct(); }));
    REQUIRE(until(60s, [&] { return cluster.coordinator().has_value(); }));
  }
  /// As every node has it.
  void look_at_content() {
    for (std::size_t node = 0; node < cluster.size(); ++node) {
      auto found = nothing_yet<Expected<wire::Attr>>();
      REQUIRE(hears(node, found, find(mount(node), "under_way", found)));
      CHECK((**found)->inode() == (**made_)->attr.inode());
      auto opened = nothing_yet<Expected<Mount::Opened>>();
      REQUIRE(hears(node, opened, open(mount(node), file, opened)));
      handles[node] = (**opened)->handle;
      CHECK(shown(node, {1, 2}) == 2);
    }
    for (std::size_t node = 0; node < cluster.size(); ++node) {
      writes(node, 3 + node);
      CHECK(shown((node + 1) % 3, {2, 3, 4, 5}) == 3 + node);
    }
  }
  void end() {
    std::size_t left = cluster.size();
    for (std::size_t node = 0; node < cluster.size(); ++node)
      cluster.mount(node)->end([&left] { --left; });
    REQUIRE(until(60s, [&] { return left == 0; }));
    // Whoever does not have it last, so that nobody takes it over again.
    for (std::size_t i = 0; i < cluster.size(); ++i) {
      auto has = cluster.coordinator();
      auto node = (has.value_or(0) + 1 + i) % cluster.size();
      bool stopped = false;
      cluster.csvd(node)->stop_volume([&stopped] { stopped = true; });
      REQUIRE(until(60s, [&] { return stopped; }));
    }
    for (std::size_t node = 0; node < cluster.size(); ++node) {
      cluster.kill_mount(node);
      cluster.kill_csvd(node);
    }
    auto report = cluster.check();
    REQUIRE(report);
    CHECK(report->problems.empty());
  }

  Deed deed_;
  std::size_t first_ = 0, taker_ = 0, third_ = 0;
  Heard<Expected<std::uint32_t>> written_ = nothing_yet<Expected<std::uint32_t>>();
  Heard<Expected<Mount::Opened>> made_ = nothing_yet<Expected<Mount::Opened>>();
};

/// After how many commands the deed was done on each kind of target, having been harmed after each.
std::uint64_t play_all(Deed deed, Harm harm) {
  auto least = ~std::uint64_t{0};
  for (const auto& disk : {iscsi::RamDiskOptions{}, iscsi::RamDiskOptions::like_tgt(),
                           iscsi::RamDiskOptions::like_lio()}) {
    CAPTURE(disk.preempt_and_abort);
    CAPTURE(disk.zombies);
    for (std::uint64_t n = 1;; n += CSV_SIM_STEPS) {
      CAPTURE(n);
      Steps steps{disk, deed};
      bool harmed = steps.play(harm, n);
      steps.all_is_well();
      if (harmed) continue;
      least = std::min(least, n);
      break;
    }
  }
  return least;
}

}  // namespace

TEST_CASE("steps: a takeover that ends after any of its commands is completed by another node") {
  CHECK(play_all(Deed::takeover, Harm::killed) > 30);
}

TEST_CASE("steps: one that stands still after any of its commands changes nothing afterwards") {
  CHECK(play_all(Deed::takeover, Harm::stands_still) > 30);
}

TEST_CASE("steps: a volume that is given up goes on, whichever command its node ends after") {
  CHECK(play_all(Deed::closing, Harm::killed) > 3);
}

TEST_CASE("steps: a volume that is given up goes on, wherever its node stands still meanwhile") {
  CHECK(play_all(Deed::closing, Harm::stands_still) > 3);
}

TEST_CASE(
    "steps: that a takeover goes on after it stood still, and nothing stops it, is found out") {
  for (auto deed : {Deed::takeover, Deed::closing}) {
    std::string found;
    for (std::uint64_t n = 1; found.empty(); ++n) {
      Steps steps{{}, deed, true};
      if (!steps.play(Harm::stands_still, n)) break;
      found = steps.violation;
    }
    CAPTURE(found);
    CHECK(found.starts_with("one writer of metadata: "));
  }
}
