#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/admin/embedded.h"

namespace csv::admin {

/// The files of an embedded volume as plain synchronous calls, by path or inode. Any thread.
class RemoteFiles {
 public:
  explicit RemoteFiles(EmbeddedVolume& volume) : volume_{&volume} {}

  /// The inode at `path`; an empty path or "/" is the root. Errors name the part that is missing.
  Expected<wire::Attr> find(const std::string& path);
  /// The directory that holds `path`, and its last name. EINVAL for the root.
  Expected<std::pair<wire::Attr, std::string>> parent_of(const std::string& path);
  Expected<wire::Attr> lookup(InodeId parent, const std::string& name);
  struct Entry {
    std::string name;
    wire::Attr attr;
  };
  Expected<std::vector<Entry>> list(InodeId directory);
  Expected<wire::Attr> make(Caller owner, wire::Make what);
  Expected<wire::Attr> link(InodeId inode, InodeId parent, const std::string& name);
  Expected<void> unlink(InodeId parent, const std::string& name, bool directory);
  Expected<std::string> read_link(InodeId inode);
  Expected<void> change(wire::SetAttr to);
  Expected<std::vector<std::string>> list_xattrs(InodeId inode);
  Expected<std::string> xattr(InodeId inode, const std::string& name);
  Expected<void> set_xattr(InodeId inode, const std::string& name, const std::string& value);

  /// A new file of `size` bytes whose content `read` gives in pieces: for each call the next run of
  /// data, its offset and bytes, ascending; nothing at the end. What is between the runs is a hole.
  struct Piece {
    std::uint64_t offset = 0;
    std::span<const std::byte> data;
  };
  Expected<wire::Attr> write_file(Caller owner, wire::Make what, std::uint64_t size,
                                  const std::function<Expected<Piece>()>& read);
  /// The content of a file in runs of data, ascending; what is between them is a hole.
  Expected<void> read_file(InodeId inode, std::uint64_t size,
                           const std::function<Expected<void>(Piece)>& take);

 private:
  EmbeddedVolume* volume_;
};

/// "a/b/c" in its parts, without empty ones and ".". EINVAL for "..".
Expected<std::vector<std::string>> split_path(const std::string& path);

}  // namespace csv::admin
