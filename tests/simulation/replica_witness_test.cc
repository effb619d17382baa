// Replicas with a witness that is cut off, slow, or reached by one node only.
#include "csvfs/base/random.h"
#include "tests/simulation/replica_bed.h"

using namespace csv;
using namespace csv::cluster;
using namespace csv::sim;

namespace {

constexpr Duration kOverAfter = 3100ms;
constexpr Duration kDeadline = 5s;

/// What all nodes' ways to a disk witness lead to.
struct Place {
  Witness::Memory memory = {};
  std::uint64_t owner = 0;  ///< The object that holds it.
  NodeId holder{};
  std::uint64_t moves = 0;
  std::uint64_t next_object = 1;
  std::set<NodeId> cut = {};  ///< Who does not reach it.
  Duration store_takes = 4ms;
  std::vector<NodeId> asked = {};  ///< Who has tried to take it.
};

/// Keeps Witness's promises as DiskWitness does, its calls one at a time.
class OfDisk final : public Witness {
 public:
  OfDisk(Place& place, SimLoop& loop, NodeId node)
      : place_{place}, loop_{loop}, node_{node}, self_{place.next_object++}, free_{loop} {}

  Task<Expected<Memory>> read() override {
    Turn turn{this};
    while (!turn.mine()) co_await free_.wait();
    bool there = co_await reach(2ms);
    if (!there) co_return gone();
    see();
    co_return place_.memory;
  }
  Task<Expected<void>> store(Memory memory) override {
    Turn turn{this};
    while (!turn.mine()) co_await free_.wait();
    if (!held_) co_return Error{Errc::refused, "not held"};
    bool there = co_await reach(place_.store_takes);
    if (!there) co_return gone();
    if (place_.owner != self_) co_return taken();
    memory.tag = std::max(memory.tag, memory.promised);
    if (place_.memory.tag > memory.tag ||
        (place_.memory.tag == memory.tag && place_.memory.configuration != memory.configuration))
      co_return Error{Errc::superseded, "a newer one is stored"};
    place_.memory = std::move(memory);
    co_return Expected<void>{};
  }
  Task<Expected<Hold>> confirm(std::uint64_t) override {
    Turn turn{this};
    while (!turn.mine()) co_await free_.wait();
    auto proven = confirm_now();
    co_return co_await proven;
  }
  Task<Expected<Hold>> challenge(std::uint64_t) override {
    Turn turn{this};
    while (!turn.mine()) co_await free_.wait();
    place_.asked.push_back(node_);
    if (held_) {
      auto proven = confirm_now();
      auto said = co_await proven;
      if (said) co_return said;
    }
    bool there = co_await reach(2ms);
    if (!there) co_return gone();
    see();
    auto moves = place_.moves;
    auto since = loop_.now();
    while (place_.owner != 0 && loop_.now() - since <= kOverAfter) {
      co_await sleep(loop_, 250ms);
      there = co_await reach(2ms);
      if (!there) co_return gone();
      see();
      if (place_.moves != moves) co_return Error{Errc::refused, "it is held, and moves"};
    }
    auto sent = loop_.now();
    there = co_await reach(2ms);
    if (!there) co_return gone();
    if (place_.moves != moves) co_return Error{Errc::refused, "another was faster"};
    place_.owner = self_;
    place_.holder = node_;
    ++place_.moves;
    held_ = true;
    see();
    co_return Hold{sent};
  }
  [[nodiscard]] std::optional<NodeId> holder() const override { return holder_; }

 private:
  /// Of calls, one after the other.
  struct Turn {
    explicit Turn(OfDisk* its) : witness{its} {}
    ~Turn() {
      if (!has) return;
      witness->busy_ = false;
      witness->free_.notify();
    }
    bool mine() {
      if (has || witness->busy_) return has;
      return has = witness->busy_ = true;
    }
    OfDisk* witness;
    bool has = false;
  };
  Task<Expected<Hold>> confirm_now() {
    if (!held_) co_return Error{Errc::superseded, "not taken by this object"};
    auto sent = loop_.now();
    bool there = co_await reach(2ms);
    if (!there) co_return gone();
    if (place_.owner != self_) co_return taken();
    ++place_.moves;
    see();
    co_return Hold{sent};
  }
  Task<bool> reach(Duration takes) {
    if (place_.cut.count(node_) == 0) co_await sleep(loop_, takes);
    if (place_.cut.count(node_) == 0) co_return true;
    co_await sleep(loop_, kDeadline);
    co_return false;
  }
  static Error gone() { return {std::errc::timed_out, "the witness does not answer"}; }
  Error taken() {
    held_ = false;
    return {Errc::superseded, "somebody else has taken it"};
  }
  void see() {
    if (place_.owner != 0) holder_ = place_.holder;
  }

  Place& place_;
  SimLoop& loop_;
  NodeId node_;
  std::uint64_t self_;
  Signal free_;
  bool busy_ = false, held_ = false;
  std::optional<NodeId> holder_;
};

Replica::Change with_witness(bool only = false) {
  return [only](Configuration& configuration) -> Expected<void> {
    configuration.witness = {WitnessKind::disk, "lun", only};
    return {};
  };
}

struct Beside : Bed {
  Beside(std::uint64_t seed, std::size_t n, bool only = false) : Bed{seed, n} {
    make_witness = [this](SimLoop& loop, Replica&, std::size_t node) {
      return std::make_unique<OfDisk>(place, loop, id(node));
    };
    relay();
    begin();
    REQUIRE(change(0, with_witness(only)));
    bool needed = n % 2 == 0 || only;
    REQUIRE(run_until([&] { return all_formed() && (now(0).ballot.now.witness > 0) == needed; }));
    run_for(3s);
    REQUIRE(all_formed());
  }
  ~Beside() {
    for (auto& each : lives) each.reset();
  }
  /// As beats do: who holds it tells the others of his side until when.
  void relay() {
    for (auto& one : lives)
      for (std::size_t i = 0; one && i < lives.size(); ++i) {
        auto left = one->replica->held_until() - one->loop.now();
        if (left <= Duration{} || !lives[i] || !one->replica->view()) continue;
        if (!one->replica->member(id(i)) || !one->replica->leases()) continue;
        auto& other = *lives[i];
        if (!other.replica->view() || other.replica->view()->ring != one->replica->view()->ring)
          continue;
        other.loop.enter([&] { other.replica->heard_held_until(other.loop.now() + left); });
      }
    world.after(300ms, [this] { relay(); });
  }
  /// Alone, without the others and without the witness.
  void isolate(std::size_t node) {
    for (std::size_t other = 0; other < disks.size(); ++other)
      if (other != node) group.part(id(node), id(other));
    place.cut.insert(id(node));
  }
  void bring_back(std::size_t node) {
    group.join_all();
    place.cut.erase(id(node));
  }
  /// Whether two of the rings would have their votes cast at any moment of `time`.
  bool both_cast(std::size_t one, std::size_t other, Duration time) {
    bool both = false;
    world.run(
        [&] {
          both = both || (group.votes(id(one)) && group.votes(id(other)));
          return both;
        },
        world.now() + time);
    return both;
  }

  Place place;
};

}  // namespace

// ---------------------------------------------------------------------------- Corosync's votes

TEST_CASE("replica witness: who held it and is cut off from all loses his vote in time") {
  for (std::uint64_t seed = 1; seed < 9; ++seed) {
    CAPTURE(seed);
    Beside bed{seed, 2};
    REQUIRE(bed.place.holder == id(0));
    bed.isolate(0);
    bed.run_for(bed.group.weather.token + 200ms);
    // What was proven is worth a while yet, and is what this side goes by.
    CHECK(bed.group.votes(id(0)));
    CHECK(!bed.both_cast(0, 1, 20s));
    CHECK(!bed.group.votes(id(0)));
    CHECK(bed.group.votes(id(1)));
    CHECK(bed.formed(1));
    bed.bring_back(0);
    REQUIRE(bed.run_until([&] { return bed.all_formed(); }));
    CHECK(bed.group.votes(id(0)));
  }
}

TEST_CASE("replica witness: who held it and stands still loses his vote in time") {
  Beside bed{5, 2};
  REQUIRE(bed.place.holder == id(0));
  bed.isolate(0);
  bed.run_for(bed.group.weather.token + 200ms);
  CHECK(bed.group.votes(id(0)));
  bed.lives[0]->loop.freeze(bed.world.now() + 20s);
  CHECK(!bed.both_cast(0, 1, 15s));
  CHECK(bed.group.votes(id(1)));
}

TEST_CASE("replica witness: who was told of a hold and stands still loses his vote in time") {
  Beside bed{6, 4};
  REQUIRE(bed.place.holder == id(0));
  for (std::size_t other : {2u, 3u})
    for (std::size_t held : {0u, 1u}) bed.group.part(id(held), id(other));
  bed.place.cut = {id(0), id(1)};
  bed.run_for(bed.group.weather.token + 200ms);
  CHECK(bed.group.votes(id(1)));
  bed.lives[1]->loop.freeze(bed.world.now() + 20s);
  CHECK(!bed.both_cast(1, 2, 15s));
  CHECK(bed.group.votes(id(2)));
}

TEST_CASE("replica witness: who held it alone and finds it taken loses his vote at once") {
  Beside bed{3, 2};
  bed.isolate(0);
  bed.run_for(bed.group.weather.token + 200ms);
  REQUIRE(bed.run_until([&] { return bed.formed(1); }));
  bed.place.cut.clear();
  CHECK(!bed.both_cast(0, 1, 10s));
  CHECK(bed.group.votes(id(1)));
}

TEST_CASE("replica witness: where it alone decides, all of its side cast their votes") {
  Beside bed{4, 3, true};
  for (std::size_t i = 0; i < 3; ++i) CHECK(bed.group.votes(id(i)));
  bed.power_off(0);
  bed.run_for(bed.group.weather.token + 300ms);
  REQUIRE(bed.run_until([&] { return bed.formed(1) && bed.formed(2); }));
  CHECK(bed.run_until([&] { return bed.group.votes(id(1)) && bed.group.votes(id(2)); }));
}

// ---------------------------------------------------------------------------- what it stores

TEST_CASE("replica witness: it never stores what no node has on its disk") {
  Beside bed{12, 2};
  bed.power_off(1);
  REQUIRE(bed.run_until([&] { return bed.settled(0) && bed.now(0).ballot.now.total() == 1; }));
  bool ahead = false;
  auto look = [&] {
    auto there = decode(bed.place.memory.configuration);
    ahead = ahead || (there && there->tag > bed.disks[0].configuration->tag);
    return ahead;
  };
  std::optional<Expected<void>> made;
  for (int i = 0; i < 20; ++i) {
    auto& life = *bed.lives[0];
    life.loop.enter([&] {
      life.tasks.spawn(Bed::ask(*life.replica, add_volume(fmt::format("v{}", i)), 5s, made));
    });
    bed.world.run(look, bed.world.now() + 500ms);
  }
  CHECK(made);
  CHECK(!ahead);
}

TEST_CASE("replica witness: what it has missed it is given when it answers again") {
  Beside bed{13, 3};
  bed.place.cut = {id(0), id(1), id(2)};
  bed.run_for(10s);
  REQUIRE(bed.change(0, add_volume("missed")));
  bed.place.cut.clear();
  CHECK(bed.run_until([&] {
    auto there = decode(bed.place.memory.configuration);
    return there && there->volumes.count("missed") == 1;
  }));
}

// ---------------------------------------------------------------------------- forming

TEST_CASE("replica witness: of two nodes one whose disk is full keeps nobody from going on") {
  for (std::size_t full : {0, 1}) {
    Beside bed{14, 2};
    bed.full[full] = true;
    bed.restart(1 - full);
    REQUIRE(bed.run_until([&] { return !bed.formed(0) || !bed.formed(1); }));
    CHECK(bed.run_until([&] { return bed.formed(0) && bed.formed(1); }));
    CHECK(bed.change(1 - full, add_volume("made")));
  }
}

TEST_CASE("replica witness: a hold that runs out while it forms is proven anew") {
  Beside bed{5, 2};
  bed.power_off(1);
  // Slower than a hold lasts, twice; then as ever.
  bed.place.store_takes = 3500ms;
  bed.run_for(9s);
  bed.place.store_takes = 4ms;
  CHECK(bed.run_until([&] { return bed.formed(0); }, 15s));
}

// ---------------------------------------------------------------------------- who asks

TEST_CASE("replica witness: it is had by whoever reaches it, of four when two die at once") {
  Beside bed{6, 4};
  bed.place.cut.insert(id(0));
  bed.power_off(2);
  bed.power_off(3);
  REQUIRE(bed.run_until([&] { return !bed.formed(0) && !bed.formed(1); }));
  REQUIRE(bed.run_until([&] { return bed.formed(0) && bed.formed(1); }));
  CHECK(bed.place.holder == id(1));
  CHECK(bed.change(0, add_volume("made")));
  // And it goes on being had.
  bed.run_for(20s);
  CHECK(bed.formed(0));
  CHECK(bed.lives[1]->replica->held_until() > bed.lives[1]->loop.now());
}

TEST_CASE("replica witness: where it alone decides, one node's lost path stops nobody") {
  Beside bed{7, 3, true};
  bed.place.cut.insert(id(0));
  auto holds = [&](std::size_t node) {
    return bed.lives[node]->replica->held_until() > bed.lives[node]->loop.now();
  };
  REQUIRE(bed.run_until([&] { return bed.place.holder != id(0); }));
  REQUIRE(bed.run_until([&] { return bed.formed(0) && bed.formed(1) && bed.formed(2); }));
  auto keeper = static_cast<std::size_t>(raw(bed.place.holder)) - 1;
  bed.run_for(20s);
  CHECK(holds(keeper));
  CHECK(bed.formed(0));
  CHECK(bed.change(0, add_volume("made")));
  // It forms anew that way, too.
  bed.power_off(keeper == 1 ? 2 : 1);
  CHECK(bed.run_until([&] { return bed.formed(0) && bed.formed(keeper) && holds(keeper); }));
  bed.run_for(10s);
  CHECK(bed.formed(0));
}

TEST_CASE("replica witness: of two nodes the one that reaches it is enough") {
  Beside bed{8, 2};
  bed.place.cut.insert(id(0));
  bed.run_for(30s);
  CHECK(bed.formed(0));
  CHECK(bed.now(0).ballot.now.witness == 1);
  bed.power_off(0);
  CHECK(bed.run_until([&] { return bed.formed(1); }));
}

TEST_CASE("replica witness: until another has it, the vote is that of who may yet reach it") {
  Beside bed{9, 2};
  bed.place.cut = {id(0), id(1)};
  REQUIRE(bed.run_until([&] { return bed.settled(0) && bed.now(0).ballot.now.witness == 0; }));
  CHECK(bed.now(0).ballot.now.nodes.at(id(1)) == 1);
  bed.run_for(30s);
  // Nobody reaches it: that is no reason to change anything.
  auto tag = bed.now(0).tag;
  bed.run_for(30s);
  CHECK(bed.now(0).tag == tag);
  bed.place.cut.clear();
  CHECK(bed.run_until([&] { return bed.settled(0) && bed.now(0).ballot.now.witness == 1; }));
}

TEST_CASE("replica witness: who is to ask it after one that hangs does") {
  Beside bed{10, 4};
  bed.place.cut.insert(id(0));
  bed.power_off(2);
  bed.power_off(3);
  bed.run_for(bed.group.weather.token + 300ms);
  bed.lives[0]->loop.freeze(bed.world.now() + 15s);
  REQUIRE(bed.lives[1]->replica->state() == Replica::State::minority);
  bed.place.asked.clear();
  auto& other = *bed.lives[1];
  other.unheard.insert(id(0));
  other.loop.enter([&] { other.replica->heard(); });
  CHECK(bed.run_until([&] { return !bed.place.asked.empty(); }, 500ms));
}

// ---------------------------------------------------------------------------- former nodes

TEST_CASE("replica witness: who was taken out takes it from nobody") {
  Beside bed{11, 3, true};
  bed.power_off(2);
  REQUIRE(bed.run_until([&] { return bed.settled(0) && bed.settled(1); }));
  REQUIRE(bed.change(0, [](Configuration& next) -> Expected<void> {
    take_out(next, id(2));
    return {};
  }));
  bed.run_for(3s);
  bed.power_off(0);
  bed.power_off(1);
  bed.run_for(5s);
  // By what it knows it is one of them.
  bed.boot(2);
  bool cast = false;
  bed.world.run([&] { return cast = bed.group.votes(id(2)); }, bed.world.now() + 15s);
  CHECK(!cast);
  CHECK(!bed.formed(2));
  CHECK(bed.place.holder != id(2));
  CHECK(bed.lives[2]->replica->state() == Replica::State::minority);
  CHECK(bed.lives[2]->replica->reason().find("taken out") != std::string::npos);
}

TEST_CASE("replica witness: one told to prevent a quorum asks it for nobody") {
  for (bool prevent : {false, true}) {
    CAPTURE(prevent);
    Beside bed{6, 2};
    for (std::size_t node : {0, 1}) bed.power_off(node);
    bed.disks[1].prevents = prevent;
    // It would be the only one who gets it.
    bed.place.cut.insert(id(0));
    for (std::size_t node : {0, 1}) bed.boot(node);
    bed.run_for(40s);
    for (std::size_t node : {0, 1}) CHECK(bed.formed(node) == !prevent);
    bed.place.cut.erase(id(0));
    REQUIRE(bed.run_until([&] { return bed.all_formed() && !bed.disks[1].prevents; }));
    CHECK(bed.broken.empty());
  }
}

TEST_CASE("replica witness: told to prevent a quorum while it takes it, a node leaves it") {
  Beside bed{12, 2};
  for (std::size_t node : {0, 1}) bed.power_off(node);
  bed.place.asked.clear();
  bed.boot(0);
  REQUIRE(bed.run_until([&] { return !bed.place.asked.empty(); }));
  // Its challenge takes longer than this.
  bed.run_for(1s);
  REQUIRE(bed.place.holder == id(0));
  CHECK(bed.prevent(0, true));
  bed.run_for(20s);
  CHECK(!bed.formed(0));
  CHECK(bed.place.asked.size() == 1);
  CHECK(!bed.group.votes(id(0)));
  CHECK(bed.prevent(0, false));
  CHECK(bed.run_until([&] { return bed.all_formed(); }));
  CHECK(bed.broken.empty());
}

/// A node has taken it and is about to form a cluster, which waits for its store.
void take_and_begin(Beside& bed, std::initializer_list<std::size_t> nodes) {
  for (std::size_t node : {0, 1}) bed.power_off(node);
  bed.place.store_takes = 2s;
  for (auto node : nodes) bed.boot(node);
  REQUIRE(bed.run_until([&] { return bed.lives[0]->replica->state() == Replica::State::forming; }));
  bed.run_for(500ms);
  REQUIRE(bed.lives[0]->replica->state() == Replica::State::forming);
}

TEST_CASE("replica witness: told to prevent a quorum while it forms one, a node lets go of it") {
  for (bool other : {false, true}) {
    CAPTURE(other);
    Beside bed{13, 2};
    bed.group.part(id(0), id(1));
    take_and_begin(bed, {0});
    CHECK(bed.prevent(0, true));
    CHECK(bed.lives[0]->replica->state() != Replica::State::forming);
    bed.place.store_takes = 4ms;
    if (other) {
      // It sees no more of the first than that the witness is its or nobody's.
      bed.boot(1);
      CHECK(bed.run_until([&] { return bed.formed(1); }));
      CHECK(bed.place.holder == id(1));
      bed.group.join_all();
    } else {
      bed.run_for(10s);
      CHECK(!bed.formed(0));
      CHECK(bed.prevent(0, false));
    }
    CHECK(bed.run_until([&] { return bed.all_formed() && !bed.disks[0].prevents; }));
    CHECK(bed.broken.empty());
  }
}

TEST_CASE(
    "replica witness: told to prevent a quorum while it forms one, a node leaves it to others") {
  Beside bed{14, 2, true};
  take_and_begin(bed, {0, 1});
  REQUIRE(bed.place.holder == id(0));
  CHECK(bed.prevent(0, true));
  bed.place.store_takes = 4ms;
  // Both are members, and the other one alone may have it now.
  CHECK(bed.run_until([&] { return bed.formed(1); }));
  CHECK(bed.place.holder == id(1));
  CHECK(bed.run_until([&] { return bed.all_formed() && !bed.disks[0].prevents; }));
  CHECK(bed.broken.empty());
}
