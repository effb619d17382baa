#pragma once
#include <list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "csvfs/base/ids.h"

namespace csv {

/// What was last heard of names, attributes and extended attributes, so that most looks need not
/// ask for them again. It is as true as its owner keeps it: see coordinator/service/service.h (the
/// coordinator, about its catalog) and csvfs/watched.h (a mount, about what it watches).
///
/// Bounded; the least recently used inode goes first, with all that is known of it. One thread.
template <typename Attr>
class NameCache {
 public:
  /// `bound`: of inodes, names and extended attributes together; one takes about 200 bytes.
  explicit NameCache(std::size_t bound) : bound_{bound} {}
  NameCache(const NameCache&) = delete;
  NameCache& operator=(const NameCache&) = delete;

  /// Null: not known. Valid until the next call.
  [[nodiscard]] const Attr* attr(InodeId inode) {
    auto* known = touched(inode);
    return known != nullptr && known->attr ? &*known->attr : nullptr;
  }
  struct Found {
    bool known = false;
    const Attr* attr = nullptr;  ///< Null though known: there is no such name.
    InodeId inode{};             ///< InodeId{}: there is none.
  };
  [[nodiscard]] Found find(InodeId parent, std::string_view name) {
    auto* directory = touched(parent);
    if (directory == nullptr) return {};
    auto entry = directory->names.find(name);
    if (entry == directory->names.end()) return {};
    auto inode = entry->second;
    if (inode == InodeId{}) return {true, nullptr, {}};
    const auto* found = attr(inode);
    return {found != nullptr, found, inode};
  }
  /// Null: not known. Known, and without a value: it is not set. Valid until the next call.
  [[nodiscard]] const std::optional<std::string>* xattr(InodeId inode, std::string_view name) {
    auto* known = touched(inode);
    if (known == nullptr) return nullptr;
    auto found = known->xattrs.find(name);
    return found == known->xattrs.end() ? nullptr : &found->second;
  }

  void learn(InodeId inode, const Attr& attr) {
    record(inode).attr = attr;
    keep_bounded();
  }
  void learn(InodeId parent, std::string_view name, InodeId inode) {
    this->name(parent, name, inode);
    keep_bounded();
  }
  void learn(InodeId parent, std::string_view name, InodeId inode, const Attr& attr) {
    this->name(parent, name, inode);
    learn(inode, attr);
  }
  void learn_absent(InodeId parent, std::string_view name) {
    this->name(parent, name, InodeId{});
    keep_bounded();
  }
  void learn_xattr(InodeId inode, std::string_view name, std::optional<std::string> value) {
    auto& xattrs = record(inode).xattrs;
    if (auto found = xattrs.find(name); found != xattrs.end()) {
      found->second = std::move(value);
      return;
    }
    xattrs.emplace(std::string{name}, std::move(value));
    ++size_;
    keep_bounded();
  }

  /// All that is known of these: of directories the names in them, too.
  void forget(std::span<const InodeId> inodes) {
    for (auto inode : inodes) {
      auto found = known_.find(inode);
      if (found == known_.end()) continue;
      size_ -= 1 + found->second.names.size() + found->second.xattrs.size();
      by_use_.erase(found->second.used);
      known_.erase(found);
    }
  }
  void forget_attributes(std::span<const InodeId> inodes) {
    for (auto inode : inodes)
      if (auto found = known_.find(inode); found != known_.end()) found->second.attr.reset();
  }
  void clear() {
    known_.clear();
    by_use_.clear();
    size_ = 0;
  }

  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  struct Known {
    std::optional<Attr> attr;
    std::map<std::string, InodeId, std::less<>> names;  // InodeId{}: there is none
    std::map<std::string, std::optional<std::string>, std::less<>> xattrs;
    std::list<InodeId>::iterator used;
  };

  Known* touched(InodeId inode) {
    auto found = known_.find(inode);
    if (found == known_.end()) return nullptr;
    by_use_.splice(by_use_.begin(), by_use_, found->second.used);
    return &found->second;
  }
  Known& record(InodeId inode) {
    if (auto* known = touched(inode)) return *known;
    auto& known = known_[inode];
    known.used = by_use_.insert(by_use_.begin(), inode);
    ++size_;
    return known;
  }
  void name(InodeId parent, std::string_view name, InodeId inode) {
    auto& names = record(parent).names;
    if (auto entry = names.find(name); entry != names.end()) {
      entry->second = inode;
      return;
    }
    names.emplace(std::string{name}, inode);
    ++size_;
  }
  void keep_bounded() {
    while (size_ > bound_ && !by_use_.empty()) {
      auto last = by_use_.back();
      forget({&last, 1});
    }
  }

  std::size_t bound_, size_ = 0;
  std::unordered_map<InodeId, Known> known_;
  std::list<InodeId> by_use_;  // the most recent first
};

}  // namespace csv
