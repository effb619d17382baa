#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "csvfs/base/blocking.h"
#include "csvfs/base/loop.h"

namespace csv {

/// A Worker as a std::thread named `name` (at most 15 characters).
class ThreadWorker final : public Worker {
 public:
  explicit ThreadWorker(std::string name);
  ~ThreadWorker() override;
  void post(Function<void()> work) override;
  Blocking& blocking() override { return blocking_; }

 private:
  void run(const std::string& name);
  ThreadBlocking blocking_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Function<void()>> queue_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace csv
