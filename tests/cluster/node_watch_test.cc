#include "coordinator/cluster/node_watch.h"

#include <doctest/doctest.h>

#include "coordinator/cluster/pinger.h"

using namespace csv;
using namespace csv::cluster;

namespace {

constexpr NodeId kNode{2};

TimePoint at(Duration time) { return TimePoint{time}; }

StorageSign sign(TimePoint moved, bool still, bool connected = true) {
  return {.node = kNode, .volume = "v", .moved = moved, .still = still, .connected = connected};
}

NodeWatch::Seen here(std::vector<StorageSign> signs = {}) {
  return {.network = true, .service = true, .our_side_quorate = true, .signs = std::move(signs)};
}
NodeWatch::Seen gone(std::vector<StorageSign> signs = {}) {
  return {.our_side_quorate = true, .signs = std::move(signs)};
}

Finding finding(const NodeWatch& watch) {
  REQUIRE(watch.of(kNode) != nullptr);
  return watch.of(kNode)->verdict.finding;
}

}  // namespace

TEST_CASE("node watch: a change is told once, and since when it holds is kept") {
  NodeWatch watch;
  auto first = watch.see(kNode, here(), at(10s));
  REQUIRE(first);
  CHECK(first->first);
  CHECK(finding(watch) == Finding::healthy);
  CHECK_FALSE(watch.see(kNode, here(), at(20s)));
  CHECK(watch.of(kNode)->since == at(10s));
  auto change = watch.see(kNode, here({sign(at(20s), true)}), at(25s));
  REQUIRE(change);
  CHECK(change->before == Finding::healthy);
  CHECK(finding(watch) == Finding::storage_lost);
  CHECK(watch.of(kNode)->verdict.why.find("(v)") != std::string::npos);
  CHECK_FALSE(watch.see(kNode, here({sign(at(20s), true)}), at(26s)));
  CHECK(watch.of(kNode)->since == at(25s));
  CHECK(watch.see(kNode, here({sign(at(27s), false)}), at(27s)));
  CHECK(finding(watch) == Finding::healthy);
}

TEST_CASE("node watch: the slot of a mount that has gone says nothing of a node that is heard") {
  NodeWatch watch;
  (void)watch.see(kNode, here({sign(at(1s), true, false)}), at(10s));
  CHECK(finding(watch) == Finding::healthy);
}

TEST_CASE("node watch: until slots have been looked at, what was thought of a silent node stays") {
  NodeWatch watch;
  (void)watch.see(kNode, here({sign(at(9s), false)}), at(10s));
  // Its slot moved before it was gone: that is no sign of life now.
  CHECK_FALSE(watch.see(kNode, gone({sign(at(9s), false)}), at(11s)));
  CHECK(watch.to_be_pinged(kNode, at(11s)));
  CHECK_FALSE(watch.to_be_pinged(kNode, at(12s)));
  watch.answered(kNode, false);
  CHECK_FALSE(watch.see(kNode, gone({sign(at(9s), false)}), at(12s)));
  CHECK(finding(watch) == Finding::healthy);
  REQUIRE(watch.see(kNode, gone({sign(at(9s), true)}), at(15s)));
  CHECK(finding(watch) == Finding::failed);
  CHECK(watch.of(kNode)->verdict.fence);
  // Fenced: there is nothing left to be seen of it, and it has failed all the same.
  CHECK_FALSE(watch.see(kNode, gone(), at(30s)));
  CHECK(finding(watch) == Finding::failed);
  CHECK(watch.see(kNode, here(), at(40s)));
  CHECK(finding(watch) == Finding::healthy);
}

TEST_CASE("node watch: a silent node whose slot goes on moving lives; ping and slot say how") {
  for (auto quorate : {std::optional<bool>{}, std::optional{false}, std::optional{true}})
    for (bool ping : {false, true}) {
      NodeWatch watch;
      (void)watch.see(kNode, here(), at(10s));
      (void)watch.see(kNode, gone({sign(at(10s), false)}), at(11s));
      REQUIRE(watch.to_be_pinged(kNode, at(11s)));
      watch.answered(kNode, ping);
      auto moves = sign(at(11s) + NodeWatch::kInFlight, false, false);
      moves.quorate = quorate;
      REQUIRE(watch.see(kNode, gone({moves}), at(13s)));
      CHECK(finding(watch) == (ping ? Finding::partitioned : Finding::isolated));
      CHECK(watch.of(kNode)->verdict.fence == (quorate != true));
    }
}

TEST_CASE("node watch: where there is nothing to be seen, nothing is held against a node") {
  NodeWatch watch;
  (void)watch.see(kNode, here(), at(10s));
  (void)watch.see(kNode, gone(), at(11s));
  CHECK(finding(watch) == Finding::healthy);
  REQUIRE(watch.see(kNode, gone(), at(11s) + NodeWatch::kSettle));
  CHECK(finding(watch) == Finding::unknown);
  CHECK_FALSE(watch.of(kNode)->verdict.fence);
  // A coordinator that has one to look at comes later.
  (void)watch.see(kNode, gone({sign(at(12s), true)}), at(30s));
  CHECK(finding(watch) == Finding::failed);
}

TEST_CASE("node watch: a side without quorum fences nobody") {
  NodeWatch watch;
  auto seen = gone({sign(at(1s), true)});
  seen.our_side_quorate = false;
  (void)watch.see(kNode, seen, at(10s));
  (void)watch.see(kNode, seen, at(10s) + NodeWatch::kSettle);
  CHECK(finding(watch) == Finding::failed);
  CHECK_FALSE(watch.of(kNode)->verdict.fence);
}

TEST_CASE("node watch: a node that is none of the cluster is forgotten") {
  NodeWatch watch;
  (void)watch.see(kNode, here(), at(1s));
  watch.forget_all_but({NodeId{3}});
  CHECK(watch.of(kNode) == nullptr);
}

TEST_CASE("ping: a reply is that to this request, whole, and to no other") {
  PingToken token{}, other{};
  for (std::size_t i = 0; i < token.size(); ++i) token[i] = static_cast<std::byte>(i + 1);
  for (bool v6 : {false, true}) {
    auto reply = echo_request(v6, token);
    CHECK_FALSE(is_echo_reply(reply, v6, token));  // one's own request, looped back
    reply[0] = v6 ? std::byte{129} : std::byte{0};
    CHECK(is_echo_reply(reply, v6, token));
    CHECK_FALSE(is_echo_reply(reply, v6, other));
    CHECK_FALSE(is_echo_reply(reply, !v6, token));
    for (std::size_t length = 0; length < reply.size(); ++length)
      CHECK_FALSE(is_echo_reply(std::span{reply}.first(length), v6, token));
  }
  auto reply = echo_request(false, token);
  reply[0] = std::byte{0};
  std::vector<std::byte> packet(20);
  packet[0] = std::byte{0x45};
  packet.insert(packet.end(), reply.begin(), reply.end());
  CHECK(is_echo_reply(packet, false, token));
  for (unsigned header = 0; header < 256; ++header) {
    packet[0] = static_cast<std::byte>(header);
    CHECK(is_echo_reply(packet, false, token) == (header == 0x45));
  }
}
