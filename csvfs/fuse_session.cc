#include "csvfs/fuse_session.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <list>

#include "csvfs/base/asio.h"
#include "csvfs/base/log.h"
#include "csvfs/fuse_ops.h"

namespace csv {
namespace {

// Requests read in one turn of the loop before it looks at its other descriptors.
constexpr int kRequestsATurn = 32;

constexpr Duration kLookAgain = 250ms;  // whether an interrupted program is being killed
// How long a change that was sent is waited for on behalf of a killed program: the lease's term.
constexpr Duration kGiveUpChange = 3s;

/// A signal that ends a program makes SIGKILL pending for each of its threads.
bool is_dying(pid_t thread) {
  if (thread == 0) return true;  // of a PID namespace we cannot see: let it go
  std::ifstream status{"/proc/" + std::to_string(thread) + "/status"};
  if (!status) return true;
  constexpr std::uint64_t kSigkill = 1ull << (9 - 1);
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("SigPnd:"))
      return (std::strtoull(line.c_str() + 7, nullptr, 16) & kSigkill) != 0;
  return false;
}

constexpr fuse_custom_io kSocketIo = {
    .writev = [](int fd, iovec* parts, int count, void*) { return ::writev(fd, parts, count); },
    .read = [](int fd, void* into, std::size_t size, void*) { return ::read(fd, into, size); },
    .splice_receive = nullptr,
    .splice_send = nullptr,
};

/// libfuse keeps no copy of its arguments.
class Arguments {
 public:
  explicit Arguments(const std::vector<std::string>& words) {
    for (const auto& word : words) CSV_CHECK(fuse_opt_add_arg(&args_, word.c_str()) == 0);
  }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;
  ~Arguments() { fuse_opt_free_args(&args_); }
  fuse_args* get() { return &args_; }

 private:
  fuse_args args_ = FUSE_ARGS_INIT(0, nullptr);
};

class Session final : public FuseSession {
 public:
  Session(AsioLoop& loop, Mount& mount, std::function<void()> on_ended)
      : loop_{loop}, on_ended_{std::move(on_ended)}, readable_{loop.context()} {
    state_.mount = &mount;
    state_.on_destroy = [this] { ended(); };
    state_.on_interrupt = [this](std::weak_ptr<Owed> owed) { interrupted(std::move(owed)); };
  }

  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() override {
    *alive_ = false;
    on_ended_ = nullptr;
    // While the session still is: an unanswered request answers itself at its end.
    state_.requests.cancel_all();
    readable_.release();
    if (session_ != nullptr) {
      if (mounted_) fuse_session_unmount(session_);
      fuse_session_destroy(session_);
    }
  }

  Expected<void> open(const std::string& mountpoint, const Options& options, int descriptor) {
    if (options.dying) dying_ = options.dying;
    // Root's file system of set-user-ID programs and devices, unless told otherwise; the kernel
    // checks permissions by the attributes we give it, for every user.
    std::string mount_options =
        "fsname=" + options.source + ",subtype=csvfs,allow_other,default_permissions,suid,dev";
    for (const auto& each : options.options) mount_options += "," + each;
    std::vector<std::string> words{"csvfs"};
    if (descriptor < 0) words.insert(words.end(), {"-o", mount_options});
    Arguments arguments{words};
    session_ = fuse_session_new(arguments.get(), &fuse_ops(), sizeof(fuse_lowlevel_ops), &state_);
    if (session_ == nullptr)
      return Error{Errc::refused, "the mount options are not valid: " + mount_options};
    if (descriptor >= 0) {
      if (int failed = fuse_session_custom_io(session_, &kSocketIo, descriptor); failed != 0)
        return errno_error(-failed, "starting a FUSE session on a socket");
    } else {
      errno = 0;
      if (fuse_session_mount(session_, mountpoint.c_str()) != 0)
        return errno_error(errno != 0 ? errno : EIO, "mounting at " + mountpoint);
      mounted_ = true;
      mountpoint_ = mountpoint;
    }
    auto fd = fuse_session_fd(session_);
    auto flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
      return errno_error(errno, "making the FUSE descriptor non-blocking");
    readable_.assign(fd);
    wait();
    return {};
  }

  void unmount() override {
    if (mounted_ && !ended_ && ::umount2(mountpoint_.c_str(), MNT_DETACH) == 0) mounted_ = false;
  }
  [[nodiscard]] std::uint64_t operations() const override { return operations_; }

 private:
  void wait() {
    readable_.async_wait(asio::posix::stream_descriptor::wait_read,
                         [this, alive = alive_](boost::system::error_code error) {
                           if (*alive && !error) take_requests();
                         });
  }

  void take_requests() {
    for (int i = 0; i < kRequestsATurn; ++i) {
      if (state_.current.buffer.mem == nullptr && !state_.spare.empty()) {
        state_.current = std::move(state_.spare.back());
        state_.spare.pop_back();
      }
      if (state_.current.buffer.mem == nullptr) state_.current = FuseState::RequestBuffer::made();
      auto& buffer = state_.current.buffer;
      auto received = fuse_session_receive_buf(session_, &buffer);
      if (received == -EINTR) continue;
      if (received == -EAGAIN) break;
      if (received <= 0) return ended();  // ENODEV: unmounted
      // An operation may take the buffer and with it this description: libfuse reads its own copy.
      auto request = buffer;
      request.size = static_cast<std::size_t>(received);
      ++operations_;
      fuse_session_process_buf(session_, &request);
      if (fuse_session_exited(session_) != 0) return ended();
    }
    wait();
  }

  void interrupted(std::weak_ptr<Owed> owed) {
    interrupted_.push_back(std::move(owed));
    if (std::exchange(looking_, true)) return;
    // Not from inside libfuse, which is in the middle of its list of requests.
    loop_.post([this, alive = alive_] {
      if (*alive) look_at_interrupted();
    });
  }

  void look_at_interrupted() {
    auto all = std::exchange(interrupted_, {});
    std::erase_if(all, [this](const auto& each) {
      auto owed = each.lock();
      return !owed || !still_waits(*owed);
    });
    interrupted_.splice(interrupted_.begin(), all);
    looking_ = !interrupted_.empty();
    if (!looking_) return;
    loop_.after(kLookAgain, [this, alive = alive_] {
      if (*alive) look_at_interrupted();
    });
  }

  /// Whether it has to be looked at again.
  bool still_waits(Owed& owed) {
    if (owed.request == nullptr) return false;
    if (!owed.interrupt.raised()) {
      if (!owed.any_signal && !dying_(owed.caller)) return true;
      owed.raised = loop_.now();
      owed.interrupt.raise();
      if (owed.changes || owed.request == nullptr) return owed.request != nullptr;
    } else {
      if (loop_.now() - owed.raised < kGiveUpChange) return true;
      log::warning("a change is given up with its program, its outcome unknown pid={}",
                   owed.caller);
    }
    fuse_reply_err(std::exchange(owed.request, nullptr), EINTR);
    return false;
  }

  void ended() {
    if (std::exchange(ended_, true)) return;
    mounted_ = false;
    // Through the loop, since our owner may destroy us in it.
    if (on_ended_) loop_.post(on_ended_);
  }

  AsioLoop& loop_;
  std::function<void()> on_ended_;
  fuse_session* session_ = nullptr;
  bool mounted_ = false;
  bool ended_ = false;
  std::string mountpoint_;
  std::uint64_t operations_ = 0;
  std::function<bool(pid_t)> dying_ = is_dying;
  std::list<std::weak_ptr<Owed>> interrupted_;
  bool looking_ = false;
  asio::posix::stream_descriptor readable_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  FuseState state_;
};

}  // namespace

Expected<std::unique_ptr<FuseSession>> FuseSession::start(AsioLoop& loop, Mount& mount,
                                                          const std::string& mountpoint,
                                                          const Options& options,
                                                          std::function<void()> on_ended,
                                                          int descriptor) {
  auto session = std::make_unique<Session>(loop, mount, std::move(on_ended));
  CSV_TRY(session->open(mountpoint, options, descriptor));
  return std::unique_ptr<FuseSession>{std::move(session)};
}

}  // namespace csv
