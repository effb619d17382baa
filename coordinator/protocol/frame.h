#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/endian.h"
#include "csvfs/base/error.h"

namespace csv::protocol {

inline constexpr std::size_t kMaxHead = 1u << 20;
/// A mebibyte of content, and a block more for reads that were widened to whole blocks.
inline constexpr std::size_t kMaxBulk = (1u << 20) + 4096;

/// A message on a stream of bytes: this header, then the head (a wire::Frame as Protocol Buffers
/// write it), then the bulk data, without gaps.
///
///   offset size
///        0    4  magic        "CSVF"; a stranger is recognised by the first bytes it sends
///        4    2  version      1; a receiver refuses versions above its own
///        6    2  reserved     written as zero, must read as zero
///        8    4  head_length  bytes of the head, 1 to kMaxHead
///       12    4  bulk_length  bytes of bulk data, 0 to kMaxBulk
///       16    4  head_crc     CRC-32C of the head: a damaged request must not be executed as
///       another 20    4  crc          CRC-32C of bytes [0, 20): a wrong length would lose the
///       frame boundary
///
/// Bulk data carries no checksum here, as it carries none on its way to the LUN.
struct FrameHeader {
  std::array<char, 4> magic{};
  Le16 version;
  Le16 reserved;
  Le32 head_length;
  Le32 bulk_length;
  Le32 head_crc;
  Le32 crc;
};
static_assert(sizeof(FrameHeader) == 24 && alignof(FrameHeader) == 1);
static_assert(offsetof(FrameHeader, version) == 4 && offsetof(FrameHeader, head_length) == 8 &&
              offsetof(FrameHeader, bulk_length) == 12 && offsetof(FrameHeader, head_crc) == 16 &&
              offsetof(FrameHeader, crc) == 20);
inline constexpr std::size_t kHeaderSize = sizeof(FrameHeader);
inline constexpr std::uint16_t kFrameVersion = 1;

/// Header and head of a message whose bulk data has `bulk_length` bytes: what goes before the bulk
/// data. A message of ours that exceeds a limit is a bug and aborts.
std::string encode_head(const wire::Frame& frame, std::size_t bulk_length);

/// The library would write a line of its own to stderr for what a peer sent; the error is enough.
/// From now on, for the whole process. Any thread.
void silence_parser();

/// The first kHeaderSize bytes of `bytes`. Errc::refused: not ours, a newer version, or a length
/// over its limit; Errc::corrupt: damaged.
Expected<FrameHeader> decode_header(std::span<const std::byte> bytes);
/// The head that `header` announced, with all limits (limits.h) checked. `head` is exactly it.
Expected<wire::Frame> decode_head(const FrameHeader& header, std::span<const std::byte> head);

/// A whole message in one piece, for networks in memory, and back.
std::string encode_message(const Message& message);
Expected<Message> decode_message(std::span<const std::byte> bytes);

/// Turns a stream of bytes into messages. It touches no socket: whoever reads puts the bytes into
/// space() and says how many came. Bulk data goes straight to the Buffer it stays in, except for
/// its beginning where that came along with the head. Memory is allocated only for lengths whose
/// header was intact and within the limits. One thread.
class FrameReader {
 public:
  explicit FrameReader(std::size_t read_ahead = 64 * 1024) : ahead_(read_ahead) {}

  /// Where the next bytes of the stream go, in this order; never both empty. Valid until next().
  std::array<std::span<std::byte>, 2> space();
  void filled(std::size_t bytes);
  /// The next complete message, nothing while one is incomplete, or why the stream cannot be
  /// understood; nothing after such an error can be either.
  Expected<std::optional<Message>> next();
  /// True between two messages: the stream may end here.
  [[nodiscard]] bool at_boundary() const { return !header_ && !bulk_ && begin_ == end_; }

 private:
  struct Incoming {
    Message message;
    std::size_t have = 0;
  };
  void make_room(std::size_t bytes);

  std::vector<std::byte> ahead_;  // [begin_, end_) came and is not used yet
  std::size_t begin_ = 0, end_ = 0;
  std::optional<FrameHeader> header_;
  std::optional<Incoming> bulk_;
};

}  // namespace csv::protocol
