#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "csvfs/base/buffer.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/task.h"
#include "iscsi/lun.h"

namespace csv {

/// One admission's way to the LUN: the Lun that was registered under the admission's key, and the
/// commands in flight on it. Shared by those who use it; the Lun goes once the path was closed and
/// everything is answered. One loop.
class LunPath : public std::enable_shared_from_this<LunPath> {
 public:
  LunPath(Loop& loop, std::unique_ptr<iscsi::Lun> lun, Key key)
      : loop_{&loop}, lun_{std::move(lun)}, key_{key}, idle_{loop} {}
  LunPath(const LunPath&) = delete;
  LunPath& operator=(const LunPath&) = delete;

  [[nodiscard]] iscsi::Lun& lun() { return *lun_; }
  [[nodiscard]] Key key() const { return key_; }
  [[nodiscard]] bool closed() const { return closed_; }

  struct Read {
    std::uint64_t lun_offset = 0;
    std::span<std::byte> out;
  };
  struct Write {
    std::uint64_t lun_offset = 0;
    std::span<const std::byte> data;
  };
  /// All at once; answered when all are. One that lost the path outweighs other errors, and then
  /// one that says that earlier answers are void. `keep` owns the memory until then, whatever
  /// becomes of the caller.
  Task<Expected<void>> read(std::vector<Read> pieces, std::shared_ptr<Buffer> keep);
  /// By piece, whether it was written, whatever became of the others.
  using Landed = std::shared_ptr<std::vector<bool>>;
  /// The data must outlive the path's commands, or be owned by `keep`.
  Task<Expected<void>> write(std::vector<Write> pieces, iscsi::Lun::WriteOptions options,
                             std::shared_ptr<Buffer> keep, Landed landed = nullptr);
  Task<Expected<void>> flush();
  Task<Expected<void>> register_key(Key key);
  /// Nothing is in flight.
  Task<void> drained();
  /// Called whenever the target says that it has lost what it had answered (Errc::not_durable),
  /// with any command, before who asked for that hears of it.
  void on_forgot(Function<void(const Error&)> handler) { forgot_ = std::move(handler); }

  /// Drops the sessions; what is in flight fails with lun_lost.
  void close();
  /// The same, and nothing touches anybody's memory any more when it returns. Not from a command's
  /// answer.
  void destroy();

 private:
  class Together;
  iscsi::Done one_of(const std::shared_ptr<Together>& together, std::shared_ptr<Buffer> keep,
                     Landed landed = nullptr, std::size_t index = 0);
  void answered();

  Loop* loop_;
  std::unique_ptr<iscsi::Lun> lun_;
  Key key_;
  std::uint64_t in_flight_ = 0;
  Signal idle_;
  bool closed_ = false;
  Function<void(const Error&)> forgot_;
};

/// Whether the error says that the path (and with it the outcome of the command) is lost, so that
/// the command is repeated after the next admission.
bool is_path_loss(const Error& error);

}  // namespace csv
