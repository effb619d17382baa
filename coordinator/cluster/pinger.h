#pragma once
#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "csvfs/base/function.h"
#include "csvfs/base/loop.h"

namespace csv::cluster {

/// Asks machines whether they are there. Loop's thread.
class Pinger {
 public:
  virtual ~Pinger() = default;
  /// `done` once, from the loop, never from inside the call: whether the machine at this numeric
  /// address (IPv6 also in brackets) has answered within `patience`. What cannot be asked has not
  /// answered. Dropped unanswered when the pinger is destroyed.
  virtual void ping(const std::string& address, Duration patience, Function<void(bool)> done) = 0;
};

/// What tells an answer to one ping from those to others.
using PingToken = std::array<std::byte, 16>;

/// An ICMP (v4) or ICMPv6 echo request that carries the token, with its checksum where the kernel
/// makes none.
std::vector<std::byte> echo_request(bool v6, const PingToken& token);
/// Whether a received packet, of IPv4 perhaps with its IP header, is the answer to that request.
bool is_echo_reply(std::span<const std::byte> packet, bool v6, const PingToken& token);

}  // namespace csv::cluster
