#include "coordinator/protocol/tls_transport.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "coordinator/protocol/socket_stream.h"
#include "csvfs/base/log.h"

namespace csv::protocol {
namespace {

/// The accepting side's first word.
constexpr std::array<char, 4> kWelcome{'C', 'S', 'V', 'W'};
/// Encrypted, or decrypted, before others on the loop have their turn.
constexpr std::size_t kAtOnce = 256 * 1024;

std::string peer_text(NodeId node, const std::string& address) {
  return "node" + std::to_string(raw(node)) + "/" + address;
}

class TlsStream final : public SocketStream {
 public:
  TlsStream(tcp::socket socket, std::string peer, const TcpTransport::Options& options,
            std::unique_ptr<TlsSession> session)
      : SocketStream{std::move(socket), std::move(peer), options}, session_{std::move(session)} {}

 private:
  std::shared_ptr<TlsStream> self() {
    return std::static_pointer_cast<TlsStream>(shared_from_this());
  }

  /// What came along with the handshake is in the session already: the socket may say nothing.
  void read() override {
    asio::post(socket().get_executor(), [self = self()] { self->drain(); });
  }

  void drain() {
    if (closed()) return;
    for (std::size_t taken = 0; taken < kAtOnce;) {
      auto space = reader().space();
      auto got = session_->read(space[0].empty() ? space[1] : space[0]);
      if (!got) return end(got.error().within("receiving from " + peer()));
      if (*got == 0) {
        if (!writing() && !session_->sealed().empty()) transmit(0);
        return wait();
      }
      taken += *got;
      reader().filled(*got);
      if (!deliver()) return;
    }
    read();
  }

  void wait() {
    socket().async_wait(tcp::socket::wait_read, [self = self()](const SystemError& error) {
      if (self->closed()) return;
      if (error) return self->end_by(error, "receiving from ");
      self->drain();
    });
  }

  /// Whole records, so that a small message costs one and a large one no copy but at its edges.
  void write() override {
    std::array<std::byte, kRecord> edge;
    std::size_t in_edge = 0, taken = 0;
    Expected<void> sealed;
    auto seal = [&](const std::byte* data, std::size_t size) {
      if (sealed) sealed = session_->seal({data, size});
    };
    queued_pieces(0, [&](const std::byte* data, std::size_t size) {
      size = std::min(size, kAtOnce - taken);
      taken += size;
      while (size > 0) {
        auto whole = in_edge == 0 ? size / kRecord * kRecord : 0;
        if (whole > 0) {
          seal(data, whole);
        } else {
          whole = std::min(size, edge.size() - in_edge);
          std::memcpy(edge.data() + in_edge, data, whole);
          in_edge += whole;
          if (in_edge == edge.size()) seal(edge.data(), std::exchange(in_edge, 0));
        }
        data += whole;
        size -= whole;
      }
      return taken < kAtOnce;
    });
    if (in_edge > 0) seal(edge.data(), in_edge);
    if (!sealed) return end(sealed.error().within("sending to " + peer()));
    transmit(taken);
  }

  void transmit(std::size_t plain) {
    sending_.clear();
    std::swap(sending_, session_->sealed());
    writing(true);
    asio::async_write(socket(), asio::buffer(sending_),
                      [self = self(), plain](const SystemError& error, std::size_t) {
                        self->writing(false);
                        if (self->closed()) return;
                        if (error) return self->end_by(error, "sending to ");
                        self->sent(plain);
                      });
  }

  void farewell() override {
    if (!writing()) session_->farewell();
  }

  std::unique_ptr<TlsSession> session_;
  std::string sending_;
};

/// From a connected socket to a connection whose peer is known, or to the reason why not.
class Greeting : public std::enable_shared_from_this<Greeting> {
 public:
  Greeting(AsioLoop& loop, tcp::socket socket, std::string address,
           const TcpTransport::Options& options)
      : loop_{&loop}, socket_{std::move(socket)}, address_{std::move(address)}, options_{options} {}

  void begin(TlsSession::Setup setup, Duration within, Connected done) {
    done_ = std::move(done);
    side_ = setup.side;
    setup.socket = socket_.native_handle();
    auto session = TlsSession::make(setup);
    if (!session) return finish(session.error());
    session_ = *std::move(session);
    timer_ = loop_->after(within, [weak = weak_from_this()] {
      if (auto self = weak.lock())
        self->finish(Error{std::errc::timed_out, "the TLS handshake takes too long"});
    });
    step();
  }
  /// Ends it, if it has not ended. Calls `done`.
  void finish(Expected<std::unique_ptr<Connection>> result) {
    if (!done_) return;
    loop_->cancel(timer_);
    if (!result) {
      SystemError ignored;
      socket_.close(ignored);
    }
    auto done = std::move(done_);
    done(std::move(result));
  }
  /// Ends it without a word to anybody.
  void forget() {
    done_ = nullptr;
    loop_->cancel(timer_);
    SystemError ignored;
    socket_.close(ignored);
  }

 private:
  void step() {
    auto step = session_->handshake();
    if (!step) return finish(step.error());
    if (*step == TlsSession::Step::wait) return wait(&Greeting::step);
    if (side_ == TlsSession::Side::connecting) return await_welcome();
    auto word = session_->seal(std::as_bytes(std::span{kWelcome}));
    if (word) word = session_->send_now();
    if (!word) return finish(word.error());
    succeed();
  }

  void await_welcome() {
    auto rest = std::as_writable_bytes(std::span{word_}).subspan(have_);
    auto got = session_->read(rest);
    if (!got) return finish(got.error());
    if (*got == 0) return wait(&Greeting::await_welcome);
    have_ += *got;
    if (have_ < word_.size()) return await_welcome();
    if (word_ != kWelcome)
      return finish(Error{Errc::refused, "the peer does not speak the protocol of csvfs"});
    succeed();
  }

  void wait(void (Greeting::*then)()) {
    socket_.async_wait(tcp::socket::wait_read,
                       [self = shared_from_this(), then](const SystemError& error) {
                         if (!self->done_) return;
                         if (error) return self->finish(errno_error(error.value(), "receiving"));
                         ((*self).*then)();
                       });
  }

  void succeed() {
    auto node = session_->peer();
    finish(
        make_connection(std::make_shared<TlsStream>(std::move(socket_), peer_text(node, address_),
                                                    options_, std::move(session_)),
                        node));
  }

  AsioLoop* loop_;
  tcp::socket socket_;
  std::string address_;
  TcpTransport::Options options_;
  TlsSession::Side side_{};
  std::unique_ptr<TlsSession> session_;
  Loop::TimerId timer_{};
  Connected done_;
  std::array<char, 4> word_{};
  std::size_t have_ = 0;
};

/// What a listener and the greetings under way at it share.
struct Reception : std::enable_shared_from_this<Reception> {
  Reception(AsioLoop& on, TlsIdentity& as, std::shared_ptr<const NodeSet> let_in,
            const TlsTransport::Options& with, std::function<void(std::unique_ptr<Connection>)> to)
      : loop{&on},
        identity{&as},
        peers{std::move(let_in)},
        options{with},
        accepted{std::move(to)},
        door{on, with.door} {}

  void arrive(tcp::socket socket, const std::string& address) {
    auto id = next++;
    auto decision = door.arrived(id, address);
    if (!decision.admitted)
      return refuse(address, "too many handshakes from its address have failed");
    if (decision.instead) {
      // Erased when it has told.
      auto gone = greetings.at(*decision.instead);
      gone->finish(Error{Errc::refused, "it says nothing, and others wait for its place"});
    }
    identity->refresh();
    auto greeting = std::make_shared<Greeting>(*loop, std::move(socket), address, options.tcp);
    greetings[id] = greeting;
    greeting->begin({.context = identity->context(),
                     .side = TlsSession::Side::accepting,
                     .socket = -1,
                     .cluster = identity->name().cluster,
                     .peers = *peers,
                     .now = identity->now()},
                    options.handshake_within, [weak = weak_from_this(), id, address](auto result) {
                      if (auto self = weak.lock()) self->greeted(id, address, std::move(result));
                    });
  }

  void greeted(std::uint64_t id, const std::string& address,
               Expected<std::unique_ptr<Connection>> result) {
    greetings.erase(id);
    door.left(id, static_cast<bool>(result));
    if (!result) return refuse(address, result.error().message());
    if (!closed) accepted(*std::move(result));
  }

  void refuse(const std::string& address, const std::string& why) {
    if (options.refused) options.refused(address, why);
    if (auto times = door.may_say(address))
      log::warning("connection_refused peer={} times={} why=\"{}\"", address, *times, why);
  }

  AsioLoop* loop;
  TlsIdentity* identity;
  std::shared_ptr<const NodeSet> peers;
  TlsTransport::Options options;
  std::function<void(std::unique_ptr<Connection>)> accepted;
  Doorkeeper door;
  std::map<std::uint64_t, std::shared_ptr<Greeting>> greetings;
  std::uint64_t next = 1;
  bool closed = false;
};

class TlsListener final : public Transport::Listener {
 public:
  TlsListener(std::shared_ptr<Reception> reception, std::unique_ptr<Listener> sockets)
      : reception_{std::move(reception)}, sockets_{std::move(sockets)} {}
  ~TlsListener() override {
    sockets_.reset();
    reception_->closed = true;
    for (auto& [id, greeting] : std::exchange(reception_->greetings, {})) greeting->forget();
  }
  [[nodiscard]] std::string endpoint() const override { return sockets_->endpoint(); }

 private:
  std::shared_ptr<Reception> reception_;
  std::unique_ptr<Listener> sockets_;
};

}  // namespace

void TlsTransport::connect(NodeId node, const std::string& endpoint, Connected done) {
  auto doing = "connecting to node " + std::to_string(raw(node)) + " at " + endpoint;
  identity_->refresh();
  auto usable = identity_->in_force();
  if (!usable) {
    loop_->post(
        [done = std::move(done), why = usable.error().within(doing)]() mutable { done(why); });
    return;
  }
  TlsSession::Setup setup{.context = identity_->context(),
                          .side = TlsSession::Side::connecting,
                          .socket = -1,
                          .cluster = identity_->name().cluster,
                          .peers = NodeSet{}.set(raw(node)),
                          .now = identity_->now()};
  auto until = loop_->now() + options_.tcp.connect_timeout;
  auto connected = [loop = loop_, options = options_.tcp, endpoint, doing, setup, until,
                    done = std::move(done)](Expected<tcp::socket> socket) mutable {
    if (!socket) return done(socket.error());
    auto greeting = std::make_shared<Greeting>(*loop, *std::move(socket), endpoint, options);
    auto told = [doing, done = std::move(done)](auto result) mutable {
      if (!result) return done(result.error().within(doing));
      done(*std::move(result));
    };
    greeting->begin(setup, until - loop->now(), std::move(told));
  };
  connect_socket(*loop_, endpoint, options_.tcp.connect_timeout, std::move(connected));
}

Expected<std::unique_ptr<Transport::Listener>> TlsTransport::listen(
    const std::string& endpoint, std::function<void(std::unique_ptr<Connection>)> accepted) {
  auto reception =
      std::make_shared<Reception>(*loop_, *identity_, peers_, options_, std::move(accepted));
  auto sockets = CSV_TRY(listen_for_sockets(
      *loop_, endpoint, [reception](tcp::socket socket, const tcp::endpoint& peer) {
        reception->arrive(std::move(socket), to_text(peer));
      }));
  return std::unique_ptr<Listener>{
      std::make_unique<TlsListener>(std::move(reception), std::move(sockets))};
}

}  // namespace csv::protocol
