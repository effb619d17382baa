#pragma once
#include <memory>

#include "csvfs/base/asio_loop.h"
#include "iscsi/lun.h"
#include "iscsi/lun_url.h"

namespace csv::iscsi {

/// A Lun over one or more iSCSI sessions, each a nexus. The first lives on the home loop, so that
/// small commands change no thread; the others have threads of their own, for commands whose bytes
/// take longer to copy than a thread takes to wake, and for what is too much for one session.
/// What is about reservations goes to the first, registering to all. The loss of one session ends
/// all of them, and nothing is answered lun_lost before the last is gone.
class IscsiLun final : public Lun {
 public:
  /// Connects all sessions and finds out what the LUN is. See open_lun().
  static void open(AsioLoop& home, IscsiAddress address, LunOptions options,
                   Function<void(Expected<std::unique_ptr<Lun>>)> done);
  /// On the home loop, or when that has ended. Drops the sessions; unanswered commands are
  /// destroyed without an answer.
  ~IscsiLun() override;

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
  explicit IscsiLun(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace csv::iscsi
