#include "coordinator/protocol/join_channel.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "tests/protocol/tls_world.h"

using namespace csv;
using namespace csv::protocol;
using namespace csv::protocol::test;

namespace {

/// Somebody waits for a token, beside the test's thread, and says the same back to whoever has it.
struct Waiting {
  explicit Waiting(std::int64_t seconds = 60) {
    auto opened = JoinDoor::open(clock, "127.0.0.1:0");
    REQUIRE_MESSAGE(opened, opened.error().message());
    door = *std::move(opened);
    token.cluster = kCluster;
    token.endpoint = door->endpoint();
    for (std::size_t i = 0; i < token.secret.size(); ++i)
      token.secret[i] = static_cast<std::byte>(i + 1);
    auto now = static_cast<std::int64_t>(clock.wall_now());
    token.until = WallTime{now + seconds * 1'000'000'000};
    thread = std::thread{[this] {
      auto channel = door->wait(token, 1s);
      door.reset();
      if (!channel) {
        trouble = channel.error();
        return;
      }
      auto said = (*channel)->receive();
      if (said) (void)(*channel)->send("back: " + *said);
    }};
  }
  ~Waiting() { end(); }
  void end() {
    if (thread.joinable()) thread.join();
  }
  Expected<std::string> use(const JoinToken& with) {
    auto channel = CSV_TRY(JoinChannel::connect(clock, with, 5s));
    CSV_TRY(channel->send("hello"));
    return channel->receive();
  }

  AsioLoop clock;
  JoinToken token;
  std::unique_ptr<JoinDoor> door;
  std::optional<Error> trouble;
  std::thread thread;
};

}  // namespace

TEST_CASE("join channel: who has the token is heard, once") {
  Waiting waiting;
  auto answer = waiting.use(waiting.token);
  REQUIRE_MESSAGE(answer, answer.error().message());
  CHECK(*answer == "back: hello");
  waiting.end();
  auto again = waiting.use(waiting.token);
  CHECK(again.error() == Errc::refused);
  CHECK(again.error().message().find("was used") != std::string::npos);
}

TEST_CASE("join channel: strangers get nowhere, and do not use the token up") {
  Waiting waiting;
  SUBCASE("a forged secret") {
    for (std::size_t bit : {0u, 100u, 255u}) {
      auto forged = waiting.token;
      forged.secret[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
      CHECK(!waiting.use(forged));
    }
  }
  SUBCASE("no TLS") {
    int fd = plain_client(waiting.token.endpoint);
    CHECK(::write(fd, "hello, hello, hello", 19) == 19);
    char byte = 0;
    while (::read(fd, &byte, 1) > 0) {
    }
    ::close(fd);
  }
  SUBCASE("nothing at all, for longer than anybody has the patience") {
    int fd = plain_client(waiting.token.endpoint);
    char byte = 0;
    CHECK(::read(fd, &byte, 1) <= 0);
    ::close(fd);
  }
  SUBCASE("a certificate, even a good one") {
    TlsWorld world{waiting.clock};
    RawTls::Show show;
    show.files = world.put(2);
    RawTls client{plain_client(waiting.token.endpoint), show};
    CHECK(!client.handshake());
  }
  auto answer = waiting.use(waiting.token);
  REQUIRE_MESSAGE(answer, answer.error().message());
  CHECK(*answer == "back: hello");
}

TEST_CASE("join channel: a token that has run out is worth nothing") {
  Waiting waiting{0};
  waiting.end();
  REQUIRE(waiting.trouble);
  CHECK(*waiting.trouble == Errc::refused);
  CHECK(waiting.trouble->message().find("run out") != std::string::npos);
  CHECK(!waiting.use(waiting.token));
}

TEST_CASE("join channel: who does not know the token is not believed to be the cluster") {
  Waiting other;  // another one's, at the place that the token names
  auto token = other.token;
  token.secret.fill(std::byte{9});
  auto answer = other.use(token);
  CHECK(!answer);
  CHECK(other.use(other.token));
}
