#include "coordinator/cluster/placement.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::cluster;

namespace {

constexpr Duration kHold = 60s;

NodeId node(unsigned number) { return NodeId{static_cast<std::uint8_t>(number)}; }

/// Volumes v0, v1, … and nodes 1, 2, … that all reach all of them; time stands at an hour.
struct Scene {
  Scene(unsigned node_count, unsigned volume_count) {
    for (unsigned i = 0; i < volume_count; ++i) {
      PlacedVolume volume;
      volume.name = "v" + std::to_string(i);
      volumes.push_back(std::move(volume));
    }
    for (unsigned i = 1; i <= node_count; ++i) add(i);
  }
  void add(unsigned number) {
    PlacedNode one{.node = node(number), .since = now};
    for (const auto& volume : volumes) one.volumes[volume.name] = {.path = true};
    nodes.push_back(std::move(one));
  }
  void remove(unsigned number) {
    std::erase_if(nodes, [&](const auto& one) { return one.node == node(number); });
  }
  PlacedNode& at(unsigned number) {
    return *std::find_if(nodes.begin(), nodes.end(),
                         [&](const auto& one) { return one.node == node(number); });
  }
  /// Places, and lets it be so. Who coordinates, "12-": v0 at 1, v1 at 2, v2 nowhere.
  std::string placed() {
    last = place(volumes, nodes, kHold, now);
    for (const auto& one : last) {
      for (auto& volume : volumes) {
        if (volume.name != one.volume) continue;
        CHECK(volume.coordinator != one.to);
        CHECK_FALSE(one.why.empty());
        volume.coordinator = one.to;
        volume.moved = now;
      }
    }
    return text();
  }
  [[nodiscard]] std::string text() const {
    std::string all;
    for (const auto& volume : volumes)
      all += volume.coordinator ? static_cast<char>('0' + raw(*volume.coordinator)) : '-';
    return all;
  }
  void pass(Duration time) { now += time; }

  TimePoint now{1h};
  std::vector<PlacedVolume> volumes;
  std::vector<PlacedNode> nodes;
  std::vector<Assignment> last;
};

}  // namespace

TEST_CASE("placement: volumes without a coordinator are spread evenly, and stay") {
  Scene scene{3, 7};
  CHECK(scene.placed() == "1231231");
  for (int i = 0; i < 100; ++i) {
    scene.pass(kHold);
    scene.placed();
    REQUIRE(scene.last.empty());
  }
}

TEST_CASE("placement: among equals it goes to who uses it most, never against the spread") {
  Scene scene{3, 3};
  for (auto& volume : scene.volumes) scene.at(3).volumes[volume.name].sessions = 5;
  scene.at(2).volumes["v1"].sessions = 1;
  CHECK(scene.placed() == "321");
  // Use alone moves nothing later.
  scene.at(1).volumes["v0"].sessions = 99;
  scene.pass(10 * kHold);
  CHECK(scene.placed() == "321");
}

TEST_CASE("placement: what a node can no longer coordinate moves at once, and nothing else") {
  SUBCASE("gone") {
    Scene scene{3, 6};
    REQUIRE(scene.placed() == "123123");
    scene.remove(2);
    CHECK(scene.placed() == "113133");
    CHECK(scene.last.front().why == "node 2 is gone");
  }
  SUBCASE("drained") {
    Scene scene{3, 6};
    REQUIRE(scene.placed() == "123123");
    scene.at(1).drained = true;
    CHECK(scene.placed() == "223323");
    CHECK(scene.last.front().why == "node 1 is drained");
  }
  SUBCASE("without a path to one volume") {
    Scene scene{3, 6};
    REQUIRE(scene.placed() == "123123");
    scene.at(1).volumes["v3"].path = false;
    CHECK(scene.placed() == "123223");
    CHECK(scene.last.front().why == "node 1 could not take it over, or serve it");
  }
  SUBCASE("a volume that has nobody, but for one that failed a while ago") {
    Scene scene{2, 1};
    scene.at(2).volumes["v0"].path = false;
    REQUIRE(scene.placed() == "1");
    SUBCASE("its node is fenced") { scene.at(1).fenced = true; }
    SUBCASE("its node is gone") { scene.remove(1); }
    CHECK(scene.placed() == "2");
  }
  SUBCASE("but not to one that failed, while it is served") {
    Scene scene{2, 1};
    REQUIRE(scene.placed() == "1");
    scene.at(1).drained = true;
    scene.at(2).volumes["v0"].path = false;
    CHECK(scene.placed() == "1");
  }
  SUBCASE("a volume it does not know") {
    Scene scene{2, 1};
    scene.nodes[0].volumes.clear();
    CHECK(scene.placed() == "2");
  }
}

TEST_CASE("placement: who fails again and again is tried less and less often") {
  Setback setback;
  TimePoint now{1h};
  CHECK(setback.over(now));
  for (auto pause : {30s, 60s, 120s, 200s, 200s}) {
    setback.note(30s, 200s, now);
    setback.note(30s, 200s, now + pause / 2);
    CHECK_FALSE(setback.over(now + pause - 1s));
    CHECK(setback.over(now + pause));
    now += pause;
  }
}

TEST_CASE("placement: a fenced node is given nothing, were it the last one") {
  Scene scene{2, 2};
  CHECK(scene.placed() == "12");
  scene.at(1).fenced = true;
  CHECK(scene.placed() == "22");
  CHECK(scene.last.front().why == "node 1 is fenced");
  scene.volumes[0].preferred = node(1);
  CHECK(scene.placed() == "22");
  scene.at(2).fenced = true;
  scene.volumes[1].coordinator.reset();
  CHECK(scene.placed() == "2-");
}

TEST_CASE("placement: a volume without any path stays; a drained node is better than none") {
  Scene scene{2, 2};
  REQUIRE(scene.placed() == "12");
  for (auto& one : scene.nodes) one.volumes["v0"].path = false;
  CHECK(scene.placed() == "12");
  scene.at(1).volumes["v0"].path = true;
  for (auto& one : scene.nodes) one.drained = true;
  CHECK(scene.placed() == "12");
  scene.remove(2);
  CHECK(scene.placed() == "11");  // on a node in maintenance, but served
  scene.add(2);
  CHECK(scene.placed() == "22");
  scene.nodes.clear();
  CHECK(scene.placed() == "22");
}

TEST_CASE("placement: balance returns after the hold time, of the volume and of the node") {
  Scene scene{2, 4};
  REQUIRE(scene.placed() == "1212");
  scene.pass(1h);
  scene.remove(2);
  REQUIRE(scene.placed() == "1111");
  scene.pass(5s);
  scene.add(2);
  scene.at(2).volumes["v3"].sessions = 2;
  CHECK(scene.placed() == "1111");
  scene.pass(kHold - 1s);  // the volumes are settled now, the node is not
  CHECK(scene.placed() == "1111");
  scene.pass(1s);
  CHECK(scene.placed() == "2112");  // first the one that it uses
  CHECK(scene.last.front().why.find("coordinates") != std::string::npos);
}

TEST_CASE("placement: an administrator's preference holds, against the balance too") {
  Scene scene{2, 4};
  for (auto& volume : scene.volumes) volume.preferred = node(2);
  REQUIRE(scene.placed() == "2222");
  scene.pass(1h);
  CHECK(scene.placed() == "2222");
  scene.remove(2);
  CHECK(scene.placed() == "1111");
  scene.add(2);
  CHECK(scene.placed() == "1111");
  scene.pass(kHold);
  CHECK(scene.placed() == "2222");
  CHECK(scene.last.front().why == "node 2 is preferred for it");
  scene.at(2).drained = true;
  CHECK(scene.placed() == "1111");
  scene.pass(1h);
  CHECK(scene.placed() == "1111");  // not onto a drained node
}

TEST_CASE("placement: a node or path that comes and goes moves a volume at most twice a hold") {
  Scene scene{2, 4};
  REQUIRE(scene.placed() == "1212");
  scene.pass(1h);
  int moves = 0;
  auto began = scene.now;
  for (int i = 0; i < 200; ++i) {
    bool up = i % 2 == 1;
    if (i % 20 < 10) {
      for (auto& [name, reach] : scene.at(2).volumes) reach.path = up;
    } else if (up) {
      scene.add(2);
    } else {
      scene.remove(2);
    }
    scene.placed();
    moves += static_cast<int>(scene.last.size());
    scene.pass(3s);
  }
  auto holds = (scene.now - began) / kHold;
  CHECK(moves >= 2);
  CHECK(moves <= 2 * 4 * (holds + 1));
}

TEST_CASE(
    "placement: whatever happens, moves without need keep the hold time, and evenness comes") {
  int needed = 0, unneeded = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    Random random{seed};
    auto node_count = static_cast<unsigned>(2 + random.below(5));
    Scene scene{node_count, static_cast<unsigned>(1 + random.below(12))};
    auto able = [&](const PlacedVolume& volume) {
      return std::any_of(scene.nodes.begin(), scene.nodes.end(), [&](const PlacedNode& one) {
        return one.node == volume.coordinator && !one.drained && one.volumes.at(volume.name).path;
      });
    };
    for (int step = 0; step < 100; ++step) {
      auto who = static_cast<unsigned>(1 + random.below(node_count));
      bool here = std::any_of(scene.nodes.begin(), scene.nodes.end(),
                              [&](const auto& one) { return one.node == node(who); });
      auto what = random.below(12);
      if (!here) {
        if (what < 6) scene.add(who);
      } else if (what == 0) {
        scene.remove(who);
      } else if (what == 1) {
        scene.at(who).drained = !scene.at(who).drained;
        scene.at(who).since = scene.now;
      } else if (what == 2) {
        auto& volume = scene.volumes[random.below(scene.volumes.size())];
        auto& reach = scene.at(who).volumes[volume.name];
        reach.path = !reach.path;
      } else if (what == 3) {
        auto& volume = scene.volumes[random.below(scene.volumes.size())];
        scene.at(who).volumes[volume.name].sessions = static_cast<unsigned>(random.below(4));
      }
      auto before = scene.volumes;
      std::vector<bool> could;
      for (const auto& volume : before) could.push_back(able(volume));
      scene.placed();
      for (std::size_t i = 0; i < before.size(); ++i) {
        if (scene.volumes[i].coordinator == before[i].coordinator) continue;
        ++(could[i] ? unneeded : needed);
        if (could[i] && before[i].moved) REQUIRE(scene.now - *before[i].moved >= kHold);
        if (could[i]) REQUIRE(able(scene.volumes[i]));
      }
      scene.pass(10s);
    }
    // It becomes quiet, and everybody is able.
    scene.nodes.clear();
    for (unsigned i = 1; i <= node_count; ++i) scene.add(i);
    scene.placed();
    scene.pass(kHold);
    scene.placed();
    std::vector<int> loads;
    for (unsigned i = 1; i <= node_count; ++i)
      loads.push_back(static_cast<int>(
          std::count_if(scene.volumes.begin(), scene.volumes.end(),
                        [&](const auto& volume) { return volume.coordinator == node(i); })));
    auto [least, most] = std::minmax_element(loads.begin(), loads.end());
    REQUIRE(*most - *least <= 1);
    for (int i = 0; i < 10; ++i) {
      scene.pass(kHold);
      scene.placed();
      REQUIRE(scene.last.empty());
    }
  }
  CHECK(needed > 1000);
  CHECK(unneeded > 100);
}

TEST_CASE(
    "placement: a volume that nobody can serve moves from node to node, and no other one does") {
  Scene scene{3, 6};
  REQUIRE(scene.placed() == "123123");
  scene.volumes[2].served = false;
  for (int i = 0; i < 30; ++i) {
    // Each has failed, but who failed longest ago: it is tried again.
    for (unsigned j = 1; j <= 3; ++j) scene.at(j).volumes["v2"].path = j == i % 3u + 1;
    scene.placed();
    for (const auto& one : scene.last) CHECK(one.volume == "v2");
    scene.pass(kHold);
    scene.placed();
    REQUIRE(scene.last.empty());
  }
  // A node that has little to do is given something all the same.
  scene.add(4);
  scene.pass(kHold);
  CHECK(scene.placed() == "423123");
}

TEST_CASE("placement: what is still being taken over is not moved on") {
  Scene scene{2, 4};
  REQUIRE(scene.placed() == "1212");
  scene.pass(1h);
  scene.remove(2);
  REQUIRE(scene.placed() == "1111");
  scene.add(2);
  for (auto& one : scene.volumes) one.served = false;
  scene.pass(kHold);
  CHECK(scene.placed() == "1111");
  for (auto& one : scene.volumes) one.served = true;
  CHECK(scene.placed() == "2211");
}

TEST_CASE(
    "placement: a node that hears no majority is given nothing, unless there is nobody else") {
  Scene scene{3, 3};
  CHECK(scene.placed() == "123");
  scene.at(1).hears_majority = false;
  auto after = scene.placed();
  CHECK(after.find('1') == std::string::npos);
  REQUIRE(scene.last.size() == 1);
  CHECK(scene.last[0].why == "node 1 does not hear a majority");
  // It may hear one again any time, and to move it brings nothing.
  for (unsigned i : {2, 3}) scene.at(i).hears_majority = false;
  CHECK(scene.placed() == after);
  CHECK(scene.last.empty());
}

TEST_CASE("placement: a volume goes at once where more of those that use it can reach it") {
  Scene scene{3, 3};
  CHECK(scene.placed() == "123");
  scene.at(1).volumes["v0"].cut_off = 1;
  scene.at(2).volumes["v0"].cut_off = 1;
  CHECK(scene.placed() == "323");
  REQUIRE(scene.last.size() == 1);
  CHECK(scene.last[0].why == "node 1 is not heard by a node that has mounted it");
  // Neither balance nor a preference brings it back.
  scene.volumes[0].preferred = node(1);
  scene.pass(kHold);
  CHECK(scene.placed().front() == '3');
  scene.at(1).volumes["v0"].cut_off = 0;
  scene.pass(kHold);
  CHECK(scene.placed().front() == '1');
}

TEST_CASE("placement: a volume stays where nobody is reached by more of those that use it") {
  Scene scene{3, 3};
  CHECK(scene.placed() == "123");
  for (unsigned i : {1, 2, 3}) scene.at(i).volumes["v0"].cut_off = 1;
  CHECK(scene.placed() == "123");
  CHECK(scene.last.empty());
}

TEST_CASE("placement: where one is heard by more, but its path comes and goes") {
  Scene scene{2, 1};
  scene.placed();
  scene.at(2).volumes["v0"].cut_off = 1;
  scene.at(2).volumes["v0"].cut_off_since = scene.now;
  scene.now += 1s;
  std::size_t moves = 0;
  for (int i = 0; i < 20; ++i) {
    scene.at(1).volumes["v0"].path = true;
    scene.placed();
    moves += scene.last.size();
    scene.now += 5s;
    scene.at(1).volumes["v0"].path = false;
    scene.placed();
    moves += scene.last.size();
    scene.now += 30s;
  }
  CHECK(moves <= 2 * (20 * 35s / kHold + 1));
}
