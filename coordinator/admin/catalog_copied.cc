#include "coordinator/admin/catalog_copied.h"

#include <nlohmann/json.hpp>

namespace csv::admin {

std::string catalog_copied_json(const service::VolumeService::CatalogCopied& copied) {
  const auto& info = copied.info;
  nlohmann::ordered_json out{{"ok", true},
                             {"file", copied.file},
                             {"no_file", copied.no_file},
                             {"pages", copied.pages},
                             {"taken_at", static_cast<std::int64_t>(copied.taken_at)},
                             {"on_lun", copied.on_lun},
                             {"problems", copied.problems},
                             {"volume",
                              {{"label", info.label},
                               {"lun_size", info.lun_size},
                               {"wal_size", info.wal_size},
                               {"data_offset", info.data_offset},
                               {"data_size", info.data_size},
                               {"chunks", info.chunks}}}};
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace csv::admin
