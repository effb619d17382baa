#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "coordinator/cluster/lease_timing.h"
#include "coordinator/cluster/witness.h"
#include "coordinator/cluster/witness_format.h"
#include "csvfs/base/random.h"
#include "iscsi/open_lun.h"

namespace csv::cluster {

/// A small LUN as witness. Held by its reservation, *Write Exclusive*: everybody reads it, and only
/// the holder can write, so a write that the target has answered proves the hold of when it was
/// sent. The LUN is the witness's alone: it is reset when the witness changes hands.
///
/// A side that takes it counts from what it sees on its own clock, and trusts clocks to run alike
/// as LeaseTiming says:
///
///   holder      sends confirm ├──────── term ────────┤ the hold is over
///   challenger       sees it move ├──────── over_after ────────┤ PREEMPT, LUN RESET, looks again
///
/// When the reset was answered no command of the holder's is left that could still be executed, and
/// none comes after it: so if the slots then are what they were at the challenger's last look, no
/// confirm was executed that was not sent before the wait began. If they are not, it waits again,
/// with the holder shut out. What a former holder wrote late can so neither prove a hold nor damage
/// the configuration.
///
/// A connection that ended is made anew, with a fresh key; what this object held it goes on holding
/// if nobody has taken it. Another life of the same node is another holder, and waits.
///
/// store() needs the hold, whose writes alone the target accepts: Errc::refused where this object
/// does not have it. The configuration lies there twice; a change counts once both say so.
///
/// confirm() and challenge() of one object, and its other calls, run one at a time.
class DiskWitness final : public Witness {
 public:
  struct Surroundings {
    Loop* loop = nullptr;
    Random* random = nullptr;
    iscsi::LunOpener open_lun;  ///< Answers on `loop`.
    std::uint16_t cluster = 0;
    NodeId node{};
    /// Of the LUN that was made the witness; none: noted by no one, any will do.
    std::optional<disk::WitnessId> id = {};
    LeaseTiming timing = {};
    Duration deadline = 5s;          ///< Of a call; challenge() waits for movement beside it.
    Duration command_deadline = 2s;  ///< Of a command; a LUN that exceeds it is opened anew.
    Duration look_interval = 250ms;  ///< Of a challenger.
  };
  explicit DiskWitness(Surroundings around);
  ~DiskWitness() override;

  Task<Expected<Memory>> read() override;
  Task<Expected<void>> store(Memory memory) override;
  Task<Expected<Hold>> confirm(std::uint64_t ring) override;
  Task<Expected<Hold>> challenge(std::uint64_t ring) override;
  [[nodiscard]] std::optional<NodeId> holder() const override { return holder_; }

 private:
  struct Connection;
  using ConnectionRef = std::shared_ptr<Connection>;
  using Slots = std::shared_ptr<Buffer>;
  struct Watch;
  struct Newest;

  template <typename T>
  Task<Expected<T>> one_at_a_time(Duration limit, Task<Expected<T>> call, std::string_view what);

  Task<bool> hopeless(Error error);
  Task<Expected<Memory>> read_now();
  Task<Expected<Memory>> read_once();
  Task<Expected<void>> store_now(Memory memory);
  Task<Expected<void>> store_once(const Memory& memory);
  Task<Expected<Hold>> confirm_now(std::uint64_t ring);
  Task<Expected<Hold>> confirm_once(std::uint64_t ring);
  Task<Expected<Hold>> challenge_now(std::uint64_t ring);
  Task<Expected<Hold>> challenge_once(Watch& watch, std::uint64_t ring);
  Task<Expected<void>> wait_for_silence(Connection& on, Watch& watch);

  Task<Expected<ConnectionRef>> connection();
  void drop();
  Task<Expected<void>> enroll(Connection& on);
  Task<Expected<iscsi::Reservation>> reservation(Connection& on);
  Task<Expected<void>> take_reservation(Connection& on, bool from_anybody);
  Task<void> forget_former_keys(Connection& on);
  Task<Expected<ConnectionRef>> hold_on();
  Task<Expected<void>> still_last(Connection& on);
  Task<Expected<Slots>> look(Connection& on);
  Task<Expected<Newest>> newest(Connection& on);
  Slots next_slot(const Connection& on, std::uint64_t hold, std::uint64_t ring);

  Surroundings around_;
  Signal free_;
  bool busy_ = false;
  Error trouble_;  ///< What the running call met last, and tries to get over.
  ConnectionRef connection_;
  std::vector<Key> keys_;  ///< Used in this life; the last is the connection's.
  /// What this object holds, unless somebody has taken it since.
  struct Held {
    disk::WitnessId witness{};
    std::uint64_t hold = 0;
  };
  std::optional<Held> held_;
  std::uint64_t counter_ = 0;
  std::optional<NodeId> holder_;
};

/// Makes a witness of an empty LUN: Errc::refused, and nothing is changed, if anything lies on it,
/// if it is smaller than 1 MiB, or if anybody has registered a key there.
Task<Expected<void>> format_witness(iscsi::Lun& lun, std::uint16_t cluster, Random& random);
/// Of a LUN that is this cluster's witness.
Task<Expected<disk::WitnessId>> witness_id(iscsi::Lun& lun, std::uint16_t cluster);

}  // namespace csv::cluster
