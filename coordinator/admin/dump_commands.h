#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "coordinator/admin/volume_commands.h"

namespace csv::admin {

/// `csvctl volume dump`: what lies on a volume, as it is. Changes nothing. Of a served volume (by
/// name) csvd makes a copy of the catalog first; slots and superblock copies need the LUN.
struct DumpRequest {
  LunChoice lun;
  bool json = false;
  bool superblock = false, slots = false, catalog = false;
  std::string table;
  std::optional<std::uint64_t> inode;
  std::string path, map;
};
ExitCode dump_volume(const std::string& socket, const DumpRequest& request, Terminal& terminal);

}  // namespace csv::admin
