#include "iscsi/lun_url.h"

#include <doctest/doctest.h>

#include <string>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::iscsi;

TEST_CASE("a LUN's URL names what it says") {
  auto plain = parse_lun_url("iscsi://10.77.0.1:3261/iqn.2026-01.org.csvfs.lab:san/1");
  REQUIRE(plain);
  auto& address = std::get<IscsiAddress>(*plain);
  CHECK(address.portals == std::vector<std::string>{"10.77.0.1:3261"});
  CHECK(address.target == "iqn.2026-01.org.csvfs.lab:san");
  CHECK(address.lun == 1);
  CHECK(address.chap_user.empty());

  auto full = parse_lun_url("iscsi://me%s%cr@t@10.0.0.1,[fe80::1]:9,[::1]/iqn.a:b/c/16383");
  REQUIRE(full);
  auto& many = std::get<IscsiAddress>(*full);
  CHECK(many.portals == std::vector<std::string>{"10.0.0.1:3260", "[fe80::1]:9", "[::1]:3260"});
  CHECK(many.target == "iqn.a:b/c");
  CHECK(many.lun == 16383);
  CHECK(many.chap_user == "me");
  CHECK(many.chap_secret == "s%cr@t");

  CHECK(std::get<DevicePath>(*parse_lun_url("/dev/mapper/lun1")).path == "/dev/mapper/lun1");
  CHECK(std::get<ImagePath>(*parse_lun_url("file:/tmp/a b")).path == "/tmp/a b");
  CHECK(std::get<ImagePath>(*parse_lun_url("file:relative")).path == "relative");
}

TEST_CASE("a URL with a control character is refused: a NUL would cut the name") {
  using namespace std::string_view_literals;
  for (auto url : {"file:/a\0b"sv, "/dev/sda\n"sv, "iscsi://10.0.0.1/iqn.a\0b/1"sv}) {
    auto address = parse_lun_url(url);
    REQUIRE_FALSE(address);
    CHECK(address.error() == Errc::refused);
  }
}

TEST_CASE("a URL that names nothing is refused with a sentence about the part that is wrong") {
  struct Row {
    const char* url;
    const char* says;
  };
  for (auto& row : {Row{"", "expected iscsi://"},
                    Row{"/tmp/disk", "expected iscsi://"},
                    Row{"/dev/", "expected"},
                    Row{"http://10.0.0.1/iqn.a/1", "expected iscsi://"},
                    Row{"file:", "a path is missing"},
                    Row{"iscsi://10.0.0.1", "the target's name is missing"},
                    Row{"iscsi://10.0.0.1/iqn.a", "the number of the LUN is missing"},
                    Row{"iscsi://10.0.0.1/iqn.a/", "the number of the LUN is missing"},
                    Row{"iscsi://10.0.0.1/iqn.a/x", "is no number of a LUN"},
                    Row{"iscsi://10.0.0.1/iqn.a/-1", "is no number of a LUN"},
                    Row{"iscsi://10.0.0.1/iqn.a/1x", "is no number of a LUN"},
                    Row{"iscsi://10.0.0.1/iqn.a/16384", "is no number of a LUN"},
                    Row{"iscsi://10.0.0.1/iqn.a/99999999999999999999", "is no number of a LUN"},
                    Row{"iscsi://10.0.0.1/san/1", "is no iSCSI name"},
                    Row{"iscsi://san.example/iqn.a/1", "host names are not looked up"},
                    Row{"iscsi://10.0.0.256/iqn.a/1", "is no numeric address"},
                    Row{"iscsi://10.0.0.1:/iqn.a/1", "a port is missing"},
                    Row{"iscsi://10.0.0.1:0/iqn.a/1", "is no port"},
                    Row{"iscsi://10.0.0.1:65536/iqn.a/1", "is no port"},
                    Row{"iscsi://10.0.0.1:3260x/iqn.a/1", "is no port"},
                    Row{"iscsi://10.0.0.1,/iqn.a/1", "is no numeric address"},
                    Row{"iscsi://[::1/iqn.a/1", "']' is missing"},
                    Row{"iscsi://[10.0.0.1]/iqn.a/1", "is no numeric IPv6 address"},
                    Row{"iscsi://[::1]3260/iqn.a/1", "expected after ']'"},
                    Row{"iscsi://me@10.0.0.1/iqn.a/1", "USER%SECRET"}}) {
    CAPTURE(row.url);
    auto found = parse_lun_url(row.url);
    REQUIRE(!found);
    CHECK(found.error() == Errc::refused);
    CAPTURE(found.error().message());
    CHECK(found.error().message().find(row.says) != std::string::npos);
  }
}

TEST_CASE("a refusal does not repeat the secret") {
  for (auto* url :
       {"iscsi://me%topsecret@10.0.0.300/iqn.a/1", "iscsi://me%topsecret@10.0.0.1/iqn.a/x",
        "iscsi://%topsecret@10.0.0.1/iqn.a/1", "iscsi://me%topsecret@10.0.0.1"}) {
    CAPTURE(url);
    auto found = parse_lun_url(url);
    REQUIRE(!found);
    CHECK(found.error().message().find("topsecret") == std::string::npos);
  }
}

TEST_CASE("any characters are a URL or a refusal") {
  Random random{5};
  const std::string alphabet = "iscsi:/@%,[].0123456789abcdefqn-/dev file";
  for (int i = 0; i < 20000; ++i) {
    std::string url = random.chance(1, 2) ? "iscsi://" : "";
    for (auto left = random.below(40); left > 0; --left)
      url += alphabet[random.below(alphabet.size())];
    auto found = parse_lun_url(url);
    if (!found) CHECK(found.error() == Errc::refused);
  }
}
