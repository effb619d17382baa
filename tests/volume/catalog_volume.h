#pragma once
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/database.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/check.h"

namespace csv::volume {

inline constexpr std::uint64_t kMiB = 1ull << 20, kGiB = 1ull << 30;
inline constexpr std::uint64_t kBlocksPerMiB = kMiB / kBlockSize;

/// A catalog's database in a file of a directory of its own, through SQLite's own VFS. Faults as
/// data: the errors that a LUN would cause.
class FileCatalogStore final : public CatalogStore {
 public:
  explicit FileCatalogStore(std::uint64_t data_size) {
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
  FileCatalogStore(const FileCatalogStore&) = delete;
  FileCatalogStore& operator=(const FileCatalogStore&) = delete;
  ~FileCatalogStore() override { std::filesystem::remove_all(directory_); }

  const char* vfs() const override { return nullptr; }
  const char* path() const override { return path_.c_str(); }
  std::uint32_t mapped_pages() const override {
    return most_pages.value_or(static_cast<std::uint32_t>(info_.chunks.size() * kChunkSize / 4096));
  }
  Expected<void> add_chunk(std::uint64_t at) override {
    if (fail_add_chunk) return Error{Errc::lun_lost, "adding a chunk"};
    info_.chunks.push_back(at);
    return {};
  }
  const VolumeInfo& info() const override { return info_; }
  Expected<void> health() const override { return sick; }
  iscsi::BlockingLun& lun() override { check_failed("a catalog in a file has no LUN"); }

  std::optional<std::uint32_t> most_pages;  ///< Instead of what the chunks hold.
  bool fail_add_chunk = false;
  Expected<void> sick;

 private:
  std::filesystem::path directory_, path_;
  VolumeInfo info_;
};

/// A catalog to test, with shorthands: every call is a group of one.
struct TestCatalog {
  explicit TestCatalog(std::uint64_t data_size = 2 * kGiB) : store{data_size} {
    REQUIRE(Catalog::create(store, 1000));
    reopen();
  }
  /// As after a crash: nothing is written at the end.
  void reopen() {
    catalog.reset();
    auto opened = Catalog::open(store);
    REQUIRE_MESSAGE(opened, opened.error().message());
    catalog = *std::move(opened);
  }
  /// One change; what `body` returns. A failure of run() itself fails the test.
  template <typename F>
  auto change(F body) -> decltype(body(std::declval<Catalog&>())) {
    using Result = decltype(body(std::declval<Catalog&>()));
    std::optional<Result> result;
    Catalog::Change one;
    one.body = [&](Catalog& c) -> Expected<void> {
      result = body(c);
      if (!*result) return result->error();
      return {};
    };
    auto ran = catalog->run({&one, 1});
    REQUIRE_MESSAGE(ran, ran.error().message());
    if (!one.result && *result) return one.result.error();
    return *std::move(result);
  }
  /// The same for what must succeed.
  template <typename F>
  auto must(F body) {
    auto result = change(std::move(body));
    REQUIRE_MESSAGE(result, result.error().message());
    if constexpr (!std::is_same_v<decltype(result), Expected<void>>) return *std::move(result);
  }
  Attr file(std::string_view name, InodeId parent = kRootInode) {
    return must([&](Catalog& c) { return c.make(parent, name, {.mode = S_IFREG | 0644}, now); });
  }
  Attr directory(std::string_view name, InodeId parent = kRootInode) {
    return must([&](Catalog& c) { return c.make(parent, name, {.mode = S_IFDIR | 0755}, now); });
  }
  /// Reserves and places `count` blocks at `at`; what is written is within the file's size.
  std::vector<Run> place(InodeId inode, std::uint64_t at, std::uint64_t count,
                         BlockState state = BlockState::written, GrantId grant = {}) {
    return must([&](Catalog& c) -> Expected<std::vector<Run>> {
      auto runs = CSV_TRY(c.reserve_space(inode, count, 0, 64));
      CSV_TRY(c.place(inode, at, runs, state, grant));
      if (state == BlockState::written) CSV_TRY(c.grow(inode, (at + count) * kBlockSize, now));
      return runs;
    });
  }
  std::vector<Mapping> map(InodeId inode, std::uint64_t first, std::uint64_t count) {
    auto mapped = catalog->map(inode, first, count);
    REQUIRE_MESSAGE(mapped, mapped.error().message());
    return *mapped;
  }
  /// The states of blocks as a word: h hole, u unwritten, w written, g granted; "w3h2".
  std::string states(InodeId inode, std::uint64_t first, std::uint64_t count) {
    std::vector<std::pair<char, std::uint64_t>> runs;
    for (const auto& each : map(inode, first, count)) {
      auto letter = "huwg"[static_cast<int>(each.state)];
      if (!runs.empty() && runs.back().first == letter)
        runs.back().second += each.count;
      else
        runs.emplace_back(letter, each.count);
    }
    std::string word;
    for (auto [letter, length] : runs) word += letter + std::to_string(length);
    return word;
  }
  /// Frees everything that can be freed: maintain until idle, dying becomes free.
  void settle() {
    for (;;) {
      REQUIRE(catalog->maintain());
      auto dying = catalog->dying(1000);
      REQUIRE(dying);
      if (!dying->empty()) must([&](Catalog& c) { return c.make_free(*dying); });
      if (dying->empty() && !catalog->space()->freeing) return;
    }
  }

  /// What check() finds, each on a line; empty: clean.
  std::string problems() {
    CheckReport report;
    REQUIRE(check_catalog(store, report, {}));
    std::string all;
    for (const auto& problem : report.problems) all += problem + "\n";
    return all;
  }

  /// Changes the database behind the catalog's back.
  void sql(const std::string& statements) {
    auto database = Database::open(store.path(), store.vfs(), {});
    REQUIRE(database);
    auto done = (*database)->execute(statements);
    REQUIRE_MESSAGE(done, done.error().message());
  }
  std::vector<std::uint8_t> first_page() const {
    std::vector<std::uint8_t> bytes(4096);
    std::ifstream file{store.path(), std::ios::binary};
    file.read(reinterpret_cast<char*>(bytes.data()), 4096);
    return bytes;
  }

  FileCatalogStore store;
  std::unique_ptr<Catalog> catalog;
  std::int64_t now = 2000;
};

/// What went wrong, to compare with an errno: 0 if nothing.
inline int errno_of(const auto& result) { return result ? 0 : result.error().to_errno(); }

}  // namespace csv::volume
