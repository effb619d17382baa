#include "coordinator/service/sole_use.h"

#include <algorithm>
#include <set>

#include "csvfs/base/log.h"
#include "iscsi/lun_tasks.h"

namespace csv::service {
namespace {

std::string who(Key key) {
  auto parts = parts_of(key);
  // csvctl has no node's number.
  if (parts.role == KeyRole::coordinator && raw(parts.node) == 0) return "a csvctl";
  return fmt::format("node {}", raw(parts.node));
}

std::string_view role_of(Key key) {
  switch (parts_of(key).role) {
    case KeyRole::mount: return "has it mounted";
    case KeyRole::coordinator: return "may be coordinating it";
    case KeyRole::heartbeat: break;
  }
  return "uses it";
}

}  // namespace

std::vector<Key> Users::mounts() const {
  std::vector<Key> found;
  for (auto key : keys)
    if (parts_of(key).role == KeyRole::mount) found.push_back(key);
  return found;
}

std::string Users::in_words() const {
  std::string lines;
  bool named = false;
  for (auto key : keys) {
    auto parts = parts_of(key);
    bool ours = !info || parts.cluster == info->cluster || parts.cluster == 0;
    if (closed() && ours && parts.role == KeyRole::coordinator) continue;
    named = named || (info && key == info->coordinator_key);
    lines += fmt::format("  {} {} (key {:016x}{})\n", who(key), role_of(key), raw(key),
                         ours ? "" : fmt::format(" of another cluster, {}", parts.cluster));
  }
  if (info && !closed() && !named)
    lines += fmt::format("  node {} coordinated it last and did not close it in good order\n",
                         raw(info->coordinator));
  return lines;
}

Expected<Users> look_for_users(iscsi::BlockingLun& lun, Key mine) {
  auto list = lun.read_keys();
  if (!list) return list.error().within("reading the LUN's keys");
  Users users;
  std::set<Key> others{list->keys.begin(), list->keys.end()};
  others.erase(mine);
  users.keys.assign(others.begin(), others.end());
  users.info = volume::read_superblocks(lun, false);
  // Whether they are damaged is one thing, not to be able to read them another.
  if (!users.info && users.info.error() != Errc::corrupt && users.info.error() != Errc::refused)
    return users.info.error();
  return users;
}

Task<Expected<void>> take_for_one(Loop& loop, iscsi::Lun& lun, Key mine, const Users& users,
                                  Duration term) {
  CSV_CO_TRY(reservation, co_await ensure_reservation(lun, mine));
  using Type = iscsi::ReservationType;
  if (reservation.type != Type::exclusive_access_registrants_only &&
      reservation.type != Type::exclusive_access_all_registrants)
    co_return Error{Errc::refused,
                    fmt::format("a reservation of type {} stands on the LUN, which is not one of "
                                "ours (csvctl reservation show)",
                                static_cast<int>(reservation.type))};
  Fencing fencing{loop, lun, mine};
  fencing.set_type(reservation.type);
  auto victims = users.keys;
  CSV_CO_CHECK(co_await fencing.remove(std::move(victims), Fencing::Left::maybe));
  auto fenced_at = loop.now();
  CSV_CO_TRY(list, co_await fencing.keys());
  for (auto key : list.keys)
    if (key != mine)
      co_return Error{Errc::refused,
                      fmt::format("{} registered key {:016x} meanwhile: stop whatever uses the LUN",
                                  who(key), raw(key))};
  if (!users.closed()) co_await sleep(loop, fenced_at + term + term / 100 - loop.now());
  co_return Expected<void>{};
}

}  // namespace csv::service
