// A damaged LUN under everything that reads one: superblocks, log recovery, chunk headers, catalog
// pages, the checker, and a coordinator that takes the volume over and serves it.
//
//   what to do (1 byte), then changes (damage.h). With bit 0 of the first byte what was changed
//   gets right checksums, so that wrong content behind them is met too: SQLite's sums of the log,
//   ours.
#include <sys/stat.h>

#include <set>

#include "coordinator/service/volume_service.h"
#include "coordinator/volume/catalog.h"
#include "coordinator/volume/check.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/bench.h"
#include "tests/fuzz/damage.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using volume::Catalog;

enum Doing : std::uint8_t { right_sums = 1, take_over = 2, check_only = 4, no_repair = 8 };

/// Everything a coordinator asks of a catalog. Errors are answers; only the end counts.
Expected<void> look_around(Catalog& on) {
  std::set<InodeId> inodes{kRootInode};
  for (auto parent : {kRootInode, InodeId{2}, InodeId{3}})
    if (auto listed = on.list(parent, 0, 100))
      for (const auto& entry : *listed) inodes.insert(entry.attr.inode);
  for (auto inode : inodes) {
    (void)on.attr(inode);
    (void)on.lookup(inode, "file");
    (void)on.map(inode, 0, 1000);
    (void)on.read_link(inode);
    (void)on.list_xattrs(inode);
    (void)on.xattr(inode, "user.a");
    (void)on.seek(inode, 0, true);
    (void)on.seek(inode, 0, false);
  }
  (void)on.space();
  (void)on.orphans({}, 100);
  (void)on.dying(100);
  (void)on.admissions();
  if (auto sessions = on.sessions())
    for (const auto& row : *sessions) (void)on.slot(row.id, 3);
  return {};
}

Expected<void> change_much(Catalog& on) {
  auto made = on.make(kRootInode, "new", {.mode = S_IFREG | 0644}, 3000);
  if (made) {
    if (auto runs = on.reserve_space(made->inode, 8, 0, 8)) {
      auto placed = on.place(made->inode, 0, *runs, volume::BlockState::written, {});
      if (!placed) on.cancel_reservation(*runs);
    }
    (void)on.grow(made->inode, 8 * 4096, 3000);
  }
  (void)on.rename(kRootInode, "symlink", kRootInode, "renamed", 0, 3000);
  if (auto file = on.lookup(kRootInode, "file")) {
    (void)on.fill(file->inode, 90, 40);
    (void)on.punch(file->inode, 3, 5, false, 3000);
    (void)on.truncate(file->inode, 5000, 3000);
    (void)on.remove_xattr(file->inode, "user.a", 3000);
  }
  auto file = on.lookup(kRootInode, "file"), clone = on.lookup(kRootInode, "clone");
  if (file && clone) {
    (void)on.clone(clone->inode, 4, 30, file->inode, 300);
    (void)on.clone(file->inode, 10, 20, clone->inode, 2030);
    (void)on.punch(clone->inode, 50, 8, true, 3000);
    if (auto runs = on.reserve_space(clone->inode, 6, 0, 8)) {
      auto replaced = on.replace(clone->inode, 2, *runs);
      if (!replaced) on.cancel_reservation(*runs);
    }
  }
  (void)on.unlink(kRootInode, "file", 3000);
  if (auto orphans = on.orphans({}, 10))
    for (auto inode : *orphans) (void)on.reap(inode);
  if (auto sessions = on.sessions())
    for (const auto& row : *sessions) {
      (void)on.drop_grants(row.id, {}, 1000);
      (void)on.end_session(row.id);
      (void)on.forget_session(row.id);
    }
  return {};
}

Expected<void> once(Catalog& catalog, Expected<void> (*body)(Catalog&)) {
  Catalog::Change one;
  one.body = body;
  return catalog.run({&one, 1});
}

Expected<void> use(iscsi::BlockingLun& io, const volume::VolumeInfo& info) {
  Random random{7};
  auto store = CSV_TRY(volume::open_catalog_store(io, info, random));
  auto catalog = CSV_TRY(Catalog::open(*store));
  CSV_TRY(once(*catalog, look_around));
  CSV_TRY(once(*catalog, change_much));
  for (int i = 0; i < 5; ++i) {
    CSV_TRY(catalog->maintain());
    auto freed = [](Catalog& on) -> Expected<void> {
      if (auto runs = on.dying(100)) (void)on.make_free(*runs);
      return {};
    };
    CSV_TRY(once(*catalog, freed));
  }
  return catalog->checkpoint();
}

Task<void> served(service::Surroundings around, std::unique_ptr<service::VolumeService>& service,
                  bool& ended) {
  auto task = service::VolumeService::take_over(std::move(around));
  auto taken = co_await task;
  if (taken) service = *std::move(taken);
  ended = true;
}

void serve(fakes::ManualLoop& loop, const std::shared_ptr<iscsi::RamDisk>& lun) {
  Random random{7};
  service::Surroundings around;
  around.loop = &loop;
  around.random = &random;
  around.open_lun = iscsi::RamDisk::opener(lun, loop);
  around.make_worker = [&loop] { return std::make_unique<InlineWorker>(loop); };
  around.open_until = [&loop] { return loop.now() + 1h; };
  around.node = NodeId{1};
  around.cluster = kCluster;
  around.volume = "volume1";
  around.timing.reconnect_grace = 1s;
  around.timing.lease_term = 500ms;
  std::unique_ptr<service::VolumeService> service;
  bool ended = false;
  {
    TaskScope tasks;
    tasks.spawn(served(around, service, ended));
    CSV_CHECK(run_until(
        loop, [&] { return ended; }, 60s));
  }
  loop.run_for(3s);  // past every patience: sessions that do not come back end
  service.reset();
  loop.run_for(1s);
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  fakes::ManualLoop loop;
  auto lun = disk_of(image(), loop);
  Input input{bytes};
  auto doing = input.take();
  Damage{image(), *lun, (doing & right_sums) != 0}.apply(input);
  if ((doing & take_over) != 0) serve(loop, lun);
  Turns turns{loop};
  auto way = *lun->connect(loop, {});
  // A takeover leaves a reservation, under which only members may look.
  iscsi::BlockingLun io{*way, turns};
  CSV_CHECK(io.register_key(make_key({kCluster, NodeId{63}, KeyRole::mount, 1})));
  auto found = volume::read_superblocks(io, (doing & no_repair) == 0);
  if (found && (doing & check_only) == 0 && (doing & take_over) == 0) (void)use(io, *found);
  (void)volume::check(io);
  way->close();
}

std::vector<Seed> seeds() {
  using namespace std::string_literals;
  std::vector<Seed> all;
  auto add = [&](const std::string& name, int doing, const std::string& changes) {
    all.push_back({name, std::string(1, static_cast<char>(doing)) + changes});
  };
  add("whole", 0, "");
  add("whole-served", take_over, "");
  add("a-damaged", 0, change_of(Place::superblock_a, 0, 200, "x"));
  add("a-damaged-served", take_over, change_of(Place::superblock_a, 0, 200, "x"));
  add("both-damaged", 0,
      change_of(Place::superblock_a, 0, 200, "x") + change_of(Place::superblock_b, 0, 9, "x"));
  add("sequence", right_sums, change_of(Place::superblock_a, 0, 40, "\xff"));
  add("wal-elsewhere", right_sums,
      change_of(Place::superblock_a, 0, 40, "\xff") +
          change_of(Place::superblock_a, 0, 128, number(32ull << 20)));
  add("chunk-damaged", 0, change_of(Place::chunk, 0, 100, "x"));
  add("chunks-swapped", right_sums,
      change_of(Place::chunk, 0, 40, "\x01") + change_of(Place::chunk, 1, 40, "\0"s));
  add("log-header", 0, change_of(Place::log_header, 0, 3, "x"));
  add("log-salt", right_sums, change_of(Place::log_header, 0, 16, "x"));
  add("log-page-size", right_sums, change_of(Place::log_header, 0, 8, "\0\0\x02\0"s));
  for (std::uint16_t frame : {0, 1, 2, 5}) {
    add("log-frame-" + std::to_string(frame), 0, change_of(Place::log_frame, frame, 500, "x"));
    add("log-frame-page-" + std::to_string(frame), right_sums,
        change_of(Place::log_frame, frame, 0, "\xff\xff\xff\xff"));
    add("log-frame-commit-" + std::to_string(frame), right_sums,
        change_of(Place::log_frame, frame, 4, "\0\0\0\x02"s));
  }
  for (std::uint16_t number = 0; number < 40; number = static_cast<std::uint16_t>(number + 3)) {
    add("page-" + std::to_string(number), take_over, change_of(Place::page, number, 50, "xxxx"));
    add("page-content-" + std::to_string(number), right_sums,
        change_of(Place::page, number, 4000, "xxxx"));
    add("page-cells-" + std::to_string(number), right_sums | take_over,
        change_of(Place::page, number, 3, "\0\xff\xff\xff"s));
  }
  add("page-size", right_sums, change_of(Place::page, 0, 28, "\0\0\0\x01"s));
  add("page-schema", right_sums, change_of(Place::page, 0, 40, "\xff\xff"));
  add("c-damaged-served", take_over, change_of(Place::superblock_c, 0, 200, "x"));
  add("all-superblocks-damaged", 0,
      change_of(Place::superblock_a, 0, 200, "x") + change_of(Place::superblock_b, 0, 9, "x") +
          change_of(Place::superblock_c, 0, 200, "x"));
  add("a-of-a-larger-volume", right_sums,
      change_of(Place::superblock_a, 0, 40, "\xff") +
          change_of(Place::superblock_a, 0, 112, number(1ull << 40)));
  add("log-mark", take_over, change_of(Place::log_mark, 0, 40, "x"));
  add("log-mark-frames", right_sums | take_over,
      change_of(Place::log_mark, 0, 40, "\xff\xff\xff\xff"));
  add("log-mark-salts", right_sums, change_of(Place::log_mark, 0, 32, "xxxx"));
  add("slot", right_sums | take_over, change_of(Place::slots, 8, 32, "\xff\xff"));
  return all;
}

}  // namespace csv::fuzz
