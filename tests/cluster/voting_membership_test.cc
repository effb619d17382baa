#include "coordinator/cluster/voting_membership.h"

#include <doctest/doctest.h>

#include "coordinator/protocol/group.pb.h"
#include "coordinator/protocol/memory_transport.h"
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

struct QuickStore final : ConfigurationStore {
  explicit QuickStore(Loop& its_loop) : loop{&its_loop} {}
  void save(const Kept&, Function<void(Expected<void>)> done) override {
    loop->post([done = std::move(done)]() mutable { done({}); });
  }
  Loop* loop;
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
  bed.with.volumes = [] { return std::vector<VotingMembership::LocalVolume>{{"v"}, {"w"}}; };
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
  bed.loop.run_for(1min);
  CHECK(!membership.served("v"));
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
