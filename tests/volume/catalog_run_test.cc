#include <fstream>
#include <set>

#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/database.h"
#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

namespace {

/// No row of a file's blocks crosses a multiple of this.
constexpr std::uint64_t kWindow = 8 * kBlocksPerMiB;

Catalog::Change making(TestCatalog& v, std::string name) {
  Catalog::Change change;
  change.body = [&v, name](Catalog& c) -> Expected<void> {
    CSV_TRY(c.make(kRootInode, name, {.mode = S_IFREG | 0644}, v.now));
    return {};
  };
  return change;
}
Expected<void> try_sql(TestCatalog& v, const std::string& statements) {
  auto database = CSV_TRY(Database::open(v.bed->store().path(), v.bed->store().vfs(), {}));
  return database->execute(statements);
}
/// What is mapped is all that there may be: from here on whatever needs a page fails.
void take_all_pages(TestCatalog& v) {
  v.sql("CREATE TABLE filler(x)");
  for (std::uint64_t bytes = 64 * kMiB; bytes >= 1000; bytes /= 2)
    while (errno_of(try_sql(
               v, "PRAGMA max_page_count=" + std::to_string(v.bed->store().mapped_pages()) +
                      "; INSERT INTO filler VALUES(zeroblob(" + std::to_string(bytes) + "))")) ==
           0) {
    }
}
bool exists(TestCatalog& v, std::string_view name) {
  return static_cast<bool>(v.catalog->lookup(kRootInode, name));
}

}  // namespace

TEST_CASE("catalog: in a group, a refusal undoes its own change and no other") {
  TestCatalog v;
  v.file("there");
  std::vector<Catalog::Change> group;
  group.push_back(making(v, "a"));
  group.push_back(making(v, "there"));
  Catalog::Change half;
  half.body = [&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.make(kRootInode, "half", {.mode = S_IFREG | 0644}, v.now));
    CSV_TRY(c.unlink(kRootInode, "a", v.now));
    return Errc::retry;
  };
  group.push_back(std::move(half));
  group.push_back(making(v, "b"));
  REQUIRE(v.catalog->run(group));
  CHECK(group[0].result);
  CHECK(group[1].result.error().to_errno() == EEXIST);
  CHECK(group[2].result.error() == Errc::retry);
  CHECK(group[3].result);
  for (bool reopened : {false, true}) {
    CAPTURE(reopened);
    if (reopened) v.reopen();
    CHECK(exists(v, "a"));
    CHECK(exists(v, "b"));
    CHECK_FALSE(exists(v, "half"));
    CHECK(v.catalog->space()->inodes == 4);
    CHECK(v.problems() == "");
  }
}

TEST_CASE("catalog: an undone change gives its blocks back, in the cached bitmaps too") {
  TestCatalog v;
  auto f = v.file("f"), g = v.file("g");
  auto before = v.catalog->space()->free;
  std::vector<Run> first, second;
  auto placing = [&](InodeId inode, std::vector<Run>& runs, bool refuse) {
    Catalog::Change change;
    change.body = [&runs, &first, inode, refuse](Catalog& c) -> Expected<void> {
      auto goal = refuse || first.empty() ? 0 : first[0].lun_block;
      runs = CSV_TRY(c.reserve_space(inode, 1000, goal, 1));
      CSV_TRY(c.place(inode, 0, runs, BlockState::unwritten, {}));
      if (refuse) return Errc::retry;
      return {};
    };
    return change;
  };
  SUBCASE("in one group") {
    std::vector<Catalog::Change> group;
    group.push_back(placing(f.inode, first, true));
    group.push_back(placing(g.inode, second, false));
    REQUIRE(v.catalog->run(group));
    CHECK(first == second);  // what was given back was found again
  }
  SUBCASE("in groups that follow") {
    auto one = placing(f.inode, first, true);
    REQUIRE(v.catalog->run({&one, 1}));
    auto two = placing(g.inode, second, false);
    REQUIRE(v.catalog->run({&two, 1}));
    CHECK(first == second);
  }
  SUBCASE("after one that stays, in the same bitmap") {
    std::vector<Catalog::Change> group;
    group.push_back(placing(g.inode, second, false));
    group.push_back(placing(f.inode, first, true));
    REQUIRE(v.catalog->run(group));
    CHECK(first[0].lun_block == second[0].lun_block + 1000);
    auto again =
        v.must([&](Catalog& c) { return c.reserve_space(f.inode, 1000, first[0].lun_block, 1); });
    CHECK(again == first);
    v.catalog->cancel_reservation(again);
  }
  CHECK(v.states(f.inode, 0, 1000) == "h1000");
  CHECK(v.states(g.inode, 0, 1000) == "u1000");
  CHECK(v.catalog->space()->free == before - 1000);
  CHECK(v.problems() == "");
  v.place(f.inode, 0, 1000);  // from the bitmap as it is now
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: undoing the freeing of blocks takes them back") {
  TestCatalog v;
  auto f = v.file("f");
  v.place(f.inode, 0, 100);
  v.must([&](Catalog& c) { return c.truncate(f.inode, 0, v.now); });
  auto dying = *v.catalog->dying(10);
  auto before = *v.catalog->space();
  Catalog::Change change;
  change.body = [&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.make_free(dying));
    return Errc::retry;
  };
  REQUIRE(v.catalog->run({&change, 1}));
  CHECK(v.catalog->space()->dying == before.dying);
  CHECK(v.catalog->space()->free == before.free);
  CHECK(*v.catalog->dying(10) == dying);
  auto fresh =
      v.must([&](Catalog& c) { return c.reserve_space(f.inode, 50, dying[0].lun_block, 1); });
  CHECK(fresh[0].lun_block >= dying[0].lun_block + 100);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a reservation made before a change survives its being undone") {
  TestCatalog v;
  auto f = v.file("f"), g = v.file("g");
  auto runs = v.must([&](Catalog& c) { return c.reserve_space(f.inode, 10, 0, 1); });
  Catalog::Change change;
  change.body = [&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.place(f.inode, 0, runs, BlockState::written, {}));
    return Errc::retry;
  };
  REQUIRE(v.catalog->run({&change, 1}));
  auto others =
      v.must([&](Catalog& c) { return c.reserve_space(g.inode, 10, runs[0].lun_block, 1); });
  CHECK(others[0].lun_block != runs[0].lun_block);
  v.must([&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.place(f.inode, 0, runs, BlockState::written, {}));
    CSV_TRY(c.grow(f.inode, 10 * kBlockSize, v.now));
    return {};
  });
  CHECK(v.states(f.inode, 0, 10) == "w10");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: nothing is changed outside of a change or in one that only reads") {
  TestCatalog v;
  CHECK(v.catalog->make(kRootInode, "x", {.mode = S_IFREG}, 1).error() == Errc::refused);
  auto change = making(v, "x");
  change.read_only = true;
  REQUIRE(v.catalog->run({&change, 1}));
  CHECK(change.result.error() == Errc::refused);
  CHECK_FALSE(exists(v, "x"));
  // It sees what changes before it in its group did.
  std::vector<Catalog::Change> group;
  group.push_back(making(v, "y"));
  Catalog::Change look;
  look.read_only = true;
  look.body = [](Catalog& c) -> Expected<void> {
    CSV_TRY(c.lookup(kRootInode, "y"));
    return {};
  };
  group.push_back(std::move(look));
  REQUIRE(v.catalog->run(group));
  CHECK(group[1].result);
  auto before = v.catalog->statistics().transactions;
  Catalog::Change again;
  again.read_only = true;
  again.body = [](Catalog& c) -> Expected<void> {
    CSV_TRY(c.lookup(kRootInode, "y"));
    return {};
  };
  REQUIRE(v.catalog->run({&again, 1}));
  CHECK(v.catalog->statistics().transactions == before);
}

TEST_CASE("catalog: a large group is committed in several transactions") {
  TestCatalog v;
  auto before = v.catalog->statistics().transactions;
  std::vector<Catalog::Change> group;
  for (int i = 0; i < 2000; ++i) group.push_back(making(v, "f" + std::to_string(i)));
  REQUIRE(v.catalog->run(group));
  for (const auto& change : group) CHECK(change.result);
  CHECK(v.catalog->statistics().transactions - before > 3);
  CHECK(v.catalog->attr(kRootInode)->size == 2000);
}

TEST_CASE("catalog: a change that outgrows the database fails alone, its group is run again") {
  TestCatalog v{256 * kMiB};
  // Without room to grow: everything but a handful of blocks is taken.
  auto hog = v.file("hog");
  REQUIRE(v.catalog->maintain());
  v.place(hog.inode, 0, v.catalog->space()->free - 2000);
  v.file("target");
  auto target = v.catalog->lookup(kRootInode, "target")->inode;
  int runs_of_first = 0;
  std::vector<Run> placed;
  std::vector<Catalog::Change> group;
  group.push_back(making(v, "a"));
  Catalog::Change space;
  space.body = [&](Catalog& c) -> Expected<void> {
    ++runs_of_first;
    placed = CSV_TRY(c.reserve_space(target, 100, 0, 1));
    CSV_TRY(c.place(target, 0, placed, BlockState::unwritten, {}));
    return {};
  };
  group.push_back(std::move(space));
  Catalog::Change huge;
  huge.body = [&](Catalog& c) -> Expected<void> {
    for (int i = 0; i < 3000; ++i) {
      auto made = CSV_TRY(c.make(kRootInode, "h" + std::to_string(i), {.mode = S_IFREG}, v.now));
      for (auto name : {"1", "2", "3"})
        CSV_TRY(c.set_xattr(made.inode, name, std::string(65536, 'v'), 0, v.now));
    }
    return {};
  };
  group.push_back(std::move(huge));
  group.push_back(making(v, "b"));
  auto free = v.catalog->space()->free;
  REQUIRE(v.catalog->run(group));
  CHECK(group[0].result);
  CHECK(group[1].result);
  CHECK(group[2].result.error().to_errno() == ENOSPC);
  CHECK(group[3].result);
  CHECK(runs_of_first == 2);
  CHECK(exists(v, "a"));
  CHECK(exists(v, "b"));
  CHECK_FALSE(exists(v, "h0"));
  CHECK(v.states(target, 0, 100) == "u100");
  CHECK(v.catalog->space()->free == free - 100);
  CHECK(v.problems() == "");
  v.reopen();
  CHECK(v.catalog->space()->free == free - 100);
  CHECK(v.file("c").inode > v.catalog->lookup(kRootInode, "b")->inode);
}

TEST_CASE("catalog: the database grows into the data area before it is full") {
  TestCatalog v;
  auto chunks = v.bed->store().info().chunks.size();
  auto free = v.catalog->space()->free;
  auto dir = v.directory("d");
  int files = 0;
  auto add = [&] {
    v.must([&](Catalog& c) -> Expected<void> {
      for (int i = 0; i < 10; ++i) {
        auto made =
            CSV_TRY(c.make(dir.inode, std::to_string(files++), {.mode = S_IFREG | 0644}, v.now));
        CSV_TRY(c.set_xattr(made.inode, "user.x", std::string(65536, 'x'), 0, v.now));
      }
      return {};
    });
  };
  while (v.bed->store().info().chunks.size() < chunks + 4) {
    add();
    REQUIRE(files < 10000);
    if (files % 500 == 0) REQUIRE(v.catalog->maintain());
  }
  CHECK(v.catalog->space()->free == free - 4 * kGroupSize / kBlockSize);
  CHECK(v.problems() == "");
  v.reopen();
  add();
  CHECK(v.problems() == "");
}

TEST_CASE(
    "catalog: a thin LUN without space for another chunk stops growth only, until it has some") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = dynamic_cast<FileCatalogStore&>(bed->store());
  store.claims = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
  TestCatalog v{std::move(bed)};
  auto chunks = store.info().chunks.size();
  auto free = v.catalog->space()->free;
  for (int i = 0; i < 1100; ++i) v.file("a" + std::to_string(i));
  CHECK(store.info().chunks.size() == chunks);
  CHECK(v.catalog->space()->free == free);
  v.reopen();
  CHECK(v.problems() == "");
  store.claims = {};
  for (int i = 0; i < 1100; ++i) v.file("b" + std::to_string(i));
  CHECK(store.info().chunks.size() > chunks);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: with its pages short places of copies are told all the same, and none taken") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = dynamic_cast<FileCatalogStore&>(bed->store());
  store.claims = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
  TestCatalog v{std::move(bed)};
  auto places = [&](std::uint32_t slot, std::uint64_t pages) {
    return v.change([&](Catalog& c) { return copy_space(c).copy_places(slot, pages); });
  };
  auto had = places(0, 100);
  REQUIRE(had);
  REQUIRE(had->size() == 1);
  v.sql("CREATE TABLE filler(x); INSERT INTO filler VALUES(zeroblob(40000000))");
  REQUIRE(errno_of(v.change([&](Catalog& c) {
            return c.make(kRootInode, "x", {.mode = S_IFREG | 0644}, v.now);
          })) == ENOSPC);
  for (std::uint64_t pages : {0, 100}) {
    auto now = places(0, pages);
    REQUIRE_MESSAGE(now, now.error().message());
    CHECK(*now == *had);
  }
  auto none = places(1, 0);
  REQUIRE_MESSAGE(none, none.error().message());
  CHECK(none->empty());
  CHECK(errno_of(places(1, 100)) == ENOSPC);
}

TEST_CASE("catalog: what is written into preallocated space leaves pages for what must go on") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = dynamic_cast<FileCatalogStore&>(bed->store());
  store.claims = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
  TestCatalog v{std::move(bed)};
  auto f = v.file("f");
  auto s = v.must([](Catalog& c) { return c.new_session(NodeId{1}, 7); });
  auto g = v.must([&](Catalog& c) { return c.new_grant(s.id, f.inode); });
  v.place(f.inode, 0, 10000, BlockState::unwritten);
  v.place(f.inode, 10000, 100, BlockState::granted, g);
  v.must([&](Catalog& c) { return c.grow(f.inode, 10000 * kBlockSize, v.now); });
  auto write = [&](std::uint64_t block) {
    return errno_of(v.change([&](Catalog& c) { return c.mark_written(f.inode, block, 1); }));
  };
  auto punch = [&](std::uint64_t block, bool keep) {
    return errno_of(v.change([&](Catalog& c) { return c.punch(f.inode, block, 1, keep, v.now); }));
  };
  auto commit = [&](std::uint64_t block) {
    return errno_of(
        v.change([&](Catalog& c) { return c.commit_grant(s.id, f.inode, g, block, 1, 0); }));
  };
  auto make = [&](const char* name) {
    return errno_of(v.change(
        [&](Catalog& c) { return c.make(kRootInode, name, {.mode = S_IFREG | 0644}, v.now); }));
  };
  v.sql("CREATE TABLE filler(x); INSERT INTO filler VALUES(zeroblob(40000000))");
  CHECK(make("x") == ENOSPC);
  CHECK(write(7) == 0);
  CHECK(punch(100, true) == 0);
  CHECK(commit(10000) == 0);
  v.sql("INSERT INTO filler VALUES(zeroblob(10000000))");
  CHECK(make("x") == ENOSPC);
  CHECK(write(3000) == ENOSPC);
  CHECK(punch(7, true) == ENOSPC);
  CHECK(commit(10002) == ENOSPC);
  // A hole in the middle of a row makes two of it.
  CHECK(punch(200, false) == ENOSPC);
  CHECK(errno_of(v.change([&](Catalog& c) {
          return c.punch(f.inode, 2 * kWindow, kWindow, false, v.now);
        })) == 0);
  // From the middle of one row into the middle of another.
  CHECK(errno_of(v.change([&](Catalog& c) {
          return c.punch(f.inode, kWindow * 7 / 2, kWindow, false, v.now);
        })) == 0);
  v.must([](Catalog& c) { return c.new_session(NodeId{2}, 8); });
  v.must([&](Catalog& c) { return c.truncate(f.inode, 5000 * kBlockSize, v.now); });
  v.sql("DELETE FROM filler");
  CHECK(write(3000) == 0);
  CHECK(punch(200, false) == 0);
  CHECK(make("x") == 0);
}

TEST_CASE("catalog: holes in shared blocks leave those pages, too") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = bed->store();
  store.claims = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
  TestCatalog v{std::move(bed)};
  auto f = v.file("f"), g = v.file("g");
  constexpr auto kBlocks = 4 * kWindow;
  v.place(f.inode, 0, kBlocks);
  v.must([&](Catalog& c) { return c.grow(f.inode, kBlocks * kBlockSize, v.now); });
  v.must([&](Catalog& c) -> Expected<Attr> {
    CSV_TRY(c.clone(f.inode, 0, kBlocks, g.inode, 0));
    return c.grow(g.inode, kBlocks * kBlockSize, v.now);
  });
  auto punch = [&](std::uint64_t first, std::uint64_t count) {
    return errno_of(
        v.change([&](Catalog& c) { return c.punch(g.inode, first, count, false, v.now); }));
  };
  v.sql("CREATE TABLE filler(x); INSERT INTO filler VALUES(zeroblob(50000000))");
  CHECK(errno_of(v.change([&](Catalog& c) {
          return c.make(kRootInode, "x", {.mode = S_IFREG | 0644}, v.now);
        })) == ENOSPC);
  // No row of the file becomes two, but the range of what is shared does.
  CHECK(punch(kWindow / 2, kWindow) == ENOSPC);
  CHECK(punch(kWindow, kWindow) == ENOSPC);
  CHECK(punch(0, kBlocks) == 0);
  v.sql("DROP TABLE filler");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: without a page left it stays what it is, and grows once there is one") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = bed->store();
  store.claims = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
  TestCatalog v{std::move(bed)};
  auto f = v.file("f");
  v.place(f.inode, 0, 4 * kWindow);
  take_all_pages(v);
  // A group is wholly free, and the LUN has space: but the group's own row needs a page.
  store.claims = {};
  auto chunks = store.info().chunks.size();
  auto look = [&] { return errno_of(v.change([](Catalog& c) { return c.attr(kRootInode); })); };
  for (bool reopened : {false, true}) {
    CAPTURE(reopened);
    if (reopened) v.reopen();
    CHECK(look() == 0);
    CHECK(v.catalog->maintain());
    CHECK(store.info().chunks.size() == chunks);
  }
  v.sql("DELETE FROM filler WHERE length(x) < 1000000");
  // Not tried with each group: to claim a chunk may have cost the LUN a chunk's writing.
  for (int i = 0; i < 1100 && store.info().chunks.size() == chunks; ++i) REQUIRE(look() == 0);
  CHECK(store.info().chunks.size() == chunks + 1);
  v.sql("DROP TABLE filler");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: where the LUN cannot be written it does not grow, but elsewhere") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = bed->store();
  store.claims = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
  TestCatalog v{std::move(bed)};
  take_all_pages(v);
  v.sql("DELETE FROM filler WHERE length(x) < 1000000");
  store.claims = {};
  store.asked_for.clear();
  store.bad_places = 2;
  auto chunks = store.info().chunks.size();
  for (int i = 0; i < 1100 && store.info().chunks.size() == chunks; ++i)
    REQUIRE(errno_of(v.change([](Catalog& c) { return c.attr(kRootInode); })) == 0);
  CHECK(store.info().chunks.size() == chunks + 1);
  std::set<std::uint64_t> places{store.asked_for.begin(), store.asked_for.end()};
  CHECK(store.asked_for.size() == 3);
  CHECK(places.size() == 3);
  CHECK(store.info().chunks.back() == store.asked_for.back());
  v.sql("DROP TABLE filler");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: without a page left freeing in steps is put off") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  bed->store().claims = Error{std::errc::no_space_on_device, "the thin LUN has no space left"};
  TestCatalog v{std::move(bed)};
  // Their blocks lie in turn, so that what is dying of one has a row for each. Some is dying
  // already: the next row page is not far.
  auto gone = v.file("gone"), stays = v.file("stays"), f = v.file("f");
  for (std::uint64_t i = 0; i < 700; ++i) {
    if (i < 200) v.place(gone.inode, i * kWindow, 1, BlockState::unwritten);
    v.place(stays.inode, i * kWindow, 1, BlockState::unwritten);
    v.place(f.inode, i * kWindow, 1, BlockState::unwritten);
  }
  auto empty = [&](InodeId inode) {
    v.must([&](Catalog& c) { return c.grow(inode, 700 * kWindow * kBlockSize, v.now); });
    v.must([&](Catalog& c) { return c.truncate(inode, 0, v.now); });
  };
  empty(gone.inode);
  while (v.catalog->space()->freeing) REQUIRE(v.catalog->maintain());
  empty(f.inode);
  REQUIRE(v.catalog->space()->freeing);
  take_all_pages(v);
  for (bool reopened : {false, true}) {
    CAPTURE(reopened);
    if (reopened) v.reopen();
    CHECK(v.catalog->maintain());
    // Nobody waits for what cannot be done now.
    CHECK(!v.catalog->space()->freeing);
    CHECK(errno_of(v.change([](Catalog& c) { return c.attr(kRootInode); })) == 0);
  }
  v.sql("DROP TABLE filler");
  v.settle();
  CHECK(v.catalog->space()->dying == 0);
  CHECK(v.catalog->attr(f.inode)->blocks == 0);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: growth that a crash interrupted is finished when it is opened") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = bed->store();
  TestCatalog v{std::move(bed)};
  store.fail_add_chunk = true;
  auto change = making(v, "x");
  CHECK_FALSE(v.catalog->run({&change, 1}));  // it wanted a chunk first
  CHECK_FALSE(v.catalog->run({&change, 1}));  // and has been given up
  store.fail_add_chunk = false;
  auto chunks = v.bed->store().info().chunks.size();
  v.reopen();
  CHECK(v.bed->store().info().chunks.size() == chunks + 1);
  v.file("x");
  CHECK(v.problems() == "");
}

TEST_CASE(
    "catalog: with the last pages kept, a full catalog refuses what grows and can be emptied") {
  TestCatalog v{192 * kMiB};  // One group is left beside the first chunk and the one it grows by.
  auto hog = v.file("hog");
  REQUIRE(v.catalog->maintain());
  v.place(hog.inode, 0, v.catalog->space()->free - 100);
  auto dir = v.directory("d");
  std::vector<InodeId> files;
  int refused = 0;
  for (int i = 0; refused == 0; ++i) {
    REQUIRE(i < 5000);
    auto made = v.change([&](Catalog& c) -> Expected<Attr> {
      auto attr = CSV_TRY(c.make(dir.inode, std::to_string(i), {.mode = S_IFREG | 0644}, v.now));
      CSV_TRY(c.set_xattr(attr.inode, "user.x", std::string(65536, 'x'), 0, v.now));
      return attr;
    });
    if (made) {
      files.push_back(made->inode);
      continue;
    }
    CHECK(made.error().to_errno() == ENOSPC);
    ++refused;
  }
  CHECK(files.size() > 100);
  CHECK(v.problems() == "");
  // What frees goes on, with its session's results.
  auto s = v.must([](Catalog& c) { return c.new_session(NodeId{1}, 1); });
  for (std::size_t i = 0; i < files.size(); ++i)
    v.must([&](Catalog& c) -> Expected<void> {
      CSV_TRY(c.unlink(dir.inode, std::to_string(i), v.now));
      CSV_TRY(c.reap(files[i]));
      return c.put_slot(s.id, 1, {i, "done"});
    });
  v.file("again");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: after an error of the store nothing runs any more") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = bed->store();
  TestCatalog v{std::move(bed)};
  v.file("before");
  store.sick = Error{Errc::lun_lost, "the LUN is gone"};
  auto change = making(v, "x");
  auto ran = v.catalog->run({&change, 1});
  CHECK(ran.error() == Errc::lun_lost);
  store.sick = {};
  CHECK(v.catalog->run({&change, 1}).error() == Errc::lun_lost);
  CHECK(v.catalog->maintain().error() == Errc::lun_lost);
  CHECK(v.catalog->checkpoint().error() == Errc::lun_lost);
  v.reopen();
  CHECK(exists(v, "before"));
}

TEST_CASE("catalog: the log is copied back when it is long and does not grow without bound") {
  TestCatalog v;
  auto file = v.file("f");
  for (int i = 0; i < 600; ++i) {
    v.must([&](Catalog& c) {
      return c.set_xattr(file.inode, "user.x", std::string(65536, static_cast<char>('a' + i % 26)),
                         0, v.now);
    });
    CHECK(v.catalog->statistics().wal_bytes < 52 * kMiB);
    if (i == 300) {
      REQUIRE(v.catalog->maintain());
      CHECK(v.catalog->statistics().wal_bytes == 0);
    }
  }
  CHECK(v.catalog->statistics().checkpoints >= 1);
}

TEST_CASE("catalog: a newer schema is refused") {
  TestCatalog v;
  v.catalog.reset();
  v.sql("UPDATE kv SET value=99 WHERE key='schema_version'");
  CHECK(Catalog::open(v.bed->store()).error() == Errc::refused);
}

TEST_CASE("catalog: the database keeps eight bytes of each page for the store") {
  auto bed = std::make_unique<FileBed>(2 * kGiB);
  auto& store = bed->store();
  TestCatalog v{std::move(bed)};
  REQUIRE(v.catalog->checkpoint());
  std::string bytes(4096, '\0');
  std::ifstream{store.path(), std::ios::binary}.read(bytes.data(), 4096);
  CHECK(bytes[16] == 0x10);  // pages of 4096 bytes
  CHECK(bytes[17] == 0x00);
  CHECK(bytes[18] == 2);  // a write-ahead log
  CHECK(bytes[20] == 8);
}
