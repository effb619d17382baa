// Extent rows: windows of them, what is being freed, and goals for new ones.
#include <algorithm>
#include <utility>

#include "coordinator/volume/catalog_sql.h"
#include "coordinator/volume/parent_chain.h"

namespace csv::volume {

namespace {

/// Of the work of a step, the part that an operation frees by itself; what is more goes in steps.
constexpr std::uint64_t kFreedAtOnce = 8;
/// A dying row grows while what dies next to it follows on, up to what one UNMAP may well carry.
constexpr std::uint64_t kLongestDying = kGroupBlocks;
constexpr std::size_t kRememberedFolders = 65536;

std::uint64_t window_of(std::uint64_t block) { return block - block % kWindowBlocks; }

bool joins(const Extent& a, const Extent& b) {
  return a.end() == b.file_block && a.lun_block + a.count == b.lun_block && a.grant == b.grant &&
         a.birth == b.birth;
}

}  // namespace

Extent cut(const Extent& extent, std::uint64_t first, std::uint64_t end) {
  auto from = std::max(first, extent.file_block), to = std::min(end, extent.end());
  auto part = extent;
  part.file_block = from;
  part.count = to - from;
  part.lun_block = extent.lun_block + (from - extent.file_block);
  part.written = extent.written.slice(from - extent.file_block, part.count);
  return part;
}

std::optional<std::string> encode_written(const Extent& extent) {
  auto written = extent.count - extent.unwritten();
  if (written == 0 || written == extent.count) return std::nullopt;
  return extent.written.bytes(extent.count);
}

Extent read_extent(const Query& query, int column) {
  Extent extent;
  extent.file_block = query.u64(column);
  extent.count = query.u64(column + 1);
  extent.lun_block = query.u64(column + 2);
  extent.grant = GrantId{query.u64(column + 3)};
  extent.birth = query.u64(column + 4);
  if (!query.is_null(column + 6))
    extent.written = Written::from_bytes(query.bytes(column + 6));
  else if (query.u64(column + 5) != 0)
    extent.written.set(0, std::min(extent.count, kWindowBlocks), true);
  return extent;
}

// --- Windows --------------------------------------------------------------------

void SqlCatalog::Window::split(std::uint64_t at) {
  for (auto row = rows.begin(); row != rows.end(); ++row) {
    if (row->file_block >= at || row->end() <= at) continue;
    auto rest = cut(*row, at, row->end());
    *row = cut(*row, row->file_block, at);
    rows.insert(std::next(row), rest);
    return;
  }
}

Expected<SqlCatalog::Window> SqlCatalog::load_window(InodeId inode, std::uint64_t start) {
  Window window{inode, start, {}, {}};
  auto row = database_->use(sql_->get_extents, inode, start, start + kWindowBlocks);
  while (CSV_TRY(row.row())) window.before.push_back(read_extent(row, 0));
  window.rows = window.before;
  return window;
}

Expected<void> SqlCatalog::store_window(Window& window) {
  auto& rows = window.rows;
  std::sort(rows.begin(), rows.end(), [](auto& a, auto& b) { return a.file_block < b.file_block; });
  std::vector<Extent> joined;
  for (const auto& row : rows) {
    if (joined.empty() || !joins(joined.back(), row)) {
      joined.push_back(row);
      continue;
    }
    auto& last = joined.back();
    last.written.paste(row.written, last.count, row.count);
    last.count += row.count;
  }
  rows = std::move(joined);
  auto old = window.before.begin();
  for (const auto& row : rows) {
    for (; old != window.before.end() && old->file_block < row.file_block; ++old)
      CSV_TRY(database_->run(sql_->delete_extent, window.inode, old->file_block));
    if (old != window.before.end() && old->file_block == row.file_block && *old++ == row) continue;
    auto written = encode_written(row);
    CSV_TRY(database_->run(sql_->put_extent, window.inode, row.file_block, row.count, row.lun_block,
                           row.grant, row.birth, row.count - row.unwritten(), written));
  }
  for (; old != window.before.end(); ++old)
    CSV_TRY(database_->run(sql_->delete_extent, window.inode, old->file_block));
  return {};
}

Expected<void> SqlCatalog::settle_grants(const GrantChanges& changes) {
  for (const auto& [grant, change] : changes) {
    if (raw(grant) == 0 || change == 0) continue;
    std::uint64_t unwritten = 0;
    {
      auto row = database_->use(sql_->get_grant, grant);
      if (!CSV_TRY(row.row()))
        return Error{Errc::corrupt,
                     "extents of grant " + std::to_string(raw(grant)) + ", which is no row"};
      unwritten = row.u64(2) + static_cast<std::uint64_t>(change);
    }
    if (unwritten > 0) {
      CSV_TRY(database_->run(sql_->set_grant, grant, unwritten));
    } else {
      CSV_TRY(database_->run(sql_->end_grant_of_extents, grant));
      CSV_TRY(database_->run(sql_->delete_grant, grant));
    }
  }
  return {};
}

Expected<std::vector<Extent>> SqlCatalog::extents_in(InodeId inode, std::uint64_t first,
                                                     std::uint64_t end) {
  std::vector<Extent> found;
  {
    auto row = database_->use(sql_->get_extents, inode, window_of(first), end);
    while (CSV_TRY(row.row())) {
      auto extent = read_extent(row, 0);
      if (extent.end() > first) found.push_back(cut(extent, first, end));
    }
  }
  for (const auto& span : CSV_TRY(freeing_in(inode, first, end))) {
    std::vector<Extent> kept;
    for (const auto& extent : found) {
      if (extent.file_block < span.first)
        kept.push_back(cut(extent, extent.file_block, std::min(extent.end(), span.first)));
      if (extent.end() > span.until)
        kept.push_back(cut(extent, std::max(extent.file_block, span.until), extent.end()));
    }
    found = std::move(kept);
  }
  return found;
}

// --- Freeing --------------------------------------------------------------------

Expected<std::vector<FreeingSpan>> SqlCatalog::freeing_in(InodeId inode, std::uint64_t first,
                                                          std::uint64_t end) {
  std::vector<FreeingSpan> spans;
  auto row = database_->use(sql_->get_freeing, inode, first, end);
  while (CSV_TRY(row.row())) {
    spans.push_back({row.u64(0), row.u64(1)});
    CSV_TRY(check_freeing(inode, spans.back()));
  }
  return spans;
}

/// What a file cannot have can only be damage, and would be worked on without an end.
Expected<void> SqlCatalog::check_freeing(InodeId inode, FreeingSpan span) {
  if (span.first < span.until && span.until <= kMaxFileBlocks) return {};
  return Error{Errc::corrupt, "the catalog is damaged: blocks " + std::to_string(span.first) +
                                  " to " + std::to_string(span.until) + " of inode " +
                                  std::to_string(raw(inode)) + " are to be freed"};
}

Expected<void> SqlCatalog::forget_freeing(InodeId inode, FreeingSpan span) {
  if (CSV_TRY(database_->run(sql_->delete_freeing, inode, span.first)) == 1) return {};
  // Where rows are listed, and yet not found by their keys, they would be met again for ever.
  return Error{Errc::corrupt, "the catalog is damaged: blocks " + std::to_string(span.first) +
                                  " to " + std::to_string(span.until) + " of inode " +
                                  std::to_string(raw(inode)) +
                                  " are to be freed, by a row that has no place in its table"};
}

Expected<void> SqlCatalog::add_dying(std::span<const Run> runs) {
  for (const auto& run : runs) {
    counters_.dying += run.count;
    std::uint64_t id = 0, count = 0;
    {
      auto row = database_->use(sql_->last_dying);
      if (CSV_TRY(row.row()) && row.u64(1) + row.u64(2) == run.lun_block) {
        id = row.u64(0);
        count = row.u64(2) + run.count;
      }
    }
    if (count > 0 && count <= kLongestDying)
      CSV_TRY(database_->run(sql_->set_dying, id, count));
    else
      CSV_TRY(database_->run(sql_->insert_dying, run.lun_block, run.count));
  }
  return {};
}

Expected<void> SqlCatalog::add_blocks(InodeId inode, std::int64_t blocks) {
  if (blocks != 0) CSV_TRY(database_->run(sql_->add_blocks, inode, blocks));
  return {};
}

Expected<std::uint64_t> SqlCatalog::free_some(InodeId inode, std::uint64_t first, std::uint64_t end,
                                              std::uint64_t& budget) {
  GrantChanges grants;
  std::int64_t blocks = 0;
  auto at = first;
  while (at < end && budget > 0) {
    {
      auto row = database_->use(sql_->next_extent, inode, window_of(at));
      if (!CSV_TRY(row.row())) {
        at = end;
        break;
      }
      at = std::max(at, window_of(read_extent(row, 0).file_block));
    }
    if (at >= end) break;
    auto window = CSV_TRY(load_window(inode, window_of(at)));
    auto until = std::min(end, window.start + kWindowBlocks);
    window.split(at);
    window.split(until);
    std::vector<Extent> kept;
    std::vector<Run> freed;
    for (const auto& row : window.rows) {
      if (row.end() <= at || row.file_block >= until) {
        kept.push_back(row);
        continue;
      }
      freed.push_back({row.lun_block, row.count});
      blocks -= static_cast<std::int64_t>(row.count);
      grants[row.grant] -= static_cast<std::int64_t>(row.unwritten());
    }
    window.rows = std::move(kept);
    CSV_TRY(store_window(window));
    auto ranges = CSV_TRY(drop_names(freed));
    budget -= std::min(budget, 1 + window.before.size() + ranges);
    at = until;
  }
  CSV_TRY(add_blocks(inode, blocks));
  CSV_TRY(settle_grants(grants));
  return std::min(at, end);
}

Expected<void> SqlCatalog::add_freeing(InodeId inode, FreeingSpan span) {
  // Spans that touch become one.
  for (const auto& other :
       CSV_TRY(freeing_in(inode, span.first > 0 ? span.first - 1 : 0, span.until + 1))) {
    span.first = std::min(span.first, other.first);
    span.until = std::max(span.until, other.until);
    CSV_TRY(forget_freeing(inode, other));
  }
  CSV_TRY(database_->run(sql_->put_freeing, inode, span.first, span.until));
  return {};
}

Expected<void> SqlCatalog::free_blocks(InodeId inode, std::uint64_t first, std::uint64_t end) {
  if (first >= end) return {};
  auto budget = work_in_step_ / kFreedAtOnce;
  auto stopped = CSV_TRY(free_some(inode, first, end, budget));
  if (stopped < end) CSV_TRY(add_freeing(inode, {stopped, end}));
  return {};
}

Expected<void> SqlCatalog::finish_freeing(InodeId inode, std::uint64_t first, std::uint64_t end) {
  auto from = window_of(first), to = window_of(end + kWindowBlocks - 1);
  for (const auto& span : CSV_TRY(freeing_in(inode, from, to))) {
    auto budget = UINT64_MAX;
    CSV_TRY(free_some(inode, std::max(span.first, from), std::min(span.until, to), budget));
    CSV_TRY(forget_freeing(inode, span));
    if (span.first < from) CSV_TRY(database_->run(sql_->put_freeing, inode, span.first, from));
    if (span.until > to) CSV_TRY(database_->run(sql_->put_freeing, inode, to, span.until));
  }
  return {};
}

Expected<void> SqlCatalog::step_freeing() {
  auto budget = work_in_step_;
  while (budget > 0) {
    --budget;  // a span may have no extents left
    InodeId inode{};
    FreeingSpan span;
    {
      auto row = database_->use(sql_->any_freeing);
      if (!CSV_TRY(row.row())) return {};
      inode = InodeId{row.u64(0)};
      span = {row.u64(1), row.u64(2)};
    }
    CSV_TRY(check_freeing(inode, span));
    auto stopped = CSV_TRY(free_some(inode, span.first, span.until, budget));
    CSV_TRY(forget_freeing(inode, span));
    if (stopped < span.until)
      CSV_TRY(database_->run(sql_->put_freeing, inode, stopped, span.until));
  }
  return {};
}

// --- Placing --------------------------------------------------------------------

Expected<InodeId> SqlCatalog::folder_of(InodeId inode) {
  // The top-level directory above it; files in the root are a folder of their own, the root.
  std::vector<InodeId> way;
  auto folder = kRootInode;
  ParentChain chain;
  for (auto at = inode; at != kRootInode;) {
    if (chain.circles(at))
      return Error{Errc::corrupt, "the directories above inode " + std::to_string(raw(inode)) +
                                      " go round in a circle"};
    if (auto known = folders_.find(at); known != folders_.end()) {
      folder = known->second;
      break;
    }
    auto found = load_inode(at);
    if (!found) break;  // an orphan whose home is gone: anywhere will do
    if (found->attr.nlink >= 2 && (found->attr.mode & 0170000) == 0040000) way.push_back(at);
    if (found->attr.parent == kRootInode) {
      folder = way.empty() || way.back() != at ? kRootInode : at;
      break;
    }
    at = found->attr.parent;
  }
  CSV_TRY(Expected<void>{database_->failure()});
  if (folders_.size() > kRememberedFolders) folders_.clear();
  for (auto directory : way) folders_[directory] = folder;
  return folder;
}

Expected<std::uint64_t> SqlCatalog::goal_of(InodeId inode, std::uint64_t file_block) {
  {
    auto row = database_->use(sql_->last_extent, inode, file_block);
    if (CSV_TRY(row.row())) {
      auto extent = read_extent(row, 0);
      return extent.lun_block + extent.count;
    }
  }
  {
    auto row = database_->use(sql_->next_extent, inode, file_block);
    if (CSV_TRY(row.row())) return read_extent(row, 0).lun_block;
  }
  auto folder = CSV_TRY(folder_of(inode));
  auto cursor = cursors_.find(folder);
  return cursor != cursors_.end() ? cursor->second : allocator_.start_of_folder(folder);
}

void SqlCatalog::remember_end(InodeId folder, const Run& last) {
  if (cursors_.size() > kRememberedFolders) cursors_.clear();
  cursors_[folder] = last.lun_block + last.count;
}

Expected<void> SqlCatalog::place_at(InodeId inode, std::uint64_t file_block,
                                    std::span<const Run> runs, BlockState state, GrantId grant) {
  GrantChanges grants;
  std::int64_t blocks = 0;
  auto at = file_block;
  auto run = runs.begin();
  std::uint64_t used = 0;  // of *run
  while (run != runs.end()) {
    auto window = CSV_TRY(load_window(inode, window_of(at)));
    auto until = window.start + kWindowBlocks;
    while (run != runs.end() && at < until) {
      Extent extent;
      extent.file_block = at;
      extent.count = std::min(run->count - used, until - at);
      extent.lun_block = run->lun_block + used;
      extent.grant = grant;
      extent.birth = birth_;
      if (state == BlockState::written) extent.written.set(0, extent.count, true);
      window.rows.push_back(extent);
      grants[grant] += static_cast<std::int64_t>(extent.unwritten());
      blocks += static_cast<std::int64_t>(extent.count);
      at += extent.count;
      used += extent.count;
      if (used == run->count) {
        ++run;
        used = 0;
      }
    }
    CSV_TRY(store_window(window));
  }
  CSV_TRY(allocator_.use(runs));
  CSV_TRY(add_blocks(inode, blocks));
  CSV_TRY(settle_grants(grants));
  return {};
}

}  // namespace csv::volume
