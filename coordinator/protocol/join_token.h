#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "csvfs/base/error.h"
#include "csvfs/base/loop.h"

namespace csv::protocol {

/// What a machine that is to become a node is given, by hand: where the cluster is, and the secret
/// by which both sides know each other (join_channel.h). Whoever has it can become that node, once,
/// until it has been used or has run out. A value.
struct JoinToken {
  std::uint16_t cluster = 0;
  WallTime until{};  ///< Whole seconds; by the clock of who made it, who alone decides.
  std::array<std::byte, 32> secret{};
  std::array<std::byte, 32> authority{};  ///< SHA-256 of the certificate of the cluster's CA.
  std::string endpoint;                   ///< "address:port", numeric: who made it waits there.
  bool operator==(const JoinToken&) const = default;
};

/// A word to be copied, and back. Errc::refused with the reason for whatever is no whole token: a
/// letter too few, or of a later version.
std::string to_text(const JoinToken& token);
Expected<JoinToken> parse_join_token(std::string_view text);

std::string to_hex(std::string_view bytes);
/// Errc::refused where it is not made of pairs of lower-case hexadecimal digits.
Expected<std::string> from_hex(std::string_view text);

}  // namespace csv::protocol
