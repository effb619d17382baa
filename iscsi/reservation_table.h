#pragma once
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "iscsi/lun.h"

namespace csv::iscsi {

/// A path from an initiator's port to the LUN, as the target tells them apart.
enum class Nexus : std::uint64_t {};

/// What a target remembers about persistent reservations, and what they let each nexus do (SPC-4
/// 5.13). A pure state machine: no I/O, no threads; the RAM LUN stands on it.
class ReservationTable {
 public:
  enum class Verdict { good, conflict, illegal };
  /// Unit attentions a nexus gets because of what another one did.
  enum class Notice : std::uint8_t {
    reservations_preempted = 3,   ///< 2Ah/03h
    reservations_released = 4,    ///< 2Ah/04h
    registrations_preempted = 5,  ///< 2Ah/05h
  };
  struct Result {
    Verdict verdict = Verdict::good;
    std::vector<std::pair<Nexus, Notice>> notices = {};
    std::vector<Nexus> removed = {};  ///< Registrations a preempt took away, the sender's excluded.
  };
  enum class Access { read, write };

  /// REGISTER, or REGISTER AND IGNORE EXISTING KEY where `existing` is missing.
  Result register_key(Nexus from, std::optional<Key> existing, Key key);
  Result reserve(Nexus from, Key key, ReservationType type);
  Result release(Nexus from, Key key, ReservationType type);
  Result clear(Nexus from, Key key);
  /// PREEMPT; for PREEMPT AND ABORT the caller aborts the commands of `removed` as well.
  Result preempt(Nexus from, Key key, Key victim, ReservationType type);

  [[nodiscard]] bool may(Nexus from, Access access) const;
  [[nodiscard]] bool registered(Nexus nexus) const;
  [[nodiscard]] bool holds(Nexus nexus) const;
  [[nodiscard]] std::optional<Key> key_of(Nexus nexus) const;
  [[nodiscard]] KeyList keys() const;
  [[nodiscard]] Reservation reservation() const;
  /// In the order of registration.
  [[nodiscard]] const std::vector<std::pair<Nexus, Key>>& registrations() const {
    return registrations_;
  }

  /// The target lost power. PRGENERATION is 0 again, whatever persisted.
  void power_loss(bool persists);

 private:
  using Registrations = std::vector<std::pair<Nexus, Key>>;
  Registrations::iterator find(Nexus nexus);
  [[nodiscard]] bool is(Nexus nexus, Key key) const;
  void drop_reservation(Nexus because_of, Result& result);

  Registrations registrations_;
  ReservationType type_ = ReservationType::none;
  Nexus holder_{};  ///< Meaningless for the all-registrants types.
  std::uint32_t generation_ = 0;
};

}  // namespace csv::iscsi
