// What is answered to a request that was said again, because the connection it was said on broke.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include "coordinator/protocol/failure.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service::test;

namespace {

constexpr std::uint64_t kRoot = raw(kRootInode);
constexpr std::uint64_t kBlock = 4096, kMiB = 1 << 20;

Error error_of(const wire::Reply& reply) { return protocol::decode(reply.failure()); }
bool is_good(const wire::Reply& reply) { return reply.failure().code() == 0; }

wire::Request make_request(const std::string& name) {
  wire::Request request;
  auto& make = *request.mutable_make();
  make.set_parent(kRoot);
  make.set_name(name);
  make.set_mode(S_IFREG | 0644);
  return request;
}
wire::Request lookup_of(const std::string& name) {
  wire::Request request;
  request.mutable_lookup()->set_parent(kRoot);
  request.mutable_lookup()->set_name(name);
  return request;
}
wire::Request truncate_request(std::uint64_t inode, std::uint64_t size) {
  wire::Request request;
  request.mutable_set_attr()->set_inode(inode);
  request.mutable_set_attr()->set_size(size);
  return request;
}
wire::Request write_request(std::uint64_t inode) {
  wire::Request request;
  request.mutable_write()->set_inode(inode);
  return request;
}

/// A coordinator with three mounts.
struct Three {
  Three() {
    // What is watched must not lapse by itself.
    world.timing.lease_term = std::chrono::seconds{60};
    world.coordinator_plan = [this](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      if (slow_writes && command.kind == iscsi::RamCommand::Kind::write)
        fate.inside = std::chrono::milliseconds{100};
      if (slow_keys && command.kind == iscsi::RamCommand::Kind::keys)
        fate.inside = std::chrono::milliseconds{300};
      return fate;
    };
    coordinator.emplace(world, 1);
    for (auto* each : {&a, &b, &c}) {
      REQUIRE(!each->connect(*coordinator).code());
      each->admit();
    }
  }
  void again(Client& client) {
    client.disconnect();
    REQUIRE(!client.connect(*coordinator).code());
  }
  /// B knows the root directory by heart, and keeps the answer to itself when it is to forget.
  void b_watches() {
    bool watched = false;
    for (int i = 0; i < 200 && !watched; ++i) {
      auto reply = b.call(lookup_of("none"));
      watched = std::count(reply.watched().begin(), reply.watched().end(), kRoot) > 0;
    }
    REQUIRE(watched);
    b.answer_unwatches(false);
  }
  bool b_is_told() {
    return world.eventually([this] { return coordinator->service().status().unwatches > 0; });
  }
  /// On the loop.
  [[nodiscard]] std::uint64_t layouts_now(unsigned node) {
    for (const auto& each : coordinator->service().status().sessions)
      if (raw(each.node) == node) return each.layouts;
    return 0;
  }

  std::atomic<bool> slow_writes{false}, slow_keys{false};
  World world;
  std::optional<Coordinator> coordinator;
  Client a{world, 1, 11}, b{world, 2, 22}, c{world, 3, 33};
};

}  // namespace

TEST_CASE("repeats: what ends before its repeat is there is answered to the repeat alone") {
  Three world;
  auto& a = world.a;
  world.b_watches();
  (void)a.send(a.prepared(make_request("lock"), 1));
  REQUIRE(world.b_is_told());
  // It fails, and that nobody is told of before B has forgotten that there is no such name.
  auto id = a.send(a.prepared(make_request("lock"), 0));
  CHECK(world.coordinator->status().sessions.size() == 3);
  world.again(a);
  auto look = world.c.send(lookup_of("lock"));
  world.b.answer_held_unwatches();
  REQUIRE(world.c.wait(look).has_attr());  // so it has come to its end, too
  CHECK(a.answers(id) == 0);
  // The lock's holder removes it, before the one that failed is said again.
  world.b.answer_unwatches(true);
  REQUIRE(is_good(world.b.unlink("lock")));
  a.send_again(id);
  a.resume_done();
  auto told = a.wait(id);
  // From here on the slot is free, as far as the mount knows.
  auto next = a.change(make_request("next"), {}, 0);
  CHECK_MESSAGE(is_good(next), next.failure().message());
  CHECK(a.answers(id) == 1);
  CHECK(is_good(told) == is_good(world.c.call(lookup_of("lock"))));
}

TEST_CASE("repeats: a layout that is asked for after the answer is not forgotten") {
  Three world;
  auto& a = world.a;
  auto file = a.create("image");
  REQUIRE(is_good(a.write(file, 0, std::string(16 * kBlock, 'x'))));
  REQUIRE(a.layout(file, 0, 16 * kBlock, true).segments_size() > 0);
  wire::Request back;
  back.mutable_layout_return()->set_inode(file);
  back.mutable_layout_return()->set_wrote(true);
  world.slow_writes = true;
  auto id = a.send(back);
  world.again(a);
  REQUIRE(world.world.eventually([&] { return world.layouts_now(1) == 0; }));
  (void)world.c.attr(file);
  CHECK(a.answers(id) == 0);
  a.send_again(id);
  a.resume_done();
  // It asks for nothing before it has been answered.
  REQUIRE(is_good(a.wait(id)));
  REQUIRE(a.layout(file, 0, 16 * kBlock, true).segments_size() > 0);
  world.slow_writes = false;
  CHECK(world.world.eventually([&] { return world.layouts_now(1) > 0; }));
  a.answer_recalls(false);
  auto shorter = world.b.send(world.b.prepared(truncate_request(file, 0), 0));
  CHECK(world.world.eventually([&] { return world.coordinator->service().status().recalls > 0; }));
  a.answer_recalls(true);
  a.answer_held();
  CHECK(is_good(world.b.wait(shorter)));
}

TEST_CASE("repeats: a write that ends between two connections is done once, and answered") {
  Three world;
  auto& a = world.a;
  auto& b = world.b;
  auto file = a.create("image");
  REQUIRE(is_good(a.truncate(file, kMiB)));
  b.answer_recalls(false);
  REQUIRE(b.layout(file, 0, kMiB, true).segments_size() > 0);
  auto id = a.send(a.prepared(write_request(file), 0), bytes_of("x"));
  REQUIRE(
      world.world.eventually([&] { return world.coordinator->service().status().recalls > 0; }));
  // Said again on a second connection, where it is still awaited, and not yet on the third.
  world.again(a);
  a.send_again(id);
  a.resume_done();
  world.again(a);
  while (b.held().empty()) std::this_thread::yield();
  b.answer_held();
  while (world.c.read(file, 0, 1) != "x") std::this_thread::yield();
  CHECK(a.answers(id) == 0);
  a.send_again(id);
  a.resume_done();
  CHECK(a.wait(id).written().length() == 1);
  CHECK(is_good(a.change(make_request("next"), {}, 0)));
  CHECK(a.answers(id) == 1);
  CHECK(world.coordinator->status().content_write_bytes == kBlock);
}

TEST_CASE("repeats: a stored answer that waits is given to whom the request was said last") {
  World world;
  world.timing.lease_term = std::chrono::seconds{60};
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t id = 0;
  {
    Coordinator former{world, 3};
    REQUIRE(!a.connect(former).code());
    REQUIRE(!b.connect(former).code());
    a.admit();
    b.admit();
    id = a.send(a.prepared(make_request("f"), 0));
    REQUIRE(is_good(a.wait(id)));
    a.disconnect();
    b.disconnect();
    former.close();
  }
  // B may answer from what the former coordinator told it, until it has heard of the new one.
  Coordinator next{world, 3};
  REQUIRE(!a.connect(next).code());
  a.send_again(id);
  a.resume_done();
  a.disconnect();
  REQUIRE(!a.connect(next).code());
  REQUIRE(a.answers(id) == 1);
  REQUIRE(!b.connect(next).code());
  b.resume_done();
  REQUIRE(is_good(b.call(lookup_of("f"))));
  CHECK(a.answers(id) == 1);
  a.send_again(id);
  a.resume_done();
  CHECK(is_good(a.change(make_request("g"), {}, 0)));
  CHECK(a.answers(id) == 2);
}

TEST_CASE("repeats: a mount that has lost its session is not given it again as a new one") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  // It may not have heard the answer to its first Hello: nothing has been asked yet.
  Client unheard{world, 1, 11};
  REQUIRE(!unheard.connect(coordinator).code());
  CHECK(unheard.session() == a.session());
  REQUIRE(is_good(unheard.change(make_request("one"))));

  Client afresh{world, 1, 11};
  REQUIRE(!afresh.connect(coordinator).code());
  CHECK(afresh.session() != a.session());
  // With the same slot and sequence, since all of its are free.
  CHECK(is_good(afresh.change(make_request("two"))));
  CHECK(is_good(afresh.call(lookup_of("two"))));
}

TEST_CASE("repeats: nor one that was resumed at this coordinator and has asked for nothing here") {
  World world;
  Client a{world, 1, 11};
  {
    Coordinator former{world, 2};
    REQUIRE(!a.connect(former).code());
    REQUIRE(is_good(a.change(make_request("one"))));
    a.disconnect();
    former.close();
  }
  Coordinator coordinator{world, 1};
  REQUIRE(!a.connect(coordinator).code());
  a.resume_done();
  Client afresh{world, 1, 11};
  REQUIRE(!afresh.connect(coordinator).code());
  CHECK(afresh.session() != a.session());
  CHECK(is_good(afresh.change(make_request("two"))));
  CHECK(is_good(afresh.call(lookup_of("two"))));
}

TEST_CASE("repeats: an admission that another one overtakes does not end the session") {
  Three world;
  auto& a = world.a;
  auto key = a.register_only();
  world.slow_keys = true;
  wire::Request done, begin;
  done.mutable_admit_done()->set_key(raw(key));
  begin.mutable_admit_begin();
  auto first = a.send(done), second = a.send(begin);
  CHECK(error_of(a.wait(first)) == Errc::fenced);
  CHECK(is_good(a.wait(second)));
  world.slow_keys = false;
  a.admit();
  CHECK(world.world.listed(a.key()));
}
