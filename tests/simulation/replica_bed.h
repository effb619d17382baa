#pragma once
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/leave.h"
#include "coordinator/cluster/replica.h"
#include "tests/simulation/group.h"
#include "tests/simulation/kept_disk.h"

// Replicas alone, on an engine, disks and perhaps a witness that are simulated.

namespace csv::sim {

using namespace csv::cluster;

inline NodeId id(std::size_t node) { return NodeId{static_cast<std::uint8_t>(node + 1)}; }

/// One life of a csvd's part in the cluster.
struct Life {
  /// Of a node's way to the witness; null where there is none.
  using MakeWitness = std::function<std::unique_ptr<Witness>(SimLoop&, Replica&, std::size_t)>;

  Life(World& world, Group& group, std::size_t node, Kept& content, MakeWitness make_witness = {},
       const bool* full = nullptr)
      : loop{world, "node" + std::to_string(node + 1), {}},
        engine{group.engine(loop, id(node))},
        disk{world, loop, content, full} {
    Replica::Surroundings around;
    around.loop = &loop;
    around.engine = engine.get();
    around.store = &disk;
    around.node = id(node);
    around.responsive = [this](NodeId other) { return unheard.count(other) == 0; };
    around.changed = [this, node, make_witness] {
      if (make_witness) follow_witness(node, make_witness);
      changed.notify();
      if (on_change) on_change();
    };
    replica = std::make_unique<Replica>(std::move(around));
    loop.enter([&] {
      replica->start(content);
      if (make_witness) follow_witness(node, make_witness);
    });
  }
  /// As VotingMembership does: a witness is what the configuration says.
  void follow_witness(std::size_t node, const MakeWitness& make) {
    const auto* now = replica->configuration();
    if (now == nullptr || now->witness == record) return;
    record = now->witness;
    replica->use_witness(nullptr);
    witness = record.kind == WitnessKind::none ? nullptr : make(loop, *replica, node);
    replica->use_witness(witness.get());
  }
  ~Life() {
    loop.enter([this] {
      tasks.cancel_all();
      replica.reset();
    });
  }
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;

  SimLoop loop;
  std::unique_ptr<Engine> engine;
  KeptDisk disk;
  std::function<void()> on_change;
  Signal changed{loop};
  WitnessRecord record;
  std::set<NodeId> unheard;  ///< Members that hang, as this one sees it.
  std::unique_ptr<Witness> witness;
  std::unique_ptr<Replica> replica;
  TaskScope tasks;
};

struct Bed {
  explicit Bed(std::uint64_t seed, std::size_t n)
      : world{seed}, group{world}, disks(n), full(n), lives(n) {}
  ~Bed() {
    for (auto& each : lives) each.reset();
  }

  static Configuration first(std::size_t n) {
    Configuration out;
    out.cluster = 4711;
    out.name = "lab";
    for (std::size_t i = 0; i < n; ++i)
      out.nodes[id(i)] = {fmt::format("node{}", i + 1), fmt::format("10.0.0.{}:7400", i + 1)};
    return out;
  }
  void boot(std::size_t node) {
    group.power(id(node), true);
    restart(node);
  }
  /// Its csvd alone: the engine's group is as it was.
  void restart(std::size_t node) {
    lives[node] =
        std::make_unique<Life>(world, group, node, disks[node], make_witness, &full[node]);
    lives[node]->on_change = [this, node] { judge(node); };
  }
  void kill(std::size_t node) { lives[node].reset(); }
  void power_off(std::size_t node) {
    lives[node].reset();
    group.power(id(node), false);
  }
  /// Founded on the first node, every node in it, all voting.
  void begin() {
    for (std::size_t i = 0; i < disks.size(); ++i) boot(i);
    run_for(1s);
    Expected<void> founded;
    lives[0]->loop.enter([&] { founded = lives[0]->replica->found(first(disks.size())); });
    REQUIRE(founded);
    REQUIRE(run_until([&] { return all_formed(); }));
  }
  bool run_until(const Function<bool()>& until, Duration limit = 30s) {
    return world.run([&] { return const_cast<Function<bool()>&>(until)(); }, world.now() + limit);
  }
  void run_for(Duration time) {
    world.run([] { return false; }, world.now() + time);
  }
  bool formed(std::size_t node) const {
    return lives[node] && lives[node]->replica->state() == Replica::State::formed;
  }
  /// Formed, and nothing is under way.
  bool settled(std::size_t node) const {
    return formed(node) && !lives[node]->replica->configuration()->ballot.before;
  }
  bool all_formed() const {
    for (std::size_t i = 0; i < lives.size(); ++i)
      if (lives[i] && !settled(i)) return false;
    std::optional<Configuration> same;
    for (const auto& each : lives) {
      if (!each) continue;
      const auto* now = each->replica->configuration();
      if (same && !(*same == *now)) return false;
      same = *now;
    }
    unsigned votes = 0;
    for (const auto& [node, vote] : same->ballot.now.nodes) votes += vote;
    std::size_t alive = 0;
    for (const auto& each : lives) alive += each != nullptr;
    return votes + 1 >= alive;
  }
  /// What was in force anywhere: one value for one tag, and never back.
  void judge(std::size_t node) {
    if (!formed(node)) return;
    const auto& now = *lives[node]->replica->configuration();
    auto [at, is_new] = in_force.emplace(now.tag, now);
    if (!is_new && !(at->second == now)) broken += fmt::format(" two values of one tag;");
  }
  Expected<void> change(std::size_t node, Replica::Change what, Duration patience = 20s) {
    std::optional<Expected<void>> result;
    auto& life = *lives[node];
    life.loop.enter(
        [&] { life.tasks.spawn(ask(*life.replica, std::move(what), patience, result)); });
    REQUIRE(run_until([&] { return result.has_value(); }, patience + 1s));
    return *result;
  }
  static Task<void> ask(Replica& replica, Replica::Change what, Duration patience,
                        std::optional<Expected<void>>& result) {
    auto task = replica.propose(std::move(what), patience);
    auto done = co_await task;
    result = done;
  }

  /// An administrator's word on one node.
  Expected<void> force(std::size_t node) {
    std::optional<Expected<void>> result;
    auto& life = *lives[node];
    life.loop.enter([&] { life.tasks.spawn(ask_to_force(*life.replica, result)); });
    REQUIRE(run_until([&] { return result.has_value(); }));
    return *result;
  }
  static Task<void> ask_to_force(Replica& replica, std::optional<Expected<void>>& result) {
    auto task = replica.force(5s);
    auto done = co_await task;
    result = done;
  }

  /// Likewise: csvctl cluster start --prevent-quorum, and without the word.
  Expected<void> prevent(std::size_t node, bool yes) {
    std::optional<Expected<void>> result;
    begin_to_prevent(node, yes, result);
    REQUIRE(run_until([&] { return result.has_value(); }));
    return *result;
  }
  void begin_to_prevent(std::size_t node, bool yes, std::optional<Expected<void>>& result) {
    auto& life = *lives[node];
    life.loop.enter([&] { life.tasks.spawn(ask_to_prevent(*life.replica, yes, result)); });
  }
  static Task<void> ask_to_prevent(Replica& replica, bool yes,
                                   std::optional<Expected<void>>& result) {
    auto task = replica.prevent(yes, 5s);
    auto done = co_await task;
    result = done;
  }

  /// csvctl cluster leave on a node.
  using Names = std::vector<std::string>;
  void begin_to_leave(std::size_t node, std::optional<Expected<void>>& result, Names mounted = {},
                      Duration handover = 20s) {
    auto& life = *lives[node];
    Leaver with;
    with.loop = &life.loop;
    with.replica = life.replica.get();
    with.node = id(node);
    with.changed = &life.changed;
    with.mounted = [mounted] { return mounted; };
    with.serving = [] { return Names{}; };
    with.handover = handover;
    life.loop.enter([&] { life.tasks.spawn(ask_to_leave(std::move(with), result)); });
  }
  Expected<void> leave(std::size_t node, Names mounted = {}) {
    std::optional<Expected<void>> result;
    begin_to_leave(node, result, std::move(mounted));
    REQUIRE(run_until([&] { return result.has_value(); }, 60s));
    return *result;
  }
  static Task<void> ask_to_leave(Leaver with, std::optional<Expected<void>>& result) {
    auto task = cluster::leave(std::move(with));
    auto done = co_await task;
    result = done;
  }
  const Configuration& now(std::size_t node) const {
    return *lives[node]->replica->configuration();
  }

  Life::MakeWitness make_witness;
  World world;
  Group group;
  std::vector<Kept> disks;
  std::deque<bool> full;  ///< Which of them take nothing.
  std::vector<std::unique_ptr<Life>> lives;
  std::map<ClusterTag, Configuration> in_force;
  std::string broken;
};

inline Replica::Change add_volume(const std::string& name) {
  return [name](Configuration& configuration) -> Expected<void> {
    configuration.volumes.try_emplace(name);
    return {};
  };
}

}  // namespace csv::sim
