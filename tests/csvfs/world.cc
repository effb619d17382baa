#include "tests/csvfs/world.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "coordinator/volume/volume.h"
#include "iscsi/blocking_lun.h"

namespace csv::tests {
namespace {

constexpr const char* kVolume = "volume1";
constexpr const char* kEndpoint = "coordinator";
constexpr std::uint16_t kCluster = 4711;

/// Tells when it has ended.
class CountedWorker final : public Worker {
 public:
  explicit CountedWorker(std::atomic<int>& count) : count_{&count} { ++*count_; }
  CountedWorker(const CountedWorker&) = delete;
  CountedWorker& operator=(const CountedWorker&) = delete;
  ~CountedWorker() override {
    worker_.reset();
    --*count_;
  }
  void post(Function<void()> work) override { worker_->post(std::move(work)); }
  Blocking& blocking() override { return worker_->blocking(); }

 private:
  std::unique_ptr<ThreadWorker> worker_ = std::make_unique<ThreadWorker>("volume");
  std::atomic<int>* count_;
};

}  // namespace

/// A connection that a test may cut.
class World::Cuttable final : public protocol::Connection {
 public:
  Cuttable(World& world, int of_mount, std::unique_ptr<protocol::Connection> inner)
      : number{of_mount}, world_{&world}, inner_{std::move(inner)} {
    world_->connections_.push_back(this);
  }
  Cuttable(const Cuttable&) = delete;
  Cuttable& operator=(const Cuttable&) = delete;
  ~Cuttable() override { std::erase(world_->connections_, this); }

  void start(Function<void(protocol::Message)> on_message,
             Function<void(Error)> on_closed) override {
    closed_ = std::make_shared<Function<void(Error)>>(std::move(on_closed));
    auto heard = [this, on_message = std::move(on_message)](protocol::Message message) mutable {
      if (message.frame.has_hello_reply() && world_->earlier_coordinator)
        message.frame.mutable_hello_reply()->clear_releases_many();
      if (world_->lose_answers_of != number) on_message(std::move(message));
    };
    inner_->start(std::move(heard), [closed = closed_](Error why) { (*closed)(std::move(why)); });
  }
  void send(protocol::Message message) override {
    if (message.frame.has_notice_reply() && world_->lose_notice_replies_of == number) {
      ++world_->lost_notice_replies;
      return;
    }
    if (message.frame.request().has_resume() && world_->lose_resumes_of == number) return;
    if (message.frame.request().has_release()) {
      ++world_->releases;
      if (world_->earlier_coordinator)
        message.frame.mutable_request()->mutable_release()->clear_also();
    }
    if (message.frame.request().has_get_attr() && world_->lose_looks_of == number) {
      ++world_->lost_looks;
      return;
    }
    if (!cut_) inner_->send(std::move(message));
  }
  void close() override { inner_->close(); }
  const int number;  ///< Of the mount.
  std::string peer() const override { return inner_->peer(); }
  bool speaks_for(NodeId node) const override { return inner_->speaks_for(node); }
  std::size_t queued_bytes() const override { return inner_->queued_bytes(); }
  void cut() {
    if (std::exchange(cut_, true)) return;
    inner_->close();
    if (closed_) (*closed_)(Error{Errc::closed, "cut"});
  }

 private:
  World* world_;
  std::unique_ptr<protocol::Connection> inner_;
  std::shared_ptr<Function<void(Error)>> closed_;
  bool cut_ = false;
};

World::World(Options options) : options_{options} {
  auto disk = options_.like_tgt   ? iscsi::RamDiskOptions::like_tgt()
              : options_.like_lio ? iscsi::RamDiskOptions::like_lio()
                                  : iscsi::RamDiskOptions{};
  disk.geometry.block_size = options_.block_size;
  disk.geometry.block_count = options_.size / options_.block_size;
  disk.write_cache = options_.write_cache;
  disk.identity = options_.identity;
  loop_.start("world");
  disk_ = iscsi::RamDisk::create(disk, &loop_);

  ThreadBlocking blocking;
  std::unique_ptr<iscsi::Lun> lun;
  post([&] { lun = *disk_->connect(loop_, {}); });
  {
    iscsi::BlockingLun through{*lun, blocking};
    volume::FormatOptions format;
    format.label = kVolume;
    format.cluster = kCluster;
    Random random{7};
    auto made = volume::format(through, format, random, WallTime{1});
    REQUIRE_MESSAGE(made, made.error().message());
  }
  post([&] {
    lun.reset();
    first_ = std::make_unique<protocol::FirstMessages>(
        loop_, 10s, 16,
        [this](std::unique_ptr<protocol::Connection> connection, protocol::Message hello) {
          if (service_) service_->accept(std::move(connection), std::move(hello));
        });
    auto listener =
        transport_.listen(kEndpoint, [this](std::unique_ptr<protocol::Connection> each) {
          if (service_) first_->add(std::move(each));
        });
    listener_ = *std::move(listener);
  });
  take_over();
}

World::~World() {
  for (int number = 1; number < static_cast<int>(mounts_.size()); ++number) kill_mount(number);
  post([&] { tasks_.reset(); });
  crash_coordinator();
  while (workers_ > 0) wait(sleep(loop_, 5ms));  // a writer thread's end needs the loop
  post([&] {
    listener_.reset();
    first_.reset();
  });
  loop_.stop();
}

void World::wait(Task<void> task) { (void)wait(said(std::move(task))); }

void World::post(Function<void()> work) {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  loop_.post([&, work = std::move(work)]() mutable {
    if (!tasks_) tasks_ = std::make_unique<TaskScope>();
    work();
    std::unique_lock held{mutex};
    done = true;
    changed.notify_all();
  });
  std::unique_lock held{mutex};
  changed.wait(held, [&] { return done; });
}

iscsi::LunOpener World::opener(std::shared_ptr<iscsi::RamDisk> disk, int number, bool of_mount) {
  iscsi::RamPlan plan = [this, of_mount](const iscsi::RamCommand& command) {
    const auto& its_plan = of_mount ? mount_plan : coordinator_plan;
    return its_plan ? its_plan(command) : iscsi::RamFate{};
  };
  auto open = iscsi::RamDisk::opener(std::move(disk), loop_, std::move(plan));
  return [open = std::move(open), name = initiator(number)](
             iscsi::LunOptions how, Function<void(Expected<std::unique_ptr<iscsi::Lun>>)> done) {
    how.initiator = name;
    open(how, std::move(done));
  };
}

void World::take_over() {
  crash_coordinator();
  service::Surroundings around;
  around.loop = &loop_;
  around.random = &random_;
  around.open_lun = opener(disk_, 1, false);
  around.make_worker = [this] { return std::make_unique<CountedWorker>(workers_); };
  around.open_until = [this] { return open_until; };
  around.node = NodeId{1};
  around.cluster = kCluster;
  around.volume = kVolume;
  around.timing = options_.timing;
  around.fenced = [this] {
    std::map<NodeId, std::uint64_t> out;
    if (fenced_node != 0) out[NodeId{static_cast<std::uint8_t>(fenced_node)}] = 1;
    return out;
  };
  around.fences = [this](NodeId) { return static_cast<std::uint64_t>(fences); };
  around.memory = options_.coordinator_memory;
  auto taken = wait(service::VolumeService::take_over(std::move(around)));
  REQUIRE_MESSAGE(taken, taken.error().message());
  post([&] {
    service_ = *std::move(taken);
    stopped = false;
    service_->on_stopped([this](const Error&) { stopped = true; });
  });
}

void World::crash_coordinator() {
  post([&] { service_.reset(); });
}

void World::cut_connections() {
  post([&] {
    for (auto* each : std::vector{connections_}) each->cut();
  });
}

void World::cut_off(int number) {
  post([&] {
    cut_off_ = number;
    for (auto* each : std::vector{connections_})
      if (each->number == number) each->cut();
  });
}

void World::connect(int number, protocol::Connected done) {
  if (!service_ || refuse_connections || number == cut_off_) {
    loop_.post([done = std::move(done)]() mutable {
      done(Error{Errc::not_coordinator, "nobody coordinates the volume"});
    });
    return;
  }
  if (auto why = connection_fails ? connection_fails(number) : std::nullopt) {
    loop_.post([done = std::move(done), why]() mutable { done(*why); });
    return;
  }
  transport_.connect(NodeId{1}, kEndpoint,
                     [this, number, done = std::move(done)](auto made) mutable {
                       if (!made) return done(made.error());
                       std::unique_ptr<protocol::Connection> wrapped =
                           std::make_unique<Cuttable>(*this, number, *std::move(made));
                       done(std::move(wrapped));
                     });
}

MountSurroundings World::surroundings(int number, std::shared_ptr<iscsi::RamDisk> disk) {
  MountSurroundings around;
  around.loop = &loop_;
  around.random = &random_;
  around.open_lun = opener(std::move(disk), number, true);
  around.connect = [this, number](protocol::Connected done) { connect(number, std::move(done)); };
  around.open_until = [this] { return std::min(open_until, mounts_open_until); };
  around.volume = kVolume;
  around.node = NodeId{static_cast<std::uint8_t>(number)};
  around.memory = options_.mount_memory;
  around.resume_within = options_.resume_within;
  around.refused_for = options_.refused_for;
  around.most_open = options_.most_open;
  return around;
}

Expected<void> World::mount_over(int number, std::shared_ptr<iscsi::RamDisk> disk) {
  auto& mount = mounts_.at(static_cast<std::size_t>(number));
  post([&] { mount = Mount::start(surroundings(number, std::move(disk))); });
  return wait(mount->ready());
}

Mount& World::start_mount(int number) {
  auto& mount = mounts_.at(static_cast<std::size_t>(number));
  if (!mount) post([&] { mount = Mount::start(surroundings(number, disk_)); });
  return *mount;
}

Mount& World::mount(int number) {
  if (auto& mount = mounts_.at(static_cast<std::size_t>(number))) return *mount;
  auto& mount = start_mount(number);
  auto ready = wait(mount.ready());
  REQUIRE_MESSAGE(ready, ready.error().message());
  return mount;
}

void World::end_mount(int number) {
  wait(mounts_.at(static_cast<std::size_t>(number))->end());
  kill_mount(number);
}

void World::kill_mount(int number) {
  post([&] { mounts_.at(static_cast<std::size_t>(number)).reset(); });
}

std::vector<std::byte> pattern(std::size_t length, std::uint64_t seed) {
  std::vector<std::byte> made(length);
  Random random{seed};
  for (auto& each : made) each = static_cast<std::byte>(random.next());
  return made;
}

std::span<const std::byte> bytes_of(const Mount::Content& content) {
  return content.buffer.span().subspan(content.skip, content.length);
}

}  // namespace csv::tests
