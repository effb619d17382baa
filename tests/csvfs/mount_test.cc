#include "csvfs/mount.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>

#include <atomic>
#include <cstring>

#include "tests/csvfs/world.h"

using namespace csv;
using iscsi::RamCommand;
using iscsi::RamFate;
using tests::bytes_of;
using tests::pattern;
using tests::World;

namespace {

wire::Make file_named(const std::string& name, InodeId parent = kRootInode) {
  wire::Make what;
  what.set_parent(raw(parent));
  what.set_name(name);
  what.set_mode(S_IFREG | 0644);
  return what;
}

Mount::Opened create(World& world, Mount& mount, const std::string& name) {
  auto made = world.wait(mount.create(Caller{}, file_named(name), {}));
  REQUIRE_MESSAGE(made, made.error().message());
  return *made;
}

Mount::Opened open(World& world, Mount& mount, const std::string& name) {
  auto found = world.wait(mount.lookup(kRootInode, name));
  REQUIRE_MESSAGE(found, found.error().message());
  auto opened = world.wait(mount.open(InodeId{found->inode()}, {}));
  REQUIRE_MESSAGE(opened, opened.error().message());
  return *opened;
}

void write(World& world, Mount& mount, Mount::Handle handle, std::uint64_t offset,
           std::span<const std::byte> data, Mount::WriteOptions options = {}) {
  auto written = world.wait(mount.write(handle, offset, data, options));
  REQUIRE_MESSAGE(written, written.error().message());
  REQUIRE(*written == data.size());
}

std::vector<std::byte> read(World& world, Mount& mount, Mount::Handle handle, std::uint64_t offset,
                            std::uint32_t length) {
  auto got = world.wait(mount.read(handle, offset, length));
  REQUIRE_MESSAGE(got, got.error().message());
  auto bytes = bytes_of(*got);
  return {bytes.begin(), bytes.end()};
}

/// A file whose first `size` bytes are written, and which `mount` may write in place.
Mount::Opened written_file(World& world, Mount& mount, const std::string& name, std::size_t size) {
  auto file = create(world, mount, name);
  auto content = pattern(size, 1);
  write(world, mount, file.handle, 0, content);
  write(world, mount, file.handle, 0, content);
  return file;
}

/// The one that was told of a loss ends, and another one takes over.
void next_coordinator(World& world) {
  for (int i = 0; i < 1000 && !world.stopped; ++i) world.wait(sleep(world.loop(), 10ms));
  REQUIRE(world.stopped);
  world.take_over();
}

constexpr auto kMiB = std::size_t{1} << 20;

}  // namespace

TEST_CASE(
    "mount: what one node writes at any offset, every node reads back, as a byte model says") {
  for (std::uint32_t block_size : {512u, 4096u}) {
    CAPTURE(block_size);
    World::Options options;
    options.block_size = block_size;
    options.timing.shipped_for = 30ms;  // else the coordinator does nearly all of it
    World world{options};
    auto& one = world.mount(1);
    auto& two = world.mount(2);
    auto file = create(world, one, "file");
    auto same = open(world, two, "file");
    std::vector<std::byte> model;
    Random random{block_size};
    constexpr std::size_t kMost = 3 * kMiB;
    for (int step = 0; step < 120; ++step) {
      CAPTURE(step);
      bool first = random.chance(1, 2);
      auto& mount = first ? one : two;
      auto handle = first ? file.handle : same.handle;
      auto offset = random.below(kMost);
      auto length = 1 + random.below(random.chance(1, 3) ? 300'000 : 9'000);
      // By turns as programs with O_DIRECT do it, and like any; in between, a file that the
      // coordinator had taken over for its unaligned writers is given back.
      bool any = step / 30 % 2 == 1;
      if (step % 30 == 0) world.wait(sleep(world.loop(), 1100ms));
      if (!any || random.chance(1, 2)) {
        offset = offset / 4096 * 4096;
        length = (length + 4095) / 4096 * 4096;
      }
      switch (any ? random.below(8) : 1 + random.below(7)) {
        case 0: {  // truncate
          wire::SetAttr to;
          to.set_inode(file.attr.inode());
          to.set_size(offset);
          auto attr = world.wait(mount.change(to));
          REQUIRE_MESSAGE(attr, attr.error().message());
          model.resize(offset);
          REQUIRE(attr->size() == model.size());
          break;
        }
        case 1: {  // append
          if (!any) break;
          auto data = pattern(length, static_cast<std::uint64_t>(step));
          Mount::WriteOptions append;
          append.append = true;
          write(world, mount, handle, 0, data, append);
          model.insert(model.end(), data.begin(), data.end());
          break;
        }
        case 2:
        case 3:
        case 4: {
          auto data = pattern(length, static_cast<std::uint64_t>(step));
          write(world, mount, handle, offset, data);
          if (model.size() < offset + length) model.resize(offset + length);
          std::memcpy(model.data() + offset, data.data(), data.size());
          break;
        }
        default: break;
      }
      auto& reader = random.chance(1, 2) ? one : two;
      auto its = &reader == &one ? file.handle : same.handle;
      auto from = random.below(kMost);
      auto many = 1 + random.below(400'000);
      auto got = read(world, reader, its, from, static_cast<std::uint32_t>(many));
      auto begin = std::min<std::size_t>(from, model.size());
      auto end = std::min<std::size_t>(from + many, model.size());
      REQUIRE(got.size() == end - begin);
      REQUIRE(
          std::equal(got.begin(), got.end(), model.begin() + static_cast<std::ptrdiff_t>(begin)));
      auto attr = world.wait(reader.attr(InodeId{file.attr.inode()}));
      REQUIRE(attr);
      REQUIRE(attr->size() == model.size());
    }
    // Both ways were taken, or the run proved nothing.
    CHECK(one.counters().direct_reads + two.counters().direct_reads > 0);
    CHECK(one.counters().direct_writes + two.counters().direct_writes > 0);
    CHECK(one.counters().redirected_writes + two.counters().redirected_writes > 0);
    CHECK(one.counters().recalls + two.counters().recalls > 0);
  }
}

TEST_CASE("mount: large aligned writes and their reads do not go through the coordinator") {
  World world;
  auto& mount = world.mount(1);
  auto file = create(world, mount, "image");
  for (std::uint64_t step = 0; step < 16; ++step)
    write(world, mount, file.handle, step * kMiB, pattern(kMiB, step));
  for (std::uint64_t step = 0; step < 16; ++step)
    REQUIRE(read(world, mount, file.handle, step * kMiB, kMiB) == pattern(kMiB, step));
  auto counters = mount.counters();
  CHECK(counters.direct_write_bytes == 16 * kMiB);
  CHECK(counters.direct_read_bytes == 16 * kMiB);
  CHECK(counters.redirected_write_bytes == 0);
  CHECK(counters.redirected_read_bytes == 0);
  service::VolumeService::Status status;
  world.post([&] { status = world.service().status(); });
  CHECK(status.content_write_bytes == 0);
  CHECK(status.content_read_bytes == 0);
}

TEST_CASE("mount: parallel writes to one file are in flight together") {
  World world;
  auto& mount = world.mount(1);
  auto file = written_file(world, mount, "image", kMiB);
  std::atomic<int> writes{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      if (command.kind == RamCommand::Kind::write && command.length == 65536) {
        ++writes;
        fate.inside = 3s;
      }
      return fate;
    };
  });
  auto data = pattern(65536, 9);
  auto begun = world.loop().now();
  std::vector<std::shared_ptr<World::Slot<Expected<std::uint32_t>>>> all;
  for (std::uint64_t i = 0; i < 16; ++i)
    all.push_back(world.begin(mount.write(file.handle, i * 65536, data, {})));
  for (auto& each : all) CHECK(each->get());
  CHECK(writes == 16);
  CHECK(world.loop().now() - begun < 24s);  // one after another they take 48 s
}

TEST_CASE("mount: a short write never pads over what is answered by the LUN and being committed") {
  World world;
  auto& mount = world.mount(1);
  auto file = create(world, mount, "image");
  write(world, mount, file.handle, 0, pattern(65536, 1));  // more of the grant is left
  std::atomic<int> landed{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      if (command.kind == RamCommand::Kind::write && command.length == 65536) ++landed;
      return RamFate{};
    };
    world.coordinator_plan = [](const RamCommand& command) {
      RamFate slow;
      if (command.kind == RamCommand::Kind::write) slow.inside = 300ms;
      return slow;
    };
  });
  auto whole = pattern(65536, 2), start = pattern(100, 3);
  auto first = world.begin(mount.write(file.handle, 65536, whole, {}));
  while (landed == 0) world.wait(sleep(world.loop(), 1ms));
  world.wait(sleep(world.loop(), 20ms));  // answered; its commit takes longer
  auto second = world.begin(mount.write(file.handle, 65536, start, {}));
  REQUIRE(first->get());
  REQUIRE(second->get());
  std::copy(start.begin(), start.end(), whole.begin());
  CHECK(read(world, mount, file.handle, 65536, 65536) == whole);
}

TEST_CASE("mount: a recall is answered only once the I/O under the layout has ended") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = written_file(world, one, "file", kMiB);
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      if (command.kind == RamCommand::Kind::write && command.length == 65536) fate.inside = 3s;
      return fate;
    };
  });
  auto data = pattern(65536, 9);
  auto writing = world.begin(one.write(file.handle, 0, data, {}));
  world.wait(sleep(world.loop(), 50ms));
  wire::SetAttr to;
  to.set_inode(file.attr.inode());
  to.set_size(0);
  auto cutting = world.begin(two.change(to));
  CHECK_FALSE(cutting->ready_within(200ms));
  CHECK(writing->get());
  auto cut = cutting->get();
  REQUIRE_MESSAGE(cut, cut.error().message());
  CHECK(cut->size() == 0);
  CHECK(one.counters().recalls > 0);
  CHECK(read(world, one, file.handle, 0, 4096).empty());
}

TEST_CASE("mount: a write that lands late from a lost path never replaces what came after it") {
  World::Options options;
  SUBCASE("with PREEMPT AND ABORT") {}
  SUBCASE("like tgt") { options.like_tgt = true; }
  SUBCASE("like LIO") { options.like_lio = true; }
  World world{options};
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  std::atomic<int> writes{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      bool content = command.kind == RamCommand::Kind::write && command.length == 65536;
      if (content && ++writes == 1) {
        fate.to_target = 3s;
        fate.lands_late = true;
        fate.late_by = 5s;
      }
      return fate;
    };
  });
  auto before = mount.state().key;
  auto first = pattern(65536, 100), second = pattern(65536, 200);
  auto writing = world.begin(mount.write(file.handle, 0, first, {}));
  world.wait(sleep(world.loop(), 50ms));
  world.post([&] {
    world.disk().set_reachable("iqn.2026-01.org.csvfs:n2", false);
    world.disk().set_reachable("iqn.2026-01.org.csvfs:n2", true);
  });
  CHECK(writing->get());  // repeated under the next admission
  write(world, mount, file.handle, 0, second);
  CHECK(writes == 3);
  while (world.disk().late_commands() > 0) world.wait(sleep(world.loop(), 50ms));  // it has tried
  CHECK(read(world, mount, file.handle, 0, 65536) == second);
  CHECK(mount.counters().readmissions == 1);
  CHECK(mount.state().key != before);
}

TEST_CASE("mount: past the membership lease nothing is sent to the LUN, and I/O waits") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  std::atomic<int> content{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      if (command.length == 65536) ++content;
      return RamFate{};
    };
    world.open_until = world.loop().now();  // the coordinator's, too
  });
  // What it answered until then is worth a term at most.
  world.wait(sleep(world.loop(), 3100ms));
  auto reading = world.begin(mount.read(file.handle, 0, 65536));
  CHECK_FALSE(reading->ready_within(300ms));
  CHECK(content == 0);
  world.post([&] { world.open_until = TimePoint::max(); });
  CHECK(reading->get());
  CHECK(content == 1);
}

TEST_CASE("mount: a node whose csvd is away goes on as long as the coordinator answers it") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  world.post([&] { world.mounts_open_until = TimePoint{}; });
  world.wait(sleep(world.loop(), 3500ms));
  auto reading = world.begin(mount.read(file.handle, 0, 65536));
  CHECK(reading->ready_within(1s));
  CHECK(reading->get());
  CHECK(mount.state().mode == AccessMode::direct);
}

TEST_CASE("mount: what was read under a lease that ran out meanwhile is read again") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  std::atomic<int> content{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      if (command.length == 65536) {
        ++content;
        fate.inside = 3s;
      }
      return fate;
    };
    world.open_until = world.loop().now() + 2s;
  });
  auto reading = world.begin(mount.read(file.handle, 0, 65536));
  CHECK_FALSE(reading->ready_within(4s));
  world.post([&] { world.open_until = TimePoint::max(); });
  CHECK(reading->get());
  CHECK(content == 2);
}

TEST_CASE("mount: requests survive broken connections, and take effect once") {
  World world;
  auto& mount = world.mount(1);
  auto file = create(world, mount, "log");
  Mount::WriteOptions append;
  append.append = true;
  std::vector<std::shared_ptr<World::Slot<Expected<std::uint32_t>>>> all;
  std::vector<std::vector<std::byte>> lines;
  for (std::uint64_t i = 0; i < 40; ++i) lines.push_back(pattern(100, i));
  for (std::size_t i = 0; i < lines.size(); ++i) {
    all.push_back(world.begin(mount.write(file.handle, 0, lines[i], append)));
    if (i % 7 != 3) continue;
    while (mount.state().mode != AccessMode::direct) world.wait(sleep(world.loop(), 5ms));
    world.cut_connections();
  }
  for (auto& each : all) {
    auto written = each->get();
    CHECK_MESSAGE(written, written.error().message());
  }
  CHECK(mount.counters().reconnects >= 5);
  auto attr = world.wait(mount.attr(InodeId{file.attr.inode()}));
  REQUIRE(attr);
  CHECK(attr->size() == 4000);
  auto content = read(world, mount, file.handle, 0, 8000);
  for (const auto& line : lines) {  // each once, in whatever order
    int times = 0;
    for (std::size_t at = 0; at < content.size(); at += 100)
      if (std::equal(line.begin(), line.end(), content.begin() + static_cast<std::ptrdiff_t>(at)))
        ++times;
    CHECK(times == 1);
  }
}

TEST_CASE("mount: open files, layouts and unanswered requests outlive the coordinator") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = written_file(world, one, "file", kMiB);
  auto gone = create(world, two, "gone");
  write(world, two, gone.handle, 0, pattern(8192, 5));
  REQUIRE(world.wait(one.unlink(kRootInode, "gone", false)));
  world.crash_coordinator();
  // Content under a layout needs no coordinator; names wait for the next one.
  auto data = pattern(65536, 77);
  write(world, one, file.handle, 65536, data);
  auto making = world.begin(one.make(Caller{}, file_named("new")));
  CHECK_FALSE(making->ready_within(200ms));
  CHECK(one.state().mode == AccessMode::paused);
  world.take_over();
  CHECK(making->get());
  CHECK(read(world, one, file.handle, 65536, 65536) == data);
  CHECK(read(world, two, gone.handle, 0, 8192) == pattern(8192, 5));  // still open there
  CHECK(read(world, two, open(world, two, "file").handle, 65536, 65536) == data);
}

namespace {

/// Node 2's mount, which is cut off until its session has ended, and another one, which is not.
struct CutOff {
  static World::Options quick() {
    World::Options options;
    options.timing.reconnect_grace = 300ms;
    options.timing.lease_term = 300ms;
    options.timing.key_sweep = 50ms;  // also the heartbeat, which keeps the coordinator's gate open
    return options;
  }
  void cut() {
    session = mount.state().session;
    world.cut_off(2);
    for (int i = 0; i < 1000 && known(); ++i) world.wait(sleep(world.loop(), 10ms));
    REQUIRE(!known());
  }
  bool known() {
    bool found = false;
    world.post([&] {
      for (const auto& each : world.service().status().sessions)
        found = found || each.session == session;
    });
    return found;
  }
  void heal() {
    world.cut_off(0);
    for (int i = 0; i < 1000 && !is_back(); ++i) world.wait(sleep(world.loop(), 10ms));
    REQUIRE(is_back());
  }
  bool is_back() {
    return mount.state().session != session && mount.state().mode == AccessMode::direct;
  }

  World world{quick()};
  Mount& mount = world.mount(2);
  Mount& other = world.mount(3);
  SessionId session{};
};

int error_of(const auto& result) { return result ? 0 : result.error().to_errno(); }

}  // namespace

TEST_CASE("mount: handles of an ended session go on where nobody touched the file meanwhile") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", kMiB);
  auto log = create(world, mount, "log");
  auto looked_at = written_file(world, mount, "looked_at", 8192);
  // What is under way when the connection breaks, or begins after, is answered in the end.
  world.cut_off(2);
  auto data = pattern(65536, 7), more = pattern(65536, 8);
  auto growing = world.begin(mount.write(log.handle, 0, data, {}));
  at.cut();
  CHECK(read(world, other, open(world, other, "looked_at").handle, 0, 8192) == pattern(8192, 1));
  auto overwriting = world.begin(mount.write(file.handle, 4096, data, {}));
  auto reading = world.begin(mount.read(looked_at.handle, 0, 8192));
  auto syncing = world.begin(mount.sync(file.handle));
  at.heal();
  CHECK(error_of(growing->get()) == 0);
  CHECK(error_of(overwriting->get()) == 0);
  CHECK(error_of(syncing->get()) == 0);
  CHECK(error_of(reading->get()) == 0);
  CHECK(mount.session_of(file.handle) == mount.state().session);
  write(world, mount, log.handle, 65536, more);
  CHECK(read(world, mount, log.handle, 0, 65536) == data);
  auto seen = open(world, other, "log");
  CHECK(read(world, other, seen.handle, 65536, 65536) == more);
  CHECK(read(world, other, open(world, other, "file").handle, 4096, 65536) == data);
  // They are open as any others: what is removed now stays until they are closed.
  CHECK(world.wait(other.unlink(kRootInode, "log", false)));
  world.wait(other.close(seen.handle));
  CHECK(read(world, mount, log.handle, 65536, 65536) == more);
  // And end once more.
  at.cut();
  at.heal();
  CHECK(read(world, mount, file.handle, 4096, 65536) == data);
  CHECK(error_of(world.wait(mount.read(log.handle, 0, 4096))) == EIO);  // removed
  for (auto handle : {file.handle, log.handle, looked_at.handle}) world.wait(mount.close(handle));
}

TEST_CASE("mount: handles of an ended session fail where somebody touched the file meanwhile") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", kMiB);
  auto data = pattern(8192, 9);
  world.cut_off(2);
  // An answered write is on the LUN; one that was not answered must not land behind another's.
  auto unaligned = pattern(100, 2);
  auto late = world.begin(mount.write(file.handle, 10, unaligned, {}));
  // What an old handle had asked for must not go with the new session.
  wire::Allocate punch;
  punch.set_length(kMiB);
  punch.set_mode(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  auto punching = world.begin(mount.allocate(file.handle, punch));
  wire::SetAttr empty;
  empty.set_inode(file.attr.inode());
  empty.set_size(0);
  auto truncating = world.begin(mount.change(empty, nullptr, file.handle));
  at.cut();
  write(world, other, open(world, other, "file").handle, 0, data);
  at.heal();
  CHECK(error_of(late->get()) == EIO);
  CHECK(error_of(punching->get()) == EIO);
  CHECK(error_of(truncating->get()) == EIO);
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 4096))) == EIO);
  CHECK(error_of(world.wait(mount.sync(file.handle))) == EIO);
  CHECK(mount.session_of(file.handle) == SessionId{});
  auto again = open(world, mount, "file");
  CHECK(read(world, mount, again.handle, 0, 8192) == data);
  CHECK(world.wait(mount.attr(InodeId{file.attr.inode()}))->size() == kMiB);
  world.wait(mount.close(file.handle));
}

TEST_CASE("mount: handles with a change that nobody will ever know of do not go on in silence") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = create(world, mount, "file");
  auto log = create(world, mount, "log");
  write(world, mount, log.handle, 0, pattern(100, 1));
  // Sent, and its answer is lost with the connection.
  auto cut_after = [&](auto begin) {
    world.post([&] { world.lose_answers_of = 2; });
    auto under_way = begin();
    world.wait(sleep(world.loop(), 50ms));
    at.cut();
    world.post([&] { world.lose_answers_of = 0; });
    at.heal();
    return under_way;
  };
  auto record = pattern(50, 2);
  auto appending = cut_after([&] {
    Mount::WriteOptions append;
    append.append = true;
    return world.begin(mount.write(log.handle, 0, record, append));
  });
  CHECK(error_of(appending->get()) == EIO);
  CHECK(error_of(world.wait(mount.read(log.handle, 0, 100))) == EIO);
  CHECK(world.wait(mount.attr(InodeId{log.attr.inode()}))->size() == 150);  // once, not twice
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 100))) == 0);

  wire::SetAttr longer;
  longer.set_inode(file.attr.inode());
  longer.set_size(8192);
  auto truncating =
      cut_after([&] { return world.begin(mount.change(longer, nullptr, file.handle)); });
  CHECK(error_of(truncating->get()) == EIO);
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 100))) == EIO);
}

TEST_CASE(
    "mount: an append that was answered, and not flushed when the session ended, stands once") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto log = create(world, mount, "log");
  write(world, mount, log.handle, 0, pattern(100, 1));
  auto record = pattern(50, 2);
  Mount::WriteOptions append;
  append.append = append.durable = true;
  std::atomic<int> flushes{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      if (command.kind == RamCommand::Kind::flush && ++flushes == 1) fate.inside = 2s;
      return fate;
    };
  });
  auto appending = world.begin(mount.write(log.handle, 0, record, append));
  while (flushes == 0) world.wait(sleep(world.loop(), 1ms));
  at.cut();
  at.heal();
  CHECK(error_of(appending->get()) == EIO);
  CHECK(world.wait(mount.attr(InodeId{log.attr.inode()}))->size() == 150);
}

TEST_CASE("mount: a write that took effect, and was not answered, is not made over another's") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = create(world, mount, "file");
  write(world, mount, file.handle, 0, pattern(200, 1));  // there is no layout of it
  auto data = pattern(100, 5), theirs = pattern(100, 6);
  world.post([&] { world.lose_answers_of = 2; });
  auto writing = world.begin(mount.write(file.handle, 10, data, {}));
  world.wait(sleep(world.loop(), 100ms));
  auto opened = open(world, other, "file");
  REQUIRE(read(world, other, opened.handle, 10, 100) == data);
  write(world, other, opened.handle, 10, theirs);
  CHECK(world.wait(other.sync(opened.handle)));
  world.wait(other.close(opened.handle));
  at.cut();
  world.post([&] { world.lose_answers_of = 0; });
  at.heal();
  CHECK(error_of(writing->get()) == EIO);
  CHECK(read(world, other, open(world, other, "file").handle, 10, 100) == theirs);
}

TEST_CASE("mount: handles go on after a takeover that the mount was away for") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", kMiB);
  auto touched = written_file(world, mount, "touched", kMiB);
  auto base = written_file(world, mount, "base", kMiB);
  auto shared = open(world, other, "base");
  CHECK(read(world, other, shared.handle, 0, kMiB) == pattern(kMiB, 1));
  session = mount.state().session;
  world.cut_off(2);
  world.take_over();
  at.cut();
  write(world, other, open(world, other, "touched").handle, 0, pattern(8192, 3));
  world.take_over();
  at.heal();
  auto data = pattern(8192, 4);
  write(world, mount, file.handle, 0, data);
  CHECK(read(world, other, open(world, other, "file").handle, 0, 8192) == data);
  CHECK(error_of(world.wait(mount.read(touched.handle, 0, 4096))) == EIO);
  // Others only read it, and under layouts of the former coordinator.
  CHECK(error_of(world.wait(mount.read(base.handle, 0, 4096))) == 0);
}

TEST_CASE("mount: handles go on after two ends, with nothing heard in between") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", kMiB);
  auto touched = written_file(world, mount, "touched", kMiB);
  Mount::LockWish wish;
  wish.kind = LockKind::whole_file;
  wish.type = LockType::write;
  wish.owner = 1;
  REQUIRE(world.wait(mount.lock(file.handle, wish)));
  at.cut();
  world.post([&] { world.lose_resumes_of = 2; });
  at.heal();
  auto later = written_file(world, mount, "later", 8192);
  auto reading = world.begin(mount.read(file.handle, 0, 4096));
  at.cut();
  auto theirs = world.wait(other.open(InodeId{touched.attr.inode()}, {.writes = true}));
  REQUIRE(theirs);
  world.wait(other.close(theirs->handle));
  world.post([&] { world.lose_resumes_of = 0; });
  at.heal();
  CHECK(error_of(reading->get()) == 0);
  CHECK(read(world, mount, file.handle, 0, kMiB) == pattern(kMiB, 1));
  CHECK(read(world, mount, later.handle, 0, 8192) == pattern(8192, 1));
  CHECK(error_of(world.wait(mount.read(touched.handle, 0, 4096))) == EIO);
  auto seen = open(world, other, "file");
  CHECK(error_of(world.wait(other.lock(seen.handle, wish))) == EAGAIN);
}

TEST_CASE("mount: what goes on too late, and was given up, is neither open nor locked for ever") {
  auto options = CutOff::quick();
  options.timing.reconnect_grace = options.timing.lease_term = 1500ms;
  options.resume_within = 600ms;
  CutOff at{World{options}};
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", 8192);
  Mount::LockWish wish;
  wish.kind = LockKind::whole_file;
  wish.type = LockType::write;
  wish.owner = 1;
  REQUIRE(world.wait(mount.lock(file.handle, wish)));
  at.cut();
  // Nobody can say what node 3 has locked before its session has ended, too.
  world.kill_mount(3);
  world.take_over();
  world.cut_off(0);
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 4096))) == EIO);
  world.wait(mount.close(file.handle));
  auto& third = world.mount(4);
  auto again = open(world, third, "file");
  int locked = EAGAIN;
  for (int i = 0; i < 200 && locked == EAGAIN; ++i) {
    world.wait(sleep(world.loop(), 20ms));
    locked = error_of(world.wait(third.lock(again.handle, wish)));
  }
  CHECK(locked == 0);
}

TEST_CASE("mount: what is opened while two sessions end is open under the one that follows") {
  auto options = CutOff::quick();
  options.timing.reconnect_grace = options.timing.lease_term = 1500ms;
  CutOff at{World{options}};
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", 8192);
  Mount::LockWish wish;
  wish.kind = LockKind::whole_file;
  wish.type = LockType::write;
  wish.owner = 1;
  REQUIRE(world.wait(mount.lock(file.handle, wish)));
  world.cut_off(2);
  auto opening = world.begin(mount.open(InodeId{file.attr.inode()}, {}));
  at.cut();
  // Until its session has ended, too, nobody can say whether the lock is free.
  world.kill_mount(3);
  world.take_over();
  at.heal();
  CHECK_FALSE(opening->ready_within(100ms));
  at.cut();
  at.heal();
  auto opened = opening->get();
  REQUIRE_MESSAGE(opened, opened.error().message());
  CHECK(mount.session_of(opened->handle) == mount.state().session);
  CHECK(read(world, mount, opened->handle, 0, 8192) == pattern(8192, 1));
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 4096))) == 0);  // and goes on
  auto seen = open(world, world.mount(4), "file");
  CHECK(error_of(world.wait(world.mount(4).lock(seen.handle, wish))) == EAGAIN);
}

TEST_CASE("mount: what an answer to the coordinator said of times, and was lost, is said again") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", kMiB);
  InodeId inode{file.attr.inode()};
  auto seen = open(world, other, "file");
  auto before = world.wait(mount.attr(inode))->mtime();
  world.wait(sleep(world.loop(), 20ms));
  write(world, mount, file.handle, 0, pattern(8192, 3));
  world.post([&] { world.lose_notice_replies_of = 2; });
  auto wait_for_loss = [&] {
    while (world.lost_notice_replies == 0) world.wait(sleep(world.loop(), 5ms));
    world.post([&] { world.lose_notice_replies_of = 0; });
  };
  auto seen_by_other = [&] { return world.wait(other.attr(inode))->mtime(); };
  SUBCASE("asked for it by who looks, and the connection broke") {
    auto looking = world.begin(other.attr(inode));
    wait_for_loss();
    world.cut_connections();
    CHECK(looking->get()->mtime() > before);
  }
  SUBCASE("with what was recalled, and the connection broke") {
    auto data = pattern(10, 4);
    auto writing = world.begin(other.write(seen.handle, 5, data, {}));
    wait_for_loss();
    world.cut_connections();
    CHECK(writing->get());
    CHECK(seen_by_other() > before);
  }
  SUBCASE("and the coordinator died") {
    auto looking = world.begin(other.attr(inode));
    wait_for_loss();
    world.take_over();
    CHECK(looking->get());  // which may have been answered before the one that wrote had come
    CHECK(error_of(world.wait(mount.lookup(kRootInode, "nothing"))) == ENOENT);
    CHECK(seen_by_other() > before);
  }
  SUBCASE("but not over a time that was set since") {
    auto looking = world.begin(other.attr(inode));
    wait_for_loss();
    wire::SetAttr times;
    times.set_inode(file.attr.inode());
    times.set_mtime(4711);
    CHECK(world.wait(mount.change(times, nullptr, std::nullopt)));
    world.cut_connections();
    CHECK(looking->get());
    CHECK(seen_by_other() == 4711);
  }
  world.wait(mount.close(file.handle));
}

TEST_CASE("mount: times that the coordinator is known to have are not told again") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", kMiB);
  InodeId inode{file.attr.inode()};
  write(world, mount, file.handle, 0, pattern(8192, 3));
  auto seen = world.wait(other.attr(inode))->mtime();
  world.wait(sleep(world.loop(), 1500ms));  // in which it looks whether the coordinator has them
  world.cut_connections();
  CHECK(world.wait(mount.attr(inode))->mtime() == seen);
  CHECK(world.wait(other.attr(inode))->mtime() == seen);
  world.wait(mount.close(file.handle));
}

TEST_CASE("mount: handles of an ended session go on, whatever a connection was refused for") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", 8192);
  at.cut();
  int refused = 0;
  world.post([&] {
    // Between a session's end and the next one: as by a node whose certificate has expired.
    world.connection_fails = [&](int number) -> std::optional<Error> {
      if (number != 2 || mount.state().session != SessionId{} || ++refused > 1) return {};
      return Error{Errc::refused, "a certificate that has expired"};
    };
  });
  at.heal();
  CHECK(read(world, mount, file.handle, 0, 8192) == pattern(8192, 1));
  CHECK(refused > 0);
}

TEST_CASE("mount: handles of an ended session fail at once if the node is kept out") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", 8192);
  world.post([&] { world.fenced_node = 2; });
  for (int i = 0; i < 1000 && mount.state().mode == AccessMode::direct; ++i)
    world.wait(sleep(world.loop(), 10ms));
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 4096))) == EIO);
  world.post([&] { world.fenced_node = 0; });
  auto again = open(world, mount, "file");  // waits until it is let in
  CHECK(read(world, mount, again.handle, 0, 8192) == pattern(8192, 1));
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 4096))) == EIO);
}

// Whoever has had the node shut out starts elsewhere what ran on it.
TEST_CASE(
    "mount: what waits while the node is kept out fails, and does not go on once it is let in") {
  CutOff at;
  auto& [world, mount, other, session] = at;
  auto file = written_file(world, mount, "file", 8192);
  auto inode = InodeId{file.attr.inode()};
  bool waits_before = false, hears_nothing = false;
  SUBCASE("it waited before the node was shut out") { waits_before = true; }
  SUBCASE("and the node was let in before it heard so") { waits_before = hears_nothing = true; }
  SUBCASE("it came afterwards") {}
  if (waits_before) at.cut();
  world.post([&] {
    world.fenced_node = 2;
    world.fences = 1;
  });
  for (int i = 0; i < 1000 && !waits_before && mount.state().session != SessionId{}; ++i)
    world.wait(sleep(world.loop(), 10ms));
  wire::SetAttr empty;
  empty.set_inode(raw(inode));
  empty.set_size(0);
  Mount::OpenOptions truncates;
  truncates.writes = truncates.truncate = true;
  auto looking = world.begin(mount.lookup(kRootInode, "file"));
  auto opening = world.begin(mount.open(inode, truncates));
  auto making = world.begin(mount.make(Caller{}, file_named("made")));
  auto creating = world.begin(mount.create(Caller{}, file_named("created"), {}));
  auto resizing = world.begin(mount.change(empty));
  if (hears_nothing) world.post([&] { world.fenced_node = 0; });
  if (waits_before) world.cut_off(0);
  CHECK(looking->ready_within(10s));
  CHECK(opening->ready_within(10s));
  CHECK(making->ready_within(10s));
  CHECK(creating->ready_within(10s));
  CHECK(resizing->ready_within(10s));
  // The root is looked at by whoever looks at the mount point.
  auto root = world.begin(mount.attr(kRootInode));
  CHECK(root->ready_within(10s));
  CHECK(root->get());
  world.post([&] { world.fenced_node = 0; });
  // Not let in yet perhaps, and asked for since then.
  auto now = world.wait(mount.attr(inode));
  REQUIRE(now);
  CHECK(now->size() == 8192);
  CHECK(error_of(looking->get()) == EIO);
  CHECK(error_of(opening->get()) == EIO);
  CHECK(error_of(making->get()) == EIO);
  CHECK(error_of(creating->get()) == EIO);
  CHECK(error_of(resizing->get()) == EIO);
  for (const char* name : {"made", "created"})
    CHECK(error_of(world.wait(other.lookup(kRootInode, name))) == ENOENT);
}

TEST_CASE(
    "mount: an interrupted change that has not been sent is answered EINTR and never happens") {
  World world;
  auto& mount = world.mount(1);
  world.crash_coordinator();
  world.wait(sleep(world.loop(), 50ms));
  Interrupt interrupt;
  auto making = world.begin(mount.make(Caller{}, file_named("never"), &interrupt));
  CHECK_FALSE(making->ready_within(100ms));
  world.post([&] { interrupt.raise(); });
  auto made = making->get();
  REQUIRE_FALSE(made);
  CHECK(made.error() == std::errc::interrupted);
  world.take_over();
  auto found = world.wait(mount.lookup(kRootInode, "never"));
  REQUIRE_FALSE(found);
  CHECK(found.error() == std::errc::no_such_file_or_directory);
}

TEST_CASE("mount: the root and the statistics answer while there is no coordinator") {
  World world;
  auto& mount = world.mount(1);
  REQUIRE(world.wait(mount.attr(kRootInode)));
  world.crash_coordinator();
  world.wait(sleep(world.loop(), 50ms));
  CHECK(world.begin(mount.attr(kRootInode))->ready_within(20s));
  CHECK(world.begin(mount.statistics())->ready_within(20s));
}

TEST_CASE("mount: a durable write, and whatever was written before a sync, survives a power loss") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  auto data = pattern(65536, 3), more = pattern(65536, 4);
  Mount::WriteOptions durable;
  durable.durable = true;
  write(world, mount, file.handle, 0, data, durable);
  write(world, mount, file.handle, 65536, more);
  REQUIRE(world.wait(mount.sync(file.handle)));
  Random chance{5};
  world.crash_coordinator();
  world.post([&] { world.disk().power_loss(chance); });
  world.take_over();
  CHECK(read(world, mount, file.handle, 0, 65536) == data);
  CHECK(read(world, mount, file.handle, 65536, 65536) == more);
}

TEST_CASE(
    "mount: what a power loss of the target took is reported once, by the next sync of the file") {
  World world;
  auto& mount = world.mount(2);
  auto lost = written_file(world, mount, "lost", kMiB);
  auto kept = written_file(world, mount, "kept", kMiB);
  write(world, mount, kept.handle, 0, pattern(65536, 3));
  REQUIRE(world.wait(mount.sync(kept.handle)));
  write(world, mount, lost.handle, 0, pattern(65536, 4));
  Random chance{5};
  SUBCASE("a crash of the coordinator alone takes nothing") {
    world.take_over();
    CHECK(world.wait(mount.sync(lost.handle)));
  }
  SUBCASE("a loss does, whatever is flushed to the target afterwards") {
    world.crash_coordinator();
    world.post([&] { world.disk().power_loss(chance); });
    world.take_over();
    CHECK(world.wait(mount.sync(kept.handle)));
    auto told = world.wait(mount.sync(lost.handle));
    REQUIRE(!told);
    CHECK(told.error() == std::errc::io_error);
    CHECK(told.error().message().find("lost power") != std::string::npos);
    CHECK(world.wait(mount.sync(lost.handle)));
  }
  SUBCASE("what waited for the next coordinator was written after the loss") {
    // Two nodes that write into the same block do it through the coordinator.
    auto& other = world.mount(1);
    auto theirs = open(world, other, "kept");
    for (int round = 0; round < 4; ++round) {
      write(world, other, theirs.handle, 10, pattern(20, 8));
      write(world, mount, kept.handle, 100, pattern(50, 9));
    }
    REQUIRE(world.wait(mount.sync(kept.handle)));
    auto before = mount.counters().redirected_writes;
    world.crash_coordinator();
    auto data = pattern(50, 7);
    auto waiting = world.begin(mount.write(kept.handle, 100, data, {}));
    world.post([&] { world.disk().power_loss(chance); });
    world.take_over();
    REQUIRE(waiting->get());
    REQUIRE(mount.counters().redirected_writes > before);
    CHECK(world.wait(mount.sync(kept.handle)));
    CHECK(read(world, mount, kept.handle, 100, 50) == data);
  }
  SUBCASE("a second loss takes what was written after the first") {
    for (int round = 0; round < 2; ++round) {
      world.crash_coordinator();
      world.post([&] { world.disk().power_loss(chance); });
      world.take_over();
      CHECK(!world.wait(mount.sync(lost.handle)));
      write(world, mount, lost.handle, 0, pattern(65536, 6));
    }
    CHECK(world.wait(mount.sync(lost.handle)));
  }
}

TEST_CASE("mount: a loss that only the coordinator saw takes away a path that works") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  write(world, mount, file.handle, 0, pattern(65536, 4));
  auto key = mount.state().key;
  std::atomic<int> failing{1};
  world.post([&] {
    world.coordinator_plan = [&failing](const RamCommand& command) {
      RamFate fate;
      if (command.kind != RamCommand::Kind::flush || failing.fetch_sub(1) <= 0) return fate;
      fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
      fate.forgets = true;
      return fate;
    };
  });
  // What it writes directly beyond the end is committed, for which the coordinator flushes.
  auto data = pattern(1u << 20, 5);
  auto growing = world.begin(mount.write(file.handle, kMiB, data, {}));
  next_coordinator(world);
  REQUIRE(failing <= 0);
  CHECK(!growing->get());
  for (int i = 0; i < 1000 && mount.state().key == key; ++i) world.wait(sleep(world.loop(), 10ms));
  CHECK(mount.state().key != key);
  CHECK(!world.wait(mount.sync(file.handle)));
  CHECK(world.wait(mount.sync(file.handle)));
  write(world, mount, file.handle, 0, pattern(65536, 6));
  CHECK(read(world, mount, file.handle, 0, 65536) == pattern(65536, 6));
}

TEST_CASE("mount: what nobody asks to be flushed is past the target's memory after some seconds") {
  World world;
  auto& mount = world.mount(2);
  std::atomic<int> flushes{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      if (command.kind == RamCommand::Kind::flush) ++flushes;
      return RamFate{};
    };
  });
  auto file = written_file(world, mount, "file", kMiB);
  write(world, mount, file.handle, 0, pattern(65536, 2));
  for (int i = 0; i < 300 && flushes == 0; ++i) world.wait(sleep(world.loop(), 50ms));
  CHECK(flushes > 0);
  CHECK(read(world, mount, file.handle, 0, 65536) == pattern(65536, 2));
}

TEST_CASE("mount: no more files are open than a coordinator can be told of") {
  World::Options options;
  options.most_open = 4;
  World world{options};
  auto& mount = world.mount(1);
  std::vector<Mount::Opened> open_files;
  for (int i = 0; i < 4; ++i)
    open_files.push_back(create(world, mount, "file" + std::to_string(i)));
  CHECK(error_of(world.wait(mount.create(Caller{}, file_named("more"), {}))) == ENFILE);
  CHECK(error_of(world.wait(mount.lookup(kRootInode, "more"))) == ENOENT);
  auto made = world.wait(mount.make(Caller{}, file_named("other")));
  REQUIRE(made);
  CHECK(error_of(world.wait(mount.open(InodeId{made->inode()}, {}))) == ENFILE);
  auto again = open(world, mount, "file2");  // the same file does not count twice
  world.wait(mount.close(open_files[0].handle));
  CHECK(error_of(world.wait(mount.open(InodeId{made->inode()}, {}))) == 0);
  world.wait(mount.close(again.handle));
}

namespace {

Task<bool> close_all(Mount& mount, std::vector<Mount::Opened> files) {
  for (const auto& file : files) co_await mount.close(file.handle);
  co_return true;
}

/// Their last name is removed by `mount`, and then they are freed: nobody has them open.
bool freed_by(World& world, Mount& mount, const std::vector<Mount::Opened>& files,
              const std::vector<std::string>& names) {
  for (const auto& name : names)
    if (!world.wait(mount.unlink(kRootInode, name, false))) return false;
  for (const auto& file : files) {
    bool gone = false;
    for (int i = 0; i < 500 && !gone; ++i) {
      gone = error_of(world.wait(mount.attr(InodeId{file.attr.inode()}))) == ESTALE;
      if (!gone) world.wait(sleep(world.loop(), 10ms));
    }
    if (!gone) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("mount: files that are closed one after the other are told of in one message") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  std::vector<Mount::Opened> files;
  std::vector<std::string> names;
  for (int i = 0; i < 20; ++i) {
    names.push_back("file" + std::to_string(i));
    files.push_back(create(world, one, names.back()));
    write(world, one, files.back().handle, 0, pattern(4096, 1));
  }
  CHECK(world.wait(close_all(one, files)));
  CHECK(freed_by(world, two, files, names));
  CHECK(world.releases == 1);
}

TEST_CASE("mount: a coordinator of an earlier version is told of each closed file by itself") {
  World world;
  world.post([&] { world.earlier_coordinator = true; });
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  std::vector<Mount::Opened> files{create(world, one, "a"), create(world, one, "b"),
                                   create(world, one, "c")};
  CHECK(world.wait(close_all(one, files)));
  CHECK(freed_by(world, two, files, {"a", "b", "c"}));
  CHECK(world.releases == 3);
}

TEST_CASE("mount: what is closed is told of before it is opened again, or a name is removed") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = create(world, one, "file"), other = create(world, one, "other");
  auto content = pattern(4096, 1);
  write(world, one, file.handle, 0, content);
  // Open to the end, though the coordinator hears of the closing, too.
  auto again = [](Mount& mount, Mount::Opened opened) -> Task<Expected<Mount::Opened>> {
    co_await mount.close(opened.handle);
    co_return co_await mount.open(InodeId{opened.attr.inode()}, {});
  };
  auto opened = world.wait(again(one, file));
  REQUIRE(opened);
  CHECK(world.releases == 1);
  REQUIRE(world.wait(two.unlink(kRootInode, "file", false)));
  world.wait(sleep(world.loop(), 200ms));
  CHECK(read(world, one, opened->handle, 0, 4096) == content);

  auto removed = [](Mount& mount, Mount::Opened closed) -> Task<bool> {
    co_await mount.close(closed.handle);
    co_return bool(co_await mount.unlink(kRootInode, "other", false));
  };
  CHECK(world.wait(removed(one, other)));
  CHECK(world.releases == 2);
}

TEST_CASE("mount: what was closed when the coordinator went is not open at the next one") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  std::vector<Mount::Opened> files{create(world, one, "a"), create(world, one, "b")};
  auto kept = create(world, one, "kept");
  auto content = pattern(4096, 2);
  write(world, one, kept.handle, 0, content);
  CHECK(world.wait(close_all(one, files)));
  world.take_over();
  CHECK(freed_by(world, two, files, {"a", "b"}));
  REQUIRE(world.wait(two.unlink(kRootInode, "kept", false)));
  world.wait(sleep(world.loop(), 200ms));
  CHECK(read(world, one, kept.handle, 0, 4096) == content);
}

TEST_CASE("mount: a read that crossed the loss of what it shows is made again") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  write(world, mount, file.handle, 0, pattern(65536, 3));
  REQUIRE(world.wait(mount.sync(file.handle)));
  write(world, mount, file.handle, 0, pattern(65536, 4));
  std::atomic<bool> slow{true}, fail{true};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      if (command.kind == RamCommand::Kind::read && command.length == 65536 && slow.exchange(false))
        fate.to_initiator = 300ms;
      if (command.kind != RamCommand::Kind::flush || !fail.exchange(false)) return fate;
      fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
      fate.forgets = true;
      return fate;
    };
  });
  auto reading = world.begin(mount.read(file.handle, 0, 65536));
  for (int i = 0; i < 1000 && slow; ++i) world.wait(sleep(world.loop(), 1ms));
  REQUIRE(!slow);
  world.wait(sleep(world.loop(), 20ms));  // it is on its way back
  CHECK(!world.wait(mount.sync(file.handle)));
  auto got = reading->get();
  REQUIRE(got);
  auto bytes = bytes_of(*got);
  CHECK(std::vector<std::byte>{bytes.begin(), bytes.end()} == pattern(65536, 3));
}

TEST_CASE("mount: a flush that fails is told to every file and handle that it concerns, once") {
  World world;
  auto& mount = world.mount(2);
  auto one = written_file(world, mount, "one", kMiB);
  auto other = written_file(world, mount, "other", kMiB);
  auto clean = written_file(world, mount, "clean", kMiB);
  auto again = open(world, mount, "other");
  REQUIRE(world.wait(mount.sync(clean.handle)));
  write(world, mount, one.handle, 0, pattern(65536, 3));
  write(world, mount, other.handle, 0, pattern(65536, 4));
  std::atomic<int> failing{1};
  world.post([&] {
    world.mount_plan = [&failing](const RamCommand& command) {
      RamFate fate;
      if (command.kind != RamCommand::Kind::flush || failing.fetch_sub(1) <= 0) return fate;
      fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
      fate.forgets = true;
      return fate;
    };
  });
  auto first = world.begin(mount.sync(one.handle));
  auto second = world.begin(mount.sync(other.handle));
  CHECK(error_of(first->get()) == EIO);
  CHECK(error_of(second->get()) == EIO);
  CHECK(error_of(world.wait(mount.sync(again.handle))) == EIO);
  next_coordinator(world);
  // Who opens it now has nothing to be told.
  auto late = open(world, mount, "other");
  for (auto* each : {&one, &other, &clean, &again, &late})
    CHECK(world.wait(mount.sync(each->handle)));
  // What is written after it is as safe as ever.
  write(world, mount, one.handle, 0, pattern(65536, 5));
  CHECK(world.wait(mount.sync(one.handle)));
  CHECK(read(world, mount, one.handle, 0, 65536) == pattern(65536, 5));
}

TEST_CASE(
    "mount: a loss that comes between a write through the coordinator and its answer counts") {
  World world;
  auto& mount = world.mount(2);
  auto one = written_file(world, mount, "one", kMiB);
  auto other = written_file(world, mount, "other", kMiB);
  REQUIRE(world.wait(mount.sync(one.handle)));
  std::atomic<int> commands{0}, failing{1};
  world.post([&] {
    world.coordinator_plan = [&commands](const RamCommand& command) {
      RamFate fate;
      if (command.kind != RamCommand::Kind::write) return fate;
      ++commands;
      fate.to_initiator = 300ms;
      return fate;
    };
    world.mount_plan = [&failing](const RamCommand& command) {
      RamFate fate;
      if (command.kind != RamCommand::Kind::flush || failing.fetch_sub(1) <= 0) return fate;
      fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
      fate.forgets = true;
      return fate;
    };
  });
  auto data = pattern(100, 7);
  auto writing = world.begin(mount.write(one.handle, 10, data, {}));
  for (int i = 0; i < 500 && commands == 0; ++i) world.wait(sleep(world.loop(), 1ms));
  world.wait(sleep(world.loop(), 100ms));  // it has landed
  CHECK(error_of(world.wait(mount.sync(other.handle))) == EIO);
  next_coordinator(world);
  CHECK(writing->get());
  CHECK(error_of(world.wait(mount.sync(one.handle))) == EIO);
  CHECK(world.wait(mount.sync(one.handle)));
}

TEST_CASE("mount: what a target says with any command about earlier ones counts for those") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  write(world, mount, file.handle, 0, pattern(65536, 3));
  std::atomic<bool> deferred{true};
  world.post([&] {
    world.mount_plan = [&deferred](const RamCommand& command) {
      RamFate fate;
      if (command.kind == RamCommand::Kind::read && deferred.exchange(false))
        fate.failure = Error{Errc::not_durable, "deferred MEDIUM ERROR"};
      return fate;
    };
  });
  CHECK(error_of(world.wait(mount.read(file.handle, 0, 65536))) == EIO);
  CHECK(error_of(world.wait(mount.sync(file.handle))) == EIO);
  next_coordinator(world);
  CHECK(world.wait(mount.sync(file.handle)));
}

TEST_CASE("mount: what one node's failed flush took of another's content is told there, too") {
  World world;
  auto& one = world.mount(1);
  auto& other = world.mount(2);
  auto mine = written_file(world, one, "mine", kMiB);
  auto theirs = written_file(world, other, "theirs", kMiB);
  REQUIRE(world.wait(other.sync(theirs.handle)));
  write(world, other, theirs.handle, 0, pattern(65536, 4));
  std::atomic<int> failing{1};
  world.post([&] {
    world.mount_plan = [&failing](const RamCommand& command) {
      RamFate fate;
      if (command.kind != RamCommand::Kind::flush || failing.fetch_sub(1) <= 0) return fate;
      fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
      fate.forgets = true;
      return fate;
    };
  });
  CHECK(error_of(world.wait(one.sync(mine.handle))) == EIO);
  next_coordinator(world);
  (void)world.wait(other.lookup(kRootInode, "theirs"));  // it has heard from the new one
  CHECK(error_of(world.wait(other.sync(theirs.handle))) == EIO);
  CHECK(world.wait(other.sync(theirs.handle)));
  CHECK(error_of(world.wait(one.sync(mine.handle))) == 0);
  CHECK(!world.stopped);  // the same loss is not counted again
}

TEST_CASE(
    "mount: a loss that a mount hears of while it has no coordinator is told to the next one") {
  World world;
  auto& one = world.mount(1);
  auto& other = world.mount(2);
  auto mine = written_file(world, one, "mine", kMiB);
  auto theirs = written_file(world, other, "theirs", kMiB);
  REQUIRE(world.wait(other.sync(theirs.handle)));
  REQUIRE(read(world, one, mine.handle, 0, 4096).size() == 4096);
  std::atomic<int> flush_fails{1}, read_tells{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      using Kind = RamCommand::Kind;
      if ((command.kind == Kind::flush && flush_fails.fetch_sub(1) > 0) ||
          (command.kind == Kind::read && read_tells.fetch_sub(1) > 0))
        fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
      return fate;
    };
  });
  CHECK(error_of(world.wait(other.sync(theirs.handle))) == EIO);  // one loss, which is counted
  world.cut_off(1);
  next_coordinator(world);
  (void)world.wait(other.lookup(kRootInode, "theirs"));
  write(world, other, theirs.handle, 0, pattern(65536, 4));
  // And another one, of what has been written since: the target says so to a mount that is away.
  read_tells = 1;
  CHECK(error_of(world.wait(one.read(mine.handle, 0, 4096))) == EIO);
  world.cut_off(0);
  next_coordinator(world);
  (void)world.wait(other.lookup(kRootInode, "theirs"));
  CHECK(error_of(world.wait(other.sync(theirs.handle))) == EIO);
}

TEST_CASE("mount: a target that has no flush takes nothing away by saying so") {
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  write(world, mount, file.handle, 0, pattern(65536, 3));
  std::atomic<bool> refuses{true};
  world.post([&] {
    world.mount_plan = [&refuses](const RamCommand& command) {
      RamFate fate;
      if (command.kind == RamCommand::Kind::flush && refuses)
        fate.failure = Error{Errc::unsupported_by_target, "ILLEGAL REQUEST"};
      return fate;
    };
  });
  for (int i = 0; i < 2; ++i) CHECK(!world.wait(mount.sync(file.handle)));
  refuses = false;
  CHECK(world.wait(mount.sync(file.handle)));
}

TEST_CASE("mount: the time of a direct write is seen by the other node") {
  World world;
  auto& one = world.mount(1);
  auto& two = world.mount(2);
  auto file = written_file(world, one, "file", kMiB);
  InodeId inode{file.attr.inode()};
  auto before = world.wait(two.attr(inode));
  REQUIRE(before);
  world.wait(sleep(world.loop(), 20ms));
  write(world, one, file.handle, 0, pattern(4096, 8));
  auto after = world.wait(two.attr(inode));
  REQUIRE(after);
  CHECK(after->mtime() > before->mtime());
}

TEST_CASE("mount: a change that is refused does not make the file look written") {
  World world;
  auto& one = world.mount(1);
  auto file = written_file(world, one, "file", kMiB);
  InodeId inode{file.attr.inode()};
  auto before = world.wait(one.attr(inode));
  REQUIRE(before);
  world.wait(sleep(world.loop(), 20ms));
  wire::SetAttr to;
  to.set_inode(raw(inode));
  to.set_size(1ull << 60);
  auto refused = world.wait(one.change(to));
  REQUIRE(!refused);
  CHECK(refused.error() == std::errc::file_too_large);
  auto after = world.wait(one.attr(inode));
  REQUIRE(after);
  CHECK(after->mtime() == before->mtime());
}

TEST_CASE("mount: the end in good order leaves no key and no session") {
  World world;
  auto& mount = world.mount(3);
  auto file = written_file(world, mount, "file", kMiB);
  (void)file;
  auto key = mount.state().key;
  world.end_mount(3);
  service::VolumeService::Status status;
  world.post([&] { status = world.service().status(); });
  CHECK(status.sessions.empty());
  auto keys = world.disk().registered_keys();
  CHECK(std::find(keys.begin(), keys.end(), key) == keys.end());
}

TEST_CASE("mount: no goodbye is said while a write of a lost path may still land") {
  auto data = pattern(65536, 1);
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  std::atomic<int> writes{0};
  world.post([&] {
    world.mount_plan = [&](const RamCommand& command) {
      RamFate fate;
      if (command.kind == RamCommand::Kind::write && command.length == 65536) {
        ++writes;
        fate.to_target = 3s;
        fate.lands_late = true;
      }
      return fate;
    };
  });
  auto writing = world.begin(mount.write(file.handle, 0, data, {}));
  while (writes == 0) world.wait(sleep(world.loop(), 1ms));
  world.post([&] { world.disk().set_reachable("iqn.2026-01.org.csvfs:n2", false); });
  world.wait(mount.end());
  CHECK_FALSE(mount.farewell_trouble().empty());
  service::VolumeService::Status status;
  world.post([&] { status = world.service().status(); });
  CHECK(status.sessions.size() == 1);  // so it will be fenced
  world.kill_mount(2);
}

namespace {
Task<Expected<void>> keep_writing(Mount& mount, Mount::Handle handle, std::uint64_t at,
                                  std::span<const std::byte> data) {
  for (;;) {
    auto written = co_await mount.write(handle, at, data, {});
    if (!written) co_return written.error();
  }
}
}  // namespace

TEST_CASE("mount: programs that never stop do not keep it from ending in good order") {
  auto data = pattern(65536, 1);
  World world;
  auto& mount = world.mount(2);
  auto file = written_file(world, mount, "file", kMiB);
  world.post([&] {
    world.mount_plan = [](const RamCommand& command) {
      RamFate fate;
      if (command.length == 65536) fate.inside = 5ms;
      return fate;
    };
  });
  // Of three one is always under way.
  std::vector<std::shared_ptr<World::Slot<Expected<void>>>> programs;
  for (std::uint64_t i = 0; i < 3; ++i) {
    programs.push_back(world.begin(keep_writing(mount, file.handle, i * 65536, data)));
    world.wait(sleep(world.loop(), 2ms));
  }
  world.wait(mount.end());
  CHECK(mount.farewell_trouble() == "");
  service::VolumeService::Status status;
  world.post([&] { status = world.service().status(); });
  CHECK(status.sessions.empty());
  world.kill_mount(2);
}

TEST_CASE("mount: a LUN that is not the volume's is refused, with the reason") {
  World world;
  iscsi::RamDiskOptions other;
  other.identity = "naa.5000000000000bad";
  other.geometry.block_count = 1u << 20;
  auto stranger = iscsi::RamDisk::create(other, &world.loop());
  auto refused = world.mount_over(4, stranger);
  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Errc::refused);
  CHECK(refused.error().message().find("naa.5000000000000bad") != std::string::npos);
}

TEST_CASE("mount: a LUN with a long name is known by it, and its clone by the end of the name") {
  World::Options options;
  options.identity = "t10." + std::string(180, 'x') + "1";
  World world{options};
  (void)world.mount(1);
  iscsi::RamDiskOptions clone;
  clone.identity = "t10." + std::string(180, 'x') + "2";
  clone.geometry.block_count = 1u << 20;
  auto refused = world.mount_over(4, iscsi::RamDisk::create(clone, &world.loop()));
  REQUIRE_FALSE(refused);
  CHECK(refused.error() == Errc::refused);
}
