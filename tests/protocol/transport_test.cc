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
#include "coordinator/protocol/tls_transport.h"
#include "tests/protocol/tls_world.h"

using namespace csv;
using namespace csv::protocol;
using csv::protocol::test::plain_client;

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
  explicit Server(Transport& transport) {
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

/// TCP, and a peer on it that is not ours: a plain socket.
struct Tcp {
  explicit Tcp(AsioLoop& loop, TcpTransport::Options options = {}) : transport{loop, options} {}

  struct Peer {
    explicit Peer(int socket) : fd{socket} {}
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;
    ~Peer() { ::close(fd); }
    bool open() { return true; }
    ssize_t recv(void* into, std::size_t size) { return ::recv(fd, into, size, 0); }
    ssize_t send(const void* data, std::size_t size) {
      return ::send(fd, data, size, MSG_NOSIGNAL);
    }
    int fd;
  };
  std::unique_ptr<Peer> peer(const std::string& endpoint) {
    return std::make_unique<Peer>(plain_client(endpoint));
  }

  TcpTransport transport;
};

/// The same with TLS: node 1 of a cluster of its own.
struct Tls {
  explicit Tls(AsioLoop& loop, TcpTransport::Options options = {})
      : world{loop},
        identity{world.identity(1)},
        transport{
            loop, *identity, test::nodes({1, 2}), {.tcp = options, .door = {}, .refused = {}}} {}

  struct Peer {
    Peer(int socket, const TlsFiles& files) : tls{socket, {.files = files}} {}
    bool open() { return tls.handshake() && tls.welcome(); }
    ssize_t recv(void* into, std::size_t size) { return tls.recv(into, size); }
    ssize_t send(const void* data, std::size_t size) { return tls.send(data, size); }
    test::RawTls tls;
  };
  std::unique_ptr<Peer> peer(const std::string& endpoint) {
    return std::make_unique<Peer>(plain_client(endpoint), world.put(2));
  }

  test::TlsWorld world;
  std::unique_ptr<TlsIdentity> identity;
  TlsTransport transport;
};

}  // namespace

TEST_CASE_TEMPLATE(
    "transport: messages with and without bulk data cross whole and in order, both ways at once",
    Network, Tcp, Tls) {
  AsioLoop loop;
  Watch watch{loop};
  Network network{loop};
  auto& transport = network.transport;
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

TEST_CASE_TEMPLATE("transport: what was sent before the close arrives, then the end, once", Network,
                   Tcp, Tls) {
  AsioLoop loop;
  Watch watch{loop};
  Network network{loop};
  auto& transport = network.transport;
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

TEST_CASE_TEMPLATE("transport: a handler may destroy its connection, and nothing follows", Network,
                   Tcp, Tls) {
  AsioLoop loop;
  Watch watch{loop};
  Network network{loop};
  auto& transport = network.transport;
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

TEST_CASE_TEMPLATE(
    "transport: a peer that does not read ends the connection at the bound, not our memory",
    Network, Tcp, Tls) {
  AsioLoop loop;
  Watch watch{loop};
  Network network{loop, {.max_queued = 8u << 20}};
  auto& transport = network.transport;
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
  auto peer = network.peer(server.listener->endpoint());
  bool opened = false;
  std::thread silent{[&] { opened = peer->open(); }};
  loop.run();
  silent.join();
  CHECK(opened);
  CHECK_FALSE(watch.timed_out);
  REQUIRE(why);
  CHECK(*why == Errc::closed);
  CHECK(sent >= 8);
}

TEST_CASE_TEMPLATE("transport: a peer that reads slowly gets everything", Network, Tcp, Tls) {
  AsioLoop loop;
  Watch watch{loop};
  Network network{loop};
  auto& transport = network.transport;
  Server server{transport};
  constexpr int kMessages = 12;
  server.on_accept = [&](Connection& connection) {
    connection.start([](Message) {}, [&](Error) { loop.stop(); });
    for (std::uint64_t id = 1; id <= kMessages; ++id) connection.send(content(id, 1u << 20));
  };
  auto peer = network.peer(server.listener->endpoint());
  std::uint64_t got = 0;
  bool all_intact = true;
  std::thread slow{[&] {
    FrameReader reader;
    bool open = peer->open();
    while (open && got < kMessages) {
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
      auto space = reader.space();
      auto into = space[0].empty() ? space[1] : space[0];
      auto n = peer->recv(into.data(), std::min<std::size_t>(into.size(), 50'000));
      if (n <= 0) break;
      reader.filled(static_cast<std::size_t>(n));
      for (;;) {
        auto next = reader.next();
        if (!next || !*next) break;
        all_intact &= intact(**next) && (**next).frame.id() == ++got;
      }
    }
    peer.reset();
  }};
  loop.run();
  slow.join();
  CHECK_FALSE(watch.timed_out);
  CHECK(got == kMessages);
  CHECK(all_intact);
}

TEST_CASE_TEMPLATE("transport: rubbish ends the connection with the reason", Network, Tcp, Tls) {
  AsioLoop loop;
  Watch watch{loop};
  Network network{loop};
  auto& transport = network.transport;
  Server server{transport};
  std::optional<Error> why;
  server.on_accept = [&](Connection& connection) {
    connection.start([](Message) { FAIL("rubbish was taken for a message"); },
                     [&](Error error) {
                       why = error;
                       loop.stop();
                     });
  };
  auto peer = network.peer(server.listener->endpoint());
  ssize_t sent = 0;
  std::thread stranger{[&] {
    std::string rubbish(100, 'x');
    if (peer->open()) sent = peer->send(rubbish.data(), rubbish.size());
  }};
  loop.run();
  stranger.join();
  CHECK(sent == 100);
  CHECK_FALSE(watch.timed_out);
  REQUIRE(why);
  CHECK(*why == Errc::refused);
}

TEST_CASE_TEMPLATE("transport: connecting to nobody, or to no address, fails with a reason",
                   Network, Tcp, Tls) {
  AsioLoop loop;
  Watch watch{loop};
  Network network{loop};
  auto& transport = network.transport;
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

TEST_CASE_TEMPLATE("transport: two listeners cannot share an endpoint", Network, Tcp, Tls) {
  AsioLoop loop;
  Network network{loop};
  auto& transport = network.transport;
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
