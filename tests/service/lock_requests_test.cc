#include <doctest/doctest.h>

#include <cerrno>
#include <chrono>

#include "coordinator/protocol/failure.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service::test;

namespace {

constexpr std::uint32_t kRead = 1, kWrite = 2;

/// In the name of program `owner` of whichever session sends it.
wire::LockOf lock_of(std::uint64_t inode, std::uint64_t owner, std::uint32_t type,
                     std::uint64_t first = 0, std::uint64_t last = 99) {
  wire::LockOf what;
  what.set_inode(inode);
  what.set_owner(owner * 1000 + inode);
  what.set_process(owner);
  what.set_pid(static_cast<std::uint32_t>(owner));
  what.set_first(first);
  what.set_last(last);
  what.set_type(type);
  return what;
}
wire::Request lock(const wire::LockOf& what, std::uint64_t ticket = 0) {
  wire::Request request;
  *request.mutable_lock()->mutable_what() = what;
  request.mutable_lock()->set_ticket(ticket);
  return request;
}
wire::Request unlock(const wire::LockOf& what) {
  wire::Request request;
  *request.mutable_unlock()->mutable_what() = what;
  return request;
}
wire::Request taken(std::uint64_t ticket) {
  wire::Request request;
  request.mutable_lock_taken()->set_ticket(ticket);
  return request;
}
wire::Request cancel(std::uint64_t ticket) {
  wire::Request request;
  request.mutable_lock_cancel()->set_ticket(ticket);
  return request;
}
wire::Request held(const wire::LockOf& what) {
  wire::Request request;
  *request.mutable_held_locks()->add_held() = what;
  return request;
}
int error_of(const wire::Reply& reply) { return protocol::decode(reply.failure()).to_errno(); }

/// Two sessions, and a file.
struct Two {
  Two() {
    REQUIRE(!a.connect(coordinator).code());
    REQUIRE(!b.connect(coordinator).code());
    a.admit();
    b.admit();
    file = a.create("file");
  }
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t file = 0;
};

}  // namespace

TEST_CASE("locks: a session waits for another's lock, has it once taken, and gives it back") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == 0);
  CHECK(error_of(b.call(lock(lock_of(file, 1, kRead)))) == EAGAIN);
  wire::Request test;
  *test.mutable_test_lock()->mutable_what() = lock_of(file, 2, kRead, 50, 60);
  auto found = b.call(test).lock_found();
  CHECK(found.type() == kWrite);
  CHECK(found.last() == 99);
  CHECK(found.pid() == 0);  // of another node
  CHECK(a.call(test).lock_found().pid() == 1);

  auto waits = b.send(lock(lock_of(file, 1, kRead), 1));
  auto given_up = b.send(lock(lock_of(file, 2, kRead), 2));
  CHECK(error_of(b.call(cancel(2))) == 0);
  CHECK(error_of(b.wait(given_up)) == EINTR);
  CHECK_FALSE(b.answered(waits));
  CHECK(error_of(a.call(unlock(lock_of(file, 1, kWrite)))) == 0);
  CHECK(error_of(b.wait(waits)) == 0);
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == EAGAIN);
  CHECK(error_of(b.call(taken(1))) == 0);
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == EAGAIN);
  CHECK(error_of(a.call(lock(lock_of(file, 1, kRead)))) == 0);
  CHECK(error_of(b.call(unlock(lock_of(file, 1, kWrite)))) == 0);
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == 0);
}

TEST_CASE("locks: who waits survives a broken connection, and is in nobody's way") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == 0);
  std::vector<std::uint64_t> waits;
  for (std::uint64_t each = 1; each <= 1024; ++each)
    waits.push_back(b.send(lock(lock_of(file, each, kRead), each)));
  CHECK(error_of(b.call(lock(lock_of(file, 2000, kRead), 2000))) == ENOLCK);
  CHECK(b.attr(file).inode() == file);  // other requests are served all the same
  CHECK(coordinator.status().sessions.back().lock_waits == 1024);
  b.disconnect();
  CHECK(error_of(a.call(unlock(lock_of(file, 1, kWrite)))) == 0);
  REQUIRE(!b.connect(coordinator).code());
  for (auto each : waits) b.send_again(each);
  b.resume_done();
  for (auto each : waits) CHECK(error_of(b.wait(each)) == 0);
  for (auto each : waits) CHECK(b.answers(each) == 1);
  CHECK(error_of(a.call(lock(lock_of(file, 1, kRead)))) == 0);
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == EAGAIN);
}

TEST_CASE("locks: those of a session that is gone are free once its key is off the LUN") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == 0);
  auto waits = b.send(lock(lock_of(file, 1, kWrite), 1));
  CHECK(error_of(b.call(lock(lock_of(file, 2, kWrite)))) == EAGAIN);
  auto since = std::chrono::steady_clock::now();
  a.disconnect();
  CHECK(error_of(b.wait(waits)) == 0);
  CHECK_FALSE(world.listed(a.key()));
  // Not before its lease is over, but well before it would have been given up without a waiter.
  auto took = std::chrono::steady_clock::now() - since;
  CHECK(took >= 500ms);
  CHECK(took < 20s);
}

TEST_CASE("locks: a session that ends answers those of its own that wait") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == 0);
  b.send(lock(lock_of(file, 1, kWrite), 1));
  CHECK(error_of(b.call(lock(lock_of(file, 2, kWrite)))) == EAGAIN);
  wire::Request goodbye;
  goodbye.mutable_goodbye();
  CHECK(error_of(b.call(goodbye)) == 0);
  CHECK(coordinator.status().sessions.size() == 1);
  CHECK(error_of(a.call(goodbye)) == 0);
  CHECK(coordinator.status().sessions.empty());
}

TEST_CASE("locks: after a takeover nobody gets one before everybody has said what he holds") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == 0);
  a.disconnect();
  b.disconnect();
  coordinator.crash();
  Coordinator next{world, 2};
  REQUIRE(!b.connect(next).code());
  b.resume_done();
  auto tries = b.send(lock(lock_of(file, 1, kWrite)));
  auto waits = b.send(lock(lock_of(file, 2, kWrite), 7));
  CHECK(b.attr(file).inode() == file);
  CHECK_FALSE(b.answered(tries));
  SUBCASE("it comes back") {
    REQUIRE(!a.connect(next).code());
    CHECK(error_of(a.call(held(lock_of(file, 1, kWrite)))) == 0);
    CHECK(b.attr(file).inode() == file);
    CHECK_FALSE(b.answered(tries));  // it may have something to repeat
    a.resume_done();
    CHECK(error_of(b.wait(tries)) == EAGAIN);
    CHECK_FALSE(b.answered(waits));
    // It is known by now: nothing can be added by declaring it.
    CHECK(error_of(a.call(held(lock_of(file, 1, kWrite, 1000, 2000)))) == 0);
    CHECK(error_of(b.call(lock(lock_of(file, 3, kWrite, 1000, 2000)))) == 0);
    CHECK(error_of(a.call(unlock(lock_of(file, 1, kWrite)))) == 0);
    CHECK(error_of(b.wait(waits)) == 0);
  }
  SUBCASE("it does not") {
    CHECK(error_of(b.wait(tries)) == 0);
    CHECK_FALSE(world.listed(a.key()));
    CHECK_FALSE(b.answered(waits));
    CHECK(error_of(b.call(unlock(lock_of(file, 1, kWrite)))) == 0);
    CHECK(error_of(b.wait(waits)) == 0);
  }
}

TEST_CASE("locks: one that is given up before all locks are known waits for none afterwards") {
  Two two;
  auto& [world, coordinator, a, b, file] = two;
  CHECK(error_of(a.call(lock(lock_of(file, 1, kWrite)))) == 0);
  a.disconnect();
  b.disconnect();
  coordinator.crash();
  Coordinator next{world, 2};
  REQUIRE(!b.connect(next).code());
  b.resume_done();
  auto given_up = b.send(lock(lock_of(file, 1, kWrite), 7));
  auto waits = b.send(lock(lock_of(file, 2, kWrite), 8));
  CHECK(error_of(b.call(cancel(7))) == 0);
  REQUIRE(!a.connect(next).code());
  CHECK(error_of(a.call(held(lock_of(file, 1, kWrite)))) == 0);
  a.resume_done();
  CHECK(error_of(b.wait(given_up)) == EINTR);
  CHECK_FALSE(b.answered(waits));
  CHECK(error_of(a.call(unlock(lock_of(file, 1, kWrite)))) == 0);
  CHECK(error_of(b.wait(waits)) == 0);
}

TEST_CASE("locks: one that is connected and does not say what it holds is fenced in the end") {
  World world;
  world.timing.recall_patience = 1s;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("file");
  a.disconnect();
  b.disconnect();
  coordinator.crash();
  Coordinator next{world, 2};
  REQUIRE(!a.connect(next).code());
  REQUIRE(!b.connect(next).code());
  b.resume_done();
  CHECK(error_of(b.call(lock(lock_of(file, 1, kWrite)))) == 0);
  CHECK_FALSE(world.listed(a.key()));
}
