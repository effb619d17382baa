#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "coordinator/protocol/join_token.h"

namespace csv::protocol {

/// The way on which a new node gets what it needs, before it has a certificate: TLS 1.3 with the
/// token's secret as the key that both sides know already, so that each has proven to the other to
/// have the token before anything is said; and with a key exchange, so that who learns the secret
/// later cannot read it. For tools: every call waits, up to the patience given. One thread.
class JoinChannel {
 public:
  static constexpr std::size_t kMostBytes = 1 << 20;

  virtual ~JoinChannel() = default;
  /// Errc::closed: the other side ended it. Errc::timed_out is an errno's.
  virtual Expected<void> send(std::string_view message) = 0;
  virtual Expected<std::string> receive() = 0;

  /// To who made the token. Errc::refused: it is not there, or does not know this token (it was
  /// used, has run out, or was made by somebody else).
  static Expected<std::unique_ptr<JoinChannel>> connect(const Clock& clock, const JoinToken& token,
                                                        Duration patience);
};

/// Where a token's maker waits for it. Strangers cost one handshake each, one at a time, and no
/// more than `patience`; they learn nothing.
class JoinDoor {
 public:
  virtual ~JoinDoor() = default;
  /// "address:port", the port chosen where 0 was given.
  [[nodiscard]] virtual std::string endpoint() const = 0;
  /// The first who has the token; Errc::refused when it has run out.
  virtual Expected<std::unique_ptr<JoinChannel>> wait(const JoinToken& token,
                                                      Duration patience) = 0;

  static Expected<std::unique_ptr<JoinDoor>> open(const Clock& clock, const std::string& endpoint);
};

}  // namespace csv::protocol
