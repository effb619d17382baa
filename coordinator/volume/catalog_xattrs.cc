// Extended attributes.
#include <sys/xattr.h>

#include <algorithm>

#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

namespace {
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
  if (exists && (flags & XATTR_CREATE) != 0) return Error{std::errc::file_exists};
  if (!exists && (flags & XATTR_REPLACE) != 0) return no_data();
  if (others + name.size() + value.size() > kMaxOfInode)
    return Error{std::errc::no_space_on_device, "extended attributes of one inode over 256 KiB"};
  extra_cost_ += value.size() / 4096;
  CSV_TRY(database_->run(sql_->put_xattr, inode, name, value));
  found.attr.ctime = std::max(found.attr.ctime, now);
  return store_inode(found);
}

Expected<void> SqlCatalog::remove_xattr(InodeId inode, std::string_view name, std::int64_t now) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(check_name(name));
  auto found = CSV_TRY(load_inode(inode));
  if (CSV_TRY(database_->run(sql_->delete_xattr, inode, name)) == 0) return no_data();
  found.attr.ctime = std::max(found.attr.ctime, now);
  return store_inode(found);
}

}  // namespace csv::volume
