#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "csvfs/base/error.h"

namespace csv::iscsi {

/// What iscsi://… names.
struct IscsiAddress {
  std::vector<std::string>
      portals;         ///< Numeric ADDRESS:PORT, at least one; sessions go round them.
  std::string target;  ///< iqn.…, eui.… or naa.…
  int lun = 0;
  std::string chap_user, chap_secret;
};
struct DevicePath {
  std::string path;
};
struct ImagePath {
  std::string path;
};
using LunAddress = std::variant<IscsiAddress, DevicePath, ImagePath>;

/// Reads a LUN's URL (lun.h says how it looks). A refusal says what was expected where.
Expected<LunAddress> parse_lun_url(std::string_view url);

}  // namespace csv::iscsi
