#include "tests/simulation/history.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"

namespace csv::sim {
namespace {

constexpr std::uint64_t kRoot = 1;
constexpr std::size_t kMostTried = 3000;  ///< For one answer.
constexpr std::size_t kMostKept = 300;

char type_of(std::uint32_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR: return 'd';
    case S_IFLNK: return 'l';
    case S_IFIFO: return 'p';
    case S_IFSOCK: return 's';
    case S_IFCHR: return 'c';
    case S_IFBLK: return 'b';
    default: return 'f';
  }
}

const char* name_of(Op::Kind kind) {
  constexpr const char* kNames[] = {
      "lookup", "attr",   "list",      "list_in_pieces", "read_link", "xattr",     "seek",
      "read",   "make",   "nameless",  "mkdir",          "symlink",   "special",   "link",
      "unlink", "rmdir",  "rename",    "chmod",          "chown",     "set_times", "truncate",
      "write",  "append", "set_xattr", "remove_xattr"};
  return kNames[static_cast<int>(kind)];
}

std::string printable(std::string_view text) {
  std::string out;
  for (auto each : text.substr(0, 44))
    out += each >= ' ' && each <= '~' ? std::string{each} : fmt::format("{:02x}", each & 0xff);
  return out;
}

/// Of a file; without execution by the group, the set-group-ID bit means locking.
std::uint32_t without_set_id(std::uint32_t mode) {
  return mode & ~(S_ISUID | ((mode & S_IXGRP) != 0 ? std::uint32_t{S_ISGID} : 0u));
}

}  // namespace

std::string AccessList::encode() const {
  std::string bytes;
  auto put = [&bytes](std::uint32_t value, int size) {
    for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xff);
  };
  auto entry = [&put](std::uint32_t tag, std::uint32_t permissions, std::uint32_t id) {
    put(tag, 2), put(permissions, 2), put(id, 4);
  };
  constexpr std::uint32_t kNobody = 0xffffffff, kSomebody = 1000;
  put(2, 4);
  entry(0x01, owner, kNobody);
  if (named) entry(0x02, named->user, kSomebody);
  entry(0x04, group, kNobody);
  if (named) entry(0x10, named->mask, kNobody);
  entry(0x20, others, kNobody);
  return bytes;
}

AccessList AccessList::decode(std::string_view bytes) {
  auto permissions = [bytes](std::size_t entry) {
    return static_cast<std::uint32_t>(bytes.at(4 + entry * 8 + 2));
  };
  AccessList list;
  list.owner = permissions(0);
  if (bytes.size() == 4 + 3 * 8) {
    list.group = permissions(1);
    list.others = permissions(2);
  } else {
    list.named = Named{permissions(1), permissions(3)};
    list.group = permissions(2);
    list.others = permissions(4);
  }
  return list;
}

std::uint32_t AccessList::mode() const {
  return owner << 6 | (named ? named->mask : group) << 3 | others;
}

std::string describe(const Op& op) {
  std::string text = name_of(op.kind);
  if (op.parent != 0) text += fmt::format(" in={}", op.parent);
  if (!op.name.empty()) text += fmt::format(" name={}", op.name);
  if (op.inode != 0) text += fmt::format(" inode={}", op.inode);
  if (op.new_parent != 0) text += fmt::format(" to={}/{}", op.new_parent, op.new_name);
  if (op.flags != 0) text += fmt::format(" flags={}", op.flags);
  if (op.kind == Op::Kind::chmod || op.kind == Op::Kind::make_special)
    text += fmt::format(" mode={:o}", op.mode);
  if (op.kind == Op::Kind::chown) text += fmt::format(" owner={}:{}", op.uid, op.gid);
  if (op.atime) text += fmt::format(" atime={}", *op.atime);
  if (op.mtime) text += fmt::format(" mtime={}", *op.mtime);
  if (op.offset != 0 || op.length != 0) text += fmt::format(" at={}+{}", op.offset, op.length);
  if (!op.text.empty()) text += " text=" + printable(op.text);
  return text;
}

std::string describe(const Outcome& outcome) {
  if (outcome.error != 0) return fmt::format("errno {} ({})", outcome.error, outcome.text);
  auto text = fmt::format("ok inode={} mode={:o} nlink={} size={} length={}", outcome.inode,
                          outcome.mode, outcome.nlink, outcome.size, outcome.length);
  if (outcome.uid != 0 || outcome.gid != 0)
    text += fmt::format(" owner={}:{}", outcome.uid, outcome.gid);
  if (outcome.rdev != 0) text += fmt::format(" rdev={}", outcome.rdev);
  if (outcome.mtime != 0) text += fmt::format(" times={},{}", outcome.atime, outcome.mtime);
  if (!outcome.text.empty()) text += " text=" + printable(outcome.text);
  for (const auto& entry : outcome.entries) {
    text += fmt::format(" {}:{}({})", entry.name, entry.inode, entry.size);
  }
  return text;
}

History::History(Number root) {
  Tree first;
  Inode inode;
  inode.type = 'd';
  inode.mode = 0755;
  inode.links = 2;
  inode.parent = kRoot;
  first.make(kRoot, std::move(inode));
  first.set_number(kRoot, root);
  put(configs_, Config{SharedTree{std::move(first)}, {}, {}});
}

void History::Digest::add(std::uint64_t value) {
  one = (one ^ value) * 0xff51afd7ed558ccdull;
  one ^= one >> 32;
  two = (two + value) * 0xc4ceb9fe1a85ec53ull;
  two ^= two >> 29;
}

void History::Digest::add(std::string_view text) {
  add(text.size());
  while (!text.empty()) {
    std::uint64_t word = 0;
    auto count = std::min(text.size(), sizeof word);
    std::memcpy(&word, text.data(), count);
    add(word);
    text.remove_prefix(count);
  }
}

History::Digest History::Inode::digest() const {
  Digest out;
  out.add(static_cast<std::uint64_t>(type));
  out.add(mode);
  out.add(size);
  out.add(links);
  out.add(uid);
  out.add(gid);
  out.add(rdev);
  out.add(nameless ? 1u : 0u);
  for (const auto& time : {atime, mtime}) {
    out.add(static_cast<std::uint64_t>(time.set));
    out.add(time.doubtful ? 1u : 0u);
  }
  out.add(entries.size());
  for (const auto& [name, node] : entries) out.add(name), out.add(node);
  out.add(parent);
  out.add(target);
  out.add(xattrs.size());
  for (const auto& [name, value] : xattrs) out.add(name), out.add(value);
  return out;
}

History::Digest History::Expect::digest() const {
  Digest out;
  auto all = errors.all();
  out.add(all.size());
  for (auto error : all) out.add(static_cast<std::uint64_t>(error));
  out.add(node);
  out.add(static_cast<std::uint64_t>(type));
  out.add(mode);
  out.add(links);
  out.add(uid);
  out.add(gid);
  out.add(rdev);
  if (times)
    for (const auto& time : {times->first, times->second}) {
      out.add(static_cast<std::uint64_t>(time.set));
      out.add(time.doubtful ? 1u : 0u);
    }
  out.add(least);
  out.add(most);
  out.add(any ? 1u : 0u);
  out.add(text);
  out.add(entries.size());
  for (const auto& entry : entries) {
    out.add(entry.name);
    out.add(entry.node);
    out.add(static_cast<std::uint64_t>(entry.type));
    out.add(entry.mode);
    out.add(entry.least);
    out.add(entry.most);
  }
  return out;
}

std::vector<int> History::Errnos::all() const {
  std::vector<int> out;
  for (int error = 0; error < kMost; ++error)
    if (contains(error)) out.push_back(error);
  return out;
}

void History::Seen::insert(SharedExpect expect) {
  auto place = std::lower_bound(all_.begin(), all_.end(), expect);
  if (place != all_.end() && place->digest == expect.digest) return;
  all_.insert(place, std::move(expect));
  weigh();
}

void History::Seen::merge(const Seen& more) {
  std::vector<SharedExpect> both;
  both.reserve(all_.size() + more.all_.size());
  std::set_union(all_.begin(), all_.end(), more.all_.begin(), more.all_.end(),
                 std::back_inserter(both));
  all_ = std::move(both);
  weigh();
}

bool History::Seen::includes(const Seen& less) const {
  return std::includes(all_.begin(), all_.end(), less.all_.begin(), less.all_.end());
}

void History::Seen::weigh() {
  digest_ = {};
  for (const auto& each : all_) digest_.add(each.digest);
}

const History::Tree::Place& History::Tree::find(Node node) const {
  auto place = std::lower_bound(places_.begin(), places_.end(), node,
                                [](const Place& at, Node wanted) { return at.node < wanted; });
  CSV_CHECK(place != places_.end() && place->node == node);
  return *place;
}

History::Inode& History::Tree::at(Node node) {
  auto& held = const_cast<Place&>(find(node)).held;
  if (held.use_count() > 1) held = std::make_shared<Place::Held>(*held);
  held->digest.reset();
  digest_.reset();
  return held->inode;
}

void History::Tree::make(Node node, Inode inode) {
  auto place = std::lower_bound(places_.begin(), places_.end(), node,
                                [](const Place& at, Node wanted) { return at.node < wanted; });
  CSV_CHECK(place == places_.end() || place->node != node);
  places_.insert(place,
                 {node, 0, std::make_shared<Place::Held>(Place::Held{std::move(inode), {}})});
  digest_.reset();
}

void History::Tree::erase(Node node) {
  std::erase_if(places_, [node](const Place& at) { return at.node == node; });
  digest_.reset();
}

void History::Tree::set_number(Node node, Number number) {
  const_cast<Place&>(find(node)).number = number;
  digest_.reset();
}

std::optional<History::Node> History::Tree::node_of(Number number) const {
  for (const auto& place : places_)
    if (place.number == number && number != 0) return place.node;
  return {};
}

const History::Digest& History::Tree::digest() const {
  if (!digest_) {
    digest_ = Digest{};
    for (const auto& place : places_) {
      if (!place.held->digest) place.held->digest = place.held->inode.digest();
      digest_->add(place.node);
      digest_->add(place.number);
      digest_->add(*place.held->digest);
    }
  }
  return *digest_;
}

History::Key History::key_of(const Config& config) {
  Key key;
  key.tree = config.tree->digest();
  for (const auto& [id, expect] : config.done) key.done.add(id), key.done.add(expect.digest);
  for (const auto& [id, seen] : config.seen) key.seen.add(id), key.seen.add(seen.digest());
  return key;
}

void History::put(Configs& into, Config config) {
  auto key = key_of(config);
  into.try_emplace(key, std::move(config));
}

std::optional<History::Node> History::node_of(const Config& config, Number number) const {
  return config.tree->node_of(number);
}

void History::note_size(const Config& config, Node node, std::uint64_t& least,
                        std::uint64_t& most) const {
  least = most = config.tree->at(node).size;
  auto number = config.tree->number(node);
  if (number == 0) return;
  for (const auto& [id, pending] : pending_) {
    const auto& op = pending.op;
    if (op.inode != number || op.kind != Op::Kind::write || config.done.contains(id)) continue;
    most = std::max(most, op.offset + op.length);
  }
}

History::Expect History::look(const Config& config, const Op& op) const {
  using Kind = Op::Kind;
  Expect expect;
  auto fail = [&expect](std::initializer_list<int> errors) {
    expect.errors = errors;
    return expect;
  };
  auto fill = [&](Node node) {
    const auto& inode = config.tree->at(node);
    expect.errors = {0};
    expect.node = node;
    expect.type = inode.type;
    expect.mode = inode.mode;
    expect.links = inode.links;
    expect.uid = inode.uid;
    expect.gid = inode.gid;
    expect.rdev = inode.rdev;
    if (op.times) expect.times = {inode.atime, inode.mtime};
    note_size(config, node, expect.least, expect.most);
  };
  if (op.kind == Kind::lookup) {
    auto parent = node_of(config, op.parent);
    if (!parent) return fail({ESTALE, ENOENT});
    const auto& directory = config.tree->at(*parent);
    if (directory.type != 'd') return fail({ENOTDIR});
    auto entry = directory.entries.find(op.name);
    if (entry == directory.entries.end()) {
      return directory.links == 0 ? fail({ENOENT, ESTALE}) : fail({ENOENT});
    }
    fill(entry->second);
    return expect;
  }
  auto node = node_of(config, op.inode);
  if (!node) {
    expect.any = true;
    return expect;
  }
  const auto& inode = config.tree->at(*node);
  bool may_be_gone = inode.links == 0 && !op.open;
  switch (op.kind) {
    case Kind::attr: fill(*node); break;
    case Kind::list:
      if (inode.type != 'd') {
        expect.errors = {ENOTDIR};
        break;
      }
      expect.errors = {0};
      for (const auto& [name, entry] : inode.entries) {
        const auto& there = config.tree->at(entry);
        Expect::Entry one{.name = name, .node = entry, .type = there.type, .mode = there.mode};
        note_size(config, entry, one.least, one.most);
        expect.entries.push_back(std::move(one));
      }
      break;
    case Kind::list_in_pieces:  // of whose attributes it says nothing
      if (inode.type != 'd') {
        expect.errors = {ENOTDIR};
        break;
      }
      expect.errors = {0};
      for (const auto& [name, entry] : inode.entries)
        expect.entries.push_back(
            {.name = name, .node = entry, .type = config.tree->at(entry).type});
      break;
    case Kind::read_link:
      if (inode.type != 'l') {
        expect.errors = {EINVAL};
        break;
      }
      expect.errors = {0};
      expect.text = inode.target;
      break;
    case Kind::xattr: {
      auto value = inode.xattrs.find(op.name);
      if (value == inode.xattrs.end()) {
        expect.errors = {ENODATA};
      } else {
        expect.errors = {0};
        expect.text = value->second;
      }
      break;
    }
    case Kind::read:
      expect.errors = {0};
      note_size(config, *node, expect.least, expect.most);
      break;
    case Kind::seek:  // whether there is any data, the content's judge knows
      note_size(config, *node, expect.least, expect.most);
      if (op.offset < expect.most) expect.errors.insert(0);
      if (op.offset >= expect.least || op.flags == SEEK_DATA) expect.errors.insert(ENXIO);
      break;
    default: CSV_CHECK(false);
  }
  if (may_be_gone) {
    expect.errors.insert(ESTALE);
    expect.errors.insert(ENOENT);
  }
  return expect;
}

History::Expect History::change(Config& config, Id id, const Op& op) const {
  auto expect = changed(config, id, op);
  // Of those only errors are answered.
  using Kind = Op::Kind;
  switch (op.kind) {
    case Kind::write:
    case Kind::append:
    case Kind::set_xattr:
    case Kind::remove_xattr: {
      Expect less;
      less.errors = std::move(expect.errors);
      less.any = expect.any;
      return less;
    }
    default: return expect;
  }
}

History::Expect History::changed(Config& config, Id id, const Op& op) const {
  using Kind = Op::Kind;
  auto& tree = config.tree.mine();
  Expect expect;
  auto fail = [&expect](std::initializer_list<int> errors) {
    expect.errors = errors;
    return expect;
  };
  auto directory_of = [&](Number number, Inode*& into) -> Errnos {
    auto node = node_of(config, number);
    if (!node) return {ESTALE, ENOENT};
    into = &tree.at(*node);
    if (into->type != 'd') return {ENOTDIR};
    if (into->links == 0) return {ENOENT, ESTALE};
    return {};
  };
  auto fill = [&](Node node) {
    const auto& inode = tree.at(node);
    expect.errors = {0};
    expect.node = node;
    expect.type = inode.type;
    expect.mode = inode.mode;
    expect.links = inode.links;
    expect.uid = inode.uid;
    expect.gid = inode.gid;
    expect.rdev = inode.rdev;
    note_size(config, node, expect.least, expect.most);
  };
  auto drop = [&](Inode& directory, const std::string& name) {
    auto entry = directory.entries.find(name);
    auto& inode = tree.at(entry->second);
    if (inode.type == 'd') {
      inode.links = 0;
      --directory.links;
    } else {
      --inode.links;
    }
    directory.entries.erase(entry);
    directory.mtime = {};
  };

  switch (op.kind) {
    case Kind::make_file:
    case Kind::make_nameless:
    case Kind::make_directory:
    case Kind::make_symlink:
    case Kind::make_special: {
      Inode* directory = nullptr;
      if (auto bad = directory_of(op.parent, directory); !bad.empty()) {
        expect.errors = bad;
        return expect;
      }
      bool named = op.kind != Kind::make_nameless;
      if (named && directory->entries.contains(op.name)) return fail({EEXIST});
      Inode made;
      made.mode = op.mode & 07777;
      made.links = 1;
      made.parent = *node_of(config, op.parent);
      if ((directory->mode & S_ISGID) != 0) made.gid = directory->gid;
      if (op.kind == Kind::make_directory) {
        made.type = 'd';
        made.links = 2;
        made.mode |= directory->mode & S_ISGID;
        ++directory->links;
      } else if (op.kind == Kind::make_symlink) {
        made.type = 'l';
        made.target = op.text;
        made.size = op.text.size();
      } else if (op.kind == Kind::make_special) {
        made.type = type_of(op.mode);
        made.rdev = op.rdev;
      } else if (!named) {
        made.links = 0;
        made.nameless = true;
      }
      auto defaults = directory->xattrs.find(kDefaultList);
      if (defaults != directory->xattrs.end() && made.type != 'l') {
        auto list = AccessList::decode(defaults->second);
        list.owner &= made.mode >> 6 & 7;
        (list.named ? list.named->mask : list.group) &= made.mode >> 3 & 7;
        list.others &= made.mode & 7;
        made.mode = (made.mode & ~0777u) | list.mode();
        if (list.named) made.xattrs[kAccessList] = list.encode();
        if (made.type == 'd') made.xattrs[kDefaultList] = defaults->second;
      }
      if (named) {
        directory->entries[op.name] = id;
        directory->mtime = {};
      }
      tree.make(id, made);
      fill(id);
      return expect;
    }
    case Kind::link: {
      auto node = node_of(config, op.inode);
      Inode* directory = nullptr;
      auto bad = directory_of(op.parent, directory);
      bool nameless = node && op.open && tree.at(*node).nameless;
      if (!node || (tree.at(*node).links == 0 && !nameless)) bad.insert({ENOENT, ESTALE});
      if (node && tree.at(*node).type == 'd') bad.insert(EPERM);
      if (directory != nullptr && directory->entries.contains(op.name)) bad.insert(EEXIST);
      if (!bad.empty()) {
        expect.errors = bad;
        return expect;
      }
      directory->entries[op.name] = *node;
      directory->mtime = {};
      ++tree.at(*node).links;
      tree.at(*node).nameless = false;
      fill(*node);
      return expect;
    }
    case Kind::unlink:
    case Kind::rmdir: {
      Inode* directory = nullptr;
      if (auto bad = directory_of(op.parent, directory); !bad.empty()) {
        expect.errors = bad;
        return expect;
      }
      auto entry = directory->entries.find(op.name);
      if (entry == directory->entries.end()) return fail({ENOENT});
      const auto& inode = tree.at(entry->second);
      if (op.kind == Kind::unlink && inode.type == 'd') return fail({EISDIR, EPERM});
      if (op.kind == Kind::rmdir && inode.type != 'd') return fail({ENOTDIR});
      if (inode.type == 'd' && !inode.entries.empty()) return fail({ENOTEMPTY});
      drop(*directory, op.name);
      expect.errors = {0};
      return expect;
    }
    case Kind::rename: {
      Inode *from = nullptr, *to = nullptr;
      auto bad = directory_of(op.parent, from);
      bad.merge(directory_of(op.new_parent, to));
      if (!bad.empty()) {
        expect.errors = bad;
        return expect;
      }
      bool exchange = (op.flags & RENAME_EXCHANGE) != 0;
      auto source = from->entries.find(op.name);
      auto target = to->entries.find(op.new_name);
      bool has_target = target != to->entries.end();
      if (source == from->entries.end() || (exchange && !has_target)) bad.insert(ENOENT);
      if (has_target && (op.flags & RENAME_NOREPLACE) != 0) bad.insert(EEXIST);
      if (!bad.empty()) {
        expect.errors = bad;
        return expect;
      }
      expect.errors = {0};
      auto moved = source->second;
      if (has_target && target->second == moved) return expect;
      auto within = [&](Node inner, Node outer) {
        for (auto at = inner;; at = tree.at(at).parent) {
          if (at == outer) return true;
          if (at == kRoot) return false;
        }
      };
      auto from_node = *node_of(config, op.parent), to_node = *node_of(config, op.new_parent);
      auto& inode = tree.at(moved);
      if (inode.type == 'd' && within(to_node, moved)) bad.insert(EINVAL);
      if (exchange && tree.at(target->second).type == 'd' && within(from_node, target->second)) {
        bad.insert(EINVAL);
      }
      if (has_target && !exchange) {
        const auto& there = tree.at(target->second);
        if (inode.type == 'd' && there.type != 'd') bad.insert(ENOTDIR);
        if (inode.type != 'd' && there.type == 'd') bad.insert(EISDIR);
        if (there.type == 'd' && !there.entries.empty()) bad.insert({ENOTEMPTY, EEXIST});
      }
      if (!bad.empty()) {
        expect.errors = bad;
        return expect;
      }
      auto put = [&](Inode& directory, Node where, const std::string& name, Node what) {
        directory.entries[name] = what;
        auto& it = tree.at(what);
        it.parent = where;
        directory.mtime = {};
        if (it.type == 'd') ++directory.links;
      };
      if (exchange) {
        auto other = target->second;
        if (inode.type == 'd') --from->links;
        if (tree.at(other).type == 'd') --to->links;
        put(*from, from_node, op.name, other);
        put(*to, to_node, op.new_name, moved);
      } else {
        if (has_target) drop(*to, op.new_name);
        from->entries.erase(op.name);
        from->mtime = {};
        if (inode.type == 'd') --from->links;
        put(*to, to_node, op.new_name, moved);
      }
      return expect;
    }
    default: break;
  }

  auto node = node_of(config, op.inode);
  if (!node) {
    expect.any = true;
    return expect;
  }
  auto& inode = tree.at(*node);
  bool may_be_gone = inode.links == 0 && !op.open;
  switch (op.kind) {
    case Kind::chmod:
      inode.mode = op.mode;
      if (auto list = inode.xattrs.find(kAccessList); list != inode.xattrs.end()) {
        auto now = AccessList::decode(list->second);
        now.owner = op.mode >> 6 & 7;
        (now.named ? now.named->mask : now.group) = op.mode >> 3 & 7;
        now.others = op.mode & 7;
        list->second = now.encode();
      }
      break;
    case Kind::chown:
      if (inode.type != 'd') inode.mode = without_set_id(inode.mode);
      inode.uid = op.uid;
      inode.gid = op.gid;
      break;
    case Kind::set_times:
      if (op.atime) inode.atime = {*op.atime};
      if (op.mtime) inode.mtime = {*op.mtime, !op.times && *op.mtime != 0};
      break;
    case Kind::truncate:
      if (inode.type == 'd') {
        expect.errors = {EISDIR, EINVAL};
      } else if (inode.type != 'f') {
        expect.errors = {EINVAL};
      } else {
        if (inode.size != op.length)
          inode.mtime = {};
        else
          inode.mtime.written();
        inode.size = op.length;
      }
      break;
    case Kind::write:
      inode.size = std::max(inode.size, op.offset + op.length);
      inode.mtime.written();
      break;
    case Kind::append:
      inode.size += op.length;
      inode.mtime.written();
      break;
    case Kind::set_xattr: {
      bool access = op.name == kAccessList, defaults = op.name == kDefaultList;
      if ((access || defaults) && inode.type == 'l') {
        expect.errors = {EOPNOTSUPP};
      } else if (defaults && inode.type != 'd') {
        expect.errors = {EACCES};
      } else if (op.flags == XATTR_CREATE && inode.xattrs.contains(op.name)) {
        expect.errors = {EEXIST};
      } else if (op.flags == XATTR_REPLACE && !inode.xattrs.contains(op.name)) {
        expect.errors = {ENODATA};
      } else {
        inode.xattrs[op.name] = op.text;
        if (!access) break;
        auto list = AccessList::decode(op.text);
        inode.mode = (inode.mode & ~0777u) | list.mode();
        if (!list.named) inode.xattrs.erase(op.name);  // it says no more than the mode does
      }
      break;
    }
    case Kind::remove_xattr:
      if (inode.xattrs.erase(op.name) == 0 && op.name != kAccessList && op.name != kDefaultList)
        expect.errors = {ENODATA};
      break;
    default: CSV_CHECK(false);
  }
  if (expect.errors.empty()) fill(*node);
  if (may_be_gone) {
    expect.errors.insert(ESTALE);
    expect.errors.insert(ENOENT);
  }
  return expect;
}

bool History::bind(Config& config, Node node, Number number) const {
  auto known = config.tree->number(node);
  if (known != 0) return known == number;
  if (node_of(config, number)) return false;
  config.tree.mine().set_number(node, number);
  return true;
}

bool History::matches(Config& config, const Op& op, const Expect& expect,
                      const Outcome& outcome) const {
  using Kind = Op::Kind;
  if (expect.any) return true;
  if (!expect.errors.contains(outcome.error)) return false;
  if (outcome.error != 0) return true;
  auto sized = [](const auto& want, std::uint64_t size) {
    return want.type != 'f' || (want.least <= size && size <= want.most);
  };
  switch (op.kind) {
    case Kind::unlink:
    case Kind::rmdir:
    case Kind::rename:
    case Kind::set_xattr:
    case Kind::remove_xattr:
    case Kind::append:
    case Kind::write: return true;
    case Kind::read_link:
    case Kind::xattr: return outcome.text == expect.text;
    case Kind::read: {
      auto clamp = [&op](std::uint64_t size) {
        return size <= op.offset ? 0 : std::min(op.length, size - op.offset);
      };
      return clamp(expect.least) <= outcome.length && outcome.length <= clamp(expect.most);
    }
    case Kind::seek:
      return op.offset <= outcome.size &&
             outcome.size < expect.most + (op.flags == SEEK_HOLE ? 1 : 0);
    case Kind::list: {
      if (outcome.entries.size() != expect.entries.size()) return false;
      for (std::size_t i = 0; i < expect.entries.size(); ++i) {
        const auto& want = expect.entries[i];
        const auto& got = outcome.entries[i];
        if (want.name != got.name || want.type != type_of(got.mode) ||
            want.mode != (got.mode & 07777) || !sized(want, got.size) ||
            !bind(config, want.node, got.inode)) {
          return false;
        }
      }
      return true;
    }
    default:
      if (expect.times && (!expect.times->first.shows_as(outcome.atime) ||
                           !expect.times->second.shows_as(outcome.mtime)))
        return false;
      if (expect.type != type_of(outcome.mode) || expect.mode != (outcome.mode & 07777) ||
          expect.links != outcome.nlink || expect.uid != outcome.uid || expect.gid != outcome.gid ||
          expect.rdev != outcome.rdev || !sized(expect, outcome.size) ||
          !bind(config, expect.node, outcome.inode))
        return false;
      if (expect.times) note_times(config, expect, outcome);
      return true;
  }
}

/// A set time that has been seen replaced never comes back.
void History::note_times(Config& config, const Expect& expect, const Outcome& outcome) const {
  const auto& then = expect.times->second;
  if (!then.doubtful || outcome.mtime < kClocks || config.tree->at(expect.node).mtime != then)
    return;
  config.tree.mine().at(expect.node).mtime = {};
}

/// A listing that was made piece by piece, among all that the directory was meanwhile: what was
/// there all the time stands in it once, and nothing that never was.
bool History::pieces_fit(const Config& config, const Seen& seen, const Outcome& outcome) const {
  std::map<std::string, std::size_t> always;  // and how often it was found
  bool first = true;
  for (const auto& each : seen) {
    const auto& then = *each.value;
    if (then.any) return true;
    if (outcome.error != 0 && then.errors.contains(outcome.error)) return true;
    std::map<std::string, std::size_t> there;
    for (const auto& entry : then.entries) there.emplace(entry.name, 0);
    if (first) always = there;
    std::erase_if(always, [&there](const auto& name) { return !there.contains(name.first); });
    first = false;
  }
  if (outcome.error != 0) return false;
  for (const auto& got : outcome.entries) {
    bool was_there = std::any_of(seen.begin(), seen.end(), [&](const auto& each) {
      const auto& all = each.value->entries;
      return std::any_of(all.begin(), all.end(), [&](const Expect::Entry& entry) {
        if (entry.name != got.name || entry.type != type_of(got.mode)) return false;
        auto number = config.tree->number(entry.node);
        return number == 0 ? !node_of(config, got.inode) : number == got.inode;
      });
    });
    if (!was_there) return false;
    if (auto name = always.find(got.name); name != always.end()) ++name->second;
  }
  return std::all_of(always.begin(), always.end(),
                     [](const auto& name) { return name.second == 1; });
}

void History::see(Config& config) const {
  for (const auto& [id, pending] : pending_) {
    if (!pending.op.changes() && !pending.abandoned)
      config.seen[id].insert(SharedExpect{look(config, pending.op)});
  }
}

History::Id History::begin(Op op) {
  auto id = next_++;
  if (gave_up_) return id;
  pending_[id] = {std::move(op)};
  Configs next;
  while (!configs_.empty()) {
    auto config = std::move(configs_.extract(configs_.begin()).mapped());
    // Sizes that looks under way may see have changed too.
    see(config);
    put(next, std::move(config));
  }
  configs_ = std::move(next);
  return id;
}

/// Explanations that differ only in what one pending look could have seen are one: whatever it
/// sees, it leaves the same behind. With several looks that would allow pairs nobody could see.
void History::keep(Configs configs) {
  if (gave_up_) return;
  configs_.clear();
  // Equal but for what was seen; the set is ordered by tree and what is done first.
  std::vector<Config> group;
  auto close = [&] {
    for (bool merged = true; merged;) {
      merged = false;
      for (std::size_t a = 0; a < group.size(); ++a) {
        for (std::size_t b = a + 1; b < group.size();) {
          std::vector<Id> differing;
          for (const auto& [id, seen] : group[a].seen) {
            if (group[b].seen.at(id).digest() != seen.digest()) differing.push_back(id);
          }
          auto covers = [&](const Config& more, const Config& less) {
            return std::all_of(differing.begin(), differing.end(),
                               [&](Id id) { return more.seen.at(id).includes(less.seen.at(id)); });
          };
          bool one = differing.size() <= 1 || covers(group[a], group[b]);
          if (!one && !covers(group[b], group[a])) {
            ++b;
            continue;
          }
          for (auto id : differing) group[a].seen[id].merge(group[b].seen[id]);
          group.erase(group.begin() + static_cast<std::ptrdiff_t>(b));
          merged = true;
        }
      }
    }
    for (auto& config : group) put(configs_, std::move(config));
    group.clear();
  };
  Key last;
  while (!configs.empty()) {
    auto config = configs.extract(configs.begin());
    const auto& key = config.key();
    if (!group.empty() && (last.tree != key.tree || last.done != key.done)) close();
    last = key;
    group.push_back(std::move(config.mapped()));
  }
  close();
  if (configs_.size() > kMostKept) give_up();
}

void History::give_up() {
  gave_up_ = true;
  why_ = fmt::format("{} explanations, {} operations under way:", configs_.size(), pending_.size());
  for (const auto& [id, pending] : pending_) {
    why_ += "\n  " + sim::describe(pending.op) + (pending.abandoned ? " (abandoned)" : "");
  }
}

void History::do_early(Config& config, Id id, const Pending& pending) const {
  auto expect = change(config, id, pending.op);
  config.done.insert_or_assign(id, SharedExpect{pending.abandoned ? Expect{} : std::move(expect)});
  see(config);
}

void History::abandon(Id id) {
  if (gave_up_) return;
  auto& pending = pending_.at(id);
  pending.abandoned = true;
  Configs next;
  while (!configs_.empty()) {
    auto config = std::move(configs_.extract(configs_.begin()).mapped());
    config.seen.erase(id);
    if (auto done = config.done.find(id); done != config.done.end()) {
      done->second = SharedExpect{Expect{}};
    }
    put(next, std::move(config));
  }
  if (!pending.op.changes()) pending_.erase(id);
  keep(std::move(next));
}

/// All ways to go on from `from` so that operation `id`, answered `outcome`, is explained: pending
/// changes are done, one after the other, until it fits.
bool History::explore(const Config& from, Id id, const Op& op, const Outcome* outcome,
                      Configs& into, std::set<Key>& visited) const {
  if (!visited.insert(key_of(from)).second) return true;
  if (visited.size() > kMostTried) return false;
  auto settled = [&](Config config) {
    config.done.erase(id);
    config.seen.erase(id);
    put(into, std::move(config));
  };
  auto fits = [&](Config& config, const Expect& expect) {
    return outcome == nullptr || matches(config, op, expect, *outcome);
  };
  if (op.changes()) {
    auto already = from.done.find(id);
    if (already != from.done.end()) {
      auto config = from;
      if (fits(config, *already->second.value)) settled(std::move(config));
      return true;
    }
    auto config = from;
    auto expect = change(config, id, op);
    if (fits(config, expect)) {
      config.done.insert_or_assign(id, SharedExpect{std::move(expect)});
      see(config);
      settled(std::move(config));
    }
  } else {
    bool found = false;
    auto seen = from.seen.find(id);
    CSV_CHECK(seen != from.seen.end());
    if (op.kind == Op::Kind::list_in_pieces) {
      found = outcome == nullptr || pieces_fit(from, seen->second, *outcome);
      if (found) settled(from);
    } else {
      for (const auto& expect : seen->second) {
        auto config = from;
        if (!fits(config, *expect.value)) continue;
        settled(std::move(config));
        found = true;
      }
    }
    if (found) return true;
  }
  for (const auto& [other, pending] : pending_) {
    if (other == id || !pending.op.changes() || from.done.contains(other)) continue;
    auto config = from;
    do_early(config, other, pending);
    if (!explore(config, id, op, outcome, into, visited)) return false;
  }
  return true;
}

bool History::end(Id id, const Outcome& given) {
  if (gave_up_) return true;
  auto outcome = given;
  std::sort(outcome.entries.begin(), outcome.entries.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  auto op = pending_.at(id).op;
  Configs next;
  std::set<Key> visited;
  for (const auto& [key, config] : configs_) {
    if (explore(config, id, op, &outcome, next, visited)) continue;
    give_up();
    return true;
  }
  if (next.empty()) {
    why_ = sim::describe(op) + " was answered " + sim::describe(outcome) + "; expected ";
    auto config = configs_.begin()->second;
    auto done = config.done.find(id);
    why_ += describe(done != config.done.end() ? *done->second.value
                     : op.changes()            ? change(config, id, op)
                                               : look(config, op));
    why_ += fmt::format(" (one of {} explanations, {} pending)", configs_.size(), pending_.size());
    return false;
  }
  pending_.erase(id);
  keep(std::move(next));
  return true;
}

bool History::refuse(Id id) {
  if (gave_up_) return true;
  const auto& op = pending_.at(id).op;
  bool in_parts =
      op.kind == Op::Kind::write || op.kind == Op::Kind::append || op.kind == Op::Kind::truncate;
  Configs next;
  for (const auto& [key, config] : configs_) {
    auto without = config;
    without.seen.erase(id);
    if (without.done.erase(id) != 0) continue;
    // Of content parts may have been made, which the mtime then tells of.
    if (auto node = node_of(without, op.inode); in_parts && node) {
      without.tree.mine().at(*node).mtime.written();
      see(without);
      without.seen.erase(id);
    }
    put(next, std::move(without));
  }
  if (next.empty()) {
    why_ = sim::describe(pending_.at(id).op) + " was refused, but what it does was seen";
    return false;
  }
  pending_.erase(id);
  keep(std::move(next));
  return true;
}

bool History::shorten(Id id, std::uint64_t length) {
  if (gave_up_) return true;
  Configs next;
  for (const auto& [key, config] : configs_)
    if (!config.done.contains(id)) put(next, config);
  auto& op = pending_.at(id).op;
  if (next.empty()) {
    why_ = sim::describe(op) + fmt::format(" did {}, but all that it does was seen", length);
    return false;
  }
  op.length = length;
  keep(std::move(next));
  return true;
}

void History::settle(Id id) {
  // A look that was abandoned is nothing to wait for.
  if (gave_up_ || !pending_.contains(id)) return;
  auto op = pending_.at(id).op;
  Configs next;
  std::set<Key> visited;
  for (const auto& [key, config] : configs_) {
    if (op.changes() && !explore(config, id, op, nullptr, next, visited)) return give_up();
    auto without = config;
    without.seen.erase(id);
    if (without.done.erase(id) == 0) put(next, std::move(without));
  }
  pending_.erase(id);
  keep(std::move(next));
}

History::Sizes History::sizes(Number inode) const {
  Sizes sizes{~0ull, 0};
  for (const auto& [key, config] : configs_) {
    auto node = node_of(config, inode);
    if (!node) continue;
    std::uint64_t least = 0, most = 0;
    note_size(config, *node, least, most);
    sizes.least = std::min(sizes.least, least);
    sizes.most = std::max(sizes.most, most);
  }
  if (sizes.least > sizes.most) sizes = {};
  return sizes;
}

void History::forget_orphans(const std::set<Number>& open) {
  if (gave_up_ || !pending_.empty()) return;
  Configs next;
  while (!configs_.empty()) {
    auto config = std::move(configs_.extract(configs_.begin()).mapped());
    std::vector<Node> gone;
    for (const auto& place : config.tree->places()) {
      if (place.held->inode.links > 0) continue;
      if (place.number != 0 && open.contains(place.number)) continue;
      gone.push_back(place.node);
    }
    for (auto node : gone) config.tree.mine().erase(node);
    put(next, std::move(config));
  }
  configs_ = std::move(next);
}

std::string History::describe(const Expect& expect) {
  if (expect.any) return "anything";
  std::string text;
  for (auto error : expect.errors.all())
    text += error == 0 ? "ok " : fmt::format("errno {} ", error);
  text += fmt::format("node={} type={} mode={:o} nlink={} size={}..{}", expect.node,
                      expect.type == 0 ? '-' : expect.type, expect.mode, expect.links, expect.least,
                      expect.most);
  if (expect.uid != 0 || expect.gid != 0)
    text += fmt::format(" owner={}:{}", expect.uid, expect.gid);
  if (expect.rdev != 0) text += fmt::format(" rdev={}", expect.rdev);
  if (expect.times)
    for (const auto& time : {expect.times->first, expect.times->second})
      text += fmt::format(" time={}{}", time.set, time.doubtful ? " or of a clock" : "");
  if (!expect.text.empty()) text += " text=" + printable(expect.text);
  for (const auto& entry : expect.entries) {
    text += fmt::format(" {}:{}({}..{})", entry.name, entry.node, entry.least, entry.most);
  }
  return text;
}

}  // namespace csv::sim
