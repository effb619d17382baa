// Who a mount is, and when it is over: hello, admission, fences.
#include <algorithm>

#include "coordinator/protocol/failure.h"
#include "coordinator/service/service.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv::service {
namespace {

constexpr std::uint32_t kProtocol = 1;
/// One mount a node; the rest are about to end.
constexpr std::size_t kMaxSessions = 128;
constexpr Duration kWatch = 250ms;
/// So long pages that others wait for are tried to be written, as by the mount (io_path.cc).
constexpr Duration kSpaceForOthers = 5s;

using volume::AdmissionRow;
using volume::AdmissionState;

struct Greeting {
  Greeting(std::set<NodeId>& all, NodeId of, Signal& changed)
      : greeting{&all}, node{of}, done{&changed} {
    greeting->insert(node);
  }
  Greeting(const Greeting&) = delete;
  Greeting& operator=(const Greeting&) = delete;
  ~Greeting() {
    greeting->erase(node);
    done->notify();
  }
  std::set<NodeId>* greeting;
  NodeId node;
  Signal* done;
};

}  // namespace

// ---------------------------------------------------------------------------- hello

Task<void> Service::greet(LinkRef link, wire::Hello hello) {
  Counted arrival{arrivals_};
  if (hello.protocol() != kProtocol || hello.volume() != around_.volume) {
    refuse(link,
           Error{Errc::not_coordinator, fmt::format("volume {} (protocol {}) is not served here",
                                                    hello.volume(), hello.protocol())});
    co_return;
  }
  if (link->epoch_known > epoch_) {
    // Its word alone does not stop us; the sweep will find our key gone.
    refuse(link, Error{Errc::not_coordinator, "the mount knows a newer coordinator"});
    co_return;
  }
  if (hello.node() == 0 || hello.node() > protocol::kMaxNode || hello.incarnation() == 0) {
    refuse(link, Error{Errc::refused, "a hello must name its node and its incarnation"});
    co_return;
  }
  NodeId node{static_cast<std::uint8_t>(hello.node())};
  // A Hello ends, and fences, whatever that node's mount held before: only itself may say it. All
  // else a mount asks for is bound to the node of its session.
  if (!link->connection) co_return;
  if (!link->connection->speaks_for(node)) {
    refuse(link, Error{Errc::refused,
                       fmt::format("the certificate shown is not that of node {}", hello.node())});
    co_return;
  }
  // One at a time, so that two connections of one mount cannot make two sessions.
  // Its newest alone waits: the mount has left the others, and they would take others' places.
  if (greeting_.contains(node)) {
    auto older = std::exchange(waiting_hello_[node], link).lock();
    if (older && older != link) disconnected(older);
    sessions_changed_.notify();
  }
  while (greeting_.contains(node)) {
    co_await sessions_changed_.wait();
    if (!link->connection) co_return;
  }
  Greeting turn{greeting_, node, sessions_changed_};
  auto session = co_await session_for(hello);
  if (!link->connection) co_return;
  if (!session) {
    refuse(link, session.error(), kept_out(node) ? node : NodeId{});
    co_return;
  }
  attach(*session, link, hello);
}

std::optional<Error> Service::kept_out(NodeId node) const {
  if (around_.fenced && around_.fenced().contains(node))
    return Error{Errc::refused, fmt::format("node {0} is fenced by command; csvctl node unfence "
                                            "{0} lets it come back",
                                            raw(node))};
  if (around_.belongs && !around_.belongs(node))
    return Error{Errc::refused, fmt::format("node {0} does not belong to the cluster; csvctl "
                                            "cluster join on it lets it in",
                                            raw(node))};
  return std::nullopt;
}

Task<Expected<SessionRef>> Service::session_for(wire::Hello hello) {
  NodeId node{static_cast<std::uint8_t>(hello.node())};
  if (hello.session() != 0) {
    auto found = sessions_.find(SessionId{hello.session()});
    if (found == sessions_.end() || found->second->ending || found->second->node != node ||
        found->second->incarnation != hello.incarnation())
      co_return Error{Errc::session_ended, fmt::format("session {} of node {} has ended",
                                                       hello.session(), hello.node())};
    auto session = found->second;
    if (auto why = kept_out(node)) co_return *why;  // and it will have ended the next time
    CSV_CO_CHECK(co_await load_slots(session));
    if (session->ending) co_return Error{Errc::session_ended, "the session has ended"};
    co_return session;
  }
  if (auto why = kept_out(node)) co_return *why;
  // A node has one mount of a volume, so another session of it is of a mount that is no more. Its
  // key is fenced before the new one is let in.
  for (auto at = sessions_.begin(); at != sessions_.end();) {
    auto other = (at++)->second;
    if (other->node != node) continue;
    // It did not get the answer to its first Hello. Had it asked for anything its slots would not
    // be those that a mount begins with.
    if (other->incarnation == hello.incarnation() && !other->ending && other->fresh)
      co_return other;
    auto after = other->id;
    // The same one that has lost its session comes back later, and may go on.
    auto how = other->incarnation == hello.incarnation() ? End::fenced : End::fenced_for_good;
    co_await end_session(other, "its node has a new mount", how);
    at = sessions_.upper_bound(after);  // the map changed meanwhile
  }
  if (sessions_.size() >= kMaxSessions)
    co_return Error{Errc::retry, "the volume has too many sessions"};
  // Of a former mount nobody comes back.
  while (giving_up_.contains(node)) co_await given_up_.wait();
  if (const auto* left = suspended_.find(node);
      left != nullptr && left->incarnation != hello.incarnation()) {
    CSV_CO_CHECK(co_await forget_suspended(std::vector<NodeId>(1, node)));
  }
  auto make_row = [node, incarnation = hello.incarnation()](volume::Catalog& catalog) {
    return catalog.new_session(node, incarnation);
  };
  CSV_CO_TRY(row, co_await writer_.change(std::move(make_row)));
  // Since: it may have been found to be off already.
  if (auto why = kept_out(node)) {
    auto end = [id = row.id](volume::Catalog& catalog) { return catalog.end_session(id); };
    CSV_CO_CHECK(co_await writer_.change(std::move(end)));
    co_return *why;
  }
  auto session = std::make_shared<Session>(loop_, row.id, node, hello.incarnation());
  session->slots_known = session->fresh = true;
  session->declared = session->settled = true;  // it holds nothing
  sessions_[row.id] = session;
  log::info("session new session={} node={}", raw(row.id), raw(node));
  events::report(events::Severity::info, "session", around_.volume,
                 fmt::format("node {} has a new session", raw(node)));
  co_return session;
}

/// The slots' last results, after a takeover: so that a request the former coordinator has executed
/// is answered, not executed again.
Task<Expected<void>> Service::load_slots(SessionRef session) {
  if (session->slots_known) co_return Expected<void>{};
  using Results = std::vector<std::optional<volume::SlotResult>>;
  auto look = [id = session->id](volume::Catalog& catalog) -> Expected<Results> {
    Results results;
    for (std::uint32_t slot = 0; slot < protocol::kSlots; ++slot)
      results.push_back(CSV_TRY(catalog.slot(id, slot)));
    return results;
  };
  CSV_CO_TRY(results, co_await writer_.read(std::move(look)));
  for (std::size_t slot = 0; slot < results.size(); ++slot) {
    if (!results[slot]) continue;
    session->slots[slot].sequence = results[slot]->sequence;
    session->slots[slot].reply = std::move(results[slot]->reply);
  }
  session->slots_known = true;
  co_return Expected<void>{};
}

void Service::attach(const SessionRef& session, const LinkRef& link, const wire::Hello& hello) {
  // From here on nothing of its former connection is read any more (A13).
  if (session->link) disconnected(LinkRef{session->link});
  session->link = link;
  link->session = session;
  session->resumed = hello.session() == 0;  // a new one has nothing to repeat
  session->fresh = session->fresh && hello.session() == 0;
  declare(session, hello);
  // It has forgotten all it watched, of whomever.
  watches_.drop(session->id);
  session->vouched_until = {};
  std::erase_if(session->asked, [](const auto& each) {
    auto& asked = *each.second;
    if (!asked.notice.has_unwatch()) return false;
    asked.heard = asked.answered = true;
    asked.changed.notify();
    return true;
  });
  if (former_watchers_.erase(session->id) > 0) settled_.notify();

  const auto& info = tenure_->info;
  wire::Frame frame;
  auto& reply = *frame.mutable_hello_reply();
  reply.set_session(raw(session->id));
  reply.set_volume_id(reinterpret_cast<const char*>(info.id.data()), info.id.size());
  reply.set_lun_identity(info.lun_identity);
  reply.set_cluster(info.cluster);
  reply.set_slot_offset(volume::slot_offset(info, session->node, KeyRole::mount));
  reply.set_lun_size(info.lun_size);
  reply.set_verifier(verifier_);
  reply.set_clones(true);
  reply.set_releases_many(true);
  if (around_.fences) reply.set_fences(around_.fences(session->node));
  if (hello.session() != 0)
    events::report(events::Severity::info, "session", around_.volume,
                   fmt::format("the mount of node {} is connected again", raw(session->node)));
  log::info("session connected session={} node={} peer={}", raw(session->id), raw(session->node),
            link->connection->peer());
  send(link, std::move(frame));
  while (!link->early.empty() && link->connection) {
    auto message = std::move(link->early.front());
    link->early.pop_front();
    received(link, std::move(message));
  }
  if (session->resumed) resume_done(session);
}

void Service::declare(const SessionRef& session, const wire::Hello& hello) {
  for (auto inode : hello.open_inodes()) {
    // Said again and again, of what does not exist, it would grow without end.
    if (session->open.size() >= static_cast<std::size_t>(protocol::kMaxOpenInodes)) break;
    opened(session, InodeId{inode}, false);
  }
  for (auto inode : hello.write_inodes())
    if (session->open.contains(InodeId{inode})) opened(session, InodeId{inode}, true);
  if (session->declared) return;  // what it holds it got from us: we know at least as much
  std::set<std::uint64_t> only_read{hello.read_inodes().begin(), hello.read_inodes().end()};
  std::vector<InodeId> written;
  for (auto inode : hello.layout_inodes()) {
    layouts_.declare(InodeId{inode}, session->id, only_read.contains(inode));
    if (!only_read.contains(inode)) written.push_back(InodeId{inode});
  }
  for (auto inode : hello.page_inodes()) written.push_back(InodeId{inode});
  written.insert(written.end(), session->open_to_write.begin(), session->open_to_write.end());
  for (auto inode : hello.page_inodes())
    layouts_.add_pages(InodeId{inode}, session->id, kWholeFile, true);
  session->layouts_unlisted = hello.layouts_unlisted();
  session->declared = true;
  // What others have written together with it, or while it was away, the former coordinator knew.
  if (const auto* row = suspended_.find(session->node);
      row != nullptr && row->session == session->id) {
    ++touches_;
    for (auto inode : session->open_to_write)
      if (!suspended_.untouched(*row, inode, Touch::content))
        session->written_together[inode] = touches_;
  }
  declared_writing(session, written);
  sessions_changed_.notify();
  reap_due_.notify();
}

void Service::refuse(const LinkRef& link, const Error& why, NodeId kept_out) {
  wire::Frame frame;
  if (kept_out != NodeId{} && why == Errc::refused) {
    frame.mutable_hello_reply()->set_kept_out(true);
    if (around_.fences) frame.mutable_hello_reply()->set_fences(around_.fences(kept_out));
  }
  *frame.mutable_hello_reply()->mutable_failure() = protocol::encode(why);
  log::info("hello refused reason=\"{}\"", why.message());
  send(link, std::move(frame));
  close_soon(link);
}

// ---------------------------------------------------------------------------- notices

AskedRef Service::ask(const SessionRef& session, wire::Notice notice) {
  auto asked = std::make_shared<Asked>(loop_);
  asked->id = next_notice_++;
  asked->notice = std::move(notice);
  if (session->gone) {
    asked->answered = true;
    return asked;
  }
  session->asked[asked->id] = asked;
  // Before it has repeated what was unanswered it is asked for nothing: a commit that the former
  // coordinator did not get must not be overtaken by the recall of what it commits (A11).
  if (session->resumed) send_notice(session, *asked);
  return asked;
}

void Service::send_notice(const SessionRef& session, const Asked& asked) {
  if (!session->link) return;
  wire::Frame frame;
  frame.set_id(asked.id);
  *frame.mutable_notice() = asked.notice;
  send(session->link, std::move(frame));
}

void Service::resume_done(const SessionRef& session) {
  session->resumed = session->settled = true;
  session->unsettled_ticks = 0;
  touched_while_away(session);
  reap_due_.notify();
  sessions_changed_.notify();
  auto all = session->asked;
  for (const auto& [id, asked] : all) send_notice(session, *asked);
}

void Service::noticed(const SessionRef& session, std::uint64_t id, const wire::NoticeReply& reply) {
  auto found = session->asked.find(id);
  if (found == session->asked.end()) return;  // answered before, on an earlier connection
  auto asked = found->second;
  session->asked.erase(found);
  asked->heard = true;
  const auto& notice = asked->notice;
  if (notice.has_unwatch()) {
    asked->answered = true;
    asked->changed.notify();
    return;
  }
  InodeId inode{notice.has_recall() ? notice.recall().inode() : notice.query_wrote().inode()};
  tasks_.spawn(notice_answered(std::move(asked), inode, reply.wrote()));
}

/// Times first, and at once: a request of the same mount that comes after the answer, and sets the
/// times itself, must not be overtaken by this.
Task<void> Service::notice_answered(AskedRef asked, InodeId inode, bool wrote) {
  if (wrote) {
    auto touched = co_await touch(inode);
    if (!touched)
      log::warning("times not set inode={} reason=\"{}\"", raw(inode), touched.error().message());
  }
  asked->answered = true;
  asked->changed.notify();
}

void Service::nudge_all() {
  for (auto& [id, session] : sessions_)
    for (auto& [number, asked] : session->asked) asked->changed.notify();
  sessions_changed_.notify();
}

// ---------------------------------------------------------------------------- admission

Task<Service::Outcome> Service::admit_begin(CallRef call) {
  auto session = call->session;
  if (session->ending) co_return Error{Errc::session_ended, "the session has ended"};
  // An attempt that came to nothing. Its key has done no I/O; should its REGISTER still come, the
  // sweep finds it.
  std::vector<Key> given_up;
  for (auto& [key, row] : admissions_)
    if (row.session == session->id && row.state == AdmissionState::registering)
      given_up.push_back(key);
  auto make_row = [cluster = around_.cluster, node = session->node, id = session->id,
                   incarnation =
                       session->incarnation](volume::Catalog& catalog) -> Expected<AdmissionRow> {
    AdmissionRow row;
    row.key = make_key({cluster, node, KeyRole::mount, CSV_TRY(catalog.new_key_number())});
    row.session = id;
    row.node = node;
    row.incarnation = incarnation;
    row.state = AdmissionState::registering;
    CSV_TRY(catalog.put_admission(row));
    return row;
  };
  CSV_CO_TRY(row, co_await writer_.change(std::move(make_row)));
  // Known before the answer, and so before the key can be on the LUN: the sweep finds its row.
  admissions_[row.key] = row;
  if (session->ending) co_return Error{Errc::session_ended, "the session has ended"};
  session->registering = row.key;
  if (!given_up.empty())
    tasks_.spawn(fence_in_background(std::move(given_up), Fencing::Left::nothing));
  Answer answer;
  auto& admission = *answer.reply.mutable_admission();
  admission.set_key(raw(row.key));
  admission.set_reservation_type(static_cast<std::uint32_t>(fencing_->type()));
  co_return std::move(answer);
}

/// Consent after the registration, never before it: a REGISTER that was overtaken by a fence finds
/// its row fenced (A1).
Task<Service::Outcome> Service::admit_done(CallRef call) {
  auto session = call->session;
  Key key{call->request.admit_done().key()};
  auto is_ours = [&](AdmissionState state) {
    auto found = admissions_.find(key);
    return found != admissions_.end() && found->second.session == session->id &&
           found->second.state == state && !session->ending;
  };
  auto no_more = [&] {
    if (session->ending) return Error{Errc::session_ended, "the session ended meanwhile"};
    return Error{Errc::fenced, "the session has asked for another admission meanwhile"};
  };
  if (is_ours(AdmissionState::admitted)) co_return Answer{};  // a repeat
  if (!is_ours(AdmissionState::registering))
    co_return Error{Errc::refused, "the key is not one that this session may register"};
  auto keys = co_await fencing_->keys();
  if (!keys) {
    stop(keys.error());
    co_return keys.error();
  }
  if (auto kept = look_for_memory_loss(*keys); !kept) {
    stop(kept.error());
    co_return kept.error();
  }
  if (std::find(keys->keys.begin(), keys->keys.end(), key) == keys->keys.end())
    co_return Error{Errc::fenced,
                    fmt::format("key {:016x} is not registered with the LUN", raw(key))};
  // The former way to the LUN may have writes under way that the session is about to repeat.
  std::vector<Key> former;
  for (auto& [other, row] : admissions_)
    if (row.session == session->id && row.state == AdmissionState::admitted)
      former.push_back(other);
  if (!former.empty()) {
    auto fenced = co_await fence(std::move(former), SessionId{}, Fencing::Left::maybe);
    if (!fenced) co_return fenced.error();
  }
  if (!is_ours(AdmissionState::registering)) co_return no_more();
  auto row = admissions_[key];
  row.state = AdmissionState::admitted;
  // With the generation that the target had counted to by then: should it lose power before the
  // next sweep, what it counts after that is less, whoever registers with it meanwhile.
  auto admit = [row, generation = keys->generation](volume::Catalog& catalog) -> Expected<void> {
    CSV_TRY(catalog.put_admission(row));
    auto memory = catalog.target_memory();
    if (generation <= memory.key_generation) return {};
    memory.key_generation = generation;
    return catalog.set_target_memory(memory);
  };
  CSV_CO_CHECK(co_await writer_.change(std::move(admit)));
  // Its end may have been decided meanwhile; that transaction comes after ours.
  if (!is_ours(AdmissionState::registering)) co_return no_more();
  admissions_[key] = row;
  session->key = key;
  session->registering = Key{};
  log::info("admitted session={} node={} key={:016x}", raw(session->id), raw(session->node),
            raw(key));
  co_return Answer{};
}

// ---------------------------------------------------------------------------- ends

Task<Service::Outcome> Service::goodbye(CallRef call) {
  auto session = call->session;
  session->leaving.insert(call->id);  // the end does not wait for who waits for it
  co_await end_session(session, "it said goodbye", End::said_goodbye);
  if (session->link) close_soon(session->link);
  co_return Answer{};
}

Task<void> Service::end_in_background(SessionRef session, std::string why, End how) {
  co_await end_session(std::move(session), std::move(why), how);
}

Task<void> Service::end_session(SessionRef session, std::string why, End how) {
  if (session->ending) {
    while (!session->gone) co_await session->over.wait();
    co_return;
  }
  session->ending = true;
  session->fenced = how != End::said_goodbye;
  log::info("session ends session={} node={} key={:016x} reason=\"{}\"", raw(session->id),
            raw(session->node), raw(session->key), why);
  events::report(how == End::said_goodbye ? events::Severity::info : events::Severity::error,
                 "session", around_.volume,
                 fmt::format("the session of node {} {}", raw(session->node),
                             how == End::said_goodbye ? "ended with a goodbye"
                                                      : "is ended, and its key fenced"),
                 how == End::said_goodbye ? "" : why);
  if (session->fenced && session->link) {
    wire::Frame frame;
    frame.mutable_notice()->mutable_fenced()->set_reason(why);
    frame.set_id(next_notice_++);
    send(session->link, std::move(frame));
  }
  // Its requests end: those that wait for somebody give up, the others come to their end. Only then
  // nothing of it can take effect any more.
  nudge_all();
  reap_due_.notify();
  settled_.notify();
  file_locks_.end_waits(session->id);
  tell_lock_waiters();
  while (session->requests.size() > session->leaving.size()) co_await sessions_changed_.wait();

  std::vector<Key> keys;
  for (auto& [key, row] : admissions_)
    if (row.session == session->id) keys.push_back(key);
  std::optional<volume::SuspendedRow> keep;
  if (how == End::fenced) keep = what_to_suspend(*session);
  session->end_handed_in = true;
  bool kept = keep.has_value();
  // What an earlier session of it left is this one's, or nobody's.
  if (!kept && !co_await forget_suspended(std::vector<NodeId>(1, session->node))) co_return;
  auto fenced = co_await fence(
      std::move(keys), session->id,
      !session->fenced || session->key == Key{} ? Fencing::Left::nothing : Fencing::Left::maybe,
      std::move(keep));
  if (!fenced) co_return;  // stopped: what it held stays its own
  // Begun before, and in memory only since: the end's transaction has removed it.
  if (!kept) suspended_.forget(session->node);

  session->gone = true;
  if (session->fenced && session->link) {
    auto link = std::exchange(session->link, nullptr);
    close_soon(std::move(link));
  }
  layouts_.drop(session->id);
  shed_.erase(session->id);
  file_locks_.drop(session->id);
  tell_lock_waiters();
  auto open = session->open;
  for (auto inode : open) closed(session, inode);
  auto asked = std::exchange(session->asked, {});
  for (auto& [id, one] : asked) {
    one->answered = true;
    one->changed.notify();
  }
  sessions_.erase(session->id);
  ended_.insert(session->id);
  if (session->fenced && session->vouched_until > loop_.now())
    lapsing_[session->id] = session;
  else
    watches_.drop(session->id);
  session->over.notify();
  sessions_changed_.notify();
  reap_due_.notify();
  clean_due_.notify();
}

Task<void> Service::fence_in_background(std::vector<Key> keys, Fencing::Left left) {
  (void)co_await fence(std::move(keys), SessionId{}, left);  // a failure stops the service
}

Task<Expected<void>> Service::fence(std::vector<Key> keys, SessionId ends, Fencing::Left left,
                                    std::optional<volume::SuspendedRow> keep) {
  // Before anything can be answered about these keys, and in the order in which the transactions
  // go.
  std::vector<AdmissionRow> rows;
  for (auto key : keys) {
    auto found = admissions_.find(key);
    if (found == admissions_.end()) continue;
    found->second.state = AdmissionState::fenced;
    rows.push_back(found->second);
  }
  auto keeps = keep ? keep->node : NodeId{};
  auto forgets = NodeId{};
  if (auto session = sessions_.find(ends); session != sessions_.end() && !keep)
    forgets = session->second->node;
  auto next_inode = std::make_shared<InodeId>();
  if (keep) suspended_.add(*keep);
  auto marking = [&rows, ends, next_inode](NodeId of, std::optional<volume::SuspendedRow> kept) {
    return [rows, ends, of, keep = std::move(kept),
            next_inode](volume::Catalog& catalog) mutable -> Expected<void> {
      for (const auto& row : rows) CSV_TRY(catalog.put_admission(row));
      if (ends != SessionId{}) CSV_TRY(catalog.end_session(ends));
      if (of != NodeId{}) CSV_TRY(catalog.forget_suspended(of));
      if (!keep) return {};
      CSV_TRY(catalog.suspend(*keep));
      *next_inode = keep->next_inode;
      return {};
    };
  };
  auto nothing = keep;
  auto mark = marking(forgets, std::move(keep));
  auto done = co_await writer_.change(std::move(mark));
  auto full = [&] {
    return !done && keeps != NodeId{} && done.error() == std::errc::no_space_on_device;
  };
  if (full()) {
    // Without a page left for what it had open: the fence matters more, and a successor could not
    // do it, either. A row there must be, or nothing would count against what the mount's next
    // session leaves, which may ask for what both of them do.
    log::warning("nothing is kept of what was open node={} reason=\"{}\"", raw(keeps),
                 done.error().message());
    nothing->files.clear();
    nothing->listed = true;
    nothing->next_inode = Suspended::kNoInode;
    suspended_.add(*nothing);
    auto mark_nothing = marking(NodeId{}, *nothing);
    done = co_await writer_.change(std::move(mark_nothing));
  }
  if (full()) {
    auto without = std::exchange(keeps, NodeId{});
    suspended_.forget(without);
    forgetting_.insert(without);
    auto mark_only = marking(without, std::nullopt);
    done = co_await writer_.change(std::move(mark_only));
    forgetting_.erase(forgetting_.find(without));
    suspended_.forget(without);  // begun before, and in memory only since
  }
  if (done && keeps != NodeId{}) suspended_.knows_no_inode_from(keeps, *next_inode);
  if (done) done = co_await fencing_->remove(keys, left);
  if (done) {
    // A REGISTER that comes later than this is a key without a row: the sweep's.
    auto forget = [rows](volume::Catalog& catalog) -> Expected<void> {
      for (const auto& row : rows) CSV_TRY(catalog.remove_admission(row.key));
      return {};
    };
    done = co_await writer_.change(std::move(forget));
  }
  if (!done) {
    stop(done.error().within("fencing"));
    co_return done.error();
  }
  for (const auto& row : rows) admissions_.erase(row.key);
  co_return Expected<void>{};
}

// ---------------------------------------------------------------------------- who is late

bool Service::lease_is_over(const Session& session) const {
  if (session.connected()) return false;
  // Rates of clocks are trusted to 1 %.
  auto term = around_.timing.lease_term + around_.timing.lease_term / 100;
  auto away = loop_.now() - session.disconnected_at;
  if (away >= term) return true;
  // What its mount may do rests on its node's lease and on what coordinators answered it. The
  // cluster may know that both are over; a mount whose node is only cut off from the cluster, but
  // not from us, would have come back by now.
  bool vanished = around_.out_of_reach && around_.out_of_reach(session.node);
  if (!vanished || away < around_.timing.comes_back || !around_.answers_until) return false;
  auto lease = around_.answers_until(session.node);
  return lease && loop_.now() >= std::max(*lease, session.vouched_until);
}

/// Called once a tick: counts how long answers have been owed.
bool Service::is_overdue(Session& session) const {
  bool overdue = false;
  for (auto& [id, asked] : session.asked) {
    ++asked->overdue_ticks;
    overdue = overdue || (asked->must_come_back &&
                          asked->overdue_ticks * kWatch >= around_.timing.recall_patience);
  }
  return overdue;
}

/// Others have been waiting for some of these pages, and it is not that the LUN answers nobody.
bool Service::owes_pages(const Session& session, InodeId inode, Blocks range) const {
  return std::any_of(session.asked.begin(), session.asked.end(), [&](const auto& each) {
    const auto& recall = each.second->notice.recall();
    Blocks pages{recall.offset() / volume::kBlockSize,
                 (recall.offset() + recall.length()) / volume::kBlockSize};
    return recall.pages() && recall.inode() == raw(inode) && pages.overlaps(range) &&
           each.second->overdue_ticks * kWatch >= kSpaceForOthers;
  });
}

/// Ends sessions that somebody waits for in vain, or that do not come back.
Task<void> Service::watch() {
  for (;;) {
    co_await sleep(loop_, kWatch);
    if (!serving()) co_return;
    // Without a lease nobody is let in, and nobody is ours to fence. The absence of those who are
    // away begins when they can come back.
    if (!gate_open()) {
      for (auto& [id, session] : sessions_)
        if (!session->connected()) session->disconnected_at = loop_.now();
      nudge_all();
      continue;
    }
    // A stalled array is nobody's fault: while it does not answer us either, no clock runs (A18).
    bool storage_answers = loop_.now() - own_write_answered_ < 2 * around_.timing.key_sweep;
    auto all = sessions_;
    for (auto& [id, session] : all) {
      if (session->ending) continue;
      if (auto why = kept_out(session->node)) {
        tasks_.spawn(end_in_background(session, why->message(), End::fenced_for_good));
        continue;
      }
      if (session->connected()) {
        if (storage_answers && is_overdue(*session))
          tasks_.spawn(end_in_background(session, "it does not answer a recall"));
        // Connected, and still it has not repeated what was unanswered.
        else if (!session->settled && session->waited_for > 0 && storage_answers &&
                 ++session->unsettled_ticks * kWatch >= around_.timing.recall_patience)
          tasks_.spawn(end_in_background(session, "it does not say what it holds"));
        continue;
      }
      bool wanted = session->waited_for > 0 || file_locks_.blocks_others(id) ||
                    std::any_of(session->asked.begin(), session->asked.end(),
                                [](const auto& each) { return each.second->must_come_back; });
      if (wanted && lease_is_over(*session)) {
        tasks_.spawn(end_in_background(session, "it is away and others wait for what it holds"));
      } else if (loop_.now() >= session->disconnected_at + around_.timing.reconnect_grace) {
        tasks_.spawn(end_in_background(session, "it did not come back"));
      }
    }
    std::vector<NodeId> out;
    for (auto node : suspended_.nodes())
      if (kept_out(node)) out.push_back(node);
    if (!out.empty()) tasks_.spawn(forget_in_background(std::move(out)));
    look_who_writes_alone();
    look_whose_rows_end();
    nudge_all();
  }
}

}  // namespace csv::service
