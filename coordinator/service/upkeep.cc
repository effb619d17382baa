// What runs in the background: the sweep of keys, our own sign of life, cleaning up.
#include <algorithm>

#include "coordinator/service/service.h"
#include "csvfs/base/events.h"
#include "csvfs/base/heartbeat_slot.h"
#include "csvfs/base/log.h"
#include "iscsi/lun_tasks.h"

namespace csv::service {
namespace {

constexpr std::size_t kOrphansAtOnce = 256;
constexpr std::size_t kReapersAtOnce = 128;
constexpr std::size_t kDyingAtOnce = 256;
constexpr std::uint64_t kDropAtOnce = 1u << 16;
constexpr Duration kPrune = 5s;
/// A request waits so long for a reaping, and is then asked again.
constexpr Duration kReapPatience = 1s;
constexpr Duration kCleanAgain = 5s;
constexpr Duration kPathLook = 250ms;
/// A command of another node that was sent so much later than ours: had it been stopped by what
/// stopped ours, it would not have been answered.
constexpr Duration kLater = 200ms;

}  // namespace

// ---------------------------------------------------------------------------- keys

Task<void> Service::sweep_keys() {
  for (;;) {
    co_await sleep(loop_, around_.timing.key_sweep);
    if (!serving()) co_return;
    auto swept = co_await sweep_once();
    if (swept) continue;
    stop(swept.error().within("looking at the keys on the LUN"));
    co_return;
  }
}

/// PRGENERATION counts up; only a power on sets it back. What the cache held is lost with it (A7):
/// the catalog in memory may believe what the LUN has forgotten.
Expected<void> Service::look_for_memory_loss(const iscsi::KeyList& list) const {
  if (list.generation >= key_generation_ || !tenure_->lun->profile().write_cache) return {};
  return Error{Errc::not_durable, "the target lost power, and what its write cache held"};
}

/// Any key of our cluster without a row is a registration that came after its fence, or somebody
/// who never asked (A1).
Task<Expected<void>> Service::sweep_once() {
  auto sent = loop_.now();
  CSV_CO_TRY(list, co_await fencing_->keys());
  lun_answered_ = loop_.now();
  lun_reached_ = std::max(lun_reached_, sent);
  CSV_CO_CHECK(look_for_memory_loss(list));
  if (list.generation != key_generation_) {
    key_generation_ = list.generation;
    // For the next one who takes over.
    auto note = [generation = list.generation,
                 forgets = tenure_->lun->profile().write_cache](volume::Catalog& catalog) {
      auto memory = catalog.target_memory();
      // An admission may have noted a later one meanwhile.
      memory.key_generation = forgets ? std::max(memory.key_generation, generation) : generation;
      return catalog.set_target_memory(memory);
    };
    CSV_CO_CHECK(co_await writer_.change(std::move(note)));
  }

  // Rows are looked at after the keys were read: a key that is on the LUN has had its row before.
  // Fenced rows are in the hands of the fence that fenced them.
  std::set<Key> strays;
  for (auto key : list.keys) {
    if (key == key_ || admissions_.contains(key)) continue;
    if (parts_of(key).cluster == around_.cluster) {
      strays.insert(key);
    } else if (foreign_seen_.insert(key).second) {
      log::warning("foreign key on the LUN volume={} key={:016x}", around_.volume, raw(key));
      events::report(events::Severity::warning, "lun", around_.volume,
                     fmt::format("key {:016x} of another cluster is on the LUN", raw(key)));
    }
  }
  if (!strays.empty()) {
    log::warning("keys without a row volume={} count={} first={:016x}", around_.volume,
                 strays.size(), raw(*strays.begin()));
    events::report(events::Severity::warning, "lun", around_.volume,
                   "keys that nobody was given are on the LUN, and are removed",
                   fmt::format("the first of {} is {:016x}", strays.size(), raw(*strays.begin())));
    std::vector<Key> victims{strays.begin(), strays.end()};
    CSV_CO_CHECK(co_await fencing_->remove(std::move(victims), Fencing::Left::maybe));
  }
  CSV_CO_TRY(reservation, co_await read_reservation(*tenure_->lun));
  if (reservation.type == iscsi::ReservationType::none) {
    log::warning("the reservation was gone volume={}", around_.volume);
    events::report(events::Severity::warning, "lun", around_.volume,
                   "the reservation was gone, and is made again");
    CSV_CO_CHECK(co_await reserve_again());
  }
  look_who_is_off(list);
  co_return Expected<void>{};
}

/// Nothing of a fenced node is let in any more, so what was not on the LUN when the keys were read,
/// and is nowhere here now, does not come.
void Service::look_who_is_off(const iscsi::KeyList& list) {
  auto asked =
      std::exchange(asked_off_, around_.fenced ? around_.fenced() : decltype(asked_off_){});
  off_.clear();
  for (auto [node, fence] : asked_off_) {
    auto before = asked.find(node);
    // Perhaps only since the keys were read, or again.
    if (before == asked.end() || before->second != fence) continue;
    bool left = false;
    for (auto key : list.keys)
      left = left || (parts_of(key).cluster == around_.cluster && parts_of(key).node == node);
    for (const auto& [id, session] : sessions_) left = left || session->node == node;
    // Let in again it would go on with what was open, and what ran there has started elsewhere.
    left = left || suspended_.find(node) != nullptr || forgetting_.contains(node) ||
           giving_up_.contains(node);
    for (const auto& [key, row] : admissions_) left = left || parts_of(key).node == node;
    if (!left) off_[node] = fence;
  }
}

Task<Expected<void>> Service::reserve_again() {
  co_return co_await iscsi::reserve(*tenure_->lun, key_, fencing_->type());
}

/// Our slot. That we can write it is also how we know that the LUN still takes our writes.
Task<void> Service::beat() {
  std::uint64_t counter = 0;
  for (;;) {
    HeartbeatSlot slot;
    slot.key = key_;
    slot.counter = ++counter;
    slot.written_at = loop_.wall_now();
    slot.quorate = loop_.now() < around_.open_until();
    auto bytes = encode(slot, tenure_->info.id);
    auto buffer = std::make_shared<Buffer>(Buffer::copy_of(bytes));
    auto at = volume::slot_offset(tenure_->info, around_.node, KeyRole::coordinator);
    auto sent = loop_.now();
    slot_sent_ = sent;
    auto written = co_await completion<Expected<void>>([this, &buffer, at](auto done) {
      tenure_->lun->write(at, buffer->span(), {},
                          [buffer, done = std::move(done)](Expected<void> result) mutable {
                            done(std::move(result));
                          });
    });
    if (!serving()) co_return;
    // A full LUN has answered, too: that our key still counts.
    if (!written && !(written.error() == std::errc::no_space_on_device)) {
      stop(written.error().within("writing the coordinator's heartbeat slot"));
      co_return;
    }
    slot_sent_.reset();
    own_write_answered_ = lun_answered_ = loop_.now();
    lun_reached_ = std::max(lun_reached_, sent);
    proven_until_ = sent + around_.timing.lease_term;
    co_await sleep(loop_, around_.timing.key_sweep);
    if (!serving()) co_return;
  }
}

/// Our path is lost when nothing of ours is answered and others' commands are. Where nobody can
/// show that, the whole LUN may stand still, and the command's deadline is waited for: waiting then
/// is better than giving the volume to somebody who has no better path.
Task<void> Service::watch_path() {
  TimePoint silent_since{};
  // Counted, and not read off the clock: this process may have stood still itself, with answers
  // waiting for it.
  int looks = 0;
  for (;;) {
    co_await sleep(loop_, kPathLook);
    if (!serving()) co_return;
    if (!slot_sent_ || !around_.reached_by_others || fencing_->busy()) {
      looks = 0;
      continue;
    }
    auto since = std::max(*slot_sent_, lun_answered_);
    looks = since == silent_since ? looks + 1 : 1;
    silent_since = since;
    if (looks * kPathLook < around_.timing.path_patience) continue;
    if (around_.reached_by_others() < silent_since + kLater) continue;
    stop(Error{Errc::lun_lost,
               fmt::format("the storage path is lost: the LUN has not answered this node for {} "
                           "ms, and answers another one",
                           (loop_.now() - silent_since) / std::chrono::milliseconds{1})});
    co_return;
  }
}

/// The others' signs of life.
Task<void> Service::watch_slots() {
  for (;;) {
    co_await sleep(loop_, around_.timing.key_sweep);
    if (!serving()) co_return;
    std::vector<SlotWatch::Writer> writers;
    std::map<SessionId, NodeId> where;
    for (const auto& [id, session] : sessions_) {
      if (session->ending) continue;
      writers.push_back({id, session->key});
      where[id] = session->node;
    }
    slots_.begin(writers, loop_.now());
    for (const auto& writer : writers) {
      auto task = read_slot(where.at(writer.session));
      auto slot = co_await task;
      if (!serving()) co_return;
      // Torn: the next read sees what the write has become.
      if (!slot && slot.error() == Errc::corrupt) {
        auto again = read_slot(where.at(writer.session));
        slot = co_await again;
        if (!serving()) co_return;
      }
      slots_.saw(writer.session, slot, loop_.now());
    }
  }
}

Task<Expected<HeartbeatSlot>> Service::read_slot(NodeId node) {
  auto buffer = std::make_shared<Buffer>(kHeartbeatSlotSize);
  auto at = volume::slot_offset(tenure_->info, node, KeyRole::mount);
  auto read = co_await completion<Expected<void>>([this, &buffer, at](auto done) {
    tenure_->lun->read(at, buffer->span(),
                       [buffer, done = std::move(done)](Expected<void> result) mutable {
                         done(std::move(result));
                       });
  });
  auto judged = judge(std::move(read));
  if (!judged) co_return judged.error();
  co_return decode_slot(buffer->span(), tenure_->info.id);
}

std::vector<cluster::StorageSign> Service::signs() const {
  std::vector<cluster::StorageSign> out;
  for (const auto& [id, session] : sessions_) {
    auto state = slots_.of(id);
    if (!state || session->ending) continue;
    out.push_back({.node = session->node,
                   .volume = around_.volume,
                   .moved = state->moved,
                   .still = state->still,
                   .connected = session->connected(),
                   .quorate = state->quorate});
  }
  return out;
}

// ---------------------------------------------------------------------------- space

Task<void> Service::maintain() {
  auto prune = loop_.now();
  for (;;) {
    co_await writer_.maintain();
    // As long as there is something to free: whoever deletes much wants the space back.
    for (bool more = true; more && serving();) {
      auto freed = co_await free_space(nullptr, times_freed_);
      if (!freed) log::warning("freeing space: {}", freed.error().message());
      more = freed && *freed;
    }
    if (loop_.now() >= prune) {
      layouts_.prune();
      prune = loop_.now() + kPrune;
    }
    co_await sleep(loop_, around_.timing.maintenance);
    if (!serving()) co_return;
  }
}

Task<Expected<bool>> Service::free_space(SessionRef on_behalf, std::uint64_t freed_before) {
  // A file whose last name went a moment ago is not even being freed yet. Asked before the space is
  // looked at: a reaping that ends meanwhile would be seen by neither.
  bool reaping = reaping_goes_on();
  auto reaped_before = times_reaped_;
  auto body = [](volume::Catalog& catalog) { return catalog.space(); };
  CSV_CO_TRY(space, co_await writer_.read(std::move(body)));
  space_ = space;
  if (space.dying == 0 && !space.freeing) {
    // Nothing is left to free; but what was may have become free after the space was found short.
    // Upkeep has more to do than to wait for a reaping, and looks again soon.
    if (!reaping || on_behalf == nullptr) co_return times_freed_ != freed_before;
    // The reaping may wait for us: for this session's answer, whose end waits for this request, for
    // another one's, of which a request waits for the file that we have locked, or for that file
    // itself. So all is let go of before long. Nobody is told that there is no space meanwhile.
    auto patience_ends = loop_.now() + kReapPatience;
    auto nudge = loop_.after(kReapPatience, [this, alive = std::weak_ptr{alive_}] {
      if (!alive.expired()) reap_due_.notify();
    });
    auto goes_on = [&] { return reaping_goes_on() && times_reaped_ == reaped_before; };
    while (goes_on() && !on_behalf->ending && loop_.now() < patience_ends)
      co_await reap_due_.wait();
    loop_.cancel(nudge);
    if (on_behalf->ending) co_return Error{Errc::session_ended, "the session has ended"};
    if (goes_on())
      co_return Error{Errc::retry,
                      "the volume is full, and space of a deleted file is to be freed"};
    co_return true;
  }
  if (space.freeing) co_await writer_.maintain();
  co_return co_await free_dying();
}

/// One at a time: were the same blocks unmapped twice, the second UNMAP could hit them after they
/// were given out again (A15).
Task<Expected<bool>> Service::free_dying() {
  while (freeing_) co_await freed_.wait();
  struct Turn {
    explicit Turn(Service& of) : service{&of} { service->freeing_ = true; }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() {
      service->freeing_ = false;
      service->freed_.notify();
    }
    Service* service;
  } turn{*this};
  auto look_for = [](volume::Catalog& catalog) { return catalog.dying(kDyingAtOnce); };
  CSV_CO_TRY(runs, co_await writer_.read(std::move(look_for)));
  if (runs.empty()) co_return true;
  std::vector<Content::Extent> extents;
  for (auto run : runs)
    extents.push_back({run.lun_block * volume::kBlockSize, run.count * volume::kBlockSize});
  // An UNMAP that was refused has been answered, too. One of unknown outcome ends the Lun, and us.
  auto unmapped = judge(co_await content_.unmap(std::move(extents)));
  if (!unmapped && (stopped_ || forgotten_)) co_return unmapped.error();
  if (!unmapped) log::warning("unmap refused: {}", unmapped.error().message());
  auto make_free = [runs](volume::Catalog& catalog) { return catalog.make_free(runs); };
  CSV_CO_CHECK(co_await writer_.change(std::move(make_free)));
  ++times_freed_;
  co_return true;
}

// ---------------------------------------------------------------------------- orphans

/// Those that a former coordinator left.
Task<void> Service::find_orphans() {
  InodeId after{};
  for (;;) {
    auto look_for = [after](volume::Catalog& catalog) {
      return catalog.orphans(after, kOrphansAtOnce);
    };
    auto found = co_await writer_.read(std::move(look_for));
    if (!found) {
      log::warning("looking for orphans: {}", found.error().message());
      co_return;
    }
    for (auto inode : *found) orphaned(inode);
    if (found->size() < kOrphansAtOnce) co_return;
    after = found->back();
  }
}

/// A session that has not come back since the takeover may have any file open.
bool Service::openers_known() const {
  return std::all_of(sessions_.begin(), sessions_.end(),
                     [](const auto& each) { return each.second->settled; });
}

/// Without a name and closed for the last time: nobody gets hold of it any more, though it may be a
/// moment until it is reaped.
bool Service::is_removed(InodeId inode) const {
  if (reaping_.contains(inode)) return true;
  return orphans_.contains(inode) && !openers_.contains(inode) && openers_known();
}

/// An orphan is being reaped, or is about to be; its end notifies reap_due_.
bool Service::reaping_goes_on() const { return !reaping_.empty() || !reapable(1).empty(); }

/// Orphans that nobody has open and that are not being reaped yet.
std::vector<InodeId> Service::reapable(std::size_t most) const {
  std::vector<InodeId> found;
  if (orphans_.empty() || !openers_known()) return found;
  for (auto inode : orphans_) {
    if (found.size() >= most) break;
    if (!openers_.contains(inode) && !reaping_.contains(inode)) found.push_back(inode);
  }
  return found;
}

/// Who removes a file mostly removes more of them, one after the other. What is handed in at once
/// becomes one transaction, and nobody is answered by it: so a moment's orphans go together.
Task<void> Service::reap_orphans() {
  for (;;) {
    auto room = [this] { return kReapersAtOnce - reaping_.size(); };
    while (room() == 0 || reapable(1).empty()) co_await reap_due_.wait();
    if (reapable(room()).size() < room()) co_await sleep(loop_, around_.timing.gather_removed);
    if (!serving()) co_return;
    for (auto inode : reapable(room())) {
      reaping_.insert(inode);
      tasks_.spawn(reap(inode));
    }
  }
}

Task<void> Service::reap(InodeId inode) {
  {
    // Nobody has it open, but a mount may keep layouts of what it had open.
    auto alone = co_await quiet(nullptr, inode,
                                {.layouts = kWholeFile, .reads_too = true, .pages = kWholeFile});
    if (alone) {
      auto body = [inode](volume::Catalog& catalog) { return catalog.reap(inode); };
      auto reaped = co_await writer_.change(std::move(body));
      if (!reaped && !is_stale(reaped.error()))
        log::warning("orphan not freed inode={} reason=\"{}\"", raw(inode),
                     reaped.error().message());
    }
  }
  // Also where it failed: it stays an orphan in the catalog, for the next takeover.
  orphans_.erase(inode);
  reaping_.erase(inode);
  ++times_reaped_;
  reap_due_.notify();
}

// ---------------------------------------------------------------------------- ended sessions

Task<void> Service::clean_up_ended() {
  for (;;) {
    auto all = ended_;
    bool failed = false;
    for (auto session : all) {
      auto cleaned = co_await clean_up(session);
      if (cleaned) {
        ended_.erase(session);
        continue;
      }
      // Not forgotten: whoever finds blocks of its grants takes them from those he knows of.
      failed = true;
      log::warning("session not cleaned up session={} reason=\"{}\"", raw(session),
                   cleaned.error().message());
    }
    if (failed) co_await sleep(loop_, kCleanAgain);
    if (!serving()) co_return;
    if (ended_.empty()) co_await clean_due_.wait();
  }
}

/// Its keys are off the LUN, so nothing can be written to what it was granted.
Task<Expected<void>> Service::clean_up(SessionId session) {
  for (;;) {
    auto drop = [session](volume::Catalog& catalog) {
      return catalog.drop_grants(session, InodeId{}, kDropAtOnce);
    };
    CSV_CO_TRY(dropped, co_await writer_.change(std::move(drop)));
    if (dropped < kDropAtOnce) break;
  }
  // Until then its row tells a successor that somebody may answer from what we told him.
  if (auto lapsing = lapsing_.find(session); lapsing != lapsing_.end()) {
    co_await sleep(loop_, lapsing->second->vouched_until - loop_.now());
    watches_.drop(session);
    lapsing_.erase(session);
  }
  auto forget = [session](volume::Catalog& catalog) { return catalog.forget_session(session); };
  co_return co_await writer_.change(std::move(forget));
}

}  // namespace csv::service
