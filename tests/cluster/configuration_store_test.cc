#include "coordinator/cluster/configuration_store.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "coordinator/protocol/group.pb.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"
#include "tests/fakes/inline_worker.h"
#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::cluster;
namespace fs = std::filesystem;

namespace {

Kept kept(std::uint64_t sequence) {
  Kept out;
  out.promised = {0, 4, 0};
  out.configuration.emplace();
  out.configuration->tag = {0, 3, sequence};
  out.configuration->cluster = 7;
  out.configuration->name = "c";
  out.configuration->nodes[NodeId{1}] = {"n1", "192.0.2.1:7400"};
  out.configuration->ballot.now.nodes[NodeId{1}] = 1;
  return out;
}

/// A node's folder, written by a store whose waiting is done at once.
struct Folder {
  Folder() : path{"/tmp/csvfs-store-test-" + std::to_string(::getpid())} { fs::remove_all(path); }
  ~Folder() { fs::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  Expected<void> save(const Kept& what) {
    fakes::ManualLoop loop;
    ConfigurationFiles files{loop, std::make_unique<fakes::InlineWorker>(loop), path};
    Expected<void> result{Errc::retry};
    files.save(what, [&result](Expected<void> said) { result = std::move(said); });
    loop.settle();
    return result;
  }
  [[nodiscard]] std::string a() const { return path + "/cluster-a"; }
  [[nodiscard]] std::string b() const { return path + "/cluster-b"; }
  static std::string content(const std::string& file) {
    std::ifstream in{file, std::ios::binary};
    return {std::istreambuf_iterator<char>{in}, {}};
  }
  static void put(const std::string& file, const std::string& text) {
    std::ofstream{file, std::ios::binary | std::ios::trunc} << text;
  }

  std::string path;
};

/// The file with its checksum put right again: what a program of another version may have written.
std::string summed(std::string text) {
  Le32 length{static_cast<std::uint32_t>(text.size() - 16)};
  Le32 crc{crc32c(std::as_bytes(std::span{text}.subspan(16)))};
  std::memcpy(text.data() + 8, &length, 4);
  std::memcpy(text.data() + 12, &crc, 4);
  return text;
}

}  // namespace

TEST_CASE("configuration store: a new node has nothing, and nothing is made by looking") {
  Folder folder;
  auto found = ConfigurationFiles::read(folder.path);
  REQUIRE(found);
  CHECK(found->kept == Kept{});
  CHECK(!fs::exists(folder.path));
}

TEST_CASE("configuration store: what was saved is read, in both files") {
  Folder folder;
  REQUIRE(folder.save(kept(1)));
  REQUIRE(folder.save(kept(2)));
  auto found = ConfigurationFiles::read(folder.path);
  REQUIRE(found);
  CHECK(found->kept == kept(2));
  CHECK(found->damage.empty());
  CHECK(Folder::content(folder.a()) == Folder::content(folder.b()));
  CHECK((fs::status(folder.a()).permissions() & fs::perms::others_all) == fs::perms::none);
  Kept promise;
  promise.promised = {1, 2, 3};
  REQUIRE(folder.save(promise));
  CHECK(ConfigurationFiles::read(folder.path)->kept == promise);
}

TEST_CASE("configuration store: that a node prevents a quorum is kept, and taken back") {
  Folder folder;
  auto told = kept(1);
  told.prevents = true;
  REQUIRE(folder.save(told));
  CHECK(ConfigurationFiles::read(folder.path)->kept == told);
  REQUIRE(folder.save(kept(2)));
  CHECK(ConfigurationFiles::read(folder.path)->kept == kept(2));
  // By a command, while no csvd runs; twice is as once.
  for (bool prevents : {true, true, false, false}) {
    REQUIRE(ConfigurationFiles::prevent(folder.path, prevents));
    auto found = ConfigurationFiles::read(folder.path);
    REQUIRE(found);
    CHECK(found->kept.prevents == prevents);
    CHECK(found->kept.configuration == kept(2).configuration);
  }
  // Of a node that has nothing yet.
  fs::remove_all(folder.path);
  CHECK(ConfigurationFiles::prevent(folder.path, false));
  REQUIRE(ConfigurationFiles::prevent(folder.path, true));
  Kept only;
  only.prevents = true;
  CHECK(ConfigurationFiles::read(folder.path)->kept == only);
}

TEST_CASE("configuration store: that nothing is prevented any more is made sure of, or not said") {
  Folder folder;
  REQUIRE(folder.save(kept(1)));
  // It was removed before, and the folder not synced: a crash would bring it back.
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  auto none = before;
  none.rlim_cur = 0;
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  auto unsure = ConfigurationFiles::prevent(folder.path, false);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE(!unsure);
  CHECK(unsure.error() == std::errc::too_many_files_open);
  CHECK(ConfigurationFiles::prevent(folder.path, false));
}

TEST_CASE("configuration store: any byte of either file may be damaged, or its end be missing") {
  Folder folder;
  REQUIRE(folder.save(kept(2)));
  auto whole = Folder::content(folder.a());
  for (const auto& file : {folder.a(), folder.b()}) {
    for (std::size_t i = 0; i < whole.size(); ++i) {
      auto damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x40);
      for (const auto& text : {damaged, whole.substr(0, i)}) {
        Folder::put(file, text);
        auto found = ConfigurationFiles::read(folder.path);
        REQUIRE(found);
        CHECK(found->kept == kept(2));
        CHECK(found->damage.find(file) != std::string::npos);
      }
    }
    Folder::put(file, whole);
  }
}

TEST_CASE("configuration store: with both damaged it says what to do, and takes nothing") {
  Folder folder;
  REQUIRE(folder.save(kept(2)));
  Folder::put(folder.a(), "x");
  Folder::put(folder.b(), Folder::content(folder.b()) + "more");
  auto found = ConfigurationFiles::read(folder.path);
  REQUIRE(!found);
  CHECK(found.error() == Errc::corrupt);
  CHECK(found.error().message().find("cluster-a") != std::string::npos);
  CHECK(found.error().message().find("cluster-b") != std::string::npos);
  CHECK(found.error().message().find("of another node") != std::string::npos);
  // One that is missing beside one that is damaged is no whole one either.
  fs::remove(folder.a());
  CHECK(ConfigurationFiles::read(folder.path).error() == Errc::corrupt);
}

TEST_CASE("configuration store: a crash between the two files leaves the newer one to be read") {
  Folder folder;
  REQUIRE(folder.save(kept(1)));
  auto before = Folder::content(folder.b());
  REQUIRE(folder.save(kept(2)));
  Folder::put(folder.b(), before);
  Folder::put(folder.a() + ".part", "begun, and never named");
  CHECK(ConfigurationFiles::read(folder.path)->kept == kept(2));
  // The next save mends it: if the first goes bad then, nothing old comes back.
  REQUIRE(folder.save(kept(3)));
  Folder::put(folder.a(), "bad");
  CHECK(ConfigurationFiles::read(folder.path)->kept == kept(3));
  // A crash before the second file was there for the first time.
  fs::remove(folder.a());
  CHECK(ConfigurationFiles::read(folder.path)->kept == kept(3));
}

TEST_CASE("configuration store: a promise is not forgotten with the file that had it first") {
  Folder folder;
  REQUIRE(folder.save(kept(1)));
  auto before = Folder::content(folder.b());
  auto more = kept(1);
  more.promised = {0, 9, 0};
  REQUIRE(folder.save(more));
  Folder::put(folder.b(), before);
  CHECK(ConfigurationFiles::read(folder.path)->kept.promised == ClusterTag{0, 9, 0});
}

TEST_CASE("configuration store: a newer format is refused, whatever the other file says") {
  Folder folder;
  REQUIRE(folder.save(kept(2)));
  auto whole = Folder::content(folder.a());
  wire::Configuration newer;
  REQUIRE(newer.ParseFromString(whole.substr(40)));
  newer.set_format(2);
  Folder::put(folder.a(), summed(whole.substr(0, 40) + newer.SerializeAsString()));
  auto found = ConfigurationFiles::read(folder.path);
  REQUIRE(!found);
  CHECK(found.error() == Errc::refused);
  CHECK(found.error().message().find("newer") != std::string::npos);
}

TEST_CASE("configuration store: what cannot be written is an error, and what was there stays") {
  Folder folder;
  REQUIRE(folder.save(kept(1)));
  // A folder where the new content would be made.
  fs::create_directories(folder.a() + ".part/x");
  CHECK(!folder.save(kept(2)));
  CHECK(ConfigurationFiles::read(folder.path)->kept == kept(1));
}
