#pragma once
#include <cstdint>

namespace csv {

/// Whether a reading now is to become the access time: if nobody has read since the last change, or
/// for a day. Times in ns since 1970.
constexpr bool relatime_due(std::int64_t atime, std::int64_t mtime, std::int64_t ctime,
                            std::int64_t now) {
  constexpr std::int64_t kDay = 86'400'000'000'000;
  return atime <= mtime || atime <= ctime || now - atime >= kDay;
}

}  // namespace csv
