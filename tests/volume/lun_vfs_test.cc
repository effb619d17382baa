#include "coordinator/volume/lun_vfs.h"

#include <doctest/doctest.h>
#include <sqlite3.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <set>
#include <string>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"
#include "tests/volume/lun_bench.h"

using namespace csv;
using namespace csv::volume;
using iscsi::RamCommand;
using iscsi::RamDiskOptions;
using iscsi::RamFate;

namespace {

/// A connection as the catalog makes one.
class Sql {
 public:
  explicit Sql(const CatalogStore& store, int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE) {
    opened_ = sqlite3_open_v2(store.path(), &db_, flags, store.vfs());
    sqlite3_extended_result_codes(db_, 1);
    int reserve = disk::kPageReserve;
    sqlite3_file_control(db_, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserve);
    if (opened_ == SQLITE_OK && ask("PRAGMA journal_mode") != "wal")
      opened_ = run("PRAGMA journal_mode=WAL");
    if (opened_ == SQLITE_OK) opened_ = run("PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0");
  }
  Sql(const Sql&) = delete;
  Sql& operator=(const Sql&) = delete;
  ~Sql() { CHECK(sqlite3_close(db_) == SQLITE_OK); }

  [[nodiscard]] int opened() const { return opened_; }
  int run(const std::string& sql) {
    return sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  }
  /// The first column of the first row.
  std::string ask(const std::string& sql) {
    std::string answer;
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v2(db_, sql.c_str(), -1, &statement, nullptr) != SQLITE_OK)
      return sqlite3_errmsg(db_);
    if (int step = sqlite3_step(statement); step == SQLITE_ROW) {
      const auto* text = sqlite3_column_text(statement, 0);
      answer = text != nullptr ? reinterpret_cast<const char*>(text) : "NULL";
    } else {
      answer = fmt::format("error {}", sqlite3_extended_errcode(db_));
    }
    sqlite3_finalize(statement);
    return answer;
  }
  /// The log stays as it is when the last connection closes: as after a crash.
  void leave_log() { sqlite3_db_config(db_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr); }
  int checkpoint(int mode = SQLITE_CHECKPOINT_PASSIVE) {
    return sqlite3_wal_checkpoint_v2(db_, "main", mode, nullptr, nullptr);
  }
  sqlite3* db() { return db_; }

 private:
  sqlite3* db_ = nullptr;
  int opened_ = SQLITE_OK;
};

std::unique_ptr<CatalogStore> open(Path& path, const VolumeInfo& info, Random& random,
                                   StoreAccess access = StoreAccess::read_write) {
  auto store = open_catalog_store(path.io, info, random, access);
  REQUIRE_MESSAGE(store, store.error().message());
  return *std::move(store);
}

const char* const kFill =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {}) "
    "INSERT INTO t(id, body) SELECT i + {}, randomblob({}) FROM n";
std::string fill(int rows, int above, int bytes) {
  return fmt::format(fmt::runtime(kFill), rows, above, bytes);
}
const char* const kTable = "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)";

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{}; });
}

}  // namespace

TEST_CASE("catalog store: what was committed is there for the next one, closed well or not") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  for (bool well : {true, false}) {
    CAPTURE(well);
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    REQUIRE(sql.opened() == SQLITE_OK);
    CHECK(sql.ask("PRAGMA journal_mode") == "wal");
    sql.run("DROP TABLE IF EXISTS t");
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    CHECK(sql.run(fill(1000, well ? 0 : 1, 300)) == SQLITE_OK);
    if (!well) sql.leave_log();
  }
  // Closed well, the log is gone; left as it was, it is not.
  CHECK_FALSE(all_zero(bench.content(info.wal_offset, 32)));
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    CHECK(sql.ask("SELECT count(*) FROM t") == "1000");
    CHECK(sql.ask("SELECT min(id) FROM t") == "2");
    CHECK(sql.ask("PRAGMA integrity_check") == "ok");
    CHECK(store->health());
  }
  CHECK(all_zero(bench.content(info.wal_offset, 32)));
}

TEST_CASE("catalog store: every page on the LUN carries the checksum of its volume and number") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  std::uint32_t pages = 0;
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    REQUIRE(sql.run(fill(500, 0, 700)) == SQLITE_OK);
    pages = static_cast<std::uint32_t>(std::stoul(sql.ask("PRAGMA page_count")));
  }
  REQUIRE(pages > 50);
  for (std::uint32_t page = 1; page <= pages; ++page) {
    auto bytes = bench.content(place_of_page(info, page), disk::kPageSize);
    Le32 crc;
    std::memcpy(&crc, bytes.data() + 4088, 4);
    CHECK(crc == page_checksum(info.id, page, bytes));
    CHECK(crc != page_checksum(info.id, page + 1, bytes));
  }
}

namespace {

/// An empty catalog with one table, closed well.
VolumeInfo with_table(LunBench& bench) {
  auto info = prepared(bench);
  Random random{1};
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql sql{*store};
  REQUIRE(sql.run("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB, sum INTEGER)") == SQLITE_OK);
  return info;
}

/// Commits numbered transactions until something fails; some of them are followed by a checkpoint.
/// How many were acknowledged.
int work(Sql& sql, int transactions) {
  for (int i = 1; i <= transactions; ++i) {
    auto step = fmt::format(
        "BEGIN; INSERT INTO t VALUES({0}, zeroblob({1}), 0); UPDATE t SET sum = sum + 1;"
        "UPDATE t SET body = randomblob({1}) WHERE id % 3 = {0} % 3; DELETE FROM t WHERE id = {0} "
        "- 9;"
        "COMMIT",
        i, 500 * (i % 11));
    if (sql.run(step) != SQLITE_OK) return i - 1;
    if (i % 4 == 0 && sql.checkpoint() != SQLITE_OK) return i;
  }
  return transactions;
}

/// The first `acknowledged` transactions are there, whole; perhaps one more.
void check_survived(LunBench& bench, const VolumeInfo& info, int acknowledged) {
  Random random{99};
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql sql{*store};
  REQUIRE_MESSAGE(sql.opened() == SQLITE_OK, store->health().error().message());
  CHECK(sql.ask("PRAGMA integrity_check") == "ok");
  auto last = std::stoi(sql.ask("SELECT coalesce(max(id), 0) FROM t"));
  CHECK(last >= acknowledged);
  CHECK(last <= acknowledged + 1);
  CHECK(sql.ask("SELECT count(*) FROM t") == std::to_string(std::min(last, 9)));
  CHECK(sql.ask("SELECT count(*) FROM t WHERE sum != (SELECT max(id) FROM t) - id + 1") == "0");
  CHECK(store->health());
}

/// The power fails at the n-th write the catalog makes, for every n.
void lose_power_everywhere(const RamDiskOptions& options) {
  constexpr int kTransactions = 40;
  int crashes = 0;
  for (int at = 1;; ++at) {
    CAPTURE(at);
    LunBench bench{options};
    auto info = with_table(bench);
    Random random{static_cast<std::uint64_t>(at)};
    auto writes = std::make_shared<std::atomic<int>>(0);
    int acknowledged = 0;
    {
      auto path = bench.connect([writes, at](const RamCommand& command) {
        RamFate fate;
        if (command.kind != RamCommand::Kind::write || ++*writes < at) return fate;
        // Some of its blocks are written, and nothing after it: the path is gone.
        fate.failure = Error{Errc::lun_lost, "power loss"};
        fate.torn_blocks = *writes == at ? command.number % (command.length / 512 + 1) : 0;
        return fate;
      });
      auto store = open(path, info, random);
      Sql sql{*store};
      if (sql.opened() == SQLITE_OK) acknowledged = work(sql, kTransactions);
      sql.leave_log();
      if (writes->load() >= at) CHECK_FALSE(store->health());
    }
    bool crashed = writes->load() >= at;
    bench.disk->power_loss(random);
    check_survived(bench, info, acknowledged);
    if (!crashed) {
      CHECK(acknowledged == kTransactions);
      break;
    }
    ++crashes;
  }
  CHECK(crashes > 40);  // Otherwise the run proved nothing.
}

RamDiskOptions with_cache(bool fua) {
  RamDiskOptions options;
  options.write_cache = true;
  options.fua = fua;
  return options;
}

}  // namespace

TEST_CASE("catalog store: power lost at any write keeps what was acknowledged, without a cache") {
  lose_power_everywhere({});
}
TEST_CASE(
    "catalog store: power lost at any write keeps what was acknowledged, volatile cache, FUA") {
  lose_power_everywhere(with_cache(true));
}
TEST_CASE(
    "catalog store: power lost at any write keeps what was acknowledged, volatile cache, no FUA") {
  lose_power_everywhere(with_cache(false));
}

TEST_CASE("catalog store: an error of any command stops it, and nothing is written after it") {
  int failures = 0;
  for (std::uint64_t at = 1;; ++at) {
    CAPTURE(at);
    LunBench bench{with_cache(false)};
    auto info = with_table(bench);
    Random random{at};
    auto commands = std::make_shared<std::atomic<std::uint64_t>>(0);
    auto of_read = std::make_shared<std::atomic<bool>>(false);
    bool reached = false;
    {
      auto path = bench.connect([commands, of_read, at](const RamCommand& command) {
        RamFate fate;
        if (++*commands != at) return fate;
        fate.failure = Error{Errc::bad_medium, "sense 3/11/00"};
        *of_read = command.kind == RamCommand::Kind::read;
        return fate;
      });
      auto store = open_catalog_store(path.io, info, random);
      if (!store) {
        CHECK(store.error().message().find("3/11/00") != std::string::npos);
        ++failures;
        continue;
      }
      Sql sql{**store};
      bool opening = commands->load() >= at;
      if (sql.opened() == SQLITE_OK) work(sql, 12);
      reached = commands->load() >= at;
      // What was read for the second time is whole, or was not needed.
      if (opening && *of_read && (*store)->health()) continue;
      if (reached) {
        CHECK_FALSE((*store)->health());
        CHECK((*store)->health().error().message().find("3/11/00") != std::string::npos);
        auto before = commands->load();
        CHECK(sql.run("CREATE TABLE other(x)") != SQLITE_OK);
        CHECK_FALSE((*store)->add_chunk(info.data_offset + kChunkSize));
        CHECK(commands->load() == before);
        ++failures;
      }
    }
    if (!reached) break;
  }
  CHECK(failures > 40);
}

TEST_CASE("catalog store: a takeover reads the log in few large reads") {
  LunBench bench;
  auto info = prepared(bench, 64ull << 20);
  Random random{1};
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    for (int i = 0; i < 20; ++i) REQUIRE(sql.run(fill(300, 1000 * i, 3500)) == SQLITE_OK);
    sql.leave_log();
  }
  auto path = bench.connect();
  auto store = open(path, info, random);
  {
    Sql sql{*store};
    CHECK(sql.ask("SELECT count(*) FROM t") == "6000");
    // 20 MiB and more of frames, read in two steps of 16 reads; then a few pages.
    CHECK(path.lun->counters().read_bytes >= (32u << 20));
    CHECK(path.lun->counters().reads < 50);
    CHECK(path.lun->counters().writes == 0);
    sql.leave_log();
  }
}

TEST_CASE("catalog store: an empty log costs one step of reading, however large its region") {
  LunBench bench;
  auto info = prepared(bench, 64ull << 20);
  Random random{1};
  auto path = bench.connect();
  auto store = open(path, info, random);
  CHECK(path.lun->counters().reads < 20);
}

TEST_CASE(
    "catalog store: a checkpoint's pages go to the LUN sorted and joined, after one write of "
    "frames") {
  LunBench bench;
  auto info = prepared(bench, 16ull << 20);
  Random random{1};
  auto places = std::make_shared<std::vector<std::uint64_t>>();
  auto path = bench.connect([places](const RamCommand& command) {
    if (command.kind == RamCommand::Kind::write) places->push_back(command.offset);
    return RamFate{};
  });
  auto store = open(path, info, random);
  Sql sql{*store};
  REQUIRE(sql.run(kTable) == SQLITE_OK);
  REQUIRE(sql.run(fill(1500, 0, 3000)) == SQLITE_OK);
  REQUIRE(sql.checkpoint() == SQLITE_OK);
  // Random places, so that the frames are in no useful order.
  REQUIRE(sql.run("UPDATE t SET body = randomblob(3000) WHERE id * 7919 % 10 = 0") == SQLITE_OK);
  places->clear();
  REQUIRE(sql.run("UPDATE t SET body = randomblob(3000) WHERE id = 7") == SQLITE_OK);
  CHECK(places->size() == 2);  // The frames, and beside them the log's mark.
  places->clear();
  REQUIRE(sql.checkpoint() == SQLITE_OK);
  REQUIRE(places->size() > 100);
  // As far as the depth lets them: answers submit what comes next while others are under way.
  auto sorted = *places;
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i + 64 < sorted.size(); ++i) CHECK((*places)[i] < sorted[i + 64]);
  places->clear();
  REQUIRE(sql.run("UPDATE t SET body = randomblob(3000)") == SQLITE_OK);
  places->clear();
  REQUIRE(sql.checkpoint() == SQLITE_OK);
  CHECK(places->size() < 20);  // Some 1500 pages that lie side by side.
}

TEST_CASE("catalog store: a flipped bit in a page stops it and is named") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    REQUIRE(sql.run(fill(100, 0, 3000)) == SQLITE_OK);
  }
  auto place = place_of_page(info, 17);
  bench.flip_bit(place + 1234);
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql sql{*store};
  CHECK(sql.ask("SELECT count(*) FROM t WHERE instr(body, 'x')").starts_with("error"));
  auto said = store->health().error();
  CHECK(said == Errc::corrupt);
  CHECK(said.message().find("page 17 ") != std::string::npos);
  CHECK(said.message().find(std::to_string(place)) != std::string::npos);
  CHECK(sql.run("INSERT INTO t VALUES(1000, 'x')") != SQLITE_OK);
}

TEST_CASE("catalog store: a header that tells of pages of another size stops it, checksum or not") {
  for (unsigned size : {0x0200u, 0x0800u, 0x2000u, 0x4000u, 0x0001u})
    for (bool right_sum : {true, false}) {
      CAPTURE(size);
      CAPTURE(right_sum);
      LunBench bench;
      auto info = prepared(bench, 8ull << 20);
      Random random{1};
      {
        auto path = bench.connect();
        auto store = open(path, info, random);
        Sql sql{*store};
        REQUIRE(sql.run(kTable) == SQLITE_OK);
        REQUIRE(sql.checkpoint() == SQLITE_OK);
      }
      auto at = place_of_page(info, 1);
      auto page = bench.content(at, disk::kPageSize);
      page[16] = static_cast<std::byte>(size >> 8);
      page[17] = static_cast<std::byte>(size);
      disk::PageTail tail{page_checksum(info.id, 1, page), 0};
      if (right_sum) std::memcpy(page.data() + disk::kPageSize - sizeof tail, &tail, sizeof tail);
      bench.disk->poke(at, page);
      auto path = bench.connect();
      auto store = open(path, info, random);
      Sql sql{*store};
      CHECK(sql.run("SELECT count(*) FROM sqlite_schema") != SQLITE_OK);
    }
}

TEST_CASE("catalog store: a page in another one's place, or of another volume, is not taken") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    REQUIRE(sql.run(fill(100, 0, 3000)) == SQLITE_OK);
  }
  SUBCASE("another place") {
    bench.disk->poke(place_of_page(info, 20), bench.content(place_of_page(info, 21), 4096));
  }
  SUBCASE("another volume") {
    auto bytes = bench.content(place_of_page(info, 20), 4096);
    auto other = info.id;
    other[0] ^= std::byte{1};
    Le32 crc{page_checksum(other, 20, bytes)};
    std::memcpy(bytes.data() + 4088, &crc, 4);
    bench.disk->poke(place_of_page(info, 20), bytes);
  }
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql sql{*store};
  CHECK(sql.ask("SELECT count(*) FROM t WHERE instr(body, 'x')").starts_with("error"));
  CHECK(store->health().error().message().find("page 20 ") != std::string::npos);
}

TEST_CASE("catalog store: a chunk whose header is not its own is neither read nor written") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  auto path = bench.connect();
  SUBCASE("damaged") { bench.flip_bit(info.chunks[0] + 40); }
  SUBCASE("of another volume") {
    auto other = info.id;
    other[3] ^= std::byte{1};
    bench.disk->poke(info.chunks[0], encode_chunk_header(other, 0, info.chunks[0], 1).span());
  }
  SUBCASE("another one's") {
    bench.disk->poke(info.chunks[0], encode_chunk_header(info.id, 1, info.chunks[0], 1).span());
  }
  SUBCASE("a copy from elsewhere") {
    bench.disk->poke(info.chunks[0], encode_chunk_header(info.id, 0, 4096, 1).span());
  }
  auto store = open_catalog_store(path.io, info, random);
  CHECK(store.error() == Errc::corrupt);
  CHECK(chunk_problems(path.io, info)->size() == 1);
}

TEST_CASE("catalog store: pages torn by a checkpoint that a crash cut short are whole in the log") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    REQUIRE(sql.run(fill(50, 0, 3000)) == SQLITE_OK);
    REQUIRE(sql.checkpoint() == SQLITE_OK);
    // All pages change, the first too, and stay in the log.
    REQUIRE(sql.run(fill(50, 100, 3000)) == SQLITE_OK);
    REQUIRE(sql.run("UPDATE t SET body = randomblob(3000)") == SQLITE_OK);
    sql.leave_log();
  }
  for (std::uint32_t page = 1; page < 40; ++page) bench.flip_bit(place_of_page(info, page) + 2000);
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql sql{*store};
  CHECK(sql.ask("SELECT count(*) FROM t") == "100");
  CHECK(sql.ask("PRAGMA integrity_check") == "ok");
}

TEST_CASE("catalog store: another connection reads the last commit beside an open transaction") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql writer{*store}, reader{*store};
  REQUIRE(writer.run(kTable) == SQLITE_OK);
  REQUIRE(writer.run(fill(10, 0, 10)) == SQLITE_OK);
  REQUIRE(writer.run("BEGIN IMMEDIATE") == SQLITE_OK);
  REQUIRE(writer.run(fill(10, 100, 10)) == SQLITE_OK);
  CHECK(reader.ask("SELECT count(*) FROM t") == "10");
  CHECK(reader.run("BEGIN IMMEDIATE") == SQLITE_BUSY);
  REQUIRE(writer.run("COMMIT") == SQLITE_OK);
  CHECK(reader.ask("SELECT count(*) FROM t") == "20");

  // A reader keeps its snapshot over commits and checkpoints.
  REQUIRE(reader.run("BEGIN") == SQLITE_OK);
  CHECK(reader.ask("SELECT count(*) FROM t") == "20");
  REQUIRE(writer.run(fill(10, 200, 10)) == SQLITE_OK);
  CHECK(writer.checkpoint() == SQLITE_OK);
  REQUIRE(writer.run(fill(10, 300, 10)) == SQLITE_OK);
  CHECK(writer.checkpoint(SQLITE_CHECKPOINT_RESTART) == SQLITE_BUSY);
  CHECK(reader.ask("SELECT count(*) FROM t") == "20");
  REQUIRE(reader.run("COMMIT") == SQLITE_OK);
  CHECK(reader.ask("SELECT count(*) FROM t") == "40");
  CHECK(writer.checkpoint(SQLITE_CHECKPOINT_RESTART) == SQLITE_OK);
  CHECK(store->health());
}

TEST_CASE("catalog store: two volumes live in one process without touching each other") {
  LunBench one, two;
  auto info = prepared(one), other = prepared(two);
  Random random{1};
  auto path = one.connect(), other_path = two.connect();
  auto store = open(path, info, random), other_store = open(other_path, other, random);
  CHECK(std::string{store->vfs()} != other_store->vfs());
  Sql sql{*store}, other_sql{*other_store};
  REQUIRE(sql.run(kTable) == SQLITE_OK);
  REQUIRE(other_sql.run(kTable) == SQLITE_OK);
  for (int i = 0; i < 20; ++i) {
    REQUIRE(sql.run(fill(10, i * 10, 100)) == SQLITE_OK);
    REQUIRE(other_sql.run(fill(5, i * 10, 100)) == SQLITE_OK);
  }
  CHECK(sql.ask("SELECT count(*) FROM t") == "200");
  CHECK(other_sql.ask("SELECT count(*) FROM t") == "100");
}

TEST_CASE("catalog store: the same seed writes the same bytes, another one others") {
  auto digest = [](std::uint64_t seed) {
    LunBench bench;
    auto info = prepared(bench);
    Random random{seed};
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    CHECK(sql.run(kTable) == SQLITE_OK);
    for (int i = 0; i < 9; ++i) {
      CHECK(sql.run(fill(10, i * 10, 1000)) == SQLITE_OK);
      if (i == 4) CHECK(sql.checkpoint(SQLITE_CHECKPOINT_RESTART) == SQLITE_OK);
    }
    sql.leave_log();
    return crc32c(bench.content(info.wal_offset, info.wal_size));
  };
  CHECK(digest(5) == digest(5));
  CHECK(digest(5) != digest(6));
}

TEST_CASE("catalog store: a log beyond its region stops it with that reason") {
  LunBench bench;
  auto info = prepared(bench, 4ull << 20);
  Random random{1};
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql sql{*store};
  REQUIRE(sql.run(kTable) == SQLITE_OK);
  CHECK(sql.run(fill(2000, 0, 3000)) == SQLITE_IOERR_WRITE);
  CHECK(store->health().error().message().find("beyond its 4 MiB") != std::string::npos);
  CHECK(sql.run("INSERT INTO t VALUES(1, 'x')") != SQLITE_OK);
}

TEST_CASE("catalog store: a transaction larger than SQLite's cache commits, and rolls back") {
  LunBench bench;
  auto info = prepared(bench, 64ull << 20);
  Random random{1};
  auto path = bench.connect();
  auto store = open(path, info, random);
  Sql sql{*store};
  REQUIRE(sql.run("PRAGMA cache_size=20") == SQLITE_OK);
  REQUIRE(sql.run(kTable) == SQLITE_OK);
  REQUIRE(sql.run("BEGIN") == SQLITE_OK);
  REQUIRE(sql.run(fill(1000, 0, 2000)) == SQLITE_OK);
  REQUIRE(sql.run("SAVEPOINT a") == SQLITE_OK);
  REQUIRE(sql.run("UPDATE t SET body = randomblob(1000)") == SQLITE_OK);
  REQUIRE(sql.run("ROLLBACK TO a") == SQLITE_OK);
  REQUIRE(sql.run("UPDATE t SET id = -id WHERE id % 2 = 0") == SQLITE_OK);
  REQUIRE(sql.run("COMMIT") == SQLITE_OK);
  CHECK(sql.ask("SELECT sum(length(body)) FROM t") == "2000000");
  REQUIRE(sql.run("BEGIN; DELETE FROM t; ROLLBACK") == SQLITE_OK);
  CHECK(sql.ask("SELECT count(*) FROM t WHERE id < 0") == "500");
  REQUIRE(sql.run("DELETE FROM t WHERE id > 100") == SQLITE_OK);
  REQUIRE(sql.checkpoint() == SQLITE_OK);
  REQUIRE(sql.run("VACUUM") == SQLITE_OK);
  CHECK(sql.ask("PRAGMA integrity_check") == "ok");
  CHECK(store->health());
}

TEST_CASE("catalog store: read only, it recovers the log and leaves the LUN as it is") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    Sql sql{*store};
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    REQUIRE(sql.run(fill(50, 0, 300)) == SQLITE_OK);
    sql.leave_log();
  }
  auto path = bench.connect();
  auto store = open(path, info, random, StoreAccess::read_only);
  {
    Sql sql{*store, SQLITE_OPEN_READONLY};
    CHECK(sql.ask("SELECT count(*) FROM t") == "50");
    CHECK(sql.run(fill(1, 100, 300)) == SQLITE_READONLY);
    CHECK(sql.ask("PRAGMA integrity_check") == "ok");
  }
  CHECK(path.lun->counters().writes == 0);
  CHECK(path.lun->counters().zeroes == 0);
  CHECK_FALSE(store->add_chunk(info.data_offset + kChunkSize));
  CHECK(store->health());
}

TEST_CASE("catalog store: pages without room for the checksum are refused") {
  LunBench bench;
  auto info = prepared(bench);
  Random random{1};
  auto path = bench.connect();
  auto store = open(path, info, random);
  sqlite3* db = nullptr;
  REQUIRE(sqlite3_open_v2(store->path(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                          store->vfs()) == SQLITE_OK);
  sqlite3_exec(db, "PRAGMA journal_mode=WAL", nullptr, nullptr, nullptr);
  CHECK(store->health().error().message().find("8 of them reserved") != std::string::npos);
  sqlite3_close(db);
}

TEST_CASE("catalog store: a chunk's space is taken from a thin LUN before, wholly or not at all") {
  iscsi::RamDiskOptions disk;
  SUBCASE("") {}
  SUBCASE("which cannot take it back") { disk.unmap = false; }
  disk.thin_bytes = 32ull << 20;
  LunBench bench{disk};
  auto info = prepared(bench, 64ull << 20);
  Random random{1};
  auto path = bench.connect();
  auto store = open(path, info, random);
  auto at = info.data_offset + kChunkSize;
  auto before = bench.disk->allocated_bytes();
  CHECK(store->claim_chunk(at).error() == std::errc::no_space_on_device);
  CHECK((bench.disk->allocated_bytes() == before) == disk.unmap);
  CHECK(store->health());
  bench.disk->set_thin_bytes(before + kChunkSize);
  REQUIRE(store->claim_chunk(at));
  CHECK(bench.disk->allocated_bytes() == before + kChunkSize);
}

TEST_CASE(
    "catalog store: a full thin LUN that takes nothing back costs the chunk, not the volume") {
  iscsi::RamDiskOptions disk;
  disk.thin_bytes = 32ull << 20;
  LunBench bench{disk};
  auto info = prepared(bench, 64ull << 20);
  Random random{1};
  auto path = bench.connect([](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind == iscsi::RamCommand::Kind::unmap)
      fate.failure = Error{Errc::unsupported_by_target, "ILLEGAL REQUEST"};
    return fate;
  });
  auto store = open(path, info, random);
  auto claimed = store->claim_chunk(info.data_offset + kChunkSize);
  CHECK(claimed.error() == std::errc::no_space_on_device);
  CHECK_MESSAGE(store->health(), store->health().error().message());
}

TEST_CASE("catalog store: a place that cannot be written is none for a chunk, and no failure") {
  LunBench bench;
  auto info = prepared(bench, 64ull << 20);
  auto at = info.data_offset + kChunkSize;
  Random random{1};
  auto path = bench.connect([at](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind == iscsi::RamCommand::Kind::write && command.offset == at + (5 << 20))
      fate.failure = Error{Errc::bad_medium, "MEDIUM ERROR 0C/00"};
    return fate;
  });
  auto store = open(path, info, random);
  auto claimed = store->claim_chunk(at);
  CHECK(claimed.error() == Errc::bad_medium);
  CHECK_MESSAGE(store->health(), store->health().error().message());
  CHECK(store->claim_chunk(at + kChunkSize));
}

TEST_CASE("catalog store: grows by a chunk, which the superblocks and its header name") {
  LunBench bench;
  auto info = prepared(bench, 64ull << 20);
  Random random{1};
  {
    auto path = bench.connect();
    auto store = open(path, info, random);
    CHECK(store->mapped_pages() == disk::kPagesPerChunk);
    CHECK(store->add_chunk(info.chunks[0]).error() == Errc::refused);
    CHECK(store->add_chunk(info.data_offset + kChunkSize + 4096).error() == Errc::refused);
    CHECK(store->add_chunk(info.lun_size).error() == Errc::refused);
    CHECK(store->claim_chunk(info.lun_size).error() == Errc::refused);
    CHECK(store->health());
    // Not beside the first one, so that pages behind it lie elsewhere.
    REQUIRE(store->add_chunk(info.data_offset + 3 * kChunkSize));
    CHECK(store->mapped_pages() == 2 * disk::kPagesPerChunk);
    Sql sql{*store};
    REQUIRE(sql.run(kTable) == SQLITE_OK);
    for (int i = 1; i <= 3; ++i) {
      REQUIRE(sql.run(fmt::format("INSERT INTO t VALUES({}, zeroblob(24000000))", i)) == SQLITE_OK);
      REQUIRE(sql.checkpoint() == SQLITE_OK);
    }
    CHECK(std::stoul(sql.ask("PRAGMA page_count")) > disk::kPagesPerChunk);
  }
  auto path = bench.connect();
  auto found = read_superblocks(path.io, false);
  REQUIRE_MESSAGE(found, found.error().message());
  CHECK(found->chunks == std::vector{info.data_offset, info.data_offset + 3 * kChunkSize});
  CHECK(chunk_problems(path.io, *found)->empty());
  CHECK(superblock_problems(path.io)->empty());
  auto store = open(path, *found, random);
  Sql sql{*store};
  CHECK(sql.ask("SELECT count(*) FROM t") == "3");
  CHECK(sql.ask("PRAGMA integrity_check") == "ok");
}
