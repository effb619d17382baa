#include <utility>

#include "tests/simulation/simulation.h"
#include "tests/simulation/stage.h"

// Two halves and a witness, played by hand: the side that has it goes on, the other does not, and
// who has missed something waits for those who have not. That it would be seen if not is shown with
// witnesses that lie.

using namespace csv;
using namespace csv::sim;
using namespace csv::sim::stage;
using namespace std::chrono_literals;

namespace {

ClusterOptions with_witness(std::size_t nodes, cluster::WitnessKind kind, bool only = false) {
  auto with = three_nodes(true);
  with.nodes = nodes;
  with.witness.kind = kind;
  with.witness.only = only;
  with.witness.disk = iscsi::RamDiskOptions::like_tgt();
  return with;
}

bool formed(Cluster& cluster, std::size_t node) {
  auto* csvd = cluster.csvd(node);
  return csvd != nullptr &&
         csvd->membership()->replica().state() == cluster::Replica::State::formed;
}

bool leased(Cluster& cluster, std::size_t node) {
  auto* csvd = cluster.csvd(node);
  return csvd != nullptr && csvd->membership()->open_until() > csvd->process().loop->now();
}

/// An administrator's change, on a node that goes on.
void change(Stage& stage, std::size_t node, cluster::Replica::Change what) {
  auto result = std::make_shared<std::optional<Expected<void>>>();
  auto* csvd = stage.cluster.csvd(node);
  TaskScope scope;
  csvd->process().loop->enter([&] {
    scope.spawn([](cluster::Replica& replica, cluster::Replica::Change asked,
                   std::shared_ptr<std::optional<Expected<void>>> told) -> Task<void> {
      auto task = replica.propose(std::move(asked), 20s);
      auto done = co_await task;
      told->emplace(done);
    }(csvd->membership()->replica(), std::move(what), result));
  });
  REQUIRE(stage.until(30s, [&] { return result->has_value(); }));
  REQUIRE(**result);
}

/// All votes are as they should be with everybody there.
void settle(Stage& stage) {
  REQUIRE(stage.until(30s, [&] {
    const auto* now = stage.cluster.csvd(0)->membership()->replica().configuration();
    return now != nullptr && !now->ballot.before && now->ballot.now.witness > 0;
  }));
  stage.pass(2s);
}

}  // namespace

TEST_CASE("witness: of two halves exactly one goes on, and comes back together with the other") {
  std::size_t nodes = 2;
  auto kind = cluster::WitnessKind::disk;
  bool only = false;
  SUBCASE("two nodes and a disk") {}
  SUBCASE("two nodes and a disk that decides alone") { only = true; }
  SUBCASE("two nodes and a share") { kind = cluster::WitnessKind::share; }
  SUBCASE("four nodes and a disk") { nodes = 4; }
  SUBCASE("four nodes and a share") {
    nodes = 4;
    kind = cluster::WitnessKind::share;
  }
  Stage stage{with_witness(nodes, kind, only)};
  settle(stage);
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    for (std::size_t one = 0; one < nodes / 2; ++one)
      for (auto other = nodes / 2; other < nodes; ++other) stage.part(one, other);
    stage.pass(12s);
    int sides = 0;
    for (auto first : {std::size_t{0}, nodes / 2}) {
      sides += leased(stage.cluster, first);
      CHECK(leased(stage.cluster, first) == leased(stage.cluster, first + nodes / 2 - 1));
      CHECK(leased(stage.cluster, first) == formed(stage.cluster, first));
    }
    CHECK(sides == 1);
    for (std::size_t one = 0; one < nodes; ++one)
      for (std::size_t other = 0; other < one; ++other) stage.join(one, other);
    CHECK(stage.until(30s, [&] {
      for (std::size_t node = 0; node < nodes; ++node)
        if (!leased(stage.cluster, node)) return false;
      return true;
    }));
    stage.pass(5s);
  }
  CHECK(stage.cluster.sides.by_witness() > 0);
  CHECK(stage.violation == "");
}

TEST_CASE("witness: who was away while the others changed something does not go on without them") {
  auto kind = cluster::WitnessKind::disk;
  bool forgets = false;
  SUBCASE("a disk") {}
  SUBCASE("a share") { kind = cluster::WitnessKind::share; }
  SUBCASE("a share that forgets, which is found out") {
    kind = cluster::WitnessKind::share;
    forgets = true;
  }
  auto with = with_witness(2, kind);
  with.broken.witness.forgets = forgets;
  Stage stage{std::move(with)};
  settle(stage);
  stage.cluster.power_off(1);
  REQUIRE(stage.until(20s, [&] { return formed(stage.cluster, 0); }));
  stage.pass(5s);
  change(stage, 0, [](cluster::Configuration& next) -> Expected<void> {
    ++next.volumes["another"].turn;
    return {};
  });
  stage.cluster.power_off(0);
  stage.pass(1s);
  stage.cluster.power_on(1);
  stage.pass(20s);
  // The last that was there has all votes.
  CHECK(formed(stage.cluster, 1) == forgets);
  CHECK((stage.violation.find("no two sides") == 0) == forgets);
  if (forgets) return;
  stage.cluster.power_on(0);
  REQUIRE(stage.until(30s, [&] { return leased(stage.cluster, 0) && leased(stage.cluster, 1); }));
  for (std::size_t node = 0; node < 2; ++node) {
    const auto& now = *stage.cluster.csvd(node)->membership()->replica().configuration();
    CHECK(now.volumes.count("another") == 1);
  }
  CHECK(stage.violation == "");
}

TEST_CASE("witness: one that says yes to both halves is found out") {
  auto with = with_witness(2, cluster::WitnessKind::disk);
  with.broken.witness.held_by_all = true;
  Stage stage{std::move(with)};
  settle(stage);
  stage.part(0, 1);
  stage.pass(12s);
  CHECK(stage.violation.find("no two sides") == 0);
}

TEST_CASE("witness: a former node whose csvd runs on keeps nobody from it") {
  Stage stage{with_witness(3, cluster::WitnessKind::disk, true)};
  settle(stage);
  stage.part(0, 2);
  stage.part(1, 2);
  REQUIRE(stage.until(20s, [&] { return leased(stage.cluster, 0) && !leased(stage.cluster, 2); }));
  change(stage, 0, [](cluster::Configuration& next) -> Expected<void> {
    next.nodes.erase(NodeId{3});
    return {};
  });
  stage.pass(5s);
  auto& place = stage.cluster.witness;
  auto reach = [&](std::size_t node, bool yes) {
    place.set_reachable(Cluster::id(node), Cluster::initiator(node), yes);
  };
  // The others lose it for longer than a hold is worth.
  for (std::size_t node : {0, 1}) reach(node, false);
  stage.pass(10s);
  // By what it knows it might take it. But it looks first, and the witness knows that it is out.
  CHECK(stage.cluster.csvd(2)->membership()->witness()->holder() != NodeId{3});
  CHECK_FALSE(leased(stage.cluster, 2));
  for (std::size_t node : {0, 1}) reach(node, true);
  CHECK(stage.until(8s, [&] { return leased(stage.cluster, 0) && leased(stage.cluster, 1); }));
  bool always = !stage.until(60s, [&] {
    return formed(stage.cluster, 2) || leased(stage.cluster, 2) || !leased(stage.cluster, 0) ||
           !leased(stage.cluster, 1);
  });
  CHECK(always);
  change(stage, 0, [](cluster::Configuration& next) -> Expected<void> {
    ++next.volumes["another"].turn;
    return {};
  });
  CHECK(stage.violation == "");
}

TEST_CASE("sides: who comes over from those who go on keeps nobody alive whom they left behind") {
  auto with = three_nodes(true);
  with.nodes = 5;
  Stage stage{std::move(with)};
  stage.pass(5s);
  // The engine's network alone falls apart: beats go on between all.
  auto part = [&stage](std::vector<std::size_t> ones, std::vector<std::size_t> others, bool hear) {
    auto& group = stage.cluster.group;
    for (auto one : ones)
      for (auto other : others)
        hear ? group.join(Cluster::id(one), Cluster::id(other))
             : group.part(Cluster::id(one), Cluster::id(other));
  };
  part({0, 4}, {1, 2, 3}, false);
  REQUIRE(stage.until(10s, [&] {
    const auto& ballot = stage.cluster.csvd(2)->membership()->replica().configuration()->ballot;
    return ballot.now.total() == 3 && !ballot.before;
  }));
  part({2}, {1, 3}, false);
  part({2}, {0, 4}, true);
  stage.pass(5s);
  CHECK(stage.violation == "");
}
