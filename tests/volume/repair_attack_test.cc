// Chance breaks volumes. A check never calls one clean that is not as it was, a repair never ends
// but well or with an error, and no file ever reads what another has written.
//
// CSV_ATTACK_ROUNDS=N for more rounds than the usual few, CSV_ATTACK_SEED=N to begin elsewhere.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <set>

#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"
#include "tests/volume/repair_bed.h"

using namespace csv;
using namespace csv::volume;

namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const auto* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

/// What a block of a file has in it: whose it is, and where in the file.
struct Stamp {
  std::uint64_t magic = 0x7374616d70656421, inode = 0, file_block = 0;
  friend bool operator==(const Stamp&, const Stamp&) = default;
};

/// A volume with a past: files that were removed, cut and given other files' former blocks, and
/// each written block says whose it is.
struct Attacked : RepairBed {
  Attacked() {
    use([&](Catalog& catalog) { live(catalog, "r"); });
    stamp_all();
    for (std::uint32_t number = 1; number <= 160; ++number)
      older.push_back(bench.content(place_of_page(info(), number), 4096));
    use([&](Catalog& catalog) { live(catalog, "s"); });
    stamp_all();
    // Something in the log, and what was there before in the database.
    use([&](Catalog& catalog) { change_some(catalog); }, false);
    stamp_all();
    info_ = info();
    before = files();
    find_whose();
    keep();
  }

  void live(Catalog& catalog, const std::string& prefix) {
    for (int round = 0; round < 6; ++round) {
      for (int i = 0; i < 120; ++i)
        change(catalog, [&](Catalog& c) -> Expected<void> {
          auto made = CSV_TRY(c.make(inodes.at("dir"), fmt::format("{}{}-{}", prefix, round, i),
                                     {.mode = S_IFREG | 0644}, 6000 + round));
          auto blocks = 1 + random.below(9);
          auto runs = CSV_TRY(c.reserve_space(made.inode, blocks, 0, 8));
          CSV_TRY(c.place(made.inode, random.below(3), runs, BlockState::written, {}));
          CSV_TRY(c.grow(made.inode, (blocks + 3) * kBlockSize, 6000 + round));
          return {};
        });
      for (int i = 0; i < 120; ++i) {
        if (random.below(3) == 0) continue;
        change(catalog, [&](Catalog& c) -> Expected<void> {
          auto name = fmt::format("{}{}-{}", prefix, round, i);
          auto found = CSV_TRY(c.lookup(inodes.at("dir"), name));
          if (random.below(4) == 0) {
            CSV_TRY(c.truncate(found.inode, kBlockSize, 7000 + round));
            return {};
          }
          CSV_TRY(c.unlink(inodes.at("dir"), name, 7000 + round));
          return c.reap(found.inode);
        });
      }
      for (int i = 0; i < 5; ++i) {
        REQUIRE(catalog.maintain());
        auto dying = *catalog.dying(1000);
        if (!dying.empty()) change(catalog, [&](Catalog& c) { return c.make_free(dying); });
      }
    }
  }
  void change_some(Catalog& catalog) {
    for (int i = 0; i < 30; ++i)
      change(catalog, [&](Catalog& c) -> Expected<void> {
        auto made =
            CSV_TRY(c.make(kRootInode, "last" + std::to_string(i), {.mode = S_IFREG | 0644}, 8000));
        auto runs = CSV_TRY(c.reserve_space(made.inode, 2, 0, 8));
        CSV_TRY(c.place(made.inode, 0, runs, BlockState::written, {}));
        CSV_TRY(c.grow(made.inode, 2 * kBlockSize, 8000));
        return {};
      });
  }

  /// Calls `each` with every written block of every inode.
  void blocks(const std::function<void(InodeId, std::uint64_t, std::uint64_t)>& each) {
    auto path = bench.connect();
    auto found = read_superblocks(path.io, false);
    REQUIRE_MESSAGE(found, found.error().message());
    auto store = open_catalog_store(path.io, *found, random, StoreAccess::read_only);
    REQUIRE_MESSAGE(store, store.error().message());
    auto database = Database::open((*store)->path(), (*store)->vfs(), {.read_only = true});
    REQUIRE_MESSAGE(database, database.error().message());
    Statement list{"SELECT inode,file_block,count,lun_block,written_count,written FROM extents"};
    auto row = (*database)->use(list);
    for (;;) {
      auto more = row.row();
      REQUIRE(more);
      if (!*more) break;
      auto bits = row.bytes(5);
      for (std::uint64_t i = 0; i < row.u64(2); ++i) {
        bool written = row.u64(4) == row.u64(2) ||
                       (row.u64(4) > 0 && i / 8 < bits.size() &&
                        ((static_cast<unsigned char>(bits[i / 8]) >> (i % 8)) & 1) != 0);
        if (written) each(InodeId{row.u64(0)}, row.u64(1) + i, row.u64(3) + i);
      }
    }
  }
  void stamp_all() {
    blocks([&](InodeId inode, std::uint64_t file_block, std::uint64_t lun_block) {
      std::vector<std::byte> block(512);
      Stamp stamp{.inode = raw(inode), .file_block = file_block};
      std::memcpy(block.data(), &stamp, sizeof stamp);
      bench.disk->poke(lun_block * kBlockSize, block);
    });
  }
  Stamp stamp_at(std::uint64_t lun_block) {
    std::vector<std::byte> block(512);
    bench.disk->peek(lun_block * kBlockSize, block);
    Stamp stamp;
    std::memcpy(&stamp, block.data(), sizeof stamp);
    return stamp;
  }
  void find_whose() {
    blocks([&](InodeId inode, std::uint64_t file_block, std::uint64_t lun_block) {
      REQUIRE(stamp_at(lun_block) == Stamp{.inode = raw(inode), .file_block = file_block});
    });
  }

  /// Blocks that read as what another file wrote; files made of lost blocks may have one owner.
  std::vector<std::string> mixed_up() {
    std::vector<std::string> out;
    std::map<InodeId, std::set<std::uint64_t>> owners;
    blocks([&](InodeId inode, std::uint64_t file_block, std::uint64_t lun_block) {
      auto stamp = stamp_at(lun_block);
      if (stamp.magic != Stamp{}.magic) {
        out.push_back(fmt::format("block {} of inode {} is no file's: LUN block {}", file_block,
                                  raw(inode), lun_block));
        return;
      }
      if (known.contains(raw(inode)) &&
          stamp != Stamp{.inode = raw(inode), .file_block = file_block})
        out.push_back(fmt::format("block {} of inode {} is block {} of inode {}", file_block,
                                  raw(inode), stamp.file_block, stamp.inode));
      owners[inode].insert(stamp.inode);
    });
    for (const auto& [inode, of] : owners)
      if (of.size() > 1) out.push_back(fmt::format("inode {} has blocks of many", raw(inode)));
    return out;
  }

  void keep() {
    std::vector<std::byte> part(kPart);
    for (std::uint64_t at = 0; at < bench.disk->options().geometry.size_bytes(); at += kPart) {
      bench.disk->peek(at, part);
      if (std::any_of(part.begin(), part.end(), [](std::byte b) { return b != std::byte{}; }))
        parts.emplace_back(at, part);
    }
    for (std::uint64_t id = 0; id < 5000; ++id) known.insert(id);
  }
  /// As it was.
  void restore() {
    bench.disk = iscsi::RamDisk::create(bench.disk->options());
    for (const auto& [at, bytes] : parts) bench.disk->poke(at, bytes);
  }

  void patch(std::uint64_t where, std::size_t size,
             const std::function<void(std::span<std::byte>)>& with) {
    auto bytes = bench.content(where, size);
    with(bytes);
    bench.disk->poke(where, bytes);
  }

  static constexpr std::uint64_t kPart = 64 << 10;
  VolumeInfo info_;
  std::map<std::string, std::string> before;
  std::vector<std::pair<std::uint64_t, std::vector<std::byte>>> parts;
  std::set<std::uint64_t> known;
  std::vector<std::vector<std::byte>> older;  ///< Pages as they were for a while.
};

enum class Harm {
  flips,
  zeros,
  many_flips,
  log,
  structures,
  mixture,
  flips_with_right_sums,  ///< From here on what cannot be told from the truth.
  older_pages,            ///< The LUN lost a write and says nothing.
};

void harm(Attacked& v, Random& chance, Harm how) {
  const auto& info = v.info_;
  auto page_at = [&] {
    return place_of_page(info, 1 + static_cast<std::uint32_t>(chance.below(160)));
  };
  auto flip = [&](std::span<std::byte> bytes) {
    auto at = chance.below(bytes.size());
    bytes[at] ^= static_cast<std::byte>(1u << chance.below(8));
    if (chance.below(3) == 0) bytes[at] = static_cast<std::byte>(chance.below(256));
  };
  auto one = [&](Harm kind) {
    switch (kind) {
      case Harm::flips: return v.patch(page_at(), 4096, flip);
      case Harm::flips_with_right_sums: {
        auto number = 1 + static_cast<std::uint32_t>(chance.below(160));
        return v.patch(place_of_page(info, number), 4096, [&](std::span<std::byte> bytes) {
          for (auto n = 1 + chance.below(4); n > 0; --n) flip(bytes);
          disk::PageTail tail{page_checksum(info.id, number, bytes), 0};
          std::memcpy(bytes.data() + 4096 - sizeof tail, &tail, sizeof tail);
        });
      }
      case Harm::zeros:
        return v.patch(page_at(), 4096, [&](std::span<std::byte> bytes) {
          std::fill(bytes.begin(), bytes.end(), std::byte{});
        });
      case Harm::many_flips:
        for (int n = 0; n < 8; ++n) v.patch(page_at(), 4096, flip);
        return;
      case Harm::log: {
        auto at = info.wal_offset + chance.below(160) * 4096;
        return v.patch(at, 4096, flip);
      }
      case Harm::structures:
        switch (chance.below(6)) {
          case 0: return v.patch(place_of(Copy::a, info.lun_size), 16384, flip);
          case 1: return v.patch(place_of(Copy::b, info.lun_size), 16384, flip);
          case 2: return v.patch(place_of(Copy::c, info.lun_size), 16384, flip);
          case 3: return v.patch(info.chunks[chance.below(info.chunks.size())], 4096, flip);
          case 4: return v.patch(place_of_log_mark(info), 4096, flip);
          default: return v.patch(info.wal_offset, 512, flip);
        }
      case Harm::older_pages: {
        auto number = 1 + static_cast<std::uint32_t>(chance.below(v.older.size()));
        v.bench.disk->poke(place_of_page(info, number), v.older[number - 1]);
        return;
      }
      case Harm::mixture: return;
    }
  };
  for (auto n = 1 + chance.below(how == Harm::log ? 3 : 6); n > 0; --n)
    one(how == Harm::mixture ? static_cast<Harm>(chance.below(5)) : how);
}

std::set<std::string> paths_of(const std::map<std::string, std::string>& files) {
  std::set<std::string> out;
  for (const auto& [path, text] : files) out.insert(path);
  return out;
}

}  // namespace

TEST_CASE("repair: whatever chance breaks, nobody reads what another has written") {
  Attacked v;
  REQUIRE(v.mixed_up().empty());
  REQUIRE(v.problems() == "");
  auto seed = from_environment("CSV_ATTACK_SEED", 1);
  auto rounds = from_environment("CSV_ATTACK_ROUNDS", 40);
  std::map<std::string, int> outcomes;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    Random chance{seed + round};
    auto how = static_cast<Harm>(chance.below(8));
    INFO("seed " << seed + round << " harm " << static_cast<int>(how));
    // Behind right checksums a name, a time or a place is as good as another: then only what fits
    // together can be asked for.
    bool bitten = how < Harm::flips_with_right_sums;
    v.restore();
    harm(v, chance, how);
    if (v.problems() == "") {
      ++outcomes["clean"];
      CHECK((!bitten || v.files() == v.before));
      continue;
    }
    auto path = v.bench.connect();
    auto plan = Repair::prepare(path.io, {.work_file = v.work_file(), .now = WallTime{9000}});
    if (!plan) {
      ++outcomes["refused: " + plan.error().message().substr(0, 60)];
      continue;
    }
    if (!(*plan)->has_work()) {
      ++outcomes["nothing to do"];
      FAIL_CHECK("the check found something, and the repair nothing to do");
      continue;
    }
    auto applied = (*plan)->apply(path.io);
    REQUIRE_MESSAGE(applied, applied.error().message());
    auto left = v.problems();
    CHECK_MESSAGE(left == "", left);
    auto mixed = v.mixed_up();
    CHECK_MESSAGE((!bitten || mixed.empty()),
                  mixed.size() << " blocks, the first: " << (mixed.empty() ? "" : mixed.front()));
    bool all = paths_of(v.files()) == paths_of(v.before);
    ++outcomes[all ? "repaired" : "repaired, names lost"];
    std::error_code ignored;
    for (const auto& each : std::filesystem::directory_iterator{v.directory})
      std::filesystem::remove(each.path(), ignored);
  }
  for (const auto& [what, count] : outcomes) MESSAGE(what << ": " << count);
}
