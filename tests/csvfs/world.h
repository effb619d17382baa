#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/protocol/first_message.h"
#include "coordinator/protocol/memory_transport.h"
#include "coordinator/service/volume_service.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/thread_worker.h"
#include "csvfs/mount.h"
#include "iscsi/ram_lun.h"

namespace csv::tests {

/// A volume on a LUN in memory, its real coordinator, and mounts of several nodes: all on one loop
/// with a thread of its own, in real time. Tests call from their own thread and wait.
class World {
 public:
  struct Options {
    std::uint32_t block_size = 512;
    bool write_cache = true;
    bool like_tgt = false;  ///< No PREEMPT AND ABORT, registrations that outlive their session.
    bool like_lio = false;  ///< No PREEMPT AND ABORT that helps, and no size for who is kept out.
    std::uint64_t size = 512ull << 20;
    service::Timing timing;
    std::uint64_t coordinator_memory = 320ull << 20, mount_memory = 96ull << 20;
    Duration resume_within = 30s, refused_for = 5s;
    std::size_t most_open = protocol::kMostOpenFiles;
    std::string identity = "naa.6001405c5f000001";
  };
  explicit World(Options options);
  World() : World(Options{}) {}
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World();

  /// What `task` answers. Created here, it runs on the loop.
  template <typename T>
  T wait(Task<T> task) {
    Slot<T> slot;
    post([&] { tasks_->spawn(into(std::move(task), slot)); });
    std::unique_lock held{slot.mutex};
    slot.changed.wait(held, [&] { return slot.value.has_value(); });
    return std::move(*slot.value);
  }
  void wait(Task<void> task);
  /// Begins `task`; its answer is collected with finish(). Several may be under way.
  template <typename T>
  struct Slot {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<T> value;
    T get() {
      std::unique_lock held{mutex};
      changed.wait(held, [&] { return value.has_value(); });
      return std::move(*value);
    }
    bool ready_within(Duration limit) {
      std::unique_lock held{mutex};
      return changed.wait_for(held, limit, [&] { return value.has_value(); });
    }
  };
  template <typename T>
  std::shared_ptr<Slot<T>> begin(Task<T> task) {
    auto slot = std::make_shared<Slot<T>>();
    post([this, slot, task = std::make_shared<Task<T>>(std::move(task))] {
      tasks_->spawn(into_shared(std::move(*task), slot));
    });
    return slot;
  }
  /// Runs `work` on the loop and waits for its end.
  void post(Function<void()> work);

  void take_over();  ///< A coordinator; the one there was crashes.
  void crash_coordinator();
  void cut_connections();  ///< Of all mounts to the coordinator; they may connect again at once.

  void cut_off(int number);  ///< That mount alone, for as long as no other is. 0: none.

  /// Of node `number`, 1 and up: ready for use.
  Mount& mount(int number);
  void end_mount(int number);   ///< Good order.
  void kill_mount(int number);  ///< As by a crash.

  AsioLoop& loop() { return loop_; }
  iscsi::RamDisk& disk() { return *disk_; }
  service::VolumeService& service() { return *service_; }

  /// A mount as it begins, ready or not.
  Mount& start_mount(int number);
  /// What ready() says of a mount whose node reaches another disk.
  Expected<void> mount_over(int number, std::shared_ptr<iscsi::RamDisk> disk);

  // Read on the loop: set them there (post).
  bool refuse_connections = false;
  /// Asked for each connection of a mount: an error in its place.
  std::function<std::optional<Error>(int number)> connection_fails;
  int lose_answers_of = 0;         ///< What is said to that mount does not arrive.
  int lose_notice_replies_of = 0;  ///< What that mount answers when it is asked does not arrive.
  std::atomic<int> lost_notice_replies{0};
  int lose_resumes_of = 0;           ///< Nor what it asks to go on with.
  bool earlier_coordinator = false;  ///< That does not know of several releases in one message.
  std::atomic<int> releases{0};      ///< Messages that mounts have told of closed files with.
  int lose_looks_of = 0;             ///< Nor its questions for attributes.
  std::atomic<int> lost_looks{0};
  int fenced_node = 0;               ///< By command.
  int fences = 0;                    ///< So often, whatever node.
  std::atomic<bool> stopped{false};  ///< The coordinator, by itself.
  TimePoint open_until = TimePoint::max();
  TimePoint mounts_open_until = TimePoint::max();  ///< Beside that, by their own csvd.
  iscsi::RamPlan mount_plan;                       ///< Of the mounts' commands.
  iscsi::RamPlan coordinator_plan;                 ///< Of the coordinator's own.

 private:
  class Cuttable;

  template <typename T>
  static Task<void> into(Task<T> task, Slot<T>& slot) {
    auto value = co_await task;
    std::unique_lock held{slot.mutex};
    slot.value.emplace(std::move(value));
    slot.changed.notify_all();
  }
  template <typename T>
  static Task<void> into_shared(Task<T> task, std::shared_ptr<Slot<T>> slot) {
    auto value = co_await task;
    std::unique_lock held{slot->mutex};
    slot->value.emplace(std::move(value));
    slot->changed.notify_all();
  }
  static Task<bool> said(Task<void> task) {
    co_await task;
    co_return true;
  }
  static std::string initiator(int number) {
    return "iqn.2026-01.org.csvfs:n" + std::to_string(number);
  }
  iscsi::LunOpener opener(std::shared_ptr<iscsi::RamDisk> disk, int number, bool of_mount);
  MountSurroundings surroundings(int number, std::shared_ptr<iscsi::RamDisk> disk);
  void connect(int number, protocol::Connected done);

  Options options_;
  AsioLoop loop_;
  std::shared_ptr<iscsi::RamDisk> disk_;
  Random random_{42};
  protocol::MemoryTransport transport_{loop_};
  std::unique_ptr<protocol::FirstMessages> first_;
  std::unique_ptr<protocol::Transport::Listener> listener_;
  std::unique_ptr<service::VolumeService> service_;
  std::vector<Cuttable*> connections_;
  int cut_off_ = 0;
  std::atomic<int> workers_{0};
  std::vector<std::unique_ptr<Mount>> mounts_ = std::vector<std::unique_ptr<Mount>>(8);
  std::unique_ptr<TaskScope> tasks_ = std::make_unique<TaskScope>();
};

std::vector<std::byte> pattern(std::size_t length, std::uint64_t seed);
std::span<const std::byte> bytes_of(const Mount::Content& content);

}  // namespace csv::tests
