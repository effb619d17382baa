#include "coordinator/admin/node_volumes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/text_table.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/log.h"
#include "csvfs/mount_table.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;

ExitCode failed(Terminal& terminal, const Error& why, ExitCode code = ExitCode::failed) {
  terminal.note("csvctl: " + why.message());
  return code;
}

/// A text in TOML's quotes.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

Expected<std::string> read_text(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  if (!file) return errno_error(errno, "opening the configuration " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

/// Whole or not at all; with the mode and owner that the file had.
Expected<void> replace_file(const std::string& path, const std::string& text) {
  std::error_code error;
  auto target = std::filesystem::canonical(path, error).string();  // a link stays one
  if (error) return Error{error, path + ": " + error.message()};
  struct stat before {};
  if (::stat(target.c_str(), &before) != 0) return errno_error(errno, "examining " + target);
  auto temporary = target + ".new";
  int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return errno_error(errno, "making " + temporary);
  auto written = ::write(fd, text.data(), text.size());
  bool good = written == static_cast<ssize_t>(text.size()) &&
              ::fchown(fd, before.st_uid, before.st_gid) == 0 &&
              ::fchmod(fd, before.st_mode & 07777) == 0 && ::fsync(fd) == 0;
  auto why = errno;
  ::close(fd);
  if (good && ::rename(temporary.c_str(), target.c_str()) == 0) return {};
  if (good) why = errno;
  ::unlink(temporary.c_str());
  return errno_error(why, "writing " + target);
}

Expected<Json> ask(const std::string& socket, const Json& request, Duration timeout) {
  auto answer = CSV_TRY(ask_csvd(socket, request.dump(), timeout));
  auto parsed = Json::parse(answer, nullptr, false);
  if (!parsed.is_object()) return Error{Errc::corrupt, "csvd's answer cannot be understood"};
  if (parsed.contains("ok") && !parsed["ok"].get<bool>())
    return Error{Errc::refused, parsed.value("error", "csvd refused")};
  return parsed;
}

std::string joined(const Json& names) {
  std::string out;
  for (const auto& each : names) out += (out.empty() ? "" : ", ") + each.get<std::string>();
  return out;
}

/// What csvd said to `reload`, for people.
std::string reload_text(const Json& answer) {
  auto added = joined(answer.at("added")), waiting = joined(answer.at("needs_restart"));
  std::string out = added.empty() ? "csvd knows every volume of its configuration.\n"
                                  : "csvd has taken: " + added + "\n";
  if (!waiting.empty()) out += "Counts only after csvd was restarted: " + waiting + "\n";
  return out;
}

/// Whether the LUN is the volume of that name, of this cluster.
Expected<void> check_lun(const AddRequest& request, const Config& config) {
  auto opened = CSV_TRY(ToolLun::open(request.lun.url, request.lun.options));
  auto random = Random::from_system();
  auto key = CSV_TRY(TemporaryKey::enter(opened->blocking(), random));
  auto info = volume::read_superblocks(opened->blocking(), false);
  if (!info)
    return info.error().within("looking for volume " + request.name + " on " + request.lun.url);
  if (info->label != request.name)
    return Error{Errc::refused,
                 request.lun.url + " holds volume " + info->label + ", not " + request.name};
  if (info->cluster != config.cluster)
    return Error{Errc::refused, fmt::format("{} belongs to cluster {}, and this node to {}",
                                            request.lun.url, info->cluster, config.cluster)};
  if (info->lun_identity != volume::lun_identity(opened->lun().profile()))
    return Error{Errc::refused,
                 request.lun.url + " is a clone: it was formatted as " + info->lun_identity};
  return {};
}

std::string mountpoint_of(const std::vector<MountEntry>& table, const std::string& volume) {
  auto mounts = mounts_of(table, volume);
  return mounts.empty() ? "" : mounts.back().mountpoint;
}

std::string node_name(const Config& config, int id) {
  if (static_cast<int>(raw(config.node)) == id) return config.node_name;
  for (const auto& peer : config.peers)
    if (static_cast<int>(raw(peer.id)) == id) return peer.name;
  return fmt::format("node {}", id);
}

/// What is still to be done for a volume that was added.
std::string next_text(const std::string& volume, bool voting) {
  auto mounting = fmt::format(
      "on each node\nsystemctl enable --now csvfs@{0}, or mount -t csvfs {0} /clusterstorage/{0}\n",
      volume);
  if (voting)
    return fmt::format(
        "Next, where it is not done yet: csvctl volume add {} on each node, and "
        "then {}The cluster decides who coordinates it: csvctl cluster status.\n",
        volume, mounting);
  return fmt::format("Next: csvctl volume start {} on the node that shall coordinate it, and {}",
                     volume, mounting);
}

Json find_volume(const Json& status, const std::string& name) {
  if (status.contains("volumes"))
    for (const auto& each : status["volumes"])
      if (each.value("name", "") == name) return each;
  return {};
}

}  // namespace

ExitCode list_volumes(const ListRequest& request, Terminal& terminal) {
  auto config = load_config(request.config_file);
  if (!config) return failed(terminal, config.error(), ExitCode::usage);
  if (request.names) {
    for (const auto& each : config->volumes) terminal.out(each.name + "\n");
    return ExitCode::done;
  }
  auto status = ask(request.socket, {{"command", "status"}}, 10s);
  auto table = mount_table();
  Json out{{"version", 1}, {"csvd_answers", static_cast<bool>(status)}, {"volumes", Json::array()}};
  for (const auto& each : config->volumes) {
    auto known = status ? find_volume(*status, each.name) : Json{};
    Json one{{"name", each.name}, {"lun", each.lun}, {"coordinate", each.coordinate}};
    one["known_to_csvd"] = known.is_object();
    one["coordinator_node"] = known.is_object() ? known["coordinator_node"] : Json(0);
    one["mode"] =
        known.is_object() && known["mount"].is_object() ? known["mount"]["mode"] : Json("");
    one["mountpoint"] = mountpoint_of(table, each.name);
    out["volumes"].push_back(std::move(one));
  }
  if (request.json) {
    terminal.out(out.dump(2) + "\n");
    return ExitCode::done;
  }
  TextTable text{{"VOLUME", "LUN", "COORDINATOR", "MODE HERE", "MOUNTED AT"}};
  for (const auto& one : out["volumes"]) {
    auto node = one["coordinator_node"].get<int>();
    text.row({one["name"], one["lun"],
              !status                             ? "?"
              : !one["known_to_csvd"].get<bool>() ? "csvctl reload"
              : node == 0                         ? "none"
                                                  : node_name(*config, node),
              one["mode"].get<std::string>().empty() ? "-" : one["mode"].get<std::string>(),
              one["mountpoint"].get<std::string>().empty() ? "-"
                                                           : one["mountpoint"].get<std::string>()});
  }
  terminal.out(text.empty() ? request.config_file + " has no volume; csvctl volume add NAME LUN\n"
                            : text.text());
  if (!status) terminal.note("csvctl: " + status.error().message());
  return ExitCode::done;
}

Expected<std::string> with_volume(const std::string& text, const std::string& file_name,
                                  const AddRequest& request) {
  auto out = text;
  if (!out.empty() && out.back() != '\n') out += '\n';
  out +=
      "\n[[volume]]\nname = " + quoted(request.name) + "\nlun = " + quoted(request.lun.url) + "\n";
  if (request.sessions > 0) out += fmt::format("sessions = {}\n", request.sessions);
  if (request.coordinate) out += "coordinate = true\n";
  if (!request.chap_user.empty()) out += "chap_user = " + quoted(request.chap_user) + "\n";
  if (!request.chap_secret_file.empty())
    out += "chap_secret_file = " + quoted(request.chap_secret_file) + "\n";
  CSV_TRY(parse_config(out, file_name));
  return out;
}

ExitCode add_volume(const AddRequest& request, Terminal& terminal) {
  auto text = read_text(request.config_file);
  if (!text) return failed(terminal, text.error(), ExitCode::usage);
  auto config = parse_config(*text, request.config_file);
  if (!config) return failed(terminal, config.error(), ExitCode::usage);
  auto changed = with_volume(*text, request.config_file, request);
  if (!changed) return failed(terminal, changed.error(), ExitCode::usage);
  if (auto checked = check_lun(request, *config); !checked)
    return failed(terminal, checked.error().within("nothing was changed"));
  if (auto written = replace_file(request.config_file, *changed); !written)
    return failed(terminal, written.error());
  terminal.out("Added volume " + request.name + " to " + request.config_file + ".\n");
  auto answer = ask(request.socket, {{"command", "reload"}}, 10s);
  if (!answer) {
    terminal.note("csvctl: it counts once csvd has read it: " + answer.error().message());
    return answer.error() == Errc::closed ? ExitCode::done : ExitCode::failed;
  }
  terminal.out(reload_text(*answer) + next_text(request.name, config->corosync));
  return ExitCode::done;
}

ExitCode reload(const std::string& socket, Terminal& terminal) {
  auto answer = ask(socket, {{"command", "reload"}}, 10s);
  if (!answer)
    return failed(terminal, answer.error(),
                  answer.error() == Errc::closed ? ExitCode::no_csvd : ExitCode::failed);
  terminal.out(reload_text(*answer));
  return ExitCode::done;
}

}  // namespace csv::admin
