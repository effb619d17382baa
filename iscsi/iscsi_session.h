#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "iscsi/scsi.h"
#include "iscsi/scsi_commands.h"

namespace csv::iscsi {

/// One SCSI command on its way: what to send and, when it comes back, what became of it. Belongs to
/// the session from submit() until it comes back. At most one of `in` and `out` is not empty.
struct ScsiCommand {
  virtual ~ScsiCommand() = default;

  Cdb cdb;
  ScsiPurpose purpose = ScsiPurpose::data;
  std::span<std::byte> in;
  std::span<const std::byte> out;

  Expected<void> result;
  std::size_t received = 0;  ///< Of `in`. A data command that got less than all has failed.

 private:
  friend class IscsiSession;
  int attempts = 0;
  TimePoint give_up{};  ///< Set when it was first sent.
};

/// One libiscsi login: one nexus. There is no reconnect: the first loss, exceeded deadline or fence
/// ends the session.
///
/// It lives on a loop: whoever is on that has its command sent at once, and hears of the answer
/// without a change of threads, which costs more than all the rest of a small command. Events come
/// on the loop, never from inside a call. All may be called from any thread.
///
/// The one place where unit attentions, aborted tasks and busy targets are dealt with (scsi.h says
/// how): a command comes back when it has succeeded, failed for good, or the session has ended.
class IscsiSession {
 public:
  using Batch = std::vector<std::unique_ptr<ScsiCommand>>;

  struct Options {
    std::string initiator, target;
    std::string portal;  ///< Numeric ADDRESS:PORT.
    int lun = 0;
    std::uint64_t isid = 0;  ///< 40 bits are used.
    std::string chap_user, chap_secret;
    bool header_digest = false;
    Duration deadline = std::chrono::seconds{10};
  };
  struct Events {
    /// Once: logged in, so that commands go out; or why not (then nothing else follows).
    Function<void(Expected<void>)> connected;
    /// Commands that came back, in one go for each turn of the loop.
    Function<void(Batch)> answered;
    /// It came too late: the session has ended or is about to.
    Function<void(std::unique_ptr<ScsiCommand>)> refused;
    /// Once, if it had connected, also after close(): the connection is gone, so that nothing is
    /// sent from or received into a buffer any more. With what was unanswered.
    Function<void(Error, Batch)> ended;
  };
  struct Counters {
    std::atomic<std::uint64_t> retries{0}, conflicts{0}, timeouts{0};
  };

  /// Starts to connect.
  IscsiSession(AsioLoop& loop, Options options, Events events);
  /// On the loop, also from inside an event, or once that has ended. Drops the connection;
  /// unanswered commands are destroyed and no event follows.
  ~IscsiSession();
  IscsiSession(const IscsiSession&) = delete;
  IscsiSession& operator=(const IscsiSession&) = delete;

  void submit(std::unique_ptr<ScsiCommand> command);
  /// How many commands it has: for choosing the least loaded.
  [[nodiscard]] int load() const;
  /// Whether the nexus is known to hold a registration: from the next answer on, a conflict means
  /// that it was fenced.
  void set_registered(bool registered);
  [[nodiscard]] bool registered() const;

  /// Sends nothing more until resume(); `quiet` is called once nothing is in flight. Neither is
  /// called if the session ends first.
  void quiesce(Function<void()> quiet);
  /// LOGICAL UNIT RESET. Only while quiet, for whether the target answers our own commands that a
  /// reset aborts is up to the target. If it is long in being answered while the target executes
  /// commands all the same, `is_slow` is called: what is sent now is not ended by it any more.
  /// Errc::reset_unanswered: it was so at the deadline, and the session lives on.
  void reset(Function<void(Expected<void>)> answered, Function<void()> is_slow);
  void resume();
  /// Ends the session with `why`; everything unanswered comes back through `ended`.
  void close(Error why);

  [[nodiscard]] const Counters& counters() const;

 private:
  struct Nexus;  // the only user of libiscsi; outlives us while it is in the middle of something
  template <typename Work>
  void at_loop(Work work);

  std::shared_ptr<Nexus> nexus_;
};

}  // namespace csv::iscsi
