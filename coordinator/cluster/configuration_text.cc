#include "coordinator/cluster/configuration_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "coordinator/protocol/limits.h"
#include "csvfs/base/toml_section.h"

namespace csv::cluster {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (byte < 0x20 || byte == 0x7f)
      out += fmt::format("\\u{:04x}", byte);
    else
      out += c;
  }
  return out + "\"";
}

const char* text_of(WitnessKind kind) {
  switch (kind) {
    case WitnessKind::none: return "none";
    case WitnessKind::disk: return "disk";
    case WitnessKind::share: return "share";
  }
  return "";
}

bool is_witness_kind(const std::string& text) {
  return text == "none" || text == "disk" || text == "share";
}
bool is_place(const std::string& text) {
  return text.size() <= 4096 && std::none_of(text.begin(), text.end(), [](char c) {
           return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
         });
}

using Names = std::map<std::string, NodeId>;

Expected<void> read_cluster(const toml::table& root, const std::string& file, Configuration& out) {
  TomlSection in{*CSV_TRY(toml_table(root, "cluster", file)), "[cluster]", file};
  out.cluster = static_cast<std::uint16_t>(CSV_TRY(in.integer("id", 1, 65535)));
  out.name = CSV_TRY(in.text("name", kNameText, is_name));
  out.policies.dynamic_quorum = CSV_TRY(in.boolean("dynamic_quorum", true));
  out.policies.hold_s =
      static_cast<std::uint32_t>(CSV_TRY(in.integer("hold_s", 0, 86400, out.policies.hold_s)));
  return in.nothing_else();
}

Expected<void> read_heartbeat(const toml::table& root, const std::string& file,
                              Configuration& out) {
  if (root.get("heartbeat") == nullptr) return {};
  TomlSection in{*CSV_TRY(toml_table(root, "heartbeat", file)), "[heartbeat]", file};
  auto& beat = out.heartbeat;
  beat.delay_ms =
      static_cast<std::uint32_t>(CSV_TRY(in.integer("delay_ms", 50, 5000, beat.delay_ms)));
  beat.threshold =
      static_cast<std::uint32_t>(CSV_TRY(in.integer("threshold", 3, 120, beat.threshold)));
  beat.isolation_addresses =
      CSV_TRY(in.texts("isolation_addresses", kAddressText, is_numeric_address));
  if (beat.isolation_addresses.size() > 16) return in.clash("isolation_addresses", "16 at most");
  return in.nothing_else();
}

Expected<void> read_witness(const toml::table& root, const std::string& file, Configuration& out) {
  if (root.get("witness") == nullptr) return {};
  TomlSection in{*CSV_TRY(toml_table(root, "witness", file)), "[witness]", file};
  auto kind = CSV_TRY(in.text("kind", "\"none\", \"disk\" or \"share\"", is_witness_kind, "none"));
  auto& witness = out.witness;
  witness.kind = kind == "disk"    ? WitnessKind::disk
                 : kind == "share" ? WitnessKind::share
                                   : WitnessKind::none;
  witness.place = CSV_TRY(in.text("place", "a LUN, or a folder's path", is_place, ""));
  witness.only = CSV_TRY(in.boolean("only", false));
  CSV_TRY(in.nothing_else());
  if (witness.kind == WitnessKind::none && !witness.place.empty())
    return in.clash("place", "there is no witness: kind is \"none\"");
  if (witness.kind != WitnessKind::none && witness.place.empty())
    return in.clash("place", "a witness of kind \"" + kind + "\" has one");
  if (witness.kind == WitnessKind::share && !witness.place.starts_with("/"))
    return in.clash("place", "of a share it is the folder's absolute path");
  if (witness.kind == WitnessKind::none && witness.only)
    return in.clash("only", "no witness can decide alone: kind is \"none\"");
  return {};
}

Expected<Names> read_nodes(const toml::table& root, const std::string& file, Configuration& out) {
  Names names;
  std::set<std::string> addresses;
  bool voter = out.witness.only;
  auto tables = CSV_TRY(toml_tables(root, "node", file));
  if (tables.empty()) return Error{Errc::refused, file + ": missing [[node]]: one at least"};
  for (const auto* table : tables) {
    TomlSection in{*table, "[[node]]", file};
    NodeId id{static_cast<std::uint8_t>(CSV_TRY(in.integer("id", 1, protocol::kMaxNode)))};
    NodeRecord record;
    record.name = CSV_TRY(in.text("name", kNameText, is_name));
    record.address = CSV_TRY(in.text("address", kEndpointText, is_endpoint));
    record.votes = CSV_TRY(in.integer("vote", 0, 1, 1)) == 1;
    record.state = CSV_TRY(in.boolean("drained", false)) ? NodeState::drained : NodeState::member;
    record.links = CSV_TRY(in.texts("links", kAddressText, is_numeric_address));
    CSV_TRY(in.nothing_else());
    voter = voter || record.votes;
    if (!names.emplace(record.name, id).second)
      return in.clash("name", quoted(record.name) + " is another node's, too");
    if (!addresses.insert(record.address).second)
      return in.clash("address", quoted(record.address) + " is another node's, too");
    if (!out.nodes.emplace(id, std::move(record)).second)
      return in.clash("id", fmt::format("{} is another node's, too", raw(id)));
  }
  if (!voter)
    return TomlSection{*tables.front(), "[[node]]", file}.clash("vote",
                                                                "one node at least has to vote");
  return names;
}

Expected<void> read_volumes(const toml::table& root, const std::string& file, const Names& names,
                            Configuration& out) {
  for (const auto* table : CSV_TRY(toml_tables(root, "volume", file))) {
    TomlSection in{*table, "[[volume]]", file};
    auto name = CSV_TRY(in.text("name", kNameText, is_name));
    auto preferred = CSV_TRY(in.text("preferred", kNameText, is_name, ""));
    VolumeRecord record;
    record.stopped = CSV_TRY(in.boolean("stopped", false));
    CSV_TRY(in.nothing_else());
    if (!preferred.empty()) {
      auto found = names.find(preferred);
      if (found == names.end())
        return in.clash("preferred", "there is no [[node]] of the name " + quoted(preferred));
      record.preferred = found->second;
    }
    if (!out.volumes.emplace(name, record).second)
      return in.clash("name", quoted(name) + " is there already");
  }
  return {};
}

std::string on_off(bool on) { return on ? "on" : "off"; }

std::string witness_words(const WitnessRecord& witness) {
  if (witness.kind == WitnessKind::none) return "none";
  return fmt::format("{}:{}{}", text_of(witness.kind), witness.place,
                     witness.only ? " (decides alone)" : "");
}

std::string heartbeat_words(const HeartbeatSettings& beat) {
  std::string out = fmt::format("every {} ms, {} missed", beat.delay_ms, beat.threshold);
  for (const auto& each : beat.isolation_addresses) out += ", " + each;
  return out;
}

std::string preferred_words(const Configuration& of, const VolumeRecord& volume) {
  if (!volume.preferred) return "any node";
  auto found = of.nodes.find(*volume.preferred);
  return found == of.nodes.end() ? fmt::format("node {}", raw(*volume.preferred))
                                 : found->second.name;
}

class Comparison {
 public:
  std::vector<std::string> take() { return std::move(lines_); }
  void add(std::string line) { lines_.push_back(std::move(line)); }
  void changed(const std::string& what, const std::string& before, const std::string& after) {
    if (before != after) add(fmt::format("{}: {} becomes {}", what, before, after));
  }

 private:
  std::vector<std::string> lines_;
};

void compare_nodes(const Configuration& now, const Configuration& then, Comparison& to) {
  for (const auto& [id, node] : now.nodes)
    if (then.nodes.count(id) == 0)
      to.add(fmt::format("node {} ({}) is taken out of the cluster", raw(id), node.name));
  for (const auto& [id, node] : then.nodes) {
    auto before = now.nodes.find(id);
    if (before == now.nodes.end()) {
      to.add(fmt::format("node {} ({}, {}) is added", raw(id), node.name, node.address));
      continue;
    }
    auto what = fmt::format("node {} ({})", raw(id), before->second.name);
    to.changed(what + ": name", before->second.name, node.name);
    to.changed(what + ": address", before->second.address, node.address);
    to.changed(what + ": links", fmt::format("{}", fmt::join(before->second.links, ", ")),
               fmt::format("{}", fmt::join(node.links, ", ")));
    to.changed(what + ": vote", before->second.votes ? "1" : "0", node.votes ? "1" : "0");
    if (before->second.state != node.state)
      to.add(what + (node.state == NodeState::drained ? " is drained" : " takes volumes again"));
    if (before->second.fenced != node.fenced)
      to.add(what +
             (node.fenced ? " is fenced by command" : " may come back: it is fenced no more"));
  }
}

void compare_volumes(const Configuration& now, const Configuration& then, Comparison& to) {
  for (const auto& [name, volume] : now.volumes)
    if (then.volumes.count(name) == 0)
      to.add(fmt::format("volume {} is forgotten, until a node says that it has it", name));
  for (const auto& [name, volume] : then.volumes) {
    auto before = now.volumes.find(name);
    bool was_stopped = before != now.volumes.end() && before->second.stopped;
    if (before == now.volumes.end())
      to.add(fmt::format("volume {} is added; preferred: {}", name, preferred_words(then, volume)));
    else
      to.changed(fmt::format("volume {}: preferred", name), preferred_words(now, before->second),
                 preferred_words(then, volume));
    if (volume.stopped != was_stopped)
      to.add(fmt::format("volume {} is {}", name,
                         volume.stopped ? "taken out of service" : "put back into service"));
  }
}

}  // namespace

std::string to_toml(const Configuration& configuration) {
  std::string out;
  auto add = [&out]<typename... Args>(fmt::format_string<Args...> text, Args&&... args) {
    out += fmt::format(text, std::forward<Args>(args)...);
  };
  add("# Configuration of a csvfs cluster: csvctl cluster config import FILE shows what it would "
      "change, and asks.\n\n"
      "[cluster]\n"
      "id = {}\n"
      "name = {}\n"
      "dynamic_quorum = {}   # votes of absent nodes are taken away\n"
      "hold_s = {}   # so long a volume that was moved stays before it is moved for balance\n\n",
      configuration.cluster, quoted(configuration.name), configuration.policies.dynamic_quorum,
      configuration.policies.hold_s);
  add("[heartbeat]   # as csvctl cluster heartbeat sets them\n"
      "delay_ms = {}\n"
      "threshold = {}   # so many missed: the node is gone\n"
      "isolation_addresses = [",
      configuration.heartbeat.delay_ms, configuration.heartbeat.threshold);
  const auto& pinged = configuration.heartbeat.isolation_addresses;
  for (std::size_t i = 0; i < pinged.size(); ++i)
    add("{}{}", i == 0 ? "" : ", ", quoted(pinged[i]));
  add("]\n\n"
      "[witness]\n"
      "kind = {}   # \"none\", \"disk\" (place: a LUN) or \"share\" (place: a folder)\n",
      quoted(text_of(configuration.witness.kind)));
  if (configuration.witness.kind != WitnessKind::none)
    add("place = {}\nonly = {}   # it outweighs all nodes\n", quoted(configuration.witness.place),
        configuration.witness.only);
  for (const auto& [id, node] : configuration.nodes) {
    add("\n[[node]]\n"
        "id = {}\n"
        "name = {}\n"
        "address = {}\n"
        "vote = {}\n"
        "drained = {}\n",
        raw(id), quoted(node.name), quoted(node.address), node.votes ? 1 : 0,
        node.state == NodeState::drained);
    for (std::size_t i = 0; i < node.links.size(); ++i)
      add("{}{}", i == 0 ? "links = [" : ", ", quoted(node.links[i]));
    if (!node.links.empty()) add("]   # of Corosync\n");
  }
  for (const auto& [name, volume] : configuration.volumes) {
    add("\n[[volume]]\nname = {}\n", quoted(name));
    if (volume.preferred)
      if (auto node = configuration.nodes.find(*volume.preferred);
          node != configuration.nodes.end())
        add("preferred = {}\n", quoted(node->second.name));
    if (volume.stopped) add("stopped = true   # out of service\n");
  }
  return out;
}

Expected<Configuration> from_toml(std::string_view text, const std::string& file_name) {
  auto root = CSV_TRY(parse_toml(text, file_name));
  for (const auto& [key, node] : root)
    if (key != "cluster" && key != "heartbeat" && key != "witness" && key != "node" &&
        key != "volume")
      return Error{Errc::refused,
                   toml_place(key.source(), file_name) + "unknown key '" + std::string{key.str()} +
                       "'; expected [cluster], [heartbeat], [witness], [[node]] or [[volume]]"};
  Configuration out;
  CSV_TRY(read_cluster(root, file_name, out));
  CSV_TRY(read_heartbeat(root, file_name, out));
  CSV_TRY(read_witness(root, file_name, out));
  auto names = CSV_TRY(read_nodes(root, file_name, out));
  CSV_TRY(read_volumes(root, file_name, names, out));
  if (auto sane = validate(out); !sane)
    return Error{Errc::refused, file_name + ": " + sane.error().message()};
  return out;
}

Expected<Configuration> replaced(const Configuration& now, const Configuration& wanted) {
  if (now.cluster != wanted.cluster)
    return Error{Errc::refused, fmt::format("it is the configuration of cluster {}, and this is "
                                            "cluster {}",
                                            wanted.cluster, now.cluster)};
  auto next = now;
  CSV_TRY(set_witness(next, wanted.witness));
  for (const auto& [id, node] : now.nodes)
    if (wanted.nodes.count(id) == 0) take_out(next, id);
  next.name = wanted.name;
  next.nodes = wanted.nodes;
  for (auto& [id, node] : next.nodes) {
    auto known = now.nodes.find(id);
    if (known == now.nodes.end()) {
      node.fences = next.fences_of_others;
      continue;
    }
    // Nobody writes that down: only a command lets a node come back.
    std::tie(node.fenced, node.fences) = std::pair{known->second.fenced, known->second.fences};
    // A file may be older than they are.
    if (node.links.empty()) node.links = known->second.links;
  }
  if (wanted.heartbeat != now.heartbeat)
    CSV_TRY(set_heartbeat(next, wanted.heartbeat.delay_ms, wanted.heartbeat.threshold));
  next.heartbeat.isolation_addresses = wanted.heartbeat.isolation_addresses;
  next.policies = wanted.policies;
  std::map<std::string, VolumeRecord> volumes;
  for (const auto& [name, volume] : wanted.volumes) {
    auto known = next.volumes.find(name);
    auto& record = volumes[name];
    if (known != next.volumes.end()) record = known->second;
    record.preferred = volume.preferred;
    set_stopped(record, volume.stopped);
  }
  next.volumes = std::move(volumes);
  return next;
}

std::vector<std::string> differences(const Configuration& now, const Configuration& then) {
  Comparison out;
  out.changed("name of the cluster", now.name, then.name);
  out.changed("dynamic quorum", on_off(now.policies.dynamic_quorum),
              on_off(then.policies.dynamic_quorum));
  out.changed("hold", fmt::format("{} s", now.policies.hold_s),
              fmt::format("{} s", then.policies.hold_s));
  out.changed("heartbeats", heartbeat_words(now.heartbeat), heartbeat_words(then.heartbeat));
  out.changed("witness", witness_words(now.witness), witness_words(then.witness));
  compare_nodes(now, then, out);
  compare_volumes(now, then, out);
  return out.take();
}

}  // namespace csv::cluster
