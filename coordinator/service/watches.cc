#include "coordinator/service/watches.h"

#include <algorithm>

#include "coordinator/service/largest.h"

namespace csv::service {
namespace {

constexpr Duration kLately = 100ms;

}  // namespace

void Watches::add(InodeId inode, SessionId session) {
  if (!watchers_[inode].insert(session).second) return;
  by_session_[session].insert(inode);
  ++total_;
}

void Watches::drop(InodeId inode, SessionId session) {
  auto found = watchers_.find(inode);
  if (found == watchers_.end() || found->second.erase(session) == 0) return;
  if (found->second.empty()) watchers_.erase(found);
  --total_;
  auto of = by_session_.find(session);
  of->second.erase(inode);
  if (of->second.empty()) by_session_.erase(of);
}

void Watches::drop(SessionId session) {
  auto of = by_session_.find(session);
  if (of == by_session_.end()) return;
  auto inodes = of->second;
  for (auto inode : inodes) drop(inode, session);
  shed_.erase(session);
}

std::size_t Watches::count(SessionId session) const {
  auto of = by_session_.find(session);
  return of == by_session_.end() ? 0 : of->second.size();
}

SessionId Watches::largest() const { return key_of_largest(by_session_); }

std::vector<SessionId> Watches::watchers(InodeId inode) const {
  auto found = watchers_.find(inode);
  if (found == watchers_.end()) return {};
  return {found->second.begin(), found->second.end()};
}

std::vector<InodeId> Watches::take_some(SessionId session, std::size_t most) {
  auto of = by_session_.find(session);
  if (of == by_session_.end()) return {};
  std::vector<InodeId> some;
  auto& from = shed_[session];
  auto at = of->second.upper_bound(from);
  if (at == of->second.end()) at = of->second.begin();
  for (; at != of->second.end() && some.size() < most; ++at) some.push_back(*at);
  from = some.back();
  for (auto inode : some) drop(inode, session);
  return some;
}

std::vector<SessionId> Watches::take(InodeId inode, SessionId except) {
  auto taken = watchers(inode);
  std::erase(taken, except);
  for (auto session : taken) drop(inode, session);
  if (!taken.empty()) {
    expire();
    auto now = clock_->now();
    taken_[inode] = now;
    takings_.emplace_back(now, inode);
  }
  return taken;
}

void Watches::expire() {
  auto before = clock_->now() - kLately;
  while (!takings_.empty() && takings_.front().first < before) {
    auto found = taken_.find(takings_.front().second);
    if (found != taken_.end() && found->second < before) taken_.erase(found);
    takings_.pop_front();
  }
}

bool Watches::taken_lately(InodeId inode) {
  expire();
  return taken_.contains(inode);
}

Watches::Ticket Watches::unsettle(std::span<const InodeId> inodes, SessionId session) {
  Ticket ticket{next_ticket_++};
  tickets_[ticket] = {session, {inodes.begin(), inodes.end()}};
  for (auto inode : inodes) unsettled_[inode].insert(ticket);
  return ticket;
}

void Watches::settled(Ticket ticket) {
  auto found = tickets_.find(ticket);
  for (auto inode : found->second.inodes) {
    auto of = unsettled_.find(inode);
    if (of == unsettled_.end()) continue;  // named twice
    of->second.erase(ticket);
    if (of->second.empty()) unsettled_.erase(of);
  }
  tickets_.erase(found);
}

void Watches::outstanding(InodeId inode, SessionId asker, std::set<Ticket>& into) const {
  auto found = unsettled_.find(inode);
  if (found == unsettled_.end()) return;
  for (auto ticket : found->second)
    if (tickets_.at(ticket).session != asker) into.insert(ticket);
}

void Watches::outstanding(SessionId asker, std::set<Ticket>& into) const {
  for (const auto& [ticket, telling] : tickets_)
    if (telling.session != asker) into.insert(ticket);
}

}  // namespace csv::service
