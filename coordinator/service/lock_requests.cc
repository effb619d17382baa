// The locks of programs: what a mount asks, and who waits. What they mean is in file_locks.h.
#include <algorithm>
#include <cerrno>

#include "coordinator/service/service.h"
#include "csvfs/base/log.h"

namespace csv::service {
namespace {

using Verdict = FileLocks::Verdict;

/// Requests of a session that wait for a lock, or to be told whether there is one.
constexpr std::size_t kMaxLockWaits = 1024;
/// From here on the numbers of our own tickets, for those that do not wait.
constexpr std::uint64_t kOwnTickets = 1ull << 63;
/// Ranges a session may say it holds: more than it can have been given.
constexpr std::size_t kMaxDeclared = 64 * 1024;

Expected<void> as_answer(Verdict verdict) {
  switch (verdict) {
    case Verdict::granted: return {};
    case Verdict::deadlock: return errno_error(EDEADLK, "lock");
    case Verdict::too_many: return errno_error(ENOLCK, "lock");
    case Verdict::cancelled: return errno_error(EINTR, "lock");
    case Verdict::conflict:
    case Verdict::queued: break;
  }
  return errno_error(EAGAIN, "lock");
}

/// Of the map's, for as long as it lives.
template <typename Map>
class Arrival {
 public:
  Arrival(Map& all, FileLocks::Ticket ticket) : all_{&all}, ticket_{ticket} {
    ++all[ticket].requests;
  }
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;
  ~Arrival() {
    auto at = all_->find(ticket_);
    if (--at->second.requests == 0) all_->erase(at);
  }
  [[nodiscard]] bool cancelled() const { return all_->at(ticket_).cancelled; }

 private:
  Map* all_;
  FileLocks::Ticket ticket_;
};

Error session_ended() { return Error{Errc::session_ended, "the session has ended"}; }

}  // namespace

bool Service::is_about_locks(const wire::Request& request) {
  switch (request.op_case()) {
    case wire::Request::kLock:
    case wire::Request::kLockTaken:
    case wire::Request::kLockCancel:
    case wire::Request::kUnlock:
    case wire::Request::kTestLock:
    case wire::Request::kHeldLocks: return true;
    default: return false;
  }
}

FileLocks::Wish Service::wish_of(SessionId session, const wire::LockOf& what) const {
  FileLocks::Wish wish;
  wish.inode = InodeId{what.inode()};
  wish.kind = what.kind() == 0 ? LockKind::bytes : LockKind::whole_file;
  wish.owner = {session, what.owner()};
  wish.process = what.process();
  wish.pid = what.pid();
  wish.range = {what.first(), what.last()};
  wish.type = what.type() == 2 ? LockType::write : LockType::read;
  return wish;
}

/// After a takeover: locks are not in the catalog, so everybody must have said what he holds, and
/// repeated what was unanswered, or be gone.
Task<Expected<void>> Service::all_locks_known(SessionRef on_behalf, InodeId inode) {
  for (;;) {
    if (on_behalf->ending) co_return session_ended();
    if (!older_than_takeover(inode)) co_return Expected<void>{};
    auto silent = std::find_if(sessions_.begin(), sessions_.end(),
                               [](const auto& each) { return !each.second->settled; });
    if (silent == sessions_.end()) co_return Expected<void>{};
    auto session = silent->second;  // kept: it may end meanwhile
    std::optional<Counted> waiting;
    if (session != on_behalf) waiting.emplace(session->waited_for);
    co_await sessions_changed_.wait();
  }
}

Task<Service::Outcome> Service::lock(CallRef call) {
  auto session = call->session;
  if (session->lock_waits >= kMaxLockWaits) co_return errno_error(ENOLCK, "lock");
  Counted waits{session->lock_waits};
  auto wish = wish_of(session->id, call->request.lock().what());
  FileLocks::Ticket ticket{session->id, call->request.lock().ticket()};
  if (ticket.number >= kOwnTickets) co_return Error{Errc::refused, "no mount has such a ticket"};
  bool cancelled = false;
  {
    Arrival arrival{lock_arrivals_, ticket};
    CSV_CO_CHECK(co_await all_locks_known(session, wish.inode));
    cancelled = arrival.cancelled();
  }
  // Queued now it would be a ghost: in others' way, and waited for until its turn came.
  if (cancelled) co_return as_answer(Verdict::cancelled).error();
  bool waits_for_it = ticket.number != 0;
  if (!waits_for_it) ticket.number = kOwnTickets + ++lock_tries_;
  auto verdict = Verdict::queued;
  if (!waits_for_it) {
    verdict = file_locks_.offer(wish, ticket);
  } else {
    if (lock_waiters_.contains(ticket))
      co_return Error{Errc::refused, "somebody waits with this ticket"};
    verdict = file_locks_.wait(wish, ticket);
  }
  if (verdict != Verdict::queued) {
    tell_lock_waiters();
  } else {
    verdict = co_await completion<Verdict>([&](auto done) {
      lock_waiters_.emplace(ticket, std::move(done));
      tell_lock_waiters();
    });
  }
  if (session->ending) co_return session_ended();
  CSV_CO_CHECK(as_answer(verdict));
  // From here on nobody else gets it before it has been noted, and answered. Who is told of an
  // error has what it had before.
  auto noted = co_await touches(
      session, wish.inode, wish.type == LockType::write ? Touch::write_locked : Touch::read_locked);
  if (!noted)
    file_locks_.cancel(ticket);
  else if (!waits_for_it)
    file_locks_.taken(ticket);
  tell_lock_waiters();
  CSV_CO_CHECK(noted);
  co_return Answer{};
}

Task<Service::Outcome> Service::lock_decided(CallRef call) {
  const auto& request = call->request;
  if (request.has_lock_taken())
    file_locks_.taken({call->session_id, request.lock_taken().ticket()});
  else if (auto early = lock_arrivals_.find({call->session_id, request.lock_cancel().ticket()});
           early != lock_arrivals_.end() && early->first.number != 0)
    early->second.cancelled = true;
  else
    file_locks_.cancel({call->session_id, request.lock_cancel().ticket()});
  tell_lock_waiters();
  co_return Answer{};
}

Task<Service::Outcome> Service::unlock(CallRef call) {
  auto wish = wish_of(call->session_id, call->request.unlock().what());
  if (call->request.unlock().forget())
    file_locks_.forget(wish.inode, wish.kind, wish.owner);
  else
    file_locks_.unlock(wish.inode, wish.kind, wish.owner, wish.range);
  tell_lock_waiters();
  co_return Answer{};
}

Task<Service::Outcome> Service::test_lock(CallRef call) {
  auto session = call->session;
  auto wish = wish_of(session->id, call->request.test_lock().what());
  CSV_CO_CHECK(co_await all_locks_known(session, wish.inode));
  Answer answer;
  auto& out = *answer.reply.mutable_lock_found();
  if (auto found = file_locks_.test(wish)) {
    out.set_type(static_cast<std::uint32_t>(found->held.type));
    out.set_first(found->held.range.first);
    out.set_last(found->held.range.last);
    if (found->owner.session == session->id) out.set_pid(found->pid);
  }
  co_return std::move(answer);
}

/// What a session holds it got from us, if it has settled: then we know at least as much.
Task<Service::Outcome> Service::held_locks(CallRef call) {
  auto session = call->session;
  if (session->settled || session->ending) co_return Answer{};
  for (const auto& one : call->request.held_locks().held()) {
    if (file_locks_.counts(session->id).locks >= kMaxDeclared)
      co_return Error{Errc::refused, "the session says that it holds more locks than there can be"};
    auto wish = wish_of(session->id, one);
    // One of them may be making its lock less just then; the repeated request will say so.
    if (!file_locks_.declare(wish))
      log::warning("locks that exclude each other session={} inode={} first={} last={}",
                   raw(session->id), one.inode(), one.first(), one.last());
  }
  co_return Answer{};
}

/// Goes on with those whose waiting is over.
void Service::tell_lock_waiters() {
  for (auto decided = file_locks_.decided(); !decided.empty(); decided = file_locks_.decided()) {
    for (const auto& [ticket, verdict] : decided) {
      auto waiter = lock_waiters_.extract(ticket);
      if (!waiter.empty()) waiter.mapped()(verdict);
    }
  }
}

}  // namespace csv::service
