#include "csvfs/mount_options.h"

#include <sys/mount.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <string_view>

namespace csv {
namespace {

struct Option {
  std::string_view name;
  unsigned long set = 0, clear = 0;
};
constexpr std::array kOptions{
    Option{"defaults", 0, 0},
    Option{"rw", 0, MS_RDONLY},
    Option{"ro", MS_RDONLY, 0},
    Option{"suid", 0, MS_NOSUID},
    Option{"nosuid", MS_NOSUID, 0},
    Option{"dev", 0, MS_NODEV},
    Option{"nodev", MS_NODEV, 0},
    Option{"exec", 0, MS_NOEXEC},
    Option{"noexec", MS_NOEXEC, 0},
    Option{"atime", 0, MS_NOATIME},
    Option{"noatime", MS_NOATIME, 0},
    Option{"relatime", 0, MS_NOATIME},
    Option{"diratime", 0, MS_NODIRATIME},
    Option{"nodiratime", MS_NODIRATIME, 0},
    Option{"sync", MS_SYNCHRONOUS, 0},
    Option{"async", 0, MS_SYNCHRONOUS},
    Option{"dirsync", MS_DIRSYNC, 0},
};

/// mountinfo writes a blank as \040.
std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                               (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

Expected<MountFlags> parse_mount_options(const std::vector<std::string>& options) {
  MountFlags made;
  for (const auto& each : options) {
    if (each == "shared_mmap") {
      made.shared_mappings = true;
      continue;
    }
    auto known = std::find_if(kOptions.begin(), kOptions.end(),
                              [&](const Option& option) { return option.name == each; });
    if (known == kOptions.end())
      return Error{Errc::refused, "the mount option " + each + " is not known"};
    made.flags = (made.flags & ~known->clear) | known->set;
  }
  return made;
}

bool keeps_access_times(const std::string& mountinfo, const std::string& mountpoint) {
  bool keeps = true;
  std::istringstream lines{mountinfo};
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words{line};
    std::string id, parent, device, root, at, options;
    words >> id >> parent >> device >> root >> at >> options;
    // The last one covers those below.
    if (unescaped(at) == mountpoint)
      keeps = ("," + options + ",").find(",noatime,") == std::string::npos;
  }
  return keeps;
}

}  // namespace csv
