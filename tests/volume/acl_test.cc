#include "coordinator/volume/acl.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

namespace {

struct Entry {
  unsigned tag, permissions, id = 0xffffffff;
};
void put(std::string& to, std::uint32_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> 8 * i & 0xff);
}
std::string raw_acl(const std::vector<Entry>& entries, std::uint32_t version = 2) {
  std::string bytes;
  put(bytes, version, 4);
  for (const auto& each : entries) {
    put(bytes, each.tag, 2);
    put(bytes, each.permissions, 2);
    put(bytes, each.id, 4);
  }
  return bytes;
}
const std::vector<Entry> kMinimal{{0x01, 6}, {0x04, 4}, {0x20, 0}};
const std::vector<Entry> kNamed{{0x01, 7}, {0x02, 7, 42}, {0x04, 5}, {0x10, 7}, {0x20, 1}};

}  // namespace

TEST_CASE("acl: what the kernel passes is read and written the same; the mode shows the mask") {
  auto acl = Acl::parse(raw_acl(kNamed));
  REQUIRE(acl);
  CHECK(acl->encode() == raw_acl(kNamed));
  CHECK(acl->mode() == 0771);
  CHECK_FALSE(acl->is_minimal());
  auto minimal = Acl::parse(raw_acl(kMinimal));
  REQUIRE(minimal);
  CHECK(minimal->mode() == 0640);
  CHECK(minimal->is_minimal());
}

TEST_CASE("acl: damaged and incomplete lists are refused") {
  auto whole = raw_acl(kNamed);
  for (std::size_t length = 0; length < whole.size(); ++length)
    CHECK_FALSE(Acl::parse(std::string_view{whole}.substr(0, length)));
  CHECK_FALSE(Acl::parse(raw_acl(kMinimal, 1)));
  CHECK_FALSE(Acl::parse(raw_acl({{0x01, 6}, {0x20, 0}, {0x04, 4}})));                // order
  CHECK_FALSE(Acl::parse(raw_acl({{0x01, 6}, {0x01, 6}, {0x04, 4}, {0x20, 0}})));     // twice
  CHECK_FALSE(Acl::parse(raw_acl({{0x01, 6}, {0x02, 6, 1}, {0x04, 4}, {0x20, 0}})));  // no mask
  CHECK_FALSE(Acl::parse(raw_acl({{0x01, 8}, {0x04, 4}, {0x20, 0}})));
  CHECK_FALSE(Acl::parse(raw_acl({{0x01, 6}, {0x03, 4}, {0x04, 4}, {0x20, 0}})));
}

TEST_CASE("acl: chmod changes the mask, a new file gets no more than both say") {
  auto acl = *Acl::parse(raw_acl(kNamed));
  acl.set_mode(0640);
  CHECK(acl.encode() == raw_acl({{0x01, 6}, {0x02, 7, 42}, {0x04, 5}, {0x10, 4}, {0x20, 0}}));
  acl = *Acl::parse(raw_acl(kNamed));
  CHECK(acl.inherit(S_IFREG | 0666) == (S_IFREG | 0660));
  CHECK(acl.encode() == raw_acl({{0x01, 6}, {0x02, 7, 42}, {0x04, 5}, {0x10, 6}, {0x20, 0}}));
}

TEST_CASE("acl: kept, inherited and dropped with the mode in the catalog") {
  TestCatalog v;
  auto dir = v.directory("dir");
  auto set = [&](InodeId inode, std::string_view name, const std::string& value) {
    return v.change([&](Catalog& c) { return c.set_xattr(inode, name, value, 0, v.now); });
  };
  auto make = [&](std::string_view name, std::uint32_t mode) {
    Catalog::NewInode what;
    what.mode = mode;
    what.umask = 077;
    return v.must([&](Catalog& c) { return c.make(dir.inode, name, what, v.now); });
  };
  CHECK(make("before", S_IFREG | 0666).mode == (S_IFREG | 0600));
  REQUIRE(set(dir.inode, kDefaultAcl, raw_acl(kNamed)));
  auto file = make("file", S_IFREG | 0666);
  CHECK(file.mode == (S_IFREG | 0660));
  CHECK(v.catalog->xattr(file.inode, kAccessAcl));
  CHECK_FALSE(v.catalog->xattr(file.inode, kDefaultAcl));
  auto below = make("below", S_IFDIR | 0777);
  CHECK(*v.catalog->xattr(below.inode, kDefaultAcl) == raw_acl(kNamed));
  CHECK(make("link", S_IFREG | 0600).mode == (S_IFREG | 0600));

  volume::AttrChange change;
  change.mode = 0604;
  v.must([&](Catalog& c) { return c.change(file.inode, change, v.now); });
  CHECK(Acl::parse(*v.catalog->xattr(file.inode, kAccessAcl))->mode() == 0604);
  CHECK(errno_of(set(file.inode, kDefaultAcl, raw_acl(kNamed))) == EACCES);
  CHECK(errno_of(set(file.inode, kAccessAcl, "rubbish")) == EINVAL);
  REQUIRE(set(file.inode, kAccessAcl, raw_acl(kMinimal)));
  CHECK_FALSE(v.catalog->xattr(file.inode, kAccessAcl));
  CHECK(v.catalog->attr(file.inode)->mode == (S_IFREG | 0640));
  // It is gone, and to remove it once more is no error.
  CHECK(v.change([&](Catalog& c) { return c.remove_xattr(file.inode, kAccessAcl, v.now); }));
  CHECK(v.problems() == "");
  v.sql("UPDATE inodes SET mode=mode|2 WHERE id IN (SELECT inode FROM xattrs)");
  CHECK(v.problems() != "");
}

TEST_CASE("catalog: a nameless file may get a name, one that lost its name may not") {
  TestCatalog v;
  auto dir = v.directory("dir");
  Catalog::NewInode what;
  what.mode = S_IFREG | 0600;
  auto nameless = v.must([&](Catalog& c) { return c.make_nameless(dir.inode, what, v.now); });
  CHECK(nameless.nlink == 0);
  CHECK(v.problems() == "");
  v.reopen();
  REQUIRE(v.catalog->orphans(InodeId{}, 10)->size() == 1);
  auto linked =
      v.must([&](Catalog& c) { return c.link(nameless.inode, kRootInode, "named", v.now); });
  CHECK(linked.nlink == 1);
  CHECK(v.catalog->orphans(InodeId{}, 10)->empty());
  CHECK(v.problems() == "");
  v.must([&](Catalog& c) { return c.unlink(kRootInode, "named", v.now); });
  auto again =
      v.change([&](Catalog& c) { return c.link(nameless.inode, kRootInode, "again", v.now); });
  CHECK(errno_of(again) == ENOENT);
}

TEST_CASE(
    "catalog: privileges go with a new owner and when they are dropped, not with a new mode") {
  TestCatalog v;
  auto file = v.file("file");
  auto change = [&](volume::AttrChange to) {
    return v.must([&](Catalog& c) { return c.change(file.inode, to, v.now); }).mode & 07777;
  };
  volume::AttrChange bits, owner;
  bits.mode = 06755;
  owner.uid = 5;
  CHECK_FALSE(*v.catalog->has_privileges(file.inode));
  CHECK(change(bits) == 06755);
  CHECK(*v.catalog->has_privileges(file.inode));
  CHECK(change(owner) == 0755);
  bits.mode = 02705;  // no execution by the group: no privilege
  CHECK(change(bits) == 02705);
  CHECK_FALSE(*v.catalog->has_privileges(file.inode));
  bits.mode = 04755;
  change(bits);
  v.must([&](Catalog& c) -> Expected<Attr> {
    CSV_TRY(c.set_xattr(file.inode, "security.capability", "x", 0, v.now));
    return c.drop_privileges(file.inode, false, v.now);
  });
  CHECK(errno_of(v.catalog->xattr(file.inode, "security.capability")) == ENODATA);
  CHECK((v.catalog->attr(file.inode)->mode & 07777) == 04755);
  v.must([&](Catalog& c) { return c.drop_privileges(file.inode, true, v.now); });
  CHECK((v.catalog->attr(file.inode)->mode & 07777) == 0755);
}
