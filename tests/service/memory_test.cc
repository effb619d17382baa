// That what a coordinator keeps is bounded, and that nothing goes before its session has answered.
#include "coordinator/service/memory.h"

#include <doctest/doctest.h>

#include <numeric>
#include <set>
#include <thread>

#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service;
using namespace csv::service::test;

namespace {

constexpr std::uint64_t kBlock = 4096;

std::uint64_t layouts_of(const VolumeService::Status& status) {
  return std::accumulate(status.sessions.begin(), status.sessions.end(), std::uint64_t{0},
                         [](auto sum, const auto& each) { return sum + each.layouts; });
}

/// Room for layouts of so many files.
std::uint64_t memory_for(std::size_t layouts) {
  auto bytes = layouts * kLayoutBytes * 5;
  while (MemoryShares::of(bytes).layouts < layouts) bytes += 40;
  return bytes;
}

}  // namespace

TEST_CASE("memory: the shares together take no more than was given") {
  for (std::uint64_t mib : {32ull, 320ull, 100'000ull}) {
    auto bytes = mib << 20;
    auto shares = MemoryShares::of(bytes);
    auto together = shares.catalog_pages + shares.names * kNameBytes +
                    shares.watches * kWatchBytes + shares.layouts * kLayoutBytes;
    CHECK(together <= bytes);
    CHECK(together > bytes / 10 * 9);
    CHECK(shares.layouts > 1000);
  }
}

TEST_CASE("memory: layouts beyond the bound are asked back, from whoever has the most") {
  World world;
  constexpr std::size_t kMost = 40;
  world.memory = memory_for(kMost);
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11}, b{world, 2, 22};
  REQUIRE(!a.connect(coordinator).code());
  REQUIRE(!b.connect(coordinator).code());
  a.admit();
  b.admit();
  std::vector<std::uint64_t> files;
  for (int i = 0; i < 60; ++i) {
    files.push_back(a.create("f" + std::to_string(i), false));
    REQUIRE(a.write(files.back(), 0, std::string(kBlock, 'x')).failure().code() == 0);
  }
  auto lay_out = [&](Client& who, std::size_t from, std::size_t to) {
    for (auto i = from; i < to; ++i) REQUIRE(!who.layout(files[i], 0, kBlock, false).shipped());
  };
  auto settles = [&] {
    for (int i = 0; i < 400; ++i) {
      if (layouts_of(coordinator.status()) <= kMost) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds{5});
    }
    return false;
  };
  b.answer_recalls(false);
  lay_out(b, 0, kMost);
  CHECK(b.recalls() == 0);

  // It is the other one that comes over the bound, and not it that is asked.
  lay_out(a, kMost, kMost + 1);
  for (int i = 0; i < 400 && b.held().empty(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
  CHECK(!b.held().empty());
  CHECK(a.recalls() == 0);
  // What has been asked for and not answered is still there: whoever changes it waits.
  CHECK(layouts_of(coordinator.status()) == kMost + 1);
  auto recalled = b.held()[0].inode();
  wire::Request shrink;
  shrink.mutable_set_attr()->set_inode(recalled);
  shrink.mutable_set_attr()->set_size(0);
  auto id = a.send(a.prepared(shrink, 1));
  std::this_thread::sleep_for(std::chrono::milliseconds{50});
  CHECK(!a.answered(id));
  b.answer_recalls(true);
  b.answer_held();
  CHECK(a.wait(id).has_attr());
  CHECK(settles());

  lay_out(a, 0, files.size());
  lay_out(b, 0, files.size());
  CHECK(settles());
}

TEST_CASE("memory: a file that is open keeps its layouts while there are others to ask for") {
  World world;
  constexpr std::size_t kMost = 40;
  world.memory = memory_for(kMost);
  Coordinator coordinator{world, 1};
  Client a{world, 1, 11};
  REQUIRE(!a.connect(coordinator).code());
  a.admit();
  auto open = a.create("open", true);
  REQUIRE(a.write(open, 0, std::string(kBlock, 'x')).failure().code() == 0);
  REQUIRE(!a.layout(open, 0, kBlock, false).shipped());
  a.answer_recalls(false);
  for (std::size_t i = 0; i <= kMost; ++i) {
    auto file = a.create("f" + std::to_string(i), false);
    REQUIRE(a.write(file, 0, std::string(kBlock, 'x')).failure().code() == 0);
    REQUIRE(!a.layout(file, 0, kBlock, false).shipped());
  }
  for (int i = 0; i < 400 && a.held().size() < 20; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
  REQUIRE(a.held().size() >= 20);
  for (const auto& recall : a.held()) CHECK(recall.inode() != open);
}
