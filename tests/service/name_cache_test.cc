#include "coordinator/service/name_cache.h"

#include <doctest/doctest.h>

#include <array>

using namespace csv;
using namespace csv::service;

namespace {

constexpr InodeId kDirectory{2}, kFile{3}, kOther{4};

volume::Attr attr_of(InodeId inode, std::uint64_t size = 0) {
  volume::Attr attr;
  attr.inode = inode;
  attr.size = size;
  return attr;
}
void forget(NameCache& cache, InodeId inode) {
  std::array all{inode};
  cache.forget(all);
}

}  // namespace

TEST_CASE("name cache: what was learned is found, absence too, and nothing else is known") {
  NameCache cache{100};
  cache.learn(kDirectory, "file", attr_of(kFile, 7));
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
  NameCache cache{100};
  cache.learn(kDirectory, "file", attr_of(kFile, 7));
  cache.learn(kDirectory, "link", attr_of(kFile, 7));
  forget(cache, kFile);
  CHECK(!cache.find(kDirectory, "file").known);
  CHECK(cache.attr(kFile) == nullptr);
  cache.learn(attr_of(kFile, 8));
  auto found = cache.find(kDirectory, "link");
  REQUIRE(found.attr != nullptr);
  CHECK(found.attr->size == 8);
}

TEST_CASE("name cache: of a changed directory no name is known, present or absent") {
  NameCache cache{100};
  cache.learn(kDirectory, "file", attr_of(kFile));
  cache.learn_absent(kDirectory, "none");
  forget(cache, kDirectory);
  CHECK(!cache.find(kDirectory, "file").known);
  CHECK(!cache.find(kDirectory, "none").known);
  CHECK(cache.attr(kFile) != nullptr);
}

TEST_CASE("name cache: it keeps to its bound, names counted, and drops what was not used lately") {
  NameCache cache{20};
  cache.learn(kDirectory, "kept", attr_of(kFile));
  for (std::uint64_t i = 0; i < 1000; ++i) {
    cache.learn_absent(InodeId{100 + i % 7}, "none" + std::to_string(i));
    cache.learn(attr_of(InodeId{1000 + i}));
    CHECK(cache.size() <= 20);
    REQUIRE(cache.find(kDirectory, "kept").attr != nullptr);
  }
  forget(cache, kDirectory);
  forget(cache, kFile);
  CHECK(!cache.find(kDirectory, "kept").known);
}
