#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv {

/// Where a mount finds who coordinates its volume: whom csvd of its node names. That csvd may be
/// away itself, and have named one that is gone, or hangs: as long as it names the same one, who
/// could not be reached, or said nothing, every other attempt goes to another node, one after the
/// other; whom such a node names is asked next. One loop.
class Finder {
 public:
  struct Node {
    NodeId id{};
    std::string endpoint;
  };
  struct Setup {
    Loop* loop = nullptr;
    protocol::Transport* transport = nullptr;
    std::vector<Node> peers;
    std::function<Expected<Node>()> by_csvd;  ///< Whom csvd of this node names.
  };
  explicit Finder(Setup setup) : setup_{std::move(setup)} {}
  Finder(const Finder&) = delete;
  Finder& operator=(const Finder&) = delete;

  /// A connection to the next one to be asked.
  void connect(protocol::Connected done);
  /// Whom a node named that does not coordinate the volume.
  void elsewhere(NodeId node, const std::string& endpoint) { elsewhere_ = Node{node, endpoint}; }
  /// Whom it was connected to coordinates it; what was in vain before says nothing of the next
  /// time.
  void found() { asked_.reset(); }

 private:
  void connect_to_a_peer(const Error& why, protocol::Connected done);

  Setup setup_;
  std::size_t next_peer_ = 0;
  /// Whom csvd named was asked last, then, and has not refused.
  std::optional<std::pair<std::string, TimePoint>> asked_;
  std::optional<Node> elsewhere_;                               ///< For the next connect().
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  ///< For connects on their way.
};

}  // namespace csv
