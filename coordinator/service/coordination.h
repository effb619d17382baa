#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/cluster/membership.h"
#include "coordinator/service/volume_service.h"
#include "csvfs/base/task.h"

namespace csv::service {

/// This node's part in coordinating one volume: takes it over when it is wanted here and nobody
/// else has it, takes it over again after a stop that was not wanted, and steps back where somebody
/// else did. It decides with what the membership knows; that two nodes never coordinate at once is
/// the LUN's doing (VolumeService::take_over), whatever is decided here.
///
/// With votes the cluster gives each volume to a node (Membership::assigned), and this follows.
/// Without them nothing fails over by itself: a peer that coordinates and goes silent keeps the
/// volume until it comes back or a command gives it to another node.
///
/// One loop. Destroying it while it serves is like a crash; stop() first.
class Coordination {
 public:
  enum class State { idle, waiting, taking_over, serving, closing };
  struct Setup {
    Loop* loop = nullptr;
    cluster::Membership* membership = nullptr;
    std::string volume;
    NodeId node{};
    bool wanted = false;  ///< From the start; else only by start().
    /// VolumeService::take_over with this node's surroundings.
    std::function<Task<Expected<std::unique_ptr<VolumeService>>>()> take_over;
  };
  struct Timing {
    /// For peers to say what they coordinate, before a start without a command.
    Duration patience = 2s;
    /// For each present peer with a lower number, which may be about to take over as well.
    Duration precedence = 3s;
    Duration shortest_pause = 1s, longest_pause = 30s;  ///< Between two attempts; doubles.
    /// Served this long, a stop is no sign of a lasting trouble: nodes that take the volume from
    /// each other, or content that ends each tenure. Where the LUN went away shortest_pause is
    /// enough.
    Duration steady = 1min;
    /// A target that restarts serves longer than this in between. So many shorter tenures one after
    /// the other that ended with the LUN are something that ends them, and pauses grow.
    Duration brief = 2s;
    int many_brief = 5;
    /// A node that is to hand the volume over, and takes part, has this long to close it.
    Duration handover = 10s;
  };

  explicit Coordination(Setup setup) : Coordination{std::move(setup), Timing{}} {}
  Coordination(Setup setup, Timing timing);
  ~Coordination();

  /// The membership knows something new.
  void news() { changed_.notify(); }
  /// By command: takes the volume over now, from whoever has it. Answers once it is served here, or
  /// with why the attempt failed (more attempts follow). Where nodes vote only what the cluster
  /// gives to this one: Errc::not_coordinator.
  Task<Expected<void>> start();
  /// By command: gives it up in good order, and does not take it again but by command. Answers once
  /// that is done. Errc::refused where it was not served here.
  Task<Expected<void>> stop();

  /// Null unless it is served here.
  [[nodiscard]] VolumeService* service() const { return service_.get(); }
  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] const std::string& reason() const { return reason_; }  ///< Why it is not served.
  [[nodiscard]] TimePoint since() const { return since_; }             ///< Of the state.
  [[nodiscard]] const std::string& volume() const { return setup_.volume; }

 private:
  Task<void> keep();
  Task<void> wait_for_claims();
  Task<void> attempt();
  Task<void> serve();
  Task<void> wait_at_most(Duration time);
  void pause_before_next(bool was_steady);
  Task<void> follow(const cluster::Membership::Assignment& given);
  [[nodiscard]] bool taken_away() const;
  [[nodiscard]] std::optional<std::string> must_wait() const;
  [[nodiscard]] bool superseded() const;
  void enter(State state, std::string reason = {});
  void answer(const Expected<void>& result);

  Setup setup_;
  Timing timing_;
  State state_ = State::idle;
  std::string reason_;
  TimePoint since_{};
  bool wanted_ = false;
  bool commanded_ = false;  ///< The next attempt asks nobody.
  bool given_up_ = false;   ///< By command, and not wanted by one since.
  bool beaten_ = false;     ///< The last tenure was ended by a fence or a newer owner.
  std::optional<Error> stopped_;
  int brief_losses_ = 0;               ///< Tenures up to now that were brief, and lost the LUN.
  Duration pause_{};                   ///< The last one between two attempts.
  TimePoint not_before_{};             ///< Of the next attempt that nobody commands.
  std::optional<TimePoint> given_at_;  ///< When the cluster gave it to us, while it is ours.
  std::unique_ptr<VolumeService> service_;
  std::vector<Completion<Expected<void>>::Done> starting_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Signal changed_;
  TaskScope tasks_;
};

/// stop() of all of them at once, so that a volume whose LUN does not answer keeps no other one
/// from being given up. Ends when all have ended. They outlive the task, or are destroyed after it.
Task<void> stop_all(Loop& loop, std::vector<Coordination*> all);

std::string_view to_text(Coordination::State state);

/// The answer to a mount that has come to the wrong node: who coordinates the volume, if that is
/// known; or that nobody does, as it is stopped.
protocol::Message not_coordinated(const protocol::Message& hello, NodeId here,
                                  const std::optional<cluster::Coordinator>& who,
                                  bool stopped = false);

}  // namespace csv::service
