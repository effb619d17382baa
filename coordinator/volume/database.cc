#include "coordinator/volume/database.h"

#include <sqlite3.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"

namespace csv::volume {

namespace {

Error sqlite_error(int result, sqlite3* db, std::string_view doing) {
  std::string message{doing};
  message += ": ";
  message += db != nullptr ? sqlite3_errmsg(db) : sqlite3_errstr(result);
  switch (result & 0xff) {
    case SQLITE_FULL: return {std::errc::no_space_on_device, std::move(message)};
    case SQLITE_NOMEM: return {std::errc::not_enough_memory, std::move(message)};
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_ERROR:  // our SQL is right, so a table is missing
    case SQLITE_SCHEMA:
    case SQLITE_CONSTRAINT:  // we look before we insert, so a row stands where none may
    case SQLITE_MISMATCH: return {Errc::corrupt, std::move(message)};
    default: return {std::errc::io_error, std::move(message)};
  }
}

}  // namespace

Statement::~Statement() { sqlite3_finalize(prepared_); }

Query::Query(Database& database, Statement& statement)
    : database_{&database}, statement_{&statement} {
  CSV_CHECK(!statement.in_use_);
  statement.in_use_ = true;
  if (statement.prepared_ != nullptr) return;
  auto result = sqlite3_prepare_v3(database.db_, statement.sql_, -1, SQLITE_PREPARE_PERSISTENT,
                                   &statement.prepared_, nullptr);
  if (result != SQLITE_OK) {
    statement.prepared_ = nullptr;
    (void)database.fail(result, statement.sql_);
  }
}

Query::~Query() {
  // Its result repeats the error of the last step, which row() has reported.
  if (statement_->prepared_ != nullptr) sqlite3_reset(statement_->prepared_);
  statement_->in_use_ = false;
}

void Query::bind(int at, std::int64_t value) {
  if (statement_->prepared_ == nullptr) return;
  CSV_CHECK(sqlite3_bind_int64(statement_->prepared_, at, value) == SQLITE_OK);
}
void Query::bind(int at, std::string_view bytes) {
  if (statement_->prepared_ == nullptr) return;
  auto* start = bytes.data() != nullptr ? bytes.data() : "";
  CSV_CHECK(sqlite3_bind_blob64(statement_->prepared_, at, start, bytes.size(), SQLITE_STATIC) ==
            SQLITE_OK);
}
void Query::bind(int at, std::nullptr_t) {
  if (statement_->prepared_ == nullptr) return;
  CSV_CHECK(sqlite3_bind_null(statement_->prepared_, at) == SQLITE_OK);
}

Expected<bool> Query::row() {
  if (statement_->prepared_ == nullptr) return database_->failure_.error();
  auto result = sqlite3_step(statement_->prepared_);
  if (result == SQLITE_ROW) return true;
  if (result == SQLITE_DONE) return false;
  return database_->fail(result, statement_->sql_);
}

std::int64_t Query::i64(int column) const {
  return sqlite3_column_int64(statement_->prepared_, column);
}
bool Query::is_null(int column) const {
  return sqlite3_column_type(statement_->prepared_, column) == SQLITE_NULL;
}
bool Query::is_integer(int column) const {
  return sqlite3_column_type(statement_->prepared_, column) == SQLITE_INTEGER;
}
int Query::columns() const { return sqlite3_column_count(statement_->prepared_); }
std::string_view Query::name(int column) const {
  return sqlite3_column_name(statement_->prepared_, column);
}
std::string_view Query::bytes(int column) const {
  auto* start = static_cast<const char*>(sqlite3_column_blob(statement_->prepared_, column));
  auto length = static_cast<std::size_t>(sqlite3_column_bytes(statement_->prepared_, column));
  return start != nullptr ? std::string_view{start, length} : std::string_view{};
}

Expected<std::unique_ptr<Database>> Database::open(const char* path, const char* vfs,
                                                   Options options) {
  sqlite3* db = nullptr;
  int flags = options.read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
  if (options.create) flags |= SQLITE_OPEN_CREATE;
  std::string name{path};
  if (options.frozen) {
    // Whatever has a meaning in such a name is written as its code.
    name = "file:";
    for (const auto* at = path; *at != '\0'; ++at)
      name += std::isalnum(static_cast<unsigned char>(*at)) != 0 || *at == '/'
                  ? std::string{*at}
                  : fmt::format("%{:02x}", static_cast<unsigned char>(*at));
    name += "?immutable=1";
    flags |= SQLITE_OPEN_URI;
  }
  auto result = sqlite3_open_v2(name.c_str(), &db,
                                flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE, vfs);
  std::unique_ptr<Database> database{new Database{db}};  // closes what was half opened too
  if (result != SQLITE_OK) return sqlite_error(result, db, "opening the catalog");
  sqlite3_extended_result_codes(db, 1);
  int off = 0;
  sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, &off);
  sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, &off);
  sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, &off);
  if (options.create) {
    // The VFS keeps its page checksum there (C5). It must be said before the first page exists.
    int reserved = 8;
    result = sqlite3_file_control(db, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserved);
    if (result != SQLITE_OK) return sqlite_error(result, db, "reserving bytes of each page");
    CSV_TRY(database->execute(
        "PRAGMA page_size=4096; PRAGMA auto_vacuum=NONE; PRAGMA encoding='UTF-8'"));
  }
  CSV_TRY(
      database->execute("PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0; PRAGMA cache_size=-131072;"
                        "PRAGMA cache_spill=OFF; PRAGMA foreign_keys=OFF"));
  if (options.read_only) {
    CSV_TRY(database->execute("PRAGMA query_only=ON"));
    return database;
  }
  {
    Statement mode{"PRAGMA journal_mode=WAL"};
    auto row = database->use(mode);
    if (!CSV_TRY(row.row()) || row.bytes(0) != "wal")
      return Error{Errc::corrupt, "the catalog's database has no write-ahead log"};
  }
  CSV_TRY(database->execute("PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0"));
  sqlite3_wal_hook(
      db,
      [](void* self, sqlite3*, const char*, int frames) {
        static_cast<Database*>(self)->log_frames_ = static_cast<std::uint64_t>(frames);
        return SQLITE_OK;
      },
      database.get());
  return database;
}

Database::~Database() {
  // Fails with SQLITE_BUSY if a statement outlives its database: our own mistake.
  CSV_CHECK(sqlite3_close(db_) == SQLITE_OK);
}

Error Database::fail(int result, const char* doing) {
  auto error = sqlite_error(result, db_, doing);
  if (failure_) failure_ = error;
  return error;
}

Expected<void> Database::execute(const std::string& sql) {
  auto result = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  if (result != SQLITE_OK) return fail(result, sql.c_str());
  return {};
}

Expected<std::int64_t> Database::value(const std::string& sql) {
  Statement statement{sql.c_str()};
  auto query = use(statement);
  if (!CSV_TRY(query.row())) return Error{Errc::corrupt, sql + ": no row"};
  return query.i64(0);
}

bool Database::in_transaction() const { return sqlite3_get_autocommit(db_) == 0; }
std::uint64_t Database::total_changes() const {
  return static_cast<std::uint64_t>(sqlite3_total_changes64(db_));
}
std::uint64_t Database::changes() const {
  return static_cast<std::uint64_t>(sqlite3_changes64(db_));
}

Expected<void> Database::checkpoint() {
  int frames = 0, copied = 0;
  auto result = sqlite3_wal_checkpoint_v2(db_, "main", SQLITE_CHECKPOINT_PASSIVE, &frames, &copied);
  if (result != SQLITE_OK) return fail(result, "checkpoint");
  // Nobody reads while this thread checkpoints, so it copies everything; the next commit then
  // starts the log anew.
  if (frames == copied) log_frames_ = 0;
  return {};
}

Expected<void> Database::empty_log() {
  auto result =
      sqlite3_wal_checkpoint_v2(db_, "main", SQLITE_CHECKPOINT_TRUNCATE, nullptr, nullptr);
  if (result != SQLITE_OK) return fail(result, "emptying the log");
  log_frames_ = 0;
  // SQLite leaves it to the next commit to make that durable.
  sqlite3_file* log = nullptr;
  result = sqlite3_file_control(db_, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log);
  if (result == SQLITE_OK && log != nullptr && log->pMethods != nullptr)
    result = log->pMethods->xSync(log, SQLITE_SYNC_FULL);
  if (result != SQLITE_OK) return fail(result, "emptying the log");
  return {};
}

void Database::gather_changes_of(const char* table) {
  gathered_table_ = table;
  auto note = [](void* self, int, const char*, const char* changed, sqlite3_int64 row) {
    auto& database = *static_cast<Database*>(self);
    if (changed != database.gathered_table_) return;
    auto& rows = database.minor_ ? database.changed_a_little_ : database.changed_;
    // Several times the same one after the other is the usual case.
    if (rows.empty() || rows.back() != row) rows.push_back(row);
  };
  sqlite3_update_hook(db_, note, this);
}

namespace {
std::vector<std::int64_t> each_once(std::vector<std::int64_t> rows) {
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  return rows;
}
}  // namespace

std::vector<std::int64_t> Database::take_changed() {
  return each_once(std::exchange(changed_, {}));
}

std::vector<std::int64_t> Database::take_changed_a_little() {
  return each_once(std::exchange(changed_a_little_, {}));
}

}  // namespace csv::volume
