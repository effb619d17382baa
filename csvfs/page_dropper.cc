#include "csvfs/page_dropper.h"

#include <pthread.h>

#include <csignal>
#include <utility>

namespace csv {
namespace {

constexpr std::size_t kMostThreads = 64;

/// Signals are the loop thread's.
class Undisturbed {
 public:
  Undisturbed() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  Undisturbed(const Undisturbed&) = delete;
  Undisturbed& operator=(const Undisturbed&) = delete;
  ~Undisturbed() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

}  // namespace

PageDropper::~PageDropper() {
  {
    std::lock_guard held{mutex_};
    stopped_ = true;
    jobs_.clear();
  }
  more_.notify_all();
  for (auto& each : threads_) each.join();
}

void PageDropper::drop(std::uint64_t node, std::vector<Range> ranges, Function<void()> done) {
  std::lock_guard held{mutex_};
  jobs_.push_back({node, std::move(ranges), std::move(done)});
  if (idle_ < jobs_.size() && threads_.size() < kMostThreads) {
    Undisturbed undisturbed;
    threads_.emplace_back([this] { work(); });
    pthread_setname_np(threads_.back().native_handle(), "csvfs-pages");
  }
  more_.notify_one();
}

void PageDropper::work() {
  std::unique_lock held{mutex_};
  for (;;) {
    ++idle_;
    more_.wait(held, [this] { return stopped_ || !jobs_.empty(); });
    --idle_;
    if (stopped_) return;
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    held.unlock();
    for (auto range : job.ranges) tell_(job.node, range);
    loop_->post(std::move(job.done));
    held.lock();
  }
}

}  // namespace csv
