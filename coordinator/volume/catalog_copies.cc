// Where copies of the catalog lie on its own volume, and where one begins.
#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

/// There is one kind of catalog.
CopySpace& copy_space(Catalog& catalog) { return static_cast<SqlCatalog&>(catalog); }

Expected<std::vector<std::uint64_t>> SqlCatalog::copy_places(std::uint32_t slot,
                                                             std::uint64_t pages) {
  CSV_TRY(may_change(Pages::freed));
  std::vector<std::uint64_t> places;
  {
    auto row = database_->use(sql_->list_copies, slot);
    while (CSV_TRY(row.row())) places.push_back(row.u64(0));
  }
  while (places.size() < copy_groups(pages)) {
    CSV_TRY(may_change(Pages::needed));
    auto group = allocator_.whole_group();
    if (!group && group.error() == std::errc::no_space_on_device) break;
    CSV_TRY(Expected<Run>{group});
    CSV_TRY(allocator_.use({&*group, 1}));
    auto at = group->lun_block * kBlockSize;
    CSV_TRY(database_->run(sql_->put_copy, slot, std::uint64_t{places.size()}, at));
    places.push_back(at);
  }
  return places;
}

Expected<std::uint64_t> SqlCatalog::pages() {
  auto row = database_->use(sql_->page_count);
  if (!CSV_TRY(row.row())) return Error{Errc::corrupt, "the database does not say its size"};
  return row.u64(0);
}

}  // namespace csv::volume
