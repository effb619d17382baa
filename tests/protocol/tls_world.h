#pragma once
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "coordinator/protocol/certificate.h"
#include "coordinator/protocol/tls_identity.h"
#include "coordinator/protocol/tls_session.h"
#include "csvfs/base/asio_loop.h"

namespace csv::protocol::test {

inline constexpr std::uint16_t kCluster = 4711;
inline constexpr std::int64_t kDay = 24ll * 3600 * 1'000'000'000;

inline NodeId node_id(unsigned number) { return NodeId{static_cast<std::uint8_t>(number)}; }
inline NodeSet nodes(std::initializer_list<unsigned> numbers) {
  NodeSet out;
  for (auto each : numbers) out.set(each);
  return out;
}

/// The machine's wall clock, set wrong by as much as a test likes.
struct ShiftedClock final : Clock {
  explicit ShiftedClock(const Clock& of) : real{&of} {}
  [[nodiscard]] TimePoint now() const override { return real->now(); }
  [[nodiscard]] WallTime wall_now() const override {
    return WallTime{static_cast<std::int64_t>(real->wall_now()) + shift};
  }
  const Clock* real;
  std::int64_t shift = 0;
};

/// A cluster's CA, and certificates in files in a folder of their own.
class TlsWorld {
 public:
  explicit TlsWorld(const Clock& clock) : clock_{&clock}, authority{new_authority()} {
    std::string name = "/tmp/csvfs-tls-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder_ = name;
  }
  TlsWorld(const TlsWorld&) = delete;
  TlsWorld& operator=(const TlsWorld&) = delete;
  ~TlsWorld() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  [[nodiscard]] Validity days(int from, int until) const {
    auto now = static_cast<std::int64_t>(clock_->wall_now());
    return {WallTime{now + from * kDay}, WallTime{now + until * kDay}};
  }
  [[nodiscard]] KeyPair new_authority(std::uint16_t cluster = kCluster) const {
    auto made = make_authority(cluster, days(-1, 100));
    REQUIRE(made);
    return *made;
  }
  [[nodiscard]] KeyPair issue(unsigned node) const { return issue(node, authority, days(-1, 30)); }
  [[nodiscard]] static KeyPair issue(unsigned node, const KeyPair& by, const Validity& validity) {
    auto made = issue_certificate(by, node_id(node), "node" + std::to_string(node), validity);
    REQUIRE_MESSAGE(made, made.error().message());
    return *made;
  }
  /// Writes what a node of that name has, as csvctl does.
  TlsFiles put(const std::string& name, const KeyPair& pair, const std::string& ca) const {
    TlsFiles files{folder_ + "/" + name + ".ca", folder_ + "/" + name + ".crt",
                   folder_ + "/" + name + ".key"};
    write(files.ca, ca, 0644);
    write(files.certificate, pair.certificate, 0644);
    write(files.key, pair.key, 0600);
    return files;
  }
  TlsFiles put(unsigned node) const {
    return put("node" + std::to_string(node), issue(node), authority.certificate);
  }
  static void write(const std::string& path, const std::string& text, mode_t mode) {
    std::filesystem::remove(path);
    std::ofstream{path, std::ios::binary} << text;
    REQUIRE(::chmod(path.c_str(), mode) == 0);
  }
  std::unique_ptr<TlsIdentity> identity(unsigned node) const { return load(put(node), node); }
  std::unique_ptr<TlsIdentity> load(const TlsFiles& files, unsigned node) const {
    auto loaded = TlsIdentity::load(*clock_, files, {kCluster, node_id(node)});
    REQUIRE_MESSAGE(loaded, loaded.error().message());
    return *std::move(loaded);
  }
  [[nodiscard]] const std::string& folder() const { return folder_; }

 private:
  const Clock* clock_;
  std::string folder_;

 public:
  KeyPair authority;
};

/// A plain socket connected to an endpoint on the loopback address.
inline int plain_client(const std::string& endpoint) {
  auto port = static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1)));
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  return fd;
}

/// A TLS client that is not ours: waits, checks nobody, and shows what it is told to show. For a
/// thread beside the loop.
class RawTls {
 public:
  struct Show {
    TlsFiles files;  ///< Empty: no certificate.
    int least = TLS1_3_VERSION, most = TLS1_3_VERSION;
  };
  RawTls(int socket, const Show& show) : socket_{socket} {
    ::signal(SIGPIPE, SIG_IGN);
    context_ = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context_, show.least);
    SSL_CTX_set_max_proto_version(context_, show.most);
    SSL_CTX_set_options(context_, SSL_OP_IGNORE_UNEXPECTED_EOF);
    if (!show.files.certificate.empty()) {
      SSL_CTX_use_certificate_chain_file(context_, show.files.certificate.c_str());
      SSL_CTX_use_PrivateKey_file(context_, show.files.key.c_str(), SSL_FILETYPE_PEM);
    }
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, socket_);
  }
  RawTls(const RawTls&) = delete;
  RawTls& operator=(const RawTls&) = delete;
  ~RawTls() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
    ::close(socket_);
  }
  bool handshake() { return SSL_connect(ssl_) == 1; }
  /// Reads the word of welcome; false if there is none.
  bool welcome() {
    char word[4];
    for (int have = 0; have < 4;) {
      auto n = recv(word + have, static_cast<std::size_t>(4 - have));
      if (n <= 0) return false;
      have += n;
    }
    return std::string(word, 4) == "CSVW";
  }
  int recv(void* into, std::size_t size) { return SSL_read(ssl_, into, static_cast<int>(size)); }
  int send(const void* data, std::size_t size) {
    return SSL_write(ssl_, data, static_cast<int>(size));
  }
  [[nodiscard]] int socket() const { return socket_; }

 private:
  int socket_;
  SSL_CTX* context_;
  SSL* ssl_;
};

}  // namespace csv::protocol::test
