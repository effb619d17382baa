// A command's LUN, and who else uses it.
#include "coordinator/admin/tool.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "coordinator/volume/superblock.h"
#include "csvfs/base/buffer.h"
#include "iscsi/ram_lun.h"

using namespace csv;
using namespace csv::admin;

namespace {

/// A volume in a file. Its reservations last as long as somebody in this process has it open.
struct VolumeFile {
  VolumeFile() {
    std::string pattern = std::filesystem::temp_directory_path() / "csv-tool-XXXXXX";
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    directory = pattern;
    auto path = directory / "volume.img";
    { std::ofstream{path}; }
    std::filesystem::resize_file(path, 400ull << 20);
    url = "file:" + path.string();
    auto opened = open();
    auto made =
        volume::format(opened->blocking(), {.label = "volume1", .cluster = 7, .claim_space = false},
                       random, WallTime{1});
    REQUIRE_MESSAGE(made, made.error().message());
    info = *made;
  }
  ~VolumeFile() { std::filesystem::remove_all(directory); }
  [[nodiscard]] std::unique_ptr<ToolLun> open() const {
    auto opened = ToolLun::open(url, {});
    REQUIRE_MESSAGE(opened, opened.error().message());
    return *std::move(opened);
  }
  std::filesystem::path directory;
  std::string url;
  Random random{3};
  volume::VolumeInfo info;
};

}  // namespace

TEST_CASE("sole use: a tool's key is the volume's own, and stays, with the reservation") {
  VolumeFile v;
  auto watching = v.open();
  {
    auto lun = v.open();
    auto alone = SoleUse::enter(*lun, 0, v.random);
    REQUIRE_MESSAGE(alone, alone.error().message());
    CHECK((*alone)->users().in_words() == "");
    REQUIRE((*alone)->take());
    (*alone)->belongs_to(7);
  }
  auto keys = watching->blocking().read_keys();
  REQUIRE(keys);
  REQUIRE(keys->keys.size() == 1);
  CHECK(parts_of(keys->keys[0]).cluster == 7);
  CHECK(watching->blocking().read_reservation()->type != iscsi::ReservationType::none);
}

TEST_CASE("sole use: a tool that only looked leaves nothing") {
  VolumeFile v;
  auto watching = v.open();
  {
    auto lun = v.open();
    REQUIRE(SoleUse::enter(*lun, 0, v.random));
  }
  CHECK(watching->blocking().read_keys()->keys.empty());
}

TEST_CASE("sole use: a key that turned out to be of another cluster is not left in the way") {
  VolumeFile v;
  auto watching = v.open();
  for (auto copy : {volume::Copy::a, volume::Copy::b, volume::Copy::c})
    REQUIRE(
        watching->blocking().write(place_of(copy, v.info.lun_size), Buffer::zeroed(16384).span()));
  {
    auto lun = v.open();
    auto alone = SoleUse::enter(*lun, 0, v.random);
    REQUIRE_MESSAGE(alone, alone.error().message());
    REQUIRE((*alone)->take());
    (*alone)->belongs_to(7);
  }
  CHECK(watching->blocking().read_keys()->keys.empty());
  CHECK(watching->blocking().read_reservation()->type == iscsi::ReservationType::none);
}
