#include "coordinator/cluster/pinger.h"

#include <algorithm>

namespace csv::cluster {
namespace {

constexpr std::byte kRequest4{8}, kReply4{0}, kRequest6{128}, kReply6{129};
constexpr std::size_t kHeader = 8;

/// RFC 1071.
std::uint16_t checksum(std::span<const std::byte> data) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i + 1 < data.size(); i += 2)
    sum +=
        std::to_integer<std::uint32_t>(data[i]) << 8 | std::to_integer<std::uint32_t>(data[i + 1]);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

/// A raw socket of IPv4 hands out the IP header, too; version and length are in its first byte.
std::span<const std::byte> without_ip_header(std::span<const std::byte> packet) {
  if (packet.empty() || std::to_integer<unsigned>(packet[0]) >> 4 != 4) return packet;
  auto length = (std::to_integer<std::size_t>(packet[0]) & 0xf) * 4;
  return length <= packet.size() ? packet.subspan(length) : std::span<const std::byte>{};
}

}  // namespace

std::vector<std::byte> echo_request(bool v6, const PingToken& token) {
  std::vector<std::byte> out(kHeader + token.size());
  out[0] = v6 ? kRequest6 : kRequest4;
  out[4] = token[0];  // the identifier, and what the kernel may put in its place
  out[5] = token[1];
  out[7] = std::byte{1};
  std::copy(token.begin(), token.end(), out.begin() + kHeader);
  if (v6) return out;
  auto sum = checksum(out);
  out[2] = std::byte(sum >> 8);
  out[3] = std::byte(sum & 0xff);
  return out;
}

bool is_echo_reply(std::span<const std::byte> packet, bool v6, const PingToken& token) {
  if (!v6) packet = without_ip_header(packet);
  return packet.size() == kHeader + token.size() && packet[0] == (v6 ? kReply6 : kReply4) &&
         packet[1] == std::byte{} &&
         std::equal(token.begin(), token.end(), packet.data() + kHeader);
}

}  // namespace csv::cluster
