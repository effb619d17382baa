#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"
#include "csvfs/base/name_cache.h"

namespace csv {

/// What this mount may answer of names and attributes without asking: what the coordinator said it
/// watches. The coordinator tells it of a change before anybody can see that change, and vouches
/// for all of it from answer to answer (docs/coordinator.md, "Watches"). So it is good
///
///  - until a notice says otherwise,
///  - until the connection over which it was heard is lost, and
///  - until `vouched` runs out, should the coordinator have fallen silent.
///
/// What this mount itself is changing, or has to tell of (times of a file written directly), it
/// doubts by itself: answers to what it asked before it sent that do not count any more. One loop.
class Watched {
 public:
  /// `bound`: of inodes, names and extended attributes together; one takes about kKnownBytes.
  Watched(const Clock& clock, std::size_t bound) : clock_{&clock}, known_{bound} {}
  static constexpr std::size_t kKnownBytes = 200;

  /// Before a request is sent: what it changes is given up, in its name.
  void sending(wire::Request& request, std::uint64_t id);
  void replied(const wire::Request& request, std::uint64_t id, TimePoint sent_at,
               const wire::Reply& reply);
  void noticed(const wire::Unwatch& notice);
  /// What answers to requests before `id` say of it does not count any more.
  void doubt(InodeId inode, std::uint64_t id);
  void forget_all();  ///< The connection is lost.
  void stop();        ///< Nothing is known from here on.

  // Valid until the next call; nothing is known past what is vouched for.
  [[nodiscard]] const wire::Attr* attr(InodeId inode);
  using Found = NameCache<wire::Attr>::Found;
  [[nodiscard]] Found find(InodeId parent, const std::string& name);
  [[nodiscard]] const std::optional<std::string>* xattr(InodeId inode, const std::string& name);

 private:
  [[nodiscard]] bool good() const { return clock_->now() < vouched_until_; }
  [[nodiscard]] bool doubted(InodeId inode, std::uint64_t id) const;

  const Clock* clock_;
  NameCache<wire::Attr> known_;
  TimePoint vouched_until_{};
  bool stopped_ = false;
  std::map<InodeId, std::uint64_t> doubts_;
  std::uint64_t doubts_from_ = 0;  // all that was asked before this
};

}  // namespace csv
