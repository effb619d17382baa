// Tools that want a volume for themselves: who is using it, and how they are kept away.
#include "coordinator/service/sole_use.h"

#include <doctest/doctest.h>

#include <optional>

#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume_format.h"
#include "tests/service/harness.h"

using namespace csv;
using namespace csv::service;
using namespace csv::service::test;

namespace {

bool says(const std::string& text, const std::string& what) {
  INFO(text);
  CHECK(text.find(what) != std::string::npos);
  return text.find(what) != std::string::npos;
}

/// csvctl's nexus, with its key.
struct Tool {
  explicit Tool(World& on) : world{on} {
    auto connected = world.disk->connect(world.loop, world.lun_options(77));
    REQUIRE(connected);
    lun = *std::move(connected);
    io.emplace(*lun, blocking);
    REQUIRE(io->register_key(key));
  }
  ~Tool() {
    world.run([this] {
      io.reset();
      lun.reset();
    });
  }
  Users users() {
    auto found = look_for_users(*io, key);
    REQUIRE_MESSAGE(found, found.error().message());
    return *std::move(found);
  }
  static Task<void> taking(Tool& self, const Users& users) {
    auto task =
        take_for_one(self.world.loop, *self.lun, self.key, users, self.world.timing.lease_term);
    self.taken = co_await task;
  }
  Expected<void> take(const Users& users) {
    TaskScope tasks;
    taken.reset();
    world.run([&] { tasks.spawn(taking(*this, users)); });
    REQUIRE(world.eventually([this] { return taken.has_value(); }));
    return *taken;
  }

  World& world;
  ThreadBlocking blocking;
  std::unique_ptr<iscsi::Lun> lun;
  std::optional<iscsi::BlockingLun> io;
  Key key = make_key({4711, NodeId{0}, KeyRole::coordinator, 5});
  std::optional<Expected<void>> taken;
};

void lose_superblocks(World& world) {
  for (auto copy : {volume::Copy::a, volume::Copy::b})
    world.disk->poke(place_of(copy, world.info.lun_size),
                     Buffer::zeroed(volume::disk::kSuperblockSize).span());
}

std::vector<iscsi::RamDiskOptions> targets() {
  return {{}, iscsi::RamDiskOptions::like_tgt(), iscsi::RamDiskOptions::like_lio()};
}

}  // namespace

TEST_CASE("sole use: the key that a coordinator leaves in good order keeps nobody away") {
  for (const auto& target : targets()) {
    World world{target};
    Coordinator{world, 1}.close();
    REQUIRE(world.disk->registered_keys().size() >= 1);
    {
      Tool tool{world};
      auto users = tool.users();
      CHECK(users.keys.size() == 1);
      CHECK(users.in_words() == "");
      auto taken = tool.take(users);
      REQUIRE_MESSAGE(taken, taken.error().message());
      for (auto key : world.disk->registered_keys()) CHECK(key == tool.key);
      CHECK(tool.io->write(world.info.slots_offset, Buffer::zeroed(4096).span()));
    }
    // What the tool leaves is no obstacle: not to the next tool, and not to a coordinator.
    {
      Tool again{world};
      CHECK(again.users().in_words() == "");
    }
    Coordinator next{world, 2};
    CHECK_FALSE(world.listed(make_key({4711, NodeId{0}, KeyRole::coordinator, 5})));
  }
}

TEST_CASE("sole use: a coordinator that did not close the volume is named, and can be fenced") {
  for (const auto& target : targets()) {
    World world{target};
    Coordinator crashed{world, 3};
    auto former = crashed.status().key;
    {
      Tool tool{world};
      says(tool.users().in_words(), "node 3 may be coordinating it");
      REQUIRE(tool.io->register_key(Key{}));
    }
    crashed.crash();
    Tool tool{world};
    auto users = tool.users();
    says(users.in_words(), "node 3 ");
    auto before = world.loop.now();
    auto taken = tool.take(users);
    REQUIRE_MESSAGE(taken, taken.error().message());
    // It may have answered from memory so long.
    CHECK(world.loop.now() - before >= world.timing.lease_term);
    CHECK_FALSE(world.listed(former));
  }
}

TEST_CASE("sole use: a served volume can be taken, and its coordinator ends") {
  World world;
  Coordinator serving{world, 1};
  Tool tool{world};
  auto taken = tool.take(tool.users());
  REQUIRE_MESSAGE(taken, taken.error().message());
  CHECK(serving.stopped());
}

TEST_CASE("sole use: a mount is named, and cannot write again when the tool is gone") {
  for (const auto& target : targets()) {
    World world{target};
    Client client{world, 2, 1};
    {
      Coordinator coordinator{world, 1};
      REQUIRE(!client.connect(coordinator).code());
      client.admit();
      coordinator.close();
    }
    auto block = Buffer::zeroed(4096);
    REQUIRE(client.lun_write(world.info.slots_offset, block.span()));
    {
      Tool tool{world};
      auto users = tool.users();
      CHECK(users.mounts().size() == 1);
      says(users.in_words(), "node 2 has it mounted");
      auto taken = tool.take(users);
      REQUIRE_MESSAGE(taken, taken.error().message());
      CHECK_FALSE(client.lun_write(world.info.slots_offset, block.span()));
    }
    CHECK_FALSE(client.lun_write(world.info.slots_offset, block.span()));
    CHECK_FALSE(client.lun_read(world.info.slots_offset, 4096));
  }
}

TEST_CASE("sole use: without superblocks a coordinator's key may be one's that serves") {
  for (const auto& target : targets()) {
    World world{target};
    {
      Tool tool{world};
      lose_superblocks(world);
      CHECK(tool.users().in_words() == "");  // nobody is there
      REQUIRE(tool.io->register_key(Key{}));
    }
    World other{target};
    Coordinator{other, 1}.close();
    lose_superblocks(other);
    Tool tool{other};
    says(tool.users().in_words(), "node 1 may be coordinating it");
  }
}

TEST_CASE(
    "sole use: a target that forgot the keys does not make a crashed coordinator a closed one") {
  World world{iscsi::RamDiskOptions::like_tgt()};
  {
    Coordinator crashed{world, 2};
    crashed.crash();
  }
  Random random{3};
  world.disk->power_loss(random);
  Tool tool{world};
  auto users = tool.users();
  CHECK(users.keys.empty());
  says(users.in_words(), "node 2 coordinated it last and did not close it");
  CHECK(tool.take(users));
}

TEST_CASE("sole use: keys of another cluster are never leftovers") {
  World world;
  Tool tool{world};
  auto connected = world.disk->connect(world.loop, world.lun_options(78));
  REQUIRE(connected);
  {
    ThreadBlocking blocking;
    iscsi::BlockingLun io{**connected, blocking};
    REQUIRE(io.register_key(make_key({99, NodeId{1}, KeyRole::coordinator, 5})));
    says(tool.users().in_words(), "of another cluster, 99");
  }
  world.run([&] { connected->reset(); });
}

TEST_CASE("sole use: who registers meanwhile is not overlooked") {
  World world;
  Coordinator{world, 1}.close();
  Tool tool{world};
  auto users = tool.users();
  users.keys.clear();  // as if that had come after the look
  auto taken = tool.take(users);
  REQUIRE_FALSE(taken);
  says(taken.error().message(), "meanwhile");
}
