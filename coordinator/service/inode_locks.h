#pragma once
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>

#include "csvfs/base/ids.h"
#include "csvfs/base/task.h"

namespace csv::service {

/// A range of a file in blocks of the volume, [first, end).
struct Blocks {
  std::uint64_t first = 0, end = 0;
  [[nodiscard]] bool overlaps(const Blocks& other) const {
    return first < other.end && other.first < end;
  }
  [[nodiscard]] bool covers(const Blocks& other) const {
    return first <= other.first && other.end <= end;
  }
  [[nodiscard]] std::uint64_t count() const { return end - first; }
};
/// Files end below this: 16 TiB.
inline constexpr std::uint64_t kLastBlock = 1ull << 32;
inline constexpr Blocks kWholeFile{0, kLastBlock};

/// Keeps operations on one range of one inode apart while each is several steps (LUN, then
/// transaction). Granted in the order asked, so nobody starves. Loop's thread.
///
/// Never held while waiting for a mount (a recall): what a mount must do before it answers a recall
/// may need the lock (a Commit does). So whoever holds one goes on by itself.
class InodeLocks {
 public:
  enum class Mode { shared, exclusive };

  explicit InodeLocks(Loop& loop) : loop_{&loop} {}

  /// A lock held or waited for; its end gives it back.
  class Held {
   public:
    Held() = default;
    Held(Held&& other) noexcept;
    Held& operator=(Held&& other) noexcept;
    ~Held() { release(); }
    void release();

   private:
    friend class InodeLocks;
    struct Entry;
    Held(InodeLocks* locks, InodeId inode, std::list<Entry>::iterator at)
        : locks_{locks}, inode_{inode}, at_{at} {}
    InodeLocks* locks_ = nullptr;
    InodeId inode_{};
    std::list<Entry>::iterator at_;
  };

  Task<Held> lock(InodeId inode, Blocks range, Mode mode);
  [[nodiscard]] bool locked(InodeId inode) const { return queues_.contains(inode); }

 private:
  void grant(std::list<Held::Entry>& queue);

  Loop* loop_;
  std::map<InodeId, std::list<Held::Entry>> queues_;  ///< In the order asked for.
};

struct InodeLocks::Held::Entry {
  Blocks range;
  Mode mode{};
  bool granted = false;
  std::optional<Completion<bool>::Done> waiter;
};

}  // namespace csv::service
