#pragma once
#include <memory>

#include "coordinator/cluster/engine.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/random.h"

namespace csv::cluster {

/// The engine that ships: Corosync, by its process groups (libcpg) and its quorum device
/// (libvotequorum), which this process is on its node.
///
/// Two threads of its own talk to the daemon, because a call into its libraries waits for as long
/// as the daemon hangs; the loop never does. A call that has not come back after `patience` is
/// taken for a hang, and `lost` says so. When the daemon answers again, or another one has been
/// started, the group is joined as another life. A view is told only once the vote for its ring has
/// been given.
///
/// The vote. The verdict is asked as soon as the nodes change and the answer given at once; the
/// daemon holds back everything else in the whole cluster until then, or for
/// quorum.device.sync_timeout (corosync_conf.h). It is given anew every second. While the loop
/// stands still the vote is withdrawn, and when a verdict's moment has come it is whatever the loop
/// does. The end of this object withdraws nothing that has no end of its own: a csvd that is only
/// restarted keeps its node quorate, for quorum.device.timeout (10 s), during which a change
/// of nodes waits for it as above. If the vote was not cast last, or has an end, the device signs
/// off, and is not waited for.
///
/// Destruction waits for the threads for up to a second. A thread that is still in a call by then
/// is left to itself: it touches nothing of ours any more, and ends when the call does.
class CorosyncEngine final : public Engine {
 public:
  struct Surroundings {
    Loop* loop = nullptr;
    NodeId node{};  ///< As configured: another number in corosync.conf is a mistake that is told.
    Random random = Random::from_system();
    std::string group = "csvfs";  ///< Of processes; the same on every node.
  };

  explicit CorosyncEngine(Surroundings surroundings);
  ~CorosyncEngine() override;

  void start(Handlers handlers) override;
  void multicast(std::string message) override;
  void vote_by(Verdict verdict) override;
  [[nodiscard]] Member self() const override;

  /// How long a call may take, and a member may say nothing while all wait for it.
  static constexpr Duration kPatience = 2s;
  /// What waits to be sent, and what waits for the loop. More to be sent is a loss of the group.
  static constexpr std::size_t kQueueBytes = 16u << 20;

 private:
  struct Shared;
  class Talk;
  class Vote;
  void tick();
  void lose(std::uint64_t attempt, Error why);

  std::shared_ptr<Shared> shared_;
};

}  // namespace csv::cluster
