#include "coordinator/service/file_locks.h"

#include <algorithm>
#include <iterator>

namespace csv::service {

bool FileLocks::conflict(const Wish& one, const Wish& other) {
  return one.owner != other.owner && one.range.overlaps(other.range) &&
         (one.type == LockType::write || other.type == LockType::write);
}

/// Calls `say` with each who has what keeps `wish` from being granted, until one is enough.
template <typename F>
bool FileLocks::any_obstacle(const Wish& wish, F&& say) const {
  auto found = files_.find(file_of(wish));
  if (found == files_.end()) return false;
  for (const auto& [owner, holder] : found->second.holders) {
    if (owner == wish.owner) continue;
    if (auto held = holder.ranges.against(wish.range, wish.type))
      if (say(Found{*held, owner, holder.pid}, holder.process)) return true;
  }
  for (auto ticket : found->second.queue) {
    const auto& [theirs, offered] = waiters_.at(ticket);
    if (!offered || !conflict(wish, theirs)) continue;
    if (say(Found{{theirs.range, theirs.type}, theirs.owner, theirs.pid}, theirs.process))
      return true;
  }
  return false;
}

bool FileLocks::is_free(const Wish& wish) const {
  return !any_obstacle(wish, [](const Found&, std::uint64_t) { return true; });
}

std::optional<FileLocks::Found> FileLocks::test(const Wish& wish) const {
  std::optional<Found> first;
  any_obstacle(wish, [&](const Found& found, std::uint64_t) {
    first = found;
    return true;
  });
  return first;
}

bool FileLocks::may_have(Ticket ticket, const Waiter& waiter) const {
  const auto& wish = waiter.wish;
  if (!is_free(wish)) return false;
  if (having_.contains({wish.owner.session, wish.pid})) return true;
  for (auto earlier : files_.at(file_of(wish)).queue) {
    if (earlier == ticket) return true;
    if (conflict(wish, waiters_.at(earlier).wish)) return false;
  }
  return true;
}

/// Whether somebody that `wish` would have to wait for waits, over whatever files, for its own
/// process. Only what is held or offered counts: behind those that wait nobody stands who has
/// anything to wait for.
bool FileLocks::closes_a_circle(const Wish& wish) const {
  if (wish.kind != LockKind::bytes) return false;
  Process self{wish.owner.session, wish.process};
  std::set<Process> seen;
  std::vector<Process> next;
  bool circle = false;
  auto follow = [&](const Wish& from) {
    any_obstacle(from, [&](const Found& found, std::uint64_t process) {
      Process theirs{found.owner.session, process};
      circle = circle || theirs == self;
      if (seen.insert(theirs).second) next.push_back(theirs);
      return circle;
    });
  };
  follow(wish);
  while (!next.empty() && !circle) {
    auto process = next.back();
    next.pop_back();
    auto waits = waiting_for_bytes_.find(process);
    if (waits == waiting_for_bytes_.end()) continue;
    for (auto ticket : waits->second) follow(waiters_.at(ticket).wish);
  }
  return circle;
}

bool FileLocks::full(const Wish& wish) const {
  auto have = counts(wish.owner.session);
  if (have.locks + have.waits >= limits_.locks) return true;
  auto found = files_.find(file_of(wish));
  return found != files_.end() &&
         found->second.ranges + found->second.queue.size() >= limits_.of_file;
}

// ---------------------------------------------------------------------------- what is asked

FileLocks::Verdict FileLocks::lock(const Wish& wish) {
  if (full(wish)) return Verdict::too_many;
  drop_other_type(wish);
  bool free = is_free(wish);
  if (free) {
    apply(wish);
    to_look_at_.insert(file_of(wish));  // it may have become less
  }
  look_all();
  return free ? Verdict::granted : Verdict::conflict;
}

FileLocks::Verdict FileLocks::offer(const Wish& wish, Ticket ticket) {
  if (full(wish)) return Verdict::too_many;
  drop_other_type(wish);
  bool free = is_free(wish);
  if (free) offer(ticket, enqueue(wish, ticket));
  look_all();
  return free ? Verdict::granted : Verdict::conflict;
}

FileLocks::Verdict FileLocks::wait(const Wish& wish, Ticket ticket) {
  if (auto found = waiters_.find(ticket); found != waiters_.end())
    return found->second.offered ? Verdict::granted : Verdict::queued;
  if (full(wish) || counts(wish.owner.session).waits >= limits_.waits) return Verdict::too_many;
  drop_other_type(wish);
  if (closes_a_circle(wish)) return Verdict::deadlock;
  auto& waiter = enqueue(wish, ticket);
  bool at_once = may_have(ticket, waiter);
  if (at_once) offer(ticket, waiter);
  look_all();
  return at_once ? Verdict::granted : Verdict::queued;
}

void FileLocks::taken(Ticket ticket) {
  auto found = waiters_.find(ticket);
  if (found == waiters_.end() || !found->second.offered) return;
  auto wish = found->second.wish;
  erase(ticket);
  apply(wish);
  to_look_at_.insert(file_of(wish));
  look_all();
}

void FileLocks::cancel(Ticket ticket) {
  auto found = waiters_.find(ticket);
  if (found == waiters_.end()) return;
  if (found->second.offered)
    erase(ticket);
  else
    decide(ticket, Verdict::cancelled);
  look_all();
}

void FileLocks::unlock(InodeId inode, LockKind kind, Owner owner, LockRange range) {
  remove({inode, kind}, owner, range);
  look_all();
}

void FileLocks::forget(InodeId inode, LockKind kind, Owner owner) {
  FileId id{inode, kind};
  auto found = files_.find(id);
  if (found == files_.end()) return;
  auto queue = found->second.queue;
  for (auto ticket : queue) {
    const auto& waiter = waiters_.at(ticket);
    if (waiter.wish.owner != owner) continue;
    if (waiter.offered)
      erase(ticket);
    else
      decide(ticket, Verdict::cancelled);
  }
  remove(id, owner, {});
  look_all();
}

bool FileLocks::declare(const Wish& wish) {
  bool alone = is_free(wish);
  apply(wish);
  return alone;
}

void FileLocks::end_waits(SessionId session) {
  std::vector<Ticket> all;
  for (auto at = waiters_.lower_bound({session, 0});
       at != waiters_.end() && at->first.session == session; ++at)
    if (!at->second.offered) all.push_back(at->first);
  for (auto ticket : all) decide(ticket, Verdict::cancelled);
  look_all();
}

void FileLocks::drop(SessionId session) {
  std::vector<std::pair<FileId, Owner>> owners;
  for (const auto& [id, file] : files_)
    for (auto at = file.holders.lower_bound({session, 0});
         at != file.holders.end() && at->first.session == session; ++at)
      owners.emplace_back(id, at->first);
  std::vector<Ticket> tickets;
  for (auto at = waiters_.lower_bound({session, 0});
       at != waiters_.end() && at->first.session == session; ++at)
    tickets.push_back(at->first);
  for (auto ticket : tickets) decide(ticket, Verdict::cancelled);
  for (auto& [id, owner] : owners) remove(id, owner, {});
  look_all();
}

bool FileLocks::blocks_others(SessionId session) const {
  return std::any_of(waiters_.begin(), waiters_.end(), [&](const auto& each) {
    const auto& [ticket, waiter] = each;
    if (waiter.offered || ticket.session == session) return false;
    return any_obstacle(waiter.wish, [&](const Found& found, std::uint64_t) {
      return found.owner.session == session;
    });
  });
}

FileLocks::Counts FileLocks::counts(SessionId session) const {
  auto found = counts_.find(session);
  return found == counts_.end() ? Counts{} : found->second;
}

// ---------------------------------------------------------------------------- what changes

void FileLocks::apply(const Wish& wish) {
  auto& file = files_[file_of(wish)];
  auto [at, fresh] = file.holders.try_emplace(wish.owner);
  auto& holder = at->second;
  if (fresh || holder.pid != wish.pid) {
    if (!fresh) has_less(wish.owner.session, holder.pid);
    has_more(wish);
  }
  holder.process = wish.process;
  holder.pid = wish.pid;
  auto before = holder.ranges.size();
  holder.ranges.set(wish.range, wish.type);
  auto more =
      static_cast<std::ptrdiff_t>(holder.ranges.size()) - static_cast<std::ptrdiff_t>(before);
  file.ranges += static_cast<std::size_t>(more);
  count(wish.owner.session, more, 0);
  may_close_circles(wish);
}

/// A process of several threads may be waiting elsewhere, for those that now wait for this.
void FileLocks::may_close_circles(const Wish& wish) {
  if (wish.kind == LockKind::bytes &&
      waiting_for_bytes_.contains({wish.owner.session, wish.process}))
    circles_in_.insert(file_of(wish));
}

void FileLocks::break_circles(FileId id) {
  auto found = files_.find(id);
  if (found == files_.end()) return;
  auto queue = found->second.queue;
  for (auto ticket : queue) {
    const auto& waiter = waiters_.at(ticket);
    if (!waiter.offered && closes_a_circle(waiter.wish)) decide(ticket, Verdict::deadlock);
  }
}

void FileLocks::remove(FileId id, Owner owner, LockRange range) {
  auto found = files_.find(id);
  if (found == files_.end()) return;
  auto& file = found->second;
  auto at = file.holders.find(owner);
  if (at == file.holders.end()) return;
  auto& ranges = at->second.ranges;
  auto before = ranges.size();
  ranges.clear(range);
  auto more = static_cast<std::ptrdiff_t>(ranges.size()) - static_cast<std::ptrdiff_t>(before);
  file.ranges += static_cast<std::size_t>(more);
  count(owner.session, more, 0);
  if (ranges.empty()) {
    has_less(owner.session, at->second.pid);
    file.holders.erase(at);
  }
  to_look_at_.insert(id);
}

/// flock(2): a lock that changes its type is not held in between.
void FileLocks::drop_other_type(const Wish& wish) {
  if (wish.kind != LockKind::whole_file) return;
  auto found = files_.find(file_of(wish));
  if (found == files_.end()) return;
  auto at = found->second.holders.find(wish.owner);
  if (at == found->second.holders.end()) return;
  bool same = true;
  at->second.ranges.each([&](const LockRanges::Held& held) { same = held.type == wish.type; });
  if (!same) remove(file_of(wish), wish.owner, {});
}

FileLocks::Waiter& FileLocks::enqueue(const Wish& wish, Ticket ticket) {
  auto& waiter = waiters_.emplace(ticket, Waiter{wish, false}).first->second;
  files_[file_of(wish)].queue.push_back(ticket);
  count(wish.owner.session, 0, 1);
  if (wish.kind == LockKind::bytes)
    waiting_for_bytes_[{wish.owner.session, wish.process}].insert(ticket);
  return waiter;
}

void FileLocks::offer(Ticket ticket, Waiter& waiter) {
  waiter.offered = true;
  const auto& wish = waiter.wish;
  count(wish.owner.session, 1, -1);
  if (auto waits = waiting_for_bytes_.find({wish.owner.session, wish.process});
      waits != waiting_for_bytes_.end()) {
    waits->second.erase(ticket);
    if (waits->second.empty()) waiting_for_bytes_.erase(waits);
  }
  has_more(wish);
  may_close_circles(wish);
}

/// It waits no longer, and is told.
void FileLocks::decide(Ticket ticket, Verdict verdict) {
  if (!waiters_.at(ticket).offered) decided_.push_back({ticket, verdict});
  erase(ticket);
}

void FileLocks::erase(Ticket ticket) {
  auto found = waiters_.find(ticket);
  auto& [wish, offered] = found->second;
  auto id = file_of(wish);
  if (offered) {
    count(wish.owner.session, -1, 0);
    has_less(wish.owner.session, wish.pid);
  } else {
    count(wish.owner.session, 0, -1);
    if (auto waits = waiting_for_bytes_.find({wish.owner.session, wish.process});
        waits != waiting_for_bytes_.end()) {
      waits->second.erase(ticket);
      if (waits->second.empty()) waiting_for_bytes_.erase(waits);
    }
  }
  files_.at(id).queue.remove(ticket);
  waiters_.erase(found);
  to_look_at_.insert(id);
}

/// Offers, in the order they came, what is free now.
void FileLocks::look(FileId id) {
  auto found = files_.find(id);
  if (found == files_.end()) return;
  for (auto ticket : found->second.queue) {
    auto& waiter = waiters_.at(ticket);
    if (waiter.offered || !may_have(ticket, waiter)) continue;
    offer(ticket, waiter);
    decided_.push_back({ticket, Verdict::granted});
  }
}

void FileLocks::look_all() {
  while (!to_look_at_.empty() || !circles_in_.empty()) {
    while (!to_look_at_.empty()) {
      auto id = to_look_at_.extract(to_look_at_.begin()).value();
      look(id);
      tidy(id);
    }
    if (!circles_in_.empty()) break_circles(circles_in_.extract(circles_in_.begin()).value());
  }
}

void FileLocks::tidy(FileId id) {
  auto found = files_.find(id);
  if (found != files_.end() && found->second.holders.empty() && found->second.queue.empty())
    files_.erase(found);
}

void FileLocks::count(SessionId session, std::ptrdiff_t locks, std::ptrdiff_t waits) {
  auto& counts = counts_[session];
  counts.locks += static_cast<std::size_t>(locks);
  counts.waits += static_cast<std::size_t>(waits);
  if (counts.locks == 0 && counts.waits == 0) counts_.erase(session);
}

/// A program that has something for the first time stands behind nobody any more.
void FileLocks::has_more(const Wish& wish) {
  if (++having_[{wish.owner.session, wish.pid}] > 1) return;
  for (auto at = waiters_.lower_bound({wish.owner.session, 0});
       at != waiters_.end() && at->first.session == wish.owner.session; ++at)
    if (!at->second.offered && at->second.wish.pid == wish.pid)
      to_look_at_.insert(file_of(at->second.wish));
}

void FileLocks::has_less(SessionId session, std::uint32_t pid) {
  auto found = having_.find({session, pid});
  if (--found->second == 0) having_.erase(found);
}

}  // namespace csv::service
