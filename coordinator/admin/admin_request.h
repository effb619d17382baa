#pragma once
#include <string>

#include "csvfs/base/error.h"

namespace csv::admin {

/// What csvctl asks of csvd; docs/protocol.md lists the commands.
struct AdminRequest {
  std::string command;
  std::string volume = {};  ///< Empty where the command names none.
  std::string node = {};    ///< Its name or number.
  std::string value = {};   ///< What is to be set.
};
/// Errc::refused for what is no JSON object with a command; members nobody knows are ignored.
Expected<AdminRequest> parse_admin_request(const std::string& text);

}  // namespace csv::admin
