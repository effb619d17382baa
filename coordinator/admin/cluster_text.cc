// `csvctl cluster status` for people.
#include "coordinator/admin/cluster_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>

#include "coordinator/admin/text_table.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;

std::string text_at(const Json& of, const char* field) { return of.at(field).get<std::string>(); }
std::int64_t number_at(const Json& of, const char* field) {
  return of.at(field).get<std::int64_t>();
}
bool flag_at(const Json& of, const char* field) { return of.at(field).get<bool>(); }

bool formed(const Json& voting) { return text_at(voting, "state") == "formed"; }

std::string times(std::uint64_t count) {
  return count == 1 ? "once" : fmt::format("{} times", count);
}

/// FORCED.EPOCH.SEQUENCE. An epoch is an attempt of some node to form the cluster.
struct Tag {
  std::uint64_t forced = 0, node = 0, changes = 0;
};
Tag tag_of(const std::string& text) {
  constexpr std::uint64_t kNodes = 64;  // Replica::next_epoch
  std::uint64_t part[3] = {};
  const char* at = text.data();
  const char* end = at + text.size();
  for (auto& each : part) {
    auto [stop, error] = std::from_chars(at, end, each);
    if (error != std::errc{}) return {};
    at = stop == end ? stop : stop + 1;
  }
  return {part[0], part[1] % kNodes, part[2]};
}

std::string state_words(const std::string& state) {
  if (state == "formed") return "quorate";
  if (state == "lost") return "cut off";
  if (state == "greeting" || state == "forming") return "forming";
  return state;
}

/// One cluster, being told.
class Teller {
 public:
  Teller(const Json& voting, const Paint& paint) : voting_{voting}, paint_{paint} {}

  std::string tell() {
    for (const auto& node : voting_.at("nodes"))
      names_[number_at(node, "id")] = text_at(node, "name");
    bool exists = !text_at(voting_, "name").empty();
    if (exists) {
      quorum();
      nodes();
      volumes();
    }
    auto out = paint_.bold(exists ? "Cluster " + text_at(voting_, "name") : "No cluster") + " as " +
               name(number_at(voting_, "node")) + " sees it: " + quorum_line(voting_, paint_) +
               "\n";
    auto attention = quorum_attention(voting_);
    attention.insert(attention.end(), away_.begin(), away_.end());
    if (attention.empty()) {
      out += paint_.good("All is well.") + "\n";
    } else {
      out += paint_.bad(fmt::format("Needs attention ({}):", attention.size())) + "\n";
      for (const auto& [subject, text] : attention)
        out += "  " + paint_.warning("!") + " " + paint_.bold(subject) + ": " + text + "\n";
    }
    return out + body_;
  }

 private:
  void line(const std::string& what, const std::string& value) {
    body_ += "  " + paint_.faint(fmt::format("{:<15}", what)) + value + "\n";
  }
  std::string name(std::int64_t id) const {
    auto found = names_.find(id);
    return found == names_.end() ? fmt::format("node {}", id) : found->second;
  }

  std::string tag_words() const {
    auto tag = tag_of(text_at(voting_, "tag"));
    if (tag.node == 0) return "the cluster has not formed yet";
    auto changes = tag.changes > 0 ? tag.changes - 1 : 0;  // it forms with 1
    return fmt::format("formed by {}, {} {} since{}", name(static_cast<std::int64_t>(tag.node)),
                       changes, changes == 1 ? "change" : "changes",
                       tag.forced == 0 ? "" : "; a quorum was forced " + times(tag.forced));
  }

  void quorum() {
    body_ += "\n";
    line("configuration", text_at(voting_, "tag") + paint_.faint("  " + tag_words()));
    line("votes", fmt::format("here: {} of {}, needed: {}{}", number_at(voting_, "votes_present"),
                              number_at(voting_, "votes"), number_at(voting_, "votes_needed"),
                              flag_at(voting_, "votes_change") ? "; they are being changed" : ""));
    line("dynamic quorum", flag_at(voting_, "dynamic_quorum")
                               ? "on: votes of absent nodes are taken away"
                               : "off: every vote counts, also of absent nodes");
    witness();
    auto lease = number_at(voting_, "lease_ms");
    line("lease", lease > 0 ? fmt::format("this node may act for another {:.1f} s; renewed all the "
                                          "time while a majority answers",
                                          static_cast<double>(lease) / 1000)
                            : paint_.bad("none: this node coordinates nothing"));
    auto without = voting_.find("without_quorum");  // an older csvd says none
    if (without == voting_.end() || without->is_null()) return;
    auto step = text_at(*without, "step"), reason = text_at(*without, "reason");
    if (step != "serving")
      line("without quorum", paint_.warning(step) + (reason.empty() ? "" : ": " + reason));
  }

  void witness() {
    const auto& witness = voting_.at("witness");
    auto kind = text_at(witness, "kind");
    if (kind == "none") return line("witness", "none");
    auto text = kind + " " + text_at(witness, "place") + ": ";
    auto counts = number_at(witness, "counts");
    text += flag_at(witness, "only") ? "it alone decides"
            : counts > 0             ? "its vote counts"
                         : "its vote does not count just now (the nodes' are odd in number)";
    text += number_at(witness, "held_ms") > 0 ? ", this side holds it" : ", not held by this side";
    const auto& answers = witness.at("answers");
    if (answers.is_boolean() && !answers.get<bool>()) text += ", " + paint_.bad("no answer");
    line("witness", text);
  }

  void nodes() {
    bool cut_off = text_at(voting_, "state") == "lost";
    TextTable table{{"NODE", "NAME", "ADDRESS", "STATE", "VERDICT", "VOLUMES", "VOTE"}};
    for (const auto& node : voting_.at("nodes")) {
      bool own = node.at("id") == voting_.at("node");
      bool member = flag_at(node, "member"), reached = flag_at(node, "reached");
      auto state = member    ? paint_.good(own ? "member, this node" : "member")
                   : cut_off ? paint_.warning(own ? "cut off, this node" : "not known")
                   : reached ? paint_.bad("its csvd is away")
                             : paint_.bad("not reached");
      if (flag_at(node, "fenced"))
        state += ", " + paint_.warning(flag_at(node, "off") ? "fenced" : "being fenced");
      if (node.value("prevents", false)) state += ", " + paint_.warning("prevents a quorum");
      if (flag_at(node, "drained")) state += ", " + paint_.warning("drained");
      if (!member && !own && !cut_off)
        away_.emplace_back(text_at(node, "name"),
                           reached ? "its csvd does not take part, its corosync does: look at csvd "
                                     "there"
                                   : "is not reached: neither corosync nor csvd");
      bool counts = number_at(node, "counts") > 0;
      auto why = text_at(node, "why");
      table.row({node.at("id").dump(), text_at(node, "name"), text_at(node, "address"), state,
                 verdict(node), std::to_string(coordinated(number_at(node, "id"))),
                 counts ? "counts" : "none" + (why.empty() ? "" : ": " + why)});
    }
    body_ += "\n" + table.text();
  }

  /// How many volumes the cluster has given to a node.
  std::ptrdiff_t coordinated(std::int64_t node) const {
    const auto& volumes = voting_.at("volumes");
    return std::count_if(volumes.begin(), volumes.end(), [&](const Json& volume) {
      return number_at(volume, "coordinator") == node;
    });
  }

  /// What is thought of another node, and for how long; what is bad about it needs attention.
  std::string verdict(const Json& node) {
    auto found = node.find("verdict");  // an older csvd says none
    if (found == node.end() || found->is_null()) return "-";
    auto finding = text_at(*found, "finding");
    auto text = finding + ", for " + duration_text(number_at(*found, "since_s"));
    if (finding == "healthy") return paint_.good(text);
    // That a node or its csvd is not there is said already.
    if (finding != "unknown" && finding != "service lost")
      away_.emplace_back(text_at(node, "name"), finding + ": " + text_at(*found, "why"));
    return finding == "unknown" ? paint_.warning(text) : paint_.bad(text);
  }

  void volumes() {
    TextTable table{{"VOLUME", "COORDINATOR", "PREFERRED"}};
    for (const auto& volume : voting_.at("volumes")) {
      auto coordinator = number_at(volume, "coordinator"),
           preferred = number_at(volume, "preferred");
      bool served = volume.value("served", true);  // an older csvd says nothing
      if (coordinator != 0 && !served && formed(voting_))
        away_.emplace_back(text_at(volume, "name"),
                           name(coordinator) + " is to coordinate it, and does not serve it yet: " +
                               "csvctl status there says why");
      bool stopped = volume.value("stopped", false), closed = volume.value("closed", !served);
      table.row({text_at(volume, "name"),
                 stopped            ? paint_.warning(closed ? "stopped" : "stopped, being closed")
                 : coordinator == 0 ? paint_.bad("nobody can")
                 : served           ? name(coordinator)
                                    : paint_.warning(name(coordinator) + ", not yet"),
                 preferred == 0 ? "any" : name(preferred)});
    }
    if (!table.empty()) body_ += "\n" + table.text();
  }

  const Json& voting_;
  const Paint& paint_;
  std::map<std::int64_t, std::string> names_;
  std::vector<std::pair<std::string, std::string>> away_;
  std::string body_;
};

}  // namespace

std::string quorum_line(const Json& voting, const Paint& paint) {
  auto state = text_at(voting, "state"), reason = text_at(voting, "reason");
  auto words = state_words(state);
  auto since = ", for " + duration_text(number_at(voting, "since_s"));
  if (!formed(voting))
    return (words == "forming" ? paint.warning(words) : paint.bad(words)) +
           (reason.empty() ? "" : " (" + reason + ")") + since;
  return paint.good(words) +
         fmt::format(" ({} of {} votes)", number_at(voting, "votes_present"),
                     number_at(voting, "votes")) +
         since;
}

std::vector<std::pair<std::string, std::string>> quorum_attention(const Json& voting) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& each : voting.at("attention"))
    out.emplace_back(text_at(each, "subject"), text_at(each, "text"));
  const auto& nodes = voting.at("nodes");
  bool ours = std::any_of(nodes.begin(), nodes.end(),
                          [&](const Json& each) { return each.at("id") == voting.at("node"); });
  if (!nodes.empty() && !ours)
    out.emplace_back(fmt::format("node {}", number_at(voting, "node")),
                     "this node belongs to the cluster no more, so it gets no lease: stop its csvd "
                     "and corosync, or have the cluster take it in again (csvctl cluster config "
                     "import)");
  auto state = text_at(voting, "state");
  bool said =
      std::any_of(out.begin(), out.end(), [](const auto& each) { return each.first == "quorum"; });
  if (said || formed(voting)) return out;
  auto reason = text_at(voting, "reason");
  out.emplace(out.begin(), "quorum", state_words(state) + (reason.empty() ? "" : ": " + reason));
  return out;
}

Expected<std::string> cluster_text(const std::string& json, const Paint& paint) {
  try {
    auto voting = Json::parse(json);
    return Teller{voting, paint}.tell();
  } catch (const Json::exception& wrong) {
    return Error{Errc::corrupt,
                 std::string{"csvd's answer does not describe a cluster: "} + wrong.what()};
  }
}

}  // namespace csv::admin
