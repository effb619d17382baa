#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "csvfs/coordinator_client.h"
#include "csvfs/file_table.h"
#include "csvfs/interrupt.h"
#include "csvfs/mount.h"

namespace csv {

/// The locks that programs of this mount hold: the coordinator keeps them, this remembers them, so
/// that a new coordinator can be told, and so that they are given back with the handle or the
/// process. Whatever the coordinator grants and nobody wants any more is given back, too: a lock
/// cannot leak, however answers, interrupts and closes cross.
///
/// Dies with the session, like the files. One loop.
class HeldLocks {
 public:
  explicit HeldLocks(CoordinatorClient& client) : client_{&client} {}

  Task<Expected<void>> lock(FilePtr file, Mount::Handle handle, Mount::LockWish wish,
                            Interrupt* interrupt);
  Task<Expected<void>> unlock(FilePtr file, Mount::LockWish wish);
  Task<Expected<std::optional<Mount::LockFound>>> test(FilePtr file, Mount::LockWish wish);
  /// A process has closed a descriptor of the file: as POSIX will have it, it loses all locks on
  /// its bytes.
  Task<void> closed(FilePtr file, std::uint64_t owner);
  /// Nobody has the handle any more: what was locked through it goes.
  Task<void> released(FilePtr file, Mount::Handle handle);

  /// What is held, as requests to be sent before anything else.
  [[nodiscard]] std::vector<wire::Request> declared() const;
  /// What is held is gone, and is kept in mind until it is known whether it comes back: with the
  /// file, or not.
  void session_ended();
  /// Another connection, perhaps to a coordinator that never heard of it: whatever has been given
  /// up and is repeated all the same is turned down again. After the repeats.
  void turn_down_again();
  /// What would have to be got back of a file. Also what its owner has given back since: the
  /// coordinator will be told once it is known to be ours.
  [[nodiscard]] std::vector<wire::LockOf> suspended(InodeId inode) const;
  void resumed(FilePtr file);  ///< All of it is held again.
  void over(InodeId inode);    ///< None of it.
  /// As closed() and released(), of a file of which that is not known yet.
  void closed_suspended(InodeId inode, std::uint64_t owner);
  void released_suspended(InodeId inode, Mount::Handle handle);

 private:
  /// Of one owner, as the kernel names it, on one file. The kernel uses its names again; ours never
  /// are, so that nothing of a former owner can hit a later one.
  struct Owner {
    std::uint64_t number = 0;
    LockKind kind{};
    std::uint64_t name = 0;  // the kernel's
    std::uint32_t pid = 0;
    std::set<Mount::Handle> handles;  // through which it asked
    LockRanges held;                  // never more than the coordinator believes
    int calls = 0;                    // under way
    bool gone = false;                // the coordinator has been told to forget it
  };
  using OwnerPtr = std::shared_ptr<Owner>;
  class Calling;
  struct Waiting;
  using WaitingPtr = std::shared_ptr<Waiting>;

  OwnerPtr find(InodeId inode, LockKind kind, std::uint64_t name) const;
  OwnerPtr get(InodeId inode, Mount::Handle handle, const Mount::LockWish& wish);
  void forget_unused(InodeId inode, const OwnerPtr& owner);
  static wire::LockOf describe(InodeId inode, const Owner& owner);
  static wire::Request forgetting(InodeId inode, const Owner& owner);
  static bool begins_to_replace(Owner& owner, const Mount::LockWish& wish);
  void failed_to_replace(const FilePtr& file, const Owner& owner);
  Task<Expected<void>> wait(FilePtr file, OwnerPtr owner, wire::Request request,
                            Mount::LockWish wish, Interrupt* interrupt);
  Task<void> ask(FilePtr file, OwnerPtr owner, wire::Request request, Mount::LockWish wish,
                 WaitingPtr waiting);
  void give_up(const FilePtr& file, const OwnerPtr& owner, const WaitingPtr& waiting);
  void turn_down(FilePtr file, std::uint64_t ticket);
  void granted(const FilePtr& file, const OwnerPtr& owner, const Mount::LockWish& wish);
  Task<Expected<CoordinatorClient::Answer>> call(FilePtr file, wire::Request request,
                                                 Interrupt* interrupt = nullptr);
  Task<void> say(FilePtr file, wire::Request request);
  Task<void> forget(FilePtr file, OwnerPtr owner);

  CoordinatorClient* client_;
  std::map<InodeId, std::vector<OwnerPtr>> owners_, suspended_;
  std::uint64_t next_owner_ = 1, next_ticket_ = 1;
  std::map<std::uint64_t, FilePtr> given_up_;  // by ticket: requests that are not answered yet
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // calls may outlive us
  TaskScope tasks_;
};

}  // namespace csv
