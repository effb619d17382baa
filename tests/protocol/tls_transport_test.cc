#include "coordinator/protocol/tls_transport.h"

#include <doctest/doctest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>

#include <atomic>
#include <cstring>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "coordinator/protocol/frame.h"
#include "tests/protocol/tls_world.h"

using namespace csv;
using namespace csv::protocol;
using namespace csv::protocol::test;

namespace {

Message numbered(std::uint64_t id, std::size_t bulk = 0) {
  Message out;
  out.frame.set_id(id);
  out.frame.mutable_reply();
  out.bulk = Buffer::zeroed(bulk);
  return out;
}

/// Node 1 listens on a loop with a thread of its own; what it let in echoes. Tests talk to it from
/// their thread.
struct Server {
  explicit Server(TlsTransport::Options options = {}, NodeSet peers = nodes({1, 2, 3}))
      : world{loop}, clock{loop} {
    auto loaded = TlsIdentity::load(clock, world.put(1), {kCluster, node_id(1)});
    REQUIRE(loaded);
    identity = *std::move(loaded);
    options.refused = [this](const std::string&, const std::string& why) {
      refusals.push_back(why);
    };
    transport = std::make_unique<TlsTransport>(loop, *identity, peers, options);
    loop.start("tls-server");
    run([&] {
      auto made = transport->listen("127.0.0.1:0", [this](auto connection) {
        for (unsigned node = 1; node <= kMaxNode; ++node)
          if (connection->speaks_for(node_id(node))) let_in.push_back(node);
        auto* raw = connection.get();
        connections.push_back(std::move(connection));
        raw->start(
            [this, raw](Message message) {
              ++messages;
              raw->send(std::move(message));
            },
            [this](Error why) { ends.push_back(why.message()); });
      });
      REQUIRE(made);
      listener = *std::move(made);
      endpoint = listener->endpoint();
    });
  }
  ~Server() {
    run([&] {
      listener.reset();
      connections.clear();
      client.reset();
    });
  }

  template <typename Work>
  void run(Work work) {
    std::atomic<bool> done{false};
    loop.post([&] {
      work();
      done = true;
      done.notify_all();
    });
    done.wait(false);
  }
  template <typename Condition>
  bool eventually(Condition condition) {
    for (int i = 0; i < 2500; ++i) {
      bool holds = false;
      run([&] { holds = condition(); });
      if (holds) return true;
      ::poll(nullptr, 0, 4);
    }
    return false;
  }
  /// Why the last one was not let in.
  std::string refusal() {
    REQUIRE(eventually([&] { return !refusals.empty(); }));
    std::string out;
    run([&] {
      out = refusals.back();
      refusals.clear();
    });
    return out;
  }

  /// Node `node` connects as our own transport does, to what it takes for node `to`.
  Expected<void> connect(TlsIdentity& as, unsigned to = 1, const std::string& at = {},
                         NodeSet knows = nodes({1, 2, 3})) {
    std::optional<Expected<void>> result;
    run([&] {
      dialer = std::make_unique<TlsTransport>(loop, as, knows);
      dialer->connect(node_id(to), at.empty() ? endpoint : at, [&](auto connected) {
        if (!connected) {
          result = connected.error();
          return;
        }
        client = *std::move(connected);
        client->start([this](Message) { ++echoes; }, [this](Error why) { client_end = why; });
        client->send(numbered(1));
        result = Expected<void>{};
      });
    });
    REQUIRE(eventually([&] { return result.has_value(); }));
    return *result;
  }
  /// What was true before any stranger came: node 2 gets in and is served.
  void check_serves() {
    auto two = world.identity(2);
    int before = echoes;
    auto connected = connect(*two);
    REQUIRE_MESSAGE(connected, connected.error().message());
    CHECK(eventually([&] { return echoes == before + 1; }));
    run([&] {
      CHECK(let_in.back() == 2);
      CHECK(client->speaks_for(node_id(1)));
      CHECK_FALSE(client->speaks_for(node_id(2)));
      client.reset();
    });
  }

  AsioLoop loop;
  TlsWorld world;
  ShiftedClock clock;
  std::unique_ptr<TlsIdentity> identity;
  std::unique_ptr<TlsTransport> transport, dialer;
  std::unique_ptr<Transport::Listener> listener;
  std::string endpoint;
  // All below: on the loop.
  std::vector<unsigned> let_in;
  std::vector<std::string> refusals, ends;
  std::vector<std::unique_ptr<Connection>> connections;
  std::unique_ptr<Connection> client;
  std::optional<Error> client_end;
  int messages = 0, echoes = 0;
};

/// A certificate as our own tools would never make it: like `like`, signed by `by`, then changed.
KeyPair odd_certificate(const KeyPair& like, const KeyPair& by,
                        const std::function<void(X509&, X509&)>& change) {
  auto read = [](const std::string& pem) {
    BIO* in = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
    X509* out = PEM_read_bio_X509(in, nullptr, nullptr, nullptr);
    BIO_free(in);
    REQUIRE(out != nullptr);
    return out;
  };
  X509* certificate = read(like.certificate);
  X509* issuer = read(by.certificate);
  BIO* in = BIO_new_mem_buf(by.key.data(), static_cast<int>(by.key.size()));
  EVP_PKEY* key = PEM_read_bio_PrivateKey(in, nullptr, nullptr, nullptr);
  BIO_free(in);
  REQUIRE(key != nullptr);
  X509_set_issuer_name(certificate, X509_get_subject_name(issuer));
  int at = X509_get_ext_by_NID(certificate, NID_authority_key_identifier, -1);
  if (at >= 0) X509_EXTENSION_free(X509_delete_ext(certificate, at));
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  auto* id = X509V3_EXT_conf_nid(nullptr, &context, NID_authority_key_identifier, "keyid:always");
  if (id != nullptr) {
    X509_add_ext(certificate, id, -1);
    X509_EXTENSION_free(id);
  }
  change(*certificate, *issuer);
  REQUIRE(X509_sign(certificate, key, EVP_sha256()) > 0);
  BIO* out = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(out, certificate);
  char* text = nullptr;
  auto length = BIO_get_mem_data(out, &text);
  KeyPair made{std::string(text, static_cast<std::size_t>(length)), like.key};
  BIO_free(out);
  EVP_PKEY_free(key);
  X509_free(issuer);
  X509_free(certificate);
  return made;
}

void replace_extension(X509& certificate, X509& issuer, int kind, const char* value) {
  int at = X509_get_ext_by_NID(&certificate, kind, -1);
  if (at >= 0) X509_EXTENSION_free(X509_delete_ext(&certificate, at));
  if (value == nullptr) return;
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, &issuer, &certificate, nullptr, nullptr, 0);
  auto* made = X509V3_EXT_conf_nid(nullptr, &context, kind, value);
  REQUIRE(made != nullptr);
  X509_add_ext(&certificate, made, -1);
  X509_EXTENSION_free(made);
}

bool contains(const std::string& text, const std::string& what) {
  return text.find(what) != std::string::npos;
}

}  // namespace

TEST_CASE("tls: two nodes of a cluster speak, and each knows who the other is") {
  Server server;
  server.check_serves();
  server.run([&] { CHECK(server.connections.back()->peer().starts_with("node2/127.0.0.1:")); });
  // A mount speaks to the csvd of its own node.
  auto own = server.world.identity(1);
  CHECK(server.connect(*own));
}

TEST_CASE("tls: who shows no certificate that will do gets nowhere, and nothing else changes") {
  Server server;
  auto& world = server.world;
  RawTls::Show show;
  std::string why;
  auto with = [&](const KeyPair& pair) {
    show.files = world.put("stranger", pair, world.authority.certificate);
  };
  SUBCASE("none") { why = "no certificate"; }
  SUBCASE("expired") {
    with(TlsWorld::issue(2, world.authority, world.days(-10, -1)));
    why = "expired";
  }
  SUBCASE("not yet valid") {
    with(TlsWorld::issue(2, world.authority, world.days(1, 10)));
    why = "not yet valid";
  }
  SUBCASE("of a foreign CA that calls itself like ours") {
    with(TlsWorld::issue(2, world.new_authority(), world.days(-1, 10)));
    why = "unable to get local issuer";
  }
  SUBCASE("of a node that is not configured") {
    with(world.issue(9));
    why = "node 9, which is not in this node's configuration";
  }
  SUBCASE("of another cluster, by a CA that was put beside ours") {
    auto other = world.new_authority(815);
    TlsWorld::write(world.folder() + "/node1.ca", world.authority.certificate + other.certificate,
                    0644);
    with(TlsWorld::issue(2, other, world.days(-1, 10)));
    why = "another cluster";
  }
  SUBCASE("signed with the key of a node") {
    auto node = world.issue(3);
    with(odd_certificate(world.issue(2), node, [](X509&, X509&) {}));
    // A client sends the chain it has.
    TlsWorld::write(
        show.files.certificate,
        [&] {
          std::ifstream in{show.files.certificate};
          return std::string{std::istreambuf_iterator<char>{in}, {}};
        }() +
            node.certificate,
        0644);
    why = "refused";
  }
  SUBCASE("the CA's own") {
    with(world.authority);
    why = "refused";
  }
  SUBCASE("without a name of ours") {
    with(odd_certificate(world.issue(2), world.authority, [](X509& made, X509& by) {
      replace_extension(made, by, NID_subject_alt_name, "DNS:node2");
    }));
    why = "names no node";
  }
  SUBCASE("with two names") {
    with(odd_certificate(world.issue(2), world.authority, [](X509& made, X509& by) {
      replace_extension(made, by, NID_subject_alt_name,
                        "URI:csvfs://4711/node/2,URI:csvfs://4711/node/3");
    }));
    why = "names no node";
  }
  SUBCASE("with a name that only begins like one") {
    with(odd_certificate(world.issue(2), world.authority, [](X509& made, X509& by) {
      replace_extension(made, by, NID_subject_alt_name, "URI:csvfs://4711/node/2x");
    }));
    why = "names no node";
  }
  SUBCASE("not meant for clients") {
    with(odd_certificate(world.issue(2), world.authority, [](X509& made, X509& by) {
      replace_extension(made, by, NID_ext_key_usage, "serverAuth");
    }));
    why = "purpose";
  }
  SUBCASE("too old a TLS") {
    with(world.issue(2));
    show.least = show.most = TLS1_2_VERSION;
    why = "older TLS";
  }
  RawTls stranger{plain_client(server.endpoint), show};
  bool in = stranger.handshake() && stranger.welcome();
  CHECK_FALSE(in);
  auto said = server.refusal();
  CHECK_MESSAGE(contains(said, why), said);
  server.run([&] { CHECK(server.let_in.empty()); });
  server.check_serves();
}

TEST_CASE("tls: who is let in changes while it listens, and connections that stand stay") {
  Server server;
  auto two = server.world.identity(2), nine = server.world.identity(9);
  CHECK(!server.connect(*nine));
  CHECK(contains(server.refusal(), "node 9"));
  REQUIRE(server.connect(*two));
  server.run([&] { server.transport->let_in(nodes({1, 9})); });
  int before = server.echoes;
  server.run([&] { server.client->send(numbered(2)); });
  CHECK(server.eventually([&] { return server.echoes == before + 1; }));
  CHECK(server.connect(*nine));
  CHECK(!server.connect(*two));
  CHECK(contains(server.refusal(), "node 2"));
}

TEST_CASE("tls: plain text, rubbish and silence get nowhere") {
  Server server{{.tcp = {}, .handshake_within = 300ms, .door = {}, .refused = {}}};
  int fd = plain_client(server.endpoint);
  std::string why;
  auto send = [fd](const std::string& bytes) {
    (void)::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  };
  SUBCASE("plain text") {
    send(encode_message(numbered(1)));
    why = "plain text";
  }
  SUBCASE("rubbish") {
    send(std::string(3000, 'x'));
    why = "failed";
  }
  SUBCASE("an HTTP request") {
    send("GET / HTTP/1.1\r\nHost: node1\r\n\r\n");
    why = "http";
  }
  SUBCASE("silence") { why = "takes too long"; }
  SUBCASE("one byte at a time") {
    for (int i = 0; i < 60; ++i) {
      send(i == 0 ? "\x16" : i == 1 ? "\x03" : std::string(1, '\x01'));
      ::poll(nullptr, 0, 10);
    }
    why = "";
  }
  SUBCASE("a greeting that promises more than anybody needs") {
    // A ClientHello of 60 KiB, in records as TLS allows them.
    std::string hello{"\x01\x00\xf0\x00\x03\x03", 6};
    hello.resize(60'000, 'a');
    for (std::size_t at = 0; at < hello.size(); at += 10'000)
      send(std::string{"\x16\x03\x01\x27\x10", 5} + hello.substr(at, 10'000));
    why = "too much";
  }
  SUBCASE("it goes away") {
    send("\x16\x03\x01");
    ::shutdown(fd, SHUT_WR);
    why = "went away";
  }
  auto said = server.refusal();
  CHECK_MESSAGE(contains(said, why), said);
  // The socket is closed, not only forgotten.
  char byte;
  pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
  CHECK(::poll(&waiting, 1, 5000) == 1);
  while (::recv(fd, &byte, 1, 0) > 0) {
  }
  ::close(fd);
  server.check_serves();
}

TEST_CASE("tls: a flood from one address takes its own places only") {
  constexpr std::size_t kPlaces = 8;
  Server server{{.tcp = {},
                 .handshake_within = 10s,
                 .door = {.most = 64, .most_per_address = kPlaces, .budget = 1000},
                 .refused = {}}};
  std::vector<int> flood;
  for (int i = 0; i < 200; ++i) flood.push_back(plain_client(server.endpoint));
  // All but the last few have been sent away long before their time.
  CHECK(server.eventually([&] { return server.refusals.size() == 200 - kPlaces; }));
  server.check_serves();
  for (int fd : flood) ::close(fd);
}

TEST_CASE("tls: an address that fails again and again is not even listened to, for a while") {
  Server server{{.tcp = {},
                 .handshake_within = 10s,
                 .door = {.budget = 5, .earned_in = 100ms},
                 .refused = {}}};
  for (int i = 0; i < 30; ++i) {
    int fd = plain_client(server.endpoint);
    (void)::send(fd, "rubbish that is long enough to be one", 37, MSG_NOSIGNAL);
    ::close(fd);
  }
  CHECK(server.eventually([&] { return server.refusals.size() == 30; }));
  int turned_away = 0;
  server.run([&] {
    for (const auto& why : server.refusals) turned_away += contains(why, "too many");
    server.refusals.clear();
  });
  CHECK(turned_away >= 15);
  ::poll(nullptr, 0, 600);
  server.check_serves();
  // What succeeds costs nothing.
  for (int i = 0; i < 20; ++i) server.check_serves();
}

TEST_CASE("tls: who connects makes sure that it is the node it wants") {
  AsioLoop other_loop;
  Server server;
  auto& world = server.world;
  auto two = world.identity(2);
  Expected<void> result;
  SUBCASE("another node has the address") {
    result = server.connect(*two, 3);
    CHECK(contains(result.error().message(), "another node answers there"));
  }
  SUBCASE("it believes another CA") {
    auto foreign = world.new_authority();
    auto files =
        world.put("foreign", TlsWorld::issue(2, foreign, world.days(-1, 9)), foreign.certificate);
    auto identity = world.load(files, 2);
    result = server.connect(*identity);
    CHECK(contains(result.error().message(), "refused"));
  }
  SUBCASE("the other one's certificate has expired") {
    // Node 1's clock stands still while its certificate ends: node 2 knows better.
    auto files = world.put("old", TlsWorld::issue(1, world.authority, world.days(-9, -1)),
                           world.authority.certificate);
    std::filesystem::rename(files.certificate, world.folder() + "/node1.crt");
    std::filesystem::rename(files.key, world.folder() + "/node1.key");
    result = server.connect(*two);
    CHECK(contains(result.error().message(), "expired"));
  }
  SUBCASE("its own certificate has expired") {
    ShiftedClock late{server.loop};
    late.shift = 60 * kDay;
    auto identity = TlsIdentity::load(late, world.put(2), {kCluster, node_id(2)});
    REQUIRE(identity);
    CHECK(contains((*identity)->trouble(), "expired"));
    result = server.connect(**identity);
    CHECK(contains(result.error().message(), "this node's certificate"));
  }
  SUBCASE("the other one does not want it, and says so before the connection is handed over") {
    auto nine = world.load(world.put("nine", world.issue(9), world.authority.certificate), 9);
    result = server.connect(*nine);
    CHECK(contains(result.error().message(), "refuses this node"));
    CHECK(contains(server.refusal(), "node 9"));
  }
  CHECK_FALSE(result);
  CHECK(result.error() == Errc::refused);
  server.run([&] {
    CHECK(server.let_in.empty());
    CHECK(server.messages == 0);
  });
}

TEST_CASE("tls: a server that speaks plain text, or nothing, is no node") {
  Server server;
  auto two = server.world.identity(2);
  int listening = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::bind(listening, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
  REQUIRE(::listen(listening, 4) == 0);
  socklen_t length = sizeof at;
  REQUIRE(::getsockname(listening, reinterpret_cast<sockaddr*>(&at), &length) == 0);
  auto endpoint = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
  std::string words, why;
  SUBCASE("plain text") {
    words = encode_message(numbered(1));
    why = "plain text";
  }
  SUBCASE("silence") { why = "too long"; }
  std::atomic<bool> over{false};
  std::thread impostor{[&] {
    int fd = ::accept(listening, nullptr, nullptr);
    if (!words.empty()) (void)::send(fd, words.data(), words.size(), MSG_NOSIGNAL);
    while (!over) ::poll(nullptr, 0, 5);
    ::close(fd);
  }};
  auto result = server.connect(*two, 1, endpoint);
  over = true;
  impostor.join();
  ::close(listening);
  REQUIRE_FALSE(result);
  CHECK_MESSAGE(contains(result.error().message(), why), result.error().message());
}

TEST_CASE("tls: a connection that is cut, in a message or between two, ends once and for all") {
  Server server;
  auto files = server.world.put(2);
  auto whole = encode_message(numbered(1, 100'000));
  {
    RawTls peer{plain_client(server.endpoint), {.files = files}};
    REQUIRE(peer.handshake());
    REQUIRE(peer.welcome());
    SUBCASE("in a message") { peer.send(whole.data(), whole.size() / 2); }
    SUBCASE("between two") {
      peer.send(whole.data(), whole.size());
      CHECK(server.eventually([&] { return server.messages == 1; }));
    }
    // No farewell of TLS: the socket just goes.
    ::shutdown(peer.socket(), SHUT_RDWR);
  }
  CHECK(server.eventually([&] { return server.ends.size() == 1; }));
  server.run([&] { CHECK(server.messages <= 1); });
  server.check_serves();
}

TEST_CASE("tls: a bit that is changed on the way ends the connection, and is never delivered") {
  Server server;
  auto two = server.world.identity(2);
  int listening = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(::bind(listening, reinterpret_cast<sockaddr*>(&at), sizeof at) == 0);
  REQUIRE(::listen(listening, 4) == 0);
  socklen_t length = sizeof at;
  REQUIRE(::getsockname(listening, reinterpret_cast<sockaddr*>(&at), &length) == 0);
  // Somebody in the middle, who passes everything on, but for one bit behind the first 100 000.
  bool backwards = false;
  SUBCASE("to the coordinator") {}
  SUBCASE("from the coordinator") { backwards = true; }
  std::atomic<bool> over{false};
  std::thread middle{[&] {
    int near = ::accept(listening, nullptr, nullptr);
    int far = plain_client(server.endpoint);
    std::size_t passed = 0;
    std::vector<char> bytes(16'000);
    while (!over) {
      pollfd both[2] = {{near, POLLIN, 0}, {far, POLLIN, 0}};
      ::poll(both, 2, 20);
      for (int from = 0; from < 2; ++from) {
        if ((both[from].revents & (POLLIN | POLLHUP)) == 0) continue;
        auto n = ::recv(both[from].fd, bytes.data(), bytes.size(), 0);
        if (n <= 0) {
          over = true;
          break;
        }
        bool victim = (from == 1) == backwards;
        auto size = static_cast<std::size_t>(n);
        if (victim && passed < 100'000 && passed + size >= 100'000)
          bytes[100'000 - passed > size - 1 ? size - 1 : 100'000 - passed] ^= 0x10;
        if (victim) passed += size;
        for (std::size_t sent = 0; sent < size;) {
          auto m = ::send(both[1 - from].fd, bytes.data() + sent, size - sent, MSG_NOSIGNAL);
          if (m <= 0) break;
          sent += static_cast<std::size_t>(m);
        }
      }
    }
    ::close(near);
    ::close(far);
  }};
  REQUIRE(server.connect(*two, 1, "127.0.0.1:" + std::to_string(ntohs(at.sin_port))));
  CHECK(server.eventually([&] { return server.echoes == 1; }));
  server.run([&] { server.client->send(numbered(2, 500'000)); });
  CHECK(server.eventually([&] { return server.client_end || !server.ends.empty(); }));
  server.run([&] {
    CHECK(server.echoes == 1);
    if (!backwards) CHECK(server.messages == 1);
  });
  over = true;
  middle.join();
  ::close(listening);
}

TEST_CASE("tls: new files are taken for the next connection, and half-written ones are not") {
  Server server;
  auto& world = server.world;
  auto two = world.identity(2);
  CHECK(server.connect(*two));
  auto first = two->certificate().fingerprint;

  // A certificate of another key than the one that lies there yet.
  auto renewed = world.issue(2);
  auto path = world.folder() + "/node2";
  TlsWorld::write(path + ".crt", renewed.certificate, 0644);
  CHECK(server.connect(*two));
  CHECK(two->certificate().fingerprint == first);
  CHECK(contains(two->trouble(), "is not that of the certificate"));
  TlsWorld::write(path + ".key", renewed.key, 0600);
  CHECK(server.connect(*two));
  CHECK(two->certificate().fingerprint != first);
  CHECK(two->trouble().empty());

  // A new CA of the same name, believed beside the old one, then alone.
  auto next = world.new_authority();
  auto both = world.authority.certificate + next.certificate;
  TlsWorld::write(path + ".ca", both, 0644);
  TlsWorld::write(world.folder() + "/node1.ca", both, 0644);
  CHECK(server.connect(*two));
  auto by_next = TlsWorld::issue(2, next, world.days(-1, 9));
  TlsWorld::write(path + ".crt", by_next.certificate, 0644);
  TlsWorld::write(path + ".key", by_next.key, 0600);
  CHECK(server.connect(*two));
  CHECK(two->certificate().fingerprint ==
        describe_certificates(by_next.certificate).operator->()->front().fingerprint);
}

TEST_CASE("tls: files that cannot be used are named, with the reason") {
  AsioLoop loop;
  TlsWorld world{loop};
  auto files = world.put(2);
  std::string about, why;
  NodeName name{kCluster, node_id(2)};
  SUBCASE("a key that others may read") {
    ::chmod(files.key.c_str(), 0640);
    about = files.key;
    why = "chmod 600";
  }
  SUBCASE("a CA that others may replace") {
    ::chmod(files.ca.c_str(), 0664);
    about = files.ca;
    why = "written by others";
  }
  SUBCASE("none") {
    std::filesystem::remove(files.key);
    about = files.key;
    why = "No such file";
  }
  SUBCASE("a folder") {
    std::filesystem::remove(files.certificate);
    std::filesystem::create_directory(files.certificate);
    about = files.certificate;
    why = "not a regular file";
  }
  SUBCASE("rubbish for a CA") {
    TlsWorld::write(files.ca, "rubbish", 0644);
    about = files.ca;
    why = "no certificate";
  }
  SUBCASE("half a certificate") {
    auto text = world.issue(2).certificate;
    TlsWorld::write(files.certificate, text.substr(0, text.size() / 2), 0644);
    about = files.certificate;
    why = "holds 0";
  }
  SUBCASE("the key of another certificate") {
    TlsWorld::write(files.key, world.issue(2).key, 0600);
    about = files.key;
    why = "is not that of the certificate";
  }
  SUBCASE("another node's certificate") {
    name.node = node_id(3);
    about = files.certificate;
    why = "csvfs://4711/node/2, and this is csvfs://4711/node/3";
  }
  SUBCASE("another CA's") {
    TlsWorld::write(files.ca, world.new_authority().certificate, 0644);
    about = files.ca;
    why = "no CA in it has signed";
  }
  SUBCASE("a node's certificate for a CA") {
    TlsWorld::write(files.ca, world.issue(3).certificate, 0644);
    about = files.ca;
    why = "not the certificate of a CA";
  }
  SUBCASE("a key with a password") {
    TlsWorld::write(files.key,
                    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
                    "MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg=\n"
                    "-----END ENCRYPTED PRIVATE KEY-----\n",
                    0600);
    about = files.key;
    why = "no private key";
  }
  auto loaded = TlsIdentity::load(loop, files, name);
  REQUIRE_FALSE(loaded);
  auto said = loaded.error().message();
  CHECK_MESSAGE(contains(said, about), said);
  CHECK_MESSAGE(contains(said, why), said);
}

TEST_CASE("tls: a listener that ends in the middle of greetings lets nobody in any more") {
  Server server{{.tcp = {}, .handshake_within = 10s, .door = {}, .refused = {}}};
  auto two = server.world.identity(2);
  int silent = plain_client(server.endpoint);
  REQUIRE(server.eventually([&] { return true; }));
  server.run([&] { server.listener.reset(); });
  char byte;
  pollfd waiting{.fd = silent, .events = POLLIN, .revents = 0};
  CHECK(::poll(&waiting, 1, 5000) == 1);
  CHECK(::recv(silent, &byte, 1, 0) <= 0);
  ::close(silent);
  auto result = server.connect(*two);
  CHECK(result.error() == std::errc::connection_refused);
}
