#include "coordinator/admin/settled.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace csv::admin {
namespace {

using Json = nlohmann::json;

Error no_status() {
  return Error{Errc::corrupt, "csvd's status does not say what the cluster does"};
}

std::string name_of(const Json& nodes, int id) {
  for (const auto& each : nodes)
    if (each.value("id", 0) == id) return each.value("name", "");
  return fmt::format("node {}", id);
}

int id_of(const Json& nodes, const std::string& node) {
  for (const auto& each : nodes)
    if (each.value("name", "") == node) return each.value("id", 0);
  for (const auto& each : nodes)
    if (std::to_string(each.value("id", 0)) == node) return each.value("id", 0);
  return 0;
}

/// `not_by`: it must be another one; `by`: this one; 0: whoever.
std::string of_volume(const Json& volume, const Json& nodes, int not_by, int by) {
  auto name = volume.value("name", "");
  int given = volume.value("coordinator", 0);
  bool serves = volume.value("served", false);
  if (not_by != 0 && given == not_by)
    return fmt::format("{} is {}'s still: no other node can take it, or they have not decided yet",
                       name, name_of(nodes, given));
  if (by != 0 && given != by) return fmt::format("{} is not given to {}", name, name_of(nodes, by));
  if (given == 0) return fmt::format("nobody is given {}", name);
  if (serves) return {};
  return fmt::format("{} is given to {}, which does not serve it yet", name, name_of(nodes, given));
}

std::string of_stopped(const Json& volume, bool formed) {
  // What the others do is not known.
  if (!formed) return "the cluster forms anew";
  auto name = volume.value("name", "");
  if (!volume.value("stopped", false)) return name + " is not stopped: somebody has started it";
  if (volume.value("served", false)) return name + " is being closed by its coordinator";
  if (!volume.value("closed", true))  // an older csvd does not say
    return "what mounts of " + name +
           ", and nodes out of reach, may still do ends with their leases";
  return {};
}

}  // namespace

Expected<std::string> left_to_do(const std::string& status, const AdminRequest& request) {
  auto parsed = Json::parse(status, nullptr, false);
  if (!parsed.is_object() || !parsed.contains("voting")) return no_status();
  try {
    const auto& voting = parsed["voting"];
    if (!voting.is_object()) return no_status();
    auto nodes = voting.value("nodes", Json::array());
    auto volumes = voting.value("volumes", Json::array());
    int node = request.node.empty() ? 0 : id_of(nodes, request.node);
    if (request.command == "node_drain") {
      for (const auto& each : volumes) {
        // What nobody can coordinate has not left it.
        if (each.value("coordinator", 0) == 0) continue;
        if (auto left = of_volume(each, nodes, node, 0); !left.empty()) return left;
      }
      return std::string{};
    }
    for (const auto& each : volumes)
      if (each.value("name", "") == request.volume)
        return request.command == "volume_stop"
                   ? of_stopped(each, voting.value("state", "formed") == "formed")
                   : of_volume(each, nodes, 0, node);
    return "the cluster has no volume " + request.volume;
  } catch (const Json::exception&) {
    return no_status();
  }
}

}  // namespace csv::admin
