#include "coordinator/admin/cluster_commands.h"

#include <fmt/format.h>
#include <poll.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/cluster_requests.h"
#include "coordinator/admin/cluster_text.h"
#include "coordinator/admin/files.h"
#include "coordinator/admin/prepare_command.h"
#include "coordinator/admin/settled.h"
#include "coordinator/cluster/configuration_store.h"
#include "coordinator/cluster/configuration_text.h"

namespace csv::admin {
namespace {

using Json = nlohmann::json;

/// A change waits for a quorum, and for a majority to store it.
constexpr Duration kPatience = 30s;
/// Between two looks at what has come of a change.
constexpr Duration kLook = 200ms;
/// Of a node that leaves: three changes, and others that take its volumes over.
constexpr Duration kLeavePatience = 90s;

ExitCode failed(Terminal& terminal, const Error& why) {
  terminal.note("csvctl: " + why.message());
  return why == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
}

Expected<Json> ask(const std::string& socket, const Json& request, Duration patience = kPatience) {
  auto answer = CSV_TRY(ask_csvd(socket, request.dump(), patience));
  auto parsed = Json::parse(answer, nullptr, false);
  if (!parsed.is_object()) return Error{Errc::corrupt, "csvd's answer is not JSON"};
  if (parsed.contains("ok") && !parsed["ok"].get<bool>())
    return Error{Errc::refused, parsed.value("error", "csvd refused")};
  return parsed;
}

}  // namespace

ExitCode change_cluster(const std::string& socket, const AdminRequest& request,
                        const std::string& done, Terminal& terminal) {
  if (changes_cluster(request.command))
    if (auto change = change_for(request); !change) {
      terminal.note("csvctl: " + change.error().message());
      return ExitCode::usage;
    }
  auto answer = ask(socket, {{"command", request.command},
                             {"volume", request.volume},
                             {"node", request.node},
                             {"value", request.value}});
  if (!answer) return failed(terminal, answer.error());
  if (!done.empty()) terminal.out(done + "\n");
  return ExitCode::done;
}

ExitCode change_and_wait(const std::string& socket, const AdminRequest& request,
                         const std::string& done, Duration patience, Terminal& terminal) {
  if (patience <= Duration{0})
    return change_cluster(socket, request, "The cluster has accepted it, and is at it.", terminal);
  if (auto changed = change_cluster(socket, request, "", terminal); changed != ExitCode::done)
    return changed;
  return wait_until_settled(socket, request, done, patience, terminal);
}

ExitCode wait_until_settled(const std::string& socket, const AdminRequest& request,
                            const std::string& done, Duration patience, Terminal& terminal) {
  auto until = terminal.clock().now() + patience;
  for (;;) {
    auto status = ask_csvd(socket, R"({"command":"status"})", kPatience);
    auto left = status ? left_to_do(*status, request) : Expected<std::string>{status.error()};
    if (left && left->empty()) break;
    auto why = left ? *left : left.error().message();
    if (terminal.clock().now() >= until) {
      terminal.progress("");
      terminal.note(
          fmt::format("csvctl: not done within {} s: {}. It stays as asked for; csvctl "
                      "cluster status shows how it goes on",
                      patience / 1s, why));
      return ExitCode::failed;
    }
    terminal.progress(why);
    ::poll(nullptr, 0, static_cast<int>(kLook / 1ms));
  }
  terminal.progress("");
  terminal.out(done + "\n");
  return ExitCode::done;
}

ExitCode create_cluster(const std::string& config_file, const std::string& socket,
                        const CreateRequest& request, Terminal& terminal) {
  auto config = load_config(config_file);
  if (!config) {
    terminal.note("csvctl: " + config.error().message());
    return ExitCode::usage;
  }
  if (config->peers.size() == 1 && !request.without_witness) {
    terminal.note(
        "csvctl: two nodes and no witness: when one of them fails, the other may have to stop, "
        "too. "
        "Give the cluster a witness afterwards (csvctl cluster witness), and say --without-witness "
        "now");
    return ExitCode::not_confirmed;
  }
  AdminRequest ask_for{.command = "cluster_create", .value = request.name};
  return change_cluster(
      socket, ask_for,
      fmt::format("Cluster {} is founded with {} nodes; the others join it as soon "
                  "as they are reached.",
                  request.name, config->peers.size() + 1),
      terminal);
}

ExitCode force_quorum(const std::string& socket, bool yes, Terminal& terminal) {
  if (!yes) {
    terminal.note(
        "The nodes that this one reaches go on without the others, and what they decide then holds "
        "for all. If the others run somewhere, without being reached, both sides may serve the "
        "same "
        "volumes until they meet. Be sure that they are off.");
    if (!terminal.confirm("Force a quorum?")) {
      terminal.note(terminal.may_ask() ? "Nothing was changed."
                                       : "csvctl: nothing was changed; --yes forces it");
      return ExitCode::not_confirmed;
    }
  }
  return change_cluster(socket, {.command = "cluster_force"},
                        "This side goes on; the others join it when they are reached.", terminal);
}

ExitCode prevent_quorum(const std::string& config_file, const std::string& socket, bool prevents,
                        Terminal& terminal) {
  auto config = load_config(config_file);
  if (!config) {
    terminal.note("csvctl: " + config.error().message());
    return ExitCode::usage;
  }
  if (!config->corosync)
    return failed(terminal, Error{Errc::refused,
                                  "this node votes with nobody: [cluster] engine is \"standalone\" "
                                  "in its configuration"});
  AdminRequest request{.command = "cluster_prevent", .value = prevents ? "yes" : "no"};
  auto ask_it = [&] {
    return ask(socket, {{"command", request.command}, {"value", request.value}});
  };
  auto told = ask_it();
  bool runs = told || told.error() != Errc::closed;
  if (!runs) {
    auto left = cluster::ConfigurationFiles::prevent(config->state_dir + "/cluster", prevents);
    if (!left) return failed(terminal, left.error());
    // One that was started meanwhile may have looked before; it listens before it does.
    told = ask_it();
    runs = told || told.error() != Errc::closed;
  }
  if (runs && !told) return failed(terminal, told.error());
  terminal.out(prevents
                   ? "This node brings no cluster about; it joins one that others have formed, "
                     "and counts as ever from then on. csvctl cluster start takes that back.\n"
                   : "This node counts as ever.\n");
  return ExitCode::done;
}

namespace {
/// What csvd says of a node of this name or, where none has it, of this number.
Expected<Json> node_status(const std::string& socket, const std::string& node) {
  auto status = CSV_TRY(ask(socket, {{"command", "status"}}));
  auto voting = status.find("voting");
  if (voting == status.end() || !voting->is_object())
    return Error{Errc::refused,
                 "the nodes of this cluster do not vote, so the cluster keeps no list of them"};
  auto nodes = voting->value("nodes", Json::array());
  for (const auto& each : nodes)
    if (each.value("name", "") == node) return each;
  for (const auto& each : nodes)
    if (std::to_string(each.value("id", 0)) == node) return each;
  return Error{Errc::refused, "the cluster has no node '" + node + "'"};
}

/// What would admit this node to the others' Corosync. Errors are said, and change nothing else.
void forget_corosync(const std::string& folder, Terminal& terminal) {
  auto conf = folder + "/corosync.conf", key = folder + "/authkey";
  auto text = file_exists(conf) ? read_whole(conf) : Expected<std::string>{std::string{}};
  if (!text || text->empty() || !written_by_csvfs(*text)) {
    if (file_exists(conf))
      terminal.note(conf + " was not written by csvctl, and is left as it is, with " + key);
    return;
  }
  for (const auto& file : {key, conf}) {
    std::error_code error;
    std::filesystem::remove(file, error);
    if (error)
      terminal.note("csvctl: removing " + file + ": " + error.message() + "; remove it by hand");
  }
}
}  // namespace

ExitCode leave_cluster(const std::string& socket, const LeaveRequest& request, Terminal& terminal) {
  auto config = load_config(request.config_file);
  if (!config) {
    terminal.note("csvctl: " + config.error().message());
    return ExitCode::usage;
  }
  auto status = ask(socket, {{"command", "status"}});
  if (!status) return failed(terminal, status.error());
  std::size_t others = 0;
  if (auto voting = status->find("voting"); voting != status->end() && voting->is_object())
    for (const auto& each : voting->value("nodes", Json::array()))
      others += each.value("id", 0u) != raw(config->node);
  if (!request.yes) {
    terminal.note(fmt::format("{} leaves the cluster for good; {} remain{}.", config->node_name,
                              others, others == 1 ? "s" : ""));
    if (others == 2)
      terminal.note(
          "Two nodes need a witness (csvctl cluster witness), or the failure of one may stop the "
          "other, too.");
    if (!terminal.confirm("Leave it?")) {
      terminal.note(terminal.may_ask() ? "Nothing was changed."
                                       : "csvctl: nothing was changed; --yes leaves it");
      return ExitCode::not_confirmed;
    }
  }
  auto left =
      ask(socket, {{"command", "cluster_leave"}, {"volume", ""}, {"node", ""}, {"value", ""}},
          kLeavePatience);
  if (!left) return failed(terminal, left.error());
  forget_corosync(request.corosync_folder, terminal);
  terminal.out(fmt::format(
      "{} belongs to the cluster no more. What is left to do:\n"
      "  here:       systemctl disable --now csvd corosync\n"
      "              rm -r {}/cluster {} {}    (what made it this node)\n"
      "  elsewhere:  csvctl cluster prepare, on all, then corosync-cfgtool -R on one of them\n",
      config->node_name, config->state_dir, request.config_file, config->tls.key));
  return ExitCode::done;
}

ExitCode evict_node(const std::string& socket, const std::string& node, bool yes,
                    Terminal& terminal) {
  auto known = node_status(socket, node);
  if (!known) return failed(terminal, known.error());
  auto name = known->value("name", node);
  if (known->value("member", false) && !yes) {
    terminal.note("csvctl: " + name +
                  " takes part in the cluster. Stop its mounts and its csvd first; --yes takes it "
                  "out as it is");
    return ExitCode::not_confirmed;
  }
  return change_cluster(socket, {.command = "node_evict", .node = node},
                        name +
                            " belongs to the cluster no more. Take it out of corosync.conf of the "
                            "others, too: csvctl cluster prepare, then corosync-cfgtool -R",
                        terminal);
}

ExitCode fence_node(const std::string& socket, const std::string& node, bool yes,
                    Terminal& terminal) {
  auto known = node_status(socket, node);
  if (!known) return failed(terminal, known.error());
  auto name = known->value("name", node);
  if (!yes) {
    terminal.note("Programs on " + name +
                  " that use a volume get I/O errors until they open their files anew, after "
                  "csvctl node unfence.");
    if (!terminal.confirm("Fence " + name + "?")) {
      terminal.note(terminal.may_ask() ? "Nothing was changed."
                                       : "csvctl: nothing was changed; --yes fences it");
      return ExitCode::not_confirmed;
    }
  }
  auto fenced =
      ask(socket, {{"command", "node_fence"}, {"volume", ""}, {"node", name}, {"value", ""}},
          kPatience + kProofPatience);
  if (!fenced) return failed(terminal, fenced.error());
  terminal.out(name + " is fenced: nothing of it is left on any volume.\n");
  return ExitCode::done;
}

ExitCode export_configuration(const std::string& socket, const std::string& file, bool yes,
                              Terminal& terminal) {
  auto answer = ask(socket, {{"command", "config_export"}});
  if (!answer) return failed(terminal, answer.error());
  auto text = answer->value("text", "");
  if (file.empty()) {
    terminal.out(text);
    return ExitCode::done;
  }
  if (file_exists(file) && !yes && !terminal.confirm(file + " is there already. Replace it?")) {
    terminal.note(terminal.may_ask() ? "Nothing was written."
                                     : "csvctl: " + file + " is there already; --yes replaces it");
    return ExitCode::not_confirmed;
  }
  if (auto written = replace_file(file, text, 0644); !written)
    return failed(terminal, written.error());
  return ExitCode::done;
}

ExitCode import_configuration(const std::string& socket, const ImportRequest& request,
                              Terminal& terminal) {
  auto text = read_whole(request.file);
  auto wanted = text ? cluster::from_toml(*text, request.file)
                     : Expected<cluster::Configuration>{text.error()};
  if (wanted && text->size() > kMaxAdminRequest / 2)
    wanted = Error{Errc::refused, request.file + " is too long"};
  if (!wanted) {
    terminal.note("csvctl: " + wanted.error().message());
    return ExitCode::usage;
  }
  auto preview = ask(socket, {{"command", "config_preview"}, {"value", *text}});
  if (!preview) return failed(terminal, preview.error());
  auto changes = preview->value("changes", Json::array());
  if (changes.empty()) {
    terminal.out("The cluster is as the file says: nothing would change.\n");
    return ExitCode::done;
  }
  terminal.out(fmt::format("What {} changes:\n", request.file));
  for (const auto& each : changes) terminal.out("  " + each.get<std::string>() + "\n");
  if (request.dry_run) return ExitCode::done;
  if (!request.yes && !terminal.confirm("Change the cluster so?")) {
    terminal.note(terminal.may_ask() ? "Nothing was changed."
                                     : "csvctl: nothing was changed; --yes changes it");
    return ExitCode::not_confirmed;
  }
  return change_cluster(socket, {.command = "config_import", .value = *text},
                        "The cluster is as the file says.", terminal);
}

ExitCode show_cluster(const std::string& socket, bool json, Terminal& terminal) {
  auto status = ask(socket, {{"command", "status"}});
  if (!status) return failed(terminal, status.error());
  const auto& voting = (*status)["voting"];
  if (!voting.is_object()) {
    terminal.note(
        "csvctl: the nodes of this cluster do not vote: [cluster] engine is \"standalone\" in the "
        "configuration");
    return ExitCode::failed;
  }
  if (json) {
    terminal.out(voting.dump(2) + "\n");
    return ExitCode::done;
  }
  auto text = cluster_text(voting.dump(), Paint::standard());
  if (!text) return failed(terminal, text.error());
  terminal.out(*text);
  return ExitCode::done;
}

}  // namespace csv::admin
