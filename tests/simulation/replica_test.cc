#include "tests/simulation/replica_bed.h"

using namespace csv;
using namespace csv::cluster;
using namespace csv::sim;

TEST_CASE("replica: a cluster is founded on one node and taken by all, who then all vote") {
  Bed bed{1, 3};
  bed.begin();
  for (std::size_t i = 0; i < 3; ++i) {
    const auto& now = *bed.lives[i]->replica->configuration();
    CHECK(now.ballot.now.total() == 3);
    CHECK(bed.run_until([&] { return bed.disks[i].configuration == now; }));
    CHECK(bed.group.votes(id(i)));
  }
  CHECK(bed.lives[0]->replica->steward());
  CHECK(!bed.lives[1]->replica->steward());
}

TEST_CASE("replica: when the founder is not heard, another one does at once what one has to do") {
  Bed bed{1, 4};
  bed.begin();
  // It stays a member: its csvd hangs, or one network of several is cut.
  for (std::size_t i : {1, 2, 3}) {
    auto& life = *bed.lives[i];
    life.unheard = {id(0)};
    life.loop.enter([&] { life.replica->heard(); });
  }
  CHECK(bed.run_until([&] { return bed.lives[1]->replica->steward(); }, 100ms));
  CHECK(!bed.lives[2]->replica->steward());
  CHECK(!bed.lives[3]->replica->steward());
  CHECK(bed.run_until([&] { return bed.now(1).ballot.now.nodes.at(id(0)) == 0; }));
}

TEST_CASE("replica: a change is in force everywhere once it has been answered by a majority") {
  Bed bed{2, 3};
  bed.begin();
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(bed.change(i, add_volume("volume" + std::to_string(i))));
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(bed.lives[i]->replica->configuration()->volumes.size() == 3);
  // What is refused changes nothing.
  auto before = *bed.lives[1]->replica->configuration();
  auto refused = bed.change(1, [](Configuration& configuration) -> Expected<void> {
    configuration.name = "";
    return {};
  });
  CHECK(refused.error() == Errc::refused);
  CHECK(*bed.lives[1]->replica->configuration() == before);
}

TEST_CASE("replica: changes of all nodes at once are all made") {
  Bed bed{3, 4};
  bed.begin();
  std::vector<std::optional<Expected<void>>> results(4);
  for (std::size_t i = 0; i < 4; ++i) {
    auto& life = *bed.lives[i];
    life.loop.enter([&] {
      life.tasks.spawn(
          Bed::ask(*life.replica, add_volume("v" + std::to_string(i)), 20s, results[i]));
    });
  }
  REQUIRE(bed.run_until([&] {
    return std::all_of(results.begin(), results.end(), [](const auto& r) { return r.has_value(); });
  }));
  for (const auto& each : results) CHECK(*each);
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  CHECK(bed.lives[2]->replica->configuration()->volumes.size() == 4);
}

TEST_CASE("replica: of two halves the majority goes on, the other says why not, and joins again") {
  Bed bed{4, 3};
  bed.begin();
  bed.group.part(id(0), id(1));
  bed.group.part(id(0), id(2));
  REQUIRE(bed.run_until([&] { return !bed.formed(0) && bed.settled(1) && bed.settled(2); }));
  bed.run_for(3s);
  CHECK(bed.lives[0]->replica->state() == Replica::State::minority);
  CHECK(bed.lives[0]->replica->reason().find("no majority") != std::string::npos);
  CHECK(!bed.group.votes(id(0)));
  CHECK(bed.group.votes(id(1)));
  CHECK(bed.change(1, add_volume("made_by_two")));
  auto refused = bed.change(0, add_volume("made_by_one"), 2s);
  CHECK(refused.error() == Errc::retry);
  bed.group.join_all();
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  CHECK(bed.lives[0]->replica->configuration()->volumes.count("made_by_two") == 1);
  CHECK(bed.lives[0]->replica->configuration()->volumes.count("made_by_one") == 0);
}

TEST_CASE("replica: nodes go one by one down to the last, and the last one's word holds") {
  Bed bed{5, 4};
  bed.begin();
  for (std::size_t gone : {3, 2, 1}) {
    bed.power_off(gone);
    REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
    // Votes follow a moment after.
    bed.run_for(2s);
  }
  CHECK(bed.formed(0));
  CHECK(bed.change(0, add_volume("alone")));
  // All of them boot, those who left first at first: they may not go on without who was last.
  bed.power_off(0);
  for (std::size_t back : {3, 2, 1}) bed.boot(back);
  bed.run_for(10s);
  for (std::size_t back : {3, 2, 1}) CHECK(!bed.formed(back));
  bed.boot(0);
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  CHECK(bed.lives[3]->replica->configuration()->volumes.count("alone") == 1);
}

TEST_CASE("leave: a node goes for good, whatever its number, and the others go on without it") {
  for (std::size_t leaver : {0, 2}) {
    CAPTURE(leaver);
    Bed bed{31, 3};
    bed.begin();
    CHECK(bed.leave(leaver));
    REQUIRE(bed.run_until([&] {
      for (std::size_t i = 0; i < 3; ++i)
        if (!bed.settled(i) || bed.now(i).nodes.count(id(leaver)) > 0) return false;
      return true;
    }));
    bed.power_off(leaver);
    REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
    CHECK(bed.change(1, add_volume("without_it")));
    CHECK(bed.now(1).nodes.size() == 2);
    // Its vote of 0 is tidied up a moment after.
    CHECK(bed.run_until([&] { return bed.now(1).ballot.now.nodes.count(id(leaver)) == 0; }));
    // It is no part of anything when it is back, and is not let to leave again.
    bed.boot(leaver);
    REQUIRE(bed.run_until(
        [&] { return bed.settled(leaver) && bed.now(leaver).volumes.count("without_it") > 0; }));
    CHECK(bed.leave(leaver).error() == Errc::refused);
    CHECK(bed.broken.empty());
  }
}

TEST_CASE("leave: down to the last, which stays") {
  Bed bed{32, 3};
  bed.begin();
  for (std::size_t leaver : {0, 1}) {
    CHECK(bed.leave(leaver));
    bed.power_off(leaver);
    REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  }
  CHECK(bed.change(2, add_volume("alone")));
  auto before = bed.now(2);
  auto last = bed.leave(2);
  CHECK(last.error() == Errc::refused);
  CHECK(last.error().message().find("last") != std::string::npos);
  CHECK(bed.now(2) == before);
}

TEST_CASE("leave: what is refused leaves the node as it was") {
  Bed bed{33, 3};
  bed.begin();
  auto as_before = [&, before = bed.now(0)] {
    return bed.now(0).nodes == before.nodes && bed.now(0).volumes == before.volumes;
  };
  SUBCASE("a volume is mounted") {
    auto refused = bed.leave(2, {"volume1"});
    CHECK(refused.error() == Errc::refused);
    CHECK(refused.error().message().find("volume1") != std::string::npos);
    CHECK(as_before());
  }
  SUBCASE("the others would have no quorum") {
    REQUIRE(bed.change(0, [](Configuration& next) -> Expected<void> {
      next.policies.dynamic_quorum = false;
      return {};
    }));
    bed.power_off(1);
    REQUIRE(bed.run_until([&] { return bed.settled(0) && bed.settled(2); }));
    auto refused = bed.leave(2);
    CHECK(refused.error() == Errc::refused);
    CHECK(refused.error().message().find("quorum") != std::string::npos);
    CHECK(bed.run_until(as_before));
    CHECK(bed.change(0, add_volume("later")));
  }
  SUBCASE("nobody takes its volume") {
    REQUIRE(bed.change(0, [](Configuration& next) -> Expected<void> {
      next.volumes["volume1"].coordinator = id(2);
      return {};
    }));
    auto refused = bed.leave(2);
    CHECK(refused.error().message().find("volume1") != std::string::npos);
    REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
    CHECK(bed.now(0).nodes.at(id(2)) == NodeRecord{"node3", "10.0.0.3:7400"});
    CHECK(bed.now(0).volumes.at("volume1").coordinator == id(2));
  }
  CHECK(bed.broken.empty());
}

TEST_CASE("leave: a volume is handed over first") {
  Bed bed{34, 3};
  bed.begin();
  REQUIRE(bed.change(0, [](Configuration& next) -> Expected<void> {
    next.volumes["volume1"].coordinator = id(2);
    return {};
  }));
  std::optional<Expected<void>> left;
  bed.begin_to_leave(2, left);
  REQUIRE(bed.run_until([&] { return bed.now(0).nodes.at(id(2)).state == NodeState::drained; }));
  bed.run_for(3s);
  CHECK(!left);
  CHECK(bed.now(0).nodes.count(id(2)) == 1);
  REQUIRE(bed.change(0, [](Configuration& next) -> Expected<void> {
    next.volumes["volume1"].coordinator = id(1);
    return {};
  }));
  REQUIRE(bed.run_until([&] { return left.has_value(); }));
  CHECK(*left);
  CHECK(bed.now(0).nodes.count(id(2)) == 0);
  CHECK(bed.now(0).volumes.at("volume1").coordinator == id(1));
}

TEST_CASE("leave: whoever dies meanwhile, those who are left agree on who is in the cluster") {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    Bed bed{300 + seed, 3};
    bed.begin();
    std::size_t leaver = seed % 3, victim = seed / 3 % 3;
    std::optional<Expected<void>> left;
    bed.begin_to_leave(leaver, left, {}, 5s);
    bed.run_for(seed * 150us);
    bed.power_off(victim);
    bed.run_for(10s);
    bed.boot(victim);
    auto agreed = [&] {
      for (std::size_t i = 0; i < 3; ++i)
        if (!bed.settled(i) || !(bed.now(i) == bed.now(0))) return false;
      return true;
    };
    REQUIRE(bed.run_until(agreed));
    if (left && *left) CHECK(bed.now(0).nodes.count(id(leaver)) == 0);
    CHECK(bed.change((leaver + 1) % 3, add_volume("after")));
    CHECK(bed.broken.empty());
  }
}

TEST_CASE("replica: a member that hangs stops nobody, and takes part when it wakes up") {
  Bed bed{6, 3};
  bed.begin();
  bed.lives[0]->loop.freeze(bed.world.now() + 8s);  // it is the one who does what one has to do
  bed.kill(2);
  REQUIRE(bed.run_until([&] { return bed.formed(0); }, 9s));  // it knows of nothing yet
  CHECK(bed.run_until([&] { return bed.lives[1]->replica->state() == Replica::State::minority; }));
  bed.boot(2);
  REQUIRE(bed.run_until([&] { return bed.settled(1) && bed.settled(2); }, 7s));
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
}

TEST_CASE("replica: what is said while a node is not heard for a moment is not lost") {
  Bed bed{26, 3};
  bed.begin();
  bed.kill(2);
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  bed.run_for(1s);
  // Shorter than it takes the engine to notice: nobody sees another view.
  bed.group.weather.token = 10s;
  bed.group.part(id(0), id(2));
  bed.restart(2);
  bed.run_for(4s);
  for (std::size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    CHECK(bed.lives[i]->replica->state() == Replica::State::minority);
    // It has not forgotten where it belongs.
    CHECK(bed.lives[i]->replica->reason().find("belongs to a cluster") == std::string::npos);
  }
  bed.group.join(id(0), id(2));
  CHECK(bed.run_until([&] { return bed.all_formed(); }, 5s));
  CHECK(bed.broken.empty());
}

TEST_CASE("replica: a node that lost its disk does not count until it has stored again") {
  Bed bed{7, 3};
  bed.begin();
  bed.power_off(0);
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  CHECK(bed.change(1, add_volume("made_by_two")));
  bed.power_off(1);
  bed.power_off(2);
  // Had node 2 stored nothing, node 1's older word would be a majority with an empty disk.
  bed.disks[1] = {};
  bed.boot(0);
  bed.boot(1);
  bed.run_for(8s);
  CHECK(!bed.formed(0));
  CHECK(!bed.formed(1));
  bed.boot(2);
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  CHECK(bed.lives[0]->replica->configuration()->volumes.count("made_by_two") == 1);
}

TEST_CASE("replica: a minority goes on by force, and the others join it, not the other way round") {
  Bed bed{8, 3};
  bed.begin();
  bed.group.part(id(0), id(1));
  bed.group.part(id(0), id(2));
  REQUIRE(bed.run_until([&] { return !bed.formed(0) && bed.settled(1); }));
  bed.run_for(3s);
  CHECK(bed.change(1, add_volume("of_the_majority")));
  REQUIRE(bed.force(0));
  CHECK(bed.change(0, add_volume("forced")));
  bed.group.join_all();
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  const auto& now = *bed.lives[2]->replica->configuration();
  CHECK(now.tag.forced == 1);
  CHECK(now.volumes.count("forced") == 1);
  CHECK(now.volumes.count("of_the_majority") == 0);
}

TEST_CASE("replica: those told to prevent a quorum form none without the one that was forced") {
  for (bool prevent : {false, true}) {
    CAPTURE(prevent);
    Bed bed{28, 3};
    bed.begin();
    for (std::size_t node : {1, 2}) bed.power_off(node);
    REQUIRE(bed.run_until([&] { return !bed.formed(0); }));
    REQUIRE(
        bed.run_until([&] { return bed.lives[0]->replica->state() == Replica::State::minority; }));
    REQUIRE(bed.force(0));
    CHECK(bed.change(0, add_volume("golden")));
    // They see only each other.
    bed.power_off(0);
    for (std::size_t node : {1, 2}) {
      bed.disks[node].prevents = prevent;
      bed.boot(node);
    }
    bed.run_for(20s);
    CHECK(bed.formed(1) == !prevent);
    CHECK(bed.formed(2) == !prevent);
    if (prevent) {
      CHECK(bed.lives[1]->replica->reason().find("prevent") != std::string::npos);
      CHECK(!bed.group.votes(id(1)));
      // Nor with another life.
      bed.power_off(1);
      bed.boot(1);
      bed.run_for(20s);
      CHECK(!bed.formed(1));
      CHECK(!bed.formed(2));
    }
    bed.boot(0);
    REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
    for (std::size_t node : {0, 1, 2}) {
      CHECK(bed.now(node).volumes.count("golden") == 1);
      CHECK(bed.run_until(
          [&] { return !bed.disks[node].prevents && !bed.lives[0]->replica->prevents(id(node)); }));
    }
    // They count as ever.
    bed.power_off(0);
    CHECK(bed.run_until([&] { return bed.settled(1) && bed.settled(2); }));
    CHECK(bed.change(2, add_volume("later")));
    CHECK(bed.broken.empty());
  }
}

TEST_CASE("replica: a node is told to prevent a quorum while it runs, and told otherwise") {
  Bed bed{29, 3};
  bed.begin();
  auto refused = bed.prevent(1, true);
  CHECK(refused.error() == Errc::refused);
  CHECK(!bed.disks[1].prevents);
  for (std::size_t here : {0, 1}) bed.group.part(id(here), id(2));
  bed.group.part(id(0), id(1));
  REQUIRE(bed.run_until([&] { return !bed.formed(0) && !bed.formed(1) && !bed.formed(2); }));
  bed.run_for(3s);
  for (std::size_t node : {1, 2}) {
    CHECK(bed.prevent(node, true));
    CHECK(bed.disks[node].prevents);
  }
  // All three are here, and one alone counts.
  bed.group.join_all();
  bed.run_for(20s);
  for (std::size_t node : {0, 1, 2}) CHECK(!bed.formed(node));
  CHECK(bed.lives[0]->replica->reason() ==
        "the nodes 1,2,3 are no majority; told to prevent a quorum: 2,3");
  CHECK(bed.force(1).error() == Errc::refused);
  CHECK(bed.prevent(1, false));
  CHECK(!bed.disks[1].prevents);
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  CHECK(bed.run_until([&] { return !bed.disks[2].prevents; }));
  CHECK(bed.broken.empty());
}

TEST_CASE("replica: one told to prevent a quorum joins those who have less than it, too") {
  // Its own copy is of an attempt that came to nothing: nobody else has seen it.
  Bed bed{30, 3};
  bed.begin();
  for (std::size_t node : {0, 1, 2}) bed.power_off(node);
  auto& own = bed.disks[2];
  own.configuration->tag.epoch += 640;
  own.configuration->volumes.try_emplace("own");
  own.prevents = true;
  for (std::size_t node : {0, 1, 2}) bed.boot(node);
  REQUIRE(bed.run_until([&] { return bed.all_formed() && !bed.disks[2].prevents; }));
  CHECK(bed.now(2).volumes.count("own") == 0);
  CHECK(*bed.disks[2].configuration == bed.now(0));
  CHECK(bed.broken.empty());
}

TEST_CASE("replica: no cluster is founded beside one who was told to prevent a quorum") {
  Bed bed{31, 3};
  bed.begin();
  for (std::size_t node : {0, 1, 2}) bed.power_off(node);
  bed.disks[0] = {};
  bed.disks[1].prevents = true;
  for (std::size_t node : {0, 1}) bed.boot(node);
  bed.run_for(5s);
  Expected<void> founded;
  bed.lives[0]->loop.enter([&] { founded = bed.lives[0]->replica->found(Bed::first(3)); });
  CHECK(founded.error() == Errc::refused);
}

TEST_CASE(
    "replica: told to prevent a quorum that is being formed, a node does, or says it is too late") {
  int prevented = 0, late = 0;
  for (int step = 0; step < 120; ++step) {
    CAPTURE(step);
    Bed bed{static_cast<std::uint64_t>(100 + step % 4), 3};
    bed.begin();
    for (std::size_t node : {0, 1, 2}) bed.power_off(node);
    for (std::size_t node : {0, 1}) bed.boot(node);
    REQUIRE(
        bed.run_until([&] { return bed.lives[1]->replica->state() == Replica::State::forming; }));
    bed.run_for(std::chrono::microseconds{500 * step});
    if (bed.formed(1)) continue;
    std::optional<Expected<void>> told;
    bed.begin_to_prevent(1, true, told);
    REQUIRE(bed.run_until([&] { return told.has_value(); }));
    if (*told) {
      ++prevented;
      // From then on: neither what is on its way, nor what it had promised.
      CHECK(!bed.run_until([&] { return bed.formed(0) || bed.formed(1); }, 10s));
      CHECK(bed.disks[1].prevents);
      CHECK(bed.prevent(1, false));
    } else {
      ++late;
      CHECK(told->error() == Errc::refused);
    }
    CHECK(bed.run_until([&] { return bed.all_formed() && !bed.disks[1].prevents; }));
    CHECK(bed.broken.empty());
  }
  CHECK(prevented > 0);
  CHECK(late > 0);
}

TEST_CASE("replica: a node that has nothing is in nobody's way, whatever it was told before") {
  for (std::size_t told : {0, 1}) {
    CAPTURE(told);
    Bed bed{32, 2};
    bed.disks[told].prevents = true;
    for (std::size_t node : {0, 1}) bed.boot(node);
    bed.run_for(5s);
    Expected<void> founded;
    bed.lives[0]->loop.enter([&] { founded = bed.lives[0]->replica->found(Bed::first(2)); });
    CHECK(founded);
    CHECK(bed.run_until([&] { return bed.all_formed() && !bed.disks[told].prevents; }));
  }
}

/// Random cuts, deaths and changes. What was answered as made is there in the end, and no tag has
/// two values: two sides that both go on would make both untrue.
struct FallingApart {
  std::uint64_t made = 0, lives = 0;
  std::uint64_t prevented = 0;  ///< So often a node that was told so had joined, and counted again.
  std::string wrong;
  bool stuck = false;  ///< In the end they do not form one cluster.
};

FallingApart fall_apart(std::uint64_t seed, Group::Forgery forgery = {}, bool preventing = false) {
  FallingApart result;
  std::size_t n = 2 + seed % 4;
  Bed bed{seed, n};
  bed.begin();
  bed.group.forgery = forgery;
  auto& dice = bed.world.random();
  std::vector<std::unique_ptr<std::pair<std::string, std::optional<Expected<void>>>>> asked;
  std::deque<std::optional<Expected<void>>> told;
  std::vector<bool> prevented(n);
  for (int step = 0; step < 40; ++step) {
    auto node = dice.below(n);
    switch (dice.below(7)) {
      case 0: bed.group.part(id(node), id(dice.below(n))); break;
      case 1:
      case 2: bed.group.join_all(); break;
      case 3:
        if (bed.lives[node]) {
          if (dice.chance(1, 2))
            bed.kill(node);
          else
            bed.power_off(node);
        }
        break;
      case 4:
        for (std::size_t i = 0; i < n; ++i)
          if (!bed.lives[i] && dice.chance(2, 3)) {
            if (preventing && dice.chance(1, 3)) bed.disks[i].prevents = true;
            bed.boot(i), ++result.lives;
          }
        break;
      case 5:
        if (bed.lives[node] && dice.chance(1, 3))
          bed.lives[node]->loop.freeze(bed.world.now() + bed.world.between(100ms, 5s));
        break;
      default:
        if (bed.lives[node]) {
          auto name = fmt::format("v{}", asked.size());
          asked.push_back(std::make_unique<std::pair<std::string, std::optional<Expected<void>>>>(
              name, std::nullopt));
          auto& life = *bed.lives[node];
          life.loop.enter([&] {
            life.tasks.spawn(Bed::ask(*life.replica, add_volume(name), 4s, asked.back()->second));
          });
        }
    }
    if (preventing && bed.lives[node] && dice.chance(1, 6))
      bed.begin_to_prevent(node, dice.chance(1, 2), told.emplace_back());
    bed.run_for(bed.world.between(1ms, 3s));
    for (std::size_t i = 0; i < n; ++i) {
      if (prevented[i] && !bed.disks[i].prevents && bed.formed(i)) ++result.prevented;
      prevented[i] = bed.disks[i].prevents;
    }
  }
  bed.group.join_all();
  for (std::size_t i = 0; i < n; ++i)
    if (!bed.lives[i]) bed.boot(i);
  for (std::size_t i = 0; preventing && i < n; ++i)
    bed.begin_to_prevent(i, false, told.emplace_back());
  if (!bed.run_until([&] { return bed.all_formed(); }, 60s)) {
    result.stuck = true;
    result.wrong = bed.broken;
    return result;
  }
  const auto& now = *bed.lives[0]->replica->configuration();
  for (const auto& one : asked) {
    if (!one->second || !*one->second) continue;
    ++result.made;
    if (now.volumes.count(one->first) == 0) result.wrong += one->first + " was made, and is gone; ";
  }
  result.wrong += bed.broken;
  return result;
}

/// The first of `most` seeds in which something is wrong, in words; or nothing.
std::string first_wrong(Group::Forgery forgery, std::uint64_t most) {
  for (std::uint64_t seed = 100; seed < 100 + most; ++seed)
    if (auto fate = fall_apart(seed, forgery); !fate.wrong.empty())
      return fmt::format("{} of {}: {}", seed, most, fate.wrong);
  return "";
}

TEST_CASE("replica: whatever falls apart, what was made stays made") {
  std::uint64_t made = 0, lives = 0;
  for (std::uint64_t seed = 100; seed < 140; ++seed) {
    CAPTURE(seed);
    auto fate = fall_apart(seed);
    CHECK(fate.wrong == "");
    CHECK(!fate.stuck);
    made += fate.made;
    lives += fate.lives;
  }
  MESSAGE(made << " changes were made, " << lives << " lives began");
  CHECK(made > 100);
}

TEST_CASE("replica: nor is it undone by nodes that are told to prevent a quorum, at any time") {
  std::uint64_t made = 0, prevented = 0;
  for (std::uint64_t seed = 500; seed < 620; ++seed) {
    CAPTURE(seed);
    auto fate = fall_apart(seed, {}, true);
    CHECK(fate.wrong == "");
    CHECK(!fate.stuck);
    made += fate.made;
    prevented += fate.prevented;
  }
  MESSAGE(made << " changes were made, " << prevented << " times one that was told so joined");
  CHECK(made > 200);
  CHECK(prevented > 25);
}

TEST_CASE("replica: a member that is counted for others, too, is found out") {
  auto wrong = first_wrong({.speak_for_absent = true}, 40);
  MESSAGE(wrong);
  CHECK(wrong != "");
}

TEST_CASE("replica: votes that change without a majority of the former ones are found out") {
  for (bool alone : {false, true}) {
    CAPTURE(alone);
    Bed bed{9, 5};
    bed.begin();
    bed.group.forgery.change_votes_alone = alone;
    for (std::size_t here : {0, 1, 2})
      for (std::size_t there : {3, 4}) bed.group.part(id(here), id(there));
    REQUIRE(bed.run_until([&] { return !bed.formed(0); }));
    REQUIRE(bed.run_until([&] { return bed.formed(0) && bed.formed(1) && bed.formed(2); }));
    // Three of five go on. Before the third has stored that only these have votes, it hangs.
    bed.lives[2]->loop.freeze(bed.world.now() + 60s);
    bool made(bed.change(0, add_volume("made_by_two"), 5s));
    CHECK(made == alone);
    bed.power_off(0);
    bed.power_off(1);
    bed.power_off(2);
    bed.group.join_all();
    bed.boot(2);
    // By the votes they know these are a majority, and so one of them knows what was made.
    REQUIRE(bed.run_until([&] { return bed.formed(2) && bed.formed(3); }));
    bool gone = bed.lives[2]->replica->configuration()->volumes.count("made_by_two") == 0;
    CHECK((made && gone) == alone);
  }
}

TEST_CASE("replica: members who do not heed that a configuration was forced are found out") {
  for (bool heedless : {false, true}) {
    CAPTURE(heedless);
    Bed bed{8, 3};
    bed.begin();
    bed.group.part(id(0), id(1));
    bed.group.part(id(0), id(2));
    REQUIRE(bed.run_until([&] { return !bed.formed(0) && bed.settled(1); }));
    bed.run_for(3s);
    REQUIRE(bed.force(0));
    CHECK(bed.change(0, add_volume("forced")));
    // The others form anew meanwhile, and have the higher epoch.
    for (int again = 0; again < 3; ++again) {
      bed.kill(2);
      bed.run_for(3s);
      bed.boot(2);
      REQUIRE(bed.run_until([&] { return bed.settled(1) && bed.settled(2); }));
    }
    bed.group.forgery.forget_force = heedless;
    bed.group.join_all();
    bed.run_for(20s);
    REQUIRE(bed.formed(1));
    bool lost = bed.lives[1]->replica->configuration()->volumes.count("forced") == 0;
    CHECK(lost == heedless);
  }
}

TEST_CASE("replica: a cluster that goes on is forced, too, and nothing that was made is lost") {
  Bed bed{27, 3};
  bed.begin();
  REQUIRE(bed.change(1, add_volume("made")));
  for (std::uint64_t often = 1; often <= 2; ++often) {
    REQUIRE(bed.force(2));
    REQUIRE(bed.run_until([&] { return bed.all_formed() && bed.now(0).tag.forced == often; }));
    CHECK(bed.now(0).ballot.now.total() == 3);
    CHECK(bed.now(0).volumes.count("made") == 1);
  }
  CHECK(bed.change(0, add_volume("later")));
  // One that was away meanwhile joins it.
  bed.power_off(1);
  REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
  REQUIRE(bed.force(0));
  bed.boot(1);
  REQUIRE(bed.run_until([&] { return bed.all_formed() && bed.now(1).tag.forced == 3; }));
  CHECK(bed.broken.empty());
}
