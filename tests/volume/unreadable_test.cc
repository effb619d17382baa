// Blocks that the LUN answers with MEDIUM ERROR until they are written again.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <set>

#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/log_chain.h"
#include "coordinator/volume/superblock_search.h"
#include "coordinator/volume/wal_region.h"
#include "tests/volume/repair_bed.h"

namespace csv::volume {
namespace {

/// Sectors that cannot be read. Writing one gives it another place on the medium.
struct BadSectors {
  std::set<std::uint64_t> at;  ///< Of 512 bytes, by their offset.

  static iscsi::RamPlan plan(const std::shared_ptr<BadSectors>& bad) {
    return [bad](const iscsi::RamCommand& command) {
      using Kind = iscsi::RamCommand::Kind;
      iscsi::RamFate fate;
      auto from = bad->at.lower_bound(command.offset),
           to = bad->at.lower_bound(command.offset + command.length);
      if (from == to) return fate;
      if (command.kind == Kind::read) fate.failure = Error{Errc::bad_medium, "MEDIUM ERROR 11/00"};
      if (command.kind == Kind::write || command.kind == Kind::zero) bad->at.erase(from, to);
      return fate;
    };
  }
};

std::shared_ptr<BadSectors> bad_at(std::uint64_t at) {
  return std::make_shared<BadSectors>(BadSectors{{at / 512 * 512}});
}

std::string all_of(const std::vector<std::string>& lines) {
  std::string all;
  for (const auto& line : lines) all += line + "\n";
  return all;
}

/// Checks, repairs and checks again, the sector at `at` being bad. Returns what the first check
/// found.
std::string repaired(RepairBed& v, std::uint64_t at) {
  auto bad = bad_at(at);
  auto path = v.bench.connect(BadSectors::plan(bad));
  auto found = check(path.io);
  REQUIRE_MESSAGE(found, found.error().message());
  auto problems = all_of(found->problems);
  auto prepared = Repair::prepare(path.io, {.work_file = v.work_file()});
  REQUIRE_MESSAGE(prepared, prepared.error().message());
  CHECK((*prepared)->has_work());
  auto applied = (*prepared)->apply(path.io);
  REQUIRE_MESSAGE(applied, applied.error().message());
  auto after = check(path.io);
  REQUIRE_MESSAGE(after, after.error().message());
  CHECK_MESSAGE(after->problems.empty(), all_of(after->problems));
  return problems;
}

}  // namespace

TEST_CASE("unreadable: either superblock serves a takeover, which writes the other anew") {
  for (auto at : {disk::kSuperblockA, disk::kSuperblockB}) {
    CAPTURE(at);
    RepairBed v;
    auto before = v.info();
    auto bad = bad_at(at + 1024);
    auto path = v.bench.connect(BadSectors::plan(bad));
    auto mounts = read_superblocks(path.io, false);
    REQUIRE_MESSAGE(mounts, mounts.error().message());
    CHECK(*mounts == before);
    CHECK(!bad->at.empty());
    auto taken = read_superblocks(path.io, true);
    REQUIRE_MESSAGE(taken, taken.error().message());
    CHECK(*taken == before);
    CHECK(bad->at.empty());
  }
}

TEST_CASE("unreadable: a LUN that is away, or not this nexus's, says nothing of its blocks") {
  const Error reasons[] = {
      {Errc::lun_lost, "the connection ended"},
      {Errc::fenced, "RESERVATION CONFLICT on a registered nexus"},
      {Errc::reservation_conflict, "RESERVATION CONFLICT"},
      {std::errc::io_error, "NOT READY 08/00"},
  };
  for (const auto& reason : reasons) {
    CAPTURE(reason.message());
    RepairBed v;
    std::uint64_t written = 0;
    auto plan = [&](const iscsi::RamCommand& command) {
      using Kind = iscsi::RamCommand::Kind;
      iscsi::RamFate fate;
      if (command.kind == Kind::write || command.kind == Kind::zero) ++written;
      bool there = command.offset <= disk::kSuperblockA &&
                   disk::kSuperblockA < command.offset + command.length;
      if (command.kind == Kind::read && there) fate.failure = reason;
      return fate;
    };
    for (bool repair : {false, true}) {
      // One that has been fenced is at its end.
      auto path = v.bench.connect(plan);
      auto info = read_superblocks(path.io, repair);
      REQUIRE(!info);
      CHECK(info.error() == reason.code());
    }
    auto checking = v.bench.connect(plan), repairing = v.bench.connect(plan);
    CHECK(!check(checking.io));
    CHECK(!Repair::prepare(repairing.io, {.work_file = v.work_file()}));
    CHECK(written == 0);
  }
}

TEST_CASE("unreadable: both superblocks are damage, which a repair makes good") {
  RepairBed v;
  auto before = v.files();
  auto bad = bad_at(disk::kSuperblockA);
  bad->at.insert(disk::kSuperblockB + 512);
  auto path = v.bench.connect(BadSectors::plan(bad));
  auto found = read_superblocks(path.io, false);
  REQUIRE(!found);
  CHECK(found.error() == Errc::corrupt);
  auto prepared = Repair::prepare(path.io, {.work_file = v.work_file()});
  REQUIRE_MESSAGE(prepared, prepared.error().message());
  auto applied = (*prepared)->apply(path.io);
  REQUIRE_MESSAGE(applied, applied.error().message());
  CHECK(bad->at.empty());
  CHECK(v.problems() == "");
  CHECK(v.files() == before);
}

TEST_CASE("unreadable: a superblock is said by the check, and written anew by a repair") {
  for (auto copy : {Copy::a, Copy::b, Copy::c}) {
    RepairBed v;
    auto before = v.files();
    auto problems = repaired(v, place_of(copy, v.info().lun_size) + 512);
    CHECK_MESSAGE(problems.find("superblock") == 0, problems);
    CHECK_MESSAGE(problems.find("MEDIUM ERROR") != problems.npos, problems);
    CHECK(v.files() == before);
  }
}

TEST_CASE("unreadable: the header of a chunk is said, and costs nothing") {
  for (std::size_t chunk : {0, 1, 2}) {
    CAPTURE(chunk);
    RepairBed v;
    auto before = v.files();
    auto problems = repaired(v, v.info().chunks[chunk]);
    CHECK_MESSAGE(problems.find("catalog chunk " + std::to_string(chunk)) != problems.npos,
                  problems);
    CHECK(v.files() == before);
  }
}

TEST_CASE("unreadable: whichever page of the catalog it is, the others' rows are there") {
  for (std::uint32_t page : {1, 2, 3, 5, 8, 20, 30}) {
    CAPTURE(page);
    RepairBed v;
    v.empty_log();
    auto before = v.files().size();
    auto at = place_of_page(v.info(), page);
    REQUIRE(v.bench.content(at, 4096) != std::vector<std::byte>(4096));
    v.empty_log();
    auto problems = repaired(v, at + 512);
    CHECK_MESSAGE(problems.find("page " + std::to_string(page)) != problems.npos, problems);
    CHECK(v.files().size() >= std::min<std::size_t>(before, 300));
  }
}

TEST_CASE("unreadable: the log's mark, header and frames are damage to the log") {
  for (std::uint64_t place : {0, 1, 2, 3}) {
    CAPTURE(place);
    RepairBed v;
    v.use(
        [&](Catalog& catalog) {
          for (int i = 0; i < 20; ++i)
            RepairBed::change(catalog, [i](Catalog& c) -> Expected<void> {
              CSV_TRY(c.make(kRootInode, "later" + std::to_string(i), {.mode = 0100644}, 9));
              return {};
            });
        },
        false);
    auto info = v.info();
    auto at = place == 0   ? place_of_log_mark(info)
              : place == 1 ? info.wal_offset
              : place == 2 ? info.wal_offset + 5 * 4096
                           : info.wal_offset + (12ull << 20);
    if (place == 0 || place == 3) {
      // Nobody has to know it: the log can be seen to end, and all of it is there.
      auto path = v.bench.connect(BadSectors::plan(bad_at(at)));
      auto store = open_catalog_store(path.io, info, v.random);
      REQUIRE_MESSAGE(store, store.error().message());
      auto catalog = Catalog::open(**store);
      REQUIRE_MESSAGE(catalog, catalog.error().message());
      auto last = (*catalog)->lookup(kRootInode, "later19");
      CHECK_MESSAGE(last, last.error().message());
      continue;
    }
    {
      auto path = v.bench.connect(BadSectors::plan(bad_at(at)));
      auto store = open_catalog_store(path.io, info, v.random);
      REQUIRE(!store);
      CHECK(store.error() == Errc::corrupt);
      CHECK_MESSAGE(store.error().message().find("MEDIUM ERROR") != std::string::npos,
                    store.error().message());
    }
    auto problems = repaired(v, at);
    CHECK_MESSAGE(problems.find("the log") == 0, problems);
    CHECK(v.files().count("/later19") == 1);
  }
}

TEST_CASE(
    "unreadable: numbers given out by transactions that the log has lost are not given out again") {
  for (bool last_only : {false, true}) {
    CAPTURE(last_only);
    RepairBed v;
    v.empty_log();
    InodeId inode{};
    SessionId session{};
    std::uint64_t key = 0;
    auto give_out = [&](Catalog& catalog) {
      RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
        inode = CSV_TRY(c.make(kRootInode, "last", {.mode = S_IFREG | 0644}, 1)).inode;
        session = CSV_TRY(c.new_session(NodeId{1}, 1)).id;
        key = CSV_TRY(c.new_key_number());
        return {};
      });
    };
    v.use(give_out, false);
    auto [gone_inode, gone_session, gone_key] = std::tuple{inode, session, key};
    auto info = v.info();
    auto bad = std::make_shared<BadSectors>();
    if (last_only) {
      auto log = v.bench.content(info.wal_offset, 4 << 20);
      auto header = read_log_header(std::span{log}.first(disk::kWalHeaderSize));
      REQUIRE(header);
      auto sum = header->sum;
      std::uint64_t last = 0;
      for (auto at = disk::kWalHeaderSize; at + disk::kFrameSize <= log.size();
           at += disk::kFrameSize) {
        auto frame = read_log_frame(*header, sum, std::span{log}.subspan(at, disk::kFrameSize));
        if (!frame.valid) break;
        sum = frame.sum;
        last = at;
      }
      REQUIRE(last > 0);
      bad->at.insert((info.wal_offset + last + disk::kFrameSize / 2) / 512 * 512);
    } else {
      bad->at = {info.wal_offset, place_of_log_mark(info)};
    }
    {
      auto path = v.bench.connect(BadSectors::plan(bad));
      auto prepared = Repair::prepare(path.io, {.work_file = v.work_file()});
      REQUIRE_MESSAGE(prepared, prepared.error().message());
      REQUIRE((*prepared)->has_work());
      auto applied = (*prepared)->apply(path.io);
      REQUIRE_MESSAGE(applied, applied.error().message());
    }
    REQUIRE(v.files().count("/last") == 0);
    v.use(give_out);
    CHECK(raw(inode) > raw(gone_inode));
    CHECK(raw(session) > raw(gone_session));
    CHECK(key > gone_key);
  }
}

TEST_CASE("unreadable: a repair writes nothing where the LUN was away only while it looked") {
  for (bool superblocks : {false, true}) {
    CAPTURE(superblocks);
    RepairBed v;
    v.empty_log();
    v.use(
        [](Catalog& catalog) {
          RepairBed::change(catalog, [](Catalog& c) -> Expected<void> {
            CSV_TRY(c.make(kRootInode, "last", {.mode = S_IFREG | 0644}, 1));
            return {};
          });
        },
        false);
    auto info = v.info();
    bool away = true;
    auto path = v.bench.connect([&](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      auto end = superblocks ? disk::kSuperblockB + disk::kSuperblockSize
                             : info.wal_offset + info.wal_size;
      auto from = superblocks ? disk::kSuperblockA : info.wal_offset;
      if (away && command.kind == iscsi::RamCommand::Kind::read && command.offset < end &&
          from < command.offset + command.length)
        fate.failure = Error{Errc::bad_medium, "HARDWARE ERROR 44/00"};
      return fate;
    });
    auto prepared = Repair::prepare(path.io, {.work_file = v.work_file()});
    REQUIRE_MESSAGE(prepared, prepared.error().message());
    REQUIRE((*prepared)->has_work());
    away = false;
    auto applied = (*prepared)->apply(path.io);
    CHECK(!applied);
    if (!applied) CHECK(applied.error() == Errc::refused);
    CHECK(v.info() == info);
    CHECK(v.files().count("/last") == 1);
  }
}

TEST_CASE("unreadable: one block does not hide the chunks and copies around it") {
  RepairBed v;
  auto info = v.info();
  auto bad = bad_at(info.data_offset + 7 * kGroupSize);
  auto path = v.bench.connect(BadSectors::plan(bad));
  auto found = find_chunks(path.io, info.id, info.data_offset, kGroupSize);
  REQUIRE_MESSAGE(found, found.error().message());
  REQUIRE(*found);
  CHECK((*found)->places == info.chunks);
}

}  // namespace csv::volume
