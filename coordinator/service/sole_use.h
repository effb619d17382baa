#pragma once
#include <optional>
#include <string>
#include <vector>

#include "coordinator/service/fencing.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/task.h"
#include "iscsi/blocking_lun.h"

// For tools that change a volume nobody serves: who could be using it, and how they are kept away.

namespace csv::service {

/// Who may be using a volume, as far as its LUN tells.
struct Users {
  std::vector<Key> keys;  ///< Of others, each once.
  /// What the superblocks in force say, or why nothing is in force.
  Expected<volume::VolumeInfo> info = Errc::corrupt;

  /// Whether the superblocks say that its coordinator gave it up in good order, or that it never
  /// had one. The key of one that did stays registered all the same (docs/targets.md).
  [[nodiscard]] bool closed() const { return info && info->coordinator_key == Key{}; }
  /// Of others, those of mounts; a mount unregisters when it ends in good order.
  [[nodiscard]] std::vector<Key> mounts() const;
  /// Who may still read and write the volume, a line each; empty: nobody. Coordinators' keys say so
  /// unless the superblocks say that it is closed.
  [[nodiscard]] std::string in_words() const;
};

/// Changes nothing. `mine`: the key under which `lun` may be read, Key{} for none.
Expected<Users> look_for_users(iscsi::BlockingLun& lun, Key mine);

/// Takes the LUN for whoever has registered `mine` on `lun`: from its success on all keys of
/// `users` are gone, nothing that was sent under them is still to come, and nobody reads or writes
/// but by `mine`, under a reservation that stands. A coordinator that did not close the volume may
/// answer from memory for `term`, which is waited for. Fails with Errc::refused if somebody
/// registered meanwhile. As with a coordinator, `mine` had better stay registered afterwards: it is
/// what keeps those out who were fenced and have not noticed. The next coordinator removes it.
Task<Expected<void>> take_for_one(Loop& loop, iscsi::Lun& lun, Key mine, const Users& users,
                                  Duration term);

}  // namespace csv::service
