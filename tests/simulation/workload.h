#pragma once
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/simulation/cluster.h"
#include "tests/simulation/content.h"
#include "tests/simulation/history.h"

namespace csv::sim {

/// A directory that programs on one or several nodes work in, and what is known of it.
struct Playground {
  enum class Kind { names, images, logs };
  Playground(Kind which, std::string named, Number number)
      : kind{which}, name{std::move(named)}, root{number}, history{number} {}
  Kind kind;
  std::string name;
  Number root;
  std::vector<std::size_t> nodes;  ///< Whose programs work here, one entry a program.
  History history;
  std::map<Number, FileContent> files;
  std::map<Number, LogContent> logs;
  std::multiset<Number> open;
  /// Openings for writing that were answered, the last of each node.
  struct Opening {
    Duration began{}, ended{};
  };
  std::map<Number, std::map<std::size_t, Opening>> openings;
  /// Mounts' lives in which something was written.
  std::map<Number, std::set<std::uint64_t>> writers;
  /// The latest ctime that anybody had been answered by then.
  std::map<Number, std::map<Duration, std::int64_t>> ctimes;
};

struct WorkloadOptions {
  std::size_t volume = 0;  ///< Whose mounts the programs use.
  std::size_t playgrounds = 4;
  Duration most_thinking = 40ms;
  bool mappings = false;
};

/// Programs on all nodes that use one volume, and the judge of what they see. A violation ends the
/// run.
class Workload {
 public:
  Workload(World& world, Cluster& cluster, WorkloadOptions options);
  ~Workload();

  /// Makes the playgrounds; one node's mount must be up.
  Task<void> set_up(std::size_t node, std::function<void()> done);
  /// The node's mount is new: its programs begin.
  void begin(std::size_t node);
  /// Its mount dies by `kill`: what its programs were doing may or may not happen.
  void dies(std::size_t node, const std::function<void()>& kill);
  /// The target loses power: what it has not flushed may be gone.
  void power_loss();
  /// The target has told a nexus, with a command that was not done, that what it had answered
  /// before may be gone.
  struct NotDurable {
    std::optional<std::size_t> mount;  ///< The node's; else it was the coordinator.
    bool forgot = false;               ///< It is gone since just now.
    bool deferred = false;             ///< Somebody else was told before.
  };
  void not_durable(const NotDurable& what);
  /// A coordinator tells a node's mount that the target has lost something, or may have.
  void told_of_loss(std::size_t node);
  /// Programs end once what they are doing is answered.
  void wind_down() { winding_down_ = true; }
  [[nodiscard]] std::size_t running() const { return running_; }
  [[nodiscard]] std::vector<std::string> stuck() const;
  /// Reads everything on `node` and compares.
  Task<void> look_at_everything(std::size_t node, std::function<void()> done);
  /// Removes everything, and looks whether all space is free again.
  Task<void> remove_everything(std::size_t node, std::function<void()> done);
  /// Operations of dead mounts of which nobody knows yet that they are over.
  [[nodiscard]] std::size_t unsettled() const { return ghosts_.size(); }
  void settle_what_is_over();

  [[nodiscard]] bool undecided() const;
  [[nodiscard]] const std::string& violation() const { return violation_; }
  void fail(std::string what);
  struct Counts {
    std::uint64_t operations = 0, writes = 0, reads = 0, abandoned = 0, eio = 0;
    std::uint64_t loads = 0, stores = 0;     ///< Through mappings.
    std::uint64_t clones = 0;                ///< That shared something.
    std::uint64_t resumed = 0;               ///< Uses of a handle after its session's end.
    std::uint64_t anew = 0;                  ///< Files that were gone before they were open.
    std::uint64_t no_space = 0, losses = 0;  ///< Refusals that the volume or the target explains.
  };
  Counts counts;

 private:
  friend class Program;
  /// While a mount believes in a session that the coordinator has ended.
  struct Away {
    Duration since{}, until{};
  };
  void see_who_is_away();
  [[nodiscard]] bool was_refused(std::size_t node, Duration since) const;
  [[nodiscard]] bool was_touched(const Playground& ground, Number inode, std::size_t node,
                                 SessionId session) const;
  /// What of a mount's last operations must be settled once it is certainly over.
  struct Ghost {
    SessionId session{};
    Key key{};
    std::vector<std::function<void()>> settle;
  };
  World& world_;
  Cluster& cluster_;
  WorkloadOptions options_;
  std::vector<std::unique_ptr<Playground>> playgrounds_;
  std::vector<Ghost> ghosts_;
  std::map<SessionId, Away> away_;
  void suspect(const Csvfs* mount, Duration since);
  /// What statfs says can be.
  void judge(const wire::FsStat& space);
  Task<void> all_is_free(Csvfs& csvfs);
  std::optional<wire::FsStat> space_;                       ///< Of the volume while it was empty.
  std::map<const Csvfs*, Duration> told_;                   ///< When last, whoever told it.
  std::map<std::optional<std::size_t>, Duration> refused_;  ///< When last, by NotDurable::mount.
  Ghost* dying_ = nullptr;                                  ///< While dies() runs its course.
  std::string violation_;
  std::size_t running_ = 0;
  bool winding_down_ = false;
  Stamp next_stamp_ = 1;
  std::map<std::uint64_t, std::string> under_way_;
  std::uint64_t next_call_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace csv::sim
