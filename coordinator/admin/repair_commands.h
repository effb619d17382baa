#pragma once
#include <string>

#include "coordinator/admin/volume_commands.h"

namespace csv::admin {

/// `csvctl volume check … --repair`: of a volume that nobody serves.
struct RepairRequest {
  LunChoice lun;
  bool dry_run = false;
  bool yes = false;
  bool fence = false;  ///< Take the access of whoever may be using the volume away first.
  bool json = false;
  /// Empty: what is on the LUN. "copy": the newest whole copy on the LUN. Else a file with a copy.
  std::string from;
  std::string work_dir = "/var/lib/csvfs";  ///< Where the repaired catalog is made.
  std::string name;                         ///< Only if no superblock is left.
  std::uint16_t cluster = 0;
  std::uint64_t log_mib = 64;
};
ExitCode repair_volume(const RepairRequest& request, Terminal& terminal);

/// Whether a command's argument is a volume's name and not a LUN.
bool is_volume_name(const std::string& text);
/// `csvctl volume check NAME`: a served volume, by a copy of its catalog that csvd makes.
ExitCode check_served(const std::string& socket, const std::string& volume, bool json,
                      Terminal& terminal);
ExitCode back_up_catalog(const std::string& socket, const std::string& volume, bool json,
                         Terminal& terminal);
ExitCode grow_volume(const std::string& socket, const LunChoice& lun_or_name, Terminal& terminal);

/// A copy of a served catalog, as csvd made it for us.
struct ServedCatalog {
  std::string file;
  std::int64_t taken_at = 0;  ///< ns since 1970.
  std::uint64_t pages = 0;
  bool on_lun = false;
  volume::VolumeInfo info;  ///< Geometry, label and chunks only.
  std::vector<std::string> problems;
};
Expected<ServedCatalog> ask_for_catalog(const std::string& socket, const std::string& volume,
                                        Terminal& terminal);

}  // namespace csv::admin
