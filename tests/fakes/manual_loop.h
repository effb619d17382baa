#pragma once
#include <deque>
#include <map>
#include <utility>

#include "csvfs/base/loop.h"

namespace csv::fakes {

/// A Loop whose time stands still until a test moves it. One thread.
class ManualLoop final : public Loop {
 public:
  [[nodiscard]] TimePoint now() const override { return now_; }
  [[nodiscard]] WallTime wall_now() const override {
    return WallTime{now_.time_since_epoch().count()};
  }
  void post(Function<void()> work) override { queue_.push_back(std::move(work)); }
  TimerId after(Duration delay, Function<void()> work) override {
    TimerId id{++last_timer_};
    timers_.emplace(std::pair{now_ + std::max(delay, Duration{0}), id}, std::move(work));
    return id;
  }
  void cancel(TimerId timer) override {
    std::erase_if(timers_, [timer](const auto& one) { return one.first.second == timer; });
  }
  [[nodiscard]] bool here() const override { return true; }

  /// Runs what is queued, and what that queues, at the present time.
  void settle() {
    while (!queue_.empty()) {
      auto work = std::move(queue_.front());
      queue_.pop_front();
      work();
    }
  }
  /// Lets `time` pass, with every timer at its moment.
  void run_for(Duration time) {
    auto end = now_ + time;
    settle();
    while (!timers_.empty() && timers_.begin()->first.first <= end) {
      auto first = timers_.begin();
      now_ = first->first.first;
      auto work = std::move(first->second);
      timers_.erase(first);
      work();
      settle();
    }
    now_ = end;
  }

 private:
  TimePoint now_{Duration{1'000'000'000'000}};
  std::deque<Function<void()>> queue_;
  std::map<std::pair<TimePoint, TimerId>, Function<void()>> timers_;
  std::uint64_t last_timer_ = 0;
};

}  // namespace csv::fakes
