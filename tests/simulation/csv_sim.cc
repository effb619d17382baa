// csv_sim --seed N [--runs M] [--voting] [--mappings] [--calm] [--verbose] [--log] ...: lives of
// simulated clusters (docs/testing.md).

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "csvfs/base/log.h"
#include "tests/simulation/simulation.h"

int main(int argc, char** argv) {
  std::uint64_t seed = 1, runs = 1;
  csv::sim::Plan plan;
  auto level = csv::log::Level::error;
  for (int i = 1; i < argc; ++i) {
    std::string_view arg = argv[i];
    auto number = [&] { return ++i < argc ? std::strtoull(argv[i], nullptr, 0) : 0; };
    if (arg == "--seed") {
      seed = number();
    } else if (arg == "--runs") {
      runs = number();
    } else if (arg == "--calm") {
      auto each = plan;
      plan = csv::sim::Plan::calm();
      plan.voting = each.voting;
      plan.mappings = each.mappings;
    } else if (arg == "--mappings") {
      plan.mappings = true;
    } else if (arg == "--voting") {
      plan.voting = true;
    } else if (arg == "--only") {
      auto each = plan;
      plan = csv::sim::Plan::calm();
      std::string_view what = ++i < argc ? argv[i] : "";
      plan.crash_csvd = what == "crash-csvd";
      plan.crash_mount = what == "crash-mount";
      plan.crash_node = what == "crash-node";
      plan.break_connections = what == "break-connections";
      plan.part_network = what == "part-network";
      plan.slow_network = what == "slow-network";
      plan.lose_paths = what == "lose-paths";
      plan.freeze = what == "freeze";
      plan.move = what == "move";
      plan.isolate = what == "isolate";
      plan.fill_lun = what == "fill-lun";
      plan.lose_power = what == "lose-power";
      plan.fill = what == "fill";
      plan.length = each.length;
      plan.voting = each.voting;
      plan.mappings = each.mappings;
    } else if (arg == "--lie") {
      plan.lie_in = number();
    } else if (arg == "--break") {
      std::string_view what = ++i < argc ? argv[i] : "";
      plan.broken.unfenced |= what == "fences";
      plan.broken.mounts_gate_stays_open |= what == "gates";
      plan.broken.csvds_gate_stays_open |= what == "coordinators-gates";
      plan.broken.kernels_keep_pages |= what == "pages";
      plan.broken.forgery.answer_recalls |= what == "recalls";
      plan.broken.forgery.double_appends |= what == "appends";
      plan.broken.forgery.answer_unwatches |= what == "unwatches";
      plan.broken.forgery.hide_locks |= what == "locks";
      plan.broken.forgery.hide_losses |= what == "losses";
    } else if (arg == "--seconds") {
      plan.length = std::chrono::seconds{number()};
    } else if (arg == "--verbose") {
      plan.verbose = true;
    } else if (arg == "--log") {
      level = csv::log::Level::debug;
    } else {
      std::fprintf(stderr,
                   "csv_sim [--seed N] [--runs N] [--seconds N] [--voting] [--mappings] [--calm] "
                   "[--lie N] [--break "
                   "fences|gates|coordinators-gates|pages|recalls|unwatches|appends|locks|losses] "
                   "[--verbose] [--log]\n");
      return 2;
    }
  }
  csv::log::set_up("csv_sim", level);
  int failed = 0;
  for (auto end = seed + runs; seed < end; ++seed) {
    auto result = csv::sim::simulate(seed, plan);
    std::printf(
        "seed %llu digest %016llx %s: %llu operations (%llu mapped), %llu faults, %llu takeovers, "
        "%llu events, "
        "%.0f s; direct %llu+%llu redirected %llu+%llu recalls %llu eio %llu enospc %llu losses "
        "%llu%s\n",
        static_cast<unsigned long long>(seed), static_cast<unsigned long long>(result.digest),
        result.setting.c_str(), static_cast<unsigned long long>(result.counts.operations),
        static_cast<unsigned long long>(result.counts.loads + result.counts.stores),
        static_cast<unsigned long long>(result.faults),
        static_cast<unsigned long long>(result.takeovers),
        static_cast<unsigned long long>(result.events),
        static_cast<double>(result.ended.count()) / 1e9,
        static_cast<unsigned long long>(result.mounts.direct_reads),
        static_cast<unsigned long long>(result.mounts.direct_writes),
        static_cast<unsigned long long>(result.mounts.redirected_reads),
        static_cast<unsigned long long>(result.mounts.redirected_writes),
        static_cast<unsigned long long>(result.mounts.recalls),
        static_cast<unsigned long long>(result.counts.eio),
        static_cast<unsigned long long>(result.counts.no_space),
        static_cast<unsigned long long>(result.counts.losses),
        result.undecided ? " undecided" : "");
    if (!result.violation.empty()) {
      ++failed;
      std::printf("seed %llu FAILED: %s\n", static_cast<unsigned long long>(seed),
                  result.violation.c_str());
    }
    std::fflush(stdout);
  }
  return failed == 0 ? 0 : 1;
}
