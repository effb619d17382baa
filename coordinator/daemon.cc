#include "coordinator/daemon.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "coordinator/admin/admin_request.h"
#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/catalog_copied.h"
#include "coordinator/admin/cluster_requests.h"
#include "coordinator/admin/status.h"
#include "coordinator/cluster/configuration_store.h"
#include "coordinator/cluster/corosync_engine.h"
#include "coordinator/cluster/corosync_tuning.h"
#include "coordinator/cluster/icmp_pinger.h"
#include "coordinator/cluster/leave.h"
#include "coordinator/cluster/loss_response.h"
#include "coordinator/cluster/standalone_membership.h"
#include "coordinator/cluster/voting_membership.h"
#include "coordinator/cluster/watchdog.h"
#include "coordinator/configured_witness.h"
#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/first_message.h"
#include "coordinator/protocol/host_transport.h"
#include "coordinator/protocol/tls_transport.h"
#include "coordinator/service/catalog_file.h"
#include "coordinator/service/coordination.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"
#include "csvfs/base/random.h"
#include "csvfs/base/status_board.h"
#include "csvfs/base/thread_worker.h"
#include "csvfs/base/wake_latency.h"
#include "iscsi/configured_lun.h"

namespace csv {
namespace {

using Json = nlohmann::json;

/// How long a command waits for a quorum, and for a majority to store what it changes.
constexpr Duration kCommandPatience = 10s;
/// How long a machine has to answer a ping.
constexpr Duration kPingPatience = 2s;
constexpr Duration kCommandsHaveForARestart = 20s;
/// Between two attempts to give Corosync its heartbeats.
constexpr Duration kTuneAgain = 10s;
/// A mount writes its slot each second.
constexpr Duration kMountSpeaks = 3s;

/// How many of the volumes' writer threads live: each ends a moment after its volume was given up,
/// while the loop still runs.
class CountedWorker final : public Worker {
 public:
  CountedWorker(std::string name, std::shared_ptr<int> alive)
      : alive_{std::move(alive)}, worker_{std::move(name)} {
    ++*alive_;
  }
  ~CountedWorker() override { --*alive_; }
  void post(Function<void()> work) override { worker_.post(std::move(work)); }
  Blocking& blocking() override { return worker_.blocking(); }

 private:
  std::shared_ptr<int> alive_;  // the loop's thread only
  ThreadWorker worker_;
};

/// Connections that were told something final and may hear it before they end.
class Farewells {
 public:
  explicit Farewells(Loop& loop) : loop_{&loop} {}
  ~Farewells() {
    for (auto& [id, one] : leaving_) loop_->cancel(one.timer);
  }

  void send(std::unique_ptr<protocol::Connection> connection, protocol::Message last) {
    auto id = next_++;
    auto& one = leaving_[id];
    one.connection = std::move(connection);
    one.timer = loop_->after(2s, [this, id] { leaving_.erase(id); });
    one.connection->start([](protocol::Message) {}, [this, id](Error) { drop(id); });
    one.connection->send(std::move(last));
  }

 private:
  struct Leaving {
    std::unique_ptr<protocol::Connection> connection;
    Loop::TimerId timer{};
  };
  void drop(std::uint64_t id) {
    loop_->cancel(leaving_.at(id).timer);
    leaving_.erase(id);
  }

  Loop* loop_;
  std::map<std::uint64_t, Leaving> leaving_;
  std::uint64_t next_ = 1;
};

std::string answer_of(const Expected<void>& result) {
  Json out{{"ok", static_cast<bool>(result)}};
  if (!result) out["error"] = result.error().message();
  if (!result && result.error() == Errc::unknown_outcome) out["unknown"] = true;
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

class Csvd final : public Daemon {
 public:
  Csvd(AsioLoop& loop, Config config)
      : loop_{loop},
        config_{std::move(config)},
        random_{Random::from_system()},
        incarnation_{random_.next() | 1},
        started_{loop.now()},
        wake_latency_{loop,
                      config_.hold_wake_latency ? machine_wake_latency() : Function<void(bool)>{}},
        farewells_{loop},
        first_messages_{
            loop, 5s, 256,
            [this](std::unique_ptr<protocol::Connection> connection, protocol::Message first) {
              accept(std::move(connection), std::move(first));
            }} {}

  Expected<void> build(const Places& places) {
    config_file_ = places.config;
    // reload() must not move what is in use.
    config_.volumes.reserve(StatusBoard::kVolumes);
    coordinations_.reserve(StatusBoard::kVolumes);
    network_ = CSV_TRY(protocol::make_host_transport(loop_, config_));
    admin_ = CSV_TRY(admin::AdminServer::listen(
        loop_, places.socket, config_.status_group,
        [this](auto caller, std::string request, admin::AdminServer::Answer answer) {
          command(caller, std::move(request), std::move(answer));
        }));
    board_ = CSV_TRY(StatusBoard::create(places.board));
    for (const auto& volume : config_.volumes) CSV_TRY(find_place(volume.name));
    CSV_TRY(make_membership());
    for (std::size_t i = 0; i < config_.volumes.size(); ++i) make_coordination(i);
    if (voting_ != nullptr && places.restart) respond_to_losses(places);
    listener_ = CSV_TRY(network_.transport->listen(
        config_.listen, [this](std::unique_ptr<protocol::Connection> accepted) {
          first_messages_.add(std::move(accepted));
        }));
    // Last: of a csvd that does not start nothing is left that counts.
    if (!config_.watchdog.empty()) CSV_TRY(arm_watchdog());
    log::info("csvd_started node={} name={} cluster={} listen={} volumes={} peers={}",
              raw(config_.node), config_.node_name, config_.cluster, listener_->endpoint(),
              config_.volumes.size(), config_.peers.size());
    return {};
  }

  void close(Duration patience, Function<void()> done) override {
    log::info("csvd_closing");
    loop_.cancel(restart_anyway_);
    loop_.cancel(arm_later_);
    loss_.reset();
    listener_.reset();
    closed_ = std::move(done);

    // Its own timer: a volume whose LUN does not answer must not keep csvd from ending.
    loop_.after(patience, [this] { finish("not everything ended in good order"); });
    tasks_.spawn(give_everything_up());
  }

 private:
  /// Of a volume, on the board.
  struct Published {
    std::optional<cluster::Coordinator> coordinator;
    bool stopped = false;
    bool operator==(const Published&) const = default;
  };

  Expected<void> find_place(const std::string& volume) {
    auto at = board_->find(volume, true);
    if (at == StatusBoard::kVolumes)
      return Error{Errc::refused, "the status board has no room for volume " + volume};
    places_.push_back(at);
    return {};
  }

  /// Takes the volumes that the configuration has got since. Nothing else of it changes while csvd
  /// runs: what did is named, for somebody to restart it.
  Expected<Json> reload() {
    if (closed_) return Error{Errc::refused, "csvd is ending"};
    auto now = CSV_TRY(load_config(config_file_));
    Json added = Json::array(), needs_restart = Json::array();
    if (now.cluster != config_.cluster || now.node != config_.node ||
        now.node_name != config_.node_name || now.listen != config_.listen ||
        now.initiator != config_.initiator ||
        now.isolation_addresses != config_.isolation_addresses ||
        now.reboot_when_isolated != config_.reboot_when_isolated ||
        now.watchdog != config_.watchdog || now.watchdog_timeout != config_.watchdog_timeout)
      needs_restart.push_back("[cluster] or [node]");
    if (now.peers != config_.peers) needs_restart.push_back("[[peer]]");
    if (now.tls != config_.tls) needs_restart.push_back("[tls]");
    if (now.status_group != config_.status_group) needs_restart.push_back("[admin]");
    auto same_name = [](const std::string& name) {
      return [&name](const VolumeConfig& each) { return each.name == name; };
    };
    for (const auto& known : config_.volumes) {
      auto found = std::find_if(now.volumes.begin(), now.volumes.end(), same_name(known.name));
      if (found == now.volumes.end() || *found != known)
        needs_restart.push_back("volume " + known.name);
    }
    for (auto& volume : now.volumes) {
      if (find(volume.name) != nullptr) continue;
      if (config_.volumes.size() == config_.volumes.capacity())
        return Error{Errc::refused, "a node has at most 64 volumes"};
      CSV_TRY(find_place(volume.name));
      config_.volumes.push_back(std::move(volume));
      make_coordination(config_.volumes.size() - 1);
      added.push_back(config_.volumes.back().name);
      log::info("volume_added volume={}", config_.volumes.back().name);
      events::report(events::Severity::info, "csvd", config_.volumes.back().name,
                     "added to this node");
    }
    publish();
    return Json{{"ok", true}, {"added", added}, {"needs_restart", needs_restart}};
  }

  Expected<void> make_membership() {
    if (config_.corosync) return make_voting_membership();
    cluster::StandaloneMembership::Surroundings with;
    with.loop = &loop_;
    with.transport = network_.transport.get();
    with.node = config_.node;
    with.endpoint = config_.listen;
    with.incarnation = incarnation_;
    for (const auto& peer : config_.peers) with.peers.push_back({peer.id, peer.name, peer.address});
    with.changed = [this] { publish(); };
    membership_ = std::make_unique<cluster::StandaloneMembership>(std::move(with));
    return {};
  }

  Expected<void> make_voting_membership() {
    auto folder = config_.state_dir + "/cluster";
    auto found = cluster::ConfigurationFiles::read(folder);
    if (!found) return found.error().within("the cluster's configuration in " + folder);
    if (!found->damage.empty()) {
      log::warning("configuration_damaged why=\"{}\"", found->damage);
      events::report(events::Severity::warning, "cluster", "",
                     "a copy of the cluster's configuration is damaged; the other is used",
                     found->damage);
    }
    if (found->kept.configuration && found->kept.configuration->cluster != config_.cluster)
      return Error{Errc::refused,
                   fmt::format("{} has the configuration of cluster {}, and this node is one of "
                               "cluster {}",
                               folder, found->kept.configuration->cluster, config_.cluster)};
    engine_ = std::make_unique<cluster::CorosyncEngine>(
        cluster::CorosyncEngine::Surroundings{.loop = &loop_, .node = config_.node});
    store_ = std::make_unique<cluster::ConfigurationFiles>(
        loop_, std::make_unique<ThreadWorker>("configuration"), folder);
    cluster::VotingMembership::Surroundings with;
    with.loop = &loop_;
    with.transport = network_.transport.get();
    with.engine = engine_.get();
    with.store = store_.get();
    with.node = config_.node;
    with.endpoint = config_.listen;
    with.incarnation = incarnation_;
    with.kept = std::move(found->kept);
    for (const auto& peer : config_.peers) with.peers.push_back({peer.id, peer.name, peer.address});
    with.volumes = [this] { return local_volumes(); };
    with.make_witness = [this](const cluster::WitnessRecord& record) {
      return configured_witness(loop_, random_, config_, record, [this] {
        return voting_ != nullptr ? voting_->replica().known_tag() : ClusterTag{};
      });
    };
    with.reached = [this] { return reached(); };
    with.signs = [this] { return signs(); };
    with.ping = [this](const std::string& address, Function<void(bool)> done) {
      pinger_.ping(address.substr(0, address.rfind(':')), kPingPatience, std::move(done));
    };
    with.changed = [this] {
      publish();
      membership_changed_.notify();
    };
    auto voting = std::make_unique<cluster::VotingMembership>(std::move(with));
    voting_ = voting.get();
    membership_ = std::move(voting);
    return {};
  }

  /// Opening it pets it. A former life of csvd may have left it counting for a reason that is still
  /// there, so it is left alone until that is gone.
  Expected<void> arm_watchdog() {
    if (auto why = not_closed(); !why.empty() && loop_.now() >= membership_->open_until()) {
      if (std::exchange(watchdog_waits_, why) != why)
        log::warning("watchdog_left_alone why=\"{}\"", why);
      loop_.cancel(arm_later_);
      arm_later_ = loop_.after(1s, [this] {
        auto armed = arm_watchdog();
        if (armed) return;
        log::error("watchdog_not_armed why=\"{}\"", armed.error().message());
        events::report(events::Severity::error, "watchdog", "", "it could not be armed",
                       armed.error().message());
      });
      return {};
    }
    auto device = CSV_TRY(cluster::open_watchdog(config_.watchdog));
    cluster::Watchdog::Surroundings with;
    with.loop = &loop_;
    with.lease_runs = [this] { return loop_.now() < membership_->open_until(); };
    with.not_closed = [this] { return not_closed(); };
    watchdog_ = CSV_TRY(
        cluster::Watchdog::start(std::move(device), config_.watchdog_timeout, std::move(with)));
    return {};
  }

  /// Without a lease of this node's. A mount whose slot moves is alive, and asks its own gate,
  /// which a coordinator that hears it may hold open; one that has said since that its gate is
  /// closed sends nothing; one that stands still in between may have begun what it will send when
  /// it goes on. That it is paused says nothing: it is so without a coordinator, under a lease.
  std::string not_closed() {
    for (std::size_t i = 0; i < places_.size(); ++i) {
      auto mount = board_->mount(places_[i]);
      if (!mount || cluster::sends_nothing(*mount, board_->open_until(places_[i])) ||
          loop_.now() - mount->reached < kMountSpeaks)
        continue;
      if (::kill(static_cast<pid_t>(mount->pid), 0) != 0 && errno == ESRCH) continue;
      return fmt::format(
          "the lease has run out, and the mount of {} (pid {}) has not said that it "
          "sends nothing any more",
          config_.volumes[i].name, mount->pid);
    }
    return {};
  }

  void respond_to_losses(const Places& places) {
    cluster::LossResponse::Surroundings with;
    with.loop = &loop_;
    with.pinger = &pinger_;
    // A node that was taken out has lost nothing that a restart could bring back.
    with.quorate = [this] {
      return loop_.now() < membership_->open_until() || !membership_->belongs(config_.node);
    };
    with.isolation_addresses = [this] { return isolation_addresses(); };
    with.remember = [file = places.restarted](bool restarted) { remember(file, restarted); };
    // Posted: a restart takes away what has called.
    with.restart = [this, restart = places.restart] {
      restart_ = restart;
      loop_.post([this] { restart_if_due(); });
      // A command may wait for what only comes with a quorum.
      loop_.cancel(restart_anyway_);
      restart_anyway_ = loop_.after(kCommandsHaveForARestart, [this] { restart_if_due(true); });
    };
    with.reboot = [this, reboot = places.reboot] {
      if (reboot && watchdog_) watchdog_->give_up("the machine is rebooted: no quorum");
      loop_.post([reboot] {
        if (reboot) reboot();
      });
    };
    cluster::QuorumLoss::Rules rules;
    rules.reboot = config_.reboot_when_isolated && places.reboot;
    bool restarted = ::access(places.restarted.c_str(), F_OK) == 0;
    loss_ = std::make_unique<cluster::LossResponse>(std::move(with), rules, restarted);
  }

  /// Whoever waits for the answer to a command gets it first. A quorum may be back by then.
  void restart_if_due(bool commands_had_their_time = false) {
    if (!restart_ || (commands_ > 0 && !commands_had_their_time) || closed_) return;
    // The next life would pet what this one does not.
    if (watchdog_ && !watchdog_->state().withheld.empty()) {
      loop_.cancel(restart_anyway_);
      restart_anyway_ = loop_.after(1s, [this] { restart_if_due(true); });
      return;
    }
    auto restart = std::exchange(restart_, nullptr);
    if (loss_->state().step() == cluster::QuorumLoss::Step::restarting)
      restart();
    else
      loss_->not_restarted();
  }
  struct Command {
    explicit Command(Csvd* csvd) : of{csvd} { ++of->commands_; }
    Command(const Command&) = delete;
    Command& operator=(const Command&) = delete;
    ~Command() {
      --of->commands_;
      if (!of->closed_) of->loop_.post([csvd = of] { csvd->restart_if_due(); });
    }
    Csvd* of;
  };

  static void remember(const std::string& file, bool restarted) {
    if (!restarted) {
      (void)std::remove(file.c_str());
      return;
    }
    // Without it there would be a restart after the other.
    std::FILE* out = std::fopen(file.c_str(), "w");
    if (out == nullptr || std::fclose(out) != 0)
      log::warning("restart_not_remembered file={} errno={}", file, errno);
  }

  std::vector<std::string> isolation_addresses() {
    if (!config_.isolation_addresses.empty()) return config_.isolation_addresses;
    const auto* now = voting_->replica().configuration();
    if (now != nullptr && !now->heartbeat.isolation_addresses.empty())
      return now->heartbeat.isolation_addresses;
    std::ifstream routes{"/proc/net/route"};
    std::string text{std::istreambuf_iterator<char>{routes}, {}};
    return cluster::default_gateways(text);
  }

  std::vector<cluster::VotingMembership::LocalVolume> local_volumes() {
    std::vector<cluster::VotingMembership::LocalVolume> out;
    for (std::size_t i = 0; i < places_.size(); ++i) {
      auto mount = board_->mount(places_[i]);
      bool mounted = mount && mount->pid != 0;
      out.push_back({config_.volumes[i].name, mounted ? 1u : 0u});
      if (i >= coordinations_.size()) continue;
      const auto& coordination = *coordinations_[i];
      using State = service::Coordination::State;
      out.back().at_work =
          coordination.state() != State::idle && coordination.state() != State::waiting;
      if (coordination.service() != nullptr) out.back().off = coordination.service()->off();
    }
    return out;
  }

  /// By the coordinator's own commands, and by the slot of this node's mount.
  std::vector<cluster::Reached> reached() {
    std::vector<cluster::Reached> out;
    for (std::size_t i = 0; i < places_.size(); ++i) {
      TimePoint at{};
      if (auto mount = board_->mount(places_[i]); mount && mount->pid != 0) at = mount->reached;
      if (i < coordinations_.size() && coordinations_[i]->service() != nullptr)
        at = std::max(at, coordinations_[i]->service()->reached());
      if (at != TimePoint{}) out.push_back({config_.volumes[i].name, at});
    }
    return out;
  }

  std::vector<cluster::StorageSign> signs() {
    std::vector<cluster::StorageSign> out;
    for (const auto& each : coordinations_) {
      if (each->service() == nullptr) continue;
      auto seen = each->service()->signs();
      out.insert(out.end(), seen.begin(), seen.end());
    }
    return out;
  }

  void make_coordination(std::size_t index) {
    const auto& volume = config_.volumes[index];
    // In a former life, which crashed, this node coordinated it: the mounts wait for us.
    auto before = board_->volume(places_[index]);
    bool ours = before && before->coordinator == config_.node && !before->endpoint.empty();
    service::Coordination::Setup setup;
    setup.loop = &loop_;
    setup.membership = membership_.get();
    setup.volume = volume.name;
    setup.node = config_.node;
    setup.wanted = volume.coordinate || ours;
    setup.take_over = [this, index] { return service::VolumeService::take_over(around(index)); };
    coordinations_.push_back(std::make_unique<service::Coordination>(std::move(setup)));
  }

  service::Surroundings around(std::size_t index) {
    const auto& volume = config_.volumes[index];
    service::Surroundings out;
    out.loop = &loop_;
    out.random = &random_;
    out.open_lun = iscsi::configured_opener(loop_, config_, volume);
    out.make_worker = [this, name = "cat-" + volume.name]() -> std::unique_ptr<Worker> {
      return std::make_unique<CountedWorker>(name, workers_);
    };
    out.open_until = [this] { return membership_->open_until(); };
    out.answers_until = [this](NodeId node) { return membership_->answers_until(node); };
    out.process_gone = [this](NodeId node) { return membership_->process_gone(node); };
    out.wanted = [this, name = volume.name] {
      auto to = membership_->assigned(name);
      return !to || !to->decided || to->node == config_.node;
    };
    out.fenced = [this] { return membership_->fenced(); };
    out.fences = [this](NodeId node) { return membership_->fences(node); };
    out.belongs = [this](NodeId node) { return membership_->belongs(node); };
    out.out_of_reach = [this](NodeId node) { return membership_->out_of_reach(node); };
    if (voting_ != nullptr)
      out.reached_by_others = [this, name = volume.name] {
        return voting_->reached_by_peers(name);
      };
    out.requested = [this] { wake_latency_.request(); };
    out.tag = membership_->tag();
    out.node = config_.node;
    out.cluster = config_.cluster;
    out.volume = volume.name;
    out.timing.catalog_copy = std::chrono::hours{volume.catalog_copy_hours};
    out.memory = static_cast<std::uint64_t>(volume.coordinator_memory_mib) << 20;
    out.open_catalog_file = [this, folder = config_.state_dir + "/" + volume.name] {
      return service::make_catalog_file(folder, loop_.wall_now());
    };
    out.grow = growing_.erase(index) > 0;
    return out;
  }

  /// What the membership knows, to the mounts of this node and to the coordinations.
  void publish() {
    if (!membership_ || coordinations_.size() != places_.size()) return;  // still being built
    published_.resize(places_.size());
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const auto& name = config_.volumes[i].name;
      Published now{membership_->coordinator(name), is_stopped(name)};
      // Until somebody is known, the board keeps what a former life knew: it may still be so.
      if (now != published_[i]) {
        publish(i, now);
        published_[i] = now;
      }
      board_->set_open_until(places_[i], membership_->open_until(name));
      coordinations_[i]->news();
    }
    look_at_peers();
    if (loss_) loss_->look();
    if (voting_ != nullptr) {
      keep_heartbeats();
      let_in_whom_the_cluster_has();
    }
  }

  /// [[peer]] is for as long as there is no configuration. A node that is none of the cluster's
  /// any more gets in no more, whatever certificate it has.
  void let_in_whom_the_cluster_has() {
    const auto* now = voting_->replica().configuration();
    if (network_.tls == nullptr || now == nullptr) return;
    protocol::NodeSet nodes;
    nodes.set(raw(config_.node));  // its mounts
    for (const auto& [id, node] : now->nodes) nodes.set(raw(id));
    network_.tls->let_in(nodes);
  }

  /// The cluster's, in this node's Corosync and its file.
  void keep_heartbeats() {
    const auto& replica = voting_->replica();
    if (replica.state() != cluster::Replica::State::formed || closed_) {
      // Another Corosync may run by the time there is a quorum again.
      heartbeat_.reset();
      return;
    }
    if (replica.configuration()->nodes.count(config_.node) == 0) return;
    auto wanted = cluster::heartbeat_of(replica.configuration()->heartbeat);
    if (wanted == heartbeat_ || tuning_.busy() || loop_.now() < tune_again_) return;
    tune_again_ = loop_.now() + kTuneAgain;
    tuning_.apply(wanted, [this, wanted](Expected<void> result) {
      if (result) {
        heartbeat_ = wanted;
        tuning_trouble_.clear();
        log::info("heartbeats delay_ms={} threshold={}", wanted.delay / 1ms, wanted.threshold);
      } else if (std::exchange(tuning_trouble_, result.error().message()) != tuning_trouble_) {
        log::warning("heartbeats_not_set why=\"{}\"", tuning_trouble_);
        events::report(events::Severity::warning, "cluster", "",
                       "the heartbeats could not be set as the cluster has them", tuning_trouble_);
      }
    });
  }

  void look_at_peers() {
    for (const auto& peer : membership_->peers()) {
      auto& before = present_[peer.id];
      if (peer.present == before) continue;
      before = peer.present;
      events::report(peer.present ? events::Severity::info : events::Severity::warning, "node", "",
                     fmt::format("node {} ({}) is {}", raw(peer.id), peer.name,
                                 peer.present ? "present" : "silent"));
    }
  }

  bool is_stopped(const std::string& volume) const {
    auto given = membership_->assigned(volume);
    return given && given->stopped;
  }

  void publish(std::size_t index, const Published& now) {
    const auto& who = now.coordinator;
    BoardVolume out;
    out.name = config_.volumes[index].name;
    out.stopped = now.stopped;
    if (who) {
      out.endpoint = who->endpoint;
      out.epoch = who->epoch;
      out.coordinator_key = who->key;
      out.coordinator = who->node;
      log::info("coordinator_known volume={} node={} endpoint={} epoch={} key={:016x}", out.name,
                raw(who->node), who->endpoint, raw(who->epoch), raw(who->key));
      events::report(
          events::Severity::info, "coordinator", out.name,
          fmt::format("node {} coordinates it, epoch {}", raw(who->node), raw(who->epoch)));
    } else if (now.stopped) {
      log::info("coordinator_none volume={} why=\"it is stopped by command\"", out.name);
    } else {
      log::info("coordinator_unknown volume={}", out.name);
      events::report(events::Severity::warning, "coordinator", out.name,
                     "nobody is known to coordinate it");
    }
    board_->publish(places_[index], out);
  }

  service::Coordination* find(const std::string& volume) {
    for (auto& each : coordinations_)
      if (each->volume() == volume) return each.get();
    return nullptr;
  }

  void accept(std::unique_ptr<protocol::Connection> connection, protocol::Message first) {
    if (first.frame.has_beat()) return membership_->accept(std::move(connection), std::move(first));
    if (!first.frame.has_hello()) {
      log::warning(
          "connection_dropped peer={} why=\"its first message is neither a beat nor a hello\"",
          connection->peer());
      return;
    }
    const auto& volume = first.frame.hello().volume();
    auto* coordination = find(volume);
    if (coordination != nullptr && coordination->service() != nullptr)
      return coordination->service()->accept(std::move(connection), std::move(first));
    // A mount whose own csvd is away asks whomever it can.
    auto refusal = service::not_coordinated(first, config_.node, membership_->coordinator(volume),
                                            is_stopped(volume));
    farewells_.send(std::move(connection), std::move(refusal));
  }

  void command(admin::AdminServer::Caller caller, const std::string& text,
               admin::AdminServer::Answer answer) {
    auto request = admin::parse_admin_request(text);
    if (!request) return answer(answer_of(request.error()));
    const auto& what = request->command;
    if (what == "status") return answer(status());
    if (caller != admin::AdminServer::Caller::root)
      return answer(
          answer_of(Error{Errc::refused, "only root may do that: the group " +
                                             config_.status_group + " may ask for the status"}));
    if (what == "reload") {
      auto done = reload();
      return answer(done ? done->dump() : answer_of(done.error()));
    }
    // Without votes each node decides for itself.
    bool is_ours = voting_ == nullptr && (what == "volume_start" || what == "volume_stop");
    if (what == "cluster_create" || what == "cluster_force" || what == "cluster_prevent" ||
        what == "cluster_leave" || (admin::changes_cluster(what) && !is_ours) ||
        admin::asks_cluster(what))
      return command_cluster(*request, std::move(answer));
    if (what != "volume_start" && what != "volume_stop" && what != "volume_grow" &&
        what != "catalog_copy")
      return answer(
          answer_of(Error{Errc::refused, "csvd does not know the command '" + what + "'"}));
    auto* coordination = find(request->volume);
    if (coordination == nullptr)
      return answer(answer_of(Error{
          Errc::refused, "no volume '" + request->volume + "' in the configuration of this node"}));
    log::info("command what={} volume={}", what, coordination->volume());
    if (what == "catalog_copy") return tasks_.spawn(copy_catalog(*coordination, std::move(answer)));
    if (what == "volume_grow") return tasks_.spawn(grow(*coordination, std::move(answer)));
    tasks_.spawn(run(*coordination, what == "volume_start", std::move(answer)));
  }

  void command_cluster(const admin::AdminRequest& request, admin::AdminServer::Answer answer) {
    if (voting_ == nullptr)
      return answer(
          answer_of(Error{Errc::refused,
                          "this node votes with nobody: [cluster] engine is \"standalone\" in its "
                          "configuration"}));
    log::info("command what={} volume={} node={}{}", request.command, request.volume, request.node,
              request.value.find('\n') == std::string::npos ? " value=" + request.value : "");
    if (admin::asks_cluster(request.command)) {
      auto said = admin::answer_about(request, voting_->replica().configuration());
      return answer(said ? *said : answer_of(said.error()));
    }
    if (request.command == "cluster_create")
      return answer(
          answer_of(voting_->replica().found(admin::first_configuration(config_, request.value))));
    if (request.command == "cluster_force") return tasks_.spawn(force(std::move(answer)));
    if (request.command == "cluster_prevent") {
      if (request.value != "yes" && request.value != "no")
        return answer(answer_of(Error{Errc::refused, "cluster_prevent is \"yes\" or \"no\""}));
      return tasks_.spawn(prevent(request.value == "yes", std::move(answer)));
    }
    if (request.command == "cluster_leave") return tasks_.spawn(leave(std::move(answer)));
    auto wanted = request;
    if (request.command == "volume_start") wanted.node = std::to_string(raw(config_.node));
    auto change = admin::change_for(wanted);
    if (!change) return answer(answer_of(change.error()));
    if (voting_->replica().state() == cluster::Replica::State::formed) {
      auto unable = [this, &request](NodeId node) {
        return voting_->replica().member(node) && !voting_->says_able(request.volume, node);
      };
      if (auto may = admin::may_take(wanted, *voting_->replica().configuration(), unable); !may)
        return answer(answer_of(may));
    }
    if (auto record = admin::witness_named(request); record)
      return tasks_.spawn(set_witness(*record, *std::move(change), std::move(answer)));
    if (request.command == "node_fence")
      return tasks_.spawn(fence(*std::move(change), request.node, std::move(answer)));
    bool served = request.command == "volume_start" || request.command == "volume_stop";
    tasks_.spawn(change_cluster(*std::move(change), std::move(answer), served));
  }

  /// Answers once the node is proven to be off.
  Task<void> fence(cluster::Replica::Change change, std::string node,
                   admin::AdminServer::Answer answer) {
    Command under_way{this};
    auto task = voting_->replica().propose(std::move(change), kCommandPatience);
    auto made = co_await task;
    auto id = made ? admin::find_node(*voting_->replica().configuration(), node)
                   : Expected<NodeId>{made.error()};
    if (!id) co_return answer(answer_of(id.error()));
    auto give_up = loop_.now() + admin::kProofPatience;
    auto timer = loop_.after(admin::kProofPatience, [this] { membership_changed_.notify(); });
    while (!voting_->proven_off(*id) && loop_.now() < give_up) co_await membership_changed_.wait();
    loop_.cancel(timer);
    if (voting_->proven_off(*id)) co_return answer(answer_of(Expected<void>{}));
    answer(answer_of(Error{
        Errc::retry, node + " is shut out, but that nothing of it is left is not proven for every "
                            "volume: csvctl cluster status says which has no coordinator"}));
  }

  Task<void> set_witness(cluster::WitnessRecord record, cluster::Replica::Change change,
                         admin::AdminServer::Answer answer) {
    Command under_way{this};
    // Before anything is written there: whether the cluster would have it.
    if (const auto* now = voting_->replica().configuration()) {
      auto tried = *now;
      if (auto may = change(tried); !may) co_return answer(answer_of(may.error()));
    }
    // One that has the cluster's trust is not made anew: it would have forgotten what it promised.
    if (const auto* now = voting_->replica().configuration();
        now != nullptr && now->witness.kind != cluster::WitnessKind::none)
      co_return answer(answer_of(Expected<void>{}));
    auto prepare = prepare_witness(loop_, random_, config_, std::move(record));
    auto ready = co_await prepare;
    if (!ready) co_return answer(answer_of(ready.error()));
    change = [change = std::move(change), id = *ready](cluster::Configuration& next) {
      auto before = next.witness;
      auto may = change(next);
      if (may && !(next.witness == before)) next.witness.id = id;
      return may;
    };
    auto task = voting_->replica().propose(std::move(change), kCommandPatience);
    auto result = co_await task;
    answer(answer_of(result));
  }

  /// `say_votes`: whoever asks does not know that it was the cluster which was asked.
  Task<void> change_cluster(cluster::Replica::Change change, admin::AdminServer::Answer answer,
                            bool say_votes) {
    Command under_way{this};
    auto task = voting_->replica().propose(std::move(change), kCommandPatience);
    auto result = co_await task;
    if (!result && voting_->replica().state() != cluster::Replica::State::formed)
      co_return answer(answer_of(
          Error{result.error().code(),
                result.error().message() + "; csvctl cluster status says what would be needed"}));
    if (result && say_votes) co_return answer(Json{{"ok", true}, {"votes", true}}.dump());
    answer(answer_of(result));
  }

  Task<void> force(admin::AdminServer::Answer answer) {
    Command under_way{this};
    auto task = voting_->replica().force(kCommandPatience);
    auto result = co_await task;
    answer(answer_of(result));
  }

  Task<void> prevent(bool yes, admin::AdminServer::Answer answer) {
    Command under_way{this};
    auto task = voting_->replica().prevent(yes, kCommandPatience);
    auto result = co_await task;
    answer(answer_of(result));
  }

  Task<void> leave(admin::AdminServer::Answer answer) {
    Command under_way{this};
    if (std::exchange(leaving_, true))
      co_return answer(answer_of(Error{Errc::refused, "this node is leaving already"}));
    cluster::Leaver with;
    with.loop = &loop_;
    with.replica = &voting_->replica();
    with.node = config_.node;
    with.changed = &membership_changed_;
    with.mounted = [this] { return mounted_volumes(); };
    with.serving = [this] { return served_volumes(); };
    auto task = cluster::leave(std::move(with));
    auto left = co_await task;
    leaving_ = false;
    if (left) {
      log::info("left_the_cluster");
      events::report(events::Severity::info, "cluster", "",
                     "this node has left the cluster, by command");
    }
    answer(answer_of(left));
  }

  std::vector<std::string> mounted_volumes() {
    std::vector<std::string> out;
    for (const auto& volume : local_volumes())
      if (volume.mounted > 0) out.push_back(volume.name);
    return out;
  }
  std::vector<std::string> served_volumes() {
    std::vector<std::string> out;
    for (const auto& each : coordinations_)
      if (each->service() != nullptr) out.push_back(each->volume());
    return out;
  }

  static Task<void> copy_catalog(service::Coordination& coordination,
                                 admin::AdminServer::Answer answer) {
    if (coordination.service() == nullptr)
      co_return answer(answer_of(Error{
          Errc::not_coordinator, "this node does not coordinate volume " + coordination.volume()}));
    auto task = coordination.service()->copy_catalog();
    auto copied = co_await task;
    answer(copied ? admin::catalog_copied_json(*copied) : answer_of(copied.error()));
  }

  /// The volume is given up, and the takeover that follows sees the LUN's new size.
  Task<void> grow(service::Coordination& coordination, admin::AdminServer::Answer answer) {
    if (coordination.service() == nullptr)
      co_return answer(answer_of(Error{
          Errc::not_coordinator, "this node does not coordinate volume " + coordination.volume()}));
    auto before = coordination.service()->status().data_bytes;
    auto stop = coordination.stop();
    auto stopped = co_await stop;
    for (std::size_t i = 0; i < coordinations_.size(); ++i)
      if (coordinations_[i].get() == &coordination) growing_.insert(i);
    auto start = coordination.start();
    auto started = co_await start;
    if (!stopped || !started) co_return answer(answer_of(stopped ? started : stopped));
    auto now = coordination.service() != nullptr ? coordination.service()->status().data_bytes : 0;
    Json out{{"ok", true}, {"bytes_before", before}, {"bytes", now}};
    answer(out.dump());
  }

  static Task<void> run(service::Coordination& coordination, bool start,
                        admin::AdminServer::Answer answer) {
    auto task = start ? coordination.start() : coordination.stop();
    auto result = co_await task;
    answer(answer_of(result));
  }

  std::string status() {
    admin::StatusSources from{.clock = loop_,
                              .config = config_,
                              .incarnation = incarnation_,
                              .started = started_,
                              .membership = *membership_,
                              .board = *board_,
                              .identity = network_.identity.get(),
                              .coordinations = {},
                              .voting = voting_,
                              .loss = loss_ ? &loss_->state() : nullptr};
    for (const auto& each : coordinations_) from.coordinations.push_back(each.get());
    if (watchdog_) from.watchdog = &watchdog_->state();
    return admin::status_json(from);
  }

  Task<void> give_everything_up() {
    std::vector<service::Coordination*> all;
    for (auto& each : coordinations_) all.push_back(each.get());
    auto stopping = service::stop_all(loop_, std::move(all));
    co_await stopping;
    wait_for_workers();
  }

  void wait_for_workers() {
    if (*workers_ == 0) return finish("");
    loop_.after(10ms, [this] { wait_for_workers(); });
  }

  void finish(const std::string& trouble) {
    if (!closed_) return;
    publish();  // a next life must not take for its own what was given up
    if (watchdog_) watchdog_->end();
    if (trouble.empty())
      log::info("csvd_closed");
    else
      log::warning("csvd_closed why=\"{}\"", trouble);
    auto done = std::move(closed_);
    done();
  }

  AsioLoop& loop_;
  Config config_;
  std::string config_file_;
  Random random_;
  std::uint64_t incarnation_;
  TimePoint started_;
  std::shared_ptr<int> workers_ = std::make_shared<int>(0);
  protocol::HostTransport network_;
  WakeLatency wake_latency_;
  Farewells farewells_;
  std::unique_ptr<admin::AdminServer> admin_;
  std::unique_ptr<StatusBoard> board_;
  std::vector<std::size_t> places_;  ///< On the board, in the order of config_.volumes.
  std::vector<Published> published_;
  std::set<std::size_t> growing_;  ///< Whose next takeover looks whether the LUN has grown.
  cluster::IcmpPinger pinger_{loop_};
  cluster::CorosyncTuning tuning_{loop_};
  std::optional<cluster::Heartbeat> heartbeat_;  ///< What Corosync has, as far as is known.
  TimePoint tune_again_{};
  std::string tuning_trouble_;  ///< As was last said.
  std::unique_ptr<cluster::ConfigurationStore> store_;
  std::unique_ptr<cluster::Engine> engine_;
  Signal membership_changed_{loop_};
  std::unique_ptr<cluster::Membership> membership_;
  cluster::VotingMembership* voting_ = nullptr;  ///< The membership, if the nodes vote.
  std::vector<std::unique_ptr<service::Coordination>> coordinations_;
  std::unique_ptr<cluster::LossResponse> loss_;  ///< Where nodes vote.
  std::unique_ptr<cluster::Watchdog> watchdog_;  ///< Where one is configured.
  protocol::FirstMessages first_messages_;
  std::unique_ptr<protocol::Transport::Listener> listener_;
  std::map<NodeId, bool> present_;  ///< Of the peers, as was last said.
  Function<void()> closed_;
  std::function<void()> restart_;  ///< Wanted, and not done yet.
  Loop::TimerId restart_anyway_{}, arm_later_{};
  std::string watchdog_waits_;  ///< For what, before it is armed.
  int commands_ = 0;            ///< Of administrators, under way.
  bool leaving_ = false;        ///< One of them takes this node out of the cluster.
  TaskScope tasks_;
};

}  // namespace

Expected<std::unique_ptr<Daemon>> Daemon::start(AsioLoop& loop, Config config, Places places) {
  auto csvd = std::make_unique<Csvd>(loop, std::move(config));
  CSV_TRY(csvd->build(places));
  return std::unique_ptr<Daemon>{std::move(csvd)};
}

}  // namespace csv
