#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "csvfs/base/function.h"

namespace csv::volume {

/// A column of a row as it stands in SQLite's file. Text and blob are both bytes.
struct StoredValue {
  enum class Kind { null, integer, real, text, blob } kind = Kind::null;
  std::int64_t integer = 0;
  std::string bytes;
};
using StoredRow = std::vector<StoredValue>;

/// Reads rows straight out of the pages of an SQLite database (file format 4, pages of 4096 bytes
/// of which 8 are reserved), for the day on which SQLite refuses to: what is damaged is left out,
/// the rest is read. Knows nothing of what the rows mean.
class BtreeReader {
 public:
  /// The page's 4096 bytes, or nothing if it is lost. Valid until the next call.
  using Pages = Function<std::optional<std::span<const std::byte>>(std::uint32_t page)>;
  BtreeReader(Pages pages, std::uint32_t page_count);

  /// Every row of the tree at `root` that can be reached. A first
  /// column that is the rowid has it. False: some of the tree's pages are lost or make no sense.
  bool walk(std::uint32_t root, const std::function<void(StoredRow&&)>& row);
  /// Pages of the free list count as seen.
  void see_free_pages();
  /// The rows of leaves that no walk has seen, a leaf at a time. Such a
  /// leaf is one whose parent is lost; or, if the free list is damaged, one of long ago.
  void strays(const std::function<void(std::vector<StoredRow>&&)>& leaf);

  [[nodiscard]] std::uint64_t lost_pages() const { return lost_; }

 private:
  struct Cell {
    std::uint32_t child = 0;
    std::optional<StoredRow> row;
    bool whole = true;
  };
  bool walk(std::uint32_t page, int depth, const std::function<void(StoredRow&&)>& row);
  std::optional<std::vector<std::byte>> load(std::uint32_t page);
  std::optional<std::vector<Cell>> cells(std::uint32_t number, std::span<const std::byte> page);
  std::optional<StoredRow> record(std::span<const std::byte> page, std::size_t at, bool index,
                                  bool rowid);
  bool first_visit(std::uint32_t page);

  Pages pages_;
  std::uint32_t page_count_;
  std::vector<bool> seen_;
  std::uint64_t lost_ = 0;
};

}  // namespace csv::volume
