#pragma once
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "csvfs/base/loop.h"

namespace csv::iscsi {

/// Reads and writes of one file descriptor through io_uring, on a thread of its own.
///
/// submit() and close() may be called from any thread; events come on the ring's own.
class IoRing {
 public:
  struct Operation {
    virtual ~Operation() = default;
    enum class Kind : std::uint8_t { read, write, write_durable, flush, zero };
    Kind kind{};
    std::uint64_t offset = 0;
    std::byte* data = nullptr;  ///< Stays valid until it comes back. Not for flush and zero.
    std::size_t length = 0;
    int result = 0;  ///< 0, or a negative errno. Of a write any part may have happened then.

   private:
    friend class IoRing;
    std::size_t finished = 0;  // a short read or write goes on from here
    TimePoint deadline{};
    std::list<std::unique_ptr<Operation>>::iterator self;  // while it is in flight
  };
  using Batch = std::vector<std::unique_ptr<Operation>>;

  struct Events {
    /// Operations that came back, in one go for each turn of the thread.
    Function<void(Batch)> answered;
    /// Once: something has been under way for longer than the deadline. It still comes back, when
    /// the kernel lets go of it.
    Function<void()> overdue;
  };

  /// Fails where the kernel has no io_uring, or forbids it.
  static Expected<std::unique_ptr<IoRing>> create(int fd, Duration deadline, Events events);
  /// Waits until the kernel has given everything back; what was not yet sent is destroyed.
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  /// False after close(): the operation stays with the caller.
  bool submit(std::unique_ptr<Operation>& operation);
  /// Nothing more is sent: what waits comes back with -ESHUTDOWN, what is under way as it ends.
  void close();

 private:
  struct Shared;
  struct Worker;
  IoRing();
  std::unique_ptr<Shared> shared_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace csv::iscsi
