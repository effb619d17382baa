#include "tests/service/harness.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <set>
#include <thread>

#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/memory_transport.h"
#include "coordinator/volume/check.h"
#include "csvfs/base/log.h"
#include "csvfs/base/thread_worker.h"
#include "iscsi/blocking_lun.h"
#include "tests/fakes/certified.h"

namespace csv::service::test {
namespace {

constexpr std::uint16_t kCluster = 4711;
constexpr auto kPatience = std::chrono::seconds{60};

template <typename T>
Task<void> deliver(Task<T> task, std::promise<T>& into) {
  into.set_value(co_await task);
}

class CountedWorker final : public Worker {
 public:
  explicit CountedWorker(std::atomic<int>& count) : count_{&count} { ++*count_; }
  CountedWorker(const CountedWorker&) = delete;
  CountedWorker& operator=(const CountedWorker&) = delete;
  ~CountedWorker() override { --*count_; }
  void post(Function<void()> work) override { thread_.post(std::move(work)); }
  Blocking& blocking() override { return thread_.blocking(); }

 private:
  std::atomic<int>* count_;
  ThreadWorker thread_{"writer"};
};

volume::FormatOptions format_options() {
  volume::FormatOptions options;
  options.label = "volume1";
  options.cluster = kCluster;
  options.wal_size = 8ull << 20;
  options.claim_space = false;
  return options;
}

}  // namespace

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span{text.data(), text.size()});
}

// ---------------------------------------------------------------------------- World

World::World(iscsi::RamDiskOptions disk_options) {
  loop.start("world");
  disk_options.geometry.block_count = (768ull << 20) / disk_options.geometry.block_size;
  disk = iscsi::RamDisk::create(disk_options, &loop);
  timing.key_sweep = 100ms;
  timing.lease_term = 1s;
  timing.reconnect_grace = 20s;
  timing.maintenance = 20ms;
  auto lun = disk->connect(loop, lun_options(0));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  auto made = volume::format(io, format_options(), random, WallTime{1'700'000'000'000'000'000});
  REQUIRE_MESSAGE(made, made.error().message());
  info = *made;
}

World::~World() {
  // A crashed coordinator's writer thread ends on the loop.
  CHECK(eventually([this] { return workers == 0; }));
  loop.stop();
}

void World::run(std::function<void()> work) {
  std::promise<void> done;
  loop.post([&] {
    work();
    done.set_value();
  });
  REQUIRE(done.get_future().wait_for(kPatience) == std::future_status::ready);
}

bool World::eventually(std::function<bool()> condition) {
  auto until = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < until) {
    bool holds = false;
    run([&] { holds = condition(); });
    if (holds) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
  }
  return false;
}

template <typename T>
T World::wait_for(std::function<Task<T>()> start) {
  std::promise<T> promise;
  TaskScope scope;
  loop.post([&] { scope.spawn(deliver<T>(start(), promise)); });
  auto future = promise.get_future();
  REQUIRE(future.wait_for(kPatience) == std::future_status::ready);
  auto result = future.get();
  run([] {});  // the task's last step is over
  return result;
}

iscsi::LunOptions World::lun_options(std::uint64_t who) const {
  iscsi::LunOptions options;
  options.isid_seed = 1000 + who;
  options.deadline = 5s;
  return options;
}

Surroundings World::surroundings(NodeId node) {
  Surroundings around;
  around.loop = &loop;
  around.random = &random;
  around.open_lun = iscsi::RamDisk::opener(disk, loop, coordinator_plan);
  around.make_worker = [this] { return std::make_unique<CountedWorker>(workers); };
  around.open_until = [this] { return loop.now() + Duration{open_for_ns.load()}; };
  around.node = node;
  around.cluster = kCluster;
  around.tag = tag;
  around.volume = "volume1";
  around.timing = timing;
  around.reached_by_others = reached_by_others;
  around.most_watched = most_watched;
  around.memory = memory;
  if (cluster_knows) cluster_knows(around);
  return around;
}

std::vector<std::byte> World::peek(std::uint64_t offset, std::size_t length) const {
  std::vector<std::byte> bytes(length);
  disk->peek(offset, bytes);
  return bytes;
}

bool World::listed(Key key) {
  auto lun = disk->connect(loop, lun_options(1));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  auto keys = io.read_keys();
  REQUIRE(keys);
  return std::find(keys->keys.begin(), keys->keys.end(), key) != keys->keys.end();
}

std::vector<std::string> World::problems() {
  auto lun = disk->connect(loop, lun_options(2));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  auto key = make_key({kCluster, NodeId{63}, KeyRole::mount, 1});
  REQUIRE(io.register_key(key));
  auto report = volume::check(io);
  REQUIRE(io.register_key(Key{}));
  if (!report) return {report.error().message()};
  return report->problems;
}

// ---------------------------------------------------------------------------- Coordinator

Coordinator::Coordinator(World& world, unsigned node) : world_{&world} {
  using Taken = Expected<std::unique_ptr<VolumeService>>;
  auto around = world.surroundings(NodeId{static_cast<std::uint8_t>(node)});
  auto taken = world.wait_for<Taken>([&] { return VolumeService::take_over(around); });
  REQUIRE_MESSAGE(taken, taken.error().message());
  service_ = std::move(*taken);
  world.run([&] { service_->on_stopped([this](Error why) { stopped_ = std::move(why); }); });
}

Coordinator::~Coordinator() { crash(); }

void Coordinator::crash() {
  world_->run([&] { service_.reset(); });
  // That it has stopped may be on its way to us still.
  world_->run([] {});
}

namespace {
Task<bool> close_it(VolumeService& service) {
  co_await service.close();
  co_return true;
}
}  // namespace

void Coordinator::close() {
  CHECK(world_->wait_for<bool>([&] { return close_it(*service_); }));
  crash();
}

VolumeService::Status Coordinator::status() {
  VolumeService::Status status;
  world_->run([&] { status = service_->status(); });
  return status;
}

bool Coordinator::stopped() {
  return world_->eventually([&] { return stopped_.has_value(); });
}

std::string Coordinator::stop_reason() {
  std::string reason;
  world_->run([&] { reason = stopped_ ? stopped_->message() : ""; });
  return reason;
}

Expected<void> try_take_over(World& world, unsigned node) {
  using Taken = Expected<std::unique_ptr<VolumeService>>;
  auto around = world.surroundings(NodeId{static_cast<std::uint8_t>(node)});
  auto taken = world.wait_for<Taken>([&] { return VolumeService::take_over(around); });
  if (!taken) return taken.error();
  world.run([&] { taken->reset(); });
  return {};
}

// ---------------------------------------------------------------------------- Client

struct Client::State {
  std::unique_ptr<protocol::Connection> connection;
  std::uint64_t epoch = 0, coordinator_key = 0;
  std::optional<wire::HelloReply> hello;
  std::map<std::uint64_t, Sent> sent;
  std::uint64_t next_id = 1;
  bool answer_recalls = true, says_wrote = false, fenced = false;
  std::deque<std::pair<std::uint64_t, wire::Recall>> held;
  std::size_t recalls = 0;
  bool answer_unwatches = true, answer_queries = true;
  std::set<std::uint64_t> held_queries;
  std::set<std::uint64_t> held_unwatches;
  std::vector<std::uint64_t> unwatched;

  void answer(std::uint64_t id, bool wrote) {
    protocol::Message message;
    stamp(message.frame);
    message.frame.set_id(id);
    message.frame.mutable_notice_reply()->set_wrote(wrote);
    if (connection) connection->send(std::move(message));
  }
  void stamp(wire::Frame& frame) const {
    frame.set_epoch(epoch);
    frame.set_coordinator_key(coordinator_key);
  }
  void received(protocol::Message message) {
    const auto& frame = message.frame;
    if (frame.has_hello_reply()) {
      hello = frame.hello_reply();
      epoch = frame.epoch();
      coordinator_key = frame.coordinator_key();
    } else if (frame.has_reply()) {
      auto& one = sent[frame.id()];
      ++one.answers;
      one.reply = frame.reply();
      auto bulk = message.bulk.span();
      one.bulk.assign(bulk.begin(), bulk.end());
    } else if (frame.has_notice()) {
      noticed(frame.id(), frame.notice());
    }
  }
  void noticed(std::uint64_t id, const wire::Notice& notice) {
    if (notice.has_fenced()) fenced = true;
    if (notice.has_query_wrote()) {
      if (answer_queries) return answer(id, says_wrote);
      held_queries.insert(id);
    }
    if (notice.has_unwatch()) {
      const auto& what = notice.unwatch();
      unwatched.insert(unwatched.end(), what.inodes().begin(), what.inodes().end());
      unwatched.insert(unwatched.end(), what.attributes().begin(), what.attributes().end());
      if (answer_unwatches) return answer(id, false);
      held_unwatches.insert(id);
    }
    if (!notice.has_recall()) return;
    ++recalls;
    if (answer_recalls) return answer(id, false);
    for (auto& [other, recall] : held)
      if (other == id) return;  // sent again after a reconnect
    held.emplace_back(id, notice.recall());
  }
};

Client::Client(World& world, unsigned node, std::uint64_t incarnation)
    : world_{&world},
      node_{static_cast<std::uint8_t>(node)},
      incarnation_{incarnation},
      state_{std::make_shared<State>()} {}

Client::~Client() {
  disconnect();
  world_->run([&] { lun_.reset(); });
}

Error Client::connect(Coordinator& coordinator, wire::Hello declares) {
  world_->run([&] {
    auto [mine, theirs] =
        protocol::connection_pair(world_->loop, fmt::format("node{}", raw(node_)), "coordinator");
    state_->connection = std::move(mine);
    if (certificate_) theirs = std::make_unique<fakes::Certified>(std::move(theirs), *certificate_);
    state_->hello.reset();
    std::weak_ptr<State> weak = state_;
    state_->connection->start(
        [weak](protocol::Message message) {
          if (auto state = weak.lock()) state->received(std::move(message));
        },
        [weak](const Error&) {});
    protocol::Message hello;
    auto& body = *hello.frame.mutable_hello();
    body = declares;
    body.set_protocol(1);
    body.set_volume("volume1");
    body.set_node(raw(node_));
    body.set_incarnation(incarnation_);
    body.set_session(raw(session_));
    coordinator.service().accept(std::move(theirs), std::move(hello));
  });
  REQUIRE(world_->eventually([&] { return state_->hello.has_value(); }));
  Error failure;
  world_->run([&] {
    failure = protocol::decode(state_->hello->failure());
    if (!failure.code()) session_ = SessionId{state_->hello->session()};
  });
  return failure;
}

void Client::resume_done() {
  world_->run([&] {
    protocol::Message message;
    state_->stamp(message.frame);
    message.frame.mutable_resume_done();
    state_->connection->send(std::move(message));
  });
}

void Client::disconnect() {
  world_->run([&] { state_->connection.reset(); });
}

Key Client::register_only() {
  wire::Request begin;
  begin.mutable_admit_begin();
  auto reply = call(begin);
  REQUIRE(reply.failure().code() == 0);
  key_ = Key{reply.admission().key()};
  world_->run([&] { lun_.reset(); });
  auto lun = world_->disk->connect(world_->loop, world_->lun_options(10 + raw(node_)));
  REQUIRE(lun);
  lun_ = std::move(*lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{*lun_, blocking};
  REQUIRE(io.register_key(key_));
  return key_;
}

void Client::admit() {
  register_only();
  wire::Request done;
  done.mutable_admit_done()->set_key(raw(key_));
  auto reply = call(done);
  REQUIRE_MESSAGE(reply.failure().code() == 0, reply.failure().message());
}

void Client::transmit(std::uint64_t id) {
  auto& one = state_->sent[id];
  protocol::Message message;
  state_->stamp(message.frame);
  message.frame.set_id(id);
  *message.frame.mutable_request() = one.request;
  message.bulk = Buffer::copy_of(one.content);
  state_->connection->send(std::move(message));
}

std::uint64_t Client::send(wire::Request request, std::span<const std::byte> content) {
  std::uint64_t id = 0;
  world_->run([&] {
    id = state_->next_id++;
    auto& one = state_->sent[id];
    one.request = std::move(request);
    one.content.assign(content.begin(), content.end());
    transmit(id);
  });
  return id;
}

void Client::send_again(std::uint64_t id) {
  world_->run([&] { transmit(id); });
}

wire::Reply Client::wait(std::uint64_t id) {
  REQUIRE(world_->eventually([&] { return state_->sent[id].answers > 0; }));
  wire::Reply reply;
  world_->run([&] { reply = state_->sent[id].reply; });
  return reply;
}

bool Client::answered(std::uint64_t id) { return answers(id) > 0; }

int Client::answers(std::uint64_t id) {
  int count = 0;
  world_->run([&] { count = state_->sent[id].answers; });
  return count;
}

std::vector<std::byte> Client::bulk(std::uint64_t id) {
  std::vector<std::byte> bytes;
  world_->run([&] { bytes = state_->sent[id].bulk; });
  return bytes;
}

wire::Reply Client::call(wire::Request request, std::span<const std::byte> content) {
  return wait(send(std::move(request), content));
}

wire::Request Client::prepared(wire::Request request, std::uint32_t slot) {
  request.set_slot(slot);
  request.set_sequence(++sequences_[slot]);
  return request;
}

wire::Reply Client::change(wire::Request request, std::span<const std::byte> content,
                           std::uint32_t slot) {
  return call(prepared(std::move(request), slot), content);
}

std::uint64_t Client::create(const std::string& name, bool open) {
  wire::Request request;
  auto& make = *request.mutable_make();
  make.set_parent(1);
  make.set_name(name);
  make.set_mode(0100644);
  make.set_open(open);
  auto reply = change(request);
  REQUIRE_MESSAGE(reply.failure().code() == 0, reply.failure().message());
  return reply.attr().inode();
}

wire::Attr Client::attr(std::uint64_t inode) {
  wire::Request request;
  request.mutable_get_attr()->set_inode(inode);
  auto reply = call(request);
  CHECK(reply.failure().code() == 0);
  return reply.attr();
}

wire::Reply Client::write(std::uint64_t inode, std::uint64_t offset, std::string_view content,
                          bool append) {
  wire::Request request;
  auto& write = *request.mutable_write();
  write.set_inode(inode);
  write.set_offset(offset);
  write.set_append(append);
  return change(request, bytes_of(content));
}

std::string Client::read(std::uint64_t inode, std::uint64_t offset, std::uint32_t length) {
  wire::Request request;
  auto& read = *request.mutable_read();
  read.set_inode(inode);
  read.set_offset(offset);
  read.set_length(length);
  auto id = send(request);
  auto reply = wait(id);
  CHECK_MESSAGE(reply.failure().code() == 0, reply.failure().message());
  auto bytes = bulk(id);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

wire::LayoutReply Client::layout(std::uint64_t inode, std::uint64_t offset, std::uint64_t length,
                                 bool for_writing) {
  wire::Request request;
  auto& layout = *request.mutable_layout();
  layout.set_inode(inode);
  layout.set_offset(offset);
  layout.set_length(length);
  layout.set_write(for_writing);
  auto reply = call(request);
  CHECK_MESSAGE(reply.failure().code() == 0, reply.failure().message());
  return reply.layout();
}

wire::Reply Client::truncate(std::uint64_t inode, std::uint64_t size) {
  wire::Request request;
  request.mutable_set_attr()->set_inode(inode);
  request.mutable_set_attr()->set_size(size);
  return change(request);
}

wire::Reply Client::unlink(const std::string& name) {
  wire::Request request;
  request.mutable_unlink()->set_parent(1);
  request.mutable_unlink()->set_name(name);
  return change(request);
}

Expected<void> Client::lun_write(std::uint64_t offset, std::span<const std::byte> data) {
  ThreadBlocking blocking;
  iscsi::BlockingLun io{*lun_, blocking};
  return io.write(offset, data);
}

Expected<std::vector<std::byte>> Client::lun_read(std::uint64_t offset, std::size_t length) {
  ThreadBlocking blocking;
  iscsi::BlockingLun io{*lun_, blocking};
  std::vector<std::byte> bytes(length);
  CSV_TRY(io.read(offset, bytes));
  return bytes;
}

void Client::answer_recalls(bool at_once) {
  world_->run([&] { state_->answer_recalls = at_once; });
}

std::vector<wire::Recall> Client::held() {
  std::vector<wire::Recall> all;
  world_->run([&] {
    for (const auto& [id, recall] : state_->held) all.push_back(recall);
  });
  return all;
}

void Client::answer_held(bool wrote) {
  world_->run([&] {
    for (const auto& [id, recall] : std::exchange(state_->held, {})) state_->answer(id, wrote);
  });
}

void Client::answer_held_one(std::size_t which) {
  world_->run([&] {
    auto at = state_->held.begin() + static_cast<std::ptrdiff_t>(which);
    state_->answer(at->first, false);
    state_->held.erase(at);
  });
}

void Client::says_wrote(bool wrote) {
  world_->run([&] { state_->says_wrote = wrote; });
}

void Client::answer_queries(bool at_once) {
  world_->run([&] { state_->answer_queries = at_once; });
}

std::size_t Client::answer_held_queries(bool wrote) {
  std::size_t count = 0;
  world_->run([&] {
    for (auto id : std::exchange(state_->held_queries, {})) {
      state_->answer(id, wrote);
      ++count;
    }
  });
  return count;
}

std::vector<std::uint64_t> Client::unwatched() {
  std::vector<std::uint64_t> all;
  world_->run([&] { all = state_->unwatched; });
  return all;
}

void Client::answer_unwatches(bool at_once) {
  world_->run([&] { state_->answer_unwatches = at_once; });
}

void Client::answer_held_unwatches() {
  world_->run([&] {
    for (auto id : std::exchange(state_->held_unwatches, {})) state_->answer(id, false);
  });
}

std::size_t Client::recalls() {
  std::size_t count = 0;
  world_->run([&] { count = state_->recalls; });
  return count;
}

std::uint64_t Client::verifier() {
  std::uint64_t out = 0;
  world_->run([&] { out = state_->hello ? state_->hello->verifier() : 0; });
  return out;
}

bool Client::fenced() {
  return world_->eventually([&] { return state_->fenced; });
}

}  // namespace csv::service::test
