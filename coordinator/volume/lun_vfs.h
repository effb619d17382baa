#pragma once
#include <memory>

#include "coordinator/volume/volume.h"

namespace csv::volume {

/// open_catalog_store(), and for format(): `unpublished` is a volume whose superblocks do not exist
/// yet, so that nothing may write them (add_chunk() is refused).
enum class Publication { published, unpublished };
Expected<std::unique_ptr<CatalogStore>> open_store(iscsi::BlockingLun& lun, VolumeInfo info,
                                                   Random& random, StoreAccess access,
                                                   Publication publication);

}  // namespace csv::volume
