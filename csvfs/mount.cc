#include "csvfs/mount.h"

#include <linux/falloc.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/limits.h"
#include "coordinator/protocol/relatime.h"
#include "csvfs/admission.h"
#include "csvfs/base/check.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"
#include "csvfs/coordinator_client.h"
#include "csvfs/file_table.h"
#include "csvfs/held_locks.h"
#include "csvfs/io_path.h"
#include "csvfs/kernel_pages.h"
#include "csvfs/watched.h"

namespace csv {
namespace {

constexpr std::uint64_t kMaxFileSize = 16ull << 40;
constexpr Duration kTick = 1s;
constexpr Duration kGatherClosed = 10ms;  ///< Files that are closed within it are told of together.
/// How long what must not block for ever waits for a coordinator that is there.
constexpr Duration kPatience = 1s;
/// The same for the root's attributes, which are not wrong before that: longer than the coordinator
/// waits for others who may know them by heart.
constexpr Duration kRootPatience = 5s;
/// Files that are asked for in one message.
constexpr std::size_t kResumeAtOnce = 512;
/// How long the end in good order waits for one thing; after that it is an end like a crash.
constexpr Duration kFarewell = 3s;

Error over() {
  return Error{std::errc::io_error, "the session under which it was opened has ended"};
}

using Client = CoordinatorClient;

class VolumeMount final : public Mount, private Client::Owner {
 public:
  explicit VolumeMount(MountSurroundings surroundings)
      : surroundings_{std::move(surroundings)},
        loop_{surroundings_.loop},
        files_{*loop_},
        watched_{*loop_, static_cast<std::size_t>(surroundings_.memory / 4 / Watched::kKnownBytes)},
        changed_{*loop_},
        client_{{loop_, surroundings_.connect, surroundings_.elsewhere, surroundings_.newest_epoch,
                 surroundings_.volume, surroundings_.node, surroundings_.random->next()},
                *this},
        admission_{{loop_, surroundings_.open_lun, surroundings_.volume, surroundings_.node,
                    [this] { return open_until(); }},
                   client_},
        io_{*loop_,
            client_,
            admission_,
            files_,
            surroundings_.memory / 2,
            [this] { return open_until(); },
            counters_},
        pages_{*loop_, io_, [this] { return open_until(); }},
        locks_{client_} {
    state_.since = loop_->now();
    io_.when_forgot([this] { pages_.target_lost(); });
    tasks_.spawn(follow_admission());
    tasks_.spawn(tick());
  }

  Task<Expected<void>> ready() override;
  Task<void> end() override;
  [[nodiscard]] std::string farewell_trouble() const override { return farewell_trouble_; }

  Task<Expected<wire::Attr>> lookup(InodeId parent, std::string name) override;
  Task<Expected<wire::Attr>> attr(InodeId inode) override;
  Task<Expected<wire::Attr>> change(wire::SetAttr to, Interrupt* interrupt,
                                    std::optional<Handle> through) override;
  Task<Expected<wire::Attr>> make(Caller caller, wire::Make what, Interrupt* interrupt) override;
  Task<Expected<wire::Attr>> link(InodeId inode, InodeId parent, std::string name,
                                  Interrupt* interrupt) override;
  Task<Expected<wire::Attr>> unlink(InodeId parent, std::string name, bool directory,
                                    Interrupt* interrupt) override;
  Task<Expected<wire::Attr>> rename(wire::Rename what, Interrupt* interrupt) override;
  Task<Expected<std::string>> read_link(InodeId inode, bool accessed) override;
  Task<Expected<wire::Entries>> list(InodeId directory, std::uint64_t after_cookie,
                                     ListOptions options) override;
  Task<Expected<std::string>> xattr(InodeId inode, std::string name) override;
  Task<Expected<std::string>> list_xattrs(InodeId inode) override;
  Task<Expected<void>> set_xattr(wire::SetXattr what, Interrupt* interrupt) override;
  Task<Expected<void>> remove_xattr(InodeId inode, std::string name, Interrupt* interrupt) override;
  Task<Expected<wire::FsStat>> statistics() override;

  Task<Expected<Opened>> open(InodeId inode, OpenOptions options, Interrupt* interrupt) override;
  Task<Expected<Opened>> create(Caller caller, wire::Make what, OpenOptions options,
                                Interrupt* interrupt) override;
  Task<void> close(Handle handle) override;
  Task<Expected<Content>> read(Handle handle, std::uint64_t offset, std::uint32_t length) override;
  Task<Expected<Content>> read_pages(Handle handle, std::uint64_t offset, std::uint32_t length,
                                     Interrupt* interrupt) override;
  void drop_pages_with(DropPages drop) override { pages_.drop_with(std::move(drop)); }
  Task<Expected<std::uint32_t>> write(Handle handle, std::uint64_t offset,
                                      std::span<const std::byte> data, WriteOptions options,
                                      Interrupt* interrupt) override;
  Task<Expected<void>> sync(Handle handle, bool content_only, Interrupt* interrupt) override;
  Task<Expected<void>> allocate(Handle handle, wire::Allocate what, Interrupt* interrupt) override;
  Task<Expected<std::uint64_t>> clone(CloneWish what, Interrupt* interrupt) override;
  Task<Expected<std::uint64_t>> seek(Handle handle, std::uint64_t offset,
                                     std::uint32_t whence) override;
  Task<Expected<void>> lock(Handle handle, LockWish wish, Interrupt* interrupt) override;
  Task<Expected<void>> unlock(Handle handle, LockWish wish) override;
  Task<Expected<std::optional<LockFound>>> test_lock(Handle handle, LockWish wish) override;
  Task<void> flush(Handle handle, std::uint64_t owner) override;

  void on_session_end(std::function<void(const std::vector<Over>&)> handler) override {
    told_of_end_ = std::move(handler);
  }
  [[nodiscard]] SessionId session_of(Handle handle) const override {
    auto found = handles_.find(handle);
    return found == handles_.end() || found->second.file->ended ? SessionId{}
                                                                : found->second.file->session;
  }
  [[nodiscard]] MountCounters counters() const override;
  bool says_closed() override {
    said_closed_ = loop_->now() >= may_send_until();
    look();  // wakes nobody before the caller has passed it on
    return said_closed_;
  }
  [[nodiscard]] State state() const override {
    auto now = state_;
    now.reached = admission_.reached();
    return now;
  }

 private:
  // CoordinatorClient::Owner
  void declare(wire::Hello& hello) override;
  std::vector<wire::Request> declared() override { return locks_.declared(); }
  void greeted(const wire::HelloReply& reply, bool fresh) override;
  void session_ended(const Error& why) override;
  void connection_changed() override {
    if (!client_.connected()) {
      watched_.forget_all();
      told_in_vain();
    }
    // Fenced by command, or no longer of the cluster: nothing is kept.
    if (client_.kept_out()) give_up(suspended_);
    look();
  }
  void sending(wire::Request& request, std::uint64_t id) override;
  void replied(const wire::Request& request, std::uint64_t id, TimePoint sent_at,
               const wire::Reply& reply) override {
    // Only a coordinator with a lease of its own vouches for anything, and no longer than that
    // runs.
    answered_until_ =
        std::max(answered_until_, sent_at + std::chrono::milliseconds{reply.vouched_ms()});
    watched_.replied(request, id, sent_at, reply);
    if (request.has_get_attr()) knows_times(InodeId{request.get_attr().inode()}, id, reply);
  }
  void put_off(const Error& why) override { admission_.waits(why); }
  void noticed(std::uint64_t id, const wire::Notice& notice) override;

  /// This node's lease, or the coordinator's word for it: a node whose csvd is away goes on as long
  /// as it is heard by who coordinates.
  [[nodiscard]] TimePoint open_until() const {
    return said_closed_ ? TimePoint{} : may_send_until();
  }
  [[nodiscard]] TimePoint may_send_until() const {
    return std::max(surroundings_.open_until(), answered_until_);
  }
  Task<Expected<Client::Answer>> ask(wire::Request request);
  Task<Expected<Client::Answer>> change(wire::Request request, Interrupt* interrupt,
                                        Caller caller = {}, SessionId bound_to = {},
                                        bool* sent = nullptr);
  Expected<wire::Attr> noted(wire::Attr attr);
  Expected<FilePtr> file_of(Handle handle) const;
  Task<Expected<FilePtr>> live(Handle handle, Interrupt* interrupt = nullptr);
  static Task<Expected<void>> change_of(FilePtr file, Interrupt* interrupt);
  static bool do_again(File& file, const Error& why, bool unrepeatable = false);
  [[nodiscard]] FilePtr suspended(InodeId inode) const;
  Task<void> resume(SessionId ended);
  Task<Expected<void>> resume_some(SessionId ended, SessionId session, std::vector<FilePtr> some);
  Task<void> unlock_again(SessionId session, wire::LockOf lock);
  Task<void> limit_waiting(SessionId ended);
  void goes_on(const FilePtr& file, SessionId session);
  void give_up(std::vector<FilePtr> files);
  [[nodiscard]] bool known_by_heart(InodeId inode) const;
  bool take_wrote(InodeId inode);
  bool take_accessed(InodeId inode);
  static void learn(File& file, const wire::Attr& attr);
  [[nodiscard]] Expected<void> may_open(InodeId inode) const;
  Handle add_handle(const FilePtr& file, const OpenOptions& options);
  Task<Expected<wire::Attr>> fetch_attr(InodeId inode);
  Task<Expected<wire::FsStat>> fetch_statistics();
  struct OpenedThere {
    wire::Attr attr;
    SessionId session{};  ///< Under which it is open.
  };
  Task<Expected<OpenedThere>> open_there(InodeId inode, OpenOptions options, Interrupt* interrupt);
  Task<Expected<Opened>> opened(OpenedThere there, OpenOptions options, bool say_again,
                                Interrupt* interrupt);
  Task<void> close_unseen(OpenedThere there, OpenOptions options);
  void open_answered();
  Task<void> release(FilePtr file);
  Task<void> release_at_rest(FilePtr file);
  [[nodiscard]] bool releases_later(const File& file) const;
  void release_later(FilePtr file);
  Task<void> release_in_a_moment(std::uint64_t turn);
  void release_gathered();
  Task<void> say_released(std::vector<FilePtr> files);
  void close_there(File& file);
  Task<Expected<std::uint32_t>> write_to(FilePtr file, std::uint64_t offset,
                                         std::span<const std::byte> data, WriteOptions options,
                                         Interrupt* interrupt);
  Task<void> answer_recall(std::uint64_t id, wire::Recall what);
  Task<void> answer_recall_of_pages(std::uint64_t id, wire::Recall what);
  void say_what_was_written(std::uint64_t id, InodeId inode);
  void knows_times(InodeId inode, std::uint64_t id, const wire::Reply& reply);
  void told_in_vain();
  Task<void> say_wrote(InodeId inode);
  Task<void> ask_for_times(InodeId inode);
  Task<Expected<void>> tell_wrote(FilePtr file);
  Task<Expected<void>> quiet();
  Task<Expected<void>> say_goodbye();
  [[nodiscard]] bool writes_in_flight() const;

  /// What `task` says, or nothing if that takes longer than `limit`; it goes on all the same.
  template <typename T>
  Task<std::optional<Expected<T>>> within(Duration limit, Task<Expected<T>> task);
  template <typename Done, typename T>
  static Task<void> settle(Task<Expected<T>> task, std::shared_ptr<Done> done);

  Task<void> follow_admission();
  Task<void> tick();
  void look();
  State judge() const;
  void tell_of_change(const State& now);
  void timed(std::uint64_t& count, std::uint64_t& us, TimePoint since);

  MountSurroundings surroundings_;
  Loop* loop_;
  MountCounters counters_;
  FileTable files_;
  Watched watched_;
  TimePoint answered_until_{};  ///< By an answer of the coordinator.
  Signal changed_;              ///< Of anything ready() and end() wait for.
  State state_;
  struct OpenFile {
    FilePtr file;
    bool accessed = false;  ///< Reads count for the access time.
    bool writes = false;
    IoPath::Told told;  ///< Of content that the target lost.
  };
  std::map<Handle, OpenFile> handles_;
  std::function<void(const std::vector<Over>&)> told_of_end_;
  std::uint64_t next_handle_ = 1;
  std::vector<FilePtr> suspended_;  // whose handles wait to hear whether they go on
  SessionId ended_session_{}, greeted_session_{};
  int opens_ = 0;                  // openings not answered yet
  std::set<InodeId> released_;     // meanwhile
  std::vector<FilePtr> gathered_;  // closed, and the coordinator is to hear of it before long
  std::uint64_t gathering_ = 0;    // how often that was said
  /// With the answer to a notice the coordinator was told that a file was written, and it is not
  /// known yet that its times say so.
  struct Told {
    InodeId inode;
    std::uint64_t after;  // what was requested until then
  };
  std::deque<Told> told_;
  bool asking_for_times_ = false;
  std::optional<wire::Attr> root_;
  std::optional<wire::FsStat> statistics_;
  bool admitted_once_ = false;
  bool leaving_ = false, told_of_pause_ = false, said_closed_ = false;
  std::string farewell_trouble_ = "it was not ended";
  Epoch greeted_in_{};
  bool coordinator_clones_ = false;         ///< One of an earlier version does not know how.
  bool coordinator_releases_many_ = false;  ///< The same.

  Client client_;
  Admission admission_;
  IoPath io_;
  KernelPages pages_;
  HeldLocks locks_;
  TaskScope tasks_;
};

// --- The session ------------------------------------------------------------------------------

void VolumeMount::declare(wire::Hello& hello) {
  std::size_t layouts = 0;
  for (const auto& [inode, file] : files_.all()) {
    if (file->handles > 0) hello.add_open_inodes(raw(inode));
    if (file->pages.writers > 0) hello.add_write_inodes(raw(inode));
    if (file->pages.any()) hello.add_page_inodes(raw(inode));
    bool holds = !file->extents.empty() || !file->in_flight.empty() || file->asking > 0;
    if (!holds || ++layouts > static_cast<std::size_t>(protocol::kMaxLayoutInodes)) continue;
    hello.add_layout_inodes(raw(inode));
    if (file->only_reads()) hello.add_read_inodes(raw(inode));
  }
  // Numbers after a repair are long ones.
  if (layouts > static_cast<std::size_t>(protocol::kMaxLayoutInodes) ||
      hello.ByteSizeLong() > protocol::kMostHelloBytes) {
    hello.clear_layout_inodes();
    hello.clear_read_inodes();
    hello.set_layouts_unlisted(true);
  }
}

void VolumeMount::greeted(const wire::HelloReply& reply, bool fresh) {
  if (surroundings_.found) surroundings_.found();
  if (greeted_in_ != client_.epoch()) files_.begin_epoch();
  greeted_in_ = client_.epoch();
  admission_.lun_has(reply.lun_size());
  coordinator_clones_ = reply.clones();
  coordinator_releases_many_ = reply.releases_many();
  if (io_.verified(reply.verifier())) {
    events::report(events::Severity::error, "lun", surroundings_.volume,
                   "the target lost power, and what its write cache held: files written and not "
                   "synced since will answer one fsync with EIO");
    // Should it live still: what is under way on it may have been taken back.
    admission_.lost(admission_.path(), Error{Errc::lun_lost, "the target lost power"});
  }
  if (fresh) {
    admission_.session_began(reply);
    greeted_session_ = client_.session();
    if (auto ended = std::exchange(ended_session_, SessionId{}); ended != SessionId{})
      tasks_.spawn(resume(ended));
  } else {
    locks_.turn_down_again();
    if (admission_.path()) client_.open();
  }
  look();
}

/// What programs have open may go on with the next session: each write that was answered is on the
/// LUN, and one that was not is done again. Not what the kernel kept pages of: stores into them may
/// be lost (A3).
void VolumeMount::session_ended(const Error&) {
  ended_session_ = greeted_session_;
  // What is left of a session before that one waits on, until its own time is over: the coordinator
  // keeps it with what this one leaves.
  std::vector<FilePtr> over;
  std::copy_if(suspended_.begin(), suspended_.end(), std::back_inserter(over),
               [](const auto& file) { return file->doubtful; });
  for (const auto& [inode, file] : files_.all()) {
    if (file->handles == 0) continue;
    file->had_pages = file->pages.any() || !file->pages.reading.empty();
    (file->had_pages ? over : suspended_).push_back(file);
  }
  files_.end_session();
  locks_.session_ended();
  give_up(std::move(over));
  admission_.session_ended();
  if (!suspended_.empty()) tasks_.spawn(limit_waiting(ended_session_));
  look();
}

FilePtr VolumeMount::suspended(InodeId inode) const {
  auto found = std::find_if(suspended_.begin(), suspended_.end(),
                            [inode](const auto& each) { return each->inode == inode; });
  return found == suspended_.end() ? nullptr : *found;
}

/// Asks the coordinator what may go on, as the first thing that a new session says.
Task<void> VolumeMount::resume(SessionId ended) {
  auto session = client_.session();
  auto all = suspended_;
  std::size_t before = all.size();
  for (std::size_t at = 0; at < all.size();) {
    std::vector<FilePtr> some;
    std::size_t locks = 0;
    for (; at < all.size() && some.size() < kResumeAtOnce; ++at) {
      if (all[at]->fate != File::Fate::not_known) continue;
      auto more = locks_.suspended(all[at]->inode).size();
      auto most = static_cast<std::size_t>(protocol::kMaxHeldLocks);
      if (!some.empty() && locks + more > most) break;
      locks += more;
      some.push_back(all[at]);
    }
    // It fails if that session has ended, too, and then the next one is asked.
    if (!co_await resume_some(ended, session, std::move(some))) co_return;
  }
  auto on = static_cast<std::size_t>(std::count_if(
      all.begin(), all.end(), [](const auto& each) { return each->fate == File::Fate::goes_on; }));
  if (before > 0)
    events::report(
        on == before ? events::Severity::info : events::Severity::warning, "session",
        surroundings_.volume,
        fmt::format("{} of {} open files go on after the end of the session", on, before));
  wire::Request done;
  done.mutable_resume()->set_session(raw(ended));
  done.mutable_resume()->set_done(true);
  Client::CallOptions options;
  options.early = true;
  options.session = session;
  (void)co_await client_.call(std::move(done), options);
}

Task<Expected<void>> VolumeMount::resume_some(SessionId ended, SessionId session,
                                              std::vector<FilePtr> some) {
  wire::Request request;
  auto& body = *request.mutable_resume();
  body.set_session(raw(ended));
  std::vector<FilePtr> over;
  for (const auto& file : some) {
    auto locks = locks_.suspended(file->inode);
    auto most = static_cast<std::size_t>(protocol::kMaxHeldLocks - body.locks_size());
    // Something of it may be lost, or be there twice; or it is more than can be said.
    if (file->doubtful || io_.owes_loss(file->inode) || locks.size() > most) {
      over.push_back(file);
      continue;
    }
    auto& one = *body.add_files();
    one.set_inode(raw(file->inode));
    one.set_truncation(file->truncation);
    one.set_size(file->size);
    one.set_writes(std::any_of(handles_.begin(), handles_.end(), [&](const auto& each) {
      return each.second.file == file && each.second.writes;
    }));
    for (auto& lock : locks) *body.add_locks() = std::move(lock);
  }
  auto locks = body.locks();
  give_up(std::move(over));
  Client::CallOptions options;
  options.early = true;
  options.session = session;
  ++opens_;
  auto answer = co_await client_.call(std::move(request), options);
  if (!answer) {
    open_answered();
    co_return answer.error();
  }
  std::set<std::uint64_t> resumed{answer->reply.resumed().inodes().begin(),
                                  answer->reply.resumed().inodes().end()};
  std::vector<FilePtr> again, unused;
  std::set<InodeId> in_vain;
  for (const auto& file : some) {
    bool said = resumed.contains(raw(file->inode));
    if (file->fate == File::Fate::not_known && (!said || file->doubtful)) give_up({file});
    if (!said) continue;
    if (file->fate == File::Fate::not_known)
      goes_on(file, session);
    else
      in_vain.insert(file->inode);
    auto now = files_.get(file->inode, session);
    if (now->handles == 0)
      unused.push_back(now);
    else if (released_.contains(file->inode))
      again.push_back(now);
  }
  open_answered();
  // It took too long, and was given up: the coordinator must not keep it open and locked.
  for (const auto& lock : locks)
    if (in_vain.contains(InodeId{lock.inode()})) tasks_.spawn(unlock_again(session, lock));
  // As in opened(): its Release may have undone this.
  for (const auto& file : again) {
    OpenOptions how;
    how.writes = file->pages.writers > 0;
    (void)co_await open_there(file->inode, how, nullptr);
  }
  for (const auto& file : unused) co_await release(file);
  co_return Expected<void>{};
}

Task<void> VolumeMount::unlock_again(SessionId session, wire::LockOf lock) {
  wire::Request request;
  lock.set_first(0);
  lock.set_last(LockRange::kLast);
  lock.clear_type();
  *request.mutable_unlock()->mutable_what() = std::move(lock);
  request.mutable_unlock()->set_forget(true);
  Client::CallOptions options;
  options.session = session;
  (void)co_await client_.call(std::move(request), options);
}

void VolumeMount::goes_on(const FilePtr& file, SessionId session) {
  std::erase(suspended_, file);
  auto now = files_.get(file->inode, session);
  now->size = std::max(now->size, file->size);
  now->truncation = std::max(now->truncation, file->truncation);
  now->wrote = now->wrote || file->wrote;
  now->accessed = now->accessed || file->accessed;
  for (auto& [handle, open] : handles_) {
    if (open.file != file) continue;
    open.file = now;
    ++now->handles;
    if (open.writes) ++now->pages.writers;
  }
  locks_.resumed(now);
  file->fate = File::Fate::goes_on;
  file->changed.notify();
}

void VolumeMount::give_up(std::vector<FilePtr> files) {
  if (files.empty()) return;
  std::vector<Over> told;
  for (const auto& file : files) {
    std::erase(suspended_, file);
    told.push_back({file->inode, file->had_pages, file->pages.writers > 0});
    file->fate = File::Fate::over;
    locks_.over(file->inode);
    file->changed.notify();
  }
  if (told_of_end_) told_of_end_(told);
}

Task<void> VolumeMount::limit_waiting(SessionId ended) {
  co_await sleep(*loop_, surroundings_.resume_within);
  auto late = suspended_;
  std::erase_if(late, [ended](const auto& file) { return file->session != ended; });
  give_up(std::move(late));
}

void VolumeMount::noticed(std::uint64_t id, const wire::Notice& notice) {
  switch (notice.what_case()) {
    case wire::Notice::kRecall:
      ++counters_.recalls;
      tasks_.spawn(answer_recall(id, notice.recall()));
      return;
    case wire::Notice::kQueryWrote: {
      say_what_was_written(id, InodeId{notice.query_wrote().inode()});
      return;
    }
    case wire::Notice::kUnwatch:
      watched_.noticed(notice.unwatch());
      client_.answer(id, {});
      return;
    case wire::Notice::kFenced:
      return client_.end_session(Error{Errc::session_ended, "fenced: " + notice.fenced().reason()});
    case wire::Notice::WHAT_NOT_SET: return;
  }
}

Task<void> VolumeMount::answer_recall(std::uint64_t id, wire::Recall what) {
  InodeId inode{what.inode()};
  if (what.pages()) co_return co_await answer_recall_of_pages(id, std::move(what));
  co_await io_.recall(std::move(what));
  say_what_was_written(id, inode);
  if (auto file = files_.find(inode)) files_.forget_unused(file);
}

/// Of pages alone: what there is of layouts stays, and is what they are written under.
Task<void> VolumeMount::answer_recall_of_pages(std::uint64_t id, wire::Recall what) {
  InodeId inode{what.inode()};
  auto file = files_.find(inode);
  if (!file) co_return say_what_was_written(id, inode);
  auto range = KernelPages::pages_of(what.offset(), what.length());
  Function<void()> answer = [this, id, inode] { say_what_was_written(id, inode); };
  co_await pages_.give_up(file, range, what.sequence(), std::move(answer));
  files_.forget_unused(file);
}

void VolumeMount::say_what_was_written(std::uint64_t id, InodeId inode) {
  wire::NoticeReply reply;
  reply.set_wrote(take_wrote(inode));
  bool wrote = reply.wrote();
  if (wrote) watched_.doubt(inode, client_.last_id() + 1);
  bool said = client_.answer(id, std::move(reply));
  if (!wrote) return;
  if (said)
    told_.push_back({inode, client_.last_id()});
  else
    files_.find(inode)->wrote = true;
}

/// The times that it was told of earlier are in the catalog in the order in which it was told.
void VolumeMount::knows_times(InodeId inode, std::uint64_t id, const wire::Reply& reply) {
  auto code = protocol::decode(reply.failure());
  if (code.code() && code.to_errno() != ESTALE) return;
  auto last = std::find_if(told_.rbegin(), told_.rend(), [&](const Told& told) {
    return told.inode == inode && told.after < id;
  });
  told_.erase(told_.begin(), last.base());
}

/// The answer may have been lost with the connection, or the coordinator have died before it did
/// anything with it. Told twice it does no harm.
void VolumeMount::told_in_vain() {
  std::set<InodeId> inodes;
  for (const auto& told : std::exchange(told_, {})) inodes.insert(told.inode);
  for (auto inode : inodes) {
    auto file = files_.find(inode);
    if (file && file->handles > 0)
      file->wrote = true;
    else
      tasks_.spawn(say_wrote(inode));
  }
}

Task<void> VolumeMount::say_wrote(InodeId inode) {
  wire::Request request;
  request.mutable_wrote()->set_inode(raw(inode));
  Client::CallOptions options;
  options.outlasts = true;  // it was written, whoever is let in when
  (void)co_await client_.call(std::move(request), options);  // the file may be gone: then in vain
}

Task<void> VolumeMount::ask_for_times(InodeId inode) {
  asking_for_times_ = true;
  (void)co_await fetch_attr(inode);
  asking_for_times_ = false;
}

Task<void> VolumeMount::follow_admission() {
  for (;;) {
    if (admission_.path()) {
      client_.open();
      admitted_once_ = true;
    }
    look();
    co_await admission_.changed().wait();
  }
}

/// Once a second: what must be answered without waiting is fetched, which also tells a coordinator
/// that has fallen silent from one that has nothing to say.
Task<void> VolumeMount::tick() {
  while (!admitted_once_) co_await changed_.wait();
  for (;;) {
    (void)co_await fetch_statistics();
    if (!root_) (void)co_await fetch_attr(kRootInode);
    if (!told_.empty() && !asking_for_times_) tasks_.spawn(ask_for_times(told_.back().inode));
    io_.flush_old();
    look();
    co_await sleep(*loop_, kTick);
  }
}

Mount::State VolumeMount::judge() const {
  State now;
  now.session = client_.session();
  if (admission_.path()) now.key = admission_.path()->key();
  now.mode = AccessMode::paused;
  if (!client_.connected())
    now.reason = "no coordinator: " + client_.trouble().message();
  else if (!admission_.path())
    now.reason = admission_.trouble().message();
  else if (!io_.gate_open())
    now.reason = "no membership lease";
  else if (const auto* waiting = admission_.waiting())
    now.reason = "requests wait: " + waiting->message();
  else
    now.mode = AccessMode::direct;
  return now;
}

void VolumeMount::look() {
  auto now = judge();
  // Of the mode: what it waits for may change meanwhile.
  now.since = now.mode == state_.mode ? state_.since : loop_->now();
  if (now.mode != state_.mode)
    log::info("mount mode={} volume={} session={} reason=\"{}\"",
              now.mode == AccessMode::direct ? "direct" : "paused", surroundings_.volume,
              raw(now.session), now.reason);
  if (now.mode != state_.mode) tell_of_change(now);
  state_ = std::move(now);
  changed_.notify();
}

/// Before the first admission nothing has changed, and after the end all is said.
void VolumeMount::tell_of_change(const State& now) {
  bool direct = now.mode == AccessMode::direct;
  if (!admitted_once_ || leaving_ || direct != told_of_pause_) return;
  told_of_pause_ = !direct;
  auto lasted = (now.since - state_.since) / std::chrono::milliseconds{1};
  std::string cause = now.reason;
  if (direct && !state_.reason.empty())
    cause = fmt::format("after {}.{:03} s, {}", lasted / 1000, lasted % 1000, state_.reason);
  events::report(direct ? events::Severity::info : events::Severity::warning, "mount",
                 surroundings_.volume, direct ? "direct" : "paused: programs wait", cause);
}

void VolumeMount::timed(std::uint64_t& count, std::uint64_t& us, TimePoint since) {
  ++count;
  us += static_cast<std::uint64_t>((loop_->now() - since) / std::chrono::microseconds{1});
}

MountCounters VolumeMount::counters() const {
  auto now = counters_;
  now.requests = client_.requests();
  now.reconnects = client_.reconnects();
  now.readmissions = std::max<std::uint64_t>(admission_.admissions(), 1) - 1;
  return now;
}

// --- Beginning and end ------------------------------------------------------------------------

Task<Expected<void>> VolumeMount::ready() {
  std::optional<TimePoint> refused;  // since
  while (!admitted_once_ || !statistics_ || !root_) {
    // Looked at with every attempt to connect, of which there are several a second.
    if (!client_.connected() && client_.trouble() == Errc::refused) {
      if (!refused) refused = loop_->now();
      if (loop_->now() - *refused >= surroundings_.refused_for) co_return client_.trouble();
    } else if (client_.connected()) {
      refused.reset();
    }
    if (!admission_.path() && admission_.wrong_lun()) co_return admission_.trouble();
    co_await changed_.wait();
  }
  co_return Expected<void>{};
}

Task<void> VolumeMount::end() {
  leaving_ = true;
  farewell_trouble_.clear();
  // Programs that keep on do not keep us: what is under way then ends, or is waited for, below.
  (void)co_await within(kFarewell, quiet());
  for (const auto& [inode, file] : std::map{files_.all()})
    (void)co_await within(kFarewell, tell_wrote(file));
  auto said = co_await within(kFarewell, say_goodbye());
  // Asked for before, since what stops says so of itself.
  if (!said)
    farewell_trouble_ = admission_.awaits_answers()
                            ? "the LUN did not answer all that was sent to it"
                        : client_.connected() ? "the coordinator did not answer the goodbye"
                                              : "no coordinator: " + client_.trouble().message();
  else if (!*said)
    farewell_trouble_ = said->error().message();
  client_.stop();
  admission_.session_ended();
}

Task<Expected<void>> VolumeMount::quiet() {
  for (const auto& [inode, file] : std::map{files_.all()})
    while (!file->in_flight.empty()) co_await file->changed.wait();
  co_return Expected<void>{};
}

bool VolumeMount::writes_in_flight() const {
  const auto& all = files_.all();
  return std::any_of(all.begin(), all.end(), [](const auto& each) {
    const auto& ranges = each.second->in_flight;
    return std::any_of(ranges.begin(), ranges.end(),
                       [](const auto& range) { return range.write && !range.landed; });
  });
}

Task<Expected<void>> VolumeMount::say_goodbye() {
  watched_.stop();  // the coordinator need not tell us of changes any more
  // A goodbye says that nothing of ours is on its way to the LUN any more: nobody fences us then.
  // Who leaves a path waits for what it has been given. What a lost one was given may still land,
  // whatever has become of its admission.
  bool lost = !admission_.path();
  co_await admission_.leave();
  if (lost && writes_in_flight())
    co_return Error{Errc::unknown_outcome,
                    "the LUN did not answer all that was sent to it before the path was lost"};
  wire::Request request;
  request.mutable_goodbye();
  Client::CallOptions options;
  options.early = true;
  options.session = client_.session();
  CSV_CO_TRY(answer, co_await client_.call(std::move(request), options));
  (void)answer;
  co_return Expected<void>{};
}

template <typename Done, typename T>
Task<void> VolumeMount::settle(Task<Expected<T>> task, std::shared_ptr<Done> done) {
  auto result = co_await task;
  (*done)(std::optional<Expected<T>>{std::move(result)});
}

template <typename T>
Task<std::optional<Expected<T>>> VolumeMount::within(Duration limit, Task<Expected<T>> task) {
  using Result = std::optional<Expected<T>>;
  Loop::TimerId timer{};
  auto result = co_await completion<Result>([&](auto done) {
    auto shared = std::make_shared<decltype(done)>(std::move(done));
    timer = loop_->after(limit, [shared] { (*shared)(Result{}); });
    tasks_.spawn(settle<decltype(done), T>(std::move(task), shared));
  });
  loop_->cancel(timer);
  co_return result;
}

// --- Names and attributes ---------------------------------------------------------------------

Task<Expected<Client::Answer>> VolumeMount::ask(wire::Request request) {
  ++counters_.operations;
  co_return co_await client_.call(std::move(request));
}

Task<Expected<Client::Answer>> VolumeMount::change(wire::Request request, Interrupt* interrupt,
                                                   Caller caller, SessionId bound_to, bool* sent) {
  ++counters_.operations;
  request.set_uid(caller.uid);
  request.set_gid(caller.gid);
  Client::CallOptions options;
  options.changes = true;
  options.interrupt = interrupt;
  options.session = bound_to;
  options.sent = sent;
  co_return co_await client_.call(std::move(request), options);
}

/// Attributes that came by, for those who like to know the size beforehand.
Expected<wire::Attr> VolumeMount::noted(wire::Attr attr) {
  if (auto file = files_.find(InodeId{attr.inode()})) learn(*file, attr);
  if (InodeId{attr.inode()} == kRootInode) root_ = attr;
  return attr;
}

void VolumeMount::learn(File& file, const wire::Attr& attr) {
  file.size = attr.size();
  file.truncation = std::max(file.truncation, attr.truncation());
  file.atime = attr.atime();
  file.mtime = attr.mtime();
  file.ctime = attr.ctime();
}

bool VolumeMount::take_accessed(InodeId inode) {
  auto file = files_.find(inode);
  return file && std::exchange(file->accessed, false);
}

bool VolumeMount::take_wrote(InodeId inode) {
  auto file = files_.find(inode);
  if (!file || !std::exchange(file->wrote, false)) return false;
  ++file->told_wrote;
  return true;
}

/// What was read and written directly since the coordinator was last told, it is told with whatever
/// asks for the times: not before, or somebody would look at them in between.
void VolumeMount::sending(wire::Request& request, std::uint64_t id) {
  if (request.has_get_attr()) {
    auto& body = *request.mutable_get_attr();
    body.set_wrote(take_wrote(InodeId{body.inode()}) || body.wrote());
    body.set_accessed(take_accessed(InodeId{body.inode()}) || body.accessed());
  } else if (request.has_set_attr()) {
    auto& body = *request.mutable_set_attr();
    body.set_wrote(take_wrote(InodeId{body.inode()}) || body.wrote());
    body.set_accessed(take_accessed(InodeId{body.inode()}) || body.accessed());
    // It comes after the answer, and must not be overtaken by what is told once more.
    if (body.has_mtime() || body.mtime_now())
      std::erase_if(told_, [&](const auto& told) { return raw(told.inode) == body.inode(); });
  }
  watched_.sending(request, id);
}

/// Whether what is watched of it may be answered: its times are not, while the coordinator has yet
/// to hear of them.
bool VolumeMount::known_by_heart(InodeId inode) const {
  if (!io_.gate_open()) return false;
  auto file = files_.find(inode);
  return !file || (!file->wrote && !file->accessed);
}

Task<Expected<wire::Attr>> VolumeMount::lookup(InodeId parent, std::string name) {
  if (auto found = watched_.find(parent, name); found.known && known_by_heart(found.inode)) {
    ++counters_.operations;
    if (found.attr == nullptr) co_return std::errc::no_such_file_or_directory;
    co_return *found.attr;
  }
  wire::Request request;
  request.mutable_lookup()->set_parent(raw(parent));
  request.mutable_lookup()->set_name(std::move(name));
  CSV_CO_TRY(answer, co_await ask(std::move(request)));
  co_return noted(std::move(*answer.reply.mutable_attr()));
}

Task<Expected<wire::Attr>> VolumeMount::fetch_attr(InodeId inode) {
  wire::Request request;
  request.mutable_get_attr()->set_inode(raw(inode));
  auto file = files_.find(inode);
  auto told = file ? file->told_wrote : 0;
  auto answer = co_await ask(std::move(request));
  if (!answer) {
    // It went with the question, which nobody has heard perhaps. The file may be closed by now.
    if (file && file->told_wrote != told) tasks_.spawn(say_wrote(inode));
    co_return answer.error();
  }
  co_return noted(std::move(*answer->reply.mutable_attr()));
}

Task<Expected<wire::Attr>> VolumeMount::attr(InodeId inode) {
  if (const auto* known = watched_.attr(inode); known != nullptr && known_by_heart(inode)) {
    ++counters_.operations;
    if (inode == kRootInode) root_ = *known;
    co_return *known;
  }
  if (inode != kRootInode || !root_) co_return co_await fetch_attr(inode);
  // The root must answer while the volume is paused, or whoever looks at the mount point hangs.
  if (!client_.connected()) co_return *root_;
  auto fetched = co_await within(kRootPatience, fetch_attr(inode));
  if (!fetched || (!*fetched && !client_.connected())) co_return *root_;
  co_return std::move(*fetched);
}

Task<Expected<wire::FsStat>> VolumeMount::fetch_statistics() {
  wire::Request request;
  request.mutable_stat_fs();
  CSV_CO_TRY(answer, co_await client_.call(std::move(request)));
  statistics_ = answer.reply.fs_stat();
  co_return *statistics_;
}

Task<Expected<wire::FsStat>> VolumeMount::statistics() {
  ++counters_.operations;
  if (!statistics_) co_return co_await fetch_statistics();
  if (!client_.connected()) co_return *statistics_;
  auto fetched = co_await within(kPatience, fetch_statistics());
  if (!fetched || (!*fetched && !client_.connected())) co_return *statistics_;
  co_return std::move(*fetched);
}

Task<Expected<wire::Attr>> VolumeMount::change(wire::SetAttr to, Interrupt* interrupt,
                                               std::optional<Handle> through) {
  InodeId inode{to.inode()};
  bool resizes = to.has_size();
  for (;;) {
    FilePtr through_file;
    if (through) {
      CSV_CO_TRY(opened_file, co_await live(*through, interrupt));
      through_file = std::move(opened_file);
    }
    wire::Request request;
    *request.mutable_set_attr() = to;
    bool sent = false;
    auto open_file = files_.find(inode);
    auto told = open_file ? open_file->told_wrote : 0;
    auto bound_to = through_file ? through_file->session : SessionId{};
    auto answer = co_await change(std::move(request), interrupt, {}, bound_to, &sent);
    if (!answer) {
      // Whether the coordinator has heard what it was told along with this is not known.
      if (open_file && open_file->told_wrote != told) open_file->wrote = true;
      if (!through_file || !do_again(*through_file, answer.error(), sent)) co_return answer.error();
      continue;
    }
    if (resizes)
      if (auto file = files_.find(inode)) file->pages.trim(answer->reply.attr().size());
    co_return noted(std::move(*answer->reply.mutable_attr()));
  }
}

Task<Expected<wire::Attr>> VolumeMount::make(Caller caller, wire::Make what, Interrupt* interrupt) {
  wire::Request request;
  *request.mutable_make() = std::move(what);
  request.mutable_make()->set_open(false);
  CSV_CO_TRY(answer, co_await change(std::move(request), interrupt, caller));
  co_return std::move(*answer.reply.mutable_attr());
}

Task<Expected<wire::Attr>> VolumeMount::link(InodeId inode, InodeId parent, std::string name,
                                             Interrupt* interrupt) {
  release_gathered();  // a nameless one is gone with the last close
  wire::Request request;
  auto& body = *request.mutable_link();
  body.set_inode(raw(inode));
  body.set_parent(raw(parent));
  body.set_name(std::move(name));
  CSV_CO_TRY(answer, co_await change(std::move(request), interrupt));
  co_return noted(std::move(*answer.reply.mutable_attr()));
}

Task<Expected<wire::Attr>> VolumeMount::unlink(InodeId parent, std::string name, bool directory,
                                               Interrupt* interrupt) {
  release_gathered();  // it may be one of these, and be freed at once
  wire::Request request;
  auto& body = *request.mutable_unlink();
  body.set_parent(raw(parent));
  body.set_name(std::move(name));
  body.set_directory(directory);
  CSV_CO_TRY(answer, co_await change(std::move(request), interrupt));
  co_return std::move(*answer.reply.mutable_attr());
}

Task<Expected<wire::Attr>> VolumeMount::rename(wire::Rename what, Interrupt* interrupt) {
  release_gathered();  // as in unlink()
  wire::Request request;
  *request.mutable_rename() = std::move(what);
  CSV_CO_TRY(answer, co_await change(std::move(request), interrupt));
  co_return answer.reply.has_attr() ? std::move(*answer.reply.mutable_attr()) : wire::Attr{};
}

Task<Expected<std::string>> VolumeMount::read_link(InodeId inode, bool accessed) {
  wire::Request request;
  request.mutable_read_link()->set_inode(raw(inode));
  request.mutable_read_link()->set_accessed(accessed);
  CSV_CO_TRY(answer, co_await ask(std::move(request)));
  co_return std::move(*answer.reply.mutable_bytes()->mutable_value());
}

Task<Expected<wire::Entries>> VolumeMount::list(InodeId directory, std::uint64_t after_cookie,
                                                ListOptions options) {
  wire::Request request;
  auto& body = *request.mutable_read_dir();
  body.set_inode(raw(directory));
  body.set_cookie(after_cookie);
  body.set_limit(options.limit);
  body.set_room(options.room);
  body.set_accessed(options.accessed);
  CSV_CO_TRY(answer, co_await ask(std::move(request)));
  co_return std::move(*answer.reply.mutable_entries());
}

Task<Expected<std::string>> VolumeMount::xattr(InodeId inode, std::string name) {
  if (const auto* known = watched_.xattr(inode, name); known != nullptr && io_.gate_open()) {
    ++counters_.operations;
    if (!*known) co_return std::error_code{ENODATA, std::generic_category()};
    co_return **known;
  }
  wire::Request request;
  request.mutable_get_xattr()->set_inode(raw(inode));
  request.mutable_get_xattr()->set_name(std::move(name));
  CSV_CO_TRY(answer, co_await ask(std::move(request)));
  co_return std::move(*answer.reply.mutable_bytes()->mutable_value());
}

Task<Expected<std::string>> VolumeMount::list_xattrs(InodeId inode) {
  if (const auto* known = watched_.attr(inode); known && known->plain() && io_.gate_open()) {
    ++counters_.operations;
    co_return "";
  }
  wire::Request request;
  request.mutable_list_xattr()->set_inode(raw(inode));
  CSV_CO_TRY(answer, co_await ask(std::move(request)));
  co_return std::move(*answer.reply.mutable_bytes()->mutable_value());
}

Task<Expected<void>> VolumeMount::set_xattr(wire::SetXattr what, Interrupt* interrupt) {
  wire::Request request;
  *request.mutable_set_xattr() = std::move(what);
  CSV_CO_TRY(answer, co_await change(std::move(request), interrupt));
  (void)answer;
  co_return Expected<void>{};
}

Task<Expected<void>> VolumeMount::remove_xattr(InodeId inode, std::string name,
                                               Interrupt* interrupt) {
  wire::Request request;
  request.mutable_remove_xattr()->set_inode(raw(inode));
  request.mutable_remove_xattr()->set_name(std::move(name));
  CSV_CO_TRY(answer, co_await change(std::move(request), interrupt));
  (void)answer;
  co_return Expected<void>{};
}

// --- Open files -------------------------------------------------------------------------------

/// Of one that is to be made the number is not known yet (0).
Expected<void> VolumeMount::may_open(InodeId inode) const {
  auto coming = static_cast<std::size_t>(opens_);
  if (handles_.size() + coming < surroundings_.most_open) return {};
  auto is_open = [](const FilePtr& file) { return file && file->handles > 0; };
  if (is_open(files_.find(inode)) || suspended(inode)) return {};
  auto open = suspended_.size() + coming;
  for (const auto& [each, file] : files_.all()) open += is_open(file) ? 1 : 0;
  if (open < surroundings_.most_open) return {};
  return errno_error(ENFILE, "opening more files than a mount can have open");
}

Mount::Handle VolumeMount::add_handle(const FilePtr& file, const OpenOptions& options) {
  Handle handle{next_handle_++};
  handles_.emplace(handle,
                   OpenFile{file, options.accessed, options.writes, io_.told_of(file->inode)});
  ++file->handles;
  if (options.writes) ++file->pages.writers;
  return handle;
}

Expected<FilePtr> VolumeMount::file_of(Handle handle) const {
  auto found = handles_.find(handle);
  if (found == handles_.end()) return Error{std::errc::bad_file_descriptor};
  if (found->second.file->ended) return over();
  return found->second.file;
}

/// It failed because its session ended: if the handle goes on, it does so with this.
/// `unrepeatable`: a change may have been made that must not be made twice, so the file does not go
/// on either.
bool VolumeMount::do_again(File& file, const Error& why, bool unrepeatable) {
  if (!file.ended || why == std::errc::interrupted) return false;
  file.doubtful = file.doubtful || unrepeatable;
  return true;
}

/// The same, once it is known whether a handle of an ended session goes on.
Task<Expected<FilePtr>> VolumeMount::live(Handle handle, Interrupt* interrupt) {
  for (;;) {
    auto found = handles_.find(handle);
    if (found == handles_.end() || !found->second.file->ended ||
        found->second.file->fate == File::Fate::over)
      co_return file_of(handle);
    CSV_CO_CHECK(co_await change_of(found->second.file, interrupt));
  }
}

/// Until the file has changed somehow. EINTR with the interrupt raised.
Task<Expected<void>> VolumeMount::change_of(FilePtr file, Interrupt* interrupt) {
  if (interrupt && interrupt->raised()) co_return Error{std::errc::interrupted};
  Interrupt::Watch watch{interrupt, [file] { file->changed.notify(); }};
  co_await file->changed.wait();
  co_return Expected<void>{};
}

Task<Expected<VolumeMount::OpenedThere>> VolumeMount::open_there(InodeId inode, OpenOptions how,
                                                                 Interrupt* interrupt) {
  wire::Request request;
  request.mutable_open()->set_inode(raw(inode));
  request.mutable_open()->set_truncate(how.truncate);
  request.mutable_open()->set_drop_set_id(how.drop_set_id);
  request.mutable_open()->set_writes(how.writes);
  ++counters_.operations;
  Client::CallOptions options;
  options.changes = how.truncate;  // otherwise it may be said twice
  options.interrupt = interrupt;
  CSV_CO_TRY(answer, co_await client_.call(std::move(request), options));
  co_return OpenedThere{std::move(*answer.reply.mutable_attr()), answer.session};
}

Task<Expected<Mount::Opened>> VolumeMount::open(InodeId inode, OpenOptions options,
                                                Interrupt* interrupt) {
  // To the kernel a file whose handles are over becomes another one: that must be known.
  while (auto pending = suspended(inode)) CSV_CO_CHECK(co_await change_of(pending, interrupt));
  // An Open that overtakes the Release before it would be undone by it. And the coordinator hears
  // that nobody writes it any more, or the one who has it open now would count as doing so.
  if (auto before = files_.find(inode); before && before->releasing > 0) release_gathered();
  for (auto before = files_.find(inode); before && before->returning && !before->ended;)
    CSV_CO_CHECK(co_await change_of(before, interrupt));
  CSV_CO_CHECK(may_open(inode));
  ++opens_;
  auto there = co_await open_there(inode, options, interrupt);
  if (!there) {
    open_answered();
    co_return there.error();
  }
  co_return co_await opened(std::move(*there), options, false, interrupt);
}

Task<Expected<Mount::Opened>> VolumeMount::create(Caller caller, wire::Make what,
                                                  OpenOptions options, Interrupt* interrupt) {
  wire::Request request;
  *request.mutable_make() = std::move(what);
  request.mutable_make()->set_open(true);
  CSV_CO_CHECK(may_open(InodeId{}));
  ++opens_;
  auto answer = co_await change(std::move(request), interrupt, caller);
  if (!answer) {
    open_answered();
    co_return answer.error();
  }
  // A coordinator that answers its predecessor's work from the slot's row knows of no open file.
  bool unknown = answer->sent_in != answer->answered_in;
  OpenedThere there{std::move(*answer->reply.mutable_attr()), answer->session};
  co_return co_await opened(std::move(there), options, unknown, interrupt);
}

/// The coordinator has counted the file as open. `say_again`: or it may not have. Nor does it if
/// another handle was closed, and the Release sent, before the answer to this opening came.
Task<Expected<Mount::Opened>> VolumeMount::opened(OpenedThere there, OpenOptions options,
                                                  bool say_again, Interrupt* interrupt) {
  InodeId inode{there.attr.inode()};
  OpenOptions once_more;
  once_more.writes = options.writes;
  for (;;) {
    while (auto pending = suspended(inode)) {
      auto waited = co_await change_of(pending, interrupt);
      say_again = true;  // another coordinator may have come meanwhile, and not have heard of it
      if (waited) continue;
      // What it was to do it has done: only to be closed it is waited for, by nobody.
      tasks_.spawn(close_unseen(std::move(there), options));
      co_return waited.error();
    }
    if (client_.session() == there.session) break;
    // What it was opened under has ended meanwhile, and there may be no other one yet.
    auto again = co_await open_there(inode, once_more, interrupt);
    if (!again) {
      open_answered();
      co_return again.error();
    }
    there = std::move(*again);
  }
  auto& attr = there.attr;
  auto file = files_.get(inode, there.session);
  learn(*file, attr);
  if (options.truncate) file->pages.trim(0);
  auto handle = add_handle(file, options);
  say_again = say_again || released_.count(inode) > 0;
  open_answered();
  if (say_again) {
    while (file->returning && !file->ended) co_await file->changed.wait();
    auto again = co_await open_there(inode, once_more, nullptr);
    if (!again) {
      co_await close(handle);
      co_return again.error();
    }
  }
  co_return Opened{handle, std::move(attr)};
}

Task<void> VolumeMount::close_unseen(OpenedThere there, OpenOptions options) {
  auto file = co_await opened(std::move(there), options, true, nullptr);
  if (file) co_await close(file->handle);
}

void VolumeMount::open_answered() {
  if (--opens_ == 0) released_.clear();
}

Task<void> VolumeMount::close(Handle handle) {
  ++counters_.operations;
  auto found = handles_.find(handle);
  if (found == handles_.end()) co_return;
  auto file = found->second.file;
  if (found->second.writes) --file->pages.writers;
  handles_.erase(found);
  if (io_.has_lost(file->inode) &&
      std::none_of(handles_.begin(), handles_.end(),
                   [&](const auto& each) { return each.second.file->inode == file->inode; }))
    io_.closed(file->inode);
  if (!file->ended) co_await locks_.released(file, handle);
  if (file->ended) {
    locks_.released_suspended(file->inode, handle);
    if (auto now = files_.find(file->inode)) co_await locks_.released(now, handle);
  }
  if (--file->handles == 0 && !file->ended) co_await release(file);
}

/// The last handle is closed, and the coordinator learns that the file may be freed. Layouts to
/// read stay for the next opening, until they are recalled.
Task<void> VolumeMount::release(FilePtr file) {
  if (releases_later(*file)) co_return release_later(std::move(file));
  ++file->releasing;
  co_await release_at_rest(file);
  --file->releasing;
  files_.forget_unused(file);
}

Task<void> VolumeMount::release_at_rest(FilePtr file) {
  while (!file->ended && (file->returning || !file->in_flight.empty() || file->asking > 0))
    co_await file->changed.wait();
  if (file->ended || file->handles > 0) co_return;
  close_there(*file);
  wire::Request request;
  request.mutable_release()->set_inode(raw(file->inode));
  request.mutable_release()->set_wrote(std::exchange(file->wrote, false));
  request.mutable_release()->set_accessed(std::exchange(file->accessed, false));
  request.mutable_release()->set_reads_only(true);
  Client::CallOptions options;
  options.session = file->session;
  // A failure means that the session has ended, and the opening with it.
  (void)co_await client_.call(std::move(request), options);
  file->returning = false;
  file->changed.notify();
}

/// The coordinator is about to be told that it is closed.
void VolumeMount::close_there(File& file) {
  file.returning = true;
  // Nobody has it open: its times stand, and whoever looks at them need not ask us first.
  file.extents.drop_writes(0, std::numeric_limits<std::uint64_t>::max());
  // Nor can anybody look at what its kernel has left, which drops it with the next opening.
  file.pages.forget();
  if (opens_ > 0) released_.insert(file.inode);
}

/// There is nothing to be told of it but that it is closed: nobody on another node sees whether
/// that is so. Programs that close a file mostly close more before long, and one message tells of
/// all.
bool VolumeMount::releases_later(const File& file) const {
  return coordinator_releases_many_ && !file.wrote && !file.accessed && !file.returning &&
         file.in_flight.empty() && file.only_reads() && !file.pages.in_use();
}

void VolumeMount::release_later(FilePtr file) {
  if (std::find(gathered_.begin(), gathered_.end(), file) != gathered_.end()) return;
  ++file->releasing;
  gathered_.push_back(std::move(file));
  if (gathered_.size() >= static_cast<std::size_t>(protocol::kMaxReleased))
    release_gathered();
  else if (gathered_.size() == 1)
    tasks_.spawn(release_in_a_moment(gathering_));
}

Task<void> VolumeMount::release_in_a_moment(std::uint64_t turn) {
  co_await sleep(*loop_, kGatherClosed);
  if (turn == gathering_) release_gathered();
}

void VolumeMount::release_gathered() {
  if (gathered_.empty()) return;
  ++gathering_;
  std::vector<FilePtr> closed;
  for (auto& file : std::exchange(gathered_, {})) {
    // Its session may have ended, or an opening that was under way have been answered.
    if (!file->ended && file->handles == 0 && releases_later(*file)) {
      close_there(*file);
      closed.push_back(std::move(file));
      continue;
    }
    --file->releasing;
    if (!file->ended && file->handles == 0)
      tasks_.spawn(release(std::move(file)));
    else
      files_.forget_unused(file);
  }
  if (!closed.empty()) tasks_.spawn(say_released(std::move(closed)));
}

Task<void> VolumeMount::say_released(std::vector<FilePtr> files) {
  wire::Request request;
  auto& body = *request.mutable_release();
  body.set_inode(raw(files.front()->inode));
  body.set_reads_only(true);
  for (std::size_t i = 1; i < files.size(); ++i) body.add_also(raw(files[i]->inode));
  Client::CallOptions options;
  options.session = files.front()->session;
  // As above.
  (void)co_await client_.call(std::move(request), options);
  for (const auto& file : files) {
    file->returning = false;
    --file->releasing;
    file->changed.notify();
    files_.forget_unused(file);
  }
}

Task<Expected<Mount::Content>> VolumeMount::read(Handle handle, std::uint64_t offset,
                                                 std::uint32_t length) {
  ++counters_.operations;
  auto began = loop_->now();
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle));
    if (length == 0) co_return Content{};
    bool counts = handles_.at(handle).accessed;
    auto renewed = [&file, range = KernelPages::pages_of(offset, length)] {
      const auto& all = file->pages.renewed;
      return std::any_of(all.begin(), all.end(), [&](auto each) { return each.overlaps(range); });
    };
    while (!file->ended && renewed()) co_await file->changed.wait();
    auto losses = pages_.losses();
    auto content = co_await io_.read(file, offset, length);
    // It may show what is gone, and what a page of our own is about to bring back.
    if (content && !file->ended && pages_.losses() != losses) continue;
    if (!content && do_again(*file, content.error())) continue;
    timed(counters_.reads, counters_.read_us, began);
    auto now = static_cast<std::int64_t>(loop_->wall_now());
    if (counts && content && content->length > 0 && !file->ended &&
        (file->wrote || relatime_due(file->atime, file->mtime, file->ctime, now)))
      file->accessed = true;
    co_return std::move(content);
  }
}

Task<Expected<Mount::Content>> VolumeMount::read_pages(Handle handle, std::uint64_t offset,
                                                       std::uint32_t length, Interrupt* interrupt) {
  ++counters_.operations;
  auto began = loop_->now();
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle));
    if (length == 0) co_return Content{};
    auto content = co_await pages_.read(file, offset, length, interrupt);
    if (!content && do_again(*file, content.error())) continue;
    timed(counters_.reads, counters_.read_us, began);
    co_return std::move(content);
  }
}

Task<Expected<std::uint32_t>> VolumeMount::write(Handle handle, std::uint64_t offset,
                                                 std::span<const std::byte> data,
                                                 WriteOptions options, Interrupt* interrupt) {
  ++counters_.operations;
  auto began = loop_->now();
  if (!options.append && offset < kMaxFileSize)
    data = data.first(std::min<std::uint64_t>(data.size(), kMaxFileSize - offset));
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle, interrupt));
    if (data.empty()) co_return 0u;
    if (!options.append && offset >= kMaxFileSize) co_return std::errc::file_too_large;
    auto result = co_await write_to(file, offset, data, options, interrupt);
    if (!result && do_again(*file, result.error())) continue;
    timed(counters_.writes, counters_.write_us, began);
    co_return std::move(result);
  }
}

Task<Expected<std::uint32_t>> VolumeMount::write_to(FilePtr file, std::uint64_t offset,
                                                    std::span<const std::byte> data,
                                                    WriteOptions options, Interrupt* interrupt) {
  // The kernel dropped its pages of the range before it sent this, but a program may have had one
  // read again since, and stored into it: that store and this write must both last.
  std::optional<KernelPages::Closed> closed;
  if (!options.pages && file->pages.in_use()) {
    auto from = options.append ? std::min(offset, file->size) : offset;
    auto end = options.append ? std::numeric_limits<std::uint64_t>::max() : offset + data.size();
    auto range = KernelPages::pages_of(from, end - from);
    closed.emplace(file, range);
    co_await pages_.clear(file, range, interrupt);
  }
  auto result = co_await io_.write(file, offset, data, options, interrupt);
  // The kernel keeps what could not be written, as if it had been: then a mapping would show what
  // nobody can read, and a later store into the page bring it back.
  if (!result && options.pages)
    tasks_.spawn(pages_.clear(file, KernelPages::pages_of(offset, data.size())));
  co_return std::move(result);
}

Task<Expected<void>> VolumeMount::tell_wrote(FilePtr file) {
  if (!file->wrote || file->ended) co_return Expected<void>{};
  file->wrote = false;
  wire::Request request;
  request.mutable_wrote()->set_inode(raw(file->inode));
  Client::CallOptions options;
  options.session = file->session;
  auto answer = co_await client_.call(std::move(request), options);
  if (answer) co_return Expected<void>{};
  file->wrote = true;  // should it go on with the next session
  co_return answer.error();
}

Task<Expected<void>> VolumeMount::sync(Handle handle, bool content_only, Interrupt* interrupt) {
  ++counters_.operations;
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle, interrupt));
    auto open = handles_.find(handle);
    if (open == handles_.end()) co_return Error{std::errc::bad_file_descriptor};
    auto synced = co_await io_.flush(file, interrupt, open->second.told);
    if (synced && !content_only) synced = co_await tell_wrote(file);
    if (!synced && do_again(*file, synced.error())) continue;
    co_return std::move(synced);
  }
}

Task<Expected<void>> VolumeMount::allocate(Handle handle, wire::Allocate what,
                                           Interrupt* interrupt) {
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle, interrupt));
    what.set_inode(raw(file->inode));
    std::optional<KernelPages::Closed> closed;
    if ((what.mode() & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) {  // as in write
      auto range = KernelPages::pages_of(what.offset(), what.length());
      closed.emplace(file, range);
      co_await pages_.clear(file, range, interrupt);
    }
    wire::Request request;
    *request.mutable_allocate() = what;
    bool sent = false;
    // After a fence another node may have gone on with the file: not with the next session.
    auto answer = co_await change(std::move(request), interrupt, {}, file->session, &sent);
    if (!answer && do_again(*file, answer.error(), sent)) continue;
    if (!answer) co_return answer.error();
    if (answer->reply.has_attr()) (void)noted(std::move(*answer->reply.mutable_attr()));
    co_return Expected<void>{};
  }
}

Task<Expected<std::uint64_t>> VolumeMount::clone(CloneWish what, Interrupt* interrupt) {
  ++counters_.operations;
  for (;;) {
    CSV_CO_TRY(from, co_await live(what.from, interrupt));
    CSV_CO_TRY(into, co_await live(what.into, interrupt));
    if (!coordinator_clones_ || from->session != into->session)
      co_return errno_error(EOPNOTSUPP, "clone");
    auto range = KernelPages::pages_of(what.into_offset, what.length);
    KernelPages::Closed closed{into, range};  // as in write
    co_await pages_.clear(into, range, interrupt);
    wire::Request request;
    auto& body = *request.mutable_clone();
    body.set_inode(raw(from->inode));
    body.set_offset(what.offset);
    body.set_length(what.length);
    body.set_into(raw(into->inode));
    body.set_into_offset(what.into_offset);
    body.set_drop_set_id(what.drop_set_id);
    bool sent = false;
    auto answer = co_await change(std::move(request), interrupt, {}, into->session, &sent);
    if (!answer && do_again(*into, answer.error(), sent)) continue;
    if (!answer) co_return answer.error();
    auto& cloned = *answer->reply.mutable_cloned();
    if (cloned.length() > what.length)
      co_return Error{std::errc::io_error, "the coordinator cloned more than was asked for"};
    if (cloned.has_attr()) {
      into->size = cloned.attr().size();
      (void)noted(std::move(*cloned.mutable_attr()));
    }
    co_return cloned.length();
  }
}

Task<Expected<std::uint64_t>> VolumeMount::seek(Handle handle, std::uint64_t offset,
                                                std::uint32_t whence) {
  CSV_CO_TRY(file, co_await live(handle));
  wire::Request request;
  auto& body = *request.mutable_seek();
  body.set_inode(raw(file->inode));
  body.set_offset(offset);
  body.set_whence(whence);
  CSV_CO_TRY(answer, co_await ask(std::move(request)));
  co_return answer.reply.position().offset();
}

// --- Locks ------------------------------------------------------------------------------------

Task<Expected<void>> VolumeMount::lock(Handle handle, LockWish wish, Interrupt* interrupt) {
  ++counters_.operations;
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle, interrupt));
    auto locked = co_await locks_.lock(file, handle, wish, interrupt);
    if (!locked && do_again(*file, locked.error())) continue;
    co_return std::move(locked);
  }
}

Task<Expected<void>> VolumeMount::unlock(Handle handle, LockWish wish) {
  ++counters_.operations;
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle));
    auto unlocked = co_await locks_.unlock(file, wish);
    if (!unlocked && do_again(*file, unlocked.error())) continue;
    co_return std::move(unlocked);
  }
}

Task<Expected<std::optional<Mount::LockFound>>> VolumeMount::test_lock(Handle handle,
                                                                       LockWish wish) {
  ++counters_.operations;
  for (;;) {
    CSV_CO_TRY(file, co_await live(handle));
    auto found = co_await locks_.test(file, wish);
    if (!found && do_again(*file, found.error())) continue;
    co_return std::move(found);
  }
}

Task<void> VolumeMount::flush(Handle handle, std::uint64_t owner) {
  auto found = handles_.find(handle);
  if (found == handles_.end()) co_return;
  auto file = found->second.file;
  if (!file->ended) co_await locks_.closed(file, owner);
  if (!file->ended) co_return;
  locks_.closed_suspended(file->inode, owner);
  if (auto now = files_.find(file->inode)) co_await locks_.closed(now, owner);
}

}  // namespace

std::unique_ptr<Mount> Mount::start(MountSurroundings surroundings) {
  return std::make_unique<VolumeMount>(std::move(surroundings));
}

}  // namespace csv
