#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/stage.h"

// What fences and leases are for: who was left behind does what he still can, and nobody sees
// anything of it. That it would be seen is shown, of most, where they are broken; what the last is
// for, in simulation_test.cc and in the one before it.

using namespace csv;
using namespace csv::sim;
using namespace csv::sim::stage;
using namespace std::chrono_literals;

namespace {

bool sent_by(const iscsi::RamCommand& command, std::size_t node) {
  return command.initiator.find(Cluster::initiator(node)) != std::string_view::npos;
}

}  // namespace

TEST_CASE("late: what a killed mount had under way does not land on what was written since") {
  auto with = three_nodes(false);
  auto geometry = with.disk.geometry;
  SUBCASE("a full target") {}
  SUBCASE("tgt") { with.disk = iscsi::RamDiskOptions::like_tgt(); }
  SUBCASE("LIO") { with.disk = iscsi::RamDiskOptions::like_lio(); }
  // Which is found out, whatever the target.
  SUBCASE("a full target whose fence stops nobody") { with.broken.unfenced = true; }
  SUBCASE("tgt whose fence stops nobody") {
    with.disk = iscsi::RamDiskOptions::like_tgt();
    with.broken.unfenced = true;
  }
  SUBCASE("LIO whose fence stops nobody") {
    with.disk = iscsi::RamDiskOptions::like_lio();
    with.broken.unfenced = true;
  }
  with.disk.geometry = geometry;
  bool unfenced = with.broken.unfenced;
  Stage stage{std::move(with)};
  stage.writes(1, 2);
  bool inside = false;
  stage.cluster.on_command = [&](const iscsi::RamCommand& command, iscsi::RamFate& fate) {
    if (inside || command.kind != iscsi::RamCommand::Kind::write || command.length != kLength ||
        command.initiator.find("node2") == std::string_view::npos)
      return;
    inside = true;
    fate.to_target = {};
    fate.inside = 60s;
  };
  auto never = nothing_yet<Expected<std::uint32_t>>();
  stage.begin(1, write(stage.mount(1), stage.handles[1], 3, never));
  REQUIRE(stage.until(10s, [&] { return inside; }));
  stage.pass(10ms);
  stage.cluster.kill_mount(1);
  CHECK_FALSE(never->has_value());
  stage.writes(0, 4);
  CHECK(stage.shown(2, {2, 3, 4}) == 4);
  stage.pass(90s);
  CHECK(stage.shown(2, {2, 3, 4}) == (unfenced ? 3 : 4));
}

TEST_CASE(
    "late: an UNMAP under way when its coordinator is killed takes nothing that was written "
    "since") {
  auto with = three_nodes(false);
  auto geometry = with.disk.geometry;
  bool taken = false;
  SUBCASE("a full target") {}
  SUBCASE("LIO") { with.disk = iscsi::RamDiskOptions::like_lio(); }
  SUBCASE("whose fence stops nobody, which is found out") { with.broken.unfenced = taken = true; }
  SUBCASE("a coordinator that did not wait for its end, which is found out") {
    with.broken.unmaps_not_awaited = taken = true;
  }
  with.disk.geometry = geometry;
  Stage stage{std::move(with)};
  int unmaps = 0;
  stage.cluster.on_command = [&](const iscsi::RamCommand& command, iscsi::RamFate& fate) {
    // The content's, not what was granted beyond its end.
    if (command.kind != iscsi::RamCommand::Kind::unmap || command.length != kLength) return;
    if (++unmaps > 1) return;
    fate.to_target = {};
    fate.inside = 60s;
  };
  auto changed = nothing_yet<Expected<wire::Attr>>();
  REQUIRE(stage.hears(0, changed, cut(stage.mount(0), stage.file, changed)));
  REQUIRE(stage.until(10s, [&] { return unmaps > 0; }));
  stage.pass(1s);
  stage.cluster.kill_csvd(*stage.cluster.coordinator());
  REQUIRE(stage.until(60s, [&] { return stage.cluster.coordinator().has_value(); }));
  stage.pass(3s);
  // A file of its own is given the first blocks that are free.
  auto made = nothing_yet<Expected<Mount::Opened>>();
  REQUIRE(stage.hears(0, made, create(stage.mount(0), "another", made)));
  auto written = nothing_yet<Expected<std::uint32_t>>();
  REQUIRE(stage.hears(0, written, write(stage.mount(0), (**made)->handle, 2, written)));
  auto shows = [&] {
    auto got = nothing_yet<Expected<Stamp>>();
    REQUIRE(stage.hears(0, got, read(stage.mount(0), (**made)->handle, {1, 2}, got)));
    return ***got;
  };
  CHECK(shows() == 2);
  stage.pass(90s);
  CHECK(shows() == (taken ? 0 : 2));
}

TEST_CASE("late: who was cut off reads nothing once its lease is over") {
  auto with = three_nodes(true);
  SUBCASE("as it is") {}
  SUBCASE("by its lease alone") { with.broken.unfenced = true; }
  SUBCASE("by the fence alone") { with.broken.mounts_gate_stays_open = true; }
  SUBCASE("by neither, which is found out") {
    with.broken.unfenced = with.broken.mounts_gate_stays_open = true;
  }
  bool stale = with.broken.unfenced && with.broken.mounts_gate_stays_open;
  Stage stage{std::move(with)};
  auto coordinator = *stage.cluster.coordinator();
  std::size_t away = (coordinator + 1) % 3, other = (coordinator + 2) % 3;
  REQUIRE(stage.reads_directly(away));
  stage.cut_off(away);
  auto changed = nothing_yet<Expected<wire::Attr>>();
  REQUIRE(stage.hears(other, changed, cut(stage.mount(other), stage.file, changed)));
  auto again = nothing_yet<Expected<Stamp>>();
  stage.begin(away, read(stage.mount(away), stage.handles[away], {1}, again));
  stage.pass(1s);
  CHECK((again->has_value() && **again) == stale);
}

namespace {

/// What a program sees in a page that it looks at all the time.
struct Looks {
  struct Look {
    Duration began{};
    Stamp shown = 0;
  };
  std::vector<Look> all;
  bool enough = false;
};

Task<void> look(World& world, Csvfs& csvfs, PageCache::File file, std::vector<Stamp> among,
                std::shared_ptr<Looks> looks) {
  constexpr std::size_t kSeen = 512;
  while (!looks->enough) {
    auto began = world.now();
    auto got = co_await csvfs.pages().load(file, 0, kSeen);
    if (!got) co_return;  // its session has ended
    std::vector<std::byte> wanted(kSeen);
    for (auto stamp : among) {
      fill_pattern(wanted, 0, stamp);
      if (*got == wanted) looks->all.push_back({began, stamp});
    }
    co_await sleep(*csvfs.process().loop, 1ms);
  }
}

}  // namespace

TEST_CASE("late: who was cut off sees nothing in what it has mapped once its lease is over") {
  auto with = three_nodes(true);
  SUBCASE("as it is") {}
  SUBCASE("if the lease never ends, which is found out") {
    with.broken.mounts_gate_stays_open = true;
  }
  bool stale = with.broken.mounts_gate_stays_open;
  Stage stage{std::move(with)};
  auto coordinator = *stage.cluster.coordinator();
  std::size_t away = (coordinator + 1) % 3, other = (coordinator + 2) % 3;
  auto looks = std::make_shared<Looks>();
  PageCache::File file{stage.file, stage.mount(away).state().session, stage.handles[away]};
  stage.begin(away, look(stage.world, *stage.cluster.mount(away), file, {1, 4}, looks));
  REQUIRE(stage.until(10s, [&] { return looks->all.size() > 20; }));
  stage.cut_off(away);
  auto cut_off_at = stage.world.now();
  stage.writes(other, 4);
  auto answered = stage.world.now();
  stage.pass(2s);
  looks->enough = true;
  // It goes on looking while it has its lease.
  auto between = [&](Duration from, Duration to) {
    return std::any_of(looks->all.begin(), looks->all.end(), [&](const Looks::Look& each) {
      return each.began > from && each.began < to && each.shown == 1;
    });
  };
  CHECK(between(cut_off_at + 1s, cut_off_at + 2s));
  CHECK(between(answered, answered + 2s) == stale);
}

TEST_CASE("late: no page is handed over that would not be gone before the lease is over") {
  Stage stage{three_nodes(true)};
  auto coordinator = *stage.cluster.coordinator();
  std::size_t away = (coordinator + 1) % 3;
  auto& csvfs = *stage.cluster.mount(away);
  // As long as it may take.
  csvfs.pages().drop_takes = 300ms;
  auto looks = std::make_shared<Looks>();
  PageCache::File file{stage.file, stage.mount(away).state().session, stage.handles[away]};
  stage.begin(away, look(stage.world, csvfs, file, {1}, looks));
  REQUIRE(stage.until(10s, [&] { return looks->all.size() > 20; }));
  stage.cut_off(away);
  stage.pass(1s);
  auto& csvd = *stage.cluster.csvd(away);
  auto over = csvd.process().loop->in_world(csvd.membership()->open_until());
  REQUIRE(over > stage.world.now() + 500ms);
  stage.pass(over - stage.world.now() + 2s);
  looks->enough = true;
  auto seen_after = [&](Duration when) {
    return std::any_of(looks->all.begin(), looks->all.end(),
                       [&](const Looks::Look& each) { return each.began > when; });
  };
  CHECK(seen_after(over - 1s));
  CHECK_FALSE(seen_after(over));
}

namespace {

std::vector<Key> keys_of(Cluster& cluster, std::size_t node) {
  auto keys = cluster.volume().disk->registered_keys();
  std::erase_if(keys, [node](Key key) { return parts_of(key).node != Cluster::id(node); });
  return keys;
}

}  // namespace

// What its node's kernel had kept for a path that was lost goes out on the same nexus, behind the
// REGISTER that its mount had sent: a nexus is all that a reservation looks at.
TEST_CASE("late: a REGISTER that arrives after its fence opens the LUN to nobody") {
  auto with = three_nodes(false);
  auto geometry = with.disk.geometry;
  bool stays = false;
  SUBCASE("a full target") {}
  SUBCASE("LIO") { with.disk = iscsi::RamDiskOptions::like_lio(); }
  SUBCASE("a coordinator whose sweep is in vain, which is found out") { stays = true; }
  with.disk.geometry = geometry;
  Stage stage{std::move(with)};
  auto& disk = *stage.cluster.volume().disk;
  auto coordinator = *stage.cluster.coordinator();
  std::size_t away = (coordinator + 1) % 3, other = (coordinator + 2) % 3;
  std::uint64_t content = 0;
  bool sent = false, arrived = false;
  iscsi::LunOptions login;
  stage.cluster.on_command = [&](const iscsi::RamCommand& command, iscsi::RamFate& fate) {
    using Kind = iscsi::RamCommand::Kind;
    if (command.kind == Kind::write && command.length == kLength && sent_by(command, away))
      content = command.offset;
    bool keys = command.kind == Kind::reservation;
    if (keys && sent_by(command, away) && !std::exchange(sent, true)) {
      fate.to_target = 1s;
      fate.lands_late = true;
      fate.late_by = 20s;
    }
    fate.lies = stays && arrived && keys && sent_by(command, coordinator);
  };
  stage.writes(away, 2);
  REQUIRE(content != 0);
  disk.set_reachable(Cluster::initiator(away), false);
  stage.pass(10ms);
  disk.set_reachable(Cluster::initiator(away), true);
  REQUIRE(stage.until(10s, [&] { return sent; }));
  stage.pass(10ms);
  stage.cluster.kill_mount(away);
  stage.writes(other, 4);
  REQUIRE(stage.until(18s, [&] { return keys_of(stage.cluster, away).empty(); }));
  REQUIRE(stage.until(30s, [&] { return !keys_of(stage.cluster, away).empty(); }));
  arrived = true;
  stage.pass(3s);
  CHECK(keys_of(stage.cluster, away).empty() == !stays);
  login.initiator = Cluster::initiator(away);
  login.isid_seed = Cluster::kMountIsid;
  auto kernel = disk.connect(stage.cluster.disk_loop, login);
  REQUIRE(kernel);
  Buffer data{kLength};
  fill_pattern(data.span(), 0, 3);
  std::optional<Expected<void>> written;
  (*kernel)->write(content, data.span(), {},
                   [&written](Expected<void> result) { written = std::move(result); });
  REQUIRE(stage.until(10s, [&] { return written.has_value(); }));
  CHECK(bool(*written) == stays);
  CHECK(stage.shown(other, {2, 3, 4}) == (stays ? 3 : 4));
}

TEST_CASE("late: a coordinator that was cut off answers nothing once its lease is over") {
  auto with = three_nodes(true);
  // Its own mount would leave it with the lease of its node.
  with.broken.mounts_gate_stays_open = true;
  SUBCASE("as it is") {}
  SUBCASE("by its lease alone") { with.broken.unfenced = true; }
  SUBCASE("by the target's proof alone") { with.broken.csvds_gate_stays_open = true; }
  SUBCASE("by neither, which is found out") {
    with.broken.unfenced = with.broken.csvds_gate_stays_open = true;
  }
  bool speaks = with.broken.unfenced && with.broken.csvds_gate_stays_open;
  Stage stage{std::move(with)};
  std::string two_sides;
  // What else one sees of a target that fences nobody is not the question here.
  stage.cluster.on_violation = [&](const std::string& what) {
    if (two_sides.empty() && what.starts_with("no two sides")) two_sides = what;
  };
  auto former = *stage.cluster.coordinator();
  std::size_t other = (former + 1) % 3;
  stage.cut_off(former);
  // Nor does it see from a list of keys that its own is gone.
  stage.cluster.on_command = [&](const iscsi::RamCommand& command, iscsi::RamFate& fate) {
    if (command.kind == iscsi::RamCommand::Kind::keys && sent_by(command, former))
      fate.inside = 20s;
  };
  REQUIRE(stage.until(30s, [&] {
    auto now = stage.cluster.coordinator();
    return now && *now != former;
  }));
  auto cut_short = nothing_yet<Expected<wire::Attr>>();
  REQUIRE(stage.hears(other, cut_short, cut(stage.mount(other), stage.file, cut_short)));
  auto found = nothing_yet<Expected<wire::Attr>>();
  stage.begin(former, find(stage.mount(former), "nobody_has_asked_before", found));
  stage.pass(4s);
  CHECK(found->has_value() == speaks);
  auto wrong = two_sides.find("speaks as coordinator of volume1 of epoch");
  CHECK((wrong != std::string::npos) == speaks);
  CHECK((two_sides != "") == speaks);
}

TEST_CASE(
    "late: a coordinator that was left behind, and asleep meanwhile, changes nothing, and answers "
    "nothing") {
  Stage stage{three_nodes(true)};
  auto former = *stage.cluster.coordinator();
  stage.cut_off(former);
  auto awake = stage.world.now() + 4800ms;  // before its own mount leaves it
  stage.cluster.csvd(former)->process().loop->freeze(awake);
  auto made = nothing_yet<Expected<Mount::Opened>>();
  stage.begin(former, create(stage.mount(former), "of_the_former", made));
  REQUIRE(stage.until(4800ms, [&] {
    for (std::size_t node = 0; node < 3; ++node) {
      auto* csvd = stage.cluster.csvd(node);
      if (node != former && csvd->service() != nullptr &&
          csvd->state() == service::Coordination::State::serving)
        return true;
    }
    return false;
  }));
  stage.pass(awake + 2s - stage.world.now());
  bool answered = made->has_value() && **made;
  CHECK_FALSE(answered);
  CHECK(stage.violation == "");
  auto found = nothing_yet<Expected<wire::Attr>>();
  std::size_t other = (former + 1) % 3;
  stage.begin(other, find(stage.mount(other), "of_the_former", found));
  REQUIRE(stage.until(30s, [&] { return found->has_value(); }));
  REQUIRE_FALSE(**found);
  CHECK((**found).error() == std::errc::no_such_file_or_directory);
}
