#include "csvfs/watched.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "coordinator/protocol/failure.h"

using namespace csv;

namespace {

constexpr std::uint64_t kDirectory = 2, kFile = 7;

struct HandClock final : Clock {
  TimePoint time{};
  [[nodiscard]] TimePoint now() const override { return time; }
  [[nodiscard]] WallTime wall_now() const override { return {}; }
};

wire::Request lookup_of(const std::string& name) {
  wire::Request request;
  request.mutable_lookup()->set_parent(kDirectory);
  request.mutable_lookup()->set_name(name);
  return request;
}
wire::Reply found(std::uint64_t inode, bool names = true) {
  wire::Reply reply;
  reply.mutable_attr()->set_inode(inode);
  reply.set_vouched_ms(3000);
  reply.add_watched(inode);
  if (names) reply.add_watched(kDirectory);
  return reply;
}
wire::Request chmod_of(std::uint64_t inode) {
  wire::Request request;
  request.mutable_set_attr()->set_inode(inode);
  request.mutable_set_attr()->set_mode(0600);
  return request;
}
wire::Request make_in(std::uint64_t directory) {
  wire::Request request;
  request.mutable_make()->set_parent(directory);
  return request;
}

struct Known {
  HandClock clock;
  Watched watched{clock, 1000};
  bool has(const std::string& name) { return watched.find(InodeId{kDirectory}, name).known; }
  bool has(std::uint64_t inode) { return watched.attr(InodeId{inode}) != nullptr; }
};

}  // namespace

TEST_CASE("watched: what an answer vouches for is known, and only that") {
  Known known;
  known.watched.replied(lookup_of("f"), 1, known.clock.time, found(kFile));
  CHECK(known.has("f"));
  CHECK(known.has(kFile));
  CHECK(!known.has("other"));

  known.watched.replied(lookup_of("g"), 2, known.clock.time, found(kFile + 1, false));
  CHECK(!known.has("g"));
  CHECK(known.has(kFile + 1));

  auto unvouched = found(kFile + 2);
  unvouched.set_vouched_ms(0);
  known.watched.replied(lookup_of("h"), 3, known.clock.time, unvouched);
  CHECK(!known.has("h"));
  CHECK(!known.has(kFile + 2));

  wire::Reply absent;
  *absent.mutable_failure() = protocol::encode(errno_error(ENOENT, "lookup"));
  absent.set_vouched_ms(3000);
  absent.add_watched(kDirectory);
  known.watched.replied(lookup_of("none"), 4, known.clock.time, absent);
  auto none = known.watched.find(InodeId{kDirectory}, "none");
  CHECK(none.known);
  CHECK(none.attr == nullptr);
}

TEST_CASE("watched: nothing is known past the time that the last answer vouched for") {
  Known known;
  known.watched.replied(lookup_of("f"), 1, known.clock.time, found(kFile));
  known.clock.time += 2900ms;
  CHECK(known.has("f"));
  known.clock.time += 100ms;
  CHECK(!known.has("f"));
  CHECK(!known.has(kFile));
  // Counted from the sending, however late the answer comes.
  wire::Request look;
  look.mutable_stat_fs();
  wire::Reply vouches;
  vouches.set_vouched_ms(3000);
  known.watched.replied(look, 2, known.clock.time - 2900ms, vouches);
  CHECK(known.has("f"));
  known.clock.time += 100ms;
  CHECK(!known.has("f"));
}

TEST_CASE("watched: a notice, and a lost connection, end it") {
  Known known;
  auto learn = [&] { known.watched.replied(lookup_of("f"), 1, known.clock.time, found(kFile)); };
  learn();
  wire::Unwatch notice;
  notice.add_attributes(kDirectory);
  notice.add_inodes(kFile);
  known.watched.noticed(notice);
  CHECK(!known.has(kFile));
  CHECK(!known.has("f"));
  known.watched.replied(lookup_of("x"), 2, known.clock.time, found(kFile));
  CHECK(known.has("f"));  // the name had stayed
  notice.Clear();
  notice.add_inodes(kDirectory);
  known.watched.noticed(notice);
  CHECK(!known.has("f"));
  CHECK(known.has(kFile));
  learn();
  known.watched.forget_all();
  CHECK(!known.has("f"));
  CHECK(!known.has(kFile));
}

TEST_CASE("watched: what we change is given up, and what was asked before does not bring it back") {
  Known known;
  known.watched.replied(lookup_of("f"), 1, known.clock.time, found(kFile));
  auto change = chmod_of(kFile);
  known.watched.sending(change, 5);
  REQUIRE(change.gave_up_size() == 1);
  CHECK(change.gave_up(0) == kFile);
  CHECK(!known.has(kFile));
  known.watched.replied(lookup_of("f"), 4, known.clock.time, found(kFile));
  CHECK(!known.has(kFile));
  SUBCASE("the change's own answer does") {
    auto done = found(kFile, false);
    known.watched.replied(change, 5, known.clock.time, done);
    CHECK(known.has(kFile));
  }
  SUBCASE("but not if another one went out meanwhile") {
    auto next = chmod_of(kFile);
    known.watched.sending(next, 6);
    known.watched.replied(change, 5, known.clock.time, found(kFile, false));
    CHECK(!known.has(kFile));
    known.watched.replied(next, 6, known.clock.time, found(kFile, false));
    CHECK(known.has(kFile));
  }
  SUBCASE("a later question does") {
    known.watched.replied(lookup_of("f"), 7, known.clock.time, found(kFile));
    CHECK(known.has(kFile));
  }
}

TEST_CASE("watched: of a directory that we change in the names go, and its new attributes come") {
  Known known;
  known.watched.replied(lookup_of("f"), 1, known.clock.time, found(kFile));
  auto make = make_in(kDirectory);
  known.watched.sending(make, 2);
  CHECK(!known.has("f"));
  wire::Reply made;
  made.set_vouched_ms(3000);
  made.mutable_attr()->set_inode(9);
  made.add_watched(9);
  made.add_also()->set_inode(kDirectory);
  made.add_watched(kDirectory);
  known.watched.replied(make, 2, known.clock.time, made);
  CHECK(known.has(kDirectory));
  CHECK(known.has(9));
  CHECK(!known.has("f"));
}

TEST_CASE("watched: doubts are bounded, and forgetting them errs on the safe side") {
  Known known;
  for (std::uint64_t i = 0; i < 10'000; ++i) {
    auto change = chmod_of(100 + i);
    known.watched.sending(change, 10 + i);
  }
  known.watched.replied(lookup_of("f"), 9, known.clock.time, found(100));
  CHECK(!known.has(100));
  CHECK(!known.has("f"));
  known.watched.replied(lookup_of("f"), 20'000, known.clock.time, found(100));
  CHECK(known.has(100));
}

TEST_CASE("watched: a file without extended attributes needs no question about any") {
  Known known;
  auto reply = found(kFile);
  reply.mutable_attr()->set_plain(true);
  known.watched.replied(lookup_of("f"), 1, known.clock.time, reply);
  const auto* value = known.watched.xattr(InodeId{kFile}, "user.x");
  REQUIRE(value != nullptr);
  CHECK(!*value);
  CHECK(known.watched.xattr(InodeId{kFile + 1}, "user.x") == nullptr);
}
