#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "coordinator/service/inode_locks.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/range_set.h"
#include "csvfs/base/task.h"

namespace csv::service {

/// A set of blocks of a file, as disjoint ranges.
class BlockSet {
 public:
  void add(Blocks range) { ranges_.add({range.first, range.end}); }
  void remove(Blocks range) { ranges_.remove({range.first, range.end}); }
  [[nodiscard]] bool overlaps(Blocks range) const {
    return ranges_.overlaps({range.first, range.end});
  }
  [[nodiscard]] bool empty() const { return ranges_.empty(); }
  [[nodiscard]] std::vector<Range> within(Blocks range) const {
    return ranges_.within({range.first, range.end});
  }

 private:
  RangeSet ranges_;
};

/// Who may do I/O on what by itself, as far as the coordinator knows: always at least what the
/// mounts hold, sometimes more. In memory only; after a takeover the sessions say it anew.
///
/// A hold keeps new layouts of a range back while the ones that exist are recalled and until the
/// change they were recalled for is done.
///
/// *Pages* are what a node's kernel may keep of a file for mappings. As long as they are there, the
/// session has a claim: nobody else changes what it covers. Where programs may store into them
/// (`dirty`), nobody else reads it either, by layout or through us.
///
/// A recall means what was recorded before it was sent, and so does its answer: what the session is
/// given in between stays recorded. There is such: whoever takes a claim goes past the holds of
/// others while it recalls something itself. Loop's thread.
class Layouts {
 public:
  /// A write layout may be read under, too.
  enum class Kind { read, write, pages };

  explicit Layouts(Loop& loop) : loop_{&loop} {}

  /// `session` is about to be told this range. Recorded before the mapping is even looked up, so
  /// that a recall that starts meanwhile asks it.
  void add(InodeId inode, SessionId session, Blocks range, Kind kind);
  /// The number of this claim.
  std::uint64_t add_pages(InodeId inode, SessionId session, Blocks range, bool dirty);
  /// The claim turned out not to reach `beyond`. No effect if the session has asked for another one
  /// on the file meanwhile, which may know of a later end.
  void trim_pages(InodeId inode, SessionId session, Blocks beyond, std::uint64_t claim);
  /// Said by the session itself, to a coordinator that knew nothing of it: all kinds, and there may
  /// be a grant. `only_reads`: it says that it cannot write under any of it.
  void declare(InodeId inode, SessionId session, bool only_reads = false);
  void set_grant(InodeId inode, SessionId session, GrantId grant, Blocks range);
  /// The session's current grant on the inode; GrantId{}: none we know of.
  [[nodiscard]] GrantId grant(InodeId inode, SessionId session) const;
  [[nodiscard]] bool may_have_grant(InodeId inode, SessionId session) const;
  void grant_dropped(InodeId inode, SessionId session);
  /// Another session than `except` may write it by itself, or keep stores into pages of it.
  [[nodiscard]] bool may_write(InodeId inode, SessionId except) const;
  /// All files of which that is so.
  [[nodiscard]] std::vector<InodeId> written_by_others(SessionId except) const;

  /// Sessions that hold something in `range`: write layouts only, or all.
  [[nodiscard]] std::vector<SessionId> holders(InodeId inode, Blocks range, bool reads_too) const;
  struct Recall {
    Blocks range;
    bool pages = false;        ///< Of pages alone; else of layouts alone.
    bool reads_too = false;    ///< Else write layouts may still be read under.
    std::uint64_t number = 0;  ///< Later ones have higher numbers.
  };
  /// It is being sent to the session, which stays a holder until it has answered.
  void recalled(InodeId inode, SessionId session, const Recall& recall);
  /// It is answered: nothing is left of what had been recorded before it was sent.
  void came_back(InodeId inode, SessionId session, const Recall& recall);
  /// The session said of itself that nothing of it is left, and has asked for nothing since.
  void dropped(InodeId inode, SessionId session, const Recall& what);
  /// Sessions but `except` whose kernels may hold pages there: clean ones, or only dirty ones.
  [[nodiscard]] std::vector<SessionId> page_holders(InodeId inode, Blocks range, bool clean_too,
                                                    SessionId except) const;
  [[nodiscard]] bool pages_in_the_way(InodeId inode, Blocks range, bool clean_too,
                                      SessionId except) const {
    return !page_holders(inode, range, clean_too, except).empty();
  }
  void drop(InodeId inode, SessionId session);
  /// All of a session that ended.
  void drop(SessionId session);

  [[nodiscard]] std::size_t count(SessionId session) const;
  [[nodiscard]] std::size_t total() const { return total_; }  ///< The same of all sessions.
  /// Who holds something of the most files; SessionId{}: nobody does.
  [[nodiscard]] SessionId largest() const;
  /// The session's inode with the lowest number above `after`; InodeId{}: none.
  [[nodiscard]] InodeId next_of(SessionId session, InodeId after) const;

  class Hold {
   public:
    Hold() = default;
    Hold(Hold&& other) noexcept;
    Hold& operator=(Hold&& other) noexcept;
    ~Hold() { release(); }
    void release();

   private:
    friend class Layouts;
    Layouts* layouts_ = nullptr;
    InodeId inode_{};
    std::uint64_t id_ = 0;
  };
  /// Keeps new pages and write layouts of `range` back, and read layouts if reads_too.
  [[nodiscard]] Hold hold(InodeId inode, Blocks range, bool reads_too);
  /// Keeps new pages back, and nothing else.
  [[nodiscard]] Hold hold_pages(InodeId inode, Blocks range);
  [[nodiscard]] bool held_back(InodeId inode, Blocks range, Kind kind) const;
  /// Until it is not held back any more. False if that takes longer than `patience`.
  Task<bool> wait_while_held(InodeId inode, Blocks range, Kind kind, Duration patience);

  // Files that several sessions write in ways no layout can serve (A9).
  /// A redirected write, or a fight over grants. Decides whether the file becomes, or stays,
  /// shipped.
  void note_contended_write(InodeId inode, SessionId by, Duration shipped_for);
  [[nodiscard]] bool shipped(InodeId inode) const;

  /// Forgets what does not matter any more.
  void prune();

 private:
  struct Held {
    BlockSet reads, writes, clean, dirty;
    [[nodiscard]] bool nothing() const {
      return reads.empty() && writes.empty() && clean.empty() && dirty.empty();
    }
    [[nodiscard]] bool layouts_in(Blocks range, bool reads_too) const {
      return writes.overlaps(range) || (reads_too && reads.overlaps(range));
    }
    [[nodiscard]] bool pages_in(Blocks range, bool clean_too) const {
      return dirty.overlaps(range) || (clean_too && clean.overlaps(range));
    }
  };
  struct Holder : Held {
    std::map<std::uint64_t, Held> recalled;  ///< By number, and not answered.
    std::uint64_t last_claim = 0;
    GrantId grant{};
    bool may_have_grant = false;
    bool only_reads = false;  ///< Whatever is noted here was declared as nothing else.
    [[nodiscard]] bool may_write() const {
      auto stores = [](const Held& held) { return !held.writes.empty() || !held.dirty.empty(); };
      return stores(*this) || may_have_grant ||
             std::any_of(recalled.begin(), recalled.end(),
                         [&](const auto& each) { return stores(each.second); });
    }
    [[nodiscard]] bool nothing() const {
      return Held::nothing() && recalled.empty() && !may_have_grant;
    }
  };
  struct Holding {
    Blocks range;
    bool writes = false, reads = false;  // beside pages
  };
  Hold hold(InodeId inode, Holding what);
  struct File {
    explicit File(Loop& loop) : changed{loop} {}
    std::map<SessionId, Holder> holders;
    std::map<std::uint64_t, Holding> holds;
    Signal changed;
    TimePoint last_contended{}, shipped_until{};
    SessionId last_writer{};
  };
  using FileRef = std::shared_ptr<File>;

  File& file(InodeId inode);
  [[nodiscard]] const File* find(InodeId inode) const;
  Holder& holder(InodeId inode, SessionId session);
  [[nodiscard]] Holder* find_holder(InodeId inode, SessionId session);
  void tidy(InodeId inode, SessionId session);
  [[nodiscard]] bool idle(const File& file) const;

  Loop* loop_;
  std::map<InodeId, FileRef> files_;
  std::map<SessionId, std::set<InodeId>> by_session_;
  std::uint64_t next_hold_ = 1, claims_ = 0;
  std::size_t total_ = 0;  // of all in by_session_
};

}  // namespace csv::service
