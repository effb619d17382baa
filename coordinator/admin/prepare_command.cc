#include "coordinator/admin/prepare_command.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>

#include "coordinator/admin/files.h"
#include "coordinator/cluster/configuration_store.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

/// As corosync-keygen makes it.
constexpr std::size_t kKeyBytes = 256;
constexpr std::string_view kOurs = "# Written by csvfs.";

ExitCode fail(const Terminal& terminal, const Error& why, ExitCode code = ExitCode::failed) {
  terminal.note("csvctl: " + why.message());
  return code;
}

/// "[2001:db8::1]:7400" without brackets and port.
std::string address_of(const std::string& endpoint) {
  auto address = endpoint.substr(0, endpoint.rfind(':'));
  if (address.starts_with('[')) address = address.substr(1, address.size() - 2);
  return address;
}

/// What stands behind "config_version:"; 0 where there is none.
unsigned version_of(std::string_view text) {
  constexpr std::string_view kKey = "config_version:";
  auto at = text.find(kKey);
  if (at == std::string_view::npos) return 0;
  at = text.find_first_not_of(" \t", at + kKey.size());
  unsigned version = 0;
  if (at != std::string_view::npos)
    (void)std::from_chars(text.data() + at, text.data() + text.size(), version);
  return version;
}

Expected<std::string> new_key() {
  std::string key(kKeyBytes, '\0');
  auto got = ::getrandom(key.data(), key.size(), 0);
  if (got != static_cast<ssize_t>(key.size())) return errno_error(errno, "making a key");
  return key;
}

/// Whether all that would be lost may be.
bool may_replace(const PrepareRequest& request, const std::string& conf, const std::string& key,
                 Terminal& terminal) {
  if (request.yes) return true;
  if (file_exists(conf)) {
    auto there = read_whole(conf);
    if (!there || !written_by_csvfs(*there)) {
      if (!terminal.may_ask())
        terminal.note("csvctl: " + conf + " was not written by csvctl; --yes replaces it");
      if (!terminal.confirm(conf + " was not written by csvctl. Replace it?")) return false;
    }
  }
  if (!request.new_key || !file_exists(key)) return true;
  if (!terminal.may_ask())
    terminal.note("csvctl: there is a key already, " + key +
                  ": a node with a new one reaches none that has the old one; --yes replaces it");
  return terminal.confirm("There is a key already, " + key +
                          ": a node with a new one reaches none that has the old one. Replace it?");
}

}  // namespace

cluster::CorosyncConf corosync_of(const Config& config) {
  cluster::CorosyncConf out;
  out.cluster = fmt::format("csvfs-{}", config.cluster);
  auto add = [&out](NodeId id, const std::string& name, const std::string& endpoint,
                    const std::vector<std::string>& links) {
    out.nodes.push_back(
        {id, name, links.empty() ? std::vector<std::string>{address_of(endpoint)} : links});
  };
  add(config.node, config.node_name, config.listen, config.links);
  for (const auto& peer : config.peers) add(peer.id, peer.name, peer.address, peer.links);
  std::sort(out.nodes.begin(), out.nodes.end(),
            [](const auto& a, const auto& b) { return raw(a.id) < raw(b.id); });
  return out;
}

std::vector<std::string> apply(const cluster::Configuration& decided, NodeId node,
                               cluster::CorosyncConf& conf) {
  conf.heartbeat = cluster::heartbeat_of(decided.heartbeat);
  std::vector<std::string> out;
  if (decided.nodes.count(node) == 0) return out;
  for (const auto& [id, record] : decided.nodes) {
    auto known = std::find_if(conf.nodes.begin(), conf.nodes.end(),
                              [id = id](const auto& each) { return each.id == id; });
    if (known == conf.nodes.end())
      known = conf.nodes.insert(known, {id, record.name, {address_of(record.address)}});
    known->name = record.name;
    if (!record.links.empty()) known->addresses = record.links;
  }
  std::sort(conf.nodes.begin(), conf.nodes.end(),
            [](const auto& a, const auto& b) { return raw(a.id) < raw(b.id); });
  std::erase_if(conf.nodes, [&](const auto& each) {
    bool gone = decided.nodes.count(each.id) == 0;
    if (gone) out.push_back(each.name);
    return gone;
  });
  return out;
}

bool written_by_csvfs(const std::string& conf) { return conf.starts_with(kOurs); }

Expected<std::string> render_after(cluster::CorosyncConf made, const std::string& there) {
  auto before = version_of(there);
  made.version = std::max(before, 1u);
  auto same = CSV_TRY(cluster::render(made));
  if (before == 0 || same == there) return same;
  ++made.version;
  return cluster::render(made);
}

ExitCode prepare(const PrepareRequest& request, Terminal& terminal) {
  auto config = load_config(request.config_file);
  if (!config) return fail(terminal, config.error(), ExitCode::usage);
  auto conf = request.folder + "/corosync.conf", key = request.folder + "/authkey";
  auto there = file_exists(conf) ? read_whole(conf) : Expected<std::string>{std::string{}};
  if (!there) return fail(terminal, there.error());
  auto wanted = corosync_of(*config);
  // What the cluster has been told, if this node knows it.
  if (auto kept = cluster::ConfigurationFiles::read(config->state_dir + "/cluster");
      kept && kept->kept.configuration)
    for (const auto& name : apply(*kept->kept.configuration, config->node, wanted))
      terminal.note(name + " is left out: it is in " + request.config_file +
                    ", but is no node of the cluster. One that is to join comes into the "
                    "cluster's configuration first (csvctl cluster config import)");
  auto text = render_after(std::move(wanted), *there);
  if (!text)
    return fail(terminal, text.error().within("from " + request.config_file), ExitCode::usage);
  if (request.dry_run) {
    terminal.out(*text);
    return ExitCode::done;
  }
  if (!may_replace(request, conf, key, terminal)) {
    terminal.note("Nothing was written.");
    return ExitCode::not_confirmed;
  }
  std::error_code error;
  std::filesystem::create_directories(request.folder, error);
  if (error)
    return fail(terminal, Error{error, "making " + request.folder + ": " + error.message()});
  if (request.new_key) {
    auto made = new_key();
    auto written = made ? replace_file(key, *made, 0400) : Expected<void>{made.error()};
    if (!written) return fail(terminal, written.error());
    terminal.out("Made " + key + ". Every node needs this one: carry it to " + request.folder +
                 " of the others, and keep it secret.\n");
  }
  if (*text == *there) {
    terminal.out(conf + " is as it has to be.\n");
  } else {
    if (auto written = replace_file(conf, *text, 0644); !written)
      return fail(terminal, written.error());
    terminal.out("Wrote " + conf + ". Once it is the same on every node: " +
                 (there->empty() ? "systemctl restart corosync, on all"
                                 : "corosync-cfgtool -R, on one of them") +
                 "\n");
  }
  if (!file_exists(key))
    terminal.note("There is no " + key +
                  " yet: make it on one node with --new-key, and carry it to the others.");
  if (!config->corosync)
    terminal.note(request.config_file +
                  " has no engine = \"corosync\" below [cluster] yet: csvd does not use it.");
  return ExitCode::done;
}

}  // namespace csv::admin
