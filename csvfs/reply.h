#pragma once
#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <sys/stat.h>

#include <cstdlib>
#include <memory>
#include <span>
#include <utility>

#include "coordinator/protocol/csv.pb.h"
#include "csvfs/base/error.h"
#include "csvfs/base/loop.h"
#include "csvfs/interrupt.h"

namespace csv {

/// What the kernel is owed for one request: shared by whoever will answer it, and whoever may have
/// to do so before, because the program is being killed.
struct Owed : std::enable_shared_from_this<Owed> {
  Owed(fuse_req_t its_request, bool its_changes, bool its_any_signal = false)
      : request{its_request},
        changes{its_changes},
        any_signal{its_any_signal},
        caller{fuse_req_ctx(its_request)->pid} {}
  Owed(const Owed&) = delete;
  Owed& operator=(const Owed&) = delete;

  fuse_req_t request;     ///< Null once answered.
  const bool changes;     ///< Not given up once it has begun to take effect.
  const bool any_signal;  ///< Interrupted by whatever signal, and then answered at once.
  const pid_t caller;     ///< The thread that waits.
  Interrupt interrupt;    ///< Of the call of Mount.
  TimePoint raised{};
  bool told = false;  ///< The log has been, that it waits all the same.
};

/// The one answer the kernel is owed for a request. Each sender consumes the object; dropping it
/// unanswered answers EIO, so that a program never waits for ever (a task destroyed at shutdown).
/// Senders do nothing where the request was given up after an interrupt.
///
/// Nothing is cached by the kernel: every answer carries time-outs of zero, since every folder is
/// concurrent. Opens are answered by hand, because libfuse 3.14 has no bit for parallel direct
/// writes.
class Reply {
 public:
  explicit Reply(fuse_req_t request) : Reply{std::make_shared<Owed>(request, false)} {}
  explicit Reply(std::shared_ptr<Owed> owed) : owed_{std::move(owed)} {}
  Reply(Reply&& other) noexcept = default;
  Reply& operator=(Reply&&) = delete;
  ~Reply() {
    if (owed_ && owed_->request != nullptr) fuse_reply_err(take(), EIO);
  }

  void error(const Error& why) && { std::move(*this).error(why.to_errno()); }
  /// After ESTALE the kernel walks the path once more (SecondWalks).
  void error(int number) &&;
  void ok() && { std::move(*this).error(0); }
  void result(const Expected<void>& result) && {
    std::move(*this).error(result ? 0 : result.error().to_errno());
  }
  void none() && {
    if (waits()) fuse_reply_none(take());
  }
  void entry(const wire::Attr& attr) &&;
  void attr(const wire::Attr& attr) &&;
  void statx(const wire::Attr& attr) &&;
  /// False if nobody is left to close the handle: close it.
  [[nodiscard]] bool opened(std::uint64_t handle, std::uint32_t open_flags) &&;
  [[nodiscard]] bool created(const wire::Attr& attr, std::uint64_t handle,
                             std::uint32_t open_flags) &&;
  void link_target(const std::string& target) && {
    if (waits()) fuse_reply_readlink(take(), target.c_str());
  }
  void bytes(std::span<const std::byte> content) && {
    if (waits())
      fuse_reply_buf(take(), reinterpret_cast<const char*>(content.data()), content.size());
  }
  void written(std::size_t count) && {
    if (waits()) fuse_reply_write(take(), count);
  }
  /// An extended attribute's value, or its length where the program asked for that (room 0).
  void xattr(const std::string& value, std::size_t room) &&;
  void statistics(const wire::FsStat& stat) &&;
  void lock(const struct flock& found) && {
    if (waits()) fuse_reply_lock(take(), &found);
  }
  void position(std::uint64_t offset) && {
    if (waits()) fuse_reply_lseek(take(), static_cast<off_t>(offset));
  }

  [[nodiscard]] bool waits() const { return owed_->request != nullptr; }
  [[nodiscard]] fuse_req_t request() const { return owed_->request; }
  /// For the call of Mount that this answers; lives as long as the reply.
  [[nodiscard]] Interrupt* interrupt() { return &owed_->interrupt; }

 private:
  fuse_req_t take() { return std::exchange(owed_->request, nullptr); }
  std::shared_ptr<Owed> owed_;
};

/// Attributes as stat(2) has them.
struct stat to_stat(const wire::Attr& attr);

}  // namespace csv
