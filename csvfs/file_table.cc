#include "csvfs/file_table.h"

#include <algorithm>

namespace csv {

bool File::busy(std::uint64_t begin, std::uint64_t end, bool writes_only) const {
  return std::any_of(in_flight.begin(), in_flight.end(), [&](const Range& each) {
    return !each.landed && each.begin < end && begin < each.end && (each.write || !writes_only);
  });
}

bool File::only_reads() const {
  bool writing =
      std::any_of(in_flight.begin(), in_flight.end(), [](const Range& each) { return each.write; });
  return !writing && asking == 0 && !extents.any_but_reads();
}

bool File::collides(const Range& write) const {
  return std::any_of(in_flight.begin(), in_flight.end(), [&](const Range& each) {
    return each.write && each.begin < write.end && write.begin < each.end &&
           (each.alone || write.alone);
  });
}

FilePtr FileTable::find(InodeId inode) const {
  auto found = files_.find(inode);
  return found == files_.end() ? nullptr : found->second;
}

FilePtr FileTable::get(InodeId inode, SessionId session) {
  auto& file = files_[inode];
  if (!file) file = std::make_shared<File>(*loop_, inode, session);
  return file;
}

void FileTable::forget_unused(const FilePtr& file) {
  bool used = file->handles > 0 || file->asking > 0 || file->returning || file->releasing > 0 ||
              !file->in_flight.empty() || !file->extents.empty();
  if (used || find(file->inode) != file) return;
  files_.erase(file->inode);
}

void FileTable::end_session() {
  for (auto& [inode, file] : files_) {
    file->ended = true;
    file->doubtful = file->doubtful || std::any_of(file->unanswered.begin(), file->unanswered.end(),
                                                   [](const bool* shows) { return *shows; });
    file->extents.clear();
    file->changed.notify();
  }
  files_.clear();
}

void FileTable::begin_epoch() {
  for (auto& [inode, file] : files_) file->recalled = file->pages.recalled = 0;
}

std::vector<FilePtr> FileTable::unused_first() const {
  std::vector<FilePtr> all;
  for (const auto& [inode, file] : files_) {
    bool idle =
        file->asking == 0 && !file->returning && file->in_flight.empty() && !file->pages.any();
    if (idle && !file->extents.empty()) all.push_back(file);
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a->used < b->used; });
  return all;
}

std::size_t FileTable::bytes(const File& file) {
  return (file.handles > 0 ? 0 : kFileBytes) + file.extents.size() * kExtentBytes;
}

std::size_t FileTable::bytes() const {
  std::size_t sum = 0;
  for (const auto& [inode, file] : files_) sum += bytes(*file);
  return sum;
}

}  // namespace csv
