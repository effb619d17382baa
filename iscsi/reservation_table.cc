#include "iscsi/reservation_table.h"

#include <algorithm>

namespace csv::iscsi {
namespace {

using Type = ReservationType;

bool all_registrants(Type type) {
  return type == Type::write_exclusive_all_registrants ||
         type == Type::exclusive_access_all_registrants;
}

bool registrants_only(Type type) {
  return type == Type::write_exclusive_registrants_only ||
         type == Type::exclusive_access_registrants_only;
}

bool exclusive_access(Type type) {
  return type == Type::exclusive_access || type == Type::exclusive_access_registrants_only ||
         type == Type::exclusive_access_all_registrants;
}

bool known(Type type) {
  return type == Type::write_exclusive || type == Type::exclusive_access ||
         registrants_only(type) || all_registrants(type);
}

}  // namespace

ReservationTable::Registrations::iterator ReservationTable::find(Nexus nexus) {
  return std::find_if(registrations_.begin(), registrations_.end(),
                      [nexus](const auto& each) { return each.first == nexus; });
}

bool ReservationTable::registered(Nexus nexus) const { return key_of(nexus).has_value(); }

std::optional<Key> ReservationTable::key_of(Nexus nexus) const {
  for (const auto& [who, key] : registrations_) {
    if (who == nexus) return key;
  }
  return {};
}

bool ReservationTable::is(Nexus nexus, Key key) const { return key_of(nexus) == key; }

bool ReservationTable::holds(Nexus nexus) const {
  if (type_ == Type::none) return false;
  return all_registrants(type_) ? registered(nexus) : holder_ == nexus;
}

bool ReservationTable::may(Nexus from, Access access) const {
  if (type_ == Type::none || holds(from)) return true;
  if (access == Access::read && !exclusive_access(type_)) return true;
  return registrants_only(type_) && registered(from);
}

KeyList ReservationTable::keys() const {
  KeyList list{.generation = generation_, .keys = {}};
  for (const auto& [nexus, key] : registrations_) list.keys.push_back(key);
  return list;
}

Reservation ReservationTable::reservation() const {
  Reservation now{.generation = generation_, .type = type_, .holder = Key{}};
  if (type_ != Type::none && !all_registrants(type_)) now.holder = key_of(holder_).value_or(Key{});
  return now;
}

void ReservationTable::drop_reservation(Nexus because_of, Result& result) {
  // Only where all registrants had a share in it do the others have to be told.
  if (registrants_only(type_) || all_registrants(type_)) {
    for (const auto& [nexus, key] : registrations_) {
      if (nexus != because_of) result.notices.emplace_back(nexus, Notice::reservations_released);
    }
  }
  type_ = Type::none;
  holder_ = {};
}

ReservationTable::Result ReservationTable::register_key(Nexus from, std::optional<Key> existing,
                                                        Key key) {
  auto mine = find(from);
  auto has = mine == registrations_.end() ? Key{} : mine->second;
  if (existing && *existing != has) return {.verdict = Verdict::conflict};
  Result result;
  if (raw(key) == 0 && mine == registrations_.end()) return result;
  ++generation_;
  if (raw(key) != 0) {
    if (mine == registrations_.end()) {
      registrations_.emplace_back(from, key);
    } else {
      mine->second = key;
    }
    return result;
  }
  bool held = holds(from);
  registrations_.erase(mine);
  if (held && (!all_registrants(type_) || registrations_.empty())) drop_reservation(from, result);
  return result;
}

ReservationTable::Result ReservationTable::reserve(Nexus from, Key key, ReservationType type) {
  if (!is(from, key)) return {.verdict = Verdict::conflict};
  if (!known(type)) return {.verdict = Verdict::illegal};
  if (type_ == Type::none) {
    type_ = type;
    holder_ = from;
    return {};
  }
  return {.verdict = holds(from) && type_ == type ? Verdict::good : Verdict::conflict};
}

ReservationTable::Result ReservationTable::release(Nexus from, Key key, ReservationType type) {
  if (!is(from, key)) return {.verdict = Verdict::conflict};
  if (!holds(from)) return {};
  if (type_ != type) return {.verdict = Verdict::illegal};
  Result result;
  drop_reservation(from, result);
  return result;
}

ReservationTable::Result ReservationTable::clear(Nexus from, Key key) {
  if (!is(from, key)) return {.verdict = Verdict::conflict};
  Result result;
  for (const auto& [nexus, each] : registrations_) {
    if (nexus != from) result.notices.emplace_back(nexus, Notice::reservations_preempted);
  }
  registrations_.clear();
  type_ = Type::none;
  holder_ = {};
  ++generation_;
  return result;
}

ReservationTable::Result ReservationTable::preempt(Nexus from, Key key, Key victim,
                                                   ReservationType type) {
  if (!is(from, key)) return {.verdict = Verdict::conflict};
  bool everybody = raw(victim) == 0;
  bool takes_reservation = false;
  if (type_ != Type::none) {
    takes_reservation = all_registrants(type_) ? everybody : is(holder_, victim);
  }
  if (everybody && !takes_reservation) return {.verdict = Verdict::illegal};
  if (takes_reservation && !known(type)) return {.verdict = Verdict::illegal};

  Result result;
  Registrations stay;
  bool found = false;
  for (const auto& each : registrations_) {
    bool named = everybody || each.second == victim;
    found = found || named;
    // Who takes the reservation over stays registered; without one, a key may remove itself.
    if (!named || (each.first == from && takes_reservation)) {
      stay.push_back(each);
    } else if (each.first != from) {
      result.removed.push_back(each.first);
      result.notices.emplace_back(each.first, Notice::registrations_preempted);
    }
  }
  if (!found) return {.verdict = Verdict::conflict};
  bool told =
      takes_reservation && type != type_ && (registrants_only(type_) || all_registrants(type_));
  registrations_ = std::move(stay);
  if (takes_reservation) {
    type_ = type;
    holder_ = from;
  } else if (all_registrants(type_) && registrations_.empty()) {
    type_ = Type::none;
  }
  if (told) {
    for (const auto& [nexus, each] : registrations_) {
      if (nexus != from) result.notices.emplace_back(nexus, Notice::reservations_released);
    }
  }
  ++generation_;
  return result;
}

void ReservationTable::power_loss(bool persists) {
  generation_ = 0;
  if (persists) return;
  registrations_.clear();
  type_ = Type::none;
  holder_ = {};
}

}  // namespace csv::iscsi
