#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/error.h"

namespace csv::volume {

/// The extended attributes that access control lists are kept as.
inline constexpr std::string_view kAccessAcl = "system.posix_acl_access";
inline constexpr std::string_view kDefaultAcl = "system.posix_acl_default";

/// A POSIX.1e access control list, as Linux has it: who, beside owner, group and others, may do
/// what. An ordinary value; a list that exists has passed parse().
class Acl {
 public:
  enum class Tag : std::uint16_t {
    owner = 0x01,
    user = 0x02,
    group = 0x04,
    named_group = 0x08,
    mask = 0x10,
    others = 0x20,
  };
  struct Entry {
    Tag tag{};
    std::uint16_t permissions = 0;  ///< Of 7.
    std::uint32_t id = 0;           ///< Of user and named_group.
  };

  /// As the kernel passes it (<linux/posix_acl_xattr.h>). EINVAL where it is not a complete list in
  /// order: owner, users, group, named groups, a mask where anybody is named, others.
  static Expected<Acl> parse(std::string_view bytes);
  [[nodiscard]] std::string encode() const;

  /// The permission bits of a file with this list: the group's are those of the mask.
  [[nodiscard]] std::uint32_t mode() const;
  /// It says no more than the permission bits do.
  [[nodiscard]] bool is_minimal() const;
  /// chmod.
  void set_mode(std::uint32_t mode);
  /// A default list becomes that of a new file, which is made with `mode`: nobody gets more than
  /// both say. The permission bits that follow.
  std::uint32_t inherit(std::uint32_t mode);

  [[nodiscard]] const std::vector<Entry>& entries() const { return entries_; }

 private:
  Entry& first(Tag tag);
  [[nodiscard]] const Entry* find(Tag tag) const;
  Tag of_group() const { return find(Tag::mask) != nullptr ? Tag::mask : Tag::group; }
  std::vector<Entry> entries_;
};

}  // namespace csv::volume
