// A damaged LUN under everything that reads one: superblocks, log recovery, chunk headers, catalog
// pages, the checker, and a coordinator that takes the volume over and serves it.
//
//   what to do (1 byte), then changes: a place (1 byte), what of it (2 bytes), an offset (2 bytes),
//   a length (1 byte) and that many bytes. With bit 0 of the first byte what was changed gets right
//   checksums, so that wrong content behind them is met too: SQLite's sums of the log, ours.
#include <sys/stat.h>

#include <array>
#include <set>

#include "coordinator/service/volume_service.h"
#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/check.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "tests/fuzz/bench.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using volume::Catalog;
namespace disk = volume::disk;

enum Doing : std::uint8_t { right_sums = 1, take_over = 2, check_only = 4, no_repair = 8 };
enum Place : std::uint8_t { superblock_a, superblock_b, chunk, page, log_header, log_frame, slots };

class Damage {
 public:
  Damage(iscsi::RamDisk& lun, bool sums) : lun_{&lun}, sums_{sums} {}

  void apply(Input& input) {
    while (!input.empty()) {
      auto place = static_cast<Place>(input.take() % 7);
      auto which = input.take<std::uint16_t>();
      auto at = input.take<std::uint16_t>();
      auto content = input.take(input.take());
      change(place, which, at, content);
    }
    if (sums_ && log_changed_) sum_log();
  }

 private:
  void change(Place place, std::uint16_t which, std::uint16_t at,
              std::span<const std::byte> content) {
    const auto& info = image().info;
    auto index = which % info.chunks.size();
    std::uint32_t number = 1 + which % 64;
    switch (place) {
      case superblock_a: return patch_sum(disk::kSuperblockA, disk::kSuperblockSize, at, content);
      case superblock_b: return patch_sum(disk::kSuperblockB, disk::kSuperblockSize, at, content);
      case chunk: return patch_sum(info.chunks[index], disk::kPageSize, at, content);
      case page: {
        auto where = place_of_page(info, number);
        auto bytes = patched(where, disk::kPageSize, at, content);
        if (sums_) {
          disk::PageTail tail{volume::page_checksum(info.id, number, bytes), 0};
          std::memcpy(bytes.data() + disk::kPageSize - sizeof tail, &tail, sizeof tail);
        }
        return lun_->poke(where, bytes);
      }
      case log_header: log_changed_ = true; return log(0, disk::kWalHeaderSize, at, content);
      case log_frame:
        log_changed_ = true;
        return log(disk::kWalHeaderSize + (which % 32) * disk::kFrameSize, disk::kFrameSize, at,
                   content);
     case slots: return patch_sum(info.slots_offset + which % 256 * 4096ull, 4096, at, content);
    }
  }

  std::vector<std::byte> patched(std::uint64_t where, std::size_t size, std::uint16_t at,
                                 std::span<const std::byte> content) {
    std::vector<std::byte> bytes(size);
    lun_->peek(where, bytes);
    std::size_t from = at % size;
    auto length = std::min(content.size(), size - from);
    if (length > 0) std::memcpy(bytes.data() + from, content.data(), length);
    return bytes;
  }
  void patch_sum(std::uint64_t where, std::size_t size, std::uint16_t at,
                 std::span<const std::byte> content) {
    auto bytes = patched(where, size, at, content);
    if (sums_) {
      Le32 crc{crc32c(std::span{bytes}.subspan(12))};
      std::memcpy(bytes.data() + 8, &crc, sizeof crc);
    }
    lun_->poke(where, bytes);
  }

  // The log is not made of blocks: its first 256 KiB are changed as a whole.
  static constexpr std::size_t kLog = 256 << 10;
  std::vector<std::byte> whole_log() {
    std::vector<std::byte> bytes(kLog);
    lun_->peek(image().info.wal_offset, bytes);
    return bytes;
  }
  void log(std::size_t from, std::size_t size, std::uint16_t at,
           std::span<const std::byte> content) {
    auto bytes = whole_log();
    auto to = from + at % size;
    auto length = std::min({content.size(), size - at % size, bytes.size() - to});
    if (length > 0) std::memcpy(bytes.data() + to, content.data(), length);
    lun_->poke(image().info.wal_offset, bytes);
  }
  /// SQLite's running sums of a log with little-endian sums (the magic number says which).
  void sum_log() {
    auto bytes = whole_log();
    std::uint32_t a = 0, b = 0;
    auto add = [&](std::size_t at, std::size_t length) {
      for (std::size_t i = 0; i < length; i += 8) {
        Le32 x, y;
        std::memcpy(&x, bytes.data() + at + i, 4);
        std::memcpy(&y, bytes.data() + at + i + 4, 4);
        a += x + b;
        b += y + a;
      }
    };
    auto put = [&](std::size_t at, std::uint32_t value) {
      for (std::size_t i = 0; i < 4; ++i)
        bytes[at + i] = static_cast<std::byte>(value >> (8 * (3 - i)));
    };
    put(0, 0x377f0682);
    add(0, 24);
    put(24, a);
    put(28, b);
    for (auto at = disk::kWalHeaderSize; at + disk::kFrameSize <= bytes.size();
         at += disk::kFrameSize) {
      if (std::memcmp(bytes.data() + at + 8, bytes.data() + 16, 8) != 0) break;
      add(at, 8);
      add(at + disk::kFrameHeaderSize, disk::kPageSize);
      put(at + 16, a);
      put(at + 20, b);
    }
    lun_->poke(image().info.wal_offset, bytes);
  }

  iscsi::RamDisk* lun_;
  bool sums_;
  bool log_changed_ = false;
};

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

std::string change_of(Place place, std::uint16_t which, std::uint16_t at,
                      const std::string& content) {
  return std::string(1, static_cast<char>(place)) + number(which) + number(at) +
         static_cast<char>(content.size()) + content;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  fakes::ManualLoop loop;
  auto lun = disk_of(image(), loop);
  Input input{bytes};
  auto doing = input.take();
  Damage{*lun, (doing & right_sums) != 0}.apply(input);
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
  add("a-damaged", 0, change_of(superblock_a, 0, 200, "x"));
  add("a-damaged-served", take_over, change_of(superblock_a, 0, 200, "x"));
  add("both-damaged", 0, change_of(superblock_a, 0, 200, "x") + change_of(superblock_b, 0, 9, "x"));
  add("sequence", right_sums, change_of(superblock_a, 0, 40, "\xff"));
  add("wal-elsewhere", right_sums,
      change_of(superblock_a, 0, 40, "\xff") +
          change_of(superblock_a, 0, 128, number(32ull << 20)));
  add("chunk-damaged", 0, change_of(chunk, 0, 100, "x"));
  add("chunks-swapped", right_sums,
      change_of(chunk, 0, 40, "\x01") + change_of(chunk, 1, 40, "\0"s));
  add("log-header", 0, change_of(log_header, 0, 3, "x"));
  add("log-salt", right_sums, change_of(log_header, 0, 16, "x"));
  add("log-page-size", right_sums, change_of(log_header, 0, 8, "\0\0\x02\0"s));
  for (std::uint16_t frame : {0, 1, 2, 5}) {
    add("log-frame-" + std::to_string(frame), 0, change_of(log_frame, frame, 500, "x"));
    add("log-frame-page-" + std::to_string(frame), right_sums,
        change_of(log_frame, frame, 0, "\xff\xff\xff\xff"));
    add("log-frame-commit-" + std::to_string(frame), right_sums,
        change_of(log_frame, frame, 4, "\0\0\0\x02"s));
  }
  for (std::uint16_t number = 0; number < 40; number = static_cast<std::uint16_t>(number + 3)) {
    add("page-" + std::to_string(number), take_over, change_of(page, number, 50, "xxxx"));
    add("page-content-" + std::to_string(number), right_sums,
        change_of(page, number, 4000, "xxxx"));
    add("page-cells-" + std::to_string(number), right_sums | take_over,
        change_of(page, number, 3, "\0\xff\xff\xff"s));
  }
  add("page-size", right_sums, change_of(page, 0, 28, "\0\0\0\x01"s));
  add("page-schema", right_sums, change_of(page, 0, 40, "\xff\xff"));
  add("slot", right_sums | take_over, change_of(slots, 8, 32, "\xff\xff"));
  return all;
}

}  // namespace csv::fuzz
