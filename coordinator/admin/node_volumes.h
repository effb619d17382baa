#pragma once
#include <string>

#include "coordinator/admin/tool.h"
#include "coordinator/admin/volume_commands.h"

namespace csv::admin {

/// `csvctl volume list`: the volumes of this node's configuration, and, where csvd answers, how
/// they are.
struct ListRequest {
  std::string config_file, socket;
  bool json = false;
  bool names = false;  ///< Names alone, a line each.
};
ExitCode list_volumes(const ListRequest& request, Terminal& terminal);

/// `csvctl volume add`: looks whether the LUN holds the volume and is of this cluster, writes it
/// into the configuration, whose other text stays as it is, and has csvd take it.
struct AddRequest {
  std::string config_file, socket, name;
  LunChoice lun;
  std::string chap_user, chap_secret_file;
  int sessions = 0;  ///< 0: the default.
  bool coordinate = false;
};
ExitCode add_volume(const AddRequest& request, Terminal& terminal);

/// `csvctl reload`: csvd reads its configuration again and takes the volumes that are new.
ExitCode reload(const std::string& socket, Terminal& terminal);

/// The configuration `text` with one more volume at its end. Errc::refused where the result would
/// not be valid.
Expected<std::string> with_volume(const std::string& text, const std::string& file_name,
                                  const AddRequest& request);

}  // namespace csv::admin
