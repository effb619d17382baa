#include "coordinator/cluster/voting_membership.h"

#include <doctest/doctest.h>

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
