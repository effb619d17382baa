#include "csvfs/base/status_board.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

using namespace csv;

namespace {

/// A board of this test alone, gone with it.
struct Named {
  std::string name;
  explicit Named(const char* what)
      : name{std::string{"csv-test-"} + what + std::to_string(::getpid())} {
    ::shm_unlink(("/" + name).c_str());
  }
  ~Named() { ::shm_unlink(("/" + name).c_str()); }
};

std::unique_ptr<StatusBoard> made(const std::string& name) {
  auto board = StatusBoard::create(name);
  REQUIRE_MESSAGE(board, board.error().message());
  return *std::move(board);
}

/// A record all of whose fields follow from `n`.
BoardMount mount_of(std::uint64_t n) {
  BoardMount out;
  out.pid = static_cast<std::uint32_t>(n);
  out.mode = static_cast<AccessMode>(n % 5);
  out.reason = std::string(n % 128, static_cast<char>('a' + n % 26));
  out.since = TimePoint{Duration{static_cast<std::int64_t>(n)}};
  out.counters.operations = n;
  out.counters.direct_write_bytes = n * 3;
  out.counters.stale_commits = n * 7;
  return out;
}

bool consistent(const BoardMount& got) {
  auto expected = mount_of(got.counters.operations);
  return got.pid == expected.pid && got.mode == expected.mode && got.reason == expected.reason &&
         got.since == expected.since &&
         got.counters.direct_write_bytes == expected.counters.direct_write_bytes &&
         got.counters.stale_commits == expected.counters.stale_commits;
}

}  // namespace

TEST_CASE("status board: what one side publishes the other reads, field by field") {
  Named named{"fields"};
  CHECK_FALSE(StatusBoard::open(named.name));
  auto csvd = made(named.name);
  auto opened = StatusBoard::open(named.name);
  REQUIRE(opened);
  auto& mount = **opened;
  CHECK(mount.find("volume1", false) == StatusBoard::kVolumes);
  auto at = csvd->find("volume1", true);
  CHECK(at == 0);
  CHECK(csvd->find("volume2", true) == 1);
  CHECK(mount.find("volume1", true) == at);
  CHECK_FALSE(mount.volume(at));
  CHECK_FALSE(csvd->mount(at));
  CHECK(mount.open_until(at) == TimePoint{});

  csvd->publish(at, {.name = "volume1",
                     .endpoint = "10.0.0.1:7400",
                     .epoch = Epoch{9},
                     .coordinator_key = Key{0x4711},
                     .coordinator = NodeId{3}});
  csvd->set_open_until(at, TimePoint{5s});
  auto volume = mount.volume(at);
  REQUIRE(volume);
  CHECK(volume->name == "volume1");
  CHECK(volume->endpoint == "10.0.0.1:7400");
  CHECK(volume->epoch == Epoch{9});
  CHECK(volume->coordinator_key == Key{0x4711});
  CHECK(volume->coordinator == NodeId{3});
  CHECK(mount.open_until(at) == TimePoint{5s});

  BoardMount said = mount_of(77);
  said.gate_closed = true;
  said.said = TimePoint{123'456ms};
  auto& c = said.counters;
  std::uint64_t n = 100;
  for (auto* value : {&c.operations, &c.direct_reads, &c.direct_read_bytes, &c.direct_writes,
                      &c.direct_write_bytes, &c.redirected_reads, &c.redirected_read_bytes,
                      &c.redirected_writes, &c.redirected_write_bytes, &c.requests, &c.reconnects,
                      &c.recalls, &c.readmissions, &c.stale_commits})
    *value = n++;
  mount.publish(at, said);
  auto got = csvd->mount(at);
  REQUIRE(got);
  CHECK(got->pid == 77);
  CHECK(got->gate_closed);
  CHECK(got->said == TimePoint{123'400ms});
  CHECK(got->reason == said.reason);
  CHECK(got->counters.operations == 100);
  CHECK(got->counters.redirected_reads == 105);
  CHECK(got->counters.stale_commits == 113);
}

TEST_CASE("status board: survives csvd's restart, and mounts keep what they mapped") {
  Named named{"restart"};
  auto csvd = made(named.name);
  auto at = csvd->find("volume1", true);
  csvd->set_open_until(at, TimePoint{7s});
  auto mount = StatusBoard::open(named.name);
  REQUIRE(mount);
  csvd.reset();
  csvd = made(named.name);
  CHECK(csvd->find("volume1", true) == at);
  CHECK(csvd->open_until(at) == TimePoint{7s});
  csvd->set_open_until(at, TimePoint{8s});
  CHECK((*mount)->open_until(at) == TimePoint{8s});
}

TEST_CASE("status board: one of another version is not read, and replaced by csvd") {
  Named named{"version"};
  std::ofstream{"/dev/shm/" + named.name} << "something else";
  auto opened = StatusBoard::open(named.name);
  REQUIRE_FALSE(opened);
  CHECK(opened.error() == Errc::refused);
  made(named.name);
  CHECK(StatusBoard::open(named.name));
}

TEST_CASE("status board: has places for its number of volumes, and texts too long are cut") {
  Named named{"full"};
  auto board = made(named.name);
  for (std::size_t i = 0; i < StatusBoard::kVolumes; ++i)
    CHECK(board->find("volume" + std::to_string(i), true) == i);
  CHECK(board->find("one more", true) == StatusBoard::kVolumes);
  CHECK(board->find("volume63", false) == 63);
  board->publish(0, BoardVolume{.name = {}, .endpoint = std::string(500, 'x')});
  CHECK(board->volume(0)->endpoint == std::string(63, 'x'));
  BoardMount long_reason;
  long_reason.reason = std::string(500, 'y');
  board->publish(0, long_reason);
  CHECK(board->mount(0)->reason == std::string(127, 'y'));
}

TEST_CASE("status board: a reader never sees half of a record while it is being rewritten") {
  Named named{"torn"};
  auto writer = made(named.name);
  auto reader = StatusBoard::open(named.name);
  REQUIRE(reader);
  auto at = writer->find("volume1", true);
  writer->publish(at, mount_of(1));
  std::atomic<bool> stop{false};
  std::thread writes{[&] {
    for (std::uint64_t n = 1; !stop; ++n) writer->publish(at, mount_of(n));
  }};
  std::uint64_t seen = 0, last = 0;
  bool all_consistent = true, forward = true;
  // On a busy machine the writer may not get to run for a while: until enough of it was seen.
  for (int i = 0; i < 20'000 || (seen <= 10 && i < 20'000'000); ++i) {
    auto got = (*reader)->mount(at);
    all_consistent &= got && consistent(*got);
    if (!got) continue;
    forward &= got->counters.operations >= last;
    seen += got->counters.operations != last;
    last = got->counters.operations;
  }
  stop = true;
  writes.join();
  CHECK(all_consistent);
  CHECK(forward);
  CHECK(seen > 10);  // otherwise the run proved nothing
}

TEST_CASE("status board: a writer that dies half way leaves the last whole record") {
  Named named{"crash"};
  auto board = made(named.name);
  auto at = board->find("volume1", true);
  for (int round = 0; round < 40; ++round) {
    auto child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      auto mine = StatusBoard::open(named.name);
      if (!mine) ::_exit(1);
      for (std::uint64_t n = 1;; ++n) (*mine)->publish(at, mount_of(n));
    }
    while (!board->mount(at) || board->mount(at)->counters.operations < 50)
      std::this_thread::yield();
    REQUIRE(::kill(child, SIGKILL) == 0);
    REQUIRE(::waitpid(child, nullptr, 0) == child);
    auto left = board->mount(at);
    REQUIRE(left);
    CHECK(consistent(*left));
    // And the next writer goes on from there.
    board->publish(at, mount_of(7));
    CHECK(board->mount(at)->counters.operations == 7);
  }
}
