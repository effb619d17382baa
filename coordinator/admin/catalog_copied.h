#pragma once
#include <string>

#include "coordinator/service/volume_service.h"

namespace csv::admin {

/// What csvd answers when it was asked for a copy of a catalog; docs/protocol.md.
std::string catalog_copied_json(const service::VolumeService::CatalogCopied& copied);

}  // namespace csv::admin
