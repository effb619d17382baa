// A LUN that was enlarged: the volume grows with it, cut short anywhere.
#include "coordinator/volume/grow.h"

#include <sys/stat.h>

#include "coordinator/volume/superblock.h"
#include "tests/volume/repair_bed.h"

using namespace csv;
using namespace csv::volume;

namespace {

constexpr std::uint64_t kBefore = 365, kAfter = 800;

/// A volume of 365 MiB, with a last group that is cut short, on a LUN that has more by now.
struct GrownBed : RepairBed {
  GrownBed() : RepairBed{kBefore} { bench.resize(kAfter); }
  std::uint64_t total() {
    std::uint64_t blocks = 0;
    use([&](Catalog& c) { blocks = c.space()->total; });
    return blocks;
  }
};

iscsi::RamPlan dies_after(std::uint64_t writes) {
  auto seen = std::make_shared<std::uint64_t>(0);
  return [seen, writes](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind != iscsi::RamCommand::Kind::write &&
        command.kind != iscsi::RamCommand::Kind::zero)
      return fate;
    if ((*seen)++ < writes) return fate;
    fate.failure = Error{std::errc::io_error, "the LUN is gone"};
    // Half of a superblock is all of it that changes: so the first write leaves nothing.
    if (*seen == writes + 1 && writes > 0) fate.torn_blocks = command.length / 512 / 2;
    return fate;
  };
}

}  // namespace

TEST_CASE("grow: the volume has the whole LUN, and its files are as they were") {
  GrownBed v;
  auto before = v.files();
  auto old = v.info();
  auto path = v.bench.connect();
  auto info = grow(path.io, v.random);
  REQUIRE_MESSAGE(info, info.error().message());
  CHECK(info->lun_size == kAfter << 20);
  CHECK(info->data_size == old.data_size + ((kAfter - kBefore) << 20));
  CHECK(v.problems() == "");
  CHECK(v.files() == before);
  CHECK(v.total() == info->data_size / kBlockSize);
  // Superblock C is at the new end.
  auto copies = read_superblock_copies(path.io);
  REQUIRE(copies);
  CHECK(copies->c.state == FoundSuperblock::State::valid);
  // All of it can be used.
  v.use([](Catalog& catalog) {
    RepairBed::change(catalog, [](Catalog& c) -> Expected<void> {
      auto file = CSV_TRY(c.make(kRootInode, "large", {.mode = S_IFREG | 0644}, 1));
      auto space = CSV_TRY(c.space());
      auto runs = CSV_TRY(c.reserve_space(file.inode, space.free - space.dying, 0, 10000));
      return c.place(file.inode, 0, runs, BlockState::unwritten, {});
    });
    CHECK(catalog.space()->free == catalog.space()->dying);
  });
  CHECK(v.problems() == "");
}

TEST_CASE("grow: a LUN that is as large as it was is refused, and nothing is written") {
  RepairBed v;
  auto path = v.bench.connect();
  CHECK(grow(path.io, v.random).error() == Errc::refused);
  CHECK(path.lun->counters().writes == 0);
}

TEST_CASE("grow: a thin LUN without space at its new end keeps the volume's size") {
  GrownBed v;
  auto before = v.files();
  auto old = v.info();
  auto path = v.bench.connect([](const iscsi::RamCommand& command) {
    iscsi::RamFate fate;
    if (command.kind == iscsi::RamCommand::Kind::write && command.offset >= kBefore << 20)
      fate.failure = Error{std::errc::no_space_on_device, "the pool is full"};
    return fate;
  });
  CHECK(grow(path.io, v.random).error() == std::errc::no_space_on_device);
  CHECK(v.info() == old);
  CHECK(v.problems() == "");
  CHECK(v.files() == before);
}

TEST_CASE("grow: cut short anywhere it is finished by whoever opens the volume, or begun anew") {
  bool old_seen = false, new_seen = false;
  for (std::uint64_t writes = 0; writes < 40; ++writes) {
    CAPTURE(writes);
    GrownBed v;
    auto before = v.files();
    auto old = v.info();
    auto path = v.bench.connect(dies_after(writes));
    auto grown_now = grow(path.io, v.random);
    CHECK(v.files() == before);  // a coordinator opens it, and mends the superblocks
    auto info = v.info();
    (info.data_size == old.data_size ? old_seen : new_seen) = true;
    CHECK(v.total() == info.data_size / kBlockSize);
    if (info.data_size == old.data_size) {
      auto again = v.bench.connect();
      REQUIRE(grow(again.io, v.random));
    } else {
      // What a crash may leave damaged is superblock C.
      auto left = v.problems();
      CHECK((left == "" || left.find("superblock C") == 0));
      v.repair();
    }
    CHECK(v.problems() == "");
    CHECK(v.total() == (old.data_size + ((kAfter - kBefore) << 20)) / kBlockSize);
    if (grown_now) {
      CHECK(old_seen);
      CHECK(new_seen);
      return;
    }
  }
  FAIL("it never got to its end");
}
