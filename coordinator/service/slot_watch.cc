#include "coordinator/service/slot_watch.h"

#include <algorithm>

namespace csv::service {

void SlotWatch::begin(const std::vector<Writer>& writers, TimePoint now) {
  std::erase_if(watched_, [&](const auto& each) {
    return std::none_of(writers.begin(), writers.end(),
                        [&](const Writer& one) { return one.session == each.first; });
  });
  bool gap = last_round_ && now - *last_round_ > kGap;
  last_round_ = now;
  for (const auto& writer : writers) {
    auto [at, is_new] = watched_.try_emplace(writer.session);
    auto& it = at->second;
    if (is_new) it.state.moved = now;
    if (gap) it.stood = 0;
    if (it.key == writer.key) continue;
    it.key = writer.key;
    it.counter = 0;
  }
}

void SlotWatch::saw(SessionId session, const Expected<HeartbeatSlot>& slot, TimePoint now) {
  auto found = watched_.find(session);
  if (found == watched_.end()) return;
  auto& it = found->second;
  bool moved = slot && it.key != Key{} && slot->key == it.key && slot->counter > it.counter;
  if (!moved) {
    it.stood = std::min(it.stood + 1, kStill);
    // One that stood still does so until it moves, whatever gaps there are.
    it.state.still = it.state.still || it.stood >= kStill;
    return;
  }
  it.counter = slot->counter;
  it.stood = 0;
  it.state = {now, false, slot->quorate};
}

std::optional<SlotWatch::State> SlotWatch::of(SessionId session) const {
  auto found = watched_.find(session);
  if (found == watched_.end()) return std::nullopt;
  return found->second.state;
}

}  // namespace csv::service
