#pragma once
#include <cstdint>
#include <vector>

#include "coordinator/volume/volume.h"
#include "csvfs/base/buffer.h"

namespace csv::volume {

/// What a CatalogStore over a LUN can do beside storing: give out the database's pages as they were
/// at one moment, while they are written over. One image at a time; on the store's thread.
class CatalogImages {
 public:
  virtual ~CatalogImages() = default;
  /// Freezes the pages as they are now; how many. The log has just been copied back, so that they
  /// are all there is.
  virtual Expected<std::uint32_t> begin_image() = 0;
  struct ImagePage {
    std::uint32_t page = 0;
    Buffer content;  ///< 4096 bytes, with their checksum.
  };
  /// The next pages: at most `limit` in order, and those that were written over meanwhile. Each
  /// page comes once. Empty: that was all. Errc::corrupt where one is damaged.
  virtual Expected<std::vector<ImagePage>> more_image(std::size_t limit) = 0;
  virtual void end_image() = 0;
};
/// Those of a store, nullptr where it has none.
CatalogImages* images_of(CatalogStore& store);

}  // namespace csv::volume
