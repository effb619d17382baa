#include "coordinator/cluster/group_views.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <variant>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::cluster;
using Process = GroupViews::Process;

namespace {

NodeId node(int number) { return NodeId{static_cast<std::uint8_t>(number)}; }

/// Process groups as Corosync has them: within one side of a partition everybody is told the same
/// in the same order, each at its own pace.
class World {
 public:
  struct Processes {
    std::vector<Process> all;
    bool ring_follows = false;
  };
  struct Ring {
    std::uint64_t sequence = 0;
    std::vector<NodeId> nodes;
  };
  struct Frame {
    Process from;
    std::string bytes;
  };
  struct Told {
    std::uint64_t place = 0;  ///< In everything that was ever told; the same for all who are told.
    std::variant<Processes, Ring, Frame> what;
  };
  /// What a process heard of its GroupViews: a view, or a message within it.
  struct Heard {
    std::uint64_t place = 0;
    std::optional<View> view;
    std::string message;
  };
  struct Peer {
    Process process;
    std::uint64_t life = 0;
    std::unique_ptr<GroupViews> views;  ///< None: a ghost.
    bool frozen = false, excluded = false;
    std::deque<std::string> to_say;
    std::deque<Told> inbox;
    std::uint64_t place = 0;
    std::vector<Heard> heard;
  };
  struct Side {
    std::set<int> nodes;
    std::uint64_t ring = 0;
  };

  explicit World(int nodes) {
    Side all;
    for (int i = 1; i <= nodes; ++i) all.nodes.insert(i);
    all.ring = ++rings_;
    sides_.push_back(all);
  }

  Peer& join(int on, std::uint32_t pid, bool ghost = false) {
    peers_.push_back(std::make_unique<Peer>());
    auto& peer = *peers_.back();
    peer.process = {node(on), pid};
    peer.life = ++lives_;
    if (!ghost) {
      GroupViews::Out out;
      out.say = [&peer](std::string frame) { peer.to_say.push_back(std::move(frame)); };
      out.view = [&peer](View view) { peer.heard.push_back({peer.place, std::move(view), {}}); };
      out.deliver = [&peer](Member from, const std::string& message) {
        peer.heard.push_back({peer.place, {}, std::to_string(from.life) + " " + message});
      };
      out.excluded = [&peer] { peer.excluded = true; };
      peer.views = std::make_unique<GroupViews>(peer.process, peer.life, std::move(out));
    }
    auto& side = side_of(on);
    members_.push_back(&peer);
    tell(side, Processes{processes_of(side), false});
    tell_one(peer, Ring{side.ring, nodes_of(side)});
    return peer;
  }
  /// The process has ended; nobody is told where the group did not notice.
  void leave(Peer& peer) {
    std::erase(members_, &peer);
    peer.views.reset();
    auto& side = side_of(raw(peer.process.node));
    tell(side, Processes{processes_of(side), false});
  }
  /// `away` cannot reach the others of their side any more. A message that is under way may reach
  /// one of the two parts only.
  void split(const std::set<int>& away) {
    auto& old = side_of(*away.begin());
    for (auto* peer : members_)
      if (old.nodes.count(raw(peer->process.node)) > 0 && peer->views && !peer->to_say.empty())
        say(*peer, away.count(raw(peer->process.node)) > 0 ? away : without(old.nodes, away));
    Side other{away, 0};
    old.nodes = without(old.nodes, away);
    sides_.push_back(other);
    for (auto* side : {&side_of(*away.begin()), &side_of_rest(away)}) {
      side->ring = ++rings_;
      tell(*side, Processes{processes_of(*side), true});
      tell(*side, Ring{side->ring, nodes_of(*side)});
    }
  }
  void merge() {
    while (sides_.size() > 1) {
      auto gone = sides_.back();
      sides_.pop_back();
      auto& side = sides_.front();
      auto stayed = side;
      side.nodes.insert(gone.nodes.begin(), gone.nodes.end());
      side.ring = ++rings_;
      for (const auto& half : {stayed, gone}) {
        tell(half, Processes{processes_of(side), true});
        tell(half, Ring{side.ring, nodes_of(side)});
      }
    }
  }
  void say(Peer& peer, const std::string& message) {
    peer.to_say.push_back(peer.views->frame(message));
  }
  /// A process's next frame goes out, to its side or to those given.
  void say(Peer& peer, const std::set<int>& to) {
    auto frame = std::move(peer.to_say.front());
    peer.to_say.pop_front();
    Told told{++places_, Frame{peer.process, std::move(frame)}};
    for (auto* each : members_)
      if (to.count(raw(each->process.node)) > 0 && each->views) each->inbox.push_back(told);
  }
  void step(Peer& peer) {
    auto told = std::move(peer.inbox.front());
    peer.inbox.pop_front();
    peer.place = told.place;
    if (auto* processes = std::get_if<Processes>(&told.what))
      peer.views->processes(processes->all, processes->ring_follows);
    if (auto* ring = std::get_if<Ring>(&told.what)) peer.views->ring(ring->sequence, ring->nodes);
    if (auto* frame = std::get_if<Frame>(&told.what))
      peer.views->message(frame->from, frame->bytes);
  }
  /// Something happens to somebody, if anything is to happen.
  bool run(Random& random) {
    std::vector<Peer*> can;
    for (auto* peer : members_)
      if (peer->views && !peer->frozen && !peer->excluded &&
          (!peer->inbox.empty() || !peer->to_say.empty()))
        can.push_back(peer);
    if (can.empty()) return false;
    auto& peer = *can[random.below(can.size())];
    if (peer.inbox.empty() || (!peer.to_say.empty() && random.chance(1, 2)))
      say(peer, side_of(raw(peer.process.node)).nodes);
    else
      step(peer);
    return true;
  }
  void settle(Random& random) {
    while (run(random)) {
    }
  }
  /// Nobody waits any longer.
  void be_impatient(Random& random) {
    settle(random);
    for (auto* peer : members_)
      if (peer->views && !peer->frozen && !peer->excluded) peer->views->give_up_waiting();
    settle(random);
  }
  /// As the engine does: who was excluded joins as another life.
  bool return_excluded() {
    for (auto& peer : peers_) {
      if (!peer->views || !peer->excluded) continue;
      auto process = peer->process;
      leave(*peer);
      join(raw(process.node), process.pid);
      return true;
    }
    return false;
  }

  [[nodiscard]] std::vector<Peer*>& members() { return members_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Peer>>& peers() const { return peers_; }
  Side& side_of(int number) {
    for (auto& side : sides_)
      if (side.nodes.count(number) > 0) return side;
    return sides_.front();
  }
  [[nodiscard]] bool is_split() const { return sides_.size() > 1; }

 private:
  static std::set<int> without(std::set<int> all, const std::set<int>& some) {
    for (auto each : some) all.erase(each);
    return all;
  }
  Side& side_of_rest(const std::set<int>& away) {
    for (auto& side : sides_)
      if (side.nodes != away) return side;
    return sides_.front();
  }
  std::vector<Process> processes_of(const Side& side) {
    std::vector<Process> all;
    for (auto* peer : members_)
      if (side.nodes.count(raw(peer->process.node)) > 0) all.push_back(peer->process);
    return all;
  }
  static std::vector<NodeId> nodes_of(const Side& side) {
    std::vector<NodeId> all;
    for (auto each : side.nodes) all.push_back(node(each));
    return all;
  }
  template <typename What>
  void tell(const Side& side, What what) {
    Told told{++places_, std::move(what)};
    for (auto* each : members_)
      if (side.nodes.count(raw(each->process.node)) > 0 && each->views) each->inbox.push_back(told);
  }
  template <typename What>
  void tell_one(Peer& peer, What what) {
    if (peer.views) peer.inbox.push_back({++places_, std::move(what)});
  }

  std::uint64_t rings_ = 0, lives_ = 0, places_ = 0;
  std::vector<Side> sides_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::vector<Peer*> members_;
};

const View& last_view(const World::Peer& peer) {
  for (auto at = peer.heard.rbegin(); at != peer.heard.rend(); ++at)
    if (at->view) return *at->view;
  static const View none;
  return none;
}

std::vector<std::string> messages(const World::Peer& peer) {
  std::vector<std::string> all;
  for (const auto& each : peer.heard)
    if (!each.view) all.push_back(each.message);
  return all;
}

/// Engine's promise on order. Returns what breaks it.
std::string broken_order(const World& world) {
  std::map<std::uint64_t, View> at_place;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::vector<std::string>> between;
  for (const auto& peer : world.peers()) {
    std::uint64_t begun = 0;
    std::set<std::string> lives;
    std::vector<std::string> said;
    for (const auto& each : peer->heard) {
      if (!each.view) {
        if (begun == 0) return "a message before the first view";
        if (lives.count(each.message.substr(0, each.message.find(' '))) == 0)
          return "a message of no member";
        said.push_back(each.message);
        continue;
      }
      auto known = at_place.emplace(each.place, *each.view).first;
      if (!(known->second == *each.view)) return "two views at one place";
      if (begun != 0) {
        auto same = between.emplace(std::pair{begun, each.place}, said).first;
        if (same->second != said) return "other messages between the same two views";
      }
      begun = each.place;
      said.clear();
      lives.clear();
      bool self = false;
      for (const auto& member : each.view->members) {
        lives.insert(std::to_string(member.life));
        self |= member == Member{peer->process.node, peer->life};
      }
      if (!self) return "a view without oneself";
    }
  }
  return {};
}

}  // namespace

TEST_CASE("group views: those who join are in one view, and hear the same messages in it") {
  Random random{1};
  World world{3};
  auto& a = world.join(1, 100);
  world.settle(random);
  CHECK(last_view(a) == View{1, {node(1), node(2), node(3)}, {{node(1), a.life}}});
  auto& b = world.join(2, 100);
  auto& c = world.join(3, 100);
  world.settle(random);
  const View all{
      1, {node(1), node(2), node(3)}, {{node(1), a.life}, {node(2), b.life}, {node(3), c.life}}};
  for (auto* peer : {&a, &b, &c}) CHECK(last_view(*peer) == all);
  for (auto* peer : {&a, &b, &c})
    for (int i = 0; i < 20; ++i) world.say(*peer, "message " + std::to_string(i));
  world.settle(random);
  CHECK(messages(a).size() == 60);
  CHECK(messages(a) == messages(b));
  CHECK(messages(a) == messages(c));
  CHECK(broken_order(world).empty());
}

TEST_CASE(
    "group views: the same pid again is another life, and what the former sent does not count") {
  Random random{2};
  World world{2};
  auto& a = world.join(1, 100);
  auto& b = world.join(2, 7);
  world.settle(random);
  auto late = b.views->frame("late");
  world.leave(b);
  auto& again = world.join(2, 7);
  world.settle(random);
  CHECK(last_view(a).members == std::vector<Member>{{node(1), a.life}, {node(2), again.life}});
  a.views->message({node(2), 7}, late);
  CHECK(messages(a).empty());
  a.views->message({node(2), 7}, again.views->frame("now"));
  CHECK(messages(a) == std::vector<std::string>{std::to_string(again.life) + " now"});
}

TEST_CASE("group views: a ghost holds up one view, and no later one") {
  Random random{3};
  World world{3};
  auto& a = world.join(1, 100);
  auto& b = world.join(2, 100);
  world.settle(random);
  world.join(2, 50, true);
  world.settle(random);
  CHECK(a.views->waiting());
  world.be_impatient(random);
  CHECK_FALSE(a.views->waiting());
  const std::vector<Member> both{{node(1), a.life}, {node(2), b.life}};
  CHECK(last_view(a).members == both);
  auto& c = world.join(3, 100);
  world.settle(random);
  CHECK(last_view(a).members.size() == 3);
  CHECK(last_view(c) == last_view(a));
  CHECK(broken_order(world).empty());
}

TEST_CASE("group views: entries of a node that is not in the ring are nobody") {
  Random random{4};
  World world{2};
  auto& a = world.join(1, 100);
  world.settle(random);
  a.views->processes({{node(1), 100}, {node(9), 1}}, false);
  world.settle(random);
  CHECK_FALSE(a.views->waiting());
  CHECK(last_view(a).members == std::vector<Member>{{node(1), a.life}});
}

TEST_CASE("group views: a node that was away without its entry going parts the view, too") {
  Random random{7};
  World world{2};
  auto& a = world.join(1, 100);
  auto& b = world.join(2, 100);
  world.settle(random);
  CHECK(last_view(a).members.size() == 2);
  auto heard = a.heard.size();
  a.views->ring(7, {node(1)});
  a.views->ring(8, {node(1), node(2)});
  REQUIRE(a.heard.size() == heard + 1);
  CHECK(last_view(a) == View{7, {node(1)}, {{node(1), a.life}}});
  world.settle(random);
  a.views->message(b.process, b.views->frame("since then"));
  CHECK(messages(a).empty());
}

TEST_CASE("group views: what a ring brings before its view begins is said in no view") {
  Random random{8};
  World world{3};
  auto& a = world.join(1, 100);
  auto& b = world.join(2, 100);
  auto& c = world.join(3, 100);
  world.settle(random);
  // The first of each is under way when the ring breaks, the second waits for the next ring.
  for (auto* peer : {&a, &b})
    for (const char* message : {"first", "second"}) world.say(*peer, message);
  world.split({1});
  world.settle(random);
  CHECK(last_view(a).members.size() == 1);
  CHECK(last_view(b).members.size() == 2);
  auto said = [](const World::Peer& by) {
    return std::vector<std::string>{std::to_string(by.life) + " first"};
  };
  CHECK(messages(a) == said(a));
  CHECK(messages(b) == said(b));
  CHECK(messages(c) == said(b));
}

TEST_CASE("group views: one who stood still while the others went on comes back as another life") {
  Random random{5};
  World world{3};
  auto& a = world.join(1, 100);
  auto& b = world.join(2, 100);
  auto& c = world.join(3, 100);
  world.settle(random);
  b.frozen = true;
  world.split({3});
  world.settle(random);
  CHECK(a.views->waiting());
  CHECK(last_view(c).members == std::vector<Member>{{node(3), c.life}});
  world.be_impatient(random);
  CHECK(last_view(a).members == std::vector<Member>{{node(1), a.life}});
  b.frozen = false;
  world.settle(random);
  CHECK(b.excluded);
  CHECK(last_view(b).members.size() == 3);
  auto before = b.life;
  while (world.return_excluded()) world.settle(random);
  auto& again = *world.members().back();
  CHECK(again.life != before);
  CHECK(last_view(a).members == std::vector<Member>{{node(1), a.life}, {node(2), again.life}});
  CHECK(broken_order(world).empty());
}

TEST_CASE("group views: nobody is given up by one who hears nothing himself") {
  World world{2};
  auto& a = world.join(1, 100);
  world.join(2, 100, true);
  while (!a.inbox.empty()) world.step(a);
  auto said = a.to_say.size();
  a.views->give_up_waiting();
  CHECK(a.to_say.size() == said);
  CHECK(a.views->waiting());
}

TEST_CASE("group views: damaged frames are ignored") {
  Random random{6};
  World world{2};
  auto& a = world.join(1, 100);
  auto& b = world.join(2, 100);
  world.settle(random);
  auto view = last_view(a);
  std::vector<std::string> frames{b.views->frame("message")};
  world.join(2, 50, true);
  while (!b.inbox.empty()) world.step(b);
  frames.push_back(b.to_say.back());
  for (const auto& frame : frames)
    for (std::size_t length = 0; length < std::min<std::size_t>(frame.size(), 16); ++length)
      a.views->message(b.process, std::string_view{frame}.substr(0, length));
  for (int i = 0; i < 20'000; ++i) {
    auto frame = frames[random.below(frames.size())];
    for (auto n = random.below(4); n > 0; --n)
      frame[random.below(8)] = static_cast<char>(random.next());
    if (random.chance(1, 4)) frame.resize(random.below(frame.size() + 9));
    // Its life stays whole: another life would be news, rightly.
    if (frame.size() >= 16 && frame.compare(8, 8, frames[0], 8, 8) == 0)
      a.views->message(b.process, frame);
  }
  CHECK(last_view(a) == view);
  for (const auto& each : messages(a)) CHECK(each.substr(0, 2) == std::to_string(b.life) + " ");
}

TEST_CASE("group views: whatever happens, all agree on what came between two views") {
  std::uint64_t views = 0, heard = 0, excluded = 0;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    CAPTURE(seed);
    Random random{seed};
    World world{4};
    std::uint32_t pid = 1;
    for (int happening = 0; happening < 60; ++happening) {
      auto& members = world.members();
      auto* chosen = members.empty() ? nullptr : members[random.below(members.size())];
      switch (random.below(9)) {
        case 0:
          if (members.size() < 8)
            world.join(1 + static_cast<int>(random.below(4)), ++pid, random.chance(1, 8));
          break;
        case 1:
          if (chosen && random.chance(1, 2)) world.leave(*chosen);
          break;
        case 2:
          if (!world.is_split()) {
            if (random.chance(1, 2))
              world.split({1 + static_cast<int>(random.below(4))});
            else
              world.split({1, 2});
          }
          break;
        case 3: world.merge(); break;
        case 4:
          if (chosen) chosen->frozen = random.chance(1, 4);
          break;
        case 5: world.be_impatient(random); break;
        case 6: excluded += world.return_excluded() ? 1 : 0; break;
        default:
          if (chosen && chosen->views) world.say(*chosen, std::to_string(happening));
      }
      for (auto n = random.below(40); n > 0; --n) world.run(random);
    }
    world.merge();
    for (auto* peer : world.members()) peer->frozen = false;
    do world.be_impatient(random);
    while (world.return_excluded());
    CHECK(broken_order(world) == "");
    // In the end everybody who lives is with everybody who lives.
    std::vector<Member> all;
    for (auto* peer : world.members())
      if (peer->views) all.push_back({peer->process.node, peer->life});
    std::sort(all.begin(), all.end());
    for (auto* peer : world.members())
      if (peer->views) CHECK(last_view(*peer).members == all);
    for (const auto& peer : world.peers())
      for (const auto& each : peer->heard) ++(each.view ? views : heard);
  }
  MESSAGE(views << " views, " << heard << " messages, " << excluded << " excluded");
  CHECK(views > 4000);
  CHECK(heard > 4000);
  CHECK(excluded > 10);
}
