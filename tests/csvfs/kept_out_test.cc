// A mount whose node is refused, by whoever and for whatever reason: what fails, and what waits.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include "tests/csvfs/world.h"

using namespace csv;
using tests::pattern;
using tests::World;

namespace {

World::Options quick() {
  World::Options options;
  options.timing.reconnect_grace = 300ms;
  options.timing.lease_term = 300ms;
  options.timing.key_sweep = 50ms;
  options.refused_for = 300ms;
  return options;
}

wire::Make file_named(const std::string& name) {
  wire::Make what;
  what.set_parent(raw(kRootInode));
  what.set_name(name);
  what.set_mode(S_IFREG | 0644);
  return what;
}

int error_of(const auto& result) { return result ? 0 : result.error().to_errno(); }

/// A file that the mount may write in place.
Mount::Opened written_file(World& world, Mount& mount, const std::string& name) {
  auto made = world.wait(mount.create(Caller{}, file_named(name), {.writes = true}));
  REQUIRE_MESSAGE(made, made.error().message());
  auto content = pattern(8192, 1);
  for (int i = 0; i < 2; ++i) REQUIRE(world.wait(mount.write(made->handle, 0, content, {})));
  return *made;
}

void wait_until(World& world, auto condition) {
  bool holds = false;
  for (int i = 0; i < 1000 && !holds; ++i) {
    world.post([&] { holds = condition(); });
    if (!holds) world.wait(sleep(world.loop(), 5ms));
  }
  REQUIRE(holds);
}

/// Node 2's session ends, and it hears of that; what it has open waits to hear whether it goes on.
void end_session(World& world, Mount& mount) {
  SessionId before{};
  world.post([&] {
    before = mount.state().session;
    world.lose_resumes_of = 2;
  });
  world.cut_off(2);
  wait_until(world, [&] {
    auto sessions = world.service().status().sessions;
    return std::none_of(sessions.begin(), sessions.end(),
                        [&](const auto& each) { return each.session == before; });
  });
  world.cut_off(0);
  wait_until(world, [&] {
    return mount.state().session != before && mount.state().session != SessionId{};
  });
}

}  // namespace

TEST_CASE("mount: who opens a file that waits for a new session can be killed meanwhile") {
  World world{quick()};
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file");
  end_session(world, mount);
  Mount::OpenOptions options;
  SUBCASE("to read it") {}
  SUBCASE("to truncate it") { options.writes = options.truncate = true; }
  Interrupt interrupt;
  auto opening = world.begin(mount.open(InodeId{file.attr.inode()}, options, &interrupt));
  CHECK_FALSE(opening->ready_within(50ms));
  world.post([&] { interrupt.raise(); });
  REQUIRE(opening->ready_within(5s));
  CHECK(error_of(opening->get()) == EINTR);
  // Once it is known the others open it, and find what nobody has truncated.
  world.post([&] { world.lose_resumes_of = 0; });
  world.cut_connections();
  auto again = world.wait(mount.open(InodeId{file.attr.inode()}, {}));
  REQUIRE(again);
  CHECK(again->attr.size() == 8192);
}

TEST_CASE(
    "mount: one that is refused by who has not heard that it may come is let in all the same") {
  auto options = quick();
  options.refused_for = 5s;
  World world{options};
  world.post([&] { world.fenced_node = 2; });
  auto& mount = world.start_mount(2);
  auto ready = world.begin(mount.ready());
  auto looking = world.begin(mount.lookup(kRootInode, "nothing"));
  CHECK_FALSE(ready->ready_within(300ms));
  bool another = false;
  SUBCASE("by the same coordinator") {}
  SUBCASE("by its successor") { another = true; }
  world.post([&] { world.fenced_node = 0; });
  if (another) world.take_over();
  auto is_ready = ready->get();
  CHECK_MESSAGE(is_ready, is_ready.error().message());
  CHECK(error_of(world.wait(mount.lookup(kRootInode, "nothing"))) == ENOENT);
  CHECK(looking->ready_within(5s));
}

TEST_CASE("mount: one that is refused all the time says so in the end") {
  World world{quick()};
  world.post([&] { world.fenced_node = 2; });
  auto ready = world.wait(world.start_mount(2).ready());
  REQUIRE_FALSE(ready);
  CHECK(ready.error() == Errc::refused);
  CHECK(ready.error().message().find("csvctl node unfence") != std::string::npos);
}

TEST_CASE("mount: while a certificate is refused programs wait, and nothing fails") {
  World world{quick()};
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file");
  bool ended = false;
  SUBCASE("in a session") {}
  SUBCASE("which ends meanwhile") { ended = true; }
  std::atomic<int> refused{0};
  world.post([&] {
    world.connection_fails = [&](int number) -> std::optional<Error> {
      if (number != 2) return {};
      ++refused;
      return Error{Errc::refused, "a certificate that has expired"};
    };
  });
  if (ended) {
    // The coordinator forgets it without a word.
    SessionId before{};
    world.post([&] { before = mount.state().session; });
    world.cut_connections();
    wait_until(world, [&] {
      auto sessions = world.service().status().sessions;
      return std::none_of(sessions.begin(), sessions.end(),
                          [&](const auto& each) { return each.session == before; });
    });
  } else {
    world.cut_connections();
  }
  auto looking = world.begin(mount.lookup(kRootInode, "file"));
  auto making = world.begin(mount.create(Caller{}, file_named("made"), {}));
  auto reading = world.begin(mount.attr(InodeId{file.attr.inode()}));
  wait_until(world, [&] { return refused > 3; });
  CHECK_FALSE(looking->ready_within(10ms));
  CHECK_FALSE(making->ready_within(10ms));
  CHECK_FALSE(reading->ready_within(10ms));
  world.post([&] { world.connection_fails = {}; });
  CHECK(error_of(looking->get()) == 0);
  CHECK(error_of(making->get()) == 0);
  CHECK(error_of(reading->get()) == 0);
}

// The question took along that the file was written, and nobody has heard it.
TEST_CASE("mount: that a file was written is told though the question that said so failed") {
  World world{quick()};
  auto &mount = world.mount(2), &other = world.mount(3);
  auto file = written_file(world, mount, "file");
  InodeId inode{file.attr.inode()};
  auto before = world.wait(other.attr(inode))->mtime();
  world.wait(sleep(world.loop(), 20ms));
  auto content = pattern(8192, 2);
  REQUIRE(world.wait(mount.write(file.handle, 0, content, {})));
  world.post([&] { world.lose_looks_of = 2; });
  auto looking = world.begin(mount.attr(inode));
  wait_until(world, [&] { return world.lost_looks > 0; });
  world.post([&] {
    world.fenced_node = 2;
    world.fences = 1;
    world.lose_looks_of = 0;
  });
  CHECK(error_of(looking->get()) == EIO);
  world.wait(mount.close(file.handle));
  world.post([&] { world.fenced_node = 0; });
  for (int i = 0; i < 400 && world.wait(other.attr(inode))->mtime() == before; ++i)
    world.wait(sleep(world.loop(), 5ms));
  CHECK(world.wait(other.attr(inode))->mtime() > before);
}
