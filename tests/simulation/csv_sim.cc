// csv_sim --seed N [--runs M] [--voting] [--mappings] [--mixed] [--jobs N] ...: lives of simulated
// clusters (docs/testing.md).

#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <map>
#include <new>
#include <string>
#include <string_view>

#include "csvfs/base/log.h"
#include "tests/simulation/simulation.h"

namespace {

using csv::sim::Plan;
using csv::sim::Result;
using Seed = std::uint64_t;

unsigned long long wide(std::uint64_t number) { return number; }

struct Wish {
  Seed seed = 1, runs = 1;
  Plan plan;
  bool mixed = false, brief = false;
  unsigned jobs = 0;           ///< Processes; 0: this one alone.
  std::uint64_t within = 0;    ///< Seconds after which no life begins. 0: no limit.
  const char* keep = nullptr;  ///< The file that ways to replay failures are added to.
  std::string narrowed;        ///< Words that a replay needs, too.

  [[nodiscard]] Plan plan_of(Seed seed_) const { return mixed ? plan.mixed(seed_) : plan; }
  [[nodiscard]] std::string replay(Seed seed_) const {
    auto its = plan_of(seed_);
    std::string command = "csv_sim --seed " + std::to_string(seed_);
    if (its.voting) command += " --voting";
    if (its.mappings) command += " --mappings";
    if (its.volumes > 1) command += " --volumes " + std::to_string(its.volumes);
    command += " --seconds " + std::to_string(its.length / std::chrono::seconds{1});
    return command + narrowed;
  }
};

void say(Seed seed, const Result& result) {
  std::printf(
      "seed %llu digest %016llx %s: %llu operations (%llu mapped, %llu clones), %llu faults, %llu "
      "takeovers, "
      "%llu events, "
      "%.0f s; direct %llu+%llu redirected %llu+%llu recalls %llu eio %llu enospc %llu losses "
      "%llu resumed %llu by witness %llu%s\n",
      wide(seed), wide(result.digest), result.setting.c_str(), wide(result.counts.operations),
      wide(result.counts.loads + result.counts.stores), wide(result.counts.clones),
      wide(result.faults), wide(result.takeovers), wide(result.events),
      static_cast<double>(result.ended.count()) / 1e9, wide(result.mounts.direct_reads),
      wide(result.mounts.direct_writes), wide(result.mounts.redirected_reads),
      wide(result.mounts.redirected_writes), wide(result.mounts.recalls), wide(result.counts.eio),
      wide(result.counts.no_space), wide(result.counts.losses), wide(result.counts.resumed),
      wide(result.by_witness), result.undecided ? " undecided" : "");
}

void say_failed(const Wish& wish, Seed seed, const std::string& why) {
  std::printf("seed %llu FAILED: %s\n  again: %s\n", wide(seed), why.c_str(),
              wish.replay(seed).c_str());
  std::fflush(stdout);
  if (wish.keep == nullptr) return;
  if (auto* file = std::fopen(wish.keep, "a")) {
    std::fprintf(file, "%s  # %s\n", wish.replay(seed).c_str(),
                 why.substr(0, why.find('\n')).c_str());
    std::fclose(file);
  }
}

bool live(const Wish& wish, Seed seed) {
  auto result = csv::sim::simulate(seed, wish.plan_of(seed));
  if (!wish.brief) say(seed, result);
  std::fflush(stdout);
  if (result.violation.empty()) return true;
  say_failed(wish, seed, result.violation);
  return false;
}

// ------------------------------------------------------------------------- several processes

constexpr unsigned kMostJobs = 64;
/// In memory that all processes share.
struct Shared {
  std::atomic<std::uint64_t> next{0}, lived{0}, failed{0};
  std::atomic<bool> stop{false};
  std::atomic<Seed> current[kMostJobs] = {};
};
Shared* shared = nullptr;

/// A life that goes on after this much of a processor hangs.
constexpr long kMostOfALife = 300;

void work(const Wish& wish, unsigned job, std::chrono::steady_clock::time_point end) {
  while (!shared->stop && std::chrono::steady_clock::now() < end) {
    auto number = shared->next++;
    if (number >= wish.runs) return;
    shared->current[job] = wish.seed + number;
    itimerval limit{};
    limit.it_value.tv_sec = kMostOfALife;
    setitimer(ITIMER_PROF, &limit, nullptr);
    if (!live(wish, wish.seed + number)) ++shared->failed;
    ++shared->lived;
  }
}

/// Seeds in the order of their numbers, to whoever is free. One that brings its process down has
/// failed, and another process goes on.
int farm(const Wish& wish) {
  auto* memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 2;
  shared = new (memory) Shared;
  struct sigaction stop {};
  stop.sa_handler = [](int) { shared->stop = true; };
  stop.sa_flags = SA_RESTART;
  sigaction(SIGINT, &stop, nullptr);
  sigaction(SIGTERM, &stop, nullptr);
  auto began = std::chrono::steady_clock::now();
  auto end = wish.within == 0 ? std::chrono::steady_clock::time_point::max()
                              : began + std::chrono::seconds{wish.within};
  std::map<pid_t, unsigned> workers;
  auto start = [&](unsigned job) {
    std::fflush(stdout);
    auto pid = fork();
    if (pid == 0) {
      work(wish, job, end);
      std::fflush(stdout);
      _exit(0);
    }
    if (pid > 0) workers[pid] = job;
  };
  for (unsigned job = 0; job < wish.jobs; ++job) start(job);
  while (!workers.empty()) {
    int status = 0;
    auto pid = wait(&status);
    auto found = workers.find(pid);
    if (found == workers.end()) continue;
    auto job = found->second;
    workers.erase(found);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
    ++shared->failed;
    ++shared->lived;
    auto signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    say_failed(wish, shared->current[job],
               signal == SIGPROF ? "it does not end"
                                 : "its process ended by signal " + std::to_string(signal));
    start(job);
  }
  rusage used{};
  getrusage(RUSAGE_CHILDREN, &used);
  auto cpu = static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec);
  auto lived = shared->lived.load();
  std::printf(
      "%llu lives in %lld s (%.0f s of processors, %.2f lives a second of them), "
      "%llu failed\n",
      wide(lived),
      static_cast<long long>((std::chrono::steady_clock::now() - began) / std::chrono::seconds{1}),
      cpu, static_cast<double>(lived) / std::max(cpu, 1.0), wide(shared->failed));
  bool all = lived == wish.runs || shared->stop;
  if (!all) std::printf("FAILED: only %llu of %llu lives in time\n", wide(lived), wide(wish.runs));
  return all && shared->failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Wish wish;
  auto& plan = wish.plan;
  auto level = csv::log::Level::error;
  for (int i = 1; i < argc; ++i) {
    std::string_view arg = argv[i];
    if (arg == "--calm") wish.narrowed += " --calm";
    for (auto narrows : {"--only", "--break", "--lie"})
      if (arg == narrows && i + 1 < argc)
        wish.narrowed += std::string{" "} + narrows + " " + argv[i + 1];
    auto number = [&] { return ++i < argc ? std::strtoull(argv[i], nullptr, 0) : 0; };
    if (arg == "--seed") {
      wish.seed = number();
    } else if (arg == "--runs") {
      wish.runs = number();
    } else if (arg == "--mixed") {
      wish.mixed = true;
    } else if (arg == "--brief") {
      wish.brief = true;
    } else if (arg == "--jobs") {
      wish.jobs = static_cast<unsigned>(std::min<std::uint64_t>(number(), kMostJobs));
    } else if (arg == "--within") {
      wish.within = number();
    } else if (arg == "--keep") {
      wish.keep = ++i < argc ? argv[i] : nullptr;
    } else if (arg == "--calm") {
      auto each = plan;
      plan = csv::sim::Plan::calm();
      plan.voting = each.voting;
      plan.volumes = each.volumes;
      plan.mappings = each.mappings;
    } else if (arg == "--mappings") {
      plan.mappings = true;
    } else if (arg == "--voting") {
      plan.voting = true;
    } else if (arg == "--volumes") {
      plan.volumes = std::clamp<std::uint64_t>(number(), 1, 4);
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
      plan.lose_all_paths = what == "lose-all-paths";
      plan.freeze = what == "freeze";
      plan.move = what == "move";
      plan.isolate = what == "isolate";
      plan.fill_lun = what == "fill-lun";
      plan.lose_power = what == "lose-power";
      plan.fill = what == "fill";
      plan.pause = what == "pause";
      plan.set_clock = what == "clock";
      plan.fill_disk = what == "fill-disk";
      plan.split = what == "split" || what == "witness";
      plan.lose_witness = plan.in_turn = what == "witness";
      plan.foreign_in = what == "foreign" ? 1 : 0;
      plan.fail_flushes = what == "fail-flushes";
      plan.force = what == "force";
      plan.length = each.length;
      plan.voting = each.voting;
      plan.volumes = each.volumes;
      plan.mappings = each.mappings;
    } else if (arg == "--lie") {
      plan.lie_in = number();
    } else if (arg == "--break") {
      std::string_view what = ++i < argc ? argv[i] : "";
      plan.broken.unfenced |= what == "fences";
      plan.broken.mounts_gate_stays_open |= what == "gates";
      plan.broken.csvds_gate_stays_open |= what == "coordinators-gates";
      plan.broken.kernels_keep_pages |= what == "pages";
      plan.broken.zeros_not_made |= what == "zeros";
      plan.broken.unmaps_not_awaited |= what == "unmaps";
      plan.broken.flushes_lie |= what == "flushes";
      plan.broken.witness.held_by_all |= what == "witness";
      plan.broken.witness.forgets |= what == "witness-memory";
      plan.broken.forgery.answer_recalls |= what == "recalls";
      plan.broken.forgery.double_appends |= what == "appends";
      plan.broken.forgery.answer_unwatches |= what == "unwatches";
      plan.broken.forgery.hide_locks |= what == "locks";
      plan.broken.forgery.hide_losses |= what == "losses";
      constexpr std::string_view kMisheard[] = {"owners",       "times", "nameless", "devices",
                                                "access-lists", "seeks", "cookies",  "space"};
      if (auto* which = std::find(std::begin(kMisheard), std::end(kMisheard), what);
          which != std::end(kMisheard))
        plan.broken.forgery.misheard = static_cast<csv::sim::Network::Forgery::Misheard>(
            1 + std::distance(std::begin(kMisheard), which));
    } else if (arg == "--seconds") {
      plan.length = std::chrono::seconds{number()};
    } else if (arg == "--verbose") {
      plan.verbose = true;
    } else if (arg == "--log") {
      level = csv::log::Level::debug;
    } else {
      std::fprintf(
          stderr,
          "csv_sim [--seed N] [--runs N] [--seconds N] [--volumes N] [--voting] [--mappings] "
          "[--mixed] [--calm] "
          "[--jobs N] [--within SECONDS] [--keep FILE] [--brief] "
          "[--lie N] [--break "
          "fences|gates|coordinators-gates|pages|recalls|unwatches|appends|locks|losses|zeros|"
          "unmaps|flushes|witness|witness-memory|"
          "owners|times|nameless|devices|access-lists|seeks|cookies|space] "
          "[--verbose] [--log]\n");
      return 2;
    }
  }
  csv::log::set_up("csv_sim", level);
  // Buffers of a few hundred KiB come and go all the time: not to and from the kernel.
  mallopt(M_MMAP_THRESHOLD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  mallopt(M_ARENA_MAX, 1);
  if (wish.jobs > 0) return farm(wish);
  int failed = 0;
  for (auto seed = wish.seed; seed < wish.seed + wish.runs; ++seed) failed += !live(wish, seed);
  return failed == 0 ? 0 : 1;
}
