#include "iscsi/blocking_lun.h"

#include <mutex>

namespace csv::iscsi {
namespace {

/// Waits for the one answer of what `submit` submits.
template <typename T>
Expected<T> answer(Blocking& blocking, Function<void(Function<void(Expected<T>)>)> submit) {
  std::optional<Expected<T>> result;
  blocking.wait([&](std::function<void()> wake) {
    submit([&result, wake = std::move(wake)](Expected<T> said) {
      result.emplace(std::move(said));
      wake();
    });
  });
  return std::move(*result);
}

/// A batch in flight: the waiting thread submits the first `depth`, each answer submits the next.
/// Answers come on the Lun's loop while the first are still being submitted, hence the mutex.
struct Batch : std::enable_shared_from_this<Batch> {
  std::mutex mutex;
  std::size_t next = 0, count = 0, in_flight = 0;
  Expected<void> result;
  std::function<void(std::size_t, Done)> submit;
  std::function<void()> wake;

  void start(std::size_t depth) {
    for (std::size_t i = 0; i < depth && advance(); ++i) {
    }
  }

 private:
  /// Submits one more, if there is one and nothing failed.
  bool advance() {
    std::size_t index = 0;
    {
      std::lock_guard lock{mutex};
      if (next == count || !result) return false;
      index = next++;
      ++in_flight;
    }
    submit(index, [self = shared_from_this()](Expected<void> said) { self->answered(said); });
    return true;
  }
  void answered(const Expected<void>& said) {
    {
      std::lock_guard lock{mutex};
      if (!said && result) result = said;
    }
    advance();
    bool over = false;
    {
      std::lock_guard lock{mutex};
      --in_flight;
      over = in_flight == 0 && (next == count || !result);
    }
    if (over) wake();
  }
};

Expected<void> run_batch(Blocking& blocking, std::size_t count, int depth,
                         std::function<void(std::size_t, Done)> submit) {
  if (count == 0) return {};
  auto batch = std::make_shared<Batch>();
  batch->count = count;
  batch->in_flight = 1;  // Held by this thread while it submits, so that the end is seen once.
  batch->submit = std::move(submit);
  blocking.wait([&](std::function<void()> wake) {
    batch->wake = std::move(wake);
    batch->start(static_cast<std::size_t>(depth));
    bool over = false;
    {
      std::lock_guard lock{batch->mutex};
      over = --batch->in_flight == 0;
    }
    if (over) batch->wake();
  });
  return batch->result;
}

}  // namespace

Expected<void> BlockingLun::read(std::uint64_t offset, std::span<std::byte> out) {
  return answer<void>(*blocking_, [&](Done done) { lun_->read(offset, out, std::move(done)); });
}

Expected<void> BlockingLun::read(std::span<const Read> reads, int depth) {
  return run_batch(*blocking_, reads.size(), depth, [this, reads](std::size_t i, Done done) {
    lun_->read(reads[i].offset, reads[i].out, std::move(done));
  });
}

Expected<void> BlockingLun::write(std::uint64_t offset, std::span<const std::byte> data,
                                  Lun::WriteOptions options) {
  return answer<void>(*blocking_,
                      [&](Done done) { lun_->write(offset, data, options, std::move(done)); });
}

Expected<void> BlockingLun::write(std::span<const Write> writes, Lun::WriteOptions options,
                                  int depth) {
  return run_batch(*blocking_, writes.size(), depth,
                   [this, writes, options](std::size_t i, Done done) {
                     lun_->write(writes[i].offset, writes[i].data, options, std::move(done));
                   });
}

Expected<void> BlockingLun::flush() {
  return answer<void>(*blocking_, [&](Done done) { lun_->flush(std::move(done)); });
}

Expected<void> BlockingLun::write_zeroes(std::uint64_t offset, std::uint64_t length) {
  return answer<void>(*blocking_,
                      [&](Done done) { lun_->write_zeroes(offset, length, std::move(done)); });
}

Expected<void> BlockingLun::unmap(std::uint64_t offset, std::uint64_t length) {
  return answer<void>(*blocking_, [&](Done done) { lun_->unmap(offset, length, std::move(done)); });
}

Expected<void> BlockingLun::register_key(Key key) {
  return answer<void>(*blocking_, [&](Done done) { lun_->register_key(key, std::move(done)); });
}

Expected<void> BlockingLun::reserve(Key mine, ReservationType type) {
  return answer<void>(*blocking_, [&](Done done) { lun_->reserve(mine, type, std::move(done)); });
}

Expected<void> BlockingLun::release(Key mine, ReservationType type) {
  return answer<void>(*blocking_, [&](Done done) { lun_->release(mine, type, std::move(done)); });
}

Expected<void> BlockingLun::clear(Key mine) {
  return answer<void>(*blocking_, [&](Done done) { lun_->clear(mine, std::move(done)); });
}

Expected<void> BlockingLun::preempt(Key mine, Key victim, ReservationType type, bool abort) {
  return answer<void>(
      *blocking_, [&](Done done) { lun_->preempt(mine, victim, type, abort, std::move(done)); });
}

Expected<void> BlockingLun::reset() {
  return answer<void>(*blocking_, [&](Done done) { lun_->reset(std::move(done)); });
}

Expected<KeyList> BlockingLun::read_keys() {
  return answer<KeyList>(*blocking_, [&](auto done) { lun_->read_keys(std::move(done)); });
}

Expected<Reservation> BlockingLun::read_reservation() {
  return answer<Reservation>(*blocking_,
                             [&](auto done) { lun_->read_reservation(std::move(done)); });
}

}  // namespace csv::iscsi
