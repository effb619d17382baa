#include "coordinator/volume/check.h"

#include <sys/stat.h>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/volume_format.h"
#include "tests/volume/lun_bench.h"
#include "tests/volume/repair_bed.h"

using namespace csv;
using namespace csv::volume;

namespace {

/// A formatted LUN, and a catalog of it that has been used.
struct UsedVolume {
  explicit UsedVolume(int files = 20) {
    auto path = bench.connect();
    auto made = format(
        path.io, {.label = "volume1", .cluster = 1, .wal_size = 16 << 20, .claim_space = false},
        random, WallTime{1000});
    REQUIRE_MESSAGE(made, made.error().message());
    info = *made;
    auto store = open_catalog_store(path.io, info, random);
    REQUIRE(store);
    auto catalog = Catalog::open(**store);
    REQUIRE(catalog);
    add(**catalog, 0, files);
    REQUIRE((*catalog)->checkpoint());
    add(**catalog, files, 1);  // and something in the log
  }
  static void add(Catalog& catalog, int first, int count) {
    for (int i = first; i < first + count;) {
      Catalog::Change change;
      change.body = [&](Catalog& c) -> Expected<void> {
        for (int end = std::min(i + 100, first + count); i < end; ++i) {
          auto file =
              CSV_TRY(c.make(kRootInode, "file" + std::to_string(i), {.mode = S_IFREG | 0644}, 1));
          auto runs = CSV_TRY(c.reserve_space(file.inode, 1, 0, 1));
          CSV_TRY(c.place(file.inode, 0, runs, BlockState::written, {}));
          CSV_TRY(c.grow(file.inode, kBlockSize, 1));
        }
        return {};
      };
      REQUIRE(catalog.run({&change, 1}));
      REQUIRE(change.result);
    }
  }
  CheckReport check_it() {
    auto path = bench.connect();
    auto report = check(path.io);
    REQUIRE_MESSAGE(report, report.error().message());
    auto counters = path.lun->counters();
    CHECK(counters.writes + counters.zeroes + counters.unmaps == 0);
    return *report;
  }
  bool finds(std::string_view what) {
    auto problems = check_it().problems;
    for (const auto& problem : problems)
      if (problem.find(what) != problem.npos) return true;
    for (const auto& problem : problems) MESSAGE(problem);
    return false;
  }

  LunBench bench;
  Random random{1};
  VolumeInfo info;
};

}  // namespace

TEST_CASE(
    "check: a volume whose log was never copied back is clean, seen whole and left as it is") {
  UsedVolume v;
  auto report = v.check_it();
  CHECK(report.problems.empty());
  CHECK(report.inodes == 22);
  CHECK(report.entries == 21);
  CHECK(report.extents == 21);
  CHECK(report.used_blocks == 21 + 3 * kChunkSize / kBlockSize);
  CHECK(report.used_blocks + report.free_blocks == v.info.data_size / kBlockSize);
}

TEST_CASE("check: says which superblock, chunk or page is damaged") {
  UsedVolume v;
  SUBCASE("a superblock") {
    v.bench.flip_bit(disk::kSuperblockB + 100);
    CHECK(v.finds("superblock B"));
  }
  SUBCASE("a chunk's header") {
    v.bench.flip_bit(v.info.chunks[1] + 20);
    CHECK(v.finds("chunk 1"));
  }
  SUBCASE("a page") {
    // Some of them are in the log, whole; without those that list the tables nothing is opened.
    bool found = false;
    for (std::uint32_t page = 2; page < 40 && !found; ++page) {
      v.bench.flip_bit(place_of_page(v.info, page) + 1000);
      found = v.finds("page") && v.finds("checksum");
      v.bench.flip_bit(place_of_page(v.info, page) + 1000);
    }
    CHECK(found);
  }
}

TEST_CASE("check: what is no volume is an error, not a report") {
  LunBench bench;
  auto path = bench.connect();
  CHECK(check(path.io).error() == Errc::refused);
}

TEST_CASE("catalog: opening reads as much of a volume with many files as of one with few") {
  auto reads_of = [](int files) {
    UsedVolume v{files};
    auto path = v.bench.connect();
    auto store = open_catalog_store(path.io, v.info, v.random);
    REQUIRE(store);
    auto before = path.lun->counters().reads;
    auto catalog = Catalog::open(**store);
    REQUIRE(catalog);
    return path.lun->counters().reads - before;
  };
  auto few = reads_of(20), many = reads_of(20000);
  CHECK(few > 0);
  CHECK(many <= few + 10);
}

TEST_CASE("check: without superblocks A and B it says what a repair can make them of") {
  RepairBed v;
  auto info = v.info();
  auto lose = [&](Copy copy) {
    v.bench.disk->poke(place_of(copy, info.lun_size), Buffer::zeroed(16384).span());
  };
  auto report_of = [&]() -> CheckReport {
    auto path = v.bench.connect();
    auto report = check(path.io);
    REQUIRE_MESSAGE(report, report.error().message());
    return *report;
  };
  auto advises = [](const CheckReport& report, std::string_view what) {
    std::string all;
    for (const auto& line : report.advice) all += line + "\n";
    CAPTURE(all);
    CHECK(all.find(what) != std::string::npos);
  };
  lose(Copy::a);
  CHECK(report_of().problems.size() == 1);
  SUBCASE("one is damaged, one is gone") { v.bench.flip_bit(place_of(Copy::b, 0) + 300); }
  SUBCASE("both are gone") { lose(Copy::b); }
  auto report = report_of();
  REQUIRE(report.problems.size() == 1);
  advises(report, "superblocks of volume volume1 anew, from superblock C");
  CHECK(report.inodes > 400);  // the catalog is looked at, too
}

TEST_CASE(
    "check: without any superblock it says what must be known, and of a copy of the catalog") {
  RepairBed v;
  auto info = v.info();
  for (auto copy : {Copy::a, Copy::b, Copy::c})
    v.bench.disk->poke(place_of(copy, info.lun_size), Buffer::zeroed(16384).span());
  auto path = v.bench.connect();
  auto report = check(path.io);
  REQUIRE_MESSAGE(report, report.error().message());
  CHECK(report->problems.size() == 1);
  REQUIRE(report->advice.size() == 1);
  CHECK(report->advice[0].find("--name, --cluster-id") != std::string::npos);
}

TEST_CASE("check: a LUN without a trace of a volume is none") {
  LunBench bench;
  auto path = bench.connect();
  auto report = check(path.io);
  REQUIRE_FALSE(report);
  CHECK(report.error() == Errc::refused);
}
