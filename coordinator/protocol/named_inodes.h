#pragma once
#include <vector>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/ids.h"

namespace csv::protocol {

/// The inodes that a request names: whose state it asks for, or changes. (What it finds under a
/// name is in the reply.) Empty for those that are about no inode, and for locks, which are not its
/// state.
[[nodiscard]] std::vector<InodeId> named_inodes(const wire::Request& request);

/// Whether a request of this kind changes something, so that repeating it is not harmless: it takes
/// a slot.
[[nodiscard]] bool must_be_once(const wire::Request& request);

}  // namespace csv::protocol
