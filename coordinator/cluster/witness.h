#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/task.h"

namespace csv::cluster {

/// Something outside of all nodes that decides between two halves, and that remembers: at most one
/// side holds it. One loop. All that waits for it may take long; every call ends by its own
/// deadline with an error.
class Witness {
 public:
  /// What it remembers of the cluster.
  struct Memory {
    /// Of the newest configuration that it stores. A disk that has promised more since says that.
    ClusterTag tag;
    std::string configuration;  ///< The whole of it (disk); empty where only the tag is kept.
    /// Nothing below this is stored any more. For store(): above `tag` it is promised, and what is
    /// stored stays (share), or becomes `configuration` (disk); else `tag` is stored.
    ClusterTag promised = {};
  };
  /// This side holds it.
  struct Hold {
    /// When what proves it was sent. It is worth a lease's term from then, for the whole side.
    TimePoint sent{};
  };

  virtual ~Witness() = default;

  /// What is stored. Does not need to hold it.
  virtual Task<Expected<Memory>> read() = 0;
  /// Stores it if nothing newer is stored, nor another one with this tag: Errc::superseded
  /// otherwise, and nothing is changed. Durable when it succeeds. May need the hold (a disk accepts
  /// nobody else's writes): Errc::refused without it, so the node that took it stores for its side,
  /// and a side that stores a change takes the witness first, whether or not its vote counts.
  virtual Task<Expected<void>> store(Memory memory) = 0;

  /// The side that held it last goes on holding it: writes this node's own slot, under the
  /// reservation, naming `ring`. Only by the object whose challenge() took it; for any other, and
  /// once somebody else has taken it: Errc::superseded. Other errors say nothing of who holds it.
  virtual Task<Expected<Hold>> confirm(std::uint64_t ring) = 0;
  /// Takes it from whoever held it, after it has seen no movement of his for longer than a hold is
  /// worth (counted from this call on, and so at least that long, unless nobody ever held it or
  /// this object does). Errc::refused: another node is alive, and moves, or was faster.
  virtual Task<Expected<Hold>> challenge(std::uint64_t ring) = 0;
  /// Whoever held it last, as far as is known here: nobody has to be asked. For deciding a vote.
  [[nodiscard]] virtual std::optional<NodeId> holder() const = 0;
};

}  // namespace csv::cluster
