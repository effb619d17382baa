#pragma once
#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <sys/stat.h>

#include <cstdlib>
#include <span>
#include <utility>

#include "coordinator/protocol/csv.pb.h"
#include "csvfs/base/error.h"

namespace csv {

/// The one answer the kernel is owed for a request. Each sender consumes the object; dropping it
/// unanswered answers EIO, so that a program never waits for ever (a task destroyed at shutdown).
///
/// Nothing is cached by the kernel: every answer carries time-outs of zero, since every folder is
/// concurrent. Opens are answered by hand, because libfuse 3.14 has no bit for parallel direct
/// writes.
class Reply {
 public:
  explicit Reply(fuse_req_t request) : request_{request} {}
  Reply(Reply&& other) noexcept : request_{std::exchange(other.request_, nullptr)} {}
  Reply& operator=(Reply&&) = delete;
  ~Reply() {
    if (request_ != nullptr) fuse_reply_err(request_, EIO);
  }

  void error(const Error& why) && { fuse_reply_err(take(), why.to_errno()); }
  void error(int number) && { fuse_reply_err(take(), number); }
  void ok() && { fuse_reply_err(take(), 0); }
  void result(const Expected<void>& result) && {
    fuse_reply_err(take(), result ? 0 : result.error().to_errno());
  }
  void none() && { fuse_reply_none(take()); }
  void entry(const wire::Attr& attr) &&;
  void attr(const wire::Attr& attr) &&;
  void opened(std::uint64_t handle) &&;
  void created(const wire::Attr& attr, std::uint64_t handle) &&;
  void link_target(const std::string& target) && { fuse_reply_readlink(take(), target.c_str()); }
  void bytes(std::span<const std::byte> content) && {
    fuse_reply_buf(take(), reinterpret_cast<const char*>(content.data()), content.size());
  }
  void written(std::size_t count) && { fuse_reply_write(take(), count); }
  /// An extended attribute's value, or its length where the program asked for that (room 0).
  void xattr(const std::string& value, std::size_t room) &&;
  void statistics(const wire::FsStat& stat) &&;
  void position(std::uint64_t offset) && { fuse_reply_lseek(take(), static_cast<off_t>(offset)); }

  [[nodiscard]] fuse_req_t request() const { return request_; }

 private:
  fuse_req_t take() { return std::exchange(request_, nullptr); }
  fuse_req_t request_;
};

/// Attributes as stat(2) has them.
struct stat to_stat(const wire::Attr& attr);

}  // namespace csv
