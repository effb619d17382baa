#pragma once
#include <functional>

#include "csvfs/base/function.h"

namespace csv {

/// How a thread that may wait does wait: for code that must be synchronous because a library calls
/// it so (SQLite's VFS) or because it is a tool.
class Blocking {
 public:
  virtual ~Blocking() = default;
  /// Calls start(wake), then returns once wake() was called, by any thread, exactly once. The
  /// simulation lets virtual time go on meanwhile. Only on the thread this object belongs to.
  virtual void wait(Function<void(std::function<void()> wake)> start) = 0;
};

/// Waits with a semaphore. Stateless: one serves any number of threads.
class ThreadBlocking final : public Blocking {
 public:
  void wait(Function<void(std::function<void()> wake)> start) override;
};

/// A thread of its own that runs what it is given, in order, and may wait in it. A volume's writer
/// is one. post() from any thread; the destructor runs what was posted, then joins.
class Worker {
 public:
  virtual ~Worker() = default;
  virtual void post(Function<void()> work) = 0;
  /// For use by work running on this worker.
  virtual Blocking& blocking() = 0;
};

}  // namespace csv
