// What other nodes' csvd say to a membership: beats on connections it accepts, echoes on those it
// makes. Whatever they say, no lease runs further than the term from now.
//
//   steps: what and who (1 byte: bit 7 the second peer), arguments as below
#include <array>
#include <memory>

#include "coordinator/cluster/standalone_membership.h"
#include "coordinator/protocol/limits.h"
#include "coordinator/protocol/memory_transport.h"
#include "csvfs/base/check.h"
#include "tests/fakes/manual_loop.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

enum Step : std::uint8_t {
  beat,   ///< A new connection whose first message is a beat: length (1), bytes over a good one's.
  more,   ///< On that connection: length (2), any frame.
  echo,   ///< To the membership's last beat: length (1), bytes over a right echo.
  frame,  ///< On the connection it made: length (2), any frame.
  wait,   ///< Steps of 50 ms (1).
  leave,  ///< Both connections end.
  kSteps
};

class Peer {
 public:
  Peer(fakes::ManualLoop& loop, protocol::MemoryTransport& network, std::uint32_t node)
      : loop_{&loop}, node_{node} {
    listener_ = *network.listen("node" + std::to_string(node), [this](auto connection) {
      beaten_ = std::move(connection);
      beaten_->start([this](const protocol::Message& message) { last_ = message.frame; },
                     [](const Error&) {});
    });
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  void say_beat(cluster::StandaloneMembership& membership, std::span<const std::byte> bytes) {
    protocol::Message message;
    auto& body = *message.frame.mutable_beat();
    body.set_node(node_);
    body.set_incarnation(node_);
    body.set_sent_at(++sent_);
    if (!body.MergeFromString(std::string{text_of(bytes)})) return;
    if (!protocol::check_limits(message.frame, 0)) return;
    auto [mine, theirs] = protocol::connection_pair(*loop_, "peer", "membership");
    beating_ = std::move(mine);
    beating_->start([](const protocol::Message&) {}, [](const Error&) {});
    membership.accept(std::move(theirs), std::move(message));
  }
  void say_echo(std::span<const std::byte> bytes) {
    wire::Frame one;
    auto& body = *one.mutable_beat_echo();
    body.set_node(node_);
    body.set_incarnation(node_);
    body.set_sent_at(last_.beat().sent_at());
    if (body.MergeFromString(std::string{text_of(bytes)})) send(beaten_, one);
  }
  void say(bool on_ours, std::span<const std::byte> bytes) {
    wire::Frame any;
    if (any.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
      send(on_ours ? beating_ : beaten_, any);
  }
  void leave() {
    beating_.reset();
    beaten_.reset();
  }

 private:
  void send(const std::unique_ptr<protocol::Connection>& connection, const wire::Frame& frame) {
    if (connection && frame.ByteSizeLong() > 0) connection->send({frame, {}});
    loop_->settle();
  }

  fakes::ManualLoop* loop_;
  std::uint32_t node_;
  std::int64_t sent_ = 0;
  wire::Frame last_;
  std::unique_ptr<protocol::Connection> beating_, beaten_;
  std::unique_ptr<protocol::Transport::Listener> listener_;
};

void act(Input& input, cluster::StandaloneMembership& membership, std::array<Peer*, 2> peers,
         fakes::ManualLoop& loop) {
  auto what = input.take();
  auto& peer = *peers[what >> 7];
  switch (static_cast<Step>((what & 0x7f) % kSteps)) {
    case beat: return peer.say_beat(membership, input.take(input.take()));
    case more: return peer.say(true, input.take(input.take<std::uint16_t>()));
    case echo: return peer.say_echo(input.take(input.take()));
    case frame: return peer.say(false, input.take(input.take<std::uint16_t>()));
    case wait: return loop.run_for(input.take() * 50ms);
    case leave: return peer.leave();
    case kSteps: break;
  }
}

std::string step(int what, const std::string& rest = {}, bool second = false) {
  return std::string(1, static_cast<char>(what | (second ? 0x80 : 0))) + rest;
}
std::string sized(const google::protobuf::Message& message) {
  auto bytes = message.SerializeAsString();
  return std::string(1, static_cast<char>(bytes.size())) + bytes;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  fakes::ManualLoop loop;
  protocol::MemoryTransport network{loop};
  Peer two{loop, network, 2}, three{loop, network, 3};
  cluster::StandaloneMembership::Surroundings around;
  around.loop = &loop;
  around.transport = &network;
  around.node = NodeId{1};
  around.endpoint = "node1";
  around.incarnation = 1;
  around.peers = {{NodeId{2}, "n2", "node2"}, {NodeId{3}, "n3", "node3"}};
  around.changed = [] {};
  cluster::StandaloneMembership membership{around};
  membership.coordinating("mine", Epoch{5}, Key{77});
  loop.run_for(1s);
  Input input{bytes};
  for (int steps = 0; !input.empty() && steps < 500; ++steps) {
    act(input, membership, {&two, &three}, loop);
    auto latest = loop.now() + around.timing.term;
    CSV_CHECK(membership.open_until() <= latest);
    for (const char* volume : {"mine", "theirs", ""})
      CSV_CHECK(membership.open_until(volume) <= latest);
    (void)membership.peers();
    (void)membership.settled();
    (void)membership.coordinator("theirs");
    (void)membership.claimed_by_peer("mine");
  }
}

std::vector<Seed> seeds() {
  wire::Beat stranger, ourselves, past;
  stranger.set_node(9);
  ourselves.set_node(1);
  past.set_sent_at(-5);
  wire::BeatEcho plain, claims, many, never, other, future;
  auto& one = *claims.add_coordinates();
  one.set_volume("theirs");
  one.set_epoch(9);
  one.set_coordinator_key(3);
  many = claims;
  for (int i = 0; i < 10; ++i) *many.add_coordinates() = one;
  many.add_coordinates()->set_volume("mine");
  never.set_sent_at(12345);
  other.set_node(3);
  future.set_sent_at((1ull << 62));
  wire::Frame hello, beaten;
  hello.mutable_hello()->set_volume("v");
  hello.mutable_hello()->set_node(2);
  beaten.mutable_beat()->set_node(2);
  auto framed = [](const wire::Frame& what) {
    auto bytes = what.SerializeAsString();
    return number(static_cast<std::uint16_t>(bytes.size())) + bytes;
  };
  auto always = [&](const wire::BeatEcho& what) {
    std::string steps;
    for (int i = 0; i < 10; ++i) steps += step(echo, sized(what)) + step(wait, "\x06");
    return steps;
  };
  return {
      {"silent", step(wait, "\xff")},
      {"beats", step(beat, sized(wire::Beat{})) + step(wait, "\x10") +
                    step(beat, sized(wire::Beat{}), true) + step(wait, "\xff")},
      {"stranger", step(beat, sized(stranger)) + step(beat, sized(ourselves))},
      {"past", step(beat, sized(wire::Beat{})) + step(beat, sized(past))},
      {"more",
       step(beat, sized(wire::Beat{})) + step(more, framed(beaten)) + step(more, framed(hello))},
      {"echoes", always(plain)},
      {"claims", always(claims) + always(plain) + step(leave) + step(wait, "\xff")},
      {"many", always(many)},
      {"never-sent", always(never) + always(future)},
      {"other-node", always(other)},
      {"no-echo", step(frame, framed(hello)) + step(wait, "\x30") + step(frame, framed(beaten))},
  };
}

}  // namespace csv::fuzz
