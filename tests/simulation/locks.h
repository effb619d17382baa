#pragma once
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/workload.h"

namespace csv::sim {

/// Programs on all nodes that lock files, wait, are interrupted, close without unlocking, and the
/// judge of what they get: two live sessions never have locks that exclude each other; what a mount
/// had when it was killed is nobody else's before its session is over; who waits is answered; in
/// the end nothing is left.
class LockWorkload {
 public:
  LockWorkload(World& world, Cluster& cluster, Workload& judge, std::size_t volume = 0)
      : world_{world}, cluster_{cluster}, judge_{judge}, volume_{volume} {}

  /// Makes the files; one node's mount must be up.
  Task<void> set_up(std::size_t node, std::function<void()> done);
  void begin(std::size_t node);
  /// Its mount dies by `kill`.
  void dies(const std::function<void()>& kill);
  void wind_down() { winding_down_ = true; }
  [[nodiscard]] std::size_t running() const { return running_; }
  /// With no program left: every lock is to be had.
  Task<void> all_is_free(std::size_t node, std::function<void()> done);
  /// What could not be judged while nobody coordinated.
  void judge_again();

  std::uint64_t granted = 0, refused = 0, interrupted = 0, deadlocks = 0, lost = 0;

 private:
  struct Lock {
    std::string who;
    std::uint64_t program = 0;
    SessionId session{};
    std::size_t file = 0;
    Mount::LockWish wish;
    bool orphan = false;  ///< Its program was killed with its mount.
  };
  struct Suspicion {
    Lock one, other;
  };
  class Held;
  class Counted;
  Task<void> program(std::size_t node, Csvfs& csvfs, std::uint64_t seed);
  Task<bool> one_round(Csvfs& csvfs, Random& random, const std::string& who, std::uint64_t number);
  Task<Expected<void>> take(Csvfs& csvfs, Random& random, Mount::Handle handle,
                            Mount::LockWish wish);
  bool explained(const Error& error, Csvfs& csvfs, SessionId session);
  void got(const Lock& lock);

  World& world_;
  Cluster& cluster_;
  Workload& judge_;
  std::size_t volume_;
  std::vector<InodeId> files_;
  std::list<Lock> held_;  ///< As programs believe, and what killed ones had.
  std::vector<Suspicion> suspicions_;
  std::size_t running_ = 0;
  std::uint64_t next_program_ = 1;
  bool winding_down_ = false, dying_ = false;
};

}  // namespace csv::sim
