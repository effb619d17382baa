#include "iscsi/iscsi_lun.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <optional>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"
#include "csvfs/base/random.h"
#include "csvfs/base/task.h"
#include "iscsi/iscsi_session.h"
#include "iscsi/lun_range.h"
#include "iscsi/target_profile.h"

namespace csv::iscsi {
namespace {

/// Larger requests are cut here at the latest, so that sessions share them.
constexpr std::uint64_t kMostTransfer = 1 << 20;
/// To a target that pings its initiators no write is larger, so that where the target takes as much
/// with a command (docs/targets.md) nothing follows it: libiscsi loses the connection when it has
/// to answer a ping while it has more of an accepted write to send.
constexpr std::uint64_t kMostWithCommand = 256 << 10;
/// Reads and writes of up to this many bytes go to the home loop's own session while it has less
/// than this many commands.
constexpr std::uint64_t kSmall = 64 << 10;
constexpr int kSmallAtOnce = 16;
/// Bounds on how long one command keeps the target busy: they must end well within the deadline.
constexpr std::uint64_t kMostWriteSame = 16 << 20;
constexpr std::uint64_t kMostUnmap = 1 << 30;
/// Commands of one write_zeroes() or unmap() that are under way together.
constexpr int kPiecesAtOnce = 8;

/// What zeros are written from. Never changed.
std::span<const std::byte> zeroes() {
  static const std::vector<std::byte> bytes(kMostTransfer);
  return bytes;
}

/// A caller's request: the parts it was cut into, and whom to answer when the last has come back.
struct Request {
  int left = 0;
  Error error;  // of the part whose says most (scsi.h)
  Done done;
};

/// One command of a request.
struct Part final : ScsiCommand {
  std::shared_ptr<Request> request;
  std::vector<std::byte> parameters;  // where `out` needs a place to live
};

/// One command somebody waits for by itself.
struct Single final : ScsiCommand {
  Function<void(Expected<std::size_t>)> done;
  std::vector<std::byte> parameters;
};

}  // namespace

/// Lives as long as the Lun, or longer by what is queued on the home loop. Unless a member says
/// otherwise, home loop only.
class IscsiLun::State final : public ScsiAsker, public std::enable_shared_from_this<State> {
 public:
  State(AsioLoop& its_home, IscsiAddress its_address, LunOptions its_options)
      : home{its_home}, address{std::move(its_address)}, options{std::move(its_options)} {}

  // ---------------------------------------------------------------- opening

  using Opened = Function<void(Expected<std::unique_ptr<Lun>>)>;

  void open(Opened done) {
    opened = std::move(done);
    // tgt ends the older session of an ISID only where CHAP is used, and then never answers what
    // was being executed for it, nor any LUN RESET after that (docs/targets.md). A fence ends it
    // without that.
    bool chap = !options.chap_user.empty() || !address.chap_user.empty();
    seed = options.isid_seed && !chap ? options.isid_seed : Random::from_system().next();
    connect();
  }

  /// What a session calls itself.
  std::string initiator(int session) const {
    if (!name_is_nexus || (options.role.empty() && options.sessions == 1)) return options.initiator;
    return fmt::format("{}:{}.{}", options.initiator,
                       options.role.empty() ? "session" : options.role, session);
  }

  void connect() {
    for (int i = 0; i < std::max(1, options.sessions); ++i) {
      IscsiSession::Options one;
      one.initiator = initiator(i);
      one.target = address.target;
      one.portal = address.portals[static_cast<std::size_t>(i) % address.portals.size()];
      one.lun = address.lun;
      // 32 bits say who we are, 8 which of our sessions this is.
      one.isid = (Random{seed}.next() & 0xffff'ffff) << 8 | static_cast<std::uint64_t>(i & 0xff);
      one.chap_user = options.chap_user.empty() ? address.chap_user : options.chap_user;
      one.chap_secret = options.chap_user.empty() ? address.chap_secret : options.chap_secret;
      one.header_digest = options.header_digest;
      one.deadline = options.deadline;
      if (i > 0)
        threads.emplace_back(std::make_unique<AsioLoop>())->start(fmt::format("iscsi{}", i));
      auto& loop = i == 0 ? home : *threads.back();
      sessions.push_back(std::make_unique<IscsiSession>(loop, std::move(one), events(i == 0)));
    }
  }

  /// What a session tells, brought to the home loop if it is not there.
  IscsiSession::Events events(bool lives_here) {
    auto bring = [lives_here, self = shared_from_this()](auto work) {
      if (lives_here) return work();
      self->home.post(std::move(work));
    };
    IscsiSession::Events events;
    events.connected = [bring, this](Expected<void> result) {
      bring([this, self = shared_from_this(), result = std::move(result)] {
        session_connected(result);
      });
    };
    events.answered = [bring, this](IscsiSession::Batch batch) {
      bring([this, self = shared_from_this(), batch = std::move(batch)] { answered(batch); });
    };
    events.refused = [bring, this](std::unique_ptr<ScsiCommand> command) {
      bring([this, self = shared_from_this(), command = std::move(command)]() mutable {
        refused(std::move(command));
      });
    };
    events.ended = [bring, this](Error why, IscsiSession::Batch batch) {
      bring([this, self = shared_from_this(), why = std::move(why),
             batch = std::move(batch)]() mutable {
        session_ended(std::move(why), std::move(batch));
      });
    };
    return events;
  }

  void session_connected(const Expected<void>& result) {
    if (destroyed || !opened) return;
    if (!result) return opening_failed(result.error());
    if (++connected < static_cast<int>(sessions.size())) return;
    tasks.emplace();
    tasks->spawn(find_out());
  }

  Task<void> find_out() {
    auto found = co_await describe_lun(*this);
    if (!found) {
      home.post([self = shared_from_this(), why = found.error()] { self->opening_failed(why); });
      co_return;
    }
    lun = std::move(*found);
    if (lun.profile.name_is_nexus && !name_is_nexus) {
      home.post([self = shared_from_this()] { self->connect_by_own_names(); });
      co_return;
    }
    settle_limits();
    home.post([self = shared_from_this()] { self->opening_succeeded(); });
  }

  /// Again, now that we know that each session needs a name of its own.
  void connect_by_own_names() {
    if (destroyed || !opened) return;
    name_is_nexus = true;
    if (options.isid_seed) seed = options.isid_seed;
    if (initiator(0) == options.initiator) {
      settle_limits();
      return opening_succeeded();
    }
    drop_sessions();
    connected = 0;
    connect();
  }

  void settle_limits() {
    auto& profile = lun.profile;
    auto limit = [&](std::uint64_t named, std::uint64_t most) {
      auto bytes = named == 0 ? most : std::min(named, most);
      return std::max<std::uint64_t>(bytes / lun.geometry.block_size, 1) * lun.geometry.block_size;
    };
    bool pings = profile.name_is_nexus;  // LIO
    profile.max_transfer = limit(profile.max_transfer, pings ? kMostWithCommand : kMostTransfer);
    profile.max_write_same = limit(profile.max_write_same, kMostWriteSame);
    profile.max_unmap = limit(profile.max_unmap, kMostUnmap);
    write_same_works = profile.write_same;
    unmap_works = profile.unmap;
    if (options.write_cache_safe) {
      profile.write_cache = false;
      lun.cache_known = true;
    }
  }

  void opening_succeeded() {
    if (destroyed || !opened) return;
    log::info(
        "lun open target={} lun={} identity={} size={} block={} sessions={} write_cache={} fua={} "
        "initiator={}",
        address.target, address.lun, lun.profile.identity, lun.geometry.size_bytes(),
        lun.geometry.block_size, sessions.size(), lun.profile.write_cache, lun.profile.fua,
        initiator(0));
    auto done = std::exchange(opened, nullptr);
    done(std::unique_ptr<Lun>{new IscsiLun{shared_from_this()}});
  }

  void opening_failed(const Error& why) {
    if (destroyed || !opened) return;
    auto done = std::exchange(opened, nullptr);
    auto self = shared_from_this();
    destroy();
    auto where = fmt::format("opening LUN {} of {}", address.lun, address.target);
    if (initiator(0) != options.initiator) where += " as " + initiator(0);
    done(why.within(where));
  }

  void drop_sessions() {
    tasks.reset();
    for (auto& each : threads) each->join();
    sessions.clear();
    threads.clear();
  }

  void destroy() {
    destroyed = true;
    drop_sessions();
    unanswered.clear();
    controls.clear();
  }

  // --------------------------------------------------------------- commands

  /// Any thread: runs `work` on the home loop, at once if that is here.
  template <typename Work>
  void at_home(Work work) {
    if (home.here()) return work();
    home.post([self = shared_from_this(), work = std::move(work)]() mutable {
      if (!self->destroyed) work();
    });
  }

  IscsiSession& session_for(std::uint64_t length) {
    auto* first = sessions.front().get();
    if (length <= kSmall && first->load() < kSmallAtOnce) return *first;
    auto* best = sessions.back().get();
    for (auto& each : sessions)
      if (each->load() < best->load()) best = each.get();
    return *best;
  }

  /// The command then comes back with those that were under way.
  void refused(std::unique_ptr<ScsiCommand> command) {
    if (destroyed) return;
    unanswered.push_back(std::move(command));
    answer_if_all_dropped();
  }

  void answered(const IscsiSession::Batch& batch) {
    for (auto& command : batch) {
      if (destroyed) return;
      answer(*command);
    }
  }

  void answer(ScsiCommand& command) {
    if (auto* part = dynamic_cast<Part*>(&command)) {
      auto& request = *part->request;
      if (!part->result && outweighs(part->result.error(), request.error))
        request.error = part->result.error();
      if (--request.left > 0) return;
      auto keep = part->request;
      keep->done(keep->error.code() ? Expected<void>{keep->error} : Expected<void>{});
    } else if (auto* single = dynamic_cast<Single*>(&command)) {
      if (single->result)
        single->done(single->received);
      else
        single->done(single->result.error());
    }
  }

  /// Any thread. Tasks answer so too: whoever is answered may destroy the Lun, and with it the
  /// task.
  void answer_later(Done done, Expected<void> result) {
    home.post(
        [self = shared_from_this(), done = std::move(done), result = std::move(result)]() mutable {
          if (!self->destroyed) done(std::move(result));
        });
  }

  void ask(Question question, Function<void(Expected<std::size_t>)> done) override {
    ask_session(*sessions.front(), question, std::move(done));
  }

  void ask_session(IscsiSession& session, const Question& question,
                   Function<void(Expected<std::size_t>)> done) {
    auto command = std::make_unique<Single>();
    command->cdb = question.cdb;
    command->in = question.in;
    command->parameters.assign(question.out.begin(), question.out.end());
    command->out = command->parameters;
    command->purpose = question.purpose;
    command->done = std::move(done);
    session.submit(std::move(command));
  }

  /// Sends `length` bytes of something in parts; `fill` makes each, by its place in it.
  template <typename Fill>
  void submit_parts(std::uint64_t length, std::uint64_t most, Done done, Fill&& fill) {
    auto request = std::make_shared<Request>();
    request->left = static_cast<int>((length + most - 1) / most);
    request->done = std::move(done);
    for (std::uint64_t at = 0; at < length; at += most) {
      auto part = std::make_unique<Part>();
      part->request = request;
      auto size = std::min(most, length - at);
      fill(*part, at, size);
      session_for(size).submit(std::move(part));
    }
  }

  std::uint64_t lba(std::uint64_t offset) const { return offset / lun.geometry.block_size; }
  std::uint32_t blocks(std::uint64_t length) const {
    return static_cast<std::uint32_t>(length / lun.geometry.block_size);
  }

  // ------------------------------------------------------------------ flush

  /// At most one flush runs and one waits: a flush that starts after my writes were answered serves
  /// me, whoever asked for it.
  void flush(Done done) {
    flush_waiting.push_back(std::move(done));
    if (!flush_running) start_flush();
  }

  void start_flush() {
    flush_running = true;
    auto serves = std::exchange(flush_waiting, {});
    auto part = std::make_unique<Part>();
    part->request = std::make_shared<Request>();
    part->request->left = 1;
    part->request->done = [this, serves = std::move(serves)](Expected<void> result) mutable {
      flush_running = false;
      if (!flush_waiting.empty()) start_flush();
      for (auto& each : serves) {
        if (destroyed) return;
        each(result);
      }
    };
    part->cdb = synchronize_cache_cdb();
    part->purpose = ScsiPurpose::flush;
    session_for(0).submit(std::move(part));
  }

  // -------------------------------------------------------- zeros and unmap

  Task<Expected<void>> write_same_pieces(std::uint64_t offset, std::uint64_t length) {
    auto block = zeroes().first(lun.geometry.block_size);
    co_return co_await in_groups(offset, length, lun.profile.max_write_same,
                                 [&](Part& part, std::uint64_t at, std::uint64_t size) {
                                   part.cdb = write_same_cdb(lba(at), blocks(size));
                                   part.out = block;
                                 });
  }

  Task<Expected<void>> zero_pieces(std::uint64_t offset, std::uint64_t length) {
    co_return co_await in_groups(offset, length, lun.profile.max_transfer,
                                 [&](Part& part, std::uint64_t at, std::uint64_t size) {
                                   part.cdb = write_cdb(lba(at), blocks(size), false);
                                   part.out = zeroes().first(size);
                                 });
  }

  Task<Expected<void>> unmap_pieces(std::uint64_t offset, std::uint64_t length) {
    co_return co_await in_groups(
        offset, length, lun.profile.max_unmap,
        [&](Part& part, std::uint64_t at, std::uint64_t size) {
          std::array range{BlockRange{lba(at), blocks(size)}};
          part.parameters = unmap_parameters(range);
          part.cdb = unmap_cdb(static_cast<std::uint16_t>(part.parameters.size()));
          part.out = part.parameters;
          part.purpose = ScsiPurpose::data;
        });
  }

  /// A long range, piece after piece, a few at once.
  Task<Expected<void>> in_groups(std::uint64_t offset, std::uint64_t length, std::uint64_t most,
                                 Function<void(Part&, std::uint64_t, std::uint64_t)> fill) {
    while (length > 0) {
      auto now = std::min(length, most * kPiecesAtOnce);
      auto result = co_await completion<Expected<void>>([&](auto done) {
        submit_parts(now, most, std::move(done),
                     [&](Part& part, std::uint64_t at, std::uint64_t size) {
                       fill(part, offset + at, size);
                     });
      });
      if (!result) co_return result.error();
      offset += now;
      length -= now;
    }
    co_return Expected<void>{};
  }

  Task<void> write_zeroes(std::uint64_t offset, std::uint64_t length, Done done) {
    if (write_same_works) {
      auto result = co_await write_same_pieces(offset, length);
      if (result || result.error() != Errc::unsupported_by_target) {
        answer_later(std::move(done), std::move(result));
        co_return;
      }
      log::info("lun has no WRITE SAME, zeros are written lun={}", lun.profile.identity);
      write_same_works = false;
    }
    auto result = co_await zero_pieces(offset, length);
    answer_later(std::move(done), std::move(result));
  }

  Task<void> unmap(std::uint64_t offset, std::uint64_t length, Done done) {
    auto result = co_await unmap_pieces(offset, length);
    if (!result && result.error() == Errc::unsupported_by_target) {
      unmap_works = false;
      result = {};
    }
    answer_later(std::move(done), std::move(result));
  }

  // ----------------------------------------------------------- reservations

  Task<Expected<std::size_t>> reserve_out(IscsiSession& session, ReserveOut action, Key key,
                                          Key action_key, ReservationType type) {
    bool registers = action == ReserveOut::register_key ||
                     action == ReserveOut::register_and_ignore_existing_key;
    auto parameters = reserve_out_parameters(key, action_key, registers && lun.profile.aptpl);
    Question question;
    question.cdb = reserve_out_cdb(action, type);
    question.out = parameters;
    question.purpose = action == ReserveOut::preempt || action == ReserveOut::preempt_and_abort
                           ? ScsiPurpose::preempt
                       : registers ? ScsiPurpose::registration
                                   : ScsiPurpose::reservation;
    co_return co_await completion<Expected<std::size_t>>(
        [&](auto done) { ask_session(session, question, std::move(done)); });
  }

  Task<void> register_all(Key key, Done done) {
    for (auto& session : sessions) {
      // Before an unregistration takes effect, not after: what is refused meanwhile was not fenced.
      if (raw(key) == 0) session->set_registered(false);
      auto result = co_await reserve_out(*session, ReserveOut::register_and_ignore_existing_key,
                                         Key{}, key, ReservationType::none);
      if (!result) {
        answer_later(std::move(done), result.error().within("registering a key"));
        co_return;
      }
      session->set_registered(raw(key) != 0);
    }
    Expected<void> known;
    if (raw(key) != 0) known = co_await complete_description();
    answer_later(std::move(done), std::move(known));
  }

  /// What a reservation kept us from asking for, now that it may not any more.
  Task<Expected<void>> complete_description() {
    if (lun.complete()) co_return Expected<void>{};
    bool sized = lun.geometry.known();
    CSV_CO_CHECK(co_await ask_again(*this, lun));
    if (!sized) settle_limits();
    co_return Expected<void>{};
  }

  Task<void> register_exactly(Key existing, Key key, Done done) {
    auto& session = *sessions.front();
    auto result = co_await reserve_out(session, ReserveOut::register_key, existing, key,
                                       ReservationType::none);
    if (result) session.set_registered(raw(key) != 0);
    answer_later(std::move(done), result ? Expected<void>{} : Expected<void>{result.error()});
  }

  Task<void> reserve_command(ReserveOut action, Key mine, Key other, ReservationType type,
                             Done done) {
    std::vector<bool> before;
    if (action == ReserveOut::clear) {
      // Our own nexuses lose their registrations too; that is not a fence.
      for (auto& each : sessions) {
        before.push_back(each->registered());
        each->set_registered(false);
      }
    }
    auto result = co_await reserve_out(*sessions.front(), action, mine, other, type);
    if (!result && action == ReserveOut::clear)
      for (std::size_t i = 0; i < sessions.size(); ++i) sessions[i]->set_registered(before[i]);
    if (result && !lun.geometry.known()) (void)co_await complete_description();
    answer_later(std::move(done), result ? Expected<void>{} : Expected<void>{result.error()});
  }

  /// The whole answer to a PERSISTENT RESERVE IN, however long.
  Task<Expected<std::vector<std::byte>>> reserve_in(ReserveIn action) {
    std::size_t allocation = 4096;
    while (true) {
      std::vector<std::byte> answer(allocation);
      Question question;
      question.cdb = reserve_in_cdb(action, static_cast<std::uint16_t>(allocation));
      question.in = answer;
      question.purpose = ScsiPurpose::question;
      auto got = co_await completion<Expected<std::size_t>>(
          [&](auto done) { ask_session(*sessions.front(), question, std::move(done)); });
      if (!got) co_return got.error();
      answer.resize(std::min(*got, allocation));
      constexpr std::size_t kLargest = 0xfff8;
      auto whole =
          action == ReserveIn::report_capabilities ? answer.size() : reserve_in_length(answer);
      if (whole <= allocation || allocation == kLargest) co_return answer;
      allocation = kLargest;
    }
  }

  Task<void> report_capabilities(Function<void(Expected<ReservationCapabilities>)> done) {
    auto answer = co_await reserve_in(ReserveIn::report_capabilities);
    auto parsed =
        answer ? parse_capabilities(*answer) : Expected<ReservationCapabilities>{answer.error()};
    if (parsed) leave_out_broken_types(lun.profile, *parsed);
    home.post(
        [self = shared_from_this(), done = std::move(done), parsed = std::move(parsed)]() mutable {
          if (!self->destroyed) done(std::move(parsed));
        });
  }

  template <typename T>
  Task<void> read_reservations(ReserveIn action, Expected<T> (*parse)(std::span<const std::byte>),
                               Function<void(Expected<T>)> done) {
    auto answer = co_await reserve_in(action);
    Expected<T> parsed = answer ? parse(*answer) : Expected<T>{answer.error()};
    home.post(
        [self = shared_from_this(), done = std::move(done), parsed = std::move(parsed)]() mutable {
          if (!self->destroyed) done(std::move(parsed));
        });
  }

  // ------------------------------------------------------------------ reset

  /// Waits for something that a session will say, or for the end of the Lun.
  template <typename Start>
  Task<Expected<void>> control(Start start) {
    auto id = next_control++;
    co_return co_await completion<Expected<void>>([&](auto done) {
      controls.emplace(id, std::move(done));
      start([self = shared_from_this(), id](Expected<void> result) {
        self->home.post([self, id, result = std::move(result)]() mutable {
          self->control_answered(id, std::move(result));
        });
      });
    });
  }

  void control_answered(std::uint64_t id, Expected<void> result) {
    auto found = controls.find(id);
    if (destroyed || found == controls.end()) return;
    auto done = std::move(found->second);
    controls.erase(found);
    done(std::move(result));
  }

  Task<Expected<void>> reset_once() {
    auto quiet = co_await control([this](auto said) {
      // The last of the sessions to be quiet says so.
      struct Waiting {
        std::atomic<std::size_t> left;
        Function<void(Expected<void>)> said;
      };
      auto waiting = std::make_shared<Waiting>();
      waiting->left = sessions.size();
      waiting->said = std::move(said);
      for (auto& each : sessions)
        each->quiesce([waiting] {
          if (--waiting->left == 0) waiting->said({});
        });
    });
    if (!quiet) co_return quiet.error();
    co_return co_await control([this](auto said) {
      sessions.front()->reset(std::move(said), [self = shared_from_this()] {
        self->home.post([self] {
          if (!self->destroyed && !self->fate) self->resume_all();
        });
      });
    });
  }

  void resume_all() {
    for (auto& each : sessions) each->resume();
  }

  /// Resets come one after the other, each with all our own commands held back or answered, because
  /// whether a target answers those that its reset ends differs from target to target.
  Task<void> reset(Done done) {
    while (resetting) co_await reset_ended.wait();
    if (fate) {
      answer_later(std::move(done), *fate);
      co_return;
    }
    resetting = true;
    auto result = co_await reset_once();
    resume_all();
    resetting = false;
    reset_ended.notify();
    answer_later(std::move(done), std::move(result));
  }

  // -------------------------------------------------------------------- end

  void session_ended(Error why, IscsiSession::Batch batch) {
    if (destroyed) return;
    for (auto& each : batch) unanswered.push_back(std::move(each));
    ++dropped;
    if (opened) return opening_failed(why);
    if (!fate) {
      fate = std::move(why);
      if (!closed)
        log::warning("lun lost identity={} why=\"{}\"", lun.profile.identity, fate->message());
      for (auto& each : sessions) each->close(*fate);
    }
    answer_if_all_dropped();
  }

  void answer_if_all_dropped() {
    if (dropped < static_cast<int>(sessions.size())) return;
    auto self = shared_from_this();  // what is answered may destroy the Lun
    for (auto& each : std::exchange(unanswered, {})) {
      if (destroyed) return;
      each->result = *fate;
      answer(*each);
    }
    while (!destroyed && !controls.empty()) control_answered(controls.begin()->first, *fate);
    if (destroyed || closed || !lost_handler) return;
    auto handler = std::exchange(lost_handler, nullptr);
    handler(*fate);
  }

  void on_lost(Function<void(Error)> handler) {
    lost_handler = std::move(handler);
    if (fate) answer_if_all_dropped();
  }

  // Any thread: nothing here changes once the Lun is open, but for the atomics, and what `lun`
  // lacks until a key has been registered.
  AsioLoop& home;
  const IscsiAddress address;
  const LunOptions options;
  LunDescription lun;
  std::vector<std::unique_ptr<AsioLoop>> threads;  // of all sessions but the first
  std::vector<std::unique_ptr<IscsiSession>> sessions;
  std::atomic<bool> write_same_works{false}, unmap_works{false}, closed{false};
  struct {
    std::atomic<std::uint64_t> reads{0}, read_bytes{0}, writes{0}, write_bytes{0}, flushes{0},
        zeroes{0}, unmaps{0};
  } counts;

  // Home loop.
  bool destroyed = false;
  Opened opened;
  std::uint64_t seed = 0;  // of the ISIDs
  bool name_is_nexus = false;
  int connected = 0;
  std::optional<Error> fate;
  int dropped = 0;
  IscsiSession::Batch unanswered;
  Function<void(Error)> lost_handler;
  bool flush_running = false;
  std::vector<Done> flush_waiting;
  std::map<std::uint64_t, Completion<Expected<void>>::Done> controls;
  std::uint64_t next_control = 1;
  bool resetting = false;
  Signal reset_ended{home};
  std::optional<TaskScope> tasks;  // last: its tasks use all of the above
};

void IscsiLun::open(AsioLoop& home, IscsiAddress address, LunOptions options,
                    Function<void(Expected<std::unique_ptr<Lun>>)> done) {
  auto refuse = [&](std::string why) {
    home.post([done = std::move(done), why = Error{Errc::refused, std::move(why)}]() mutable {
      done(why);
    });
  };
  if (options.data_digest)
    return refuse(
        "data digests are not available over libiscsi: use a header digest, or a local device");
  if (options.sessions < 1 || options.sessions > 32)
    return refuse(fmt::format("{} sessions to a LUN; 1 to 32 are possible", options.sessions));
  auto state = std::make_shared<State>(home, std::move(address), std::move(options));
  home.post([state, done = std::move(done)]() mutable { state->open(std::move(done)); });
}

IscsiLun::IscsiLun(std::shared_ptr<State> state) : state_{std::move(state)} {}
IscsiLun::~IscsiLun() { state_->destroy(); }

const Geometry& IscsiLun::geometry() const { return state_->lun.geometry; }
const TargetProfile& IscsiLun::profile() const { return state_->lun.profile; }

LunCounters IscsiLun::counters() const {
  auto& counts = state_->counts;
  LunCounters sum{.reads = counts.reads,
                  .read_bytes = counts.read_bytes,
                  .writes = counts.writes,
                  .write_bytes = counts.write_bytes,
                  .flushes = counts.flushes,
                  .zeroes = counts.zeroes,
                  .unmaps = counts.unmaps};
  for (auto& each : state_->sessions) {
    sum.retries += each->counters().retries;
    sum.conflicts += each->counters().conflicts;
    sum.timeouts += each->counters().timeouts;
  }
  return sum;
}

void IscsiLun::on_lost(Function<void(Error)> handler) {
  state_->home.post([state = state_, handler = std::move(handler)]() mutable {
    if (!state->destroyed) state->on_lost(std::move(handler));
  });
}

void IscsiLun::close() {
  if (state_->closed.exchange(true)) return;
  state_->home.post([state = state_] {
    // None is left if it was destroyed.
    for (auto& each : state->sessions) each->close({Errc::lun_lost, "the LUN was closed"});
  });
}

void IscsiLun::read(std::uint64_t offset, std::span<std::byte> out, Done done) {
  auto& state = *state_;
  auto valid = check_range(state.lun.geometry, "a read", offset, out.size());
  if (!valid || out.empty()) return state.answer_later(std::move(done), std::move(valid));
  ++state.counts.reads;
  state.counts.read_bytes += out.size();
  state.at_home([&state, offset, out, done = std::move(done)]() mutable {
    state.submit_parts(out.size(), state.lun.profile.max_transfer, std::move(done),
                       [&](Part& part, std::uint64_t at, std::uint64_t size) {
                         part.cdb = read_cdb(state.lba(offset + at), state.blocks(size));
                         part.in = out.subspan(at, size);
                       });
  });
}

void IscsiLun::write(std::uint64_t offset, std::span<const std::byte> data, WriteOptions options,
                     Done done) {
  auto& state = *state_;
  auto valid = check_range(state.lun.geometry, "a write", offset, data.size());
  if (!valid || data.empty()) return state.answer_later(std::move(done), std::move(valid));
  ++state.counts.writes;
  state.counts.write_bytes += data.size();
  bool fua = options.fua && state.lun.profile.write_cache;
  if (fua && !state.lun.profile.fua) {
    fua = false;
    done = [state = state_, done = std::move(done)](Expected<void> written) mutable {
      if (!written) return done(std::move(written));
      state->flush(std::move(done));
    };
  }
  state.at_home([&state, offset, data, fua, done = std::move(done)]() mutable {
    state.submit_parts(data.size(), state.lun.profile.max_transfer, std::move(done),
                       [&](Part& part, std::uint64_t at, std::uint64_t size) {
                         part.cdb = write_cdb(state.lba(offset + at), state.blocks(size), fua);
                         part.out = data.subspan(at, size);
                       });
  });
}

void IscsiLun::flush(Done done) {
  ++state_->counts.flushes;
  if (!state_->lun.profile.write_cache) return state_->answer_later(std::move(done), {});
  state_->home.post([state = state_, done = std::move(done)]() mutable {
    if (!state->destroyed) state->flush(std::move(done));
  });
}

void IscsiLun::write_zeroes(std::uint64_t offset, std::uint64_t length, Done done) {
  auto valid = check_range(state_->lun.geometry, "zeros", offset, length);
  if (!valid || length == 0) return state_->answer_later(std::move(done), std::move(valid));
  ++state_->counts.zeroes;
  state_->home.post([state = state_, offset, length, done = std::move(done)]() mutable {
    if (!state->destroyed)
      state->tasks->spawn(state->write_zeroes(offset, length, std::move(done)));
  });
}

void IscsiLun::unmap(std::uint64_t offset, std::uint64_t length, Done done) {
  auto valid = check_range(state_->lun.geometry, "an unmap", offset, length);
  if (!valid || length == 0 || !state_->unmap_works)
    return state_->answer_later(std::move(done), std::move(valid));
  ++state_->counts.unmaps;
  state_->home.post([state = state_, offset, length, done = std::move(done)]() mutable {
    if (!state->destroyed) state->tasks->spawn(state->unmap(offset, length, std::move(done)));
  });
}

void IscsiLun::register_key(Key key, Done done) {
  state_->home.post([state = state_, key, done = std::move(done)]() mutable {
    if (!state->destroyed) state->tasks->spawn(state->register_all(key, std::move(done)));
  });
}

void IscsiLun::register_exactly(Key existing, Key key, Done done) {
  state_->home.post([state = state_, existing, key, done = std::move(done)]() mutable {
    if (!state->destroyed)
      state->tasks->spawn(state->register_exactly(existing, key, std::move(done)));
  });
}

void IscsiLun::reserve(Key mine, ReservationType type, Done done) {
  state_->home.post([state = state_, mine, type, done = std::move(done)]() mutable {
    if (state->destroyed) return;
    state->tasks->spawn(
        state->reserve_command(ReserveOut::reserve, mine, Key{}, type, std::move(done)));
  });
}

void IscsiLun::release(Key mine, ReservationType type, Done done) {
  state_->home.post([state = state_, mine, type, done = std::move(done)]() mutable {
    if (state->destroyed) return;
    state->tasks->spawn(
        state->reserve_command(ReserveOut::release, mine, Key{}, type, std::move(done)));
  });
}

void IscsiLun::clear(Key mine, Done done) {
  state_->home.post([state = state_, mine, done = std::move(done)]() mutable {
    if (state->destroyed) return;
    state->tasks->spawn(state->reserve_command(ReserveOut::clear, mine, Key{},
                                               ReservationType::none, std::move(done)));
  });
}

void IscsiLun::preempt(Key mine, Key victim, ReservationType type, bool abort, Done done) {
  if (abort && !state_->lun.profile.preempt_and_abort)
    return state_->answer_later(
        std::move(done), Error{Errc::unsupported_by_target, "the target has no PREEMPT AND ABORT"});
  auto action = abort ? ReserveOut::preempt_and_abort : ReserveOut::preempt;
  state_->home.post([state = state_, action, mine, victim, type, done = std::move(done)]() mutable {
    if (state->destroyed) return;
    state->tasks->spawn(state->reserve_command(action, mine, victim, type, std::move(done)));
  });
}

void IscsiLun::reset(Done done) {
  state_->home.post([state = state_, done = std::move(done)]() mutable {
    if (!state->destroyed) state->tasks->spawn(state->reset(std::move(done)));
  });
}

void IscsiLun::read_keys(Function<void(Expected<KeyList>)> done) {
  state_->home.post([state = state_, done = std::move(done)]() mutable {
    if (state->destroyed) return;
    state->tasks->spawn(
        state->read_reservations(ReserveIn::read_keys, &parse_keys, std::move(done)));
  });
}

void IscsiLun::read_reservation(Function<void(Expected<Reservation>)> done) {
  state_->home.post([state = state_, done = std::move(done)]() mutable {
    if (state->destroyed) return;
    state->tasks->spawn(
        state->read_reservations(ReserveIn::read_reservation, &parse_reservation, std::move(done)));
  });
}

void IscsiLun::report_capabilities(Function<void(Expected<ReservationCapabilities>)> done) {
  state_->home.post([state = state_, done = std::move(done)]() mutable {
    if (!state->destroyed) state->tasks->spawn(state->report_capabilities(std::move(done)));
  });
}

void IscsiLun::read_full_status(Function<void(Expected<std::vector<FullStatusEntry>>)> done) {
  state_->home.post([state = state_, done = std::move(done)]() mutable {
    if (state->destroyed) return;
    state->tasks->spawn(
        state->read_reservations(ReserveIn::read_full_status, &parse_full_status, std::move(done)));
  });
}

}  // namespace csv::iscsi
