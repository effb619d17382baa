#pragma once
#include <memory>
#include <vector>

#include "csvfs/base/buffer.h"
#include "csvfs/base/task.h"
#include "iscsi/lun.h"

namespace csv::service {

/// The coordinator's own I/O on file content. Each call sends all its commands at once and goes on
/// when all have answered, with the first error. A task destroyed meanwhile leaves the commands on
/// their way: the buffers live until they are answered. Loop's thread.
class Content {
 public:
  Content(Loop& loop, iscsi::Lun& lun);
  Content(const Content&) = delete;
  Content& operator=(const Content&) = delete;
  ~Content();

  /// A part of a buffer and its place on the LUN, in bytes.
  struct Piece {
    std::uint64_t lun_offset = 0;
    std::size_t at = 0, length = 0;
  };
  struct Extent {
    std::uint64_t lun_offset = 0, length = 0;
  };
  using BufferRef = std::shared_ptr<Buffer>;
  Task<Expected<void>> read(BufferRef into, std::vector<Piece> pieces);
  /// `yes`: answered when it is past the target's volatile cache, by FUA where there is FUA.
  enum class Durable { no, yes };
  /// By piece, whether it was written, whatever became of the others.
  using Landed = std::shared_ptr<std::vector<bool>>;
  Task<Expected<void>> write(BufferRef from, std::vector<Piece> pieces,
                             Durable durable = Durable::no, Landed landed = nullptr);
  Task<Expected<void>> zero(std::vector<Extent> extents);
  Task<Expected<void>> unmap(std::vector<Extent> extents);
  /// All that was answered before the call is past the target's volatile cache. Callers share
  /// flushes: at most one runs and one waits (a flush that starts now serves whoever waits now).
  /// After an answer of not_durable, to any command, none succeeds any more: Errc::retry.
  Task<Expected<void>> flush();
  /// As if the target had answered one of ours so.
  void forget();
  /// It has answered so, to whomever of us.
  [[nodiscard]] bool forgotten() const;
  /// Nothing is on its way.
  Task<void> idle();

  [[nodiscard]] std::uint64_t read_bytes() const { return read_bytes_; }
  [[nodiscard]] std::uint64_t write_bytes() const { return write_bytes_; }

 private:
  using Send = Function<void(std::size_t, iscsi::Done)>;
  Task<Expected<void>> all(std::size_t count, Send send);

  struct State;
  struct Flush;
  static void start_flush(const std::shared_ptr<State>& state, iscsi::Lun& lun);
  Loop* loop_;
  iscsi::Lun* lun_;
  std::shared_ptr<State> state_;
  std::uint64_t read_bytes_ = 0, write_bytes_ = 0;
};

}  // namespace csv::service
