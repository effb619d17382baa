#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "csvfs/base/function.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/range_set.h"

namespace csv {

/// Threads that tell the kernel to drop pages. It may wait for a page whose content somebody has
/// asked csvfs for, or for csvfs to take what is dirty, so the loop must never do it; and one that
/// waits must not keep others from being dropped, so there are several, made as they are needed.
class PageDropper {
 public:
  /// `tell` makes the kernel drop a range of a node's pages, and returns when it has.
  PageDropper(Loop& loop, std::function<void(std::uint64_t node, Range range)> tell)
      : loop_{&loop}, tell_{std::move(tell)} {}
  PageDropper(const PageDropper&) = delete;
  PageDropper& operator=(const PageDropper&) = delete;
  /// The kernel must have ended the connection before, or it may wait for ever.
  ~PageDropper();

  /// `done` comes on the loop. Loop's thread.
  void drop(std::uint64_t node, std::vector<Range> ranges, Function<void()> done);

 private:
  struct Job {
    std::uint64_t node = 0;
    std::vector<Range> ranges;
    Function<void()> done;
  };
  void work();

  Loop* loop_;
  std::function<void(std::uint64_t, Range)> tell_;
  std::mutex mutex_;
  std::condition_variable more_;
  std::deque<Job> jobs_;
  std::size_t idle_ = 0;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace csv
