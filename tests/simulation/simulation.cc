#include "tests/simulation/simulation.h"

#include <sqlite3.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"
#include "tests/simulation/foreigner.h"
#include "tests/simulation/locks.h"

namespace csv::sim {
namespace {

/// Breaks one thing after the other, and mends it again.
class Saboteur {
 public:
  /// `lost_power`: of a volume's target, with what its cache held.
  using OfVolume = std::function<void(std::size_t)>;
  Saboteur(World& world, Cluster& cluster, const Plan& plan, OfVolume lost_power)
      : world_{world}, cluster_{cluster}, plan_{plan}, lost_power_{std::move(lost_power)} {
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
    add(plan.lose_all_paths, &Saboteur::lose_all_paths);
    add(plan.freeze, &Saboteur::freeze);
    add(plan.move, &Saboteur::move);
    add(plan.move, &Saboteur::take_away);
    add(plan.isolate, &Saboteur::isolate_coordinator);
    add(plan.fill_lun, &Saboteur::fill_lun);
    add(plan.lose_power, &Saboteur::lose_power);
    add(plan.fill, &Saboteur::fill);
    add(plan.pause, &Saboteur::pause);
    add(plan.set_clock, &Saboteur::set_clock);
    add(plan.fill_disk && plan.voting, &Saboteur::fill_disk);
    add(cluster.volume().weather.foreigners, &Saboteur::trespass);
    add(cluster.volume().weather.flushes.possible, &Saboteur::fail_flushes);
    for (std::size_t volume = 0; volume < cluster.volumes(); ++volume)
      foreigners_.push_back(std::make_unique<Foreigner>(world, cluster.volume(volume).disk));
    bool witness = cluster.witness.options().kind != cluster::WitnessKind::none;
    add(plan.split && plan.voting, &Saboteur::split);
    add(plan.lose_witness && witness, &Saboteur::lose_witness);
    add(plan.split && witness, &Saboteur::split);
    add(plan.in_turn && witness, &Saboteur::end_in_turn);
    add(plan.force && plan.voting, &Saboteur::force_quorum);
    if (!faults_.empty()) next();
  }

  /// No more faults, and no more repairs.
  void halt() {
    stopped_ = true;
    repairs_.clear();
    foreigners_.clear();
  }
  /// No more faults; what is broken is mended.
  void stop() {
    stopped_ = true;
    mend_all();
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      if (!cluster_.powered(node)) cluster_.power_on(node);
      cluster_.start_csvd(node);
      cluster_.start_mounts(node);
    }
  }
  [[nodiscard]] std::uint64_t count() const { return count_; }
  /// An administrator is at work who has made sure of what he does: nothing else is to happen.
  [[nodiscard]] bool busy() const { return forcing_.has_value(); }
  /// No foreign host is left.
  [[nodiscard]] bool alone() const {
    return std::all_of(foreigners_.begin(), foreigners_.end(),
                       [](const auto& each) { return each->gone(); });
  }

 private:
  std::size_t any_node() { return world_.random().below(cluster_.size()); }
  std::size_t any_volume() { return world_.random().below(cluster_.volumes()); }
  std::string name_of(std::size_t volume) { return cluster_.volume(volume).name; }
  void say(std::string what) {
    ++count_;
    world_.note("FAULT " + what);
  }
  void next() {
    world_.after(world_.between(plan_.least_calm, plan_.most_calm), [this] {
      if (stopped_) return;
      if (!busy()) (this->*faults_[world_.random().below(faults_.size())])();
      next();
    });
  }
  void mend_all() {
    while (!repairs_.empty()) {
      auto repair = std::move(repairs_.begin()->second);
      repairs_.erase(repairs_.begin());
      repair();
    }
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
      if (cluster_.csvd(other) != nullptr) cluster_.csvd(other)->start_volume(any_volume());
    }
  }
  void crash_coordinator() {
    if (auto node = cluster_.coordinator(any_volume())) crash_csvd(*node);
  }
  void crash_any_csvd() { crash_csvd(any_node()); }
  void crash_mount() {
    auto node = any_node(), volume = any_volume();
    if (cluster_.mount(node, volume) == nullptr) return;
    say(fmt::format("mount of {} on node{} crashes", name_of(volume), node + 1));
    cluster_.kill_mount(node, volume);
    mend_after(world_.between(50ms, 8s),
               [this, node, volume] { cluster_.start_mount(node, volume); });
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
  /// To one LUN; or, as all may be behind one adapter, to all.
  void lose_path() {
    auto node = any_node(), volume = any_volume();
    if (!cluster_.powered(node)) return;
    bool all = cluster_.volumes() > 1 && world_.random().chance(1, 4);
    say(fmt::format("node{} loses its path to {}", node + 1, all ? "all LUNs" : name_of(volume)));
    auto reach = [this, node, volume, all](bool yes) {
      for (std::size_t each = 0; each < cluster_.volumes(); ++each)
        if (all || each == volume)
          cluster_.volume(each).disk->set_reachable(Cluster::initiator(node), yes);
    };
    reach(false);
    mend_after(world_.between(10ms, 8s), [this, node, reach] {
      if (cluster_.powered(node)) reach(true);
    });
  }
  /// Nobody has a better one: all wait until the LUN is there again.
  void lose_all_paths() {
    auto volume = any_volume();
    say("all nodes lose their paths to " + name_of(volume));
    auto reach = [this, volume](bool yes) {
      for (std::size_t node = 0; node < cluster_.size(); ++node)
        if (cluster_.powered(node))
          cluster_.volume(volume).disk->set_reachable(Cluster::initiator(node), yes);
    };
    reach(false);
    mend_after(world_.between(10ms, 8s), [reach] { reach(true); });
  }
  void fill_lun() {
    auto volume = any_volume();
    say("the thin LUN of " + name_of(volume) + " is full");
    cluster_.volume(volume).weather.full = true;
    mend_after(world_.between(200ms, 8s),
               [this, volume] { cluster_.volume(volume).weather.full = false; });
  }
  void freeze() {
    auto node = any_node();
    bool mount = world_.random().chance(1, 2);
    auto length = world_.between(100ms, world_.random().chance(1, 3) ? 20s : 2s);
    Process* process = nullptr;
    auto volume = any_volume();
    if (mount && cluster_.mount(node, volume) != nullptr)
      process = &cluster_.mount(node, volume)->process();
    if (!mount && cluster_.csvd(node) != nullptr) process = &cluster_.csvd(node)->process();
    if (process == nullptr) return;
    say(fmt::format("{} stands still for {} ms", process->loop->name(), length / 1ms));
    process->loop->freeze(world_.now() + length);
  }
  void pause() {
    auto node = any_node();
    if (!cluster_.powered(node)) return;
    bool long_ = world_.random().chance(1, 4);
    auto length = long_ ? world_.between(10s, 70s) : world_.between(100ms, 6s);
    say(fmt::format("node{} is paused for {} ms", node + 1, length / 1ms));
    cluster_.pause(node, world_.now() + length);
  }
  void set_clock() {
    auto node = any_node();
    auto ahead = world_.random().chance(1, 2) ? world_.between(-60s, 60s)
                                              : world_.between(-24h * 3650, 24h * 3650);
    say(fmt::format("the wall clock of node{} is set {} s ahead", node + 1, ahead / 1s));
    cluster_.set_wall_clock(node, ahead);
  }
  void fill_disk() {
    auto node = any_node();
    say(fmt::format("the disk of node{} is full", node + 1));
    cluster_.set_disk_full(node, true);
    mend_after(world_.between(200ms, 12s), [this, node] { cluster_.set_disk_full(node, false); });
  }
  void move() {
    auto volume = any_volume();
    auto from = cluster_.coordinator(volume);
    auto to = any_node();
    if (!from || cluster_.csvd(to) == nullptr) return;
    say(fmt::format("{} moves from node{} to node{}", name_of(volume), *from + 1, to + 1));
    if (plan_.voting) return cluster_.csvd(to)->start_volume(volume);
    cluster_.csvd(*from)->stop_volume(
        [this, to, volume] {
          if (cluster_.csvd(to) != nullptr) cluster_.csvd(to)->start_volume(volume);
        },
        volume);
  }
  void take_away() {
    auto to = any_node(), volume = any_volume();
    if (cluster_.csvd(to) == nullptr || cluster_.coordinator(volume) == to) return;
    say(fmt::format("node{} takes {} away", to + 1, name_of(volume)));
    cluster_.csvd(to)->start_volume(volume);
  }

  /// The target is gone for a moment with all sessions, without APTPL all reservations, and with a
  /// volatile cache whatever of it nobody had flushed.
  void lose_power() {
    auto volume = any_volume();
    say("the target of " + name_of(volume) + " loses power");
    if (cluster_.volume(volume).disk->options().write_cache) lost_power_(volume);
    cluster_.power_loss(volume);
  }
  /// Somebody who is not of the cluster uses the LUN's keys and its reservation, and goes again.
  void trespass() {
    auto volume = any_volume();
    auto& foreigner = *foreigners_[volume];
    if (!foreigner.gone()) return;
    auto deed = static_cast<Foreigner::Deed>(world_.random().below(Foreigner::kDeeds));
    say(fmt::format("a foreign host comes to the LUN of {} and {}", name_of(volume),
                    Foreigner::name_of(deed)));
    foreigner.come(deed);
    mend_after(world_.between(10ms, world_.random().chance(1, 2) ? 500ms : 8s),
               [&foreigner] { foreigner.leave(); });
  }
  /// The target cannot write out what its cache holds. It may still have it, or not.
  void fail_flushes() {
    auto& random = world_.random();
    auto volume = any_volume();
    auto& failing = cluster_.volume(volume).weather.flushes;
    constexpr std::array kWhose = {"flush", "mount's flush", "coordinator's flush"};
    auto whose = random.below(kWhose.size());
    failing.whose = static_cast<FlushFailures::Whose>(whose);
    failing.left = random.chance(1, 4) ? 2 + static_cast<unsigned>(random.below(3)) : 1;
    failing.forgets = random.chance(1, 2);
    say(fmt::format("{} {}s of {} are to fail{}", failing.left, kWhose[whose], name_of(volume),
                    failing.forgets ? ", and what the cache held is gone" : ""));
    mend_after(world_.between(200ms, 6s), [&failing] { failing.left = 0; });
  }
  /// Somebody takes all space there is, and gives it back after a while.
  void fill() {
    auto node = any_node(), volume = any_volume();
    auto* csvfs = cluster_.mount(node, volume);
    if (csvfs == nullptr) return;
    say(fmt::format("{} is filled on node{}", name_of(volume), node + 1));
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
    // In ever smaller pieces, until nothing fits; but whoever was held up must not take in small
    // pieces whatever is given back for the rest of the life.
    auto until = loop.now() + keep;
    std::uint64_t at = 0;
    for (auto piece = 256ull << 20; piece >= 4096 && loop.now() < until;) {
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
    co_await sleep(loop, std::max(until - loop.now(), Duration{}));
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
        if (!stopped_ && !busy() && cluster_.powered(node)) cluster_.power_off(node);
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

  /// All but some nodes are lost at once, perhaps none. An administrator makes sure that they are
  /// off and the networks whole, has the rest go on, and lets the others come back when it does.
  void force_quorum() {
    auto here = any_node();
    if (!cluster_.powered(here) || cluster_.csvd(here) == nullptr) return;
    bool none = world_.random().chance(1, 5);
    std::vector<std::size_t> lost;
    for (std::size_t node = 0; node < cluster_.size(); ++node)
      if (node != here && !none && (cluster_.size() == 2 || world_.random().chance(2, 3)))
        lost.push_back(node);
    say(fmt::format("{} nodes are lost, and node{} is to go on by force", lost.size(), here + 1));
    mend_all();
    for (auto node : lost)
      if (cluster_.powered(node)) cluster_.power_off(node);
    forcing_ = Forcing{here, std::move(lost), world_.now() + 60s};
    force_after(world_.between(500ms, 12s));
  }
  void force_after(Duration delay) {
    world_.after(delay, [this] {
      if (stopped_) return;
      auto* csvd = cluster_.csvd(forcing_->here);
      if (world_.now() > forcing_->patience || csvd == nullptr) return let_come_back(false);
      csvd->force_quorum([this](bool forced) {
        if (stopped_) return;
        forced ? let_come_back(true) : force_after(1s);
      });
    });
  }
  void let_come_back(bool forced) {
    world_.note(forced ? "it goes on by force" : "it cannot go on by force");
    auto delay = world_.between(0ms, 4s);
    for (auto node : forcing_->lost) {
      world_.after(delay, [this, node] {
        if (!stopped_ && !cluster_.powered(node)) cluster_.power_on(node);
      });
      delay += world_.between(0ms, 2s);
    }
    world_.after(delay, [this] { wait_for_all(); });
  }
  /// What else is broken before they have joined could make two of them.
  void wait_for_all() {
    std::set<std::uint64_t> forced;
    bool all_formed = true;
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      if (cluster_.csvd(node) == nullptr) continue;
      const auto& replica = cluster_.csvd(node)->membership()->replica();
      bool formed = replica.state() == cluster::Replica::State::formed;
      all_formed = all_formed && formed;
      if (formed) forced.insert(replica.configuration()->tag.forced);
    }
    if ((all_formed && forced.size() <= 1) || world_.now() > forcing_->patience + 60s) {
      forcing_.reset();
      return;
    }
    world_.after(500ms, [this] {
      if (!stopped_) wait_for_all();
    });
  }

  /// It goes on serving its own node's mount, as far as it knows, while another takes the volume.
  void isolate_coordinator() {
    auto volume = any_volume();
    auto node = cluster_.coordinator(volume);
    if (!node) return;
    say(fmt::format("node{}, which coordinates {}, is cut off", *node + 1, name_of(volume)));
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
                 [this, to, volume] {
                   if (!stopped_ && cluster_.csvd(to) != nullptr)
                     cluster_.csvd(to)->start_volume(volume);
                 });
  }

  World& world_;
  Cluster& cluster_;
  const Plan& plan_;
  OfVolume lost_power_;
  std::vector<std::unique_ptr<Foreigner>> foreigners_;  ///< By volume.
  std::vector<void (Saboteur::*)()> faults_;
  std::map<std::uint64_t, std::function<void()>> repairs_;
  std::uint64_t next_repair_ = 1, count_ = 0, hoards_ = 0;
  struct Forcing {
    std::size_t here = 0;           ///< The node that goes on.
    std::vector<std::size_t> lost;  ///< Those that are off meanwhile.
    Duration patience{};
  };
  std::optional<Forcing> forcing_;
  bool stopped_ = false;
};

ClusterOptions options_for(Random& random, const Plan& plan, std::string& setting) {
  ClusterOptions options;
  options.nodes = 2 + random.below(plan.voting ? 4 : 3);
  options.volumes = plan.volumes;
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
  options.weather.foreigners = plan.foreign_in > 0 && random.chance(1, plan.foreign_in);
  options.weather.flushes.possible = plan.fail_flushes && disk.write_cache;
  // Sessions that end while their mounts have hardly been away: much goes on afterwards.
  if (random.chance(1, 2)) options.reconnect_grace = 500ms;
  auto many = plan.volumes > 1 ? fmt::format(", {} volumes", plan.volumes) : std::string{};
  setting = fmt::format(
      "{} nodes{}, {} target, blocks of {}, {}{}{}{}", options.nodes, many,
      like_tgt   ? "plain"
      : like_lio ? "LIO's"
                 : "full",
      block, disk.write_cache ? "volatile cache" : "no cache",
      disk.write_cache && disk.fua ? " with FUA" : "",
      std::string{used ? ", used" : ""} + (options.weather.foreigners ? ", foreign hosts" : ""),
      witness);
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

void add(Workload::Counts& sum, const Workload::Counts& one) {
  sum.operations += one.operations;
  sum.writes += one.writes;
  sum.reads += one.reads;
  sum.abandoned += one.abandoned;
  sum.eio += one.eio;
  sum.loads += one.loads;
  sum.stores += one.stores;
  sum.anew += one.anew;
  sum.no_space += one.no_space;
  sum.losses += one.losses;
}

/// The acts of a run, in order. Each waits for what must come true, within a limit.
class Run {
 public:
  Run(std::uint64_t seed, const Plan& plan)
      : plan_{plan}, world_{seed}, cluster_{world_, options_for(world_.random(), plan, setting_)} {
    auto thinking = world_.between(5ms, 40ms);
    for (std::size_t volume = 0; volume < cluster_.volumes(); ++volume) {
      // As much work as on one volume, spread over them.
      auto playgrounds = std::max<std::size_t>(1, 4 / cluster_.volumes());
      uses_.push_back(std::make_unique<Use>(world_, cluster_,
                                            WorkloadOptions{.volume = volume,
                                                            .playgrounds = playgrounds,
                                                            .most_thinking = thinking,
                                                            .mappings = plan.mappings}));
    }
    world_.set_verbose(plan.verbose);
    world_.note(setting_);
    cluster_.on_violation = [this](std::string what) { fail(std::move(what)); };
    cluster_.on_not_durable = [this](const Cluster::NotDurable& what) {
      uses_[what.volume]->workload.not_durable({what.mount, what.forgot, what.deferred});
    };
    cluster_.on_told_of_loss = [this](std::size_t node, std::size_t volume) {
      uses_[volume]->workload.told_of_loss(node);
    };
  }
  ~Run() {
    if (saboteur_) saboteur_->halt();
  }

  Result play() {
    cluster_.format();
    bool well = come_up() && work() && calm_down() && look_back() && come_down() && check();
    (void)well;
    Result result;
    result.violation = violation();
    result.digest = world_.digest();
    result.ended = world_.now();
    result.events = world_.events_run();
    if (saboteur_) result.faults = saboteur_->count();
    result.takeovers = cluster_.takeovers;
    for (const auto& use : uses_) {
      result.undecided = use->workload.undecided() || result.undecided;
      add(result.counts, use->workload.counts);
      result.locks += use->locks.granted;
    }
    result.by_witness = cluster_.sides.by_witness();
    result.setting = setting_;
    for (const auto& each : cluster_.counters) add(result.mounts, each);
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      for (const auto& use : uses_)
        if (auto* csvfs = cluster_.mount(node, use->volume))
          add(result.mounts, csvfs->mount().counters());
    }
    return result;
  }

 private:
  /// The use that programs make of one volume.
  struct Use {
    Use(World& world, Cluster& cluster, WorkloadOptions options)
        : volume{options.volume},
          workload{world, cluster, options},
          locks{world, cluster, workload, options.volume} {}
    std::size_t volume;
    Workload workload;
    LockWorkload locks;
  };

  [[nodiscard]] std::string violation() const {
    for (const auto& use : uses_)
      if (!use->workload.violation().empty()) return use->workload.violation();
    return "";
  }
  [[nodiscard]] bool well() const {
    return std::all_of(uses_.begin(), uses_.end(),
                       [](const auto& use) { return use->workload.violation().empty(); });
  }
  void fail(std::string what) { uses_.front()->workload.fail(std::move(what)); }
  /// Of each volume, until it is wrong.
  template <typename F>
  bool each(F what) {
    return std::all_of(uses_.begin(), uses_.end(), [&](const auto& use) { return what(*use); });
  }

  bool wait(const char* what, Duration limit, Function<bool()> until) {
    world_.run([&] { return !well() || until(); }, world_.now() + limit);
    if (!well()) return false;
    if (until()) return true;
    std::string text = fmt::format("after {} s still waiting: {}", limit / 1s, what);
    for (const auto& use : uses_) {
      const auto& name = cluster_.volume(use->volume).name;
      for (const auto& call : use->workload.stuck()) text += "\n  " + name + " " + call;
      for (std::size_t node = 0; node < cluster_.size(); ++node) {
        if (auto* mount = cluster_.mount(node, use->volume)) {
          auto state = mount->mount().state();
          text += fmt::format("\n  {} node{} mount mode={} session={} {}", name, node + 1,
                              static_cast<int>(state.mode), raw(state.session), state.reason);
        }
        if (auto* csvd = cluster_.csvd(node)) {
          text +=
              fmt::format("\n  {} node{} csvd state={} {}", name, node + 1,
                          static_cast<int>(csvd->state(use->volume)), csvd->reason(use->volume));
        }
      }
    }
    fail(std::move(text));
    return false;
  }
  bool all_direct() const {
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      for (const auto& use : uses_) {
        auto* csvfs = cluster_.mount(node, use->volume);
        if (csvfs == nullptr || csvfs->mount().state().mode != AccessMode::direct) return false;
      }
    }
    return true;
  }
  /// Runs one of the workload's tasks on a node's mount.
  template <typename F>
  bool have(const char* what, Duration limit, std::size_t node, F task) {
    return each(
        [&](Use& use) { return have_of(use.workload, use.volume, what, limit, node, task); });
  }
  template <typename F>
  bool have_locks(const char* what, Duration limit, std::size_t node, F task) {
    return each([&](Use& use) { return have_of(use.locks, use.volume, what, limit, node, task); });
  }
  template <typename W, typename F>
  bool have_of(W& workload, std::size_t volume, const char* what, Duration limit, std::size_t node,
               F task) {
    bool done = false;
    auto* csvfs = cluster_.mount(node, volume);
    csvfs->process().loop->enter(
        [&] { csvfs->programs().spawn((workload.*task)(node, [&done] { done = true; })); });
    return wait(what, limit, [&] { return done; });
  }

  bool come_up() {
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      cluster_.start_csvd(node);
      cluster_.start_mounts(node);
    }
    cluster_.govern();
    if (!wait("all mounts usable", 60s, [this] { return all_direct(); })) return false;
    if (!have("the playgrounds", 60s, 0, &Workload::set_up)) return false;
    if (!have_locks("files to lock", 60s, 0, &LockWorkload::set_up)) return false;
    auto begin = [this](std::size_t node, std::size_t volume) {
      uses_[volume]->workload.begin(node);
      uses_[volume]->locks.begin(node);
    };
    cluster_.on_mounted = begin;
    cluster_.on_mount_dies = [this](std::size_t node, std::size_t volume,
                                    const std::function<void()>& kill) {
      auto& use = *uses_[volume];
      use.locks.dies([&] { use.workload.dies(node, kill); });
    };
    for (std::size_t node = 0; node < cluster_.size(); ++node)
      for (const auto& use : uses_) begin(node, use->volume);
    return true;
  }
  bool work() {
    saboteur_ = std::make_unique<Saboteur>(world_, cluster_, plan_, [this](std::size_t volume) {
      uses_[volume]->workload.power_loss();
    });
    auto end = world_.now() + plan_.length;
    // Between the events, now and then, what dead mounts left is looked after.
    for (auto until = world_.now(); until < end && well();) {
      until = std::min(until + 500ms, end);
      world_.run([this] { return !well(); }, until);
      world_.at(until, [] {});
      for (const auto& use : uses_) {
        use->workload.settle_what_is_over();
        use->locks.judge_again();
      }
    }
    if (!wait("the administrator", 180s, [this] { return !saboteur_->busy(); })) return false;
    saboteur_->stop();
    return true;
  }
  bool calm_down() {
    if (!wait("foreign hosts to go", 60s, [this] { return saboteur_->alone(); })) return false;
    for (const auto& use : uses_) {
      auto& weather = cluster_.volume(use->volume).weather;
      weather.stall_in = weather.lost_answer_in = 0;
      use->workload.wind_down();
      use->locks.wind_down();
    }
    auto all = [this](auto what) {
      return [this, what] {
        return std::all_of(uses_.begin(), uses_.end(), [&](const auto& use) { return what(*use); });
      };
    };
    return wait("programs to end", 180s,
                all([](Use& use) { return use.workload.running() == 0; })) &&
           wait("whoever waits for a lock", 180s,
                all([](Use& use) { return use.locks.running() == 0; })) &&
           wait("all mounts usable again", 120s, [this] { return all_direct(); }) &&
           wait("the dead to be over", 120s, all([](Use& use) {
                  use.workload.settle_what_is_over();
                  return use.workload.unsettled() == 0;
                }));
  }
  bool look_back() {
    for (const auto& use : uses_) use->locks.judge_again();
    if (!have_locks("all locks", 60s, 0, &LockWorkload::all_is_free)) return false;
    for (const auto& use : uses_) {
      const auto& locks = use->locks;
      world_.note(fmt::format(
          "locks: {} granted, {} refused, {} interrupted, {} deadlocks, {} lost", locks.granted,
          locks.refused, locks.interrupted, locks.deadlocks, locks.lost));
    }
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      if (!have("everything to be read", 120s, node, &Workload::look_at_everything)) return false;
    }
    return world_.random().chance(1, 2) ||
           have("everything to be removed", 120s, 0, &Workload::remove_everything);
  }
  bool have_given_up(std::size_t node, std::size_t volume) {
    bool stopped = false;
    cluster_.csvd(node)->stop_volume([&stopped] { stopped = true; }, volume);
    return wait("the volume to be given up", 60s, [&stopped] { return stopped; });
  }
  bool come_down() {
    std::size_t left = cluster_.size() * uses_.size();
    for (std::size_t node = 0; node < cluster_.size(); ++node)
      for (const auto& use : uses_) cluster_.mount(node, use->volume)->end([&left] { --left; });
    if (!wait("mounts to end", 60s, [&left] { return left == 0; })) return false;
    cluster_.stop_governing();
    for (const auto& use : uses_) {
      auto coordinates = cluster_.coordinator(use->volume);
      // Nor shall another one take it over then, and be in the middle of it when it is checked.
      for (std::size_t node = 0; node < cluster_.size(); ++node)
        if (node != coordinates && cluster_.csvd(node) != nullptr &&
            !have_given_up(node, use->volume))
          return false;
      if (coordinates && !have_given_up(*coordinates, use->volume)) return false;
    }
    for (std::size_t node = 0; node < cluster_.size(); ++node) {
      for (const auto& use : uses_) cluster_.kill_mount(node, use->volume);
      cluster_.kill_csvd(node);
    }
    return true;
  }
  bool check() {
    return each([this](Use& use) {
      auto report = cluster_.check(use.volume);
      if (!report) {
        fail("check: " + report.error().message());
        return false;
      }
      world_.note(fmt::format("check: {} inodes, {} extents, {} used blocks", report->inodes,
                              report->extents, report->used_blocks));
      for (const auto& problem : report->problems) fail("check: " + problem);
      return well();
    });
  }

  const Plan& plan_;
  World world_;
  std::string setting_;
  // Outlive the cluster, whose end they have a part in.
  std::unique_ptr<Saboteur> saboteur_;
  std::vector<std::unique_ptr<Use>> uses_;  ///< By volume.
  Cluster cluster_;
};

}  // namespace

Plan Plan::mixed(std::uint64_t seed) const {
  Random dice{seed + 0x6d69786564ull};
  auto plan = *this;
  plan.voting = seed % 3 == 1;
  plan.mappings = seed % 3 == 2;
  if (dice.chance(1, 8)) plan.volumes = 2 + dice.below(3);
  plan.length = dice.chance(1, 4) ? 20s : std::chrono::seconds{3 + dice.below(9)};
  return plan;
}

Result simulate(std::uint64_t seed, const Plan& plan) {
  // A life is one thread. Told before anything else, or not at all.
  static const int configured =
      sqlite3_config(SQLITE_CONFIG_SINGLETHREAD) | sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
  (void)configured;
  // SQLite's own random numbers must follow from the seed too (it has one generator a process).
  sqlite3_initialize();
  sqlite3_test_control(SQLITE_TESTCTRL_PRNG_SEED, static_cast<int>(seed | 1), nullptr);
  return Run{seed, plan}.play();
}

}  // namespace csv::sim
