#include <doctest/doctest.h>

#include <functional>
#include <map>
#include <set>
#include <vector>

#include "coordinator/cluster/standalone_membership.h"
#include "coordinator/protocol/first_message.h"
#include "coordinator/protocol/memory_transport.h"
#include "tests/fakes/certified.h"
#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::cluster;
using csv::fakes::ManualLoop;

namespace {

/// Which links (from, to) are cut: what is sent over one is lost, and nobody is told.
using Cuts = std::set<std::pair<int, int>>;

/// The connecting end of a link; loses what crosses a cut, in either direction.
class CuttableConnection final : public protocol::Connection {
 public:
  CuttableConnection(std::unique_ptr<protocol::Connection> inner, const Cuts& cuts, int from,
                     int to)
      : inner_{std::move(inner)}, cuts_{&cuts}, from_{from}, to_{to} {}
  void start(Function<void(protocol::Message)> on_message,
             Function<void(Error)> on_closed) override {
    inner_->start(
        [this, handler = std::move(on_message)](protocol::Message message) mutable {
          if (cuts_->count({to_, from_}) == 0) handler(std::move(message));
        },
        std::move(on_closed));
  }
  void send(protocol::Message message) override {
    if (cuts_->count({from_, to_}) == 0) inner_->send(std::move(message));
  }
  void close() override { inner_->close(); }
  [[nodiscard]] std::string peer() const override { return inner_->peer(); }
  [[nodiscard]] bool speaks_for(NodeId node) const override { return raw(node) == to_; }
  [[nodiscard]] std::size_t queued_bytes() const override { return inner_->queued_bytes(); }

 private:
  std::unique_ptr<protocol::Connection> inner_;
  const Cuts* cuts_;
  int from_, to_;
};

class CuttableTransport final : public protocol::Transport {
 public:
  CuttableTransport(protocol::Transport& inner, const Cuts& cuts, int node)
      : inner_{&inner}, cuts_{&cuts}, node_{node} {}
  void connect(NodeId node, const std::string& endpoint, protocol::Connected done) override {
    int to = endpoint.back() - '0';
    inner_->connect(
        node, endpoint,
        [cuts = cuts_, from = node_, to, done = std::move(done)](auto connected) mutable {
          if (!connected) return done(connected.error());
          if (cuts->count({from, to}) > 0) return done(Error{std::errc::timed_out, "cut"});
          done(std::unique_ptr<protocol::Connection>{
              std::make_unique<CuttableConnection>(*std::move(connected), *cuts, from, to)});
        });
  }
  Expected<std::unique_ptr<Listener>> listen(
      const std::string& endpoint,
      std::function<void(std::unique_ptr<protocol::Connection>)> accepted) override {
    return inner_->listen(endpoint, std::move(accepted));
  }

 private:
  protocol::Transport* inner_;
  const Cuts* cuts_;
  int node_;
};

std::string endpoint_of(int node) { return "node" + std::to_string(node); }

/// Nodes 1..n, each with its membership, on one manual clock.
struct Cluster {
  struct Node {
    std::unique_ptr<CuttableTransport> transport;
    std::unique_ptr<StandaloneMembership> membership;
    std::unique_ptr<protocol::FirstMessages> arrived;
    std::unique_ptr<protocol::Transport::Listener> listener;
    int changes = 0;
  };

  explicit Cluster(int n) : size{n} {
    for (int i = 1; i <= n; ++i) start(i);
  }
  void start(int number) {
    std::vector<StandaloneMembership::Peer> peers;
    for (int i = 1; i <= size; ++i)
      if (i != number)
        peers.push_back({NodeId{static_cast<std::uint8_t>(i)}, endpoint_of(i), endpoint_of(i)});
    auto& node = nodes[number];
    node.transport = std::make_unique<CuttableTransport>(network, cuts, number);
    node.membership = std::make_unique<StandaloneMembership>(
        StandaloneMembership::Surroundings{.loop = &loop,
                                           .transport = node.transport.get(),
                                           .node = NodeId{static_cast<std::uint8_t>(number)},
                                           .endpoint = endpoint_of(number),
                                           .incarnation = ++incarnations,
                                           .peers = std::move(peers),
                                           .timing = {},
                                           .changed = [&node] { ++node.changes; }});
    node.arrived = std::make_unique<protocol::FirstMessages>(
        loop, 5s, 100, [&node](auto connection, protocol::Message message) {
          node.membership->accept(std::move(connection), std::move(message));
        });
    auto listener = node.transport->listen(endpoint_of(number), [&node](auto connection) {
      node.arrived->add(std::move(connection));
    });
    REQUIRE(listener);
    node.listener = *std::move(listener);
  }
  void stop(int node) { nodes.erase(node); }
  void cut(int a, int b) {
    cuts.insert({a, b});
    cuts.insert({b, a});
  }
  StandaloneMembership& operator[](int node) { return *nodes.at(node).membership; }
  bool open(int node, const std::string& volume = "v") {
    return loop.now() < (*this)[node].open_until(volume);
  }

  int size;
  ManualLoop loop;
  protocol::MemoryTransport network{loop};
  Cuts cuts;
  std::map<int, Node> nodes;
  std::uint64_t incarnations = 0;
};

NodeId coordinator_seen_by(Cluster& cluster, int node) {
  auto found = cluster[node].coordinator("v");
  return found ? found->node : NodeId{};
}

}  // namespace

TEST_CASE("membership: a node alone holds its own lease, as long as its csvd beats") {
  Cluster cluster{1};
  CHECK(cluster[1].settled());
  CHECK(cluster[1].all_present());
  CHECK_FALSE(cluster[1].coordinator("v"));
  CHECK_FALSE(cluster.open(1));
  cluster[1].coordinating("v", Epoch{1}, Key{5});
  CHECK(cluster.open(1));
  cluster.loop.run_for(1h);
  CHECK(cluster.open(1));
  // Nothing closes the gate but time: a csvd that hangs renews nothing.
  auto until = cluster[1].open_until("v");
  CHECK(until - cluster.loop.now() <= LeaseTiming{}.term);
  CHECK(until == cluster[1].open_until());
  cluster[1].gave_up("v");
  cluster.loop.run_for(4s);
  CHECK_FALSE(cluster.open(1));
}

TEST_CASE("membership: what this node coordinates its own mounts are told at once, as others are") {
  Cluster cluster{2};
  cluster.loop.run_for(1s);
  auto told = [&cluster](int node) { return std::exchange(cluster.nodes[node].changes, 0); };
  (void)told(1);
  cluster[1].coordinating("v", Epoch{7}, Key{9});
  CHECK(told(1) > 0);
  CHECK(cluster.open(1));
  cluster[1].gave_up("v");
  CHECK(told(1) > 0);
}

TEST_CASE("membership: every node learns who coordinates, where, and holds a lease from it") {
  Cluster cluster{3};
  cluster.loop.run_for(1s);
  CHECK(cluster[2].settled());
  CHECK(cluster[2].all_present());
  CHECK_FALSE(cluster.open(2));
  cluster[1].coordinating("v", Epoch{4}, Key{77});
  cluster.loop.settle();  // no beat has passed: they are told at once
  for (int node = 1; node <= 3; ++node) {
    CAPTURE(node);
    auto found = cluster[node].coordinator("v");
    REQUIRE(found);
    CHECK(*found == Coordinator{NodeId{1}, "node1", Epoch{4}, Key{77}});
    CHECK(cluster.open(node));
    CHECK_FALSE(cluster[node].coordinator("other"));
  }
  CHECK(cluster[2].claimed_by_peer("v"));
  CHECK_FALSE(cluster[1].claimed_by_peer("v"));
  cluster.loop.run_for(1min);
  CHECK(cluster.open(3));
  CHECK(cluster.nodes.at(3).changes > 100);
}

TEST_CASE(
    "membership: a node cut off from the coordinator loses its lease a term after its last echoed "
    "beat") {
  Cluster cluster{3};
  cluster[1].coordinating("v", Epoch{1}, Key{5});
  cluster.loop.run_for(10s);
  auto cut_at = cluster.loop.now();
  SUBCASE("both ways") { cluster.cut(1, 3); }
  SUBCASE("its beats are lost") { cluster.cuts.insert({3, 1}); }
  SUBCASE("the echoes are lost") { cluster.cuts.insert({1, 3}); }
  cluster.loop.run_for(30s);
  // The beat that was echoed last was sent before the cut; the connection to node 2 renews nothing.
  CHECK(cluster[3].open_until("v") <= cut_at + LeaseTiming{}.term);
  CHECK_FALSE(cluster.open(3));
  CHECK(cluster.open(2));
  CHECK(coordinator_seen_by(cluster, 3) == NodeId{1});  // nobody else is known
  CHECK_FALSE(cluster[3].claimed_by_peer("v"));
  auto peers = cluster[3].peers();
  REQUIRE(peers.size() == 2);
  CHECK_FALSE(peers[0].present);
  CHECK(peers[1].present);
  cluster.cuts.clear();
  cluster.loop.run_for(2s);
  CHECK(cluster.open(3));
}

TEST_CASE("membership: of two coordinators the higher epoch counts, then the higher key") {
  Cluster cluster{3};
  cluster[1].coordinating("v", Epoch{4}, Key{9});
  cluster.loop.run_for(1s);
  cluster[2].coordinating("v", Epoch{5}, Key{3});
  cluster.loop.run_for(1s);
  for (int node = 1; node <= 3; ++node) CHECK(coordinator_seen_by(cluster, node) == NodeId{2});
  // The one that was superseded echoes still; its echoes renew nothing.
  cluster.cut(2, 3);
  cluster.loop.run_for(10s);
  CHECK_FALSE(cluster.open(3));
  cluster.cuts.clear();
  cluster[1].coordinating("v", Epoch{5}, Key{4});
  cluster.loop.run_for(1s);
  CHECK(coordinator_seen_by(cluster, 3) == NodeId{1});
  cluster[1].gave_up("v");
  cluster.loop.run_for(1s);
  CHECK(coordinator_seen_by(cluster, 3) == NodeId{2});
}

TEST_CASE("membership: a machine without csvd is settled, one that is silent is not") {
  Cluster cluster{2};
  cluster.stop(2);
  cluster.size = 3;
  cluster.start(2);
  cluster.loop.run_for(100ms);
  CHECK(cluster[2].settled());  // node 1 answers, node 3's machine refuses
  CHECK_FALSE(cluster[2].all_present());
  cluster.stop(2);
  cluster.cut(2, 1);
  cluster.start(2);
  cluster.loop.run_for(10s);
  CHECK_FALSE(cluster[2].settled());
}

TEST_CASE("membership: a csvd that restarts claims nothing, and is known by a new incarnation") {
  Cluster cluster{2};
  cluster[1].coordinating("v", Epoch{4}, Key{9});
  cluster.loop.run_for(1s);
  auto before = cluster[2].peers()[0].incarnation;
  cluster.stop(1);
  cluster.loop.run_for(2s);
  CHECK(coordinator_seen_by(cluster, 2) == NodeId{1});
  cluster.start(1);
  cluster.loop.run_for(1s);
  CHECK_FALSE(cluster[2].coordinator("v"));
  CHECK(cluster[2].peers()[0].incarnation != before);
  CHECK(cluster[2].peers()[0].present);
}

TEST_CASE("membership: the lease never outlives what the coordinator's node waits for") {
  // Node 2's last renewal and what node 1 last heard of it, at every moment of a cut that may fall
  // anywhere between two beats: in true time, and with each clock as far off as it may be.
  for (auto offset = 0ms; offset < 600ms; offset += 37ms) {
    Cluster cluster{2};
    cluster[1].coordinating("v", Epoch{1}, Key{1});
    cluster.loop.run_for(2s + offset);
    cluster.cut(1, 2);
    cluster.loop.run_for(10s);
    auto heard = cluster[1].peers()[0].last_heard;
    auto until = cluster[2].open_until("v");
    LeaseTiming timing;
    CHECK(until <= heard + timing.term);
    CHECK(until < heard + timing.over_after);
  }
}

TEST_CASE("membership: an echo of another node, or of a beat never sent, renews nothing") {
  ManualLoop loop;
  protocol::MemoryTransport network{loop};
  std::vector<std::unique_ptr<protocol::Connection>> connections;
  std::function<void(wire::BeatEcho&)> distort;
  auto listener = network.listen("node2", [&](auto accepted) {
    auto& connection = *connections.emplace_back(std::move(accepted));
    connection.start(
        [&](protocol::Message message) {
          protocol::Message reply;
          auto* echo = reply.frame.mutable_beat_echo();
          echo->set_node(2);
          echo->set_incarnation(1);
          echo->set_sent_at(message.frame.beat().sent_at());
          auto* claim = echo->add_coordinates();
          claim->set_volume("v");
          claim->set_epoch(1);
          if (distort) distort(*echo);
          connection.send(std::move(reply));
        },
        [](Error) {});
  });
  REQUIRE(listener);
  SUBCASE("honest") {}
  SUBCASE("another node") {
    distort = [](auto& echo) { echo.set_node(3); };
  }
  SUBCASE("a time ahead") {
    distort = [](auto& echo) { echo.set_sent_at(echo.sent_at() + 1'000'000'000); };
  }
  SUBCASE("a time before the connection") {
    distort = [](auto& echo) { echo.set_sent_at(0); };
  }
  StandaloneMembership membership{{.loop = &loop,
                                   .transport = &network,
                                   .node = NodeId{1},
                                   .endpoint = "node1",
                                   .incarnation = 1,
                                   .peers = {{NodeId{2}, "node2", "node2"}},
                                   .timing = {},
                                   .changed = {}}};
  loop.run_for(5s);
  CHECK((loop.now() < membership.open_until("v")) == !distort);
}

TEST_CASE("membership: whoever beats for another node is not heard, and disturbs nobody") {
  Cluster cluster{3};
  cluster[1].coordinating("v", Epoch{1}, Key{5});
  cluster.loop.run_for(2s);
  cluster.cut(1, 2);
  cluster.loop.run_for(10s);
  auto silent_since = cluster[1].peers()[0].last_heard;
  auto as_node = [&](unsigned certificate) {
    auto [mine, theirs] = protocol::connection_pair(cluster.loop);
    auto echoes = std::make_shared<int>(0);
    mine->start([echoes](protocol::Message) { ++*echoes; }, [](Error) {});
    protocol::Message beat;
    beat.frame.mutable_beat()->set_node(2);
    beat.frame.mutable_beat()->set_incarnation(99);
    beat.frame.mutable_beat()->set_sent_at(1);
    cluster[1].accept(std::make_unique<csv::fakes::Certified>(
                          std::move(theirs), NodeId{static_cast<std::uint8_t>(certificate)}),
                      std::move(beat));
    cluster.loop.run_for(100ms);
    return *echoes;
  };
  CHECK(as_node(3) == 0);
  CHECK(cluster[1].peers()[0].last_heard == silent_since);
  CHECK(as_node(2) == 1);  // otherwise the run proved nothing
  CHECK(cluster[1].peers()[0].last_heard > silent_since);
}

TEST_CASE("membership: whoever answers at a peer's address without being it renews nothing") {
  ManualLoop loop;
  protocol::MemoryTransport memory{loop};
  /// What is at the other end has shown the certificate of node 3.
  struct Third final : protocol::Transport {
    explicit Third(protocol::Transport& with) : inner{&with} {}
    void connect(NodeId node, const std::string& endpoint, protocol::Connected done) override {
      inner->connect(node, endpoint, [done = std::move(done)](auto connected) mutable {
        REQUIRE(connected);
        done(std::unique_ptr<protocol::Connection>{
            std::make_unique<csv::fakes::Certified>(*std::move(connected), NodeId{3})});
      });
    }
    Expected<std::unique_ptr<Listener>> listen(
        const std::string& endpoint,
        std::function<void(std::unique_ptr<protocol::Connection>)> accepted) override {
      return inner->listen(endpoint, std::move(accepted));
    }
    protocol::Transport* inner;
  } network{memory};
  int accepted = 0, beats = 0;
  std::vector<std::unique_ptr<protocol::Connection>> connections;
  auto listener = network.listen("node2", [&](auto connection) {
    ++accepted;
    connections.push_back(std::move(connection));
    connections.back()->start([&](protocol::Message) { ++beats; }, [](Error) {});
  });
  REQUIRE(listener);
  StandaloneMembership membership{{.loop = &loop,
                                   .transport = &network,
                                   .node = NodeId{1},
                                   .endpoint = "node1",
                                   .incarnation = 1,
                                   .peers = {{NodeId{2}, "node2", "node2"}},
                                   .timing = {},
                                   .changed = {}}};
  loop.run_for(5s);
  CHECK(accepted > 1);  // it is tried again and again
  CHECK(beats == 0);
  CHECK_FALSE(membership.all_present());
}

TEST_CASE("membership: a peer that ends every connection at once is left alone for a while") {
  ManualLoop loop;
  protocol::MemoryTransport network{loop};
  std::vector<TimePoint> accepted;
  std::vector<std::unique_ptr<protocol::Connection>> kept;
  auto listener = network.listen("node2", [&](auto connection) {
    accepted.push_back(loop.now());
    if (accepted.size() > 1000) kept.push_back(std::move(connection));  // else this never ends
  });
  REQUIRE(listener);
  StandaloneMembership membership{{.loop = &loop,
                                   .transport = &network,
                                   .node = NodeId{1},
                                   .endpoint = "node1",
                                   .incarnation = 1,
                                   .peers = {{NodeId{2}, "node2", "node2"}},
                                   .timing = {},
                                   .changed = {}}};
  auto began = loop.now();
  auto interval = LeaseTiming{}.beat_interval;
  loop.run_for(30s);
  // Soon at first, then no more often than it would beat, and never given up.
  auto most = static_cast<std::size_t>(30s / interval) + 8;
  REQUIRE(accepted.size() > most / 2);
  CHECK(accepted.size() < most);
  CHECK(accepted[1] > began);
  CHECK(accepted[1] < began + interval / 2);
  CHECK(accepted.back() > loop.now() - 2 * interval);
}

TEST_CASE("membership: a csvd that ends after a while is known to be gone at once") {
  Cluster cluster{2};
  cluster.loop.run_for(10s);
  REQUIRE(cluster[1].all_present());
  cluster.stop(2);
  cluster.loop.settle();  // no beat has passed
  auto peers = cluster[1].peers();
  REQUIRE(peers.size() == 1);
  CHECK_FALSE(peers[0].trouble.empty());
}
