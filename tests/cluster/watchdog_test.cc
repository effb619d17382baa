#include "coordinator/cluster/watchdog.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "csvfs/base/config.h"
#include "tests/fakes/manual_loop.h"

using namespace csv;
using cluster::Watchdog;

namespace {

/// What became of a device that is gone, too.
struct Said {
  Duration timeout{};
  int pets = 0;
  bool disarmed = false, gone = false;
};

class FakeDevice final : public cluster::WatchdogDevice {
 public:
  FakeDevice(Said& said, Duration most, bool pets) : said_{&said}, most_{most}, pets_{pets} {}
  ~FakeDevice() override { said_->gone = true; }
  Expected<Duration> set_timeout(Duration timeout) override {
    return said_->timeout = std::min(timeout, most_);
  }
  Expected<void> pet() override {
    if (!pets_) return Error{std::errc::io_error, "no such dog"};
    ++said_->pets;
    return {};
  }
  Expected<void> disarm() override {
    said_->disarmed = true;
    return {};
  }

 private:
  Said* said_;
  Duration most_;
  bool pets_;
};

struct Bed {
  Watchdog::Surroundings with() {
    return {.loop = &loop,
            .lease_runs = [this] { return lease; },
            .not_closed = [this] { return not_closed; }};
  }
  Expected<std::unique_ptr<Watchdog>> start(Duration timeout = 15s, Duration most = 60s,
                                            bool pets = true) {
    return Watchdog::start(std::make_unique<FakeDevice>(said, most, pets), timeout, with());
  }
  int pets_in(Duration time) {
    auto before = said.pets;
    loop.run_for(time);
    return said.pets - before;
  }

  fakes::ManualLoop loop;
  Said said;
  bool lease = true;
  std::string not_closed = "a mount may send";
};

}  // namespace

TEST_CASE("watchdog: petted from the loop, while the lease runs or nobody can send anything") {
  Bed bed;
  auto dog = bed.start();
  REQUIRE(dog);
  CHECK(bed.said.timeout == 15s);
  CHECK(bed.said.pets == 1);
  CHECK(bed.pets_in(10s) == 10);
  CHECK((*dog)->state().petted == bed.loop.now());
  CHECK((*dog)->state().withheld.empty());

  bed.lease = false;  // and a mount may believe in it still
  CHECK(bed.pets_in(5s) == 0);
  CHECK((*dog)->state().withheld == "a mount may send");
  bed.not_closed.clear();  // now it has said that it does not
  CHECK(bed.pets_in(5s) == 5);
  CHECK((*dog)->state().withheld.empty());
  bed.lease = true;
  bed.not_closed = "does not matter";
  CHECK(bed.pets_in(5s) == 5);

  SUBCASE("an end in good order disarms it") {
    (*dog)->end();
    CHECK(bed.said.disarmed);
    CHECK(bed.said.gone);
    CHECK(bed.pets_in(60s) == 0);
  }
  SUBCASE("an end, while it would not be petted, leaves it counting") {
    bed.lease = false;
    (*dog)->end();
    CHECK(!bed.said.disarmed);
    CHECK(bed.said.gone);
    CHECK(bed.pets_in(60s) == 0);
  }
  SUBCASE("the end of a process that crashed does not") {
    dog->reset();
    CHECK(!bed.said.disarmed);
    CHECK(bed.pets_in(60s) == 0);
  }
  SUBCASE("a reboot that hangs is ended by it") {
    (*dog)->give_up("the machine is rebooted");
    CHECK(bed.pets_in(60s) == 0);
    CHECK((*dog)->state().withheld == "the machine is rebooted");
    CHECK(!bed.said.disarmed);
  }
}

TEST_CASE("watchdog: one that cannot be had as it is needed is refused, and does not count") {
  Bed bed;
  SUBCASE("it counts to less than a lease that lapses for a moment takes") {
    auto dog = bed.start(15s, 5s);
    REQUIRE(!dog);
    CHECK(dog.error() == Errc::refused);
  }
  SUBCASE("it cannot be petted") { CHECK(!bed.start(15s, 60s, false)); }
  CHECK(bed.said.disarmed);
  CHECK(bed.said.gone);
  CHECK(bed.pets_in(10s) == 0);
}

TEST_CASE(
    "watchdog: a mount sends nothing if it says so, and has said it since the lease ran out") {
  auto lease = TimePoint{50s};
  BoardMount mount;
  CHECK(cluster::sends_nothing(mount, lease));  // there is none
  mount.pid = 7;
  mount.said = TimePoint{51s};
  mount.mode = AccessMode::paused;  // no coordinator, say: what has a layout goes on
  CHECK(!cluster::sends_nothing(mount, lease));
  mount.gate_closed = true;
  CHECK(cluster::sends_nothing(mount, lease));
  mount.said = TimePoint{49s};  // an earlier gap, and there has been a lease since
  CHECK(!cluster::sends_nothing(mount, lease));
  mount.said = {};  // one of an earlier version
  CHECK(!cluster::sends_nothing(mount, lease));
}

TEST_CASE("watchdog: what is said to the kernel, and what it is said of") {
  SUBCASE("no device") {
    auto none = cluster::open_watchdog("/dev/csvfs-no-such-watchdog");
    REQUIRE(!none);
    CHECK(none.error() == Errc::refused);
    CHECK(none.error().message().find("/dev/csvfs-no-such-watchdog cannot be opened") !=
          std::string::npos);
  }
  SUBCASE("no watchdog: nothing is left counting") {
    char path[] = "/tmp/csvfs-watchdog-XXXXXX";
    int file = ::mkstemp(path);
    REQUIRE(file >= 0);
    auto none = cluster::open_watchdog(path);
    REQUIRE(!none);
    CHECK(none.error().message().find("is no watchdog") != std::string::npos);
    char last = 0;
    CHECK(::read(file, &last, 1) == 1);
    CHECK(last == 'V');
    ::close(file);
    ::unlink(path);
  }
  SUBCASE("pets, and the magic character") {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
    {
      auto device = cluster::watchdog_on(ends[1]);
      CHECK(!device->set_timeout(10s));  // of a pipe
      CHECK(device->pet());
      CHECK(device->disarm());
    }
    char said[8];
    REQUIRE(::read(ends[0], said, sizeof said) == 2);
    CHECK(said[0] == '\0');
    CHECK(said[1] == 'V');
    CHECK(::read(ends[0], said, sizeof said) == 0);  // closed
    ::close(ends[0]);
  }
}
