#include "csvfs/base/random.h"

#include <sys/random.h>

#include "csvfs/base/check.h"

namespace csv {

Random Random::from_system() {
  std::uint64_t seed = 0;
  CSV_CHECK(::getrandom(&seed, sizeof seed, 0) == sizeof seed);
  return Random{seed};
}

}  // namespace csv
