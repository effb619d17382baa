#include "coordinator/protocol/first_message.h"

#include <doctest/doctest.h>

#include <optional>
#include <vector>

#include "coordinator/protocol/memory_transport.h"
#include "tests/fakes/manual_loop.h"

using namespace csv;
using namespace csv::protocol;

namespace {

Message numbered(std::uint64_t id) {
  Message out;
  out.frame.set_id(id);
  out.frame.mutable_resume_done();
  return out;
}

struct Fixture {
  fakes::ManualLoop loop;
  std::unique_ptr<Connection> handed;
  std::vector<std::uint64_t> firsts, later;
  std::optional<Error> ended;
  FirstMessages waiting{loop, 5s, 2, [this](std::unique_ptr<Connection> connection, Message first) {
                          handed = std::move(connection);
                          firsts.push_back(first.frame.id());
                        }};
  std::unique_ptr<Connection> connect() {
    auto [mine, theirs] = connection_pair(loop);
    waiting.add(std::move(theirs));
    mine->start([](Message) {}, [](Error) {});
    return std::move(mine);
  }
  void take() {
    handed->start([this](Message message) { later.push_back(message.frame.id()); },
                  [this](Error why) { ended = why; });
  }
};

}  // namespace

TEST_CASE("first message: is handed over with its connection, and nothing behind it is lost") {
  Fixture f;
  auto client = f.connect();
  for (std::uint64_t id = 1; id <= 3; ++id) client->send(numbered(id));
  f.loop.settle();
  CHECK(f.firsts == std::vector<std::uint64_t>{1});
  CHECK(f.waiting.waiting() == 0);
  REQUIRE(f.handed);
  f.take();
  CHECK(f.later.empty());  // never from inside start()
  client->send(numbered(4));
  f.loop.settle();
  CHECK(f.later == std::vector<std::uint64_t>{2, 3, 4});
  client.reset();
  f.loop.settle();
  REQUIRE(f.ended);
  CHECK(*f.ended == Errc::closed);
}

TEST_CASE("first message: an end before the new owner starts is told to it") {
  Fixture f;
  auto client = f.connect();
  client->send(numbered(1));
  client->send(numbered(2));
  client.reset();
  f.loop.settle();
  REQUIRE(f.handed);
  f.take();
  f.loop.settle();
  CHECK(f.later == std::vector<std::uint64_t>{2});
  CHECK(f.ended);
}

TEST_CASE("first message: who says nothing is dropped, and so is the oldest of too many") {
  Fixture f;
  auto one = f.connect();
  f.loop.run_for(3s);
  auto two = f.connect();
  auto three = f.connect();
  CHECK(f.waiting.waiting() == 2);
  f.loop.run_for(4s);
  CHECK(f.waiting.waiting() == 2);
  f.loop.run_for(2s);
  CHECK(f.waiting.waiting() == 0);
  CHECK(f.firsts.empty());
}

TEST_CASE("first message: the new owner may destroy the connection inside its handler") {
  Fixture f;
  auto client = f.connect();
  for (std::uint64_t id = 1; id <= 3; ++id) client->send(numbered(id));
  f.loop.settle();
  int messages = 0;
  f.handed->start(
      [&](Message) {
        ++messages;
        f.handed.reset();
      },
      [](Error) { FAIL("nothing follows"); });
  f.loop.settle();
  CHECK(messages == 1);
}
