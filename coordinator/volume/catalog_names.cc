// Inodes and directories.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>

#include <algorithm>

#include "coordinator/volume/acl.h"
#include "coordinator/volume/catalog_sql.h"
#include "coordinator/volume/parent_chain.h"

namespace csv::volume {

namespace {

constexpr std::uint64_t kFirstCookie = 3;
constexpr std::uint32_t kMaxLinks = 65000;  ///< Of a file, as on ext4.
constexpr std::uint32_t kMaxDirectoryLinks = 1u << 30;

Expected<void> check_name(std::string_view name) {
  if (name.size() > 255) return Error{std::errc::filename_too_long, "a name of over 255 bytes"};
  if (name.empty() || name == "." || name == ".." || name.find('/') != name.npos ||
      name.find('\0') != name.npos)
    return Error{std::errc::invalid_argument, "not a name for an entry"};
  return {};
}

Error stale(InodeId inode) { return errno_error(ESTALE, "inode " + std::to_string(raw(inode))); }

/// `now`, unless the clock stepped back behind what the inode says.
std::int64_t later(const Inode& inode, std::int64_t now) { return std::max(now, inode.attr.ctime); }
void changed(Inode& inode, std::int64_t now) { inode.attr.ctime = later(inode, now); }
void modified(Inode& inode, std::int64_t now) {
  inode.attr.mtime = inode.attr.ctime = later(inode, now);
}
bool is_directory(const Inode& inode) { return S_ISDIR(inode.attr.mode); }

Inode read_inode(const Query& row) {
  Inode inode;
  auto& a = inode.attr;
  a.inode = InodeId{row.u64(0)};
  a.mode = row.u32(1);
  a.uid = row.u32(2);
  a.gid = row.u32(3);
  a.nlink = row.u32(4);
  a.rdev = row.u64(5);
  a.size = row.u64(6);
  a.blocks = row.u64(7);
  a.atime = row.i64(8);
  a.mtime = row.i64(9);
  a.ctime = row.i64(10);
  a.btime = row.i64(11);
  a.truncation = row.u64(12);
  a.parent = InodeId{row.u64(13)};
  inode.next_cookie = row.u64(14);
  inode.keep_beyond_end = row.i64(15) != 0;
  a.has_xattrs = row.i64(16) != 0;
  return inode;
}

/// Inodes that one operation reads and changes, each once, however many roles it plays in it.
class Working {
 public:
  void add(const Inode& inode) { inodes_.emplace(inode.attr.inode, inode); }
  Inode& operator[](InodeId id) { return inodes_.at(id); }
  auto begin() const { return inodes_.begin(); }
  auto end() const { return inodes_.end(); }

 private:
  std::map<InodeId, Inode> inodes_;
};

}  // namespace

// --- Rows ---------------------------------------------------------------------

Expected<Inode> SqlCatalog::load_inode(InodeId inode) {
  auto row = database_->use(sql_->get_inode, inode);
  if (!CSV_TRY(row.row())) return stale(inode);
  return read_inode(row);
}

Expected<Inode> SqlCatalog::load_directory(InodeId inode) {
  auto found = CSV_TRY(load_inode(inode));
  if (!is_directory(found)) return Error{std::errc::not_a_directory};
  return found;
}

Expected<Inode> SqlCatalog::load_file(InodeId inode) {
  auto found = CSV_TRY(load_inode(inode));
  if (is_directory(found)) return Error{std::errc::is_a_directory};
  if (!S_ISREG(found.attr.mode)) return Error{std::errc::invalid_argument, "not a regular file"};
  return found;
}

Expected<void> SqlCatalog::store_inode(const Inode& inode) {
  const auto& a = inode.attr;
  CSV_TRY(database_->run(sql_->update_inode, a.inode, a.mode, a.uid, a.gid, a.nlink, a.rdev, a.size,
                         a.blocks, a.atime, a.mtime, a.ctime, a.btime, a.truncation, a.parent,
                         inode.next_cookie, inode.keep_beyond_end));
  return {};
}

Expected<std::optional<SqlCatalog::EntryRow>> SqlCatalog::find_entry(InodeId parent,
                                                                     std::string_view name) {
  auto row = database_->use(sql_->get_entry, parent, name);
  if (!CSV_TRY(row.row())) return std::optional<EntryRow>{};
  return std::optional{EntryRow{InodeId{row.u64(0)}, row.u64(1)}};
}

Expected<bool> SqlCatalog::is_within(InodeId inode, InodeId ancestor) {
  ParentChain chain;
  for (auto at = inode;;) {
    if (at == ancestor) return true;
    if (at == kRootInode) return false;
    if (chain.circles(at))
      return Error{Errc::corrupt, "the directories above inode " + std::to_string(raw(inode)) +
                                      " go round in a circle"};
    at = CSV_TRY(load_inode(at)).attr.parent;
  }
}

// --- Links: a file's home is a directory that really holds a link of it (A17) -----

Expected<void> SqlCatalog::count_link(InodeId inode, InodeId parent, bool more) {
  std::uint64_t count = 0;
  {
    auto row = database_->use(sql_->get_link, inode, parent);
    if (CSV_TRY(row.row())) count = row.u64(0);
  }
  if (!more && count == 0)
    return Error{Errc::corrupt, "inode " + std::to_string(raw(inode)) + " has no link in " +
                                    std::to_string(raw(parent))};
  count = more ? count + 1 : count - 1;
  if (count == 0)
    CSV_TRY(database_->run(sql_->delete_link, inode, parent));
  else
    CSV_TRY(database_->run(sql_->put_link, inode, parent, count));
  return {};
}

Expected<void> SqlCatalog::add_link(Inode& inode, InodeId parent) {
  // A file with one link needs no rows: it is in its home.
  if (inode.attr.nlink == 1) CSV_TRY(count_link(inode.attr.inode, inode.attr.parent, true));
  CSV_TRY(count_link(inode.attr.inode, parent, true));
  ++inode.attr.nlink;
  return {};
}

Expected<void> SqlCatalog::drop_link(Inode& inode, InodeId parent) {
  auto& attr = inode.attr;
  if (attr.nlink == 0) return Error{Errc::corrupt, "a name of an inode without links"};
  if (--attr.nlink == 0) {
    CSV_TRY(database_->run(sql_->insert_orphan, attr.inode, false));
    return {};
  }
  CSV_TRY(count_link(attr.inode, parent, false));
  auto still_home = [&]() -> Expected<bool> {
    auto row = database_->use(sql_->get_link, attr.inode, attr.parent);
    return CSV_TRY(row.row());
  };
  if (!CSV_TRY(still_home())) {
    auto row = database_->use(sql_->first_link, attr.inode);
    if (!CSV_TRY(row.row())) return Error{Errc::corrupt, "links of an inode are missing"};
    attr.parent = InodeId{row.u64(0)};
  }
  if (attr.nlink == 1) CSV_TRY(database_->run(sql_->delete_links, attr.inode));
  return {};
}

Expected<void> SqlCatalog::move_link(Inode& inode, InodeId from, InodeId to) {
  if (from == to) return {};
  auto& attr = inode.attr;
  if (is_directory(inode) || attr.nlink == 1) {
    attr.parent = to;
    if (is_directory(inode)) folders_.clear();
    return {};
  }
  CSV_TRY(count_link(attr.inode, from, false));
  CSV_TRY(count_link(attr.inode, to, true));
  if (attr.parent != from) return {};
  auto row = database_->use(sql_->get_link, attr.inode, from);
  if (!CSV_TRY(row.row())) attr.parent = to;
  return {};
}

// --- Looking --------------------------------------------------------------------

Expected<Attr> SqlCatalog::attr(InodeId inode) { return CSV_TRY(load_inode(inode)).attr; }

Expected<Attr> SqlCatalog::lookup(InodeId parent, std::string_view name) {
  auto directory = CSV_TRY(load_directory(parent));
  if (name == ".") return directory.attr;
  if (name == "..") return attr(directory.attr.parent);
  CSV_TRY(check_name(name));
  auto entry = CSV_TRY(find_entry(parent, name));
  if (!entry) return Error{std::errc::no_such_file_or_directory};
  auto inode = load_inode(entry->inode);
  if (!inode)
    return Error{Errc::corrupt, "entry without inode " + std::to_string(raw(entry->inode))};
  return inode->attr;
}

Expected<std::vector<Entry>> SqlCatalog::list(InodeId directory, std::uint64_t after_cookie,
                                              std::size_t limit) {
  CSV_TRY(load_directory(directory));
  std::vector<Entry> entries;
  if (after_cookie > INT64_MAX) return entries;
  auto row = database_->use(sql_->list_entries, directory, after_cookie, limit);
  while (CSV_TRY(row.row()))
    entries.push_back({std::string{row.bytes(17)}, row.u64(18), read_inode(row).attr});
  return entries;
}

Expected<std::string> SqlCatalog::read_link(InodeId inode) {
  auto found = CSV_TRY(load_inode(inode));
  if (!S_ISLNK(found.attr.mode)) return Error{std::errc::invalid_argument, "not a symbolic link"};
  auto row = database_->use(sql_->get_target, inode);
  if (!CSV_TRY(row.row())) return stale(inode);
  return std::string{row.bytes(0)};
}

// --- Changing -------------------------------------------------------------------

Expected<Attr> SqlCatalog::make(InodeId parent, std::string_view name, const NewInode& what,
                                std::int64_t now) {
  CSV_TRY(may_change(Pages::needed));
  CSV_TRY(check_name(name));
  bool directory = S_ISDIR(what.mode), device = S_ISCHR(what.mode) || S_ISBLK(what.mode);
  if (!directory && !device && !S_ISREG(what.mode) && !S_ISLNK(what.mode) && !S_ISFIFO(what.mode) &&
      !S_ISSOCK(what.mode))
    return Error{std::errc::invalid_argument, "an unknown type of file"};
  if (S_ISLNK(what.mode) && (what.target.empty() || what.target.find('\0') != what.target.npos))
    return Error{std::errc::invalid_argument, "not a target for a symbolic link"};
  if (S_ISLNK(what.mode) && what.target.size() > 4095)
    return Error{std::errc::filename_too_long, "the target of a symbolic link"};
  auto above = CSV_TRY(load_directory(parent));
  if (above.attr.nlink == 0)
    return Error{std::errc::no_such_file_or_directory, "removed directory"};
  if (CSV_TRY(find_entry(parent, name))) return Error{std::errc::file_exists};
  if (directory && above.attr.nlink >= kMaxDirectoryLinks) return Error{std::errc::too_many_links};

  auto made = CSV_TRY(insert_inode(above, what, directory ? 2 : 1, now));
  CSV_TRY(database_->run(sql_->insert_entry, parent, name, made.inode, above.next_cookie++));
  ++above.attr.size;
  if (directory) ++above.attr.nlink;
  modified(above, now);
  CSV_TRY(store_inode(above));
  return made;
}

Expected<Attr> SqlCatalog::make_nameless(InodeId parent, const NewInode& what, std::int64_t now) {
  CSV_TRY(may_change(Pages::needed));
  if (!S_ISREG(what.mode)) return Error{std::errc::invalid_argument, "only files can be nameless"};
  auto above = CSV_TRY(load_directory(parent));
  if (above.attr.nlink == 0)
    return Error{std::errc::no_such_file_or_directory, "removed directory"};
  auto made = CSV_TRY(insert_inode(above, what, 0, now));
  CSV_TRY(database_->run(sql_->insert_orphan, made.inode, true));
  return made;
}

Expected<Attr> SqlCatalog::insert_inode(const Inode& above, const NewInode& what,
                                        std::uint32_t nlink, std::int64_t now) {
  auto inherited = CSV_TRY(inherit(above.attr.inode, what));
  bool directory = S_ISDIR(what.mode);
  Inode inode;
  auto& a = inode.attr;
  a.inode = InodeId{counters_.next_inode++};
  a.mode = inherited.mode & (S_IFMT | 07777);
  a.uid = what.uid;
  a.gid = what.gid;
  if (above.attr.mode & S_ISGID) {
    a.gid = above.attr.gid;
    if (directory) a.mode |= S_ISGID;
  }
  a.nlink = nlink;
  a.rdev = S_ISCHR(what.mode) || S_ISBLK(what.mode) ? what.rdev : 0;
  a.size = S_ISLNK(what.mode) ? what.target.size() : 0;
  a.atime = a.mtime = a.ctime = a.btime = now;
  a.parent = above.attr.inode;
  inode.next_cookie = directory ? kFirstCookie : 0;
  std::optional<std::string_view> target;
  if (S_ISLNK(what.mode)) target = what.target;
  CSV_TRY(database_->run(sql_->insert_inode, a.inode, a.mode, a.uid, a.gid, a.nlink, a.rdev, a.size,
                         a.blocks, a.atime, a.mtime, a.ctime, a.btime, a.truncation, a.parent,
                         inode.next_cookie, inode.keep_beyond_end, target));
  if (!inherited.access.empty())
    CSV_TRY(database_->run(sql_->put_xattr, a.inode, kAccessAcl, inherited.access));
  if (!inherited.defaults.empty())
    CSV_TRY(database_->run(sql_->put_xattr, a.inode, kDefaultAcl, inherited.defaults));
  ++counters_.inodes;
  return a;
}

Expected<Attr> SqlCatalog::link(InodeId inode, InodeId parent, std::string_view name,
                                std::int64_t now) {
  CSV_TRY(may_change(Pages::needed));
  CSV_TRY(check_name(name));
  auto linked = CSV_TRY(load_inode(inode));
  if (is_directory(linked)) return Error{std::errc::operation_not_permitted, "a directory"};
  auto above = CSV_TRY(load_directory(parent));
  bool nameless = false;
  if (linked.attr.nlink == 0) {
    auto row = database_->use(sql_->get_orphan, inode);
    nameless = CSV_TRY(row.row()) && row.u64(0) != 0;
  }
  if ((linked.attr.nlink == 0 && !nameless) || above.attr.nlink == 0)
    return Error{std::errc::no_such_file_or_directory, "removed"};
  if (linked.attr.nlink >= kMaxLinks) return Error{std::errc::too_many_links};
  if (CSV_TRY(find_entry(parent, name))) return Error{std::errc::file_exists};

  if (nameless) {
    CSV_TRY(database_->run(sql_->delete_orphan, inode));
    linked.attr.nlink = 1;
    linked.attr.parent = parent;
  } else {
    CSV_TRY(add_link(linked, parent));
  }
  changed(linked, now);
  CSV_TRY(store_inode(linked));
  CSV_TRY(database_->run(sql_->insert_entry, parent, name, inode, above.next_cookie++));
  ++above.attr.size;
  modified(above, now);
  CSV_TRY(store_inode(above));
  return linked.attr;
}

Expected<Attr> SqlCatalog::remove(InodeId parent, std::string_view name, bool directory,
                                  std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(check_name(name));
  auto above = CSV_TRY(load_directory(parent));
  auto entry = CSV_TRY(find_entry(parent, name));
  if (!entry) return Error{std::errc::no_such_file_or_directory};
  auto inode = CSV_TRY(load_inode(entry->inode));
  if (is_directory(inode) != directory)
    return Error{directory ? std::errc::not_a_directory : std::errc::is_a_directory};
  if (directory && inode.attr.size > 0) return Error{std::errc::directory_not_empty};

  CSV_TRY(database_->run(sql_->delete_entry, parent, name));
  if (directory) {
    inode.attr.nlink = 0;
    CSV_TRY(database_->run(sql_->insert_orphan, inode.attr.inode, false));
    --above.attr.nlink;
    folders_.erase(inode.attr.inode);
  } else {
    CSV_TRY(drop_link(inode, parent));
  }
  changed(inode, now);
  CSV_TRY(store_inode(inode));
  --above.attr.size;
  modified(above, now);
  CSV_TRY(store_inode(above));
  return inode.attr;
}

Expected<Attr> SqlCatalog::unlink(InodeId parent, std::string_view name, std::int64_t now) {
  return remove(parent, name, false, now);
}
Expected<Attr> SqlCatalog::rmdir(InodeId parent, std::string_view name, std::int64_t now) {
  return remove(parent, name, true, now);
}

Expected<std::optional<Attr>> SqlCatalog::rename(InodeId parent, std::string_view name,
                                                 InodeId new_parent, std::string_view new_name,
                                                 std::uint32_t flags, std::int64_t now) {
  CSV_TRY(may_change(Pages::needed));
  bool exchange = (flags & RENAME_EXCHANGE) != 0, replace = (flags & RENAME_NOREPLACE) == 0;
  if ((flags & ~std::uint32_t{RENAME_EXCHANGE | RENAME_NOREPLACE}) != 0 || (exchange && !replace))
    return Error{std::errc::invalid_argument, "flags of rename"};
  CSV_TRY(check_name(name));
  CSV_TRY(check_name(new_name));
  Working inodes;
  inodes.add(CSV_TRY(load_directory(parent)));
  inodes.add(CSV_TRY(load_directory(new_parent)));
  auto &from = inodes[parent], &to = inodes[new_parent];
  auto source_entry = CSV_TRY(find_entry(parent, name));
  auto target_entry = CSV_TRY(find_entry(new_parent, new_name));
  if (!source_entry || (exchange && !target_entry) || to.attr.nlink == 0)
    return Error{std::errc::no_such_file_or_directory};
  if (target_entry && !replace) return Error{std::errc::file_exists};
  auto source_id = source_entry->inode;
  if (target_entry && target_entry->inode == source_id)
    return std::optional<Attr>{};  // as POSIX says
  inodes.add(CSV_TRY(load_inode(source_id)));
  if (target_entry) inodes.add(CSV_TRY(load_inode(target_entry->inode)));
  auto& source = inodes[source_id];
  auto* target = target_entry ? &inodes[target_entry->inode] : nullptr;

  bool source_is_directory = is_directory(source);
  bool target_is_directory = target != nullptr && is_directory(*target);
  if (parent != new_parent) {
    if (source_is_directory && CSV_TRY(is_within(new_parent, source_id)))
      return Error{std::errc::invalid_argument, "a directory into itself"};
    if (exchange && target_is_directory && CSV_TRY(is_within(parent, target->attr.inode)))
      return Error{std::errc::invalid_argument, "a directory into itself"};
    if (source_is_directory && !target_is_directory && to.attr.nlink >= kMaxDirectoryLinks)
      return Error{std::errc::too_many_links};
    if (exchange && target_is_directory && !source_is_directory &&
        from.attr.nlink >= kMaxDirectoryLinks)
      return Error{std::errc::too_many_links};
  }
  if (target != nullptr && !exchange) {
    if (source_is_directory && !target_is_directory) return Error{std::errc::not_a_directory};
    if (!source_is_directory && target_is_directory) return Error{std::errc::is_a_directory};
    if (target_is_directory && target->attr.size > 0) return Error{std::errc::directory_not_empty};
  }

  std::optional<Attr> replaced;
  if (source_is_directory) {
    --from.attr.nlink;
    ++to.attr.nlink;
  }
  if (exchange && target_is_directory) {
    --to.attr.nlink;
    ++from.attr.nlink;
  }
  if (exchange) {
    CSV_TRY(database_->run(sql_->point_entry, parent, name, target->attr.inode));
    CSV_TRY(database_->run(sql_->point_entry, new_parent, new_name, source_id));
    CSV_TRY(move_link(*target, new_parent, parent));
  } else {
    CSV_TRY(database_->run(sql_->delete_entry, parent, name));
    --from.attr.size;
    if (target == nullptr) {
      CSV_TRY(
          database_->run(sql_->insert_entry, new_parent, new_name, source_id, to.next_cookie++));
      ++to.attr.size;
    } else {
      CSV_TRY(database_->run(sql_->point_entry, new_parent, new_name, source_id));
      if (target_is_directory) {
        target->attr.nlink = 0;
        CSV_TRY(database_->run(sql_->insert_orphan, target->attr.inode, false));
        --to.attr.nlink;
        folders_.erase(target->attr.inode);
      } else {
        CSV_TRY(drop_link(*target, new_parent));
      }
    }
  }
  CSV_TRY(move_link(source, parent, new_parent));
  changed(source, now);
  if (target != nullptr) changed(*target, now);
  modified(from, now);
  modified(to, now);
  for (const auto& [id, inode] : inodes) CSV_TRY(store_inode(inode));
  if (target != nullptr && !exchange) replaced = target->attr;
  return replaced;
}

Expected<Attr> SqlCatalog::change(InodeId inode, const AttrChange& to, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  auto found = CSV_TRY(load_inode(inode));
  auto& a = found.attr;
  if ((to.uid || to.gid) && !is_directory(found)) CSV_TRY(drop_privileges_of(found, true));
  if (to.uid) a.uid = *to.uid;
  if (to.gid) a.gid = *to.gid;
  if (to.mode) {
    a.mode = (a.mode & S_IFMT) | (*to.mode & 07777);
    CSV_TRY(apply_mode_to_acl(inode, a.mode));
  }
  if (to.atime) a.atime = *to.atime;
  if (to.mtime) a.mtime = *to.mtime;
  changed(found, now);
  CSV_TRY(store_inode(found));
  return a;
}

Expected<Attr> SqlCatalog::touch(InodeId inode, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  auto found = CSV_TRY(load_inode(inode));
  modified(found, now);
  CSV_TRY(store_inode(found));
  return found.attr;
}

Expected<Attr> SqlCatalog::accessed(InodeId inode, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  auto found = CSV_TRY(load_inode(inode));
  if (now <= found.attr.atime) return found.attr;
  found.attr.atime = now;
  Database::MinorChanges minor{*database_};
  CSV_TRY(store_inode(found));
  return found.attr;
}

// --- Orphans --------------------------------------------------------------------

Expected<void> SqlCatalog::reap(InodeId inode) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(load_inode(inode));
  if (CSV_TRY(database_->run(sql_->delete_orphan, inode)) == 0)
    return Error{Errc::refused, "inode " + std::to_string(raw(inode)) + " is no orphan"};
  CSV_TRY(database_->run(sql_->delete_xattrs, inode));
  CSV_TRY(free_blocks(inode, 0, kMaxFileBlocks));
  CSV_TRY(database_->run(sql_->delete_empty_grants, inode));
  CSV_TRY(database_->run(sql_->delete_inode, inode));
  --counters_.inodes;
  return {};
}

Expected<std::vector<InodeId>> SqlCatalog::orphans(InodeId after, std::size_t limit) {
  std::vector<InodeId> found;
  auto row = database_->use(sql_->list_orphans, after, limit);
  while (CSV_TRY(row.row())) found.push_back(InodeId{row.u64(0)});
  return found;
}

}  // namespace csv::volume
