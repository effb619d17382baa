#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::protocol {
class Connection;
struct Message;
}  // namespace csv::protocol

namespace csv::cluster {

/// Who says that it coordinates a volume. Of several the highest (epoch, key) holds: the epoch is
/// made on the LUN, so a higher one is a later takeover.
struct Coordinator {
  NodeId node{};
  std::string endpoint;  ///< Where its csvd listens.
  Epoch epoch{};
  Key key{};
  bool operator==(const Coordinator&) const = default;
};

struct PeerStatus {
  NodeId id{};
  std::string name;
  std::string address;
  bool present = false;           ///< It echoed a beat within the last term.
  std::uint64_t incarnation = 0;  ///< One life of its csvd; 0: never heard.
  TimePoint last_echo{};          ///< When it last echoed one of ours.
  TimePoint last_heard{};         ///< When its own last beat came.
  std::string trouble = {};       ///< Why it cannot be reached; empty: it can, as far as is known.
};

/// The cluster as this node's csvd sees it: who is here, who coordinates which volume, and until
/// when this node may act (the membership lease, A14). One loop. What it knows is lost with the
/// process, and heard again within a beat.
class Membership {
 public:
  virtual ~Membership() = default;

  /// A peer's connection whose first message was this Beat.
  virtual void accept(std::unique_ptr<protocol::Connection> connection, protocol::Message beat) = 0;

  /// What this node coordinates from now on, and no longer: the peers hear of it with the next
  /// echo.
  virtual void coordinating(const std::string& volume, Epoch epoch, Key key) = 0;
  virtual void gave_up(const std::string& volume) = 0;

  /// Who coordinates the volume as far as is known; this node too. Kept when that node goes silent:
  /// nobody else is known.
  [[nodiscard]] virtual std::optional<Coordinator> coordinator(const std::string& volume) const = 0;
  /// The I/O gate of a volume on this node: closed at and after this moment. Grows only; not while
  /// the volume is stopped.
  [[nodiscard]] virtual TimePoint open_until(const std::string& volume) const = 0;
  /// This node's own lease, for what it coordinates.
  [[nodiscard]] virtual TimePoint open_until() const = 0;

  [[nodiscard]] virtual std::vector<PeerStatus> peers() const = 0;
  /// What is claimed is known: every peer has echoed a beat of ours since we started, or its
  /// machine refused the connection, so that no csvd runs there.
  [[nodiscard]] virtual bool settled() const = 0;
  /// Every peer has echoed a beat within the last term.
  [[nodiscard]] virtual bool all_present() const = 0;
  /// A peer that is present says that it coordinates the volume.
  [[nodiscard]] virtual bool claimed_by_peer(const std::string& volume) const = 0;

  /// Whom the cluster has given the volume to. An engine without votes gives nothing to anybody:
  /// there it is configured, or commanded.
  struct Assignment {
    bool decided = false;  ///< The cluster decides, and there is a quorum.
    NodeId node{};         ///< NodeId{}: nobody, for now.
    std::string reason;    ///< Why it is not decided.
    bool stopped = false;  ///< Nobody, by command.
  };
  [[nodiscard]] virtual std::optional<Assignment> assigned(const std::string&) const {
    return std::nullopt;
  }
  /// Of the configuration in force, for what is written to a volume.
  [[nodiscard]] virtual ClusterTag tag() const { return {}; }
  /// Until when a csvd on the node may still answer from what it knows. Now or before: it may not.
  /// nullopt: not known, so that a whole term has to be waited.
  [[nodiscard]] virtual std::optional<TimePoint> answers_until(NodeId) const {
    return std::nullopt;
  }
  /// The process that coordinated on that node is gone for certain.
  [[nodiscard]] virtual bool process_gone(NodeId) const { return false; }
  /// The engine's own heartbeats, on whatever networks it has, do not reach that node.
  [[nodiscard]] virtual bool out_of_reach(NodeId) const { return false; }
  /// Nodes that an administrator, or who acts for one, has fenced: no mount of theirs is let in.
  /// With the number of that fence of the node.
  [[nodiscard]] virtual std::map<NodeId, std::uint64_t> fenced() const { return {}; }
  /// How often that node has been fenced so, up to now; also by being taken out of the cluster.
  [[nodiscard]] virtual std::uint64_t fences(NodeId) const { return 0; }
  /// False: the cluster has no such node, or no longer. No mount of it is let in either.
  [[nodiscard]] virtual bool belongs(NodeId) const { return true; }
  /// Taking the volume over has failed here, or has gone well: whether this node can do it.
  virtual void able(const std::string&, bool) {}
};

}  // namespace csv::cluster
