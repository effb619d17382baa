#pragma once
#include <memory>
#include <optional>
#include <string>

#include "iscsi/block_device.h"
#include "iscsi/io_ring.h"
#include "iscsi/lun.h"

namespace csv::iscsi {

/// What an errno of the block layer means for a command, and for the Lun.
struct DeviceVerdict {
  Error error;
  std::optional<Error> ends;  ///< The Lun is of no more use, and why.
};
DeviceVerdict judge_device(int number, IoRing::Operation::Kind kind, bool registered);
/// Whether a discard that failed has been answered by the device: else it may take effect yet.
bool was_answered(const Error& discard);

/// A Lun over a local block device: io_uring on a thread of its own for reads and writes, another
/// thread for what blocks (reservations, discards).
///
/// The kernel cannot be made to let go of a buffer. So when the Lun ends (deadline, fence,
/// close()), on_lost() tells at once, but what was in flight is answered only when the kernel gives
/// it back, and the destructor waits for that. What a read or write has come to is told as it is,
/// also after the end.
class LocalLun final : public Lun {
 public:
  /// Answers on `home`. See open_lun().
  static void open(Loop& home, std::string path, LunOptions options, BlockDevice::Kind kind,
                   Function<void(Expected<std::unique_ptr<Lun>>)> done);
  ~LocalLun() override;

  [[nodiscard]] const Geometry& geometry() const override;
  [[nodiscard]] const TargetProfile& profile() const override;
  [[nodiscard]] LunCounters counters() const override;
  void on_lost(Function<void(Error)> handler) override;
  void close() override;

  void read(std::uint64_t offset, std::span<std::byte> out, Done done) override;
  void write(std::uint64_t offset, std::span<const std::byte> data, WriteOptions options,
             Done done) override;
  void flush(Done done) override;
  void write_zeroes(std::uint64_t offset, std::uint64_t length, Done done) override;
  void unmap(std::uint64_t offset, std::uint64_t length, Done done) override;

  void register_key(Key key, Done done) override;
  void register_exactly(Key existing, Key key, Done done) override;
  void reserve(Key mine, ReservationType type, Done done) override;
  void release(Key mine, ReservationType type, Done done) override;
  void clear(Key mine, Done done) override;
  void preempt(Key mine, Key victim, ReservationType type, bool abort, Done done) override;
  void reset(Done done) override;

  void read_keys(Function<void(Expected<KeyList>)> done) override;
  void read_reservation(Function<void(Expected<Reservation>)> done) override;
  void report_capabilities(Function<void(Expected<ReservationCapabilities>)> done) override;
  void read_full_status(Function<void(Expected<std::vector<FullStatusEntry>>)> done) override;

 private:
  class State;
  explicit LocalLun(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace csv::iscsi
