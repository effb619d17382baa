#include "coordinator/service/coordination.h"

#include <doctest/doctest.h>

#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::service;
using csv::fakes::ManualLoop;
using State = Coordination::State;

namespace {

/// What the membership says is whatever the test wrote here.
class ScriptedMembership final : public cluster::Membership {
 public:
  void accept(std::unique_ptr<protocol::Connection>, protocol::Message) override {}
  void coordinating(const std::string&, Epoch epoch, Key key) override {
    own = cluster::Coordinator{NodeId{2}, "node2", epoch, key};
  }
  void gave_up(const std::string&) override { own.reset(); }
  [[nodiscard]] std::optional<cluster::Coordinator> coordinator(const std::string&) const override {
    if (own && (!peer || own->epoch > peer->epoch)) return own;
    return peer;
  }
  [[nodiscard]] TimePoint open_until(const std::string&) const override { return lease; }
  [[nodiscard]] TimePoint open_until() const override { return lease; }
  [[nodiscard]] std::vector<cluster::PeerStatus> peers() const override { return others; }
  [[nodiscard]] bool settled() const override { return is_settled; }
  [[nodiscard]] bool all_present() const override { return are_all_present; }
  [[nodiscard]] bool claimed_by_peer(const std::string&) const override { return peer.has_value(); }

  [[nodiscard]] std::optional<Assignment> assigned(const std::string&) const override {
    return given;
  }
  void able(const std::string&, bool yes) override { ++(yes ? ables : unables); }

  std::optional<cluster::Coordinator> own, peer;
  std::optional<Assignment> given;  ///< None: nobody votes.
  TimePoint lease{};
  int ables = 0, unables = 0;
  std::vector<cluster::PeerStatus> others;
  bool is_settled = true, are_all_present = true;
};

class ScriptedService final : public VolumeService {
 public:
  ScriptedService(Loop& loop, Epoch epoch, int& closes)
      : loop_{&loop}, epoch_{epoch}, closes_{&closes} {}
  void accept(std::unique_ptr<protocol::Connection>, protocol::Message) override {}
  void on_stopped(Function<void(Error)> handler) override { stopped = std::move(handler); }
  Task<void> close() override {
    if (lun_hangs) co_await sleep(*loop_, 1h);
    ++*closes_;
  }
  [[nodiscard]] Status status() const override { return {}; }
  [[nodiscard]] Epoch epoch() const override { return epoch_; }
  [[nodiscard]] Key key() const override { return Key{raw(epoch_) + 100}; }
  Function<void(Error)> stopped;
  bool lun_hangs = false;

 private:
  Loop* loop_;
  Epoch epoch_;
  int* closes_;
};

struct Fixture {
  ManualLoop loop;
  ScriptedMembership membership;
  std::deque<Error> failures;  ///< Of the next attempts.
  Duration takes = 10ms;
  int attempts = 0, closes = 0;
  std::uint64_t epoch = 0;
  ScriptedService* serving = nullptr;
  std::unique_ptr<Coordination> coordination;
  std::optional<Expected<void>> answer;
  TaskScope tasks;

  void begin(bool wanted) {
    coordination = std::make_unique<Coordination>(
        Coordination::Setup{.loop = &loop,
                            .membership = &membership,
                            .volume = "v",
                            .node = NodeId{2},
                            .wanted = wanted,
                            .take_over = [this] { return take_over(*this); }});
  }
  static Task<Expected<std::unique_ptr<VolumeService>>> take_over(Fixture& f) {
    ++f.attempts;
    co_await sleep(f.loop, f.takes);
    if (!f.failures.empty()) {
      auto why = f.failures.front();
      f.failures.pop_front();
      co_return why;
    }
    if (f.membership.peer) f.epoch = std::max(f.epoch, raw(f.membership.peer->epoch));
    auto service = std::make_unique<ScriptedService>(f.loop, Epoch{++f.epoch}, f.closes);
    f.serving = service.get();
    co_return std::unique_ptr<VolumeService>{std::move(service)};
  }
  void peer_claims(std::uint64_t at_epoch) {
    membership.peer = cluster::Coordinator{NodeId{1}, "node1", Epoch{at_epoch}, Key{1}};
    coordination->news();
  }
  void run(Duration time) {
    for (; time > Duration{}; time -= 100ms) {
      coordination->news();  // as every beat does
      loop.run_for(100ms);
    }
  }
  static Task<void> ask(Fixture& f, bool start) {
    auto task = start ? f.coordination->start() : f.coordination->stop();
    f.answer = co_await task;
  }
  void command(bool start) {
    answer.reset();
    tasks.spawn(ask(*this, start));
  }
  [[nodiscard]] State state() const { return coordination->state(); }
};

}  // namespace

TEST_CASE("coordination: a node alone takes over at once, and tells the membership") {
  Fixture f;
  f.begin(true);
  f.run(100ms);
  CHECK(f.state() == State::serving);
  REQUIRE(f.membership.own);
  CHECK(f.membership.own->epoch == Epoch{1});
  CHECK(f.coordination->service() == f.serving);
}

TEST_CASE("coordination: a volume that is not wanted here is left alone until a command") {
  Fixture f;
  f.begin(false);
  f.run(1min);
  CHECK(f.attempts == 0);
  CHECK(f.state() == State::idle);
  f.command(true);
  f.run(1s);
  REQUIRE(f.answer);
  CHECK(*f.answer);
  CHECK(f.state() == State::serving);
  f.command(false);
  f.run(1s);
  REQUIRE(f.answer);
  CHECK(*f.answer);
  CHECK(f.closes == 1);
  CHECK_FALSE(f.membership.own);
  f.run(1min);
  CHECK(f.attempts == 1);
  f.command(false);
  CHECK_FALSE(*f.answer);
}

TEST_CASE("coordination: at start it waits for peers to speak, and leaves them what they have") {
  Fixture f;
  f.membership.is_settled = false;
  f.begin(true);
  f.run(1s);
  CHECK(f.attempts == 0);
  SUBCASE("a peer claims it") {
    f.peer_claims(7);
    f.run(1min);
    CHECK(f.attempts == 0);
    CHECK(f.coordination->reason() == "node 1 coordinates it (epoch 7)");
    // It gives the volume up while we hear it: nobody has it then.
    f.membership.peer.reset();
    f.run(1s);
    CHECK(f.state() == State::serving);
  }
  SUBCASE("nobody speaks") {
    f.run(2s);
    CHECK(f.state() == State::serving);
  }
  SUBCASE("all have spoken, none claims it") {
    f.membership.is_settled = true;
    f.run(100ms);
    CHECK(f.state() == State::serving);
  }
}

TEST_CASE("coordination: of several that want it at once the lower node goes first") {
  Fixture f;
  f.membership.others = {{.id = NodeId{1}, .name = "node1", .address = "node1", .present = true}};
  f.begin(true);
  f.run(2s);
  CHECK(f.attempts == 0);
  f.peer_claims(1);
  f.run(1min);
  CHECK(f.attempts == 0);
}

TEST_CASE("coordination: a command takes it from a peer, also without waiting for anybody") {
  Fixture f;
  f.membership.is_settled = false;
  f.begin(true);
  f.peer_claims(7);
  f.command(true);
  f.run(200ms);
  CHECK(f.state() == State::serving);
  CHECK(f.epoch == 8);
  REQUIRE(f.answer);
  CHECK(*f.answer);
}

TEST_CASE("coordination: after a stop by itself it takes over again, with pauses that grow") {
  Fixture f;
  f.begin(true);
  f.run(2min);
  CHECK(f.attempts == 1);
  f.serving->stopped(Error{Errc::lun_lost, "gone"});
  f.run(500ms);
  CHECK(f.attempts == 2);  // a long tenure: at once
  CHECK(f.state() == State::serving);
  CHECK(f.epoch == 2);
  for (int i = 0; i < 20; ++i) f.failures.emplace_back(Errc::lun_lost, "still gone");
  f.serving->stopped(Error{Errc::lun_lost, "gone"});
  f.run(500ms);
  CHECK(f.attempts == 2);  // a short one: not at once
  CHECK_FALSE(f.membership.own);
  f.run(10s);
  CHECK(f.attempts >= 4);
  CHECK(f.attempts <= 6);
  auto before = f.attempts;
  f.run(2min);
  CHECK(f.attempts - before >= 3);
  CHECK(f.attempts - before <= 5);
  CHECK(f.coordination->reason() == "taking it over failed: still gone");
  f.failures.clear();
  f.run(1min);
  CHECK(f.state() == State::serving);
  CHECK(f.closes == 0);  // what stopped by itself must not be closed in good order
}

TEST_CASE("coordination: a target that restarts again and again costs no growing pauses") {
  Fixture f;
  auto why = Errc::lun_lost;
  bool by_cluster = false;
  SUBCASE("among peers") {}
  SUBCASE("given by the cluster") { by_cluster = true; }
  SUBCASE("with the cache that it lost") { why = Errc::not_durable; }
  if (by_cluster) {
    f.membership.given =
        cluster::Membership::Assignment{.decided = true, .node = NodeId{2}, .reason = {}};
    f.membership.lease = f.loop.now() + 1h;
  }
  f.begin(true);
  f.run(100ms);
  for (int i = 0; i < 20; ++i) {
    CAPTURE(i);
    REQUIRE(f.state() == State::serving);
    f.run(3s);
    f.failures.emplace_back(Errc::lun_lost, "it is not back yet");
    f.serving->stopped(Error{why, "the target restarts"});
    f.run(1500ms);
  }
  CHECK(f.state() == State::serving);
  CHECK(f.attempts == 41);
}

// One that one of our commands brings down each time would be reset with every takeover, for ever.
TEST_CASE("coordination: a target that falls over within moments is taken over less often") {
  auto why = Errc::lun_lost;
  Duration tenure = 1100ms;
  bool brief = true;
  SUBCASE("with the LUN") {}
  SUBCASE("with its cache") { why = Errc::not_durable; }
  SUBCASE("but not one that restarts") {
    tenure = 2500ms;
    brief = false;
  }
  Fixture f;
  f.begin(true);
  f.run(100ms);
  std::vector<Duration> pauses;
  for (int i = 0; i < 12; ++i) {
    REQUIRE(f.state() == State::serving);
    f.run(tenure);
    f.serving->stopped(Error{why, "the target has gone"});
    auto stopped = f.loop.now();
    do f.run(100ms);
    while (f.state() != State::serving && f.loop.now() < stopped + 1min);
    pauses.push_back(f.loop.now() - stopped);
  }
  CHECK(pauses[3] <= 200ms);
  CHECK((pauses[6] >= 4s) == brief);
  CHECK((pauses.back() >= 30s) == brief);
  CHECK(pauses.back() <= (brief ? 31s : 200ms));
  // One that has lasted is followed at once again.
  f.run(3s);
  f.serving->stopped(Error{why, "the target restarts"});
  f.run(200ms);
  CHECK(f.state() == State::serving);
}

TEST_CASE("coordination: what ends one short tenure after the other is tried less and less often") {
  Error why;
  Duration tenure = 5s;
  SUBCASE("somebody takes it each time") { why = Error{Errc::fenced, "key gone"}; }
  SUBCASE("its content does") { why = Error{Errc::corrupt, "a page is damaged"}; }
  SUBCASE("a way that does not last as long as the takeovers") {
    why = Error{Errc::lun_lost, "the connection broke"};
    tenure = 500ms;
  }
  Fixture f;
  f.begin(true);
  f.run(100ms);
  std::vector<Duration> pauses;
  for (int i = 0; i < 8; ++i) {
    REQUIRE(f.state() == State::serving);
    f.run(tenure);
    f.serving->stopped(why);
    auto stopped = f.loop.now();
    do f.run(100ms);
    while (f.state() != State::serving && f.loop.now() < stopped + 1min);
    pauses.push_back(f.loop.now() - stopped);
  }
  CHECK(pauses.front() <= 1200ms);
  CHECK(pauses[2] >= 4s);
  CHECK(pauses.back() >= 30s);
  CHECK(pauses.back() <= 31s);
}

TEST_CASE("coordination: a command that fails says why, and the attempts go on") {
  Fixture f;
  f.begin(false);
  f.failures.emplace_back(Errc::refused, "not our cluster");
  f.command(true);
  f.run(1s);
  REQUIRE(f.answer);
  CHECK(f.answer->error() == Errc::refused);
  f.run(3s);
  CHECK(f.state() == State::serving);
}

TEST_CASE("coordination: who was beaten by another node does not fight") {
  Fixture f;
  f.begin(true);
  f.run(2min);
  SUBCASE("it hears of the newer one first") {
    f.peer_claims(9);
    f.run(1s);
  }
  SUBCASE("it is fenced first") {
    f.serving->stopped(Error{Errc::fenced, "key gone"});
    f.peer_claims(9);
    f.run(1s);
  }
  SUBCASE("it is fenced and hears of nobody") {
    f.membership.are_all_present = false;
    f.serving->stopped(Error{Errc::fenced, "key gone"});
    f.run(1s);
    CHECK(f.coordination->reason().find("not all peers are heard") != std::string::npos);
  }
  CHECK(f.attempts == 1);
  CHECK(f.closes == 0);  // the catalog is another node's
  CHECK(f.state() == State::waiting);
  f.run(10min);
  CHECK(f.attempts == 1);
}

TEST_CASE("coordination: who lost its key while no peer claims the volume takes it again") {
  Fixture f;
  f.begin(true);
  f.run(2min);
  f.serving->stopped(Error{Errc::fenced, "the target forgot its registrations"});
  f.run(2s);
  CHECK(f.state() == State::serving);
  CHECK(f.attempts == 2);
}

TEST_CASE("coordination: a stop during a takeover gives up what it took") {
  Fixture f;
  f.takes = 5s;
  f.begin(true);
  f.run(1s);
  CHECK(f.state() == State::taking_over);
  f.command(false);
  f.run(1s);
  CHECK_FALSE(f.answer);
  f.run(10s);
  REQUIRE(f.answer);
  CHECK(*f.answer);
  CHECK(f.state() == State::idle);
  CHECK(f.closes == 1);
  CHECK(f.attempts == 1);
}

TEST_CASE("coordination: destroyed at any moment, it leaves nothing behind") {
  for (auto time : {0ms, 5ms, 50ms, 3000ms}) {
    Fixture f;
    f.takes = 10ms;
    f.begin(true);
    f.command(true);
    f.loop.run_for(time);
    f.coordination.reset();
    f.loop.run_for(10s);
  }
}

TEST_CASE("coordination: a volume whose LUN hangs keeps no other one from being given up") {
  Fixture hanging, well;
  Fixture* all[] = {&hanging, &well};
  for (auto* one : all) {
    one->begin(true);
    one->run(100ms);
    REQUIRE(one->state() == State::serving);
  }
  hanging.serving->lun_hangs = true;
  TaskScope tasks;
  tasks.spawn(stop_all(well.loop, {hanging.coordination.get(), well.coordination.get()}));
  for (auto* one : all) one->run(10s);
  CHECK(well.closes == 1);
  CHECK(well.state() == State::idle);
  CHECK(tasks.running() == 1);
  hanging.loop.run_for(1h);
  well.loop.run_for(1s);
  CHECK(hanging.closes == 1);
  CHECK(tasks.running() == 0);
}

TEST_CASE(
    "coordination: what the cluster gives to a node waits there for its lease, and is no failure") {
  Fixture f;
  f.membership.given =
      cluster::Membership::Assignment{.decided = true, .node = NodeId{2}, .reason = {}};
  f.begin(false);
  f.run(1s);
  CHECK(f.attempts == 0);
  CHECK(f.state() == State::waiting);
  f.membership.lease = f.loop.now() + 1h;
  f.run(200ms);
  CHECK(f.state() == State::serving);
  CHECK(f.membership.unables == 0);
}

TEST_CASE(
    "coordination: a takeover that fails says something of its node, unless it had no lease any "
    "more") {
  Fixture f;
  f.membership.given =
      cluster::Membership::Assignment{.decided = true, .node = NodeId{2}, .reason = {}};
  f.failures = {Error{Errc::retry, "no lease"}, Error{Errc::retry, "no path"}};
  f.takes = 1s;
  f.membership.lease = f.loop.now() + 500ms;  // it ends while it takes over
  f.begin(false);
  f.run(3s);
  CHECK(f.attempts == 1);
  CHECK(f.membership.unables == 0);
  f.membership.lease = f.loop.now() + 1h;
  f.run(1500ms);
  CHECK(f.attempts == 2);
  CHECK(f.membership.unables == 1);
}

TEST_CASE(
    "coordination: a target that waits for somebody is tried again soon, and no fault of the "
    "node") {
  Fixture f;
  f.membership.given =
      cluster::Membership::Assignment{.decided = true, .node = NodeId{2}, .reason = {}};
  f.membership.lease = f.loop.now() + 1h;
  for (int i = 0; i < 6; ++i) f.failures.emplace_back(Errc::reset_unanswered, "no answer");
  f.takes = 1s;
  f.begin(false);
  f.run(15s);
  CHECK(f.state() == State::serving);
  CHECK(f.attempts == 7);
  CHECK(f.membership.unables == 0);
}

TEST_CASE(
    "coordination: what the cluster gives to a node is taken again after a stop and a start") {
  Fixture f;
  f.membership.given =
      cluster::Membership::Assignment{.decided = true, .node = NodeId{2}, .reason = {}};
  f.membership.lease = f.loop.now() + 1h;
  f.begin(false);
  f.run(1s);
  REQUIRE(f.state() == State::serving);
  f.command(false);
  f.run(1s);
  REQUIRE(f.answer);
  REQUIRE(f.state() == State::idle);
  SUBCASE("at once, by command") {
    f.command(true);
    f.run(200ms);
    CHECK(f.state() == State::serving);
    CHECK(f.epoch == 2);
    REQUIRE(f.answer);
    CHECK(*f.answer);
  }
  SUBCASE("unless it was given to another one meanwhile, which is said") {
    f.membership.given->node = NodeId{1};
    f.command(true);
    f.run(200ms);
    REQUIRE(f.answer);
    CHECK(f.answer->error() == Errc::not_coordinator);
    CHECK(f.attempts == 1);
  }
}
