#include "coordinator/admin/cluster_requests.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <nlohmann/json.hpp>

#include "coordinator/cluster/configuration_text.h"
#include "coordinator/cluster/loss_response.h"
#include "coordinator/protocol/certificate.h"
#include "coordinator/protocol/limits.h"
#include "csvfs/base/toml_section.h"

namespace csv::admin {
namespace {

using cluster::Configuration;
using cluster::NodeRecord;
using cluster::NodeState;
using cluster::Replica;
using cluster::WitnessKind;

Error refused(std::string why) { return Error{Errc::refused, std::move(why)}; }

std::optional<std::uint32_t> number_of(std::string_view text) {
  std::uint32_t out = 0;
  auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc{} || stop != text.data() + text.size()) return std::nullopt;
  return out;
}

Error no_volume(const Configuration& in, const std::string& text) {
  std::string known;
  for (const auto& [name, volume] : in.volumes) known += (known.empty() ? "" : ", ") + name;
  return refused("the cluster has no volume '" + text + "'" +
                 (known.empty() ? ", and none at all" : "; its volumes: " + known));
}

Replica::Change on_node(const std::string& node,
                        std::function<Expected<void>(Configuration&, NodeId)> change) {
  return [node, change = std::move(change)](Configuration& next) -> Expected<void> {
    auto id = CSV_TRY(find_node(next, node));
    return change(next, id);
  };
}

Expected<Replica::Change> vote(const AdminRequest& request) {
  if (request.value != "0" && request.value != "1")
    return refused("a node's vote is 0 or 1, not '" + request.value + "'");
  return on_node(request.node,
                 [votes = request.value == "1"](Configuration& next, NodeId id) -> Expected<void> {
                   next.nodes[id].votes = votes;
                   return {};
                 });
}

Expected<Replica::Change> drain(const AdminRequest& request) {
  auto state = request.command == "node_drain" ? NodeState::drained : NodeState::member;
  return on_node(request.node, [state](Configuration& next, NodeId id) -> Expected<void> {
    next.nodes[id].state = state;
    return {};
  });
}

Expected<Replica::Change> fence(const AdminRequest& request) {
  return on_node(
      request.node,
      [fenced = request.command == "node_fence"](Configuration& next, NodeId id) -> Expected<void> {
        bool any_left = std::any_of(next.nodes.begin(), next.nodes.end(), [&](const auto& each) {
          return each.first != id && !each.second.fenced;
        });
        if (fenced && !any_left)
          return refused("every other node is fenced already: nobody would be left to do anything");
        auto& node = next.nodes[id];
        if (fenced && !node.fenced) ++node.fences;
        node.fenced = fenced;
        return {};
      });
}

Expected<Replica::Change> evict(const AdminRequest& request) {
  // Whom it was about is known only until it is done, and a change is asked again after that.
  return Replica::Change{[node = request.node, found = std::optional<NodeId>{}](
                             Configuration& next) mutable -> Expected<void> {
    if (found && !next.nodes.contains(*found)) return {};
    found = CSV_TRY(find_node(next, node));
    if (next.nodes.size() == 1) return refused("a cluster cannot do without its last node");
    cluster::take_out(next, *found);
    return {};
  }};
}

/// What stands between single ones of `at`, also if that is nothing; of an empty text nothing at
/// all.
std::vector<std::string_view> words_of(std::string_view text, char at = ' ') {
  std::vector<std::string_view> out;
  if (text.empty()) return out;
  for (;;) {
    auto end = text.find(at);
    out.push_back(text.substr(0, end));
    if (end == text.npos) return out;
    text.remove_prefix(end + 1);
  }
}

Expected<Replica::Change> add_node(const AdminRequest& request) {
  auto number = number_of(request.node);
  if (!number || *number == 0 || *number > protocol::kMaxNode)
    return refused(fmt::format("a node's number is 1 to {}, not '{}'", protocol::kMaxNode,
                               protocol::printable(request.node)));
  NodeRecord record;
  for (auto word : words_of(request.value)) {
    auto equals = word.find('=');
    auto key = word.substr(0, equals);
    std::string value{equals == word.npos ? "" : word.substr(equals + 1)};
    if (key == "name" && is_name(value))
      record.name = value;
    else if (key == "address" && is_endpoint(value))
      record.address = value;
    else if (key == "links")
      for (auto each : words_of(value, ',')) record.links.emplace_back(each);
    else
      return refused("a node is name=NAME address=ADDRESS:PORT links=ADDRESS,…, not '" +
                     protocol::printable(word) + "'");
  }
  if (record.name.empty() || record.address.empty())
    return refused("a node has a name and an address: name=NAME address=ADDRESS:PORT");
  return Replica::Change{[id = NodeId{static_cast<std::uint8_t>(*number)},
                          record](Configuration& next) -> Expected<void> {
    auto with = next;
    auto wanted = record;
    wanted.fences = cluster::fences_of(next, id);
    auto [at, is_new] = with.nodes.try_emplace(id, wanted);
    if (!is_new && at->second != wanted)
      return refused(fmt::format("node {} is {} already", raw(id), at->second.name));
    // Said here, and not only when it is proposed: who asks wants to know it before.
    CSV_TRY(cluster::validate(with));
    next = std::move(with);
    return {};
  }};
}

Expected<Replica::Change> move(const AdminRequest& request) {
  return Replica::Change{
      [volume = request.volume, node = request.node](Configuration& next) -> Expected<void> {
        auto found = next.volumes.find(volume);
        if (found == next.volumes.end()) return no_volume(next, volume);
        if (found->second.stopped && !node.empty())
          return refused("volume " + volume + " is stopped: csvctl volume start " + volume);
        if (node.empty()) {
          found->second.preferred.reset();
          return {};
        }
        auto id = CSV_TRY(find_node(next, node));
        if (next.nodes[id].state == NodeState::drained)
          return refused("node " + next.nodes[id].name +
                         " is drained, and is given no volume: csvctl node resume");
        if (next.nodes[id].fenced)
          return refused("node " + next.nodes[id].name +
                         " is fenced, and is given no volume: csvctl node unfence");
        found->second.preferred = id;
        if (found->second.coordinator == id) return {};
        found->second.coordinator = id;
        ++found->second.turn;
        return {};
      }};
}

Expected<Replica::Change> stop(const AdminRequest& request) {
  return Replica::Change{[volume = request.volume](Configuration& next) -> Expected<void> {
    auto found = next.volumes.find(volume);
    if (found == next.volumes.end()) return no_volume(next, volume);
    cluster::set_stopped(found->second, true);
    return {};
  }};
}

Expected<Replica::Change> start(const AdminRequest& request) {
  auto to_node = CSV_TRY(move(request));
  // It is asked again after it has been done, and then the volume is not stopped any more.
  return Replica::Change{[volume = request.volume, to_node,
                          put_back = false](Configuration& next) mutable -> Expected<void> {
    auto found = next.volumes.find(volume);
    if (found == next.volumes.end()) return no_volume(next, volume);
    put_back = put_back || found->second.stopped;
    if (!put_back) return to_node(next);
    cluster::set_stopped(found->second, false);
    return {};
  }};
}

Expected<Replica::Change> forget(const AdminRequest& request) {
  return Replica::Change{[volume = request.volume](Configuration& next) -> Expected<void> {
    auto found = next.volumes.find(volume);
    if (found == next.volumes.end()) return {};
    // It would be found again as a new one, and be taken over under whoever works at it.
    if (found->second.stopped)
      return refused("volume " + volume +
                     " is stopped, which would be forgotten with it: csvctl volume start " +
                     volume + " first");
    next.volumes.erase(found);
    return {};
  }};
}

/// Of what csvctl sends; it has shown the file's name with any error itself.
constexpr const char* kTextName = "the configuration";

Expected<Replica::Change> import(const AdminRequest& request) {
  auto wanted = CSV_TRY(cluster::from_toml(request.value, kTextName));
  return Replica::Change{[wanted = std::move(wanted)](Configuration& next) -> Expected<void> {
    next = CSV_TRY(cluster::replaced(next, wanted));
    return {};
  }};
}

constexpr std::string_view kOnly = "only ";

cluster::WitnessRecord witness_record(const std::string& value) {
  if (value.starts_with(kOnly)) {
    auto record = witness_record(value.substr(kOnly.size()));
    record.only = record.kind == WitnessKind::disk && !record.only;
    return record.only ? record : cluster::WitnessRecord{};
  }
  if (value.starts_with("disk:")) return {WitnessKind::disk, value.substr(5), false};
  if (value.starts_with("share:/")) return {WitnessKind::share, value.substr(6), false};
  return {};
}

Expected<Replica::Change> witness(const AdminRequest& request) {
  auto record = witness_record(request.value);
  if (record.kind == WitnessKind::none && request.value.starts_with(kOnly))
    return refused(
        "a witness that decides alone is a disk, which keeps the configuration: "
        "disk:LUN, not '" +
        request.value.substr(kOnly.size()) + "'");
  if (record.kind == WitnessKind::none && request.value != "none")
    return refused("a witness is \"none\", \"disk:LUN\" or \"share:/FOLDER\", not '" +
                   request.value + "'");
  if (record.kind != WitnessKind::none && (record.place.empty() || record.place == "/"))
    return refused("'" + request.value + "' names no place: disk:LUN or share:/FOLDER");
  return Replica::Change{[record](Configuration& next) -> Expected<void> {
    return cluster::set_witness(next, record);
  }};
}

Expected<Replica::Change> policy(const AdminRequest& request) {
  if (request.value == "dynamic_quorum=on" || request.value == "dynamic_quorum=off")
    return Replica::Change{
        [on = request.value == "dynamic_quorum=on"](Configuration& next) -> Expected<void> {
          next.policies.dynamic_quorum = on;
          return {};
        }};
  if (request.value.starts_with("hold=")) {
    auto seconds = number_of(std::string_view{request.value}.substr(5));
    if (seconds && *seconds <= 86400)
      return Replica::Change{[hold = *seconds](Configuration& next) -> Expected<void> {
        next.policies.hold_s = hold;
        return {};
      }};
  }
  return refused("a policy is dynamic_quorum=on|off or hold=SECONDS, not '" + request.value + "'");
}

Expected<Replica::Change> heartbeat(const AdminRequest& request) {
  std::optional<std::uint32_t> delay, threshold;
  auto take = [&](std::string_view word) {
    if (word == "preset=lan" || word == "preset=wan") {
      auto preset = word == "preset=lan" ? cluster::kLan : cluster::kWan;
      delay = static_cast<std::uint32_t>(preset.delay / 1ms);
      threshold = preset.threshold;
      return true;
    }
    auto& which = word.starts_with("delay=") ? delay : threshold;
    if (!word.starts_with("delay=") && !word.starts_with("threshold=")) return false;
    return (which = number_of(word.substr(word.find('=') + 1))).has_value();
  };
  for (auto word : words_of(request.value))
    if (!take(word))
      return refused("heartbeats are delay=MS, threshold=N, or preset=lan|wan, not '" +
                     request.value + "'");
  if (!delay && !threshold)
    return refused("heartbeats: which? --delay MS, --threshold N, or --preset lan|wan");
  if (delay && threshold) {
    Configuration tried;
    CSV_TRY(cluster::set_heartbeat(tried, *delay, *threshold));
  }
  return Replica::Change{[delay, threshold](Configuration& next) -> Expected<void> {
    return cluster::set_heartbeat(next, delay.value_or(next.heartbeat.delay_ms),
                                  threshold.value_or(next.heartbeat.threshold));
  }};
}

struct Command {
  const char* name;
  Expected<Replica::Change> (*make)(const AdminRequest&);
};
constexpr Command kCommands[] = {
    {"node_vote", vote},       {"node_drain", drain},   {"node_resume", drain},
    {"node_fence", fence},     {"node_unfence", fence}, {"node_evict", evict},
    {"node_add", add_node},    {"volume_move", move},   {"volume_forget", forget},
    {"witness", witness},      {"policy", policy},      {"heartbeat", heartbeat},
    {"config_import", import}, {"volume_stop", stop},   {"volume_start", start},
};

using Json = nlohmann::ordered_json;

const char* to_text(WitnessKind kind) {
  switch (kind) {
    case WitnessKind::none: return "none";
    case WitnessKind::disk: return "disk";
    case WitnessKind::share: return "share";
  }
  return "";
}

Json verdict_json(const cluster::NodeWatch::Opinion* opinion, TimePoint now) {
  if (opinion == nullptr) return {};
  return {{"finding", cluster::to_text(opinion->verdict.finding)},
          {"why", opinion->verdict.why},
          {"fence", opinion->verdict.fence},
          {"since_s", (now - opinion->since) / std::chrono::seconds{1}}};
}

std::string tag_text(const ClusterTag& tag) {
  return fmt::format("{}.{}.{}", tag.forced, tag.epoch, tag.sequence);
}

}  // namespace

Expected<NodeId> find_node(const Configuration& in, const std::string& text) {
  // A name may be what another node's number is.
  for (const auto& [id, node] : in.nodes)
    if (node.name == text) return id;
  for (const auto& [id, node] : in.nodes)
    if (std::to_string(raw(id)) == text) return id;
  std::string known;
  for (const auto& [id, node] : in.nodes) known += (known.empty() ? "" : ", ") + node.name;
  return refused("the cluster has no node '" + text + "'; its nodes: " + known);
}

std::optional<cluster::WitnessRecord> witness_named(const AdminRequest& request) {
  auto record = witness_record(request.value);
  if (request.command != "witness" || record.kind == WitnessKind::none) return std::nullopt;
  return record;
}

bool changes_cluster(const std::string& command) {
  return std::any_of(std::begin(kCommands), std::end(kCommands),
                     [&](const Command& each) { return command == each.name; });
}

Expected<Replica::Change> change_for(const AdminRequest& request) {
  for (const auto& each : kCommands)
    if (request.command == each.name) return each.make(request);
  return refused("'" + request.command + "' does not change the cluster");
}

cluster::Configuration first_configuration(const Config& config, const std::string& name) {
  Configuration out;
  out.cluster = config.cluster;
  out.name = name;
  auto add = [&out](NodeId id, const std::string& called, const std::string& address,
                    const std::vector<std::string>& links) {
    NodeRecord record{called, address};
    record.links = links;
    out.nodes[id] = std::move(record);
  };
  add(config.node, config.node_name, config.listen, config.links);
  for (const auto& peer : config.peers) add(peer.id, peer.name, peer.address, peer.links);
  for (const auto& volume : config.volumes) out.volumes.try_emplace(volume.name);
  return out;
}

Expected<void> may_take(const AdminRequest& request, const Configuration& now,
                        const std::function<bool(NodeId)>& unable) {
  bool moves = request.command == "volume_move" || request.command == "volume_start";
  if (!moves || request.node.empty()) return {};
  auto volume = now.volumes.find(request.volume);
  auto node = find_node(now, request.node);
  if (!node || volume == now.volumes.end() || volume->second.stopped ||
      volume->second.coordinator == *node || !unable(*node))
    return {};
  return refused(
      fmt::format("{} cannot coordinate {} just now: it has not added it, or has failed to take it "
                  "over and is tried again later (csvctl status there says which)",
                  now.nodes.at(*node).name, request.volume));
}

bool asks_cluster(const std::string& command) {
  return command == "config_export" || command == "config_preview";
}

Expected<std::string> answer_about(const AdminRequest& request,
                                   const cluster::Configuration* configuration) {
  if (configuration == nullptr)
    return refused("this node belongs to no cluster yet: csvctl cluster create");
  Json out{{"ok", true}};
  if (request.command == "config_export") {
    out["text"] = cluster::to_toml(*configuration);
  } else {
    auto wanted = CSV_TRY(cluster::from_toml(request.value, kTextName));
    auto then = CSV_TRY(cluster::replaced(*configuration, wanted));
    out["changes"] = cluster::differences(*configuration, then);
  }
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

cluster::Standing standing_of(const cluster::Replica& replica, TimePoint now) {
  cluster::Standing out;
  out.formed = replica.state() == Replica::State::formed;
  if (replica.view())
    for (const auto& member : replica.view()->members) {
      out.members.push_back(member.node);
      if (replica.prevents(member.node)) out.prevents.push_back(member.node);
    }
  out.witness_held = now < replica.held_until();
  if (replica.steward()) out.witness_answers = replica.witness_answers();
  return out;
}

std::string cluster_json(const cluster::VotingMembership& membership, NodeId node,
                         const Clock& clock, const cluster::QuorumLoss* loss) {
  const auto& replica = membership.replica();
  auto lease = membership.open_until();
  auto now = clock.now();
  auto ms = [now](TimePoint until) {
    return std::max<std::int64_t>(0, (until - now) / std::chrono::milliseconds{1});
  };
  auto standing = standing_of(replica, now);
  // Without one: what there would be, empty.
  const Configuration none;
  const auto& configuration = replica.configuration() != nullptr ? *replica.configuration() : none;
  const auto& view = replica.view();
  const auto& ballot = configuration.ballot;
  Json out{{"node", raw(node)},
           {"state", to_text(replica.state())},
           {"reason", replica.reason()},
           {"since_s", (now - replica.since()) / std::chrono::seconds{1}},
           {"steward", replica.steward()},
           {"lease_ms", ms(lease)},
           {"without_quorum", loss == nullptr ? Json{}
                                              : Json{{"step", cluster::to_text(loss->step())},
                                                     {"reason", loss->reason()},
                                                     {"restarted", loss->restarted()}}},
           {"name", configuration.name},
           {"tag", replica.configuration() != nullptr ? tag_text(configuration.tag) : ""},
           {"attention", Json::array()},
           {"votes", ballot.now.total()},
           {"votes_needed", replica.configuration() != nullptr ? votes_needed(configuration) : 0},
           {"votes_present", votes_present(configuration, standing)},
           {"votes_change", ballot.before.has_value()},
           {"nodes", Json::array()}};
  if (replica.configuration() != nullptr)
    for (const auto& each : advice(configuration, standing))
      out["attention"].push_back({{"subject", each.subject}, {"text", each.text}});
  for (const auto& [id, record] : configuration.nodes) {
    auto counts = ballot.now.nodes.find(id);
    bool reached = view && std::binary_search(view->nodes.begin(), view->nodes.end(), id);
    out["nodes"].push_back({{"id", raw(id)},
                            {"name", record.name},
                            {"address", record.address},
                            {"drained", record.state == NodeState::drained},
                            {"fenced", record.fenced},
                            {"off", membership.proven_off(id)},
                            {"vote", record.votes ? 1 : 0},
                            {"counts", counts == ballot.now.nodes.end() ? 0 : counts->second},
                            {"why", vote_reason(configuration, standing, id)},
                            {"reached", reached},
                            {"member", replica.member(id)},
                            {"prevents", replica.prevents(id)},
                            {"verdict", verdict_json(membership.opinion(id), now)}});
  }
  out["witness"] = {
      {"kind", to_text(configuration.witness.kind)},
      {"place", configuration.witness.place},
      {"only", configuration.witness.only},
      {"counts", ballot.now.witness},
      {"answers", standing.witness_answers ? Json(*standing.witness_answers) : Json{}},
      {"held_ms", ms(replica.held_until())}};
  out["dynamic_quorum"] = configuration.policies.dynamic_quorum;
  out["hold_s"] = configuration.policies.hold_s;
  out["heartbeat"] = {{"delay_ms", configuration.heartbeat.delay_ms},
                      {"threshold", configuration.heartbeat.threshold},
                      {"isolation_addresses", configuration.heartbeat.isolation_addresses}};
  out["volumes"] = Json::array();
  for (const auto& [name, volume] : configuration.volumes)
    out["volumes"].push_back({{"name", name},
                              {"coordinator", raw(volume.coordinator)},
                              {"served", membership.served(name)},
                              {"stopped", volume.stopped},
                              {"closed", membership.closed(name)},
                              {"preferred", volume.preferred ? raw(*volume.preferred) : 0}});
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace csv::admin
