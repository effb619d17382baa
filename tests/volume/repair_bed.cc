#include "tests/volume/repair_bed.h"

#include <sys/stat.h>

#include "coordinator/volume/wal_region.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

constexpr std::int64_t kNow = 5000;

Expected<void> describe(Catalog& catalog, InodeId directory, const std::string& path,
                        std::map<std::string, std::string>& out) {
  auto entries = CSV_TRY(catalog.list(directory, 2, 10000));
  for (const auto& entry : entries) {
    const auto& attr = entry.attr;
    auto text = fmt::format("inode={} mode={:o} nlink={} size={} blocks={} ", raw(attr.inode),
                            attr.mode, attr.nlink, attr.size, attr.blocks);
    if (S_ISREG(attr.mode)) {
      auto map = CSV_TRY(catalog.map(attr.inode, 0, (attr.size + kBlockSize - 1) / kBlockSize + 1));
      for (const auto& run : map)
        text += fmt::format("{}+{}@{}:{} ", run.file_block, run.count, run.lun_block,
                            static_cast<int>(run.state));
    }
    if (S_ISLNK(attr.mode)) text += "-> " + CSV_TRY(catalog.read_link(attr.inode));
    auto names = CSV_TRY(catalog.list_xattrs(attr.inode));
    for (std::size_t at = 0; at < names.size(); at = names.find('\0', at) + 1) {
      std::string name = names.c_str() + at;
      text += name + "=" + CSV_TRY(catalog.xattr(attr.inode, name)) + " ";
    }
    auto below = path + "/" + entry.name;
    out[below] = text;
    if (S_ISDIR(attr.mode)) CSV_TRY(describe(catalog, attr.inode, below, out));
  }
  return {};
}

}  // namespace

RepairBed::RepairBed(std::uint64_t mib, iscsi::RamDiskOptions options)
    : bench{std::move(options), mib} {
  std::string pattern = std::filesystem::temp_directory_path() / "csv-repair-XXXXXX";
  REQUIRE(::mkdtemp(pattern.data()) != nullptr);
  directory = pattern;
  auto path = bench.connect();
  auto made = format(path.io,
                     {.label = "volume1", .cluster = 7, .wal_size = 16 << 20, .claim_space = false},
                     random, WallTime{1000});
  REQUIRE_MESSAGE(made, made.error().message());
  use([&](Catalog& catalog) {
    change(catalog, [&](Catalog& c) -> Expected<void> {
      auto make = [&](const std::string& name, InodeId parent,
                      std::uint32_t mode) -> Expected<InodeId> {
        auto attr = CSV_TRY(c.make(parent, name, {.mode = mode}, kNow));
        inodes[name] = attr.inode;
        return attr.inode;
      };
      auto fill = [&](InodeId inode, std::uint64_t blocks) -> Expected<void> {
        auto runs = CSV_TRY(c.reserve_space(inode, blocks, 0, 8));
        CSV_TRY(c.place(inode, 0, runs, BlockState::written, {}));
        CSV_TRY(c.grow(inode, blocks * kBlockSize, kNow));
        return {};
      };
      auto dir = CSV_TRY(make("dir", kRootInode, S_IFDIR | 0755));
      auto below = CSV_TRY(make("below", dir, S_IFDIR | 0755));
      auto a = CSV_TRY(make("a", dir, S_IFREG | 0644));
      auto b = CSV_TRY(make("b", dir, S_IFREG | 0644));
      auto deep = CSV_TRY(make("deep", below, S_IFREG | 0600));
      CSV_TRY(fill(deep, 33));
      CSV_TRY(fill(a, 3000));
      CSV_TRY(c.fill(b, 0, 100));
      CSV_TRY(c.grow(b, 100 * kBlockSize, kNow));
      CSV_TRY(c.mark_written(b, 10, 20));
      auto linked = CSV_TRY(make("linked", kRootInode, S_IFREG | 0644));
      CSV_TRY(fill(linked, 5));
      CSV_TRY(c.link(linked, dir, "link", kNow));
      CSV_TRY(c.make(kRootInode, "symlink", {.mode = S_IFLNK | 0777, .target = "there"}, kNow));
      CSV_TRY(c.set_xattr(a, "user.x", "value", 0, kNow));
      CSV_TRY(c.set_xattr(a, "user.long", std::string(60000, 'l'), 0, kNow));
      auto many = CSV_TRY(make("many", kRootInode, S_IFDIR | 0755));
      for (int i = 0; i < 400; ++i) {
        auto file = CSV_TRY(make("file" + std::to_string(i), many, S_IFREG | 0644));
        CSV_TRY(fill(file, 3));
      }
      auto orphan = CSV_TRY(make("orphan", kRootInode, S_IFREG | 0644));
      CSV_TRY(fill(orphan, 10));
      CSV_TRY(c.unlink(kRootInode, "orphan", kNow));
      return {};
    });
  });
  REQUIRE(problems() == "");
}

void RepairBed::change(Catalog& catalog, const std::function<Expected<void>(Catalog&)>& body) {
  Catalog::Change one;
  one.body = [&](Catalog& c) { return body(c); };
  auto ran = catalog.run({&one, 1});
  REQUIRE_MESSAGE(ran, ran.error().message());
  REQUIRE_MESSAGE(one.result, one.result.error().message());
}

VolumeInfo RepairBed::grow_catalog() {
  auto at = info().data_offset + 10 * kChunkSize;
  sql("INSERT INTO chunks(number,at) VALUES(3," + std::to_string(at) + ")");
  use([](Catalog&) {});  // opening finishes the growth
  auto grown = info();
  REQUIRE(grown.chunks.size() == 4);
  return grown;
}

VolumeInfo RepairBed::info() {
  auto path = bench.connect();
  auto found = read_superblocks(path.io, false);
  REQUIRE_MESSAGE(found, found.error().message());
  return *found;
}

void RepairBed::use(const std::function<void(Catalog&)>& body, bool checkpoint) {
  auto path = bench.connect();
  auto found = read_superblocks(path.io, true);
  REQUIRE_MESSAGE(found, found.error().message());
  auto store = open_catalog_store(path.io, *found, random);
  REQUIRE_MESSAGE(store, store.error().message());
  auto catalog = Catalog::open(**store);
  REQUIRE_MESSAGE(catalog, catalog.error().message());
  body(**catalog);
  if (checkpoint) REQUIRE((*catalog)->checkpoint());
}

void RepairBed::sql(const std::string& statements) {
  auto path = bench.connect();
  auto store = open_catalog_store(path.io, info(), random);
  REQUIRE_MESSAGE(store, store.error().message());
  auto database = Database::open((*store)->path(), (*store)->vfs(), {});
  REQUIRE_MESSAGE(database, database.error().message());
  auto done = (*database)->execute(statements);
  REQUIRE_MESSAGE(done, done.error().message());
  REQUIRE((*database)->checkpoint());
}

std::int64_t RepairBed::value(const char* query) {
  auto path = bench.connect();
  auto store = open_catalog_store(path.io, info(), random, StoreAccess::read_only);
  REQUIRE_MESSAGE(store, store.error().message());
  auto database = Database::open((*store)->path(), (*store)->vfs(), {.read_only = true});
  REQUIRE_MESSAGE(database, database.error().message());
  auto found = (*database)->value(query);
  REQUIRE_MESSAGE(found, found.error().message());
  return *found;
}

std::map<std::string, std::string> RepairBed::files() {
  std::map<std::string, std::string> out;
  use([&](Catalog& catalog) {
    Catalog::Change look;
    look.read_only = true;
    look.body = [&](Catalog& c) { return describe(c, kRootInode, "", out); };
    REQUIRE(catalog.run({&look, 1}));
    REQUIRE_MESSAGE(look.result, look.result.error().message());
  });
  return out;
}

std::string RepairBed::problems() {
  auto path = bench.connect();
  auto report = check(path.io);
  if (!report) return report.error().message();
  std::string all;
  for (const auto& problem : report->problems) all += problem + "\n";
  return all;
}

std::unique_ptr<Repair> RepairBed::prepare(RepairOptions options) {
  auto path = bench.connect();
  if (options.work_file.empty()) options.work_file = work_file();
  auto prepared = Repair::prepare(path.io, options);
  REQUIRE_MESSAGE(prepared, prepared.error().message());
  auto counters = path.lun->counters();
  CHECK(counters.writes + counters.zeroes + counters.unmaps == 0);
  return *std::move(prepared);
}

std::unique_ptr<Repair> RepairBed::repair(RepairOptions options) {
  auto repair = prepare(std::move(options));
  auto path = bench.connect();
  std::uint64_t told = 0, whole = 0;
  auto applied = repair->apply(path.io, [&](std::uint64_t done, std::uint64_t of) {
    CHECK(done > told);
    told = done;
    whole = of;
  });
  CHECK(told == whole);
  REQUIRE_MESSAGE(applied, applied.error().message());
  auto left = problems();
  CHECK_MESSAGE(left == "", left);
  return repair;
}

void RepairBed::empty_log() {
  auto path = bench.connect();
  REQUIRE(WalRegion::clear(path.io, info()));
}

}  // namespace csv::volume
