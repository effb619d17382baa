#include "iscsi/local_lun.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "csvfs/base/buffer.h"
#include "csvfs/base/log.h"
#include "csvfs/base/thread_worker.h"
#include "iscsi/lun_range.h"
#include "iscsi/scsi.h"

namespace csv::iscsi {
namespace {

constexpr std::uint64_t kMostTransfer = 1 << 20;
constexpr std::uint64_t kMostZeroes = 64 << 20;
constexpr std::uint64_t kMostDiscard = 1 << 30;

/// A caller's request: the parts it was cut into, and whom to answer when the last has come back.
struct Request {
  int left = 0;
  Error error;  // of the part whose says most (scsi.h)
  Done done;
};

struct Part final : IoRing::Operation {
  std::shared_ptr<Request> request;
  Buffer bounce;              // where the caller's memory is not aligned for direct I/O
  std::byte* back = nullptr;  // what was read into it goes here
};

/// What zeros are written from. Never changed.
Buffer& zeroes() {
  static Buffer bytes = Buffer::zeroed(kMostTransfer);
  return bytes;
}

}  // namespace

DeviceVerdict judge_device(int number, IoRing::Operation::Kind kind, bool registered) {
  auto lost = [number] {
    return Error{Errc::lun_lost, std::string{"the device is gone: "} + std::strerror(number)};
  };
  auto of_all = [&]() -> DeviceVerdict {
    switch (number) {
      case EBADE: {
        if (!registered) return {{Errc::reservation_conflict, "RESERVATION CONFLICT"}, {}};
        Error why{Errc::fenced, "RESERVATION CONFLICT on a registered device"};
        return {why, why};
      }
      // A path without an answer is EIO to the kernel (DID_NO_CONNECT, a multipath without paths).
      // What a device answers has names of its own: ENODATA, EREMOTEIO, ENOSPC.
      case EIO:
      case ENODEV:
      case ENXIO:
      case ENOLINK:
      case ETIMEDOUT: return {lost(), lost()};
      case ENOSPC: return {{std::errc::no_space_on_device, "the thin LUN has no space left"}, {}};
      case EPERM:
      case EROFS: return {{std::errc::read_only_file_system, "the device is write-protected"}, {}};
      // The kernel's name for MEDIUM ERROR.
      case ENODATA: return {{Errc::bad_medium, "the device cannot read or write there"}, {}};
      case EREMOTEIO: return {{std::errc::io_error, "the device refused the command"}, {}};
      default: return {errno_error(number, "block device"), {}};
    }
  };
  auto verdict = of_all();
  if (kind != IoRing::Operation::Kind::flush) return verdict;
  // EIO of a flush may be the path's, or all that will ever be said of content that the device
  // could not write out. EREMOTEIO is ILLEGAL REQUEST as well as a hardware error.
  bool told = number == EIO || (!verdict.ends && verdict.error != Errc::reservation_conflict &&
                                number != EOPNOTSUPP && number != EINVAL);
  if (told)
    verdict.error = {Errc::not_durable,
                     std::string{"a flush of the device failed: "} + std::strerror(number)};
  return verdict;
}

bool was_answered(const Error& discard) {
  for (auto number : {EREMOTEIO, ENODATA, EPERM, EACCES, EROFS})
    if (discard == std::error_code{number, std::generic_category()}) return true;
  return discard == Errc::unsupported_by_target || discard == Errc::reservation_conflict;
}

/// Lives as long as the Lun, or longer by what is queued on the home loop. Unless a member says
/// otherwise, home loop only.
class LocalLun::State final : public std::enable_shared_from_this<State> {
 public:
  State(Loop& its_home, LunOptions its_options) : home{its_home}, options{std::move(its_options)} {}

  // ---------------------------------------------------------------- opening

  /// The control thread. Everything that may wait: the device may be slow to answer.
  Expected<void> open(const std::string& path, BlockDevice::Kind kind) {
    device = CSV_TRY(BlockDevice::open(path, kind));
    lun = CSV_TRY(device->describe());
    auto& profile = lun.profile;
    auto limit = [&](std::uint64_t named, std::uint64_t most) {
      auto bytes = named == 0 ? most : std::min(named, most);
      return std::max<std::uint64_t>(bytes / lun.geometry.block_size, 1) * lun.geometry.block_size;
    };
    profile.max_transfer = limit(profile.max_transfer, kMostTransfer);
    profile.max_write_same = limit(profile.max_write_same, kMostZeroes);
    profile.max_unmap = limit(profile.max_unmap, kMostDiscard);
    if (options.write_cache_safe) profile.write_cache = false;
    zero_works = profile.write_same;
    IoRing::Events events;
    events.answered = [self = weak_from_this()](IoRing::Batch batch) {
      auto state = self.lock();
      if (!state) return;
      state->home.post(
          [state, batch = std::move(batch)]() mutable { state->answered(std::move(batch)); });
    };
    events.overdue = [self = weak_from_this()] {
      auto state = self.lock();
      if (!state) return;
      ++state->counts.timeouts;
      state->home.post([state] {
        state->end({Errc::lun_lost, "no answer from the device within the deadline"});
      });
    };
    ring = CSV_TRY(IoRing::create(device->fd(), options.deadline, std::move(events)));
    log::info("lun open device={} identity={} size={} block={} write_cache={}", path,
              profile.identity, lun.geometry.size_bytes(), lun.geometry.block_size,
              profile.write_cache);
    return {};
  }

  void destroy() {
    destroyed = true;
    ring.reset();
    control.reset();
  }

  // --------------------------------------------------------------- commands

  /// Any thread. Tasks of the control thread answer so too.
  void answer_later(Done done, Expected<void> result) {
    home.post(
        [self = shared_from_this(), done = std::move(done), result = std::move(result)]() mutable {
          if (!self->destroyed) done(std::move(result));
        });
  }

  /// Any thread.
  void submit(std::unique_ptr<Part> part) {
    std::unique_ptr<IoRing::Operation> operation = std::move(part);
    if (ring->submit(operation)) return;
    operation->result = -ESHUTDOWN;
    IoRing::Batch batch;
    batch.push_back(std::move(operation));
    home.post([self = shared_from_this(), batch = std::move(batch)]() mutable {
      self->answered(std::move(batch));
    });
  }

  /// Any thread. [offset, offset + length) in parts; `data` of the first byte, or null.
  void submit_parts(IoRing::Operation::Kind kind, std::uint64_t offset, std::byte* data,
                    std::uint64_t length, std::uint64_t most, Done done) {
    auto request = std::make_shared<Request>();
    request->left = static_cast<int>((length + most - 1) / most);
    request->done = std::move(done);
    bool aligned = reinterpret_cast<std::uintptr_t>(data) % device->alignment() == 0;
    for (std::uint64_t at = 0; at < length; at += most) {
      auto part = std::make_unique<Part>();
      part->request = request;
      part->kind = kind;
      part->offset = offset + at;
      part->length = std::min(most, length - at);
      part->data = data ? data + at : nullptr;
      if (!aligned) {
        part->bounce = Buffer{part->length};
        if (kind == IoRing::Operation::Kind::read)
          part->back = part->data;
        else
          std::memcpy(part->bounce.data(), part->data, part->length);
        part->data = part->bounce.data();
      }
      submit(std::move(part));
    }
  }

  /// Any thread. One part after the other, so that a long range does not take all of the ring.
  void write_zeroes(std::uint64_t offset, std::uint64_t length, Done done) {
    bool by_device = zero_works;
    auto now = std::min(length, by_device ? lun.profile.max_write_same : lun.profile.max_transfer);
    auto next = [this, offset, length, now, by_device,
                 done = std::move(done)](Expected<void> result) mutable {
      if (!result && by_device && result.error() == std::errc::operation_not_supported) {
        zero_works = false;
        return write_zeroes(offset, length, std::move(done));
      }
      if (!result || now == length) return done(std::move(result));
      write_zeroes(offset + now, length - now, std::move(done));
    };
    if (by_device)
      submit_parts(IoRing::Operation::Kind::zero, offset, nullptr, now, now, std::move(next));
    else
      submit_parts(IoRing::Operation::Kind::write, offset, zeroes().data(), now, now,
                   std::move(next));
  }

  void answered(IoRing::Batch batch) {
    for (auto& each : batch) {
      if (destroyed) return;
      auto& part = static_cast<Part&>(*each);
      if (part.result == 0 && part.back) std::memcpy(part.back, part.data, part.length);
      auto& request = *part.request;
      if (part.result != 0) {
        // Each, as each may be what ends the Lun.
        auto why = judge(-part.result, part.kind);
        if (outweighs(why, request.error)) request.error = std::move(why);
      }
      if (--request.left > 0) continue;
      auto keep = part.request;
      keep->done(keep->error.code() ? Expected<void>{keep->error} : Expected<void>{});
    }
  }

  /// What an errno of the block layer means; ends the Lun where that is what it means.
  Error judge(int number, IoRing::Operation::Kind kind) {
    if (number == ESHUTDOWN) {
      if (fate) return *fate;
      return {Errc::lun_lost, "the LUN was closed"};
    }
    if (number == EBADE) ++counts.conflicts;
    auto verdict = judge_device(number, kind, registered);
    if (verdict.ends) end(*verdict.ends);
    return verdict.error;
  }

  // ---------------------------------------------------------- control thread

  /// Any thread. Runs `work` on the control thread, and answers at home with what it returns.
  template <typename T, typename F>
  void run(F work, Function<void(Expected<T>)> done) {
    control->post([self = shared_from_this(), work = std::move(work),
                   done = std::move(done)]() mutable {
      Expected<T> result = self->closed ? Expected<T>{Error{Errc::lun_lost, "the LUN was closed"}}
                                        : work(*self->device);
      self->home.post([self, done = std::move(done), result = std::move(result)]() mutable {
        if (self->destroyed) return;
        if (!result && result.error() == Errc::reservation_conflict) ++self->counts.conflicts;
        if (!result && (result.error() == Errc::lun_lost || result.error() == Errc::fenced))
          self->end(result.error());
        done(std::move(result));
      });
    });
  }

  // -------------------------------------------------------------------- end

  void end(Error why) {
    if (destroyed || fate) return;
    fate = std::move(why);
    if (!closed)
      log::warning("lun lost identity={} why=\"{}\"", lun.profile.identity, fate->message());
    bool by_itself = !closed.exchange(true);
    ring->close();
    if (!by_itself || !lost_handler) return;
    home.post(
        [self = shared_from_this(), handler = std::exchange(lost_handler, nullptr)]() mutable {
          if (!self->destroyed) handler(*self->fate);
        });
  }

  // Any thread: nothing here changes once the Lun is open, but for the atomics.
  Loop& home;
  const LunOptions options;
  std::unique_ptr<BlockDevice> device;
  LunDescription lun;
  std::atomic<bool> zero_works{true}, closed{false}, registered{false};
  struct {
    std::atomic<std::uint64_t> reads{0}, read_bytes{0}, writes{0}, write_bytes{0}, flushes{0},
        zeroes{0}, unmaps{0}, conflicts{0}, timeouts{0};
  } counts;

  // Home loop.
  bool destroyed = false;
  std::optional<Error> fate;
  Function<void(Error)> lost_handler;

  // Last: their threads use the above.
  std::unique_ptr<IoRing> ring;
  std::unique_ptr<ThreadWorker> control = std::make_unique<ThreadWorker>("lun-control");
};

void LocalLun::open(Loop& home, std::string path, LunOptions options, BlockDevice::Kind kind,
                    Function<void(Expected<std::unique_ptr<Lun>>)> done) {
  auto state = std::make_shared<State>(home, std::move(options));
  auto* control = state->control.get();
  control->post([state, path = std::move(path), kind, done = std::move(done)]() mutable {
    auto opened = state->open(path, kind);
    auto& loop = state->home;
    loop.post(
        [state = std::move(state), opened = std::move(opened), done = std::move(done)]() mutable {
          if (opened) return done(std::unique_ptr<Lun>{new LocalLun{std::move(state)}});
          state->destroy();
          done(opened.error());
        });
  });
}

LocalLun::LocalLun(std::shared_ptr<State> state) : state_{std::move(state)} {}
LocalLun::~LocalLun() { state_->destroy(); }

const Geometry& LocalLun::geometry() const { return state_->lun.geometry; }
const TargetProfile& LocalLun::profile() const { return state_->lun.profile; }

LunCounters LocalLun::counters() const {
  auto& counts = state_->counts;
  LunCounters sum;
  sum.reads = counts.reads;
  sum.read_bytes = counts.read_bytes;
  sum.writes = counts.writes;
  sum.write_bytes = counts.write_bytes;
  sum.flushes = counts.flushes;
  sum.zeroes = counts.zeroes;
  sum.unmaps = counts.unmaps;
  sum.conflicts = counts.conflicts;
  sum.timeouts = counts.timeouts;
  return sum;
}

void LocalLun::on_lost(Function<void(Error)> handler) {
  state_->home.post([state = state_, handler = std::move(handler)]() mutable {
    if (state->destroyed) return;
    if (state->fate)
      handler(*state->fate);
    else
      state->lost_handler = std::move(handler);
  });
}

void LocalLun::close() {
  if (state_->closed.exchange(true)) return;
  state_->ring->close();
  state_->home.post([state = state_] { state->end({Errc::lun_lost, "the LUN was closed"}); });
}

void LocalLun::read(std::uint64_t offset, std::span<std::byte> out, Done done) {
  auto& state = *state_;
  auto valid = check_range(state.lun.geometry, "a read", offset, out.size());
  if (!valid || out.empty()) return state.answer_later(std::move(done), std::move(valid));
  ++state.counts.reads;
  state.counts.read_bytes += out.size();
  state.submit_parts(IoRing::Operation::Kind::read, offset, out.data(), out.size(),
                     state.lun.profile.max_transfer, std::move(done));
}

void LocalLun::write(std::uint64_t offset, std::span<const std::byte> data, WriteOptions options,
                     Done done) {
  auto& state = *state_;
  auto valid = check_range(state.lun.geometry, "a write", offset, data.size());
  if (!valid || data.empty()) return state.answer_later(std::move(done), std::move(valid));
  ++state.counts.writes;
  state.counts.write_bytes += data.size();
  auto kind = options.fua && state.lun.profile.write_cache ? IoRing::Operation::Kind::write_durable
                                                           : IoRing::Operation::Kind::write;
  // Only read through.
  state.submit_parts(kind, offset, const_cast<std::byte*>(data.data()), data.size(),
                     state.lun.profile.max_transfer, std::move(done));
}

void LocalLun::flush(Done done) {
  ++state_->counts.flushes;
  if (!state_->lun.profile.write_cache) return state_->answer_later(std::move(done), {});
  state_->submit_parts(IoRing::Operation::Kind::flush, 0, nullptr, 1, 1, std::move(done));
}

void LocalLun::write_zeroes(std::uint64_t offset, std::uint64_t length, Done done) {
  auto valid = check_range(state_->lun.geometry, "zeros", offset, length);
  if (!valid || length == 0) return state_->answer_later(std::move(done), std::move(valid));
  ++state_->counts.zeroes;
  state_->write_zeroes(offset, length, std::move(done));
}

void LocalLun::unmap(std::uint64_t offset, std::uint64_t length, Done done) {
  auto& state = *state_;
  auto valid = check_range(state.lun.geometry, "an unmap", offset, length);
  if (!valid || length == 0 || !state.lun.profile.unmap)
    return state.answer_later(std::move(done), std::move(valid));
  ++state.counts.unmaps;
  auto most = state.lun.profile.max_unmap;
  state.run<void>(
      [offset, length, most, held = &state.registered](BlockDevice& device) -> Expected<void> {
        for (std::uint64_t at = 0; at < length; at += most) {
          auto result = device.discard(offset + at, std::min(most, length - at));
          // Only a hint: a device that does not take it has done all there is to do.
          if (result || result.error() == Errc::unsupported_by_target) continue;
          if (result.error() == Errc::reservation_conflict && *held)
            return Error{Errc::fenced, "RESERVATION CONFLICT on a registered device"};
          // It may yet zero what the caller is about to use again.
          if (!was_answered(result.error()))
            return Error{Errc::lun_lost, "a discard has no answer: " + result.error().message()};
          return result;
        }
        return {};
      },
      std::move(done));
}

void LocalLun::register_key(Key key, Done done) {
  if (raw(key) == 0) state_->registered = false;
  state_->run<void>(
      [state = state_.get(), key](BlockDevice& device) -> Expected<void> {
        CSV_TRY(device.register_key(Key{}, key, true));
        state->registered = raw(key) != 0;
        return {};
      },
      std::move(done));
}

void LocalLun::register_exactly(Key existing, Key key, Done done) {
  state_->run<void>(
      [state = state_.get(), existing, key](BlockDevice& device) -> Expected<void> {
        CSV_TRY(device.register_key(existing, key, false));
        state->registered = raw(key) != 0;
        return {};
      },
      std::move(done));
}

void LocalLun::reserve(Key mine, ReservationType type, Done done) {
  state_->run<void>([mine, type](BlockDevice& device) { return device.reserve(mine, type); },
                    std::move(done));
}

void LocalLun::release(Key mine, ReservationType type, Done done) {
  state_->run<void>([mine, type](BlockDevice& device) { return device.release(mine, type); },
                    std::move(done));
}

void LocalLun::clear(Key mine, Done done) {
  state_->run<void>(
      [state = state_.get(), mine](BlockDevice& device) -> Expected<void> {
        CSV_TRY(device.clear(mine));
        state->registered = false;
        return {};
      },
      std::move(done));
}

void LocalLun::preempt(Key mine, Key victim, ReservationType type, bool abort, Done done) {
  if (abort && !state_->lun.profile.preempt_and_abort)
    return state_->answer_later(
        std::move(done), Error{Errc::unsupported_by_target, "the target has no PREEMPT AND ABORT"});
  state_->run<void>([mine, victim, type, abort](
                        BlockDevice& device) { return device.preempt(mine, victim, type, abort); },
                    std::move(done));
}

void LocalLun::reset(Done done) {
  state_->run<void>([](BlockDevice& device) { return device.reset(); }, std::move(done));
}

void LocalLun::read_keys(Function<void(Expected<KeyList>)> done) {
  state_->run<KeyList>(
      [](BlockDevice& device) -> Expected<KeyList> {
        return parse_keys(CSV_TRY(device.reserve_in(ReserveIn::read_keys)));
      },
      std::move(done));
}

void LocalLun::read_reservation(Function<void(Expected<Reservation>)> done) {
  state_->run<Reservation>(
      [](BlockDevice& device) -> Expected<Reservation> {
        return parse_reservation(CSV_TRY(device.reserve_in(ReserveIn::read_reservation)));
      },
      std::move(done));
}

void LocalLun::report_capabilities(Function<void(Expected<ReservationCapabilities>)> done) {
  state_->run<ReservationCapabilities>(
      [state = state_.get()](BlockDevice& device) -> Expected<ReservationCapabilities> {
        auto answer = CSV_TRY(device.reserve_in(ReserveIn::report_capabilities));
        auto found = CSV_TRY(parse_capabilities(answer));
        leave_out_broken_types(state->lun.profile, found);
        return found;
      },
      std::move(done));
}

void LocalLun::read_full_status(Function<void(Expected<std::vector<FullStatusEntry>>)> done) {
  state_->run<std::vector<FullStatusEntry>>(
      [](BlockDevice& device) -> Expected<std::vector<FullStatusEntry>> {
        return parse_full_status(CSV_TRY(device.reserve_in(ReserveIn::read_full_status)));
      },
      std::move(done));
}

}  // namespace csv::iscsi
