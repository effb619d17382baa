#include "coordinator/cluster/advice.h"

#include <doctest/doctest.h>

using namespace csv;
using namespace csv::cluster;

namespace {

NodeId id(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }

struct Bed {
  explicit Bed(int nodes) {
    configuration.cluster = 1;
    configuration.name = "c";
    for (int i = 1; i <= nodes; ++i) {
      configuration.nodes[id(i)] = {"n" + std::to_string(i), "a:" + std::to_string(i)};
      standing.members.push_back(id(i));
    }
    standing.formed = true;
    settle();
  }
  /// Votes as the cluster itself gives them to those who are here.
  void settle() {
    configuration.ballot = {votes_for(voting_rules(configuration), standing.members,
                                      standing.witness_answers.value_or(false)),
                            {}};
  }
  void leave(int node, bool settles = true) {
    std::erase(standing.members, id(node));
    if (settles) settle();
  }
  [[nodiscard]] std::string about(const std::string& subject) const {
    std::string out;
    for (const auto& each : advice(configuration, standing))
      if (each.subject == subject) out += each.text;
    return out;
  }
  Configuration configuration;
  Standing standing;
};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("advice: none while one more failure does no harm") {
  for (int nodes : {1, 3, 4, 5}) {
    Bed bed{nodes};
    CAPTURE(nodes);
    CHECK(advice(bed.configuration, bed.standing).empty());
  }
}

TEST_CASE("advice: two nodes want a witness, and the one whose vote counts is named") {
  Bed bed{2};
  CHECK(has(bed.about("quorum"), "two nodes and no witness: when n1 fails"));
  CHECK(vote_reason(bed.configuration, bed.standing, id(2)) ==
        "it gave way so that there is no tie");
  CHECK(vote_reason(bed.configuration, bed.standing, id(1)).empty());
  bed.configuration.witness = {WitnessKind::disk, "/dev/w"};
  bed.standing.witness_answers = bed.standing.witness_held = true;
  bed.settle();
  CHECK(bed.about("quorum").empty());
}

TEST_CASE("advice: three nodes, one after the other") {
  Bed bed{3};
  bed.leave(3);
  CHECK(bed.about("quorum") ==
        "one more failure stops the cluster: that of n1. Bring n3 back, or give it a witness: "
        "csvctl cluster witness");
  CHECK(vote_reason(bed.configuration, bed.standing, id(3)) ==
        "it was away when votes were counted last");
  bed.leave(2);
  CHECK(bed.about("quorum") ==
        "only n1 is left: nobody goes on when it fails. Bring n2 or n3 back");
}

TEST_CASE("advice: without a quorum, what would be needed") {
  Bed bed{3};
  bed.standing.formed = false;
  // Greeting each other: that is no trouble.
  CHECK(bed.about("quorum").empty());
  bed.leave(2, false);
  bed.leave(3, false);
  CHECK(bed.about("quorum") ==
        "1 of 3 votes here, 2 needed. See that corosync and csvd run on n2 and n3, and "
        "that the network reaches them. If n2 and n3 are surely off: csvctl cluster start "
        "--force-quorum");
  CHECK(votes_present(bed.configuration, bed.standing) == 1);
  CHECK(votes_needed(bed.configuration) == 2);
  // Without its engine a node knows of nobody.
  bed.leave(1, false);
  CHECK(advice(bed.configuration, bed.standing).empty());
}

TEST_CASE("advice: those who were told to prevent a quorum count for none, and are named") {
  Bed bed{3};
  bed.standing.formed = false;
  bed.leave(1, false);
  bed.standing.prevents = {id(2), id(3)};
  CHECK(bed.about("quorum") ==
        "0 of 3 votes here, 2 needed. n2 and n3 were told to prevent a quorum, and wait for a "
        "cluster that others form: csvctl cluster start there takes that back. See that corosync "
        "and csvd run on n1, and that the network reaches it");
  bed.standing.prevents = {id(3)};
  CHECK(has(bed.about("quorum"), "1 of 3 votes here, 2 needed. n3 was told to prevent a quorum"));
  CHECK(has(bed.about("quorum"), "csvctl cluster start --force-quorum"));
  bed.standing.formed = true;
  CHECK(votes_present(bed.configuration, bed.standing) == 2);
}

TEST_CASE("advice: a volume that is stopped is so on purpose") {
  Bed bed{3};
  bed.configuration.volumes["v"];
  CHECK(bed.about("v") == "no node that is here can coordinate it");
  set_stopped(bed.configuration.volumes["v"], true);
  CHECK(bed.about("v") ==
        "is stopped by command, so whoever uses it waits; after the work: csvctl volume start v");
}

TEST_CASE("advice: the witness decides, and is not held") {
  Bed bed{2};
  bed.configuration.witness = {WitnessKind::disk, "/dev/w"};
  bed.standing.witness_answers = true;
  bed.settle();
  bed.standing.formed = false;
  bed.leave(2, false);
  CHECK(has(bed.about("quorum"), "the witness would decide, and it is not held"));
  bed.standing.witness_held = true;
  CHECK(bed.about("quorum").empty());
}

TEST_CASE("advice: a witness that does not answer, and one that carries the cluster alone") {
  Bed bed{4};
  bed.configuration.witness = {WitnessKind::share, "/srv/w"};
  CHECK(bed.about("witness").empty());  // not known here
  bed.standing.witness_answers = false;
  CHECK(has(bed.about("witness"), "/srv/w does not answer"));
  bed.configuration.witness.only = true;
  bed.standing.witness_answers = bed.standing.witness_held = true;
  bed.settle();
  CHECK(has(bed.about("quorum"), "the cluster stops when the witness fails"));
  CHECK(vote_reason(bed.configuration, bed.standing, id(1)).empty());
}

TEST_CASE("advice: what maintenance has left behind, and what nobody coordinates") {
  Bed bed{3};
  bed.configuration.nodes[id(2)].state = NodeState::drained;
  bed.configuration.volumes["v"];
  CHECK(has(bed.about("n2"), "csvctl node resume n2"));
  CHECK(bed.about("v") == "no node that is here can coordinate it");
  bed.configuration.nodes[id(3)].votes = false;
  bed.settle();
  CHECK(vote_reason(bed.configuration, bed.standing, id(3)) == "it was given none");
  CHECK(vote_reason(bed.configuration, bed.standing, id(9)).empty());
}
