#include <doctest/doctest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulation/cluster.h"
#include "tests/simulation/content.h"

// What fences and leases are for: who was left behind does what he still can, and nobody sees
// anything of it. That it would be seen is shown, of the first two, where they are broken.

using namespace csv;
using namespace csv::sim;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kLength = 65536;

/// What a program hears, if it does.
template <typename T>
using Heard = std::shared_ptr<std::optional<T>>;
template <typename T>
Heard<T> nothing_yet() {
  return std::make_shared<std::optional<T>>();
}

Task<void> create(Mount& mount, std::string name, Heard<Expected<Mount::Opened>> heard) {
  wire::Make what;
  what.set_parent(raw(kRootInode));
  what.set_name(std::move(name));
  what.set_mode(0100644);
  auto task = mount.create(Caller{}, std::move(what), {.writes = true});
  *heard = co_await task;
}

Task<void> open(Mount& mount, InodeId inode, Heard<Expected<Mount::Opened>> heard) {
  auto task = mount.open(inode, {.writes = true});
  *heard = co_await task;
}

Task<void> write(Mount& mount, Mount::Handle handle, Stamp stamp,
                 Heard<Expected<std::uint32_t>> heard) {
  Buffer data{kLength};
  fill_pattern(data.span(), 0, stamp);
  auto task = mount.write(handle, 0, data.span(), {});
  *heard = co_await task;
}

/// Which of two writes a whole read shows; 0: neither.
Task<void> read(Mount& mount, Mount::Handle handle, std::vector<Stamp> among,
                Heard<Expected<Stamp>> heard) {
  auto task = mount.read(handle, 0, kLength);
  auto got = co_await task;
  if (!got) {
    heard->emplace(got.error());
    co_return;
  }
  Stamp shown = 0;
  Buffer wanted{kLength};
  for (auto stamp : among) {
    fill_pattern(wanted.span(), 0, stamp);
    if (got->length == kLength &&
        std::equal(wanted.span().begin(), wanted.span().end(),
                   got->buffer.span().begin() + static_cast<std::ptrdiff_t>(got->skip)))
      shown = stamp;
  }
  heard->emplace(shown);
}

Task<void> cut(Mount& mount, InodeId inode, Heard<Expected<wire::Attr>> heard) {
  wire::SetAttr to;
  to.set_inode(raw(inode));
  to.set_size(0);
  auto task = mount.change(std::move(to));
  *heard = co_await task;
}

Task<void> find(Mount& mount, std::string name, Heard<Expected<wire::Attr>> heard) {
  auto task = mount.lookup(kRootInode, std::move(name));
  *heard = co_await task;
}

/// Three nodes with a mount each, and a file that has been written.
class Stage {
 public:
  explicit Stage(ClusterOptions with) : world{4711}, cluster{world, std::move(with)} {
    be_quiet();
    cluster.format();
    for (std::size_t node = 0; node < cluster.size(); ++node) {
      cluster.start_csvd(node);
      cluster.start_mount(node);
    }
    if (!cluster.voting) cluster.govern();
    REQUIRE(until(60s, [&] { return all_direct(); }));
    auto made = nothing_yet<Expected<Mount::Opened>>();
    REQUIRE(hears(0, made, create(mount(0), "image", made)));
    file = InodeId{(**made)->attr.inode()};
    handles.resize(cluster.size());
    handles[0] = (**made)->handle;
    for (std::size_t node = 1; node < cluster.size(); ++node) {
      auto opened = nothing_yet<Expected<Mount::Opened>>();
      REQUIRE(hears(node, opened, open(mount(node), file, opened)));
      handles[node] = (**opened)->handle;
    }
    writes(0, 1);
  }

  Mount& mount(std::size_t node) { return cluster.mount(node)->mount(); }
  bool until(Duration within, Function<bool()> condition) {
    return world.run(std::move(condition), world.now() + within);
  }
  void pass(Duration time) {
    auto end = world.now() + time;
    world.at(end, [] {});
    world.run([] { return false; }, end);
  }
  /// Begins it, as a program of that node.
  void begin(std::size_t node, Task<void> what) {
    auto* csvfs = cluster.mount(node);
    csvfs->process().loop->enter([&] { csvfs->programs().spawn(std::move(what)); });
  }
  template <typename T>
  bool hears(std::size_t node, const Heard<T>& heard, Task<void> what, Duration within = 60s) {
    begin(node, std::move(what));
    return until(within, [&] { return heard->has_value(); }) && **heard;
  }
  void writes(std::size_t node, Stamp stamp) {
    auto written = nothing_yet<Expected<std::uint32_t>>();
    REQUIRE(hears(node, written, write(mount(node), handles[node], stamp, written)));
  }
  Stamp shown(std::size_t node, std::vector<Stamp> among) {
    auto got = nothing_yet<Expected<Stamp>>();
    REQUIRE(hears(node, got, read(mount(node), handles[node], std::move(among), got)));
    return ***got;
  }
  /// After a first read or two.
  bool reads_directly(std::size_t node) {
    for (int i = 0; i < 20 && mount(node).counters().direct_reads == 0; ++i) shown(node, {});
    return mount(node).counters().direct_reads > 0;
  }
  bool all_direct() {
    for (std::size_t node = 0; node < cluster.size(); ++node)
      if (cluster.mount(node) == nullptr || mount(node).state().mode != AccessMode::direct)
        return false;
    return true;
  }
  /// From all others, but not from the LUN.
  void cut_off(std::size_t node) {
    for (std::size_t other = 0; other < cluster.size(); ++other) {
      if (other == node) continue;
      auto a = Cluster::id(node), b = Cluster::id(other);
      cluster.network.part(a, b);
      cluster.network.part(b, a);
      cluster.group.part(a, b);
    }
  }

  World world;
  Cluster cluster;
  InodeId file{};
  std::vector<Mount::Handle> handles;
};

ClusterOptions three_nodes(bool voting) {
  ClusterOptions with;
  with.nodes = 3;
  with.voting = voting;
  with.disk.geometry = {
      .block_size = 512, .block_count = (640ull << 20) / 512, .physical_block_size = 4096};
  return with;
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
  auto found = nothing_yet<Expected<wire::Attr>>();
  std::size_t other = (former + 1) % 3;
  stage.begin(other, find(stage.mount(other), "of_the_former", found));
  REQUIRE(stage.until(30s, [&] { return found->has_value(); }));
  REQUIRE_FALSE(**found);
  CHECK((**found).error() == std::errc::no_such_file_or_directory);
}
