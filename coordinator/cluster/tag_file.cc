#include "coordinator/cluster/tag_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <type_traits>
#include <vector>

#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

using Content = TagFile::Content;

// Between csvd and its helper, over a pair of sockets that keep records apart.
struct Question {
  bool exchange = false;
  std::size_t place = 0;
  Content expected;
  TagFile::Slot next;
};
struct Reply {
  int error = 0;  ///< An errno.
  char at[32] = {};
  bool same = false;  ///< What was found is what was expected.
  Content found;
};
static_assert(std::is_trivially_copyable_v<Question> && std::is_trivially_copyable_v<Reply>);

// ---- in the helper: nothing but system calls, for it is the fork of a process with threads

bool fails(Reply& reply, const char* at, int error) {
  reply.error = error;
  std::strncpy(reply.at, at, sizeof reply.at - 1);
  return false;
}

bool read_whole(int file, Content& into) {
  std::memset(&into, 0, sizeof into);
  auto* bytes = reinterpret_cast<char*>(&into);
  for (std::size_t done = 0; done < sizeof into;) {
    auto count = ::pread(file, bytes + done, sizeof into - done, static_cast<off_t>(done));
    if (count < 0) return false;
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  return true;
}

/// Tries, rather than waits in the kernel, where a signal might not reach it.
bool lock(int file, short type) {
  struct ::flock range = {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_len = sizeof(Content);
  for (int tries = 0; tries < 100; ++tries) {
    if (::fcntl(file, F_SETLK, &range) == 0) return true;
    if (errno != EAGAIN && errno != EACCES) return false;
    (void)::poll(nullptr, 0, 10);
  }
  return false;
}

bool serve_open(int file, ::dev_t device, const Question& question, Reply& reply) {
  struct ::stat about = {};
  if (::fstat(file, &about) != 0) return fails(reply, "looking at it", errno);
  if (!S_ISREG(about.st_mode)) return fails(reply, "looking at it", EINVAL);
  if (about.st_size > static_cast<off_t>(sizeof(Content)))
    return fails(reply, "it is too large to be one", EFBIG);
  if (device != 0 && about.st_dev != device) return fails(reply, "finding its mount", EXDEV);
  // That a write of a helper before this one has failed the kernel tells whoever syncs the file
  // next, and says it with every close until then. It is no answer about ours.
  if (question.exchange) (void)::fsync(file);
  // Taking a lock is also what makes a client drop what it had in its cache.
  if (!lock(file, question.exchange ? F_WRLCK : F_RDLCK)) return fails(reply, "locking it", errno);
  if (!read_whole(file, reply.found)) return fails(reply, "reading it", errno);
  if (!question.exchange) return true;
  reply.same = std::memcmp(&reply.found, &question.expected, sizeof reply.found) == 0;
  if (!reply.same) return true;
  auto at = static_cast<off_t>(question.place * TagFile::kSlot);
  auto count = ::pwrite(file, question.next.data(), TagFile::kSlot, at);
  if (count != static_cast<ssize_t>(TagFile::kSlot))
    return fails(reply, "writing it", count < 0 ? errno : EIO);
  if (::fsync(file) != 0) return fails(reply, "making it durable", errno);
  (void)::posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  if (!read_whole(file, reply.found)) return fails(reply, "reading it back", errno);
  if (std::memcmp(&reply.found[question.place], &question.next, TagFile::kSlot) != 0)
    return fails(reply, "reading it back", EIO);
  return true;
}

[[noreturn]] void be_helper(int socket, const char* path, bool create, ::dev_t device,
                            ::pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(0);
  // Nothing of csvd's may live on in here: a connection to a LUN least of all.
  ::dup2(socket, 3);
  ::syscall(SYS_close_range, 4u, ~0u, 0u);
  static Question question;
  static Reply reply;
  for (;;) {
    auto count = ::recv(3, &question, sizeof question, 0);
    if (count != static_cast<ssize_t>(sizeof question)) ::_exit(0);
    reply = Reply{};
    int file = ::open(path, O_RDWR | (create ? O_CREAT : 0) | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) {
      fails(reply, "opening it", errno);
    } else {
      (void)serve_open(file, device, question, reply);
      // On a share the end of a write may only show here. If none was made, it is about one of a
      // helper that was left behind: this file could never be read again here.
      bool wrote = question.exchange && reply.same;
      if (::close(file) != 0 && wrote && reply.error == 0) fails(reply, "closing it", errno);
    }
    if (::send(3, &reply, sizeof reply, MSG_NOSIGNAL) < 0) ::_exit(0);
  }
}

// ---- mounts

std::vector<std::string_view> words(std::string_view line) {
  std::vector<std::string_view> found;
  for (std::size_t at = 0; at < line.size();) {
    auto end = std::min(line.find(' ', at), line.size());
    if (end > at) found.push_back(line.substr(at, end - at));
    at = end + 1;
  }
  return found;
}

/// Blanks and the like are written as three octal digits.
std::string unescaped(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned code = 0;
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, code, 8).ptr ==
            text.data() + i + 4) {
      plain += static_cast<char>(code);
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

bool lies_in(const std::string& path, const std::string& folder) {
  if (folder == "/") return path.starts_with("/");
  return path == folder || path.starts_with(folder + "/");
}

bool has_option(const ShareMount& mount, std::string_view name) {
  return ("," + mount.options + ",").find("," + std::string{name} + ",") != std::string::npos;
}

std::string version_of(const ShareMount& mount) {
  auto options = "," + mount.options;
  auto at = options.find(",vers=");
  if (at == std::string::npos) return {};
  at += 6;
  return options.substr(at, options.find(',', at) - at);
}

}  // namespace

Expected<ShareMount> mount_of(std::string_view mountinfo, const std::string& path) {
  std::optional<ShareMount> best;
  std::size_t longest = 0;
  while (!mountinfo.empty()) {
    auto end = std::min(mountinfo.find('\n'), mountinfo.size());
    auto line = words(mountinfo.substr(0, end));
    mountinfo.remove_prefix(std::min(end + 1, mountinfo.size()));
    // id parent major:minor root mount-point options [optional…] - type source super-options
    auto dash = std::find(line.begin(), line.end(), "-");
    if (line.size() < 6 || line.end() - dash < 4) continue;
    auto where = unescaped(line[4]);
    if (!lies_in(path, where) || (best && where.size() < longest)) continue;
    unsigned major = 0, minor = 0;
    auto number = line[2];
    auto colon = number.find(':');
    if (colon == std::string_view::npos) continue;
    std::from_chars(number.data(), number.data() + colon, major);
    std::from_chars(number.data() + colon + 1, number.data() + number.size(), minor);
    longest = where.size();
    best = ShareMount{::makedev(major, minor), std::string{dash[1]}, std::string{dash[3]}};
  }
  if (!best) return Error{Errc::refused, "no mount is known that " + path + " lies on"};
  return *best;
}

Expected<void> check_share(const ShareMount& mount) {
  auto version = version_of(mount);
  bool nfs = mount.type == "nfs4" || mount.type == "nfs";
  bool smb = mount.type == "cifs" || mount.type == "smb3";
  if (nfs && version.starts_with("4")) {
    if (!has_option(mount, "nolock") && (mount.options.find("local_lock=") == std::string::npos ||
                                         has_option(mount, "local_lock=none")))
      return {};
    return Error{Errc::refused,
                 "the share of the witness is mounted with locks that stay local: "
                 "mount it without nolock and local_lock"};
  }
  if (smb && version.starts_with("3")) {
    if (!has_option(mount, "nobrl")) return {};
    return Error{Errc::refused,
                 "the share of the witness is mounted with nobrl, which keeps locks local"};
  }
  return Error{Errc::refused,
               fmt::format("the witness must lie on NFS 4 or SMB 3, whose locks outlast neither "
                           "their client nor their server unnoticed; this is {}{}{}",
                           mount.type, version.empty() ? "" : " version ", version)};
}

/// Lives on the worker's thread.
struct SharedTagFile::Helper {
  explicit Helper(Options its_options) : options{std::move(its_options)} {}
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;
  ~Helper() { leave(); }

  Expected<Reply> ask(const Question& question) {
    if (socket < 0) CSV_TRY(begin());
    if (::send(socket, &question, sizeof question, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
      auto error = errno_error(errno, "asking the helper that reads the witness file");
      leave();
      return error;
    }
    auto wait = static_cast<int>(options.deadline / 1ms);
    struct ::pollfd readable = {.fd = socket, .events = POLLIN, .revents = 0};
    auto ready = ::poll(&readable, 1, wait);
    Reply reply;
    if (ready <= 0 ||
        ::recv(socket, &reply, sizeof reply, MSG_DONTWAIT) != static_cast<ssize_t>(sizeof reply)) {
      leave();
      if (ready == 0)
        return Error{std::errc::timed_out, fmt::format("the share of the witness file {} has not "
                                                       "answered for {} ms",
                                                       options.path, wait)};
      return Error{std::errc::io_error, "the helper that reads the witness file has died"};
    }
    if (reply.error != 0)
      return errno_error(reply.error, fmt::format("witness file {}: {}", options.path, reply.at));
    return reply;
  }

 private:
  Expected<void> begin() {
    reap();
    if (hanging.size() >= kMostHanging)
      return Error{std::errc::timed_out,
                   fmt::format("{} helpers hang on the share of the witness file {}",
                               hanging.size(), options.path)};
    ::dev_t device = 0;
    if (!options.any_file_system) {
      // The kernel's list does not touch the share.
      std::stringstream list;
      list << std::ifstream{"/proc/self/mountinfo"}.rdbuf();
      auto mount = CSV_TRY(mount_of(list.str(), options.path));
      CSV_TRY(check_share(mount));
      device = mount.device;
    }
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
      return errno_error(errno, "making a helper for the witness file");
    auto parent = ::getpid();
    auto child = ::fork();
    if (child == 0) be_helper(ends[1], options.path.c_str(), options.create, device, parent);
    ::close(ends[1]);
    if (child < 0) {
      ::close(ends[0]);
      return errno_error(errno, "making a helper for the witness file");
    }
    socket = ends[0];
    pid = child;
    return {};
  }
  void leave() {
    if (socket < 0) return;
    ::close(socket);
    socket = -1;
    ::kill(pid, SIGKILL);
    hanging.push_back(pid);
    reap();
  }
  /// One that waits for the share in the kernel dies when that lets go of it.
  void reap() {
    std::erase_if(hanging, [](::pid_t each) { return ::waitpid(each, nullptr, WNOHANG) != 0; });
  }

  Options options;
  int socket = -1;
  ::pid_t pid = -1;
  std::vector<::pid_t> hanging;
};

SharedTagFile::SharedTagFile(Loop& home, Options options)
    : home_{&home},
      helper_{std::make_shared<Helper>(std::move(options))},
      worker_{std::make_unique<ThreadWorker>("csv-witness")} {}

SharedTagFile::~SharedTagFile() = default;

void SharedTagFile::read(Function<void(Expected<Content>)> done) {
  worker_->post([helper = helper_, home = home_, done = std::move(done)]() mutable {
    Question question{};
    auto reply = helper->ask(question);
    Expected<Content> said = reply ? Expected<Content>{reply->found} : reply.error();
    home->post(
        [done = std::move(done), said = std::move(said)]() mutable { done(std::move(said)); });
  });
}

void SharedTagFile::exchange(const Content& expected, std::size_t place, const Slot& next,
                             Function<void(Expected<void>)> done) {
  auto question = std::make_unique<Question>();
  question->exchange = true;
  question->place = place;
  question->expected = expected;
  question->next = next;
  worker_->post([helper = helper_, home = home_, question = std::move(question),
                 done = std::move(done)]() mutable {
    auto reply = helper->ask(*question);
    Expected<void> said;
    if (!reply)
      said = reply.error();
    else if (!reply->same)
      said = Error{Errc::retry, "the witness file has changed"};
    home->post(
        [done = std::move(done), said = std::move(said)]() mutable { done(std::move(said)); });
  });
}

}  // namespace csv::cluster
