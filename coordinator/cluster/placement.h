#pragma once
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::cluster {

/// A volume that somebody has to coordinate.
struct PlacedVolume {
  std::string name;
  std::optional<NodeId> coordinator;  ///< Who does; none: nobody yet.
  bool served = true;  ///< The coordinator says so; not while it takes over, or cannot.
  /// Where an administrator wants it. It goes there while that node can, and comes back.
  std::optional<NodeId> preferred;
  /// When it was last given to somebody; none: so long ago that it does not matter.
  std::optional<TimePoint> moved;
};

/// What a node can do for one volume.
struct Reach {
  bool path = false;      ///< Its way to the LUN works.
  unsigned sessions = 0;  ///< Mounts of the volume there: how much it uses it.
  /// Nodes that have mounted it and do not hear this one: their mounts would wait.
  unsigned cut_off = 0;
  TimePoint cut_off_since = TimePoint::max();  ///< When the last of them was found so.
};

/// A node that is present: its csvd is a member. Whoever is not listed is gone.
struct PlacedNode {
  NodeId node{};
  bool drained = false;        ///< Maintenance: what it coordinates leaves, nothing new comes.
  bool fenced = false;         ///< By command: it coordinates nothing at all.
  bool hears_majority = true;  ///< Else it has no lease, as far as is known, and can serve nothing.
  TimePoint since{};           ///< When it became present, or was resumed.
  std::map<std::string, Reach> volumes = {};  ///< By name; no entry: no path.
};

/// A node that could not do what it was given is tried again, each time after twice as long: its
/// path may be gone for good, and each try costs a standstill. Failures during a pause are of the
/// same trouble.
class Setback {
 public:
  void note(Duration first, Duration longest, TimePoint now);
  [[nodiscard]] bool over(TimePoint now) const { return now >= until_; }

 private:
  Duration pause_{};
  TimePoint until_{};
};

/// "Volume `name` is coordinated by `to` from now on."
struct Assignment {
  std::string volume;
  NodeId to{};
  std::string why;  ///< For the log and status: what made it move.
  bool operator==(const Assignment&) const = default;
};

/// Which volumes get another coordinator now, in the order of `volumes`; those that stay are not
/// named. A pure function, for the one node that decides: all times are of that node's clock, and
/// what it did not see happen itself counts from when it learned of it.
///
/// A volume moves at once if its coordinator is gone, fenced, drained or without a path, and
/// somebody better is there: the preferred node if that can, else who coordinates the fewest
/// volumes, among those who uses it most, then the lowest number; before all that who is heard by
/// most of those that use it. For that it moves at once, too, if it is so only since it was given
/// to its coordinator; else somebody better has come back, and it stays for `hold` first. Drained
/// nodes are the last resort, better than a volume that nobody serves; without any path a volume
/// stays where it is.
///
/// It moves for the sake of balance, or back to its preferred node, only once neither it nor what
/// it goes to has changed for `hold`, and only if that evens out the numbers (from one that
/// coordinates at least two more): so a path or a node that comes and goes moves it at most twice a
/// `hold`, and what is even stays as it is. A volume that its coordinator does not serve is no
/// reason for another one to leave that node: it may be one that nobody can serve.
std::vector<Assignment> place(std::span<const PlacedVolume> volumes,
                              std::span<const PlacedNode> nodes, Duration hold, TimePoint now);

}  // namespace csv::cluster
