#include "tests/simulation/network.h"

#include <unistd.h>

#include <array>
#include <deque>
#include <vector>

#include "coordinator/protocol/frame.h"
#include "csvfs/base/check.h"

namespace csv::sim {

struct Network::Stream {
  struct Packet {
    Duration arrives{};
    std::string bytes;
    bool end = false;  ///< The sender closed it: nothing comes after.
  };
  struct Side {
    SimLoop* loop = nullptr;
    std::uint64_t door = 0;
    NodeId node{};
    std::string peer;
    std::deque<Packet> coming;  ///< On its way to this side, in order.
    std::size_t coming_bytes = 0;
    Duration last_arrival{};
    bool stalled = false;
    // Below: what the process at this side has seen.
    bool started = false, over = false;
    Function<void(protocol::Message)> on_message;
    Function<void(Error)> on_closed;
    std::deque<std::string> inbox;
    Error ended;
  };
  std::uint64_t id = 0;
  const Network* network = nullptr;
  std::array<Side, 2> sides;
  bool broken = false;
  std::string volume;  ///< That it is about, once a mount has said so.

  void receive(int at, std::string bytes) {
    auto& side = sides[static_cast<std::size_t>(at)];
    if (side.over) return;
    if (!side.started) return side.inbox.push_back(std::move(bytes));
    auto message = protocol::decode_message(std::as_bytes(std::span{bytes}));
    CSV_CHECK(bool(message));  // Only our own code sends here, and nothing damages it.
    const auto& frame = message->frame;
    if (frame.has_hello_reply() && !frame.hello_reply().has_failure() && network->on_greeted)
      network->on_greeted(*side.loop, frame.hello_reply().verifier());
    side.on_message(*std::move(message));
  }
  void ends(int at, Error why) {
    auto& side = sides[static_cast<std::size_t>(at)];
    if (side.over) return;
    if (!side.started) {
      if (!side.ended.code()) side.ended = std::move(why);
      return;
    }
    side.over = true;
    auto handler = std::move(side.on_closed);
    handler(std::move(why));
  }
};

/// One side's Connection.
class Network::End final : public protocol::Connection {
 public:
  End(Network& network, std::shared_ptr<Stream> stream, int side)
      : network_{network}, stream_{std::move(stream)}, side_{side} {}
  ~End() override { close(); }

  void start(Function<void(protocol::Message)> on_message,
             Function<void(Error)> on_closed) override {
    auto& mine = here();
    CSV_CHECK(mine.loop->here());
    mine.on_message = std::move(on_message);
    mine.on_closed = std::move(on_closed);
    mine.loop->post([stream = stream_, side = side_] {
      auto& at = stream->sides[static_cast<std::size_t>(side)];
      at.started = true;
      while (!at.over && !at.inbox.empty()) {
        auto bytes = std::move(at.inbox.front());
        at.inbox.pop_front();
        stream->receive(side, std::move(bytes));
      }
      if (at.ended.code()) stream->ends(side, at.ended);
    });
  }
  void send(protocol::Message message) override {
    CSV_CHECK(here().loop->here());
    if (here().over || stream_->broken) return;
    network_.mishear(message.frame);
    network_.listen_in(*stream_, side_, message);
    if (network_.forge(stream_, side_, message)) return;
    put({.arrives = {}, .bytes = protocol::encode_message(message), .end = false});
  }
  void close() override {
    if (std::exchange(closed_, true)) return;
    here().over = true;
    here().inbox.clear();
    if (!stream_->broken) put({.arrives = {}, .bytes = {}, .end = true});
  }
  [[nodiscard]] std::string peer() const override {
    return stream_->sides[static_cast<std::size_t>(side_)].peer;
  }
  /// As certificates would have it: what the process at the other end is, not what it says.
  [[nodiscard]] bool speaks_for(NodeId node) const override {
    return stream_->sides[static_cast<std::size_t>(1 - side_)].node == node;
  }
  [[nodiscard]] std::size_t queued_bytes() const override {
    return stream_->sides[static_cast<std::size_t>(1 - side_)].coming_bytes;
  }

 private:
  Stream::Side& here() { return stream_->sides[static_cast<std::size_t>(side_)]; }
  void put(Stream::Packet packet) {
    auto& there = stream_->sides[static_cast<std::size_t>(1 - side_)];
    auto& world = network_.world_;
    packet.arrives =
        std::max(there.last_arrival, world.now() + network_.latency(here().node, there.node));
    there.last_arrival = packet.arrives;
    there.coming_bytes += packet.bytes.size();
    auto at = packet.arrives;
    there.coming.push_back(std::move(packet));
    world.at(at,
             [&network = network_, stream = stream_, to = 1 - side_] { network.pump(stream, to); });
  }

  Network& network_;
  std::shared_ptr<Stream> stream_;
  int side_;
  bool closed_ = false;
};

class Network::Place final : public protocol::Transport::Listener {
 public:
  Place(Network& network, std::string endpoint, std::uint64_t door)
      : network_{network}, endpoint_{std::move(endpoint)}, door_{door} {}
  ~Place() override {
    auto found = network_.listening_.find(endpoint_);
    if (found != network_.listening_.end() && found->second.door == door_) {
      network_.listening_.erase(found);
    }
  }
  [[nodiscard]] std::string endpoint() const override { return endpoint_; }

 private:
  Network& network_;
  std::string endpoint_;
  std::uint64_t door_;
};

class Network::Door final : public protocol::Transport {
 public:
  Door(Network& network, SimLoop& loop, NodeId node)
      : network_{network}, loop_{loop}, node_{node}, id_{network.next_++} {
    network_.doors_[id_] = &loop;
  }
  ~Door() override { network_.died(id_); }

  void connect(NodeId node, const std::string& endpoint, protocol::Connected done) override {
    CSV_CHECK(loop_.here());
    auto fail = [this](protocol::Connected told, std::errc why, Duration after) {
      // Through the world, so that it fails even if the loop is never busy.
      network_.world_.after(after,
                            [&net = network_, id = id_, told = std::move(told), why]() mutable {
                              auto mine = net.doors_.find(id);
                              if (mine == net.doors_.end()) return;
                              mine->second->post([told = std::move(told), why]() mutable {
                                told(Error{why, "connecting"});
                              });
                            });
    };
    auto found = network_.listening_.find(endpoint);
    if (found == network_.listening_.end()) {
      auto asleep = network_.unplugged_.contains(node_);
      return fail(std::move(done), asleep ? std::errc::timed_out : std::errc::connection_refused,
                  network_.world_.between(100us, 1ms));
    }
    auto to = found->second.node;
    // What certificates would show: another node has the address by now.
    if (to != node) return fail(std::move(done), std::errc::permission_denied, 1ms);
    if (network_.parted(node_, to) || network_.parted(to, node_) ||
        network_.unplugged_.contains(to) || network_.unplugged_.contains(node_)) {
      return fail(std::move(done), std::errc::timed_out, 3s);
    }
    auto round = network_.latency(node_, to) + network_.latency(to, node_);
    network_.world_.after(round, [&net = network_, id = id_, endpoint, node = node_,
                                  done = std::move(done)]() mutable {
      auto mine = net.doors_.find(id);
      if (mine == net.doors_.end()) return;
      auto* loop = mine->second;
      auto there = net.listening_.find(endpoint);
      if (there == net.listening_.end()) {
        return loop->post([done = std::move(done)]() mutable {
          done(Error{std::errc::connection_refused, "connecting"});
        });
      }
      auto stream = std::make_shared<Stream>();
      stream->id = net.next_++;
      stream->network = &net;
      auto fill = [](Stream::Side& side, SimLoop* on, std::uint64_t door, NodeId at,
                     std::string peer) {
        side.loop = on;
        side.door = door;
        side.node = at;
        side.peer = std::move(peer);
      };
      fill(stream->sides[0], loop, id, node, endpoint);
      fill(stream->sides[1], there->second.loop, there->second.door, there->second.node,
           loop->name());
      net.streams_[stream->id] = stream;
      loop->post([&net, stream, done = std::move(done)]() mutable {
        done(std::unique_ptr<protocol::Connection>{std::make_unique<End>(net, stream, 0)});
      });
      there->second.loop->post([&net, stream, endpoint] {
        std::unique_ptr<protocol::Connection> end = std::make_unique<End>(net, stream, 1);
        auto still = net.listening_.find(endpoint);
        // Not a process that took the place of the one that was called.
        bool same = still != net.listening_.end() && still->second.door == stream->sides[1].door;
        if (same) still->second.accepted(std::move(end));
      });
    });
  }
  Expected<std::unique_ptr<Listener>> listen(
      const std::string& endpoint,
      std::function<void(std::unique_ptr<protocol::Connection>)> accepted) override {
    if (network_.listening_.contains(endpoint)) {
      return Error{std::errc::address_in_use, "listening on " + endpoint};
    }
    network_.listening_[endpoint] = {id_, &loop_, node_, std::move(accepted)};
    return std::unique_ptr<Listener>{std::make_unique<Place>(network_, endpoint, id_)};
  }

 private:
  Network& network_;
  SimLoop& loop_;
  NodeId node_;
  std::uint64_t id_;
};

Network::~Network() = default;

std::unique_ptr<protocol::Transport> Network::door(SimLoop& loop, NodeId node) {
  return std::make_unique<Door>(*this, loop, node);
}

Duration Network::latency(NodeId from, NodeId to) {
  auto extra = slow_.find({from, to});
  auto base = from == to ? world_.between(5us, 50us) : world_.between(weather.least, weather.most);
  return base + (extra == slow_.end() ? Duration::zero() : extra->second);
}

void Network::pump(const std::shared_ptr<Stream>& stream, int to) {
  auto& side = stream->sides[static_cast<std::size_t>(to)];
  auto from = stream->sides[static_cast<std::size_t>(1 - to)].node;
  if (stream->broken) return;
  while (!side.coming.empty() && side.coming.front().arrives <= world_.now()) {
    if (parted(from, side.node) || unplugged_.contains(from) || unplugged_.contains(side.node)) {
      if (std::exchange(side.stalled, true)) return;
      // Acknowledgements do not come: one day the stream is given up.
      auto patience = world_.between(weather.least_patience, weather.most_patience);
      world_.after(patience, [this, stream, to] {
        if (stream->sides[static_cast<std::size_t>(to)].stalled) break_stream(stream);
      });
      return;
    }
    side.stalled = false;
    auto packet = std::move(side.coming.front());
    side.coming.pop_front();
    side.coming_bytes -= packet.bytes.size();
    if (!doors_.contains(side.door)) continue;  // Nobody is there any more.
    if (packet.end) {
      tell_end(stream, to, Duration::zero(), Error{Errc::closed, "closed by " + side.peer});
      continue;
    }
    side.loop->post([stream, to, bytes = std::move(packet.bytes)]() mutable {
      stream->receive(to, std::move(bytes));
    });
  }
  if (side.coming.empty()) side.stalled = false;
}

void Network::pump_all() {
  for (auto& [id, stream] : std::map{streams_}) {
    pump(stream, 0);
    pump(stream, 1);
  }
}

void Network::tell_end(const std::shared_ptr<Stream>& stream, int end, Duration delay, Error why) {
  world_.after(delay, [this, stream, end, why = std::move(why)]() mutable {
    auto& side = stream->sides[static_cast<std::size_t>(end)];
    if (!doors_.contains(side.door)) return;
    side.loop->post(
        [stream, end, why = std::move(why)]() mutable { stream->ends(end, std::move(why)); });
  });
  if (stream->sides[0].over && stream->sides[1].over) streams_.erase(stream->id);
}

void Network::break_stream(const std::shared_ptr<Stream>& stream) {
  if (std::exchange(stream->broken, true)) return;
  streams_.erase(stream->id);
  for (int end : {0, 1}) {
    stream->sides[static_cast<std::size_t>(end)].coming.clear();
    stream->sides[static_cast<std::size_t>(end)].coming_bytes = 0;
    tell_end(stream, end, world_.random().chance(1, 2) ? 0ms : world_.between(0ms, 2s),
             Error{Errc::closed, "the connection broke"});
  }
}

void Network::died(std::uint64_t door) {
  doors_.erase(door);
  std::erase_if(listening_, [door](const auto& each) { return each.second.door == door; });
  for (auto& [id, stream] : std::map{streams_}) {
    for (int end : {0, 1}) {
      auto& side = stream->sides[static_cast<std::size_t>(end)];
      if (side.door != door || side.over) continue;
      side.over = true;
      // The kernel still sends what the process had written, then the end.
      auto& there = stream->sides[static_cast<std::size_t>(1 - end)];
      auto at = std::max(there.last_arrival, world_.now() + latency(side.node, there.node));
      there.last_arrival = at;
      there.coming.push_back({.arrives = at, .bytes = {}, .end = true});
      world_.at(at, [this, stream = stream, to = 1 - end] { pump(stream, to); });
    }
  }
}

void Network::listen_in(Stream& stream, int from, const protocol::Message& sent) const {
  if (from == 0) {
    if (sent.frame.has_hello()) stream.volume = sent.frame.hello().volume();
    return;
  }
  // A node that does not coordinate it names no epoch.
  if (on_said && sent.frame.epoch() != 0 && !stream.volume.empty())
    on_said(stream.volume, stream.sides[1].node, Epoch{sent.frame.epoch()});
}

void Network::mishear(wire::Frame& frame) {
  using Misheard = Forgery::Misheard;
  if (forgery.misheard == Misheard::space && frame.reply().has_fs_stat()) {
    auto& space = *frame.mutable_reply()->mutable_fs_stat();
    space.set_free_blocks(space.free_blocks() - ++forged_);
  }
  if (!frame.has_request()) return;
  auto& request = *frame.mutable_request();
  switch (forgery.misheard) {
    case Misheard::owners:
      if (!request.has_set_attr()) return;
      request.mutable_set_attr()->clear_uid();
      request.mutable_set_attr()->clear_gid();
      return;
    case Misheard::times:
      if (!request.has_set_attr()) return;
      request.mutable_set_attr()->clear_atime();
      request.mutable_set_attr()->clear_mtime();
      return;
    case Misheard::nameless:
      if (!request.make().nameless()) return;
      request.mutable_make()->clear_nameless();
      request.mutable_make()->set_name(std::to_string(++forged_));
      return;
    case Misheard::devices:
      if (request.make().rdev() != 0) request.mutable_make()->set_rdev(request.make().rdev() + 1);
      return;
    case Misheard::access_lists:
      if (request.set_xattr().name().starts_with("system."))
        request.mutable_set_xattr()->set_name("user.list");
      return;
    case Misheard::seeks:
      if (request.has_seek())
        request.mutable_seek()->set_whence(SEEK_DATA + SEEK_HOLE - request.seek().whence());
      return;
    case Misheard::cookies:
      if (request.read_dir().cookie() != 0)
        request.mutable_read_dir()->set_cookie(request.read_dir().cookie() + 1);
      return;
    case Misheard::space:
    case Misheard::nothing: return;
  }
}

/// True: in its place.
bool Network::forge(const std::shared_ptr<Stream>& stream, int from,
                    const protocol::Message& sent) {
  if (forgery.hide_locks && sent.frame.request().has_held_locks()) return true;
  protocol::Message forged;
  auto to = from;
  bool replaced = false;
  bool unheard = (forgery.answer_recalls && sent.frame.notice().has_recall()) ||
                 (forgery.answer_unwatches && sent.frame.notice().has_unwatch());
  if (unheard) {
    forged.frame.set_id(sent.frame.id());
    forged.frame.mutable_notice_reply();
  } else if (forgery.hide_losses && (sent.frame.hello_reply().verifier() != 0 ||
                                     sent.frame.reply().written().verifier() != 0)) {
    to = 1 - from;
    forged.frame = sent.frame;
    if (forged.frame.has_hello_reply())
      forged.frame.mutable_hello_reply()->set_verifier(0);
    else
      forged.frame.mutable_reply()->mutable_written()->set_verifier(0);
    replaced = true;
  } else if (forgery.double_appends && sent.frame.request().write().append()) {
    to = 1 - from;
    forged.frame = sent.frame;
    forged.bulk = Buffer::copy_of(sent.bulk.span());
    forged.frame.set_id(sent.frame.id() + (1ull << 40));
    // A slot that no mount gets to.
    forged.frame.mutable_request()->set_slot(63);
    forged.frame.mutable_request()->set_sequence(++forged_);
  } else {
    return false;
  }
  forged.frame.set_epoch(sent.frame.epoch());
  forged.frame.set_coordinator_key(sent.frame.coordinator_key());
  stream->sides[static_cast<std::size_t>(to)].loop->post(
      [stream, to, bytes = protocol::encode_message(forged)]() mutable {
        stream->receive(to, std::move(bytes));
      });
  return replaced || unheard;
}

void Network::part(NodeId from, NodeId to) { parted_.insert({from, to}); }

void Network::join(NodeId from, NodeId to) {
  parted_.erase({from, to});
  pump_all();
}

void Network::unplug(NodeId node) {
  unplugged_.insert(node);
  for (auto& [id, stream] : std::map{streams_}) {
    auto& [first, second] = stream->sides;
    if (first.node != node && second.node != node) continue;
    first.coming.clear();
    second.coming.clear();
    first.coming_bytes = second.coming_bytes = 0;
    auto patience = world_.between(weather.least_patience, weather.most_patience);
    world_.after(patience, [this, stream = stream] { break_stream(stream); });
  }
}

void Network::plug(NodeId node) {
  unplugged_.erase(node);
  pump_all();
}

void Network::break_one(NodeId node) {
  std::vector<std::shared_ptr<Stream>> living;
  for (auto& [id, stream] : streams_) {
    if (stream->sides[0].over || stream->sides[1].over) continue;
    if (stream->sides[0].node == node || stream->sides[1].node == node) living.push_back(stream);
  }
  if (living.empty()) return;
  break_stream(living[world_.random().below(living.size())]);
}

void Network::slow(NodeId from, NodeId to, Duration extra) {
  if (extra > Duration::zero()) {
    slow_[{from, to}] = extra;
  } else {
    slow_.erase({from, to});
  }
}

}  // namespace csv::sim
