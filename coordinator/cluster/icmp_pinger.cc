#include "coordinator/cluster/icmp_pinger.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <optional>
#include <string>

#include "csvfs/base/asio.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

struct Target {
  bool v6 = false;
  sockaddr_storage address{};
  socklen_t length = 0;
};

std::optional<Target> target_of(std::string text) {
  if (text.size() > 2 && text.front() == '[' && text.back() == ']')
    text = text.substr(1, text.size() - 2);
  Target out;
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  if (::inet_pton(AF_INET, text.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    out.length = sizeof v4;
    std::memcpy(&out.address, &v4, sizeof v4);
  } else if (::inet_pton(AF_INET6, text.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    out.v6 = true;
    out.length = sizeof v6;
    std::memcpy(&out.address, &v6, sizeof v6);
  } else {
    return std::nullopt;
  }
  return out;
}

}  // namespace

struct IcmpPinger::Asked {
  explicit Asked(AsioLoop& loop) : socket{loop.context()} {}
  asio::posix::stream_descriptor socket;
  bool v6 = false;
  PingToken token{};
  Loop::TimerId timer{};
  Function<void(bool)> done;
};

IcmpPinger::IcmpPinger(AsioLoop& loop) : loop_{loop}, random_{Random::from_system()} {}

IcmpPinger::~IcmpPinger() {
  for (auto& [id, asked] : asked_) loop_.cancel(asked->timer);
}

void IcmpPinger::ping(const std::string& address, Duration patience, Function<void(bool)> done) {
  auto id = next_++;
  auto& asked = asked_[id] = std::make_unique<Asked>(loop_);
  asked->done = std::move(done);
  for (auto& byte : asked->token) byte = static_cast<std::byte>(random_.below(256));
  auto target = target_of(address);
  int fd = -1;
  if (target) {
    asked->v6 = target->v6;
    auto open = [&](int kind) {
      return ::socket(
          target->v6 ? AF_INET6 : AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC,
          target->v6 ? static_cast<int>(IPPROTO_ICMPV6) : static_cast<int>(IPPROTO_ICMP));
    };
    fd = open(SOCK_DGRAM);
    if (fd < 0) fd = open(SOCK_RAW);
  }
  bool sent = false;
  if (fd >= 0) {
    asked->socket.assign(fd);
    auto packet = echo_request(target->v6, asked->token);
    sent =
        ::connect(fd, reinterpret_cast<const sockaddr*>(&target->address), target->length) == 0 &&
        ::send(fd, packet.data(), packet.size(), 0) == static_cast<ssize_t>(packet.size());
  }
  if (!sent)
    log::debug("ping_not_sent address={} why=\"{}\"", address,
               target ? std::strerror(errno) : "no numeric address");
  // One that could not be sent is unanswered, at once: but not from inside the call.
  asked->timer = loop_.after(sent ? patience : Duration{}, [this, id] { answer(id, false); });
  if (sent) read(id);
}

void IcmpPinger::read(std::uint64_t id) {
  asked_.at(id)->socket.async_wait(
      asio::posix::stream_descriptor::wait_read,
      [this, alive = std::weak_ptr{alive_}, id](const boost::system::error_code& error) {
        if (error || alive.expired()) return;
        auto found = asked_.find(id);
        if (found == asked_.end()) return;
        auto& asked = *found->second;
        std::array<std::byte, 1500> packet;
        auto length = ::recv(asked.socket.native_handle(), packet.data(), packet.size(), 0);
        // An unreachable address is told by an error; the timer ends the wait.
        if (length > 0 && is_echo_reply(std::span{packet}.first(static_cast<std::size_t>(length)),
                                        asked.v6, asked.token))
          return answer(id, true);
        if (length < 0 && errno != EAGAIN) return;
        read(id);
      });
}

void IcmpPinger::answer(std::uint64_t id, bool answered) {
  auto node = asked_.extract(id);
  if (node.empty()) return;
  loop_.cancel(node.mapped()->timer);
  auto done = std::move(node.mapped()->done);
  done(answered);
}

}  // namespace csv::cluster
