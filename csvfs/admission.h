#pragma once
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "csvfs/base/task.h"
#include "csvfs/coordinator_client.h"
#include "csvfs/lun_path.h"
#include "iscsi/open_lun.h"

namespace csv {

/// The permission of this mount to do I/O on the LUN, and the path that stands for it: asked for
/// when a session begins, and again (with a fresh key, over a fresh path) whenever the path is
/// lost. While it lasts, the mount's heartbeat slot is rewritten every second through the path,
/// which is also how it finds out that it was fenced. One loop.
class Admission {
 public:
  struct Setup {
    Loop* loop = nullptr;
    iscsi::LunOpener open_lun;
    std::string volume;
    NodeId node{};
    std::function<TimePoint()> open_until =
        {};  ///< The I/O gate, for what the slot says; may be empty.
  };
  Admission(Setup setup, CoordinatorClient& client);
  ~Admission();  ///< Nothing of ours is in flight afterwards.
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  void session_began(const wire::HelloReply& about);
  /// What was admitted under it is over; commands in flight fail.
  /// The volume needs a LUN of so many bytes, as each greeting says: it may have grown.
  void lun_has(std::uint64_t bytes);
  void session_ended();
  /// I/O on `path` failed because the path is lost. No effect if it is not the current one. By
  /// value: it may be path() itself, which this takes away.
  void lost(std::shared_ptr<LunPath> path, const Error& why);
  /// Something waits though there is a path, and will be tried again: the thin LUN has no space.
  void waits(const Error& why);
  /// What was said so lately; else null.
  [[nodiscard]] const Error* waiting() const;
  /// Good order: nothing more is sent; once all that was has been answered, the key is unregistered
  /// and the path closed. Waits without an end for a target that does not answer.
  Task<void> leave();
  /// Of what leave() waits for.
  [[nodiscard]] bool awaits_answers() const { return left_ && !left_->closed(); }

  /// Null while there is none: wait for changed().
  [[nodiscard]] const std::shared_ptr<LunPath>& path() const { return path_; }
  [[nodiscard]] Signal& changed() { return changed_; }
  /// Why there is no path.
  [[nodiscard]] const Error& trouble() const { return trouble_; }
  /// What was found is not the volume's LUN, or cannot be used: waiting will not mend it.
  [[nodiscard]] bool wrong_lun() const { return wrong_lun_; }
  /// The target has lost what it had answered and not flushed: LunPath::on_forgot().
  void on_forgot(std::function<void()> handler) { forgot_ = std::move(handler); }
  /// When the last of our slot's writes that was answered was sent; never: the clock's beginning.
  [[nodiscard]] TimePoint reached() const { return reached_; }
  [[nodiscard]] std::uint64_t admissions() const { return admissions_; }

 private:
  Task<void> keep_admitted();
  Task<Expected<std::shared_ptr<LunPath>>> admit();
  Task<Expected<std::unique_ptr<iscsi::Lun>>> open();
  Expected<void> check(iscsi::Lun& lun) const;
  Task<Expected<void>> write_slot(std::shared_ptr<LunPath> path);
  Task<void> beat(std::shared_ptr<LunPath> path);

  Setup setup_;
  CoordinatorClient* client_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Signal changed_;  ///< Admitted, lost, or the session changed.
  std::optional<wire::HelloReply> about_;
  std::array<std::byte, 16> volume_id_{};
  std::shared_ptr<LunPath> path_;
  std::shared_ptr<LunPath> candidate_;  // registered, not admitted yet
  std::shared_ptr<LunPath> left_;       // by leave()
  Error trouble_;
  Error waiting_;
  TimePoint reached_{};
  TimePoint waiting_until_{};  // said again before then, or taken to be over
  std::function<void()> forgot_;
  std::uint64_t admissions_ = 0, counter_ = 0;
  bool leaving_ = false, wrong_lun_ = false;
  TaskScope tasks_;
};

}  // namespace csv
