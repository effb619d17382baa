#include "coordinator/cluster/loss_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

constexpr Duration kLook = 1s;
constexpr std::size_t kMostGateways = 8;

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> out;
  for (;;) {
    auto from = line.find_first_not_of(" \t");
    if (from == std::string_view::npos) return out;
    auto to = std::min(line.find_first_of(" \t", from), line.size());
    out.push_back(line.substr(from, to - from));
    line.remove_prefix(to);
  }
}

std::optional<std::uint32_t> number_of(std::string_view text, int base) {
  std::uint32_t out = 0;
  auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), out, base);
  if (error != std::errc{} || stop != text.data() + text.size()) return std::nullopt;
  return out;
}

}  // namespace

std::string_view to_text(QuorumLoss::Step step) {
  switch (step) {
    case QuorumLoss::Step::serving: return "serving";
    case QuorumLoss::Step::pinging: return "pinging";
    case QuorumLoss::Step::restarting: return "restarting";
    case QuorumLoss::Step::rebooting: return "rebooting";
    case QuorumLoss::Step::stopped: return "stopped";
  }
  return "?";
}

std::vector<std::string> default_gateways(std::string_view proc_net_route) {
  std::vector<std::pair<std::uint32_t, std::string>> found;
  while (!proc_net_route.empty() && found.size() < kMostGateways) {
    auto end = std::min(proc_net_route.find('\n'), proc_net_route.size());
    // Iface Destination Gateway Flags RefCnt Use Metric Mask …; addresses in hex, as they lie in
    // memory on this (little-endian) machine.
    auto words = words_of(proc_net_route.substr(0, end));
    proc_net_route.remove_prefix(std::min(end + 1, proc_net_route.size()));
    if (words.size() < 8 || words[1] != "00000000" || words[7] != "00000000") continue;
    auto gateway = number_of(words[2], 16);
    auto metric = number_of(words[6], 10);
    if (!gateway || !metric || *gateway == 0) continue;
    auto g = *gateway;
    found.emplace_back(*metric,
                       fmt::format("{}.{}.{}.{}", g & 255, g >> 8 & 255, g >> 16 & 255, g >> 24));
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> out;
  for (auto& [metric, address] : found)
    if (std::find(out.begin(), out.end(), address) == out.end()) out.push_back(std::move(address));
  return out;
}

LossResponse::LossResponse(Surroundings surroundings, QuorumLoss::Rules rules, bool restarted)
    : with_{std::move(surroundings)},
      rules_{rules},
      loss_{rules, restarted},
      remembered_{restarted} {
  tick();
}

LossResponse::~LossResponse() { with_.loop->cancel(timer_); }

void LossResponse::tick() {
  timer_ = with_.loop->after(kLook, [this] { tick(); });
  look();
}

void LossResponse::not_restarted() {
  loss_.not_restarted();
  remember();
}

void LossResponse::remember() {
  if (loss_.restarted() != remembered_) with_.remember(remembered_ = loss_.restarted());
}

void LossResponse::look() {
  auto before = loss_.step();
  auto action = loss_.next({with_.quorate(), answered_}, with_.loop->now());
  if (loss_.step() != before) told(before);
  remember();
  switch (action) {
    case QuorumLoss::Action::none:
    case QuorumLoss::Action::serve:
    case QuorumLoss::Action::stop: return;
    case QuorumLoss::Action::close_gate_and_ping: return ping();
    case QuorumLoss::Action::restart_service: return with_.restart();
    case QuorumLoss::Action::reboot: return with_.reboot();
  }
}

void LossResponse::told(QuorumLoss::Step before) {
  if (loss_.step() == QuorumLoss::Step::serving)
    log::info("quorum_loss step=serving before={}", to_text(before));
  else
    log::warning("quorum_loss step={} before={} why=\"{}\"", to_text(loss_.step()), to_text(before),
                 loss_.reason());
  auto tell = [this](std::string what) {
    events::report(events::Severity::warning, "quorum", "", std::move(what), loss_.reason());
  };
  // That there is none, and that it is back, other events say.
  switch (loss_.step()) {
    case QuorumLoss::Step::serving:
    case QuorumLoss::Step::pinging: return;
    case QuorumLoss::Step::restarting:
      return tell(before == QuorumLoss::Step::pinging ? "csvd restarts once, to find a quorum"
                                                      : "csvd has been restarted");
    case QuorumLoss::Step::rebooting: return tell("this machine is rebooted");
    case QuorumLoss::Step::stopped: return tell("this node stays stopped until there is a quorum");
  }
}

void LossResponse::ping() {
  auto addresses = with_.isolation_addresses();
  ++round_;
  answered_.reset();
  unanswered_ = addresses.size();
  loss_.has_isolation_addresses(!addresses.empty());
  for (const auto& address : addresses)
    with_.pinger->ping(address, rules_.ping_for,
                       [this, alive = std::weak_ptr{alive_}, round = round_](bool answers) {
                         if (alive.expired() || round != round_) return;
                         if (answers) answered_ = true;
                         if (--unanswered_ == 0 && !answered_) answered_ = false;
                         look();
                       });
}

}  // namespace csv::cluster
