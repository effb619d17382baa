// Copies of the catalog: taken while it changes, found without it, and volumes made from them.
#include "coordinator/volume/catalog_copy.h"

#include <sys/stat.h>

#include <cstring>
#include <fstream>

#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/superblock.h"
#include "csvfs/base/log.h"
#include "tests/volume/repair_bed.h"

using namespace csv;
using namespace csv::volume;

namespace {

using Files = std::map<std::string, std::string>;

/// A volume that is open, with copies being taken of its catalog.
struct CopyBed : RepairBed {
  CopyBed() : RepairBed{1536} {}

  void make(Catalog& catalog, const std::string& name, std::uint64_t blocks = 1) {
    change(catalog, [&](Catalog& c) -> Expected<void> {
      auto file = CSV_TRY(c.make(kRootInode, name, {.mode = S_IFREG | 0644}, ++now));
      inodes[name] = file.inode;
      auto runs = CSV_TRY(c.reserve_space(file.inode, blocks, 0, 8));
      CSV_TRY(c.place(file.inode, 0, runs, BlockState::written, {}));
      CSV_TRY(c.grow(file.inode, blocks * kBlockSize, ++now));
      return {};
    });
  }
  /// Takes a copy; `meanwhile` runs between its pieces. Its file's path.
  Expected<std::string> copy(const std::function<void(Catalog&)>& meanwhile = {},
                             iscsi::RamPlan plan = {}) {
    auto path = bench.connect(std::move(plan));
    auto found = CSV_TRY(read_superblocks(path.io, true));
    auto store = CSV_TRY(open_catalog_store(path.io, found, random));
    auto catalog = CSV_TRY(Catalog::open(*store));
    CatalogCopy target;
    target.sequence = ++copies;
    target.slot = copies % 2;
    target.taken_at = WallTime{static_cast<std::int64_t>(copies) * 1'000'000'000};
    Catalog::Change places;
    places.body = [&](Catalog& c) -> Expected<void> {
      auto& space = copy_space(c);
      auto pages = CSV_TRY(space.pages());
      target.places = CSV_TRY(space.copy_places(target.slot, pages + 64));
      return {};
    };
    CSV_TRY(catalog->run({&places, 1}));
    CSV_TRY(places.result);
    CSV_TRY(catalog->checkpoint());
    auto taker = CSV_TRY(CopyTaker::begin(*store, target));
    std::string file = directory / fmt::format("copy-{}.db", copies);
    std::ofstream out{file, std::ios::binary};
    for (;;) {
      if (meanwhile) meanwhile(*catalog);
      auto pieces = CSV_TRY(taker->next());
      if (pieces.empty()) break;
      for (const auto& piece : pieces) {
        out.seekp(static_cast<std::streamoff>((piece.page - 1ull) * 4096));
        out.write(reinterpret_cast<const char*>(piece.content.data()),
                  static_cast<std::streamsize>(piece.content.size()));
      }
    }
    CHECK(taker->done() == taker->copy().pages);
    CSV_TRY(taker->finish());
    return file;
  }
  void destroy_catalog() {
    auto info_now = info();
    std::vector<std::byte> junk(4 << 20, std::byte{0x5a});
    for (auto at : info_now.chunks) bench.disk->poke(at, junk);
    bench.disk->poke(info_now.wal_offset, std::span{junk}.first(1 << 20));
  }
  std::vector<CatalogCopy> found() {
    auto path = bench.connect();
    auto copies_there = find_copies(path.io, {}, disk::kWalOffset, kRegionAlignment);
    REQUIRE(copies_there);
    return *copies_there;
  }

  std::uint64_t copies = 0;
  std::int64_t now = 10000;
};

bool says(const std::vector<std::string>& lines, std::string_view what) {
  for (const auto& line : lines)
    if (line.find(what) != line.npos) return true;
  for (const auto& line : lines) MESSAGE(line);
  return false;
}

}  // namespace

TEST_CASE("copy: is the catalog as it was when it began, whatever is changed meanwhile") {
  CopyBed v;
  // Enough for several pieces, and pages that are free.
  v.use([&](Catalog& catalog) {
    for (int i = 0; i < 90; ++i)
      RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
        for (int j = 0; j < 100; ++j) {
          auto name = fmt::format("a longer name, so that it takes more room {}-{}", i, j);
          CSV_TRY(c.make(kRootInode, name, {.mode = S_IFREG | 0644}, 1));
          if (i < 10) CSV_TRY(c.unlink(kRootInode, name, 1));
        }
        return {};
      });
  });
  auto before = v.files();
  int rounds = 0;
  auto file = v.copy([&](Catalog& catalog) {
    ++rounds;
    v.make(catalog, "meanwhile" + std::to_string(rounds));
    RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
      CSV_TRY(c.unlink(kRootInode,
                       fmt::format("a longer name, so that it takes more room {}-7", 10 + rounds),
                       1));
      return {};
    });
    REQUIRE(catalog.checkpoint());
  });
  REQUIRE_MESSAGE(file, file.error().message());
  CHECK(rounds > 2);
  auto copies = v.found();
  REQUIRE(copies.size() == 1);
  auto path = v.bench.connect();
  auto extracted = v.work_file();
  auto got = extract_copy(path.io, copies[0], extracted);
  REQUIRE_MESSAGE(got, got.error().message());
  for (const auto& each : {*file, extracted}) {
    CheckReport report;
    REQUIRE(check_catalog_file(each, copies[0].info, report, {}));
    for (const auto& problem : report.problems) MESSAGE(problem);
    CHECK(report.problems.empty());
    CHECK(report.entries == before.size());
  }
  CHECK(v.problems() == "");
}

TEST_CASE("copy: a thin LUN without space for it costs the copy on the LUN, not the file") {
  for (std::uint64_t taken : {0, 1, 2, 3, 4}) {
    CAPTURE(taken);
    CopyBed v;
    REQUIRE(v.copy());
    auto first = v.found().front().sequence;
    auto before = v.files();
    auto seen = std::make_shared<std::uint64_t>(0);
    auto groups = v.info().data_offset + 3 * kGroupSize;  // behind the catalog's own
    auto file = v.copy({}, [seen, taken, groups](const iscsi::RamCommand& command) {
      using Kind = iscsi::RamCommand::Kind;
      iscsi::RamFate fate;
      if (command.kind != Kind::write && command.kind != Kind::zero) return fate;
      if (command.offset < groups || command.offset > 1500ull << 20) return fate;
      if ((*seen)++ >= taken)
        fate.failure = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
      return fate;
    });
    REQUIRE_MESSAGE(file, file.error().message());
    CHECK(*seen > 0);
    CheckReport report;
    REQUIRE(check_catalog_file(*file, v.info(), report, {}));
    CHECK(report.problems.empty());
    CHECK(report.entries == before.size());
    auto there = v.found();
    REQUIRE(!there.empty());
    if (*seen > taken) CHECK(there.front().sequence == first);
    CHECK(v.problems() == "");
  }
}

TEST_CASE("copy: two are kept, and one that is cut short costs only the older") {
  CopyBed v;
  REQUIRE(v.copy());
  REQUIRE(v.copy());
  auto both = v.found();
  REQUIRE(both.size() == 2);
  CHECK(both[0].sequence == 2);
  CHECK(both[0].slot != both[1].slot);
  int whole = 0;
  for (std::uint64_t writes = 0; writes < 30 && whole < 2; ++writes) {
    auto seen = std::make_shared<std::uint64_t>(0);
    auto newest = v.found().front().sequence;
    auto third = v.copy({}, [seen, writes](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (command.kind != iscsi::RamCommand::Kind::write &&
          command.kind != iscsi::RamCommand::Kind::zero)
        return fate;
      if ((*seen)++ >= writes) fate.failure = Error{std::errc::io_error, "gone"};
      return fate;
    });
    auto now = v.found();
    REQUIRE(!now.empty());
    if (third)
      ++whole;
    else if (now.front().sequence != newest)
      CHECK(now.front().sequence == v.copies);  // its last answer was lost
    auto path = v.bench.connect();
    CHECK(extract_copy(path.io, now.front(), v.work_file()));
    if (!third) --v.copies;  // the same slot again
  }
  CHECK(whole > 0);
  CHECK(v.problems() == "");
}

TEST_CASE("copy: a byte of it that changed is found, and the older one is taken") {
  CopyBed v;
  auto old_files = v.files();
  REQUIRE(v.copy());
  v.use([&](Catalog& catalog) { v.make(catalog, "between"); });
  REQUIRE(v.copy());
  auto copies = v.found();
  REQUIRE(copies.size() == 2);
  v.bench.flip_bit(copies[0].places[0] + disk::kCopyPagesOffset + 5 * 4096 + 77);
  auto path = v.bench.connect();
  CHECK(extract_copy(path.io, copies[0], v.work_file()).error() == Errc::corrupt);
  v.destroy_catalog();
  auto repair = v.repair({.source = RepairOptions::Source::copy});
  CHECK(says(repair->findings(), "is damaged at page 6"));
  CHECK(v.files() == old_files);
}

TEST_CASE("copy: a page of an older copy in a newer one is found, though it is whole") {
  CopyBed v;
  REQUIRE(v.copy());
  v.use([&](Catalog& catalog) { v.make(catalog, "between"); });
  auto first = v.found().front();
  v.copies += 1;  // the same slot
  REQUIRE(v.copy());
  auto second = v.found().front();
  REQUIRE(second.places == first.places);
  // The page with the volume's numbers: every change changes it.
  auto at = second.places[0] + disk::kCopyPagesOffset + 4096;
  auto now = v.bench.content(at, 4096);
  v.copies += 1;
  v.use([&](Catalog& catalog) { v.make(catalog, "later"); });
  REQUIRE(v.copy());
  v.bench.disk->poke(at, now);
  auto path = v.bench.connect();
  auto newest = v.found().front();
  bool differs = v.bench.content(at, 4096) == now;
  CHECK(differs);
  CHECK(extract_copy(path.io, newest, v.work_file()).error() == Errc::corrupt);
}

TEST_CASE("copy: a volume whose catalog is gone is made from it, as it was then") {
  CopyBed v;
  v.use([&](Catalog& catalog) {
    v.make(catalog, "changed", 4);
    v.make(catalog, "removed", 600);
    RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
      auto session = CSV_TRY(c.new_session(NodeId{1}, 1));
      AdmissionRow row;
      row.key = make_key({7, NodeId{1}, KeyRole::mount, CSV_TRY(c.new_key_number())});
      row.session = session.id;
      return c.put_admission(row);
    });
  });
  auto before = v.files();
  auto info = v.info();
  REQUIRE(v.copy());
  std::uint64_t next = 0, freed_place = 0;
  v.use([&](Catalog& catalog) {
    freed_place = catalog.map(v.inodes.at("removed"), 0, 1)->front().lun_block;
    v.make(catalog, "made since");
    next = raw(v.inodes.at("made since"));
    RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
      CSV_TRY(c.unlink(kRootInode, "removed", 20000));
      return Expected<void>{c.reap(v.inodes.at("removed"))};
    });
    for (int i = 0; i < 20; ++i) {
      REQUIRE(catalog.maintain());
      auto dying = *catalog.dying(100);
      if (!dying.empty())
        RepairBed::change(catalog, [&](Catalog& c) { return c.make_free(dying); });
    }
    v.make(catalog, "in its place", 700);
  });
  SUBCASE("its pages are gone") { v.destroy_catalog(); }
  SUBCASE("so is everything but the data area's groups with the copy") {
    v.destroy_catalog();
    v.bench.disk->poke(0, Buffer::zeroed(16 << 20).span());
    v.bench.disk->poke(info.lun_size - (1 << 20), Buffer::zeroed(1 << 20).span());
  }
  for (auto path = v.bench.connect(); auto report = check(path.io);) {
    if (report->problems.empty()) break;
    std::string advice;
    for (const auto& line : report->advice) advice += line + "\n";
    CAPTURE(advice);
    CHECK(advice.find("of the catalog, taken 19") != std::string::npos);
    CHECK(advice.find("--repair --from copy") != std::string::npos);
    break;
  }
  bool comparable = false;
  SUBCASE("it is there, so that the difference can be told") {
    // Where the removed file was there is another now.
    v.sql(fmt::format("UPDATE extents SET lun_block={} WHERE inode={}", freed_place,
                      raw(v.inodes.at("in its place"))));
    comparable = true;
  }
  auto repair = v.repair({.source = RepairOptions::Source::copy});
  CHECK(v.files() == before);
  CHECK(says(repair->warnings(), "may show a mixture of old and new content"));
  if (comparable) {
    CHECK(says(repair->warnings(), "2 inodes are not in the copy"));
    CHECK(says(repair->warnings(), fmt::format("inode {} has blocks that were given to other files",
                                               raw(v.inodes.at("removed")))));
  }
  auto now = v.info();
  CHECK(now.id == info.id);
  CHECK(now.label == info.label);
  CHECK(now.cluster == info.cluster);
  v.use([&](Catalog& catalog) {
    CHECK(catalog.sessions()->empty());
    CHECK(catalog.admissions()->empty());
    v.make(catalog, "after");
    CHECK(raw(v.inodes.at("after")) > next + 1'000'000);
  });
  CHECK(v.problems() == "");
}

TEST_CASE("copy: a repair that loses rows says that there is a copy") {
  CopyBed v;
  REQUIRE(v.copy());
  v.empty_log();
  auto repair = v.prepare();
  CHECK(repair->warnings().empty());
  int told = 0;
  for (std::uint32_t page = 2; page < 8 && told == 0; ++page) {
    v.bench.flip_bit(place_of_page(v.info(), page) + 1000);
    repair = v.prepare();
    for (const auto& warning : repair->warnings())
      told += warning.find("--from copy") != std::string::npos ? 1 : 0;
  }
  CHECK(told == 1);
}

TEST_CASE("copy: a volume is made from a file, which must be of it and whole") {
  CopyBed v;
  auto before = v.files();
  auto file = v.copy();
  REQUIRE(file);
  v.destroy_catalog();
  // As good as no copies on the LUN.
  for (const auto& copy : v.found())
    for (auto at : copy.places) v.bench.disk->poke(at, Buffer::zeroed(4096).span());
  {
    auto path = v.bench.connect();
    auto none = Repair::prepare(
        path.io, {.work_file = v.work_file(), .source = RepairOptions::Source::copy});
    CHECK(none.error() == Errc::refused);
    auto broken = (v.directory / "broken.db").string();
    std::filesystem::copy_file(*file, broken);
    {
      std::fstream bytes{broken, std::ios::in | std::ios::out | std::ios::binary};
      bytes.seekp(3 * 4096 + 50);
      bytes.put('x');
    }
    auto damaged = Repair::prepare(
        path.io,
        {.work_file = v.work_file(), .source = RepairOptions::Source::file, .file = broken});
    CHECK(damaged.error() == Errc::corrupt);
  }
  v.repair({.source = RepairOptions::Source::file, .file = *file});
  CHECK(v.files() == before);
}

TEST_CASE("copy: one of a catalog whose index lied gets a new one") {
  CopyBed v;
  auto before = v.files();
  // A row of it has another name, behind a right checksum.
  auto page = static_cast<std::uint32_t>(
      v.value("SELECT rootpage FROM sqlite_schema WHERE name='entries_by_cookie'"));
  v.empty_log();
  auto bytes = v.bench.content(place_of_page(v.info(), page), disk::kPageSize);
  bytes[disk::kPageSize - disk::kPageReserve - 1] ^= std::byte{4};
  disk::PageTail tail{page_checksum(v.info().id, page, bytes), 0};
  std::memcpy(bytes.data() + disk::kPageSize - sizeof tail, &tail, sizeof tail);
  v.bench.disk->poke(place_of_page(v.info(), page), bytes);
  REQUIRE(v.problems().find("missing from index") != std::string::npos);
  auto file = v.copy();
  REQUIRE_MESSAGE(file, file.error().message());
  v.destroy_catalog();
  RepairOptions options;
  SUBCASE("from the LUN") { options.source = RepairOptions::Source::copy; }
  SUBCASE("from the file") {
    options.source = RepairOptions::Source::file;
    options.file = *file;
  }
  v.repair(options);
  CHECK(v.files() == before);
}

TEST_CASE("copy: a copy of another volume is refused") {
  CopyBed v;
  auto file = v.copy();
  REQUIRE(file);
  CopyBed other;
  {
    auto path = other.bench.connect();
    Random chance{99};
    REQUIRE(format(path.io,
                   {.label = "volume1", .cluster = 7, .overwrite = true, .wal_size = 16 << 20},
                   chance, WallTime{1}));
  }
  auto path = other.bench.connect();
  auto foreign = Repair::prepare(
      path.io, {.work_file = v.work_file(), .source = RepairOptions::Source::file, .file = *file});
  CHECK(foreign.error() == Errc::refused);
}
