#pragma once
#include <toml++/toml.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "csvfs/base/error.h"

namespace csv {

/// The text as TOML; "FILE:LINE:COLUMN: what is wrong with it". As all errors here: Errc::refused.
Expected<toml::table> parse_toml(std::string_view text, const std::string& file);

/// "FILE:LINE:COLUMN: "
std::string toml_place(const toml::source_region& region, const std::string& file);
std::string_view toml_type(const toml::node& node);  ///< "a table", "a text"

/// The tables of [[key]], none where there are none.
Expected<std::vector<const toml::table*>> toml_tables(const toml::table& root, std::string_view key,
                                                      const std::string& file);
/// The table [key]; it has to be there.
Expected<const toml::table*> toml_table(const toml::table& root, std::string_view key,
                                        const std::string& file);

/// One table of a file. Reads its keys by name and afterwards knows which nobody asked for. What is
/// wrong is said as "FILE:LINE:COLUMN: [name] key: expected …, found …". Table and file name must
/// outlive it.
class TomlSection {
 public:
  TomlSection(const toml::table& table, std::string name, const std::string& file)
      : table_{&table}, name_{std::move(name)}, file_{&file} {}

  /// Each: `otherwise` is what a missing key means; without it the key has to be there.
  Expected<std::int64_t> integer(std::string_view key, std::int64_t low, std::int64_t high,
                                 std::optional<std::int64_t> otherwise = {});
  Expected<bool> boolean(std::string_view key, bool otherwise);
  /// `good` says whether a text will do, `what` in words what does.
  Expected<std::string> text(std::string_view key, const std::string& what,
                             bool (*good)(const std::string&),
                             std::optional<std::string> otherwise = {});
  /// A list of such texts; empty where the key is missing.
  Expected<std::vector<std::string>> texts(std::string_view key, const std::string& what,
                                           bool (*good)(const std::string&));

  /// The error of a value that is fine by itself: "FILE:LINE:COLUMN: [name] key: why".
  [[nodiscard]] Error clash(std::string_view key, const std::string& why) const;
  /// Every key was asked for.
  [[nodiscard]] Expected<void> nothing_else() const;

 private:
  const toml::node* find(std::string_view key);
  [[nodiscard]] Error missing(std::string_view key, const std::string& what) const;
  [[nodiscard]] Error wrong(const toml::node& node, std::string_view key, const std::string& what,
                            const std::string& found) const;

  const toml::table* table_;
  std::string name_;
  const std::string* file_;
  std::set<std::string> known_;
};

/// Kinds of texts, and what they are in words.
bool is_name(const std::string& text);
bool is_endpoint(const std::string& text);
bool is_numeric_address(const std::string& text);
inline constexpr const char* kNameText = "a name: 1 to 63 letters, digits, '.', '_' or '-'";
inline constexpr const char* kEndpointText =
    "a numeric address and port, such as \"192.0.2.1:7400\"";
inline constexpr const char* kAddressText = "a numeric address, such as \"192.0.2.1\"";

}  // namespace csv
