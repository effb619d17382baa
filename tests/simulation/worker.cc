#include "tests/simulation/worker.h"

#include "csvfs/base/check.h"

namespace csv::sim {

SimWorker::SimWorker(World& world, SimLoop& loop)
    : world_{world}, loop_{loop}, thread_{[this] { thread_main(); }} {}

SimWorker::~SimWorker() {
  CSV_CHECK(world_.on_main_thread());
  ending_ = true;
  if (idle_ && !scheduled_) give_turn();
  // It may be waiting for something: only events can bring that about.
  bool over = ended_ || world_.run([this] { return ended_; }, world_.now() + 1h);
  CSV_CHECK(over);
  thread_.join();
  *alive_ = false;
}

void SimWorker::post(Function<void()> work) {
  // Whoever calls has the turn, so nothing else touches the queue.
  queue_.push_back(std::move(work));
  if (!idle_ || scheduled_) return;
  scheduled_ = true;
  loop_.post([this, alive = alive_] {
    if (!*alive) return;
    scheduled_ = false;
    give_turn();
  });
}

void SimWorker::give_turn() {
  std::unique_lock lock{mutex_};
  turn_ = Turn::worker;
  changed_.notify_all();
  changed_.wait(lock, [this] { return turn_ == Turn::world; });
}

void SimWorker::take_rest(std::unique_lock<std::mutex>& lock) {
  turn_ = Turn::world;
  changed_.notify_all();
  changed_.wait(lock, [this] { return turn_ == Turn::worker; });
}

void SimWorker::thread_main() {
  std::unique_lock lock{mutex_};
  changed_.wait(lock, [this] { return turn_ == Turn::worker; });
  for (;;) {
    while (!queue_.empty()) {
      idle_ = false;
      auto work = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      work();
      work = nullptr;
      lock.lock();
    }
    idle_ = true;
    if (ending_) break;
    take_rest(lock);
  }
  ended_ = true;
  turn_ = Turn::world;
  changed_.notify_all();
}

void SimWorker::Waits::wait(Function<void(std::function<void()> wake)> start) {
  CSV_CHECK(std::this_thread::get_id() == worker.thread_.get_id());
  struct State {
    bool woken = false, resting = false;
  };
  auto state = std::make_shared<State>();
  start([this, state] {
    CSV_CHECK(!std::exchange(state->woken, true));
    if (!state->resting) return;
    worker.loop_.post([this] { worker.give_turn(); });
  });
  if (state->woken) return;
  state->resting = true;
  std::unique_lock lock{worker.mutex_};
  worker.take_rest(lock);
}

}  // namespace csv::sim
