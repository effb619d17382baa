// What a mount may go on with after its session was ended, and what takes it away.
#include "coordinator/service/suspended.h"

#include <doctest/doctest.h>
#include <linux/falloc.h>

#include <algorithm>
#include <set>
#include <thread>

#include "coordinator/protocol/failure.h"
#include "coordinator/volume/database.h"
#include "coordinator/volume/volume.h"
#include "iscsi/blocking_lun.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service;
using namespace csv::service::test;

namespace {

constexpr std::uint32_t kRead = 1, kWrite = 2;
constexpr std::uint64_t kBlock = 4096;

wire::LockOf lock_of(std::uint64_t inode, std::uint32_t type, std::uint64_t owner = 7) {
  wire::LockOf what;
  what.set_inode(inode);
  what.set_owner(owner);
  what.set_process(owner);
  what.set_pid(1);
  what.set_last(99);
  what.set_type(type);
  return what;
}
wire::Request lock(const wire::LockOf& what) {
  wire::Request request;
  *request.mutable_lock()->mutable_what() = what;
  return request;
}
wire::Request open_request(std::uint64_t inode, bool writes) {
  wire::Request request;
  request.mutable_open()->set_inode(inode);
  request.mutable_open()->set_writes(writes);
  return request;
}
wire::Request release_request(std::uint64_t inode) {
  wire::Request request;
  request.mutable_release()->set_inode(inode);
  request.mutable_release()->set_reads_only(true);
  return request;
}
bool is_good(const wire::Reply& reply) { return reply.failure().code() == 0; }

/// Node 1 has three files open and is away for so long that its session ends. Node 2 is there.
struct Cut {
  Cut() {
    world.timing.reconnect_grace = std::chrono::milliseconds{100};
    world.timing.lease_term = std::chrono::milliseconds{300};
    world.timing.key_sweep = std::chrono::milliseconds{50};  // which keeps its gate open
    world.coordinator_plan = [this](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (slow && command.kind == iscsi::RamCommand::Kind::write)
        fate.inside = std::chrono::milliseconds{100};
      if (slow_fences && command.kind == iscsi::RamCommand::Kind::reservation)
        fate.inside = std::chrono::seconds{1};
      return fate;
    };
    first.emplace(world, 3);
    REQUIRE(!a.connect(*first).code());
    REQUIRE(!b.connect(*first).code());
    a.admit();
    b.admit();
    for (const auto* name : {"one", "two", "three"}) files.push_back(a.create(name));
    REQUIRE(is_good(a.write(files[0], 0, std::string(2 * kBlock, 'x'))));
    for (auto file : files) seen.push_back(a.attr(file));
    ended = a.session();
  }
  Coordinator& coordinator() { return second ? *second : *first; }
  void cut() {
    a.disconnect();
    gone();
  }
  void gone() {
    bool away = world.eventually([&] {
      auto all = coordinator().service().status().sessions;
      return std::none_of(all.begin(), all.end(),
                          [&](const auto& each) { return each.node == NodeId{1}; });
    });
    REQUIRE(away);
  }
  /// Of the coordinator: another one takes over from the LUN.
  void take_over() {
    first->crash();
    b.disconnect();
    second.emplace(world, 2);
    REQUIRE(!b.connect(*second).code());
    b.resume_done();
  }
  wire::Request request(bool with_lock = false, std::uint32_t type = kWrite) {
    wire::Request asked;
    auto& body = *asked.mutable_resume();
    body.set_session(raw(ended));
    for (const auto& attr : seen) {
      auto& file = *body.add_files();
      file.set_inode(attr.inode());
      file.set_truncation(attr.truncation());
      file.set_size(attr.size());
    }
    if (with_lock) *body.add_locks() = lock_of(files[0], type);
    return asked;
  }
  /// Which of them node 1 goes on with when it comes back.
  std::vector<std::uint64_t> resumed(bool with_lock = false, std::uint32_t type = kWrite) {
    if (a2.session() == SessionId{}) {
      REQUIRE(!a2.connect(coordinator()).code());
      a2.admit();
    }
    auto reply = a2.call(request(with_lock, type));
    REQUIRE(is_good(reply));
    return {reply.resumed().inodes().begin(), reply.resumed().inodes().end()};
  }
  std::vector<std::uint64_t> but(std::uint64_t file) {
    auto rest = files;
    std::erase(rest, file);
    return rest;
  }

  /// It has given back what it holds of `file`, and the coordinator has seen that.
  void gives_back(Client& client, std::uint64_t file, std::size_t count = 1) {
    for (int i = 0; i < 2000 && client.recalls() < count; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    REQUIRE(client.recalls() == count);
    for (int i = 0; i < 3; ++i) client.attr(file);
  }

  std::atomic<bool> slow{false};  ///< Whatever the coordinator writes.
  std::atomic<bool> slow_fences{false};
  World world;
  std::optional<Coordinator> first, second;
  Client a{world, 1, 11}, b{world, 2, 22}, a2{world, 1, 11};
  std::vector<std::uint64_t> files;
  std::vector<wire::Attr> seen;
  SessionId ended{};
};

}  // namespace

TEST_CASE("suspended: what nobody touched goes on with the mount's next session") {
  Cut world;
  world.cut();
  // Nothing of this matters to who has it open.
  CHECK(is_good(world.b.call(open_request(world.files[0], false))));
  CHECK(world.b.read(world.files[0], 0, 4) == "xxxx");
  wire::Request mode;
  mode.mutable_set_attr()->set_inode(world.files[0]);
  mode.mutable_set_attr()->set_mode(0600);
  CHECK(is_good(world.b.change(mode)));
  CHECK(world.resumed() == world.files);
  // It counts as open again: its content stays when it loses its name.
  CHECK(is_good(world.b.unlink("one")));
  CHECK(world.a2.read(world.files[0], 0, 4) == "xxxx");
  // Asked again it is answered again, until it says that it has heard.
  CHECK(world.resumed() == world.but(world.files[0]));
  wire::Request done;
  done.mutable_resume()->set_done(true);
  CHECK(is_good(world.a2.call(done)));
  CHECK(world.resumed().empty());
}

namespace {

struct Way {
  std::string name;
  std::function<wire::Reply(Client&, std::uint64_t)> touch;
  std::uint32_t own_lock = 0;  ///< That node 1 had.
  bool goes_on = false;
};

wire::Request allocate(std::uint64_t file, std::uint64_t length, int mode) {
  wire::Request request;
  request.mutable_allocate()->set_inode(file);
  request.mutable_allocate()->set_length(length);
  request.mutable_allocate()->set_mode(static_cast<std::uint32_t>(mode));
  return request;
}
wire::Reply lock_and_unlock(Client& by, std::uint64_t file, std::uint32_t type) {
  auto locked = by.call(lock(lock_of(file, type)));
  if (!is_good(locked)) return locked;
  wire::Request unlock;
  *unlock.mutable_unlock()->mutable_what() = lock_of(file, type);
  return by.call(unlock);
}

std::vector<Way> ways() {
  auto writes_locked = [](Client& by, std::uint64_t file) {
    return lock_and_unlock(by, file, kWrite);
  };
  auto reads_locked = [](Client& by, std::uint64_t file) {
    return lock_and_unlock(by, file, kRead);
  };
  return {
      {"opened for writing", [](auto& by, auto file) { return by.call(open_request(file, true)); }},
      {"written through us", [](auto& by, auto file) { return by.write(file, 10, "y"); }},
      {"laid out for writing",
       [](auto& by, auto file) {
         wire::Reply reply;
         *reply.mutable_layout() = by.layout(file, 0, kBlock, true);
         return reply;
       }},
      {"made shorter", [](auto& by, auto file) { return by.truncate(file, 1); }},
      {"made longer", [](auto& by, auto file) { return by.truncate(file, 1 << 20); }},
      {"punched",
       [](auto& by, auto file) {
         return by.change(allocate(file, kBlock, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE));
       }},
      {"allocated", [](auto& by, auto file) { return by.change(allocate(file, 1 << 20, 0)); }},
      {"removed", [](auto& by, auto) { return by.unlink("one"); }},
      {"locked for writing, which it had for reading", writes_locked, kRead},
      {"locked for reading, which it had for writing", reads_locked, kWrite},
      {"locked for reading, as it had", reads_locked, kRead, true},
      {"locked, and it had no locks", writes_locked, 0, true},
  };
}

}  // namespace

TEST_CASE("suspended: whoever conflicts takes exactly that file away, over takeovers too") {
  for (bool listed : {true, false}) {
    CAPTURE(listed);
    for (const auto& way : ways()) {
      CAPTURE(way.name);
      Cut cut;
      if (listed) {
        cut.cut();
      } else {  // the one that ends the session does not know what it had open
        cut.a.disconnect();
        cut.take_over();
        cut.gone();
      }
      auto file = cut.files[0];
      REQUIRE(is_good(way.touch(cut.b, file)));
      if (listed) cut.take_over();  // the rows say it
      auto expected = way.goes_on ? cut.files : cut.but(file);
      bool right = cut.resumed(way.own_lock != 0, way.own_lock) == expected;
      CHECK(right);
      // Nor is anything kept locked for it.
      bool free = is_good(cut.b.call(lock(lock_of(file, kWrite, 8))));
      CHECK(free == !(way.goes_on && way.own_lock != 0));
    }
  }
}

TEST_CASE("suspended: locks come back with the file, and keep others out again") {
  Cut world;
  REQUIRE(is_good(world.a.call(lock(lock_of(world.files[0], kWrite)))));
  world.cut();
  CHECK(world.resumed(true) == world.files);
  CHECK(protocol::decode(world.b.call(lock(lock_of(world.files[0], kRead))).failure()).to_errno() ==
        EAGAIN);
}

TEST_CASE("suspended: who may write a file at the end of the other's session has touched it") {
  Cut world;
  REQUIRE(world.b.layout(world.files[0], 0, kBlock, true).write());
  SUBCASE("as the coordinator knows") { world.cut(); }
  SUBCASE("as it says to a new one, which ends the session afterwards") {
    world.a.disconnect();
    world.first->crash();
    world.b.disconnect();
    world.second.emplace(world.world, 2);
    wire::Hello says;
    says.add_layout_inodes(world.files[0]);
    says.add_layout_inodes(world.files[1]);
    says.add_read_inodes(world.files[1]);
    REQUIRE(!world.b.connect(*world.second, says).code());
    world.b.resume_done();
    world.gone();
  }
  SUBCASE("as it says to a new one, which has ended the session before") {
    world.cut();
    world.first->crash();
    world.b.disconnect();
    world.second.emplace(world.world, 2);
    wire::Hello says;
    says.add_layout_inodes(world.files[0]);
    REQUIRE(!world.b.connect(*world.second, says).code());
    world.b.resume_done();
  }
  CHECK(world.resumed() == world.but(world.files[0]));
}

TEST_CASE(
    "suspended: what was touched while the mount was away, and its session had not ended yet") {
  Cut world;
  auto file = world.files[0];
  auto expected = world.but(file);
  SUBCASE("opened for writing, and still so") {
    world.a.disconnect();
    CHECK(is_good(world.b.call(open_request(file, true))));
    world.gone();
  }
  SUBCASE("opened for writing, and closed") {
    world.a.disconnect();
    CHECK(is_good(world.b.call(open_request(file, true))));
    wire::Request release;
    release.mutable_release()->set_inode(file);
    CHECK(is_good(world.b.call(release)));
    world.gone();
  }
  SUBCASE("opened for writing, as it says to a new coordinator") {
    world.a.disconnect();
    CHECK(is_good(world.b.call(open_request(file, true))));
    world.first->crash();
    world.b.disconnect();
    world.second.emplace(world.world, 2);
    wire::Hello says;
    for (auto each : world.files) says.add_open_inodes(each);
    says.add_write_inodes(file);
    REQUIRE(!world.b.connect(*world.second, says).code());
    world.b.resume_done();
    world.gone();
  }
  SUBCASE("touched, and it came back in between") {
    REQUIRE(world.a.layout(file, 0, kBlock, true).write());
    world.a.answer_recalls(false);
    world.a.disconnect();
    CHECK(is_good(world.b.call(open_request(file, true))));
    CHECK(is_good(world.b.call(release_request(file))));
    REQUIRE(!world.a.connect(*world.first).code());
    world.a.resume_done();
    world.a.attr(file);  // which has been heard
    world.cut();  // still: it may have a write under way that the other one has seen, and replaced
  }
  CHECK(world.resumed() == expected);
}

namespace {

/// It comes back to a coordinator that does not know what it has.
void declare(Cut& cut, Client& client, Coordinator& to) {
  wire::Hello says;
  for (auto file : cut.files) {
    says.add_open_inodes(file);
    says.add_write_inodes(file);
    says.add_layout_inodes(file);
  }
  REQUIRE(!client.connect(to, says).code());
  client.resume_done();
  client.attr(1);  // which has been heard
}

}  // namespace

TEST_CASE("suspended: who wrote together may have a write under way that was seen and replaced") {
  Cut cut;
  auto& a = cut.a;
  auto& b = cut.b;
  auto file = b.create("shared");
  REQUIRE(is_good(b.write(file, 0, std::string(2 * kBlock, 'x'))));
  cut.files.push_back(file);
  cut.seen.push_back(b.attr(file));
  REQUIRE(is_good(a.call(open_request(file, true))));
  REQUIRE(a.layout(file, 0, kBlock, true).write());
  a.answer_recalls(false);
  auto holds = [&](std::size_t count) {
    for (int i = 0; i < 2000 && a.held().size() < count; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    REQUIRE(a.held().size() == count);
  };
  bool goes_on = false;
  SUBCASE("the other one closed it while this one was away") {
    a.disconnect();
    REQUIRE(is_good(b.call(release_request(file))));
  }
  SUBCASE("the other one closed it, and this one has not said that nothing is under way") {
    REQUIRE(is_good(b.call(release_request(file))));
    holds(1);
  }
  SUBCASE("the other one closed it, and then nothing was under way: as after a live migration") {
    a.answer_recalls(true);
    REQUIRE(is_good(b.call(release_request(file))));
    cut.gives_back(a, file);
    goes_on = true;
  }
  SUBCASE("the other one ended, and then nothing was under way") {
    a.answer_recalls(true);
    b.disconnect();
    cut.gives_back(a, file);
    REQUIRE(!Client{cut.world, 2, 23}.connect(cut.coordinator()).code());
    goes_on = true;
  }
  SUBCASE("nothing was under way before the other one opened it again") {
    REQUIRE(is_good(b.call(release_request(file))));
    holds(1);
    REQUIRE(is_good(b.call(open_request(file, true))));
    a.answer_held();
    a.attr(file);
    REQUIRE(a.layout(file, 0, kBlock, true).write());
    REQUIRE(is_good(b.call(release_request(file))));
    holds(1);
  }
  cut.cut();
  CHECK(cut.resumed() == (goes_on ? cut.files : cut.but(file)));
}

TEST_CASE("suspended: so has who was away while it was touched, under a new coordinator too") {
  Cut cut;
  auto file = cut.files[0];
  cut.world.timing.reconnect_grace = std::chrono::seconds{1};
  cut.a.disconnect();
  bool goes_on = false, under_the_former = false;
  SUBCASE("it has not said that nothing is under way") {}
  SUBCASE("nor after it was touched under the former one") { under_the_former = true; }
  SUBCASE("it has") { goes_on = true; }
  cut.a.answer_recalls(goes_on);
  if (!under_the_former) cut.take_over();
  REQUIRE(is_good(cut.b.call(open_request(file, true))));
  REQUIRE(is_good(cut.b.call(release_request(file))));
  if (under_the_former) cut.take_over();
  declare(cut, cut.a, cut.coordinator());
  if (goes_on) cut.gives_back(cut.a, file);
  cut.cut();
  CHECK(cut.resumed() == (goes_on ? cut.files : cut.but(file)));
}

TEST_CASE(
    "suspended: what was touched under a former coordinator, of who does not come to the next") {
  Cut cut;
  auto& a = cut.a;
  auto& b = cut.b;
  auto file = cut.files[0];
  bool goes_on = false;
  SUBCASE("opened for writing while it was away, and closed") {
    a.disconnect();
    REQUIRE(is_good(b.call(open_request(file, true))));
    REQUIRE(is_good(b.call(release_request(file))));
  }
  SUBCASE("and another one ends it, which does not know that either") {
    a.disconnect();
    REQUIRE(is_good(b.call(open_request(file, true))));
    REQUIRE(is_good(b.call(release_request(file))));
    cut.world.timing.reconnect_grace = std::chrono::hours{1};
    cut.take_over();
    cut.world.timing.reconnect_grace = std::chrono::milliseconds{100};
    cut.second->crash();
    b.disconnect();
    cut.second.reset();
    cut.second.emplace(cut.world, 4);
    REQUIRE(!b.connect(*cut.second).code());
    b.resume_done();
  }
  SUBCASE("opened for writing while it was there, and it may have a write under way") {
    REQUIRE(a.layout(file, 0, kBlock, true).write());
    a.answer_recalls(false);
    REQUIRE(is_good(b.call(open_request(file, true))));
    REQUIRE(is_good(b.call(release_request(file))));
    a.disconnect();
  }
  SUBCASE("it opened it when the other one had it open") {
    REQUIRE(is_good(a.call(release_request(file))));
    REQUIRE(is_good(b.call(open_request(file, true))));
    REQUIRE(is_good(a.call(open_request(file, true))));
    REQUIRE(a.layout(file, 0, kBlock, true).write());
    a.answer_recalls(false);
    REQUIRE(is_good(b.call(release_request(file))));
    a.disconnect();
  }
  SUBCASE("opened for writing while it was there, and nothing is under way") {
    REQUIRE(a.layout(file, 0, kBlock, true).write());
    REQUIRE(is_good(b.call(open_request(file, true))));
    REQUIRE(is_good(b.call(release_request(file))));
    cut.gives_back(a, file);
    std::this_thread::sleep_for(std::chrono::seconds{1});  // for what is kept of that to go
    a.disconnect();
    goes_on = true;
  }
  SUBCASE("what it did not have open") {
    REQUIRE(is_good(a.call(release_request(file))));
    a.disconnect();
    REQUIRE(is_good(b.call(open_request(file, true))));
    cut.files.erase(cut.files.begin());
    cut.seen.erase(cut.seen.begin());
    goes_on = true;
  }
  if (!cut.second) cut.take_over();
  cut.gone();
  CHECK(cut.resumed() == (goes_on ? cut.files : cut.but(file)));
}

TEST_CASE("suspended: what a session leaves that ended before the mount had heard what goes on") {
  Cut cut;
  cut.cut();
  Client next{cut.world, 1, 11};
  REQUIRE(!next.connect(cut.coordinator()).code());
  next.admit();
  auto gone_on = cut.files;
  bool takes_over = false, while_it_ends = false;
  SUBCASE("it had not asked") {}
  SUBCASE("it had not heard the answer") { REQUIRE(is_good(next.call(cut.request()))); }
  SUBCASE("it had opened more, and others touched what it had left") {
    cut.files.push_back(next.create("four"));
    cut.seen.push_back(next.attr(cut.files.back()));
    REQUIRE(is_good(cut.b.call(open_request(cut.files[0], true))));
    REQUIRE(is_good(cut.b.call(release_request(cut.files[0]))));
    gone_on = cut.but(cut.files[0]);
  }
  SUBCASE("nor did it come to a new coordinator") { takes_over = true; }
  SUBCASE("nor did it come to a new coordinator, and others touched what it had left") {
    REQUIRE(is_good(cut.b.call(open_request(cut.files[0], true))));
    REQUIRE(is_good(cut.b.call(release_request(cut.files[0]))));
    gone_on = cut.but(cut.files[0]);
    takes_over = true;
  }
  SUBCASE("others touch what it had left while it ends") {
    while_it_ends = true;
    gone_on = cut.but(cut.files[0]);
  }
  auto its = next.session();
  cut.slow_fences = while_it_ends;
  next.disconnect();
  if (while_it_ends) {
    std::this_thread::sleep_for(std::chrono::milliseconds{700});
    REQUIRE(is_good(cut.b.call(open_request(cut.files[0], true))));
    REQUIRE(is_good(cut.b.call(release_request(cut.files[0]))));
  }
  if (takes_over) cut.take_over();
  cut.gone();
  cut.ended = its;
  CHECK(cut.resumed() == gone_on);
}

TEST_CASE("suspended: nothing is kept for who is thrown out while somebody touches what it has") {
  Cut cut;
  std::atomic<bool> fenced = false;
  cut.first->crash();
  cut.b.disconnect();
  cut.a.disconnect();
  cut.world.cluster_knows = [&](Surroundings& around) {
    around.fenced = [&] {
      std::map<NodeId, std::uint64_t> out;
      if (fenced) out[NodeId{1}] = 1;
      return out;
    };
  };
  cut.world.timing.reconnect_grace = std::chrono::hours{1};
  cut.second.emplace(cut.world, 2);
  REQUIRE(!cut.b.connect(*cut.second).code());
  cut.b.resume_done();
  REQUIRE(is_good(cut.b.call(open_request(cut.files[0], true))));  // there is a row now
  fenced = true;
  cut.gone();
  cut.second->crash();
  cut.b.disconnect();
  fenced = false;
  cut.second.reset();
  cut.second.emplace(cut.world, 4);
  REQUIRE(!cut.b.connect(*cut.second).code());
  cut.b.resume_done();
  CHECK(cut.resumed().empty());
}

TEST_CASE("suspended: what is about to be touched when the mount comes back is touched") {
  Cut cut;
  cut.cut();
  REQUIRE(!cut.a2.connect(cut.coordinator()).code());
  cut.a2.admit();
  auto file = cut.files[0];
  wire::Request mode;
  mode.mutable_set_attr()->set_inode(cut.files[1]);
  mode.mutable_set_attr()->set_mode(0600);
  cut.slow = true;
  // All that follows is behind this one, and what only reads before what writes.
  auto busy = cut.b.send(cut.b.prepared(mode, 3));
  auto opening = cut.b.send(open_request(file, true));
  auto resuming = cut.a2.send(cut.request());
  CHECK(is_good(cut.b.wait(busy)));
  cut.slow = false;
  CHECK(is_good(cut.b.wait(opening)));
  auto reply = cut.a2.wait(resuming);
  REQUIRE(is_good(reply));
  auto& inodes = reply.resumed().inodes();
  CHECK(std::vector<std::uint64_t>{inodes.begin(), inodes.end()} == cut.but(file));
}

TEST_CASE("suspended: who goes on with a file, to write it, takes it from who had it open, too") {
  Cut cut;
  Client c{cut.world, 3, 33}, c2{cut.world, 3, 33};
  REQUIRE(!c.connect(cut.coordinator()).code());
  auto file = cut.files[0];
  REQUIRE(is_good(c.call(open_request(file, false))));
  auto its = c.session();
  cut.cut();
  c.disconnect();
  REQUIRE(cut.world.eventually([&] { return cut.first->service().status().sessions.size() == 1; }));
  bool writes = false;
  SUBCASE("to write it") { writes = true; }
  SUBCASE("to read it") {}
  REQUIRE(!cut.a2.connect(cut.coordinator()).code());
  auto request = cut.request();
  request.mutable_resume()->mutable_files(0)->set_writes(writes);
  CHECK(cut.a2.call(request).resumed().inodes_size() == 3);
  CHECK(is_good(cut.a2.call(release_request(file))));
  REQUIRE(!c2.connect(cut.coordinator()).code());
  request.mutable_resume()->set_session(raw(its));
  CHECK(c2.call(request).resumed().inodes_size() == (writes ? 0 : 1));
}

namespace {

/// Of the catalog, which nobody has open: no group is wholly free, and about so many pages are.
void fill_catalog(World& world, int pages) {
  auto lun = world.disk->connect(world.loop, world.lun_options(3));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  REQUIRE(io.register_key(make_key({4711, NodeId{63}, KeyRole::mount, 1})));
  auto info = volume::read_superblocks(io, false);
  REQUIRE(info);
  auto store = volume::open_catalog_store(io, *info, world.random);
  REQUIRE_MESSAGE(store, store.error().message());
  auto opened = volume::Database::open((*store)->path(), (*store)->vfs(), {});
  REQUIRE_MESSAGE(opened, opened.error().message());
  auto& database = **opened;
  REQUIRE(database.execute("DELETE FROM fresh; UPDATE groups SET bitmap=zeroblob(2048)"));
  REQUIRE(database.execute("PRAGMA max_page_count=" + std::to_string((*store)->mapped_pages())));
  REQUIRE(database.execute("CREATE TABLE filler(x)"));
  for (auto size : {2 << 20, 64 << 10, 4000}) {
    auto add = "INSERT INTO filler VALUES(zeroblob(" + std::to_string(size) + "))";
    while (database.execute(add)) REQUIRE(database.checkpoint());
    database.clear_failure();
  }
  REQUIRE(database.execute("DELETE FROM filler WHERE rowid>(SELECT max(rowid)-" +
                           std::to_string(pages) + " FROM filler)"));
  REQUIRE(database.checkpoint());
}

}  // namespace

TEST_CASE("suspended: what cannot be noted is not done, and nobody has it afterwards") {
  World world;
  // Longer than the lease, or one would be said to write unseen when the other ends.
  world.timing.reconnect_grace = std::chrono::milliseconds{500};
  world.timing.lease_term = std::chrono::milliseconds{300};
  world.timing.key_sweep = std::chrono::milliseconds{50};
  std::vector<std::uint64_t> files;
  std::vector<wire::Attr> seen;
  Client a{world, 1, 11}, b{world, 2, 22}, c{world, 3, 33}, again{world, 1, 11};
  {
    Coordinator former{world, 3};
    REQUIRE(!b.connect(former).code());
    for (int i = 0; i < 700; ++i) files.push_back(b.create(std::to_string(i), false));
    for (auto file : files) seen.push_back(b.attr(file));
    REQUIRE(!a.connect(former).code());
    REQUIRE(!c.connect(former).code());
    a.admit();
    c.admit();
  }
  auto ended = a.session();
  fill_catalog(world, 0);
  // It knows nothing of what nodes 1 and 3 have open: whatever is touched is noted.
  Coordinator coordinator{world, 2};
  b.disconnect();
  REQUIRE(!b.connect(coordinator).code());
  b.resume_done();
  REQUIRE(world.eventually([&] { return coordinator.service().status().sessions.size() == 1; }));
  auto has = [&](std::uint64_t file) {
    wire::Request test;
    *test.mutable_test_lock()->mutable_what() = lock_of(file, kWrite, 9);
    return b.call(test).lock_found().type() != 0;
  };
  REQUIRE(!again.connect(coordinator).code());
  again.admit();
  wire::Request request;
  auto& body = *request.mutable_resume();
  body.set_session(raw(ended));
  for (const auto& attr : seen) {
    auto& file = *body.add_files();
    file.set_inode(attr.inode());
    file.set_truncation(attr.truncation());
    file.set_size(attr.size());
    file.set_writes(true);
    *body.add_locks() = lock_of(attr.inode(), kWrite);
  }
  auto reply = again.call(request);
  REQUIRE(is_good(reply));
  std::set<std::uint64_t> on{reply.resumed().inodes().begin(), reply.resumed().inodes().end()};
  CHECK(on.size() > 0);
  CHECK(on.size() < files.size());
  for (auto file : files) CHECK(has(file) == on.contains(file));
  CHECK(coordinator.status().sessions.back().open_files == on.size());
  for (std::uint64_t ticket : {0, 1}) {
    CAPTURE(ticket);
    int failed = 0;
    for (auto file : files) {
      if (on.contains(file)) continue;  // who goes on with it has it locked
      auto asked = lock(lock_of(file, kWrite));
      asked.mutable_lock()->set_ticket(ticket == 0 ? 0 : file);
      bool got = is_good(b.call(asked));
      if (got && ticket != 0) {
        wire::Request taken;
        taken.mutable_lock_taken()->set_ticket(file);
        REQUIRE(is_good(b.call(taken)));
      }
      CHECK(has(file) == got);
      wire::Request unlock;
      *unlock.mutable_unlock()->mutable_what() = lock_of(file, kWrite);
      REQUIRE(is_good(b.call(unlock)));
      if (!got && ++failed == 5) break;
    }
    CHECK(failed == 5);
  }
  CHECK(coordinator.stop_reason() == "");
}

TEST_CASE(
    "suspended: a catalog without a page for what was open does not keep a node from its end") {
  World world;
  world.timing.reconnect_grace = std::chrono::milliseconds{100};
  world.timing.lease_term = std::chrono::milliseconds{300};
  world.timing.key_sweep = std::chrono::milliseconds{50};
  std::vector<std::uint64_t> files;
  {
    Coordinator former{world, 3};
    Client b{world, 2, 22};
    REQUIRE(!b.connect(former).code());
    for (int i = 0; i < 3000; ++i) files.push_back(b.create(std::to_string(i), false));
  }
  fill_catalog(world, 4);
  Coordinator coordinator{world, 3};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  for (auto file : files) REQUIRE(is_good(a.call(open_request(file, false))));
  auto key = a.key();
  a.disconnect();
  CHECK(world.eventually([&] { return coordinator.service().status().sessions.empty(); }));
  CHECK(coordinator.stop_reason() == "");
  CHECK_FALSE(world.listed(key));
  // Nor does any of it go on as what the mount's next session leaves, of which the coordinator that
  // ends it knows nothing.
  Client b{world, 2, 22};
  REQUIRE(!b.connect(coordinator).code());
  REQUIRE(is_good(b.call(open_request(files[0], true))));
  REQUIRE(is_good(b.call(release_request(files[0]))));
  world.timing.reconnect_grace = std::chrono::hours{1};
  Client again{world, 1, 11};
  REQUIRE(!again.connect(coordinator).code());
  again.admit();
  auto ended = again.session();
  coordinator.crash();
  world.timing.reconnect_grace = std::chrono::milliseconds{100};
  b.disconnect();
  Coordinator next{world, 2};
  REQUIRE(!b.connect(next).code());
  b.resume_done();
  REQUIRE(world.eventually([&] { return next.service().status().sessions.size() == 1; }));
  Client last{world, 1, 11};
  REQUIRE(!last.connect(next).code());
  last.admit();
  wire::Request resume;
  resume.mutable_resume()->set_session(raw(ended));
  auto attr = last.attr(files[0]);
  auto& asked = *resume.mutable_resume()->add_files();
  asked.set_inode(files[0]);
  asked.set_truncation(attr.truncation());
  asked.set_size(attr.size());
  CHECK(last.call(resume).resumed().inodes().empty());
}

TEST_CASE("suspended: a node is off only once nothing is kept for it, over takeovers too") {
  Cut world;
  world.cut();
  std::atomic<bool> fenced = false;
  world.first->crash();
  world.b.disconnect();
  world.world.cluster_knows = [&](Surroundings& around) {
    around.fenced = [&] {
      std::map<NodeId, std::uint64_t> out;
      if (fenced) out[NodeId{1}] = 1;
      return out;
    };
  };
  world.second.emplace(world.world, 2);
  REQUIRE(!world.b.connect(*world.second).code());
  world.b.resume_done();
  fenced = true;
  REQUIRE(
      world.world.eventually([&] { return world.second->service().off().contains(NodeId{1}); }));
  world.second->crash();
  world.b.disconnect();
  fenced = false;
  Coordinator third{world.world, 4};
  REQUIRE(!world.a2.connect(third).code());
  world.a2.admit();
  auto reply = world.a2.call(world.request());
  CHECK(is_good(reply));
  CHECK(reply.resumed().inodes_size() == 0);
  world.a2.disconnect();
}

TEST_CASE("suspended: what the mount has seen of a file must still be there") {
  Cut world;
  world.cut();
  SUBCASE("made shorter before, unknown to it") {
    world.seen[0].set_truncation(world.seen[0].truncation() + 1);
  }
  SUBCASE("not so long") { world.seen[0].set_size(world.seen[0].size() + 1); }
  CHECK(world.resumed() == world.but(world.files[0]));
}

TEST_CASE("suspended: nothing is kept for another life of the mount, nor for who was thrown out") {
  Cut world;
  std::atomic<bool> fenced = false;
  SUBCASE("another process") {
    world.cut();
    Client reborn{world.world, 1, 12};
    REQUIRE(!reborn.connect(world.coordinator()).code());
    auto reply = reborn.call(world.request());
    CHECK(reply.resumed().inodes_size() == 0);
    CHECK(is_good(reply));
    reborn.disconnect();
    world.gone();
    CHECK(world.resumed().empty());
  }
  SUBCASE("a session that is not the one that was ended") {
    world.cut();
    world.ended = world.b.session();
    CHECK(world.resumed().empty());
  }
  SUBCASE("fenced by command, before or after its session ended") {
    bool before = false;
    SUBCASE("before") { before = true; }
    SUBCASE("after") {}
    world.first->crash();
    world.b.disconnect();
    world.a.disconnect();
    world.world.cluster_knows = [&](Surroundings& around) {
      around.fenced = [&] {
        std::map<NodeId, std::uint64_t> out;
        if (fenced) out[NodeId{1}] = 1;
        return out;
      };
    };
    world.second.emplace(world.world, 2);
    if (!before) world.gone();
    fenced = true;
    REQUIRE(world.world.eventually(
        [&] { return world.coordinator().service().off().contains(NodeId{1}); }));
    world.gone();
    fenced = false;
    REQUIRE(!world.a2.connect(world.coordinator()).code());
    CHECK(world.resumed().empty());
  }
  SUBCASE("a goodbye") {
    world.cut();
    REQUIRE(!world.a2.connect(world.coordinator()).code());
    wire::Request goodbye;
    goodbye.mutable_goodbye();
    REQUIRE(is_good(world.a2.call(goodbye)));
    Client again{world.world, 1, 11};
    REQUIRE(!again.connect(world.coordinator()).code());
    CHECK(again.call(world.request()).resumed().inodes_size() == 0);
  }
}

namespace {

/// The next coordinator, to which node 2 says so much, and node 1 does not come.
void next_one(Cut& cut, unsigned node, const wire::Hello& says) {
  cut.coordinator().crash();
  cut.b.disconnect();
  cut.second.reset();
  cut.second.emplace(cut.world, node);
  REQUIRE(!cut.b.connect(*cut.second, says).code());
  cut.b.resume_done();
}

}  // namespace

TEST_CASE("suspended: while it is written down that too much was touched, more is") {
  Cut cut;
  std::vector<std::uint64_t> more;
  for (int i = 0; i < 40; ++i) more.push_back(cut.b.create("more" + std::to_string(i)));
  cut.world.timing.reconnect_grace = std::chrono::hours{1};
  cut.a.disconnect();
  wire::Hello says;
  says.add_layout_inodes(cut.files[0]);
  for (std::uint64_t i = 1; i < Suspended::kMostTouched; ++i) says.add_layout_inodes(100'000 + i);
  next_one(cut, 2, says);
  REQUIRE(is_good(cut.b.call(open_request(cut.files[0], true))));  // so many are in the row
  next_one(cut, 4, {});
  cut.slow = true;
  std::vector<std::uint64_t> sent{cut.b.send(open_request(cut.files[1], true))};
  for (auto each : more) {
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
    sent.push_back(cut.b.send(open_request(each, true)));
  }
  for (auto each : sent) CHECK(is_good(cut.b.wait(each)));
  cut.slow = false;
  cut.world.timing.reconnect_grace = std::chrono::milliseconds{100};
  next_one(cut, 2, {});
  cut.gone();
  CHECK(cut.resumed().empty());
}

TEST_CASE("suspended: what was given up does not go on as what the next session leaves") {
  Cut cut;
  cut.cut();
  wire::Hello anything;
  anything.set_layouts_unlisted(true);
  next_one(cut, 2, anything);  // which may have written what node 1 had open
  Client next{cut.world, 1, 11};
  REQUIRE(!next.connect(cut.coordinator()).code());
  next.admit();
  cut.ended = next.session();
  bool takes_over = false;
  SUBCASE("that ends at once") {}
  SUBCASE("that does not come to the next coordinator") { takes_over = true; }
  SUBCASE("that has opened some of it by itself, and ends") {
    next_one(cut, 4, {});
    REQUIRE(!next.connect(cut.coordinator()).code());
    next.resume_done();
    REQUIRE(is_good(next.call(open_request(cut.files[0], false))));
  }
  if (takes_over) cut.world.timing.reconnect_grace = std::chrono::hours{1};
  next.disconnect();
  cut.world.timing.reconnect_grace = std::chrono::milliseconds{100};
  if (takes_over) next_one(cut, 4, {});
  cut.gone();
  CHECK(cut.resumed().empty());
}

TEST_CASE("suspended: what is not listed does not go on as what the next session has opened") {
  Cut cut;
  bool listed = false, opened_by_itself = true, too_many_later = false;
  SUBCASE("all listed") { listed = true; }
  SUBCASE("too many to list") {}
  SUBCASE("too many to list, and nothing opened") { opened_by_itself = false; }
  SUBCASE("all listed, and too many of the next session's") { listed = too_many_later = true; }
  for (std::size_t i = 0; !listed && i < Suspended::kMostListed; ++i)
    cut.a.create("more " + std::to_string(i));
  // Written together, so that node 1 has a row while it is there. What it opens after that is not
  // in it, and the coordinator that ends its session hears of nothing else.
  REQUIRE(is_good(cut.a.call(open_request(cut.files[0], true))));
  REQUIRE(is_good(cut.b.call(open_request(cut.files[0], true))));
  auto later = cut.a.create("four");
  cut.a.disconnect();
  // Only now: whoever is there and writes it alone again has no row any more with the next tick.
  REQUIRE(is_good(cut.b.call(release_request(cut.files[0]))));
  cut.take_over();
  cut.gone();
  REQUIRE(is_good(cut.b.call(open_request(later, true))));
  REQUIRE(is_good(cut.b.call(release_request(later))));
  Client next{cut.world, 1, 11};
  REQUIRE(!next.connect(cut.coordinator()).code());
  next.admit();
  if (opened_by_itself) REQUIRE(is_good(next.call(open_request(later, false))));
  auto made_since = next.create("five");
  for (std::size_t i = 0; too_many_later && i < Suspended::kMostListed; ++i)
    next.create("more since " + std::to_string(i));
  for (auto file : {later, made_since}) cut.seen.push_back(next.attr(file));
  cut.ended = next.session();
  next.disconnect();
  cut.gone();
  std::vector<std::uint64_t> go_on;
  // Of what the first list lacks, and the second row does not list, nobody has noted what is done.
  if (!too_many_later) go_on = {cut.files[1], cut.files[2]};
  if (listed && !too_many_later) go_on.push_back(made_since);
  CHECK(cut.resumed() == go_on);
}

TEST_CASE("suspended: a mount does not stand in its own way, and counts are bounded") {
  Suspended suspended;
  volume::SuspendedRow row;
  row.node = NodeId{1};
  row.incarnation = 11;
  row.next_inode = InodeId{1'000'000};
  row.files[InodeId{5}] = Touch::content;
  suspended.add(row);
  auto fresh = [&](std::uint64_t inode, Touch how, std::uint64_t incarnation = 0) {
    return suspended.unmarked(InodeId{inode}, how, NodeId{1}, incarnation).size();
  };
  CHECK(fresh(6, Touch::content, 11) == 0);
  CHECK(fresh(6, Touch::content, 12) == 1);
  CHECK(fresh(5, Touch::content) == 0);
  CHECK(fresh(5, Touch::read_locked) == 1);
  CHECK(fresh(1'000'000, Touch::content) == 0);
  bool fits = true;
  std::uint64_t noted = 0;
  for (; fits && noted < 100'000; ++noted)
    fits = suspended.note({NodeId{1}, InodeId{10 + noted}, Touch::content});
  CHECK(noted == Suspended::kMostTouched);
}
