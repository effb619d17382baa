#include "csvfs/base/name_cache.h"

#include <doctest/doctest.h>

#include <array>

using namespace csv;

namespace {

constexpr InodeId kDirectory{2}, kFile{3}, kOther{4};

struct Attr {
  std::uint64_t size = 0;
};
using Cache = NameCache<Attr>;

void forget(Cache& cache, InodeId inode) {
  std::array all{inode};
  cache.forget(all);
}

}  // namespace

TEST_CASE("name cache: what was learned is found, absence too, and nothing else is known") {
  Cache cache{100};
  cache.learn(kDirectory, "file", kFile, {7});
  cache.learn_absent(kDirectory, "none");
  auto found = cache.find(kDirectory, "file");
  REQUIRE(found.attr != nullptr);
  CHECK(found.attr->size == 7);
  auto absent = cache.find(kDirectory, "none");
  CHECK(absent.known);
  CHECK(absent.attr == nullptr);
  CHECK(!cache.find(kDirectory, "other").known);
  CHECK(!cache.find(kOther, "file").known);
  CHECK(cache.attr(kFile) != nullptr);
  CHECK(cache.attr(kDirectory) == nullptr);
}

TEST_CASE("name cache: a changed inode is known under no name until it is learned again") {
  Cache cache{100};
  cache.learn(kDirectory, "file", kFile, {7});
  cache.learn(kDirectory, "link", kFile, {7});
  forget(cache, kFile);
  CHECK(!cache.find(kDirectory, "file").known);
  CHECK(cache.attr(kFile) == nullptr);
  cache.learn(kFile, {8});
  auto found = cache.find(kDirectory, "link");
  REQUIRE(found.attr != nullptr);
  CHECK(found.attr->size == 8);
}

TEST_CASE("name cache: of a changed directory no name is known, present or absent") {
  Cache cache{100};
  cache.learn(kDirectory, "file", kFile, {});
  cache.learn_absent(kDirectory, "none");
  forget(cache, kDirectory);
  CHECK(!cache.find(kDirectory, "file").known);
  CHECK(!cache.find(kDirectory, "none").known);
  CHECK(cache.attr(kFile) != nullptr);
}

TEST_CASE("name cache: it keeps to its bound, names counted, and drops what was not used lately") {
  Cache cache{20};
  cache.learn(kDirectory, "kept", kFile, {});
  for (std::uint64_t i = 0; i < 1000; ++i) {
    cache.learn_absent(InodeId{100 + i % 7}, "none" + std::to_string(i));
    cache.learn(InodeId{1000 + i}, {});
    CHECK(cache.size() <= 20);
    REQUIRE(cache.find(kDirectory, "kept").attr != nullptr);
  }
  forget(cache, kDirectory);
  forget(cache, kFile);
  CHECK(!cache.find(kDirectory, "kept").known);
}

TEST_CASE("name cache: attributes may go alone; with the inode its extended attributes go") {
  Cache cache{100};
  cache.learn(kDirectory, "file", kFile, {7});
  cache.learn(kDirectory, {});
  cache.learn_xattr(kDirectory, "user.a", "value");
  cache.learn_xattr(kDirectory, "user.b", std::nullopt);
  std::array all{kDirectory};
  cache.forget_attributes(all);
  CHECK(cache.attr(kDirectory) == nullptr);
  CHECK(cache.find(kDirectory, "file").known);
  REQUIRE(cache.xattr(kDirectory, "user.a") != nullptr);
  CHECK(*cache.xattr(kDirectory, "user.a") == "value");
  REQUIRE(cache.xattr(kDirectory, "user.b") != nullptr);
  CHECK(!*cache.xattr(kDirectory, "user.b"));
  CHECK(cache.xattr(kDirectory, "user.c") == nullptr);
  forget(cache, kDirectory);
  CHECK(cache.xattr(kDirectory, "user.a") == nullptr);
  CHECK(!cache.find(kDirectory, "file").known);
  forget(cache, kFile);
  CHECK(cache.size() == 0);
}
