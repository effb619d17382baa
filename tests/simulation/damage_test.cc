#include <array>
#include <cstring>

#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume_format.h"
#include "tests/simulation/stage.h"

// What rots on the LUN is found, said, and goes no further. That it would do harm is shown where
// the damage is such that no checksum tells, as for code that does not look at them.

using namespace csv;
using namespace csv::sim;
using namespace csv::sim::stage;
using namespace std::chrono_literals;

namespace {

using Bytes = std::vector<std::byte>;

Bytes peek(Cluster& cluster, std::uint64_t at, std::size_t length) {
  Bytes bytes(length);
  cluster.volume().disk->peek(at, bytes);
  return bytes;
}

volume::VolumeInfo superblock(Cluster& cluster) {
  auto found = volume::decode_superblock(peek(cluster, 0, 16 << 10), volume::Copy::a);
  REQUIRE(found.state == volume::FoundSuperblock::State::valid);
  return found.info;
}

/// The catalog's page with the name of the file, of those that a small volume has.
struct NamedPage {
  std::uint32_t number = 0;
  std::uint64_t at = 0;
  Bytes bytes;
  std::size_t name = 0;  ///< Where in the page it stands.
};
constexpr std::uint32_t kPages = 256;

NamedPage page_with(Cluster& cluster, const volume::VolumeInfo& info, std::string_view name) {
  for (std::uint32_t number = 1; number <= kPages; ++number) {
    auto at = volume::place_of_page(info, number);
    auto bytes = peek(cluster, at, volume::disk::kPageSize);
    std::string_view text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    auto found = text.find(name);
    if (found != std::string_view::npos) return {number, at, std::move(bytes), found};
  }
  FAIL("no page of the catalog has the name ", name);
  return {};
}

/// Gives the volume up in good order, so that its log has been copied back.
std::size_t give_up(Stage& stage) {
  auto node = *stage.cluster.coordinator();
  bool stopped = false;
  stage.cluster.stop_governing();
  stage.cluster.csvd(node)->stop_volume([&stopped] { stopped = true; });
  REQUIRE(stage.until(30s, [&] { return stopped; }));
  return node;
}

}  // namespace

TEST_CASE("damage: a page of the catalog that rotted stops the volume, and nothing comes of it") {
  bool unseen = false;
  SUBCASE("as it is") {}
  SUBCASE("without checksums, which is found out") { unseen = true; }
  Stage stage{three_nodes(false)};
  auto node = give_up(stage);
  auto info = superblock(stage.cluster);
  // All of the log has been copied back, but it is still there, and is looked at first.
  stage.cluster.volume().disk->poke(info.wal_offset, Bytes(4096));
  stage.cluster.volume().disk->poke(info.wal_offset + info.wal_size - 4096, Bytes(4096));
  auto page = page_with(stage.cluster, info, "image");
  page.bytes[page.name + 4] = std::byte{'f'};
  if (unseen) {
    volume::disk::PageTail tail{volume::page_checksum(info.id, page.number, page.bytes), 0};
    std::memcpy(page.bytes.data() + page.bytes.size() - sizeof tail, &tail, sizeof tail);
  }
  stage.cluster.volume().disk->poke(page.at, page.bytes);
  auto first = volume::place_of_page(info, 1);
  auto catalog = peek(stage.cluster, first, kPages * volume::disk::kPageSize);

  auto found = nothing_yet<Expected<wire::Attr>>();
  stage.begin(1, find(stage.mount(1), "image", found));
  stage.cluster.csvd(node)->start_volume();
  std::string reason;
  bool served_it = stage.until(20s, [&] {
    const auto& why = stage.cluster.csvd(node)->reason();
    if (why.find("checksum") != std::string::npos) reason = why;
    return found->has_value();
  });
  // It is acknowledged and there: any other answer is wrong. None is right.
  CHECK(served_it == unseen);
  if (unseen) {
    REQUIRE_FALSE(**found);
    CHECK((**found).error() == std::errc::no_such_file_or_directory);
    return;
  }
  INFO(reason);
  CHECK(reason.find("catalog page " + std::to_string(page.number)) != std::string::npos);
  CHECK(peek(stage.cluster, first, catalog.size()) == catalog);
}

TEST_CASE("damage: one superblock that rotted is made good, two stop the volume") {
  bool both = false;
  SUBCASE("one") {}
  SUBCASE("two") { both = true; }
  Stage stage{three_nodes(false)};
  auto node = give_up(stage);
  auto size = superblock(stage.cluster).lun_size;
  auto place = [size](volume::Copy copy) { return volume::place_of(copy, size); };
  auto rot = [&](volume::Copy copy) {
    auto block = peek(stage.cluster, place(copy), 4096);
    block[80] ^= std::byte{1};  // the coordinator's key
    stage.cluster.volume().disk->poke(place(copy), block);
  };
  rot(volume::Copy::b);
  if (both) rot(volume::Copy::a);
  // All but the signs of life.
  auto metadata = [&] {
    auto bytes = peek(stage.cluster, 0, 1 << 20);
    auto more = peek(stage.cluster, 2 << 20, 18 << 20);
    bytes.insert(bytes.end(), more.begin(), more.end());
    return bytes;
  };
  auto before = metadata();
  auto found = nothing_yet<Expected<wire::Attr>>();
  stage.begin(1, find(stage.mount(1), "image", found));
  stage.cluster.csvd(node)->start_volume();
  CHECK(stage.until(20s, [&] { return found->has_value(); }) == !both);
  if (both) {
    const auto& why = stage.cluster.csvd(node)->reason();
    INFO(why);
    CHECK(why.find("checksum") != std::string::npos);
    CHECK((metadata() == before));
    return;
  }
  REQUIRE(**found);
  auto b = volume::decode_superblock(peek(stage.cluster, place(volume::Copy::b), 16 << 10),
                                     volume::Copy::b);
  CHECK(b.info == superblock(stage.cluster));
}
