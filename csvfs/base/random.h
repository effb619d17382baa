#pragma once
#include <cstdint>

namespace csv {

/// The door to chance. Nothing that decides draws random numbers by itself: one of these comes in,
/// so that a simulation replays from its seed. Own arithmetic, because the standard distributions
/// are not specified bit for bit. Not thread-safe.
class Random {
  __extension__ using Wide = unsigned __int128;

 public:
  explicit Random(std::uint64_t seed) noexcept : state_{seed} {}
  /// Seeded by the kernel (getrandom).
  static Random from_system();

  /// SplitMix64 (Steele, Lea, Flood 2014): every seed gives a full-period stream.
  std::uint64_t next() noexcept {
    state_ += 0x9e3779b97f4a7c15ull;
    auto z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  /// Uniform in [0, bound); bound > 0. The bias of the multiply is below 2^-32 for bounds we use.
  std::uint64_t below(std::uint64_t bound) noexcept {
    return static_cast<std::uint64_t>((static_cast<Wide>(next()) * bound) >> 64);
  }
  /// True `numerator` times in `denominator`.
  bool chance(std::uint64_t numerator, std::uint64_t denominator) noexcept {
    return below(denominator) < numerator;
  }

 private:
  std::uint64_t state_;
};

}  // namespace csv
