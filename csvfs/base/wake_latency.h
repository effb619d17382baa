#pragma once
#include <cstdint>

#include "csvfs/base/function.h"
#include "csvfs/base/loop.h"

namespace csv {

/// Keeps this machine's idle processors from sleeping deeply for as long as requests come one after
/// the other. A program that waits for each of its calls (a listing, small files) pays several
/// wake-ups a call, and what one costs is mostly how deep the processor slept. Held at a thousand
/// requests a second, when it would wake all the time anyway, and let go within 20 ms of quiet; so
/// a machine without such work idles as its administrator has set it.
///
/// By Linux's bound on that latency (Documentation/power/pm_qos_interface.rst,
/// /dev/cpu_dma_latency). One loop; all calls on its thread.
class WakeLatency {
 public:
  /// `hold(true)` has processors wake quickly until `hold(false)`; empty: nothing is done.
  WakeLatency(Loop& loop, Function<void(bool)> hold) : loop_{&loop}, hold_{std::move(hold)} {}
  WakeLatency(const WakeLatency&) = delete;
  WakeLatency& operator=(const WakeLatency&) = delete;
  ~WakeLatency();

  /// A request has come.
  void request() {
    if (++since_ == kMany && !held_) many();
  }

 private:
  static constexpr std::uint32_t kMany = 32;  ///< Within kWithin: the rate at which it is held.

  void many();
  void look();

  Loop* loop_;
  Function<void(bool)> hold_;
  std::uint32_t since_ = 0;  ///< Requests since `from_`.
  TimePoint from_{};
  bool held_ = false;
  Loop::TimerId timer_{};
};

/// The machine's own, for WakeLatency. The bound ends with the process, however it ends. Empty
/// where there is none, or it may not be used (it needs root): nothing is lost but time.
Function<void(bool)> machine_wake_latency();

}  // namespace csv
