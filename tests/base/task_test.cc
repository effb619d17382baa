#include "csvfs/base/task.h"

#include <doctest/doctest.h>

#include <string>

#include "csvfs/base/asio_loop.h"

using namespace csv;

namespace {

Task<Expected<std::unique_ptr<int>>> fetch(Loop& loop, bool fail) {
  co_await sleep(loop, 1ms);
  if (fail) co_return Errc::stale_epoch;
  co_return std::make_unique<int>(7);
}

Task<Expected<int>> sum(Loop& loop, bool second_fails) {
  CSV_CO_TRY(first, co_await fetch(loop, false));
  CSV_CO_TRY(second, co_await fetch(loop, second_fails));
  co_return *first + *second;
}

Task<void> store(Loop& loop, bool second_fails, Expected<int>& into, AsioLoop& ends) {
  into = co_await sum(loop, second_fails);
  ends.stop();
}

Expected<int> run(bool second_fails) {
  AsioLoop loop;
  Expected<int> result = Errc::corrupt;
  TaskScope scope;
  loop.post([&] { scope.spawn(store(loop, second_fails, result, loop)); });
  loop.run();
  return result;
}

struct SaysWhenGone {
  bool* gone;
  explicit SaysWhenGone(bool* flag) : gone{flag} {}
  SaysWhenGone(const SaysWhenGone&) = delete;
  SaysWhenGone& operator=(const SaysWhenGone&) = delete;
  ~SaysWhenGone() { *gone = true; }
};

Task<void> take_turns(Loop& loop, Signal& signal, int& turns, AsioLoop& ends) {
  while (turns < 3) {
    co_await signal.wait();
    ++turns;
    loop.post([&signal] { signal.notify(); });
  }
  ends.stop();
}

}  // namespace

TEST_CASE("task: CSV_CO_TRY hands on a move-only value, or the reason there is none") {
  CHECK(*run(false) == 14);
  CHECK(run(true).error() == Errc::stale_epoch);
}

TEST_CASE(
    "task: the end of a scope destroys a waiting task, and its late completion does nothing") {
  AsioLoop loop;
  bool gone = false, went_on = false;
  std::optional<Completion<bool>::Done> late;
  {
    TaskScope scope;
    scope.spawn([](auto& keep, bool& g, bool& w) -> Task<void> {
      SaysWhenGone guard{&g};
      co_await completion<bool>([&keep](auto done) { keep.emplace(std::move(done)); });
      w = true;
    }(late, gone, went_on));
    CHECK(scope.running() == 1);
    CHECK(!gone);
  }
  CHECK(gone);
  (*late)(true);
  CHECK(!went_on);
}

TEST_CASE("task: a completion that is called at once does not suspend") {
  TaskScope scope;
  int got = 0;
  scope.spawn([](int& out) -> Task<void> {
    out = co_await completion<int>([](auto done) { done(5); });
  }(got));
  CHECK(got == 5);
  CHECK(scope.running() == 0);
}

TEST_CASE("signal: wakes every waiter through the loop, again and again") {
  AsioLoop loop;
  Signal signal{loop};
  TaskScope scope;
  int turns = 0;
  loop.post([&] {
    scope.spawn(take_turns(loop, signal, turns, loop));
    signal.notify();
  });
  loop.run();
  CHECK(turns == 3);
}
