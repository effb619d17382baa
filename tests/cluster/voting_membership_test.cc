#include "coordinator/cluster/voting_membership.h"

#include <doctest/doctest.h>

#include <set>

#include "coordinator/protocol/first_message.h"
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

/// Takes some time: nodes that undo each other's changes for ever do not stop the clock.
struct QuickStore final : ConfigurationStore {
  explicit QuickStore(Loop& its_loop) : loop{&its_loop} {}
  void save(const Kept&, Function<void(Expected<void>)> done) override {
    loop->after(10ms, [done = std::move(done)]() mutable { done({}); });
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

namespace {

/// A process's part of the one loop: while it stands still nothing runs there, and all of it waits.
class Process final : public Loop {
 public:
  explicit Process(Loop& loop) : loop_{&loop} {}
  [[nodiscard]] TimePoint now() const override { return loop_->now(); }
  [[nodiscard]] WallTime wall_now() const override { return loop_->wall_now(); }
  void post(Function<void()> work) override { loop_->post(held(std::move(work))); }
  TimerId after(Duration delay, Function<void()> work) override {
    return loop_->after(delay, held(std::move(work)));
  }
  void cancel(TimerId timer) override { loop_->cancel(timer); }
  [[nodiscard]] bool here() const override { return true; }

  void run(Function<void()> work) { stands_still_ ? waiting_.push_back(std::move(work)) : work(); }
  void stand_still() { stands_still_ = true; }
  [[nodiscard]] bool stands_still() const { return stands_still_; }
  void go_on() {
    stands_still_ = false;
    for (auto& work : std::exchange(waiting_, {})) loop_->post(std::move(work));
  }

 private:
  Function<void()> held(Function<void()> work) {
    return [this, work = std::move(work)]() mutable { run(std::move(work)); };
  }
  Loop* loop_;
  bool stands_still_ = false;
  std::vector<Function<void()>> waiting_;
};

/// The engines of some nodes, all of which reach each other.
class Group {
 public:
  explicit Group(Loop& loop) : loop_{&loop} {}
  class One final : public Engine {
   public:
    One(Group& group, NodeId node, Process& process)
        : group_{&group}, node_{node}, process_{&process} {}
    void start(Handlers handlers) override {
      handlers_ = std::move(handlers);
      group_->here_[node_] = this;
      group_->tell_view();
    }
    void multicast(std::string message) override {
      group_->loop_->post([group = group_, from = self(), message = std::move(message)] {
        for (auto [node, one] : std::map{group->here_})
          one->process_->run([one, from, message] { one->handlers_.deliver(from, message); });
      });
    }
    void vote_by(Verdict) override {}
    [[nodiscard]] Member self() const override { return {node_, raw(node_)}; }
    void leave() {
      group_->here_.erase(node_);
      group_->tell_view();
    }

   private:
    friend Group;
    Group* group_;
    NodeId node_;
    Process* process_;
    Handlers handlers_;
  };

 private:
  void tell_view() {
    loop_->post([this] {
      View view{.ring = ++ring_, .nodes = {}, .members = {}};
      for (auto [node, one] : here_) {
        view.nodes.push_back(node);
        view.members.push_back(one->self());
      }
      for (auto [node, one] : std::map{here_})
        one->process_->run([one, view] { one->handlers_.view(view); });
    });
  }
  Loop* loop_;
  std::uint64_t ring_ = 0;
  std::map<NodeId, One*> here_;
};

/// Nodes 1 and up with one configuration; some cannot connect to others.
class Nodes {
 public:
  using Line = std::pair<int, int>;  // from, to

  Nodes(int count, std::set<Line> not_reached) : refused{std::move(not_reached)} {
    Configuration first;
    first.cluster = 4711;
    first.name = "lab";
    first.tag = {0, 65, 1};
    first.policies.hold_s = 1;
    for (int i = 1; i <= count; ++i) {
      auto name = "node" + std::to_string(i);
      first.nodes[id(i)] = {name, name};
      first.ballot.now.nodes[id(i)] = 1;
    }
    for (int i = 1; i <= count; ++i) lives_.push_back(std::make_unique<Life>(*this, i, first));
  }
  static NodeId id(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }
  VotingMembership& at(int number) { return *life(number).membership; }
  const Configuration& configuration(int number) { return *at(number).replica().configuration(); }
  NodeId coordinator(int of, const std::string& volume) {
    const auto& all = configuration(of).volumes;
    auto found = all.find(volume);
    return found == all.end() ? NodeId{} : found->second.coordinator;
  }
  /// What this node's volumes are from now on, each served where it is given.
  void has(int number, std::vector<std::string> volumes) {
    life(number).volumes = std::move(volumes);
  }
  void leave(int number) {
    life(number).engine.leave();
    life(number).membership.reset();
    life(number).listener.reset();
  }
  /// Its csvd, not its engine: nobody's view changes.
  void stand_still(int number) { life(number).process.stand_still(); }
  void go_on(int number) { life(number).process.go_on(); }
  void run_for(Duration time) {
    for (auto end = loop.now() + time; loop.now() < end; loop.run_for(100ms))
      for (auto& life : lives_) life->serve();
  }

  ManualLoop loop;
  std::set<Line> refused;  ///< Nothing that is sent over one arrives, nor is a new one made.

 private:
  struct Life;
  /// One end, in its process.
  struct Sent final : protocol::Connection {
    Sent(Nodes& all, Process& its_process, Line over,
         std::unique_ptr<protocol::Connection> connection)
        : nodes{&all}, process{&its_process}, line{over}, inner{std::move(connection)} {}
    void start(Function<void(protocol::Message)> on_message,
               Function<void(Error)> on_closed) override {
      heard = std::make_shared<Heard>(std::move(on_message), std::move(on_closed));
      auto known = std::weak_ptr{heard};
      inner->start(
          [process = process, known](protocol::Message message) {
            process->run([known, message = std::move(message)]() mutable {
              if (auto still = known.lock()) still->on_message(std::move(message));
            });
          },
          [process = process, known](Error why) {
            process->run([known, why = std::move(why)]() mutable {
              if (auto still = known.lock()) still->on_closed(std::move(why));
            });
          });
    }
    void send(protocol::Message message) override {
      if (!nodes->refused.contains(line)) inner->send(std::move(message));
    }
    void close() override { inner->close(); }
    [[nodiscard]] std::string peer() const override { return inner->peer(); }
    [[nodiscard]] bool speaks_for(NodeId node) const override { return inner->speaks_for(node); }
    [[nodiscard]] std::size_t queued_bytes() const override { return inner->queued_bytes(); }
    struct Heard {
      Heard(Function<void(protocol::Message)> message, Function<void(Error)> closed)
          : on_message{std::move(message)}, on_closed{std::move(closed)} {}
      Function<void(protocol::Message)> on_message;
      Function<void(Error)> on_closed;
    };
    Nodes* nodes;
    Process* process;
    Line line;
    std::shared_ptr<Heard> heard;
    std::unique_ptr<protocol::Connection> inner;
  };
  struct Way final : protocol::Transport {
    Way(Nodes& all, int which) : nodes{&all}, number{which} {}
    void connect(NodeId node, const std::string& endpoint, protocol::Connected done) override {
      if (nodes->refused.contains({number, static_cast<int>(raw(node))})) {
        nodes->loop.post([done = std::move(done)]() mutable { done(std::errc::timed_out); });
        return;
      }
      Line line{number, static_cast<int>(raw(node))};
      nodes->network_.connect(
          node, endpoint, [all = nodes, line, done = std::move(done)](auto made) mutable {
            if (!made) return done(std::move(made));
            std::unique_ptr<protocol::Connection> kept =
                std::make_unique<Sent>(*all, all->life(line.first).process, line, *std::move(made));
            done(std::move(kept));
          });
    }
    Expected<std::unique_ptr<protocol::Transport::Listener>> listen(
        const std::string& endpoint,
        std::function<void(std::unique_ptr<protocol::Connection>)> accepted) override {
      return nodes->network_.listen(endpoint, std::move(accepted));
    }
    Nodes* nodes;
    int number;
  };
  struct Life {
    Life(Nodes& nodes, int number, const Configuration& first)
        : process{nodes.loop},
          way{nodes, number},
          engine{nodes.group_, id(number), process},
          store{process} {
      VotingMembership::Surroundings with;
      with.loop = &process;
      with.transport = &way;
      with.engine = &engine;
      with.store = &store;
      with.node = id(number);
      with.endpoint = "node" + std::to_string(number);
      with.incarnation = 1;
      with.volumes = [this] {
        std::vector<VotingMembership::LocalVolume> all;
        for (const auto& volume : volumes) all.push_back({volume});
        return all;
      };
      with.changed = [] {};
      with.kept.configuration = first;
      auto endpoint = with.endpoint;
      membership = std::make_unique<VotingMembership>(std::move(with));
      first_messages = std::make_unique<protocol::FirstMessages>(
          process, 5s, 64, [this](auto connection, protocol::Message beat) {
            if (membership) membership->accept(std::move(connection), std::move(beat));
          });
      listener = *nodes.network_.listen(endpoint, [this, &nodes, number](auto connection) {
        first_messages->add(
            std::make_unique<Sent>(nodes, process, Line{number, 0}, std::move(connection)));
      });
    }
    /// Whoever is given a volume, and has a lease, serves it.
    void serve() {
      if (!membership || process.stands_still()) return;
      for (const auto& volume : volumes) {
        auto given = membership->assigned(volume);
        bool mine = given && given->decided && given->node == membership_node() &&
                    membership->open_until() > way.nodes->loop.now();
        if (mine && served.insert(volume).second)
          membership->coordinating(volume, Epoch{raw(given->node)}, Key{raw(given->node)});
        if (!mine && served.erase(volume) > 0) membership->gave_up(volume);
      }
    }
    [[nodiscard]] NodeId membership_node() const { return engine.self().node; }
    Process process;
    Way way;
    Group::One engine;
    QuickStore store;
    std::vector<std::string> volumes;
    std::set<std::string> served;
    std::unique_ptr<VotingMembership> membership;
    std::unique_ptr<protocol::FirstMessages> first_messages;
    std::unique_ptr<protocol::Transport::Listener> listener;
  };
  Life& life(int number) { return *lives_.at(static_cast<std::size_t>(number - 1)); }

  protocol::MemoryTransport network_{loop};
  Group group_{loop};
  std::vector<std::unique_ptr<Life>> lives_;
};

}  // namespace

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
    "voting membership: of two that do not hear each other, while others hear both, one places "
    "the volumes") {
  Nodes nodes{5, {}};
  for (int i : {1, 2, 3, 4, 5}) nodes.has(i, {"t", "u", "v", "w", "x"});
  nodes.run_for(20s);
  nodes.refused = {{1, 2}};
  nodes.run_for(20s);
  auto then = nodes.configuration(3).tag;
  nodes.run_for(20s);
  CHECK(nodes.configuration(3).tag == then);
  // Whichever of the two took the other's vote.
  const auto& votes = nodes.configuration(3).ballot.now.nodes;
  CHECK(votes.at(Nodes::id(1)) + votes.at(Nodes::id(2)) == 1);
  auto silent = Nodes::id(votes.at(Nodes::id(1)) > 0 ? 2 : 1);
  for (const auto* volume : {"t", "u", "v", "w", "x"}) {
    CAPTURE(volume);
    CHECK(nodes.coordinator(3, volume) != NodeId{});
    CHECK(nodes.coordinator(3, volume) != silent);
  }
}
