#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/volume/volume.h"
#include "iscsi/ram_lun.h"
#include "tests/fakes/inline_worker.h"

namespace csv::fuzz {

using fakes::InlineWorker;
using fakes::run_until;
using fakes::Turns;

inline constexpr std::uint64_t kLunSize = 512ull << 20;
inline constexpr std::uint16_t kCluster = 4711;

/// A volume with a few files, made once a process: what is not zero of its LUN.
struct Image {
  /// A copy of the catalog on the LUN, in one allocation group.
  struct Copy {
    std::uint64_t group = 0, pages = 0;
  };
  volume::VolumeInfo info;
  std::vector<std::pair<std::uint64_t, std::vector<std::byte>>> parts;
  std::vector<Copy> copies;
  std::vector<std::byte> file;  ///< The newest copy, as a file has it.
};
const Image& image();
/// The same with a past: copies of its catalog, older than what is in force, access control lists,
/// files of a node that are suspended.
const Image& image_with_copies();

/// A LUN that holds the image.
std::shared_ptr<iscsi::RamDisk> disk_of(const Image& image, fakes::ManualLoop& loop);

}  // namespace csv::fuzz
