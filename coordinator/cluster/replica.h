#pragma once
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/configuration.h"
#include "coordinator/cluster/configuration_store.h"
#include "coordinator/cluster/engine.h"
#include "coordinator/cluster/witness.h"
#include "csvfs/base/task.h"

namespace csv::wire {
class GroupMessage;
}

namespace csv::cluster {

/// The cluster's configuration, the same on every node: a replicated value.
///
/// A *view* of the engine begins with a greeting of every member: the newest configuration on its
/// disk. If those who greeted are a majority by the newest of them (with the witness, where that
/// decides), the lowest of them has a new epoch promised by a majority, and then proposes the
/// newest configuration with that epoch: the cluster *forms*. Everybody stores what is proposed,
/// says so, and it is in force once a majority has it. From then on any member may propose a
/// change; of two at once the first in the engine's order is taken, the other is tried again on
/// what the first has made of it.
///
/// Why that is enough: it is Paxos (Lamport, "The Part-Time Parliament", 1998) for each epoch. What
/// was ever in force is on the disks of a majority, and whoever forms a cluster has heard a
/// majority, so he has heard of it. Promises make an epoch one attempt's alone: of two attempts
/// that hear of the same past the second must have the higher number, or what the first left on one
/// disk could not be told from what the second made. Within an epoch the engine's order keeps
/// proposals apart, as a change of members ends the epoch. No decision rests on the delivery of a
/// message (A5).
///
/// A change of votes is two proposals: the first binds both sets of votes, the second only the new
/// one, and comes only when the first is in force (A4).
///
/// One loop.
class Replica {
 public:
  enum class State {
    lost,      ///< The engine reaches nobody.
    greeting,  ///< A view has begun.
    minority,  ///< Those who greeted may not go on. Waits for others, or for the witness.
    forming,   ///< Proposed, and not yet in force.
    formed,    ///< Goes on.
  };
  struct Timing {
    /// How long a member's greeting is waited for; one that hangs must not stop the others.
    Duration patience = 2s;
    /// Between two confirmations of the witness, while it is needed.
    Duration confirm = 1s;
    /// What a confirmation is worth from when it was sent.
    Duration hold = 3s;
    /// Between two attempts on a witness that could not be had.
    Duration retry = 1s;
  };
  /// What a member said about another node, as a moment here: not before it.
  using Granted = std::map<NodeId, TimePoint>;
  struct Surroundings {
    Loop* loop = nullptr;
    Engine* engine = nullptr;
    ConfigurationStore* store = nullptr;
    NodeId node{};
    Timing timing;
    /// When this node last let another one have a lease; for the greeting. Of a node of which it
    /// does not know that, when this process began: a former one may have.
    std::function<Granted()> granted;
    /// Whether a member has been heard lately, by what does not go through the engine. One that
    /// hangs is a member still, and must not be who does what one has to do.
    std::function<bool(NodeId)> responsive;
    /// State, configuration, notes or the witness have changed. Must not destroy the replica.
    std::function<void()> changed;
  };

  explicit Replica(Surroundings surroundings);
  ~Replica();

  /// Once: what was stored here has been read by whoever made us. Joins the group.
  void start(Kept kept);
  /// Used from now on, if the configuration has one; null: it cannot be had.
  void use_witness(Witness* witness);

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] const std::string& reason() const { return reason_; }  ///< Why not formed.
  [[nodiscard]] TimePoint since() const { return since_; }             ///< Of the state.
  /// In force if formed; else the newest on this node's disk. Null: none yet.
  [[nodiscard]] const Configuration* configuration() const {
    if (state_ == State::formed) return &*in_force_;
    return stored_ ? &*stored_ : nullptr;
  }
  /// What was in force last, in this life, be it that it is not formed any more. Null: nothing.
  [[nodiscard]] const Configuration* last_in_force() const {
    return in_force_ ? &*in_force_ : nullptr;
  }
  /// Of the newest configuration that anybody here has: what a witness compares with what it
  /// stores.
  [[nodiscard]] ClusterTag known_tag() const;
  [[nodiscard]] const std::optional<View>& view() const { return view_; }
  /// Formed now, or was when this view began, not long ago: leases are not cut by a change of
  /// members.
  [[nodiscard]] bool leases() const;
  /// Whether these nodes, and the witness if `witness`, are enough for one: by the votes in force
  /// now or until lately, and then by those of what has been accepted since, too. Not by those of
  /// the disk alone: it may be full, and what it has be older.
  [[nodiscard]] bool majority_for_lease(std::span<const NodeId> nodes, bool witness) const;
  /// By our answer that node may have one: it is a member, and where this is not formed at the
  /// moment it has been one ever since it was. One that others went on without meanwhile is not
  /// kept alive by somebody who has come over from them.
  [[nodiscard]] bool lets(NodeId node) const;
  [[nodiscard]] bool member(NodeId node) const;
  /// It does what one of the members has to do. Where the cluster has formed, that is who hears
  /// most of those that hear a majority; from what each has said in the engine's order, so that all
  /// agree on it. Else, or where nobody hears a majority, the lowest that this node hears. Two may
  /// think so for a moment; whatever it does bears that.
  [[nodiscard]] bool steward() const;
  /// The members have been told by `one` that it hears the other (Surroundings::responsive); or it
  /// is of a version that does not tell.
  [[nodiscard]] bool says_it_hears(NodeId one, NodeId other) const;
  /// Those that hear the node and are heard by it are, with it, a majority by the votes in force
  /// (with the witness, if one of them holds it): so it can have a lease, and be reached by enough.
  /// Only while formed.
  [[nodiscard]] bool hears_majority(NodeId node) const;
  /// Until then the witness is held by whatever side this node was on when it was confirmed: worth
  /// a lease for as long.
  [[nodiscard]] TimePoint held_until() const { return held_until_; }
  /// Somebody of this side holds it, as far as it has been told.
  [[nodiscard]] bool witness_answers() const { return witness_answers_; }
  /// Heard from a node of this side.
  void heard_held_until(TimePoint until);
  /// No lease that anybody here has given to the node runs beyond `term` after this; nullopt:
  /// nobody here has given it any, as far as is known.
  [[nodiscard]] std::optional<TimePoint> last_granted(NodeId node) const;

  /// Tells the members whom this one hears (Surroundings::responsive), if that has changed.
  void say_hears();
  /// A member is heard that was not, or is not any more: its vote may have to count, and what one
  /// has to do may be another's.
  void heard();

  /// What this member says of itself to all; and what each has said last.
  void tell(std::string note);
  [[nodiscard]] const std::map<NodeId, std::string>& notes() const { return notes_; }

  /// Makes of the configuration in force another one, as often as it takes until it is in force;
  /// `change` is asked anew each time, and must be content with what is already done. Its error is
  /// handed on, nothing has changed then. Errc::retry: there was no
  /// majority for as long as `patience`, and it was not tried; Errc::unknown_outcome: it was, and
  /// may have been stored somewhere and come back.
  using Change = std::function<Expected<void>(Configuration&)>;
  Task<Expected<void>> propose(Change change, Duration patience);
  /// A minority goes on, on an administrator's word: the forced generation grows, and only those
  /// present have votes. Where it goes on already only the generation grows, as it may have to
  /// where volumes have seen a forced one that is lost. Errc::refused without a configuration.
  Task<Expected<void>> force(Duration patience);
  /// The first configuration of a new cluster, on this node alone. Errc::refused if there is one.
  Expected<void> found(Configuration first);

  /// From the success on this node brings no cluster about: it counts for no majority, as one that
  /// has lost its disk, and asks no witness, until it has stored what a cluster that formed without
  /// its help has in force; or until this is taken back (false). It is on the disk, and so holds
  /// for the lives to come. Said in the middle of forming one, the members begin that anew without
  /// this node's part in it. Errc::refused where the cluster has formed here, perhaps meanwhile;
  /// Errc::unknown_outcome: it was not on the disk, or not told to the members, in time.
  Task<Expected<void>> prevent(bool yes, Duration patience);
  /// As the disk says: what was asked for last may be on its way there.
  [[nodiscard]] bool prevents() const { return prevents_; }
  /// So it has greeted.
  [[nodiscard]] bool prevents(NodeId node) const;

 private:
  /// A new epoch that the steward wants to form the cluster with.
  struct Attempt {
    Configuration configuration;
    std::set<NodeId> promised_by;
    bool promised_by_witness = false;
  };
  struct Outstanding {
    Configuration configuration;
    bool forms = false;
    std::set<NodeId> stored_on;
    bool stored_by_witness = false;
  };

  void on_view(const View& view);
  void on_message(Member from, const std::string& message);
  void on_lost(const Error& why);
  void greet_when_idle();
  void take_greeting(Member from, const wire::GroupMessage& message);
  void take_proposal(Member from, const wire::GroupMessage& message);
  void take_stored(Member from, const wire::GroupMessage& message);
  [[nodiscard]] const Configuration* newest_known() const;
  void look();
  void begin_round(std::string why);
  void no_longer_formed();
  void begin_again(std::string why);
  void greet_again();
  void watch_forming();
  void form(const Configuration& newest);
  [[nodiscard]] std::uint64_t next_epoch(std::uint64_t highest) const;
  [[nodiscard]] std::uint64_t greeted_forced() const;
  [[nodiscard]] std::vector<NodeId> knowing(const Configuration& newest) const;
  void take_held(Member from, bool yes);
  void take_hears(Member from, const wire::GroupMessage& message);
  [[nodiscard]] std::uint64_t heard_now() const;
  [[nodiscard]] std::vector<NodeId> heard_with(NodeId node) const;
  [[nodiscard]] std::vector<NodeId> able(const Configuration& newest) const;
  [[nodiscard]] std::optional<NodeId> hears_most() const;
  [[nodiscard]] bool lowest_heard() const;
  void say_held(bool yes);
  [[nodiscard]] bool keeps_witness() const;
  [[nodiscard]] bool keeper_is_heard() const;
  [[nodiscard]] bool others_need_witness() const;
  void wait_for_turn();
  void take_prepare(Member from, const wire::GroupMessage& message);
  void take_promised(Member from, const wire::GroupMessage& message);
  void check_promises();
  Task<void> have_witness_promise(Configuration configuration, std::uint64_t view);
  void arbitrate();
  Task<void> arbitration(std::uint64_t view);
  Task<Expected<void>> use_what_it_remembers(std::uint64_t view);
  Expected<void> use_memory(const Witness::Memory& memory);
  void keep_holding();
  Task<void> confirmation();
  void save();
  void saved(const Expected<void>& result);
  Task<Expected<void>> force_on(Duration patience);
  [[nodiscard]] std::string preventing() const;
  Task<void> have_witness_catch_up(std::uint64_t view);
  Task<void> store_at_witness(Configuration configuration, std::uint64_t view);
  void outdo(const Witness::Memory& memory);
  void check_commit();
  void tidy();
  void enter(State state, std::string reason = {});
  void send(wire::GroupMessage& message);
  [[nodiscard]] bool holding() const;
  void proven(const Witness::Hold& hold);
  void not_proven(const Error& why);
  void watch_hold();
  [[nodiscard]] std::vector<NodeId> greeted() const;
  [[nodiscard]] Configuration with_votes(Configuration configuration) const;
  void vote();

  Surroundings with_;
  State state_ = State::lost;
  std::string reason_;
  TimePoint since_{};
  std::optional<Configuration> stored_;    ///< On the disk.
  std::optional<Configuration> in_force_;  ///< While formed.
  std::optional<View> view_;
  std::uint64_t view_count_ = 0;  ///< Of views and losses: what began before another one is over.
  std::uint64_t round_ = 0;       ///< Of greetings, in this view.
  std::uint64_t members_ = 0;     ///< A digest of both, as messages carry it.
  std::optional<ClusterTag> round_tag_;  ///< Of the first proposal to form in this round.
  Kept wanted_;                          ///< What shall be on the disk.
  std::optional<Kept> saving_;           ///< On its way there.
  ClusterTag promised_;                  ///< On the disk.
  bool prevents_ = false;                ///< On the disk.
  Loop::TimerId save_again_{};
  bool founding_ = false;
  bool greeted_self_ = false;
  struct Greeted {
    std::optional<Configuration> configuration;
    ClusterTag promised;
    bool prevents = false;
    /// As it said last, a bit for each (2^number); none: it does not say.
    std::optional<std::uint64_t> hears;
  };
  std::map<NodeId, Greeted> greetings_;
  std::uint64_t said_hears_ = 0;
  /// Who has stored a configuration since he greeted, and may have had none before.
  std::set<NodeId> stored_since_;
  std::map<NodeId, std::string> notes_;
  std::string note_;
  std::map<NodeId, TimePoint> granted_;
  bool out_of_patience_ = false;
  /// The highest forced generation that each has come with. Of who has not come with ours nothing
  /// is known: he may belong to a side that shares no voter with this one.
  std::map<NodeId, std::uint64_t> forced_of_;
  TimePoint view_since_{};
  /// When the last view ended in which what this side's witness was proven to hold could be told to
  /// nodes that were left behind: nobody's lease rests on a later proof.
  TimePoint hold_shared_until_{};
  Loop::TimerId patience_{}, forming_{};
  std::optional<Attempt> attempt_;
  std::uint64_t prepared_ = 0;  ///< The highest epoch of an attempt of ours.
  std::optional<Outstanding> outstanding_;
  std::optional<TimePoint> formed_until_;  ///< When the last view in which it was formed ended.
  std::set<NodeId> together_;              ///< Members of all views since, and of that one.
  ClusterTag tidied_;                      ///< What tidy() has proposed to replace.
  Witness* witness_ = nullptr;
  bool arbitrating_ = false, confirming_ = false, witness_answers_ = false;
  TimePoint held_until_{};
  TimePoint proven_until_{};                   ///< As far as this node itself has proven it.
  TimePoint voted_until_{};                    ///< As the engine was told last.
  std::uint64_t held_in_ = 0;                  ///< The view in which this node has.
  Loop::TimerId hold_over_{};                  ///< When what the witness's vote rests on is over.
  std::optional<Configuration> from_witness_;  ///< What it stores; of a disk.
  ClusterTag witness_promised_;
  ClusterTag witness_tag_;    ///< It stores as much at least.
  bool catching_up_ = false;  ///< What is in force is being stored there.
  Loop::TimerId confirm_timer_{}, turn_timer_{};
  /// Who has said in this view that he holds it. Which vote rests on it outlives the view.
  std::optional<NodeId> keeper_, last_keeper_;
  std::set<NodeId> kept_from_it_;  ///< Who has said that he cannot, since anybody could.
  bool said_held_ = false;         ///< As it was said last in this view.
  bool turn_ = false;              ///< Whose task it is has not got it: this node tries, too.
  Signal changed_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  TaskScope tasks_;
};

std::string_view to_text(Replica::State state);

}  // namespace csv::cluster
