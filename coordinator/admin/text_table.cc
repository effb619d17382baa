#include "coordinator/admin/text_table.h"

#include <algorithm>
#include <cstdio>

namespace csv::admin {
namespace {

/// Without what only colours it ("ESC [ … m").
std::string plain(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\033')
      at = std::min(text.find('m', at), text.size());
    else
      out += text[at];
  }
  return out;
}

std::size_t width_of(const std::string& text) {
  auto shown = plain(text);
  return static_cast<std::size_t>(
      std::count_if(shown.begin(), shown.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

/// A number, with or without a unit behind it.
bool is_number(const std::string& text) {
  return !text.empty() && text.front() >= '0' && text.front() <= '9' &&
         text.find_first_not_of("0123456789.,% KMGTPEiBdhmins-") == std::string::npos;
}

}  // namespace

TextTable::TextTable(std::vector<std::string> headings) { rows_.push_back(std::move(headings)); }

void TextTable::row(std::vector<std::string> cells) {
  cells.resize(rows_.front().size());
  rows_.push_back(std::move(cells));
}

std::string TextTable::text(std::size_t indent) const {
  auto columns = rows_.front().size();
  std::vector<std::size_t> widths(columns, 0);
  std::vector<bool> right(columns, rows_.size() > 1);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    for (std::size_t column = 0; column < columns; ++column) {
      const auto& cell = rows_[i][column];
      widths[column] = std::max(widths[column], width_of(cell));
      if (i > 0 && !cell.empty() && cell != "-" && !is_number(plain(cell))) right[column] = false;
    }
  }
  std::string out;
  for (const auto& row : rows_) {
    std::string line(indent, ' ');
    for (std::size_t column = 0; column < columns; ++column) {
      std::string gap(widths[column] - width_of(row[column]), ' ');
      line += right[column] ? gap + row[column] : row[column] + gap;
      line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string bytes_text(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value,
                kUnits[unit]);
  return text;
}

std::string duration_text(std::int64_t seconds) {
  seconds = std::max<std::int64_t>(seconds, 0);
  auto with = [](std::int64_t big, const char* unit, std::int64_t small, const char* rest) {
    return std::to_string(big) + unit + (small > 0 ? " " + std::to_string(small) + rest : "");
  };
  if (seconds < 60) return std::to_string(seconds) + " s";
  if (seconds < 3600) return with(seconds / 60, " min", seconds % 60, " s");
  if (seconds < 86'400) return with(seconds / 3600, " h", seconds % 3600 / 60, " min");
  return with(seconds / 86'400, " d", seconds % 86'400 / 3600, " h");
}

}  // namespace csv::admin
