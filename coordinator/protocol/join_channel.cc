#include "coordinator/protocol/join_channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "coordinator/protocol/openssl.h"
#include "coordinator/protocol/socket_stream.h"
#include "csvfs/base/endian.h"

namespace csv::protocol {
namespace {

using ContextPtr = std::unique_ptr<SSL_CTX, FreeBy<&SSL_CTX_free>>;
using SslPtr = std::unique_ptr<SSL, FreeBy<&SSL_free>>;
using SessionPtr = std::unique_ptr<SSL_SESSION, FreeBy<&SSL_SESSION_free>>;

constexpr std::string_view kIdentity = "csvfs join";
constexpr std::array<unsigned char, 2> kCipher{0x13, 0x02};  // TLS_AES_256_GCM_SHA384

Error refused(std::string why) { return {Errc::refused, std::move(why)}; }

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_{fd} {}
  Descriptor(Descriptor&& from) noexcept : fd_{std::exchange(from.fd_, -1)} {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

/// Until it is ready, or `until`.
Expected<void> wait_for(const Clock& clock, int fd, short events, TimePoint until,
                        const std::string& doing) {
  for (;;) {
    auto left = (until - clock.now()) / 1ms;
    pollfd one{fd, events, 0};
    auto got =
        left < 0 ? 0 : ::poll(&one, 1, static_cast<int>(std::min<long>(left + 1, 3'600'000)));
    if (got > 0) return {};
    if (got < 0 && errno != EINTR) return errno_error(errno, doing);
    if (clock.now() >= until) return errno_error(ETIMEDOUT, doing);
  }
}

/// The token as a session that both sides have from somewhere: that is TLS's word for it.
SessionPtr session_of(SSL* ssl, const JoinToken& token) {
  SessionPtr session{SSL_SESSION_new()};
  const auto* cipher = SSL_CIPHER_find(ssl, kCipher.data());
  if (!session || cipher == nullptr ||
      SSL_SESSION_set1_master_key(session.get(),
                                  reinterpret_cast<const unsigned char*>(token.secret.data()),
                                  token.secret.size()) != 1 ||
      SSL_SESSION_set_cipher(session.get(), cipher) != 1 ||
      SSL_SESSION_set_protocol_version(session.get(), TLS1_3_VERSION) != 1)
    return nullptr;
  return session;
}

const JoinToken& token_of(SSL* ssl) {
  return *static_cast<const JoinToken*>(SSL_get_app_data(ssl));
}

int find_session(SSL* ssl, const unsigned char* identity, std::size_t length,
                 SSL_SESSION** session) {
  *session = nullptr;
  if (std::string_view{reinterpret_cast<const char*>(identity), length} != kIdentity) return 1;
  *session = session_of(ssl, token_of(ssl)).release();
  return 1;
}

int use_session(SSL* ssl, const EVP_MD* digest, const unsigned char** identity, std::size_t* length,
                SSL_SESSION** session) {
  *identity = reinterpret_cast<const unsigned char*>(kIdentity.data());
  *length = kIdentity.size();
  *session = nullptr;
  auto made = session_of(ssl, token_of(ssl));
  if (!made) return 0;
  if (digest != nullptr &&
      SSL_CIPHER_get_handshake_digest(SSL_SESSION_get0_cipher(made.get())) != digest)
    return 1;
  *session = made.release();
  return 1;
}

class Channel final : public JoinChannel {
 public:
  Channel(const Clock& clock, Descriptor socket, const JoinToken& token, Duration patience)
      : clock_{&clock}, socket_{std::move(socket)}, token_{token}, patience_{patience} {}
  ~Channel() override {
    if (ssl_ && greeted_) SSL_shutdown(ssl_.get());
    ERR_clear_error();
  }

  Expected<void> greet(bool accepting) {
    context_.reset(SSL_CTX_new(TLS_method()));
    if (!context_ || SSL_CTX_set_min_proto_version(context_.get(), TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(context_.get(), "TLS_AES_256_GCM_SHA384") != 1 ||
        SSL_CTX_set_num_tickets(context_.get(), 0) != 1)
      return refused("preparing TLS: " + openssl_reason());
    // Nobody has a certificate here: one that is shown can only be a stranger's.
    if (!accepting) SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_session_cache_mode(context_.get(), SSL_SESS_CACHE_OFF);
    if (accepting)
      SSL_CTX_set_psk_find_session_callback(context_.get(), find_session);
    else
      SSL_CTX_set_psk_use_session_callback(context_.get(), use_session);
    ssl_.reset(SSL_new(context_.get()));
    if (!ssl_ || SSL_set_fd(ssl_.get(), socket_.get()) != 1)
      return refused("preparing TLS: " + openssl_reason());
    SSL_set_app_data(ssl_.get(), &token_);
    auto shake = [&] { return accepting ? SSL_accept(ssl_.get()) : SSL_connect(ssl_.get()); };
    CSV_TRY(drive(shake, clock_->now() + patience_, "the greeting"));
    if (SSL_session_reused(ssl_.get()) != 1) return refused("it does not know the token");
    greeted_ = true;
    return {};
  }

  Expected<void> send(std::string_view message) override {
    if (message.size() > kMostBytes) return refused("a message is too long");
    Le32 length{static_cast<std::uint32_t>(message.size())};
    std::string all(sizeof length, '\0');
    std::memcpy(all.data(), &length, sizeof length);
    all += message;
    auto until = clock_->now() + patience_;
    for (std::size_t at = 0; at < all.size();) {
      std::size_t written = 0;
      auto write = [&] {
        return SSL_write_ex(ssl_.get(), all.data() + at, all.size() - at, &written);
      };
      CSV_TRY(drive(write, until, "sending"));
      at += written;
    }
    return {};
  }

  Expected<std::string> receive() override {
    auto until = clock_->now() + patience_;
    Le32 length;
    CSV_TRY(read(reinterpret_cast<char*>(&length), sizeof length, until));
    std::uint32_t size = length;
    if (size > kMostBytes) return Error{Errc::corrupt, "a message is too long"};
    std::string out(size, '\0');
    CSV_TRY(read(out.data(), out.size(), until));
    return out;
  }

 private:
  Expected<void> read(char* into, std::size_t size, TimePoint until) {
    for (std::size_t at = 0; at < size;) {
      std::size_t got = 0;
      auto more = [&] { return SSL_read_ex(ssl_.get(), into + at, size - at, &got); };
      CSV_TRY(drive(more, until, "receiving"));
      at += got;
    }
    return {};
  }

  template <typename Step>
  Expected<void> drive(Step step, TimePoint until, const std::string& doing) {
    for (;;) {
      ERR_clear_error();
      auto done = step();
      if (done == 1) return {};
      auto error = SSL_get_error(ssl_.get(), done);
      if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
        CSV_TRY(wait_for(*clock_, socket_.get(), error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT,
                         until, doing));
        continue;
      }
      greeted_ = false;  // nothing more can be said
      if (error == SSL_ERROR_ZERO_RETURN) return Error{Errc::closed, doing + ": it has ended"};
      if (error == SSL_ERROR_SYSCALL)
        return Error{Errc::closed, doing + ": the connection has ended"};
      return refused(doing + ": " + openssl_reason());
    }
  }

  const Clock* clock_;
  Descriptor socket_;
  JoinToken token_;
  Duration patience_;
  ContextPtr context_;
  SslPtr ssl_;
  bool greeted_ = false;
};

class Door final : public JoinDoor {
 public:
  Door(const Clock& clock, Descriptor socket, std::string endpoint)
      : clock_{&clock}, socket_{std::move(socket)}, endpoint_{std::move(endpoint)} {}
  [[nodiscard]] std::string endpoint() const override { return endpoint_; }

  Expected<std::unique_ptr<JoinChannel>> wait(const JoinToken& token, Duration patience) override {
    auto left = Duration{static_cast<std::int64_t>(token.until) -
                         static_cast<std::int64_t>(clock_->wall_now())};
    auto until = clock_->now() + left;
    for (;;) {
      if (clock_->now() >= until || !wait_for(*clock_, socket_.get(), POLLIN, until, "waiting"))
        return refused("the token has run out, and nobody has used it");
      Descriptor one{::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
      if (one.get() < 0) continue;
      auto channel = std::make_unique<Channel>(*clock_, std::move(one), token, patience);
      if (channel->greet(true)) return std::unique_ptr<JoinChannel>{std::move(channel)};
    }
  }

 private:
  const Clock* clock_;
  Descriptor socket_;
  std::string endpoint_;
};

}  // namespace

Expected<std::unique_ptr<JoinChannel>> JoinChannel::connect(const Clock& clock,
                                                            const JoinToken& token,
                                                            Duration patience) {
  auto doing = "reaching the cluster at " + token.endpoint;
  auto to = CSV_TRY(parse_endpoint(token.endpoint));
  Descriptor socket{::socket(to.data()->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (socket.get() < 0) return errno_error(errno, doing);
  int error = 0;
  if (::connect(socket.get(), to.data(), static_cast<socklen_t>(to.size())) != 0) error = errno;
  if (error == EINPROGRESS) {
    CSV_TRY(wait_for(clock, socket.get(), POLLOUT, clock.now() + patience, doing));
    socklen_t length = sizeof error;
    if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
  }
  if (error == ECONNREFUSED)
    return refused(doing +
                   ": nobody waits for this token there any more: it was used, has run out, or "
                   "csvctl cluster token was ended");
  if (error != 0) return errno_error(error, doing);
  auto channel = std::make_unique<Channel>(clock, std::move(socket), token, patience);
  if (auto greeted = channel->greet(false); !greeted) return greeted.error().within(doing);
  return std::unique_ptr<JoinChannel>{std::move(channel)};
}

Expected<std::unique_ptr<JoinDoor>> JoinDoor::open(const Clock& clock,
                                                   const std::string& endpoint) {
  auto doing = "listening on " + endpoint;
  auto at = CSV_TRY(parse_endpoint(endpoint));
  Descriptor socket{::socket(at.data()->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (socket.get() < 0 || ::bind(socket.get(), at.data(), static_cast<socklen_t>(at.size())) != 0 ||
      ::listen(socket.get(), 16) != 0)
    return errno_error(errno, doing);
  auto size = static_cast<socklen_t>(at.capacity());
  if (::getsockname(socket.get(), at.data(), &size) != 0) return errno_error(errno, doing);
  at.resize(size);
  auto text = to_text(at);
  return std::unique_ptr<JoinDoor>{
      std::make_unique<Door>(clock, std::move(socket), std::move(text))};
}

}  // namespace csv::protocol
