// `csvctl status` for people: what needs attention first, then what there is.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "coordinator/admin/cluster_text.h"
#include "coordinator/admin/paint.h"
#include "coordinator/admin/status.h"
#include "coordinator/admin/text_table.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kBlock = 4096;
constexpr std::uint64_t kLittleSpace = 20;  // free blocks are less than one in so many

std::string text_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.is_null() ? "" : value.dump();
}
std::string since_text(const Json& seconds) {
  return "for " + duration_text(seconds.get<std::int64_t>());
}
std::uint64_t number(const Json& of, const char* field) {
  return of.at(field).get<std::uint64_t>();
}

/// One status, being told.
class Teller {
 public:
  Teller(const Json& status, const Paint& paint) : status_{status}, paint_{paint} {}

  std::string tell() {
    nodes();
    votes_ = status_.contains("voting") && !status_.at("voting").is_null();
    if (votes_) quorum(status_.at("voting"));
    if (votes_)
      for (const auto& each : status_.at("voting").value("volumes", Json::array()))
        if (each.value("stopped", false)) stopped_.insert(text_of(each.at("name")));
    for (const auto& each : status_.at("volumes")) volume(each);
    auto here = text_of(status_.at("node").at("name"));
    auto out = paint_.bold("Cluster " + text_of(status_.at("cluster"))) + " as " + here +
               " sees it, whose csvd is up " + since_text(status_.at("up_s")) + "\n";
    if (attention_.empty()) {
      out += paint_.good("All is well.") + "\n";
    } else {
      out += paint_.bad(fmt::format("Needs attention ({}):", attention_.size())) + "\n";
      for (const auto& each : attention_) out += "  " + paint_.warning("!") + " " + each + "\n";
    }
    return out + body_;
  }

 private:
  void attend(const std::string& subject, const std::string& what, const Json& seconds,
              const std::string& whose) {
    attention_.push_back(paint_.bold(subject) + ": " + what +
                         (seconds.is_null() ? "" : ", " + since_text(seconds)) +
                         paint_.faint(" (says " + whose + ")"));
  }

  void line(const std::string& what, const std::string& value) {
    body_ += "  " + paint_.faint(fmt::format("{:<13}", what)) + value + "\n";
  }

  std::string node_name(const Json& id) const {
    auto found = names_.find(id.get<int>());
    return found == names_.end() ? "node " + id.dump() : found->second;
  }

  void nodes() {
    const auto& own = status_.at("node");
    csvd_ = "csvd of " + text_of(own.at("name"));
    names_[own.at("id").get<int>()] = text_of(own.at("name"));
    TextTable table{{"NODE", "NAME", "ADDRESS", "STATE"}};
    table.row({text_of(own.at("id")), text_of(own.at("name")), text_of(own.at("address")),
               paint_.good("this node")});
    for (const auto& peer : status_.at("peers")) {
      auto name = text_of(peer.at("name"));
      names_[peer.at("id").get<int>()] = name;
      const auto& silent = peer.at("silent_s");
      auto state = paint_.good("present");
      if (!peer.at("present").get<bool>()) {
        auto words = silent.is_null() ? std::string{"never heard"} : "silent " + since_text(silent);
        state = paint_.bad(words);
        auto trouble = peer.value("trouble", "");
        attend(name,
               (silent.is_null() ? "has not been heard since this csvd began" : "is silent") +
                   (trouble.empty() ? "" : ": " + trouble),
               silent, csvd_);
      }
      table.row({text_of(peer.at("id")), name, text_of(peer.at("address")), state});
    }
    body_ += "\n" + table.text();
    if (status_.contains("tls")) certificate(status_.at("tls"));
    if (status_.contains("watchdog") && !status_.at("watchdog").is_null())
      watchdog(status_.at("watchdog"));
  }

  void quorum(const Json& voting) {
    auto name = text_of(voting.at("name"));
    body_ += (name.empty() ? "no cluster" : "cluster " + name) + ": " +
             quorum_line(voting, paint_) + "\n";
    bool stopped = text_of(voting.at("state")) != "formed";
    auto others = std::move(attention_);
    attention_.clear();
    for (const auto& [subject, text] : quorum_attention(voting))
      attend(subject, text, stopped && subject == "quorum" ? voting.at("since_s") : Json{}, csvd_);
    attention_.insert(attention_.end(), others.begin(), others.end());
  }

  void watchdog(const Json& state) {
    auto seconds = number(state, "timeout_s");
    body_ += fmt::format("watchdog {}: resets this machine after {} s, petted {} s ago\n",
                         text_of(state.at("device")), seconds, number(state, "petted_ago_s"));
    auto why = text_of(state.at("withheld"));
    if (!why.empty())
      attend("watchdog",
             fmt::format("not petted, resets the machine within {} s: {}", seconds, why), Json{},
             text_of(status_.at("node").at("name")));
  }

  void certificate(const Json& tls) {
    if (text_of(tls.at("mode")) == "off") {
      body_ += "TLS is " + paint_.bad("off") + "\n";
      return attend("TLS",
                    "is off: whoever reaches this node is believed, and nothing is encrypted "
                    "([tls] mode)",
                    Json{}, "the configuration");
    }
    body_ += "certificate valid until " + text_of(tls.at("valid_until")) + "\n";
    constexpr std::int64_t kSoon = 30ll * 24 * 3600;
    auto trouble = text_of(tls.at("trouble"));
    auto left = tls.at("expires_in_s").get<std::int64_t>();
    if (!trouble.empty()) attend("TLS", trouble, Json{}, csvd_);
    if (left >= 0 && left < kSoon)
      attend("TLS",
             "this node's certificate expires in " + duration_text(left) +
                 "; after that it can connect to nobody. Renew it: csvctl cluster ca issue",
             Json{}, csvd_);
  }

  std::string mode_text(const std::string& mode) const {
    if (mode == "direct") return paint_.good(mode);
    return mode.find("redirected") != std::string::npos ? paint_.warning(mode) : paint_.bad(mode);
  }

  void volume(const Json& volume) {
    auto name = text_of(volume.at("name"));
    body_ += "\n" + paint_.bold("VOLUME " + name) + "  " + paint_.faint(text_of(volume.at("lun"))) +
             "\n";
    coordinator(name, volume);
    mount(name, volume);
    const auto& service = volume.at("service");
    if (!service.is_null()) served(name, service);
  }

  void coordinator(const std::string& name, const Json& volume) {
    const auto& here = volume.at("here");
    auto state = text_of(here.at("state")), reason = text_of(here.at("reason"));
    bool known = volume.at("coordinator_node").get<int>() != 0;
    bool serves = state == "serving";
    if (known) {
      line("coordinator",
           node_name(volume.at("coordinator_node")) + (serves ? " (this node)" : "") + ", epoch " +
               text_of(volume.at("epoch")) + (serves ? ", " + since_text(here.at("since_s")) : ""));
    } else if (stopped_.contains(name)) {
      line("coordinator", paint_.warning("none: it is stopped by command"));
    } else {
      line("coordinator", paint_.bad("nobody is known to coordinate it"));
      attend(name, "nobody coordinates it" + (reason.empty() ? "" : "; this node: " + reason),
             here.at("since_s"), csvd_);
    }
    bool tells_nothing = serves || (state == "idle" && known) || (state == "waiting" && known);
    if (!tells_nothing)
      line("this node",
           state + (reason.empty() ? "" : ": " + reason) + ", " + since_text(here.at("since_s")));
    auto lease = volume.at("lease_ms").get<std::int64_t>();
    if (lease > 0 || !known) return;
    if (votes_) {
      line("lease", paint_.bad("none: this node coordinates nothing"));
      return attend(name,
                    "this node has no lease, so it coordinates nothing, and its mount goes on only "
                    "while the coordinator answers it",
                    Json{}, csvd_);
    }
    line("lease", paint_.bad("closed: the coordinator does not answer this node's beats"));
    attend(name, "the coordinator does not answer this node's beats, so its I/O waits", Json{},
           csvd_);
  }

  void mount(const std::string& name, const Json& volume) {
    const auto& mount = volume.at("mount");
    if (mount.is_null()) {
      line("mount", "none on this node");
      return;
    }
    auto mode = text_of(mount.at("mode")), reason = text_of(mount.at("reason"));
    auto pid = text_of(mount.at("pid"));
    line("mount", mode_text(mode) + (reason.empty() ? "" : ": " + reason) + ", " +
                      since_text(mount.at("since_s")) +
                      paint_.faint(" (csvfs, process " + pid + ")"));
    if (!mount.at("alive").get<bool>())
      attend(name, "csvfs was killed or crashed; mount it again", Json{}, csvd_);
    else if (mode != "direct" && !stopped_.contains(name))
      attend(name, "the mount here is " + mode + (reason.empty() ? "" : ": " + reason),
             mount.at("since_s"), "csvfs, process " + pid);
    const auto& c = mount.at("counters");
    auto direct = number(c, "direct_read_bytes") + number(c, "direct_write_bytes");
    auto redirected = number(c, "redirected_read_bytes") + number(c, "redirected_write_bytes");
    auto all = direct + redirected;
    if (all == 0) return line("I/O here", "none yet");
    line("I/O here",
         fmt::format(
             "{} read, {} written; {} % of it through the coordinator",
             bytes_text(number(c, "direct_read_bytes") + number(c, "redirected_read_bytes")),
             bytes_text(number(c, "direct_write_bytes") + number(c, "redirected_write_bytes")),
             (redirected * 100 + all / 2) / all));
  }

  void served(const std::string& name, const Json& service) {
    auto free = number(service, "free_blocks"), total = number(service, "total_blocks");
    auto space = fmt::format("{} of {} free, {} inodes", bytes_text(free * kBlock),
                             bytes_text(total * kBlock), text_of(service.at("inodes")));
    if (free < total / kLittleSpace) {
      line("space", paint_.bad(space));
      attend(name, "only " + bytes_text(free * kBlock) + " are free", Json{}, csvd_);
    } else {
      line("space", space);
    }
    line("since then",
         fmt::format("{} changes in {} transactions, {} recalls, {} fences",
                     text_of(service.at("changes")), text_of(service.at("transactions")),
                     text_of(service.at("recalls")), text_of(service.at("fences"))));
    TextTable table{{"MOUNTED BY", "STATE", "OPEN FILES", "LAYOUTS", "WATCHED", "REQUESTS",
                     "REDIRECTED READ", "REDIRECTED WRITTEN"}};
    for (const auto& one : service.at("sessions")) {
      bool connected = one.at("connected").get<bool>(), admitted = one.at("admitted").get<bool>();
      auto node = node_name(one.at("node"));
      table.row({node,
                 !connected  ? paint_.bad("away")
                 : !admitted ? paint_.warning("not admitted")
                             : paint_.good("connected"),
                 text_of(one.at("open_files")), text_of(one.at("layouts")),
                 text_of(one.at("watched")), text_of(one.at("requests")),
                 bytes_text(number(one, "redirected_read_bytes")),
                 bytes_text(number(one, "redirected_write_bytes"))});
      if (!connected) attend(name, "the mount of " + node + " is away", Json{}, csvd_);
    }
    if (!table.empty()) body_ += table.text(2);
  }

  const Json& status_;
  const Paint& paint_;
  std::string csvd_;
  bool votes_ = false;
  std::set<std::string> stopped_;  ///< By command: that is said once, with the cluster.
  std::map<int, std::string> names_;
  std::vector<std::string> attention_;
  std::string body_;
};

}  // namespace

Expected<std::string> status_text(const std::string& json, const Paint& paint) {
  try {
    auto status = Json::parse(json);
    return Teller{status, paint}.tell();
  } catch (const Json::exception& wrong) {
    return Error{Errc::corrupt, std::string{"csvd's answer is not a status: "} + wrong.what()};
  }
}

}  // namespace csv::admin
