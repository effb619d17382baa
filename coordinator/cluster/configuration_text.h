#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/cluster/configuration.h"

namespace csv::cluster {

/// A configuration as an administrator keeps it: TOML, with a comment for each thing that is not
/// plain. It has what was decided by people; tag, ballot and the coordinators of the moment are the
/// cluster's own business and not in it.
std::string to_toml(const Configuration& configuration);

/// The other way; tag, ballot and coordinators are empty. Errc::refused for whatever does not make
/// a sane configuration: "FILE:LINE:COLUMN: what stands there, and what was expected".
Expected<Configuration> from_toml(std::string_view text, const std::string& file_name);

/// `now` with everything that people decide as in `wanted`. Nodes that `wanted` has not are taken
/// out. Errc::refused if it is of another cluster, or set_witness() refuses its witness.
Expected<Configuration> replaced(const Configuration& now, const Configuration& wanted);

/// What would be different, a line each, for people; empty: nothing is.
std::vector<std::string> differences(const Configuration& now, const Configuration& then);

}  // namespace csv::cluster
