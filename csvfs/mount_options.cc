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
constexpr auto kOptions = std::to_array<Option>({
    {"ro", MS_RDONLY, 0},
    {"rw", 0, MS_RDONLY},
    {"noexec", MS_NOEXEC, 0},
    {"exec", 0, MS_NOEXEC},
    {"nosuid", MS_NOSUID, 0},
    {"suid", 0, MS_NOSUID},
    {"nodev", MS_NODEV, 0},
    {"dev", 0, MS_NODEV},
    {"noatime", MS_NOATIME, 0},
    {"atime", 0, MS_NOATIME},
    {"nodiratime", MS_NODIRATIME, 0},
    {"diratime", 0, MS_NODIRATIME},
});

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

bool apply_mount_option(MountFlags& to, std::string_view option) {
  if (option == "shared_mmap" || option == "noshared_mmap") {
    to.shared_mappings = option == "shared_mmap";
    return true;
  }
  auto known = std::find_if(kOptions.begin(), kOptions.end(),
                            [&](const Option& each) { return each.name == option; });
  if (known == kOptions.end()) return false;
  to.flags = (to.flags & ~known->clear) | known->set;
  return true;
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
