#include "coordinator/admin/top.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "coordinator/admin/admin_server.h"
#include "coordinator/admin/text_table.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;

/// The growth of counters between two objects of the same shape.
class Growth {
 public:
  Growth(const Json& before, const Json& after, double seconds)
      : before_{before}, after_{after}, seconds_{seconds} {}
  [[nodiscard]] double of(const char* counter) const {
    auto now = value(after_, counter), then = value(before_, counter);
    return static_cast<double>(now >= then ? now - then : now);
  }
  [[nodiscard]] double rate(const char* counter) const { return rounded(of(counter) / seconds_); }
  static double rounded(double value) {
    return static_cast<double>(static_cast<std::int64_t>(value * 1000 + 0.5)) / 1000;
  }

 private:
  static std::uint64_t value(const Json& of, const char* counter) {
    auto found = of.is_object() ? of.find(counter) : of.end();
    return of.is_object() && found != of.end() ? found->get<std::uint64_t>() : 0;
  }
  const Json& before_;
  const Json& after_;
  double seconds_;
};

/// The element of an array of objects whose `key` is the same; null where there is none.
Json same(const Json& list, const char* key, const Json& value) {
  if (list.is_array())
    for (const auto& each : list)
      if (each.at(key) == value) return each;
  return {};
}

Json mount_rates(const Json& before, const Json& after, double seconds) {
  Growth c{before.is_object() ? before.at("counters") : before, after.at("counters"), seconds};
  auto reads = c.of("reads"), writes = c.of("writes");
  auto latency = [&](const char* time, double count) {
    return count > 0 ? Json(Growth::rounded(c.of(time) / count / 1000)) : Json{};
  };
  auto direct = c.of("direct_read_bytes") + c.of("direct_write_bytes");
  auto redirected = c.of("redirected_read_bytes") + c.of("redirected_write_bytes");
  auto share = direct + redirected > 0 ? redirected / (direct + redirected) : 0;
  return {{"mode", after.at("mode")},
          {"operations_s", c.rate("operations")},
          {"reads_s", c.rate("reads")},
          {"read_bytes_s", c.rate("direct_read_bytes") + c.rate("redirected_read_bytes")},
          {"writes_s", c.rate("writes")},
          {"write_bytes_s", c.rate("direct_write_bytes") + c.rate("redirected_write_bytes")},
          {"read_latency_ms", latency("read_us", reads)},
          {"write_latency_ms", latency("write_us", writes)},
          {"redirected_share", Growth::rounded(share)}};
}

Json service_rates(const Json& before, const Json& after, double seconds) {
  Growth c{before, after, seconds};
  Growth lun{before.is_object() ? before.at("lun") : before, after.at("lun"), seconds};
  Json out{{"changes_s", c.rate("changes")},
           {"transactions_s", c.rate("transactions")},
           {"recalls_s", c.rate("recalls")},
           {"lun_reads_s", lun.rate("reads")},
           {"lun_read_bytes_s", lun.rate("read_bytes")},
           {"lun_writes_s", lun.rate("writes")},
           {"lun_write_bytes_s", lun.rate("write_bytes")},
           {"sessions", Json::array()}};
  for (const auto& one : after.at("sessions")) {
    auto then =
        before.is_object() ? same(before.at("sessions"), "session", one.at("session")) : Json{};
    Growth s{then, one, seconds};
    out["sessions"].push_back({{"session", one.at("session")},
                               {"node", one.at("node")},
                               {"requests_s", s.rate("requests")},
                               {"redirected_read_bytes_s", s.rate("redirected_read_bytes")},
                               {"redirected_write_bytes_s", s.rate("redirected_write_bytes")}});
  }
  return out;
}

std::string number(const Json& value) { return fmt::format("{:.0f}", value.get<double>()); }
std::string mib(const Json& value) {
  return fmt::format("{:.1f}", value.get<double>() / (1024 * 1024));
}

std::string ms(const Json& value) {
  return value.is_null() ? "-" : fmt::format("{:.2f}", value.get<double>());
}

std::string text_of(const Json& rates, const Paint& paint) {
  std::string out;
  TextTable mounts{{"VOLUME", "MODE", "OPS/S", "READS/S", "MiB/S", "MS", "WRITES/S", "MiB/S", "MS",
                    "REDIRECTED"}};
  TextTable sessions{{"VOLUME", "NODE", "REQUESTS/S", "REDIRECTED READ MiB/S", "WRITTEN MiB/S"}};
  TextTable coordinated{{"VOLUME", "CHANGES/S", "TRANSACTIONS/S", "RECALLS/S", "LUN READ MiB/S",
                         "LUN WRITTEN MiB/S"}};
  for (const auto& volume : rates.at("volumes")) {
    auto name = volume.at("name").get<std::string>();
    const auto& m = volume.at("mount");
    if (m.is_object()) {
      auto mode = m.at("mode").get<std::string>();
      mounts.row({name, mode == "direct" ? paint.good(mode) : paint.warning(mode),
                  number(m.at("operations_s")), number(m.at("reads_s")), mib(m.at("read_bytes_s")),
                  ms(m.at("read_latency_ms")), number(m.at("writes_s")), mib(m.at("write_bytes_s")),
                  ms(m.at("write_latency_ms")),
                  fmt::format("{:.0f} %", m.at("redirected_share").get<double>() * 100)});
    }
    const auto& s = volume.at("service");
    if (!s.is_object()) continue;
    coordinated.row({name, number(s.at("changes_s")), number(s.at("transactions_s")),
                     number(s.at("recalls_s")), mib(s.at("lun_read_bytes_s")),
                     mib(s.at("lun_write_bytes_s"))});
    for (const auto& one : s.at("sessions"))
      sessions.row({name, std::to_string(one.at("node").get<int>()), number(one.at("requests_s")),
                    mib(one.at("redirected_read_bytes_s")),
                    mib(one.at("redirected_write_bytes_s"))});
  }
  if (!mounts.empty()) out += paint.bold("Mounts of this node") + "\n" + mounts.text(2);
  if (!coordinated.empty())
    out += "\n" + paint.bold("Coordinated here") + "\n" + coordinated.text(2);
  if (!sessions.empty())
    out += "\n" + paint.bold("What the nodes ask of this coordinator") + "\n" + sessions.text(2);
  return out.empty() ? "No volume is mounted or coordinated on this node.\n" : out;
}

Json parsed(const std::string& text) { return Json::parse(text); }

volatile std::sig_atomic_t g_stop = 0;

}  // namespace

Expected<std::string> rates_json(const std::string& before, const std::string& after,
                                 Duration apart) {
  try {
    auto then = parsed(before), now = parsed(after);
    auto seconds = std::max(std::chrono::duration<double>(apart).count(), 0.001);
    Json out{{"version", 1},
             {"interval_s", Growth::rounded(seconds)},
             {"node", now.at("node").at("id")},
             {"volumes", Json::array()}};
    for (const auto& volume : now.at("volumes")) {
      auto was = same(then.at("volumes"), "name", volume.at("name"));
      auto part = [&](const char* name) { return was.is_object() ? was.at(name) : Json{}; };
      const auto& mount = volume.at("mount");
      const auto& service = volume.at("service");
      out["volumes"].push_back(
          {{"name", volume.at("name")},
           {"mount", mount.is_object() ? mount_rates(part("mount"), mount, seconds) : Json{}},
           {"service",
            service.is_object() ? service_rates(part("service"), service, seconds) : Json{}}});
    }
    return out.dump(2);
  } catch (const Json::exception& wrong) {
    return Error{Errc::corrupt, std::string{"csvd's answer is not a status: "} + wrong.what()};
  }
}

Expected<std::string> rates_text(const std::string& rates, const Paint& paint) {
  try {
    return text_of(parsed(rates), paint);
  } catch (const Json::exception& wrong) {
    return Error{Errc::corrupt, std::string{"these are no rates: "} + wrong.what()};
  }
}

ExitCode show_top(const TopRequest& request, Terminal& terminal) {
  auto failed = [&](const Error& why) {
    terminal.note("csvctl: " + why.message());
    return why == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
  };
  auto paint = Paint::standard();
  bool in_place = !request.once && !request.json && ::isatty(STDOUT_FILENO) == 1;
  ::signal(SIGINT, [](int) { g_stop = 1; });
  ::signal(SIGTERM, [](int) { g_stop = 1; });
  const std::string ask = R"({"command":"status"})";
  auto before = ask_csvd(request.socket, ask, 10s);
  if (!before) return failed(before.error());
  auto then = terminal.clock().now();
  auto wait = static_cast<int>(request.interval / std::chrono::milliseconds{1});
  for (;;) {
    ::poll(nullptr, 0, wait);
    if (g_stop != 0) return ExitCode::done;
    auto after = ask_csvd(request.socket, ask, 10s);
    if (!after) return failed(after.error());
    auto now = terminal.clock().now();
    auto rates = rates_json(*before, *after, now - then);
    if (!rates) return failed(rates.error());
    std::string out;
    if (request.json) {
      out = request.once ? *rates + "\n" : Json::parse(*rates).dump() + "\n";
    } else {
      auto text = rates_text(*rates, paint);
      if (!text) return failed(text.error());
      out = (in_place ? "\033[H\033[J" : "") + *text;
      if (in_place)
        out += "\n" + paint.faint(fmt::format("every {} s; Ctrl-C ends", wait / 1000.0)) + "\n";
      else if (!request.once)
        out += "\n";
    }
    if (!terminal.out(out) || request.once) return ExitCode::done;
    before = std::move(after);
    then = now;
  }
}

}  // namespace csv::admin
