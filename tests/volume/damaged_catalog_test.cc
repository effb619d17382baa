// A catalog that is damaged behind right checksums: a bug's work, or somebody's. Found, not
// followed.
#include <doctest/doctest.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include <string>

#include "coordinator/volume/database.h"
#include "coordinator/volume/parent_chain.h"
#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

TEST_CASE("catalog: directories that go round in a circle are told, not followed for ever") {
  TestCatalog t;
  auto upper = t.directory("upper").inode, lower = t.directory("lower", upper).inode;
  t.directory("moved");
  t.sql("UPDATE inodes SET parent = " + std::to_string(raw(lower)) +
        " WHERE id = " + std::to_string(raw(upper)));
  t.reopen();
  auto moved =
      t.change([&](Catalog& c) { return c.rename(kRootInode, "moved", lower, "moved", 0, 3000); });
  REQUIRE_FALSE(moved);
  CHECK(moved.error() == Errc::corrupt);
  auto space = t.change([&](Catalog& c) -> Expected<std::vector<Run>> {
    auto file = CSV_TRY(c.make(lower, "file", {.mode = S_IFREG | 0644}, 3000));
    return c.reserve_space(file.inode, 8, 0, 8);
  });
  CHECK_FALSE(space);
}

TEST_CASE("parent chain: finds a circle of any length behind a way of any length, and no other") {
  for (std::uint64_t way : {0, 1, 7, 100})
    for (std::uint64_t round : {1, 2, 3, 50, 1000}) {
      ParentChain chain;
      bool found = false;
      for (std::uint64_t step = 0; step < 10 * (way + round) + 100 && !found; ++step) {
        auto at = step < way ? step : way + (step - way) % round;
        found = chain.circles(InodeId{at + 1});
      }
      CHECK(found);
    }
  ParentChain straight;
  for (std::uint64_t step = 1; step < 100'000; ++step)
    REQUIRE_FALSE(straight.circles(InodeId{step}));
}

TEST_CASE("catalog: a grant whose index lists what its table has not is told, not ended for ever") {
  TestCatalog t{std::make_unique<FileBed>(2 * kGiB)};
  auto session = t.must([](Catalog& c) { return c.new_session(NodeId{1}, 7); }).id;
  auto file = t.file("file").inode;
  auto grant = t.must([&](Catalog& c) { return c.new_grant(session, file); });
  t.place(file, 0, 16, BlockState::granted, grant);
  // The index is hidden while its table changes under it.
  auto database = Database::open(t.bed->store().path(), t.bed->store().vfs(), {});
  REQUIRE(database);
  int on = 0;
  sqlite3_db_config((*database)->handle(), SQLITE_DBCONFIG_DEFENSIVE, 0, &on);
  auto damaged = (*database)->execute(
      "PRAGMA writable_schema=ON;"
      "CREATE TABLE hidden AS SELECT type,name,tbl_name,rootpage,sql FROM sqlite_schema"
      " WHERE name='extents_by_grant';"
      "DELETE FROM sqlite_schema WHERE name='extents_by_grant';"
      "PRAGMA writable_schema=RESET;"
      "UPDATE extents SET grant_id=0;"
      "PRAGMA writable_schema=ON;"
      "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql) SELECT * FROM hidden;"
      "PRAGMA writable_schema=RESET;"
      "DROP TABLE hidden;");
  REQUIRE_MESSAGE(damaged, damaged.error().message());
  database->reset();
  t.reopen();
  SUBCASE("of all files") {
    auto dropped = t.change([&](Catalog& c) { return c.drop_grants(session, {}, ~0ull); });
    REQUIRE_FALSE(dropped);
    CHECK(dropped.error() == Errc::corrupt);
  }
  SUBCASE("of one") {
    auto dropped = t.change([&](Catalog& c) { return c.drop_grants(session, file, ~0ull); });
    REQUIRE_FALSE(dropped);
    CHECK(dropped.error() == Errc::corrupt);
  }
}

TEST_CASE("catalog: what is to be freed and cannot be is told, not worked on for ever") {
  TestCatalog t;
  auto file = t.file("file").inode;
  t.place(file, 0, 16);
  SUBCASE("more than a file has") {
    t.sql("INSERT INTO freeing VALUES(" + std::to_string(raw(file)) + ",0,1<<50)");
  }
  SUBCASE("less than nothing") {
    t.sql("INSERT INTO freeing VALUES(" + std::to_string(raw(file)) + ",9,9)");
  }
  SUBCASE("negative") { t.sql("INSERT INTO freeing VALUES(7,-9,9)"); }
  t.reopen();
  auto maintained = t.catalog->maintain();
  REQUIRE_FALSE(maintained);
  CHECK(maintained.error() == Errc::corrupt);
  CHECK(maintained.error().message().find("are to be freed") != std::string::npos);
}
