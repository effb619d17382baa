#pragma once
#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "csvfs/base/loop.h"
#include "csvfs/base/random.h"

namespace csv::sim {

/// Virtual time and chance. Everything that happens in a simulated cluster is an event here, in an
/// order fixed by the seed: one event at a time, or a worker (worker.h) that was handed the turn.
/// All of it on one thread.
class World {
 public:
  explicit World(std::uint64_t seed);
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// Time since the world began.
  [[nodiscard]] Duration now() const { return now_; }
  /// Of the saboteurs, the network and whatever else has none of its own.
  Random& random() { return random_; }
  Duration between(Duration least, Duration most);

  using EventId = std::pair<Duration, std::uint64_t>;
  EventId at(Duration when, Function<void()> act);
  EventId after(Duration delay, Function<void()> act) { return at(now_ + delay, std::move(act)); }
  void cancel(EventId event) { events_.erase(event); }

  /// Runs events until `until` says true (asked after each), or until `limit`. True: it did.
  bool run(Function<bool()> until, Duration limit);
  [[nodiscard]] std::uint64_t events_run() const { return run_; }
  /// True where events run; false while a worker has the turn.
  [[nodiscard]] bool on_main_stack() const { return on_main_stack_; }
  void set_on_main_stack(bool yes) { on_main_stack_ = yes; }

  /// The history as a number: equal runs say equal things in an equal order.
  void note(std::string_view line);
  [[nodiscard]] std::uint64_t digest() const { return digest_; }
  /// Print what is noted (for following a run by eye).
  void set_verbose(bool verbose) { verbose_ = verbose; }

 private:
  bool on_main_stack_ = true;
  Duration now_{};
  Random random_;
  std::map<EventId, Function<void()>> events_;
  std::uint64_t next_ = 0, run_ = 0;
  std::uint64_t digest_ = 0xcbf29ce484222325ull;
  bool verbose_ = false;
};

/// The loop of one simulated process. Its clock starts anywhere and runs up to 1 % wrong, as
/// clocks do; its wall clock is near the truth.
class SimLoop final : public Loop {
 public:
  struct Skew {
    Duration boot{};          ///< What the clock says when the world begins.
    int parts_per_mille = 0;  ///< Faster (or slower) than the world.
    Duration wall{};          ///< The wall clock is ahead by this.
  };
  SimLoop(World& world, std::string name, Skew skew);
  ~SimLoop() override;  ///< Events of the loop that have not run never will.

  [[nodiscard]] TimePoint now() const override;
  [[nodiscard]] WallTime wall_now() const override;
  void post(Function<void()> work) override;
  TimerId after(Duration delay, Function<void()> work) override;
  void cancel(TimerId timer) override;
  [[nodiscard]] bool here() const override;
  [[nodiscard]] const std::string& name() const { return name_; }
  /// When in the world its clock says so.
  [[nodiscard]] Duration in_world(TimePoint here) const {
    return to_world(here.time_since_epoch() - skew_.boot);
  }
  /// The process stands still (SIGSTOP, a virtual machine that is paused) until then: what is due
  /// meanwhile runs afterwards, in its order. Its clock goes on.
  void freeze(Duration until) { frozen_until_ = std::max(frozen_until_, until); }
  [[nodiscard]] bool stood_still_within(Duration time) const {
    return frozen_until_ > Duration::zero() && world_.now() < frozen_until_ + time;
  }
  /// Somebody sets the wall clock; no other one.
  void set_wall_clock(Duration ahead) { skew_.wall = ahead; }
  /// Runs `work` now as if an event of the loop did, for those who start and end processes; also of
  /// one that stands still, and goes on doing so.
  void enter(Function<void()> work);

 private:
  Duration to_local(Duration world) const;
  Duration to_world(Duration local) const;
  void run(Function<void()> work);
  void execute(Function<void()> work);
  void wake_later();
  void due(std::uint64_t timer, Function<void()> work);

  World& world_;
  std::string name_;
  Skew skew_;
  std::uint64_t next_timer_ = 1;
  std::map<std::uint64_t, World::EventId> timers_;
  std::map<std::uint64_t, World::EventId> posted_;
  std::uint64_t next_post_ = 1;
  Duration frozen_until_{};
  std::deque<Function<void()>> waiting_;  ///< For the end of a freeze; in order.
  bool running_ = false;
};

}  // namespace csv::sim
