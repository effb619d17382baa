#pragma once
#include <memory>
#include <set>
#include <string>

#include "coordinator/cluster/configuration.h"
#include "coordinator/cluster/tag_file.h"
#include "coordinator/cluster/witness.h"
#include "iscsi/open_lun.h"
#include "iscsi/ram_lun.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// Where the witness of a simulated cluster is: a LUN of its own, or a file on a share. What
/// decides is the code that ships.
class WitnessPlace {
 public:
  struct Options {
    cluster::WitnessKind kind = cluster::WitnessKind::none;
    bool only = false;  ///< *Disk only*: it outweighs all nodes.
    iscsi::RamDiskOptions disk;
  };
  /// What witnesses do that must not be believed, to see judges bite.
  struct Forgery {
    bool held_by_all = false;  ///< Whoever asks is told that he holds it.
    bool forgets = false;      ///< It remembers nothing of what was stored.
  };
  Forgery forgery;

  WitnessPlace(World& world, SimLoop& disk_loop, Options options);

  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] cluster::WitnessRecord record() const;
  [[nodiscard]] iscsi::RamDisk* disk() const { return disk_.get(); }
  /// A node's witness, for one life of its csvd. `open` leads to the LUN.
  std::unique_ptr<cluster::Witness> witness(SimLoop& loop, Random& random, std::uint16_t cluster,
                                            NodeId node, iscsi::LunOpener open,
                                            std::function<ClusterTag()> own_tag);
  /// The node's way to it.
  void set_reachable(NodeId node, const std::string& initiator, bool reachable);
  void power_loss();

 private:
  class Forged;
  class NodeFile;
  class OnShare;
  World& world_;
  Options options_;
  std::shared_ptr<iscsi::RamDisk> disk_;
  cluster::TagFile::Content share_{};
  std::set<NodeId> away_;
};

}  // namespace csv::sim
