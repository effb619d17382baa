#pragma once
#include <deque>
#include <memory>
#include <utility>

#include "csvfs/base/blocking.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// A Worker under virtual time: a stack of its own, because what it runs must be able to wait in
/// the middle of a foreign library's call. It runs only while the world stands still, and while it
/// waits, time goes on: on the world's own thread, which goes from one stack to the other, in an
/// order the seed decides. It belongs to the process of `loop`: frozen with it, and destroyed
/// before it.
class SimWorker final : public Worker {
 public:
  SimWorker(World& world, SimLoop& loop);
  /// Runs what was posted, as the interface says: what it waits for must have been answered, or be
  /// answered by events still to come, which are run meanwhile.
  ~SimWorker() override;
  void post(Function<void()> work) override;
  Blocking& blocking() override { return blocking_; }

 private:
  class Stack;
  struct Waits final : Blocking {
    explicit Waits(SimWorker& owner) : worker{owner} {}
    void wait(Function<void(std::function<void()> wake)> start) override;
    SimWorker& worker;
  };
  void run();        ///< On its stack, to the end.
  void give_turn();  ///< From the world's stack: until the worker rests.
  void take_rest();  ///< From its own: until it is its turn.

  World& world_;
  SimLoop& loop_;
  Waits blocking_{*this};
  std::deque<Function<void()>> queue_;
  bool scheduled_ = false;  ///< An event that gives it the turn is on its way.
  bool idle_ = true, ending_ = false, ended_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::unique_ptr<Stack> stack_;
};

}  // namespace csv::sim
