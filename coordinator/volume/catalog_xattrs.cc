// Extended attributes, and what some of them mean: access control lists and privileges.
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>

#include "coordinator/volume/acl.h"
#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

namespace {
constexpr std::string_view kCapability = "security.capability";
constexpr std::size_t kMaxValue = 64 << 10, kMaxOfInode = 256 << 10;

Expected<void> check_name(std::string_view name) {
  if (name.empty() || name.size() > 255)
    return Error{std::errc::result_out_of_range, "the name of an extended attribute"};
  if (name.find('\0') != name.npos) return Error{std::errc::invalid_argument, "NUL in a name"};
  return {};
}
Error no_data() { return errno_error(ENODATA, "extended attribute"); }
}  // namespace

Expected<std::string> SqlCatalog::xattr(InodeId inode, std::string_view name) {
  CSV_TRY(load_inode(inode));
  CSV_TRY(check_name(name));
  auto row = database_->use(sql_->get_xattr, inode, name);
  if (!CSV_TRY(row.row())) return no_data();
  return std::string{row.bytes(0)};
}

Expected<std::string> SqlCatalog::list_xattrs(InodeId inode) {
  CSV_TRY(load_inode(inode));
  std::string names;
  auto row = database_->use(sql_->list_xattrs, inode);
  while (CSV_TRY(row.row())) {
    names += row.bytes(0);
    names += '\0';
  }
  return names;
}

Expected<void> SqlCatalog::set_xattr(InodeId inode, std::string_view name, std::string_view value,
                                     std::uint32_t flags, std::int64_t now) {
  CSV_TRY(may_change(Pages::needed));
  CSV_TRY(check_name(name));
  if (value.size() > kMaxValue) return Error{std::errc::argument_list_too_long, "over 64 KiB"};
  if ((flags & ~std::uint32_t{XATTR_CREATE | XATTR_REPLACE}) != 0)
    return Error{std::errc::invalid_argument, "flags of setxattr"};
  auto found = CSV_TRY(load_inode(inode));
  std::size_t others = 0;
  bool exists = false;
  {
    auto row = database_->use(sql_->list_xattrs, inode);
    while (CSV_TRY(row.row())) {
      if (row.bytes(0) == name)
        exists = true;
      else
        others += row.bytes(0).size() + row.u64(1);
    }
  }
  bool acl = name == kAccessAcl || name == kDefaultAcl;
  if (exists && (flags & XATTR_CREATE) != 0) return Error{std::errc::file_exists};
  if (!exists && (flags & XATTR_REPLACE) != 0) return no_data();
  if (others + name.size() + value.size() > kMaxOfInode)
    return Error{std::errc::no_space_on_device, "extended attributes of one inode over 256 KiB"};
  extra_cost_ += value.size() / 4096;
  if (acl && CSV_TRY(apply_acl(found, name, value)))
    CSV_TRY(database_->run(sql_->delete_xattr, inode, name));
  else
    CSV_TRY(database_->run(sql_->put_xattr, inode, name, value));
  found.attr.ctime = std::max(found.attr.ctime, now);
  return store_inode(found);
}

Expected<void> SqlCatalog::remove_xattr(InodeId inode, std::string_view name, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(check_name(name));
  auto found = CSV_TRY(load_inode(inode));
  if (CSV_TRY(database_->run(sql_->delete_xattr, inode, name)) == 0) {
    if (name == kAccessAcl || name == kDefaultAcl) return {};
    return no_data();
  }
  found.attr.ctime = std::max(found.attr.ctime, now);
  return store_inode(found);
}

// --- Access control -------------------------------------------------------------

Expected<std::optional<std::string>> SqlCatalog::find_xattr(InodeId inode, std::string_view name) {
  auto row = database_->use(sql_->get_xattr, inode, name);
  if (!CSV_TRY(row.row())) return std::optional<std::string>{};
  return std::optional{std::string{row.bytes(0)}};
}

Expected<SqlCatalog::Inherited> SqlCatalog::inherit(InodeId parent, const NewInode& what) {
  Inherited made{what.mode, {}, {}};
  if (S_ISLNK(what.mode)) return made;
  auto defaults = CSV_TRY(find_xattr(parent, kDefaultAcl));
  if (!defaults) {
    made.mode &= ~(what.umask & 0777);
    return made;
  }
  auto acl = CSV_TRY(Acl::parse(*defaults));
  made.mode = acl.inherit(what.mode);
  if (!acl.is_minimal()) made.access = acl.encode();
  if (S_ISDIR(what.mode)) made.defaults = *defaults;
  return made;
}

Expected<bool> SqlCatalog::apply_acl(Inode& inode, std::string_view name, std::string_view value) {
  auto& mode = inode.attr.mode;
  if (S_ISLNK(mode)) return Error{std::errc::operation_not_supported, "an ACL of a symbolic link"};
  auto acl = CSV_TRY(Acl::parse(value));
  if (name == kDefaultAcl) {
    if (!S_ISDIR(mode)) return Error{std::errc::permission_denied, "a default ACL of a file"};
    return false;
  }
  mode = (mode & ~std::uint32_t{0777}) | acl.mode();
  return acl.is_minimal();
}

Expected<void> SqlCatalog::apply_mode_to_acl(InodeId inode, std::uint32_t mode) {
  auto access = CSV_TRY(find_xattr(inode, kAccessAcl));
  if (!access) return {};
  auto acl = CSV_TRY(Acl::parse(*access));
  acl.set_mode(mode);
  CSV_TRY(database_->run(sql_->put_xattr, inode, kAccessAcl, acl.encode()));
  return {};
}

// --- Privileges -----------------------------------------------------------------

namespace {
std::uint32_t set_id_bits(std::uint32_t mode) {
  // Without execution by the group, the set-group-ID bit once meant locking, and stays.
  return mode & (S_ISUID | ((mode & S_IXGRP) != 0 ? S_ISGID : 0u));
}
}  // namespace

Expected<bool> SqlCatalog::drop_privileges_of(Inode& inode, bool set_id) {
  auto bits = set_id ? set_id_bits(inode.attr.mode) : 0;
  inode.attr.mode &= ~bits;
  auto dropped = CSV_TRY(database_->run(sql_->delete_xattr, inode.attr.inode, kCapability));
  return bits != 0 || dropped != 0;
}

Expected<Attr> SqlCatalog::drop_privileges(InodeId inode, bool set_id, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  auto found = CSV_TRY(load_file(inode));
  if (!CSV_TRY(drop_privileges_of(found, set_id))) return found.attr;
  found.attr.ctime = std::max(found.attr.ctime, now);
  CSV_TRY(store_inode(found));
  return found.attr;
}

Expected<bool> SqlCatalog::has_privileges(InodeId inode) {
  auto found = CSV_TRY(load_inode(inode));
  if (!S_ISREG(found.attr.mode)) return false;
  if (set_id_bits(found.attr.mode) != 0) return true;
  return CSV_TRY(find_xattr(inode, kCapability)).has_value();
}

}  // namespace csv::volume
