#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/cluster/pinger.h"
#include "coordinator/cluster/verdict.h"

namespace csv::cluster {

/// What this node does when it has lost its quorum: QuorumLoss, driven. It pings, tells (log and
/// events), and has csvd restarted or the machine rebooted; the gate closes by itself, at the end
/// of the lease, whatever comes of the rest. One loop.
class LossResponse {
 public:
  struct Surroundings {
    Loop* loop = nullptr;
    Pinger* pinger = nullptr;
    /// This node's lease runs.
    std::function<bool()> quorate;
    /// Numeric, asked for at each loss; one that answers is enough.
    std::function<std::vector<std::string>()> isolation_addresses;
    /// Keeps for the next life of this process whether it is the restart for a loss (QuorumLoss);
    /// not across a reboot. Called with true before `restart`.
    std::function<void(bool restarted)> remember;
    /// Both from the loop; neither may destroy this before it has returned.
    std::function<void()> restart;
    std::function<void()> reboot;
  };
  LossResponse(Surroundings surroundings, QuorumLoss::Rules rules, bool restarted);
  ~LossResponse();

  /// Something may have changed. It looks each second by itself, too.
  void look();

  /// Surroundings::restart was given up, because the quorum is back.
  void not_restarted();
  [[nodiscard]] const QuorumLoss& state() const { return loss_; }

 private:
  void tick();
  void remember();
  void ping();
  void told(QuorumLoss::Step before);

  Surroundings with_;
  QuorumLoss::Rules rules_;
  QuorumLoss loss_;
  bool remembered_;
  std::uint64_t round_ = 0;  ///< Of pings.
  std::size_t unanswered_ = 0;
  std::optional<bool> answered_;
  Loop::TimerId timer_{};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

std::string_view to_text(QuorumLoss::Step step);

/// The gateways of /proc/net/route's default routes, as numeric addresses, those of lower metric
/// first. Lines that make no sense are passed over.
std::vector<std::string> default_gateways(std::string_view proc_net_route);

}  // namespace csv::cluster
