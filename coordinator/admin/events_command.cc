#include "coordinator/admin/events_command.h"

#include <poll.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "coordinator/admin/text_table.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;
using events::Event;
using events::Severity;

constexpr int kLookEachMs = 250;
constexpr std::int64_t kSecond = 1'000'000'000;

tm local(WallTime time) {
  auto seconds = static_cast<time_t>(static_cast<std::int64_t>(time) / kSecond);
  tm out{};
  ::localtime_r(&seconds, &out);
  return out;
}

int milliseconds(WallTime time) {
  return static_cast<int>(static_cast<std::int64_t>(time) / 1'000'000 % 1000);
}

std::string local_text(WallTime time) {
  auto parts = local(time);
  return fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     milliseconds(time));
}

std::string utc_text(WallTime time) {
  auto seconds = static_cast<time_t>(static_cast<std::int64_t>(time) / kSecond);
  tm parts{};
  ::gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     milliseconds(time));
}

Json to_json(const Event& event) {
  return {{"sequence", event.sequence},   {"order", event.order},
          {"time", utc_text(event.last)}, {"first_time", utc_text(event.first)},
          {"count", event.count},         {"severity", events::to_text(event.severity)},
          {"program", event.program},     {"pid", event.pid},
          {"what", event.what},           {"volume", event.volume},
          {"text", event.text},           {"cause", event.cause}};
}

std::optional<WallTime> span_before(const std::string& text, WallTime now) {
  std::int64_t number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end + 1 != text.data() + text.size() || number < 0) return {};
  std::int64_t unit = 0;
  switch (*end) {
    case 's': unit = 1; break;
    case 'm': unit = 60; break;
    case 'h': unit = 3600; break;
    case 'd': unit = 86'400; break;
    default: return {};
  }
  if (number > 36'500ll * 86'400 / unit) return {};
  return WallTime{static_cast<std::int64_t>(now) - number * unit * kSecond};
}

volatile std::sig_atomic_t g_stop = 0;

}  // namespace

std::string event_json(const Event& event) {
  return to_json(event).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string event_line(const Event& event, const Paint& paint) {
  auto severity = fmt::format("{:<7}", events::to_text(event.severity));
  if (event.severity == Severity::error) severity = paint.bad(severity);
  if (event.severity == Severity::warning) severity = paint.warning(severity);
  auto subject = event.volume.empty() ? event.what : event.volume + " " + event.what;
  auto line = fmt::format("{}  {}  {:<5}  {}: {}", paint.faint(local_text(event.last)), severity,
                          event.program, paint.bold(subject), event.text);
  if (!event.cause.empty()) line += ": " + event.cause;
  if (event.count > 1)
    line += paint.faint(
        fmt::format(" ({} times since {})", event.count, local_text(event.first).substr(11, 8)));
  return line;
}

Expected<WallTime> parse_since(const std::string& text, WallTime now) {
  if (auto span = span_before(text, now)) return *span;
  for (const auto* form :
       {"%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%H:%M:%S", "%H:%M"}) {
    // What the text does not say is today, at the beginning of what is left out.
    auto parts = local(now);
    parts.tm_sec = 0;
    if (form[1] == 'Y') parts.tm_min = parts.tm_hour = 0;
    const char* end = ::strptime(text.c_str(), form, &parts);
    if (end == nullptr || *end != '\0') continue;
    parts.tm_isdst = -1;
    return WallTime{static_cast<std::int64_t>(::mktime(&parts)) * kSecond};
  }
  return Error{Errc::refused,
               "--since wants a time span (90s, 10m, 2h, 1d), a time (18:30) or a date "
               "(\"2026-01-31 18:30\"), not '" +
                   text + "'"};
}

std::string lately(const std::string& file, WallTime now, const Paint& paint) {
  constexpr std::size_t kMost = 5;
  constexpr std::int64_t kHour = 3600 * kSecond;
  auto ring = events::Ring::read_only(file);
  if (!ring) return "";
  auto all = (*ring)->after(0);
  std::erase_if(all, [&](const auto& each) {
    return each.severity == Severity::info ||
           static_cast<std::int64_t>(now) - static_cast<std::int64_t>(each.last) > kHour;
  });
  if (all.empty()) return "";
  std::string out = "\n" + paint.bold("LATELY") + paint.faint("  csvctl events has all") + "\n";
  for (std::size_t i = all.size() - std::min(all.size(), kMost); i < all.size(); ++i)
    out += "  " + event_line(all[i], paint) + "\n";
  return out;
}

ExitCode show_events(const EventsRequest& request, Terminal& terminal) {
  WallTime since{};
  if (!request.since.empty()) {
    auto parsed = parse_since(request.since, terminal.clock().wall_now());
    if (!parsed) {
      terminal.note("csvctl: " + parsed.error().message());
      return ExitCode::usage;
    }
    since = *parsed;
  }
  auto ring = events::Ring::read_only(request.file);
  if (!ring && ring.error() == std::errc::no_such_file_or_directory) {
    terminal.note("csvctl: no csvd and no csvfs has run on this node since it was started");
    return ExitCode::failed;
  }
  if (!ring) {
    terminal.note("csvctl: " + ring.error().message());
    return ExitCode::failed;
  }
  auto paint = Paint::standard();
  std::uint64_t seen = 0;
  auto chosen = [&] {
    auto all = (*ring)->after(seen);
    if (!all.empty()) seen = all.back().order;
    std::erase_if(all, [&](const auto& each) {
      return each.last < since || (!request.volume.empty() && each.volume != request.volume);
    });
    return all;
  };
  if (request.json && !request.follow) {
    Json out{{"version", 1}, {"events", Json::array()}};
    for (const auto& each : chosen()) out["events"].push_back(to_json(each));
    terminal.out(out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    return ExitCode::done;
  }
  ::signal(SIGINT, [](int) { g_stop = 1; });
  ::signal(SIGTERM, [](int) { g_stop = 1; });
  while (g_stop == 0) {
    for (const auto& each : chosen())
      if (!terminal.out((request.json ? event_json(each) : event_line(each, paint)) + "\n"))
        return ExitCode::done;  // nobody reads any more
    if (!request.follow) break;
    ::poll(nullptr, 0, kLookEachMs);
  }
  return ExitCode::done;
}

}  // namespace csv::admin
