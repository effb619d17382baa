#include "coordinator/service/memory.h"

namespace csv::service {

MemoryShares MemoryShares::of(std::uint64_t bytes) {
  MemoryShares shares;
  shares.catalog_pages = bytes / 40 * 16;
  shares.names = bytes / 40 * 5 / kNameBytes;
  shares.watches = bytes / 40 * 11 / kWatchBytes;
  shares.layouts = bytes / 40 * 8 / kLayoutBytes;
  return shares;
}

}  // namespace csv::service
