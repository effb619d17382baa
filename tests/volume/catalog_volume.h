#pragma once
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/check.h"

namespace csv::volume {

inline constexpr std::uint64_t kMiB = 1ull << 20, kGiB = 1ull << 30;
inline constexpr std::uint64_t kBlocksPerMiB = kMiB / kBlockSize;

/// A catalog's database in a file of a directory of its own, through SQLite's own VFS. Faults as
/// data: the errors that a LUN would cause.
class FileCatalogStore final : public CatalogStore {
 public:
  explicit FileCatalogStore(std::uint64_t data_size);
  FileCatalogStore(const FileCatalogStore&) = delete;
  FileCatalogStore& operator=(const FileCatalogStore&) = delete;
  ~FileCatalogStore() override;

  const char* vfs() const override { return nullptr; }
  const char* path() const override { return path_.c_str(); }
  std::uint32_t mapped_pages() const override {
    return static_cast<std::uint32_t>(info_.chunks.size() * kChunkSize / 4096);
  }
  Expected<void> claim_chunk(std::uint64_t at) override {
    asked_for.push_back(at);
    return asked_for.size() <= bad_places ? Expected<void>{Errc::bad_medium} : claims;
  }
  Expected<void> add_chunk(std::uint64_t at) override;
  const VolumeInfo& info() const override { return info_; }
  Expected<void> health() const override { return sick; }
  iscsi::BlockingLun& lun() override { check_failed("a catalog in a file has no LUN"); }

  bool fail_add_chunk = false;
  Expected<void> claims;                 ///< What claim_chunk answers.
  std::vector<std::uint64_t> asked_for;  ///< Places, by claim_chunk.
  std::size_t bad_places = 0;            ///< So many of them, the first, cannot be written.
  Expected<void> sick;

 private:
  std::filesystem::path directory_, path_;
  VolumeInfo info_;
};

/// Where a catalog to be tested lies.
class Bed {
 public:
  virtual ~Bed() = default;
  virtual CatalogStore& store() = 0;
  /// Nothing has it open: what was not durable is forgotten.
  virtual void reopen() = 0;
};
class FileBed final : public Bed {
 public:
  explicit FileBed(std::uint64_t data_size) : store_{data_size} {}
  FileCatalogStore& store() override { return store_; }
  void reopen() override {}

 private:
  FileCatalogStore store_;
};
/// A file, which is fast to test with, or with CSV_CATALOG_BED=lun in the environment what is used
/// in earnest: the VFS over a LUN in memory.
std::unique_ptr<Bed> make_bed(std::uint64_t data_size);

/// A catalog to test, with shorthands: every call is a group of one.
struct TestCatalog {
  explicit TestCatalog(std::uint64_t data_size = 2 * kGiB) : TestCatalog{make_bed(data_size)} {}
  explicit TestCatalog(std::unique_ptr<Bed> where);
  /// As after a crash: nothing is written at the end.
  void reopen();
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
  Attr file(std::string_view name, InodeId parent = kRootInode);
  Attr directory(std::string_view name, InodeId parent = kRootInode);
  /// Reserves and places `count` blocks at `at`; what is written is within the file's size.
  std::vector<Run> place(InodeId inode, std::uint64_t at, std::uint64_t count,
                         BlockState state = BlockState::written, GrantId grant = {});
  std::vector<Mapping> map(InodeId inode, std::uint64_t first, std::uint64_t count);
  /// The states of blocks as a word: h hole, u unwritten, w written, g granted, s shared;
  /// "w3h2".
  std::string states(InodeId inode, std::uint64_t first, std::uint64_t count);
  /// Frees everything that can be freed: maintain until idle, dying becomes free.
  void settle();
  /// What check() finds, each on a line; empty: clean.
  std::string problems();
  /// Changes the database behind the catalog's back.
  void sql(const std::string& statements);

  std::unique_ptr<Bed> bed;
  std::unique_ptr<Catalog> catalog;
  std::int64_t now = 2000;
};

/// What went wrong, to compare with an errno: 0 if nothing.
inline int errno_of(const auto& result) { return result ? 0 : result.error().to_errno(); }

}  // namespace csv::volume
