#pragma once
#include <deque>
#include <optional>
#include <unordered_map>
#include <utility>

#include "tests/fakes/manual_loop.h"

namespace csv::fakes {

/// A process of one machine in the time of a ManualLoop: its clock runs `per_mille` thousandths of
/// the true rate from a value of its own, and it can be stopped (SIGSTOP, a machine that sleeps):
/// what becomes due meanwhile runs, in order, when it goes on. Outlives everything that ran on it.
class NodeLoop final : public Loop {
 public:
  NodeLoop(ManualLoop& world, int per_mille, Duration offset = {})
      : world_{&world}, per_mille_{per_mille}, began_{world.now()}, offset_{offset} {}

  [[nodiscard]] TimePoint now() const override {
    return began_ + offset_ + (world_->now() - began_) * per_mille_ / 1000;
  }
  [[nodiscard]] WallTime wall_now() const override { return world_->wall_now(); }
  void post(Function<void()> work) override {
    world_->post([this, work = std::move(work)]() mutable { run({}, std::move(work)); });
  }
  TimerId after(Duration delay, Function<void()> work) override {
    TimerId id{++last_timer_};
    // Never early on its own clock.
    auto real = delay * 1000 / per_mille_ + 1ns;
    timers_[id] = world_->after(real, [this, id, work = std::move(work)]() mutable {
      timers_.erase(id);
      run(id, std::move(work));
    });
    return id;
  }
  void cancel(TimerId timer) override {
    if (auto found = timers_.find(timer); found != timers_.end()) {
      world_->cancel(found->second);
      timers_.erase(found);
    }
    std::erase_if(due_, [timer](const auto& one) { return one.first == timer; });
  }
  [[nodiscard]] bool here() const override { return true; }

  void stop() { stopped_ = true; }
  void go_on() {
    stopped_ = false;
    world_->post([this] {
      while (!stopped_ && !due_.empty()) {
        auto work = std::move(due_.front().second);
        due_.pop_front();
        work();
      }
    });
  }
  [[nodiscard]] bool stopped() const { return stopped_; }
  /// When this node's clock shows `moment`, in the world's time.
  [[nodiscard]] TimePoint in_world(TimePoint moment) const {
    return began_ + (moment - began_ - offset_) * 1000 / per_mille_;
  }

 private:
  void run(std::optional<TimerId> id, Function<void()> work) {
    if (stopped_ || !due_.empty()) {
      due_.emplace_back(id, std::move(work));
      return;
    }
    work();
  }

  ManualLoop* world_;
  int per_mille_;
  TimePoint began_;
  Duration offset_;
  bool stopped_ = false;
  std::deque<std::pair<std::optional<TimerId>, Function<void()>>> due_;
  std::unordered_map<TimerId, TimerId> timers_;
  std::uint64_t last_timer_ = 0;
};

}  // namespace csv::fakes
