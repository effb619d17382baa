#include "coordinator/cluster/replica.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

#include "coordinator/protocol/frame.h"
#include "coordinator/protocol/group.pb.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

constexpr std::uint32_t kVersion = 1;

wire::Tag to_wire(const ClusterTag& tag) {
  wire::Tag out;
  out.set_forced(tag.forced);
  out.set_epoch(tag.epoch);
  out.set_sequence(tag.sequence);
  return out;
}
ClusterTag from_wire(const wire::Tag& tag) { return {tag.forced(), tag.epoch(), tag.sequence()}; }

/// FNV-1a, to tell views apart; nobody is to be kept from finding two alike.
std::uint64_t digest(const std::vector<Member>& members, std::uint64_t round) {
  std::uint64_t out = 0xcbf29ce484222325ull;
  auto mix = [&out](std::uint64_t value) {
    for (int i = 0; i < 8; ++i) out = (out ^ ((value >> (8 * i)) & 0xff)) * 0x100000001b3ull;
  };
  for (const auto& each : members) {
    mix(raw(each.node));
    mix(each.life);
  }
  mix(round);
  return out;
}

std::string text_of(const ClusterTag& tag) {
  return fmt::format("{}.{}.{}", tag.forced, tag.epoch, tag.sequence);
}

/// What is promised before a configuration with this tag is proposed.
ClusterTag promise_of(const ClusterTag& tag) { return {tag.forced, tag.epoch, 0}; }

constexpr const char* kPrevents =
    "this node was told to prevent a quorum: it joins a cluster that others have formed (csvctl "
    "cluster start lets it count again)";

/// None of a number that no node has; the engine may know of such.
std::uint64_t bit(NodeId node) { return raw(node) < 64 ? std::uint64_t{1} << raw(node) : 0; }
void put(wire::Hears& out, std::uint64_t nodes) {
  for (std::uint32_t node = 1; node <= 63; ++node)
    if ((nodes >> node & 1) != 0) out.add_node(node);
}
std::uint64_t from_wire(const wire::Hears& said) {
  std::uint64_t out = 0;
  for (auto node : said.node())
    if (node > 0 && node <= 63) out |= std::uint64_t{1} << node;
  return out;
}

std::string list(const std::vector<NodeId>& nodes) {
  std::string out;
  for (auto each : nodes) out += fmt::format("{}{}", out.empty() ? "" : ",", raw(each));
  return out.empty() ? "none" : out;
}

/// It may be asked, and its vote be what somebody goes on by, also where no vote of it counts here.
bool has_witness(const Configuration& configuration) {
  const auto& ballot = configuration.ballot;
  return configuration.witness.kind != WitnessKind::none || ballot.now.witness > 0 ||
         (ballot.before && ballot.before->witness > 0);
}

}  // namespace

std::string_view to_text(Replica::State state) {
  switch (state) {
    case Replica::State::lost: return "lost";
    case Replica::State::greeting: return "greeting";
    case Replica::State::minority: return "no quorum";
    case Replica::State::forming: return "forming";
    case Replica::State::formed: return "formed";
  }
  return "";
}

Replica::Replica(Surroundings surroundings)
    : with_{std::move(surroundings)},
      reason_{"the cluster's engine has not said yet who is here"},
      since_{with_.loop->now()},
      changed_{*with_.loop} {}

Replica::~Replica() {
  tasks_.cancel_all();
  with_.loop->cancel(patience_);
  with_.loop->cancel(forming_);
  with_.loop->cancel(confirm_timer_);
  with_.loop->cancel(save_again_);
  with_.loop->cancel(hold_over_);
  with_.loop->cancel(turn_timer_);
}

void Replica::start(Kept kept) {
  stored_ = kept.configuration;
  promised_ = kept.promised;
  prevents_ = kept.prevents;
  wanted_ = std::move(kept);
  vote();
  Engine::Handlers handlers;
  handlers.view = [this](const View& view) { on_view(view); };
  handlers.deliver = [this](Member from, const std::string& text) { on_message(from, text); };
  handlers.lost = [this](const Error& why) { on_lost(why); };
  with_.engine->start(std::move(handlers));
}

void Replica::use_witness(Witness* witness) {
  tasks_.cancel_all();
  arbitrating_ = confirming_ = witness_answers_ = false;
  witness_ = witness;
  held_until_ = proven_until_ = {};
  keeper_.reset();
  kept_from_it_.clear();
  said_held_ = turn_ = catching_up_ = false;
  witness_tag_ = {};
  vote();
  look();
  keep_holding();
}

void Replica::enter(State state, std::string reason) {
  if (state == state_ && reason == reason_) return;
  if (state != state_) since_ = with_.loop->now();
  state_ = state;
  reason_ = std::move(reason);
  log::info("cluster state=\"{}\" members={} tag={} why=\"{}\"", to_text(state),
            view_ ? list(greeted()) : "none", stored_ ? text_of(stored_->tag) : "none", reason_);
}

// --- Views --------------------------------------------------------------------------------------

void Replica::on_view(const View& view) {
  ++view_count_;
  no_longer_formed();
  view_ = view;
  std::erase_if(together_, [this](NodeId node) { return !member(node); });
  round_ = 0;
  notes_.clear();
  view_since_ = with_.loop->now();
  if (stored_ && has_witness(*stored_)) hold_shared_until_ = view_since_;
  begin_round("the members of the cluster greet each other");
  with_.changed();
}

/// The members greet each other. What was said in a round before this one counts for nothing.
void Replica::begin_round(std::string why) {
  members_ = digest(view_->members, round_);
  greetings_.clear();
  stored_since_.clear();
  outstanding_.reset();
  attempt_.reset();
  round_tag_.reset();
  greeted_self_ = out_of_patience_ = false;
  with_.loop->cancel(forming_);
  // The hold is the side's, and this may be another side of it: it is confirmed anew.
  with_.loop->cancel(confirm_timer_);
  with_.loop->cancel(turn_timer_);
  turn_timer_ = {};
  keeper_.reset();
  kept_from_it_.clear();
  said_held_ = turn_ = false;
  with_.loop->cancel(patience_);
  patience_ = with_.loop->after(with_.timing.patience, [this] {
    out_of_patience_ = true;
    look();
    with_.changed();
  });
  enter(State::greeting, std::move(why));
  greet_when_idle();
  changed_.notify();
}

void Replica::no_longer_formed() {
  if (state_ != State::formed) return;
  formed_until_ = with_.loop->now();
  together_.clear();
  for (const auto& each : view_->members) together_.insert(each.node);
}

/// A member's greeting says what this round has not gone by. All see it at the same place in the
/// order, after the same greetings and the same proposal, and so begin anew together.
void Replica::begin_again(std::string why) {
  ++view_count_;
  ++round_;
  no_longer_formed();
  begin_round(std::move(why));
}

/// Has the others begin anew, if they have not done so.
void Replica::greet_again() {
  greeted_self_ = false;
  greet_when_idle();
}

void Replica::on_lost(const Error& why) {
  ++view_count_;
  view_.reset();
  greetings_.clear();
  stored_since_.clear();
  notes_.clear();
  outstanding_.reset();
  attempt_.reset();
  formed_until_.reset();
  with_.loop->cancel(patience_);
  with_.loop->cancel(confirm_timer_);
  with_.loop->cancel(forming_);
  enter(State::lost, why.message());
  changed_.notify();
  with_.changed();
}

/// Not while something is on its way to the disk: what we say we have, we go on having, and what we
/// have not said we have, nobody may count on.
void Replica::greet_when_idle() {
  if (!view_ || greeted_self_ || saving_) return;
  greeted_self_ = true;
  wire::GroupMessage message;
  auto* greeting = message.mutable_greeting();
  auto promised = promised_;
  if (stored_ && prevents_) {
    // Nobody is to go by what it has. What forms is above it all the same, or could not be stored
    // here.
    greeting->set_prevents(true);
    promised = std::max(promised, promise_of(stored_->tag));
  } else if (stored_) {
    greeting->set_configuration(encode(*stored_));
  }
  *greeting->mutable_promised() = to_wire(promised);
  greeting->set_note(note_);
  said_hears_ = heard_now();
  put(*greeting->mutable_hears(), said_hears_);
  auto now = with_.loop->now();
  if (with_.granted)
    for (const auto& [node, when] : with_.granted()) {
      greeting->add_granted_node(raw(node));
      greeting->add_granted_ago_ms(static_cast<std::uint64_t>(std::max(now - when, Duration{}) /
                                                              std::chrono::milliseconds{1}));
    }
  send(message);
}

void Replica::send(wire::GroupMessage& message) {
  if (!view_) return;
  message.set_version(kVersion);
  message.set_ring(view_->ring);
  message.set_members(members_);
  with_.engine->multicast(message.SerializeAsString());
}

void Replica::on_message(Member from, const std::string& text) {
  protocol::silence_parser();
  wire::GroupMessage message;
  if (!message.ParseFromString(text)) {
    log::warning("group_message_refused from={} why=\"it cannot be read\"", raw(from.node));
    return;
  }
  if (message.version() != kVersion) {
    log::warning("group_message_refused from={} why=\"version {}, not {}\"", raw(from.node),
                 message.version(), kVersion);
    return;
  }
  // Said in another view: whatever it was about is begun anew in this one.
  if (!view_ || message.ring() != view_->ring || message.members() != members_) return;
  if (!std::binary_search(view_->members.begin(), view_->members.end(), from)) return;
  switch (message.body_case()) {
    case wire::GroupMessage::kGreeting: take_greeting(from, message); break;
    case wire::GroupMessage::kProposal: take_proposal(from, message); break;
    case wire::GroupMessage::kPrepare: take_prepare(from, message); break;
    case wire::GroupMessage::kPromised: take_promised(from, message); break;
    case wire::GroupMessage::kStored: take_stored(from, message); break;
    case wire::GroupMessage::kHeld: take_held(from, message.held().yes()); break;
    case wire::GroupMessage::kHears: take_hears(from, message); break;
    case wire::GroupMessage::kNote: notes_[from.node] = message.note(); break;
    case wire::GroupMessage::BODY_NOT_SET: return;
  }
  with_.changed();
}

void Replica::take_greeting(Member from, const wire::GroupMessage& message) {
  const auto& said = message.greeting();
  Greeted greeted;
  greeted.promised = from_wire(said.promised());
  greeted.prevents = said.prevents();
  if (said.has_hears()) greeted.hears = from_wire(said.hears());
  if (!said.configuration().empty()) {
    auto read = decode(said.configuration());
    if (!read) {
      // It cannot be one of us, and is not counted; an engine's frames carry their own checksums.
      log::error("greeting_refused from={} why=\"{}\"", raw(from.node), read.error().message());
      return;
    }
    if (stored_ && read->cluster != stored_->cluster) {
      log::error("greeting_refused from={} why=\"it belongs to cluster {}, this node to {}\"",
                 raw(from.node), read->cluster, stored_->cluster);
      return;
    }
    greeted.configuration = *std::move(read);
  }
  // Told to prevent a quorum in the middle of this. What its copy and its promise were to bring
  // about is dropped, and so is a hold of the witness. Not only where this is not formed yet: who
  // has not taken the proposal is not, and would begin anew alone.
  bool withdrawn = greetings_[from.node].configuration && !greeted.configuration;
  greetings_[from.node] = greeted;
  notes_[from.node] = said.note();
  auto now = with_.loop->now();
  int pairs = std::min(said.granted_node_size(), said.granted_ago_ms_size());
  for (int i = 0; i < pairs; ++i) {
    if (said.granted_node(i) == 0 || said.granted_node(i) > 63) continue;
    auto ago =
        std::chrono::milliseconds{std::min<std::uint64_t>(said.granted_ago_ms(i), 3'600'000)};
    auto& when = granted_[NodeId{static_cast<std::uint8_t>(said.granted_node(i))}];
    when = std::max(when, now - ago);
  }
  auto known = greeted.promised;
  if (greeted.configuration) {
    auto& forced = forced_of_[from.node];
    forced = std::max(forced, greeted.configuration->tag.forced);
  }
  if (greeted.configuration) known = std::max(known, greeted.configuration->tag);
  if (withdrawn) return begin_again("a node was told to prevent a quorum");
  if (round_tag_ &&
      std::tie(known.forced, known.epoch) > std::tie(round_tag_->forced, round_tag_->epoch))
    return begin_again("a node knows of a newer configuration");
  tidy();
  keep_holding();
  look();
  changed_.notify();
}

std::vector<NodeId> Replica::greeted() const {
  std::vector<NodeId> out;
  for (const auto& [node, said] : greetings_) out.push_back(node);
  return out;
}

bool Replica::member(NodeId node) const {
  if (!view_) return false;
  return std::any_of(view_->members.begin(), view_->members.end(),
                     [node](const Member& each) { return each.node == node; });
}

bool Replica::prevents(NodeId node) const {
  if (node == with_.node) return prevents_;
  auto said = greetings_.find(node);
  return said != greetings_.end() && said->second.prevents;
}

/// For people, behind why there is no majority.
std::string Replica::preventing() const {
  std::vector<NodeId> nodes;
  for (const auto& [node, said] : greetings_)
    if (said.prevents) nodes.push_back(node);
  if (nodes.empty()) return {};
  return fmt::format("; told to prevent a quorum: {}", list(nodes));
}

/// Of those who can do what one has to do; sorted.
std::vector<NodeId> Replica::able(const Configuration& newest) const {
  std::vector<NodeId> out;
  for (const auto& [node, said] : greetings_) {
    if (!said.configuration && !stored_since_.contains(node)) continue;
    // He has been taken out since, and decides nothing for the others any more.
    if (newest.nodes.contains(node)) out.push_back(node);
  }
  return out;
}

bool Replica::steward() const {
  if (auto most = hears_most()) return *most == with_.node;
  return lowest_heard();
}

/// All know the same of it, once it is delivered, so two that do not hear each other do not undo
/// each other's changes. Who hears most takes the fewest votes away and moves the fewest volumes.
/// It stays so when the votes follow it: whoever takes its place because of them hears more, or as
/// many and is lower, so that soon nobody does. Nobody: no member can do anything by himself, or
/// one is of a version that does not say whom it hears, and goes by the lowest.
std::optional<NodeId> Replica::hears_most() const {
  if (state_ != State::formed) return std::nullopt;
  std::optional<NodeId> best;
  std::tuple<bool, std::size_t> most{};
  for (auto node : able(*in_force_)) {
    if (!greetings_.at(node).hears) return std::nullopt;
    std::tuple rank{in_force_->nodes.at(node).votes, heard_with(node).size()};
    if ((best && rank <= most) || !hears_majority(node)) continue;
    best = node;
    most = rank;
  }
  return best;
}

/// Who has no vote, where votes follow who is here, may be one that a voter does not hear: if it
/// judged that voter in turn, each of the two would take the other's vote for ever. The votes in
/// force are the same for all, so the first of two such changes settles whose word counts.
bool Replica::lowest_heard() const {
  const auto* newest = state_ == State::formed ? &*in_force_ : newest_known();
  if (newest == nullptr) return false;
  auto nodes = able(*newest);
  std::vector<NodeId> voters;
  for (auto node : nodes) {
    auto votes = newest->ballot.now.nodes.find(node);
    if (votes != newest->ballot.now.nodes.end() && votes->second > 0) voters.push_back(node);
  }
  auto rules = voting_rules(*newest);
  bool adapts = rules.dynamic && !rules.disk_only;
  for (auto node : adapts && !voters.empty() ? voters : nodes) {
    if (node == with_.node) return true;
    if (!with_.responsive || with_.responsive(node)) return false;
  }
  return false;
}

std::uint64_t Replica::heard_now() const {
  std::uint64_t out = 0;
  for (const auto& member : view_->members)
    if (member.node != with_.node && (!with_.responsive || with_.responsive(member.node)))
      out |= bit(member.node);
  return out;
}

bool Replica::says_it_hears(NodeId one, NodeId other) const {
  auto said = greetings_.find(one);
  return said != greetings_.end() && (said->second.hears.value_or(~0ull) & bit(other)) != 0;
}

/// Both say so: who hangs says nothing new, but the others do.
std::vector<NodeId> Replica::heard_with(NodeId node) const {
  std::vector<NodeId> out;
  for (const auto& [other, said] : greetings_) {
    bool hears_it = (said.hears.value_or(~0ull) & bit(node)) != 0;
    if (other == node || (hears_it && says_it_hears(node, other))) out.push_back(other);
  }
  return out;
}

bool Replica::hears_majority(NodeId node) const {
  if (state_ != State::formed) return false;
  auto nodes = heard_with(node);
  bool held = keeper_ && std::find(nodes.begin(), nodes.end(), *keeper_) != nodes.end();
  return majority(in_force_->ballot, nodes, held);
}

void Replica::say_hears() {
  if (!view_ || !greeted_self_) return;  // the greeting says it
  auto now = heard_now();
  if (now == said_hears_) return;
  said_hears_ = now;
  wire::GroupMessage message;
  put(*message.mutable_hears(), said_hears_);
  send(message);
}

void Replica::take_hears(Member from, const wire::GroupMessage& message) {
  auto greeted = greetings_.find(from.node);
  if (greeted == greetings_.end()) return;
  greeted->second.hears = from_wire(message.hears());
  tidy();
  keep_holding();
}

bool Replica::leases() const {
  return state_ == State::formed ||
         (formed_until_ && with_.loop->now() < *formed_until_ + with_.timing.patience);
}

bool Replica::majority_for_lease(std::span<const NodeId> nodes, bool witness) const {
  if (!leases() || !in_force_ || !majority(in_force_->ballot, nodes, witness)) return false;
  bool newer = state_ != State::formed && stored_ && stored_->tag > in_force_->tag;
  return !newer || majority(stored_->ballot, nodes, witness);
}

bool Replica::lets(NodeId node) const {
  if (!leases() || !member(node)) return false;
  if (state_ == State::formed) return true;
  // Nor by one who has accepted more than was in force: others may have formed on it since.
  bool newer = stored_ && in_force_ && stored_->tag > in_force_->tag;
  return together_.contains(node) && !newer;
}

std::optional<TimePoint> Replica::last_granted(NodeId node) const {
  // Whoever forced this need not share a voter with a majority elsewhere.
  if (state_ != State::formed) return std::nullopt;
  auto joined = forced_of_.find(node);
  auto forced = joined == forced_of_.end() ? 0 : joined->second;
  if (forced < in_force_->tag.forced) return std::nullopt;
  auto found = granted_.find(node);
  if (found == granted_.end()) return std::nullopt;
  // The one voter in common may have been the witness: then it is its hold that has to end. It need
  // not vote any more by what is in force here: the node was left behind by what was before.
  auto shared_until = has_witness(*in_force_) ? view_since_ : hold_shared_until_;
  return std::max(found->second, shared_until);
}

// --- Forming ------------------------------------------------------------------------------------

/// Confirmed since this view began: one that is left from before is the other side's, perhaps.
bool Replica::holding() const {
  return held_in_ == view_count_ && with_.loop->now() < proven_until_;
}

/// Of what those who greeted have, of what the witness stores (it may be all that is left of a
/// majority), and of what has been proposed in this round. Null: nobody has any.
const Configuration* Replica::newest_known() const {
  const Configuration* newest = nullptr;
  auto consider = [&newest](const Configuration& one) {
    if (newest == nullptr || one.tag > newest->tag) newest = &one;
  };
  for (const auto& [node, said] : greetings_)
    if (said.configuration) consider(*said.configuration);
  if (newest != nullptr && from_witness_) consider(*from_witness_);
  if (newest != nullptr && outstanding_) consider(outstanding_->configuration);
  return newest;
}

ClusterTag Replica::known_tag() const {
  // Not what is on the own disk and was not greeted with: the cluster would form without it.
  const auto* newest = newest_known();
  auto out = newest != nullptr ? newest->tag : ClusterTag{};
  if (state_ == State::formed) out = std::max(out, in_force_->tag);
  return out;
}

/// Whether those who have greeted may go on; whoever is to propose that does.
void Replica::look() {
  if (!view_ || (state_ != State::greeting && state_ != State::minority)) return;
  if (greetings_.size() < view_->members.size() && !out_of_patience_) return;
  const auto* newest = newest_known();
  if (newest == nullptr) {
    if (prevents_ && stored_ && greetings_.contains(with_.node))
      return enter(State::minority, kPrevents);
    // This node's own greeting would have brought what it has: it is still on its way.
    if (stored_)
      return enter(State::minority,
                   saving_ ? "this node is still writing its configuration to its disk"
                           : "the cluster's engine has not delivered this node's greeting: it "
                             "waits for a node it does not hear, or hangs");
    return enter(State::minority,
                 "no node here belongs to a cluster yet: csvctl cluster create makes one");
  }
  auto known = knowing(*newest);
  bool decides = witness_decides(newest->ballot, known);
  if (majority(newest->ballot, known, holding())) {
    enter(State::forming, "the members are agreeing on the newest configuration");
    watch_forming();
    // Where the witness decides, whoever holds it: he alone has its promise.
    if ((decides || steward()) && !prevents_) form(*newest);
    return;
  }
  if (prevents_) return enter(State::minority, kPrevents);
  if (!newest->nodes.contains(with_.node))
    return enter(State::minority,
                 "this node was taken out of the cluster, and decides nothing for it");
  enter(State::minority, fmt::format("the nodes {} are no majority{}{}", list(greeted()),
                                     decides ? ", and the witness is not held" : "", preventing()));
  if (!decides) return;
  if (steward() || turn_) arbitrate();
  wait_for_turn();
}

/// Whose vote may count. Who has no configuration counts for nothing: he may have lost what a
/// majority counted on him for. Nor does one that has been taken out since.
std::vector<NodeId> Replica::knowing(const Configuration& newest) const {
  std::vector<NodeId> out;
  for (const auto& [node, said] : greetings_)
    if (said.configuration && newest.nodes.contains(node)) out.push_back(node);
  return out;
}

/// The lowest asks the witness first; it may not reach it, or hang. Who has it then does what has
/// to be done with it.
void Replica::wait_for_turn() {
  if (turn_ || turn_timer_ != Loop::TimerId{} || witness_ == nullptr || prevents_) return;
  auto before = std::distance(greetings_.begin(), greetings_.find(with_.node));
  turn_timer_ = with_.loop->after(with_.timing.patience * before, [this, view = view_count_] {
    turn_timer_ = {};
    if (view != view_count_ || keeper_is_heard()) return;
    turn_ = true;
    look();
    keep_holding();
  });
}

/// Whoever was to propose may hang: then another one does, the next one first. Two at once are no
/// harm, as promises tell them apart.
void Replica::watch_forming() {
  with_.loop->cancel(forming_);
  auto turn = std::distance(greetings_.begin(), greetings_.find(with_.node)) + 1;
  forming_ = with_.loop->after(with_.timing.patience * turn, [this, view = view_count_] {
    if (view != view_count_ || state_ != State::forming) return;
    log::warning("forming_takes_long members={}", list(greeted()));
    const auto* newest = newest_known();
    // What rests on a hold that has run out, or on nodes that count no more, is begun again with
    // what there is now.
    if (newest == nullptr || !majority(newest->ballot, knowing(*newest), holding())) {
      enter(State::minority,
            "what the members were to agree on rests on the witness, or on nodes "
            "that are none of the cluster's");
      return look();
    }
    watch_forming();
    if (prevents_) return;
    // Enough of them are here, but some may be unable to store (a full disk): its voice may be
    // what is missing, and the next turn has it.
    if (!holding() && keeps_witness()) arbitrate();
    if (newest->nodes.contains(with_.node)) form(Configuration{*newest});
  });
}

/// An epoch is its proposer's alone: of two who propose at once the numbers differ.
std::uint64_t Replica::next_epoch(std::uint64_t highest) const {
  constexpr std::uint64_t kNodes = 64;
  return (highest / kNodes + 1) * kNodes + raw(with_.node);
}

void Replica::form(const Configuration& newest) {
  auto highest = std::max(newest.tag.epoch, witness_promised_.epoch);
  for (const auto& [node, said] : greetings_) highest = std::max(highest, said.promised.epoch);
  highest = std::max({highest, wanted_.promised.epoch, prepared_});
  attempt_ = Attempt{newest, {}, false};
  // 0 is what is promised: at the witness it must be told from what is proposed.
  auto forced = std::max({newest.tag.forced, witness_promised_.forced, greeted_forced()});
  attempt_->configuration.tag = {forced, next_epoch(highest), 1};
  prepared_ = attempt_->configuration.tag.epoch;
  wire::GroupMessage message;
  *message.mutable_prepare() = to_wire(promise_of(attempt_->configuration.tag));
  send(message);
  // The witness stores what is in force with the number that comes: whoever holds it next sees
  // both.
  if (holding()) tasks_.spawn(have_witness_promise(newest, view_count_));
}

void Replica::take_prepare(Member from, const wire::GroupMessage& message) {
  auto tag = from_wire(message.prepare());
  if (state_ == State::formed) return;  // whoever wants to form has not seen yet that it is done
  if (greetings_.count(from.node) == 0 || tag <= wanted_.promised) return;
  if (wanted_.configuration && tag <= wanted_.configuration->tag) return;
  wanted_.promised = tag;
  save();
}

void Replica::take_promised(Member from, const wire::GroupMessage& message) {
  if (!attempt_ || from_wire(message.promised()) != promise_of(attempt_->configuration.tag)) return;
  auto found = greetings_.find(from.node);
  // As with the greeting: the promise of one who may have lost his memory is worth nothing.
  if (found == greetings_.end() || !found->second.configuration ||
      !attempt_->configuration.nodes.contains(from.node))
    return;
  attempt_->promised_by.insert(from.node);
  check_promises();
}

void Replica::check_promises() {
  if (!attempt_) return;
  std::vector<NodeId> nodes{attempt_->promised_by.begin(), attempt_->promised_by.end()};
  if (!majority(attempt_->configuration.ballot, nodes, attempt_->promised_by_witness)) return;
  wire::GroupMessage message;
  auto* proposal = message.mutable_proposal();
  proposal->set_configuration(encode(attempt_->configuration));
  proposal->set_forms(true);
  attempt_.reset();
  send(message);
}

Task<void> Replica::have_witness_promise(Configuration configuration, std::uint64_t view) {
  auto tag = attempt_->configuration.tag;
  Witness::Memory memory{configuration.tag, encode(configuration), promise_of(tag)};
  auto store = witness_->store(std::move(memory));
  auto stored = co_await store;
  if (view != view_count_ || !attempt_ || attempt_->configuration.tag != tag) co_return;
  if (!stored) {
    log::warning("witness_does_not_store why=\"{}\"", stored.error().message());
    co_return;
  }
  if (!holding()) {
    // It took longer than a hold is worth.
    auto confirm = witness_->confirm(view_->ring);
    auto held = co_await confirm;
    if (view != view_count_) co_return;
    if (!held) co_return not_proven(held.error());
    proven(*held);
    if (!holding() || !attempt_ || attempt_->configuration.tag != tag) co_return;
  }
  attempt_->promised_by_witness = true;
  check_promises();
}

void Replica::take_proposal(Member from, const wire::GroupMessage& message) {
  const auto& said = message.proposal();
  auto read = decode(said.configuration());
  if (!read) {
    log::error("proposal_refused from={} why=\"{}\"", raw(from.node), read.error().message());
    return;
  }
  if (stored_ && read->cluster != stored_->cluster) return;
  if (said.forms()) {
    if (!round_tag_) round_tag_ = read->tag;
    if (state_ == State::formed) return;  // of two who proposed at once the second
    // Somebody is further than an attempt of ours, which rests on what was known before.
    if (attempt_ && attempt_->configuration.tag != read->tag) attempt_.reset();
    if (read->tag < wanted_.promised ||
        (wanted_.configuration && wanted_.configuration->tag >= read->tag)) {
      if (!outstanding_) greet_again();
      return;
    }
    enter(State::forming, "the members are agreeing on the newest configuration");
    watch_forming();
  } else {
    // Whoever has promised more than what is in force here is about to leave it.
    if (state_ != State::formed || outstanding_) return;
    if (wanted_.promised > read->tag) return;
    if (from_wire(said.base()) != in_force_->tag || read->tag <= in_force_->tag) return;
  }
  Outstanding next;
  next.configuration = *read;
  next.forms = said.forms();
  outstanding_ = std::move(next);
  wanted_.configuration = *std::move(read);
  save();
  changed_.notify();
}

/// One at a time; of those that wait only the newest.
void Replica::save() {
  if (saving_) return;
  saving_ = wanted_;
  with_.store->save(*saving_, [this](const Expected<void>& result) { saved(result); });
}

void Replica::saved(const Expected<void>& result) {
  if (!result) {
    // It may be on the disk or not, and until that is known nobody is told what is. The others go
    // on without us if they can.
    log::error("configuration_not_stored why=\"{}\"", result.error().message());
    save_again_ = with_.loop->after(with_.timing.retry, [this] {
      saving_.reset();
      save();
    });
    return;
  }
  auto kept = *std::exchange(saving_, std::nullopt);
  bool promises = kept.promised > promised_;
  // Said to all, as if it had been so when the view began.
  if (std::exchange(prevents_, kept.prevents) != kept.prevents) greeted_self_ = false;
  promised_ = kept.promised;
  if (kept.configuration && (!stored_ || kept.configuration->tag > stored_->tag))
    stored_ = kept.configuration;
  vote();
  wire::GroupMessage message;
  if (outstanding_ && kept.configuration &&
      kept.configuration->tag == outstanding_->configuration.tag) {
    *message.mutable_stored()->mutable_tag() = to_wire(kept.configuration->tag);
    send(message);
  }
  if (promises && greeted_self_) {
    *message.mutable_promised() = to_wire(promised_);
    send(message);
  }
  if (kept != wanted_) save();
  if (std::exchange(founding_, false)) {
    // As if it had been there when the view began.
    greeted_self_ = false;
    if (state_ == State::minority) enter(State::greeting, "this node has founded the cluster");
  }
  greet_when_idle();
  changed_.notify();
  with_.changed();
}

void Replica::take_stored(Member from, const wire::GroupMessage& message) {
  if (!message.stored().witness()) stored_since_.insert(from.node);
  if (!outstanding_ || from_wire(message.stored().tag()) != outstanding_->configuration.tag) return;
  if (message.stored().witness()) {
    outstanding_->stored_by_witness = true;
  } else {
    // Only now: a witness must not know of what no node has, or nobody could go on with it. Not
    // when this one has it: its disk may be full.
    if (outstanding_->stored_on.empty() && keeps_witness())
      tasks_.spawn(store_at_witness(outstanding_->configuration, view_count_));
    outstanding_->stored_on.insert(from.node);
  }
  check_commit();
}

/// Everybody decides this by himself, from the same messages in the same order.
void Replica::check_commit() {
  if (!outstanding_) return;
  std::vector<NodeId> nodes{outstanding_->stored_on.begin(), outstanding_->stored_on.end()};
  if (!majority(outstanding_->configuration.ballot, nodes, outstanding_->stored_by_witness)) return;
  bool forms = outstanding_->forms;
  auto tag = outstanding_->configuration.tag;
  log::info("configuration_in_force tag={} stored_on={}{}", text_of(tag), list(nodes),
            outstanding_->stored_by_witness ? ",witness" : "");
  in_force_ = std::move(outstanding_->configuration);
  outstanding_.reset();
  from_witness_.reset();
  if (forms) {
    with_.loop->cancel(forming_);
    for (auto node : nodes) forced_of_[node] = tag.forced;
    enter(State::formed, "");
    if (wanted_.prevents) {
      // It was stored here, or will be before this is.
      wanted_.prevents = false;
      save();
    }
    keep_holding();
    // Promised to one who did not get as far: nothing could be changed any more under this epoch.
    if (wanted_.promised > tag) greet_again();
  }
  vote();
  tidy();
  changed_.notify();
}

/// The highest forced generation that anybody came with, or has promised.
std::uint64_t Replica::greeted_forced() const {
  std::uint64_t out = 0;
  for (const auto& [node, said] : greetings_) {
    out = std::max(out, said.promised.forced);
    if (said.configuration) out = std::max(out, said.configuration->tag.forced);
  }
  return out;
}

/// What has to be changed without anybody asking for it: a change of votes brought to its end,
/// votes for those who are here.
void Replica::tidy() {
  if (state_ != State::formed || outstanding_ || !steward()) return;
  auto next = with_votes(*in_force_);
  auto base = next.tag;
  if (next == *in_force_ || base == tidied_) return;
  tidied_ = base;
  ++next.tag.sequence;
  wire::GroupMessage message;
  message.mutable_proposal()->set_configuration(encode(next));
  *message.mutable_proposal()->mutable_base() = to_wire(base);
  send(message);
}

Configuration Replica::with_votes(Configuration configuration) const {
  auto& ballot = configuration.ballot;
  if (ballot.before) {
    ballot.before.reset();
    return configuration;
  }
  // Who has greeted and is not heard any more votes on nothing. As it was said: whoever hears more
  // has the word then, if there is one.
  auto present = greeted();
  std::erase_if(present, [this](NodeId node) {
    return node != with_.node && !says_it_hears(with_.node, node);
  });
  auto rules = voting_rules(configuration);
  // Where none of them has the witness, whoever could not get it gives way: another one may yet.
  auto reaches = [this](NodeId node) { return kept_from_it_.count(node) == 0; };
  bool some = std::any_of(present.begin(), present.end(), reaches);
  for (auto node : present) {
    auto votes = ballot.now.nodes.find(node);
    bool has_none = votes != ballot.now.nodes.end() && votes->second == 0;
    // If that is all of them, who has given way goes on doing so.
    if (!kept_from_it_.empty() && !rules.gives_way && (some ? !reaches(node) : has_none))
      rules.gives_way = node;
  }
  auto target = votes_for(rules, present, witness_answers_ || holding());
  if (target == ballot.now) return configuration;
  Ballot joint{target, ballot.now};
  // Never a change that those who are here could not bring about, or could not live with.
  if (!majority(joint, present, witness_answers_)) return configuration;
  ballot = std::move(joint);
  return configuration;
}

// --- The witness --------------------------------------------------------------------------------

void Replica::arbitrate() {
  if (witness_ == nullptr || arbitrating_) return;
  arbitrating_ = true;
  tasks_.spawn(arbitration(view_count_));
}

Task<void> Replica::arbitration(std::uint64_t view) {
  auto ring = view_->ring;
  auto confirm = witness_->confirm(ring);
  auto held = co_await confirm;
  if (!held && view == view_count_) {
    // Who may not go on with it takes it from nobody.
    auto look_first = use_what_it_remembers(view);
    auto may = co_await look_first;
    if (!may) held = may.error();
    if (may && view == view_count_) {
      auto challenge = witness_->challenge(ring);
      held = co_await challenge;
    }
  }
  if (view == view_count_ && held) {
    auto look_up = use_what_it_remembers(view);
    auto used = co_await look_up;
    if (!used) held = used.error();
  }
  arbitrating_ = false;
  if (view != view_count_) {
    look();
    co_return;
  }
  if (!held) {
    log::info("witness_not_held why=\"{}\"", held.error().message());
    not_proven(held.error());
    // Another one may have got it meanwhile, and formed the cluster.
    if (state_ == State::greeting || state_ == State::minority)
      enter(State::minority, "the witness is not held: " + held.error().message());
    with_.changed();
    co_await sleep(*with_.loop, with_.timing.retry);
    if (view == view_count_) look();
    co_return;
  }
  proven(*held);
  look();
  with_.changed();
}

void Replica::proven(const Witness::Hold& hold) {
  held_in_ = view_count_;
  proven_until_ = std::max(proven_until_, hold.sent + with_.timing.hold);
  held_until_ = std::max(held_until_, proven_until_);
  witness_answers_ = true;
  say_held(true);
  vote();
  watch_hold();
}

void Replica::say_held(bool yes) {
  if (std::exchange(said_held_, yes) == yes && (yes || kept_from_it_.contains(with_.node))) return;
  wire::GroupMessage message;
  message.mutable_held()->set_yes(yes);
  send(message);
}

void Replica::take_held(Member from, bool yes) {
  if (yes) {
    keeper_ = last_keeper_ = from.node;
    kept_from_it_.clear();
    with_.loop->cancel(turn_timer_);
    turn_timer_ = {};
    turn_ = false;
    witness_answers_ = true;
  } else {
    kept_from_it_.insert(from.node);
    if (keeper_ == from.node) keeper_.reset();
    if (!keeper_) witness_answers_ = false;
    wait_for_turn();
  }
  vote();
  watch_hold();
  tidied_ = {};
  tidy();
  keep_holding();
}

/// This node proves the hold, and stores at the witness: whoever holds it in this view, and until
/// somebody does, who does what one has to do.
bool Replica::keeps_witness() const {
  if (witness_ == nullptr || others_need_witness()) return false;
  if (!keeper_) return steward() || turn_;
  // With it he may be a majority, and so the steward, though he hangs.
  if (!keeper_is_heard()) return lowest_heard() || turn_;
  return *keeper_ == with_.node;
}

bool Replica::keeper_is_heard() const {
  return keeper_ && (*keeper_ == with_.node || !with_.responsive || with_.responsive(*keeper_));
}

/// Not even with it this node hears a majority, and another one would. So it may be where votes do
/// not follow who is here; held here it would stop all.
bool Replica::others_need_witness() const {
  if (state_ != State::formed) return false;
  auto would = [this](NodeId node) { return majority(in_force_->ballot, heard_with(node), true); };
  if (would(with_.node)) return false;
  auto nodes = able(*in_force_);
  return std::any_of(nodes.begin(), nodes.end(), would);
}

void Replica::heard() {
  say_hears();
  tidy();
  look();
  if (keeps_witness() && confirm_timer_ == Loop::TimerId{}) keep_holding();
}

/// What was proven before is worth its time, unless another one is known to have taken it.
void Replica::not_proven(const Error& why) {
  if (why == Errc::superseded || why == Errc::refused) proven_until_ = {};
  if (with_.loop->now() >= proven_until_) say_held(false);
  vote();
}

/// Nobody may have the witness's vote from when its hold may be another side's: not even for as
/// long as it takes to be told so by a witness that does not answer.
void Replica::watch_hold() {
  with_.loop->cancel(hold_over_);
  auto now = with_.loop->now();
  auto next = proven_until_ > now ? proven_until_ : held_until_;
  if (next <= now) return;
  hold_over_ = with_.loop->after(next - now, [this] {
    auto at = with_.loop->now();
    if (view_ && held_in_ == view_count_ && said_held_ && at >= proven_until_) say_held(false);
    vote();
    tidied_ = {};
    tidy();
    with_.changed();
    watch_hold();
  });
}

Task<Expected<void>> Replica::use_what_it_remembers(std::uint64_t view) {
  auto look_up = witness_->read();
  auto memory = co_await look_up;
  if (!memory) co_return memory.error();
  if (view != view_count_) co_return Error{Errc::retry, "the members have changed meanwhile"};
  co_return use_memory(*memory);
}

/// What the witness remembers, for the cluster that is about to form.
Expected<void> Replica::use_memory(const Witness::Memory& memory) {
  from_witness_.reset();
  witness_promised_ = std::max(memory.tag, memory.promised);
  witness_tag_ = std::max(witness_tag_, memory.tag);
  if (!memory.configuration.empty()) {
    auto read = CSV_TRY(decode(memory.configuration));
    if (stored_ && read.cluster != stored_->cluster)
      return Error{Errc::refused, fmt::format("it is the witness of cluster {}", read.cluster)};
    from_witness_ = std::move(read);
    const auto* newest = newest_known();
    if (newest == nullptr)
      return Error{Errc::retry, "no node here has greeted with a configuration yet"};
    if (!newest->nodes.contains(with_.node))
      return Error{Errc::refused,
                   "this node was taken out of the cluster, and may not decide with its witness"};
    return {};
  }
  // Only the tag. Whoever stored as much as that has to be here: a partition in time. A promise
  // says nothing of what its giver has.
  if (memory.tag <= known_tag()) return {};
  return Error{
      Errc::superseded,
      "the witness knows a newer configuration than any node here: waiting for a node that "
      "has it"};
}

void Replica::heard_held_until(TimePoint until) {
  if (until <= held_until_) return;
  // Not with every beat: a vote that ends a little sooner is none too many.
  constexpr Duration kStep = 500ms;
  bool news = held_until_ <= with_.loop->now() || until >= voted_until_ + kStep;
  held_until_ = until;
  if (news) vote();
  watch_hold();
}

/// While the witness may be needed, whoever does such things confirms it each second.
void Replica::keep_holding() {
  with_.loop->cancel(confirm_timer_);
  confirm_timer_ = {};
  // What forms rests on what is held: that must not run out meanwhile.
  bool forming = state_ == State::forming && held_in_ == view_count_;
  if ((state_ != State::formed && !forming) || !keeps_witness()) return;
  if (!confirming_) {
    confirming_ = true;
    tasks_.spawn(confirmation());
  }
  confirm_timer_ = with_.loop->after(with_.timing.confirm, [this] { keep_holding(); });
}

Task<void> Replica::confirmation() {
  auto view = view_count_;
  auto ring = view_->ring;
  auto confirm = witness_->confirm(ring);
  auto held = co_await confirm;
  // Nobody's yet, or the side's that is not any more: ours, if it does not move.
  if (!held && held.error() == Errc::superseded && view == view_count_) {
    auto challenge = witness_->challenge(ring);
    held = co_await challenge;
  }
  confirming_ = false;
  if (view != view_count_) co_return;
  if (held) {
    proven(*held);
    // What waits for its word would wait for ever if its one store had failed, or was nobody's.
    auto lacks = outstanding_ ? outstanding_->configuration.tag
                 : in_force_  ? in_force_->tag
                              : ClusterTag{};
    bool is_kept = !outstanding_ || !outstanding_->stored_on.empty();
    if (state_ == State::formed && is_kept && !catching_up_ && witness_tag_ < lacks) {
      catching_up_ = true;
      tasks_.spawn(have_witness_catch_up(view));
    }
  } else {
    log::warning("witness_not_confirmed why=\"{}\"", held.error().message());
    not_proven(held.error());
  }
  with_.changed();
}

/// It could not be reached when that was proposed, or was made the witness since.
Task<void> Replica::have_witness_catch_up(std::uint64_t view) {
  auto store = store_at_witness(outstanding_ ? outstanding_->configuration : *in_force_, view);
  co_await store;
  catching_up_ = false;
}

Task<void> Replica::store_at_witness(Configuration configuration, std::uint64_t view) {
  Witness::Memory memory{configuration.tag, encode(configuration)};
  auto store = witness_->store(std::move(memory));
  auto stored = co_await store;
  if (!stored) {
    log::warning("witness_does_not_store why=\"{}\"", stored.error().message());
    if (stored.error() != Errc::superseded) co_return;
    // It has promised more, or stores more: asking it again for this one brings nothing.
    witness_tag_ = std::max(witness_tag_, configuration.tag);
    if (view != view_count_) co_return;
    auto look_up = witness_->read();
    auto found = co_await look_up;
    if (found && view == view_count_) outdo(*found);
    co_return;
  }
  witness_tag_ = std::max(witness_tag_, configuration.tag);
  if (view != view_count_) co_return;
  wire::GroupMessage message;
  *message.mutable_stored()->mutable_tag() = to_wire(configuration.tag);
  message.mutable_stored()->set_witness(true);
  send(message);
}

/// Somebody held the witness meanwhile, had an epoch promised there, and did not get as far: it
/// would store nothing of this one any more. As with a promise on our own disk all begin again,
/// with one that is higher. Not where it may store what nobody here has: that is waited for.
void Replica::outdo(const Witness::Memory& memory) {
  auto most = std::max(memory.tag, memory.promised);
  if (state_ != State::formed || most <= in_force_->tag) return;
  bool has_it = memory.tag <= in_force_->tag || memory.tag.sequence == 0;
  if (!has_it && memory.configuration.empty()) return;
  wanted_.promised = std::max(wanted_.promised, promise_of(most));
  save();
  greet_again();
}

/// What the engine asks in the middle of a change of members is answered from this.
void Replica::vote() {
  if (!stored_ || prevents_)
    return with_.engine->vote_by([](std::span<const NodeId>) { return Engine::kNever; });
  // Who held it last holds it as long as what he has proven is worth, whatever becomes of the
  // members meanwhile: nobody else can have taken it.
  std::optional<NodeId> holder;
  if (with_.loop->now() < proven_until_) {
    holder = with_.node;
    voted_until_ = proven_until_;
  } else if (last_keeper_ != with_.node && with_.loop->now() < held_until_) {
    holder = last_keeper_;
    voted_until_ = held_until_;
  }
  with_.engine->vote_by(
      [ballot = stored_->ballot, holder, until = voted_until_](std::span<const NodeId> nodes) {
        if (majority(ballot, nodes, false)) return Engine::kForLong;
        bool held = holder && std::find(nodes.begin(), nodes.end(), *holder) != nodes.end();
        return held && majority(ballot, nodes, true) ? until : Engine::kNever;
      });
}

// --- Changes ------------------------------------------------------------------------------------

void Replica::tell(std::string note) {
  if (note == note_) return;
  note_ = std::move(note);
  if (!view_ || !greeted_self_) return;
  wire::GroupMessage message;
  message.set_note(note_);
  send(message);
}

Task<Expected<void>> Replica::propose(Change change, Duration patience) {
  auto until = with_.loop->now() + patience;
  auto timer = with_.loop->after(patience, [this] { changed_.notify(); });
  struct Cancel {
    Loop* loop;
    Loop::TimerId timer;
    ~Cancel() { loop->cancel(timer); }
  } cancel{with_.loop, timer};
  for (;;) {
    // One after the other: what is under way, and a change of votes to its end.
    while (state_ != State::formed || outstanding_ || in_force_->ballot.before) {
      if (with_.loop->now() >= until)
        co_return Error{Errc::retry, state_ == State::formed
                                         ? "the change before this one is not in force yet"
                                         : "no quorum: " + reason_};
      co_await changed_.wait();
    }
    auto next = *in_force_;
    if (auto may = change(next); !may) co_return may.error();
    if (next == *in_force_) co_return Expected<void>{};
    if (auto sane = validate(next); !sane) co_return sane.error();
    auto base = in_force_->tag;
    next.tag = base;
    ++next.tag.sequence;
    auto wanted = next;
    wire::GroupMessage message;
    message.mutable_proposal()->set_configuration(encode(next));
    *message.mutable_proposal()->mutable_base() = to_wire(base);
    auto view = view_count_;
    send(message);
    while (view == view_count_ && in_force_->tag == base && !outstanding_ &&
           with_.loop->now() < until)
      co_await changed_.wait();
    // Taken, this one or another's: until that is in force, or the view has ended.
    while (view == view_count_ && outstanding_ && with_.loop->now() < until)
      co_await changed_.wait();
    if (view == view_count_ && !outstanding_ && *in_force_ == wanted) co_return Expected<void>{};
    if (with_.loop->now() >= until)
      co_return Error{Errc::unknown_outcome,
                      "no majority has stored the change in time; whether it will be made is not "
                      "known"};
  }
}

Task<Expected<void>> Replica::force(Duration patience) {
  if (state_ == State::formed) {
    auto on = force_on(patience);
    co_return co_await on;
  }
  if (!stored_ || !view_)
    co_return Error{Errc::refused, stored_ ? "the cluster's engine reaches nobody: " + reason_
                                           : "this node belongs to no cluster"};
  if (wanted_.prevents)
    co_return Error{Errc::refused,
                    "this node was told to prevent a quorum: force it where the cluster is to go "
                    "on, or take that back first (csvctl cluster start)"};
  // The votes are those of who has greeted: without this node's own there may be none at all, and
  // nobody would ever be a majority of that again.
  if (!greetings_.contains(with_.node))
    co_return Error{Errc::retry,
                    "this node has not greeted the others yet (its disk may be slow or full): try "
                    "again in a moment"};
  auto next = *stored_;
  if (const auto* newest = newest_known(); newest != nullptr && newest->tag > next.tag)
    next = *newest;
  auto highest = std::max(next.tag.epoch, wanted_.promised.epoch);
  auto forced = next.tag.forced;
  for (const auto& [node, said] : greetings_) {
    highest = std::max(highest, said.promised.epoch);
    forced = std::max(forced, said.promised.forced);
  }
  next.tag = {forced + 1, next_epoch(highest), 1};
  next.ballot = {};
  for (const auto& [node, record] : next.nodes) next.ballot.now.nodes[node] = 0;
  for (auto node : greeted())
    if (next.ballot.now.nodes.count(node) > 0) next.ballot.now.nodes[node] = 1;
  CSV_CO_CHECK(validate(next));  // that somebody has a vote, above all
  wire::GroupMessage message;
  message.mutable_proposal()->set_configuration(encode(next));
  message.mutable_proposal()->set_forms(true);
  send(message);
  auto until = with_.loop->now() + patience;
  auto timer = with_.loop->after(patience, [this] { changed_.notify(); });
  while (with_.loop->now() < until && !(state_ == State::formed && in_force_->tag >= next.tag))
    co_await changed_.wait();
  with_.loop->cancel(timer);
  if (state_ == State::formed && in_force_->tag >= next.tag) co_return Expected<void>{};
  co_return Error{Errc::retry, "the nodes here have not stored the forced configuration in time"};
}

/// As one that has promised more than what is in force: all greet again, and form by that. Nobody
/// loses or gains a vote by it, and nothing that was made is lost.
Task<Expected<void>> Replica::force_on(Duration patience) {
  auto forced = std::max({in_force_->tag.forced, greeted_forced(), wanted_.promised.forced}) + 1;
  auto highest = std::max({in_force_->tag.epoch, wanted_.promised.epoch, prepared_});
  wanted_.promised = {forced, next_epoch(highest), 0};
  greeted_self_ = false;
  save();
  auto until = with_.loop->now() + patience;
  auto timer = with_.loop->after(patience, [this] { changed_.notify(); });
  auto done = [this, forced] { return state_ == State::formed && in_force_->tag.forced >= forced; };
  while (with_.loop->now() < until && !done()) co_await changed_.wait();
  with_.loop->cancel(timer);
  if (done()) co_return Expected<void>{};
  co_return Error{Errc::retry, "the nodes here have not formed the cluster anew in time"};
}

Task<Expected<void>> Replica::prevent(bool yes, Duration patience) {
  if (yes && state_ == State::formed)
    co_return Error{Errc::refused,
                    "the cluster has formed, with this node: there is nothing to be prevented. "
                    "Stop its csvd, and say it then"};
  if (yes && !stored_)
    co_return Error{Errc::refused,
                    "this node has no configuration that could bring a cluster about"};
  wanted_.prevents = yes;
  save();
  auto until = with_.loop->now() + patience;
  auto timer = with_.loop->after(patience, [this] { changed_.notify(); });
  // What is under way may rest on this node until all have its greeting that says so.
  auto done = [this, yes] {
    if (prevents_ != yes || !yes || !view_) return prevents_ == yes;
    auto own = greetings_.find(with_.node);
    return own != greetings_.end() && own->second.prevents;
  };
  // What was wanted may be something else by then: it has joined one, or was told otherwise.
  while (with_.loop->now() < until && !done() && wanted_.prevents == yes) co_await changed_.wait();
  with_.loop->cancel(timer);
  if (wanted_.prevents == yes) {
    if (done()) co_return Expected<void>{};
    co_return Error{Errc::unknown_outcome,
                    prevents_ == yes
                        ? "it is on this node's disk, but the cluster's engine has not told the "
                          "members of it in time: what they are forming may still rest on this node"
                        : "it could not be written to this node's disk in time"};
  }
  co_return Error{Errc::refused, state_ == State::formed
                                     ? "the cluster has formed meanwhile, with this node"
                                     : "another command has said otherwise meanwhile"};
}

Expected<void> Replica::found(Configuration first) {
  if (wanted_.configuration)
    return Error{Errc::refused,
                 "this node belongs to a cluster already: " + wanted_.configuration->name};
  for (const auto& [node, said] : greetings_) {
    if (said.prevents)
      return Error{Errc::refused,
                   fmt::format("node {} was told to prevent a quorum, and belongs to "
                               "a cluster already",
                               raw(node))};
    if (said.configuration)
      return Error{Errc::refused,
                   "a node that is here belongs to a cluster already: " + said.configuration->name};
  }
  CSV_TRY(validate(first));
  // Above whatever a former cluster of the same number has left on its volumes.
  constexpr std::int64_t kSecond = 1'000'000'000;
  first.tag = {
      0,
      static_cast<std::uint64_t>(static_cast<std::int64_t>(with_.loop->wall_now()) / kSecond) * 64,
      0};
  first.ballot = {};
  for (const auto& [node, record] : first.nodes)
    first.ballot.now.nodes[node] = node == with_.node ? 1 : 0;
  founding_ = true;
  wanted_.prevents = false;  // that was about a cluster that there was
  wanted_.configuration = std::move(first);
  save();
  return {};
}

}  // namespace csv::cluster
