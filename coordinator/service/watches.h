#pragma once
#include <deque>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "csvfs/base/ids.h"
#include "csvfs/base/loop.h"

namespace csv::service {

/// Which sessions watch which inodes: they may answer programs from what they were told of them,
/// and are told before anybody can see a change. Always at least what the mounts believe. In memory
/// only; what a former coordinator's sessions watched has lapsed, or is waited for (watching.cc).
///
/// And who has been told of a change and may not have heard yet. Loop's thread.
class Watches {
 public:
  explicit Watches(Clock& clock) : clock_{&clock} {}

  void add(InodeId inode, SessionId session);
  void drop(InodeId inode, SessionId session);
  void drop(SessionId session);
  [[nodiscard]] std::size_t count(SessionId session) const;
  [[nodiscard]] std::vector<SessionId> watchers(InodeId inode) const;
  /// Up to `most` of what the session watches, and now no more.
  std::vector<InodeId> take_some(SessionId session, std::size_t most);
  /// All watchers but `except`, who watch it no more.
  std::vector<SessionId> take(InodeId inode, SessionId except);
  /// Taken from somebody a moment ago: whoever watches it again soon loses it again soon.
  [[nodiscard]] bool taken_lately(InodeId inode);

  [[nodiscard]] std::size_t total() const { return total_; }
  /// Who watches most; SessionId{}: nobody does.
  [[nodiscard]] SessionId largest() const;

  enum class Ticket : std::uint64_t {};
  /// `session` may still show the former state of these, until the ticket is settled.
  Ticket unsettle(std::span<const InodeId> inodes, SessionId session);
  void settled(Ticket ticket);
  [[nodiscard]] bool outstanding(Ticket ticket) const { return tickets_.contains(ticket); }
  [[nodiscard]] bool all_settled() const { return tickets_.empty(); }
  [[nodiscard]] bool unsettled(InodeId inode) const { return unsettled_.contains(inode); }
  /// Those by which somebody but `asker` may still show its former state; or of any inode.
  void outstanding(InodeId inode, SessionId asker, std::set<Ticket>& into) const;
  void outstanding(SessionId asker, std::set<Ticket>& into) const;

 private:
  void expire();

  Clock* clock_;
  std::map<InodeId, std::set<SessionId>> watchers_;
  std::map<SessionId, std::set<InodeId>> by_session_;
  std::map<InodeId, TimePoint> taken_;
  std::deque<std::pair<TimePoint, InodeId>> takings_;  // in order of time
  std::map<SessionId, InodeId> shed_;                  // where take_some() goes on
  std::size_t total_ = 0;
  struct Telling {
    SessionId session{};
    std::vector<InodeId> inodes;
  };
  std::map<Ticket, Telling> tickets_;
  std::map<InodeId, std::set<Ticket>> unsettled_;
  std::uint64_t next_ticket_ = 1;
};

}  // namespace csv::service
