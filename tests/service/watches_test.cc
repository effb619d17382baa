// What mounts may answer of names and attributes by themselves: given, taken back, and waited for.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "coordinator/protocol/failure.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service::test;

namespace {

constexpr std::uint64_t kRoot = raw(kRootInode);

void pause(std::chrono::milliseconds time) { std::this_thread::sleep_for(time); }

bool has(const std::vector<std::uint64_t>& all, std::uint64_t one) {
  return std::count(all.begin(), all.end(), one) > 0;
}
bool watches(const wire::Reply& reply, std::uint64_t inode) {
  return reply.vouched_ms() > 0 &&
         std::count(reply.watched().begin(), reply.watched().end(), inode) > 0;
}
wire::Request lookup_of(const std::string& name) {
  wire::Request request;
  request.mutable_lookup()->set_parent(kRoot);
  request.mutable_lookup()->set_name(name);
  return request;
}
wire::Request attr_of(std::uint64_t inode) {
  wire::Request request;
  request.mutable_get_attr()->set_inode(inode);
  return request;
}
wire::Request chmod_of(std::uint64_t inode, std::uint32_t mode) {
  wire::Request request;
  request.mutable_set_attr()->set_inode(inode);
  request.mutable_set_attr()->set_mode(mode);
  return request;
}
wire::Request xattr_of(std::uint64_t inode, const std::string& name) {
  wire::Request request;
  request.mutable_get_xattr()->set_inode(inode);
  request.mutable_get_xattr()->set_name(name);
  return request;
}

struct Two {
  explicit Two(Duration term = std::chrono::seconds{60}, std::size_t most_watched = 100'000) {
    world.timing.lease_term = term;
    world.most_watched = most_watched;
    coordinator.emplace(world, 1);
    REQUIRE(!a.connect(*coordinator).code());
    REQUIRE(!b.connect(*coordinator).code());
    a.admit();
    b.admit();
    file = a.create("f", false);
    (void)b.call(lookup_of("f"));
  }
  /// Until it is watched: not right after it was taken from somebody.
  wire::Reply watch(Client& who, const wire::Request& request, std::uint64_t inode) {
    for (int i = 0; i < 200; ++i) {
      auto reply = who.call(request);
      if (watches(reply, inode)) return reply;
      pause(std::chrono::milliseconds{5});
    }
    FAIL("it is not watched");
    return {};
  }

  World world;
  std::optional<Coordinator> coordinator;
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t file = 0;
};

}  // namespace

TEST_CASE(
    "watches: what was looked up is watched, and a change waits until the watcher has heard") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  auto found = two.watch(b, lookup_of("f"), file);
  CHECK(watches(found, kRoot));
  b.answer_unwatches(false);

  SUBCASE("of attributes") {
    auto change = a.send(a.prepared(chmod_of(file, 0600), 1));
    for (int i = 0; i < 400 && !has(b.unwatched(), file); ++i) pause(std::chrono::milliseconds{5});
    REQUIRE(has(b.unwatched(), file));
    CHECK(!has(b.unwatched(), kRoot));
    // Nobody else is shown it either, but the one who watches: it has been told before.
    auto look = a.send(attr_of(file));
    CHECK((b.call(attr_of(file)).attr().mode() & 07777) == 0600);
    pause(std::chrono::milliseconds{50});
    CHECK(!a.answered(change));
    CHECK(!a.answered(look));
    b.answer_held_unwatches();
    CHECK((a.wait(change).attr().mode() & 07777) == 0600);
    CHECK((a.wait(look).attr().mode() & 07777) == 0600);
  }
  SUBCASE("of names, there or not") {
    two.watch(b, lookup_of("none"), kRoot);
    wire::Request make;
    make.mutable_make()->set_parent(kRoot);
    make.mutable_make()->set_name("none");
    make.mutable_make()->set_mode(S_IFREG | 0644);
    auto change = a.send(a.prepared(make, 1));
    for (int i = 0; i < 400 && !has(b.unwatched(), kRoot); ++i) pause(std::chrono::milliseconds{5});
    REQUIRE(has(b.unwatched(), kRoot));
    CHECK(!a.answered(change));
    b.answer_held_unwatches();
    CHECK(a.wait(change).has_attr());
    CHECK(b.call(lookup_of("none")).has_attr());
  }
  SUBCASE("of an extended attribute that is not there") {
    two.watch(b, xattr_of(file, "user.x"), file);
    wire::Request set;
    set.mutable_set_xattr()->set_inode(file);
    set.mutable_set_xattr()->set_name("user.x");
    set.mutable_set_xattr()->set_value("1");
    auto change = a.send(a.prepared(set, 1));
    for (int i = 0; i < 400 && !has(b.unwatched(), file); ++i) pause(std::chrono::milliseconds{5});
    REQUIRE(has(b.unwatched(), file));
    CHECK(!a.answered(change));
    b.answer_held_unwatches();
    CHECK(a.wait(change).failure().code() == 0);
    CHECK(b.call(xattr_of(file, "user.x")).bytes().value() == "1");
  }
}

TEST_CASE("watches: what an answer shows without naming it is waited for, too") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  Client c{world, 3, 33};
  REQUIRE(!c.connect(*coordinator).code());
  c.resume_done();
  wire::Request make;
  make.mutable_make()->set_parent(kRoot);
  make.mutable_make()->set_name("d");
  make.mutable_make()->set_mode(S_IFDIR | 0755);
  auto directory = a.change(make).attr().inode();
  auto heard_of = [&](std::uint64_t inode) {
    for (int i = 0; i < 400 && !has(b.unwatched(), inode); ++i) pause(std::chrono::milliseconds{5});
    REQUIRE(has(b.unwatched(), inode));
  };
  b.answer_unwatches(false);
  std::uint64_t shows = 0;
  SUBCASE("a second change of an inode, whose first one has not been heard of") {
    two.watch(b, attr_of(file), file);
    (void)a.send(a.prepared(chmod_of(file, 0600), 1));
    heard_of(file);
    wire::Request rename;
    rename.mutable_rename()->set_parent(kRoot);
    rename.mutable_rename()->set_name("f");
    rename.mutable_rename()->set_new_parent(kRoot);
    rename.mutable_rename()->set_new_name("g");
    shows = c.send(c.prepared(rename, 1));
  }
  SUBCASE("that a directory is not empty") {
    wire::Request look;
    look.mutable_lookup()->set_parent(directory);
    look.mutable_lookup()->set_name("in it");
    two.watch(b, look, directory);
    wire::Request into;
    into.mutable_make()->set_parent(directory);
    into.mutable_make()->set_name("in it");
    into.mutable_make()->set_mode(S_IFREG | 0644);
    (void)a.send(a.prepared(into, 1));
    heard_of(directory);
    wire::Request remove;
    remove.mutable_unlink()->set_parent(kRoot);
    remove.mutable_unlink()->set_name("d");
    remove.mutable_unlink()->set_directory(true);
    shows = c.send(c.prepared(remove, 1));
  }
  pause(std::chrono::milliseconds{100});
  CHECK(!c.answered(shows));
  b.answer_held_unwatches();
  (void)c.wait(shows);
}

TEST_CASE("watches: a change of what nobody else is told of goes on at once") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  auto other = a.create("other", false);
  two.watch(b, lookup_of("f"), file);
  b.answer_unwatches(false);
  CHECK(a.change(chmod_of(other, 0600), {}, 2).attr().inode() == other);
}

TEST_CASE(
    "watches: who gives up what it changes is not told; who does not, is, and need not answer") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  two.watch(a, attr_of(file), file);
  auto change = chmod_of(file, 0600);
  change.add_gave_up(file);
  CHECK(a.change(change).has_attr());
  CHECK(!has(a.unwatched(), file));

  two.watch(a, attr_of(file), file);
  a.answer_unwatches(false);
  CHECK(a.change(chmod_of(file, 0640)).has_attr());
  CHECK(has(a.unwatched(), file));
  a.answer_held_unwatches();
}

TEST_CASE("watches: they end with what is vouched for, whoever has fallen silent") {
  Two two{std::chrono::milliseconds{600}};
  auto& [world, coordinator, a, b, file] = two;
  auto reply = two.watch(b, lookup_of("f"), file);
  CHECK(reply.vouched_ms() <= 600);
  b.answer_unwatches(false);
  auto vouched_for = std::chrono::milliseconds{reply.vouched_ms()};
  auto began = std::chrono::steady_clock::now();
  SUBCASE("connected") {}
  SUBCASE("its connection is lost") { b.disconnect(); }
  SUBCASE("it is fenced meanwhile: another mount of its node says hello") {
    Client again{world, 2, 33};
    REQUIRE(!again.connect(*coordinator).code());
  }
  auto change = a.send(a.prepared(chmod_of(file, 0600), 1));
  CHECK((a.wait(change).attr().mode() & 07777) == 0600);
  CHECK(std::chrono::steady_clock::now() - began > vouched_for / 2);
}

TEST_CASE("watches: who writes directly is alone in knowing the times, until the file is closed") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  REQUIRE(a.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
  two.watch(b, attr_of(file), file);
  b.answer_unwatches(false);
  wire::Request layout;
  layout.mutable_layout()->set_inode(file);
  layout.mutable_layout()->set_length(8192);
  layout.mutable_layout()->set_write(true);
  auto asked = a.send(layout);
  for (int i = 0; i < 400 && !has(b.unwatched(), file); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(has(b.unwatched(), file));
  pause(std::chrono::milliseconds{50});
  CHECK(!a.answered(asked));
  b.answer_held_unwatches();
  CHECK(a.wait(asked).layout().segments_size() > 0);
  pause(std::chrono::milliseconds{150});
  CHECK(!watches(b.call(attr_of(file)), file));

  wire::Request release;
  release.mutable_release()->set_inode(file);
  release.mutable_release()->set_wrote(true);
  release.mutable_release()->set_reads_only(true);
  CHECK(a.call(release).failure().code() == 0);
  two.watch(b, attr_of(file), file);
}

TEST_CASE("watches: what is too much to watch is taken back like what changes") {
  Two two{std::chrono::seconds{60}, 3};
  auto& [world, coordinator, a, b, file] = two;
  std::vector<std::uint64_t> others;
  for (const auto* name : {"1", "2", "3", "4"}) others.push_back(a.create(name, false));
  two.watch(b, attr_of(file), file);
  b.answer_unwatches(false);
  for (auto other : others) (void)b.call(attr_of(other));
  for (int i = 0; i < 400 && !has(b.unwatched(), file); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(has(b.unwatched(), file));
  auto change = a.send(a.prepared(chmod_of(file, 0600), 1));
  pause(std::chrono::milliseconds{100});
  CHECK(!a.answered(change));  // it has not said that it forgot
  b.answer_held_unwatches();
  CHECK((a.wait(change).attr().mode() & 07777) == 0600);
}

TEST_CASE("watches: an access time takes the attributes along, and leaves a directory's names") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  two.watch(b, lookup_of("f"), kRoot);
  two.watch(b, attr_of(kRoot), kRoot);
  auto before = b.unwatched().size();
  wire::Request read;
  read.mutable_get_attr()->set_inode(kRoot);
  read.mutable_get_attr()->set_accessed(true);
  CHECK(a.call(read).has_attr());
  CHECK(b.unwatched().size() > before);
  // Still watched: the next change of names tells it.
  before = b.unwatched().size();
  a.create("more", false);
  CHECK(b.unwatched().size() > before);
}

TEST_CASE(
    "watches: after a restart nothing is shown before all who may watch have come, or lapsed") {
  World world;
  Client a{world, 1, 11}, b{world, 2, 22};
  SUBCASE("they come") {
    world.timing.lease_term = std::chrono::seconds{60};
    {
      Coordinator coordinator{world, 1};
      REQUIRE(!a.connect(coordinator).code());
      REQUIRE(!b.connect(coordinator).code());
    }
    Coordinator next{world, 1};
    REQUIRE(!a.connect(next).code());
    a.resume_done();
    auto look = a.send(attr_of(kRoot));
    pause(std::chrono::milliseconds{100});
    CHECK(!a.answered(look));
    REQUIRE(!b.connect(next).code());
    CHECK(a.wait(look).has_attr());
  }
  SUBCASE("they do not, and lapse") {
    world.timing.lease_term = std::chrono::milliseconds{400};
    {
      Coordinator coordinator{world, 1};
      REQUIRE(!a.connect(coordinator).code());
      REQUIRE(!b.connect(coordinator).code());
    }
    Coordinator next{world, 1};
    auto began = std::chrono::steady_clock::now();
    REQUIRE(!a.connect(next).code());
    a.resume_done();
    CHECK(a.call(attr_of(kRoot)).has_attr());
    CHECK(std::chrono::steady_clock::now() - began > std::chrono::milliseconds{200});
  }
}
