#include "coordinator/cluster/corosync_conf.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <set>

#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

constexpr std::size_t kMaxNodes = 63;  // NodeId
constexpr std::size_t kMaxLinks = 8;   // kronosnet
constexpr std::size_t kMaxName = 63;

bool is_name(const std::string& text) {
  auto fits = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return !text.empty() && text.size() <= kMaxName && std::all_of(text.begin(), text.end(), fits);
}

bool is_address(const std::string& text) {
  std::array<unsigned char, sizeof(in6_addr)> binary{};
  return ::inet_pton(AF_INET, text.c_str(), binary.data()) == 1 ||
         ::inet_pton(AF_INET6, text.c_str(), binary.data()) == 1;
}

Error refused(std::string why) { return {Errc::refused, "corosync.conf: " + std::move(why)}; }

Expected<void> check(const CorosyncConf& conf) {
  if (!is_name(conf.cluster))
    return refused("\"" + conf.cluster + "\" is no name for a cluster (letters, digits, - _ .)");
  if (conf.nodes.empty()) return refused("no nodes");
  if (conf.nodes.size() > kMaxNodes) return refused("more than 63 nodes");
  auto links = conf.nodes.front().addresses.size();
  if (links == 0 || links > kMaxLinks)
    return refused(conf.nodes.front().name + " has " + std::to_string(links) +
                   " addresses: 1 to 8, one for each link");
  std::set<NodeId> ids;
  std::set<std::string> names, addresses;
  for (const auto& node : conf.nodes) {
    auto number = std::to_string(raw(node.id));
    if (raw(node.id) < 1 || raw(node.id) > kMaxNodes)
      return refused("node number " + number + ": 1 to 63");
    if (!is_name(node.name)) return refused("\"" + node.name + "\" is no name for a node");
    if (!ids.insert(node.id).second) return refused("two nodes have the number " + number);
    if (!names.insert(node.name).second) return refused("two nodes are called " + node.name);
    if (node.addresses.size() != links)
      return refused(node.name + " has " + std::to_string(node.addresses.size()) + " addresses, " +
                     conf.nodes.front().name + " has " + std::to_string(links) +
                     ": as many links on every node");
    for (const auto& address : node.addresses) {
      if (!is_address(address))
        return refused("\"" + address + "\" of " + node.name + " is no numeric address");
      if (!addresses.insert(address).second)
        return refused("the address " + address + " stands twice");
    }
  }
  if (auto good = check_heartbeat(conf.heartbeat); !good) return refused(good.error().message());
  if (conf.device_sync_timeout < 500ms || conf.device_timeout < 2 * conf.device_sync_timeout)
    return refused(
        "the quorum device's timeouts: 0.5 s or more for a change of nodes, and twice that between "
        "votes");
  return {};
}

}  // namespace

Expected<void> check_heartbeat(const Heartbeat& heartbeat, const LeaseTiming& timing) {
  auto token = heartbeat.delay * heartbeat.threshold;
  auto longest = (timing.term - kSync) * 10 / 22;
  if (heartbeat.delay < 50ms || heartbeat.threshold < 3 || heartbeat.threshold > 25)
    return Error{Errc::refused, "heartbeats: every 50 ms or more, 3 to 25 of them missed"};
  if (token < 500ms || gone_after(heartbeat) >= timing.term)
    return Error{
        Errc::refused,
        fmt::format("heartbeats: {} ms × {} is {} ms until a node is missed; 500 to {} ms are "
                    "possible, as the others have to agree on its loss within the {} ms that a "
                    "lease runs",
                    heartbeat.delay / 1ms, heartbeat.threshold, token / 1ms, longest / 1ms,
                    timing.term / 1ms)};
  return {};
}

Expected<std::string> render(const CorosyncConf& conf) {
  CSV_TRY(check(conf));
  auto links = conf.nodes.front().addresses.size();
  auto token = conf.heartbeat.delay * conf.heartbeat.threshold;
  auto ms = [](Duration time) { return time / 1ms; };
  std::string out;
  auto add = [&out]<typename... Args>(fmt::format_string<Args...> text, Args&&... args) {
    out += fmt::format(text, std::forward<Args>(args)...);
  };
  add("# Written by csvfs. Changes here are lost with the next change of the cluster.\n"
      "totem {{\n"
      "  version: 2\n"
      "  cluster_name: {}\n"
      "  config_version: {}\n"
      "  transport: knet\n"
      "  crypto_cipher: aes256\n"
      "  crypto_hash: sha256\n"
      "  link_mode: passive\n",
      conf.cluster, conf.version);
  // What was asked for holds for any number of nodes: nothing is added for each.
  add("  token: {}\n"
      "  token_coefficient: 0\n"
      "  token_retransmits_before_loss_const: {}\n",
      ms(token), conf.heartbeat.threshold);
  // A dead link has to be left within half a token's time (Corosync's own figures take three
  // quarters): what is lost until then is sent again, and nobody loses a node for a link.
  for (std::size_t link = 0; link < links; ++link)
    add("  interface {{\n"
        "    linknumber: {}\n"
        "    knet_link_priority: {}\n"
        "    knet_ping_interval: {}\n"
        "    knet_ping_timeout: {}\n"
        "  }}\n",
        link, links - link, ms(token / 10), ms(token * 4 / 10));
  add("}}\n"
      "nodelist {{\n");
  for (const auto& node : conf.nodes) {
    add("  node {{\n"
        "    nodeid: {}\n"
        "    name: {}\n",
        raw(node.id), node.name);
    for (std::size_t link = 0; link < links; ++link)
      add("    ring{}_addr: {}\n", link, node.addresses[link]);
    add("    quorum_votes: 1\n"
        "  }}\n");
  }
  add("}}\n"
      "quorum {{\n"
      "  provider: corosync_votequorum\n");
  // A node alone is its own majority; a device without votes is none.
  if (conf.nodes.size() > 1)
    add("  device {{\n"
        "    model: csvfs\n"
        "    votes: {}\n"
        "    timeout: {}\n"
        "    sync_timeout: {}\n"
        "  }}\n",
        conf.nodes.size() - 1, ms(conf.device_timeout), ms(conf.device_sync_timeout));
  add("}}\n"
      "logging {{\n"
      "  to_stderr: no\n"
      "  to_syslog: yes\n"
      "  to_logfile: yes\n"
      "  logfile: {}\n"
      "  timestamp: hires\n"
      "}}\n",
      conf.log_file);
  return out;
}

}  // namespace csv::cluster
