#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv {

/// What a mount publishes for `csvctl status` and metrics. Monotonic counters.
struct MountCounters {
  std::uint64_t operations = 0;                           ///< File operations answered.
  std::uint64_t direct_reads = 0, direct_read_bytes = 0;  ///< Sent to the LUN by this node.
  std::uint64_t direct_writes = 0, direct_write_bytes = 0;
  std::uint64_t redirected_reads = 0,
                redirected_read_bytes = 0;  ///< Content that went through the coordinator.
  std::uint64_t redirected_writes = 0, redirected_write_bytes = 0;
  std::uint64_t requests = 0, reconnects = 0, recalls = 0, readmissions = 0, stale_commits = 0;
  /// Reads and writes that programs were answered, and how long these took together.
  std::uint64_t reads = 0, read_us = 0, writes = 0, write_us = 0;
};

enum class AccessMode : std::uint8_t {
  unavailable = 0,
  paused = 1,
  direct = 2,
  block_redirected = 3,
  redirected = 4
};

/// What csvd knows of a volume on this node.
struct BoardVolume {
  std::string name;      ///< At most 63 bytes.
  std::string endpoint;  ///< Of its coordinator, "address:port"; empty: not known.
  Epoch epoch{};
  Key coordinator_key{};
  NodeId coordinator{};
  bool stopped = false;  ///< By command: nobody shall coordinate it for now.
};
/// What the volume's mount on this node says of itself.
struct BoardMount {
  std::uint32_t pid = 0;
  AccessMode mode{};
  std::string reason;  ///< Why it is not direct; at most 127 bytes.
  TimePoint since{};
  /// When the last write of its heartbeat slot that the LUN has answered was sent; in milliseconds,
  /// the clock's beginning: never, or it does not say.
  TimePoint reached{};
  /// It sends nothing to the LUN any more, until it has said otherwise here.
  bool gate_closed = false;
  TimePoint said{};  ///< When, in whole tenths of a second; or earlier versions, which do not say.
  MountCounters counters;
};

/// What csvd and the mounts of its node share: one fixed, versioned struct of lock-free 64-bit
/// atomics in a shared memory object (Boost.Interprocess), made under a temporary name and renamed
/// into place, so that nobody ever sees half of it. Survives the crash of either side; a reader
/// never waits (groups of fields are two copies and an index, C8). Any thread may read; csvd alone
/// writes the volumes, each mount its own part.
class StatusBoard {
 public:
  static constexpr std::size_t kVolumes = 64;
  /// csvd's: opens the existing board of a former life (mounts keep theirs mapped) or makes one.
  static Expected<std::unique_ptr<StatusBoard>> create(const std::string& name);
  static Expected<std::unique_ptr<StatusBoard>> open(const std::string& name);
  virtual ~StatusBoard() = default;

  /// The index of a volume's place, taking a free one where `add`. kVolumes: none.
  virtual std::size_t find(const std::string& volume, bool add) = 0;
  virtual void publish(std::size_t at, const BoardVolume& volume) = 0;
  [[nodiscard]] virtual std::optional<BoardVolume> volume(std::size_t at) const = 0;
  /// The I/O gate: closed at and after this moment, without anybody's help (A14). CLOCK_BOOTTIME.
  virtual void set_open_until(std::size_t at, TimePoint deadline) = 0;
  [[nodiscard]] virtual TimePoint open_until(std::size_t at) const = 0;
  virtual void publish(std::size_t at, const BoardMount& mount) = 0;
  [[nodiscard]] virtual std::optional<BoardMount> mount(std::size_t at) const = 0;
};

}  // namespace csv
