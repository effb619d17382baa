#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "coordinator/protocol/frame.h"
#include "coordinator/protocol/memory_transport.h"
#include "coordinator/protocol/tcp_transport.h"

using namespace csv;
using namespace csv::protocol;

namespace {

Message content(std::uint64_t id, std::size_t size) {
  Message out;
  out.frame.set_id(id);
  out.frame.mutable_reply();
  out.bulk = Buffer{size};
  for (std::size_t at = 0; at < size; at += 512)
    std::memset(out.bulk.data() + at, static_cast<int>((at / 512 + id) & 0xff),
                std::min<std::size_t>(512, size - at));
  return out;
}

bool intact(const Message& message) {
  auto expected = content(message.frame.id(), message.bulk.size());
  return message.bulk.empty() ||
         std::memcmp(expected.bulk.data(), message.bulk.data(), message.bulk.size()) == 0;
}

/// Ends the loop, with a failure of the test, if nothing else has.
struct Watch {
  AsioLoop* loop;
  explicit Watch(AsioLoop& on) : loop{&on} {
    on.post([this] {
      loop->after(20s, [this] {
        timed_out = true;
        loop->stop();
      });
    });
  }
  bool timed_out = false;
};

/// A listener at a free port of the loopback address, and what it accepted.
struct Server {
  explicit Server(TcpTransport& transport) {
    auto made = transport.listen("127.0.0.1:0", [this](std::unique_ptr<Connection> connection) {
      accepted.push_back(std::move(connection));
      if (on_accept) on_accept(*accepted.back());
    });
    REQUIRE(made);
    listener = *std::move(made);
  }
  std::unique_ptr<Transport::Listener> listener;
  std::vector<std::unique_ptr<Connection>> accepted;
  std::function<void(Connection&)> on_accept;
};

/// A plain socket: a peer that says what it wants, or nothing.
int plain_client(const std::string& endpoint) {
  auto port = static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1)));
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  return fd;
}

}  // namespace

TEST_CASE("tcp: messages with and without bulk data cross whole and in order, both ways at once") {
  AsioLoop loop;
  Watch watch{loop};
  TcpTransport transport{loop};
  Server server{transport};
  constexpr std::uint64_t kMessages = 400;
  auto size_of = [](std::uint64_t id) {
    return id % 7 == 0 ? std::size_t{1} << 20 : (id * 977) % 20'000;
  };
  std::uint64_t at_server = 0, at_client = 0;
  bool all_intact = true;
  auto finish = [&] {
    if (at_server == kMessages && at_client == kMessages) loop.stop();
  };
  server.on_accept = [&](Connection& connection) {
    connection.start(
        [&](Message message) {
          all_intact &= intact(message) && message.frame.id() == ++at_server;
          finish();
        },
        [&](Error) { loop.stop(); });
    for (std::uint64_t id = 1; id <= kMessages; ++id) connection.send(content(id, size_of(id)));
  };
  std::unique_ptr<Connection> client;
  loop.post([&] {
    transport.connect(NodeId{1}, server.listener->endpoint(), [&](auto connected) {
      REQUIRE(connected);
      client = *std::move(connected);
      client->start(
          [&](Message message) {
            all_intact &= intact(message) && message.frame.id() == ++at_client;
            finish();
          },
          [&](Error) { loop.stop(); });
      for (std::uint64_t id = 1; id <= kMessages; ++id) client->send(content(id, size_of(id)));
      CHECK(client->queued_bytes() > 0);
    });
  });
  loop.run();
  CHECK_FALSE(watch.timed_out);
  CHECK(at_server == kMessages);
  CHECK(at_client == kMessages);
  CHECK(all_intact);
}

TEST_CASE("tcp: what was sent before the close arrives, then the end, once") {
  AsioLoop loop;
  Watch watch{loop};
  TcpTransport transport{loop};
  Server server{transport};
  int messages = 0, ends = 0;
  server.on_accept = [&](Connection& connection) {
    // Started late: nothing that came meanwhile is lost.
    loop.after(50ms, [&] {
      connection.start([&](Message) { ++messages; },
                       [&](Error why) {
                         ++ends;
                         CHECK(why == Errc::closed);
                         loop.after(20ms, [&] { loop.stop(); });
                       });
    });
  };
  std::unique_ptr<Connection> client;
  loop.post([&] {
    transport.connect(NodeId{1}, server.listener->endpoint(), [&](auto connected) {
      REQUIRE(connected);
      client = *std::move(connected);
      client->start([](Message) {}, [](Error) {});
      client->send(content(1, 10));
      client->send(content(2, 0));
      loop.after(10ms, [&] { client.reset(); });
    });
  });
  loop.run();
  CHECK_FALSE(watch.timed_out);
  CHECK(messages == 2);
  CHECK(ends == 1);
}

TEST_CASE("tcp: a handler may destroy its connection, and nothing follows") {
  AsioLoop loop;
  Watch watch{loop};
  TcpTransport transport{loop};
  Server server{transport};
  int messages = 0, ends = 0;
  server.on_accept = [&](Connection& connection) {
    connection.start(
        [&](Message) {
          ++messages;
          server.accepted.clear();
          loop.after(50ms, [&] { loop.stop(); });
        },
        [&](Error) { ++ends; });
  };
  std::unique_ptr<Connection> client;
  loop.post([&] {
    transport.connect(NodeId{1}, server.listener->endpoint(), [&](auto connected) {
      REQUIRE(connected);
      client = *std::move(connected);
      client->start([](Message) {}, [](Error) {});
      for (std::uint64_t id = 1; id <= 10; ++id) client->send(content(id, 100));
    });
  });
  loop.run();
  CHECK_FALSE(watch.timed_out);
  CHECK(messages == 1);
  CHECK(ends == 0);
}

TEST_CASE("tcp: a peer that does not read ends the connection at the bound, not our memory") {
  AsioLoop loop;
  Watch watch{loop};
  TcpTransport transport{loop, {.max_queued = 8u << 20}};
  Server server{transport};
  std::optional<Error> why;
  int sent = 0;
  std::function<void()> send_more = [&] {
    if (why || server.accepted.empty()) return;
    server.accepted.front()->send(content(1, 1u << 20));
    ++sent;
    // Never called from inside send().
    CHECK_FALSE(why);
    CHECK(server.accepted.front()->queued_bytes() <= (8u << 20) + (2u << 20));
    loop.post([&] { send_more(); });
  };
  server.on_accept = [&](Connection& connection) {
    connection.start([](Message) {},
                     [&](Error error) {
                       why = error;
                       loop.stop();
                     });
    send_more();
  };
  int fd = plain_client(server.listener->endpoint());
  loop.run();
  ::close(fd);
  CHECK_FALSE(watch.timed_out);
  REQUIRE(why);
  CHECK(*why == Errc::closed);
  CHECK(sent >= 8);
}

TEST_CASE("tcp: a peer that reads slowly gets everything") {
  AsioLoop loop;
  Watch watch{loop};
  TcpTransport transport{loop};
  Server server{transport};
  constexpr int kMessages = 12;
  server.on_accept = [&](Connection& connection) {
    connection.start([](Message) {}, [&](Error) { loop.stop(); });
    for (std::uint64_t id = 1; id <= kMessages; ++id) connection.send(content(id, 1u << 20));
  };
  int fd = plain_client(server.listener->endpoint());
  std::uint64_t got = 0;
  bool all_intact = true;
  std::thread slow{[&] {
    FrameReader reader;
    while (got < kMessages) {
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
      auto space = reader.space();
      auto into = space[0].empty() ? space[1] : space[0];
      auto n = ::recv(fd, into.data(), std::min<std::size_t>(into.size(), 50'000), 0);
      if (n <= 0) break;
      reader.filled(static_cast<std::size_t>(n));
      for (;;) {
        auto next = reader.next();
        if (!next || !*next) break;
        all_intact &= intact(**next) && (**next).frame.id() == ++got;
      }
    }
    ::close(fd);
  }};
  loop.run();
  slow.join();
  CHECK_FALSE(watch.timed_out);
  CHECK(got == kMessages);
  CHECK(all_intact);
}

TEST_CASE("tcp: rubbish ends the connection with the reason") {
  AsioLoop loop;
  Watch watch{loop};
  TcpTransport transport{loop};
  Server server{transport};
  std::optional<Error> why;
  server.on_accept = [&](Connection& connection) {
    connection.start([](Message) { FAIL("rubbish was taken for a message"); },
                     [&](Error error) {
                       why = error;
                       loop.stop();
                     });
  };
  int fd = plain_client(server.listener->endpoint());
  std::string rubbish(100, 'x');
  REQUIRE(::send(fd, rubbish.data(), rubbish.size(), 0) == 100);
  loop.run();
  ::close(fd);
  CHECK_FALSE(watch.timed_out);
  REQUIRE(why);
  CHECK(*why == Errc::refused);
}

TEST_CASE("tcp: connecting to nobody, or to no address, fails with a reason") {
  AsioLoop loop;
  Watch watch{loop};
  TcpTransport transport{loop};
  std::string free_port;
  {
    Server server{transport};
    free_port = server.listener->endpoint();
  }
  std::vector<Error> errors;
  auto failed = [&](auto connected) {
    REQUIRE_FALSE(connected);
    errors.push_back(connected.error());
    if (errors.size() == 5) loop.stop();
  };
  loop.post([&] {
    transport.connect(NodeId{1}, free_port, failed);
    transport.connect(NodeId{1}, "node1:7400", failed);
    transport.connect(NodeId{1}, "127.0.0.1", failed);
    transport.connect(NodeId{1}, "::1:7400", failed);
    transport.connect(NodeId{1}, "10.0.0.1:70000", failed);
  });
  loop.run();
  CHECK_FALSE(watch.timed_out);
  int refused = 0;
  for (const auto& error : errors) refused += error == Errc::refused;
  CHECK(refused == 4);
}

TEST_CASE("tcp: two listeners cannot share an endpoint") {
  AsioLoop loop;
  TcpTransport transport{loop};
  Server server{transport};
  auto second = transport.listen(server.listener->endpoint(), [](auto) {});
  REQUIRE_FALSE(second);
  CHECK(second.error() == std::errc::address_in_use);
}

TEST_CASE("memory: a connection carries, closes and checks like one of TCP") {
  AsioLoop loop;
  Watch watch{loop};
  MemoryTransport transport{loop};
  std::unique_ptr<Connection> there, here;
  auto listener = transport.listen("csvd", [&](auto connection) { there = std::move(connection); });
  REQUIRE(listener);
  CHECK_FALSE(transport.listen("csvd", [](auto) {}));
  std::vector<std::uint64_t> got;
  std::optional<Error> end;
  loop.post([&] {
    transport.connect(NodeId{1}, "nobody", [&](auto connected) { CHECK_FALSE(connected); });
    transport.connect(NodeId{1}, "csvd", [&](auto connected) {
      REQUIRE(connected);
      here = *std::move(connected);
      here->start([](Message) {}, [](Error) {});
      here->send(content(1, 5000));
      here->send(content(2, 0));
      CHECK(got.empty());
      there->start(
          [&](Message message) {
            CHECK(intact(message));
            got.push_back(message.frame.id());
          },
          [&](Error why) {
            end = why;
            loop.stop();
          });
      here.reset();
    });
  });
  loop.run();
  CHECK_FALSE(watch.timed_out);
  CHECK(got == std::vector<std::uint64_t>{1, 2});
  REQUIRE(end);
  CHECK(*end == Errc::closed);
}

TEST_CASE("memory: a message over the limits ends the connection at its receiver") {
  AsioLoop loop;
  Watch watch{loop};
  auto [first, second] = connection_pair(loop);
  std::optional<Error> end;
  loop.post([&, one = first.get(), two = second.get()] {
    two->start([](Message) { FAIL("a message over the limits arrived"); },
               [&](Error why) {
                 end = why;
                 loop.stop();
               });
    Message bad;
    bad.frame.mutable_beat()->set_node(64);
    one->send(std::move(bad));
  });
  loop.run();
  CHECK_FALSE(watch.timed_out);
  REQUIRE(end);
  CHECK(*end == Errc::refused);
}
