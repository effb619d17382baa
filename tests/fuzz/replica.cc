// What the members of a cluster say to a replica, whatever that is and in whatever view. What it
// stores is sane and never goes back, a promise neither, and it goes on only with a configuration.
//
//   steps: what (1 byte), arguments as below; who: a node from 1 to 3
#include "coordinator/cluster/replica.h"

#include <deque>
#include <memory>

#include "coordinator/protocol/group.pb.h"
#include "csvfs/base/check.h"
#include "tests/fakes/manual_loop.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using cluster::Configuration;
using cluster::Kept;
using cluster::Member;
using cluster::Replica;

enum Step : std::uint8_t {
  view,     ///< A bit a node (1): those are members from now on, besides this one.
  raw_one,  ///< who (1), length (2): any message.
  right,    ///< who (1), length (2): a message whose view is put right.
  greet,    ///< who (1), length (1): a greeting with our configuration, fields over it.
  agree,    ///< who (1): it promises and has stored whatever this node has proposed last.
  wait,     ///< Steps of 100 ms (1).
  lost,
  propose,  ///< A change of this node's own: hold_s (1).
  kSteps
};

constexpr NodeId kOwn{1};

class FakeEngine final : public cluster::Engine {
 public:
  explicit FakeEngine(fakes::ManualLoop& loop) : loop_{&loop} {}
  void start(Handlers handlers) override { handlers_ = std::move(handlers); }
  void multicast(std::string message) override {
    CSV_CHECK(message.size() <= kMaxMessage);
    wire::GroupMessage parsed;
    CSV_CHECK(parsed.ParseFromString(message));
    last_ = parsed;
    if (parsed.has_prepare()) prepared_ = parsed.prepare();
    if (parsed.has_proposal()) proposed_ = parsed.proposal();
    loop_->post([this, message = std::move(message)]() mutable { tell(self(), message); });
  }
  void vote_by(Verdict verdict) override {
    const NodeId all[] = {NodeId{1}, NodeId{2}, NodeId{3}};
    (void)verdict(all);
    (void)verdict({});
  }
  [[nodiscard]] Member self() const override { return {kOwn, 1}; }

  void tell(Member from, const std::string& message) {
    if (handlers_.deliver) handlers_.deliver(from, message);
  }
  void show(unsigned others) {
    cluster::View now;
    now.ring = ++ring_;
    for (std::uint8_t node = 1; node <= 3; ++node) {
      if (node > 1 && (others >> node & 1) == 0) continue;
      now.nodes.push_back(NodeId{node});
      now.members.push_back({NodeId{node}, node});
    }
    handlers_.view(now);
  }
  void lose() { handlers_.lost(Error{Errc::closed, "lost"}); }
  /// As the last of ours was addressed.
  void put_right(wire::GroupMessage& message) const {
    message.set_version(1);
    message.set_ring(last_.ring());
    message.set_members(last_.members());
  }
  [[nodiscard]] const wire::Tag& prepared() const { return prepared_; }
  [[nodiscard]] const wire::Proposal& proposed() const { return proposed_; }

 private:
  fakes::ManualLoop* loop_;
  Handlers handlers_;
  std::uint64_t ring_ = 0;
  wire::GroupMessage last_;
  wire::Tag prepared_;
  wire::Proposal proposed_;
};

/// Stores at once, and looks at what it is given.
class WatchedStore final : public cluster::ConfigurationStore {
 public:
  explicit WatchedStore(fakes::ManualLoop& loop) : loop_{&loop} {}
  void save(const Kept& kept, Function<void(Expected<void>)> done) override {
    CSV_CHECK(kept.promised >= last_.promised);
    if (last_.configuration) {
      CSV_CHECK(kept.configuration && kept.configuration->tag >= last_.configuration->tag);
      CSV_CHECK(kept.configuration->cluster == last_.configuration->cluster);
    }
    if (kept.configuration) CSV_CHECK(static_cast<bool>(cluster::validate(*kept.configuration)));
    last_ = kept;
    loop_->post([done = std::move(done)]() mutable { done({}); });
  }
  Kept last_;

 private:
  fakes::ManualLoop* loop_;
};

Configuration first() {
  Configuration out;
  out.tag = {0, 3, 2};
  out.cluster = 7;
  out.name = "demo";
  for (std::uint8_t i = 1; i <= 3; ++i) {
    out.nodes[NodeId{i}] = {"n" + std::to_string(i), "a:" + std::to_string(i)};
    out.ballot.now.nodes[NodeId{i}] = 1;
  }
  return out;
}

class Bed {
 public:
  Bed() : engine_{loop_}, store_{loop_} {
    store_.last_.configuration = first();
    Replica::Surroundings around;
    around.loop = &loop_;
    around.engine = &engine_;
    around.store = &store_;
    around.node = kOwn;
    around.granted = [this] { return Replica::Granted{{NodeId{2}, loop_.now()}}; };
    around.changed = [] {};
    replica_ = std::make_unique<Replica>(std::move(around));
    replica_->start(store_.last_);
    settle();
  }
  Bed(const Bed&) = delete;
  Bed& operator=(const Bed&) = delete;
  ~Bed() { tasks_.cancel_all(); }

  void act(Input& input) {
    switch (static_cast<Step>(input.take() % kSteps)) {
      case view: engine_.show(input.take()); break;
      case raw_one: {
        auto from = who(input);
        engine_.tell(from, std::string{text_of(input.take(input.take<std::uint16_t>()))});
        break;
      }
      case right: {
        auto from = who(input);
        wire::GroupMessage message;
        if (message.ParseFromString(std::string{text_of(input.take(input.take<std::uint16_t>()))}))
          say(from, message);
        break;
      }
      case greet: {
        auto from = who(input);
        wire::GroupMessage message;
        message.mutable_greeting()->set_configuration(encode(*replica_->configuration()));
        if (message.mutable_greeting()->MergeFromString(
                std::string{text_of(input.take(input.take()))}))
          say(from, message);
        break;
      }
      case agree: {
        auto from = who(input);
        wire::GroupMessage promise, stored;
        *promise.mutable_promised() = engine_.prepared();
        say(from, promise);
        settle();
        if (auto read = cluster::decode(engine_.proposed().configuration())) {
          auto* tag = stored.mutable_stored()->mutable_tag();
          tag->set_forced(read->tag.forced);
          tag->set_epoch(read->tag.epoch);
          tag->set_sequence(read->tag.sequence);
          say(from, stored);
        }
        break;
      }
      case wait: loop_.run_for(input.take() * 100ms); break;
      case lost: engine_.lose(); break;
      case propose: tasks_.spawn(change(input.take())); break;
      case kSteps: break;
    }
    settle();
    look();
  }

 private:
  static Member who(Input& input) {
    auto node = static_cast<std::uint8_t>(input.take() % 3 + 1);
    return {NodeId{node}, node};
  }
  void say(Member from, wire::GroupMessage& message) {
    engine_.put_right(message);
    engine_.tell(from, message.SerializeAsString());
  }
  void settle() { loop_.settle(); }
  Task<void> change(std::uint8_t hold) {
    Replica::Change to = [hold](Configuration& next) -> Expected<void> {
      next.policies.hold_s = hold;
      return {};
    };
    auto task = replica_->propose(std::move(to), 2s);
    auto made = co_await task;
    (void)made;
  }
  void look() {
    const auto* now = replica_->configuration();
    CSV_CHECK(now != nullptr && static_cast<bool>(cluster::validate(*now)));
    CSV_CHECK(now->tag >= seen_);
    seen_ = now->tag;
    if (replica_->state() == Replica::State::formed) CSV_CHECK(replica_->view().has_value());
    CSV_CHECK(replica_->state() == Replica::State::formed || !replica_->reason().empty() ||
              replica_->state() == Replica::State::forming);
  }

  fakes::ManualLoop loop_;
  FakeEngine engine_;
  WatchedStore store_;
  std::unique_ptr<Replica> replica_;
  ClusterTag seen_;
  TaskScope tasks_;
};

std::string step(int what, const std::string& rest = {}) {
  return std::string(1, static_cast<char>(what)) + rest;
}
std::string from(int node) { return std::string(1, static_cast<char>(node - 1)); }
std::string sized(const wire::GroupMessage& message) {
  auto bytes = message.SerializeAsString();
  return number(static_cast<std::uint16_t>(bytes.size())) + bytes;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Bed bed;
  Input input{bytes};
  for (int steps = 0; !input.empty() && steps < 200; ++steps) bed.act(input);
}

std::vector<Seed> seeds() {
  auto plain = [](int node) { return step(greet, from(node) + std::string(1, '\0')); };
  auto both = step(view, "\x04") + plain(2) + step(agree, from(2));
  wire::GroupMessage proposal, prepare, promised, stored, note, empty, bad, forced;
  proposal.mutable_proposal()->set_forms(true);
  auto next = first();
  next.tag = {0, 9, 0};
  next.policies.hold_s = 5;
  proposal.mutable_proposal()->set_configuration(encode(next));
  next.tag = {1, 9, 0};
  forced = proposal;
  forced.mutable_proposal()->set_configuration(encode(next));
  bad = proposal;
  bad.mutable_proposal()->set_configuration("no configuration");
  prepare.mutable_prepare()->set_epoch(50);
  promised.mutable_promised()->set_epoch(4);
  stored.mutable_stored()->mutable_tag()->set_epoch(9);
  stored.mutable_stored()->set_witness(true);
  note.set_note(std::string("\xff\x00", 2));
  auto said = [](int node, const wire::GroupMessage& what) {
    return step(right, from(node) + sized(what));
  };
  return {
      {"alone", step(view, std::string(1, '\0')) + step(wait, "\x40")},
      {"forms", both + step(wait, "\x05")},
      {"forms-and-changes",
       both + step(propose, "\x07") + step(agree, from(2)) + step(wait, "\x30")},
      {"forms-and-parts", both + step(view, std::string(1, '\0')) + step(wait, "\x30") + both},
      {"three", step(view, "\x0c") + plain(2) + plain(3) + step(agree, from(3)) +
                    step(agree, from(2)) + step(lost) + step(view, "\x0c") + plain(3)},
      {"proposal", both + said(2, proposal) + said(2, stored)},
      {"proposal-forced", both + said(2, forced) + said(2, stored) + said(2, proposal)},
      {"proposal-bad", both + said(2, bad) + said(3, proposal)},
      {"prepare", both + said(2, prepare) + said(2, proposal) + said(2, promised)},
      {"note", both + said(2, note) + said(2, empty)},
      {"raw", both + step(raw_one, from(2) + number(std::uint16_t{3}) + "\xff\xff\xff")},
      {"change-in-minority",
       step(view, std::string(1, '\0')) + step(propose, "\x09") + step(wait, "\x30") + step(lost)},
  };
}

}  // namespace csv::fuzz
