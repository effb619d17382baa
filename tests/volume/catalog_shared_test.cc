// Files that share blocks: clones, their counts, and how they come apart (A16).
#include <algorithm>
#include <map>

#include "coordinator/volume/database.h"
#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

namespace {

/// One request.
Expected<Catalog::Progress> clone_once(TestCatalog& v, InodeId from, std::uint64_t first,
                                       std::uint64_t count, InodeId into, std::uint64_t at) {
  return v.change([&](Catalog& c) -> Expected<Catalog::Progress> {
    auto done = CSV_TRY(c.clone(from, first, count, into, at));
    CSV_TRY(c.grow(into, (at + done.done) * kBlockSize, v.now));
    return done;
  });
}
/// As many as it takes; how many that were.
int clone(TestCatalog& v, InodeId from, std::uint64_t first, std::uint64_t count, InodeId into,
          std::uint64_t at) {
  int requests = 0;
  while (count > 0) {
    auto cloned = clone_once(v, from, first, count, into, at);
    REQUIRE_MESSAGE(cloned, cloned.error().message());
    REQUIRE(cloned->done > 0);
    REQUIRE(cloned->done <= count);
    first += cloned->done;
    at += cloned->done;
    count -= cloned->done;
    ++requests;
  }
  return requests;
}
Expected<std::vector<Run>> replace(TestCatalog& v, InodeId inode, std::uint64_t at,
                                   std::uint64_t count) {
  return v.change([&](Catalog& c) -> Expected<std::vector<Run>> {
    auto runs = CSV_TRY(c.reserve_space(inode, count, 0, 64));
    CSV_TRY(c.replace(inode, at, runs));
    return runs;
  });
}
void remove(TestCatalog& v, std::string_view name, InodeId inode) {
  v.must([&](Catalog& c) { return c.unlink(kRootInode, name, v.now); });
  v.must([&](Catalog& c) { return c.reap(inode); });
}
std::uint64_t free_blocks(TestCatalog& v) { return v.catalog->space()->free; }
std::uint64_t dying(TestCatalog& v) { return v.catalog->space()->dying; }
std::int64_t value(TestCatalog& v, const std::string& sql) {
  auto database = Database::open(v.bed->store().path(), v.bed->store().vfs(), {.read_only = true});
  REQUIRE(database);
  auto found = (*database)->value(sql);
  REQUIRE_MESSAGE(found, found.error().message());
  return *found;
}
/// Each LUN block of a file, in order; 0 for holes.
std::vector<std::uint64_t> places(TestCatalog& v, InodeId inode, std::uint64_t first,
                                  std::uint64_t count) {
  std::vector<std::uint64_t> all;
  for (const auto& each : v.map(inode, first, count))
    for (std::uint64_t i = 0; i < each.count; ++i)
      all.push_back(each.state == BlockState::hole ? 0 : each.lun_block + i);
  return all;
}

}  // namespace

TEST_CASE("catalog: a clone takes no space, and what is shared is told, in both files") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 5000);
  auto before = free_blocks(v);
  CHECK(clone(v, a, 0, 5000, b, 0) == 1);
  CHECK(free_blocks(v) == before);
  CHECK(v.states(a, 0, 5001) == "s5000h1");
  CHECK(v.states(b, 0, 5001) == "s5000h1");
  CHECK(places(v, a, 0, 5000) == places(v, b, 0, 5000));
  CHECK(v.catalog->attr(b)->blocks == 5000);
  CHECK(*v.catalog->seek(b, 0, false) == 5000 * kBlockSize);
  CHECK(v.problems() == "");
  v.reopen();
  CHECK(v.states(b, 0, 5001) == "s5000h1");
}

TEST_CASE("catalog: shared blocks are free with their last name, whichever that is") {
  for (bool source_first : {true, false}) {
    TestCatalog v;
    auto a = v.file("a").inode, b = v.file("b").inode;
    auto before = free_blocks(v);
    v.place(a, 0, 3000);
    clone(v, a, 0, 3000, b, 0);
    remove(v, source_first ? "a" : "b", source_first ? a : b);
    v.settle();
    CHECK(free_blocks(v) == before - 3000);
    CHECK(v.states(source_first ? b : a, 0, 3000) == "w3000");
    CHECK(v.problems() == "");
    remove(v, source_first ? "b" : "a", source_first ? b : a);
    v.settle();
    CHECK(free_blocks(v) == before);
    CHECK(v.problems() == "");
  }
}

TEST_CASE("catalog: names of a block are counted one by one, whatever their pieces") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode, c = v.file("c").inode;
  v.place(a, 0, 4000);
  clone(v, a, 0, 4000, b, 17);       // windows that do not lie alike
  clone(v, b, 1017, 1000, c, 0);     // of a clone
  clone(v, a, 1500, 1000, c, 5000);  // overlaps the former in part
  CHECK(v.problems() == "");
  CHECK(value(v, "SELECT max(count) FROM shared") == 4);
  v.must([&](Catalog& x) { return x.punch(b, 17, 4000, false, v.now); });
  CHECK(v.problems() == "");
  CHECK(v.states(a, 0, 4000) == "w1000s1500w1500");
  v.must([&](Catalog& x) { return x.truncate(c, 0, v.now); });
  CHECK(v.states(a, 0, 4000) == "w4000");
  CHECK(value(v, "SELECT count(*) FROM shared") == 0);
  CHECK(dying(v) == 0);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: only what is written is cloned; the rest becomes a hole") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 10);
  v.place(a, 20, 10, BlockState::unwritten);
  v.place(a, 40, 10);
  v.place(b, 0, 60);
  auto before = free_blocks(v);
  clone(v, a, 5, 50, b, 5);
  CHECK(v.states(b, 0, 60) == "w5s5h30s10h5w5");
  CHECK(v.states(a, 0, 50) == "w5s5h10u10h10s10");
  CHECK(dying(v) == 50);
  CHECK(free_blocks(v) == before + 50);
  CHECK(v.catalog->attr(b)->blocks == 25);
  CHECK(v.problems() == "");
  // Once more: nothing changes.
  clone(v, a, 5, 50, b, 5);
  CHECK(dying(v) == 50);
  CHECK(v.states(b, 0, 60) == "w5s5h30s10h5w5");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: ranges of one file, side by side or not, but never onto themselves") {
  TestCatalog v;
  auto a = v.file("a").inode;
  v.place(a, 0, 100);
  CHECK(errno_of(clone_once(v, a, 0, 100, a, 50)) == EINVAL);
  CHECK(errno_of(clone_once(v, a, 50, 100, a, 0)) == EINVAL);
  CHECK(errno_of(clone_once(v, a, 0, 0, a, 200)) == EINVAL);
  CHECK(errno_of(clone_once(v, a, 0, 100, a, (1ull << 32) - 50)) == EFBIG);
  clone(v, a, 0, 50, a, 50);
  clone(v, a, 0, 100, a, 100);
  CHECK(v.states(a, 0, 200) == "s200");
  CHECK(v.catalog->attr(a)->blocks == 200);
  CHECK(value(v, "SELECT max(count) FROM shared") == 4);
  CHECK(dying(v) == 50);
  CHECK(v.problems() == "");
  remove(v, "a", a);
  v.settle();
  CHECK(v.problems() == "");
  CHECK(value(v, "SELECT count(*) FROM shared") == 0);
}

TEST_CASE("catalog: blocks of its own take the place of shared ones") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 100);
  clone(v, a, 0, 100, b, 0);
  auto was = places(v, a, 0, 100);
  REQUIRE(replace(v, b, 16, 16));
  CHECK(v.states(b, 0, 100) == "s16w16s68");
  CHECK(v.states(a, 0, 100) == "s16w16s68");
  CHECK(places(v, a, 0, 100) == was);
  CHECK(places(v, b, 16, 16) != places(v, a, 16, 16));
  CHECK(dying(v) == 0);
  CHECK(v.catalog->attr(b)->blocks == 100);
  CHECK(v.problems() == "");
  // The other side, too; nobody has the former place then.
  REQUIRE(replace(v, a, 0, 32));
  CHECK(v.states(a, 0, 100) == "w32s68");
  CHECK(v.states(b, 0, 100) == "w32s68");
  CHECK(dying(v) == 16);
  CHECK(v.problems() == "");
  // Not what is not written, nor what was not reserved.
  CHECK(replace(v, a, 90, 20).error() == Errc::refused);
  std::vector<Run> foreign{{was[0], 1}};
  CHECK(v.change([&](Catalog& c) { return c.replace(a, 50, foreign); }).error() == Errc::refused);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: what is shared is never unwritten space") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 100);
  clone(v, a, 0, 60, b, 0);
  auto marked = v.change([&](Catalog& c) { return c.mark_written(a, 50, 20); });
  CHECK(marked.error() == Errc::refused);
  v.must([&](Catalog& c) { return c.punch(a, 40, 40, true, v.now); });
  CHECK(v.states(a, 0, 100) == "s40h20u20w20");
  CHECK(v.states(b, 0, 60) == "s40w20");
  CHECK(v.catalog->attr(a)->blocks == 80);
  CHECK(dying(v) == 0);
  CHECK(v.problems() == "");
  v.must([&](Catalog& c) { return c.fill(a, 40, 20); });
  CHECK(v.states(a, 0, 100) == "s40u40w20");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: what a session may still write is not cloned, nor cloned onto") {
  TestCatalog v;
  auto session = v.must([](Catalog& c) { return c.new_session(NodeId{1}, 7); }).id;
  auto a = v.file("a").inode, b = v.file("b").inode;
  auto grant = v.must([&](Catalog& c) { return c.new_grant(session, a); });
  v.place(a, 0, 20, BlockState::granted, grant);
  // Committed to a part: its row still carries the grant, under which the session may write again.
  v.must([&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.commit_grant(session, a, grant, 0, 10, 0));
    CSV_TRY(c.grow(a, 10 * kBlockSize, v.now));
    return {};
  });
  v.place(b, 0, 20);
  CHECK(clone_once(v, a, 0, 10, b, 0).error() == Errc::refused);
  CHECK(clone_once(v, b, 0, 10, a, 5).error() == Errc::refused);
  v.must([&](Catalog& c) { return c.drop_grants(session, a, 1000); });
  clone(v, a, 0, 10, b, 0);
  CHECK(v.states(b, 0, 20) == "s10w10");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a clone of many pieces comes in steps, each of bounded work") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode;
  // Every other block: a row, and a range of what is shared, for each.
  v.must([&](Catalog& c) { return c.fill(a, 0, 20'000); });
  v.must([&](Catalog& c) { return c.grow(a, 20'000 * kBlockSize, v.now); });
  for (std::uint64_t at = 0; at < 20'000;) {
    v.must([&](Catalog& c) -> Expected<void> {
      for (int i = 0; i < 1000; ++i, at += 2) CSV_TRY(c.mark_written(a, at, 1));
      return {};
    });
  }
  auto requests = clone(v, a, 0, 20'000, b, 3);
  CHECK(requests > 20);
  CHECK(requests < 200);
  CHECK(value(v, "SELECT count(*) FROM shared") == 10'000);
  CHECK(v.problems() == "");
  // And away again, which is more than a step, too.
  remove(v, "a", a);
  v.settle();
  CHECK(value(v, "SELECT count(*) FROM shared") == 0);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a row over many ranges that are shared is freed and cloned in steps, too") {
  TestCatalog v{8 * kGiB};
  auto a = v.file("a").inode, b = v.file("b").inode, c = v.file("c").inode;
  constexpr std::uint64_t kBlocks = 40 * 2048;
  v.must([&](Catalog& x) { return x.fill(a, 0, kBlocks); });
  v.must([&](Catalog& x) { return x.grow(a, kBlocks * kBlockSize, v.now); });
  auto write = [&](std::uint64_t from) {
    for (auto at = from; at < kBlocks;)
      v.must([&](Catalog& x) -> Expected<void> {
        for (int i = 0; i < 1024; ++i, at += 2) CSV_TRY(x.mark_written(a, at, 1));
        return {};
      });
  };
  auto shared = [&] { return value(v, "SELECT count(*) FROM shared"); };
  write(0);
  clone(v, a, 0, kBlocks, b, 0);
  write(1);
  REQUIRE(shared() == kBlocks / 2);
  CHECK(value(v, "SELECT count(*) FROM extents WHERE inode=" + std::to_string(raw(a))) == 40);
  // A window has 1024 of them, and one is begun as long as anything is left of the step.
  constexpr std::int64_t kMost = 2 * 1024 + 1024;
  SUBCASE("cloned") {
    auto cloned = clone_once(v, a, 0, kBlocks, c, 0);
    REQUIRE(cloned);
    CHECK(cloned->done == 2048);
    CHECK(v.problems() == "");
  }
  SUBCASE("freed") {
    v.must([&](Catalog& x) { return x.unlink(kRootInode, "a", v.now); });
    v.must([&](Catalog& x) { return x.reap(a); });
    for (auto before = static_cast<std::int64_t>(kBlocks) / 2; before > 0;) {
      auto now = shared();
      CHECK(before - now <= kMost);
      before = now;
      REQUIRE(v.catalog->maintain());
    }
    CHECK(v.problems() == "");
  }
}

TEST_CASE("catalog: only where it gets to, a clone minds what is granted") {
  TestCatalog v{8 * kGiB};
  auto session = v.must([](Catalog& c) { return c.new_session(NodeId{1}, 7); }).id;
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 20'000);
  v.place(b, 0, 2048);
  for (std::uint64_t at = 2048; at < 8192; at += 4) v.place(b, at, 2);
  auto grant = v.must([&](Catalog& c) { return c.new_grant(session, b); });
  v.place(b, 18'000, 20, BlockState::granted, grant);
  auto cloned = clone_once(v, a, 0, 20'000, b, 0);
  REQUIRE_MESSAGE(cloned, cloned.error().message());
  CHECK(cloned->done < 18'000);
  CHECK(clone_once(v, a, 0, 2048, b, 17'000).error() == Errc::refused);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: at most 1 GiB is cloned at once, and holes cost nothing") {
  TestCatalog v{8 * kGiB};
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 300'000);
  auto cloned = clone_once(v, a, 0, 300'000, b, 0);
  REQUIRE(cloned);
  CHECK(cloned->done > 200'000);
  CHECK(cloned->done <= 262'144);
  auto far = clone_once(v, a, 1'000'000, 300'000, b, 1'000'000);
  REQUIRE(far);
  CHECK(far->done == 262'144);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: rows that are still to be freed keep their names, and are no content") {
  TestCatalog v{8 * kGiB};
  auto a = v.file("a").inode, b = v.file("b").inode, c = v.file("c").inode;
  // So many rows that a truncation leaves a span to be freed.
  for (std::uint64_t at = 0; at < 40'000; at += 20) v.place(a, at, 10);
  clone(v, a, 0, 40'000, b, 0);
  v.must([&](Catalog& x) { return x.truncate(b, 0, v.now); });
  REQUIRE(v.catalog->space()->freeing);
  CHECK(v.problems() == "");
  clone(v, b, 0, 30'000, c, 0);  // holes, all of it
  CHECK(v.catalog->attr(c)->blocks == 0);
  clone(v, a, 100, 30'000, b, 0);  // onto what is to be freed
  CHECK(v.problems() == "");
  CHECK(places(v, b, 0, 30'000) == places(v, a, 100, 30'000));
  v.settle();
  CHECK(dying(v) == 0);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a clone for which there are no pages, or that is refused, changes nothing") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 100);
  v.place(b, 0, 100);
  auto was = places(v, b, 0, 100);
  auto undone = v.change([&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.clone(a, 0, 100, b, 0));
    return Error{Errc::refused, "undone"};
  });
  CHECK(undone.error() == Errc::refused);
  CHECK(places(v, b, 0, 100) == was);
  CHECK(v.states(a, 0, 100) == "w100");
  // Nor does what shared nothing: programs that do not know of it can go on.
  auto c = v.file("c").inode;
  v.place(c, 0, 100, BlockState::unwritten);
  clone(v, c, 0, 100, b, 0);
  CHECK(v.states(b, 0, 100) == "h100");
  auto suspended = v.change([&](Catalog& x) -> Expected<void> {
    SuspendedRow row;
    row.node = NodeId{3};
    CSV_TRY(x.suspend(row));
    return Error{Errc::refused, "undone"};
  });
  CHECK(suspended.error() == Errc::refused);
  v.file("d");
  CHECK(value(v, "SELECT value FROM kv WHERE key='schema_version'") == 3);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: where no space is, shared blocks stay shared") {
  TestCatalog v{600 * kMiB};
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 1000);
  clone(v, a, 0, 1000, b, 0);
  REQUIRE(v.catalog->maintain());
  v.place(v.file("all").inode, 0, free_blocks(v) - 5);
  clone(v, a, 0, 1000, b, 1000);
  CHECK(errno_of(replace(v, b, 0, 6)) == ENOSPC);
  CHECK(v.states(b, 0, 2000) == "s2000");
  REQUIRE(replace(v, b, 0, 5));
  CHECK(v.states(b, 0, 2000) == "w5s1995");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: the first clone raises the schema; one that an earlier program made opens") {
  TestCatalog v;
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 10);
  auto schema = [&] { return value(v, "SELECT value FROM kv WHERE key='schema_version'"); };
  CHECK(schema() == 3);
  v.catalog.reset();
  v.sql("DROP TABLE shared");
  CHECK(v.problems() == "");
  v.reopen();
  CHECK(schema() == 3);
  CHECK(v.states(a, 0, 10) == "w10");
  clone(v, a, 0, 10, b, 0);
  CHECK(schema() == 4);
  CHECK(v.problems() == "");
  v.reopen();
  CHECK(v.states(a, 0, 10) == "s10");
  v.catalog.reset();
  v.sql("DROP TABLE shared");
  CHECK(v.problems().find("the database has no shared") != std::string::npos);
  auto opened = Catalog::open(v.bed->store());
  REQUIRE_FALSE(opened);
  CHECK(opened.error() == Errc::corrupt);
  v.sql("UPDATE kv SET value=5 WHERE key='schema_version'");
  opened = Catalog::open(v.bed->store());
  REQUIRE_FALSE(opened);
  CHECK(opened.error() == Errc::refused);
}

TEST_CASE("catalog: notes of shared blocks that cannot be are told, not followed") {
  TestCatalog v{std::make_unique<FileBed>(2 * kGiB)};
  auto a = v.file("a").inode, b = v.file("b").inode;
  v.place(a, 0, 10);
  clone(v, a, 0, 10, b, 0);
  v.catalog.reset();
  SUBCASE("overlapping") {
    v.sql("INSERT INTO shared SELECT start+2,length,count FROM shared");
    v.reopen();
    CHECK(v.catalog->map(a, 0, 10).error() == Errc::corrupt);
    auto cut = v.change([&](Catalog& c) { return c.truncate(a, 0, v.now); });
    CHECK(cut.error() == Errc::corrupt);
  }
  SUBCASE("named once") {
    v.sql("UPDATE shared SET count=1");
    v.reopen();
    auto cut = v.change([&](Catalog& c) { return c.truncate(a, 0, v.now); });
    CHECK(cut.error() == Errc::corrupt);
  }
  SUBCASE("not written") {
    v.sql("UPDATE extents SET written_count=0 WHERE inode=" + std::to_string(raw(a)));
    v.reopen();
    CHECK(v.catalog->map(a, 0, 10).error() == Errc::corrupt);
  }
}
