#pragma once
#include <memory>
#include <vector>

#include "coordinator/service/fencing.h"
#include "coordinator/service/tenure.h"
#include "coordinator/service/volume_service.h"

namespace csv::service {

/// A volume taken over: nobody else can change its catalog, whatever they believe, and every key on
/// the LUN is our own or has a live row.
struct Taken {
  TenureRef tenure;
  std::unique_ptr<Fencing> fencing;  ///< Uses tenure->lun.
  Key key{};
  Epoch epoch{};
  TimePoint proven_at{};  ///< A command sent then found our key in force, after the fence.
  std::vector<volume::SessionRow> sessions;      ///< Ended ones too.
  std::vector<volume::AdmissionRow> admissions;  ///< Live ones only.
};

/// In the order that makes it safe, each step with its reason in the .cc file. On an error nothing
/// of it goes on: the LUN is closed, and our key is withdrawn if nothing had been changed yet.
Task<Expected<Taken>> take_over_volume(Surroundings surroundings);

}  // namespace csv::service
