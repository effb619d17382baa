#include "csvfs/coordinator_client.h"

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "coordinator/protocol/failure.h"
#include "csvfs/base/check.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv {
namespace {

constexpr Duration kFirstBackoff = 50ms, kLongestBackoff = 200ms;
constexpr Duration kConnectWithin = 3s;
constexpr Duration kGreetWithin = 10s;
/// A coordinator that answers nothing for this long while something waits is not there any more;
/// the mount asks for its statistics every second, so something always waits.
constexpr Duration kSilence = 5s;
constexpr Duration kWatch = 100ms;  ///< Between two looks at what waits.
/// Between two looks whether another coordinator is known by now: shared memory, so nobody calls.
constexpr Duration kLookAround = 20ms;
constexpr Duration kRetryAfter = 20ms;
constexpr Duration kLongestRetry = 500ms;

}  // namespace

struct CoordinatorClient::Call {
  wire::Request request;
  CallOptions options;
  Function<void(Expected<Answer>)> done;
  std::uint64_t id = 0;  // 0: not sent yet
  bool has_slot = false;
  std::uint64_t made_in = 0;  // attempt_
  int put_off = 0;            // times, so far
  bool resting = false;       // put off, and not sent again yet: known not to have been done
  Epoch sent_in{};
  TimePoint sent_at{};
};

/// A caller that is destroyed while it waits takes its call along: the bulk data is its own.
class CoordinatorClient::Stay {
 public:
  Stay(CoordinatorClient* client, CallPtr call)
      : client_{client}, alive_{client->alive_}, call_{std::move(call)} {}
  Stay(const Stay&) = delete;
  Stay& operator=(const Stay&) = delete;
  ~Stay() {
    bool content = !std::exchange(call_->options.bulk, {}).empty();
    call_->options.sent = nullptr;
    call_->options.interrupt = nullptr;
    if (alive_.expired() || client_->unqueue(call_)) return;
    // Its slot is lost with it: whether the change took effect will not be known.
    if (content) client_->unanswered_.erase(call_->id);
  }

 private:
  CoordinatorClient* client_;
  std::weak_ptr<bool> alive_;
  CallPtr call_;
};

CoordinatorClient::CoordinatorClient(Setup setup, Owner& owner)
    : setup_{std::move(setup)}, owner_{&owner} {
  backoff_ = kFirstBackoff;
  trouble_ = Error{Errc::retry, "connecting"};
  setup_.loop->post([this, alive = std::weak_ptr{alive_}] {
    if (!alive.expired()) connect();
  });
}

CoordinatorClient::~CoordinatorClient() { setup_.loop->cancel(timer_); }

wire::Frame CoordinatorClient::frame() const {
  wire::Frame made;
  made.set_epoch(raw(epoch_));
  made.set_coordinator_key(raw(coordinator_key_));
  return made;
}

// --- Connecting -------------------------------------------------------------------------------

void CoordinatorClient::connect() {
  if (stage_ != Stage::idle) return;
  stage_ = Stage::connecting;
  kept_out_ = false;
  auto attempt = ++attempt_;
  auto alive = std::weak_ptr{alive_};
  newest_when_asked_ = setup_.newest_epoch ? setup_.newest_epoch() : Epoch{};
  give_up_at_ = setup_.loop->now() + kConnectWithin;
  watch();
  setup_.connect([this, alive, attempt](Expected<std::unique_ptr<protocol::Connection>> made) {
    if (alive.expired() || attempt != attempt_ || stage_ != Stage::connecting) return;
    if (!made) return disconnect(made.error());
    connected_to(*std::move(made));
  });
}

void CoordinatorClient::connected_to(std::unique_ptr<protocol::Connection> connection) {
  stage_ = Stage::greeting;
  connection_ = std::move(connection);
  auto attempt = attempt_;
  auto alive = std::weak_ptr{alive_};
  give_up_at_ = setup_.loop->now() + kGreetWithin;
  connection_->start(
      [this, alive, attempt](protocol::Message message) {
        if (!alive.expired() && attempt == attempt_) received(std::move(message));
      },
      [this, alive, attempt](const Error& why) {
        if (!alive.expired() && attempt == attempt_) disconnect(why);
      });
  protocol::Message hello;
  hello.frame = frame();
  auto& body = *hello.frame.mutable_hello();
  body.set_protocol(1);
  body.set_volume(setup_.volume);
  body.set_node(raw(setup_.node));
  body.set_incarnation(setup_.incarnation);
  body.set_session(raw(session_));
  if (session_ != SessionId{}) owner_->declare(body);
  connection_->send(std::move(hello));
}

void CoordinatorClient::disconnect(Error why) {
  if (stage_ == Stage::idle || stage_ == Stage::stopped) return;
  bool was_open = stage_ == Stage::open;
  stage_ = Stage::idle;
  ++attempt_;
  setup_.loop->cancel(timer_);
  // We may be inside one of its handlers: it goes once they have returned.
  setup_.loop->post([old = std::shared_ptr<protocol::Connection>{std::move(connection_)}] {});
  if (was_open) {
    ++reconnects_;
    backoff_ = kFirstBackoff;
    log::info("mount disconnected volume={} session={} why=\"{}\"", setup_.volume, raw(session_),
              why.message());
  }
  trouble_ = std::move(why);
  pause(setup_.loop->now() + backoff_);
  backoff_ = std::min(backoff_ * 2, kLongestBackoff);
  owner_->connection_changed();
}

/// Before the next attempt; over at once when a newer coordinator is known than at the last one.
void CoordinatorClient::pause(TimePoint until) {
  auto attempt = attempt_;
  auto alive = std::weak_ptr{alive_};
  auto left = until - setup_.loop->now();
  timer_ = setup_.loop->after(std::clamp(left, Duration{}, kLookAround), [=, this] {
    if (alive.expired() || attempt != attempt_) return;
    bool newer = setup_.newest_epoch && setup_.newest_epoch() > newest_when_asked_;
    if (newer || setup_.loop->now() >= until) return connect();
    pause(until);
  });
}

void CoordinatorClient::stop() {
  setup_.loop->cancel(timer_);
  ++attempt_;
  stage_ = Stage::stopped;
  setup_.loop->post([old = std::shared_ptr<protocol::Connection>{std::move(connection_)}] {});
}

void CoordinatorClient::watch() {
  auto attempt = attempt_;
  auto alive = std::weak_ptr{alive_};
  timer_ = setup_.loop->after(kWatch, [this, alive, attempt] {
    if (alive.expired() || attempt != attempt_) return;
    stage_ == Stage::open ? look_for_silence() : look_for_a_better_one();
    if (attempt == attempt_) watch();
  });
}

/// Whoever is being asked may have vanished, or hang, and somebody else have taken over since.
void CoordinatorClient::look_for_a_better_one() {
  if (setup_.newest_epoch && setup_.newest_epoch() > newest_when_asked_) {
    backoff_ = kFirstBackoff;
    return disconnect(Error{Errc::stale_epoch, "another node coordinates the volume now"});
  }
  if (setup_.loop->now() < give_up_at_) return;
  disconnect(Error{std::errc::timed_out, stage_ == Stage::connecting
                                             ? "connecting to the coordinator takes too long"
                                             : "the coordinator does not answer a greeting"});
}

/// A coordinator whose node vanished, or was cut off, ends no connection.
void CoordinatorClient::look_for_silence() {
  auto now = setup_.loop->now();
  Duration longest{};
  for (const auto& [id, call] : unanswered_) longest = std::max(longest, now - call->sent_at);
  auto silent = now - heard_;
  if (longest > kSilence && silent > kSilence)
    return disconnect(Error{std::errc::timed_out, "the coordinator has fallen silent"});
  if (longest > kWatch && silent > kWatch && setup_.newest_epoch && setup_.newest_epoch() > epoch_)
    disconnect(Error{Errc::stale_epoch, "another node coordinates the volume now"});
}

// --- Receiving --------------------------------------------------------------------------------

bool CoordinatorClient::is_stale(const wire::Frame& frame) const {
  if (frame.epoch() != raw(epoch_)) return frame.epoch() < raw(epoch_);
  return frame.coordinator_key() != raw(coordinator_key_);
}

void CoordinatorClient::adopt(const wire::Frame& frame) {
  epoch_ = Epoch{frame.epoch()};
  coordinator_key_ = Key{frame.coordinator_key()};
}

void CoordinatorClient::received(protocol::Message message) {
  if (stage_ == Stage::greeting) {
    if (message.frame.has_hello_reply()) return greeted(message.frame);
    return disconnect(Error{Errc::refused, "the coordinator's first word is no answer to Hello"});
  }
  if (stage_ != Stage::open) return;
  if (is_stale(message.frame)) {
    log::warning("mount drops a message of a former coordinator volume={} epoch={} known={}",
                 setup_.volume, message.frame.epoch(), raw(epoch_));
    return;
  }
  heard_ = setup_.loop->now();
  switch (message.frame.body_case()) {
    case wire::Frame::kReply: return replied(std::move(message));
    case wire::Frame::kNotice:
      notices_.insert_or_assign(message.frame.id(), epoch_);
      return owner_->noticed(message.frame.id(), message.frame.notice());
    default:
      return disconnect(Error{Errc::refused, "the coordinator sent what only mounts may send"});
  }
}

void CoordinatorClient::greeted(const wire::Frame& frame) {
  const auto& reply = frame.hello_reply();
  auto failure = protocol::decode(reply.failure());
  bool stale = frame.epoch() < raw(epoch_) ||
               (frame.epoch() == raw(epoch_) && epoch_ != Epoch{} && is_stale(frame));
  if (failure.code()) {
    // A former coordinator that does not know it yet must not end our session.
    if (failure == Errc::session_ended && !stale && session_ != SessionId{}) {
      adopt(frame);
      return end_session(failure);
    }
    kept_out_ = reply.kept_out() && !stale;
    // While a session lasts this is not the last word: the coordinator ends that first.
    if (kept_out_ && session_ == SessionId{}) {
      refuse_what_waits(failure);
      fences_ = reply.fences();
    }
    disconnect(failure);
    if (setup_.elsewhere && reply.elsewhere_node() != 0)
      setup_.elsewhere(NodeId{static_cast<std::uint8_t>(reply.elsewhere_node())},
                       reply.elsewhere_endpoint());
    return;
  }
  if (stale) return disconnect(Error{Errc::stale_epoch, "a former coordinator answered"});
  bool fresh = SessionId{reply.session()} != session_;
  if (fresh && session_ != SessionId{})
    return end_session(Error{Errc::session_ended, "the coordinator gave us another session"});
  adopt(frame);
  session_ = SessionId{reply.session()};
  stage_ = Stage::open;
  trouble_ = {};
  backoff_ = kFirstBackoff;
  heard_ = setup_.loop->now();
  knows_clones_ = reply.clones();
  setup_.loop->cancel(timer_);
  log::info("mount connected volume={} session={} fresh={} epoch={} coordinator={}", setup_.volume,
            raw(session_), fresh, raw(epoch_), connection_->peer());
  // Answers to notices of a former coordinator would be taken for answers to others.
  std::erase_if(notices_, [this](const auto& each) { return each.second != epoch_; });
  auto attempt = attempt_;
  if (!fresh) {
    for (auto& request : owner_->declared()) {
      protocol::Message said;
      said.frame = this->frame();
      said.frame.set_id(next_id_++);
      *said.frame.mutable_request() = std::move(request);
      connection_->send(std::move(said));
    }
  }
  // It was fenced by command, and has been let in, while it did not hear of either.
  if (fresh && fences_ && *fences_ != reply.fences())
    refuse_what_waits(Error{Errc::refused, "the node was fenced by command meanwhile"});
  fences_ = reply.fences();
  refuse_what_is_unknown();
  for (auto& [id, call] : unanswered_) send(*call);
  protocol::Message done;
  done.frame = this->frame();
  done.frame.mutable_resume_done();
  connection_->send(std::move(done));
  watch();
  owner_->greeted(reply, fresh);
  owner_->connection_changed();
  if (attempt == attempt_) pump();
}

void CoordinatorClient::replied(protocol::Message message) {
  auto found = unanswered_.find(message.frame.id());
  if (found == unanswered_.end()) return;  // of a repeat whose first answer we had
  auto call = found->second;
  auto& reply = *message.frame.mutable_reply();
  owner_->replied(call->request, call->id, call->sent_at, reply);
  if (reply.failure().code() == 0) {
    Answer answer;
    answer.reply = std::move(reply);
    answer.bulk = std::move(message.bulk);
    answer.session = session_;
    answer.sent_in = call->sent_in;
    answer.answered_in = epoch_;
    return finish(call, std::move(answer));
  }
  auto error = protocol::decode(reply.failure());
  if (error == Errc::retry) {
    call->resting = true;
    auto* interrupt = call->options.interrupt;
    if (interrupt != nullptr && interrupt->raised())
      return finish(call, Error{std::errc::interrupted});
    auto delay = std::min(kRetryAfter * (1 << std::min(call->put_off++, 10)), kLongestRetry);
    send_again_later(call->id, delay);
    if (delay == kLongestRetry) owner_->put_off(error);
    return;
  }
  if (error == Errc::stale_epoch || error == Errc::not_coordinator || error == Errc::superseded)
    return disconnect(error);
  // Our goodbye ends the session, and with it what else is under way, before it is answered; the
  // answer says that it is done.
  auto leaving = [&] {
    return !call->request.has_goodbye() &&
           std::any_of(unanswered_.begin(), unanswered_.end(),
                       [](const auto& each) { return each.second->request.has_goodbye(); });
  };
  if (error == Errc::session_ended && !leaving()) return end_session(error);
  finish(call, error);
}

void CoordinatorClient::send_again_later(std::uint64_t id, Duration delay) {
  setup_.loop->after(delay, [this, id, attempt = attempt_, alive = std::weak_ptr{alive_}] {
    if (alive.expired() || attempt != attempt_) return;  // a reconnect repeats it anyway
    if (auto found = unanswered_.find(id); found != unanswered_.end()) send(*found->second);
  });
}

bool CoordinatorClient::answer(std::uint64_t notice, wire::NoticeReply reply) {
  auto found = notices_.find(notice);
  if (found == notices_.end() || found->second != epoch_ || stage_ != Stage::open) return false;
  notices_.erase(found);
  protocol::Message message;
  message.frame = frame();
  message.frame.set_id(notice);
  *message.frame.mutable_notice_reply() = std::move(reply);
  connection_->send(std::move(message));
  return true;
}

void CoordinatorClient::end_session(Error why) {
  if (stage_ == Stage::stopped) return;
  log::warning("mount session ended volume={} session={} why=\"{}\"", setup_.volume, raw(session_),
               why.message());
  events::report(events::Severity::error, "session", setup_.volume,
                 "the session ended: of what is open, files that other nodes touched answer EIO "
                 "until they are closed",
                 why.message());
  session_ = SessionId{};
  open_for_all_ = false;
  slots_ = {};
  notices_.clear();
  Error ended{Errc::session_ended, why.message()};
  std::vector<CallPtr> lost;
  std::deque<CallPtr> again;
  for (auto& [id, call] : std::exchange(unanswered_, {})) {
    call->id = 0;
    call->has_slot = call->resting = false;
    // A change may have taken effect: nobody will ever know, so it is not repeated.
    bool over =
        call->options.changes || call->options.early || call->options.session != SessionId{};
    if (over)
      lost.push_back(call);
    else
      again.push_back(call);
  }
  for (auto* queue : {&early_, &plain_, &changing_}) {
    std::deque<CallPtr> stay;
    for (auto& call : *queue) {
      bool over = call->options.early || call->options.session != SessionId{};
      if (over)
        lost.push_back(call);
      else
        stay.push_back(call);
    }
    *queue = std::move(stay);
  }
  plain_.insert(plain_.begin(), again.begin(), again.end());
  disconnect(why);
  owner_->session_ended(why);
  for (auto& call : lost)
    setup_.loop->post([call, ended]() mutable { call->done(std::move(ended)); });
}

/// An earlier program may take a volume back, and a request for which its protocol has no word it
/// takes for damage: each repeat would cost the connection. That none of these was done is certain:
/// the catalog's schema would keep that program away.
void CoordinatorClient::refuse_what_is_unknown() {
  if (knows_clones_) return;
  std::vector<CallPtr> refused;
  for (auto at = unanswered_.begin(); at != unanswered_.end();) {
    auto call = at->second;
    if (!call->request.has_clone()) {
      ++at;
      continue;
    }
    at = unanswered_.erase(at);
    if (call->has_slot) slots_[call->request.slot()].busy = false;
    refused.push_back(std::move(call));
  }
  std::erase_if(changing_, [&](const CallPtr& call) {
    if (!call->request.has_clone()) return false;
    refused.push_back(call);
    return true;
  });
  for (auto& call : refused)
    setup_.loop->post(
        [call] { call->done(errno_error(EOPNOTSUPP, "asking an earlier version to clone")); });
}

/// What was asked for before this attempt began, so before the node was kept out, or meanwhile.
/// What came later may be of a program that was started when the node had been let in: the next
/// answer to a Hello decides. Without a session nothing is under way.
void CoordinatorClient::refuse_what_waits(const Error& why) {
  Error kept_out{std::errc::io_error, "this node is kept out: " + why.message()};
  for (auto* queue : {&early_, &plain_, &changing_})
    std::erase_if(*queue, [&](const CallPtr& call) {
      if (call->options.outlasts || call->made_in >= attempt_) return false;
      setup_.loop->post([call, kept_out]() mutable { call->done(std::move(kept_out)); });
      return true;
    });
}

// --- Calling ----------------------------------------------------------------------------------

Task<Expected<CoordinatorClient::Answer>> CoordinatorClient::call(wire::Request request,
                                                                  CallOptions options) {
  auto call = std::make_shared<Call>();
  call->request = std::move(request);
  call->options = options;
  call->made_in = attempt_;
  if (options.interrupt && options.interrupt->raised()) co_return Error{std::errc::interrupted};
  Stay stay{this, call};
  Interrupt::Watch watch{options.interrupt, [this, call] { interrupt(call); }};
  co_return co_await completion<Expected<Answer>>([&](auto done) {
    call->done = std::move(done);
    add(call);
  });
}

void CoordinatorClient::add(const CallPtr& call) {
  const auto& options = call->options;
  if (options.session != SessionId{} && options.session != session_) {
    setup_.loop->post([call] {
      call->done(Error{Errc::session_ended, "the session under which it was opened has ended"});
    });
    return;
  }
  auto& queue = options.early ? early_ : options.changes ? changing_ : plain_;
  queue.push_back(call);
  if (stage_ == Stage::open) refuse_what_is_unknown();
  pump();
}

void CoordinatorClient::interrupt(const CallPtr& call) {
  if (call->resting) return finish(call, Error{std::errc::interrupted});
  if (!unqueue(call)) return;  // sent: it takes its course
  call->done(Error{std::errc::interrupted});
}

bool CoordinatorClient::unqueue(const CallPtr& call) {
  if (call->id != 0) return false;
  for (auto* queue : {&early_, &plain_, &changing_})
    if (std::erase(*queue, call) > 0) return true;
  return false;
}

void CoordinatorClient::open() {
  open_for_all_ = true;
  pump();
}

bool CoordinatorClient::take_slot(Call& call) {
  for (std::uint32_t number = 0; number < slots_.size(); ++number) {
    auto& slot = slots_[number];
    if (slot.busy) continue;
    slot.busy = true;
    call.has_slot = true;
    call.request.set_slot(number);
    call.request.set_sequence(++slot.sequence);
    return true;
  }
  return false;
}

void CoordinatorClient::pump() {
  if (stage_ != Stage::open) return;
  auto send_first = [this](std::deque<CallPtr>& queue) {
    auto call = std::move(queue.front());
    queue.pop_front();
    call->id = next_id_++;
    call->sent_in = epoch_;
    unanswered_.emplace(call->id, call);
    ++requests_;
    if (call->options.sent != nullptr) *call->options.sent = true;
    // What was interrupted has left the queue.
    if (call->options.changes && call->options.interrupt)
      CSV_CHECK(call->options.interrupt->may_begin());
    owner_->sending(call->request, call->id);
    send(*call);
    call->request.clear_gave_up();  // said once
  };
  while (!early_.empty()) send_first(early_);
  if (!open_for_all_) return;
  while (!plain_.empty()) send_first(plain_);
  while (!changing_.empty() && take_slot(*changing_.front())) send_first(changing_);
}

void CoordinatorClient::send(Call& call) {
  call.sent_at = setup_.loop->now();
  call.resting = false;
  protocol::Message message;
  message.frame = frame();
  message.frame.set_id(call.id);
  *message.frame.mutable_request() = call.request;
  message.bulk = Buffer::copy_of(call.options.bulk);
  connection_->send(std::move(message));
}

void CoordinatorClient::finish(const CallPtr& call, Expected<Answer> result) {
  unanswered_.erase(call->id);
  if (call->has_slot) slots_[call->request.slot()].busy = false;
  auto attempt = attempt_;
  auto alive = std::weak_ptr{alive_};
  call->done(std::move(result));
  if (!alive.expired() && attempt == attempt_) pump();
}

}  // namespace csv
