#include "coordinator/admin/cluster_requests.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "coordinator/cluster/configuration_text.h"
#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::admin;
using cluster::Configuration;
using cluster::NodeState;
using cluster::WitnessKind;
using Json = nlohmann::json;

namespace {

NodeId id(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }

Configuration three() {
  Configuration out;
  out.tag = {0, 2, 4};
  out.cluster = 7;
  out.name = "demo";
  for (int i = 1; i <= 3; ++i) {
    out.nodes[id(i)] = {"n" + std::to_string(i), "192.0.2." + std::to_string(i) + ":7400"};
    out.ballot.now.nodes[id(i)] = 1;
  }
  out.volumes["v"] = {id(1), {}, 5};
  return out;
}

AdminRequest request(std::string command, std::string node = {}, std::string value = {}) {
  AdminRequest out;
  out.command = std::move(command);
  out.node = std::move(node);
  out.value = std::move(value);
  return out;
}

AdminRequest move(std::string volume, std::string node) {
  return {.command = "volume_move", .volume = std::move(volume), .node = std::move(node)};
}

/// What the command makes of `from`. What is right makes a configuration that a cluster can run by.
Configuration made(const AdminRequest& what, const Configuration& from = three()) {
  auto change = change_for(what);
  REQUIRE_MESSAGE(change, change.error().message());
  auto next = from;
  auto result = (*change)(next);
  REQUIRE_MESSAGE(result, result.error().message());
  CHECK(cluster::validate(next));
  // It is asked anew when another change was first, and must be content with what is done.
  auto again = next;
  REQUIRE((*change)(again));
  CHECK(again == next);
  return next;
}

/// Why not: of the words, or of the change, which then has changed nothing.
std::string refusal(const AdminRequest& what, const Configuration& from = three()) {
  auto change = change_for(what);
  if (!change) {
    CHECK(change.error() == Errc::refused);
    return change.error().message();
  }
  auto next = from;
  auto result = (*change)(next);
  REQUIRE(!result);
  CHECK(result.error() == Errc::refused);
  CHECK(next == from);
  return result.error().message();
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("cluster requests: a volume is not moved to a node that says it cannot take it") {
  auto now = three();
  now.volumes["stopped"].stopped = true;
  std::vector<NodeId> asked;
  auto refusal_of = [&](const AdminRequest& what, int unable) {
    asked.clear();
    auto may = may_take(what, now, [&](NodeId node) {
      asked.push_back(node);
      return node == id(unable);
    });
    if (may) return std::string{};
    CHECK(may.error() == Errc::refused);
    return may.error().message();
  };
  AdminRequest start{.command = "volume_start", .volume = "v", .node = "2"};
  CHECK(has(refusal_of(move("v", "n2"), 2), "n2 cannot coordinate v just now"));
  CHECK(has(refusal_of(start, 2), "n2 cannot coordinate v just now"));
  CHECK(refusal_of(move("v", "n2"), 3).empty());
  CHECK(asked == std::vector{id(2)});
  CHECK(refusal_of(start, 3).empty());
  // It is there already; it comes back where it is best; nobody is named; the change says that.
  CHECK(refusal_of(move("v", "n1"), 1).empty());
  start.volume = "stopped";
  CHECK(refusal_of(start, 2).empty());
  CHECK(refusal_of(move("v", ""), 2).empty());
  CHECK(refusal_of(move("none", "n2"), 2).empty());
  CHECK(refusal_of(move("v", "n9"), 2).empty());
  AdminRequest drain = request("node_drain", "n2");
  drain.volume = "v";
  CHECK(refusal_of(drain, 2).empty());
}

TEST_CASE("cluster requests: votes") {
  CHECK(made(request("node_vote", "n2", "0")).nodes[id(2)].votes == false);
  CHECK(made(request("node_vote", "2", "1")).nodes[id(2)].votes == true);
  CHECK(has(refusal(request("node_vote", "n2", "2")), "0 or 1, not '2'"));
  CHECK(has(refusal(request("node_vote", "n2")), "0 or 1"));
  CHECK(refusal(request("node_vote", "n9", "0")) ==
        "the cluster has no node 'n9'; its nodes: n1, n2, n3");
  CHECK(has(refusal(request("node_vote", "", "0")), "no node ''"));
  CHECK(has(refusal(request("node_vote", "02", "0")), "no node '02'"));
  // That nobody would vote any more, validate() refuses before it is proposed.
  auto none = three();
  none.nodes[id(1)].votes = none.nodes[id(2)].votes = false;
  auto change = change_for(request("node_vote", "3", "0"));
  REQUIRE(change);
  REQUIRE((*change)(none));
  CHECK(has(cluster::validate(none).error().message(), "has to vote"));
}

TEST_CASE("cluster requests: maintenance") {
  auto drained = made(request("node_drain", "n1"));
  CHECK(drained.nodes[id(1)].state == NodeState::drained);
  // Who gets its volumes is decided where all are seen.
  CHECK(drained.volumes["v"].coordinator == id(1));
  CHECK(made(request("node_resume", "n1"), drained) == three());
  CHECK(has(refusal(request("node_drain", "x")), "no node 'x'"));
  CHECK(has(refusal(request("node_resume")), "no node ''"));
}

TEST_CASE("cluster requests: a node is fenced, and let back in") {
  auto fenced = made(request("node_fence", "n1"));
  CHECK(fenced.nodes[id(1)].fenced);
  CHECK(has(refusal(request("volume_move", "n1"), fenced), "no volume ''"));
  auto move = request("volume_move", "n1");
  move.volume = "v";
  CHECK(has(refusal(move, fenced), "csvctl node unfence"));
  CHECK(fenced.nodes[id(1)].fences == 1);
  auto back = made(request("node_unfence", "n1"), fenced);
  CHECK(!back.nodes[id(1)].fenced);
  CHECK(made(request("node_fence", "n1"), back).nodes[id(1)].fences == 2);
  CHECK(made(request("node_fence", "n1"), fenced) == fenced);
  CHECK(has(refusal(request("node_fence", "x")), "no node 'x'"));
  fenced.nodes[id(2)].fenced = true;
  CHECK(has(refusal(request("node_fence", "3"), fenced), "nobody would be left"));
  // A file that was written before says nothing of it.
  auto imported = made(request("config_import", "", cluster::to_toml(three())), fenced);
  CHECK(imported.nodes[id(1)].fenced);
}

// A mount of it may have heard of neither, and holds what waits to be over by this number alone.
TEST_CASE(
    "cluster requests: a node that is taken out, and added again, has been fenced once more") {
  auto evicted = [](const std::string& node, Configuration from) {
    return made(request("node_evict", node), std::move(from));
  };
  auto added = request("node_add", "1", "name=n1 address=10.9.0.9:7800");
  auto before = made(request("node_unfence", "n1"), made(request("node_fence", "n1")));
  auto out = evicted("n1", before);
  auto shut_out = cluster::fences_of(out, id(1));
  CHECK(shut_out > before.nodes[id(1)].fences);
  bool imported = false;
  SUBCASE("by its join") {}
  SUBCASE("with a file") { imported = true; }
  auto back = made(imported ? request("config_import", "", cluster::to_toml(before)) : added, out);
  CHECK(back.nodes[id(1)].fences == shut_out);
  if (!imported) CHECK(made(added, back) == back);  // said twice
  // Whatever becomes of others meanwhile, and also if it has never been fenced.
  auto other = evicted("3", back);
  CHECK(cluster::fences_of(other, id(1)) == shut_out);
  auto again = made(added, evicted("n1", other));
  CHECK(again.nodes[id(1)].fences > shut_out);
  CHECK(made(added, evicted("n1", three())).nodes[id(1)].fences > 0);
  auto stored = cluster::decode(cluster::encode(out));
  REQUIRE(stored);
  CHECK(*stored == out);
}

TEST_CASE("cluster requests: a node that is taken out leaves its volumes to nobody") {
  auto change = change_for(request("node_evict", "n1"));
  REQUIRE(change);
  auto next = three();
  next.volumes["v"].preferred = id(1);
  REQUIRE((*change)(next));
  CHECK(next.nodes.count(id(1)) == 0);
  CHECK(next.volumes["v"].coordinator == NodeId{});
  CHECK(next.volumes["v"].turn == 6);
  CHECK(!next.volumes["v"].preferred);
  CHECK(has(refusal(request("node_evict", "n1"), next), "no node 'n1'"));
  // Asked again, as after a change of somebody else that came right behind it.
  auto after = next;
  CHECK((*change)(after));
  CHECK(after == next);
  auto last = three();
  last.nodes.erase(id(1));
  last.nodes.erase(id(2));
  CHECK(has(refusal(request("node_evict", "3"), last), "last node"));
}

TEST_CASE("cluster requests: a node that is added is one that the cluster can have") {
  const std::string value = "name=n4 address=192.0.2.4:7400 links=192.0.2.4,198.51.100.4";
  auto next = made(request("node_add", "4", value));
  REQUIRE(next.nodes.count(id(4)) == 1);
  const auto& added = next.nodes.at(id(4));
  CHECK(added.name == "n4");
  CHECK(added.address == "192.0.2.4:7400");
  CHECK(added.links == std::vector<std::string>{"192.0.2.4", "198.51.100.4"});
  CHECK(added.votes);
  CHECK(next.ballot == three().ballot);
  CHECK(
      made(request("node_add", "5", "address=192.0.2.5:1 name=n5")).nodes.at(id(5)).links.empty());
  for (const auto* number : {"", "0", "64", "four", "-1"})
    CHECK(has(refusal(request("node_add", number, value)), "number is 1 to 63"));
  CHECK(has(refusal(request("node_add", "3", value)), "is n3 already"));
  for (const auto* wrong : {"", "name=n4", "address=192.0.2.4:1", "n4", "name=n4 address=n4:7400",
                            "name=/ address=192.0.2.4:1", "name= address=192.0.2.4:1",
                            "name=n4 address=192.0.2.4:1 votes=7"})
    CHECK(has(refusal(request("node_add", "4", wrong)), "name=NAME address="));
  CHECK(has(refusal(request("node_add", "4", "name=n1 address=192.0.2.4:1")), "named n1"));
  CHECK(has(refusal(request("node_add", "4", "name=n4 address=192.0.2.1:7400")), "the address"));
  CHECK(has(refusal(request("node_add", "4", "name=n4 address=192.0.2.4:1 links=here")), "link"));
  CHECK(has(
      refusal(request("node_add", "4", "name=n4 address=192.0.2.4:1 links=192.0.2.4,192.0.2.4")),
      "twice"));
}

TEST_CASE("cluster requests: where a volume goes") {
  auto there = made(move("v", "n2"));
  CHECK(there.volumes["v"].coordinator == id(2));
  CHECK(there.volumes["v"].preferred == id(2));
  CHECK(there.volumes["v"].turn == 6);
  auto anywhere = made(move("v", ""), there);
  CHECK(!anywhere.volumes["v"].preferred);
  CHECK(anywhere.volumes["v"].coordinator == id(2));
  // It is there already: only that it shall be is new.
  CHECK(made(move("v", "n1")).volumes["v"].turn == 5);
  CHECK(refusal(move("w", "n2")) == "the cluster has no volume 'w'; its volumes: v");
  CHECK(has(refusal(move("v", "n7")), "no node 'n7'"));
  auto drained = three();
  drained.nodes[id(2)].state = NodeState::drained;
  CHECK(has(refusal(move("v", "n2"), drained), "csvctl node resume"));
  auto none = three();
  none.volumes.clear();
  CHECK(has(refusal(move("v", "n2"), none), "none at all"));
  AdminRequest forget{.command = "volume_forget", .volume = "v"};
  CHECK(made(forget).volumes.empty());
}

TEST_CASE("cluster requests: a volume is taken out of service, and put back") {
  AdminRequest stop{.command = "volume_stop", .volume = "v"};
  AdminRequest start{.command = "volume_start", .volume = "v", .node = "2"};
  auto preferred = made(move("v", "n1"));
  auto stopped = made(stop, preferred);
  CHECK(stopped.volumes["v"].stopped);
  CHECK(stopped.volumes["v"].coordinator == NodeId{});
  CHECK(stopped.volumes["v"].turn == 6);
  CHECK(made(stop, stopped) == stopped);
  CHECK(has(refusal(move("v", "n2"), stopped), "csvctl volume start v"));
  CHECK(
      has(refusal({.command = "volume_forget", .volume = "v"}, stopped), "csvctl volume start v"));
  // Whoever is to have it then is found as for one that is new; where people want it stays.
  auto back = made(start, stopped);
  CHECK(!back.volumes["v"].stopped);
  CHECK(back.volumes["v"].coordinator == NodeId{});
  CHECK(back.volumes["v"].preferred == id(1));
  CHECK(back.volumes["v"].turn == 7);
  // Of one that is in service: this node has it from now on.
  CHECK(made(start).volumes["v"].coordinator == id(2));
  stop.volume = start.volume = "w";
  CHECK(has(refusal(stop), "no volume 'w'"));
  CHECK(has(refusal(start), "no volume 'w'"));
}

TEST_CASE("cluster requests: witnesses") {
  auto disk = made(request("witness", "", "disk:/dev/sdx")).witness;
  CHECK(disk == cluster::WitnessRecord{WitnessKind::disk, "/dev/sdx", false});
  auto share = made(request("witness", "", "share:/srv/w")).witness;
  CHECK(share == cluster::WitnessRecord{WitnessKind::share, "/srv/w", false});
  auto only = made(request("witness", "", "only disk:/dev/sdx"));
  CHECK(only.witness == cluster::WitnessRecord{WitnessKind::disk, "/dev/sdx", true});
  CHECK(made(request("witness", "", "only disk:/dev/sdx"), only) == only);
  CHECK(made(request("witness", "", "none"), only) == three());
  // How much it decides is no detail of a witness that is there.
  CHECK(has(refusal(request("witness", "", "disk:/dev/sdx"), only), "witness none"));
  for (const auto* wrong : {"only ", "only none", "only share:/srv/w",
                            "only disk:", "only only disk:/dev/sdx", "onlydisk:/dev/sdx"}) {
    CAPTURE(wrong);
    CHECK(has(refusal(request("witness", "", wrong)), "disk:LUN"));
  }
  auto with = three();
  with.witness = disk;
  CHECK(made(request("witness", "", "none"), with) == three());
  CHECK(made(request("witness", "", "disk:/dev/sdx"), with) == with);
  CHECK(has(refusal(request("witness", "", "share:/srv/w"), with), "witness none"));
  auto counted = three();
  counted.ballot.now.witness = 1;  // the former one's vote is not out yet
  CHECK(has(refusal(request("witness", "", "share:/srv/w"), counted), "witness none"));
  for (const auto* wrong : {"", "disk", "disk:", "share:srv", "share:/", "NONE", "none "}) {
    CAPTURE(wrong);
    CHECK(!refusal(request("witness", "", wrong)).empty());
  }
}

TEST_CASE("cluster requests: policies") {
  CHECK(!made(request("policy", "", "dynamic_quorum=off")).policies.dynamic_quorum);
  CHECK(made(request("policy", "", "dynamic_quorum=on")).policies.dynamic_quorum);
  CHECK(made(request("policy", "", "hold=0")).policies.hold_s == 0);
  CHECK(made(request("policy", "", "hold=86400")).policies.hold_s == 86400);
  for (const auto* wrong : {"", "hold", "hold=", "hold=-1", "hold=86401", "hold=1s", "hold= 1",
                            "dynamic_quorum", "dynamic_quorum=1", "hold=99999999999"}) {
    CAPTURE(wrong);
    CHECK(has(refusal(request("policy", "", wrong)), "hold=SECONDS"));
  }
}

TEST_CASE("cluster requests: heartbeats, within what leases allow") {
  auto both = made(request("heartbeat", "", "delay=60 threshold=12")).heartbeat;
  CHECK(both.delay_ms == 60);
  CHECK(both.threshold == 12);
  CHECK(made(request("heartbeat", "", "threshold=5")).heartbeat.delay_ms == 100);
  CHECK(made(request("heartbeat", "", "delay=50")).heartbeat.threshold == 10);
  CHECK(made(request("heartbeat", "", "preset=wan")).heartbeat.delay_ms == 125);
  CHECK(made(request("heartbeat", "", "preset=lan")).heartbeat == cluster::HeartbeatSettings{});
  for (const auto* wrong : {"preset=", "preset=lan ", "delay", "delay=", "delay=1s", "delay=-1",
                            "delay=99999999999", "thresholds=3", " "}) {
    CAPTURE(wrong);
    CHECK(!refusal(request("heartbeat", "", wrong)).empty());
  }
  // The limit is said.
  for (const auto* wrong : {"delay=300 threshold=5", "delay=50 threshold=9", "delay=128"}) {
    CAPTURE(wrong);
    auto said = refusal(request("heartbeat", "", wrong));
    CHECK(has(said, "500 to 1272 ms"));
    CHECK(has(said, "3000 ms that a lease runs"));
  }
  auto now = three();
  auto wanted = now;
  wanted.heartbeat = {300, 5, {}};
  auto import = request("config_import", "", cluster::to_toml(wanted));
  CHECK(has(refusal(import), "500 to 1272 ms"));
  // What an earlier version left is no reason to refuse another change, and is not used.
  now.heartbeat = {300, 5, {}};
  wanted.policies.hold_s = 5;
  CHECK(cluster::replaced(now, wanted));
  CHECK(cluster::heartbeat_of(now.heartbeat) == cluster::kLan);
}

TEST_CASE("cluster requests: a configuration as text is shown, previewed and imported") {
  auto now = three();
  auto exported = answer_about(request("config_export"), &now);
  REQUIRE(exported);
  auto text = Json::parse(*exported)["text"].get<std::string>();
  CHECK(made(request("config_import", "", text)) == now);
  auto same = answer_about(request("config_preview", "", text), &now);
  REQUIRE(same);
  CHECK(Json::parse(*same)["changes"].empty());
  auto wanted = now;
  wanted.policies.hold_s = 5;
  text = cluster::to_toml(wanted);
  CHECK(Json::parse(*answer_about(request("config_preview", "", text), &now))["changes"] ==
        Json::array({"hold: 60 s becomes 5 s"}));
  CHECK(made(request("config_import", "", text)) == wanted);
  wanted.cluster = 8;
  CHECK(has(refusal(request("config_import", "", cluster::to_toml(wanted))), "cluster 8"));
  CHECK(has(refusal(request("config_import", "", "[cluster")), "the configuration:1:"));
  CHECK(!answer_about(request("config_preview", "", "nonsense"), &now));
  CHECK(has(answer_about(request("config_export"), nullptr).error().message(),
            "csvctl cluster create"));
}

TEST_CASE("cluster requests: what csvd does not know") {
  for (const auto* known : {"node_vote", "node_drain", "node_resume", "node_fence", "node_unfence",
                            "node_evict", "node_add", "volume_move", "volume_forget", "heartbeat",
                            "volume_stop", "volume_start", "witness", "policy", "config_import"})
    CHECK(changes_cluster(known));
  for (const auto* unknown : {"", "status", "node", "config_export", "cluster_create"})
    CHECK(!changes_cluster(unknown));
  CHECK(asks_cluster("config_export"));
  CHECK(!asks_cluster("config_import"));
  CHECK(has(refusal(request("reboot")), "'reboot' does not change"));
}

TEST_CASE("cluster requests: a new cluster is this node, its peers and its volumes") {
  Config config;
  config.cluster = 7;
  config.node = id(2);
  config.node_name = "n2";
  config.listen = "192.0.2.2:7400";
  config.peers = {{id(1), "n1", "192.0.2.1:7400", {}}};
  config.volumes.resize(1);
  config.volumes[0].name = "v";
  auto first = first_configuration(config, "demo");
  CHECK(cluster::validate(first));
  CHECK(first.name == "demo");
  CHECK(first.nodes.size() == 2);
  CHECK(first.nodes[id(1)].address == "192.0.2.1:7400");
  CHECK(first.volumes.count("v") == 1);
  CHECK(!cluster::validate(first_configuration(config, "no name")));
}
