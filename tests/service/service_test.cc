#include <doctest/doctest.h>
#include <linux/falloc.h>

#include <cerrno>
#include <map>
#include <thread>

#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/limits.h"
#include "coordinator/service/takeover.h"
#include "coordinator/volume/database.h"
#include "coordinator/volume/volume.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/heartbeat_slot.h"
#include "iscsi/blocking_lun.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service::test;

namespace {

constexpr std::uint64_t kBlock = 4096, kMiB = 1 << 20;

Error error_of(const wire::Reply& reply) { return protocol::decode(reply.failure()); }
bool is_errno(const wire::Reply& reply, int number) {
  return error_of(reply) == std::error_code{number, std::generic_category()};
}
std::vector<std::byte> filled(std::size_t size, char with) {
  return std::vector<std::byte>(size, std::byte{static_cast<unsigned char>(with)});
}
void pause(std::chrono::milliseconds time) { std::this_thread::sleep_for(time); }

/// A recall comes before long, and is not answered.
bool is_asked(Client& client) {
  for (int i = 0; i < 400 && client.held().empty(); ++i) pause(std::chrono::milliseconds{5});
  return !client.held().empty();
}

wire::Request commit_request(std::uint64_t inode, const wire::LayoutReply& layout,
                             std::uint64_t offset, std::uint64_t length) {
  wire::Request request;
  auto& commit = *request.mutable_commit();
  commit.set_inode(inode);
  commit.set_grant(layout.grant());
  commit.set_offset(offset);
  commit.set_length(length);
  commit.set_truncation(layout.truncation());
  return request;
}

wire::Request claim_request(std::uint64_t inode, std::uint64_t offset, std::uint64_t length) {
  wire::Request request;
  auto& claim = *request.mutable_layout();
  claim.set_inode(inode);
  claim.set_offset(offset);
  claim.set_length(length);
  claim.set_pages(2);  // dirty
  return request;
}

wire::Request write_request(std::uint64_t inode, bool append) {
  wire::Request request;
  request.mutable_write()->set_inode(inode);
  request.mutable_write()->set_append(append);
  return request;
}

}  // namespace

// ---------------------------------------------------------------------------- who speaks

TEST_CASE("service: a node with a certificate of its own cannot speak for another one") {
  World world;
  Coordinator coordinator{world, 1};
  Client honest{world, 2, 22};
  honest.certified_as(2);
  REQUIRE(!honest.connect(coordinator).code());
  honest.admit();
  auto key = honest.key();
  auto fences = coordinator.status().fences;
  // A new mount of node 2 would end the session that node has, and fence its key.
  Client thief{world, 2, 33};
  thief.certified_as(3);
  CHECK(thief.connect(coordinator) == Errc::refused);
  // Nor may it resume what is not its own, whatever it knows of it.
  Client other{world, 3, 44};
  other.certified_as(3);
  REQUIRE(!other.connect(coordinator).code());
  wire::Request done;
  done.mutable_admit_done()->set_key(raw(key));
  CHECK(protocol::decode(other.call(done).failure()) == Errc::refused);

  CHECK(world.listed(key));
  CHECK(honest.create("still mine") != 0);
  CHECK(coordinator.status().fences == fences);
}

TEST_CASE("service: a session is resumed by its own node only") {
  World world;
  Coordinator coordinator{world, 1};
  Client client{world, 2, 22};
  client.certified_as(2);
  REQUIRE(!client.connect(coordinator).code());
  client.disconnect();
  client.certified_as(3);
  CHECK(client.connect(coordinator) == Errc::refused);
  client.certified_as(2);
  CHECK(!client.connect(coordinator).code());
}

// ---------------------------------------------------------------------------- exactly once

TEST_CASE("service: a repeated request takes effect once and gets its first answer") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("log");

  auto request = a.prepared(write_request(file, true), 3);
  auto id = a.send(request, bytes_of("hello"));
  auto first = a.wait(id);
  CHECK(first.written().offset() == 0);
  a.send_again(id);
  for (int i = 0; i < 200 && a.answers(id) < 2; ++i) pause(std::chrono::milliseconds{5});
  CHECK(a.answers(id) == 2);
  CHECK(a.attr(file).size() == 5);

  SUBCASE("also by the next coordinator") {
    coordinator.crash();
    Coordinator next{world, 2};
    REQUIRE(!a.connect(next).code());
    a.send_again(id);
    a.resume_done();
    for (int i = 0; i < 200 && a.answers(id) < 3; ++i) pause(std::chrono::milliseconds{5});
    REQUIRE(a.answers(id) == 3);
    CHECK(a.wait(id).written().offset() == 0);
    CHECK(a.attr(file).size() == 5);
    auto more = a.change(write_request(file, true), bytes_of(" world"), 3);
    CHECK(more.written().offset() == 5);
    CHECK(a.read(file, 0, 100) == "hello world");
  }
}

TEST_CASE("service: a repeat of a request that is still in flight joins it") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("image");
  REQUIRE(a.truncate(file, kMiB).failure().code() == 0);
  b.answer_recalls(false);
  REQUIRE(b.layout(file, 0, kMiB, true).segments_size() > 0);

  auto id = a.send(a.prepared(write_request(file, false), 0), bytes_of("x"));
  for (int i = 0; i < 400 && b.held().empty(); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(b.held().size() == 1);
  a.disconnect();
  REQUIRE(!a.connect(coordinator).code());
  a.send_again(id);
  a.resume_done();
  pause(std::chrono::milliseconds{50});
  CHECK(a.answers(id) == 0);
  b.answer_held();
  CHECK(a.wait(id).written().length() == 1);
  pause(std::chrono::milliseconds{50});
  CHECK(a.answers(id) == 1);
  CHECK(coordinator.status().content_write_bytes == kBlock);
}

TEST_CASE(
    "service: requests without a sequence, with an old one, or with nothing in them are refused") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("f");
  CHECK(error_of(a.call(write_request(file, true), bytes_of("x"))) == Errc::refused);
  wire::Request old;
  old.mutable_unlink()->set_parent(1);
  old.mutable_unlink()->set_name("f");
  old.set_sequence(1);
  a.create("g");
  CHECK(error_of(a.call(old)) == Errc::refused);
  // Out of range in every way, and the coordinator goes on.
  CHECK(is_errno(a.truncate(file, 1ull << 50), EFBIG));
  CHECK(is_errno(a.write(file, (1ull << 44) - 1, "ab"), EFBIG));
  CHECK(is_errno(a.write(99999, 0, "ab"), ESTALE));
  CHECK(is_errno(a.write(1, 0, "ab"), EISDIR));
  wire::Request layout;
  layout.mutable_layout()->set_inode(file);
  layout.mutable_layout()->set_offset(1ull << 60);
  layout.mutable_layout()->set_write(true);
  CHECK(is_errno(a.call(layout), EFBIG));
  wire::LayoutReply none;
  none.set_grant(77);
  CHECK(error_of(a.change(commit_request(file, none, 0, kBlock))) == Errc::stale_commit);
  CHECK(error_of(a.change(commit_request(file, none, 5, kBlock))) == Errc::refused);
  wire::Request allocate;
  allocate.mutable_allocate()->set_inode(file);
  allocate.mutable_allocate()->set_length(kBlock);
  allocate.mutable_allocate()->set_mode(FALLOC_FL_COLLAPSE_RANGE);
  CHECK(is_errno(a.change(allocate), EOPNOTSUPP));
  CHECK(a.attr(file).size() == 0);
}

// ---------------------------------------------------------------------------- admission

TEST_CASE("admission: nothing is laid out for a session whose key the coordinator has not seen") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  auto file = a.create("f");
  wire::Request layout;
  layout.mutable_layout()->set_inode(file);
  layout.mutable_layout()->set_length(kBlock);
  auto through_us = a.call(layout);
  CHECK(through_us.layout().shipped());
  CHECK(through_us.layout().segments_size() == 0);

  wire::Request begin, done;
  begin.mutable_admit_begin();
  auto key = a.call(begin).admission().key();
  done.mutable_admit_done()->set_key(key);
  CHECK(error_of(a.call(done)) == Errc::fenced);  // not registered: no consent
  a.admit();
  CHECK(a.layout(file, 0, kBlock, false).size() == 0);
  CHECK_FALSE(coordinator.status().sessions.empty());
  CHECK(coordinator.status().sessions[0].admitted);
}

TEST_CASE("admission: a REGISTER that comes after its fence is preempted by the sweep") {
  World world;
  Coordinator coordinator{world, 1};
  Key late{};
  {
    Client a{world, 1, 11};
    REQUIRE(!a.connect(coordinator).code());
    wire::Request begin;
    begin.mutable_admit_begin();
    late = Key{a.call(begin).admission().key()};
  }
  // Its node's next mount ends the session, and with it the row of the key.
  Client again{world, 1, 12};
  REQUIRE(!again.connect(coordinator).code());
  again.admit();
  auto lun = world.disk->connect(world.loop, world.lun_options(77));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  REQUIRE(io.register_key(late));
  bool gone = false;
  for (int i = 0; i < 400 && !gone; ++i) {
    pause(std::chrono::milliseconds{10});
    gone = !world.listed(late);
  }
  CHECK(gone);
  CHECK(world.listed(again.key()));
}

TEST_CASE("admission: a new key of a session fences the one before") {
  auto tgt_like = iscsi::RamDiskOptions::like_tgt();
  for (const auto& disk : {iscsi::RamDiskOptions{}, tgt_like, iscsi::RamDiskOptions::like_lio()}) {
    bool tgt = disk.zombies;
    CAPTURE(tgt);
    World world{disk};
    Coordinator coordinator{world, 1};
    Client a{world, 1, 11};
    REQUIRE(!a.connect(coordinator).code());
    a.admit();
    auto before = a.key();
    a.admit();
    CHECK(a.key() != before);
    CHECK(!world.listed(before));
    CHECK(world.listed(a.key()));
    // A target that ties a registration to the session keeps the old one listed.
    CHECK(coordinator.status().fences == (tgt ? 1u : 0u));
  }
}

TEST_CASE("session: a node's new mount ends the old one, whose I/O the target then refuses") {
  World world;
  Coordinator coordinator{world, 3};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto block = filled(kBlock, 'x');
  auto place = world.info.data_offset + world.info.data_size - kBlock;
  REQUIRE(a.lun_write(place, block));
  a.disconnect();

  Client again{world, 1, 12};
  REQUIRE(!again.connect(coordinator).code());
  CHECK(!world.listed(a.key()));
  CHECK(!a.lun_write(place, block));
  CHECK(!a.lun_read(place, kBlock));
  CHECK(a.connect(coordinator) == Errc::session_ended);
}

TEST_CASE("session: a goodbye takes the key off the LUN and frees what the session held") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("f");
  auto layout = a.layout(file, 0, 16 * kBlock, true);
  REQUIRE(layout.grant() != 0);
  wire::Request goodbye;
  goodbye.mutable_goodbye();
  CHECK(a.call(goodbye).failure().code() == 0);
  CHECK(!world.listed(a.key()));
  CHECK(coordinator.status().sessions.empty());
  Client b{world, 2, 22};
  REQUIRE(!b.connect(coordinator).code());
  bool freed = false;
  for (int i = 0; i < 400 && !freed; ++i) {
    pause(std::chrono::milliseconds{5});
    freed = b.attr(file).blocks() == 0;
  }
  CHECK(freed);
  coordinator.close();
  CHECK(world.problems().empty());
}

// ---------------------------------------------------------------------------- layouts

TEST_CASE(
    "layout: the first write to a hole makes it stable zeros, and everybody may write there") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("image");
  REQUIRE(a.truncate(file, 8 * kMiB).failure().code() == 0);
  auto hole = b.layout(file, 0, kMiB, false);
  REQUIRE(hole.segments_size() == 1);
  CHECK(hole.segments(0).state() == 0);

  auto mine = a.layout(file, 2 * kMiB + 3 * kBlock, kBlock, true);
  REQUIRE(mine.segments_size() >= 1);
  CHECK(mine.write());
  CHECK(mine.segments(0).state() == 1);
  auto offset = mine.segments(0).lun_offset();
  CHECK(world.peek(offset, kBlock) == std::vector<std::byte>(kBlock));
  auto block = filled(kBlock, 'a');
  REQUIRE(a.lun_write(offset, block));

  auto theirs = b.layout(file, 2 * kMiB + 3 * kBlock, kBlock, true);
  REQUIRE(theirs.segments_size() >= 1);
  CHECK(theirs.segments(0).lun_offset() == offset);
  CHECK(*b.lun_read(offset, kBlock) == block);
  // A whole step was made stable, and nothing beyond it.
  CHECK(a.attr(file).blocks() == kMiB / 512);
  CHECK(b.recalls() == 0);
  CHECK(a.read(file, 2 * kMiB + 3 * kBlock, 4) == "aaaa");
}

TEST_CASE("layout: truncate waits until every holder has given its layouts back") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.write(file, 0, std::string(64 * 1024, 'x')).failure().code() == 0);
  REQUIRE(b.layout(file, 0, kBlock, false).segments_size() == 1);
  b.answer_recalls(false);

  wire::Request request;
  request.mutable_set_attr()->set_inode(file);
  request.mutable_set_attr()->set_size(5000);
  auto id = a.send(a.prepared(request, 0));
  for (int i = 0; i < 400 && b.held().empty(); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(b.held().size() == 1);
  CHECK(b.held()[0].reads_too());
  CHECK(!a.answered(id));
  // Meanwhile nobody gets a layout, but everybody is served.
  CHECK(b.layout(file, 0, kBlock, false).shipped());
  CHECK(b.read(file, 0, 4) == "xxxx");
  CHECK(b.attr(file).size() == 64 * 1024);
  b.answer_held();
  CHECK(a.wait(id).attr().size() == 5000);
  // The rest of the last block is zeros, so growing shows none of what was there.
  REQUIRE(a.truncate(file, 8192).failure().code() == 0);
  CHECK(a.read(file, 4998, 4) == std::string("xx\0\0", 4));
  auto laid_out = b.layout(file, 0, 8192, false);
  CHECK(laid_out.sequence() >= coordinator.status().recalls);
  CHECK(laid_out.truncation() == 1);
}

TEST_CASE("layout: an answer that crossed a recall carries a lower number than the recall") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
  auto before = b.layout(file, 0, 8192, false);
  b.answer_recalls(false);
  wire::Request request;
  request.mutable_set_attr()->set_inode(file);
  request.mutable_set_attr()->set_size(0);
  auto id = a.send(a.prepared(request, 0));
  for (int i = 0; i < 400 && b.held().empty(); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(b.held().size() == 1);
  auto recall = b.held()[0];
  b.answer_held();
  a.wait(id);
  auto after = b.layout(file, 0, 8192, false);
  CHECK(before.sequence() < recall.sequence());
  CHECK(after.sequence() >= recall.sequence());
}

TEST_CASE(
    "layout: a commit into a grant grows the file, and one that a truncate overtook is stale") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  auto layout = a.layout(file, 0, 64 * 1024, true);
  REQUIRE(layout.segments_size() >= 1);
  CHECK(layout.segments(0).state() == 2);
  auto data = filled(64 * 1024, 'g');
  REQUIRE(layout.segments(0).length() >= data.size());
  REQUIRE(a.lun_write(layout.segments(0).lun_offset(), data));
  CHECK(b.attr(file).size() == 0);
  auto committed = a.change(commit_request(file, layout, 0, 60'000));
  REQUIRE(committed.failure().code() == 0);
  CHECK(committed.attr().size() == 60'000);
  CHECK(b.read(file, 59'999, 10) == "g");

  auto more = a.layout(file, 64 * 1024, 64 * 1024, true);
  REQUIRE(more.grant() == layout.grant());
  REQUIRE(b.truncate(file, 0).failure().code() == 0);
  auto late = a.change(commit_request(file, more, 64 * 1024, 64 * 1024));
  CHECK(error_of(late) == Errc::stale_commit);
  CHECK(b.attr(file).size() == 0);
  CHECK(coordinator.status().stale_commits == 1);
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("layout: a grant that was used up is followed by another") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("f");
  std::uint64_t size = 0;
  for (int round = 0; round < 3; ++round) {
    auto layout = a.layout(file, size, kMiB, true);
    REQUIRE(layout.segments_size() >= 1);
    std::uint64_t granted = 0;
    for (const auto& segment : layout.segments())
      if (segment.state() == 2) granted += segment.length();
    REQUIRE(granted >= kMiB);
    auto done = a.change(commit_request(file, layout, size, granted));
    REQUIRE_MESSAGE(done.failure().code() == 0, done.failure().message());
    size += granted;
    CHECK(done.attr().size() == size);
  }
}

TEST_CASE("write: appends of two sessions all land, one after another") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("log");
  std::vector<std::uint64_t> from_a, from_b;
  for (std::uint32_t i = 0; i < 16; ++i) {
    from_a.push_back(a.send(a.prepared(write_request(file, true), i), bytes_of("aaaaa")));
    from_b.push_back(b.send(b.prepared(write_request(file, true), i), bytes_of("bbb")));
  }
  for (auto id : from_a) CHECK(a.wait(id).failure().code() == 0);
  for (auto id : from_b) CHECK(b.wait(id).failure().code() == 0);
  auto content = a.read(file, 0, 4096);
  CHECK(content.size() == 16 * 8);
  CHECK(std::count(content.begin(), content.end(), 'a') == 80);
  CHECK(std::count(content.begin(), content.end(), 'b') == 48);
  // Two writers who cannot be given layouts: the coordinator does it all for a while.
  CHECK(a.layout(file, 0, kBlock, true).shipped());
}

TEST_CASE("write: an append goes behind what a session commits from its grant") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  auto layout = a.layout(file, 0, 64 * 1024, true);
  REQUIRE(layout.grant() != 0);
  REQUIRE(a.lun_write(layout.segments(0).lun_offset(), filled(64 * 1024, 'g')));
  a.answer_recalls(false);
  auto id = b.send(b.prepared(write_request(file, true), 0), bytes_of("tail"));
  for (int i = 0; i < 400 && a.held().empty(); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(a.held().size() == 1);
  // What must be done before the recall can be answered does not wait for the recall.
  auto committed = a.change(commit_request(file, layout, 0, 64 * 1024));
  REQUIRE_MESSAGE(committed.failure().code() == 0, committed.failure().message());
  CHECK(!b.answered(id));
  a.answer_held(true);
  CHECK(b.wait(id).written().offset() == 64 * 1024);
  CHECK(a.read(file, 64 * 1024 - 2, 10) == "ggtail");
  // The rest of the grant is gone.
  CHECK(error_of(a.change(commit_request(file, layout, 64 * 1024, kBlock))) == Errc::stale_commit);
}

TEST_CASE("write: space that is being taken back is not laid out with a write elsewhere") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  auto layout = a.layout(file, 0, 4 * kBlock, true);
  REQUIRE(layout.grant() != 0);
  REQUIRE(a.lun_write(layout.segments(0).lun_offset(), filled(4 * kBlock, 'g')));
  auto committed = a.change(commit_request(file, layout, 0, 4 * kBlock));
  REQUIRE_MESSAGE(committed.failure().code() == 0, committed.failure().message());
  // Content of b in the first block takes the whole grant back.
  a.answer_recalls(false);
  auto id = b.send(b.prepared(write_request(file, false), 0), bytes_of("here"));
  for (int i = 0; i < 400 && a.held().empty(); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(a.held().size() == 1);
  // Elsewhere, where nobody is in the way.
  auto again = a.layout(file, 2 * kBlock, kBlock, true);
  CHECK(again.grant() == 0);
  for (const auto& segment : again.segments()) CHECK(segment.state() != 2);
  a.answer_held(true);
  CHECK(b.wait(id).written().length() == 4);
}

TEST_CASE("write: unaligned content is put between what was there, with zeros where nothing was") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("f");
  REQUIRE(a.write(file, 10, "abc").failure().code() == 0);
  CHECK(a.read(file, 0, 100) == std::string(10, '\0') + "abc");
  REQUIRE(a.write(file, 4090, "0123456789").failure().code() == 0);
  REQUIRE(a.write(file, 4094, "XY").failure().code() == 0);
  CHECK(a.read(file, 4090, 100) == "0123XY6789");
  REQUIRE(a.write(file, 100'000, "far").failure().code() == 0);
  CHECK(a.read(file, 99'999, 10) == std::string(1, '\0') + "far");
  CHECK(a.attr(file).size() == 100'003);
  CHECK(a.read(file, 200'000, 10).empty());
}

TEST_CASE("allocate: fallocate, punch and zero-range do what they say, to the byte") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("f");
  auto allocate = [&](int mode, std::uint64_t offset, std::uint64_t length) {
    wire::Request request;
    auto& body = *request.mutable_allocate();
    body.set_inode(file);
    body.set_mode(static_cast<std::uint32_t>(mode));
    body.set_offset(offset);
    body.set_length(length);
    return a.change(request);
  };
  CHECK(allocate(0, 0, 100'000).attr().size() == 100'000);
  CHECK(a.read(file, 0, 8) == std::string(8, '\0'));
  CHECK(a.attr(file).blocks() == 25 * 8);
  REQUIRE(a.write(file, 0, std::string(20'000, 'x')).failure().code() == 0);
  REQUIRE(allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 10'000).failure().code() == 0);
  auto after = a.read(file, 0, 20'000);
  CHECK(after.substr(0, 5000) == std::string(5000, 'x'));
  CHECK(after.substr(5000, 10'000) == std::string(10'000, '\0'));
  CHECK(after.substr(15'000) == std::string(5000, 'x'));
  CHECK(a.attr(file).blocks() == 24 * 8);  // one whole block lay inside
  REQUIRE(allocate(FALLOC_FL_ZERO_RANGE, 1000, 3000).failure().code() == 0);
  CHECK(a.read(file, 998, 4) == std::string("xx\0\0", 4));
  CHECK(a.read(file, 3998, 4) == std::string("\0\0xx", 4));
  CHECK(allocate(FALLOC_FL_ZERO_RANGE, 90'000, 20'000).attr().size() == 110'000);
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("attributes: whoever writes directly is asked before the times are told") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.truncate(file, kMiB).failure().code() == 0);
  REQUIRE(b.layout(file, 0, kMiB, true).segments_size() > 0);
  auto before = a.attr(file);
  CHECK(a.attr(file).mtime() == before.mtime());
  b.says_wrote(true);
  CHECK(a.attr(file).mtime() > before.mtime());
}

TEST_CASE("attributes: who says too late what it wrote says it all the same") {
  World world;
  world.timing.lease_term = 300ms;
  world.timing.key_sweep = 50ms;  // which keeps its gate open
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.truncate(file, kMiB).failure().code() == 0);
  REQUIRE(b.layout(file, 0, kMiB, true).segments_size() > 0);
  b.answer_queries(false);
  auto before = a.attr(file);  // which gives up waiting
  CHECK(b.answer_held_queries(true) == 1);
  b.answer_queries(true);
  CHECK(a.attr(file).mtime() > before.mtime());
}

TEST_CASE(
    "attributes: a time on its way into the catalog is not overtaken by what is known by heart") {
  World world;
  std::atomic<bool> slow{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (slow && command.kind == iscsi::RamCommand::Kind::write) fate.inside = 100ms;
    return fate;
  };
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("f");
  auto before = a.attr(file);
  slow = true;
  // What close(2) sends when it has returned already, and the stat(2) that follows it.
  wire::Request release, status, look;
  release.mutable_release()->set_inode(file);
  release.mutable_release()->set_wrote(true);
  status.mutable_get_attr()->set_inode(file);
  look.mutable_lookup()->set_parent(1);
  look.mutable_lookup()->set_name("f");
  a.send(release);
  auto looked = a.send(look), asked = a.send(status);
  CHECK(a.wait(looked).attr().mtime() > before.mtime());
  CHECK(a.wait(asked).attr().mtime() > before.mtime());
}

TEST_CASE("attributes: an access shows to whoever asks, and a time that is set afterwards holds") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  auto file = a.create("f");
  auto before = a.attr(file);
  wire::Request release;
  release.mutable_release()->set_inode(file);
  release.mutable_release()->set_accessed(true);
  REQUIRE(a.call(release).failure().code() == 0);
  auto after = b.attr(file);
  CHECK(after.atime() > before.atime());
  CHECK(after.ctime() == before.ctime());

  REQUIRE(a.call(release).failure().code() == 0);
  wire::Request set;
  set.mutable_set_attr()->set_inode(file);
  set.mutable_set_attr()->set_atime(10);
  CHECK(b.change(set).attr().atime() == 10);
  CHECK(a.attr(file).atime() == 10);

  // And it is written though nobody asks: a look at a name does not.
  REQUIRE(a.call(release).failure().code() == 0);
  wire::Request look;
  look.mutable_lookup()->set_parent(1);
  look.mutable_lookup()->set_name("f");
  CHECK(b.call(look).attr().atime() == 10);
  bool written = false;
  for (int i = 0; i < 800 && !written; ++i) {
    pause(std::chrono::milliseconds{5});
    written = b.call(look).attr().atime() > after.atime();
  }
  CHECK(written);
}

TEST_CASE("privileges: a file that has some is written through the coordinator, which takes them") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.truncate(file, kMiB).failure().code() == 0);
  REQUIRE(b.layout(file, 0, kMiB, true).segments_size() > 0);
  auto recalls = b.recalls();
  wire::Request privileged;
  privileged.mutable_set_attr()->set_inode(file);
  privileged.mutable_set_attr()->set_mode(06755);
  REQUIRE(a.change(privileged).failure().code() == 0);
  CHECK(b.recalls() == recalls + 1);
  CHECK(b.layout(file, 0, kMiB, true).shipped());
  CHECK(b.layout(file, 0, kMiB, false).segments_size() > 0);

  REQUIRE(b.write(file, 0, std::string(kBlock, 'x')).failure().code() == 0);
  CHECK((a.attr(file).mode() & 07777) == 06755);  // a writer that may keep them
  wire::Request write;
  write.mutable_write()->set_inode(file);
  write.mutable_write()->set_drop_set_id(true);
  CHECK((b.change(write, bytes_of("y")).written().attr().mode() & 07777) == 0755);
  CHECK((a.attr(file).mode() & 07777) == 0755);

  // An ACL that lets the group execute makes a privilege of a bit that was none.
  wire::Request locking;
  locking.mutable_set_attr()->set_inode(file);
  locking.mutable_set_attr()->set_mode(02644);
  REQUIRE(a.change(locking).failure().code() == 0);
  bool laid_out = false;
  for (int i = 0; i < 800 && !laid_out; ++i) {  // it stays with the coordinator for a while
    laid_out = b.layout(file, 0, kMiB, true).segments_size() > 0;
    if (!laid_out) pause(std::chrono::milliseconds{5});
  }
  REQUIRE(laid_out);
  recalls = b.recalls();
  wire::Request acl;
  acl.mutable_set_xattr()->set_inode(file);
  acl.mutable_set_xattr()->set_name("system.posix_acl_access");
  const std::uint16_t nobody = 0xffff;
  for (std::uint16_t half : {2, 0, 1, 6, 0xffff, 0xffff, 4, 5, 0xffff, 0xffff, 0x20, 4})
    acl.mutable_set_xattr()->mutable_value()->append(reinterpret_cast<const char*>(&half), 2);
  for (int i = 0; i < 2; ++i)
    acl.mutable_set_xattr()->mutable_value()->append(reinterpret_cast<const char*>(&nobody), 2);
  REQUIRE(a.change(acl).failure().code() == 0);
  CHECK((a.attr(file).mode() & 07777) == 02654);
  CHECK(b.recalls() == recalls + 1);
  CHECK(b.layout(file, 0, kMiB, true).shipped());
}

TEST_CASE("pages: a claim given while a recall of others is under way is not forgotten with it") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22}, c{world, 3, 33};
  for (auto* each : {&a, &b, &c}) {
    REQUIRE(!each->connect(coordinator).code());
    each->admit();
  }
  auto file = a.create("f");
  REQUIRE(a.write(file, 0, std::string(16 * kBlock, 'a')).failure().code() == 0);
  REQUIRE(a.call(claim_request(file, 6 * kBlock, kBlock)).layout().pages_length() > 0);
  b.layout(file, 5 * kBlock, kBlock, false);
  a.answer_recalls(false);
  b.answer_recalls(false);
  // It waits for what b has there.
  auto claim = a.send(claim_request(file, 5 * kBlock, kBlock));
  REQUIRE(is_asked(b));
  // This one for what a has already.
  auto write = write_request(file, false);
  write.mutable_write()->set_offset(3 * kBlock);
  auto written = c.send(c.prepared(write, 0), bytes_of(std::string(6 * kBlock, 'c')));
  REQUIRE(is_asked(a));
  auto recall = a.held().front();
  b.answer_held();
  auto layout = a.wait(claim).layout();
  CHECK(layout.pages_offset() == 5 * kBlock);
  CHECK(layout.pages_length() == kBlock);
  CHECK(layout.sequence() >= recall.sequence());
  a.answer_held();
  CHECK(is_asked(a));
  CHECK(!c.answered(written));
  a.answer_recalls(true);
  a.answer_held();
  CHECK(c.wait(written).failure().code() == 0);
}

TEST_CASE("write: pages of a mapping stay within the file, whoever made it shorter meanwhile") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.write(file, 0, std::string(3 * kBlock, 'a')).failure().code() == 0);
  REQUIRE(b.truncate(file, kBlock + 100).failure().code() == 0);
  wire::Request pages;
  pages.mutable_write()->set_inode(file);
  pages.mutable_write()->set_offset(kBlock);
  pages.mutable_write()->set_within(true);
  auto written = a.change(pages, bytes_of(std::string(2 * kBlock, 'p'))).written();
  CHECK(written.length() == 100);
  pages.mutable_write()->set_offset(kBlock + 100);
  CHECK(a.change(pages, bytes_of(std::string(kBlock, 'p'))).written().length() == kBlock);
  CHECK(a.attr(file).size() == kBlock + 100);
  REQUIRE(b.truncate(file, 3 * kBlock).failure().code() == 0);
  CHECK(b.read(file, kBlock + 99, 3) == std::string{"p\0\0", 3});
  CHECK(b.read(file, 2 * kBlock, 1) == std::string(1, '\0'));
  coordinator.close();
  CHECK(world.problems().empty());
}

// ---------------------------------------------------------------------------- listings

TEST_CASE("read_dir: an answer brings no more than there is room for, and never nothing") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  constexpr int kFiles = 150;
  for (int i = 0; i < kFiles; ++i)
    a.create("f" + std::to_string(i) + std::string(static_cast<std::size_t>(i), 'n'), false);
  // Too little for any; for a few, and with some left over; for all, and one more than there are
  // looked up at once; not said.
  for (std::uint32_t room : {1u, 500u, 4096u, 65536u, 0u}) {
    CAPTURE(room);
    std::map<std::string, int> seen;
    wire::Request list;
    list.mutable_read_dir()->set_inode(raw(kRootInode));
    list.mutable_read_dir()->set_limit(1024);
    list.mutable_read_dir()->set_room(room);
    for (bool end = false; !end;) {
      auto reply = a.call(list);
      REQUIRE(reply.failure().code() == 0);
      const auto& entries = reply.entries();
      end = entries.end();
      REQUIRE((end || entries.entries_size() > 0));
      std::size_t used = 0;
      for (const auto& entry : entries.entries()) {
        used += protocol::room_of_entry(entry.name().size());
        ++seen[entry.name()];
        list.mutable_read_dir()->set_cookie(entry.cookie());
      }
      if (room != 0) CHECK((used <= room || entries.entries_size() == 1));
      // As many as there is room for: not a message more than is needed.
      if (room == 4096 && !end) CHECK(used > room - protocol::room_of_entry(160));
    }
    CHECK(seen.size() == kFiles);
    for (const auto& [name, times] : seen) CHECK(times == 1);
  }
}

// ---------------------------------------------------------------------------- unlink

TEST_CASE("unlink: a file that another session has open keeps its content until that is closed") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f", false);
  REQUIRE(a.write(file, 0, std::string(kMiB / 2, 'x')).failure().code() == 0);
  wire::Request open, release;
  open.mutable_open()->set_inode(file);
  release.mutable_release()->set_inode(file);
  REQUIRE(b.call(open).failure().code() == 0);
  CHECK(a.unlink("f").attr().nlink() == 0);
  pause(std::chrono::milliseconds{100});
  CHECK(b.read(file, 0, 4) == "xxxx");
  REQUIRE(b.layout(file, 0, kBlock, false).segments_size() > 0);
  auto recalls = b.recalls();
  REQUIRE(b.call(release).failure().code() == 0);
  wire::Request get;
  get.mutable_get_attr()->set_inode(file);
  bool gone = false;
  for (int i = 0; i < 400 && !gone; ++i) {
    pause(std::chrono::milliseconds{5});
    gone = is_errno(b.call(get), ESTALE);
  }
  CHECK(gone);
  CHECK(b.recalls() == recalls + 1);  // of the layout it kept
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("unlink: what one message says was closed is freed, and nothing else") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  std::vector<std::uint64_t> files;
  for (int i = 0; i < 4; ++i) {
    auto name = "f" + std::to_string(i);
    files.push_back(a.create(name));
    REQUIRE(a.write(files.back(), 0, name).failure().code() == 0);
    REQUIRE(b.unlink(name).failure().code() == 0);
  }
  pause(std::chrono::milliseconds{200});
  for (auto file : files) CHECK(a.read(file, 0, 1) == "f");
  wire::Request release;
  release.mutable_release()->set_inode(files[0]);
  release.mutable_release()->add_also(files[1]);
  release.mutable_release()->add_also(files[2]);
  release.mutable_release()->add_also(~0ull);  // of no file at all
  REQUIRE(a.call(release).failure().code() == 0);
  for (int i = 0; i < 3; ++i) {
    wire::Request get;
    get.mutable_get_attr()->set_inode(files[static_cast<std::size_t>(i)]);
    bool gone = false;
    for (int tries = 0; tries < 400 && !gone; ++tries) {
      pause(std::chrono::milliseconds{5});
      gone = is_errno(b.call(get), ESTALE);
    }
    CHECK(gone);
  }
  pause(std::chrono::milliseconds{200});
  CHECK(a.read(files[3], 0, 2) == "f3");
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("link: a nameless file that nobody has open is gone, though it waits to be reaped") {
  World world;
  world.timing.gather_removed = 10s;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto nameless = [&] {
    wire::Request make;
    make.mutable_make()->set_parent(raw(kRootInode));
    make.mutable_make()->set_mode(0100600);
    make.mutable_make()->set_open(true);
    make.mutable_make()->set_nameless(true);
    auto reply = a.change(make);
    REQUIRE(reply.failure().code() == 0);
    return reply.attr().inode();
  };
  auto link = [&](std::uint64_t inode, const std::string& name) {
    wire::Request request;
    request.mutable_link()->set_inode(inode);
    request.mutable_link()->set_parent(raw(kRootInode));
    request.mutable_link()->set_name(name);
    return a.change(request);
  };
  auto open = nameless(), closed = nameless();
  wire::Request release;
  release.mutable_release()->set_inode(closed);
  REQUIRE(a.call(release).failure().code() == 0);
  CHECK(is_errno(link(closed, "late"), ENOENT));
  wire::Request again;
  again.mutable_open()->set_inode(closed);
  CHECK(is_errno(a.call(again), ESTALE));
  CHECK(link(open, "kept").failure().code() == 0);
  CHECK(a.attr(open).nlink() == 1);
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE("unlink: what is removed within a moment is reaped in one transaction") {
  World world;
  world.timing.gather_removed = 500ms;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  constexpr std::uint64_t kFiles = 16;
  std::vector<std::uint64_t> files;
  for (std::uint64_t i = 0; i < kFiles; ++i)
    files.push_back(a.create("f" + std::to_string(i), false));
  auto before = coordinator.status().transactions;
  for (std::uint64_t i = 0; i < kFiles; ++i)
    REQUIRE(a.unlink("f" + std::to_string(i)).failure().code() == 0);
  for (auto file : files) {
    wire::Request get;
    get.mutable_get_attr()->set_inode(file);
    bool gone = false;
    for (int tries = 0; tries < 400 && !gone; ++tries) {
      pause(std::chrono::milliseconds{5});
      gone = is_errno(a.call(get), ESTALE);
    }
    CHECK(gone);
  }
  // Some for whatever else goes on, and for a machine that takes more than one moment.
  CHECK(coordinator.status().transactions - before <= kFiles + kFiles / 2);
}

TEST_CASE("unlink: after a takeover an orphan waits for the sessions that may have it open") {
  World world;
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t file = 0;
  {
    Coordinator coordinator{world, 1};
    REQUIRE(!a.connect(coordinator).code());
    REQUIRE(!b.connect(coordinator).code());
    a.admit();
    b.admit();
    file = b.create("f");
    REQUIRE(b.write(file, 0, "still here").failure().code() == 0);
    REQUIRE(a.unlink("f").failure().code() == 0);
  }
  Coordinator next{world, 2};
  REQUIRE(!a.connect(next).code());
  a.resume_done();
  pause(std::chrono::milliseconds{100});
  wire::Hello declares;
  declares.add_open_inodes(file);
  REQUIRE(!b.connect(next, declares).code());
  b.resume_done();
  pause(std::chrono::milliseconds{100});
  CHECK(b.read(file, 0, 100) == "still here");
}

// ---------------------------------------------------------------------------- the absent

TEST_CASE(
    "absent: a holder that went away is fenced when its lease is over, and only then passed over") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
  REQUIRE(b.layout(file, 0, 8192, true).segments_size() > 0);
  b.disconnect();
  auto began = std::chrono::steady_clock::now();
  REQUIRE(a.truncate(file, 0).failure().code() == 0);
  CHECK(std::chrono::steady_clock::now() - began >= std::chrono::milliseconds{450});
  CHECK(!world.listed(b.key()));
  CHECK(b.connect(coordinator) == Errc::session_ended);
}

TEST_CASE("absent: one whose node vanished is passed over once the cluster knows its lease over") {
  World world;
  world.timing.lease_term = 60s;
  world.timing.comes_back = 200ms;
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t file = 0;
  {
    Coordinator coordinator{world, 1};
    REQUIRE(!a.connect(coordinator).code());
    REQUIRE(!b.connect(coordinator).code());
    a.admit();
    b.admit();
    file = a.create("f");
    REQUIRE(a.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
    REQUIRE(b.layout(file, 0, 8192, false).segments_size() > 0);
  }
  std::atomic<bool> vanished = false;
  std::atomic<std::int64_t> lease_left = 0;
  auto limit = 0ms;
  bool waits_on = false;
  SUBCASE("its node is heard: its mount may yet come back") { waits_on = true; }
  SUBCASE("its node's lease may be running") {
    vanished = true;
    lease_left = 60'000;
    waits_on = true;
  }
  SUBCASE("its node is gone, and its lease over") {
    vanished = true;
    limit = 200ms;
  }
  SUBCASE("its node is gone, and its lease ends soon") {
    vanished = true;
    lease_left = 800;
    limit = 800ms;
  }
  world.cluster_knows = [&](csv::service::Surroundings& around) {
    auto now = around.loop->now();
    auto ends = now + std::chrono::milliseconds{lease_left.load()};
    around.out_of_reach = [&](NodeId node) { return node == NodeId{2} && vanished; };
    around.answers_until = [now, ends](NodeId node) {
      return std::optional{node == NodeId{2} ? ends : now};
    };
  };
  auto began = std::chrono::steady_clock::now();  // not after what the lease is counted from
  Coordinator next{world, 3};
  REQUIRE(!a.connect(next).code());
  a.resume_done();
  wire::Request request;
  request.mutable_set_attr()->set_inode(file);
  request.mutable_set_attr()->set_size(0);
  auto id = a.send(a.prepared(request, 9));
  if (waits_on) {
    pause(std::chrono::milliseconds{900});
    CHECK(!a.answered(id));
    CHECK(world.listed(b.key()));
    return;
  }
  for (int i = 0; i < 2000 && !a.answered(id); ++i) pause(std::chrono::milliseconds{5});
  REQUIRE(a.answered(id));
  CHECK(std::chrono::steady_clock::now() - began >= limit - 50ms);
  CHECK(!world.listed(b.key()));
}

TEST_CASE("evicted: a node that the cluster knows no longer is thrown out, and kept out") {
  World world;
  std::atomic<bool> belongs = true;
  world.cluster_knows = [&](csv::service::Surroundings& around) {
    around.belongs = [&](NodeId node) { return node != NodeId{2} || belongs; };
  };
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  REQUIRE(world.listed(b.key()));
  belongs = false;
  for (int i = 0; i < 1000 && world.listed(b.key()); ++i) pause(std::chrono::milliseconds{5});
  CHECK(!world.listed(b.key()));
  CHECK(world.listed(a.key()));
  b.disconnect();
  CHECK(b.connect(coordinator) == Errc::session_ended);
  Client reborn{world, 2, 23};
  CHECK(reborn.connect(coordinator) == Errc::refused);
  belongs = true;
  CHECK(!reborn.connect(coordinator).code());
}

TEST_CASE("fenced by command: thrown out, kept out, and off once nothing is left") {
  World world;
  std::atomic<std::uint64_t> fenced = 0;  // which one
  world.cluster_knows = [&](csv::service::Surroundings& around) {
    around.fenced = [&] {
      std::map<NodeId, std::uint64_t> out;
      if (fenced != 0) out[NodeId{2}] = fenced;
      return out;
    };
  };
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(b.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
  std::uint64_t which = 1;
  auto is_off = [&] {
    auto off = coordinator.service().off();
    return off.count(NodeId{2}) > 0 && off[NodeId{2}] == which;
  };
  auto on_loop = [&](auto ask) {
    bool out = false;
    world.run([&] { out = ask(); });
    return out;
  };
  CHECK(!on_loop(is_off));
  fenced = 1;
  REQUIRE(world.eventually(is_off));
  CHECK(!world.listed(b.key()));
  CHECK(world.listed(a.key()));
  b.disconnect();
  CHECK(b.connect(coordinator) == Errc::session_ended);  // it is not who it was any more
  Client reborn{world, 2, 23};
  CHECK(reborn.connect(coordinator) == Errc::refused);
  CHECK(a.read(file, 0, 4) == "xxxx");

  SUBCASE("a registration that comes late is removed") {
    Key late = make_key({world.info.cluster, NodeId{2}, KeyRole::mount, 77});
    auto lun = world.disk->connect(world.loop, world.lun_options(9));
    REQUIRE(lun);
    ThreadBlocking blocking;
    iscsi::BlockingLun io{**lun, blocking};
    REQUIRE(io.register_key(late));
    for (int i = 0; i < 1000 && world.listed(late); ++i) pause(std::chrono::milliseconds{5});
    CHECK(!world.listed(late));
    CHECK(world.eventually(is_off));
  }
  SUBCASE("it comes back when it is let") {
    fenced = 0;
    Client again{world, 2, 24};
    REQUIRE(!again.connect(coordinator).code());
    again.admit();
    CHECK(again.read(file, 0, 4) == "xxxx");
    // What was proven of the first fence says nothing of the second.
    fenced = which = 2;
    CHECK(!on_loop(is_off));
    REQUIRE(world.eventually(is_off));
    CHECK(!world.listed(again.key()));
  }
}

TEST_CASE("absent: after a takeover a session is taken to hold everything until it has said what") {
  World world{iscsi::RamDiskOptions::like_tgt()};  // where former keys stay listed
  world.timing.lease_term = 60s;
  // Its key may be about to be replaced, and the fence of the former one have come to no end.
  bool in_rotation = false;
  bool listed = false, unlisted = false;
  SUBCASE("it holds a layout: that is recalled, once it has repeated what was unanswered") {
    listed = true;
  }
  SUBCASE("it holds a layout, and its key was being replaced") { listed = in_rotation = true; }
  SUBCASE("it holds nothing") {}
  SUBCASE("it holds more than it can list") { unlisted = true; }
  bool fences = true;
  std::atomic<bool> fencing = false;
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    using Kind = iscsi::RamCommand::Kind;
    if (!fences && (command.kind == Kind::reservation || command.kind == Kind::reset)) {
      fate.inside = 1h;
      fencing = true;
    }
    return fate;
  };
  Client a{world, 1, 11}, b{world, 2, 22};
  std::uint64_t file = 0;
  {
    Coordinator coordinator{world, 1};
    REQUIRE(!a.connect(coordinator).code());
    REQUIRE(!b.connect(coordinator).code());
    a.admit();
    b.admit();
    file = a.create("f");
    REQUIRE(a.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
    REQUIRE(b.layout(file, 0, 8192, false).segments_size() > 0);
    if (in_rotation) {
      wire::Request done;
      done.mutable_admit_done()->set_key(raw(b.register_only()));
      world.run([&] { fences = false; });
      b.send(done);
      REQUIRE(world.eventually([&] { return fencing.load(); }));
    }
  }
  world.run([&] { fences = true; });
  Coordinator next{world, 1};
  REQUIRE(!a.connect(next).code());
  a.resume_done();
  wire::Request request;
  request.mutable_set_attr()->set_inode(file);
  request.mutable_set_attr()->set_size(0);
  auto id = a.send(a.prepared(request, 9));
  pause(std::chrono::milliseconds{50});
  CHECK(!a.answered(id));
  wire::Hello declares;
  if (listed) declares.add_layout_inodes(file);
  declares.set_layouts_unlisted(unlisted);
  b.answer_recalls(!listed);
  REQUIRE(!b.connect(next, declares).code());
  pause(std::chrono::milliseconds{50});
  CHECK(b.held().empty());
  b.resume_done();
  if (listed) {
    for (int i = 0; i < 400 && b.held().empty(); ++i) pause(std::chrono::milliseconds{5});
    REQUIRE(b.held().size() == 1);
    CHECK(!a.answered(id));
    b.answer_held();
  }
  CHECK(a.wait(id).attr().size() == 0);
}

TEST_CASE("absent: one that is connected and does not answer a recall is fenced in the end") {
  World world;
  world.timing.recall_patience = 1s;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f");
  REQUIRE(a.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
  REQUIRE(b.layout(file, 0, 8192, false).segments_size() > 0);
  b.answer_recalls(false);
  REQUIRE(a.truncate(file, 0).failure().code() == 0);
  CHECK(b.fenced());
  CHECK(!world.listed(b.key()));
}

// ---------------------------------------------------------------------------- takeover

TEST_CASE("takeover: what was acknowledged is there, and the former coordinator stops") {
  World world;
  Coordinator old{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(old).code());
  a.admit();
  auto file = a.create("f");
  REQUIRE(a.write(file, 0, "kept").failure().code() == 0);
  auto former = old.status().key;
  {
    Coordinator next{world, 2};
    CHECK(raw(next.status().epoch) == raw(old.status().epoch) + 1);
    CHECK(!world.listed(former));
    // The old one has its key no more; whatever it tries, it stops and answers nobody.
    wire::Request request;
    request.mutable_make()->set_parent(1);
    request.mutable_make()->set_name("late");
    request.mutable_make()->set_mode(0100644);
    auto id = a.send(a.prepared(request, 5));
    CHECK(old.stopped());
    CHECK(!a.answered(id));
    REQUIRE(!a.connect(next).code());
    a.resume_done();
    CHECK(a.read(file, 0, 10) == "kept");
    wire::Request lookup;
    lookup.mutable_lookup()->set_parent(1);
    lookup.mutable_lookup()->set_name("late");
    CHECK(is_errno(a.call(lookup), ENOENT));
    next.close();
  }
  old.crash();
  CHECK(world.problems().empty());
}

TEST_CASE("takeover: a former coordinator that has not noticed answers nothing that has changed") {
  World world;
  std::atomic<bool> stalls{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    // The first coordinator's commands take so long that it hears of its fence late.
    if (stalls && command.kind != iscsi::RamCommand::Kind::reset) fate.to_target = 3s;
    return fate;
  };
  Coordinator former{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(former).code());
  a.admit();
  a.create("f", false);
  wire::Request look;
  look.mutable_lookup()->set_parent(1);
  look.mutable_lookup()->set_name("f");
  REQUIRE(a.call(look).failure().code() == 0);  // From now on it knows by heart.
  stalls = true;
  pause(std::chrono::milliseconds{200});
  auto before = a.send(look);
  CHECK(a.wait(before).failure().code() == 0);

  world.coordinator_plan = {};
  Coordinator next{world, 2};
  Client b{world, 2, 22};
  REQUIRE(!b.connect(next).code());
  b.admit();
  b.create("g", false);
  auto late = a.send(look);
  pause(std::chrono::milliseconds{100});
  CHECK(!a.answered(late));
}

TEST_CASE("takeover: a target that forgot its keys, or began to count anew, has lost its cache") {
  volume::AdmissionRow one, two;
  one.key = Key{11};
  one.state = volume::AdmissionState::admitted;
  two.key = Key{22};
  two.state = volume::AdmissionState::registering;
  auto lost = [](iscsi::KeyList before, std::uint32_t then,
                 std::vector<volume::AdmissionRow> live) {
    return service::target_lost_memory(before, then, live);
  };
  CHECK(!lost({.generation = 7, .keys = {Key{11}}}, 7, {one}));
  CHECK(!lost({.generation = 9, .keys = {Key{5}}}, 7, {}));
  CHECK(lost({.generation = 6, .keys = {Key{11}}}, 7, {one}));
  CHECK(lost({.generation = 7, .keys = {Key{5}}}, 7, {one}));
  CHECK(lost({.generation = 7, .keys = {}}, 7, {one, two}));
  // The only mount may have replaced its key; another one's says nothing of it.
  CHECK(!lost({.generation = 7, .keys = {Key{22}}}, 7, {one, two}));
  two.session = SessionId{2};
  CHECK(lost({.generation = 7, .keys = {Key{22}}}, 7, {one, two}));
  CHECK(!lost({.generation = 7, .keys = {}}, 7, {two}));
}

TEST_CASE("takeover: one that fails does not hide that the target has lost its cache") {
  World world{iscsi::RamDiskOptions{.write_cache = true, .aptpl = false}};
  world.timing.key_sweep = 600s;
  std::atomic<bool> fail{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (fail && command.kind == iscsi::RamCommand::Kind::write)
      fate.failure = Error{std::errc::io_error, "medium error"};
    return fate;
  };
  Client a{world, 1, 11}, b{world, 2, 22};
  {
    Coordinator former{world, 3};
    REQUIRE(!a.connect(former).code());
    a.admit();
    REQUIRE(!b.connect(former).code());
    b.admit();
    // The mounts end, so that no forgotten key of theirs tells.
    for (auto* each : {&a, &b}) {
      wire::Request request;
      request.mutable_goodbye();
      (void)each->call(request);
    }
  }
  world.run([&] { world.disk->power_loss(world.random); });
  fail = true;
  CHECK(!try_take_over(world, 2));
  fail = false;
  Coordinator next{world, 1};
  Client c{world, 1, 33};
  REQUIRE(!c.connect(next).code());
  CHECK(c.verifier() == 1);
}

TEST_CASE("write: an answer that is repeated after a loss of power is known for what it is") {
  World world{iscsi::RamDiskOptions{.write_cache = true, .aptpl = false}};
  Client a{world, 1, 11};
  std::uint64_t file = 0, id = 0;
  auto over_written = [&] {
    wire::Request request;
    request.mutable_write()->set_inode(file);
    return a.send(a.prepared(request, 0), bytes_of("over"));
  };
  {
    Coordinator former{world, 1};
    REQUIRE(!a.connect(former).code());
    a.admit();
    file = a.create("f");
    REQUIRE(a.write(file, 0, std::string(8192, 'x')).failure().code() == 0);
    id = over_written();
    auto answer = a.wait(id).written();
    CHECK(!answer.durable());
    CHECK(answer.verifier() == 0);
    world.run([&] { world.disk->power_loss(world.random); });
    for (int i = 0; i < 500 && !former.stopped(); ++i) pause(std::chrono::milliseconds{10});
    REQUIRE(former.stopped());
  }
  Coordinator next{world, 1};
  REQUIRE(!a.connect(next).code());
  REQUIRE(a.verifier() == 1);
  a.send_again(id);
  for (int i = 0; i < 500 && a.answers(id) < 2; ++i) pause(std::chrono::milliseconds{10});
  REQUIRE(a.answers(id) == 2);
  CHECK(a.wait(id).written().verifier() == 0);
  a.resume_done();
  CHECK(a.wait(over_written()).written().verifier() == 1);
}

TEST_CASE("commit: what was written before the target lost its cache is written again") {
  World world{iscsi::RamDiskOptions{.write_cache = true, .aptpl = false}};
  Client a{world, 1, 11};
  std::uint64_t file = 0;
  wire::LayoutReply layout;
  auto commit = [&](std::uint64_t verifier) {
    wire::Request request;
    auto& body = *request.mutable_commit();
    body.set_inode(file);
    body.set_grant(layout.grant());
    body.set_length(kMiB);
    body.set_truncation(layout.truncation());
    body.set_verifier(verifier);
    return static_cast<Errc>(a.change(request).failure().code());
  };
  {
    Coordinator former{world, 1};
    REQUIRE(!a.connect(former).code());
    a.admit();
    file = a.create("f");
    layout = a.layout(file, 0, kMiB, true);
    REQUIRE(layout.grant() != 0);
    world.run([&] { world.disk->power_loss(world.random); });
    for (int i = 0; i < 500 && !former.stopped(); ++i) pause(std::chrono::milliseconds{10});
    REQUIRE(former.stopped());
  }
  Coordinator next{world, 1};
  REQUIRE(!a.connect(next).code());
  a.resume_done();
  CHECK(commit(0) == Errc::stale_commit);
  CHECK(commit(1) == Errc{});
}

TEST_CASE("commit: a flush that failed takes what was written before it, whoever flushes next") {
  iscsi::RamDiskOptions options{.write_cache = true};
  SUBCASE("the catalog goes past the cache by itself") {}
  SUBCASE("the catalog needs flushes, too") { options.fua = false; }
  World world{options};
  std::atomic<bool> fail{false}, told{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind != iscsi::RamCommand::Kind::flush || !fail.exchange(false)) return fate;
    fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
    fate.forgets = true;
    told = true;
    return fate;
  };
  Client a{world, 1, 11};
  std::uint64_t file = 0;
  wire::LayoutReply layout;
  auto commit = [&](std::uint64_t offset, std::uint64_t verifier) {
    auto request = commit_request(file, layout, offset, 64 * 1024);
    request.mutable_commit()->set_verifier(verifier);
    return request;
  };
  {
    Coordinator former{world, 1};
    REQUIRE(!a.connect(former).code());
    a.admit();
    file = a.create("f");
    layout = a.layout(file, 0, kMiB, true);
    REQUIRE(layout.grant() != 0);
    REQUIRE(a.lun_write(layout.segments(0).lun_offset(), filled(128 * 1024, 'g')));
    fail = true;
    auto first = a.send(a.prepared(commit(0, 0), 0));
    auto second = a.send(a.prepared(commit(64 * 1024, 0), 1));
    REQUIRE(world.eventually([&] { return told.load(); }));
    for (int i = 0; i < 500 && !former.stopped(); ++i) pause(std::chrono::milliseconds{10});
    REQUIRE(former.stopped());
    for (auto id : {first, second}) CHECK((!a.answered(id) || a.wait(id).failure().code() != 0));
    // It would bring about the same again at the successor.
    if (options.fua) CHECK(a.answered(first));
  }
  Coordinator next{world, 2};
  REQUIRE(!a.connect(next).code());
  CHECK(a.verifier() == 1);
  a.resume_done();
  CHECK(error_of(a.change(commit(0, 0), {}, 2)) == Errc::stale_commit);
  CHECK(a.attr(file).size() == 0);
  auto committed = a.change(commit(0, 1), {}, 2);
  CHECK_MESSAGE(committed.failure().code() == 0, committed.failure().message());
}

TEST_CASE("commit: what a mount was told is lost is of nobody's file, and all mounts hear of it") {
  iscsi::RamDiskOptions options{.write_cache = true};
  SUBCASE("the catalog goes past the cache by itself") {}
  SUBCASE("the catalog needs flushes, too") { options.fua = false; }
  World world{options};
  std::atomic<bool> slow{false};
  std::atomic<int> flushes{0};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind == iscsi::RamCommand::Kind::flush) ++flushes;
    if (command.kind == iscsi::RamCommand::Kind::write && slow)
      fate.inside = std::chrono::milliseconds{300};
    return fate;
  };
  Client a{world, 1, 11}, b{world, 2, 22};
  wire::Request told;
  told.mutable_stat_fs();
  told.set_lost_under(0);
  std::uint64_t file = 0, committing = 0, telling = 0;
  {
    Coordinator former{world, 1};
    REQUIRE(!a.connect(former).code());
    REQUIRE(!b.connect(former).code());
    a.admit();
    file = a.create("f");
    auto layout = a.layout(file, 0, kMiB, true);
    REQUIRE(a.lun_write(layout.segments(0).lun_offset(), filled(64 * 1024, 'g')));
    wire::Request mode;
    mode.mutable_set_attr()->set_inode(file);
    mode.mutable_set_attr()->set_mode(0600);
    slow = true;
    auto before = flushes.load();
    a.send(a.prepared(mode, 1));  // keeps the catalog busy
    pause(std::chrono::milliseconds{20});
    committing = a.send(a.prepared(commit_request(file, layout, 0, 64 * 1024), 0));
    REQUIRE(world.eventually([&] { return flushes > before; }));
    pause(std::chrono::milliseconds{20});
    telling = b.send(told);
    for (int i = 0; i < 500 && !former.stopped(); ++i) pause(std::chrono::milliseconds{10});
    REQUIRE(former.stopped());
    slow = false;
    CHECK(!a.answered(committing));
    CHECK(!b.answered(telling));
  }
  Coordinator next{world, 3};
  REQUIRE(!a.connect(next).code());
  CHECK(a.verifier() == 1);
  a.send_again(committing);
  CHECK(error_of(a.wait(committing)) == Errc::stale_commit);
  a.resume_done();
  // Said once more it is the same loss.
  REQUIRE(!b.connect(next).code());
  b.send_again(telling);
  CHECK(b.wait(telling).failure().code() == 0);
  b.resume_done();
  CHECK(a.attr(file).size() == 0);
}

TEST_CASE("commit: a target that says it cannot flush is none that has lost anything") {
  World world{iscsi::RamDiskOptions{.write_cache = true}};
  std::atomic<bool> refuses{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind == iscsi::RamCommand::Kind::flush && refuses)
      fate.failure = Error{Errc::unsupported_by_target, "ILLEGAL REQUEST"};
    return fate;
  };
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto file = a.create("f");
  auto layout = a.layout(file, 0, kMiB, true);
  refuses = true;
  for (int i = 0; i < 3; ++i)
    CHECK(a.change(commit_request(file, layout, 0, 64 * 1024)).failure().code() != 0);
  CHECK(a.create("g") != 0);  // it serves on
  refuses = false;
  auto committed = a.change(commit_request(file, layout, 0, 64 * 1024));
  CHECK_MESSAGE(committed.failure().code() == 0, committed.failure().message());
}

TEST_CASE("takeover: where no flush succeeds none takes place, and one that does counts the loss") {
  World world{iscsi::RamDiskOptions{.write_cache = true}};
  std::atomic<bool> fail{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind == iscsi::RamCommand::Kind::flush && fail)
      fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
    return fate;
  };
  Client a{world, 1, 11};
  {
    Coordinator former{world, 1};
    REQUIRE(!a.connect(former).code());
    a.admit();
    auto file = a.create("f");
    auto layout = a.layout(file, 0, kMiB, true);
    fail = true;
    CHECK(a.change(commit_request(file, layout, 0, 64 * 1024)).failure().code() != 0);
    REQUIRE(former.stopped());
  }
  CHECK(try_take_over(world, 1).error() == Errc::not_durable);
  CHECK(try_take_over(world, 2).error() == Errc::not_durable);
  fail = false;
  Coordinator next{world, 1};
  REQUIRE(!a.connect(next).code());
  CHECK(a.verifier() == 1);
}

TEST_CASE("takeover: after an end in good order nobody has to wait for the former's answers") {
  World world;
  world.timing.lease_term = 100s;
  Coordinator former{world, 1};
  former.close();
  auto began = std::chrono::steady_clock::now();
  Coordinator next{world, 2};
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds{50});
}

TEST_CASE("takeover: a newer configuration's volume is left alone, and no key stays behind") {
  World world;
  world.tag.epoch = 5;
  Coordinator{world, 1}.close();
  world.tag.epoch = 4;
  auto refused = try_take_over(world, 2);
  CHECK(refused.error() == Errc::superseded);
  world.tag.epoch = 6;
  CHECK(try_take_over(world, 2));
}

namespace {

constexpr std::uint64_t kSize = 768ull << 20;

std::vector<std::byte> content_of(const iscsi::RamDisk& disk, std::uint64_t at, std::size_t size) {
  std::vector<std::byte> bytes(size);
  disk.peek(at, bytes);
  return bytes;
}

/// What a storage system's snapshot or clone is: another LUN with the same content.
std::shared_ptr<iscsi::RamDisk> copy_of(World& world, std::string identity, std::uint64_t size) {
  auto options = world.disk->options();
  options.identity = std::move(identity);
  options.geometry.block_count = size / options.geometry.block_size;
  auto copy = iscsi::RamDisk::create(options, &world.loop);
  constexpr std::size_t kPiece = 1 << 20;
  const std::vector<std::byte> zeros(kPiece);
  for (std::uint64_t at = 0; at < std::min(size, kSize); at += kPiece)
    if (auto piece = content_of(*world.disk, at, kPiece); piece != zeros) copy->poke(at, piece);
  return copy;
}

}  // namespace

TEST_CASE("takeover: after an end in good order there is no log to be read, and nothing is lost") {
  World world{iscsi::RamDiskOptions{.write_cache = true}};
  std::uint64_t file = 0;
  auto log_header = [&] { return content_of(*world.disk, world.info.wal_offset, 32); };
  const std::vector<std::byte> none(32);
  {
    Coordinator former{world, 1};
    Client a{world, 1, 11};
    REQUIRE(!a.connect(former).code());
    file = a.create("f");
    CHECK(log_header() != none);
    former.close();
  }
  world.run([&] { world.disk->power_loss(world.random); });
  CHECK(log_header() == none);
  Coordinator next{world, 2};
  Client b{world, 2, 22};
  REQUIRE(!b.connect(next).code());
  wire::Request look;
  look.mutable_lookup()->set_parent(1);
  look.mutable_lookup()->set_name("f");
  CHECK(b.call(look).attr().inode() == file);
  CHECK(b.create("g") != 0);
}

TEST_CASE("takeover: a LUN that is a copy of the formatted one, or in foreign use, is refused") {
  World world;
  SUBCASE("somebody else's key") {
    auto lun = world.disk->connect(world.loop, world.lun_options(77));
    REQUIRE(lun);
    ThreadBlocking blocking;
    iscsi::BlockingLun io{**lun, blocking};
    REQUIRE(io.register_key(make_key({99, NodeId{1}, KeyRole::mount, 1})));
    CHECK(try_take_over(world, 1).error() == Errc::refused);
  }
  SUBCASE("another volume's name") {
    auto around = world.surroundings(NodeId{1});
    around.volume = "volume2";
    using Taken = Expected<std::unique_ptr<service::VolumeService>>;
    auto taken = world.wait_for<Taken>([&] { return service::VolumeService::take_over(around); });
    CHECK(taken.error() == Errc::refused);
  }
  SUBCASE("another identity") {
    auto original = world.disk;
    world.disk = copy_of(world, "naa.6001405c5f000002", kSize);
    auto taken = try_take_over(world, 1);
    REQUIRE_FALSE(taken);
    CHECK(taken.error() == Errc::refused);
    CHECK(taken.error().message().find("a copy that must not be used beside its original") !=
          std::string::npos);
    // It has no key of ours, so that whoever uses it is not disturbed, and is as it was.
    CHECK(world.disk->registered_keys().empty());
    CHECK(world.peek(0, 16384) == content_of(*original, 0, 16384));
    world.disk = original;
    CHECK(try_take_over(world, 1));
  }
  SUBCASE("it shrank") {
    auto whole = world.disk;
    world.disk = copy_of(world, whole->options().identity, kSize / 2);
    auto taken = try_take_over(world, 1);
    REQUIRE_FALSE(taken);
    CHECK(taken.error() == Errc::refused);
    CHECK(taken.error().message().find("it shrank") != std::string::npos);
    CHECK(world.disk->registered_keys().empty());
    CHECK(world.peek(0, 16384) == content_of(*whole, 0, 16384));
    world.disk = whole;
    CHECK(try_take_over(world, 1));
  }
  CHECK(world.eventually([] { return true; }));
}

TEST_CASE("admission: a mount whose way leads to a copy that has the original's identity") {
  World world;
  auto original = world.disk;
  auto copy = copy_of(world, original->options().identity, kSize);
  Coordinator coordinator{world, 1};
  Client a{world, 3, 70};
  REQUIRE(!a.connect(coordinator).code());
  auto file = a.create("file");
  world.disk = copy;
  auto key = a.register_only();
  wire::Request done;
  done.mutable_admit_done()->set_key(raw(key));
  auto refused = a.call(done);
  // Its key is not where the coordinator reads them: it gets no layout to read or write the copy.
  CHECK(refused.failure().code() == static_cast<std::uint32_t>(Errc::fenced));
  CHECK(!refused.failure().generic());
  wire::Request layout;
  layout.mutable_layout()->set_inode(file);
  layout.mutable_layout()->set_length(4096);
  layout.mutable_layout()->set_write(true);
  auto none = a.call(layout);
  CHECK(none.layout().shipped());
  CHECK(none.layout().segments_size() == 0);
  world.disk = original;
  a.admit();
  CHECK(world.listed(a.key()));
  CHECK(!a.call(layout).layout().shipped());
}

TEST_CASE(
    "takeover: keys of mounts that ended while nobody coordinated are fenced before serving") {
  World world;
  Key ghost = make_key({4711, NodeId{9}, KeyRole::mount, 12345});
  auto lun = world.disk->connect(world.loop, world.lun_options(77));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  REQUIRE(io.register_key(ghost));
  Coordinator coordinator{world, 1};
  CHECK(!world.listed(ghost));
}

TEST_CASE("takeover: of a takeover that died nobody knows what it has left to be ended") {
  World world;
  int resets = 0;
  world.coordinator_plan = [&resets](const iscsi::RamCommand& command) {
    if (command.kind == iscsi::RamCommand::Kind::reset) ++resets;
    return iscsi::RamFate{};
  };
  Coordinator{world, 1}.close();
  { Coordinator crashed{world, 2}; }
  CHECK(resets == 0);
  Coordinator{world, 1}.close();
  CHECK(resets == 0);  // whose key the superblocks named: PREEMPT AND ABORT has ended all
  auto died = make_key({4711, NodeId{9}, KeyRole::coordinator, 12345});
  auto lun = world.disk->connect(world.loop, world.lun_options(77));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  REQUIRE(io.register_key(died));
  Coordinator next{world, 3};
  CHECK(!world.listed(died));
  CHECK(resets == 1);
}

TEST_CASE("takeover: its own attempt before may have taken the key of one that died away") {
  World world;
  Coordinator{world, 1}.close();
  auto died = make_key({4711, NodeId{9}, KeyRole::coordinator, 12345});
  auto lun = world.disk->connect(world.loop, world.lun_options(77));
  REQUIRE(lun);
  ThreadBlocking blocking;
  iscsi::BlockingLun io{**lun, blocking};
  REQUIRE(io.register_key(died));
  // REGISTER, RESERVE, then PREEMPT AND ABORT, which takes the key, and whose end nobody hears of.
  int commands = 0, resets = 0;
  bool path_breaks = true;
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind == iscsi::RamCommand::Kind::reset) ++resets;
    if (command.kind == iscsi::RamCommand::Kind::reservation)
      fate.answer_lost = path_breaks && ++commands == 3;
    return fate;
  };
  CHECK(!try_take_over(world, 3));
  REQUIRE(!world.listed(died));
  CHECK(resets == 0);
  path_breaks = false;
  SUBCASE("and the next one takes over") {}
  SUBCASE("and the next one was refused") {
    auto foreign = world.disk->connect(world.loop, world.lun_options(78));
    REQUIRE(foreign);
    iscsi::BlockingLun theirs{**foreign, blocking};
    REQUIRE(theirs.register_key(make_key({99, NodeId{1}, KeyRole::mount, 1})));
    CHECK(try_take_over(world, 3).error() == Errc::refused);
    REQUIRE(theirs.register_key(Key{}));
  }
  Coordinator next{world, 3};
  CHECK(resets == 1);
  next.close();
  Coordinator again{world, 3};
  CHECK(resets == 1);
}

TEST_CASE("takeover: a power loss of the storage keeps everything that was acknowledged") {
  iscsi::RamDiskOptions options;
  options.write_cache = true;
  World world{options};
  std::uint64_t file = 0;
  {
    Coordinator coordinator{world, 1};
    Client a{world, 1, 11};
    REQUIRE(!a.connect(coordinator).code());
    a.admit();
    file = a.create("f");
    REQUIRE(a.write(file, 0, "written into new space").failure().code() == 0);
    REQUIRE(a.truncate(file, kBlock).failure().code() == 0);
    auto layout = a.layout(file, kBlock, 64 * 1024, true);
    REQUIRE(layout.grant() != 0);
    REQUIRE(a.lun_write(layout.segments(layout.segments_size() - 1).lun_offset(),
                        filled(64 * 1024, 'g')));
    REQUIRE(a.change(commit_request(file, layout, kBlock, 64 * 1024)).failure().code() == 0);
    for (int i = 0; i < 50; ++i) a.create("file" + std::to_string(i), false);
    world.run([&] { world.disk->power_loss(world.random); });
    CHECK(coordinator.stopped());
  }
  Coordinator next{world, 2};
  Client b{world, 2, 22};
  REQUIRE(!b.connect(next).code());
  for (int i = 0; i < 50; ++i) {
    wire::Request lookup;
    lookup.mutable_lookup()->set_parent(1);
    lookup.mutable_lookup()->set_name("file" + std::to_string(i));
    CHECK(b.call(lookup).failure().code() == 0);
  }
  CHECK(b.attr(file).size() == kBlock + 64 * 1024);
  CHECK(b.read(file, 0, 7) == "written");
  CHECK(b.read(file, kBlock, 4) == "gggg");
  CHECK(b.read(file, kBlock + 64 * 1024 - 1, 4) == "g");
  next.close();
  CHECK(world.problems().empty());
}

TEST_CASE("takeover: an error of the coordinator's own write stops it, and nobody is answered") {
  World world;
  std::atomic<bool> fail{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (fail && command.kind == iscsi::RamCommand::Kind::write)
      fate.failure = Error{std::errc::io_error, "medium error"};
    return fate;
  };
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  fail = true;
  wire::Request request;
  request.mutable_make()->set_parent(1);
  request.mutable_make()->set_name("f");
  request.mutable_make()->set_mode(0100644);
  auto id = a.send(a.prepared(request, 0));
  CHECK(coordinator.stopped());
  CHECK(!a.answered(id));
}

TEST_CASE("path: nothing answered here while the LUN answers another node ends the tenure early") {
  World world;
  world.timing.path_patience = 500ms;
  std::atomic<bool> silent{false};
  std::atomic<bool> others{false};
  world.coordinator_plan = [&](const iscsi::RamCommand&) {
    iscsi::RamFate fate;
    if (silent) fate.inside = 3s;
    return fate;
  };
  world.reached_by_others = [&] { return others ? world.loop.now() : TimePoint{}; };
  Coordinator coordinator{world, 1};
  silent = true;
  auto began = world.loop.now();
  SUBCASE("another node is answered") {
    others = true;
    REQUIRE(coordinator.stopped());
    CHECK(world.loop.now() - began < 3s);
    CHECK(coordinator.stop_reason().find("answers another one") != std::string::npos);
  }
  SUBCASE("nobody is: everybody waits") {
    REQUIRE(world.eventually([&] { return world.loop.now() - began > 2500ms; }));
    CHECK(coordinator.stop_reason().empty());
    silent = false;
    auto reached = [&] { return coordinator.service().reached() > began + 3s; };
    CHECK(world.eventually(reached));
    CHECK(coordinator.stop_reason().empty());
  }
}

TEST_CASE("signs: a mount's slot moves, then stands still, as its coordinator reads it") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 2, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto sign = [&]() -> std::optional<cluster::StorageSign> {
    auto all = coordinator.service().signs();
    if (all.size() != 1) return std::nullopt;
    return all.front();
  };
  HeartbeatSlot slot{a.key(), 1, 0, {}, false};
  auto at = volume::slot_offset(world.info, NodeId{2}, KeyRole::mount);
  REQUIRE(a.lun_write(at, encode(slot, world.info.id)));
  REQUIRE(world.eventually([&] { return sign() && sign()->quorate == false; }));
  REQUIRE(world.eventually([&] { return sign()->still; }));
  ++slot.counter;
  slot.quorate = true;
  REQUIRE(a.lun_write(at, encode(slot, world.info.id)));
  REQUIRE(world.eventually([&] { return sign()->quorate == true; }));
  world.run([&] {
    CHECK(sign()->node == NodeId{2});
    CHECK(sign()->connected);
  });
}

TEST_CASE("close: ends though the commit it waits for fails") {
  World world;
  std::atomic<bool> fail{false};
  std::atomic<int> failing{0};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (fail && command.kind == iscsi::RamCommand::Kind::write) {
      fate.inside = 200ms;
      fate.failure = Error{std::errc::io_error, "medium error"};
      ++failing;
    }
    return fate;
  };
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  fail = true;
  wire::Request request;
  request.mutable_make()->set_parent(1);
  request.mutable_make()->set_name("f");
  request.mutable_make()->set_mode(0100644);
  auto id = a.send(a.prepared(request, 0));
  REQUIRE(world.eventually([&] { return failing > 0; }));
  coordinator.close();
  CHECK(!a.answered(id));
}

TEST_CASE("close: a flush that fails meanwhile is a loss that the successor tells of") {
  World world{iscsi::RamDiskOptions{.write_cache = true}};
  std::atomic<bool> fail{false}, fails{false};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind != iscsi::RamCommand::Kind::flush || !fail.exchange(false)) return fate;
    fate.inside = std::chrono::milliseconds{300};
    fate.failure = Error{Errc::not_durable, "MEDIUM ERROR"};
    fate.forgets = true;
    fails = true;
    return fate;
  };
  Client a{world, 1, 11};
  {
    Coordinator former{world, 1};
    REQUIRE(!a.connect(former).code());
    a.admit();
    auto file = a.create("f");
    auto layout = a.layout(file, 0, kMiB, true);
    REQUIRE(a.lun_write(layout.segments(0).lun_offset(), filled(64 * 1024, 'g')));
    fail = true;
    a.send(a.prepared(commit_request(file, layout, 0, 64 * 1024), 0));
    REQUIRE(world.eventually([&] { return fails.load(); }));
    former.close();
  }
  Coordinator next{world, 2};
  REQUIRE(!a.connect(next).code());
  CHECK(a.verifier() == 1);
}

// ---------------------------------------------------------------------------- the gate, bounds

TEST_CASE("gate: without a lease nothing is answered, and afterwards the mount gets its answer") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  world.open_for_ns = -1;
  wire::Request request;
  request.mutable_make()->set_parent(1);
  request.mutable_make()->set_name("f");
  request.mutable_make()->set_mode(0100644);
  auto id = a.send(a.prepared(request, 0));
  pause(std::chrono::milliseconds{100});
  CHECK(!a.answered(id));
  world.open_for_ns = 3'600'000'000'000;
  REQUIRE(!a.connect(coordinator).code());
  a.send_again(id);
  a.resume_done();
  CHECK(a.wait(id).failure().code() == 0);
}

TEST_CASE("gate: who is away while nobody is let in has not stayed away") {
  World world;
  world.timing.reconnect_grace = std::chrono::milliseconds{300};
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  world.open_for_ns = -1;
  a.disconnect();
  pause(std::chrono::milliseconds{1200});
  CHECK(coordinator.status().sessions.size() == 1);
  CHECK(world.listed(a.key()));
  world.open_for_ns = 3'600'000'000'000;
  CHECK(world.eventually([&] { return coordinator.service().status().sessions.empty(); }));
}

TEST_CASE("service: space freed by one file can be used by the next, on a full volume") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  wire::Request statistics;
  statistics.mutable_stat_fs();
  auto free = a.call(statistics).fs_stat().free_blocks() * kBlock;
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    auto name = "big" + std::to_string(round);
    auto file = a.create(name, false);
    wire::Request allocate;
    allocate.mutable_allocate()->set_inode(file);
    allocate.mutable_allocate()->set_length(free - 32 * kMiB);
    auto done = a.change(allocate);
    CHECK_MESSAGE(done.failure().code() == 0, done.failure().message());
    REQUIRE(a.unlink(name).failure().code() == 0);
  }
  auto file = a.create("too big");
  wire::Request allocate;
  allocate.mutable_allocate()->set_inode(file);
  allocate.mutable_allocate()->set_length(free + 64 * kMiB);
  CHECK(is_errno(a.change(allocate), ENOSPC));
}

TEST_CASE("write: the last blocks of a volume can be written, however they lie") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto free_blocks = [&] {
    wire::Request statistics;
    statistics.mutable_stat_fs();
    return a.call(statistics).fs_stat().free_blocks();
  };
  auto sparse = a.create("sparse"), most = a.create("most");
  REQUIRE(a.truncate(sparse, 8 * kMiB).failure().code() == 0);
  bool scattered = false;
  SUBCASE("less than the coordinator would make ready at once") {}
  SUBCASE("one by one") { scattered = true; }
  auto reserve = [&](std::uint64_t offset, std::uint64_t length, int mode) {
    wire::Request request;
    auto& allocate = *request.mutable_allocate();
    allocate.set_inode(most);
    allocate.set_offset(offset);
    allocate.set_length(length);
    allocate.set_mode(static_cast<std::uint32_t>(mode));
    auto done = a.change(request);
    REQUIRE_MESSAGE(done.failure().code() == 0, done.failure().message());
  };
  reserve(0, (free_blocks() - (scattered ? 0 : 100)) * kBlock, 0);
  if (scattered) {
    for (std::uint64_t i = 0; i < 100; ++i)
      reserve(2 * i * kBlock, kBlock, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    for (int i = 0; i < 500 && free_blocks() < 100; ++i) pause(std::chrono::milliseconds{10});
  }
  CAPTURE(free_blocks());
  REQUIRE(free_blocks() >= 90);
  REQUIRE(free_blocks() < 256);
  // Whole blocks of a hole: not ready to be written directly, and nothing is said to be full.
  wire::Request request;
  request.mutable_layout()->set_inode(sparse);
  request.mutable_layout()->set_offset(kMiB);
  request.mutable_layout()->set_length(kBlock);
  request.mutable_layout()->set_write(true);
  auto layout = a.call(request);
  CHECK_MESSAGE(layout.failure().code() == 0, layout.failure().message());
  CHECK(layout.layout().shipped());
  auto wrote = a.write(sparse, kMiB, std::string(80 * kBlock, 'w'));
  CHECK_MESSAGE(wrote.failure().code() == 0, wrote.failure().message());
  CHECK(a.read(sparse, kMiB + 79 * kBlock, 2) == "ww");
}

TEST_CASE("open files: an Open right after a Release counts, whatever the Release still writes") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 2, 1};
  REQUIRE(!a.connect(coordinator).code());
  auto file = a.create("file");
  CHECK(!a.write(file, 0, "content").failure().code());
  // Together, so that the second comes while the first waits for its transaction.
  wire::Request release, open;
  release.mutable_release()->set_inode(file);
  release.mutable_release()->set_wrote(true);
  release.mutable_release()->set_reads_only(true);
  open.mutable_open()->set_inode(file);
  auto released = a.send(release), opened = a.send(open);
  CHECK(!a.wait(released).failure().code());
  CHECK(!a.wait(opened).failure().code());
  CHECK(!a.unlink("file").failure().code());
  // Nobody else has it open: it would go at once.
  auto other = a.create("other");
  CHECK(!a.truncate(other, 4096).failure().code());
  CHECK(a.read(file, 0, 7) == "content");
}

// ---------------------------------------------------------------------------- a full volume

namespace {

void fill_up(Client& client) {
  auto free = [&] {
    wire::Request request;
    request.mutable_stat_fs();
    return client.call(request).fs_stat().free_blocks();
  };
  auto full = client.create("full", false);
  for (auto left = free(), before = left + 1; left > 0 && left != before; left = free()) {
    before = left;
    wire::Request request;
    auto& body = *request.mutable_allocate();
    body.set_inode(full);
    body.set_mode(FALLOC_FL_KEEP_SIZE);
    body.set_offset(client.attr(full).blocks() * 512);
    body.set_length(left * kBlock);
    REQUIRE(client.change(request).failure().code() == 0);
  }
}

/// As a mount does with what it is told to ask again.
wire::Reply insist(Client& client, std::uint64_t id) {
  for (int times = 1;; ++times) {
    for (int i = 0; i < 4000 && client.answers(id) < times; ++i)
      pause(std::chrono::milliseconds{5});
    REQUIRE(client.answers(id) == times);
    auto reply = client.wait(id);
    if (error_of(reply) != Errc::retry) return reply;
    client.send_again(id);
  }
}

}  // namespace

TEST_CASE("full: who waits for the space of a deleted file does not keep others from answering") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f"), gone = a.create("gone", false);
  REQUIRE(a.write(gone, 0, std::string(8192, 'g')).failure().code() == 0);
  REQUIRE(b.layout(gone, 0, 8192, false).segments_size() > 0);
  fill_up(a);
  b.answer_recalls(false);
  REQUIRE(a.unlink("gone").failure().code() == 0);
  REQUIRE(is_asked(b));
  auto waits = a.send(a.prepared(write_request(file, false), 3), bytes_of("x"));
  pause(std::chrono::milliseconds{50});
  CHECK(!a.answered(waits));
  // The end of the session that is to answer waits for its write, and that for the file.
  b.send(b.prepared(write_request(file, false), 0), bytes_of("y"));
  pause(std::chrono::milliseconds{50});
  b.disconnect();
  Client again{world, 2, 23};
  REQUIRE(!again.connect(coordinator).code());
  CHECK(insist(a, waits).written().length() == 1);
  CHECK(a.read(file, 0, 10) == "x");
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE(
    "full: a write to a file that is deleted meanwhile does not wait for the file's own end") {
  World world;
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f"), gone = a.create("gone", false);
  CHECK(b.layout(gone, 0, kBlock, false).size() == 0);
  fill_up(a);
  b.answer_recalls(false);
  REQUIRE(a.unlink("gone").failure().code() == 0);
  REQUIRE(is_asked(b));
  REQUIRE(a.unlink("f").failure().code() == 0);
  auto waits = a.send(a.prepared(write_request(file, false), 3), bytes_of("x"));
  pause(std::chrono::milliseconds{50});
  // A program that is killed while it writes lets go of what it has open.
  wire::Request release;
  release.mutable_release()->set_inode(file);
  REQUIRE(a.call(release).failure().code() == 0);
  CHECK(!a.answered(waits));
  b.answer_held();
  CHECK(is_errno(insist(a, waits), ESTALE));
  coordinator.close();
  CHECK(world.problems().empty());
}

TEST_CASE(
    "takeover: where a repair was interrupted it changes nothing, however often it is tried") {
  World world;
  Coordinator{world, 1}.close();
  using namespace csv::volume;
  auto superblock = [&] { return world.peek(disk::kSuperblockA, disk::kSuperblockSize); };
  auto mark = encode_log_mark(world.info.id, {}, 0, 1000);
  world.disk->poke(place_of_log_mark(world.info), mark.span());
  auto before = superblock();
  for (int i = 0; i < 2; ++i) {
    auto took = try_take_over(world, 2);
    CHECK(took.error() == Errc::corrupt);
    CHECK(took.error().message().find("a repair of the volume was interrupted") !=
          std::string::npos);
  }
  CHECK(superblock() == before);
}

TEST_CASE(
    "write: to blocks that are granted to nobody there is, is refused, and not tried for ever") {
  World world;
  std::uint64_t file = 0;
  {
    Coordinator former{world, 1};
    Client a{world, 1, 11};
    REQUIRE(!a.connect(former).code());
    a.admit();
    file = a.create("f");
    REQUIRE(a.layout(file, 0, 16 * kMiB, true).grant() != 0);
  }
  {
    // A catalog that is damaged so.
    auto lun = world.disk->connect(world.loop, world.lun_options(3));
    REQUIRE(lun);
    ThreadBlocking blocking;
    iscsi::BlockingLun io{**lun, blocking};
    REQUIRE(io.register_key(make_key({4711, NodeId{63}, KeyRole::mount, 1})));
    auto store = csv::volume::open_catalog_store(io, world.info, world.random);
    REQUIRE_MESSAGE(store, store.error().message());
    auto database = csv::volume::Database::open((*store)->path(), (*store)->vfs(), {});
    REQUIRE_MESSAGE(database, database.error().message());
    auto done = (*database)->execute("UPDATE extents SET grant_id=999 WHERE file_block>=2048");
    REQUIRE_MESSAGE(done, done.error().message());
    REQUIRE((*database)->checkpoint());
  }
  Coordinator next{world, 2};
  Client again{world, 1, 12}, b{world, 2, 22};
  REQUIRE(!again.connect(next).code());
  REQUIRE(!b.connect(next).code());
  auto refused = b.write(file, 8 * kMiB, "to what was granted");
  CHECK_MESSAGE(error_of(refused) == Errc::corrupt, refused.failure().message());
  CHECK(b.write(file, 0, "to what was granted to one who is gone").failure().code() == 0);
  CHECK(b.create("and all else goes on") != 0);
}

TEST_CASE("full: upkeep does not wait for a file whose layouts are long in coming back") {
  World world;
  world.timing.recall_patience = std::chrono::hours{1};
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto gone = a.create("gone", false), other = a.create("other");
  auto free = [&] { return coordinator.status().free_blocks; };
  auto becomes = [&](std::uint64_t blocks) {
    for (int i = 0; i < 800 && free() != blocks; ++i) pause(std::chrono::milliseconds{5});
    return free() == blocks;
  };
  wire::Request space;
  space.mutable_stat_fs();
  auto empty = a.call(space).fs_stat().free_blocks();
  for (auto file : {gone, other})
    REQUIRE(a.write(file, 0, std::string(kMiB, 'x')).failure().code() == 0);
  REQUIRE(becomes(empty - 2 * kMiB / kBlock));
  REQUIRE(b.layout(gone, 0, 8192, false).segments_size() > 0);
  b.answer_recalls(false);
  REQUIRE(a.unlink("gone").failure().code() == 0);
  REQUIRE(is_asked(b));
  pause(std::chrono::milliseconds{100});  // which it comes to
  REQUIRE(a.truncate(other, 0).failure().code() == 0);
  CHECK(becomes(empty - kMiB / kBlock));
  CHECK(b.held().size() == 1);
}

TEST_CASE("write: what the thin LUN took of it is not written again over another's") {
  World world{iscsi::RamDiskOptions{.max_transfer = 64 * 1024}};
  std::atomic<bool> full{false};
  std::atomic<std::uint64_t> first{0};
  world.coordinator_plan = [&](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind != iscsi::RamCommand::Kind::write || command.length < 64 * 1024 || !full)
      return fate;
    std::uint64_t none = 0;
    first.compare_exchange_strong(none, command.offset);
    if (command.offset != first)
      fate.failure = Error{std::errc::no_space_on_device, "no space left (07h/27h/07h)"};
    return fate;
  };
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  auto file = a.create("f"), copy = a.create("copy");
  std::size_t size = 4 * 64 * 1024, before_end = 10, theirs_at = 100;
  enum { only_written, cut, cloned, punched, zeroed } also = only_written;
  SUBCASE("another one has written there") {}
  SUBCASE("another one has cut it off, and made it longer again") { also = cut; }
  SUBCASE("another one has written there, and cloned the file") { also = cloned; }
  SUBCASE("another one has written there, and punched a hole") { also = punched; }
  SUBCASE("another one has written there, and zeroed some") { also = zeroed; }
  SUBCASE("another one has written into the last block, which the file fills in part") {
    size += 100;
    theirs_at = size - 60;
  }
  SUBCASE("another one has written into that block, and the write goes on behind the end") {
    size += 100;
    theirs_at = size - 60;
    before_end = 0;
  }
  const auto new_length = size - 10 - before_end + (before_end == 0 ? 20 : 0);
  REQUIRE(a.write(file, 0, std::string(size, 'o')).failure().code() == 0);
  full = true;
  auto request = write_request(file, false);
  request.mutable_write()->set_offset(10);
  auto writing = a.send(a.prepared(request, 0), bytes_of(std::string(new_length, 'n')));
  REQUIRE(error_of(a.wait(writing)) == Errc::retry);
  REQUIRE(b.read(file, theirs_at, 6) == "nnnnnn");
  if (also == cut) {
    REQUIRE(b.truncate(file, 0).failure().code() == 0);
    REQUIRE(b.truncate(file, size).failure().code() == 0);
  } else {
    REQUIRE(b.write(file, theirs_at, "theirs").failure().code() == 0);
  }
  std::string cloned_content;
  if (also == cloned) {
    wire::Request clone;
    clone.mutable_clone()->set_inode(file);
    clone.mutable_clone()->set_length(size);
    clone.mutable_clone()->set_into(copy);
    REQUIRE(b.change(clone).cloned().length() == size);
    cloned_content = b.read(copy, 0, static_cast<std::uint32_t>(size));
  }
  if (also == punched || also == zeroed) {
    wire::Request erase;
    auto how = also == punched ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    erase.mutable_allocate()->set_inode(file);
    erase.mutable_allocate()->set_mode(how | FALLOC_FL_KEEP_SIZE);
    erase.mutable_allocate()->set_offset(4096);
    erase.mutable_allocate()->set_length(4096);
    REQUIRE(b.change(erase).failure().code() == 0);
  }
  full = false;
  a.send_again(writing);
  for (int i = 0; i < 4000 && a.answers(writing) < 2; ++i) pause(std::chrono::milliseconds{5});
  CHECK(a.wait(writing).written().length() == new_length);
  auto around = also == cut ? '\0' : 'o';
  auto expected =
      std::string(10, around) + std::string(new_length, 'n') + std::string(before_end, around);
  if (also != cut) expected.replace(theirs_at, 6, "theirs");
  if (also == punched || also == zeroed) expected.replace(4096, 4096, std::string(4096, '\0'));
  CHECK((a.read(file, 0, 2 * 256 * 1024) == expected));
  if (also == cloned) CHECK((a.read(copy, 0, static_cast<std::uint32_t>(size)) == cloned_content));
  // Of the next one in its place nothing has been written yet.
  auto next = a.change(request, bytes_of(std::string(new_length, 'm')));
  CHECK(next.written().length() == new_length);
  CHECK((a.read(file, 10, static_cast<std::uint32_t>(new_length)) == std::string(new_length, 'm')));
  coordinator.close();
  CHECK(world.problems().empty());
}
