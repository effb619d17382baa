// What a pinging node reads: packets of its socket, /proc/net/route. The first byte chooses: 0 and
// 1 a packet of IPv4 or IPv6, else routes.
#include "coordinator/cluster/loss_response.h"
#include "coordinator/cluster/pinger.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {

using namespace csv::cluster;

void run(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  auto what = std::to_integer<unsigned>(bytes[0]);
  bytes = bytes.subspan(1);
  if (what > 1) {
    auto found = default_gateways(text_of(bytes));
    CSV_CHECK(found.size() <= 8);
    for (const auto& address : found)
      CSV_CHECK(address != "0.0.0.0" && address.find_first_not_of("0123456789.") == address.npos);
    return;
  }
  PingToken token{};
  token[0] = std::byte{7};
  if (is_echo_reply(bytes, what == 1, token)) CSV_CHECK(bytes.size() >= 8 + token.size());
  // No packet answers two requests.
  auto other = token;
  other[15] = std::byte{1};
  CSV_CHECK(!is_echo_reply(bytes, what == 1, token) || !is_echo_reply(bytes, what == 1, other));
}

std::vector<Seed> seeds() {
  using namespace std::string_literals;
  const auto token = "\7"s + std::string(15, '\0');
  const auto ip = "\x45"s + std::string(19, '\0');
  return {
      {"reply4", "\0"s + "\0\0\0\0\0\0\0\1"s + token},
      {"reply4-raw", "\0"s + ip + "\0\0\0\0\0\0\0\1"s + token},
      {"header-too-long", "\0\x4f"s + std::string(10, '\0')},
      {"reply6", "\1\x81\0\0\0\0\0\0\1"s + token},
      {"request4", "\0\x08\0\0\0\0\0\0\1"s + token},
      {"short", "\0\0\0"s},
      {"routes",
       "\2Iface\tDestination\tGateway\n"
       "eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"},
      {"routes-cut", "\2eth0\t00000000\t0102"},
      {"routes-long", "\2" + std::string(3000, '\t')},
  };
}

}  // namespace csv::fuzz
