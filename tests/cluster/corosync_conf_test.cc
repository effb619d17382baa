#include "coordinator/cluster/corosync_conf.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <functional>

#include "coordinator/cluster/corosync_tuning.h"

using namespace csv;
using namespace csv::cluster;

namespace {

CorosyncConf three() {
  CorosyncConf conf;
  conf.cluster = "house";
  conf.nodes = {{NodeId{1}, "a", {"10.1.0.1", "10.2.0.1"}},
                {NodeId{2}, "b", {"10.1.0.2", "10.2.0.2"}},
                {NodeId{5}, "c", {"10.1.0.3", "fd00::3"}}};
  return conf;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE(
    "corosync.conf: nodes, links in their order, encryption, and a device as strong as all "
    "others") {
  auto text = render(three());
  REQUIRE(text);
  CHECK(has(*text, "cluster_name: house\n"));
  CHECK(has(*text, "transport: knet\n"));
  CHECK(has(*text, "crypto_cipher: aes256\n"));
  CHECK(has(*text, "crypto_hash: sha256\n"));
  CHECK(has(*text, "token: 1000\n"));
  CHECK(has(*text, "token_coefficient: 0\n"));
  CHECK(has(*text, "    linknumber: 0\n    knet_link_priority: 2\n"));
  CHECK(has(*text, "    linknumber: 1\n    knet_link_priority: 1\n"));
  CHECK(has(*text, "    knet_ping_interval: 100\n    knet_ping_timeout: 400\n"));
  CHECK(has(*text,
            "    nodeid: 5\n    name: c\n    ring0_addr: 10.1.0.3\n    ring1_addr: fd00::3\n"));
  CHECK(has(*text, "provider: corosync_votequorum\n"));
  CHECK(has(*text, "    model: csvfs\n    votes: 2\n    timeout: 10000\n    sync_timeout: 2000\n"));
  for (const auto* word : {"two_node", "last_man_standing", "auto_tie_breaker", "expected_votes"})
    CHECK_FALSE(has(*text, word));  // they exclude a quorum device, or are ours to say
  CHECK(std::count(text->begin(), text->end(), '{') == std::count(text->begin(), text->end(), '}'));
}

TEST_CASE("corosync.conf: heartbeats make the token's time") {
  auto conf = three();
  conf.heartbeat = {60ms, 20};
  auto text = render(conf);
  REQUIRE(text);
  CHECK(has(*text, "token: 1200\n"));
  CHECK(has(*text, "token_retransmits_before_loss_const: 20\n"));
}

TEST_CASE("corosync.conf: a node alone has no quorum device") {
  auto conf = three();
  conf.nodes.resize(1);
  auto text = render(conf);
  REQUIRE(text);
  CHECK_FALSE(has(*text, "device"));
}

TEST_CASE("corosync.conf: what would not work is refused with the reason") {
  struct Mistake {
    std::function<void(CorosyncConf&)> make;
    const char* said;
  };
  const Mistake mistakes[] = {
      {[](auto& c) { c.cluster = ""; }, "no name for a cluster"},
      {[](auto& c) { c.cluster = "a}\ntotem {"; }, "no name for a cluster"},
      {[](auto& c) { c.nodes.clear(); }, "no nodes"},
      {[](auto& c) { c.nodes.resize(64, c.nodes[0]); }, "more than 63 nodes"},
      {[](auto& c) { c.nodes[1].id = NodeId{0}; }, "1 to 63"},
      {[](auto& c) { c.nodes[1].id = NodeId{64}; }, "1 to 63"},
      {[](auto& c) { c.nodes[1].id = NodeId{1}; }, "two nodes have the number 1"},
      {[](auto& c) { c.nodes[1].name = "a"; }, "two nodes are called a"},
      {[](auto& c) { c.nodes[1].name = "a b"; }, "no name for a node"},
      {[](auto& c) { c.nodes[1].name = std::string(64, 'x'); }, "no name for a node"},
      {[](auto& c) { c.nodes[1].addresses.pop_back(); }, "as many links on every node"},
      {[](auto& c) { c.nodes[0].addresses.clear(); }, "1 to 8"},
      {[](auto& c) { c.nodes[0].addresses.resize(9, "10.1.0.1"); }, "1 to 8"},
      {[](auto& c) { c.nodes[1].addresses[0] = "b.example"; }, "no numeric address"},
      {[](auto& c) { c.nodes[1].addresses[0] = "10.1.0.300"; }, "no numeric address"},
      {[](auto& c) { c.nodes[1].addresses[0] = "10.1.0.1"; }, "stands twice"},
      {[](auto& c) { c.heartbeat.delay = 10ms; }, "heartbeats"},
      {[](auto& c) { c.heartbeat.threshold = 1; }, "heartbeats"},
      {[](auto& c) {
         c.heartbeat = {2s, 100};
       },
       "heartbeats"},
      {[](auto& c) { c.device_sync_timeout = 100ms; }, "timeouts"},
      {[](auto& c) { c.device_timeout = 3s; }, "timeouts"},
  };
  for (const auto& mistake : mistakes) {
    CAPTURE(mistake.said);
    auto conf = three();
    mistake.make(conf);
    auto text = render(conf);
    REQUIRE_FALSE(text);
    CHECK(text.error() == Errc::refused);
    CHECK(has(text.error().message(), mistake.said));
  }
}

TEST_CASE("corosync.conf: heartbeats are bounded by what a lease lasts") {
  CHECK(check_heartbeat(kLan));
  CHECK(check_heartbeat(kWan));
  // Everything that is allowed ends within the term; nothing beyond it is.
  for (int delay = 40; delay <= 700; delay += 5)
    for (unsigned threshold = 1; threshold <= 30; ++threshold) {
      Heartbeat one{std::chrono::milliseconds{delay}, threshold};
      auto allowed = bool(check_heartbeat(one));
      bool in_bounds = delay >= 50 && threshold >= 3 && threshold <= 25;
      bool fits = one.delay * threshold >= 500ms && gone_after(one) < LeaseTiming{}.term;
      CHECK(allowed == (in_bounds && fits));
    }
}

TEST_CASE("corosync.conf: other heartbeats change theirs, and nothing else") {
  auto conf = three();
  auto before = *render(conf);
  conf.heartbeat = kWan;
  auto then = with_heartbeat(before, kWan);
  REQUIRE_MESSAGE(then, then.error().message());
  CHECK(*then == *render(conf));
  CHECK(*with_heartbeat(*then, kLan) == before);
  // What people have added stays.
  auto added = before + "# mine\nresources {\n  watchdog_token: 7\n}\n";
  CHECK(with_heartbeat(added, kWan)->ends_with("  watchdog_token: 7\n}\n"));
  CHECK_FALSE(with_heartbeat("totem {\n  token: 1000\n}\n", kWan));
  for (std::size_t length = 0; length < before.size(); ++length) {
    auto cut = with_heartbeat(before.substr(0, length), kWan);
    if (!cut) CHECK(cut.error() == Errc::refused);
  }
}
