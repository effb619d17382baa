#include "csvfs/finder.h"

#include <doctest/doctest.h>

#include "tests/fakes/manual_loop.h"

using namespace csv;

namespace {

/// Nodes that can be asked, by endpoint: who refuses, and who says nothing at all.
class Nodes final : public protocol::Transport {
 public:
  explicit Nodes(Loop& loop) : loop_{&loop} {}
  void connect(NodeId, const std::string& endpoint, protocol::Connected done) override {
    asked.push_back(endpoint);
    if (silent == endpoint) return waiting.push_back(std::move(done));
    loop_->post([done = std::move(done), endpoint]() mutable {
      done(Error{std::errc::connection_refused, endpoint});
    });
  }
  Expected<std::unique_ptr<Listener>> listen(
      const std::string&, std::function<void(std::unique_ptr<protocol::Connection>)>) override {
    return Error{Errc::refused, "nobody listens here"};
  }
  std::string silent;
  std::vector<std::string> asked;
  std::vector<protocol::Connected> waiting;

 private:
  Loop* loop_;
};

struct Bed {
  std::vector<std::string> attempt() {
    nodes.asked.clear();
    finder.connect([this](auto connected) { said = connected.error().message(); });
    loop.run_for(1ms);
    return nodes.asked;
  }
  fakes::ManualLoop loop;
  Nodes nodes{loop};
  std::string named = "one", said;
  Finder finder{{.loop = &loop,
                 .transport = &nodes,
                 .peers = {{NodeId{2}, "two"}, {NodeId{3}, "three"}},
                 .by_csvd = [this]() -> Expected<Finder::Node> {
                   if (named.empty()) return Error{Errc::retry, "csvd names nobody"};
                   return Finder::Node{NodeId{1}, named};
                 }}};
};

using Asked = std::vector<std::string>;

}  // namespace

TEST_CASE("finder: whom csvd names, and where that is refused another node at once") {
  Bed bed;
  CHECK(bed.attempt() == Asked{"one", "two"});
  CHECK(bed.said == "one");  // what is wrong here comes first
  CHECK(bed.attempt() == Asked{"one", "three"});
  bed.named = "";
  CHECK(bed.attempt() == Asked{"two"});
  CHECK(bed.said == "csvd names nobody");
}

TEST_CASE(
    "finder: one that says nothing is asked every other time, and another one that csvd names at "
    "once") {
  Bed bed;
  bed.nodes.silent = "one";
  CHECK(bed.attempt() == Asked{"one"});
  CHECK(bed.attempt() == Asked{"two"});
  CHECK(bed.attempt() == Asked{"one"});
  bed.finder.elsewhere(NodeId{3}, "three");
  CHECK(bed.attempt() == Asked{"three"});
  bed.finder.found();
  CHECK(bed.attempt() == Asked{"one"});  // a long time later, for all it knows
  bed.named = "four";                    // it has moved: nobody else knows better
  CHECK(bed.attempt() == Asked{"four", "three"});
}

TEST_CASE("finder: whom another node names is asked next") {
  Bed bed;
  bed.finder.elsewhere(NodeId{3}, "three");
  CHECK(bed.attempt() == Asked{"three"});
  CHECK(bed.attempt() == Asked{"one", "two"});
}
