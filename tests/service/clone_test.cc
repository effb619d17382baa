// Files that share blocks: who is asked for layouts, what is written where, and what a crash or a
// power loss in the middle leaves.
#include <doctest/doctest.h>
#include <linux/falloc.h>

#include <cerrno>
#include <thread>

#include "coordinator/protocol/failure.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service::test;

namespace {

constexpr std::uint64_t kBlock = 4096, kMiB = 1 << 20, kUnit = 64 * 1024;

bool is_errno(const wire::Reply& reply, int number) {
  return protocol::decode(reply.failure()) == std::error_code{number, std::generic_category()};
}
void pause(std::chrono::milliseconds time) { std::this_thread::sleep_for(time); }
bool is_asked(Client& client) {
  for (int i = 0; i < 400 && client.held().empty(); ++i) pause(std::chrono::milliseconds{5});
  return !client.held().empty();
}
std::vector<std::byte> filled(std::size_t size, char with) {
  return std::vector<std::byte>(size, std::byte{static_cast<unsigned char>(with)});
}

wire::Request clone_request(std::uint64_t from, std::uint64_t offset, std::uint64_t length,
                            std::uint64_t into, std::uint64_t into_offset) {
  wire::Request request;
  auto& clone = *request.mutable_clone();
  clone.set_inode(from);
  clone.set_offset(offset);
  clone.set_length(length);
  clone.set_into(into);
  clone.set_into_offset(into_offset);
  return request;
}
std::uint64_t free_blocks(Client& client) {
  wire::Request request;
  request.mutable_stat_fs();
  return client.call(request).fs_stat().free_blocks();
}
wire::Reply allocate(Client& client, std::uint64_t inode, int mode, std::uint64_t offset,
                     std::uint64_t length) {
  wire::Request request;
  auto& body = *request.mutable_allocate();
  body.set_inode(inode);
  body.set_mode(static_cast<std::uint32_t>(mode));
  body.set_offset(offset);
  body.set_length(length);
  return client.change(request);
}

/// Two mounts, a file `from` of 1 MiB of x, and an empty one.
struct Files {
  explicit Files(World& world) : a{world, 1, 11}, b{world, 2, 22} {}
  void connect(Coordinator& coordinator) {
    REQUIRE(!a.connect(coordinator).code());
    REQUIRE(!b.connect(coordinator).code());
    a.admit();
    b.admit();
    from = a.create("from");
    into = a.create("into");
    REQUIRE(a.write(from, 0, std::string(kMiB, 'x')).failure().code() == 0);
  }
  wire::Reply clone(std::uint64_t length = kMiB) {
    return a.change(clone_request(from, 0, length, into, 0));
  }
  void check_alike(std::uint64_t length = kMiB) {
    for (auto file : {from, into})
      CHECK((a.read(file, 0, static_cast<std::uint32_t>(length)) == std::string(length, 'x')));
  }
  Client a, b;
  std::uint64_t from = 0, into = 0;
};

}  // namespace

TEST_CASE("clone: takes no space, and what is written to one file the other does not have") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  auto free = free_blocks(f.a);
  auto cloned = f.clone();
  CHECK(cloned.cloned().length() == kMiB);
  CHECK(cloned.cloned().attr().size() == kMiB);
  CHECK(cloned.cloned().attr().blocks() == kMiB / 512);
  CHECK(free_blocks(f.a) == free);
  f.check_alike();
  // In the middle of a block, over several, and appended.
  REQUIRE(f.b.write(f.into, 10'000, "into").failure().code() == 0);
  REQUIRE(f.b.write(f.from, 20'000, std::string(10'000, 'f')).failure().code() == 0);
  REQUIRE(f.a.write(f.into, 0, "end", true).failure().code() == 0);
  auto into = f.a.read(f.into, 0, kMiB) + f.a.read(f.into, kMiB, kMiB);
  auto from = f.b.read(f.from, 0, kMiB);
  std::string expected(kMiB, 'x');
  CHECK((into == std::string{expected}.replace(10'000, 4, "into") + "end"));
  CHECK((from == std::string{expected}.replace(20'000, 10'000, std::string(10'000, 'f'))));
  CHECK(free_blocks(f.a) == free - 1 - 4 - 1);  // what was touched, and the new end
  REQUIRE(f.a.unlink("from").failure().code() == 0);
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: a layout to write is of blocks of its own, and no one keeps one of the former") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  REQUIRE(f.clone().cloned().length() == kMiB);
  auto shared = f.b.layout(f.into, 0, kMiB, false);
  REQUIRE(shared.segments_size() == 1);
  CHECK(shared.segments(0).state() == 1);
  REQUIRE(f.a.layout(f.into, 0, kMiB, false).segments_size() == 1);
  auto source = f.a.layout(f.from, 0, kMiB, false);
  CHECK(source.segments(0).lun_offset() == shared.segments(0).lun_offset());

  f.b.answer_recalls(false);
  wire::Request request;
  auto& layout = *request.mutable_layout();
  layout.set_inode(f.into);
  layout.set_offset(5 * kUnit + kBlock);
  layout.set_length(kBlock);
  layout.set_write(true);
  auto id = f.a.send(request);
  // Who reads there by itself would read what is not the file's any more.
  REQUIRE(is_asked(f.b));
  CHECK(f.b.held()[0].reads_too());
  CHECK(f.b.held()[0].offset() == 5 * kUnit);
  CHECK(f.b.held()[0].length() == kUnit);
  CHECK(!f.a.answered(id));
  f.b.answer_held();
  auto given = f.a.wait(id).layout();
  bool found = false;
  for (const auto& segment : given.segments()) {
    if (segment.offset() > 5 * kUnit + kBlock || segment.state() != 1) continue;
    found = true;
    auto at = segment.lun_offset();
    CHECK(segment.offset() == 5 * kUnit + kBlock);
    CHECK(segment.length() == kUnit - kBlock);
    CHECK((at + kUnit <= source.segments(0).lun_offset() ||
           at >= source.segments(0).lun_offset() + kMiB));
    REQUIRE(f.a.lun_write(at, filled(kBlock, 'n')));
  }
  REQUIRE(found);
  CHECK((f.b.read(f.from, 0, kMiB) == std::string(kMiB, 'x')));
  CHECK((f.b.read(f.into, 0, kMiB) ==
         std::string(kMiB, 'x').replace(5 * kUnit + kBlock, kBlock, std::string(kBlock, 'n'))));
  // The other side is free to be written where it is only where nobody shares it any more.
  auto rest = f.b.layout(f.from, 5 * kUnit, kUnit, true);
  REQUIRE(rest.segments_size() > 0);
  CHECK(rest.segments(0).offset() == 5 * kUnit);
  CHECK(rest.segments(0).length() == kUnit);
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: nobody is told of the former place along with another one, while it changes") {
  World world;
  std::atomic<bool> slow_reads{false}, slow_writes{false};
  std::atomic<int> reads{0}, writes{0};
  auto area = world.info.data_offset;
  world.coordinator_plan = [&, area](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    bool content = command.offset >= area && command.length >= kBlock;
    if (content && slow_reads && command.kind == iscsi::RamCommand::Kind::read) {
      ++reads;
      fate.inside = std::chrono::seconds{2};
    }
    if (content && slow_writes && command.kind == iscsi::RamCommand::Kind::write) {
      ++writes;
      fate.inside = std::chrono::seconds{2};
    }
    return fate;
  };
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  REQUIRE(f.clone().cloned().length() == kMiB);
  // What says that the asker itself has a layout there is gone by the time it is made ready, as if
  // somebody had recalled it: the file is kept from it until then.
  slow_reads = true;
  wire::Request read;
  read.mutable_read()->set_inode(f.into);
  read.mutable_read()->set_length(kBlock);
  auto reading = f.b.send(read);
  REQUIRE(world.eventually([&] { return reads > 0; }));
  wire::Request request;
  auto& layout = *request.mutable_layout();
  layout.set_inode(f.into);
  layout.set_offset(5 * kUnit);
  layout.set_length(kBlock);
  layout.set_write(true);
  auto id = f.a.send(request);
  wire::Request back;
  back.mutable_layout_return()->set_inode(f.into);
  REQUIRE(f.a.call(back).failure().code() == 0);
  REQUIRE(!f.b.answered(reading));
  slow_reads = false;
  slow_writes = true;
  REQUIRE(world.eventually([&] { return writes > 0; }));
  slow_writes = false;
  CHECK(!f.a.answered(id));
  auto given = f.b.layout(f.into, 0, kBlock, false);
  CHECK(!f.a.answered(id));
  REQUIRE(given.segments_size() > 0);
  for (const auto& segment : given.segments())
    CHECK(segment.offset() + segment.length() <= 5 * kUnit);
  CHECK(f.a.wait(id).layout().segments_size() > 0);
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: of the source those who write are asked, of the target all") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  REQUIRE(f.a.write(f.into, 0, std::string(kMiB, 'i')).failure().code() == 0);
  REQUIRE(f.b.layout(f.from, 0, kMiB, true).segments_size() > 0);
  REQUIRE(f.b.layout(f.into, 0, kMiB, false).segments_size() > 0);
  f.b.answer_recalls(false);
  auto id = f.a.send(f.a.prepared(clone_request(f.from, 0, kMiB / 2, f.into, kMiB / 2), 0));
  std::map<std::uint64_t, wire::Recall> asked;
  for (int round = 0; round < 2; ++round) {
    REQUIRE(is_asked(f.b));
    for (const auto& each : f.b.held()) asked[each.inode()] = each;
    CHECK(!f.a.answered(id));
    f.b.answer_held();
  }
  CHECK(f.a.wait(id).cloned().length() == kMiB / 2);
  REQUIRE(asked.size() == 2);
  CHECK(!asked[f.from].reads_too());
  CHECK(asked[f.from].offset() == 0);
  CHECK(asked[f.from].length() == kMiB / 2);
  CHECK(asked[f.into].reads_too());
  CHECK(asked[f.into].offset() == kMiB / 2);
  CHECK((f.b.read(f.into, 0, kMiB) == std::string(kMiB / 2, 'i') + std::string(kMiB / 2, 'x')));
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: who writes where the target ends by now is asked, wherever it ended before") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  Client c{world, 3, 33};
  REQUIRE(!c.connect(coordinator).code());
  c.admit();
  REQUIRE(f.a.write(f.into, 0, std::string(kUnit + 100, 'i')).failure().code() == 0);
  REQUIRE(f.b.layout(f.into, kUnit, kBlock, true).segments_size() > 0);
  f.b.answer_recalls(false);
  // Further on than a layout reaches that was asked for before the end.
  auto id = f.a.send(f.a.prepared(clone_request(f.from, 0, kMiB, f.into, 128 * kMiB), 0));
  REQUIRE(is_asked(f.b));
  REQUIRE(f.b.held()[0].offset() == kUnit);  // the last block
  wire::Request shorter;
  shorter.mutable_set_attr()->set_inode(f.into);
  shorter.mutable_set_attr()->set_size(100);
  auto cut = f.a.send(f.a.prepared(shorter, 1));
  for (int i = 0; i < 400 && f.b.held().size() < 2; ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(f.b.held().size() == 2);
  f.b.answer_held_one(1);
  REQUIRE(f.a.wait(cut).attr().size() == 100);
  c.answer_recalls(false);
  REQUIRE(c.layout(f.into, 0, 100, true).segments_size() > 0);
  f.b.answer_held();
  REQUIRE(is_asked(c));
  CHECK(!f.a.answered(id));
  c.answer_held();
  CHECK(f.a.wait(id).cloned().length() == kMiB);
  CHECK((f.a.read(f.into, 0, 200) == std::string(100, 'i') + std::string(100, '\0')));
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: what a session was granted comes to its end before") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  auto grown = f.b.layout(f.into, 0, kMiB, true);
  REQUIRE(grown.grant() != 0);
  CHECK(f.clone().cloned().length() == kMiB);
  // Too late: those blocks are not the file's.
  wire::Request commit;
  commit.mutable_commit()->set_inode(f.into);
  commit.mutable_commit()->set_grant(grown.grant());
  commit.mutable_commit()->set_length(kMiB);
  commit.mutable_commit()->set_truncation(grown.truncation());
  CHECK(protocol::decode(f.b.change(commit).failure()) == Errc::stale_commit);
  f.check_alike();
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: truncating, punching and zeroing in the middle of shared blocks is of one file") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  std::string all(kMiB, 'x');
  auto of = [&](std::uint64_t inode) { return f.b.read(inode, 0, kMiB); };
  REQUIRE(f.clone().cloned().length() == kMiB);
  REQUIRE(f.a.truncate(f.into, 100'000).failure().code() == 0);
  REQUIRE(f.a.truncate(f.into, 110'000).failure().code() == 0);
  CHECK((of(f.into) == std::string(100'000, 'x') + std::string(10'000, '\0')));
  CHECK((of(f.from) == all));
  REQUIRE(allocate(f.a, f.from, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1000, 10'000)
              .failure()
              .code() == 0);
  CHECK((of(f.from) == std::string{all}.replace(1000, 10'000, std::string(10'000, '\0'))));
  CHECK((of(f.into) == std::string(100'000, 'x') + std::string(10'000, '\0')));
  REQUIRE(allocate(f.a, f.into, FALLOC_FL_ZERO_RANGE, 30'000, 30'000).failure().code() == 0);
  CHECK((of(f.into) == std::string(30'000, 'x') + std::string(30'000, '\0') +
                           std::string(40'000, 'x') + std::string(10'000, '\0')));
  CHECK((of(f.from) == std::string{all}.replace(1000, 10'000, std::string(10'000, '\0'))));
  CHECK(f.a.attr(f.into).blocks() == 25 * 8);
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: what cannot be shared is refused, so that the kernel copies") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  auto ask = [&](std::uint64_t from, std::uint64_t offset, std::uint64_t length, std::uint64_t into,
                 std::uint64_t at) {
    return f.a.change(clone_request(from, offset, length, into, at));
  };
  CHECK(is_errno(ask(f.from, 512, kMiB / 2, f.into, 0), EOPNOTSUPP));
  CHECK(is_errno(ask(f.from, 0, kMiB / 2, f.into, 1), EOPNOTSUPP));
  CHECK(is_errno(ask(f.from, 0, kUnit - 1, f.into, 0), EOPNOTSUPP));
  CHECK(is_errno(ask(f.from, kMiB - kBlock, kMiB, f.into, 0), EOPNOTSUPP));  // little is left
  CHECK(is_errno(ask(f.from, 0, kMiB, f.from, kMiB / 2), EINVAL));
  CHECK(is_errno(ask(f.from, 0, kMiB, f.into, (1ull << 44) - kBlock), EFBIG));
  CHECK(is_errno(ask(1, 0, kMiB, f.into, 0), EISDIR));
  CHECK(is_errno(ask(999, 0, kMiB, f.into, 0), ESTALE));
  CHECK(ask(f.from, kMiB, kMiB, f.into, 0).failure().code() == 0);
  CHECK(ask(f.from, kMiB, kMiB, f.into, 0).cloned().length() == 0);
  CHECK(f.a.attr(f.into).size() == 0);
  // The end of a file inside of a block, where the other one ends, too.
  REQUIRE(f.a.write(f.from, kMiB, "tail").failure().code() == 0);
  CHECK(ask(f.from, 0, kMiB + 4, f.into, 0).cloned().length() == kMiB + 4);
  CHECK(f.a.attr(f.into).size() == kMiB + 4);
  REQUIRE(f.a.write(f.into, 0, "more", true).failure().code() == 0);
  CHECK(f.a.read(f.into, kMiB, 100) == "tailmore");
  CHECK(f.a.read(f.from, kMiB, 100) == "tail");
  // Not where the other one goes on, nor in the middle of the source.
  CHECK(ask(f.from, 0, kMiB + 4, f.into, 0).cloned().length() == kMiB);
  CHECK(ask(f.from, 0, kMiB / 2 + 4, f.into, 0).cloned().length() == kMiB / 2);
  CHECK(f.a.read(f.into, kMiB, 100) == "tailmore");
  // Within one file, side by side.
  CHECK(ask(f.from, 0, kMiB, f.from, 2 * kMiB).cloned().length() == kMiB);
  CHECK(f.a.read(f.from, kMiB, 8) == std::string("tail\0\0\0\0", 8));
  CHECK((f.a.read(f.from, 2 * kMiB, kMiB) == std::string(kMiB, 'x')));
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: a repeat gets the first answer, also from the next coordinator") {
  World world;
  Files f{world};
  std::uint64_t id = 0;
  {
    Coordinator former{world, 1};
    f.connect(former);
    id = f.a.send(f.a.prepared(clone_request(f.from, 0, kMiB, f.into, 0), 0));
    CHECK(f.a.wait(id).cloned().length() == kMiB);
    REQUIRE(f.a.write(f.into, 0, "since").failure().code() == 0);
  }
  Coordinator next{world, 2};
  REQUIRE(!f.a.connect(next).code());
  REQUIRE(!f.b.connect(next).code());
  auto wire = clone_request(f.from, 0, kMiB, f.into, 0);
  f.a.resume_done();
  f.b.resume_done();
  CHECK(f.b.read(f.into, 0, 5) == "since");
  CHECK(f.b.read(f.from, 0, 5) == "xxxxx");
  next.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: where there is no space, what is shared stays as it is") {
  World world;
  Coordinator coordinator{world, 1};
  Files f{world};
  f.connect(coordinator);
  REQUIRE(f.clone().cloned().length() == kMiB);
  auto full = f.a.create("full", false);
  while (free_blocks(f.a) > 0) {
    auto left = free_blocks(f.a);
    REQUIRE(allocate(f.a, full, FALLOC_FL_KEEP_SIZE, f.a.attr(full).blocks() * 512, left * kBlock)
                .failure()
                .code() == 0);
    if (free_blocks(f.a) == left) break;
  }
  CHECK(is_errno(f.a.write(f.into, 10, "no"), ENOSPC));
  CHECK(f.a.layout(f.into, 0, kBlock, true).shipped());
  constexpr auto kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  CHECK(is_errno(allocate(f.a, f.into, kPunch, 10, 100), ENOSPC));
  f.check_alike();
  // For a block, and not for what a layout is copied in.
  REQUIRE(f.a.truncate(full, f.a.attr(full).size()).failure().code() == 0);
  auto last = f.a.attr(full).blocks() * 512 - kBlock;
  REQUIRE(allocate(f.a, full, kPunch, last, kBlock).failure().code() == 0);
  CHECK(f.a.layout(f.into, kUnit, kBlock, true).shipped());
  CHECK(f.a.write(f.into, kUnit, std::string(kBlock, 'w')).failure().code() == 0);
  CHECK((f.b.read(f.into, kUnit, kBlock) == std::string(kBlock, 'w')));
  CHECK((f.b.read(f.from, kUnit, kBlock) == std::string(kBlock, 'x')));
  REQUIRE(f.a.unlink("full").failure().code() == 0);
  CHECK(f.a.write(f.into, 10, "yes").failure().code() == 0);
  CHECK(f.a.read(f.from, 10, 3) == "xxx");
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: a coordinator that dies between copy and transaction has changed nothing") {
  World world;
  std::atomic<bool> armed{false};
  std::atomic<int> log_writes{0};
  auto log_end = world.info.wal_offset + world.info.wal_size;
  world.coordinator_plan = [&, log_end](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    bool of_log = command.offset >= world.info.wal_offset && command.offset < log_end;
    if (armed && command.kind == iscsi::RamCommand::Kind::write && of_log) {
      ++log_writes;
      fate.failure = Error{std::errc::io_error, "dead"};
    }
    return fate;
  };
  Files f{world};
  std::uint64_t id = 0;
  {
    Coordinator former{world, 1};
    f.connect(former);
    REQUIRE(f.clone().cloned().length() == kMiB);
    armed = true;
    wire::Request request;
    request.mutable_write()->set_inode(f.into);
    request.mutable_write()->set_offset(3 * kBlock + 7);
    id = f.a.send(f.a.prepared(request, 0), std::as_bytes(std::span{"changed", 7}));
    REQUIRE(world.eventually([&] { return log_writes > 0; }));
    CHECK(!f.a.answered(id));
  }
  armed = false;
  Coordinator next{world, 2};
  REQUIRE(!f.a.connect(next).code());
  REQUIRE(!f.b.connect(next).code());
  f.b.resume_done();
  CHECK((f.b.read(f.into, 0, kMiB) == std::string(kMiB, 'x')));
  f.a.send_again(id);
  f.a.resume_done();
  CHECK(f.a.wait(id).failure().code() == 0);
  CHECK(f.b.read(f.into, 3 * kBlock + 6, 9) == "xchangedx");
  CHECK((f.b.read(f.from, 0, kMiB) == std::string(kMiB, 'x')));
  next.close();
  CHECK(world.problems().empty());
}

TEST_CASE("clone: a power loss takes nothing that was synced before it moved") {
  for (bool direct : {true, false}) {
    CAPTURE(direct);
    World world{iscsi::RamDiskOptions{.write_cache = true}};
    Files f{world};
    {
      Coordinator former{world, 1};
      f.connect(former);
      REQUIRE(f.clone().cloned().length() == kMiB);
      if (direct) {
        CHECK(f.a.layout(f.into, 0, kMiB, true).segments_size() > 0);
      } else {
        for (std::uint64_t at = 0; at < kMiB; at += kUnit)
          REQUIRE(f.a.write(f.into, at + 1, "x").failure().code() == 0);
      }
      world.run([&] { world.disk->power_loss(world.random); });
      CHECK(former.stopped());
    }
    Coordinator next{world, 2};
    REQUIRE(!f.a.connect(next).code());
    REQUIRE(!f.b.connect(next).code());
    f.a.resume_done();
    f.b.resume_done();
    f.check_alike();
    next.close();
    CHECK(world.problems().empty());
  }
}
