#include "tests/simulation/simulation.h"

#include <sqlite3.h>
#include <sys/stat.h>

#include <algorithm>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"
#include "tests/simulation/locks.h"

namespace csv::sim {
namespace {

/// Breaks one thing after the other, and mends it again.
class Saboteur {
 public:
  Saboteur(World& world, Cluster& cluster, Workload& workload, const Plan& plan)
      : world_{world}, cluster_{cluster}, workload_{workload}, plan_{plan} {
    auto add = [this](bool wanted, void (Saboteur::*fault)()) {
      if (wanted) faults_.push_back(fault);
    };
    add(plan.crash_csvd, &Saboteur::crash_coordinator);
    add(plan.crash_csvd, &Saboteur::crash_any_csvd);
    add(plan.crash_mount, &Saboteur::crash_mount);
    add(plan.crash_node, &Saboteur::crash_node);
    add(plan.break_connections, &Saboteur::break_connections);
    add(plan.part_network, &Saboteur::part_network);
    add(plan.slow_network, &Saboteur::slow_network);
    add(plan.lose_paths, &Saboteur::lose_path);
    add(plan.freeze, &Saboteur::freeze);
    add(plan.move, &Saboteur::move);
    add(plan.move, &Saboteur::take_away);
    add(plan.isolate, &Saboteur::isolate_coordinator);
    add(plan.fill_lun, &Saboteur::fill_lun);
    add(plan.lose_power, &Saboteur::lose_power);
    add(plan.fill, &Saboteur::fill);
    bool witness = cluster.witness.options().kind != cluster::WitnessKind::none;
    add(plan.split && plan.voting, &Saboteur::split);
    add(plan.lose_witness && witness, &Saboteur::lose_witness);
    add(plan.split && witness, &Saboteur::split);
    add(plan.in_turn && witness, &Saboteur::end_in_turn);
    if (!faults_.empty()) next();
  }

  /// No more faults, and no more repairs.
  void halt() {
    stopped_ = true;
    repairs_.clear();
  }
  /// No more faults; what is broken is mended.
  void stop() {
    stopped_ = true;
    while (!repairs_.empty()) {
      auto repair = std::move(repairs_.begin()->second);
      repairs_.erase(repairs_.begin());
      repair();
    }
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      if (!cluster_.powered(node)) cluster_.power_on(node);
      cluster_.start_csvd(node);
      cluster_.start_mount(node);
    }
  }
  [[nodiscard]] std::uint64_t count() const { return count_; }

 private:
  std::size_t any_node() { return world_.random().below(cluster_.size()); }
  void say(std::string what) {
    ++count_;
    world_.note("FAULT " + what);
  }
  void next() {
    world_.after(world_.between(plan_.least_calm, plan_.most_calm), [this] {
      if (stopped_) return;
      (this->*faults_[world_.random().below(faults_.size())])();
      next();
    });
  }
  void mend_after(Duration delay, std::function<void()> repair) {
    auto number = next_repair_++;
    repairs_[number] = std::move(repair);
    world_.after(delay, [this, number] {
      auto found = repairs_.find(number);
      if (found == repairs_.end()) return;
      auto mend = std::move(found->second);
      repairs_.erase(found);
      mend();
    });
  }

  void crash_csvd(std::size_t node) {
    if (cluster_.csvd(node) == nullptr) return;
    say(fmt::format("csvd of node{} crashes", node + 1));
    cluster_.kill_csvd(node);
    mend_after(world_.between(50ms, 6s), [this, node] { cluster_.start_csvd(node); });
    if (!plan_.voting && world_.random().chance(1, 2)) {
      auto other = any_node();
      if (cluster_.csvd(other) != nullptr) cluster_.csvd(other)->start_volume();
    }
  }
  void crash_coordinator() {
    if (auto node = cluster_.coordinator()) crash_csvd(*node);
  }
  void crash_any_csvd() { crash_csvd(any_node()); }
  void crash_mount() {
    auto node = any_node();
    if (cluster_.mount(node) == nullptr) return;
    say(fmt::format("mount of node{} crashes", node + 1));
    cluster_.kill_mount(node);
    mend_after(world_.between(50ms, 8s), [this, node] { cluster_.start_mount(node); });
  }
  void crash_node() {
    auto node = any_node();
    if (!cluster_.powered(node)) return;
    say(fmt::format("node{} loses power", node + 1));
    cluster_.power_off(node);
    mend_after(world_.between(1s, 15s), [this, node] {
      if (!cluster_.powered(node)) cluster_.power_on(node);
    });
  }
  void break_connections() {
    auto node = any_node();
    say(fmt::format("connections of node{} break", node + 1));
    for (auto left = 1 + world_.random().below(4); left > 0; --left) {
      cluster_.network.break_one(Cluster::id(node));
    }
  }
  void part_network() {
    auto from = any_node(), to = any_node();
    if (from == to) return;
    bool both = world_.random().chance(2, 3);
    say(fmt::format("network parts node{} {} node{}", from + 1, both ? "and" : "to", to + 1));
    auto a = Cluster::id(from), b = Cluster::id(to);
    // The engine has networks of its own, which may part alone, or be whole alone.
    auto which = plan_.voting ? world_.random().below(4) : 0;
    if (which != 1) {
      cluster_.network.part(a, b);
      if (both) cluster_.network.part(b, a);
    }
    if (which != 2) cluster_.group.part(a, b);
    mend_after(world_.between(200ms, 14s), [this, a, b] {
      cluster_.network.join(a, b);
      cluster_.network.join(b, a);
      cluster_.group.join(a, b);
    });
  }
  void slow_network() {
    auto from = any_node(), to = any_node();
    auto extra = world_.between(1ms, world_.random().chance(1, 4) ? 2s : 200ms);
    say(fmt::format("network from node{} to node{} is slow by {} ms", from + 1, to + 1,
                    extra / 1ms));
    auto a = Cluster::id(from), b = Cluster::id(to);
    cluster_.network.slow(a, b, extra);
    mend_after(world_.between(500ms, 6s), [this, a, b] { cluster_.network.slow(a, b, {}); });
  }
  void lose_path() {
    auto node = any_node();
    if (!cluster_.powered(node)) return;
    say(fmt::format("node{} loses its path to the LUN", node + 1));
    cluster_.disk->set_reachable(Cluster::initiator(node), false);
    mend_after(world_.between(10ms, 8s), [this, node] {
      if (cluster_.powered(node)) {
        cluster_.disk->set_reachable(Cluster::initiator(node), true);
      }
    });
  }
  void fill_lun() {
    say("the thin LUN is full");
    cluster_.weather.full = true;
    mend_after(world_.between(200ms, 8s), [this] { cluster_.weather.full = false; });
  }
  void freeze() {
    auto node = any_node();
    bool mount = world_.random().chance(1, 2);
    auto length = world_.between(100ms, world_.random().chance(1, 3) ? 20s : 2s);
    Process* process = nullptr;
    if (mount && cluster_.mount(node) != nullptr) process = &cluster_.mount(node)->process();
    if (!mount && cluster_.csvd(node) != nullptr) process = &cluster_.csvd(node)->process();
    if (process == nullptr) return;
    say(fmt::format("{} stands still for {} ms", process->loop->name(), length / 1ms));
    process->loop->freeze(world_.now() + length);
  }
  void move() {
    auto from = cluster_.coordinator();
    auto to = any_node();
    if (!from || cluster_.csvd(to) == nullptr) return;
    say(fmt::format("the volume moves from node{} to node{}", *from + 1, to + 1));
    if (plan_.voting) return cluster_.csvd(to)->start_volume();
    cluster_.csvd(*from)->stop_volume([this, to] {
      if (cluster_.csvd(to) != nullptr) cluster_.csvd(to)->start_volume();
    });
  }
  void take_away() {
    auto to = any_node();
    if (cluster_.csvd(to) == nullptr || cluster_.coordinator() == to) return;
    say(fmt::format("node{} takes the volume away", to + 1));
    cluster_.csvd(to)->start_volume();
  }

  /// The target is gone for a moment with all sessions, without APTPL all reservations, and with a
  /// volatile cache whatever of it nobody had flushed.
  void lose_power() {
    say("the target loses power");
    if (cluster_.disk->options().write_cache) workload_.power_loss();
    cluster_.power_loss();
  }
  /// Somebody takes all space there is, and gives it back after a while.
  void fill() {
    auto node = any_node();
    auto* csvfs = cluster_.mount(node);
    if (csvfs == nullptr) return;
    say(fmt::format("the volume is filled on node{}", node + 1));
    csvfs->process().loop->enter([&] {
      csvfs->programs().spawn(
          hoard(csvfs->mount(), *csvfs->process().loop, ++hoards_, world_.between(100ms, 4s)));
    });
  }
  static Task<void> hoard(Mount& mount, Loop& loop, std::uint64_t number, Duration keep) {
    auto name = fmt::format("hoard{}", number);
    wire::Make what;
    what.set_parent(raw(kRootInode));
    what.set_name(name);
    what.set_mode(S_IFREG | 0600);
    auto made = co_await mount.create(Caller{}, std::move(what), {});
    if (!made) co_return;
    // In ever smaller pieces, until nothing fits.
    std::uint64_t at = 0;
    for (auto piece = 256ull << 20; piece >= 4096;) {
      wire::Allocate more;
      more.set_offset(at);
      more.set_length(piece);
      auto done = co_await mount.allocate(made->handle, std::move(more));
      if (done) {
        at += piece;
      } else if (done.error() == std::errc::no_space_on_device) {
        piece /= 4;
      } else {
        break;  // Its session has ended.
      }
    }
    co_await sleep(loop, keep);
    co_await mount.close(made->handle);
    (void)co_await mount.unlink(kRootInode, name, false);
  }

  void cut(std::size_t one, std::size_t other, bool off) {
    auto a = Cluster::id(one), b = Cluster::id(other);
    off ? cluster_.network.part(a, b) : cluster_.network.join(a, b);
    off ? cluster_.network.part(b, a) : cluster_.network.join(b, a);
    off ? cluster_.group.part(a, b) : cluster_.group.join(a, b);
  }
  /// Two sides that do not hear each other; perhaps halves.
  void split() {
    std::vector<bool> side(cluster_.size());
    std::string text;
    for (std::size_t node = 0; node < side.size(); ++node) {
      side[node] = world_.random().chance(1, 2);
      if (side[node]) text += fmt::format(" node{}", node + 1);
    }
    say("the network falls into two, one of them:" + text);
    auto each = [this, side](bool off) {
      for (std::size_t one = 0; one < side.size(); ++one)
        for (std::size_t other = one + 1; other < side.size(); ++other)
          if (side[one] != side[other]) cut(one, other, off);
    };
    each(true);
    mend_after(world_.between(1s, 14s), [each] { each(false); });
  }
  void lose_witness() {
    if (world_.random().chance(1, 4)) {
      say("the witness restarts");
      return cluster_.witness.power_loss();
    }
    std::vector<std::size_t> who;
    bool all = world_.random().chance(1, 2);
    auto one = any_node();
    for (std::size_t node = 0; node < cluster_.size(); ++node)
      if (all || node == one) who.push_back(node);
    say(all ? std::string{"the witness is gone"}
            : fmt::format("node{} loses its path to the witness", one + 1));
    auto reach = [this, who](bool yes) {
      for (auto node : who)
        if (cluster_.powered(node))
          cluster_.witness.set_reachable(Cluster::id(node), Cluster::initiator(node), yes);
    };
    reach(false);
    mend_after(world_.between(200ms, 14s), [reach] { reach(true); });
  }
  /// Whoever comes back first has missed what the others did meanwhile.
  void end_in_turn() {
    std::vector<std::size_t> order;
    for (std::size_t node = 0; node < cluster_.size(); ++node)
      if (cluster_.powered(node)) order.push_back(node);
    if (order.size() < 2) return;
    std::rotate(order.begin(),
                order.begin() + static_cast<std::ptrdiff_t>(world_.random().below(order.size())),
                order.end());
    say(fmt::format("the nodes end in turn, node{} first", order.front() + 1));
    auto end = Duration::zero();
    for (auto node : order) {
      world_.after(end, [this, node] {
        if (!stopped_ && cluster_.powered(node)) cluster_.power_off(node);
      });
      // Time for the others to go on without it.
      end += world_.between(500ms, 8s);
    }
    for (auto node : order) {
      mend_after(end, [this, node] {
        if (!cluster_.powered(node)) cluster_.power_on(node);
      });
      end += world_.between(100ms, 8s);
    }
  }

  /// It goes on serving its own node's mount, as far as it knows, while another takes the volume.
  void isolate_coordinator() {
    auto node = cluster_.coordinator();
    if (!node) return;
    say(fmt::format("node{}, which coordinates, is cut off", *node + 1));
    auto each = [this, node](bool off) {
      for (std::size_t other = 0; other < cluster_.size(); ++other)
        if (other != *node) cut(*node, other, off);
    };
    each(true);
    mend_after(world_.between(1s, 14s), [each] { each(false); });
    if (plan_.voting) return;  // the others see to it
    auto to = (*node + 1 + world_.random().below(cluster_.size() - 1)) % cluster_.size();
    // The other nodes' mounts leave a silent coordinator after 5 s, and then wait for the next.
    world_.after(world_.random().chance(1, 2) ? world_.between(0ms, 6s) : world_.between(5s, 9s),
                 [this, to] {
                   if (!stopped_ && cluster_.csvd(to) != nullptr) cluster_.csvd(to)->start_volume();
                 });
  }

  World& world_;
  Cluster& cluster_;
  Workload& workload_;
  const Plan& plan_;
  std::vector<void (Saboteur::*)()> faults_;
  std::map<std::uint64_t, std::function<void()>> repairs_;
  std::uint64_t next_repair_ = 1, count_ = 0, hoards_ = 0;
  bool stopped_ = false;
};

ClusterOptions options_for(Random& random, const Plan& plan, std::string& setting) {
  ClusterOptions options;
  options.nodes = 2 + random.below(plan.voting ? 4 : 3);
  options.voting = plan.voting;
  bool like_tgt = random.chance(1, 2), large_blocks = random.chance(1, 2);
  auto& disk = options.disk;
  bool like_lio = !like_tgt && large_blocks;
  if (like_tgt) disk = iscsi::RamDiskOptions::like_tgt();
  if (like_lio) disk = iscsi::RamDiskOptions::like_lio();
  std::uint32_t block = large_blocks ? 4096 : 512;
  disk.geometry = {
      .block_size = block, .block_count = (640ull << 20) / block, .physical_block_size = 4096};
  disk.write_cache = random.chance(1, 2);
  disk.fua = random.chance(1, 2);
  disk.unmap_zeroes = random.chance(1, 2);
  disk.max_transfer = random.chance(1, 2) ? 1 << 20 : 256 << 10;
  bool used = random.chance(1, 2);
  if (used) disk.found = std::byte{0xa5};
  std::string witness;
  if (plan.voting && plan.witness && random.chance(1, 2)) {
    auto& its = options.witness;
    its.kind = random.chance(2, 3) ? cluster::WitnessKind::disk : cluster::WitnessKind::share;
    its.only = random.chance(1, 4);
    its.disk = disk;
    // Mostly such that there can be halves.
    if (random.chance(3, 4)) options.nodes = random.chance(1, 2) ? 2 : 4;
    witness =
        fmt::format(", {} witness{}", its.kind == cluster::WitnessKind::disk ? "disk" : "share",
                    its.only ? " alone" : "");
  }
  options.broken = plan.broken;
  options.weather.lie_in = plan.lie_in;
  if (plan.lose_paths) {
    options.weather.stall_in = random.chance(1, 2) ? random.chance(1, 3) ? 600 : 3000 : 0;
    options.weather.lost_answer_in = random.chance(1, 2) ? 5000 : 0;
  }
  setting =
      fmt::format("{} nodes, {} target, blocks of {}, {}{}{}{}", options.nodes,
                  like_tgt   ? "plain"
                  : like_lio ? "LIO's"
                             : "full",
                  block, disk.write_cache ? "volatile cache" : "no cache",
                  disk.write_cache && disk.fua ? " with FUA" : "", used ? ", used" : "", witness);
  return options;
}

void add(MountCounters& sum, const MountCounters& one) {
  sum.operations += one.operations;
  sum.direct_reads += one.direct_reads;
  sum.direct_read_bytes += one.direct_read_bytes;
  sum.direct_writes += one.direct_writes;
  sum.direct_write_bytes += one.direct_write_bytes;
  sum.redirected_reads += one.redirected_reads;
  sum.redirected_read_bytes += one.redirected_read_bytes;
  sum.redirected_writes += one.redirected_writes;
  sum.redirected_write_bytes += one.redirected_write_bytes;
  sum.requests += one.requests;
  sum.reconnects += one.reconnects;
  sum.recalls += one.recalls;
  sum.readmissions += one.readmissions;
  sum.stale_commits += one.stale_commits;
}

/// The acts of a run, in order. Each waits for what must come true, within a limit.
class Run {
 public:
  Run(std::uint64_t seed, const Plan& plan)
      : plan_{plan},
        world_{seed},
        workload_{world_,
                  cluster_,
                  {.most_thinking = world_.between(5ms, 40ms), .mappings = plan.mappings}},
        locks_{world_, cluster_, workload_},
        cluster_{world_, options_for(world_.random(), plan, setting_)} {
    world_.set_verbose(plan.verbose);
    world_.note(setting_);
    cluster_.on_violation = [this](std::string what) { workload_.fail(std::move(what)); };
  }
  ~Run() {
    if (saboteur_) saboteur_->halt();
  }

  Result play() {
    cluster_.format();
    bool well = come_up() && work() && calm_down() && look_back() && come_down() && check();
    (void)well;
    Result result;
    result.violation = workload_.violation();
    result.digest = world_.digest();
    result.ended = world_.now();
    result.events = world_.events_run();
    if (saboteur_) result.faults = saboteur_->count();
    result.takeovers = cluster_.takeovers;
    result.undecided = workload_.undecided();
    result.counts = workload_.counts;
    result.locks = locks_.granted;
    result.by_witness = cluster_.sides.by_witness();
    result.setting = setting_;
    for (const auto& each : cluster_.counters) add(result.mounts, each);
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      if (cluster_.mount(node) != nullptr) {
        add(result.mounts, cluster_.mount(node)->mount().counters());
      }
    }
    return result;
  }

 private:
  bool wait(const char* what, Duration limit, Function<bool()> until) {
    world_.run([&] { return !workload_.violation().empty() || until(); }, world_.now() + limit);
    if (!workload_.violation().empty()) return false;
    if (until()) return true;
    std::string text = fmt::format("after {} s still waiting: {}", limit / 1s, what);
    for (const auto& each : workload_.stuck()) text += "\n  " + each;
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      if (auto* mount = cluster_.mount(node)) {
        auto state = mount->mount().state();
        text += fmt::format("\n  node{} mount mode={} session={} {}", node + 1,
                            static_cast<int>(state.mode), raw(state.session), state.reason);
      }
      if (auto* csvd = cluster_.csvd(node)) {
        text += fmt::format("\n  node{} csvd state={} {}", node + 1,
                            static_cast<int>(csvd->state()), csvd->reason());
      }
    }
    workload_.fail(std::move(text));
    return false;
  }
  bool all_direct() const {
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      auto* csvfs = cluster_.mount(node);
      if (csvfs == nullptr || csvfs->mount().state().mode != AccessMode::direct) return false;
    }
    return true;
  }
  /// Runs one of the workload's tasks on a node's mount.
  template <typename F>
  bool have(const char* what, Duration limit, std::size_t node, F task) {
    return have_of(workload_, what, limit, node, task);
  }
  template <typename F>
  bool have_locks(const char* what, Duration limit, std::size_t node, F task) {
    return have_of(locks_, what, limit, node, task);
  }
  template <typename W, typename F>
  bool have_of(W& workload, const char* what, Duration limit, std::size_t node, F task) {
    bool done = false;
    auto* csvfs = cluster_.mount(node);
    csvfs->process().loop->enter(
        [&] { csvfs->programs().spawn((workload.*task)(node, [&done] { done = true; })); });
    return wait(what, limit, [&] { return done; });
  }

  bool come_up() {
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      cluster_.start_csvd(node);
      cluster_.start_mount(node);
    }
    cluster_.govern();
    if (!wait("all mounts usable", 60s, [this] { return all_direct(); })) return false;
    if (!have("the playgrounds", 60s, 0, &Workload::set_up)) return false;
    if (!have_locks("files to lock", 60s, 0, &LockWorkload::set_up)) return false;
    auto begin = [this](std::size_t node) {
      workload_.begin(node);
      locks_.begin(node);
    };
    cluster_.on_mounted = begin;
    cluster_.on_mount_dies = [this](std::size_t node, const std::function<void()>& kill) {
      locks_.dies([&] { workload_.dies(node, kill); });
    };
    for (std::size_t node = 0; node < cluster_.size(); ++node) begin(node);
    return true;
  }
  bool work() {
    saboteur_ = std::make_unique<Saboteur>(world_, cluster_, workload_, plan_);
    auto end = world_.now() + plan_.length;
    // Between the events, now and then, what dead mounts left is looked after.
    for (auto until = world_.now(); until < end && workload_.violation().empty();) {
      until = std::min(until + 500ms, end);
      world_.run([this] { return !workload_.violation().empty(); }, until);
      world_.at(until, [] {});
      workload_.settle_what_is_over();
      locks_.judge_again();
    }
    if (!workload_.violation().empty()) return false;
    saboteur_->stop();
    return true;
  }
  bool calm_down() {
    cluster_.weather.stall_in = cluster_.weather.lost_answer_in = 0;
    workload_.wind_down();
    locks_.wind_down();
    if (!wait("programs to end", 180s, [this] { return workload_.running() == 0; })) return false;
    if (!wait("whoever waits for a lock", 180s, [this] { return locks_.running() == 0; }))
      return false;
    if (!wait("all mounts usable again", 120s, [this] { return all_direct(); })) return false;
    return wait("the dead to be over", 120s, [this] {
      workload_.settle_what_is_over();
      return workload_.unsettled() == 0;
    });
  }
  bool look_back() {
    locks_.judge_again();
    if (!have_locks("all locks", 60s, 0, &LockWorkload::all_is_free)) return false;
    world_.note(fmt::format("locks: {} granted, {} refused, {} interrupted, {} deadlocks, {} lost",
                            locks_.granted, locks_.refused, locks_.interrupted, locks_.deadlocks,
                            locks_.lost));
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      if (!have("everything to be read", 120s, node, &Workload::look_at_everything)) return false;
    }
    return world_.random().chance(1, 2) ||
           have("everything to be removed", 120s, 0, &Workload::remove_everything);
  }
  bool come_down() {
    std::size_t left = cluster_.size();
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      cluster_.mount(node)->end([&left] { --left; });
    }
    if (!wait("mounts to end", 60s, [&left] { return left == 0; })) return false;
    cluster_.stop_governing();
    if (auto node = cluster_.coordinator()) {
      bool stopped = false;
      cluster_.csvd(*node)->stop_volume([&stopped] { stopped = true; });
      if (!wait("the volume to be given up", 60s, [&stopped] { return stopped; })) return false;
    }
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      cluster_.kill_mount(node);
      cluster_.kill_csvd(node);
    }
    return true;
  }
  bool check() {
    auto report = cluster_.check();
    if (!report) {
      workload_.fail("check: " + report.error().message());
      return false;
    }
    world_.note(fmt::format("check: {} inodes, {} extents, {} used blocks", report->inodes,
                            report->extents, report->used_blocks));
    for (const auto& problem : report->problems) workload_.fail("check: " + problem);
    return workload_.violation().empty();
  }

  const Plan& plan_;
  World world_;
  std::string setting_;
  // Outlive the cluster, whose end they have a part in.
  std::unique_ptr<Saboteur> saboteur_;
  Workload workload_;
  LockWorkload locks_;
  Cluster cluster_;
};

}  // namespace

Plan Plan::mixed(std::uint64_t seed) const {
  Random dice{seed + 0x6d69786564ull};
  auto plan = *this;
  plan.voting = seed % 3 == 1;
  plan.mappings = seed % 3 == 2;
  plan.length = dice.chance(1, 4) ? 20s : std::chrono::seconds{3 + dice.below(9)};
  return plan;
}

Result simulate(std::uint64_t seed, const Plan& plan) {
  // SQLite's own random numbers must follow from the seed too (it has one generator a process).
  sqlite3_initialize();
  sqlite3_test_control(SQLITE_TESTCTRL_PRNG_SEED, static_cast<int>(seed | 1), nullptr);
  return Run{seed, plan}.play();
}

}  // namespace csv::sim
