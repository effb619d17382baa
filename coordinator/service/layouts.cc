#include "coordinator/service/layouts.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "coordinator/service/largest.h"

namespace csv::service {
namespace {

/// Two contended writes within this make a file shipped.
constexpr Duration kContention = 1s;

void move(BlockSet& from, BlockSet& to, Blocks range) {
  for (auto part : from.within(range)) to.add({part.begin, part.end});
  from.remove(range);
}

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
  if (by_session_[session].insert(inode).second) ++total_;
  return file(inode).holders[session];
}

bool Layouts::idle(const File& file) const {
  return file.holders.empty() && file.holds.empty() && loop_->now() >= file.shipped_until &&
         loop_->now() >= file.last_contended + kContention;
}

Layouts::Holder* Layouts::find_holder(InodeId inode, SessionId session) {
  auto file = files_.find(inode);
  if (file == files_.end()) return nullptr;
  auto held = file->second->holders.find(session);
  return held == file->second->holders.end() ? nullptr : &held->second;
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
  total_ -= of->second.erase(inode);
  if (of->second.empty()) by_session_.erase(of);
  if (idle(*at->second)) files_.erase(at);
}

void Layouts::add(InodeId inode, SessionId session, Blocks range, Kind kind) {
  auto& held = holder(inode, session);
  (kind == Kind::write ? held.writes : held.reads).add(range);
  if (kind == Kind::write) held.only_reads = false;
}

std::uint64_t Layouts::add_pages(InodeId inode, SessionId session, Blocks range, bool dirty) {
  auto& held = holder(inode, session);
  (dirty ? held.dirty : held.clean).add(range);
  if (dirty) held.only_reads = false;
  return held.last_claim = ++claims_;
}

void Layouts::trim_pages(InodeId inode, SessionId session, Blocks beyond, std::uint64_t claim) {
  auto* held = find_holder(inode, session);
  if (held == nullptr || held->last_claim != claim) return;
  held->clean.remove(beyond);
  held->dirty.remove(beyond);
  tidy(inode, session);
}

bool Layouts::may_write(InodeId inode, SessionId except) const {
  const auto* found = find(inode);
  if (found == nullptr) return false;
  return std::any_of(found->holders.begin(), found->holders.end(), [&](const auto& each) {
    return each.first != except && !each.second.only_reads && each.second.may_write();
  });
}

std::vector<InodeId> Layouts::written_by_others(SessionId except) const {
  std::vector<InodeId> all;
  for (const auto& [inode, file] : files_)
    if (may_write(inode, except)) all.push_back(inode);
  return all;
}

void Layouts::declare(InodeId inode, SessionId session, bool only_reads) {
  auto& held = holder(inode, session);
  held.only_reads = only_reads && held.nothing();
  held.writes.add(kWholeFile);
  held.may_have_grant = true;
}

void Layouts::set_grant(InodeId inode, SessionId session, GrantId grant, Blocks range) {
  auto& held = holder(inode, session);
  held.writes.add(range);
  held.only_reads = false;
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
  auto* held = find_holder(inode, session);
  if (held == nullptr) return;
  held->grant = {};
  held->may_have_grant = false;
  tidy(inode, session);
}

std::vector<SessionId> Layouts::holders(InodeId inode, Blocks range, bool reads_too) const {
  std::vector<SessionId> all;
  const auto* found = find(inode);
  if (found == nullptr) return all;
  for (const auto& [session, held] : found->holders) {
    bool any = held.layouts_in(range, reads_too);
    for (const auto& [number, part] : held.recalled) any = any || part.layouts_in(range, reads_too);
    if (any) all.push_back(session);
  }
  return all;
}

std::vector<SessionId> Layouts::page_holders(InodeId inode, Blocks range, bool clean_too,
                                             SessionId except) const {
  std::vector<SessionId> all;
  const auto* found = find(inode);
  if (found == nullptr) return all;
  for (const auto& [session, held] : found->holders) {
    if (session == except) continue;
    bool any = held.pages_in(range, clean_too);
    for (const auto& [number, part] : held.recalled) any = any || part.pages_in(range, clean_too);
    if (any) all.push_back(session);
  }
  return all;
}

void Layouts::recalled(InodeId inode, SessionId session, const Recall& recall) {
  auto* held = find_holder(inode, session);
  if (held == nullptr) return;
  Held part;
  if (recall.pages) {
    move(held->clean, part.clean, recall.range);
    move(held->dirty, part.dirty, recall.range);
  } else {
    move(held->writes, part.writes, recall.range);
    if (recall.reads_too) move(held->reads, part.reads, recall.range);
  }
  if (!part.nothing()) held->recalled[recall.number] = std::move(part);
}

void Layouts::came_back(InodeId inode, SessionId session, const Recall& recall) {
  auto* held = find_holder(inode, session);
  if (held == nullptr) return;
  auto end = held->recalled.upper_bound(recall.number);
  for (auto at = held->recalled.begin(); at != end;) {
    auto& part = at->second;
    if (recall.pages) {
      part.clean.remove(recall.range);
      part.dirty.remove(recall.range);
    } else if (recall.reads_too) {
      part.writes.remove(recall.range);
      part.reads.remove(recall.range);
    } else {
      // It may go on reading there. The range may be more than it held; that costs a needless
      // recall.
      move(part.writes, held->reads, recall.range);
    }
    at = part.nothing() ? held->recalled.erase(at) : std::next(at);
  }
  tidy(inode, session);
}

void Layouts::dropped(InodeId inode, SessionId session, const Recall& what) {
  auto all = what;
  all.number = std::numeric_limits<std::uint64_t>::max();
  recalled(inode, session, all);
  came_back(inode, session, all);
}

void Layouts::drop(InodeId inode, SessionId session) {
  auto* held = find_holder(inode, session);
  if (held == nullptr) return;
  *held = {};
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

SessionId Layouts::largest() const { return key_of_largest(by_session_); }

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
  for (auto holder : holders(inode, kWholeFile, false)) others = others || holder != by;
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
