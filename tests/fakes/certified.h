#pragma once
#include <memory>
#include <utility>

#include "coordinator/protocol/connection.h"

namespace csv::fakes {

/// A connection whose peer has proven to be one node, as TLS would have it.
class Certified final : public protocol::Connection {
 public:
  Certified(std::unique_ptr<protocol::Connection> inner, NodeId peer)
      : inner_{std::move(inner)}, peer_{peer} {}
  void start(Function<void(protocol::Message)> on_message,
             Function<void(Error)> on_closed) override {
    inner_->start(std::move(on_message), std::move(on_closed));
  }
  void send(protocol::Message message) override { inner_->send(std::move(message)); }
  void close() override { inner_->close(); }
  [[nodiscard]] std::string peer() const override { return inner_->peer(); }
  [[nodiscard]] bool speaks_for(NodeId node) const override { return node == peer_; }
  [[nodiscard]] std::size_t queued_bytes() const override { return inner_->queued_bytes(); }

 private:
  std::unique_ptr<protocol::Connection> inner_;
  NodeId peer_;
};

}  // namespace csv::fakes
