#include "coordinator/volume/catalog_salvage.h"

#include <algorithm>
#include <map>
#include <set>

#include "coordinator/volume/btree_reader.h"
#include "coordinator/volume/catalog_sql.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

using Kind = StoredValue::Kind;
constexpr std::string_view kShared = "shared";

/// Added to a catalog of an earlier program: nobody knows where.
bool is_later(std::string_view table) {
  return table == kShared || table == "suspended" || table == "suspended_files";
}

/// A table as the schema of today has it, and how rows get into it.
class Table {
 public:
  static Expected<Table> look_up(Database& database, const std::string& name,
                                 std::uint32_t usual_root) {
    Table table;
    table.name_ = name;
    table.root_ = usual_root;
    auto sql = "SELECT type,\"notnull\",pk FROM pragma_table_info('" + name + "') ORDER BY cid";
    Statement columns{sql.c_str()};
    auto row = database.use(columns);
    while (CSV_TRY(row.row())) {
      Column column;
      auto type = row.bytes(0);
      column.kind = type == "INTEGER" ? Kind::integer : type == "TEXT" ? Kind::text : Kind::blob;
      // In a STRICT table a primary key is never NULL either.
      column.may_be_null = row.u64(1) == 0 && row.u64(2) == 0;
      table.columns_.push_back(column);
    }
    std::string values;
    for (std::size_t i = 0; i < table.columns_.size(); ++i)
      values += (i > 0 ? "," : "") + (table.columns_[i].kind == Kind::text
                                          ? fmt::format("CAST(?{} AS TEXT)", i + 1)
                                          : fmt::format("?{}", i + 1));
    table.sql_ =
        std::make_unique<std::string>("INSERT OR IGNORE INTO " + name + " VALUES(" + values + ")");
    table.insert_ = std::make_unique<Statement>(table.sql_->c_str());
    return table;
  }

  [[nodiscard]] bool fits(const StoredRow& row) const {
    if (row.size() != columns_.size()) return false;
    for (std::size_t i = 0; i < row.size(); ++i)
      if (row[i].kind != columns_[i].kind &&
          !(row[i].kind == Kind::null && columns_[i].may_be_null))
        return false;
    return true;
  }
  /// Whether rows of it can be told from those of all others by their shape.
  [[nodiscard]] bool has_shape_of_its_own() const {
    auto blob = [](const Column& column) { return column.kind == Kind::blob; };
    return columns_.size() >= 3 && std::any_of(columns_.begin(), columns_.end(), blob);
  }
  /// False: a row with this key (or another unique value of it) stands there already.
  Expected<bool> put(Database& database, const StoredRow& row) {
    std::vector<SqlValue> values;
    for (const auto& value : row) {
      if (value.kind == Kind::null)
        values.emplace_back(nullptr);
      else if (value.kind == Kind::integer)
        values.emplace_back(value.integer);
      else
        values.emplace_back(std::string_view{value.bytes});
    }
    return CSV_TRY(database.run(*insert_, SqlRow{values})) > 0;
  }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::uint32_t usual_root() const { return root_; }

 private:
  struct Column {
    Kind kind = Kind::integer;
    bool may_be_null = false;
  };
  std::string name_;
  std::uint32_t root_ = 0;
  std::vector<Column> columns_;
  std::unique_ptr<std::string> sql_;
  std::unique_ptr<Statement> insert_;
};

Expected<std::vector<Table>> tables_of(Database& database) {
  std::vector<std::pair<std::string, std::uint32_t>> names;
  {
    Statement list{"SELECT name,rootpage FROM sqlite_schema WHERE type='table' ORDER BY rootpage"};
    auto row = database.use(list);
    while (CSV_TRY(row.row())) names.emplace_back(row.bytes(0), row.u32(1));
  }
  std::vector<Table> tables;
  for (const auto& [name, root] : names)
    tables.push_back(CSV_TRY(Table::look_up(database, name, root)));
  return tables;
}

class Salvager {
 public:
  Salvager(CatalogSource& source, Database& into, std::vector<Table> tables)
      : source_{source},
        database_{into},
        tables_{std::move(tables)},
        reader_{[&source](std::uint32_t page) { return source.page(page); }, source.page_count()} {}

  Expected<Salvage> run() {
    find_roots();
    bool whole = true;
    CSV_TRY(database_.execute("BEGIN"));
    for (auto& table : tables_) {
      auto rows = result_.rows;
      bool all = true;
      if (auto root = roots_.find(table.name()); root != roots_.end())
        all = reader_.walk(root->second, [&](StoredRow&& row) { put(table, std::move(row)); });
      else if (is_later(table.name()))
        gone_.insert(table.name());
      else
        result_.losses.push_back(fmt::format("table {} is gone", table.name()));
      if (!all)
        result_.losses.push_back(fmt::format("table {}: pages of it are lost, {} rows were read",
                                             table.name(), result_.rows - rows));
      whole = whole && all;
      if (table.name() == kShared) {
        shares_ = result_.rows > rows;
        shared_is_whole_ = shared_is_whole_ && all && !gone_.contains(table.name());
      }
      CSV_TRY(Expected<void>{failure_});
      CSV_TRY(Expected<void>{source_.health()});
    }
    if (!whole) CSV_TRY(collect_strays());
    CSV_TRY(check_schema());
    CSV_TRY(database_.execute("COMMIT"));
    return std::move(result_);
  }

 private:
  /// From the database's own list; where that is lost, where a new catalog has them, since a root
  /// never moves. Of later tables that says nothing, and what lies there would be taken for theirs.
  void find_roots() {
    bool listed = reader_.walk(1, [&](StoredRow&& row) {
      if (row.size() == 5 && row[0].bytes == "table" && row[3].kind == Kind::integer)
        roots_[row[1].bytes] = static_cast<std::uint32_t>(row[3].integer);
    });
    listed_ = listed && !roots_.empty();
    if (listed_) return;
    result_.losses.push_back("the list of tables (page 1) is damaged");
    for (const auto& table : tables_)
      if (!is_later(table.name())) roots_.emplace(table.name(), table.usual_root());
  }

  void put(Table& table, StoredRow&& row) {
    if (!failure_) return;
    if (!table.fits(row)) {
      shared_is_whole_ = shared_is_whole_ && table.name() != kShared;
      result_.losses.push_back(fmt::format("table {}: a row that has not its shape", table.name()));
      return;
    }
    auto done = table.put(database_, row);
    if (done && !*done && table.name() == "entries") {
      // Its cookie is another's: the repair gives it one of its own.
      row[3].integer = --last_resort_;
      done = table.put(database_, row);
    }
    if (!done)
      failure_ = done.error();
    else if (*done)
      ++result_.rows;
    else {
      shared_is_whole_ = shared_is_whole_ && table.name() != kShared;
      result_.losses.push_back(fmt::format("table {}: two rows with one key", table.name()));
    }
  }

  Expected<void> collect_strays() {
    reader_.see_free_pages();
    std::map<std::string, std::uint64_t> taken;
    reader_.strays([&](std::vector<StoredRow>&& rows) {
      auto* table = table_of(rows);
      if (table == nullptr) return;
      for (auto& row : rows) {
        if (!failure_ || !table->fits(row)) continue;
        auto done = table->put(database_, row);
        if (!done) failure_ = done.error();
        if (done && *done) ++taken[table->name()];
      }
    });
    for (const auto& [name, rows] : taken) {
      result_.rows += rows;
      result_.losses.push_back(fmt::format(
          "table {}: {} rows were found in pages that nothing leads to any more", name, rows));
    }
    return failure_;
  }

  /// The one table that all these rows can be of.
  Table* table_of(const std::vector<StoredRow>& rows) {
    Table* found = nullptr;
    for (auto& table : tables_) {
      auto fits = [&](const StoredRow& row) { return table.fits(row); };
      if (!table.has_shape_of_its_own() || !std::all_of(rows.begin(), rows.end(), fits)) continue;
      if (found != nullptr) return nullptr;
      found = &table;
    }
    return found;
  }

  Expected<void> check_schema() {
    Statement get{"SELECT value FROM kv WHERE key='schema_version'"};
    auto row = database_.use(get);
    bool known = CSV_TRY(row.row());
    if (known && !is_known_schema(row.u64(0)))
      return Error{Errc::refused, fmt::format("the catalog has schema {}, this program knows {}",
                                              row.u64(0), kSchemaVersion)};
    // Made by an earlier program, it never had them.
    bool plain = known && row.u64(0) == kSchemaPlain;
    if (listed_ && !plain)
      for (const auto& name : gone_)
        result_.losses.push_back(fmt::format("table {} is gone", name));
    result_.shared_lost = !shared_is_whole_ && (!plain || shares_);
    return {};
  }

  CatalogSource& source_;
  Database& database_;
  std::vector<Table> tables_;
  BtreeReader reader_;
  std::map<std::string, std::uint32_t> roots_;
  Salvage result_;
  std::int64_t last_resort_ = -1;
  std::set<std::string> gone_;  ///< Of the later tables.
  bool listed_ = true, shared_is_whole_ = true, shares_ = false;
  Expected<void> failure_;
};

}  // namespace

Expected<std::unique_ptr<Database>> create_catalog_file(const std::string& path) {
  auto database = CSV_TRY(Database::open(path.c_str(), nullptr, {.create = true}));
  // It is a working copy: what a crash destroys is made again. Large ones do not fit into memory.
  CSV_TRY(database->execute("PRAGMA synchronous=OFF; PRAGMA cache_spill=ON"));
  CSV_TRY(database->execute(kSchema));
  return database;
}

Expected<Salvage> salvage_catalog(CatalogSource& source, Database& into) {
  auto tables = CSV_TRY(tables_of(into));
  return Salvager{source, into, std::move(tables)}.run();
}

}  // namespace csv::volume
