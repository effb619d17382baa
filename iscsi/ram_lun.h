#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/random.h"
#include "iscsi/lun.h"
#include "iscsi/open_lun.h"

namespace csv::iscsi {

/// What a plan is told of a command before it starts its way.
struct RamCommand {
  enum class Kind { read, write, flush, zero, unmap, reservation, keys, reset };
  Kind kind{};
  std::uint64_t offset = 0, length = 0;
  std::string_view initiator;
  std::uint64_t number = 0;  ///< Counts all commands the disk was ever sent.
};

/// What becomes of a command: faults as data. A command travels to the target, where its
/// reservation check is made on arrival; it is then inside the target until it takes effect, and
/// its answer travels back.
struct RamFate {
  Duration to_target{}, inside{}, to_initiator{};
  /// If the session ends while it travels: it arrives all the same, `late_by` after it would have
  /// (what the target's socket had received). What is already inside always takes effect, unless
  /// aborted by PREEMPT AND ABORT, LUN RESET or power loss.
  bool lands_late = false;
  Duration late_by{};
  /// Late only under a reservation: while somebody else has taken that away nothing would keep it
  /// out.
  bool late_if_reserved = false;
  /// Fails with this in place of taking effect; of a write the first `torn_blocks` were written.
  Error failure;
  std::uint64_t torn_blocks = 0;
  /// Of a flush that fails (or lies): what the cache held is lost with it. Targets tell that once;
  /// the next flush succeeds.
  bool forgets = false;
  /// Of a flush that fails: what the cache held can still be read, and counts as written out, which
  /// it is not. Until it is written again no flush makes it durable.
  bool misses = false;
  /// Of one that forgets: whoever else is logged in is told, too, with his next command, which is
  /// not done then.
  bool tells_all = false;
  /// Told when a flush fails, or when the command is what says that something was forgotten. It
  /// must not call the disk.
  std::function<void()> failed;
  /// Takes effect, but the answer never comes: the Lun is lost instead.
  bool answer_lost = false;
  /// Answered as if done, and never done: a target that no protocol survives, to see a checker
  /// bite.
  bool lies = false;
  /// Of an UNMAP: answered as if done once it is inside, and done later all the same. To whoever
  /// sent it that is as if he had not waited.
  bool early = false;
  /// Neither reservations nor aborts stop it, nor is it told of them: another such target.
  bool unfenced = false;
  /// Of a write: told what was written, each time it takes effect. It must not call the disk.
  std::function<void(std::uint64_t offset, std::span<const std::byte> data)> took_effect;
};
using RamPlan = std::function<RamFate(const RamCommand&)>;

struct RamDiskOptions {
  Geometry geometry{.block_size = 512, .block_count = 131072, .physical_block_size = 4096};
  std::string identity = "naa.6001405c5f000001";
  bool write_cache = false;
  bool fua = true;
  bool write_same = true;
  bool thin = true;
  bool unmap = true;
  bool unmap_zeroes =
      true;  ///< Else an unmapped block keeps what it had: the worst a target may do.
  bool write_protected = false;
  bool preempt_and_abort = true;
  bool read_full_status = true;
  bool aptpl = true;
  bool all_registrants = true;  ///< Else types 7 and 8 are not reported.
  /// A registration belongs to the session instance: a new login is a new nexus, and the entry of a
  /// dead session stays listed.
  bool zombies = false;
  bool size_for_all = true;  ///< Else whom a reservation keeps out is not even told the size.
  std::uint64_t max_transfer = 1 << 20;
  std::uint64_t max_write_same = 32 << 20;
  std::uint64_t max_unmap = 64 << 20;
  std::uint64_t thin_bytes = ~0ull;  ///< Beyond this much allocated (in 64 KiB), writes fail.
  std::byte found{};  ///< What lies in every byte before anything is written: not of an image.

  /// As tgt 1.0.85 is used (docs/targets.md): no PREEMPT AND ABORT, no full status, no APTPL, no
  /// all-registrants types, no WRITE SAME, no UNMAP, zombies.
  static RamDiskOptions like_tgt();
  /// As LIO is used: no PREEMPT AND ABORT, and no size for who is kept out. Its nexuses have names
  /// of their own, so that they are told apart as they should be.
  static RamDiskOptions like_lio();
};

/// A logical unit in memory, or over a mapped image file, with the semantics of a real target:
/// persistent reservations, a volatile write cache, commands that execute late. It is shared by all
/// Luns connected to it and lives as long as one of them. Any thread.
///
/// Delays and late commands run on `clock`, which must outlive the disk; without one there are no
/// delays, and what a closing session had in flight has taken effect or never will.
class RamDisk {
 public:
  static std::shared_ptr<RamDisk> create(RamDiskOptions options, Loop* clock = nullptr);
  /// The image at `path`: geometry from its size, exclusively locked (flock) against other
  /// processes; within this process everybody gets the same disk. Reservations are forgotten with
  /// the process. The page cache is its volatile write cache.
  static Expected<std::shared_ptr<RamDisk>> open_file(const std::string& path,
                                                      std::uint32_t block_size = 512);
  virtual ~RamDisk() = default;

  /// Logs in: options.sessions new nexuses. The names of their ports follow from initiator, seed
  /// and index; a login under a name in use ends the older session and what it had in flight.
  /// Fails with lun_lost while the initiator is unreachable.
  virtual Expected<std::unique_ptr<Lun>> connect(Loop& home, LunOptions options,
                                                 RamPlan plan = {}) = 0;
  /// connect() as production's parts want it, each login taking `login` on the home loop.
  static LunOpener opener(std::shared_ptr<RamDisk> disk, Loop& home, RamPlan plan = {},
                          Duration login = {});

  /// The way of one initiator to the disk. Cutting it ends its sessions.
  virtual void set_reachable(const std::string& initiator, bool reachable) = 0;
  /// The target loses power: of the blocks not flushed an arbitrary subset keeps its new content,
  /// any command inside may be torn, all sessions end, PRGENERATION is 0, and without APTPL the
  /// reservations are forgotten.
  virtual void power_loss(Random& random) = 0;
  /// From now on this counts as options().thin_bytes. What is allocated stays, also if it is more.
  virtual void set_thin_bytes(std::uint64_t most) = 0;

  /// The content past all reservations, for tests and tools. Multiples of the block size.
  virtual void peek(std::uint64_t offset, std::span<std::byte> out) const = 0;
  virtual void poke(std::uint64_t offset, std::span<const std::byte> data) = 0;
  [[nodiscard]] virtual std::uint64_t unflushed_blocks() const = 0;
  [[nodiscard]] virtual std::uint64_t allocated_bytes() const = 0;
  /// Commands of ended sessions that have not executed yet.
  [[nodiscard]] virtual std::size_t late_commands() const = 0;
  [[nodiscard]] virtual std::vector<Key> registered_keys() const = 0;
  [[nodiscard]] virtual const RamDiskOptions& options() const = 0;
};

}  // namespace csv::iscsi
