// Answers of a target, one parser at a time: the first byte says which.
#include "iscsi/scsi.h"

#include "csvfs/base/check.h"
#include "iscsi/scsi_commands.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using namespace iscsi;

void sense(Input& input) {
  auto status = static_cast<ScsiStatus>(input.take());
  auto purpose = static_cast<ScsiPurpose>(input.take() % 6);
  bool registered = input.take() % 2 != 0;
  auto found = parse_sense(input.rest());
  if (found) (void)describe(*found);
  (void)describe(status);
  auto verdict = judge(status, found, purpose, registered);
  using Action = Verdict::Action;
  bool failed = verdict.action == Action::fail || verdict.action == Action::end;
  CSV_CHECK(failed == static_cast<bool>(verdict.error.code()));
}

void one(unsigned which, Input& input) {
  auto bytes = input.rest();
  switch (which) {
    case 1: (void)parse_inquiry(bytes); return;
    case 2: (void)parse_vpd_list(bytes); return;
    case 3: {
      auto identity = parse_identity(bytes);
      for (char c : identity) CSV_CHECK(c >= 0x20 && c < 0x7f);  // it goes into logs and messages
      return;
    }
    case 4: (void)parse_block_limits(bytes); return;
    case 5: (void)parse_provisioning(bytes); return;
    case 6:
      if (auto found = parse_capacity(bytes)) {
        const auto& geometry = found->geometry;
        CSV_CHECK(geometry.block_count > 0 && geometry.size_bytes() <= 1ull << 62);
        CSV_CHECK(geometry.physical_block_size >= geometry.block_size);
      }
      return;
    case 7: (void)parse_caching(bytes); return;
    case 8: (void)parse_opcode_supported(bytes); return;
    case 9:
      if (auto found = parse_keys(bytes)) CSV_CHECK(found->keys.size() <= bytes.size() / 8);
      return;
    case 10: (void)parse_reservation(bytes); return;
    case 11: (void)parse_capabilities(bytes); return;
    case 12:
      if (auto found = parse_full_status(bytes)) CSV_CHECK(found->size() <= bytes.size() / 24);
      return;
    default: (void)reserve_in_length(bytes); return;
  }
}

std::string big(std::uint64_t value, std::size_t size) {
  std::string bytes(size, '\0');
  for (std::size_t i = 0; i < size; ++i) bytes[size - 1 - i] = static_cast<char>(value >> (8 * i));
  return bytes;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto which = input.take() % 14u;
  if (which == 0) return sense(input);
  one(which, input);
}

std::vector<Seed> seeds() {
  using namespace std::string_literals;
  auto z = [](std::size_t n) { return std::string(n, '\0'); };
  // An iSCSI TransportID, and an entry of READ FULL STATUS with it.
  auto id = "\x45\x00"s + big(24, 2) + "iqn.2026-01.org:a,i,0x01";
  auto entry = big(0x1234, 8) + z(4) + "\x01\x07"s + z(4) + big(1, 2) + big(id.size(), 4) + id;
  return {
      {"sense-fixed", "\0\x02\0\x01\x70\0\x06\0\0\0\0\x0a\0\0\0\0\x2a\x05\0\0\0\0"s},
      {"sense-descriptor", "\0\x02\x02\0\x72\x07\x27\x07\0\0\0\0"s},
      {"sense-deferred", "\0\x02\0\x01\x71\0\x03\0\0\0\0\x0a\0\0\0\0\x0c\0\0\0\0\0"s},
      {"sense-none", "\0\x02\0\x01"s},
      {"conflict", "\0\x18\0\x01"s},
      {"inquiry", "\x01\0\0\x05\x12\x1f\0\0\x02LIO-ORG disk            4.0 "s},
      {"vpd-list", "\x02\0\0\0\x03\0\x83\xb0"s},
      {"identity", "\x03\0\x83\0\x14\x01\x03\0\x10\x60\x01\x40\x5c\x5f\0\0\x01\0\0\0\0\0\0\0\0"s},
      {"identity-text", "\x03\0\x83\0\x0c\x02\x01\0\x08IET\xff\x01\n 1"s},
      {"identity-past-end", "\x03\0\x83\xff\xff\x01\x03\0\xff\x60"s},
      {"limits", "\x04\0\xb0\0\x3c"s + z(4) + big(2048, 4) + z(8) + big(~0u, 4) + big(1, 4) + z(8) +
                     big(~0ull, 8) + z(20)},
      {"provisioning", "\x05\0\xb2\0\x04\0\x84\0\0"s},
      {"capacity", "\x06"s + big(2097151, 8) + big(512, 4) + "\0\x03\xc0\0"s + z(16)},
      {"capacity-huge", "\x06"s + big(~0ull, 8) + big(4096, 4) + "\0\x0f\xc0\0"s + z(16)},
      {"capacity-odd", "\x06"s + big(1, 8) + big(520, 4) + z(20)},
      {"caching", "\x07"s + big(26, 2) + "\0\x90\0\0\0\0\x08\x12\x04"s + z(17)},
      {"caching-descriptor", "\x07"s + big(26, 2) + "\0\x10\0\0"s + big(0xffff, 2) + "\x08\x12"s},
      {"opcode", "\x08\0\x03\0\x10"s},
      {"keys", "\x09"s + big(7, 4) + big(16, 4) + big(1, 8) + big(2, 8)},
      {"keys-long", "\x09"s + big(7, 4) + big(0xffffffff, 4) + big(1, 8)},
      {"keys-odd", "\x09"s + big(7, 4) + big(13, 4) + big(1, 8) + z(5)},
      {"reservation", "\x0a"s + big(7, 4) + big(16, 4) + big(1, 8) + z(5) + "\x08"s + z(2)},
      {"reservation-unknown", "\x0a"s + big(7, 4) + big(16, 4) + big(1, 8) + z(5) + "\x0f"s + z(2)},
      {"capabilities", "\x0b\0\x08\x1d\x80\xea\x01\0\0"s},
      {"full-status", "\x0c"s + big(7, 4) + big(entry.size(), 4) + entry},
      {"full-status-past-end", "\x0c"s + big(7, 4) + big(24, 4) + big(1, 8) + z(12) + big(~0u, 4)},
  };
}

}  // namespace csv::fuzz
