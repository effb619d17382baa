#include "csvfs/extent_map.h"

#include <doctest/doctest.h>

#include <optional>
#include <vector>

#include "csvfs/base/random.h"

using namespace csv;
using Extent = ExtentMap::Extent;
using State = ExtentMap::State;

namespace {

Extent extent(std::uint64_t offset, std::uint64_t length, std::uint64_t lun_offset, State state,
              GrantId grant = {}) {
  Extent made;
  made.offset = offset;
  made.length = length;
  made.lun_offset = lun_offset;
  made.state = state;
  made.grant = grant;
  return made;
}

/// The same, byte by byte.
struct Model {
  struct Byte {
    std::uint64_t place = 0;
    State state{};
    GrantId grant{};
  };
  std::vector<std::optional<Byte>> bytes = std::vector<std::optional<Byte>>(256);

  void insert(const Extent& each) {
    for (auto at = each.offset; at < each.end(); ++at) {
      auto place = each.lun_offset + (at - each.offset);
      bool keeps = each.state == State::read && bytes[at] && bytes[at]->state == State::write &&
                   bytes[at]->place == place;
      if (!keeps) bytes[at] = Byte{place, each.state, each.grant};
    }
  }
  void drop(std::uint64_t begin, std::uint64_t end) {
    for (auto at = begin; at < end; ++at) bytes[at].reset();
  }
  void drop_writes(std::uint64_t begin, std::uint64_t end) {
    for (auto at = begin; at < end; ++at) {
      if (!bytes[at]) continue;
      if (bytes[at]->state == State::granted)
        bytes[at].reset();
      else
        bytes[at]->state = State::read;
    }
  }
  void committed(GrantId grant, std::uint64_t begin, std::uint64_t end) {
    for (auto at = begin; at < end; ++at)
      if (bytes[at] && bytes[at]->state == State::granted && bytes[at]->grant == grant)
        bytes[at] = Byte{bytes[at]->place, State::write, {}};
  }
  void drop_grant(GrantId grant) {
    for (auto& each : bytes)
      if (each && each->state == State::granted && each->grant == grant) each.reset();
  }
};

bool same(const ExtentMap& map, const Model& model) {
  for (std::uint64_t at = 0; at < model.bytes.size(); ++at) {
    auto known = map.at(at);
    if (known.has_value() != model.bytes[at].has_value()) return false;
    if (!known) continue;
    if (known->offset != at) return false;
    for (auto later = at; later < known->end(); ++later) {
      const auto& byte = model.bytes[later];
      if (!byte || byte->place != known->lun_offset + (later - at) || byte->state != known->state ||
          byte->grant != known->grant)
        return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("extent map: after any sequence of changes it says the same as a table of bytes") {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    CAPTURE(seed);
    Random random{seed};
    ExtentMap map;
    Model model;
    for (int step = 0; step < 60; ++step) {
      auto begin = random.below(255), end = begin + 1 + random.below(255 - begin);
      GrantId grant{1 + random.below(2)};
      switch (random.below(8)) {
        case 0: map.drop(begin, end), model.drop(begin, end); break;
        case 1: map.drop_writes(begin, end), model.drop_writes(begin, end); break;
        case 2: map.committed(grant, begin, end), model.committed(grant, begin, end); break;
        case 3: map.drop_grant(grant), model.drop_grant(grant); break;
        default: {
          auto state = static_cast<State>(random.below(3));
          // The same place in two of three, as when a layout is asked for again.
          auto place = 1000 + begin + (random.chance(1, 3) ? 5000 : 0);
          auto each =
              extent(begin, end - begin, place, state, state == State::granted ? grant : GrantId{});
          map.insert(each);
          model.insert(each);
        }
      }
      REQUIRE(same(map, model));
    }
  }
}

TEST_CASE("extent map: a file laid out in steps is one extent") {
  ExtentMap map;
  for (std::uint64_t step = 0; step < 64; ++step)
    map.insert(extent(step << 20, 1 << 20, (step << 20) + (1 << 30), State::write));
  CHECK(map.size() == 1);
  CHECK(map.at(0)->length == 64 << 20);
}

TEST_CASE(
    "extent map: a grant committed in steps becomes one extent that may be written in place") {
  ExtentMap map;
  map.insert(extent(0, 4 << 20, 1 << 30, State::granted, GrantId{7}));
  for (std::uint64_t step = 0; step < 3; ++step)
    map.committed(GrantId{7}, step << 20, (step + 1) << 20);
  CHECK(map.size() == 2);
  CHECK(map.at(0)->state == State::write);
  CHECK(map.at(0)->length == 3 << 20);
  CHECK(map.at(3 << 20)->state == State::granted);
}

TEST_CASE("extent map: an answer that only says read takes no right to write away, a recall does") {
  ExtentMap map;
  map.insert(extent(0, 8192, 4096, State::write));
  map.insert(extent(0, 8192, 4096, State::read));
  CHECK(map.at(0)->state == State::write);
  map.drop_writes(0, 4096);
  CHECK(map.at(0)->state == State::read);
  CHECK(map.at(4096)->state == State::write);
}

TEST_CASE("extent map: what was recalled before its commit was answered does not come back") {
  ExtentMap map;
  map.insert(extent(0, 8192, 4096, State::granted, GrantId{3}));
  map.drop_writes(0, 8192);
  map.committed(GrantId{3}, 0, 8192);
  CHECK(map.empty());
}
