#include "coordinator/admin/certificate_commands.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "coordinator/admin/files.h"
#include "coordinator/admin/text_table.h"
#include "coordinator/protocol/certificate.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::int64_t kDay = 24ll * 3600 * 1'000'000'000;
/// The clocks of two machines differ a little: what is made here is valid there at once.
constexpr std::int64_t kHour = kDay / 24;

protocol::Validity validity(const Clock& clock, int days) {
  auto now = static_cast<std::int64_t>(clock.wall_now());
  return {WallTime{now - kHour}, WallTime{now + days * kDay}};
}

Expected<void> make_folder(const std::string& path) {
  std::error_code error;
  auto parent = fs::path{path}.parent_path();
  if (!parent.empty()) fs::create_directories(parent, error);
  if (error) return Error{error, "making " + parent.string() + ": " + error.message()};
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return errno_error(errno, "making " + path);
  return {};
}

ExitCode fail(const Terminal& terminal, const Error& why, ExitCode code = ExitCode::failed) {
  terminal.note("csvctl: " + why.message());
  return code;
}

Expected<void> create(const AuthorityRequest& request, const Clock& clock) {
  CSV_TRY(make_folder(request.folder));
  auto made = CSV_TRY(protocol::make_authority(static_cast<std::uint16_t>(request.cluster),
                                               validity(clock, request.days)));
  CSV_TRY(replace_file(request.folder + "/ca.key", made.key, 0600));
  return replace_file(request.folder + "/ca.crt", made.certificate, 0644);
}

Expected<protocol::CertificateInfo> issue(const IssueRequest& request, const std::string& out,
                                          const Clock& clock) {
  protocol::KeyPair authority;
  auto certificate = read_whole(request.folder + "/ca.crt");
  if (!certificate)
    return Error{certificate.error().code(),
                 certificate.error().message() +
                     " (make a CA once, with: csvctl cluster ca create --cluster-id N)"};
  authority.certificate = *certificate;
  authority.key = CSV_TRY(read_whole(request.folder + "/ca.key"));
  auto made = CSV_TRY(protocol::issue_certificate(authority,
                                                  NodeId{static_cast<std::uint8_t>(request.node)},
                                                  request.name, validity(clock, request.days)));
  CSV_TRY(make_folder(out));
  CSV_TRY(replace_file(out + "/ca.crt", authority.certificate, 0644));
  CSV_TRY(replace_file(out + "/node.key", made.key, 0600));
  CSV_TRY(replace_file(out + "/node.crt", made.certificate, 0644));
  return CSV_TRY(protocol::describe_certificates(made.certificate)).front();
}

}  // namespace

ExitCode create_authority(const AuthorityRequest& request, Terminal& terminal) {
  for (const auto* name : {"/ca.key", "/ca.crt"})
    if (file_exists(request.folder + name))
      return fail(terminal,
                  Error{Errc::refused,
                        request.folder + name +
                            " exists. A CA is made once: another one's certificates would not be "
                            "believed. To start anew, move it away first"},
                  ExitCode::not_confirmed);
  auto made = create(request, terminal.clock());
  if (!made) return fail(terminal, made.error());
  terminal.out(
      fmt::format("The CA of cluster {} is {}/ca.crt, valid for {} days.\n"
                  "Its key, {}/ca.key, stays here: whoever has it can be any node.\n"
                  "For each node: csvctl cluster ca issue --node N --name NAME\n",
                  request.cluster, request.folder, request.days, request.folder));
  return ExitCode::done;
}

ExitCode issue_certificate(const IssueRequest& request, Terminal& terminal) {
  auto out = request.out.empty() ? request.name : request.out;
  if (!request.yes)
    for (const auto* name : {"/node.key", "/node.crt"})
      if (file_exists(out + name) &&
          !terminal.confirm(out + name + " exists and will be replaced."))
        return fail(terminal, Error{Errc::refused, out + name + " exists; --yes replaces it"},
                    ExitCode::not_confirmed);
  auto made = issue(request, out, terminal.clock());
  if (!made) return fail(terminal, made.error());
  terminal.out(fmt::format(
      "{}/node.crt and {}/node.key are those of node {} ({}) of cluster {}, valid until {}.\n"
      "Move them, with {}/ca.crt, to {} on that node, and leave no copy of node.key. csvd and\n"
      "csvfs there take them for new connections without a restart.\n",
      out, out, request.node, request.name, made->cluster,
      protocol::date_text(made->validity.until), out, kTlsFolder));
  return ExitCode::done;
}

ExitCode show_certificates(const std::vector<std::string>& files, bool json, Terminal& terminal) {
  auto now = terminal.clock().wall_now();
  TextTable table{{"file", "subject", "is", "valid until", "", "SHA-256"}};
  Json list = Json::array();
  auto code = ExitCode::done;
  for (const auto& file : files) {
    auto text = read_whole(file);
    auto all = text ? protocol::describe_certificates(*text)
                    : Expected<std::vector<protocol::CertificateInfo>>{text.error()};
    if (!all) {
      code = fail(terminal, text ? all.error().within(file) : text.error());
      continue;
    }
    for (const auto& one : *all) {
      auto left = (static_cast<std::int64_t>(one.validity.until) - static_cast<std::int64_t>(now)) /
                  1'000'000'000;
      bool early = now < one.validity.from;
      auto is = one.node
                    ? fmt::format("node {} of cluster {}", raw(one.node->node), one.node->cluster)
                : one.is_authority ? fmt::format("CA of cluster {}", one.cluster)
                                   : std::string{"none of ours"};
      table.row({file, one.subject, is, protocol::date_text(one.validity.until),
                 early      ? "not valid yet"
                 : left < 0 ? "EXPIRED"
                            : "in " + duration_text(left),
                 one.fingerprint.substr(0, 16)});
      list.push_back({{"file", file},
                      {"subject", one.subject},
                      {"issuer", one.issuer},
                      {"authority", one.is_authority},
                      {"cluster", one.cluster},
                      {"node", one.node ? raw(one.node->node) : 0},
                      {"valid_from", protocol::date_text(one.validity.from)},
                      {"valid_until", protocol::date_text(one.validity.until)},
                      {"expires_in_s", left},
                      {"fingerprint", one.fingerprint}});
    }
  }
  if (json)
    terminal.out(Json{{"certificates", list}}.dump(2) + "\n");
  else if (!table.empty())
    terminal.out(table.text(0));
  return code;
}

}  // namespace csv::admin
