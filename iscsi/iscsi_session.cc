#include "iscsi/iscsi_session.h"

#include <poll.h>
#include <sys/socket.h>
#include <time.h>

extern "C" {
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
}

#include <algorithm>
#include <deque>
#include <list>
#include <optional>

#include "csvfs/base/asio.h"
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
/// The receive buffer that is asked for, as the room it has for data. The kernel gives no more than
/// net.ipv4.tcp_rmem allows.
constexpr int kRoomAsked = 16 << 20;
/// What of the buffer counts as room: the rest is what the kernel needs to keep the data in.
constexpr int kBufferPerRoom = 3;
/// Of the deadline, what a LUN RESET may take before the target is asked whether it does anything
/// else.
constexpr int kPatienceWithReset = 10;

/// The monotonic clock: deadlines say how long a target took while we could have listened.
TimePoint monotonic_now() {
  timespec t{};
  CSV_CHECK(::clock_gettime(CLOCK_MONOTONIC, &t) == 0);
  return TimePoint{std::chrono::seconds{t.tv_sec} + std::chrono::nanoseconds{t.tv_nsec}};
}

}  // namespace

struct IscsiSession::Nexus : std::enable_shared_from_this<Nexus> {
  struct Flight {
    std::unique_ptr<ScsiCommand> command;
    Nexus* nexus = nullptr;
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

  using Timer = asio::basic_waitable_timer<std::chrono::steady_clock>;

  AsioLoop& loop;
  Options options;
  Events events;
  Counters counters;
  iscsi_context* context = nullptr;
  bool over = false;       // the connection is gone
  bool abandoned = false;  // nobody is left to be told

  bool logged_in = false;
  bool told_connected = false;
  int redirects = 0;
  TimePoint login_deadline{};
  std::optional<Error> fate;  // why it ends, once it does
  bool paused = false;
  Function<void()> quiet;
  Function<void(Expected<void>)> reset_done;
  Function<void()> reset_is_slow;
  bool reset_sent = false;
  TimePoint reset_deadline{};
  /// Asks whether the target executes commands while a LUN RESET waits.
  struct Probe final : ScsiCommand {};
  std::optional<TimePoint> probe_due;
  bool probe_answered = false;
  /// One that was sent and not answered: libiscsi keeps a pointer to it. What comes after we have
  /// given it up is for nobody.
  struct Reset {
    Nexus* nexus;
    bool given_up = false;
  };
  std::list<Reset> resets;

  std::deque<std::unique_ptr<ScsiCommand>> waiting;
  std::deque<Delayed> delayed;  // one pause for all, so in order of time
  std::list<Flight> in_flight;  // in order of their deadlines
  std::list<Flight> spare;
  // Writes that failed while libiscsi may still have Data-Out of theirs to send: it reads them from
  // the task and the caller's buffer, so both wait here until its queue is empty.
  std::list<Flight> cooling;
  // A probe has no deadline: the reset may end it without an answer.
  std::list<Flight> probing;
  // Of the reads in flight, and how much the receive buffer surely takes.
  std::size_t reading_bytes = 0, room = kRoomAsked;
  int limit = kMostInFlight;
  int answered_since_full = 0;
  std::atomic<int> load{0};
  std::atomic<bool> registered{false};
  Batch finished;
  std::uint64_t answers = 0;
  Batch left_over;  // of a connection that is gone

  // libiscsi's socket, watched here and closed there. What waits for an earlier one is out of date.
  asio::posix::stream_descriptor socket;
  std::uint64_t sockets = 0;
  bool reading = false, writing = false;  // somebody waits for that
  Timer timer;
  std::optional<TimePoint> wakes_at;  // the timer does
  bool turn_posted = false;

  Nexus(AsioLoop& its_loop, Options its_options, Events its_events)
      : loop{its_loop},
        options{std::move(its_options)},
        events{std::move(its_events)},
        socket{its_loop.context()},
        timer{its_loop.context()} {}
  Nexus(const Nexus&) = delete;
  Nexus& operator=(const Nexus&) = delete;
  ~Nexus() { drop(); }

  // ------------------------------------------------------------------ login

  std::string library_error() {
    std::string text = context ? iscsi_get_error(context) : "out of memory";
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ' || text.back() == '.'))
      text.pop_back();
    return text;
  }

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
    if (iscsi_connect_async(context, portal, &Nexus::connected, this) != 0)
      lose("connect: " + library_error());
  }

  static void connected(iscsi_context*, int status, void*, void* self) {
    auto& nexus = *static_cast<Nexus*>(self);
    if (nexus.fate || nexus.logged_in) return;
    if (status != SCSI_STATUS_GOOD) return nexus.lose("connect: " + nexus.library_error());
    nexus.make_room();
    if (iscsi_login_async(nexus.context, &Nexus::login_answered, self) != 0)
      nexus.lose("login: " + nexus.library_error());
  }

  /// Whoever stands still takes no answers, and a target whose socket takes no more of them waits:
  /// tgt answers nobody's LUN RESET before it has sent them all, so that no fence of anybody could
  /// succeed (docs/targets.md). So no more is asked for than the kernel takes without us.
  void make_room() {
    int fd = iscsi_get_fd(context);
    if (fd < 0) return;
    // A low-water mark makes the kernel enlarge the buffer until it can be reached. Unlike
    // SO_RCVBUF that goes as far as for any socket that reads much, and leaves it to the kernel to
    // enlarge it further.
    int asked = kRoomAsked, one = 1, size = 0;
    socklen_t length = sizeof size;
    bool set = ::setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &asked, sizeof asked) == 0;
    set = ::setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one) == 0 && set;
    if (!set || ::getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, &length) != 0) return;
    room = static_cast<std::size_t>(size) / kBufferPerRoom;
  }

  static void login_answered(iscsi_context* context, int status, void*, void* self) {
    auto& nexus = *static_cast<Nexus*>(self);
    if (nexus.fate || nexus.logged_in) return;
    if (status == SCSI_STATUS_REDIRECT) {
      const char* address = iscsi_get_target_address(context);
      if (!address || !*address || ++nexus.redirects > 3)
        return nexus.lose("the target redirects the login without end");
      std::string next = address;
      nexus.unwatch();
      iscsi_disconnect(context);
      return nexus.connect(next.c_str());
    }
    if (status != SCSI_STATUS_GOOD) return nexus.lose("login: " + nexus.library_error());
    nexus.logged_in = true;
  }

  // --------------------------------------------------------------- commands

  bool ready_to_send() const {
    return !waiting.empty() && !paused && cooling.empty() &&
           static_cast<int>(in_flight.size()) < limit && has_room_for(*waiting.front());
  }

  bool has_room_for(const ScsiCommand& command) const {
    return command.in.empty() || reading_bytes == 0 || reading_bytes + command.in.size() <= room;
  }

  void send(std::unique_ptr<ScsiCommand> command, std::list<Flight>& list) {
    auto now = monotonic_now();
    if (command->attempts++ == 0) command->give_up = now + options.deadline;
    if (spare.empty()) spare.emplace_back();
    list.splice(list.end(), spare, spare.begin());
    auto& flight = list.back();
    flight.self = std::prev(list.end());
    flight.nexus = this;
    flight.deadline = now + options.deadline;
    flight.command = std::move(command);

    auto& sent = *flight.command;
    int direction = SCSI_XFER_NONE;
    std::size_t length = 0;
    if (!sent.in.empty()) direction = SCSI_XFER_READ, length = sent.in.size();
    reading_bytes += sent.in.size();
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
    if (iscsi_scsi_command_async(context, options.lun, flight.task, &Nexus::answered, nullptr,
                                 &flight) != 0)
      lose("sending a command: " + library_error());
  }

  static void answered(iscsi_context*, int status, void*, void* data) {
    auto& flight = *static_cast<Flight*>(data);
    auto& nexus = *flight.nexus;
    // While the context is being destroyed everything is cancelled: those stay in flight, and come
    // back as unanswered.
    if (!nexus.context) return;
    ++nexus.answers;
    nexus.take_answer(flight, status);
  }

  void take_answer(Flight& flight, int status) {
    if (status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_ERROR ||
        status == SCSI_STATUS_TIMEOUT)
      return lose("the connection failed: " + library_error());

    auto& command = *flight.command;
    auto& task = *flight.task;
    // Whatever it says: it has been executed.
    if (!probing.empty() && &flight == &probing.front()) {
      probe_answered = true;
      (void)land(flight, probing);
      if (reset_sent && reset_is_slow) std::exchange(reset_is_slow, nullptr)();
      return;
    }
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
    if (scsi_status == ScsiStatus::reservation_conflict) ++counters.conflicts;
    flight.verdict = judge(scsi_status, sense, command.purpose, registered);
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
    ++counters.retries;
    auto now = monotonic_now();
    if (now >= command->give_up) {
      ++counters.timeouts;
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
    reading_bytes -= command->in.size();
    scsi_free_scsi_task(std::exchange(flight.task, nullptr));
    spare.splice(spare.begin(), list, flight.self);
    return command;
  }

  void finish(std::unique_ptr<ScsiCommand> command) {
    --load;
    finished.push_back(std::move(command));
  }

  // ------------------------------------------------------------------ reset

  void send_reset() {
    auto now = monotonic_now();
    reset_sent = true;
    reset_deadline = now + options.deadline;
    probe_due = now + options.deadline / kPatienceWithReset;
    probe_answered = false;
    resets.push_back({this});
    // Not iscsi_task_mgmt_lun_reset_async, which cancels the context's tasks.
    if (iscsi_task_mgmt_async(context, options.lun, ISCSI_TM_LUN_RESET, 0xffffffff, 0,
                              &Nexus::reset_answered, &resets.back()) != 0)
      lose("sending a LUN RESET: " + library_error());
  }

  static void reset_answered(iscsi_context*, int status, void* data, void* which) {
    auto& reset = *static_cast<Reset*>(which);
    auto& nexus = *reset.nexus;
    if (!nexus.context || nexus.fate) return;
    ++nexus.answers;
    bool late = reset.given_up;
    nexus.resets.remove_if([&](const Reset& each) { return &each == &reset; });
    if (late) return;
    if (status != SCSI_STATUS_GOOD || !data)
      return nexus.lose("LUN RESET: " + nexus.library_error());
    auto response = *static_cast<std::uint32_t*>(data);
    switch (response) {
      case ISCSI_TMR_FUNC_COMPLETE: return nexus.reset_over({});
      case ISCSI_TMR_TMF_NOT_SUPPORTED:
        return nexus.reset_over(Error{Errc::unsupported_by_target, "the target has no LUN RESET"});
      default:
        return nexus.reset_over(Error{
            std::errc::io_error, fmt::format("LUN RESET was refused with response {}", response)});
    }
  }

  void reset_over(Expected<void> result) {
    reset_sent = false;
    probe_due.reset();
    reset_is_slow = nullptr;
    auto done = std::exchange(reset_done, nullptr);
    done(std::move(result));
  }

  /// Goes out although we are paused: it is no matter whether a reset ends it.
  void send_probe() {
    probe_due.reset();
    if (!probing.empty()) return;
    auto command = std::make_unique<Probe>();
    command->cdb = test_unit_ready_cdb();
    command->purpose = ScsiPurpose::question;
    send(std::move(command), probing);
  }

  void reset_overdue() {
    ++counters.timeouts;
    if (!probe_answered) return lose("no answer to a LUN RESET within the deadline");
    resets.back().given_up = true;
    reset_over(Error{
        Errc::reset_unanswered,
        fmt::format(
            "{}: the target executes commands, but has not answered a LUN RESET for {} ms",
            options.portal,
            std::chrono::duration_cast<std::chrono::milliseconds>(options.deadline).count())});
  }

  // ------------------------------------------------------------------- loop

  void service(int revents) {
    if (iscsi_service(context, revents) != 0) lose(library_error());
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
      send(std::move(next), in_flight);
    }
    if (fate) return;
    if (paused && in_flight.empty() && cooling.empty()) {
      if (quiet) std::exchange(quiet, nullptr)();
      if (reset_done && !reset_sent) send_reset();
    }
    // Most often the socket has room: no need to ask poll() first.
    if (!fate && (iscsi_which_events(context) & POLLOUT)) service(POLLOUT);
  }

  void check_deadlines() {
    auto now = monotonic_now();
    if (!logged_in && now >= login_deadline) lose("no login within the deadline");
    if ((!in_flight.empty() && now >= in_flight.front().deadline) ||
        (!cooling.empty() && now >= cooling.front().deadline)) {
      ++counters.timeouts;
      lose(fmt::format(
          "no answer to a command within {} ms",
          std::chrono::duration_cast<std::chrono::milliseconds>(options.deadline).count()));
    }
    if (fate) return;
    if (probe_due && now >= *probe_due) send_probe();
    if (reset_sent && now >= reset_deadline) reset_overdue();
  }

  std::optional<TimePoint> next_due() const {
    std::optional<TimePoint> due;
    auto consider = [&](TimePoint at) { due = due ? std::min(*due, at) : at; };
    if (!logged_in) consider(login_deadline);
    if (!in_flight.empty()) consider(in_flight.front().deadline);
    if (!cooling.empty()) consider(cooling.front().deadline);
    if (!delayed.empty()) consider(delayed.front().due);
    if (probe_due) consider(*probe_due);
    if (reset_sent) consider(reset_deadline);
    return due;
  }

  /// What there is to do between two events of the loop. Afterwards this may be all that is left.
  void turn() {
    auto self = shared_from_this();
    if (over) return;
    send_due();
    if (!fate && logged_in && !std::exchange(told_connected, true)) events.connected({});
    // Whoever is told may submit more, or destroy the session.
    if (!over && !finished.empty()) events.answered(std::exchange(finished, {}));
    if (over) return;
    if (fate) return end();
    watch();
  }

  void submit(std::unique_ptr<ScsiCommand> command) {
    if (over || fate) {
      loop.post([self = shared_from_this(), command = std::move(command)]() mutable {
        if (!self->abandoned) self->events.refused(std::move(command));
      });
      return;
    }
    waiting.push_back(std::move(command));
    // Sent at once, but what that brings is told from the loop.
    send_due();
    if (fate || !finished.empty()) return turn_later();
    watch();
  }

  void turn_later() {
    if (std::exchange(turn_posted, true)) return;
    loop.post([self = shared_from_this()] {
      self->turn_posted = false;
      self->turn();
    });
  }

  /// Sees to it that the next thing that happens is heard of.
  void watch() {
    int fd = iscsi_get_fd(context);
    if (fd < 0) {
      lose("the connection is gone: " + library_error());
      return turn_later();
    }
    if (!socket.is_open()) {
      socket.assign(fd);
      ++sockets;
    }
    if (!std::exchange(reading, true)) wait_for(asio::posix::stream_descriptor::wait_read);
    if ((iscsi_which_events(context) & POLLOUT) && !std::exchange(writing, true))
      wait_for(asio::posix::stream_descriptor::wait_write);
    set_timer();
  }

  void wait_for(asio::posix::stream_descriptor::wait_type what) {
    socket.async_wait(what, [this, self = shared_from_this(), what,
                             of = sockets](boost::system::error_code error) {
      if (error || over || of != sockets) return;
      bool read = what == asio::posix::stream_descriptor::wait_read;
      (read ? reading : writing) = false;
      if (!logged_in)
        look();
      else if (read)
        receive();
      turn();  // sends, too
    });
  }

  void unwatch() {
    ++sockets;
    reading = writing = false;
    if (socket.is_open()) (void)socket.release();
  }

  void receive() {
    auto before = answers;
    service(POLLIN);
    // Nothing came of it: part of an answer, or the end of the connection.
    if (answers == before && !fate) look();
  }

  /// Asks what is up with the socket, and acts.
  void look() {
    int fd = iscsi_get_fd(context);
    if (fd < 0) return lose("the connection is gone: " + library_error());
    pollfd asked{fd, static_cast<short>(iscsi_which_events(context) | POLLRDHUP), 0};
    if (::poll(&asked, 1, 0) <= 0) return;
    auto revents = asked.revents;
    if (revents & (POLLIN | POLLOUT)) service(revents & (POLLIN | POLLOUT));
    // What had been answered before the target hung up is known; the rest is not.
    if (!fate && (revents & (POLLRDHUP | POLLHUP | POLLERR)) && logged_in)
      lose("the target closed the connection");
    else if (!fate && (revents & (POLLHUP | POLLERR)))
      service(revents);
  }

  /// The timer is left as it is while it comes early enough, so that a command costs none.
  void set_timer() {
    auto due = next_due();
    if (!due || (wakes_at && *wakes_at <= *due)) return;
    wakes_at = due;
    timer.expires_at(*due);
    timer.async_wait([this, self = shared_from_this()](boost::system::error_code error) {
      if (error || over) return;
      wakes_at = std::nullopt;
      // It may have been we who did not listen.
      look();
      if (!fate) check_deadlines();
      turn();
    });
  }

  /// Drops the connection. Nothing is sent from or received into a buffer any more.
  void drop() {
    over = true;
    unwatch();
    timer.cancel();
    auto* dying = std::exchange(context, nullptr);
    if (!dying) return;
    int fd = iscsi_get_fd(dying);
    if (fd >= 0) {
      // What is still in our send buffer shall not reach the target after we gave it up.
      linger hard{1, 0};
      ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    iscsi_destroy_context(dying);
    while (!in_flight.empty()) left_over.push_back(land(in_flight.front(), in_flight));
    while (!cooling.empty()) left_over.push_back(land(cooling.front(), cooling));
    while (!probing.empty()) (void)land(probing.front(), probing);
    for (auto& each : delayed) left_over.push_back(std::move(each.command));
    delayed.clear();
    for (auto& each : waiting) left_over.push_back(std::move(each));
    waiting.clear();
    load = 0;
  }

  /// Only once the connection is gone do commands come back as unanswered.
  void end() {
    drop();
    quiet = nullptr;
    reset_done = nullptr;
    reset_is_slow = nullptr;
    if (told_connected)
      events.ended(*fate, std::exchange(left_over, {}));
    else
      events.connected(*fate);
  }
};

template <typename Work>
void IscsiSession::at_loop(Work work) {
  if (nexus_->loop.here()) return work(*nexus_);
  nexus_->loop.post([nexus = nexus_, work = std::move(work)]() mutable {
    if (!nexus->abandoned) work(*nexus);
  });
}

IscsiSession::IscsiSession(AsioLoop& loop, Options options, Events events)
    : nexus_{std::make_shared<Nexus>(loop, std::move(options), std::move(events))} {
  at_loop([](Nexus& nexus) {
    nexus.start_login();
    nexus.turn_later();
  });
}

IscsiSession::~IscsiSession() {
  nexus_->abandoned = true;
  nexus_->drop();
  nexus_->left_over.clear();
  nexus_->finished.clear();
}

void IscsiSession::submit(std::unique_ptr<ScsiCommand> command) {
  ++nexus_->load;
  at_loop(
      [command = std::move(command)](Nexus& nexus) mutable { nexus.submit(std::move(command)); });
}

int IscsiSession::load() const { return nexus_->load; }
void IscsiSession::set_registered(bool registered) { nexus_->registered = registered; }
bool IscsiSession::registered() const { return nexus_->registered; }
const IscsiSession::Counters& IscsiSession::counters() const { return nexus_->counters; }

void IscsiSession::quiesce(Function<void()> quiet) {
  at_loop([quiet = std::move(quiet)](Nexus& nexus) mutable {
    if (nexus.over) return;
    nexus.paused = true;
    nexus.quiet = std::move(quiet);
    nexus.turn_later();
  });
}

void IscsiSession::reset(Function<void(Expected<void>)> answered, Function<void()> is_slow) {
  at_loop([answered = std::move(answered), is_slow = std::move(is_slow)](Nexus& nexus) mutable {
    if (nexus.over) return;
    nexus.reset_done = std::move(answered);
    nexus.reset_is_slow = std::move(is_slow);
    nexus.turn_later();
  });
}

void IscsiSession::resume() {
  at_loop([](Nexus& nexus) {
    nexus.paused = false;
    nexus.turn_later();
  });
}

void IscsiSession::close(Error why) {
  at_loop([why = std::move(why)](Nexus& nexus) mutable {
    if (!nexus.fate) nexus.fate = std::move(why);
    nexus.turn_later();
  });
}

}  // namespace csv::iscsi
