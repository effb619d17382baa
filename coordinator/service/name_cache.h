#pragma once
#include <list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "coordinator/volume/catalog.h"

namespace csv::service {

/// What the catalog last said of names and attributes, so that most looks need no turn of the
/// writer thread. Only the coordinator changes a catalog, so it stays true without anybody's help
/// if two things are kept up:
///
///  - what a look-up brought is learned in the very turn of the loop in which its group is told to
///    be finished (right behind the co_await of Writer::read), and
///  - what a group changed is forgotten when the group is told to be finished, before anybody who
///    waited for it goes on (Writer's `changed`).
///
/// Groups finish in the order they ran. So what is known is the state after the last group that
/// was told of, which is durable; a change that is still running has been answered to nobody.
///
/// Bounded; the least recently used goes first. Loop's thread.
class NameCache {
 public:
  /// `bound`: of inodes and names together; one takes about 200 bytes.
  explicit NameCache(std::size_t bound) : bound_{bound} {}
  NameCache(const NameCache&) = delete;
  NameCache& operator=(const NameCache&) = delete;

  /// Null: not known. Valid until the next call.
  [[nodiscard]] const volume::Attr* attr(InodeId inode);
  struct Found {
    bool known = false;
    const volume::Attr* attr = nullptr;  ///< Null though known: there is no such name.
  };
  [[nodiscard]] Found find(InodeId parent, std::string_view name);

  void learn(const volume::Attr& attr);
  void learn(InodeId parent, std::string_view name, const volume::Attr& attr);
  void learn_absent(InodeId parent, std::string_view name);
  /// Attributes of these, and of those that are directories all names.
  void forget(std::span<const InodeId> inodes);

  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  struct Known {
    bool has_attr = false;
    volume::Attr attr;
    std::map<std::string, InodeId, std::less<>> names;  ///< InodeId{}: there is none.
    std::list<InodeId>::iterator used;
  };
  Known& record(InodeId inode);
  Known* touched(InodeId inode);
  void name(InodeId parent, std::string_view name, InodeId inode);
  void keep_bounded();

  std::size_t bound_, size_ = 0;
  std::unordered_map<InodeId, Known> known_;
  std::list<InodeId> by_use_;  ///< The most recent first.
};

}  // namespace csv::service
