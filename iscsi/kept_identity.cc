#include "iscsi/kept_identity.h"

#include <span>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"

namespace csv::iscsi {

std::string kept_identity(const std::string& whole) {
  constexpr std::size_t kLongest = 127;
  if (whole.size() <= kLongest) return whole;
  // Long ones tend to differ at their ends.
  return fmt::format("{}~{:08x}", whole.substr(0, kLongest - 9),
                     crc32c(std::as_bytes(std::span{whole})));
}

}  // namespace csv::iscsi
