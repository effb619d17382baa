#include "coordinator/service/file_locks.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <vector>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::service;
using Verdict = FileLocks::Verdict;
using Wish = FileLocks::Wish;
using Ticket = FileLocks::Ticket;

namespace {

constexpr SessionId kOne{1}, kTwo{2};
constexpr InodeId kFile{7}, kOther{8};

/// Of a process (which has one thread) on one file.
Wish bytes(SessionId session, std::uint64_t process, LockType type, LockRange range,
           InodeId inode = kFile) {
  Wish wish;
  wish.inode = inode;
  wish.owner = {session, process * 100 + raw(inode)};
  wish.process = process;
  wish.pid = static_cast<std::uint32_t>(process);
  wish.range = range;
  wish.type = type;
  return wish;
}
Wish whole(SessionId session, std::uint64_t process, LockType type, InodeId inode = kFile) {
  auto wish = bytes(session, process, type, {}, inode);
  wish.owner.number += 50;
  wish.kind = LockKind::whole_file;
  return wish;
}
void unlock(FileLocks& locks, const Wish& wish) {
  locks.unlock(wish.inode, wish.kind, wish.owner, wish.range);
}
std::vector<std::uint64_t> granted(FileLocks& locks) {
  std::vector<std::uint64_t> all;
  for (auto [ticket, verdict] : locks.decided())
    if (verdict == Verdict::granted) all.push_back(ticket.number);
  return all;
}
using Numbers = std::vector<std::uint64_t>;
constexpr auto kRead = LockType::read, kWrite = LockType::write;

}  // namespace

TEST_CASE("file locks: readers share, writers do not, and one's own locks are in nobody's way") {
  FileLocks locks;
  CHECK(locks.lock(bytes(kOne, 1, kRead, {0, 9})) == Verdict::granted);
  CHECK(locks.lock(bytes(kTwo, 1, kRead, {5, 20})) == Verdict::granted);
  CHECK(locks.lock(bytes(kTwo, 2, kWrite, {0, 4})) == Verdict::conflict);
  CHECK(locks.lock(bytes(kTwo, 1, kWrite, {10, 20})) == Verdict::granted);
  CHECK(locks.lock(bytes(kOne, 1, kWrite, {0, 4})) == Verdict::granted);
  auto found = locks.test(bytes(kTwo, 2, kRead, {0, 100}));
  REQUIRE(found);
  CHECK(found->held.type == kWrite);
  CHECK(!locks.test(bytes(kTwo, 2, kRead, {5, 9})));
  CHECK(locks.lock(bytes(kTwo, 2, kWrite, {0, 9}, kOther)) == Verdict::granted);
  // flock and fcntl do not see each other.
  CHECK(locks.lock(whole(kTwo, 2, kWrite)) == Verdict::granted);
  CHECK(locks.lock(whole(kOne, 2, kRead)) == Verdict::conflict);
  CHECK(locks.counts(kOne).locks == 2);
}

TEST_CASE("file locks: who waits is offered the lock, and has it once it is taken") {
  FileLocks locks;
  auto holder = bytes(kOne, 1, kWrite, {0, 9});
  CHECK(locks.lock(holder) == Verdict::granted);
  CHECK(locks.wait(bytes(kTwo, 1, kWrite, {0, 9}), {kTwo, 1}) == Verdict::queued);
  CHECK(locks.wait(bytes(kTwo, 1, kWrite, {0, 9}), {kTwo, 1}) == Verdict::queued);
  CHECK(granted(locks).empty());
  unlock(locks, holder);
  CHECK(granted(locks) == Numbers{1});
  CHECK(locks.wait(bytes(kTwo, 1, kWrite, {0, 9}), {kTwo, 1}) == Verdict::granted);
  CHECK(locks.lock(holder) == Verdict::conflict);
  SUBCASE("taken") {
    locks.taken({kTwo, 1});
    CHECK(locks.lock(holder) == Verdict::conflict);
    unlock(locks, bytes(kTwo, 1, kWrite, {0, 9}));
  }
  SUBCASE("turned down") { locks.cancel({kTwo, 1}); }
  SUBCASE("its owner is no more") {
    auto wish = bytes(kTwo, 1, kWrite, {});
    locks.forget(wish.inode, wish.kind, wish.owner);
  }
  SUBCASE("its session is no more") { locks.drop(kTwo); }
  CHECK(granted(locks).empty());
  CHECK(locks.lock(holder) == Verdict::granted);
  unlock(locks, holder);
  CHECK(locks.empty());
}

TEST_CASE("file locks: an offer that is turned down leaves what its owner had") {
  FileLocks locks;
  CHECK(locks.lock(bytes(kOne, 1, kRead, {0, 9})) == Verdict::granted);
  SUBCASE("of one who waited") {
    CHECK(locks.wait(bytes(kOne, 1, kWrite, {0, 9}), {kOne, 1}) == Verdict::granted);
  }
  SUBCASE("of one who did not") {
    CHECK(locks.offer(bytes(kOne, 1, kWrite, {0, 9}), {kOne, 1}) == Verdict::granted);
  }
  CHECK(locks.lock(bytes(kTwo, 1, kRead, {0, 9})) == Verdict::conflict);
  locks.cancel({kOne, 1});
  CHECK(locks.lock(bytes(kTwo, 1, kRead, {0, 9})) == Verdict::granted);
  CHECK(locks.lock(bytes(kTwo, 1, kWrite, {0, 9})) == Verdict::conflict);
}

TEST_CASE("file locks: readers that come later do not starve a writer") {
  FileLocks locks;
  auto first = bytes(kOne, 1, kRead, {0, 9});
  CHECK(locks.lock(first) == Verdict::granted);
  CHECK(locks.wait(bytes(kTwo, 1, kWrite, {5, 5}), {kTwo, 1}) == Verdict::queued);
  CHECK(locks.wait(bytes(kOne, 2, kRead, {0, 9}), {kOne, 2}) == Verdict::queued);
  CHECK(locks.wait(bytes(kOne, 3, kRead, {6, 9}), {kOne, 3}) == Verdict::granted);
  // It has something that the writer may be waiting for: it must not wait for the writer.
  CHECK(locks.wait(bytes(kOne, 1, kRead, {0, 20}), {kOne, 4}) == Verdict::granted);
  locks.taken({kOne, 4});
  unlock(locks, bytes(kOne, 1, kRead, {0, 20}));
  CHECK(granted(locks) == Numbers{1});
  locks.taken({kTwo, 1});
  unlock(locks, bytes(kTwo, 1, kWrite, {}));
  CHECK(granted(locks) == Numbers{2});
}

TEST_CASE("file locks: a circle over files and sessions is refused, whoever closes it") {
  FileLocks locks;
  CHECK(locks.lock(bytes(kOne, 1, kWrite, {0, 0})) == Verdict::granted);
  CHECK(locks.lock(bytes(kTwo, 1, kWrite, {0, 0}, kOther)) == Verdict::granted);
  CHECK(locks.lock(bytes(kTwo, 2, kWrite, {5, 5})) == Verdict::granted);
  CHECK(locks.wait(bytes(kOne, 1, kRead, {0, 9}, kOther), {kOne, 1}) == Verdict::queued);
  CHECK(locks.wait(bytes(kTwo, 1, kRead, {5, 5}), {kTwo, 1}) == Verdict::queued);
  CHECK(locks.wait(bytes(kTwo, 2, kRead, {0, 0}), {kTwo, 2}) == Verdict::deadlock);
  CHECK(locks.wait(bytes(kTwo, 2, kRead, {1, 1}), {kTwo, 3}) == Verdict::granted);
  // Two readers that both want to write.
  CHECK(locks.lock(bytes(kOne, 5, kRead, {50, 59})) == Verdict::granted);
  CHECK(locks.lock(bytes(kTwo, 5, kRead, {50, 59})) == Verdict::granted);
  CHECK(locks.wait(bytes(kOne, 5, kWrite, {50, 50}), {kOne, 5}) == Verdict::queued);
  CHECK(locks.wait(bytes(kTwo, 5, kWrite, {50, 50}), {kTwo, 5}) == Verdict::deadlock);
}

TEST_CASE("file locks: a whole file's lock that changes its type is given up in between") {
  FileLocks locks;
  CHECK(locks.lock(whole(kOne, 1, kRead)) == Verdict::granted);
  CHECK(locks.lock(whole(kTwo, 1, kRead)) == Verdict::granted);
  CHECK(locks.wait(whole(kOne, 1, kWrite), {kOne, 1}) == Verdict::queued);
  CHECK(locks.wait(whole(kTwo, 1, kWrite), {kTwo, 1}) == Verdict::queued);
  CHECK(granted(locks) == Numbers{1});
  locks.taken({kOne, 1});
  CHECK(locks.lock(whole(kOne, 1, kRead)) == Verdict::granted);
  CHECK(locks.lock(whole(kTwo, 3, kRead)) == Verdict::granted);
  CHECK(locks.lock(whole(kTwo, 3, kWrite)) == Verdict::conflict);
  unlock(locks, whole(kOne, 1, kRead));  // session 2's reader lost its lock when it tried to write
  CHECK(granted(locks) == Numbers{1});
}

TEST_CASE("file locks: bounds are refused, and giving back is not") {
  FileLocks::Limits limits;
  limits.locks = 4;
  limits.of_file = 6;
  limits.waits = 2;
  FileLocks locks{limits};
  for (std::uint64_t at = 0; at < 4; ++at)
    CHECK(locks.lock(bytes(kOne, 1, kWrite, {at * 10, at * 10 + 8})) == Verdict::granted);
  CHECK(locks.lock(bytes(kOne, 1, kWrite, {90, 90})) == Verdict::too_many);
  CHECK(locks.lock(bytes(kOne, 1, kWrite, {0, 0}, kOther)) == Verdict::too_many);
  CHECK(locks.wait(bytes(kTwo, 1, kRead, {0, 0}), {kTwo, 1}) == Verdict::queued);
  CHECK(locks.wait(bytes(kTwo, 2, kRead, {0, 0}), {kTwo, 2}) == Verdict::queued);
  CHECK(locks.wait(bytes(kTwo, 3, kRead, {0, 0}), {kTwo, 3}) == Verdict::too_many);
  CHECK(locks.lock(bytes(kTwo, 3, kRead, {99, 99})) == Verdict::too_many);
  unlock(locks, bytes(kOne, 1, kWrite, {4, 4}));
  CHECK(locks.counts(kOne).locks == 5);
  CHECK(granted(locks).empty());
  unlock(locks, bytes(kOne, 1, kWrite, {0, 8}));
  CHECK(granted(locks) == Numbers{1, 2});
}

// ---------------------------------------------------------------------------- against a model

namespace {

constexpr std::uint64_t kBytes = 8;

/// The same rules on a map of bytes, by brute force.
struct Model {
  using FileId = std::pair<InodeId, LockKind>;
  using Process = std::pair<SessionId, std::uint64_t>;
  struct Holder {
    Process process;
    std::array<int, kBytes> type{};  // 0, 1 read, 2 write
    [[nodiscard]] bool any() const {
      return std::any_of(type.begin(), type.end(), [](int each) { return each != 0; });
    }
  };
  struct Waiter {
    Wish wish;
    Ticket ticket;
    bool offered = false;
  };
  std::map<FileId, std::map<FileLocks::Owner, Holder>> held;
  std::vector<Waiter> waiters;  // in the order they came

  static bool conflict(const Wish& a, const Wish& b) {
    return a.inode == b.inode && a.kind == b.kind && a.owner != b.owner &&
           a.range.overlaps(b.range) && (a.type == kWrite || b.type == kWrite);
  }
  std::set<Process> obstacles(const Wish& wish) {
    std::set<Process> all;
    for (auto& [owner, holder] : held[{wish.inode, wish.kind}])
      for (std::uint64_t at = 0; at < kBytes; ++at)
        if (owner != wish.owner && at >= wish.range.first && at <= wish.range.last &&
            (holder.type[at] == 2 || (holder.type[at] == 1 && wish.type == kWrite)))
          all.insert(holder.process);
    for (auto& each : waiters)
      if (each.offered && conflict(each.wish, wish))
        all.insert({each.wish.owner.session, each.wish.process});
    return all;
  }
  bool has_something(SessionId session, std::uint32_t pid) {
    for (auto& [file, owners] : held)
      for (auto& [owner, holder] : owners)
        if (holder.process == Process{session, pid} && holder.any()) return true;
    return std::any_of(waiters.begin(), waiters.end(), [&](auto& each) {
      return each.offered && each.wish.owner.session == session && each.wish.pid == pid;
    });
  }
  bool may_have(const Waiter& waiter) {
    if (!obstacles(waiter.wish).empty()) return false;
    if (has_something(waiter.wish.owner.session, waiter.wish.pid)) return true;
    for (auto& earlier : waiters) {
      if (earlier.ticket == waiter.ticket) return true;
      if (conflict(earlier.wish, waiter.wish)) return false;
    }
    return true;
  }
  /// Processes that wait for themselves, with `more` waiting too.
  std::set<Process> in_circles(const Wish* more) {
    std::map<Process, std::set<Process>> reach;
    auto add = [&](const Wish& wish) {
      if (wish.kind != LockKind::bytes) return;
      auto all = obstacles(wish);
      reach[{wish.owner.session, wish.process}].insert(all.begin(), all.end());
    };
    for (auto& each : waiters)
      if (!each.offered) add(each.wish);
    if (more) add(*more);
    for (bool changed = true; changed;) {
      changed = false;
      for (auto& [from, to] : reach)
        for (auto via : std::set{to})
          if (auto found = reach.find(via); found != reach.end())
            for (auto far : std::set{found->second}) changed = to.insert(far).second || changed;
    }
    std::set<Process> circles;
    for (auto& [from, to] : reach)
      if (to.contains(from)) circles.insert(from);
    return circles;
  }
  void set(const Wish& wish, int type) {
    auto& holder = held[{wish.inode, wish.kind}][wish.owner];
    holder.process = {wish.owner.session, wish.process};
    for (std::uint64_t at = 0; at < kBytes; ++at)
      if (at >= wish.range.first && at <= wish.range.last) holder.type[at] = type;
  }
  void change_type(const Wish& wish) {
    if (wish.kind != LockKind::whole_file) return;
    auto& holder = held[{wish.inode, wish.kind}][wish.owner];
    if (holder.type[0] != 0 && holder.type[0] != static_cast<int>(wish.type)) set(wish, 0);
  }
  void erase(Ticket ticket) {
    std::erase_if(waiters, [&](auto& each) { return each.ticket == ticket; });
  }
};

}  // namespace

TEST_CASE("file locks: random programs against a model by brute force") {
  std::size_t offers = 0, deadlocks = 0, conflicts = 0, late_deadlocks = 0;
  for (std::uint64_t seed = 1; seed <= 150; ++seed) {
    CAPTURE(seed);
    Random random{seed};
    FileLocks locks;
    Model model;
    std::uint64_t next_ticket = 1;
    bool threads = seed % 3 == 0;  // processes that wait several times
    for (int step = 0; step < 250; ++step) {
      CAPTURE(step);
      SessionId session{1 + random.below(2)};
      auto process = 1 + random.below(3);
      InodeId inode{random.chance(1, 2) ? kFile : kOther};
      auto type = random.chance(1, 2) ? kRead : kWrite;
      auto first = random.below(kBytes), last = first + random.below(kBytes - first);
      auto wish = random.chance(1, 4) ? whole(session, process, type, inode)
                                      : bytes(session, process, type, {first, last}, inode);
      auto busy = std::any_of(model.waiters.begin(), model.waiters.end(), [&](auto& each) {
        return each.wish.owner.session == session && each.wish.process == process;
      });
      std::set<Ticket> expected_cancelled;
      auto before = model.waiters;
      switch (random.below(8)) {
        case 0:
        case 1: {
          if (busy && !threads) break;
          model.change_type(wish);
          bool free = model.obstacles(wish).empty(), at_once = random.chance(1, 2);
          Ticket ticket{session, next_ticket++};
          auto verdict = at_once ? locks.lock(wish) : locks.offer(wish, ticket);
          REQUIRE(verdict == (free ? Verdict::granted : Verdict::conflict));
          if (free && at_once) model.set(wish, static_cast<int>(type));
          if (free && !at_once) model.waiters.push_back({wish, ticket, true});
          conflicts += free ? 0 : 1;
          break;
        }
        case 2:
        case 3:
        case 4: {
          if (busy && !threads) break;
          Ticket ticket{session, next_ticket++};
          model.change_type(wish);
          bool circle =
              wish.kind == LockKind::bytes && model.in_circles(&wish).contains({session, process});
          auto verdict = locks.wait(wish, ticket);
          REQUIRE((verdict == Verdict::deadlock) == circle);
          deadlocks += circle ? 1 : 0;
          if (circle) break;
          model.waiters.push_back({wish, ticket, false});
          bool at_once = model.may_have(model.waiters.back());
          REQUIRE(verdict == (at_once ? Verdict::granted : Verdict::queued));
          model.waiters.back().offered = at_once;
          break;
        }
        case 5: {
          locks.unlock(wish.inode, wish.kind, wish.owner, wish.range);
          model.set(wish, 0);
          break;
        }
        case 6: {
          if (model.waiters.empty()) break;
          auto one = model.waiters[random.below(model.waiters.size())];
          if (one.offered && random.chance(3, 4)) {
            locks.taken(one.ticket);
            model.set(one.wish, static_cast<int>(one.wish.type));
          } else {
            locks.cancel(one.ticket);
            if (!one.offered) expected_cancelled.insert(one.ticket);
          }
          model.erase(one.ticket);
          break;
        }
        default: {
          bool all = random.chance(1, 4);
          auto is_its = [&](const auto& each) {
            return all ? each.wish.owner.session == session
                       : each.wish.owner == wish.owner && each.wish.kind == wish.kind;
          };
          for (auto& each : model.waiters)
            if (is_its(each) && !each.offered) expected_cancelled.insert(each.ticket);
          std::erase_if(model.waiters, is_its);
          if (all) {
            locks.drop(session);
            for (auto& [file, owners] : model.held)
              std::erase_if(owners, [&](auto& each) { return each.first.session == session; });
          } else {
            locks.forget(wish.inode, wish.kind, wish.owner);
            wish.range = {0, kBytes};
            model.set(wish, 0);
          }
        }
      }
      // What was decided is right, and nothing else could have been.
      for (auto [ticket, verdict] : locks.decided()) {
        auto at = std::find_if(model.waiters.begin(), model.waiters.end(),
                               [&, t = ticket](auto& each) { return each.ticket == t; });
        if (verdict == Verdict::granted) {
          ++offers;
          REQUIRE(at != model.waiters.end());
          REQUIRE(!at->offered);
          REQUIRE(model.obstacles(at->wish).empty());
          at->offered = true;
        } else if (verdict == Verdict::deadlock) {
          ++late_deadlocks;
          REQUIRE(threads);
          REQUIRE(at != model.waiters.end());
          REQUIRE(model.in_circles(nullptr).contains({at->wish.owner.session, at->wish.process}));
          model.erase(ticket);
        } else {
          REQUIRE(verdict == Verdict::cancelled);
          REQUIRE(expected_cancelled.erase(ticket) == 1);
        }
      }
      REQUIRE(expected_cancelled.empty());
      REQUIRE(model.in_circles(nullptr).empty());
      for (auto& each : model.waiters) {
        CAPTURE(each.ticket.number);
        if (each.offered) continue;
        REQUIRE(!model.may_have(each));
        // Nobody who had nothing overtook it.
        for (auto& other : model.waiters) {
          if (!other.offered || !Model::conflict(other.wish, each.wish)) continue;
          auto was = std::find_if(before.begin(), before.end(),
                                  [&](auto& old) { return old.ticket == other.ticket; });
          if (was == before.end() || was->offered || &other < &each) continue;
          std::size_t has = 0;
          for (auto& [file, owners] : model.held)
            for (auto& [owner, holder] : owners)
              if (holder.process == Model::Process{other.wish.owner.session, other.wish.process})
                has += holder.any() ? 1 : 0;
          for (auto& more : model.waiters)
            if (more.offered && more.wish.pid == other.wish.pid &&
                more.wish.owner.session == other.wish.owner.session)
              ++has;
          REQUIRE(has > 1);
        }
      }
      // And the locks are those of the model.
      for (auto id : {kFile, kOther}) {
        for (std::uint64_t at = 0; at < kBytes; ++at) {
          auto probe = bytes(SessionId{9}, 9, step % 2 == 0 ? kRead : kWrite, {at, at}, id);
          REQUIRE(locks.test(probe).has_value() == !model.obstacles(probe).empty());
        }
        auto probe = whole(SessionId{9}, 9, step % 2 == 0 ? kRead : kWrite, id);
        REQUIRE(locks.test(probe).has_value() == !model.obstacles(probe).empty());
      }
    }
    locks.drop(kOne);
    locks.drop(kTwo);
    CHECK(locks.empty());
    CHECK(locks.counts(kOne).locks + locks.counts(kOne).waits + locks.counts(kTwo).locks == 0);
  }
  // Otherwise it proved nothing.
  CHECK(offers > 500);
  CHECK(deadlocks > 100);
  CHECK(late_deadlocks > 0);
  CHECK(conflicts > 1000);
}
