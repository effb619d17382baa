#include "csvfs/coordinator_client.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "coordinator/protocol/failure.h"
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

/// A coordinator as each greeting finds it, and what the mount said to it since.
struct Greeter {
  bool clones = true;
  std::uint64_t session = 5;  ///< 0: the node is kept out.
  std::uint64_t epoch = 3;
  std::vector<wire::Request> asked;
  std::vector<std::uint64_t> ids;  ///< Of what was asked.
  std::function<void()> hang_up;
  std::function<void(protocol::Message)> say;
  void answer(std::uint64_t id, Errc failure = {}) {
    protocol::Message reply;
    reply.frame.set_epoch(epoch);
    reply.frame.set_coordinator_key(1);
    reply.frame.set_id(id);
    reply.frame.mutable_reply();
    if (failure != Errc{})
      *reply.frame.mutable_reply()->mutable_failure() = protocol::encode(Error{failure, "so"});
    say(std::move(reply));
  }
};
class Greeting final : public protocol::Connection {
 public:
  Greeting(fakes::ManualLoop& loop, Greeter& greeter) : loop_{&loop}, greeter_{&greeter} {}
  void start(Function<void(protocol::Message)> received, Function<void(Error)> ended) override {
    received_ = std::make_shared<Function<void(protocol::Message)>>(std::move(received));
    greeter_->say = [to = received_](protocol::Message message) { (*to)(std::move(message)); };
    auto end = std::make_shared<Function<void(Error)>>(std::move(ended));
    greeter_->hang_up = [end] { (*end)(Error{Errc::closed}); };
  }
  void send(protocol::Message message) override {
    if (message.frame.has_request()) {
      greeter_->asked.push_back(message.frame.request());
      greeter_->ids.push_back(message.frame.id());
    }
    if (!message.frame.has_hello()) return;
    protocol::Message answer;
    answer.frame.set_epoch(greeter_->epoch);
    answer.frame.set_coordinator_key(1);
    auto& reply = *answer.frame.mutable_hello_reply();
    reply.set_session(greeter_->session);
    if (greeter_->session == 0) {
      *reply.mutable_failure() = protocol::encode(Error{Errc::refused, "fenced"});
      reply.set_kept_out(true);
    }
    answer.frame.mutable_hello_reply()->set_clones(greeter_->clones);
    loop_->post(
        [to = received_, answer = std::move(answer)]() mutable { (*to)(std::move(answer)); });
  }
  void close() override {}
  [[nodiscard]] std::string peer() const override { return "greeting"; }
  [[nodiscard]] bool speaks_for(NodeId) const override { return true; }
  [[nodiscard]] std::size_t queued_bytes() const override { return 0; }

 private:
  fakes::ManualLoop* loop_;
  Greeter* greeter_;
  std::shared_ptr<Function<void(protocol::Message)>> received_;
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

TEST_CASE("coordinator client: it does not pause any longer once another one coordinates") {
  Bed bed{false};
  auto fail = [&bed] {
    auto done = std::move(bed.waiting.back());
    bed.waiting.pop_back();
    done(std::errc::connection_refused);
  };
  bed.loop.run_for(1ms);
  for (int i = 0; i < 4; ++i) {  // the longest pause by now
    REQUIRE(bed.waiting.size() == 1);
    fail();
    bed.loop.run_for(200ms);
  }
  auto before = bed.asked.size();
  fail();
  bed.loop.run_for(50ms);
  CHECK(bed.asked.size() == before);
  bed.newest = Epoch{4};
  bed.loop.run_for(20ms);
  REQUIRE(bed.asked.size() == before + 1);
  // That was for this one: if it is not reached the pauses are as they were.
  fail();
  bed.loop.run_for(150ms);
  CHECK(bed.asked.size() == before + 1);
  bed.loop.run_for(50ms);
  CHECK(bed.asked.size() == before + 2);
}

TEST_CASE("coordinator client: what its goodbye ends does not end its wait for the answer") {
  fakes::ManualLoop loop;
  Idle owner;
  Greeter greeter;
  CoordinatorClient client{
      {.loop = &loop,
       .connect =
           [&](protocol::Connected done) {
             done(std::unique_ptr<protocol::Connection>{new Greeting{loop, greeter}});
           },
       .elsewhere = {},
       .newest_epoch = {},
       .volume = "volume1",
       .node = NodeId{1}},
      owner};
  TaskScope tasks;
  std::vector<Errc> said;
  auto ask = [&](bool goodbye) {
    wire::Request request;
    if (goodbye)
      request.mutable_goodbye();
    else
      request.mutable_get_attr()->set_inode(2);
    tasks.spawn(
        [](CoordinatorClient& to, wire::Request what, bool early, auto& into) -> Task<void> {
          CoordinatorClient::CallOptions options;
          options.early = early;
          options.session = to.session();
          auto answer = co_await to.call(what, options);
          into.push_back(answer ? Errc{} : Errc::session_ended);
        }(client, std::move(request), goodbye, said));
  };
  loop.run_for(1ms);
  client.open();
  ask(false);
  ask(true);
  loop.settle();
  REQUIRE(greeter.ids.size() == 2);
  greeter.answer(greeter.ids[0], Errc::session_ended);
  loop.settle();
  CHECK(said == std::vector{Errc::session_ended});
  CHECK(client.connected());
  bool itself = false;
  SUBCASE("and that comes") {}
  SUBCASE("unless it had ended before") { itself = true; }
  greeter.answer(greeter.ids[1], itself ? Errc::session_ended : Errc{});
  loop.settle();
  REQUIRE(said.size() == 2);
  CHECK(said[1] == (itself ? Errc::session_ended : Errc{}));
}

TEST_CASE("coordinator client: what outlasts a refusal goes on once the node is let in") {
  fakes::ManualLoop loop;
  Idle owner;
  Greeter greeter;
  CoordinatorClient client{
      {.loop = &loop,
       .connect =
           [&](protocol::Connected done) {
             done(std::unique_ptr<protocol::Connection>{new Greeting{loop, greeter}});
           },
       .elsewhere = {},
       .newest_epoch = {},
       .volume = "volume1",
       .node = NodeId{1}},
      owner};
  TaskScope tasks;
  std::vector<std::pair<bool, int>> said;
  auto ask = [&](bool outlasts, bool changes) {
    wire::Request request;
    if (changes)
      request.mutable_set_attr()->set_inode(2);
    else
      request.mutable_wrote()->set_inode(2);
    tasks.spawn([](CoordinatorClient& to, wire::Request what, CoordinatorClient::CallOptions how,
                   auto& into) -> Task<void> {
      auto answer = co_await to.call(what, how);
      into.emplace_back(how.outlasts, answer ? 0 : answer.error().to_errno());
    }(client, std::move(request), {.changes = changes, .outlasts = outlasts}, said));
  };
  loop.run_for(1ms);
  client.open();
  ask(true, false);
  ask(false, false);
  loop.settle();
  REQUIRE(greeter.asked.size() == 2);  // and neither is answered
  greeter.session = 0;
  client.end_session(Error{Errc::session_ended, "fenced"});
  ask(true, false);
  ask(true, true);
  ask(false, true);
  loop.run_for(1s);
  CHECK(client.kept_out());
  CHECK(said == std::vector{std::pair{false, EIO}, std::pair{false, EIO}});
  greeter.session = 6;
  greeter.asked.clear();
  greeter.ids.clear();
  loop.run_for(1s);
  client.open();
  loop.settle();
  REQUIRE(greeter.asked.size() == 3);
  for (auto id : std::vector{greeter.ids}) greeter.answer(id);
  loop.settle();
  REQUIRE(said.size() == 5);
  for (std::size_t i = 2; i < said.size(); ++i) CHECK(said[i] == std::pair{true, 0});
}

TEST_CASE("coordinator client: clones are not asked of an earlier version, again or at first") {
  fakes::ManualLoop loop;
  Idle owner;
  Greeter greeter;
  CoordinatorClient client{
      {.loop = &loop,
       .connect =
           [&](protocol::Connected done) {
             done(std::unique_ptr<protocol::Connection>{new Greeting{loop, greeter}});
           },
       .elsewhere = {},
       .newest_epoch = {},
       .volume = "volume1",
       .node = NodeId{1}},
      owner};
  TaskScope tasks;
  std::vector<Expected<CoordinatorClient::Answer>> answers;
  auto ask = [&](bool clone) {
    wire::Request request;
    if (clone)
      request.mutable_clone()->set_inode(2);
    else
      request.mutable_set_attr()->set_inode(2);
    tasks.spawn([](CoordinatorClient& to, wire::Request what, auto& into) -> Task<void> {
      into.push_back(co_await to.call(what, {.changes = true}));
    }(client, std::move(request), answers));
  };
  loop.run_for(1ms);
  client.open();
  ask(true);
  ask(false);
  loop.settle();
  CHECK(greeter.asked.size() == 2);
  // One of the same version asks nobody else.
  ++greeter.epoch;
  greeter.asked.clear();
  greeter.hang_up();
  loop.run_for(100ms);
  CHECK(greeter.asked.size() == 2);
  CHECK(answers.empty());
  // An earlier one hears of what it knows.
  ++greeter.epoch;
  greeter.clones = false;
  greeter.asked.clear();
  greeter.hang_up();
  ask(true);  // in between
  loop.run_for(100ms);
  REQUIRE(greeter.asked.size() == 1);
  CHECK(greeter.asked[0].has_set_attr());
  ask(true);  // later, by who has not heard of it yet
  loop.settle();
  CHECK(greeter.asked.size() == 1);
  REQUIRE(answers.size() == 3);
  for (const auto& answer : answers) CHECK(answer.error().to_errno() == EOPNOTSUPP);
  // Their slots are free, and the next sequence is one that was never used.
  ask(false);
  loop.settle();
  REQUIRE(greeter.asked.size() == 2);
  CHECK(greeter.asked[1].slot() == 0);
  CHECK(greeter.asked[1].sequence() == 2);
  client.stop();
}
