// What mounts may answer by themselves of names and attributes, and how a change reaches them
// before anybody can see it (docs/coordinator.md, "Watches").
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <map>

#include "coordinator/protocol/limits.h"
#include "coordinator/protocol/named_inodes.h"
#include "coordinator/service/service.h"

namespace csv::service {
namespace {

constexpr std::size_t kShedAtOnce = 1024;

bool same(const wire::Attr& said, const volume::Attr& known) {
  wire::Attr now;
  fill(now, known);
  return said.inode() == now.inode() && said.mode() == now.mode() && said.uid() == now.uid() &&
         said.gid() == now.gid() && said.nlink() == now.nlink() && said.size() == now.size() &&
         said.blocks() == now.blocks() && said.atime() == now.atime() &&
         said.mtime() == now.mtime() && said.ctime() == now.ctime() && said.rdev() == now.rdev() &&
         said.truncation() == now.truncation() && said.plain() == now.plain();
}

/// Whether a reply to this tells of inodes' state.
bool tells_state(const wire::Request& request) {
  return !request.has_release() && !request.has_layout_return() && !request.has_wrote() &&
         !protocol::named_inodes(request).empty();
}

std::vector<InodeId> concerned(const wire::Request& request, const wire::Reply& reply) {
  auto inodes = protocol::named_inodes(request);
  if (reply.has_attr()) inodes.push_back(InodeId{reply.attr().inode()});
  for (const auto& entry : reply.entries().entries())
    inodes.push_back(InodeId{entry.attr().inode()});
  return inodes;
}

}  // namespace

/// Called when a group of changes is told to be finished, before anybody who waited for it goes on.
/// From here on its effect can be seen here; whoever is about to be shown it waits
/// (uncontradicted()).
void Service::changed(const volume::Catalog::Changed& what) {
  names_.forget(what.inodes);
  names_.forget_attributes(what.access_times);
  for (const auto& attr : what.now) names_.learn(attr.inode, attr);
  unwatch(what.inodes, SessionId{});
  unwatch_attributes(what.access_times);
  // Some were perhaps unsettled before, and have no watchers left.
  group_unsettled_.clear();
  for (const auto& inodes : {what.inodes, what.access_times})
    for (auto inode : inodes)
      if (watches_.unsettled(inode)) group_unsettled_.push_back(inode);
}

/// They go on watching: what they know of a directory's names stays.
void Service::unwatch_attributes(std::span<const InodeId> inodes) {
  std::map<SessionId, std::vector<InodeId>> watchers;
  for (auto inode : inodes)
    for (auto session : watches_.watchers(inode)) watchers[session].push_back(inode);
  for (auto& [session, of] : watchers) tell(session, {}, std::move(of));
}

/// Before something happens to these that the catalog does not see, or after it has.
void Service::unwatch(std::span<const InodeId> inodes, SessionId except) {
  std::map<SessionId, std::vector<InodeId>> taken;
  for (auto inode : inodes)
    for (auto session : watches_.take(inode, except)) taken[session].push_back(inode);
  for (auto& [session, of] : taken) tell(session, std::move(of), {});
}

void Service::tell(SessionId session, std::vector<InodeId> inodes,
                   std::vector<InodeId> attributes) {
  auto found = sessions_.find(session);
  if (found == sessions_.end()) {
    found = lapsing_.find(session);
    if (found == lapsing_.end()) return;
  }
  auto all = inodes;
  all.insert(all.end(), attributes.begin(), attributes.end());
  auto ticket = watches_.unsettle(all, session);
  tasks_.spawn(wait_for_unwatch(found->second, ticket, std::move(inodes), std::move(attributes)));
}

/// Until the session has heard, or may not answer from what it knows any more. (What it is vouched
/// for later does not count: it hears of this before that, or has begun anew on another
/// connection.)
Task<void> Service::wait_for_unwatch(SessionRef session, Watches::Ticket ticket,
                                     std::vector<InodeId> inodes, std::vector<InodeId> attributes) {
  auto until = session->vouched_until;
  for (auto& asked : send_unwatch(session, inodes, attributes)) {
    while (!asked->heard && loop_.now() < until) {
      if (!session->gone) {
        co_await asked->changed.wait();  // the watch sees to it that this ends
      } else if (session->fenced) {
        co_await sleep(loop_, until - loop_.now());
      } else {
        break;  // its goodbye said that it forgot
      }
    }
    if (!asked->heard) session->asked.erase(asked->id);
  }
  watches_.settled(ticket);
  settled_.notify();
}

std::vector<AskedRef> Service::send_unwatch(const SessionRef& session,
                                            std::span<const InodeId> inodes,
                                            std::span<const InodeId> attributes) {
  std::vector<AskedRef> notices;
  auto most = static_cast<std::size_t>(protocol::kMaxUnwatched);
  for (std::size_t at = 0; at < std::max(inodes.size(), attributes.size()); at += most) {
    wire::Notice notice;
    auto& body = *notice.mutable_unwatch();
    for (auto i = at; i < std::min(inodes.size(), at + most); ++i) body.add_inodes(raw(inodes[i]));
    for (auto i = at; i < std::min(attributes.size(), at + most); ++i)
      body.add_attributes(raw(attributes[i]));
    ++unwatches_;
    notices.push_back(ask(session, std::move(notice)));
    notices.back()->must_come_back = false;  // nobody is fenced for what lapses by itself
  }
  return notices;
}

/// Sessions of a former coordinator of this node, or of one that closed in good order, may answer
/// from what that one told them until they have heard of us. (One that crashed elsewhere has been
/// outwaited.)
bool Service::former_watchers() {
  if (former_watchers_.empty()) return false;
  if (loop_.now() < former_watches_until_) return true;
  former_watchers_.clear();
  settled_.notify();
  return false;
}

void Service::await_former_watchers(const Taken& taken) {
  if (taken.outwaited) return;
  for (const auto& row : taken.sessions) former_watchers_.insert(row.id);
  if (former_watchers_.empty()) return;
  auto term = around_.timing.lease_term + around_.timing.lease_term / 100;
  former_watches_until_ = loop_.now() + term;
  if (taken.vouched_until)
    former_watches_until_ = std::min(former_watches_until_, *taken.vouched_until);
  // Should one end before it has come back.
  for (auto& [id, session] : sessions_) session->vouched_until = former_watches_until_;
  loop_.after(former_watches_until_ - loop_.now(), [this, alive = std::weak_ptr{alive_}] {
    if (!alive.expired()) (void)former_watchers();
  });
}

/// By what somebody else may still contradict this answer. What is changed from here on it does not
/// show.
std::set<Watches::Ticket> Service::contradictions(const Call& call, const Outcome& outcome) const {
  std::set<Watches::Ticket> tickets;
  if (watches_.all_settled() || !tells_state(call.request)) return tickets;
  static const wire::Reply kNothing;
  for (auto inode : concerned(call.request, outcome ? outcome->reply : kNothing))
    watches_.outstanding(inode, call.session_id, tickets);
  for (auto inode : call.changed) watches_.outstanding(inode, call.session_id, tickets);
  // These tell of inodes that nobody names: of a directory's names, or of what lies above it.
  bool deeper = call.request.has_unlink() || call.request.has_rename();
  if (deeper && !outcome &&
      (outcome.error() == std::errc::directory_not_empty ||
       outcome.error() == std::errc::invalid_argument))
    watches_.outstanding(call.session_id, tickets);
  return tickets;
}

/// Waits until nobody can contradict the answer any more. False: its session ends first.
Task<bool> Service::uncontradicted(CallRef call, const Outcome& outcome) {
  auto tickets = contradictions(*call, outcome);
  for (;;) {
    std::erase_if(tickets, [this](auto each) { return !watches_.outstanding(each); });
    if (tickets.empty() && !(tells_state(call->request) && former_watchers())) co_return true;
    if (call->session->ending) co_return false;
    co_await settled_.wait();
  }
}

/// What the session may keep of this answer. Only what is the truth at this moment: known here by
/// heart, and with nothing on its way that would change it unseen.
void Service::vouch(const Call& call, const Outcome& outcome, wire::Reply& reply) {
  auto& session = *call.session;
  if (session.ending || !session.resumed || !session.link) return;
  auto until =
      std::min({around_.open_until(), proven_until_, loop_.now() + around_.timing.lease_term});
  auto vouched = (until - loop_.now()) / 1ms;
  if (vouched <= 0) return;
  reply.set_vouched_ms(static_cast<std::uint32_t>(vouched));
  // Rates of clocks are trusted to 1 %.
  auto ours = until - loop_.now();
  session.vouched_until = std::max(session.vouched_until, loop_.now() + ours + ours / 100);
  // Told like a change: until it has heard, a change of these would not be told it any more.
  auto shed = [this](SessionId from) { tell(from, watches_.take_some(from, kShedAtOnce), {}); };
  if (watches_.count(session.id) >= around_.most_watched)
    shed(session.id);
  else if (watches_.total() >= shares_.watches)
    shed(watches_.largest());
  auto watch = [&](InodeId inode) {
    watches_.add(inode, session.id);
    reply.add_watched(raw(inode));
  };
  auto attributes = [&](const wire::Attr& said) {
    InodeId inode{said.inode()};
    const auto* known = names_.attr(inode);
    if (said.nlink() == 0) return false;  // it may be gone any moment
    return known != nullptr && same(said, *known) && known_by_heart(inode) &&
           !accesses_.contains(inode) && may_be_watched(inode, session.id, S_ISREG(said.mode()));
  };
  switch (call.request.op_case()) {
    case wire::Request::kLookup: {
      const auto& asked = call.request.lookup();
      InodeId parent{asked.parent()};
      bool absent = !outcome && outcome.error() == std::errc::no_such_file_or_directory;
      if (!outcome && !absent) return;
      auto found = names_.find(parent, asked.name());
      auto inode = absent ? InodeId{} : InodeId{reply.attr().inode()};
      if (found.known && found.inode == inode && may_be_watched(parent, session.id, false))
        watch(parent);
      if (!absent && attributes(reply.attr())) watch(inode);
      return;
    }
    case wire::Request::kGetAttr:
    case wire::Request::kOpen:
      if (outcome && reply.has_attr() && attributes(reply.attr()))
        watch(InodeId{reply.attr().inode()});
      return;
    case wire::Request::kGetXattr: {
      const auto& asked = call.request.get_xattr();
      InodeId inode{asked.inode()};
      const auto* known = names_.xattr(inode, asked.name());
      if (known == nullptr || !may_be_watched(inode, session.id, false)) return;
      bool absent =
          !outcome && outcome.error() == std::error_code{ENODATA, std::generic_category()};
      if (outcome ? *known == reply.bytes().value() : absent && !*known) watch(inode);
      return;
    }
    case wire::Request::kReadDir: {
      if (!outcome) return;
      InodeId directory{call.request.read_dir().inode()};
      bool all = may_be_watched(directory, session.id, false);
      for (const auto& entry : reply.entries().entries()) {
        InodeId inode{entry.attr().inode()};
        auto found = names_.find(directory, entry.name());
        all = all && found.known && found.inode == inode;
        if (attributes(entry.attr())) watch(inode);
      }
      if (all) watch(directory);
      return;
    }
    default: break;
  }
  // What it changed itself: it goes on from there.
  if (!outcome || call.request.has_release()) return;
  if (reply.has_attr() && attributes(reply.attr())) watch(InodeId{reply.attr().inode()});
  if (reply.has_written() && attributes(reply.written().attr()))
    watch(InodeId{reply.written().attr().inode()});
  bool of_names = call.request.has_make() || call.request.has_link() || call.request.has_unlink() ||
                  call.request.has_rename();
  if (!of_names) return;
  for (auto inode : protocol::named_inodes(call.request)) {
    if (reply.attr().inode() == raw(inode) || reply.written().attr().inode() == raw(inode))
      continue;
    const auto* known = names_.attr(inode);
    if (known == nullptr) continue;
    wire::Attr attr;
    fill(attr, *known);
    if (!attributes(attr)) continue;
    *reply.add_also() = std::move(attr);
    watch(inode);
  }
}

/// `content`: and it has some, whose writers change times that nobody hears of.
bool Service::may_be_watched(InodeId inode, SessionId session, bool content) {
  if (watches_.taken_lately(inode)) return false;
  if (!content) return true;
  for (auto holder : layouts_.holders(inode, kWholeFile, false))
    if (holder != session) return false;
  return std::none_of(sessions_.begin(), sessions_.end(), [&](const auto& each) {
    return each.first != session &&
           (unknown_holder(*each.second, inode) || unlisted_holder(*each.second, inode));
  });
}

}  // namespace csv::service
