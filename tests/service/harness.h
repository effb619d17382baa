#pragma once
#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/protocol/connection.h"
#include "coordinator/service/volume_service.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/buffer.h"
#include "iscsi/ram_lun.h"

namespace csv::service::test {

/// A LUN in memory with an empty volume, and a loop with a thread. Tests run on their own thread
/// and reach the loop with run().
class World {
 public:
  explicit World(iscsi::RamDiskOptions disk_options = {});
  ~World();

  /// Runs `work` on the loop and waits for its end.
  void run(std::function<void()> work);
  /// Waits until `condition`, asked on the loop, holds; false after a while.
  bool eventually(std::function<bool()> condition);
  template <typename T>
  T wait_for(std::function<Task<T>()> start);

  Surroundings surroundings(NodeId node);
  std::vector<std::byte> peek(std::uint64_t offset, std::size_t length) const;
  bool listed(Key key);
  [[nodiscard]] iscsi::LunOptions lun_options(std::uint64_t who) const;
  /// The checker over the LUN as it is, once nobody coordinates: its complaints.
  std::vector<std::string> problems();

  AsioLoop loop;
  Random random{7};
  std::shared_ptr<iscsi::RamDisk> disk;
  volume::VolumeInfo info;
  Timing timing;
  std::size_t most_watched = 100'000;
  std::uint64_t memory = 320ull << 20;
  ClusterTag tag;
  std::function<void(Surroundings&)> cluster_knows;  ///< What a membership would say.
  std::function<TimePoint()> reached_by_others;
  iscsi::RamPlan coordinator_plan;
  std::atomic<std::int64_t> open_for_ns{3'600'000'000'000};
  std::atomic<int> workers{0};  ///< Writer threads that have not ended yet.
};

/// A volume taken over, on one node.
class Coordinator {
 public:
  Coordinator(World& world, unsigned node);
  ~Coordinator();  ///< As a crash, unless closed.
  void close();
  void crash();
  VolumeService& service() { return *service_; }
  VolumeService::Status status();
  bool stopped();
  std::string stop_reason();

 private:
  World* world_;
  std::unique_ptr<VolumeService> service_;
  std::optional<Error> stopped_;
};
/// What take_over says.
Expected<void> try_take_over(World& world, unsigned node);

/// A mount as the coordinator sees it, doing what it is told and no more. It answers recalls at
/// once, unless told otherwise.
class Client {
 public:
  Client(World& world, unsigned node, std::uint64_t incarnation);
  ~Client();

  /// Connects, says Hello (resuming its session, if it has one), and waits for the answer.
  Error connect(Coordinator& coordinator, wire::Hello declares = {});
  /// From now on its connections have proven to be this node's, whatever its Hello says.
  void certified_as(unsigned node) { certificate_ = NodeId{static_cast<std::uint8_t>(node)}; }
  void resume_done();
  void disconnect();
  /// Registers a fresh key through the three steps.
  void admit();
  /// The same up to, and without, AdmitDone.
  Key register_only();

  std::uint64_t send(wire::Request request, std::span<const std::byte> content = {});
  void send_again(std::uint64_t id);
  /// The answer to a request; waits for it.
  wire::Reply wait(std::uint64_t id);
  bool answered(std::uint64_t id);
  int answers(std::uint64_t id);
  wire::Reply call(wire::Request request, std::span<const std::byte> content = {});
  /// The same with the next sequence of a slot.
  wire::Reply change(wire::Request request, std::span<const std::byte> content = {},
                     std::uint32_t slot = 0);
  std::vector<std::byte> bulk(std::uint64_t id);

  // Shorthands.
  std::uint64_t create(const std::string& name, bool open = true);
  wire::Attr attr(std::uint64_t inode);
  wire::Reply write(std::uint64_t inode, std::uint64_t offset, std::string_view content,
                    bool append = false);
  std::string read(std::uint64_t inode, std::uint64_t offset, std::uint32_t length);
  wire::LayoutReply layout(std::uint64_t inode, std::uint64_t offset, std::uint64_t length,
                           bool for_writing);
  wire::Reply truncate(std::uint64_t inode, std::uint64_t size);
  wire::Reply unlink(const std::string& name);

  Expected<void> lun_write(std::uint64_t offset, std::span<const std::byte> data);
  Expected<std::vector<std::byte>> lun_read(std::uint64_t offset, std::size_t length);

  void answer_recalls(bool at_once);
  /// Recalls that came and have not been answered.
  std::vector<wire::Recall> held();
  void answer_held(bool wrote = false);
  void answer_held_one(std::size_t which);
  /// What it says if asked whether it wrote.
  void says_wrote(bool wrote);
  /// Whether it says so at once; else with answer_held_queries.
  void answer_queries(bool at_once);
  std::size_t answer_held_queries(bool wrote);
  std::size_t recalls();
  /// What it was told not to watch any more, so far. Answered at once, unless told otherwise.
  std::vector<std::uint64_t> unwatched();
  void answer_unwatches(bool at_once);
  void answer_held_unwatches();

  wire::Request prepared(wire::Request request, std::uint32_t slot);
  SessionId session() const { return session_; }
  Key key() const { return key_; }
  bool fenced();
  /// As it was told when it connected last.
  std::uint64_t verifier();

 private:
  struct Sent {
    wire::Request request;
    std::vector<std::byte> content;
    int answers = 0;
    wire::Reply reply;
    std::vector<std::byte> bulk;
  };
  struct State;
  void transmit(std::uint64_t id);

  World* world_;
  NodeId node_;
  std::uint64_t incarnation_;
  std::optional<NodeId> certificate_;
  std::shared_ptr<State> state_;
  SessionId session_{};
  Key key_{};
  std::unique_ptr<iscsi::Lun> lun_;
  std::map<std::uint32_t, std::uint64_t> sequences_;
};

std::span<const std::byte> bytes_of(std::string_view text);

}  // namespace csv::service::test
