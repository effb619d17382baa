#include "coordinator/cluster/configuration.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "coordinator/protocol/certificate.h"
#include "coordinator/protocol/frame.h"
#include "coordinator/protocol/group.pb.h"
#include "coordinator/protocol/limits.h"
#include "csvfs/base/toml_section.h"

namespace csv::cluster {
namespace {

constexpr std::uint32_t kFormat = 1;
constexpr std::size_t kMaxVolumes = 64;
constexpr std::size_t kMaxLinks = 8;

bool is_name(std::string_view text) {
  if (text.empty() || text.size() > 63 || text.front() == '.' || text.front() == '-') return false;
  return text.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
         std::string_view::npos;
}

Error damaged(std::string_view what) {
  return Error{Errc::corrupt, fmt::format("the cluster's configuration is damaged: {}", what)};
}

void put(const Votes& votes, wire::VotesOf& out) {
  for (const auto& [node, vote] : votes.nodes) {
    out.add_node(raw(node));
    out.add_votes(vote);
  }
  out.set_witness(votes.witness);
}

Expected<Votes> take(const wire::VotesOf& from) {
  Votes out;
  if (from.node_size() != from.votes_size()) return damaged("votes without nodes");
  for (int i = 0; i < from.node_size(); ++i) {
    if (from.node(i) == 0 || from.node(i) > protocol::kMaxNode || from.votes(i) > 1)
      return damaged("a vote of nobody");
    if (!out.nodes.emplace(NodeId{static_cast<std::uint8_t>(from.node(i))}, from.votes(i)).second)
      return damaged("two votes of one node");
  }
  if (from.witness() > protocol::kMaxNode + 1) return damaged("the witness's vote");
  out.witness = from.witness();
  return out;
}

}  // namespace

std::string encode(const Configuration& configuration) {
  wire::Configuration out;
  out.set_format(kFormat);
  out.mutable_tag()->set_forced(configuration.tag.forced);
  out.mutable_tag()->set_epoch(configuration.tag.epoch);
  out.mutable_tag()->set_sequence(configuration.tag.sequence);
  out.set_cluster(configuration.cluster);
  out.set_name(configuration.name);
  for (const auto& [id, node] : configuration.nodes) {
    auto* one = out.add_nodes();
    one->set_id(raw(id));
    one->set_name(node.name);
    one->set_address(node.address);
    one->set_drained(node.state == NodeState::drained);
    one->set_votes(node.votes);
    one->set_fenced(node.fenced);
    one->set_fences(node.fences);
    for (const auto& each : node.links) one->add_links(each);
  }
  out.set_fences_of_others(configuration.fences_of_others);
  for (const auto& [name, volume] : configuration.volumes) {
    auto* one = out.add_volumes();
    one->set_name(name);
    one->set_coordinator(raw(volume.coordinator));
    one->set_preferred(raw(volume.preferred.value_or(NodeId{})));
    one->set_turn(volume.turn);
    one->set_stopped(volume.stopped);
  }
  out.mutable_witness()->set_kind(static_cast<std::uint32_t>(configuration.witness.kind));
  out.mutable_witness()->set_place(configuration.witness.place);
  out.mutable_witness()->set_only(configuration.witness.only);
  out.mutable_witness()->set_id(configuration.witness.id);
  out.mutable_heartbeat()->set_delay_ms(configuration.heartbeat.delay_ms);
  out.mutable_heartbeat()->set_threshold(configuration.heartbeat.threshold);
  for (const auto& each : configuration.heartbeat.isolation_addresses)
    out.mutable_heartbeat()->add_isolation_addresses(each);
  out.mutable_policies()->set_dynamic_quorum(configuration.policies.dynamic_quorum);
  out.mutable_policies()->set_hold_s(configuration.policies.hold_s);
  put(configuration.ballot.now, *out.mutable_votes());
  if (configuration.ballot.before) put(*configuration.ballot.before, *out.mutable_votes_before());
  return out.SerializeAsString();
}

Expected<Configuration> decode(std::string_view bytes) {
  protocol::silence_parser();
  wire::Configuration from;
  if (!from.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return damaged("it cannot be read");
  if (from.format() > kFormat)
    return Error{Errc::refused,
                 fmt::format("the cluster's configuration has format {}, and this csvd knows {}: a "
                             "newer one wrote it",
                             from.format(), kFormat)};
  if (from.format() != kFormat) return damaged("its format");
  Configuration out;
  out.tag = {from.tag().forced(), from.tag().epoch(), from.tag().sequence()};
  if (from.cluster() == 0 || from.cluster() > 65535) return damaged("the cluster's number");
  out.cluster = static_cast<std::uint16_t>(from.cluster());
  out.name = from.name();
  for (const auto& one : from.nodes()) {
    if (one.id() == 0 || one.id() > protocol::kMaxNode) return damaged("a node's number");
    NodeRecord record{one.name(),
                      one.address(),
                      one.drained() ? NodeState::drained : NodeState::member,
                      one.votes(),
                      one.fenced(),
                      one.fences(),
                      {one.links().begin(), one.links().end()}};
    if (!out.nodes.emplace(NodeId{static_cast<std::uint8_t>(one.id())}, std::move(record)).second)
      return damaged("one node twice");
  }
  out.fences_of_others = from.fences_of_others();
  for (const auto& one : from.volumes()) {
    if (one.coordinator() > protocol::kMaxNode || one.preferred() > protocol::kMaxNode)
      return damaged("a volume's node");
    VolumeRecord record;
    record.coordinator = NodeId{static_cast<std::uint8_t>(one.coordinator())};
    if (one.preferred() != 0) record.preferred = NodeId{static_cast<std::uint8_t>(one.preferred())};
    record.turn = one.turn();
    record.stopped = one.stopped();
    if (!out.volumes.emplace(one.name(), record).second) return damaged("one volume twice");
  }
  if (from.witness().kind() > static_cast<std::uint32_t>(WitnessKind::share))
    return damaged("the kind of witness");
  out.witness = {static_cast<WitnessKind>(from.witness().kind()), from.witness().place(),
                 from.witness().only(), from.witness().id()};
  out.heartbeat.delay_ms = from.heartbeat().delay_ms();
  out.heartbeat.threshold = from.heartbeat().threshold();
  for (const auto& each : from.heartbeat().isolation_addresses())
    out.heartbeat.isolation_addresses.push_back(each);
  out.policies.dynamic_quorum = from.policies().dynamic_quorum();
  out.policies.hold_s = from.policies().hold_s();
  out.ballot.now = CSV_TRY(take(from.votes()));
  if (from.has_votes_before()) out.ballot.before = CSV_TRY(take(from.votes_before()));
  if (auto sane = validate(out); !sane) return damaged(sane.error().message());
  return out;
}

Expected<void> validate(const Configuration& configuration) {
  auto wrong = [](std::string what) { return Error{Errc::refused, std::move(what)}; };
  if (configuration.cluster == 0) return wrong("a cluster's number is 1 to 65535");
  if (!is_name(configuration.name))
    return wrong("a cluster's name has 1 to 63 letters, digits, '.', '_' or '-'");
  if (configuration.nodes.empty()) return wrong("a cluster has one node at least");
  std::set<std::string> names, addresses, links;
  bool voter = false;
  for (const auto& [id, node] : configuration.nodes) {
    if (raw(id) == 0 || raw(id) > protocol::kMaxNode)
      return wrong(fmt::format("a node's number is 1 to {}, not {}", protocol::kMaxNode, raw(id)));
    if (!is_name(node.name)) return wrong(fmt::format("'{}' is no name for a node", node.name));
    if (!names.insert(node.name).second)
      return wrong(fmt::format("two nodes are named {}", node.name));
    if (node.address.empty() || node.address.size() > 64)
      return wrong(fmt::format("node {} has no address", node.name));
    if (!addresses.insert(node.address).second)
      return wrong(fmt::format("two nodes have the address {}", node.address));
    if (node.links.size() > kMaxLinks)
      return wrong(fmt::format("node {} has more than {} links", node.name, kMaxLinks));
    for (const auto& each : node.links) {
      if (!is_numeric_address(each))
        return wrong(
            fmt::format("'{}' is no link's address: {}", protocol::printable(each), kAddressText));
      if (!links.insert(each).second) return wrong("the link " + each + " stands twice");
    }
    voter = voter || node.votes;
  }
  if (!voter && !configuration.witness.only) return wrong("one node at least has to vote");
  if (configuration.volumes.size() > kMaxVolumes)
    return wrong(fmt::format("a cluster has {} volumes at most", kMaxVolumes));
  for (const auto& [name, volume] : configuration.volumes) {
    if (!is_name(name)) return wrong(fmt::format("'{}' is no name for a volume", name));
    if (volume.stopped && volume.coordinator != NodeId{})
      return wrong(fmt::format("volume {} is stopped, and has a coordinator", name));
  }
  if ((configuration.witness.kind == WitnessKind::none) != configuration.witness.place.empty())
    return wrong("a witness has a place");
  if (configuration.witness.place.size() > 4096) return wrong("the witness's place is too long");
  const auto& id = configuration.witness.id;
  if (id.size() > 32 || id.find_first_not_of("0123456789abcdef") != std::string::npos)
    return wrong("the witness's id is not one");
  if (configuration.witness.only && configuration.witness.kind == WitnessKind::none)
    return wrong("only a witness that is there can decide alone");
  const auto& beats = configuration.heartbeat;
  if (beats.delay_ms < 50 || beats.delay_ms > 5000 || beats.threshold < 3 || beats.threshold > 120)
    return wrong("heartbeats: a delay of 50 to 5000 ms, a threshold of 3 to 120");
  if (beats.isolation_addresses.size() > 16) return wrong("isolation addresses: 16 at most");
  return {};
}

Expected<void> set_heartbeat(Configuration& configuration, std::uint32_t delay_ms,
                             std::uint32_t threshold) {
  CSV_TRY(check_heartbeat({std::chrono::milliseconds{delay_ms}, threshold}));
  configuration.heartbeat.delay_ms = delay_ms;
  configuration.heartbeat.threshold = threshold;
  return {};
}

Heartbeat heartbeat_of(const HeartbeatSettings& settings) {
  Heartbeat out{std::chrono::milliseconds{settings.delay_ms}, settings.threshold};
  return check_heartbeat(out) ? out : kLan;
}

void take_out(Configuration& configuration, NodeId node) {
  auto fences = fences_of(configuration, node);
  configuration.nodes.erase(node);
  configuration.fences_of_others = std::max(configuration.fences_of_others, fences) + 1;
  for (auto& [name, volume] : configuration.volumes) {
    if (volume.preferred == node) volume.preferred.reset();
    if (volume.coordinator != node) continue;
    volume.coordinator = NodeId{};
    ++volume.turn;
  }
}

std::uint64_t fences_of(const Configuration& configuration, NodeId node) {
  auto record = configuration.nodes.find(node);
  return record == configuration.nodes.end() ? configuration.fences_of_others
                                             : record->second.fences;
}

void set_stopped(VolumeRecord& volume, bool stopped) {
  if (volume.stopped == stopped) return;
  volume.stopped = stopped;
  volume.coordinator = NodeId{};
  ++volume.turn;
}

Expected<void> set_witness(Configuration& configuration, const WitnessRecord& witness) {
  // Who names the place need not know what was written there.
  auto same = witness;
  if (same.id.empty()) same.id = configuration.witness.id;
  if (configuration.witness == same) return {};
  if (witness.kind != WitnessKind::none &&
      (configuration.witness.kind != WitnessKind::none || configuration.ballot.now.witness > 0))
    return Error{Errc::refused,
                 "the cluster has a witness: csvctl cluster witness none takes it away first"};
  configuration.witness = witness;
  return {};
}

VotingRules voting_rules(const Configuration& configuration) {
  VotingRules out;
  for (const auto& [id, node] : configuration.nodes) out.voters[id] = node.votes;
  out.witness = configuration.witness.kind != WitnessKind::none;
  out.disk_only = configuration.witness.only;
  out.dynamic = configuration.policies.dynamic_quorum;
  return out;
}

}  // namespace csv::cluster
