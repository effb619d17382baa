#include <set>

#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

namespace {

SessionId session(TestCatalog& v) {
  return v.must([](Catalog& c) { return c.new_session(NodeId{1}, 7); }).id;
}
GrantId grant(TestCatalog& v, SessionId of, InodeId inode) {
  return v.must([&](Catalog& c) { return c.new_grant(of, inode); });
}
Expected<void> commit(TestCatalog& v, SessionId of, InodeId inode, GrantId id, std::uint64_t first,
                      std::uint64_t count, std::uint64_t truncation = 0) {
  return v.change([&](Catalog& c) -> Expected<void> {
    CSV_TRY(c.commit_grant(of, inode, id, first, count, truncation));
    CSV_TRY(c.grow(inode, (first + count) * kBlockSize, v.now));
    return {};
  });
}
Attr truncate(TestCatalog& v, InodeId inode, std::uint64_t size) {
  return v.must([&](Catalog& c) { return c.truncate(inode, size, v.now); });
}
Attr grow(TestCatalog& v, InodeId inode, std::uint64_t blocks) {
  return v.must([&](Catalog& c) { return c.grow(inode, blocks * kBlockSize, v.now); });
}
Catalog::Progress punch(TestCatalog& v, InodeId inode, std::uint64_t first, std::uint64_t count,
                        bool keep) {
  return v.must([&](Catalog& c) { return c.punch(inode, first, count, keep, v.now); });
}
/// All of a fill, in as many changes as it takes.
Expected<void> fill(TestCatalog& v, InodeId inode, std::uint64_t first, std::uint64_t count) {
  while (count > 0) {
    auto progress = v.change([&](Catalog& c) { return c.fill(inode, first, count); });
    if (!progress) return progress.error();
    REQUIRE(progress->done > 0);
    first += progress->done;
    count -= progress->done;
  }
  return {};
}
std::uint64_t free_blocks(TestCatalog& v) { return v.catalog->space()->free; }

}  // namespace

TEST_CASE("catalog: a file's map says what was placed, joined, also across rows and groups") {
  TestCatalog v;
  auto f = v.file("f");
  // 200 MiB in one piece: 25 rows of 8 MiB, over at least three groups of 64 MiB.
  v.place(f.inode, 5, 200 * kBlocksPerMiB);
  auto mapped = v.map(f.inode, 0, 300 * kBlocksPerMiB);
  REQUIRE(mapped.size() == 3);
  CHECK(mapped[0].state == BlockState::hole);
  CHECK(mapped[0].count == 5);
  CHECK(mapped[1].state == BlockState::written);
  CHECK(mapped[1].file_block == 5);
  CHECK(mapped[1].count == 200 * kBlocksPerMiB);
  CHECK(mapped[2].count == 100 * kBlocksPerMiB - 5);
  CHECK(v.catalog->attr(f.inode)->blocks == 200 * kBlocksPerMiB);
  auto part = v.map(f.inode, 1000, 10);
  REQUIRE(part.size() == 1);
  CHECK(part[0].lun_block == mapped[1].lun_block + 995);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: written blocks are bits, also over the borders of rows") {
  TestCatalog v;
  auto f = v.file("f");
  REQUIRE(fill(v, f.inode, 0, 5000));
  grow(v, f.inode, 5000);
  CHECK(v.states(f.inode, 0, 5000) == "u5000");
  v.must([&](Catalog& c) { return c.mark_written(f.inode, 2000, 100); });
  v.must([&](Catalog& c) { return c.mark_written(f.inode, 7, 1); });
  CHECK(v.states(f.inode, 0, 5000) == "u7w1u1992w100u2900");
  v.must([&](Catalog& c) { return c.mark_written(f.inode, 0, 4096); });
  CHECK(v.states(f.inode, 0, 5000) == "w4096u904");
  v.must([&](Catalog& c) { return c.mark_written(f.inode, 0, 4096); });  // again: nothing to do
  v.reopen();
  CHECK(v.states(f.inode, 0, 5000) == "w4096u904");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: marking what is a hole or granted is refused and changes nothing") {
  TestCatalog v;
  auto f = v.file("f");
  REQUIRE(fill(v, f.inode, 0, 10));
  grow(v, f.inode, 100);
  CHECK_FALSE(v.change([&](Catalog& c) { return c.mark_written(f.inode, 5, 10); }));
  auto g = grant(v, session(v), f.inode);
  v.place(f.inode, 10, 10, BlockState::granted, g);
  CHECK_FALSE(v.change([&](Catalog& c) { return c.mark_written(f.inode, 5, 10); }));
  CHECK(v.states(f.inode, 0, 20) == "u10g10");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: placing asks for reserved blocks, holes and a grant of this file") {
  TestCatalog v;
  auto f = v.file("f"), other = v.file("other");
  auto place = [&](std::span<const Run> runs, BlockState state, GrantId g = {}) {
    return v.change([&](Catalog& c) { return c.place(f.inode, 0, runs, state, g); });
  };
  auto runs = v.must([&](Catalog& c) { return c.reserve_space(f.inode, 8, 0, 4); });
  const std::vector<Run> foreign{{runs[0].lun_block + 100, 8}};
  CHECK(place(foreign, BlockState::written).error() == Errc::refused);
  CHECK(place(runs, BlockState::hole).error() == Errc::refused);
  CHECK(place(runs, BlockState::granted).error() == Errc::refused);
  auto theirs = grant(v, session(v), other.inode);
  CHECK(place(runs, BlockState::granted, theirs).error() == Errc::refused);
  CHECK(place(runs, BlockState::written, theirs).error() == Errc::refused);
  REQUIRE(place(runs, BlockState::unwritten));
  CHECK(place(runs, BlockState::written).error() == Errc::refused);  // no reservation any more
  auto more = v.must([&](Catalog& c) { return c.reserve_space(f.inode, 8, 0, 4); });
  CHECK(place(more, BlockState::written).error() == Errc::refused);  // not holes
  CHECK(v.states(f.inode, 0, 10) == "u8h2");
  v.catalog->cancel_reservation(more);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a reservation is nobody else's until it is cancelled, and no row") {
  TestCatalog v;
  auto f = v.file("f");
  auto before = free_blocks(v);
  std::set<std::uint64_t> taken;
  std::vector<Run> all;
  for (int i = 0; i < 50; ++i) {
    auto runs = v.must([&](Catalog& c) { return c.reserve_space(f.inode, 700, 0, 4); });
    for (const auto& run : runs) {
      all.push_back(run);
      for (std::uint64_t b = 0; b < run.count; ++b) CHECK(taken.insert(run.lun_block + b).second);
    }
  }
  CHECK(free_blocks(v) == before - 50 * 700);
  v.catalog->cancel_reservation(all);
  CHECK(free_blocks(v) == before);
  v.must([&](Catalog& c) { return c.reserve_space(f.inode, 700, 0, 4); });
  v.reopen();
  CHECK(free_blocks(v) == before);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a reservation follows its goal and keeps to its number of runs") {
  TestCatalog v;
  auto f = v.file("f");
  auto first = v.place(f.inode, 0, 100);
  auto next = v.must([&](Catalog& c) { return c.reserve_space(f.inode, 50, 0, 1); });
  REQUIRE(next.size() == 1);
  CHECK(next[0].lun_block == first[0].lun_block + 100);
  auto there = v.must(
      [&](Catalog& c) { return c.reserve_space(f.inode, 50, first[0].lun_block + 5000, 1); });
  CHECK(there[0].lun_block == first[0].lun_block + 5000);
}

TEST_CASE("catalog: folders start in different groups, files of one lie together") {
  TestCatalog v{16 * kGiB};
  std::set<std::uint64_t> groups;
  for (int i = 0; i < 8; ++i) {
    auto folder = v.directory("folder" + std::to_string(i));
    auto below = v.directory("below", folder.inode);
    std::uint64_t last = 0;
    for (int j = 0; j < 5; ++j) {
      auto file = v.file("f" + std::to_string(j), j % 2 == 0 ? folder.inode : below.inode);
      auto runs = v.place(file.inode, 0, 3);
      if (last != 0) CHECK(runs[0].lun_block == last + 3);
      last = runs[0].lun_block;
    }
    groups.insert(last * kBlockSize / kGroupSize);
  }
  CHECK(groups.size() >= 7);
}

TEST_CASE("catalog: many folders leave groups whole, by which the catalog can grow") {
  TestCatalog v{2 * kGiB};
  std::set<std::uint64_t> groups;
  for (int i = 0; i < 300; ++i) {
    auto folder = v.directory("folder" + std::to_string(i));
    auto file = v.file("f", folder.inode);
    groups.insert(v.place(file.inode, 0, 1)[0].lun_block * kBlockSize / kGroupSize);
  }
  CHECK(groups.size() > 12);
  CHECK(groups.size() <= 25);  // of 28 or more
}

TEST_CASE("catalog: a commit of a grant makes written what it names, once or again") {
  TestCatalog v;
  auto f = v.file("f");
  auto s = session(v);
  auto g = grant(v, s, f.inode);
  v.place(f.inode, 0, 3000, BlockState::granted, g);
  auto mapped = v.map(f.inode, 0, 3000);
  REQUIRE(mapped.size() == 1);
  CHECK(mapped[0].grant == g);
  CHECK(commit(v, s, f.inode, g, 0, 2100));
  CHECK(v.states(f.inode, 0, 3000) == "w2100g900");
  CHECK(commit(v, s, f.inode, g, 2050, 150));  // overlaps what an earlier commit wrote
  // Not where a row is wholly written: that has left the grant.
  CHECK(commit(v, s, f.inode, g, 2000, 200).error() == Errc::stale_commit);
  CHECK(v.states(f.inode, 0, 3000) == "w2200g800");
  CHECK(v.catalog->attr(f.inode)->size == 2200 * kBlockSize);
  v.reopen();
  CHECK(v.problems() == "");
  CHECK(commit(v, s, f.inode, g, 2200, 800));
  CHECK(v.states(f.inode, 0, 3000) == "w3000");
  // Nothing of it is left: it has ended.
  CHECK(commit(v, s, f.inode, g, 0, 1).error() == Errc::stale_commit);
  CHECK(v.problems() == "");
}

TEST_CASE(
    "catalog: a commit is stale after a truncation, a punch, a drop, or under another's grant") {
  TestCatalog v;
  auto f = v.file("f"), other = v.file("other");
  auto s = session(v);
  auto make = [&](std::uint64_t at) {
    auto g = grant(v, s, f.inode);
    v.place(f.inode, at, 100, BlockState::granted, g);
    return g;
  };
  SUBCASE("truncation") {
    auto g = make(0);
    REQUIRE(commit(v, s, f.inode, g, 0, 50));
    CHECK(truncate(v, f.inode, 10 * kBlockSize).truncation == 1);
    CHECK(commit(v, s, f.inode, g, 0, 10, 0).error() == Errc::stale_commit);
    CHECK(commit(v, s, f.inode, g, 50, 10, 1).error() == Errc::stale_commit);  // freed
    CHECK(v.catalog->attr(f.inode)->size == 10 * kBlockSize);
  }
  SUBCASE("a truncation that frees nothing of it") {
    auto g = make(0);
    grow(v, f.inode, 1000);
    truncate(v, f.inode, 500 * kBlockSize);
    CHECK(commit(v, s, f.inode, g, 0, 10, 0).error() == Errc::stale_commit);
    CHECK(v.states(f.inode, 0, 100) == "g100");
    CHECK(commit(v, s, f.inode, g, 0, 10, 1));
  }
  SUBCASE("growing is no truncation") {
    auto g = make(0);
    CHECK(truncate(v, f.inode, 1000 * kBlockSize).truncation == 0);
    CHECK(commit(v, s, f.inode, g, 0, 100));
  }
  SUBCASE("punch") {
    auto g = make(0);
    punch(v, f.inode, 5, 1, false);
    CHECK(commit(v, s, f.inode, g, 0, 10).error() == Errc::stale_commit);
    CHECK(v.states(f.inode, 0, 100) == "g5h1g94");
    CHECK(commit(v, s, f.inode, g, 6, 10));
  }
  SUBCASE("punch that keeps the space") {
    auto g = make(0);
    punch(v, f.inode, 5, 1, true);
    CHECK(v.states(f.inode, 0, 100) == "g5u1g94");
    CHECK(commit(v, s, f.inode, g, 5, 1).error() == Errc::stale_commit);
  }
  SUBCASE("dropped") {
    auto g = make(0);
    REQUIRE(commit(v, s, f.inode, g, 10, 10));
    CHECK(v.must([&](Catalog& c) { return c.drop_grants(s, f.inode, 1000); }) == 90);
    CHECK(v.states(f.inode, 0, 100) == "h10w10h80");
    CHECK(commit(v, s, f.inode, g, 10, 10).error() == Errc::stale_commit);
  }
  SUBCASE("somebody else's") {
    auto g = make(0), h = make(100);
    CHECK(commit(v, s, f.inode, g, 95, 10).error() == Errc::stale_commit);
    CHECK(commit(v, s, f.inode, h, 95, 10).error() == Errc::stale_commit);
    CHECK(commit(v, s, other.inode, g, 0, 10).error() == Errc::stale_commit);
    CHECK(commit(v, s, f.inode, GrantId{}, 0, 10).error() == Errc::stale_commit);
    CHECK(commit(v, s, f.inode, GrantId{999}, 0, 10).error() == Errc::stale_commit);
    auto another = session(v);
    CHECK(commit(v, another, f.inode, g, 0, 10).error() == Errc::stale_commit);
    CHECK(v.states(f.inode, 0, 200) == "g200");
  }
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: dropping a session's grants goes by inode or all, in bounded calls") {
  TestCatalog v;
  auto f = v.file("f"), g = v.file("g");
  auto a = session(v), b = session(v);
  auto before = free_blocks(v);
  for (auto [s, inode, at] : {std::tuple{a, f.inode, 0}, {a, g.inode, 0}, {b, f.inode, 5000}})
    v.place(inode, static_cast<std::uint64_t>(at), 5000, BlockState::granted, grant(v, s, inode));
  grant(v, a, f.inode);  // one without space
  CHECK(free_blocks(v) == before - 15000);
  CHECK(v.must([&](Catalog& c) { return c.drop_grants(a, g.inode, 100000); }) == 5000);
  CHECK(v.states(g.inode, 0, 5000) == "h5000");
  std::uint64_t dropped = 0, calls = 0;
  for (;; ++calls) {
    auto freed = v.must([&](Catalog& c) { return c.drop_grants(a, InodeId{}, 100); });
    CHECK(v.problems() == "");
    if (freed == 0) break;
    CHECK(freed < 100 + 2048);
    dropped += freed;
  }
  CHECK(dropped == 5000);
  CHECK(calls >= 3);
  CHECK(v.states(f.inode, 0, 10000) == "h5000g5000");
  CHECK(free_blocks(v) == before - 5000);  // dying counts as free
  CHECK(v.must([&](Catalog& c) { return c.drop_grants(b, f.inode, 100000); }) == 5000);
  v.settle();
  CHECK(v.catalog->space()->dying == 0);
  CHECK(free_blocks(v) == before);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: what a grant has written whole costs nothing when it ends, or goes in calls") {
  TestCatalog v;
  constexpr std::uint64_t kWindows = 100, kBlocks = kWindows * 8 * kBlocksPerMiB;
  auto f = v.file("f");
  auto s = session(v);
  auto g = grant(v, s, f.inode);
  v.place(f.inode, 0, kBlocks, BlockState::granted, g);
  REQUIRE(commit(v, s, f.inode, g, 0, kBlocks - 1));
  std::uint64_t calls = 1;
  auto drop = [&] { return v.must([&](Catalog& c) { return c.drop_grants(s, f.inode, 320); }); };
  SUBCASE("rows leave the grant as they are written") {
    CHECK(drop() == 1);
    CHECK(calls == 1);
  }
  SUBCASE("and rows of an earlier program, which did not") {
    v.sql("UPDATE extents SET grant_id=" + std::to_string(raw(g)));
    CHECK(v.problems() == "");
    for (; drop() >= 320; ++calls) CHECK(v.problems() == "");
    CHECK(calls >= kWindows / 10);
  }
  CHECK(v.states(f.inode, 0, kBlocks) == "w" + std::to_string(kBlocks - 1) + "h1");
  CHECK(commit(v, s, f.inode, g, 0, 1).error() == Errc::stale_commit);
  v.must([&](Catalog& c) { return c.end_session(s); });
  v.must([&](Catalog& c) { return c.forget_session(s); });
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a grant needs a live session") {
  TestCatalog v;
  auto f = v.file("f");
  auto s = session(v);
  v.must([&](Catalog& c) { return c.end_session(s); });
  CHECK(v.change([&](Catalog& c) { return c.new_grant(s, f.inode); }).error() ==
        Errc::session_ended);
  CHECK(v.change([&](Catalog& c) { return c.new_grant(SessionId{99}, f.inode); }).error() ==
        Errc::session_ended);
}

TEST_CASE("catalog: truncation frees whole blocks behind the size and keeps the rest") {
  TestCatalog v;
  auto f = v.file("f");
  auto before = free_blocks(v);
  v.place(f.inode, 0, 5000);
  auto after = truncate(v, f.inode, 10 * kBlockSize + 1);
  CHECK(after.size == 10 * kBlockSize + 1);
  CHECK(after.blocks == 11);
  CHECK(after.truncation == 1);
  CHECK(v.states(f.inode, 0, 5000) == "w11h4989");
  CHECK(truncate(v, f.inode, 5000 * kBlockSize).truncation == 1);
  CHECK(v.states(f.inode, 0, 5000) == "w11h4989");
  CHECK(truncate(v, f.inode, 0).truncation == 2);
  v.settle();
  CHECK(free_blocks(v) == before);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: sizes end at 16 TiB") {
  TestCatalog v;
  auto f = v.file("f");
  const auto most = 16ull << 40;
  CHECK(truncate(v, f.inode, most).size == most);
  auto refuse = [&](auto op) { return errno_of(v.change(op)); };
  CHECK(refuse([&](Catalog& c) { return c.truncate(f.inode, most + 1, 1); }) == EFBIG);
  CHECK(refuse([&](Catalog& c) { return c.grow(f.inode, most + 1, 1); }) == EFBIG);
  CHECK(refuse([&](Catalog& c) { return c.fill(f.inode, most / kBlockSize - 1, 2); }) == EFBIG);
  CHECK(errno_of(v.catalog->map(f.inode, 0, UINT64_MAX)) == EFBIG);
  v.place(f.inode, most / kBlockSize - 1, 1);
  CHECK(v.states(f.inode, most / kBlockSize - 2, 2) == "h1w1");
  CHECK(*v.catalog->seek(f.inode, 0, true) == most - kBlockSize);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: what is freed counts as a hole at once, however many steps freeing takes") {
  TestCatalog v{12 * kGiB};
  auto f = v.file("f");
  auto before = free_blocks(v);
  constexpr auto kBlocks = 9 * kGiB / kBlockSize;
  REQUIRE(fill(v, f.inode, 0, kBlocks));
  grow(v, f.inode, kBlocks);
  v.must([&](Catalog& c) { return c.mark_written(f.inode, 0, 2 * kGiB / kBlockSize); });
  truncate(v, f.inode, kBlockSize);
  CHECK(v.catalog->space()->freeing);
  CHECK(v.states(f.inode, 0, kBlocks) == "w1h" + std::to_string(kBlocks - 1));
  CHECK(v.problems() == "");
  SUBCASE("reopened in the middle") {
    REQUIRE(v.catalog->maintain());
    v.reopen();
    CHECK(v.problems() == "");
  }
  SUBCASE("written in the middle of it") {
    grow(v, f.inode, kBlocks);
    v.place(f.inode, kBlocks / 2, 1);
    v.place(f.inode, kBlocks - 10, 1);
    CHECK(v.states(f.inode, kBlocks / 2 - 1, 3) == "h1w1h1");
    CHECK(v.problems() == "");
    CHECK(*v.catalog->seek(f.inode, kBlockSize, true) == kBlocks / 2 * kBlockSize);
    CHECK(*v.catalog->seek(f.inode, 0, false) == kBlockSize);
    v.settle();
    CHECK(v.states(f.inode, kBlocks / 2 - 1, 3) == "h1w1h1");
    CHECK(v.states(f.inode, kBlocks - 11, 3) == "h1w1h1");
    CHECK(v.catalog->attr(f.inode)->blocks == 3);
  }
  SUBCASE("filled again in the middle of it") {
    REQUIRE(fill(v, f.inode, 0, 3 * kGiB / kBlockSize / 2));
    CHECK(v.states(f.inode, 0, 3) == "w1u2");
    CHECK(v.problems() == "");
  }
  SUBCASE("punched and truncated again in the middle of it") {
    grow(v, f.inode, kBlocks);
    v.place(f.inode, kBlocks / 2, 1);
    punch(v, f.inode, 0, kBlocks / 2, true);
    CHECK(v.states(f.inode, 0, 2) == "u1h1");
    truncate(v, f.inode, 0);
    CHECK(v.states(f.inode, 0, kBlocks) == "h" + std::to_string(kBlocks));
  }
  SUBCASE("removed in the middle of it") {
    v.must([&](Catalog& c) { return c.unlink(kRootInode, "f", v.now); });
    v.must([&](Catalog& c) { return c.reap(f.inode); });
    CHECK(v.catalog->space()->freeing);
    CHECK(v.problems() == "");
    v.settle();
    CHECK(free_blocks(v) == before);
  }
  v.settle();
  CHECK_FALSE(v.catalog->space()->freeing);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a punch makes holes, or keeps the space unwritten") {
  TestCatalog v;
  auto f = v.file("f");
  v.place(f.inode, 0, 6000);
  auto before = free_blocks(v);
  v.now = 7777;
  auto kept = punch(v, f.inode, 100, 2000, true);
  CHECK(kept.done == 2000);
  CHECK(kept.attr.mtime == 7777);
  CHECK(v.states(f.inode, 0, 6000) == "w100u2000w3900");
  CHECK(free_blocks(v) == before);
  auto holes = punch(v, f.inode, 2040, 100, false);
  CHECK(holes.done == 100);
  CHECK(holes.attr.blocks == 5900);
  CHECK(holes.attr.size == 6000 * kBlockSize);
  CHECK(v.states(f.inode, 0, 6000) == "w100u1940h100w3860");
  CHECK(punch(v, f.inode, 0, 6000, true).done == 6000);
  CHECK(v.states(f.inode, 0, 6000) == "u2040h100u3860");
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: what is large is filled and zeroed in several changes, each short") {
  TestCatalog v{12 * kGiB};
  auto f = v.file("f");
  const auto blocks = 9 * kGiB / kBlockSize;
  v.place(f.inode, 1000, 10);
  auto once = v.must([&](Catalog& c) { return c.fill(f.inode, 0, blocks); });
  CHECK(once.done > 0);
  CHECK(once.done < blocks);
  REQUIRE(fill(v, f.inode, 0, blocks));
  CHECK(v.states(f.inode, 0, blocks) == "u1000w10u" + std::to_string(blocks - 1010));
  CHECK(v.catalog->attr(f.inode)->blocks == blocks);
  std::uint64_t at = 0, calls = 0;
  for (; at < blocks; ++calls) at += punch(v, f.inode, at, blocks - at, true).done;
  CHECK(calls > 1);
  CHECK(at == blocks);
  CHECK(v.states(f.inode, 0, blocks) == "u" + std::to_string(blocks));
  CHECK(v.problems() == "");
}

TEST_CASE(
    "catalog: trimming frees what lies beyond the end, but not what was asked for or is granted") {
  TestCatalog v;
  auto f = v.file("f");
  REQUIRE(fill(v, f.inode, 0, 5000));
  grow(v, f.inode, 10);
  auto trim = [&] { v.must([&](Catalog& c) { return c.trim(f.inode); }); };
  SUBCASE("trimmed") {
    trim();
    CHECK(v.states(f.inode, 0, 5000) == "u10h4990");
  }
  SUBCASE("kept") {
    v.must([&](Catalog& c) { return c.keep_beyond_end(f.inode); });
    trim();
    CHECK(v.states(f.inode, 0, 5000) == "u5000");
    v.reopen();
    trim();
    CHECK(v.states(f.inode, 0, 5000) == "u5000");
    truncate(v, f.inode, 1);  // frees it, and ends the wish
    CHECK(v.states(f.inode, 0, 5000) == "u1h4999");
  }
  SUBCASE("granted") {
    auto s = session(v);
    v.place(f.inode, 5000, 100, BlockState::granted, grant(v, s, f.inode));
    trim();
    CHECK(v.states(f.inode, 0, 5100) == "u10h4990g100");
    v.must([&](Catalog& c) { return c.drop_grants(s, f.inode, 1000); });
    CHECK(v.states(f.inode, 0, 5100) == "u10h5090");
  }
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: seek finds data and holes, unwritten space being a hole") {
  TestCatalog v;
  auto f = v.file("f");
  auto seek = [&](std::uint64_t offset, bool data) {
    return v.catalog->seek(f.inode, offset, data);
  };
  CHECK(errno_of(seek(0, true)) == ENXIO);
  CHECK(errno_of(seek(0, false)) == ENXIO);
  REQUIRE(fill(v, f.inode, 0, 10));
  v.place(f.inode, 10, 3000);
  v.place(f.inode, 1000000, 1);
  truncate(v, f.inode, 1000001 * kBlockSize - 100);
  CHECK(*seek(0, true) == 10 * kBlockSize);
  CHECK(*seek(0, false) == 0);
  CHECK(*seek(10 * kBlockSize + 5, true) == 10 * kBlockSize + 5);
  CHECK(*seek(10 * kBlockSize + 5, false) == 3010 * kBlockSize);
  CHECK(*seek(3010 * kBlockSize, true) == 1000000ull * kBlockSize);
  CHECK(*seek(1000000ull * kBlockSize + 1, false) == 1000001 * kBlockSize - 100);
  CHECK(errno_of(seek(1000001ull * kBlockSize - 100, true)) == ENXIO);
  truncate(v, f.inode, 2000000ull * kBlockSize);
  CHECK(errno_of(seek(1000001ull * kBlockSize, true)) == ENXIO);
  CHECK(*seek(1000001ull * kBlockSize, false) == 1000001ull * kBlockSize);
}

TEST_CASE("catalog: freed blocks are not given out before their UNMAP was answered") {
  TestCatalog v{256 * kMiB};
  auto f = v.file("f"), g = v.file("g");
  REQUIRE(v.catalog->maintain());
  auto all = free_blocks(v);
  v.place(f.inode, 0, all);
  auto need_one = [&] {
    return errno_of(v.change([&](Catalog& c) { return c.reserve_space(g.inode, 1, 0, 1); }));
  };
  CHECK(need_one() == ENOSPC);
  truncate(v, f.inode, 0);
  CHECK(free_blocks(v) == all);
  CHECK(need_one() == ENOSPC);
  while (v.catalog->space()->freeing) REQUIRE(v.catalog->maintain());
  CHECK(need_one() == ENOSPC);
  auto dying = *v.catalog->dying(100);
  REQUIRE(!dying.empty());
  v.reopen();  // the state is a row
  CHECK(need_one() == ENOSPC);
  // A part of a run may be answered for, but nothing that is not dying.
  const std::vector<Run> middle{{dying[0].lun_block + 5, 3}};
  v.must([&](Catalog& c) { return c.make_free(middle); });
  CHECK(v.problems() == "");
  CHECK(v.change([&](Catalog& c) { return c.make_free(middle); }).error() == Errc::refused);
  CHECK(v.change([&](Catalog& c) { return c.make_free(dying); }).error() == Errc::refused);
  CHECK(v.problems() == "");
  auto three = v.must([&](Catalog& c) { return c.reserve_space(g.inode, 3, 0, 1); });
  CHECK(three == middle);
  CHECK(need_one() == ENOSPC);
  v.catalog->cancel_reservation(three);
  v.settle();
  CHECK(free_blocks(v) == all);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a full volume refuses, and is usable again after something was removed") {
  TestCatalog v{512 * kMiB};
  std::vector<Attr> files;
  for (int i = 0;; ++i) {
    auto file = v.file("f" + std::to_string(i));
    files.push_back(file);
    auto filled = fill(v, file.inode, 0, 10 * kBlocksPerMiB);
    if (filled) continue;
    CHECK(filled.error().to_errno() == ENOSPC);
    CHECK(v.states(file.inode, 0, 10 * kBlocksPerMiB) == "h" + std::to_string(10 * kBlocksPerMiB));
    break;
  }
  CHECK(files.size() > 10);
  CHECK(free_blocks(v) < 10 * kBlocksPerMiB);
  CHECK(v.problems() == "");
  v.must([&](Catalog& c) { return c.unlink(kRootInode, "f3", v.now); });
  v.must([&](Catalog& c) { return c.reap(files[3].inode); });
  CHECK_FALSE(fill(v, files.back().inode, 0, 10 * kBlocksPerMiB));
  v.settle();
  CHECK(fill(v, files.back().inode, 0, 10 * kBlocksPerMiB));
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: space in pieces is used to the last block") {
  TestCatalog v{256 * kMiB};
  auto f = v.file("f"), g = v.file("g");
  REQUIRE(v.catalog->maintain());
  auto all = free_blocks(v);
  v.place(f.inode, 0, all);
  // Every other block of the first 3000, and a longer piece, become free.
  v.must([&](Catalog& c) -> Expected<void> {
    for (std::uint64_t at = 0; at < 3000; at += 2) CSV_TRY(c.punch(f.inode, at, 1, false, v.now));
    CSV_TRY(c.punch(f.inode, 5000, 300, false, v.now));
    return {};
  });
  v.settle();
  CHECK(free_blocks(v) == 1800);
  auto reserve = [&](std::uint64_t count, std::size_t runs) {
    return v.change([&](Catalog& c) { return c.reserve_space(g.inode, count, 0, runs); });
  };
  auto long_one = reserve(300, 1);
  REQUIRE(long_one);
  CHECK(errno_of(reserve(2, 1)) == ENOSPC);
  CHECK(errno_of(reserve(1501, 5000)) == ENOSPC);
  auto singles = reserve(1500, 5000);
  REQUIRE(singles);
  CHECK(singles->size() == 1500);
  CHECK(errno_of(reserve(1, 1)) == ENOSPC);
  v.catalog->cancel_reservation(*long_one);
  v.catalog->cancel_reservation(*singles);
  REQUIRE(fill(v, g.inode, 0, 1800));
  CHECK(v.catalog->attr(g.inode)->blocks == 1800);
  CHECK(free_blocks(v) == 0);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: only regular files have blocks and sizes") {
  TestCatalog v;
  auto dir = v.directory("d");
  auto refuse = [&](auto op) { return errno_of(v.change(op)); };
  CHECK(refuse([&](Catalog& c) { return c.truncate(dir.inode, 0, 1); }) == EISDIR);
  CHECK(refuse([&](Catalog& c) { return c.fill(dir.inode, 0, 1); }) == EISDIR);
  CHECK(refuse([&](Catalog& c) { return c.punch(dir.inode, 0, 1, true, 1); }) == EISDIR);
  CHECK(errno_of(v.catalog->map(dir.inode, 0, 1)) == EISDIR);
  CHECK(errno_of(v.catalog->map(InodeId{99}, 0, 1)) == ESTALE);
  auto fifo =
      v.must([&](Catalog& c) { return c.make(kRootInode, "p", {.mode = S_IFIFO | 0600}, 1); });
  CHECK(refuse([&](Catalog& c) { return c.truncate(fifo.inode, 0, 1); }) == EINVAL);
}
