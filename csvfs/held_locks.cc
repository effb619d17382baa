#include "csvfs/held_locks.h"

#include <algorithm>
#include <utility>

#include "coordinator/protocol/limits.h"

namespace csv {

/// A call about an owner is under way: it is remembered even if it holds nothing.
class HeldLocks::Calling {
 public:
  Calling(HeldLocks& locks, InodeId inode, OwnerPtr owner)
      : locks_{&locks}, alive_{locks.alive_}, inode_{inode}, owner_{std::move(owner)} {
    ++owner_->calls;
  }
  Calling(const Calling&) = delete;
  Calling& operator=(const Calling&) = delete;
  ~Calling() {
    --owner_->calls;
    if (!alive_.expired()) locks_->forget_unused(inode_, owner_);
  }

 private:
  HeldLocks* locks_;
  std::weak_ptr<bool> alive_;
  InodeId inode_;
  OwnerPtr owner_;
};

/// Somebody who waits for a lock.
struct HeldLocks::Waiting {
  std::uint64_t ticket = 0;
  bool given_up = false;
  bool replaces = false;  ///< See HeldLocks::begins_to_replace.
  std::optional<Completion<Expected<void>>::Done> done;
};

// --- Owners -----------------------------------------------------------------------------------

HeldLocks::OwnerPtr HeldLocks::find(InodeId inode, LockKind kind, std::uint64_t name) const {
  auto found = owners_.find(inode);
  if (found == owners_.end()) return nullptr;
  auto at = std::find_if(found->second.begin(), found->second.end(), [&](const auto& each) {
    return each->kind == kind && each->name == name;
  });
  return at == found->second.end() ? nullptr : *at;
}

HeldLocks::OwnerPtr HeldLocks::get(InodeId inode, Mount::Handle handle,
                                   const Mount::LockWish& wish) {
  auto owner = find(inode, wish.kind, wish.owner);
  if (!owner) {
    owner = std::make_shared<Owner>();
    owner->number = next_owner_++;
    owner->kind = wish.kind;
    owner->name = wish.owner;
    owners_[inode].push_back(owner);
  }
  owner->pid = wish.pid;
  owner->handles.insert(handle);
  return owner;
}

/// So that closing a file asks nobody where there is nothing to give back.
void HeldLocks::forget_unused(InodeId inode, const OwnerPtr& owner) {
  if (!owner->gone && (owner->calls > 0 || !owner->held.empty())) return;
  auto found = owners_.find(inode);
  if (found == owners_.end()) return;
  std::erase(found->second, owner);
  if (found->second.empty()) owners_.erase(found);
}

wire::LockOf HeldLocks::describe(InodeId inode, const Owner& owner) {
  wire::LockOf what;
  what.set_inode(raw(inode));
  what.set_kind(static_cast<std::uint32_t>(owner.kind));
  what.set_owner(owner.number);
  what.set_process(owner.name);
  what.set_pid(owner.pid);
  what.set_last(LockRange::kLast);
  return what;
}

wire::Request HeldLocks::forgetting(InodeId inode, const Owner& owner) {
  wire::Request request;
  *request.mutable_unlock()->mutable_what() = describe(inode, owner);
  request.mutable_unlock()->set_forget(true);
  return request;
}

/// A whole file's lock of another type is given up when the new one is asked for, and not got back
/// if that fails (flock(2)). From then on the program has none, so a coordinator that takes over
/// must not be told of one: the former may have given it to somebody else.
bool HeldLocks::begins_to_replace(Owner& owner, const Mount::LockWish& wish) {
  if (wish.kind != LockKind::whole_file) return false;
  bool other_type = false;
  owner.held.each([&](const LockRanges::Held& held) { other_type |= held.type != wish.type; });
  if (other_type) owner.held.clear({});
  return other_type;
}

/// It failed, and perhaps before the coordinator gave up the old one.
void HeldLocks::failed_to_replace(const FilePtr& file, const Owner& owner) {
  wire::Request request;
  *request.mutable_unlock()->mutable_what() = describe(file->inode, owner);
  tasks_.spawn(say(file, std::move(request)));
}

// --- Calls ------------------------------------------------------------------------------------

Task<Expected<CoordinatorClient::Answer>> HeldLocks::call(FilePtr file, wire::Request request,
                                                          Interrupt* interrupt) {
  CoordinatorClient::CallOptions options;
  options.session = file->session;
  options.interrupt = interrupt;
  co_return co_await client_->call(std::move(request), options);
}

/// A failure means that the session has ended, and with it what this is about.
Task<void> HeldLocks::say(FilePtr file, wire::Request request) {
  (void)co_await call(std::move(file), std::move(request));
}

Task<Expected<void>> HeldLocks::lock(FilePtr file, Mount::Handle handle, Mount::LockWish wish,
                                     Interrupt* interrupt) {
  auto owner = get(file->inode, handle, wish);
  Calling calling{*this, file->inode, owner};
  wire::Request request;
  auto& what = *request.mutable_lock()->mutable_what();
  what = describe(file->inode, *owner);
  what.set_first(wish.range.first);
  what.set_last(wish.range.last);
  what.set_type(static_cast<std::uint32_t>(wish.type));
  if (wish.wait) co_return co_await wait(file, owner, std::move(request), wish, interrupt);
  bool replaces = begins_to_replace(*owner, wish);
  auto answer = co_await call(file, std::move(request), interrupt);
  if (answer) {
    granted(file, owner, wish);
    co_return Expected<void>{};
  }
  if (replaces) failed_to_replace(file, *owner);
  co_return answer.error();
}

/// The request waits at the coordinator. An interrupt is answered at once and turns down whatever
/// the coordinator says, or has said and we have not heard.
Task<Expected<void>> HeldLocks::wait(FilePtr file, OwnerPtr owner, wire::Request request,
                                     Mount::LockWish wish, Interrupt* interrupt) {
  if (interrupt && interrupt->raised()) co_return Error{std::errc::interrupted};
  auto waiting = std::make_shared<Waiting>();
  waiting->ticket = next_ticket_++;
  waiting->replaces = begins_to_replace(*owner, wish);
  request.mutable_lock()->set_ticket(waiting->ticket);
  Interrupt::Watch watch{interrupt,
                         [this, file, owner, waiting] { give_up(file, owner, waiting); }};
  co_return co_await completion<Expected<void>>([&](auto done) {
    waiting->done.emplace(std::move(done));
    tasks_.spawn(ask(file, owner, std::move(request), wish, waiting));
  });
}

Task<void> HeldLocks::ask(FilePtr file, OwnerPtr owner, wire::Request request, Mount::LockWish wish,
                          WaitingPtr waiting) {
  Calling calling{*this, file->inode, owner};
  auto answer = co_await call(file, std::move(request));
  given_up_.erase(waiting->ticket);
  if (answer) {
    // Also where it was turned down before it came: the coordinator may have been told so before it
    // heard of the request itself (it waited for other sessions to come back).
    wire::Request decided;
    if (waiting->given_up)
      decided.mutable_lock_cancel()->set_ticket(waiting->ticket);
    else
      decided.mutable_lock_taken()->set_ticket(waiting->ticket);
    tasks_.spawn(say(file, std::move(decided)));
  }
  if (waiting->given_up) co_return;
  Expected<void> result;
  if (answer)
    granted(file, owner, wish);
  else if (answer.error() == std::errc::interrupted)
    // Not by a signal, and only then the kernel may be told EINTR: the file was closed meanwhile.
    result =
        Error{std::errc::bad_file_descriptor, "the file was closed while it waited for a lock"};
  else
    result = answer.error();
  if (!result && waiting->replaces) failed_to_replace(file, *owner);
  (*waiting->done)(std::move(result));
}

void HeldLocks::give_up(const FilePtr& file, const OwnerPtr& owner, const WaitingPtr& waiting) {
  waiting->given_up = true;
  given_up_.emplace(waiting->ticket, file);
  turn_down(file, waiting->ticket);
  if (waiting->replaces) failed_to_replace(file, *owner);
  (*waiting->done)(Error{std::errc::interrupted});
}

void HeldLocks::turn_down(FilePtr file, std::uint64_t ticket) {
  wire::Request cancel;
  cancel.mutable_lock_cancel()->set_ticket(ticket);
  tasks_.spawn(say(std::move(file), std::move(cancel)));
}

void HeldLocks::turn_down_again() {
  auto all = given_up_;
  for (const auto& [ticket, file] : all) turn_down(file, ticket);
}

void HeldLocks::granted(const FilePtr& file, const OwnerPtr& owner, const Mount::LockWish& wish) {
  if (!owner->gone) return owner->held.set(wish.range, wish.type);
  // Its owner ended while it was being granted.
  tasks_.spawn(say(file, forgetting(file->inode, *owner)));
}

Task<Expected<void>> HeldLocks::unlock(FilePtr file, Mount::LockWish wish) {
  auto owner = find(file->inode, wish.kind, wish.owner);
  if (!owner) co_return Expected<void>{};
  Calling calling{*this, file->inode, owner};
  owner->held.clear(wish.range);  // from here on the program cannot rely on it
  wire::Request request;
  auto& what = *request.mutable_unlock()->mutable_what();
  what = describe(file->inode, *owner);
  what.set_first(wish.range.first);
  what.set_last(wish.range.last);
  CSV_CO_TRY(answer, co_await call(file, std::move(request)));
  (void)answer;
  co_return Expected<void>{};
}

Task<Expected<std::optional<Mount::LockFound>>> HeldLocks::test(FilePtr file,
                                                                Mount::LockWish wish) {
  using Result = std::optional<Mount::LockFound>;
  // One who has asked for nothing yet has a name that nobody knows.
  Owner stranger;
  stranger.number = next_owner_++;
  stranger.kind = wish.kind;
  auto owner = find(file->inode, wish.kind, wish.owner);
  wire::Request request;
  auto& what = *request.mutable_test_lock()->mutable_what();
  what = describe(file->inode, owner ? *owner : stranger);
  what.set_first(wish.range.first);
  what.set_last(wish.range.last);
  what.set_type(static_cast<std::uint32_t>(wish.type));
  CSV_CO_TRY(answer, co_await call(file, std::move(request)));
  const auto& found = answer.reply.lock_found();
  if (found.type() == 0) co_return Result{};
  Mount::LockFound seen;
  seen.range = {found.first(), found.last()};
  seen.type = found.type() == 2 ? LockType::write : LockType::read;
  seen.pid = found.pid();
  co_return Result{seen};
}

Task<void> HeldLocks::forget(FilePtr file, OwnerPtr owner) {
  owner->gone = true;
  forget_unused(file->inode, owner);
  co_await say(file, forgetting(file->inode, *owner));
}

Task<void> HeldLocks::closed(FilePtr file, std::uint64_t name) {
  if (auto owner = find(file->inode, LockKind::bytes, name)) co_await forget(file, owner);
}

Task<void> HeldLocks::released(FilePtr file, Mount::Handle handle) {
  auto found = owners_.find(file->inode);
  if (found == owners_.end()) co_return;
  auto owners = found->second;
  for (auto& owner : owners)
    if (owner->handles.contains(handle) && !owner->gone) co_await forget(file, owner);
}

// --- The session ------------------------------------------------------------------------------

std::vector<wire::Request> HeldLocks::declared() const {
  std::vector<wire::Request> all;
  for (const auto& [inode, owners] : owners_) {
    for (const auto& owner : owners) {
      auto what = describe(inode, *owner);
      owner->held.each([&](const LockRanges::Held& held) {
        if (all.empty() || all.back().held_locks().held_size() == protocol::kMaxHeldLocks)
          all.emplace_back();
        auto& out = *all.back().mutable_held_locks()->add_held();
        out = what;
        out.set_first(held.range.first);
        out.set_last(held.range.last);
        out.set_type(static_cast<std::uint32_t>(held.type));
      });
    }
  }
  return all;
}

void HeldLocks::session_ended() {
  for (auto& [inode, owners] : owners_) {
    for (auto& owner : owners) {
      if (!owner->gone && !owner->held.empty()) {
        auto kept = std::make_shared<Owner>(*owner);
        kept->calls = 0;  // of those that are under way nothing comes any more
        suspended_[inode].push_back(std::move(kept));
      }
      owner->gone = true;
    }
  }
  owners_.clear();
}

std::vector<wire::LockOf> HeldLocks::suspended(InodeId inode) const {
  std::vector<wire::LockOf> all;
  auto found = suspended_.find(inode);
  if (found == suspended_.end()) return all;
  for (const auto& owner : found->second) {
    owner->held.each([&](const LockRanges::Held& held) {
      auto& out = all.emplace_back(describe(inode, *owner));
      out.set_first(held.range.first);
      out.set_last(held.range.last);
      out.set_type(static_cast<std::uint32_t>(held.type));
    });
  }
  return all;
}

void HeldLocks::resumed(FilePtr file) {
  auto found = suspended_.extract(file->inode);
  if (found.empty()) return;
  for (auto& owner : found.mapped()) {
    if (owner->gone)
      tasks_.spawn(say(file, forgetting(file->inode, *owner)));
    else
      owners_[file->inode].push_back(std::move(owner));
  }
}

void HeldLocks::over(InodeId inode) { suspended_.erase(inode); }

void HeldLocks::closed_suspended(InodeId inode, std::uint64_t name) {
  auto found = suspended_.find(inode);
  if (found == suspended_.end()) return;
  for (auto& owner : found->second)
    if (owner->kind == LockKind::bytes && owner->name == name) owner->gone = true;
}

void HeldLocks::released_suspended(InodeId inode, Mount::Handle handle) {
  auto found = suspended_.find(inode);
  if (found == suspended_.end()) return;
  for (auto& owner : found->second)
    if (owner->handles.contains(handle)) owner->gone = true;
}

}  // namespace csv
