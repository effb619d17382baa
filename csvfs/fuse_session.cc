#include "csvfs/fuse_session.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <list>
#include <memory>

#include "csvfs/base/asio.h"
#include "csvfs/base/log.h"
#include "csvfs/connection_end.h"
#include "csvfs/fuse_ops.h"
#include "csvfs/mount_options.h"
#include "csvfs/page_dropper.h"

namespace csv {
namespace {

// Requests read in one turn of the loop before it looks at its other descriptors.
constexpr int kRequestsATurn = 32;

constexpr Range kWhole{0, std::numeric_limits<std::uint64_t>::max()};

constexpr Duration kLookAgain = 250ms;  // whether an interrupted program is being killed
constexpr Duration kSaidAfter = 3s;     // that a killed program waits for what it has sent

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

// --- Where the kernel knows more than libfuse 3.14 ----------------------------------------------

constexpr std::uint32_t kStatx = 52;
constexpr auto kDirectIoAllowMmap = FuseState::kDirectIoAllowMmap;
/// That writes, truncations and changes of owner take set-ID bits away is our work, told with the
/// operation itself: it is then one transaction with it.
constexpr std::uint64_t kOurs = FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | kDirectIoAllowMmap;

/// What of kOurs the kernel offers.
std::uint64_t offered(const fuse_buf& request) {
  fuse_init_in in{};
  auto size = std::min(sizeof in, request.size - sizeof(fuse_in_header));
  std::memcpy(&in, static_cast<const char*>(request.mem) + sizeof(fuse_in_header), size);
  auto flags = std::uint64_t{in.flags};
  if ((flags & FUSE_INIT_EXT) != 0) flags |= std::uint64_t{in.flags2} << 32;
  return flags & kOurs;
}

/// The answer to INIT, the first of a session, says what we take.
void accept(fuse_init_out& answer, std::uint64_t taken) {
  answer.flags |= static_cast<std::uint32_t>(taken);
  if (taken >> 32 == 0) return;
  answer.flags |= FUSE_INIT_EXT;
  answer.flags2 |= static_cast<std::uint32_t>(taken >> 32);
}

/// Makes of a request that libfuse does not know one that it does. What it really was stays in
/// `state`.
void translate(FuseState& state, fuse_buf& request) {
  auto* at = static_cast<char*>(request.mem);
  fuse_in_header header;
  std::memcpy(&header, at, sizeof header);
  state.opcode = header.opcode;
  switch (header.opcode) {
    case FUSE_INIT: state.taken = offered(request) & ~state.declined; return;
    case FUSE_TMPFILE: header.opcode = FUSE_CREATE; break;  // the same body
    case kStatx: header.opcode = FUSE_GETATTR; break;       // begins with the same
    case FUSE_SETXATTR: {
      if ((state.taken & FUSE_SETXATTR_EXT) == 0) return;
      fuse_setxattr_in in;
      constexpr auto kOld = FUSE_COMPAT_SETXATTR_IN_SIZE;
      auto* body = at + sizeof header;
      std::memcpy(&in, body, sizeof in);
      state.setxattr_flags = in.setxattr_flags;
      std::memmove(body + kOld, body + sizeof in, request.size - sizeof header - sizeof in);
      request.size -= sizeof in - kOld;
      header.len = static_cast<std::uint32_t>(request.size);
      break;
    }
    default: return;
  }
  std::memcpy(at, &header, sizeof header);
}

ssize_t send_answer(int fd, iovec* parts, int count, void* userdata) {
  auto& state = *static_cast<FuseState*>(userdata);
  if (!state.greeted && count == 2 && parts[1].iov_len == sizeof(fuse_init_out)) {
    state.greeted = true;
    fuse_init_out answer;
    std::memcpy(&answer, parts[1].iov_base, sizeof answer);
    accept(answer, state.taken);
    iovec changed[] = {parts[0], {&answer, sizeof answer}};
    return ::writev(fd, changed, 2);
  }
  return ::writev(fd, parts, count);
}

constexpr fuse_custom_io kIo = {
    .writev = send_answer,
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
      : loop_{loop},
        on_ended_{std::move(on_ended)},
        readable_{loop.context()},
        mounts_{loop.context()},
        state_{loop, mount} {
    mount.on_session_end([this, alive = alive_](const std::vector<Mount::Over>& open) {
      if (!*alive) return;
      bool shared = (state_.taken & kDirectIoAllowMmap) != 0;
      for (auto [inode, had_pages, writes] : open) {
        // Else nothing of it is in the kernel, nor can a program store into what comes there: it
        // keeps its node id, and so the handles that were made of it (NFS).
        if (!had_pages && !(shared && writes)) continue;
        // What programs see of it in mappings is as gone as what they could read.
        dropper_->drop(state_.node_of(raw(inode)), {kWhole}, [] {});
        auto life = state_.lives.try_emplace(raw(inode), 0).first;
        // A program would have to keep mappings through 65 536 fences.
        life->second = (life->second + 1) % (1u << 16);
      }
    });
    mount.drop_pages_with([this, alive = alive_](InodeId inode, std::vector<Range> ranges,
                                                 bool clean, Function<void()> done) {
      if (!*alive) return;
      auto& dropper = clean ? clean_dropper_ : dropper_;
      dropper->drop(state_.node_of(raw(inode)), std::move(ranges), std::move(done));
    });
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
    if (session_ == nullptr) return;
    unmount();
    // Whatever still drops pages may wait for requests that nobody reads any more.
    connection_.now();
    dropper_.reset();
    clean_dropper_.reset();
    fuse_session_destroy(session_);
  }

  Expected<void> open(const std::string& mountpoint, const Options& options, int descriptor) {
    requested_ = options.requested;
    state_.second_walks.last(options.second_walk);
    if (options.dying) dying_ = options.dying;
    Arguments arguments{{"csvfs"}};
    session_ = fuse_session_new(arguments.get(), &fuse_ops(), sizeof(fuse_lowlevel_ops), &state_);
    if (session_ == nullptr) return Error{Errc::refused, "libfuse makes no session"};
    if (!options.flags.shared_mappings) state_.declined = kDirectIoAllowMmap;
    bool test = descriptor >= 0;
    if (!test) {
      descriptor = ::open("/dev/fuse", O_RDWR | O_CLOEXEC);
      if (descriptor < 0) return errno_error(errno, "opening /dev/fuse");
    }
    // Ours to read and to write, and the session's to close.
    if (int failed = fuse_session_custom_io(session_, &kIo, descriptor); failed != 0) {
      if (!test) ::close(descriptor);
      return errno_error(-failed, "starting a FUSE session");
    }
    auto tell = [this](std::uint64_t node, Range range) {
      // Of a node that the kernel has forgotten there is nothing to drop.
      constexpr auto kLast = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
      auto length = range.end > kLast ? 0 : range.end - range.begin;  // 0: to the end
      fuse_lowlevel_notify_inval_inode(session_, node, static_cast<off_t>(range.begin),
                                       static_cast<off_t>(length));
    };
    dropper_ = std::make_unique<PageDropper>(loop_, tell);
    clean_dropper_ = std::make_unique<PageDropper>(loop_, tell);
    if (!test) CSV_TRY(mount(mountpoint, options.source, options.flags, descriptor));
    auto fd = fuse_session_fd(session_);
    auto flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
      return errno_error(errno, "making the FUSE descriptor non-blocking");
    readable_.assign(fd);
    wait();
    return {};
  }

  void unmount() override {
    // If the kernel has let go of us, what is mounted there now is somebody else's.
    if (mounted_ && !ended_ && connected() && ::umount2(mountpoint_.c_str(), MNT_DETACH) == 0)
      mounted_ = false;
  }
  [[nodiscard]] std::uint64_t operations() const override { return operations_; }

 private:
  Expected<void> mount(const std::string& mountpoint, const std::string& source,
                       const MountFlags& flags, int descriptor) {
    // The kernel checks permissions by the attributes we give it, for every user.
    auto data = "fd=" + std::to_string(descriptor) +
                ",rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions";
    if (::mount(source.c_str(), mountpoint.c_str(), "fuse.csvfs", flags.flags, data.c_str()) != 0)
      return errno_error(errno, "mounting at " + mountpoint);
    mounted_ = true;
    mountpoint_ = mountpoint;
    CSV_TRY(connection_.prepare(mountpoint));
    int table = ::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    if (table < 0) return errno_error(errno, "opening /proc/self/mountinfo");
    mounts_.assign(table);
    look_at_mounts();
    return {};
  }

  /// A remount with or without noatime shows in the table of mounts only.
  void look_at_mounts() {
    std::ifstream table{"/proc/self/mountinfo"};
    std::string text{std::istreambuf_iterator<char>{table}, {}};
    state_.access_times = keeps_access_times(text, mountpoint_);
    mounts_.async_wait(asio::posix::stream_descriptor::wait_error,
                       [this, alive = alive_](boost::system::error_code error) {
                         if (*alive && !error) look_at_mounts();
                       });
  }

  [[nodiscard]] bool connected() const {
    pollfd device{fuse_session_fd(session_), 0, 0};
    return ::poll(&device, 1, 0) >= 0 && (device.revents & POLLERR) == 0;
  }

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
      translate(state_, request);
      ++operations_;
      if (requested_) requested_();
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

  /// Whether it has to be looked at again. What a killed program has changed, or may have, it waits
  /// for: once it is gone its successor starts, perhaps on another node, and nothing of the
  /// predecessor's may land after what the successor writes. Its end is the change's answer, or
  /// that of the session, whose fence says that it never lands.
  bool still_waits(Owed& owed) {
    if (owed.request == nullptr) return false;
    if (!owed.interrupt.raised()) {
      if (!owed.any_signal && !dying_(owed.caller)) return true;
      owed.raised = loop_.now();
      owed.interrupt.raise();
      if (owed.request == nullptr) return false;
    }
    if (owed.changes && owed.interrupt.begun()) {
      if (!owed.told && loop_.now() - owed.raised >= kSaidAfter) {
        owed.told = true;
        log::warning("a program that is being killed waits for what it has sent pid={}",
                     owed.caller);
      }
      return true;
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
  ConnectionEnd connection_;
  std::unique_ptr<PageDropper> dropper_;
  /// For pages that need no writing: those that wait for it must not keep them.
  std::unique_ptr<PageDropper> clean_dropper_;
  bool mounted_ = false;
  bool ended_ = false;
  std::string mountpoint_;
  std::uint64_t operations_ = 0;
  std::function<void()> requested_;
  std::function<bool(pid_t)> dying_ = is_dying;
  std::list<std::weak_ptr<Owed>> interrupted_;
  bool looking_ = false;
  asio::posix::stream_descriptor readable_;
  asio::posix::stream_descriptor mounts_;
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
