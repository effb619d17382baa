#include "csvfs/base/thread_worker.h"

#include <pthread.h>

#include <semaphore>

namespace csv {

void ThreadBlocking::wait(Function<void(std::function<void()> wake)> start) {
  // Shared with the waker: it may still be inside release() when the waiter is gone.
  auto done = std::make_shared<std::binary_semaphore>(0);
  start([done] { done->release(); });
  done->acquire();
}

ThreadWorker::ThreadWorker(std::string name)
    : thread_{[this, name = std::move(name)] { run(name); }} {}

ThreadWorker::~ThreadWorker() {
  {
    std::lock_guard lock{mutex_};
    ending_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void ThreadWorker::post(Function<void()> work) {
  // Once it is let go the work may be done, and the worker be ended by who heard so.
  std::lock_guard lock{mutex_};
  queue_.push_back(std::move(work));
  changed_.notify_one();
}

void ThreadWorker::run(const std::string& name) {
  ::pthread_setname_np(::pthread_self(), name.substr(0, 15).c_str());
  std::unique_lock lock{mutex_};
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !queue_.empty(); });
    if (queue_.empty()) return;
    auto work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
}

}  // namespace csv
