#include "csvfs/base/asio_loop.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <atomic>
#include <map>
#include <thread>

#include "csvfs/base/asio.h"
#include "csvfs/base/check.h"

namespace csv {
namespace {

std::int64_t read_clock(clockid_t clock) {
  timespec t{};
  CSV_CHECK(::clock_gettime(clock, &t) == 0);
  return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

/// CLOCK_BOOTTIME for Asio's timers: time goes on while the machine sleeps. The kernel waits on
/// the monotonic clock, so a timer may be late by a sleep, never early.
struct BootClock {
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = TimePoint;
  [[maybe_unused]] static constexpr bool is_steady = true;
  static time_point now() { return time_point{Duration{read_clock(CLOCK_BOOTTIME)}}; }
};

/// post() wants a copyable handler only to be move constructible; Function is.
struct Run {
  Function<void()> work;
  void operator()() { work(); }
};

using Timer = asio::basic_waitable_timer<BootClock>;

}  // namespace

struct AsioLoop::State {
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  std::map<TimerId, std::unique_ptr<Timer>> timers;
  std::uint64_t next_timer = 1;
  std::atomic<std::thread::id> runner;
  std::thread thread;
};

AsioLoop::AsioLoop() : state_{std::make_unique<State>()} {}

AsioLoop::~AsioLoop() {
  join();
  state_->timers.clear();
}

TimePoint AsioLoop::now() const { return BootClock::now(); }
WallTime AsioLoop::wall_now() const { return WallTime{read_clock(CLOCK_REALTIME)}; }

void AsioLoop::post(Function<void()> work) { asio::post(state_->context, Run{std::move(work)}); }

Loop::TimerId AsioLoop::after(Duration delay, Function<void()> work) {
  auto id = TimerId{state_->next_timer++};
  auto& timer = state_->timers[id];
  timer = std::make_unique<Timer>(state_->context);
  timer->expires_at(now() + std::max(delay, Duration{0}));
  timer->async_wait([this, id, work = std::move(work)](boost::system::error_code error) mutable {
    // Cancelled after it was already due: the map says whether it still counts.
    if (error || state_->timers.erase(id) == 0) return;
    work();
  });
  return id;
}

void AsioLoop::cancel(TimerId timer) { state_->timers.erase(timer); }

bool AsioLoop::here() const { return state_->runner.load() == std::this_thread::get_id(); }

void AsioLoop::run() {
  state_->runner = std::this_thread::get_id();
  // A write to a peer that has hung up is an error. (Not every library asks for no signal.)
  sigset_t broken_pipe, before;
  sigemptyset(&broken_pipe);
  sigaddset(&broken_pipe, SIGPIPE);
  CSV_CHECK(::pthread_sigmask(SIG_BLOCK, &broken_pipe, &before) == 0);
  state_->context.run();
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  state_->runner = std::thread::id{};
}

void AsioLoop::start(const std::string& name) {
  state_->thread = std::thread{[this, name] {
    ::pthread_setname_np(::pthread_self(), name.substr(0, 15).c_str());
    run();
  }};
}

void AsioLoop::stop() { state_->context.stop(); }

void AsioLoop::join() {
  stop();
  if (state_->thread.joinable()) state_->thread.join();
}

boost::asio::io_context& AsioLoop::context() { return state_->context; }

}  // namespace csv
