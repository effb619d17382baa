#pragma once
#include <cstdint>

#include "csvfs/base/error.h"
#include "iscsi/blocking_lun.h"

namespace csv::volume {

/// On a thin LUN, writes [from, from + size) of the LUN through, so that later writes there find
/// space; what the range held is gone. Elsewhere nothing is done. std::errc::no_space_on_device:
/// the LUN has not so much; Errc::bad_medium: it cannot write there. What was taken of it has been
/// given back then, where UNMAP can be used.
Expected<void> claim(iscsi::BlockingLun& lun, std::uint64_t from, std::uint64_t size);

}  // namespace csv::volume
