#pragma once
#include <map>
#include <optional>
#include <vector>

#include "csvfs/base/heartbeat_slot.h"
#include "csvfs/base/ids.h"

namespace csv::service {

/// Whether the slots of the mounts move that should write one. A slot moves if it carries the key
/// under which its mount is admitted, and a counter above the one before.
///
/// Standing still is what several reads in a row have seen, never what the clock says: while the
/// LUN does not answer the reader either, nothing is read, and nobody stands still.
class SlotWatch {
 public:
  struct Writer {
    SessionId session{};
    Key key{};  ///< Key{}: it is not admitted, so it cannot write.
  };
  struct State {
    TimePoint moved{};  ///< Seen to; never yet: when it was first waited for.
    bool still = false;
    std::optional<bool> quorate;  ///< As the slot said last.
  };
  /// So many reads in a row, a second apart, without a move.
  static constexpr int kStill = 5;
  /// After a gap between two reads longer than this, counting begins anew.
  static constexpr Duration kGap = 3s;

  /// A round of reads begins: of these sessions; others are forgotten.
  void begin(const std::vector<Writer>& writers, TimePoint now);
  /// What a writer's slot has; an error where it was never written, or is damaged (read it again
  /// before that is believed). Once a writer and round, also of those that cannot write.
  void saw(SessionId session, const Expected<HeartbeatSlot>& slot, TimePoint now);

  [[nodiscard]] std::optional<State> of(SessionId session) const;

 private:
  struct Watched {
    Key key{};
    std::uint64_t counter = 0;
    int stood = 0;
    State state;
  };
  std::map<SessionId, Watched> watched_;
  std::optional<TimePoint> last_round_;
};

}  // namespace csv::service
