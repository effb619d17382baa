#include "coordinator/admin/join_commands.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/cluster_requests.h"
#include "coordinator/admin/files.h"
#include "coordinator/admin/prepare_command.h"
#include "coordinator/cluster/configuration_text.h"
#include "coordinator/protocol/certificate.h"
#include "coordinator/protocol/join_channel.h"

namespace csv::admin {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

/// Of a step on either side; a change of the cluster is one.
constexpr Duration kStep = 15s;
constexpr std::int64_t kSecond = 1'000'000'000, kDay = 24 * 3600 * kSecond;
constexpr int kCertificateDays = 365;

Error refused(std::string why) { return {Errc::refused, std::move(why)}; }

ExitCode fail(const Terminal& terminal, const Error& why) {
  terminal.note("csvctl: " + why.message());
  return ExitCode::failed;
}

/// As TOML and JSON both write it.
std::string quoted(const std::string& text) { return Json(text).dump(); }

std::string list_of(const std::vector<std::string>& texts) {
  std::string out;
  for (const auto& each : texts) out += (out.empty() ? "" : ", ") + quoted(each);
  return "[" + out + "]";
}

Expected<Json> ask(const std::string& socket, const Json& request) {
  auto answer = CSV_TRY(ask_csvd(socket, request.dump(), kStep));
  auto parsed = Json::parse(answer, nullptr, false);
  if (!parsed.is_object()) return Error{Errc::corrupt, "csvd's answer is not JSON"};
  if (parsed.value("unknown", false))
    return Error{Errc::unknown_outcome, parsed.value("error", "csvd does not know")};
  if (!parsed.value("ok", false)) return refused(parsed.value("error", "csvd refused"));
  return parsed;
}

std::string ok_text(const Expected<void>& result) {
  Json out{{"ok", static_cast<bool>(result)}};
  if (!result) out["error"] = result.error().message();
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Expected<void> ok_from(const std::string& text) {
  auto read = Json::parse(text, nullptr, false);
  if (!read.is_object() || !read.contains("ok") || !read["ok"].is_boolean())
    return Error{Errc::corrupt, "the other side's answer makes no sense"};
  if (read["ok"].get<bool>()) return {};
  auto why = read.find("error");
  return refused(why != read.end() && why->is_string()
                     ? protocol::printable(why->get<std::string>())
                     : "the other side refuses it, without a reason");
}

AdminRequest addition(const TokenRequest& request) {
  AdminRequest out;
  out.command = "node_add";
  out.node = std::to_string(request.node);
  out.value = fmt::format("name={} address={}", request.name, request.address);
  if (!request.links.empty()) out.value += fmt::format(" links={}", fmt::join(request.links, ","));
  return out;
}

/// All that the new node needs, from what this one has and the cluster says.
Expected<JoinBundle> make_bundle(const TokenRequest& request, const Config& config,
                                 const Clock& clock) {
  if (!config.corosync)
    return refused("the nodes of this cluster do not vote: [cluster] engine is \"standalone\"");
  if (config.tls.off)
    return refused("the nodes of this cluster have no certificates: [tls] mode is \"off\"");
  auto change = CSV_TRY(change_for(addition(request)));
  auto exported = CSV_TRY(ask(request.socket, {{"command", "config_export"}}));
  auto decided = CSV_TRY(cluster::from_toml(exported.value("text", ""), "the configuration"));
  NodeId id{static_cast<std::uint8_t>(request.node)};
  if (auto known = decided.nodes.find(id); known != decided.nodes.end())
    return refused(
        fmt::format("the cluster has a node {} already, {}", request.node, known->second.name));
  CSV_TRY(change(decided));

  auto conf = corosync_of(config);
  (void)apply(decided, config.node, conf);
  auto there = CSV_TRY(read_whole(request.corosync_folder + "/corosync.conf"));
  JoinBundle out;
  out.corosync = CSV_TRY(render_after(conf, there));
  out.corosync_key = CSV_TRY(read_whole(request.corosync_folder + "/authkey"));
  std::vector<PeerConfig> nodes;
  for (const auto& [each, record] : decided.nodes) {
    auto with = std::find_if(conf.nodes.begin(), conf.nodes.end(),
                             [each = each](const auto& one) { return one.id == each; });
    nodes.push_back({each, record.name, record.address, with->addresses});
  }
  out.config = config_for(id, request.address, config, nodes);

  protocol::KeyPair authority;
  auto certificate = read_whole(request.authority_folder + "/ca.crt");
  if (!certificate)
    return certificate.error().within("the cluster's CA, which signs the node's certificate");
  authority.certificate = *certificate;
  authority.key = CSV_TRY(read_whole(request.authority_folder + "/ca.key"));
  auto now = static_cast<std::int64_t>(clock.wall_now());
  auto made = CSV_TRY(protocol::issue_certificate(
      authority, id, request.name,
      {WallTime{now - 3600 * kSecond}, WallTime{now + kCertificateDays * kDay}}));
  out.authority = authority.certificate;
  out.certificate = made.certificate;
  out.key = made.key;
  return out;
}

Expected<protocol::JoinToken> make_token(const JoinBundle& bundle, const Config& config,
                                         const std::string& endpoint, int minutes,
                                         const Clock& clock) {
  protocol::JoinToken out;
  out.cluster = config.cluster;
  auto now = static_cast<std::int64_t>(clock.wall_now()) / kSecond;
  out.until = WallTime{(now + minutes * 60ll) * kSecond};
  out.endpoint = endpoint;
  auto got = ::getrandom(out.secret.data(), out.secret.size(), 0);
  if (got != static_cast<ssize_t>(out.secret.size())) return errno_error(errno, "making a secret");
  auto authority = CSV_TRY(protocol::describe_certificates(bundle.authority)).front();
  auto digest = CSV_TRY(protocol::from_hex(authority.fingerprint));
  if (digest.size() != out.authority.size()) return refused("the CA's certificate has no digest");
  std::memcpy(out.authority.data(), digest.data(), digest.size());
  return out;
}

/// What becomes of it once somebody came with the token.
Expected<void> hand_over(protocol::JoinChannel& channel, const JoinBundle& bundle,
                         const TokenRequest& request) {
  CSV_TRY(channel.send(to_text(bundle)));
  auto answer = CSV_TRY(channel.receive());
  CSV_TRY(ok_from(answer));
  auto wanted = addition(request);
  auto added = ask(request.socket,
                   {{"command", wanted.command}, {"node", wanted.node}, {"value", wanted.value}});
  // Only of a refusal it is known that it does not come into force later: else the new node is told
  // nothing, and keeps its files.
  if (!added && !(added.error() == Errc::refused))
    return added.error().within(
        "whether the cluster has taken it is not known (csvctl cluster "
        "status)");
  auto result = added ? Expected<void>{} : Expected<void>{added.error()};
  auto told = channel.send(ok_text(result));
  if (!result) return result;
  // It is a node now, whether it has heard it or not.
  (void)told;
  return {};
}

/// Why this machine cannot become a node; empty: it can.
std::string belongs_already(const JoinRequest& request) {
  for (const auto& file :
       {request.config_file, request.tls_folder + "/node.key", request.corosync_folder + "/authkey",
        request.state_dir + "/cluster/cluster-a", request.state_dir + "/cluster/cluster-b"})
    if (file_exists(file)) return file;
  auto conf = request.corosync_folder + "/corosync.conf";
  if (auto text = read_whole(conf); text && written_by_csvfs(*text)) return conf;
  return {};
}

/// Small files that are all written, or none: then those that were there are as they were.
class Files {
 public:
  ~Files() { (void)undo(); }
  /// Puts back what was there. Errors name the files that are not as they were.
  Expected<void> undo() {
    std::string left;
    for (const auto& [path, before, mode] : std::exchange(written_, {})) {
      std::error_code failed;
      if (before) {
        if (auto put_back = replace_file(path, *before, mode); !put_back)
          failed = std::make_error_code(std::errc::io_error);
      } else {
        fs::remove(path, failed);
      }
      if (failed) left += (left.empty() ? "" : ", ") + path;
    }
    if (left.empty()) return {};
    return Error{std::errc::io_error,
                 "these could not be put back as they were, and have to be "
                 "removed by hand before another attempt: " +
                     left};
  }
  Expected<void> write(const std::string& path, const std::string& text, mode_t mode) {
    auto folder = fs::path{path}.parent_path();
    std::error_code error;
    if (!fs::exists(folder, error)) {
      fs::create_directories(folder.parent_path(), error);
      if (::mkdir(folder.c_str(), mode == 0600 ? 0700 : 0755) != 0 && errno != EEXIST)
        return errno_error(errno, "making " + folder.string());
    }
    Written one{path, {}, mode};
    if (file_exists(path)) {
      one.before = CSV_TRY(read_whole(path));
      one.mode = static_cast<mode_t>(fs::status(path, error).permissions()) & 07777;
    }
    CSV_TRY(replace_file(path, text, mode));
    written_.push_back(std::move(one));
    return {};
  }
  void keep() { written_.clear(); }

 private:
  struct Written {
    std::string path;
    std::optional<std::string> before;
    mode_t mode = 0;
  };
  std::vector<Written> written_;
};

/// Ctrl-C and SIGTERM wait for its end.
class SignalsHeld {
 public:
  SignalsHeld() {
    sigset_t held;
    sigemptyset(&held);
    for (auto signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&held, signal);
    ::pthread_sigmask(SIG_BLOCK, &held, &before_);
  }
  SignalsHeld(const SignalsHeld&) = delete;
  SignalsHeld& operator=(const SignalsHeld&) = delete;
  ~SignalsHeld() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

Expected<void> write_all(const JoinBundle& bundle, const JoinRequest& request, Files& files) {
  CSV_TRY(files.write(request.tls_folder + "/node.key", bundle.key, 0600));
  CSV_TRY(files.write(request.tls_folder + "/node.crt", bundle.certificate, 0644));
  CSV_TRY(files.write(request.tls_folder + "/ca.crt", bundle.authority, 0644));
  CSV_TRY(files.write(request.corosync_folder + "/authkey", bundle.corosync_key, 0400));
  CSV_TRY(files.write(request.corosync_folder + "/corosync.conf", bundle.corosync, 0644));
  // Last: with it the machine is a node.
  return files.write(request.config_file, bundle.config, 0644);
}

}  // namespace

std::string config_for(NodeId id, const std::string& listen, const Config& like,
                       const std::vector<PeerConfig>& nodes) {
  std::string out = fmt::format(
      "# Written by csvctl cluster join; docs/configuration.md has all that may stand here.\n\n"
      "[cluster]\nid = {}\nengine = \"corosync\"\n",
      like.cluster);
  auto node = [&out](const PeerConfig& one, const char* table, const char* where,
                     const std::string& address) {
    out += fmt::format("\n{}\nid = {}\nname = {}\n{} = {}\nlinks = {}\n", table, raw(one.id),
                       quoted(one.name), where, quoted(address), list_of(one.links));
  };
  for (const auto& one : nodes)
    if (one.id == id) node(one, "[node]", "listen", listen);
  for (const auto& one : nodes)
    if (one.id != id) node(one, "[[peer]]", "address", one.address);
  for (const auto& volume : like.volumes) {
    if (!volume.chap_user.empty()) continue;
    out += fmt::format("\n[[volume]]\nname = {}\nlun = {}\nsessions = {}\n", quoted(volume.name),
                       quoted(volume.lun), volume.sessions);
    if (volume.header_digest) out += "header_digest = true\n";
    if (volume.data_digest) out += "data_digest = true\n";
    if (volume.write_cache_safe) out += "write_cache = \"safe\"\n";
    if (volume.catalog_copy_hours != VolumeConfig{}.catalog_copy_hours)
      out += fmt::format("catalog_copy_hours = {}\n", volume.catalog_copy_hours);
  }
  return out;
}

std::string to_text(const JoinBundle& bundle) {
  return Json{{"version", 1},
              {"config", bundle.config},
              {"corosync", bundle.corosync},
              {"corosync_key", protocol::to_hex(bundle.corosync_key)},
              {"authority", bundle.authority},
              {"certificate", bundle.certificate},
              {"key", bundle.key}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

Expected<JoinBundle> parse_join_bundle(const std::string& text, const protocol::JoinToken& token) {
  auto read = Json::parse(text, nullptr, false);
  auto wrong = [](const std::string& what) {
    return refused("what the cluster sent makes no sense: " + what);
  };
  if (!read.is_object()) return wrong("it is no JSON object");
  auto version = read.find("version");
  if (version == read.end() || *version != 1)
    return refused("the cluster has another version of csvfs: update the older of the two");
  JoinBundle out;
  std::string key;
  struct Field {
    const char* name;
    std::string* into;
  };
  for (auto [name, into] : {Field{"config", &out.config}, Field{"corosync", &out.corosync},
                            Field{"corosync_key", &key}, Field{"authority", &out.authority},
                            Field{"certificate", &out.certificate}, Field{"key", &out.key}}) {
    auto found = read.find(name);
    if (found == read.end() || !found->is_string()) return wrong(std::string{"no "} + name);
    *into = found->get<std::string>();
  }
  out.corosync_key = CSV_TRY(protocol::from_hex(key));
  if (out.corosync_key.size() < 128 || out.corosync_key.size() > 4096)
    return wrong("Corosync's key");
  if (!written_by_csvfs(out.corosync)) return wrong("corosync.conf");
  auto config = parse_config(out.config, "csvd.toml");
  if (!config) return wrong(config.error().message());
  if (config->cluster != token.cluster)
    return refused(fmt::format("the token is of cluster {}, and this is cluster {}", token.cluster,
                               config->cluster));
  auto authority = CSV_TRY(protocol::describe_certificates(out.authority)).front();
  std::string digest{reinterpret_cast<const char*>(token.authority.data()), token.authority.size()};
  if (authority.fingerprint != protocol::to_hex(digest) || !authority.is_authority)
    return refused("its CA is not the one that the token names");
  auto certificate = CSV_TRY(protocol::describe_certificates(out.certificate)).front();
  if (certificate.node != protocol::NodeName{config->cluster, config->node})
    return wrong("the certificate is another node's");
  if (out.key.empty()) return wrong("no key");
  return out;
}

ExitCode invite_node(const TokenRequest& request, Terminal& terminal) {
  auto config = load_config(request.config_file);
  if (!config) {
    terminal.note("csvctl: " + config.error().message());
    return ExitCode::usage;
  }
  auto bundle = make_bundle(request, *config, terminal.clock());
  if (!bundle) {
    fail(terminal, bundle.error());
    return bundle.error() == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
  }
  auto at =
      request.at.empty() ? config->listen.substr(0, config->listen.rfind(':')) + ":0" : request.at;
  auto door = protocol::JoinDoor::open(terminal.clock(), at);
  if (!door) return fail(terminal, door.error());
  auto token = make_token(*bundle, *config, (*door)->endpoint(), request.minutes, terminal.clock());
  if (!token) return fail(terminal, token.error());
  terminal.out(protocol::to_text(*token) + "\n");
  for (const auto& volume : config->volumes)
    if (!volume.chap_user.empty())
      terminal.note("Volume " + volume.name +
                    " has a CHAP secret, which is not handed on: csvctl volume add, there.");
  terminal.note(fmt::format(
      "On the machine that is to be node {} ({}), within {} minutes: csvctl cluster join\n"
      "Whoever has the token can be that node, once. Waiting; Ctrl-C makes it worthless.",
      request.node, request.name, request.minutes));
  auto channel = (*door)->wait(*token, kStep);
  // From here on it has been used.
  door->reset();
  if (!channel) return fail(terminal, channel.error());
  // Anew: another node may have come meanwhile, also by another token for this one.
  bundle = make_bundle(request, *config, terminal.clock());
  if (!bundle) return fail(terminal, bundle.error().within("the token was used, for nothing"));
  if (auto done = hand_over(**channel, *bundle, request); !done)
    return fail(terminal,
                done.error().within("the token was used, but " + request.name +
                                    " has not become a node; for another attempt make a new one"));
  terminal.note(request.name +
                " belongs to the cluster. On every other node: csvctl cluster prepare; then, on "
                "one of them: corosync-cfgtool -R");
  return ExitCode::done;
}

ExitCode join_cluster(const JoinRequest& request, Terminal& terminal) {
  auto token = protocol::parse_join_token(request.token);
  if (!token) {
    terminal.note("csvctl: " + token.error().message());
    return ExitCode::usage;
  }
  if (auto file = belongs_already(request); !file.empty())
    return fail(terminal,
                refused("this machine belongs to a cluster already: " + file +
                        " is there. csvctl cluster leave takes it out of it; what is left "
                        "after that has to be removed by hand"));
  auto conf = request.corosync_folder + "/corosync.conf";
  if (!request.yes && file_exists(conf)) {
    if (!terminal.may_ask())
      terminal.note("csvctl: " + conf + " was not written by csvctl; --yes replaces it");
    if (!terminal.confirm(conf + " was not written by csvctl. Replace it?"))
      return ExitCode::not_confirmed;
  }
  auto channel = protocol::JoinChannel::connect(terminal.clock(), *token, kStep);
  if (!channel) return fail(terminal, channel.error());
  auto text = (*channel)->receive();
  if (!text) return fail(terminal, text.error().within("asking the cluster"));
  auto bundle = parse_join_bundle(*text, *token);
  Files files;
  // From here to the cluster's word, 15 s at most, files are either all kept or all put back.
  SignalsHeld held;
  auto nothing_kept = [&](const Error& why, const std::string& doing) {
    auto undone = files.undo();
    if (undone) return fail(terminal, why.within(doing + "nothing was kept"));
    return fail(terminal, why.within(doing + undone.error().message()));
  };
  auto written = bundle ? write_all(*bundle, request, files) : Expected<void>{bundle.error()};
  auto told = (*channel)->send(ok_text(written));
  if (!written) return nothing_kept(written.error(), "");
  if (!told) return nothing_kept(told.error(), "");
  auto answer = (*channel)->receive();
  if (!answer) {
    files.keep();
    return fail(terminal, answer.error().within("whether the cluster has taken this node is not "
                                                "known (csvctl cluster status, there). All files "
                                                "were written"));
  }
  if (auto added = ok_from(*answer); !added)
    return nothing_kept(added.error(), "the cluster did not take it; ");
  files.keep();
  terminal.out(
      "This machine is a node of the cluster. Once the others' Corosync knows it (csvctl cluster "
      "prepare on each, then corosync-cfgtool -R on one of them):\n"
      "  systemctl enable --now corosync csvd\n"
      "  csvctl cluster status\n");
  return ExitCode::done;
}

}  // namespace csv::admin
