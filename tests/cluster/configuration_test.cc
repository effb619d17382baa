#include "coordinator/cluster/configuration.h"

#include <doctest/doctest.h>

#include "coordinator/cluster/configuration_text.h"
#include "coordinator/protocol/group.pb.h"

using namespace csv;
using namespace csv::cluster;

namespace {

NodeId id(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }

/// With something in every field.
Configuration full() {
  Configuration out;
  out.tag = {2, 17, 5};
  out.cluster = 4711;
  out.name = "demo";
  for (int i = 1; i <= 3; ++i) {
    out.nodes[id(i)] = {"n" + std::to_string(i), "192.0.2." + std::to_string(i) + ":7400"};
    out.ballot.now.nodes[id(i)] = i < 3 ? 1 : 0;
  }
  out.nodes[id(2)].state = NodeState::drained;
  out.nodes[id(3)].votes = false;
  out.nodes[id(3)].fenced = true;
  out.volumes["v1"] = {id(1), id(2), 9};
  out.volumes["v2"] = {NodeId{}, {}, 3};
  out.witness = {WitnessKind::disk, "/dev/disk/by-id/w \"quoted\" \\", true};
  out.heartbeat = {90, 12, {"192.0.2.254"}};
  out.policies = {false, 30};
  out.ballot.now.witness = 4;
  out.ballot.before = out.ballot.now;
  out.ballot.before->witness = 0;
  return out;
}

std::string refusal(std::string_view text) {
  auto read = from_toml(text, "f");
  REQUIRE(!read);
  CHECK(read.error() == Errc::refused);
  return read.error().message();
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string instead(std::string text, const std::string& what, const std::string& by) {
  auto at = text.find(what);
  REQUIRE(at != std::string::npos);
  return text.replace(at, what.size(), by);
}

}  // namespace

TEST_CASE("configuration: bytes and back") {
  auto decoded = decode(encode(full()));
  REQUIRE(decoded);
  CHECK(*decoded == full());
}

TEST_CASE("configuration: damage is refused, or makes another sane configuration; it never harms") {
  auto bytes = encode(full());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    auto cut = decode(std::string_view{bytes}.substr(0, i));
    if (cut) CHECK(validate(*cut));
    for (int flip : {0x01, 0x80, 0xff}) {
      auto damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      auto read = decode(damaged);
      // The checksum around it finds the change; here what is taken has to be sane.
      if (read) CHECK(validate(*read));
      if (read) CHECK(decode(encode(*read)));
    }
  }
  CHECK(!decode(""));
  CHECK(!decode(std::string(1000, '\xff')));
}

TEST_CASE("configuration: of a newer format is refused as such, not called damaged") {
  wire::Configuration newer;
  REQUIRE(newer.ParseFromString(encode(full())));
  newer.set_format(2);
  auto read = decode(newer.SerializeAsString());
  REQUIRE(!read);
  CHECK(read.error() == Errc::refused);
  CHECK(has(read.error().message(), "newer"));
  newer.set_format(0);
  CHECK(decode(newer.SerializeAsString()).error() == Errc::corrupt);
}

TEST_CASE("configuration: what makes no sense is found in what can be read") {
  auto damaged = [](auto change) {
    wire::Configuration wrong;
    REQUIRE(wrong.ParseFromString(encode(full())));
    change(wrong);
    auto read = decode(wrong.SerializeAsString());
    return !read && read.error() == Errc::corrupt;
  };
  CHECK(damaged([](auto& w) { w.set_cluster(65536); }));
  CHECK(damaged([](auto& w) { w.set_name("a b"); }));
  CHECK(damaged([](auto& w) { w.mutable_nodes(0)->set_id(64); }));
  CHECK(damaged([](auto& w) { w.mutable_nodes(0)->set_id(2); }));
  CHECK(damaged([](auto& w) { w.mutable_nodes(0)->set_name("n2"); }));
  CHECK(damaged([](auto& w) { w.clear_nodes(); }));
  CHECK(damaged([](auto& w) { w.mutable_volumes(0)->set_coordinator(200); }));
  CHECK(damaged([](auto& w) { w.mutable_volumes(0)->set_name("v2"); }));
  CHECK(damaged([](auto& w) { w.mutable_witness()->set_kind(3); }));
  CHECK(damaged([](auto& w) { w.mutable_votes()->set_votes(0, 2); }));
  CHECK(damaged([](auto& w) { w.mutable_votes()->set_node(0, 2); }));
  CHECK(damaged([](auto& w) { w.mutable_votes()->add_node(5); }));
  CHECK(damaged([](auto& w) { w.mutable_votes()->set_witness(100); }));
  CHECK(damaged([](auto& w) { w.mutable_heartbeat()->set_delay_ms(0); }));
}

TEST_CASE("configuration: who is taken out leaves what he coordinated to nobody") {
  auto configuration = full();
  take_out(configuration, id(1));
  CHECK(configuration.nodes.count(id(1)) == 0);
  CHECK(configuration.volumes["v1"].coordinator == NodeId{});
  CHECK(configuration.volumes["v1"].turn == 10);
  CHECK(configuration.volumes["v1"].preferred == id(2));
  take_out(configuration, id(2));
  CHECK(!configuration.volumes["v1"].preferred);
}

TEST_CASE("configuration as text: what people decided comes back, and nothing else") {
  auto text = to_toml(full());
  auto read = from_toml(text, "f");
  REQUIRE_MESSAGE(read, read.error().message());
  CHECK(read->tag == ClusterTag{});
  CHECK(read->ballot == Ballot{});
  CHECK(read->volumes["v1"].coordinator == NodeId{});
  CHECK(replaced(full(), *read));
  CHECK(*replaced(full(), *read) == full());
  CHECK(differences(full(), *replaced(full(), *read)).empty());
  CHECK(to_toml(*read) == text);
}

TEST_CASE("configuration as text: mistakes are named with their line and column") {
  auto text = to_toml(full());
  CHECK(has(refusal(instead(text, "hold_s = 30", "hold_s = -1")), "f:7:10: [cluster] hold_s: "));
  CHECK(has(refusal(instead(text, "id = 4711", "id = 0")), "f:4:6: [cluster] id"));
  CHECK(has(refusal(instead(text, "id = 4711\n", "")), "missing 'id'"));
  CHECK(has(refusal(instead(text, "[heartbeat]", "[heartbeats]")), "unknown key 'heartbeats'"));
  CHECK(has(refusal(instead(text, "threshold", "treshold")), "unknown key 'treshold'"));
  CHECK(has(refusal(instead(text, "kind = \"disk\"", "kind = \"quorum\"")), "[witness] kind"));
  auto share = instead(text, "kind = \"disk\"", "kind = \"share\"");
  CHECK(has(refusal(instead(share, "/dev", "dev")), "absolute path"));
  CHECK(has(refusal(instead(text, "kind = \"disk\"", "kind = \"none\"")), "there is no witness"));
  CHECK(has(refusal(instead(text, "place = ", "# ")), "has one"));
  CHECK(has(refusal(instead(text, "id = 2", "id = 1")), "is another node's, too"));
  CHECK(has(refusal(instead(text, "\"n2\"", "\"n1\"")), "is another node's, too"));
  CHECK(has(refusal(instead(text, "192.0.2.2:", "192.0.2.1:")), "is another node's, too"));
  CHECK(has(refusal(instead(text, "192.0.2.2:", "node2:")), "numeric address"));
  CHECK(has(refusal(instead(text, "preferred = \"n2\"", "preferred = \"n9\"")), "no [[node]]"));
  CHECK(has(refusal(instead(text, "\"v2\"", "\"v1\"")), "is there already"));
  CHECK(has(refusal(instead(text, "\"192.0.2.254\"", "\"gateway\"")), "isolation_addresses"));
  CHECK(has(refusal("[cluster]\nid = 1\nname = \"c\"\n"), "missing [[node]]"));
  CHECK(has(refusal("[cluster\n"), "f:1:"));
  CHECK(has(refusal(""), "missing table [cluster]"));
  CHECK(has(refusal("[cluster]\nid = 1\nname = \"c\"\n[[node]]\nid = 1\nname = \"n\"\n"
                    "address = \"192.0.2.1:1\"\nvote = 0\n"),
            "f:8:8: [[node]] vote: one node at least has to vote"));
}

TEST_CASE("configuration as text: damaged anywhere it is refused or sane") {
  auto text = to_toml(full());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (auto cut = from_toml(std::string_view{text}.substr(0, i), "f")) CHECK(validate(*cut));
    auto damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x11);
    if (auto read = from_toml(damaged, "f")) CHECK(validate(*read));
  }
}

TEST_CASE("configuration as text: another cluster's is refused; nodes that are missing go") {
  auto wanted = *from_toml(to_toml(full()), "f");
  wanted.cluster = 1;
  CHECK(replaced(full(), wanted).error() == Errc::refused);
  wanted.cluster = 4711;
  wanted.nodes.erase(id(1));
  wanted.nodes[id(4)] = {"n4", "192.0.2.4:7400"};
  wanted.nodes[id(2)].state = NodeState::member;
  wanted.volumes.erase("v2");
  wanted.volumes["v3"];
  wanted.witness.place = "/dev/other";
  CHECK(has(replaced(full(), wanted).error().message(), "witness none"));
  wanted.witness = {};
  wanted.policies.dynamic_quorum = true;
  auto then = replaced(full(), wanted);
  REQUIRE(then);
  CHECK(then->tag == full().tag);
  CHECK(then->ballot == full().ballot);
  CHECK(then->volumes["v1"].coordinator == NodeId{});
  CHECK(then->volumes["v1"].turn == 10);
  CHECK(differences(full(), *then) ==
        std::vector<std::string>{
            "dynamic quorum: off becomes on",
            "witness: disk:/dev/disk/by-id/w \"quoted\" \\ (decides alone) becomes none",
            "node 1 (n1) is taken out of the cluster", "node 2 (n2) takes volumes again",
            "node 4 (n4, 192.0.2.4:7400) is added",
            "volume v2 is forgotten, until a node says that it has it",
            "volume v3 is added; preferred: any node"});
}
