#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/cluster/engine.h"

namespace csv::cluster {

/// Views out of what a process group tells: which processes are in it, which ring of nodes carries
/// it, and ordered messages. Every process of the group runs one of these on the same order of
/// events, and all of them come to the same view at the same message. One thread; no clock.
///
/// A process is known by (node, pid), which says nothing of its life and may be a ghost's (a
/// process that is long gone, but never left the list). So after each change everybody says *hello*
/// with its life, and the view begins where the last one's hello is delivered: the same place for
/// all, for those who have just come too. Who says nothing for long is given up, which is said with
/// a hello, and so is known to all at the same message. One that was given up and lives takes
/// itself out of the group, and joins as another life.
///
/// Messages of a sender that is not in the view, or of another life of his, are dropped. So are all
/// that come between a ring and the view that begins in it: they waited for it when the one before
/// broke, and those whom that left in another ring do not hear them. All who share the ring drop
/// the same ones.
class GroupViews {
 public:
  struct Process {
    NodeId node{};
    std::uint32_t pid = 0;
    auto operator<=>(const Process&) const = default;
  };
  struct Out {
    std::function<void(std::string frame)> say;  ///< To the whole group, this process too.
    std::function<void(View)> view;
    std::function<void(Member from, std::string message)> deliver;
    std::function<void()> excluded;  ///< The others go on without us: leave, join as another life.
  };

  GroupViews(Process self, std::uint64_t life, Out out);

  /// The group has these processes from here on. `ring_follows`: nodes came or went with them, and
  /// ring() comes next.
  void processes(std::vector<Process> all, bool ring_follows);
  /// These nodes carry the group from here on.
  void ring(std::uint64_t sequence, std::vector<NodeId> nodes);
  void message(Process from, std::string_view frame);

  /// Somebody has not said hello yet. If that lasts, give_up_waiting().
  [[nodiscard]] bool waiting() const { return waiting_; }
  /// Grows with every wait: two that differ are two waits.
  [[nodiscard]] std::uint64_t wait_number() const { return wait_number_; }
  /// Those who are silent count no longer, once that was delivered to all. No effect while not
  /// even our own hello has come back: then it is the group that is silent.
  void give_up_waiting();

  /// A message as it travels: an own small header before it.
  [[nodiscard]] std::string frame(std::string_view message) const;

 private:
  struct Heard {
    Process process;
    std::uint64_t life = 0;
  };
  void begin();
  void note_gone();
  void part();
  void say_hello();
  void hello(Process from, std::uint64_t life, const std::vector<Process>& given_up);
  void settle();
  [[nodiscard]] bool in_group(Process process) const;
  [[nodiscard]] const Heard* heard(Process process) const;

  Process self_;
  std::uint64_t life_;
  Out out_;
  std::vector<Process> all_;
  std::optional<std::uint64_t> ring_;
  std::vector<NodeId> nodes_;
  bool waiting_ = false;
  std::uint64_t wait_number_ = 0;
  std::vector<Heard> heard_;             ///< In this wait, or in the last one.
  std::vector<Heard> in_view_;           ///< Who is in the view and has been in the group since.
  std::vector<Heard> gone_;              ///< Who is in the view and has not.
  std::set<Process> given_up_;           ///< What our hellos say.
  std::set<Process> given_up_by_group_;  ///< What the hellos of this wait have said.
  View view_;
};

}  // namespace csv::cluster
