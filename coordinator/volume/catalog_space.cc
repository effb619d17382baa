// What files hold: mapping, placing, sizes, and the way of freed blocks.
#include <sys/stat.h>

#include <algorithm>

#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

namespace {

constexpr std::uint64_t kMaxSize = kMaxFileBlocks * kBlockSize;
std::uint64_t blocks_of(std::uint64_t size) { return (size + kBlockSize - 1) / kBlockSize; }

Expected<void> check_range(std::uint64_t first, std::uint64_t count) {
  if (first > kMaxFileBlocks || count > kMaxFileBlocks - first)
    return Error{std::errc::file_too_large, "beyond 16 TiB"};
  return {};
}

void modified(Inode& inode, std::int64_t now) {
  inode.attr.mtime = inode.attr.ctime = std::max(now, inode.attr.ctime);
}

void append(std::vector<Mapping>& mappings, const Mapping& next) {
  if (next.count == 0) return;
  if (!mappings.empty()) {
    auto& last = mappings.back();
    bool follows = last.state == BlockState::hole || last.lun_block + last.count == next.lun_block;
    if (last.state == next.state && last.grant == next.grant && follows) {
      last.count += next.count;
      return;
    }
  }
  mappings.push_back(next);
}

}  // namespace

/// What `extent` says, a mapping for each of its states.
Expected<void> SqlCatalog::append_states(std::vector<Mapping>& mappings, const Extent& extent) {
  auto ranges = CSV_TRY(shared_in(extent.lun_block, extent.lun_block + extent.count));
  auto range = ranges.begin();
  for (std::uint64_t at = 0; at < extent.count;) {
    auto lun_block = extent.lun_block + at;
    while (range != ranges.end() && range->end() <= lun_block) ++range;
    bool is_shared = range != ranges.end() && range->start <= lun_block;
    auto is_written = extent.written.get(at);
    auto end = extent.written.next(!is_written, at, extent.count);
    if (range != ranges.end())
      end = std::min(end, (is_shared ? range->end() : range->start) - extent.lun_block);
    // Whoever wrote to it as to unwritten space would write into another file.
    if (is_shared && !is_written)
      return Error{Errc::corrupt, "the catalog is damaged: LUN block " + std::to_string(lun_block) +
                                      " is shared and yet unwritten"};
    auto state = is_shared                   ? BlockState::shared
                 : is_written                ? BlockState::written
                 : extent.grant != GrantId{} ? BlockState::granted
                                             : BlockState::unwritten;
    append(mappings, Mapping{extent.file_block + at, end - at, lun_block, state,
                             is_written ? GrantId{} : extent.grant});
    at = end;
  }
  return {};
}

Expected<std::vector<Mapping>> SqlCatalog::map(InodeId inode, std::uint64_t first,
                                               std::uint64_t count) {
  CSV_TRY(check_range(first, count));
  CSV_TRY(load_file(inode));
  std::vector<Mapping> mappings;
  auto at = first, end = first + count;
  for (const auto& extent : CSV_TRY(extents_in(inode, first, end))) {
    append(mappings, Mapping{at, extent.file_block - at, 0, BlockState::hole, {}});
    CSV_TRY(append_states(mappings, extent));
    at = extent.end();
  }
  append(mappings, Mapping{at, end - at, 0, BlockState::hole, {}});
  return mappings;
}

Expected<std::vector<Run>> SqlCatalog::reserve_space(InodeId inode, std::uint64_t count,
                                                     std::uint64_t goal, std::size_t most_runs) {
  auto found = CSV_TRY(load_file(inode));
  if (goal == 0) goal = CSV_TRY(goal_of(inode, kMaxFileBlocks));
  auto runs = CSV_TRY(allocator_.reserve(count, goal, most_runs, false));
  if (found.attr.blocks == 0 && !runs.empty()) remember_end(CSV_TRY(folder_of(inode)), runs.back());
  return runs;
}

void SqlCatalog::cancel_reservation(std::span<const Run> runs) { allocator_.cancel(runs); }

Expected<void> SqlCatalog::place(InodeId inode, std::uint64_t file_block, std::span<const Run> runs,
                                 BlockState state, GrantId grant) {
  CSV_TRY(may_change(Pages::needed));
  CSV_TRY(load_file(inode));
  std::uint64_t count = 0;
  for (const auto& run : runs) {
    if (run.count == 0 || !allocator_.contains(run) || !allocator_.is_reserved(run))
      return Error{Errc::refused,
                   "blocks to be placed at " + std::to_string(run.lun_block) + " are not reserved"};
    count += run.count;
  }
  CSV_TRY(check_range(file_block, count));
  bool granted = state == BlockState::granted;
  if (state == BlockState::hole || granted != (grant != GrantId{}))
    return Error{Errc::refused, "blocks placed as what they cannot be"};
  if (granted) {
    auto row = database_->use(sql_->get_grant, grant);
    if (!CSV_TRY(row.row()) || InodeId{row.u64(1)} != inode)
      return Error{Errc::refused, "no such grant on this inode"};
  }
  if (!CSV_TRY(extents_in(inode, file_block, file_block + count)).empty())
    return Error{Errc::refused, "blocks placed where the file has some"};
  CSV_TRY(finish_freeing(inode, file_block, file_block + count));
  return place_at(inode, file_block, runs, state, grant);
}

Expected<std::uint64_t> SqlCatalog::holes_in(InodeId inode, std::uint64_t first,
                                             std::uint64_t end) {
  auto holes = end - first;
  if (!CSV_TRY(freeing_in(inode, first, end)).empty()) {
    for (const auto& extent : CSV_TRY(extents_in(inode, first, end))) holes -= extent.count;
    return holes;
  }
  auto row = database_->use(sql_->get_extents, inode, first - first % kWindowBlocks, end);
  while (CSV_TRY(row.row())) {
    auto from = std::max(first, row.u64(0)), to = std::min(end, row.u64(0) + row.u64(1));
    if (from < to) holes -= to - from;
  }
  return holes;
}

Expected<Catalog::Progress> SqlCatalog::fill(InodeId inode, std::uint64_t first,
                                             std::uint64_t count) {
  CSV_TRY(may_change(Pages::needed));
  CSV_TRY(check_range(first, count));
  CSV_TRY(load_file(inode));
  if (auto holes = CSV_TRY(holes_in(inode, first, first + count)); holes > allocator_.available())
    return Error{std::errc::no_space_on_device, "no " + std::to_string(holes) + " free blocks"};
  auto runs_left = work_in_step_ / 2;
  auto at = first, end = std::min(first + count, first + runs_left * kWindowBlocks);
  if (!CSV_TRY(freeing_in(inode, first, end)).empty()) {  // any number of rows, so less of it
    end = std::min(end, first + kWindowBlocks);
    CSV_TRY(finish_freeing(inode, first, end));
  }
  while (at < end && runs_left > 0) {
    auto hole_end = end;
    {
      auto row = database_->use(sql_->next_extent_beyond, inode, at - at % kWindowBlocks, at);
      if (CSV_TRY(row.row())) {
        auto next = read_extent(row, 0);
        if (next.file_block <= at) {
          at = next.end();
          continue;
        }
        hole_end = std::min(end, next.file_block);
      }
    }
    auto goal = CSV_TRY(goal_of(inode, at));
    auto runs = allocator_.reserve(hole_end - at, goal, runs_left, true);
    if (!runs && at == first) return runs.error();
    if (!runs) break;  // whoever goes on from here finds out
    CSV_TRY(place_at(inode, at, *runs, BlockState::unwritten, {}));
    if (at == 0) remember_end(CSV_TRY(folder_of(inode)), runs->back());
    for (const auto& run : *runs) at += run.count;
    runs_left -= runs->size();
  }
  return Progress{CSV_TRY(attr(inode)), std::min(at, end) - first};
}

Expected<void> SqlCatalog::mark_written(InodeId inode, std::uint64_t first, std::uint64_t count) {
  CSV_TRY(may_change(Pages::perhaps));
  CSV_TRY(check_range(first, count));
  CSV_TRY(load_file(inode));
  auto at = first, end = first + count;
  for (const auto& extent : CSV_TRY(extents_in(inode, first, end))) {
    if (extent.file_block != at) break;
    if (extent.grant != GrantId{} && extent.unwritten() > 0)
      return Error{Errc::refused, "block " + std::to_string(at) + " of inode " +
                                      std::to_string(raw(inode)) +
                                      " is granted, not ours to write"};
    if (!CSV_TRY(shared_in(extent.lun_block, extent.lun_block + extent.count)).empty())
      return Error{Errc::refused, "block " + std::to_string(at) + " of inode " +
                                      std::to_string(raw(inode)) + " is shared, not to be written"};
    at = extent.end();
  }
  if (at != end)
    return Error{Errc::refused, "block " + std::to_string(at) + " of inode " +
                                    std::to_string(raw(inode)) + " is a hole, not to be written"};
  CSV_TRY(finish_freeing(inode, first, end));
  return set_written(inode, first, end, nullptr);
}

Expected<void> SqlCatalog::set_written(InodeId inode, std::uint64_t first, std::uint64_t end,
                                       GrantChanges* grants) {
  for (auto start = first - first % kWindowBlocks; start < end; start += kWindowBlocks) {
    auto window = CSV_TRY(load_window(inode, start));
    for (auto& row : window.rows) {
      auto from = std::max(first, row.file_block), to = std::min(end, row.end());
      if (from >= to) continue;
      auto before = row.unwritten();
      row.written.set(from - row.file_block, to - from, true);
      if (grants == nullptr) continue;
      (*grants)[row.grant] -= static_cast<std::int64_t>(before - row.unwritten());
      // At once: a grant that goes on for ever must not end on any number of rows.
      if (row.unwritten() == 0) row.grant = {};
    }
    CSV_TRY(store_window(window));
  }
  return {};
}

Expected<Attr> SqlCatalog::grow(InodeId inode, std::uint64_t size, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  if (size > kMaxSize) return Error{std::errc::file_too_large, "beyond 16 TiB"};
  auto found = CSV_TRY(load_file(inode));
  found.attr.size = std::max(found.attr.size, size);
  modified(found, now);
  CSV_TRY(store_inode(found));
  return found.attr;
}

Expected<Attr> SqlCatalog::truncate(InodeId inode, std::uint64_t size, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  if (size > kMaxSize) return Error{std::errc::file_too_large, "beyond 16 TiB"};
  auto found = CSV_TRY(load_file(inode));
  bool shrinks = size < found.attr.size;
  if (shrinks) {
    ++found.attr.truncation;
    found.keep_beyond_end = false;
  }
  found.attr.size = size;
  modified(found, now);
  CSV_TRY(store_inode(found));
  if (!shrinks) return found.attr;
  CSV_TRY(free_blocks(inode, blocks_of(size), kMaxFileBlocks));
  return attr(inode);
}

Expected<Catalog::Progress> SqlCatalog::punch(InodeId inode, std::uint64_t first,
                                              std::uint64_t count, bool keep_space,
                                              std::int64_t now) {
  CSV_TRY(may_change(keep_space ? Pages::perhaps : Pages::freed));
  CSV_TRY(check_range(first, count));
  auto at = first, end = first + count;
  if (!keep_space && pages_scarce_ && CSV_TRY(hole_splits_rows(inode, first, end)))
    CSV_TRY(may_change(Pages::perhaps));
  auto found = CSV_TRY(load_file(inode));
  modified(found, now);
  CSV_TRY(store_inode(found));
  if (!keep_space) {
    CSV_TRY(free_blocks(inode, first, end));
    at = end;
  }
  GrantChanges grants;
  std::int64_t blocks = 0;
  std::uint64_t worked = 0;
  while (at < end && worked < work_in_step_) {
    CSV_TRY(finish_freeing(inode, at, at + 1));
    {
      auto row = database_->use(sql_->next_extent, inode, at - at % kWindowBlocks);
      if (!CSV_TRY(row.row())) {
        at = end;
        break;
      }
      auto next = read_extent(row, 0).file_block;
      if (auto start = next - next % kWindowBlocks; start > at) {
        at = std::min(start, end);
        continue;
      }
    }
    auto window = CSV_TRY(load_window(inode, at - at % kWindowBlocks));
    auto until = std::min(end, window.start + kWindowBlocks);
    window.split(at);
    window.split(until);
    worked += 1 + window.rows.size();
    std::vector<Extent> kept;
    std::vector<Run> dropped;
    for (auto& row : window.rows) {
      if (row.end() <= at || row.file_block >= until) {
        kept.push_back(row);
        continue;
      }
      grants[row.grant] -= static_cast<std::int64_t>(row.unwritten());
      row.grant = {};
      row.written = {};
      // Shared space cannot be kept: what is unwritten may be written where it is.
      auto rest = row;
      for (const auto& range : CSV_TRY(shared_in(row.lun_block, row.lun_block + row.count))) {
        auto from = rest.file_block + (range.start - rest.lun_block), to = from + range.length;
        if (from > rest.file_block) kept.push_back(cut(rest, rest.file_block, from));
        dropped.push_back({range.start, range.length});
        blocks -= static_cast<std::int64_t>(range.length);
        if (to == rest.end()) {
          rest.count = 0;
          break;
        }
        rest = cut(rest, to, rest.end());
      }
      if (rest.count > 0) kept.push_back(rest);
    }
    window.rows = std::move(kept);
    CSV_TRY(store_window(window));
    CSV_TRY(drop_names(dropped));
    worked += dropped.size();
    at = until;
  }
  CSV_TRY(add_blocks(inode, blocks));
  CSV_TRY(settle_grants(grants));
  return Progress{CSV_TRY(attr(inode)), at - first};
}

/// It frees blocks, and leaves more rows than it found: a row of the file becomes two, or a range
/// of what is shared is cut.
Expected<bool> SqlCatalog::hole_splits_rows(InodeId inode, std::uint64_t first, std::uint64_t end) {
  auto window_of = [](std::uint64_t block) { return block - block % kWindowBlocks; };
  auto front = CSV_TRY(extents_in(inode, first, std::min(end, window_of(first) + kWindowBlocks)));
  auto back = CSV_TRY(extents_in(inode, std::max(first, window_of(end - 1)), end));
  if (first > 0 && window_of(first - 1) == window_of(end)) {
    for (const auto& row : CSV_TRY(extents_in(inode, first - 1, end + 1)))
      if (row.file_block < first && row.end() > end) return true;
  }
  auto cut_at = [&](std::uint64_t lun_block) -> Expected<bool> {
    if (lun_block == 0) return false;
    auto around = CSV_TRY(shared_in(lun_block - 1, lun_block + 1));
    return std::any_of(around.begin(), around.end(),
                       [](const SharedRange& range) { return range.length == 2; });
  };
  if (!any_shared()) return false;
  if (!front.empty() && CSV_TRY(cut_at(front.front().lun_block))) return true;
  return !back.empty() && CSV_TRY(cut_at(back.back().lun_block + back.back().count));
}

Expected<void> SqlCatalog::trim(InodeId inode) {
  CSV_TRY(may_change(Pages::freed));
  auto found = CSV_TRY(load_file(inode));
  if (found.keep_beyond_end) return {};
  // Not what is granted: whoever holds it may be writing it. Dropping the grant frees it.
  auto at = blocks_of(found.attr.size);
  for (auto budget = work_in_step_; budget > 0;) {
    Extent next;
    {
      auto row = database_->use(sql_->next_extent, inode, at - at % kWindowBlocks);
      if (!CSV_TRY(row.row())) return {};
      next = read_extent(row, 0);
    }
    auto from = std::max(at, next.file_block);
    auto until = from - from % kWindowBlocks + kWindowBlocks;
    for (const auto& extent : CSV_TRY(extents_in(inode, from, until)))
      if (extent.grant == GrantId{}) {
        CSV_TRY(free_some(inode, extent.file_block, extent.end(), budget));
      }
    at = until;
  }
  return {};
}

Expected<void> SqlCatalog::keep_beyond_end(InodeId inode) {
  CSV_TRY(may_change(Pages::freed));
  auto found = CSV_TRY(load_file(inode));
  found.keep_beyond_end = true;
  return store_inode(found);
}

Expected<std::uint64_t> SqlCatalog::seek(InodeId inode, std::uint64_t offset, bool data) {
  auto found = CSV_TRY(load_file(inode));
  auto size = found.attr.size;
  if (offset >= size) return errno_error(ENXIO, "seeking beyond the end");
  auto answer = [&](std::uint64_t block) { return std::max(offset, block * kBlockSize); };
  auto at = offset / kBlockSize, end = blocks_of(size);
  while (at < end) {
    auto until = std::min(end, at - at % kWindowBlocks + kWindowBlocks);
    auto extents = CSV_TRY(extents_in(inode, at, until));
    for (const auto& extent : extents) {
      if (!data && extent.file_block > at) return answer(at);
      auto hit = extent.written.next(data, 0, extent.count);
      if (hit < extent.count) return answer(extent.file_block + hit);
      at = extent.end();
    }
    if (!data && at < until) return answer(at);
    at = until;
    if (!data || !extents.empty()) continue;
    auto row = database_->use(sql_->next_extent, inode, at);  // over a hole of any length at once
    if (!CSV_TRY(row.row())) break;
    at = read_extent(row, 0).file_block;
  }
  if (data) return errno_error(ENXIO, "no data up to the end");
  return size;
}

// --- Freed blocks (A15) -----------------------------------------------------------

Expected<std::vector<Run>> SqlCatalog::dying(std::size_t limit) {
  std::vector<Run> runs;
  auto row = database_->use(sql_->list_dying, limit);
  while (CSV_TRY(row.row())) runs.push_back({row.u64(0), row.u64(1)});
  return runs;
}

Expected<void> SqlCatalog::make_free(std::span<const Run> runs) {
  CSV_TRY(may_change(Pages::freed));
  struct Row {
    std::uint64_t id = 0;
    Run run;
  };
  auto before = [&](std::uint64_t end) -> Expected<std::optional<Row>> {
    auto row = database_->use(sql_->dying_before, end);
    if (!CSV_TRY(row.row())) return std::optional<Row>{};
    return std::optional{Row{row.u64(0), {row.u64(1), row.u64(2)}}};
  };
  for (bool looking : {true, false}) {  // first whether all of it is dying
    for (const auto& run : runs) {
      for (auto end = run.lun_block + run.count; end > run.lun_block;) {
        auto row = CSV_TRY(before(end));
        if (!row || row->run.lun_block + row->run.count < end)
          return Error{Errc::refused,
                       "block " + std::to_string(end - 1) + " is not dying, so it cannot be free"};
        auto first = std::max(row->run.lun_block, run.lun_block);
        if (!looking) {
          auto behind = row->run.lun_block + row->run.count - end;
          if (first > row->run.lun_block)
            CSV_TRY(database_->run(sql_->set_dying, row->id, first - row->run.lun_block));
          else
            CSV_TRY(database_->run(sql_->delete_dying, row->id));
          if (behind > 0) CSV_TRY(database_->run(sql_->insert_dying, end, behind));
        }
        end = first;
      }
      if (!looking) counters_.dying -= run.count;
    }
  }
  return allocator_.release(runs);
}

Expected<Catalog::Space> SqlCatalog::space() {
  Space space;
  space.total = area_blocks_;
  space.dying = counters_.dying;
  space.free = allocator_.available() + counters_.dying;
  space.inodes = counters_.inodes;
  auto row = database_->use(sql_->any_freeing);
  space.freeing = CSV_TRY(row.row()) && !freeing_put_off_;
  return space;
}

}  // namespace csv::volume
