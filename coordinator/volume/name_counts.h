#pragma once
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

/// Calls `each(range)` for every run of LUN blocks that extent rows name, in order, with how many
/// do. Neighbours have different counts. Rows that no catalog can have are passed over.
template <typename F>
Expected<void> for_each_named(Database& database, F each) {
  std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> ends;
  SharedRange pending;
  auto tell = [&](std::uint64_t first, std::uint64_t end) {
    if (first >= end || ends.empty()) return;
    if (pending.length > 0 && pending.end() == first && pending.count == ends.size()) {
      pending.length += end - first;
      return;
    }
    if (pending.length > 0) each(std::as_const(pending));
    pending = {first, end - first, ends.size()};
  };
  std::uint64_t at = 0;
  auto advance = [&](std::uint64_t to) {
    while (!ends.empty() && ends.top() <= to) {
      tell(at, ends.top());
      at = ends.top();
      ends.pop();
    }
    tell(at, to);
    at = to;
  };
  constexpr std::int64_t kMost = std::int64_t{1} << 60;
  Statement sorted{"SELECT lun_block,count FROM extents ORDER BY lun_block"};
  auto row = database.use(sorted);
  while (CSV_TRY(row.row())) {
    if (row.i64(0) < 0 || row.i64(0) > kMost || row.u64(1) == 0 || row.u64(1) > kWindowBlocks)
      continue;
    advance(row.u64(0));
    ends.push(row.u64(0) + row.u64(1));
  }
  advance(UINT64_MAX);
  if (pending.length > 0) each(std::as_const(pending));
  return {};
}

}  // namespace csv::volume
