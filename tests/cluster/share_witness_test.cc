#include "coordinator/cluster/share_witness.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/crc32c.h"
#include "tests/fakes/node_loop.h"

using namespace csv;
using namespace csv::cluster;
using csv::fakes::ManualLoop;
using csv::fakes::NodeLoop;

namespace {

constexpr std::uint16_t kCluster = 4711;
constexpr std::uint64_t kId = 77;
using Hold = Witness::Hold;
using Memory = Witness::Memory;

/// What all nodes see, and what each of their calls may suffer.
struct Share {
  explicit Share(ManualLoop& its_loop) : loop{&its_loop} {
    // As it is made.
    ShareTag made;
    made.sequence = 1;
    made.cluster = kCluster;
    made.id = kId;
    content[1] = encode(made);
  }
  ManualLoop* loop;
  TagFile::Content content{};
  Random random{1};
  bool faults = false;
};

/// One node's way to it. An exchange takes effect at one moment, some time after it was asked for,
/// and is answered some time later, or never.
class NodeFile final : public TagFile {
 public:
  NodeFile(Share& share, Loop& home) : share_{&share}, home_{&home} {}
  void read(Function<void(Expected<Content>)> done) override {
    later([this, done = std::move(done)]() mutable {
      answer([done = std::move(done), content = share_->content](bool lost) mutable {
        if (lost) return done(Error{std::errc::timed_out, "lost"});
        done(content);
      });
    });
  }
  void exchange(const Content& expected, std::size_t place, const Slot& next,
                Function<void(Expected<void>)> done) override {
    later([this, expected, place, next, done = std::move(done)]() mutable {
      bool same = share_->content == expected;
      // Torn, or never done, it leaves the other one.
      if (same && ++may_land > 0 && expected != Content{})
        CHECK(decode_share_tag(expected[1 - place]));
      if (same && hangs) {
        late_ = [this, place, next] { share_->content[place] = next; };
        return answer([done = std::move(done)](bool) mutable {
          done(Error{std::errc::timed_out, "it hangs"});
        });
      }
      if (same) share_->content[place] = next;
      answer([done = std::move(done), same](bool lost) mutable {
        if (lost) return done(Error{std::errc::timed_out, "lost"});
        done(same ? Expected<void>{} : Error{Errc::retry, "changed"});
      });
    });
  }
  /// What hung takes effect, whatever stands there by now.
  void land() {
    REQUIRE(late_);
    std::exchange(late_, nullptr)();
  }
  bool reachable = true;
  int may_land = 0;    ///< Exchanges that found what they expect.
  bool hangs = false;  ///< An exchange has found what it expects, and what it writes comes later.

 private:
  Duration some() {
    if (!share_->faults) return 1ms;
    auto most = share_->random.chance(1, 3) ? 1500u : 20u;
    return Duration{share_->random.below(most * 1'000'000ull)};
  }
  void later(Function<void()> work) {
    // In the world's time, whether or not the node is stopped.
    share_->loop->after(some(), std::move(work));
  }
  void answer(Function<void(bool lost)> work) {
    bool lost = !reachable || (share_->faults && share_->random.chance(1, 30));
    share_->loop->after(lost ? 2s : some(), [home = home_, lost, work = std::move(work)]() mutable {
      home->post([lost, work = std::move(work)]() mutable { work(lost); });
    });
  }
  Share* share_;
  Loop* home_;
  std::function<void()> late_;
};

template <typename T>
Task<void> into(Task<Expected<T>> call, std::optional<Expected<T>>& result) {
  auto said = co_await call;
  result.emplace(std::move(said));
}

struct Node {
  Node(Share& its_share, int its_number, int per_mille = 1000)
      : share{&its_share},
        number{its_number},
        loop{*its_share.loop, per_mille, 1000s * its_number},
        random{static_cast<std::uint64_t>(its_number) + 7},
        file{its_share, loop} {
    start();
  }
  void start() {
    ShareWitness::Surroundings around;
    around.loop = &loop;
    around.random = &random;
    around.file = &file;
    around.cluster = kCluster;
    around.node = NodeId{static_cast<std::uint8_t>(number)};
    around.own_tag = [this] { return own; };
    around.id = kId;
    witness = std::make_unique<ShareWitness>(around);
  }
  template <typename T>
  Expected<T> run(Task<Expected<T>> call) {
    std::optional<Expected<T>> result;
    TaskScope scope;
    scope.spawn(into(std::move(call), result));
    for (int i = 0; i < 10'000 && !result; ++i) share->loop->run_for(10ms);
    REQUIRE(result);
    return std::move(*result);
  }
  Expected<Hold> challenge() { return run(witness->challenge(1)); }
  Expected<Hold> confirm() { return run(witness->confirm(1)); }
  Expected<void> store(ClusterTag tag) { return run(witness->store({tag, {}})); }
  Expected<Memory> read() { return run(witness->read()); }
  [[nodiscard]] TimePoint until(const Hold& hold) const {
    return loop.in_world(hold.sent + LeaseTiming{}.term);
  }

  Share* share;
  int number;
  NodeLoop loop;
  Random random;
  NodeFile file;
  ClusterTag own;
  std::unique_ptr<ShareWitness> witness;
};

struct Pair {
  ManualLoop loop;
  Share share{loop};
  Node one{share, 1}, two{share, 2};
};

}  // namespace

TEST_CASE("share witness: one takes it, goes on holding it, and loses it when it is silent") {
  Pair pair;
  CHECK(pair.one.confirm().error() == Errc::superseded);
  REQUIRE(pair.one.challenge());
  CHECK(pair.one.witness->holder() == NodeId{1});
  std::optional<Expected<Hold>> against;
  TaskScope scope;
  scope.spawn(into(pair.two.witness->challenge(2), against));
  pair.loop.run_for(1s);
  REQUIRE(pair.one.confirm());
  pair.loop.run_for(1s);
  REQUIRE(against);
  CHECK(against->error() == Errc::refused);
  auto last = pair.one.confirm();
  REQUIRE(last);
  auto taken = pair.two.challenge();
  REQUIRE(taken);
  CHECK(pair.two.loop.in_world(taken->sent) > pair.one.until(*last));
  CHECK(pair.one.confirm().error() == Errc::superseded);
  CHECK(pair.two.confirm());
  // Another life of the same node has to wait as well.
  pair.two.start();
  CHECK(pair.two.confirm().error() == Errc::superseded);
  auto began = pair.loop.now();
  CHECK(pair.two.challenge());
  CHECK(pair.loop.now() - began > LeaseTiming{}.over_after);
}

TEST_CASE("share witness: a proof that comes late does not take it back from who took it") {
  Pair pair;
  REQUIRE(pair.one.challenge());
  REQUIRE(pair.one.confirm());
  pair.one.file.hangs = true;
  CHECK(pair.one.confirm().error() == std::errc::timed_out);
  pair.one.file.hangs = false;
  REQUIRE(pair.two.challenge());
  pair.one.file.land();
  CHECK(pair.one.confirm().error() == Errc::superseded);
  CHECK(pair.two.confirm());
  CHECK(pair.two.confirm());
}

TEST_CASE("share witness: nor from who took it beside a slot that is damaged") {
  Pair pair;
  REQUIRE(pair.one.challenge());
  REQUIRE(pair.one.confirm());
  pair.one.file.hangs = true;
  CHECK(pair.one.confirm().error() == std::errc::timed_out);
  pair.one.file.hangs = false;
  auto older = decode_share_tag(pair.share.content[0])->sequence <
                       decode_share_tag(pair.share.content[1])->sequence
                   ? 0u
                   : 1u;
  pair.share.content[older][100] ^= std::byte{1};
  REQUIRE(pair.two.challenge());
  pair.one.file.land();
  CHECK(pair.one.confirm().error() == Errc::superseded);
  CHECK(pair.two.confirm());
  CHECK(pair.two.confirm());
}

TEST_CASE("share witness: who took it too late does not hold it") {
  Pair pair;
  REQUIRE(pair.one.challenge());
  pair.one.file.reachable = false;
  pair.two.file.hangs = true;
  CHECK(pair.two.challenge().error() == std::errc::timed_out);
  pair.two.file.hangs = false;
  Node three{pair.share, 3};
  auto held = three.challenge();
  REQUIRE(held);
  pair.two.file.land();
  auto taken = pair.two.challenge();
  // Not as long as the third may believe that it holds it.
  CHECK((!taken || pair.two.loop.in_world(taken->sent) > three.until(*held)));
}

TEST_CASE(
    "share witness: taking it leaves a slot that can be read, whatever becomes of the write") {
  Pair pair;
  for (auto* node : {&pair.one, &pair.two, &pair.one, &pair.two}) {
    node->file.may_land = 0;
    REQUIRE(node->challenge());
    CHECK(node->file.may_land > 0);
    pair.loop.run_for(5s);
  }
}

TEST_CASE("share witness: the tag only grows, and a side with an older one must wait") {
  Pair pair;
  CHECK(pair.one.store({0, 1, 5}));  // without holding it
  CHECK(pair.two.read()->tag == ClusterTag{0, 1, 5});
  CHECK(pair.two.store({0, 1, 4}).error() == Errc::superseded);
  CHECK(pair.two.store({0, 1, 5}));
  // A partition in time: node 2 was away while the configuration changed.
  pair.one.own = {0, 1, 5};
  pair.two.own = {0, 1, 4};
  CHECK(pair.two.challenge().error() == Errc::superseded);
  CHECK(pair.one.challenge());
  REQUIRE(pair.one.store({0, 1, 6}));
  CHECK(pair.one.confirm().error() == Errc::superseded);  // before it has it on its own disk
  pair.one.own = {0, 1, 6};
  CHECK(pair.one.confirm());
  pair.two.own = {1, 0, 0};
  CHECK(pair.two.challenge());
}

TEST_CASE("share witness: damage of one slot loses no tag, and no hold is taken for another") {
  for (std::size_t slot = 0; slot < 2; ++slot) {
    Pair pair;
    REQUIRE(pair.one.challenge());
    pair.one.own = {0, 1, 5};
    REQUIRE(pair.one.store(pair.one.own));
    pair.share.content[slot][100] ^= std::byte{1};
    CHECK(pair.two.read()->tag == pair.one.own);
    CHECK(pair.one.confirm().error() == Errc::superseded);
    REQUIRE(pair.one.challenge());
    CHECK(pair.one.confirm());
    pair.share.content[0][100] ^= std::byte{1};
    pair.share.content[1][100] ^= std::byte{1};
    auto before = pair.share.content;
    CHECK(pair.one.read().error() == Errc::corrupt);
    CHECK(pair.one.challenge().error() == Errc::corrupt);
    CHECK(pair.one.store({0, 1, 6}).error() == Errc::corrupt);
    CHECK(pair.share.content == before);
  }
}

TEST_CASE("share witness: what is promised is not what is stored") {
  Pair pair;
  pair.one.own = {0, 1, 5};
  REQUIRE(pair.one.store(pair.one.own));
  auto promise = [&](Node& node, ClusterTag number) {
    return node.run(node.witness->store({{0, 1, 5}, {}, number}));
  };
  CHECK(promise(pair.one, {0, 3, 0}));
  CHECK(promise(pair.one, {0, 3, 0}));
  CHECK(pair.two.read()->tag == ClusterTag{0, 1, 5});
  CHECK(pair.two.read()->promised == ClusterTag{0, 3, 0});
  // The side has what is stored, and so goes on, whatever came of the promise.
  CHECK(pair.one.challenge());
  CHECK(pair.one.confirm());
  // Who has promised only, elsewhere, has not.
  pair.two.own = {0, 1, 4};
  CHECK(pair.two.challenge().error() == Errc::superseded);
  CHECK(promise(pair.two, {0, 2, 0}).error() == Errc::superseded);
  CHECK(pair.one.store({0, 1, 6}).error() == Errc::superseded);
  CHECK(pair.one.store({0, 3, 1}));
  CHECK(promise(pair.two, {0, 3, 0}).error() == Errc::superseded);
  CHECK(pair.two.read()->tag == ClusterTag{0, 3, 1});
  // In both slots.
  for (const auto& slot : pair.share.content) {
    CHECK(decode_share_tag(slot)->tag == ClusterTag{0, 3, 1});
    CHECK(decode_share_tag(slot)->promised == ClusterTag{0, 3, 0});
  }
}

TEST_CASE("share witness: a file that has forgotten is no witness") {
  Pair pair;
  SUBCASE("empty") { pair.share.content = {}; }
  SUBCASE("made anew") {
    ShareTag made;
    made.sequence = 1;
    made.cluster = kCluster;
    made.id = kId + 1;
    pair.share.content = {TagFile::Slot{}, encode(made)};
  }
  auto before = pair.share.content;
  for (const auto& error : {pair.one.read().error(), pair.one.store({0, 1, 6}).error(),
                            pair.one.confirm().error(), pair.one.challenge().error()}) {
    CHECK(error == Errc::refused);
    CHECK(error.message().find("csvctl cluster witness none") != std::string::npos);
  }
  CHECK(pair.share.content == before);
}

TEST_CASE("share witness: one is made of an empty file, once") {
  Pair pair;
  pair.share.content = {};
  auto made = pair.one.run(prepare_share_witness(pair.one.file, kCluster, pair.one.random));
  REQUIRE(made);
  CHECK(*made != 0);
  CHECK(newest_share_tag(pair.share.content)->id == *made);
  auto again = pair.two.run(prepare_share_witness(pair.two.file, kCluster, pair.two.random));
  REQUIRE(again);
  CHECK(*again == *made);
  auto other = pair.two.run(prepare_share_witness(pair.two.file, kCluster + 1, pair.two.random));
  CHECK(other.error() == Errc::refused);
}

TEST_CASE("share witness: a slot of the former version is read, and what it says is stored") {
  ShareTag tag{6, kCluster, NodeId{2}, 77, 5, {1, 2, 3}};
  auto slot = encode(tag);
  slot[12] = std::byte{1};
  auto sum = crc32c(std::span{slot}.subspan(12));
  for (std::size_t i = 0; i < 4; ++i) slot[8 + i] = static_cast<std::byte>(sum >> (8 * i));
  auto read = decode_share_tag(slot);
  REQUIRE(read);
  CHECK(read->tag == tag.tag);
  CHECK(read->promised == ClusterTag{1, 2, 0});
  CHECK(read->id == 0);
  slot[12] = std::byte{3};
  sum = crc32c(std::span{slot}.subspan(12));
  for (std::size_t i = 0; i < 4; ++i) slot[8 + i] = static_cast<std::byte>(sum >> (8 * i));
  CHECK(decode_share_tag(slot).error() == Errc::refused);
}

TEST_CASE("share witness: another cluster's file, or another kind of file, is left as it is") {
  Pair pair;
  SUBCASE("another cluster's") {
    ShareTag tag;
    tag.sequence = 1;
    tag.cluster = 4712;
    pair.share.content[1] = encode(tag);
  }
  SUBCASE("text") {
    pair.share.content = {};
    pair.share.content[0].fill(std::byte{'a'});
  }
  auto before = pair.share.content;
  CHECK_FALSE(pair.one.read());
  CHECK_FALSE(pair.one.challenge());
  CHECK_FALSE(pair.one.store({0, 1, 6}));
  CHECK(pair.share.content == before);
}

TEST_CASE("share witness: two halves never hold it at the same time, whatever happens to both") {
  struct Validity {
    int node;
    TimePoint from, to;
  };
  std::size_t holds = 0;
  int taken = 0;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    ManualLoop loop;
    Share share{loop};
    share.random = Random{seed};
    share.faults = true;
    Random random{seed + 100};
    int slow = seed % 2 == 0 ? 990 : 1010;
    std::vector<std::unique_ptr<Node>> nodes;
    nodes.push_back(std::make_unique<Node>(share, 1, slow));
    nodes.push_back(std::make_unique<Node>(share, 2, 2000 - slow));
    std::vector<Validity> all;
    auto contend = [&](Node& node) -> Task<void> {
      bool believes = false;
      for (;;) {
        auto call = believes ? node.witness->confirm(random.next())
                             : node.witness->challenge(random.next());
        auto said = co_await call;
        if (said && !believes) ++taken;
        if (said && node.until(*said) > loop.now())
          all.push_back({node.number, loop.now(), node.until(*said)});
        believes = said || (believes && !(said.error() == Errc::superseded));
        auto pause = !said ? 100ms : share.faults ? Duration{random.below(4'500'000'000)} : 1s;
        co_await sleep(node.loop, pause);
      }
    };
    TaskScope scope;
    for (auto& node : nodes) scope.spawn(contend(*node));
    for (int i = 0; i < 240; ++i) {
      loop.run_for(500ms);
      auto& node = *nodes[random.below(2)];
      if (random.chance(1, 30) && !node.loop.stopped()) {
        node.loop.stop();
        loop.after(Duration{random.below(20'000'000'000)}, [&node] { node.loop.go_on(); });
      }
      if (random.chance(1, 30)) {
        node.file.reachable = false;
        loop.after(Duration{random.below(8'000'000'000)}, [&node] { node.file.reachable = true; });
      }
    }
    share.faults = false;
    loop.run_for(40s);
    std::map<int, TimePoint> until;
    for (const auto& one : all) {
      for (auto [node, end] : until)
        if (node != one.node) REQUIRE(one.from >= end);
      until[one.node] = std::max(until[one.node], one.to);
    }
    CHECK((until[1] > loop.now()) != (until[2] > loop.now()));
    holds += all.size();
  }
  CHECK(holds > 1000);
  CHECK(taken > 150);
}

TEST_CASE("share witness: only shares whose locks bind writes are accepted") {
  const std::string list =
      "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
      "30 22 0:45 / /mnt/w rw shared:2 - nfs4 server:/w rw,vers=4.1,local_lock=none,addr=1.2.3.4\n"
      "31 22 0:46 / /mnt/old rw - nfs server:/old rw,vers=3,local_lock=none\n"
      "32 22 0:47 / /mnt/alone rw - nfs4 server:/alone rw,vers=4.2,local_lock=all\n"
      "33 22 0:48 / /mnt/with\\040blank rw - cifs //server/w rw,vers=3.1.1,cache=strict\n"
      "34 22 0:49 / /mnt/nobrl rw - cifs //server/w rw,vers=3.0,nobrl\n"
      "35 22 0:50 / /mnt/smb1 rw - cifs //server/w rw,vers=1.0\n"
      "bad line\n"
      "36 22 0:51 / /mnt/w/inner rw - tmpfs none rw\n";
  auto check = [&](const std::string& path) {
    auto mount = mount_of(list, path);
    REQUIRE(mount);
    return check_share(*mount);
  };
  CHECK(check("/mnt/w/tag"));
  CHECK(mount_of(list, "/mnt/w/tag")->device == ::makedev(0, 45));
  CHECK(check("/mnt/with blank/tag"));
  for (const char* path : {"/mnt/old/tag", "/mnt/alone/tag", "/mnt/nobrl/tag", "/mnt/smb1/tag",
                           "/mnt/w/inner/tag", "/mnt/window/tag", "/tag"}) {
    CAPTURE(path);
    CHECK(check(path).error() == Errc::refused);
  }
  CHECK(mount_of("", "/tag").error() == Errc::refused);
}

// ---------------------------------------------------------------------------- the real file

namespace {

/// A share that is mounted twice, by two clients, as in CSV_SHARE_MOUNTS=/mnt/one:/mnt/two
/// (tests/lab/share.sh); without it a folder of this machine stands for both.
const char* share_mounts() { return std::getenv("CSV_SHARE_MOUNTS"); }

/// A folder that two nodes see, each at its own place.
struct Folder {
  Folder() {
    std::string mounts = share_mounts() != nullptr ? share_mounts() : "/tmp:/tmp";
    auto colon = mounts.find(':');
    REQUIRE(colon != std::string::npos);
    auto name = mounts.substr(0, colon) + "/csv-share-XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
    other = mounts.substr(colon + 1) + name.substr(colon);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path, other;
};

struct RealFile {
  explicit RealFile(const std::string& path, Duration deadline = 2s)
      : file{loop,
             {.path = path,
              .create = true,
              .deadline = deadline,
              .any_file_system = share_mounts() == nullptr}} {
    loop.start("share");
  }
  Expected<TagFile::Content> read() {
    std::promise<Expected<TagFile::Content>> said;
    file.read([&](auto result) { said.set_value(std::move(result)); });
    return said.get_future().get();
  }
  Expected<void> exchange(const TagFile::Content& expected, std::size_t place, std::byte fill) {
    TagFile::Slot next;
    next.fill(fill);
    std::promise<Expected<void>> said;
    file.exchange(expected, place, next, [&](auto result) { said.set_value(std::move(result)); });
    return said.get_future().get();
  }
  AsioLoop loop;
  SharedTagFile file;
};

/// This process's children, as pgrep says.
std::vector<::pid_t> children() {
  std::vector<::pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator{"/proc"}) {
    std::ifstream stat{entry.path() / "stat"};
    ::pid_t pid = 0, parent = 0;
    std::string name;
    char state = 0;
    if (stat >> pid >> name >> state >> parent && parent == ::getpid() && state != 'Z')
      found.push_back(pid);
  }
  return found;
}

}  // namespace

TEST_CASE("tag file: an exchange happens only over what was expected, and both sides see it") {
  Folder folder;
  RealFile one{folder.path + "/tag"}, two{folder.other + "/tag"};
  auto empty = one.read();
  REQUIRE(empty);
  CHECK(*empty == TagFile::Content{});
  CHECK(one.exchange(*empty, 1, std::byte{1}));
  CHECK(two.exchange(*empty, 1, std::byte{2}).error() == Errc::retry);
  auto now = two.read();
  REQUIRE(now);
  CHECK((*now)[1][4095] == std::byte{1});
  CHECK((*now)[0][0] == std::byte{0});
  CHECK(two.exchange(*now, 0, std::byte{2}));
  CHECK((*one.read())[0][7] == std::byte{2});
}

TEST_CASE("tag file: of exchanges over the same content, at the same time, exactly one happens") {
  Folder folder;
  RealFile one{folder.path + "/tag"}, two{folder.other + "/tag"};
  for (int round = 0; round < 20; ++round) {
    auto seen = one.read();
    REQUIRE(seen);
    auto first = std::async(std::launch::async, [&] {
      return one.exchange(*seen, 0, static_cast<std::byte>(2 * round + 1));
    });
    auto second = two.exchange(*seen, 0, static_cast<std::byte>(2 * round + 2));
    CHECK(bool{first.get()} != bool{second});
  }
}

TEST_CASE("tag file: what is not one is left alone, and what cannot be opened is said") {
  Folder folder;
  std::ofstream{folder.path + "/large"} << std::string(8193, '\0');
  RealFile large{folder.path + "/large"};
  CHECK(large.read().error() == std::errc::file_too_large);
  CHECK(large.exchange({}, 0, std::byte{1}).error() == std::errc::file_too_large);
  RealFile nowhere{folder.path + "/none/tag"};
  CHECK(nowhere.read().error() == std::errc::no_such_file_or_directory);
  RealFile directory{folder.path};
  CHECK_FALSE(directory.read());
  // One that is gone is not made anew: it would have forgotten.
  AsioLoop quiet;
  quiet.start("share");
  SharedTagFile gone{quiet,
                     {.path = folder.path + "/gone", .any_file_system = share_mounts() == nullptr}};
  std::promise<Expected<TagFile::Content>> answer;
  gone.read([&](auto result) { answer.set_value(std::move(result)); });
  CHECK(answer.get_future().get().error() == std::errc::no_such_file_or_directory);
  CHECK_FALSE(std::filesystem::exists(folder.path + "/gone"));
  // Without the switch a local directory is refused, before anything is touched.
  const std::string local = "/tmp/csv-share-strict-" + std::to_string(::getpid());
  AsioLoop loop;
  loop.start("share");
  SharedTagFile strict{loop, {.path = local, .create = true}};
  std::promise<Expected<TagFile::Content>> said;
  strict.read([&](auto result) { said.set_value(std::move(result)); });
  CHECK(said.get_future().get().error() == Errc::refused);
  CHECK_FALSE(std::filesystem::exists(local));
}

TEST_CASE("tag file: a helper that hangs is left behind by its deadline, and another one works") {
  Folder folder;
  auto before = children();
  RealFile one{folder.path + "/tag", share_mounts() == nullptr ? 300ms : 2s};
  REQUIRE(one.read());
  ::pid_t helper = 0;
  for (auto each : children())
    if (std::find(before.begin(), before.end(), each) == before.end()) helper = each;
  REQUIRE(helper != 0);
  REQUIRE(::kill(helper, SIGSTOP) == 0);
  CHECK(one.read().error() == std::errc::timed_out);
  auto again = one.read();
  REQUIRE(again);
  CHECK(one.exchange(*again, 0, std::byte{9}));
}

namespace {

/// One node's whole witness, over a real file.
struct RealWitness {
  RealWitness(const std::string& path, int number)
      : file{loop, {.path = path, .create = true, .deadline = 2s}} {
    ShareWitness::Surroundings around;
    around.loop = &loop;
    around.random = &random;
    around.file = &file;
    around.cluster = kCluster;
    around.node = NodeId{static_cast<std::uint8_t>(number)};
    around.own_tag = [this] { return own; };
    witness.emplace(around);
    loop.start("share");
  }
  ~RealWitness() { loop.join(); }
  template <typename T>
  Expected<T> run(Task<Expected<T>> call) {
    std::promise<Expected<T>> said;
    auto tell = [](Task<Expected<T>> its_call, std::promise<Expected<T>>& to) -> Task<void> {
      auto result = co_await its_call;
      to.set_value(std::move(result));
    };
    loop.post([&] { scope.spawn(tell(std::move(call), said)); });
    return said.get_future().get();
  }
  AsioLoop loop;
  Random random{Random::from_system()};
  SharedTagFile file;
  ClusterTag own;
  std::optional<ShareWitness> witness;
  TaskScope scope;
};

}  // namespace

TEST_CASE("share witness: on a real share one is made, taken, proven, and not taken by the other") {
  if (share_mounts() == nullptr) {
    MESSAGE("skipped: no share (CSV_SHARE_MOUNTS)");
    return;
  }
  Folder folder;
  RealWitness one{folder.path + "/tag", 1}, two{folder.other + "/tag", 2};
  auto made = one.run(prepare_share_witness(one.file, kCluster, one.random));
  REQUIRE_MESSAGE(made, made.error().message());
  auto again = two.run(prepare_share_witness(two.file, kCluster, two.random));
  REQUIRE_MESSAGE(again, again.error().message());
  CHECK(*made == *again);
  auto taken = one.run(one.witness->challenge(1));
  REQUIRE_MESSAGE(taken, taken.error().message());
  CHECK(one.run(one.witness->confirm(1)));
  // A partition in time: node 2 was away while the configuration changed.
  one.own = {0, 1, 5};
  CHECK(one.run(one.witness->store({one.own, {}})));
  CHECK(two.run(two.witness->read())->tag == one.own);
  CHECK(two.run(two.witness->challenge(2)).error() == Errc::superseded);
  two.own = one.own;
  // Node 1 is silent, and then it is too late.
  auto over = two.run(two.witness->challenge(2));
  REQUIRE_MESSAGE(over, over.error().message());
  CHECK(one.run(one.witness->confirm(1)).error() == Errc::superseded);
  CHECK(two.run(two.witness->confirm(2)));
}
