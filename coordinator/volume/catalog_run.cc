// Group commit (A12, C1) and the work between groups.
#include <algorithm>

#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

namespace {
/// Pages a changed row dirties, with its indexes, if its neighbours do not share them.
constexpr std::uint64_t kPagesPerRow = 3;
constexpr std::uint64_t kCheckpointAt = 16ull << 20;

/// Errors that are one change's own; after any other the connection's state is in doubt.
bool is_too_large(const Error& error) {
  return error == std::errc::no_space_on_device || error == std::errc::not_enough_memory;
}
}  // namespace

Expected<void> SqlCatalog::may_change(Pages pages) const {
  if (!in_change_ || read_only_)
    return Error{Errc::refused, "the catalog is changed outside of a change"};
  if ((pages == Pages::needed && pages_short_) || (pages == Pages::perhaps && pages_scarce_))
    return Error{std::errc::no_space_on_device,
                 "the catalog cannot grow: no allocation group is wholly free"};
  return {};
}

Expected<void> SqlCatalog::healthy() const {
  if (!failed_) return failed_;
  return store_.health();
}

Expected<void> SqlCatalog::once(Expected<void> result) {
  if (result) return result;
  if (failed_) failed_ = store_.health();  // says more than SQLite does
  if (failed_) failed_ = result;
  return failed_;
}

std::uint64_t SqlCatalog::dirty_pages() const {
  return (database_->total_changes() - changes_at_begin_) * kPagesPerRow + extra_cost_;
}

// --- Transactions -----------------------------------------------------------------

Expected<void> SqlCatalog::begin() {
  CSV_TRY(database_->run(sql_->begin));
  changes_at_begin_ = database_->total_changes();
  extra_cost_ = 0;
  return {};
}

Expected<void> SqlCatalog::store_counters() {
  auto store = [&](std::string_view key, std::uint64_t now,
                   std::uint64_t before) -> Expected<void> {
    if (now != before) CSV_TRY(database_->run(sql_->put_number, key, now));
    return {};
  };
  CSV_TRY(store("free", counters_.free, stored_.free));
  CSV_TRY(store("dying", counters_.dying, stored_.dying));
  CSV_TRY(store("inodes", counters_.inodes, stored_.inodes));
  CSV_TRY(store("next_inode", counters_.next_inode, stored_.next_inode));
  CSV_TRY(store("next_session", counters_.next_session, stored_.next_session));
  CSV_TRY(store("next_grant", counters_.next_grant, stored_.next_grant));
  CSV_TRY(store("next_key", counters_.next_key, stored_.next_key));
  CSV_TRY(store("target_losses", counters_.target_losses, stored_.target_losses));
  CSV_TRY(store("key_generation", counters_.key_generation, stored_.key_generation));
  CSV_TRY(store("schema_version", counters_.schema, stored_.schema));
  return {};
}

Expected<void> SqlCatalog::commit() {
  CSV_TRY(store_counters());
  bool changed = database_->total_changes() != changes_at_begin_;
  CSV_TRY(database_->run(sql_->commit));
  CSV_TRY(store_.health());
  stored_ = counters_;
  allocator_.committed();
  if (changed) ++statistics_.transactions;
  return {};
}

void SqlCatalog::undo_totals(const Counters& to) {
  // The numbers go on: nothing that somebody may have seen is given out again.
  counters_.free = to.free;
  counters_.dying = to.dying;
  counters_.inodes = to.inodes;
  counters_.schema = to.schema;
}

Expected<void> SqlCatalog::give_up_transaction() {
  database_->clear_failure();
  if (database_->in_transaction()) CSV_TRY(database_->run(sql_->rollback));
  allocator_.undo_all();
  undo_totals(stored_);
  return {};
}

Expected<void> SqlCatalog::in_own_transaction(Function<Expected<void>()> body) {
  CSV_TRY(begin());
  allocator_.begin_change();
  in_change_ = true;
  auto result = body();
  in_change_ = false;
  if (result) result = commit();
  if (result) return result;
  CSV_TRY(give_up_transaction());
  return result;
}

// --- Groups of changes ------------------------------------------------------------

Expected<void> SqlCatalog::run_body(Change& change) {
  if (!change.read_only) CSV_TRY(database_->run(sql_->savepoint));
  at_change_ = counters_;
  allocator_.begin_change();
  in_change_ = true;
  read_only_ = change.read_only;
  change.result = change.body(*this);
  in_change_ = read_only_ = false;
  CSV_TRY(Expected<void>{database_->failure()});
  if (!database_->in_transaction())
    return Error{std::errc::no_space_on_device, "the transaction was destroyed"};
  if (!change.result) {
    if (!change.read_only) CSV_TRY(database_->run(sql_->rollback_to));
    allocator_.undo_change();
    undo_totals(at_change_);
  }
  if (!change.read_only) CSV_TRY(database_->run(sql_->release));
  ++statistics_.changes;
  return {};
}

Expected<bool> SqlCatalog::run_some(std::span<Change> changes, std::size_t& next) {
  CSV_TRY(begin());
  do {
    if (auto ran = run_body(changes[next]); !ran) {
      if (!is_too_large(ran.error())) return ran.error();
      CSV_TRY(give_up_transaction());
      return false;
    }
    ++next;
  } while (next < changes.size() && dirty_pages() < most_dirty_pages_);
  CSV_TRY(commit());
  return true;
}

Expected<void> SqlCatalog::run_alone(Change& change) {
  CSV_TRY(make_room());
  CSV_TRY(begin());
  auto ran = run_body(change);
  if (ran) return commit();
  if (!is_too_large(ran.error())) return ran;
  CSV_TRY(give_up_transaction());
  change.result = ran;
  return {};
}

Expected<void> SqlCatalog::run_all(std::span<Change> changes) {
  CSV_TRY(healthy());
  for (std::size_t next = 0; next < changes.size();) {
    CSV_TRY(make_room());
    auto first = next;
    if (CSV_TRY(run_some(changes, next))) continue;
    // A12: whoever was in it, the one that broke it too, gets a transaction of its own.
    for (auto& change : changes.subspan(first, next + 1 - first)) CSV_TRY(run_alone(change));
    ++next;
  }
  return healthy();
}

Expected<void> SqlCatalog::run(std::span<Change> changes) { return once(run_all(changes)); }

// --- Between groups ---------------------------------------------------------------

Expected<void> SqlCatalog::checkpoint() {
  return once([&]() -> Expected<void> {
    CSV_TRY(healthy());
    CSV_TRY(database_->checkpoint());
    ++statistics_.checkpoints;
    return healthy();
  }());
}

Expected<void> SqlCatalog::empty_log() {
  return once([&]() -> Expected<void> {
    CSV_TRY(healthy());
    CSV_TRY(database_->empty_log());
    ++statistics_.checkpoints;
    return healthy();
  }());
}

Expected<void> SqlCatalog::maintain() {
  return once([&]() -> Expected<void> {
    CSV_TRY(healthy());
    CSV_TRY(make_room());
    if (database_->log_bytes() >= std::min(kCheckpointAt, log_size_ / 4)) CSV_TRY(checkpoint());
    freeing_put_off_ = false;
    if (CSV_TRY(space()).freeing) {
      auto stepped = in_own_transaction([&] { return step_freeing(); });
      // What is dying has rows as well. Whatever else gives a page back makes it go on.
      freeing_put_off_ = !stepped && is_too_large(stepped.error());
      if (!freeing_put_off_) CSV_TRY(stepped);
    }
    return healthy();
  }());
}

/// Every change of a directory's entries changes its row too (times, size, next cookie), so that
/// the rows of `inodes` tell of names as well.
Catalog::Changed SqlCatalog::take_changed() {
  auto inodes_of = [](const std::vector<std::int64_t>& rows) {
    std::vector<InodeId> inodes;
    for (auto row : rows) inodes.push_back(static_cast<InodeId>(static_cast<std::uint64_t>(row)));
    return inodes;
  };
  Changed changed;
  changed.inodes = inodes_of(database_->take_changed());
  auto minor = inodes_of(database_->take_changed_a_little());
  std::set_difference(minor.begin(), minor.end(), changed.inodes.begin(), changed.inodes.end(),
                      std::back_inserter(changed.access_times));
  return changed;
}

Catalog::Statistics SqlCatalog::statistics() const {
  auto now = statistics_;
  now.wal_bytes = database_->log_bytes();
  return now;
}

}  // namespace csv::volume
