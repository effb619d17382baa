#include "coordinator/protocol/frame.h"

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstring>

#include "coordinator/protocol/limits.h"
#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"

namespace csv::protocol {
namespace {

constexpr std::array<char, 4> kMagic{'C', 'S', 'V', 'F'};

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span{text});
}

std::uint32_t crc_of(const FrameHeader& header) {
  return crc32c(std::as_bytes(std::span{&header, 1}).first(offsetof(FrameHeader, crc)));
}

}  // namespace

std::string encode_head(const wire::Frame& frame, std::size_t bulk_length) {
  auto head_length = frame.ByteSizeLong();
  CSV_CHECK(head_length > 0 && head_length <= kMaxHead && bulk_length <= kMaxBulk);
  std::string out(kHeaderSize + head_length, '\0');
  // ByteSizeLong() has left the sizes of all parts in the message.
  auto* head = reinterpret_cast<std::uint8_t*>(out.data()) + kHeaderSize;
  auto* end = frame.SerializeWithCachedSizesToArray(head);
  CSV_CHECK(end == head + head_length);
  FrameHeader header{.magic = kMagic,
                     .version = kFrameVersion,
                     .reserved = {},
                     .head_length = static_cast<std::uint32_t>(head_length),
                     .bulk_length = static_cast<std::uint32_t>(bulk_length),
                     .head_crc = crc32c(as_bytes(out).subspan(kHeaderSize)),
                     .crc = {}};
  header.crc = crc_of(header);
  std::memcpy(out.data(), &header, sizeof header);
  return out;
}

Expected<FrameHeader> decode_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kHeaderSize) return Error{Errc::corrupt, "a message ends inside its header"};
  FrameHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != kMagic)
    return Error{Errc::refused, "the peer does not speak the protocol of csvfs"};
  if (header.crc != crc_of(header))
    return Error{Errc::corrupt, "a message's header failed its checksum"};
  if (header.version == 0 || header.version > kFrameVersion)
    return Error{Errc::refused, "the peer speaks version " + std::to_string(header.version) +
                                    " of the protocol, this program up to version " +
                                    std::to_string(kFrameVersion)};
  if (header.reserved != 0)
    return Error{Errc::refused, "reserved bytes of a message's header are in use"};
  if (header.head_length == 0 || header.head_length > kMaxHead)
    return Error{Errc::refused, "a message's head of " + std::to_string(header.head_length) +
                                    " bytes is outside 1.." + std::to_string(kMaxHead)};
  if (header.bulk_length > kMaxBulk)
    return Error{Errc::refused, "bulk data of " + std::to_string(header.bulk_length) +
                                    " bytes is over " + std::to_string(kMaxBulk)};
  return header;
}

void silence_parser() {
  static const bool silent = (google::protobuf::SetLogHandler(nullptr), true);
  (void)silent;
}

Expected<wire::Frame> decode_head(const FrameHeader& header, std::span<const std::byte> head) {
  if (head.size() != header.head_length)
    return Error{Errc::corrupt, "a message's head is not as long as its header says"};
  if (crc32c(head) != header.head_crc)
    return Error{Errc::corrupt, "a message's head failed its checksum"};
  silence_parser();
  wire::Frame frame;
  if (!frame.ParseFromArray(head.data(), static_cast<int>(head.size())))
    return Error{Errc::refused, "a message does not follow the schema"};
  CSV_TRY(check_limits(frame, header.bulk_length));
  return frame;
}

std::string encode_message(const Message& message) {
  auto out = encode_head(message.frame, message.bulk.size());
  out.append(reinterpret_cast<const char*>(message.bulk.data()), message.bulk.size());
  return out;
}

Expected<Message> decode_message(std::span<const std::byte> bytes) {
  auto header = CSV_TRY(decode_header(bytes));
  auto rest = bytes.subspan(kHeaderSize);
  if (rest.size() != std::size_t{header.head_length} + header.bulk_length)
    return Error{Errc::corrupt, "a message is not as long as its header says"};
  auto frame = CSV_TRY(decode_head(header, rest.first(header.head_length)));
  return Message{std::move(frame), Buffer::copy_of(rest.subspan(header.head_length))};
}

void FrameReader::make_room(std::size_t bytes) {
  if (ahead_.size() - begin_ >= bytes) return;
  std::memmove(ahead_.data(), ahead_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  // Heads are small; a huge one (a long Hello) grows the buffer once.
  if (ahead_.size() < bytes) ahead_.resize(bytes);
}

std::array<std::span<std::byte>, 2> FrameReader::space() {
  std::span<std::byte> bulk;
  if (bulk_) bulk = bulk_->message.bulk.span().subspan(bulk_->have);
  if (begin_ == end_) begin_ = end_ = 0;
  if (!bulk_) make_room(header_ ? std::size_t{header_->head_length} : kHeaderSize);
  return {bulk, std::span{ahead_}.subspan(end_)};
}

void FrameReader::filled(std::size_t bytes) {
  if (bulk_) {
    auto taken = std::min(bytes, bulk_->message.bulk.size() - bulk_->have);
    bulk_->have += taken;
    bytes -= taken;
  }
  CSV_CHECK(bytes <= ahead_.size() - end_);
  end_ += bytes;
}

Expected<std::optional<Message>> FrameReader::next() {
  auto came = [this] { return std::span<const std::byte>{ahead_}.subspan(begin_, end_ - begin_); };
  if (!bulk_) {
    if (!header_) {
      if (came().size() < kHeaderSize) return std::optional<Message>{};
      header_ = CSV_TRY(decode_header(came()));
      begin_ += kHeaderSize;
    }
    if (came().size() < header_->head_length) return std::optional<Message>{};
    auto frame = CSV_TRY(decode_head(*header_, came().first(header_->head_length)));
    begin_ += header_->head_length;
    bulk_.emplace(Incoming{{std::move(frame), Buffer{header_->bulk_length}}, 0});
    header_.reset();
    auto taken = std::min(came().size(), bulk_->message.bulk.size());
    if (taken > 0) std::memcpy(bulk_->message.bulk.data(), came().data(), taken);
    bulk_->have = taken;
    begin_ += taken;
  }
  if (bulk_->have < bulk_->message.bulk.size()) return std::optional<Message>{};
  std::optional<Message> whole{std::move(bulk_->message)};
  bulk_.reset();
  return whole;
}

}  // namespace csv::protocol
