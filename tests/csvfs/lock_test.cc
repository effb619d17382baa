#include <doctest/doctest.h>
#include <sys/stat.h>

#include "csvfs/base/random.h"
#include "csvfs/mount.h"
#include "tests/csvfs/world.h"

using namespace csv;
using tests::World;

namespace {

Mount::Opened create(World& world, Mount& mount, const std::string& name) {
  wire::Make what;
  what.set_parent(raw(kRootInode));
  what.set_name(name);
  what.set_mode(S_IFREG | 0644);
  auto made = world.wait(mount.create(Caller{}, what, {}));
  REQUIRE_MESSAGE(made, made.error().message());
  return *made;
}
Mount::Handle open(World& world, Mount& mount, const Mount::Opened& file) {
  auto opened = world.wait(mount.open(InodeId{file.attr.inode()}, {}));
  REQUIRE_MESSAGE(opened, opened.error().message());
  return opened->handle;
}

/// What a program of that number asks for.
Mount::LockWish wish(std::uint64_t program, LockType type = LockType::write, bool wait = false) {
  Mount::LockWish wish;
  wish.owner = 0xabc000 + program;
  wish.pid = static_cast<std::uint32_t>(program);
  wish.type = type;
  wish.wait = wait;
  return wish;
}
Mount::LockWish whole(Mount::LockWish wish) {
  wish.kind = LockKind::whole_file;
  return wish;
}
constexpr auto kRead = LockType::read, kWrite = LockType::write;

Task<void> free(Mount& mount, Mount::Handle handle, Mount::LockWish wish) {
  CHECK(co_await mount.unlock(handle, wish));
}

/// The lock becomes free, and so many turns of the loop later the one who waits is interrupted.
Task<bool> race(World& world, Mount& mount, Mount::Handle handle, Mount::LockWish wish,
                Interrupt& interrupt, std::uint64_t turns) {
  TaskScope freeing;
  freeing.spawn(free(mount, handle, wish));
  while (turns-- > 0) co_await yield(world.loop());
  interrupt.raise();
  while (freeing.running() > 0) co_await yield(world.loop());
  co_return true;
}

bool lock(World& world, Mount& mount, Mount::Handle handle, Mount::LockWish wish) {
  auto locked = world.wait(mount.lock(handle, wish));
  if (!locked) CHECK(locked.error() == std::errc::resource_unavailable_try_again);
  return static_cast<bool>(locked);
}

}  // namespace

TEST_CASE("mount: locks of two nodes exclude each other, and go with the descriptor") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto other = open(world, two, file), again = open(world, two, file);
  CHECK(lock(world, one, file.handle, wish(1)));
  CHECK_FALSE(lock(world, two, other, wish(1)));
  CHECK_FALSE(lock(world, one, file.handle, wish(2, kRead)));
  auto found = world.wait(two.test_lock(other, wish(1, kRead)));
  REQUIRE(found);
  REQUIRE(*found);
  CHECK((*found)->type == kWrite);
  CHECK((*found)->range == LockRange{});
  CHECK((*found)->pid == 0);

  SUBCASE("unlocked") { CHECK(world.wait(one.unlock(file.handle, wish(1)))); }
  SUBCASE("flushed") { world.wait(one.flush(file.handle, wish(1).owner)); }
  SUBCASE("closed") { world.wait(one.close(file.handle)); }
  SUBCASE("unmounted") { world.end_mount(1); }
  CHECK(lock(world, two, other, wish(1, kRead)));
  // Somebody else's descriptor of the same file does not matter.
  world.wait(two.flush(other, wish(7).owner));
  world.wait(two.close(again));
  found = world.wait(two.test_lock(other, wish(2)));
  REQUIRE(found);
  CHECK(found->has_value());
  CHECK((*found)->pid == 1);
}

TEST_CASE("mount: flock and the bytes' locks do not see each other; flock outlives a flush") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto other = open(world, two, file);
  CHECK(lock(world, one, file.handle, whole(wish(1))));
  CHECK(lock(world, two, other, wish(1)));
  CHECK_FALSE(lock(world, two, other, whole(wish(2, kRead))));
  world.wait(one.flush(file.handle, wish(1).owner));
  CHECK_FALSE(lock(world, two, other, whole(wish(2, kRead))));
  CHECK(lock(world, one, file.handle, whole(wish(1, kRead))));
  CHECK(lock(world, two, other, whole(wish(2, kRead))));
  // A change of type that fails loses the lock (flock(2)).
  CHECK_FALSE(lock(world, one, file.handle, whole(wish(1, kWrite))));
  CHECK(lock(world, two, other, whole(wish(2, kWrite))));
}

TEST_CASE("mount: closing a file without locks asks nobody") {
  World world;
  auto& one = world.mount(1);
  auto file = create(world, one, "file");
  CHECK(lock(world, one, file.handle, wish(1)));
  CHECK(world.wait(one.unlock(file.handle, wish(1))));
  world.post([&] { world.refuse_connections = true; });
  world.cut_connections();
  world.wait(one.flush(file.handle, wish(1).owner));
  world.wait(one.flush(file.handle, wish(2).owner));
  CHECK(world.wait(one.unlock(file.handle, wish(2))));
  world.post([&] { world.refuse_connections = false; });
}

TEST_CASE("mount: who waits gets the lock, through broken connections and a takeover") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto other = open(world, two, file);
  CHECK(lock(world, one, file.handle, wish(1)));
  auto waits = world.begin(two.lock(other, wish(1, kWrite, true)));
  CHECK_FALSE(waits->ready_within(50ms));
  SUBCASE("a broken connection") { world.cut_connections(); }
  SUBCASE("a takeover") { world.take_over(); }
  SUBCASE("none") {}
  CHECK_FALSE(waits->ready_within(200ms));
  CHECK_FALSE(lock(world, two, other, wish(2)));
  CHECK(world.wait(one.unlock(file.handle, wish(1))));
  CHECK(waits->get());
  CHECK_FALSE(lock(world, one, file.handle, wish(1)));
  world.take_over();
  CHECK_FALSE(lock(world, one, file.handle, wish(1)));
  CHECK(world.wait(two.unlock(other, wish(1))));
  CHECK(lock(world, one, file.handle, wish(1)));
}

TEST_CASE("mount: a lock that waits to change its type is held by nobody, also after a takeover") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto second = open(world, one, file), other = open(world, two, file);
  CHECK(lock(world, one, file.handle, whole(wish(1, kWrite))));
  auto queued = world.begin(two.lock(other, whole(wish(2, kWrite, true))));
  CHECK_FALSE(queued->ready_within(50ms));
  // flock(2): the old one goes first, and whoever waited already gets it.
  auto changes = world.begin(one.lock(file.handle, whole(wish(1, kRead, true))));
  CHECK(queued->get());
  CHECK_FALSE(changes->ready_within(50ms));
  world.take_over();
  CHECK_FALSE(changes->ready_within(100ms));
  // No other lock than that of node 2 is in the way: it may be taken again as it is.
  CHECK(lock(world, two, other, whole(wish(2, kWrite))));
  CHECK_FALSE(lock(world, one, second, whole(wish(3, kRead))));
  CHECK(world.wait(two.unlock(other, whole(wish(2)))));
  CHECK(changes->get());
  CHECK(world.wait(one.unlock(file.handle, whole(wish(1)))));
  CHECK(lock(world, one, second, whole(wish(3, kWrite))));
}

TEST_CASE("mount: a change of type that fails leaves no lock, whether it was heard of or not") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto other = open(world, two, file);
  CHECK(lock(world, one, file.handle, whole(wish(1, kRead))));
  Interrupt interrupt;
  SUBCASE("it was refused") {
    CHECK(lock(world, two, other, whole(wish(2, kRead))));
    CHECK_FALSE(lock(world, one, file.handle, whole(wish(1, kWrite))));
    CHECK(world.wait(two.unlock(other, whole(wish(2)))));
  }
  SUBCASE("it was interrupted before it was sent") {
    bool wait = false;
    SUBCASE("and would not have waited") {}
    SUBCASE("and would have waited") { wait = true; }
    world.crash_coordinator();
    world.wait(sleep(world.loop(), 50ms));
    auto asked = world.begin(one.lock(file.handle, whole(wish(1, kWrite, wait)), &interrupt));
    world.wait(sleep(world.loop(), 20ms));
    world.post([&] { interrupt.raise(); });
    CHECK(asked->get().error() == std::errc::interrupted);
    world.take_over();
  }
  bool got = false;
  for (int i = 0; i < 500 && !got; ++i) {
    got = lock(world, two, other, whole(wish(2, kWrite)));
    if (!got) world.wait(sleep(world.loop(), 10ms));
  }
  CHECK(got);
}

TEST_CASE(
    "mount: an interrupt ends waiting at once, with or without a coordinator, and leaves nothing") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto other = open(world, two, file);
  CHECK(lock(world, one, file.handle, wish(1)));
  CHECK(lock(world, two, other, wish(1, kWrite)) == false);
  Interrupt first, second;
  auto waits = world.begin(two.lock(other, wish(1, kWrite, true), &first));
  CHECK_FALSE(waits->ready_within(50ms));
  bool gone = false;
  SUBCASE("connected") {}
  SUBCASE("no coordinator") { gone = true; }
  if (gone) world.crash_coordinator();
  auto later = world.begin(two.lock(other, wish(2, kWrite, true), &second));
  world.post([&] {
    first.raise();
    second.raise();
  });
  CHECK(waits->get().error() == std::errc::interrupted);
  CHECK(later->get().error() == std::errc::interrupted);
  if (gone) world.take_over();
  CHECK(world.wait(one.unlock(file.handle, wish(1))));
  // That it is not wanted any more is still on its way; until it arrives the lock may be offered.
  bool got = false;
  for (int i = 0; i < 500 && !got; ++i) {
    got = lock(world, one, file.handle, wish(3));
    if (!got) world.wait(sleep(world.loop(), 10ms));
  }
  CHECK(got);
  CHECK(world.wait(one.unlock(file.handle, wish(3))));
  CHECK(world.wait(two.unlock(other, wish(1))));
  CHECK(lock(world, one, file.handle, wish(3)));
}

TEST_CASE("mount: an interrupt that crosses the grant never leaks the lock") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto other = open(world, two, file);
  Random random{5};
  int interrupted = 0, got = 0;
  for (int round = 0; round < 300; ++round) {
    CAPTURE(round);
    // Sometimes the one who waits has a part of it already, and keeps that.
    bool upgrade = round % 3 == 0;
    auto rest = wish(1, kWrite), part = wish(1, kRead);
    rest.range.first = 10;
    part.range.last = 9;
    REQUIRE(lock(world, one, file.handle, rest));
    if (upgrade) REQUIRE(lock(world, two, other, part));
    Interrupt interrupt;
    auto waits = world.begin(two.lock(other, wish(1, kWrite, true), &interrupt));
    (void)world.wait(two.test_lock(other, wish(5)));  // by now the coordinator knows who waits
    CHECK(world.wait(race(world, one, file.handle, rest, interrupt, random.below(24))));
    auto result = waits->get();
    if (result) {
      ++got;
      CHECK_FALSE(lock(world, one, file.handle, rest));
    } else {
      ++interrupted;
      CHECK(result.error() == std::errc::interrupted);
      // What this node said is in order: once it is answered, so is the cancel.
      (void)world.wait(two.test_lock(other, wish(5)));
      CHECK(lock(world, one, file.handle, rest));
      CHECK(world.wait(one.unlock(file.handle, rest)));
      CHECK(lock(world, one, file.handle, wish(2, kRead)));
      CHECK(world.wait(one.unlock(file.handle, wish(2))));
      if (upgrade) CHECK_FALSE(lock(world, one, file.handle, wish(2, kWrite)));
    }
    CHECK(world.wait(two.unlock(other, wish(1))));
  }
  MESSAGE("interrupted " << interrupted << ", got " << got);
  CHECK(interrupted > 0);
  CHECK(got > 0);
}

TEST_CASE(
    "mount: waiting ends without EINTR, which only a signal explains, if the file is closed") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file");
  auto other = open(world, two, file);
  CHECK(lock(world, one, file.handle, wish(1)));
  auto waits = world.begin(two.lock(other, wish(1, kWrite, true)));
  CHECK_FALSE(waits->ready_within(50ms));
  world.wait(two.flush(other, wish(1).owner));
  CHECK(waits->get().error() == std::errc::bad_file_descriptor);
  CHECK(world.wait(one.unlock(file.handle, wish(1))));
  CHECK(lock(world, one, file.handle, wish(1)));
}

TEST_CASE("mount: two nodes that wait for each other: one is told") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto a = create(world, one, "a"), b = create(world, one, "b");
  auto other_a = open(world, two, a), other_b = open(world, two, b);
  CHECK(lock(world, one, a.handle, wish(1)));
  CHECK(lock(world, two, other_b, wish(1)));
  auto waits = world.begin(one.lock(b.handle, wish(1, kRead, true)));
  CHECK_FALSE(waits->ready_within(50ms));
  auto refused = world.wait(two.lock(other_a, wish(1, kRead, true)));
  CHECK(refused.error() == std::errc::resource_deadlock_would_occur);
  world.wait(two.flush(other_b, wish(1).owner));
  CHECK(waits->get());
}

TEST_CASE("mount: locks that nobody asked for go on with the file after a session's end") {
  World::Options options;
  options.timing.reconnect_grace = 300ms;
  options.timing.lease_term = 300ms;
  options.timing.key_sweep = 50ms;
  World world{options};
  auto& one = world.mount(1);
  auto file = create(world, one, "file");
  auto& two = world.mount(2);
  auto other = open(world, two, file);
  CHECK(lock(world, one, file.handle, wish(1)));
  CHECK(lock(world, one, file.handle, whole(wish(2))));
  auto session = one.state().session;
  auto waits = world.begin(one.lock(file.handle, wish(3, kWrite, true)));
  world.cut_off(1);
  world.wait(sleep(world.loop(), 1500ms));
  // A program that ends meanwhile leaves nothing behind.
  auto closing = world.begin([](Mount& mount, Mount::Handle handle) -> Task<bool> {
    co_await mount.flush(handle, wish(2).owner);
    co_return true;
  }(one, file.handle));
  CHECK(closing->get());
  world.cut_off(0);
  for (int i = 0; i < 1000 && one.state().session == session; ++i)
    world.wait(sleep(world.loop(), 10ms));
  CHECK(lock(world, one, file.handle, wish(1)));
  CHECK(one.session_of(file.handle) == one.state().session);
  CHECK_FALSE(lock(world, two, other, wish(9)));
  CHECK_FALSE(lock(world, two, other, whole(wish(9))));  // flock is not the process's
  CHECK_FALSE(waits->ready_within(50ms));
  CHECK(world.wait(one.unlock(file.handle, wish(1))));
  CHECK(waits->get());
  world.wait(one.close(file.handle));
  CHECK(lock(world, two, other, wish(9)));
  CHECK(lock(world, two, other, whole(wish(9))));
}

TEST_CASE("mount: the locks of a session that was fenced are free, and its handles say EIO") {
  World::Options options;
  options.timing.lease_term = 300ms;
  options.timing.key_sweep = 50ms;  // also the heartbeat, which keeps the coordinator's gate open
  World world{options};
  auto& one = world.mount(1);
  auto file = create(world, one, "file");
  CHECK(lock(world, one, file.handle, wish(1)));
  auto& two = world.mount(2);
  auto other = open(world, two, file);
  auto waits = world.begin(two.lock(other, wish(1, kWrite, true)));
  CHECK_FALSE(waits->ready_within(50ms));
  auto old = one.state().session;
  SUBCASE("its connection was gone for too long") {
    // Node 2 comes back at once, node 1 is away meanwhile.
    world.kill_mount(1);
    CHECK(waits->get());
    return;
  }
  SUBCASE("a new mount of the node") {
    auto own = world.begin(one.lock(file.handle, wish(2, kRead, true)));
    world.post([&] { world.refuse_connections = true; });
    world.cut_connections();
    world.wait(sleep(world.loop(), 5s));
    world.post([&] { world.refuse_connections = false; });
    // Both were away for longer than the lease; whoever came back first may have gone on.
    auto mine = world.wait(one.lock(file.handle, wish(1)));
    // Its lock is another's by now; or nobody has had it, and it goes on with it.
    bool ended = one.state().session != old && one.session_of(file.handle) == SessionId{};
    if (ended) {
      CHECK(mine.error().to_errno() == EIO);
      CHECK(own->get().error().to_errno() == EIO);
    } else {
      CHECK(mine);
    }
    world.wait(one.flush(file.handle, wish(1).owner));
    world.wait(one.close(file.handle));
    auto result = waits->get();
    if (!result) CHECK(result.error().to_errno() == EIO);
  }
}
