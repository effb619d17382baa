#include "tests/simulation/witness_place.h"

#include <utility>

#include "coordinator/cluster/disk_witness.h"
#include "coordinator/cluster/share_witness.h"

namespace csv::sim {

using cluster::WitnessKind;

/// A node's way to the file. An exchange takes effect at one moment, some time after it was asked
/// for, and is answered some time later, or, by its deadline, not.
class WitnessPlace::NodeFile final : public cluster::TagFile {
 public:
  NodeFile(WitnessPlace& place, SimLoop& loop, NodeId node)
      : place_{place}, loop_{loop}, node_{node} {}

  void read(Function<void(Expected<Content>)> done) override {
    later([this, done = std::move(done)](bool arrives) mutable {
      Expected<Content> found = lost();
      if (arrives) found = place_.share_;
      answer(arrives, std::move(done), std::move(found));
    });
  }
  void exchange(const Content& expected, std::size_t place, const Slot& next,
                Function<void(Expected<void>)> done) override {
    later([this, expected, place, next, done = std::move(done)](bool arrives) mutable {
      bool same = place_.share_ == expected;
      if (arrives && same) place_.share_[place] = next;
      answer(arrives, std::move(done),
             !arrives ? Expected<void>{lost()}
             : same   ? Expected<void>{}
                      : Error{Errc::retry, "the file has changed meanwhile"});
    });
  }

 private:
  static Error lost() { return {std::errc::timed_out, "the share does not answer"}; }
  [[nodiscard]] bool away() const { return place_.away_.contains(node_); }
  Duration some() {
    bool slow = place_.world_.random().chance(1, 100);
    return place_.world_.between(100us, slow ? 900ms : 5ms);
  }
  /// What was sent before the node was cut off is under way all the same; that of a process that
  /// died, too.
  void later(Function<void(bool)> work) {
    bool arrives = !away();
    place_.world_.after(some(),
                        [alive = std::weak_ptr{alive_}, arrives, work = std::move(work)]() mutable {
                          if (alive.lock()) work(arrives);
                        });
  }
  template <typename Done, typename Result>
  void answer(bool arrives, Done done, Result result) {
    bool comes = arrives && !away();
    if (!comes) result = lost();
    place_.world_.after(
        comes ? some() : 2s, [loop = &loop_, alive = std::weak_ptr{alive_}, done = std::move(done),
                              result = std::move(result)]() mutable {
          if (!alive.lock()) return;
          loop->post([alive, done = std::move(done), result = std::move(result)]() mutable {
            if (alive.lock()) done(std::move(result));
          });
        });
  }

  WitnessPlace& place_;
  SimLoop& loop_;
  NodeId node_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class WitnessPlace::OnShare final : public cluster::Witness {
 public:
  OnShare(WitnessPlace& place, SimLoop& loop, Random& random, std::uint16_t cluster, NodeId node,
          std::function<ClusterTag()> own_tag)
      : file_{place, loop, node},
        witness_{{.loop = &loop,
                  .random = &random,
                  .file = &file_,
                  .cluster = cluster,
                  .node = node,
                  .own_tag = std::move(own_tag)}} {}
  Task<Expected<Memory>> read() override { return witness_.read(); }
  Task<Expected<void>> store(Memory memory) override { return witness_.store(std::move(memory)); }
  Task<Expected<Hold>> confirm(std::uint64_t ring) override { return witness_.confirm(ring); }
  Task<Expected<Hold>> challenge(std::uint64_t ring) override { return witness_.challenge(ring); }
  [[nodiscard]] std::optional<NodeId> holder() const override { return witness_.holder(); }

 private:
  NodeFile file_;
  cluster::ShareWitness witness_;
};

class WitnessPlace::Forged final : public cluster::Witness {
 public:
  Forged(const Forgery& how, SimLoop& loop, std::unique_ptr<cluster::Witness> real)
      : how_{how}, loop_{loop}, real_{std::move(real)} {}
  Task<Expected<Memory>> read() override {
    if (how_.forgets) co_return Memory{};
    auto task = real_->read();
    co_return co_await task;
  }
  Task<Expected<void>> store(Memory memory) override {
    if (how_.held_by_all || how_.forgets) co_return Expected<void>{};
    auto task = real_->store(std::move(memory));
    co_return co_await task;
  }
  Task<Expected<Hold>> confirm(std::uint64_t ring) override {
    if (how_.held_by_all) co_return Hold{loop_.now()};
    auto task = real_->confirm(ring);
    co_return co_await task;
  }
  Task<Expected<Hold>> challenge(std::uint64_t ring) override {
    if (how_.held_by_all) co_return Hold{loop_.now()};
    auto task = real_->challenge(ring);
    co_return co_await task;
  }
  [[nodiscard]] std::optional<NodeId> holder() const override { return real_->holder(); }

 private:
  Forgery how_;
  SimLoop& loop_;
  std::unique_ptr<cluster::Witness> real_;
};

WitnessPlace::WitnessPlace(World& world, SimLoop& disk_loop, Options options)
    : world_{world}, options_{std::move(options)} {
  if (options_.kind != WitnessKind::disk) return;
  auto& disk = options_.disk;
  disk.geometry.block_count = (2ull << 20) / disk.geometry.block_size;
  disk.identity = "naa.6001405c5f0000ff";
  disk.found = {};
  disk_ = iscsi::RamDisk::create(disk, &disk_loop);
}

cluster::WitnessRecord WitnessPlace::record() const {
  if (options_.kind == WitnessKind::none) return {};
  return {options_.kind, "witness", options_.only};
}

std::unique_ptr<cluster::Witness> WitnessPlace::witness(SimLoop& loop, Random& random,
                                                        std::uint16_t cluster, NodeId node,
                                                        iscsi::LunOpener open,
                                                        std::function<ClusterTag()> own_tag) {
  std::unique_ptr<cluster::Witness> made;
  if (options_.kind == WitnessKind::disk)
    made = std::make_unique<cluster::DiskWitness>(
        cluster::DiskWitness::Surroundings{.loop = &loop,
                                           .random = &random,
                                           .open_lun = std::move(open),
                                           .cluster = cluster,
                                           .node = node});
  else {
    // As `csvctl cluster witness` makes it, once.
    if (share_ == cluster::TagFile::Content{}) {
      cluster::ShareTag first;
      first.sequence = 1;
      first.cluster = cluster;
      first.id = 1;
      share_[1] = encode(first);
    }
    made = std::make_unique<OnShare>(*this, loop, random, cluster, node, std::move(own_tag));
  }
  if (!forgery.held_by_all && !forgery.forgets) return made;
  return std::make_unique<Forged>(forgery, loop, std::move(made));
}

void WitnessPlace::set_reachable(NodeId node, const std::string& initiator, bool reachable) {
  if (disk_) disk_->set_reachable(initiator, reachable);
  if (reachable)
    away_.erase(node);
  else
    away_.insert(node);
}

void WitnessPlace::power_loss() {
  if (disk_) disk_->power_loss(world_.random());
}

}  // namespace csv::sim
