#include "tests/simulation/simulation.h"

#include <doctest/doctest.h>

#include <string>

using namespace csv;
using namespace csv::sim;

// How many seeds: by build, so that which ones run never depends on how fast the machine is.
#ifndef CSV_SIM_SEEDS
#define CSV_SIM_SEEDS 8
#endif

namespace {

/// A violation says how to see it again.
Result play(std::uint64_t seed, const Plan& plan = {}) {
  be_quiet();
  auto result = simulate(seed, plan);
  INFO("csv_sim --seed ", seed, " (", result.setting, ")");
  CHECK(result.violation == "");
  return result;
}

/// The first of `most` seeds whose life is judged a violation, in words; or nothing.
std::string first_violation(const Plan& plan, std::uint64_t most, std::uint64_t first = 1) {
  be_quiet();
  for (auto seed = first; seed < first + most; ++seed) {
    auto result = simulate(seed, plan);
    if (!result.violation.empty()) return result.violation;
  }
  return "";
}

}  // namespace

TEST_CASE("simulation: a seed replays exactly, and another seed is another life") {
  Plan plan;
  plan.length = 8s;
  auto first = play(11, plan), again = play(11, plan), other = play(12, plan);
  CHECK(first.digest == again.digest);
  CHECK(first.events == again.events);
  CHECK(first.digest != other.digest);
  CHECK(first.faults > 0);
}

TEST_CASE("simulation: a seed of nodes that vote replays exactly, too") {
  Plan plan;
  plan.length = 8s;
  plan.voting = true;
  auto first = play(11, plan), again = play(11, plan);
  CHECK(first.digest == again.digest);
  CHECK(first.events == again.events);
}

TEST_CASE("simulation: nodes that vote go on by themselves, whatever fails") {
  Plan plan;
  plan.voting = true;
  std::uint64_t takeovers = 0;
  for (std::uint64_t seed = 500; seed < 500 + CSV_SIM_SEEDS / 2; ++seed)
    takeovers += play(seed, plan).takeovers;
  CHECK(takeovers > CSV_SIM_SEEDS);
}

TEST_CASE("simulation: without faults everything is done and nothing is in doubt") {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    auto plan = Plan::calm();
    plan.mappings = true;
    plan.length = 4s;
    auto result = play(seed, plan);
    CHECK(result.faults == 0);
    CHECK(result.takeovers == 1);
    CHECK(result.counts.operations > 500);
    CHECK(result.counts.loads > 20);
    CHECK(result.counts.stores > 20);
    CHECK(result.locks > 50);
    CHECK(result.counts.eio == 0);
    CHECK(result.counts.abandoned == 0);
    CHECK(!result.undecided);
    CHECK(result.mounts.direct_reads > 0);
    CHECK(result.mounts.direct_writes > 0);
    CHECK(result.mounts.redirected_writes > 0);
    CHECK(result.mounts.recalls > 0);
  }
}

TEST_CASE("simulation: clusters that are sabotaged lose nothing, invent nothing and come back") {
  Result sum;
  std::uint64_t undecided = 0;
  for (std::uint64_t seed = 100; seed < 100 + CSV_SIM_SEEDS; ++seed) {
    auto result = play(seed);
    CHECK(result.counts.operations > 100);
    CHECK(result.faults > 0);
    sum.takeovers += result.takeovers;
    sum.locks += result.locks;
    sum.counts.operations += result.counts.operations;
    sum.counts.eio += result.counts.eio;
    sum.counts.abandoned += result.counts.abandoned;
    sum.mounts.readmissions += result.mounts.readmissions;
    sum.mounts.direct_writes += result.mounts.direct_writes;
    undecided += result.undecided ? 1 : 0;
  }
  CHECK(sum.takeovers > 2 * CSV_SIM_SEEDS);
  CHECK(sum.counts.operations > 1000 * CSV_SIM_SEEDS);
  CHECK(sum.counts.abandoned > 0);
  CHECK(sum.locks > 10 * CSV_SIM_SEEDS);
  CHECK(sum.mounts.readmissions > 0);
  CHECK(sum.mounts.direct_writes > 0);
  // One that cannot be judged to the end shows less, and must stay rare.
  CHECK(undecided <= CSV_SIM_SEEDS / 8);
}

// ---------------------------------------------------------------------------- the judges bite

TEST_CASE("simulation: a storage that loses an acknowledged write is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  plan.lie_in = 300;
  CHECK(first_violation(plan, 4) != "");
}

TEST_CASE("simulation: a recall that the mount never hears of is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  plan.broken.forgery.answer_recalls = true;
  CHECK(first_violation(plan, 4) != "");
}

TEST_CASE("simulation: a kernel that keeps pages of mappings which it was to drop is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  plan.mappings = true;
  plan.broken.kernels_keep_pages = true;
  CHECK(first_violation(plan, 4) != "");
TEST_CASE("simulation: where all nodes lose the LUN for a while all wait, and nobody is fenced") {
  auto plan = Plan::calm();
  plan.lose_all_paths = true;
  plan.length = 12s;
  std::uint64_t readmissions = 0;
  for (bool voting : {false, true}) {
    plan.voting = voting;
    for (std::uint64_t seed = 700; seed < 703; ++seed) {
      auto result = play(seed, plan);
      CHECK(result.faults > 0);
      CHECK(result.counts.eio == 0);
      readmissions += result.mounts.readmissions;
    }
  }
  CHECK(readmissions > 0);
}

}

TEST_CASE("simulation: names that a mount goes on watching after they changed are found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  plan.broken.forgery.answer_unwatches = true;
  CHECK(first_violation(plan, 4) != "");
}

TEST_CASE("simulation: old data that shows where zeros should be is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  for (bool broken : {false, true}) {
    plan.broken.zeros_not_made = broken;
    CHECK((first_violation(plan, 4) != "") == broken);
  }
}

TEST_CASE("simulation: blocks that are given out before their UNMAP has ended are found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  for (bool broken : {false, true}) {
    plan.broken.unmaps_not_awaited = broken;
    CHECK((first_violation(plan, 8) != "") == broken);
  }
}

TEST_CASE("simulation: a former coordinator that goes on writing metadata is found out") {
  auto plan = Plan::calm();
  plan.isolate = true;
  plan.length = 8s;
  for (bool broken : {false, true}) {
    plan.broken.unfenced = broken;
    auto violation = first_violation(plan, 4, 50);
    INFO(violation);
    CHECK((violation.find("one writer of metadata") == 0) == broken);
    CHECK((violation != "") == broken);
  }
}

TEST_CASE("simulation: a request that takes effect twice is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  plan.broken.forgery.double_appends = true;
  CHECK(first_violation(plan, 4) != "");
}

TEST_CASE("simulation: a new coordinator that is not told of the locks is found out") {
  Plan plan;
  plan.broken.forgery.hide_locks = true;
  CHECK(first_violation(plan, 24) != "");
}

TEST_CASE("simulation: a flush that failed, and is answered as if it had not, is found out") {
  auto plan = Plan::calm();
  plan.length = 8s;
  plan.fail_flushes = true;
  for (bool broken : {false, true}) {
    plan.broken.flushes_lie = broken;
    CHECK((first_violation(plan, 12) != "") == broken);
  }
}

TEST_CASE("simulation: a target that lost its cache, and nobody who is told, is found out") {
  auto plan = Plan::calm();
  plan.lose_power = true;
  plan.broken.forgery.hide_losses = true;
  // Rare: nearly everything is flushed for somebody else's sake within a moment.
  CHECK(first_violation(plan, 160, 20) != "");
}
