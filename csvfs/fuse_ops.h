#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "csvfs/mount.h"
#include "csvfs/reply.h"

namespace csv {

/// What the FUSE operations work on; the session's userdata. All on the mount's loop.
struct FuseState {
  Mount* mount = nullptr;
  /// The buffer of the request being processed. An operation that needs its bytes longer than its
  /// call (a write) takes it; otherwise the reader uses it again.
  struct RequestBuffer {
    fuse_buf buffer{};
    RequestBuffer() = default;
    RequestBuffer(RequestBuffer&& other) noexcept
        : buffer{std::exchange(other.buffer, fuse_buf{})} {}
    RequestBuffer& operator=(RequestBuffer&& other) noexcept {
      std::swap(buffer, other.buffer);
      return *this;
    }
    ~RequestBuffer() { std::free(buffer.mem); }
  };
  RequestBuffer current;
  std::vector<RequestBuffer> spare;  ///< So that large requests do not fault fresh pages in.
  /// What stat and statfs of the root say while the volume cannot be reached, so that df and
  /// monitoring do not hang (last known values).
  std::optional<wire::Attr> root;
  std::optional<wire::FsStat> statistics;
  std::function<void()> on_destroy;  ///< The kernel unmounted us.
  /// The requests under way. Last: they use everything above.
  TaskScope requests;
};

/// One FUSE operation each: unpack, call Mount, answer.
const fuse_lowlevel_ops& fuse_ops();

}  // namespace csv
