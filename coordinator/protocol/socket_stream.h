#pragma once
// What TCP with and without TLS share. For the .cc files of the transports only: it includes Asio.
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/frame.h"
#include "coordinator/protocol/tcp_transport.h"
#include "csvfs/base/asio.h"
#include "csvfs/base/asio_loop.h"

namespace csv::protocol {

using asio::ip::tcp;
using SystemError = boost::system::error_code;

/// "192.0.2.1:7400" or "[2001:db8::1]:7400", and back.
Expected<tcp::endpoint> parse_endpoint(const std::string& text);
std::string to_text(const tcp::endpoint& endpoint);

/// Messages on a connected socket. It lives as long as an operation on the socket is under way, the
/// Connection in front of it as long as its owner likes. Derived classes move the bytes.
class SocketStream : public std::enable_shared_from_this<SocketStream> {
 public:
  SocketStream(tcp::socket socket, std::string peer, const TcpTransport::Options& options);
  virtual ~SocketStream() = default;
  SocketStream(const SocketStream&) = delete;
  SocketStream& operator=(const SocketStream&) = delete;

  void start(Function<void(Message)> on_message, Function<void(Error)> on_closed);
  void send(Message message);
  void close();
  [[nodiscard]] const std::string& peer() const { return peer_; }
  [[nodiscard]] std::size_t queued() const { return queued_; }

 protected:
  struct Outgoing {
    std::string head;
    Buffer bulk;
    [[nodiscard]] std::size_t size() const { return head.size() + bulk.size(); }
  };

  /// Brings the next bytes into reader(), then calls deliver(), or end().
  virtual void read() = 0;
  /// Sends what is queued, as much at once as is sensible, then calls sent().
  virtual void write() = 0;
  /// Just before the socket closes by our will.
  virtual void farewell() {}

  [[nodiscard]] tcp::socket& socket() { return socket_; }
  [[nodiscard]] FrameReader& reader() { return reader_; }
  [[nodiscard]] bool closed() const { return closed_; }
  [[nodiscard]] bool writing() const { return writing_; }
  void writing(bool now) { writing_ = now; }
  /// Hands the messages over that the reader has; false if the connection ended by that.
  bool deliver();
  /// Calls `use(data, size)` with the queued bytes behind the first `skip`, in order, until it says
  /// no.
  template <typename Use>
  void queued_pieces(std::size_t skip, Use&& use) const {
    skip += sent_of_first_;
    for (const auto& one : queue_) {
      for (auto [data, size] :
           {std::pair{static_cast<const void*>(one.head.data()), one.head.size()},
            std::pair{static_cast<const void*>(one.bulk.data()), one.bulk.size()}}) {
        auto skipped = std::min(skip, size);
        skip -= skipped;
        if (size > skipped && !use(static_cast<const std::byte*>(data) + skipped, size - skipped))
          return;
      }
    }
  }
  /// The network has taken so many of the queued bytes.
  void sent(std::size_t bytes);
  void end(Error why);
  /// The same for what a system call said; an end of file too.
  void end_by(const SystemError& error, const char* doing);

 private:
  void end_soon();
  void say_closed();

  tcp::socket socket_;
  std::string peer_;
  std::size_t max_queued_;
  FrameReader reader_;
  Function<void(Message)> on_message_;
  Function<void(Error)> on_closed_;
  std::deque<Outgoing> queue_;
  std::size_t queued_ = 0, sent_of_first_ = 0;
  std::optional<Error> ended_;  ///< Why the connection ended by itself, until that was said.
  bool closed_ = false, writing_ = false, flush_posted_ = false;
};

/// A Connection over such a stream; `node` is what the peer has proven to be, if that was asked.
std::unique_ptr<Connection> make_connection(std::shared_ptr<SocketStream> stream,
                                            std::optional<NodeId> node);

/// A socket that connects within `options.connect_timeout`; `done` through the loop.
void connect_socket(AsioLoop& loop, const std::string& endpoint, Duration within,
                    Function<void(Expected<tcp::socket>)> done);

/// Accepts sockets until it is destroyed.
Expected<std::unique_ptr<Transport::Listener>> listen_for_sockets(
    AsioLoop& loop, const std::string& endpoint,
    std::function<void(tcp::socket, const tcp::endpoint&)> accepted);

}  // namespace csv::protocol
