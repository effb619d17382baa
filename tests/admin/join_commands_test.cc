#include "coordinator/admin/join_commands.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "coordinator/admin/files.h"
#include "coordinator/protocol/certificate.h"
#include "coordinator/protocol/join_channel.h"
#include "csvfs/base/asio_loop.h"

using namespace csv;
using namespace csv::admin;
using Json = nlohmann::json;

namespace {

constexpr std::int64_t kDay = 24ll * 3600 * 1'000'000'000;

NodeId id(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }
bool has(const std::string& text, const std::string& what) {
  return text.find(what) != std::string::npos;
}

Config member() {
  Config out;
  out.cluster = 4711;
  out.corosync = true;
  out.node = id(1);
  out.node_name = "n1";
  out.listen = "192.0.2.1:7400";
  VolumeConfig plain, chap;
  plain.name = "v1";
  plain.lun = "iscsi://192.0.2.9:3260/iqn.2026-01.org.example:\"odd\"/1";
  plain.write_cache_safe = true;
  chap.name = "v2";
  chap.lun = "/dev/x";
  chap.chap_user = "n1";
  chap.chap_secret_file = "/etc/csvfs/v2.secret";
  out.volumes = {plain, chap};
  return out;
}

std::vector<PeerConfig> nodes() {
  return {{id(1), "n1", "192.0.2.1:7400", {"192.0.2.1"}},
          {id(4), "n4", "192.0.2.4:7400", {"192.0.2.4"}}};
}

/// What node 4 of cluster 4711 would be sent, and its token.
struct Sent {
  Sent() {
    auto now = static_cast<std::int64_t>(clock.wall_now());
    protocol::Validity days{WallTime{now - kDay}, WallTime{now + kDay}};
    authority = *protocol::make_authority(4711, days);
    auto pair = *protocol::issue_certificate(authority, id(4), "n4", days);
    other = *protocol::issue_certificate(authority, id(5), "n5", days);
    foreign = *protocol::make_authority(4711, days);
    bundle = {config_for(id(4), "192.0.2.4:7400", member(), nodes()),
              "# Written by csvfs.\n",
              std::string(128, 'k'),
              authority.certificate,
              pair.certificate,
              pair.key};
    token.cluster = 4711;
    token.until = WallTime{now / kSecond * kSecond + 60 * kSecond};
    token.secret.fill(std::byte{5});
    auto digest = *protocol::from_hex(
        protocol::describe_certificates(authority.certificate)->front().fingerprint);
    std::memcpy(token.authority.data(), digest.data(), digest.size());
  }
  std::string refusal() const {
    auto read = parse_join_bundle(to_text(bundle), token);
    REQUIRE(!read);
    CHECK(read.error() == Errc::refused);
    return read.error().message();
  }
  static constexpr std::int64_t kSecond = 1'000'000'000;
  AsioLoop clock;
  protocol::KeyPair authority, other, foreign;
  JoinBundle bundle;
  protocol::JoinToken token;
};

struct Machine {
  Machine() {
    std::string name = "/tmp/csvfs-join-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
    request.config_file = folder + "/etc/csvd.toml";
    request.tls_folder = folder + "/etc/tls";
    request.corosync_folder = folder + "/corosync";
    request.state_dir = folder + "/state";
  }
  ~Machine() { std::filesystem::remove_all(folder); }
  [[nodiscard]] std::size_t files() const {
    std::size_t out = 0;
    for (const auto& each : std::filesystem::recursive_directory_iterator{folder})
      out += each.is_regular_file();
    return out;
  }
  void put(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path{path}.parent_path());
    std::ofstream{path} << text;
  }
  std::string folder;
  JoinRequest request;
};

std::string heard_on(protocol::JoinChannel& channel) {
  auto said = channel.receive();
  return said ? *said : said.error().message();
}

/// `cluster join` on the machine, with `answer` by whoever made the token.
ExitCode join(Machine& machine, Sent& sent,
              const std::function<void(protocol::JoinChannel&)>& answer) {
  auto door = protocol::JoinDoor::open(sent.clock, "127.0.0.1:0");
  REQUIRE(door);
  sent.token.endpoint = (*door)->endpoint();
  std::thread maker{[&] {
    if (auto channel = (*door)->wait(sent.token, 2s)) answer(**channel);
  }};
  machine.request.token = protocol::to_text(sent.token);
  Terminal terminal{sent.clock, false, false};
  auto code = join_cluster(machine.request, terminal);
  maker.join();
  return code;
}

}  // namespace

TEST_CASE("join: the new node's configuration is one, with the others as peers") {
  auto made = parse_config(config_for(id(4), "192.0.2.4:7400", member(), nodes()), "f");
  REQUIRE_MESSAGE(made, made.error().message());
  CHECK(made->cluster == 4711);
  CHECK(made->corosync);
  CHECK(made->node == id(4));
  CHECK(made->node_name == "n4");
  CHECK(made->listen == "192.0.2.4:7400");
  CHECK(made->links == std::vector<std::string>{"192.0.2.4"});
  REQUIRE(made->peers.size() == 1);
  CHECK(made->peers.front() == nodes().front());
  // A secret is no part of it, and without it the volume cannot be reached.
  REQUIRE(made->volumes.size() == 1);
  CHECK(made->volumes.front() == member().volumes.front());
}

TEST_CASE("join: what is sent is taken whole, and of the cluster that the token names") {
  Sent sent;
  auto read = parse_join_bundle(to_text(sent.bundle), sent.token);
  REQUIRE_MESSAGE(read, read.error().message());
  CHECK(*read == sent.bundle);
  SUBCASE("another cluster") {
    sent.token.cluster = 4712;
    CHECK(has(sent.refusal(), "cluster 4712"));
  }
  SUBCASE("another CA, of the same name") {
    sent.bundle.authority = sent.foreign.certificate;
    CHECK(has(sent.refusal(), "CA"));
  }
  SUBCASE("another node's certificate") {
    sent.bundle.certificate = sent.other.certificate;
    CHECK(has(sent.refusal(), "another node's"));
  }
  SUBCASE("no certificate") {
    sent.bundle.certificate = "none";
    CHECK(!sent.refusal().empty());
  }
  SUBCASE("a configuration that is none") {
    sent.bundle.config += "[nonsense]\n";
    CHECK(has(sent.refusal(), "nonsense"));
  }
  SUBCASE("a corosync.conf of somebody") {
    sent.bundle.corosync = "totem {}\n";
    CHECK(has(sent.refusal(), "corosync.conf"));
  }
  SUBCASE("a key that is none") {
    sent.bundle.corosync_key = "short";
    CHECK(has(sent.refusal(), "key"));
  }
  SUBCASE("a field that is missing, or of another kind") {
    auto whole = Json::parse(to_text(sent.bundle));
    for (const auto& [name, value] : whole.items()) {
      auto damaged = whole;
      damaged.erase(name);
      CHECK(!parse_join_bundle(damaged.dump(), sent.token));
      damaged[name] = Json::array({7});
      CHECK(!parse_join_bundle(damaged.dump(), sent.token));
    }
    CHECK(!parse_join_bundle("", sent.token));
    CHECK(!parse_join_bundle("[]", sent.token));
  }
}

TEST_CASE("join: all is written, each file as closed as it has to be") {
  Sent sent;
  Machine machine;
  std::string heard;
  auto code = join(machine, sent, [&](protocol::JoinChannel& channel) {
    REQUIRE(channel.send(to_text(sent.bundle)));
    heard = heard_on(channel);
    (void)channel.send(R"({"ok":true})");
  });
  CHECK(code == ExitCode::done);
  CHECK(heard == R"({"ok":true})");
  CHECK(*read_whole(machine.request.config_file) == sent.bundle.config);
  CHECK(*read_whole(machine.request.corosync_folder + "/corosync.conf") == sent.bundle.corosync);
  auto mode = [](const std::string& file) {
    struct stat found {};
    REQUIRE(::stat(file.c_str(), &found) == 0);
    return found.st_mode & 0777;
  };
  CHECK(mode(machine.request.tls_folder + "/node.key") == 0600);
  CHECK(mode(machine.request.corosync_folder + "/authkey") == 0400);
  CHECK(machine.files() == 6);
  // It is a node now.
  Terminal terminal{sent.clock, false, false};
  CHECK(join_cluster(machine.request, terminal) == ExitCode::failed);
}

TEST_CASE("join: whatever goes wrong before the cluster has taken it, nothing is kept") {
  Sent sent;
  Machine machine;
  SUBCASE("what is sent makes no sense") {
    CHECK(join(machine, sent, [&](protocol::JoinChannel& channel) {
            (void)channel.send("{}");
            CHECK(has(heard_on(channel), "\"ok\":false"));
          }) == ExitCode::failed);
  }
  SUBCASE("the cluster does not take it") {
    CHECK(join(machine, sent, [&](protocol::JoinChannel& channel) {
            (void)channel.send(to_text(sent.bundle));
            (void)channel.receive();
            (void)channel.send(R"({"ok":false,"error":"no quorum"})");
          }) == ExitCode::failed);
  }
  SUBCASE("the other side ends at once") {
    CHECK(join(machine, sent, [](protocol::JoinChannel&) {}) == ExitCode::failed);
  }
  SUBCASE("and what was replaced is as it was") {
    auto conf = machine.request.corosync_folder + "/corosync.conf";
    machine.put(conf, "totem {}\n");
    machine.request.yes = true;
    std::string meanwhile;
    CHECK(join(machine, sent, [&](protocol::JoinChannel& channel) {
            (void)channel.send(to_text(sent.bundle));
            (void)channel.receive();
            meanwhile = *read_whole(conf);
            (void)channel.send(R"({"ok":false,"error":"no quorum"})");
          }) == ExitCode::failed);
    CHECK(meanwhile == sent.bundle.corosync);
    CHECK(*read_whole(conf) == "totem {}\n");
    std::filesystem::remove(conf);
  }
  CHECK(machine.files() == 0);
}

TEST_CASE("join: a machine that belongs to a cluster is left alone, and asks nobody") {
  Sent sent;
  Machine machine;
  auto& request = machine.request;
  std::string there;
  SUBCASE("csvd.toml") { there = request.config_file; }
  SUBCASE("a key") { there = request.tls_folder + "/node.key"; }
  SUBCASE("Corosync's key") { there = request.corosync_folder + "/authkey"; }
  SUBCASE("corosync.conf of ours") { there = request.corosync_folder + "/corosync.conf"; }
  SUBCASE("a configuration") { there = request.state_dir + "/cluster/cluster-b"; }
  machine.put(there, "# Written by csvfs.\n");
  sent.token.endpoint = "127.0.0.1:1";
  request.token = protocol::to_text(sent.token);
  request.yes = true;
  Terminal terminal{sent.clock, false, false};
  CHECK(join_cluster(request, terminal) == ExitCode::failed);
  CHECK(machine.files() == 1);
  request.token = "csvfs-join-";
  CHECK(join_cluster(request, terminal) == ExitCode::usage);
}
