#include "coordinator/cluster/advice.h"

#include <fmt/format.h>

#include <algorithm>

namespace csv::cluster {
namespace {

bool among(const std::vector<NodeId>& nodes, NodeId node) {
  return std::find(nodes.begin(), nodes.end(), node) != nodes.end();
}

unsigned counts(const Configuration& configuration, NodeId node) {
  auto found = configuration.ballot.now.nodes.find(node);
  return found == configuration.ballot.now.nodes.end() ? 0 : found->second;
}

std::string list(const Configuration& configuration, const std::vector<NodeId>& nodes,
                 const char* last) {
  std::string out;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (i > 0) out += i + 1 == nodes.size() ? fmt::format(" {} ", last) : std::string{", "};
    out += name_of(configuration, nodes[i]);
  }
  return out;
}

class Adviser {
 public:
  Adviser(const Configuration& configuration, const Standing& standing)
      : of_{configuration}, now_{standing} {
    for (const auto& [id, node] : of_.nodes)
      if (!among(now_.members, id)) absent_.push_back(id);
  }

  std::vector<Advice> all() {
    if (now_.formed) {
      margin();
      witness();
      maintenance();
    } else {
      missing();
    }
    return std::move(out_);
  }

 private:
  void say(std::string subject, std::string text) {
    out_.push_back({std::move(subject), std::move(text)});
  }

  /// What would let them go on.
  void missing() {
    // Nobody is reached, so that nobody can be said to be missing; or they are at it.
    if (now_.members.empty()) return;
    auto here = now_.members;
    std::erase_if(here, [this](NodeId node) { return among(now_.prevents, node); });
    if (majority(of_.ballot, here, now_.witness_held)) return;
    std::vector<NodeId> wanted;
    for (auto node : absent_)
      if (counts(of_, node) > 0) wanted.push_back(node);
    auto text = fmt::format("{} of {} votes here, {} needed", votes_present(of_, now_),
                            of_.ballot.now.total(), votes_needed(of_));
    if (witness_decides(of_.ballot, here)) text += ": the witness would decide, and it is not held";
    if (!now_.prevents.empty())
      text += fmt::format(
          ". {} {} told to prevent a quorum, and {} for a cluster that others form: csvctl cluster "
          "start there takes that back",
          list(of_, now_.prevents, "and"), now_.prevents.size() == 1 ? "was" : "were",
          now_.prevents.size() == 1 ? "waits" : "wait");
    if (!wanted.empty())
      text += fmt::format(". See that corosync and csvd run on {}, and that the network reaches {}",
                          list(of_, wanted, "and"), wanted.size() == 1 ? "it" : "them");
    // Those who were told to wait shall be joined to the others, not go on without them.
    if (!absent_.empty() && !here.empty())
      text += fmt::format(". If {} surely off: csvctl cluster start --force-quorum",
                          absent_.size() == 1 ? name_of(of_, absent_.front()) + " is"
                                              : list(of_, absent_, "and") + " are");
    say("quorum", text);
  }

  /// Whose failure would be one too many.
  void margin() {
    if (of_.nodes.size() < 2) return;
    if (now_.members.size() == 1)
      return say("quorum", fmt::format("only {} is left: nobody goes on when it fails{}",
                                       name_of(of_, now_.members.front()), back()));
    std::vector<NodeId> fatal;
    for (auto node : now_.members) {
      auto rest = now_.members;
      std::erase(rest, node);
      if (!majority(of_.ballot, rest, now_.witness_held)) fatal.push_back(node);
    }
    if (of_.nodes.size() == 2 && of_.witness.kind == WitnessKind::none)
      return say("quorum",
                 fmt::format("two nodes and no witness: when {} fails, the other one stops, too. A "
                             "small LUN or a share of another machine will do: csvctl cluster "
                             "witness",
                             fatal.empty() ? "one" : list(of_, fatal, "or")));
    if (!fatal.empty())
      say("quorum", fmt::format("one more failure stops the cluster: that of {}{}{}",
                                list(of_, fatal, "or"), back(), carried()));
    if (now_.witness_held && of_.ballot.now.witness > 0 &&
        !majority(of_.ballot, now_.members, false))
      say("quorum", "the cluster stops when the witness fails" + back());
  }

  std::string back() const {
    return absent_.empty() ? "" : fmt::format(". Bring {} back", list(of_, absent_, "or"));
  }
  std::string carried() const {
    if (of_.witness.kind != WitnessKind::none) return "";
    return absent_.empty() ? ". A witness would carry it: csvctl cluster witness"
                           : ", or give it a witness: csvctl cluster witness";
  }

  void witness() {
    if (of_.witness.kind == WitnessKind::none || now_.witness_answers.value_or(true)) return;
    say("witness", fmt::format("{} does not answer, so it decides nothing{}", of_.witness.place,
                               of_.witness.only ? ": nobody goes on without it" : ""));
  }

  void maintenance() {
    for (const auto& [id, node] : of_.nodes)
      if (node.fenced)
        say(node.name,
            "is fenced by command: its mounts are shut out until csvctl node unfence " + node.name);
    for (const auto& [id, node] : of_.nodes)
      if (node.state == NodeState::drained)
        say(node.name, "is drained, so no volume comes to it; after the work: csvctl node resume " +
                           node.name);
    for (const auto& [name, volume] : of_.volumes)
      if (volume.stopped)
        say(name,
            "is stopped by command, so whoever uses it waits; after the work: csvctl volume "
            "start " +
                name);
      else if (volume.coordinator == NodeId{})
        say(name, "no node that is here can coordinate it");
  }

  const Configuration& of_;
  const Standing& now_;
  std::vector<NodeId> absent_;
  std::vector<Advice> out_;
};

}  // namespace

std::string name_of(const Configuration& configuration, NodeId node) {
  auto found = configuration.nodes.find(node);
  return found == configuration.nodes.end() ? fmt::format("node {}", raw(node))
                                            : found->second.name;
}

unsigned votes_present(const Configuration& configuration, const Standing& standing) {
  unsigned sum = standing.witness_held ? configuration.ballot.now.witness : 0;
  for (auto node : standing.members)
    if (standing.formed || !among(standing.prevents, node)) sum += counts(configuration, node);
  return sum;
}

unsigned votes_needed(const Configuration& configuration) {
  return configuration.ballot.now.total() / 2 + 1;
}

std::string vote_reason(const Configuration& configuration, const Standing& standing, NodeId node) {
  auto found = configuration.nodes.find(node);
  if (found == configuration.nodes.end() || counts(configuration, node) > 0) return "";
  if (!found->second.votes) return "it was given none";
  if (configuration.witness.only) return "the witness alone decides";
  if (!among(standing.members, node)) return "it was away when votes were counted last";
  if (!standing.formed || configuration.ballot.before) return "it counts once votes were changed";
  return "it gave way so that there is no tie";
}

std::vector<Advice> advice(const Configuration& configuration, const Standing& standing) {
  return Adviser{configuration, standing}.all();
}

}  // namespace csv::cluster
