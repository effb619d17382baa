#include "csvfs/base/io_process.h"

#include <malloc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "csvfs/base/log.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace csv {
namespace {

// Below everything but what must never be ended (-1000: then the machine would rather stop).
constexpr int kOomScore = -900;

void be_spared() {
  const std::string path = "/proc/self/oom_score_adj";
  int now = 0;
  std::ifstream{path} >> now;
  if (now != 0) return;  // somebody has decided
  std::ofstream file{path};
  file << kOomScore << std::flush;
  if (!file) log::info("process without oom_score_adj={}", kOomScore);
}

}  // namespace

void become_part_of_the_io_path(bool lock_memory) {
  // Buffers of a mebibyte come and go with each request: they stay with the process.
  ::mallopt(M_MMAP_THRESHOLD, 16 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 64 << 20);
  if (::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0 && errno != EPERM)
    log::warning("process without PR_SET_IO_FLUSHER error=\"{}\"", std::strerror(errno));
  if (::geteuid() == 0) be_spared();
  rlimit limit{};
  bool unlimited = ::geteuid() == 0 ||
                   (::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY);
  if (!lock_memory || !unlimited) return;
  if (::mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0)
    log::warning("process without locked memory error=\"{}\"", std::strerror(errno));
}

}  // namespace csv
