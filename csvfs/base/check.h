#pragma once
#include <source_location>

namespace csv {

/// Says what was impossible, where, and aborts. In release builds too: a stopped node is fenced and
/// replaced, a wrong node writes on everybody's disk.
[[noreturn]] void check_failed(const char* what,
                               std::source_location where = std::source_location::current());

/// For what cannot happen unless our own code is wrong. Bad input is never checked with this.
#define CSV_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::csv::check_failed(#condition))

}  // namespace csv
