#include <set>

#include "tests/simulation/simulation.h"
#include "tests/simulation/stage.h"

// Several volumes of one cluster: each has a coordinator of its own, and what happens to one
// happens to that one only.

using namespace csv;
using namespace csv::sim;
using namespace csv::sim::stage;
using namespace std::chrono_literals;

namespace {

ClusterOptions several(std::size_t volumes) {
  auto with = three_nodes(true);
  with.volumes = volumes;
  return with;
}

bool all_served(Stage& stage) {
  for (std::size_t volume = 0; volume < stage.cluster.volumes(); ++volume)
    if (!stage.cluster.coordinator(volume)) return false;
  return true;
}

std::size_t coordinated(Cluster& cluster, std::size_t node) {
  std::size_t count = 0;
  for (std::size_t volume = 0; volume < cluster.volumes(); ++volume)
    if (cluster.coordinator(volume) == node) ++count;
  return count;
}

/// That a node whose part it is says so, and how far it got.
std::pair<std::optional<std::size_t>, std::uint64_t> tenure(Cluster& cluster, std::size_t volume) {
  auto who = cluster.coordinator(volume);
  return {who, who ? raw(cluster.csvd(*who)->service(volume)->epoch()) : 0};
}

}  // namespace

TEST_CASE("volumes: they spread over the nodes, and over those that are left") {
  Stage stage{several(3)};
  CHECK(stage.until(60s, [&] {
    for (std::size_t node = 0; node < 3; ++node)
      if (coordinated(stage.cluster, node) != 1) return false;
    return true;
  }));
  stage.cluster.power_off(1);
  CHECK(stage.until(60s, [&] {
    return all_served(stage) && coordinated(stage.cluster, 1) == 0 &&
           coordinated(stage.cluster, 0) + coordinated(stage.cluster, 2) == 3;
  }));
  stage.cluster.power_on(1);
  // Back to where it was even, when nothing has changed for a while.
  CHECK(stage.until(120s, [&] { return coordinated(stage.cluster, 1) == 1; }));
  CHECK(stage.violation == "");
}

TEST_CASE("volumes: who loses the path to one LUN gives up that volume, and no other") {
  Stage stage{several(4)};
  REQUIRE(stage.until(60s, [&] { return all_served(stage); }));
  // One node has two of four.
  std::size_t node = 0;
  REQUIRE(stage.until(60s, [&] {
    for (node = 0; node < 3; ++node)
      if (coordinated(stage.cluster, node) >= 2) return true;
    return false;
  }));
  stage.pass(8s);
  std::vector<std::size_t> its;
  for (std::size_t volume = 0; volume < 4; ++volume)
    if (stage.cluster.coordinator(volume) == node) its.push_back(volume);
  REQUIRE(its.size() >= 2);
  auto lost = its.front();
  std::vector<std::pair<std::optional<std::size_t>, std::uint64_t>> before;
  for (std::size_t volume = 0; volume < 4; ++volume)
    before.push_back(tenure(stage.cluster, volume));
  stage.cluster.volume(lost).disk->set_reachable(Cluster::initiator(node), false);
  CHECK(stage.until(30s, [&] {
    auto who = stage.cluster.coordinator(lost);
    return who && *who != node;
  }));
  // The hold time keeps the others where they are.
  for (std::size_t volume = 0; volume < 4; ++volume) {
    CAPTURE(volume);
    CHECK((tenure(stage.cluster, volume) == before[volume]) == (volume != lost));
  }
  // Its programs go on, through the coordinator.
  auto& mount = stage.cluster.mount(node, lost)->mount();
  auto found = nothing_yet<Expected<wire::Attr>>();
  auto* csvfs = stage.cluster.mount(node, lost);
  csvfs->process().loop->enter([&] { csvfs->programs().spawn(find(mount, "nothing", found)); });
  CHECK(stage.until(30s, [&] { return found->has_value(); }));
  CHECK(stage.violation == "");
}

TEST_CASE("volumes: lives with several replay exactly, with votes and without") {
  be_quiet();
  for (bool voting : {false, true}) {
    CAPTURE(voting);
    Plan plan;
    plan.volumes = 3;
    plan.voting = voting;
    plan.length = 3s;
    auto first = simulate(7, plan), again = simulate(7, plan);
    CHECK(first.violation == "");
    CHECK(first.digest == again.digest);
    CHECK(first.events == again.events);
    CHECK(first.takeovers >= 3);
  }
}
