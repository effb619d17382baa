#include "coordinator/admin/remote_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

constexpr std::uint32_t kPiece = 1u << 20;

InodeId id_of(const wire::Attr& attr) { return InodeId{attr.inode()}; }

Task<bool> closed(Mount& mount, Mount::Handle handle) {
  co_await mount.close(handle);
  co_return true;
}

}  // namespace

Expected<std::vector<std::string>> split_path(const std::string& path) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < path.size();) {
    auto end = std::min(path.find('/', at), path.size());
    auto part = path.substr(at, end - at);
    if (part == "..") return errno_error(EINVAL, "the path " + path + " (with '..')");
    if (!part.empty() && part != ".") out.push_back(std::move(part));
    at = end + 1;
  }
  return out;
}

Expected<wire::Attr> RemoteFiles::lookup(InodeId parent, const std::string& name) {
  return volume_->call([&](Mount& mount) { return mount.lookup(parent, name); });
}

Expected<wire::Attr> RemoteFiles::find(const std::string& path) {
  auto parts = CSV_TRY(split_path(path));
  auto at = volume_->call([](Mount& mount) { return mount.attr(kRootInode); });
  std::string so_far;
  for (const auto& part : parts) {
    if (!at) break;
    so_far += "/" + part;
    at =
        S_ISDIR(at->mode()) ? lookup(id_of(*at), part) : Expected<wire::Attr>{errno_error(ENOTDIR)};
    if (!at) return at.error().within(so_far + " on the volume");
  }
  return at;
}

Expected<std::pair<wire::Attr, std::string>> RemoteFiles::parent_of(const std::string& path) {
  auto parts = CSV_TRY(split_path(path));
  if (parts.empty()) return errno_error(EINVAL, "the root of the volume");
  auto name = parts.back();
  std::string above;
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) above += "/" + parts[i];
  auto parent = CSV_TRY(find(above));
  if (!S_ISDIR(parent.mode())) return errno_error(ENOTDIR, above + " on the volume");
  return std::pair{std::move(parent), std::move(name)};
}

Expected<std::vector<RemoteFiles::Entry>> RemoteFiles::list(InodeId directory) {
  std::vector<Entry> out;
  std::uint64_t cookie = 0;
  for (;;) {
    auto some =
        CSV_TRY(volume_->call([&](Mount& mount) { return mount.list(directory, cookie, {}); }));
    for (const auto& entry : some.entries()) {
      cookie = entry.cookie();
      if (entry.name() != "." && entry.name() != "..") out.push_back({entry.name(), entry.attr()});
    }
    if (some.end() || some.entries().empty()) return out;
  }
}

Expected<wire::Attr> RemoteFiles::make(Caller owner, wire::Make what) {
  return volume_->call([&](Mount& mount) { return mount.make(owner, what); });
}

Expected<wire::Attr> RemoteFiles::link(InodeId inode, InodeId parent, const std::string& name) {
  return volume_->call([&](Mount& mount) { return mount.link(inode, parent, name); });
}

Expected<void> RemoteFiles::unlink(InodeId parent, const std::string& name, bool directory) {
  CSV_TRY(volume_->call([&](Mount& mount) { return mount.unlink(parent, name, directory); }));
  return {};
}

Expected<std::string> RemoteFiles::read_link(InodeId inode) {
  return volume_->call([&](Mount& mount) { return mount.read_link(inode); });
}

Expected<void> RemoteFiles::change(wire::SetAttr to) {
  auto changed = volume_->call([&](Mount& mount) { return mount.change(to); });
  if (!changed) return changed.error();
  return {};
}

Expected<std::vector<std::string>> RemoteFiles::list_xattrs(InodeId inode) {
  auto names = CSV_TRY(volume_->call([&](Mount& mount) { return mount.list_xattrs(inode); }));
  std::vector<std::string> out;
  for (std::size_t at = 0; at < names.size();) {
    auto end = std::min(names.find('\0', at), names.size());
    if (end > at) out.push_back(names.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

Expected<std::string> RemoteFiles::xattr(InodeId inode, const std::string& name) {
  return volume_->call([&](Mount& mount) { return mount.xattr(inode, name); });
}

Expected<void> RemoteFiles::set_xattr(InodeId inode, const std::string& name,
                                      const std::string& value) {
  wire::SetXattr what;
  what.set_inode(raw(inode));
  what.set_name(name);
  what.set_value(value);
  return volume_->call([&](Mount& mount) { return mount.set_xattr(what); });
}

Expected<wire::Attr> RemoteFiles::write_file(Caller owner, wire::Make what, std::uint64_t size,
                                             const std::function<Expected<Piece>()>& read) {
  auto opened = CSV_TRY(volume_->call([&](Mount& mount) { return mount.create(owner, what, {}); }));
  auto write = [&]() -> Expected<void> {
    std::uint64_t end = 0;
    for (;;) {
      auto piece = CSV_TRY(read());
      if (piece.data.empty()) break;
      CSV_TRY(volume_->call(
          [&](Mount& mount) { return mount.write(opened.handle, piece.offset, piece.data, {}); }));
      end = piece.offset + piece.data.size();
    }
    if (end >= size) return {};
    wire::SetAttr grow;  // a hole at the end
    grow.set_inode(opened.attr.inode());
    grow.set_size(size);
    return change(grow);
  };
  auto written = write();
  volume_->call([&](Mount& mount) { return closed(mount, opened.handle); });
  if (!written) return written.error();
  return opened.attr;
}

Expected<void> RemoteFiles::read_file(InodeId inode, std::uint64_t size,
                                      const std::function<Expected<void>(Piece)>& take) {
  auto opened = CSV_TRY(volume_->call([&](Mount& mount) { return mount.open(inode, {}); }));
  auto seek = [&](std::uint64_t from, int whence) {
    return volume_->call([&](Mount& mount) {
      return mount.seek(opened.handle, from, static_cast<std::uint32_t>(whence));
    });
  };
  auto read = [&]() -> Expected<void> {
    for (std::uint64_t at = 0; at < size;) {
      auto data = seek(at, SEEK_DATA);
      if (!data && data.error().to_errno() == ENXIO) return {};  // a hole to the end
      if (!data) return data.error();
      auto end = CSV_TRY(seek(*data, SEEK_HOLE));
      for (at = *data; at < end;) {
        auto length = static_cast<std::uint32_t>(std::min<std::uint64_t>(kPiece, end - at));
        auto content = CSV_TRY(
            volume_->call([&](Mount& mount) { return mount.read(opened.handle, at, length); }));
        if (content.length == 0) return {};  // it became shorter
        CSV_TRY(take({at, content.buffer.span().subspan(content.skip, content.length)}));
        at += content.length;
      }
    }
    return {};
  };
  auto result = read();
  volume_->call([&](Mount& mount) { return closed(mount, opened.handle); });
  return result;
}

}  // namespace csv::admin
