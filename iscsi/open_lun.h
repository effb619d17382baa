#pragma once
#include <functional>
#include <string>

#include "csvfs/base/asio_loop.h"
#include "iscsi/lun.h"

namespace csv::iscsi {

/// Connects to the LUN at `url` and finds out what it is, answering on `home`. Refuses what cannot
/// be used, saying why: no such target or LUN, not a disk, block size neither 512 nor 4096, not
/// ready, in use on this machine. Write-protected is told in the profile, not refused here. `home`
/// must run until it has answered.
void open_lun(AsioLoop& home, std::string url, LunOptions options,
              Function<void(Expected<std::unique_ptr<Lun>>)> done);

/// How a part that reconnects by itself opens its LUN: production binds open_lun, tests a RAM LUN.
using LunOpener = std::function<void(LunOptions, Function<void(Expected<std::unique_ptr<Lun>>)>)>;

}  // namespace csv::iscsi
