#include "coordinator/admin/admin_server.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <list>
#include <optional>

#include "csvfs/base/asio.h"
#include "csvfs/base/endian.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using asio::local::stream_protocol;
using SystemError = boost::system::error_code;

constexpr std::size_t kMostConnections = 32;
constexpr std::size_t kMostOfOthers = 16;  // whoever they are, root gets through
constexpr const char* kRefusal =
    R"({"ok":false,"error":"csvd listens to root, and to the group that [admin] status_group )"
    R"(names: you are neither"})";

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_{fd} {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

struct Peer {
  uid_t user = static_cast<uid_t>(-1);
  std::optional<AdminServer::Caller> may;  ///< Nothing: it may not ask at all.
};

/// Who connected, by the kernel's word at the time of its connect().
Peer peer_of(int socket, std::optional<gid_t> readers) {
  ucred who{};
  socklen_t length = sizeof who;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0) return {};
  Peer out{.user = who.uid, .may = {}};
  if (who.uid == 0 || who.uid == ::geteuid()) {
    out.may = AdminServer::Caller::root;
  } else if (readers) {
    std::array<gid_t, 1024> groups{};
    socklen_t bytes = sizeof groups;
    bool known = ::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) == 0;
    auto* end = groups.data() + (known ? bytes / sizeof(gid_t) : 0);
    if (who.gid == *readers || std::find(groups.data(), end, *readers) != end)
      out.may = AdminServer::Caller::reader;
  }
  return out;
}

Expected<std::optional<gid_t>> group_of(const std::string& name) {
  if (name.empty()) return std::optional<gid_t>{};
  errno = 0;
  const auto* group = ::getgrnam(name.c_str());
  if (group == nullptr)
    return Error{Errc::refused, "[admin] status_group: there is no group '" + name + "' here"};
  return std::optional<gid_t>{group->gr_gid};
}

/// One csvctl: asks, is answered, may ask again.
class Conversation : public std::enable_shared_from_this<Conversation> {
 public:
  Conversation(AsioLoop& loop, stream_protocol::socket socket,
               std::optional<AdminServer::Caller> caller, AdminServer::Handler handler,
               Duration idle)
      : loop_{&loop},
        socket_{std::move(socket)},
        caller_{caller},
        handler_{std::move(handler)},
        idle_{idle} {}
  Conversation(const Conversation&) = delete;
  Conversation& operator=(const Conversation&) = delete;
  ~Conversation() { loop_->cancel(timer_); }

  [[nodiscard]] bool of_root() const { return caller_ == AdminServer::Caller::root; }

  void read() {
    limit();
    asio::async_read(socket_, asio::buffer(&length_, sizeof length_),
                     [self = shared_from_this()](const SystemError& error, std::size_t) {
                       if (!error) self->read_body();
                     });
  }
  void close() {
    SystemError ignored;
    socket_.close(ignored);
  }

 private:
  void read_body() {
    if (length_ == 0 || length_ > kMaxAdminRequest) return close();
    text_.resize(length_);
    asio::async_read(socket_, asio::buffer(text_),
                     [self = shared_from_this()](const SystemError& error, std::size_t) {
                       self->loop_->cancel(self->timer_);
                       if (error) return;
                       if (!self->caller_) return self->write(kRefusal);
                       self->handler_(
                           *self->caller_, std::move(self->text_),
                           [self](std::string answer) { self->write(std::move(answer)); });
                     });
  }
  void write(std::string answer) {
    text_ = std::move(answer);
    length_ = static_cast<std::uint32_t>(text_.size());
    limit();
    std::array<asio::const_buffer, 2> both{asio::buffer(&length_, sizeof length_),
                                           asio::buffer(text_)};
    asio::async_write(socket_, both,
                      [self = shared_from_this()](const SystemError& error, std::size_t) {
                        if (!error && self->caller_) self->read();
                      });
  }
  void limit() {
    loop_->cancel(timer_);
    timer_ = loop_->after(idle_, [weak = weak_from_this()] {
      if (auto self = weak.lock()) self->close();
    });
  }

  AsioLoop* loop_;
  stream_protocol::socket socket_;
  std::optional<AdminServer::Caller> caller_;  ///< Nothing: it only hears that it may not ask.
  AdminServer::Handler handler_;
  Duration idle_;
  Loop::TimerId timer_{};
  Le32 length_;
  std::string text_;
};

class Server final : public AdminServer {
 public:
  Server(AsioLoop& loop, std::unique_ptr<Descriptor> lock, std::string path,
         std::optional<gid_t> readers, Handler handler, Duration idle)
      : state_{std::make_shared<State>(loop, readers, std::move(handler), idle)},
        lock_{std::move(lock)},
        path_{std::move(path)} {}
  ~Server() override {
    SystemError ignored;
    state_->closed = true;
    state_->acceptor.close(ignored);
    for (auto& weak : state_->open)
      if (auto one = weak.lock()) one->close();
    ::unlink(path_.c_str());
  }

  Expected<void> bind() {
    SystemError error;
    auto& acceptor = state_->acceptor;
    acceptor.open({}, error);
    // Nobody may connect between bind and chmod: the mask makes it 0600 from the start.
    auto mask = ::umask(0177);
    if (!error) acceptor.bind(stream_protocol::endpoint{path_}, error);
    ::umask(mask);
    if (!error && state_->readers &&
        (::chown(path_.c_str(), static_cast<uid_t>(-1), *state_->readers) != 0 ||
         ::chmod(path_.c_str(), 0660) != 0))
      return errno_error(errno, "giving the admin socket " + path_ + " to its group");
    if (!error) acceptor.listen(16, error);
    if (error) return errno_error(error.value(), "listening on the admin socket " + path_);
    accept(state_);
    return {};
  }

 private:
  struct State {
    State(AsioLoop& on, std::optional<gid_t> group, Handler with, Duration patience)
        : loop{&on},
          acceptor{on.context()},
          readers{group},
          handler{std::move(with)},
          idle{patience} {}
    [[nodiscard]] bool has_room(bool for_root) const {
      std::size_t others = 0;
      for (const auto& weak : open)
        if (auto one = weak.lock()) others += one->of_root() ? 0 : 1;
      return open.size() < kMostConnections && (for_root || others < kMostOfOthers);
    }
    AsioLoop* loop;
    stream_protocol::acceptor acceptor;
    std::optional<gid_t> readers;
    Handler handler;
    Duration idle;
    std::list<std::weak_ptr<Conversation>> open;
    bool closed = false;
  };

  static void accept(const std::shared_ptr<State>& state) {
    state->acceptor.async_accept([state](const SystemError& error, stream_protocol::socket socket) {
      if (state->closed) return;
      if (error) {
        log::warning("admin_accept_failed error=\"{}\"", error.message());
        state->loop->after(100ms, [state] {
          if (!state->closed) accept(state);
        });
        return;
      }
      state->open.remove_if([](const auto& weak) { return weak.expired(); });
      auto peer = peer_of(socket.native_handle(), state->readers);
      if (!state->has_room(peer.may == Caller::root)) {
        log::warning("admin_refused user={} why=\"too many connections\"", peer.user);
      } else {
        if (!peer.may)
          log::warning("admin_refused user={} why=\"neither root nor in the group\"", peer.user);
        auto conversation = std::make_shared<Conversation>(*state->loop, std::move(socket),
                                                           peer.may, state->handler, state->idle);
        state->open.push_back(conversation);
        conversation->read();
      }
      accept(state);
    });
  }

  std::shared_ptr<State> state_;
  std::unique_ptr<Descriptor> lock_;
  std::string path_;
};

Expected<void> check_length(const std::string& path) {
  if (path.size() >= sizeof(sockaddr_un{}.sun_path))
    return Error{Errc::refused, "the path of the admin socket is too long: " + path};
  return {};
}

Expected<void> transfer(int fd, std::byte* data, std::size_t size, bool sending) {
  while (size > 0) {
    auto n = sending ? ::send(fd, data, size, MSG_NOSIGNAL) : ::recv(fd, data, size, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return Error{std::errc::timed_out, "csvd does not answer"};
    if (n <= 0)
      return Error{Errc::closed,
                   "csvd closed the connection (it listens to root only, and logs why "
                   "it refuses)"};
    data += n;
    size -= static_cast<std::size_t>(n);
  }
  return {};
}

/// Until there is something to receive, or csvd has hung up.
Expected<void> wait_for_answer(int fd, Duration timeout,
                               const std::function<void(Duration)>& waiting) {
  constexpr std::chrono::milliseconds kStep{500};
  for (Duration waited{}; waited < timeout;) {
    pollfd one{.fd = fd, .events = POLLIN, .revents = 0};
    auto ready = ::poll(&one, 1, static_cast<int>(kStep.count()));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return errno_error(errno, "waiting for csvd");
    waited += kStep;
    waiting(waited);
  }
  return Error{std::errc::timed_out, "csvd does not answer"};
}

}  // namespace

Expected<std::unique_ptr<AdminServer>> AdminServer::listen(AsioLoop& loop, const std::string& path,
                                                           const std::string& readers,
                                                           Handler handler, Duration idle) {
  CSV_TRY(check_length(path));
  auto group = CSV_TRY(group_of(readers));
  std::error_code error;
  auto folder = std::filesystem::path{path}.parent_path();
  std::filesystem::create_directories(folder, error);
  if (error) return Error{error, "making " + folder.string() + ": " + error.message()};
  auto lock_path = path + ".lock";
  auto lock = std::make_unique<Descriptor>(
      ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (lock->get() < 0) return errno_error(errno, "opening " + lock_path);
  if (::flock(lock->get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return Error{std::errc::address_in_use, "another csvd runs here: it holds " + lock_path};
    return errno_error(errno, "locking " + lock_path);
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return errno_error(errno, "removing the admin socket of a former life, " + path);
  auto server =
      std::make_unique<Server>(loop, std::move(lock), path, group, std::move(handler), idle);
  CSV_TRY(server->bind());
  return std::unique_ptr<AdminServer>{std::move(server)};
}

Expected<std::string> ask_csvd(const std::string& path, const std::string& request,
                               Duration timeout, const std::function<void(Duration)>& waiting) {
  CSV_TRY(check_length(path));
  Descriptor fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (fd.get() < 0) return errno_error(errno, "making a socket");
  auto us = std::chrono::duration_cast<std::chrono::microseconds>(timeout).count();
  timeval wait{.tv_sec = us / 1'000'000, .tv_usec = us % 1'000'000};
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) != 0 ||
      ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) != 0)
    return errno_error(errno, "setting a time-out");
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  path.copy(to.sun_path, sizeof to.sun_path - 1);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) {
    if (errno == EACCES || errno == EPERM)
      return errno_error(errno, "connecting to csvd at " + path + " (only root may)");
    return Error{Errc::closed, "csvd does not run on this node: connecting to " + path + ": " +
                                   errno_error(errno).message() +
                                   ". Start it with: systemctl start csvd"};
  }
  Le32 length{static_cast<std::uint32_t>(request.size())};
  auto text = request;
  CSV_TRY(transfer(fd.get(), reinterpret_cast<std::byte*>(&length), sizeof length, true));
  CSV_TRY(transfer(fd.get(), reinterpret_cast<std::byte*>(text.data()), text.size(), true));
  if (waiting) CSV_TRY(wait_for_answer(fd.get(), timeout, waiting));
  CSV_TRY(transfer(fd.get(), reinterpret_cast<std::byte*>(&length), sizeof length, false));
  if (length > kMaxAdminAnswer) return Error{Errc::corrupt, "csvd's answer is too long"};
  text.resize(length);
  CSV_TRY(transfer(fd.get(), reinterpret_cast<std::byte*>(text.data()), text.size(), false));
  return text;
}

}  // namespace csv::admin
