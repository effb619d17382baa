#pragma once
#include <string>
#include <vector>

#include "coordinator/admin/embedded.h"
#include "coordinator/admin/tool.h"

namespace csv::admin {

/// What `csvctl fs …` was told. Paths on the volume begin at its root, with or without '/';
/// symbolic links on the way are not followed.
struct FsRequest {
  std::string lun;
  EmbeddedVolume::Options options;
  std::vector<std::string> paths;
  bool recursive = false;  ///< rm: with what is below.
  bool parents = false;    ///< mkdir: those that are missing, and none is fine.
  bool json = false;       ///< ls
};

ExitCode fs_list(const FsRequest& request, Terminal& terminal);
ExitCode fs_make_directories(const FsRequest& request, Terminal& terminal);
/// LOCAL… REMOTE: files and whole trees, with modes, owners, times, links, holes and extended
/// attributes. Into REMOTE if that is a directory, else under that name.
ExitCode fs_put(const FsRequest& request, Terminal& terminal);
/// REMOTE… LOCAL, likewise. Owners only as root.
ExitCode fs_get(const FsRequest& request, Terminal& terminal);
ExitCode fs_cat(const FsRequest& request, Terminal& terminal);
ExitCode fs_remove(const FsRequest& request, Terminal& terminal);

}  // namespace csv::admin
