// A thin LUN that runs out of space, to be loaded into tgtd (LD_PRELOAD). Where the file of a LUN
// gets no more space, as on a full file system, tgtd answers a write with MEDIUM ERROR, as if the
// disk were broken (docs/targets.md). Arrays say what it is: DATA PROTECT, space allocation failed.
// So does tgtd with this: for each write that found no space one such answer is changed on its way
// out.

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace {

/// The function that we stand before.
template <typename F>
F* real(const char* name) {
  auto* found = dlsym(RTLD_NEXT, name);
  if (!found) std::abort();
  return reinterpret_cast<F*>(found);
}

/// Writes that found no space and have not been answered yet.
std::atomic<int> refused{0};

/// What follows the header of an answer that is no success: its length, then sense data of the
/// fixed format.
constexpr std::size_t kKey = 2 + 2, kCode = 2 + 12, kLength = 2 + 18;

bool is_medium_error(const unsigned char* data, std::size_t length) {
  return length >= kLength && length < kLength + 4 && data[0] == 0 && data[1] == kLength - 2 &&
         data[2] == 0x70 && data[kKey] == 0x03 && data[kCode] == 0x11 && data[kCode + 1] == 0x00;
}

}  // namespace

// What tgtd calls, by the C library's names.
extern "C" {

ssize_t pwrite64(int fd, const void* from, std::size_t length, off64_t at) {
  static auto* const function = real<ssize_t(int, const void*, std::size_t, off64_t)>("pwrite64");
  auto done = function(fd, from, length, at);
  // Part of it was written: the rest found no space.
  bool is_short = done >= 0 && static_cast<std::size_t>(done) < length;
  if (is_short || (done < 0 && errno == ENOSPC)) ++refused;
  return done;
}

ssize_t write(int fd, const void* from, std::size_t length) {
  static auto* const function = real<ssize_t(int, const void*, std::size_t)>("write");
  const auto* data = static_cast<const unsigned char*>(from);
  if (refused == 0 || !is_medium_error(data, length)) return function(fd, from, length);
  std::array<unsigned char, kLength + 4> changed{};
  std::memcpy(changed.data(), data, length);
  changed[kKey] = 0x07;
  changed[kCode] = 0x27;
  changed[kCode + 1] = 0x07;
  auto done = function(fd, changed.data(), length);
  if (done > 0) --refused;
  return done;
}

}  // extern "C"
