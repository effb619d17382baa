#include "tests/volume/catalog_volume.h"

using namespace csv;
using namespace csv::volume;

TEST_CASE("catalog: what was made is found again, also after a reopen without a checkpoint") {
  TestCatalog v;
  auto dir = v.directory("dir");
  auto made = v.file("file", dir.inode);
  v.reopen();
  auto found = v.catalog->lookup(dir.inode, "file");
  REQUIRE(found);
  CHECK(found->inode == made.inode);
  CHECK(found->nlink == 1);
  CHECK(v.catalog->lookup(kRootInode, "dir")->size == 1);
  CHECK(v.catalog->lookup(kRootInode, "dir")->nlink == 2);
  CHECK(v.catalog->attr(kRootInode)->nlink == 3);
}
TEST_CASE("catalog: space") {
  TestCatalog v;
  auto f = v.file("file");
  auto s0 = *v.catalog->space();
  auto runs = v.place(f.inode, 3, 5000);
  CHECK(v.states(f.inode, 0, 6000) == "h3w5000h997");
  CHECK(v.catalog->space()->free == s0.free - 5000);
  v.must([&](Catalog& c) { return c.truncate(f.inode, 10, 5); });
  v.must([&](Catalog& c) { return c.grow(f.inode, 5003 * 4096, 5); });
  v.must([&](Catalog& c) { return c.truncate(f.inode, 4096 * 4 + 1, 5); });
  CHECK(v.states(f.inode, 0, 6000) == "h3w2h5995");
  v.settle();
  CHECK(v.catalog->space()->free == s0.free - 2);
}
