#pragma once
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/loop.h"

namespace csv::protocol {

/// Two ends of a connection within one process: a message sent at one arrives at the other through
/// `loop`, encoded, decoded and checked against the limits as on TCP. For the run without csvd and
/// for tests. `loop` must outlive both.
std::pair<std::unique_ptr<Connection>, std::unique_ptr<Connection>> connection_pair(
    Loop& loop, std::string first_name = "first", std::string second_name = "second");

/// A network within one process, on one loop: any text is an endpoint.
class MemoryTransport final : public Transport {
 public:
  explicit MemoryTransport(Loop& loop) : loop_{&loop} {}
  void connect(NodeId node, const std::string& endpoint, Connected done) override;
  Expected<std::unique_ptr<Listener>> listen(
      const std::string& endpoint,
      std::function<void(std::unique_ptr<Connection>)> accepted) override;

 private:
  using Accept = std::function<void(std::unique_ptr<Connection>)>;
  using Listeners = std::map<std::string, Accept>;
  class Place;

  Loop* loop_;
  std::shared_ptr<Listeners> listeners_ = std::make_shared<Listeners>();
};

}  // namespace csv::protocol
