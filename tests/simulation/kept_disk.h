#pragma once
#include <memory>

#include "coordinator/cluster/configuration_store.h"
#include "tests/simulation/world.h"

namespace csv::sim {

/// A node's disk for its part of the cluster's configuration: writing takes time, and a crash
/// meanwhile leaves the old or the new.
class KeptDisk final : public cluster::ConfigurationStore {
 public:
  /// `content` outlives the process, and this; so does `full`: while it says so nothing is written.
  KeptDisk(World& world, SimLoop& loop, cluster::Kept& content, const bool* full = nullptr)
      : world_{world}, loop_{loop}, content_{content}, full_{full} {}

  void save(const cluster::Kept& kept, Function<void(Expected<void>)> done) override {
    world_.after(world_.between(500us, 20ms), [this, alive = std::weak_ptr{alive_}, kept,
                                               done = std::move(done)]() mutable {
      if (!alive.lock()) return;
      bool full = full_ != nullptr && *full_;
      if (!full) content_ = kept;
      loop_.post([done = std::move(done), alive, full]() mutable {
        if (!alive.lock()) return;
        done(full ? Expected<void>{Error{std::errc::no_space_on_device, "the node's disk is full"}}
                  : Expected<void>{});
      });
    });
  }

 private:
  World& world_;
  SimLoop& loop_;
  cluster::Kept& content_;
  const bool* full_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace csv::sim
