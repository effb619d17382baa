#include "coordinator/admin/status.h"

#include <signal.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "coordinator/admin/cluster_requests.h"
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
          {"stale_commits", c.stale_commits},
          {"reads", c.reads},
          {"read_us", c.read_us},
          {"writes", c.writes},
          {"write_us", c.write_us}};
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
                        {"watched", one.watched},
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
          {"unwatches", status.unwatches},
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

Json tls_json(const Clock& clock, const protocol::TlsIdentity* identity) {
  if (identity == nullptr)
    return {{"mode", "off"},     {"subject", ""},     {"fingerprint", ""},
            {"valid_until", ""}, {"expires_in_s", 0}, {"trouble", ""}};
  constexpr std::int64_t kSecond = 1'000'000'000;
  const auto& own = identity->certificate();
  auto until = identity->valid_until();
  return {
      {"mode", "required"},
      {"subject", own.subject},
      {"fingerprint", own.fingerprint},
      {"valid_until", protocol::date_text(until)},
      {"expires_in_s",
       (static_cast<std::int64_t>(until) - static_cast<std::int64_t>(clock.wall_now())) / kSecond},
      {"trouble", identity->trouble()}};
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
          peer.incarnation == 0 ? Json{} : Json(seconds_since(from.clock, peer.last_echo))},
         {"trouble", peer.trouble}});
  out["voting"] =
      from.voting == nullptr
          ? Json{}
          : Json::parse(cluster_json(*from.voting, from.config.node, from.clock, from.loss));
  out["tls"] = tls_json(from.clock, from.identity);
  out["watchdog"] = from.watchdog == nullptr
                        ? Json{}
                        : Json{{"device", from.config.watchdog},
                               {"timeout_s", from.watchdog->timeout / std::chrono::seconds{1}},
                               {"petted_ago_s", seconds_since(from.clock, from.watchdog->petted)},
                               {"withheld", from.watchdog->withheld}};
  out["volumes"] = Json::array();
  for (std::size_t i = 0; i < from.coordinations.size(); ++i)
    out["volumes"].push_back(volume_json(from, from.config.volumes[i], *from.coordinations[i]));
  // What a reason quotes (a file's name) need not be UTF-8.
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace csv::admin
