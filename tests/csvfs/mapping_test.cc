#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "csvfs/interrupt.h"
#include "csvfs/mount.h"
#include "tests/csvfs/world.h"

using namespace csv;
using tests::bytes_of;
using tests::pattern;
using tests::World;

namespace {

constexpr std::uint64_t kPage = 4096;

/// The page cache of one node's kernel, of one file: what a fault, a store and a program's read or
/// write do to it, and what its csvfs gets to see of that. On the world's loop.
class PageCache {
 public:
  PageCache(World& world, Mount& mount, Mount::Handle handle)
      : world_{&world}, mount_{&mount}, handle_{handle} {
    world.post([&] {
      mount.drop_pages_with(
          [this](InodeId, std::vector<Range> ranges, bool, Function<void()> done) {
            ++drops;
            tasks_.spawn(drop(std::move(ranges), std::move(done)));
          });
    });
  }
  ~PageCache() {
    world_->post([this] {
      mount_->drop_pages_with(nullptr);
      tasks_.cancel_all();
    });
  }
  PageCache(const PageCache&) = delete;
  PageCache& operator=(const PageCache&) = delete;

  /// Through the mapping; EIO, which is SIGBUS to a program, if it cannot be had.
  Task<Expected<std::uint64_t>> load(std::uint64_t at) {
    CSV_CO_CHECK(co_await fault(at / kPage));
    co_return value_at(at);
  }
  Task<Expected<std::uint64_t>> increment(std::uint64_t at) {
    CSV_CO_CHECK(co_await fault(at / kPage));
    auto value = value_at(at) + 1;
    auto& page = pages_.at(at / kPage);
    std::memcpy(page.content.data() + at % kPage, &value, sizeof value);
    page.dirty = true;
    co_return value;
  }
  Task<Expected<std::uint64_t>> count_to(std::uint64_t at, std::uint64_t most) {
    for (;;) {
      CSV_CO_TRY(value, co_await increment(at));
      if (value >= most) co_return value;
      co_await sleep(world_->loop(), 100us);
    }
  }
  /// msync, or the kernel's own write-back.
  Task<Expected<void>> write_back(std::uint64_t index) {
    while (locked(index)) co_await sleep(world_->loop(), 100us);
    auto found = pages_.find(index);
    if (found == pages_.end() || !found->second.dirty) co_return Expected<void>{};
    found->second.locked = true;
    found->second.dirty = false;
    Mount::WriteOptions pages;
    pages.pages = true;
    auto content = found->second.content;  // the write must not outlive it
    auto written = co_await mount_->write(handle_, index * kPage, content, pages);
    found->second.locked = false;
    if (!written) co_return written.error();
    co_return Expected<void>{};
  }
  /// Memory was short: the page goes, and is wanted again.
  Task<Expected<std::uint64_t>> forget_and_load(std::uint64_t at) {
    if (!locked(at / kPage)) pages_.erase(at / kPage);
    co_return co_await load(at);
  }
  /// pwrite(2): past the cache, whose pages go first.
  Task<Expected<std::uint32_t>> write(std::uint64_t at, std::vector<std::byte> data) {
    for (auto index = at / kPage; index <= (at + data.size() - 1) / kPage; ++index)
      co_await drop_one(index);
    co_await yield(world_->loop());
    if (on_write_sent) co_await on_write_sent();
    co_return co_await mount_->write(handle_, at, data, {});
  }

  [[nodiscard]] bool has(std::uint64_t index) const { return pages_.contains(index); }
  int drops = 0;
  bool drops_for_real = true;
  Duration drop_takes{};  ///< Before it comes to the first page.
  std::function<Task<void>()> on_write_sent;

 private:
  struct Page {
    std::vector<std::byte> content;
    bool dirty = false, locked = false;
  };
  [[nodiscard]] bool locked(std::uint64_t index) const {
    auto found = pages_.find(index);
    return faulting_.contains(index) || (found != pages_.end() && found->second.locked);
  }
  [[nodiscard]] std::uint64_t value_at(std::uint64_t at) const {
    std::uint64_t value = 0;
    std::memcpy(&value, pages_.at(at / kPage).content.data() + at % kPage, sizeof value);
    return value;
  }

  Task<Expected<void>> fault(std::uint64_t index) {
    for (;;) {
      while (locked(index)) co_await sleep(world_->loop(), 100us);
      if (pages_.contains(index)) co_return Expected<void>{};
      faulting_.insert({index, true});
      auto content = co_await mount_->read_pages(handle_, index * kPage, kPage);
      faulting_.erase(index);
      if (!content) co_return content.error();
      auto bytes = bytes_of(*content);
      Page page;
      page.content.assign(bytes.begin(), bytes.end());
      page.content.resize(kPage);
      pages_[index] = std::move(page);
    }
  }
  Task<void> drop_one(std::uint64_t index) {
    for (;;) {
      while (locked(index)) co_await sleep(world_->loop(), 100us);
      if (!pages_.contains(index)) co_return;
      if (!pages_.at(index).dirty) break;
      (void)co_await write_back(index);
    }
    pages_.erase(index);
  }
  Task<void> drop(std::vector<Range> ranges, Function<void()> done) {
    co_await sleep(world_->loop(), drop_takes);
    if (drops_for_real)
      for (auto range : ranges)
        for (auto index = range.begin / kPage; index < range.end / kPage && index < 64; ++index)
          co_await drop_one(index);
    done();
  }

  World* world_;
  Mount* mount_;
  Mount::Handle handle_;
  std::map<std::uint64_t, Page> pages_;
  std::map<std::uint64_t, bool> faulting_;
  TaskScope tasks_;
};

std::vector<std::byte> eight(std::uint64_t value) {
  std::vector<std::byte> bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

/// A file that several nodes have open for writing, each with its kernel.
struct Mapped {
  explicit Mapped(World& in, std::size_t size = 16 * kPage) : world{&in} {
    wire::Make what;
    what.set_parent(raw(kRootInode));
    what.set_name("file");
    what.set_mode(S_IFREG | 0644);
    auto made = world->wait(world->mount(1).create(Caller{}, what, {}));
    REQUIRE(made);
    inode = InodeId{made->attr.inode()};
    auto zeros = std::vector<std::byte>(size);
    REQUIRE(world->wait(world->mount(1).write(made->handle, 0, zeros, {})));
    REQUIRE(world->wait(said(world->mount(1).close(made->handle))));
  }
  static Task<bool> said(Task<void> task) {
    co_await task;
    co_return true;
  }
  Mount::Handle open(int node, bool writes = true) {
    Mount::OpenOptions options;
    options.writes = writes;
    auto opened = world->wait(world->mount(node).open(inode, options));
    REQUIRE(opened);
    return opened->handle;
  }
  std::unique_ptr<PageCache> cache(int node, bool writes = true) {
    return std::make_unique<PageCache>(*world, world->mount(node), open(node, writes));
  }
  std::uint64_t read(int node, Mount::Handle handle, std::uint64_t at) {
    auto got = world->wait(world->mount(node).read(handle, at, 8));
    REQUIRE(got);
    std::uint64_t value = 0;
    auto bytes = bytes_of(*got);
    std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
    return value;
  }
  void write(int node, Mount::Handle handle, std::uint64_t at, std::uint64_t value) {
    REQUIRE(world->wait(world->mount(node).write(handle, at, eight(value), {})));
  }

  World* world;
  InodeId inode{};
};

}  // namespace

TEST_CASE("mapping: nodes that store into one page, and one that writes there, lose nothing") {
  World world;
  Mapped file{world};
  auto one = file.cache(1), two = file.cache(2);
  auto third = file.open(3);
  constexpr std::uint64_t kRounds = 200;
  auto first = world.begin(one->count_to(0, kRounds));
  auto second = world.begin(two->count_to(8, kRounds));
  for (std::uint64_t i = 1; i <= kRounds; ++i) {
    file.write(3, third, 16, i);
    REQUIRE(file.read(3, third, 16) == i);
  }
  CHECK(first->get());
  CHECK(second->get());
  CHECK(file.read(3, third, 0) == kRounds);
  CHECK(file.read(3, third, 8) == kRounds);
  CHECK(file.read(3, third, 16) == kRounds);
  CHECK(one->drops > 2);
}

TEST_CASE("mapping: a kernel that keeps what it was to drop loses something, and that shows") {
  World world;
  Mapped file{world};
  auto one = file.cache(1), two = file.cache(2);
  one->drops_for_real = false;
  for (int i = 0; i < 3; ++i) {
    REQUIRE(world.wait(one->increment(0)));
    REQUIRE(world.wait(two->increment(8)));
  }
  REQUIRE(world.wait(one->write_back(0)));
  REQUIRE(world.wait(two->write_back(0)));
  auto third = file.open(3);
  bool all = file.read(3, third, 0) == 3 && file.read(3, third, 8) == 3;
  CHECK_FALSE(all);
}

TEST_CASE("mapping: a store shows in what another node reads, and a write in what it maps") {
  World world;
  Mapped file{world};
  auto one = file.cache(1), two = file.cache(2, false);
  auto writer = file.open(3);
  REQUIRE(world.wait(one->increment(0)));
  CHECK(file.read(3, writer, 0) == 1);  // nobody wrote it back before
  CHECK_FALSE(one->has(0));
  CHECK(*world.wait(two->load(0)) == 1);
  CHECK(two->has(0));
  file.write(3, writer, 0, 7);
  CHECK_FALSE(two->has(0));
  CHECK(*world.wait(two->load(0)) == 7);
  CHECK(*world.wait(one->load(0)) == 7);
  // Whole blocks of the LUN, straight to it.
  auto block = std::vector<std::byte>(kPage, std::byte{9});
  REQUIRE(world.wait(world.mount(3).write(writer, 0, block, {})));
  REQUIRE(world.wait(world.mount(3).write(writer, 0, block, {})));
  CHECK(*world.wait(one->load(0)) == 0x0909090909090909u);
}

TEST_CASE("mapping: pages that nobody stores into are kept by many, and by others for reading") {
  World world;
  Mapped file{world};
  auto one = file.cache(1, false), two = file.cache(2, false);
  CHECK(*world.wait(one->load(0)) == 0);
  CHECK(*world.wait(two->load(0)) == 0);
  auto reader = file.open(3);
  CHECK(file.read(3, reader, 0) == 0);
  CHECK(one->has(0));
  CHECK(two->has(0));
  CHECK(one->drops + two->drops == 0);
}

TEST_CASE("mapping: a recall does not wait for a page that is asked for in the meantime") {
  World world;
  Mapped file{world};
  auto one = file.cache(1);
  auto writer = file.open(3);
  REQUIRE(world.wait(one->increment(0)));
  // The kernel lost the page by itself, and it is wanted again when the recall has come as far as
  // telling the kernel: which then waits for that page, and its request for the recall.
  world.post([&] { one->drop_takes = 20ms; });
  auto five = eight(5);
  auto write = world.begin(world.mount(3).write(writer, 8, five, {}));
  world.wait(sleep(world.loop(), 10ms));
  REQUIRE(world.wait(one->write_back(0)));
  auto wanted = world.begin(one->forget_and_load(0));
  CHECK(write->get());
  CHECK(*wanted->get() == 1);
  CHECK(*world.wait(one->load(8)) == 5);
}

TEST_CASE("mapping: a node's own write, and a store into a page that came back meanwhile, last") {
  World world;
  Mapped file{world};
  auto one = file.cache(1);
  REQUIRE(world.wait(one->increment(0)));
  auto reader = file.open(2);
  // The kernel has dropped its pages for the write, which is on its way: then a program faults.
  world.post(
      [&] { one->on_write_sent = [&]() -> Task<void> { (void)co_await one->increment(0); }; });
  CHECK(world.wait(one->write(8, eight(77))));
  world.post([&] { one->on_write_sent = nullptr; });
  CHECK(*world.wait(one->load(0)) == 2);
  CHECK(*world.wait(one->load(8)) == 77);
  CHECK(file.read(2, reader, 0) == 2);
  CHECK(file.read(2, reader, 8) == 77);
}

TEST_CASE("mapping: beyond the end that another node gave a file nothing is kept, nor written") {
  World world;
  Mapped file{world, 3 * kPage};
  auto one = file.cache(1);
  auto other = file.open(2);
  for (std::uint64_t page = 0; page < 3; ++page)
    REQUIRE(world.wait(one->increment(page * kPage + 512)));
  wire::SetAttr shorter;
  shorter.set_inode(raw(file.inode));
  shorter.set_size(kPage + 100);
  REQUIRE(world.wait(world.mount(2).change(shorter)));
  CHECK(one->has(0));  // nothing of it changed
  CHECK_FALSE(one->has(1));
  CHECK_FALSE(one->has(2));
  CHECK(*world.wait(one->load(kPage + 512)) == 0);
  REQUIRE(world.wait(one->increment(kPage + 512)));  // behind the end, in the last page
  REQUIRE(world.wait(one->write_back(1)));
  shorter.set_size(3 * kPage);
  auto attr = world.wait(world.mount(2).change(shorter));
  REQUIRE(attr);
  CHECK(attr->size() == 3 * kPage);
  CHECK(file.read(2, other, kPage + 512) == 0);
  CHECK(file.read(2, other, 2 * kPage + 512) == 0);
  CHECK(file.read(2, other, 512) == 1);
}

TEST_CASE("mapping: a hole and the last part of a page can be mapped and stored into") {
  World world;
  Mapped file{world, 100};
  auto one = file.cache(1);
  auto other = file.open(2);
  wire::SetAttr longer;
  longer.set_inode(raw(file.inode));
  longer.set_size(4 * kPage + 50);
  REQUIRE(world.wait(world.mount(1).change(longer)));
  for (auto at : {std::uint64_t{0}, 2 * kPage, 4 * kPage + 8}) {
    CHECK(*world.wait(one->load(at)) == 0);
    REQUIRE(world.wait(one->increment(at)));
    CHECK(file.read(2, other, at) == 1);
  }
}

TEST_CASE("mapping: a new coordinator knows what kernels hold, and recalls it") {
  World world;
  Mapped file{world};
  auto one = file.cache(1), two = file.cache(2);
  for (int i = 1; i <= 3; ++i) {
    REQUIRE(world.wait(one->increment(0)));
    world.take_over();
    REQUIRE(world.wait(two->increment(8)));
    CHECK(*world.wait(two->load(0)) == static_cast<std::uint64_t>(i));
    CHECK_FALSE(one->has(0));
  }
  REQUIRE(world.wait(one->increment(0)));
  world.take_over();
  auto reader = file.open(3);
  // Perhaps before the mount has said that its kernel has pages: then it has to be stored yet, to
  // whoever reads. Once it is connected it shows.
  REQUIRE(world.wait(world.mount(1).attr(file.inode)));
  CHECK(file.read(3, reader, 0) == 4);
}

TEST_CASE("mapping: pages go when the lease is about to end, and with the session") {
  World world;
  Mapped file{world};
  auto one = file.cache(1);
  REQUIRE(world.wait(one->increment(0)));
  world.post([&] { world.open_until = world.loop().now() + 3450ms; });
  // What the coordinator has answered is worth 3 s, so a lease does not end sooner.
  for (int i = 0; i < 500 && one->has(0); ++i) world.wait(sleep(world.loop(), 10ms));
  CHECK_FALSE(one->has(0));
  // A program asks for it again: there would be nobody to take it away in time.
  auto again = world.begin(one->load(0));
  CHECK_FALSE(again->ready_within(300ms));
  world.post([&] { world.open_until = TimePoint::max(); });
  CHECK(*again->get() == 1);
}

TEST_CASE(
    "mapping: a page that a killed program asked for, and got too late, is nobody's absence") {
  World world;
  Mapped file{world};
  auto one = file.cache(1);
  auto handle = file.open(1);
  std::atomic<int> reads{0};
  world.post([&] {
    world.mount_plan = [&reads](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (command.kind == iscsi::RamCommand::Kind::read && ++reads == 1) fate.to_initiator = 500ms;
      return fate;
    };
  });
  auto killed = std::make_shared<Interrupt>();
  auto slow = world.begin(world.mount(1).read_pages(handle, 0, kPage, killed.get()));
  for (int i = 0; i < 500 && reads == 0; ++i) world.wait(sleep(world.loop(), 1ms));
  world.post([&] { killed->raise(); });  // and the kernel is told EINTR
  // Another thread of it wants the page, and has it again when a write has just sent it away.
  one->on_write_sent = [&one]() -> Task<void> { (void)co_await one->load(0); };
  CHECK(world.wait(one->write(8, eight(77))));
  CHECK(*world.wait(one->load(8)) == 77);
  CHECK_FALSE(slow->get());
}

namespace {

/// The next flush of a mount says that what the target's cache held is gone, and tells it once.
iscsi::RamFate losing(const iscsi::RamCommand& command, int& flushes) {
  iscsi::RamFate fate;
  if (command.kind != iscsi::RamCommand::Kind::flush || flushes++ > 0) return fate;
  fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
  fate.forgets = true;
  return fate;
}

}  // namespace

TEST_CASE("mapping: a page that was read before the target forgot what it shows is read again") {
  World world;
  Mapped file{world};
  auto& mount = world.mount(1);
  auto handle = file.open(1);
  file.write(1, handle, 0, 1);
  REQUIRE(world.wait(mount.sync(handle)));
  auto block = std::vector<std::byte>(kPage, std::byte{9});
  REQUIRE(world.wait(mount.write(handle, 0, block, {})));
  REQUIRE(world.wait(mount.write(handle, 0, block, {})));
  auto one = file.cache(1);
  int flushes = 0;
  std::atomic<bool> slow{true};
  world.post([&] {
    world.mount_plan = [&](const iscsi::RamCommand& command) {
      auto fate = losing(command, flushes);
      if (command.kind == iscsi::RamCommand::Kind::read && slow.exchange(false))
        fate.to_initiator = 300ms;
      return fate;
    };
  });
  auto loading = world.begin(one->load(0));
  for (int i = 0; i < 1000 && slow; ++i) world.wait(sleep(world.loop(), 1ms));
  REQUIRE(!slow);
  world.wait(sleep(world.loop(), 20ms));
  CHECK(!world.wait(mount.sync(handle)));
  CHECK(*loading->get() == 1);
}

TEST_CASE("mapping: a page that cannot be written when the target forgot keeps no others waiting") {
  World world;
  Mapped file{world};
  auto& mount = world.mount(1);
  auto handle = file.open(1);
  auto one = file.cache(1);
  for (std::uint64_t page = 0; page < 16; ++page) REQUIRE(world.wait(one->load(page * kPage)));
  REQUIRE(world.wait(one->increment(5 * kPage)));
  REQUIRE(world.wait(one->write_back(5)));  // it needs no coordinator after that
  REQUIRE(world.wait(one->increment(5 * kPage)));
  int flushes = 0;
  std::atomic<bool> full{true};
  std::atomic<int> refused{0};
  world.post([&] {
    world.mount_plan = [&](const iscsi::RamCommand& command) {
      auto fate = losing(command, flushes);
      if (command.kind != iscsi::RamCommand::Kind::write || command.length != kPage || !full)
        return fate;
      fate.failure = Error{std::errc::no_space_on_device, "no space left (07h/27h/07h)"};
      ++refused;
      return fate;
    };
  });
  CHECK(!world.wait(mount.sync(handle)));
  for (int i = 0; i < 1000 && refused == 0; ++i) world.wait(sleep(world.loop(), 1ms));
  REQUIRE(refused > 0);
  auto here = world.begin(mount.read(handle, 5 * kPage, 8));
  auto elsewhere = world.begin(mount.read(handle, 10 * kPage, 8));
  CHECK(elsewhere->ready_within(5s));
  CHECK(!here->ready_within(100ms));
  full = false;
  CHECK(here->get());
  CHECK(elsewhere->get());
}

TEST_CASE("mapping: a page that no other node waits for is kept until it can be written") {
  World world;
  Mapped file{world};
  auto& mount = world.mount(1);
  auto handle = file.open(1);
  auto one = file.cache(1);
  for (std::uint64_t page : {1, 3}) {
    REQUIRE(world.wait(one->increment(page * kPage)));
    REQUIRE(world.wait(one->write_back(page)));
    REQUIRE(world.wait(one->increment(page * kPage)));
  }
  int flushes = 1;
  std::atomic<bool> full{true};
  std::atomic<int> refused{0};
  world.post([&] {
    world.mount_plan = [&](const iscsi::RamCommand& command) {
      auto fate = losing(command, flushes);
      bool content = command.offset > (200ull << 20);
      if (command.kind != iscsi::RamCommand::Kind::write || !content || !full) return fate;
      fate.failure = Error{std::errc::no_space_on_device, "no space left (07h/27h/07h)"};
      ++refused;
      return fate;
    };
  });
  bool written = false;
  std::shared_ptr<World::Slot<Expected<std::uint32_t>>> write;
  std::shared_ptr<World::Slot<Expected<void>>> punch;
  auto eleven = eight(11);
  SUBCASE("it goes because the target forgot") {
    world.post([&] { flushes = 0; });
    CHECK(!world.wait(mount.sync(handle)));
    for (int i = 0; i < 1000 && !world.stopped; ++i) world.wait(sleep(world.loop(), 5ms));
    world.take_over();  // the coordinator ends when it hears of that
  }
  SUBCASE("this node's own operations wait for it") {
    written = true;
    write = world.begin(mount.write(handle, kPage + 8, eleven, {}));
    wire::Allocate hole;
    hole.set_offset(3 * kPage + 512);
    hole.set_length(512);
    hole.set_mode(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    punch = world.begin(mount.allocate(handle, hole));
    Interrupt killed;
    auto let_go = world.begin(mount.write(handle, 3 * kPage + 8, eleven, {}, &killed));
    CHECK_FALSE(let_go->ready_within(300ms));
    world.post([&] { killed.raise(); });
    REQUIRE(let_go->ready_within(5s));
    CHECK(let_go->get().error() == std::errc::interrupted);
  }
  world.wait(sleep(world.loop(), 6s));  // longer than another node would be kept waiting
  CHECK(refused > 10);
  full = false;
  if (written) {
    CHECK(write->get());
    CHECK(punch->get());
  }
  auto reader = file.open(2);
  for (std::uint64_t page : {1, 3}) CHECK(file.read(2, reader, page * kPage) == 2);
  if (written) CHECK(file.read(2, reader, kPage + 8) == 11);
  CHECK(file.read(2, reader, 3 * kPage + 8) == 0);
}

TEST_CASE("mapping: a page beyond the end is answered with nothing, at once") {
  World world;
  Mapped file{world};
  auto handle = file.open(1);
  for (std::uint64_t at : {64 * kPage, 65 * kPage}) {
    auto reading = world.begin(world.mount(1).read_pages(handle, at, kPage));
    REQUIRE(reading->ready_within(2s));
    auto got = reading->get();
    REQUIRE(got);
    CHECK(got->length == 0);
  }
}

TEST_CASE("mapping: a range that is punched while a program maps it again stays punched") {
  World world;
  Mapped file{world};
  auto one = file.cache(1), two = file.cache(2);
  REQUIRE(world.wait(two->increment(kPage)));
  auto handle = file.open(1);
  wire::Allocate punch;
  punch.set_offset(kPage);
  punch.set_length(kPage);
  punch.set_mode(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  REQUIRE(world.wait(one->increment(kPage)));
  CHECK(world.wait(world.mount(1).allocate(handle, punch)));
  CHECK_FALSE(one->has(1));
  CHECK_FALSE(two->has(1));
  CHECK(*world.wait(one->load(kPage)) == 0);
  CHECK(*world.wait(two->load(kPage)) == 0);
}

TEST_CASE("mapping: two nodes that truncate what the other has mapped do not wait for ever") {
  World world;
  Mapped file{world};
  auto one = file.cache(1), two = file.cache(2);
  REQUIRE(world.wait(one->increment(2 * kPage)));
  REQUIRE(world.wait(two->increment(3 * kPage)));
  // Neither kernel writes pages while its own truncation is under way.
  world.post([&] { one->drop_takes = two->drop_takes = 300ms; });
  wire::SetAttr shorter;
  shorter.set_inode(raw(file.inode));
  shorter.set_size(kPage);
  auto first = world.begin(world.mount(1).change(shorter));
  world.wait(sleep(world.loop(), 50ms));
  auto second = world.wait(world.mount(2).change(shorter));
  REQUIRE_FALSE(second);
  CHECK(second.error() == std::errc::resource_unavailable_try_again);
  CHECK(first->get());
}
