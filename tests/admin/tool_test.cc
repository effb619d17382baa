// A command's LUN, and who else uses it.
#include "coordinator/admin/tool.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "coordinator/admin/volume_commands.h"
#include "coordinator/volume/superblock.h"
#include "csvfs/base/buffer.h"
#include "iscsi/ram_lun.h"
#include "tests/fakes/manual_loop.h"

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

TEST_CASE("reservation clear: not while somebody may be using the LUN, whatever is answered") {
  VolumeFile v;
  auto user = v.open();
  auto& lun = user->blocking();
  // Who is registered hears of a CLEAR with the next command.
  auto watching = v.open();
  auto& look = watching->blocking();
  AsioLoop clock;
  Terminal terminal{clock, false, false};
  auto keys = [&look] { return look.read_keys()->keys.size(); };
  auto key = [](KeyRole role) {
    return make_key({.cluster = 7, .node = NodeId{2}, .role = role, .number = 5});
  };
  ClearRequest clear{{v.url, {}}, true, false};
  using Type = iscsi::ReservationType;
  SUBCASE("a mount") {
    REQUIRE(lun.register_key(key(KeyRole::mount)));
    REQUIRE(lun.reserve(key(KeyRole::mount), Type::exclusive_access_registrants_only));
  }
  SUBCASE("a mount, and a reservation that is not ours") {
    REQUIRE(lun.register_key(key(KeyRole::mount)));
    REQUIRE(lun.reserve(key(KeyRole::mount), Type::exclusive_access));
  }
  SUBCASE("a coordinator that has not closed the volume") {
    auto info = v.info;
    info.coordinator_key = key(KeyRole::coordinator);
    info.coordinator = NodeId{2};
    REQUIRE(volume::write_superblocks(lun, info));
    REQUIRE(lun.register_key(key(KeyRole::coordinator)));
    REQUIRE(lun.reserve(key(KeyRole::coordinator), Type::exclusive_access_registrants_only));
  }
  auto before = look.read_reservation()->type;
  CHECK(clear_reservation(clear, terminal) == ExitCode::not_confirmed);
  CHECK(keys() == 1);
  CHECK(look.read_reservation()->type == before);
  // The word that is for it is not the one that is for not being asked.
  clear.yes = false;
  clear.despite_users = true;
  CHECK(clear_reservation(clear, terminal) == ExitCode::not_confirmed);
  CHECK(keys() == 1);
  clear.yes = true;
  CHECK(clear_reservation(clear, terminal) == ExitCode::done);
  CHECK(keys() == 0);
  CHECK(look.read_reservation()->type == Type::none);
}

TEST_CASE("reservation clear: what a coordinator left that closed the volume is removed") {
  VolumeFile v;
  auto user = v.open();
  auto& lun = user->blocking();
  // Who is registered hears of a CLEAR with the next command.
  auto watching = v.open();
  auto& look = watching->blocking();
  AsioLoop clock;
  Terminal terminal{clock, false, false};
  auto key = make_key({.cluster = 7, .node = NodeId{2}, .role = KeyRole::coordinator, .number = 5});
  REQUIRE(lun.register_key(key));
  REQUIRE(lun.reserve(key, iscsi::ReservationType::exclusive_access_registrants_only));
  CHECK(clear_reservation({{v.url, {}}, true, false}, terminal) == ExitCode::done);
  CHECK(look.read_keys()->keys.empty());
}

TEST_CASE("terminal: what takes long says how far it is, in one line that is gone at the end") {
  std::string pattern = std::filesystem::temp_directory_path() / "csv-tool-XXXXXX";
  int written = ::mkstemp(pattern.data()), before = ::dup(STDERR_FILENO);
  REQUIRE(written >= 0);
  auto shown = [&] {
    std::ifstream file{pattern};
    return std::string{std::istreambuf_iterator<char>{file}, {}};
  };
  fakes::ManualLoop clock;
  Terminal people{clock, false, true}, nobody{clock, false, false};
  REQUIRE(::dup2(written, STDERR_FILENO) >= 0);
  people.progress("checking it", 0, 200);
  clock.run_for(1900ms);
  people.progress("checking it", 10, 200);
  auto at_first = shown();
  clock.run_for(200ms);
  people.progress("checking it", 30, 200);
  people.progress("checking it", 40, 200);  // sooner than anybody reads
  nobody.progress("checking it", 40, 200);
  clock.run_for(300ms);
  people.progress("csvd works", 2400ms);
  auto later = shown();
  people.progress("");
  people.progress("");
  auto at_last = shown();
  REQUIRE(::dup2(before, STDERR_FILENO) >= 0);
  ::close(before);
  ::close(written);
  std::filesystem::remove(pattern);
  CHECK(at_first == "");
  CHECK(later == "\r\033[Kchecking it: 15 %\r\033[Kcsvd works: 2 s");
  CHECK(at_last == later + "\r\033[K");
}
