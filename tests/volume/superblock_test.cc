#include "coordinator/volume/superblock.h"

#include <doctest/doctest.h>

#include <cstring>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/random.h"
#include "tests/volume/lun_bench.h"

using namespace csv;
using namespace csv::volume;
using iscsi::RamCommand;
using iscsi::RamFate;

namespace {

/// Changes a superblock's bytes and makes its checksum right again.
template <typename F>
std::vector<std::byte> edited(const VolumeInfo& info, Copy copy, F&& edit) {
  auto bytes = encode_superblock(info, copy);
  disk::Superblock block;
  std::memcpy(&block, bytes.data(), sizeof block);
  edit(block);
  auto raw_bytes = std::as_bytes(std::span{&block, 1});
  block.crc = crc32c(raw_bytes.subspan(12));
  return {raw_bytes.begin(), raw_bytes.end()};
}

void put(LunBench& bench, const VolumeInfo& info, Copy copy) {
  bench.disk->poke(place_of(copy, info.lun_size), encode_superblock(info, copy).span());
}

VolumeInfo next_of(VolumeInfo info) {
  ++info.sequence;
  info.epoch = Epoch{raw(info.epoch) + 1};
  info.coordinator = NodeId{3};
  info.chunks.push_back(info.data_offset + 2 * kChunkSize);
  return info;
}

}  // namespace

TEST_CASE("superblock: what is written is what is read, in all three copies") {
  LunBench bench;
  auto info = example_info(bench);
  auto path = bench.connect();
  REQUIRE(write_superblocks(path.io, info));
  CHECK(info.sequence == 8);
  auto found = read_superblocks(path.io, false);
  REQUIRE(found);
  CHECK(*found == info);
  for (auto copy : {Copy::a, Copy::b, Copy::c}) {
    auto bytes = bench.content(place_of(copy, info.lun_size), disk::kSuperblockSize);
    auto decoded = decode_superblock(bytes, copy);
    CHECK(decoded.state == FoundSuperblock::State::valid);
    CHECK(decoded.info == info);
  }
  CHECK(superblock_problems(path.io)->empty());
}

TEST_CASE("superblock: names a thousand chunks and more, and keeps labels of full length") {
  LunBench bench{{}, 300ull << 10};
  auto info = example_info(bench);
  info.label = std::string(63, 'x');
  info.lun_identity = std::string(127, 'y');
  info.chunks.clear();
  for (std::uint64_t i = 0; i < kMaxChunks; ++i)
    info.chunks.push_back(info.data_offset + (kMaxChunks - 1 - i) * kChunkSize);
  auto path = bench.connect();
  REQUIRE(write_superblocks(path.io, info));
  auto found = read_superblocks(path.io, false);
  REQUIRE(found);
  CHECK(*found == info);
}

TEST_CASE("superblock: a rewrite torn at any byte of A leaves the old one in force") {
  LunBench bench;
  auto path = bench.connect();
  auto old = example_info(bench), next = next_of(old);
  auto was = encode_superblock(old, Copy::a), becomes = encode_superblock(next, Copy::a);
  put(bench, old, Copy::b);
  for (std::size_t landed = 0; landed <= was.size(); ++landed) {
    CAPTURE(landed);
    auto torn = Buffer::copy_of(was.span());
    std::memcpy(torn.data(), becomes.data(), landed);
    bool whole = std::memcmp(torn.data(), becomes.data(), torn.size()) == 0;
    bool untouched = std::memcmp(torn.data(), was.data(), torn.size()) == 0;
    CHECK((decode_superblock(torn.span(), Copy::a).state == FoundSuperblock::State::valid) ==
          (whole || untouched));
    if (landed % 32 != 0) continue;  // The rest of the way is the same for all.
    bench.disk->poke(0, torn.span());
    auto found = read_superblocks(path.io, false);
    REQUIRE(found);
    CHECK(*found == (whole ? next : old));
  }
}

TEST_CASE(
    "superblock: a rewrite torn at any byte of B leaves the new one in force, and is repaired") {
  LunBench bench;
  auto path = bench.connect();
  auto old = example_info(bench), next = next_of(old);
  auto was = encode_superblock(old, Copy::b), becomes = encode_superblock(next, Copy::b);
  put(bench, next, Copy::a);
  put(bench, next, Copy::c);
  for (std::size_t landed = 0; landed <= was.size(); ++landed) {
    CAPTURE(landed);
    auto torn = Buffer::copy_of(was.span());
    std::memcpy(torn.data(), becomes.data(), landed);
    auto decoded = decode_superblock(torn.span(), Copy::b);
    CHECK((decoded.state != FoundSuperblock::State::valid || decoded.info == old ||
           decoded.info == next));
    if (landed % 32 != 0) continue;
    bench.disk->poke(disk::kSuperblockB, torn.span());
    auto found = read_superblocks(path.io, landed % 64 == 0);
    REQUIRE(found);
    CHECK(*found == next);
    if (landed % 64 == 0) CHECK(superblock_problems(path.io)->empty());
  }
}

TEST_CASE(
    "superblock: power lost at any write of a rewrite leaves the old or the new, in both after "
    "repair") {
  for (bool cache : {false, true}) {
    for (int at = 1; at <= 3; ++at) {
      for (std::uint64_t torn = 0; torn <= 32; ++torn) {
        CAPTURE(at);
        CAPTURE(torn);
        iscsi::RamDiskOptions options;
        options.write_cache = cache;
        LunBench bench{options};
        auto old = example_info(bench), next = next_of(old);
        for (auto copy : {Copy::a, Copy::b, Copy::c}) put(bench, old, copy);
        auto count = std::make_shared<int>(0);
        {
          auto path = bench.connect([count, at, torn](const RamCommand& command) {
            RamFate fate;
            if (command.kind != RamCommand::Kind::write || ++*count < at) return fate;
            fate.failure = Error{Errc::lun_lost, "power loss"};
            fate.torn_blocks = *count == at ? torn : 0;
            return fate;
          });
          auto rewritten = next;
          rewritten.sequence = old.sequence;
          CHECK_FALSE(write_superblocks(path.io, rewritten));
        }
        Random random{torn};
        bench.disk->power_loss(random);
        auto path = bench.connect();
        auto found = read_superblocks(path.io, true);
        REQUIRE_MESSAGE(found, found.error().message());
        CHECK((*found == old || *found == next));
        if (at > 1) CHECK(*found == next);
        for (auto copy : {Copy::a, Copy::b}) {
          auto bytes = bench.content(place_of(copy, old.lun_size), disk::kSuperblockSize);
          CHECK(decode_superblock(bytes, copy).info == *found);
        }
      }
    }
  }
}

TEST_CASE(
    "superblock: a copy that is in the cache only is made durable before the other is written") {
  iscsi::RamDiskOptions options;
  options.write_cache = true;
  // Its writer dies before the flush of A, or of B, or is told that this failed.
  for (int unflushed : {1, 2})
    for (bool missed : {false, true})
      for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        CAPTURE(unflushed);
        CAPTURE(missed);
        CAPTURE(seed);
        LunBench bench{options};
        auto old = example_info(bench), next = next_of(old);
        for (auto copy : {Copy::a, Copy::b, Copy::c}) put(bench, old, copy);
        auto failing = [missed](int which) {
          auto count = std::make_shared<int>(0);
          return [=](const RamCommand& command) {
            RamFate fate;
            if (command.kind != RamCommand::Kind::flush || ++*count != which) return fate;
            fate.failure = missed ? Error{Errc::not_durable, "MEDIUM ERROR"}
                                  : Error{Errc::lun_lost, "the writer died"};
            fate.misses = missed;
            return fate;
          };
        };
        auto dying = bench.connect(failing(unflushed));
        auto rewritten = next;
        rewritten.sequence = old.sequence;
        CHECK_FALSE(write_superblocks(dying.io, rewritten));
        // The next one's power is lost before this or that flush of its own.
        auto after = next;
        after.chunks.push_back(after.data_offset + 4 * kChunkSize);
        auto path = bench.connect(failing(1 + static_cast<int>(seed % 4)));
        auto found = read_superblocks(path.io, true);
        if (found) {
          CHECK(*found == next);
          rewritten = after;
          rewritten.sequence = next.sequence;
          (void)write_superblocks(path.io, rewritten);
        }
        Random random{seed};
        bench.disk->power_loss(random);
        auto later = bench.connect();
        found = read_superblocks(later.io, true);
        REQUIRE_MESSAGE(found, found.error().message());
        if (unflushed == 2) CHECK(found->sequence >= next.sequence);
      }
}

TEST_CASE("superblock: the loss of either copy loses nothing") {
  for (auto lost : {Copy::a, Copy::b}) {
    LunBench bench;
    auto path = bench.connect();
    auto info = example_info(bench);
    REQUIRE(write_superblocks(path.io, info));
    bench.disk->poke(place_of(lost, info.lun_size), Buffer::zeroed(disk::kSuperblockSize).span());
    auto found = read_superblocks(path.io, false);
    REQUIRE(found);
    CHECK(*found == info);
    auto problems = superblock_problems(path.io);
    REQUIRE(problems);
    REQUIRE(problems->size() == 1);
    CHECK(problems->front() ==
          (lost == Copy::a ? "superblock A: not there" : "superblock B: not there"));
    // A mount repairs nothing; a coordinator does.
    CHECK(path.lun->counters().writes == 3);
    REQUIRE(read_superblocks(path.io, true));
    CHECK(superblock_problems(path.io)->empty());
  }
}

TEST_CASE("superblock: a flipped bit anywhere is found") {
  LunBench bench;
  auto good = encode_superblock(example_info(bench), Copy::a);
  for (std::size_t at = 0; at < good.size(); ++at) {
    CAPTURE(at);
    auto bad = Buffer::copy_of(good.span());
    bad.data()[at] ^= static_cast<std::byte>(1 << at % 8);
    CHECK(decode_superblock(bad.span(), Copy::a).state != FoundSuperblock::State::valid);
  }
}

TEST_CASE("superblock: arbitrary bytes with a right checksum are refused, never believed") {
  LunBench bench;
  auto info = example_info(bench);
  Random random{1};
  int refused = 0;
  for (int run = 0; run < 2000; ++run) {
    CAPTURE(run);
    auto bytes = edited(info, Copy::a, [&](disk::Superblock& block) {
      auto* from = reinterpret_cast<std::byte*>(&block);
      for (auto n = 1 + random.below(40); n > 0; --n)
        from[40 + random.below(1100 - 40)] = static_cast<std::byte>(random.next());
    });
    auto found = decode_superblock(bytes, Copy::a);
    if (found.state != FoundSuperblock::State::valid) {
      CHECK_FALSE(found.what.empty());
      ++refused;
      continue;
    }
    // What is believed can be written again, and is the same.
    CHECK(decode_superblock(encode_superblock(found.info, Copy::a).span(), Copy::a).info ==
          found.info);
  }
  CHECK(refused > 100);
}

TEST_CASE(
    "superblock: regions that share bytes or leave the LUN are damage, whatever the checksum") {
  LunBench bench;
  auto info = example_info(bench);
  using Edit = void (*)(disk::Superblock&);
  struct Case {
    Edit edit;
    std::string said;
  };
  const Case cases[] = {
      {[](auto& b) { b.slots_offset = 0; }, "superblock A and the heartbeat slots overlap"},
      {[](auto& b) { b.slots_offset = 8ull << 20; }, "the heartbeat slots"},
      {[](auto& b) { b.slots_offset = b.wal_offset + (1ull << 20); }, "the heartbeat slots"},
      {[](auto& b) { b.wal_offset = 8ull << 20; }, "superblock B"},
      {[](auto& b) { b.wal_size = b.wal_size + (1ull << 20); },
       "the log and the data area overlap"},
      {[](auto& b) { b.data_size = b.lun_size - b.data_offset; }, "superblock C"},
      {[](auto& b) { b.slots_offset = b.lun_size; }, "outside the LUN"},
      {[](auto& b) { b.wal_offset = ~0ull << 20; }, "outside the LUN"},
      {[](auto& b) { b.lun_size = 1ull << 62, b.wal_size = 2ull << 30; }, "larger than a log"},
      {[](auto& b) { b.lun_size = 4096; }, "too small"},
  };
  for (const auto& one : cases) {
    auto found = decode_superblock(edited(info, Copy::a, one.edit), Copy::a);
    CAPTURE(found.what);
    CHECK(found.state == FoundSuperblock::State::damaged);
    CHECK(found.what.find(one.said) != std::string::npos);
  }
}

TEST_CASE("superblock: damage in both copies is told of each") {
  LunBench bench;
  auto path = bench.connect();
  auto info = example_info(bench);
  REQUIRE(write_superblocks(path.io, info));
  bench.flip_bit(1000);
  // A copy of A where B belongs: a misdirected write.
  bench.disk->poke(disk::kSuperblockB, encode_superblock(info, Copy::a).span());
  auto found = read_superblocks(path.io, true);
  CHECK(found.error() == Errc::corrupt);
  auto said = found.error().message();
  CHECK(said.find("A: damaged (its checksum is wrong)") != std::string::npos);
  CHECK(said.find("B: damaged (a superblock that belongs elsewhere, copy number 0)") !=
        std::string::npos);
}

TEST_CASE(
    "superblock: copies of two volumes, or of one sequence that differ, are not chosen between") {
  LunBench bench;
  auto path = bench.connect();
  auto info = example_info(bench), other = info;
  put(bench, info, Copy::a);
  SUBCASE("two volumes") {
    other.id[0] ^= std::byte{1};
    other.sequence += 5;
    put(bench, other, Copy::b);
    CHECK(read_superblocks(path.io, true).error().message().find("two volumes") !=
          std::string::npos);
  }
  SUBCASE("one sequence") {
    other.epoch = Epoch{77};
    put(bench, other, Copy::b);
    CHECK(read_superblocks(path.io, true).error().message().find("yet differ") !=
          std::string::npos);
  }
  CHECK(read_superblocks(path.io, true).error() == Errc::corrupt);
}

TEST_CASE("superblock: a newer format is refused, whatever the other copy says") {
  LunBench bench;
  auto path = bench.connect();
  auto info = example_info(bench);
  using Edit = void (*)(disk::Superblock&);
  for (auto edit : {Edit{[](disk::Superblock& b) { b.format_version = 2; }},
                    Edit{[](disk::Superblock& b) { b.incompatible = 1; }},
                    Edit{[](disk::Superblock& b) { b.read_only_compatible = 1ull << 40; }}}) {
    put(bench, info, Copy::a);
    put(bench, info, Copy::b);
    bench.disk->poke(disk::kSuperblockB, edited(info, Copy::b, edit));
    auto found = read_superblocks(path.io, true);
    CHECK(found.error() == Errc::refused);
    CHECK(found.error().message().find("newer csvfs") != std::string::npos);
  }
  // A feature that may be ignored is.
  bench.disk->poke(disk::kSuperblockB,
                   edited(info, Copy::b, [](disk::Superblock& b) { b.compatible = 1; }));
  CHECK(read_superblocks(path.io, true));
}

TEST_CASE("superblock: a LUN that is no volume is told by what it holds") {
  LunBench bench;
  auto path = bench.connect();
  auto found = read_superblocks(path.io, true);
  CHECK(found.error() == Errc::refused);
  CHECK(found.error().message().find("not formatted") != std::string::npos);
  auto block = std::vector<std::byte>(512);
  std::memcpy(block.data(), "XFSB", 4);
  bench.disk->poke(0, block);
  CHECK(read_superblocks(path.io, true).error().message().find("an XFS file system") !=
        std::string::npos);
  LunBench tiny{{}, 4};
  auto tiny_path = tiny.connect();
  CHECK(read_superblocks(tiny_path.io, true).error() == Errc::refused);
}

TEST_CASE("superblock: a LUN that shrank is refused, one that grew is not") {
  LunBench bench;
  auto path = bench.connect();
  auto info = example_info(bench);
  put(bench, info, Copy::a);
  LunBench smaller{{}, 500}, larger{{}, 600};
  for (auto* each : {&smaller, &larger}) {
    each->disk->poke(0, encode_superblock(info, Copy::a).span());
    auto to = each->connect();
    auto found = read_superblocks(to.io, false);
    CHECK(static_cast<bool>(found) == (each == &larger));
    if (!found) CHECK(found.error().message().find("shrank") != std::string::npos);
  }
}

TEST_CASE("superblock: long identities that differ at their end stay different") {
  iscsi::TargetProfile one, two;
  one.identity = "naa.6001405c5f000001";
  CHECK(lun_identity(one) == one.identity);
  one.identity = std::string(200, 'x') + "1";
  two.identity = std::string(200, 'x') + "2";
  CHECK(lun_identity(one).size() == 127);
  CHECK(lun_identity(one) != lun_identity(two));
}

TEST_CASE("heartbeat slots: no two nodes or roles share one, and all lie in their region") {
  LunBench bench;
  auto info = example_info(bench);
  std::vector<std::uint64_t> seen;
  for (std::uint8_t node = 1; node < 64; ++node)
    for (auto role : {KeyRole::mount, KeyRole::coordinator, KeyRole::heartbeat}) {
      auto at = slot_offset(info, NodeId{node}, role);
      CHECK(at >= info.slots_offset);
      CHECK(at + 4096 <= info.slots_offset + (1u << 20));
      CHECK(std::find(seen.begin(), seen.end(), at) == seen.end());
      seen.push_back(at);
    }
}
