#include "coordinator/protocol/tcp_transport.h"

#include <array>
#include <vector>

#include "coordinator/protocol/socket_stream.h"

namespace csv::protocol {
namespace {

class PlainStream final : public SocketStream {
 public:
  using SocketStream::SocketStream;

 private:
  std::shared_ptr<PlainStream> self() {
    return std::static_pointer_cast<PlainStream>(shared_from_this());
  }

  void read() override {
    auto space = reader().space();
    std::array<asio::mutable_buffer, 2> into{asio::buffer(space[0].data(), space[0].size()),
                                             asio::buffer(space[1].data(), space[1].size())};
    socket().async_read_some(into, [self = self()](const SystemError& error, std::size_t n) {
      if (self->closed()) return;
      if (error) return self->end_by(error, "receiving from ");
      self->reader().filled(n);
      if (self->deliver()) self->read();
    });
  }

  void write() override {
    // As many as the kernel takes in one call; Asio does not allocate for an array this small.
    constexpr std::size_t kPieces = 64;
    gathered_.clear();
    queued_pieces(0, [this](const std::byte* data, std::size_t size) {
      gathered_.emplace_back(data, size);
      return gathered_.size() < kPieces;
    });
    writing(true);
    socket().async_write_some(gathered_, [self = self()](const SystemError& error, std::size_t n) {
      self->writing(false);
      if (self->closed()) return;
      if (error) return self->end_by(error, "sending to ");
      self->sent(n);
    });
  }

  std::vector<asio::const_buffer> gathered_;
};

}  // namespace

void TcpTransport::connect(NodeId, const std::string& endpoint, Connected done) {
  connect_socket(*loop_, endpoint, options_.connect_timeout,
                 [options = options_, endpoint, done = std::move(done)](auto socket) mutable {
                   if (!socket) return done(socket.error());
                   done(make_connection(
                       std::make_shared<PlainStream>(*std::move(socket), endpoint, options), {}));
                 });
}

Expected<std::unique_ptr<Transport::Listener>> TcpTransport::listen(
    const std::string& endpoint, std::function<void(std::unique_ptr<Connection>)> accepted) {
  return listen_for_sockets(
      *loop_, endpoint,
      [options = options_, accepted = std::move(accepted)](tcp::socket socket,
                                                           const tcp::endpoint& peer) {
        accepted(make_connection(
            std::make_shared<PlainStream>(std::move(socket), to_text(peer), options), {}));
      });
}

}  // namespace csv::protocol
