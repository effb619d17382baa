#pragma once
#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "csvfs/base/error.h"

struct sqlite3;
struct sqlite3_stmt;

namespace csv::volume {

class Database;

/// Values to be bound when what is bound is known at run time only.
using SqlValue = std::variant<std::nullptr_t, std::int64_t, std::string_view>;
struct SqlRow {
  std::span<const SqlValue> values;
};

/// The text of one SQL statement and, from its first use on, its prepared form. Belongs to the one
/// Database it is used with.
class Statement {
 public:
  explicit Statement(const char* sql) : sql_{sql} {}
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  ~Statement();

 private:
  friend class Database;
  friend class Query;
  const char* sql_;
  sqlite3_stmt* prepared_ = nullptr;
  bool in_use_ = false;
};

/// One use of a statement: bound when made, stepped by row(), reset when it goes (C1: a statement
/// left open would keep the log from being restarted). At most one at a time a statement.
class Query {
 public:
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;
  ~Query();

  /// Steps to the next row; false at the end.
  Expected<bool> row();

  // Columns of the current row. Views are valid until the next row().
  [[nodiscard]] std::int64_t i64(int column) const;
  [[nodiscard]] std::uint64_t u64(int column) const {
    return static_cast<std::uint64_t>(i64(column));
  }
  [[nodiscard]] std::uint32_t u32(int column) const {
    return static_cast<std::uint32_t>(i64(column));
  }
  [[nodiscard]] bool is_null(int column) const;
  [[nodiscard]] bool is_integer(int column) const;
  [[nodiscard]] int columns() const;
  [[nodiscard]] std::string_view name(int column) const;
  [[nodiscard]] std::string_view bytes(int column) const;

 private:
  friend class Database;
  Query(Database& database, Statement& statement);
  Query(Database& database, Statement& statement, const SqlRow& row) : Query{database, statement} {
    int at = 0;
    for (const auto& value : row.values) bind_any(++at, value);
  }
  template <typename... Values>
  requires(sizeof...(Values) > 0)
      Query(Database& database, Statement& statement, const Values&... values)
      : Query{database, statement} {
    int at = 0;
    (bind(++at, values), ...);
  }
  void bind(int at, std::int64_t value);
  void bind(int at, std::string_view bytes);
  void bind(int at, std::nullptr_t);
  void bind_any(int at, const SqlValue& value) {
    std::visit([&](const auto& one) { bind(at, one); }, value);
  }
  template <std::unsigned_integral T>
  void bind(int at, T value) {
    bind(at, static_cast<std::int64_t>(value));  // 64 unsigned bits go in and come out unchanged
  }
  template <typename E>
  requires std::is_enum_v<E>
  void bind(int at, E value) { bind(at, static_cast<std::int64_t>(value)); }
  void bind(int at, int value) { bind(at, std::int64_t{value}); }
  void bind(int at, bool value) { bind(at, std::int64_t{value}); }
  template <typename T>
  void bind(int at, const std::optional<T>& value) {
    if (value)
      bind(at, *value);
    else
      bind(at, nullptr);
  }

  Database* database_;
  Statement* statement_;
};

/// An SQLite connection with the options the catalog needs. One thread.
///
/// Byte strings bind as blobs and integers as their 64 bits, so that unsigned values above 2^63
/// keep their identity, though not their order. Bound strings must live as long as the query.
class Database {
 public:
  struct Options {
    bool create = false;
    bool read_only = false;
    /// A file that nobody changes meanwhile: no log and no locks are looked for. Read only.
    bool frozen = false;
  };
  static Expected<std::unique_ptr<Database>> open(const char* path, const char* vfs,
                                                  Options options);
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;
  /// Writes nothing: neither a checkpoint nor a deletion of the log.
  ~Database();

  template <typename... Values>
  Query use(Statement& statement, const Values&... values) {
    return Query{*this, statement, values...};
  }
  /// For statements that return no rows; the number of rows changed.
  template <typename... Values>
  Expected<std::uint64_t> run(Statement& statement, const Values&... values) {
    auto query = use(statement, values...);
    CSV_TRY(query.row());
    return changes();
  }
  /// Any number of statements without parameters, as text.
  Expected<void> execute(const std::string& sql);
  Expected<std::int64_t> value(const std::string& sql);  ///< The first column of the first row.

  /// False once a statement has destroyed the transaction (A12).
  [[nodiscard]] bool in_transaction() const;
  [[nodiscard]] std::uint64_t total_changes() const;
  /// The first error any statement had since the last clear_failure(). Refusals of the catalog are
  /// found by looking, so every error of SQLite's is either the end of the database's pages
  /// (std::errc::no_space_on_device) or the end of this connection.
  [[nodiscard]] const Expected<void>& failure() const { return failure_; }
  void clear_failure() { failure_ = {}; }

  Expected<void> checkpoint();
  /// A complete checkpoint, and then the log is an empty file, durably.
  Expected<void> empty_log();
  /// Bytes of the log that the last commit left, 0 after a complete checkpoint.
  [[nodiscard]] std::uint64_t log_bytes() const { return log_frames_ * 4120; }
  sqlite3* handle() { return db_; }
  /// From now on the row ids of `table` (one with row ids, whose name must outlive this) that
  /// statements insert, update or delete are gathered, those of undone changes too.
  void gather_changes_of(const char* table);
  /// What was gathered since the last call, each once, in order.
  std::vector<std::int64_t> take_changed();
  /// The same of what was changed while a MinorChanges lived.
  std::vector<std::int64_t> take_changed_a_little();
  /// For as long as it lives: what statements change is of less consequence, and gathered apart.
  class MinorChanges {
   public:
    explicit MinorChanges(Database& database) : database_{&database} { database.minor_ = true; }
    MinorChanges(const MinorChanges&) = delete;
    MinorChanges& operator=(const MinorChanges&) = delete;
    ~MinorChanges() { database_->minor_ = false; }

   private:
    Database* database_;
  };

 private:
  friend class Query;
  explicit Database(sqlite3* db) : db_{db} {}
  Error fail(int result, const char* doing);
  [[nodiscard]] std::uint64_t changes() const;

  sqlite3* db_;
  std::uint64_t log_frames_ = 0;
  std::string_view gathered_table_;
  std::vector<std::int64_t> changed_, changed_a_little_;
  bool minor_ = false;
  Expected<void> failure_;
};

}  // namespace csv::volume
