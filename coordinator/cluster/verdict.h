#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "csvfs/base/loop.h"

namespace csv::cluster {

/// What is known of another node, by the one that judges it. Where something cannot be looked at
/// (a judge without storage sees nobody's slot) it is unknown, which is never held against anybody.
struct Signals {
  bool network = false;         ///< The engine's heartbeats: it is among View.nodes.
  bool service = false;         ///< Its csvd is among View.members.
  std::optional<bool> storage;  ///< Its slots on volumes move.
  std::optional<bool> ping;     ///< Asked only when its network heartbeat is gone.
  /// What its slots say of its own side; unknown where they do not move.
  std::optional<bool> its_side_quorate;
  /// No membership lease of its side can be running any more: the term (and what clocks may differ)
  /// has passed since it was last heard. What its slots claim is then only a claim.
  bool lease_over = false;
  bool our_side_quorate = false;
};

enum class Finding : std::uint8_t {
  healthy,
  service_lost,  ///< Its csvd is gone: its volumes move, its mounts go on until their lease ends.
  storage_lost,  ///< Its path is lost: block redirected.
  failed,        ///< No sign of life: take over, restart its VMs.
  partitioned,   ///< Alive, and it answers pings, but the cluster's network does not reach it.
  isolated,      ///< Alive, as its slots show, and it answers nothing.
  unknown,       ///< Not heard, and nothing can be proven without storage.
};
std::string_view to_text(Finding finding);

struct Verdict {
  Finding finding{};
  /// It is to be fenced and its volumes taken over. Never by a side that is not quorate.
  bool fence = false;
  std::string why;  ///< What was seen, for people.
};

/// The table of docs/votes.md. Pure.
Verdict judge(const Signals& signals);

/// What a node does that finds itself without quorum, step by step. A state machine without clock,
/// network or processes: it is told the time and what was seen, and says what to do.
///
/// The gate closes first, whatever comes of the rest. Then the isolation addresses are pinged, the
/// cluster service is restarted once, the machine is rebooted if so configured, and else it stays
/// stopped with the reason. With quorum it serves again from wherever it was, but for a reboot.
class QuorumLoss {
 public:
  struct Rules {
    Duration ping_for = 3s;  ///< How long the addresses have to answer.
    /// A quorum that comes back within this was being decided (a witness that changes hands, nodes
    /// that form anew), and nothing but waiting is done meanwhile.
    Duration settle = 10s;
    Duration restart_for = 60s;     ///< How long a restarted service has to find a quorum.
    Duration forget_after = 10min;  ///< So long quorate, and the next loss begins with a restart.
    bool reboot = false;
    bool has_isolation_addresses = true;
  };
  enum class Step : std::uint8_t { serving, pinging, restarting, rebooting, stopped };
  /// To be done once, now.
  enum class Action : std::uint8_t {
    none,
    close_gate_and_ping,
    restart_service,
    reboot,
    stop,
    serve
  };

  /// A restart may end this very process: what must not be forgotten with it. `restarted` is kept
  /// by the caller (a file under /run: a reboot forgets it) and given to the next life.
  QuorumLoss(Rules rules, bool restarted) : rules_{rules}, restarted_{restarted} {}

  struct Seen {
    bool quorate = false;
    /// An isolation address has answered since close_gate_and_ping; none: no news yet.
    std::optional<bool> answered;
  };
  /// Called when something changes, and at least every second. A life that has not been quorate,
  /// and is not the restart for a loss, waits for its first quorum without doing anything.
  Action next(const Seen& seen, TimePoint now);

  /// restart_service was not done: the quorum was back before it could be. It counts for nothing.
  void not_restarted() { restarted_ = false; }
  /// For what is pinged from now on.
  void has_isolation_addresses(bool yes) { rules_.has_isolation_addresses = yes; }

  [[nodiscard]] Step step() const { return step_; }
  [[nodiscard]] bool restarted() const { return restarted_; }
  /// Why it does not serve; empty while it does.
  [[nodiscard]] const std::string& reason() const { return reason_; }

 private:
  Action give_up(TimePoint now);
  void enter(Step step, TimePoint now);

  Rules rules_;
  bool restarted_;
  Step step_ = Step::stopped;
  TimePoint since_{};
  bool began_ = false;
  std::string reason_ = "it has not seen a quorum yet";
};

}  // namespace csv::cluster
