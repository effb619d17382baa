#include "csvfs/daemon.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "coordinator/protocol/host_transport.h"
#include "csvfs/base/asio.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/events.h"
#include "csvfs/base/io_process.h"
#include "csvfs/base/log.h"
#include "csvfs/base/status_board.h"
#include "csvfs/base/wake_latency.h"
#include "csvfs/finder.h"
#include "csvfs/fuse_session.h"
#include "csvfs/mount.h"
#include "iscsi/configured_lun.h"

namespace csv {
namespace {

constexpr Duration kTick = 1s;
constexpr Duration kGatePoll = 20ms;  ///< The gate is a number in shared memory: nobody calls.
constexpr Duration kEndWithin = 15s;

/// The board as the mount sees it: csvd may come later than we do, and go and come again.
class BoardView {
 public:
  BoardView(std::string name, std::string volume)
      : name_{std::move(name)}, volume_{std::move(volume)} {}

  Expected<Finder::Node> coordinator() {
    CSV_TRY(look());
    auto known = board_->volume(at_);
    if (known && known->stopped)
      return Error{Errc::retry, volume_ + " is stopped by command: csvctl volume start " + volume_ +
                                    " puts it back"};
    if (!known || known->endpoint.empty())
      return Error{Errc::retry, "no node coordinates volume " + volume_ + " as far as csvd knows"};
    return Finder::Node{known->coordinator, known->endpoint};
  }
  [[nodiscard]] Epoch epoch() {
    auto known = look() ? board_->volume(at_) : std::nullopt;
    return known ? known->epoch : Epoch{};
  }
  [[nodiscard]] TimePoint open_until() {
    if (!look()) return {};
    return board_->open_until(at_);
  }
  void publish(const BoardMount& mount) {
    if (look()) board_->publish(at_, mount);
  }

 private:
  Expected<void> look() {
    if (!board_) {
      auto opened = StatusBoard::open(name_);
      if (!opened)
        return Error{Errc::retry, "csvd is not running on this node: " + opened.error().message()};
      board_ = *std::move(opened);
    }
    if (at_ == StatusBoard::kVolumes) at_ = board_->find(volume_, false);
    if (at_ == StatusBoard::kVolumes)
      return Error{Errc::retry, "csvd does not know volume " + volume_ + " (its configuration?)"};
    return {};
  }

  std::string name_, volume_;
  std::unique_ptr<StatusBoard> board_;
  std::size_t at_ = StatusBoard::kVolumes;
};

const VolumeConfig* find_volume(const Config& config, const std::string& name) {
  auto found = std::find_if(config.volumes.begin(), config.volumes.end(),
                            [&](const auto& each) { return each.name == name; });
  return found == config.volumes.end() ? nullptr : &*found;
}

std::vector<Finder::Node> peers_of(const Config& config) {
  std::vector<Finder::Node> out;
  for (const auto& peer : config.peers) out.push_back({peer.id, peer.address});
  return out;
}

/// The parts in the order they need one another; they go in reverse, but for the mount, which goes
/// before the requests that wait for it (mount.h).
class Daemon {
 public:
  Daemon(AsioLoop& loop, protocol::Transport& transport, DaemonOptions options, Config config,
         const VolumeConfig& volume, std::function<bool()> usable)
      : options_{std::move(options)},
        usable_{std::move(usable)},
        loop_{loop},
        signals_{loop_.context(), SIGTERM, SIGINT},
        board_{options_.board, options_.volume},
        finder_{{&loop, &transport, peers_of(config), [this] { return board_.coordinator(); }}},
        random_{Random::from_system()},
        wake_latency_{loop,
                      config.hold_wake_latency ? machine_wake_latency() : Function<void(bool)>{}} {
    MountSurroundings surroundings;
    surroundings.loop = &loop_;
    surroundings.random = &random_;
    surroundings.open_lun = iscsi::configured_opener(loop_, config, volume);
    surroundings.connect = [this](protocol::Connected done) { finder_.connect(std::move(done)); };
    surroundings.elsewhere = [this](NodeId node, const std::string& endpoint) {
      finder_.elsewhere(node, endpoint);
    };
    surroundings.found = [this] { finder_.found(); };
    surroundings.newest_epoch = [this] { return board_.epoch(); };
    surroundings.open_until = [this] { return board_.open_until(); };
    surroundings.volume = options_.volume;
    surroundings.node = config.node;
    surroundings.memory = static_cast<std::uint64_t>(volume.mount_memory_mib) << 20;
    mount_ = Mount::start(std::move(surroundings));
  }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;
  ~Daemon() {
    tasks_.cancel_all();
    mount_.reset();
  }

  Expected<void> run() {
    signals_.async_wait([this](boost::system::error_code error, int signal) {
      if (error) return;
      log::info("mount asked to end volume={} signal={}", options_.volume, signal);
      leave();
    });
    loop_.after(options_.ready_within, [this] { give_up_waiting(); });
    loop_.post([this] {
      tick();
      tasks_.spawn(begin());
    });
    loop_.run();
    return result_;
  }

 private:
  Task<void> begin() {
    auto ready = co_await mount_->ready();
    if (!ready) co_return finish(ready.error());
    FuseSession::Options fuse;
    fuse.source = options_.volume;
    fuse.flags = options_.mount_flags;
    fuse.requested = [this] { wake_latency_.request(); };
    auto session =
        FuseSession::start(loop_, *mount_, options_.mountpoint, fuse, [this] { leave(); });
    if (!session) {
      co_await mount_->end();
      co_return finish(session.error());
    }
    session_ = *std::move(session);
    log::info("mounted volume={} at={}", options_.volume, options_.mountpoint);
    events::report(events::Severity::info, "mount", options_.volume,
                   "mounted at " + options_.mountpoint);
    tick_once();
    if (!usable_()) leave();
  }

  void give_up_waiting() {
    if (session_ || leaving_) return;
    events::report(events::Severity::error, "mount", options_.volume, "could not be mounted",
                   mount_->state().reason);
    finish(Error{std::errc::timed_out,
                 "volume " + options_.volume + " cannot be used: " + mount_->state().reason});
  }

  /// The kernel has no more requests, or a signal came: once.
  void leave() {
    if (std::exchange(leaving_, true)) return;
    if (!session_) return finish(Error{std::errc::interrupted, "ended before it was mounted"});
    session_->unmount();
    // A storage that does not answer must not keep the process: the coordinator fences it then.
    loop_.after(kEndWithin, [this] {
      finish(Error{std::errc::timed_out, "the storage or the coordinator did not answer any more"});
    });
    tasks_.spawn(end());
  }

  Task<void> end() {
    co_await mount_->end();
    auto trouble = mount_->farewell_trouble();
    log::info("unmounted volume={} goodbye=\"{}\"", options_.volume,
              trouble.empty() ? "said" : trouble);
    events::report(trouble.empty() ? events::Severity::info : events::Severity::warning, "mount",
                   options_.volume, "unmounted",
                   trouble.empty() ? "" : "without a goodbye: " + trouble);
    if (!trouble.empty()) co_return finish(Error{Errc::closed, trouble});
    finish({});
  }

  void finish(Expected<void> result) {
    if (std::exchange(finished_, true)) return;
    board_.publish(BoardMount{});  // no process: what is left on the board is of one that crashed
    result_ = std::move(result);
    loop_.stop();
  }

  /// A mount that has said it is closed stays so until it is asked again.
  void tick() {
    bool closed = tick_once();
    loop_.after(closed ? kGatePoll : kTick, [this] { tick(); });
  }

  /// Whether the gate is closed.
  bool tick_once() {
    BoardMount out;
    out.gate_closed = mount_->says_closed();
    auto state = mount_->state();
    out.pid = static_cast<std::uint32_t>(::getpid());
    out.mode = session_ ? state.mode : AccessMode::unavailable;
    out.reason = state.reason.substr(0, 127);
    out.since = state.since;
    out.reached = state.reached;
    out.said = loop_.now();
    out.counters = mount_->counters();
    board_.publish(out);
    return out.gate_closed;
  }

  DaemonOptions options_;
  std::function<bool()> usable_;
  AsioLoop& loop_;
  asio::signal_set signals_;
  BoardView board_;
  Finder finder_;
  Random random_;
  WakeLatency wake_latency_;
  bool leaving_ = false, finished_ = false;
  Expected<void> result_;
  std::unique_ptr<FuseSession> session_;
  std::unique_ptr<Mount> mount_;
  TaskScope tasks_;
};

}  // namespace

Expected<void> check_volume_is_configured(const std::string& config_file,
                                          const std::string& volume) {
  auto config = CSV_TRY(load_config(config_file));
  if (find_volume(config, volume) != nullptr) return {};
  std::string known;
  for (const auto& each : config.volumes) known += (known.empty() ? "" : ", ") + each.name;
  return Error{Errc::refused, "there is no volume " + volume + " in " + config_file +
                                  (known.empty() ? ", nor any other; csvctl volume add adds it"
                                                 : "; it has: " + known)};
}

Expected<void> run_daemon(const DaemonOptions& options, std::function<bool()> usable) {
  CSV_TRY(check_volume_is_configured(options.config_file, options.volume));
  auto config = CSV_TRY(load_config(options.config_file));
  const auto* volume = find_volume(config, options.volume);
  become_part_of_the_io_path(options.lock_memory);
  if (auto opened = events::open("csvfs"); !opened)
    log::warning("events_unavailable why=\"{}\"", opened.error().message());
  AsioLoop loop;
  auto network = CSV_TRY(protocol::make_host_transport(loop, config));
  Daemon daemon{loop, *network.transport, options, config, *volume, std::move(usable)};
  return daemon.run();
}

}  // namespace csv
