#include "csvfs/coordinator_client.h"

#include <doctest/doctest.h>

#include "tests/fakes/manual_loop.h"

using namespace csv;

namespace {

/// An owner that holds nothing and wants nothing.
class Idle final : public CoordinatorClient::Owner {
 public:
  void declare(wire::Hello&) override {}
  std::vector<wire::Request> declared() override { return {}; }
  void greeted(const wire::HelloReply&, bool) override {}
  void session_ended(const Error&) override {}
  void connection_changed() override {}
  void put_off(const Error&) override {}
  void sending(wire::Request&, std::uint64_t) override {}
  void replied(const wire::Request&, std::uint64_t, TimePoint, const wire::Reply&) override {}
  void noticed(std::uint64_t, const wire::Notice&) override {}
};

/// Takes connections, and what is said on them, and never says a word.
class Mute final : public protocol::Connection {
 public:
  void start(Function<void(protocol::Message)>, Function<void(Error)>) override {}
  void send(protocol::Message) override {}
  void close() override {}
  [[nodiscard]] std::string peer() const override { return "mute"; }
  [[nodiscard]] bool speaks_for(NodeId) const override { return true; }
  [[nodiscard]] std::size_t queued_bytes() const override { return 0; }
};

struct Bed {
  explicit Bed(bool accepts)
      : client{{.loop = &loop,
                .connect =
                    [this, accepts](protocol::Connected done) {
                      asked.push_back(loop.now());
                      if (accepts) return done(std::unique_ptr<protocol::Connection>{new Mute});
                      waiting.push_back(std::move(done));
                    },
                .elsewhere = {},
                .newest_epoch = [this] { return newest; },
                .volume = "volume1",
                .node = NodeId{1}},
               owner} {}
  fakes::ManualLoop loop;
  Idle owner;
  Epoch newest{3};
  std::vector<TimePoint> asked;
  std::vector<protocol::Connected> waiting;
  CoordinatorClient client;
};

/// A node that vanished answers nothing, not even that nobody listens.
void says_nothing(bool accepts, Duration patience) {
  Bed bed{accepts};
  bed.loop.run_for(patience - 1s);
  REQUIRE(bed.asked.size() == 1);
  bed.newest = Epoch{4};
  bed.loop.run_for(200ms);
  REQUIRE(bed.asked.size() == 2);  // whoever coordinates it in the new epoch
  CHECK(bed.client.trouble().code() == Errc::stale_epoch);
  bed.loop.run_for(patience - 1s);
  CHECK(bed.asked.size() == 2);  // that one has its time, too
  bed.loop.run_for(1500ms);
  CHECK(bed.asked.size() == 3);
}

}  // namespace

TEST_CASE(
    "coordinator client: who does not take a connection is left once another one coordinates") {
  says_nothing(false, 3s);
}

TEST_CASE(
    "coordinator client: who does not answer a greeting is left once another one coordinates") {
  says_nothing(true, 10s);
}
