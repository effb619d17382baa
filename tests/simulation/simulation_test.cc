#include "tests/simulation/simulation.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>

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

/// Which lives are to show that something is broken.
struct Lives {
  std::uint64_t most = 4, first = 1;
};

/// One of these lives is judged a violation that says one of `words` where something is broken, and
/// the same ones are well where it is not.
void bites(const Plan& plan, const std::function<void(Plan&)>& break_it,
           std::initializer_list<std::string_view> words, Lives lives = {}) {
  be_quiet();
  auto broken = plan;
  break_it(broken);
  for (auto seed = lives.first; seed < lives.first + lives.most; ++seed) {
    play(seed, plan);
    auto violation = simulate(seed, broken).violation;
    if (violation.empty()) continue;
    INFO("seed ", seed, ": ", violation);
    CHECK(std::any_of(words.begin(), words.end(),
                      [&](auto each) { return violation.find(each) != std::string::npos; }));
    return;
  }
  FAIL_CHECK("nothing was found out in ", lives.most, " lives");
}

// What judges say.
constexpr std::string_view kContent = ", could show ", kLogs = " is not what was written",
                           kRecords = ": no record begins at ", kNames = "; expected ";

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
    CHECK(result.counts.anew == 0);
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

// ---------------------------------------------------------------------------- the judges bite

TEST_CASE("simulation: a storage that loses an acknowledged write is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  bites(plan, [](Plan& with) { with.lie_in = 300; }, {kContent, kLogs, kRecords});
}

TEST_CASE("simulation: a recall that the mount never hears of is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  bites(plan, [](Plan& with) { with.broken.forgery.answer_recalls = true; }, {kContent});
}

TEST_CASE("simulation: a kernel that keeps pages of mappings which it was to drop is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  plan.mappings = true;
  bites(plan, [](Plan& with) { with.broken.kernels_keep_pages = true; }, {kContent});
}

TEST_CASE("simulation: names that a mount goes on watching after they changed are found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  bites(plan, [](Plan& with) { with.broken.forgery.answer_unwatches = true; }, {kNames});
}

TEST_CASE("simulation: old data that shows where zeros should be is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  bites(plan, [](Plan& with) { with.broken.zeros_not_made = true; }, {kContent});
}

TEST_CASE("simulation: blocks that are given out before their UNMAP has ended are found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  bites(plan, [](Plan& with) { with.broken.unmaps_not_awaited = true; }, {kContent}, {.most = 8});
}

TEST_CASE("simulation: a former coordinator that goes on writing metadata is found out") {
  auto plan = Plan::calm();
  plan.isolate = true;
  plan.length = 8s;
  bites(plan, [](Plan& with) { with.broken.unfenced = true; }, {"one writer of metadata: "},
        {.first = 50});
}

TEST_CASE("simulation: a request that takes effect twice is found out") {
  auto plan = Plan::calm();
  plan.length = 5s;
  bites(plan, [](Plan& with) { with.broken.forgery.double_appends = true; }, {" stands twice"});
}

TEST_CASE("simulation: a request that is not done as it was asked is found out") {
  using Misheard = Network::Forgery::Misheard;
  auto plan = Plan::calm();
  plan.length = 5s;
  Misheard misheard{};
  std::string_view word = kNames;
  SUBCASE("owners") { misheard = Misheard::owners; }
  SUBCASE("times") { misheard = Misheard::times; }
  SUBCASE("files without names") { misheard = Misheard::nameless; }
  SUBCASE("devices") { misheard = Misheard::devices; }
  SUBCASE("access control lists") { misheard = Misheard::access_lists; }
  SUBCASE("where a listing goes on") { misheard = Misheard::cookies; }
  SUBCASE("where data and holes are") {
    misheard = Misheard::seeks;
    word = " are a hole, could show ";
  }
  SUBCASE("free space") {
    misheard = Misheard::space;
    word = "everything was removed, ";
  }
  bites(plan, [&](Plan& with) { with.broken.forgery.misheard = misheard; }, {word, kNames});
}

TEST_CASE("simulation: a new coordinator that is not told of the locks is found out") {
  Plan plan;
  bites(plan, [](Plan& with) { with.broken.forgery.hide_locks = true; }, {" got "}, {.most = 24});
}

TEST_CASE("simulation: a flush that failed, and is answered as if it had not, is found out") {
  auto plan = Plan::calm();
  plan.length = 8s;
  plan.fail_flushes = true;
  bites(plan, [](Plan& with) { with.broken.flushes_lie = true; }, {kContent}, {.most = 12});
}

TEST_CASE("simulation: a target that lost its cache, and nobody who is told, is found out") {
  auto plan = Plan::calm();
  plan.lose_power = true;
  // Rare: nearly everything is flushed for somebody else's sake within a moment.
  bites(plan, [](Plan& with) { with.broken.forgery.hide_losses = true; }, {kContent},
        {.most = 160, .first = 20});
}
