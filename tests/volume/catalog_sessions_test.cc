#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

TEST_CASE("catalog: sessions are rows until they are forgotten") {
  TestCatalog v;
  auto a = v.must([](Catalog& c) { return c.new_session(NodeId{3}, 0xffffffffffffffffull); });
  auto b = v.must([](Catalog& c) { return c.new_session(NodeId{4}, 2); });
  CHECK(a.id != b.id);
  v.must([&](Catalog& c) { return c.end_session(a.id); });
  v.reopen();
  auto rows = *v.catalog->sessions();
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].id == a.id);
  CHECK(rows[0].node == NodeId{3});
  CHECK(rows[0].incarnation == 0xffffffffffffffffull);
  CHECK(rows[0].ended);
  CHECK_FALSE(rows[1].ended);
  v.must([&](Catalog& c) { return c.forget_session(a.id); });
  CHECK(v.catalog->sessions()->size() == 1);
  CHECK(v.change([&](Catalog& c) { return c.forget_session(a.id); }).error() ==
        Errc::session_ended);
  CHECK(v.change([&](Catalog& c) { return c.end_session(SessionId{99}); }).error() ==
        Errc::session_ended);
  v.reopen();
  CHECK(v.must([](Catalog& c) { return c.new_session(NodeId{3}, 1); }).id > b.id);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a slot holds its last result, and goes with its session") {
  TestCatalog v;
  auto s = v.must([](Catalog& c) { return c.new_session(NodeId{1}, 1); });
  CHECK_FALSE(v.catalog->slot(s.id, 5)->has_value());
  auto put = [&](std::uint32_t slot, std::uint64_t sequence, std::string reply) {
    return v.change([&](Catalog& c) { return c.put_slot(s.id, slot, {sequence, reply}); });
  };
  REQUIRE(put(5, 1, "one"));
  REQUIRE(put(5, 2, std::string("t\0wo", 4)));
  REQUIRE(put(63, 0xffffffffffffffffull, ""));
  v.reopen();
  auto five = *v.catalog->slot(s.id, 5);
  REQUIRE(five);
  CHECK(five->sequence == 2);
  CHECK(five->reply == std::string("t\0wo", 4));
  CHECK((*v.catalog->slot(s.id, 63))->sequence == 0xffffffffffffffffull);
  v.must([&](Catalog& c) { return c.end_session(s.id); });
  CHECK(put(5, 3, "late").error() == Errc::session_ended);
  v.must([&](Catalog& c) { return c.forget_session(s.id); });
  CHECK_FALSE(v.catalog->slot(s.id, 5)->has_value());
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a result and its effect are there together or not at all") {
  TestCatalog v;
  auto s = v.must([](Catalog& c) { return c.new_session(NodeId{1}, 1); });
  Catalog::Change change;
  change.body = [&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.put_slot(s.id, 0, {1, "made"}));
    CSV_TRY(c.make(kRootInode, "x", {.mode = S_IFREG}, 1));
    CSV_TRY(c.make(kRootInode, "x", {.mode = S_IFREG}, 1));
    return {};
  };
  REQUIRE(v.catalog->run({&change, 1}));
  CHECK_FALSE(change.result);
  CHECK_FALSE(v.catalog->slot(s.id, 0)->has_value());
  CHECK_FALSE(v.catalog->lookup(kRootInode, "x"));
}

TEST_CASE("catalog: a session is not forgotten while it has grants") {
  TestCatalog v;
  auto f = v.file("f");
  auto s = v.must([](Catalog& c) { return c.new_session(NodeId{1}, 1); });
  auto g = v.must([&](Catalog& c) { return c.new_grant(s.id, f.inode); });
  v.place(f.inode, 0, 10, BlockState::granted, g);
  v.must([&](Catalog& c) { return c.end_session(s.id); });
  CHECK(v.change([&](Catalog& c) { return c.forget_session(s.id); }).error() == Errc::refused);
  CHECK(v.must([&](Catalog& c) { return c.drop_grants(s.id, InodeId{}, 100); }) == 10);
  v.must([&](Catalog& c) { return c.forget_session(s.id); });
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: admissions are rows, and their keys' numbers fresh") {
  TestCatalog v;
  auto s = v.must([](Catalog& c) { return c.new_session(NodeId{2}, 9); });
  auto number = v.must([](Catalog& c) { return c.new_key_number(); });
  CHECK(number > 0);
  AdmissionRow row;
  row.key = make_key({0xffff, NodeId{2}, KeyRole::mount, number});
  row.session = s.id;
  row.node = NodeId{2};
  row.incarnation = 9;
  v.must([&](Catalog& c) { return c.put_admission(row); });
  row.state = AdmissionState::admitted;
  v.must([&](Catalog& c) { return c.put_admission(row); });
  v.reopen();
  auto rows = *v.catalog->admissions();
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].key == row.key);
  CHECK(rows[0].session == s.id);
  CHECK(rows[0].node == NodeId{2});
  CHECK(rows[0].incarnation == 9);
  CHECK(rows[0].state == AdmissionState::admitted);
  CHECK(v.must([](Catalog& c) { return c.new_key_number(); }) > number);
  CHECK(v.problems() == "");
  v.must([&](Catalog& c) { return c.remove_admission(row.key); });
  CHECK(v.catalog->admissions()->empty());
}

TEST_CASE("catalog: a row of what was open that is written anew keeps what it could not know of") {
  TestCatalog v;
  SuspendedRow row;
  row.node = NodeId{3};
  row.session = SessionId{1};
  v.must([&](Catalog& c) { return c.suspend(row); });
  auto known = row.next_inode;
  auto made = v.must([](Catalog& c) { return c.make(kRootInode, "x", {.mode = S_IFREG}, 1); });
  CHECK(made.inode == known);
  v.reopen();
  auto rows = *v.catalog->suspended();
  REQUIRE(rows.size() == 1);
  v.must([&](Catalog& c) { return c.suspend(rows[0]); });
  CHECK(rows[0].next_inode == known);
  v.reopen();
  CHECK(v.catalog->suspended()->at(0).next_inode == known);
  SuspendedRow other = row;
  other.next_inode = SuspendedRow{}.next_inode;
  v.must([&](Catalog& c) { return c.suspend(other); });
  CHECK(other.next_inode > known);
}
