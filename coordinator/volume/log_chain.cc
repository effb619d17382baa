#include "coordinator/volume/log_chain.h"

#include <cstring>

#include "coordinator/volume/volume_format.h"
#include "csvfs/base/check.h"

namespace csv::volume {
namespace {

constexpr std::uint32_t kMagic = 0x377f0682;  // the lowest bit says the order of the sums' words
constexpr std::uint32_t kVersion = 3007000;

std::uint32_t word(const std::byte* at, bool big_endian) {
  std::array<std::uint32_t, 4> bytes{};
  for (std::size_t i = 0; i < 4; ++i) bytes[i] = std::to_integer<std::uint32_t>(at[i]);
  if (big_endian) return bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
  return bytes[3] << 24 | bytes[2] << 16 | bytes[1] << 8 | bytes[0];
}
/// The header's and frames' own numbers are always big-endian.
std::uint32_t number(std::span<const std::byte> bytes, std::size_t at) {
  return word(bytes.data() + at, true);
}

LogSum add(LogSum sum, std::span<const std::byte> bytes, bool big_endian) {
  for (std::size_t i = 0; i < bytes.size(); i += 8) {
    sum[0] += word(bytes.data() + i, big_endian) + sum[1];
    sum[1] += word(bytes.data() + i + 4, big_endian) + sum[0];
  }
  return sum;
}

}  // namespace

std::optional<LogHeader> read_log_header(std::span<const std::byte> bytes) {
  CSV_CHECK(bytes.size() == disk::kWalHeaderSize);
  auto magic = number(bytes, 0);
  if ((magic & ~1u) != kMagic || number(bytes, 4) != kVersion ||
      number(bytes, 8) != disk::kPageSize)
    return {};
  LogHeader header;
  header.big_endian = (magic & 1) != 0;
  std::memcpy(header.salts.data(), bytes.data() + 16, header.salts.size());
  header.sum = add({0, 0}, bytes.first(24), header.big_endian);
  if (header.sum != LogSum{number(bytes, 24), number(bytes, 28)}) return {};
  return header;
}

LogFrame read_log_frame(const LogHeader& header, const LogSum& before,
                        std::span<const std::byte> bytes) {
  CSV_CHECK(bytes.size() == disk::kFrameSize);
  LogFrame frame;
  frame.page = number(bytes, 0);
  frame.commit = number(bytes, 4);
  frame.sum = {number(bytes, 16), number(bytes, 20)};
  if (frame.page == 0 ||
      std::memcmp(bytes.data() + 8, header.salts.data(), header.salts.size()) != 0)
    return frame;
  auto sum = add(before, bytes.first(8), header.big_endian);
  sum = add(sum, bytes.subspan(disk::kFrameHeaderSize), header.big_endian);
  frame.valid = sum == frame.sum;
  return frame;
}

}  // namespace csv::volume
