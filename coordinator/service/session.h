#pragma once
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "coordinator/protocol/connection.h"
#include "coordinator/protocol/limits.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/range_set.h"
#include "csvfs/base/task.h"

namespace csv::service {

struct Session;

/// A connection of a mount, from its Hello on, and the session it speaks for, once that is known.
struct Link {
  std::unique_ptr<protocol::Connection> connection;
  Epoch epoch_known{};  ///< By the mount, when it said hello.
  std::weak_ptr<Session> session;
  std::deque<protocol::Message> early;  ///< Came before its session was known.
};
using LinkRef = std::shared_ptr<Link>;

/// A notice that a mount owes an answer. Sent again on every new connection of the session until it
/// is answered or the session is gone.
struct Asked {
  explicit Asked(Loop& loop) : changed{loop} {}
  std::uint64_t id = 0;
  wire::Notice notice;
  int overdue_ticks = 0;  ///< Of the watch, while it was connected and the LUN answered us.
  bool heard = false;     ///< The mount has said so itself.
  bool answered = false;  ///< And what it said was written is in the file's times. Or it is gone.
  bool must_come_back = true;  ///< The session is fenced rather than waited for without end.
  Signal changed;              ///< Also when whoever waits should look around.
};
using AskedRef = std::shared_ptr<Asked>;

/// Counts something for as long as it lives.
struct Counted {
  explicit Counted(std::size_t& what) : count{&what} { ++*count; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { --*count; }
  std::size_t* count;
};

/// What a mount holds at the coordinator. Its row survives the coordinator; what is here is what
/// the mount says again in its Hello, or what the slots' rows say.
///
/// Ends with a fence and never comes back: `ending` from the moment that is decided (from then on
/// no request of it takes effect any more), `gone` when its keys are off the LUN (from then on what
/// it held may be given to others).
struct Session {
  Session(Loop& loop, SessionId number, NodeId of, std::uint64_t life)
      : id{number}, node{of}, incarnation{life}, disconnected_at{loop.now()}, over{loop} {}

  const SessionId id;
  const NodeId node;
  const std::uint64_t incarnation;

  LinkRef link;  ///< None: disconnected.
  TimePoint disconnected_at;
  bool fresh = false;     ///< Begun by a Hello to this coordinator, and nothing asked under it.
  bool declared = false;  ///< It has said, to this coordinator, what it holds.
  bool resumed = false;   ///< On this connection, it has repeated what was unanswered.
  bool settled = false;   ///< Since the takeover it has, once, repeated what was unanswered.
  bool ending = false, gone = false;
  bool end_handed_in = false;  ///< And with it what is kept of it, if anything.
  bool fenced = false;         ///< Ends, or has ended, without a goodbye.
  TimePoint vouched_until{};   ///< It may answer until then from what it watches.
  Signal over;                 ///< When gone.

  Key key{};          ///< Admitted: the one under which it does I/O. Key{}: none.
  Key registering{};  ///< Asked for and not admitted yet.

  std::set<InodeId> open;
  std::set<InodeId> open_to_write;  ///< Of these, by a handle that programs may write through.
  /// What others touched, in content, since it was last heard of: should it end, that counts.
  std::set<InodeId> touched_meanwhile;
  bool all_touched_meanwhile = false;  ///< Too many, or nobody knows which.
  std::set<InodeId> opened_again;      ///< Of these: a later Open counts on an earlier one.
  std::set<InodeId> opened_by_resume;  ///< And of these none does: they count by a Resume alone.
  /// Of those open to write: others touched their content at the same time, and since then it has
  /// not been seen that nothing of ours is under way (settle_writes). A write whose answer was lost
  /// is not made again there: somebody may have read it, and written over it since. With the
  /// number of the last such touch.
  std::map<InodeId, std::uint64_t> written_together;
  bool settling = false;            ///< Somebody sees to that.
  bool layouts_unlisted = false;    ///< Holds more layouts than it could say: any file's, but for
  std::set<InodeId> unlisted_told;  ///< these, which were recalled since.

  struct Slot {
    std::uint64_t sequence = 0;  ///< Of the last one whose effect is durable.
    std::string reply;
    bool busy = false;
    /// Of the write with this sequence, which the thin LUN had no space for: what of it was written
    /// in place all the same, in bytes of the file. Others may have seen it, and written there
    /// since.
    struct {
      std::uint64_t sequence = 0, truncation = 0;
      bool durable = false;
      RangeSet bytes;
    } landed;
  };
  std::array<Slot, protocol::kSlots> slots;
  bool slots_known = false;  ///< False after a takeover until they are read.

  /// A request in flight. Its answer goes where it was said last, or is lost with that link: the
  /// mount says it again on the next one, and must not have been answered there before. It would be
  /// done with the request, and we would take the repeat for a new one.
  struct UnderWay {
    std::size_t bytes = 0;  ///< Of content.
    LinkRef said_on;
  };
  std::map<std::uint64_t, UnderWay> requests;  ///< By id.
  std::size_t request_bytes = 0;
  std::set<std::uint64_t> leaving;  ///< Of them, those that wait for the session's end.
  std::map<std::uint64_t, AskedRef> asked;
  std::size_t waited_for = 0;  ///< By operations that cannot go on before it has declared itself.
  /// Slots whose stored reply waits to be sent, and where it was asked for last.
  std::map<std::uint32_t, LinkRef> answering_again;
  std::size_t lock_waits = 0;  ///< Of `requests`, those that wait for a lock.
  int unsettled_ticks = 0;     ///< Of the watch: waited for, connected, and silent all the same.

  std::uint64_t total_requests = 0, read_bytes = 0, write_bytes = 0;

  [[nodiscard]] bool connected() const { return link != nullptr; }
};
using SessionRef = std::shared_ptr<Session>;

}  // namespace csv::service
