#include "coordinator/cluster/beats.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "coordinator/protocol/limits.h"
#include "csvfs/base/check.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

std::int64_t to_number(TimePoint time) { return time.time_since_epoch().count(); }
TimePoint to_time(std::int64_t number) { return TimePoint{Duration{number}}; }

/// A peer that reads nothing gets no more echoes queued than this; its next connection does.
constexpr std::size_t kMostQueued = 1u << 20;
/// What a hold of the witness is worth at most, whatever a peer says.
constexpr std::uint64_t kMostWitnessMs = 3000;
/// Longer ago is as good as never, whatever a peer says.
constexpr std::uint64_t kMostAgoMs = 3'600'000;

std::chrono::milliseconds ago(std::uint64_t ms) {
  return std::chrono::milliseconds{std::min(ms, kMostAgoMs)};
}
std::uint64_t ms_since(TimePoint moment, TimePoint now) {
  auto ms = std::max<std::int64_t>(0, (now - moment) / std::chrono::milliseconds{1});
  return std::min(static_cast<std::uint64_t>(ms), kMostAgoMs);
}

}  // namespace

Beats::Beats(Surroundings surroundings) : with_{std::move(surroundings)} {
  CSV_CHECK(with_.timing.safe() && with_.timing.steady() && with_.incarnation != 0);
}

void Beats::start() { tick(); }

void Beats::set_peers(const std::vector<Peer>& peers) {
  std::map<NodeId, std::unique_ptr<Other>> before;
  std::swap(before, others_);
  for (const auto& peer : peers) {
    if (peer.id == with_.node) continue;
    auto& other = others_[peer.id];
    auto found = before.find(peer.id);
    if (found != before.end() && found->second->peer == peer) {
      other = std::move(found->second);
    } else {
      other = std::make_unique<Other>();
      other->peer = peer;
    }
  }
}

Beats::~Beats() { with_.loop->cancel(timer_); }

void Beats::tick() {
  auto now = with_.loop->now();
  for (auto& [id, other] : others_) {
    // A connection on which nothing comes back may be half dead: TCP would notice much later.
    if (other->out && now - std::max(other->connected_at, other->last_echo) > with_.timing.term) {
      log::info("peer_silent node={} name={}", raw(id), other->peer.name);
      other->out.reset();
    }
    if (other->out) {
      beat(*other);
    } else if (!other->connecting && now >= other->not_before) {
      reach(*other);
    }
  }
  timer_ = with_.loop->after(with_.timing.beat_interval, [this] { tick(); });
  with_.changed();
}

void Beats::reach(Other& other) {
  other.connecting = true;
  with_.transport->connect(
      other.peer.id, other.peer.address,
      [this, known = std::weak_ptr{other.alive}, &other](auto connected) {
        if (!known.lock()) return;
        other.connecting = false;
        if (!connected) {
          auto why = connected.error();
          if (other.trouble != why.message()) {
            other.trouble = why.message();
            auto level = why == Errc::refused ? log::Level::warning : log::Level::info;
            if (log::enabled(level))
              log::write(level, fmt::format("peer_unreachable node={} name={} why=\"{}\"",
                                            raw(other.peer.id), other.peer.name, other.trouble));
          }
          if (other.absent != (connected.error() == std::errc::connection_refused)) {
            other.absent = !other.absent;
            with_.changed();
          }
          return;  // the next tick tries again
        }
        if (!(*connected)->speaks_for(other.peer.id))
          return refuse_echoes(other, raw(other.peer.id));
        other.trouble.clear();
        other.absent = false;
        other.out = *std::move(connected);
        other.connected_at = with_.loop->now();
        other.out->start([this, &other](protocol::Message message) { take_echo(other, message); },
                         [this, &other](Error why) { lost(other, why); });
        beat(other);
      });
}

/// Reached for again at once, if it had been there: when its machine says that nothing listens
/// there any more, it is gone. Whoever ends every connection, as one does that does not know this
/// node, is asked less and less often: it would have nothing else to do.
void Beats::lost(Other& other, const Error& why) {
  auto now = with_.loop->now();
  bool lasted = now - other.connected_at >= with_.timing.beat_interval;
  other.brief = lasted ? 0 : other.brief + 1;
  if (other.brief <= 1)
    log::info("peer_lost node={} name={} why=\"{}\"", raw(other.peer.id), other.peer.name,
              why.message());
  other.out.reset();
  auto pause = pause_after(other.brief);
  other.not_before = now + pause;
  if (pause > Duration{}) {
    with_.loop->after(pause, [this, known = std::weak_ptr{other.alive}, &other] {
      if (known.lock() && !other.out && !other.connecting) reach(other);
    });
  } else if (!other.connecting) {
    reach(other);
  }
  with_.changed();
}

/// Twice as long each time, up to the time between two beats.
Duration Beats::pause_after(unsigned brief) const {
  constexpr unsigned kDoublings = 4;
  if (brief == 0) return {};
  return with_.timing.beat_interval / (1 << (kDoublings - std::min(brief - 1, kDoublings)));
}

void Beats::beat(Other& other) {
  if (other.out->queued_bytes() > kMostQueued) return;
  protocol::Message message;
  auto* beat = message.frame.mutable_beat();
  beat->set_node(raw(with_.node));
  beat->set_incarnation(with_.incarnation);
  beat->set_sent_at(to_number(with_.loop->now()));
  other.out->send(std::move(message));
}

void Beats::refuse_echoes(Other& other, std::uint32_t as_node) {
  if (!std::exchange(other.wrong, true))
    log::warning("peer_answers_wrongly node={} name={} address={} as_node={}", raw(other.peer.id),
                 other.peer.name, other.peer.address, as_node);
  other.out.reset();
}

void Beats::take_echo(Other& other, const protocol::Message& message) {
  const auto& echo = message.frame.beat_echo();
  auto now = with_.loop->now();
  auto sent_at = to_time(echo.sent_at());
  // Its address may by now be another node's, and a time of ours cannot lie ahead.
  if (!message.frame.has_beat_echo() || echo.node() != raw(other.peer.id) || sent_at > now ||
      sent_at < other.connected_at) {
    return refuse_echoes(other, echo.node());
  }
  if (!other.echoed || other.incarnation != echo.incarnation())
    log::info("peer_present node={} name={} incarnation={:x}", raw(other.peer.id), other.peer.name,
              echo.incarnation());
  other.echoed = true;
  other.absent = other.wrong = false;
  other.incarnation = echo.incarnation();
  other.last_echo = now;
  other.claims.clear();
  for (const auto& one : echo.coordinates())
    other.claims[one.volume()] = {Epoch{one.epoch()}, Key{one.coordinator_key()}};
  take_signs(other, echo);
  with_.echoed(other.peer.id,
               {.sent_at = sent_at,
                .refused = echo.refuses(),
                .witness = std::chrono::milliseconds{std::min(echo.witness_ms(), kMostWitnessMs)}});
  with_.changed();
}

/// The echo was made after the beat was sent that it answers: so what it tells of happened no
/// earlier than that before our sending.
void Beats::take_signs(Other& other, const wire::BeatEcho& echo) {
  auto sent_at = to_time(echo.sent_at());
  for (const auto& one : echo.reached()) {
    auto& last = other.reached[one.volume()];
    last = std::max(last, sent_at - ago(one.ago_ms()));
    if (other.reached.size() > protocol::kMaxReached) other.reached.clear();
  }
  other.signs.clear();
  for (const auto& one : echo.signs()) {
    StorageSign sign;
    sign.node = NodeId{static_cast<std::uint8_t>(one.node())};
    sign.volume = one.volume();
    sign.moved = sent_at - ago(one.moved_ago_ms());
    sign.still = one.still();
    sign.connected = one.connected();
    if (one.quorate() == 1 || one.quorate() == 2) sign.quorate = one.quorate() == 1;
    other.signs.push_back(std::move(sign));
  }
}

void Beats::accept(std::unique_ptr<protocol::Connection> connection,
                   const protocol::Message& beat) {
  auto* other = beat.frame.has_beat() ? find(beat.frame.beat().node()) : nullptr;
  if (other == nullptr) {
    auto node = beat.frame.beat().node();
    if (strangers_.insert(node).second)
      log::warning("beat_refused peer={} node={} why=\"not a configured peer\"", connection->peer(),
                   node);
    return;
  }
  // Whoever could beat for another node would renew what that node was fenced for, or cut it off.
  if (!connection->speaks_for(other->peer.id)) {
    if (!std::exchange(other->impersonated, true))
      log::warning(
          "beat_refused peer={} node={} why=\"it is not that node: its certificate says so\"",
          connection->peer(), raw(other->peer.id));
    return;
  }
  // The newest connection counts: a peer gives one up before it makes another.
  other->in = std::move(connection);
  other->last_beat = 0;
  other->in->start([this, other](protocol::Message message) { take_beat(*other, message); },
                   [other](Error) { other->in.reset(); });
  take_beat(*other, beat);
}

void Beats::take_beat(Other& other, const protocol::Message& message) {
  const auto& beat = message.frame.beat();
  if (!message.frame.has_beat() || beat.node() != raw(other.peer.id)) {
    log::warning("beat_refused peer={} node={} why=\"not the node it was\"", other.in->peer(),
                 beat.node());
    other.in.reset();
    return;
  }
  other.last_heard = with_.loop->now();
  other.last_beat = beat.sent_at();
  echo(other);
}

/// Also without a new beat: repeats the last one's, with what has changed since.
void Beats::echo(Other& other) {
  if (!other.in || other.last_beat == 0 || other.in->queued_bytes() > kMostQueued) return;
  protocol::Message reply;
  auto* echo = reply.frame.mutable_beat_echo();
  echo->set_node(raw(with_.node));
  echo->set_incarnation(with_.incarnation);
  echo->set_sent_at(other.last_beat);
  auto worth = with_.worth(other.peer.id);
  echo->set_refuses(worth.refused);
  echo->set_witness_ms(static_cast<std::uint64_t>(worth.witness / std::chrono::milliseconds{1}));
  if (!worth.refused) granted_[other.peer.id] = with_.loop->now();
  for (const auto& [volume, claim] : own_) {
    auto* one = echo->add_coordinates();
    one->set_volume(volume);
    one->set_epoch(raw(claim.epoch));
    one->set_coordinator_key(raw(claim.key));
  }
  auto now = with_.loop->now();
  if (with_.reached)
    for (const auto& each : with_.reached()) {
      auto* one = echo->add_reached();
      one->set_volume(each.volume);
      one->set_ago_ms(ms_since(each.at, now));
    }
  if (with_.signs)
    for (const auto& each : with_.signs()) {
      if (echo->signs_size() == protocol::kMaxSigns) break;
      auto* one = echo->add_signs();
      one->set_node(raw(each.node));
      one->set_volume(each.volume);
      one->set_moved_ago_ms(ms_since(each.moved, now));
      one->set_still(each.still);
      one->set_connected(each.connected);
      one->set_quorate(!each.quorate ? 0 : *each.quorate ? 1 : 2);
    }
  other.in->send(std::move(reply));
}

void Beats::claim(const std::string& volume, Epoch epoch, Key key) {
  own_[volume] = {epoch, key};
  for (auto& [id, other] : others_) echo(*other);
  with_.changed();  // this node's own mounts wait for it as the others' do
}

void Beats::disclaim(const std::string& volume) {
  if (own_.erase(volume) == 0) return;
  for (auto& [id, other] : others_) echo(*other);
  with_.changed();
}

std::optional<Coordinator> Beats::coordinator(const std::string& volume) const {
  std::optional<Coordinator> best;
  auto consider = [&](NodeId node, const std::string& endpoint, const Claims& claims) {
    auto found = claims.find(volume);
    if (found == claims.end()) return;
    const auto& claim = found->second;
    if (!best || std::tie(claim.epoch, claim.key) > std::tie(best->epoch, best->key))
      best = Coordinator{node, endpoint, claim.epoch, claim.key};
  };
  consider(with_.node, with_.endpoint, own_);
  for (const auto& [id, other] : others_) consider(id, other->peer.address, other->claims);
  return best;
}

std::vector<PeerStatus> Beats::peers() const {
  std::vector<PeerStatus> out;
  for (const auto& [id, other] : others_)
    out.push_back(
        {.id = id,
         .name = other->peer.name,
         .address = other->peer.address,
         .present = other->echoed && with_.loop->now() - other->last_echo <= with_.timing.term,
         .incarnation = other->incarnation,
         .last_echo = other->last_echo,
         .last_heard = other->last_heard,
         .trouble = other->trouble});
  return out;
}

bool Beats::present(NodeId peer) const {
  auto found = others_.find(peer);
  return found != others_.end() && present(*found->second);
}

bool Beats::both_ways(NodeId peer) const {
  auto found = others_.find(peer);
  return found != others_.end() && present(*found->second) &&
         with_.loop->now() - found->second->last_heard <= with_.timing.term;
}

bool Beats::absent(NodeId peer) const {
  auto found = others_.find(peer);
  return found != others_.end() && found->second->absent;
}

Beats::Claims Beats::claims_of(NodeId peer) const {
  auto found = others_.find(peer);
  return found == others_.end() ? Claims{} : found->second->claims;
}

TimePoint Beats::reached_by_peers(const std::string& volume) const {
  TimePoint out{};
  for (const auto& [id, other] : others_)
    if (auto found = other->reached.find(volume); found != other->reached.end())
      out = std::max(out, found->second);
  return out;
}

std::vector<StorageSign> Beats::peers_signs() const {
  std::vector<StorageSign> out;
  for (const auto& [id, other] : others_)
    if (present(*other)) out.insert(out.end(), other->signs.begin(), other->signs.end());
  return out;
}

bool Beats::present(const Other& other) const {
  return other.echoed && with_.loop->now() - other.last_echo <= with_.timing.term;
}

bool Beats::settled() const {
  for (const auto& [id, other] : others_)
    if (!other->echoed && !other->absent) return false;
  return true;
}

bool Beats::all_present() const {
  for (const auto& [id, other] : others_)
    if (!present(*other)) return false;
  return true;
}

bool Beats::claimed_by_peer(const std::string& volume) const {
  for (const auto& [id, other] : others_)
    if (present(*other) && other->claims.count(volume) > 0) return true;
  return false;
}

Beats::Other* Beats::find(std::uint32_t node) {
  auto found = others_.find(NodeId{static_cast<std::uint8_t>(node)});
  return found == others_.end() ? nullptr : found->second.get();
}

}  // namespace csv::cluster
