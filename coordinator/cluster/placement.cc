#include "coordinator/cluster/placement.h"

#include <algorithm>
#include <tuple>

#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

/// How well a node can coordinate a volume. One that failed a while ago is better than nobody: the
/// path may be back, and while nothing else is to be had a try costs nothing.
enum class Fitness { none, doubtful, drained, fit };

class Placing {
 public:
  Placing(std::span<const PlacedVolume> volumes, std::span<const PlacedNode> nodes, Duration hold,
          TimePoint now)
      : volumes_{volumes}, hold_{hold}, now_{now}, at_(volumes.size()), why_(volumes.size()) {
    for (const auto& node : nodes) nodes_[node.node] = &node;
    for (std::size_t i = 0; i < volumes.size(); ++i) {
      at_[i] = volumes[i].coordinator;
      if (!at_[i]) continue;
      ++load_[*at_[i]];
      if (volumes[i].served) ++served_[*at_[i]];
    }
  }

  std::vector<Assignment> run() {
    for (std::size_t i = 0; i < volumes_.size(); ++i) leave_what_cannot(i);
    for (std::size_t i = 0; i < volumes_.size(); ++i) return_to_preferred(i);
    while (even_out()) {
    }
    std::vector<Assignment> all;
    for (std::size_t i = 0; i < volumes_.size(); ++i)
      if (at_[i] != volumes_[i].coordinator)
        all.push_back({volumes_[i].name, *at_[i], std::move(why_[i])});
    return all;
  }

 private:
  [[nodiscard]] const Reach* reach(std::size_t volume, NodeId node) const {
    auto found = nodes_.find(node);
    if (found == nodes_.end()) return nullptr;
    auto entry = found->second->volumes.find(volumes_[volume].name);
    return entry == found->second->volumes.end() ? nullptr : &entry->second;
  }
  [[nodiscard]] Fitness fitness(std::size_t volume, NodeId node) const {
    const auto* way = reach(volume, node);
    if (way == nullptr || nodes_.at(node)->fenced) return Fitness::none;
    if (!way->path || !nodes_.at(node)->hears_majority) return Fitness::doubtful;
    return nodes_.at(node)->drained ? Fitness::drained : Fitness::fit;
  }
  /// None, for a node that is not there: that it is gone is what counts.
  [[nodiscard]] int cut_off(std::size_t volume, NodeId node) const {
    const auto* way = reach(volume, node);
    return way == nullptr ? 0 : static_cast<int>(way->cut_off);
  }
  [[nodiscard]] unsigned sessions(std::size_t volume, NodeId node) const {
    const auto* way = reach(volume, node);
    return way == nullptr ? 0 : way->sessions;
  }
  /// Of what it has been given.
  [[nodiscard]] unsigned load(NodeId node) const { return count(load_, node); }
  /// Of what it serves, and is to go on serving.
  [[nodiscard]] unsigned served(NodeId node) const { return count(served_, node); }
  static unsigned count(const std::map<NodeId, unsigned>& in, NodeId node) {
    auto found = in.find(node);
    return found == in.end() ? 0 : found->second;
  }
  void move(std::size_t volume, NodeId to, std::string why) {
    if (at_[volume]) --load_[*at_[volume]];
    if (at_[volume] && at_[volume] == volumes_[volume].coordinator && volumes_[volume].served)
      --served_[*at_[volume]];
    at_[volume] = to;
    ++load_[to];
    why_[volume] = std::move(why);
  }

  /// One whose path comes and goes would have it again and again otherwise.
  [[nodiscard]] bool may_leave(std::size_t volume, NodeId node) const {
    auto moved = volumes_[volume].moved;
    return !moved || reach(volume, node)->cut_off_since >= *moved || now_ - *moved >= hold_;
  }

  void leave_what_cannot(std::size_t volume) {
    auto now = at_[volume];
    auto fit = now ? fitness(volume, *now) : Fitness::none;
    auto waits = now ? cut_off(volume, *now) : 0;
    if (fit == Fitness::fit && waits == 0) return;
    std::optional<NodeId> best;
    auto rank = [&](NodeId node) {
      bool asked_for = volumes_[volume].preferred == node;
      return std::tuple{fitness(volume, node), -cut_off(volume, node), asked_for,
                        -static_cast<int>(load(node)), sessions(volume, node)};
    };
    for (auto [node, about] : nodes_)
      if (!best || rank(node) > rank(*best)) best = node;
    if (!best || fitness(volume, *best) < fit) return;
    bool reached = fit == Fitness::fit && cut_off(volume, *best) < waits && may_leave(volume, *now);
    if (fitness(volume, *best) == fit && !reached) return;
    std::string why = "it had no coordinator";
    if (now && !nodes_.contains(*now))
      why = fmt::format("node {} is gone", raw(*now));
    else if (now && nodes_.at(*now)->fenced)
      why = fmt::format("node {} is fenced", raw(*now));
    else if (now && fit == Fitness::drained)
      why = fmt::format("node {} is drained", raw(*now));
    else if (now && reached)
      why = fmt::format("node {} is not heard by a node that has mounted it", raw(*now));
    else if (now && !nodes_.at(*now)->hears_majority)
      why = fmt::format("node {} does not hear a majority", raw(*now));
    else if (now)
      why = fmt::format("node {} could not take it over, or serve it", raw(*now));
    move(volume, *best, std::move(why));
  }

  /// Whether it, and the node, have been as they are for long enough to move it without need.
  [[nodiscard]] bool settled(std::size_t volume, NodeId to) const {
    const auto& about = volumes_[volume];
    if (at_[volume] != about.coordinator) return false;  // moved just now
    if (about.moved && now_ - *about.moved < hold_) return false;
    return now_ - nodes_.at(to)->since >= hold_;
  }

  void return_to_preferred(std::size_t volume) {
    auto preferred = volumes_[volume].preferred;
    if (!preferred || at_[volume] == preferred || !at_[volume]) return;
    if (fitness(volume, *preferred) != Fitness::fit || !settled(volume, *preferred)) return;
    if (cut_off(volume, *preferred) > cut_off(volume, *at_[volume])) return;
    move(volume, *preferred, fmt::format("node {} is preferred for it", raw(*preferred)));
  }

  /// One move from a node that serves at least two more than another is to coordinate; false if
  /// there is none. No volume moves twice, so this ends.
  bool even_out() {
    struct Move {
      std::size_t volume;
      NodeId to;
    };
    std::optional<Move> best;
    auto rank = [&](const Move& move) {
      auto from = *at_[move.volume];
      return std::tuple{
          static_cast<int>(served(from)) - static_cast<int>(load(move.to)),
          static_cast<int>(sessions(move.volume, move.to)) -
              static_cast<int>(sessions(move.volume, from)),
      };
    };
    for (std::size_t i = 0; i < volumes_.size(); ++i) {
      if (!at_[i] || !volumes_[i].served || volumes_[i].preferred == at_[i]) continue;
      for (auto [node, about] : nodes_) {
        if (served(*at_[i]) < load(node) + 2) continue;
        if (fitness(i, node) != Fitness::fit || !settled(i, node)) continue;
        if (cut_off(i, node) > cut_off(i, *at_[i])) continue;
        Move move{i, node};
        if (!best || rank(move) > rank(*best)) best = move;
      }
    }
    if (!best) return false;
    auto from = *at_[best->volume];
    move(best->volume, best->to,
         fmt::format("node {} coordinates {} volumes and node {} only {}", raw(from), served(from),
                     raw(best->to), load(best->to)));
    return true;
  }

  std::span<const PlacedVolume> volumes_;
  std::map<NodeId, const PlacedNode*> nodes_;
  Duration hold_;
  TimePoint now_;
  std::vector<std::optional<NodeId>> at_;
  std::vector<std::string> why_;
  std::map<NodeId, unsigned> load_, served_;
};

}  // namespace

void Setback::note(Duration first, Duration longest, TimePoint now) {
  if (!over(now)) return;
  pause_ = std::clamp(pause_ * 2, first, longest);
  until_ = now + pause_;
}

std::vector<Assignment> place(std::span<const PlacedVolume> volumes,
                              std::span<const PlacedNode> nodes, Duration hold, TimePoint now) {
  return Placing{volumes, nodes, hold, now}.run();
}

}  // namespace csv::cluster
