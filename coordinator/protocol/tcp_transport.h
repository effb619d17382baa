#pragma once
#include <memory>
#include <string>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/asio_loop.h"

namespace csv::protocol {

/// Messages over TCP, as frame.h draws them. All on the thread of `loop`, which must outlive the
/// transport and everything it made; no other thread takes part.
///
/// Endpoints are numeric, "192.0.2.1:7400" or "[2001:db8::1]:7400": names would need a resolver,
/// which waits. A connection ends with Errc::closed (the sentence says how: by the peer, silence
/// for `dead_after`, a peer that does not take what we send), or with what was wrong with a
/// message.
class TcpTransport final : public Transport {
 public:
  struct Options {
    Duration connect_timeout = 3s;
    /// A peer that acknowledges nothing for this long is gone (keepalive and TCP_USER_TIMEOUT).
    Duration dead_after = 5s;
    /// Bytes queued at which the peer counts as not reading: the connection ends.
    std::size_t max_queued = 256u << 20;
  };

  explicit TcpTransport(AsioLoop& loop) : TcpTransport{loop, Options{}} {}
  TcpTransport(AsioLoop& loop, Options options) : loop_{&loop}, options_{options} {}

  /// `done` is called once, through the loop, also if the transport is gone by then.
  void connect(NodeId node, const std::string& endpoint, Connected done) override;
  /// Port 0: any free one; the listener's endpoint() says which.
  Expected<std::unique_ptr<Listener>> listen(
      const std::string& endpoint,
      std::function<void(std::unique_ptr<Connection>)> accepted) override;

 private:
  AsioLoop* loop_;
  Options options_;
};

}  // namespace csv::protocol
