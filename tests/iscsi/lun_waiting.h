#pragma once
#include <future>
#include <memory>
#include <string>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/thread_worker.h"
#include "iscsi/blocking_lun.h"
#include "iscsi/open_lun.h"

namespace csv::iscsi {

/// A running home loop, and what a test does with Luns on it from its own thread.
struct Home {
  Home() { loop.start("home"); }

  Expected<std::unique_ptr<Lun>> open(const std::string& url, LunOptions options = {}) {
    return wait<std::unique_ptr<Lun>>(
        [&](auto done) { open_lun(loop, url, std::move(options), std::move(done)); });
  }
  /// What `start` answers.
  template <typename T, typename Start>
  Expected<T> wait(Start&& start) {
    std::promise<Expected<T>> answered;
    auto future = answered.get_future();
    start([&answered](Expected<T> result) { answered.set_value(std::move(result)); });
    return future.get();
  }
  /// Everything that was queued on the loop has run.
  void settle() {
    std::promise<void> here;
    loop.post([&] { here.set_value(); });
    here.get_future().get();
  }
  /// Luns are destroyed on their home loop.
  void drop(std::unique_ptr<Lun> lun) {
    std::promise<void> gone;
    loop.post([&, lun = std::move(lun)]() mutable {
      lun.reset();
      gone.set_value();
    });
    gone.get_future().get();
  }
  BlockingLun calls(Lun& lun) { return {lun, blocking}; }

  ThreadBlocking blocking;
  AsioLoop loop;
};

}  // namespace csv::iscsi
