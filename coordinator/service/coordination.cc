#include "coordinator/service/coordination.h"

#include <algorithm>

#include "coordinator/protocol/failure.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv::service {

namespace {
constexpr const char* kStopped = "the volume is stopped by command";
}

std::string_view to_text(Coordination::State state) {
  switch (state) {
    case Coordination::State::idle: return "idle";
    case Coordination::State::waiting: return "waiting";
    case Coordination::State::taking_over: return "taking over";
    case Coordination::State::serving: return "serving";
    case Coordination::State::closing: return "closing";
  }
  return "";
}

Coordination::Coordination(Setup setup, Timing timing)
    : setup_{std::move(setup)},
      timing_{timing},
      since_{setup_.loop->now()},
      wanted_{setup_.wanted},
      changed_{*setup_.loop} {
  // Its first step may call others: not from inside a constructor.
  setup_.loop->post([this, alive = std::weak_ptr{alive_}] {
    if (alive.lock()) tasks_.spawn(keep());
  });
}

Coordination::~Coordination() { tasks_.cancel_all(); }

void Coordination::enter(State state, std::string reason) {
  if (state == state_ && reason == reason_) return;
  if (reason.empty())
    log::info("coordination volume={} state=\"{}\"", setup_.volume, to_text(state));
  else
    log::info("coordination volume={} state=\"{}\" why=\"{}\"", setup_.volume, to_text(state),
              reason);
  // What an attempt, or serving it, came to; not what is waited for before the first.
  bool trouble = state == State::waiting &&
                 (state_ == State::taking_over || state_ == State::serving) && !reason.empty();
  if (state == State::serving)
    events::report(events::Severity::info, "coordinator", setup_.volume,
                   fmt::format("this node coordinates it, epoch {}", raw(service_->epoch())));
  else if (state != State::waiting || trouble)
    events::report(trouble ? events::Severity::warning : events::Severity::info, "coordinator",
                   setup_.volume, fmt::format("this node's part: {}", to_text(state)), reason);
  state_ = state;
  reason_ = std::move(reason);
  since_ = setup_.loop->now();
  changed_.notify();  // for stop()
}

void Coordination::answer(const Expected<void>& result) {
  for (auto& one : std::exchange(starting_, {})) one(result);
}

Task<void> Coordination::keep() {
  if (wanted_ && !setup_.membership->assigned(setup_.volume)) co_await wait_for_claims();
  for (;;) {
    auto now = setup_.loop->now();
    auto given = setup_.membership->assigned(setup_.volume);
    if (given && !given_up_) {
      co_await follow(*given);
    } else if (!wanted_ || given) {
      enter(State::idle, given_up_ ? "given up by command" : "not to be coordinated by this node");
      pause_ = {};
      co_await changed_.wait();
    } else if (auto why = must_wait(); why && !commanded_) {
      enter(State::waiting, *why);
      co_await changed_.wait();
    } else if (now < not_before_ && !commanded_) {
      co_await wait_at_most(not_before_ - now);
    } else {
      co_await attempt();
      commanded_ = false;
    }
  }
}

/// One step of what the cluster has decided, or a wait for its next decision.
Task<void> Coordination::follow(const cluster::Membership::Assignment& given) {
  auto now = setup_.loop->now();
  if (!given.decided) {
    enter(State::waiting, "no quorum: " + given.reason);
    co_await changed_.wait();
    co_return;
  }
  if (given.node != setup_.node) {
    given_at_.reset();
    pause_ = {};
    not_before_ = {};
    commanded_ = false;
    answer(Error{Errc::not_coordinator, given.stopped ? "volume " + setup_.volume + " is stopped"
                                                      : "the cluster gave volume " + setup_.volume +
                                                            " to another node meanwhile"});
    enter(State::idle, given.stopped ? std::string{kStopped}
                       : given.node == NodeId{}
                           ? std::string{"no node can coordinate it"}
                           : fmt::format("node {} is to coordinate it", raw(given.node)));
    co_await changed_.wait();
    co_return;
  }
  if (!given_at_) given_at_ = now;
  // Whoever has it and takes part closes it in good order first.
  auto handed_over = *given_at_ + timing_.handover;
  auto who = setup_.membership->coordinator(setup_.volume);
  if (who && who->node != setup_.node && setup_.membership->claimed_by_peer(setup_.volume) &&
      now < handed_over) {
    enter(State::waiting, fmt::format("node {} hands it over", raw(who->node)));
    co_await wait_at_most(handed_over - now);
  } else if (now < not_before_ && !commanded_) {
    co_await wait_at_most(not_before_ - now);
  } else if (now >= setup_.membership->open_until()) {
    // The others' answers bring it, a moment after the cluster has formed.
    enter(State::waiting, "this node has no membership lease");
    co_await changed_.wait();
  } else {
    co_await attempt();
    commanded_ = false;
  }
}

/// By the cluster: it is given to somebody else. Without a quorum nobody can know, and the lease
/// ends by itself.
bool Coordination::taken_away() const {
  auto given = setup_.membership->assigned(setup_.volume);
  return given && given->decided && given->node != setup_.node;
}

/// Before a start that nobody commanded: a peer may have the volume, or be about to take it.
Task<void> Coordination::wait_for_claims() {
  auto& membership = *setup_.membership;
  auto until = setup_.loop->now() + timing_.patience;
  enter(State::waiting, "asking the peers whether one coordinates it");
  while (!membership.settled() && !commanded_ && setup_.loop->now() < until)
    co_await wait_at_most(until - setup_.loop->now());
  until = setup_.loop->now();
  for (const auto& peer : membership.peers())
    if (peer.present && peer.id < setup_.node) until += timing_.precedence;
  while (wanted_ && !commanded_ && !membership.claimed_by_peer(setup_.volume) &&
         setup_.loop->now() < until)
    co_await wait_at_most(until - setup_.loop->now());
}

/// Until `time` has passed or something changed.
Task<void> Coordination::wait_at_most(Duration time) {
  auto timer = setup_.loop->after(time, [this] { changed_.notify(); });
  struct Cancel {
    Loop* loop;
    Loop::TimerId timer;
    ~Cancel() { loop->cancel(timer); }
  } cancel{setup_.loop, timer};
  co_await changed_.wait();
}

std::optional<std::string> Coordination::must_wait() const {
  auto& membership = *setup_.membership;
  if (auto who = membership.coordinator(setup_.volume); who && who->node != setup_.node)
    return fmt::format("node {} coordinates it (epoch {})", raw(who->node), raw(who->epoch));
  // Somebody took it from us. While one who may have is not heard, taking it back could go on
  // forever between two sides that do not see each other.
  if (beaten_ && !membership.all_present())
    return std::string{
        "another node took it over, and not all peers are heard: csvctl volume start takes it "
        "back"};
  return std::nullopt;
}

bool Coordination::superseded() const {
  auto who = setup_.membership->coordinator(setup_.volume);
  return who && who->node != setup_.node;
}

Task<void> Coordination::attempt() {
  enter(State::taking_over);
  auto began = setup_.loop->now();
  auto taken = co_await setup_.take_over();
  if (!taken) {
    auto why = taken.error();
    bool target_waits = why == Errc::reset_unanswered;
    if (target_waits) pause_ = {};  // it has taken long enough by itself
    pause_before_next(false);
    enter(State::waiting, fmt::format("taking it over failed: {}", why.message()));
    // Not if it was given to another one meanwhile, for want of a lease, or where the target waits
    // for somebody: that says nothing of this node's way to the LUN, and nobody else could do it.
    if (!taken_away() && !target_waits && setup_.loop->now() < setup_.membership->open_until())
      setup_.membership->able(setup_.volume, false);
    answer(why);
    co_return;
  }
  service_ = *std::move(taken);
  stopped_.reset();
  beaten_ = false;
  service_->on_stopped([this](Error why) {
    stopped_ = std::move(why);
    changed_.notify();
  });
  setup_.membership->able(setup_.volume, true);
  setup_.membership->coordinating(setup_.volume, service_->epoch(), service_->key());
  enter(State::serving);
  log::info("coordinating volume={} epoch={} key={:016x} takeover_ms={}", setup_.volume,
            raw(service_->epoch()), raw(service_->key()),
            (setup_.loop->now() - began) / std::chrono::milliseconds{1});
  answer({});
  co_await serve();
}

Task<void> Coordination::serve() {
  bool by_cluster = setup_.membership->assigned(setup_.volume).has_value();
  auto given_up = [this, by_cluster] { return by_cluster ? taken_away() || given_up_ : !wanted_; };
  while (!stopped_ && !given_up() && !superseded()) co_await changed_.wait();
  bool in_good_order = !stopped_ && given_up() && !superseded();
  auto served = setup_.loop->now() - since_;
  auto steady = timing_.steady;
  bool lun_went = stopped_ && (*stopped_ == Errc::lun_lost || *stopped_ == Errc::not_durable);
  brief_losses_ = lun_went && served < timing_.brief ? brief_losses_ + 1 : 0;
  if (stopped_) {
    enter(State::waiting, stopped_->message());
    beaten_ = *stopped_ == Errc::fenced || *stopped_ == Errc::superseded;
    // A path that is lost takes a while to come back; whoever has another one is better. What the
    // target has forgotten is forgotten for everybody.
    if (!beaten_ && *stopped_ != Errc::not_durable) setup_.membership->able(setup_.volume, false);
    // A target that restarts is no fault of a takeover that succeeded, and may be back already.
    // Unless it is what we ask of it that brings it down: then each takeover resets it for nothing.
    if (lun_went)
      steady = brief_losses_ < timing_.many_brief ? timing_.shortest_pause : timing_.brief;
  } else {
    auto given = setup_.membership->assigned(setup_.volume);
    enter(State::closing, !in_good_order             ? "a newer coordinator has taken over"
                          : given_up_ || !by_cluster ? "by command"
                          : given && given->stopped  ? kStopped
                                                     : "the cluster gives it to another node");
    beaten_ = !in_good_order;
    if (in_good_order) co_await service_->close();
  }
  // Told to the peers only now: while it closes, its mounts have nobody better to ask.
  setup_.membership->gave_up(setup_.volume);
  service_.reset();
  pause_before_next(served >= steady);
}

/// What ended a steady tenure may be over already; what ends one attempt after the other is not.
void Coordination::pause_before_next(bool was_steady) {
  pause_ = was_steady ? Duration{}
                      : std::clamp(pause_ * 2, timing_.shortest_pause, timing_.longest_pause);
  not_before_ = setup_.loop->now() + pause_;
}

Task<Expected<void>> Coordination::start() {
  if (service_ && wanted_) co_return Expected<void>{};
  wanted_ = commanded_ = true;
  given_up_ = false;
  changed_.notify();
  co_return co_await completion<Expected<void>>(
      [this](auto done) { starting_.emplace_back(std::move(done)); });
}

Task<Expected<void>> Coordination::stop() {
  bool follows = setup_.membership->assigned(setup_.volume).has_value();
  if (!service_ && !wanted_ && !follows)
    co_return Error{Errc::refused, "this node does not coordinate volume " + setup_.volume};
  wanted_ = commanded_ = false;
  given_up_ = true;
  answer(Error{Errc::refused, "stopped by another command"});
  changed_.notify();
  while (state_ != State::idle && !wanted_) co_await changed_.wait();
  co_return Expected<void>{};
}

namespace {

Task<void> stop_one(Coordination& one, std::size_t& left, Signal& ended) {
  auto task = one.stop();
  auto stopped = co_await task;
  // Refused: it was not served here.
  if (!stopped && !(stopped.error() == Errc::refused))
    log::warning("stop_failed volume={} why=\"{}\"", one.volume(), stopped.error().message());
  --left;
  ended.notify();
}

}  // namespace

Task<void> stop_all(Loop& loop, std::vector<Coordination*> all) {
  auto left = all.size();
  Signal ended{loop};
  TaskScope tasks;
  for (auto* one : all) tasks.spawn(stop_one(*one, left, ended));
  while (left > 0) co_await ended.wait();
}

protocol::Message not_coordinated(const protocol::Message& hello, NodeId here,
                                  const std::optional<cluster::Coordinator>& who, bool stopped) {
  protocol::Message refusal;
  refusal.frame.set_id(hello.frame.id());
  auto& reply = *refusal.frame.mutable_hello_reply();
  *reply.mutable_failure() = protocol::encode(
      Error{Errc::not_coordinator,
            stopped ? fmt::format("{} is stopped by command: csvctl volume start {} puts it back",
                                  hello.frame.hello().volume(), hello.frame.hello().volume())
                    : fmt::format("node {} does not coordinate volume {}", raw(here),
                                  hello.frame.hello().volume())});
  if (who && who->node != here) {
    reply.set_elsewhere_node(raw(who->node));
    reply.set_elsewhere_endpoint(who->endpoint);
  }
  return refusal;
}

}  // namespace csv::service
