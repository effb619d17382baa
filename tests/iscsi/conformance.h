#pragma once
#include <functional>
#include <memory>
#include <string>

#include "csvfs/base/asio_loop.h"
#include "iscsi/lun.h"

namespace csv::iscsi {

/// A logical unit the conformance suite may destroy the first 8 MiB of, and all reservations.
struct ConformanceTarget {
  /// A fresh nexus (one session) to the disk for this initiator; `index` tells several of one
  /// initiator apart (LunOptions::isid_seed). Aborts the test if it cannot. Called on the test's
  /// thread while the home loop runs on another.
  std::function<std::unique_ptr<Lun>(AsioLoop& home, const std::string& initiator, int index)>
      connect;
};

/// What every implementation of Lun promises in lun.h, as doctest subcases of the calling test
/// case. What the target lacks by its profile must be refused as unsupported.
void check_conformance(const ConformanceTarget& target);

}  // namespace csv::iscsi
