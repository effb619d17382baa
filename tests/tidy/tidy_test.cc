// What the architecture says about the source, as a test: who includes whom, one door a library,
// and no clock, chance or sleep but through the doors.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace fs = std::filesystem;

namespace {

struct Source {
  std::string path;    // from the repository root
  std::string folder;  // "coordinator/volume"
  std::string text;
};

std::vector<Source> sources() {
  std::vector<Source> found;
  const fs::path root{CSV_SOURCE_DIR};
  for (const auto* top : {"csvfs", "coordinator", "iscsi"}) {
    for (const auto& each : fs::recursive_directory_iterator{root / top}) {
      auto extension = each.path().extension();
      if (extension != ".h" && extension != ".cc") continue;
      std::stringstream text;
      text << std::ifstream{each.path()}.rdbuf();
      auto path = fs::relative(each.path(), root);
      found.push_back({path.string(), path.parent_path().string(), text.str()});
    }
  }
  std::sort(found.begin(), found.end(), [](auto& a, auto& b) { return a.path < b.path; });
  return found;
}

std::vector<std::string> includes(const std::string& text, char open) {
  static const std::regex quoted{R"re(#\s*include\s*"([^"]+)")re"};
  static const std::regex angled{R"re(#\s*include\s*<([^>]+)>)re"};
  const auto& pattern = open == '"' ? quoted : angled;
  std::vector<std::string> found;
  for (std::sregex_iterator at{text.begin(), text.end(), pattern}, end; at != end; ++at)
    found.push_back((*at)[1]);
  return found;
}

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"csvfs/base", {}},
    {"iscsi", {"csvfs/base"}},
    {"coordinator/protocol", {"csvfs/base"}},
    {"coordinator/volume", {"coordinator/protocol", "iscsi", "csvfs/base"}},
    {"coordinator/cluster", {"coordinator/protocol", "iscsi", "csvfs/base"}},
    {"coordinator/service",
     {"coordinator/volume", "coordinator/cluster", "coordinator/protocol", "iscsi", "csvfs/base"}},
    {"csvfs", {"coordinator/protocol", "iscsi", "csvfs/base"}},
    {"coordinator/admin",
     {"coordinator/service", "coordinator/volume", "coordinator/cluster", "coordinator/protocol",
      "iscsi", "csvfs", "csvfs/base"}},
    {"coordinator",
     {"coordinator/admin", "coordinator/service", "coordinator/volume", "coordinator/cluster",
      "coordinator/protocol", "iscsi", "csvfs/base"}},
};

// A library's headers, and the only files that may include them.
const std::vector<std::pair<std::regex, std::regex>> kDoors = {
    {std::regex{"fuse.*"},
     std::regex{"csvfs/(reply\\.h|fuse_[a-z_]+\\.(h|cc)|daemon\\.(h|cc)|main\\.cc)"}},
    {std::regex{"linux/fuse\\.h"}, std::regex{"csvfs/.*"}},
    {std::regex{"iscsi/.*"}, std::regex{"iscsi/.*"}},
    {std::regex{"liburing.*"}, std::regex{"iscsi/io_ring\\.cc"}},
    {std::regex{"sqlite3\\.h"}, std::regex{"coordinator/volume/.*"}},
    {std::regex{"spdlog/.*"}, std::regex{"csvfs/base/log\\.(h|cc)"}},
    {std::regex{"toml\\+\\+/.*"}, std::regex{"csvfs/base/toml_section\\.h"}},
    {std::regex{"CLI/.*"}, std::regex{".*/?(main|csvctl|daemon)[a-z_]*\\.cc"}},
    {std::regex{"boost/asio.*"}, std::regex{"csvfs/base/asio\\.h"}},
    {std::regex{"openssl/.*"}, std::regex{"coordinator/protocol/openssl\\.h"}},
    {std::regex{"corosync/.*"}, std::regex{"coordinator/cluster/corosync_(engine|tuning)\\.cc"}},
    {std::regex{"boost/interprocess/.*"}, std::regex{"csvfs/base/status_board\\.cc"}},
};

}  // namespace

TEST_CASE("source: every folder includes only what the architecture lets it") {
  auto all = sources();
  REQUIRE(all.size() > 20);  // otherwise the run proved nothing
  for (const auto& source : all) {
    CAPTURE(source.path);
    auto rule = kMayInclude.find(source.folder);
    REQUIRE_MESSAGE(rule != kMayInclude.end(), "a folder the architecture does not know");
    for (const auto& name : includes(source.text, '"')) {
      CAPTURE(name);
      auto folder = fs::path{name}.parent_path().string();
      CHECK((folder == source.folder || rule->second.count(folder) > 0));
    }
  }
}

TEST_CASE("source: each library has its door") {
  for (const auto& source : sources()) {
    CAPTURE(source.path);
    for (const auto& name : includes(source.text, '<')) {
      CAPTURE(name);
      for (const auto& [header, door] : kDoors)
        if (std::regex_match(name, header)) CHECK(std::regex_match(source.path, door));
    }
  }
}

TEST_CASE("source: time, chance and waiting come through their doors only") {
  static const std::regex forbidden{
      R"(system_clock::now|steady_clock::now|random_device|\brand\(|sleep_for|usleep\(|nanosleep)"};
  for (const auto& source : sources()) {
    CAPTURE(source.path);
    std::smatch found;
    CHECK_FALSE(std::regex_search(source.text, found, forbidden));
  }
}

TEST_CASE("source: libiscsi is never called synchronously") {
  static const std::regex forbidden{R"(iscsi_[a-z0-9_]+_sync\()"};
  for (const auto& source : sources()) {
    CAPTURE(source.path);
    CHECK_FALSE(std::regex_search(source.text, forbidden));
  }
}
