#pragma once
#include "csvfs/base/loop.h"

namespace csv::cluster {

/// When a node may still answer from what it holds of a volume, and when the volume's coordinator
/// may be sure that it no longer does. Rates of clocks are trusted to `drift_permille`, their
/// values never: each side measures differences on its own clock.
///
/// A node counts `term` from the moment it *sent* a beat that the coordinator's node echoed. The
/// coordinator's node counts `over_after` from the moment it last *heard* one, which is never
/// earlier. The slowest node and the fastest coordinator must not overlap: safe().
///
///   node         sends ├───────── term ─────────┤ closed
///   coordinator     hears ├────────── over_after ──────────┤ surely over
///
/// The lease protects answers and caches; what protects the LUN is the fence (docs/safety.md).
struct LeaseTiming {
  Duration beat_interval = 300ms;
  Duration term = 3s;
  Duration over_after = 3100ms;
  int drift_permille = 10;

  [[nodiscard]] constexpr bool safe() const {
    return over_after * (1000 - drift_permille) >= term * (1000 + drift_permille);
  }
  /// Three beats in a row may be lost or late before a healthy node's gate closes.
  [[nodiscard]] constexpr bool steady() const { return term >= 4 * beat_interval; }
};
static_assert(LeaseTiming{}.safe() && LeaseTiming{}.steady());
static_assert(!LeaseTiming{.over_after = LeaseTiming{}.term}.safe(),
              "a coordinator that waits for the term alone trusts clocks to run alike");

}  // namespace csv::cluster
