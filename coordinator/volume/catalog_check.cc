#include "coordinator/volume/catalog_check.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "coordinator/volume/acl.h"
#include "coordinator/volume/catalog_sql.h"
#include "coordinator/volume/name_counts.h"
#include "csvfs/base/log.h"

namespace csv::volume {

namespace {

constexpr std::size_t kMostProblems = 1000;
constexpr std::string_view kShared = "shared";
constexpr std::uint64_t kMostNode = 63;

/// What is known of an inode, from its row and from what refers to it.
struct Seen {
  std::uint64_t id = 0, size = 0, blocks = 0, parent = 0, next_cookie = 0;
  std::uint32_t mode = 0, nlink = 0;
  std::uint64_t names = 0, entries = 0, directories = 0, held = 0;
  bool in_home = false, orphan = false;
  [[nodiscard]] bool is_directory() const { return S_ISDIR(mode); }
};

struct SeenGrant {
  std::uint64_t session = 0, inode = 0, unwritten = 0, held = 0;
};

/// One pass over every table. Each step compares what it reads with what earlier steps have seen;
/// a table that cannot be read is one problem more, a page that cannot be read the end.
class CatalogCheck {
 public:
  /// `health`: why nothing of the database can be read any more.
  CatalogCheck(Database& database, const VolumeInfo& info, std::function<Expected<void>()> health,
               CheckReport& report)
      : health_{std::move(health)},
        database_{database},
        report_{report},
        info_{info},
        area_first_{info_.data_offset / kBlockSize},
        area_blocks_{info_.data_size / kBlockSize} {}

  void run(const Progress& progress) {
    using Step = Expected<void> (CatalogCheck::*)();
    constexpr std::pair<const char*, Step> steps[] = {
        {"the database's pages", &CatalogCheck::integrity},
        {"numbers", &CatalogCheck::numbers},
        {"inodes", &CatalogCheck::inodes},
        {"orphans", &CatalogCheck::orphans},
        {"directory entries", &CatalogCheck::entries},
        {"links", &CatalogCheck::links},
        {"directory trees", &CatalogCheck::trees},
        {"extended attributes", &CatalogCheck::xattrs},
        {"sessions", &CatalogCheck::sessions},
        {"grants", &CatalogCheck::grants},
        {"freeing", &CatalogCheck::freeing},
        {"chunks", &CatalogCheck::chunks},
        {"copies of the catalog", &CatalogCheck::copies},
        {"dying space", &CatalogCheck::dying},
        {"what files share", &CatalogCheck::shared},
        {"extents", &CatalogCheck::extents},
        {"names of shared blocks", &CatalogCheck::names},
        {"allocation groups", &CatalogCheck::groups},
        {"totals", &CatalogCheck::totals},
    };
    std::uint64_t done = 0;
    for (auto [name, step] : steps) {
      if (progress) progress(done++, std::size(steps));
      auto read = (this->*step)();
      if (auto health = health_(); !health) {  // nothing can be read after that
        problem("{} cannot be read, and what comes after was not looked at: {}", name,
                health.error().message());
        break;
      }
      if (!read) problem("{} cannot be read: {}", name, read.error().message());
    }
    if (progress) progress(done, std::size(steps));
    if (unsaid_ > 0) report_.problems.push_back(fmt::format("and {} more problems", unsaid_));
  }

 private:
  template <typename... Args>
  void problem(fmt::format_string<Args...> text, Args&&... args) {
    if (report_.problems.size() < kMostProblems)
      report_.problems.push_back(fmt::format(text, std::forward<Args>(args)...));
    else
      ++unsaid_;
  }
  /// Calls `each` with a query at every row of `sql`.
  template <typename F>
  Expected<void> rows(const char* sql, F each) {
    Statement statement{sql};
    auto row = database_.use(statement);
    while (CSV_TRY(row.row())) each(row);
    return {};
  }
  Seen* find(std::uint64_t inode) {
    auto found = std::lower_bound(inodes_.begin(), inodes_.end(), inode,
                                  [](const Seen& seen, std::uint64_t id) { return seen.id < id; });
    return found != inodes_.end() && found->id == inode ? &*found : nullptr;
  }

  Expected<void> integrity() {
    CSV_TRY(rows("PRAGMA integrity_check(100)", [&](Query& row) {
      if (row.bytes(0) != "ok") problem("the database is damaged: {}", row.bytes(0));
    }));
    std::set<std::string, std::less<>> there;
    CSV_TRY(
        rows("SELECT name FROM sqlite_schema", [&](Query& row) { there.emplace(row.bytes(0)); }));
    std::string_view schema{kSchema};
    for (std::string_view kind : {"TABLE ", "INDEX "})
      for (auto at = schema.find(kind); at != schema.npos; at = schema.find(kind, at)) {
        at += kind.size();
        auto name = schema.substr(at, schema.find_first_of("( ", at) - at);
        if (name != kShared && !there.contains(name)) problem("the database has no {}", name);
      }
    has_shared_ = there.contains(kShared);
    return {};
  }

  Expected<void> numbers() {
    CSV_TRY(rows("SELECT key,value FROM kv",
                 [&](Query& row) { numbers_[std::string{row.bytes(0)}] = row.u64(1); }));
    for (const auto* key : {"schema_version", "area", "birth", "free", "dying", "inodes",
                            "next_inode", "next_session", "next_grant", "next_key"})
      if (!numbers_.contains(key)) problem("the number {} is missing", key);
    // Of a volume that is growing the superblocks say the new size first.
    if (numbers_["area"] > 0 && numbers_["area"] < area_blocks_)
      area_blocks_ = numbers_["area"];
    else if (numbers_["area"] > area_blocks_)
      problem("the catalog covers {} blocks, the superblock says {}", numbers_["area"],
              area_blocks_);
    if (numbers_["key_generation"] > UINT32_MAX || numbers_["target_losses"] > INT64_MAX)
      problem("what is known of the target's memory cannot be");
    if (!is_known_schema(numbers_["schema_version"]))
      problem("the schema is {}, not {}", numbers_["schema_version"], kSchemaVersion);
    else if (numbers_["schema_version"] == kSchemaVersion && !has_shared_)
      problem("the database has no {}", kShared);
    return {};
  }

  Expected<void> inodes() {
    CSV_TRY(
        rows("SELECT id,mode,nlink,size,blocks,parent,next_cookie,length(target),uid,gid,"
             "keep_beyond_end FROM inodes ORDER BY id",
             [&](Query& row) {
               Seen seen;
               seen.id = row.u64(0);
               seen.mode = row.u32(1);
               seen.nlink = row.u32(2);
               seen.size = row.u64(3);
               seen.blocks = row.u64(4);
               seen.parent = row.u64(5);
               seen.next_cookie = row.u64(6);
               inodes_.push_back(seen);
               if (seen.id == 0 || row.u64(1) > 0xffff || row.u64(2) > UINT32_MAX ||
                   row.u64(8) > UINT32_MAX || row.u64(9) > UINT32_MAX || row.u64(10) > 1 ||
                   (seen.is_directory() && (seen.next_cookie < 3 || row.i64(6) < 0)))
                 problem("inode {}: it has attributes that no inode can have", seen.id);
               if (seen.id >= numbers_["next_inode"])
                 problem("inode {}: its number has not been given out yet", seen.id);
               if (S_ISLNK(seen.mode) != !row.is_null(7) ||
                   (S_ISLNK(seen.mode) && row.u64(7) != seen.size))
                 problem("inode {}: its size is not that of its target", seen.id);
               auto type = seen.mode & S_IFMT;
               if (type != S_IFREG && type != S_IFDIR && type != S_IFLNK && type != S_IFCHR &&
                   type != S_IFBLK && type != S_IFIFO && type != S_IFSOCK)
                 problem("inode {}: mode {:o} is of no known type", seen.id, seen.mode);
               if (S_ISREG(seen.mode) && seen.size > kMaxFileBlocks * kBlockSize)
                 problem("inode {}: a size of {} is over 16 TiB", seen.id, seen.size);
             }));
    std::sort(inodes_.begin(), inodes_.end(),
              [](const Seen& a, const Seen& b) { return a.id < b.id; });  // negative ones too
    report_.inodes = inodes_.size();
    auto* root = find(raw(kRootInode));
    if (root == nullptr || !root->is_directory() || root->parent != root->id)
      problem("the root directory is missing or is none");
    return {};
  }

  Expected<void> orphans() {
    CSV_TRY(rows("SELECT inode FROM orphans", [&](Query& row) {
      ++report_.orphans;
      auto* seen = find(row.u64(0));
      if (seen == nullptr)
        problem("orphan {} has no inode", row.u64(0));
      else if (seen->nlink != 0)
        problem("orphan {} says that it has {} links", seen->id, seen->nlink);
      else
        seen->orphan = true;
    }));
    for (const auto& seen : inodes_)
      if (seen.nlink == 0 && !seen.orphan)
        problem("inode {} has no links and is no orphan", seen.id);
    return {};
  }

  void check_entry(std::uint64_t parent, std::string_view name, std::uint64_t inode,
                   std::uint64_t cookie) {
    ++report_.entries;
    auto where = [&] { return fmt::format("entry \"{}\" of directory {}", name, parent); };
    if (name.empty() || name.size() > 255 || name == "." || name == ".." ||
        name.find('/') != name.npos || name.find('\0') != name.npos)
      problem("{}: not a name", where());
    auto* above = find(parent);
    if (above == nullptr || !above->is_directory()) {
      problem("{}: there is no such directory", where());
    } else {
      ++above->entries;
      if (cookie < 3 || cookie >= above->next_cookie)
        problem("{}: cookie {} was never given out", where(), cookie);
    }
    auto* seen = find(inode);
    if (seen == nullptr) {
      problem("{}: inode {} does not exist", where(), inode);
      return;
    }
    ++seen->names;
    if (seen->parent == parent) seen->in_home = true;
    if (seen->is_directory()) {
      if (above != nullptr) ++above->directories;
      if (seen->parent != parent)
        problem("{}: directory {} says that its parent is {}", where(), inode, seen->parent);
    } else if (seen->nlink > 1) {
      ++links_[{inode, parent}];
    }
  }

  Expected<void> entries() {
    CSV_TRY(rows("SELECT parent,name,inode,cookie FROM entries", [&](Query& row) {
      check_entry(row.u64(0), row.bytes(1), row.u64(2), row.u64(3));
    }));
    for (const auto& seen : inodes_) {
      bool root = seen.id == raw(kRootInode);
      if (seen.is_directory()) {
        if (auto expected = root || seen.names > 0 ? 2 + seen.directories : 0;
            seen.nlink != expected)
          problem("directory {}: {} links, but {} were counted", seen.id, seen.nlink, expected);
        if (seen.names > (root ? 0 : 1)) problem("directory {} has {} names", seen.id, seen.names);
        if (seen.size != seen.entries)
          problem("directory {}: {} entries, but {} were counted", seen.id, seen.size,
                  seen.entries);
        continue;
      }
      if (seen.nlink != seen.names)
        problem("inode {}: {} links, but {} names were found", seen.id, seen.nlink, seen.names);
      if (seen.names > 0 && !seen.in_home)
        problem("inode {}: no name of it is in its home, directory {}", seen.id, seen.parent);
    }
    return {};
  }

  Expected<void> links() {
    CSV_TRY(rows("SELECT inode,parent,count FROM links", [&](Query& row) {
      auto found = links_.find({row.u64(0), row.u64(1)});
      if (found == links_.end() || found->second != row.u64(2))
        problem("inode {}: {} links in directory {} are noted, but {} were found", row.u64(0),
                row.u64(2), row.u64(1), found == links_.end() ? 0 : found->second);
      if (found != links_.end()) links_.erase(found);
    }));
    for (const auto& [key, count] : links_)
      problem("inode {}: {} links in directory {} are not noted", key.first, count, key.second);
    return {};
  }

  Expected<void> trees() {
    // Every live directory leads up to the root; one that is reached from another that did is not
    // followed again.
    std::set<std::uint64_t> rooted{raw(kRootInode)};
    for (const auto& each : inodes_) {
      if (!each.is_directory() || each.names == 0) continue;
      std::vector<std::uint64_t> way;
      std::set<std::uint64_t> here;
      auto at = each.id;
      while (!rooted.contains(at) && here.insert(at).second) {
        way.push_back(at);
        auto* seen = find(at);
        if (seen == nullptr) break;
        at = seen->parent;
      }
      if (rooted.contains(at))
        rooted.insert(way.begin(), way.end());
      else
        problem("directory {} does not lead up to the root", each.id);
    }
    return {};
  }

  Expected<void> xattrs() {
    CSV_TRY(rows("SELECT inode,name,length(value) FROM xattrs", [&](Query& row) {
      if (find(row.u64(0)) == nullptr)
        problem("extended attribute \"{}\" of inode {}, which does not exist", row.bytes(1),
                row.u64(0));
      if (row.bytes(1).empty() || row.bytes(1).size() > 255 || row.u64(2) > 65536)
        problem("extended attribute \"{}\" of inode {} is too long", row.bytes(1), row.u64(0));
    }));
    return rows(
        "SELECT inode,name,value FROM xattrs"
        " WHERE name IN (CAST('system.posix_acl_access' AS BLOB),"
        "CAST('system.posix_acl_default' AS BLOB))",
        [&](Query& row) {
          auto acl = Acl::parse(row.bytes(2));
          const auto* seen = find(row.u64(0));
          if (!acl) {
            problem("{} of inode {} cannot be read", row.bytes(1), row.u64(0));
          } else if (seen == nullptr) {
            return;  // said above
          } else if (row.bytes(1) == kAccessAcl) {
            if (acl->mode() != (seen->mode & 0777))
              problem("inode {}: its ACL does not say what its mode says", seen->id);
          } else if (!seen->is_directory()) {
            problem("inode {}: a default ACL, but no directory", seen->id);
          }
        });
  }

  Expected<void> sessions() {
    CSV_TRY(rows("SELECT id FROM sessions", [&](Query& row) {
      sessions_.insert(row.u64(0));
      if (row.u64(0) >= numbers_["next_session"])
        problem("session {}: its number has not been given out yet", row.u64(0));
    }));
    CSV_TRY(rows("SELECT session,slot FROM slots", [&](Query& row) {
      if (!sessions_.contains(row.u64(0)))
        problem("slot {} of session {}, which does not exist", row.u64(1), row.u64(0));
    }));
    std::set<std::uint64_t> suspended;
    CSV_TRY(rows("SELECT node,session FROM suspended", [&](Query& row) {
      suspended.insert(row.u64(0));
      if (row.u64(0) == 0 || row.u64(0) > kMostNode)
        problem("node {} has files suspended, and cannot be", row.u64(0));
      if (row.u64(1) >= numbers_["next_session"])
        problem("suspended session {}: its number has not been given out yet", row.u64(1));
    }));
    CSV_TRY(rows("SELECT node,inode FROM suspended_files", [&](Query& row) {
      if (!suspended.contains(row.u64(0)))
        problem("inode {} is suspended for node {}, of which nothing is", row.u64(1), row.u64(0));
    }));
    return rows("SELECT key,session,state FROM admissions", [&](Query& row) {
      if (row.u64(1) != 0 && !sessions_.contains(row.u64(1)))
        problem("admission {:#x} is of session {}, which does not exist", row.u64(0), row.u64(1));
      if (row.u64(2) > raw(AdmissionState::fenced))
        problem("admission {:#x} is in state {}", row.u64(0), row.u64(2));
      if (parts_of(Key{row.u64(0)}).number >= numbers_["next_key"])
        problem("admission {:#x}: its key's number has not been given out yet", row.u64(0));
    });
  }

  Expected<void> grants() {
    return rows("SELECT id,session,inode,unwritten FROM grants", [&](Query& row) {
      grants_[row.u64(0)] = {row.u64(1), row.u64(2), row.u64(3), 0};
      if (row.u64(0) >= numbers_["next_grant"])
        problem("grant {}: its number has not been given out yet", row.u64(0));
      if (!sessions_.contains(row.u64(1)))
        problem("grant {} is of session {}, which does not exist", row.u64(0), row.u64(1));
    });
  }

  Expected<void> freeing() {
    return rows("SELECT inode,first,until FROM freeing ORDER BY inode,first", [&](Query& row) {
      auto& spans = freeing_[row.u64(0)];
      FreeingSpan span{row.u64(1), row.u64(2)};
      if (span.until > kMaxFileBlocks)
        problem("inode {}: blocks {} to {}, which no file has, are being freed", row.u64(0),
                span.first, span.until);
      if (span.first >= span.until || (!spans.empty() && spans.back().until > span.first))
        problem("inode {}: blocks {} to {} are being freed twice or not at all", row.u64(0),
                span.first, span.until);
      spans.push_back(span);
    });
  }
  bool is_freeing(std::uint64_t inode, std::uint64_t first, std::uint64_t end) {
    auto found = freeing_.find(inode);
    if (found == freeing_.end()) return false;
    for (const auto& span : found->second)
      if (span.first <= first && end <= span.until) return true;
    return false;
  }

  /// Notes that [lun_block, +count) is used by `what`.
  void own(std::uint64_t lun_block, std::uint64_t count, const std::string& what) {
    if (lun_block < area_first_ || count > area_blocks_ ||
        lun_block - area_first_ > area_blocks_ - count) {
      problem("{}: LUN blocks {} to {} are outside the data area", what, lun_block,
              lun_block + count);
      return;
    }
    report_.used_blocks += count;
    std::uint64_t twice = 0;
    for (auto at = lun_block - area_first_, end = at + count; at < end;) {
      auto& owned = owned_[at / kGroupBlocks];
      auto offset = at % kGroupBlocks, here = std::min(end - at, kGroupBlocks - offset);
      twice += owned.count(offset, here);
      owned.set(offset, here, true);
      at += here;
    }
    if (twice > 0)
      problem("{}: {} of LUN blocks {} to {} belong to something else too", what, twice, lun_block,
              lun_block + count);
  }

  Expected<void> chunks() {
    std::vector<std::uint64_t> listed;
    CSV_TRY(rows("SELECT at,number FROM chunks ORDER BY number", [&](Query& row) {
      if (row.u64(1) != listed.size()) problem("catalog chunk {} is not listed", listed.size());
      listed.push_back(row.u64(0));
      own(row.u64(0) / kBlockSize, kChunkSize / kBlockSize,
          fmt::format("catalog chunk {}", row.u64(1)));
    }));
    // The list may be ahead of the superblock by the one that was being added (C4).
    const auto& mapped = info_.chunks;
    if (listed.size() < mapped.size() || listed.size() > mapped.size() + 1 ||
        !std::equal(mapped.begin(), mapped.end(), listed.begin()))
      problem("the superblock maps other chunks than the catalog lists");
    return {};
  }

  Expected<void> copies() {
    return rows("SELECT slot,number,at FROM copies", [&](Query& row) {
      auto what = fmt::format("piece {} of copy {} of the catalog", row.u64(1), row.u64(0));
      if (row.u64(0) > 1 || row.u64(2) < info_.data_offset ||
          (row.u64(2) - info_.data_offset) % kGroupSize != 0)
        problem("{}: it cannot lie at LUN offset {}", what, row.u64(2));
      own(row.u64(2) / kBlockSize, kGroupSize / kBlockSize, what);
    });
  }

  Expected<void> dying() {
    std::uint64_t total = 0;
    CSV_TRY(rows("SELECT lun_block,count FROM dying", [&](Query& row) {
      own(row.u64(0), row.u64(1), "a dying run");
      total += row.u64(1);
    }));
    report_.used_blocks -= std::min(report_.used_blocks, total);
    if (total != numbers_["dying"])
      problem("{} blocks are dying, the total says {}", total, numbers_["dying"]);
    return {};
  }

  Expected<void> shared() {
    if (!has_shared_) return {};
    CSV_TRY(rows("SELECT start,length,count FROM shared ORDER BY start", [&](Query& row) {
      SharedRange range{row.u64(0), row.u64(1), row.u64(2)};
      if (range.start < area_first_ || range.length == 0 || range.length > area_blocks_ ||
          range.start - area_first_ > area_blocks_ - range.length || row.i64(2) < 2) {
        problem("shared LUN blocks {} to {}, named {} times, cannot be", range.start, range.end(),
                row.i64(2));
        return;
      }
      if (!shared_.empty() && shared_.back().end() > range.start) {
        problem("shared LUN blocks {} to {} overlap those before", range.start, range.end());
        if (shared_.back().end() >= range.end()) return;
        range.length = range.end() - shared_.back().end();
        range.start = shared_.back().end();
      }
      shared_.push_back(range);
    }));
    if (!shared_.empty() && numbers_["schema_version"] != kSchemaVersion)
      problem("files share blocks, which schema {} does not know", numbers_["schema_version"]);
    return {};
  }
  /// Of [first, end) what is shared, cut to it.
  std::vector<SharedRange> shared_in(std::uint64_t first, std::uint64_t end) {
    auto behind = [](const SharedRange& range, std::uint64_t at) { return range.end() <= at; };
    std::vector<SharedRange> found;
    for (auto at = std::lower_bound(shared_.begin(), shared_.end(), first, behind);
         at != shared_.end() && at->start < end; ++at) {
      auto from = std::max(first, at->start), to = std::min(end, at->end());
      found.push_back({from, to - from, at->count});
    }
    return found;
  }

  /// Notes that an extent uses what other extents may use, too.
  void own_together(std::uint64_t lun_block, std::uint64_t count, const std::string& what) {
    std::uint64_t foreign = 0;
    for (auto at = lun_block - area_first_, end = at + count; at < end;) {
      auto& owned = owned_[at / kGroupBlocks];
      auto& named = named_[at / kGroupBlocks];
      auto offset = at % kGroupBlocks, here = std::min(end - at, kGroupBlocks - offset);
      auto before = owned.count(offset, here);
      report_.used_blocks += here - before;
      if (before > 0 && named.count(offset, here) != before)
        for (auto bit = offset; bit < offset + here; ++bit)
          if (owned.get(bit) && !named.get(bit)) ++foreign;
      owned.set(offset, here, true);
      named.set(offset, here, true);
      at += here;
    }
    if (foreign > 0)
      problem("{}: {} of LUN blocks {} to {} belong to something else too", what, foreign,
              lun_block, lun_block + count);
  }
  void own_extent(const Extent& extent, const std::string& where) {
    auto at = extent.lun_block, end = at + extent.count;
    for (const auto& range : shared_in(at, end)) {
      if (range.start > at) own(at, range.start - at, where);
      own_together(range.start, range.length, where);
      if (extent.grant != GrantId{} ||
          extent.written.count(range.start - extent.lun_block, range.length) != range.length)
        problem("{}: it is shared, and not wholly written", where);
      at = range.end();
    }
    if (at < end) own(at, end - at, where);
  }

  /// Whether as many extents name what is shared as is noted.
  Expected<void> names() {
    if (shared_.empty()) return {};
    auto row = shared_.begin();
    std::uint64_t at = 0;
    auto compare = [&](std::uint64_t from, std::uint64_t to, std::uint64_t is) {
      if (from < to && is != row->count)
        problem("LUN blocks {} to {}: shared by {}, but {} extents name them", from, to, row->count,
                is);
      at = std::max(at, to);
    };
    CSV_TRY(for_each_named(database_, [&](const SharedRange& named) {
      for (; row != shared_.end() && row->start < named.end(); ++row) {
        at = std::max(at, row->start);
        compare(at, std::min(named.start, row->end()), 0);
        compare(at, std::min(named.end(), row->end()), named.count);
        if (row->end() > named.end()) break;
      }
    }));
    for (; row != shared_.end(); ++row) compare(std::max(at, row->start), row->end(), 0);
    return {};
  }

  void check_extent(std::uint64_t inode, const Extent& extent, std::uint64_t written_count,
                    std::optional<std::size_t> bitmap_size, std::uint64_t& last_end) {
    ++report_.extents;
    auto where = fmt::format("inode {}, file block {}", inode, extent.file_block);
    if (extent.count == 0 || extent.count > kWindowBlocks ||
        extent.file_block / kWindowBlocks != (extent.end() - 1) / kWindowBlocks ||
        extent.end() > kMaxFileBlocks) {
      problem("{}: an extent of {} blocks cannot lie there", where, extent.count);
      return;
    }
    if (extent.file_block < last_end) problem("{}: two extents overlap", where);
    last_end = extent.end();
    own_extent(extent, where);
    auto written = extent.written.count(0, extent.count);
    bool partly = written_count > 0 && written_count < extent.count;
    if (written != written_count || partly != bitmap_size.has_value() ||
        (partly && *bitmap_size != (extent.count + 7) / 8) ||
        extent.written.count(extent.count, kWindowBlocks - extent.count) > 0)
      problem("{}: its bitmap does not say what its count of {} written blocks says", where,
              written_count);
    if (extent.birth == 0 || extent.birth > numbers_["birth"])
      problem("{}: born at {}, which has not been yet", where, extent.birth);
    bool leaving = is_freeing(inode, extent.file_block, extent.end());
    auto* seen = find(inode);
    if (seen != nullptr) seen->held += extent.count;
    if (seen == nullptr && !leaving)
      problem("{}: an extent of an inode that does not exist", where);
    if (seen != nullptr && !S_ISREG(seen->mode))
      problem("{}: an extent of what is no regular file", where);
    if (seen != nullptr && !leaving && !freeing_.contains(inode)) {
      auto end = std::min((seen->size + kBlockSize - 1) / kBlockSize, kMaxFileBlocks);
      auto from = std::clamp(end, extent.file_block, extent.end()) - extent.file_block;
      if (extent.written.count(from, extent.count - from) > 0)
        problem("{}: written beyond the end of the file", where);
    }
    if (extent.grant == GrantId{}) return;
    auto grant = grants_.find(raw(extent.grant));
    if (grant == grants_.end() || grant->second.inode != inode)
      problem("{}: grant {} is not one on this inode", where, raw(extent.grant));
    else
      grant->second.held += extent.count - written;
  }

  Expected<void> extents() {
    std::uint64_t last_inode = 0, last_end = 0;
    CSV_TRY(rows("SELECT inode," CSV_EXTENT_COLUMNS " FROM extents ORDER BY inode,file_block",
                 [&](Query& row) {
                   if (row.u64(0) != last_inode) last_end = 0;
                   last_inode = row.u64(0);
                   std::optional<std::size_t> bitmap_size;
                   if (!row.is_null(7)) bitmap_size = row.bytes(7).size();
                   check_extent(last_inode, read_extent(row, 1), row.u64(6), bitmap_size, last_end);
                 }));
    for (const auto& seen : inodes_)
      if (seen.blocks != seen.held)
        problem("inode {}: {} blocks, but its extents have {}", seen.id, seen.blocks, seen.held);
    for (const auto& [id, grant] : grants_)
      if (grant.unwritten != grant.held)
        problem("grant {}: {} unwritten blocks, but its extents have {}", id, grant.unwritten,
                grant.held);
    return {};
  }

  void check_group(std::uint64_t group, std::uint64_t free, std::uint64_t longest,
                   std::string_view bytes) {
    if (group >= group_count()) {
      problem("allocation group {} is behind the end of the data area", group);
      return;
    }
    if (bytes.size() != kGroupBlocks / 8) {
      problem("allocation group {}: its bitmap has {} bytes", group, bytes.size());
      return;
    }
    auto bits = Bitmap<kGroupBlocks>::from_bytes(bytes);
    auto size = std::min(kGroupBlocks, area_blocks_ - group * kGroupBlocks);
    auto found_free = size - bits.count(0, size);
    report_.free_blocks += found_free;
    std::uint64_t found_longest = 0;
    for (std::size_t at = 0; at < size;) {
      at = bits.next(false, at, size);
      auto end = bits.next(true, at, size);
      found_longest = std::max<std::uint64_t>(found_longest, end - at);
      at = end;
    }
    if (free != found_free || longest != found_longest)
      problem("allocation group {}: {} free, {} in one run; its bitmap says {} and {}", group, free,
              longest, found_free, found_longest);
    if (bits.count(size, kGroupBlocks - size) != kGroupBlocks - size)
      problem("allocation group {}: blocks behind the end of the data area are free", group);
    auto& owned = owned_[group];
    std::uint64_t lost = 0, stolen = 0, first_lost = 0, first_stolen = 0;
    for (std::size_t at = size; at-- > 0;) {
      if (bits.get(at) == owned.get(at)) continue;
      (bits.get(at) ? lost : stolen) += 1;
      (bits.get(at) ? first_lost : first_stolen) = area_first_ + group * kGroupBlocks + at;
    }
    if (lost > 0)
      problem("allocation group {}: {} blocks from LUN block {} on are used by nothing", group,
              lost, first_lost);
    if (stolen > 0)
      problem("allocation group {}: {} blocks from LUN block {} on are in use and marked free",
              group, stolen, first_stolen);
  }

  Expected<void> groups() {
    std::set<std::uint64_t> with_row;
    CSV_TRY(rows("SELECT id,free,longest_free,bitmap FROM groups", [&](Query& row) {
      with_row.insert(row.u64(0));
      check_group(row.u64(0), row.u64(1), row.u64(2), row.bytes(3));
    }));
    std::uint64_t covered = with_row.size(), last = 0;
    CSV_TRY(rows("SELECT first,count FROM fresh ORDER BY first", [&](Query& row) {
      auto first = row.u64(0), end = first + row.u64(1);
      if (first >= end || first < last || end > group_count()) {
        problem("fresh allocation groups {} to {} cannot be", first, end);
        return;
      }
      last = end;
      covered += end - first;
      report_.free_blocks += std::min(end * kGroupBlocks, area_blocks_) - first * kGroupBlocks;
      if (auto used = with_row.lower_bound(first); used != with_row.end() && *used < end)
        problem("allocation group {} is fresh and yet has a bitmap", *used);
      if (auto owned = owned_.lower_bound(first);
          owned != owned_.end() && owned->first < end && owned->second != Bitmap<kGroupBlocks>{})
        problem("allocation group {} is fresh and yet has blocks in use", owned->first);
    }));
    if (covered != group_count())
      problem("{} allocation groups have a bitmap or are fresh, the data area has {}", covered,
              group_count());
    return {};
  }

  Expected<void> totals() {
    if (report_.free_blocks != numbers_["free"])
      problem("{} blocks are free, the total says {}", report_.free_blocks, numbers_["free"]);
    if (report_.inodes != numbers_["inodes"])
      problem("there are {} inodes, the total says {}", report_.inodes, numbers_["inodes"]);
    return {};
  }

  [[nodiscard]] std::uint64_t group_count() const {
    return (area_blocks_ + kGroupBlocks - 1) / kGroupBlocks;
  }

  std::function<Expected<void>()> health_;
  Database& database_;
  CheckReport& report_;
  const VolumeInfo info_;
  const std::uint64_t area_first_;
  std::uint64_t area_blocks_;
  std::uint64_t unsaid_ = 0;

  std::map<std::string, std::uint64_t> numbers_;
  std::vector<Seen> inodes_;  ///< By id.
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> links_;
  std::set<std::uint64_t> sessions_;
  std::map<std::uint64_t, SeenGrant> grants_;
  std::map<std::uint64_t, std::vector<FreeingSpan>> freeing_;
  std::map<std::uint64_t, Bitmap<kGroupBlocks>> owned_;  ///< By group.
  std::map<std::uint64_t, Bitmap<kGroupBlocks>> named_;  ///< The same, by what may share it.
  bool has_shared_ = false;
  std::vector<SharedRange> shared_;  ///< In order, none overlapping another.
};

}  // namespace

Expected<void> check_catalog(CatalogStore& store, CheckReport& report, const Progress& progress) {
  auto database = Database::open(store.path(), store.vfs(), {.read_only = true});
  if (!database) {
    auto health = store.health();  // says more than SQLite does
    const auto& why = health ? database.error() : health.error();
    report.problems.push_back("the catalog cannot be opened: " + why.message());
    return {};
  }
  CatalogCheck{**database, store.info(), [&store] { return store.health(); }, report}.run(progress);
  return {};
}

Expected<void> check_catalog_file(const std::string& path, const VolumeInfo& info,
                                  CheckReport& report, const Progress& progress) {
  auto database =
      CSV_TRY(Database::open(path.c_str(), nullptr, {.read_only = true, .frozen = true}));
  CatalogCheck{*database, info, [] { return Expected<void>{}; }, report}.run(progress);
  return {};
}

}  // namespace csv::volume
