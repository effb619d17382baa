#include "coordinator/service/name_cache.h"

namespace csv::service {

NameCache::Known* NameCache::touched(InodeId inode) {
  auto found = known_.find(inode);
  if (found == known_.end()) return nullptr;
  by_use_.splice(by_use_.begin(), by_use_, found->second.used);
  return &found->second;
}

NameCache::Known& NameCache::record(InodeId inode) {
  if (auto* known = touched(inode)) return *known;
  auto& known = known_[inode];
  known.used = by_use_.insert(by_use_.begin(), inode);
  ++size_;
  return known;
}

const volume::Attr* NameCache::attr(InodeId inode) {
  auto* known = touched(inode);
  return known != nullptr && known->has_attr ? &known->attr : nullptr;
}

NameCache::Found NameCache::find(InodeId parent, std::string_view name) {
  auto* directory = touched(parent);
  if (directory == nullptr) return {};
  auto entry = directory->names.find(name);
  if (entry == directory->names.end()) return {};
  if (entry->second == InodeId{}) return {true, nullptr};
  const auto* found = attr(entry->second);
  return {found != nullptr, found};
}

void NameCache::learn(const volume::Attr& attr) {
  auto& known = record(attr.inode);
  known.attr = attr;
  known.has_attr = true;
  keep_bounded();
}

void NameCache::name(InodeId parent, std::string_view name, InodeId inode) {
  auto& names = record(parent).names;
  if (auto entry = names.find(name); entry != names.end()) {
    entry->second = inode;
    return;
  }
  names.emplace(std::string{name}, inode);
  ++size_;
}

void NameCache::learn(InodeId parent, std::string_view name, const volume::Attr& attr) {
  this->name(parent, name, attr.inode);
  learn(attr);
}

void NameCache::learn_absent(InodeId parent, std::string_view name) {
  this->name(parent, name, InodeId{});
  keep_bounded();
}

void NameCache::forget(std::span<const InodeId> inodes) {
  for (auto inode : inodes) {
    auto found = known_.find(inode);
    if (found == known_.end()) continue;
    size_ -= 1 + found->second.names.size();
    by_use_.erase(found->second.used);
    known_.erase(found);
  }
}

void NameCache::keep_bounded() {
  while (size_ > bound_ && !by_use_.empty()) {
    auto last = by_use_.back();
    forget({&last, 1});
  }
}

}  // namespace csv::service
