#include "tests/volume/catalog_volume.h"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/database.h"
#include "tests/volume/lun_bench.h"

namespace csv::volume {

FileCatalogStore::FileCatalogStore(std::uint64_t data_size) {
  std::filesystem::path memory{"/dev/shm"};  // nothing here must survive a power loss
  std::string pattern =
      (::access(memory.c_str(), W_OK) == 0 ? memory : std::filesystem::temp_directory_path()) /
      "csv-catalog-XXXXXX";
  CSV_CHECK(::mkdtemp(pattern.data()) != nullptr);
  directory_ = pattern;
  path_ = directory_ / "catalog";
  info_.data_offset = 80 * kMiB;
  info_.data_size = data_size;
  info_.wal_size = 64 * kMiB;
  info_.chunks = {info_.data_offset};
}

FileCatalogStore::~FileCatalogStore() { std::filesystem::remove_all(directory_); }

Expected<void> FileCatalogStore::add_chunk(std::uint64_t at) {
  if (fail_add_chunk) return Error{Errc::lun_lost, "adding a chunk"};
  info_.chunks.push_back(at);
  return {};
}

namespace {

/// A volume on a LUN in memory.
class LunBed final : public Bed {
 public:
  explicit LunBed(std::uint64_t data_size)
      : bench_{{}, data_size / kMiB + 128}, path_{bench_.connect()} {
    auto info = prepared(bench_, 64 * kMiB);
    info.data_size = data_size;
    REQUIRE(write_superblocks(path_.io, info));
    reopen();
  }
  CatalogStore& store() override { return *store_; }
  void reopen() override {
    store_.reset();
    auto info = read_superblocks(path_.io, true);
    REQUIRE(info);
    auto opened = open_catalog_store(path_.io, *info, random_);
    REQUIRE(opened);
    store_ = *std::move(opened);
  }

 private:
  LunBench bench_;
  Path path_;
  Random random_{1};
  std::unique_ptr<CatalogStore> store_;
};

}  // namespace

std::unique_ptr<Bed> make_bed(std::uint64_t data_size) {
  const auto* wanted = std::getenv("CSV_CATALOG_BED");
  if (wanted != nullptr && std::string_view{wanted} == "lun")
    return std::make_unique<LunBed>(data_size);
  return std::make_unique<FileBed>(data_size);
}

TestCatalog::TestCatalog(std::unique_ptr<Bed> where) : bed{std::move(where)} {
  auto created = Catalog::create(bed->store(), 1000);
  REQUIRE_MESSAGE(created, created.error().message());
  reopen();
}

void TestCatalog::reopen() {
  catalog.reset();
  bed->reopen();
  auto opened = Catalog::open(bed->store());
  REQUIRE_MESSAGE(opened, opened.error().message());
  catalog = *std::move(opened);
}

Attr TestCatalog::file(std::string_view name, InodeId parent) {
  return must([&](Catalog& c) { return c.make(parent, name, {.mode = S_IFREG | 0644}, now); });
}

Attr TestCatalog::directory(std::string_view name, InodeId parent) {
  return must([&](Catalog& c) { return c.make(parent, name, {.mode = S_IFDIR | 0755}, now); });
}

std::vector<Run> TestCatalog::place(InodeId inode, std::uint64_t at, std::uint64_t count,
                                    BlockState state, GrantId grant) {
  return must([&](Catalog& c) -> Expected<std::vector<Run>> {
    auto runs = CSV_TRY(c.reserve_space(inode, count, 0, 64));
    CSV_TRY(c.place(inode, at, runs, state, grant));
    if (state == BlockState::written) CSV_TRY(c.grow(inode, (at + count) * kBlockSize, now));
    return runs;
  });
}

std::vector<Mapping> TestCatalog::map(InodeId inode, std::uint64_t first, std::uint64_t count) {
  auto mapped = catalog->map(inode, first, count);
  REQUIRE_MESSAGE(mapped, mapped.error().message());
  return *mapped;
}

std::string TestCatalog::states(InodeId inode, std::uint64_t first, std::uint64_t count) {
  std::vector<std::pair<char, std::uint64_t>> runs;
  for (const auto& each : map(inode, first, count)) {
    auto letter = "huwgs"[static_cast<int>(each.state)];
    if (!runs.empty() && runs.back().first == letter)
      runs.back().second += each.count;
    else
      runs.emplace_back(letter, each.count);
  }
  std::string word;
  for (auto [letter, length] : runs) word += letter + std::to_string(length);
  return word;
}

void TestCatalog::settle() {
  for (;;) {
    REQUIRE(catalog->maintain());
    auto dying = catalog->dying(1000);
    REQUIRE(dying);
    if (!dying->empty()) must([&](Catalog& c) { return c.make_free(*dying); });
    if (dying->empty() && !catalog->space()->freeing) return;
  }
}

std::string TestCatalog::problems() {
  CheckReport report;
  REQUIRE(check_catalog(bed->store(), report, {}));
  std::string all;
  for (const auto& problem : report.problems) all += problem + "\n";
  return all;
}

void TestCatalog::sql(const std::string& statements) {
  auto database = Database::open(bed->store().path(), bed->store().vfs(), {});
  REQUIRE(database);
  auto done = (*database)->execute(statements);
  REQUIRE_MESSAGE(done, done.error().message());
}

}  // namespace csv::volume
