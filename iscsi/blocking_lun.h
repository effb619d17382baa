#pragma once
#include <span>
#include <vector>

#include "csvfs/base/blocking.h"
#include "iscsi/lun.h"

namespace csv::iscsi {

/// A Lun for code that must be synchronous: each call waits (Blocking) for its answer. Not on the
/// Lun's home loop, which must be free to run. Not thread-safe; make one a thread.
class BlockingLun {
 public:
  BlockingLun(Lun& lun, Blocking& blocking) : lun_{&lun}, blocking_{&blocking} {}

  struct Read {
    std::uint64_t offset = 0;
    std::span<std::byte> out;
  };
  struct Write {
    std::uint64_t offset = 0;
    std::span<const std::byte> data;
  };
  [[nodiscard]] Lun& lun() const { return *lun_; }
  Expected<void> read(std::uint64_t offset, std::span<std::byte> out);
  /// All at once, at most `depth` in flight. The first error, after all have answered.
  Expected<void> read(std::span<const Read> reads, int depth = 16);
  Expected<void> write(std::uint64_t offset, std::span<const std::byte> data,
                       Lun::WriteOptions options = {});
  Expected<void> write(std::span<const Write> writes, Lun::WriteOptions options = {},
                       int depth = 32);
  Expected<void> flush();
  Expected<void> write_zeroes(std::uint64_t offset, std::uint64_t length);
  Expected<void> unmap(std::uint64_t offset, std::uint64_t length);

  Expected<void> register_key(Key key);
  Expected<void> reserve(Key mine, ReservationType type);
  Expected<void> release(Key mine, ReservationType type);
  Expected<void> clear(Key mine);
  Expected<void> preempt(Key mine, Key victim, ReservationType type, bool abort);
  Expected<void> reset();
  Expected<KeyList> read_keys();
  Expected<Reservation> read_reservation();

 private:
  Lun* lun_;
  Blocking* blocking_;
};

}  // namespace csv::iscsi
