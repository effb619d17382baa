#include "coordinator/admin/repair_commands.h"

#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/status.h"
#include "coordinator/admin/text_table.h"
#include "coordinator/volume/catalog_check.h"
#include "coordinator/volume/grow.h"
#include "coordinator/volume/repair.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;

ExitCode failed(Terminal& terminal, const Error& why) {
  terminal.progress("");
  terminal.note("csvctl: " + why.message());
  return ExitCode::failed;
}

ExitCode not_confirmed(Terminal& terminal, const char* yes) {
  terminal.note(terminal.may_ask() ? "Nothing was changed."
                                   : std::string{"csvctl: nothing was changed; "} + yes);
  return ExitCode::not_confirmed;
}

Expected<std::string> work_file_in(const std::string& folder, const Terminal& terminal) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Error{error, "making " + folder + ": " + error.message()};
  auto name = fmt::format("{}/repair-{}-{}.db", folder,
                          static_cast<std::int64_t>(terminal.clock().wall_now()) / 1'000'000'000,
                          ::getpid());
  if (std::filesystem::exists(name, error)) return Error{std::errc::file_exists, name};
  return name;
}

std::string in_text(const volume::Repair& repair) {
  std::string out;
  for (const auto& finding : repair.findings()) out += "PROBLEM: " + finding + "\n";
  for (const auto& action : repair.actions()) out += "REPAIR: " + action + "\n";
  for (const auto& warning : repair.warnings()) out += "WARNING: " + warning + "\n";
  return out;
}

/// Where others may be using the volume: what to do about it.
ExitCode in_use(const std::string& url, const std::string& users, const char* fence,
                Terminal& terminal) {
  terminal.note("csvctl: the volume on " + url + " may be in use, and nothing was changed:\n" +
                users +
                "End it there in good order: csvctl volume stop NAME on the node that coordinates "
                "it (on any node where nodes vote), umount where it is mounted." +
                fence);
  return ExitCode::not_confirmed;
}

void drop_work_file(const std::string& path) {
  std::error_code ignored;
  for (const auto* end : {"", "-wal", "-shm"}) std::filesystem::remove(path + end, ignored);
}

}  // namespace

ExitCode repair_volume(const RepairRequest& request, Terminal& terminal) {
  auto opened = ToolLun::open(request.lun.url, request.lun.options);
  if (!opened) return failed(terminal, opened.error());
  auto& lun = (*opened)->blocking();
  auto random = Random::from_system();

  std::unique_ptr<TemporaryKey> guest;
  std::unique_ptr<SoleUse> alone;
  if (request.dry_run) {
    auto key = TemporaryKey::enter(lun, random);
    if (!key) return failed(terminal, key.error());
    guest = *std::move(key);
    if (auto told = tell_of_users(lun, guest->key(), terminal); !told)
      return failed(terminal, told.error());
  } else {
    auto entered = SoleUse::enter(**opened, request.cluster, random);
    if (!entered) return failed(terminal, entered.error());
    alone = *std::move(entered);
    if (auto users = alone->users().in_words(); !users.empty() && !request.fence)
      return in_use(request.lun.url, users,
                    " If such a node is surely down, or does not serve the volume, repeat with "
                    "--fence: that takes all access to the LUN away first, and verifies it.",
                    terminal);
    if (auto taken = alone->take(); !taken)
      return failed(terminal, taken.error().within("taking the LUN for the repair"));
  }

  auto work_file = work_file_in(request.work_dir, terminal);
  if (!work_file) return failed(terminal, work_file.error());
  volume::RepairOptions options;
  options.work_file = *work_file;
  options.now = terminal.clock().wall_now();
  options.label = request.name;
  options.cluster = request.cluster;
  options.wal_size = request.log_mib << 20;
  if (request.from == "copy") {
    options.source = volume::RepairOptions::Source::copy;
  } else if (!request.from.empty()) {
    options.source = volume::RepairOptions::Source::file;
    options.file = request.from;
  }
  auto repair = volume::Repair::prepare(lun, options, [&](std::uint64_t done, std::uint64_t of) {
    terminal.progress("checking " + request.lun.url, done, of);
  });
  terminal.progress("");
  if (!repair) {
    drop_work_file(*work_file);
    if (repair.error() == Errc::fenced)
      return failed(terminal, repair.error().within("the volume is being served; stop it first "
                                                    "(csvctl volume stop)"));
    return failed(terminal, repair.error());
  }
  auto& plan = **repair;
  if (alone) alone->belongs_to(plan.info().cluster);
  auto tell = [&](bool repaired) {
    if (request.json) {
      Json out{{"volume", plan.info().label}, {"clean", plan.findings().empty()},
               {"problems", plan.findings()}, {"repairs", plan.actions()},
               {"warnings", plan.warnings()}, {"repaired", repaired}};
      terminal.out(out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    } else if (!repaired) {
      terminal.out(in_text(plan));
    }
  };
  if (!plan.has_work()) {
    drop_work_file(*work_file);
    tell(false);
    if (!request.json) terminal.out("The volume is clean: there is nothing to be repaired.\n");
    return ExitCode::done;
  }
  if (request.dry_run) {
    drop_work_file(*work_file);
    tell(false);
    terminal.note("Nothing was changed (--dry-run).");
    return ExitCode::problems;
  }
  if (!request.json || !request.yes) tell(false);
  if (!request.yes && !terminal.confirm("Repair the volume so?")) {
    drop_work_file(*work_file);
    return not_confirmed(terminal, "--yes repairs it");
  }
  auto applied = plan.apply(lun, [&](std::uint64_t done, std::uint64_t of) {
    terminal.progress("writing the catalog", done, of);
  });
  terminal.progress("");
  if (!applied) {
    if (applied.error() == Errc::refused) {  // Nothing was written, and that is not to be.
      drop_work_file(*work_file);
      return failed(terminal, applied.error());
    }
    (void)failed(terminal, applied.error().within("writing the repair"));
    terminal.note("csvctl: the repaired catalog is kept in " + *work_file +
                  "; go on with: csvctl volume check LUN --repair --from " + *work_file);
    return ExitCode::failed;
  }
  drop_work_file(*work_file);
  auto report = volume::check(lun, [&](std::uint64_t done, std::uint64_t of) {
    terminal.progress("looking at the result", done, of);
  });
  terminal.progress("");
  if (!report) return failed(terminal, report.error().within("looking at the result"));
  if (!report->problems.empty()) {
    for (const auto& problem : report->problems) terminal.note("PROBLEM: " + problem);
    return failed(terminal, Error{Errc::corrupt, "the volume was repaired and is not clean"});
  }
  if (request.json && request.yes) tell(true);
  if (!request.json) terminal.out("Volume " + plan.info().label + " was repaired and is clean.\n");
  return ExitCode::done;
}

// ---------------------------------------------------------------------------- served volumes

bool is_volume_name(const std::string& text) {
  return text.find("://") == text.npos && !text.starts_with("/") && !text.starts_with("file:");
}

Expected<ServedCatalog> ask_for_catalog(const std::string& socket, const std::string& volume,
                                        Terminal& terminal) {
  Json request{{"command", "catalog_copy"}, {"volume", volume}};
  auto text = ask_csvd(socket, request.dump(), std::chrono::hours{4}, [&](Duration waited) {
    terminal.progress("csvd copies the catalog of " + volume, waited);
  });
  terminal.progress("");
  auto answer = Json::parse(CSV_TRY(std::move(text)), nullptr, false);
  if (!answer.is_object() || !answer.contains("ok"))
    return Error{Errc::corrupt, "csvd's answer cannot be understood"};
  if (!answer["ok"].get<bool>()) return Error{Errc::refused, answer.value("error", "csvd refused")};
  ServedCatalog out;
  out.file = answer.value("file", "");
  out.taken_at = answer.value("taken_at", std::int64_t{});
  out.pages = answer.value("pages", std::uint64_t{});
  out.on_lun = answer.value("on_lun", false);
  out.problems = answer.value("problems", std::vector<std::string>{});
  auto about = answer.value("volume", Json::object());
  out.info.label = about.value("label", "");
  out.info.lun_size = about.value("lun_size", std::uint64_t{});
  out.info.wal_size = about.value("wal_size", std::uint64_t{});
  out.info.data_offset = about.value("data_offset", std::uint64_t{});
  out.info.data_size = about.value("data_size", std::uint64_t{});
  out.info.chunks = about.value("chunks", std::vector<std::uint64_t>{});
  if (out.file.empty())
    return Error{std::errc::io_error,
                 "csvd made no file of the catalog: " + answer.value("no_file", "")};
  return out;
}

namespace {

ExitCode not_asked(Terminal& terminal, const Error& why) {
  (void)failed(terminal, why);
  return why == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
}

}  // namespace

ExitCode check_served(const std::string& socket, const std::string& volume, bool json,
                      Terminal& terminal) {
  terminal.note("csvd copies the catalog of " + volume + " while it serves it …");
  auto got = ask_for_catalog(socket, volume, terminal);
  if (!got) return not_asked(terminal, got.error());
  volume::CheckReport report;
  report.problems = got->problems;
  auto checked = volume::check_catalog_file(got->file, got->info, report,
                                            [&](std::uint64_t done, std::uint64_t of) {
                                              terminal.progress("checking " + volume, done, of);
                                            });
  terminal.progress("");
  if (!checked) return failed(terminal, checked.error());
  return tell_check(report, json, terminal);
}

ExitCode back_up_catalog(const std::string& socket, const std::string& volume, bool json,
                         Terminal& terminal) {
  auto got = ask_for_catalog(socket, volume, terminal);
  if (!got) return not_asked(terminal, got.error());
  if (json) {
    Json out{{"volume", volume},
             {"file", got->file},
             {"bytes", got->pages * 4096},
             {"taken_at", got->taken_at},
             {"on_lun", got->on_lun}};
    terminal.out(out.dump(2) + "\n");
    return ExitCode::done;
  }
  terminal.out(fmt::format("The catalog of {} ({}) is in {}{}\n", volume,
                           bytes_text(got->pages * 4096), got->file,
                           got->on_lun ? " and on the LUN."
                                       : ". The LUN has no room for a copy: no allocation group is "
                                         "wholly free, or it is thin and has no space left."));
  return ExitCode::done;
}

ExitCode grow_volume(const std::string& socket, const LunChoice& lun_or_name, Terminal& terminal) {
  if (is_volume_name(lun_or_name.url)) {
    Json request{{"command", "volume_grow"}, {"volume", lun_or_name.url}};
    auto answer = ask_csvd(socket, request.dump(), 300s, [&](Duration waited) {
      terminal.progress("csvd takes the volume over again", waited);
    });
    terminal.progress("");
    if (!answer) return not_asked(terminal, answer.error());
    auto parsed = Json::parse(*answer, nullptr, false);
    if (!parsed.is_object() || !parsed.contains("ok"))
      return failed(terminal, Error{Errc::corrupt, "csvd's answer cannot be understood"});
    if (!parsed["ok"].get<bool>())
      return failed(terminal, Error{Errc::refused, parsed.value("error", "csvd refused")});
    auto before = parsed.value("bytes_before", std::uint64_t{});
    auto now = parsed.value("bytes", std::uint64_t{});
    if (now <= before)
      return failed(terminal, Error{Errc::refused,
                                    "the volume has all of its LUN, as this node sees it: enlarge "
                                    "it at the target first"});
    terminal.out(fmt::format("Volume {} has {} for files now, {} more.\n", lun_or_name.url,
                             bytes_text(now), bytes_text(now - before)));
    return ExitCode::done;
  }
  auto opened = ToolLun::open(lun_or_name.url, lun_or_name.options);
  if (!opened) return failed(terminal, opened.error());
  auto& lun = (*opened)->blocking();
  auto random = Random::from_system();
  auto alone = SoleUse::enter(**opened, 0, random);
  if (!alone) return failed(terminal, alone.error());
  if (auto users = (*alone)->users().in_words(); !users.empty())
    return in_use(lun_or_name.url, users, " Or let its coordinator do it: csvctl volume grow NAME.",
                  terminal);
  if (auto taken = (*alone)->take(); !taken)
    return failed(terminal, taken.error().within("taking the LUN"));
  auto before = volume::read_superblocks(lun, false);
  if (!before) return failed(terminal, before.error());
  auto grown = volume::grow(lun, random);
  if (!grown) return failed(terminal, grown.error());
  terminal.out(fmt::format("Volume {} has {} for files now, {} more.\n", grown->label,
                           bytes_text(grown->data_size),
                           bytes_text(grown->data_size - before->data_size)));
  return ExitCode::done;
}

}  // namespace csv::admin
