#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/simulation/cluster.h"
#include "tests/simulation/content.h"

// For tests that play a scene by hand: a small cluster with one file, and programs that say what
// they heard.

namespace csv::sim::stage {

using namespace std::chrono_literals;

inline constexpr std::size_t kLength = 65536;

/// What a program hears, if it does.
template <typename T>
using Heard = std::shared_ptr<std::optional<T>>;
template <typename T>
Heard<T> nothing_yet() {
  return std::make_shared<std::optional<T>>();
}

inline Task<void> create(Mount& mount, std::string name, Heard<Expected<Mount::Opened>> heard) {
  wire::Make what;
  what.set_parent(raw(kRootInode));
  what.set_name(std::move(name));
  what.set_mode(0100644);
  auto task = mount.create(Caller{}, std::move(what), {.writes = true});
  *heard = co_await task;
}

inline Task<void> open(Mount& mount, InodeId inode, Heard<Expected<Mount::Opened>> heard) {
  auto task = mount.open(inode, {.writes = true});
  *heard = co_await task;
}

inline Task<void> write(Mount& mount, Mount::Handle handle, Stamp stamp,
                        Heard<Expected<std::uint32_t>> heard) {
  Buffer data{kLength};
  fill_pattern(data.span(), 0, stamp);
  auto task = mount.write(handle, 0, data.span(), {});
  *heard = co_await task;
}

/// Which of two writes a whole read shows; 0: neither.
inline Task<void> read(Mount& mount, Mount::Handle handle, std::vector<Stamp> among,
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

inline Task<void> cut(Mount& mount, InodeId inode, Heard<Expected<wire::Attr>> heard) {
  wire::SetAttr to;
  to.set_inode(raw(inode));
  to.set_size(0);
  auto task = mount.change(std::move(to));
  *heard = co_await task;
}

inline Task<void> find(Mount& mount, std::string name, Heard<Expected<wire::Attr>> heard) {
  auto task = mount.lookup(kRootInode, std::move(name));
  *heard = co_await task;
}

/// Three nodes with a mount each, and a file that has been written.
class Stage {
 public:
  explicit Stage(ClusterOptions with) : world{4711}, cluster{world, std::move(with)} {
    be_quiet();
    cluster.on_violation = [this](std::string what) {
      if (violation.empty()) violation = std::move(what);
    };
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
  void part(std::size_t one, std::size_t other) { hear(one, other, false); }
  void join(std::size_t one, std::size_t other) { hear(one, other, true); }
  void hear(std::size_t one, std::size_t other, bool yes) {
    auto a = Cluster::id(one), b = Cluster::id(other);
    yes ? cluster.network.join(a, b) : cluster.network.part(a, b);
    yes ? cluster.network.join(b, a) : cluster.network.part(b, a);
    yes ? cluster.group.join(a, b) : cluster.group.part(a, b);
  }
  /// From all others, but not from the LUN.
  void cut_off(std::size_t node) {
    for (std::size_t other = 0; other < cluster.size(); ++other)
      if (other != node) part(node, other);
  }

  World world;
  Cluster cluster;
  std::string violation;  ///< That a judge saw.
  InodeId file{};
  std::vector<Mount::Handle> handles;
};

inline ClusterOptions three_nodes(bool voting) {
  ClusterOptions with;
  with.nodes = 3;
  with.voting = voting;
  with.disk.geometry = {
      .block_size = 512, .block_count = (640ull << 20) / 512, .physical_block_size = 4096};
  return with;
}

}  // namespace csv::sim::stage
