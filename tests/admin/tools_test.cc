// What people are shown: made from csvd's answers, without csvd.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "coordinator/admin/events_command.h"
#include "coordinator/admin/node_volumes.h"
#include "coordinator/admin/status.h"
#include "coordinator/admin/text_table.h"
#include "coordinator/admin/top.h"

using namespace csv;
using namespace csv::admin;
using Json = nlohmann::ordered_json;

namespace {

Json counters(std::uint64_t each) {
  Json out;
  for (const auto* name :
       {"operations", "direct_reads", "direct_read_bytes", "direct_writes", "direct_write_bytes",
        "redirected_reads", "redirected_read_bytes", "redirected_writes", "redirected_write_bytes",
        "requests", "reconnects", "recalls", "readmissions", "stale_commits", "reads", "read_us",
        "writes", "write_us"})
    out[name] = each;
  return out;
}

/// A node that coordinates and mounts one volume, in health.
Json healthy() {
  return Json::parse(R"({"version":1,"cluster":7,"node":{"id":1,"name":"alpha","address":"a:1"},
    "incarnation":"01","up_s":100,
    "peers":[{"id":2,"name":"beta","address":"b:1","present":true,"incarnation":"02","silent_s":0}],
    "volumes":[{"name":"v","lun":"file:/x","coordinator_node":1,"coordinator_endpoint":"a:1",
      "epoch":3,"key":"00","lease_ms":2500,"here":{"state":"serving","reason":"","since_s":90},
      "service":{"epoch":3,"key":"00","since_s":90,"total_blocks":1000,"free_blocks":900,"inodes":2,
        "transactions":10,"changes":20,"fences":0,"stale_commits":0,"recalls":4,"unwatches":6,
        "content_read_bytes":0,"content_write_bytes":0,
        "lun":{"reads":0,"read_bytes":0,"writes":0,"write_bytes":0,"flushes":0,"zeroes":0,
               "unmaps":0,"retries":0,"conflicts":0,"timeouts":0},
        "sessions":[{"session":5,"node":2,"connected":true,"admitted":true,"key":"00",
          "open_files":1,"layouts":1,"watched":12,"requests":100,"redirected_read_bytes":0,
          "redirected_write_bytes":0}]},
      "mount":{"pid":42,"alive":true,"mode":"direct","reason":"","since_s":80,"counters":)" +
                     counters(0).dump() + "}}]}");
}

std::string told(const Json& status, bool colours = false) {
  auto text = status_text(status.dump(), Paint{colours});
  REQUIRE(text);
  return *text;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

WallTime at(const char* moment) {
  auto parsed = parse_since(moment, WallTime{});
  REQUIRE(parsed);
  return *parsed;
}

}  // namespace

TEST_CASE("status: health is said at once, and colours are for a terminal only") {
  auto text = told(healthy());
  CHECK(has(text, "All is well."));
  CHECK(text.find("All is well.") < text.find("NODE"));
  CHECK(has(text, "alpha (this node), epoch 3"));
  CHECK_FALSE(has(text, "\033"));
  CHECK(has(told(healthy(), true), "\033[32mAll is well."));
}

TEST_CASE("status: whatever is wrong is said first, with why, since when and on whose word") {
  struct Case {
    const char* what;
    std::function<void(Json&)> breaks;
    const char* said;
  };
  auto volume = [](Json& status) -> Json& { return status["volumes"][0]; };
  const Case cases[] = {
      {"a mount that waits",
       [&](Json& s) {
         volume(s)["mount"]["mode"] = "paused";
         volume(s)["mount"]["reason"] = "no coordinator";
       },
       "v: the mount here is paused: no coordinator, for 1 min 20 s (says csvfs, process 42)"},
      {"a mount that crashed", [&](Json& s) { volume(s)["mount"]["alive"] = false; },
       "v: csvfs was killed or crashed"},
      {"a silent peer",
       [](Json& s) {
         s["peers"][0]["present"] = false;
         s["peers"][0]["silent_s"] = 12;
       },
       "beta: is silent, for 12 s (says csvd of alpha)"},
      {"a peer never heard",
       [](Json& s) {
         s["peers"][0]["present"] = false;
         s["peers"][0]["silent_s"] = nullptr;
       },
       "beta: has not been heard since this csvd began"},
      {"nobody coordinates",
       [&](Json& s) {
         volume(s)["coordinator_node"] = 0;
         volume(s)["service"] = nullptr;
         volume(s)["here"] = {{"state", "waiting"}, {"reason", "the LUN is lost"}, {"since_s", 9}};
       },
       "v: nobody coordinates it; this node: the LUN is lost, for 9 s"},
      {"a closed lease", [&](Json& s) { volume(s)["lease_ms"] = 0; },
       "v: the coordinator does not answer this node's beats"},
      {"little space", [&](Json& s) { volume(s)["service"]["free_blocks"] = 10; },
       "v: only 40.0 KiB are free"},
      {"a session that is away",
       [&](Json& s) { volume(s)["service"]["sessions"][0]["connected"] = false; },
       "v: the mount of beta is away"},
  };
  for (const auto& each : cases) {
    CAPTURE(each.what);
    auto status = healthy();
    each.breaks(status);
    auto text = told(status);
    CAPTURE(text);
    CHECK(has(text, "Needs attention (1):"));
    CHECK(has(text, each.said));
    CHECK_FALSE(has(text, "All is well."));
  }
}

TEST_CASE("status: the quorum has a line, and its trouble comes first") {
  auto status = healthy();
  status["voting"] = Json::parse(
      R"({"node":1,"state":"formed","reason":"","since_s":300,"name":"demo","votes":3,
          "votes_present":3,"attention":[],"nodes":[{"id":1}]})");
  CHECK(has(told(status), "cluster demo: quorate (3 of 3 votes), for 5 min"));
  CHECK(has(told(status), "All is well."));
  auto& voting = status["voting"];
  voting["attention"] = {{{"subject", "quorum"}, {"text", "one more failure stops the cluster"}}};
  // It has not lasted as long as the quorum has.
  CHECK(has(told(status), "quorum: one more failure stops the cluster (says csvd of alpha)"));
  voting["state"] = "no quorum";
  voting["reason"] = "the nodes 1 are no majority";
  voting["attention"] = Json::array();
  status["peers"][0]["present"] = false;
  auto text = told(status);
  CHECK(has(text, "cluster demo: no quorum (the nodes 1 are no majority), for 5 min"));
  CHECK(has(text, "! quorum: no quorum: the nodes 1 are no majority, for 5 min"));
  CHECK(text.find("! quorum") < text.find("! beta"));
  status["voting"] = nullptr;
  CHECK_FALSE(has(told(status), "quorum"));
}

TEST_CASE("status: what is not a status is refused") {
  CHECK_FALSE(status_text("{}", Paint{}));
  CHECK_FALSE(status_text("what", Paint{}));
}

TEST_CASE("top: rates are what lies between, by the time between") {
  auto before = healthy(), after = healthy();
  auto& mount = after["volumes"][0]["mount"]["counters"];
  mount["reads"] = 200;
  mount["read_us"] = 100'000;
  mount["direct_read_bytes"] = 3 * 1024 * 1024;
  mount["redirected_read_bytes"] = 1024 * 1024;
  after["volumes"][0]["service"]["sessions"][0]["requests"] = 300;
  auto text = rates_json(before.dump(), after.dump(), 2s);
  REQUIRE(text);
  auto rates = Json::parse(*text);
  const auto& m = rates["volumes"][0]["mount"];
  CHECK(m["reads_s"] == 100);
  CHECK(m["read_bytes_s"] == 2 * 1024 * 1024);
  CHECK(m["read_latency_ms"] == 0.5);
  CHECK(m["write_latency_ms"].is_null());
  CHECK(m["redirected_share"] == 0.25);
  CHECK(rates["volumes"][0]["service"]["sessions"][0]["requests_s"] == 100);
  auto shown = rates_text(*text, Paint{});
  REQUIRE(shown);
  CHECK(has(*shown, "25 %"));
}

TEST_CASE("top: a counter that began anew counts from zero, and a volume may come and go") {
  auto before = healthy(), after = healthy();
  before["volumes"][0]["mount"]["counters"]["writes"] = 1000;
  after["volumes"][0]["mount"]["counters"]["writes"] = 10;
  auto rates = rates_json(before.dump(), after.dump(), 1s);
  REQUIRE(rates);
  CHECK(Json::parse(*rates)["volumes"][0]["mount"]["writes_s"] == 10);
  before["volumes"] = Json::array();
  CHECK(rates_json(before.dump(), after.dump(), 1s));
  before = healthy();
  before["volumes"][0]["mount"] = before["volumes"][0]["service"] = nullptr;
  CHECK(rates_json(before.dump(), after.dump(), 1s));
  CHECK(rates_json(after.dump(), before.dump(), 1s));
  CHECK_FALSE(rates_json("{}", "{}", 1s));
}

TEST_CASE("events: --since takes spans, times and dates") {
  auto now = at("2026-05-20 12:00:00");
  auto second = std::int64_t{1'000'000'000};
  auto ago = [&](const char* text) {
    auto parsed = parse_since(text, now);
    REQUIRE(parsed);
    return (static_cast<std::int64_t>(now) - static_cast<std::int64_t>(*parsed)) / second;
  };
  CHECK(ago("90s") == 90);
  CHECK(ago("10m") == 600);
  CHECK(ago("2h") == 7200);
  CHECK(ago("1d") == 86'400);
  CHECK(ago("11:30") == 1800);
  CHECK(ago("11:59:58") == 2);
  CHECK(ago("2026-05-20") == 12 * 3600);
  CHECK(ago("2026-05-20 11:00") == 3600);
  for (const auto* wrong : {"", "5", "m", "-5m", "5x", "25:99", "yesterday", "2026-13-40",
                            "99999999999999999999s", "999999999999d"}) {
    CAPTURE(wrong);
    CHECK_FALSE(parse_since(wrong, now));
  }
}

TEST_CASE("events: a line says when, how bad, who, what and why; JSON has the same") {
  events::Event event;
  event.severity = events::Severity::warning;
  event.program = "csvfs";
  event.what = "mount";
  event.volume = "v";
  event.text = "paused";
  event.cause = "no \"coordinator\"";
  event.count = 3;
  auto line = event_line(event, Paint{});
  CHECK(has(line, "warning  csvfs  v mount: paused: no \"coordinator\" (3 times since "));
  auto json = Json::parse(event_json(event));
  CHECK(json["cause"] == event.cause);
  CHECK(json["time"] == "1970-01-01T00:00:00.000Z");
}

TEST_CASE("volume add: the text before stays, and what would not be valid is refused") {
  const std::string before =
      "# mine\n[cluster]\nid = 5\n[node]\nid = 1\nname = \"n\"\nlisten = \"127.0.0.1:1\"  # ours";
  AddRequest request;
  request.name = "v";
  request.lun.url = "file:/a \"b\"";
  request.sessions = 3;
  request.coordinate = true;
  auto after = with_volume(before, "f", request);
  REQUIRE(after);
  CHECK(after->starts_with(before + "\n"));
  auto config = parse_config(*after, "f");
  REQUIRE(config);
  REQUIRE(config->volumes.size() == 1);
  CHECK(config->volumes[0].lun == request.lun.url);
  CHECK(config->volumes[0].sessions == 3);
  CHECK(config->volumes[0].coordinate);
  CHECK_FALSE(with_volume(*after, "f", request));  // twice
  request.name = "not a name";
  CHECK_FALSE(with_volume(before, "f", request));
}

TEST_CASE("tables: colours take no room") {
  Paint paint{true};
  TextTable table{{"A", "B"}};
  table.row({paint.good("ok"), "1"});
  table.row({"longer", "22"});
  CHECK(table.text() == "A        B\n\033[32mok\033[0m       1\nlonger  22\n");
}
