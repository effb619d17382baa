#pragma once
#include <cstdint>
#include <string_view>

#include "csvfs/base/error.h"
#include "iscsi/lun.h"

namespace csv::iscsi {

/// Whether [offset, offset + length) is whole blocks of such a LUN; else Errc::refused, saying why.
/// `what` is for the message: "a write". Errc::reservation_conflict if the geometry is not known.
Expected<void> check_range(const Geometry& geometry, std::string_view what, std::uint64_t offset,
                           std::uint64_t length);

}  // namespace csv::iscsi
