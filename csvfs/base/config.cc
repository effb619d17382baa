#include "csvfs/base/config.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

namespace csv {
namespace {

std::string place(const toml::source_region& region, const std::string& file) {
  return file + ":" + std::to_string(region.begin.line) + ":" +
         std::to_string(region.begin.column) + ": ";
}

std::string_view type_name(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table: return "a table";
    case toml::node_type::array: return "an array";
    case toml::node_type::string: return "a text";
    case toml::node_type::integer: return "an integer";
    case toml::node_type::floating_point: return "a number with a fraction";
    case toml::node_type::boolean: return "a boolean";
    default: return "a date or time";
  }
}

/// One table of the file. Reads its keys by name and afterwards knows which nobody asked for.
class Section {
 public:
  Section(const toml::table& table, std::string name, const std::string& file)
      : table_{&table}, name_{std::move(name)}, file_{&file} {}

  Expected<std::int64_t> integer(std::string_view key, std::int64_t low, std::int64_t high,
                                 std::optional<std::int64_t> otherwise = {}) {
    auto what = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
    const auto* node = find(key);
    if (node == nullptr) {
      if (otherwise) return *otherwise;
      return missing(key, what);
    }
    if (!node->is_integer()) return wrong(*node, key, what, std::string{type_name(*node)});
    auto value = node->as_integer()->get();
    if (value < low || value > high) return wrong(*node, key, what, std::to_string(value));
    return value;
  }

  Expected<bool> boolean(std::string_view key, bool otherwise) {
    const auto* node = find(key);
    if (node == nullptr) return otherwise;
    if (!node->is_boolean())
      return wrong(*node, key, "true or false", std::string{type_name(*node)});
    return node->as_boolean()->get();
  }

  /// `good` says whether a text will do, `what` in words what does.
  Expected<std::string> text(std::string_view key, const std::string& what,
                             bool (*good)(const std::string&),
                             std::optional<std::string> otherwise = {}) {
    const auto* node = find(key);
    if (node == nullptr) {
      if (otherwise) return *otherwise;
      return missing(key, what);
    }
    if (!node->is_string()) return wrong(*node, key, what, std::string{type_name(*node)});
    const auto& value = node->as_string()->get();
    if (!good(value)) return wrong(*node, key, what, "\"" + value + "\"");
    return value;
  }

  /// The error of a value that is fine by itself: "FILE:LINE:COLUMN: [name] key: why".
  [[nodiscard]] Error clash(std::string_view key, const std::string& why) const {
    const auto* node = table_->get(key);
    return Error{Errc::refused, place(node ? node->source() : table_->source(), *file_) + name_ +
                                    " " + std::string{key} + ": " + why};
  }

  [[nodiscard]] Expected<void> nothing_else() const {
    for (const auto& [key, node] : *table_) {
      if (known_.count(std::string{key.str()}) > 0) continue;
      std::string expected;
      for (const auto& each : known_) expected += (expected.empty() ? "" : ", ") + each;
      return Error{Errc::refused, place(key.source(), *file_) + name_ + ": unknown key '" +
                                      std::string{key.str()} + "'; expected one of: " + expected};
    }
    return {};
  }

 private:
  const toml::node* find(std::string_view key) {
    known_.emplace(key);
    return table_->get(key);
  }
  Error missing(std::string_view key, const std::string& what) const {
    return Error{Errc::refused, place(table_->source(), *file_) + name_ + ": missing '" +
                                    std::string{key} + "', " + what};
  }
  Error wrong(const toml::node& node, std::string_view key, const std::string& what,
              const std::string& found) const {
    return Error{Errc::refused, place(node.source(), *file_) + name_ + " " + std::string{key} +
                                    ": expected " + what + ", found " + found};
  }

  const toml::table* table_;
  std::string name_;
  const std::string* file_;
  std::set<std::string> known_;
};

bool any_text(const std::string& text) { return !text.empty(); }

bool is_name(const std::string& text) {
  if (text.empty() || text.size() > 63 || text.front() == '.' || text.front() == '-') return false;
  return text.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
         std::string::npos;
}

bool is_endpoint(const std::string& text) {
  auto colon = text.rfind(':');
  if (colon == std::string::npos || colon + 1 == text.size()) return false;
  unsigned port = 0;
  auto [stop, error] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), port);
  if (error != std::errc{} || stop != text.data() + text.size() || port == 0 || port > 65535)
    return false;
  auto address = text.substr(0, colon);
  in6_addr into{};
  if (address.size() > 2 && address.front() == '[' && address.back() == ']')
    return ::inet_pton(AF_INET6, address.substr(1, address.size() - 2).c_str(), &into) == 1;
  return ::inet_pton(AF_INET, address.c_str(), &into) == 1;
}

bool is_lun(const std::string& text) {
  return (text.starts_with("iscsi://") && text.size() > 8) || text.starts_with("/dev/") ||
         (text.starts_with("file:") && text.size() > 5);
}

bool is_cache_mode(const std::string& text) { return text == "ask" || text == "safe"; }

bool is_engine(const std::string& text) { return text == "standalone" || text == "corosync"; }

bool is_tls_mode(const std::string& text) { return text == "required" || text == "off"; }

bool is_iscsi_name(const std::string& text) {
  return text.size() <= 223 &&
         (text.starts_with("iqn.") || text.starts_with("eui.") || text.starts_with("naa.")) &&
         text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789.:-") == std::string::npos;
}

const std::string kName = "a name: 1 to 63 letters, digits, '.', '_' or '-'";
const std::string kEndpoint = "a numeric address and port, such as \"192.0.2.1:7400\"";

Expected<VolumeConfig> read_volume(const toml::table& table, const std::string& file) {
  Section in{table, "[[volume]]", file};
  VolumeConfig out;
  out.name = CSV_TRY(in.text("name", kName, is_name));
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
  CSV_TRY(in.nothing_else());
  if (out.chap_user.empty() != out.chap_secret_file.empty())
    return in.clash(out.chap_user.empty() ? "chap_secret_file" : "chap_user",
                    "chap_user and chap_secret_file belong together");
  return out;
}

Expected<PeerConfig> read_peer(const toml::table& table, const std::string& file) {
  Section in{table, "[[peer]]", file};
  PeerConfig out;
  out.id = NodeId{static_cast<std::uint8_t>(CSV_TRY(in.integer("id", 1, 63)))};
  out.name = CSV_TRY(in.text("name", kName, is_name));
  out.address = CSV_TRY(in.text("address", kEndpoint, is_endpoint));
  CSV_TRY(in.nothing_else());
  return out;
}

bool is_loopback(const std::string& endpoint) {
  return endpoint.starts_with("127.") || endpoint.starts_with("[::1]:");
}

/// Without TLS whoever reaches a node is whoever it says: nobody gets that without saying it twice.
Expected<TlsConfig> read_tls(const toml::table& table, const std::string& file,
                             const Config& rest) {
  Section in{table, "[tls]", file};
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

/// The tables of [[key]], none where there are none.
Expected<std::vector<const toml::table*>> tables(const toml::table& root, std::string_view key,
                                                 const std::string& file) {
  std::vector<const toml::table*> out;
  const auto* node = root.get(key);
  if (node == nullptr) return out;
  Error wrong{Errc::refused, place(node->source(), file) + "expected [[" + std::string{key} +
                                 "]] tables, found " + std::string{type_name(*node)}};
  if (!node->is_array()) return wrong;
  for (const auto& each : *node->as_array()) {
    if (!each.is_table()) return wrong;
    out.push_back(each.as_table());
  }
  return out;
}

Expected<const toml::table*> required_table(const toml::table& root, std::string_view key,
                                            const std::string& file) {
  const auto* node = root.get(key);
  if (node == nullptr)
    return Error{Errc::refused, file + ": missing table [" + std::string{key} + "]"};
  if (!node->is_table())
    return Error{Errc::refused, place(node->source(), file) + "expected a table [" +
                                    std::string{key} + "], found " + std::string{type_name(*node)}};
  return node->as_table();
}

Expected<Config> read(const toml::table& root, const std::string& file) {
  for (const auto& [key, node] : root)
    if (key != "cluster" && key != "node" && key != "peer" && key != "volume" && key != "tls" &&
        key != "admin")
      return Error{Errc::refused, place(key.source(), file) + "unknown key '" +
                                      std::string{key.str()} +
                                      "'; expected [cluster], [node], [[peer]], [[volume]], [tls] "
                                      "or [admin]"};
  Config out;
  Section cluster{*CSV_TRY(required_table(root, "cluster", file)), "[cluster]", file};
  out.cluster = static_cast<std::uint16_t>(CSV_TRY(cluster.integer("id", 1, 65535)));
  out.corosync = CSV_TRY(cluster.text("engine", "\"standalone\" or \"corosync\"", is_engine,
                                      "standalone")) == "corosync";
  CSV_TRY(cluster.nothing_else());

  Section node{*CSV_TRY(required_table(root, "node", file)), "[node]", file};
  out.node = NodeId{static_cast<std::uint8_t>(CSV_TRY(node.integer("id", 1, 63)))};
  out.node_name = CSV_TRY(node.text("name", kName, is_name));
  out.listen = CSV_TRY(node.text("listen", kEndpoint, is_endpoint));
  out.initiator =
      CSV_TRY(node.text("initiator", "an iSCSI name, such as \"iqn.2026-01.org.example:node1\"",
                        is_iscsi_name, default_initiator(out.node_name)));
  auto is_absolute = [](const std::string& text) { return text.starts_with("/"); };
  out.state_dir = CSV_TRY(node.text("state_dir", "a folder's path", is_absolute, kStateDir));
  CSV_TRY(node.nothing_else());

  std::set<NodeId> ids{out.node};
  std::set<std::string> names{out.node_name};
  for (const auto* table : CSV_TRY(tables(root, "peer", file))) {
    auto peer = CSV_TRY(read_peer(*table, file));
    Section in{*table, "[[peer]]", file};
    if (!ids.insert(peer.id).second)
      return in.clash("id", "node " + std::to_string(raw(peer.id)) + " is already configured");
    if (!names.insert(peer.name).second)
      return in.clash("name", "\"" + peer.name + "\" is already configured");
    out.peers.push_back(std::move(peer));
  }
  names.clear();
  for (const auto* table : CSV_TRY(tables(root, "volume", file))) {
    auto volume = CSV_TRY(read_volume(*table, file));
    if (!names.insert(volume.name).second)
      return Section{*table, "[[volume]]", file}.clash(
          "name", "\"" + volume.name + "\" is already configured");
    out.volumes.push_back(std::move(volume));
  }
  if (root.get("tls") != nullptr) {
    const auto* table = CSV_TRY(required_table(root, "tls", file));
    out.tls = CSV_TRY(read_tls(*table, file, out));
  }
  if (root.get("admin") != nullptr) {
    Section admin{*CSV_TRY(required_table(root, "admin", file)), "[admin]", file};
    out.status_group = CSV_TRY(admin.text("status_group", "a group's name", is_name, ""));
    CSV_TRY(admin.nothing_else());
  }
  return out;
}

}  // namespace

Expected<Config> parse_config(std::string_view text, const std::string& file_name) {
  try {
    auto root = toml::parse(text, file_name);
    return read(root, file_name);
  } catch (const toml::parse_error& wrong) {
    return Error{Errc::refused,
                 place(wrong.source(), file_name) + std::string{wrong.description()}};
  }
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
