// Blocks that several blocks of files name (A16): clones, and how they come apart again.
//
// `shared` holds the ranges of the LUN with two names or more. A name is a block of an extent row,
// also of one that is to be freed and not yet is. All blocks of all names of such a range are
// written: nobody writes there again until one name is left.
#include <algorithm>

#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

namespace {

constexpr std::uint64_t kMostCloned = (1ull << 30) / kBlockSize;
constexpr std::uint64_t kMostRows = 4096;
/// Of the work of a step. A row of a clone is a row of `shared` too, and frees one of what the
/// range held before.
constexpr std::uint64_t kClonedInStep = 4;

std::uint64_t window_of(std::uint64_t block) { return block - block % kWindowBlocks; }

void add(std::vector<SharedRange>& ranges, SharedRange next) {
  if (next.length == 0 || next.count < 2) return;
  if (!ranges.empty() && ranges.back().end() == next.start && ranges.back().count == next.count)
    ranges.back().length += next.length;
  else
    ranges.push_back(next);
}

}  // namespace

Expected<std::vector<SharedRange>> SqlCatalog::shared_in(std::uint64_t first, std::uint64_t end) {
  std::vector<SharedRange> found;
  if (!any_shared()) return found;
  auto row = database_->use(sql_->get_shared, first, end);
  while (CSV_TRY(row.row())) {
    SharedRange range{row.u64(0), row.u64(1), row.u64(2)};
    auto from = std::max(first, range.start), to = std::min(end, range.end());
    if (from >= to) continue;
    if (!found.empty() && found.back().end() > from)
      return Error{Errc::corrupt, "the catalog is damaged: ranges of shared blocks overlap at " +
                                      std::to_string(from)};
    found.push_back({from, to - from, range.count});
  }
  return found;
}

Expected<std::uint64_t> SqlCatalog::count_names(Run run, bool more, std::vector<Run>& unnamed) {
  auto first = run.lun_block, end = first + run.count;
  std::vector<SharedRange> before, after;
  {
    auto row = database_->use(sql_->get_shared, first, end);  // those that touch, too
    while (CSV_TRY(row.row())) {
      before.push_back({row.u64(0), row.u64(1), row.u64(2)});
      auto& range = before.back();
      bool overlaps = before.size() > 1 && before[before.size() - 2].end() > range.start;
      if (range.length == 0 || range.count < 2 || overlaps)
        return Error{Errc::corrupt, "the catalog is damaged: shared blocks " +
                                        std::to_string(range.start) + " to " +
                                        std::to_string(range.end()) + " cannot be"};
    }
  }
  auto at = first;
  auto named_once = [&](std::uint64_t until) {
    if (at >= until) return;
    if (more)
      add(after, {at, until - at, 2});
    else
      unnamed.push_back({at, until - at});
    at = until;
  };
  for (const auto& range : before) {
    named_once(std::clamp(range.start, at, end));
    auto from = std::clamp(first, range.start, range.end());
    auto to = std::clamp(end, range.start, range.end());
    add(after, {range.start, from - range.start, range.count});
    add(after, {from, to - from, more ? range.count + 1 : range.count - 1});
    add(after, {to, range.end() - to, range.count});
    at = std::max(at, to);
  }
  named_once(end);
  for (const auto& range : before) {
    auto starts = [&](const SharedRange& other) { return other.start == range.start; };
    if (std::none_of(after.begin(), after.end(), starts))
      CSV_TRY(database_->run(sql_->delete_shared, range.start));
  }
  for (const auto& range : after)
    if (std::find(before.begin(), before.end(), range) == before.end())
      CSV_TRY(database_->run(sql_->put_shared, range.start, range.length, range.count));
  return before.size();
}

Expected<std::uint64_t> SqlCatalog::drop_names(std::span<const Run> runs) {
  std::uint64_t touched = 0;
  if (!any_shared()) {
    CSV_TRY(add_dying(runs));
    return touched;
  }
  std::vector<Run> unnamed;
  for (const auto& run : runs) touched += CSV_TRY(count_names(run, false, unnamed));
  CSV_TRY(add_dying(unnamed));
  return touched;
}

// --- Cloning --------------------------------------------------------------------

Expected<void> SqlCatalog::no_grants_in(InodeId inode, std::uint64_t first, std::uint64_t end) {
  auto row = database_->use(sql_->get_extents, inode, window_of(first), end);
  while (CSV_TRY(row.row())) {
    auto extent = read_extent(row, 0);
    if (extent.end() > first && extent.grant != GrantId{})
      return Error{Errc::refused, "block " + std::to_string(extent.file_block) + " of inode " +
                                      std::to_string(raw(inode)) + " is granted"};
  }
  return {};
}

Expected<std::vector<SqlCatalog::Source>> SqlCatalog::sources(InodeId from, std::uint64_t first,
                                                              std::uint64_t& end, std::uint64_t at,
                                                              std::uint64_t budget) {
  std::vector<Source> found;
  auto pos = first;
  while (pos < end && budget > 0) {
    {
      auto row = database_->use(sql_->next_extent, from, window_of(pos));
      if (!CSV_TRY(row.row())) return found;  // holes up to the end
      pos = std::max(pos, window_of(read_extent(row, 0).file_block));
    }
    if (pos >= end) return found;
    --budget;
    auto until = std::min(end, window_of(pos) + kWindowBlocks);
    CSV_TRY(no_grants_in(from, pos, until));
    for (const auto& extent : CSV_TRY(extents_in(from, pos, until))) {
      for (std::uint64_t i = extent.written.next(true, 0, extent.count); i < extent.count;) {
        if (budget == 0) {
          end = extent.file_block + i;
          return found;
        }
        // A row of the clone lies in one window of its file.
        auto target = at + (extent.file_block + i - first);
        auto stop = std::min<std::uint64_t>(extent.written.next(false, i, extent.count),
                                            i + (window_of(target) + kWindowBlocks - target));
        Run run{extent.lun_block + i, stop - i};
        found.push_back({extent.file_block + i, run});
        // What is shared there already has one name more, range by range: of each a row.
        auto ranges = CSV_TRY(shared_in(run.lun_block, run.lun_block + run.count)).size();
        budget -= std::min<std::uint64_t>(budget, 1 + ranges / kClonedInStep);
        i = extent.written.next(true, stop, extent.count);
      }
    }
    pos = until;
  }
  end = std::min(end, pos);
  return found;
}

Expected<Catalog::Progress> SqlCatalog::clone(InodeId from, std::uint64_t first,
                                              std::uint64_t count, InodeId into, std::uint64_t at) {
  CSV_TRY(may_change(Pages::needed));
  if (first > kMaxFileBlocks || count > kMaxFileBlocks - first || at > kMaxFileBlocks ||
      count > kMaxFileBlocks - at)
    return Error{std::errc::file_too_large, "beyond 16 TiB"};
  CSV_TRY(load_file(from));
  CSV_TRY(load_file(into));
  if (count == 0 || (from == into && first < at + count && at < first + count))
    return Error{std::errc::invalid_argument, "a clone of nothing, or onto itself"};
  auto end = first + std::min(count, kMostCloned);
  auto budget = std::clamp<std::uint64_t>(work_in_step_ / kClonedInStep, 2, kMostRows);
  // Any number of rows may still have to be freed in a window, so little at once.
  auto onto = at + (end - first);
  if (!CSV_TRY(freeing_in(into, window_of(at), window_of(onto + kWindowBlocks - 1))).empty()) {
    onto = std::min(onto, window_of(at) + kWindowBlocks);
    end = first + (onto - at);
    CSV_TRY(finish_freeing(into, at, onto));
  }
  auto pieces = CSV_TRY(sources(from, first, end, at, budget));
  auto freed = at;
  for (onto = at + (end - first); freed < onto && budget > 0;) {
    auto until = std::min(onto, window_of(freed) + kWindowBlocks);
    CSV_TRY(no_grants_in(into, freed, until));
    freed = CSV_TRY(free_some(into, freed, until, budget));
  }
  end = first + (freed - at);
  std::vector<Run> unnamed;
  std::int64_t blocks = 0;
  for (auto piece = pieces.begin(); piece != pieces.end() && piece->file_block < end;) {
    auto window = CSV_TRY(load_window(into, window_of(at + (piece->file_block - first))));
    for (; piece != pieces.end() && piece->file_block < end; ++piece) {
      Extent extent;
      extent.file_block = at + (piece->file_block - first);
      if (window_of(extent.file_block) != window.start) break;
      extent.count = std::min(piece->run.count, end - piece->file_block);
      extent.lun_block = piece->run.lun_block;
      extent.birth = birth_;
      extent.written.set(0, extent.count, true);
      window.rows.push_back(extent);
      blocks += static_cast<std::int64_t>(extent.count);
      counters_.schema = kSchemaVersion;
      CSV_TRY(count_names({extent.lun_block, extent.count}, true, unnamed));
    }
    CSV_TRY(store_window(window));
  }
  CSV_TRY(add_blocks(into, blocks));
  return Progress{CSV_TRY(attr(into)), end - first};
}

Expected<void> SqlCatalog::replace(InodeId inode, std::uint64_t file_block,
                                   std::span<const Run> runs) {
  CSV_TRY(may_change(Pages::needed));
  CSV_TRY(load_file(inode));
  std::uint64_t count = 0;
  for (const auto& run : runs) {
    if (run.count == 0 || !allocator_.contains(run) || !allocator_.is_reserved(run))
      return Error{Errc::refused,
                   "blocks to be placed at " + std::to_string(run.lun_block) + " are not reserved"};
    count += run.count;
  }
  if (file_block > kMaxFileBlocks || count > kMaxFileBlocks - file_block)
    return Error{std::errc::file_too_large, "beyond 16 TiB"};
  auto at = file_block, end = file_block + count;
  for (const auto& extent : CSV_TRY(extents_in(inode, file_block, end))) {
    if (extent.file_block != at || extent.unwritten() > 0 || extent.grant != GrantId{}) break;
    at = extent.end();
  }
  if (at != end)
    return Error{Errc::refused, "block " + std::to_string(at) + " of inode " +
                                    std::to_string(raw(inode)) + " is not written"};
  CSV_TRY(finish_freeing(inode, file_block, end));
  auto budget = UINT64_MAX;
  CSV_TRY(free_some(inode, file_block, end, budget));
  return place_at(inode, file_block, runs, BlockState::written, {});
}

}  // namespace csv::volume
