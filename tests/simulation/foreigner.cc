#include "tests/simulation/foreigner.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "iscsi/lun_tasks.h"

namespace csv::sim {
namespace {

using iscsi::ReservationType;

/// Of no cluster of csvfs here: the upper 16 bits say so.
constexpr std::uint64_t kMine = 0xbacc'0000'0000'0000ull;
bool is_mine(Key key) { return (raw(key) & 0xffff'0000'0000'0000ull) == kMine; }

Task<Expected<void>> clear(iscsi::Lun& lun, Key mine) {
  co_return co_await completion<Expected<void>>(
      [&lun, mine](auto done) { lun.clear(mine, std::move(done)); });
}
Task<Expected<void>> release(iscsi::Lun& lun, Key mine, ReservationType type) {
  co_return co_await completion<Expected<void>>(
      [&lun, mine, type](auto done) { lun.release(mine, type, std::move(done)); });
}

}  // namespace

std::string_view Foreigner::name_of(Deed deed) {
  switch (deed) {
    case Deed::registers: return "registers a key";
    case Deed::clears: return "clears all keys";
    case Deed::releases: return "releases the reservation";
    case Deed::preempts: return "preempts keys";
    case Deed::reserves: return "reserves it for itself";
  }
  return "";
}

Foreigner::Foreigner(World& world, std::shared_ptr<iscsi::RamDisk> disk)
    : world_{world}, disk_{std::move(disk)}, loop_{world, "foreigner", {}} {}

Foreigner::~Foreigner() {
  loop_.enter([this] {
    tasks_.reset();
    lun_.reset();
  });
}

Key Foreigner::fresh_key() { return Key{kMine + next_key_++}; }

Expected<std::unique_ptr<iscsi::Lun>> Foreigner::connect() {
  iscsi::LunOptions options;
  options.initiator = "iqn.2026-01.org.example:backup";
  return disk_->connect(loop_, std::move(options), [this](const iscsi::RamCommand&) {
    iscsi::RamFate fate;
    fate.to_target = world_.between(10us, 150us);
    fate.inside = world_.between(10us, 250us);
    fate.to_initiator = world_.between(10us, 150us);
    return fate;
  });
}

void Foreigner::come(Deed deed) {
  gone_ = false;
  loop_.enter([&] { tasks_->spawn(act(deed)); });
}

void Foreigner::leave() {
  loop_.enter([this] {
    tasks_ = std::make_unique<TaskScope>();
    lun_.reset();
    tasks_->spawn(go());
  });
}

Task<void> Foreigner::act(Deed deed) {
  auto lun = connect();
  if (!lun) co_return;
  lun_ = *std::move(lun);
  auto mine = fresh_key();
  auto registered = co_await iscsi::register_key(*lun_, mine);
  if (registered) (void)co_await use(deed, mine);
}

Task<Expected<void>> Foreigner::use(Deed deed, Key mine) {
  auto& random = world_.random();
  switch (deed) {
    case Deed::registers: break;
    case Deed::clears: co_return co_await clear(*lun_, mine);
    case Deed::releases: {
      CSV_CO_TRY(found, co_await iscsi::read_reservation(*lun_));
      co_return co_await release(*lun_, mine, found.type);
    }
    case Deed::preempts: {
      CSV_CO_TRY(list, co_await iscsi::read_keys(*lun_));
      CSV_CO_TRY(found, co_await iscsi::read_reservation(*lun_));
      bool all = random.chance(1, 3), abort = lun_->profile().preempt_and_abort;
      for (auto key : list.keys) {
        if (key == mine || (!all && random.chance(1, 2))) continue;
        iscsi::Preempt what{mine, key, found.type, abort && random.chance(1, 2)};
        (void)co_await iscsi::preempt(*lun_, what);
      }
      break;
    }
    case Deed::reserves: {
      constexpr std::array kTypes = {ReservationType::write_exclusive,
                                     ReservationType::exclusive_access,
                                     ReservationType::write_exclusive_registrants_only,
                                     ReservationType::exclusive_access_registrants_only,
                                     ReservationType::write_exclusive_all_registrants,
                                     ReservationType::exclusive_access_all_registrants};
      auto types = disk_->options().all_registrants ? kTypes.size() : kTypes.size() - 2;
      auto type = kTypes[random.below(types)];
      CSV_CO_CHECK(co_await clear(*lun_, mine));
      CSV_CO_CHECK(co_await iscsi::register_key(*lun_, mine));
      co_return co_await iscsi::reserve(*lun_, mine, type);
    }
  }
  co_return Expected<void>{};
}

Task<void> Foreigner::go() {
  for (;;) {
    auto taken = co_await take_away();
    if (taken) break;
    co_await sleep(loop_, 20ms);
  }
  gone_ = true;
  world_.note("the foreign host is gone");
}

/// The entries of its former sessions may still stand, and no one else removes them.
Task<Expected<void>> Foreigner::take_away() {
  lun_.reset();
  CSV_CO_TRY(lun, connect());
  lun_ = std::move(lun);
  auto mine = fresh_key();
  CSV_CO_CHECK(co_await iscsi::register_key(*lun_, mine));
  CSV_CO_TRY(list, co_await iscsi::read_keys(*lun_));
  CSV_CO_TRY(found, co_await iscsi::read_reservation(*lun_));
  for (auto key : list.keys) {
    if (!is_mine(key) || key == mine) continue;
    // What its former session holds alone becomes this one's, of the same type.
    iscsi::Preempt what{mine, key, found.type, false};
    (void)co_await iscsi::preempt(*lun_, what);
  }
  CSV_CO_CHECK(co_await iscsi::register_key(*lun_, Key{}));
  auto left = disk_->registered_keys();
  if (std::any_of(left.begin(), left.end(), is_mine)) co_return Errc::retry;
  lun_.reset();
  co_return Expected<void>{};
}

}  // namespace csv::sim
