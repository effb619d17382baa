// What is behind the end of a file: nothing, whatever the rest of its last block holds on the LUN.
#include <doctest/doctest.h>
#include <linux/falloc.h>

#include <atomic>
#include <cerrno>

#include "coordinator/protocol/failure.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service::test;

namespace {

constexpr std::uint64_t kBlock = 4096, kMiB = 1 << 20, kUnit = 64 * 1024;

std::string zeros(std::size_t count) { return std::string(count, '\0'); }
bool succeeded(const wire::Reply& reply) {
  CHECK_MESSAGE(reply.failure().code() == 0, reply.failure().message());
  return reply.failure().code() == 0;
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

wire::Request write_request(std::uint64_t inode, bool append) {
  wire::Request request;
  request.mutable_write()->set_inode(inode);
  request.mutable_write()->set_append(append);
  return request;
}

std::uint64_t place_of(Client& client, std::uint64_t file, std::uint64_t offset) {
  auto layout = client.layout(file, offset, kBlock, false);
  for (const auto& segment : layout.segments())
    if (segment.offset() <= offset && offset < segment.offset() + segment.length() &&
        segment.state() == 1)
      return segment.lun_offset() + (offset - segment.offset());
  FAIL("not laid out to be read");
  return 0;
}

/// Behind the end, which is inside of a block, stands what the LUN was given and nobody told of.
void leave_behind_end(World& world, Client& client, std::uint64_t file) {
  auto size = client.attr(file).size();
  REQUIRE(size % kBlock != 0);
  auto at = place_of(client, file, size / kBlock * kBlock);
  auto block = world.peek(at, kBlock);
  for (auto i = size % kBlock; i < kBlock; ++i) block[i] = std::byte{'!'};
  REQUIRE(client.lun_write(at, block));
}

/// Two mounts, and a file of `size` bytes x with something behind its end.
struct Torn {
  explicit Torn(std::uint64_t size = 100) : coordinator{world, 1}, length{size} {
    REQUIRE(!a.connect(coordinator).code());
    REQUIRE(!b.connect(coordinator).code());
    a.admit();
    b.admit();
    file = a.create("f");
    REQUIRE(succeeded(a.write(file, 0, std::string(size, 'x'))));
    leave_behind_end(world, a, file);
  }
  /// What was in front of the former end is there, and behind it are zeros up to the next block.
  void check() {
    auto rest = kBlock - length % kBlock;
    CHECK((b.read(file, 0, static_cast<std::uint32_t>(length + rest)) ==
           std::string(length, 'x') + zeros(rest)));
    auto at = place_of(b, file, length / kBlock * kBlock);
    auto block = *b.lun_read(at, kBlock);
    for (auto i = length % kBlock; i < kBlock; ++i) REQUIRE(block[i] == std::byte{});
  }
  void close() {
    coordinator.close();
    CHECK(world.problems().empty());
  }

  World world;
  Coordinator coordinator;
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t length, file = 0;
};

}  // namespace

TEST_CASE("end: a write further on in the block leaves zeros in between, and behind it") {
  Torn f;
  REQUIRE(succeeded(f.a.write(f.file, 200, "here")));
  CHECK((f.b.read(f.file, 0, kBlock) == std::string(100, 'x') + zeros(100) + "here"));
  REQUIRE(succeeded(f.a.truncate(f.file, kBlock)));
  CHECK((f.b.read(f.file, 0, kBlock) ==
         std::string(100, 'x') + zeros(100) + "here" + zeros(kBlock - 204)));
  f.close();
}

TEST_CASE("end: a write in a later block leaves zeros behind the former end") {
  Torn f;
  REQUIRE(succeeded(f.a.write(f.file, 3 * kBlock + 7, "here")));
  f.check();
  f.close();
}

TEST_CASE("end: an append, and a write within the file, keep nothing of what is behind it") {
  for (bool append : {true, false}) {
    CAPTURE(append);
    Torn f;
    REQUIRE(succeeded(f.a.write(f.file, append ? 0 : 98, "xx", append)));
    REQUIRE(succeeded(f.a.truncate(f.file, kBlock)));
    if (append) f.length += 2;
    f.check();
    f.close();
  }
}

TEST_CASE("end: a file that is made longer has zeros there") {
  for (std::uint64_t size : {101ull, 4096ull, 100'000ull}) {
    CAPTURE(size);
    Torn f;
    REQUIRE(succeeded(f.a.truncate(f.file, size)));
    REQUIRE(succeeded(f.a.truncate(f.file, 2 * kBlock)));
    f.check();
    f.close();
  }
}

TEST_CASE("end: allocated space begins with zeros, also where it begins in a later block") {
  for (int mode : {0, FALLOC_FL_ZERO_RANGE}) {
    for (std::uint64_t offset : {0ull, 50ull, 200ull, 5 * 4096ull}) {
      CAPTURE(mode);
      CAPTURE(offset);
      Torn f;
      REQUIRE(succeeded(allocate(f.a, f.file, mode, offset, 3 * kBlock)));
      if (mode != 0 && offset < 100)
        CHECK((f.b.read(f.file, 0, kBlock) == std::string(offset, 'x') + zeros(kBlock - offset)));
      else
        f.check();
      f.close();
    }
  }
}

TEST_CASE("end: space that is kept behind it shows zeros when the file has grown into it") {
  Torn f;
  REQUIRE(succeeded(allocate(f.a, f.file, FALLOC_FL_KEEP_SIZE, 0, 4 * kBlock)));
  REQUIRE(succeeded(
      allocate(f.a, f.file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, kBlock, 2 * kBlock)));
  CHECK(f.a.attr(f.file).size() == 100);
  REQUIRE(succeeded(f.a.truncate(f.file, 4 * kBlock)));
  f.check();
  CHECK((f.b.read(f.file, kBlock, kMiB) == zeros(3 * kBlock)));
  f.close();
}

TEST_CASE("end: a clone put behind it leaves zeros in between") {
  Torn f;
  auto from = f.a.create("from");
  REQUIRE(succeeded(f.a.write(from, 0, std::string(kMiB, 'c'))));
  REQUIRE(succeeded(f.a.change(clone_request(from, 0, kMiB, f.file, 2 * kBlock))));
  f.check();
  f.close();
}

TEST_CASE("end: what is behind a shared one shows in neither file that grows") {
  for (bool of_source : {true, false}) {
    for (int way : {0, 1, 2, 3}) {
      CAPTURE(of_source);
      CAPTURE(way);
      Torn f{kMiB + 100};
      auto into = f.a.create("into");
      auto cloned = f.a.change(clone_request(f.file, 0, kMiB + 100, into, 0));
      REQUIRE(cloned.cloned().length() == kMiB + 100);
      auto other = of_source ? into : f.file;
      f.file = of_source ? f.file : into;
      // Who reads it under a layout must not read on in what may become somebody else's.
      auto before = place_of(f.b, f.file, kMiB);
      auto asked = f.b.recalls();
      switch (way) {
        case 0: REQUIRE(succeeded(f.a.truncate(f.file, 2 * kMiB))); break;
        case 1: REQUIRE(succeeded(f.a.write(f.file, kMiB + kUnit, "far"))); break;
        case 2: REQUIRE(succeeded(allocate(f.a, f.file, 0, kMiB + kUnit, kBlock))); break;
        default: REQUIRE(succeeded(f.a.change(clone_request(other, 0, kMiB, f.file, 2 * kMiB))));
      }
      CHECK(f.b.recalls() > asked);
      CHECK(place_of(f.b, f.file, kMiB) != before);
      f.check();
      CHECK(f.b.attr(other).size() == kMiB + 100);
      CHECK(place_of(f.b, other, kMiB) == before);
      f.close();
    }
  }
}

TEST_CASE("end: no grant is given behind one that is inside of a block") {
  Torn f;
  // Written through the coordinator instead, by which the way is clear.
  auto first = f.a.layout(f.file, kBlock, kMiB, true);
  CHECK(first.grant() == 0);
  CHECK(!first.shipped());  // not for longer than this once
  REQUIRE(succeeded(f.a.write(f.file, kBlock, std::string(kUnit, 'y'))));
  f.check();
  auto then = f.a.layout(f.file, kBlock + kUnit, kMiB, true);
  REQUIRE(then.grant() != 0);
  f.close();
}

TEST_CASE("end: a clone up to the end exactly leaves no grant behind it") {
  constexpr auto kEnd = 20 * kBlock + 100;
  Torn f{kEnd};
  Client c{f.world, 3, 33};
  REQUIRE(!c.connect(f.coordinator).code());
  c.admit();
  auto into = f.a.create("into");
  REQUIRE(succeeded(f.a.write(into, 0, std::string(16 * kBlock, 'y'))));
  auto far = f.a.layout(into, 50 * kBlock, kBlock, true);
  auto near = f.b.layout(into, 16 * kBlock, 8 * kBlock, true);
  REQUIRE(far.grant() != 0);
  REQUIRE(near.grant() != 0);
  auto commit = [&](Client& by, const wire::LayoutReply& layout, std::uint64_t offset,
                    std::uint64_t length) {
    wire::Request request;
    auto& body = *request.mutable_commit();
    body.set_inode(into);
    body.set_grant(layout.grant());
    body.set_offset(offset);
    body.set_length(length);
    body.set_truncation(layout.truncation());
    body.set_verifier(by.verifier());
    return by.change(request);
  };
  REQUIRE(succeeded(commit(f.b, near, 16 * kBlock, kEnd - 16 * kBlock)));
  REQUIRE(f.b.attr(into).size() == kEnd);
  auto cloned = c.change(clone_request(f.file, 0, kEnd, into, 0));
  REQUIRE(cloned.cloned().length() == kEnd);
  auto late = commit(f.a, far, 50 * kBlock, kBlock);
  CHECK(protocol::decode(late.failure()) == Errc::stale_commit);
  if (late.failure().code() != 0) REQUIRE(succeeded(f.a.truncate(into, 51 * kBlock)));
  REQUIRE(f.b.attr(into).size() == 51 * kBlock);
  f.file = into;
  f.check();
  f.close();
}

/// A coordinator that dies when it is told to: with the first write of its log from then on.
class Mortal {
 public:
  explicit Mortal(World& world) {
    auto begin = world.info.wal_offset, end = begin + world.info.wal_size;
    world.coordinator_plan = [this, begin, end](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      bool of_log = command.offset >= begin && command.offset < end;
      if (!armed || command.kind != iscsi::RamCommand::Kind::write || !of_log) return fate;
      ++log_writes;
      fate.failure = Error{std::errc::io_error, "dead"};
      return fate;
    };
  }
  std::atomic<bool> armed{false};
  std::atomic<int> log_writes{0};
};

TEST_CASE("end: an append that came to nothing does not show when the file grows") {
  World world;
  Mortal mortal{world};
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t file = 0, place = 0;
  {
    Coordinator former{world, 1};
    REQUIRE(!a.connect(former).code());
    REQUIRE(!b.connect(former).code());
    a.admit();
    b.admit();
    file = a.create("f");
    REQUIRE(succeeded(a.write(file, 0, std::string(100, 'x'))));
    place = place_of(b, file, 0);
    mortal.armed = true;
    auto id = a.send(a.prepared(write_request(file, true), 0), bytes_of("nobody was told of it"));
    REQUIRE(world.eventually([&] { return mortal.log_writes > 0; }));
    CHECK(!a.answered(id));
  }
  mortal.armed = false;
  REQUIRE(world.peek(place + 100, 1)[0] == std::byte{'n'});
  Coordinator next{world, 2};
  REQUIRE(!a.connect(next).code());
  REQUIRE(!b.connect(next).code());
  a.resume_done();
  b.resume_done();
  CHECK(b.attr(file).size() == 100);
  REQUIRE(succeeded(b.write(file, 1000, "later")));
  CHECK((b.read(file, 0, kBlock) == std::string(100, 'x') + zeros(900) + "later"));
  next.close();
  CHECK(world.problems().empty());
}

TEST_CASE("end: a truncation that came to nothing has taken nothing") {
  for (bool shared : {false, true}) {
    CAPTURE(shared);
    World world;
    Mortal mortal{world};
    Client a{world, 1, 11}, b{world, 2, 22};
    std::uint64_t file = 0;
    std::string content(kMiB, 'x');
    {
      Coordinator former{world, 1};
      REQUIRE(!a.connect(former).code());
      REQUIRE(!b.connect(former).code());
      a.admit();
      b.admit();
      file = a.create("f");
      REQUIRE(succeeded(a.write(file, 0, content)));
      if (shared) REQUIRE(succeeded(a.change(clone_request(file, 0, kMiB, a.create("other"), 0))));
      mortal.armed = true;
      wire::Request request;
      request.mutable_set_attr()->set_inode(file);
      request.mutable_set_attr()->set_size(5000);
      auto id = a.send(a.prepared(request, 0));
      REQUIRE(world.eventually([&] { return mortal.log_writes > 0; }));
      CHECK(!a.answered(id));
    }
    mortal.armed = false;
    Coordinator next{world, 2};
    REQUIRE(!a.connect(next).code());
    REQUIRE(!b.connect(next).code());
    a.resume_done();
    b.resume_done();
    CHECK((b.read(file, 0, kMiB) == content));
    CHECK(b.attr(file).blocks() == kMiB / 512);
    next.close();
    CHECK(world.problems().empty());
  }
}

TEST_CASE("end: what a truncation cuts off of a block is wiped, unless another file has it, too") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto own = a.create("own"), shared = a.create("shared"), other = a.create("other");
  REQUIRE(succeeded(a.write(own, 0, std::string(kMiB, 'x'))));
  REQUIRE(succeeded(a.write(shared, 0, std::string(kMiB, 's'))));
  REQUIRE(succeeded(a.change(clone_request(shared, 0, kMiB, other, 0))));
  auto place = place_of(a, own, 0), of_both = place_of(a, shared, 0);
  REQUIRE(succeeded(a.truncate(own, 100)));
  REQUIRE(succeeded(a.truncate(shared, 100)));
  CHECK(world.peek(place + 99, 2) == std::vector<std::byte>{std::byte{'x'}, std::byte{}});
  CHECK(place_of(a, shared, 0) == of_both);
  CHECK((a.read(other, 0, kMiB) == std::string(kMiB, 's')));
  REQUIRE(succeeded(a.truncate(shared, kBlock)));
  CHECK((a.read(shared, 0, kMiB) == std::string(100, 's') + zeros(kBlock - 100)));
  CHECK((a.read(other, 0, kMiB) == std::string(kMiB, 's')));
  coordinator.close();
  CHECK(world.problems().empty());
}
