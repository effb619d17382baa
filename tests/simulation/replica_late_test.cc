// Members that lag behind the engine's order, each by hand.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "coordinator/cluster/replica.h"
#include "tests/simulation/kept_disk.h"
#include "tests/simulation/world.h"

using namespace csv;
using namespace csv::cluster;
using namespace csv::sim;

namespace {

NodeId id(std::size_t node) { return NodeId{static_cast<std::uint8_t>(node + 1)}; }

/// One view, one total order; what each member has been told of it is told by hand.
struct Bus {
  std::vector<std::pair<Member, std::string>> log;
};
class ByHand final : public Engine {
 public:
  ByHand(Bus& bus, SimLoop& loop, NodeId node)
      : bus_{bus}, loop_{loop}, self_{node, raw(node) + 100u} {}
  void start(Handlers handlers) override { handlers_ = std::move(handlers); }
  void multicast(std::string message) override { bus_.log.emplace_back(self_, std::move(message)); }
  void vote_by(Verdict) override {}
  Member self() const override { return self_; }
  void view(const View& view) {
    loop_.enter([&] { handlers_.view(view); });
  }
  bool tell_one() {
    if (seen == bus_.log.size()) return false;
    auto [from, message] = bus_.log[seen++];
    loop_.enter([&, from = from, message = message] { handlers_.deliver(from, message); });
    return true;
  }
  std::size_t seen = 0;

 private:
  Bus& bus_;
  SimLoop& loop_;
  Member self_;
  Handlers handlers_;
};

struct Node {
  Node(World& world, Bus& bus, std::size_t node, Kept kept)
      : content{std::move(kept)},
        loop{world, "node" + std::to_string(node + 1), {}},
        engine{bus, loop, id(node)},
        disk{world, loop, content} {
    Replica::Surroundings around;
    around.loop = &loop;
    around.engine = &engine;
    around.store = &disk;
    around.node = id(node);
    around.changed = [] {};
    around.granted = [this] { return granted; };
    replica = std::make_unique<Replica>(std::move(around));
    loop.enter([&] { replica->start(content); });
  }
  ~Node() {
    loop.enter([this] {
      tasks.cancel_all();
      replica.reset();
    });
  }
  Kept content;
  SimLoop loop;
  ByHand engine;
  KeptDisk disk;
  Replica::Granted granted;  ///< As it says when it greets.
  std::unique_ptr<Replica> replica;
  TaskScope tasks;
};

Configuration first(ClusterTag tag) {
  Configuration out;
  out.cluster = 4711;
  out.name = "lab";
  for (std::size_t i = 0; i < 3; ++i) {
    out.nodes[id(i)] = {fmt::format("node{}", i + 1), fmt::format("10.0.0.{}:7400", i + 1)};
    out.ballot.now.nodes[id(i)] = 1;
  }
  out.tag = tag;
  return out;
}
View all_three() {
  View view;
  view.ring = 7;
  for (std::size_t i = 0; i < 3; ++i) {
    view.nodes.push_back(id(i));
    view.members.push_back({id(i), i + 101});
  }
  return view;
}

struct Three {
  Three(Kept one, Kept two, Kept three) {
    nodes.push_back(std::make_unique<Node>(world, bus, 0, one));
    nodes.push_back(std::make_unique<Node>(world, bus, 1, two));
    nodes.push_back(std::make_unique<Node>(world, bus, 2, three));
  }
  void run_for(Duration time, bool with_late) {
    auto until = world.now() + time;
    while (world.now() < until) {
      for (std::size_t i = 0; i < 3; ++i) {
        if (!with_late && i == late) continue;
        while (nodes[i]->engine.tell_one()) {
        }
      }
      bool ticked = false;
      world.after(1ms, [&] { ticked = true; });
      world.run([&] { return ticked; }, world.now() + 2ms);
    }
  }
  World world{1};
  Bus bus;
  std::size_t late = 0;
  std::vector<std::unique_ptr<Node>> nodes;
};

Task<void> ask(Replica& replica, Replica::Change what, std::optional<Expected<void>>& result) {
  auto task = replica.propose(std::move(what), 5s);
  auto done = co_await task;
  result = done;
}
Task<void> force(Replica& replica, std::optional<Expected<void>>& result) {
  auto task = replica.force(5s);
  auto done = co_await task;
  result = done;
}

}  // namespace

TEST_CASE("replica: one that lags does not form again what was newest when it greeted") {
  auto config = first({0, 5, 3});
  Kept two{config, {0, 5, 0}};
  Kept one{config, {0, 6, 0}};  // promised in an attempt that came to nothing
  Three bed{one, two, two};
  bed.nodes[1]->engine.view(all_three());
  bed.nodes[2]->engine.view(all_three());
  bed.run_for(1990ms, false);
  // Node 1 wakes up, and greets, just when node 2 has lost patience and asks for promises.
  while (bed.nodes[1]->replica->state() != Replica::State::forming) bed.run_for(1ms, false);
  bed.nodes[0]->engine.view(all_three());
  // It lags again.
  bed.run_for(300ms, false);
  CHECK(bed.nodes[1]->replica->state() == Replica::State::formed);
  std::optional<Expected<void>> made;
  Replica::Change change = [](Configuration& next) -> Expected<void> {
    next.volumes.try_emplace("made");
    return {};
  };
  bed.nodes[1]->loop.enter(
      [&] { bed.nodes[1]->tasks.spawn(ask(*bed.nodes[1]->replica, change, made)); });
  bed.run_for(300ms, false);
  REQUIRE(made);
  REQUIRE(bool(*made));
  CHECK(bed.nodes[2]->replica->configuration()->volumes.count("made") == 1);
  // It goes on.
  bed.run_for(1s, true);
  for (auto& node : bed.nodes) {
    const auto& now = *node->replica->configuration();
    CHECK(now.volumes.count("made") == 1);
  }
}

TEST_CASE("replica: one that greets late with a forced configuration is joined by the others") {
  auto config = first({0, 5, 3});
  auto forced = first({1, 6, 0});
  forced.ballot.now.nodes[id(0)] = forced.ballot.now.nodes[id(1)] = 0;
  Kept two{config, {0, 5, 0}};
  Kept three{forced, {1, 6, 0}};
  Three bed{two, two, three};
  bed.late = 2;
  bed.nodes[0]->engine.view(all_three());
  bed.nodes[1]->engine.view(all_three());
  bed.run_for(2500ms, false);
  CHECK(bed.nodes[1]->replica->state() == Replica::State::formed);
  bed.nodes[2]->engine.view(all_three());
  bed.run_for(60s, true);
  for (auto& node : bed.nodes) {
    const auto& now = *node->replica->configuration();
    CHECK(node->replica->state() == Replica::State::formed);
    CHECK(now.tag.forced == 1);
  }
}

TEST_CASE("replica: a quorum is not forced before this node has greeted, whose vote it needs") {
  auto config = first({0, 5, 3});
  Three bed{{config, {0, 5, 0}}, {config, {0, 5, 0}}, {config, {0, 5, 0}}};
  auto& node = *bed.nodes[0];
  auto alone = all_three();
  alone.nodes.resize(1);
  alone.members.resize(1);
  node.engine.view(alone);
  // What it has said of itself has not come back to it yet.
  std::optional<Expected<void>> early, then;
  node.loop.enter([&] { node.tasks.spawn(force(*node.replica, early)); });
  REQUIRE(early);
  REQUIRE(!*early);
  CHECK(early->error() == Errc::retry);
  bed.late = 0;
  bed.run_for(1s, true);
  CHECK(node.replica->state() == Replica::State::minority);
  CHECK(node.replica->configuration()->tag.forced == 0);
  node.loop.enter([&] { node.tasks.spawn(force(*node.replica, then)); });
  bed.run_for(1s, true);
  REQUIRE(then);
  CHECK(bool(*then));
  CHECK(node.replica->state() == Replica::State::formed);
  CHECK(node.replica->configuration()->ballot.now.nodes.at(id(0)) == 1);
}

TEST_CASE("replica: one that hangs when it is to propose does not stop the others") {
  auto config = first({0, 5, 3});
  Kept each{config, {0, 5, 0}};
  Three bed{each, each, each};
  for (auto& node : bed.nodes) node->engine.view(all_three());
  bed.run_for(60s, false);
  CHECK(bed.nodes[1]->replica->state() == Replica::State::formed);
  CHECK(bed.nodes[2]->replica->state() == Replica::State::formed);
}

TEST_CASE("replica: the lease of one left behind may rest on the witness that has no vote now") {
  // Node 4 was left behind, by the votes of which the witness had one.
  auto config = first({0, 5, 3});
  config.nodes[id(3)] = {"node4", "10.0.0.4:7400"};
  config.ballot.now.nodes[id(3)] = 1;
  bool witness = true;
  SUBCASE("it is there") {
    config.witness = {WitnessKind::disk, "/dev/witness"};
    config.ballot.now.witness = 1;
  }
  SUBCASE("it has just been taken away") { config.ballot.now.witness = 1; }
  SUBCASE("there was none") { witness = false; }
  Kept each{config, {0, 5, 0}};
  Three bed{each, each, each};
  bed.run_for(5s, true);
  std::vector<TimePoint> began;
  for (auto& node : bed.nodes) {
    began.push_back(node->loop.now());
    node->granted[id(3)] = began.back() - 1s;
    node->engine.view(all_three());
  }
  bed.run_for(1s, true);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto& replica = *bed.nodes[i]->replica;
    REQUIRE(replica.state() == Replica::State::formed);
    const auto& ballot = replica.configuration()->ballot;
    REQUIRE((ballot.now.witness == 0 && !ballot.before));
    auto last = replica.last_granted(id(3));
    REQUIRE(last);
    if (witness)
      CHECK(*last >= began[i]);
    else
      CHECK(*last < began[i]);
  }
}

namespace {

/// A witness that this side holds, and whose first store never ends.
class HangsOnce final : public Witness {
 public:
  HangsOnce(SimLoop& loop, Memory memory) : loop_{loop}, memory_{std::move(memory)} {}
  Task<Expected<Memory>> read() override { co_return memory_; }
  Task<Expected<void>> store(Memory memory) override {
    if (!std::exchange(hung_, true)) co_await sleep(loop_, 1000s);
    memory_ = std::move(memory);
    co_return Expected<void>{};
  }
  Task<Expected<Hold>> confirm(std::uint64_t) override { co_return Hold{loop_.now()}; }
  Task<Expected<Hold>> challenge(std::uint64_t) override { co_return Hold{loop_.now()}; }
  [[nodiscard]] std::optional<NodeId> holder() const override { return id(0); }

 private:
  SimLoop& loop_;
  Memory memory_;
  bool hung_ = false;
};

}  // namespace

TEST_CASE("replica: what only the witness has left is formed again, however often it is tried") {
  // Of two nodes and a witness the other node is gone, and with it the change made was stored by
  // the witness alone.
  auto old = first({0, 5, 3});
  old.nodes.erase(id(2));
  old.ballot.now = {{{id(0), 1}, {id(1), 1}}, 1};
  auto newer = old;
  newer.tag.sequence = 4;
  newer.volumes.try_emplace("made");
  World world{1};
  Bus bus;
  Node node{world, bus, 0, {old, {0, 5, 0}}};
  HangsOnce witness{node.loop, {newer.tag, encode(newer)}};
  node.loop.enter([&] { node.replica->use_witness(&witness); });
  View alone;
  alone.ring = 7;
  alone.nodes = {id(0)};
  alone.members = {{id(0), 101}};
  node.engine.view(alone);
  for (int i = 0; i < 12'000 && node.replica->state() != Replica::State::formed; ++i) {
    while (node.engine.tell_one()) {
    }
    bool ticked = false;
    world.after(1ms, [&] { ticked = true; });
    world.run([&] { return ticked; }, world.now() + 2ms);
  }
  REQUIRE(node.replica->state() == Replica::State::formed);
  CHECK(node.replica->configuration()->volumes.count("made") == 1);
  node.loop.enter([&] { node.replica->use_witness(nullptr); });
}
