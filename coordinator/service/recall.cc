// Asking mounts for what they hold.
#include <algorithm>
#include <cerrno>

#include "coordinator/service/service.h"
#include "csvfs/base/log.h"

namespace csv::service {
namespace {

/// Blocks of a grant that go in one transaction.
constexpr std::uint64_t kDropAtOnce = 1u << 16;
/// A session with more layouts is asked for its first ones back: neither side's memory is endless.
constexpr std::size_t kMaxLayouts = 60'000;
constexpr int kShedAtOnce = 512;
constexpr int kShedTogether = 32;

Error session_ended() { return Error{Errc::session_ended, "the session has ended"}; }

bool same(Blocks a, Blocks b) { return a.first == b.first && a.end == b.end; }

Blocks hull(Blocks a, Blocks b) {
  if (a.first >= a.end) return b;
  if (b.first >= b.end) return a;
  return {std::min(a.first, b.first), std::max(a.end, b.end)};
}

/// That a session truncates a file and waits for others' pages of it.
class Turn {
 public:
  using All = std::multiset<std::pair<InodeId, SessionId>>;
  Turn(All& all, InodeId inode, SessionId session, bool takes_part) : all_{&all} {
    if (takes_part) at_ = all.insert({inode, session});
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() {
    if (at_) all_->erase(*at_);
  }

 private:
  All* all_;
  std::optional<All::iterator> at_;
};

}  // namespace

/// Nobody can have been given anything of a file that was made since: inode numbers only grow.
bool Service::older_than_takeover(InodeId inode) const {
  return first_made_ == InodeId{} || inode < first_made_;
}

/// It may hold layouts of this file that nobody has told us of. Also with no key that is admitted:
/// a new one may have been about to replace that under which it got them.
bool Service::unknown_holder(const Session& session, InodeId inode) const {
  return !session.declared && older_than_takeover(inode);
}

bool Service::unlisted_holder(const Session& session, InodeId inode) const {
  return session.layouts_unlisted && !session.unlisted_told.contains(inode) &&
         older_than_takeover(inode);
}

bool Service::any_unknown_holder(InodeId inode) const {
  return std::any_of(sessions_.begin(), sessions_.end(),
                     [&](const auto& each) { return unknown_holder(*each.second, inode); });
}

bool Service::anything_in_the_way(const SessionRef& on_behalf, InodeId inode,
                                  const InTheWay& what) const {
  auto self = on_behalf ? on_behalf->id : SessionId{};
  auto holders = layouts_.holders(inode, what.layouts, what.reads_too);
  if (!what.own_too) std::erase(holders, self);
  if (!holders.empty() || layouts_.pages_in_the_way(inode, what.pages, what.clean_too, self))
    return true;
  return std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& each) {
    bool own = !what.own_too && each.first == self;
    return !own && (unknown_holder(*each.second, inode) || unlisted_holder(*each.second, inode));
  });
}

/// The lock comes first, because most of the time nobody holds anything. Where somebody does, it is
/// given up for the recall (what the mount must do before it answers may need it), while the hold
/// keeps new layouts back, and the question is asked again under the lock.
Task<Expected<Service::Quiet>> Service::quiet(SessionRef on_behalf, InodeId inode, InTheWay what,
                                              Blocks lock) {
  Quiet quiet;
  for (;;) {
    quiet.lock = co_await locks_.lock(inode, lock, InodeLocks::Mode::exclusive);
    if (on_behalf && on_behalf->ending) co_return session_ended();
    if (!anything_in_the_way(on_behalf, inode, what)) co_return std::move(quiet);
    quiet.lock.release();
    quiet.hold = layouts_.hold(inode, hull(what.layouts, what.pages), what.reads_too);
    CSV_CO_CHECK(co_await recall(on_behalf, inode, what));
  }
}

/// After a takeover: every session that could hold something of the file has said what, or is gone.
Task<Expected<void>> Service::all_holders_known(SessionRef on_behalf, InodeId inode) {
  for (;;) {
    auto silent = std::find_if(sessions_.begin(), sessions_.end(), [&](const auto& each) {
      return unknown_holder(*each.second, inode);
    });
    if (silent == sessions_.end()) co_return Expected<void>{};
    if (on_behalf && on_behalf->ending) co_return session_ended();
    auto session = silent->second;  // kept: it may end meanwhile
    Counted waiting{session->waited_for};
    co_await sessions_changed_.wait();
  }
}

/// Under a hold of the range. Afterwards nobody holds a layout of it, nothing under one is in
/// flight, and what was granted there is free again.
Task<Expected<void>> Service::recall(SessionRef on_behalf, InodeId inode, InTheWay what) {
  CSV_CO_CHECK(co_await all_holders_known(on_behalf, inode));
  // Before the layouts, under which they are written.
  CSV_CO_CHECK(co_await recall_pages(on_behalf, inode, what));

  struct Wait {
    SessionRef session;
    AskedBack back;
  };
  std::vector<Wait> waits;
  Layouts::Hold while_grants_go;
  auto holders = layouts_.holders(inode, what.layouts, what.reads_too);
  for (auto& [id, session] : sessions_) {
    if (!what.own_too && session == on_behalf) continue;
    bool unlisted = unlisted_holder(*session, inode);
    if (!unlisted && std::find(holders.begin(), holders.end(), id) == holders.end()) continue;
    Layouts::Recall all{.range = what.layouts, .reads_too = what.reads_too || unlisted};
    // A grant is dropped as a whole, so all of it must have come back.
    // Until it is free nothing of it may be laid out anew, with a write elsewhere in the file.
    if (unlisted || layouts_.may_have_grant(inode, id)) {
      all.range = kWholeFile;
      while_grants_go = layouts_.hold(inode, kWholeFile, false);
    }
    waits.push_back({session, ask_back(session, inode, all)});
  }
  for (auto& wait : waits) {
    while (!wait.back.asked->answered) {
      if (on_behalf && on_behalf->ending) co_return session_ended();
      co_await wait.back.asked->changed.wait();
    }
    CSV_CO_CHECK(co_await came_back(wait.session, inode, wait.back.what));
  }
  co_return Expected<void>{};
}

/// Afterwards no kernel but that of `on_behalf` has pages in the range, and what was stored into
/// them is written.
Task<Expected<void>> Service::recall_pages(SessionRef on_behalf, InodeId inode, InTheWay what) {
  auto self = on_behalf ? on_behalf->id : SessionId{};
  auto holders = layouts_.page_holders(inode, what.pages, what.clean_too, self);
  if (holders.empty()) co_return Expected<void>{};
  // While a program truncates a file its kernel writes no pages of it. Two nodes that do so, each
  // with pages that the other one needs, would wait for ever: the later one does not begin.
  bool wait_for_each_other = std::any_of(holders.begin(), holders.end(), [&](SessionId each) {
    return truncating_.contains({inode, each});
  });
  if (what.truncates && wait_for_each_other)
    co_return errno_error(EAGAIN, "another node truncates the file, which both have mapped");
  Turn turn{truncating_, inode, self, what.truncates};
  struct Wait {
    SessionRef session;
    AskedBack back;
  };
  std::vector<Wait> waits;
  for (auto id : holders) {
    auto found = sessions_.find(id);
    if (found == sessions_.end()) continue;
    Layouts::Recall pages{.range = what.pages, .pages = true, .reads_too = true};
    waits.push_back({found->second, ask_back(found->second, inode, pages)});
  }
  for (auto& wait : waits) {
    while (!wait.back.asked->answered) {
      if (on_behalf && on_behalf->ending) co_return session_ended();
      co_await wait.back.asked->changed.wait();
    }
    layouts_.came_back(inode, wait.session->id, wait.back.what);
  }
  co_return Expected<void>{};
}

Service::AskedBack Service::ask_back(const SessionRef& session, InodeId inode,
                                     Layouts::Recall what) {
  wire::Notice notice;
  auto& recall = *notice.mutable_recall();
  recall.set_inode(raw(inode));
  recall.set_offset(what.range.first * volume::kBlockSize);
  recall.set_length(what.range.count() * volume::kBlockSize);
  recall.set_reads_too(what.reads_too);
  recall.set_pages(what.pages);
  // Layouts given before this one carry a lower number: an answer that is still on its way is known
  // as overtaken.
  what.number = ++recall_sequence_;
  recall.set_sequence(what.number);
  ++recalls_;
  layouts_.recalled(inode, session->id, what);
  return {ask(session, std::move(notice)), what};
}

/// The session has answered a recall, or is gone.
Task<Expected<void>> Service::came_back(SessionRef session, InodeId inode, Layouts::Recall what) {
  bool whole = same(what.range, kWholeFile);
  bool granted = session->gone || unlisted_holder(*session, inode) ||
                 layouts_.may_have_grant(inode, session->id);
  if (whole && granted) CSV_CO_CHECK(co_await drop_grants(session->id, inode));
  layouts_.came_back(inode, session->id, what);
  if (whole && what.reads_too && session->layouts_unlisted) session->unlisted_told.insert(inode);
  co_return Expected<void>{};
}

Task<Expected<void>> Service::drop_grants(SessionId session, InodeId inode) {
  for (;;) {
    auto drop = [session, inode](volume::Catalog& catalog) {
      return catalog.drop_grants(session, inode, kDropAtOnce);
    };
    CSV_CO_TRY(dropped, co_await writer_.change(std::move(drop)));
    if (dropped < kDropAtOnce) break;
  }
  layouts_.grant_dropped(inode, session);
  co_return Expected<void>{};
}

Task<Expected<void>> Service::drop_unknown_grants(InodeId inode) {
  std::set<SessionId> all = ended_;
  for (const auto& [id, session] : sessions_) all.insert(id);
  for (auto session : all) CSV_CO_CHECK(co_await drop_grants(session, inode));
  co_return Expected<void>{};
}

/// After the session closed the file: the space beyond its end that it did not use. It is asked,
/// because a write of it may still be under way, or of unknown outcome.
Task<void> Service::take_back_grant(SessionRef session, InodeId inode) {
  auto hold = layouts_.hold(inode, kWholeFile, false);
  if (!layouts_.may_have_grant(inode, session->id)) co_return;
  auto back = ask_back(session, inode, {.range = kWholeFile});
  while (!back.asked->answered) co_await back.asked->changed.wait();
  if (auto dropped = co_await came_back(session, inode, back.what); !dropped) {
    log::warning("grant not dropped inode={} session={} reason=\"{}\"", raw(inode),
                 raw(session->id), dropped.error().message());
    co_return;
  }
  // Not while an fallocate, whose space this could be, is halfway.
  auto lock = co_await locks_.lock(inode, kWholeFile, InodeLocks::Mode::exclusive);
  auto trim = [inode](volume::Catalog& catalog) { return catalog.trim(inode); };
  auto trimmed = co_await writer_.change(std::move(trim));
  if (!trimmed && !is_stale(trimmed.error()))
    log::warning("space beyond the end not freed inode={} reason=\"{}\"", raw(inode),
                 trimmed.error().message());
}

/// Who has too many, or the most of too many, is asked for some. Nothing is forgotten before that
/// is answered.
void Service::keep_layouts_bounded(const SessionRef& asker) {
  auto from = asker;
  if (layouts_.count(asker->id) <= kMaxLayouts) {
    if (layouts_.total() <= shares_.layouts) return;
    auto found = sessions_.find(layouts_.largest());
    if (found == sessions_.end()) return;  // it has ended, and what it holds is about to go
    from = found->second;
  }
  if (!from->ending && !shedding_.contains(from->id)) tasks_.spawn(shed_layouts(from));
}

struct Service::Shedding {
  explicit Shedding(Loop& loop) : changed{loop} {}
  int under_way = 0;
  Signal changed;
};

/// In turn, so that it is not always the same files; what is open last of all.
Task<void> Service::shed_layouts(SessionRef session) {
  shedding_.insert(session->id);
  auto round = std::make_shared<Shedding>(loop_);
  auto held = layouts_.count(session->id);
  bool spare_open = session->open.size() < held / 2;
  auto at = shed_[session->id];
  int asked = 0;
  for (std::size_t looked = 0; looked < held && asked < kShedAtOnce && !session->ending; ++looked) {
    at = layouts_.next_of(session->id, at);
    if (at == InodeId{}) at = layouts_.next_of(session->id, at);
    if (at == InodeId{}) break;
    shed_[session->id] = at;
    if (spare_open && session->open.contains(at)) continue;
    // What is mapped is in use.
    if (layouts_.pages_in_the_way(at, kWholeFile, true, SessionId{})) continue;
    ++asked;
    ++round->under_way;
    tasks_.spawn(shed(session, at, round));
    while (round->under_way >= kShedTogether) co_await round->changed.wait();
  }
  while (round->under_way > 0) co_await round->changed.wait();
  shedding_.erase(session->id);
}

Task<void> Service::shed(SessionRef session, InodeId inode, std::shared_ptr<Shedding> round) {
  auto hold = layouts_.hold(inode, kWholeFile, true);
  auto back = ask_back(session, inode, {.range = kWholeFile, .reads_too = true});
  while (!back.asked->answered) co_await back.asked->changed.wait();
  (void)co_await came_back(session, inode, back.what);  // a failure has stopped the service
  --round->under_way;
  round->changed.notify();
}

/// For the times of a file that others write directly.
Task<void> Service::ask_who_wrote(SessionRef asker, InodeId inode) {
  struct Wait {
    SessionRef session;
    AskedRef asked;
  };
  std::vector<Wait> waits;
  for (auto id : layouts_.holders(inode, kWholeFile, false)) {
    auto found = sessions_.find(id);
    if (id == asker->id || found == sessions_.end() || found->second->ending) continue;
    if (lease_is_over(*found->second)) continue;
    wire::Notice notice;
    notice.mutable_query_wrote()->set_inode(raw(inode));
    auto asked = ask(found->second, std::move(notice));
    asked->must_come_back = false;
    waits.push_back({found->second, std::move(asked)});
  }
  auto give_up = loop_.now() + around_.timing.lease_term;
  for (auto& wait : waits) {
    // One that is away is not fenced for the sake of a time stamp; it says later what it wrote, and
    // its answer, however late, says it for the last time.
    while (!wait.asked->answered && !lease_is_over(*wait.session) && !asker->ending &&
           loop_.now() < give_up)
      co_await wait.asked->changed.wait();
  }
}

/// Nothing to do for a file that is gone.
Task<Expected<void>> Service::touch(InodeId inode) {
  auto set = [inode, now = wall_now()](volume::Catalog& catalog) {
    return catalog.touch(inode, now);
  };
  struct Touching {
    Touching(std::multiset<InodeId>& all, InodeId of, Signal& changed)
        : inodes{&all}, at{all.insert(of)}, ended{&changed} {}
    Touching(const Touching&) = delete;
    Touching& operator=(const Touching&) = delete;
    ~Touching() {
      inodes->erase(at);
      ended->notify();
    }
    std::multiset<InodeId>* inodes;
    std::multiset<InodeId>::iterator at;
    Signal* ended;
  } touching{touching_, inode, touched_};
  auto touched = co_await writer_.change(std::move(set));
  if (!touched && !is_stale(touched.error())) co_return touched.error();
  co_return Expected<void>{};
}

}  // namespace csv::service
