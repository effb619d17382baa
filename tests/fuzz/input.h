#pragma once
#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace csv::fuzz {

/// An input taken apart from its front. What is not there any more reads as zero.
class Input {
 public:
  explicit Input(std::span<const std::byte> bytes) : rest_{bytes} {}
  [[nodiscard]] bool empty() const { return rest_.empty(); }
  template <std::unsigned_integral T = std::uint8_t>
  T take() {
    T value = 0;
    auto there = std::min(sizeof value, rest_.size());
    if (there > 0) std::memcpy(&value, rest_.data(), there);
    rest_ = rest_.subspan(there);
    return value;
  }
  std::span<const std::byte> take(std::size_t length) {
    auto part = rest_.first(std::min(length, rest_.size()));
    rest_ = rest_.subspan(part.size());
    return part;
  }
  std::span<const std::byte> rest() { return take(rest_.size()); }

 private:
  std::span<const std::byte> rest_;
};

inline std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Changes to something valid, so that an input is small and most of what it stands for is whole:
/// each an offset (4 bytes, taken modulo the size), a length (1 byte) and that many bytes.
inline void patch(Input& input, std::span<std::byte> bytes) {
  while (!input.empty() && !bytes.empty()) {
    auto at = input.take<std::uint32_t>() % bytes.size();
    auto content = input.take(input.take());
    auto length = std::min<std::size_t>(content.size(), bytes.size() - at);
    if (length > 0) std::memcpy(bytes.data() + at, content.data(), length);
  }
}

/// The seeds' side of it.
inline std::string number(std::unsigned_integral auto value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
inline std::string patch_of(std::uint32_t at, std::string_view content) {
  return number(at) + number(static_cast<std::uint8_t>(content.size())) + std::string{content};
}

}  // namespace csv::fuzz
