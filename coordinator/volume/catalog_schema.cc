// Making and opening a catalog.
#include <sys/stat.h>

#include "coordinator/volume/catalog_memory.h"
#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

SqlCatalog::SqlCatalog(CatalogStore& store, std::unique_ptr<Database> database)
    : store_{store},
      database_{std::move(database)},
      area_first_{store.info().data_offset / kBlockSize},
      area_blocks_{store.info().data_size / kBlockSize},
      log_size_{store.info().wal_size},
      // A transaction always fits into half of the log, of a small one too.
      work_in_step_{std::min<std::uint64_t>(1024, store.info().wal_size / (32 << 10))},
      most_dirty_pages_{
          std::min<std::uint64_t>((4ull << 20) / 4096, store.info().wal_size / 16 / 4096)},
      allocator_{*database_, counters_, area_first_, area_blocks_},
      sql_{std::make_unique<Statements>()} {}

SqlCatalog::~SqlCatalog() = default;

Expected<void> SqlCatalog::fill_empty(std::int64_t now) {
  CSV_TRY(database_->execute(kSchema));
  CSV_TRY(database_->run(sql_->put_number, std::string_view{"birth"}, birth_));
  CSV_TRY(database_->run(sql_->put_number, std::string_view{"area"}, area_blocks_));

  Attr root;
  root.inode = root.parent = kRootInode;
  root.mode = S_IFDIR | 0755;
  root.nlink = 2;
  CSV_TRY(database_->run(sql_->insert_inode, root.inode, root.mode, root.uid, root.gid, root.nlink,
                         root.rdev, root.size, root.blocks, now, now, now, now, root.truncation,
                         root.parent, 3, false, nullptr));
  counters_.inodes = 1;
  counters_.schema = kSchemaPlain;

  CSV_TRY(allocator_.create());
  std::uint64_t number = 0;
  for (auto at : store_.info().chunks) {
    Run run{at / kBlockSize, kChunkSize / kBlockSize};
    CSV_TRY(allocator_.use({&run, 1}));
    CSV_TRY(database_->run(sql_->put_chunk, at, number++));
  }
  // store_counters() writes what differs from `stored_`: all of it, this once.
  stored_ = {UINT64_MAX, UINT64_MAX, UINT64_MAX, 0, 0, 0, 0, 0, 0, 0};
  return store_counters();
}

Expected<void> SqlCatalog::load() {
  auto number = [&](std::string_view key, bool there = true) -> Expected<std::uint64_t> {
    auto row = database_->use(sql_->get_number, key);
    bool found = CSV_TRY(row.row());
    if (!found && !there) return 0;
    if (!found) return Error{Errc::corrupt, "the catalog lacks " + std::string{key}};
    return row.u64(0);
  };
  counters_.schema = CSV_TRY(number("schema_version"));
  if (!is_known_schema(counters_.schema))
    return Error{Errc::refused, "the catalog has schema " + std::to_string(counters_.schema) +
                                    ", this program knows " + std::to_string(kSchemaVersion)};
  counters_.free = CSV_TRY(number("free"));
  counters_.dying = CSV_TRY(number("dying"));
  counters_.inodes = CSV_TRY(number("inodes"));
  counters_.next_inode = CSV_TRY(number("next_inode"));
  counters_.next_session = CSV_TRY(number("next_session"));
  counters_.next_grant = CSV_TRY(number("next_grant"));
  counters_.next_key = CSV_TRY(number("next_key"));
  // Written when there is something to be said.
  counters_.target_losses = CSV_TRY(number("target_losses", false));
  counters_.key_generation = CSV_TRY(number("key_generation", false));
  birth_ = CSV_TRY(number("birth"));
  stored_ = counters_;
  database_->gather_changes_of("inodes");
  CSV_TRY(finish_area());
  CSV_TRY(finish_growth());
  CSV_TRY(add_later_tables());
  return store_.health();
}

Expected<void> SqlCatalog::add_later_tables() {
  {
    auto row = database_->use(sql_->has_table, std::string_view{"shared"});
    if (CSV_TRY(row.row())) return {};
  }
  if (any_shared()) return Error{Errc::corrupt, "the catalog lacks the table of what files share"};
  return in_own_transaction([this] { return database_->execute(kLaterTables); });
}

Expected<void> Catalog::create(CatalogStore& store, std::int64_t now) {
  auto database = CSV_TRY(Database::open(store.path(), store.vfs(), {.create = true}));
  auto* made = database.get();
  CSV_TRY(made->execute("PRAGMA max_page_count=" + std::to_string(store.mapped_pages())));
  SqlCatalog catalog{store, std::move(database)};
  CSV_TRY(made->execute("BEGIN IMMEDIATE"));
  CSV_TRY(catalog.fill_empty(now));
  CSV_TRY(made->execute("COMMIT"));
  CSV_TRY(made->checkpoint());
  return store.health();
}

namespace {
Expected<std::unique_ptr<Catalog>> load_from(CatalogStore& store,
                                             std::unique_ptr<Database> database) {
  auto catalog = std::make_unique<SqlCatalog>(store, std::move(database));
  CSV_TRY(catalog->load());
  return std::unique_ptr<Catalog>{std::move(catalog)};
}
}  // namespace

Expected<std::unique_ptr<Catalog>> Catalog::open(CatalogStore& store) {
  return load_from(store, CSV_TRY(Database::open(store.path(), store.vfs(), {})));
}

Expected<std::unique_ptr<Catalog>> open_catalog(CatalogStore& store, std::uint64_t page_cache) {
  auto database = CSV_TRY(Database::open(store.path(), store.vfs(), {}));
  CSV_TRY(database->execute("PRAGMA cache_size=-" + std::to_string(page_cache / 1024)));
  return load_from(store, std::move(database));
}

}  // namespace csv::volume
