// How long a coordinator takes to open a catalog: by the number of files, and by the log that the
// former one left. On a LUN in memory, each command answered after 100 microseconds. Prints one
// JSON object.
//
//   csv_catalog_bench [FILES] [LOG-MIB]
//   csv_catalog_bench --into LUN FILES     into a volume that nobody serves, to be measured there
//   csv_catalog_bench --names LUN FOLDER   the same, into a new folder: names from standard input
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/check.h"
#include "csvfs/base/log.h"
#include "csvfs/base/random.h"
#include "csvfs/base/thread_worker.h"
#include "iscsi/blocking_lun.h"
#include "iscsi/open_lun.h"
#include "iscsi/ram_lun.h"

using namespace csv;
using namespace csv::volume;

namespace {

constexpr Duration kAnswer = 100us;
constexpr std::uint64_t kPerDirectory = 1000;
constexpr std::uint64_t kGroup = 64;

template <typename T>
T must(Expected<T> result) {
  if (!result) {
    std::fprintf(stderr, "csv_catalog_bench: %s\n", result.error().message().c_str());
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

double seconds_of(const std::function<void()>& work) {
  auto began = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

/// A volume on a LUN, used by the thread that made it.
class Bench {
 public:
  /// Of somebody else.
  explicit Bench(const std::string& lun) {
    loop_.start("bench");
    blocking_.wait([&](std::function<void()> wake) {
      iscsi::open_lun(loop_, lun, {}, [this, wake](auto opened) {
        lun_ = must(std::move(opened));
        wake();
      });
    });
    io_.emplace(*lun_, blocking_);
  }
  /// New, and in memory.
  explicit Bench(std::uint64_t log_mib) {
    loop_.start("bench");
    iscsi::RamDiskOptions options;
    options.geometry.block_count = (8ull << 30) / options.geometry.block_size;
    disk_ = iscsi::RamDisk::create(options, &loop_);
    auto plan = [this](const iscsi::RamCommand&) {
      iscsi::RamFate fate;
      if (slow) fate.inside = kAnswer;
      return fate;
    };
    blocking_.wait([&](std::function<void()> wake) {
      loop_.post([this, plan, wake] {
        lun_ = must(disk_->connect(loop_, {}, plan));
        wake();
      });
    });
    io_.emplace(*lun_, blocking_);
    FormatOptions format_options;
    format_options.label = "bench";
    format_options.cluster = 1;
    format_options.wal_size = (2 * log_mib + 16) << 20;  // a log is copied back at half of it
    format_options.claim_space = false;
    must(format(*io_, format_options, random_, WallTime{1}));
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
  ~Bench() {
    close();
    io_.reset();
    blocking_.wait([this](std::function<void()> wake) {
      loop_.post([this, wake] {
        lun_.reset();
        wake();
      });
    });
  }

  void open() {
    auto info = must(read_superblocks(*io_, true));
    store_ = must(open_catalog_store(*io_, std::move(info), random_));
    catalog_ = must(Catalog::open(*store_));
    must(catalog_->attr(kRootInode));
  }
  void close() {
    catalog_.reset();
    store_.reset();
  }
  double time_open() {
    slow = true;
    auto seconds = seconds_of([this] { open(); });
    slow = false;
    return seconds;
  }
  Catalog& catalog() { return *catalog_; }

  void make_files(std::uint64_t count) {
    for (std::uint64_t made = 0; made < count;) {
      std::vector<Catalog::Change> group;
      for (std::uint64_t i = 0; i < kGroup && made < count; ++i, ++made) {
        if (number_ % kPerDirectory == 0)
          make_directory("d" + std::to_string(number_ / kPerDirectory));
        group.push_back(
            {[this, number = number_++](Catalog& c) -> Expected<void> {
               CSV_TRY(c.make(directory_, std::to_string(number), {.mode = S_IFREG | 0644}, 1));
               return {};
             },
             false,
             {}});
        if (number_ % kPerDirectory == 0) {
          ++made;
          break;
        }
      }
      must(catalog_->run(group));
    }
  }

  /// One empty file for each line.
  void make_named(const std::string& folder, std::istream& names) {
    make_directory(folder);
    while (names) {
      std::vector<Catalog::Change> group;
      for (std::string name; group.size() < kGroup && std::getline(names, name);)
        group.push_back({[this, name](Catalog& c) -> Expected<void> {
                           CSV_TRY(c.make(directory_, name, {.mode = S_IFREG | 0644}, 1));
                           return {};
                         },
                         false,
                         {}});
      if (group.empty()) return;
      must(catalog_->run(group));
      for (auto& each : group) must(std::move(each.result));
    }
  }

  std::atomic<bool> slow{false};

 private:
  void make_directory(const std::string& name) {
    Catalog::Change one;
    one.body = [this, name](Catalog& c) -> Expected<void> {
      directory_ = CSV_TRY(c.make(kRootInode, name, {.mode = S_IFDIR | 0755}, 1)).inode;
      return {};
    };
    must(catalog_->run({&one, 1}));
    must(std::move(one.result));
  }

  AsioLoop loop_;
  ThreadBlocking blocking_;
  std::shared_ptr<iscsi::RamDisk> disk_;
  std::unique_ptr<iscsi::Lun> lun_;
  std::optional<iscsi::BlockingLun> io_;
  Random random_{1};
  std::unique_ptr<CatalogStore> store_;
  std::unique_ptr<Catalog> catalog_;
  InodeId directory_{};
  std::uint64_t number_ = 0;
};

int fill(const char* lun, const std::function<void(Bench&)>& with) {
  log::set_up("csv_catalog_bench", log::Level::error);
  Bench bench{lun};
  bench.open();
  with(bench);
  must(bench.catalog().checkpoint());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && argv[1] == std::string_view{"--into"})
    return fill(argv[2],
                [&](Bench& bench) { bench.make_files(std::strtoull(argv[3], nullptr, 10)); });
  if (argc == 4 && argv[1] == std::string_view{"--names"})
    return fill(argv[2], [&](Bench& bench) { bench.make_named(argv[3], std::cin); });
  std::uint64_t files = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1'000'000;
  std::uint64_t log_mib = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 57;
  log::set_up("csv_catalog_bench", log::Level::error);
  Bench bench{log_mib};
  bench.open();
  bench.make_files(files / 100);
  must(bench.catalog().checkpoint());
  bench.close();
  auto few = bench.time_open();
  auto making = seconds_of([&] { bench.make_files(files - files / 100); });
  must(bench.catalog().checkpoint());
  bench.close();
  auto many = bench.time_open();
  while (bench.catalog().statistics().wal_bytes < log_mib << 20) bench.make_files(kGroup);
  auto log_bytes = bench.catalog().statistics().wal_bytes;
  bench.close();
  auto with_log = bench.time_open();
  bench.close();
  std::printf(
      "{\"files\": %llu, \"creates_per_s\": %.0f, \"open_s_hundredth_of_files\": %.4f, "
      "\"open_s_all_files\": %.4f, \"log_mib\": %.1f, \"open_s_with_log\": %.4f}\n",
      static_cast<unsigned long long>(files), static_cast<double>(files - files / 100) / making,
      few, many, static_cast<double>(log_bytes) / (1 << 20), with_log);
  return 0;
}
