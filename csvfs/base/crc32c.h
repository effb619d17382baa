#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace csv {

/// CRC-32C (Castagnoli; RFC 3720 appendix B.4) of `bytes`, continuing from `seed` (the value an
/// earlier call returned), so that crc32c(b, crc32c(a)) is the checksum of a followed by b.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0) noexcept;

}  // namespace csv
