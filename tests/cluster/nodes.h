#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/cluster/voting_membership.h"
#include "coordinator/protocol/first_message.h"
#include "coordinator/protocol/memory_transport.h"
#include "csvfs/base/task.h"
#include "tests/fakes/manual_loop.h"

namespace csv::cluster {

/// Takes some time: nodes that undo each other's changes for ever do not stop the clock.
struct QuickStore final : ConfigurationStore {
  explicit QuickStore(Loop& its_loop) : loop{&its_loop} {}
  void save(const Kept&, Function<void(Expected<void>)> done) override {
    loop->after(10ms, [done = std::move(done)]() mutable { done({}); });
  }
  Loop* loop;
};

/// A process's part of the one loop: while it stands still nothing runs there, and all of it waits.
class Process final : public Loop {
 public:
  explicit Process(Loop& loop) : loop_{&loop} {}
  [[nodiscard]] TimePoint now() const override { return loop_->now(); }
  [[nodiscard]] WallTime wall_now() const override { return loop_->wall_now(); }
  void post(Function<void()> work) override { loop_->post(held(std::move(work))); }
  TimerId after(Duration delay, Function<void()> work) override {
    // One that was cancelled while it waited for its process to go on does not run.
    auto id = std::make_shared<TimerId>();
    *id = loop_->after(delay, held([this, id, work = std::move(work)]() mutable {
                         if (timers_.erase(*id) > 0) work();
                       }));
    timers_.insert(*id);
    return *id;
  }
  void cancel(TimerId timer) override {
    timers_.erase(timer);
    loop_->cancel(timer);
  }
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
  std::set<TimerId> timers_;
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

 private:
  Loop* loop_;
  std::uint64_t ring_ = 0;
  std::map<NodeId, One*> here_;
};

/// A witness that all nodes reach, with one node's way to it.
class NearWitness final : public Witness {
 public:
  /// What all of them share.
  struct Place {
    NodeId owner{};
    std::uint64_t moves = 0;
    Memory memory;
    std::set<NodeId> unreached_by = {};
  };
  NearWitness(Place& place, Loop& loop, NodeId node) : place_{&place}, loop_{&loop}, node_{node} {}
  Task<Expected<Memory>> read() override {
    co_await sleep(*loop_, kWay);
    co_return place_->memory;
  }
  Task<Expected<void>> store(Memory memory) override {
    co_await sleep(*loop_, kWay);
    if (place_->owner != node_) co_return Error{Errc::refused, "not held"};
    memory.tag = std::max(memory.tag, memory.promised);
    const auto& there = place_->memory;
    if (there.tag > memory.tag ||
        (there.tag == memory.tag && there.configuration != memory.configuration))
      co_return Error{Errc::superseded, "a newer one is stored"};
    place_->memory = std::move(memory);
    co_return Expected<void>{};
  }
  Task<Expected<Hold>> confirm(std::uint64_t) override {
    auto sent = loop_->now();
    co_await sleep(*loop_, kWay);
    if (place_->unreached_by.contains(node_)) co_return Error{Errc::lun_lost, "not reached"};
    if (place_->owner != node_) co_return Error{Errc::superseded, "another one's"};
    ++place_->moves;
    co_return Hold{sent};
  }
  Task<Expected<Hold>> challenge(std::uint64_t) override {
    auto moves = place_->moves;
    if (place_->owner != NodeId{}) co_await sleep(*loop_, LeaseTiming{}.over_after + kWay);
    auto sent = loop_->now();
    if (place_->moves != moves) co_return Error{Errc::refused, "it is held, and moves"};
    place_->owner = node_;
    ++place_->moves;
    co_await sleep(*loop_, kWay);
    co_return Hold{sent};
  }
  [[nodiscard]] std::optional<NodeId> holder() const override { return place_->owner; }

 private:
  static constexpr Duration kWay = 5ms;
  Place* place_;
  Loop* loop_;
  NodeId node_;
};

/// Nodes 1 and up with one configuration; some cannot connect to others.
class Nodes {
 public:
  using Line = std::pair<int, int>;  // from, to
  struct Policy {
    bool dynamic = true, witness = false, witness_only = false;
  };

  Nodes(int count, std::set<Line> not_reached) : Nodes{count, std::move(not_reached), Policy{}} {}
  Nodes(int count, std::set<Line> not_reached, Policy policy) : refused{std::move(not_reached)} {
    Configuration first;
    first.policies.dynamic_quorum = policy.dynamic;
    if (policy.witness || policy.witness_only) {
      first.witness = {.kind = WitnessKind::disk, .place = "w", .only = policy.witness_only};
      first.ballot.now.witness =
          policy.witness_only ? static_cast<unsigned>(count) + 1 : 1 - count % 2;
    }
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
  [[nodiscard]] int count() const { return static_cast<int>(lives_.size()); }
  /// It coordinates the volume, and may answer.
  [[nodiscard]] bool serves(int number, const std::string& volume) {
    return life(number).served.contains(volume) && at(number).open_until() > loop.now();
  }
  /// Whether what each of the two says to the other arrives.
  [[nodiscard]] bool hear_each_other(int one, int other) const {
    return !refused.contains({one, other}) && !refused.contains({other, one});
  }
  /// What this node's volumes are from now on, each served where it is given.
  void has(int number, std::vector<std::string> volumes) {
    life(number).volumes = std::move(volumes);
  }
  void mount(int number, const std::string& volume) { life(number).mounted.insert(volume); }
  void leave(int number) {
    life(number).engine.leave();
    life(number).membership.reset();
    life(number).listener.reset();
  }
  /// The node does not reach the witness.
  void cut_from_witness(int number) { place_.unreached_by.insert(id(number)); }
  [[nodiscard]] int keeper() const { return static_cast<int>(raw(place_.owner)); }
  /// Of the same members.
  void new_view() { group_.tell_view(); }
  /// Its csvd, not its engine: nobody's view changes.
  void stand_still(int number) { life(number).process.stand_still(); }
  void go_on(int number) { life(number).process.go_on(); }
  void run_for(Duration time) {
    for (auto end = loop.now() + time; loop.now() < end; loop.run_for(100ms))
      for (auto& life : lives_) life->serve();
  }

  fakes::ManualLoop loop;
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
        for (const auto& volume : volumes)
          all.push_back({volume, mounted.contains(volume) ? 1u : 0});
        return all;
      };
      with.make_witness = [this, &nodes, number](const WitnessRecord&) {
        return std::make_unique<NearWitness>(nodes.place_, process, id(number));
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
    std::set<std::string> mounted, served;
    std::unique_ptr<VotingMembership> membership;
    std::unique_ptr<protocol::FirstMessages> first_messages;
    std::unique_ptr<protocol::Transport::Listener> listener;
  };
  Life& life(int number) { return *lives_.at(static_cast<std::size_t>(number - 1)); }

  protocol::MemoryTransport network_{loop};
  Group group_{loop};
  NearWitness::Place place_;
  std::vector<std::unique_ptr<Life>> lives_;
};

}  // namespace csv::cluster
