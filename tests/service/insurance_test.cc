// Copies of the catalog while it is served, and a takeover that lets the volume grow.
#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <memory>

#include "coordinator/service/catalog_file.h"
#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/catalog_copy.h"
#include "tests/fakes/inline_worker.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service;
using namespace csv::service::test;

namespace {

iscsi::RamDiskOptions disk_of(std::uint64_t mib) {
  iscsi::RamDiskOptions options;
  options.geometry.block_count = (mib << 20) / options.geometry.block_size;
  return options;
}

/// Runs a service that was taken over with what the test says, on the world's loop.
struct Served {
  Served(World& on, const Surroundings& around) : world{on} {
    world.run([&] { tasks.spawn(take(*this, around)); });
    REQUIRE(world.eventually([this] { return done; }));
    REQUIRE_MESSAGE(service, why);
  }
  ~Served() {
    world.run([this] {
      tasks.cancel_all();
      service.reset();
    });
    world.eventually([this] { return world.workers == 0; });
  }
  static Task<void> take(Served& self, Surroundings around) {
    auto taken = co_await VolumeService::take_over(std::move(around));
    if (taken)
      self.service = *std::move(taken);
    else
      self.why = taken.error().message();
    self.done = true;
  }
  static Task<void> copy_now(Served& self) {
    auto task = self.service->copy_catalog();
    self.copied = co_await task;
  }
  static Task<void> close_now(Served& self) {
    auto task = self.service->close();
    co_await task;
    self.closed = true;
  }
  void begin_copy() {
    world.run([this] {
      copied.reset();
      tasks.spawn(copy_now(*this));
    });
  }
  Expected<VolumeService::CatalogCopied> copy() {
    begin_copy();
    REQUIRE(world.eventually([this] { return copied.has_value(); }));
    return *copied;
  }

  World& world;
  std::unique_ptr<VolumeService> service;
  std::string why;
  bool done = false, closed = false;
  std::optional<Expected<VolumeService::CatalogCopied>> copied;
  TaskScope tasks;
};

/// On a disk that answers nothing for a while.
class SlowFile final : public CatalogFile {
 public:
  struct Disk {
    std::atomic<bool> asked{false};
    std::promise<void> answers;
    std::shared_future<void> answered{answers.get_future()};
  };
  explicit SlowFile(std::shared_ptr<Disk> disk) : disk_{std::move(disk)} {}
  Expected<void> write(std::uint64_t, std::span<const std::byte>) override {
    disk_->asked = true;
    disk_->answered.wait();
    return {};
  }
  Expected<std::string> finish() override { return std::string{"slow"}; }

 private:
  std::shared_ptr<Disk> disk_;
};

struct Folder {
  Folder() {
    std::string pattern = std::filesystem::temp_directory_path() / "csv-insurance-XXXXXX";
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  [[nodiscard]] std::size_t files() const {
    std::size_t n = 0;
    for (const auto& each : std::filesystem::directory_iterator{path}) {
      (void)each;
      ++n;
    }
    return n;
  }
  std::string path;
};

}  // namespace

TEST_CASE("insurance: a served catalog is copied to a file and to the LUN, and the copy is clean") {
  Folder folder;
  World world;
  {
    auto around = world.surroundings(NodeId{1});
    std::int64_t second = 0;
    around.open_catalog_file = [&] {
      return make_catalog_file(folder.path, WallTime{++second * 1'000'000'000}, 2);
    };
    Served served{world, around};
    for (int i = 0; i < 4; ++i) {
      auto copied = served.copy();
      REQUIRE_MESSAGE(copied, copied.error().message());
      CHECK(copied->on_lun);
      CHECK(copied->problems.empty());
      CHECK(copied->no_file == "");
      volume::CheckReport report;
      REQUIRE(volume::check_catalog_file(copied->file, copied->info, report, {}));
      for (const auto& problem : report.problems) MESSAGE(problem);
      CHECK(report.problems.empty());
    }
    // The newest two, and nothing half done.
    CHECK(folder.files() == 2);
    CHECK(std::filesystem::exists(folder.path + "/catalog-4.db"));
  }
  CHECK(world.problems().empty());
}

TEST_CASE("insurance: a disk that takes no file costs the file only") {
  World world;
  auto around = world.surroundings(NodeId{1});
  around.open_catalog_file = []() -> Expected<std::unique_ptr<CatalogFile>> {
    return Error{std::errc::no_space_on_device, "the disk is full"};
  };
  Served served{world, around};
  auto copied = served.copy();
  REQUIRE(copied);
  CHECK(copied->on_lun);
  CHECK(copied->file == "");
  CHECK(copied->no_file == "the disk is full");
}

TEST_CASE("insurance: a volume may be given up while its catalog is copied") {
  World world;
  auto disk = std::make_shared<SlowFile::Disk>();
  bool by_command = true, in_good_order = true;
  SUBCASE("by command, and closed") {}
  SUBCASE("by command, and ended as by a crash") { in_good_order = false; }
  SUBCASE("by itself, and closed") {
    by_command = false;
    world.timing.catalog_copy_after = 20ms;
  }
  auto around = world.surroundings(NodeId{1});
  around.open_catalog_file = [disk]() -> Expected<std::unique_ptr<CatalogFile>> {
    return std::unique_ptr<CatalogFile>{std::make_unique<SlowFile>(disk)};
  };
  {
    Served served{world, around};
    if (by_command) served.begin_copy();
    REQUIRE(world.eventually([&] { return disk->asked.load(); }));
    if (in_good_order) {
      world.run([&] { served.tasks.spawn(Served::close_now(served)); });
      CHECK(world.eventually([&] { return served.closed; }));
    }
    world.run([&] { served.service.reset(); });
    // Whoever asked is told, however long the disk takes.
    if (by_command) {
      REQUIRE(world.eventually([&] { return served.copied.has_value(); }));
      CHECK(served.copied->error() == Errc::closed);
    }
    // The file's thread waits in there; the catalog's ends.
    CHECK(world.eventually([&] { return world.workers == 1; }));
    disk->answers.set_value();
    CHECK(world.eventually([&] { return world.workers == 0; }));
  }
  // The next one can be served, and copied.
  Served next{world, around};
  auto copied = next.copy();
  CHECK_MESSAGE(copied, copied.error().message());
}

TEST_CASE("insurance: copies are taken by themselves when the last one is old") {
  World world;
  world.timing.catalog_copy_after = 20ms;
  int files = 0;
  auto around = world.surroundings(NodeId{1});
  around.open_catalog_file = [&]() -> Expected<std::unique_ptr<CatalogFile>> {
    ++files;
    return Error{std::errc::no_space_on_device};
  };
  auto marks = [&] {
    int found = 0;
    for (std::uint64_t at = 0; at + volume::kGroupSize <= 768ull << 20; at += 1 << 20)
      if (std::memcmp(world.peek(at, 512).data(), volume::disk::kCopyMagic.data(), 8) == 0) ++found;
    return found;
  };
  {
    Served served{world, around};
    CHECK(world.eventually([&] { return marks() == 1; }));
    CHECK(files == 1);
  }
  // The next coordinator finds it on the LUN: nothing is due.
  {
    Served served{world, around};
    bool later = false;
    world.run([&] { world.loop.after(200ms, [&] { later = true; }); });
    REQUIRE(world.eventually([&] { return later; }));
    CHECK(files == 1);
  }
  CHECK(marks() == 1);
  CHECK(world.problems().empty());
}

TEST_CASE("insurance: a copy each day, by the clock, whoever coordinates") {
  using std::chrono::hours;
  using std::chrono::minutes;
  fakes::ManualLoop loop;
  loop.run_for(hours{24 * 365});  // not the day that clocks begin with
  auto disk = iscsi::RamDisk::create(disk_of(768), &loop);
  Random random{7};
  fakes::Turns turns{loop};
  volume::VolumeInfo info;
  {
    auto lun = *disk->connect(loop, {});
    iscsi::BlockingLun io{*lun, turns};
    auto made = volume::format(
        io, {.label = "volume1", .cluster = 7, .wal_size = 16 << 20, .claim_space = false}, random,
        loop.wall_now());
    REQUIRE_MESSAGE(made, made.error().message());
    info = *made;
  }
  std::vector<WallTime> files;  // one is begun with each copy
  Surroundings around;
  around.loop = &loop;
  around.random = &random;
  around.open_lun = iscsi::RamDisk::opener(disk, loop);
  around.make_worker = [&] { return std::make_unique<fakes::InlineWorker>(loop); };
  around.open_until = [&] { return loop.now() + 1h; };
  around.cluster = 7;
  around.volume = "volume1";
  // Of what else a coordinator does by the clock, less: days are to pass.
  around.timing.key_sweep = minutes{5};
  around.timing.lease_term = minutes{30};
  around.timing.maintenance = minutes{5};
  around.open_catalog_file = [&]() -> Expected<std::unique_ptr<CatalogFile>> {
    files.push_back(loop.wall_now());
    return Error{std::errc::no_space_on_device};
  };
  struct Holder {
    static Task<void> take(Surroundings with, std::unique_ptr<VolumeService>& into, bool& done) {
      auto task = VolumeService::take_over(std::move(with));
      auto taken = co_await task;
      if (taken) into = *std::move(taken);
      done = true;
    }
  };
  auto serve_for = [&](unsigned node, Duration time) {
    around.node = NodeId{static_cast<std::uint8_t>(node)};
    std::unique_ptr<VolumeService> service;
    bool done = false;
    {
      TaskScope tasks;
      tasks.spawn(Holder::take(around, service, done));
      REQUIRE(fakes::run_until(
          loop, [&] { return done; }, hours{1}));
    }
    REQUIRE(service);
    loop.run_for(time);
    service.reset();
    loop.run_for(1s);
  };
  auto newest_on_lun = [&] {
    auto lun = *disk->connect(loop, {});
    iscsi::BlockingLun io{*lun, turns};
    auto key = make_key({7, NodeId{63}, KeyRole::mount, 1});
    REQUIRE(io.register_key(key));
    auto copies = volume::find_copies(io, info.id, info.data_offset, volume::kGroupSize);
    REQUIRE(io.register_key(Key{}));
    REQUIRE(copies);
    return copies->empty() ? WallTime{} : copies->front().taken_at;
  };
  auto since = [&](WallTime then) {
    return Duration{static_cast<std::int64_t>(loop.wall_now()) - static_cast<std::int64_t>(then)};
  };
  // Not at once: a volume that goes from node to node is not copied by each of them.
  serve_for(1, minutes{9});
  CHECK(files.empty());
  serve_for(1, minutes{12});
  REQUIRE(files.size() == 1);
  CHECK(newest_on_lun() == files.back());
  serve_for(2, hours{20});
  CHECK(files.size() == 1);
  // It is a day old while the second node has the volume.
  serve_for(3, hours{5});
  REQUIRE(files.size() == 2);
  auto apart = Duration{static_cast<std::int64_t>(files[1]) - static_cast<std::int64_t>(files[0])};
  CHECK(apart >= hours{24});
  CHECK(apart < hours{24} + minutes{15});
  CHECK(newest_on_lun() == files.back());
  serve_for(1, hours{72});
  CHECK(files.size() == 5);
  CHECK(newest_on_lun() == files.back());
  CHECK(since(files.back()) < hours{24});
  // By command only.
  around.timing.catalog_copy = {};
  serve_for(1, hours{72});
  CHECK(files.size() == 5);
}

TEST_CASE("insurance: a takeover lets the volume grow only where it is asked to") {
  World world;
  auto old = world.info;
  auto larger = iscsi::RamDisk::create(disk_of(768 + 512), &world.loop);
  std::vector<std::byte> piece(1 << 20);
  const std::vector<std::byte> zeros(1 << 20);
  for (std::uint64_t at = 0; at < 768ull << 20; at += piece.size()) {
    world.disk->peek(at, piece);
    if (piece != zeros) larger->poke(at, piece);
  }
  world.disk = larger;
  for (bool grow : {false, true}) {
    auto around = world.surroundings(NodeId{1});
    around.grow = grow;
    Served served{world, around};
    auto blocks = old.data_size / 4096 + (grow ? (512ull << 20) / 4096 : 0);
    CHECK(world.eventually([&] { return served.service->status().total_blocks == blocks; }));
  }
  CHECK(world.problems().empty());
}
