#include "coordinator/admin/admin_request.h"

#include <nlohmann/json.hpp>

namespace csv::admin {

Expected<AdminRequest> parse_admin_request(const std::string& text) {
  auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object())
    return Error{Errc::refused, "a request to csvd is a JSON object, and this is none"};
  AdminRequest request;
  auto take = [&json](const char* name, std::string& into) -> Expected<void> {
    auto found = json.find(name);
    if (found == json.end()) return {};
    if (!found->is_string())
      return Error{Errc::refused, std::string{"a request's \""} + name + "\" must be a text"};
    into = found->get<std::string>();
    return {};
  };
  CSV_TRY(take("command", request.command));
  CSV_TRY(take("volume", request.volume));
  CSV_TRY(take("node", request.node));
  CSV_TRY(take("value", request.value));
  if (request.command.empty()) return Error{Errc::refused, "a request to csvd needs a \"command\""};
  return request;
}

}  // namespace csv::admin
