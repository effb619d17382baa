#include "coordinator/protocol/join_token.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/toml_section.h"

namespace csv::protocol {
namespace {

// Before it is written as digits, numbers with their lowest byte first:
//   offset size
//        0    1  version    1
//        1    2  cluster
//        3    8  until      seconds
//       11   32  secret
//       43   32  authority
//       75    n  endpoint
//   75 + n    4  crc        CRC-32C of all before it: of a token that was not copied whole
constexpr std::string_view kPrefix = "csvfs-join-";
constexpr char kVersion = 1;
constexpr std::size_t kHead = 75, kCrc = 4, kLongestEndpoint = 64;
constexpr std::int64_t kSecond = 1'000'000'000;
/// The year 2262: later does not fit into a WallTime.
constexpr std::uint64_t kLatest = 9'223'372'036;

Error refused(std::string why) { return {Errc::refused, "the token " + std::move(why)}; }

void put(std::string& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

std::uint64_t number(std::string_view bytes) {
  std::uint64_t out = 0;
  for (std::size_t i = bytes.size(); i-- > 0;)
    out = out << 8 | static_cast<unsigned char>(bytes[i]);
  return out;
}

std::uint32_t crc_of(std::string_view bytes) {
  return crc32c(std::as_bytes(std::span{bytes.data(), bytes.size()}));
}

}  // namespace

std::string to_hex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  out.reserve(2 * bytes.size());
  for (char c : bytes) {
    auto byte = static_cast<unsigned char>(c);
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

Expected<std::string> from_hex(std::string_view text) {
  auto digit = [](char c) { return c >= 'a' ? c - 'a' + 10 : c - '0'; };
  bool good = text.size() % 2 == 0 && std::all_of(text.begin(), text.end(), [](char c) {
                return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
              });
  if (!good) return Error{Errc::refused, "these are no pairs of hexadecimal digits"};
  std::string out;
  for (std::size_t i = 0; i < text.size(); i += 2)
    out += static_cast<char>(digit(text[i]) << 4 | digit(text[i + 1]));
  return out;
}

std::string to_text(const JoinToken& token) {
  std::string bytes(1, kVersion);
  put(bytes, token.cluster, 2);
  put(bytes, static_cast<std::uint64_t>(static_cast<std::int64_t>(token.until) / kSecond), 8);
  bytes.append(reinterpret_cast<const char*>(token.secret.data()), token.secret.size());
  bytes.append(reinterpret_cast<const char*>(token.authority.data()), token.authority.size());
  bytes += token.endpoint;
  put(bytes, crc_of(bytes), kCrc);
  return std::string{kPrefix} + to_hex(bytes);
}

Expected<JoinToken> parse_join_token(std::string_view text) {
  if (!text.starts_with(kPrefix) || text.size() > 1024)
    return refused("is none: one begins with " + std::string{kPrefix});
  auto read = from_hex(text.substr(kPrefix.size()));
  constexpr const char* kNotWhole = "is not whole: copy all of it";
  if (!read || read->empty()) return refused(kNotWhole);
  std::string_view bytes = *read;
  if (bytes.front() != kVersion) return refused("is of another version of csvfs");
  if (bytes.size() <= kHead + kCrc) return refused(kNotWhole);
  auto content = bytes.substr(0, bytes.size() - kCrc);
  if (number(bytes.substr(content.size())) != crc_of(content)) return refused(kNotWhole);
  JoinToken out;
  out.cluster = static_cast<std::uint16_t>(number(content.substr(1, 2)));
  auto until = number(content.substr(3, 8));
  if (out.cluster == 0 || until > kLatest) return refused("makes no sense");
  out.until = WallTime{static_cast<std::int64_t>(until) * kSecond};
  std::memcpy(out.secret.data(), content.data() + 11, out.secret.size());
  std::memcpy(out.authority.data(), content.data() + 43, out.authority.size());
  out.endpoint = content.substr(kHead);
  if (out.endpoint.size() > kLongestEndpoint || !is_endpoint(out.endpoint))
    return refused("names no address");
  return out;
}

}  // namespace csv::protocol
