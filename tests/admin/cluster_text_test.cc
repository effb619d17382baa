// What people are shown of a cluster: made from csvd's answers, without csvd.
#include "coordinator/admin/cluster_text.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "coordinator/admin/prepare_command.h"

using namespace csv;
using namespace csv::admin;
using Json = nlohmann::ordered_json;

namespace {

Json healthy() {
  return Json::parse(R"({"node":1,"state":"formed","reason":"","since_s":300,"steward":true,
    "lease_ms":2700,"name":"demo","tag":"0.130.14","attention":[],"votes":3,"votes_needed":2,
    "votes_present":3,"votes_change":false,
    "nodes":[
      {"id":1,"name":"n1","address":"a:1","drained":false,"fenced":false,"off":false,"vote":1,"counts":1,"why":"",
       "reached":true,"member":true},
      {"id":2,"name":"n2","address":"a:2","drained":false,"fenced":false,"off":false,"vote":1,"counts":1,"why":"",
       "reached":true,"member":true},
      {"id":3,"name":"n3","address":"a:3","drained":false,"fenced":false,"off":false,"vote":1,"counts":1,"why":"",
       "reached":true,"member":true}],
    "witness":{"kind":"none","place":"","only":false,"counts":0,"answers":false,"held_ms":0},
    "dynamic_quorum":true,"hold_s":60,
    "heartbeat":{"delay_ms":300,"threshold":5,"isolation_addresses":[]},
    "volumes":[{"name":"v","coordinator":2,"served":true,"preferred":0}]})");
}

std::string told(const Json& voting, bool colours = false) {
  auto text = cluster_text(voting.dump(), Paint{colours});
  REQUIRE_MESSAGE(text, text.error().message());
  return *text;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Config config_of(int own) {
  Config out;
  out.cluster = 7;
  for (std::uint8_t i = 1; i <= 3; ++i) {
    auto name = "n" + std::to_string(i), at = "192.0.2." + std::to_string(i) + ":7400";
    if (i != own) {
      out.peers.push_back({NodeId{i}, name, at, {}});
      continue;
    }
    out.node = NodeId{i};
    out.node_name = name;
    out.listen = at;
  }
  return out;
}

}  // namespace

TEST_CASE("cluster text: in health, at one look") {
  auto text = told(healthy());
  CHECK(has(text, "Cluster demo as n1 sees it: quorate (3 of 3 votes), for 5 min"));
  CHECK(has(text, "All is well."));
  CHECK(has(text, "0.130.14  formed by n2, 13 changes since"));
  CHECK(has(text, "member, this node"));
  CHECK(has(text, "v       n2           any"));
  CHECK(has(text, "      0  counts\n   2  n2 "));
  CHECK(has(text, "      1  counts\n   3  n3 "));
  CHECK(!has(text, "\033"));
  CHECK(has(told(healthy(), true), "\033[32mquorate\033[0m"));
}

TEST_CASE("cluster text: why a vote does not count, who is away, and what a tag says") {
  auto voting = healthy();
  voting["tag"] = "1.321.1";
  voting["nodes"][2].update(Json{{"member", false},
                                 {"reached", false},
                                 {"counts", 0},
                                 {"why", "it was away when votes were counted last"}});
  voting["nodes"][1].update(Json{{"member", false},
                                 {"drained", true},
                                 {"counts", 0},
                                 {"why", "it gave way so that there is no tie"}});
  auto text = told(voting);
  CHECK(has(text, "Needs attention (2):"));
  CHECK(has(text, "n3: is not reached: neither corosync nor csvd"));
  CHECK(has(text, "n2: its csvd does not take part"));
  CHECK(has(text, "none: it gave way so that there is no tie"));
  CHECK(!has(text, "fenced"));
  voting["nodes"][1]["fenced"] = true;
  CHECK(has(told(voting), "being fenced"));
  voting["nodes"][1]["off"] = true;
  CHECK(!has(told(voting), "being fenced"));
  CHECK(has(text, "formed by n1, 0 changes since; a quorum was forced once"));
}

TEST_CASE("cluster text: without a quorum it says so first, and why") {
  auto voting = healthy();
  voting.update(Json{{"state", "no quorum"},
                     {"reason", "the nodes 1 are no majority"},
                     {"lease_ms", 0},
                     {"votes_present", 1}});
  voting["attention"] = {{{"subject", "quorum"}, {"text", "1 of 3 votes are here"}}};
  auto text = told(voting);
  CHECK(has(text, "sees it: no quorum (the nodes 1 are no majority), for 5 min"));
  CHECK(has(text, "! quorum: 1 of 3 votes are here"));
  CHECK(has(text, "none: this node coordinates nothing"));
  // With nothing to advise there is the reason.
  voting["attention"] = Json::array();
  voting["state"] = "lost";
  voting["reason"] = "corosync does not run";
  for (auto& node : voting["nodes"]) node["member"] = node["reached"] = false;
  text = told(voting);
  CHECK(has(text, "Needs attention (1):"));
  CHECK(has(text, "! quorum: cut off: corosync does not run\n"));
  CHECK(has(text, "cut off, this node"));
  CHECK(has(text, "not known"));
}

TEST_CASE("cluster text: a node that was taken out is told so") {
  auto voting = healthy();
  voting["node"] = 4;
  auto text = told(voting);
  CHECK(has(text, "! node 4: this node belongs to the cluster no more"));
}

TEST_CASE("cluster text: witnesses in words") {
  auto voting = healthy();
  voting["witness"] = {{"kind", "disk"}, {"place", "/dev/w"}, {"only", false},
                       {"counts", 1},    {"answers", true},   {"held_ms", 1500}};
  CHECK(has(told(voting), "disk /dev/w: its vote counts, this side holds it"));
  voting["witness"].update(Json{{"counts", 0}, {"answers", false}, {"held_ms", 0}});
  CHECK(has(told(voting), "its vote does not count just now"));
  CHECK(has(told(voting), "not held by this side, no answer"));
  voting["witness"].update(Json{{"only", true}, {"answers", nullptr}});
  CHECK(has(told(voting), "it alone decides"));
}

TEST_CASE("cluster text: no cluster yet, and what is no cluster") {
  auto voting = healthy();
  voting.update(Json{{"name", ""},
                     {"tag", ""},
                     {"state", "no quorum"},
                     {"reason", "csvctl cluster create makes one"},
                     {"nodes", Json::array()}});
  auto text = told(voting);
  CHECK(has(text, "No cluster as node 1 sees it"));
  CHECK(has(text, "csvctl cluster create makes one"));
  for (const auto* wrong : {"", "{}", "[]", "{\"nodes\":3}"})
    CHECK(cluster_text(wrong, Paint{}).error() == Errc::corrupt);
  // A field of another kind, anywhere.
  auto whole = healthy();
  for (const auto& [name, value] : whole.items()) {
    auto damaged = whole;
    damaged[name] = Json::array({Json::object()});
    (void)cluster_text(damaged.dump(), Paint{});
    damaged.erase(name);
    (void)cluster_text(damaged.dump(), Paint{});
  }
}

TEST_CASE("prepare: corosync.conf comes out the same on every node") {
  auto one = cluster::render(corosync_of(config_of(1)));
  REQUIRE(one);
  CHECK(*one == *cluster::render(corosync_of(config_of(3))));
  CHECK(has(*one, "ring0_addr: 192.0.2.2\n"));
  auto config = config_of(1);
  config.links = {"10.0.0.1", "10.1.0.1"};
  CHECK(has(cluster::render(corosync_of(config)).error().message(), "as many links"));
  for (auto& peer : config.peers)
    peer.links = {"10.0.0." + std::to_string(raw(peer.id)),
                  "10.1.0." + std::to_string(raw(peer.id))};
  CHECK(has(*cluster::render(corosync_of(config)), "ring1_addr: 10.1.0.3\n"));
  config = config_of(1);
  config.listen = "[2001:db8::1]:7400";
  CHECK(has(*cluster::render(corosync_of(config)), "ring0_addr: 2001:db8::1\n"));
}

TEST_CASE("prepare: who is none of the cluster's any more is left out") {
  auto conf = corosync_of(config_of(1));
  cluster::Configuration decided;
  decided.heartbeat.delay_ms = 60;
  decided.nodes[NodeId{1}] = {"node1", "192.0.2.1:7400"};
  decided.nodes[NodeId{2}] = {"node2", "192.0.2.2:7400"};
  auto seen_by_3 = corosync_of(config_of(3));
  CHECK(apply(decided, NodeId{3}, seen_by_3).empty());
  CHECK(seen_by_3.nodes.size() == 3);
  auto gone = apply(decided, NodeId{1}, conf);
  REQUIRE(gone.size() == 1);
  CHECK(conf.nodes.size() == 2);
  CHECK(conf.heartbeat.delay == 60ms);
  CHECK(!has(*cluster::render(conf), "192.0.2.3"));
  CHECK(written_by_csvfs(*cluster::render(conf)));
  // One that csvd.toml does not have, with the links that the cluster knows.
  decided.nodes[NodeId{7}] = {"node7", "192.0.2.7:7400"};
  CHECK(apply(decided, NodeId{1}, conf).empty());
  REQUIRE(conf.nodes.size() == 3);
  CHECK(conf.nodes.back().addresses == std::vector<std::string>{"192.0.2.7"});
  decided.nodes[NodeId{7}].links = {"198.51.100.7"};
  CHECK(apply(decided, NodeId{1}, conf).empty());
  CHECK(conf.nodes.back().addresses == std::vector<std::string>{"198.51.100.7"});
  CHECK(!written_by_csvfs("totem {\n}\n"));
}

TEST_CASE("prepare: the version grows when something else does, and only then") {
  auto conf = corosync_of(config_of(1));
  auto first = render_after(conf, "");
  REQUIRE(first);
  CHECK(has(*first, "config_version: 1\n"));
  CHECK(*render_after(conf, *first) == *first);
  conf.nodes.pop_back();
  auto second = render_after(conf, *first);
  CHECK(has(*second, "config_version: 2\n"));
  CHECK(*render_after(conf, *second) == *second);
  CHECK(has(*render_after(conf, "totem {\n  config_version: 41\n}\n"), "config_version: 42\n"));
  CHECK(has(*render_after(conf, "somebody's, without one"), "config_version: 1\n"));
}

TEST_CASE("cluster text: a volume that its coordinator does not serve needs attention") {
  auto voting = healthy();
  voting["volumes"][0]["served"] = false;
  auto text = told(voting);
  CHECK(has(text, "! v: n2 is to coordinate it, and does not serve it yet"));
  CHECK(has(text, "v       n2, not yet"));
  voting["volumes"][0].erase("served");  // an older csvd
  CHECK(has(told(voting), "All is well."));
}
