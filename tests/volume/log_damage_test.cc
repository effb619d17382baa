// The catalog's log, damaged where it must not end, and cut short where it may.
#include <doctest/doctest.h>
#include <sqlite3.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>

#include "coordinator/volume/lun_vfs.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"
#include "tests/volume/lun_bench.h"

using namespace csv;
using namespace csv::volume;
using iscsi::RamCommand;
using iscsi::RamFate;

namespace {

constexpr std::uint64_t kWalSize = 16ull << 20;
constexpr std::uint64_t kBlock = 512;

/// A connection as the catalog makes one, to a table of numbered rows.
class Writer {
 public:
  explicit Writer(Path& path, const VolumeInfo& info, Random& random)
      : store_{open_catalog_store(path.io, info, random)} {
    if (!store_) return;
    CHECK(sqlite3_open_v2((*store_)->path(), &db_, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                          (*store_)->vfs()) == SQLITE_OK);
    int reserve = disk::kPageReserve;
    sqlite3_file_control(db_, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserve);
    // The log stays as it is, as after a crash, unless close_well() is called.
    sqlite3_db_config(db_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
    usable_ =
        run("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;"
            "PRAGMA cache_spill=OFF;"
            "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, body BLOB)");
    // Last: wal_autocheckpoint is such a hook, too.
    sqlite3_wal_hook(
        db_,
        [](void* self, sqlite3*, const char*, int frames) {
          static_cast<Writer*>(self)->frames_ = static_cast<std::uint64_t>(frames);
          return SQLITE_OK;
        },
        this);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() {
    if (db_ != nullptr) CHECK(sqlite3_close(db_) == SQLITE_OK);
  }

  [[nodiscard]] bool usable() const { return usable_; }
  [[nodiscard]] Error refusal() const {
    return store_ ? Error{Errc::refused, "it was opened"} : store_.error();
  }
  bool run(const std::string& sql) {
    return sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK;
  }
  /// Transaction `number`, of about so many pages.
  bool commit(int number, int pages) {
    return run(fmt::format("INSERT INTO t VALUES({}, randomblob({}))", number, pages * 4000));
  }
  bool checkpoint() {
    return sqlite3_wal_checkpoint_v2(db_, "main", SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr) ==
           SQLITE_OK;
  }
  void close_well() { sqlite3_db_config(db_, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, nullptr); }
  /// Where the log ended after the last commit.
  [[nodiscard]] std::uint64_t frames() const { return frames_; }
  /// The number of the last transaction; all before it must be there too.
  int last() {
    int count = -1, highest = -2;
    sqlite3_stmt* statement = nullptr;
    CHECK(sqlite3_prepare_v2(db_, "SELECT count(*), coalesce(max(id), 0) FROM t", -1, &statement,
                             nullptr) == SQLITE_OK);
    if (sqlite3_step(statement) == SQLITE_ROW) {
      count = sqlite3_column_int(statement, 0);
      highest = sqlite3_column_int(statement, 1);
    }
    sqlite3_finalize(statement);
    CHECK(count == highest);
    return highest;
  }

 private:
  Expected<std::unique_ptr<CatalogStore>> store_;
  sqlite3* db_ = nullptr;
  std::uint64_t frames_ = 0;
  bool usable_ = false;
};

/// A log with some transactions, the first of them of a round that follows another.
struct Log {
  LunBench bench;
  VolumeInfo info = prepared(bench, kWalSize);
  Random random{7};
  std::vector<std::uint64_t> ends;  ///< Frames after each of them.
  int last = 0;

  explicit Log(const std::vector<int>& transactions, iscsi::RamDiskOptions options = {})
      : bench{std::move(options)} {
    auto path = bench.connect();
    Writer writer{path, info, random};
    REQUIRE(writer.usable());
    // A round before, longer than this one: what it left lies behind the end.
    for (int pages : {20, 20, 20}) REQUIRE(writer.commit(++last, pages));
    REQUIRE(writer.checkpoint());
    for (int pages : transactions) {
      REQUIRE(writer.commit(++last, pages));
      ends.push_back(writer.frames());
    }
    REQUIRE(ends.back() < 60);
  }
  [[nodiscard]] std::uint64_t place_of(std::uint64_t frame) const {
    return info.wal_offset + disk::kWalHeaderSize + frame * disk::kFrameSize;
  }
  std::uint32_t whole_lun() { return crc32c(bench.content(0, 96ull << 20)); }
  /// What the next one finds: the last transaction, or why it does not open.
  Expected<int> open() {
    auto path = bench.connect();
    Writer writer{path, info, random};
    if (!writer.usable()) return writer.refusal();
    return writer.last();
  }
  Expected<int> open_read_only() {
    auto path = bench.connect();
    auto store = open_catalog_store(path.io, info, random, StoreAccess::read_only);
    if (!store) return store.error();
    return 0;
  }
};

using Damage = std::function<void(std::vector<std::byte>&)>;

/// Damages the log at each of `places`, one after the other, and looks what the next one does.
void damage_each(Log& log, const std::vector<std::uint64_t>& places, const Damage& damage) {
  auto last_group = log.ends[log.ends.size() - 2];
  int refused = 0, cut = 0;
  auto before_mark = log.info.wal_offset + kWalSize - sizeof(disk::LogMark);
  auto mark = log.bench.content(before_mark, sizeof(disk::LogMark));
  for (auto place : places) {
    CAPTURE(place);
    auto block = place / kBlock * kBlock;
    auto was = log.bench.content(block, kBlock);
    auto bad = was;
    damage(bad);
    if (bad == was) continue;
    log.bench.disk->poke(block, bad);
    auto first_bad = std::mismatch(was.begin(), was.end(), bad.begin()).first - was.begin();
    // A block that no frame of the log needs does not damage it.
    auto at = block + static_cast<std::uint64_t>(first_bad);
    if (at < log.place_of(last_group)) {
      auto found = log.open();
      REQUIRE_FALSE(found);
      CHECK(found.error() == Errc::corrupt);
      CHECK(found.error().message().find("log is damaged") != std::string::npos);
      CHECK(log.open_read_only().error() == Errc::corrupt);
      // Nothing was changed, so what can be had is still there.
      auto still = log.bench.content(block, kBlock);
      CHECK(still == bad);
      CHECK(log.bench.content(before_mark, sizeof(disk::LogMark)) == mark);
      log.bench.disk->poke(block, was);
      ++refused;
    } else {
      auto path = log.bench.connect();
      auto store = open_catalog_store(path.io, log.info, log.random, StoreAccess::read_only);
      REQUIRE_MESSAGE(store, store.error().message());
      CHECK(path.lun->counters().writes == 0);
      log.bench.disk->poke(block, was);
      ++cut;
    }
  }
  CHECK(refused > 40);
  CHECK(cut > 4);
  // Untouched again it is whole.
  CHECK(*log.open() == log.last);
}

}  // namespace

TEST_CASE(
    "catalog log: any damage before the last transaction is refused, and nothing is changed") {
  Log log{{1, 3, 1, 1, 6, 1, 2}};
  std::vector<std::uint64_t> blocks;
  for (auto at = log.info.wal_offset; at < log.place_of(log.ends.back()); at += kBlock)
    blocks.push_back(at);
  SUBCASE("a block of zeros") {
    damage_each(log, blocks,
                [](auto& bytes) { std::fill(bytes.begin(), bytes.end(), std::byte{}); });
  }
  SUBCASE("a block of something else") {
    damage_each(log, blocks, [](auto& bytes) {
      for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 + 11);
    });
  }
  SUBCASE("a bit, in every byte of headers") {
    std::vector<std::uint64_t> bytes;
    for (std::uint64_t i = 0; i < disk::kWalHeaderSize; ++i)
      bytes.push_back(log.info.wal_offset + i);
    for (std::uint64_t frame = 0; frame < log.ends.back(); ++frame)
      for (std::uint64_t i = 0; i < disk::kFrameHeaderSize; ++i)
        bytes.push_back(log.place_of(frame) + i);
    for (auto byte : bytes) {
      std::size_t inside = byte % kBlock;
      CAPTURE(inside);
      auto was = log.bench.content(byte / kBlock * kBlock, kBlock);
      log.bench.flip_bit(byte);
      bool refused = !log.open_read_only();
      CHECK(refused == (byte < log.place_of(log.ends[log.ends.size() - 2])));
      log.bench.disk->poke(byte / kBlock * kBlock, was);
    }
    CHECK(*log.open() == log.last);
  }
  SUBCASE("many blocks, to the end and beyond") {
    for (auto from : blocks) {
      if (from >= log.place_of(log.ends[log.ends.size() - 2])) break;
      CAPTURE(from);
      auto was = log.bench.content(from, 1 << 20);
      log.bench.disk->poke(from, std::vector<std::byte>(1 << 20));
      CHECK_FALSE(log.open_read_only());
      log.bench.disk->poke(from, was);
    }
    CHECK(*log.open() == log.last);
  }
}

TEST_CASE("catalog log: what refuses says which frame, where, and how many there must be") {
  Log log{{2, 2, 2}};
  auto bad = log.ends[0];
  log.bench.flip_bit(log.place_of(bad) + 100);
  auto whole = log.whole_lun();
  auto said = log.open().error().message();
  CAPTURE(said);
  CHECK(said.find(fmt::format("frame {} at LUN offset {}", bad + 1, log.place_of(bad))) !=
        std::string::npos);
  CHECK(said.find(fmt::format("{} frames were written", log.ends[1])) != std::string::npos);
  CHECK(log.whole_lun() == whole);
}

TEST_CASE("catalog log: of a transaction that was under way any part may have landed") {
  // Its blocks go out in several writes, of which any may have been done, in any order.
  int without = 0, with = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    CAPTURE(seed);
    LunBench bench;
    auto info = prepared(bench, kWalSize);
    Random random{seed};
    int acknowledged = 0;
    for (int life = 0; life < 6; ++life) {
      CAPTURE(life);
      std::vector<std::byte> before;
      auto log = [&] { return bench.content(info.wal_offset, kWalSize); };
      {
        auto path = bench.connect();
        Writer writer{path, info, random};
        REQUIRE_MESSAGE(writer.usable(), writer.refusal().message());
        auto found = writer.last();
        CHECK(found >= acknowledged);
        CHECK(found <= acknowledged + 1);
        acknowledged = found;
        if (random.next() % 3 == 0) REQUIRE(writer.checkpoint());
        auto commits = 1 + random.next() % 4;
        for (std::uint64_t i = 0; i < commits; ++i)
          REQUIRE(writer.commit(++acknowledged, 1 + static_cast<int>(random.next() % 30)));
        before = log();
        // The last one, never answered; larger than one write now and then.
        auto pages = random.next() % 2 == 0 ? random.next() % 8 : random.next() % 700;
        REQUIRE(writer.commit(acknowledged + 1, static_cast<int>(pages)));
      }
      auto after = log();
      auto landing = random.next() % 8;
      std::size_t kept = 0, changed = 0;
      for (std::size_t at = 0; at < after.size(); at += kBlock) {
        if (std::equal(after.begin() + at, after.begin() + at + kBlock, before.begin() + at))
          continue;
        ++changed;
        if (landing == 7 || random.next() % 8 < landing) {
          ++kept;
          continue;
        }
        bench.disk->poke(info.wal_offset + at, std::span{before}.subspan(at, kBlock));
      }
      (kept == changed ? with : without) += 1;
    }
  }
  CHECK(with > 20);
  CHECK(without > 100);
}

TEST_CASE("catalog log: a power loss at any write of a good close leaves a log that opens") {
  int crashes = 0;
  for (int at = 1;; ++at) {
    CAPTURE(at);
    Log log{{2, 3, 1}};
    auto writes = std::make_shared<std::atomic<int>>(0);
    {
      auto path = log.bench.connect([writes, at](const RamCommand& command) {
        RamFate fate;
        if (command.kind == RamCommand::Kind::write && ++*writes >= at)
          fate.failure = Error{Errc::lun_lost, "power loss"};
        return fate;
      });
      Writer writer{path, log.info, log.random};
      if (writer.usable()) writer.close_well();
    }
    bool crashed = writes->load() >= at;
    CHECK(*log.open() == log.last);
    if (!crashed) break;
    ++crashes;
  }
  CHECK(crashes >= 3);  // The checkpoint's pages, the mark, the header.
}

TEST_CASE("catalog log: a log that was closed well may be zeros, and one of a former volume too") {
  Log log{{2, 3, 1}};
  auto other = log.info;
  other.id[0] ^= std::byte{1};
  SUBCASE("closed well") {
    {
      auto path = log.bench.connect();
      Writer writer{path, log.info, log.random};
      REQUIRE(writer.usable());
      writer.close_well();
    }
    CHECK(*log.open() == log.last);
  }
  SUBCASE("a former volume's mark means nothing") {
    auto path = log.bench.connect();
    log.bench.disk->poke(log.info.wal_offset, std::vector<std::byte>(4096));
    CHECK(WalRegion::open(path.io, other));
    CHECK_FALSE(WalRegion::open(path.io, log.info));
  }
  SUBCASE("cleared, it is empty") {
    auto path = log.bench.connect();
    REQUIRE(WalRegion::clear(path.io, log.info));
    CHECK(open_catalog_store(path.io, log.info, log.random, StoreAccess::read_only));
  }
}

TEST_CASE("catalog log: without its mark a log ends where it is not whole") {
  Log log{{2, 3, 1}};
  log.bench.flip_bit(log.info.wal_offset + kWalSize - sizeof(disk::LogMark) + 41);
  CHECK(*log.open() == log.last);
}

TEST_CASE("catalog log: a write of it that the storage answered and lost is found out") {
  int refused = 0, harmless = 0;
  constexpr int kTransactions = 6;
  for (int at = 1;; ++at) {
    CAPTURE(at);
    LunBench bench;
    auto info = prepared(bench, kWalSize);
    Random random{7};
    auto writes = std::make_shared<std::atomic<int>>(0);
    auto mark_lost = std::make_shared<std::atomic<bool>>(false);
    auto place_of_mark = info.wal_offset + kWalSize - sizeof(disk::LogMark);
    {
      auto path = bench.connect([=](const RamCommand& command) {
        RamFate fate;
        if (command.kind != RamCommand::Kind::write || command.offset < info.wal_offset ||
            command.offset >= info.wal_offset + kWalSize)
          return fate;
        fate.lies = ++*writes == at;
        if (fate.lies && command.offset == place_of_mark) *mark_lost = true;
        return fate;
      });
      Writer writer{path, info, random};
      REQUIRE(writer.usable());
      for (int i = 1; i <= kTransactions; ++i) REQUIRE(writer.commit(i, 2));
    }
    if (writes->load() < at) break;
    auto path = bench.connect();
    Writer writer{path, info, random};
    if (!writer.usable()) {
      CHECK(writer.refusal() == Errc::corrupt);
      CHECK_FALSE(*mark_lost);
      ++refused;
      continue;
    }
    // A lost mark does no harm: the next one is written with the next transaction. And the last
    // transaction, of which nothing speaks yet, cannot be told from one that was under way.
    auto found = writer.last();
    CHECK(found >= (*mark_lost ? kTransactions : kTransactions - 1));
    ++harmless;
  }
  CHECK(refused >= kTransactions);
  CHECK(harmless >= kTransactions);
}

namespace {

iscsi::RamDiskOptions cached(bool fua) {
  iscsi::RamDiskOptions options;
  options.write_cache = true;
  options.fua = fua;
  return options;
}

/// How a transaction ends that stands in the target's cache, whole, and of which its writer hears
/// that it failed.
enum class Death { flush_failed, flush_missed, writer_died };

/// As `death`, from when `dying` is set on.
iscsi::RamPlan plan_of(const Log& log, Death death, std::shared_ptr<std::atomic<bool>> dying) {
  auto from = log.info.wal_offset, to = from + kWalSize;
  return [=](const RamCommand& command) {
    RamFate fate;
    if (!*dying) return fate;
    if (command.kind == RamCommand::Kind::flush && death != Death::writer_died) {
      fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
      fate.misses = death == Death::flush_missed;
    }
    if (command.kind == RamCommand::Kind::write && death == Death::writer_died &&
        command.offset >= from && command.offset < to) {
      fate.failure = Error{Errc::lun_lost, "the writer died"};
      fate.torn_blocks = command.length / kBlock;
    }
    return fate;
  };
}

/// Leaves one more transaction as `death` says.
void die_in_commit(Log& log, Death death, int pages = 4) {
  auto dying = std::make_shared<std::atomic<bool>>(false);
  auto path = log.bench.connect(plan_of(log, death, dying));
  Writer writer{path, log.info, log.random};
  REQUIRE_MESSAGE(writer.usable(), writer.refusal().message());
  REQUIRE(writer.commit(++log.last, 1));
  *dying = true;
  CHECK_FALSE(writer.commit(log.last + 1, pages));
}

void lose_power(Log& log, std::uint64_t seed) {
  Random random{seed};
  log.bench.disk->power_loss(random);
}

}  // namespace

TEST_CASE("catalog log: what a takeover found in it is durable before anybody is told of it") {
  for (bool fua : {false, true})
    for (auto death : {Death::flush_failed, Death::flush_missed, Death::writer_died}) {
      // With FUA no flush is asked for.
      if (fua && death != Death::writer_died) continue;
      for (std::uint64_t seed = 1; seed <= 8; ++seed) {
        CAPTURE(fua);
        CAPTURE(static_cast<int>(death));
        CAPTURE(seed);
        Log log{{2, 2}, cached(fua)};
        die_in_commit(log, death);
        int last = 0;
        {
          auto path = log.bench.connect();
          Writer next{path, log.info, log.random};
          REQUIRE(next.usable());
          last = next.last();
          CHECK(last == log.last + 1);
          // What it does itself is no help to what it found.
          if (seed % 2 == 0) REQUIRE(next.commit(++last, 1));
        }
        lose_power(log, seed);
        auto found = log.open();
        REQUIRE_MESSAGE(found, found.error().message());
        CHECK(*found == last);
      }
    }
}

TEST_CASE("catalog log: where no flush succeeds no mark says more than what is there") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    Log log{{2, 2}, cached(false)};
    die_in_commit(log, Death::flush_failed);
    for (int attempt = 0; attempt < 3; ++attempt) {
      auto dying = std::make_shared<std::atomic<bool>>(true);
      auto path = log.bench.connect(plan_of(log, Death::flush_failed, dying));
      Writer next{path, log.info, log.random};
      // Nobody was answered: neither of the one before, nor of this one.
      if (next.usable()) CHECK_FALSE(next.commit(log.last + 2, 1));
    }
    lose_power(log, seed);
    auto found = log.open();
    REQUIRE_MESSAGE(found, found.error().message());
    CHECK(*found >= log.last);
    CHECK(*found <= log.last + 2);
  }
}

TEST_CASE("catalog log: a mark that was cleared in the cache only does not come back alone") {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    CAPTURE(seed);
    Log log{{2, 2}, cached(false)};
    auto mark = place_of_log_mark(log.info);
    {
      auto closing = std::make_shared<std::atomic<bool>>(false);
      auto clearing = std::make_shared<std::atomic<bool>>(false);
      auto path = log.bench.connect([=](const RamCommand& command) {
        RamFate fate;
        if (*closing && command.kind == RamCommand::Kind::write && command.offset == mark)
          *clearing = true;
        if (command.kind != RamCommand::Kind::flush || !*clearing) return fate;
        fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
        fate.misses = true;
        return fate;
      });
      Writer dies{path, log.info, log.random};
      REQUIRE(dies.usable());
      dies.close_well();
      *closing = true;
    }
    auto left = decode_log_mark(log.bench.content(mark, sizeof(disk::LogMark)), log.info.id);
    REQUIRE(left);
    REQUIRE((*left)->salts == LogSalts{});
    {
      auto path = log.bench.connect();
      Writer next{path, log.info, log.random};
      REQUIRE(next.usable());
      next.close_well();
    }
    lose_power(log, seed);
    auto found = log.open();
    REQUIRE_MESSAGE(found, found.error().message());
    CHECK(*found == log.last);
  }
}
