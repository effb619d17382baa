#include "iscsi/iscsi_session.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

extern "C" {
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
}

#include <algorithm>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <thread>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"

namespace csv::iscsi {
namespace {

/// Commands handed to libiscsi at a time. It searches its list for each answer, and the target has
/// a window of its own; more wait in our queue.
constexpr int kMostInFlight = 64;
/// How often one command is repeated at once (after unit attentions and aborts) before it fails.
constexpr int kMostRepeats = 32;
constexpr Duration kBusyPause = std::chrono::milliseconds{20};

/// The monotonic clock: deadlines say how long a target took while we could have listened.
TimePoint monotonic_now() {
  timespec t{};
  CSV_CHECK(::clock_gettime(CLOCK_MONOTONIC, &t) == 0);
  return TimePoint{std::chrono::seconds{t.tv_sec} + std::chrono::nanoseconds{t.tv_nsec}};
}

}  // namespace

/// Under its mutex: what other threads want of the session's thread.
struct IscsiSession::Shared {
  std::mutex mutex;
  std::deque<std::unique_ptr<ScsiCommand>> incoming;
  bool ended = false;  // nothing is taken any more
  std::optional<Error> close;
  bool paused = false;
  Function<void()> quiet;
  Function<void(Expected<void>)> reset;
  bool asleep = false;  // it waits in poll() and needs the eventfd to look here
  int wake_fd = -1;

  Shared() : wake_fd{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)} { CSV_CHECK(wake_fd >= 0); }
  ~Shared() { ::close(wake_fd); }

  /// Changes something under the lock, and wakes the thread if it sleeps.
  template <typename F>
  void tell(F&& change) {
    bool wake = false;
    {
      std::lock_guard lock{mutex};
      change();
      wake = std::exchange(asleep, false);
    }
    if (!wake) return;
    std::uint64_t one = 1;
    // Cannot fail: the counter is far from full, and the descriptor is ours.
    CSV_CHECK(::write(wake_fd, &one, sizeof one) == sizeof one);
  }
};

/// The session's thread and all it owns.
struct IscsiSession::Worker {
  struct Flight {
    std::unique_ptr<ScsiCommand> command;
    Worker* worker = nullptr;
    scsi_task* task = nullptr;
    scsi_iovec iov{};
    TimePoint deadline{};
    std::list<Flight>::iterator self;
    Verdict verdict;
    std::string said;  // what the target answered, for messages
  };
  struct Delayed {
    TimePoint due;
    std::unique_ptr<ScsiCommand> command;
  };

  IscsiSession& session;
  Options options;
  Events events;
  iscsi_context* context = nullptr;

  bool logged_in = false;
  int redirects = 0;
  TimePoint login_deadline{};
  std::optional<Error> fate;  // why it ends, once it does
  bool paused = false;
  Function<void()> quiet;
  Function<void(Expected<void>)> reset_done;
  bool reset_sent = false;
  TimePoint reset_deadline{};

  std::deque<std::unique_ptr<ScsiCommand>> waiting;
  std::deque<Delayed> delayed;  // one pause for all, so in order of time
  std::list<Flight> in_flight;  // in order of their deadlines
  std::list<Flight> spare;
  // Writes that failed while libiscsi may still have Data-Out of theirs to send: it reads them from
  // the task and the caller's buffer, so both wait here until its queue is empty.
  std::list<Flight> cooling;
  int limit = kMostInFlight;
  int answered_since_full = 0;
  Batch finished;
  std::thread thread;

  Worker(IscsiSession& owner, Options its_options, Events its_events)
      : session{owner}, options{std::move(its_options)}, events{std::move(its_events)} {}

  // ------------------------------------------------------------------ login

  std::string library_error() { return context ? iscsi_get_error(context) : "out of memory"; }

  void lose(std::string what) {
    if (!fate) fate = Error{Errc::lun_lost, fmt::format("{}: {}", options.portal, what)};
  }

  void start_login() {
    login_deadline = monotonic_now() + options.deadline;
    context = iscsi_create_context(options.initiator.c_str());
    if (!context) return lose("iscsi_create_context failed");
    iscsi_set_noautoreconnect(context, 1);
    iscsi_set_reconnect_max_retries(context, 0);
    iscsi_set_timeout(context, 0);
    iscsi_set_isid_random(context, static_cast<std::uint32_t>(options.isid >> 16) & 0xffffff,
                          static_cast<std::uint32_t>(options.isid & 0xffff));
    iscsi_set_targetname(context, options.target.c_str());
    iscsi_set_session_type(context, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(
        context, options.header_digest ? ISCSI_HEADER_DIGEST_CRC32C : ISCSI_HEADER_DIGEST_NONE);
    if (!options.chap_user.empty())
      iscsi_set_initiator_username_pwd(context, options.chap_user.c_str(),
                                       options.chap_secret.c_str());
    iscsi_set_tcp_keepidle(context, 5);
    iscsi_set_tcp_keepintvl(context, 2);
    iscsi_set_tcp_keepcnt(context, 3);
    connect(options.portal.c_str());
  }

  void connect(const char* portal) {
    if (iscsi_connect_async(context, portal, &Worker::connected, this) != 0)
      lose("connect: " + library_error());
  }

  static void connected(iscsi_context*, int status, void*, void* self) {
    auto& worker = *static_cast<Worker*>(self);
    if (worker.fate || worker.logged_in) return;
    if (status != SCSI_STATUS_GOOD) return worker.lose("connect: " + worker.library_error());
    if (iscsi_login_async(worker.context, &Worker::login_answered, self) != 0)
      worker.lose("login: " + worker.library_error());
  }

  static void login_answered(iscsi_context* context, int status, void*, void* self) {
    auto& worker = *static_cast<Worker*>(self);
    if (worker.fate || worker.logged_in) return;
    if (status == SCSI_STATUS_REDIRECT) {
      const char* address = iscsi_get_target_address(context);
      if (!address || !*address || ++worker.redirects > 3)
        return worker.lose("the target redirects the login without end");
      std::string next = address;
      iscsi_disconnect(context);
      return worker.connect(next.c_str());
    }
    if (status != SCSI_STATUS_GOOD) return worker.lose("login: " + worker.library_error());
    worker.logged_in = true;
    worker.events.connected({});
  }

  // --------------------------------------------------------------- commands

  bool ready_to_send() const {
    return !waiting.empty() && !paused && cooling.empty() &&
           static_cast<int>(in_flight.size()) < limit;
  }

  void send(std::unique_ptr<ScsiCommand> command) {
    auto now = monotonic_now();
    if (command->attempts++ == 0) command->give_up = now + options.deadline;
    if (spare.empty()) spare.emplace_back();
    in_flight.splice(in_flight.end(), spare, spare.begin());
    auto& flight = in_flight.back();
    flight.self = std::prev(in_flight.end());
    flight.worker = this;
    flight.deadline = now + options.deadline;
    flight.command = std::move(command);

    auto& sent = *flight.command;
    int direction = SCSI_XFER_NONE;
    std::size_t length = 0;
    if (!sent.in.empty()) direction = SCSI_XFER_READ, length = sent.in.size();
    if (!sent.out.empty()) direction = SCSI_XFER_WRITE, length = sent.out.size();
    flight.task =
        scsi_create_task(sent.cdb.size, sent.cdb.bytes.data(), direction, static_cast<int>(length));
    CSV_CHECK(flight.task != nullptr);
    if (!sent.in.empty()) {
      flight.iov = {sent.in.data(), length};
      scsi_task_set_iov_in(flight.task, &flight.iov, 1);
    }
    if (!sent.out.empty()) {
      // libiscsi only reads through it.
      flight.iov = {const_cast<std::byte*>(sent.out.data()), length};
      scsi_task_set_iov_out(flight.task, &flight.iov, 1);
    }
    if (iscsi_scsi_command_async(context, options.lun, flight.task, &Worker::answered, nullptr,
                                 &flight) != 0)
      lose("sending a command: " + library_error());
  }

  static void answered(iscsi_context*, int status, void*, void* data) {
    auto& flight = *static_cast<Flight*>(data);
    auto& worker = *flight.worker;
    // While the context is being destroyed everything is cancelled: those stay in flight, and come
    // back as unanswered.
    if (!worker.context) return;
    worker.take_answer(flight, status);
  }

  void take_answer(Flight& flight, int status) {
    if (status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_ERROR ||
        status == SCSI_STATUS_TIMEOUT)
      return lose("the connection failed: " + library_error());

    auto& command = *flight.command;
    auto& task = *flight.task;
    std::optional<Sense> sense;
    if (status == SCSI_STATUS_CHECK_CONDITION && task.datain.data && task.datain.size > 2) {
      // The data segment of a SCSI Response: a length, then the sense data.
      std::span<const unsigned char> segment{task.datain.data,
                                             static_cast<std::size_t>(task.datain.size)};
      std::size_t length = static_cast<std::size_t>(segment[0] << 8 | segment[1]);
      sense = parse_sense(std::as_bytes(segment.subspan(2, std::min(length, segment.size() - 2))));
    }
    command.received = command.in.size();
    if (task.residual_status == SCSI_RESIDUAL_UNDERFLOW)
      command.received -= std::min<std::size_t>(command.received, task.residual);

    if (status == SCSI_STATUS_TASK_SET_FULL) {
      limit = std::max(1, static_cast<int>(in_flight.size()) / 2);
      answered_since_full = 0;
    } else if (limit < kMostInFlight && ++answered_since_full >= 256) {
      ++limit;
      answered_since_full = 0;
    }

    auto scsi_status = static_cast<ScsiStatus>(status);
    if (scsi_status == ScsiStatus::reservation_conflict) ++session.counters_.conflicts;
    flight.verdict = judge(scsi_status, sense, command.purpose, session.registered_);
    if (flight.verdict.action != Verdict::Action::done)
      flight.said = sense ? describe(*sense) : describe(scsi_status);
    if (sense && sense->key == sense_key::unit_attention)
      log::debug("iscsi unit attention portal={} sense=\"{}\"", options.portal, flight.said);
    if (flight.verdict.action == Verdict::Action::end) {
      // It stays in flight and comes back with the rest: the session must be gone first.
      if (!fate) fate = flight.verdict.error.within(options.portal);
      return;
    }
    if (scsi_status != ScsiStatus::good && !command.out.empty() && something_to_send()) {
      cooling.splice(cooling.end(), in_flight, flight.self);
      return;
    }
    settle(flight, in_flight);
  }

  bool something_to_send() const {
    return iscsi_out_queue_length(context) > 0 || (iscsi_which_events(context) & POLLOUT);
  }

  /// Acts on the verdict over a command in `list`.
  void settle(Flight& flight, std::list<Flight>& list) {
    auto verdict = std::move(flight.verdict);
    auto said = std::move(flight.said);
    auto command = land(flight, list);
    switch (verdict.action) {
      case Verdict::Action::done:
        if (command->purpose == ScsiPurpose::data && command->received != command->in.size())
          command->result = Error{
              std::errc::io_error,
              fmt::format("the target sent {} of {} bytes", command->received, command->in.size())};
        return finish(std::move(command));
      case Verdict::Action::fail:
        command->result = std::move(verdict.error);
        return finish(std::move(command));
      case Verdict::Action::end: check_failed("an end is never settled");
      case Verdict::Action::repeat:
      case Verdict::Action::repeat_later: return repeat(std::move(command), verdict.action, said);
    }
  }

  void repeat(std::unique_ptr<ScsiCommand> command, Verdict::Action action,
              const std::string& said) {
    ++session.counters_.retries;
    auto now = monotonic_now();
    if (now >= command->give_up) {
      ++session.counters_.timeouts;
      waiting.push_front(std::move(command));
      return lose(fmt::format("only {} within the deadline", said));
    }
    if (action == Verdict::Action::repeat_later) {
      delayed.push_back({now + kBusyPause, std::move(command)});
      return;
    }
    if (command->attempts > kMostRepeats) {
      command->result =
          Error{std::errc::io_error, fmt::format("given up after {} times {}", kMostRepeats, said)};
      return finish(std::move(command));
    }
    waiting.push_front(std::move(command));
  }

  /// Takes a command out of `list` and frees what libiscsi has of it.
  std::unique_ptr<ScsiCommand> land(Flight& flight, std::list<Flight>& list) {
    auto command = std::move(flight.command);
    scsi_free_scsi_task(std::exchange(flight.task, nullptr));
    spare.splice(spare.begin(), list, flight.self);
    return command;
  }

  void finish(std::unique_ptr<ScsiCommand> command) {
    --session.load_;
    finished.push_back(std::move(command));
  }

  // ------------------------------------------------------------------ reset

  void send_reset() {
    reset_sent = true;
    reset_deadline = monotonic_now() + options.deadline;
    // Not iscsi_task_mgmt_lun_reset_async, which cancels the context's tasks.
    if (iscsi_task_mgmt_async(context, options.lun, ISCSI_TM_LUN_RESET, 0xffffffff, 0,
                              &Worker::reset_answered, this) != 0)
      lose("sending a LUN RESET: " + library_error());
  }

  static void reset_answered(iscsi_context*, int status, void* data, void* self) {
    auto& worker = *static_cast<Worker*>(self);
    if (!worker.context || worker.fate) return;
    if (status != SCSI_STATUS_GOOD || !data)
      return worker.lose("LUN RESET: " + worker.library_error());
    auto response = *static_cast<std::uint32_t*>(data);
    auto done = std::move(worker.reset_done);
    worker.reset_done = nullptr;
    worker.reset_sent = false;
    switch (response) {
      case ISCSI_TMR_FUNC_COMPLETE: return done({});
      case ISCSI_TMR_TMF_NOT_SUPPORTED:
        return done(Error{Errc::unsupported_by_target, "the target has no LUN RESET"});
      default:
        return done(Error{std::errc::io_error,
                          fmt::format("LUN RESET was refused with response {}", response)});
    }
  }

  // ------------------------------------------------------------------- loop

  void service(int revents) {
    if (iscsi_service(context, revents) != 0) lose(library_error());
  }

  void take_shared() {
    auto& shared = *session.shared_;
    std::lock_guard lock{shared.mutex};
    if (shared.close && !fate) fate = *shared.close;
    for (auto& each : shared.incoming) waiting.push_back(std::move(each));
    shared.incoming.clear();
    paused = shared.paused;
    if (shared.quiet) quiet = std::exchange(shared.quiet, nullptr);
    if (shared.reset) reset_done = std::exchange(shared.reset, nullptr);
  }

  void send_due() {
    if (!logged_in) return;
    if (!delayed.empty()) {
      auto now = monotonic_now();
      while (!delayed.empty() && delayed.front().due <= now) {
        waiting.push_front(std::move(delayed.front().command));
        delayed.pop_front();
      }
    }
    while (!fate && !cooling.empty() && !something_to_send()) settle(cooling.front(), cooling);
    while (!fate && ready_to_send()) {
      auto next = std::move(waiting.front());
      waiting.pop_front();
      send(std::move(next));
    }
    if (fate) return;
    if (paused && in_flight.empty() && cooling.empty()) {
      if (quiet) std::exchange(quiet, nullptr)();
      if (reset_done && !reset_sent) send_reset();
    }
    // Most often the socket has room: no need to ask poll() first.
    if (!fate && (iscsi_which_events(context) & POLLOUT)) service(POLLOUT);
  }

  void deliver() {
    if (!finished.empty()) events.answered(std::exchange(finished, {}));
  }

  void check_deadlines() {
    auto now = monotonic_now();
    if (!logged_in && now >= login_deadline) lose("no login within the deadline");
    if ((!in_flight.empty() && now >= in_flight.front().deadline) ||
        (!cooling.empty() && now >= cooling.front().deadline)) {
      ++session.counters_.timeouts;
      lose(fmt::format(
          "no answer to a command within {} ms",
          std::chrono::duration_cast<std::chrono::milliseconds>(options.deadline).count()));
    }
    if (reset_sent && now >= reset_deadline) {
      ++session.counters_.timeouts;
      lose("no answer to a LUN RESET within the deadline");
    }
  }

  std::optional<TimePoint> next_due() const {
    std::optional<TimePoint> due;
    auto consider = [&](TimePoint at) { due = due ? std::min(*due, at) : at; };
    if (!logged_in) consider(login_deadline);
    if (!in_flight.empty()) consider(in_flight.front().deadline);
    if (!cooling.empty()) consider(cooling.front().deadline);
    if (!delayed.empty()) consider(delayed.front().due);
    if (reset_sent) consider(reset_deadline);
    return due;
  }

  /// Sleeps until the socket, another thread or a deadline has something for us; handles the
  /// socket.
  void wait() {
    int fd = iscsi_get_fd(context);
    if (fd < 0) return lose("the connection is gone: " + library_error());
    auto& shared = *session.shared_;
    timespec timeout{};
    bool limited = false;
    if (auto due = next_due()) {
      auto left = std::max(*due - monotonic_now(), Duration{0});
      timeout.tv_sec = static_cast<time_t>(left / std::chrono::seconds{1});
      timeout.tv_nsec = static_cast<long>((left % std::chrono::seconds{1}).count());
      limited = true;
    }
    {
      std::lock_guard lock{shared.mutex};
      if (!shared.incoming.empty() || shared.close || shared.paused != paused || shared.quiet ||
          shared.reset) {
        // More can be sent at once: the socket is looked at after that.
        if (logged_in && !paused && static_cast<int>(in_flight.size()) < limit) return;
        timeout = {}, limited = true;
      } else {
        shared.asleep = true;
      }
    }
    std::array<pollfd, 2> fds{{{fd, static_cast<short>(iscsi_which_events(context) | POLLRDHUP), 0},
                               {shared.wake_fd, POLLIN, 0}}};
    int ready = ::ppoll(fds.data(), fds.size(), limited ? &timeout : nullptr, nullptr);
    CSV_CHECK(ready >= 0 || errno == EINTR);
    {
      std::lock_guard lock{shared.mutex};
      shared.asleep = false;
    }
    if (ready <= 0) return;
    if (fds[1].revents) {
      std::uint64_t count = 0;
      // Only empties it; a wake-up that came with the lock above may have left nothing.
      [[maybe_unused]] auto got = ::read(shared.wake_fd, &count, sizeof count);
    }
    auto revents = fds[0].revents;
    if (revents & (POLLIN | POLLOUT)) service(revents & (POLLIN | POLLOUT));
    // What had been answered before the target hung up is known; the rest is not.
    if (!fate && (revents & (POLLRDHUP | POLLHUP | POLLERR)) && logged_in)
      lose("the target closed the connection");
    else if (!fate && (revents & (POLLHUP | POLLERR)))
      service(revents);
  }

  void run() {
    // A write to a closed socket must be an error and not a signal, and other signals are not for
    // this thread.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    pthread_setname_np(pthread_self(), options.thread_name.substr(0, 15).c_str());

    start_login();
    while (!fate) {
      take_shared();
      if (fate) break;
      send_due();
      deliver();
      if (fate) break;
      wait();
      if (!fate) check_deadlines();
    }
    end();
  }

  /// Drops the connection; only then do commands come back as unanswered.
  void end() {
    if (auto* dying = std::exchange(context, nullptr)) {
      int fd = iscsi_get_fd(dying);
      if (fd >= 0) {
        // What is still in our send buffer shall not reach the target after we gave it up.
        linger hard{1, 0};
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
      }
      iscsi_destroy_context(dying);
    }
    deliver();
    Batch unanswered;
    while (!in_flight.empty()) unanswered.push_back(land(in_flight.front(), in_flight));
    while (!cooling.empty()) unanswered.push_back(land(cooling.front(), cooling));
    for (auto& each : delayed) unanswered.push_back(std::move(each.command));
    delayed.clear();
    for (auto& each : waiting) unanswered.push_back(std::move(each));
    waiting.clear();
    {
      auto& shared = *session.shared_;
      std::lock_guard lock{shared.mutex};
      shared.ended = true;
      for (auto& each : shared.incoming) unanswered.push_back(std::move(each));
      shared.incoming.clear();
      shared.quiet = nullptr;
      shared.reset = nullptr;
    }
    quiet = nullptr;
    reset_done = nullptr;
    session.load_ = 0;
    if (logged_in)
      events.ended(*fate, std::move(unanswered));
    else
      events.connected(*fate);
  }
};

IscsiSession::IscsiSession(Options options, Events events)
    : shared_{std::make_unique<Shared>()},
      worker_{std::make_unique<Worker>(*this, std::move(options), std::move(events))} {
  worker_->thread = std::thread{[worker = worker_.get()] { worker->run(); }};
}

IscsiSession::~IscsiSession() {
  close({Errc::lun_lost, "closed"});
  worker_->thread.join();
}

bool IscsiSession::submit(std::unique_ptr<ScsiCommand>& command) {
  bool taken = false;
  shared_->tell([&] {
    if (shared_->ended || shared_->close) return;
    ++load_;
    shared_->incoming.push_back(std::move(command));
    taken = true;
  });
  return taken;
}

void IscsiSession::quiesce(Function<void()> quiet) {
  shared_->tell([&] {
    shared_->paused = true;
    if (!shared_->ended) shared_->quiet = std::move(quiet);
  });
}

void IscsiSession::reset(Function<void(Expected<void>)> answered) {
  shared_->tell([&] {
    if (!shared_->ended) shared_->reset = std::move(answered);
  });
}

void IscsiSession::resume() {
  shared_->tell([&] { shared_->paused = false; });
}

void IscsiSession::close(Error why) {
  shared_->tell([&] {
    if (!shared_->close) shared_->close = std::move(why);
  });
}

}  // namespace csv::iscsi
