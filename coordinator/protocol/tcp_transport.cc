#include "coordinator/protocol/tcp_transport.h"

#include <netinet/tcp.h>

#include <array>
#include <charconv>
#include <deque>
#include <optional>
#include <vector>

#include "coordinator/protocol/frame.h"
#include "csvfs/base/asio.h"
#include "csvfs/base/log.h"

namespace csv::protocol {
namespace {

using asio::ip::tcp;
using SystemError = boost::system::error_code;

Error from_system(const SystemError& why, const std::string& doing) {
  return errno_error(why.value(), doing);
}

Expected<tcp::endpoint> parse(const std::string& endpoint) {
  Error bad{Errc::refused, "'" + endpoint + "' is not a numeric address and port, such as " +
                               "192.0.2.1:7400 or [2001:db8::1]:7400"};
  auto colon = endpoint.rfind(':');
  if (colon == std::string::npos) return bad;
  auto address = endpoint.substr(0, colon);
  bool brackets = address.size() > 2 && address.front() == '[' && address.back() == ']';
  if (brackets) address = address.substr(1, address.size() - 2);
  std::uint16_t port = 0;
  const auto* end = endpoint.data() + endpoint.size();
  auto [stop, error] = std::from_chars(endpoint.data() + colon + 1, end, port);
  if (error != std::errc{} || stop != end) return bad;
  SystemError wrong;
  auto parsed = asio::ip::make_address(address, wrong);
  if (wrong || parsed.is_v6() != brackets) return bad;
  return tcp::endpoint{parsed, port};
}

std::string to_text(const tcp::endpoint& endpoint) {
  auto address = endpoint.address().to_string();
  if (endpoint.address().is_v6()) address = "[" + address + "]";
  return address + ":" + std::to_string(endpoint.port());
}

template <int level, int name>
using IntegerOption = asio::detail::socket_option::integer<level, name>;

/// The connection must end soon after its peer's machine went away, whether we send or only wait.
void set_options(tcp::socket& socket, const TcpTransport::Options& options) {
  constexpr int kProbes = 4;
  auto whole = std::chrono::duration_cast<std::chrono::milliseconds>(options.dead_after).count();
  auto step = std::max<int>(1, static_cast<int>(whole / 1000) / (kProbes + 1));
  // An option this kernel lacks costs a later notice of death, never the connection.
  SystemError ignored;
  socket.set_option(tcp::no_delay{true}, ignored);
  socket.set_option(asio::socket_base::keep_alive{true}, ignored);
  socket.set_option(IntegerOption<IPPROTO_TCP, TCP_KEEPIDLE>{step}, ignored);
  socket.set_option(IntegerOption<IPPROTO_TCP, TCP_KEEPINTVL>{step}, ignored);
  socket.set_option(IntegerOption<IPPROTO_TCP, TCP_KEEPCNT>{kProbes}, ignored);
  socket.set_option(IntegerOption<IPPROTO_TCP, TCP_USER_TIMEOUT>{static_cast<int>(whole)}, ignored);
}

/// What a TcpConnection and the operations in flight on its socket share.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(tcp::socket socket, std::string peer, std::size_t max_queued)
      : socket_{std::move(socket)}, peer_{std::move(peer)}, max_queued_{max_queued} {}

  void start(Function<void(Message)> on_message, Function<void(Error)> on_closed) {
    CSV_CHECK(!on_message_);
    on_message_ = std::move(on_message);
    on_closed_ = std::move(on_closed);
    if (ended_)
      asio::post(socket_.get_executor(), [self = shared_from_this()] { self->say_closed(); });
    else if (!closed_)
      read();
  }

  void send(Message message) {
    if (closed_) return;
    auto head = encode_head(message.frame, message.bulk.size());
    queued_ += head.size() + message.bulk.size();
    queue_.push_back({std::move(head), std::move(message.bulk)});
    if (queued_ > max_queued_) return end_soon();
    // All that this turn of the loop sends leaves with one system call.
    if (writing_ || flush_posted_) return;
    flush_posted_ = true;
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      self->flush_posted_ = false;
      self->write();
    });
  }

  void close() {
    closed_ = true;
    ended_.reset();
    SystemError ignored;  // what cannot be closed is gone all the same
    socket_.close(ignored);
    queue_.clear();
    queued_ = 0;
  }

  [[nodiscard]] const std::string& peer() const { return peer_; }
  [[nodiscard]] std::size_t queued() const { return queued_; }

 private:
  struct Outgoing {
    std::string head;
    Buffer bulk;
    [[nodiscard]] std::size_t size() const { return head.size() + bulk.size(); }
  };

  void read() {
    auto space = reader_.space();
    std::array<asio::mutable_buffer, 2> into{asio::buffer(space[0].data(), space[0].size()),
                                             asio::buffer(space[1].data(), space[1].size())};
    socket_.async_read_some(into,
                            [self = shared_from_this()](const SystemError& error, std::size_t n) {
                              self->came(error, n);
                            });
  }

  void came(const SystemError& error, std::size_t bytes) {
    if (closed_) return;
    if (error == asio::error::eof)
      return end(Error{Errc::closed, peer_ + (reader_.at_boundary()
                                                  ? " closed the connection"
                                                  : " closed the connection within a message")});
    if (error) return end(Error{Errc::closed, "receiving from " + peer_ + ": " + error.message()});
    reader_.filled(bytes);
    for (;;) {
      auto next = reader_.next();
      if (!next) return end(next.error().within("from " + peer_));
      if (!*next) break;
      on_message_(std::move(**next));
      if (closed_) return;
    }
    read();
  }

  void write() {
    if (closed_ || queue_.empty()) return;
    // As many as the kernel takes in one call; Asio does not allocate for an array this small.
    constexpr std::size_t kPieces = 64;
    gathered_.clear();
    auto skip = sent_of_first_;
    auto add = [&](const void* data, std::size_t size) {
      auto skipped = std::min(skip, size);
      skip -= skipped;
      if (size > skipped)
        gathered_.emplace_back(static_cast<const char*>(data) + skipped, size - skipped);
    };
    for (const auto& one : queue_) {
      if (gathered_.size() + 2 > kPieces) break;
      add(one.head.data(), one.head.size());
      add(one.bulk.data(), one.bulk.size());
    }
    writing_ = true;
    socket_.async_write_some(gathered_,
                             [self = shared_from_this()](const SystemError& error, std::size_t n) {
                               self->went(error, n);
                             });
  }

  void went(const SystemError& error, std::size_t bytes) {
    writing_ = false;
    if (closed_) return;
    if (error) return end(Error{Errc::closed, "sending to " + peer_ + ": " + error.message()});
    queued_ -= bytes;
    sent_of_first_ += bytes;
    while (!queue_.empty() && sent_of_first_ >= queue_.front().size()) {
      sent_of_first_ -= queue_.front().size();
      queue_.pop_front();
    }
    write();
  }

  void end(Error why) {
    close();
    ended_ = std::move(why);
    say_closed();
  }

  void end_soon() {
    auto queued = queued_;
    close();
    ended_ = Error{Errc::closed, peer_ + " does not take what is sent to it (" +
                                     std::to_string(queued) + " bytes are queued)"};
    asio::post(socket_.get_executor(), [self = shared_from_this()] { self->say_closed(); });
  }

  /// Only once started; an end before that is told by start().
  void say_closed() {
    if (!ended_ || !on_closed_) return;
    auto why = std::move(*ended_);
    ended_.reset();
    on_closed_(std::move(why));
  }

  tcp::socket socket_;
  std::string peer_;
  std::size_t max_queued_;
  FrameReader reader_;
  Function<void(Message)> on_message_;
  Function<void(Error)> on_closed_;
  std::deque<Outgoing> queue_;
  std::vector<asio::const_buffer> gathered_;
  std::size_t queued_ = 0, sent_of_first_ = 0;
  std::optional<Error> ended_;  ///< Why the connection ended by itself, until that was said.
  bool closed_ = false, writing_ = false, flush_posted_ = false;
};

class TcpConnection final : public Connection {
 public:
  explicit TcpConnection(std::shared_ptr<Stream> stream) : stream_{std::move(stream)} {}
  ~TcpConnection() override { stream_->close(); }
  void start(Function<void(Message)> on_message, Function<void(Error)> on_closed) override {
    stream_->start(std::move(on_message), std::move(on_closed));
  }
  void send(Message message) override { stream_->send(std::move(message)); }
  void close() override { stream_->close(); }
  [[nodiscard]] std::string peer() const override { return stream_->peer(); }
  [[nodiscard]] bool speaks_for(NodeId) const override { return true; }
  [[nodiscard]] std::size_t queued_bytes() const override { return stream_->queued(); }

 private:
  std::shared_ptr<Stream> stream_;
};

std::unique_ptr<Connection> make_connection(tcp::socket socket, const tcp::endpoint& peer,
                                            const TcpTransport::Options& options) {
  set_options(socket, options);
  return std::make_unique<TcpConnection>(
      std::make_shared<Stream>(std::move(socket), to_text(peer), options.max_queued));
}

struct Attempt {
  Attempt(asio::io_context& context, const tcp::endpoint& endpoint, Connected handler)
      : socket{context}, to{endpoint}, done{std::move(handler)} {}
  tcp::socket socket;
  tcp::endpoint to;
  Connected done;
  Loop::TimerId timer{};
  bool timed_out = false;
};

class TcpListener final : public Transport::Listener {
 public:
  struct Accepting {
    Accepting(AsioLoop& on, TcpTransport::Options with,
              std::function<void(std::unique_ptr<Connection>)> to)
        : loop{&on}, acceptor{on.context()}, options{with}, accepted{std::move(to)} {}
    AsioLoop* loop;
    tcp::acceptor acceptor;
    TcpTransport::Options options;
    std::function<void(std::unique_ptr<Connection>)> accepted;
    bool closed = false;
  };

  explicit TcpListener(std::shared_ptr<Accepting> state) : state_{std::move(state)} {
    SystemError ignored;
    endpoint_ = to_text(state_->acceptor.local_endpoint(ignored));
    accept(state_);
  }
  ~TcpListener() override {
    state_->closed = true;
    SystemError ignored;
    state_->acceptor.close(ignored);
  }
  [[nodiscard]] std::string endpoint() const override { return endpoint_; }

 private:
  static void accept(const std::shared_ptr<Accepting>& state) {
    state->acceptor.async_accept([state](const SystemError& error, tcp::socket socket) {
      if (state->closed) return;
      if (error) {
        // Out of descriptors or memory: waiting helps, asking again at once does not.
        log::warning("accept_failed error=\"{}\"", error.message());
        state->loop->after(100ms, [state] {
          if (!state->closed) accept(state);
        });
        return;
      }
      SystemError gone;
      auto peer = socket.remote_endpoint(gone);
      if (!gone) state->accepted(make_connection(std::move(socket), peer, state->options));
      if (!state->closed) accept(state);
    });
  }

  std::shared_ptr<Accepting> state_;
  std::string endpoint_;
};

}  // namespace

void TcpTransport::connect(NodeId, const std::string& endpoint, Connected done) {
  auto to = parse(endpoint);
  if (!to) {
    loop_->post([done = std::move(done), why = to.error()]() mutable { done(why); });
    return;
  }
  auto attempt = std::make_shared<Attempt>(loop_->context(), *to, std::move(done));
  attempt->timer = loop_->after(options_.connect_timeout, [attempt] {
    attempt->timed_out = true;
    SystemError ignored;
    attempt->socket.close(ignored);
  });
  attempt->socket.async_connect(
      *to, [attempt, loop = loop_, options = options_](const SystemError& error) {
        loop->cancel(attempt->timer);
        auto doing = "connecting to " + to_text(attempt->to);
        if (attempt->timed_out) return attempt->done(errno_error(ETIMEDOUT, doing));
        if (error) return attempt->done(from_system(error, doing));
        attempt->done(make_connection(std::move(attempt->socket), attempt->to, options));
      });
}

Expected<std::unique_ptr<Transport::Listener>> TcpTransport::listen(
    const std::string& endpoint, std::function<void(std::unique_ptr<Connection>)> accepted) {
  auto at = CSV_TRY(parse(endpoint));
  auto state = std::make_shared<TcpListener::Accepting>(*loop_, options_, std::move(accepted));
  SystemError error;
  state->acceptor.open(at.protocol(), error);
  if (!error) state->acceptor.set_option(tcp::acceptor::reuse_address{true}, error);
  if (!error) state->acceptor.bind(at, error);
  if (!error) state->acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return from_system(error, "listening on " + endpoint);
  return std::unique_ptr<Listener>{std::make_unique<TcpListener>(std::move(state))};
}

}  // namespace csv::protocol
