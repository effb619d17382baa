#include "tests/simulation/group.h"

#include <algorithm>
#include <utility>

#include "coordinator/cluster/configuration.h"
#include "coordinator/protocol/group.pb.h"

namespace csv::sim {
namespace {

/// The same message; of a proposal that binds two sets of votes, one that binds the new one alone.
std::string without_former_votes(const std::string& text) {
  wire::GroupMessage message;
  if (!message.ParseFromString(text) || !message.has_proposal()) return text;
  auto proposed = cluster::decode(message.proposal().configuration());
  if (!proposed || !proposed->ballot.before) return text;
  proposed->ballot.before.reset();
  message.mutable_proposal()->set_configuration(cluster::encode(*proposed));
  return message.SerializeAsString();
}

/// The same message; of a greeting, without the word that what it brings was forced.
std::string without_force(const std::string& text) {
  wire::GroupMessage message;
  if (!message.ParseFromString(text) || !message.has_greeting()) return text;
  auto& greeting = *message.mutable_greeting();
  greeting.mutable_promised()->set_forced(0);
  if (auto brought = cluster::decode(greeting.configuration())) {
    brought->tag.forced = 0;
    greeting.set_configuration(cluster::encode(*brought));
  }
  return message.SerializeAsString();
}

}  // namespace

/// What a member is told waits in a line: views and messages in one order.
class Group::Engine final : public cluster::Engine {
 public:
  Engine(Group& group, SimLoop& loop, NodeId node, std::uint64_t life)
      : group_{group}, loop_{loop}, self_{node, life} {}
  ~Engine() override { group_.died(this); }

  void start(Handlers handlers) override {
    handlers_ = std::move(handlers);
    group_.engines_[self_.life] = this;
    group_.world_.after(group_.world_.between(1ms, 5ms), [this, alive = std::weak_ptr{alive_}] {
      if (!alive.lock()) return;
      joined_ = true;
      auto ring = group_.ring_of(self_.node);
      if (!ring) return;
      ring_ = ring;
      seen_ = ring->log.size();
      ring->members[self_.life] = this;
      group_.members_changed(*ring);
    });
  }
  void multicast(std::string message) override {
    if (!ring_) return;
    group_.world_.after(group_.world_.between(group_.weather.least, group_.weather.most),
                        [this, alive = std::weak_ptr{alive_}, ring = ring_,
                         message = std::move(message)]() mutable {
                          if (alive.lock()) group_.order(this, ring, std::move(message));
                        });
  }
  void vote_by(Verdict verdict) override { verdict_ = std::move(verdict); }
  [[nodiscard]] cluster::Member self() const override { return self_; }

  void tell(const cluster::View& view) {
    loop_.post([this, alive = std::weak_ptr{alive_}, view] {
      if (alive.lock()) handlers_.view(view);
    });
  }
  void tell(cluster::Member from, const std::string& message) {
    loop_.post([this, alive = std::weak_ptr{alive_}, from, message] {
      if (alive.lock()) handlers_.deliver(from, message);
    });
  }

  Group& group_;
  SimLoop& loop_;
  cluster::Member self_;
  Handlers handlers_;
  Verdict verdict_;
  std::shared_ptr<Ring> ring_;
  std::size_t seen_ = 0;  ///< Of the ring's log.
  bool joined_ = false, pumping_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

std::unique_ptr<cluster::Engine> Group::engine(SimLoop& loop, NodeId node) {
  known_.insert(node);
  if (!rings_.contains(node)) changed(0ms);
  return std::make_unique<Engine>(*this, loop, node, next_life_++);
}

std::shared_ptr<Group::Ring> Group::ring_of(NodeId node) {
  auto found = rings_.find(node);
  return found == rings_.end() ? nullptr : found->second;
}

bool Group::reach(NodeId one, NodeId other) const {
  return !off_.contains(one) && !off_.contains(other) &&
         !parted_.contains({std::min(one, other), std::max(one, other)});
}

void Group::part(NodeId one, NodeId other) {
  parted_.insert({std::min(one, other), std::max(one, other)});
  changed(weather.token);
}
void Group::join(NodeId one, NodeId other) {
  parted_.erase({std::min(one, other), std::max(one, other)});
  go_on_everywhere();
  changed(weather.joining);
}
void Group::join_all() {
  parted_.clear();
  go_on_everywhere();
  changed(weather.joining);
}
void Group::power(NodeId node, bool on) {
  if (on)
    off_.erase(node);
  else
    off_.insert(node);
  go_on_everywhere();
  changed(on ? weather.joining : weather.token);
}

bool Group::votes(NodeId node) const {
  for (const auto& [life, each] : engines_)
    if (each->self_.node == node && each->verdict_ && each->ring_)
      return each->loop_.now() < each->verdict_(each->ring_->nodes);
  return false;
}

void Group::changed(Duration after) {
  // Several changes at once are noticed at once.
  if (std::exchange(regrouping_, true)) return;
  world_.after(after, [this] {
    regrouping_ = false;
    regroup();
  });
}

/// New rings: each a set of nodes that all reach each other, the lowest first.
void Group::regroup() {
  std::map<NodeId, std::shared_ptr<Ring>> next;
  std::set<NodeId> left;
  for (auto node : known_)
    if (!off_.contains(node)) left.insert(node);
  std::vector<std::shared_ptr<Ring>> fresh;
  while (!left.empty()) {
    std::vector<NodeId> together;
    for (auto node : left)
      if (std::all_of(together.begin(), together.end(),
                      [&](NodeId each) { return reach(each, node); }))
        together.push_back(node);
    for (auto node : together) left.erase(node);
    auto before = ring_of(together.front());
    if (before && before->nodes == together) {
      for (auto node : together) next[node] = before;
      continue;
    }
    auto ring = std::make_shared<Ring>();
    ring->nodes = together;
    for (auto node : together) next[node] = ring;
    fresh.push_back(std::move(ring));
  }
  next_ring_ += world_.random().below(3) + 1;
  for (auto& ring : fresh) ring->number = next_ring_;
  rings_ = std::move(next);
  for (const auto& [life, each] : engines_) {
    if (!each->joined_) continue;
    auto ring = ring_of(each->self_.node);
    if (ring == each->ring_) continue;
    if (!ring) {
      if (each->ring_) each->ring_->members.erase(life);
      each->ring_.reset();
      continue;
    }
    ring->members[life] = each;
  }
  for (auto& ring : fresh) {
    // Those that come from one ring together have seen the same of it, some of it perhaps no
    // others.
    std::vector<std::pair<Ring*, std::size_t>> until;
    auto until_of = [&until](Ring* old) -> std::size_t& {
      for (auto& [known, most] : until)
        if (known == old) return most;
      return until.emplace_back(old, 0).second;
    };
    for (const auto& [life, each] : ring->members)
      if (each->ring_) {
        auto& most = until_of(each->ring_.get());
        most = std::max(most, each->seen_);
      }
    for (auto& [old, most] : until) most += world_.random().below(old->log.size() - most + 1);
    for (const auto& [life, each] : ring->members) {
      if (each->ring_) {
        auto& old = *each->ring_;
        for (; each->seen_ < until_of(&old); ++each->seen_)
          each->tell(old.log[each->seen_].first, old.log[each->seen_].second);
        if (each->ring_ != ring) old.members.erase(life);
      }
    }
    for (const auto& [life, each] : ring->members) {
      each->ring_ = ring;
      each->seen_ = 0;
    }
    members_changed(*ring);
  }
}

/// As lives that no real one has.
std::vector<cluster::Member> Group::absent_from(const Ring& ring) const {
  std::vector<cluster::Member> out;
  if (!forgery.speak_for_absent) return out;
  for (auto node : known_)
    if (std::find(ring.nodes.begin(), ring.nodes.end(), node) == ring.nodes.end())
      out.push_back({node, ~0ull});
  return out;
}

/// Everything said before is told before the view, to everybody.
void Group::members_changed(Ring& ring) {
  cluster::View view;
  view.ring = ring.number;
  view.nodes = ring.nodes;
  for (const auto& [life, each] : ring.members) view.members.push_back(each->self_);
  for (const auto& absent : absent_from(ring)) view.members.push_back(absent);
  std::sort(view.members.begin(), view.members.end());
  for (const auto& [life, each] : ring.members) {
    for (; each->seen_ < ring.log.size(); ++each->seen_)
      each->tell(ring.log[each->seen_].first, ring.log[each->seen_].second);
    each->tell(view);
  }
}

void Group::order(Engine* from, const std::shared_ptr<Ring>& ring, std::string message) {
  if (from->ring_ != ring) return;
  ring->waiting.emplace_back(from->self_, std::move(message));
  go_on(*ring);
}

bool Group::whole(const Ring& ring) const {
  for (auto one : ring.nodes)
    for (auto other : ring.nodes)
      if (!reach(one, other)) return false;
  return true;
}

/// Nothing is ordered while one is missing: the token does not come round.
void Group::go_on(Ring& ring) {
  if (ring.waiting.empty() || !whole(ring)) return;
  for (auto& [from, message] : std::exchange(ring.waiting, {})) {
    if (!ring.members.contains(from.life)) continue;
    if (forgery.change_votes_alone) message = without_former_votes(message);
    if (forgery.forget_force) message = without_force(message);
    for (const auto& absent : absent_from(ring)) ring.log.emplace_back(absent, message);
    ring.log.emplace_back(from, std::move(message));
  }
  for (const auto& [life, each] : ring.members) pump(each);
}

void Group::go_on_everywhere() {
  for (const auto& [node, ring] : rings_) go_on(*ring);
}

void Group::pump(Engine* engine) {
  if (std::exchange(engine->pumping_, true)) return;
  world_.after(world_.between(weather.least, weather.most),
               [this, engine, alive = std::weak_ptr{engine->alive_}] {
                 if (!alive.lock()) return;
                 engine->pumping_ = false;
                 auto ring = engine->ring_;
                 if (!ring || engine->seen_ >= ring->log.size()) return;
                 const auto& [from, message] = ring->log[engine->seen_++];
                 engine->tell(from, message);
                 if (engine->seen_ < ring->log.size()) pump(engine);
               });
}

void Group::died(Engine* engine) {
  engines_.erase(engine->self_.life);
  if (!engine->ring_) return;
  auto ring = engine->ring_;
  ring->members.erase(engine->self_.life);
  members_changed(*ring);
}

}  // namespace csv::sim
