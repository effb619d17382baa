#include "coordinator/cluster/voting_membership.h"

#include <doctest/doctest.h>

#include <set>

#include "coordinator/protocol/group.pb.h"
#include "coordinator/protocol/memory_transport.h"
#include "tests/cluster/nodes.h"
#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::cluster;
using csv::fakes::ManualLoop;

namespace {

/// Has nothing to say yet, like one that has just been started.
struct SilentEngine final : Engine {
  void start(Handlers) override {}
  void multicast(std::string) override {}
  void vote_by(Verdict) override {}
  [[nodiscard]] Member self() const override { return {NodeId{1}, 1}; }
};

struct NoStore final : ConfigurationStore {
  void save(const Kept&, Function<void(Expected<void>)>) override {}
};

struct Bed {
  Bed() {
    with.loop = &loop;
    with.transport = &network;
    with.engine = &engine;
    with.store = &store;
    with.node = NodeId{1};
    with.endpoint = "node1";
    with.incarnation = 1;
    with.volumes = [] { return std::vector<VotingMembership::LocalVolume>{}; };
    with.changed = [] {};
  }
  ManualLoop loop;
  protocol::MemoryTransport network{loop};
  SilentEngine engine;
  NoStore store;
  VotingMembership::Surroundings with;
};

}  // namespace

TEST_CASE("voting membership: a csvd that starts again knows the peers it had before it forms") {
  Bed bed;
  SUBCASE("and none are written down for it") {}
  SUBCASE("and others are written down for it") { bed.with.peers = {{NodeId{7}, "old", "old"}}; }
  Configuration first;
  first.cluster = 4711;
  first.tag = {0, 65, 1};
  for (int i = 1; i <= 3; ++i) {
    auto name = "node" + std::to_string(i);
    first.nodes[NodeId{static_cast<std::uint8_t>(i)}] = {name, name};
    first.ballot.now.nodes[NodeId{static_cast<std::uint8_t>(i)}] = 1;
  }
  bed.with.kept.configuration = first;
  VotingMembership membership{std::move(bed.with)};
  bed.loop.run_for(1s);
  auto peers = membership.peers();
  REQUIRE(peers.size() == 2);
  CHECK(peers[0].id == NodeId{2});
  CHECK(peers[1].id == NodeId{3});
}

TEST_CASE("voting membership: a node without a configuration reaches for whom it is told of") {
  Bed bed;
  bed.with.peers = {{NodeId{7}, "node7", "node7"}};
  VotingMembership membership{std::move(bed.with)};
  bed.loop.run_for(1s);
  REQUIRE(membership.peers().size() == 1);
  CHECK(membership.peers()[0].id == NodeId{7});
}

namespace {

/// Alone in its group: what is said is heard.
struct LoneEngine final : Engine {
  explicit LoneEngine(Loop& its_loop) : loop{&its_loop} {}
  void start(Handlers its_handlers) override {
    handlers = std::move(its_handlers);
    loop->post([this] { handlers.view({1, {NodeId{1}}, {self()}}); });
  }
  void multicast(std::string message) override {
    wire::GroupMessage said;
    if (said.ParseFromString(message) && said.has_proposal() && !said.proposal().forms() &&
        before_change)
      std::exchange(before_change, nullptr)();
    loop->post([this, message = std::move(message)] { handlers.deliver(self(), message); });
  }
  void vote_by(Verdict) override {}
  [[nodiscard]] Member self() const override { return {NodeId{1}, 1}; }
  Loop* loop;
  Handlers handlers;
  std::function<void()> before_change;  ///< Once, before a change is said.
};

Task<void> set(Replica& replica, bool stopped) {
  Replica::Change change = [stopped](Configuration& next) -> Expected<void> {
    set_stopped(next.volumes.at("v"), stopped);
    return {};
  };
  auto task = replica.propose(std::move(change), 5s);
  (void)co_await task;
}

Task<void> forget(Replica& replica, std::optional<Expected<void>>& result) {
  Replica::Change change = [](Configuration& next) -> Expected<void> {
    next.volumes.erase("v");
    return {};
  };
  auto task = replica.propose(std::move(change), 5s);
  result = co_await task;
}

}  // namespace

TEST_CASE("voting membership: a volume that is stopped is given to nobody, and its gate closes") {
  Bed bed;
  LoneEngine engine{bed.loop};
  QuickStore store{bed.loop};
  bed.with.engine = &engine;
  bed.with.store = &store;
  std::vector<VotingMembership::LocalVolume> local{{"v"}, {"w"}};
  bed.with.volumes = [&local] { return local; };
  Configuration first;
  first.cluster = 4711;
  first.name = "lab";
  first.tag = {0, 65, 1};
  first.nodes[NodeId{1}] = {"node1", "node1"};
  first.ballot.now.nodes[NodeId{1}] = 1;
  first.volumes["v"];
  first.volumes["w"];
  bed.with.kept.configuration = first;
  VotingMembership membership{std::move(bed.with)};
  TaskScope tasks;
  auto coordinator = [&membership](const char* volume) {
    return membership.replica().configuration()->volumes.at(volume).coordinator;
  };
  bed.loop.run_for(10s);
  REQUIRE(coordinator("v") == NodeId{1});
  membership.coordinating("v", Epoch{7}, Key{9});
  bed.loop.run_for(1s);
  CHECK(membership.served("v"));
  CHECK(!membership.assigned("v")->stopped);
  CHECK(membership.open_until("v") == membership.open_until());

  tasks.spawn(set(membership.replica(), true));
  bed.loop.run_for(1s);
  CHECK(coordinator("v") == NodeId{});
  CHECK(membership.assigned("v")->stopped);
  CHECK(membership.assigned("v")->node == NodeId{});
  // It is being closed.
  CHECK(membership.served("v"));
  CHECK(membership.coordinator("v").has_value());
  auto gate = membership.open_until("v");
  membership.gave_up("v");
  bed.loop.run_for(1s);
  CHECK(!membership.served("v"));
  // Somebody who is cut off may have a lease still, and a mount its gate open.
  CHECK(!membership.closed("v"));
  bed.loop.run_for(2s);
  CHECK(membership.closed("v"));
  // An attempt that the stop came too late for.
  local[0].at_work = true;
  bed.loop.run_for(1min);
  CHECK(!membership.closed("v"));
  local[0].at_work = false;
  bed.loop.run_for(1s);
  CHECK(membership.closed("v"));
  CHECK(!membership.closed("w"));
  CHECK(!membership.coordinator("v").has_value());
  CHECK(coordinator("v") == NodeId{});
  CHECK(membership.open_until("v") == gate);
  CHECK(gate <= bed.loop.now());
  CHECK(coordinator("w") == NodeId{1});
  CHECK(membership.open_until("w") > bed.loop.now());

  tasks.spawn(set(membership.replica(), false));
  bed.loop.run_for(10s);
  CHECK(coordinator("v") == NodeId{1});
  CHECK(!membership.assigned("v")->stopped);
  CHECK(membership.open_until("v") == membership.open_until());
  CHECK(!membership.closed("v"));
}

TEST_CASE("voting membership: a volume that is forgotten while it is given to a node stays so") {
  Bed bed;
  LoneEngine engine{bed.loop};
  QuickStore store{bed.loop};
  std::vector<VotingMembership::LocalVolume> local{{"v"}};
  bed.with.engine = &engine;
  bed.with.store = &store;
  bed.with.volumes = [&local] { return local; };
  Configuration first;
  first.cluster = 4711;
  first.name = "lab";
  first.tag = {0, 65, 1};
  first.nodes[NodeId{1}] = {"node1", "node1"};
  first.ballot.now.nodes[NodeId{1}] = 1;
  first.volumes["v"];
  bed.with.kept.configuration = first;
  VotingMembership membership{std::move(bed.with)};
  std::optional<Expected<void>> forgotten;
  TaskScope tasks;
  engine.before_change = [&] {
    local.clear();
    tasks.spawn(forget(membership.replica(), forgotten));
  };
  bed.loop.run_for(10s);
  REQUIRE(forgotten);
  REQUIRE(bool(*forgotten));
  CHECK(membership.replica().configuration()->volumes.empty());
}

TEST_CASE(
    "voting membership: a node that gets through to nobody, though all reach it, is given "
    "no volumes") {
  Nodes nodes{3, {{2, 1}, {2, 3}}};
  for (int i : {1, 2, 3}) nodes.has(i, {"u", "v", "w", "x"});
  nodes.run_for(20s);
  CHECK(nodes.at(2).open_until() <= nodes.loop.now());
  REQUIRE(nodes.configuration(1).volumes.size() == 4);
  for (const auto* volume : {"u", "v", "w", "x"}) {
    CAPTURE(volume);
    CHECK(nodes.coordinator(1, volume) != NodeId{});
    CHECK(nodes.coordinator(1, volume) != Nodes::id(2));
  }
}

TEST_CASE(
    "voting membership: where the lowest gets through to nobody, another one places volumes") {
  Nodes nodes{4, {{1, 2}, {1, 3}, {1, 4}}};
  for (int i : {1, 2, 3, 4}) nodes.has(i, {"v", "w"});
  nodes.run_for(20s);
  REQUIRE(nodes.configuration(2).volumes.size() == 2);
  auto whose = nodes.coordinator(2, "v");
  REQUIRE(whose != NodeId{});
  REQUIRE(whose != Nodes::id(1));
  nodes.leave(static_cast<int>(raw(whose)));
  nodes.run_for(20s);
  int left = raw(whose) == 2 ? 3 : 2;
  CHECK(nodes.coordinator(left, "v") != whose);
  CHECK(nodes.coordinator(left, "v") != Nodes::id(1));
  CHECK(nodes.coordinator(left, "v") != NodeId{});
}

TEST_CASE("voting membership: where a takeover has failed is known to all, for a while") {
  Nodes nodes{3, {}};
  for (int i : {1, 2, 3}) nodes.has(i, {"v"});
  nodes.run_for(10s);
  CHECK(nodes.at(1).says_able("v", Nodes::id(3)));
  CHECK_FALSE(nodes.at(1).says_able("none", Nodes::id(3)));
  nodes.at(3).able("v", false);
  nodes.run_for(1s);
  CHECK_FALSE(nodes.at(1).says_able("v", Nodes::id(3)));
  nodes.run_for(40s);
  CHECK(nodes.at(1).says_able("v", Nodes::id(3)));
}

TEST_CASE(
    "voting membership: a pair that connects one way only does not change the votes for ever") {
  Nodes nodes{3, {}};
  nodes.run_for(10s);
  nodes.refused = {{2, 1}};
  nodes.run_for(20s);
  auto then = nodes.configuration(3).tag;
  nodes.run_for(20s);
  CHECK(nodes.configuration(3).tag == then);
  for (int i : {1, 3}) CHECK(nodes.at(i).open_until() > nodes.loop.now());
}

TEST_CASE("voting membership: of two that connect one way only, one places the volumes") {
  Nodes::Line line{1, 2};
  SUBCASE("the lower to the other") {}
  SUBCASE("the other to the lower") { line = {2, 1}; }
  Nodes nodes{2, {}};
  for (int i : {1, 2}) nodes.has(i, {"v", "w"});
  nodes.run_for(20s);
  nodes.refused = {line};
  nodes.run_for(20s);
  auto then = nodes.configuration(1).tag;
  nodes.run_for(20s);
  CHECK(nodes.configuration(1).tag == then);
  for (const auto* volume : {"v", "w"}) CHECK(nodes.coordinator(1, volume) == Nodes::id(1));
}

TEST_CASE(
    "voting membership: who stood still takes nobody for gone before it has listened for a while") {
  Nodes nodes{5, {}};
  nodes.has(2, {"v"});
  nodes.run_for(5s);
  for (int i : {1, 3, 4, 5}) nodes.has(i, {"v"});
  nodes.run_for(5s);
  REQUIRE(nodes.coordinator(1, "v") == Nodes::id(2));
  nodes.stand_still(1);
  nodes.run_for(3500ms);
  // It hears the others sooner than node 2, and is the one who places volumes again.
  nodes.stand_still(2);
  nodes.run_for(500ms);
  nodes.go_on(1);
  nodes.run_for(500ms);
  CHECK(nodes.at(1).open_until() > nodes.loop.now());
  nodes.go_on(2);
  nodes.run_for(10s);
  for (int i : {1, 2, 3}) {
    CAPTURE(i);
    CHECK(nodes.coordinator(i, "v") == Nodes::id(2));
  }
}

TEST_CASE("voting membership: who stood still counts nobody in that hung before") {
  Nodes nodes{3, {}};
  nodes.run_for(5s);
  for (int hangs : {2, 3}) {
    nodes.stand_still(hangs);
    nodes.run_for(5s);
  }
  // Alone it cannot give them votes, and would be left with a change that nobody else takes.
  REQUIRE(nodes.at(1).open_until() > nodes.loop.now());
  nodes.stand_still(1);
  nodes.run_for(2s);
  nodes.go_on(1);
  nodes.run_for(1s);
  for (int gone : {2, 3}) nodes.leave(gone);
  nodes.run_for(5s);
  CHECK(nodes.at(1).replica().state() == Replica::State::formed);
  CHECK(nodes.at(1).open_until() > nodes.loop.now());
}

TEST_CASE("voting membership: who stands still again and again judges in the end, too") {
  Nodes nodes{5, {}};
  nodes.has(2, {"v"});
  nodes.run_for(5s);
  for (int i : {1, 3, 4, 5}) nodes.has(i, {"v"});
  nodes.run_for(5s);
  REQUIRE(nodes.coordinator(1, "v") == Nodes::id(2));
  nodes.stand_still(2);
  for (int i = 0; i < 20 && nodes.coordinator(1, "v") == Nodes::id(2); ++i) {
    nodes.stand_still(1);
    nodes.run_for(1700ms);
    nodes.go_on(1);
    nodes.run_for(900ms);
  }
  CHECK(nodes.coordinator(1, "v") != Nodes::id(2));
}

namespace {

/// Those lines fail for a while, right after node 1 has stood still or not.
void check_votes_come_to_rest(int count, const std::set<Nodes::Line>& lines, bool stands_still) {
  CAPTURE(stands_still);
  Nodes nodes{count, {}};
  nodes.run_for(10s);
  auto before = nodes.configuration(3).tag;
  if (stands_still) {
    nodes.stand_still(1);
    nodes.run_for(4s);
    nodes.go_on(1);
  }
  nodes.refused = lines;
  nodes.run_for(15s);
  auto then = nodes.configuration(3).tag;
  // A change is two: a node that stood still loses its vote and has it back, and each node may lose
  // it once.
  CHECK(then.sequence - before.sequence <= 2 * static_cast<std::uint64_t>(count));
  nodes.run_for(15s);
  CHECK(nodes.configuration(3).tag == then);
  int stewards = 0;
  for (int i = 1; i <= count; ++i) {
    CAPTURE(i);
    if (nodes.at(i).replica().steward()) ++stewards;
    // Who has no vote because he is not heard may not get through to enough of those who have one.
    if (nodes.configuration(3).ballot.now.nodes.at(Nodes::id(i)) > 0)
      CHECK(nodes.at(i).open_until() > nodes.loop.now());
  }
  CHECK(stewards == 1);
  nodes.refused = {};
  nodes.run_for(15s);
  // Whoever was not heard has his vote again; no ties.
  const auto& configuration = nodes.configuration(3);
  CHECK(configuration.ballot.now.total() == static_cast<unsigned>(count - (count + 1) % 2));
  CHECK(!configuration.ballot.before);
  CHECK(nodes.at(1).replica().steward());
}

}  // namespace

TEST_CASE(
    "voting membership: whoever does not hear whom, votes change a few times, and all agree on who "
    "changes them") {
  int count = 5;
  std::set<Nodes::Line> lines;
  SUBCASE("the first to the second") { lines = {{1, 2}}; }
  SUBCASE("the second to the first") { lines = {{2, 1}}; }
  SUBCASE("two pairs") { lines = {{1, 2}, {3, 4}}; }
  SUBCASE("a chain") { lines = {{1, 2}, {2, 3}, {3, 4}, {4, 5}}; }
  SUBCASE("each of the lowest does not hear another one") { lines = {{1, 2}, {1, 3}, {2, 4}}; }
  SUBCASE("four nodes") {
    count = 4;
    lines = {{1, 2}};
  }
  for (bool stands_still : {false, true}) check_votes_come_to_rest(count, lines, stands_still);
}

TEST_CASE(
    "voting membership: where two do not hear each other, and another one hears both, nothing is "
    "taken from either") {
  Nodes nodes{5, {}};
  for (int i : {1, 2, 3, 4, 5}) nodes.has(i, {"t", "u", "v", "w", "x"});
  nodes.run_for(20s);
  auto before = nodes.configuration(3).tag;
  nodes.refused = {{1, 2}};
  nodes.run_for(20s);
  auto then = nodes.configuration(3).tag;
  nodes.run_for(20s);
  CHECK(nodes.configuration(3).tag == then);
  // It is one that hears both: neither has lost its vote, nor what it coordinated.
  CHECK(nodes.at(3).replica().steward());
  CHECK(then == before);
  CHECK(nodes.configuration(3).ballot.now.total() == 5);
}

namespace {

Task<void> change(Replica& replica, std::function<void(Configuration&)> how) {
  Replica::Change change = [how](Configuration& next) -> Expected<void> {
    how(next);
    return {};
  };
  auto task = replica.propose(std::move(change), 60s);
  (void)co_await task;
}

}  // namespace

TEST_CASE(
    "voting membership: while its lease runs a node lets in by what was in force, not by a change "
    "that no majority has taken") {
  Nodes nodes{3, {}};
  TaskScope tasks;
  auto third = Nodes::id(3);
  auto fence = [third](Configuration& next) {
    auto& node = next.nodes.at(third);
    node.fences += node.fenced ? 0 : 1;
    node.fenced = true;
  };
  auto unfence = [third](Configuration& next) { next.nodes.at(third).fenced = false; };
  auto evict = [third](Configuration& next) {
    if (next.nodes.contains(third)) take_out(next, third);
  };
  std::function<void(Configuration&)> how = fence;
  bool fenced_before = false, fenced_after = true, belongs_after = true;
  SUBCASE("a fence") {}
  SUBCASE("the end of a fence") {
    how = unfence;
    fenced_before = true;
    fenced_after = false;
  }
  SUBCASE("a node taken out") {
    how = evict;
    fenced_after = belongs_after = false;
  }
  nodes.run_for(5s);
  if (fenced_before) tasks.spawn(change(nodes.at(1).replica(), fence));
  nodes.run_for(5s);
  REQUIRE(nodes.at(1).fenced().contains(third) == fenced_before);
  for (int stopped : {2, 3}) nodes.stand_still(stopped);
  tasks.spawn(change(nodes.at(1).replica(), how));
  nodes.run_for(300ms);
  nodes.new_view();
  nodes.run_for(300ms);
  auto& at = nodes.at(1);
  REQUIRE(at.replica().state() != Replica::State::formed);
  REQUIRE(at.open_until() > nodes.loop.now());
  Configuration wanted = *at.replica().last_in_force();
  how(wanted);
  REQUIRE(nodes.configuration(1).nodes == wanted.nodes);  // on its disk
  CHECK(at.fenced().contains(third) == fenced_before);
  CHECK(at.fences(third) == (fenced_before ? 1 : 0));
  CHECK(at.belongs(third));
  for (int stopped : {2, 3}) nodes.go_on(stopped);
  nodes.run_for(10s);
  REQUIRE(at.replica().state() == Replica::State::formed);
  CHECK(at.fenced().contains(third) == fenced_after);
  CHECK(at.belongs(third) == belongs_after);
}
