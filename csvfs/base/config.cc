#include "csvfs/base/config.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

#include "csvfs/base/toml_section.h"

namespace csv {
namespace {

bool any_text(const std::string& text) { return !text.empty(); }

bool is_lun(const std::string& text) {
  return (text.starts_with("iscsi://") && text.size() > 8) || text.starts_with("/dev/") ||
         (text.starts_with("file:") && text.size() > 5);
}

bool is_cache_mode(const std::string& text) { return text == "ask" || text == "safe"; }

bool is_engine(const std::string& text) { return text == "standalone" || text == "corosync"; }

bool is_response(const std::string& text) { return text == "stop" || text == "reboot"; }

bool is_tls_mode(const std::string& text) { return text == "required" || text == "off"; }

bool is_iscsi_name(const std::string& text) {
  return text.size() <= 223 &&
         (text.starts_with("iqn.") || text.starts_with("eui.") || text.starts_with("naa.")) &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789.:-") == std::string::npos;
}

Expected<VolumeConfig> read_volume(const toml::table& table, const std::string& file) {
  TomlSection in{table, "[[volume]]", file};
  VolumeConfig out;
  out.name = CSV_TRY(in.text("name", kNameText, is_name));
  out.lun = CSV_TRY(in.text(
      "lun", "a LUN: \"iscsi://HOST:PORT/TARGET/LUN\", \"/dev/…\" or \"file:PATH\"", is_lun));
  out.sessions = static_cast<int>(CSV_TRY(in.integer("sessions", 1, 8, 2)));
  out.coordinate = CSV_TRY(in.boolean("coordinate", false));
  out.chap_user = CSV_TRY(in.text("chap_user", "a user's name", any_text, ""));
  out.chap_secret_file = CSV_TRY(in.text("chap_secret_file", "a file's path", any_text, ""));
  out.header_digest = CSV_TRY(in.boolean("header_digest", false));
  out.data_digest = CSV_TRY(in.boolean("data_digest", false));
  out.write_cache_safe =
      CSV_TRY(in.text("write_cache", "\"ask\" or \"safe\"", is_cache_mode, "ask")) == "safe";
  out.catalog_copy_hours = static_cast<int>(CSV_TRY(in.integer("catalog_copy_hours", 0, 8760, 24)));
  out.coordinator_memory_mib =
      static_cast<int>(CSV_TRY(in.integer("coordinator_memory_mib", 32, 1 << 20, 320)));
  out.mount_memory_mib = static_cast<int>(CSV_TRY(in.integer("mount_memory_mib", 8, 1 << 20, 96)));
  CSV_TRY(in.nothing_else());
  if (out.chap_user.empty() != out.chap_secret_file.empty())
    return in.clash(out.chap_user.empty() ? "chap_secret_file" : "chap_user",
                    "chap_user and chap_secret_file belong together");
  return out;
}

Expected<PeerConfig> read_peer(const toml::table& table, const std::string& file) {
  TomlSection in{table, "[[peer]]", file};
  PeerConfig out;
  out.id = NodeId{static_cast<std::uint8_t>(CSV_TRY(in.integer("id", 1, 63)))};
  out.name = CSV_TRY(in.text("name", kNameText, is_name));
  out.address = CSV_TRY(in.text("address", kEndpointText, is_endpoint));
  out.links = CSV_TRY(in.texts("links", kAddressText, is_numeric_address));
  CSV_TRY(in.nothing_else());
  return out;
}

bool is_loopback(const std::string& endpoint) {
  return endpoint.starts_with("127.") || endpoint.starts_with("[::1]:");
}

/// Without TLS whoever reaches a node is whoever it says: nobody gets that without saying it twice.
Expected<TlsConfig> read_tls(const toml::table& table, const std::string& file,
                             const Config& rest) {
  TomlSection in{table, "[tls]", file};
  TlsConfig out;
  out.off = CSV_TRY(in.text("mode", "\"required\" or \"off\"", is_tls_mode, "required")) == "off";
  bool trusted = CSV_TRY(in.boolean("trusted_network", false));
  out.ca = CSV_TRY(in.text("ca", "a file's path", any_text, out.ca));
  out.certificate = CSV_TRY(in.text("certificate", "a file's path", any_text, out.certificate));
  out.key = CSV_TRY(in.text("key", "a file's path", any_text, out.key));
  CSV_TRY(in.nothing_else());
  bool alone = is_loopback(rest.listen);
  for (const auto& peer : rest.peers) alone = alone && is_loopback(peer.address);
  if (out.off && !alone && !trusted)
    return in.clash("mode",
                    "without TLS whoever reaches " + rest.listen +
                        " can read, change and destroy every volume. Leave it out, or if really "
                        "nobody else is on that network, say trusted_network = true as well");
  if (trusted && !out.off) return in.clash("trusted_network", "it belongs to mode = \"off\"");
  return out;
}

Expected<Config> read(const toml::table& root, const std::string& file) {
  for (const auto& [key, node] : root)
    if (key != "cluster" && key != "node" && key != "peer" && key != "volume" && key != "tls" &&
        key != "admin")
      return Error{Errc::refused, toml_place(key.source(), file) + "unknown key '" +
                                      std::string{key.str()} +
                                      "'; expected [cluster], [node], [[peer]], [[volume]], [tls] "
                                      "or [admin]"};
  Config out;
  TomlSection cluster{*CSV_TRY(toml_table(root, "cluster", file)), "[cluster]", file};
  out.cluster = static_cast<std::uint16_t>(CSV_TRY(cluster.integer("id", 1, 65535)));
  out.corosync = CSV_TRY(cluster.text("engine", "\"standalone\" or \"corosync\"", is_engine,
                                      "standalone")) == "corosync";
  out.isolation_addresses =
      CSV_TRY(cluster.texts("isolation_addresses", kAddressText, is_numeric_address));
  out.reboot_when_isolated = CSV_TRY(cluster.text("on_isolation", "\"stop\" or \"reboot\"",
                                                  is_response, "stop")) == "reboot";
  CSV_TRY(cluster.nothing_else());

  TomlSection node{*CSV_TRY(toml_table(root, "node", file)), "[node]", file};
  out.node = NodeId{static_cast<std::uint8_t>(CSV_TRY(node.integer("id", 1, 63)))};
  out.node_name = CSV_TRY(node.text("name", kNameText, is_name));
  out.listen = CSV_TRY(node.text("listen", kEndpointText, is_endpoint));
  out.initiator =
      CSV_TRY(node.text("initiator", "an iSCSI name, such as \"iqn.2026-01.org.example:node1\"",
                        is_iscsi_name, default_initiator(out.node_name)));
  auto is_absolute = [](const std::string& text) { return text.starts_with("/"); };
  out.state_dir = CSV_TRY(node.text("state_dir", "a folder's path", is_absolute, kStateDir));
  out.links = CSV_TRY(node.texts("links", kAddressText, is_numeric_address));
  auto is_device = [](const std::string& text) { return text.starts_with("/dev/"); };
  out.watchdog =
      CSV_TRY(node.text("watchdog", "a device, such as \"/dev/watchdog\"", is_device, ""));
  auto seconds =
      CSV_TRY(node.integer("watchdog_timeout_s", 1, kLongestWatchdog / 1s, kShortestWatchdog / 1s));
  out.watchdog_timeout = std::chrono::seconds{seconds};
  if (out.watchdog_timeout < kShortestWatchdog)
    return node.clash("watchdog_timeout_s",
                      "at least " + std::to_string(kShortestWatchdog / 1s) +
                          ": the membership lease runs 3 s, and one that lapses for a moment must "
                          "not reset the machine before its mounts have closed");
  if (out.watchdog.empty() && root["node"]["watchdog_timeout_s"])
    return node.clash("watchdog_timeout_s", "it belongs to watchdog, which is not there");
  out.hold_wake_latency = CSV_TRY(node.boolean("hold_wake_latency", true));
  CSV_TRY(node.nothing_else());

  std::set<NodeId> ids{out.node};
  std::set<std::string> names{out.node_name};
  for (const auto* table : CSV_TRY(toml_tables(root, "peer", file))) {
    auto peer = CSV_TRY(read_peer(*table, file));
    TomlSection in{*table, "[[peer]]", file};
    if (!ids.insert(peer.id).second)
      return in.clash("id", "node " + std::to_string(raw(peer.id)) + " is already configured");
    if (!names.insert(peer.name).second)
      return in.clash("name", "\"" + peer.name + "\" is already configured");
    auto links = [](const auto& of) { return std::max<std::size_t>(1, of.links.size()); };
    if (links(peer) != links(out))
      return in.clash("links", "every node has as many: [node] has " + std::to_string(links(out)) +
                                   ", this one " + std::to_string(links(peer)));
    out.peers.push_back(std::move(peer));
  }
  names.clear();
  for (const auto* table : CSV_TRY(toml_tables(root, "volume", file))) {
    auto volume = CSV_TRY(read_volume(*table, file));
    if (!names.insert(volume.name).second)
      return TomlSection{*table, "[[volume]]", file}.clash(
          "name", "\"" + volume.name + "\" is already configured");
    out.volumes.push_back(std::move(volume));
  }
  if (root.get("tls") != nullptr) {
    const auto* table = CSV_TRY(toml_table(root, "tls", file));
    out.tls = CSV_TRY(read_tls(*table, file, out));
  }
  if (root.get("admin") != nullptr) {
    TomlSection admin{*CSV_TRY(toml_table(root, "admin", file)), "[admin]", file};
    out.status_group = CSV_TRY(admin.text("status_group", "a group's name", is_name, ""));
    CSV_TRY(admin.nothing_else());
  }
  return out;
}

}  // namespace

Expected<Config> parse_config(std::string_view text, const std::string& file_name) {
  auto root = CSV_TRY(parse_toml(text, file_name));
  return read(root, file_name);
}

Expected<Config> load_config(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  if (!file) return errno_error(errno, "opening the configuration " + path);
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) return errno_error(EIO, "reading the configuration " + path);
  return parse_config(text.str(), path);
}

Expected<std::string> read_secret(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return errno_error(errno, "opening the secret " + path);
  struct Close {
    int fd;
    ~Close() { ::close(fd); }
  } close{fd};
  struct stat status {};
  if (::fstat(fd, &status) != 0) return errno_error(errno, "examining the secret " + path);
  if (!S_ISREG(status.st_mode))
    return Error{Errc::refused, "the secret " + path + " is not a regular file"};
  if ((status.st_mode & 077) != 0 || (status.st_uid != 0 && status.st_uid != ::geteuid()))
    return Error{Errc::refused,
                 "the secret " + path + " is open to others: make it root's own (chmod 600)"};
  std::string text(4096, '\0');
  auto length = ::read(fd, text.data(), text.size());
  if (length < 0) return errno_error(errno, "reading the secret " + path);
  text.resize(static_cast<std::size_t>(length));
  text.resize(std::min(text.find_first_of("\r\n"), text.size()));
  if (text.empty()) return Error{Errc::refused, "the secret " + path + " is empty"};
  return text;
}

std::string default_initiator(std::string_view node_name) {
  std::string out{"iqn.2026-01.org.csvfs:"};
  for (char c : node_name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    out += c == '_' ? '-' : c;  // not in the alphabet of iSCSI names
  }
  return out;
}

}  // namespace csv
