#include "coordinator/cluster/loss_response.h"

#include <doctest/doctest.h>

#include <map>

#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::cluster;
using Step = QuorumLoss::Step;

namespace {

/// Answers as the test says, or not before its patience is over.
class FakePinger final : public Pinger {
 public:
  explicit FakePinger(Loop& loop) : loop_{loop} {}
  void ping(const std::string& address, Duration patience, Function<void(bool)> done) override {
    ++asked;
    bool up = answers[address];
    loop_.after(up ? 10ms : patience, [done = std::move(done), up]() mutable { done(up); });
  }
  std::map<std::string, bool> answers;
  int asked = 0;

 private:
  Loop& loop_;
};

/// A life of csvd; the machine, what is remembered and the clock outlive it.
struct Bed {
  void live() {
    LossResponse::Surroundings with;
    with.loop = &loop;
    with.pinger = &pinger;
    with.quorate = [this] { return quorate; };
    with.isolation_addresses = [this] { return addresses; };
    with.remember = [this](bool yes) { remembered = yes; };
    with.restart = [this] { ++restarts; };
    with.reboot = [this] { ++reboots; };
    QuorumLoss::Rules rules;
    rules.reboot = reboot;
    response.emplace(std::move(with), rules, remembered);
  }
  [[nodiscard]] Step step() const { return response->state().step(); }

  csv::fakes::ManualLoop loop;
  FakePinger pinger{loop};
  std::vector<std::string> addresses{"192.0.2.1", "192.0.2.2"};
  bool quorate = true, remembered = false, reboot = false;
  int restarts = 0, reboots = 0;
  std::optional<LossResponse> response;
};

}  // namespace

TEST_CASE("loss of quorum: pinged, restarted once, then stopped; with a quorum it serves again") {
  Bed bed;
  bed.live();
  bed.loop.run_for(10s);
  CHECK(bed.step() == Step::serving);
  CHECK(bed.pinger.asked == 0);
  bed.quorate = false;
  bed.loop.run_for(2s);
  CHECK(bed.step() == Step::pinging);
  CHECK(bed.pinger.asked == 2);
  CHECK(bed.restarts == 0);
  bed.loop.run_for(4s);
  CHECK(bed.restarts == 0);  // a quorum may be being decided
  bed.loop.run_for(5s);
  CHECK(bed.restarts == 1);
  CHECK(bed.remembered);
  bed.live();
  CHECK(bed.step() == Step::restarting);
  bed.loop.run_for(59s);
  CHECK(bed.step() == Step::restarting);
  bed.loop.run_for(3s);
  CHECK(bed.step() == Step::stopped);
  CHECK(bed.response->state().reason().find("did not help") != std::string::npos);
  bed.loop.run_for(1h);
  CHECK(bed.restarts == 1);
  CHECK(bed.reboots == 0);
  bed.quorate = true;
  bed.loop.run_for(1s);
  CHECK(bed.step() == Step::serving);
  CHECK(bed.remembered);
  // Again at once: no second restart. After a while of health there may be one.
  bed.quorate = false;
  bed.loop.run_for(62s);
  CHECK(bed.step() == Step::stopped);
  CHECK(bed.restarts == 1);
  bed.quorate = true;
  bed.loop.run_for(11min);
  CHECK_FALSE(bed.remembered);
}

TEST_CASE("loss of quorum: one address that answers is enough") {
  Bed bed;
  bed.live();
  bed.pinger.answers["192.0.2.2"] = true;
  bed.quorate = false;
  bed.loop.run_for(11100ms);
  CHECK(bed.restarts == 1);
  CHECK(bed.response->state().reason().find("isolation addresses answer") != std::string::npos);
}

TEST_CASE("loss of quorum: none answers: it is isolated; none configured: nobody is asked") {
  Bed bed;
  SUBCASE("none answers") {
    bed.live();
    bed.quorate = false;
    bed.loop.run_for(12s);
    CHECK(bed.response->state().reason().find("is isolated") != std::string::npos);
  }
  SUBCASE("none configured") {
    bed.addresses.clear();
    bed.live();
    bed.quorate = false;
    bed.loop.run_for(12s);
    CHECK(bed.pinger.asked == 0);
    CHECK(bed.response->state().reason().find("no isolation addresses") != std::string::npos);
  }
  CHECK(bed.restarts == 1);
}

TEST_CASE("loss of quorum: answers to the pings of an earlier loss count for nothing") {
  Bed bed;
  bed.live();
  bed.quorate = false;
  bed.loop.run_for(1s);
  REQUIRE(bed.step() == Step::pinging);
  bed.quorate = true;
  bed.loop.run_for(1s);
  REQUIRE(bed.step() == Step::serving);
  bed.quorate = false;
  bed.loop.run_for(1s);
  // The first round's silence is told in the middle of the second.
  bed.loop.run_for(1500ms);
  CHECK(bed.step() == Step::pinging);
  CHECK(bed.restarts == 0);
}

TEST_CASE("loss of quorum: reboots only where that is configured, once, after the restart") {
  for (bool reboot : {false, true}) {
    Bed bed;
    bed.reboot = reboot;
    bed.live();
    bed.quorate = false;
    bed.loop.run_for(12s);
    CHECK(bed.restarts == 1);
    CHECK(bed.reboots == 0);
    bed.live();
    bed.loop.run_for(10min);
    CHECK(bed.reboots == (reboot ? 1 : 0));
    CHECK(bed.restarts == 1);
  }
}

TEST_CASE("loss of quorum: a node that waits for its first quorum does nothing") {
  Bed bed;
  bed.quorate = false;
  bed.live();
  bed.loop.run_for(1h);
  CHECK(bed.step() == Step::stopped);
  CHECK(bed.pinger.asked == 0);
  CHECK(bed.restarts == 0);
}

TEST_CASE("default gateways: by metric, each once; what makes no sense is passed over") {
  const std::string head =
      "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
  const std::string second = "eth1\t00000000\t0102000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n";
  const std::string first = "eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
  const std::string other = "eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
  CHECK(default_gateways(head + second + other + first + first) ==
        std::vector<std::string>{"192.0.2.1", "10.0.2.1"});
  CHECK(default_gateways("").empty());
  CHECK(default_gateways(head).empty());
  CHECK(default_gateways("eth0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\n").empty());
  CHECK(default_gateways("eth0\t00000000\tGATEWAY!\t0003\t0\t0\t0\t00000000\n").empty());
  CHECK(default_gateways("eth0\t00000000\t010200C0\t0003\t0\t0\t-1\t00000000\n").empty());
  // Cut anywhere, it yields what was whole, or nothing.
  for (std::size_t length = 0; length < first.size(); ++length)
    CHECK(default_gateways(first.substr(0, length)).size() <= 1);
}
