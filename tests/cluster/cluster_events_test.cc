#include "coordinator/cluster/cluster_events.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>

#include "csvfs/base/events.h"

using namespace csv;
using namespace csv::cluster;

namespace {

NodeId id(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }

/// A cluster of three, as one of them sees it, and the events that were told since it was asked
/// last: "kind volume: text (cause)".
struct Bed {
  Bed() : path{"/tmp/csvfs-events-test-" + std::to_string(::getpid())} {
    std::filesystem::remove(path);
    REQUIRE(events::open("test", path));
    configuration.tag = {0, 1, 0};
    configuration.cluster = 1;
    configuration.name = "c";
    for (int i = 1; i <= 3; ++i) {
      configuration.nodes[id(i)] = {"n" + std::to_string(i), "a:" + std::to_string(i)};
      configuration.ballot.now.nodes[id(i)] = 1;
      sight.members.push_back(id(i));
      sight.nodes.push_back(id(i));
    }
    configuration.volumes["v"].coordinator = id(1);
    sight.configuration = &configuration;
    sight.steward = true;
  }
  ~Bed() {
    events::close();
    std::filesystem::remove(path);
  }
  Bed(const Bed&) = delete;
  Bed& operator=(const Bed&) = delete;

  std::vector<std::string> look(Replica::State state, std::string reason = {}) {
    sight.state = state;
    sight.reason = std::move(reason);
    told.look(sight);
    return news();
  }
  std::vector<std::string> news() {
    auto ring = events::Ring::read_only(path);
    REQUIRE(ring);
    std::vector<std::string> out;
    for (const auto& each : (*ring)->after(seen)) {
      out.push_back(each.what + (each.volume.empty() ? "" : " " + each.volume) + ": " + each.text +
                    (each.cause.empty() ? "" : " (" + each.cause + ")"));
      seen = each.order;
    }
    return out;
  }
  void leave(int node) {
    std::erase(sight.members, id(node));
    std::erase(sight.nodes, id(node));
  }
  Configuration& change() {
    ++configuration.tag.sequence;
    return configuration;
  }

  std::string path;
  Configuration configuration;
  Sight sight;
  ClusterEvents told;
  std::uint64_t seen = 0;
};

using List = std::vector<std::string>;
using State = Replica::State;

}  // namespace

TEST_CASE("cluster events: nothing happens to a node that belongs to no cluster") {
  Bed bed;
  bed.sight.configuration = nullptr;
  CHECK(bed.look(State::lost, "nothing heard").empty());
  CHECK(bed.look(State::minority, "csvctl cluster create makes one").empty());
}

TEST_CASE("cluster events: a node is told to prevent a quorum, and counts again") {
  Bed bed;
  bed.sight.prevents = true;
  CHECK(bed.look(State::minority, "told so") ==
        List{"quorum: waiting for a quorum (told so)",
             "quorum: this node brings no cluster about until it has joined one: it was told to "
             "prevent a quorum"});
  CHECK(bed.look(State::minority, "told so").empty());
  SUBCASE("by command") {
    bed.sight.prevents = false;
    CHECK(bed.look(State::minority, "alone") ==
          List{"quorum: this node counts as ever again, by command"});
  }
  SUBCASE("as it has joined one") {
    CHECK(bed.look(State::formed) ==
          List{"quorum: quorum is back: the cluster goes on (here: n1, n2, n3)"});
    bed.sight.prevents = false;
    CHECK(bed.look(State::formed) ==
          List{"quorum: this node counts as ever again: it has joined a cluster that has formed "
               "(it had been told to prevent a quorum)"});
  }
}

TEST_CASE("cluster events: quorum, once a transition") {
  Bed bed;
  CHECK(bed.look(State::lost, "nothing heard").empty());
  CHECK(bed.look(State::greeting).empty());
  CHECK(bed.look(State::formed) == List{"quorum: the cluster is quorate (here: n1, n2, n3)"});
  CHECK(bed.look(State::formed).empty());
  // A change of members that is over soon is none.
  CHECK(bed.look(State::greeting).empty());
  CHECK(bed.look(State::forming).empty());
  CHECK(bed.look(State::formed).empty());
  bed.leave(2);
  bed.leave(3);
  CHECK(bed.look(State::greeting).empty());
  CHECK(bed.look(State::minority, "the nodes 1 are no majority") ==
        List{"quorum: no quorum: what is coordinated or mounted here waits (the nodes 1 are no "
             "majority)",
             "node: node 2 (n2) has left the cluster (its corosync is not reached)",
             "node: node 3 (n3) has left the cluster (its corosync is not reached)"});
  CHECK(bed.look(State::minority, "another reason").empty());
  CHECK(bed.look(State::lost, "corosync hangs").empty());
  bed.sight.members = bed.sight.nodes = {id(1), id(2)};
  CHECK(bed.look(State::formed) ==
        List{"quorum: quorum is back: the cluster goes on (here: n1, n2)",
             "node: node 2 (n2) has joined the cluster"});
}

TEST_CASE("cluster events: a node that starts without a quorum, or without its engine, says so") {
  Bed bed;
  CHECK(bed.look(State::lost, "nothing heard").empty());
  CHECK(bed.look(State::lost, "corosync does not run") ==
        List{"quorum: waiting for a quorum (corosync does not run)"});
  CHECK(bed.look(State::minority, "alone").empty());
}

TEST_CASE("cluster events: a forced quorum, also where it is the first that is seen") {
  Bed bed;
  bed.sight.members = {id(1)};
  bed.look(State::minority, "alone");
  bed.configuration.tag = {1, 2, 0};
  CHECK(bed.look(State::formed) ==
        List{"quorum: quorum is back: the cluster goes on (here: n1)",
             "quorum: a quorum was forced by an administrator (here: n1)"});
  CHECK(bed.look(State::formed).empty());
}

TEST_CASE("cluster events: a csvd that goes while its machine stays") {
  Bed bed;
  bed.look(State::formed);
  std::erase(bed.sight.members, id(2));
  CHECK(bed.look(State::formed) ==
        List{"node: node 2 (n2) has left the cluster (its csvd has gone; its corosync is there)"});
}

TEST_CASE("cluster events: votes, told when their change is at its end") {
  Bed bed;
  bed.look(State::formed);
  auto& ballot = bed.change().ballot;
  ballot.before = ballot.now;
  ballot.now.nodes[id(3)] = 0;
  CHECK(bed.look(State::formed).empty());
  bed.change().ballot.before.reset();
  CHECK(bed.look(State::formed) == List{"votes: those that count: n1, n2 (here: n1, n2, n3)"});
  bed.change().ballot.now.witness = 1;
  CHECK(bed.look(State::formed) ==
        List{"votes: those that count: n1, n2, the witness (here: n1, n2, n3)"});
}

TEST_CASE("cluster events: where volumes go, and why as far as is known here") {
  Bed bed;
  bed.look(State::formed);
  bed.told.because("v", "node 1 has no path to it");
  bed.change().volumes["v"].coordinator = id(2);
  CHECK(bed.look(State::formed) ==
        List{"coordinator v: the cluster gives it to node 2 (n2) (node 1 has no path to it)"});
  bed.change().nodes[id(2)].state = NodeState::drained;
  CHECK(bed.look(State::formed) == List{"cluster: node 2 (n2) is drained"});
  bed.change().volumes["v"].coordinator = id(3);
  CHECK(bed.look(State::formed) ==
        List{"coordinator v: the cluster gives it to node 3 (n3) (n2 is drained)"});
  bed.leave(3);
  bed.look(State::formed);
  bed.told.because("v", "never mind");
  bed.told.because("v", "");
  bed.change().volumes["v"].coordinator = NodeId{};
  CHECK(bed.look(State::formed) == List{"coordinator v: no node can coordinate it (n3 is away)"});
}

TEST_CASE("cluster events: the witness is lost only after it was had, and told by who asks it") {
  Bed bed;
  bed.configuration.witness = {WitnessKind::disk, "/dev/w"};
  bed.look(State::formed);
  bed.sight.witness_answers = true;
  CHECK(bed.look(State::formed).empty());
  bed.sight.witness_answers = false;
  CHECK(bed.look(State::formed) == List{"witness: the witness does not answer (/dev/w)"});
  CHECK(bed.look(State::formed).empty());
  bed.sight.witness_answers = true;
  CHECK(bed.look(State::formed) == List{"witness: the witness answers again (/dev/w)"});
  bed.sight.steward = false;
  bed.sight.witness_answers = false;
  CHECK(bed.look(State::formed).empty());
}

TEST_CASE("cluster events: a node that is taken out is named by its number") {
  Bed bed;
  bed.look(State::formed);
  take_out(bed.change(), id(1));
  CHECK(bed.look(State::formed) ==
        List{"cluster: node 1 (n1) is taken out of the cluster",
             "coordinator v: no node can coordinate it (node 1 was taken out)"});
}
