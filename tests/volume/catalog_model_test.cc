// Thousands of random operations against a simple model in memory, with reopens in between.
#include <linux/fs.h>

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "csvfs/base/random.h"
#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

namespace {

constexpr std::uint64_t kBlocks = 6000;  ///< Of a file: three windows.

struct ModelInode {
  std::uint32_t mode = 0;
  std::uint64_t size = 0, truncation = 0;
  std::map<std::string, InodeId> entries;          ///< Of a directory.
  InodeId parent{};                                ///< Of a directory.
  std::uint64_t links = 0;                         ///< Of anything else.
  std::string blocks = std::string(kBlocks, 'h');  ///< Of a file: h, u, w, g a block.
  std::map<std::uint64_t, GrantId> grants;         ///< By block that carries one.
  /// Of each block the place it has, as a number of ours: equal ones are one block of the LUN.
  std::vector<std::uint64_t> places = std::vector<std::uint64_t>(kBlocks);
  std::map<std::string, std::string> xattrs;
  bool removed = false;  ///< Of a directory.
  bool kept = false;
  [[nodiscard]] bool is_directory() const { return S_ISDIR(mode); }
  [[nodiscard]] bool is_file() const { return S_ISREG(mode); }
};

/// Plays one random history. Every operation is predicted, then run.
class History {
 public:
  History(std::uint64_t seed, TestCatalog& volume) : random_{seed}, v_{volume} {
    inodes_[kRootInode].mode = S_IFDIR | 0755;
    inodes_[kRootInode].parent = kRootInode;
    for (int i = 0; i < 2; ++i)
      sessions_.push_back(v_.must([](Catalog& c) { return c.new_session(NodeId{1}, 1); }).id);
  }

  void step() {
    ++v_.now;
    using Operation = void (History::*)();
    static constexpr Operation operations[] = {
        &History::make,  &History::make,   &History::make,   &History::link,     &History::unlink,
        &History::rmdir, &History::rename, &History::rename, &History::truncate, &History::place,
        &History::place, &History::fill,   &History::mark,   &History::punch,    &History::trim,
        &History::grant, &History::grant,  &History::commit, &History::commit,   &History::drop,
        &History::xattr, &History::reap,   &History::free,   &History::seek,     &History::keep,
        &History::clone, &History::clone,  &History::clone,  &History::replace,  &History::replace,
    };
    (this->*operations[random_.below(std::size(operations))])();
  }

  void compare() {
    std::uint64_t alive = 0;
    std::map<std::uint64_t, std::uint64_t> place_of, lun_block_of;  // each other's
    for (auto& [id, model] : inodes_) {
      CAPTURE(raw(id));
      auto attr = v_.catalog->attr(id);
      REQUIRE(attr);
      ++alive;
      CHECK(attr->mode == model.mode);
      if (model.is_directory()) {
        compare_directory(id, model, *attr);
      } else {
        CHECK(attr->nlink == model.links);
      }
      if (model.is_file()) {
        CHECK(attr->size == model.size);
        CHECK(attr->truncation == model.truncation);
        CHECK(states(id) == model.blocks);
        for (const auto& each : v_.map(id, 0, kBlocks)) {
          if (each.state == BlockState::hole) continue;
          for (std::uint64_t i = 0; i < each.count; ++i) {
            auto place = model.places[each.file_block + i];
            CHECK(place_of.try_emplace(each.lun_block + i, place).first->second == place);
            CHECK(lun_block_of.try_emplace(place, each.lun_block + i).first->second ==
                  each.lun_block + i);
            if (each.state != BlockState::shared) CHECK(names_of(place) == 1);
          }
        }
      }
      std::string names;
      for (const auto& [name, value] : model.xattrs) {
        names += name + '\0';
        CHECK(*v_.catalog->xattr(id, name) == value);
      }
      CHECK(*v_.catalog->list_xattrs(id) == names);
    }
    CHECK(v_.catalog->space()->inodes == alive);
    CHECK(v_.problems() == "");
  }

  std::map<std::string, int> outcomes;  ///< How often each operation ended how.

 private:
  struct Range {
    std::uint64_t first = 0, count = 0;
  };
  std::uint64_t links_of(const ModelInode& directory) const {
    if (directory.removed) return 0;
    std::uint64_t links = 2;
    for (const auto& [name, child] : directory.entries)
      if (inodes_.at(child).is_directory()) ++links;
    return links;
  }
  void compare_directory(InodeId id, const ModelInode& model, const Attr& attr) {
    CHECK(attr.size == model.entries.size());
    CHECK(attr.nlink == links_of(model));
    if (!model.removed) CHECK(attr.parent == model.parent);
    std::map<std::string, InodeId> listed;
    std::uint64_t cookie = 0;
    for (;;) {
      auto page = v_.catalog->list(id, cookie, 3);
      REQUIRE(page);
      if (page->empty()) break;
      for (const auto& entry : *page) listed[entry.name] = entry.attr.inode;
      cookie = page->back().cookie;
    }
    CHECK(listed == model.entries);
  }
  std::string states(InodeId id) {
    std::string all;
    for (const auto& each : v_.map(id, 0, kBlocks))
      all.append(each.count, "huwgw"[static_cast<int>(each.state)]);
    return all;
  }
  std::uint64_t names_of(std::uint64_t place) {
    auto found = names_.find(place);
    return found == names_.end() ? 0 : found->second;
  }
  /// The block has no place, a new one, or that of another.
  void lose_place(ModelInode& model, std::uint64_t at) {
    if (auto place = std::exchange(model.places[at], 0); place != 0)
      if (--names_[place] == 0) names_.erase(place);
  }
  void give_place(ModelInode& model, std::uint64_t at, std::uint64_t place) {
    lose_place(model, at);
    model.places[at] = place;
    ++names_[place];
  }
  void give_places(ModelInode& model, Range range) {
    for (auto at = range.first; at < range.first + range.count; ++at)
      give_place(model, at, next_place_++);
  }

  // --- Choosing
  template <typename F>
  std::optional<InodeId> any(F wanted) {
    std::vector<InodeId> found;
    for (const auto& [id, model] : inodes_)
      if (wanted(model)) found.push_back(id);
    if (found.empty()) return std::nullopt;
    return found[random_.below(found.size())];
  }
  InodeId any_directory() {
    return *any([](auto& m) { return m.is_directory(); });
  }
  std::optional<InodeId> any_file() {
    return any([](auto& m) { return m.is_file(); });
  }
  std::string any_name() { return std::string(1, static_cast<char>('a' + random_.below(6))); }
  Range any_range() {
    auto first = random_.below(kBlocks);
    auto most = random_.chance(1, 3) ? kBlocks : std::uint64_t{40};
    return {first, 1 + random_.below(std::min(most, kBlocks - first))};
  }

  void note(const char* operation, int expected, int got) {
    CAPTURE(operation);
    CHECK(got == expected);
    ++outcomes[std::string{operation} + " " + std::to_string(got)];
  }
  InodeId entry(InodeId directory, const std::string& name) {
    auto& entries = inodes_[directory].entries;
    auto found = entries.find(name);
    return found == entries.end() ? InodeId{} : found->second;
  }
  bool is_below(InodeId inode, InodeId ancestor) {
    for (auto at = inode;; at = inodes_[at].parent) {
      if (at == ancestor) return true;
      if (at == kRootInode) return false;
    }
  }
  void lose_link(InodeId inode) {
    auto& model = inodes_[inode];
    if (model.is_directory())
      model.removed = true;
    else
      --model.links;
  }

  // --- Names
  void make() {
    auto parent = any_directory();
    auto name = any_name();
    static constexpr std::uint32_t modes[] = {S_IFREG | 0644, S_IFREG | 0600, S_IFDIR | 0755,
                                              S_IFLNK | 0777};
    auto mode = modes[random_.below(4)];
    auto expected = inodes_[parent].removed            ? ENOENT
                    : entry(parent, name) != InodeId{} ? EEXIST
                                                       : 0;
    auto made = v_.change([&](Catalog& c) {
      return c.make(parent, name, {.mode = mode, .target = S_ISLNK(mode) ? "target" : ""}, v_.now);
    });
    note("make", expected, errno_of(made));
    if (!made) return;
    inodes_[parent].entries[name] = made->inode;
    auto& model = inodes_[made->inode];
    model.mode = mode;
    model.parent = parent;
    model.links = 1;
  }
  void link() {
    auto inode = any([](auto&) { return true; }).value();
    auto parent = any_directory();
    auto name = any_name();
    auto& model = inodes_[inode];
    int expected = 0;
    if (model.is_directory())
      expected = EPERM;
    else if (model.links == 0 || inodes_[parent].removed)
      expected = ENOENT;
    else if (entry(parent, name) != InodeId{})
      expected = EEXIST;
    auto linked = v_.change([&](Catalog& c) { return c.link(inode, parent, name, v_.now); });
    note("link", expected, errno_of(linked));
    if (!linked) return;
    ++model.links;
    inodes_[parent].entries[name] = inode;
  }
  void unlink() {
    auto parent = any_directory();
    auto name = any_name();
    auto inode = entry(parent, name);
    int expected = inode == InodeId{} ? ENOENT : inodes_[inode].is_directory() ? EISDIR : 0;
    auto removed = v_.change([&](Catalog& c) { return c.unlink(parent, name, v_.now); });
    note("unlink", expected, errno_of(removed));
    if (!removed) return;
    inodes_[parent].entries.erase(name);
    lose_link(inode);
  }
  void rmdir() {
    auto parent = any_directory();
    auto name = any_name();
    auto inode = entry(parent, name);
    int expected = 0;
    if (inode == InodeId{})
      expected = ENOENT;
    else if (!inodes_[inode].is_directory())
      expected = ENOTDIR;
    else if (!inodes_[inode].entries.empty())
      expected = ENOTEMPTY;
    auto removed = v_.change([&](Catalog& c) { return c.rmdir(parent, name, v_.now); });
    note("rmdir", expected, errno_of(removed));
    if (!removed) return;
    inodes_[parent].entries.erase(name);
    lose_link(inode);
  }
  int rename_refusal(InodeId from, InodeId to, InodeId source, InodeId target,
                     std::uint32_t flags) {
    bool exchange = flags == RENAME_EXCHANGE;
    if (source == InodeId{} || (exchange && target == InodeId{}) || inodes_[to].removed)
      return ENOENT;
    if (target != InodeId{} && flags == RENAME_NOREPLACE) return EEXIST;
    if (source == target) return 0;
    auto& moved = inodes_[source];
    if (moved.is_directory() && is_below(to, source)) return EINVAL;
    if (target == InodeId{}) return 0;
    auto& other = inodes_[target];
    if (exchange) return other.is_directory() && is_below(from, target) ? EINVAL : 0;
    if (moved.is_directory() && !other.is_directory()) return ENOTDIR;
    if (!moved.is_directory() && other.is_directory()) return EISDIR;
    return other.is_directory() && !other.entries.empty() ? ENOTEMPTY : 0;
  }
  void rename() {
    auto from = any_directory(), to = random_.chance(1, 3) ? from : any_directory();
    auto name = any_name(), new_name = any_name();
    static constexpr std::uint32_t all[] = {0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE};
    auto flags = all[random_.below(4)];
    auto source = entry(from, name), target = entry(to, new_name);
    auto expected = rename_refusal(from, to, source, target, flags);
    auto renamed =
        v_.change([&](Catalog& c) { return c.rename(from, name, to, new_name, flags, v_.now); });
    note(flags == RENAME_EXCHANGE ? "exchange" : "rename", expected, errno_of(renamed));
    if (!renamed || source == target) return;
    bool exchange = flags == RENAME_EXCHANGE;
    CHECK(renamed->has_value() == (target != InodeId{} && !exchange));
    inodes_[to].entries[new_name] = source;
    inodes_[source].parent = to;
    if (exchange) {
      inodes_[from].entries[name] = target;
      inodes_[target].parent = from;
      return;
    }
    inodes_[from].entries.erase(name);
    if (target != InodeId{}) lose_link(target);
  }
  void xattr() {
    auto inode = any([](auto&) { return true; }).value();
    auto name = "user." + any_name();
    auto& model = inodes_[inode];
    if (random_.chance(1, 3)) {
      auto removed = v_.change([&](Catalog& c) { return c.remove_xattr(inode, name, v_.now); });
      note("remove_xattr", model.xattrs.contains(name) ? 0 : ENODATA, errno_of(removed));
      model.xattrs.erase(name);
      return;
    }
    auto value = std::string(random_.below(100), 'x');
    auto set = v_.change([&](Catalog& c) { return c.set_xattr(inode, name, value, 0, v_.now); });
    note("set_xattr", 0, errno_of(set));
    model.xattrs[name] = value;
  }
  void reap() {
    auto inode = any([](auto& m) { return m.is_directory() ? m.removed : m.links == 0; });
    if (!inode) return;
    v_.must([&](Catalog& c) { return c.reap(*inode); });
    ++outcomes["reap 0"];
    CHECK(errno_of(v_.catalog->attr(*inode)) == ESTALE);
    for (std::uint64_t at = 0; at < kBlocks; ++at) lose_place(inodes_[*inode], at);
    inodes_.erase(*inode);
  }

  // --- Space
  void lose_blocks(ModelInode& model, std::uint64_t first, std::uint64_t end, char becomes = 'h') {
    for (auto at = first; at < end; ++at) {
      if (becomes == 'h' || model.blocks[at] != 'h') model.blocks[at] = becomes;
      if (becomes == 'h') lose_place(model, at);
      model.grants.erase(at);
    }
    forget_ended_grants(model);
  }
  /// A grant without unwritten blocks is none any more.
  void forget_ended_grants(ModelInode& model) {
    std::set<GrantId> alive;
    for (auto [at, id] : model.grants)
      if (model.blocks[at] == 'g') alive.insert(id);
    std::erase_if(model.grants, [&](auto& each) { return !alive.contains(each.second); });
  }
  bool all_holes(const ModelInode& model, Range range) {
    return model.blocks.find_first_not_of('h', range.first) >= range.first + range.count;
  }
  void truncate() {
    auto file = any_file();
    if (!file) return;
    auto& model = inodes_[*file];
    auto size = random_.below(kBlocks * kBlockSize);
    auto after = v_.must([&](Catalog& c) { return c.truncate(*file, size, v_.now); });
    ++outcomes["truncate 0"];
    if (size < model.size) {
      ++model.truncation;
      model.kept = false;
      lose_blocks(model, (size + kBlockSize - 1) / kBlockSize, kBlocks);
    }
    model.size = size;
    CHECK(after.size == size);
  }
  void place() {
    auto file = any_file();
    if (!file) return;
    auto& model = inodes_[*file];
    auto range = any_range();
    bool written = random_.chance(1, 2), holes = all_holes(model, range);
    auto placed = v_.change([&](Catalog& c) -> Expected<void> {
      auto runs = CSV_TRY(c.reserve_space(*file, range.count, 0, 64));
      CSV_TRY(c.place(*file, range.first, runs,
                      written ? BlockState::written : BlockState::unwritten, {}));
      if (written) CSV_TRY(c.grow(*file, (range.first + range.count) * kBlockSize, v_.now));
      return {};
    });
    CHECK(static_cast<bool>(placed) == holes);
    ++outcomes[placed ? "place 0" : "place refused"];
    if (!placed) return;
    model.blocks.replace(range.first, range.count, range.count, written ? 'w' : 'u');
    give_places(model, range);
    if (written) model.size = std::max(model.size, (range.first + range.count) * kBlockSize);
  }
  void fill() {
    auto file = any_file();
    if (!file) return;
    auto range = any_range();
    auto filled = v_.must([&](Catalog& c) { return c.fill(*file, range.first, range.count); });
    CHECK(filled.done == range.count);
    ++outcomes["fill 0"];
    auto& model = inodes_[*file];
    for (auto at = range.first; at < range.first + range.count; ++at) {
      if (model.blocks[at] != 'h') continue;
      model.blocks[at] = 'u';
      give_places(model, {at, 1});
    }
  }
  void mark() {
    auto file = any_file();
    if (!file) return;
    auto& model = inodes_[*file];
    auto range = any_range();
    if (random_.chance(2, 3)) {  // at something that can be marked
      auto at = model.blocks.find('u');
      if (at == std::string::npos) return;
      range = {at, model.blocks.find_first_not_of("uw", at)};
      range.count = std::min(range.count, kBlocks) - at;
    }
    auto end = range.first + range.count;
    bool possible = model.blocks.find_first_of("hg", range.first) >= end;
    for (auto at = range.first; at < end; ++at)
      if (names_of(model.places[at]) > 1) possible = false;
    // Somebody who named a block may not have been freed yet.
    bool was_shared = false;
    for (const auto& each : v_.map(*file, range.first, range.count))
      was_shared = was_shared || each.state == BlockState::shared;
    possible = possible && !was_shared;
    auto marked = v_.change([&](Catalog& c) -> Expected<void> {
      CSV_TRY(c.mark_written(*file, range.first, range.count));
      CSV_TRY(c.grow(*file, end * kBlockSize, v_.now));
      return {};
    });
    CHECK(static_cast<bool>(marked) == possible);
    ++outcomes[marked ? "mark 0" : "mark refused"];
    if (!marked) return;
    model.blocks.replace(range.first, range.count, range.count, 'w');
    model.size = std::max(model.size, end * kBlockSize);
  }
  void punch() {
    auto file = any_file();
    if (!file) return;
    auto range = any_range();
    bool keep = random_.chance(1, 2);
    auto punched =
        v_.must([&](Catalog& c) { return c.punch(*file, range.first, range.count, keep, v_.now); });
    CHECK(punched.done == range.count);
    ++outcomes[keep ? "zero 0" : "punch 0"];
    auto& model = inodes_[*file];
    if (keep) {
      // What was shared has become a hole.
      auto now = states(*file);
      for (auto at = range.first; at < range.first + range.count; ++at) {
        if (names_of(model.places[at]) > 1) CHECK(now[at] == 'h');
        if (now[at] == 'h' && model.blocks[at] == 'w') lose_blocks(model, at, at + 1);
      }
    }
    lose_blocks(model, range.first, range.first + range.count, keep ? 'u' : 'h');
  }
  void trim() {
    auto file = any_file();
    if (!file) return;
    auto& model = inodes_[*file];
    v_.must([&](Catalog& c) { return c.trim(*file); });
    ++outcomes["trim 0"];
    if (model.kept) return;
    for (auto at = (model.size + kBlockSize - 1) / kBlockSize; at < kBlocks; ++at)
      if (!model.grants.contains(at)) {
        model.blocks[at] = 'h';
        lose_place(model, at);
      }
  }
  void keep() {
    auto file = any_file();
    if (!file) return;
    v_.must([&](Catalog& c) { return c.keep_beyond_end(*file); });
    inodes_[*file].kept = true;
  }
  void grant() {
    auto file = any_file();
    if (!file) return;
    auto& model = inodes_[*file];
    auto range = any_range();
    auto session = sessions_[random_.below(sessions_.size())];
    GrantId id{};
    auto granted = v_.change([&](Catalog& c) -> Expected<void> {
      id = CSV_TRY(c.new_grant(session, *file));
      auto runs = CSV_TRY(c.reserve_space(*file, range.count, 0, 64));
      return c.place(*file, range.first, runs, BlockState::granted, id);
    });
    CHECK(static_cast<bool>(granted) == all_holes(model, range));
    ++outcomes[granted ? "grant 0" : "grant refused"];
    if (!granted) return;
    holders_[id] = session;
    model.blocks.replace(range.first, range.count, range.count, 'g');
    give_places(model, range);
    for (auto at = range.first; at < range.first + range.count; ++at) model.grants[at] = id;
  }
  void commit() {
    auto file = any([](auto& m) { return m.is_file() && !m.grants.empty(); });
    if (!file) return;
    auto& model = inodes_[*file];
    auto nth = model.grants.begin();
    std::advance(nth, random_.below(model.grants.size()));
    auto [at, id] = *nth;
    auto first = at - std::min(at, random_.below(3)), count = 1 + random_.below(600);
    count = std::min(count, kBlocks - first);
    auto truncation = model.truncation + (random_.chance(1, 10) ? 1 : 0);
    bool valid = truncation == model.truncation;
    for (auto b = first; b < first + count; ++b) {
      auto found = model.grants.find(b);
      if (found == model.grants.end() || found->second != id) valid = false;
    }
    auto committed = v_.change([&](Catalog& c) -> Expected<void> {
      CSV_TRY(c.commit_grant(holders_[id], *file, id, first, count, truncation));
      CSV_TRY(c.grow(*file, (first + count) * kBlockSize, v_.now));
      return {};
    });
    // What is written may have left the grant, with its row.
    bool again = false;
    for (auto b = first; b < first + count; ++b) again = again || model.blocks[b] == 'w';
    if (committed || !again) CHECK(static_cast<bool>(committed) == valid);
    if (!committed) CHECK(committed.error() == Errc::stale_commit);
    ++outcomes[committed ? "commit 0" : "commit stale"];
    if (!committed) return;
    model.blocks.replace(first, count, count, 'w');
    model.size = std::max(model.size, (first + count) * kBlockSize);
    forget_ended_grants(model);
  }
  void drop() {
    auto session = sessions_[random_.below(sessions_.size())];
    auto file = random_.chance(1, 4) ? std::optional{InodeId{}} : any_file();
    if (!file) return;
    for (;;)
      if (v_.must([&](Catalog& c) { return c.drop_grants(session, *file, 500); }) == 0) break;
    ++outcomes["drop 0"];
    for (auto& [id, model] : inodes_) {
      if (*file != InodeId{} && id != *file) continue;
      std::erase_if(model.grants, [&](auto& each) {
        if (holders_[each.second] != session) return false;
        if (model.blocks[each.first] == 'g') {
          model.blocks[each.first] = 'h';
          lose_place(model, each.first);
        }
        return true;
      });
    }
  }
  void clone() {
    auto from = any_file(), into = any_file();
    if (!from) return;
    auto& source = inodes_[*from];
    auto& target = inodes_[*into];
    auto range = any_range();
    auto at = random_.below(kBlocks - range.count + 1);
    auto granted = [](const ModelInode& model, std::uint64_t first, std::uint64_t end) {
      auto found = model.grants.lower_bound(first);
      return found != model.grants.end() && found->first < end;
    };
    bool onto_itself =
        *from == *into && range.first < at + range.count && at < range.first + range.count;
    bool refused = granted(source, range.first, range.first + range.count) ||
                   granted(target, at, at + range.count);
    std::uint64_t done = 0;
    while (done < range.count) {
      auto before = v_.catalog->space()->free;
      auto cloned = v_.change([&](Catalog& c) -> Expected<Catalog::Progress> {
        auto progress =
            CSV_TRY(c.clone(*from, range.first + done, range.count - done, *into, at + done));
        CSV_TRY(c.grow(*into, (at + done + progress.done) * kBlockSize, v_.now));
        return progress;
      });
      if (onto_itself) {
        note("clone", EINVAL, errno_of(cloned));
        return;
      }
      if (!cloned) {
        // A step before one with grants may have been done.
        CHECK(cloned.error() == Errc::refused);
        CHECK(refused);
        ++outcomes["clone refused"];
        return;
      }
      REQUIRE(cloned->done > 0);
      ++outcomes["clone 0"];
      CHECK(v_.catalog->space()->free >= before);
      for (auto end = done + cloned->done; done < end; ++done) {
        auto state = source.blocks[range.first + done];
        if (state != 'w') {
          lose_blocks(target, at + done, at + done + 1);
          continue;
        }
        give_place(target, at + done, source.places[range.first + done]);
        target.blocks[at + done] = 'w';
      }
      target.size = std::max(target.size, (at + done) * kBlockSize);
    }
    CHECK_FALSE(refused);
  }
  void replace() {
    auto file = any_file();
    if (!file) return;
    auto& model = inodes_[*file];
    auto range = any_range();
    if (random_.chance(2, 3)) {  // where something is written
      auto first = model.blocks.find('w', random_.below(kBlocks));
      if (first == std::string::npos) return;
      range = {first, std::min<std::uint64_t>(model.blocks.find_first_not_of('w', first), kBlocks)};
      range.count = std::min<std::uint64_t>(range.count - first, 1 + random_.below(64));
    }
    bool possible = true;
    for (auto at = range.first; at < range.first + range.count; ++at)
      if (model.blocks[at] != 'w' || model.grants.contains(at)) possible = false;
    auto replaced = v_.change([&](Catalog& c) -> Expected<void> {
      auto runs = CSV_TRY(c.reserve_space(*file, range.count, 0, 64));
      return c.replace(*file, range.first, runs);
    });
    CHECK(static_cast<bool>(replaced) == possible);
    ++outcomes[replaced ? "replace 0" : "replace refused"];
    if (replaced) give_places(model, range);
  }
  void free() {
    REQUIRE(v_.catalog->maintain());
    auto dying = v_.catalog->dying(1 + random_.below(20));
    REQUIRE(dying);
    v_.must([&](Catalog& c) { return c.make_free(*dying); });
  }
  void seek() {
    auto file = any_file();
    if (!file) return;
    auto& model = inodes_[*file];
    auto block = random_.below(kBlocks);
    bool data = random_.chance(1, 2);
    auto end = (model.size + kBlockSize - 1) / kBlockSize;
    auto found = v_.catalog->seek(*file, block * kBlockSize, data);
    if (block * kBlockSize >= model.size) {
      note("seek", ENXIO, errno_of(found));
      return;
    }
    auto hit = data ? model.blocks.find('w', block) : model.blocks.find_first_not_of('w', block);
    if (hit < end) {
      REQUIRE(found);
      CHECK(*found == hit * kBlockSize);
    } else if (data) {
      note("seek", ENXIO, errno_of(found));
    } else {
      CHECK(*found == model.size);
    }
  }

  Random random_;
  TestCatalog& v_;
  std::map<InodeId, ModelInode> inodes_;
  std::vector<SessionId> sessions_;
  std::map<GrantId, SessionId> holders_;
  std::map<std::uint64_t, std::uint64_t> names_;  ///< Of each place.
  std::uint64_t next_place_ = 1;
};

}  // namespace

TEST_CASE("catalog: thousands of random operations do what a simple model says, across reopens") {
  std::map<std::string, int> outcomes;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    CAPTURE(seed);
    TestCatalog v{4 * kGiB};
    History history{seed, v};
    for (int i = 1; i <= 3000; ++i) {
      CAPTURE(i);
      history.step();
      if (i % 250 != 0) continue;
      if (i % 500 == 0) REQUIRE(v.catalog->checkpoint());
      v.reopen();
      history.compare();
    }
    v.settle();
    history.compare();
    CHECK(v.catalog->space()->dying == 0);
    for (auto& [what, count] : history.outcomes) outcomes[what] += count;
  }
  // Otherwise the run proved little.
  for (const std::string what :
       {"make 0",        "make 17",    "link 0",         "unlink 0",      "rmdir 0",   "rmdir 39",
        "rename 0",      "rename 22",  "rename 39",      "rename 20",     "rename 21", "exchange 0",
        "exchange 22",   "truncate 0", "place 0",        "place refused", "fill 0",    "mark 0",
        "mark refused",  "punch 0",    "zero 0",         "trim 0",        "grant 0",   "commit 0",
        "commit stale",  "drop 0",     "reap 0",         "seek 6",        "clone 0",   "clone 22",
        "clone refused", "replace 0",  "replace refused"}) {
    CAPTURE(what);
    CHECK(outcomes[what] >= 2);
  }
}
