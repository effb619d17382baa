#include "coordinator/admin/volume_commands.h"

#include <map>
#include <nlohmann/json.hpp>

#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/cluster_commands.h"
#include "coordinator/admin/events_command.h"
#include "coordinator/admin/status.h"
#include "coordinator/admin/text_table.h"
#include "coordinator/volume/check.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/log.h"
#include "iscsi/target_profile.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;
using iscsi::ReservationType;

/// A coordinator closes a volume, or another one takes it over, within this.
constexpr Duration kSettles = 60s;

ExitCode failed(Terminal& terminal, const Error& why) {
  terminal.progress("");
  terminal.note("csvctl: " + why.message());
  return ExitCode::failed;
}

std::string_view reservation_text(ReservationType type) {
  switch (type) {
    case ReservationType::none: return "none";
    case ReservationType::write_exclusive: return "write exclusive";
    case ReservationType::exclusive_access: return "exclusive access";
    case ReservationType::write_exclusive_registrants_only:
      return "write exclusive, registrants only";
    case ReservationType::exclusive_access_registrants_only:
      return "exclusive access, registrants only";
    case ReservationType::write_exclusive_all_registrants:
      return "write exclusive, all registrants";
    case ReservationType::exclusive_access_all_registrants:
      return "exclusive access, all registrants";
  }
  return "unknown";
}

/// Every key once, with the number of its nexuses.
std::map<Key, int> count(const std::vector<Key>& keys) {
  std::map<Key, int> out;
  for (auto key : keys) ++out[key];
  return out;
}

std::string key_words(Key key) {
  auto parts = parts_of(key);
  return fmt::format("{} (cluster {}, node {}, {})", key_text(key), parts.cluster, raw(parts.node),
                     to_text(parts.role));
}

/// What formatting the LUN would destroy or disturb, a line each.
Expected<std::string> in_the_way(iscsi::BlockingLun& lun) {
  auto keys = CSV_TRY(lun.read_keys());
  auto held = CSV_TRY(lun.read_reservation());
  std::string out;
  for (const auto& [key, nexuses] : count(keys.keys))
    out += fmt::format("  key {} is registered on {} nexus(es)\n", key_words(key), nexuses);
  if (held.type != ReservationType::none)
    out += fmt::format("  it is reserved: {}\n", reservation_text(held.type));
  auto content = volume::recognise(lun);
  if (content) {
    if (!content->empty()) out += "  it holds " + *content + "\n";
  } else if (held.type != ReservationType::none) {
    out += "  its content cannot be looked at while it is reserved\n";
  } else {
    return content.error().within("looking at what is on the LUN");
  }
  return out;
}

std::string lun_line(const std::string& url, const iscsi::Lun& lun) {
  const auto& profile = lun.profile();
  auto size = lun.geometry().known()
                  ? fmt::format("{}, blocks of {} bytes", bytes_text(lun.geometry().size_bytes()),
                                lun.geometry().block_size)
                  : std::string{"reserved: it does not say its size"};
  return fmt::format("{} ({} {} {}, {})", url, profile.vendor, profile.product, profile.identity,
                     size);
}

/// `done`: what has come about without votes; `settled`: with them.
ExitCode start_or_stop(const std::string& socket, const AdminRequest& ask_for,
                       const std::string& done, const std::string& settled, Terminal& terminal) {
  Json request{{"command", ask_for.command}, {"volume", ask_for.volume}};
  // A takeover waits for leases to end, and for fenced mounts.
  auto answer = ask_csvd(socket, request.dump(), 120s,
                         [&](Duration waited) { terminal.progress("waiting for csvd", waited); });
  terminal.progress("");
  if (!answer) {
    (void)failed(terminal, answer.error());
    return answer.error() == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
  }
  auto parsed = Json::parse(*answer, nullptr, false);
  if (!parsed.is_object() || !parsed.contains("ok"))
    return failed(terminal, Error{Errc::corrupt, "csvd's answer cannot be understood"});
  if (!parsed["ok"].get<bool>())
    return failed(terminal, Error{Errc::refused, parsed.value("error", "csvd refused")});
  if (parsed.value("votes", false))
    return wait_until_settled(socket, ask_for, settled, kSettles, terminal);
  terminal.out(done + "\n");
  return ExitCode::done;
}

}  // namespace

ExitCode format_volume(const FormatRequest& request, Terminal& terminal) {
  auto opened = ToolLun::open(request.lun.url, request.lun.options);
  if (!opened) return failed(terminal, opened.error());
  auto& lun = (*opened)->blocking();
  auto obstacles = in_the_way(lun);
  if (!obstacles) return failed(terminal, obstacles.error());
  auto what = lun_line(request.lun.url, (*opened)->lun());
  if (!obstacles->empty() && !request.yes) {
    terminal.note("The LUN " + what + " is in use:\n" + *obstacles +
                  "Formatting destroys what is on it, and throws its users out.");
    if (!terminal.confirm("Format it all the same?")) {
      terminal.note(terminal.may_ask() ? "Nothing was changed."
                                       : "csvctl: nothing was changed; --yes formats it");
      return ExitCode::not_confirmed;
    }
  }
  terminal.note("Formatting " + what);
  if (auto advice = iscsi::advice_on((*opened)->lun().profile()); !advice.empty())
    terminal.note(std::string{advice});
  auto random = Random::from_system();
  volume::FormatOptions options;
  options.label = request.name;
  options.cluster = request.cluster;
  options.overwrite = !obstacles->empty();
  options.progress = [&](std::uint64_t done, std::uint64_t of) {
    terminal.progress("taking space for the catalog", done, of);
  };
  auto info = volume::format(lun, options, random, terminal.clock().wall_now());
  terminal.progress("");
  if (!info) return failed(terminal, info.error());
  std::string id;
  for (auto byte : info->id) id += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  terminal.out(fmt::format("Volume {} of cluster {}: {} for files, id {}\n", info->label,
                           info->cluster, bytes_text(info->data_size), id));
  return ExitCode::done;
}

ExitCode check_volume(const LunChoice& lun, bool json, Terminal& terminal) {
  auto opened = ToolLun::open(lun.url, lun.options);
  if (!opened) return failed(terminal, opened.error());
  auto random = Random::from_system();
  auto key = TemporaryKey::enter((*opened)->blocking(), random);
  if (!key) return failed(terminal, key.error());
  if (auto told = tell_of_users((*opened)->blocking(), (*key)->key(), terminal); !told)
    return failed(terminal, told.error());
  auto report = volume::check((*opened)->blocking(), [&](std::uint64_t done, std::uint64_t of) {
    terminal.progress("checking " + lun.url, done, of);
  });
  terminal.progress("");
  if (!report) {
    if (report.error() == Errc::fenced)
      return failed(terminal, report.error().within(
                                  "the volume is being served, and its coordinator threw the check "
                                  "out; stop it first (csvctl volume stop)"));
    return failed(terminal, report.error());
  }
  if (auto left = (*key)->leave(); !left)
    terminal.note("csvctl: giving up the temporary key failed (the next coordinator removes it): " +
                  left.error().message());
  return tell_check(*report, json, terminal);
}

Expected<void> tell_of_users(iscsi::BlockingLun& lun, Key mine, Terminal& terminal) {
  auto users = CSV_TRY(service::look_for_users(lun, mine));
  if (auto words = users.in_words(); !words.empty())
    terminal.note("The volume may be in use, and changes under way look like damage:\n" + words +
                  "Of a volume that is served: csvctl volume check NAME, on its coordinator.");
  return {};
}

ExitCode tell_check(const volume::CheckReport& report, bool json, Terminal& terminal) {
  if (json) {
    Json out{{"clean", report.problems.empty()},  {"problems", report.problems},
             {"advice", report.advice},           {"inodes", report.inodes},
             {"entries", report.entries},         {"extents", report.extents},
             {"used_blocks", report.used_blocks}, {"free_blocks", report.free_blocks},
             {"orphans", report.orphans}};
    terminal.out(out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    std::string out;
    for (const auto& problem : report.problems) out += "PROBLEM: " + problem + "\n";
    for (const auto& advice : report.advice) out += "ADVICE: " + advice + "\n";
    constexpr std::uint64_t kBlock = volume::kBlockSize;
    out += fmt::format("{} inodes, {} entries, {} extents, {} used, {} free, {} orphans\n",
                       report.inodes, report.entries, report.extents,
                       bytes_text(report.used_blocks * kBlock),
                       bytes_text(report.free_blocks * kBlock), report.orphans);
    out += report.problems.empty()
               ? "The volume is clean.\n"
               : fmt::format("The volume has {} problem(s).\n", report.problems.size());
    terminal.out(out);
  }
  return report.problems.empty() ? ExitCode::done : ExitCode::problems;
}

ExitCode show_reservation(const LunChoice& lun, bool json, Terminal& terminal) {
  auto opened = ToolLun::open(lun.url, lun.options);
  if (!opened) return failed(terminal, opened.error());
  auto keys = (*opened)->blocking().read_keys();
  if (!keys) return failed(terminal, keys.error().within("reading the keys"));
  auto held = (*opened)->blocking().read_reservation();
  if (!held) return failed(terminal, held.error().within("reading the reservation"));
  if (json) {
    Json out{{"generation", keys->generation},
             {"type", raw(held->type)},
             {"type_name", reservation_text(held->type)},
             {"holder", held->holder == Key{} ? Json{} : Json(key_text(held->holder))}};
    out["keys"] = Json::array();
    for (const auto& [key, nexuses] : count(keys->keys)) {
      auto parts = parts_of(key);
      out["keys"].push_back({{"key", key_text(key)},
                             {"cluster", parts.cluster},
                             {"node", raw(parts.node)},
                             {"role", to_text(parts.role)},
                             {"number", parts.number},
                             {"nexuses", nexuses}});
    }
    terminal.out(out.dump(2) + "\n");
    return ExitCode::done;
  }
  auto out = lun_line(lun.url, (*opened)->lun()) + "\n";
  out += fmt::format("reservation: {}{}\n", reservation_text(held->type),
                     held->holder == Key{} ? "" : ", held by " + key_text(held->holder));
  TextTable table{{"key", "cluster", "node", "role", "nexuses"}};
  for (const auto& [key, nexuses] : count(keys->keys)) {
    auto parts = parts_of(key);
    table.row({key_text(key), std::to_string(parts.cluster), std::to_string(raw(parts.node)),
               std::string{to_text(parts.role)}, std::to_string(nexuses)});
  }
  out += table.empty() ? "no keys are registered\n" : table.text();
  terminal.out(out);
  return ExitCode::done;
}

namespace {

/// Who may be using the LUN, a line each; also where nobody can tell, as it is kept from us.
Expected<std::string> users_of(iscsi::BlockingLun& lun, const std::vector<Key>& keys,
                               ReservationType type, Random& random) {
  // Under this one its holder alone reads; a try would cost us the way to the LUN, and leave a key.
  if (type != ReservationType::exclusive_access) {
    auto key = CSV_TRY(TemporaryKey::enter(lun, random));
    auto users = CSV_TRY(service::look_for_users(lun, key->key()));
    return users.in_words();
  }
  std::string lines = "  whether it is a volume, and closed, its reservation keeps from us\n";
  for (const auto& [each, nexuses] : count(keys)) lines += "  key " + key_words(each) + "\n";
  return lines;
}

}  // namespace

ExitCode clear_reservation(const ClearRequest& request, Terminal& terminal) {
  const auto& lun = request.lun;
  auto opened = ToolLun::open(lun.url, lun.options);
  if (!opened) return failed(terminal, opened.error());
  auto& blocking = (*opened)->blocking();
  auto keys = blocking.read_keys();
  if (!keys) return failed(terminal, keys.error().within("reading the keys"));
  auto held = blocking.read_reservation();
  if (!held) return failed(terminal, held.error().within("reading the reservation"));
  if (keys->keys.empty() && held->type == ReservationType::none) {
    terminal.out("There is no key and no reservation on " + lun.url + ".\n");
    return ExitCode::done;
  }
  auto random = Random::from_system();
  if (!request.despite_users) {
    auto users = users_of(blocking, keys->keys, held->type, random);
    if (!users) return failed(terminal, users.error());
    if (!users->empty()) {
      terminal.note("csvctl: the LUN " + lun.url + " may be in use, and nothing was changed:\n" +
                    *users +
                    "End it there in good order: csvctl volume stop, umount. If such a node is "
                    "surely down, or the key is a leftover, repeat with --despite-users.");
      return ExitCode::not_confirmed;
    }
  }
  if (!request.yes) {
    std::string listed;
    for (const auto& [key, nexuses] : count(keys->keys)) listed += "  key " + key_words(key) + "\n";
    terminal.note(
        "This removes every key and the reservation (" + std::string{reservation_text(held->type)} +
        ") from " + lun.url + ":\n" + listed +
        "Mounts that use the LUN stop. One that has been fenced but still runs could write again:\n"
        "be sure that nothing uses this LUN.");
    if (!terminal.confirm("Remove them?")) {
      terminal.note(terminal.may_ask() ? "Nothing was changed."
                                       : "csvctl: nothing was changed; --yes removes them");
      return ExitCode::not_confirmed;
    }
  }
  auto mine = make_key(
      {.cluster = 0, .role = KeyRole::coordinator, .number = 1 + random.below((1ull << 38) - 1)});
  if (auto done = blocking.register_key(mine); !done)
    return failed(terminal, done.error().within("registering a temporary key"));
  if (auto done = blocking.clear(mine); !done) {
    (void)blocking.register_key(Key{});
    return failed(terminal, done.error().within("removing the keys"));
  }
  terminal.out(fmt::format("Removed {} key(s) from {}.\n", count(keys->keys).size(), lun.url));
  return ExitCode::done;
}

ExitCode show_status(const std::string& socket, bool json, Terminal& terminal) {
  auto answer = ask_csvd(socket, R"({"command":"status"})", 10s);
  if (!answer) {
    (void)failed(terminal, answer.error());
    return answer.error() == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
  }
  auto parsed = Json::parse(*answer, nullptr, false);
  if (!parsed.is_object())
    return failed(terminal, Error{Errc::corrupt, "csvd's answer is not JSON"});
  if (parsed.contains("error"))
    return failed(terminal, Error{Errc::refused, parsed["error"].dump()});
  if (json) {
    terminal.out(parsed.dump(2) + "\n");
    return ExitCode::done;
  }
  auto text = status_text(*answer, Paint::standard());
  if (!text) return failed(terminal, text.error());
  terminal.out(*text + lately(events::kFile, terminal.clock().wall_now(), Paint::standard()));
  return ExitCode::done;
}

ExitCode start_volume(const std::string& socket, const std::string& volume, Terminal& terminal) {
  return start_or_stop(socket, {.command = "volume_start", .volume = volume},
                       "This node coordinates " + volume + ".", volume + " is in service.",
                       terminal);
}

ExitCode stop_volume(const std::string& socket, const std::string& volume, Terminal& terminal) {
  return start_or_stop(
      socket, {.command = "volume_stop", .volume = volume},
      "This node no longer coordinates " + volume + ".",
      volume + " is out of service, on all nodes; csvctl volume start " + volume + " puts it back.",
      terminal);
}

}  // namespace csv::admin
