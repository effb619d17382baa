// Breaks a volume in every way the check knows, repairs it, and looks that it is clean and that
// nothing else has changed.
#include "coordinator/volume/repair.h"

#include <sys/stat.h>

#include <atomic>
#include <set>

#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/grow.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/log.h"
#include "tests/volume/repair_bed.h"

using namespace csv;
using namespace csv::volume;

namespace {

using Files = std::map<std::string, std::string>;

bool says(const std::vector<std::string>& lines, std::string_view what) {
  for (const auto& line : lines)
    if (line.find(what) != line.npos) return true;
  for (const auto& line : lines) MESSAGE(line);
  return false;
}

/// What differs, but for lost+found itself, as paths.
std::set<std::string> differences(const Files& before, const Files& after) {
  std::set<std::string> paths;
  for (const auto& [path, text] : before)
    if (auto now = after.find(path); now == after.end() || now->second != text) paths.insert(path);
  for (const auto& [path, text] : after)
    if (!before.contains(path) && path != "/lost+found") paths.insert(path);
  return paths;
}

struct Damage {
  std::function<std::string(RepairBed&)> sql;
  std::string finding;                 ///< In what is found wrong.
  std::set<std::string> changes = {};  ///< Paths that are not as before afterwards.
  std::string outcome = {};            ///< In what was done.
};

void repairs(const Damage& damage) {
  RepairBed v;
  auto before = v.files();
  auto sql = damage.sql(v);
  CAPTURE(sql);
  v.sql(sql);
  auto repair = v.repair();
  CHECK(says(repair->findings(), damage.finding));
  if (!damage.outcome.empty()) CHECK(says(repair->actions(), damage.outcome));
  CHECK(differences(before, v.files()) == damage.changes);
  // And it can be used.
  v.use([](Catalog& catalog) {
    RepairBed::change(catalog, [](Catalog& c) -> Expected<void> {
      auto file = CSV_TRY(c.make(kRootInode, "after", {.mode = S_IFREG | 0644}, 1));
      auto runs = CSV_TRY(c.reserve_space(file.inode, 1, 0, 1));
      CSV_TRY(c.place(file.inode, 0, runs, BlockState::written, {}));
      CSV_TRY(c.grow(file.inode, kBlockSize, 1));
      return {};
    });
  });
  CHECK(v.problems() == "");
}

/// The LUN takes so many writes, half of one more, and then nothing.
iscsi::RamPlan dies_after(std::uint64_t writes) {
  auto seen = std::make_shared<std::uint64_t>(0);
  return [seen, writes](const iscsi::RamCommand& command) {
    using Kind = iscsi::RamCommand::Kind;
    iscsi::RamFate fate;
    if (command.kind != Kind::write && command.kind != Kind::zero) return fate;
    if ((*seen)++ < writes) return fate;
    fate.failure = Error{std::errc::io_error, "the LUN is gone"};
    if (*seen == writes + 1) fate.torn_blocks = command.length / 512 / 2;
    return fate;
  };
}

/// An access control list: of the owner rw, of user 1000 and the group `mask`, of others r.
std::string acl_of(int mask) {
  return fmt::format(
      "x'02000000"
      "01000600ffffffff"
      "02000{0}00e8030000"
      "04000{0}00ffffffff"
      "10000{0}00ffffffff"
      "20000400ffffffff'",
      mask);
}
std::string put_acl(RepairBed& v, const std::string& inode, const std::string& kind,
                    const std::string& value) {
  return "INSERT INTO xattrs VALUES(" + v.id(inode) + ",CAST('system.posix_acl_" + kind +
         "' AS BLOB)," + value + ")";
}

std::string where(RepairBed& v, const std::string& name) { return " WHERE id=" + v.id(name); }

}  // namespace

TEST_CASE("repair: a clean volume has nothing to be repaired") {
  RepairBed v;
  auto repair = v.prepare();
  CHECK(repair->findings().empty());
  CHECK(!repair->has_work());
}

TEST_CASE("repair: inodes") {
  repairs({[](auto& v) { return "UPDATE inodes SET nlink=nlink+1" + where(v, "a"); },
           "2 links, but 1 names were found",
           {},
           "2 links become 1"});
  repairs({[](auto& v) { return "UPDATE inodes SET nlink=nlink+1" + where(v, "dir"); },
           "4 links, but 3 were counted"});
  repairs({[](auto& v) { return "UPDATE inodes SET size=size+1" + where(v, "dir"); },
           "entries, but 4 were counted"});
  repairs({[](auto& v) { return "UPDATE inodes SET mode=420" + where(v, "a"); },
           "is of no known type",
           {},
           "becomes 100644"});
  repairs({[](auto& v) { return "UPDATE inodes SET mode=420" + where(v, "dir"); },
           "is of no known type",
           {"/dir"},
           "becomes 40644"});
  repairs({[](auto&) { return "UPDATE inodes SET size=size+1 WHERE target IS NOT NULL"; },
           "its size is not that of its target"});
  repairs({[](auto& v) { return "UPDATE inodes SET target=x'61'" + where(v, "a"); },
           "its size is not that of its target",
           {},
           "was dropped"});
  repairs({[](auto&) { return "UPDATE inodes SET target=NULL WHERE target IS NOT NULL"; },
           "its size is not that of its target",
           {"/symlink"},
           "becomes 100777"});
  repairs({[](auto& v) { return "UPDATE inodes SET size=1<<45" + where(v, "a"); },
           "is over 16 TiB",
           {},
           "where the last block it has written ends"});
  repairs({[](auto& v) { return "UPDATE inodes SET blocks=blocks-1" + where(v, "a"); },
           "but its extents have 3000"});
  repairs({[](auto& v) { return "UPDATE inodes SET nlink=0" + where(v, "a"); },
           "has no links and is no orphan"});
  repairs({[](auto&) { return "DELETE FROM inodes WHERE id=1"; },
           "the root directory is missing",
           {},
           "has been made anew"});
  repairs({[](auto&) { return "UPDATE inodes SET parent=2 WHERE id=1"; },
           "the root directory is missing or is none",
           {},
           "leads to itself again"});
}

TEST_CASE("repair: inodes that are lost are made anew where something says what they were") {
  repairs({[](auto& v) { return "DELETE FROM inodes" + where(v, "a"); },
           "does not exist",
           {"/dir/a"},
           "has been made anew"});
  repairs({[](auto& v) { return "DELETE FROM inodes" + where(v, "below"); },
           "does not exist",
           {"/dir/below"},
           "has been made anew"});
  RepairBed v;
  v.sql("DELETE FROM inodes WHERE target IS NOT NULL");
  auto repair = v.repair();
  CHECK(says(repair->actions(), "the entry was removed"));
  CHECK(!v.files().contains("/symlink"));
}

TEST_CASE("repair: names") {
  RepairBed probe;
  auto lost = [&](const std::string& name) { return "/lost+found/#" + probe.id(name); };
  repairs({[](auto&) { return "DELETE FROM entries WHERE name=x'61'"; },
           "1 links, but 0 names were found",
           {"/dir", "/dir/a", lost("a")},
           "it is lost+found/#"});
  repairs({[](auto&) { return "UPDATE entries SET name=x'2f' WHERE name=x'61'"; },
           "not a name",
           {"/dir", "/dir/a", lost("a")}});
  // A directory that is only referred to.
  repairs({[](auto&) { return "UPDATE entries SET parent=999 WHERE name=x'61'"; },
           "there is no such directory",
           {"/dir", "/dir/a", "/lost+found/#999", "/lost+found/#999/a"}});
  repairs({[](auto& v) { return "UPDATE entries SET parent=" + v.id("b") + " WHERE name=x'61'"; },
           "there is no such directory",
           {"/dir", "/dir/a", lost("a")}});
  repairs({[](auto&) { return "UPDATE entries SET cookie=5000 WHERE name=x'61'"; },
           "cookie 5000 was never given out",
           {},
           "its cookies go on from 5001"});
  repairs({[](auto&) { return "UPDATE entries SET cookie=1 WHERE name=x'61'"; },
           "cookie 1 was never given out",
           {},
           "got a cookie of its own"});
  repairs({[](auto& v) { return "UPDATE inodes SET parent=1" + where(v, "below"); },
           "says that its parent is 1"});
  repairs({[](auto& v) {
             return "INSERT INTO entries SELECT 1,x'7878'," + v.id("below") +
                    ",next_cookie FROM inodes WHERE id=1";
           },
           "has 2 names",
           {},
           "had several names"});
  repairs({[](auto& v) { return "UPDATE inodes SET parent=" + v.id("below") + where(v, "a"); },
           "no name of it is in its home"});
  repairs({[](auto& v) {
             return "INSERT INTO entries SELECT id,x'7878',1,next_cookie FROM inodes" +
                    where(v, "dir") + "; UPDATE inodes SET next_cookie=next_cookie+1" +
                    where(v, "dir");
           },
           "directory 1 has 1 names",
           {},
           "an entry for the root: it was removed"});
  // Two directories that are each other's parents.
  repairs({[](auto& v) {
             return "UPDATE entries SET cookie=100,parent=" + v.id("below") +
                    " WHERE inode=" + v.id("dir") + "; UPDATE inodes SET next_cookie=200" +
                    where(v, "below") + "; UPDATE inodes SET parent=" + v.id("below") +
                    where(v, "dir");
           },
           "does not lead up to the root",
           {"/dir", "/dir/a", "/dir/b", "/dir/below", "/dir/below/deep", "/dir/link", lost("dir"),
            lost("dir") + "/a", lost("dir") + "/b", lost("dir") + "/below",
            lost("dir") + "/below/deep", lost("dir") + "/link"},
           "did not lead up to the root"});
}

TEST_CASE("repair: a name that cannot be used for lost+found is left alone") {
  RepairBed v;
  v.use([](Catalog& catalog) {
    RepairBed::change(catalog, [](Catalog& c) -> Expected<void> {
      CSV_TRY(c.make(kRootInode, "lost+found", {.mode = S_IFREG | 0644}, 1));
      return {};
    });
  });
  v.sql("DELETE FROM entries WHERE name=x'61'");
  v.repair();
  auto files = v.files();
  CHECK(files.contains("/lost+found-1/#" + v.id("a")));
  CHECK(files.contains("/lost+found"));
}

TEST_CASE("repair: links, orphans and attributes") {
  repairs({[](auto&) { return "UPDATE links SET count=2 WHERE parent=1"; },
           "2 links in directory 1 are noted, but 1 were found"});
  repairs({[](auto&) { return "DELETE FROM links WHERE parent=1"; }, "are not noted"});
  repairs({[](auto& v) { return "INSERT INTO links VALUES(" + v.id("a") + ",1,1)"; },
           "are noted, but 0 were found"});
  repairs({[](auto&) { return "DELETE FROM orphans"; }, "has no links and is no orphan", {[] {
             RepairBed probe;
             return "/lost+found/#" + probe.id("orphan");
           }()}});
  repairs({[](auto& v) { return "INSERT INTO orphans VALUES(" + v.id("a") + ",0)"; },
           "says that it has 1 links"});
  repairs(
      {[](auto&) { return "INSERT INTO orphans VALUES(99999,0)"; }, "orphan 99999 has no inode"});
  repairs({[](auto&) { return "INSERT INTO xattrs VALUES(99999,x'61',x'62')"; },
           "of inode 99999, which does not exist"});
  repairs(
      {[](auto& v) { return "INSERT INTO xattrs VALUES(" + v.id("b") + ",x'61',zeroblob(70000))"; },
       "is too long"});
}

TEST_CASE("repair: attributes that no inode can have") {
  auto set = [](const std::string& what, const std::string& name) {
    return [what, name](RepairBed& v) { return "UPDATE inodes SET " + what + where(v, name); };
  };
  constexpr const char* kFound = "it has attributes that no inode can have";
  repairs({set("uid=-1", "a"), kFound, {}, "it is root's now"});
  repairs({set("gid=1<<33", "a"), kFound, {}, "it is root's now"});
  repairs({set("keep_beyond_end=7", "a"), kFound});
  repairs({set("next_cookie=-5", "dir"), kFound, {}, "counted anew"});
  repairs({set("next_cookie=0", "many"), kFound, {}, "counted anew"});
  repairs({set("mode=mode|(1<<20)", "a"), kFound});
  repairs({set("nlink=1<<40", "a"), kFound});
  repairs(
      {set("id=-3", "a"), "its number has not been given out yet", {"/dir/a"}, "no such number"});
  repairs({set("id=0", "b"), kFound, {"/dir/b"}, "no such number"});
  for (const auto* number : {"('key_generation',-1)", "('target_losses',-1)"})
    repairs({[=](auto&) { return "INSERT OR REPLACE INTO kv VALUES" + std::string{number}; },
             "the target's memory cannot be",
             {},
             "was dropped"});
}

TEST_CASE("repair: access control lists") {
  {
    RepairBed v;
    v.sql(put_acl(v, "a", "access", acl_of(4)) + ";" + put_acl(v, "dir", "default", acl_of(6)));
    CHECK(v.problems() == "");
  }
  repairs({[](auto& v) { return put_acl(v, "a", "access", acl_of(6)); },
           "its ACL does not say what its mode says",
           {"/dir/a"},
           "it has what both allow, 644"});
  repairs({[](auto& v) {
             return put_acl(v, "b", "access", acl_of(4)) + "; UPDATE inodes SET mode=33279" +
                    where(v, "b");
           },
           "its ACL does not say what its mode says",
           {"/dir/b"},
           "it has what both allow, 644"});
  repairs({[](auto& v) { return put_acl(v, "a", "access", "x'0200'"); },
           "cannot be read",
           {},
           "makes no sense and was dropped"});
  repairs({[](auto& v) { return put_acl(v, "a", "default", acl_of(4)); },
           "a default ACL, but no directory",
           {},
           "makes no sense and was dropped"});
}

TEST_CASE("repair: a nameless file that is open stays one, and one that nobody knows is found") {
  RepairBed v;
  InodeId nameless{};
  v.use([&](Catalog& catalog) {
    RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
      nameless = CSV_TRY(c.make_nameless(v.inodes.at("dir"), {.mode = S_IFREG | 0640}, 1)).inode;
      return {};
    });
  });
  CHECK(v.problems() == "");
  v.sql("UPDATE kv SET value=value+1 WHERE key='inodes'");
  v.repair();
  v.use([&](Catalog& c) {
    Catalog::Change look;
    look.read_only = true;
    std::vector<InodeId> orphans;
    look.body = [&](Catalog& on) -> Expected<void> {
      orphans = CSV_TRY(on.orphans({}, 10));
      return {};
    };
    REQUIRE(c.run({&look, 1}));
    CHECK(std::find(orphans.begin(), orphans.end(), nameless) != orphans.end());
  });
  v.sql("DELETE FROM orphans WHERE inode=" + std::to_string(raw(nameless)));
  v.repair();
  CHECK(v.files().contains("/lost+found/#" + std::to_string(raw(nameless))));
}

TEST_CASE("repair: extents") {
  auto a = [](RepairBed& v) { return " WHERE inode=" + v.id("a") + " AND file_block=0"; };
  auto b = [](RepairBed& v) { return " WHERE inode=" + v.id("b"); };
  auto set = [&](const std::string& what) {
    return [what, a](RepairBed& v) { return "UPDATE extents SET " + what + a(v); };
  };
  auto set_b = [&](const std::string& what) {
    return [what, b](RepairBed& v) { return "UPDATE extents SET " + what + b(v); };
  };
  repairs({set("count=2049"), "an extent of 2049 blocks cannot lie there", {"/dir/a"}});
  repairs({set("count=0"), "cannot lie there", {"/dir/a"}});
  repairs({set("file_block=4000, count=200"), "cannot lie there", {"/dir/a"}});
  repairs({[](auto& v) {
             return "INSERT INTO extents VALUES(" + v.id("a") + ",100,1,100000,0,1,0,NULL)";
           },
           "two extents overlap",
           {},
           "gave way"});
  repairs({set("lun_block=1"), "are outside the data area", {"/dir/a"}, "count as a hole"});
  // Both files were changed at one time: the younger inode keeps the blocks.
  repairs({[](auto& v) {
             return "UPDATE extents SET lun_block=(SELECT lun_block FROM extents WHERE inode=" +
                    v.id("deep") + ") WHERE inode=" + v.id("a") + " AND file_block=0";
           },
           "belong to something else too",
           {"/dir/a"},
           "which was changed later"});
  repairs({[](auto& v) {
             return "UPDATE extents SET lun_block=" +
                    std::to_string(v.info().chunks[1] / kBlockSize) +
                    " WHERE inode=" + v.id("linked");
           },
           "belong to something else too",
           {"/linked", "/dir/link"},
           "belong to the catalog"});
  repairs({set_b("written_count=21"), "its bitmap does not say"});
  repairs({set_b("written=zeroblob(13)"), "its bitmap does not say", {"/dir/b"}});
  repairs({set_b("written=NULL"), "its bitmap does not say", {"/dir/b"}});
  repairs({set_b("written=zeroblob(14)"), "its bitmap does not say", {"/dir/b"}});
  repairs({set_b("birth=7"), "born at 7"});
  repairs({[](auto& v) { return "UPDATE inodes SET size=4096*15" + where(v, "b"); },
           "written beyond the end of the file",
           {"/dir/b"}});
  auto lost = "/lost+found/#";
  repairs({set_b("inode=99999"),
           "an extent of an inode that does not exist",
           {"/dir/b", lost + std::string{"99999"}}});
  // The number of the file that is made for them is the next one.
  RepairBed v;
  auto before = v.files();
  v.sql("UPDATE extents SET inode=" + v.id("dir") + b(v));
  auto repair = v.repair();
  CHECK(says(repair->actions(), "blocks of what is no regular file go to a new file"));
  auto after = v.files();
  auto changed = differences(before, after);
  CHECK(changed.size() == 2);
  CHECK(changed.contains("/dir/b"));
}

TEST_CASE("repair: space") {
  for (auto [sql, finding] : std::initializer_list<std::pair<const char*, const char*>>{
           {"UPDATE groups SET free=free+1", "its bitmap says"},
           {"UPDATE groups SET longest_free=longest_free+1", "its bitmap says"},
           {"UPDATE groups SET bitmap=zeroblob(2048) WHERE id=0", "are in use and marked free"},
           {"UPDATE groups SET bitmap=zeroblob(2047) WHERE id=0", "its bitmap has 2047 bytes"},
           {"UPDATE groups SET id=9999 WHERE id=0", "is behind the end of the data area"},
           {"INSERT INTO dying(lun_block,count) SELECT lun_block+count,7 FROM extents ORDER BY "
            "lun_block DESC LIMIT 1",
            "blocks are dying, the total says"},
           {"UPDATE fresh SET count=count-1",
            "allocation groups have a bitmap or are fresh, the data area has"},
           {"UPDATE fresh SET count=9999", "cannot be"},
           {"INSERT INTO fresh VALUES(0,1)", "allocation group 0 is fresh and yet has a bitmap"},
           {"DELETE FROM groups WHERE id=0; INSERT INTO fresh VALUES(0,1)",
            "allocation group 0 is fresh and yet has blocks in use"},
           {"UPDATE kv SET value=value+1 WHERE key='free'", "blocks are free, the total says"},
           {"UPDATE kv SET value=value+1 WHERE key='inodes'", "inodes, the total says"},
           {"UPDATE kv SET value=value+1 WHERE key='area'", "the superblock says"},
           {"UPDATE kv SET value=value/2 WHERE key='area'", "is behind the end of the data area"},
           {"UPDATE kv SET value=1 WHERE key='area'", "are outside the data area"},
           {"INSERT INTO freeing VALUES(999,5,5)", "are being freed twice or not at all"},
           {"INSERT INTO freeing VALUES(999,5,9),(999,8,10)", "are being freed twice"},
           {"INSERT INTO freeing VALUES(999,5,1<<50)", "which no file has, are being freed"},
           {"UPDATE chunks SET number=number+1 WHERE number=2", "catalog chunk 2 is not listed"},
           {"UPDATE chunks SET at=at+67108864*4 WHERE number=1",
            "the superblock maps other chunks"},
           {"INSERT INTO copies VALUES(0,0,12345)", "it cannot lie at LUN offset"}})
    repairs({[sql = sql](auto&) { return std::string{sql}; }, finding});
}

TEST_CASE("repair: blocks that nothing uses are free again") {
  RepairBed v;
  std::uint64_t free = 0;
  v.use([&](Catalog& c) { free = c.space()->free; });
  v.sql("DELETE FROM extents WHERE inode=" + v.id("a"));
  v.repair();
  v.use([&](Catalog& c) { CHECK(c.space()->free == free + 3000); });
}

TEST_CASE("repair: sessions, grants, admissions and numbers") {
  auto with_session = [](RepairBed& v) {
    v.use([&](Catalog& catalog) {
      RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
        auto session = CSV_TRY(c.new_session(NodeId{1}, 1)).id;
        CSV_TRY(c.put_slot(session, 3, {1, "reply"}));
        AdmissionRow admission;
        admission.key = make_key({7, NodeId{1}, KeyRole::mount, CSV_TRY(c.new_key_number())});
        admission.session = session;
        CSV_TRY(c.put_admission(admission));
        auto a = v.inodes.at("a");
        auto grant = CSV_TRY(c.new_grant(session, a));
        auto runs = CSV_TRY(c.reserve_space(a, 50, 0, 8));
        return c.place(a, 3000, runs, BlockState::granted, grant);
      });
    });
  };
  for (auto [sql, finding] : std::initializer_list<std::pair<const char*, const char*>>{
           {"DELETE FROM sessions", "slot 3 of session 1, which does not exist"},
           {"UPDATE admissions SET state=3", "is in state 3"},
           {"UPDATE admissions SET key=key+5", "its key's number has not been given out yet"},
           {"UPDATE grants SET unwritten=49", "49 unwritten blocks, but its extents have 50"},
           {"DELETE FROM grants", "grant 1 is not one on this inode"},
           {"UPDATE kv SET value=1 WHERE key='next_inode'", "has not been given out yet"},
           {"UPDATE kv SET value=1 WHERE key='next_session'", "has not been given out yet"},
           {"UPDATE kv SET value=1 WHERE key='next_grant'", "has not been given out yet"},
           {"DELETE FROM kv WHERE key='birth'", "the number birth is missing"},
           {"DELETE FROM kv WHERE key='free'", "the number free is missing"},
           {"DELETE FROM kv", "the number schema_version is missing"}}) {
    RepairBed v;
    auto before = v.files();
    with_session(v);
    v.sql(sql);
    auto repair = v.repair();
    CHECK(says(repair->findings(), finding));
    // The grant is gone, and with it its space.
    CHECK(differences(before, v.files()).empty());
    v.use([](Catalog& c) {
      CHECK(c.sessions()->empty());
      CHECK(c.admissions()->empty());
    });
  }
}

TEST_CASE("repair: numbers that are lost are not given out twice") {
  RepairBed v;
  InodeId inode{};
  SessionId session{};
  std::uint64_t key = 0;
  auto give_out = [&](Catalog& catalog) {
    RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
      inode = CSV_TRY(c.make(kRootInode, "passing", {.mode = S_IFREG | 0644}, 1)).inode;
      session = CSV_TRY(c.new_session(NodeId{1}, 1)).id;
      key = CSV_TRY(c.new_key_number());
      return {};
    });
  };
  // What has gone again leaves no row that would tell.
  v.use([&](Catalog& catalog) {
    give_out(catalog);
    RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
      CSV_TRY(c.unlink(kRootInode, "passing", 2));
      CSV_TRY(c.reap(inode));
      CSV_TRY(c.end_session(session));
      return c.forget_session(session);
    });
  });
  auto [gone_inode, gone_session, gone_key] = std::tuple{inode, session, key};
  v.sql("DELETE FROM kv");
  v.repair();
  v.use(give_out);
  CHECK(raw(inode) > raw(gone_inode));
  CHECK(raw(session) > raw(gone_session));
  CHECK(key > gone_key);
}

TEST_CASE("repair: nobody's files stay suspended") {
  for (auto [sql, finding] : std::initializer_list<std::pair<const char*, const char*>>{
           {"INSERT INTO suspended VALUES(0,1,1,1,0)", "node 0 has files suspended, and cannot be"},
           {"INSERT INTO suspended VALUES(4000,1,1,1,0)",
            "node 4000 has files suspended, and cannot be"},
           {"INSERT INTO suspended VALUES(2,1000,1,1,0)",
            "suspended session 1000: its number has not been given out yet"},
           {"INSERT INTO suspended_files VALUES(2,5,0)",
            "inode 5 is suspended for node 2, of which nothing is"}}) {
    RepairBed v;
    auto before = v.files();
    v.sql(sql);
    // What makes sense goes with it: nobody uses the volume.
    v.sql("INSERT INTO suspended VALUES(3,0,1,1,0); INSERT INTO suspended_files VALUES(3,5,0)");
    auto repair = v.repair();
    CHECK(says(repair->findings(), finding));
    CHECK(v.files() == before);
    CHECK(
        v.value("SELECT (SELECT count(*) FROM suspended)+(SELECT count(*) FROM suspended_files)") ==
        0);
  }
}

TEST_CASE("repair: what files share is counted anew, and what was not noted as shared is damage") {
  struct Case {
    const char* sql;
    const char* finding;
    std::set<std::string> changes = {};
  };
  for (const auto& each : std::initializer_list<Case>{
           {"UPDATE shared SET count=2", "shared by 2, but 3 extents name them"},
           {"UPDATE shared SET count=9", "shared by 9, but 3 extents name them"},
           {"UPDATE shared SET count=-1", "cannot be"},
           {"INSERT INTO shared SELECT start+10,length,1 FROM shared", "cannot be"},
           {"INSERT INTO shared SELECT start+10,length,2 FROM shared", "overlap those before"},
           {"UPDATE shared SET length=length+100", "but 1 extents name them"},
           {"INSERT INTO shared SELECT start+length+5000,10,2 FROM shared",
            "but 0 extents name them"},
           {"INSERT INTO shared VALUES(-5,10,2),(5,10,2),(1<<50,10,2)", "cannot be"},
           {"UPDATE kv SET value=3 WHERE key='schema_version'", "which schema 3 does not know"},
           {"DELETE FROM kv WHERE key='schema_version'", "the number schema_version is missing"},
           // Whoever was changed last has the blocks: both clones are one file, a the older one.
           {"DELETE FROM shared", "belong to something else too", {"/dir/a", "/twice"}},
           {"UPDATE shared SET length=length-100",
            "belong to something else too",
            {"/dir/a", "/twice"}},
           {"UPDATE extents SET written_count=0,written=NULL WHERE file_block=1000",
            "it is shared, and not wholly written",
            {"/twice"}}}) {
    CAPTURE(each.sql);
    RepairBed v;
    InodeId twice{};
    v.use([&](Catalog& catalog) {
      RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
        twice = CSV_TRY(c.make(kRootInode, "twice", {.mode = S_IFREG | 0644}, 5000)).inode;
        for (std::uint64_t at : {0, 1000}) CSV_TRY(c.clone(v.inodes.at("a"), 50, 500, twice, at));
        CSV_TRY(c.grow(twice, 1500 * kBlockSize, 5000));
        return {};
      });
    });
    REQUIRE(v.problems() == "");
    auto before = v.files();
    v.sql(each.sql);
    auto repair = v.repair();
    CHECK(says(repair->findings(), each.finding));
    CHECK(differences(before, v.files()) == each.changes);
    // Shared as before, where it still is.
    v.use([&](Catalog& c) {
      auto map = c.map(twice, 0, 1500);
      REQUIRE(map);
      if (each.changes.empty()) CHECK(map->front().state == BlockState::shared);
      RepairBed::change(c, [&](Catalog& x) -> Expected<void> {
        CSV_TRY(x.truncate(twice, 0, 1));
        return {};
      });
    });
    CHECK(v.problems() == "");
  }
}

TEST_CASE("repair: clones stay clones if notes of what is shared are lost") {
  auto root_of_shared = [](RepairBed& v) {
    auto path = v.bench.connect();
    auto store = open_catalog_store(path.io, v.info(), v.random);
    REQUIRE(store);
    auto database = Database::open((*store)->path(), (*store)->vfs(), {.read_only = true});
    REQUIRE(database);
    auto root = (*database)->value("SELECT rootpage FROM sqlite_schema WHERE name='shared'");
    REQUIRE(root);
    return static_cast<std::uint32_t>(*root);
  };
  // Also if an earlier program made the volume: the table is not where a new catalog has it.
  for (bool earlier : {false, true})
    for (std::string damage : {"table", "table and schema", "root", "leaf", "list of tables"}) {
      CAPTURE(earlier);
      CAPTURE(damage);
      RepairBed v;
      auto usual_root = root_of_shared(v);
      if (earlier) v.sql("DROP TABLE shared; DROP TABLE suspended; DROP TABLE suspended_files");
      v.use([&](Catalog& catalog) {
        std::vector<InodeId> clones;
        for (std::string name : {"one", "two"})
          RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
            auto clone = CSV_TRY(c.make(kRootInode, name, {.mode = S_IFREG | 0644}, 5000)).inode;
            CSV_TRY(c.clone(v.inodes.at("a"), 50, 2500, clone, 0));
            CSV_TRY(c.grow(clone, 2500 * kBlockSize, 5000));
            clones.push_back(clone);
            return {};
          });
        // So many pieces that the table has leaves.
        for (std::uint64_t at = 1; at < 2400; at += 100)
          RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
            for (auto block = at; block < at + 100; block += 2) {
              auto runs = CSV_TRY(c.reserve_space(clones[0], 1, 0, 1));
              CSV_TRY(c.replace(clones[0], block, runs));
            }
            return {};
          });
      });
      REQUIRE(v.problems() == "");
      auto before = v.files();
      auto root = root_of_shared(v);
      CHECK((root != usual_root) == earlier);
      if (damage == "table") v.sql("DROP TABLE shared");
      if (damage == "table and schema")
        v.sql("DROP TABLE shared; DELETE FROM kv WHERE key='schema_version'");
      v.empty_log();
      if (damage == "root") v.bench.flip_bit(place_of_page(v.info(), root) + 3000);
      if (damage == "leaf") {
        auto page = v.bench.content(place_of_page(v.info(), root), 4096);
        REQUIRE(page[0] == std::byte{5});  // what leads to leaves; the last of them stands here
        std::uint32_t leaf = 0;
        for (int i = 8; i < 12; ++i) leaf = leaf << 8 | std::to_integer<std::uint32_t>(page[i]);
        v.bench.flip_bit(place_of_page(v.info(), leaf) + 3000);
      }
      if (damage == "list of tables") v.bench.flip_bit(place_of_page(v.info(), 1) + 3000);
      auto repair = v.repair();
      CHECK(says(repair->actions(), "they count as shared"));
      CHECK(differences(before, v.files()).empty());
    }
}

TEST_CASE("repair: where nothing was ever cloned, two names are damage, whatever else is lost") {
  RepairBed v;
  auto before = v.files();
  v.sql("UPDATE extents SET lun_block=(SELECT lun_block FROM extents WHERE inode=" + v.id("deep") +
        ") WHERE inode=" + v.id("a") + " AND file_block=0; DROP TABLE shared");
  v.empty_log();
  SUBCASE("no table") {}
  SUBCASE("no list of tables") { v.bench.flip_bit(place_of_page(v.info(), 1) + 3000); }
  auto repair = v.repair();
  CHECK(says(repair->actions(), "which was changed later"));
  CHECK(differences(before, v.files()) == std::set<std::string>{"/dir/a"});
}

TEST_CASE("repair: what was cloned by a program of today, without its list of tables") {
  RepairBed v;
  v.use([&](Catalog& catalog) {
    RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
      auto twice = CSV_TRY(c.make(kRootInode, "twice", {.mode = S_IFREG | 0644}, 5000)).inode;
      CSV_TRY(c.clone(v.inodes.at("a"), 0, 500, twice, 0));
      CSV_TRY(c.grow(twice, 500 * kBlockSize, 5000));
      return {};
    });
  });
  auto before = v.files();
  v.empty_log();
  v.bench.flip_bit(place_of_page(v.info(), 1) + 3000);
  v.repair();
  CHECK(v.files() == before);
}

TEST_CASE("repair: a newer schema is refused") {
  RepairBed v;
  v.sql("UPDATE kv SET value=99 WHERE key='schema_version'");
  auto path = v.bench.connect();
  auto prepared = Repair::prepare(path.io, {.work_file = v.work_file()});
  CHECK(prepared.error() == Errc::refused);
}

TEST_CASE("repair: a table that is gone, an index that lies, a key that stands twice") {
  repairs({[](auto&) { return "DROP TABLE orphans"; }, "orphans cannot be read", {[] {
             RepairBed probe;
             return "/lost+found/#" + probe.id("orphan");
           }()}});
  repairs({[](auto&) { return "DROP INDEX groups_by_longest_free"; },
           "the database has no groups_by_longest_free"});
}

// --- Damage below the rows ------------------------------------------------------------------

TEST_CASE("repair: one damaged superblock is made from the other, without a new catalog") {
  for (auto copy : {Copy::a, Copy::b, Copy::c}) {
    RepairBed v;
    auto info = v.info();
    v.bench.flip_bit(place_of(copy, info.lun_size) + 1000);
    auto repair = v.repair();
    CHECK(repair->findings().size() == 1);
    auto now = v.info();
    CHECK(now.chunks == info.chunks);
    CHECK(now.epoch == info.epoch);
  }
}

TEST_CASE("repair: superblocks A and B lost: copy C and the chunks say what was") {
  RepairBed v;
  auto before = v.files();
  auto info = v.info();
  for (auto copy : {Copy::a, Copy::b})
    v.bench.disk->poke(place_of(copy, info.lun_size), Buffer::zeroed(16384).span());
  auto path = v.bench.connect();
  CHECK(!read_superblocks(path.io, false));
  v.repair();
  CHECK(v.files() == before);
  CHECK(v.info().id == info.id);
  CHECK(raw(v.info().epoch) > raw(info.epoch));
}

TEST_CASE(
    "repair: superblock C is one chunk behind: the chunk's header says that there is one more") {
  RepairBed v;
  auto before = v.files();
  auto old = v.info();
  auto info = v.grow_catalog();
  v.bench.disk->poke(place_of(Copy::c, info.lun_size), encode_superblock(old, Copy::c).span());
  for (auto copy : {Copy::a, Copy::b}) v.bench.flip_bit(place_of(copy, info.lun_size) + 50);
  v.repair();
  CHECK(v.files() == before);
}

TEST_CASE("repair: no superblock left: made from the chunks' headers and what the operator says") {
  RepairBed v;
  auto before = v.files();
  auto info = v.info();
  for (auto copy : {Copy::a, Copy::b, Copy::c})
    v.bench.disk->poke(place_of(copy, info.lun_size), Buffer::zeroed(16384).span());
  {
    auto path = v.bench.connect();
    auto refused = Repair::prepare(path.io, {.work_file = v.work_file()});
    CHECK(refused.error() == Errc::refused);
    CHECK(refused.error().message().find("--name") != std::string::npos);
  }
  v.repair({.label = "volume1", .cluster = 7, .wal_size = 16 << 20});
  CHECK(v.files() == before);
  CHECK(v.info().id == info.id);
}

TEST_CASE("repair: no superblock left: a log of another size than was said is refused") {
  RepairBed v;
  auto before = v.files();
  auto info = v.info();
  for (auto copy : {Copy::a, Copy::b, Copy::c})
    v.bench.disk->poke(place_of(copy, info.lun_size), Buffer::zeroed(16384).span());
  auto all = v.bench.content(0, 64 << 10);
  auto with_log = [&](std::uint64_t size) {
    auto path = v.bench.connect();
    return Repair::prepare(
        path.io, {.work_file = v.work_file(), .label = "volume1", .cluster = 7, .wal_size = size});
  };
  for (auto [size, why] : std::initializer_list<std::pair<std::uint64_t, const char*>>{
           {17ull << 20, "does not fit a log of 17 MiB (--log-size)"},
           {1ull << 30, "the LUN is too small for a log of 1024 MiB (--log-size)"}}) {
    auto refused = with_log(size);
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == Errc::refused);
    CHECK_MESSAGE(refused.error().message().find(why) != std::string::npos,
                  refused.error().message());
  }
  CHECK(v.bench.content(0, 64 << 10) == all);
  v.repair({.label = "volume1", .cluster = 7, .wal_size = info.wal_size});
  CHECK(v.files() == before);
}

TEST_CASE("repair: of a LUN that shrank nothing is touched, until it has its size again") {
  RepairBed v;
  auto before = v.files();
  // Something that a repair would do.
  v.sql("UPDATE inodes SET nlink=nlink+1" + where(v, "a"));
  auto whole = v.bench.disk;
  v.bench.resize(512);
  for (bool damaged : {false, true}) {
    CAPTURE(damaged);
    if (damaged) v.bench.flip_bit(place_of(Copy::a, v.bench.disk->options().geometry.size_bytes()));
    auto path = v.bench.connect();
    auto refused = Repair::prepare(path.io, {.work_file = v.work_file()});
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == Errc::refused);
    CHECK_MESSAGE(
        refused.error().message().find("it shrank; enlarge it again") != std::string::npos,
        refused.error().message());
    auto checked = check(path.io);
    REQUIRE_FALSE(checked);
    CHECK(checked.error() == Errc::refused);
    CHECK(path.lun->counters().writes == 0);
  }
  v.bench.disk = whole;
  v.repair();
  CHECK(v.files() == before);
}

TEST_CASE("repair: two superblocks of two volumes: the one whose chunks are there counts") {
  RepairBed v;
  auto before = v.files();
  auto other = v.info();
  other.id[3] ^= std::byte{1};
  other.sequence += 100;
  v.bench.disk->poke(place_of(Copy::a, other.lun_size), encode_superblock(other, Copy::a).span());
  v.repair();
  CHECK(v.files() == before);
}

TEST_CASE("repair: a chunk's header that is lost") {
  RepairBed v;
  auto before = v.files();
  v.bench.flip_bit(v.info().chunks[1] + 20);
  v.repair();
  CHECK(v.files() == before);
}

TEST_CASE("repair: whichever page of the catalog is lost, the others' rows are there") {
  // The first pages are the roots; each of them once, and some behind them.
  int whole = 0, lossy = 0;
  for (std::uint32_t page = 1; page <= 60; page += page < 14 ? 1 : 6) {
    CAPTURE(page);
    RepairBed v;
    auto before = v.files();
    v.empty_log();
    auto at = place_of_page(v.info(), page);
    if (v.bench.content(at, 4096) == std::vector<std::byte>(4096)) break;
    auto path = v.bench.connect();
    v.bench.flip_bit(at + 1000);
    auto prepared = Repair::prepare(path.io, {.work_file = v.work_file()});
    REQUIRE_MESSAGE(prepared, prepared.error().message());
    if (!(*prepared)->has_work()) continue;  // a page that is free
    auto applied = (*prepared)->apply(path.io);
    REQUIRE_MESSAGE(applied, applied.error().message());
    auto left = v.problems();
    CHECK_MESSAGE(left == "", left);
    auto after = v.files();
    // What is there under its own name and with the old blocks is as it was, also in a directory
    // that was found again without its name.
    auto last = [](const std::string& of) { return of.substr(of.rfind('/')); };
    std::set<std::pair<std::string, std::string>> now;
    for (const auto& [name, text] : after) now.emplace(last(name), text);
    std::size_t same = 0, kept = 0;
    for (const auto& [name, text] : before) {
      if (auto found = after.find(name); found != after.end() && found->second == text) ++same;
      kept += now.count({last(name), text});
    }
    (same == before.size() ? whole : lossy) += 1;
    // One page has at most some hundred rows.
    CHECK(after.size() >= 300);
    CHECK(kept >= 190);
  }
  CHECK(whole > 3);  // pages of indexes, bitmaps, numbers
  CHECK(lossy > 1);
}

TEST_CASE("repair: a log damaged in its middle does not cost what was committed behind it") {
  RepairBed v;
  auto add = [&](int i) {
    v.use(
        [&](Catalog& catalog) {
          for (int j = 0; j < 10; ++j)
            RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
              CSV_TRY(
                  c.make(kRootInode, fmt::format("new{}-{}", i, j), {.mode = S_IFREG | 0644}, 1));
              return {};
            });
        },
        false);
  };
  add(0);
  auto wal = v.info().wal_offset;
  auto page_of_frame = [&](std::uint64_t frame) { return wal + 32 + frame * 4120 + 24; };
  v.bench.flip_bit(page_of_frame(9) + 2000);
  auto problems = v.problems();
  CHECK(problems.find("the log is damaged: from frame 10 on 1 of its frames") != std::string::npos);
  auto repair = v.repair();
  CHECK(v.files().contains("/new0-9"));
}

TEST_CASE("repair: a log whose header is damaged is told by its mark; without one it is lost") {
  RepairBed v;
  auto before = v.files();
  for (int i = 0; i < 3; ++i)
    v.use(
        [&](Catalog& catalog) {
          RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
            CSV_TRY(c.make(kRootInode, fmt::format("new{}", i), {.mode = S_IFREG | 0644}, 1));
            return {};
          });
        },
        false);
  auto info = v.info();
  auto mark = info.wal_offset + info.wal_size - sizeof(disk::LogMark);
  SUBCASE("a bit of it") { v.bench.flip_bit(info.wal_offset + 3); }
  SUBCASE("zeros") {
    auto block = v.bench.content(info.wal_offset, 512);
    std::fill(block.begin(), block.begin() + disk::kWalHeaderSize, std::byte{});
    v.bench.disk->poke(info.wal_offset, block);
  }
  SUBCASE("and the mark") {
    v.bench.flip_bit(info.wal_offset + 3);
    v.bench.flip_bit(mark + 40);
    CHECK(v.problems().find("the log's header is damaged: transactions") != std::string::npos);
    v.repair();
    CHECK(v.files() == before);
    return;
  }
  CHECK(v.problems().find("the log's header is damaged: its frames") != std::string::npos);
  v.repair();
  auto after = v.files();
  CHECK(after.size() == before.size() + 3);
  for (int i = 0; i < 3; ++i) CHECK(after.contains(fmt::format("/new{}", i)));
}

TEST_CASE(
    "repair: the power fails at any of its writes: the old catalog or the new, and no log lost") {
  enum class Then { repaired_again, counted_up, superblocks_damaged, superblocks_lost } then{};
  SUBCASE("it is repaired again") {}
  SUBCASE("attempts to take it over have counted the superblocks up before") {
    then = Then::counted_up;
  }
  SUBCASE("all superblocks are lost, too") { then = Then::superblocks_lost; }
  SUBCASE("superblocks A and B are damaged, too") { then = Then::superblocks_damaged; }
  auto look = [](RepairBed& v, const Files& before) {
    auto now = v.files();
    CHECK(now.erase("/in-the-log") == 1);
    CHECK(now == before);
  };
  int crashes = 0, refused = 0;
  for (int at = 1;; ++at) {
    CAPTURE(at);
    RepairBed v;
    auto add = [&](const std::string& name) {
      v.use(
          [&](Catalog& catalog) {
            RepairBed::change(catalog, [&](Catalog& c) -> Expected<void> {
              CSV_TRY(c.make(kRootInode, name, {.mode = S_IFREG | 0644}, 1));
              return {};
            });
          },
          false);
    };
    v.sql("UPDATE kv SET value=value+5 WHERE key='inodes'");
    auto before = v.files();
    add("in-the-log");  // looking at the files would copy it back
    auto writes = std::make_shared<std::atomic<int>>(0);
    bool done = false;
    {
      auto path = v.bench.connect([writes, at](const iscsi::RamCommand& command) {
        iscsi::RamFate fate;
        bool changes = command.kind == iscsi::RamCommand::Kind::write ||
                       command.kind == iscsi::RamCommand::Kind::zero;
        if (changes && ++*writes >= at) fate.failure = Error{Errc::lun_lost, "power loss"};
        return fate;
      });
      auto plan = Repair::prepare(path.io, {.work_file = v.work_file()});
      REQUIRE(plan);
      done = static_cast<bool>((*plan)->apply(path.io));
    }
    if (done) break;
    ++crashes;
    // Whoever opens it now sees everything, or is refused.
    auto path = v.bench.connect();
    auto info = read_superblocks(path.io, true);
    REQUIRE(info);
    bool opens = false;
    if (auto store = open_catalog_store(path.io, *info, v.random, StoreAccess::read_only); store) {
      store->reset();
      opens = true;
      if (then == Then::repaired_again) look(v, before);
    } else {
      ++refused;
      CHECK(check_repair_ended(path.io, *info).error() == Errc::corrupt);
      // Nor is it opened to grow, and the superblocks stay as they are.
      if (then < Then::superblocks_damaged) {
        v.bench.resize(1000);
        auto larger = v.bench.connect();
        CHECK(grow(larger.io, v.random).error() == Errc::corrupt);
        CHECK(*read_superblocks(larger.io, false) == *info);
      }
    }
    if (then == Then::counted_up && !opens) {
      auto now = v.bench.connect();
      for (int i = 0; i < 2; ++i) REQUIRE(write_superblocks(now.io, *info));
    }
    if (then == Then::superblocks_damaged) {
      v.bench.flip_bit(place_of(Copy::a, info->lun_size) + 300);
      v.bench.flip_bit(place_of(Copy::b, info->lun_size) + 300);
    }
    if (then == Then::superblocks_lost)
      for (auto copy : {Copy::a, Copy::b, Copy::c})
        v.bench.flip_bit(place_of(copy, info->lun_size) + 300);
    auto again = then == Then::superblocks_lost
                     ? v.repair({.label = info->label, .cluster = 7, .wal_size = info->wal_size})
                     : v.repair();
    look(v, before);
    CHECK(v.problems() == "");
  }
  CHECK(crashes > 8);
  CHECK(refused > 0);
}

TEST_CASE("repair: cut short in its pages, and all superblocks lost: the catalog that was whole") {
  RepairBed v;
  auto before = v.files();
  v.sql("UPDATE inodes SET nlink=nlink+1 WHERE id=" + v.id("a"));
  v.empty_log();
  auto info = v.info();
  {
    auto dead = std::make_shared<std::atomic<bool>>(false);
    auto path = v.bench.connect([dead](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (command.kind != iscsi::RamCommand::Kind::write || (!*dead && command.length <= 4096))
        return fate;
      fate.failure = Error{Errc::lun_lost, "power loss"};
      if (!dead->exchange(true)) fate.torn_blocks = command.length / 512 / 2;
      return fate;
    });
    auto plan = Repair::prepare(path.io, {.work_file = v.work_file()});
    REQUIRE(plan);
    CHECK_FALSE((*plan)->apply(path.io));
    CHECK(*dead);
  }
  for (auto copy : {Copy::a, Copy::b, Copy::c})
    v.bench.flip_bit(place_of(copy, info.lun_size) + 300);
  v.repair({.label = info.label, .cluster = info.cluster, .wal_size = info.wal_size});
  CHECK(v.files() == before);
}

TEST_CASE("repair: nothing is left of the catalog: it says that a copy is needed") {
  RepairBed v;
  v.empty_log();
  for (auto at : v.info().chunks) v.bench.disk->poke(at + 4096, Buffer::zeroed(4 << 20).span());
  auto path = v.bench.connect();
  auto prepared = Repair::prepare(path.io, {.work_file = v.work_file()});
  CHECK(prepared.error() == Errc::corrupt);
  CHECK(prepared.error().message().find("--from") != std::string::npos);
}

TEST_CASE("repair: cut short anywhere, the volume is as before or repaired") {
  for (std::uint64_t writes = 0; writes < 40; ++writes) {
    CAPTURE(writes);
    RepairBed v;
    auto before = v.files();
    v.sql("UPDATE inodes SET nlink=nlink+1 WHERE id=" + v.id("a"));
    auto repair = v.prepare();
    auto path = v.bench.connect(dies_after(writes));
    auto applied = repair->apply(path.io);
    auto left = v.problems();
    // Whole superblocks at least; a second run ends well.
    CHECK((left == "" || left.find("2 links, but 1 names") != left.npos ||
           left.find("superblock") != left.npos || left.find("interrupted") != left.npos));
    if (left != "") v.repair();
    CHECK(v.files() == before);
    if (applied) {
      CHECK(writes > 5);
      return;
    }
  }
  FAIL("it never got to its end");
}

TEST_CASE("repair: a superblock that is in the cache only is made durable before another is") {
  using Kind = iscsi::RamCommand::Kind;
  iscsi::RamDiskOptions options;
  options.write_cache = true;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    CAPTURE(seed);
    RepairBed v{768, options};
    v.sql("UPDATE inodes SET nlink=nlink+1 WHERE id=" + v.id("a"));
    auto old = v.info();
    auto next = v.grow_catalog();
    for (auto copy : {Copy::a, Copy::b, Copy::c})
      v.bench.disk->poke(place_of(copy, old.lun_size), encode_superblock(old, copy).span());
    next.sequence = old.sequence;
    {
      // Who has the catalog grow is told that B was not made durable, and no flush does that later.
      int flushes = 0;
      auto path = v.bench.connect([&](const iscsi::RamCommand& command) {
        iscsi::RamFate fate;
        if (command.kind != Kind::flush || ++flushes != 2) return fate;
        fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
        fate.misses = true;
        return fate;
      });
      CHECK_FALSE(write_superblocks(path.io, next));
    }
    auto repair = v.prepare();
    {
      // The power is lost when the repair has written A.
      bool wrote_a = false, lost = false;
      auto path = v.bench.connect([&](const iscsi::RamCommand& command) {
        iscsi::RamFate fate;
        if (command.kind == Kind::write && command.offset == disk::kSuperblockA) wrote_a = true;
        if (!wrote_a || command.kind != Kind::flush) return fate;
        lost = true;
        fate.failure = Error{Errc::lun_lost, "power loss"};
        return fate;
      });
      CHECK_FALSE(repair->apply(path.io));
      CHECK(lost);
    }
    Random random{seed};
    v.bench.disk->power_loss(random);
    auto later = v.bench.connect();
    auto found = read_superblocks(later.io, false);
    REQUIRE_MESSAGE(found, found.error().message());
    CHECK(found->sequence > old.sequence);
  }
}

TEST_CASE("repair: a volume without room for a second catalog is repaired in place") {
  RepairBed v{340};
  auto before = v.files();
  v.sql("UPDATE inodes SET nlink=nlink+1 WHERE id=" + v.id("a"));
  auto chunks = v.info().chunks;
  auto repair = v.repair();
  CHECK(says(repair->warnings(), "no room for a second catalog"));
  CHECK(v.info().chunks == chunks);
  CHECK(v.files() == before);
}
