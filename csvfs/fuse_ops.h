#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "csvfs/mount.h"
#include "csvfs/reply.h"

namespace csv {

/// What the FUSE operations work on; the session's userdata. All on the mount's loop.
struct FuseState {
  Mount* mount = nullptr;
  /// The buffer of the request being processed. An operation that needs its bytes longer than its
  /// call (a write) takes it; otherwise the reader uses it again. A write's content stands behind
  /// two headers; the buffer is placed so that it is aligned for the LUN, and never copied.
  struct RequestBuffer {
    Buffer memory;
    fuse_buf buffer{};
    RequestBuffer() = default;
    RequestBuffer(RequestBuffer&& other) noexcept
        : memory{std::move(other.memory)}, buffer{std::exchange(other.buffer, fuse_buf{})} {}
    RequestBuffer& operator=(RequestBuffer&& other) noexcept {
      memory = std::move(other.memory);
      buffer = std::exchange(other.buffer, fuse_buf{});
      return *this;
    }
    ~RequestBuffer() = default;
    static RequestBuffer made();
  };
  RequestBuffer current;
  std::vector<RequestBuffer> spare;  ///< So that large requests do not fault fresh pages in.
  /// What stat and statfs of the root say while the volume cannot be reached, so that df and
  /// monitoring do not hang (last known values).
  std::optional<wire::Attr> root;
  std::optional<wire::FsStat> statistics;
  std::function<void()> on_destroy;  ///< The kernel unmounted us.
  /// The program that waits for this got a signal. Called from inside libfuse: act later.
  std::function<void(std::weak_ptr<Owed>)> on_interrupt;
  /// Handles of files with set-user-ID or set-group-ID bits when they were opened, and the mode.
  std::map<std::uint64_t, std::uint32_t> set_id;
  /// The requests under way. Last: they use everything above.
  TaskScope requests;
};

/// One FUSE operation each: unpack, call Mount, answer.
const fuse_lowlevel_ops& fuse_ops();

}  // namespace csv
