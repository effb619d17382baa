#include "csvfs/finder.h"

#include <utility>

namespace csv {

namespace {
/// Longer than an attempt to connect and greet, or than a pause between two attempts.
constexpr Duration kRecently = 15s;
}  // namespace

void Finder::connect(protocol::Connected done) {
  if (auto named = std::exchange(elsewhere_, std::nullopt))
    return setup_.transport->connect(named->id, named->endpoint, std::move(done));
  auto to = setup_.by_csvd();
  auto now = setup_.loop->now();
  bool in_vain = to && asked_ && asked_->first == to->endpoint &&
                 now - asked_->second < kRecently && !setup_.peers.empty();
  asked_.reset();
  if (!to || in_vain) return connect_to_a_peer(to.error(), std::move(done));
  asked_.emplace(to->endpoint, now);
  setup_.transport->connect(
      to->id, to->endpoint,
      [this, alive = std::weak_ptr{alive_}, done = std::move(done)](auto connected) mutable {
        if (connected || !alive.lock()) return done(std::move(connected));
        // There is no need to wait for the next attempt.
        asked_.reset();
        connect_to_a_peer(connected.error(), std::move(done));
      });
}

void Finder::connect_to_a_peer(const Error& why, protocol::Connected done) {
  if (setup_.peers.empty())
    return setup_.loop->post([done = std::move(done), why]() mutable { done(why); });
  const auto& peer = setup_.peers[next_peer_++ % setup_.peers.size()];
  setup_.transport->connect(peer.id, peer.endpoint,
                            [why, done = std::move(done)](auto connected) mutable {
                              // What is wrong here is what people can act on.
                              if (!connected && why.code()) return done(why);
                              done(std::move(connected));
                            });
}

}  // namespace csv
