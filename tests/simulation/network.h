#pragma once
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/ids.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// The network between simulated nodes: ordered streams of real frames, with latency. What TCP does
/// not hide is all that can be seen of its faults: a stream that stalls, and one that ends, each
/// end hearing of it at a time of its own, with any suffix of what was sent lost.
class Network {
 public:
  explicit Network(World& world) : world_{world} {}
  ~Network();

  struct Weather {
    Duration least = 20us, most = 400us;               ///< One way.
    Duration least_patience = 2s, most_patience = 9s;  ///< How long a stalled stream lives.
  };
  Weather weather;
  /// Frames that were never sent, to see judges bite.
  struct Forgery {
    bool answer_recalls = false;    ///< Each recall is answered, and the mount never hears of it.
    bool answer_unwatches = false;  ///< The same of what it is told not to watch any more.
    bool hide_losses = false;       ///< No mount hears that the target has lost its cache.
    bool hide_locks = false;        ///< No coordinator hears what a session has locked before.
    bool double_appends = false;    ///< Each append is asked for a second time, as another request.
    /// What coordinators do not get quite right of requests.
    enum class Misheard {
      nothing,
      owners,        ///< They stay as they are.
      times,         ///< The same.
      nameless,      ///< The file has a name.
      devices,       ///< Of another number.
      access_lists,  ///< Kept as an attribute that means nothing.
      seeks,         ///< Data for holes, and holes for data.
      cookies,       ///< The listing goes on one further.
      space,         ///< A block less is free with each answer.
    };
    Misheard misheard{};
  };
  Forgery forgery;
  /// A coordinator sends something to a mount.
  std::function<void(const std::string& volume, NodeId node, Epoch epoch)> on_said;
  /// A mount is about to hear a coordinator's greeting.
  std::function<void(const SimLoop& mount, std::uint64_t verifier)> on_greeted;

  /// One process's door. Destroying it is the death of the process: its streams end.
  std::unique_ptr<protocol::Transport> door(SimLoop& loop, NodeId node);
  /// From now on nothing goes from one to the other until join(). One way; call twice for both.
  void part(NodeId from, NodeId to);
  void join(NodeId from, NodeId to);
  [[nodiscard]] bool parted(NodeId from, NodeId to) const { return parted_.contains({from, to}); }
  /// A node without power: what it had sent and not delivered is gone, and nobody is told.
  void unplug(NodeId node);
  void plug(NodeId node);
  /// Ends one of the living streams that touch `node`, drawn by lot.
  void break_one(NodeId node);
  /// For a while everything between the nodes is later by this.
  void slow(NodeId from, NodeId to, Duration extra);

 private:
  struct Stream;
  class End;
  class Door;
  class Place;
  struct Listening {
    std::uint64_t door = 0;
    SimLoop* loop = nullptr;
    NodeId node{};
    std::function<void(std::unique_ptr<protocol::Connection>)> accepted;
  };
  Duration latency(NodeId from, NodeId to);
  void pump(const std::shared_ptr<Stream>& stream, int to);
  void pump_all();
  void finish(Stream& stream);
  void tell_end(const std::shared_ptr<Stream>& stream, int end, Duration delay, Error why);
  void break_stream(const std::shared_ptr<Stream>& stream);
  void died(std::uint64_t door);
  void listen_in(Stream& stream, int from, const protocol::Message& sent) const;
  bool forge(const std::shared_ptr<Stream>& stream, int from, const protocol::Message& sent);
  void mishear(wire::Frame& frame);

  World& world_;
  std::map<std::string, Listening> listening_;
  std::map<std::uint64_t, std::shared_ptr<Stream>> streams_;
  std::set<std::pair<NodeId, NodeId>> parted_;
  std::set<NodeId> unplugged_;
  std::map<std::pair<NodeId, NodeId>, Duration> slow_;
  std::map<std::uint64_t, SimLoop*> doors_;  ///< Of processes that live.
  std::uint64_t next_ = 1, forged_ = 0;
};

}  // namespace csv::sim
