#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace csv::volume {

/// N bits. As bytes: bit i is bit i % 8 of byte i / 8.
template <std::size_t N>
class Bitmap {
  static_assert(N % 64 == 0);

 public:
  [[nodiscard]] bool get(std::size_t at) const { return (words_[at / 64] >> (at % 64) & 1) != 0; }

  void set(std::size_t first, std::size_t count, bool to) {
    for (auto at = first, end = first + count; at < end;) {
      auto shift = at % 64;
      auto here = std::min(end - at, 64 - shift);
      auto mask = (here == 64 ? ~0ull : (1ull << here) - 1) << shift;
      if (to)
        words_[at / 64] |= mask;
      else
        words_[at / 64] &= ~mask;
      at += here;
    }
  }

  /// How many of [first, first + count) are set.
  [[nodiscard]] std::size_t count(std::size_t first, std::size_t count) const {
    std::size_t found = 0;
    for (auto at = first, end = first + count; at < end;) {
      auto shift = at % 64;
      auto here = std::min(end - at, 64 - shift);
      auto word = words_[at / 64] >> shift;
      if (here < 64) word &= (1ull << here) - 1;
      found += static_cast<std::size_t>(std::popcount(word));
      at += here;
    }
    return found;
  }

  /// The first bit of [from, end) that is `value`; `end` if there is none.
  [[nodiscard]] std::size_t next(bool value, std::size_t from, std::size_t end) const {
    while (from < end) {
      auto word = (value ? words_[from / 64] : ~words_[from / 64]) >> (from % 64);
      if (word != 0) return std::min(end, from + static_cast<std::size_t>(std::countr_zero(word)));
      from += 64 - from % 64;
    }
    return end;
  }

  /// Bits [first, first + count) moved to the front, the rest clear.
  [[nodiscard]] Bitmap slice(std::size_t first, std::size_t count) const {
    Bitmap result;
    auto words = first / 64, shift = first % 64;
    for (std::size_t i = 0; i * 64 < count; ++i) {
      auto low = words_[i + words] >> shift;
      auto high =
          shift != 0 && i + words + 1 < words_.size() ? words_[i + words + 1] << (64 - shift) : 0;
      result.words_[i] = low | high;
    }
    result.set(count, N - count, false);
    return result;
  }
  /// Sets what `other`'s first `count` bits say at [at, at + count).
  void paste(const Bitmap& other, std::size_t at, std::size_t count) {
    for (std::size_t i = 0; i < count;) {
      auto value = other.get(i);
      auto end = other.next(!value, i, count);
      set(at + i, end - i, value);
      i = end;
    }
  }

  /// The first `count` bits as bytes.
  [[nodiscard]] std::string bytes(std::size_t count) const {
    std::string out((count + 7) / 8, '\0');
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = static_cast<char>(words_[i / 8] >> (i % 8 * 8) & 0xff);
    return out;
  }
  static Bitmap from_bytes(std::string_view bytes) {
    Bitmap result;
    for (std::size_t i = 0; i < bytes.size() && i < N / 8; ++i)
      result.words_[i / 8] |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (i % 8 * 8);
    return result;
  }
  bool operator==(const Bitmap&) const = default;

 private:
  std::array<std::uint64_t, N / 64> words_{};
};

}  // namespace csv::volume
