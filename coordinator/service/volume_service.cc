#include "coordinator/service/volume_service.h"

#include <cerrno>

#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/named_inodes.h"
#include "coordinator/service/service.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"
#include "iscsi/scsi.h"

namespace csv::service {
namespace {

// What one session may have under way. A mount keeps far below; one that does not is told to come
// back later.
constexpr std::size_t kMaxRequests = 1024;
constexpr std::size_t kMaxRequestBytes = 64u << 20;
/// Messages kept for a link whose session is not known yet; a mount sends none.
constexpr std::size_t kMaxEarly = 64;
constexpr std::size_t kMaxArrivals = 256;
/// For a mount to read what it was told last.
constexpr Duration kGoodbyeTime = 2s;

bool tells_times(const wire::Request& request) {
  return request.has_wrote() || request.has_release() || request.has_layout_return() ||
         request.get_attr().wrote() || request.get_attr().accessed();
}

}  // namespace

Task<Expected<std::unique_ptr<VolumeService>>> VolumeService::take_over(Surroundings around) {
  auto taken = co_await take_over_volume(around);
  if (!taken) co_return taken.error();
  co_return std::unique_ptr<VolumeService>{
      std::make_unique<Service>(std::move(around), std::move(*taken))};
}

Service::Service(Surroundings around, Taken taken)
    : around_{std::move(around)},
      shares_{MemoryShares::of(around_.memory)},
      loop_{*around_.loop},
      tenure_{std::move(taken.tenure)},
      fencing_{std::move(taken.fencing)},
      key_{taken.key},
      epoch_{taken.epoch},
      verifier_{taken.verifier},
      since_{loop_.now()},
      names_{shares_.names},
      writer_{tenure_, [this](const auto& what) { changed(what); },
              [this](Error why) { stop(why.within("writing the catalog")); }},
      content_{loop_, *tenure_->lun},
      locks_{loop_},
      layouts_{loop_},
      sessions_changed_{loop_},
      reap_due_{loop_},
      clean_due_{loop_},
      freed_{loop_},
      accesses_written_{loop_},
      // Above everything an earlier coordinator may have told a mount.
      recall_sequence_{raw(epoch_) << 32},
      next_notice_{(raw(epoch_) << 32) + 1},
      proven_until_{taken.proven_at + around_.timing.lease_term},
      lun_answered_{since_},
      lun_reached_{taken.proven_at},
      own_write_answered_{since_},
      key_generation_{taken.key_generation} {
  for (const auto& row : taken.sessions) {
    if (row.ended) {
      ended_.insert(row.id);
    } else {
      sessions_[row.id] = std::make_shared<Session>(loop_, row.id, row.node, row.incarnation);
    }
  }
  for (const auto& row : taken.admissions) {
    admissions_[row.key] = row;
    auto& session = *sessions_.at(row.session);
    (row.state == volume::AdmissionState::admitted ? session.key : session.registering) = row.key;
  }
  for (auto& row : taken.suspended) suspended_.add(std::move(row));
  await_former_watchers(taken);
  tenure_->lun->on_lost([this, alive = std::weak_ptr{alive_}](Error why) {
    if (!alive.expired()) stop(why.within("the coordinator's way to the LUN"));
  });
  tasks_.spawn(sweep_keys());
  tasks_.spawn(beat());
  tasks_.spawn(watch_path());
  tasks_.spawn(watch_slots());
  tasks_.spawn(watch());
  tasks_.spawn(maintain());
  tasks_.spawn(keep_accesses());
  tasks_.spawn(find_orphans());
  tasks_.spawn(reap_orphans());
  tasks_.spawn(clean_up_ended());
  tasks_.spawn(copy_daily());
}

Service::~Service() {
  give_up_copy();
  tasks_.cancel_all();
  tenure_->lun->close();
}

void Service::on_stopped(Function<void(Error)> handler) {
  told_of_stop_ = std::move(handler);
  if (stop_reason_) stop(*stop_reason_);
}

/// Nobody is answered any more, and nothing more is written: what is under way finds the LUN
/// closed. The tasks stay where they wait until the owner destroys us.
void Service::stop(Error why) {
  if (!stopped_) {
    stopped_ = true;
    stop_reason_ = why;
    log::error("service stopped volume={} epoch={} key={:016x} reason=\"{}\"", around_.volume,
               raw(epoch_), raw(key_), why.message());
    events::report(events::Severity::error, "coordinator", around_.volume,
                   "stopped coordinating it", why.message());
    for (auto& [id, session] : sessions_)
      if (session->link) disconnected(LinkRef{session->link});
    give_up_copy();
    counting_loss_ = why == Errc::not_durable && !loss_noted_ && !closing_;
    if (counting_loss_)
      tasks_.spawn(count_loss_and_close(why));
    else
      tenure_->lun->close();
  }
  if (counting_loss_ || !told_of_stop_ || closing_) return;
  // Posted: we may be deep inside what the owner is about to destroy.
  loop_.post([handler = std::exchange(told_of_stop_, {}), why]() mutable { handler(why); });
}

Expected<void> Service::judge(Expected<void> io) {
  if (io) {
    lun_answered_ = loop_.now();
    // What it was to make durable may be lost: nothing is built on it any more.
    if (forgotten_) return Error{Errc::retry, "the target has lost what its write cache held"};
    return io;
  }
  auto why = io.error();
  // The thin LUN's space, not the volume's: no error of whoever asked. It asks again, and meanwhile
  // somebody may have deleted something, or given the LUN more (docs/mount.md).
  if (why == std::errc::no_space_on_device) return Error{Errc::retry, why.message()};
  if (iscsi::is_loss(why)) stop(why.within("the coordinator's own I/O"));
  if (why == Errc::not_durable) forgotten(why);
  return io;
}

/// The target has lost content that it had answered, of anybody's. It tells that once, so whoever
/// flushes next would be told that all is well: the loss is counted, and we end, so that every
/// mount hears of it. Whose command said so gets its error first: repeated at the successor it
/// could bring about the same again, without an end.
void Service::forgotten(Error why) {
  if (std::exchange(forgotten_, true) || stopped_) return;
  // They may make blocks part of a file whose content is lost. Their mounts ask again.
  writer_.drop_waiting();
  log::error("the target lost what its write cache held volume={} reason=\"{}\"", around_.volume,
             why.message());
  tasks_.spawn(count_loss(std::move(why)));
}

Task<void> Service::count_loss(Error why) {
  // Without FUA the log itself may have been in the cache: see stop().
  if (catalog_is_durable()) {
    auto note = [](volume::Catalog& catalog) { return note_loss(catalog); };
    loss_noted_ = bool(co_await writer_.change(std::move(note)));
  } else {
    co_await sleep(loop_, Duration{});  // others whose flush it was go on in this turn
  }
  if (!stopped_) stop(std::move(why));
}

/// Its transactions do not depend on flushes.
bool Service::catalog_is_durable() const {
  const auto& profile = tenure_->lun->profile();
  return profile.fua || !profile.write_cache;
}

/// What the catalog in memory believes may not be on the LUN: opened again, it is what is there.
Task<void> Service::count_loss_and_close(Error why) {
  Function<Expected<void>(Tenure&)> work = [cache = shares_.catalog_pages](Tenure& on) {
    return note_loss_afresh(on, cache);
  };
  auto noted = co_await on_writer<Expected<void>>(tenure_, std::move(work));
  if (!noted)
    log::warning("a loss was not counted volume={} why=\"{}\"", around_.volume,
                 noted.error().message());
  counting_loss_ = false;
  tenure_->lun->close();
  stop(std::move(why));
}

Task<void> Service::close() {
  closing_ = true;
  for (auto& [id, session] : sessions_)
    if (session->link) disconnected(LinkRef{session->link});
  give_up_copy();
  // Requests end where they are, unanswered: their mounts repeat them at the successor. What they
  // had sent to the LUN, or handed to the writer thread, is waited for.
  tasks_.cancel_all();
  if (!stopped_) {
    co_await content_.idle();
    co_await writer_.idle();
  }
  if (!stopped_) (void)co_await writer_.checkpoint();
  // Whoever had asked for the flush that said so may be gone with the tasks.
  bool lost =
      forgotten_ || content_.forgotten() || (stop_reason_ && *stop_reason_ == Errc::not_durable);
  Function<bool(Tenure&)> shut = [in_order = !stopped_, lost = lost && !loss_noted_,
                                  cache = shares_.catalog_pages](Tenure& on) {
    if (lost && !note_loss_afresh(on, cache)) return false;
    on.copy.reset();  // it reads the store
    // While the mounts wait the successor would read a log that says nothing new.
    bool emptied = in_order && (lost || on.catalog->empty_log());
    on.catalog.reset();
    on.store.reset();
    if (!emptied) return false;
    // Nobody is answered any more, and the successor need not wait for that. If this fails it does.
    auto info = volume::read_superblocks(on.blocking, false);
    if (!info) return false;
    info->closed_key = std::exchange(info->coordinator_key, Key{});
    return bool(volume::write_superblocks(on.blocking, *info));
  };
  (void)co_await on_writer<bool>(tenure_, std::move(shut));
  tenure_->lun->close();
  log::info("service closed volume={} epoch={}", around_.volume, raw(epoch_));
}

VolumeService::Status Service::status() const {
  Status status;
  status.epoch = epoch_;
  status.key = key_;
  status.since = since_;
  status.data_bytes = tenure_->info.data_size;
  status.total_blocks = space_.total;
  status.free_blocks = space_.free;
  status.inodes = space_.inodes;
  auto statistics = writer_.statistics();
  status.transactions = statistics.transactions;
  status.changes = statistics.changes;
  status.fences = fencing_->count();
  status.stale_commits = stale_commits_;
  status.recalls = recalls_;
  status.unwatches = unwatches_;
  status.lun = tenure_->lun->counters();
  status.content_read_bytes = content_.read_bytes();
  status.content_write_bytes = content_.write_bytes();
  for (const auto& [id, session] : sessions_) {
    SessionStatus one;
    one.session = id;
    one.node = session->node;
    one.connected = session->connected();
    one.admitted = session->key != Key{};
    one.key = session->key;
    one.open_files = session->open.size();
    one.layouts = layouts_.count(id);
    one.watched = watches_.count(id);
    auto locks = file_locks_.counts(id);
    one.locks = locks.locks;
    one.lock_waits = locks.waits;
    one.requests = session->total_requests;
    one.redirected_read_bytes = session->read_bytes;
    one.redirected_write_bytes = session->write_bytes;
    status.sessions.push_back(one);
  }
  return status;
}

void Service::accept(std::unique_ptr<protocol::Connection> connection, protocol::Message hello) {
  if (!serving() || arrivals_ >= kMaxArrivals || !hello.frame.has_hello()) return;
  // Without a lease we say nothing; the mount tries again, here or elsewhere (A14).
  if (!gate_open()) return;
  auto link = std::make_shared<Link>();
  link->connection = std::move(connection);
  link->epoch_known = Epoch{hello.frame.epoch()};
  std::weak_ptr<Link> weak = link;
  auto greeting = greet(link, std::move(*hello.frame.mutable_hello()));
  link->connection->start(
      [this, alive = std::weak_ptr{alive_}, weak](protocol::Message message) {
        auto still = weak.lock();
        if (still && !alive.expired()) received(still, std::move(message));
      },
      [this, alive = std::weak_ptr{alive_}, weak](const Error&) {
        auto still = weak.lock();
        if (still && !alive.expired()) disconnected(still);
      });
  tasks_.spawn(std::move(greeting));
}

void Service::received(const LinkRef& link, protocol::Message message) {
  if (!serving()) return;
  if (!gate_open()) return disconnected(link);
  auto session = link->session.lock();
  if (!session) {
    if (link->early.size() >= kMaxEarly) return disconnected(link);
    link->early.push_back(std::move(message));
    return;
  }
  const auto& frame = message.frame;
  switch (frame.body_case()) {
    case wire::Frame::kRequest: return received_request(session, std::move(message));
    case wire::Frame::kResumeDone: return resume_done(session);
    case wire::Frame::kNoticeReply: return noticed(session, frame.id(), frame.notice_reply());
    default:
      log::warning("unexpected message session={} node={} kind={}", raw(session->id),
                   raw(session->node), static_cast<int>(frame.body_case()));
      return disconnected(link);
  }
}

void Service::received_request(const SessionRef& session, protocol::Message message) {
  auto& frame = message.frame;
  auto& request = *frame.mutable_request();
  auto refuse_request = [&](Errc code, std::string why) {
    wire::Reply reply;
    *reply.mutable_failure() = protocol::encode(Error{code, std::move(why)});
    send_reply(session->link, frame.id(), std::move(reply));
  };
  session->fresh = false;
  // Meant for another coordinator's view of the volume: what it knows of layouts may be void here.
  if (frame.epoch() != raw(epoch_) || frame.coordinator_key() != raw(key_))
    return refuse_request(Errc::stale_epoch, "the request was meant for another epoch");
  // A repeat of one in flight joins it.
  if (auto found = session->requests.find(frame.id()); found != session->requests.end()) {
    found->second.said_on = session->link;
    return;
  }
  if (session->ending) return refuse_request(Errc::session_ended, "the session has ended");
  if (request.has_lost_under() && request.lost_under() == verifier_) {
    // Answered by a successor: had this one not counted it, it must be said again.
    content_.forget();
    return forgotten(Error{Errc::not_durable,
                           fmt::format("the target has told node {} that it lost what its write "
                                       "cache held",
                                       raw(session->node))});
  }
  // Content on its way in, or to be sent back.
  auto bytes = message.bulk.size() + (request.has_read() ? request.read().length() : 0);
  // Locks have bounds of their own. They are never told to come back later, which would change
  // their order, and those that wait are in nobody's way.
  // Nor are those that tell of times, or others would be asked for them meanwhile.
  if (!is_about_locks(request) && !tells_times(request) &&
      (session->requests.size() - session->lock_waits >= kMaxRequests ||
       (session->request_bytes > 0 && session->request_bytes + bytes > kMaxRequestBytes)))
    return refuse_request(Errc::retry, "too many requests of the session are under way");
  if (request.sequence() == 0 && protocol::must_be_once(request))
    return refuse_request(Errc::refused, "a request that changes something needs a sequence");
  if (request.sequence() > 0) {
    if (request.slot() >= protocol::kSlots)
      return refuse_request(Errc::refused, "there is no such slot");
    auto& slot = session->slots[request.slot()];
    if (request.sequence() == slot.sequence) {
      wire::Reply reply;
      if (!reply.ParseFromString(slot.reply))
        return refuse_request(Errc::corrupt, "the slot's stored reply cannot be read");
      // The former coordinator knew that this opened the file; we may not.
      if (request.has_open() || (request.has_make() && request.make().open()))
        opened(session, InodeId{reply.attr().inode()},
               request.has_make() || request.open().writes());
      if (session->answering_again.insert_or_assign(request.slot(), session->link).second)
        tasks_.spawn(answer_again(session, std::move(request), frame.id(), std::move(reply)));
      return;
    }
    if (request.sequence() < slot.sequence)
      return refuse_request(Errc::refused, "the slot is past this sequence");
    if (slot.busy) return refuse_request(Errc::refused, "the slot is in use");
    slot.busy = true;
  }
  for (auto inode : request.gave_up()) watches_.drop(InodeId{inode}, session->id);
  auto call = std::make_shared<Call>();
  call->session = session;
  call->session_id = session->id;
  call->id = frame.id();
  call->request = std::move(request);
  call->content = std::make_shared<Buffer>(std::move(message.bulk));
  session->requests.emplace(call->id, Session::UnderWay{bytes, session->link});
  session->request_bytes += bytes;
  ++session->total_requests;
  if (around_.requested) around_.requested();
  tasks_.spawn(handle(std::move(call)));
}

Task<void> Service::handle(CallRef call) {
  auto outcome = co_await dispatch(call);
  if (!co_await uncontradicted(call, outcome))
    outcome = Error{Errc::session_ended, "the session has ended"};
  answer(call, std::move(outcome));
}

/// What a former coordinator has answered, or was about to.
Task<void> Service::answer_again(SessionRef session, wire::Request request, std::uint64_t id,
                                 wire::Reply reply) {
  while (former_watchers()) co_await settled_.wait();
  auto waiting = session->answering_again.extract(request.slot());
  send_reply(waiting.mapped(), id, std::move(reply));
}

Task<Service::Outcome> Service::dispatch(CallRef call) {
  switch (call->request.op_case()) {
    case wire::Request::kAdmitBegin: return admit_begin(std::move(call));
    case wire::Request::kAdmitDone: return admit_done(std::move(call));
    case wire::Request::kGoodbye: return goodbye(std::move(call));
    case wire::Request::kLookup: return lookup(std::move(call));
    case wire::Request::kGetAttr: return get_attr(std::move(call));
    case wire::Request::kSetAttr: return set_attr(std::move(call));
    case wire::Request::kReadLink: return read_link(std::move(call));
    case wire::Request::kMake: return make(std::move(call));
    case wire::Request::kLink: return this->link(std::move(call));
    case wire::Request::kUnlink: return unlink(std::move(call));
    case wire::Request::kRename: return rename(std::move(call));
    case wire::Request::kOpen: return open(std::move(call));
    case wire::Request::kRelease: return release(std::move(call));
    case wire::Request::kReadDir: return read_dir(std::move(call));
    case wire::Request::kGetXattr: return get_xattr(std::move(call));
    case wire::Request::kSetXattr: return set_xattr(std::move(call));
    case wire::Request::kListXattr: return list_xattr(std::move(call));
    case wire::Request::kRemoveXattr: return remove_xattr(std::move(call));
    case wire::Request::kStatFs: return stat_fs(std::move(call));
    case wire::Request::kLayout: return layout(std::move(call));
    case wire::Request::kLayoutReturn: return layout_return(std::move(call));
    case wire::Request::kCommit: return commit(std::move(call));
    case wire::Request::kRead: return read(std::move(call));
    case wire::Request::kWrite: return write(std::move(call));
    case wire::Request::kWrote: return wrote(std::move(call));
    case wire::Request::kAllocate: return allocate(std::move(call));
    case wire::Request::kClone: return clone(std::move(call));
    case wire::Request::kSeek: return seek(std::move(call));
    case wire::Request::kLock: return lock(std::move(call));
    case wire::Request::kLockTaken:
    case wire::Request::kLockCancel: return lock_decided(std::move(call));
    case wire::Request::kUnlock: return unlock(std::move(call));
    case wire::Request::kTestLock: return test_lock(std::move(call));
    case wire::Request::kHeldLocks: return held_locks(std::move(call));
    case wire::Request::kResume: return resume(std::move(call));
    case wire::Request::OP_NOT_SET: break;
  }
  return unknown(std::move(call));
}

Task<Service::Outcome> Service::unknown(CallRef) {
  co_return Error{Errc::refused, "a request that asks for nothing"};
}

/// To be asked before each transaction of a request, without a wait in between.
Expected<void> Service::may_change(const Session& on_behalf) const {
  // What is handed in after the session's end was decided is dropped; what came before is ahead of
  // the end's own transaction.
  if (on_behalf.ending) return Error{Errc::session_ended, "the session has ended"};
  // What it rests on may be lost, and what was handed in before has been dropped (forgotten).
  if (forgotten_) return Error{Errc::retry, "the target has lost what its write cache held"};
  return {};
}

Task<Service::Outcome> Service::settle_erased(
    CallRef call, Function<Expected<wire::Reply>(volume::Catalog&)> body) {
  CSV_CO_CHECK(may_change(*call->session));
  auto stored = std::make_shared<std::string>();
  auto whole = [call, stored,
                body = std::move(body)](volume::Catalog& catalog) mutable -> Expected<wire::Reply> {
    auto reply = CSV_TRY(body(catalog));
    const auto& request = call->request;
    if (request.sequence() > 0) {
      *stored = reply.SerializeAsString();
      CSV_TRY(catalog.put_slot(call->session_id, request.slot(), {request.sequence(), *stored}));
    }
    return reply;
  };
  CSV_CO_TRY(reply, co_await writer_.change(std::move(whole)));
  // The target may have lost it before the flush that made it durable: we are about to end, and the
  // successor finds out.
  while (forgotten_ && !catalog_is_durable()) co_await sessions_changed_.wait();
  call->changed = group_unsettled_;  // in the very turn: see changed()
  if (call->request.sequence() > 0) call->stored = std::move(*stored);
  Answer answer;
  answer.reply = std::move(reply);
  co_return std::move(answer);
}

void Service::answer(const CallRef& call, Outcome outcome) {
  auto& session = *call->session;
  auto found = session.requests.find(call->id);
  session.request_bytes -= found->second.bytes;
  auto said_on = std::move(found->second.said_on);
  session.requests.erase(found);
  session.leaving.erase(call->id);
  if (call->request.sequence() > 0) {
    auto& slot = session.slots[call->request.slot()];
    slot.busy = false;
    if (call->stored) {
      slot.sequence = call->request.sequence();
      slot.reply = std::move(*call->stored);
    }
  }
  if (session.ending) sessions_changed_.notify();
  // It will be said again, and finds the stored reply or is done as if for the first time. Nobody
  // has been told of this one.
  if (said_on != session.link) return;
  wire::Reply reply;
  Buffer bulk;
  if (outcome) {
    reply = std::move(outcome->reply);
    bulk = std::move(outcome->bulk);
  } else {
    *reply.mutable_failure() = protocol::encode(outcome.error());
  }
  vouch(*call, outcome, reply);
  send_reply(said_on, call->id, std::move(reply), std::move(bulk));
}

/// Nothing is sent on a link that has ended.
void Service::send_reply(const LinkRef& link, std::uint64_t id, wire::Reply reply, Buffer bulk) {
  wire::Frame frame;
  frame.set_id(id);
  *frame.mutable_reply() = std::move(reply);
  send(link, std::move(frame), std::move(bulk));
}

void Service::send(const LinkRef& link, wire::Frame frame, Buffer bulk) {
  if (!serving() || !link->connection) return;
  // What was found out while the gate was open may be void once it is open again (another
  // coordinator may have been there): so it is not kept, and the mount asks again (A14).
  if (!gate_open()) return disconnected(LinkRef{link});
  frame.set_epoch(raw(epoch_));
  frame.set_coordinator_key(raw(key_));
  link->connection->send({std::move(frame), std::move(bulk)});
}

/// Ends the link, whoever ended it. Its session, if any, goes on without.
void Service::disconnected(const LinkRef& link) {
  auto keep = link;
  if (auto connection = std::exchange(keep->connection, nullptr)) {
    connection->close();
    // Later: we may be inside one of its handlers, which are its own.
    loop_.post([connection = std::move(connection)] {});
  }
  auto session = keep->session.lock();
  keep->session.reset();
  // Its Hello may be waiting for another one.
  if (!session || session->link != keep) return sessions_changed_.notify();
  session->link = nullptr;
  session->resumed = false;
  session->disconnected_at = loop_.now();
  log::info("session disconnected session={} node={}", raw(session->id), raw(session->node));
  if (!session->ending && !closing_ && !stopped_)
    events::report(events::Severity::warning, "session", around_.volume,
                   fmt::format("the mount of node {} lost its connection", raw(session->node)));
  nudge_all();
}

void Service::close_soon(LinkRef link) {
  link->session.reset();
  loop_.after(kGoodbyeTime, [link = std::move(link)] { link->connection.reset(); });
}

bool is_stale(const Error& error) {
  return error == std::error_code{ESTALE, std::generic_category()};
}

void fill(wire::Attr& out, const volume::Attr& attr) {
  constexpr std::uint64_t kSectorsPerBlock = volume::kBlockSize / 512;
  out.set_inode(raw(attr.inode));
  out.set_generation(0);  // inode numbers are never used again
  out.set_mode(attr.mode);
  out.set_uid(attr.uid);
  out.set_gid(attr.gid);
  out.set_nlink(attr.nlink);
  out.set_rdev(attr.rdev);
  out.set_size(attr.size);
  out.set_blocks(attr.blocks * kSectorsPerBlock);
  out.set_atime(attr.atime);
  out.set_mtime(attr.mtime);
  out.set_ctime(attr.ctime);
  out.set_btime(attr.btime);
  out.set_truncation(attr.truncation);
  out.set_plain(!attr.has_xattrs);
}

}  // namespace csv::service
