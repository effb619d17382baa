#include "coordinator/service/layouts.h"

#include <algorithm>
#include <utility>

namespace csv::service {
namespace {

/// Two contended writes within this make a file shipped.
constexpr Duration kContention = 1s;

}  // namespace

Layouts::File& Layouts::file(InodeId inode) {
  auto& found = files_[inode];
  if (!found) found = std::make_shared<File>(*loop_);
  return *found;
}

const Layouts::File* Layouts::find(InodeId inode) const {
  auto found = files_.find(inode);
  return found == files_.end() ? nullptr : found->second.get();
}

Layouts::Holder& Layouts::holder(InodeId inode, SessionId session) {
  by_session_[session].insert(inode);
  return file(inode).holders[session];
}

bool Layouts::idle(const File& file) const {
  return file.holders.empty() && file.holds.empty() && loop_->now() >= file.shipped_until &&
         loop_->now() >= file.last_contended + kContention;
}

/// After something of a holder went: forgets it if that was all.
void Layouts::tidy(InodeId inode, SessionId session) {
  auto at = files_.find(inode);
  if (at == files_.end()) return;
  auto& all = at->second->holders;
  auto held = all.find(session);
  if (held == all.end() || !held->second.nothing()) return;
  all.erase(held);
  auto of = by_session_.find(session);
  of->second.erase(inode);
  if (of->second.empty()) by_session_.erase(of);
  if (idle(*at->second)) files_.erase(at);
}

void Layouts::add(InodeId inode, SessionId session, Blocks range, Kind kind) {
  auto& held = holder(inode, session);
  (kind == Kind::write ? held.writes : held.reads).add(range);
}

void Layouts::add_pages(InodeId inode, SessionId session, Blocks range, bool dirty) {
  auto& held = holder(inode, session);
  (dirty ? held.dirty : held.clean).add(range);
}

void Layouts::declare(InodeId inode, SessionId session) {
  auto& held = holder(inode, session);
  held.writes.add(kWholeFile);
  held.may_have_grant = true;
}

void Layouts::set_grant(InodeId inode, SessionId session, GrantId grant, Blocks range) {
  auto& held = holder(inode, session);
  held.writes.add(range);
  held.grant = grant;
  held.may_have_grant = true;
}

GrantId Layouts::grant(InodeId inode, SessionId session) const {
  const auto* found = find(inode);
  if (found == nullptr) return {};
  auto held = found->holders.find(session);
  return held == found->holders.end() ? GrantId{} : held->second.grant;
}

bool Layouts::may_have_grant(InodeId inode, SessionId session) const {
  const auto* found = find(inode);
  if (found == nullptr) return false;
  auto held = found->holders.find(session);
  return held != found->holders.end() && held->second.may_have_grant;
}

void Layouts::grant_dropped(InodeId inode, SessionId session) {
  const auto* found = find(inode);
  if (found == nullptr || !found->holders.contains(session)) return;
  auto& held = holder(inode, session);
  held.grant = {};
  held.may_have_grant = false;
  tidy(inode, session);
}

std::vector<SessionId> Layouts::holders(InodeId inode, Blocks range, bool reads_too) const {
  std::vector<SessionId> all;
  const auto* found = find(inode);
  if (found == nullptr) return all;
  for (const auto& [session, held] : found->holders)
    if (held.writes.overlaps(range) || (reads_too && held.reads.overlaps(range)))
      all.push_back(session);
  return all;
}

void Layouts::dropped(InodeId inode, SessionId session, Blocks range, bool reads_too) {
  const auto* found = find(inode);
  if (found == nullptr || !found->holders.contains(session)) return;
  auto& held = holder(inode, session);
  if (reads_too) {
    held.writes.remove(range);
    held.reads.remove(range);
  } else if (held.writes.overlaps(range)) {
    // It may go on reading there. The range may be more than it held; that costs a needless recall.
    for (auto part : held.writes.within(range)) held.reads.add({part.begin, part.end});
    held.writes.remove(range);
  }
  tidy(inode, session);
}

std::vector<SessionId> Layouts::page_holders(InodeId inode, Blocks range, bool clean_too,
                                             SessionId except) const {
  std::vector<SessionId> all;
  const auto* found = find(inode);
  if (found == nullptr) return all;
  for (const auto& [session, held] : found->holders)
    if (session != except &&
        (held.dirty.overlaps(range) || (clean_too && held.clean.overlaps(range))))
      all.push_back(session);
  return all;
}

void Layouts::pages_dropped(InodeId inode, SessionId session, Blocks range) {
  const auto* found = find(inode);
  if (found == nullptr || !found->holders.contains(session)) return;
  auto& held = holder(inode, session);
  held.clean.remove(range);
  held.dirty.remove(range);
  tidy(inode, session);
}

void Layouts::drop(InodeId inode, SessionId session) {
  const auto* found = find(inode);
  if (found == nullptr || !found->holders.contains(session)) return;
  holder(inode, session) = {};
  tidy(inode, session);
}

void Layouts::drop(SessionId session) {
  auto found = by_session_.find(session);
  if (found == by_session_.end()) return;
  auto inodes = found->second;
  for (auto inode : inodes) drop(inode, session);
}

std::size_t Layouts::count(SessionId session) const {
  auto found = by_session_.find(session);
  return found == by_session_.end() ? 0 : found->second.size();
}

InodeId Layouts::next_of(SessionId session, InodeId after) const {
  auto found = by_session_.find(session);
  if (found == by_session_.end()) return {};
  auto next = found->second.upper_bound(after);
  return next == found->second.end() ? InodeId{} : *next;
}

Layouts::Hold::Hold(Hold&& other) noexcept
    : layouts_{std::exchange(other.layouts_, nullptr)}, inode_{other.inode_}, id_{other.id_} {}

Layouts::Hold& Layouts::Hold::operator=(Hold&& other) noexcept {
  if (this == &other) return *this;
  release();
  layouts_ = std::exchange(other.layouts_, nullptr);
  inode_ = other.inode_;
  id_ = other.id_;
  return *this;
}

void Layouts::Hold::release() {
  auto* layouts = std::exchange(layouts_, nullptr);
  if (layouts == nullptr) return;
  auto at = layouts->files_.find(inode_);
  at->second->holds.erase(id_);
  at->second->changed.notify();
  if (layouts->idle(*at->second)) layouts->files_.erase(at);
}

Layouts::Hold Layouts::hold(InodeId inode, Holding what) {
  Hold made;
  made.layouts_ = this;
  made.inode_ = inode;
  made.id_ = next_hold_++;
  file(inode).holds.emplace(made.id_, what);
  return made;
}

Layouts::Hold Layouts::hold(InodeId inode, Blocks range, bool reads_too) {
  return hold(inode, Holding{range, true, reads_too});
}

Layouts::Hold Layouts::hold_pages(InodeId inode, Blocks range) {
  return hold(inode, Holding{range, false, false});
}

bool Layouts::held_back(InodeId inode, Blocks range, Kind kind) const {
  const auto* found = find(inode);
  if (found == nullptr) return false;
  return std::any_of(found->holds.begin(), found->holds.end(), [&](const auto& each) {
    const auto& what = each.second;
    bool this_kind = kind == Kind::pages || (kind == Kind::write ? what.writes : what.reads);
    return this_kind && what.range.overlaps(range);
  });
}

Task<bool> Layouts::wait_while_held(InodeId inode, Blocks range, Kind kind, Duration patience) {
  auto deadline = loop_->now() + patience;
  while (held_back(inode, range, kind)) {
    if (loop_->now() >= deadline) co_return false;
    auto waiting = files_.at(inode);  // kept: the last hold's end may forget the file
    auto nudge = loop_->after(deadline - loop_->now(), [waiting] { waiting->changed.notify(); });
    co_await waiting->changed.wait();
    loop_->cancel(nudge);
  }
  co_return true;
}

void Layouts::note_contended_write(InodeId inode, SessionId by, Duration shipped_for) {
  auto now = loop_->now();
  auto& here = file(inode);
  bool soon = now < here.last_contended + kContention;
  bool others = soon && here.last_writer != by;
  for (const auto& [session, held] : here.holders)
    others = others || (session != by && !held.writes.empty());
  if (now < here.shipped_until || (soon && others)) here.shipped_until = now + shipped_for;
  here.last_contended = now;
  here.last_writer = by;
}

bool Layouts::shipped(InodeId inode) const {
  const auto* found = find(inode);
  return found != nullptr && loop_->now() < found->shipped_until;
}

void Layouts::prune() {
  for (auto at = files_.begin(); at != files_.end();) {
    bool over = idle(*at->second);
    at = over ? files_.erase(at) : std::next(at);
  }
}

}  // namespace csv::service
