#pragma once
#include <functional>
#include <memory>
#include <string>

#include "coordinator/protocol/csv.pb.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "csvfs/base/ids.h"

namespace csv::protocol {

struct Message {
  wire::Frame frame;
  Buffer bulk;
};

/// An ordered, reliable stream of messages to one peer; TCP in production, simulated in tests.
/// Belongs to one Loop: all calls and all handlers on its thread. Destroying it closes it.
class Connection {
 public:
  virtual ~Connection() = default;
  /// Must be called once. Messages that came before are kept. on_closed comes once, last, unless
  /// we closed it ourselves; nothing follows it. Handlers may close or destroy the connection.
  virtual void start(Function<void(Message)> on_message, Function<void(Error)> on_closed) = 0;
  /// Queued; lost if the connection ends. Never calls a handler from inside.
  virtual void send(Message message) = 0;
  virtual void close() = 0;
  [[nodiscard]] virtual std::string peer() const = 0;
  /// Whether the peer belongs to this node, as far as the transport knows: with TLS by the
  /// certificate it has proven to hold. One that authenticates nobody (plain TCP, within one
  /// process) says yes to every node. Whoever acts on a node's name in a message asks this first.
  [[nodiscard]] virtual bool speaks_for(NodeId node) const = 0;
  /// Bytes queued and not yet taken by the network, for bounds.
  [[nodiscard]] virtual std::size_t queued_bytes() const = 0;
};

using Connected = Function<void(Expected<std::unique_ptr<Connection>>)>;

/// The door to the network: one a Loop. Endpoints are "address:port"; a simulation has its own.
class Transport {
 public:
  virtual ~Transport() = default;
  /// To a process of `node`, which listens there. A connection is handed over only once both sides
  /// have accepted each other, as far as the transport authenticates at all.
  virtual void connect(NodeId node, const std::string& endpoint, Connected done) = 0;
  /// Until the returned object is destroyed.
  class Listener {
   public:
    virtual ~Listener() = default;
    [[nodiscard]] virtual std::string endpoint() const = 0;
  };
  virtual Expected<std::unique_ptr<Listener>> listen(
      const std::string& endpoint, std::function<void(std::unique_ptr<Connection>)> accepted) = 0;
};

}  // namespace csv::protocol
