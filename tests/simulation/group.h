#pragma once
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/engine.h"
#include "csvfs/base/ids.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// The cluster's engine as the simulation has it: groups of nodes that reach each other, views,
/// messages in one order for all of a group. Nothing is lost within a view: while a node is not
/// heard, what is said waits until it is, or the view ends. As with the real one a message that was
/// delivered to some of a group when it falls apart may never reach the others, and those that go
/// on together have seen the same ones before they see the new view.
class Group {
 public:
  explicit Group(World& world) : world_{world} {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  struct Weather {
    Duration least = 50us, most = 800us;  ///< From a call to its place in the order, and to each.
    Duration token = 1s;                  ///< Until it is noticed that somebody is not there.
    Duration joining = 200ms;             ///< Until those who hear each other again are one group.
  };
  Weather weather;
  /// What members are told that is not so, to see judges bite. It stands for code of theirs that
  /// would be wrong in the same way.
  struct Forgery {
    bool speak_for_absent = false;    ///< Whoever is there is counted for those who are not, too.
    bool change_votes_alone = false;  ///< New votes do not wait for a majority of the old ones.
    bool forget_force = false;  ///< Nobody hears in a greeting that a configuration was forced.
  };
  Forgery forgery;

  /// The engine of one process, which is one life of it. Destroying it is its death.
  std::unique_ptr<cluster::Engine> engine(SimLoop& loop, NodeId node);
  /// Whether two nodes hear each other; both ways. Noticed after a while.
  void part(NodeId one, NodeId other);
  void join(NodeId one, NodeId other);
  void join_all();
  /// Without power: it is in no group.
  void power(NodeId node, bool on);
  /// Whether the vote of the node's device is cast; false without one.
  [[nodiscard]] bool votes(NodeId node) const;

 private:
  class Engine;
  struct Ring {
    std::uint64_t number = 0;
    std::vector<NodeId> nodes;
    std::vector<std::pair<cluster::Member, std::string>> log;
    /// Said while a node is not heard: until it is again, or the ring ends.
    std::vector<std::pair<cluster::Member, std::string>> waiting;
    std::map<std::uint64_t, Engine*> members;  ///< By life: in an order that a replay repeats.
    std::uint64_t views = 0;                   ///< Changes of members.
  };
  [[nodiscard]] bool reach(NodeId one, NodeId other) const;
  void changed(Duration after);
  void regroup();
  [[nodiscard]] std::vector<cluster::Member> absent_from(const Ring& ring) const;
  void members_changed(Ring& ring);
  void order(Engine* from, const std::shared_ptr<Ring>& ring, std::string message);
  [[nodiscard]] bool whole(const Ring& ring) const;
  void go_on(Ring& ring);
  void go_on_everywhere();
  void pump(Engine* engine);
  void died(Engine* engine);
  std::shared_ptr<Ring> ring_of(NodeId node);

  World& world_;
  std::set<NodeId> known_;
  std::set<std::pair<NodeId, NodeId>> parted_;
  std::set<NodeId> off_;
  std::map<NodeId, std::shared_ptr<Ring>> rings_;
  std::map<std::uint64_t, Engine*> engines_;
  std::uint64_t next_ring_ = 1, next_life_ = 1;
  bool regrouping_ = false;
};

}  // namespace csv::sim
