#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::iscsi {

/// The answer to a command. Called exactly once, on the Lun's home loop (the one it was made with),
/// never from inside the call that submitted the command. Afterwards the Lun does not touch the
/// command's buffer any more.
using Done = Function<void(Expected<void>)>;

/// Persistent reservation types (SPC-4 table 65). The two in use are the last two of each kind.
enum class ReservationType : std::uint8_t {
  none = 0,
  write_exclusive = 1,
  exclusive_access = 3,
  write_exclusive_registrants_only = 5,
  exclusive_access_registrants_only = 6,
  write_exclusive_all_registrants = 7,
  exclusive_access_all_registrants = 8,
};

struct KeyList {
  std::uint32_t generation = 0;  ///< PRGENERATION; 0 again after the target lost its memory.
  std::vector<Key> keys;  ///< One entry a registered nexus, so a key may stand several times.
};
struct Reservation {
  std::uint32_t generation = 0;
  ReservationType type = ReservationType::none;  ///< none: no reservation is held.
  Key holder{};                                  ///< 0 for the all-registrants types.
};
struct ReservationCapabilities {
  bool persist_through_power_loss = false;  ///< PTPL_C: APTPL may be asked for.
  bool all_target_ports = false;            ///< ATP_C
  std::uint16_t type_mask = 0;  ///< Bit n: type n is supported. 0: the target does not say.
};
struct FullStatusEntry {
  Key key{};
  bool holder = false;
  ReservationType type = ReservationType::none;
  std::string initiator;  ///< iSCSI name with ISID ("iqn…,i,0x…"); else the TransportID in hex.
  std::uint16_t relative_port = 0;
};

struct Geometry {
  std::uint32_t block_size =
      512;  ///< Logical block: 512 or 4096. Offsets and lengths are multiples.
  std::uint64_t block_count = 0;
  std::uint32_t physical_block_size = 4096;
  [[nodiscard]] std::uint64_t size_bytes() const { return block_size * block_count; }
  /// See TargetProfile: a target need not say its size to whom a reservation keeps out.
  [[nodiscard]] bool known() const { return block_count != 0; }
};

/// What this target can do, found by asking it when the Lun was made, or known of its make
/// (docs/targets.md). A target may refuse to be asked about its cache, or even its size, by a nexus
/// that a reservation keeps out: then write_cache is true and fua false, or the geometry is not
/// known(), until register_key() has answered (or, under a reservation that admits its holder only,
/// what has ended that).
struct TargetProfile {
  std::string vendor, product, revision;
  std::string identity;  ///< VPD page 83h designator of the LUN, "naa.…", "eui.…", "t10.…".
  bool write_protected = false;
  bool write_cache = false;  ///< WCE: an answered write may be volatile until flush() or FUA.
  bool fua = false;          ///< DPOFUA: the FUA bit is honoured.
  bool write_same = false;
  bool thin = false;  ///< LBPME: space is allocated when it is written, and may run out.
  bool unmap = false;
  bool unmap_zeroes = false;  ///< LBPRZ: an unmapped block reads as zeros.
  /// It is there, and ends all that the fenced nexus had sent. Else a fence is PREEMPT and then
  /// reset().
  bool preempt_and_abort = false;
  bool read_full_status = false;
  bool aptpl = false;
  /// Reservation types 7 and 8 do what they should. Else report_capabilities() leaves them out, and
  /// registrants only is the type to fence with.
  bool all_registrants = true;
  /// Access goes by the initiator's name, whatever its ISID: nexuses of one name have one another's
  /// access, and lose it with one another. The Lun gives each a name of its own
  /// (LunOptions::role).
  bool name_is_nexus = false;
  std::uint64_t max_transfer = 0;    ///< Bytes a command may carry; larger requests are split.
  std::uint64_t max_write_same = 0;  ///< Bytes.
  std::uint64_t max_unmap = 0;       ///< Bytes.
};

/// Counters since the Lun was made; monotonic. Bytes are of user data.
struct LunCounters {
  std::uint64_t reads = 0, read_bytes = 0, writes = 0, write_bytes = 0, flushes = 0;
  std::uint64_t zeroes = 0, unmaps = 0, retries = 0, conflicts = 0, timeouts = 0;
};

/// One way to one logical unit, for the life of one admission: one or more nexuses that die
/// together. Asynchronous throughout; safe to use from any thread.
///
/// There is no reconnect underneath: a lost connection or an exceeded deadline ends the Lun. Every
/// command then unanswered, and every one submitted later, fails with Errc::lun_lost, and the
/// sessions are dropped *before* that answer, so that buffers may be reused; the target may still
/// execute what it had received (unknown outcome) until the key is fenced. The owner connects a new
/// Lun under a new admission and repeats what was unanswered (docs/fencing.md).
///
/// Errors of commands: lun_lost; fenced (a RESERVATION CONFLICT on a nexus that was registered, or
/// unit attention 2Ah/03h or 05h; it ends the Lun); reservation_conflict (the same where we never
/// registered); unsupported_by_target; std::errc::no_space_on_device (thin LUN exhausted, 27h/07h);
/// not_durable (what had been answered before, by any node, and not been flushed may be gone: a
/// flush failed, or the target says so with another command, which itself was not done then; told
/// once, later flushes may succeed); bad_medium (MEDIUM ERROR, HARDWARE ERROR); io_error with the
/// sense in the message. Of several parts of a request the error counts that says most: a loss,
/// then not_durable. Unit attentions and TASK ABORTED after a reset are repeated inside.
///
/// Offsets and lengths are in bytes and multiples of block_size, else Errc::refused. A buffer stays
/// valid until the answer. Requests of any length are split to the target's limits. Commands may be
/// executed in any order: wait for the answer of one before sending what must come after it.
class Lun {
 public:
  /// On the home loop, or once that has ended. Drops the sessions; commands still unanswered are
  /// never answered, their Done is destroyed.
  virtual ~Lun() = default;

  [[nodiscard]] virtual const Geometry& geometry() const = 0;
  [[nodiscard]] virtual const TargetProfile& profile() const = 0;
  [[nodiscard]] virtual LunCounters counters() const = 0;
  /// Called once on the home loop when the Lun ends by itself (lost, fenced), with why. At once
  /// (posted) if it already has.
  virtual void on_lost(Function<void(Error)> handler) = 0;
  /// Drops the sessions now; commands in flight fail with lun_lost. Idempotent.
  virtual void close() = 0;

  /// Sees every write answered before the call, by any node.
  virtual void read(std::uint64_t offset, std::span<std::byte> out, Done done) = 0;
  struct WriteOptions {
    bool fua = false;  ///< Answered only once past the volatile cache. A flush where the target has
                       ///< no FUA.
  };
  /// On failure any subset of the blocks may have been written.
  virtual void write(std::uint64_t offset, std::span<const std::byte> data, WriteOptions options,
                     Done done) = 0;
  /// Everything answered before the call is past the volatile cache. Nothing to do without one.
  /// Fails with unsupported_by_target where the target has no such command: nothing is lost by
  /// that.
  virtual void flush(Done done) = 0;
  /// Zeros: WRITE SAME where the target has it, else written.
  virtual void write_zeroes(std::uint64_t offset, std::uint64_t length, Done done) = 0;
  /// A hint that the content is not needed; what it reads afterwards is undefined unless
  /// profile().unmap_zeroes. Succeeds without effect where the target has no UNMAP.
  virtual void unmap(std::uint64_t offset, std::uint64_t length, Done done) = 0;

  /// Registers `key` on every nexus of this Lun, replacing whatever it had (REGISTER AND IGNORE
  /// EXISTING KEY). Key{} unregisters.
  virtual void register_key(Key key, Done done) = 0;
  /// REGISTER on the first nexus: fails with reservation_conflict unless `existing` is what it has.
  virtual void register_exactly(Key existing, Key key, Done done) = 0;
  virtual void reserve(Key mine, ReservationType type, Done done) = 0;
  virtual void release(Key mine, ReservationType type, Done done) = 0;
  /// Removes all registrations and the reservation.
  virtual void clear(Key mine, Done done) = 0;
  /// Removes the registrations of `victim`. Never repeated inside: look at the keys instead.
  /// `abort` asks for PREEMPT AND ABORT (unsupported_by_target where it does not exist).
  virtual void preempt(Key mine, Key victim, ReservationType type, bool abort, Done done) = 0;
  /// LOGICAL UNIT RESET: when answered, every command the target had of any nexus has ended.
  virtual void reset(Done done) = 0;

  virtual void read_keys(Function<void(Expected<KeyList>)> done) = 0;
  virtual void read_reservation(Function<void(Expected<Reservation>)> done) = 0;
  virtual void report_capabilities(Function<void(Expected<ReservationCapabilities>)> done) = 0;
  virtual void read_full_status(Function<void(Expected<std::vector<FullStatusEntry>>)> done) = 0;
};

/// How to reach a LUN. Its URL is one of
///   iscsi://[user%secret@]PORTAL[,PORTAL...]/TARGET/LUN
///       A portal is ADDRESS[:PORT], numeric; sessions go round them. Secrets belong in LunOptions.
///   /dev/...
///       A local block device (FC, multipath).
///   file:PATH
///       An image file, for tests and the embedded run: a RAM LUN's semantics over a mapped file,
///       one process at a time.
struct LunOptions {
  std::string initiator = "iqn.2026-01.org.csvfs:node";  ///< One name a node.
  /// What tells this opener from others with the same name: "coordinator", "mount". Where the
  /// target takes a name for a nexus its sessions are INITIATOR:ROLE.0, .1 and so on; without a
  /// role a single session stays INITIATOR.
  std::string role = {};
  /// With the session's index it gives its fixed ISID: (node, process, path). A good target ends
  /// the older session when somebody logs in under an ISID in use. 0: random, for tools.
  std::uint64_t isid_seed = 0;
  int sessions = 1;         ///< Nexuses, each with an ISID of its own.
  Duration deadline = 10s;  ///< For a command; exceeding it ends the Lun.
  std::string chap_user, chap_secret;
  bool header_digest = false, data_digest = false;
  /// The administrator vouches for the target's cache (a battery): it counts as none.
  bool write_cache_safe = false;
};

}  // namespace csv::iscsi
