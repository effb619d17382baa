#include "coordinator/cluster/standalone_membership.h"

#include <algorithm>
#include <utility>

namespace csv::cluster {

StandaloneMembership::StandaloneMembership(Surroundings with)
    : loop_{with.loop},
      node_{with.node},
      term_{with.timing.term},
      changed_{std::move(with.changed)},
      beats_{around(with)} {
  renew_own();
  beats_.set_peers(with.peers);
  beats_.start();
}

Beats::Surroundings StandaloneMembership::around(Surroundings with) {
  return {.loop = with.loop,
          .transport = with.transport,
          .node = with.node,
          .endpoint = with.endpoint,
          .incarnation = with.incarnation,
          .timing = with.timing,
          .worth = [](NodeId) { return Beats::Worth{}; },
          .echoed =
              [this](NodeId by, const Beats::Echo& echo) {
                for (auto& [volume, claim] : beats_.claims_of(by)) renew(volume, by, echo.sent_at);
              },
          .changed =
              [this] {
                renew_own();
                if (changed_) changed_();
              }};
}

void StandaloneMembership::renew_own() {
  auto now = loop_->now();
  own_lease_ = now + term_;
  for (const auto& [volume, claim] : beats_.own()) renew(volume, node_, now);
}

void StandaloneMembership::renew(const std::string& volume, NodeId by, TimePoint sent_at) {
  // Only the coordinator in force counts: one that was superseded and does not know it yet may
  // still echo, but promises nothing any more.
  auto holds = coordinator(volume);
  if (!holds || holds->node != by) return;
  auto& lease = leases_[volume];
  lease = std::max(lease, sent_at + term_);
}

void StandaloneMembership::accept(std::unique_ptr<protocol::Connection> connection,
                                  protocol::Message beat) {
  beats_.accept(std::move(connection), beat);
}

void StandaloneMembership::coordinating(const std::string& volume, Epoch epoch, Key key) {
  beats_.claim(volume, epoch, key);
  renew(volume, node_, loop_->now());
}

TimePoint StandaloneMembership::open_until(const std::string& volume) const {
  auto found = leases_.find(volume);
  return found == leases_.end() ? TimePoint{} : found->second;
}

}  // namespace csv::cluster
