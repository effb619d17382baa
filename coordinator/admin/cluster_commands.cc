#include "coordinator/admin/cluster_commands.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/paint.h"
#include "coordinator/admin/text_table.h"

namespace csv::admin {
namespace {

using Json = nlohmann::json;

/// A change waits for a quorum, and for a majority to store it.
constexpr Duration kPatience = 30s;

ExitCode failed(Terminal& terminal, const Error& why) {
  terminal.note("csvctl: " + why.message());
  return why == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
}

Expected<Json> ask(const std::string& socket, const Json& request) {
  auto answer = CSV_TRY(ask_csvd(socket, request.dump(), kPatience));
  auto parsed = Json::parse(answer, nullptr, false);
  if (!parsed.is_object()) return Error{Errc::corrupt, "csvd's answer is not JSON"};
  if (parsed.contains("ok") && !parsed["ok"].get<bool>())
    return Error{Errc::refused, parsed.value("error", "csvd refused")};
  return parsed;
}

}  // namespace

ExitCode change_cluster(const std::string& socket, const AdminRequest& request,
                        const std::string& done, Terminal& terminal) {
  auto answer = ask(socket, {{"command", request.command},
                             {"volume", request.volume},
                             {"node", request.node},
                             {"value", request.value}});
  if (!answer) return failed(terminal, answer.error());
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
  auto paint = Paint::standard();
  auto formed = voting.value("state", "") == "formed";
  terminal.out(fmt::format("Cluster {}: {}{}, for {}\n", voting.value("name", ""),
                           formed ? paint.good("quorate") : paint.bad(voting.value("state", "")),
                           formed ? "" : " (" + voting.value("reason", "") + ")",
                           duration_text(voting.value("since_s", std::int64_t{0}))));
  terminal.out(fmt::format("configuration {}\n\n", voting.value("tag", "")));
  TextTable table{{"NODE", "NAME", "ADDRESS", "STATE", "VOTE", "COUNTS"}};
  for (const auto& node : voting["nodes"]) {
    std::string state = node.value("member", false)    ? paint.good("member")
                        : node.value("reached", false) ? paint.warning("csvd is away")
                                                       : paint.bad("not reached");
    if (node.value("drained", false)) state += ", drained";
    table.row({node["id"].dump(), node.value("name", ""), node.value("address", ""), state,
               node["vote"].dump(), node["counts"].dump()});
  }
  terminal.out(table.text());
  return ExitCode::done;
}

}  // namespace csv::admin
