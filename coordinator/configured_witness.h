#pragma once
#include <functional>
#include <memory>

#include "coordinator/cluster/configuration.h"
#include "coordinator/cluster/witness.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/config.h"
#include "csvfs/base/random.h"
#include "csvfs/base/task.h"

namespace csv {

/// The witness that a cluster's configuration names, for this node; null where it names none. All
/// that is given outlives it.
std::unique_ptr<cluster::Witness> configured_witness(AsioLoop& loop, Random& random,
                                                     const Config& config,
                                                     const cluster::WitnessRecord& record,
                                                     std::function<ClusterTag()> own_tag);

/// Before a cluster is told of it: that there is a witness at the place which can be its. An empty
/// LUN becomes one. Errors say why it cannot be; nothing is changed then.
/// Its id, for the cluster's record of it.
Task<Expected<std::string>> prepare_witness(AsioLoop& loop, Random& random, const Config& config,
                                            cluster::WitnessRecord record);

}  // namespace csv
