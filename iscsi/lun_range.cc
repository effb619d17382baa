#include "iscsi/lun_range.h"

#include "csvfs/base/log.h"

namespace csv::iscsi {

Expected<void> check_range(const Geometry& geometry, std::string_view what, std::uint64_t offset,
                           std::uint64_t length) {
  auto block = geometry.block_size;
  auto size = geometry.size_bytes();
  if (!geometry.known())
    return Error{Errc::reservation_conflict,
                 "a reservation keeps us out, so that not even the LUN's size is known"};
  if (offset % block || length % block)
    return Error{Errc::refused,
                 fmt::format("{} of {} bytes at {}: not a multiple of the block size {}", what,
                             length, offset, block)};
  if (offset > size || length > size - offset)
    return Error{Errc::refused,
                 fmt::format("{} of {} bytes at {}: beyond the end of the LUN ({} bytes)", what,
                             length, offset, size)};
  return {};
}

}  // namespace csv::iscsi
