#include "coordinator/admin/paint.h"

#include <unistd.h>

#include <cstdlib>

namespace csv::admin {

Paint Paint::standard() {
  const char* no = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  bool plain =
      (no != nullptr && *no != '\0') || term == nullptr || std::string_view{term} == "dumb";
  return Paint{!plain && ::isatty(STDOUT_FILENO) == 1};
}

}  // namespace csv::admin
