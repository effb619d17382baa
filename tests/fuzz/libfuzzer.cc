// The door to libFuzzer (docs/testing.md).
#include <cstdint>

#include "csvfs/base/log.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  csv::log::set_up("fuzz", csv::log::Level::error);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  csv::fuzz::run(std::as_bytes(std::span{data, size}));
  return 0;
}
