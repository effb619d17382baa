#include "iscsi/scsi_commands.h"

#include <algorithm>
#include <concepts>

#include "csvfs/base/log.h"

namespace csv::iscsi {
namespace {

/// SCSI is big-endian throughout.
template <std::unsigned_integral T>
void put(std::uint8_t* to, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    to[i] = static_cast<std::uint8_t>(value >> (8 * (sizeof(T) - 1 - i)));
}
template <std::unsigned_integral T>
void put(std::byte* to, T value) {
  put(reinterpret_cast<std::uint8_t*>(to), value);
}

/// Fields of an answer that may have been cut anywhere: what is not there reads as zero.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_{bytes} {}
  [[nodiscard]] bool has(std::size_t end) const { return end <= bytes_.size(); }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }
  template <std::unsigned_integral T = std::uint8_t>
  [[nodiscard]] T at(std::size_t offset) const {
    if (offset > bytes_.size() || bytes_.size() - offset < sizeof(T)) return 0;
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
      value = static_cast<T>((std::uint64_t{value} << 8) |
                             std::to_integer<std::uint8_t>(bytes_[offset + i]));
    return value;
  }
  /// What there is of [offset, offset + length).
  [[nodiscard]] std::span<const std::byte> part(std::size_t offset, std::size_t length) const {
    offset = std::min(offset, bytes_.size());
    return bytes_.subspan(offset, std::min(length, bytes_.size() - offset));
  }
  /// An ASCII field without the spaces around it; anything unprintable becomes '?'.
  [[nodiscard]] std::string text(std::size_t offset, std::size_t length) const {
    std::string found;
    for (auto each : part(offset, length)) {
      auto c = std::to_integer<char>(each);
      if (c == 0) break;
      found += c >= 0x20 && c < 0x7f ? c : '?';
    }
    auto first = found.find_first_not_of(' ');
    if (first == std::string::npos) return {};
    return found.substr(first, found.find_last_not_of(' ') - first + 1);
  }

 private:
  std::span<const std::byte> bytes_;
};

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (auto each : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(each));
  return text;
}

Error truncated(std::string_view what) {
  return {std::errc::protocol_error, fmt::format("the target's answer to {} is too short", what)};
}

Cdb make(std::uint8_t opcode, std::uint8_t size) {
  Cdb cdb;
  cdb.bytes[0] = opcode;
  cdb.size = size;
  return cdb;
}

/// READ, WRITE and their kin share one layout in each size.
Cdb block_cdb(std::uint8_t opcode10, std::uint8_t opcode16, std::uint64_t lba,
              std::uint32_t blocks) {
  if (lba <= 0xffffffff && blocks <= 0xffff) {
    auto cdb = make(opcode10, 10);
    put(&cdb.bytes[2], static_cast<std::uint32_t>(lba));
    put(&cdb.bytes[7], static_cast<std::uint16_t>(blocks));
    return cdb;
  }
  auto cdb = make(opcode16, 16);
  put(&cdb.bytes[2], lba);
  put(&cdb.bytes[10], blocks);
  return cdb;
}

bool known_type(std::uint8_t type) { return type == 1 || type == 3 || (type >= 5 && type <= 8); }

/// An iSCSI TransportID (SPC-4, 7.6.4.6); any other protocol's in hex.
std::string initiator_name(std::span<const std::byte> id) {
  Reader in{id};
  if ((in.at(0) & 0xf) != 5 || id.size() < 4) return hex(id);
  return in.text(4, in.at<std::uint16_t>(2));
}

}  // namespace

Cdb test_unit_ready_cdb() { return make(0x00, 6); }

Cdb inquiry_cdb(std::uint16_t allocation) {
  auto cdb = make(0x12, 6);
  put(&cdb.bytes[3], allocation);
  return cdb;
}

Cdb inquiry_page_cdb(std::uint8_t page, std::uint16_t allocation) {
  auto cdb = inquiry_cdb(allocation);
  cdb.bytes[1] = 1;  // EVPD
  cdb.bytes[2] = page;
  return cdb;
}

Cdb read_capacity_cdb(std::uint32_t allocation) {
  auto cdb = make(0x9e, 16);
  cdb.bytes[1] = 0x10;
  put(&cdb.bytes[10], allocation);
  return cdb;
}

Cdb mode_sense_cdb(std::uint8_t page, std::uint16_t allocation) {
  auto cdb = make(0x5a, 10);
  cdb.bytes[1] = 0x08;  // DBD: no block descriptors
  cdb.bytes[2] = page;
  put(&cdb.bytes[7], allocation);
  return cdb;
}

Cdb report_opcode_cdb(std::uint8_t opcode, std::uint32_t allocation) {
  auto cdb = make(0xa3, 12);
  cdb.bytes[1] = 0x0c;
  cdb.bytes[2] = 1;  // one command, without a service action
  cdb.bytes[3] = opcode;
  put(&cdb.bytes[6], allocation);
  return cdb;
}

Cdb read_cdb(std::uint64_t lba, std::uint32_t blocks) { return block_cdb(0x28, 0x88, lba, blocks); }

Cdb write_cdb(std::uint64_t lba, std::uint32_t blocks, bool fua) {
  auto cdb = block_cdb(0x2a, 0x8a, lba, blocks);
  if (fua) cdb.bytes[1] |= 0x08;
  return cdb;
}

Cdb synchronize_cache_cdb() { return make(0x35, 10); }

Cdb write_same_cdb(std::uint64_t lba, std::uint32_t blocks) {
  auto cdb = make(0x93, 16);
  put(&cdb.bytes[2], lba);
  put(&cdb.bytes[10], blocks);
  return cdb;
}

Cdb unmap_cdb(std::uint16_t parameters) {
  auto cdb = make(0x42, 10);
  put(&cdb.bytes[7], parameters);
  return cdb;
}

std::vector<std::byte> unmap_parameters(std::span<const BlockRange> ranges) {
  std::vector<std::byte> bytes(8 + 16 * ranges.size());
  put(&bytes[0], static_cast<std::uint16_t>(bytes.size() - 2));
  put(&bytes[2], static_cast<std::uint16_t>(16 * ranges.size()));
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    put(&bytes[8 + 16 * i], ranges[i].lba);
    put(&bytes[16 + 16 * i], ranges[i].blocks);
  }
  return bytes;
}

Cdb reserve_in_cdb(ReserveIn action, std::uint16_t allocation) {
  auto cdb = make(0x5e, 10);
  cdb.bytes[1] = static_cast<std::uint8_t>(action);
  put(&cdb.bytes[7], allocation);
  return cdb;
}

Cdb reserve_out_cdb(ReserveOut action, ReservationType type) {
  auto cdb = make(0x5f, 10);
  cdb.bytes[1] = static_cast<std::uint8_t>(action);
  cdb.bytes[2] = static_cast<std::uint8_t>(type);  // scope in the upper half: 0, the logical unit
  put(&cdb.bytes[5], static_cast<std::uint32_t>(kReserveOutSize));
  return cdb;
}

ReserveOutParameters reserve_out_parameters(Key key, Key action_key, bool aptpl) {
  ReserveOutParameters bytes{};
  put(&bytes[0], raw(key));
  put(&bytes[8], raw(action_key));
  if (aptpl) bytes[20] = std::byte{1};
  return bytes;
}

Expected<Inquiry> parse_inquiry(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(36)) return truncated("INQUIRY");
  return Inquiry{.qualifier = static_cast<std::uint8_t>(in.at(0) >> 5),
                 .type = static_cast<std::uint8_t>(in.at(0) & 0x1f),
                 .vendor = in.text(8, 8),
                 .product = in.text(16, 16),
                 .revision = in.text(32, 4)};
}

std::vector<std::uint8_t> parse_vpd_list(std::span<const std::byte> bytes) {
  Reader in{bytes};
  std::vector<std::uint8_t> pages;
  if (in.at(1) != 0) return pages;
  for (auto each : in.part(4, in.at<std::uint16_t>(2)))
    pages.push_back(std::to_integer<std::uint8_t>(each));
  return pages;
}

std::string parse_identity(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (in.at(1) != 0x83) return {};
  auto end = std::min<std::size_t>(in.size(), std::size_t{4} + in.at<std::uint16_t>(2));
  std::string best;
  int best_rank = 0;
  for (std::size_t at = 4; at + 4 <= end;) {
    auto code_set = in.at(at) & 0xf;
    auto association = (in.at(at + 1) >> 4) & 3;
    auto type = in.at(at + 1) & 0xf;
    std::size_t length = in.at(at + 3);
    if (length > end - at - 4) break;
    auto content = in.part(at + 4, length);
    auto text = code_set == 2 || code_set == 3 ? in.text(at + 4, length) : hex(content);
    int rank = 0;
    std::string_view prefix;
    switch (type) {
      case 3: rank = 4, prefix = "naa."; break;
      case 2: rank = 3, prefix = "eui."; break;
      case 1: rank = 2, prefix = "t10."; break;
      case 0: rank = 1, prefix = "vendor."; break;
      default: break;
    }
    if (association == 0 && rank > best_rank && !text.empty()) {
      best_rank = rank;
      best = std::string{prefix} + text;
    }
    at += 4 + length;
  }
  return best;
}

BlockLimits parse_block_limits(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (in.at(1) != 0xb0) return {};
  // The page has grown over the years; its length says which fields it has.
  Reader page{in.part(0, std::size_t{4} + in.at<std::uint16_t>(2))};
  return {.max_transfer_blocks = page.at<std::uint32_t>(8),
          .max_unmap_blocks = page.at<std::uint32_t>(20),
          .max_unmap_ranges = page.at<std::uint32_t>(24),
          .max_write_same_blocks = page.at<std::uint64_t>(36)};
}

Provisioning parse_provisioning(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (in.at(1) != 0xb2) return {};
  auto flags = in.at(5);
  return {.unmap = (flags & 0x80) != 0, .reads_zeroes = ((flags >> 2) & 7) == 1};
}

Expected<Capacity> parse_capacity(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(12)) return truncated("READ CAPACITY(16)");
  auto last = in.at<std::uint64_t>(0);
  auto block = in.at<std::uint32_t>(8);
  if (block != 512 && block != 4096)
    return Error{Errc::refused,
                 fmt::format("logical blocks of {} bytes; 512 and 4096 are supported", block)};
  constexpr std::uint64_t kLargest = std::uint64_t{1} << 62;
  if (last >= kLargest / block)
    return Error{Errc::refused, fmt::format("the target claims {} blocks", last)};
  auto exponent = in.at(13) & 0xf;
  Capacity found;
  found.geometry = {
      .block_size = block, .block_count = last + 1, .physical_block_size = block << exponent};
  found.thin = (in.at(14) & 0x80) != 0;
  found.reads_zeroes = (in.at(14) & 0x40) != 0;
  return found;
}

Expected<CachingPage> parse_caching(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(8)) return truncated("MODE SENSE");
  CachingPage found;
  found.write_protected = (in.at(3) & 0x80) != 0;
  found.fua = (in.at(3) & 0x10) != 0;
  auto end = std::min<std::size_t>(in.size(), std::size_t{2} + in.at<std::uint16_t>(0));
  std::size_t at = std::size_t{8} + in.at<std::uint16_t>(6);
  if (at + 3 <= end && (in.at(at) & 0x7f) == 0x08) found.write_cache = (in.at(at + 2) & 0x04) != 0;
  return found;
}

std::optional<bool> parse_opcode_supported(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(2)) return std::nullopt;
  switch (in.at(1) & 7) {
    case 1: return false;
    case 3:
    case 5: return true;  // as in the standard; in a vendor's way
    default: return std::nullopt;
  }
}

std::size_t reserve_in_length(std::span<const std::byte> bytes) {
  Reader in{bytes};
  return std::size_t{8} + in.at<std::uint32_t>(4);
}

Expected<KeyList> parse_keys(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(8) || in.size() < reserve_in_length(bytes)) return truncated("READ KEYS");
  KeyList list;
  list.generation = in.at<std::uint32_t>(0);
  auto end = reserve_in_length(bytes);
  for (std::size_t at = 8; at + 8 <= end; at += 8)
    list.keys.push_back(Key{in.at<std::uint64_t>(at)});
  return list;
}

Expected<Reservation> parse_reservation(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(8)) return truncated("READ RESERVATION");
  Reservation found{.generation = in.at<std::uint32_t>(0)};
  if (in.at<std::uint32_t>(4) == 0) return found;
  if (!in.has(24)) return truncated("READ RESERVATION");
  auto type = static_cast<std::uint8_t>(in.at(21) & 0xf);
  if (!known_type(type))
    return Error{std::errc::protocol_error,
                 fmt::format("the LUN has a reservation of unknown type {}", type)};
  found.holder = Key{in.at<std::uint64_t>(8)};
  found.type = ReservationType{type};
  return found;
}

Expected<ReservationCapabilities> parse_capabilities(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(8)) return truncated("REPORT CAPABILITIES");
  ReservationCapabilities found{.persist_through_power_loss = (in.at(2) & 0x01) != 0,
                                .all_target_ports = (in.at(2) & 0x04) != 0};
  if ((in.at(3) & 0x80) == 0) return found;  // TMV: the type mask is not valid
  auto mask = in.at<std::uint16_t>(4);
  // Bytes 4 and 5 have the types in an order of their own (SPC-4 table 211).
  auto take = [&](unsigned bit, unsigned type) {
    if (mask & (1u << bit))
      found.type_mask = static_cast<std::uint16_t>(found.type_mask | (1u << type));
  };
  take(15, 7);
  take(14, 6);
  take(13, 5);
  take(11, 3);
  take(9, 1);
  take(0, 8);
  return found;
}

Expected<std::vector<FullStatusEntry>> parse_full_status(std::span<const std::byte> bytes) {
  Reader in{bytes};
  if (!in.has(8) || in.size() < reserve_in_length(bytes)) return truncated("READ FULL STATUS");
  std::vector<FullStatusEntry> entries;
  auto end = reserve_in_length(bytes);
  for (std::size_t at = 8; at + 24 <= end;) {
    std::size_t id_length = in.at<std::uint32_t>(at + 20);
    if (id_length > end - at - 24) return truncated("READ FULL STATUS");
    FullStatusEntry entry;
    entry.key = Key{in.at<std::uint64_t>(at)};
    entry.holder = (in.at(at + 12) & 0x01) != 0;
    entry.relative_port = in.at<std::uint16_t>(at + 18);
    auto type = static_cast<std::uint8_t>(in.at(at + 13) & 0xf);
    if (entry.holder && known_type(type)) entry.type = ReservationType{type};
    entry.initiator = initiator_name(in.part(at + 24, id_length));
    entries.push_back(std::move(entry));
    at += 24 + id_length;
  }
  return entries;
}

}  // namespace csv::iscsi
