#include "csvfs/base/toml_section.h"

#include <arpa/inet.h>

#include <charconv>

namespace csv {

Expected<toml::table> parse_toml(std::string_view text, const std::string& file) {
  try {
    return toml::parse(text, file);
  } catch (const toml::parse_error& wrong) {
    return Error{Errc::refused,
                 toml_place(wrong.source(), file) + std::string{wrong.description()}};
  }
}

std::string toml_place(const toml::source_region& region, const std::string& file) {
  return file + ":" + std::to_string(region.begin.line) + ":" +
         std::to_string(region.begin.column) + ": ";
}

std::string_view toml_type(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table: return "a table";
    case toml::node_type::array: return "an array";
    case toml::node_type::string: return "a text";
    case toml::node_type::integer: return "an integer";
    case toml::node_type::floating_point: return "a number with a fraction";
    case toml::node_type::boolean: return "a boolean";
    default: return "a date or time";
  }
}

Expected<std::vector<const toml::table*>> toml_tables(const toml::table& root, std::string_view key,
                                                      const std::string& file) {
  std::vector<const toml::table*> out;
  const auto* node = root.get(key);
  if (node == nullptr) return out;
  Error wrong{Errc::refused, toml_place(node->source(), file) + "expected [[" + std::string{key} +
                                 "]] tables, found " + std::string{toml_type(*node)}};
  if (!node->is_array()) return wrong;
  for (const auto& each : *node->as_array()) {
    if (!each.is_table()) return wrong;
    out.push_back(each.as_table());
  }
  return out;
}

Expected<const toml::table*> toml_table(const toml::table& root, std::string_view key,
                                        const std::string& file) {
  const auto* node = root.get(key);
  if (node == nullptr)
    return Error{Errc::refused, file + ": missing table [" + std::string{key} + "]"};
  if (!node->is_table())
    return Error{Errc::refused, toml_place(node->source(), file) + "expected a table [" +
                                    std::string{key} + "], found " + std::string{toml_type(*node)}};
  return node->as_table();
}

Expected<std::int64_t> TomlSection::integer(std::string_view key, std::int64_t low,
                                            std::int64_t high,
                                            std::optional<std::int64_t> otherwise) {
  auto what = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  const auto* node = find(key);
  if (node == nullptr) {
    if (otherwise) return *otherwise;
    return missing(key, what);
  }
  if (!node->is_integer()) return wrong(*node, key, what, std::string{toml_type(*node)});
  auto value = node->as_integer()->get();
  if (value < low || value > high) return wrong(*node, key, what, std::to_string(value));
  return value;
}

Expected<bool> TomlSection::boolean(std::string_view key, bool otherwise) {
  const auto* node = find(key);
  if (node == nullptr) return otherwise;
  if (!node->is_boolean()) return wrong(*node, key, "true or false", std::string{toml_type(*node)});
  return node->as_boolean()->get();
}

Expected<std::string> TomlSection::text(std::string_view key, const std::string& what,
                                        bool (*good)(const std::string&),
                                        std::optional<std::string> otherwise) {
  const auto* node = find(key);
  if (node == nullptr) {
    if (otherwise) return *otherwise;
    return missing(key, what);
  }
  if (!node->is_string()) return wrong(*node, key, what, std::string{toml_type(*node)});
  const auto& value = node->as_string()->get();
  if (!good(value)) return wrong(*node, key, what, "\"" + value + "\"");
  return value;
}

Expected<std::vector<std::string>> TomlSection::texts(std::string_view key, const std::string& what,
                                                      bool (*good)(const std::string&)) {
  std::vector<std::string> out;
  const auto* node = find(key);
  if (node == nullptr) return out;
  if (!node->is_array()) return wrong(*node, key, "a list", std::string{toml_type(*node)});
  for (const auto& each : *node->as_array()) {
    if (!each.is_string()) return wrong(each, key, what, std::string{toml_type(each)});
    const auto& value = each.as_string()->get();
    if (!good(value)) return wrong(each, key, what, "\"" + value + "\"");
    out.push_back(value);
  }
  return out;
}

Error TomlSection::clash(std::string_view key, const std::string& why) const {
  const auto* node = table_->get(key);
  return Error{Errc::refused, toml_place(node ? node->source() : table_->source(), *file_) + name_ +
                                  " " + std::string{key} + ": " + why};
}

Expected<void> TomlSection::nothing_else() const {
  for (const auto& [key, node] : *table_) {
    if (known_.count(std::string{key.str()}) > 0) continue;
    std::string expected;
    for (const auto& each : known_) expected += (expected.empty() ? "" : ", ") + each;
    return Error{Errc::refused, toml_place(key.source(), *file_) + name_ + ": unknown key '" +
                                    std::string{key.str()} + "'; expected one of: " + expected};
  }
  return {};
}

const toml::node* TomlSection::find(std::string_view key) {
  known_.emplace(key);
  return table_->get(key);
}

Error TomlSection::missing(std::string_view key, const std::string& what) const {
  return Error{Errc::refused, toml_place(table_->source(), *file_) + name_ + ": missing '" +
                                  std::string{key} + "', " + what};
}

Error TomlSection::wrong(const toml::node& node, std::string_view key, const std::string& what,
                         const std::string& found) const {
  return Error{Errc::refused, toml_place(node.source(), *file_) + name_ + " " + std::string{key} +
                                  ": expected " + what + ", found " + found};
}

bool is_name(const std::string& text) {
  if (text.empty() || text.size() > 63 || text.front() == '.' || text.front() == '-') return false;
  return text.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
         std::string::npos;
}

bool is_endpoint(const std::string& text) {
  auto colon = text.rfind(':');
  if (colon == std::string::npos || colon + 1 == text.size()) return false;
  unsigned port = 0;
  auto [stop, error] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), port);
  if (error != std::errc{} || stop != text.data() + text.size() || port == 0 || port > 65535)
    return false;
  auto address = text.substr(0, colon);
  in6_addr into{};
  if (address.size() > 2 && address.front() == '[' && address.back() == ']')
    return ::inet_pton(AF_INET6, address.substr(1, address.size() - 2).c_str(), &into) == 1;
  return ::inet_pton(AF_INET, address.c_str(), &into) == 1;
}

bool is_numeric_address(const std::string& text) {
  in6_addr into{};
  return ::inet_pton(AF_INET, text.c_str(), &into) == 1 ||
         ::inet_pton(AF_INET6, text.c_str(), &into) == 1;
}

}  // namespace csv
