#include "coordinator/admin/admin_request.h"

#include <doctest/doctest.h>

#include <string>

using namespace csv;
using namespace csv::admin;

TEST_CASE("admin request: a command and its volume are read, what nobody knows is ignored") {
  auto request =
      parse_admin_request(R"({"command": "volume_start", "volume": "v", "colour": [1, {}]})");
  REQUIRE(request);
  CHECK(request->command == "volume_start");
  CHECK(request->volume == "v");
  CHECK(parse_admin_request(R"({"command": "status"})")->volume.empty());
}

TEST_CASE("admin request: what is none is refused with what was expected") {
  struct Case {
    std::string text, said;
  };
  const Case cases[] = {
      {"", "a JSON object"},
      {"[]", "a JSON object"},
      {"{\"command\": \"stat", "a JSON object"},
      {"{\"command\": \"\xff\"}", "a JSON object"},
      {std::string(60'000, '['), "a JSON object"},
      {"{}", "needs a \"command\""},
      {R"({"command": ""})", "needs a \"command\""},
      {R"({"command": ["status"]})", "\"command\" must be a text"},
      {R"({"command": "volume_stop", "volume": 7})", "\"volume\" must be a text"},
  };
  for (const auto& one : cases) {
    CAPTURE(one.text.substr(0, 100));
    auto request = parse_admin_request(one.text);
    REQUIRE_FALSE(request);
    CHECK(request.error() == Errc::refused);
    CHECK(request.error().message().find(one.said) != std::string::npos);
  }
}
