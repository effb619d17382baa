#include "coordinator/cluster/verdict.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace csv;
using namespace csv::cluster;

namespace {

using Maybe = std::optional<bool>;
constexpr Maybe kUnknown = std::nullopt;
const std::vector<Maybe> kAny = {kUnknown, false, true};
const std::vector<Maybe> kNo = {false};
const std::vector<Maybe> kYes = {true};
const std::vector<Maybe> kNotYes = {kUnknown, false};
const std::vector<Maybe> kNotNo = {kUnknown, true};

/// A row of the table: for every combination of its columns, whatever else is seen.
struct Row {
  bool network;
  std::vector<Maybe> service, storage, ping, its_side;
  Finding finding;
  bool fence;  ///< By a side that is quorate, while leases may still run.
};

const Row kTable[] = {
    {true, kYes, kNotNo, kAny, kAny, Finding::healthy, false},
    {true, kNo, kAny, kAny, kAny, Finding::service_lost, false},
    {true, kYes, kNo, kAny, kAny, Finding::storage_lost, false},
    {false, {false, true}, kNo, kAny, kAny, Finding::failed, true},
    {false, {false, true}, kYes, kYes, kNotYes, Finding::partitioned, true},
    {false, {false, true}, kYes, kYes, kYes, Finding::partitioned, false},
    {false, {false, true}, kYes, kNotYes, kNotYes, Finding::isolated, true},
    {false, {false, true}, kYes, kNotYes, kYes, Finding::isolated, false},
    {false, {false, true}, {kUnknown}, kAny, kAny, Finding::unknown, false},
};

template <typename F>
void each_signals(const Row& row, F&& f) {
  for (auto service : row.service)
    for (auto storage : row.storage)
      for (auto ping : row.ping)
        for (auto its_side : row.its_side)
          f(Signals{.network = row.network,
                    .service = *service,
                    .storage = storage,
                    .ping = ping,
                    .its_side_quorate = its_side,
                    .our_side_quorate = true});
}

}  // namespace

TEST_CASE("verdict: the table, for all combinations, each of which is in exactly one row") {
  int seen = 0;
  for (const auto& row : kTable) {
    each_signals(row, [&](const Signals& signals) {
      ++seen;
      auto verdict = judge(signals);
      CAPTURE(verdict.why);
      CHECK(to_text(verdict.finding) == to_text(row.finding));
      CHECK(verdict.fence == row.fence);
      CHECK_FALSE(verdict.why.empty());
    });
  }
  CHECK(seen == 2 * 2 * 3 * 3 * 3);
}

TEST_CASE("verdict: a side without quorum fences nobody, whatever it sees") {
  for (const auto& row : kTable) {
    each_signals(row, [&](Signals signals) {
      signals.our_side_quorate = false;
      for (bool over : {false, true}) {
        signals.lease_over = over;
        CHECK_FALSE(judge(signals).fence);
        CHECK(judge(signals).finding == row.finding);
      }
    });
  }
}

TEST_CASE("verdict: a slot's claim of a quorum holds a fence up only while a lease could run") {
  for (Maybe ping : kAny) {
    Signals signals{.storage = true,
                    .ping = ping,
                    .its_side_quorate = true,
                    .lease_over = true,
                    .our_side_quorate = true};
    CHECK(judge(signals).fence);
  }
}

namespace {

/// A node's ladder under a clock; the text of what it is told to do.
struct Node {
  explicit Node(QuorumLoss::Rules with = {}, bool restarted = false)
      : rules{with}, loss{with, restarted} {}
  /// Lets `time` pass, second by second.
  std::string run(bool quorate, Duration time, Maybe answered = kUnknown) {
    std::string done;
    for (auto end = now + time; now < end; now += 1s) {
      switch (loss.next({quorate, answered}, now)) {
        case QuorumLoss::Action::none: break;
        case QuorumLoss::Action::close_gate_and_ping: done += "close "; break;
        case QuorumLoss::Action::restart_service: done += "restart "; break;
        case QuorumLoss::Action::reboot: done += "reboot "; break;
        case QuorumLoss::Action::stop: done += "stop "; break;
        case QuorumLoss::Action::serve: done += "serve "; break;
      }
    }
    return done;
  }
  [[nodiscard]] bool says(const std::string& part) const {
    return loss.reason().find(part) != std::string::npos;
  }

  QuorumLoss::Rules rules;
  QuorumLoss loss;
  TimePoint now{1h};
};

}  // namespace

TEST_CASE(
    "loss of quorum: the gate closes, addresses are pinged, one restart, and it stays stopped") {
  Node node;
  CHECK(node.run(true, 10s) == "serve ");
  CHECK(node.loss.reason().empty());
  CHECK(node.run(false, 1s) == "close ");  // at once, before anything is known
  CHECK(node.run(false, 1s) == "");
  CHECK(node.run(false, 8s, false) == "");  // a quorum may be being decided
  CHECK(node.run(false, 1s, false) == "restart ");
  CHECK(node.loss.restarted());
  CHECK(node.says("isolated"));
  CHECK(node.run(false, 1h, false) == "stop ");
  CHECK(node.loss.step() == QuorumLoss::Step::stopped);
  CHECK(node.says("isolated"));
  CHECK(node.says("did not help"));
}

TEST_CASE("loss of quorum: what answers decides the reason, and no answer is waited for for ever") {
  Node node;
  node.run(true, 1s);
  CHECK(node.run(false, 11s, true) == "close restart ");
  CHECK(node.says("other nodes"));

  Node silent;
  silent.run(true, 1s);
  CHECK(silent.run(false, 10s) == "close ");
  CHECK(silent.run(false, 1s) == "restart ");
  CHECK(silent.says("isolated"));

  Node without{{.has_isolation_addresses = false}};
  without.run(true, 1s);
  CHECK(without.run(false, 11s) == "close restart ");
  CHECK(without.says("no isolation addresses"));
}

TEST_CASE("loss of quorum: a machine reboots only if so configured, and once") {
  Node node{{.reboot = true}};
  node.run(true, 1s);
  CHECK(node.run(false, 1h, false) == "close restart reboot ");
  CHECK(node.run(true, 1h) == "");  // it is on its way down
  Node rebooted{{.reboot = true}};  // /run is empty again
  CHECK(rebooted.run(false, 24h) == "");
  CHECK(rebooted.says("has not seen a quorum"));
}

TEST_CASE("loss of quorum: one that comes back while it is being decided costs no restart") {
  Node node{{.reboot = true}};
  node.run(true, 1s);
  for (int i = 0; i < 100; ++i) {
    CHECK(node.run(false, 9s, true) == "close ");
    CHECK(node.run(true, 1s) == "serve ");
  }
  Node restarted{{.reboot = true}, true};
  restarted.run(true, 1s);
  CHECK(restarted.run(false, 59s, false) == "close ");  // no reboot either
  CHECK(restarted.run(true, 1s) == "serve ");
}

TEST_CASE("loss of quorum: a service restarted for it does not restart again") {
  Node node{{}, true};
  CHECK(node.run(false, 59s) == "");
  CHECK(node.says("restarted"));
  CHECK(node.run(false, 10s) == "stop ");
  CHECK(node.run(true, 1s) == "serve ");
  // Lost again soon: straight to the end.
  CHECK(node.run(false, 1h, false) == "close stop ");
  // After a good while it is a new loss.
  CHECK(node.run(true, 11min) == "serve ");
  CHECK_FALSE(node.loss.restarted());
  CHECK(node.run(false, 1h, false) == "close restart stop ");
}

TEST_CASE("loss of quorum: with a quorum it serves again from every step, and without one not") {
  for (auto away : {1s, 2s, 4s, 30s, 120s}) {
    Node node;
    node.run(true, 1s);
    auto done = node.run(false, away);
    CHECK(done.find("serve") == std::string::npos);
    CHECK(node.run(true, 1s) == "serve ");
    CHECK(node.loss.reason().empty());
  }
}

TEST_CASE("loss of quorum: a node that boots into none waits for its first") {
  Node node;
  CHECK(node.run(false, 24h, false) == "");
  CHECK_FALSE(node.loss.restarted());
  CHECK(node.run(true, 1s) == "serve ");
}
