// That what a mount keeps of files does not grow with their number.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <string>

#include "tests/csvfs/world.h"

using namespace csv;
using tests::World;

namespace {

constexpr std::size_t kSize = 4096;

void make(World& world, Mount& mount, const std::string& name) {
  wire::Make what;
  what.set_parent(raw(kRootInode));
  what.set_name(name);
  what.set_mode(S_IFREG | 0644);
  auto made = world.wait(mount.create(Caller{}, std::move(what), {}));
  REQUIRE_MESSAGE(made, made.error().message());
  auto content = tests::pattern(kSize, 1);
  REQUIRE(world.wait(mount.write(made->handle, 0, content, {})));
  world.wait(mount.close(made->handle));
}

void read(World& world, Mount& mount, const std::string& name) {
  auto found = world.wait(mount.lookup(kRootInode, name));
  REQUIRE(found);
  auto opened = world.wait(mount.open(InodeId{found->inode()}, {}));
  REQUIRE(opened);
  auto content = world.wait(mount.read(opened->handle, 0, kSize));
  REQUIRE(content);
  CHECK(content->length == kSize);
  world.wait(mount.close(opened->handle));
}

std::uint64_t layouts_of(World& world, int node) {
  std::uint64_t count = 0;
  world.post([&] {
    for (const auto& each : world.service().status().sessions)
      if (raw(each.node) == node) count = each.layouts;
  });
  return count;
}

std::uint64_t asked(World& world, Mount& mount) {
  std::uint64_t count = 0;
  world.post([&] { count = mount.counters().requests; });
  return count;
}

}  // namespace

TEST_CASE("memory: a file that is read again needs no second layout") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  make(world, one, "f");
  auto cost = [&] {
    auto before = asked(world, two);
    read(world, two, "f");
    world.wait(sleep(world.loop(), 50ms));  // the closing is told of a moment later
    return asked(world, two) - before;
  };
  (void)world.wait(two.lookup(kRootInode, "f"));  // what else there is to be asked the first time
  auto first = cost();
  auto later = cost();
  for (int i = 0; i < 4; ++i) later = std::min(later, cost());  // now and then it asks on its own
  CHECK(later < first);
  CHECK(layouts_of(world, 2) == 1);
  // It is still taken back.
  auto found = world.wait(one.lookup(kRootInode, "f"));
  REQUIRE(found);
  wire::SetAttr shrink;
  shrink.set_inode(found->inode());
  shrink.set_size(0);
  REQUIRE(world.wait(one.change(std::move(shrink))));
  CHECK(layouts_of(world, 2) == 0);
}

TEST_CASE("memory: layouts beyond what a mount may keep are given back, the oldest first") {
  World::Options options;
  options.mount_memory = 128 * 1024;  // some 50 files
  World world{options};
  auto& one = world.mount(1);
  constexpr int kFiles = 300;
  for (int i = 0; i < kFiles; ++i) make(world, one, "f" + std::to_string(i));
  auto& two = world.mount(2);
  for (int i = 0; i < kFiles; ++i) {
    read(world, two, "f" + std::to_string(i));
    CHECK(layouts_of(world, 2) < 80);
  }
  CHECK(layouts_of(world, 2) > 30);
  // All of them can still be read.
  for (int i = 0; i < kFiles; i += 17) read(world, two, "f" + std::to_string(i));
}
