#include "tests/simulation/workload.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "coordinator/volume/superblock.h"
#include "csvfs/base/log.h"
#include "tests/simulation/program.h"

namespace csv::sim {
namespace {

Task<void> run(std::unique_ptr<Program> program) { co_await program->run(); }
Task<void> look(std::unique_ptr<Program> program) { co_await program->look_at_everything(); }
Task<void> remove(std::unique_ptr<Program> program) { co_await program->remove_everything(); }

}  // namespace

Workload::Workload(World& world, Cluster& cluster, WorkloadOptions options)
    : world_{world},
      cluster_{cluster},
      options_{options},
      next_stamp_{(Stamp{options.volume} << 32) + 1} {}

Workload::~Workload() = default;

void Workload::fail(std::string what) {
  if (!violation_.empty()) return;
  world_.note("VIOLATION " + what);
  violation_ = std::move(what);
}

Task<void> Workload::set_up(std::size_t node, std::function<void()> done) {
  auto& mount = cluster_.mount(node, options_.volume)->mount();
  auto space = co_await mount.statistics();
  if (space) judge(*space);
  for (std::size_t i = 0; i < options_.playgrounds; ++i) {
    auto kind =
        static_cast<Playground::Kind>(i < 3 ? (i + options_.volume) % 3 : world_.random().below(3));
    auto name = fmt::format("ground{}", i);
    wire::Make what;
    what.set_parent(raw(kRootInode));
    what.set_name(name);
    what.set_mode(S_IFDIR | 0755);
    auto made = co_await mount.make(Caller{}, std::move(what));
    if (!made) {
      fail("making a playground: " + made.error().message());
      break;
    }
    auto ground = std::make_unique<Playground>(kind, name, made->inode());
    // Some belong to one node, the others to all; some have two programs on a node.
    bool shared = world_.random().chance(2, 3);
    auto home = world_.random().below(cluster_.size());
    for (std::size_t each = 0; each < cluster_.size(); ++each) {
      if (!shared && each != home) continue;
      ground->nodes.push_back(each);
      if (ground->nodes.size() < 4 && world_.random().chance(1, 4)) ground->nodes.push_back(each);
    }
    playgrounds_.push_back(std::move(ground));
  }
  done();
}

void Workload::begin(std::size_t node) {
  auto& csvfs = *cluster_.mount(node, options_.volume);
  csvfs.process().loop->enter([&] {
    for (auto& ground : playgrounds_) {
      for (auto each : ground->nodes) {
        if (each != node || winding_down_) continue;
        csvfs.programs().spawn(
            run(std::make_unique<Program>(*this, *ground, node, csvfs, world_.random().next())));
      }
    }
  });
}

void Workload::dies(std::size_t node, const std::function<void()>& kill) {
  auto state = cluster_.mount(node, options_.volume)->mount().state();
  ghosts_.push_back({.session = state.session, .key = state.key, .settle = {}});
  dying_ = &ghosts_.back();
  kill();
  dying_ = nullptr;
  if (ghosts_.back().settle.empty()) ghosts_.pop_back();
}

void Workload::power_loss() {
  for (auto& ground : playgrounds_)
    for (auto& [inode, content] : ground->files) content.power_loss();
}

void Workload::not_durable(const NotDurable& what) {
  auto now = world_.now();
  refused_[what.mount] = now;
  // What the kernel keeps in pages shows until its mount hears of the loss.
  if (what.forgot || (what.deferred && options_.mappings)) power_loss();
  auto* csvfs = what.mount ? cluster_.mount(*what.mount, options_.volume) : nullptr;
  if (csvfs == nullptr) return;
  told_of_loss(*what.mount);
  // Until the answer is there more is written under the same doubt.
  world_.after(1ms, [this, csvfs, now, alive = std::weak_ptr{alive_}] {
    if (alive.lock()) suspect(csvfs, now);
  });
}

void Workload::told_of_loss(std::size_t node) {
  auto* csvfs = cluster_.mount(node, options_.volume);
  if (csvfs == nullptr) return;
  auto [at, fresh] = told_.try_emplace(csvfs, Duration::min());
  // What it was told of before is over.
  suspect(csvfs, std::exchange(at->second, world_.now()));
}

void Workload::suspect(const Csvfs* mount, Duration since) {
  for (auto& ground : playgrounds_)
    for (auto& [inode, content] : ground->files) content.suspect(mount, since);
}

bool Workload::was_refused(std::size_t node, Duration since) const {
  return std::any_of(refused_.begin(), refused_.end(), [&](const auto& each) {
    return (!each.first || each.first == node) && each.second >= since;
  });
}

void Workload::see_who_is_away() {
  auto coordinator = cluster_.coordinator(options_.volume);
  if (!coordinator) return;
  auto status = cluster_.csvd(*coordinator)->service(options_.volume)->status();
  for (std::size_t node = 0; node < cluster_.size(); ++node) {
    if (cluster_.mount(node, options_.volume) == nullptr) continue;
    auto session = cluster_.mount(node, options_.volume)->mount().state().session;
    bool lives = std::any_of(status.sessions.begin(), status.sessions.end(),
                             [&](const auto& each) { return each.session == session; });
    if (session == SessionId{} || lives) continue;
    auto [at, fresh] = away_.try_emplace(session);
    if (fresh) at->second.since = world_.now();
    at->second.until = world_.now();
  }
}

/// Another node opened it for writing, all the while the mount of that session was away.
bool Workload::was_touched(const Playground& ground, Number inode, std::size_t node,
                           SessionId session) const {
  auto away = away_.find(session);
  auto openings = ground.openings.find(inode);
  if (away == away_.end() || openings == ground.openings.end()) return false;
  return std::any_of(openings->second.begin(), openings->second.end(), [&](const auto& each) {
    return each.first != node && each.second.began >= away->second.since &&
           each.second.ended <= away->second.until;
  });
}

void Workload::settle_what_is_over() {
  see_who_is_away();
  auto coordinator = cluster_.coordinator(options_.volume);
  if (!coordinator) return;
  auto status = cluster_.csvd(*coordinator)->service(options_.volume)->status();
  auto keys = cluster_.volume(options_.volume).disk->registered_keys();
  for (auto ghost = ghosts_.begin(); ghost != ghosts_.end();) {
    bool lives = std::any_of(status.sessions.begin(), status.sessions.end(),
                             [&](const auto& each) { return each.session == ghost->session; });
    bool registered = std::find(keys.begin(), keys.end(), ghost->key) != keys.end();
    if (lives || registered) {
      ++ghost;
      continue;
    }
    for (const auto& settle : ghost->settle) settle();
    world_.note(fmt::format("session {} is over", raw(ghost->session)));
    ghost = ghosts_.erase(ghost);
  }
}

bool Workload::undecided() const {
  for (const auto& ground : playgrounds_) {
    if (!ground->history.gave_up()) continue;
    world_.note("UNDECIDED " + ground->history.why());
    return true;
  }
  return false;
}

std::vector<std::string> Workload::stuck() const {
  std::vector<std::string> all;
  for (const auto& [number, text] : under_way_) all.push_back(text);
  return all;
}

Task<void> Workload::look_at_everything(std::size_t node, std::function<void()> done) {
  for (auto& ground : playgrounds_) {
    co_await look(std::make_unique<Program>(
        *this, *ground, node, *cluster_.mount(node, options_.volume), world_.random().next()));
  }
  done();
}

Task<void> Workload::remove_everything(std::size_t node, std::function<void()> done) {
  auto& csvfs = *cluster_.mount(node, options_.volume);
  for (auto& ground : playgrounds_) {
    co_await remove(std::make_unique<Program>(*this, *ground, node, csvfs, world_.random().next()));
    auto gone = co_await csvfs.mount().unlink(kRootInode, ground->name, true);
    if (!gone) fail("removing " + ground->name + ": " + gone.error().message());
  }
  if (violation_.empty()) co_await all_is_free(csvfs);
  done();
}

void Workload::judge(const wire::FsStat& space) {
  if (!space_) space_ = space;
  if (space.free_blocks() <= space.total_blocks() && space.inodes() > 0 &&
      space.total_blocks() == space_->total_blocks())
    return;
  fail(fmt::format("statfs: {} blocks free of {}, and {} inodes, where there were {} blocks",
                   space.free_blocks(), space.total_blocks(), space.inodes(),
                   space_->total_blocks()));
}

/// Freed is what was removed, within a moment; the catalog keeps what it has grown by, in whole
/// chunks.
Task<void> Workload::all_is_free(Csvfs& csvfs) {
  constexpr std::uint64_t kChunk = volume::kChunkSize / 4096;
  auto& mount = csvfs.mount();
  auto entries = co_await mount.list(kRootInode, 0, {});
  // Whoever filled the volume may have been killed.
  if (entries)
    for (const auto& entry : entries->entries())
      if (entry.name().starts_with("hoard"))
        (void)co_await mount.unlink(kRootInode, entry.name(), false);
  wire::FsStat now;
  for (auto give_up = world_.now() + 60s; world_.now() < give_up && space_;) {
    auto found = co_await mount.statistics();
    if (found) now = *found;
    if (found && space_->free_blocks() >= now.free_blocks() &&
        (space_->free_blocks() - now.free_blocks()) % kChunk == 0)
      co_return;
    co_await sleep(*csvfs.process().loop, 500ms);
  }
  fail(fmt::format("everything was removed, and {} blocks are free of {}, where {} were",
                   now.free_blocks(), now.total_blocks(), space_ ? space_->free_blocks() : 0));
}

}  // namespace csv::sim
