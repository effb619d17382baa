#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/random.h"
#include "csvfs/base/task.h"
#include "csvfs/interrupt.h"

namespace csv {

/// This mount's session with whoever coordinates the volume: it survives broken connections and
/// changes of coordinator. Every request is answered once, however often it had to be repeated; a
/// request that changes something takes effect once (slots). It connects by itself, for ever.
///
/// A session ends when the coordinator says so (it was fenced). Then every request that was bound
/// to it, and every change whose outcome is unknown, fails with Errc::session_ended, and a new
/// session begins; what had not been sent yet goes with the new one.
///
/// One loop. Destroying it leaves calls waiting for ever: destroy them too.
class CoordinatorClient {
 public:
  /// What it has to say to its owner.
  class Owner {
   public:
    virtual ~Owner() = default;
    /// What the session being resumed holds, into the Hello.
    virtual void declare(wire::Hello& hello) = 0;
    /// What else it holds, as requests: sent before what is unanswered is repeated; whatever is
    /// answered to them is of no interest.
    virtual std::vector<wire::Request> declared() = 0;
    /// Connected. `fresh`: a session that has nothing yet; else the one before goes on.
    virtual void greeted(const wire::HelloReply& reply, bool fresh) = 0;
    virtual void session_ended(const Error& why) = 0;
    virtual void connection_changed() = 0;
    /// The coordinator has been putting off a request for a while; it is asked again.
    virtual void put_off(const Error& why) = 0;
    /// `request` is about to be sent for the first time, and may be added to.
    virtual void sending(wire::Request& request, std::uint64_t id) = 0;
    /// It is answered, with an error perhaps; before its caller goes on.
    virtual void replied(const wire::Request& request, std::uint64_t id, TimePoint sent_at,
                         const wire::Reply& reply) = 0;
    /// To be answered with answer(), sooner or later.
    virtual void noticed(std::uint64_t id, const wire::Notice& notice) = 0;
  };
  struct Setup {
    Loop* loop = nullptr;
    std::function<void(protocol::Connected)> connect;
    /// Whom it was told to ask instead, for the next connect(); may be empty.
    std::function<void(NodeId, const std::string& endpoint)> elsewhere;
    /// The newest epoch that this node has heard of; may be empty.
    std::function<Epoch()> newest_epoch;
    std::string volume;
    NodeId node{};
    std::uint64_t incarnation = 0;  ///< Random; of this process's life.
  };
  CoordinatorClient(Setup setup, Owner& owner);
  ~CoordinatorClient();
  CoordinatorClient(const CoordinatorClient&) = delete;
  CoordinatorClient& operator=(const CoordinatorClient&) = delete;

  struct Answer {
    wire::Reply reply;  ///< Without a failure.
    Buffer bulk;
    SessionId session{};
    Epoch sent_in{};  ///< Of the coordinator it was first sent to.
    Epoch answered_in{};
  };
  struct CallOptions {
    bool changes = false;               ///< Takes a slot.
    bool early = false;                 ///< Does not wait for open(): what admission itself needs.
    SessionId session{};                ///< Bound to this session; 0: whichever lives.
    std::span<const std::byte> bulk{};  ///< Valid until the call ends.
    Interrupt* interrupt = nullptr;     ///< EINTR while it is certain not to have been done.
    bool* sent = nullptr;               ///< Set once it has been; valid until the call ends.
    bool outlasts = false;              ///< Waits also where the node is kept out.
  };
  /// Waits as long as waiting can help. The error is the coordinator's, session_ended, EINTR, or
  /// EIO if the node was kept out after the call began: whoever had it shut out starts elsewhere
  /// what ran here, and what waits here must not go on when the node is let in. An answer resumes
  /// the caller before anything that came after it is looked at.
  Task<Expected<Answer>> call(wire::Request request, CallOptions options);
  Task<Expected<Answer>> call(wire::Request request) {
    return call(std::move(request), CallOptions{});
  }

  /// Calls other than early ones may be sent (the session has been admitted once).
  void open();
  /// False if it could not be sent; the coordinator then asks again, if it still wants to know.
  bool answer(std::uint64_t notice, wire::NoticeReply reply);
  /// The session is over as far as this side knows (a Fenced notice).
  void end_session(Error why);
  /// No more connecting, nothing more is sent.
  void stop();

  [[nodiscard]] bool connected() const { return stage_ == Stage::open; }
  [[nodiscard]] SessionId session() const { return session_; }
  [[nodiscard]] Epoch epoch() const { return epoch_; }
  /// Why it is not connected, and whether that was a refusal that waiting will not mend.
  [[nodiscard]] const Error& trouble() const { return trouble_; }
  /// The coordinator's own word, to the last attempt, was that this node is not let in. Connections
  /// are refused for other reasons, too (a certificate, another version), and by nodes that do not
  /// coordinate.
  [[nodiscard]] bool kept_out() const { return kept_out_; }
  /// Of the last request that was sent. They grow.
  [[nodiscard]] std::uint64_t last_id() const { return next_id_ - 1; }
  [[nodiscard]] std::uint64_t requests() const { return requests_; }
  [[nodiscard]] std::uint64_t reconnects() const { return reconnects_; }

 private:
  enum class Stage { idle, connecting, greeting, open, stopped };
  struct Call;
  class Stay;
  using CallPtr = std::shared_ptr<Call>;
  struct Slot {
    bool busy = false;
    std::uint64_t sequence = 0;
  };

  void connect();
  void connected_to(std::unique_ptr<protocol::Connection> connection);
  void disconnect(Error why);
  void pause(TimePoint until);
  void received(protocol::Message message);
  void greeted(const wire::Frame& frame);
  void replied(protocol::Message message);
  bool is_stale(const wire::Frame& frame) const;
  void adopt(const wire::Frame& frame);
  void watch();
  void look_for_silence();
  void look_for_a_better_one();
  void add(const CallPtr& call);
  void interrupt(const CallPtr& call);
  bool unqueue(const CallPtr& call);
  void pump();
  bool take_slot(Call& call);
  void send(Call& call);
  void send_again_later(std::uint64_t id, Duration delay);
  void refuse_what_is_unknown();
  void refuse_what_waits(const Error& why);
  void finish(const CallPtr& call, Expected<Answer> result);
  wire::Frame frame() const;

  Setup setup_;
  Owner* owner_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // callbacks may outlive us

  Stage stage_ = Stage::idle;
  std::uint64_t attempt_ = 0;  // of connecting; what belongs to an older one is ignored
  std::unique_ptr<protocol::Connection> connection_;
  Loop::TimerId timer_{};
  Duration backoff_{};
  TimePoint heard_{};
  TimePoint give_up_at_{};     // connecting, or greeting
  Epoch newest_when_asked_{};  // newest_epoch(), when this attempt began
  Error trouble_;
  bool kept_out_ = false;
  std::optional<std::uint64_t> fences_;  ///< By command, when the last session was resumed or made.

  SessionId session_{};
  Epoch epoch_{};  // the newest known
  Key coordinator_key_{};
  bool open_for_all_ = false;
  bool knows_clones_ = false;  // whoever answered the last greeting

  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, CallPtr> unanswered_;   // sent at least once; by id, the order of repeats
  std::deque<CallPtr> early_, plain_, changing_;  // not sent yet
  std::array<Slot, 64> slots_;
  std::map<std::uint64_t, Epoch> notices_;  // unanswered, and whose they are

  std::uint64_t requests_ = 0, reconnects_ = 0;
};

}  // namespace csv
