#include "coordinator/cluster/group_views.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "csvfs/base/endian.h"

namespace csv::cluster {
namespace {

enum class Kind : std::uint8_t { hello = 1, message = 2 };

/// Before everything that is sent to the group. The group itself is encrypted and authenticated by
/// the engine below; what this protects against is another life and another version.
///   offset size
///        0    4  magic     "CSVG"
///        4    1  version   receivers ignore versions above their own
///        5    1  kind      1 hello, 2 message
///        6    2  count     of given-up processes that follow (hello); 0
///        8    8  life      of the sender
/// A hello goes on with `count` times (node 4, pid 4).
struct Header {
  std::array<char, 4> magic{};
  std::uint8_t version = 0;
  std::uint8_t kind = 0;
  Le16 count{};
  Le64 life{};
};
static_assert(sizeof(Header) == 16 && alignof(Header) == 1);
static_assert(offsetof(Header, count) == 6 && offsetof(Header, life) == 8);

struct GivenUp {
  Le32 node{};
  Le32 pid{};
};
static_assert(sizeof(GivenUp) == 8 && alignof(GivenUp) == 1);

constexpr std::array<char, 4> kMagic{'C', 'S', 'V', 'G'};
constexpr std::uint8_t kVersion = 1;

template <typename T>
void append(std::string& to, const T& what) {
  std::array<char, sizeof(T)> bytes{};
  std::memcpy(bytes.data(), &what, sizeof(T));
  to.append(bytes.data(), bytes.size());
}

Header header(Kind kind, std::uint64_t life) {
  Header made;
  made.magic = kMagic;
  made.version = kVersion;
  made.kind = static_cast<std::uint8_t>(kind);
  made.life = life;
  return made;
}

bool contains(const std::vector<NodeId>& nodes, NodeId node) {
  return std::binary_search(nodes.begin(), nodes.end(), node);
}

}  // namespace

GroupViews::GroupViews(Process self, std::uint64_t life, Out out)
    : self_{self}, life_{life}, out_{std::move(out)} {}

void GroupViews::processes(std::vector<Process> all, bool ring_follows) {
  all_ = std::move(all);
  std::sort(all_.begin(), all_.end());
  note_gone();
  std::erase_if(given_up_, [this](const Process& each) { return !in_group(each); });
  waiting_ = false;
  if (!ring_follows) begin();
}

void GroupViews::ring(std::uint64_t sequence, std::vector<NodeId> nodes) {
  std::sort(nodes.begin(), nodes.end());
  // Who was away from us, however shortly, has heard other messages than we have.
  if (std::any_of(gone_.begin(), gone_.end(), [&](const Heard& each) {
        return in_group(each.process) && contains(nodes, each.process.node);
      }))
    part();
  ring_ = sequence;
  nodes_ = std::move(nodes);
  note_gone();
  begin();
}

void GroupViews::note_gone() {
  auto is_here = [this](const Heard& each) {
    return in_group(each.process) && contains(nodes_, each.process.node);
  };
  auto first_gone = std::stable_partition(in_view_.begin(), in_view_.end(), is_here);
  gone_.insert(gone_.end(), first_gone, in_view_.end());
  in_view_.erase(first_gone, in_view_.end());
}

/// The view of those who stayed together, which there was no time to agree on.
void GroupViews::part() {
  gone_.clear();
  View rest{*ring_, nodes_, {}};
  for (const auto& each : in_view_) rest.members.push_back({each.process.node, each.life});
  std::sort(rest.members.begin(), rest.members.end());
  view_ = std::move(rest);
  out_.view(view_);
}

void GroupViews::begin() {
  if (!ring_ || !in_group(self_)) return;
  waiting_ = true;
  ++wait_number_;
  heard_.clear();
  given_up_by_group_.clear();
  say_hello();
}

void GroupViews::say_hello() {
  auto made = header(Kind::hello, life_);
  made.count = static_cast<std::uint16_t>(given_up_.size());
  std::string frame;
  append(frame, made);
  for (const auto& each : given_up_) {
    GivenUp entry;
    entry.node = raw(each.node);
    entry.pid = each.pid;
    append(frame, entry);
  }
  out_.say(std::move(frame));
}

std::string GroupViews::frame(std::string_view message) const {
  std::string made;
  made.reserve(sizeof(Header) + message.size());
  append(made, header(Kind::message, life_));
  made.append(message);
  return made;
}

void GroupViews::message(Process from, std::string_view frame) {
  Header found;
  if (frame.size() < sizeof found) return;
  std::memcpy(&found, frame.data(), sizeof found);
  if (found.magic != kMagic || found.version != kVersion || found.life == 0) return;
  frame.remove_prefix(sizeof found);
  switch (Kind{found.kind}) {
    case Kind::message: {
      // Said in a ring that has ended, and carried by the next one: in that of others it may have
      // been taken back for something else by now, and the view there is older than that ring.
      if (ring_ && *ring_ != view_.ring) return;
      const Member sender{from.node, found.life};
      if (std::binary_search(view_.members.begin(), view_.members.end(), sender))
        out_.deliver(sender, std::string{frame});
      return;
    }
    case Kind::hello: {
      if (frame.size() != found.count * sizeof(GivenUp)) return;
      std::vector<Process> given_up;
      for (std::size_t i = 0; i < found.count; ++i) {
        GivenUp entry;
        std::memcpy(&entry, frame.data() + i * sizeof entry, sizeof entry);
        if (entry.node > 0xff) return;
        given_up.push_back({NodeId{static_cast<std::uint8_t>(entry.node)}, entry.pid});
      }
      hello(from, found.life, given_up);
      return;
    }
  }
}

void GroupViews::hello(Process from, std::uint64_t life, const std::vector<Process>& given_up) {
  if (!ring_ || !in_group(from) || !in_group(self_) || !contains(nodes_, from.node)) return;
  if (!waiting_) {
    auto* known = heard(from);
    if (known && known->life == life) return;
    // Somebody who was given up lives, or is another life of whom we knew.
    begin();
  }
  given_up_.erase(from);
  std::erase_if(heard_, [&](const Heard& each) { return each.process == from; });
  heard_.push_back({from, life});
  given_up_by_group_.insert(given_up.begin(), given_up.end());
  settle();
}

void GroupViews::settle() {
  View next{*ring_, nodes_, {}};
  std::set<Process> absent;
  for (const auto& each : all_) {
    if (!contains(nodes_, each.node)) continue;  // its node has gone, its entry has not
    if (auto* known = heard(each)) {
      next.members.push_back({each.node, known->life});
    } else if (given_up_by_group_.count(each) > 0) {
      absent.insert(each);
    } else {
      return;
    }
  }
  waiting_ = false;
  given_up_ = std::move(absent);
  if (given_up_.count(self_) > 0) return out_.excluded();
  std::sort(next.members.begin(), next.members.end());
  in_view_ = heard_;
  gone_.clear();
  if (next == view_) return;
  view_ = std::move(next);
  out_.view(view_);
}

void GroupViews::give_up_waiting() {
  if (!waiting_ || !heard(self_)) return;
  for (const auto& each : all_)
    if (contains(nodes_, each.node) && !heard(each)) given_up_.insert(each);
  say_hello();
}

bool GroupViews::in_group(Process process) const {
  return std::binary_search(all_.begin(), all_.end(), process);
}

const GroupViews::Heard* GroupViews::heard(Process process) const {
  auto found = std::find_if(heard_.begin(), heard_.end(),
                            [&](const Heard& each) { return each.process == process; });
  return found == heard_.end() ? nullptr : &*found;
}

}  // namespace csv::cluster
