#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::cluster {

/// One life of a csvd in the cluster's group.
struct Member {
  NodeId node{};
  std::uint64_t life = 0;  ///< Another one for another life of its process; never 0.
  auto operator<=>(const Member&) const = default;
};

/// Who is here, as this node's engine sees it.
struct View {
  /// Grows with every change of the nodes, and so differs between views of different partitions
  /// that were once one; not unique by itself.
  std::uint64_t ring = 0;
  std::vector<NodeId> nodes;    ///< Whose engine runs and is reached; sorted; with this node.
  std::vector<Member> members;  ///< The csvds among them that have joined; sorted; with this one.
  bool operator==(const View&) const = default;
};

/// Membership, ordered messages and Corosync's votes. Three of them: Corosync (corosync_engine.h),
/// and the simulation's (tests/simulation). Loop's thread, all of it; handlers are called from the
/// loop, never from inside a call.
///
/// *Order.* Members that go from one view to the next together see the same messages between the
/// two, in the same order, each its own messages too. A message is *agreed*, not safe: that it was
/// delivered here says nothing of the others (A5). What must last is acknowledged, on disk.
///
/// *Late.* A message that was sent in one view may be delivered in the next: it carries what it
/// needs to be recognised.
class Engine {
 public:
  struct Handlers {
    /// A new view; the first one comes after start. Whoever is not in `members` is not waited for.
    std::function<void(const View&)> view;
    /// A member's message, this one's too.
    std::function<void(Member from, std::string message)> deliver;
    /// Nobody is reached until the next view: the engine's daemon has gone, or hangs. It is
    /// reached for again without end, as another life of ours.
    std::function<void(Error)> lost;
  };
  /// Until when the partition that consists of these nodes goes on: a moment that is over (kNever),
  /// one that is to come where it rests on what has an end, or kForLong. Called on a thread of the
  /// engine, possibly while nothing else can happen anywhere in the cluster: a pure function of
  /// what was known when it was set (F1).
  using Verdict = std::function<TimePoint(std::span<const NodeId> nodes)>;
  static constexpr TimePoint kNever{}, kForLong = TimePoint::max();

  virtual ~Engine() = default;
  virtual void start(Handlers handlers) = 0;
  /// To every member of the view, in order. Not answered; lost with the view's end, perhaps, and
  /// while nobody is reached. At most kMaxMessage bytes.
  virtual void multicast(std::string message) = 0;
  /// How this node votes as a quorum device from now on. At once, also for the view that is: the
  /// vote is cast or withdrawn before anything else happens. Withdrawn when the verdict's moment
  /// has come, with or without the loop. Until the first call: not cast.
  virtual void vote_by(Verdict verdict) = 0;
  /// This process's own part in the group, once a view was told.
  [[nodiscard]] virtual Member self() const = 0;

  /// A configuration of 64 nodes and 64 volumes fits many times.
  static constexpr std::size_t kMaxMessage = 512 * 1024;
};

}  // namespace csv::cluster
