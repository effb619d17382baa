#include "coordinator/service/fencing.h"

#include <algorithm>

#include "csvfs/base/events.h"
#include "csvfs/base/log.h"
#include "iscsi/lun_tasks.h"

namespace csv::service {
namespace {

/// A key that comes back more often than this is not a late REGISTER but a target that does not do
/// what it says.
constexpr int kRounds = 4;

constexpr std::string_view kWaitsForReader =
    "the target waits for a node that takes no answers (stopped, paused, lost): let it go on, or "
    "end its connection at the target (ss -K dst NODE)";

bool listed(const iscsi::KeyList& list, Key key) {
  return std::find(list.keys.begin(), list.keys.end(), key) != list.keys.end();
}

/// Gives the turn on when a fence ends, however it ends.
struct Turn {
  explicit Turn(bool& busy, Signal& free) : busy_{&busy}, free_{&free} { *busy_ = true; }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  ~Turn() {
    *busy_ = false;
    free_->notify();
  }
  bool* busy_;
  Signal* free_;
};

}  // namespace

Task<Expected<iscsi::Reservation>> ensure_reservation(iscsi::Lun& lun, Key mine) {
  using iscsi::ReservationType;
  CSV_CO_TRY(found, co_await read_reservation(lun));
  if (found.type != ReservationType::none) co_return found;
  auto preferred = ReservationType::exclusive_access_all_registrants;
  auto capabilities = co_await report_capabilities(lun);
  auto bit = 1u << static_cast<unsigned>(preferred);
  if (capabilities && capabilities->type_mask != 0 && (capabilities->type_mask & bit) == 0)
    preferred = ReservationType::exclusive_access_registrants_only;
  auto reserved = co_await reserve(lun, mine, preferred);
  if (!reserved && reserved.error() == Errc::unsupported_by_target)
    reserved = co_await reserve(lun, mine, ReservationType::exclusive_access_registrants_only);
  // Another node may have been faster: what counts is what stands now.
  CSV_CO_TRY(now, co_await read_reservation(lun));
  if (now.type == ReservationType::none)
    co_return reserved
        ? Error{std::errc::io_error, "the target reports no reservation after accepting ours"}
        : reserved.error().within("reserving the LUN");
  co_return now;
}

Task<Expected<iscsi::KeyList>> Fencing::keys() {
  CSV_CO_TRY(list, co_await read_keys(*lun_));
  if (!listed(list, mine_))
    co_return Error{Errc::fenced, fmt::format("our key {:016x} is not registered with the LUN any "
                                              "more",
                                              raw(mine_))};
  co_return std::move(list);
}

Task<Expected<void>> Fencing::remove(std::vector<Key> victims, Left left) {
  if (victims.empty() && left == Left::nothing) co_return Expected<void>{};
  while (busy_) co_await free_.wait();
  Turn turn{busy_, free_};
  co_return co_await remove_now(std::move(victims), left);
}

Task<Expected<void>> Fencing::remove_now(std::vector<Key> victims, Left left) {
  bool abort = lun_->profile().preempt_and_abort;
  // Without PREEMPT AND ABORT it is the reset that ends what the victims had sent. It is due even
  // if no victim is listed: a fence before us may have got as far as the PREEMPT and no further. So
  // may PREEMPT AND ABORT, which takes the key away first: of a key that is not listed any more
  // nobody has told us that its commands have ended.
  bool must_reset = left == Left::others || (left == Left::maybe && !abort);
  for (int round = 0; round < kRounds; ++round) {
    CSV_CO_TRY(before, co_await keys());
    std::vector<Key> standing;
    for (auto key : victims)
      if (listed(before, key)) standing.push_back(key);
    if (round == 0 && left == Left::maybe && standing.size() < victims.size()) must_reset = true;
    for (auto key : standing) {
      iscsi::Preempt what{.mine = mine_, .victim = key, .type = type_, .abort = abort};
      auto done = co_await preempt(*lun_, what);
      if (!done && abort && done.error() == Errc::unsupported_by_target) {
        abort = what.abort = false;
        must_reset = true;
        done = co_await preempt(*lun_, what);
      }
      // Its status proves nothing: the keys do, below. But if another fencer has been faster, his
      // abort may not have ended yet.
      if (!abort || !done) must_reset = true;
      if (!done && done.error() == Errc::lun_lost) co_return done.error();
      log::info("fence key={:016x} node={} round={} preempt=\"{}\"", raw(key),
                raw(parts_of(key).node), round, done ? "done" : done.error().message());
      events::report(events::Severity::info, "fence", "",
                     fmt::format("key {:016x} of node {} was removed from the LUN", raw(key),
                                 raw(parts_of(key).node)),
                     done ? "" : "preempt: " + done.error().message());
    }
    if (must_reset) {
      CSV_CO_CHECK(co_await end_commands());
      must_reset = false;
    }
    CSV_CO_TRY(after, co_await keys());
    if (std::none_of(victims.begin(), victims.end(), [&](Key key) { return listed(after, key); })) {
      count_ += standing.size();
      co_return Expected<void>{};
    }
  }
  co_return Error{std::errc::io_error,
                  fmt::format("the target still lists key {:016x} after {} preempts",
                              raw(victims.front()), kRounds)};
}

Task<Expected<void>> Fencing::end_commands() {
  for (;;) {
    auto done = co_await reset(*lun_);
    if (done || !(done.error() == Errc::reset_unanswered)) co_return done;
    log::error("reset unanswered patient={} why=\"{}\"", patient_, done.error().message());
    events::report(events::Severity::error, "fence", "",
                   "the target serves, but does not answer a LUN RESET: no fence can end",
                   kWaitsForReader);
    if (!patient_) co_return done.error().within(kWaitsForReader);
  }
}

}  // namespace csv::service
