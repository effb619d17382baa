#include "coordinator/admin/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace csv::admin {

Expected<void> replace_file(const std::string& path, const std::string& text, mode_t mode) {
  auto making = path + ".new";
  ::unlink(making.c_str());
  int fd = ::open(making.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  if (fd < 0) return errno_error(errno, "making " + making);
  Expected<void> result;
  for (std::size_t at = 0; at < text.size() && result;) {
    auto n = ::write(fd, text.data() + at, text.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) result = errno_error(errno, "writing " + making);
    if (n > 0) at += static_cast<std::size_t>(n);
  }
  // The umask of whoever calls must not decide.
  if (result && ::fchmod(fd, mode) != 0)
    result = errno_error(errno, "setting the mode of " + making);
  if (result && ::fsync(fd) != 0) result = errno_error(errno, "writing " + making);
  if (::close(fd) != 0 && result) result = errno_error(errno, "writing " + making);
  if (result && ::rename(making.c_str(), path.c_str()) != 0)
    result = errno_error(errno, "putting " + path + " in its place");
  if (!result) ::unlink(making.c_str());
  return result;
}

Expected<std::string> read_whole(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  if (!file) return errno_error(errno, "opening " + path);
  return std::string{std::istreambuf_iterator<char>{file}, {}};
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
}

}  // namespace csv::admin
