#pragma once
#include <chrono>
#include <cstdint>

#include "csvfs/base/function.h"

namespace csv {

using namespace std::chrono_literals;

/// Time since boot on CLOCK_BOOTTIME (it goes on while the machine sleeps); in a simulation,
/// virtual time. Only differences mean something, and never across machines.
using Duration = std::chrono::nanoseconds;
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;
/// Nanoseconds since 1970, for what people see and for file times.
enum class WallTime : std::int64_t {};

/// The door to time: what the deciding code may know of clocks.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual TimePoint now() const = 0;
  [[nodiscard]] virtual WallTime wall_now() const = 0;
};

/// One thread that runs what it is given, in order: the home of everything that is not
/// thread-safe. Production: Boost.Asio (asio_loop.h); simulation: virtual time.
///
/// post() and now() may be called from any thread; all else on the loop's own only. Work still
/// queued when the loop ends is destroyed unrun.
class Loop : public Clock {
 public:
  enum class TimerId : std::uint64_t {};

  virtual void post(Function<void()> work) = 0;
  /// Runs `work` once, at or after now + delay. Own thread only.
  virtual TimerId after(Duration delay, Function<void()> work) = 0;
  /// The timer will not run any more; no effect if it has. Own thread only.
  virtual void cancel(TimerId timer) = 0;
  /// True on the loop's own thread.
  [[nodiscard]] virtual bool here() const = 0;
};

}  // namespace csv
