// The admin socket's texts: what csvctl asks csvd (first byte 'q'), and csvd's status as csvctl
// reads it (any other first byte).
#include "coordinator/admin/admin_request.h"
#include "coordinator/admin/status.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  bool asked = input.take() == 'q';
  std::string text{text_of(input.rest())};
  if (!asked) {
    (void)admin::status_text(text, admin::Paint{});
    return;
  }
  auto request = admin::parse_admin_request(text);
  CSV_CHECK(request ? !request->command.empty() : !request.error().message().empty());
}

std::vector<Seed> seeds() {
  const std::string status =
      R"({"cluster":7,"incarnation":"1","node":{"address":"192.0.2.1:7400","id":1,"name":"n1"},)"
      R"("peers":[{"address":"192.0.2.2:7400","id":2,"incarnation":"2","name":"n2","present":true,)"
      R"("silent_s":null}],"up_s":5,"version":1,"volumes":[{"name":"v","lun":"file:/x",)"
      R"("coordinator_node":1,"coordinator_endpoint":"192.0.2.1:7400","coordinator_epoch":3,)"
      R"("coordinator_key":"1","here":{"state":"serving","reason":""},"mounts":[],"service":null}]})";
  return {
      {"status-request", R"(q{"command":"status"})"},
      {"start", R"(q{"command":"volume_start","volume":"v"})"},
      {"no-command", R"(q{"volume":"v"})"},
      {"wrong-types", R"(q{"command":["status"],"volume":1})"},
      {"twice", R"(q{"command":"a","command":"b"})"},
      {"not-utf8", "q{\"command\":\"\xff\xfe\"}"},
      {"nul", std::string("q{\"command\":\"a\\u0000b\"}")},
      {"surrogate", R"(q{"command":"\ud800"})"},
      {"array", "q[]"},
      {"number", "q1e999"},
      {"deep", "q" + std::string(2000, '[')},
      {"deep-objects",
       [] {
         std::string text = "q";
         for (int i = 0; i < 500; ++i) text += R"({"command":)";
         return text;
       }()},
      {"cut", R"(q{"command":"stat)"},
      {"empty", "q"},
      {"status", "s" + status},
      {"status-empty", "s{}"},
      {"status-types", R"(s{"cluster":[],"node":{"id":{}},"peers":{},"volumes":3})"},
  };
}

}  // namespace csv::fuzz
