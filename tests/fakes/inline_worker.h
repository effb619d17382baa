#pragma once
#include <chrono>
#include <deque>
#include <memory>
#include <utility>

#include "csvfs/base/blocking.h"
#include "csvfs/base/check.h"
#include "tests/fakes/manual_loop.h"

namespace csv::fakes {

/// Runs the loop, some of its time, until `done`; false if it never is.
inline bool run_until(ManualLoop& loop, const std::function<bool()>& done, Duration limit) {
  auto end = loop.now() + limit;
  loop.settle();
  while (!done() && loop.now() < end) loop.run_for(1ms);
  return done();
}

/// Everything on one thread and in virtual time. Whoever waits lets the loop go on meanwhile.
class Turns final : public Blocking {
 public:
  explicit Turns(ManualLoop& loop) : loop_{&loop} {}
  void wait(Function<void(std::function<void()> wake)> start) override {
    bool woken = false;
    start([&woken] { woken = true; });
    CSV_CHECK(run_until(
        *loop_, [&woken] { return woken; }, std::chrono::hours{1}));
  }

 private:
  ManualLoop* loop_;
};

/// A volume's writer without a thread: its work runs on the loop, one piece after the other.
class InlineWorker final : public Worker {
 public:
  explicit InlineWorker(ManualLoop& loop) : state_{std::make_shared<State>(loop)}, turns_{loop} {}
  ~InlineWorker() override {
    // As promised, what was posted runs. Inside its own work the worker is never destroyed.
    CSV_CHECK(!state_->busy);
    pump(state_);
  }
  void post(Function<void()> work) override {
    state_->queue.push_back(std::move(work));
    state_->loop->post([state = state_] { pump(state); });
  }
  Blocking& blocking() override { return turns_; }

 private:
  struct State {
    explicit State(ManualLoop& on) : loop{&on} {}
    ManualLoop* loop;
    std::deque<Function<void()>> queue;
    bool busy = false;
  };
  static void pump(const std::shared_ptr<State>& state) {
    if (std::exchange(state->busy, true)) return;
    while (!state->queue.empty()) {
      auto work = std::move(state->queue.front());
      state->queue.pop_front();
      work();
    }
    state->busy = false;
  }
  std::shared_ptr<State> state_;
  Turns turns_;
};

}  // namespace csv::fakes
