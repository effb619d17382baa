#include "tests/simulation/sides.h"

#include <algorithm>
#include <iterator>

#include "coordinator/cluster/votes.h"
#include "csvfs/base/log.h"

namespace csv::sim {
namespace {

constexpr cluster::LeaseTiming kLease;

std::string text_of(const ClusterTag& tag) {
  return fmt::format("{}.{}.{}", tag.forced, tag.epoch, tag.sequence);
}

}  // namespace

void Sides::said(const std::string& volume, NodeId node, Epoch epoch) {
  auto& [newest, who] = newest_[volume];
  if (epoch >= newest) {
    newest = epoch;
    who = node;
    return;
  }
  fail(fmt::format("node{} speaks as coordinator of {} of epoch {}, after node{} of epoch {}",
                   raw(node), volume, raw(epoch), raw(who), raw(newest)));
}

void Sides::in_force(const cluster::Configuration& configuration) {
  auto [at, fresh] = in_force_.try_emplace(configuration.tag);
  auto text = cluster::encode(configuration);
  if (!fresh) {
    if (at->second != text) fail("two configurations with the tag " + text_of(configuration.tag));
    return;
  }
  at->second = std::move(text);
  auto& turns = turns_[configuration.tag];
  for (const auto& [name, volume] : configuration.volumes) turns[name] = volume.turn;
  auto holds = [this](auto earlier, auto later) {
    if (earlier->first.forced != later->first.forced) return;
    for (const auto& [name, turn] : earlier->second) {
      auto found = later->second.find(name);
      if (found != later->second.end() && found->second >= turn) continue;
      fail(fmt::format("configuration {} does not know of turn {} of {}, which was in force as {}",
                       text_of(later->first), turn, name, text_of(earlier->first)));
    }
  };
  auto mine = turns_.find(configuration.tag);
  if (mine != turns_.begin()) holds(std::prev(mine), mine);
  if (std::next(mine) != turns_.end()) holds(mine, std::next(mine));
}

void Sides::look(NodeId node, const cluster::VotingMembership& membership, Duration lease) {
  const auto& replica = membership.replica();
  const auto* configuration = replica.configuration();
  if (configuration == nullptr) return;
  Era era{configuration->tag.forced, configuration->tag.epoch};
  if (replica.state() == cluster::Replica::State::formed) {
    in_force(*configuration);
    last_[node] = std::max(last_[node], era);
    auto [at, fresh] = formed_.try_emplace(era);
    if (fresh) {
      at->second.at = world_.now();
      std::vector<NodeId> nodes;
      for (const auto& member : replica.view()->members) nodes.push_back(member.node);
      at->second.nodes.insert(nodes.begin(), nodes.end());
      if (cluster::witness_decides(configuration->ballot, nodes)) ++by_witness_;
    }
  }
  // What it has on its disk may be older: that may be full.
  auto its = std::max(era, last_[node]);
  for (auto later = formed_.upper_bound(its); later != formed_.end(); ++later) {
    const auto& [its_era, side] = *later;
    if (side.nodes.contains(node)) continue;
    auto end = side.at + kLease.term * (1000 + kLease.drift_permille) / 1000;
    if (lease <= end) continue;
    fail(
        fmt::format("node{}, of epoch {}, has a lease {} ms beyond the last it can have had when "
                    "others formed without it in epoch {}",
                    raw(node), its.second, (lease - end) / 1ms, its_era.second));
  }
}

}  // namespace csv::sim
