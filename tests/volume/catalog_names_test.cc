#include <linux/fs.h>
#include <sys/xattr.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "csvfs/base/random.h"
#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

namespace {

Expected<Attr> make(TestCatalog& v, InodeId parent, std::string_view name, std::uint32_t mode) {
  return v.change([&](Catalog& c) { return c.make(parent, name, {.mode = mode}, v.now); });
}
Expected<Attr> link(TestCatalog& v, InodeId inode, InodeId parent, std::string_view name) {
  return v.change([&](Catalog& c) { return c.link(inode, parent, name, v.now); });
}
Expected<Attr> unlink(TestCatalog& v, InodeId parent, std::string_view name) {
  return v.change([&](Catalog& c) { return c.unlink(parent, name, v.now); });
}
Expected<Attr> rmdir(TestCatalog& v, InodeId parent, std::string_view name) {
  return v.change([&](Catalog& c) { return c.rmdir(parent, name, v.now); });
}
Expected<std::optional<Attr>> rename(TestCatalog& v, InodeId parent, std::string_view name,
                                     InodeId new_parent, std::string_view new_name,
                                     std::uint32_t flags = 0) {
  return v.change(
      [&](Catalog& c) { return c.rename(parent, name, new_parent, new_name, flags, v.now); });
}
std::vector<std::string> names(TestCatalog& v, InodeId directory) {
  std::vector<std::string> found;
  auto entries = v.catalog->list(directory, 0, 1000);
  REQUIRE(entries);
  for (const auto& entry : *entries) found.push_back(entry.name);
  return found;
}
InodeId id_of(TestCatalog& v, InodeId directory, std::string_view name) {
  auto found = v.catalog->lookup(directory, name);
  return found ? found->inode : InodeId{};
}

}  // namespace

TEST_CASE("catalog: what was made is found again after a crash that left everything in the log") {
  TestCatalog v;
  auto dir = v.directory("dir");
  auto made = v.file("file", dir.inode);
  v.reopen();
  auto found = v.catalog->lookup(dir.inode, "file");
  REQUIRE(found);
  CHECK(found->inode == made.inode);
  CHECK(found->nlink == 1);
  CHECK(found->parent == dir.inode);
  CHECK(v.catalog->lookup(kRootInode, "dir")->size == 1);
  CHECK(v.catalog->lookup(kRootInode, "dir")->nlink == 2);
  CHECK(v.catalog->attr(kRootInode)->nlink == 3);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a checkpoint and a reopen change nothing that can be seen") {
  TestCatalog v;
  auto made = v.file("file");
  REQUIRE(v.catalog->checkpoint());
  CHECK(v.catalog->statistics().wal_bytes == 0);
  v.reopen();
  CHECK(id_of(v, kRootInode, "file") == made.inode);
  CHECK(v.file("next").inode > made.inode);
}

TEST_CASE("catalog: numbers of inodes, sessions, grants and keys are not given out twice") {
  TestCatalog v;
  std::set<std::uint64_t> inodes, keys;
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 3; ++i) {
      auto name = "f" + std::to_string(i);
      CHECK(inodes.insert(raw(v.file(name).inode)).second);
      CHECK(keys.insert(v.must([](Catalog& c) { return c.new_key_number(); })).second);
      auto gone = unlink(v, kRootInode, name);
      v.must([&](Catalog& c) { return c.reap(gone->inode); });
    }
    v.reopen();
  }
}

TEST_CASE("catalog: names that are none are refused, and so are entries of what is no directory") {
  TestCatalog v;
  auto file = v.file("file");
  for (auto bad : {std::string{}, std::string{"."}, std::string{".."}, std::string{"a/b"},
                   std::string("a\0b", 3)}) {
    CAPTURE(bad);
    CHECK(errno_of(make(v, kRootInode, bad, S_IFREG)) == EINVAL);
    CHECK(errno_of(unlink(v, kRootInode, bad)) == EINVAL);
    CHECK(errno_of(rename(v, kRootInode, "file", kRootInode, bad)) == EINVAL);
    CHECK(errno_of(link(v, file.inode, kRootInode, bad)) == EINVAL);
  }
  CHECK(errno_of(make(v, kRootInode, std::string(256, 'x'), S_IFREG)) == ENAMETOOLONG);
  CHECK(errno_of(make(v, kRootInode, std::string(255, 'x'), S_IFREG)) == 0);
  CHECK(errno_of(make(v, file.inode, "x", S_IFREG)) == ENOTDIR);
  CHECK(errno_of(v.catalog->lookup(file.inode, "x")) == ENOTDIR);
  CHECK(errno_of(v.catalog->list(file.inode, 0, 10)) == ENOTDIR);
  CHECK(errno_of(v.catalog->attr(InodeId{4711})) == ESTALE);
  CHECK(errno_of(make(v, InodeId{4711}, "x", S_IFREG)) == ESTALE);
  CHECK(errno_of(make(v, kRootInode, "x", 0)) == EINVAL);
  CHECK(errno_of(make(v, kRootInode, "file", S_IFREG)) == EEXIST);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: dot and dot-dot lead where they should, the root above itself") {
  TestCatalog v;
  auto a = v.directory("a"), b = v.directory("b", a.inode);
  CHECK(v.catalog->lookup(b.inode, ".")->inode == b.inode);
  CHECK(v.catalog->lookup(b.inode, "..")->inode == a.inode);
  CHECK(v.catalog->lookup(kRootInode, "..")->inode == kRootInode);
}

TEST_CASE("catalog: a set-group-id directory hands down its group, and to directories the bit") {
  TestCatalog v;
  auto dir = v.must([&](Catalog& c) {
    return c.make(kRootInode, "d", {.mode = S_IFDIR | S_ISGID | 0755, .uid = 1, .gid = 77}, v.now);
  });
  auto file = v.must([&](Catalog& c) {
    return c.make(dir.inode, "f", {.mode = S_IFREG | 0644, .uid = 2, .gid = 3}, v.now);
  });
  auto below = v.must([&](Catalog& c) {
    return c.make(dir.inode, "b", {.mode = S_IFDIR | 0755, .uid = 2, .gid = 3}, v.now);
  });
  CHECK(file.gid == 77);
  CHECK((file.mode & S_ISGID) == 0);
  CHECK(below.gid == 77);
  CHECK((below.mode & S_ISGID) != 0);
}

TEST_CASE("catalog: symbolic links and devices keep what they are made with") {
  TestCatalog v;
  auto target = std::string(4095, 't');
  auto symlink = v.must([&](Catalog& c) {
    return c.make(kRootInode, "s", {.mode = S_IFLNK | 0777, .target = target}, v.now);
  });
  CHECK(symlink.size == 4095);
  auto device = v.must([&](Catalog& c) {
    return c.make(kRootInode, "d", {.mode = S_IFCHR | 0600, .rdev = 0xffffffffffffffffull}, v.now);
  });
  v.reopen();
  CHECK(*v.catalog->read_link(symlink.inode) == target);
  CHECK(v.catalog->attr(device.inode)->rdev == 0xffffffffffffffffull);
  CHECK(errno_of(v.catalog->read_link(device.inode)) == EINVAL);
  auto refuse = [&](std::string to) {
    return errno_of(v.change([&](Catalog& c) {
      return c.make(kRootInode, "x", {.mode = S_IFLNK | 0777, .target = to}, v.now);
    }));
  };
  CHECK(refuse("") == EINVAL);
  CHECK(refuse(std::string(4096, 't')) == ENAMETOOLONG);
  CHECK(v.problems() == "");
}

TEST_CASE(
    "catalog: a file lives until its last name is gone, and as an orphan until it is reaped") {
  TestCatalog v;
  auto dir = v.directory("dir");
  auto file = v.file("one");
  CHECK(link(v, file.inode, dir.inode, "two")->nlink == 2);
  CHECK(errno_of(link(v, file.inode, dir.inode, "two")) == EEXIST);
  CHECK(errno_of(link(v, dir.inode, dir.inode, "three")) == EPERM);
  v.place(file.inode, 0, 10);
  auto after_first = unlink(v, kRootInode, "one");
  CHECK(after_first->nlink == 1);
  CHECK(after_first->parent == dir.inode);  // its home moves to where it still has a name
  CHECK(errno_of(v.change([&](Catalog& c) { return c.reap(file.inode); })) != 0);
  CHECK(unlink(v, dir.inode, "two")->nlink == 0);
  CHECK(*v.catalog->orphans({}, 10) == std::vector{file.inode});
  CHECK(errno_of(link(v, file.inode, dir.inode, "again")) == ENOENT);
  CHECK(v.states(file.inode, 0, 10) == "w10");
  v.reopen();
  CHECK(*v.catalog->orphans({}, 10) == std::vector{file.inode});
  CHECK(v.problems() == "");
  v.must([&](Catalog& c) { return c.reap(file.inode); });
  CHECK(errno_of(v.catalog->attr(file.inode)) == ESTALE);
  CHECK(v.catalog->orphans({}, 10)->empty());
  CHECK(v.catalog->dying(10)->size() == 1);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: the home of a file with many links is always one that holds a link") {
  TestCatalog v;
  auto a = v.directory("a"), b = v.directory("b"), c = v.directory("c");
  auto file = v.file("1", a.inode);
  for (auto [parent, name] : {std::pair{a, "2"}, {b, "1"}, {b, "2"}, {c, "1"}})
    REQUIRE(link(v, file.inode, parent.inode, name));
  CHECK(v.problems() == "");
  REQUIRE(rename(v, a.inode, "1", c.inode, "2"));
  CHECK(v.catalog->attr(file.inode)->parent == a.inode);  // "2" is still there
  REQUIRE(rename(v, a.inode, "2", c.inode, "3"));
  CHECK(v.catalog->attr(file.inode)->parent == c.inode);
  CHECK(v.problems() == "");
  for (auto name : {"1", "2", "3"}) REQUIRE(unlink(v, c.inode, name));
  CHECK(v.catalog->attr(file.inode)->parent == b.inode);
  REQUIRE(rename(v, b.inode, "1", b.inode, "3"));
  REQUIRE(unlink(v, b.inode, "2"));
  CHECK(v.problems() == "");
  REQUIRE(rename(v, b.inode, "3", a.inode, "last"));
  CHECK(v.catalog->attr(file.inode)->parent == a.inode);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: unlink and rmdir know what they are for") {
  TestCatalog v;
  auto dir = v.directory("dir");
  v.file("file", dir.inode);
  CHECK(errno_of(unlink(v, kRootInode, "dir")) == EISDIR);
  CHECK(errno_of(rmdir(v, dir.inode, "file")) == ENOTDIR);
  CHECK(errno_of(rmdir(v, kRootInode, "dir")) == ENOTEMPTY);
  CHECK(errno_of(unlink(v, kRootInode, "none")) == ENOENT);
  REQUIRE(unlink(v, dir.inode, "file"));
  CHECK(rmdir(v, kRootInode, "dir")->nlink == 0);
  CHECK(v.catalog->attr(kRootInode)->nlink == 2);
  // It is an orphan that somebody may stand in; nothing can be made in it any more.
  CHECK(errno_of(make(v, dir.inode, "x", S_IFREG)) == ENOENT);
  CHECK(v.catalog->orphans({}, 10)->size() == 2);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: rename replaces what it may and refuses the rest, changing nothing") {
  TestCatalog v;
  auto d = v.directory("d"), e = v.directory("e"), full = v.directory("full");
  v.file("x", full.inode);
  auto f = v.file("f"), g = v.file("g");
  auto before = names(v, kRootInode);
  CHECK(errno_of(rename(v, kRootInode, "none", kRootInode, "y")) == ENOENT);
  CHECK(errno_of(rename(v, kRootInode, "f", kRootInode, "d")) == EISDIR);
  CHECK(errno_of(rename(v, kRootInode, "d", kRootInode, "f")) == ENOTDIR);
  CHECK(errno_of(rename(v, kRootInode, "d", kRootInode, "full")) == ENOTEMPTY);
  CHECK(errno_of(rename(v, kRootInode, "f", kRootInode, "g", RENAME_NOREPLACE)) == EEXIST);
  CHECK(errno_of(rename(v, kRootInode, "f", kRootInode, "y", RENAME_EXCHANGE)) == ENOENT);
  CHECK(errno_of(rename(v, kRootInode, "f", kRootInode, "g", RENAME_EXCHANGE | RENAME_NOREPLACE)) ==
        EINVAL);
  CHECK(errno_of(rename(v, kRootInode, "f", kRootInode, "y", RENAME_WHITEOUT)) == EINVAL);
  CHECK(names(v, kRootInode) == before);
  CHECK(v.problems() == "");

  auto replaced = rename(v, kRootInode, "f", kRootInode, "g");
  REQUIRE(replaced);
  REQUIRE(replaced->has_value());
  CHECK((*replaced)->inode == g.inode);
  CHECK((*replaced)->nlink == 0);
  CHECK(id_of(v, kRootInode, "g") == f.inode);
  auto replaced_dir = rename(v, kRootInode, "d", kRootInode, "e");
  REQUIRE(replaced_dir);
  CHECK((*replaced_dir)->inode == e.inode);
  CHECK(id_of(v, kRootInode, "e") == d.inode);
  CHECK(v.catalog->attr(kRootInode)->nlink == 4);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: rename moves directories with their links, never into themselves") {
  TestCatalog v;
  auto a = v.directory("a"), b = v.directory("b", a.inode), c = v.directory("c", b.inode);
  CHECK(errno_of(rename(v, kRootInode, "a", c.inode, "x")) == EINVAL);
  CHECK(errno_of(rename(v, kRootInode, "a", a.inode, "x")) == EINVAL);
  CHECK(errno_of(rename(v, b.inode, "c", kRootInode, "a")) == ENOTEMPTY);
  CHECK(errno_of(rename(v, b.inode, "c", kRootInode, "a", RENAME_EXCHANGE)) == EINVAL);
  CHECK(errno_of(rename(v, kRootInode, "a", b.inode, "c", RENAME_EXCHANGE)) == EINVAL);
  REQUIRE(rename(v, b.inode, "c", kRootInode, "c"));
  CHECK(v.catalog->lookup(c.inode, "..")->inode == kRootInode);
  CHECK(v.catalog->attr(kRootInode)->nlink == 4);
  CHECK(v.catalog->attr(b.inode)->nlink == 2);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: exchange swaps anything, links and parents follow") {
  TestCatalog v;
  auto a = v.directory("a"), b = v.directory("b"), inner = v.directory("inner", a.inode);
  auto file = v.file("file", b.inode);
  REQUIRE(rename(v, a.inode, "inner", b.inode, "file", RENAME_EXCHANGE));
  CHECK(id_of(v, a.inode, "inner") == file.inode);
  CHECK(id_of(v, b.inode, "file") == inner.inode);
  CHECK(v.catalog->attr(a.inode)->nlink == 2);
  CHECK(v.catalog->attr(b.inode)->nlink == 3);
  CHECK(v.catalog->attr(file.inode)->parent == a.inode);
  CHECK(v.problems() == "");
  auto same = rename(v, a.inode, "inner", a.inode, "inner", RENAME_EXCHANGE);
  CHECK((same && !same->has_value()));
}

TEST_CASE("catalog: rename between two links of one file does nothing") {
  TestCatalog v;
  auto file = v.file("one");
  REQUIRE(link(v, file.inode, kRootInode, "two"));
  auto result = rename(v, kRootInode, "one", kRootInode, "two");
  CHECK((result && !result->has_value()));
  CHECK(names(v, kRootInode).size() == 2);
  CHECK(v.catalog->attr(file.inode)->nlink == 2);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: times move as POSIX says, and not back when the clock does") {
  TestCatalog v;
  v.now = 5000;
  auto file = v.file("f");
  CHECK(file.btime == 5000);
  CHECK(v.catalog->attr(kRootInode)->mtime == 5000);
  v.now = 4000;  // the coordinator's role moved to a node whose clock is behind
  CHECK(v.must([&](Catalog& c) { return c.touch(file.inode, v.now); }).mtime == 5000);
  v.now = 6000;
  auto changed = v.must([&](Catalog& c) {
    return c.change(file.inode, {.mode = 0600, .uid = 5, .gid = 6, .atime = 1, .mtime = 9000},
                    v.now);
  });
  CHECK(changed.mode == (S_IFREG | 0600));
  CHECK(changed.uid == 5);
  CHECK(changed.gid == 6);
  CHECK(changed.atime == 1);
  CHECK(changed.mtime == 9000);
  CHECK(changed.ctime == 6000);
  v.now = 7000;  // a program had set mtime into the future: a write sets it to now
  CHECK(v.must([&](Catalog& c) { return c.touch(file.inode, v.now); }).mtime == 7000);
  v.now = 8000;
  CHECK(link(v, file.inode, kRootInode, "g")->ctime == 8000);
  CHECK(v.catalog->attr(file.inode)->mtime == 7000);
  v.now = 9000;
  CHECK(unlink(v, kRootInode, "g")->ctime == 9000);
  CHECK(v.catalog->attr(kRootInode)->mtime == 9000);
}

TEST_CASE(
    "catalog: a listing in pieces shows each lasting entry once, whatever changes meanwhile") {
  TestCatalog v;
  auto dir = v.directory("d");
  for (int i = 0; i < 100; ++i) v.file("stay" + std::to_string(i), dir.inode);
  for (int i = 0; i < 50; ++i) v.file("go" + std::to_string(i), dir.inode);
  std::multiset<std::string> seen;
  std::uint64_t cookie = 0, last = 0;
  for (int round = 0;; ++round) {
    auto page = v.catalog->list(dir.inode, cookie, 7);
    REQUIRE(page);
    if (page->empty()) break;
    for (const auto& entry : *page) {
      CHECK(entry.cookie > last);
      CHECK(entry.cookie >= 3);
      last = cookie = entry.cookie;
      seen.insert(entry.name);
      CHECK(entry.attr.parent == dir.inode);
    }
    if (round < 50) {
      REQUIRE(unlink(v, dir.inode, "go" + std::to_string(round)));
      if (round < 20) v.file("new" + std::to_string(round), dir.inode);
    }
    if (round == 10) v.reopen();
  }
  for (int i = 0; i < 100; ++i) CHECK(seen.count("stay" + std::to_string(i)) == 1);
  // A cookie is not reused even when the last entry goes.
  auto highest = v.catalog->list(dir.inode, 0, 1000)->back();
  REQUIRE(unlink(v, dir.inode, highest.name));
  v.reopen();
  v.file("after", dir.inode);
  CHECK(v.catalog->list(dir.inode, 0, 1000)->back().cookie > highest.cookie);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: extended attributes are set, replaced, listed and bounded") {
  TestCatalog v;
  auto file = v.file("f");
  auto set = [&](std::string_view name, std::string_view value, std::uint32_t flags = 0) {
    return errno_of(
        v.change([&](Catalog& c) { return c.set_xattr(file.inode, name, value, flags, v.now); }));
  };
  CHECK(set("user.b", "1", XATTR_REPLACE) == ENODATA);
  CHECK(set("user.b", "1", XATTR_CREATE) == 0);
  CHECK(set("user.b", "2", XATTR_CREATE) == EEXIST);
  CHECK(*v.catalog->xattr(file.inode, "user.b") == "1");
  CHECK(set("user.b", std::string("\0x", 2), XATTR_REPLACE) == 0);
  CHECK(set("user.a", "") == 0);
  CHECK(*v.catalog->list_xattrs(file.inode) == std::string("user.a\0user.b\0", 14));
  CHECK(*v.catalog->xattr(file.inode, "user.a") == "");
  CHECK(*v.catalog->xattr(file.inode, "user.b") == std::string("\0x", 2));
  CHECK(errno_of(v.catalog->xattr(file.inode, "user.c")) == ENODATA);
  CHECK(set("", "1") == ERANGE);
  CHECK(set(std::string(256, 'n'), "1") == ERANGE);
  CHECK(set("user.big", std::string(65537, 'v')) == E2BIG);
  for (auto name : {"1", "2", "3"}) CHECK(set(name, std::string(65536, 'v')) == 0);
  CHECK(set("4", std::string(65536, 'v')) == ENOSPC);
  CHECK(set("3", "short") == 0);
  CHECK(set("4", std::string(65536, 'v')) == 0);
  auto remove = [&](std::string_view name) {
    return errno_of(v.change([&](Catalog& c) { return c.remove_xattr(file.inode, name, v.now); }));
  };
  CHECK(remove("user.b") == 0);
  CHECK(remove("user.b") == ENODATA);
  v.now = 9999;
  CHECK(set("user.c", "x") == 0);
  CHECK(v.catalog->attr(file.inode)->ctime == 9999);
  REQUIRE(unlink(v, kRootInode, "f"));
  v.must([&](Catalog& c) { return c.reap(file.inode); });
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: a file takes 65000 links and not one more") {
  TestCatalog v;
  auto file = v.file("f");
  for (int batch = 0; batch < 65; ++batch) {
    v.must([&](Catalog& c) -> Expected<void> {
      for (int i = batch == 0 ? 1 : 0; i < 1000; ++i)
        CSV_TRY(c.link(file.inode, kRootInode, std::to_string(batch * 1000 + i), v.now));
      return {};
    });
  }
  CHECK(v.catalog->attr(file.inode)->nlink == 65000);
  CHECK(errno_of(link(v, file.inode, kRootInode, "more")) == EMLINK);
}

TEST_CASE("catalog: a hundred thousand files are made, listed and removed without slowing down") {
  TestCatalog v;
  auto dir = v.directory("d");
  constexpr int kFiles = 100000, kGroup = 50;
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kFiles; i += kGroup) {
    std::vector<Catalog::Change> group(kGroup);
    for (int j = 0; j < kGroup; ++j)
      group[j].body = [&, n = i + j](Catalog& c) -> Expected<void> {
        CSV_TRY(c.make(dir.inode, "file" + std::to_string(n), {.mode = S_IFREG | 0644}, v.now));
        return {};
      };
    REQUIRE(v.catalog->run(group));
    for (const auto& change : group) REQUIRE(change.result);
    if (i % 5000 == 0) REQUIRE(v.catalog->maintain());
  }
  auto made = std::chrono::steady_clock::now();
  std::uint64_t cookie = 0, seen = 0;
  for (;;) {
    auto page = v.catalog->list(dir.inode, cookie, 500);
    REQUIRE(page);
    if (page->empty()) break;
    seen += page->size();
    cookie = page->back().cookie;
  }
  CHECK(seen == kFiles);
  auto listed = std::chrono::steady_clock::now();
  for (int i = 0; i < kFiles; ++i)
    REQUIRE(v.catalog->lookup(dir.inode, "file" + std::to_string(i)));
  auto looked_up = std::chrono::steady_clock::now();
  auto rate = [&](auto from, auto to) {
    return static_cast<std::uint64_t>(kFiles / std::chrono::duration<double>(to - from).count());
  };
  MESSAGE("creates/s " << rate(start, made) << ", listed/s " << rate(made, listed) << ", lookups/s "
                       << rate(listed, looked_up));
  v.reopen();
  CHECK(v.catalog->attr(dir.inode)->size == kFiles);
  CHECK(v.catalog->space()->inodes == kFiles + 2);
  CHECK(v.problems() == "");
}

TEST_CASE("catalog: whatever an operation changes of attributes or names is told afterwards") {
  TestCatalog v;
  Random random{11};
  std::vector<InodeId> directories{kRootInode};
  for (int i = 0; i < 3; ++i) directories.push_back(v.directory("d" + std::to_string(i)).inode);
  // Attributes of an inode, and of a directory its names, as text.
  auto seen = [&v](InodeId inode) {
    auto attr = v.catalog->attr(inode);
    if (!attr) return std::string{"gone"};
    std::string text = std::to_string(attr->mode) + " " + std::to_string(attr->nlink) + " " +
                       std::to_string(attr->size) + " " + std::to_string(attr->blocks) + " " +
                       std::to_string(attr->mtime) + " " + std::to_string(attr->ctime) + " " +
                       std::to_string(attr->truncation) + " " + std::to_string(raw(attr->parent));
    if (!S_ISDIR(attr->mode)) return text;
    auto entries = v.catalog->list(inode, 0, 1000);
    REQUIRE(entries);
    for (const auto& each : *entries)
      text += " " + each.name + "=" + std::to_string(raw(each.attr.inode));
    return text;
  };
  std::map<InodeId, std::string> known;
  int changed = 0;
  for (int step = 0; step < 600; ++step) {
    // The clock stands still now and then: times alone must not be what tells.
    if (random.chance(1, 3)) ++v.now;
    auto parent = directories[random.below(directories.size())];
    auto other = directories[random.below(directories.size())];
    auto name = std::string(1, static_cast<char>('a' + random.below(5)));
    auto new_name = std::string(1, static_cast<char>('a' + random.below(5)));
    auto inode = id_of(v, parent, name);
    switch (random.below(11)) {
      case 0:
      case 1: (void)make(v, parent, name, S_IFREG | 0644); break;
      case 2: (void)make(v, parent, name, S_IFDIR | 0755); break;
      case 3: (void)link(v, inode, other, new_name); break;
      case 4: (void)unlink(v, parent, name); break;
      case 5: (void)rmdir(v, parent, name); break;
      case 6: (void)rename(v, parent, name, other, new_name); break;
      case 7: (void)rename(v, parent, name, other, new_name, RENAME_EXCHANGE); break;
      case 8:
        (void)v.change([&](Catalog& c) {
          AttrChange to;
          to.mode = 0600;
          return c.change(inode, to, v.now);
        });
        break;
      case 9: {
        auto size = random.below(3) * 10'000;
        (void)v.change([&](Catalog& c) { return c.truncate(inode, size, v.now); });
        break;
      }
      case 10:
        (void)v.change([&](Catalog& c) { return c.fill(inode, 0, 1 + random.below(8)); });
        (void)v.catalog->maintain();
        break;
    }
    std::set<InodeId> told;
    auto now_changed = v.catalog->take_changed();
    told.insert(now_changed.inodes.begin(), now_changed.inodes.end());
    if (inode != InodeId{}) known.try_emplace(inode, "");
    for (auto each : directories) known.try_emplace(each, "");
    if (auto made = id_of(v, parent, name); made != InodeId{}) known.try_emplace(made, "");
    for (auto& [each, before] : known) {
      auto now = seen(each);
      if (!before.empty() && now != before) {
        ++changed;
        CAPTURE(step);
        CAPTURE(before);
        CAPTURE(now);
        CHECK(told.contains(each));
      }
      before = std::move(now);
    }
  }
  CHECK(changed > 200);
  CHECK(v.catalog->take_changed().empty());
}

TEST_CASE("catalog: a changed access time is told apart, but not if there is more") {
  TestCatalog v;
  auto directory = v.directory("d").inode;
  (void)v.catalog->take_changed();
  auto access = [&] {
    v.now += 1000;
    v.must([&](Catalog& c) -> Expected<void> {
      CSV_TRY(c.accessed(directory, v.now));
      return {};
    });
  };
  access();
  auto changed = v.catalog->take_changed();
  CHECK(changed.inodes.empty());
  CHECK(changed.access_times == std::vector{directory});

  access();
  (void)v.file("file", directory);
  changed = v.catalog->take_changed();
  CHECK(std::count(changed.inodes.begin(), changed.inodes.end(), directory) == 1);
  CHECK(changed.access_times.empty());
}
