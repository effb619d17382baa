#include "tests/simulation/world.h"

#include <cstdio>

#include "csvfs/base/check.h"
#include "csvfs/base/ids.h"

namespace csv::sim {

World::World(std::uint64_t seed) : random_{seed} {}

Duration World::between(Duration least, Duration most) {
  CSV_CHECK(least <= most);
  auto width = static_cast<std::uint64_t>((most - least).count()) + 1;
  return least + Duration{static_cast<Duration::rep>(random_.below(width))};
}

World::EventId World::at(Duration when, Function<void()> act) {
  EventId id{std::max(when, now_), next_++};
  events_.emplace(id, std::move(act));
  return id;
}

bool World::run(Function<bool()> until, Duration limit) {
  CSV_CHECK(on_main_stack());
  while (!until()) {
    if (events_.empty() || events_.begin()->first.first > limit) return false;
    auto event = events_.extract(events_.begin());
    now_ = event.key().first;
    ++run_;
    event.mapped()();
  }
  return true;
}

void World::note(std::string_view line) {
  auto mix = [this](const void* bytes, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      digest_ = (digest_ ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001b3ull;
    }
  };
  auto time = now_.count();
  mix(&time, sizeof time);
  mix(line.data(), line.size());
  if (verbose_) {
    std::fprintf(stdout, "%12.6f %.*s\n", static_cast<double>(time) / 1e9,
                 static_cast<int>(line.size()), line.data());
  }
}

SimLoop::SimLoop(World& world, std::string name, Skew skew)
    : world_{world}, name_{std::move(name)}, skew_{skew} {}

SimLoop::~SimLoop() {
  for (auto& [timer, event] : timers_) world_.cancel(event);
  for (auto& [number, event] : posted_) world_.cancel(event);
}

Duration SimLoop::to_local(Duration world) const {
  return skew_.boot + world + world * skew_.parts_per_mille / 1000;
}

Duration SimLoop::to_world(Duration local) const {
  // Never early by the loop's own clock, as a real timer.
  return local * 1000 / (1000 + skew_.parts_per_mille) + 1ns;
}

TimePoint SimLoop::now() const { return TimePoint{to_local(world_.now())}; }

WallTime SimLoop::wall_now() const {
  constexpr std::int64_t kBeginning = 1'800'000'000'000'000'000;
  return WallTime{kBeginning + (to_local(world_.now()) - skew_.boot + skew_.wall).count()};
}

bool SimLoop::here() const { return world_.on_main_stack() && running_; }

/// A frozen process finds everything that was due when it wakes up, in the order it was due.
void SimLoop::run(Function<void()> work) {
  if (world_.now() >= frozen_until_ && waiting_.empty()) return execute(std::move(work));
  waiting_.push_back(std::move(work));
  if (waiting_.size() == 1) wake_later();
}

void SimLoop::wake_later() {
  auto number = next_post_++;
  posted_[number] = world_.at(std::max(frozen_until_, world_.now()), [this, number] {
    posted_.erase(number);
    if (world_.now() < frozen_until_) return wake_later();
    // What comes of these comes after them.
    while (!waiting_.empty() && world_.now() >= frozen_until_) {
      auto next = std::move(waiting_.front());
      waiting_.pop_front();
      execute(std::move(next));
    }
    if (!waiting_.empty()) wake_later();
  });
}

void SimLoop::execute(Function<void()> work) {
  auto before = std::exchange(running_, true);
  work();
  work = nullptr;
  running_ = before;
}

void SimLoop::enter(Function<void()> work) {
  CSV_CHECK(world_.on_main_stack());
  execute(std::move(work));
}

void SimLoop::post(Function<void()> work) {
  auto number = next_post_++;
  posted_[number] =
      world_.after(Duration::zero(), [this, number, work = std::move(work)]() mutable {
        posted_.erase(number);
        run(std::move(work));
      });
}

Loop::TimerId SimLoop::after(Duration delay, Function<void()> work) {
  CSV_CHECK(here());
  auto timer = next_timer_++;
  timers_[timer] = world_.after(
      to_world(std::max(delay, Duration::zero())),
      [this, timer, work = std::move(work)]() mutable { due(timer, std::move(work)); });
  return TimerId{timer};
}

/// During a freeze, or the next one, it waits, and can still be cancelled.
void SimLoop::due(std::uint64_t timer, Function<void()> work) {
  if (world_.now() < frozen_until_) {
    timers_[timer] = world_.at(frozen_until_, [this, timer, work = std::move(work)]() mutable {
      due(timer, std::move(work));
    });
    return;
  }
  timers_.erase(timer);
  run(std::move(work));
}

void SimLoop::cancel(TimerId timer) {
  CSV_CHECK(here());
  auto found = timers_.find(raw(timer));
  if (found == timers_.end()) return;
  world_.cancel(found->second);
  timers_.erase(found);
}

}  // namespace csv::sim
