// The database's own pages (C4): chunks are taken before they are needed, never inside SQLite.
#include <algorithm>

#include "coordinator/volume/catalog_sql.h"
#include "csvfs/base/log.h"

namespace csv::volume {

namespace {
constexpr std::uint64_t kChunkPages = kChunkSize / 4096;
/// Only what frees space may use the last pages, so that a full volume can always be emptied: two
/// chunks (of the three that a volume begins with).
constexpr std::uint64_t kKeptForFreeing = 2 * kChunkPages;
/// With fewer pages left beside those another chunk is mapped.
constexpr std::uint64_t kGrowBelow = kChunkPages / 2;
/// So many groups of changes run before a thin LUN without space is asked again: asking it may mean
/// writing most of a chunk.
constexpr std::uint32_t kGroupsUntilGrowth = 1000;
}  // namespace

Expected<std::uint64_t> SqlCatalog::free_pages() {
  std::uint64_t used = 0, free = 0;
  {
    auto row = database_->use(sql_->page_count);
    if (CSV_TRY(row.row())) used = row.u64(0);
  }
  {
    auto row = database_->use(sql_->freelist_count);
    if (CSV_TRY(row.row())) free = row.u64(0);
  }
  auto mapped = std::uint64_t{store_.mapped_pages()};
  return mapped - std::min(mapped, used) + free;
}

Expected<void> SqlCatalog::make_room() {
  if (database_->log_bytes() >= log_size_ / 2) {
    CSV_TRY(database_->checkpoint());
    ++statistics_.checkpoints;
  }
  auto kept = [this] {
    return std::min<std::uint64_t>(kKeptForFreeing, store_.mapped_pages() / 3 * 2);
  };
  auto pages = CSV_TRY(free_pages());
  if (pages < kept() + kGrowBelow && CSV_TRY(grow_database())) pages = CSV_TRY(free_pages());
  pages_short_ = pages < kept();
  pages_scarce_ = pages < kept() / 2;
  return {};
}

Expected<bool> SqlCatalog::grow_database() {
  auto number = store_.info().chunks.size();
  if (number == kMaxChunks) return false;
  if (groups_until_growth_ > 0 && groups_until_growth_-- > 1) return false;
  auto group = allocator_.whole_group();
  if (!group && group.error() == std::errc::no_space_on_device) return false;
  CSV_TRY(Expected<Run>{group});
  auto at = group->lun_block * kBlockSize;
  auto claimed = store_.claim_chunk(at);
  if (!claimed && claimed.error() == Errc::bad_medium) {
    log::warning("catalog does not grow here volume={} offset={} reason=\"{}\"",
                 store_.info().label, at, claimed.error().message());
    allocator_.avoid(*group);
    return false;
  }
  if (!claimed && claimed.error() == std::errc::no_space_on_device) {
    log::warning("catalog cannot grow volume={} reason=\"{}\"", store_.info().label,
                 claimed.error().message());
    groups_until_growth_ = kGroupsUntilGrowth;
    return false;
  }
  CSV_TRY(Expected<void>{claimed});
  auto list_it = [&]() -> Expected<void> {
    CSV_TRY(allocator_.use({&*group, 1}));
    CSV_TRY(database_->run(sql_->put_chunk, at, number));
    return {};
  };
  if (auto listed = in_own_transaction(list_it); !listed) {
    if (!(listed.error() == std::errc::no_space_on_device)) return listed.error();
    // No page is left for the group's own row: undone, and put off. The volume is served as it is.
    log::warning("catalog cannot grow volume={} reason=\"no page is left for its own list\"",
                 store_.info().label);
    groups_until_growth_ = kGroupsUntilGrowth;
    return false;
  }
  CSV_TRY(store_.add_chunk(at));
  CSV_TRY(use_mapped_pages());
  return true;
}

Expected<void> SqlCatalog::use_mapped_pages() {
  return database_->execute("PRAGMA max_page_count=" + std::to_string(store_.mapped_pages()));
}

Expected<void> SqlCatalog::finish_growth() {
  std::vector<std::uint64_t> listed;
  {
    auto row = database_->use(sql_->list_chunks);
    while (CSV_TRY(row.row())) {
      if (row.u64(1) != listed.size())
        return Error{Errc::corrupt, "the catalog's list of its chunks has gaps"};
      listed.push_back(row.u64(0));
    }
  }
  const auto mapped = store_.info().chunks;
  if (mapped.size() > listed.size() || !std::equal(mapped.begin(), mapped.end(), listed.begin()))
    return Error{Errc::corrupt, "the superblock maps other chunks than the catalog lists"};
  for (auto number = mapped.size(); number < listed.size(); ++number)
    CSV_TRY(store_.add_chunk(listed[number]));
  return use_mapped_pages();
}

/// The superblocks said the new size first; `area` is what the groups cover so far.
Expected<void> SqlCatalog::finish_area() {
  std::uint64_t area = 0;
  {
    auto row = database_->use(sql_->get_number, std::string_view{"area"});
    if (!CSV_TRY(row.row())) return Error{Errc::corrupt, "the catalog lacks area"};
    area = row.u64(0);
  }
  if (area == area_blocks_) return {};
  if (area > area_blocks_)
    return Error{Errc::corrupt, "the superblock says that the volume is smaller than its catalog"};
  auto grow = [&]() -> Expected<void> {
    CSV_TRY(allocator_.extend(area));
    counters_.free += area_blocks_ - area;
    CSV_TRY(database_->run(sql_->put_number, std::string_view{"area"}, area_blocks_));
    return {};
  };
  return in_own_transaction(grow);
}

}  // namespace csv::volume
