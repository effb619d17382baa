#include "coordinator/protocol/doorkeeper.h"

#include <doctest/doctest.h>

#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::protocol;

TEST_CASE("doorkeeper: an address counts without its port, and of IPv6 its /64") {
  CHECK(source_of("192.0.2.1:7400") == "192.0.2.1");
  CHECK(source_of("[2001:db8::1]:7400") == source_of("[2001:db8::ffff:1:2:3]:1"));
  CHECK(source_of("[2001:db8::1]:7400") != source_of("[2001:db8:0:1::1]:7400"));
  CHECK(source_of("[fe80::1%eth0]:7400") != source_of("[fe80::2%eth0]:7400"));
  CHECK(source_of("[::ffff:192.0.2.1]:7400") == "192.0.2.1");
}

TEST_CASE("doorkeeper: one address has so many places, and its newest takes its oldest's") {
  fakes::ManualLoop clock;
  Doorkeeper door{clock, {.most = 10, .most_per_address = 3}};
  for (std::uint64_t id = 1; id <= 3; ++id) {
    auto decision = door.arrived(id, "10.0.0.1:1");
    CHECK(decision.admitted);
    CHECK_FALSE(decision.instead);
  }
  CHECK_FALSE(door.arrived(4, "10.0.0.2:1").instead);
  CHECK(door.arrived(5, "10.0.0.1:9").instead == 1);
  CHECK(door.under_way() == 4);
  door.left(2, true);
  CHECK_FALSE(door.arrived(6, "10.0.0.1:9").instead);
}

TEST_CASE("doorkeeper: when all places are taken, the most crowded address gives one up") {
  fakes::ManualLoop clock;
  Doorkeeper door{clock, {.most = 5, .most_per_address = 3}};
  door.arrived(1, "10.0.0.1:1");
  door.arrived(2, "10.0.0.2:1");
  door.arrived(3, "10.0.0.2:1");
  door.arrived(4, "10.0.0.2:1");
  door.arrived(5, "10.0.0.3:1");
  CHECK(door.arrived(6, "10.0.0.4:1").instead == 2);
  CHECK(door.under_way() == 5);
}

TEST_CASE("doorkeeper: failures spend a budget that comes back with time, successes do not") {
  fakes::ManualLoop clock;
  Doorkeeper door{clock, {.budget = 3, .earned_in = 1s}};
  std::uint64_t id = 0;
  auto attempt = [&](bool proven) {
    bool admitted = door.arrived(++id, "10.0.0.1:1").admitted;
    door.left(id, proven);
    return admitted;
  };
  for (int i = 0; i < 100; ++i) CHECK(attempt(true));
  for (int i = 0; i < 3; ++i) CHECK(attempt(false));
  CHECK_FALSE(attempt(false));
  CHECK(door.arrived(1000, "10.0.0.2:1").admitted);
  clock.run_for(999ms);
  CHECK_FALSE(attempt(false));
  clock.run_for(2ms);
  CHECK(attempt(false));
  CHECK_FALSE(attempt(false));
  clock.run_for(1h);
  for (int i = 0; i < 3; ++i) CHECK(attempt(false));
  CHECK_FALSE(attempt(false));
}

TEST_CASE("doorkeeper: what it remembers of addresses is bounded, whatever comes") {
  fakes::ManualLoop clock;
  Doorkeeper door{clock, {.most = 100'000, .budget = 4}};
  for (std::uint64_t id = 1; id <= 50'000; ++id) {
    auto address = std::to_string(id % 251) + "." + std::to_string(id / 251 % 251) + "." +
                   std::to_string(id / 63001) + ".1:1";
    door.arrived(id, address);
    door.may_say(address);
    if (id % 2 == 0) door.left(id, false);
  }
  CHECK(door.known() <= 1025);
  // Those without one of their own share one budget, and those that come anew later get their own.
  for (std::uint64_t id = 1; id <= 50'000; ++id) door.left(id, false);
  CHECK(door.under_way() == 0);
  clock.run_for(1min);
  CHECK(door.arrived(100'000, "192.0.2.1:1").admitted);
  CHECK(door.known() < 1000);
}

TEST_CASE("doorkeeper: the log hears of an address now and then, and how often it was") {
  fakes::ManualLoop clock;
  clock.run_for(1h);
  Doorkeeper door{clock, {.quiet = 10s, .lines = 3}};
  CHECK(door.may_say("10.0.0.1:1") == 1);
  for (int i = 0; i < 5; ++i) CHECK_FALSE(door.may_say("10.0.0.1:1"));
  CHECK(door.may_say("10.0.0.2:1") == 1);
  CHECK(door.may_say("10.0.0.3:1") == 1);
  CHECK_FALSE(door.may_say("10.0.0.4:1"));
  clock.run_for(10s);
  CHECK(door.may_say("10.0.0.1:1") == 6);
  CHECK(door.may_say("10.0.0.4:1") == 2);
}
