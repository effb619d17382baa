#include "csvfs/second_walks.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "tests/csvfs/world.h"

using namespace csv;
using tests::World;

namespace {

/// On the world's loop, as all of it.
struct Bed {
  Bed() {
    world.post([&] {
      walks = std::make_unique<SecondWalks>(world.loop(), mount);
      walks->last(1h);
    });
  }
  Bed(const Bed&) = delete;
  Bed& operator=(const Bed&) = delete;
  ~Bed() {
    world.kill_mount(2);
    world.post([&] { walks.reset(); });
  }

  static World::Options quick() {
    World::Options options;
    options.timing.reconnect_grace = options.timing.lease_term = 300ms;
    options.timing.key_sweep = 50ms;
    return options;
  }
  wire::Attr made(const std::string& name) {
    wire::Make what;
    what.set_parent(raw(kRootInode));
    what.set_name(name);
    what.set_mode(S_IFREG | 0644);
    auto file = world.wait(mount.create(Caller{}, what, {}));
    REQUIRE(file);
    world.wait(mount.close(file->handle));
    return file->attr;
  }
  void find(pid_t thread, const std::string& name) {
    auto found = world.wait(walks->lookup(thread, kRootInode, name));
    REQUIRE(found);
  }
  [[nodiscard]] bool under_way(pid_t thread) {
    bool is = false;
    world.post([&] { is = walks->under_way(thread); });
    return is;
  }
  /// As long as somebody has it open.
  bool lives(InodeId inode) {
    auto attr = world.wait(other.attr(inode));
    return static_cast<bool>(attr);
  }
  void remove(const std::string& name) {
    REQUIRE(world.wait(other.unlink(kRootInode, name, false)));
  }

  World world{quick()};
  Mount& mount = world.mount(2);
  Mount& other = world.mount(3);
  std::unique_ptr<SecondWalks> walks;
};

}  // namespace

TEST_CASE("second walks: of more than 1024 the oldest that waits for nothing ends, and lets go") {
  Bed bed;
  InodeId kept{bed.made("kept").inode()}, held{bed.made("held").inode()};
  bed.world.post([&] {
    bed.walks->begins(1);
    bed.walks->begins(2);
  });
  bed.find(1, "held");
  bed.find(2, "kept");
  bed.remove("held");
  bed.remove("kept");
  bed.world.post([&] {
    bed.walks->waits(1);  // its opening
    for (pid_t thread = 3; thread <= 1024; ++thread) bed.walks->begins(thread);
  });
  CHECK(bed.under_way(2));
  CHECK(bed.lives(kept));
  bed.world.post([&] { bed.walks->begins(1024); });  // again: that is no further one
  CHECK(bed.under_way(2));
  bed.world.post([&] { bed.walks->begins(1025); });
  CHECK(bed.under_way(1));
  CHECK_FALSE(bed.under_way(2));
  CHECK(bed.under_way(3));
  CHECK(bed.under_way(1025));
  for (int i = 0; i < 1000 && bed.lives(kept); ++i) bed.world.wait(sleep(bed.world.loop(), 5ms));
  CHECK_FALSE(bed.lives(kept));
  CHECK(bed.lives(held));
}

TEST_CASE("second walks: a fence while one keeps a file leaves nothing open, and harms no other") {
  Bed bed;
  auto& world = bed.world;
  InodeId gone{bed.made("gone").inode()};
  bed.made("stays");
  world.post([&] { bed.walks->begins(1); });
  bed.find(1, "gone");
  bed.remove("gone");
  CHECK(bed.lives(gone));
  bool ends_first = false;
  SUBCASE("the walk goes on afterwards") {}
  SUBCASE("the walk ends meanwhile") { ends_first = true; }
  world.post([&] {
    world.fenced_node = 2;
    world.fences = 1;
  });
  for (int i = 0; i < 1000 && bed.mount.state().session != SessionId{}; ++i)
    world.wait(sleep(world.loop(), 5ms));
  REQUIRE(bed.mount.state().session == SessionId{});
  if (ends_first) world.post([&] { bed.walks->ends(1); });
  world.post([&] { world.fenced_node = 0; });
  for (int i = 0; i < 1000 && bed.lives(gone); ++i) world.wait(sleep(world.loop(), 5ms));
  CHECK_FALSE(bed.lives(gone));
  // What it finds next takes the place of what is over.
  if (ends_first) world.post([&] { bed.walks->begins(1); });
  for (int i = 0; i < 1000 && !world.wait(bed.mount.lookup(kRootInode, "stays")); ++i)
    world.wait(sleep(world.loop(), 5ms));
  bed.find(1, "stays");
  bed.remove("stays");
  world.post([&] { bed.walks->ends(1); });
  CHECK_FALSE(bed.under_way(1));
}
