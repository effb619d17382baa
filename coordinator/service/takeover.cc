#include "coordinator/service/takeover.h"

#include <algorithm>
#include <map>
#include <set>

#include "coordinator/service/memory.h"
#include "coordinator/volume/catalog_memory.h"
#include "coordinator/volume/grow.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"
#include "iscsi/lun_tasks.h"

namespace csv::service {
namespace {

using iscsi::ReservationType;

std::string_view name_of(ReservationType type) {
  return type == ReservationType::exclusive_access_all_registrants
             ? "Exclusive Access, All Registrants"
             : "Exclusive Access, Registrants Only";
}

Key fresh_key(const Surroundings& around) {
  constexpr std::uint64_t kNumbers = (1ull << 38) - 1;
  return make_key(
      {around.cluster, around.node, KeyRole::coordinator, 1 + around.random->below(kNumbers)});
}

Task<Expected<std::unique_ptr<iscsi::Lun>>> open_lun(const Surroundings& around) {
  iscsi::LunOptions options;
  // Fixed for (volume, node, role), so that a new login ends what an earlier life of ours left, and
  // nobody else's.
  auto name = crc32c(std::as_bytes(std::span{around.volume}));
  options.isid_seed = (std::uint64_t{name} << 16) | (std::uint64_t{raw(around.node)} << 2) |
                      raw(KeyRole::coordinator);
  options.role = "coordinator";
  auto opened = co_await completion<Expected<std::unique_ptr<iscsi::Lun>>>(
      [&around, &options](auto done) { around.open_lun(options, std::move(done)); });
  if (opened && (*opened)->profile().write_protected)
    co_return Error{Errc::refused, "the LUN of volume " + around.volume + " is write-protected"};
  co_return std::move(opened);
}

Expected<void> check_identity(const Surroundings& around, const volume::VolumeInfo& info,
                              const iscsi::Lun& lun) {
  if (info.label != around.volume)
    return Error{Errc::refused,
                 fmt::format("the LUN holds volume '{}', not '{}'", info.label, around.volume)};
  if (info.cluster != around.cluster)
    return Error{Errc::refused, fmt::format("volume {} belongs to cluster {}, not to {}",
                                            around.volume, info.cluster, around.cluster)};
  auto identity = volume::lun_identity(lun.profile());
  if (info.lun_identity != identity)
    return Error{Errc::refused,
                 fmt::format("volume {} was formatted on LUN '{}', but this one is '{}': a copy "
                             "that must not be used beside its original",
                             around.volume, info.lun_identity, identity)};
  if (lun.geometry().size_bytes() < info.lun_size)
    return Error{Errc::refused,
                 fmt::format("volume {} needs {} bytes, its LUN has shrunk to {}", around.volume,
                             info.lun_size, lun.geometry().size_bytes())};
  return {};
}

Expected<void> check_tag(const Surroundings& around, const volume::VolumeInfo& info) {
  if (info.tag > around.tag)
    return Error{Errc::superseded,
                 fmt::format("volume {} is owned by a newer configuration of the cluster "
                             "({}.{}.{}, ours is {}.{}.{})",
                             around.volume, info.tag.forced, info.tag.epoch, info.tag.sequence,
                             around.tag.forced, around.tag.epoch, around.tag.sequence)};
  return {};
}

Error foreign(const Surroundings& around, Key key) {
  return Error{Errc::refused,
               fmt::format("the LUN of volume {} is in use by somebody else: key {:016x} is not of "
                           "cluster {}. If that is a leftover: csvctl reservation clear",
                           around.volume, raw(key), around.cluster)};
}

/// That only registered nexuses have access, and under which type. Ours if there was none.
Task<Expected<ReservationType>> keep_others_out(const Surroundings& around, iscsi::Lun& lun,
                                                Key mine) {
  CSV_CO_TRY(found, co_await ensure_reservation(lun, mine));
  if (found.type == ReservationType::exclusive_access_registrants_only &&
      parts_of(found.holder).cluster != around.cluster)
    co_return foreign(around, found.holder);
  if (found.type != ReservationType::exclusive_access_registrants_only &&
      found.type != ReservationType::exclusive_access_all_registrants)
    co_return Error{Errc::refused, fmt::format("a reservation of type {} stands on the LUN of "
                                               "volume {}, which is not one of ours",
                                               static_cast<int>(found.type), around.volume)};
  co_return found.type;
}

Task<Expected<volume::VolumeInfo>> read_superblocks(TenureRef tenure, bool repair) {
  Function<Expected<volume::VolumeInfo>(Tenure&)> work =
      [repair](Tenure& on) -> Expected<volume::VolumeInfo> {
    auto info = CSV_TRY(volume::read_superblocks(on.blocking, repair));
    // Before they are rewritten, and whoever interrupted the repair is fenced.
    CSV_TRY(volume::check_repair_ended(on.blocking, info));
    return info;
  };
  co_return co_await on_writer<Expected<volume::VolumeInfo>>(std::move(tenure), std::move(work));
}

/// Looks before anything is changed: may we have this volume at all?
Task<Expected<void>> look(const Surroundings& around, TenureRef tenure, Key mine) {
  CSV_CO_TRY(info, co_await read_superblocks(tenure, false));
  CSV_CO_CHECK(check_identity(around, info, *tenure->lun));
  // Before the first PREEMPT: the side that is not the newest must not fight (A5).
  CSV_CO_CHECK(check_tag(around, info));
  CSV_CO_TRY(list, co_await read_keys(*tenure->lun));
  for (auto key : list.keys)
    if (key != mine && parts_of(key).cluster != around.cluster) co_return foreign(around, key);
  co_return Expected<void>{};
}

/// A node that was left behind meanwhile must not fence those who go on, nor one that waited for
/// its way to the LUN whom the cluster has given the volume to since.
Expected<void> may_go_on(const Surroundings& around) {
  if (around.wanted && !around.wanted())
    return Error{Errc::retry, "the cluster has given the volume to another node"};
  if (around.loop->now() < around.open_until()) return {};
  return Error{Errc::retry, "this node has no membership lease any more"};
}

std::set<Key> other_coordinators(const Surroundings& around, Key mine, const iscsi::KeyList& list) {
  std::set<Key> out;
  for (auto key : list.keys) {
    auto parts = parts_of(key);
    if (key != mine && parts.cluster == around.cluster && parts.role == KeyRole::coordinator)
      out.insert(key);
  }
  return out;
}

/// From its end on no former coordinator can write, whatever it had queued (A2, A13). `before`: the
/// keys before ours was registered.
Task<Expected<void>> fence_coordinators(const Surroundings& around, Taken& taken,
                                        iscsi::KeyList before) {
  CSV_CO_TRY(list, co_await taken.fencing->keys());
  auto former = other_coordinators(around, taken.key, list);
  auto seen = other_coordinators(around, taken.key, before);
  seen.insert(former.begin(), former.end());
  auto left = Fencing::Left::maybe;
  // Also where none is listed: a takeover that died in the middle of a fence would leave just that.
  // Who has closed the volume in good order has left no key in the superblocks.
  CSV_CO_TRY(info, co_await read_superblocks(taken.tenure, false));
  if (info.coordinator_key != Key{} && info.coordinator_key != taken.key)
    former.insert(info.coordinator_key);
  // Any other one never came to write its key there: it was taking over, as we are, and may have
  // taken keys away without having seen the end of what was sent under them. Of those nothing tells
  // any more. It may have been an attempt of our own, whose key ours has replaced on its nexus.
  for (auto key : seen)
    if (key != info.coordinator_key && key != info.closed_key) left = Fencing::Left::others;
  std::vector<Key> victims{former.begin(), former.end()};
  CSV_CO_CHECK(may_go_on(around));  // the answer may have been long in coming
  co_return co_await taken.fencing->remove(std::move(victims), left);
}

/// A fenced coordinator changes nothing any more, but until it notices it may still answer from
/// memory what we are about to change: for a term after its last proof that its key was in force
/// (Service::gate_open), or until its node's membership lease has ended, which the cluster may know
/// to be sooner. Not if it was closed in good order, and not if its process is gone: this node's
/// former one, or one of which the cluster says so.
Task<Expected<void>> wait_for_silence(const Surroundings& around, Taken& taken) {
  auto fenced_at = around.loop->now();
  CSV_CO_TRY(info, co_await read_superblocks(taken.tenure, false));
  auto former = info.coordinator;
  if (info.coordinator_key == Key{} || former == around.node) co_return Expected<void>{};
  // As cluster::LeaseTiming::over_after: both clocks may be wrong.
  auto until = fenced_at + around.timing.lease_term + around.timing.lease_term / 30;
  if (around.answers_until)
    if (auto silent = around.answers_until(former)) until = std::min(until, *silent);
  auto gone = [&around, former] { return around.process_gone && around.process_gone(former); };
  if (auto now = around.loop->now(); now < until && !gone())
    log::info("takeover volume={} waits_ms={} for=\"answers of the former coordinator on node {}\"",
              around.volume, (until - now) / 1ms, raw(former));
  while (around.loop->now() < until && !gone())
    co_await sleep(*around.loop, std::min<Duration>(until - around.loop->now(), 20ms));
  // What it vouched for to mounts ends with its lease, too, at the latest.
  taken.outwaited = around.loop->now() >= until;
  taken.vouched_until = until;
  co_return Expected<void>{};
}

/// Before anybody is served, so that a mount hears of it with its first word to us (A7).
Task<Expected<void>> notice_memory_loss(Taken& taken, iscsi::KeyList before) {
  CSV_CO_TRY(list, co_await taken.fencing->keys());
  Function<Expected<std::uint64_t>(Tenure&)> work =
      [before, live = taken.admissions,
       generation = list.generation](Tenure& on) -> Expected<std::uint64_t> {
    auto memory = on.catalog->target_memory();
    bool lost =
        on.lun->profile().write_cache && target_lost_memory(before, memory.key_generation, live);
    if (lost) ++memory.losses;
    if (!lost && memory.key_generation == generation) return memory.losses;
    memory.key_generation = generation;
    std::array<volume::Catalog::Change, 1> note;
    note[0].body = [memory](volume::Catalog& catalog) { return catalog.set_target_memory(memory); };
    CSV_TRY(on.catalog->run(note));
    CSV_TRY(note[0].result);
    if (lost)
      log::warning("the target lost power, and what its cache held losses={}", memory.losses);
    return memory.losses;
  };
  CSV_CO_TRY(losses, co_await on_writer<Expected<std::uint64_t>>(taken.tenure, std::move(work)));
  taken.verifier = losses;
  taken.key_generation = list.generation;
  co_return Expected<void>{};
}

/// The epoch is made on the LUN, not in a message (A5, A6).
Task<Expected<void>> write_epoch(const Surroundings& around, Taken& taken) {
  auto tenure = taken.tenure;
  // Again, now that nobody else can write them: whoever was fenced may have been taking over.
  CSV_CO_TRY(info, co_await read_superblocks(tenure, true));
  CSV_CO_CHECK(check_tag(around, info));
  const auto before = info;
  info.epoch = Epoch{raw(info.epoch) + 1};
  info.coordinator = around.node;
  info.coordinator_key = taken.key;
  info.closed_key = Key{};
  info.tag = around.tag;
  Function<Expected<void>(Tenure&)> work =
      [info, before, grow = around.grow](Tenure& on) mutable -> Expected<void> {
    if (grow) {
      // One rewrite with the epoch; opening the catalog does the rest.
      auto larger = volume::grown(info, on.lun->geometry().size_bytes());
      auto room = larger ? volume::claim_end(on.blocking, before, larger->lun_size)
                         : Expected<void>{larger.error()};
      if (room) {
        log::info("volume grows volume={} from={} to={}", info.label, info.lun_size,
                  larger->lun_size);
        info = *larger;
      } else if (!larger || room.error() == std::errc::no_space_on_device) {
        log::warning("volume does not grow: {}", room.error().message());
      } else {
        return room;
      }
    }
    CSV_TRY(volume::write_superblocks(on.blocking, info));
    on.info = info;
    return {};
  };
  CSV_CO_CHECK(co_await on_writer<Expected<void>>(tenure, std::move(work)));
  taken.epoch = tenure->info.epoch;
  co_return Expected<void>{};
}

struct Rows {
  std::vector<volume::SessionRow> sessions;
  std::vector<volume::AdmissionRow> admissions;
  std::vector<volume::SuspendedRow> suspended;
};

Expected<Rows> open_catalog(Tenure& on, std::uint64_t page_cache) {
  on.store = CSV_TRY(volume::open_catalog_store(on.blocking, on.info, on.random));
  on.catalog = CSV_TRY(volume::open_catalog(*on.store, page_cache));
  Rows rows;
  std::array<volume::Catalog::Change, 1> look;
  look[0].read_only = true;
  look[0].body = [&rows](volume::Catalog& catalog) -> Expected<void> {
    rows.sessions = CSV_TRY(catalog.sessions());
    rows.admissions = CSV_TRY(catalog.admissions());
    rows.suspended = CSV_TRY(catalog.suspended());
    return {};
  };
  CSV_TRY(on.catalog->run(look));
  CSV_TRY(look[0].result);
  return rows;
}

Expected<void> forget_admissions(Tenure& on, const std::vector<Key>& keys) {
  std::array<volume::Catalog::Change, 1> forget;
  forget[0].body = [&keys](volume::Catalog& catalog) -> Expected<void> {
    for (auto key : keys) CSV_TRY(catalog.remove_admission(key));
    return {};
  };
  CSV_TRY(on.catalog->run(forget));
  return std::move(forget[0].result);
}

/// Fences every key without a live row: of mounts that ended or were being fenced while the former
/// coordinator died, of a cold start. What they hold is still theirs, so it is freed only later.
Task<Expected<void>> fence_the_dead(const Surroundings& around, Taken& taken) {
  auto page_cache = MemoryShares::of(around.memory).catalog_pages;
  Function<Expected<Rows>(Tenure&)> open = [page_cache](Tenure& on) {
    return open_catalog(on, page_cache);
  };
  CSV_CO_TRY(rows, co_await on_writer<Expected<Rows>>(taken.tenure, std::move(open)));
  std::set<SessionId> live_sessions;
  for (const auto& row : rows.sessions)
    if (!row.ended) live_sessions.insert(row.id);
  std::set<Key> live, dead;
  for (const auto& row : rows.admissions) {
    bool lives = row.state != volume::AdmissionState::fenced && live_sessions.contains(row.session);
    (lives ? live : dead).insert(row.key);
    if (lives) taken.admissions.push_back(row);
  }
  taken.sessions = std::move(rows.sessions);
  taken.suspended = std::move(rows.suspended);
  std::vector<Key> dead_rows{dead.begin(), dead.end()};

  CSV_CO_TRY(list, co_await taken.fencing->keys());
  for (auto key : list.keys)
    if (key != taken.key && parts_of(key).cluster == around.cluster && !live.contains(key))
      dead.insert(key);
  if (dead.empty()) co_return Expected<void>{};
  std::vector<Key> victims{dead.begin(), dead.end()};
  CSV_CO_CHECK(co_await taken.fencing->remove(std::move(victims), Fencing::Left::maybe));
  if (dead_rows.empty()) co_return Expected<void>{};
  Function<Expected<void>(Tenure&)> forget = [dead_rows](Tenure& on) {
    return forget_admissions(on, dead_rows);
  };
  co_return co_await on_writer<Expected<void>>(taken.tenure, std::move(forget));
}

/// Ours may have replaced, on its nexus, that of an attempt of our own which died in the middle of
/// a fence. Nothing else tells that commands of keys that are gone may be left
/// (fence_coordinators).
Task<bool> tells_of_an_attempt(const Surroundings& around, const Taken& taken,
                               iscsi::KeyList before) {
  auto seen = other_coordinators(around, taken.key, before);
  std::erase_if(seen, [&](Key key) { return parts_of(key).node != around.node; });
  if (seen.empty()) co_return false;
  auto info = co_await read_superblocks(taken.tenure, false);
  auto list = co_await read_keys(*taken.tenure->lun);
  co_return std::any_of(seen.begin(), seen.end(), [&](Key key) {
    bool named = info && (key == info->coordinator_key || key == info->closed_key);
    bool listed = list && std::find(list->keys.begin(), list->keys.end(), key) != list->keys.end();
    return !named && !listed;
  });
}

Task<Expected<void>> take(const Surroundings& around, Taken& taken) {
  auto& lun = *taken.tenure->lun;
  CSV_CO_TRY(keys_before, co_await read_keys(lun));
  // First of all: under the reservation an unregistered nexus may not even read the superblocks.
  CSV_CO_CHECK(co_await register_key(lun, taken.key));
  if (auto may = co_await look(around, taken.tenure, taken.key); !may) {
    // Nothing of ours has happened; leave nothing. The answer changes nothing any more.
    if (!co_await tells_of_an_attempt(around, taken, keys_before))
      (void)co_await register_key(lun, Key{});
    co_return may.error();
  }
  CSV_CO_TRY(type, co_await keep_others_out(around, lun, taken.key));
  taken.fencing->set_type(type);
  CSV_CO_CHECK(may_go_on(around));
  CSV_CO_CHECK(co_await fence_coordinators(around, taken, keys_before));
  CSV_CO_CHECK(co_await wait_for_silence(around, taken));
  taken.proven_at = around.loop->now();
  CSV_CO_CHECK(may_go_on(around));
  CSV_CO_CHECK(co_await write_epoch(around, taken));
  // Only now: the catalog is opened (its log recovered) by the one who alone can write it, and its
  // rows say which keys live.
  CSV_CO_CHECK(co_await fence_the_dead(around, taken));
  CSV_CO_CHECK(co_await notice_memory_loss(taken, std::move(keys_before)));
  auto live = std::count_if(taken.sessions.begin(), taken.sessions.end(),
                            [](const auto& row) { return !row.ended; });
  log::info("takeover volume={} epoch={} key={:016x} sessions={} reservation=\"{}\"", around.volume,
            raw(taken.epoch), raw(taken.key), live, name_of(type));
  co_return Expected<void>{};
}

}  // namespace

Expected<void> note_loss(volume::Catalog& catalog) {
  auto memory = catalog.target_memory();
  ++memory.losses;
  return catalog.set_target_memory(memory);
}

Expected<void> note_loss_afresh(Tenure& on, std::uint64_t page_cache) {
  on.copy.reset();
  on.catalog.reset();
  on.store.reset();
  CSV_TRY(open_catalog(on, page_cache));
  std::array<volume::Catalog::Change, 1> note;
  note[0].body = [](volume::Catalog& catalog) { return note_loss(catalog); };
  auto ran = on.catalog->run(note);
  on.catalog.reset();
  on.store.reset();
  CSV_TRY(ran);
  return note[0].result;
}

bool target_lost_memory(const iscsi::KeyList& before, std::uint32_t generation_then,
                        std::span<const volume::AdmissionRow> live) {
  if (before.generation < generation_then) return true;
  auto listed = [&](const volume::AdmissionRow& row) {
    return std::find(before.keys.begin(), before.keys.end(), row.key) != before.keys.end();
  };
  // One that is missing may have been replaced on its nexus just before, by one that its session
  // is registering. That one itself proves nothing: it may have come after the loss.
  auto replaced = [&](const volume::AdmissionRow& row) {
    return std::any_of(live.begin(), live.end(), [&](const auto& other) {
      return other.session == row.session && other.state == volume::AdmissionState::registering &&
             listed(other);
    });
  };
  bool any_missing = false;
  for (const auto& row : live) {
    if (row.state != volume::AdmissionState::admitted) continue;
    if (listed(row)) return false;
    any_missing = any_missing || !replaced(row);
  }
  return any_missing;
}

Task<Expected<Taken>> take_over_volume(Surroundings around) {
  auto opened = co_await open_lun(around);
  if (!opened) co_return opened.error().within("taking over volume " + around.volume);
  Taken taken;
  taken.key = fresh_key(around);
  taken.tenure =
      Tenure::make(*around.loop, std::move(*opened), around.make_worker(), around.random->next());
  taken.fencing = std::make_unique<Fencing>(*around.loop, *taken.tenure->lun, taken.key);
  auto took = co_await take(around, taken);
  if (!took) co_return took.error().within("taking over volume " + around.volume);
  taken.fencing->be_patient();
  co_return std::move(taken);
}

}  // namespace csv::service
