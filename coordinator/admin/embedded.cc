#include "coordinator/admin/embedded.h"

#include "coordinator/admin/tool.h"
#include "coordinator/protocol/first_message.h"
#include "coordinator/protocol/memory_transport.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/log.h"
#include "csvfs/base/thread_worker.h"

namespace csv::admin {
namespace {

constexpr const char* kEndpoint = "coordinator";

/// Tells when the catalog's thread has ended, which it does a moment after its volume was given up.
class TellingWorker final : public Worker {
 public:
  explicit TellingWorker(Function<void()> ended) : ended_{std::move(ended)} {}
  ~TellingWorker() override { ended_(); }
  void post(Function<void()> work) override { worker_.post(std::move(work)); }
  Blocking& blocking() override { return worker_.blocking(); }

 private:
  Function<void()> ended_;
  ThreadWorker worker_{"catalog"};
};

/// What stands on the LUN, and who uses it.
struct Found {
  volume::VolumeInfo info;
  std::size_t mounts = 0;
};

Expected<Found> look(const std::string& url, iscsi::LunOptions options, Random& random) {
  options.isid_seed = random.next();
  auto lun = CSV_TRY(ToolLun::open(url, std::move(options)));
  Found out;
  auto key = CSV_TRY(TemporaryKey::enter(lun->blocking(), random));
  auto users = CSV_TRY(service::look_for_users(lun->blocking(), key->key()));
  if (!users.info) return users.info.error().within("reading " + url);
  out.info = *users.info;
  out.mounts = users.mounts().size();
  CSV_TRY(key->leave());
  return out;
}

}  // namespace

struct EmbeddedVolume::Parts {
  explicit Parts(AsioLoop& on) : loop{on}, transport{on} {}
  AsioLoop& loop;
  Random random = Random::from_system();
  protocol::MemoryTransport transport;
  std::unique_ptr<service::VolumeService> service;
  std::unique_ptr<protocol::FirstMessages> arrived;
  std::unique_ptr<protocol::Transport::Listener> listener;
  std::unique_ptr<Mount> mount;
  std::optional<Error> stopped;  ///< Why the coordinator stopped by itself.
  int workers = 0;
  std::function<void()> idle;  ///< Called when the last worker has ended.
};

EmbeddedVolume::EmbeddedVolume(const std::string& url, Options options)
    : url_{url}, options_{std::move(options)} {}

Expected<std::unique_ptr<EmbeddedVolume>> EmbeddedVolume::open(const std::string& lun,
                                                               Options options) {
  std::unique_ptr<EmbeddedVolume> made{new EmbeddedVolume{lun, std::move(options)}};
  CSV_TRY(made->begin());
  return made;
}

/// Runs `work` on the loop's thread and waits for its end.
void EmbeddedVolume::on_loop(Function<void()> work) {
  waiting_.wait([&](std::function<void()> wake) {
    loop_.post([&work, wake] {
      work();
      wake();
    });
  });
}

Expected<void> EmbeddedVolume::begin() {
  auto random = Random::from_system();
  auto found = CSV_TRY(look(url_, options_.lun, random));
  if (found.mounts > 0 && !options_.although_mounted)
    return Error{Errc::refused,
                 fmt::format("volume {} has mounts ({} registered): use one of them, or give --yes "
                             "if they are leftovers of crashed nodes",
                             found.info.label, found.mounts)};
  volume_ = found.info.label;
  loop_.start("embedded");
  on_loop([this] {
    parts_ = std::make_unique<Parts>(loop_);
    tasks_ = std::make_unique<TaskScope>();
  });

  iscsi::LunOpener open_lun = [this](iscsi::LunOptions wanted, auto done) {
    auto lun = options_.lun;
    // Not csvd's sessions and not those of a mount of this node, which may run beside.
    lun.isid_seed = wanted.isid_seed ^ 0x6373766374ull;
    iscsi::open_lun(loop_, url_, std::move(lun), std::move(done));
  };
  service::Surroundings around;
  around.loop = &loop_;
  around.open_lun = open_lun;
  around.make_worker = [this]() -> std::unique_ptr<Worker> {
    ++parts_->workers;
    return std::make_unique<TellingWorker>([this] {
      if (--parts_->workers == 0) wake_once();
    });
  };
  // No other node takes part: nobody could take the volume over but by the LUN.
  around.open_until = [this] { return loop_.now() + 3s; };
  around.node = options_.node;
  around.cluster = found.info.cluster;
  around.tag = found.info.tag;
  around.volume = volume_;
  auto taken = run([&] {
    around.random = &parts_->random;
    return service::VolumeService::take_over(around);
  });
  if (!taken) return taken.error().within("taking over volume " + volume_);

  on_loop([&] {
    auto& parts = *parts_;
    parts.service = *std::move(taken);
    parts.service->on_stopped([&parts](Error why) { parts.stopped = std::move(why); });
    parts.arrived = std::make_unique<protocol::FirstMessages>(
        loop_, 5s, 16, [&parts](auto connection, protocol::Message hello) {
          // After it stopped there is nobody to answer: the mount sees the connection end.
          if (!parts.stopped) parts.service->accept(std::move(connection), std::move(hello));
        });
    auto listener = parts.transport.listen(
        kEndpoint, [&parts](auto connection) { parts.arrived->add(std::move(connection)); });
    CSV_CHECK(listener);
    parts.listener = *std::move(listener);
    MountSurroundings mount;
    mount.loop = &loop_;
    mount.random = &parts.random;
    mount.open_lun = open_lun;
    mount.connect = [&parts, node = options_.node](protocol::Connected done) {
      if (!parts.stopped) return parts.transport.connect(node, kEndpoint, std::move(done));
      parts.loop.post([done = std::move(done), why = *parts.stopped]() mutable { done(why); });
    };
    mount.open_until = around.open_until;
    mount.volume = volume_;
    mount.node = options_.node;
    parts.mount = Mount::start(std::move(mount));
    mount_ = parts.mount.get();
  });
  auto ready = call([](Mount& mount) { return mount.ready(); });
  if (!ready) return ready.error().within("mounting volume " + volume_);
  return {};
}

Expected<void> EmbeddedVolume::close() {
  if (!mount_) return {};
  Expected<void> result;
  if (!parts_->stopped) {
    run([this] { return true_after(parts_->mount->end()); });
    on_loop([this] {
      parts_->mount.reset();
      parts_->listener.reset();
    });
    run([this] { return true_after(parts_->service->close()); });
  }
  if (parts_->stopped)
    result = parts_->stopped->within("the coordinator of volume " + volume_ + " stopped");
  mount_ = nullptr;
  take_down();
  return result;
}

/// The parts in an order that leaves nobody waiting, until the catalog's thread has ended.
void EmbeddedVolume::take_down() {
  waiting_.wait([this](std::function<void()> wake) {
    loop_.post([this, wake] {
      parts_->mount.reset();
      tasks_.reset();
      parts_->listener.reset();
      parts_->arrived.reset();
      parts_->idle = wake;
      parts_->service.reset();
      if (parts_->workers == 0) wake_once();
    });
  });
  on_loop([this] { parts_.reset(); });
}

/// The last worker may have ended before, or end while the service goes.
void EmbeddedVolume::wake_once() {
  if (auto wake = std::exchange(parts_->idle, nullptr)) wake();
}

EmbeddedVolume::~EmbeddedVolume() {
  if (parts_) take_down();
}

}  // namespace csv::admin
