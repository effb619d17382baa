#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace csv::admin {

/// Rows under headings, in columns as wide as their widest cell. Numbers stand right. Widths are
/// counted in characters, so UTF-8 may be in it.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> headings);
  void row(std::vector<std::string> cells);
  [[nodiscard]] bool empty() const { return rows_.size() == 1; }
  /// Lines ending with a newline, each behind `indent` spaces.
  [[nodiscard]] std::string text(std::size_t indent = 0) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string bytes_text(std::uint64_t bytes);      ///< "1.4 GiB"
std::string duration_text(std::int64_t seconds);  ///< "3 d 4 h", "12 s"

}  // namespace csv::admin
