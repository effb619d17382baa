#include "coordinator/service/tenure.h"

namespace csv::service {

Tenure::Tenure(Loop& on, std::unique_ptr<iscsi::Lun> way, std::unique_ptr<Worker> writer,
               std::uint64_t seed)
    : loop{&on},
      lun{std::move(way)},
      worker{std::move(writer)},
      blocking{*lun, worker->blocking()},
      random{seed} {}

std::shared_ptr<Tenure> Tenure::make(Loop& loop, std::unique_ptr<iscsi::Lun> lun,
                                     std::unique_ptr<Worker> worker, std::uint64_t seed) {
  auto* made = new Tenure{loop, std::move(lun), std::move(worker), seed};
  return std::shared_ptr<Tenure>{made, [](Tenure* tenure) {
                                   tenure->lun->close();
                                   tenure->worker->post([tenure] {
                                     tenure->copy.reset();
                                     tenure->catalog.reset();
                                     tenure->store.reset();
                                     tenure->loop->post([tenure] { delete tenure; });
                                   });
                                 }};
}

}  // namespace csv::service
