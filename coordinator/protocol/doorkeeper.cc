#include "coordinator/protocol/doorkeeper.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>

namespace csv::protocol {
namespace {

/// Beyond this many, those nothing is held against are forgotten; if all are, the rest share one.
constexpr std::size_t kMostSources = 1024;

}  // namespace

std::string source_of(const std::string& address) {
  auto host = address.substr(0, address.rfind(':'));
  if (host.size() < 2 || host.front() != '[') return host;
  host = host.substr(1, host.size() - 2);
  host = host.substr(0, host.find('%'));
  std::array<unsigned char, 16> bytes{};
  if (::inet_pton(AF_INET6, host.c_str(), bytes.data()) != 1) return host;
  constexpr std::array<unsigned char, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (std::equal(kMapped.begin(), kMapped.end(), bytes.begin())) {
    std::array<char, INET_ADDRSTRLEN> text{};
    ::inet_ntop(AF_INET, bytes.data() + 12, text.data(), text.size());
    return text.data();
  }
  // Neighbours on a link share their /64 by design.
  bool link_local = bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
  if (!link_local) std::fill(bytes.begin() + 8, bytes.end(), std::uint8_t{0});
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET6, bytes.data(), text.data(), text.size());
  return text.data();
}

void Doorkeeper::earn(Source& source) const {
  auto earned = (clock_->now() - source.counted_at) / options_.earned_in;
  if (earned <= 0) return;
  source.counted_at += earned * options_.earned_in;
  source.budget = static_cast<int>(
      std::min<std::int64_t>(options_.budget, std::int64_t{source.budget} + earned));
}

Doorkeeper::Source& Doorkeeper::source(const std::string& name) {
  auto found = sources_.find(name);
  if (found == sources_.end()) {
    if (sources_.size() >= kMostSources) {
      std::erase_if(sources_, [this](auto& each) {
        auto one = each.second;
        earn(one);
        return one.places == 0 && one.budget == options_.budget &&
               (!one.said_at || clock_->now() - *one.said_at >= options_.quiet);
      });
      if (sources_.size() >= kMostSources && !name.empty()) return source({});
    }
    found = sources_.emplace(name, Source{}).first;
    found->second.budget = options_.budget;
    found->second.counted_at = clock_->now();
  }
  earn(found->second);
  return found->second;
}

std::optional<std::uint64_t> Doorkeeper::oldest_of(const std::string& name) const {
  for (const auto& [id, each] : places_)
    if (each == name) return id;
  return {};
}

Doorkeeper::Decision Doorkeeper::arrived(std::uint64_t id, const std::string& address) {
  auto name = source_of(address);
  auto* from = &source(name);
  // It may be counted with others.
  if (auto own = sources_.find(name); own == sources_.end() || &own->second != from) name.clear();
  if (from->budget <= 0) return {};
  Decision out{.admitted = true, .instead = {}};
  if (from->places >= options_.most_per_address) {
    out.instead = oldest_of(name);
  } else if (places_.size() >= options_.most) {
    auto crowded = std::max_element(
        sources_.begin(), sources_.end(),
        [](const auto& a, const auto& b) { return a.second.places < b.second.places; });
    out.instead = oldest_of(crowded->first);
  }
  if (out.instead) left(*out.instead, false);
  --from->budget;
  ++from->places;
  places_.emplace(id, std::move(name));
  return out;
}

void Doorkeeper::left(std::uint64_t id, bool proven) {
  auto found = places_.find(id);
  if (found == places_.end()) return;
  auto& from = sources_.at(found->second);
  --from.places;
  if (proven) from.budget = std::min(options_.budget, from.budget + 1);
  places_.erase(found);
}

std::optional<std::uint64_t> Doorkeeper::may_say(const std::string& address) {
  auto now = clock_->now();
  if (now - lines_since_ >= options_.quiet) {
    lines_since_ = now;
    lines_ = 0;
  }
  auto& from = source(source_of(address));
  ++from.unsaid;
  if (from.said_at && now - *from.said_at < options_.quiet) return {};
  if (lines_ >= options_.lines) return {};
  ++lines_;
  from.said_at = now;
  return std::exchange(from.unsaid, 0);
}

}  // namespace csv::protocol
