#include "tests/simulation/worker.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "csvfs/base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace csv::sim {
namespace {

constexpr std::size_t kStack = 8 << 20, kGuard = 4096;

/// Stacks come and go with every takeover: those that are not in use are kept, with the pages that
/// they have touched.
class Stacks {
 public:
  std::byte* take() {
    if (free_.empty()) {
      auto* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
      CSV_CHECK(memory != MAP_FAILED);
      CSV_CHECK(mprotect(memory, kGuard, PROT_NONE) == 0);
      return static_cast<std::byte*>(memory);
    }
    auto* stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give_back(std::byte* stack) { free_.push_back(stack); }
  static Stacks& all() {
    static Stacks stacks;
    return stacks;
  }

 private:
  std::vector<std::byte*> free_;
};

}  // namespace

/// Where a worker runs, and where the world goes on when it rests. Sanitizers want to be told.
class SimWorker::Stack {
 public:
  explicit Stack(SimWorker& worker) : memory_{Stacks::all().take()} {
    CSV_CHECK(getcontext(&own_) == 0);
    own_.uc_stack = {.ss_sp = memory_ + kGuard, .ss_flags = 0, .ss_size = kStack - kGuard};
    own_.uc_link = nullptr;
    // Only ints can be handed over.
    auto address = reinterpret_cast<std::uintptr_t>(&worker);
    makecontext(&own_, reinterpret_cast<void (*)()>(&Stack::begin), 2,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
#if defined(__SANITIZE_THREAD__)
    fiber_ = __tsan_create_fiber(0);
#endif
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() {
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(fiber_);
#endif
    Stacks::all().give_back(memory_);
  }

  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    void* kept = nullptr;
    __sanitizer_start_switch_fiber(&kept, own_.uc_stack.ss_sp, own_.uc_stack.ss_size);
#elif defined(__SANITIZE_THREAD__)
    world_fiber_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, 0);
#endif
    swapcontext(&world_, &own_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(kept, nullptr, nullptr);
#endif
  }
  /// `for_good`: nothing on it is used any more.
  void leave([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
    void* kept = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &kept, world_stack_, world_stack_size_);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(world_fiber_, 0);
#endif
    swapcontext(&own_, &world_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(kept, &world_stack_, &world_stack_size_);
#endif
  }

 private:
  static void begin(unsigned high, unsigned low) {
    auto address = std::uintptr_t{high} << 32 | low;
    auto& worker = *reinterpret_cast<SimWorker*>(address);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &worker.stack_->world_stack_,
                                    &worker.stack_->world_stack_size_);
#endif
    worker.run();
    worker.stack_->leave(true);
  }

  std::byte* memory_;
  ucontext_t own_{}, world_{};
#if defined(__SANITIZE_ADDRESS__)
  const void* world_stack_ = nullptr;
  std::size_t world_stack_size_ = 0;
#elif defined(__SANITIZE_THREAD__)
  void* fiber_ = nullptr;
  void* world_fiber_ = nullptr;
#endif
};

SimWorker::SimWorker(World& world, SimLoop& loop)
    : world_{world}, loop_{loop}, stack_{std::make_unique<Stack>(*this)} {}

SimWorker::~SimWorker() {
  CSV_CHECK(world_.on_main_stack());
  ending_ = true;
  if (idle_ && !scheduled_) give_turn();
  // It may be waiting for something: only events can bring that about.
  bool over = ended_ || world_.run([this] { return ended_; }, world_.now() + 1h);
  CSV_CHECK(over);
  *alive_ = false;
}

void SimWorker::post(Function<void()> work) {
  // Whoever calls has the turn, so nothing else touches the queue.
  queue_.push_back(std::move(work));
  if (!idle_ || scheduled_) return;
  scheduled_ = true;
  loop_.post([this, alive = alive_] {
    if (!*alive) return;
    scheduled_ = false;
    give_turn();
  });
}

void SimWorker::give_turn() {
  world_.set_on_main_stack(false);
  stack_->enter();
  world_.set_on_main_stack(true);
}

void SimWorker::take_rest() { stack_->leave(false); }

void SimWorker::run() {
  for (;;) {
    while (!queue_.empty()) {
      idle_ = false;
      auto work = std::move(queue_.front());
      queue_.pop_front();
      work();
    }
    idle_ = true;
    if (ending_) break;
    take_rest();
  }
  ended_ = true;
}

void SimWorker::Waits::wait(Function<void(std::function<void()> wake)> start) {
  CSV_CHECK(!worker.world_.on_main_stack());
  struct State {
    bool woken = false, resting = false;
  };
  auto state = std::make_shared<State>();
  start([this, state] {
    CSV_CHECK(!std::exchange(state->woken, true));
    if (!state->resting) return;
    worker.loop_.post([this] { worker.give_turn(); });
  });
  if (state->woken) return;
  state->resting = true;
  worker.take_rest();
}

}  // namespace csv::sim
