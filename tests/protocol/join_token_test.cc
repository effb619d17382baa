#include "coordinator/protocol/join_token.h"

#include <doctest/doctest.h>

using namespace csv;
using namespace csv::protocol;

namespace {

JoinToken token() {
  JoinToken out;
  out.cluster = 4711;
  out.until = WallTime{1'790'000'000'000'000'000};
  for (std::size_t i = 0; i < out.secret.size(); ++i) {
    out.secret[i] = static_cast<std::byte>(i * 7);
    out.authority[i] = static_cast<std::byte>(255 - i);
  }
  out.endpoint = "192.0.2.1:40123";
  return out;
}

}  // namespace

TEST_CASE("join token: a word, and back") {
  auto text = to_text(token());
  CHECK(text.starts_with("csvfs-join-"));
  CHECK(text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos);
  auto read = parse_join_token(text);
  REQUIRE(read);
  CHECK(*read == token());
  auto six = token();
  six.endpoint = "[2001:db8::1]:7401";
  CHECK(*parse_join_token(to_text(six)) == six);
}

TEST_CASE("join token: damaged anywhere, cut or grown it is none") {
  auto text = to_text(token());
  for (std::size_t i = 0; i < text.size(); ++i) {
    CHECK(parse_join_token(text.substr(0, i)).error() == Errc::refused);
    for (char other : {'0', 'f', 'Z', '\0', ' '}) {
      auto damaged = text;
      if (damaged[i] == other) continue;
      damaged[i] = other;
      CHECK(!parse_join_token(damaged));
    }
  }
  CHECK(!parse_join_token(text + "00"));
  CHECK(!parse_join_token(text + "\n"));
  CHECK(!parse_join_token(std::string(1 << 20, 'a')));
}

TEST_CASE("join token: what is whole and makes no sense is refused, too") {
  auto bad = token();
  SUBCASE("no cluster") { bad.cluster = 0; }
  SUBCASE("no address") { bad.endpoint = "somewhere:1"; }
  SUBCASE("no port") { bad.endpoint = "192.0.2.1"; }
  SUBCASE("nowhere") { bad.endpoint.clear(); }
  SUBCASE("before there was time") { bad.until = WallTime{-5'000'000'000}; }
  CHECK(parse_join_token(to_text(bad)).error() == Errc::refused);
}

TEST_CASE("join token: digits") {
  CHECK(to_hex(std::string_view{"\x00\xff\x10", 3}) == "00ff10");
  CHECK(*from_hex("00ff10") == std::string_view{"\x00\xff\x10", 3});
  CHECK(from_hex("")->empty());
  for (const auto* wrong : {"0", "0g", "FF", " 0", "0x"}) CHECK(!from_hex(wrong));
}
