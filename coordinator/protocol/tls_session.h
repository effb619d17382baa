#pragma once
#include <bitset>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "coordinator/protocol/certificate.h"
#include "coordinator/protocol/limits.h"

struct ssl_ctx_st;

namespace csv::protocol {

using NodeSet = std::bitset<kMaxNode + 1>;

/// One side of a TLS 1.3 conversation on a connected socket that does not block. It reads the
/// socket by itself, straight into OpenSSL's buffers, and writes the few bytes of handshake and
/// farewell; sealed content it collects for its owner to send. It waits for nothing. One thread.
class TlsSession {
 public:
  enum class Side { connecting, accepting };
  struct Setup {
    std::shared_ptr<ssl_ctx_st> context;
    Side side{};
    int socket = -1;  ///< The owner's; open for as long as this lives.
    std::uint16_t cluster = 0;
    NodeSet peers;                              ///< Whose certificate will do.
    WallTime now{};                             ///< What certificates' dates are held against.
    std::size_t most_before_proof = 16 * 1024;  ///< Bytes read before the peer is known.
  };
  static Expected<std::unique_ptr<TlsSession>> make(const Setup& setup);
  virtual ~TlsSession() = default;

  enum class Step { wait, done };  ///< wait: until the socket can be read.
  /// Goes on with the handshake. Done: the peer holds the certificate of peer(). The peer may still
  /// refuse ours. Errors say what is wrong for the log; the peer has been told as much as TLS does.
  virtual Expected<Step> handshake() = 0;
  [[nodiscard]] virtual NodeId peer() const = 0;

  /// What the peer sent, decrypted; 0: nothing now, wait for the socket. Errc::closed at its end.
  virtual Expected<std::size_t> read(std::span<std::byte> into) = 0;
  /// Encrypts for the peer; the records are added to sealed().
  virtual Expected<void> seal(std::span<const std::byte> content) = 0;
  virtual std::string& sealed() = 0;
  /// Sends what is sealed now, and only for small things: what the socket does not take at once is
  /// an error.
  virtual Expected<void> send_now() = 0;
  /// Says that nothing more comes, if that can be said at once.
  virtual void farewell() = 0;
};

/// What a record carries at most.
inline constexpr std::size_t kRecord = 16 * 1024;

}  // namespace csv::protocol
