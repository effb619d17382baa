#include "coordinator/volume/catalog_repair.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <utility>

#include "coordinator/volume/acl.h"
#include "coordinator/volume/catalog_sql.h"
#include "coordinator/volume/name_counts.h"
#include "coordinator/volume/volume_format.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

constexpr std::size_t kMostActions = 1000;
/// A number that a reference may name and that was yet not invented by damage.
constexpr std::uint64_t kMostInode = 1ull << 62;
// How much may have been given out between a copy and the volume's loss, with much to spare.
constexpr std::uint64_t kInodesSince = 1ull << 40, kGrantsSince = 1ull << 40;
constexpr std::uint64_t kSessionsSince = 1ull << 24, kKeysSince = 1ull << 28;
constexpr std::uint64_t kMostKeys = 1ull << 38;
constexpr const char* kLostAndFound = "lost+found";

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == name.npos && name.find('\0') == name.npos;
}

class Repairer {
 public:
  Repairer(Database& database, const VolumeInfo& info, const CatalogRepairOptions& options)
      : database_{database},
        info_{info},
        options_{options},
        area_first_{info.data_offset / kBlockSize},
        area_blocks_{info.data_size / kBlockSize} {}

  Expected<CatalogRepair> run() {
    CSV_TRY(database_.execute(kLaterTables));
    CSV_TRY(database_.execute("BEGIN; CREATE INDEX entries_by_inode ON entries(inode)"));
    using Step = Expected<void> (Repairer::*)();
    constexpr Step steps[] = {
        &Repairer::impossible,
        &Repairer::numbers,
        &Repairer::sessions,
        &Repairer::lost_inodes,
        &Repairer::types,
        &Repairer::root,
        &Repairer::presume_shared,  // while grants tell what can be a clone
        &Repairer::free_what_was_being_freed,
        &Repairer::extents,
        &Repairer::shared,
        &Repairer::overlaps,
        &Repairer::count_shared,
        &Repairer::entries,
        &Repairer::attach_lost,
        &Repairer::trees,
        &Repairer::counts,
        &Repairer::homes,
        &Repairer::links,
        &Repairer::xattrs,
        &Repairer::acls,
        &Repairer::copies,
        &Repairer::store_numbers,
    };
    for (auto step : steps) CSV_TRY((this->*step)());
    CSV_TRY(database_.execute("DROP INDEX entries_by_inode; COMMIT"));
    return std::move(result_);
  }

 private:
  template <typename... Args>
  void did(fmt::format_string<Args...> text, Args&&... args) {
    if (result_.actions.size() < kMostActions)
      result_.actions.push_back(fmt::format(text, std::forward<Args>(args)...));
    else
      ++result_.more;
  }
  template <typename F>
  Expected<void> rows(const char* sql, F each) {
    Statement statement{sql};
    auto row = database_.use(statement);
    while (CSV_TRY(row.row())) each(row);
    return {};
  }
  template <typename... Values>
  Expected<std::uint64_t> run(const char* sql, const Values&... values) {
    Statement statement{sql};
    return database_.run(statement, values...);
  }
  Expected<std::vector<std::uint64_t>> list(const char* sql) {
    std::vector<std::uint64_t> out;
    CSV_TRY(rows(sql, [&](Query& row) { out.push_back(row.u64(0)); }));
    return out;
  }

  // --- Numbers ------------------------------------------------------------------------

  /// What nobody can have written on purpose.
  Expected<void> impossible() {
    auto inodes = CSV_TRY(list("SELECT id FROM inodes WHERE id<1 OR id>=(1<<62)"));
    for (auto id : inodes) did("inode {}: there is no such number: it was removed", id);
    CSV_TRY(database_.execute("DELETE FROM inodes WHERE id<1 OR id>=(1<<62)"));
    auto owners =
        CSV_TRY(list("SELECT id FROM inodes WHERE uid NOT BETWEEN 0 AND 4294967295"
                     " OR gid NOT BETWEEN 0 AND 4294967295"));
    for (auto id : owners) did("inode {}: its owner cannot be: it is root's now", id);
    CSV_TRY(
        database_.execute("UPDATE inodes SET uid=0,gid=0,mode=mode&~3072 WHERE uid NOT BETWEEN 0"
                          " AND 4294967295 OR gid NOT BETWEEN 0 AND 4294967295"));
    auto cookies = CSV_TRY(
        list("SELECT id FROM inodes WHERE (mode&61440)=16384 AND NOT next_cookie BETWEEN 3 AND"
             " (1<<62)"));
    for (auto id : cookies) did("directory {}: its cookies are counted anew", id);
    CSV_TRY(
        database_.execute("UPDATE inodes SET next_cookie=3 WHERE (mode&61440)=16384 AND NOT"
                          " next_cookie BETWEEN 3 AND (1<<62)"));
    auto keeps = CSV_TRY(list("SELECT id FROM inodes WHERE keep_beyond_end NOT IN(0,1)"));
    for (auto id : keeps) did("inode {}: what it keeps beyond its end is not kept any more", id);
    CSV_TRY(
        database_.execute("UPDATE inodes SET keep_beyond_end=0 WHERE keep_beyond_end NOT IN(0,1)"));
    // Numbers of which nothing is missed if they are gone.
    auto memory = CSV_TRY(
        run("DELETE FROM kv WHERE (key='key_generation' AND NOT value BETWEEN 0 AND 4294967295)"
            " OR (key='target_losses' AND NOT value BETWEEN 0 AND (1<<62))"));
    if (memory > 0) did("what was known of the target's memory could not be, and was dropped");
    return {};
  }

  Expected<void> numbers() {
    CSV_TRY(rows("SELECT key,value FROM kv",
                 [&](Query& row) { numbers_[std::string{row.bytes(0)}] = row.u64(1); }));
    auto lost = [&](const char* key) { return !numbers_.contains(key); };
    bool any_lost =
        lost("next_inode") || lost("next_session") || lost("next_grant") || lost("next_key");
    auto at_least = [&](const std::string& key, std::uint64_t least) {
      auto known = numbers_.find(key);
      if (known != numbers_.end() && known->second >= least && known->second < kMostInode) return;
      auto to = known == numbers_.end() || known->second < least ? least : kMostInode;
      if (known == numbers_.end())
        did("the number {} was missing: it is {} now", key, to);
      else
        did("the number {} was {}: it is {} now", key, known->second, to);
      numbers_[key] = to;
    };
    auto highest = [&](const char* sql) -> Expected<std::uint64_t> {
      auto found = CSV_TRY(list(sql));
      return found.empty() ? 0 : found.front();
    };
    // References count, too: what is named by one of them has been given out.
    auto inode =
        CSV_TRY(highest("SELECT max(n) FROM (SELECT max(id) n FROM inodes UNION ALL"
                        " SELECT max(inode) FROM entries WHERE inode<(1<<62) UNION ALL"
                        " SELECT max(inode) FROM extents WHERE inode<(1<<62) UNION ALL"
                        " SELECT max(parent) FROM entries WHERE parent<(1<<62))"));
    at_least("next_inode", std::max<std::uint64_t>(inode, raw(kRootInode)) + 1);
    at_least("next_session", CSV_TRY(highest("SELECT max(id) FROM sessions")) + 1);
    at_least("next_grant",
             CSV_TRY(highest("SELECT max(n) FROM (SELECT max(id) n FROM grants UNION ALL"
                             " SELECT max(grant_id) FROM extents WHERE grant_id<(1<<62))")) +
                 1);
    std::uint64_t key = 0;
    CSV_TRY(rows("SELECT key FROM admissions",
                 [&](Query& row) { key = std::max(key, parts_of(Key{row.u64(0)}).number); }));
    at_least("next_key", key + 1);
    at_least("birth", 1);
    // Of what is gone again, or lost, no row tells that its number was given out.
    if (options_.from_copy || options_.log_lost || any_lost) {
      numbers_["next_inode"] += kInodesSince;
      numbers_["next_session"] += kSessionsSince;
      numbers_["next_grant"] += kGrantsSince;
      numbers_["next_key"] += kKeysSince;
      did("the numbers of inodes, sessions, grants and keys go on far above those of the {}",
          options_.from_copy ? "copy" : "rows that are left");
    }
    if (numbers_["next_key"] >= kMostKeys)
      return Error{Errc::refused, "the volume has no numbers for keys left"};
    return {};
  }

  Expected<void> store_numbers() {
    for (const auto* key :
         {"schema_version", "next_inode", "next_session", "next_grant", "next_key", "birth"})
      CSV_TRY(run("INSERT OR REPLACE INTO kv(key,value) VALUES(CAST(?1 AS TEXT),?2)",
                  std::string_view{key}, numbers_[key]));
    return {};
  }

  // --- Sessions -----------------------------------------------------------------------

  /// Nobody uses the volume: whoever had it has been fenced.
  Expected<void> sessions() {
    for (const auto* table :
         {"slots", "admissions", "grants", "sessions", "suspended", "suspended_files"}) {
      auto gone = CSV_TRY(run((std::string{"DELETE FROM "} + table + " WHERE 1").c_str()));
      if (gone > 0 && std::string_view{table} != "slots" &&
          !std::string_view{table}.starts_with("suspended"))
        did("{} {} dropped: nobody uses the volume any more", gone, table);
    }
    return {};
  }

  // --- Inodes -------------------------------------------------------------------------

  Expected<void> make_inode(std::uint64_t id, std::uint32_t mode) {
    std::string_view columns = "INSERT INTO inodes(" CSV_INODE_COLUMNS
                               ",target) VALUES(?1,?2,0,0,0,0,0,0,?3,?3,?3,?3,0,?4,3,0,NULL)";
    CSV_TRY(run(columns.data(), id, mode, options_.now, kRootInode));
    return {};
  }

  /// What somebody refers to as a directory, or what has blocks, was there.
  Expected<void> lost_inodes() {
    auto directories = CSV_TRY(
        list("SELECT DISTINCT e.parent FROM entries e WHERE e.parent>1 AND e.parent<(1<<62) AND"
             " NOT EXISTS(SELECT 1 FROM inodes i WHERE i.id=e.parent)"));
    for (auto id : directories) {
      CSV_TRY(make_inode(id, S_IFDIR | 0700));
      did("directory {}: its inode was lost; it has been made anew", id);
    }
    // What is being freed has no inode any more.
    auto files = CSV_TRY(
        list("SELECT DISTINCT e.inode FROM extents e WHERE e.inode>1 AND e.inode<(1<<62) AND"
             " NOT EXISTS(SELECT 1 FROM inodes i WHERE i.id=e.inode) AND"
             " NOT EXISTS(SELECT 1 FROM freeing f WHERE f.inode=e.inode)"));
    for (auto id : files) {
      CSV_TRY(make_inode(id, S_IFREG | 0600));
      made_files_.insert(id);
      did("file {}: its inode was lost; it has been made anew, of the size of what it has written",
          id);
    }
    return {};
  }

  Expected<void> types() {
    struct Odd {
      std::uint64_t id, mode, size;
      bool target, is_parent, has_blocks;
      std::uint64_t target_size;
    };
    std::vector<Odd> odd;
    CSV_TRY(rows(
        "SELECT id,mode,size,target IS NOT NULL,length(target),"
        " EXISTS(SELECT 1 FROM entries WHERE parent=id),"
        " EXISTS(SELECT 1 FROM extents WHERE inode=id) FROM inodes",
        [&](Query& row) {
          Odd each{row.u64(0),      row.u64(1),      row.u64(2), row.u64(3) != 0,
                   row.u64(5) != 0, row.u64(6) != 0, row.u64(4)};
          auto type = each.mode & S_IFMT;
          bool known = type == S_IFREG || type == S_IFDIR || type == S_IFLNK || type == S_IFCHR ||
                       type == S_IFBLK || type == S_IFIFO || type == S_IFSOCK;
          bool link = type == S_IFLNK;
          if (!known || link != each.target || (link && each.target_size != each.size) ||
              (type == S_IFREG && each.size > kMaxFileBlocks * kBlockSize) || each.mode > 0xffff)
            odd.push_back(each);
        }));
    for (const auto& each : odd) {
      auto type = each.mode & S_IFMT;
      bool known = type == S_IFREG || type == S_IFDIR || type == S_IFLNK || type == S_IFCHR ||
                   type == S_IFBLK || type == S_IFIFO || type == S_IFSOCK;
      // What it has says more than what it calls itself.
      auto now = type;
      if (!known && each.is_parent)
        now = S_IFDIR;
      else if (each.has_blocks && type != S_IFDIR)
        now = S_IFREG;
      else if (!known || (type == S_IFLNK && !each.target))
        now = each.target ? S_IFLNK : S_IFREG;
      if (now != type)
        did("inode {}: mode {:o} becomes {:o}, for what it has", each.id, each.mode,
            now | (each.mode & 07777));
      CSV_TRY(run("UPDATE inodes SET mode=?2,next_cookie=max(next_cookie,3) WHERE id=?1", each.id,
                  now | (each.mode & 07777)));
      if (now == S_IFLNK && each.size != each.target_size) {
        did("inode {}: its size is that of its target again", each.id);
        CSV_TRY(run("UPDATE inodes SET size=length(target) WHERE id=?1", each.id));
      }
      if (now != S_IFLNK && each.target) {
        did("inode {}: a target, which only a symbolic link has, was dropped", each.id);
        CSV_TRY(run("UPDATE inodes SET target=NULL WHERE id=?1", each.id));
      }
      if (now == S_IFREG && (each.size > kMaxFileBlocks * kBlockSize || type == S_IFLNK))
        made_files_.insert(each.id);  // its size follows from what it has written
    }
    return {};
  }

  Expected<void> root() {
    bool good = false, there = false;
    CSV_TRY(rows("SELECT mode,parent FROM inodes WHERE id=1", [&](Query& row) {
      there = true;
      good = S_ISDIR(row.u32(0)) && row.u64(1) == raw(kRootInode);
    }));
    if (good) return {};
    if (!there)
      CSV_TRY(make_inode(raw(kRootInode), S_IFDIR | 0755));
    else
      CSV_TRY(
          run("UPDATE inodes SET parent=1, target=NULL,"
              " mode=CASE WHEN (mode&61440)=16384 THEN mode ELSE 16877 END WHERE id=1"));
    did("the root directory {}",
        there ? "leads to itself again" : "was lost and has been made anew");
    return {};
  }

  // --- Extents ------------------------------------------------------------------------

  Expected<void> put_extent(std::uint64_t inode, const Extent& e) {
    CSV_TRY(run("INSERT OR REPLACE INTO extents(inode," CSV_EXTENT_COLUMNS
                ") VALUES(?1,?2,?3,?4,0,?5,?6,?7)",
                inode, e.file_block, e.count, e.lun_block, e.birth,
                std::uint64_t{e.written.count(0, e.count)}, encode_written(e)));
    return {};
  }
  Expected<void> drop_extent(std::uint64_t inode, std::uint64_t file_block) {
    CSV_TRY(run("DELETE FROM extents WHERE inode=?1 AND file_block=?2", inode, file_block));
    return {};
  }

  Expected<void> free_what_was_being_freed() {
    struct Span {
      std::uint64_t inode, first, until;
    };
    std::vector<Span> spans;
    CSV_TRY(rows("SELECT inode,first,until FROM freeing", [&](Query& row) {
      spans.push_back({row.u64(0), row.u64(1), row.u64(2)});
    }));
    for (const auto& span : spans) {
      if (span.first >= span.until || span.until > kMaxFileBlocks) {
        did("inode {}: a span to be freed, {} to {}, made no sense and was dropped", span.inode,
            span.first, span.until);
        continue;
      }
      std::vector<Extent> hit;
      {
        Statement look{"SELECT " CSV_EXTENT_COLUMNS
                       " FROM extents WHERE inode=?1 AND file_block<?3 AND file_block+count>?2"};
        auto row = database_.use(look, span.inode, span.first, span.until);
        while (CSV_TRY(row.row())) hit.push_back(read_extent(row, 0));
      }
      for (const auto& extent : hit) {
        CSV_TRY(drop_extent(span.inode, extent.file_block));
        if (extent.count == 0 || extent.count > kWindowBlocks) continue;
        if (extent.file_block < span.first)
          CSV_TRY(put_extent(span.inode, cut(extent, extent.file_block, span.first)));
        if (extent.end() > span.until)
          CSV_TRY(put_extent(span.inode, cut(extent, span.until, extent.end())));
      }
    }
    if (!spans.empty()) {
      did("{} spans of files that were being freed are free", spans.size());
      CSV_TRY(database_.execute("DELETE FROM freeing"));
    }
    if (auto dying = CSV_TRY(run("DELETE FROM dying WHERE 1")); dying > 0)
      did("{} dying runs are free", dying);
    return {};
  }

  /// An extent row as it should be: pieces, or none.
  struct Fix {
    std::uint64_t inode = 0, file_block = 0;
    std::uint64_t into = 0;  ///< The inode that has it then.
    std::vector<Extent> pieces;
  };

  Expected<void> extents() {
    std::vector<Fix> fixes;
    std::map<std::uint64_t, std::uint64_t> moved;  // from an inode that is no file to a new one
    std::uint64_t last_inode = 0, last_end = 0;
    CSV_TRY(rows("SELECT e.inode," CSV_EXTENT_COLUMNS
                 ",i.mode,i.size FROM extents e LEFT JOIN inodes i ON i.id=e.inode"
                 " ORDER BY e.inode,e.file_block",
                 [&](Query& row) {
                   auto inode = row.u64(0);
                   if (inode != last_inode) last_end = 0;
                   last_inode = inode;
                   auto extent = read_extent(row, 1);
                   Fix fix{inode, extent.file_block, inode, {}};
                   auto where = fmt::format("inode {}, file block {}", inode, extent.file_block);
                   auto mode = row.u32(8);
                   if (row.is_null(8)) {
                     did("{}: blocks of an inode that cannot be were dropped", where);
                     fixes.push_back(fix);
                     return;
                   }
                   if (!S_ISREG(mode)) {
                     auto [at, first] = moved.try_emplace(inode, numbers_["next_inode"]);
                     if (first) {
                       ++numbers_["next_inode"];
                       did("inode {}: blocks of what is no regular file go to a new file, {}",
                           inode, at->second);
                     }
                     fix.into = at->second;
                   }
                   bool changed = fix.into != inode;
                   std::optional<std::size_t> bitmap_size;
                   if (!row.is_null(7)) bitmap_size = row.bytes(7).size();
                   // Of what has no size of its own nothing lies beyond the end.
                   auto size = S_ISREG(mode) && !made_files_.contains(inode)
                                   ? row.u64(9)
                                   : kMaxFileBlocks * kBlockSize;
                   fix.pieces =
                       straighten(where, extent, row.u64(6), bitmap_size, size, last_end, changed);
                   if (!fix.pieces.empty()) last_end = fix.pieces.back().end();
                   if (changed) fixes.push_back(std::move(fix));
                 }));
    for (auto [from, to] : moved) {
      CSV_TRY(make_inode(to, S_IFREG | 0600));
      made_files_.insert(to);
    }
    for (const auto& fix : fixes) CSV_TRY(drop_extent(fix.inode, fix.file_block));
    for (const auto& fix : fixes)
      for (const auto& piece : fix.pieces) CSV_TRY(put_extent(fix.into, piece));
    return {};
  }

  std::vector<Extent> straighten(const std::string& where, Extent extent,
                                 std::uint64_t written_count,
                                 std::optional<std::size_t> bitmap_size, std::uint64_t size,
                                 std::uint64_t last_end, bool& changed) {
    if (extent.count == 0 || extent.count > kWindowBlocks || extent.file_block >= kMaxFileBlocks ||
        extent.end() > kMaxFileBlocks) {
      did("{}: an extent of {} blocks cannot lie there and was dropped", where, extent.count);
      changed = true;
      return {};
    }
    // Which blocks are written. If in doubt they are not: zeros, and never what another file had.
    auto counted = extent.written.count(0, extent.count);
    bool partly = written_count > 0 && written_count < extent.count;
    bool sized = bitmap_size && *bitmap_size == (extent.count + 7) / 8;
    if (extent.written.count(extent.count, kWindowBlocks - extent.count) > 0 ||
        counted != written_count || partly != bitmap_size.has_value() || (partly && !sized)) {
      if (!sized) extent.written = Written{};
      extent.written.set(extent.count, kWindowBlocks - extent.count, false);
      did("{}: its bitmap and its count of {} written blocks differ: {} count as written", where,
          written_count, extent.written.count(0, extent.count));
      changed = true;
    }
    if (extent.birth == 0 || extent.birth > numbers_["birth"]) {
      did("{}: born at {}, which has not been: now at {}", where, extent.birth, numbers_["birth"]);
      extent.birth = numbers_["birth"];
      changed = true;
    }
    auto file_end = std::min((size + kBlockSize - 1) / kBlockSize, kMaxFileBlocks);
    auto beyond = std::clamp(file_end, extent.file_block, extent.end()) - extent.file_block;
    if (extent.written.count(beyond, extent.count - beyond) > 0) {
      did("{}: what is written beyond the end of the file counts as unwritten", where);
      extent.written.set(beyond, extent.count - beyond, false);
      changed = true;
    }
    std::vector<Extent> pieces{extent};
    auto replace = [&](auto each) {
      std::vector<Extent> next;
      for (const auto& piece : pieces) each(piece, next);
      pieces = std::move(next);
      changed = true;
    };
    if (extent.file_block < last_end) {
      did("{}: it overlaps the extent before it, and gave way", where);
      replace([&](const Extent& piece, auto& next) {
        if (piece.end() > last_end) next.push_back(cut(piece, last_end, piece.end()));
      });
    }
    auto area_end = area_first_ + area_blocks_;
    if (extent.lun_block < area_first_ || extent.lun_block > area_end - extent.count) {
      did("{}: LUN blocks {} to {} are outside the data area, and count as a hole", where,
          extent.lun_block, extent.lun_block + extent.count);
      replace([&](const Extent& piece, auto& next) {
        if (piece.lun_block >= area_end || piece.lun_block + piece.count <= area_first_) return;
        auto head = std::max(piece.lun_block, area_first_) - piece.lun_block;
        auto tail = std::min(piece.lun_block + piece.count, area_end) - piece.lun_block;
        next.push_back(cut(piece, piece.file_block + head, piece.file_block + tail));
      });
    }
    if (extent.file_block / kWindowBlocks != (extent.end() - 1) / kWindowBlocks) {
      did("{}: an extent over the edge of a window was split", where);
      replace([&](const Extent& piece, auto& next) {
        for (auto at = piece.file_block; at < piece.end();) {
          auto end = std::min((at / kWindowBlocks + 1) * kWindowBlocks, piece.end());
          next.push_back(cut(piece, at, end));
          at = end;
        }
      });
    }
    // Granted space was its session's: what it has not committed is nobody's.
    if (extent.grant != GrantId{}) {
      replace([&](const Extent& piece, auto& next) {
        for (std::size_t at = 0; at < piece.count;) {
          at = piece.written.next(true, at, piece.count);
          auto end = piece.written.next(false, at, piece.count);
          if (at < end) next.push_back(cut(piece, piece.file_block + at, piece.file_block + end));
          at = end;
        }
      });
      for (auto& piece : pieces) piece.grant = GrantId{};
    }
    return pieces;
  }

  // --- What files share ---------------------------------------------------------------

  /// Of [first, end) what the ranges have, cut to it.
  static std::vector<SharedRange> within(const std::vector<SharedRange>& ranges,
                                         std::uint64_t first, std::uint64_t end) {
    auto behind = [](const SharedRange& range, std::uint64_t at) { return range.end() <= at; };
    std::vector<SharedRange> found;
    for (auto at = std::lower_bound(ranges.begin(), ranges.end(), first, behind);
         at != ranges.end() && at->start < end; ++at) {
      auto from = std::max(first, at->start), to = std::min(end, at->end());
      found.push_back({from, to - from, at->count});
    }
    return found;
  }

  /// Where notes of what is shared are lost, a clone looks like damage. Holes would destroy clones
  /// by the score, and sharing what is no clone destroys nothing: nobody writes to it any more.
  /// Only written blocks without a grant are ever shared.
  Expected<void> presume_shared() {
    if (!options_.shared_lost) return {};
    std::vector<SharedRange> twice;
    CSV_TRY(for_each_named(database_, [&](const SharedRange& named) {
      if (named.count > 1) twice.push_back(named);
    }));
    std::map<std::uint64_t, std::int64_t> names;  // how many more, or fewer, from there on
    CSV_TRY(for_each_written(twice, [&](std::uint64_t, const SharedRange& part) {
      ++names[part.start];
      --names[part.end()];
    }));
    std::int64_t now = 0;
    std::uint64_t from = 0;
    for (auto [at, change] : names) {
      bool was = now > 1;
      now += change;
      if (!was && now > 1) from = at;
      if (was && now <= 1) presumed_.push_back({from, at - from, 0});
    }
    std::map<std::uint64_t, std::uint64_t> files;
    CSV_TRY(for_each_written(presumed_, [&](std::uint64_t inode, const SharedRange& part) {
      files[inode] += part.length;
    }));
    for (auto [inode, blocks] : files)
      did("inode {}: {} of its blocks have another name, and notes of what files share are lost: "
          "they count as shared. If they never were, one of the files shows what the other wrote",
          inode, blocks);
    return {};
  }

  /// Calls `tell(inode, part)` for the written parts within `ranges` of extents without a grant.
  template <typename F>
  Expected<void> for_each_written(const std::vector<SharedRange>& ranges, F tell) {
    auto look = [&](Query& row) {
      auto extent = read_extent(row, 1);
      if (extent.count == 0 || extent.count > kWindowBlocks || extent.lun_block < area_first_ ||
          extent.lun_block - area_first_ >= area_blocks_)
        return;
      auto first = extent.lun_block;
      for (const auto& range : within(ranges, first, first + extent.count)) {
        auto at = range.start - first, end = at + range.length;
        while ((at = extent.written.next(true, at, end)) < end) {
          auto stop = extent.written.next(false, at, end);
          tell(row.u64(0), SharedRange{first + at, stop - at, 0});
          at = stop;
        }
      }
    };
    if (ranges.empty()) return {};
    return rows("SELECT inode," CSV_EXTENT_COLUMNS " FROM extents WHERE grant_id=0", look);
  }

  /// That blocks are noted as shared is what tells a clone from damage; their count follows from
  /// the extents. What the catalog itself has nobody shares.
  Expected<void> shared() {
    std::vector<SharedRange> all;
    CSV_TRY(rows("SELECT start,length FROM shared", [&](Query& row) {
      auto from = std::max<std::int64_t>(row.i64(0), static_cast<std::int64_t>(area_first_));
      auto most = static_cast<std::int64_t>(area_first_ + area_blocks_);
      if (row.i64(0) < 0 || row.i64(0) >= most || row.i64(1) <= 0 || row.i64(1) > most) return;
      auto to = std::min(row.i64(0) + row.i64(1), most);
      if (from < to)
        all.push_back({static_cast<std::uint64_t>(from), static_cast<std::uint64_t>(to - from), 0});
    }));
    for (auto range : presumed_) {
      range.length = std::min(range.end(), area_first_ + area_blocks_) - range.start;
      all.push_back(range);
    }
    std::sort(all.begin(), all.end(),
              [](const auto& a, const auto& b) { return a.start < b.start; });
    std::vector<SharedRange> noted;
    for (const auto& range : all) {
      auto from = noted.empty() ? range.start : std::max(range.start, noted.back().end());
      if (from < range.end()) noted.push_back({from, range.end() - from, 0});
    }
    std::vector<std::uint64_t> chunks;
    for (auto at : info_.chunks) chunks.push_back(at / kBlockSize);
    std::sort(chunks.begin(), chunks.end());
    for (auto range : noted) {
      for (auto chunk : chunks) {
        auto end = range.end(), chunk_end = chunk + kChunkSize / kBlockSize;
        if (chunk >= end || chunk_end <= range.start) continue;
        if (chunk > range.start) shared_.push_back({range.start, chunk - range.start, 0});
        range.start = std::min(end, chunk_end);
        range.length = end - range.start;
      }
      if (range.length > 0) shared_.push_back(range);
    }
    if (shared_.empty()) return {};
    return only_written_is_shared();
  }

  /// Unwritten space is written where it is: nobody may share it.
  Expected<void> only_written_is_shared() {
    std::vector<SharedRange> named_twice;
    CSV_TRY(for_each_named(database_, [&](const SharedRange& named) {
      if (named.count < 2) return;
      for (const auto& range : within(shared_, named.start, named.end()))
        named_twice.push_back(range);
    }));
    std::vector<Loss> losses;
    CSV_TRY(rows("SELECT inode," CSV_EXTENT_COLUMNS " FROM extents", [&](Query& row) {
      auto extent = read_extent(row, 1);
      for (const auto& range :
           within(named_twice, extent.lun_block, extent.lun_block + extent.count)) {
        auto at = range.start - extent.lun_block, end = at + range.length;
        while ((at = extent.written.next(false, at, end)) < end) {
          auto stop = extent.written.next(true, at, end);
          did("inode {}, file blocks {} to {}: shared and not written: they are a hole now",
              row.u64(0), extent.file_block + at, extent.file_block + stop);
          losses.push_back(
              {row.u64(0), extent.file_block, extent.file_block + at, extent.file_block + stop});
          at = stop;
        }
      }
    }));
    return lose(losses);
  }

  /// Blocks that an extent has no more.
  struct Loss {
    std::uint64_t inode = 0, extent = 0;  ///< The extent by where it begins.
    std::uint64_t first = 0, end = 0;     ///< In the file.
    auto operator<=>(const Loss&) const = default;
  };
  Expected<void> lose(std::vector<Loss>& losses) {
    std::sort(losses.begin(), losses.end());
    for (auto loss = losses.begin(); loss != losses.end();) {
      auto inode = loss->inode, start = loss->extent;
      Extent extent;
      {
        Statement look{"SELECT " CSV_EXTENT_COLUMNS
                       " FROM extents WHERE inode=?1 AND file_block=?2"};
        auto row = database_.use(look, inode, start);
        if (!CSV_TRY(row.row())) return Error{Errc::corrupt, "an extent vanished"};
        extent = read_extent(row, 0);
      }
      CSV_TRY(drop_extent(inode, start));
      auto at = extent.file_block;
      for (; loss != losses.end() && loss->inode == inode && loss->extent == start; ++loss) {
        if (loss->first > at) CSV_TRY(put_extent(inode, cut(extent, at, loss->first)));
        at = std::max(at, loss->end);
      }
      if (at < extent.end()) CSV_TRY(put_extent(inode, cut(extent, at, extent.end())));
    }
    return {};
  }

  /// After all disputes: whatever two extents name was noted as shared.
  Expected<void> count_shared() {
    std::vector<SharedRange> before, now;
    CSV_TRY(rows("SELECT start,length,count FROM shared ORDER BY start", [&](Query& row) {
      before.push_back({row.u64(0), row.u64(1), row.u64(2)});
    }));
    CSV_TRY(for_each_named(database_, [&](const SharedRange& named) {
      if (named.count > 1) now.push_back(named);
    }));
    numbers_["schema_version"] = now.empty() ? kSchemaPlain : kSchemaVersion;
    if (before == now) return {};
    did("the notes of what files share, {} ranges, were made anew: {} ranges", before.size(),
        now.size());
    CSV_TRY(database_.execute("DELETE FROM shared"));
    Statement insert{"INSERT INTO shared(start,length,count) VALUES(?1,?2,?3)"};
    for (const auto& range : now)
      CSV_TRY(database_.run(insert, range.start, range.length, range.count));
    return {};
  }

  /// A claim to LUN blocks that nobody shares.
  struct Claim {
    std::uint64_t first = 0, end = 0;     ///< On the LUN.
    std::uint64_t inode = 0, extent = 0;  ///< The extent by where it begins in the file,
    std::uint64_t file_block = 0;         ///< and where in the file the claim begins.
    bool catalog = false;
  };

  Expected<void> overlaps() {
    std::vector<Claim> reserved;
    for (auto at : info_.chunks)
      reserved.push_back({at / kBlockSize, (at + kChunkSize) / kBlockSize, 0, 0, 0, true});
    std::sort(reserved.begin(), reserved.end(), [](auto& a, auto& b) { return a.first < b.first; });
    std::vector<std::vector<Claim>> disputes;
    std::vector<Claim> open;
    std::uint64_t open_end = 0;
    auto next_reserved = reserved.begin();
    auto take = [&](const Claim& claim) {
      if (claim.first >= open_end) {
        if (open.size() > 1) disputes.push_back(std::move(open));
        open.clear();
      }
      open_end = std::max(open_end, claim.end);
      open.push_back(claim);
    };
    // By where they begin: those of one extent come after those of the next, if it begins later.
    std::vector<Claim> waiting;
    auto later = [](const Claim& a, const Claim& b) { return a.first > b.first; };
    auto take_until = [&](std::uint64_t first) {
      while (!waiting.empty() && waiting.front().first <= first) {
        std::pop_heap(waiting.begin(), waiting.end(), later);
        auto claim = waiting.back();
        waiting.pop_back();
        for (; next_reserved != reserved.end() && next_reserved->first <= claim.first;
             ++next_reserved)
          take(*next_reserved);
        take(claim);
      }
    };
    CSV_TRY(rows(
        "SELECT inode,file_block,lun_block,count FROM extents ORDER BY lun_block", [&](Query& row) {
          Claim all{row.u64(2), row.u64(2) + row.u64(3), row.u64(0), row.u64(1), row.u64(1), false};
          auto part = [&](std::uint64_t first, std::uint64_t end) {
            if (first >= end) return;
            waiting.push_back(
                {first, end, all.inode, all.extent, all.file_block + (first - all.first), false});
            std::push_heap(waiting.begin(), waiting.end(), later);
          };
          take_until(all.first);
          auto at = all.first;
          for (const auto& range : within(shared_, all.first, all.end)) {
            part(at, range.start);
            at = range.end();
          }
          part(at, all.end);
        }));
    take_until(UINT64_MAX);
    for (; next_reserved != reserved.end(); ++next_reserved) take(*next_reserved);
    if (open.size() > 1) disputes.push_back(std::move(open));
    std::vector<Loss> losses;
    for (auto& dispute : disputes) CSV_TRY(settle(dispute, losses));
    return lose(losses);
  }

  /// The catalog keeps what it has; of files the one changed last: a block that was freed and
  /// given out again belongs to whoever got it later.
  Expected<void> settle(std::vector<Claim>& dispute, std::vector<Loss>& losses) {
    struct Ranked {
      Claim claim;
      std::int64_t ctime = 0;
    };
    std::vector<Ranked> ranked;
    for (const auto& claim : dispute) {
      Ranked each{claim, INT64_MAX};
      if (!claim.catalog) {
        Statement look{"SELECT ctime FROM inodes WHERE id=?1"};
        auto row = database_.use(look, claim.inode);
        if (CSV_TRY(row.row())) each.ctime = row.i64(0);
      }
      ranked.push_back(each);
    }
    std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
      if (a.claim.catalog != b.claim.catalog) return a.claim.catalog;
      return std::tie(a.ctime, a.claim.inode, a.claim.file_block) >
             std::tie(b.ctime, b.claim.inode, b.claim.file_block);
    });
    std::vector<Claim> kept;
    for (const auto& [claim, ctime] : ranked) {
      std::vector<Claim> left{claim};
      for (const auto& winner : kept) {
        if (claim.catalog) break;
        std::vector<Claim> next;
        for (const auto& piece : left) {
          auto first = std::max(piece.first, winner.first);
          auto end = std::min(piece.end, winner.end);
          if (first >= end) {
            next.push_back(piece);
            continue;
          }
          auto from = piece.file_block + (first - piece.first);
          auto to = from + (end - first);
          did("inode {}, file blocks {} to {}: their LUN blocks, {} to {}, belong to {}; they are "
              "a "
              "hole now and read as zeros",
              claim.inode, from, to, first, end,
              winner.catalog ? std::string{"the catalog"}
                             : fmt::format("inode {}, which was changed later", winner.inode));
          losses.push_back({claim.inode, claim.extent, from, to});
          auto head = piece, tail = piece;
          head.end = first;
          tail.first = end;
          tail.file_block = to;
          if (head.first < head.end) next.push_back(head);
          if (tail.first < tail.end) next.push_back(tail);
        }
        left = std::move(next);
      }
      kept.insert(kept.end(), left.begin(), left.end());
    }
    return {};
  }

  // --- Names --------------------------------------------------------------------------

  Expected<std::uint64_t> next_cookie(std::uint64_t directory) {
    CSV_TRY(
        run("UPDATE inodes SET next_cookie=max(next_cookie,3,"
            "coalesce((SELECT max(cookie)+1 FROM entries WHERE parent=?1),3))+1 WHERE id=?1",
            directory));
    Statement look{"SELECT next_cookie FROM inodes WHERE id=?1"};
    auto row = database_.use(look, directory);
    if (!CSV_TRY(row.row())) return Error{Errc::corrupt, "a directory vanished"};
    return row.u64(0) - 1;
  }

  Expected<void> remove_entry(std::uint64_t parent, const std::string& name) {
    CSV_TRY(run("DELETE FROM entries WHERE parent=?1 AND name=?2", parent, std::string_view{name}));
    return {};
  }

  Expected<void> entries() {
    struct Wrong {
      std::uint64_t parent = 0;
      std::string name;
      std::uint64_t inode = 0;
      bool gone = false;
    };
    std::vector<Wrong> wrong;
    std::map<std::uint64_t, std::uint64_t> last_cookie;  // of directories whose count is behind
    CSV_TRY(
        rows("SELECT e.parent,e.name,e.inode,e.cookie,p.mode,p.next_cookie,i.mode FROM entries e"
             " LEFT JOIN inodes p ON p.id=e.parent LEFT JOIN inodes i ON i.id=e.inode",
             [&](Query& row) {
               Wrong each{row.u64(0), std::string{row.bytes(1)}, row.u64(2), true};
               auto where = fmt::format("entry \"{}\" of directory {}", each.name, each.parent);
               auto cookie = row.i64(3);
               if (row.is_null(4) || !S_ISDIR(row.u32(4)))
                 did("{}: there is no such directory: the entry was removed", where);
               else if (row.is_null(6))
                 did("{}: inode {} does not exist: the entry was removed", where, each.inode);
               else if (!is_name(each.name))
                 did("{}: not a name: the entry was removed", where);
               else if (each.inode == raw(kRootInode))
                 did("{}: an entry for the root: it was removed", where);
               else if (cookie < 3 || cookie >= static_cast<std::int64_t>(kMostInode))
                 each.gone = false;
               else {
                 if (cookie >= row.i64(5)) {
                   auto& last = last_cookie[each.parent];
                   last = std::max(last, static_cast<std::uint64_t>(cookie));
                 }
                 return;
               }
               wrong.push_back(std::move(each));
             }));
    for (const auto& each : wrong)
      if (each.gone) CSV_TRY(remove_entry(each.parent, each.name));
    for (auto [directory, last] : last_cookie) {
      did("directory {}: its cookies go on from {}", directory, last + 1);
      CSV_TRY(run("UPDATE inodes SET next_cookie=?2 WHERE id=?1", directory, last + 1));
    }
    for (const auto& each : wrong) {
      if (each.gone) continue;
      auto cookie = CSV_TRY(next_cookie(each.parent));
      did("entry \"{}\" of directory {} got a cookie of its own", each.name, each.parent);
      CSV_TRY(run("UPDATE entries SET cookie=?3 WHERE parent=?1 AND name=?2", each.parent,
                  std::string_view{each.name}, cookie));
    }
    return single_names();
  }

  /// A directory has one name: that in the directory it calls its parent, if it has one there.
  Expected<void> single_names() {
    struct Name {
      std::uint64_t inode, parent, home;
      std::string name;
    };
    std::vector<Name> names;
    CSV_TRY(
        rows("SELECT e.inode,e.parent,i.parent,e.name FROM entries e JOIN inodes i ON i.id=e.inode"
             " WHERE (i.mode&61440)=16384 AND (SELECT count(*) FROM entries o WHERE"
             " o.inode=e.inode)>1 ORDER BY e.inode, e.parent<>i.parent, e.parent, e.name",
             [&](Query& row) {
               names.push_back({row.u64(0), row.u64(1), row.u64(2), std::string{row.bytes(3)}});
             }));
    std::uint64_t kept = 0;
    for (const auto& each : names) {
      if (each.inode != kept) {
        kept = each.inode;
        continue;
      }
      did("directory {} had several names: \"{}\" in directory {} was removed", each.inode,
          each.name, each.parent);
      CSV_TRY(remove_entry(each.parent, each.name));
    }
    return {};
  }

  Expected<std::uint64_t> lost_and_found() {
    if (lost_and_found_ != 0) return lost_and_found_;
    std::string name = kLostAndFound;
    for (int i = 1;; ++i) {
      Statement look{
          "SELECT e.inode,i.mode FROM entries e LEFT JOIN inodes i ON i.id=e.inode"
          " WHERE e.parent=1 AND e.name=?1"};
      auto row = database_.use(look, std::string_view{name});
      if (!CSV_TRY(row.row())) break;
      if (S_ISDIR(row.u32(1))) return lost_and_found_ = row.u64(0);
      name = fmt::format("{}-{}", kLostAndFound, i);
    }
    auto id = numbers_["next_inode"]++;
    CSV_TRY(make_inode(id, S_IFDIR | 0700));
    CSV_TRY(add_entry(raw(kRootInode), name, id));
    did("made /{}", name);
    return lost_and_found_ = id;
  }

  Expected<void> add_entry(std::uint64_t parent, const std::string& name, std::uint64_t inode) {
    auto cookie = CSV_TRY(next_cookie(parent));
    CSV_TRY(run("INSERT INTO entries(parent,name,inode,cookie) VALUES(?1,?2,?3,?4)", parent,
                std::string_view{name}, inode, cookie));
    CSV_TRY(run("UPDATE inodes SET parent=?2 WHERE id=?1", inode, parent));
    return {};
  }

  Expected<void> attach(std::uint64_t inode) {
    auto folder = CSV_TRY(lost_and_found());
    auto name = fmt::format("#{}", inode);
    for (int i = 1;; ++i) {
      Statement look{"SELECT 1 FROM entries WHERE parent=?1 AND name=?2"};
      auto row = database_.use(look, folder, std::string_view{name});
      if (!CSV_TRY(row.row())) break;
      name = fmt::format("#{}-{}", inode, i);
    }
    CSV_TRY(add_entry(folder, name, inode));
    did("inode {} had no name: it is lost+found/{} now", inode, name);
    return {};
  }

  /// Orphans are inodes whose last name was removed, on purpose. Whatever else has no name lost it.
  Expected<void> attach_lost() {
    auto no_inode = CSV_TRY(
        run("DELETE FROM orphans WHERE NOT EXISTS(SELECT 1 FROM inodes WHERE id=orphans.inode)"));
    if (no_inode > 0) did("{} orphans without an inode were dropped", no_inode);
    auto named = CSV_TRY(run(
        "DELETE FROM orphans WHERE inode=1 OR EXISTS(SELECT 1 FROM entries e WHERE"
        " e.inode=orphans.inode) OR EXISTS(SELECT 1 FROM entries e WHERE e.parent=orphans.inode)"));
    if (named > 0) did("{} inodes that have a name or entries were called orphans: no more", named);
    auto nameless = CSV_TRY(
        list("SELECT id FROM inodes WHERE id<>1 AND NOT EXISTS(SELECT 1 FROM entries e WHERE"
             " e.inode=id) AND NOT EXISTS(SELECT 1 FROM orphans o WHERE o.inode=id)"));
    for (auto inode : nameless) CSV_TRY(attach(inode));
    return {};
  }

  /// Circles of directories: each is cut open at its lowest number.
  Expected<void> trees() {
    for (;;) {
      auto cut_off = CSV_TRY(
          list("WITH RECURSIVE reached(id) AS (VALUES(1) UNION SELECT e.inode FROM reached r"
               " JOIN entries e ON e.parent=r.id JOIN inodes i ON i.id=e.inode"
               " WHERE (i.mode&61440)=16384)"
               " SELECT min(id) FROM inodes WHERE (mode&61440)=16384 AND"
               " id NOT IN reached AND EXISTS(SELECT 1 FROM entries e WHERE e.inode=id)"));
      if (cut_off.empty() || cut_off.front() == 0) return {};
      auto id = cut_off.front();
      did("directory {} did not lead up to the root", id);
      CSV_TRY(run("DELETE FROM entries WHERE inode=?1", id));
      CSV_TRY(attach(id));
    }
  }

  /// Links, sizes of directories, blocks.
  Expected<void> counts() {
    struct Wrong {
      std::uint64_t id, was, is;
    };
    auto fix = [&](const char* find, const char* set, auto&& say) -> Expected<void> {
      std::vector<Wrong> wrong;
      CSV_TRY(rows(find, [&](Query& row) {
        wrong.push_back({row.u64(0), row.u64(1), row.u64(2)});
      }));
      for (const auto& each : wrong) {
        say(each);
        CSV_TRY(run(set, each.id, each.is));
      }
      return {};
    };
    // Directories first, since that of a file asks for nothing of theirs.
    CSV_TRY(fix(
        "SELECT id,nlink,c FROM (SELECT id,nlink,CASE"
        " WHEN (mode&61440)<>16384 THEN (SELECT count(*) FROM entries e WHERE e.inode=id)"
        " WHEN id=1 OR EXISTS(SELECT 1 FROM entries e WHERE e.inode=id) THEN"
        " 2+(SELECT count(*) FROM entries e JOIN inodes c ON c.id=e.inode WHERE e.parent=inodes.id"
        " AND (c.mode&61440)=16384) ELSE 0 END AS c FROM inodes) WHERE nlink<>c",
        "UPDATE inodes SET nlink=?2 WHERE id=?1",
        [&](const Wrong& w) { did("inode {}: {} links become {}", w.id, w.was, w.is); }));
    CSV_TRY(
        fix("SELECT id,size,c FROM (SELECT id,size,(SELECT count(*) FROM entries e WHERE"
            " e.parent=id) c FROM inodes WHERE (mode&61440)=16384) WHERE size<>c",
            "UPDATE inodes SET size=?2 WHERE id=?1", [&](const Wrong& w) {
              did("directory {}: a size of {} entries becomes {}", w.id, w.was, w.is);
            }));
    for (auto id : made_files_) CSV_TRY(size_by_extents(id));
    return fix(
        "SELECT id,blocks,c FROM (SELECT id,blocks,coalesce((SELECT sum(count) FROM extents e"
        " WHERE e.inode=id),0) c FROM inodes) WHERE blocks<>c",
        "UPDATE inodes SET blocks=?2 WHERE id=?1",
        [&](const Wrong& w) { did("inode {}: {} blocks become {}", w.id, w.was, w.is); });
  }

  Expected<void> size_by_extents(std::uint64_t id) {
    std::uint64_t end = 0;
    {
      Statement look{"SELECT " CSV_EXTENT_COLUMNS
                     " FROM extents WHERE inode=?1 ORDER BY file_block"};
      auto row = database_.use(look, id);
      while (CSV_TRY(row.row())) {
        auto extent = read_extent(row, 0);
        for (auto at = extent.count; at-- > 0;)
          if (extent.written.get(at)) {
            end = extent.file_block + at + 1;
            break;
          }
      }
    }
    did("inode {}: its size becomes {}, where the last block it has written ends", id,
        end * kBlockSize);
    CSV_TRY(
        run("UPDATE inodes SET size=?2 WHERE id=?1 AND (mode&61440)=32768", id, end * kBlockSize));
    return {};
  }

  Expected<void> homes() {
    auto moved = CSV_TRY(
        run("UPDATE inodes SET parent=(SELECT min(e.parent) FROM entries e WHERE e.inode=inodes.id)"
            " WHERE id<>1 AND EXISTS(SELECT 1 FROM entries e WHERE e.inode=inodes.id) AND NOT"
            " EXISTS(SELECT 1 FROM entries e WHERE e.inode=inodes.id AND e.parent=inodes.parent)"));
    if (moved > 0) did("{} inodes have the directory they are in for their parent again", moved);
    return {};
  }

  Expected<void> links() {
    constexpr const char* kTrue =
        "SELECT e.inode,e.parent,count(*) FROM entries e JOIN inodes i ON i.id=e.inode"
        " WHERE (i.mode&61440)<>16384 AND i.nlink>1 GROUP BY e.inode,e.parent";
    auto differ = CSV_TRY(list(fmt::format("SELECT count(*) FROM (SELECT * FROM ({0} EXCEPT SELECT "
                                           "inode,parent,count FROM links) UNION ALL SELECT * FROM "
                                           "(SELECT inode,parent,count FROM links EXCEPT {0}))",
                                           kTrue)
                                   .c_str()));
    if (differ.front() == 0) return {};
    did("{} notes of links were wrong, and were made anew", differ.front());
    CSV_TRY(database_.execute("DELETE FROM links"));
    CSV_TRY(database_.execute(std::string{"INSERT INTO links(inode,parent,count) "} + kTrue));
    return {};
  }

  Expected<void> xattrs() {
    auto lost = CSV_TRY(
        run("DELETE FROM xattrs WHERE NOT EXISTS(SELECT 1 FROM inodes WHERE id=xattrs.inode)"));
    if (lost > 0) did("{} extended attributes of inodes that do not exist were dropped", lost);
    auto bad = CSV_TRY(
        run("DELETE FROM xattrs WHERE length(name)=0 OR length(name)>255 OR length(value)>65536"));
    if (bad > 0) did("{} extended attributes that are too long were dropped", bad);
    return {};
  }

  /// Where a list and the permission bits differ nobody gets more than both say.
  Expected<void> acls() {
    struct Each {
      std::uint64_t inode = 0;
      std::string name;
      std::optional<Acl> acl;
      std::uint32_t mode = 0;
    };
    std::vector<Each> found;
    CSV_TRY(
        rows("SELECT x.inode,x.name,x.value,i.mode FROM xattrs x JOIN inodes i ON i.id=x.inode"
             " WHERE x.name IN (CAST('system.posix_acl_access' AS BLOB),"
             "CAST('system.posix_acl_default' AS BLOB))",
             [&](Query& row) {
               Each each{row.u64(0), std::string{row.bytes(1)}, {}, row.u32(3)};
               bool fits = each.name == kAccessAcl || S_ISDIR(each.mode);
               if (auto acl = Acl::parse(row.bytes(2)); acl && fits) each.acl = *std::move(acl);
               if (!each.acl || (each.name == kAccessAcl && each.acl->mode() != (each.mode & 0777)))
                 found.push_back(std::move(each));
             }));
    for (auto& each : found) {
      if (!each.acl) {
        did("inode {}: {} makes no sense and was dropped", each.inode, each.name);
        CSV_TRY(run("DELETE FROM xattrs WHERE inode=?1 AND name=?2", each.inode,
                    std::string_view{each.name}));
        continue;
      }
      auto mode = (each.mode & ~0777u) | (each.mode & each.acl->mode());
      each.acl->set_mode(mode);
      auto bytes = each.acl->encode();
      did("inode {}: its ACL and its mode differ: it has what both allow, {:o}", each.inode,
          mode & 0777);
      CSV_TRY(run("UPDATE inodes SET mode=?2 WHERE id=?1", each.inode, mode));
      CSV_TRY(run("UPDATE xattrs SET value=?3 WHERE inode=?1 AND name=?2", each.inode,
                  std::string_view{each.name}, std::string_view{bytes}));
    }
    return {};
  }

  /// Places for copies of the catalog that cannot be, or that something else has, are given up.
  Expected<void> copies() {
    std::set<std::uint64_t> bad;
    std::set<std::uint64_t> used{info_.chunks.begin(), info_.chunks.end()};
    std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
    CSV_TRY(rows("SELECT slot,at FROM copies ORDER BY slot,number",
                 [&](Query& row) { places.emplace_back(row.u64(0), row.u64(1)); }));
    for (auto [slot, at] : places) {
      bool fits = at >= info_.data_offset && (at - info_.data_offset) % kGroupSize == 0 &&
                  at - info_.data_offset <= info_.data_size - kGroupSize;
      std::uint64_t in_use = 0;
      if (fits) {
        Statement look{"SELECT count(*) FROM extents WHERE lun_block<?2 AND lun_block+count>?1"};
        auto row = database_.use(look, at / kBlockSize, (at + kGroupSize) / kBlockSize);
        if (CSV_TRY(row.row())) in_use = row.u64(0);
      }
      if (!fits || in_use > 0 || !used.insert(at).second || slot > 1) bad.insert(slot);
    }
    for (auto slot : bad) {
      did("the place of copy {} of the catalog is used by something else: it was given up", slot);
      CSV_TRY(run("DELETE FROM copies WHERE slot=?1", slot));
    }
    return {};
  }

  Database& database_;
  const VolumeInfo& info_;
  const CatalogRepairOptions options_;
  const std::uint64_t area_first_, area_blocks_;
  std::map<std::string, std::uint64_t> numbers_;
  std::vector<SharedRange> shared_;     ///< What was noted, in order; counts mean nothing.
  std::vector<SharedRange> presumed_;   ///< The same, of what must have been.
  std::set<std::uint64_t> made_files_;  ///< Whose size follows from their extents.
  std::uint64_t lost_and_found_ = 0;
  CatalogRepair result_;
};

// --- Space ------------------------------------------------------------------------------

class SpaceWriter {
 public:
  SpaceWriter(Database& database, const VolumeInfo& info)
      : database_{database},
        info_{info},
        area_first_{info.data_offset / kBlockSize},
        area_blocks_{info.data_size / kBlockSize},
        groups_{(area_blocks_ + kGroupBlocks - 1) / kGroupBlocks} {}

  Expected<std::optional<SpaceLayout>> run(bool apart) {
    CSV_TRY(read_owners());
    auto chunks = CSV_TRY(choose(apart));
    if (!chunks) return std::optional<SpaceLayout>{};
    for (auto at : *chunks) own(at / kBlockSize, kChunkSize / kBlockSize);
    SpaceLayout layout;
    layout.chunks = *chunks;
    CSV_TRY(database_.execute("BEGIN"));
    CSV_TRY(compare_with_before(layout));
    CSV_TRY(write_groups());
    CSV_TRY(write_chunks(*chunks));
    CSV_TRY(write_totals());
    CSV_TRY(database_.execute("COMMIT"));
    return std::optional<SpaceLayout>{std::move(layout)};
  }

 private:
  void own(std::uint64_t lun_block, std::uint64_t count) {
    for (auto at = lun_block - area_first_, end = at + count; at < end;) {
      auto offset = at % kGroupBlocks, here = std::min(end - at, kGroupBlocks - offset);
      owned_[at / kGroupBlocks].set(offset, here, true);
      at += here;
    }
  }
  [[nodiscard]] std::uint64_t size_of(std::uint64_t group) const {
    return std::min(kGroupBlocks, area_blocks_ - group * kGroupBlocks);
  }

  Expected<void> read_owners() {
    Statement extents{"SELECT lun_block,count FROM extents"};
    auto row = database_.use(extents);
    while (CSV_TRY(row.row())) own(row.u64(0), row.u64(1));
    Statement copies{"SELECT at FROM copies"};
    auto copy = database_.use(copies);
    while (CSV_TRY(copy.row())) own(copy.u64(0) / kBlockSize, kGroupBlocks);
    return {};
  }

  Expected<std::optional<std::vector<std::uint64_t>>> choose(bool apart) {
    using Places = std::optional<std::vector<std::uint64_t>>;
    auto pages = static_cast<std::uint64_t>(CSV_TRY(database_.value("PRAGMA page_count")));
    // The bitmaps are still to be written, each less than a page, with an index.
    pages += owned_.size() + owned_.size() / 64 + 256;
    auto least = pages / disk::kPagesPerChunk + 1;
    auto wanted = std::max<std::uint64_t>(kFirstChunks, least + 2);
    std::vector<std::uint64_t> places;
    std::set<std::uint64_t> old_groups;
    for (auto at : info_.chunks) {
      auto offset = at - info_.data_offset;
      old_groups.insert(offset / kGroupSize);
      if (offset % kGroupSize != 0) old_groups.insert(offset / kGroupSize + 1);
    }
    if (!apart) places = info_.chunks;
    if (places.size() > kMaxChunks) return Places{};
    for (std::uint64_t group = 0; group < groups_ && places.size() < wanted; ++group)
      if (!owned_.contains(group) && !old_groups.contains(group) && size_of(group) == kGroupBlocks)
        places.push_back(info_.data_offset + group * kGroupSize);
    if (places.size() < (apart ? wanted : least)) return Places{};
    return Places{std::move(places)};
  }

  Expected<void> compare_with_before(SpaceLayout& layout) {
    std::set<std::uint64_t> chunk_groups;
    for (auto at : info_.chunks) chunk_groups.insert((at - info_.data_offset) / kGroupSize);
    for (auto at : layout.chunks) chunk_groups.insert((at - info_.data_offset) / kGroupSize);
    std::uint64_t differing = 0, seen = 0;
    Statement look{"SELECT id,bitmap FROM groups"};
    auto row = database_.use(look);
    while (CSV_TRY(row.row())) {
      ++seen;
      auto group = row.u64(0);
      if (chunk_groups.contains(group)) continue;
      auto found = owned_.find(group);
      auto bits = found != owned_.end() ? found->second : Bitmap<kGroupBlocks>{};
      if (group < groups_) bits.set(size_of(group), kGroupBlocks - size_of(group), true);
      if (group >= groups_ || bits.bytes(kGroupBlocks) != row.bytes(1)) ++differing;
    }
    if (differing > 0)
      layout.actions.push_back(fmt::format(
          "{} allocation groups' bitmaps were made anew from the extents of files", differing));
    return {};
  }

  Expected<void> write_groups() {
    CSV_TRY(database_.execute("DELETE FROM groups; DELETE FROM fresh"));
    Statement insert{"INSERT INTO groups(id,free,longest_free,bitmap) VALUES(?1,?2,?3,?4)"};
    Statement fresh{"INSERT INTO fresh(first,count) VALUES(?1,?2)"};
    std::uint64_t next = 0;
    free_ = area_blocks_;
    for (auto& [group, bits] : owned_) {
      if (group > next) CSV_TRY(database_.run(fresh, next, group - next));
      next = group + 1;
      auto size = size_of(group);
      free_ -= bits.count(0, size);
      bits.set(size, kGroupBlocks - size, true);
      std::uint64_t longest = 0;
      for (std::size_t at = 0; at < kGroupBlocks;) {
        at = bits.next(false, at, kGroupBlocks);
        auto end = bits.next(true, at, kGroupBlocks);
        longest = std::max<std::uint64_t>(longest, end - at);
        at = end;
      }
      auto bytes = bits.bytes(kGroupBlocks);
      CSV_TRY(database_.run(insert, group,
                            std::uint64_t{kGroupBlocks - bits.count(0, kGroupBlocks)}, longest,
                            bytes));
    }
    if (next < groups_) CSV_TRY(database_.run(fresh, next, groups_ - next));
    return {};
  }

  Expected<void> write_chunks(const std::vector<std::uint64_t>& chunks) {
    CSV_TRY(database_.execute("DELETE FROM chunks"));
    Statement insert{"INSERT INTO chunks(number,at) VALUES(?1,?2)"};
    for (std::uint64_t i = 0; i < chunks.size(); ++i) CSV_TRY(database_.run(insert, i, chunks[i]));
    return {};
  }

  Expected<void> write_totals() {
    auto put = [&](std::string_view key, std::uint64_t value) -> Expected<void> {
      Statement set{"INSERT OR REPLACE INTO kv(key,value) VALUES(CAST(?1 AS TEXT),?2)"};
      CSV_TRY(database_.run(set, key, value));
      return {};
    };
    CSV_TRY(put("free", free_));
    CSV_TRY(put("dying", 0));
    CSV_TRY(put("area", area_blocks_));
    return put("inodes",
               static_cast<std::uint64_t>(CSV_TRY(database_.value("SELECT count(*) FROM inodes"))));
  }

  Database& database_;
  const VolumeInfo& info_;
  const std::uint64_t area_first_, area_blocks_, groups_;
  std::uint64_t free_ = 0;
  std::map<std::uint64_t, Bitmap<kGroupBlocks>> owned_;
};

}  // namespace

Expected<CatalogRepair> repair_catalog(Database& database, const VolumeInfo& info,
                                       const CatalogRepairOptions& options) {
  return Repairer{database, info, options}.run();
}

Expected<std::optional<SpaceLayout>> lay_out_space(Database& database, const VolumeInfo& info,
                                                   bool apart) {
  return SpaceWriter{database, info}.run(apart);
}

}  // namespace csv::volume
