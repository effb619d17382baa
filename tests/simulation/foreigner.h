#pragma once
#include <memory>
#include <string_view>

#include "csvfs/base/task.h"
#include "iscsi/ram_lun.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// A host of somebody else's that takes a LUN of the cluster for its own: a backup host that is set
/// up wrongly, another cluster, a person with sg_persist. It knows nothing of us, does what it will
/// with keys and reservation, and is gone after a while. It neither reads nor writes.
class Foreigner {
 public:
  enum class Deed {
    registers,  ///< Only a key of its own.
    clears,     ///< All keys and the reservation.
    releases,   ///< The reservation, where all registrants hold it.
    preempts,   ///< Some of our keys, perhaps all.
    reserves,   ///< Clears, and reserves for itself, in any way.
  };
  static constexpr int kDeeds = 5;
  static std::string_view name_of(Deed deed);

  Foreigner(World& world, std::shared_ptr<iscsi::RamDisk> disk);
  Foreigner(const Foreigner&) = delete;
  Foreigner& operator=(const Foreigner&) = delete;
  ~Foreigner();

  void come(Deed deed);
  /// Takes its keys and its reservation away, whatever it takes.
  void leave();
  [[nodiscard]] bool gone() const { return gone_; }

 private:
  Task<void> act(Deed deed);
  Task<void> go();
  Task<Expected<void>> take_away();
  Task<Expected<void>> use(Deed deed, Key mine);
  Expected<std::unique_ptr<iscsi::Lun>> connect();
  Key fresh_key();

  World& world_;
  std::shared_ptr<iscsi::RamDisk> disk_;
  SimLoop loop_;
  std::unique_ptr<iscsi::Lun> lun_;
  bool gone_ = true;
  std::uint64_t next_key_ = 1;
  std::unique_ptr<TaskScope> tasks_ = std::make_unique<TaskScope>();
};

}  // namespace csv::sim
