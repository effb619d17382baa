#include "coordinator/cluster/cluster_events.h"

#include <fmt/format.h>

#include <algorithm>

#include "coordinator/cluster/advice.h"
#include "coordinator/cluster/configuration_text.h"
#include "csvfs/base/events.h"

namespace csv::cluster {
namespace {

using events::Severity;

bool among(const std::vector<NodeId>& nodes, NodeId node) {
  return std::find(nodes.begin(), nodes.end(), node) != nodes.end();
}

std::string number_and_name(const Configuration& of, NodeId node) {
  if (of.nodes.count(node) == 0) return name_of(of, node);
  return fmt::format("node {} ({})", raw(node), name_of(of, node));
}

std::string list(const Configuration& of, const std::vector<NodeId>& nodes) {
  std::string out;
  for (auto node : nodes) out += (out.empty() ? "" : ", ") + name_of(of, node);
  return out;
}

/// Where nobody here has decided it: what anybody can see.
std::string likely_cause(const Sight& now, NodeId from) {
  if (from == NodeId{}) return "nobody had it";
  auto record = now.configuration->nodes.find(from);
  auto name = name_of(*now.configuration, from);
  if (record == now.configuration->nodes.end()) return name + " was taken out";
  if (!among(now.members, from)) return name + " is away";
  if (record->second.fenced) return name + " is fenced";
  if (record->second.state == NodeState::drained) return name + " is drained";
  return "moved from " + name + ", where it was";
}

}  // namespace

Sight sight_of(const Replica& replica) {
  Sight out;
  out.state = replica.state();
  out.reason = replica.reason();
  out.configuration = replica.configuration();
  if (replica.view()) {
    out.nodes = replica.view()->nodes;
    for (const auto& each : replica.view()->members) out.members.push_back(each.node);
  }
  out.steward = replica.steward();
  out.witness_answers = replica.witness_answers();
  out.prevents = replica.prevents();
  return out;
}

void ClusterEvents::because(const std::string& volume, std::string why) {
  if (why.empty())
    because_.erase(volume);
  else
    because_[volume] = std::move(why);
}

void ClusterEvents::look(const Sight& now) {
  if (!first_reason_) first_reason_ = now.reason;
  bool settled = now.state == Replica::State::formed || now.state == Replica::State::minority ||
                 now.state == Replica::State::lost;
  // Without a configuration there is no cluster that anything could happen to.
  if (!settled || now.configuration == nullptr) return;
  if (!forced_) forced_ = now.configuration->tag.forced;
  quorum(now);
  prevention(now);
  if (now.state != Replica::State::lost) members(now);
  if (now.state == Replica::State::formed) configuration(now);
}

void ClusterEvents::quorum(const Sight& now) {
  bool quorate = now.state == Replica::State::formed;
  if (quorate_ == quorate) return;
  if (quorate) {
    events::report(Severity::info, "quorum", "",
                   quorate_ ? "quorum is back: the cluster goes on" : "the cluster is quorate",
                   "here: " + list(*now.configuration, now.members));
  } else if (quorate_) {
    events::report(Severity::error, "quorum", "",
                   "no quorum: what is coordinated or mounted here waits", now.reason);
  } else {
    if (now.state == Replica::State::lost && now.reason == first_reason_) return;
    events::report(Severity::warning, "quorum", "", "waiting for a quorum", now.reason);
  }
  quorate_ = quorate;
}

void ClusterEvents::prevention(const Sight& now) {
  if (std::exchange(prevents_, now.prevents) == now.prevents) return;
  if (now.prevents)
    events::report(Severity::warning, "quorum", "",
                   "this node brings no cluster about until it has joined one: it was told to "
                   "prevent a quorum");
  else if (now.state == Replica::State::formed)
    events::report(Severity::info, "quorum", "",
                   "this node counts as ever again: it has joined a cluster that has formed",
                   "it had been told to prevent a quorum");
  else
    events::report(Severity::info, "quorum", "", "this node counts as ever again, by command");
}

void ClusterEvents::members(const Sight& now) {
  std::set<NodeId> here{now.members.begin(), now.members.end()};
  // Who is there at first, the quorum's event says.
  auto before = std::exchange(members_, here);
  if (!before) return;
  for (auto node : here)
    if (before->count(node) == 0)
      events::report(Severity::info, "node", "",
                     number_and_name(*now.configuration, node) + " has joined the cluster");
  for (auto node : *before)
    if (here.count(node) == 0)
      events::report(Severity::warning, "node", "",
                     number_and_name(*now.configuration, node) + " has left the cluster",
                     among(now.nodes, node) ? "its csvd has gone; its corosync is there"
                                            : "its corosync is not reached");
}

void ClusterEvents::configuration(const Sight& now) {
  const auto& next = *now.configuration;
  bool first = !known_;
  if (first) known_ = next;
  if (next.tag.forced > *forced_)
    events::report(Severity::warning, "quorum", "", "a quorum was forced by an administrator",
                   "here: " + list(next, now.members));
  forced_ = next.tag.forced;
  if (first || next.tag != known_->tag) {
    for (const auto& line : differences(*known_, next))
      events::report(Severity::info, "cluster", "", line);
    votes(now);
    volumes(now);
  }
  witness(now);
  if (next.tag != known_->tag) known_ = next;
}

void ClusterEvents::votes(const Sight& now) {
  const auto& ballot = now.configuration->ballot;
  // Under way; who forms a cluster has them for a moment as they were.
  if (ballot.before || votes_ == ballot.now) return;
  if (votes_) {
    std::vector<NodeId> counted;
    for (auto [node, vote] : ballot.now.nodes)
      if (vote > 0) counted.push_back(node);
    auto text = list(*now.configuration, counted);
    if (ballot.now.witness > 0) text += counted.empty() ? "the witness" : ", the witness";
    events::report(Severity::info, "votes", "", "those that count: " + text,
                   "here: " + list(*now.configuration, now.members));
  }
  votes_ = ballot.now;
}

void ClusterEvents::volumes(const Sight& now) {
  for (const auto& [name, volume] : now.configuration->volumes) {
    auto before = known_->volumes.find(name);
    auto from = before == known_->volumes.end() ? NodeId{} : before->second.coordinator;
    if (from == volume.coordinator) continue;
    auto why = because_.find(name);
    auto cause = why == because_.end() ? likely_cause(now, from) : why->second;
    because_.erase(name);
    if (volume.stopped)
      events::report(Severity::info, "coordinator", name,
                     "it is stopped by command: nobody coordinates it");
    else if (volume.coordinator == NodeId{})
      events::report(Severity::error, "coordinator", name, "no node can coordinate it", cause);
    else
      events::report(
          Severity::info, "coordinator", name,
          "the cluster gives it to " + number_and_name(*now.configuration, volume.coordinator),
          cause);
  }
}

void ClusterEvents::witness(const Sight& now) {
  const auto& record = now.configuration->witness;
  if (!now.steward || record.kind == WitnessKind::none || record != known_->witness) {
    witness_answers_.reset();
    return;
  }
  // Before its first answer it was only not asked yet.
  if (!witness_answers_ && !now.witness_answers) return;
  auto before = std::exchange(witness_answers_, now.witness_answers);
  if (!before || *before == now.witness_answers) return;
  events::report(now.witness_answers ? Severity::info : Severity::warning, "witness", "",
                 now.witness_answers ? "the witness answers again" : "the witness does not answer",
                 record.place);
}

}  // namespace csv::cluster
