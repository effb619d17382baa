#pragma once
#include <coroutine>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>

#include "csvfs/base/check.h"
#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "csvfs/base/loop.h"

// Coroutines that know no event loop, so that the same code runs in production and under virtual
// time. All of a task runs on one thread, that of the loop its awaits complete on.
//
// For the writer: parameters of a coroutine are copied into its frame; take values or references
// to what surely outlives it, never a reference to a temporary. A lambda that is a coroutine must
// outlive it: prefer functions. No exceptions: an escaping one aborts.

namespace csv {

template <typename T = void>
class Task;

namespace detail {

struct FinalAwaiter {
  bool await_ready() const noexcept { return false; }
  template <typename P>
  std::coroutine_handle<> await_suspend(std::coroutine_handle<P> self) noexcept {
    auto next = self.promise().continuation;
    return next ? next : std::noop_coroutine();
  }
  void await_resume() const noexcept {}
};

struct PromiseBase {
  std::coroutine_handle<> continuation;
  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return {}; }
  void unhandled_exception() noexcept { std::terminate(); }
};

template <typename T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <typename U>
  void return_value(U&& u) {
    value.emplace(std::forward<U>(u));
  }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() noexcept {}
};

}  // namespace detail

/// A computation that starts when it is awaited and hands its result to the awaiter. Owns its
/// frame: destroying it while suspended destroys everything in it.
template <typename T>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  explicit Task(std::coroutine_handle<promise_type> frame) : frame_{frame} {}
  Task(Task&& other) noexcept : frame_{std::exchange(other.frame_, nullptr)} {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (frame_) frame_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiter) noexcept {
    frame_.promise().continuation = awaiter;
    return frame_;
  }
  T await_resume() {
    if constexpr (!std::is_void_v<T>) return std::move(*frame_.promise().value);
  }

 private:
  std::coroutine_handle<promise_type> frame_;
};

namespace detail {
template <typename T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>{std::coroutine_handle<Promise<T>>::from_promise(*this)};
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>{std::coroutine_handle<Promise<void>>::from_promise(*this)};
}
}  // namespace detail

/// Awaits what a callback will say:
///
///   auto result = co_await completion<Expected<void>>([&](auto done) { lun.read(at, out,
///   std::move(done)); });
///
/// `start` is called at once with a callable to be called once, on this loop's thread, at once or
/// later. If the awaiting task is destroyed first, the call does nothing. A callable destroyed
/// uncalled leaves the task waiting forever.
template <typename T>
class Completion {
 public:
  class Done {
   public:
    void operator()(T value) {
      auto state = std::move(state_);
      if (!state || state->abandoned) return;
      state->value.emplace(std::move(value));
      if (auto waiter = std::exchange(state->waiter, nullptr)) waiter.resume();
    }

   private:
    friend class Completion;
    struct State {
      std::optional<T> value;
      std::coroutine_handle<> waiter;
      bool abandoned = false;
    };
    explicit Done(std::shared_ptr<State> state) : state_{std::move(state)} {}
    std::shared_ptr<State> state_;
  };

  explicit Completion(Function<void(Done)> start) : start_{std::move(start)} {}
  Completion(Completion&&) = delete;
  ~Completion() { state_->abandoned = true; }

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiter) {
    auto state = state_;
    start_(Done{state});
    if (state->value) return false;
    state->waiter = awaiter;
    return true;
  }
  T await_resume() { return std::move(*state_->value); }

 private:
  Function<void(Done)> start_;
  std::shared_ptr<typename Done::State> state_ = std::make_shared<typename Done::State>();
};

template <typename T, typename F>
Completion<T> completion(F&& start) {
  return Completion<T>{Function<void(typename Completion<T>::Done)>{std::forward<F>(start)}};
}

/// The tasks that run on behalf of an object. Declare it after (so that it is destroyed before)
/// everything they use: its destructor destroys those that have not ended, wherever they wait.
/// One thread.
class TaskScope {
 public:
  TaskScope() : state_{std::make_shared<State>()} {}
  TaskScope(const TaskScope&) = delete;
  TaskScope& operator=(const TaskScope&) = delete;
  ~TaskScope() { cancel_all(); }

  /// Runs `task` until its first wait at once, and the rest as its awaits complete.
  void spawn(Task<void> task) {
    auto id = state_->next++;
    auto runner = run(std::move(task), state_, id);
    auto frame = runner.frame;
    state_->running.emplace(id, frame);
    frame.resume();
  }
  void cancel_all() {
    auto state = state_;
    while (!state->running.empty()) {
      auto frame = state->running.begin()->second;
      state->running.erase(state->running.begin());
      frame.destroy();
    }
  }
  [[nodiscard]] std::size_t running() const { return state_->running.size(); }

 private:
  struct State {
    std::unordered_map<std::uint64_t, std::coroutine_handle<>> running;
    std::uint64_t next = 1;
  };
  struct Runner {
    struct promise_type {
      Runner get_return_object() {
        return {std::coroutine_handle<promise_type>::from_promise(*this)};
      }
      std::suspend_always initial_suspend() const noexcept { return {}; }
      std::suspend_never final_suspend() const noexcept { return {}; }
      void return_void() noexcept {}
      void unhandled_exception() noexcept { std::terminate(); }
    };
    std::coroutine_handle<promise_type> frame;
  };
  static Runner run(Task<void> task, std::shared_ptr<State> state, std::uint64_t id) {
    co_await task;
    state->running.erase(id);
  }
  std::shared_ptr<State> state_;
};

/// Waits `delay` on `loop`.
inline Task<void> sleep(Loop& loop, Duration delay) {
  co_await completion<bool>([&loop, delay](auto done) {
    loop.after(delay, [done = std::move(done)]() mutable { done(true); });
  });
}

/// Lets everything else that is queued on the loop go first.
inline Task<void> yield(Loop& loop) {
  co_await completion<bool>(
      [&loop](auto done) { loop.post([done = std::move(done)]() mutable { done(true); }); });
}

/// Something tasks wait for. Waiters are resumed through the loop, in the order they came, so that
/// notify() never runs foreign code by itself. One thread.
class Signal {
 public:
  explicit Signal(Loop& loop) : loop_{&loop} {}
  /// Until the next notify(). Check the condition in a loop around it.
  Task<void> wait() {
    co_await completion<bool>([this](auto done) { waiters_.emplace_back(std::move(done)); });
  }
  void notify() {
    auto all = std::exchange(waiters_, {});
    for (auto& one : all) loop_->post([one = std::move(one)]() mutable { one(true); });
  }

 private:
  Loop* loop_;
  std::deque<Completion<bool>::Done> waiters_;
};

}  // namespace csv
