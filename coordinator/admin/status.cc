#include "coordinator/admin/status.h"

#include <signal.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "coordinator/admin/text_table.h"
#include "csvfs/base/log.h"

namespace csv::admin {

std::string_view to_text(AccessMode mode) {
  switch (mode) {
    case AccessMode::unavailable: return "unavailable";
    case AccessMode::paused: return "paused";
    case AccessMode::direct: return "direct";
    case AccessMode::block_redirected: return "block redirected";
    case AccessMode::redirected: return "redirected";
  }
  return "unknown";
}

std::string_view to_text(KeyRole role) {
  switch (role) {
    case KeyRole::mount: return "mount";
    case KeyRole::coordinator: return "coordinator";
    case KeyRole::heartbeat: return "heartbeat";
  }
  return "unknown";
}

std::string key_text(Key key) { return fmt::format("{:016x}", raw(key)); }

namespace {

using Json = nlohmann::ordered_json;

std::int64_t seconds_since(const Clock& clock, TimePoint moment) {
  return std::chrono::duration_cast<std::chrono::seconds>(clock.now() - moment).count();
}

Json counters(const MountCounters& c) {
  return {{"operations", c.operations},
          {"direct_reads", c.direct_reads},
          {"direct_read_bytes", c.direct_read_bytes},
          {"direct_writes", c.direct_writes},
          {"direct_write_bytes", c.direct_write_bytes},
          {"redirected_reads", c.redirected_reads},
          {"redirected_read_bytes", c.redirected_read_bytes},
          {"redirected_writes", c.redirected_writes},
          {"redirected_write_bytes", c.redirected_write_bytes},
          {"requests", c.requests},
          {"reconnects", c.reconnects},
          {"recalls", c.recalls},
          {"readmissions", c.readmissions},
          {"stale_commits", c.stale_commits}};
}

Json service_json(const Clock& clock, const service::VolumeService& service) {
  auto status = service.status();
  Json sessions = Json::array();
  for (const auto& one : status.sessions)
    sessions.push_back({{"session", raw(one.session)},
                        {"node", raw(one.node)},
                        {"connected", one.connected},
                        {"admitted", one.admitted},
                        {"key", key_text(one.key)},
                        {"open_files", one.open_files},
                        {"layouts", one.layouts},
                        {"requests", one.requests},
                        {"redirected_read_bytes", one.redirected_read_bytes},
                        {"redirected_write_bytes", one.redirected_write_bytes}});
  const auto& lun = status.lun;
  return {{"epoch", raw(status.epoch)},
          {"key", key_text(status.key)},
          {"since_s", seconds_since(clock, status.since)},
          {"total_blocks", status.total_blocks},
          {"free_blocks", status.free_blocks},
          {"inodes", status.inodes},
          {"transactions", status.transactions},
          {"changes", status.changes},
          {"fences", status.fences},
          {"stale_commits", status.stale_commits},
          {"recalls", status.recalls},
          {"content_read_bytes", status.content_read_bytes},
          {"content_write_bytes", status.content_write_bytes},
          {"lun",
           {{"reads", lun.reads},
            {"read_bytes", lun.read_bytes},
            {"writes", lun.writes},
            {"write_bytes", lun.write_bytes},
            {"flushes", lun.flushes},
            {"zeroes", lun.zeroes},
            {"unmaps", lun.unmaps},
            {"retries", lun.retries},
            {"conflicts", lun.conflicts},
            {"timeouts", lun.timeouts}}},
          {"sessions", sessions}};
}

/// The mount of a crashed csvfs is still on the board.
bool is_alive(std::uint32_t pid) {
  return pid != 0 && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
}

Json mount_json(const Clock& clock, const BoardMount& mount) {
  auto alive = is_alive(mount.pid);
  return {{"pid", mount.pid},
          {"alive", alive},
          {"mode", to_text(alive ? mount.mode : AccessMode::unavailable)},
          {"reason", alive ? mount.reason : "csvfs ended without saying goodbye"},
          {"since_s", seconds_since(clock, mount.since)},
          {"counters", counters(mount.counters)}};
}

Json volume_json(const StatusSources& from, const VolumeConfig& volume,
                 const service::Coordination& here) {
  Json out{{"name", volume.name}, {"lun", volume.lun}};
  auto who = from.membership.coordinator(volume.name);
  out["coordinator_node"] = who ? raw(who->node) : 0;
  out["coordinator_endpoint"] = who ? who->endpoint : "";
  out["epoch"] = who ? raw(who->epoch) : 0;
  out["key"] = who ? key_text(who->key) : "";
  auto left = from.membership.open_until(volume.name) - from.clock.now();
  out["lease_ms"] = std::max<std::int64_t>(0, left / std::chrono::milliseconds{1});
  out["here"] = {{"state", to_text(here.state())},
                 {"reason", here.reason()},
                 {"since_s", seconds_since(from.clock, here.since())}};
  out["service"] = here.service() ? service_json(from.clock, *here.service()) : Json{};
  auto at = from.board.find(volume.name, false);
  auto mount = at < StatusBoard::kVolumes ? from.board.mount(at) : std::nullopt;
  // A mount that ended in good order has taken its process from the board.
  out["mount"] = mount && mount->pid != 0 ? mount_json(from.clock, *mount) : Json{};
  return out;
}

std::string text_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.is_null() ? "" : value.dump();
}

std::string volume_lines(const Json& volume, std::string& attention) {
  auto name = text_of(volume.at("name"));
  auto node = volume.at("coordinator_node").get<int>();
  std::string out = "\nVolume " + name + "\n";
  auto line = [&out](const std::string& what, const std::string& value) {
    out += fmt::format("  {:<12}{}\n", what, value);
  };
  line("LUN", text_of(volume.at("lun")));
  const auto& here = volume.at("here");
  auto state = text_of(here.at("state"));
  if (node == 0) {
    line("coordinator", "none is known");
    attention += fmt::format(
        "volume {}: nobody coordinates it{}\n", name,
        text_of(here.at("reason")).empty() ? "" : "; on this node: " + text_of(here.at("reason")));
  } else {
    line("coordinator", fmt::format("node {} at {}, epoch {}, key {}", node,
                                    text_of(volume.at("coordinator_endpoint")),
                                    text_of(volume.at("epoch")), text_of(volume.at("key"))));
  }
  auto lease = volume.at("lease_ms").get<std::int64_t>();
  line("lease", lease > 0 ? fmt::format("open, {}.{} s left", lease / 1000, lease % 1000 / 100)
                          : "closed: the coordinator does not echo this node's beats");
  if (lease == 0 && node != 0)
    attention +=
        fmt::format("volume {}: this node is not heard by the coordinator, I/O waits\n", name);
  line("here", state +
                   (text_of(here.at("reason")).empty() ? "" : ": " + text_of(here.at("reason"))) +
                   ", for " + duration_text(here.at("since_s").get<std::int64_t>()));
  const auto& mount = volume.at("mount");
  if (mount.is_null()) {
    line("mount", "none on this node");
  } else {
    auto mode = text_of(mount.at("mode"));
    auto reason = text_of(mount.at("reason"));
    line("mount",
         fmt::format("{}{}, for {}, process {}", mode, reason.empty() ? "" : " (" + reason + ")",
                     duration_text(mount.at("since_s").get<std::int64_t>()),
                     text_of(mount.at("pid"))));
    if (mode != "direct")
      attention += fmt::format("volume {}: the mount of this node is {}{}\n", name, mode,
                               reason.empty() ? "" : ": " + reason);
    const auto& c = mount.at("counters");
    auto number = [&c](const char* field) { return c.at(field).get<std::uint64_t>(); };
    TextTable table{{"I/O of this node", "reads", "read", "writes", "written"}};
    for (const char* how : {"direct", "redirected"}) {
      std::string prefix{how};
      table.row({how, std::to_string(number((prefix + "_reads").c_str())),
                 bytes_text(number((prefix + "_read_bytes").c_str())),
                 std::to_string(number((prefix + "_writes").c_str())),
                 bytes_text(number((prefix + "_write_bytes").c_str()))});
    }
    out += table.text(2);
  }
  const auto& service = volume.at("service");
  if (service.is_null()) return out;
  constexpr std::uint64_t kBlock = 4096;
  line("space", fmt::format("{} of {} free, {} inodes",
                            bytes_text(service.at("free_blocks").get<std::uint64_t>() * kBlock),
                            bytes_text(service.at("total_blocks").get<std::uint64_t>() * kBlock),
                            text_of(service.at("inodes"))));
  line("catalog", fmt::format("{} changes in {} transactions, {} recalls, {} fences",
                              text_of(service.at("changes")), text_of(service.at("transactions")),
                              text_of(service.at("recalls")), text_of(service.at("fences"))));
  line("content", fmt::format("{} read and {} written for mounts",
                              bytes_text(service.at("content_read_bytes").get<std::uint64_t>()),
                              bytes_text(service.at("content_write_bytes").get<std::uint64_t>())));
  TextTable table{{"session", "node", "state", "key", "open files", "layouts", "requests",
                   "redirected reads", "redirected writes"}};
  for (const auto& one : service.at("sessions"))
    table.row({text_of(one.at("session")), text_of(one.at("node")),
               std::string{one.at("connected").get<bool>() ? "connected" : "away"} +
                   (one.at("admitted").get<bool>() ? ", admitted" : ""),
               text_of(one.at("key")), text_of(one.at("open_files")), text_of(one.at("layouts")),
               text_of(one.at("requests")),
               bytes_text(one.at("redirected_read_bytes").get<std::uint64_t>()),
               bytes_text(one.at("redirected_write_bytes").get<std::uint64_t>())});
  if (!table.empty()) out += table.text(2);
  return out;
}

std::string text_from(const Json& status) {
  std::string attention, volumes;
  TextTable peers{{"node", "name", "address", "state"}};
  const auto& node = status.at("node");
  peers.row({text_of(node.at("id")), text_of(node.at("name")), text_of(node.at("address")),
             "this node, csvd up for " + duration_text(status.at("up_s").get<std::int64_t>())});
  for (const auto& peer : status.at("peers")) {
    auto present = peer.at("present").get<bool>();
    peers.row({text_of(peer.at("id")), text_of(peer.at("name")), text_of(peer.at("address")),
               present ? "present"
               : peer.at("silent_s").is_null()
                   ? "never heard"
                   : "silent for " + duration_text(peer.at("silent_s").get<std::int64_t>())});
    if (!present)
      attention += fmt::format("node {} ({}) does not answer\n", text_of(peer.at("id")),
                               text_of(peer.at("name")));
  }
  for (const auto& volume : status.at("volumes")) volumes += volume_lines(volume, attention);
  std::string out = "Cluster " + text_of(status.at("cluster")) + "\n" + peers.text(2) + volumes;
  if (attention.empty()) return out + "\nAll is well.\n";
  std::string listed;
  for (std::size_t at = 0; at < attention.size();) {
    auto end = attention.find('\n', at);
    listed += "  " + attention.substr(at, end - at) + "\n";
    at = end + 1;
  }
  return out + "\nNeeds attention:\n" + listed;
}

}  // namespace

std::string status_json(const StatusSources& from) {
  Json out{{"version", 1},
           {"cluster", from.config.cluster},
           {"node",
            {{"id", raw(from.config.node)},
             {"name", from.config.node_name},
             {"address", from.config.listen}}},
           {"incarnation", fmt::format("{:016x}", from.incarnation)},
           {"up_s", seconds_since(from.clock, from.started)}};
  out["peers"] = Json::array();
  for (const auto& peer : from.membership.peers())
    out["peers"].push_back(
        {{"id", raw(peer.id)},
         {"name", peer.name},
         {"address", peer.address},
         {"present", peer.present},
         {"incarnation", fmt::format("{:016x}", peer.incarnation)},
         {"silent_s",
          peer.incarnation == 0 ? Json{} : Json(seconds_since(from.clock, peer.last_echo))}});
  out["volumes"] = Json::array();
  for (std::size_t i = 0; i < from.coordinations.size(); ++i)
    out["volumes"].push_back(volume_json(from, from.config.volumes[i], *from.coordinations[i]));
  // What a reason quotes (a file's name) need not be UTF-8.
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Expected<std::string> status_text(const std::string& json) {
  try {
    return text_from(Json::parse(json));
  } catch (const Json::exception& wrong) {
    return Error{Errc::corrupt, std::string{"csvd's answer is not a status: "} + wrong.what()};
  }
}

}  // namespace csv::admin
