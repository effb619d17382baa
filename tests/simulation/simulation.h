#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tests/simulation/workload.h"

namespace csv::sim {

/// What a run is put through. Data; a seed chooses among it.
struct Plan {
  Duration length = 20s;  ///< Of the time with work and faults.
  bool crash_csvd = true, crash_mount = true, crash_node = true;
  bool break_connections = true, part_network = true, slow_network = true;
  bool lose_paths = true, freeze = true, move = true, isolate = true, fill_lun = true;
  bool lose_all_paths = true;           ///< Every node, at once.
  bool lose_power = true, fill = true;  ///< Of the target; the volume, for a while.
  bool split = true;                    ///< The nodes into two sides, in any way.
  bool lose_witness = true;             ///< By one node, or all; it restarts.
  bool in_turn = true;  ///< The nodes end, one after the other; the first comes back alone.
  bool pause = true, set_clock = true;  ///< Of a whole node.
  bool fill_disk = true;                ///< A node's own.
  std::uint64_t foreign_in = 2;  ///< In one life of so many others use the LUN, too. 0: in none.
  bool fail_flushes = true;
  bool force = true;  ///< Most nodes are lost, and an administrator has the others go on.
  Duration least_calm = 100ms, most_calm = 2500ms;  ///< Between two faults.
  std::uint64_t lie_in = 0;  ///< The storage loses one acknowledged write in so many.
  bool mappings = false;     ///< Programs map files, too.
  std::size_t volumes = 1;
  bool voting = false;  ///< The nodes vote; else an administrator gives the volume to one.
  bool witness = true;  ///< Half of the clusters whose nodes vote have one.
  Broken broken;
  bool verbose = false;

  static Plan calm() {
    Plan plan;
    plan.crash_csvd = plan.crash_mount = plan.crash_node = false;
    plan.break_connections = plan.part_network = plan.slow_network = false;
    plan.lose_paths = plan.freeze = plan.move = plan.isolate = plan.fill_lun = false;
    plan.lose_power = plan.fill = plan.split = plan.lose_witness = plan.in_turn = false;
    plan.pause = plan.set_clock = plan.fill_disk = plan.fail_flushes = false;
    plan.force = plan.lose_all_paths = false;
    plan.foreign_in = 0;
    return plan;
  }
  /// What `seed` draws of all kinds of lives: plain, with votes, with mappings; one in four long,
  /// one in eight of several volumes.
  [[nodiscard]] Plan mixed(std::uint64_t seed) const;
};

struct Result {
  std::string violation;   ///< Empty: all was as it must be.
  bool undecided = false;  ///< From some moment on, too much was under way for the judge of names.
  std::uint64_t digest = 0;
  Duration ended{};
  std::uint64_t events = 0, faults = 0, takeovers = 0;
  Workload::Counts counts;
  std::uint64_t locks = 0;       ///< Granted to programs.
  std::uint64_t by_witness = 0;  ///< How often a side went on because of the witness.
  MountCounters mounts;          ///< Of all mounts together.
  std::string setting;           ///< In words: the LUN and the nodes of this seed.
};

/// One cluster's life: formatted, mounted, worked on while it is sabotaged, calmed down, read back,
/// unmounted, checked. Everything follows from the seed.
Result simulate(std::uint64_t seed, const Plan& plan);

}  // namespace csv::sim
