#include "coordinator/volume/btree_reader.h"

#include <algorithm>
#include <cstring>

#include "coordinator/volume/volume_format.h"

namespace csv::volume {
namespace {

constexpr std::size_t kUsable = disk::kPageSize - disk::kPageReserve;
constexpr int kDeepest = 32;
constexpr std::uint64_t kLongestRecord = 64ull << 20;
enum PageType : unsigned {
  interior_index = 2,
  interior_table = 5,
  leaf_index = 10,
  leaf_table = 13,
};

std::uint64_t big_endian(std::span<const std::byte> bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < size; ++i)
    value = (value << 8) | std::to_integer<std::uint64_t>(bytes[at + i]);
  return value;
}

/// SQLite's numbers of 1 to 9 bytes; `at` moves behind it. Nothing beyond the end.
std::optional<std::uint64_t> varint(std::span<const std::byte> bytes, std::size_t& at) {
  std::uint64_t value = 0;
  for (int i = 0; i < 9; ++i) {
    if (at >= bytes.size()) return {};
    auto byte = std::to_integer<std::uint64_t>(bytes[at++]);
    if (i == 8) return (value << 8) | byte;
    value = (value << 7) | (byte & 0x7f);
    if ((byte & 0x80) == 0) return value;
  }
  return {};
}

std::optional<std::size_t> size_of(std::uint64_t serial) {
  constexpr std::size_t kSizes[] = {0, 1, 2, 3, 4, 6, 8, 8, 0, 0};
  if (serial < 10) return kSizes[serial];
  if (serial < 12) return {};
  return (serial - 12) / 2;
}

std::optional<StoredRow> parse(std::span<const std::byte> payload) {
  std::size_t at = 0;
  auto header = varint(payload, at);
  if (!header || *header < at || *header > payload.size()) return {};
  StoredRow row;
  auto body = static_cast<std::size_t>(*header);
  auto types = payload.first(body);
  while (at < types.size()) {
    auto serial = varint(types, at);
    auto size = serial ? size_of(*serial) : std::nullopt;
    if (!size || *size > payload.size() - body) return {};
    StoredValue value;
    using Kind = StoredValue::Kind;
    if (*serial == 0) {
      value.kind = Kind::null;
    } else if (*serial == 8 || *serial == 9) {
      value.kind = Kind::integer;
      value.integer = static_cast<std::int64_t>(*serial - 8);
    } else if (*serial == 7) {
      value.kind = Kind::real;
    } else if (*serial < 7) {
      value.kind = Kind::integer;
      auto bits = big_endian(payload, body, *size);
      auto unused = 64 - 8 * *size;
      value.integer = static_cast<std::int64_t>(bits << unused) >> unused;
    } else {
      value.kind = *serial % 2 == 0 ? Kind::blob : Kind::text;
      value.bytes.assign(reinterpret_cast<const char*>(payload.data() + body), *size);
    }
    body += *size;
    row.push_back(std::move(value));
  }
  if (row.empty()) return {};
  return row;
}

}  // namespace

BtreeReader::BtreeReader(Pages pages, std::uint32_t page_count)
    : pages_{std::move(pages)}, page_count_{page_count}, seen_(page_count + 1ull) {}

bool BtreeReader::first_visit(std::uint32_t page) {
  if (page == 0 || page > page_count_ || seen_[page]) return false;
  seen_[page] = true;
  return true;
}

std::optional<std::vector<std::byte>> BtreeReader::load(std::uint32_t page) {
  auto bytes = pages_(page);
  if (!bytes) {
    ++lost_;
    return {};
  }
  return std::vector<std::byte>{bytes->begin(), bytes->end()};
}

/// The record whose cell begins at `at`: with its overflow pages.
std::optional<StoredRow> BtreeReader::record(std::span<const std::byte> page, std::size_t at,
                                             bool index, bool rowid) {
  auto length = varint(page, at);
  if (!length || *length > kLongestRecord) return {};
  StoredValue id;
  if (rowid) {
    auto number = varint(page, at);
    if (!number) return {};
    id = {StoredValue::Kind::integer, static_cast<std::int64_t>(*number), {}};
  }
  // How much of it lies here: SQLite's file format, 1.6.
  auto most = index ? (kUsable - 12) * 64 / 255 - 23 : kUsable - 35;
  auto least = (kUsable - 12) * 32 / 255 - 23;
  auto here = static_cast<std::size_t>(*length);
  if (here > most) {
    auto some = least + (here - least) % (kUsable - 4);
    here = some <= most ? some : least;
  }
  if (at + here > kUsable) return {};
  std::vector<std::byte> payload{page.begin() + static_cast<std::ptrdiff_t>(at),
                                 page.begin() + static_cast<std::ptrdiff_t>(at + here)};
  if (here < *length) {
    if (at + here + 4 > kUsable) return {};
    auto next = static_cast<std::uint32_t>(big_endian(page, at + here, 4));
    while (payload.size() < *length) {
      if (!first_visit(next)) return {};
      auto more = load(next);
      if (!more) return {};
      auto take = std::min<std::size_t>(*length - payload.size(), kUsable - 4);
      payload.insert(payload.end(), more->begin() + 4,
                     more->begin() + 4 + static_cast<std::ptrdiff_t>(take));
      next = static_cast<std::uint32_t>(big_endian(*more, 0, 4));
    }
  }
  auto row = parse(payload);
  // A column that is the rowid is stored as NULL, and is always the first of ours.
  if (row && rowid && row->front().kind == StoredValue::Kind::null) row->front() = std::move(id);
  return row;
}

/// A page's cells; nothing if this is no page of a tree.
std::optional<std::vector<BtreeReader::Cell>> BtreeReader::cells(std::uint32_t number,
                                                                 std::span<const std::byte> page) {
  std::size_t start = number == 1 ? 100 : 0;
  auto type = std::to_integer<unsigned>(page[start]);
  bool interior = type == interior_index || type == interior_table;
  if (!interior && type != leaf_index && type != leaf_table) return {};
  auto count = big_endian(page, start + 3, 2);
  auto pointers = start + (interior ? 12 : 8);
  if (pointers + 2 * count > kUsable) return {};
  std::vector<Cell> found;
  for (std::uint64_t i = 0; i < count; ++i) {
    auto at = big_endian(page, pointers + 2 * i, 2);
    Cell cell;
    if (at < pointers + 2 * count || at + (interior ? 4 : 0) >= kUsable) {
      cell.whole = false;
      found.push_back(std::move(cell));
      continue;
    }
    if (interior) cell.child = static_cast<std::uint32_t>(big_endian(page, at, 4));
    if (type != interior_table) {
      cell.row = record(page, at + (interior ? 4 : 0), type != leaf_table, type == leaf_table);
      cell.whole = cell.row.has_value();
    }
    found.push_back(std::move(cell));
  }
  if (interior) {
    Cell last;
    last.child = static_cast<std::uint32_t>(big_endian(page, start + 8, 4));
    found.push_back(std::move(last));
  }
  return found;
}

bool BtreeReader::walk(std::uint32_t root, const std::function<void(StoredRow&&)>& row) {
  return walk(root, 0, row);
}

bool BtreeReader::walk(std::uint32_t page, int depth, const std::function<void(StoredRow&&)>& row) {
  if (depth > kDeepest || !first_visit(page)) return false;
  auto bytes = load(page);
  if (!bytes) return false;
  auto found = cells(page, *bytes);
  if (!found) return false;
  bool whole = true;
  for (auto& cell : *found) {
    whole = whole && cell.whole;
    if (cell.child != 0) whole = walk(cell.child, depth + 1, row) && whole;
    if (cell.row) row(std::move(*cell.row));
  }
  return whole;
}

void BtreeReader::see_free_pages() {
  auto first = load(1);
  if (!first) return;
  auto trunk = static_cast<std::uint32_t>(big_endian(*first, 32, 4));
  while (trunk != 0 && first_visit(trunk)) {
    auto bytes = load(trunk);
    if (!bytes) return;
    auto count = std::min<std::uint64_t>(big_endian(*bytes, 4, 4), (kUsable - 8) / 4);
    for (std::uint64_t i = 0; i < count; ++i)
      (void)first_visit(static_cast<std::uint32_t>(big_endian(*bytes, 8 + 4 * i, 4)));
    trunk = static_cast<std::uint32_t>(big_endian(*bytes, 0, 4));
  }
}

void BtreeReader::strays(const std::function<void(std::vector<StoredRow>&&)>& leaf) {
  for (std::uint32_t page = 1; page <= page_count_; ++page) {
    if (seen_[page]) continue;
    auto bytes = pages_(page);
    if (!bytes) continue;
    std::vector<std::byte> copy{bytes->begin(), bytes->end()};
    auto type = std::to_integer<unsigned>(copy[page == 1 ? 100 : 0]);
    if (type != leaf_index && type != leaf_table) continue;
    auto found = cells(page, copy);
    if (!found || found->empty()) continue;
    // Anything else than a page of a tree hardly has only cells that make sense.
    std::vector<StoredRow> rows;
    for (auto& cell : *found)
      if (cell.whole && cell.row) rows.push_back(std::move(*cell.row));
    if (rows.size() * 2 > found->size()) leaf(std::move(rows));
  }
}

}  // namespace csv::volume
