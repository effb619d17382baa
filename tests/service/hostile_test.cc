// Mounts that do not keep to the protocol: refused with a reason, nothing of it takes effect, and
// nobody else notices.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/memory_transport.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service::test;

namespace {

constexpr std::uint64_t kMiB = 1 << 20;

Error error_of(const wire::Reply& reply) { return protocol::decode(reply.failure()); }

wire::Request make_request(const std::string& name) {
  wire::Request request;
  request.mutable_make()->set_parent(1);
  request.mutable_make()->set_name(name);
  request.mutable_make()->set_mode(S_IFREG | 0644);
  return request;
}
wire::Request look_up(const std::string& name) {
  wire::Request request;
  request.mutable_lookup()->set_parent(1);
  request.mutable_lookup()->set_name(name);
  return request;
}

}  // namespace

TEST_CASE("hostile: a sequence that goes back, or is none, changes nothing") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto numbered = [](const std::string& name, std::uint32_t slot, std::uint64_t sequence) {
    auto request = make_request(name);
    request.set_slot(slot);
    request.set_sequence(sequence);
    return request;
  };
  CHECK(!a.call(numbered("one", 5, 10)).failure().code());
  CHECK(error_of(a.call(numbered("two", 5, 9))) == Errc::refused);
  CHECK(error_of(a.call(numbered("three", 5, 0))) == Errc::refused);
  CHECK(error_of(a.call(make_request("four"))) == Errc::refused);
  // The largest there is leaves no other, and the slot's last answer stays what it was.
  CHECK(!a.call(numbered("five", 5, ~0ull)).failure().code());
  CHECK(error_of(a.call(numbered("six", 5, 11))) == Errc::refused);
  auto repeated = a.call(numbered("anything", 5, ~0ull));
  CHECK(repeated.attr().inode() == a.call(look_up("five")).attr().inode());
  for (const char* name : {"two", "three", "four", "six", "anything"}) {
    CAPTURE(name);
    CHECK(error_of(a.call(look_up(name))).to_errno() == ENOENT);
  }
}

TEST_CASE("hostile: a node that says Hello again and again leaves the others their places") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  // Its next life has to wait for the fence of this one.
  world.run([&] {
    world.coordinator_plan = [](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (command.kind == iscsi::RamCommand::Kind::keys) fate.to_target = 3s;
      return fate;
    };
  });
  std::vector<std::unique_ptr<protocol::Connection>> all;
  // Some at a time: whoever comes while a flood has not been looked at yet has to come again.
  std::uint64_t i = 0;
  auto some = [&] {
    for (auto end = i + 50; i < end; ++i) {
      auto [mine, theirs] = protocol::connection_pair(world.loop, "node1", "coordinator");
      mine->start([](const protocol::Message&) {}, [](const Error&) {});
      all.push_back(std::move(mine));
      protocol::Message message;
      auto& body = *message.frame.mutable_hello();
      body.set_protocol(1);
      body.set_volume("volume1");
      body.set_node(1);
      body.set_incarnation(1000 + i);
      coordinator.service().accept(std::move(theirs), std::move(message));
    }
  };
  for (int turn = 0; turn < 8; ++turn) world.run(some);
  CHECK(!b.connect(coordinator).code());
  world.run([&] {
    world.coordinator_plan = {};
    all.clear();
  });
}

TEST_CASE("hostile: a Hello grows nothing without end") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  for (std::uint64_t turn = 0; turn < 3; ++turn) {
    wire::Hello hello;
    for (std::uint64_t i = 0; i < 90'000; ++i) hello.add_open_inodes(1'000'000 * (turn + 1) + i);
    a.disconnect();
    REQUIRE(!a.connect(coordinator, hello).code());
    a.resume_done();
  }
  CHECK(coordinator.status().sessions.at(0).open_files <= 100'000);
}

TEST_CASE("hostile: what was never opened can be closed, and nobody's open file goes with it") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  a.resume_done();
  b.resume_done();
  auto file = b.create("file");
  REQUIRE(!b.write(file, 0, "kept").failure().code());
  REQUIRE(!a.unlink("file").failure().code());
  wire::Request release;
  release.mutable_release()->set_inode(file);
  for (int i = 0; i < 3; ++i) CHECK(!a.call(release).failure().code());
  release.mutable_release()->set_inode(987654321);
  (void)a.call(release);
  std::this_thread::sleep_for(std::chrono::milliseconds{200});  // several rounds of cleaning up
  CHECK(b.read(file, 0, 4) == "kept");
  CHECK(!coordinator.status().sessions.empty());
}

TEST_CASE("hostile: a grant is its session's alone, and no longer than it was given") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("file");
  auto layout = a.layout(file, 0, kMiB, true);
  REQUIRE(layout.grant() != 0);
  wire::Request commit;
  auto& body = *commit.mutable_commit();
  body.set_inode(file);
  body.set_grant(layout.grant());
  body.set_length(kMiB);
  body.set_truncation(layout.truncation());
  SUBCASE("by another session") { CHECK(error_of(b.change(commit)) == Errc::stale_commit); }
  SUBCASE("of another file") {
    body.set_inode(a.create("other"));
    CHECK(error_of(a.change(commit)) == Errc::stale_commit);
  }
  SUBCASE("beyond its end") {
    body.set_offset(1ull << 40);
    CHECK(a.change(commit).failure().code() != 0);
    body.set_offset((1ull << 63) - kMiB - 1);
    CHECK(a.change(commit).failure().code() != 0);
  }
  SUBCASE("of nothing") {
    body.set_length(0);
    (void)a.change(commit);
  }
  CHECK(a.attr(file).size() == 0);
  a.disconnect();
  b.disconnect();
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("hostile: offsets at the end of all numbers are refused, and the volume stays whole") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("file");
  const std::uint64_t last = (1ull << 63) - 1;
  for (std::uint64_t at : {std::uint64_t{last - 4096}, std::uint64_t{(1ull << 44) - 10},
                           std::uint64_t{1ull << 44}, std::uint64_t{1ull << 62}}) {
    CAPTURE(at);
    CHECK(a.write(file, at, "0123456789ab").failure().code() != 0);
    CHECK(a.truncate(file, at + 4096).failure().code() != 0);
    for (unsigned mode : {0u, 1u, 3u, 0x10u, ~0u}) {
      wire::Request allocate;
      allocate.mutable_allocate()->set_inode(file);
      allocate.mutable_allocate()->set_offset(at);
      allocate.mutable_allocate()->set_length(last - at);
      allocate.mutable_allocate()->set_mode(mode);
      (void)a.change(allocate);
    }
    for (bool writes : {false, true}) {
      wire::Request layout;
      layout.mutable_layout()->set_inode(file);
      layout.mutable_layout()->set_offset(at);
      layout.mutable_layout()->set_length(last - at);
      layout.mutable_layout()->set_write(writes);
      (void)a.call(layout);
    }
    wire::Request seek;
    seek.mutable_seek()->set_inode(file);
    seek.mutable_seek()->set_offset(at);
    seek.mutable_seek()->set_whence(SEEK_DATA);
    CHECK(a.call(seek).failure().code() != 0);
  }
  CHECK(a.attr(file).size() == 0);
  a.disconnect();
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("hostile: kinds, names and inodes that do not exist are refused") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  for (auto mode : {0u, 0170000u, 0150000u, 0777u}) {
    auto request = make_request("odd");
    request.mutable_make()->set_mode(mode);
    CAPTURE(mode);
    CHECK(a.change(request).failure().code() != 0);
  }
  for (const std::string& name :
       {std::string{}, std::string{"."}, std::string{".."}, std::string{"a/b"},
        std::string{"a\0b", 3}, std::string(256, 'x')}) {
    CAPTURE(name);
    CHECK(a.change(make_request(name)).failure().code() != 0);
  }
  for (std::uint64_t inode : {0ull, ~0ull, 1ull << 63, 12345ull}) {
    CAPTURE(inode);
    wire::Request open, list, read;
    open.mutable_open()->set_inode(inode);
    list.mutable_read_dir()->set_inode(inode);
    list.mutable_read_dir()->set_cookie(~0ull);
    read.mutable_read()->set_inode(inode);
    read.mutable_read()->set_length(10);
    for (const auto& request : {open, list, read}) CHECK(a.call(request).failure().code() != 0);
  }
}
