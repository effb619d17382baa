#include "coordinator/cluster/votes.h"

#include <doctest/doctest.h>

#include <bit>
#include <set>
#include <string>
#include <vector>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::cluster;

namespace {

/// A set of nodes: bit i is node i + 1. In tests of what is stored, bit N is the witness.
using Set = unsigned;

std::vector<NodeId> nodes_of(Set set) {
  std::vector<NodeId> nodes;
  for (unsigned i = 0; i < 32; ++i)
    if ((set >> i & 1) != 0) nodes.push_back(NodeId{static_cast<std::uint8_t>(i + 1)});
  return nodes;
}
Set all_of(unsigned n) { return (1u << n) - 1; }
NodeId node(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }

VotingRules rules_of(unsigned n, bool witness) {
  VotingRules rules;
  for (auto each : nodes_of(all_of(n))) rules.voters[each] = true;
  rules.witness = witness;
  return rules;
}

/// Votes as text: "1 1 0 +1".
std::string text(const Votes& votes) {
  std::string text;
  for (auto [id, vote] : votes.nodes) text += std::to_string(vote) + " ";
  return text + "+" + std::to_string(votes.witness);
}

/// A cluster in which nodes die, and in which those that are left do what they should: go on only
/// with a majority, then change the votes, which is stored by the living and the witness.
struct Cluster {
  Cluster(unsigned n, bool witness)
      : rules{rules_of(n, witness)},
        living{all_of(n)},
        ballot{votes_for(rules, nodes_of(living), witness), {}} {}

  bool lose(Set dead) {
    living &= ~dead;
    // The witness has no other side to go to.
    if (!majority(ballot, nodes_of(living), rules.witness)) return false;
    change();
    return true;
  }
  void change() {
    auto next = votes_for(rules, nodes_of(living), rules.witness);
    if (next == ballot.now) return;
    Ballot joint{next, ballot.now};
    if (majority(joint, nodes_of(living), rules.witness)) ballot = {next, {}};
  }

  VotingRules rules;
  Set living;
  Ballot ballot;
};

struct Survival {
  int choices = 0, survive = 0;
  void add(bool survives) {
    ++choices;
    survive += survives ? 1 : 0;
  }
  [[nodiscard]] std::string text() const {
    if (survive == 0) return "no";
    if (survive == choices) return "yes";
    if (2 * survive == choices) return "50:50";
    return std::to_string(survive) + " of " + std::to_string(choices);
  }
};

struct Row {
  Survival one, another, two_at_once;
};

Row survival(unsigned n, bool witness) {
  Row row;
  for (Set first = 0; first < n; ++first) {
    Cluster start{n, witness};
    bool survives = start.lose(1u << first);
    row.one.add(survives);
    for (Set second = 0; second < n; ++second) {
      if (second == first) continue;
      // "Then another" is asked of a cluster that survived the first.
      if (survives) {
        auto copy = start;
        row.another.add(copy.lose(1u << second));
      }
      if (second < first) {
        Cluster both{n, witness};
        row.two_at_once.add(both.lose(1u << first | 1u << second));
      }
    }
  }
  return row;
}

}  // namespace

TEST_CASE("votes: what a cluster survives, for all choices of who dies") {
  struct Claim {
    unsigned nodes;
    bool witness;
    std::string one, another, two_at_once;
  };
  const Claim table[] = {
      {1, false, "no", "no", "no"},      {1, true, "no", "no", "no"},
      {2, false, "50:50", "no", "no"},   {2, true, "yes", "no", "no"},
      {3, false, "yes", "50:50", "no"},  {3, true, "yes", "yes", "no"},
      {4, false, "yes", "yes", "50:50"}, {4, true, "yes", "yes", "yes"},
      {5, false, "yes", "yes", "yes"},   {5, true, "yes", "yes", "yes"},
      {6, false, "yes", "yes", "yes"},   {6, true, "yes", "yes", "yes"},
      {7, false, "yes", "yes", "yes"},   {7, true, "yes", "yes", "yes"},
      {8, false, "yes", "yes", "yes"},   {8, true, "yes", "yes", "yes"},
  };
  for (const auto& claim : table) {
    CAPTURE(claim.nodes);
    CAPTURE(claim.witness);
    auto row = survival(claim.nodes, claim.witness);
    CHECK(row.one.text() == claim.one);
    CHECK(row.another.text() == claim.another);
    CHECK(row.two_at_once.text() == claim.two_at_once);
  }
}

TEST_CASE("votes: nodes can go one by one, in any order, down to the last that has a vote") {
  for (unsigned n = 2; n <= 6; ++n) {
    for (bool witness : {false, true}) {
      CAPTURE(n);
      CAPTURE(witness);
      std::vector<unsigned> order(n);
      for (unsigned i = 0; i < n; ++i) order[i] = i;
      do {
        Cluster cluster{n, witness};
        unsigned left = n;
        for (auto who : order) {
          if (left == 1) break;
          // Of two without a witness one has the vote. The other can still leave in good order: its
          // vote goes before it does, which is what comes next.
          if (left == 2 && !witness) {
            bool last_has_it = cluster.ballot.now.nodes.at(node(static_cast<int>(who) + 1)) == 0;
            CHECK(cluster.lose(1u << who) == last_has_it);
            break;
          }
          REQUIRE(cluster.lose(1u << who));
          --left;
        }
      } while (std::next_permutation(order.begin(), order.end()));
    }
  }
}

TEST_CASE("votes: whoever leaves in good order takes no quorum along, the one with the vote too") {
  Cluster two{2, false};
  CHECK(text(two.ballot.now) == "1 0 +0");
  // Node 1 leaves: first the votes are those of node 2 alone, stored by both.
  auto next = votes_for(two.rules, nodes_of(0b10), false);
  CHECK(text(next) == "0 1 +0");
  Ballot joint{next, two.ballot.now};
  CHECK(majority(joint, nodes_of(0b11), false));
  CHECK_FALSE(majority(joint, nodes_of(0b10), false));  // not without node 1, whose vote it was
  CHECK_FALSE(majority(joint, nodes_of(0b01), false));
  CHECK(majority({next, {}}, nodes_of(0b10), false));
}

TEST_CASE("votes: of two halves exactly one goes on, by itself or with the witness") {
  for (unsigned n = 2; n <= 8; ++n) {
    for (bool witness : {false, true}) {
      CAPTURE(n);
      CAPTURE(witness);
      Cluster cluster{n, witness};
      for (Set half = 1; half < all_of(n); ++half) {
        auto a = nodes_of(half), b = nodes_of(all_of(n) & ~half);
        if (a.size() != b.size()) continue;
        CHECK(witness_decides(cluster.ballot, a) == witness);
        CHECK(witness_decides(cluster.ballot, b) == witness);
        CHECK(majority(cluster.ballot, a, witness) != majority(cluster.ballot, b, false));
        CHECK(majority(cluster.ballot, a, false) != majority(cluster.ballot, b, witness));
      }
    }
  }
}

TEST_CASE("votes: the one named gives way first; a node without a vote never counts") {
  auto rules = rules_of(4, false);
  CHECK(text(votes_for(rules, nodes_of(0b1111), false)) == "1 1 1 0 +0");
  rules.gives_way = node(2);
  CHECK(text(votes_for(rules, nodes_of(0b1111), false)) == "1 0 1 1 +0");
  CHECK(text(votes_for(rules, nodes_of(0b1110), false)) == "0 1 1 1 +0");  // odd: nobody has to
  CHECK(text(votes_for(rules, nodes_of(0b1101), false)) == "1 0 1 1 +0");  // it is not there
  CHECK(text(votes_for(rules, nodes_of(0b1001), false)) == "1 0 0 0 +0");

  rules.voters[node(4)] = false;
  CHECK(text(votes_for(rules, nodes_of(0b1111), false)) == "1 1 1 0 +0");
  rules.voters[node(2)] = false;  // whoever is named and has no vote cannot give one
  CHECK(text(votes_for(rules, nodes_of(0b1111), false)) == "1 0 0 0 +0");
  rules.gives_way = node(9);  // nor can a stranger
  CHECK(text(votes_for(rules, nodes_of(0b1111), false)) == "1 0 0 0 +0");
  // Two sites: the remote nodes follow, however many they are.
  Ballot ballot{votes_for(rules, nodes_of(0b1111), false), {}};
  CHECK_FALSE(majority(ballot, nodes_of(0b1010), false));
  CHECK(majority(ballot, nodes_of(0b0001), false));
}

TEST_CASE("votes: the witness counts while the number of node votes is even, and it answers") {
  auto rules = rules_of(4, true);
  CHECK(text(votes_for(rules, nodes_of(0b1111), true)) == "1 1 1 1 +1");
  CHECK(text(votes_for(rules, nodes_of(0b0111), true)) == "1 1 1 0 +0");
  CHECK(text(votes_for(rules, nodes_of(0b1111), false)) == "1 1 1 0 +0");
  CHECK(text(votes_for(rules, nodes_of(0b0001), true)) == "1 0 0 0 +0");
}

TEST_CASE("votes: without dynamic quorum they stay, whoever is there") {
  auto rules = rules_of(3, true);
  rules.dynamic = false;
  for (Set present = 0; present < 8; ++present)
    CHECK(text(votes_for(rules, nodes_of(present), present % 2 == 0)) == "1 1 1 +1");
  rules.witness = false;
  CHECK(text(votes_for(rules, nodes_of(1), false)) == "1 1 1 +0");
}

TEST_CASE("votes: disk only, the witness decides against all nodes, and nothing without it") {
  auto rules = rules_of(3, true);
  rules.disk_only = true;
  for (Set present = 1; present < 8; ++present) {
    Ballot ballot{votes_for(rules, nodes_of(present), true), {}};
    for (Set side = 1; side < 8; ++side) {
      CHECK(majority(ballot, nodes_of(side), true));
      CHECK_FALSE(majority(ballot, nodes_of(side), false));
    }
  }
}

TEST_CASE("votes: nobody's votes are nobody's majority") {
  CHECK_FALSE(majority({}, {}, true));
  CHECK_FALSE(majority({}, nodes_of(0b111), true));
  CHECK_FALSE(majority({{{{node(1), 1}}, 0}, Votes{}}, nodes_of(1), true));
}

namespace {

/// Of every set of voters (the witness is bit N) whether it is a majority. A table, because the
/// searches below ask millions of times.
struct Majorities {
  Majorities(const Votes& votes, unsigned n) : is(2u << n) {
    for (Set set = 0; set < is.size(); ++set)
      is[set] = majority({votes, {}}, nodes_of(set & all_of(n)), (set >> n & 1) != 0);
  }
  std::vector<bool> is;
};

/// Every ballot that some sequence of losses, returns and failures of the witness leads to.
std::vector<Votes> reachable(const VotingRules& rules, unsigned n) {
  std::vector<Votes> found;
  std::set<std::string> known;
  auto add = [&](const Votes& votes) {
    if (known.insert(text(votes)).second) found.push_back(votes);
  };
  add(votes_for(rules, nodes_of(all_of(n)), true));
  for (std::size_t i = 0; i < found.size(); ++i) {
    auto from = found[i];
    for (Set present = 1; present <= all_of(n); ++present) {
      for (bool witness : {false, true}) {
        if (witness && !rules.witness) continue;
        if (!majority({from, {}}, nodes_of(present), witness)) continue;
        auto next = votes_for(rules, nodes_of(present), witness);
        if (majority({next, from}, nodes_of(present), witness)) add(next);
      }
    }
  }
  return found;
}

std::vector<VotingRules> rules_for(unsigned n) {
  std::vector<VotingRules> all;
  for (bool witness : {false, true}) {
    all.push_back(rules_of(n, witness));
    all.push_back(rules_of(n, witness));
    all.back().gives_way = node(1);
    all.push_back(rules_of(n, witness));
    all.back().dynamic = false;
    all.push_back(rules_of(n, witness));
    all.back().voters[node(1)] = n == 1;
  }
  all.push_back(rules_of(n, true));
  all.back().disk_only = true;
  return all;
}

/// Looks for two sides that would both go on while a change of votes is on its way. Every voter,
/// the witness among them, has the votes before, the joint change, or (once that is durable on a
/// majority of both) the votes after. A side goes on by the newest that any of its members has.
/// With `by_both` false the change is made at once, as if there were no joint ballot. Returns how
/// often two sides went on.
struct Search {
  unsigned n;
  bool by_both = true;
  std::uint64_t splits = 0;

  std::uint64_t two_sides(const Votes& before, const Votes& after) {
    Majorities old{before, n}, fresh{after, n};
    Set everybody = all_of(n + 1);
    std::uint64_t found = 0;
    for (Set stored = 0; stored <= everybody; ++stored) {
      bool committed = old.is[stored] && fresh.is[stored];
      // Who has been told that it is committed: any of those that stored it.
      for (Set told = committed ? stored : 0;; told = (told - 1) & stored) {
        found += sides(old, fresh, stored, by_both ? told : stored);
        if (told == 0) break;
      }
    }
    return found;
  }

 private:
  std::uint64_t sides(const Majorities& old, const Majorities& fresh, Set stored, Set told) {
    auto goes_on = [&](Set side) {
      if ((side & told) != 0) return bool{fresh.is[side]};
      if ((side & stored) != 0) return old.is[side] && fresh.is[side];
      return bool{old.is[side]};
    };
    std::uint64_t found = 0;
    Set everybody = all_of(n + 1);
    for (Set one = 1; one <= everybody; ++one) {
      if (!goes_on(one)) continue;
      // More members may know more, and so decide otherwise: every other side is tried.
      Set rest = everybody & ~one;
      for (Set other = rest; other != 0; other = (other - 1) & rest) {
        ++splits;
        if (goes_on(other)) ++found;
      }
    }
    return found;
  }
};

}  // namespace

TEST_CASE("votes: no two disjoint sides go on, whatever of a change of votes is stored where") {
  for (unsigned n = 1; n <= 4; ++n) {
    for (const auto& rules : rules_for(n)) {
      CAPTURE(n);
      CAPTURE(rules.witness);
      Search search{.n = n};
      auto ballots = reachable(rules, n);
      for (const auto& before : ballots)
        for (const auto& after : ballots) {
          CAPTURE(text(before));
          CAPTURE(text(after));
          REQUIRE(search.two_sides(before, after) == 0);
        }
      if (n == 4) CHECK(search.splits > 1000);
    }
  }
}

TEST_CASE("votes: nor while nodes are added, taken out, or the witness is changed") {
  std::vector<Votes> all;
  for (unsigned n = 1; n <= 4; ++n)
    for (const auto& rules : rules_for(n)) {
      // Any witness of one is a voter of the other too: it stores every change (A4).
      auto votes = votes_for(rules, nodes_of(all_of(n)), true);
      for (int i = static_cast<int>(n) + 1; i <= 4; ++i) votes.nodes[node(i)] = 0;
      all.push_back(votes);
    }
  Search search{.n = 4};
  for (const auto& before : all)
    for (const auto& after : all) REQUIRE(search.two_sides(before, after) == 0);
}

TEST_CASE("votes: a change that does not ask the votes before would split the cluster") {
  // Two nodes and a witness. Node 1 is away, node 2 makes itself the only voter, and that is stored
  // by itself, which is all of the votes after. Node 1 comes, takes the witness, and has two of
  // three.
  auto rules = rules_of(2, true);
  auto before = votes_for(rules, nodes_of(0b11), true);
  auto after = votes_for(rules, nodes_of(0b10), true);
  CHECK(majority({after, {}}, nodes_of(0b10), false));
  CHECK(majority({before, {}}, nodes_of(0b01), true));
  // With the votes before it is not a change that counts, until the witness has stored it too.
  CHECK_FALSE(majority({after, before}, nodes_of(0b10), false));
  CHECK(majority({after, before}, nodes_of(0b10), true));
  // And the search above would have found it.
  Search careless{.n = 2, .by_both = false};
  CHECK(careless.two_sides(before, after) > 0);
}

namespace {

/// What every voter stores, as its tag orders it; the newest that a side knows is what it goes by.
struct Stored {
  std::uint64_t epoch = 0, sequence = 0;
  Ballot ballot;
};

/// Sides that form, change votes, are interrupted at any step and leave things half done, over and
/// over. The witness is the last voter.
struct History {
  History(const VotingRules& with, unsigned nodes, std::uint64_t seed)
      : rules{with}, n{nodes}, random{seed} {
    Stored first{1, 1, {votes_for(rules, nodes_of(all_of(n)), true), {}}};
    voters.assign(n + 1, first);
  }
  [[nodiscard]] Stored newest(Set side) const {
    Stored best;
    for (unsigned i = 0; i <= n; ++i)
      if ((side >> i & 1) != 0 &&
          std::pair{voters[i].epoch, voters[i].sequence} > std::pair{best.epoch, best.sequence})
        best = voters[i];
    return best;
  }
  [[nodiscard]] bool counts(const Ballot& ballot, Set side) const {
    return majority(ballot, nodes_of(side & all_of(n)), (side >> n & 1) != 0);
  }
  /// On each of `side`, unless the side breaks up on the way. Whether a majority has it.
  bool store(Set side, const Stored& what) {
    Set done = 0;
    for (unsigned i = 0; i <= n; ++i) {
      if ((side >> i & 1) == 0) continue;
      if (random.chance(1, 8)) continue;  // out of reach just now
      voters[i] = what;
      done |= 1u << i;
    }
    return counts(what.ballot, done);
  }
  void step() {
    Set side = static_cast<Set>(random.below(all_of(n + 1))) + 1;
    if (!rules.witness) side &= all_of(n);
    if ((side & all_of(n)) == 0) return;
    auto mine = newest(side);
    if (!counts(mine.ballot, side)) return;
    // Its configuration is the valid one from here on: the next epoch says so.
    mine.epoch += 1;
    mine.sequence += 1;
    if (!store(side, mine)) return;
    ++formed;
    for (auto changes = random.below(3); changes > 0; --changes) {
      Set present = side & all_of(n);
      auto next = votes_for(rules, nodes_of(present), (side >> n & 1) != 0);
      // A joint change that was found half done is finished first.
      if (mine.ballot.before) next = mine.ballot.now;
      if (!mine.ballot.before && next == mine.ballot.now) return;
      if (!mine.ballot.before) mine.ballot = {next, mine.ballot.now};
      mine.sequence += 1;
      if (!store(side, mine)) return;
      mine.ballot.before.reset();
      mine.sequence += 1;
      if (!store(side, mine)) return;
      ++changed;
    }
  }
  [[nodiscard]] bool split() const {
    Set everybody = rules.witness ? all_of(n + 1) : all_of(n);
    for (Set one = 1; one <= everybody; ++one) {
      if (!counts(newest(one).ballot, one)) continue;
      Set rest = everybody & ~one;
      for (Set other = rest; other != 0; other = (other - 1) & rest)
        if (counts(newest(other).ballot, other)) return true;
    }
    return false;
  }

  VotingRules rules;
  unsigned n;
  Random random;
  std::vector<Stored> voters;
  int formed = 0, changed = 0;
};

}  // namespace

TEST_CASE("votes: histories of changes, interrupted anywhere, never lead to two sides") {
  int formed = 0, changed = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    unsigned n = 2 + seed % 3;
    for (bool witness : {false, true}) {
      History history{rules_of(n, witness), n, seed};
      for (int steps = 0; steps < 60; ++steps) {
        history.step();
        CAPTURE(seed);
        CAPTURE(steps);
        REQUIRE_FALSE(history.split());
      }
      formed += history.formed;
      changed += history.changed;
    }
  }
  CHECK(formed > 1000);
  CHECK(changed > 500);
}
