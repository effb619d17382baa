#include "csvfs/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace csv {

void check_failed(const char* what, std::source_location where) {
  std::fprintf(stderr, "csvfs: impossible: !(%s) at %s:%u\n", what, where.file_name(),
               static_cast<unsigned>(where.line()));
  std::fflush(stderr);
  std::abort();
}

}  // namespace csv
