// A damaged LUN that is repaired: what reads pages, the log, copies of the catalog and files where
// SQLite would refuse to, and what puts right whatever it finds there. A repair is refused with
// words, or the volume is clean and can be used afterwards.
//
//   what to do (1 byte), then changes (damage.h)
#include "coordinator/volume/repair.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/check.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/bench.h"
#include "tests/fuzz/damage.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using volume::Catalog;
using volume::RepairOptions;

enum Doing : std::uint8_t {
  right_sums = 1,
  from_copy = 2,
  from_file = 4,        ///< Before from_copy.
  own_work_file = 8,    ///< The file is called what a repair's working file is, which has no sums.
  said_by_people = 16,  ///< What no superblock says any more.
};

/// A folder of this process, gone at its end.
class Folder {
 public:
  Folder() : path_{std::filesystem::temp_directory_path() / "csv-fuzz-XXXXXX"} {
    CSV_CHECK(::mkdtemp(path_.data()) != nullptr);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  void clear() const {
    for (const auto& each : std::filesystem::directory_iterator{path_})
      std::filesystem::remove_all(each.path());
  }

 private:
  std::string path_;
};

std::vector<std::string> problems_of(iscsi::BlockingLun& io) {
  auto report = volume::check(io);
  if (!report) return {report.error().message()};
  for (const auto& problem : report->problems)
    std::fprintf(stderr, "problem: %s\n", problem.c_str());
  return report->problems;
}

/// As the first who opens it would.
void use(iscsi::BlockingLun& io) {
  Random random{7};
  auto info = volume::read_superblocks(io, true);
  CSV_CHECK(info);
  auto store = volume::open_catalog_store(io, *info, random);
  CSV_CHECK(store);
  auto catalog = Catalog::open(**store);
  CSV_CHECK(catalog);
  Catalog::Change one;
  one.body = [](Catalog& on) -> Expected<void> {
    auto names = CSV_TRY(on.list(kRootInode, 0, 1000));
    for (const auto& entry : names)
      if (S_ISREG(entry.attr.mode)) CSV_TRY(on.map(entry.attr.inode, 0, 1000));
    auto made = on.make(kRootInode, "made afterwards", {.mode = S_IFREG | 0644}, 3000);
    // Damage may have taken that name, or all numbers there are.
    if (!made) return {};
    CSV_TRY(on.grow(made->inode, 8 * 4096, 3000));
    return {};
  };
  CSV_CHECK((*catalog)->run({&one, 1}));
  CSV_CHECK(one.result);
  CSV_CHECK((*catalog)->checkpoint());
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  static const Folder folder;
  folder.clear();
  fakes::ManualLoop loop;
  const auto& image = image_with_copies();
  auto lun = disk_of(image, loop);
  Input input{bytes};
  auto doing = input.take();
  Damage damage{image, *lun, (doing & right_sums) != 0};
  damage.apply(input);
  Turns turns{loop};
  auto way = *lun->connect(loop, {});
  iscsi::BlockingLun io{*way, turns};

  RepairOptions options;
  options.work_file = folder.file("work.db");
  options.now = WallTime{1'800'000'000'000'000'000};
  if ((doing & said_by_people) != 0) {
    options.label = "volume1";
    options.cluster = kCluster;
    options.wal_size = image.info.wal_size;
  }
  if ((doing & from_file) != 0) {
    options.source = RepairOptions::Source::file;
    options.file = folder.file((doing & own_work_file) != 0 ? "repair-1.db" : "catalog-1.db");
    std::ofstream out{options.file, std::ios::binary};
    out.write(reinterpret_cast<const char*>(damage.file().data()),
              static_cast<std::streamsize>(damage.file().size()));
    CSV_CHECK(out.flush());
  } else if ((doing & from_copy) != 0) {
    options.source = RepairOptions::Source::copy;
  }
  auto report = volume::check(io);
  auto writes = way->counters().writes;
  auto repair = volume::Repair::prepare(io, options);
  CSV_CHECK(way->counters().writes == writes);
  if (!repair) {
    const auto& why = repair.error().message();
    CSV_CHECK(!why.empty());
    // A repair that finds its own work wanting is not one.
    if (why.find("did not reach its end") != why.npos) std::fprintf(stderr, "%s\n", why.c_str());
    CSV_CHECK(why.find("did not reach its end") == why.npos);
    way->close();
    return;
  }
  // What the check complains of is what the repair puts right.
  if (report && options.source == RepairOptions::Source::catalog)
    CSV_CHECK(report->problems.empty() == !(*repair)->has_work());
  if ((*repair)->has_work()) {
    CSV_CHECK(!(*repair)->actions().empty());
    auto applied = (*repair)->apply(io);
    if (!applied) std::fprintf(stderr, "%s\n", applied.error().message().c_str());
    CSV_CHECK(applied);
  }
  CSV_CHECK(problems_of(io).empty());
  use(io);
  CSV_CHECK(problems_of(io).empty());
  way->close();
}

std::vector<Seed> seeds() {
  using namespace std::string_literals;
  std::vector<Seed> all;
  auto add = [&](const std::string& name, int doing, const std::string& changes) {
    all.push_back({name, std::string(1, static_cast<char>(doing)) + changes});
  };
  auto at = [](Place place, std::uint16_t which, std::uint16_t offset, const std::string& content) {
    return change_of(place, which, offset, content);
  };
  auto a = at(Place::superblock_a, 0, 200, "x"), b = at(Place::superblock_b, 0, 9, "x"),
       c = at(Place::superblock_c, 0, 200, "x");
  add("whole", 0, "");
  add("a-damaged", 0, a);
  add("a-older", right_sums, at(Place::superblock_a, 0, 40, "\1"));
  add("a-and-b-damaged", 0, a + b);
  add("all-superblocks-damaged", 0, a + b + c);
  add("all-superblocks-damaged-said", said_by_people, a + b + c);
  add("all-superblocks-and-copies-damaged", said_by_people,
      a + b + c + at(Place::copy_superblock, 0, 200, "x") +
          at(Place::copy_superblock, 1, 200, "x"));
  add("all-superblocks-and-copies-damaged-unsaid", 0,
      a + b + c + at(Place::copy_superblock, 0, 200, "x") +
          at(Place::copy_superblock, 1, 200, "x"));
  add("chunk-damaged", 0, at(Place::chunk, 0, 100, "x"));
  add("chunks-swapped", right_sums,
      at(Place::chunk, 0, 40, "\1"s) + at(Place::chunk, 1, 40, "\0"s));
  add("log-header", 0, at(Place::log_header, 0, 3, "x"));
  add("log-mark", 0, at(Place::log_mark, 0, 40, "x"));
  add("log-header-and-mark", 0, at(Place::log_header, 0, 3, "x") + at(Place::log_mark, 0, 40, "x"));
  add("log-retired", right_sums, at(Place::log_mark, 0, 48, "\1"));
  for (std::uint16_t frame : {0, 2, 5})
    add("log-frame-" + std::to_string(frame), 0, at(Place::log_frame, frame, 500, "x"));
  add("log-frame-page", right_sums, at(Place::log_frame, 1, 0, "\0\0\xff\xff"s));
  for (std::uint16_t page = 0; page < 45; page = static_cast<std::uint16_t>(page + 3)) {
    auto name = std::to_string(page);
    add("page-" + name, 0, at(Place::page, page, 50, "xxxx"));
    add("page-content-" + name, right_sums, at(Place::page, page, 4000, "xxxx"));
    add("page-cells-" + name, right_sums, at(Place::page, page, 3, "\0\xff\xff\xff"s));
    add("page-other-kind-" + name, right_sums, at(Place::page, page, 0, "\5"));
  }
  add("page-schema", right_sums, at(Place::page, 0, 3000, "xxxx"));
  add("page-free-list", right_sums, at(Place::page, 0, 32, "\0\0\0\3\0\0\0\5"s));
  add("copy", from_copy, "");
  add("copy-page", from_copy,
      at(Place::copy_page, 0, 300, "x") + at(Place::copy_page, 1, 300, "x"));
  add("copy-older", from_copy, at(Place::copy_page, 1, 300, "x"));
  add("copy-page-with-sum", from_copy | right_sums,
      at(Place::copy_page, 1, 4000, "xxxx") + at(Place::copy_page, 11, 4000, "xxxx"));
  add("copy-header", from_copy,
      at(Place::copy_header, 0, 64, "\xff") + at(Place::copy_header, 1, 64, "\xff"));
  add("copy-header-pages", from_copy | right_sums,
      at(Place::copy_header, 0, 64, "\xff\xff") + at(Place::copy_header, 1, 64, "\1\0"s));
  add("copy-header-groups", from_copy | right_sums, at(Place::copy_header, 1, 72, "\2"));
  add("copy-of-another", from_copy | right_sums, at(Place::copy_header, 1, 16, "xxxxxxxx"));
  add("copy-superblock", from_copy, at(Place::copy_superblock, 1, 200, "x"));
  add("copy-and-no-catalog", from_copy,
      at(Place::page, 0, 0, "xxxx") + at(Place::chunk, 0, 100, "x") + a + b + c);
  add("file", from_file, "");
  add("file-page", from_file, at(Place::file_page, 5, 300, "x"));
  add("file-page-with-sum", from_file | right_sums, at(Place::file_page, 5, 4000, "xxxx"));
  add("file-header", from_file | right_sums, at(Place::file_page, 0, 16, "\x20"));
  add("file-pages", from_file | right_sums, at(Place::file_page, 0, 28, "\0\1\0\0"s));
  add("file-work", from_file | own_work_file, at(Place::file_page, 7, 4000, "xxxx"));
  return all;
}

}  // namespace csv::fuzz
