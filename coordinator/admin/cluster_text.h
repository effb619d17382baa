#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/admin/paint.h"
#include "csvfs/base/error.h"

namespace csv::admin {

/// `csvctl cluster status` for people, from what cluster_json() made: what needs attention first.
/// Errc::corrupt if `json` is no such thing.
Expected<std::string> cluster_text(const std::string& json, const Paint& paint);

/// A line for `csvctl status`: "quorate, 3 of 3 votes are here, for 5 min". May throw
/// Json::exception, as may the next.
std::string quorum_line(const nlohmann::ordered_json& voting, const Paint& paint);
/// What needs attention, as subject and text; without the nodes that are away.
std::vector<std::pair<std::string, std::string>> quorum_attention(
    const nlohmann::ordered_json& voting);

}  // namespace csv::admin
