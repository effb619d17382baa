#include "coordinator/cluster/verdict.h"

namespace csv::cluster {

std::string_view to_text(Finding finding) {
  switch (finding) {
    case Finding::healthy: return "healthy";
    case Finding::service_lost: return "service lost";
    case Finding::storage_lost: return "storage path lost";
    case Finding::failed: return "failed";
    case Finding::partitioned: return "partitioned";
    case Finding::isolated: return "isolated";
    case Finding::unknown: return "unknown";
  }
  return "?";
}

Verdict judge(const Signals& signals) {
  if (signals.network) {
    if (!signals.service)
      return {Finding::service_lost, false, "its network heartbeat comes, its csvd is gone"};
    if (signals.storage == false)
      return {Finding::storage_lost, false,
              "its network heartbeat comes, its slots on the volumes stand still"};
    return {Finding::healthy, false, "its heartbeats come"};
  }
  if (!signals.storage)
    return {Finding::unknown, false,
            "its network heartbeat is gone, and no slot of it on a volume is to be seen"};
  bool answers = signals.ping == true;
  if (signals.storage == false)
    return {Finding::failed, signals.our_side_quorate,
            answers ? "its heartbeats are gone from network and storage; the machine still answers "
                      "pings"
                    : "its heartbeats are gone from network and storage, and it answers no pings"};
  Verdict verdict{answers ? Finding::partitioned : Finding::isolated, signals.our_side_quorate,
                  answers ? "it answers pings, and its slots on the volumes move, but its network "
                            "heartbeat is gone"
                          : "its slots on the volumes move, but nothing of it is heard"};
  if (signals.its_side_quorate != true) {
    verdict.why += signals.its_side_quorate ? "; by its own slot it has no quorum" : "";
  } else if (!signals.lease_over) {
    verdict.fence = false;
    verdict.why += "; its slot says that its side has a quorum";
  } else {
    verdict.why += "; its slot says that its side has a quorum, though its lease is over";
  }
  return verdict;
}

QuorumLoss::Action QuorumLoss::next(const Seen& seen, TimePoint now) {
  if (!began_) {
    began_ = true;
    if (restarted_ && !seen.quorate) {
      enter(Step::restarting, now);
      reason_ = "it lost its quorum, and has been restarted to find it again";
      return Action::none;
    }
  }
  if (step_ == Step::rebooting) return Action::none;
  if (seen.quorate) {
    if (step_ != Step::serving) {
      enter(Step::serving, now);
      reason_.clear();
      return Action::serve;
    }
    if (now - since_ >= rules_.forget_after) restarted_ = false;
    return Action::none;
  }
  switch (step_) {
    case Step::serving:
      enter(Step::pinging, now);
      reason_ = "it lost its quorum";
      return Action::close_gate_and_ping;
    case Step::pinging: {
      bool known = seen.answered.has_value() || !rules_.has_isolation_addresses;
      if (!known && now - since_ < rules_.ping_for) return Action::none;
      // What has been restarted already is given the time of a restart again.
      if (now - since_ < (restarted_ ? rules_.restart_for : rules_.settle)) return Action::none;
      if (!rules_.has_isolation_addresses)
        reason_ = "it lost its quorum; no isolation addresses are configured";
      else if (seen.answered == true)
        reason_ =
            "it lost its quorum; isolation addresses answer, so it is the other nodes that are "
            "not reached";
      else
        reason_ = "it lost its quorum and is isolated: no isolation address answers";
      if (restarted_) return give_up(now);
      restarted_ = true;
      enter(Step::restarting, now);
      return Action::restart_service;
    }
    case Step::restarting:
      if (now - since_ < rules_.restart_for) return Action::none;
      reason_ += "; a restart of the service did not help";
      return give_up(now);
    case Step::rebooting:
    case Step::stopped: return Action::none;
  }
  return Action::none;
}

QuorumLoss::Action QuorumLoss::give_up(TimePoint now) {
  if (rules_.reboot) {
    enter(Step::rebooting, now);
    return Action::reboot;
  }
  enter(Step::stopped, now);
  return Action::stop;
}

void QuorumLoss::enter(Step step, TimePoint now) {
  step_ = step;
  since_ = now;
}

}  // namespace csv::cluster
