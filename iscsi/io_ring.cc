#include "iscsi/io_ring.h"

#include <fcntl.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "csvfs/base/check.h"

namespace csv::iscsi {
namespace {

constexpr unsigned kMostInFlight = 256;

TimePoint monotonic_now() {
  timespec t{};
  CSV_CHECK(::clock_gettime(CLOCK_MONOTONIC, &t) == 0);
  return TimePoint{std::chrono::seconds{t.tv_sec} + std::chrono::nanoseconds{t.tv_nsec}};
}

}  // namespace

/// Under its mutex: what other threads leave for the ring's.
struct IoRing::Shared {
  std::mutex mutex;
  std::deque<std::unique_ptr<Operation>> incoming;
  bool closed = false, ending = false;
  bool asleep = false;
  int wake_fd = -1;

  Shared() : wake_fd{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)} { CSV_CHECK(wake_fd >= 0); }
  ~Shared() { ::close(wake_fd); }

  template <typename F>
  void tell(F&& change) {
    bool wake = false;
    {
      std::lock_guard lock{mutex};
      change();
      wake = std::exchange(asleep, false);
    }
    if (!wake) return;
    std::uint64_t one = 1;
    CSV_CHECK(::write(wake_fd, &one, sizeof one) == sizeof one);
  }
};

struct IoRing::Worker {
  Shared& shared;
  int fd;
  Duration deadline;
  Events events;
  io_uring ring{};

  std::deque<std::unique_ptr<Operation>> waiting;
  std::list<std::unique_ptr<Operation>> in_flight;  // in order of their deadlines
  Batch finished;
  bool closed = false, ending = false, told_overdue = false, wake_armed = false;
  std::thread thread;

  Worker(Shared& its_shared, int its_fd, Duration its_deadline, Events its_events)
      : shared{its_shared}, fd{its_fd}, deadline{its_deadline}, events{std::move(its_events)} {}

  void prepare(io_uring_sqe* sqe, Operation& op) {
    auto* data = op.data + op.finished;
    auto length = static_cast<unsigned>(op.length - op.finished);
    auto offset = op.offset + op.finished;
    switch (op.kind) {
      case Operation::Kind::read: io_uring_prep_read(sqe, fd, data, length, offset); break;
      case Operation::Kind::write: io_uring_prep_write(sqe, fd, data, length, offset); break;
      case Operation::Kind::write_durable:
        io_uring_prep_write(sqe, fd, data, length, offset);
        sqe->rw_flags = RWF_DSYNC;
        break;
      case Operation::Kind::flush: io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC); break;
      case Operation::Kind::zero:
        io_uring_prep_fallocate(sqe, fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                static_cast<off_t>(op.offset), static_cast<off_t>(op.length));
        break;
    }
  }

  io_uring_sqe* next_sqe() {
    auto* sqe = io_uring_get_sqe(&ring);
    CSV_CHECK(sqe != nullptr);  // there is one for all that may be in flight, and one to be woken
    return sqe;
  }

  void take_shared() {
    std::lock_guard lock{shared.mutex};
    for (auto& each : shared.incoming) waiting.push_back(std::move(each));
    shared.incoming.clear();
    closed = shared.closed;
    ending = shared.ending;
  }

  void send_waiting() {
    if (closed) {
      for (auto& each : waiting) {
        each->result = -ESHUTDOWN;
        finished.push_back(std::move(each));
      }
      waiting.clear();
    }
    while (!waiting.empty() && in_flight.size() < kMostInFlight) {
      in_flight.push_back(std::move(waiting.front()));
      waiting.pop_front();
      auto& op = *in_flight.back();
      op.deadline = monotonic_now() + deadline;
      op.self = std::prev(in_flight.end());
      send(op);
    }
  }

  void send(Operation& op) {
    auto* sqe = next_sqe();
    prepare(sqe, op);
    io_uring_sqe_set_data(sqe, &op);
  }

  void answered(Operation& op, int result) {
    bool moves = op.kind == Operation::Kind::read || op.kind == Operation::Kind::write ||
                 op.kind == Operation::Kind::write_durable;
    if (result == -EAGAIN || result == -EINTR) return send(op);
    if (moves && result > 0) {
      op.finished += static_cast<std::size_t>(result);
      if (op.finished < op.length) return send(op);
      result = 0;
    } else if (moves && result == 0) {
      result = -ENODATA;  // an end where there should be none: the device has become smaller
    }
    op.result = result;
    auto place = op.self;
    finished.push_back(std::move(*place));
    in_flight.erase(place);
  }

  void wait() {
    if (!wake_armed) {
      auto* sqe = next_sqe();
      io_uring_prep_poll_add(sqe, shared.wake_fd, POLLIN);
      io_uring_sqe_set_data(sqe, nullptr);
      wake_armed = true;
    }
    bool block = false;
    {
      std::lock_guard lock{shared.mutex};
      block = shared.incoming.empty() && shared.closed == closed && shared.ending == ending;
      shared.asleep = block;
    }
    __kernel_timespec timeout{};
    __kernel_timespec* limit = nullptr;
    if (!block) {
      limit = &timeout;
    } else if (!in_flight.empty() && !told_overdue) {
      auto left = std::max(in_flight.front()->deadline - monotonic_now(), Duration{0});
      timeout.tv_sec = left / std::chrono::seconds{1};
      timeout.tv_nsec = (left % std::chrono::seconds{1}).count();
      limit = &timeout;
    }
    io_uring_cqe* cqe = nullptr;
    int result = io_uring_submit_and_wait_timeout(&ring, &cqe, 1, limit, nullptr);
    CSV_CHECK(result >= 0 || result == -ETIME || result == -EINTR || result == -EAGAIN ||
              result == -EBUSY);
    {
      std::lock_guard lock{shared.mutex};
      shared.asleep = false;
    }
    while (io_uring_peek_cqe(&ring, &cqe) == 0) {
      auto* op = static_cast<Operation*>(io_uring_cqe_get_data(cqe));
      auto got = cqe->res;
      io_uring_cqe_seen(&ring, cqe);
      if (op)
        answered(*op, got);
      else
        woken();
    }
  }

  void woken() {
    wake_armed = false;
    std::uint64_t count = 0;
    // Only empties it.
    [[maybe_unused]] auto got = ::read(shared.wake_fd, &count, sizeof count);
  }

  void check_deadline() {
    if (told_overdue || in_flight.empty() || monotonic_now() < in_flight.front()->deadline) return;
    told_overdue = true;
    events.overdue();
  }

  void run() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    pthread_setname_np(pthread_self(), "ring");
    while (true) {
      take_shared();
      if (ending) waiting.clear();
      send_waiting();
      if (!finished.empty()) events.answered(std::exchange(finished, {}));
      if (ending && in_flight.empty()) break;
      wait();
      check_deadline();
    }
    io_uring_queue_exit(&ring);
  }
};

IoRing::IoRing() : shared_{std::make_unique<Shared>()} {}

Expected<std::unique_ptr<IoRing>> IoRing::create(int fd, Duration deadline, Events events) {
  std::unique_ptr<IoRing> made{new IoRing};
  made->worker_ = std::make_unique<Worker>(*made->shared_, fd, deadline, std::move(events));
  if (int result = io_uring_queue_init(2 * kMostInFlight, &made->worker_->ring, 0); result < 0) {
    made->worker_.reset();
    return errno_error(-result, "setting up io_uring");
  }
  made->worker_->thread = std::thread{[worker = made->worker_.get()] { worker->run(); }};
  return made;
}

IoRing::~IoRing() {
  if (!worker_) return;
  shared_->tell([&] { shared_->closed = shared_->ending = true; });
  worker_->thread.join();
}

bool IoRing::submit(std::unique_ptr<Operation>& operation) {
  bool taken = false;
  shared_->tell([&] {
    if (shared_->closed) return;
    shared_->incoming.push_back(std::move(operation));
    taken = true;
  });
  return taken;
}

void IoRing::close() {
  shared_->tell([&] { shared_->closed = true; });
}

}  // namespace csv::iscsi
