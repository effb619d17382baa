#include "coordinator/cluster/node_watch.h"

#include <algorithm>
#include <utility>

namespace csv::cluster {
namespace {

/// The volumes whose slots are such, as people read it.
template <typename Which>
std::string volumes_of(const std::vector<StorageSign>& signs, Which which) {
  std::set<std::string> names;
  for (const auto& sign : signs)
    if (which(sign)) names.insert(sign.volume);
  std::string out;
  for (const auto& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

/// While it is heard a mount that has gone says so by its connection: its slot is none of a node.
std::optional<bool> storage_of_heard(const std::vector<StorageSign>& signs) {
  std::optional<bool> out;
  for (const auto& sign : signs) {
    if (!sign.connected) continue;
    if (sign.still) return false;
    out = true;
  }
  return out;
}

std::optional<bool> storage_of_unheard(const std::vector<StorageSign>& signs, TimePoint gone_at) {
  if (std::any_of(signs.begin(), signs.end(), [&](const StorageSign& sign) {
        return !sign.still && sign.moved >= gone_at + NodeWatch::kInFlight;
      }))
    return true;
  bool all_still = !signs.empty() && std::all_of(signs.begin(), signs.end(),
                                                 [](const auto& sign) { return sign.still; });
  return all_still ? std::optional{false} : std::nullopt;
}

std::optional<bool> side_of(const std::vector<StorageSign>& signs) {
  const StorageSign* latest = nullptr;
  for (const auto& sign : signs)
    if (!sign.still && sign.quorate && (latest == nullptr || sign.moved > latest->moved))
      latest = &sign;
  return latest != nullptr ? latest->quorate : std::nullopt;
}

}  // namespace

std::optional<NodeWatch::Change> NodeWatch::see(NodeId node, const Seen& seen, TimePoint now) {
  auto& it = watched_[node];
  Signals signals;
  signals.network = seen.network;
  signals.service = seen.service;
  signals.our_side_quorate = seen.our_side_quorate;
  signals.lease_over = seen.lease_over;
  if (seen.network) {
    it.gone_at.reset();
    it.asked_at.reset();
    it.ping.reset();
    it.decided = false;
    signals.storage = storage_of_heard(seen.signs);
  } else {
    if (!it.gone_at) it.gone_at = now;
    signals.storage = storage_of_unheard(seen.signs, *it.gone_at);
    signals.ping = it.ping;
    if (signals.storage == true) signals.its_side_quorate = side_of(seen.signs);
    bool known = signals.storage && (it.ping || now >= *it.gone_at + kSettle);
    if (!known && it.opinion && (it.decided || now < *it.gone_at + kSettle)) return std::nullopt;
    it.decided = it.decided || known;
  }
  auto verdict = judge(signals);
  auto with_volumes = [&](auto which) {
    auto names = volumes_of(seen.signs, which);
    if (!names.empty()) verdict.why += " (" + names + ")";
  };
  if (verdict.finding == Finding::storage_lost)
    with_volumes([](const StorageSign& sign) { return sign.connected && sign.still; });
  else if (signals.storage == false && !seen.network)
    with_volumes([](const StorageSign& sign) { return sign.still; });
  auto before = it.opinion;
  bool same = before && before->verdict.finding == verdict.finding;
  it.opinion = Opinion{std::move(verdict), same ? before->since : now};
  if (same) return std::nullopt;
  return before ? Change{before->verdict.finding, false} : Change{{}, true};
}

bool NodeWatch::to_be_pinged(NodeId node, TimePoint now) {
  auto found = watched_.find(node);
  if (found == watched_.end()) return false;
  auto& it = found->second;
  if (!it.gone_at || (it.asked_at && now < *it.asked_at + kPingAgain)) return false;
  it.asked_at = now;
  return true;
}

void NodeWatch::answered(NodeId node, bool ping) {
  auto found = watched_.find(node);
  if (found != watched_.end() && found->second.asked_at) found->second.ping = ping;
}

void NodeWatch::forget_all_but(const std::set<NodeId>& nodes) {
  std::erase_if(watched_, [&](const auto& each) { return nodes.count(each.first) == 0; });
}

const NodeWatch::Opinion* NodeWatch::of(NodeId node) const {
  auto found = watched_.find(node);
  return found != watched_.end() && found->second.opinion ? &*found->second.opinion : nullptr;
}

}  // namespace csv::cluster
