#include "csvfs/mount_table.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace csv {
namespace {

namespace fs = std::filesystem;

/// Spaces, tabs, newlines and backslashes stand as "\040" and the like.
std::string decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto is_octal = [&](std::size_t at) { return text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && is_octal(i + 1) && is_octal(i + 2) &&
        is_octal(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                               (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string read_file(const fs::path& path) {
  std::ifstream file{path, std::ios::binary};
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

std::string link_of(const fs::path& path) {
  std::error_code error;
  auto to = fs::read_symlink(path, error);
  return error ? "" : to.string();
}

bool is_within(const std::string& path, const std::string& folder) {
  return path == folder || (path.starts_with(folder) && path[folder.size()] == '/');
}

/// "mnt_id:	42" of an fdinfo, and whether its flags allow writing.
struct OpenFile {
  int mount = -1;
  bool writable = false;
};
OpenFile open_file(const std::string& fdinfo) {
  OpenFile out;
  std::istringstream lines{fdinfo};
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("mnt_id:")) out.mount = std::atoi(line.c_str() + 7);
    if (line.starts_with("flags:"))
      out.writable = (std::strtol(line.c_str() + 6, nullptr, 8) & O_ACCMODE) != O_RDONLY;
  }
  return out;
}

std::string how_it_uses(const fs::path& process, const MountEntry& mount, bool for_writing) {
  std::error_code error;
  for (fs::directory_iterator at{process / "fdinfo", error}, end; !error && at != end;
       at.increment(error)) {
    auto file = open_file(read_file(at->path()));
    if (file.mount != mount.id || (for_writing && !file.writable)) continue;
    auto name = link_of(process / "fd" / at->path().filename());
    return std::string{file.writable ? "writes to " : "has open "} +
           (name.empty() ? "a file" : name);
  }
  if (for_writing) return "";
  if (is_within(link_of(process / "cwd"), mount.mountpoint)) return "works in it";
  if (is_within(link_of(process / "root"), mount.mountpoint)) return "has its root there";
  if (is_within(link_of(process / "exe"), mount.mountpoint)) return "runs from it";
  std::istringstream maps{read_file(process / "maps")};
  for (std::string line; std::getline(maps, line);) {
    auto path = line.find('/');
    if (path != std::string::npos && is_within(line.substr(path), mount.mountpoint))
      return "has mapped " + line.substr(path);
  }
  return "";
}

}  // namespace

std::vector<MountEntry> parse_mount_table(std::string_view text) {
  std::vector<MountEntry> out;
  std::istringstream lines{std::string{text}};
  for (std::string line; std::getline(lines, line);) {
    // 36 35 98:0 /root /mountpoint options [optional fields] - type source super-options
    std::istringstream words{line};
    std::string parent, device, root, mountpoint, word;
    MountEntry entry;
    if (!(words >> entry.id >> parent >> device >> root >> mountpoint)) continue;
    if (auto colon = device.find(':'); colon != std::string::npos)
      entry.device_minor =
          static_cast<unsigned>(std::strtoul(device.c_str() + colon + 1, nullptr, 10));
    while (words >> word && word != "-") {
    }
    if (!(words >> entry.type >> entry.source)) continue;
    entry.mountpoint = decoded(mountpoint);
    entry.source = decoded(entry.source);
    out.push_back(std::move(entry));
  }
  return out;
}

std::vector<MountEntry> mount_table() {
  return parse_mount_table(read_file("/proc/self/mountinfo"));
}

std::optional<MountEntry> mounted_at(const std::vector<MountEntry>& table, std::string_view place) {
  auto found = std::find_if(table.rbegin(), table.rend(),
                            [&](const auto& each) { return each.mountpoint == place; });
  if (found == table.rend()) return std::nullopt;
  return *found;
}

std::vector<MountEntry> mounts_of(const std::vector<MountEntry>& table, std::string_view volume) {
  std::vector<MountEntry> out;
  for (const auto& each : table)
    if (each.type == kMountType && each.source == volume) out.push_back(each);
  return out;
}

std::string without_touching(const std::string& path) {
  std::error_code error;
  auto whole = fs::absolute(path, error);
  if (error) return path;
  whole = whole.lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();  // "…/volume1/"
  auto above = fs::weakly_canonical(whole.parent_path(), error);
  if (error) return whole.string();
  return (above / whole.filename()).string();
}

std::vector<MountUser> users_of(const MountEntry& mount, bool for_writing) {
  std::vector<MountUser> out;
  std::error_code error;
  for (fs::directory_iterator at{"/proc", error}, end; !error && at != end; at.increment(error)) {
    auto name = at->path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    auto how = how_it_uses(at->path(), mount, for_writing);
    if (how.empty()) continue;
    auto program = read_file(at->path() / "comm");
    while (!program.empty() && program.back() == '\n') program.pop_back();
    out.push_back({static_cast<pid_t>(std::atoi(name.c_str())), program, how});
  }
  return out;
}

}  // namespace csv
