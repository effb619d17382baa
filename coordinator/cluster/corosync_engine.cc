#include "coordinator/cluster/corosync_engine.h"

#include <corosync/cpg.h>
#include <corosync/votequorum.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "coordinator/cluster/group_views.h"
#include "csvfs/base/check.h"
#include "csvfs/base/guarded.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

constexpr Duration kTick = 250ms;
constexpr unsigned kPatienceTicks = CorosyncEngine::kPatience / kTick;
/// So long without a tick of the loop, and the vote is withdrawn: csvd decides nothing any more.
constexpr int kSecondsWithoutTick = 5;
constexpr int kVoteEveryMs = 1000;
constexpr int kAgainMs = 5;  ///< After "try again": a ring that forms, or a full queue.
constexpr Duration kReconnect = 500ms;
constexpr std::size_t kMaxTroubles = 8;
constexpr const char* kDevice = "csvfs";

/// Wakes a thread that polls.
class Bell {
 public:
  Bell() : fd_{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)} { CSV_CHECK(fd_ >= 0); }
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;
  ~Bell() { ::close(fd_); }
  void ring() {
    const std::uint64_t one = 1;
    [[maybe_unused]] auto written = ::write(fd_, &one, sizeof one);  // full: it rings already
  }
  /// Until it rings or `other` (-1: none) has something; false: the time was over first.
  bool wait(int other, int ms) {
    std::array<pollfd, 2> fds{pollfd{fd_, POLLIN, 0}, pollfd{other, POLLIN, 0}};
    bool something = ::poll(fds.data(), fds.size(), ms) != 0;  // poll skips -1
    std::uint64_t rung = 0;
    [[maybe_unused]] auto read = ::read(fd_, &rung, sizeof rung);
    return something;
  }

 private:
  int fd_;
};

/// One call after the other into a library, watched from outside: odd while in a call.
class Watched {
 public:
  template <typename Call>
  auto operator()(Call call) {
    number_.fetch_add(1);
    auto result = call();
    number_.fetch_add(1);
    return result;
  }
  [[nodiscard]] std::uint64_t number() const { return number_.load(); }

 private:
  std::atomic<std::uint64_t> number_{0};
};

/// On the loop: whether a thread has been in one and the same call at many looks. Said once a call.
class Hang {
 public:
  bool look(const Watched& calls) {
    auto now = calls.number();
    looks_ = now % 2 == 1 && now == seen_ ? looks_ + 1 : 0;
    seen_ = now;
    return looks_ == kPatienceTicks;
  }

 private:
  std::uint64_t seen_ = 0;
  unsigned looks_ = 0;
};

Error corosync_error(cs_error_t code, const std::string& doing) {
  auto why = doing + ": " + ::cs_strerror(code);
  if (code == CS_ERR_ACCESS || code == CS_ERR_SECURITY) return {std::errc::permission_denied, why};
  if (code == CS_ERR_LIBRARY || code == CS_ERR_BAD_HANDLE)
    why += "; corosync does not run, or has ended (systemctl status corosync)";
  return {Errc::closed, why};
}

/// Two halves count on from the same number: what makes theirs differ is the node that leads each.
std::uint64_t ring_number(std::uint32_t leader, std::uint64_t sequence) {
  return sequence << 8 | (leader & 0xff);
}

/// A frame on its way to the group, and for which attempt it was made.
struct Outgoing {
  std::uint64_t attempt = 0;
  std::deque<std::string> frames;
  std::size_t bytes = 0;
};

void enter_thread(const char* name) {
  ::pthread_setname_np(::pthread_self(), name);
  sigset_t all;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace

/// What loop and threads have in common; lives as long as the last of them.
struct CorosyncEngine::Shared {
  explicit Shared(Surroundings surroundings) : with{std::move(surroundings)} {}

  Surroundings with;

  // Any thread.
  std::atomic<bool> ending{false};
  /// One connection to the daemon, of both threads: whichever finds it broken ends it for both.
  std::atomic<std::uint64_t> attempt{1};
  std::atomic<std::uint64_t> ticks{0};
  /// The newest ring that was voted for, and in which attempt. Both under one lock.
  struct Voted {
    std::uint64_t attempt = 0, ring = 0;
  };
  Guarded<Voted> voted;
  Guarded<Outgoing> outgoing;
  Guarded<Verdict> verdict;
  std::atomic<std::size_t> undelivered{0};  ///< Bytes that wait for the loop.
  Bell talk_bell, vote_bell;
  Watched talk_calls, vote_calls;

  // Where news goes: null once the engine has gone.
  std::mutex engine_mutex;
  Loop* loop = nullptr;

  std::mutex threads_mutex;
  std::condition_variable thread_changed;
  int threads = 0;  ///< That have not ended.

  // The loop's.
  CorosyncEngine* engine = nullptr;
  Handlers handlers;
  Member self{};
  std::uint64_t life = 0;  ///< Of the view in force: 0, none.
  bool lost_told = false;
  std::set<std::string> troubles;  ///< Logged since the last view; few.
  Loop::TimerId timer{};
  Hang talk_hang, vote_hang;

  void post(Function<void()> work) {
    std::lock_guard lock{engine_mutex};
    if (loop) loop->post(std::move(work));
  }
  /// The attempt is over, for both threads. Any thread; the first one's reason is told.
  static void fail(const std::shared_ptr<Shared>& shared, std::uint64_t which, Error why) {
    auto expected = which;
    if (shared->ending || !shared->attempt.compare_exchange_strong(expected, which + 1)) return;
    shared->talk_bell.ring();
    shared->vote_bell.ring();
    shared->post([shared, which, why = std::move(why)] {
      if (shared->engine) shared->engine->lose(which, why);
    });
  }
  [[nodiscard]] bool is_over(std::uint64_t which) const { return ending || attempt != which; }
  /// Between two attempts.
  void pause() {
    std::unique_lock lock{threads_mutex};
    thread_changed.wait_for(lock, kReconnect, [this] { return ending.load(); });
  }
};

// --- the thread that talks: membership and messages
// -----------------------------------------------

class CorosyncEngine::Talk {
 public:
  explicit Talk(std::shared_ptr<Shared> shared) : shared_{std::move(shared)} {}

  void run() {
    while (!shared_->ending) {
      attempt_ = shared_->attempt;
      auto ended = serve();
      groups_.reset();
      if (shared_->ending) return;
      if (!ended) Shared::fail(shared_, attempt_, ended.error());
      shared_->pause();
    }
  }

 private:
  /// A connection to the daemon, by scope.
  struct Handle {
    Watched* calls;
    cpg_handle_t handle = 0;
    bool open = false;
    explicit Handle(Watched& watched) : calls{&watched} {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
      if (open) (*calls)([this] { return ::cpg_finalize(handle); });
    }
  };

  /// Until the attempt is over (no error), or it broke here.
  Expected<void> serve() {
    auto& calls = shared_->talk_calls;
    Handle cpg{calls};
    cpg_model_v1_data_t model{};
    model.model = CPG_MODEL_V1;
    model.cpg_deliver_fn = on_deliver;
    model.cpg_confchg_fn = on_processes;
    model.cpg_totem_confchg_fn = on_ring;
    model.flags = CPG_MODEL_V1_DELIVER_INITIAL_TOTEM_CONF;
    auto result = calls([&] {
      return ::cpg_model_initialize(&cpg.handle, CPG_MODEL_V1,
                                    reinterpret_cast<cpg_model_data_t*>(&model), this);
    });
    if (result != CS_OK) return corosync_error(result, "connecting to corosync's process groups");
    cpg.open = true;
    int fd = -1;
    if (result = calls([&] { return ::cpg_fd_get(cpg.handle, &fd); }); result != CS_OK)
      return corosync_error(result, "connecting to corosync's process groups");
    CSV_TRY(check_node(cpg.handle));
    begin_life();
    CSV_TRY(join(cpg.handle));
    while (!shared_->is_over(attempt_)) {
      CSV_TRY(take(cpg.handle));
      bool all_sent = CSV_TRY(send(cpg.handle));
      if (broken_.code()) return std::exchange(broken_, Error{});
      watch_silence();
      // Events that may not be taken yet are no reason to wake up.
      bool held = is_held() || is_full();
      shared_->talk_bell.wait(held ? -1 : fd, all_sent ? static_cast<int>(kTick / 1ms) : kAgainMs);
    }
    return {};
  }

  Expected<void> check_node(cpg_handle_t handle) {
    unsigned node = 0;
    auto result = shared_->talk_calls([&] { return ::cpg_local_get(handle, &node); });
    if (result != CS_OK) return corosync_error(result, "asking corosync for its node");
    if (node != raw(shared_->with.node))
      return Error{Errc::refused, "corosync.conf says that this is node " + std::to_string(node) +
                                      ", csvd's configuration says node " +
                                      std::to_string(raw(shared_->with.node)) +
                                      ": correct one of them"};
    return {};
  }

  void begin_life() {
    std::uint64_t life = 0;
    while (life == 0) life = shared_->with.random.next();
    broken_ = {};
    events_.clear();
    to_group_.clear();
    const GroupViews::Process self{shared_->with.node, static_cast<std::uint32_t>(::getpid())};
    GroupViews::Out out;
    out.say = [this](std::string frame) { to_group_.push_back(std::move(frame)); };
    out.view = [this, life](View view) { events_.push_back({std::move(view), life, {}, {}}); };
    out.deliver = [this](Member from, std::string message) {
      events_.push_back({std::nullopt, 0, from, std::move(message)});
    };
    out.excluded = [this] {
      broken_ = {
          Errc::closed,
          "the others went on without this node's csvd, which had said nothing for too long"};
    };
    groups_.emplace(self, life, std::move(out));
    {
      auto outgoing = shared_->outgoing.lock();
      *outgoing = {attempt_, {}, 0};
    }
  }

  Expected<void> join(cpg_handle_t handle) {
    for (;;) {
      auto name = group_name();
      auto result = shared_->talk_calls([&] { return ::cpg_join(handle, &name); });
      if (result == CS_OK) return {};
      // A ring forms, or our former life has not left everywhere yet.
      if (result != CS_ERR_TRY_AGAIN && result != CS_ERR_EXIST)
        return corosync_error(result, "joining corosync's process group");
      shared_->talk_bell.wait(-1, kAgainMs);
      if (shared_->is_over(attempt_)) return {};
    }
  }

  [[nodiscard]] cpg_name group_name() const {
    cpg_name name{};
    name.length = static_cast<std::uint32_t>(shared_->with.group.size());
    std::memcpy(name.value, shared_->with.group.data(), name.length);
    return name;
  }

  /// Takes what has come, one at a time, and tells it, as far as it may be told.
  Expected<void> take(cpg_handle_t handle) {
    for (;;) {
      tell();
      if (is_held() || is_full() || broken_.code() || shared_->is_over(attempt_)) return {};
      auto result =
          shared_->talk_calls([&] { return ::cpg_dispatch(handle, CS_DISPATCH_ONE_NONBLOCKING); });
      if (result == CS_ERR_TRY_AGAIN) return {};
      if (result != CS_OK) return corosync_error(result, "hearing from corosync's process group");
      if (!std::exchange(called_back_, false)) return {};
    }
  }

  /// The head of what is to be told is a view whose ring was not voted for yet.
  [[nodiscard]] bool is_held() {
    if (events_.empty() || !events_.front().view) return false;
    auto voted = shared_->voted.lock();
    return voted->attempt != attempt_ || voted->ring < events_.front().view->ring;
  }
  [[nodiscard]] bool is_full() const { return shared_->undelivered > kQueueBytes; }

  void tell() {
    while (!events_.empty() && !is_held()) {
      auto event = std::move(events_.front());
      events_.pop_front();
      auto size = sizeof event + event.message.size();
      shared_->undelivered += size;
      shared_->post(
          [shared = shared_, attempt = attempt_, size, event = std::move(event)]() mutable {
            if (shared->undelivered.fetch_sub(size) > kQueueBytes) shared->talk_bell.ring();
            if (!shared->engine || shared->attempt != attempt) return;
            if (!event.view) return shared->handlers.deliver(event.from, std::move(event.message));
            shared->self = {shared->with.node, event.life};
            shared->life = event.life;
            shared->lost_told = false;
            shared->troubles.clear();
            shared->handlers.view(*event.view);
          });
    }
  }

  /// True: nothing is left to be sent.
  Expected<bool> send(cpg_handle_t handle) {
    while (!to_group_.empty()) {
      auto sent = CSV_TRY(send_one(handle, to_group_.front()));
      if (!sent) return false;
      to_group_.pop_front();
    }
    for (;;) {
      std::string frame;
      {
        auto outgoing = shared_->outgoing.lock();
        if (outgoing->frames.empty() || outgoing->attempt != attempt_) return true;
        if (outgoing->bytes > kQueueBytes)
          return Error{Errc::closed, "more than " + std::to_string(kQueueBytes >> 20) +
                                         " MiB wait to be sent by corosync"};
        frame = std::move(outgoing->frames.front());
        outgoing->frames.pop_front();
        outgoing->bytes -= frame.size();
      }
      auto sent = CSV_TRY(send_one(handle, groups_->frame(frame)));
      if (sent) continue;
      auto outgoing = shared_->outgoing.lock();
      if (outgoing->attempt == attempt_) {
        outgoing->bytes += frame.size();
        outgoing->frames.push_front(std::move(frame));
      }
      return false;
    }
  }

  Expected<bool> send_one(cpg_handle_t handle, const std::string& frame) {
    iovec part{const_cast<char*>(frame.data()), frame.size()};
    auto result =
        shared_->talk_calls([&] { return ::cpg_mcast_joined(handle, CPG_TYPE_AGREED, &part, 1); });
    if (result == CS_OK) return true;
    if (result == CS_ERR_TRY_AGAIN) return false;
    return corosync_error(result, "sending to corosync's process group");
  }

  /// Somebody does not say hello: he is given up when all have waited long enough.
  void watch_silence() {
    auto now = shared_->ticks.load();
    if (!groups_->waiting()) {
      silent_in_ = 0;
      return;
    }
    if (silent_in_ != groups_->wait_number()) {
      silent_in_ = groups_->wait_number();
      silent_since_ = now;
    } else if (now - silent_since_ > kPatienceTicks) {
      groups_->give_up_waiting();
      silent_since_ = now;
    }
  }

  static Talk& self(cpg_handle_t handle) {
    void* context = nullptr;
    CSV_CHECK(::cpg_context_get(handle, &context) == CS_OK);
    auto& talk = *static_cast<Talk*>(context);
    talk.called_back_ = true;
    return talk;
  }

  static void on_deliver(cpg_handle_t handle, const cpg_name*, std::uint32_t node,
                         std::uint32_t pid, void* message, std::size_t size) {
    auto& talk = self(handle);
    if (node > 0xff) return;
    talk.groups_->message({NodeId{static_cast<std::uint8_t>(node)}, pid},
                          {static_cast<const char*>(message), size});
  }

  static void on_processes(cpg_handle_t handle, const cpg_name*, const cpg_address* members,
                           std::size_t member_count, const cpg_address* left,
                           std::size_t left_count, const cpg_address* joined,
                           std::size_t joined_count) {
    auto& talk = self(handle);
    std::vector<GroupViews::Process> all;
    for (std::size_t i = 0; i < member_count; ++i)
      if (members[i].nodeid <= 0xff)
        all.push_back({NodeId{static_cast<std::uint8_t>(members[i].nodeid)}, members[i].pid});
    auto of_ring = [](const cpg_address& each) {
      return each.reason == CPG_REASON_NODEDOWN || each.reason == CPG_REASON_NODEUP;
    };
    bool ring_follows = std::any_of(left, left + left_count, of_ring) ||
                        std::any_of(joined, joined + joined_count, of_ring);
    talk.groups_->processes(std::move(all), ring_follows);
  }

  static void on_ring(cpg_handle_t handle, cpg_ring_id ring, std::uint32_t count,
                      const std::uint32_t* members) {
    auto& talk = self(handle);
    std::vector<NodeId> nodes;
    for (std::uint32_t i = 0; i < count; ++i)
      if (members[i] <= 0xff) nodes.push_back(NodeId{static_cast<std::uint8_t>(members[i])});
    talk.groups_->ring(ring_number(ring.nodeid, ring.seq), std::move(nodes));
  }

  struct Event {
    std::optional<View> view;
    std::uint64_t life = 0;  ///< Ours, with a view.
    Member from{};
    std::string message;
  };

  std::shared_ptr<Shared> shared_;
  std::uint64_t attempt_ = 0;
  std::optional<GroupViews> groups_;
  std::deque<std::string> to_group_;  ///< Hellos: before all messages.
  std::deque<Event> events_;
  Error broken_;
  bool called_back_ = false;
  std::uint64_t silent_in_ = 0, silent_since_ = 0;
};

// --- the thread that votes
// -------------------------------------------------------------------------

class CorosyncEngine::Vote {
 public:
  explicit Vote(std::shared_ptr<Shared> shared) : shared_{std::move(shared)} {}

  void run() {
    while (!shared_->ending) {
      attempt_ = shared_->attempt;
      auto ended = serve();
      if (shared_->ending) return;
      if (!ended) Shared::fail(shared_, attempt_, ended.error());
      shared_->pause();
    }
  }

 private:
  struct Handle {
    Watched* calls;
    votequorum_handle_t handle = 0;
    bool open = false;
    explicit Handle(Watched& watched) : calls{&watched} {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
      if (open) (*calls)([this] { return ::votequorum_finalize(handle); });
    }
  };

  Expected<void> serve() {
    auto& calls = shared_->vote_calls;
    Handle quorum{calls};
    votequorum_callbacks_t callbacks{};
    callbacks.votequorum_nodelist_notify_fn = on_nodes;
    auto result = calls([&] { return ::votequorum_initialize(&quorum.handle, &callbacks); });
    if (result != CS_OK) return no_quorum(result);
    quorum.open = true;
    int fd = -1;
    ring_ = {};
    nodes_.reset();
    registered_ = false;
    if (result = calls([&] { return ::votequorum_context_set(quorum.handle, this); });
        result != CS_OK)
      return no_quorum(result);
    if (result = calls([&] { return ::votequorum_fd_get(quorum.handle, &fd); }); result != CS_OK)
      return no_quorum(result);
    for (;;) {
      result = calls([&] { return ::votequorum_trackstart(quorum.handle, 0, CS_TRACK_CHANGES); });
      if (result == CS_OK) break;
      if (result != CS_ERR_TRY_AGAIN) return no_quorum(result);
      shared_->vote_bell.wait(-1, kAgainMs);
      if (shared_->is_over(attempt_)) return {};
    }
    int wait = 0;
    for (;;) {
      bool in_vain = !shared_->vote_bell.wait(fd, wait) && wait >= kVoteEveryMs;
      if (shared_->is_over(attempt_)) break;
      watch_loop(in_vain);
      result = calls([&] { return ::votequorum_dispatch(quorum.handle, CS_DISPATCH_ALL); });
      if (result != CS_OK && result != CS_ERR_TRY_AGAIN)
        return corosync_error(result, "hearing from corosync's votequorum");
      wait = CSV_TRY(give(quorum.handle));
    }
    // Whose vote is not cast is not waited for either, once it has signed off. What is cast stands
    // for a while, and so must not be what has an end.
    if (shared_->ending && registered_ && cast_ && !(*cast_ && stands()))
      calls([&] { return ::votequorum_qdevice_unregister(quorum.handle, kDevice); });
    return {};
  }

  static Error no_quorum(cs_error_t result) {
    return corosync_error(result,
                          "connecting to corosync's votequorum (quorum.provider must be "
                          "corosync_votequorum in corosync.conf)");
  }

  /// False: not now, soon again. `registered_` says whether it was taken.
  Expected<bool> sign_on(votequorum_handle_t handle) {
    auto result =
        shared_->vote_calls([&] { return ::votequorum_qdevice_register(handle, kDevice); });
    registered_ = result == CS_OK;
    if (registered_) return true;
    if (result == CS_ERR_TRY_AGAIN) return false;
    if (result == CS_ERR_LIBRARY || result == CS_ERR_BAD_HANDLE)
      return corosync_error(result, "registering as corosync's quorum device");
    // Membership goes on without: our own rules decide. What follows corosync's quorum stands
    // still.
    if (std::exchange(complained_, true)) return true;
    log::error(
        "quorum_device_refused node={} why=\"{}\" do=\"quorum.device with model csvfs must stand "
        "in "
        "corosync.conf, and no other quorum device may run\"",
        raw(shared_->with.node), ::cs_strerror(result));
    return true;
  }

  /// Votes as the verdict is now. Returns after how many ms again.
  Expected<int> give(votequorum_handle_t handle) {
    again_ms_ = kVoteEveryMs;
    if (!nodes_) return again_ms_;
    if (!registered_ && !CSV_TRY(sign_on(handle))) return kAgainMs;
    if (registered_) {
      bool cast = decide();
      auto result = shared_->vote_calls(
          [&] { return ::votequorum_qdevice_poll(handle, kDevice, cast ? 1 : 0, ring_); });
      switch (result) {
        case CS_OK:
          complained_ = false;
          if (cast_ != cast)
            log::info("quorum_device_vote node={} ring={} vote={}", raw(shared_->with.node),
                      ring_number_, cast ? "cast" : "withheld");
          cast_ = cast;
          break;
        case CS_ERR_TRY_AGAIN: return kAgainMs;
        // The ring is no longer the newest: its successor is on its way to us.
        case CS_ERR_MESSAGE_ERROR: return kAgainMs;
        case CS_ERR_NOT_EXIST: registered_ = false; return kAgainMs;
        case CS_ERR_LIBRARY:
        case CS_ERR_BAD_HANDLE: return corosync_error(result, "voting as corosync's quorum device");
        default: registered_ = false;
      }
    }
    bool news = false;
    {
      auto voted = shared_->voted.lock();
      news = voted->attempt != attempt_ || voted->ring != ring_number_;
      *voted = {attempt_, ring_number_};
    }
    if (news) shared_->talk_bell.ring();
    return again_ms_;
  }

  void watch_loop(bool second_is_over) {
    auto now = shared_->ticks.load();
    if (now != seen_tick_)
      seconds_without_tick_ = 0;
    else if (second_is_over)
      ++seconds_without_tick_;
    seen_tick_ = now;
  }

  bool decide() {
    if (seconds_without_tick_ >= kSecondsWithoutTick) return false;
    // Under its lock: whoever replaces it, or ends us, may be sure that it is not asked any more,
    // nor the loop's clock.
    auto verdict = shared_->verdict.lock();
    if (shared_->ending) return cast_ && *cast_ && stands();
    until_ = *verdict ? (*verdict)(*nodes_) : kNever;
    auto now = shared_->with.loop->now();
    if (now >= until_) return false;
    if (!stands())
      again_ms_ = static_cast<int>(std::min<Duration>(until_ - now, again_ms_ * 1ms) / 1ms) + 1;
    return true;
  }
  /// What was decided last has no end of its own.
  [[nodiscard]] bool stands() const { return until_ == kForLong; }

  static void on_nodes(votequorum_handle_t handle, std::uint64_t, votequorum_ring_id_t ring,
                       std::uint32_t count, std::uint32_t nodes[]) {
    void* context = nullptr;
    CSV_CHECK(::votequorum_context_get(handle, &context) == CS_OK);
    auto& vote = *static_cast<Vote*>(context);
    vote.ring_ = ring;
    vote.ring_number_ = ring_number(ring.nodeid, ring.seq);
    vote.nodes_.emplace();
    for (std::uint32_t i = 0; i < count; ++i)  // 0 is the device itself
      if (nodes[i] != 0 && nodes[i] <= 0xff)
        vote.nodes_->push_back(NodeId{static_cast<std::uint8_t>(nodes[i])});
    std::sort(vote.nodes_->begin(), vote.nodes_->end());
  }

  std::shared_ptr<Shared> shared_;
  std::uint64_t attempt_ = 0;
  votequorum_ring_id_t ring_{};
  std::uint64_t ring_number_ = 0;
  std::optional<std::vector<NodeId>> nodes_;
  bool registered_ = false, complained_ = false;
  std::optional<bool> cast_;
  TimePoint until_ = kNever;     ///< Of the verdict that was given last.
  int again_ms_ = kVoteEveryMs;  ///< Until it is asked for again.
  std::uint64_t seen_tick_ = 0;
  int seconds_without_tick_ = 0;
};

// --- the loop's side
// -------------------------------------------------------------------------------

CorosyncEngine::CorosyncEngine(Surroundings surroundings)
    : shared_{std::make_shared<Shared>(std::move(surroundings))} {
  CSV_CHECK(shared_->with.group.size() <= CPG_MAX_NAME_LENGTH);
  shared_->engine = this;
  shared_->loop = shared_->with.loop;
}

CorosyncEngine::~CorosyncEngine() {
  shared_->engine = nullptr;
  if (shared_->timer != Loop::TimerId{}) shared_->with.loop->cancel(shared_->timer);
  {
    std::lock_guard lock{shared_->engine_mutex};
    shared_->loop = nullptr;
  }
  shared_->ending = true;
  // What the verdict refers to may go with our owner.
  *shared_->verdict.lock() = nullptr;
  shared_->talk_bell.ring();
  shared_->vote_bell.ring();
  std::unique_lock lock{shared_->threads_mutex};
  shared_->thread_changed.notify_all();
  shared_->thread_changed.wait_for(lock, 1s, [this] { return shared_->threads == 0; });
}

void CorosyncEngine::start(Handlers handlers) {
  shared_->handlers = std::move(handlers);
  shared_->threads = 2;
  // Detached: neither may be waited for without a limit.
  auto launch = [this](const char* name, auto talker) {
    std::thread{[shared = shared_, name, talker = std::move(talker)]() mutable {
      enter_thread(name);
      talker->run();
      talker.reset();
      std::lock_guard lock{shared->threads_mutex};
      --shared->threads;
      shared->thread_changed.notify_all();
    }}.detach();
  };
  launch("corosync-group", std::make_unique<Talk>(shared_));
  launch("corosync-vote", std::make_unique<Vote>(shared_));
  tick();
}

void CorosyncEngine::tick() {
  auto& shared = *shared_;
  ++shared.ticks;
  auto talk = shared.talk_hang.look(shared.talk_calls);
  auto vote = shared.vote_hang.look(shared.vote_calls);
  if (talk || vote)
    Shared::fail(shared_, shared.attempt,
                 {std::errc::timed_out,
                  "corosync runs and does not answer: it hangs, or this machine is overloaded"});
  shared.timer = shared.with.loop->after(kTick, [this] { tick(); });
}

void CorosyncEngine::lose(std::uint64_t attempt, Error why) {
  auto& shared = *shared_;
  shared.life = 0;
  if (shared.troubles.size() < kMaxTroubles && shared.troubles.insert(why.message()).second)
    log::warning("corosync_lost node={} attempt={} why=\"{}\"", raw(shared.with.node), attempt,
                 why.message());
  if (!std::exchange(shared.lost_told, true)) shared.handlers.lost(why);
}

void CorosyncEngine::multicast(std::string message) {
  CSV_CHECK(message.size() <= kMaxMessage);
  if (shared_->life == 0) return;
  {
    auto outgoing = shared_->outgoing.lock();
    if (outgoing->attempt != shared_->attempt) return;
    outgoing->bytes += message.size();
    outgoing->frames.push_back(std::move(message));
  }
  shared_->talk_bell.ring();
}

void CorosyncEngine::vote_by(Verdict verdict) {
  *shared_->verdict.lock() = std::move(verdict);
  shared_->vote_bell.ring();
}

Member CorosyncEngine::self() const { return shared_->self; }

}  // namespace csv::cluster
