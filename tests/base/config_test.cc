#include "csvfs/base/config.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

using namespace csv;

namespace {

const std::string kGood = R"([cluster]
id = 4711
[node]
id = 1
name = "node1"
listen = "10.77.1.11:7400"
[[peer]]
id = 2
name = "node2"
address = "10.77.1.12:7400"
[[volume]]
name = "volume1"
lun = "iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1"
sessions = 2
coordinate = true
)";

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  auto at = text.find(what);
  REQUIRE(at != std::string::npos);
  return text.replace(at, what.size(), by);
}

std::string error_of(const std::string& text) {
  auto config = parse_config(text, "csvd.toml");
  REQUIRE_FALSE(config);
  CHECK(config.error() == Errc::refused);
  return config.error().message();
}

}  // namespace

TEST_CASE("config: what the file says arrives, and what it leaves out has its default") {
  auto config = parse_config(kGood, "csvd.toml");
  REQUIRE_MESSAGE(config, config.error().message());
  CHECK(config->cluster == 4711);
  CHECK(config->node == NodeId{1});
  CHECK(config->node_name == "node1");
  CHECK(config->listen == "10.77.1.11:7400");
  CHECK(config->initiator == "iqn.2026-01.org.csvfs:node1");
  REQUIRE(config->peers.size() == 1);
  CHECK(config->peers[0].id == NodeId{2});
  CHECK(config->peers[0].address == "10.77.1.12:7400");
  REQUIRE(config->volumes.size() == 1);
  const auto& volume = config->volumes[0];
  CHECK(volume.name == "volume1");
  CHECK(volume.sessions == 2);
  CHECK(volume.coordinate);
  CHECK_FALSE(volume.write_cache_safe);
  CHECK(volume.coordinator_memory_mib == 320);
  CHECK(volume.mount_memory_mib == 96);
  auto small = parse_config(kGood + "coordinator_memory_mib = 32\nmount_memory_mib = 8\n", "x");
  REQUIRE_MESSAGE(small, small.error().message());
  CHECK(small->volumes[0].coordinator_memory_mib == 32);
  CHECK(small->volumes[0].mount_memory_mib == 8);
  CHECK(config->links.empty());
  CHECK_FALSE(config->corosync);
  auto linked = parse_config(
      replaced(
          replaced(replaced(kGood, "name = \"node1\"\n",
                            "name = \"node1\"\nlinks = [\"10.0.0.1\", \"fd00::1\"]\n"),
                   "name = \"node2\"\n", "name = \"node2\"\nlinks = [\"10.0.0.2\", \"fd00::2\"]\n"),
          "id = 4711\n", "id = 4711\nengine = \"corosync\"\n"),
      "csvd.toml");
  REQUIRE_MESSAGE(linked, linked.error().message());
  CHECK(linked->corosync);
  CHECK(linked->links == std::vector<std::string>{"10.0.0.1", "fd00::1"});
  CHECK(linked->peers[0].links == std::vector<std::string>{"10.0.0.2", "fd00::2"});
  CHECK(config->isolation_addresses.empty());
  CHECK_FALSE(config->reboot_when_isolated);
  auto isolated =
      parse_config(replaced(kGood, "id = 4711\n",
                            "id = 4711\nisolation_addresses = [\"10.0.0.254\", \"fd00::1\"]\n"
                            "on_isolation = \"reboot\"\n"),
                   "csvd.toml");
  REQUIRE_MESSAGE(isolated, isolated.error().message());
  CHECK(isolated->isolation_addresses == std::vector<std::string>{"10.0.0.254", "fd00::1"});
  CHECK(isolated->reboot_when_isolated);
  CHECK(config->watchdog.empty());
  auto watched = parse_config(replaced(kGood, "name = \"node1\"\n",
                                       "name = \"node1\"\nwatchdog = \"/dev/watchdog1\"\n"
                                       "watchdog_timeout_s = 20\n"),
                              "csvd.toml");
  REQUIRE_MESSAGE(watched, watched.error().message());
  CHECK(watched->watchdog == "/dev/watchdog1");
  CHECK(watched->watchdog_timeout == std::chrono::seconds{20});
  auto alone = parse_config(R"([cluster]
id = 1
[node]
id = 63
name = "Node_A"
listen = "[::1]:7400"
initiator = "iqn.2001-04.com.example:a"
)",
                            "x");
  REQUIRE(alone);
  CHECK(alone->peers.empty());
  CHECK(alone->initiator == "iqn.2001-04.com.example:a");
  CHECK(default_initiator("Node_A") == "iqn.2026-01.org.csvfs:node-a");
}

TEST_CASE("config: what is wrong is named with its file, line and column, and what was expected") {
  struct Case {
    std::string text, place, about;
  };
  const Case cases[] = {
      {replaced(kGood, "4711", "70000"), "csvd.toml:2:6: ", "from 1 to 65535, found 70000"},
      {replaced(kGood, "4711", "\"4711\""), "csvd.toml:2:6: ", "an integer"},
      {replaced(kGood, "id = 1\n", "id = 64\n"), "csvd.toml:4:6: ", "from 1 to 63"},
      {replaced(kGood, "10.77.1.11:7400", "node1:7400"), "csvd.toml:6:10: ", "numeric address"},
      {replaced(kGood, "10.77.1.12:7400", "10.77.1.12"), "csvd.toml:10:11: ", "numeric address"},
      {replaced(kGood, "id = 4711\n", "id = 4711\non_isolation = \"panic\"\n"),
       "csvd.toml:3:16: ", "\"stop\" or \"reboot\""},
      {replaced(kGood, "id = 4711\n", "id = 4711\nisolation_addresses = [\"gateway\"]\n"),
       "csvd.toml:3:24: ", "numeric address"},
      {replaced(kGood, "name = \"node1\"\n",
                "name = \"node1\"\nwatchdog = \"/dev/watchdog\"\nwatchdog_timeout_s = 9\n"),
       "csvd.toml:7:22: ", "at least 10"},
      {replaced(kGood, "name = \"node1\"\n", "name = \"node1\"\nwatchdog_timeout_s = 15\n"),
       "csvd.toml:6:22: ", "belongs to watchdog"},
      {replaced(kGood, "name = \"node1\"\n", "name = \"node1\"\nwatchdog = \"yes\"\n"),
       "csvd.toml:6:12: ", "a device"},
      {replaced(kGood, "sessions", "session"), "csvd.toml:14:1: ", "unknown key 'session'"},
      {replaced(kGood, "[node]", "[nodes]"), "csvd.toml:3:2: ", "unknown key 'nodes'"},
      {replaced(kGood, "sessions = 2", "sessions = 0"), "csvd.toml:14:12: ", "from 1 to 8"},
      {replaced(kGood, "coordinate = true", "coordinate = 1"),
       "csvd.toml:15:14: ", "true or false, found an integer"},
      {replaced(kGood, "iscsi://", "http://"), "csvd.toml:13:7: ", "a LUN"},
      {replaced(kGood, "name = \"volume1\"\n", ""), "csvd.toml:11:", "missing 'name'"},
      {replaced(kGood, "id = 2", "id = 1"), "csvd.toml:8:6: ", "node 1 is already configured"},
      {replaced(kGood, "\"node2\"", "\"node1\""), "csvd.toml:9:8: ", "already configured"},
      {kGood + "[[volume]]\nname = \"volume1\"\nlun = \"file:/x\"\n",
       "csvd.toml:17:8: ", "already configured"},
      {kGood + "chap_user = \"me\"\n", "csvd.toml:16:13: ", "belong together"},
      {kGood + "coordinator_memory_mib = 31\n", "csvd.toml:16:26: ", "from 32 to 1048576"},
      {kGood + "mount_memory_mib = 7\n", "csvd.toml:16:20: ", "from 8 to 1048576"},
      {kGood + "write_cache = \"maybe\"\n", "csvd.toml:16:15: ", "\"ask\" or \"safe\""},
      {replaced(kGood, "[[peer]]", "[peer]"), "csvd.toml:7:1: ", "[[peer]] tables"},
      {replaced(kGood, "id = 4711", "id = "), "csvd.toml:2:", ""},
      {replaced(kGood, "name = \"node1\"\n", "name = \"node1\"\nlinks = \"10.0.0.1\"\n"),
       "csvd.toml:6:9: ", "expected a list, found a text"},
      {replaced(kGood, "name = \"node1\"\n", "name = \"node1\"\nlinks = [\"10.0.0.1\", 5]\n"),
       "csvd.toml:6:22: ", "numeric address"},
      {replaced(kGood, "name = \"node1\"\n", "name = \"node1\"\nlinks = [\"a\"]\n"),
       "csvd.toml:6:10: ", "numeric address"},
      {replaced(kGood, "name = \"node1\"\n", "name = \"node1\"\nlinks = [\"10.0.0.1\", \"::1\"]\n"),
       "csvd.toml:8:1: ", "every node has as many: [node] has 2, this one 1"},
      {"", "csvd.toml: ", "missing table [cluster]"},
  };
  for (const auto& one : cases) {
    auto message = error_of(one.text);
    CAPTURE(message);
    CHECK(message.starts_with(one.place));
    CHECK(message.find(one.about) != std::string::npos);
  }
}

TEST_CASE("config: a file that is not there is an error with its name") {
  auto config = load_config("/nonexistent/csvd.toml");
  REQUIRE_FALSE(config);
  CHECK(config.error() == std::errc::no_such_file_or_directory);
  CHECK(config.error().message().find("/nonexistent/csvd.toml") != std::string::npos);
}

TEST_CASE("config: a secret that others may read is refused") {
  auto path = std::filesystem::temp_directory_path() / ("csv_secret_" + std::to_string(::getpid()));
  std::ofstream{path} << "swordfish\n";
  ::chmod(path.c_str(), 0600);
  auto secret = read_secret(path);
  REQUIRE(secret);
  CHECK(*secret == "swordfish");
  ::chmod(path.c_str(), 0640);
  CHECK_FALSE(read_secret(path));
  ::chmod(path.c_str(), 0600);
  std::ofstream{path, std::ios::trunc};
  CHECK_FALSE(read_secret(path));
  std::filesystem::remove(path);
  CHECK_FALSE(read_secret(path));
}

TEST_CASE("config: nodes speak TLS unless it is said, and said twice where others may listen") {
  auto config = parse_config(kGood, "csvd.toml");
  REQUIRE(config);
  CHECK_FALSE(config->tls.off);
  CHECK(config->tls.key == "/etc/csvfs/tls/node.key");
  CHECK(config->status_group.empty());

  auto moved = parse_config(kGood +
                                "[tls]\nca = \"/a\"\ncertificate = \"/b\"\nkey = \"/c\"\n"
                                "[admin]\nstatus_group = \"adm\"\n",
                            "csvd.toml");
  REQUIRE(moved);
  CHECK_FALSE(moved->tls.off);
  CHECK(moved->tls.ca == "/a");
  CHECK(moved->tls.certificate == "/b");
  CHECK(moved->tls.key == "/c");
  CHECK(moved->status_group == "adm");

  auto off = kGood + "[tls]\nmode = \"off\"\n";
  CHECK(error_of(off).find("trusted_network") != std::string::npos);
  auto trusted = parse_config(off + "trusted_network = true\n", "csvd.toml");
  REQUIRE(trusted);
  CHECK(trusted->tls.off);
  // Alone on its machine, nobody else can reach it. A peer elsewhere is somebody else.
  auto alone = replaced(replaced(off, "10.77.1.11", "127.0.0.1"), "10.77.1.12", "127.0.0.2");
  CHECK(parse_config(alone, "csvd.toml"));
  CHECK(error_of(replaced(off, "10.77.1.11", "127.0.0.1")).find("trusted_network") !=
        std::string::npos);
  CHECK(error_of(kGood + "[tls]\ntrusted_network = true\n").find("mode") != std::string::npos);
  CHECK(error_of(kGood + "[tls]\nmode = \"no\"\n").find("\"required\" or \"off\"") !=
        std::string::npos);
  CHECK(error_of(kGood + "[tls]\nmodus = \"off\"\n").find("unknown key") != std::string::npos);
}
