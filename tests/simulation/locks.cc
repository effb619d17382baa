#include "tests/simulation/locks.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "csvfs/base/log.h"

namespace csv::sim {
namespace {

constexpr std::size_t kFiles = 3;
constexpr std::uint64_t kBytes = 10;
constexpr std::uint64_t kDescriptor = 1u << 20;  ///< Owners of whole files' locks: open files.

bool exclude(const Mount::LockWish& a, const Mount::LockWish& b) {
  return a.kind == b.kind && a.range.overlaps(b.range) &&
         (a.type == LockType::write || b.type == LockType::write);
}

std::string describe(const Mount::LockWish& wish) {
  return fmt::format("{} {} {}-{}", wish.kind == LockKind::bytes ? "bytes" : "whole file",
                     wish.type == LockType::write ? "write" : "read", wish.range.first,
                     wish.range.last);
}

}  // namespace

/// A program believes that it has a lock. If its mount is killed, the lock is its session's still.
class LockWorkload::Held {
 public:
  Held(LockWorkload& locks, Lock lock) : locks_{&locks} {
    locks.got(lock);
    at_ = locks.held_.insert(locks.held_.end(), std::move(lock));
  }
  Held(Held&& other) noexcept : locks_{std::exchange(other.locks_, nullptr)}, at_{other.at_} {}
  Held& operator=(Held&&) = delete;
  ~Held() {
    if (locks_ == nullptr) return;
    if (locks_->dying_)
      at_->orphan = true;
    else
      locks_->held_.erase(at_);
  }
  [[nodiscard]] const Mount::LockWish& wish() const { return at_->wish; }

 private:
  LockWorkload* locks_;
  std::list<Lock>::iterator at_;
};

class LockWorkload::Counted {
 public:
  explicit Counted(std::size_t& count) : count_{&count} { ++*count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { --*count_; }

 private:
  std::size_t* count_;
};

Task<void> LockWorkload::set_up(std::size_t node, std::function<void()> done) {
  auto& mount = cluster_.mount(node, volume_)->mount();
  for (std::size_t i = 0; i < kFiles; ++i) {
    wire::Make what;
    what.set_parent(raw(kRootInode));
    what.set_name(fmt::format("locked{}", i));
    what.set_mode(S_IFREG | 0644);
    auto made = co_await mount.make(Caller{}, what);
    // The session may end meanwhile, and whether the name is there is then not known.
    while (!made &&
           (made.error() == Errc::session_ended || made.error() == std::errc::file_exists)) {
      made = co_await mount.lookup(kRootInode, what.name());
      if (!made && made.error() == std::errc::no_such_file_or_directory)
        made = co_await mount.make(Caller{}, what);
    }
    if (!made) {
      judge_.fail("making a file to lock: " + made.error().message());
      break;
    }
    files_.push_back(InodeId{made->inode()});
  }
  done();
}

void LockWorkload::begin(std::size_t node) {
  if (winding_down_) return;
  auto& csvfs = *cluster_.mount(node, volume_);
  csvfs.process().loop->enter([&] {
    for (int i = 0; i < (cluster_.volumes() > 1 ? 1 : 2); ++i)
      csvfs.programs().spawn(program(node, csvfs, world_.random().next()));
  });
}

void LockWorkload::dies(const std::function<void()>& kill) {
  dying_ = true;
  kill();
  dying_ = false;
}

/// Both sessions are live, as a coordinator says after the fact: then they were when it happened.
void LockWorkload::judge_again() {
  auto coordinator = cluster_.coordinator(volume_);
  if (!coordinator) return;
  auto status = cluster_.csvd(*coordinator)->service(volume_)->status();
  auto lives = [&](SessionId session) {
    return std::any_of(status.sessions.begin(), status.sessions.end(),
                       [&](const auto& each) { return each.session == session; });
  };
  for (const auto& [one, other] : std::exchange(suspicions_, {}))
    if (lives(one.session) && lives(other.session))
      judge_.fail(fmt::format("{} got {} of file {} while {} has {}", one.who, describe(one.wish),
                              one.file, other.who, describe(other.wish)));
  std::erase_if(held_, [&](const Lock& lock) { return lock.orphan && !lives(lock.session); });
}

void LockWorkload::got(const Lock& lock) {
  ++granted;
  world_.note(fmt::format("{} got {} of file {}", lock.who, describe(lock.wish), lock.file));
  for (const auto& other : held_)
    if (other.file == lock.file && other.program != lock.program && exclude(lock.wish, other.wish))
      suspicions_.push_back({lock, other});
  if (!suspicions_.empty()) judge_again();
}

/// EIO comes with the end of the session under which the file was opened, and for nothing else.
bool LockWorkload::explained(const Error& error, Csvfs& csvfs, SessionId session) {
  switch (error.to_errno()) {
    case EAGAIN: ++refused; return true;
    case EDEADLK: ++deadlocks; return true;
    case EINTR: ++interrupted; return true;
    case EIO:
      if (csvfs.mount().state().session != session) {
        ++lost;
        return true;
      }
      break;
    default: break;
  }
  judge_.fail("a lock failed: " + error.message());
  return false;
}

Task<Expected<void>> LockWorkload::take(Csvfs& csvfs, Random& random, Mount::Handle handle,
                                        Mount::LockWish wish) {
  auto interrupt = std::make_shared<Interrupt>();
  if (wish.wait && random.chance(1, 3)) {
    auto after = Duration{static_cast<std::int64_t>(random.below(60'000'000))};
    csvfs.process().loop->after(after, [weak = std::weak_ptr{interrupt}] {
      if (auto still = weak.lock()) still->raise();
    });
  }
  co_return co_await csvfs.mount().lock(handle, wish, interrupt.get());
}

Task<bool> LockWorkload::one_round(Csvfs& csvfs, Random& random, const std::string& who,
                                   std::uint64_t number) {
  auto& mount = csvfs.mount();
  auto file = random.below(files_.size());
  auto session = mount.state().session;
  auto opened = co_await mount.open(files_[file], {});
  if (!opened) co_return opened.error().to_errno() == EIO;
  auto handle = opened->handle;
  // Which of the two sessions it was opened under, nobody can tell.
  if (mount.state().session != session) {
    co_await mount.close(handle);
    co_return true;
  }
  bool whole = random.chance(1, 3), go_on = true;
  std::list<Held> held;
  for (auto left = 1 + random.below(3); left > 0 && go_on; --left) {
    Mount::LockWish wish;
    wish.kind = whole ? LockKind::whole_file : LockKind::bytes;
    wish.owner = whole ? kDescriptor + raw(handle) : number;
    wish.pid = static_cast<std::uint32_t>(number);
    wish.type = random.chance(1, 2) ? LockType::write : LockType::read;
    if (!whole) {
      wish.range.first = random.below(kBytes);
      wish.range.last = wish.range.first + random.below(kBytes - wish.range.first);
    }
    wish.wait = random.chance(2, 3);
    // What is there may be replaced, or given up in between: the program relies on it no more.
    std::erase_if(held, [&](const Held& each) {
      bool less = each.wish().type == LockType::write && wish.type == LockType::read;
      return whole || (less && each.wish().range.overlaps(wish.range));
    });
    auto result = co_await take(csvfs, random, handle, wish);
    if (!result) {
      go_on = explained(result.error(), csvfs, session);
      break;
    }
    if (mount.state().session == session)
      held.emplace_back(*this, Lock{who, number, session, file, wish});
    co_await sleep(*csvfs.process().loop,
                   Duration{static_cast<std::int64_t>(random.below(30'000'000))});
  }
  held.clear();
  if (random.chance(1, 2)) {
    Mount::LockWish all;
    all.kind = whole ? LockKind::whole_file : LockKind::bytes;
    all.owner = whole ? kDescriptor + raw(handle) : number;
    auto unlocked = co_await mount.unlock(handle, all);
    if (!unlocked) go_on = explained(unlocked.error(), csvfs, session) && go_on;
  } else if (random.chance(1, 2)) {
    co_await mount.flush(handle, number);
  }
  co_await mount.close(handle);
  co_return go_on;
}

Task<void> LockWorkload::program(std::size_t node, Csvfs& csvfs, std::uint64_t seed) {
  Counted counted{running_};
  Random random{seed};
  auto number = next_program_++;
  auto who = fmt::format("node{}.locker{}", node + 1, number);
  bool go_on = true;
  while (go_on && !winding_down_) {
    auto thinks = Duration{static_cast<std::int64_t>(random.below(40'000'000))};
    co_await sleep(*csvfs.process().loop, thinks);
    go_on = co_await one_round(csvfs, random, who, number);
  }
}

Task<void> LockWorkload::all_is_free(std::size_t node, std::function<void()> done) {
  auto& mount = cluster_.mount(node, volume_)->mount();
  for (auto inode : files_) {
    auto opened = co_await mount.open(inode, {});
    if (!opened) {
      judge_.fail("opening a file to lock: " + opened.error().message());
      break;
    }
    for (auto kind : {LockKind::bytes, LockKind::whole_file}) {
      Mount::LockWish wish;
      wish.kind = kind;
      wish.owner = kDescriptor - 1;
      wish.type = LockType::write;
      wish.wait = true;  // who was interrupted, and offered a lock in that moment, turns it down
      auto locked = co_await mount.lock(opened->handle, wish);
      if (!locked) judge_.fail("a lock is left: " + locked.error().message());
      if (locked) (void)co_await mount.unlock(opened->handle, wish);
    }
    co_await mount.close(opened->handle);
  }
  done();
}

}  // namespace csv::sim
