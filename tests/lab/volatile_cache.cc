// A volatile write cache, to be loaded into tgtd (LD_PRELOAD): what it writes to the file of a LUN
// stays in the memory of the process until it is made durable, and is gone when the process is
// killed, as with the power of a disk.
//
// tgtd says with fsync() what is to be durable: for SYNCHRONIZE CACHE, and behind the pwrite() of a
// write with FUA. Of the latter only the command's own sectors are written out here, as a disk may
// do it; so whatever leans on a write that was not made durable finds out. One sector in four goes
// to the file at once: a cache writes out what it likes, when it likes, and the order of commands
// means nothing to it.
//
// CSVFS_LAB_HELD names a file with one number of 64 bits: how many sectors are in memory only. What
// was lost can be read there when the process is gone.

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

namespace {

constexpr std::uint64_t kSector = 512;

/// The function that we stand before.
template <typename F>
F* real(const char* name) {
  auto* found = dlsym(RTLD_NEXT, name);
  if (!found) std::abort();
  return reinterpret_cast<F*>(found);
}

ssize_t real_read(int fd, void* to, std::size_t length, off64_t at) {
  static auto* const function = real<ssize_t(int, void*, std::size_t, off64_t)>("pread64");
  return function(fd, to, length, at);
}

ssize_t real_write(int fd, const void* from, std::size_t length, off64_t at) {
  static auto* const function = real<ssize_t(int, const void*, std::size_t, off64_t)>("pwrite64");
  return function(fd, from, length, at);
}

using Sector = std::array<char, kSector>;

/// Where a command wrote.
struct Written {
  int fd;
  std::uint64_t offset;
  std::uint64_t length;
};

/// Since this thread last took a lock, which tgtd's workers do between two commands: so an fsync()
/// behind it is of the same command.
thread_local std::optional<Written> last_written;

class Cache {
 public:
  /// Of every LUN. Never destroyed: threads go on while the process ends.
  static Cache& of(int fd) {
    struct stat64 file {};
    if (fstat64(fd, &file) != 0) std::abort();
    static std::mutex mutex;
    static auto& all = *new std::map<std::pair<dev_t, ino64_t>, std::unique_ptr<Cache>>;
    std::scoped_lock lock{mutex};
    auto& found = all[{file.st_dev, file.st_ino}];
    if (!found) found = std::make_unique<Cache>();
    return *found;
  }

  ssize_t read(int fd, char* to, std::size_t length, std::uint64_t at) {
    std::scoped_lock lock{mutex_};
    auto got = real_read(fd, to, length, static_cast<off64_t>(at));
    if (got <= 0) return got;
    auto end = at + static_cast<std::uint64_t>(got);
    for (auto each = sectors_.lower_bound(at / kSector);
         each != sectors_.end() && each->first * kSector < end; ++each) {
      auto from = std::max(at, each->first * kSector);
      auto until = std::min(end, (each->first + 1) * kSector);
      std::memcpy(to + (from - at), each->second.data() + from % kSector, until - from);
    }
    return got;
  }

  ssize_t write(int fd, const char* from, std::size_t length, std::uint64_t at) {
    std::scoped_lock lock{mutex_};
    // A LUN is read and written by the sector.
    if (at % kSector != 0 || length % kSector != 0) std::abort();
    for (std::size_t done = 0; done < length; done += kSector) {
      auto number = (at + done) / kSector;
      auto [each, is_new] = sectors_.try_emplace(number);
      std::memcpy(each->second.data(), from + done, kSector);
      if (is_new) held(1);
      if (chance() % 4 == 0 && !write_out(fd, each, std::next(each))) return -1;
    }
    return static_cast<ssize_t>(length);
  }

  bool write_out(int fd, std::uint64_t from, std::uint64_t end) {
    std::scoped_lock lock{mutex_};
    return write_out(fd, sectors_.lower_bound(from / kSector),
                     sectors_.lower_bound(end / kSector + (end % kSector != 0)));
  }

 private:
  using Place = std::map<std::uint64_t, Sector>::iterator;

  bool write_out(int fd, Place each, Place end) {
    while (each != end) {
      auto at = static_cast<off64_t>(each->first * kSector);
      if (real_write(fd, each->second.data(), kSector, at) != static_cast<ssize_t>(kSector))
        return false;
      each = sectors_.erase(each);
      held(-1);
    }
    return true;
  }

  /// xorshift: no command is to wait for a generator that others use.
  std::uint64_t chance() {
    seed_ ^= seed_ << 13;
    seed_ ^= seed_ >> 7;
    return seed_ ^= seed_ << 17;
  }

  static void held(std::int64_t change) {
    static auto* const number = shared_number();
    if (number) *number += static_cast<std::uint64_t>(change);
  }

  static std::atomic<std::uint64_t>* shared_number() {
    const char* name = std::getenv("CSVFS_LAB_HELD");
    if (!name) return nullptr;
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, sizeof(std::uint64_t)) != 0) std::abort();
    void* memory = mmap(nullptr, sizeof(std::uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) std::abort();
    return new (memory) std::atomic<std::uint64_t>{0};
  }

  std::mutex mutex_;
  std::map<std::uint64_t, Sector> sectors_;  // by number: what the file does not have yet
  std::uint64_t seed_ = 88172645463325252U;
};

int make_durable(int fd) {
  auto written = std::exchange(last_written, std::nullopt);
  bool fua = written && written->fd == fd;
  bool done = fua ? Cache::of(fd).write_out(fd, written->offset, written->offset + written->length)
                  : Cache::of(fd).write_out(fd, 0, UINT64_MAX - kSector);
  if (done) return 0;
  errno = EIO;
  return -1;
}

}  // namespace

// What tgtd calls, by the C library's names.
extern "C" {

ssize_t pread64(int fd, void* to, std::size_t length, off64_t at) {
  return Cache::of(fd).read(fd, static_cast<char*>(to), length, static_cast<std::uint64_t>(at));
}

ssize_t pwrite64(int fd, const void* from, std::size_t length, off64_t at) {
  auto offset = static_cast<std::uint64_t>(at);
  auto done = Cache::of(fd).write(fd, static_cast<const char*>(from), length, offset);
  if (done > 0) last_written = Written{fd, offset, static_cast<std::uint64_t>(done)};
  return done;
}

int fsync(int fd) { return make_durable(fd); }
int fdatasync(int fd) { return make_durable(fd); }

// UNMAP. Nobody here sends it to tgt (docs/targets.md), and this knows nothing of it.
int fallocate(int, int, off_t, off_t) { std::abort(); }

int pthread_mutex_lock(pthread_mutex_t* mutex) {
  static auto* const function = real<int(pthread_mutex_t*)>("pthread_mutex_lock");
  last_written.reset();
  return function(mutex);
}

}  // extern "C"
