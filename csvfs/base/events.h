#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/loop.h"

namespace csv::events {

enum class Severity : std::uint8_t { info = 0, warning = 1, error = 2 };
std::string_view to_text(Severity severity);

/// A transition that an administrator may want to know of: what changed, and why.
struct Event {
  std::uint64_t sequence = 0;  ///< Of its first time; grows by one with every event of the node.
  std::uint64_t order = 0;     ///< Grows with every report, a repeat of this one too.
  Severity severity{};
  std::uint32_t pid = 0;
  std::string program;  ///< "csvd", "csvfs": who says so.
  std::string what;     ///< The kind: "mount", "coordination", "fence", …; docs/csvctl.md.
  std::string volume;   ///< Empty where it concerns the node.
  std::string text;     ///< What happened.
  std::string cause;    ///< Why, as far as is known; may be empty.
  WallTime first{}, last{};
  std::uint32_t count = 1;  ///< How often within the repeats that were folded into it.
};

inline constexpr const char* kFile = "/run/csvfs/events";

/// From now on this process's reports go to the node's ring, which is made if need be. Without it,
/// as in tests and simulations, they go nowhere.
Expected<void> open(const std::string& program, const std::string& path = kFile);
void close();

/// One event a transition, at the place that decided it. Any thread; never waits, never fails.
/// Texts are cut at about 200 bytes. The same text of the same kind and volume within a minute of
/// its last time is counted, not repeated; the newest cause stands.
void report(Severity severity, std::string_view what, std::string_view volume,
            std::string_view text, std::string_view cause = {});

/// The last 1024 events of a node, in memory that outlives the processes which write it: a file of
/// a tmpfs that csvd and every csvfs map, each slot of which checks itself. Whoever dies while
/// writing costs that one event. Reading needs nobody to run.
class Ring {
 public:
  static constexpr std::size_t kSlots = 1024;
  static Expected<std::unique_ptr<Ring>> make(const std::string& path);
  static Expected<std::unique_ptr<Ring>> read_only(const std::string& path = kFile);
  virtual ~Ring() = default;
  /// Those reported after `order`, in their order.
  [[nodiscard]] virtual std::vector<Event> after(std::uint64_t order) const = 0;
  /// Of the latest report: unchanged means that nothing is new.
  [[nodiscard]] virtual std::uint64_t latest() const = 0;
  /// Returns its sequence.
  virtual std::uint64_t add(Event event) = 0;
  /// Counts a repeat of an event this process has added. False: it is no longer there.
  virtual bool repeat(std::uint64_t sequence, WallTime now, std::string_view cause) = 0;
};

}  // namespace csv::events
