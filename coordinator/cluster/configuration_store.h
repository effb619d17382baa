#pragma once
#include <memory>
#include <optional>
#include <string>

#include "coordinator/cluster/configuration.h"
#include "csvfs/base/blocking.h"
#include "csvfs/base/function.h"
#include "csvfs/base/loop.h"

namespace csv::cluster {

/// What a node must not forget.
struct Kept {
  std::optional<Configuration> configuration;  ///< The newest that it has stored.
  ClusterTag promised;  ///< It stores nothing below this any more (replica.h).
  /// By command: its own copy brings no cluster about until it has joined one that has formed.
  bool prevents = false;
  bool operator==(const Kept&) const = default;
};

/// Where a node keeps it. One loop.
class ConfigurationStore {
 public:
  virtual ~ConfigurationStore() = default;
  /// Makes it durable, then says so, from the loop. One at a time. On an error what was there
  /// before is there still.
  virtual void save(const Kept& kept, Function<void(Expected<void>)> done) = 0;
};

/// Two files of a folder, each replaced as a whole, one after the other, each with a checksum:
/// whatever happens meanwhile one of them is whole, and afterwards both say the same, so that one
/// that goes bad brings back nothing old. Reading takes the newer of those that are whole. A third,
/// empty file says that the node prevents: it is there before what is saved with it, and goes after
/// what is saved without it.
class ConfigurationFiles final : public ConfigurationStore {
 public:
  struct Found {
    Kept kept;
    std::string damage;  ///< What was wrong with a file; empty: nothing.
  };
  /// What is there; nothing is made. Errc::corrupt: there are files, and none of them is whole.
  static Expected<Found> read(const std::string& folder);
  /// For a node whose csvd does not run: makes or removes the file that says so, durably.
  static Expected<void> prevent(const std::string& folder, bool prevents);
  /// `worker` does the waiting, and is destroyed with this.
  ConfigurationFiles(Loop& loop, std::unique_ptr<Worker> worker, std::string folder);
  ~ConfigurationFiles() override;
  void save(const Kept& kept, Function<void(Expected<void>)> done) override;

 private:
  Loop* loop_;
  std::string folder_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::unique_ptr<Worker> worker_;
};

}  // namespace csv::cluster
