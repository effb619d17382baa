#pragma once
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "coordinator/service/content.h"
#include "coordinator/service/file_locks.h"
#include "coordinator/service/inode_locks.h"
#include "coordinator/service/layouts.h"
#include "coordinator/service/memory.h"
#include "coordinator/service/session.h"
#include "coordinator/service/slot_watch.h"
#include "coordinator/service/suspended.h"
#include "coordinator/service/takeover.h"
#include "coordinator/service/volume_service.h"
#include "coordinator/service/watches.h"
#include "coordinator/service/writer.h"
#include "csvfs/base/name_cache.h"

namespace csv::service {

/// One request of a session, for as long as anything of it is under way on either thread. The
/// writer thread reads of it what never changes: session number and request.
struct Call {
  SessionRef session;
  SessionId session_id{};
  std::uint64_t id = 0;
  wire::Request request;
  std::shared_ptr<Buffer> content;
  std::optional<std::string> stored;  ///< The reply that its transaction stored.
  std::vector<InodeId> changed;       ///< By its group, and watched by somebody.
};
using CallRef = std::shared_ptr<Call>;

struct Answer {
  wire::Reply reply;
  Buffer bulk;
};

/// The VolumeService. Its parts: volume_service.cc (life, connections, dispatch), sessions.cc
/// (hello, admission, fences, the watch over who is late), suspending.cc (what ended sessions had
/// open), recall.cc (asking for layouts back), requests.cc (names and attributes), watching.cc
/// (what mounts may answer of those by themselves), lock_requests.cc (locks of programs), data.cc
/// (layouts and content), clone.cc (files that share blocks), upkeep.cc (what runs in the
/// background).
class Service final : public VolumeService {
 public:
  Service(Surroundings around, Taken taken);
  ~Service() override;

  void accept(std::unique_ptr<protocol::Connection> connection, protocol::Message hello) override;
  void on_stopped(Function<void(Error)> handler) override;
  Task<void> close() override;
  [[nodiscard]] Status status() const override;
  [[nodiscard]] std::map<NodeId, std::uint64_t> off() const override { return off_; }
  Task<Expected<CatalogCopied>> copy_catalog() override;
  [[nodiscard]] std::vector<cluster::StorageSign> signs() const override;
  [[nodiscard]] TimePoint reached() const override { return lun_reached_; }
  [[nodiscard]] Epoch epoch() const override { return epoch_; }
  [[nodiscard]] Key key() const override { return key_; }

 private:
  using Outcome = Expected<Answer>;
  using Rule = Layouts::Kind;

  // volume_service.cc
  void stop(Error why);
  [[nodiscard]] bool serving() const { return !stopped_ && !closing_; }
  /// The node's lease, and a term since the LUN last took a write of ours: a successor waits that
  /// long after its fence before it answers anybody.
  [[nodiscard]] bool gate_open() const {
    return loop_.now() < around_.open_until() && loop_.now() < proven_until_;
  }
  [[nodiscard]] std::int64_t wall_now() const {
    return static_cast<std::int64_t>(loop_.wall_now());
  }
  /// An error of our own I/O: those that end our way to the LUN stop the service, so that nobody is
  /// told of them.
  Expected<void> judge(Expected<void> io);
  void forgotten(Error why);
  Task<void> count_loss(Error why);
  Task<void> count_loss_and_close(Error why);
  [[nodiscard]] bool catalog_is_durable() const;
  void received(const LinkRef& link, protocol::Message message);
  void received_request(const SessionRef& session, protocol::Message message);
  Task<void> handle(CallRef call);
  Task<Outcome> dispatch(CallRef call);
  Task<Outcome> unknown(CallRef call);
  Task<void> answer_again(SessionRef session, wire::Request request, std::uint64_t id,
                          wire::Reply reply);
  void answer(const CallRef& call, Outcome outcome);
  void send(const LinkRef& link, wire::Frame frame, Buffer bulk = {});
  void send_reply(const LinkRef& link, std::uint64_t id, wire::Reply reply, Buffer bulk = {});
  void disconnected(const LinkRef& link);
  /// The mount may read what was sent before the connection goes.
  void close_soon(LinkRef link);
  /// Runs `body` as a change of this request: its reply is stored for a repeat in the same
  /// transaction (exactly once). The body returns the reply.
  template <typename F>
  Task<Outcome> settle(CallRef call, F body) {
    return settle_erased(std::move(call),
                         Function<Expected<wire::Reply>(volume::Catalog&)>{std::move(body)});
  }
  [[nodiscard]] Expected<void> may_change(const Session& on_behalf) const;
  Task<Outcome> settle_erased(CallRef call, Function<Expected<wire::Reply>(volume::Catalog&)> body);

  // sessions.cc
  Task<void> greet(LinkRef link, wire::Hello hello);
  Task<Expected<SessionRef>> session_for(wire::Hello hello);
  Task<Expected<void>> load_slots(SessionRef session);
  void attach(const SessionRef& session, const LinkRef& link, const wire::Hello& hello);
  void declare(const SessionRef& session, const wire::Hello& hello);
  void refuse(const LinkRef& link, const Error& why, NodeId kept_out = {});
  /// `for_good`: nothing of what it has open may be gone on with.
  enum class End { fenced, fenced_for_good, said_goodbye };
  Task<void> end_session(SessionRef session, std::string why, End how);
  Task<void> end_in_background(SessionRef session, std::string why, End how = End::fenced);
  /// Rows, PREEMPT, rows (A1). An error means that we cannot coordinate any more.
  Task<Expected<void>> fence(std::vector<Key> keys, SessionId ends, Fencing::Left left,
                             std::optional<volume::SuspendedRow> keep = {});
  Task<void> fence_in_background(std::vector<Key> keys, Fencing::Left left);
  Task<Outcome> admit_begin(CallRef call);
  Task<Outcome> admit_done(CallRef call);
  Task<Outcome> goodbye(CallRef call);
  void resume_done(const SessionRef& session);
  void noticed(const SessionRef& session, std::uint64_t id, const wire::NoticeReply& reply);
  Task<void> notice_answered(AskedRef asked, InodeId inode, bool wrote);
  AskedRef ask(const SessionRef& session, wire::Notice notice);
  void send_notice(const SessionRef& session, const Asked& asked);
  void nudge_all();  ///< Whoever waits for a session looks around.
  Task<void> watch();
  /// Why no mount of that node is let in, nor stays; none: it may be.
  [[nodiscard]] std::optional<Error> kept_out(NodeId node) const;
  [[nodiscard]] bool lease_is_over(const Session& session) const;
  bool is_overdue(Session& session) const;
  [[nodiscard]] bool owes_pages(const Session& session, InodeId inode, Blocks range) const;

  // suspending.cc
  [[nodiscard]] std::optional<volume::SuspendedRow> what_it_leaves(const Session& session) const;
  [[nodiscard]] volume::SuspendedRow what_to_suspend(const Session& session) const;
  [[nodiscard]] std::vector<volume::SuspendedRow> rows_to_begin(InodeId inode) const;
  [[nodiscard]] bool counts_against(const Session& session, InodeId inode) const;
  [[nodiscard]] static volume::SuspendedRow nothing_of(const Session& session);
  Task<Expected<void>> begin_rows(std::vector<volume::SuspendedRow> rows);
  void look_whose_rows_end();
  [[nodiscard]] bool writes_it(InodeId inode, SessionId except) const;
  void note_for_absent(const SessionRef& by, InodeId inode);
  void touched_while_away(const SessionRef& session);
  [[nodiscard]] bool writes_alone(const Session& session, InodeId inode) const;
  void look_who_writes_alone();
  Task<void> settle_writes(SessionRef session);
  Task<Expected<void>> touches(SessionRef by, InodeId inode, Touch how);
  Task<Expected<void>> write_marks(std::vector<Suspended::Mark> marks);
  Task<Expected<void>> note_marks(std::vector<Suspended::Mark> marks);
  Task<void> write_in_background(std::vector<Suspended::Mark> marks);
  void declared_writing(const SessionRef& session, std::span<const InodeId> inodes);
  Task<Expected<void>> forget_suspended(std::vector<NodeId> nodes);
  Task<void> forget_in_background(std::vector<NodeId> nodes);
  Task<Expected<void>> give_up_suspended(std::vector<NodeId> nodes);
  Task<void> give_up_in_background(std::vector<NodeId> nodes);
  Task<Outcome> resume(CallRef call);
  Task<Expected<void>> resume_file(SessionRef session, SessionId ended, wire::Resume::File file,
                                   std::vector<FileLocks::Wish> locks);

  // recall.cc
  /// Nobody but the caller touches these blocks, by layout or through us, until it is destroyed.
  struct Quiet {
    Layouts::Hold hold;
    InodeLocks::Held lock;
  };
  [[nodiscard]] bool older_than_takeover(InodeId inode) const;
  [[nodiscard]] bool unlisted_holder(const Session& session, InodeId inode) const;
  [[nodiscard]] bool unknown_holder(const Session& session, InodeId inode) const;
  [[nodiscard]] bool any_unknown_holder(InodeId inode) const;
  /// What an operation cannot stand: layouts of anybody, and pages of kernels but its own node's,
  /// which takes care of those itself.
  struct InTheWay {
    Blocks layouts = {};
    bool reads_too = false;  ///< Layouts to read as well as those to write.
    bool own_too = true;     ///< Layouts of the session itself as well.
    Blocks pages = {};
    bool clean_too = true;  ///< Pages that nobody can store into as well.
    bool truncates = false;
  };
  [[nodiscard]] bool anything_in_the_way(const SessionRef& on_behalf, InodeId inode,
                                         const InTheWay& what) const;
  /// `on_behalf`: gives up with session_ended if that session ends. None: our own upkeep.
  /// `lock`: of what it is taken; all that the caller works on.
  Task<Expected<Quiet>> quiet(SessionRef on_behalf, InodeId inode, InTheWay what,
                              Blocks lock = kWholeFile);
  Task<Expected<void>> all_holders_known(SessionRef on_behalf, InodeId inode);
  Task<Expected<void>> recall(SessionRef on_behalf, InodeId inode, InTheWay what);
  Task<Expected<void>> recall_pages(SessionRef on_behalf, InodeId inode, InTheWay what);
  struct AskedBack {
    AskedRef asked;
    Layouts::Recall what;
  };
  /// Numbers it.
  AskedBack ask_back(const SessionRef& session, InodeId inode, Layouts::Recall what);
  Task<Expected<void>> came_back(SessionRef session, InodeId inode, Layouts::Recall what);
  /// What is left of a session's grants on an inode becomes free space; it holds no layout of them.
  Task<Expected<void>> drop_grants(SessionId session, InodeId inode);
  /// The same for whoever may have some, for blocks that turn out to be granted to nobody we know.
  Task<Expected<void>> drop_unknown_grants(InodeId inode);
  Task<void> take_back_grant(SessionRef session, InodeId inode);
  void keep_layouts_bounded(const SessionRef& asker);
  Task<void> shed_layouts(SessionRef session);
  struct Shedding;
  Task<void> shed(SessionRef session, InodeId inode, std::shared_ptr<Shedding> round);
  Task<void> ask_who_wrote(SessionRef asker, InodeId inode);
  Task<Expected<void>> touch(InodeId inode);

  // requests.cc
  Task<Outcome> lookup(CallRef call);
  /// What is in memory of an inode may be answered. Not while a time is on its way into the catalog
  /// for a write that has been answered: whoever looks waits for it.
  [[nodiscard]] bool known_by_heart(InodeId inode) const { return !touching_.contains(inode); }
  Task<Expected<volume::Attr>> attr_of(InodeId inode);
  Task<Outcome> get_attr(CallRef call);
  Task<Outcome> set_attr(CallRef call);
  Task<Outcome> read_link(CallRef call);
  Task<Outcome> make(CallRef call);
  Task<Outcome> link(CallRef call);
  Task<Outcome> unlink(CallRef call);
  Task<Outcome> rename(CallRef call);
  Task<Outcome> open(CallRef call);
  Task<Outcome> release(CallRef call);
  Task<Outcome> read_dir(CallRef call);
  Task<Outcome> get_xattr(CallRef call);
  Task<Outcome> set_xattr(CallRef call);
  Task<Outcome> list_xattr(CallRef call);
  Task<Outcome> remove_xattr(CallRef call);
  Task<Outcome> stat_fs(CallRef call);
  Task<Outcome> wrote(CallRef call);
  Task<Outcome> seek(CallRef call);
  void note_access(InodeId inode);
  Task<void> note_reading(InodeId inode);
  Task<void> settle_access(InodeId inode);
  /// Some of them; all, or what somebody else began to write, if asked often enough.
  Task<void> write_accesses();
  Task<void> keep_accesses();
  void opened(const SessionRef& session, InodeId inode, bool writes);
  void closed(const SessionRef& session, InodeId inode);
  void last_closed(const SessionRef& session, InodeId inode, bool reads_only);
  void orphaned(InodeId inode);

  // watching.cc
  void changed(const volume::Catalog::Changed& what);
  void unwatch(std::span<const InodeId> inodes, SessionId except);
  void unwatch_attributes(std::span<const InodeId> inodes);
  void tell(SessionId session, std::vector<InodeId> inodes, std::vector<InodeId> attributes);
  Task<void> wait_for_unwatch(SessionRef session, Watches::Ticket ticket,
                              std::vector<InodeId> inodes, std::vector<InodeId> attributes);
  std::vector<AskedRef> send_unwatch(const SessionRef& session, std::span<const InodeId> inodes,
                                     std::span<const InodeId> attributes);
  [[nodiscard]] bool former_watchers();
  void await_former_watchers(const Taken& taken);
  [[nodiscard]] std::set<Watches::Ticket> contradictions(const Call& call,
                                                         const Outcome& outcome) const;
  Task<bool> uncontradicted(CallRef call, const Outcome& outcome);
  void vouch(const Call& call, const Outcome& outcome, wire::Reply& reply);
  [[nodiscard]] bool may_be_watched(InodeId inode, SessionId session, bool content);

  // lock_requests.cc
  [[nodiscard]] static bool is_about_locks(const wire::Request& request);
  FileLocks::Wish wish_of(SessionId session, const wire::LockOf& what) const;
  Task<Expected<void>> all_locks_known(SessionRef on_behalf, InodeId inode);
  Task<Outcome> lock(CallRef call);
  Task<Outcome> lock_decided(CallRef call);
  Task<Outcome> unlock(CallRef call);
  Task<Outcome> test_lock(CallRef call);
  Task<Outcome> held_locks(CallRef call);
  void tell_lock_waiters();

  // data.cc
  struct Look {
    volume::Attr attr;
    std::vector<volume::Mapping> map;
    bool privileged = false;  ///< If asked: it gives privileges, which a write takes away.
  };
  Task<Expected<Look>> look(InodeId inode, Blocks range, bool privileges = false);
  Task<Outcome> layout(CallRef call);
  Task<Outcome> layout_return(CallRef call);
  Task<Outcome> commit(CallRef call);
  Task<Outcome> read(CallRef call);
  Task<Outcome> write(CallRef call);
  Task<Outcome> allocate(CallRef call);
  Task<Outcome> truncate(CallRef call, InodeId inode, std::uint64_t size,
                         std::optional<volume::AttrChange> change, bool drop_set_id);
  struct WriteLook {
    volume::Attr attr;
    std::uint64_t offset = 0;
    std::vector<volume::Mapping> map;   ///< Of the blocks from `offset` on.
    std::vector<volume::Run> reserved;  ///< For its holes; empty also where space was short.
    /// Of the file's last block, if it is none of these, and what is behind the end in it would
    /// come to be in the middle.
    std::optional<volume::BlockState> last;
  };
  Task<Expected<WriteLook>> look_where_to_write(CallRef call);
  Task<Outcome> write_alone(CallRef call, WriteLook seen);
  Task<Expected<Content::BufferRef>> compose(CallRef call, std::uint64_t offset,
                                             std::vector<volume::Mapping> map, std::uint64_t size,
                                             RangeSet landed);
  Task<Outcome> claim_pages(CallRef call, InodeId inode, Blocks range);
  enum class Prepared { yes, no, as_far_as_it_is };
  Task<Expected<Prepared>> prepare_write(SessionRef session, InodeId inode, Blocks asked,
                                         std::uint64_t size_seen);
  Task<Expected<void>> make_stable(SessionRef on_behalf, InodeId inode,
                                   std::vector<volume::Mapping> pieces);
  Task<Expected<void>> give_grant(SessionRef session, InodeId inode, Blocks hole,
                                  std::uint64_t least);
  Task<Expected<std::vector<volume::Run>>> reserve(SessionRef on_behalf, InodeId inode,
                                                   std::uint64_t count, std::size_t most_runs);
  void cancel_reservation(std::vector<volume::Run> runs);
  Task<void> cancel_reservation_now(std::vector<volume::Run> runs);
  struct Zeros {
    Content::Durable durable = Content::Durable::no;
    bool of_shared = true;  ///< Else what is shared stays as it is.
  };
  Task<Expected<void>> zero_bytes(SessionRef on_behalf, InodeId inode, std::uint64_t from,
                                  std::uint64_t to, Zeros how);
  Task<Expected<void>> clear_behind_end(SessionRef on_behalf, InodeId inode, std::uint64_t size);
  Task<Expected<Quiet>> quiet_to_grow(SessionRef on_behalf, InodeId inode, InTheWay what,
                                      std::uint64_t end);
  Task<Expected<Blocks>> zero_edges(SessionRef on_behalf, InodeId inode, std::uint64_t offset,
                                    std::uint64_t end);
  Task<Expected<void>> fill_holes(SessionRef on_behalf, InodeId inode, Blocks range);
  Task<Outcome> settle_size(CallRef call, bool keep_size);
  Task<Outcome> fill_space(CallRef call);
  Task<Outcome> punch(CallRef call);
  Task<Outcome> zero_range(CallRef call);

  // clone.cc
  /// Of two files, or twice of one.
  struct QuietTwo {
    Layouts::Hold from_hold, into_hold;
    InodeLocks::Held lower, higher;
  };
  Task<Expected<QuietTwo>> quiet_two(SessionRef on_behalf, InodeId from, InTheWay source,
                                     InodeId into, InTheWay target);
  Task<Outcome> clone(CallRef call);
  /// What is shared of `range`, and around it up to the unit of copying, gets blocks of its own.
  Task<Expected<void>> unshare(SessionRef on_behalf, InodeId inode, Blocks range);
  /// The same for one piece of a map, alone with it; its content is `content`, or else copied.
  Task<Expected<void>> move_to_own(SessionRef on_behalf, InodeId inode, volume::Mapping piece,
                                   Content::BufferRef content = {});

  // insurance.cc
  struct FileWork;
  Task<void> copy_by_command();
  /// Whoever asked for one is told that it will not be finished.
  void give_up_copy();
  Task<Expected<CatalogCopied>> take_copy();
  Task<Expected<CatalogCopied>> take_copy_now();
  Task<Expected<void>> prepare_copy();
  Task<Expected<void>> copy_pages(std::shared_ptr<FileWork> file);
  Task<void> copy_daily();
  Task<Expected<WallTime>> last_copy();

  // upkeep.cc
  Task<void> sweep_keys();
  Task<Expected<void>> sweep_once();
  [[nodiscard]] Expected<void> look_for_memory_loss(const iscsi::KeyList& list) const;
  void look_who_is_off(const iscsi::KeyList& list);
  Task<Expected<void>> reserve_again();
  Task<void> beat();
  Task<void> watch_path();
  Task<void> watch_slots();
  Task<Expected<HeartbeatSlot>> read_slot(NodeId node);
  Task<void> maintain();
  /// One round of making freed blocks free. False: there was nothing to be done, and nothing has
  /// become free since times_freed_ was `freed_before`. Errc::retry: a request has waited long
  /// enough with its locks.
  Task<Expected<bool>> free_space(SessionRef on_behalf, std::uint64_t freed_before);
  Task<Expected<bool>> free_dying();
  Task<void> find_orphans();
  [[nodiscard]] bool openers_known() const;
  [[nodiscard]] bool reaping_goes_on() const;
  [[nodiscard]] bool is_removed(InodeId inode) const;
  [[nodiscard]] std::vector<InodeId> reapable(std::size_t most) const;
  Task<void> reap_orphans();
  Task<void> reap(InodeId inode);
  Task<void> clean_up_ended();
  Task<Expected<void>> clean_up(SessionId session);

  Surroundings around_;
  const MemoryShares shares_;
  Loop& loop_;
  TenureRef tenure_;
  std::unique_ptr<Fencing> fencing_;
  const Key key_;
  const Epoch epoch_;
  const std::uint64_t verifier_;  ///< For as long as we serve: a loss ends us.
  const TimePoint since_;

  /// What the catalog last said. Only we change it, so this stays true if two things are kept up:
  ///  - what a look-up brought is learned in the very turn of the loop in which its group is told
  ///  to
  ///    be finished (right behind the co_await of Writer::read), and
  ///  - what a group changed is forgotten when the group is told to be finished, before anybody who
  ///    waited for it goes on (changed()).
  /// Groups finish in the order they ran. So what is known is the state after the last group that
  /// was told of, which is durable; a change that is still running has been answered to nobody.
  NameCache<volume::Attr> names_;
  Watches watches_{loop_};
  std::vector<InodeId> group_unsettled_;  ///< By the last group, for this turn of the loop.
  std::set<SessionId> former_watchers_;   ///< Of a former coordinator, and not heard of yet.
  TimePoint former_watches_until_{};
  Signal touched_{loop_};  ///< Something less in touching_.
  Signal settled_{loop_};  ///< Something of watches_, or of former_watchers_.
  Writer writer_;
  Content content_;
  InodeLocks locks_;
  Layouts layouts_;
  std::multiset<std::pair<InodeId, SessionId>> truncating_;  // and wait for others' pages
  FileLocks file_locks_;
  std::map<FileLocks::Ticket, Completion<FileLocks::Verdict>::Done> lock_waiters_;
  std::uint64_t lock_tries_ = 0;  ///< That did not wait.
  struct Undecided {
    int requests = 0;
    bool cancelled = false;
  };
  /// Requests that wait for all locks to be known, before they may wait for one.
  std::map<FileLocks::Ticket, Undecided> lock_arrivals_;

  Suspended suspended_;
  std::multimap<std::pair<NodeId, InodeId>, Touch> marking_;  ///< On their way into it.
  std::uint64_t touches_ = 0;                                 ///< So far, of content.
  std::multiset<NodeId> forgetting_;  ///< Whose rows of these are on their way out of the catalog.
  std::set<NodeId> giving_up_;        ///< One that keeps nothing is on its way in.
  Signal given_up_{loop_};            ///< Something less in giving_up_.
  std::map<SessionId, SessionRef> sessions_;        ///< Live and ending ones.
  std::map<Key, volume::AdmissionRow> admissions_;  ///< As committed, or about to be fenced.
  std::map<InodeId, std::set<SessionId>> openers_;
  std::set<NodeId> greeting_;                            ///< One Hello of a node at a time.
  std::map<NodeId, std::weak_ptr<Link>> waiting_hello_;  ///< And its newest of those that wait.
  std::size_t arrivals_ = 0;                             ///< Links whose Hello is being answered.
  std::multiset<InodeId> touching_;                      ///< touch() of them is under way.
  std::set<InodeId> orphans_;                            ///< Without a name; to be reaped.
  std::set<InodeId> reaping_;                            ///< Nobody may open them any more.
  std::set<SessionId> shedding_;                         ///< Being asked for some of their layouts.
  std::map<SessionId, InodeId> shed_;         ///< Up to where they have been asked, in turn.
  std::set<SessionId> ended_;                 ///< Whose grants are still to be freed.
  std::map<SessionId, SessionRef> lapsing_;   ///< Of them, those whose watches are not over yet.
  std::map<InodeId, std::int64_t> accesses_;  ///< Not in the catalog yet, and when they were.
  bool writing_accesses_ = false;             ///< One of these at a time.
  InodeId first_made_{};     ///< In this epoch; everything from it on is younger than the takeover.
  Signal sessions_changed_;  ///< One declared itself, ended, ...
  Signal reap_due_, clean_due_, freed_, accesses_written_;
  bool copying_ = false;  ///< The catalog is being copied.
  std::optional<Completion<Expected<CatalogCopied>>::Done> copy_asked_;  ///< For it, by command.
  bool freeing_ = false;  ///< One round of unmapping at a time.
  std::uint64_t times_freed_ = 0, times_reaped_ = 0;
  std::set<Key> foreign_seen_;  ///< Of other clusters; logged once.
  std::map<NodeId, std::uint64_t> asked_off_,
      off_;  ///< Fenced when the keys were last looked at; found to be off.

  std::uint64_t recall_sequence_;
  std::uint64_t
      next_notice_;  ///< Not what a former coordinator may have used (recalls outlive it).
  bool stopped_ = false, closing_ = false;
  bool forgotten_ = false;      ///< By the target: we are about to end.
  bool loss_noted_ = false;     ///< In the catalog, for the successor.
  bool counting_loss_ = false;  ///< Stopped, and about to note it: nobody has been told yet.
  TimePoint proven_until_;      ///< Our key was in force a term before.
  std::optional<TimePoint> slot_sent_;  ///< While the write of our slot is unanswered.
  TimePoint lun_answered_;              ///< Any command of upkeep, or content.
  TimePoint lun_reached_;               ///< When the last one of them was sent.
  SlotWatch slots_;
  TimePoint own_write_answered_;  ///< The last of our own writes: the LUN answers us.
  std::uint32_t key_generation_;  ///< When last looked at: it must not go back.
  Function<void(Error)> told_of_stop_;
  std::optional<Error> stop_reason_;
  volume::Catalog::Space space_;
  std::uint64_t stale_commits_ = 0, recalls_ = 0, unwatches_ = 0;

  /// Watched by handlers that others keep: they find out that we are gone.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  TaskScope tasks_;  ///< Last: what runs uses all of the above.
};

/// The inode is gone: nothing is left to be done for it.
bool is_stale(const Error& error);
/// What the catalog says of an inode, as it crosses the wire.
void fill(wire::Attr& out, const volume::Attr& attr);

}  // namespace csv::service
