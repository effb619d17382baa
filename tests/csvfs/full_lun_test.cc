#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "tests/csvfs/world.h"

namespace csv::tests {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

/// What a thin target answers when nothing is left, as long as `full` says so.
iscsi::RamPlan thin(std::atomic<bool>& full, std::atomic<int>& refused) {
  return [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    using Kind = iscsi::RamCommand::Kind;
    bool content = command.offset > 200 * kMiB;
    if (full && content && (command.kind == Kind::write || command.kind == Kind::zero)) {
      fate.failure =
          Error{std::errc::no_space_on_device, "the thin LUN has no space left (07h/27h/07h)"};
      fate.torn_blocks = 1;
      ++refused;
    }
    return fate;
  };
}

Mount::Opened create(World& world, Mount& mount) {
  wire::Make make;
  make.set_parent(raw(kRootInode));
  make.set_name("file");
  make.set_mode(S_IFREG | 0644);
  auto made = world.wait(mount.create(Caller{}, make, {}));
  REQUIRE(made);
  return *made;
}

bool becomes(World& world, Mount& mount, AccessMode mode, const std::string& reason) {
  auto until = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (std::chrono::steady_clock::now() < until) {
    Mount::State state;
    world.post([&] { state = mount.state(); });
    if (state.mode == mode && state.reason.find(reason) != std::string::npos) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
  }
  return false;
}

}  // namespace

TEST_CASE(
    "full LUN: writes wait, whoever sends them, the reason is told, and they go on by themselves") {
  std::atomic<bool> full{false};
  std::atomic<int> refused{0};
  World world;
  auto& mount = world.mount(2);
  auto file = create(world, mount);
  auto before = pattern(kMiB, 1);
  REQUIRE(world.wait(mount.write(file.handle, 0, before, {})));

  std::uint64_t at = 0;
  bool append = false;
  SUBCASE("a direct write in place") { at = 65536; }
  SUBCASE("a direct write into a grant") { at = kMiB; }
  SUBCASE("a hole that the coordinator makes stable") {
    wire::SetAttr longer;
    longer.set_inode(file.attr.inode());
    longer.set_size(8 * kMiB);
    REQUIRE(world.wait(mount.change(longer)));
    at = 4 * kMiB;
  }
  SUBCASE("a write through the coordinator") { append = true; }

  full = true;
  world.post([&] {
    world.mount_plan = thin(full, refused);
    world.coordinator_plan = thin(full, refused);
  });
  auto data = pattern(append ? 1000 : 65536, 9);
  Mount::WriteOptions how;
  how.append = append;
  auto writing = world.begin(mount.write(file.handle, at, data, how));
  CHECK(becomes(world, mount, AccessMode::paused, "no space left"));
  CHECK_FALSE(writing->ready_within(1s));
  CHECK(refused > 1);  // it was tried again
  // What needs no space goes on.
  auto there = world.wait(mount.read(file.handle, 128 * 1024, 4096));
  REQUIRE(there);

  full = false;
  auto wrote = writing->get();
  REQUIRE_MESSAGE(wrote, wrote.error().message());
  CHECK(*wrote == data.size());
  CHECK(becomes(world, mount, AccessMode::direct, ""));
  auto read = world.wait(
      mount.read(file.handle, append ? kMiB : at, static_cast<std::uint32_t>(data.size())));
  REQUIRE(read);
  auto bytes = bytes_of(*read);
  CHECK(std::equal(bytes.begin(), bytes.end(), data.begin(), data.end()));
}

TEST_CASE("full LUN: a page that cannot be written keeps other nodes waiting for a moment only") {
  std::atomic<bool> full{false};
  std::atomic<int> refused{0};
  World world;
  auto& mount = world.mount(2);
  auto file = create(world, mount);
  auto before = pattern(kMiB, 1), stored = pattern(4096, 2);
  auto& other = world.mount(3);
  auto opened = world.wait(other.open(InodeId{file.attr.inode()}, {}));
  REQUIRE(opened);
  SUBCASE("of a file that it has written itself") {
    REQUIRE(world.wait(mount.write(file.handle, 0, before, {})));
  }
  SUBCASE("of what another one has written, so that it goes through the coordinator") {
    auto writer = world.wait(other.open(InodeId{file.attr.inode()}, {.writes = true}));
    REQUIRE(writer);
    REQUIRE(world.wait(other.write(writer->handle, 0, before, {})));
  }
  SUBCASE("of a hole, so that it goes through the coordinator") {
    std::fill(before.begin(), before.end(), std::byte{});
    wire::SetAttr longer;
    longer.set_inode(file.attr.inode());
    longer.set_size(before.size());
    REQUIRE(world.wait(mount.change(longer)));
  }
  Mount::OpenOptions to_store;
  to_store.writes = true;
  auto mapped = world.wait(mount.open(InodeId{file.attr.inode()}, to_store));
  REQUIRE(mapped);
  // A kernel that has stored into the page, and is told to drop it.
  std::atomic<int> failed{0};
  TaskScope kernel;
  world.post([&] {
    mount.drop_pages_with([&](InodeId, std::vector<Range>, bool, Function<void()> done) {
      auto drop = [](Mount& of, Mount::Handle handle, std::span<const std::byte> page,
                     std::atomic<int>& failures, Function<void()> then) -> Task<void> {
        Mount::WriteOptions how;
        how.pages = true;
        auto written = co_await of.write(handle, 0, page, how);
        if (!written) failures = written.error().to_errno();
        then();
      };
      kernel.spawn(drop(mount, mapped->handle, stored, failed, std::move(done)));
    });
    world.mount_plan = thin(full, refused);
    world.coordinator_plan = thin(full, refused);
  });
  REQUIRE(world.wait(mount.read_pages(mapped->handle, 0, 4096)));
  full = true;
  auto key = mount.state().key;
  auto read = world.begin(other.read(opened->handle, 0, 4096));
  REQUIRE(read->ready_within(15s));
  auto got = read->get();
  REQUIRE(got);
  auto bytes = bytes_of(*got);
  CHECK(std::equal(bytes.begin() + 512, bytes.end(), before.begin() + 512));  // one block is torn
  CHECK(failed == ENOSPC);
  CHECK(mount.state().key == key);
  full = false;
  CHECK(world.wait(mount.write(file.handle, 0, before, {})));
  world.post([&] {
    mount.drop_pages_with(nullptr);
    kernel.cancel_all();
  });
}

TEST_CASE("full LUN: what of a write has landed is not written again over another node's") {
  std::atomic<bool> full{true};
  std::atomic<std::uint64_t> first{0};
  World world;
  auto& mount = world.mount(2);
  auto& other = world.mount(1);
  auto file = create(world, mount);
  REQUIRE(world.wait(mount.write(file.handle, 0, pattern(2 * kMiB, 1), {})));
  REQUIRE(world.wait(mount.sync(file.handle)));
  world.post([&] {
    world.mount_plan = [&](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (command.kind != iscsi::RamCommand::Kind::write || command.length != kMiB) return fate;
      std::uint64_t none = 0;
      first.compare_exchange_strong(none, command.offset);
      if (full && command.offset != first)
        fate.failure = Error{std::errc::no_space_on_device, "no space left (07h/27h/07h)"};
      return fate;
    };
  });
  auto data = pattern(2 * kMiB, 2), theirs = pattern(65536, 3);
  auto writing = world.begin(mount.write(file.handle, 0, data, {}));
  CHECK(becomes(world, mount, AccessMode::paused, "no space left"));
  auto opened = world.wait(other.open(InodeId{file.attr.inode()}, {}));
  REQUIRE(opened);
  auto seen = world.wait(other.read(opened->handle, 0, 4096));
  REQUIRE(seen);
  REQUIRE(bytes_of(*seen)[100] == data[100]);
  REQUIRE(world.wait(other.write(opened->handle, 0, theirs, {})));
  full = false;
  auto wrote = writing->get();
  REQUIRE(wrote);
  CHECK(*wrote == data.size());
  auto there = world.wait(other.read(opened->handle, 0, 2 * kMiB));
  REQUIRE(there);
  auto bytes = bytes_of(*there);
  CHECK(std::equal(theirs.begin(), theirs.end(), bytes.begin()));
  CHECK(std::equal(data.begin() + 65536, data.end(), bytes.begin() + 65536));
}

TEST_CASE("full LUN: nor what has landed in its middle, when the coordinator goes on with it") {
  std::vector<std::uint64_t> places;  // of what is written, in order
  World world;
  auto& mount = world.mount(2);
  auto& other = world.mount(1);
  auto file = create(world, mount);
  REQUIRE(world.wait(mount.write(file.handle, 0, pattern(3 * kMiB, 1), {})));
  REQUIRE(world.wait(mount.sync(file.handle)));
  world.post([&] {
    world.mount_plan = [&](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (command.kind != iscsi::RamCommand::Kind::write || command.length != kMiB) return fate;
      if (std::find(places.begin(), places.end(), command.offset) == places.end())
        places.push_back(command.offset);
      if (places.size() == 1 || command.offset != places[1])
        fate.failure = Error{std::errc::no_space_on_device, "no space left (07h/27h/07h)"};
      return fate;
    };
  });
  auto data = pattern(3 * kMiB, 2), theirs = pattern(65536, 3), few = pattern(20, 4);
  auto writing = world.begin(mount.write(file.handle, 0, data, {}));
  CHECK(becomes(world, mount, AccessMode::paused, "no space left"));
  auto opened = world.wait(other.open(InodeId{file.attr.inode()}, {}));
  REQUIRE(opened);
  auto seen = world.wait(other.read(opened->handle, kMiB, 4096));
  REQUIRE(seen);
  REQUIRE(bytes_of(*seen)[100] == data[kMiB + 100]);
  REQUIRE(world.wait(other.write(opened->handle, kMiB, theirs, {})));
  // After two of these in a second nobody writes the file directly for a while.
  auto until = std::chrono::steady_clock::now() + 20s;
  while (mount.counters().redirected_writes == 0 && std::chrono::steady_clock::now() < until)
    REQUIRE(world.wait(other.write(opened->handle, 10, few, {})));
  REQUIRE(mount.counters().redirected_writes > 0);
  auto wrote = writing->get();
  REQUIRE(wrote);
  CHECK(*wrote == data.size());
  auto there = world.wait(other.read(opened->handle, 0, 3 * kMiB));
  REQUIRE(there);
  auto bytes = bytes_of(*there);
  CHECK(std::equal(data.begin() + 4096, data.begin() + kMiB, bytes.begin() + 4096));
  CHECK(std::equal(theirs.begin(), theirs.end(), bytes.begin() + kMiB));
  CHECK(std::equal(data.begin() + kMiB + 65536, data.end(), bytes.begin() + kMiB + 65536));
}

TEST_CASE("full LUN: a program that is killed while its write waits is let go") {
  std::atomic<bool> full{true};
  std::atomic<int> refused{0};
  World world;
  auto& mount = world.mount(2);
  auto file = create(world, mount);
  auto data = pattern(kMiB, 1);
  REQUIRE(world.wait(mount.write(file.handle, 0, data, {})));
  Mount::WriteOptions how;
  SUBCASE("a direct write") {}
  SUBCASE("a write through the coordinator") { how.append = true; }
  world.post([&] {
    world.mount_plan = thin(full, refused);
    world.coordinator_plan = thin(full, refused);
  });
  Interrupt killed;
  auto writing = world.begin(mount.write(file.handle, 0, data, how, &killed));
  CHECK_FALSE(writing->ready_within(300ms));
  world.post([&] { killed.raise(); });
  auto result = writing->get();
  REQUIRE_FALSE(result);
  CHECK(result.error() == std::errc::interrupted);
}

}  // namespace csv::tests
