#pragma once
#include <compare>
#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "csvfs/base/ids.h"
#include "csvfs/base/lock_ranges.h"

namespace csv::service {

/// The locks that programs hold on the files of a volume, and who waits for one: fcntl(2) and
/// flock(2) over all nodes. Only decides: it knows no clock, network or catalog. One thread.
///
/// A lock that had to be waited for is first *offered*: nobody else gets it any more, but its owner
/// has it only once taken(). In between the one who waits may have been interrupted, and cancel()
/// leaves everything as if he had never asked.
///
/// Waiting is fair: who comes later does not get what an earlier one waits for. Two exceptions. A
/// program that holds or was offered anything does not stand behind those that wait (they may
/// wait for just that); and who does not want to wait sees only what is held.
class FileLocks {
 public:
  /// Who holds a lock, on one file: a number that the session's mount never uses again.
  struct Owner {
    SessionId session{};
    std::uint64_t number = 0;
    auto operator<=>(const Owner&) const = default;
  };
  /// A request that may wait; numbered by the session's mount.
  struct Ticket {
    SessionId session{};
    std::uint64_t number = 0;
    auto operator<=>(const Ticket&) const = default;
  };
  struct Wish {
    InodeId inode{};
    LockKind kind{};
    Owner owner;
    std::uint64_t process = 0;  ///< In whose name it waits, over all files: for deadlocks.
    std::uint32_t pid = 0;      ///< As the node counts; for F_GETLK and for fairness.
    LockRange range;
    LockType type{};
  };
  enum class Verdict {
    granted,    ///< lock(): held. offer(), wait(): offered.
    conflict,   ///< lock() and offer() only.
    queued,     ///< wait() only; decided() will tell.
    deadlock,   ///< Those it would wait for wait for it.
    too_many,   ///< Of the session's, or of those that wait.
    cancelled,  ///< decided() only: by cancel(), forget(), end_waits().
  };
  struct Limits {
    std::size_t locks = 16'384;   ///< Ranges of a session, those offered and waited for included.
    std::size_t of_file = 8'192;  ///< Of all sessions.
    std::size_t waits = 1'024;    ///< Of a session.
  };
  FileLocks() : FileLocks{Limits{}} {}
  explicit FileLocks(Limits limits) : limits_{limits} {}

  /// At once or not at all. A whole file's lock that changes its type is given up first, as
  /// flock(2) says, and is lost if there is a conflict.
  Verdict lock(const Wish& wish);
  /// The same, but what is granted is offered under a fresh ticket.
  Verdict offer(const Wish& wish, Ticket ticket);
  /// As lock(), and waits. Asked again with the same ticket: what has become of it.
  Verdict wait(const Wish& wish, Ticket ticket);
  /// Who waited has accepted the offer. Nothing if there is none.
  void taken(Ticket ticket);
  void cancel(Ticket ticket);
  /// Never fails, over no limit.
  void unlock(InodeId inode, LockKind kind, Owner owner, LockRange range);
  /// The owner is no more: what it holds, was offered and waits for.
  void forget(InodeId inode, LockKind kind, Owner owner);
  /// What would keep this wish from being granted at once, if anything.
  struct Found {
    LockRanges::Held held;
    Owner owner;
    std::uint32_t pid = 0;
  };
  [[nodiscard]] std::optional<Found> test(const Wish& wish) const;

  /// A session says what it holds, to a coordinator that did not know. False: that is in conflict
  /// with another's; it is believed all the same.
  bool declare(const Wish& wish);
  /// The session gets nothing any more; what it holds stays.
  void end_waits(SessionId session);
  /// Everything of the session's is free.
  void drop(SessionId session);

  /// What has become of those that waited, since last asked.
  struct Decided {
    Ticket ticket;
    Verdict verdict{};
  };
  [[nodiscard]] std::vector<Decided> decided() { return std::exchange(decided_, {}); }

  /// Somebody of another session waits for what this one holds.
  [[nodiscard]] bool blocks_others(SessionId session) const;
  struct Counts {
    std::size_t locks = 0, waits = 0;  ///< Waits: those not offered anything yet.
  };
  [[nodiscard]] Counts counts(SessionId session) const;
  [[nodiscard]] bool empty() const { return files_.empty() && waiters_.empty(); }

 private:
  using FileId = std::pair<InodeId, LockKind>;
  struct Holder {
    std::uint64_t process = 0;
    std::uint32_t pid = 0;
    LockRanges ranges;
  };
  struct Waiter {
    Wish wish;
    bool offered = false;
  };
  struct File {
    std::map<Owner, Holder> holders;
    std::list<Ticket> queue;  ///< In the order they came, those with an offer included.
    std::size_t ranges = 0;
  };
  using Process = std::pair<SessionId, std::uint64_t>;
  using Program = std::pair<SessionId, std::uint32_t>;  ///< By pid.

  static FileId file_of(const Wish& wish) { return {wish.inode, wish.kind}; }
  static bool conflict(const Wish& one, const Wish& other);
  template <typename F>
  bool any_obstacle(const Wish& wish, F&& say) const;
  [[nodiscard]] bool is_free(const Wish& wish) const;
  [[nodiscard]] bool may_have(Ticket ticket, const Waiter& waiter) const;
  [[nodiscard]] bool closes_a_circle(const Wish& wish) const;
  [[nodiscard]] bool full(const Wish& wish) const;
  void apply(const Wish& wish);
  void may_close_circles(const Wish& wish);
  void break_circles(FileId id);
  void remove(FileId id, Owner owner, LockRange range);
  void drop_other_type(const Wish& wish);
  Waiter& enqueue(const Wish& wish, Ticket ticket);
  void offer(Ticket ticket, Waiter& waiter);
  void decide(Ticket ticket, Verdict verdict);
  void erase(Ticket ticket);
  void look(FileId id);
  void look_all();
  void tidy(FileId id);
  void count(SessionId session, std::ptrdiff_t locks, std::ptrdiff_t waits);
  void has_more(const Wish& wish);
  void has_less(SessionId session, std::uint32_t pid);

  Limits limits_;
  std::map<FileId, File> files_;
  std::map<Ticket, Waiter> waiters_;
  std::map<SessionId, Counts> counts_;
  std::map<Program, std::size_t> having_;                  ///< Holders and offers.
  std::map<Process, std::set<Ticket>> waiting_for_bytes_;  ///< Not offered anything.
  std::set<FileId> to_look_at_;                            ///< Something has become less there.
  std::set<FileId> circles_in_;  ///< Somebody who waits elsewhere has got more there.
  std::vector<Decided> decided_;
};

}  // namespace csv::service
