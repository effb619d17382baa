#include "coordinator/service/suspended.h"

#include <utility>

namespace csv::service {

void Suspended::add(volume::SuspendedRow row) {
  auto node = row.node;
  rows_.insert_or_assign(node, std::move(row));
}

void Suspended::knows_no_inode_from(NodeId node, InodeId next) {
  if (auto found = rows_.find(node); found != rows_.end()) found->second.next_inode = next;
}

const volume::SuspendedRow* Suspended::find(NodeId node) const {
  auto found = rows_.find(node);
  return found == rows_.end() ? nullptr : &found->second;
}

std::vector<NodeId> Suspended::nodes() const {
  std::vector<NodeId> all;
  for (const auto& [node, row] : rows_) all.push_back(node);
  return all;
}

std::vector<Suspended::Mark> Suspended::unmarked(InodeId inode, Touch how, NodeId by,
                                                 std::uint64_t incarnation) const {
  std::vector<Mark> marks;
  for (const auto& [node, row] : rows_) {
    if (node == by && row.incarnation == incarnation) continue;
    auto found = row.files.find(inode);
    if (found == row.files.end() ? row.listed || inode >= row.next_inode
                                 : (found->second & how) == how)
      continue;
    marks.push_back({node, inode, how});
  }
  return marks;
}

bool Suspended::note(const Mark& mark) {
  auto found = rows_.find(mark.node);
  if (found == rows_.end()) return true;  // forgotten meanwhile
  auto& touched = found->second.files[mark.inode];
  touched = touched | mark.touched;
  return found->second.files.size() <= kMostTouched;
}

bool Suspended::untouched(const volume::SuspendedRow& row, InodeId inode, Touch ways) const {
  auto found = row.files.find(inode);
  if (found == row.files.end()) return !row.listed && inode < row.next_inode;
  return (found->second & ways) == Touch::none;
}

}  // namespace csv::service
