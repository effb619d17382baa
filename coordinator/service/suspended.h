#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "coordinator/volume/catalog.h"
#include "csvfs/base/ids.h"

namespace csv::service {

using volume::Touch;

/// What mounts had open whose sessions were ended without a goodbye, and what others have done to
/// it since: a mount that comes back may go on with exactly what nobody touched (A3). One session a
/// node, the last that ended; or one that has not, for a successor who may have to end it. The rows
/// are in the catalog; this is what they say, so that nothing is written that stands there already.
/// Only decides. Loop's thread.
class Suspended {
 public:
  /// Files of one node: beyond that many what was open is not listed; beyond as many that were
  /// touched all of it is given up.
  static constexpr std::size_t kMostListed = 4096, kMostTouched = 16'384;
  /// Of a row that is not written yet: the catalog puts the next one that is made in its place.
  static constexpr InodeId kNoInode{std::numeric_limits<std::int64_t>::max()};

  [[nodiscard]] bool empty() const { return rows_.empty(); }
  [[nodiscard]] std::size_t count() const { return rows_.size(); }
  /// Replaces what the node had.
  void add(volume::SuspendedRow row);
  void knows_no_inode_from(NodeId node, InodeId next);
  void forget(NodeId node) { rows_.erase(node); }
  [[nodiscard]] const volume::SuspendedRow* find(NodeId node) const;
  [[nodiscard]] std::vector<NodeId> nodes() const;

  struct Mark {
    NodeId node{};
    InodeId inode{};
    Touch touched{};
  };
  /// What has yet to be noted if a session of `by`, of that incarnation, touches the file in this
  /// way: a mount does not stand in its own way.
  [[nodiscard]] std::vector<Mark> unmarked(InodeId inode, Touch how, NodeId by,
                                           std::uint64_t incarnation) const;
  /// False: the node has too many by now, and is to be forgotten.
  bool note(const Mark& mark);
  /// Nobody has touched the file in one of these ways.
  [[nodiscard]] bool untouched(const volume::SuspendedRow& row, InodeId inode, Touch ways) const;

 private:
  std::map<NodeId, volume::SuspendedRow> rows_;
};

}  // namespace csv::service
