#pragma once
#include <vector>

#include "csvfs/base/task.h"
#include "iscsi/lun.h"

namespace csv::service {

/// Makes sure that a reservation stands, `mine`, which is registered, if there was none: one under
/// which only registered nexuses have access, if the target can. What stands then.
Task<Expected<iscsi::Reservation>> ensure_reservation(iscsi::Lun& lun, Key mine);

/// Takes keys away from the volume's LUN, on behalf of the coordinator's own key. One fence runs at
/// a time. Loop's thread.
///
/// Whoever calls has committed the keys' rows as fenced before (A1): a registration that comes
/// later is then known for what it is.
class Fencing {
 public:
  Fencing(Loop& loop, iscsi::Lun& lun, Key mine) : lun_{&lun}, mine_{mine}, free_{loop} {}

  /// The type that every PREEMPT names. Set once the reservation is known.
  void set_type(iscsi::ReservationType type) { type_ = type; }
  [[nodiscard]] iscsi::ReservationType type() const { return type_; }

  /// How sure it is that nothing of a key is still on its way.
  enum class Left {
    maybe,    ///< Commands may be executing, even if the key is not listed any more.
    nothing,  ///< Never sent I/O, or said itself that all of it was answered.
    others,   ///< As maybe, and so may commands of keys that nobody lists or names any more.
  };
  /// When it succeeds none of `victims` is registered, every command sent under them has ended, and
  /// `mine` is registered still. Errors mean that this could not be brought about: Errc::fenced
  /// where our own key is gone, else what the LUN said; of these Errc::reset_unanswered is told to
  /// the administrator here. No victims and `maybe`: ends the commands of keys that are gone
  /// already.
  Task<Expected<void>> remove(std::vector<Key> victims, Left left);

  /// From now on a LUN RESET that the target does not answer while it serves is repeated until it
  /// does. Whoever coordinates already has nothing to gain from giving up: his successor would wait
  /// for the same answer.
  void be_patient() { patient_ = true; }

  /// The keys on the LUN. Errc::fenced if ours is not among them.
  Task<Expected<iscsi::KeyList>> keys();

  /// One is under way: a LUN RESET may keep all commands waiting.
  [[nodiscard]] bool busy() const { return busy_; }
  [[nodiscard]] std::uint64_t count() const { return count_; }

 private:
  Task<Expected<void>> remove_now(std::vector<Key> victims, Left left);
  Task<Expected<void>> end_commands();

  iscsi::Lun* lun_;
  Key mine_;
  iscsi::ReservationType type_ = iscsi::ReservationType::exclusive_access_all_registrants;
  Signal free_;
  bool busy_ = false;
  bool patient_ = false;
  std::uint64_t count_ = 0;  ///< Keys removed.
};

}  // namespace csv::service
