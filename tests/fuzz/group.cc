// What a process group tells its views: frames of any content, processes and rings that come and
// go. Whatever it is, a view has this process and only nodes that are there, and a message comes
// from a member.
//
//   steps: what (1 byte), arguments as below; a process is a byte, node in its lower 2 bits
#include <algorithm>
#include <deque>

#include "coordinator/cluster/group_views.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using cluster::GroupViews;
using cluster::Member;
using cluster::View;

enum Step : std::uint8_t {
  frame,      ///< A frame: process (1), length (1), its bytes.
  hello,      ///< A right hello of another process: process (1), life (1).
  own,        ///< What we said last comes back.
  processes,  ///< The group: count (1), as many processes (1 each), ours too; bit 7: a ring
              ///< follows.
  ring,       ///< Which nodes: a bit each (1).
  give_up,
  kSteps
};

GroupViews::Process process_of(std::uint8_t byte) {
  return {NodeId{static_cast<std::uint8_t>(1 + byte % 4)}, std::uint32_t{byte} / 4};
}
constexpr std::uint8_t kSelf = 4;  // pid 1 on node 1

std::string right_hello(std::uint8_t life) {
  return std::string{"CSVG\x01\x01\0\0", 8} + static_cast<char>(life) + std::string(7, '\0');
}

std::string step(Step what, const std::string& rest = {}) {
  return std::string(1, static_cast<char>(what)) + rest;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  const std::uint64_t life = 200;
  std::deque<std::string> said;
  std::vector<NodeId> nodes;
  View view;
  bool excluded = false;
  GroupViews::Out out;
  out.say = [&](std::string text) { said.push_back(std::move(text)); };
  out.view = [&](View next) {
    CSV_CHECK(std::is_sorted(next.members.begin(), next.members.end()));
    for (const auto& each : next.members)
      CSV_CHECK(std::binary_search(next.nodes.begin(), next.nodes.end(), each.node));
    view = std::move(next);
  };
  out.deliver = [&](Member from, const std::string&) {
    CSV_CHECK(std::binary_search(view.members.begin(), view.members.end(), from));
  };
  out.excluded = [&] { excluded = true; };
  GroupViews views{process_of(kSelf), life, std::move(out)};
  Input input{bytes};
  std::uint64_t sequence = 0;
  for (int steps = 0; !input.empty() && steps < 500 && !excluded; ++steps) {
    switch (static_cast<Step>(input.take() % kSteps)) {
      case frame: {
        auto from = process_of(input.take());
        views.message(from, text_of(input.take(input.take())));
        break;
      }
      case hello: {
        auto from = process_of(input.take());
        views.message(from, right_hello(input.take()));
        break;
      }
      case own:
        if (said.empty()) break;
        views.message(process_of(kSelf), said.back());
        said.clear();
        break;
      case processes: {
        auto count = input.take();
        std::vector<GroupViews::Process> all{process_of(kSelf)};
        for (int i = 0; i < (count & 0xf); ++i) all.push_back(process_of(input.take()));
        std::sort(all.begin(), all.end());
        all.erase(std::unique(all.begin(), all.end()), all.end());
        views.processes(std::move(all), (count & 0x80) != 0);
        break;
      }
      case ring: {
        nodes = {NodeId{1}};
        auto bits = input.take();
        for (std::uint8_t i = 1; i < 4; ++i)
          if ((bits >> i & 1) != 0) nodes.push_back(NodeId{static_cast<std::uint8_t>(1 + i)});
        views.ring(++sequence, nodes);
        break;
      }
      case give_up: views.give_up_waiting(); break;
      case kSteps: break;
    }
    said.resize(std::min<std::size_t>(said.size(), 16));
  }
}

std::vector<Seed> seeds() {
  const std::string alone = step(processes, std::string(1, '\0')) + step(ring, "\x0f") + step(own);
  const std::string two = step(processes, "\x01\x05") + step(ring, "\x0f");
  const std::string together = two + step(own) + step(hello, "\x05\x07");
  const std::string words =
      std::string{"CSVG\x01\x02\0\0", 8} + "\x07" + std::string(7, '\0') + "words";
  const std::string gives_up_us = std::string{"CSVG\x01\x01\x01\0", 8} + "\x07" +
                                  std::string(7, '\0') + std::string{"\x01\0\0\0\x01\0\0\0", 8};
  auto framed = [](const std::string& text) {
    return std::string{"\x05"} + static_cast<char>(text.size()) + text;
  };
  return {
      {"alone", alone},
      {"together", together + step(frame, framed(words))},
      {"message-of-a-stranger", alone + step(frame, framed(words))},
      {"ghost", two + step(own) + step(give_up) + step(own) + step(hello, "\x05\x07") + step(own)},
      {"given-up", two + step(frame, framed(gives_up_us))},
      {"another-life", together + step(hello, "\x05\x08") + step(own)},
      {"parted", together + step(processes, "\x80") + step(ring, "\x01") +
                     step(processes, "\x81\x05") + step(ring, "\x0f") + step(own) +
                     step(hello, "\x05\x07")},
  };
}

}  // namespace csv::fuzz
