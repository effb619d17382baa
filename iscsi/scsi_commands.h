#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csvfs/base/error.h"
#include "iscsi/lun.h"

// Commands built and answers parsed, as bytes: what iSCSI and SG_IO both carry. Pure. Parsers take
// what a target sent, whatever it is: fields that did not arrive are a refusal or their default.

namespace csv::iscsi {

/// A command descriptor block.
struct Cdb {
  std::array<std::uint8_t, 16> bytes{};
  std::uint8_t size = 0;
};

Cdb test_unit_ready_cdb();
Cdb inquiry_cdb(std::uint16_t allocation);
Cdb inquiry_page_cdb(std::uint8_t page, std::uint16_t allocation);
Cdb read_capacity_cdb(std::uint32_t allocation);
Cdb mode_sense_cdb(std::uint8_t page, std::uint16_t allocation);
/// REPORT SUPPORTED OPERATION CODES about one command.
Cdb report_opcode_cdb(std::uint8_t opcode, std::uint32_t allocation);

/// 10-byte forms where the address allows: some targets handle them faster, all know them.
Cdb read_cdb(std::uint64_t lba, std::uint32_t blocks);
Cdb write_cdb(std::uint64_t lba, std::uint32_t blocks, bool fua);
Cdb synchronize_cache_cdb();  ///< The whole LUN.
Cdb write_same_cdb(std::uint64_t lba, std::uint32_t blocks);
Cdb unmap_cdb(std::uint16_t parameters);

struct BlockRange {
  std::uint64_t lba = 0;
  std::uint32_t blocks = 0;
};
std::vector<std::byte> unmap_parameters(std::span<const BlockRange> ranges);

enum class ReserveIn : std::uint8_t {
  read_keys,
  read_reservation,
  report_capabilities,
  read_full_status
};
enum class ReserveOut : std::uint8_t {
  register_key,
  reserve,
  release,
  clear,
  preempt,
  preempt_and_abort,
  register_and_ignore_existing_key,
};
Cdb reserve_in_cdb(ReserveIn action, std::uint16_t allocation);
Cdb reserve_out_cdb(ReserveOut action, ReservationType type);

inline constexpr std::size_t kReserveOutSize = 24;
using ReserveOutParameters = std::array<std::byte, kReserveOutSize>;
/// `key` is the nexus's own; `action_key` what the service action is about.
ReserveOutParameters reserve_out_parameters(Key key, Key action_key, bool aptpl);

struct Inquiry {
  std::uint8_t qualifier = 0;  ///< 0: a unit is connected; 3: there can be none at this number.
  std::uint8_t type = 0;       ///< 0: a direct access block device.
  std::string vendor, product, revision;
};
Expected<Inquiry> parse_inquiry(std::span<const std::byte> bytes);
/// The pages that VPD page 00h lists.
std::vector<std::uint8_t> parse_vpd_list(std::span<const std::byte> bytes);
/// The best designator of the logical unit in VPD page 83h: NAA, else EUI-64, else T10, else
/// vendor-specific; empty if there is none.
std::string parse_identity(std::span<const std::byte> bytes);

/// VPD page B0h. Zeros: the target names no limit.
struct BlockLimits {
  std::uint32_t max_transfer_blocks = 0;
  std::uint32_t max_unmap_blocks = 0;
  std::uint32_t max_unmap_ranges = 0;
  std::uint64_t max_write_same_blocks = 0;
};
BlockLimits parse_block_limits(std::span<const std::byte> bytes);

/// VPD page B2h.
struct Provisioning {
  bool unmap = false;         ///< LBPU
  bool reads_zeroes = false;  ///< LBPRZ of this page
};
Provisioning parse_provisioning(std::span<const std::byte> bytes);

struct Capacity {
  Geometry geometry;
  bool thin = false;          ///< LBPME
  bool reads_zeroes = false;  ///< LBPRZ
};
Expected<Capacity> parse_capacity(std::span<const std::byte> bytes);

struct CachingPage {
  bool write_protected = false;
  bool fua = false;                 ///< DPOFUA
  std::optional<bool> write_cache;  ///< WCE; nothing if the page is not there.
};
/// A MODE SENSE(10) answer for page 08h.
Expected<CachingPage> parse_caching(std::span<const std::byte> bytes);

/// Nothing: the answer does not say.
std::optional<bool> parse_opcode_supported(std::span<const std::byte> bytes);

/// How many bytes the whole answer to a PERSISTENT RESERVE IN has, told by its first eight.
std::size_t reserve_in_length(std::span<const std::byte> bytes);
Expected<KeyList> parse_keys(std::span<const std::byte> bytes);
Expected<Reservation> parse_reservation(std::span<const std::byte> bytes);
Expected<ReservationCapabilities> parse_capabilities(std::span<const std::byte> bytes);
Expected<std::vector<FullStatusEntry>> parse_full_status(std::span<const std::byte> bytes);

}  // namespace csv::iscsi
