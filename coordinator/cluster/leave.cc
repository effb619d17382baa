#include "coordinator/cluster/leave.h"

#include <fmt/format.h>

#include <utility>

namespace csv::cluster {
namespace {

Error refused(std::string why) { return {Errc::refused, std::move(why)}; }

std::string list(const std::vector<std::string>& names) {
  std::string out;
  for (const auto& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

Expected<void> not_mounted(const std::vector<std::string>& mounted) {
  if (mounted.empty()) return {};
  return refused("mounted on this node: " + list(mounted) + "; umount first");
}

/// Whom nobody needs any more can be taken out; else why not.
Expected<void> dispensable(const Configuration& now, NodeId node) {
  if (now.nodes.size() == 1)
    return refused(
        "this node is the cluster's last: there is nobody to leave it to. To end the cluster, stop "
        "csvd and corosync");
  const auto& ballot = now.ballot;
  auto counts = [node](const Votes& votes) {
    auto found = votes.nodes.find(node);
    return found != votes.nodes.end() && found->second > 0;
  };
  if (ballot.before || counts(ballot.now))
    return refused(
        "without this node the others would have no quorum; csvctl cluster status says which nodes "
        "or witness would have to be back first");
  for (const auto& [name, volume] : now.volumes)
    if (volume.coordinator == node)
      return refused("no other node takes volume " + name +
                     ": none that takes part has it and reaches its LUN");
  return {};
}

/// Why it cannot be taken out yet.
Expected<void> ready(const Leaver& with) {
  if (with.replica->state() != Replica::State::formed)
    return Error{Errc::retry, "no quorum: " + with.replica->reason()};
  CSV_TRY(dispensable(*with.replica->configuration(), with.node));
  if (auto serving = with.serving(); !serving.empty())
    return refused("this node has not given up volume " + list(serving) + " yet");
  return {};
}

Replica::Change set(NodeId node, NodeState state, bool votes) {
  return [node, state, votes](Configuration& next) -> Expected<void> {
    auto found = next.nodes.find(node);
    if (found == next.nodes.end()) return refused("this node belongs to the cluster no more");
    found->second.state = state;
    found->second.votes = votes;
    return {};
  };
}

/// As far as can be told here.
bool is_out(const Leaver& with) {
  return with.replica->state() == Replica::State::formed &&
         with.replica->configuration()->nodes.count(with.node) == 0;
}

Task<Expected<void>> hand_over(const Leaver& with) {
  auto until = with.loop->now() + with.handover;
  auto timer = with.loop->after(with.handover, [changed = with.changed] { changed->notify(); });
  struct Cancel {
    Loop* loop;
    Loop::TimerId timer;
    ~Cancel() { loop->cancel(timer); }
  } cancel{with.loop, timer};
  auto may = ready(with);
  while (!may && with.loop->now() < until) {
    co_await with.changed->wait();
    may = ready(with);
  }
  if (may) may = not_mounted(with.mounted());
  if (!may) co_return may;
  Replica::Change out = [node = with.node,
                         mounted = with.mounted](Configuration& next) -> Expected<void> {
    if (next.nodes.count(node) == 0) return {};
    CSV_TRY(dispensable(next, node));
    CSV_TRY(not_mounted(mounted()));  // since
    take_out(next, node);
    return {};
  };
  auto change = with.replica->propose(std::move(out), with.patience);
  auto taken_out = co_await change;
  co_return taken_out;
}

}  // namespace

Task<Expected<void>> leave(Leaver with) {
  const auto* now = with.replica->configuration();
  if (now == nullptr || now->nodes.count(with.node) == 0)
    co_return refused("this node belongs to no cluster");
  if (now->nodes.size() == 1) co_return dispensable(*now, with.node);
  if (auto may = not_mounted(with.mounted()); !may) co_return may;
  const auto before = now->nodes.at(with.node);

  auto begin = set(with.node, NodeState::drained, false);
  auto drain = with.replica->propose(std::move(begin), with.patience);
  auto drained = co_await drain;
  if (!drained) co_return drained;

  auto handing_over = hand_over(with);
  auto left = co_await handing_over;
  if (left || is_out(with)) co_return Expected<void>{};

  auto back = set(with.node, before.state, before.votes);
  auto undo = with.replica->propose(std::move(back), with.patience);
  auto undone = co_await undo;
  // What was not in force in time may have been later.
  if (is_out(with)) co_return Expected<void>{};
  if (undone) co_return left;
  co_return Error{left.error().code(),
                  fmt::format("{}; it is drained and without a vote now ({}): csvctl cluster "
                              "status",
                              left.error().message(), undone.error().message())};
}

}  // namespace csv::cluster
