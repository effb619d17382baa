#include "coordinator/cluster/voting_membership.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "coordinator/protocol/group.pb.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

void tell_of_verdict(NodeId node, const std::string& name, const NodeWatch::Change& change,
                     const Verdict& verdict) {
  // Who is there, and well, at first is no news.
  if (change.first && verdict.finding == Finding::healthy) return;
  log::info("verdict node={} finding=\"{}\" fence={} why=\"{}\"", raw(node),
            to_text(verdict.finding), verdict.fence, verdict.why);
  events::report(
      verdict.finding == Finding::healthy ? events::Severity::info : events::Severity::warning,
      "verdict", "", fmt::format("node {} ({}): {}", raw(node), name, to_text(verdict.finding)),
      verdict.why);
}

std::optional<wire::NodeNote::Volume> said_in(const std::string& note, const std::string& volume) {
  wire::NodeNote said;
  if (!said.ParseFromString(note)) return std::nullopt;
  auto found = std::find_if(said.volumes().begin(), said.volumes().end(),
                            [&](const auto& one) { return one.name() == volume; });
  if (found == said.volumes().end()) return std::nullopt;
  return *found;
}

/// By whom the cluster has given it to, only: a former coordinator may have said so long ago.
std::optional<wire::NodeNote::Volume> said_of(const Replica& replica, const std::string& volume) {
  const auto* configuration = replica.configuration();
  if (configuration == nullptr) return std::nullopt;
  auto record = configuration->volumes.find(volume);
  if (record == configuration->volumes.end()) return std::nullopt;
  auto note = replica.notes().find(record->second.coordinator);
  if (note == replica.notes().end() || !replica.member(note->first)) return std::nullopt;
  return said_in(note->second, volume);
}

}  // namespace

VotingMembership::VotingMembership(Surroundings surroundings)
    : with_{std::move(surroundings)},
      began_{with_.loop->now()},
      ran_{began_},
      joined_{began_},
      beats_{{.loop = with_.loop,
              .transport = with_.transport,
              .node = with_.node,
              .endpoint = with_.endpoint,
              .incarnation = with_.incarnation,
              .timing = with_.timing,
              .worth = [this](NodeId peer) { return worth(peer); },
              .reached = with_.reached,
              .signs = with_.signs,
              .echoed = [this](NodeId by, const Beats::Echo& echo) { take_echo(by, echo); },
              .changed = [this] { tick(); }}} {
  Replica::Surroundings around;
  around.loop = with_.loop;
  around.engine = with_.engine;
  around.store = with_.store;
  around.node = with_.node;
  around.timing = with_.replica;
  around.granted = [this] { return granted(); };
  around.responsive = [this](NodeId node) {
    see_members();
    return responsive(node);
  };
  around.changed = [this] { replica_changed(); };
  replica_ = std::make_unique<Replica>(std::move(around));
  // Only until there is a configuration: the one that this node has kept takes their place.
  beats_.set_peers(with_.peers);
  replica_->start(std::move(with_.kept));
  use_configuration();
  beats_.start();
}

/// Of a node about which this process knows nothing a former one may have, until we began.
Replica::Granted VotingMembership::granted() const {
  Replica::Granted out = beats_.granted();
  if (const auto* now = replica_->configuration())
    for (const auto& [node, record] : now->nodes)
      if (node != with_.node) out.try_emplace(node, began_);
  return out;
}

VotingMembership::~VotingMembership() {
  tasks_.cancel_all();
  replica_.reset();  // what it has under way may be at the witness
}

/// Silence says something of others only where somebody listened. Where this process itself stood
/// still, what was said to it meanwhile comes in one by one, its own lease among the first,
/// perhaps. Time that it ran is counted, and one standstill after the other does not begin it anew:
/// whoever stands still all the time judges in the end, too.
void VotingMembership::ran() {
  auto now = with_.loop->now();
  auto since = now - ran_;
  if (since <= standstill())
    to_listen_ = std::max(Duration{}, to_listen_ - since);
  else if (to_listen_ == Duration{})
    to_listen_ = with_.timing.term;
  ran_ = now;
}

bool VotingMembership::stood_still() const {
  return to_listen_ > Duration{} || with_.loop->now() - ran_ > standstill();
}

/// One that has just come may not have had the time to answer. After a standstill what was known
/// before holds: who hung then must not get a vote for it. Who answers us and does not get through
/// to us itself must not count either: each of us would then count other nodes in, and both would
/// change the votes for ever.
bool VotingMembership::responsive(NodeId node) const {
  return beats_.both_ways(node) || with_.loop->now() < joined_ + with_.timing.term ||
         (stood_still() && heard_.contains(node));
}

void VotingMembership::tick() {
  ran();
  std::set<NodeId> heard;
  for (const auto& peer : beats_.peers())
    if (responsive(peer.id)) heard.insert(peer.id);
  replica_->say_hears();
  if (heard != std::exchange(heard_, heard)) replica_->heard();
  see_stopped();
  renew();
  note();
  place();
  judge_others();
  with_.changed();
}

void VotingMembership::replica_changed() {
  ran();
  events_.look(sight_of(*replica_));
  see_members();
  use_configuration();
  see_stopped();
  renew();
  note();
  place();
  judge_others();
  with_.changed();
}

void VotingMembership::see_members() {
  const auto& view = replica_->view();
  auto now = view ? view->members : std::vector<Member>{};
  if (now == members_) return;
  members_ = std::move(now);
  joined_ = with_.loop->now();
  // Nobody is silent before he was listened to, be it that this process stands still from now on.
  for (const auto& member : members_)
    if (member.node != with_.node) heard_.insert(member.node);
}

/// Peers and witness are what the configuration says, once there is one.
void VotingMembership::use_configuration() {
  const auto* now = replica_->configuration();
  if (now == nullptr || (used_any_ && now->tag == used_)) return;
  used_any_ = true;
  used_ = now->tag;
  std::vector<Beats::Peer> peers;
  for (const auto& [id, node] : now->nodes)
    if (id != with_.node) peers.push_back({id, node.name, node.address});
  beats_.set_peers(peers);
  for (const auto& [name, volume] : now->volumes) {
    auto [at, is_new] = turns_.emplace(name, volume.turn);
    if (!is_new && at->second == volume.turn) continue;
    at->second = volume.turn;
    moved_[name] = with_.loop->now();
  }
  std::erase_if(gates_, [this](const auto& each) { return !stopped(each.first); });
  for (const auto& [name, volume] : now->volumes)
    if (stopped(name)) gates_.try_emplace(name, lease_);
  if (now->witness == witness_record_) return;
  // One that was taken away is asked as long as its vote counts.
  const auto& ballot = now->ballot;
  bool counts = ballot.now.witness > 0 || (ballot.before && ballot.before->witness > 0);
  if (now->witness.kind == WitnessKind::none && counts && witness_ != nullptr) return;
  witness_record_ = now->witness;
  replica_->use_witness(nullptr);
  witness_.reset();
  if (witness_record_.kind != WitnessKind::none && with_.make_witness)
    witness_ = with_.make_witness(witness_record_);
  replica_->use_witness(witness_.get());
}

Beats::Worth VotingMembership::worth(NodeId peer) const {
  if (!replica_->lets(peer)) return {.refused = true};
  auto left = std::max(replica_->held_until() - with_.loop->now(), Duration{});
  return {.witness = left / 1000 * (1000 - with_.timing.drift_permille)};
}

void VotingMembership::take_echo(NodeId by, const Beats::Echo& echo) {
  // Also by what the echo's sender goes by: it may have formed with us in its view while here we
  // do not know yet what was decided without us.
  if (echo.refused || !replica_->lets(by)) return;
  auto& last = echoed_[by];
  last = std::max(last, echo.sent_at);
  if (echo.witness > Duration{}) replica_->heard_held_until(echo.sent_at + echo.witness);
}

/// The latest moment by which a majority had been heard, counting for each node the last of our
/// beats that it answered.
void VotingMembership::renew() {
  const auto* configuration = replica_->configuration();
  if (configuration == nullptr || !replica_->leases() || !replica_->member(with_.node)) return;
  if (configuration->nodes.count(with_.node) == 0) return;
  auto now = with_.loop->now();
  auto held = replica_->held_until() - with_.timing.term;
  std::vector<std::pair<TimePoint, NodeId>> heard{{now, with_.node}};
  for (const auto& [node, sent] : echoed_)
    if (replica_->member(node)) heard.emplace_back(sent, node);
  std::vector<TimePoint> moments{now, held};
  for (const auto& [when, node] : heard) moments.push_back(when);
  std::sort(moments.rbegin(), moments.rend());
  for (auto moment : moments) {
    if (moment + with_.timing.term <= lease_ || moment > now) continue;
    std::vector<NodeId> nodes;
    for (const auto& [when, node] : heard)
      if (when >= moment) nodes.push_back(node);
    if (!replica_->majority_for_lease(nodes, held >= moment)) continue;
    lease_ = moment + with_.timing.term;
    return;
  }
}

void VotingMembership::accept(std::unique_ptr<protocol::Connection> connection,
                              protocol::Message beat) {
  beats_.accept(std::move(connection), beat);
}

void VotingMembership::coordinating(const std::string& volume, Epoch epoch, Key key) {
  beats_.claim(volume, epoch, key);
}

void VotingMembership::gave_up(const std::string& volume) { beats_.disclaim(volume); }

bool VotingMembership::stopped(const std::string& volume) const {
  const auto* now = acts_by();
  if (now == nullptr) return false;
  auto found = now->volumes.find(volume);
  return found != now->volumes.end() && found->second.stopped;
}

/// Anew whenever the cluster forms: until then others may have gone on by what was before.
void VotingMembership::see_stopped() {
  bool formed = replica_->state() == Replica::State::formed;
  std::erase_if(stopped_since_, [&](const auto& each) { return !formed || !stopped(each.first); });
  if (!formed) return;
  for (const auto& [name, volume] : replica_->configuration()->volumes)
    if (volume.stopped) stopped_since_.try_emplace(name, with_.loop->now());
}

bool VotingMembership::closed(const std::string& volume) const {
  auto since = stopped_since_.find(volume);
  if (since == stopped_since_.end() || with_.loop->now() < since->second + with_.timing.over_after)
    return false;
  return std::none_of(replica_->notes().begin(), replica_->notes().end(), [&](const auto& each) {
    auto said = replica_->member(each.first) ? said_in(each.second, volume) : std::nullopt;
    return said && (said->serving() || said->at_work());
  });
}

TimePoint VotingMembership::open_until(const std::string& volume) const {
  auto gate = gates_.find(volume);
  return gate == gates_.end() ? lease_ : gate->second;
}

std::optional<Coordinator> VotingMembership::coordinator(const std::string& volume) const {
  // What somebody who is silent said last is no hint where it is known that nobody shall.
  if (stopped(volume) && !served(volume)) return std::nullopt;
  return beats_.coordinator(volume);
}

bool VotingMembership::claimed_by_peer(const std::string& volume) const {
  // One that was left behind may still say so.
  auto who = beats_.coordinator(volume);
  return who && who->node != with_.node && replica_->member(who->node) &&
         beats_.claimed_by_peer(volume);
}

std::optional<Membership::Assignment> VotingMembership::assigned(const std::string& volume) const {
  Assignment out;
  if (replica_->state() != Replica::State::formed) {
    out.reason = replica_->reason();
    return out;
  }
  out.decided = true;
  const auto& volumes = replica_->configuration()->volumes;
  if (auto found = volumes.find(volume); found != volumes.end()) {
    out.node = found->second.coordinator;
    out.stopped = found->second.stopped;
  }
  return out;
}

ClusterTag VotingMembership::tag() const {
  return replica_->configuration() != nullptr ? replica_->configuration()->tag : ClusterTag{};
}

bool VotingMembership::process_gone(NodeId node) const {
  // Its engine lives and says that it has left, and its machine says that nothing listens there.
  // One of both alone could be a csvd that has lost its engine, or a network that refuses.
  return replica_->view() && !out_of_reach(node) && !replica_->member(node) && beats_.absent(node);
}

bool VotingMembership::out_of_reach(NodeId node) const {
  const auto& view = replica_->view();
  return view && !std::binary_search(view->nodes.begin(), view->nodes.end(), node);
}

std::optional<TimePoint> VotingMembership::answers_until(NodeId node) const {
  // It takes part: whatever it had to say as a coordinator it has given up, or is asked to.
  if (replica_->member(node)) return std::nullopt;
  auto last = replica_->last_granted(node);
  if (!last) return std::nullopt;
  return *last + with_.timing.over_after;
}

/// What is on the disk may be a change that no majority has agreed to, and never will. While the
/// lease runs what was in force last counts: nobody is kept out, or let in again, against the
/// majority's word. What others have put in force without this node waits for its lease where that
/// matters.
const Configuration* VotingMembership::acts_by() const {
  const auto* last = replica_->last_in_force();
  return last != nullptr && with_.loop->now() < lease_ ? last : replica_->configuration();
}

std::map<NodeId, std::uint64_t> VotingMembership::fenced() const {
  std::map<NodeId, std::uint64_t> out;
  if (const auto* configuration = acts_by())
    for (const auto& [node, record] : configuration->nodes)
      if (record.fenced) out[node] = record.fences;
  return out;
}

std::uint64_t VotingMembership::fences(NodeId node) const {
  const auto* configuration = acts_by();
  return configuration == nullptr ? 0 : fences_of(*configuration, node);
}

bool VotingMembership::belongs(NodeId node) const {
  const auto* configuration = acts_by();
  return configuration == nullptr || configuration->nodes.contains(node);
}

bool VotingMembership::proven_off(NodeId node) const {
  auto all = fenced();
  auto fence = all.find(node);
  if (replica_->state() != Replica::State::formed || fence == all.end() ||
      with_.loop->now() >= lease_)
    return false;
  const auto& volumes = replica_->configuration()->volumes;
  return std::all_of(volumes.begin(), volumes.end(), [&](const auto& volume) {
    auto said = said_of(*replica_, volume.first);
    return said && said->serving() &&
           std::any_of(said->off().begin(), said->off().end(), [&](const auto& off) {
             return off.node() == raw(node) && off.fence() == fence->second;
           });
  });
}

bool VotingMembership::served(const std::string& volume) const {
  if (!stopped(volume)) {
    auto said = said_of(*replica_, volume);
    return said && said->serving();
  }
  for (const auto& [node, text] : replica_->notes()) {
    auto said = replica_->member(node) ? said_in(text, volume) : std::nullopt;
    if (said && said->serving()) return true;
  }
  return false;
}

bool VotingMembership::says_able(const std::string& volume, NodeId node) const {
  auto note = replica_->notes().find(node);
  if (note == replica_->notes().end()) return false;
  auto said = said_in(note->second, volume);
  return said && said->path();
}

void VotingMembership::able(const std::string& volume, bool yes) {
  if (yes)
    unable_.erase(volume);
  else
    unable_[volume].note(with_.able_again, with_.able_again_longest, with_.loop->now());
  note();
}

/// What this node says of itself: which volumes it has, and can reach.
void VotingMembership::note() {
  wire::NodeNote out;
  for (const auto& volume : with_.volumes()) {
    auto* one = out.add_volumes();
    one->set_name(volume.name);
    one->set_mounted(volume.mounted);
    one->set_serving(beats_.own().count(volume.name) > 0);
    one->set_at_work(volume.at_work);
    for (auto [node, fence] : volume.off) {
      auto* off = one->add_off();
      off->set_node(raw(node));
      off->set_fence(fence);
    }
    auto unable = unable_.find(volume.name);
    one->set_path(unable == unable_.end() || unable->second.over(with_.loop->now()));
  }
  replica_->tell(out.SerializeAsString());
}

/// What is thought of the other nodes: for people. It moves nothing and fences nobody by itself.
void VotingMembership::judge_others() {
  const auto& view = replica_->view();
  const auto* configuration = replica_->configuration();
  std::set<NodeId> others;
  bool seeing = view && configuration != nullptr && replica_->state() != Replica::State::lost;
  if (seeing)
    for (const auto& [node, record] : configuration->nodes)
      if (node != with_.node) others.insert(node);
  watch_.forget_all_but(others);
  if (!seeing) return;
  auto now = with_.loop->now();
  auto signs = beats_.peers_signs();
  if (with_.signs) {
    auto own = with_.signs();
    signs.insert(signs.end(), own.begin(), own.end());
  }
  for (auto node : others) {
    NodeWatch::Seen seen;
    seen.network = std::binary_search(view->nodes.begin(), view->nodes.end(), node);
    seen.service = std::any_of(view->members.begin(), view->members.end(),
                               [&](const Member& each) { return each.node == node; });
    seen.our_side_quorate = replica_->state() == Replica::State::formed && now < lease_;
    auto until = answers_until(node);
    seen.lease_over = !seen.service && until && now >= *until;
    for (const auto& sign : signs)
      if (sign.node == node) seen.signs.push_back(sign);
    auto change = watch_.see(node, seen, now);
    const auto& record = configuration->nodes.at(node);
    if (change) tell_of_verdict(node, record.name, *change, watch_.of(node)->verdict);
    if (watch_.to_be_pinged(node, now)) ask(node, record.address);
  }
}

void VotingMembership::ask(NodeId node, const std::string& address) {
  if (!with_.ping) return;
  with_.ping(address, [this, alive = std::weak_ptr{alive_}, node](bool answers) {
    if (!alive.expired()) watch_.answered(node, answers);
  });
}

/// Not from one moment to the next: of one that dies each says so in turn.
void VotingMembership::see_who_is_apart() {
  std::vector<NodeId> nodes;
  // Of each once, not for each pair: this is done with every echo.
  for (const auto& [node, said] : replica_->notes())
    if (replica_->hears_majority(node)) nodes.push_back(node);
  std::map<std::pair<NodeId, NodeId>, TimePoint> apart;
  for (auto one : nodes)
    for (auto other : nodes) {
      if (one == other ||
          (replica_->says_it_hears(one, other) && replica_->says_it_hears(other, one)))
        continue;
      auto known = apart_.find({one, other});
      apart[{one, other}] = known == apart_.end() ? with_.loop->now() : known->second;
    }
  apart_ = std::move(apart);
}

/// Who does what one has to do decides which node coordinates what, from what each says of itself.
void VotingMembership::place() {
  if (replica_->state() != Replica::State::formed || !replica_->steward() ||
      with_.loop->now() >= lease_) {
    present_.clear();
    apart_.clear();
    return;
  }
  see_who_is_apart();
  const auto& configuration = *replica_->configuration();
  auto now = with_.loop->now();
  std::vector<PlacedNode> nodes;
  std::vector<NodeId> here{with_.node};
  std::vector<std::string> fresh;
  std::set<std::pair<std::string, NodeId>> serving;
  std::map<std::string, std::vector<NodeId>> users;
  for (const auto& [node, text] : replica_->notes()) {
    auto record = configuration.nodes.find(node);
    if (record == configuration.nodes.end() || !replica_->member(node)) continue;
    // A member that is not heard hangs, or nobody can reach it, and one that reaches nobody has no
    // lease: its volumes are better elsewhere.
    if (node != with_.node && !replica_->says_it_hears(with_.node, node)) {
      present_.erase(node);
      continue;
    }
    // Nobody can tell yet, or once that is said another one decides.
    if (node != with_.node && !beats_.both_ways(node)) return;
    if (node != with_.node) here.push_back(node);
    wire::NodeNote said;
    if (!said.ParseFromString(text)) continue;
    PlacedNode one;
    one.node = node;
    one.drained = record->second.state == NodeState::drained;
    one.fenced = record->second.fenced;
    one.hears_majority = replica_->hears_majority(node);
    bool away = one.drained || one.fenced;
    auto [since, is_new] = present_.try_emplace(node, now, away);
    if (!is_new && since->second.second != away) since->second = {now, away};
    one.since = since->second.first;
    for (const auto& volume : said.volumes()) {
      one.volumes[volume.name()] = {volume.path(), volume.mounted()};
      if (volume.mounted() > 0) users[volume.name()].push_back(node);
      if (volume.serving()) serving.emplace(volume.name(), node);
      if (configuration.volumes.count(volume.name()) == 0 &&
          std::find(fresh.begin(), fresh.end(), volume.name()) == fresh.end())
        fresh.push_back(volume.name());
    }
    nodes.push_back(std::move(one));
  }
  for (auto& one : nodes)
    for (auto& [volume, reach] : one.volumes)
      for (auto user : users[volume]) {
        auto apart = apart_.find({one.node, user});
        if (apart == apart_.end() || now - apart->second < with_.timing.term) continue;
        auto found = apart->second + with_.timing.term;
        reach.cut_off_since = reach.cut_off++ == 0 ? found : std::max(reach.cut_off_since, found);
      }
  // A lease may rest on the echo of who is not heard himself, and holds himself for the one that
  // decides here: of two that do not hear each other only one may move volumes.
  if (!replica_->majority_for_lease(here, now < replica_->held_until())) return;
  std::erase_if(present_, [&](const auto& each) { return !replica_->member(each.first); });
  std::vector<PlacedVolume> volumes;
  for (const auto& [name, record] : configuration.volumes) {
    if (record.stopped) continue;
    PlacedVolume one;
    one.name = name;
    if (record.coordinator != NodeId{}) one.coordinator = record.coordinator;
    one.served = serving.contains({name, record.coordinator});
    one.preferred = record.preferred;
    if (auto moved = moved_.find(name); moved != moved_.end()) one.moved = moved->second;
    volumes.push_back(std::move(one));
  }
  auto moves =
      cluster::place(volumes, nodes, std::chrono::seconds{configuration.policies.hold_s}, now);
  if ((moves.empty() && fresh.empty()) || placing_) return;
  placing_ = true;
  tasks_.spawn(settle(std::move(fresh), std::move(moves)));
}

Task<void> VotingMembership::settle(std::vector<std::string> fresh,
                                    std::vector<cluster::Assignment> moves) {
  std::map<std::string, std::uint64_t> turns;
  for (const auto& [name, record] : replica_->configuration()->volumes) turns[name] = record.turn;
  Replica::Change change = [moves, turns](Configuration& next) -> Expected<void> {
    for (const auto& move : moves) {
      auto found = next.volumes.find(move.volume);
      if (found == next.volumes.end()) continue;  // forgotten meanwhile
      auto& record = found->second;
      auto decided_on = turns.find(move.volume);
      // Moved by somebody else meanwhile, or by us, before this attempt.
      if (record.turn != (decided_on == turns.end() ? 0 : decided_on->second)) continue;
      record.coordinator = move.to;
      ++record.turn;
    }
    return {};
  };
  for (const auto& move : moves) events_.because(move.volume, move.why);
  auto task = replica_->propose(std::move(change), with_.replica.patience);
  auto made = co_await task;
  // Told by now, or not in force.
  for (const auto& move : moves) events_.because(move.volume, "");
  // By itself: one volume too many must not stop the others from moving.
  Replica::Change add = [fresh](Configuration& next) -> Expected<void> {
    for (const auto& name : fresh) next.volumes.try_emplace(name);
    return {};
  };
  auto adding = replica_->propose(std::move(add), with_.replica.patience);
  auto added = co_await adding;
  if (!added && added.error() == Errc::refused && !std::exchange(full_, true))
    log::warning("volumes_not_added why=\"{}\"", added.error().message());
  placing_ = false;
  for (const auto& move : moves)
    log::info("volume_placed volume={} node={} why=\"{}\" made={}", move.volume, raw(move.to),
              move.why, made ? std::string{"yes"} : made.error().message());
  // The next beat asks again, if there is more.
}

}  // namespace csv::cluster
