// The admin socket's texts: what csvctl asks csvd (first byte 'q'), and csvd's status as csvctl
// reads it ('c': the cluster's part; any other first byte).
#include "coordinator/admin/admin_request.h"
#include "coordinator/admin/cluster_requests.h"
#include "coordinator/admin/cluster_text.h"
#include "coordinator/admin/status.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto kind = input.take();
  bool asked = kind == 'q';
  std::string text{text_of(input.rest())};
  if (kind == 'c') {
    (void)admin::cluster_text(text, admin::Paint{});
    return;
  }
  if (!asked) {
    (void)admin::status_text(text, admin::Paint{});
    return;
  }
  auto request = admin::parse_admin_request(text);
  CSV_CHECK(request ? !request->command.empty() : !request.error().message().empty());
  if (!request) return;
  auto change = admin::change_for(*request);
  CSV_CHECK(change || !change.error().message().empty());
  if (!change) return;
  cluster::Configuration next;
  next.cluster = 7;
  next.name = "c";
  next.nodes[NodeId{1}] = {"n1", "192.0.2.1:7400"};
  next.nodes[NodeId{2}] = {"n2", "192.0.2.2:7400"};
  next.volumes["v"].coordinator = NodeId{1};
  // Whatever it makes is then held against validate(), which may take anything.
  if ((*change)(next)) (void)cluster::validate(next);
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
      {"vote", R"(q{"command":"node_vote","node":"n1","value":"0"})"},
      {"evict", R"(q{"command":"node_evict","node":"1"})"},
      {"add",
       R"(q{"command":"node_add","node":"4","value":"name=n4 address=192.0.2.4:1 links=::1"})"},
      {"move", R"(q{"command":"volume_move","volume":"v","node":"n2"})"},
      {"witness", R"(q{"command":"witness","value":"disk:/dev/x"})"},
      {"policy", R"(q{"command":"policy","value":"hold=5"})"},
      {"heartbeat", R"(q{"command":"heartbeat","value":"delay=60 threshold=12"})"},
      {"import", R"(q{"command":"config_import","value":"[cluster]\nid = 7\nname = \"c\"\n)"
                 R"([[node]]\nid = 1\nname = \"n\"\naddress = \"192.0.2.1:1\"\n"})"},
      {"cluster", R"(c{"node":1,"state":"formed","reason":"","since_s":3,"lease_ms":2,"name":"d",)"
                  R"("tag":"0.2.14","attention":[{"subject":"quorum","text":"x"}],"votes":1,)"
                  R"("votes_needed":1,"votes_present":1,"votes_change":false,"nodes":[{"id":1,)"
                  R"("name":"n1","address":"a:1","drained":false,"fenced":false,"off":false,)"
                  R"("vote":1,"counts":1,"why":"",)"
                  R"("reached":true,"member":true}],"witness":{"kind":"disk","place":"w",)"
                  R"("only":false,"counts":0,"answers":null,"held_ms":0},"dynamic_quorum":true,)"
                  R"("heartbeat":{"delay_ms":300,"threshold":5},)"
                  R"("volumes":[{"name":"v","coordinator":2,"preferred":0}]})"},
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
