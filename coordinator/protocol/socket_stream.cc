#include "coordinator/protocol/socket_stream.h"

#include <netinet/tcp.h>

#include <algorithm>
#include <charconv>

#include "csvfs/base/log.h"

namespace csv::protocol {
namespace {

Error from_system(const SystemError& why, const std::string& doing) {
  return errno_error(why.value(), doing);
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

class SocketConnection final : public Connection {
 public:
  SocketConnection(std::shared_ptr<SocketStream> stream, std::optional<NodeId> node)
      : stream_{std::move(stream)}, node_{node} {}
  ~SocketConnection() override { stream_->close(); }
  void start(Function<void(Message)> on_message, Function<void(Error)> on_closed) override {
    stream_->start(std::move(on_message), std::move(on_closed));
  }
  void send(Message message) override { stream_->send(std::move(message)); }
  void close() override { stream_->close(); }
  [[nodiscard]] std::string peer() const override { return stream_->peer(); }
  [[nodiscard]] bool speaks_for(NodeId node) const override { return !node_ || node == *node_; }
  [[nodiscard]] std::size_t queued_bytes() const override { return stream_->queued(); }

 private:
  std::shared_ptr<SocketStream> stream_;
  std::optional<NodeId> node_;
};

struct Attempt {
  Attempt(asio::io_context& context, const tcp::endpoint& endpoint,
          Function<void(Expected<tcp::socket>)> handler)
      : socket{context}, to{endpoint}, done{std::move(handler)} {}
  tcp::socket socket;
  tcp::endpoint to;
  Function<void(Expected<tcp::socket>)> done;
  Loop::TimerId timer{};
  bool timed_out = false;
};

class SocketListener final : public Transport::Listener {
 public:
  using Accepted = std::function<void(tcp::socket, const tcp::endpoint&)>;
  struct Accepting {
    Accepting(AsioLoop& on, Accepted to)
        : loop{&on}, acceptor{on.context()}, accepted{std::move(to)} {}
    AsioLoop* loop;
    tcp::acceptor acceptor;
    Accepted accepted;
    bool closed = false;
  };

  explicit SocketListener(std::shared_ptr<Accepting> state) : state_{std::move(state)} {
    SystemError ignored;
    endpoint_ = to_text(state_->acceptor.local_endpoint(ignored));
    accept(state_);
  }
  ~SocketListener() override {
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
      if (!gone) state->accepted(std::move(socket), peer);
      if (!state->closed) accept(state);
    });
  }

  std::shared_ptr<Accepting> state_;
  std::string endpoint_;
};

}  // namespace

Expected<tcp::endpoint> parse_endpoint(const std::string& endpoint) {
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

SocketStream::SocketStream(tcp::socket socket, std::string peer,
                           const TcpTransport::Options& options)
    : socket_{std::move(socket)}, peer_{std::move(peer)}, max_queued_{options.max_queued} {
  set_options(socket_, options);
}

void SocketStream::start(Function<void(Message)> on_message, Function<void(Error)> on_closed) {
  CSV_CHECK(!on_message_);
  on_message_ = std::move(on_message);
  on_closed_ = std::move(on_closed);
  if (ended_)
    asio::post(socket_.get_executor(), [self = shared_from_this()] { self->say_closed(); });
  else if (!closed_)
    read();
}

void SocketStream::send(Message message) {
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
    if (!self->closed_ && !self->writing_ && !self->queue_.empty()) self->write();
  });
}

void SocketStream::close() {
  if (!closed_) farewell();
  closed_ = true;
  ended_.reset();
  SystemError ignored;  // what cannot be closed is gone all the same
  socket_.close(ignored);
  queue_.clear();
  queued_ = 0;
}

bool SocketStream::deliver() {
  for (;;) {
    auto next = reader_.next();
    if (!next) {
      end(next.error().within("from " + peer_));
      return false;
    }
    if (!*next) return true;
    on_message_(std::move(**next));
    if (closed_) return false;
  }
}

void SocketStream::sent(std::size_t bytes) {
  queued_ -= bytes;
  sent_of_first_ += bytes;
  while (!queue_.empty() && sent_of_first_ >= queue_.front().size()) {
    sent_of_first_ -= queue_.front().size();
    queue_.pop_front();
  }
  if (!queue_.empty()) write();
}

void SocketStream::end(Error why) {
  close();
  ended_ = std::move(why);
  say_closed();
}

void SocketStream::end_by(const SystemError& error, const char* doing) {
  if (error == asio::error::eof)
    return end(Error{Errc::closed,
                     peer_ + (reader_.at_boundary() ? " closed the connection"
                                                    : " closed the connection within a message")});
  end(Error{Errc::closed, std::string{doing} + peer_ + ": " + error.message()});
}

void SocketStream::end_soon() {
  auto queued = queued_;
  close();
  ended_ = Error{Errc::closed, peer_ + " does not take what is sent to it (" +
                                   std::to_string(queued) + " bytes are queued)"};
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->say_closed(); });
}

/// Only once started; an end before that is told by start().
void SocketStream::say_closed() {
  if (!ended_ || !on_closed_) return;
  auto why = std::move(*ended_);
  ended_.reset();
  on_closed_(std::move(why));
}

std::unique_ptr<Connection> make_connection(std::shared_ptr<SocketStream> stream,
                                            std::optional<NodeId> node) {
  return std::make_unique<SocketConnection>(std::move(stream), node);
}

void connect_socket(AsioLoop& loop, const std::string& endpoint, Duration within,
                    Function<void(Expected<tcp::socket>)> done) {
  auto to = parse_endpoint(endpoint);
  if (!to) {
    loop.post([done = std::move(done), why = to.error()]() mutable { done(why); });
    return;
  }
  auto attempt = std::make_shared<Attempt>(loop.context(), *to, std::move(done));
  attempt->timer = loop.after(within, [attempt] {
    attempt->timed_out = true;
    SystemError ignored;
    attempt->socket.close(ignored);
  });
  attempt->socket.async_connect(*to, [attempt, on = &loop](const SystemError& error) {
    on->cancel(attempt->timer);
    auto doing = "connecting to " + to_text(attempt->to);
    if (attempt->timed_out) return attempt->done(errno_error(ETIMEDOUT, doing));
    if (error) return attempt->done(from_system(error, doing));
    attempt->done(std::move(attempt->socket));
  });
}

Expected<std::unique_ptr<Transport::Listener>> listen_for_sockets(
    AsioLoop& loop, const std::string& endpoint,
    std::function<void(tcp::socket, const tcp::endpoint&)> accepted) {
  auto at = CSV_TRY(parse_endpoint(endpoint));
  auto state = std::make_shared<SocketListener::Accepting>(loop, std::move(accepted));
  SystemError error;
  state->acceptor.open(at.protocol(), error);
  if (!error) state->acceptor.set_option(tcp::acceptor::reuse_address{true}, error);
  if (!error) state->acceptor.bind(at, error);
  if (!error) state->acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return from_system(error, "listening on " + endpoint);
  return std::unique_ptr<Transport::Listener>{std::make_unique<SocketListener>(std::move(state))};
}

}  // namespace csv::protocol
