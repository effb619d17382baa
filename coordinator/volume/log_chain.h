#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace csv::volume {

/// SQLite's log as SQLite reads it: a header, then frames, each with a sum over all that stands
/// before it in this round of the log.

using LogSum = std::array<std::uint32_t, 2>;
using LogSalts = std::array<std::byte, 8>;  ///< Tell the rounds of a log apart; random.

struct LogHeader {
  bool big_endian = false;  ///< The order in which words are summed up.
  LogSalts salts{};
  LogSum sum{};
};
/// Nothing if these 32 bytes are no header of a log with our pages, or a damaged one.
std::optional<LogHeader> read_log_header(std::span<const std::byte> bytes);

struct LogFrame {
  std::uint32_t page = 0;
  std::uint32_t commit = 0;  ///< Pages of the database, if a transaction ends here; else 0.
  bool valid = false;        ///< Of this round, and its sum goes on from the one before it.
  LogSum sum{};              ///< As it stands in the frame: what the next one goes on from.
};
/// The frame in these kFrameSize bytes, which follows the one with the sum `before`.
LogFrame read_log_frame(const LogHeader& header, const LogSum& before,
                        std::span<const std::byte> bytes);

}  // namespace csv::volume
