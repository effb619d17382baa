// For every kind of damage that check() knows, a catalog with that damage.
#include "coordinator/volume/catalog_check.h"

#include <sqlite3.h>

#include <fstream>
#include <functional>

#include "coordinator/volume/database.h"
#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

namespace {

/// Something of everything.
struct Populated : TestCatalog {
  Populated() : TestCatalog{std::make_unique<FileBed>(2 * kGiB)} {
    dir = directory("dir").inode;
    below = directory("below", dir).inode;
    a = file("a", dir).inode;
    b = file("b", dir).inode;
    linked = file("linked").inode;
    must([&](Catalog& c) { return c.link(linked, dir, "link", now); });
    must([&](Catalog& c) {
      return c.make(kRootInode, "symlink", {.mode = S_IFLNK | 0777, .target = "there"}, now);
    });
    place(a, 0, 3000);
    must([&](Catalog& c) { return c.fill(b, 0, 100); });
    must([&](Catalog& c) { return c.grow(b, 100 * kBlockSize, now); });
    must([&](Catalog& c) { return c.mark_written(b, 10, 20); });
    must([&](Catalog& c) { return c.set_xattr(a, "user.x", "value", 0, now); });
    session = must([](Catalog& c) { return c.new_session(NodeId{1}, 1); }).id;
    must([&](Catalog& c) { return c.put_slot(session, 3, {1, "reply"}); });
    auto number = must([](Catalog& c) { return c.new_key_number(); });
    AdmissionRow admission;
    admission.key = make_key({1, NodeId{1}, KeyRole::mount, number});
    admission.session = session;
    must([&](Catalog& c) { return c.put_admission(admission); });
    grant = must([&](Catalog& c) { return c.new_grant(session, a); });
    place(a, 3000, 50, BlockState::granted, grant);
    auto gone = file("gone").inode;
    place(gone, 0, 10);
    must([&](Catalog& c) { return c.unlink(kRootInode, "gone", now); });
    orphan = file("orphan").inode;
    place(orphan, 0, 10);
    must([&](Catalog& c) { return c.unlink(kRootInode, "orphan", now); });
    must([&](Catalog& c) { return c.reap(gone); });
    REQUIRE(problems() == "");
    catalog.reset();
  }
  std::string id(InodeId inode) { return std::to_string(raw(inode)); }

  InodeId dir{}, below{}, a{}, b{}, linked{}, orphan{};
  SessionId session{};
  GrantId grant{};
};

/// With this done to the database, check() says that.
void finds(const std::function<std::string(Populated&)>& damage, std::string_view said) {
  Populated v;
  auto sql = damage(v);
  CAPTURE(sql);
  v.sql(sql);
  auto problems = v.problems();
  CHECK_MESSAGE(problems.find(said) != std::string::npos, "found: " << problems);
}

}  // namespace

TEST_CASE("check: a catalog with something of everything is clean, and its figures are told") {
  Populated v;
  CheckReport report;
  std::uint64_t steps = 0, of = 0;
  REQUIRE(check_catalog(v.bed->store(), report, [&](std::uint64_t done, std::uint64_t all) {
    CHECK(done <= all);
    ++steps;
    of = all;
  }));
  CHECK(report.problems.empty());
  CHECK(report.inodes == 8);
  CHECK(report.entries == 7);
  CHECK(report.orphans == 1);
  CHECK(report.extents >= 5);
  v.reopen();
  auto space = *v.catalog->space();
  CHECK(report.free_blocks == space.free - space.dying);
  CHECK(report.used_blocks == space.total - space.free);
  CHECK(steps == of + 1);
}

TEST_CASE("check: finds what is wrong with inodes") {
  finds([](auto& v) { return "UPDATE inodes SET nlink=nlink+1 WHERE id=" + v.id(v.a); },
        "2 links, but 1 names were found");
  finds([](auto& v) { return "UPDATE inodes SET nlink=nlink+1 WHERE id=" + v.id(v.dir); },
        "4 links, but 3 were counted");
  finds([](auto& v) { return "UPDATE inodes SET size=size+1 WHERE id=" + v.id(v.dir); },
        "5 entries, but 4 were counted");
  finds([](auto& v) { return "UPDATE inodes SET mode=0 WHERE id=" + v.id(v.a); },
        "is of no known type");
  finds([](auto&) { return "UPDATE inodes SET size=size+1 WHERE target IS NOT NULL"; },
        "its size is not that of its target");
  finds([](auto& v) { return "UPDATE inodes SET size=1<<45 WHERE id=" + v.id(v.a); },
        "is over 16 TiB");
  finds([](auto& v) { return "UPDATE inodes SET blocks=blocks-1 WHERE id=" + v.id(v.a); },
        "but its extents have 3050");
  finds([](auto& v) { return "UPDATE inodes SET nlink=0 WHERE id=" + v.id(v.a); },
        "has no links and is no orphan");
  finds([](auto&) { return "DELETE FROM inodes WHERE id=1"; }, "the root directory is missing");
  finds([](auto&) { return "UPDATE inodes SET parent=2 WHERE id=1"; },
        "the root directory is missing or is none");
}

TEST_CASE("check: finds what is wrong with names") {
  finds([](auto& v) { return "DELETE FROM inodes WHERE id=" + v.id(v.b); }, "does not exist");
  finds([](auto&) { return "DELETE FROM entries WHERE name=x'61'"; },
        "1 links, but 0 names were found");
  finds([](auto&) { return "UPDATE entries SET name=x'2f' WHERE name=x'61'"; }, "not a name");
  finds([](auto&) { return "UPDATE entries SET parent=999 WHERE name=x'61'"; },
        "there is no such directory");
  finds([](auto& v) { return "UPDATE entries SET parent=" + v.id(v.b) + " WHERE name=x'61'"; },
        "there is no such directory");
  finds([](auto&) { return "UPDATE entries SET cookie=5000 WHERE name=x'61'"; },
        "cookie 5000 was never given out");
  finds([](auto& v) { return "UPDATE inodes SET parent=1 WHERE id=" + v.id(v.below); },
        "says that its parent is 1");
  finds(
      [](auto& v) {
        return "INSERT INTO entries SELECT 1,x'7878'," + v.id(v.below) +
               ",next_cookie FROM inodes WHERE id=1";
      },
      "has 2 names");
  finds(
      [](auto& v) {
        return "UPDATE inodes SET parent=" + v.id(v.below) + " WHERE id=" + v.id(v.a);
      },
      "no name of it is in its home");
  // Two directories that are each other's parents.
  finds(
      [](auto& v) {
        return "UPDATE entries SET parent=" + v.id(v.below) + " WHERE inode=" + v.id(v.dir) +
               "; UPDATE inodes SET parent=" + v.id(v.below) + " WHERE id=" + v.id(v.dir);
      },
      "does not lead up to the root");
}

TEST_CASE("check: finds what is wrong with links, orphans and attributes") {
  finds([](auto&) { return "UPDATE links SET count=2 WHERE parent=1"; },
        "2 links in directory 1 are noted, but 1 were found");
  finds([](auto&) { return "DELETE FROM links WHERE parent=1"; }, "are not noted");
  finds([](auto& v) { return "INSERT INTO links VALUES(" + v.id(v.a) + ",1,1)"; },
        "are noted, but 0 were found");
  finds([](auto&) { return "DELETE FROM orphans"; }, "has no links and is no orphan");
  finds([](auto& v) { return "INSERT INTO orphans VALUES(" + v.id(v.a) + ",0)"; },
        "says that it has 1 links");
  finds([](auto&) { return "INSERT INTO orphans VALUES(999,0)"; }, "orphan 999 has no inode");
  finds([](auto&) { return "UPDATE xattrs SET inode=999"; },
        "extended attribute \"user.x\" of inode 999, which does not exist");
  finds([](auto&) { return "UPDATE xattrs SET value=zeroblob(70000)"; }, "is too long");
}

TEST_CASE("check: finds attributes that no inode can have") {
  auto set = [](const std::string& what) {
    return [what](Populated& v) { return "UPDATE inodes SET " + what + " WHERE id=" + v.id(v.a); };
  };
  for (const auto* what :
       {"uid=-1", "gid=1<<32", "mode=mode|65536", "nlink=-1", "keep_beyond_end=2", "id=0"})
    finds(set(what), "it has attributes that no inode can have");
  finds(set("id=-7"), "its number has not been given out yet");
  for (const auto* what : {"2", "-1"})
    finds(
        [&](Populated& v) {
          return "UPDATE inodes SET next_cookie=" + std::string{what} + " WHERE id=" + v.id(v.dir);
        },
        "it has attributes that no inode can have");
  for (const auto* number : {"('key_generation',1<<32)", "('target_losses',-1)"})
    finds([&](auto&) { return "INSERT OR REPLACE INTO kv VALUES" + std::string{number}; },
          "the target's memory cannot be");
}

TEST_CASE("check: finds what is wrong with access control lists") {
  auto acl = [](const std::string& name, const std::string& mask) {
    return "CAST('system.posix_acl_" + name +
           "' AS BLOB),x'02000000"
           "01000600ffffffff"
           "02000" +
           mask +
           "00e8030000"
           "04000400ffffffff"
           "10000" +
           mask +
           "00ffffffff"
           "20000400ffffffff')";
  };
  auto put = [&](const std::string& name, const std::string& mask) {
    return [=](Populated& v) {
      return "INSERT INTO xattrs VALUES(" + v.id(v.a) + "," + acl(name, mask);
    };
  };
  finds(put("access", "6"), "its ACL does not say what its mode says");
  finds(put("default", "4"), "a default ACL, but no directory");
  finds(
      [&](Populated& v) {
        return "INSERT INTO xattrs VALUES(" + v.id(v.a) +
               ",CAST('system.posix_acl_access' AS BLOB),x'02')";
      },
      "cannot be read");
}

TEST_CASE("check: finds what is wrong with extents") {
  auto a = [](Populated& v) { return " WHERE inode=" + v.id(v.a) + " AND file_block=0"; };
  auto b = [](Populated& v) { return " WHERE inode=" + v.id(v.b); };
  finds([&](auto& v) { return "UPDATE extents SET count=count-1" + a(v); },
        "blocks from LUN block");
  finds([&](auto& v) { return "UPDATE extents SET count=2049" + a(v); },
        "an extent of 2049 blocks cannot lie there");
  finds([&](auto& v) { return "UPDATE extents SET count=0" + a(v); }, "cannot lie there");
  finds([&](auto& v) { return "UPDATE extents SET file_block=4000, count=200" + a(v); },
        "cannot lie there");
  finds(
      [&](auto& v) {
        return "UPDATE extents SET file_block=2047 WHERE inode=" + v.id(v.a) +
               " AND file_block=2048"
               "; UPDATE extents SET file_block=2048 WHERE file_block=0 AND inode=" +
               v.id(v.a);
      },
      "cannot lie there");
  finds([&](auto& v) { return "INSERT INTO extents VALUES(" + v.id(v.a) + ",100,1,1,0,1,0,NULL)"; },
        "two extents overlap");
  finds([&](auto& v) { return "UPDATE extents SET lun_block=1" + a(v); },
        "are outside the data area");
  finds([&](auto& v) { return "UPDATE extents SET lun_block=lun_block+1" + b(v); },
        "belong to something else too");
  finds([&](auto& v) { return "UPDATE extents SET written_count=21" + b(v); },
        "its bitmap does not say");
  finds([&](auto& v) { return "UPDATE extents SET written=zeroblob(13)" + b(v); },
        "its bitmap does not say");
  finds([&](auto& v) { return "UPDATE extents SET written=NULL" + b(v); },
        "its bitmap does not say");
  finds([&](auto& v) { return "UPDATE extents SET written=zeroblob(14)" + b(v); },
        "its bitmap does not say");
  finds([&](auto& v) { return "UPDATE extents SET birth=7" + b(v); }, "born at 7");
  finds([&](auto& v) { return "UPDATE inodes SET size=4096 WHERE id=" + v.id(v.b); },
        "written beyond the end of the file");
  finds([&](auto& v) { return "UPDATE extents SET inode=999" + b(v); },
        "an extent of an inode that does not exist");
  finds([&](auto& v) { return "UPDATE extents SET inode=" + v.id(v.dir) + b(v); },
        "an extent of what is no regular file");
}

TEST_CASE("check: finds what is wrong with space") {
  finds([](auto&) { return "UPDATE groups SET free=free+1"; }, "its bitmap says");
  finds([](auto&) { return "UPDATE groups SET longest_free=longest_free+1"; }, "its bitmap says");
  finds([](auto&) { return "UPDATE groups SET bitmap=zeroblob(2048) WHERE id=0"; },
        "are in use and marked free");
  finds([](auto&) { return "UPDATE groups SET bitmap=zeroblob(2047) WHERE id=0"; },
        "its bitmap has 2047 bytes");
  finds([](auto&) { return "UPDATE groups SET id=9999 WHERE id=0"; },
        "is behind the end of the data area");
  finds([](auto&) { return "DELETE FROM dying"; }, "are used by nothing");
  finds([](auto&) { return "UPDATE dying SET count=count-1"; }, "blocks are dying, the total says");
  finds([](auto&) { return "UPDATE fresh SET count=count-1"; },
        "allocation groups have a bitmap or are fresh, the data area has");
  finds([](auto&) { return "UPDATE fresh SET count=9999"; }, "cannot be");
  finds([](auto&) { return "INSERT INTO fresh VALUES(0,1)"; },
        "allocation group 0 is fresh and yet has a bitmap");
  finds([](auto&) { return "DELETE FROM groups WHERE id=0; INSERT INTO fresh VALUES(0,1)"; },
        "allocation group 0 is fresh and yet has blocks in use");
  finds([](auto&) { return "UPDATE kv SET value=value+1 WHERE key='free'"; },
        "blocks are free, the total says");
  finds([](auto&) { return "UPDATE kv SET value=value+1 WHERE key='inodes'"; },
        "inodes, the total says");
  finds([](auto&) { return "INSERT INTO freeing VALUES(999,5,5)"; },
        "are being freed twice or not at all");
  finds([](auto&) { return "INSERT INTO freeing VALUES(999,5,9),(999,8,10)"; },
        "are being freed twice");
  finds([](auto&) { return "INSERT INTO freeing VALUES(999,5,1<<50)"; },
        "which no file has, are being freed");
  finds([](auto&) { return "UPDATE chunks SET number=number+1 WHERE number=1"; },
        "catalog chunk 1 is not listed");
  finds([](auto&) { return "UPDATE chunks SET at=at+67108864 WHERE number=1"; },
        "the superblock maps other chunks");
}

TEST_CASE("check: finds blocks behind a data area that ends inside a group") {
  TestCatalog v{std::make_unique<FileBed>(500 * kMiB)};
  auto f = v.file("f");
  REQUIRE(v.catalog->maintain());
  v.place(f.inode, 0, v.catalog->space()->free);
  CHECK(v.problems() == "");
  v.catalog.reset();
  v.sql("UPDATE groups SET bitmap=CAST(substr(bitmap,1,2047)||x'7f' AS BLOB) WHERE id=7");
  CHECK(v.problems().find("blocks behind the end of the data area are free") != std::string::npos);
}

TEST_CASE("check: finds what is wrong with sessions, grants, admissions and numbers") {
  finds([](auto&) { return "DELETE FROM sessions"; }, "slot 3 of session 1, which does not exist");
  finds([](auto&) { return "DELETE FROM sessions"; }, "is of session 1, which does not exist");
  finds([](auto&) { return "DELETE FROM sessions"; }, "grant 1 is of session 1");
  finds([](auto&) { return "UPDATE admissions SET state=3"; }, "is in state 3");
  finds([](auto&) { return "UPDATE admissions SET key=key+5"; },
        "its key's number has not been given out yet");
  finds([](auto&) { return "UPDATE grants SET unwritten=49"; },
        "49 unwritten blocks, but its extents have 50");
  finds([](auto&) { return "DELETE FROM grants"; }, "grant 1 is not one on this inode");
  finds([](auto& v) { return "UPDATE grants SET inode=" + v.id(v.b); },
        "grant 1 is not one on this inode");
  for (auto number : {"next_inode", "next_session", "next_grant"})
    finds([&](auto&) { return "UPDATE kv SET value=1 WHERE key='" + std::string{number} + "'"; },
          "number has not been given out yet");
  finds([](auto&) { return "DELETE FROM kv WHERE key='birth'"; }, "the number birth is missing");
  finds([](auto&) { return "UPDATE kv SET value=9 WHERE key='schema_version'"; },
        "the schema is 9, not 4");
}

TEST_CASE("check: finds a table that is gone and an index that lies") {
  finds([](auto&) { return "DROP TABLE xattrs"; }, "extended attributes cannot be read");
  Populated v;
  // The index's pages are given to a table that has other rows.
  v.sql("CREATE TABLE copy(x); INSERT INTO copy VALUES(1)");
  {
    auto database = Database::open(v.bed->store().path(), nullptr, {});
    REQUIRE(database);
    int on = 0;
    sqlite3_db_config((*database)->handle(), SQLITE_DBCONFIG_DEFENSIVE, 0, &on);
    REQUIRE(
        (*database)->execute("PRAGMA writable_schema=ON; UPDATE sqlite_schema SET rootpage="
                             "(SELECT rootpage FROM sqlite_schema WHERE name='copy')"
                             " WHERE name='groups_by_longest_free'"));
  }
  CHECK(v.problems().find("the database is damaged") != std::string::npos);
}

TEST_CASE("check: reads a catalog that is being used, and a page that is damaged is said") {
  TestCatalog v{std::make_unique<FileBed>(2 * kGiB)};
  for (int i = 0; i < 2000; ++i) v.file("file" + std::to_string(i));
  REQUIRE(v.catalog->checkpoint());
  v.file("in the log");
  CHECK(v.problems() == "");
  v.catalog.reset();
  std::fstream file{v.bed->store().path(), std::ios::in | std::ios::out | std::ios::binary};
  file.seekp(20 * 4096);
  file << std::string(20 * 4096, '\xa5') << std::flush;
  CHECK(v.problems() != "");
}
