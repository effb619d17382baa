#include "tests/iscsi/scripted_target.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

namespace csv::iscsi {
namespace {

using Header = std::array<std::uint8_t, 48>;

template <typename T>
T get(const std::uint8_t* from) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>((std::uint64_t{value} << 8) | from[i]);
  return value;
}
template <typename T>
void put(std::uint8_t* to, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    to[i] = static_cast<std::uint8_t>(value >> (8 * (sizeof(T) - 1 - i)));
}
std::uint32_t data_length(const Header& header) {
  return get<std::uint32_t>(&header[4]) & 0xffffff;
}

std::vector<std::byte> bytes(std::size_t size) { return std::vector<std::byte>(size); }
std::uint8_t* raw(std::vector<std::byte>& from) {
  return reinterpret_cast<std::uint8_t*>(from.data());
}

}  // namespace

struct ScriptedTarget::Connection {
  ScriptedTarget& target;
  int fd;
  int index = 0;
  std::uint32_t stat_sn = 1;
  std::atomic<std::uint32_t> exp_cmd_sn{0};  // release() answers on another thread
  struct Held {
    std::uint32_t itt;
    Command command;
  };
  std::vector<Held> held;
  std::vector<Header> held_resets;
  std::mutex sending;
  std::thread thread;

  Connection(ScriptedTarget& whose, int socket) : target{whose}, fd{socket} {
    thread = std::thread{[this] { run(); }};
  }
  ~Connection() {
    ::shutdown(fd, SHUT_RDWR);
    thread.join();
    ::close(fd);
  }

  bool read_all(void* to, std::size_t size) {
    for (std::size_t done = 0; done < size;) {
      auto got = ::recv(fd, static_cast<char*>(to) + done, size - done, 0);
      if (got <= 0) return false;
      done += static_cast<std::size_t>(got);
    }
    return true;
  }
  bool read_data(const Header& header, std::vector<std::byte>& into) {
    auto length = data_length(header);
    auto start = into.size();
    into.resize(start + (length + 3) / 4 * 4);
    if (!read_all(into.data() + start, into.size() - start)) return false;
    into.resize(start + length);
    return true;
  }

  void send(Header header, const std::vector<std::byte>& data) {
    std::lock_guard lock{sending};
    put(&header[4], static_cast<std::uint32_t>(data.size()));
    put(&header[24], stat_sn++);
    std::uint32_t expected = exp_cmd_sn;
    put(&header[28], expected);
    put(&header[32], expected + target.options_.window - 1);
    std::vector<char> all(header.begin(), header.end());
    all.insert(all.end(), reinterpret_cast<const char*>(data.data()),
               reinterpret_cast<const char*>(data.data()) + data.size());
    all.resize((all.size() + 3) / 4 * 4);
    (void)!::send(fd, all.data(), all.size(), MSG_NOSIGNAL);
  }

  void run() {
    bool alive = login();
    while (alive) {
      Header header{};
      alive = read_all(header.data(), header.size()) && take(header);
    }
    --target.open_;
    ::shutdown(fd, SHUT_RDWR);
  }

  bool login() {
    ++target.open_;
    if (target.options_.login_hangs) {
      pollfd hung_up{fd, POLLRDHUP, 0};
      while (::poll(&hung_up, 1, 10000) == 0) {
      }
      return false;
    }
    while (true) {
      Header request{};
      std::vector<std::byte> keys;
      if (!read_all(request.data(), request.size()) || !read_data(request, keys)) return false;
      exp_cmd_sn = get<std::uint32_t>(&request[24]);
      std::string said{reinterpret_cast<const char*>(keys.data()), keys.size()};
      constexpr std::string_view kName = "InitiatorName=";
      if (auto at = said.find(kName); at != std::string::npos) {
        std::lock_guard lock{target.mutex_};
        target.initiators_.emplace_back(said.c_str() + at + kName.size());
      }
      Header response{};
      response[0] = 0x23;
      response[1] = request[1];
      std::copy(&request[8], &request[20], &response[8]);
      put(&response[14], static_cast<std::uint16_t>(1));
      std::string text;
      if (target.options_.login_status != 0) {
        put(&response[36], target.options_.login_status);
        response[1] = 0;
        if (!target.options_.redirect_to.empty())
          text = "TargetAddress=" + target.options_.redirect_to + '\0';
      } else if (((request[1] >> 2) & 3) == 0) {
        text = std::string{"AuthMethod=None"} + '\0';
      } else {
        for (const auto& each :
             {std::string{"HeaderDigest=None"}, std::string{"DataDigest=None"},
              std::string{"InitialR2T=No"}, std::string{"ImmediateData=Yes"},
              std::string{"MaxBurstLength=1048576"}, std::string{"FirstBurstLength=1048576"},
              std::string{"MaxOutstandingR2T=1"},
              "MaxRecvDataSegmentLength=" + std::to_string(target.options_.segment)})
          text += each + '\0';
      }
      std::vector<std::byte> data(text.size());
      if (!text.empty()) std::memcpy(data.data(), text.data(), text.size());
      bool in = target.options_.login_status == 0 && (request[1] & 0x80) && (request[1] & 3) == 3;
      // Before whoever logs in can know it.
      if (in) index = target.logins_++;
      send(response, data);
      if (in) return true;
      if (target.options_.login_status != 0) return false;
    }
  }

  bool take(const Header& header) {
    switch (header[0] & 0x3f) {
      case 0x01: return take_command(header);
      case 0x02: {
        ++target.resets_;
        Header response{};
        response[0] = 0x22;
        response[1] = 0x80;
        response[2] = static_cast<std::uint8_t>(target.options_.reset_response);
        std::copy(&header[16], &header[20], &response[16]);
        if (target.options_.reset_hangs) {
          std::lock_guard lock{target.mutex_};
          held_resets.push_back(response);
          return true;
        }
        send(response, {});
        return true;
      }
      case 0x05: {
        std::vector<std::byte> late;
        return read_data(header, late);  // of a command that was answered early
      }
      default: return false;
    }
  }

  bool take_command(const Header& header) {
    exp_cmd_sn = get<std::uint32_t>(&header[24]) + 1;
    Command command;
    std::copy(&header[32], &header[48], command.cdb.begin());
    command.connection = index;
    if (!read_data(header, command.out)) return false;
    auto itt = get<std::uint32_t>(&header[16]);
    auto expected = get<std::uint32_t>(&header[20]);
    bool writes = (header[1] & 0x20) != 0;

    std::unique_lock lock{target.mutex_};
    command.number = ++target.counts_[command.opcode()];
    auto answer = target.script_ ? target.script_(command) : Answer{};
    lock.unlock();
    while (writes && !answer.early && command.out.size() < expected) {
      Header more{};
      if (!read_all(more.data(), more.size()) || (more[0] & 0x3f) != 0x05) return false;
      if (!read_data(more, command.out)) return false;
    }
    return reply(itt, command, answer, expected);
  }

  bool reply(std::uint32_t itt, const Command& command, const Answer& answer,
             std::uint32_t expected) {
    switch (answer.kind) {
      case Answer::Kind::normal: respond(itt, target.options_, command); return true;
      case Answer::Kind::status: respond_status(itt, answer); return true;
      case Answer::Kind::data:
        respond_data(itt, answer.data,
                     expected - std::min(expected, static_cast<std::uint32_t>(answer.data.size())));
        return true;
      case Answer::Kind::nothing: {
        std::lock_guard lock{target.mutex_};
        held.push_back({itt, command});
        return true;
      }
      case Answer::Kind::garbage: {
        std::vector<char> noise(480, '\x5a');
        (void)!::send(fd, noise.data(), noise.size(), MSG_NOSIGNAL);
        return true;
      }
      case Answer::Kind::hang_up: {
        Header half{};
        half[0] = 0x25;
        (void)!::send(fd, half.data(), 20, MSG_NOSIGNAL);
        return false;
      }
    }
    return false;
  }

  void respond_status(std::uint32_t itt, const Answer& answer) {
    Header response{};
    response[0] = 0x21;
    response[1] = 0x80;
    response[3] = answer.status;
    put(&response[16], itt);
    std::vector<std::byte> data;
    if (answer.sense_key != 0) {
      data = bytes(20);
      put(raw(data), static_cast<std::uint16_t>(18));
      data[2] = std::byte{0x70};
      data[4] = std::byte{answer.sense_key};
      data[9] = std::byte{10};
      put(raw(data) + 14, answer.sense_code);
    }
    send(response, data);
  }

  void respond_data(std::uint32_t itt, const std::vector<std::byte>& data,
                    std::uint32_t missing = 0) {
    for (std::size_t at = 0; at < data.size(); at += target.options_.segment) {
      auto size = std::min<std::size_t>(target.options_.segment, data.size() - at);
      Header part{};
      part[0] = 0x25;
      bool last = at + size == data.size();
      part[1] = last ? 0x81 : 0;  // final, with status GOOD
      if (last && missing) {
        part[1] |= 0x02;
        put(&part[44], missing);
      }
      put(&part[16], itt);
      put(&part[20], std::uint32_t{0xffffffff});
      put(&part[36], static_cast<std::uint32_t>(at / target.options_.segment));
      put(&part[40], static_cast<std::uint32_t>(at));
      std::vector<std::byte> piece(data.begin() + static_cast<std::ptrdiff_t>(at),
                                   data.begin() + static_cast<std::ptrdiff_t>(at + size));
      send(part, piece);
    }
  }

  /// What a disk does.
  void respond(std::uint32_t itt, const Options& options, const Command& command) {
    const auto* cdb = command.cdb.data();
    auto illegal = [&](std::uint16_t code) { respond_status(itt, sense(5, code)); };
    auto beyond = [&](std::uint64_t offset, std::uint64_t length) {
      return length > target.disk_.size() || offset > target.disk_.size() - length;
    };
    auto data_of = [&](std::vector<std::byte> answer, std::size_t allocation) {
      auto missing = allocation > answer.size() ? allocation - answer.size() : 0;
      answer.resize(std::min(answer.size(), allocation));
      respond_data(itt, answer, static_cast<std::uint32_t>(missing));
    };
    switch (command.opcode()) {
      case 0x00: return respond_status(itt, status(0));
      case 0x12: {
        auto answer = bytes(36);
        if (cdb[1] & 1) {
          if (cdb[2] != 0) return illegal(0x2400);
          answer = bytes(5);  // page 00h: no pages but itself
          answer[3] = std::byte{1};
        } else {
          std::memcpy(raw(answer) + 8, "SCRIPT  NO DISK         1   ", 28);
        }
        return data_of(std::move(answer), get<std::uint16_t>(cdb + 3));
      }
      case 0x9e: {
        auto answer = bytes(32);
        put(raw(answer), options.blocks - 1);
        put(raw(answer) + 8, options.block_size);
        return data_of(std::move(answer), get<std::uint32_t>(cdb + 10));
      }
      case 0x5a: {
        auto answer = bytes(28);
        answer[1] = std::byte{26};
        answer[3] = std::byte(options.fua ? 0x10 : 0);
        answer[8] = std::byte{0x08};
        answer[9] = std::byte{0x12};
        answer[10] = std::byte(options.write_cache ? 0x04 : 0);
        return data_of(std::move(answer), get<std::uint16_t>(cdb + 7));
      }
      case 0x5f:
        // PREEMPT AND ABORT exists, for who has a registration: nobody.
        if ((cdb[1] & 0x1f) == 5) return respond_status(itt, status(0x18));
        return illegal(0x2400);
      case 0x5e: return illegal(0x2400);
      case 0x28:
      case 0x88: {
        auto [offset, length] = range(options, command);
        std::lock_guard lock{target.mutex_};
        if (beyond(offset, length)) return illegal(0x2100);
        return respond_data(itt,
                            {target.disk_.begin() + static_cast<std::ptrdiff_t>(offset),
                             target.disk_.begin() + static_cast<std::ptrdiff_t>(offset + length)});
      }
      case 0x2a:
      case 0x8a: {
        auto [offset, length] = range(options, command);
        std::lock_guard lock{target.mutex_};
        if (beyond(offset, length)) return illegal(0x2100);
        std::copy_n(command.out.begin(), std::min<std::size_t>(length, command.out.size()),
                    target.disk_.begin() + static_cast<std::ptrdiff_t>(offset));
        return respond_status(itt, status(0));
      }
      case 0x35: return respond_status(itt, status(0));
      default: return illegal(0x2000);
    }
  }

  static std::pair<std::uint64_t, std::uint64_t> range(const Options& options,
                                                       const Command& command) {
    const auto* cdb = command.cdb.data();
    bool wide = command.opcode() >= 0x80;
    std::uint64_t lba = wide ? get<std::uint64_t>(cdb + 2) : get<std::uint32_t>(cdb + 2);
    std::uint64_t blocks = wide ? get<std::uint32_t>(cdb + 10) : get<std::uint16_t>(cdb + 7);
    return {lba * options.block_size, blocks * options.block_size};
  }
};

ScriptedTarget::ScriptedTarget(Options options, Script script)
    : options_{std::move(options)},
      script_{std::move(script)},
      disk_(options_.blocks * options_.block_size) {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int small = 16 << 10;  // so that what is not read keeps the sender waiting
  ::setsockopt(listener_, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ::bind(listener_, reinterpret_cast<sockaddr*>(&address), length);
  ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
  port_ = ntohs(address.sin_port);
  ::listen(listener_, 16);
  acceptor_ = std::thread{[this] { accept_loop(); }};
}

ScriptedTarget::~ScriptedTarget() {
  ending_ = true;
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  all_.clear();
  ::close(listener_);
}

void ScriptedTarget::accept_loop() {
  while (!ending_) {
    int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    std::lock_guard lock{mutex_};
    all_.push_back(std::make_unique<Connection>(*this, fd));
  }
}

std::vector<std::string> ScriptedTarget::initiators() const {
  std::lock_guard lock{mutex_};
  return initiators_;
}

std::string ScriptedTarget::portal() const { return "127.0.0.1:" + std::to_string(port_); }
std::string ScriptedTarget::url() const { return "iscsi://" + portal() + "/" + kTarget + "/1"; }

std::uint64_t ScriptedTarget::count(std::uint8_t opcode) const {
  std::lock_guard lock{mutex_};
  auto found = counts_.find(opcode);
  return found == counts_.end() ? 0 : found->second;
}

void ScriptedTarget::release() {
  for (auto& each : all_) {
    std::unique_lock lock{mutex_};
    auto held = std::exchange(each->held, {});
    auto resets = std::exchange(each->held_resets, {});
    lock.unlock();
    for (const auto& response : resets) each->send(response, {});
    for (auto& one : held) each->respond(one.itt, options_, one.command);
  }
}

}  // namespace csv::iscsi
