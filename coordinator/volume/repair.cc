#include "coordinator/volume/repair.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/catalog_repair.h"
#include "coordinator/volume/catalog_salvage.h"
#include "coordinator/volume/catalog_source.h"
#include "coordinator/volume/catalog_sql.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/superblock_search.h"
#include "coordinator/volume/wal_region.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

using State = FoundSuperblock::State;
constexpr std::uint64_t kPiece = 1ull << 20;
/// Epochs that were surely not given out since a superblock or copy was written; one a takeover.
constexpr std::uint64_t kEpochsSince = 1u << 20;

Expected<void> fill_piece(std::ifstream& file, std::span<std::byte> out, const VolumeId& volume,
                          std::uint32_t first_page) {
  file.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
  if (static_cast<std::size_t>(file.gcount()) != out.size())
    return Error{std::errc::io_error, "the file of the catalog is cut short"};
  for (std::size_t at = 0; at < out.size(); at += disk::kPageSize) {
    auto page = out.subspan(at, disk::kPageSize);
    disk::PageTail tail{page_checksum(volume, first_page, page), 0};
    std::memcpy(page.data() + disk::kPageSize - sizeof tail, &tail, sizeof tail);
    ++first_page;
  }
  return {};
}

std::uint32_t big_endian(const std::byte* at) {
  std::uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = (value << 8) | std::to_integer<std::uint32_t>(at[i]);
  return value;
}

/// The pages of the catalog in a file, 0 with why if it is none.
Expected<std::uint32_t> pages_in(std::ifstream& file, const std::string& path) {
  std::array<std::byte, 100> header{};
  file.read(reinterpret_cast<char*>(header.data()), header.size());
  constexpr std::string_view kMagic{"SQLite format 3\0", 16};
  if (file.gcount() != static_cast<std::streamsize>(header.size()) ||
      std::memcmp(header.data(), kMagic.data(), kMagic.size()) != 0 ||
      big_endian(header.data() + 16) >> 16 != disk::kPageSize ||
      std::to_integer<unsigned>(header[20]) != disk::kPageReserve)
    return Error{Errc::refused, path + " does not hold a catalog"};
  auto pages = big_endian(header.data() + 28);
  std::error_code error;
  auto size = std::filesystem::file_size(path, error);
  if (error || pages == 0 || size < std::uint64_t{pages} * disk::kPageSize)
    return Error{Errc::corrupt, path + " is cut short"};
  file.seekg(0);
  return pages;
}

Expected<void> write_pages(iscsi::BlockingLun& lun, const VolumeInfo& info, const std::string& path,
                           const Progress& progress) {
  std::ifstream file{path, std::ios::binary};
  auto pages = CSV_TRY(pages_in(file, path));
  if (pages > info.chunks.size() * disk::kPagesPerChunk)
    return Error{std::errc::no_space_on_device,
                 fmt::format("a catalog of {} pages does not fit into {} chunks", pages,
                             info.chunks.size())};
  Buffer piece{kPiece};
  for (std::uint32_t page = 1; page <= pages;) {
    auto chunk_end = ((page - 1) / disk::kPagesPerChunk + 1) * disk::kPagesPerChunk + 1;
    auto count = std::min(
        {chunk_end - page, pages + 1 - page, static_cast<std::uint32_t>(kPiece / disk::kPageSize)});
    auto bytes = piece.span().first(std::uint64_t{count} * disk::kPageSize);
    CSV_TRY(fill_piece(file, bytes, info.id, page));
    CSV_TRY(lun.write(place_of_page(info, page), bytes));
    page += count;
    if (progress) progress(page - 1, pages);
  }
  return {};
}

/// A copy's pages have our checksums, with the volume's id; those of a repair's working file, to
/// which SQLite itself has written, have none: it is checked as a whole later.
Expected<void> verify_copy_file(const std::string& path, const VolumeId& volume) {
  std::ifstream file{path, std::ios::binary};
  if (!file) return Error{std::errc::no_such_file_or_directory, path};
  auto pages = CSV_TRY(pages_in(file, path));
  std::vector<std::byte> page(disk::kPageSize);
  std::uint32_t bad = 0, first_bad = 0;
  for (std::uint32_t number = 1; number <= pages; ++number) {
    file.read(reinterpret_cast<char*>(page.data()), static_cast<std::streamsize>(page.size()));
    disk::PageTail tail;
    std::memcpy(&tail, page.data() + disk::kPageSize - sizeof tail, sizeof tail);
    if (tail.crc == page_checksum(volume, number, page)) continue;
    if (bad++ == 0) first_bad = number;
  }
  if (bad == 0 || std::filesystem::path{path}.filename().string().find("repair-") == 0) return {};
  if (bad == pages) return Error{Errc::refused, path + " is a copy of another volume's catalog"};
  return Error{Errc::corrupt, fmt::format("{} is damaged: {} of its pages, from page {} on", path,
                                          bad, first_bad)};
}

}  // namespace

Expected<void> install_catalog(iscsi::BlockingLun& lun, VolumeInfo& info, const std::string& path,
                               const std::vector<std::uint64_t>& chunks, bool in_place,
                               const Progress& progress) {
  auto old_chunks = info.chunks;
  auto next = info;
  next.chunks = chunks;
  // Frames of the old log must never meet pages of the new catalog, nor may the old one be opened
  // without them: the mark goes first, then the headers, which say to which of them the log
  // belongs.
  auto hand_over = [&]() -> Expected<void> {
    CSV_TRY(WalRegion::retire(lun, info, info.sequence + 1));
    for (std::uint32_t i = 0; i < chunks.size(); ++i)
      CSV_TRY(lun.write(chunks[i],
                        encode_chunk_header(next.id, i, chunks[i], next.sequence + 1).span()));
    return lun.flush();
  };
  if (in_place) {
    CSV_TRY(hand_over());
  } else {
    // A search for chunks must not take these for the volume's until they are whole.
    for (auto at : chunks) CSV_TRY(lun.write_zeroes(at, sizeof(disk::ChunkHeader)));
    CSV_TRY(lun.flush());
  }
  if (auto wrote = write_pages(lun, next, path, progress); !wrote)
    return wrote.error().within("writing the catalog");
  CSV_TRY(lun.flush());
  if (!in_place) CSV_TRY(hand_over());
  CSV_TRY(write_superblocks(lun, next));
  CSV_TRY(WalRegion::clear(lun, next));
  info = next;
  // A search for chunks must not take these for the volume's.
  for (auto at : old_chunks)
    if (std::find(chunks.begin(), chunks.end(), at) == chunks.end())
      CSV_TRY(lun.write_zeroes(at, sizeof(disk::ChunkHeader)));
  return lun.flush();
}

// --- Looking ---------------------------------------------------------------------------

Expected<void> Repair::look_at_superblocks(iscsi::BlockingLun& lun, const RepairOptions& options) {
  auto copies = CSV_TRY(read_superblock_copies(lun));
  auto in_force = superblock_in_force(lun, copies);
  if (in_force) {
    info_ = *in_force;
    has_superblock_ = true;
    auto look = [&](const char* name, const FoundSuperblock& found) {
      if (found.state == State::valid && found.info == info_) return;
      findings_.push_back(
          found.state != State::valid
              ? fmt::format("superblock {}: {}", name, found.what)
              : fmt::format("superblock {}: sequence {}, older than the {} in force", name,
                            found.info.sequence, info_.sequence));
      actions_.push_back(fmt::format("superblock {} is written anew", name));
      rewrites_superblocks_ = true;
    };
    look("A", copies.a);
    look("B", copies.b);
    look("C", copies.c);
    return {};
  }
  for (const auto* each : {&copies.a, &copies.b, &copies.c})
    if (each->state == State::newer) return in_force.error();
  findings_.push_back(in_force.error().message());
  rewrites_superblocks_ = true;
  auto left = CSV_TRY(find_superblock_left(
      lun, copies, {options.label, options.cluster, options.wal_size, options.now}));
  if (!left) return in_force.error();
  info_ = left->info;
  actions_.push_back(
      fmt::format("all superblocks of volume {} are made from {}", info_.label, left->source));
  info_.epoch = Epoch{raw(info_.epoch) + kEpochsSince};
  return {};
}

Expected<std::unique_ptr<Repair>> Repair::prepare(iscsi::BlockingLun& lun,
                                                  const RepairOptions& options,
                                                  const Progress& progress) {
  std::unique_ptr<Repair> repair{new Repair};
  repair->work_file_ = options.work_file;
  CSV_TRY(repair->look_at_superblocks(lun, options));
  if (auto size = lun.lun().geometry().size_bytes(); size < repair->info_.lun_size)
    return Error{Errc::refused,
                 fmt::format("volume {} was formatted with {} bytes and the LUN now has {}: it "
                             "shrank; enlarge it again",
                             repair->info_.label, repair->info_.lun_size, size)};
  bool wanted = options.source != RepairOptions::Source::catalog;
  if (!wanted) {
    CheckReport report;
    report.problems = CSV_TRY(chunk_problems(lun, repair->info_));
    CSV_TRY(check_catalog_on(lun, repair->info_, report, progress));
    wanted = !report.problems.empty();
    for (auto& problem : report.problems) repair->findings_.push_back(std::move(problem));
  }
  if (wanted) CSV_TRY(repair->make_catalog(lun, options, progress));
  return repair;
}

Expected<std::unique_ptr<Database>> Repair::start_from_catalog(iscsi::BlockingLun& lun,
                                                               const RepairOptions& options) {
  auto database = CSV_TRY(create_catalog_file(options.work_file));
  auto source = CSV_TRY(CatalogSource::open(lun, info_));
  auto salvage = CSV_TRY(salvage_catalog(*source, *database));
  log_lost_ = !source->log_is_whole();
  unreadable_ = source->unreadable();
  bool lossy = !salvage.losses.empty();
  shared_lost_ = salvage.shared_lost;
  for (auto& loss : salvage.losses) warnings_.push_back(std::move(loss));
  if (lossy)
    for (const auto& copy : CSV_TRY(find_copies(lun, info_.id, info_.data_offset, kGroupSize)))
      warnings_.push_back(in_words(copy) +
                          ", is on the LUN: compare this with what --from copy would do");
  if (CSV_TRY(database->value("SELECT count(*) FROM inodes")) == 0)
    return Error{Errc::corrupt,
                 "nothing is left of the volume's inodes: start from a copy of the catalog (--from "
                 "copy, --from FILE)"};
  return database;
}

Expected<std::unique_ptr<Database>> Repair::start_from_copy(iscsi::BlockingLun& lun,
                                                            const RepairOptions& options) {
  if (options.source == RepairOptions::Source::copy) {
    auto copies = CSV_TRY(find_copies(lun, info_.id, info_.data_offset, kGroupSize));
    Expected<void> got = Error{Errc::refused, "no whole copy of the catalog is on the LUN"};
    for (const auto& copy : copies) {
      got = extract_copy(lun, copy, options.work_file);
      if (!got && got.error() != Errc::corrupt) return got.error();
      if (!got) {
        findings_.push_back(got.error().message());
        continue;
      }
      findings_.push_back("starting from " + in_words(copy));
      break;
    }
    CSV_TRY(std::move(got));
  } else {
    CSV_TRY(verify_copy_file(options.file, info_.id));
    std::error_code error;
    std::filesystem::copy_file(options.file, options.work_file, error);
    if (error)
      return Error{error,
                   "copying " + options.file + " to " + options.work_file + ": " + error.message()};
    findings_.push_back("starting from the copy of the catalog in " + options.file);
  }
  auto database = CSV_TRY(Database::open(options.work_file.c_str(), nullptr, {}));
  CSV_TRY(database->execute("PRAGMA synchronous=OFF; PRAGMA cache_spill=ON"));
  if (auto version = CSV_TRY(database->value("SELECT value FROM kv WHERE key='schema_version'"));
      !is_known_schema(static_cast<std::uint64_t>(version)))
    return Error{Errc::refused, fmt::format("the copy has schema {}, this program knows {}",
                                            version, kSchemaVersion)};
  shared_lost_ = CSV_TRY(database->value(
                     "SELECT (SELECT value FROM kv WHERE key='schema_version')>3 AND NOT EXISTS("
                     "SELECT 1 FROM sqlite_schema WHERE type='table' AND name='shared')")) != 0;
  CSV_TRY(database->execute(kLaterTables));
  // A copy is what SQLite had, with all that was wrong in it. What follows from tables is made
  // anew.
  if (auto made = database->execute("REINDEX"); !made)
    return made.error().within("making the indexes of the copy anew");
  warnings_.push_back(
      "files and directories are as they were when the copy was taken: what was made since is "
      "gone, "
      "what was removed or renamed since is back");
  warnings_.push_back(
      "files that were written since may show a mixture of old and new content; files that were "
      "removed or cut since may show what other files wrote to the blocks they had: compare what "
      "matters with a backup");
  CSV_TRY(compare_with_present(lun, options, *database));
  return database;
}

/// As far as the present catalog can be read, which files the copy is wrong about.
Expected<void> Repair::compare_with_present(iscsi::BlockingLun& lun, const RepairOptions& options,
                                            Database& copy) {
  auto path = options.work_file + "-present";
  auto present = create_catalog_file(path);
  if (!present) return {};
  auto told = [&]() -> Expected<void> {
    auto source = CSV_TRY(CatalogSource::open(lun, info_));
    auto salvage = CSV_TRY(salvage_catalog(*source, **present));
    if (salvage.rows == 0) return {};
    CSV_TRY((*present)->execute("PRAGMA wal_checkpoint(TRUNCATE)"));
    CSV_TRY(copy.execute("ATTACH '" + path + "' AS present"));
    auto count = [&](const char* sql) { return copy.value(sql); };
    auto made = CSV_TRY(count(
        "SELECT count(*) FROM present.inodes p WHERE NOT EXISTS(SELECT 1 FROM main.inodes m WHERE "
        "m.id=p.id)"));
    auto gone = CSV_TRY(count(
        "SELECT count(*) FROM main.inodes m WHERE NOT EXISTS(SELECT 1 FROM present.inodes p WHERE "
        "p.id=m.id)"));
    warnings_.push_back(
        fmt::format("of what can be read of the present catalog, {} inodes are not "
                    "in the copy, and {} of the copy are not in it",
                    made, gone));
    constexpr std::size_t kMostListed = 1000;
    auto list = [&](const char* sql, const char* what) -> Expected<void> {
      Statement statement{sql};
      auto row = copy.use(statement);
      std::size_t listed = 0;
      while (CSV_TRY(row.row()))
        if (++listed <= kMostListed)
          warnings_.push_back(fmt::format("inode {} {}", row.u64(0), what));
      if (listed > kMostListed)
        warnings_.push_back(fmt::format("and {} more inodes {}", listed - kMostListed, what));
      return {};
    };
    CSV_TRY(
        list("SELECT m.id FROM main.inodes m JOIN present.inodes p ON p.id=m.id WHERE "
             "(p.ctime<>m.ctime OR p.mtime<>m.mtime OR p.size<>m.size) AND "
             "(m.mode&61440)=32768",
             "was changed after the copy was taken"));
    CSV_TRY((*present)->execute("CREATE INDEX by_place ON extents(lun_block)"));
    // An extent has at most 2048 blocks: what overlaps begins at most so far before.
    CSV_TRY(
        list("SELECT DISTINCT m.inode FROM main.extents m JOIN present.extents p ON "
             "p.lun_block>m.lun_block-2048 AND p.lun_block<m.lun_block+m.count AND "
             "p.lun_block+p.count>m.lun_block WHERE p.inode<>m.inode AND NOT EXISTS(SELECT 1 FROM "
             "main.shared s WHERE s.start<p.lun_block+p.count AND s.start+s.length>p.lun_block) "
             "AND NOT EXISTS(SELECT 1 FROM present.shared s WHERE s.start<p.lun_block+p.count AND "
             "s.start+s.length>p.lun_block)",
             "has blocks that were given to other files after the copy was taken"));
    return copy.execute("DETACH present");
  }();
  present = Error{Errc::closed};  // closes it
  std::error_code ignored;
  for (const auto* end : {"", "-wal", "-shm"}) std::filesystem::remove(path + end, ignored);
  if (!told) {
    if (told.error() == Errc::lun_lost || told.error() == Errc::fenced) return told;
    copy.clear_failure();
    warnings_.push_back("the present catalog cannot be compared with the copy: " +
                        told.error().message());
    // An ATTACH that is left open ends with the database.
  }
  return {};
}

Expected<void> Repair::make_catalog(iscsi::BlockingLun& lun, const RepairOptions& options,
                                    const Progress& progress) {
  bool from_copy = options.source != RepairOptions::Source::catalog;
  {
    auto database = from_copy ? CSV_TRY(start_from_copy(lun, options))
                              : CSV_TRY(start_from_catalog(lun, options));
    auto repaired = CSV_TRY(repair_catalog(
        *database, info_,
        {static_cast<std::int64_t>(options.now), from_copy, log_lost_, shared_lost_}));
    for (auto& action : repaired.actions) actions_.push_back(std::move(action));
    if (repaired.more > 0)
      actions_.push_back(fmt::format("and {} more repairs like these", repaired.more));
    auto layout = CSV_TRY(lay_out_space(*database, info_, true));
    if (!layout) {
      in_place_ = true;
      layout = CSV_TRY(lay_out_space(*database, info_, false));
      if (!layout)
        return Error{std::errc::no_space_on_device,
                     "the volume has no room for the repaired catalog"};
      warnings_.push_back(
          "the volume has no room for a second catalog: the old one is overwritten. "
          "If that is interrupted, repair again with --from " +
          options.work_file);
    }
    for (auto& action : layout->actions) actions_.push_back(std::move(action));
    chunks_ = layout->chunks;
    CSV_TRY(database->execute("PRAGMA wal_checkpoint(TRUNCATE)"));
  }
  auto checked = info_;
  checked.chunks = *chunks_;
  CheckReport report;
  CSV_TRY(check_catalog_file(options.work_file, checked, report, progress));
  if (!report.problems.empty() && from_copy && report.problems.front().starts_with("the database "))
    return Error{Errc::corrupt,
                 fmt::format("the copy of the catalog was damaged when it was taken ({}); nothing "
                             "was changed: start from another one, or from what is on the LUN",
                             report.problems.front())};
  if (!report.problems.empty())
    return Error{Errc::corrupt,
                 fmt::format("the repair did not reach its end ({} problems are left, the first: "
                             "{}); nothing was changed, please report this",
                             report.problems.size(), report.problems.front())};
  actions_.push_back(fmt::format("the catalog is written anew: {} inodes, {} entries, {} extents",
                                 report.inodes, report.entries, report.extents));
  return {};
}

Expected<void> Repair::apply(iscsi::BlockingLun& lun, const Progress& progress) {
  // Targets say of a medium that is away for a moment what they say of one that is bad.
  CSV_TRY(unreadable_.check_still_bad(lun));
  if (!has_superblock_ && superblock_in_force(lun, CSV_TRY(read_superblock_copies(lun))))
    return Error{Errc::refused,
                 "a superblock could not be used a moment ago, and can be now: see to the LUN, and "
                 "begin anew"};
  // The copy in force may be in the target's cache only: made safe before A is written.
  if (has_superblock_) CSV_TRY(read_superblocks(lun, true));
  info_.coordinator_key = info_.closed_key = Key{};  // whoever had it is fenced
  if (chunks_) return install_catalog(lun, info_, work_file_, *chunks_, in_place_, progress);
  if (rewrites_superblocks_) return write_superblocks(lun, info_);
  return {};
}

}  // namespace csv::volume
