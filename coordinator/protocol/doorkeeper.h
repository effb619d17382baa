#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "csvfs/base/loop.h"

namespace csv::protocol {

/// How much a listener does for those who have not proven yet who they are: bounds, and who has to
/// go where they are exceeded. It only counts; the listener acts. One thread.
///
/// An address that opens many connections and proves nothing pays for it alone: it has a budget of
/// handshakes (they cost us a signature each), from which those that succeed take nothing, and a
/// number of places, where the newest takes the place of its own oldest. Only many addresses
/// together exhaust the places of all, and then the oldest of the most crowded one goes: a
/// handshake takes milliseconds, so the honest ones are never the oldest for long.
class Doorkeeper {
 public:
  struct Options {
    std::size_t most = 256;             ///< Under way at once,
    std::size_t most_per_address = 32;  ///< and from one address.
    int budget = 64;                    ///< Handshakes an address may fail in a row,
    Duration earned_in = 62500us;       ///< and after how long it has one more.
    Duration quiet = 10s;               ///< Between two lines of the log about one address.
    int lines = 20;                     ///< In that time, about all addresses together.
  };
  explicit Doorkeeper(const Clock& clock) : Doorkeeper{clock, Options{}} {}
  Doorkeeper(const Clock& clock, Options options) : clock_{&clock}, options_{options} {}

  struct Decision {
    bool admitted = false;                 ///< Else its address's budget is spent.
    std::optional<std::uint64_t> instead;  ///< Who must go for it, and has been counted as gone.
  };
  /// Somebody from `address` ("192.0.2.1:40000") has connected; `id` is new.
  Decision arrived(std::uint64_t id, const std::string& address);
  /// The handshake of `id` is over. Those that must go are not reported.
  void left(std::uint64_t id, bool proven);
  /// How often this has been asked for the address since it was last answered, this time included;
  /// nothing: be silent now.
  std::optional<std::uint64_t> may_say(const std::string& address);
  [[nodiscard]] std::size_t under_way() const { return places_.size(); }
  [[nodiscard]] std::size_t known() const { return sources_.size(); }

 private:
  struct Source {
    std::size_t places = 0;
    int budget = 0;
    TimePoint counted_at{};  ///< Up to when `budget` is true.
    std::optional<TimePoint> said_at;
    std::uint64_t unsaid = 0;
  };
  Source& source(const std::string& name);
  void earn(Source& source) const;
  [[nodiscard]] std::optional<std::uint64_t> oldest_of(const std::string& name) const;

  const Clock* clock_;
  Options options_;
  std::map<std::uint64_t, std::string> places_;  ///< Ids grow: the first is the oldest.
  std::map<std::string, Source> sources_;
  TimePoint lines_since_{};
  int lines_ = 0;
};

/// What an address counts as: itself without the port; of IPv6 the /64, which one machine may have
/// to itself.
std::string source_of(const std::string& address);

}  // namespace csv::protocol
