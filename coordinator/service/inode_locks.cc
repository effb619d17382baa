#include "coordinator/service/inode_locks.h"

#include <utility>

namespace csv::service {

InodeLocks::Held::Held(Held&& other) noexcept
    : locks_{std::exchange(other.locks_, nullptr)}, inode_{other.inode_}, at_{other.at_} {}

InodeLocks::Held& InodeLocks::Held::operator=(Held&& other) noexcept {
  if (this == &other) return *this;
  release();
  locks_ = std::exchange(other.locks_, nullptr);
  inode_ = other.inode_;
  at_ = other.at_;
  return *this;
}

void InodeLocks::Held::release() {
  auto* locks = std::exchange(locks_, nullptr);
  if (locks == nullptr) return;
  auto found = locks->queues_.find(inode_);
  found->second.erase(at_);
  if (found->second.empty()) {
    locks->queues_.erase(found);
  } else {
    locks->grant(found->second);
  }
}

Task<InodeLocks::Held> InodeLocks::lock(InodeId inode, Blocks range, Mode mode) {
  auto& queue = queues_[inode];
  queue.push_back({range, mode, false, {}});
  auto at = std::prev(queue.end());
  // Made before the wait: a task destroyed while it waits leaves the queue too.
  Held held{this, inode, at};
  grant(queue);
  if (!at->granted)
    co_await completion<bool>([at](auto done) { at->waiter.emplace(std::move(done)); });
  co_return std::move(held);
}

void InodeLocks::grant(std::list<Held::Entry>& queue) {
  for (auto one = queue.begin(); one != queue.end(); ++one) {
    if (one->granted) continue;
    bool free = true;
    for (auto before = queue.begin(); before != one && free; ++before) {
      bool apart = !before->range.overlaps(one->range);
      free = apart || (before->mode == Mode::shared && one->mode == Mode::shared);
    }
    if (!free) continue;
    one->granted = true;
    // Through the loop: whoever releases does not run the next one inside.
    if (auto waiter = std::exchange(one->waiter, std::nullopt))
      loop_->post([waiter = std::move(*waiter)]() mutable { waiter(true); });
  }
}

}  // namespace csv::service
