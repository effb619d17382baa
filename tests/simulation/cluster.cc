#include "tests/simulation/cluster.h"

#include <algorithm>
#include <utility>

#include "coordinator/cluster/disk_witness.h"
#include "coordinator/protocol/failure.h"
#include "csvfs/base/check.h"
#include "csvfs/base/log.h"
#include "iscsi/blocking_lun.h"

namespace csv::sim {
namespace {

/// As Cluster::kMountIsid.
constexpr std::uint64_t kCoordinatorIsid = 1;

}  // namespace

// ---------------------------------------------------------------------------- a process

Process::Process(World& world, Network& network, std::string name, NodeId node, SimLoop::Skew skew)
    : loop{std::make_unique<SimLoop>(world, std::move(name), skew)},
      random{world.random().next()},
      door{network.door(*loop, node)} {}

void Cluster::bury(Process& process) {
  *process.alive = false;
  process.door.reset();
  graveyard_.push_back(std::move(process.loop));
}

// ---------------------------------------------------------------------------- csvd

Csvd::Csvd(Cluster& cluster, std::size_t node)
    : cluster_{cluster},
      node_{node},
      process_{cluster.world, cluster.network, Cluster::endpoint(node) + ".csvd", Cluster::id(node),
               cluster.nodes_[node].skew} {
  process_.loop->enter([this] {
    membership_ = cluster_.voting ? voting() : standalone();
    published_.resize(cluster_.volumes());
    for (std::size_t volume = 0; volume < cluster_.volumes(); ++volume)
      coordinations_.push_back(make_coordination(volume));
    first_messages_ = std::make_unique<protocol::FirstMessages>(
        *process_.loop, 5s, 256,
        [this](std::unique_ptr<protocol::Connection> connection, protocol::Message first) {
          accept(std::move(connection), std::move(first));
        });
    auto listening = process_.door->listen(
        Cluster::endpoint(node_), [this](std::unique_ptr<protocol::Connection> connection) {
          first_messages_->add(std::move(connection));
        });
    CSV_CHECK(bool(listening));
    listener_ = *std::move(listening);
  });
}

std::unique_ptr<service::Coordination> Csvd::make_coordination(std::size_t volume) {
  const auto& board = cluster_.nodes_[node_].boards[volume];
  service::Coordination::Setup setup;
  setup.loop = process_.loop.get();
  setup.membership = membership_.get();
  setup.volume = cluster_.volume(volume).name;
  setup.node = Cluster::id(node_);
  // What it coordinated in a former life its mounts still wait for.
  setup.wanted = !cluster_.voting && board.endpoint == Cluster::endpoint(node_);
  setup.take_over = [this, volume] { return take_over(volume); };
  return std::make_unique<service::Coordination>(std::move(setup));
}

std::unique_ptr<cluster::Membership> Csvd::standalone() {
  cluster::StandaloneMembership::Surroundings with;
  with.loop = process_.loop.get();
  with.transport = process_.door.get();
  with.node = Cluster::id(node_);
  with.endpoint = Cluster::endpoint(node_);
  with.incarnation = process_.random.next() | 1;
  for (std::size_t other = 0; other < cluster_.size(); ++other) {
    if (other == node_) continue;
    auto name = Cluster::endpoint(other);
    with.peers.push_back({Cluster::id(other), name, name});
  }
  with.changed = [this] { publish(); };
  return std::make_unique<cluster::StandaloneMembership>(std::move(with));
}

std::unique_ptr<cluster::Membership> Csvd::voting() {
  auto& node = cluster_.nodes_[node_];
  engine_ = cluster_.group.engine(*process_.loop, Cluster::id(node_));
  store_ = std::make_unique<KeptDisk>(cluster_.world, *process_.loop, node.kept, &node.disk_full);
  cluster::VotingMembership::Surroundings with;
  with.loop = process_.loop.get();
  with.transport = process_.door.get();
  with.engine = engine_.get();
  with.store = store_.get();
  with.node = Cluster::id(node_);
  with.endpoint = Cluster::endpoint(node_);
  with.incarnation = process_.random.next() | 1;
  with.kept = node.kept;
  with.volumes = [this] {
    std::vector<cluster::VotingMembership::LocalVolume> out;
    for (std::size_t volume = 0; volume < cluster_.volumes(); ++volume)
      out.push_back(
          {cluster_.volume(volume).name, cluster_.mount(node_, volume) != nullptr ? 1u : 0u});
    return out;
  };
  with.reached = [this] {
    std::vector<cluster::Reached> out;
    for (std::size_t volume = 0; volume < coordinations_.size(); ++volume) {
      TimePoint at{};
      if (auto* mount = cluster_.mount(node_, volume)) at = mount->mount().state().reached;
      if (auto* its = service(volume)) at = std::max(at, its->reached());
      if (at != TimePoint{}) out.push_back({cluster_.volume(volume).name, at});
    }
    return out;
  };
  with.signs = [this] {
    std::vector<cluster::StorageSign> out;
    for (const auto& each : coordinations_) {
      if (each->service() == nullptr) continue;
      auto seen = each->service()->signs();
      out.insert(out.end(), seen.begin(), seen.end());
    }
    return out;
  };
  with.changed = [this] { publish(); };
  with.make_witness = [this](const cluster::WitnessRecord&) {
    return cluster_.witness.witness(
        *process_.loop, process_.random, Cluster::kClusterId, Cluster::id(node_),
        cluster_.witness_opener(process_, node_),
        [this] { return voting_ != nullptr ? voting_->replica().known_tag() : ClusterTag{}; });
  };
  auto made = std::make_unique<cluster::VotingMembership>(std::move(with));
  voting_ = made.get();
  return made;
}

void Csvd::accept(std::unique_ptr<protocol::Connection> connection, protocol::Message first) {
  if (first.frame.has_beat()) return membership_->accept(std::move(connection), std::move(first));
  CSV_CHECK(first.frame.has_hello());
  const auto& name = first.frame.hello().volume();
  for (const auto& each : coordinations_)
    if (each->volume() == name && each->service() != nullptr)
      return each->service()->accept(std::move(connection), std::move(first));
  auto refusal =
      service::not_coordinated(first, Cluster::id(node_), membership_->coordinator(name));
  connection->send(std::move(refusal));  // Closing comes behind it.
}

void Csvd::publish() {
  if (!membership_ || coordinations_.size() < cluster_.volumes()) return;  // Still being built.
  for (std::size_t volume = 0; volume < coordinations_.size(); ++volume) {
    const auto& name = cluster_.volume(volume).name;
    auto& board = cluster_.nodes_[node_].boards[volume];
    auto who = membership_->coordinator(name);
    if (who != published_[volume]) {
      board.endpoint = who ? who->endpoint : "";
      board.coordinator = who ? who->node : NodeId{};
      board.epoch = who ? who->epoch : Epoch{};
    }
    published_[volume] = who;
    board.open_until = membership_->open_until(name);
  }
  if (voting_ != nullptr)
    cluster_.sides.look(Cluster::id(node_), *voting_,
                        process_.loop->in_world(voting_->open_until()));
  for (const auto& each : coordinations_) each->news();
}

void Csvd::kill() {
  process_.loop->enter([this] {
    listener_.reset();
    first_messages_.reset();
    tasks_.reset();
    coordinations_.clear();
    membership_.reset();
    store_.reset();
    engine_.reset();
  });
  cluster_.bury(process_);
}

Task<Expected<std::unique_ptr<service::VolumeService>>> Csvd::take_over(std::size_t volume) {
  const auto& name = cluster_.volume(volume).name;
  service::Surroundings with;
  with.timing.reconnect_grace = cluster_.reconnect_grace;
  with.loop = process_.loop.get();
  with.random = &process_.random;
  with.open_lun = cluster_.opener(process_, node_, volume, kCoordinatorIsid);
  with.make_worker = [this] { return std::make_unique<SimWorker>(cluster_.world, *process_.loop); };
  with.open_until = [this] {
    return cluster_.broken.csvds_gate_stays_open ? TimePoint::max() : membership_->open_until();
  };
  with.answers_until = [this](NodeId node) { return membership_->answers_until(node); };
  with.process_gone = [this](NodeId node) { return membership_->process_gone(node); };
  with.wanted = [this, name] {
    auto to = membership_->assigned(name);
    return !to || !to->decided || to->node == Cluster::id(node_);
  };
  with.fenced = [this] { return membership_->fenced(); };
  with.belongs = [this](NodeId node) { return membership_->belongs(node); };
  with.out_of_reach = [this](NodeId node) { return membership_->out_of_reach(node); };
  if (voting_ != nullptr)
    with.reached_by_others = [this, name] { return voting_->reached_by_peers(name); };
  with.tag = membership_->tag();
  with.node = Cluster::id(node_);
  with.cluster = Cluster::kClusterId;
  with.volume = name;
  auto taken = co_await service::VolumeService::take_over(std::move(with));
  if (taken) ++cluster_.takeovers;
  cluster_.world.note(taken ? fmt::format("node{} coordinates {} in epoch {}", node_ + 1, name,
                                          raw((*taken)->epoch()))
                            : fmt::format("node{} cannot take over {}: {}", node_ + 1, name,
                                          taken.error().message()));
  co_return taken;
}

void Csvd::start_volume(std::size_t volume) {
  process_.loop->post([this, volume, alive = process_.alive] {
    if (*alive) tasks_->spawn(start(volume));
  });
}

/// Where nodes vote, it is where an administrator wants it from then on.
Task<void> Csvd::start(std::size_t volume) {
  if (voting_ == nullptr) {
    (void)co_await coordination(volume).start();
    co_return;
  }
  cluster::Replica::Change move = [node = Cluster::id(node_), name = cluster_.volume(volume).name](
                                      cluster::Configuration& next) -> Expected<void> {
    auto& record = next.volumes[name];
    record.preferred = node;
    if (record.coordinator == node) return {};
    record.coordinator = node;
    ++record.turn;
    return {};
  };
  auto task = voting_->replica().propose(std::move(move), 5s);
  (void)co_await task;
}

void Csvd::stop_volume(std::function<void()> done, std::size_t volume) {
  process_.loop->post([this, volume, alive = process_.alive, done = std::move(done)]() mutable {
    if (*alive) tasks_->spawn(stop(volume, std::move(done)));
  });
}

Task<void> Csvd::stop(std::size_t volume, std::function<void()> done) {
  (void)co_await coordination(volume).stop();
  done();
}

void Csvd::force_quorum(std::function<void(bool)> done) {
  process_.loop->post([this, alive = process_.alive, done = std::move(done)]() mutable {
    if (*alive) tasks_->spawn(force(std::move(done)));
  });
}

Task<void> Csvd::force(std::function<void(bool)> done) {
  auto task = voting_->replica().force(5s);
  auto forced = co_await task;
  done(bool(forced));
}

// ---------------------------------------------------------------------------- csvfs

Csvfs::Csvfs(Cluster& cluster, std::size_t node, std::size_t volume)
    : cluster_{cluster},
      node_{node},
      volume_{volume},
      process_{cluster.world, cluster.network,
               Cluster::endpoint(node) + ".csvfs" +
                   (volume > 0 ? std::to_string(volume + 1) : std::string{}),
               Cluster::id(node), cluster.nodes_[node].skew},
      incarnation_{cluster.world.random().next()} {
  process_.loop->enter([this] {
    MountSurroundings with;
    with.loop = process_.loop.get();
    with.random = &process_.random;
    with.open_lun = cluster_.opener(process_, node_, volume_, Cluster::kMountIsid);
    Finder::Setup find;
    find.loop = process_.loop.get();
    find.transport = process_.door.get();
    for (std::size_t other = 0; other < cluster_.size(); ++other)
      if (other != node_) find.peers.push_back({Cluster::id(other), Cluster::endpoint(other)});
    find.by_csvd = [this]() -> Expected<Finder::Node> {
      if (board().endpoint.empty())
        return Error{Errc::not_coordinator, "nobody is known to coordinate the volume"};
      return Finder::Node{board().coordinator, board().endpoint};
    };
    finder_ = std::make_unique<Finder>(std::move(find));
    with.connect = [this](protocol::Connected done) { finder_->connect(std::move(done)); };
    with.elsewhere = [this](NodeId named, const std::string& endpoint) {
      finder_->elsewhere(named, endpoint);
    };
    with.found = [this] { finder_->found(); };
    with.newest_epoch = [this] { return board().epoch; };
    with.open_until = [this] {
      return cluster_.broken.mounts_gate_stays_open ? TimePoint::max() : board().open_until;
    };
    with.volume = cluster_.volume(volume_).name;
    with.node = Cluster::id(node_);
    auto open_until = with.open_until;
    mount_ = Mount::start(std::move(with));
    pages_ = std::make_unique<PageCache>(*process_.loop, *mount_, std::move(open_until));
    pages_->keeps_pages = cluster_.broken.kernels_keep_pages;
  });
}

bool Csvfs::greeted(std::uint64_t verifier) {
  auto before = std::exchange(verifier_, verifier);
  return before && *before != verifier;
}

const Board& Csvfs::board() const { return cluster_.nodes_[node_].boards[volume_]; }

void Csvfs::kill() {
  process_.loop->enter([this] {
    mount_.reset();
    programs_.reset();
    pages_.reset();
    finder_.reset();
  });
  cluster_.bury(process_);
}

void Csvfs::end(std::function<void()> done) {
  process_.loop->post([this, alive = process_.alive, done = std::move(done)]() mutable {
    if (!*alive) return;
    programs_->spawn([](Mount& mount, std::function<void()> told) -> Task<void> {
      co_await mount.end();
      told();
    }(*mount_, std::move(done)));
  });
}

// ---------------------------------------------------------------------------- the cluster

Cluster::Cluster(World& on, ClusterOptions options)
    : world{on},
      network{on},
      group{on},
      voting{options.voting},
      disk_loop{on, "disk", {}},
      witness{on, disk_loop, options.witness},
      sides{on, [this](std::string what) { violated(std::move(what)); }},
      broken{options.broken},
      reconnect_grace{options.reconnect_grace},
      nodes_(options.nodes) {
  for (std::size_t each = 0; each < options.volumes; ++each) {
    auto about = options.disk;
    about.identity += std::to_string(each + 1);
    volumes_.push_back({.name = "volume" + std::to_string(each + 1),
                        .disk = iscsi::RamDisk::create(about, &disk_loop),
                        .weather = options.weather,
                        .content_from = 0,
                        .one_writer = nullptr});
  }
  network.forgery = broken.forgery;
  network.on_said = [this](const std::string& volume, NodeId node, Epoch epoch) {
    sides.said(volume, node, epoch);
  };
  network.on_greeted = [this](const SimLoop& mount, std::uint64_t verifier) {
    greeted(mount, verifier);
  };
  witness.forgery = broken.witness;
  for (auto& node : nodes_) {
    node.boards.resize(options.volumes);
    node.mounts.resize(options.volumes);
    node.skew.boot = world.between(1h, 1000h);
    node.skew.parts_per_mille = static_cast<int>(world.random().below(11)) - 5;
    node.skew.wall = world.between(-2s, 2s);
  }
  if (!voting) return;
  // Founded on the first node; the others join it.
  cluster::Configuration first;
  first.cluster = kClusterId;
  first.name = "sim";
  for (std::size_t node = 0; node < nodes_.size(); ++node) {
    first.nodes[id(node)] = {endpoint(node), endpoint(node)};
    first.ballot.now.nodes[id(node)] = node == 0 ? 1 : 0;
  }
  first.policies.hold_s = 5;
  first.witness = witness.record();
  nodes_[0].kept.configuration = std::move(first);
}

void be_quiet() {
  static const bool done = [] {
    log::set_up("sim_test", log::Level::error);
    return true;
  }();
  (void)done;
}

Cluster::~Cluster() {
  governed_ = false;
  for (std::size_t node = 0; node < nodes_.size(); ++node) {
    for (std::size_t each = 0; each < volumes(); ++each) kill_mount(node, each);
    kill_csvd(node);
  }
  // What the dead left behind unwinds: workers that waited for the LUN have their answers now.
  world.run([] { return false; }, world.now() + 60s);
}

iscsi::RamFate Cluster::fate(const Volume& volume, const iscsi::RamCommand& command) {
  const auto& weather = volume.weather;
  auto& random = world.random();
  iscsi::RamFate fate;
  fate.to_target = world.between(10us, 150us);
  fate.inside = world.between(10us, 250us);
  fate.to_initiator = world.between(10us, 150us);
  fate.lands_late = random.chance(1, 2);
  // Sometimes long after its sender was fenced.
  fate.late_if_reserved = weather.foreigners;
  fate.late_by = world.between(0ms, !random.chance(1, 4) ? 50ms : random.chance(1, 2) ? 4s : 20s);
  auto one_in = [&](std::uint64_t many) { return many > 0 && random.chance(1, many); };
  if (one_in(weather.hiccup_in)) {
    (random.chance(1, 2) ? fate.to_target : fate.inside) += world.between(1ms, 80ms);
  }
  if (one_in(weather.stall_in)) {
    (random.chance(1, 2) ? fate.to_target : fate.inside) += world.between(1s, 14s);
  }
  using Kind = iscsi::RamCommand::Kind;
  if (weather.full && command.offset >= volume.content_from &&
      (command.kind == Kind::write || command.kind == Kind::zero)) {
    fate.failure = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
    fate.torn_blocks = random.below(16);
  }
  fate.unfenced = broken.unfenced;
  if (command.kind == Kind::unmap && broken.unmaps_not_awaited) {
    fate.early = fate.unfenced = true;
    fate.inside += world.between(0ms, 4s);
  }
  fate.answer_lost = one_in(weather.lost_answer_in);
  fate.lies = (command.kind == Kind::write && one_in(weather.lie_in)) ||
              (command.kind == Kind::zero && broken.zeros_not_made);
  if (on_command) on_command(command, fate);
  return fate;
}

void Cluster::greeted(const SimLoop& mount, std::uint64_t verifier) {
  for (std::size_t node = 0; node < size(); ++node) {
    for (std::size_t volume = 0; volume < volumes(); ++volume) {
      auto* csvfs = this->mount(node, volume);
      if (csvfs == nullptr || csvfs->process().loop.get() != &mount || !csvfs->greeted(verifier))
        continue;
      if (on_told_of_loss) on_told_of_loss(node, volume);
    }
  }
}

bool Cluster::all_have_a_path(std::size_t volume) const {
  return std::all_of(nodes_.begin(), nodes_.end(), [volume](const Node& node) {
    const auto& csvfs = node.mounts[volume];
    return !csvfs || csvfs->mount().state().mode == AccessMode::direct;
  });
}

void Cluster::may_not_be_durable(std::size_t volume, std::optional<std::size_t> mount,
                                 const iscsi::RamCommand& command, iscsi::RamFate& fate) {
  auto& failing = volumes_[volume].weather.flushes;
  bool mine = failing.whose == FlushFailures::Whose::anybodys ||
              (failing.whose == FlushFailures::Whose::mounts) == mount.has_value();
  bool fails = command.kind == iscsi::RamCommand::Kind::flush && failing.left > 0 && mine;
  if (fails) {
    --failing.left;
    fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
    // Who is not logged in is not told, and nobody promises him anything.
    fate.forgets = fate.tells_all = failing.forgets && all_have_a_path(volume);
    fate.lies = broken.flushes_lie;
    if (fate.lies) fate.failure = {};
  }
  fate.failed = [this, what = NotDurable{volume, mount, fate.forgets, !fails}] {
    world.note(fmt::format("{} is told that what {} had answered may be gone{}",
                           what.mount ? fmt::format("the mount of node{}", *what.mount + 1)
                                      : std::string{"a coordinator"},
                           volumes_[what.volume].name, what.forgot ? ", and it is" : ""));
    if (on_not_durable) on_not_durable(what);
    if (!what.forgot) return;
    auto& on = volumes_[what.volume];
    world.after(Duration::zero(), [&on] { on.one_writer->forgot(*on.disk); });
  };
}

iscsi::LunOpener Cluster::opener(Process& process, std::size_t node, std::size_t volume,
                                 std::uint64_t isid_seed) {
  using Opened = Function<void(Expected<std::unique_ptr<iscsi::Lun>>)>;
  return [this, volume, loop = process.loop.get(), alive = process.alive, node, isid_seed](
             iscsi::LunOptions options, Opened done) {
    options.initiator = initiator(node);
    options.isid_seed = isid_seed;
    auto login = world.between(1ms, 20ms);
    auto mount = isid_seed == kMountIsid ? std::optional{node} : std::nullopt;
    loop->after(login, [this, volume, node, mount, loop, alive, options = std::move(options),
                        done = std::move(done)]() mutable {
      if (!*alive) return;
      auto connection = next_connection_++;
      auto* on = &volumes_[volume];
      auto plan = [this, volume, on, node, mount, connection,
                   name = loop->name()](const iscsi::RamCommand& command) {
        auto its = fate(*on, command);
        if (!mount && on_csvd_sends) on_csvd_sends(node, command);
        if (on->weather.flushes.possible) may_not_be_durable(volume, mount, command, its);
        if (command.kind == iscsi::RamCommand::Kind::write &&
            on->one_writer->concerned(command.offset, command.length))
          its.took_effect = [on, connection, name](std::uint64_t offset,
                                                   std::span<const std::byte> data) {
            on->one_writer->wrote(connection, name, offset, data);
          };
        return its;
      };
      done(on->disk->connect(*loop, std::move(options), std::move(plan)));
    });
  };
}

iscsi::LunOpener Cluster::witness_opener(Process& process, std::size_t node) {
  using Opened = Function<void(Expected<std::unique_ptr<iscsi::Lun>>)>;
  return [this, loop = process.loop.get(), alive = process.alive, node](iscsi::LunOptions options,
                                                                        Opened done) {
    options.initiator = initiator(node);
    options.isid_seed = 3;
    auto login = world.between(1ms, 20ms);
    loop->after(
        login, [this, loop, alive, options = std::move(options), done = std::move(done)]() mutable {
          if (!*alive) return;
          auto plan = [this](const iscsi::RamCommand&) {
            auto& random = world.random();
            iscsi::RamFate its;
            its.to_target = world.between(10us, 150us);
            its.inside = world.between(10us, 250us);
            its.to_initiator = world.between(10us, 150us);
            its.lands_late = random.chance(1, 2);
            its.late_by = world.between(0ms, random.chance(1, 4) ? 8s : 50ms);
            if (volumes_[0].weather.stall_in > 0 && random.chance(1, 200))
              (random.chance(1, 2) ? its.to_target : its.inside) += world.between(100ms, 6s);
            its.answer_lost = volumes_[0].weather.lost_answer_in > 0 && random.chance(1, 500);
            return its;
          };
          done(witness.disk()->connect(*loop, std::move(options), std::move(plan)));
        });
  };
}

void Cluster::run_blocking(Volume& volume, Function<void(iscsi::BlockingLun&)> work) {
  SimLoop loop{world, "tool", {}};
  auto worker = std::make_unique<SimWorker>(world, loop);
  bool done = false;
  worker->post([&] {
    iscsi::LunOptions options;
    options.initiator = "iqn.2026-01.org.csvfs:tool";
    auto lun = volume.disk->connect(loop, options);
    CSV_CHECK(bool(lun));
    {
      iscsi::BlockingLun blocking{**lun, worker->blocking()};
      work(blocking);
    }
    done = true;
  });
  bool over = world.run([&] { return done; }, world.now() + 1h);
  CSV_CHECK(over);
  worker.reset();
}

void Cluster::format() {
  for (auto& each : volumes_)
    run_blocking(each, [this, &each](iscsi::BlockingLun& lun) {
      Random random{world.random().next()};
      volume::FormatOptions options;
      options.label = each.name;
      options.cluster = kClusterId;
      options.wal_size = 4ull << 20;
      options.claim_space = false;
      options.overwrite = true;  // of a LUN that something else has lain on
      auto made = volume::format(lun, options, random, WallTime{1'800'000'000'000'000'000});
      if (!made) check_failed(made.error().message().c_str());
      each.content_from = made->data_offset + made->chunks.size() * volume::kChunkSize;
      each.one_writer = std::make_unique<OneWriter>(
          *made, [this](std::string what) { violated(std::move(what)); });
    });
  if (witness.disk() != nullptr) format_witness();
}

void Cluster::format_witness() {
  SimLoop loop{world, "tool", {}};
  iscsi::LunOptions options;
  options.initiator = "iqn.2026-01.org.csvfs:tool";
  auto lun = witness.disk()->connect(loop, options);
  CSV_CHECK(bool(lun));
  Random random{world.random().next()};
  std::optional<Expected<void>> made;
  TaskScope scope;
  loop.enter([&] {
    scope.spawn([](iscsi::Lun& on, Random& by, std::optional<Expected<void>>& told) -> Task<void> {
      auto task = cluster::format_witness(on, kClusterId, by);
      auto result = co_await task;
      told.emplace(std::move(result));
    }(**lun, random, made));
  });
  bool over = world.run([&] { return made.has_value(); }, world.now() + 1h);
  CSV_CHECK(over);
  if (!*made) check_failed(made->error().message().c_str());
}

Expected<volume::CheckReport> Cluster::check(std::size_t volume) {
  Expected<volume::CheckReport> report = Errc::refused;
  run_blocking(volumes_[volume], [&](iscsi::BlockingLun& lun) {
    auto key = make_key({kClusterId, NodeId{63}, KeyRole::coordinator, 1});
    auto registered = lun.register_key(key);
    CSV_CHECK(bool(registered));
    report = csv::volume::check(lun);
    (void)lun.register_key(Key{});
  });
  return report;
}

void Cluster::start_csvd(std::size_t node) {
  if (nodes_[node].csvd || !nodes_[node].powered) return;
  nodes_[node].csvd = std::make_unique<Csvd>(*this, node);
  nodes_[node].csvd->process().loop->freeze(nodes_[node].paused_until);
}

void Cluster::kill_csvd(std::size_t node) {
  if (!nodes_[node].csvd) return;
  nodes_[node].csvd->kill();
  nodes_[node].csvd.reset();
}

void Cluster::start_mounts(std::size_t node) {
  for (std::size_t each = 0; each < volumes(); ++each) start_mount(node, each);
}

void Cluster::start_mount(std::size_t node, std::size_t volume) {
  if (nodes_[node].mounts[volume] || !nodes_[node].powered) return;
  nodes_[node].mounts[volume] = std::make_unique<Csvfs>(*this, node, volume);
  nodes_[node].mounts[volume]->process().loop->freeze(nodes_[node].paused_until);
  if (on_mounted) on_mounted(node, volume);
}

void Cluster::kill_mount(std::size_t node, std::size_t volume) {
  auto& mount = nodes_[node].mounts[volume];
  if (!mount) return;
  counters.push_back(mount->mount().counters());
  if (on_mount_dies) {
    on_mount_dies(node, volume, [&mount] { mount->kill(); });
  } else {
    mount->kill();
  }
  mount.reset();
}

void Cluster::power_loss(std::size_t volume) {
  volumes_[volume].disk->power_loss(world.random());
  volumes_[volume].one_writer->power_loss(*volumes_[volume].disk);
}

void Cluster::pause(std::size_t node, Duration until) {
  nodes_[node].paused_until = until;
  if (nodes_[node].csvd) nodes_[node].csvd->process().loop->freeze(until);
  for (auto& each : nodes_[node].mounts)
    if (each) each->process().loop->freeze(until);
}

void Cluster::set_wall_clock(std::size_t node, Duration ahead) {
  nodes_[node].skew.wall = ahead;
  if (nodes_[node].csvd) nodes_[node].csvd->process().loop->set_wall_clock(ahead);
  for (auto& each : nodes_[node].mounts)
    if (each) each->process().loop->set_wall_clock(ahead);
}

void Cluster::power_off(std::size_t node) {
  network.unplug(id(node));
  group.power(id(node), false);
  for (auto& each : volumes_) each.disk->set_reachable(initiator(node), false);
  witness.set_reachable(id(node), initiator(node), false);
  nodes_[node].powered = false;
  for (std::size_t each = 0; each < volumes(); ++each) kill_mount(node, each);
  kill_csvd(node);
}

void Cluster::power_on(std::size_t node) {
  nodes_[node].powered = true;
  nodes_[node].paused_until = {};
  for (auto& board : nodes_[node].boards) board = {};
  nodes_[node].skew.boot = world.between(1s, 1000h) - world.now();
  network.plug(id(node));
  group.power(id(node), true);
  for (auto& each : volumes_) each.disk->set_reachable(initiator(node), true);
  witness.set_reachable(id(node), initiator(node), true);
  start_csvd(node);
  start_mounts(node);
}

std::optional<std::size_t> Cluster::coordinator(std::size_t volume) const {
  std::optional<std::size_t> found;
  Epoch newest{};
  for (std::size_t node = 0; node < nodes_.size(); ++node) {
    const auto& csvd = nodes_[node].csvd;
    if (!csvd || csvd->service(volume) == nullptr) continue;
    if (found && csvd->service(volume)->epoch() < newest) continue;
    newest = csvd->service(volume)->epoch();
    found = node;
  }
  return found;
}

void Cluster::govern() {
  if (voting) return;  // they govern themselves
  governed_ = true;
  for (std::size_t each = 0; each < volumes(); ++each) govern(each, 3);
}

void Cluster::govern(std::size_t volume, int missing) {
  if (!governed_) return;
  missing = coordinator(volume) ? 0 : missing + 1;
  // An administrator is slower than csvd itself, which may be on its way already.
  if (missing > 3) {
    std::vector<std::size_t> able;
    for (std::size_t node = 0; node < size(); ++node)
      if (csvd(node)) able.push_back(node);
    if (!able.empty()) {
      auto node = able[world.random().below(able.size())];
      world.note(fmt::format("node{} is told to take {} over", node + 1, volumes_[volume].name));
      csvd(node)->start_volume(volume);
      missing = 0;
    }
  }
  world.after(world.between(500ms, 1500ms), [this, volume, missing] { govern(volume, missing); });
}

}  // namespace csv::sim
