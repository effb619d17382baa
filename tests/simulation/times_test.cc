#include <cstdint>

#include "tests/simulation/stage.h"

using namespace csv;
using namespace csv::sim;
using namespace csv::sim::stage;
using namespace std::chrono_literals;

namespace {

Task<void> set_mtime(Mount& mount, InodeId inode, std::int64_t time,
                     Heard<Expected<wire::Attr>> heard) {
  wire::SetAttr to;
  to.set_inode(raw(inode));
  to.set_mtime(time);
  auto task = mount.change(std::move(to));
  *heard = co_await task;
}

Task<void> attr(Mount& mount, InodeId inode, Heard<Expected<wire::Attr>> heard) {
  auto task = mount.attr(inode);
  *heard = co_await task;
}

}  // namespace

TEST_CASE("times: a time that is set is not replaced by what another node wrote before") {
  constexpr std::int64_t kTime = 1'000'000'007;
  Stage stage{three_nodes(false)};
  for (Stamp stamp = 2; stage.mount(1).counters().direct_writes < 2 && stamp < 20; ++stamp)
    stage.writes(1, stamp);
  REQUIRE(stage.mount(1).counters().direct_writes >= 2);
  for (std::size_t setter : {2, 1}) {
    stage.writes(1, 30 + setter);
    auto set = nothing_yet<Expected<wire::Attr>>();
    REQUIRE(stage.hears(setter, set, set_mtime(stage.mount(setter), stage.file, kTime, set)));
    CHECK((**set)->mtime() == kTime);
    auto seen = nothing_yet<Expected<wire::Attr>>();
    REQUIRE(stage.hears(0, seen, attr(stage.mount(0), stage.file, seen)));
    CHECK((**seen)->mtime() == kTime);
    CHECK((**seen)->ctime() > kTime);
  }
}
