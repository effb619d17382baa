#include "csvfs/base/wake_latency.h"

#include <doctest/doctest.h>

#include <optional>
#include <vector>

#include "tests/fakes/manual_loop.h"

using namespace csv;

namespace {

struct Machine {
  fakes::ManualLoop loop;
  std::vector<bool> told;
  std::optional<WakeLatency> latency{std::in_place, loop,
                                     [this](bool held) { told.push_back(held); }};

  Machine() { loop.run_for(1h); }
  void requests(int count, Duration apart) {
    for (int i = 0; i < count; ++i) {
      latency->request();
      loop.run_for(apart);
    }
  }
};

}  // namespace

TEST_CASE("wake latency: held while requests come one after the other, let go in 40 ms of quiet") {
  Machine machine;
  machine.requests(1000, 300us);
  CHECK(machine.told == std::vector<bool>{true});
  machine.loop.run_for(40ms);
  CHECK(machine.told == std::vector<bool>{true, false});
  machine.requests(1000, 300us);
  CHECK(machine.told == std::vector<bool>{true, false, true});
}

TEST_CASE("wake latency: few requests, or a burst now and then, leave the machine as it is") {
  Machine machine;
  machine.requests(1000, 2ms);
  CHECK(machine.told.empty());
  for (int i = 0; i < 100; ++i) {
    machine.requests(20, 10us);
    machine.loop.run_for(100ms);
  }
  CHECK(machine.told.empty());
}

TEST_CASE("wake latency: once held, half the rate keeps it") {
  Machine machine;
  machine.requests(100, 100us);
  machine.requests(1000, 1900us);
  CHECK(machine.told == std::vector<bool>{true});
}

TEST_CASE("wake latency: let go at the end") {
  Machine machine;
  machine.requests(100, 100us);
  machine.latency.reset();
  CHECK(machine.told == std::vector<bool>{true, false});
  machine.loop.run_for(1s);
}
