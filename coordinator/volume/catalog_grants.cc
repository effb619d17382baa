// Space that sessions write by themselves (A11).
#include <algorithm>

#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

namespace {
/// What a window that is rewritten costs of a limit, in blocks freed, however few that are.
constexpr std::uint64_t kWindowCost = 32;
}  // namespace

Expected<GrantId> SqlCatalog::new_grant(SessionId session, InodeId inode) {
  CSV_TRY(may_change(Pages::needed));
  CSV_TRY(load_file(inode));
  CSV_TRY(live_session(session));
  GrantId grant{counters_.next_grant++};
  CSV_TRY(database_->run(sql_->insert_grant, grant, session, inode));
  return grant;
}

Expected<void> SqlCatalog::commit_grant(SessionId session, InodeId inode, GrantId grant,
                                        std::uint64_t first, std::uint64_t count,
                                        std::uint64_t truncation) {
  CSV_TRY(may_change(Pages::perhaps));
  Error stale{Errc::stale_commit, "grant " + std::to_string(raw(grant)) + " on inode " +
                                      std::to_string(raw(inode)) + " does not hold any more"};
  auto found = CSV_TRY(load_file(inode));
  if (found.attr.truncation != truncation || grant == GrantId{}) return stale;
  if (first > kMaxFileBlocks || count > kMaxFileBlocks - first)
    return Error{std::errc::file_too_large, "beyond 16 TiB"};
  {
    auto row = database_->use(sql_->get_grant, grant);
    if (!CSV_TRY(row.row()) || SessionId{row.u64(0)} != session || InodeId{row.u64(1)} != inode)
      return stale;
  }
  auto at = first, end = first + count;
  for (const auto& extent : CSV_TRY(extents_in(inode, first, end))) {
    if (extent.file_block != at || extent.grant != grant) return stale;
    at = extent.end();
  }
  if (at != end) return stale;
  CSV_TRY(finish_freeing(inode, first, end));
  GrantChanges grants;
  CSV_TRY(set_written(inode, first, end, &grants));
  return settle_grants(grants);
}

Expected<std::uint64_t> SqlCatalog::drop_grants(SessionId session, InodeId inode,
                                                std::uint64_t limit) {
  CSV_TRY(may_change(Pages::freed));
  std::uint64_t freed = 0, budget = limit;
  GrantId before{};
  while (budget > 0) {
    GrantId grant{};
    {
      auto row = inode == InodeId{} ? database_->use(sql_->grant_of_session, session)
                                    : database_->use(sql_->grant_of_session_on, session, inode);
      if (!CSV_TRY(row.row())) return freed;
      grant = GrantId{row.u64(0)};
    }
    if (grant == before)
      return Error{Errc::corrupt, "grant " + std::to_string(raw(grant)) + " cannot be ended"};
    before = grant;
    freed += CSV_TRY(drop_grant(grant, budget));
  }
  return std::max(freed, limit);
}

Expected<std::uint64_t> SqlCatalog::drop_grant(GrantId grant, std::uint64_t& budget) {
  // What it has written stays the file's; a block at a time goes to dying, window by window.
  std::uint64_t freed = 0;
  while (budget > 0) {
    InodeId inode{};
    std::uint64_t at = 0;
    {
      auto row = database_->use(sql_->extents_of_grant, grant);
      if (!CSV_TRY(row.row())) {
        CSV_TRY(database_->run(sql_->delete_grant, grant));
        --budget;
        break;
      }
      inode = InodeId{row.u64(0)};
      at = row.u64(1);
    }
    auto window = CSV_TRY(load_window(inode, at - at % kWindowBlocks));
    std::vector<Extent> kept;
    std::vector<Run> runs;
    std::uint64_t here = 0;
    bool found = false;
    for (const auto& row : window.rows) {
      if (row.grant != grant) {
        kept.push_back(row);
        continue;
      }
      found = true;
      for (std::uint64_t from = 0; from < row.count;) {
        auto is_written = row.written.get(from);
        auto to = row.written.next(!is_written, from, row.count);
        if (is_written) {
          kept.push_back(cut(row, row.file_block + from, row.file_block + to));
          kept.back().grant = {};
        } else {
          runs.push_back({row.lun_block + from, to - from});
          here += to - from;
        }
        from = to;
      }
    }
    // Index and table disagree: looking again would find the same for ever.
    if (!found)
      return Error{Errc::corrupt, "the catalog lists an extent of grant " +
                                      std::to_string(raw(grant)) + " that is not there"};
    window.rows = std::move(kept);
    CSV_TRY(store_window(window));
    CSV_TRY(drop_names(runs));
    CSV_TRY(add_blocks(inode, -static_cast<std::int64_t>(here)));
    // The row's count follows, so that a limit that ends us here leaves it right. Not by
    // settle_grants(), which at 0 would end the grant on all rows that are left at once.
    std::uint64_t unwritten = 0;
    {
      auto row = database_->use(sql_->get_grant, grant);
      if (!CSV_TRY(row.row()))
        return Error{Errc::corrupt,
                     "extents of grant " + std::to_string(raw(grant)) + ", which is no row"};
      unwritten = row.u64(2);
    }
    if (here > 0) CSV_TRY(database_->run(sql_->set_grant, grant, unwritten - here));
    freed += here;
    budget -= std::min(budget, here + kWindowCost);
  }
  return freed;
}

}  // namespace csv::volume
