#pragma once
#include <sys/types.h>

#include <string>

#include "csvfs/base/error.h"

namespace csv::admin {

/// Small files of an administrator. They wait.

/// All or nothing, also at a power loss: whoever reads it sees the former content or the new one.
Expected<void> replace_file(const std::string& path, const std::string& text, mode_t mode);
Expected<std::string> read_whole(const std::string& path);
/// Also a link that leads nowhere.
bool file_exists(const std::string& path);

}  // namespace csv::admin
