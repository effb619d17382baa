// A stranger's certificate: what it is called, whose it is and when it ends is read for the
// refusal, before anybody has looked whether it may be trusted. Nothing of it forges a line of a
// log or a node's name.
//
//   kind (1 byte): 'd' DER, 'n' patches (input.h) on a node's, 'c' on an authority's, else PEM
#include "coordinator/protocol/certificate.h"

#include <algorithm>
#include <array>

#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

/// Of node 3 of cluster 7, and of its authority, made by `csvctl cluster ca`. Their keys are gone.
constexpr std::string_view kNode =
    "MIIB5TCCAYugAwIBAgIQarRX4txSCwED4Z/N9ALs2zAKBggqhkjOPQQDAjAnMQ4w"
    "DAYDVQQKDAVjc3ZmczEVMBMGA1UEAwwMY2x1c3RlciA3IENBMCAXDTI2MTEyNzEy"
    "MzkzN1oYDzIxMjYxMTAzMTMzOTM3WjAgMQ4wDAYDVQQKDAVjc3ZmczEOMAwGA1UE"
    "AwwFbm9kZTMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQHx/yLWtaM+IgodBdN"
    "pk3llps2CJ6rTBls2ybColW4bWEFEkq5wIw1trLJ7wClKB0ZSmBsSnAREhNmlHAc"
    "9j1ko4GdMIGaMAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQDAgeAMB0GA1UdJQQW"
    "MBQGCCsGAQUFBwMBBggrBgEFBQcDAjAbBgNVHREEFDAShhBjc3ZmczovLzcvbm9k"
    "ZS8zMB0GA1UdDgQWBBQQBvjvsEq1lgY2quIrpIEbXeWfFTAfBgNVHSMEGDAWgBSR"
    "Aj6rfAEKtSh4Ztc/dhOjPKgQKjAKBggqhkjOPQQDAgNIADBFAiEAgn6P67m0k/4N"
    "e41yg9DYXA048r4c84iR31kOuI/BgI0CIAoMH/H0QbiTU6Ehj2bZEWxSfgqwVavF"
    "y9fX0ZwmiUWi";
constexpr std::string_view kAuthority =
    "MIIBzTCCAXOgAwIBAgIQTpSD+kTjlwxfjVzfnzKXcjAKBggqhkjOPQQDAjAnMQ4w"
    "DAYDVQQKDAVjc3ZmczEVMBMGA1UEAwwMY2x1c3RlciA3IENBMCAXDTI2MTEyNzEy"
    "MzkzN1oYDzIxMjYxMTAzMTMzOTM3WjAnMQ4wDAYDVQQKDAVjc3ZmczEVMBMGA1UE"
    "AwwMY2x1c3RlciA3IENBMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7YBtYoN2"
    "WllQ+RZms7HmTmqoc0MIT61Cs7sz0shu7O8/scnHdODb8hfk01J1HLxVpIBBWBOP"
    "aIAJK5P0XZP6tqN/MH0wEgYDVR0TAQH/BAgwBgEB/wIBADAOBgNVHQ8BAf8EBAMC"
    "AQYwFwYDVR0RBBAwDoYMY3N2ZnM6Ly83L2NhMB0GA1UdDgQWBBSRAj6rfAEKtSh4"
    "Ztc/dhOjPKgQKjAfBgNVHSMEGDAWgBSRAj6rfAEKtSh4Ztc/dhOjPKgQKjAKBggq"
    "hkjOPQQDAgNIADBFAiEAv9z8fjHx+9sY3Cyh0v9o2mBKT19RVY69/1nFYEou2pIC"
    "IDAGNGUxzMt/1Z789o/Ot9rrMzIlLLO5RBoF9IOtheUm";
constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string from_base64(std::string_view text) {
  std::string out;
  std::uint32_t bits = 0;
  int have = 0;
  for (char digit : text) {
    auto value = kDigits.find(digit);
    if (value == kDigits.npos) break;
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    have += 6;
    if (have < 8) continue;
    have -= 8;
    out += static_cast<char>(bits >> have & 0xff);
  }
  return out;
}

std::string to_base64(std::string_view bytes) {
  std::string out;
  for (std::size_t at = 0; at < bytes.size(); at += 3) {
    auto part = bytes.substr(at, 3);
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < 3; ++i)
      bits = bits << 8 | (i < part.size() ? static_cast<unsigned char>(part[i]) : 0u);
    for (std::size_t i = 0; i < 4; ++i)
      out += i <= part.size() ? kDigits[bits >> (18 - 6 * i) & 63] : '=';
  }
  return out;
}

std::string pem_of(std::string_view der) {
  auto digits = to_base64(der);
  std::string out = "-----BEGIN CERTIFICATE-----\n";
  for (std::size_t at = 0; at < digits.size(); at += 64) out += digits.substr(at, 64) + "\n";
  return out + "-----END CERTIFICATE-----\n";
}

void is_fit_for_a_log(const std::string& text) {
  CSV_CHECK(text.size() <= 160);
  CSV_CHECK(std::all_of(text.begin(), text.end(),
                        [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; }));
}

std::string patched(std::string_view good, Input& input) {
  auto der = from_base64(good);
  patch(input, std::as_writable_bytes(std::span{der}));
  return pem_of(der);
}

std::string pem_from(Input& input) {
  auto kind = input.take();
  if (kind == 'd') return pem_of(text_of(input.rest()));
  if (kind == 'n') return patched(kNode, input);
  if (kind == 'c') return patched(kAuthority, input);
  return std::string{text_of(input.rest())};
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto read = protocol::describe_certificates(pem_from(input));
  if (!read) {
    CSV_CHECK(read.error() == Errc::refused && !read.error().message().empty());
    return;
  }
  for (const auto& each : *read) {
    is_fit_for_a_log(each.subject);
    is_fit_for_a_log(each.issuer);
    is_fit_for_a_log(protocol::date_text(each.validity.from));
    is_fit_for_a_log(protocol::date_text(each.validity.until));
    CSV_CHECK(each.fingerprint.size() == 64);
    if (!each.node) continue;
    CSV_CHECK(each.node->cluster != 0 && each.node->cluster == each.cluster);
    CSV_CHECK(raw(each.node->node) > 0 && raw(each.node->node) < 64);
  }
}

std::vector<Seed> seeds() {
  using namespace std::string_literals;
  auto node = from_base64(kNode), authority = from_base64(kAuthority);
  auto subject = static_cast<std::uint32_t>(node.find("node3"));
  auto name = static_cast<std::uint32_t>(node.find("csvfs://"));
  auto until = static_cast<std::uint32_t>(node.find("2126"));
  auto from = static_cast<std::uint32_t>(node.find("261127"));
  return {
      {"node", "d" + node},
      {"authority", "d" + authority},
      {"pem", "t" + pem_of(node)},
      {"pem-chain", "t" + pem_of(node) + pem_of(authority)},
      {"pem-half", "t" + pem_of(node) + pem_of(authority).substr(0, 200)},
      {"pem-nothing", "t-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"},
      {"pem-no-end", "t-----BEGIN CERTIFICATE-----\n"},
      {"cut", "d" + node.substr(0, node.size() / 2)},
      {"behind-the-end", "d" + node + "more"},
      {"subject-with-quotes", "n" + patch_of(subject, "\"\n\\\x1b["s)},
      {"subject-with-nul", "n" + patch_of(subject, "a\0b"s)},
      {"subject-of-wide-letters", "n" + patch_of(subject - 2, "\x1e"s)},
      {"another-node", "n" + patch_of(name + 15, "9")},
      {"node-zero", "n" + patch_of(name + 15, "0")},
      {"node-of-no-cluster", "n" + patch_of(name + 8, "0")},
      {"name-with-nul", "n" + patch_of(name + 15, "\0"s)},
      {"name-longer-than-it-is", "n" + patch_of(name - 1, "\x7f")},
      {"names-of-another-kind", "n" + patch_of(name - 2, "\x82")},
      {"year-9999", "n" + patch_of(until, "99991231235959Z")},
      {"year-0000", "n" + patch_of(until, "00000101000000Z")},
      {"no-date", "n" + patch_of(from, "xxxxxx")},
      {"authority-that-is-none",
       "c" + patch_of(static_cast<std::uint32_t>(authority.find("csvfs://")), "x")},
  };
}

}  // namespace csv::fuzz
