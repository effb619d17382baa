#pragma once
#include <cstddef>
#include <cstdint>

namespace csv::service {

/// How the memory that a coordinator may use for a volume is shared out, so that it does not grow
/// with the number of files. Beside it there are the log (as large as it was formatted), bitmaps of
/// at most 16 MiB, and what is under way: files that programs have open, their locks, requests.
///
/// None of the bounds makes it forget what a mount may rely on: watches and layouts beyond theirs
/// are asked back, and count until they are answered.
struct MemoryShares {
  std::uint64_t catalog_pages = 0;  ///< Bytes of the catalog's database.
  std::size_t names = 0;            ///< Inodes, names and extended attributes known by heart.
  std::size_t watches = 0;          ///< Of all sessions together.
  std::size_t layouts = 0;          ///< Files of which a session holds some; of all sessions.

  static MemoryShares of(std::uint64_t bytes);
};

/// What one of each takes, about.
inline constexpr std::size_t kNameBytes = 200, kWatchBytes = 192, kLayoutBytes = 768;

}  // namespace csv::service
