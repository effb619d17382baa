// What a session that was ended had open: kept for its mount, until somebody conflicts (A3).
#include <algorithm>
#include <limits>

#include "coordinator/service/service.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv::service {

using volume::Catalog;
using volume::SuspendedRow;

namespace {

/// That marks are on their way into the catalog.
class Marking {
 public:
  using All = std::multimap<std::pair<NodeId, InodeId>, Touch>;
  Marking(All& all, const std::vector<Suspended::Mark>& marks) : all_{&all} {
    for (const auto& mark : marks)
      at_.push_back(all.insert({{mark.node, mark.inode}, mark.touched}));
  }
  Marking(const Marking&) = delete;
  Marking& operator=(const Marking&) = delete;
  ~Marking() {
    for (auto at : at_) all_->erase(at);
  }

 private:
  All* all_;
  std::vector<All::iterator> at_;
};

}  // namespace

/// What it has open, as far as we know, and what others have done to that. Nothing if they may be
/// writing what nobody knows of.
std::optional<SuspendedRow> Service::what_it_leaves(const Session& session) const {
  for (const auto& [id, other] : sessions_) {
    if (id == session.id) continue;
    bool writes_unseen = !other->declared && !lease_is_over(*other);
    if (writes_unseen || other->layouts_unlisted) return std::nullopt;
  }
  if (session.all_touched_meanwhile) return std::nullopt;
  auto touched = [&](InodeId inode) {
    return layouts_.may_write(inode, session.id) || writes_it(inode, session.id) ||
           session.touched_meanwhile.contains(inode) || session.written_together.contains(inode);
  };
  SuspendedRow row;
  row.node = session.node;
  row.session = session.id;
  row.incarnation = session.incarnation;
  row.listed = session.declared && session.open.size() <= Suspended::kMostListed;
  row.next_inode = Suspended::kNoInode;
  if (row.listed) {
    for (auto inode : session.open)
      row.files[inode] = touched(inode) ? Touch::content : Touch::none;
    return row;
  }
  for (const auto& [id, other] : sessions_)
    if (id != session.id)
      for (auto inode : other->open_to_write) row.files[inode] = Touch::content;
  for (auto inode : session.touched_meanwhile) row.files[inode] = Touch::content;
  for (const auto& [inode, touch] : session.written_together) row.files[inode] = Touch::content;
  for (auto inode : layouts_.written_by_others(session.id)) row.files[inode] = Touch::content;
  if (row.files.size() > Suspended::kMostTouched) return std::nullopt;
  return row;
}

/// Right before the transaction that ends the session is handed in: whatever is handed in before it
/// came first, and whatever comes after finds what is suspended. A row in any case: without one
/// nothing would count against what the next session of the mount leaves, and it may ask for what
/// both of them leave.
SuspendedRow Service::what_to_suspend(const Session& session) const {
  auto row = what_it_leaves(session);
  const auto* known = suspended_.find(session.node);
  if (known != nullptr && known->incarnation == session.incarnation) {
    // Of a session that came from a former coordinator, and not to us, the rows know more than we
    // do; since they are there they have heard of whatever was touched. And if the mount has not
    // said that it has heard what goes on of the session before, it may still ask: for what both
    // of them leave.
    bool before = known->session != session.id;
    if (!session.declared || (before && !row)) {
      row = *known;
      row->session = session.id;
      if (row->listed) row->next_inode = Suspended::kNoInode;
    } else if (before && known->listed && !row->listed) {
      row.reset();  // which of its files the list lacks cannot be said
    } else if (before) {
      // What a list lacks does not go on. The session before may have had it open all the same, and
      // others may have touched it since: of that nothing is noted.
      // Without a list that is so of what was made after the row.
      for (auto& [inode, touched] : row->files)
        if (!known->files.contains(inode) && (inode < known->next_inode) == known->listed)
          touched = Touch::content;
      if (!known->listed) row->next_inode = std::min(row->next_inode, known->next_inode);
      row->listed = row->listed && known->listed;
      for (auto [inode, touched] : known->files) {
        auto& all = row->files[inode];
        all = all | touched;
      }
    }
    for (const auto& [what, touched] : marking_)
      if (row && what.first == session.node) {
        auto& all = row->files[what.second];
        all = all | touched;
      }
  } else if (!session.declared && giving_up_.contains(session.node)) {
    row.reset();
  }
  if (!row || row->files.size() > Suspended::kMostTouched) return nothing_of(session);
  return *std::move(row);
}

/// Should this coordinator die, the next one may have to end a session that it knows nothing of. So
/// what counts against it is in the catalog before it takes effect: of a file that it has open,
/// and that is touched while it is away, or written together with it.
std::vector<SuspendedRow> Service::rows_to_begin(InodeId inode) const {
  std::vector<SuspendedRow> rows;
  for (const auto& [id, session] : sessions_)
    if (!session->end_handed_in && counts_against(*session, inode) &&
        suspended_.find(session->node) == nullptr)
      rows.push_back(what_it_leaves(*session).value_or(nothing_of(*session)));
  return rows;
}

bool Service::counts_against(const Session& session, InodeId inode) const {
  bool may_have = session.declared ? session.open.contains(inode) : older_than_takeover(inode);
  if (!may_have) return false;
  return session.written_together.contains(inode) || session.touched_meanwhile.contains(inode) ||
         session.all_touched_meanwhile;
}

/// A row by which nothing of it goes on.
SuspendedRow Service::nothing_of(const Session& session) {
  SuspendedRow nothing;
  nothing.node = session.node;
  nothing.session = session.id;
  nothing.incarnation = session.incarnation;
  nothing.listed = true;
  return nothing;
}

/// Nothing counts against it any more.
void Service::look_whose_rows_end() {
  std::vector<NodeId> over;
  for (const auto& [id, session] : sessions_) {
    const auto* row = suspended_.find(session->node);
    if (row != nullptr && row->session == id && session->resumed && !session->ending &&
        session->written_together.empty())
      over.push_back(session->node);
  }
  if (!over.empty()) tasks_.spawn(forget_in_background(std::move(over)));
}

/// Somebody else has it open to write it.
bool Service::writes_it(InodeId inode, SessionId except) const {
  auto found = openers_.find(inode);
  if (found == openers_.end()) return false;
  return std::any_of(found->second.begin(), found->second.end(), [&](SessionId id) {
    if (id == except) return false;
    auto session = sessions_.find(id);
    return session != sessions_.end() && session->second->open_to_write.contains(inode);
  });
}

/// Sessions that are away, or have not said what they hold, or are being ended, may turn out to
/// have ended by now. One that comes back goes on as if it had never been away, so this is kept no
/// longer than until then, and in memory. But two that write a file together never go on with it:
/// write layouts do not exclude each other, and an answer that was lost is not known to be.
void Service::note_for_absent(const SessionRef& by, InodeId inode) {
  ++touches_;
  for (const auto& [id, session] : sessions_) {
    bool present = session->connected() && session->resumed && !session->ending;
    if (session == by) continue;
    if (session->open_to_write.contains(inode)) {
      session->written_together[inode] = touches_;
      if (by->open_to_write.contains(inode)) by->written_together[inode] = touches_;
    }
    if (present || session->all_touched_meanwhile) continue;
    session->touched_meanwhile.insert(inode);
    if (session->touched_meanwhile.size() <= Suspended::kMostTouched) continue;
    session->touched_meanwhile.clear();
    session->all_touched_meanwhile = true;
  }
}

/// It is back. What others did meanwhile matters to it no more, but for what it has had under way
/// all the time.
void Service::touched_while_away(const SessionRef& session) {
  ++touches_;
  for (auto inode : session->open_to_write)
    if (session->all_touched_meanwhile || session->touched_meanwhile.contains(inode))
      session->written_together[inode] = touches_;
  session->touched_meanwhile.clear();
  session->all_touched_meanwhile = false;
}

bool Service::writes_alone(const Session& session, InodeId inode) const {
  if (writes_it(inode, session.id) || layouts_.may_write(inode, session.id)) return false;
  return std::none_of(sessions_.begin(), sessions_.end(), [&](const auto& each) {
    const auto& other = *each.second;
    return each.first != session.id &&
           (unknown_holder(other, inode) || unlisted_holder(other, inode));
  });
}

/// At every tick, so that a file that others open all the time is not asked back any more often.
void Service::look_who_writes_alone() {
  for (const auto& [id, ref] : sessions_) {
    auto& session = *ref;
    const auto& marks = session.written_together;
    if (session.settling || marks.empty() || !session.resumed || session.ending) continue;
    bool any = std::any_of(marks.begin(), marks.end(),
                           [&](const auto& each) { return writes_alone(session, each.first); });
    if (!any) continue;
    session.settling = true;
    tasks_.spawn(settle_writes(ref));
  }
}

/// Others wrote a file together with the session, and do not any more. Once it has given back what
/// it writes under, nothing of what they may have seen, and written over, is under way.
Task<void> Service::settle_writes(SessionRef session) {
  auto marks = session->written_together;
  for (auto mark : marks) {
    auto inode = mark.first;
    auto stands = [&] {
      auto found = session->written_together.find(inode);
      return found != session->written_together.end() && found->second == mark.second;
    };
    if (!session->resumed || session->ending) break;
    if (!stands() || !writes_alone(*session, inode)) continue;
    bool unlisted = unlisted_holder(*session, inode);
    auto holders = layouts_.holders(inode, kWholeFile, false);
    bool holds = unlisted || layouts_.may_have_grant(inode, session->id) ||
                 std::find(holders.begin(), holders.end(), session->id) != holders.end();
    if (holds) {
      auto hold = layouts_.hold(inode, kWholeFile, false);
      auto back = ask_back(session, inode, {.range = kWholeFile, .reads_too = unlisted});
      back.asked->must_come_back = false;  // nobody waits for it
      while (!back.asked->answered && session->resumed && stands())
        co_await back.asked->changed.wait();
      // Its answer may still come, and only says more than we then know.
      if (!back.asked->answered) continue;
      if (!co_await came_back(session, inode, back.what)) co_return;  // the service has stopped
    }
    if (stands()) session->written_together.erase(inode);
  }
  session->settling = false;
}

/// Durable before the effect, or the answer, that makes it true: a coordinator that takes over must
/// not let anybody go on with what was touched.
Task<Expected<void>> Service::touches(SessionRef by, InodeId inode, Touch how) {
  if (how == Touch::content) {
    note_for_absent(by, inode);
    // Until that is durable the row from before stands there, which knows nothing of this touch;
    // and begun anew it would know only what we have seen ourselves.
    while (!giving_up_.empty()) co_await given_up_.wait();
    if (auto rows = rows_to_begin(inode); !rows.empty())
      CSV_CO_CHECK(co_await begin_rows(std::move(rows)));
  }
  if (suspended_.empty()) co_return Expected<void>{};
  auto marks = suspended_.unmarked(inode, how, by->node, by->incarnation);
  // What others do to the files of a session that is there is no matter of its row.
  std::erase_if(marks, [&](const auto& mark) {
    auto live = sessions_.find(suspended_.find(mark.node)->session);
    return live != sessions_.end() && !live->second->end_handed_in &&
           (how != Touch::content || !counts_against(*live->second, inode));
  });
  const auto* own = suspended_.find(by->node);
  if (how == Touch::content && by->written_together.contains(inode) && own != nullptr &&
      own->incarnation == by->incarnation && suspended_.untouched(*own, inode, how))
    marks.push_back({by->node, inode, how});
  if (marks.empty()) co_return Expected<void>{};
  Marking marking{marking_, marks};
  CSV_CO_CHECK(co_await write_marks(marks));
  co_return co_await note_marks(std::move(marks));
}

Task<Expected<void>> Service::begin_rows(std::vector<SuspendedRow> rows) {
  auto body =
      [rows = std::move(rows)](Catalog& catalog) mutable -> Expected<std::vector<SuspendedRow>> {
    for (auto& row : rows) CSV_TRY(catalog.suspend(row));
    return std::move(rows);
  };
  CSV_CO_TRY(begun, co_await writer_.change(std::move(body)));
  // Only now, or who touches the same would find it there, and not wait for it. What its end has
  // written meanwhile came later.
  for (auto& row : begun)
    if (suspended_.find(row.node) == nullptr && sessions_.contains(row.session) &&
        !giving_up_.contains(row.node))
      suspended_.add(std::move(row));
  co_return Expected<void>{};
}

/// Nothing that is kept for these nodes may be gone on with. That must be said: without a row
/// nothing counts against a session that is yet to end, this one or the next of the same mount.
Task<Expected<void>> Service::give_up_suspended(std::vector<NodeId> nodes) {
  std::vector<SuspendedRow> nothing;
  for (auto node : nodes) {
    const auto* row = suspended_.find(node);
    if (row == nullptr) continue;
    nothing.push_back(*row);
    nothing.back().listed = true;
    nothing.back().files.clear();
    nothing.back().next_inode = Suspended::kNoInode;
    suspended_.forget(node);
    giving_up_.insert(node);
  }
  if (nothing.empty()) co_return Expected<void>{};
  auto body =
      [rows = std::move(nothing)](Catalog& catalog) mutable -> Expected<std::vector<SuspendedRow>> {
    for (auto& row : rows) CSV_TRY(catalog.suspend(row));
    return std::move(rows);
  };
  auto done = co_await writer_.change(std::move(body));
  if (!done) {
    stop(done.error().within("giving up what was open"));  // touches wait for it
    co_return done.error();
  }
  for (auto& row : *done) {
    giving_up_.erase(row.node);
    // An end has left another one meanwhile, which came later.
    if (suspended_.find(row.node) == nullptr) suspended_.add(std::move(row));
  }
  given_up_.notify();
  co_return Expected<void>{};
}

Task<Expected<void>> Service::write_marks(std::vector<Suspended::Mark> marks) {
  auto body = [marks = std::move(marks)](Catalog& catalog) -> Expected<void> {
    for (const auto& mark : marks)
      CSV_TRY(catalog.touch_suspended(mark.node, {{mark.inode, mark.touched}}));
    return {};
  };
  co_return co_await writer_.change(std::move(body));
}

Task<Expected<void>> Service::note_marks(std::vector<Suspended::Mark> marks) {
  std::vector<NodeId> full;
  for (const auto& mark : marks) {
    log::info("suspended file touched node={} inode={} how={}", raw(mark.node), raw(mark.inode),
              static_cast<unsigned>(mark.touched));
    if (!suspended_.note(mark)) full.push_back(mark.node);
  }
  co_return co_await give_up_suspended(std::move(full));
}

/// A session that comes back to a new coordinator may write all of this by itself, at once.
void Service::declared_writing(const SessionRef& session, std::span<const InodeId> inodes) {
  for (auto inode : inodes) note_for_absent(session, inode);
  if (session->layouts_unlisted)
    for (const auto& [id, other] : sessions_)
      if (other != session && !(other->connected() && other->resumed))
        other->all_touched_meanwhile = true;
  if (suspended_.empty()) return;
  std::vector<Suspended::Mark> all;
  for (auto inode : inodes) {
    auto marks = suspended_.unmarked(inode, Touch::content, session->node, session->incarnation);
    all.insert(all.end(), marks.begin(), marks.end());
  }
  std::vector<NodeId> given_up;
  if (session->layouts_unlisted) {
    given_up = suspended_.nodes();
    std::erase(given_up, session->node);
  }
  // At once for us. Should we end before the rows say it, it declares the same to the next one.
  for (const auto& mark : all)
    if (!suspended_.note(mark)) given_up.push_back(mark.node);
  if (!all.empty()) tasks_.spawn(write_in_background(std::move(all)));
  if (!given_up.empty()) tasks_.spawn(give_up_in_background(std::move(given_up)));
}

Task<void> Service::write_in_background(std::vector<Suspended::Mark> marks) {
  (void)co_await write_marks(std::move(marks));  // a failure stops the service
}

Task<void> Service::give_up_in_background(std::vector<NodeId> nodes) {
  (void)co_await give_up_suspended(std::move(nodes));
}

Task<void> Service::forget_in_background(std::vector<NodeId> nodes) {
  (void)co_await forget_suspended(std::move(nodes));
}

Task<Expected<void>> Service::forget_suspended(std::vector<NodeId> nodes) {
  std::erase_if(nodes, [this](NodeId node) { return suspended_.find(node) == nullptr; });
  if (nodes.empty()) co_return Expected<void>{};
  for (auto node : nodes) {
    suspended_.forget(node);
    forgetting_.insert(node);
  }
  auto body = [nodes](Catalog& catalog) -> Expected<void> {
    for (auto node : nodes) CSV_TRY(catalog.forget_suspended(node));
    return {};
  };
  CSV_CO_CHECK(co_await writer_.change(std::move(body)));  // a failure stops the service
  for (auto node : nodes) forgetting_.erase(forgetting_.find(node));
  co_return Expected<void>{};
}

/// Changes nothing in the catalog, so that it may be asked again, of a new coordinator too; what
/// was kept goes when the mount says that it has heard the answer.
Task<Service::Outcome> Service::resume(CallRef call) {
  auto session = call->session;
  const auto& asked = call->request.resume();
  while (giving_up_.contains(session->node)) co_await given_up_.wait();
  if (asked.done()) {
    const auto* row = suspended_.find(session->node);
    if (row == nullptr || row->incarnation != session->incarnation || row->session == session->id)
      co_return Answer{};
    if (session->written_together.empty()) {
      CSV_CO_CHECK(co_await forget_suspended(std::vector<NodeId>(1, session->node)));
      co_return Answer{};
    }
    // What counted against this one stood there, too.
    suspended_.forget(session->node);
    std::vector<SuspendedRow> its(1, what_it_leaves(*session).value_or(nothing_of(*session)));
    CSV_CO_CHECK(co_await begin_rows(std::move(its)));
    co_return Answer{};
  }
  Answer answer;
  auto& resumed = *answer.reply.mutable_resumed();
  std::string why;
  for (const auto& file : asked.files()) {
    InodeId inode{file.inode()};
    std::vector<FileLocks::Wish> locks;
    for (const auto& one : asked.locks())
      if (InodeId{one.inode()} == inode) locks.push_back(wish_of(session->id, one));
    // Before anything is looked up, so that a file that loses its last name now is kept for it.
    if (!session->open.contains(inode)) session->opened_by_resume.insert(inode);
    if (!reaping_.contains(inode)) opened(session, inode, file.writes());
    auto goes_on = co_await resume_file(session, SessionId{asked.session()}, file, locks);
    // As with an opening: who has it suspended, too, may not go on with it any more.
    if (goes_on && file.writes()) goes_on = co_await touches(session, inode, Touch::content);
    if (!goes_on && goes_on.error() == std::errc::no_space_on_device)
      goes_on = Error{Errc::refused,
                      "that it is written again cannot be noted: " + goes_on.error().message()};
    if (goes_on) {
      resumed.add_inodes(raw(inode));
      continue;
    }
    // Nor does what an earlier try of the same was given, whose answer got lost.
    for (const auto& lock : locks) file_locks_.forget(inode, lock.kind, lock.owner);
    if (!locks.empty()) tell_lock_waiters();
    if (session->opened_by_resume.contains(inode)) closed(session, inode);
    if (!(goes_on.error() == Errc::refused)) co_return goes_on.error();
    log::info("not resumed node={} inode={} why=\"{}\"", raw(session->node), raw(inode),
              goes_on.error().message());
    why = goes_on.error().message();
  }
  if (asked.files_size() == 0) co_return std::move(answer);
  auto others = asked.files_size() - resumed.inodes_size();
  events::report(others == 0 ? events::Severity::info : events::Severity::warning, "session",
                 around_.volume,
                 fmt::format("node {} goes on with {} files it had open, and not with {}",
                             raw(session->node), resumed.inodes_size(), others),
                 others == 0 ? "" : "the last of them: " + why);
  co_return std::move(answer);
}

/// Errc::refused: it does not go on, and why.
Task<Expected<void>> Service::resume_file(SessionRef session, SessionId ended,
                                          wire::Resume::File file,
                                          std::vector<FileLocks::Wish> locks) {
  InodeId inode{file.inode()};
  auto refuse = [](const char* why) { return Error{Errc::refused, why}; };
  if (!locks.empty()) CSV_CO_CHECK(co_await all_locks_known(session, inode));
  auto body = [inode](Catalog& catalog) { return catalog.attr(inode); };
  auto attr = co_await writer_.read(std::move(body));
  if (!attr && !is_stale(attr.error())) co_return attr.error();
  if (session->ending) co_return Error{Errc::session_ended, "the session has ended"};
  // From here on nothing waits.
  if (!attr || attr->nlink == 0) co_return refuse("it was removed");
  const auto* row = suspended_.find(session->node);
  if (row == nullptr || row->session != ended || row->incarnation != session->incarnation)
    co_return refuse("nothing is kept of the session it was opened under");
  auto ways = Touch::content;
  for (const auto& lock : locks)
    ways = ways | Touch::write_locked |
           (lock.type == LockType::write ? Touch::read_locked : Touch::none);
  auto marking = marking_.equal_range({session->node, inode});
  bool about_to_be = std::any_of(marking.first, marking.second, [&](const auto& each) {
    return (each.second & ways) != Touch::none;
  });
  if (about_to_be || !suspended_.untouched(*row, inode, ways))
    co_return refuse("another node has written, locked or opened it for writing");
  // What the mount has seen of it, and what is: nothing of its content is gone.
  if (attr->truncation != file.truncation() || attr->size < file.size())
    co_return refuse("it was made shorter");
  for (std::size_t i = 0; i < locks.size(); ++i) {
    if (file_locks_.lock(locks[i]) == FileLocks::Verdict::granted) continue;
    for (std::size_t had = 0; had <= i; ++had)
      file_locks_.forget(inode, locks[had].kind, locks[had].owner);
    tell_lock_waiters();
    co_return refuse("a lock of it is another's now");
  }
  if (!locks.empty()) tell_lock_waiters();
  co_return Expected<void>{};
}

}  // namespace csv::service
