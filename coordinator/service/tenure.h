#pragma once
#include <memory>

#include "coordinator/volume/catalog.h"
#include "coordinator/volume/catalog_copy.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/blocking.h"
#include "csvfs/base/random.h"
#include "csvfs/base/task.h"
#include "iscsi/blocking_lun.h"

namespace csv::service {

/// What a coordinator stands on for as long as it coordinates: its own way to the LUN under its own
/// key, the volume's writer thread, and on that thread the catalog. Shared by whatever is under way
/// on either thread; the last reference is always dropped on the loop.
///
/// Its end is asynchronous, because a thread that waits for the LUN can only be joined while the
/// loop runs: the LUN is closed (so that nothing waits any more), the catalog goes on the writer
/// thread, the rest on the loop. The loop must run for a moment after that.
struct Tenure {
  Loop* loop = nullptr;
  std::unique_ptr<iscsi::Lun> lun;
  std::unique_ptr<Worker> worker;
  iscsi::BlockingLun blocking;  ///< The writer thread's.
  Random random;                ///< The writer thread's: SQLite's salts.
  volume::VolumeInfo info;
  // The writer thread's, too.
  std::unique_ptr<volume::CatalogStore> store;
  std::unique_ptr<volume::Catalog> catalog;
  std::unique_ptr<volume::CopyTaker> copy;  ///< While a copy of the catalog is taken.

  static std::shared_ptr<Tenure> make(Loop& loop, std::unique_ptr<iscsi::Lun> lun,
                                      std::unique_ptr<Worker> worker, std::uint64_t seed);

 private:
  Tenure(Loop& on, std::unique_ptr<iscsi::Lun> way, std::unique_ptr<Worker> writer,
         std::uint64_t seed);
};
using TenureRef = std::shared_ptr<Tenure>;

/// Runs `work` on the writer thread and hands its result back on the loop. `work` may outlive the
/// task, so it owns what it needs.
template <typename T>
Task<T> on_writer(TenureRef tenure, Function<T(Tenure&)> work) {
  co_return co_await completion<T>([&tenure, &work](auto done) {
    auto& worker = *tenure->worker;
    worker.post([tenure, work = std::move(work), done = std::move(done)]() mutable {
      auto result = work(*tenure);
      auto& loop = *tenure->loop;
      loop.post([tenure = std::move(tenure), result = std::move(result),
                 done = std::move(done)]() mutable { done(std::move(result)); });
    });
  });
}

}  // namespace csv::service
