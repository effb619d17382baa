#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "csvfs/base/error.h"
#include "iscsi/lun.h"
#include "iscsi/target_profile.h"

namespace csv::iscsi {

/// A local block device as the kernel shows it: what it is, and the calls that are neither reads
/// nor writes. Every call blocks until the device has answered. One thread at a time, but for fd().
///
/// Reservations go through <linux/pr.h>, which dm-multipath turns into one on each path; what that
/// cannot ask goes through SG_IO. Devices that take no SCSI commands cannot say which keys they
/// have.
class BlockDevice {
 public:
  enum class Kind {
    device,         ///< What is no block device is refused.
    file_for_test,  ///< A regular file will do: reads and writes, no reservations.
  };
  /// Exclusively: refused while it is mounted, or held by whatever else in this system.
  static Expected<std::unique_ptr<BlockDevice>> open(const std::string& path, Kind kind);
  ~BlockDevice();
  BlockDevice(const BlockDevice&) = delete;
  BlockDevice& operator=(const BlockDevice&) = delete;

  /// For direct I/O in whole logical blocks, from memory aligned to alignment().
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] std::size_t alignment() const { return alignment_; }
  /// By SG_IO where it takes SCSI commands, else by what the kernel knows.
  Expected<LunDescription> describe();

  Expected<void> discard(std::uint64_t offset, std::uint64_t length);

  Expected<void> register_key(Key existing, Key key, bool ignore_existing);
  Expected<void> reserve(Key mine, ReservationType type);
  Expected<void> release(Key mine, ReservationType type);
  Expected<void> clear(Key mine);
  Expected<void> preempt(Key mine, Key victim, ReservationType type, bool abort);
  Expected<void> reset();
  /// The whole answer to a PERSISTENT RESERVE IN.
  Expected<std::vector<std::byte>> reserve_in(ReserveIn action);

  /// One SCSI command by SG_IO; how many bytes of `in` came.
  Expected<std::size_t> scsi(const ScsiAsker::Question& question);

 private:
  BlockDevice() = default;
  Expected<void> read_geometry();
  LunDescription describe_by_kernel() const;
  [[nodiscard]] std::string attribute(const std::string& name) const;
  enum class Repeat { no, yes };
  Expected<void> control(const char* what, unsigned long request, void* argument,
                         Repeat repeat = Repeat::yes);

  std::string path_, sysfs_;
  int fd_ = -1;
  bool regular_ = false;
  std::size_t alignment_ = 4096;
  Geometry geometry_;
  bool read_only_ = false;
};

}  // namespace csv::iscsi
