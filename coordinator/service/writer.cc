#include "coordinator/service/writer.h"

#include <utility>
#include <vector>

namespace csv::service {
namespace {

/// More would make the first of a group wait for the last.
constexpr std::size_t kGroup = 128;
/// A log longer than this is checkpointed right after the group that made it so, rather than at
/// the next round of maintenance: a takeover reads all of it.
constexpr std::uint64_t kLongLog = 16ull << 20;
/// What was changed is looked at next more often than not.
constexpr std::size_t kLookedAt = 256;

}  // namespace

struct Writer::State : std::enable_shared_from_this<Writer::State> {
  using Done = Completion<Expected<void>>::Done;
  enum Kind { reads, changes, maintenance, checkpoints, kinds };
  struct Waiting {
    Body body;  ///< Empty for maintenance and checkpoint.
    Done done;
  };
  struct Group {
    Kind kind{};
    std::vector<volume::Catalog::Change> changes;
    volume::Catalog::Changed changed;
    volume::Catalog::Statistics statistics;
    Expected<void> outcome;
  };

  State(TenureRef on, Changed hears, Function<void(Error)> told)
      : tenure{std::move(on)},
        changed{std::move(hears)},
        failed{std::move(told)},
        settled{*tenure->loop} {}

  void add(Kind kind, Waiting waiting) {
    queues[kind].push_back(std::move(waiting));
    wake();
  }

  void wake() {
    if (std::exchange(wake_posted, true)) return;
    // Posted, so that all that arrives in this turn of the loop shares the group.
    tenure->loop->post([weak = weak_from_this()] {
      auto state = weak.lock();
      if (!state) return;
      state->wake_posted = false;
      state->next();
    });
  }

  [[nodiscard]] bool due(Kind kind) const {
    return !queues[kind].empty() || (kind == maintenance && log_is_long);
  }
  [[nodiscard]] bool quiet() const {
    return !busy && queues[reads].empty() && queues[changes].empty() &&
           queues[maintenance].empty() && queues[checkpoints].empty();
  }

  /// Starts the next group. The kinds take turns, so that none starves another.
  void next() {
    if (busy || broken) return;
    for (int step = 1; step <= kinds; ++step) {
      auto kind = static_cast<Kind>((last + step) % kinds);
      if (due(kind)) return start(kind);
    }
    settled.notify();
  }

  void start(Kind kind) {
    last = kind;
    busy = true;
    auto group = std::make_shared<Group>();
    group->kind = kind;
    auto& queue = queues[kind];
    while (!queue.empty() && running.size() < kGroup) {
      if (queue.front().body)
        group->changes.push_back({std::move(queue.front().body), kind == reads, {}});
      running.push_back(std::move(queue.front().done));
      queue.pop_front();
    }
    tenure->worker->post([keep = tenure, weak = weak_from_this(), group]() mutable {
      // A volume that stopped is closed without waiting for what is still queued.
      if (keep->catalog)
        run(*group, *keep->catalog);
      else
        group->outcome = Error{Errc::closed, "the volume has been closed"};
      auto& loop = *keep->loop;
      loop.post([keep = std::move(keep), weak = std::move(weak), group = std::move(group)] {
        if (auto state = weak.lock()) state->finished(*group);
      });
    });
  }

  static void run(Group& group, volume::Catalog& catalog) {
    switch (group.kind) {
      case maintenance: group.outcome = catalog.maintain(); break;
      case checkpoints: group.outcome = catalog.checkpoint(); break;
      default: group.outcome = catalog.run(group.changes); break;
    }
    group.changed = catalog.take_changed();
    if (group.kind == changes && group.outcome) look(group.changed, catalog);
    group.statistics = catalog.statistics();
  }

  static void look(volume::Catalog::Changed& changed, volume::Catalog& catalog) {
    for (auto inode : changed.inodes) {
      if (changed.now.size() >= kLookedAt) return;
      if (auto attr = catalog.attr(inode)) changed.now.push_back(*attr);
    }
  }

  void finished(Group& group) {
    busy = false;
    statistics = group.statistics;
    if (!group.changed.empty() && changed) changed(group.changed);
    if (!group.outcome) {
      broken = true;
      settled.notify();  // whoever waits for idle()
      if (failed) std::exchange(failed, {})(group.outcome.error());
      // What else waits is kept waiting, for ever: any answer could be a lie (A12).
      if (group.kind == checkpoints)
        for (auto& done : std::exchange(running, {})) done(group.outcome);
      return;
    }
    // Once: a log that maintenance could not shorten will not get shorter by asking again.
    log_is_long = group.kind == changes && statistics.wal_bytes >= kLongLog;
    auto dones = std::exchange(running, {});
    next();
    // Last, because what goes on now may destroy this Writer; `dones` keeps nothing of it.
    for (std::size_t i = 0; i < dones.size(); ++i)
      dones[i](group.changes.empty() ? Expected<void>{} : std::move(group.changes[i].result));
  }

  TenureRef tenure;
  Changed changed;
  Function<void(Error)> failed;
  std::deque<Waiting> queues[kinds];
  std::vector<Done> running;
  Signal settled;
  volume::Catalog::Statistics statistics;
  Kind last = checkpoints;
  bool busy = false, broken = false, wake_posted = false, log_is_long = false;
};

Writer::Writer(TenureRef tenure, Changed changed, Function<void(Error)> failed)
    : state_{std::make_shared<State>(std::move(tenure), std::move(changed), std::move(failed))} {}
// A group may still be running and finds the state; its owner is gone.
Writer::~Writer() { state_->changed = nullptr; }

void Writer::enqueue(Body body, bool read_only, Completion<Expected<void>>::Done done) {
  state_->add(read_only ? State::reads : State::changes, {std::move(body), std::move(done)});
}

void Writer::drop_waiting() { state_->queues[State::changes].clear(); }

Task<void> Writer::maintain() {
  (void)co_await completion<Expected<void>>([this](auto done) {
    state_->add(State::maintenance, {{}, std::move(done)});
  });
}

Task<Expected<void>> Writer::checkpoint() {
  co_return co_await completion<Expected<void>>([this](auto done) {
    state_->add(State::checkpoints, {{}, std::move(done)});
  });
}

Task<void> Writer::idle() {
  // A broken writer is never idle, and has nothing left to wait for.
  while (!state_->quiet() && !state_->broken) co_await state_->settled.wait();
}

volume::Catalog::Statistics Writer::statistics() const { return state_->statistics; }

}  // namespace csv::service
