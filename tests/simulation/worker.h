#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "csvfs/base/blocking.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// A Worker under virtual time: a real thread, because what it runs must be able to wait in the
/// middle of a foreign library's call, but one that runs only while the world stands still. While
/// it waits, time goes on. So exactly one thread runs at any moment, in an order the seed decides.
/// It belongs to the process of `loop`: frozen with it, and destroyed before it.
class SimWorker final : public Worker {
 public:
  SimWorker(World& world, SimLoop& loop);
  /// Runs what was posted, as the interface says: what it waits for must have been answered, or be
  /// answered by events still to come, which are run meanwhile.
  ~SimWorker() override;
  void post(Function<void()> work) override;
  Blocking& blocking() override { return blocking_; }

 private:
  struct Waits final : Blocking {
    explicit Waits(SimWorker& owner) : worker{owner} {}
    void wait(Function<void(std::function<void()> wake)> start) override;
    SimWorker& worker;
  };
  enum class Turn { world, worker };
  void thread_main();
  void give_turn();                                    ///< World's thread: until the worker rests.
  void take_rest(std::unique_lock<std::mutex>& lock);  ///< Worker's thread: until it is its turn.

  World& world_;
  SimLoop& loop_;
  Waits blocking_{*this};
  std::mutex mutex_;
  std::condition_variable changed_;
  Turn turn_ = Turn::world;
  std::deque<Function<void()>> queue_;
  bool scheduled_ = false;  ///< An event that gives it the turn is on its way.
  bool idle_ = true, ending_ = false, ended_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::thread thread_;
};

}  // namespace csv::sim
