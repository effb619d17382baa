#include "coordinator/admin/dump_commands.h"

#include <nlohmann/json.hpp>

#include "coordinator/admin/repair_commands.h"
#include "coordinator/admin/status.h"
#include "coordinator/volume/database.h"
#include "coordinator/volume/superblock.h"
#include "csvfs/base/heartbeat_slot.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;
using volume::Database;
using volume::FoundSuperblock;
using volume::Query;
using volume::Statement;

/// JSON as text for people: a line a value, deeper ones indented; rows of tables on one line.
void print(const Json& json, std::string& out, const std::string& indent) {
  auto line = [](const Json& value) {
    return value.is_string() ? value.get<std::string>()
                             : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  };
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      bool deep = value.is_object() || (value.is_array() && !value.empty() && value[0].is_object());
      out += indent + key + ":" + (deep ? "\n" : " " + line(value) + "\n");
      if (deep) print(value, out, indent + "  ");
    }
  } else {
    for (const auto& each : json) {
      out += indent;
      for (const auto& [key, value] : each.items()) out += key + "=" + line(value) + " ";
      out.back() = '\n';
    }
  }
}

std::string hex(std::string_view bytes) {
  std::string out;
  for (unsigned char c : bytes) out += fmt::format("{:02x}", c);
  return out;
}

Json superblock_json(const FoundSuperblock& found) {
  if (found.state != FoundSuperblock::State::valid) return {{"state", found.what}};
  const auto& info = found.info;
  return {{"state", "valid"},
          {"sequence", info.sequence},
          {"volume_id", volume::to_string(info.id)},
          {"label", info.label},
          {"lun_identity", info.lun_identity},
          {"cluster", info.cluster},
          {"coordinator", raw(info.coordinator)},
          {"epoch", raw(info.epoch)},
          {"coordinator_key", key_text(info.coordinator_key)},
          {"closed_key", key_text(info.closed_key)},
          {"tag", {info.tag.forced, info.tag.epoch, info.tag.sequence}},
          {"formatted_at", static_cast<std::int64_t>(info.formatted_at)},
          {"lun_size", info.lun_size},
          {"slots_offset", info.slots_offset},
          {"wal_offset", info.wal_offset},
          {"wal_size", info.wal_size},
          {"data_offset", info.data_offset},
          {"data_size", info.data_size},
          {"chunks", info.chunks}};
}

Expected<Json> slots_json(iscsi::BlockingLun& lun, const volume::VolumeInfo& info) {
  Json out = Json::array();
  constexpr std::uint64_t kSlots = 256;
  Buffer all{kSlots * kHeartbeatSlotSize};
  CSV_TRY(lun.read(info.slots_offset, all.span()));
  for (std::uint64_t i = 0; i < kSlots; ++i) {
    auto found =
        decode_slot(all.span().subspan(i * kHeartbeatSlotSize, kHeartbeatSlotSize), info.id);
    if (!found && found.error() == std::errc::no_such_file_or_directory) continue;
    Json slot{{"node", i / 4}, {"role", to_text(static_cast<KeyRole>(i % 4))}};
    if (found) {
      slot["key"] = key_text(found->key);
      slot["counter"] = found->counter;
      slot["mode"] = found->mode;
      slot["written_at"] = static_cast<std::int64_t>(found->written_at);
    } else {
      slot["problem"] = found.error().message();
    }
    out.push_back(std::move(slot));
  }
  return out;
}

/// Names are text if they can be; other bytes are written as hexadecimal digits.
Json value_of(Query& row, int column) {
  if (row.is_null(column)) return nullptr;
  if (row.is_integer(column)) return row.i64(column);
  auto bytes = row.bytes(column);
  bool text = bytes.size() <= 255;
  for (unsigned char c : bytes) text = text && c >= ' ' && c != 0x7f;
  if (text) {
    Json as_text = std::string{bytes};
    try {
      (void)as_text.dump();
      return as_text;
    } catch (const Json::exception&) {  // not UTF-8
    }
  }
  return "x'" + hex(bytes) + "'";
}

class CatalogDump {
 public:
  explicit CatalogDump(Database& database) : database_{database} {}

  template <typename... Values>
  Expected<Json> rows(const std::string& sql, const Values&... values) {
    Json out = Json::array();
    Statement statement{sql.c_str()};
    auto row = database_.use(statement, values...);
    while (CSV_TRY(row.row())) {
      Json one = Json::object();
      for (int i = 0; i < row.columns(); ++i) one[std::string{row.name(i)}] = value_of(row, i);
      out.push_back(std::move(one));
    }
    return out;
  }

  Expected<std::vector<std::string>> tables() {
    std::vector<std::string> names;
    Statement list{"SELECT name FROM sqlite_schema WHERE type='table' ORDER BY name"};
    auto row = database_.use(list);
    while (CSV_TRY(row.row())) names.emplace_back(row.bytes(0));
    return names;
  }

  Expected<Json> overview() {
    Json out{{"pages", CSV_TRY(database_.value("PRAGMA page_count"))},
             {"free_pages", CSV_TRY(database_.value("PRAGMA freelist_count"))}};
    for (const auto& name : CSV_TRY(tables()))
      out["rows"][name] = CSV_TRY(database_.value("SELECT count(*) FROM " + name));
    for (const auto& row : CSV_TRY(rows("SELECT key,value FROM kv ORDER BY key")))
      out["numbers"][row["key"].get<std::string>()] = row["value"];
    return out;
  }

  Expected<Json> table(const std::string& wanted) {
    for (const auto& name : CSV_TRY(tables()))
      if (name == wanted) return rows("SELECT * FROM " + name);
    return Error{Errc::refused, "the catalog has no table " + wanted};
  }

  Expected<std::uint64_t> find(const std::string& path) {
    std::uint64_t at = 1;
    for (std::size_t from = 0; from < path.size();) {
      auto end = std::min(path.find('/', from), path.size());
      auto name = std::string_view{path}.substr(from, end - from);
      from = end + 1;
      if (name.empty()) continue;
      Statement look{"SELECT inode FROM entries WHERE parent=?1 AND name=?2"};
      auto row = database_.use(look, at, name);
      if (!CSV_TRY(row.row()))
        return Error{std::errc::no_such_file_or_directory, path + ": no such file"};
      at = row.u64(0);
    }
    return at;
  }

  Expected<Json> inode(std::uint64_t number) {
    auto found = CSV_TRY(rows("SELECT * FROM inodes WHERE id=?1", number));
    if (found.empty())
      return Error{std::errc::no_such_file_or_directory, fmt::format("no inode {}", number)};
    Json out{{"inode", found[0]}};
    out["mode"] = fmt::format("{:o}", found[0]["mode"].get<std::int64_t>());
    out["names"] = CSV_TRY(rows("SELECT parent,name,cookie FROM entries WHERE inode=?1", number));
    out["links"] = CSV_TRY(rows("SELECT parent,count FROM links WHERE inode=?1", number));
    out["orphan"] = !CSV_TRY(rows("SELECT inode FROM orphans WHERE inode=?1", number)).empty();
    out["xattrs"] = CSV_TRY(rows("SELECT name,value FROM xattrs WHERE inode=?1", number));
    out["grants"] = CSV_TRY(rows("SELECT * FROM grants WHERE inode=?1", number));
    out["freeing"] = CSV_TRY(rows("SELECT first,until FROM freeing WHERE inode=?1", number));
    out["extents"] =
        CSV_TRY(rows("SELECT file_block,count,lun_block,grant_id,birth,written_count FROM extents "
                     "WHERE inode=?1 ORDER BY file_block",
                     number));
    return out;
  }

  /// In bytes, one line for each piece in one state.
  Expected<Json> map(std::uint64_t number) {
    Json out = Json::array();
    bool may_share = false;
    for (const auto& name : CSV_TRY(tables())) may_share = may_share || name == "shared";
    Statement look{
        "SELECT file_block,count,lun_block,written_count,written,grant_id FROM extents WHERE "
        "inode=?1 ORDER BY file_block"};
    auto row = database_.use(look, number);
    while (CSV_TRY(row.row())) {
      auto count = row.u64(1), written = row.u64(3);
      auto bits = row.bytes(4);
      auto is_written = [&](std::uint64_t at) {
        if (written == 0 || written == count) return written == count;
        return at / 8 < bits.size() &&
               (static_cast<unsigned char>(bits[at / 8]) >> (at % 8) & 1) != 0;
      };
      for (std::uint64_t at = 0; at < count;) {
        auto end = at + 1;
        while (end < count && is_written(end) == is_written(at)) ++end;
        std::uint64_t named_by = 1;
        if (may_share) {
          auto first = row.u64(2) + at;
          Statement next{
              "SELECT start,length,count FROM shared WHERE start>=coalesce((SELECT max(start) FROM "
              "shared WHERE start<=?1),?1) AND start+length>?1 AND start<?2 "
              "ORDER BY start LIMIT 1"};
          auto range = database_.use(next, first, row.u64(2) + end);
          if (CSV_TRY(range.row())) {
            bool inside = range.u64(0) <= first;
            if (inside) named_by = range.u64(2);
            end = std::min(end, (inside ? range.u64(0) + range.u64(1) : range.u64(0)) - row.u64(2));
          }
        }
        out.push_back({{"file_offset", (row.u64(0) + at) * volume::kBlockSize},
                       {"length", (end - at) * volume::kBlockSize},
                       {"lun_offset", (row.u64(2) + at) * volume::kBlockSize},
                       {"state", is_written(at)    ? "written"
                                 : row.u64(5) != 0 ? "granted"
                                                   : "unwritten"}});
        if (named_by > 1) out.back()["shared_by"] = named_by;
        at = end;
      }
    }
    return out;
  }

 private:
  Database& database_;
};

Expected<void> dump_catalog(Database& database, const DumpRequest& request, Json& out) {
  CatalogDump dump{database};
  if (request.catalog) out["catalog"] = CSV_TRY(dump.overview());
  if (!request.table.empty())
    out["table"] = {{"name", request.table}, {"rows", CSV_TRY(dump.table(request.table))}};
  if (request.inode) out["inode"] = CSV_TRY(dump.inode(*request.inode));
  if (!request.path.empty()) {
    auto inode = CSV_TRY(dump.find(request.path));
    out["path"] = CSV_TRY(dump.inode(inode));
  }
  if (!request.map.empty()) {
    auto inode = CSV_TRY(dump.find(request.map));
    out["map"] = CSV_TRY(dump.map(inode));
  }
  return {};
}

bool wants_catalog(const DumpRequest& request) {
  return request.catalog || !request.table.empty() || request.inode || !request.path.empty() ||
         !request.map.empty();
}

Expected<void> dump_lun(const DumpRequest& request, Json& out) {
  auto opened = CSV_TRY(ToolLun::open(request.lun.url, request.lun.options));
  auto& lun = opened->blocking();
  auto random = Random::from_system();
  auto key = CSV_TRY(TemporaryKey::enter(lun, random));
  auto copies = CSV_TRY(volume::read_superblock_copies(lun));
  if (request.superblock || !(request.slots || wants_catalog(request)))
    out["superblocks"] = {{"A", superblock_json(copies.a)},
                          {"B", superblock_json(copies.b)},
                          {"C", superblock_json(copies.c)}};
  if (!request.slots && !wants_catalog(request)) return {};
  auto info = CSV_TRY(volume::superblock_in_force(lun, copies));
  if (request.slots) out["slots"] = CSV_TRY(slots_json(lun, info));
  if (!wants_catalog(request)) return {};
  auto store =
      CSV_TRY(volume::open_catalog_store(lun, info, random, volume::StoreAccess::read_only));
  auto database = CSV_TRY(Database::open(store->path(), store->vfs(), {.read_only = true}));
  return dump_catalog(*database, request, out);
}

Expected<void> dump_served(const std::string& socket, const DumpRequest& request,
                           Terminal& terminal, Json& out) {
  if (request.slots || request.superblock || !wants_catalog(request))
    return Error{Errc::refused,
                 "superblocks and slots are read from the LUN itself: say its URL in place of the "
                 "volume's name"};
  auto served = CSV_TRY(ask_for_catalog(socket, request.lun.url, terminal));
  auto database =
      CSV_TRY(Database::open(served.file.c_str(), nullptr, {.read_only = true, .frozen = true}));
  return dump_catalog(*database, request, out);
}

}  // namespace

ExitCode dump_volume(const std::string& socket, const DumpRequest& request, Terminal& terminal) {
  Json out = Json::object();
  auto done = is_volume_name(request.lun.url) ? dump_served(socket, request, terminal, out)
                                              : dump_lun(request, out);
  if (!done) {
    terminal.note("csvctl: " + done.error().message());
    return done.error() == Errc::closed ? ExitCode::no_csvd : ExitCode::failed;
  }
  if (request.json) {
    terminal.out(out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    std::string text;
    print(out, text, "");
    terminal.out(text);
  }
  return ExitCode::done;
}

}  // namespace csv::admin
