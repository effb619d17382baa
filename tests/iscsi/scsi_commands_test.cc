#include "iscsi/scsi_commands.h"

#include <doctest/doctest.h>

#include <cstring>
#include <string_view>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

std::string hex(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (auto each : bytes) {
    text += "0123456789abcdef"[each >> 4];
    text += "0123456789abcdef"[each & 15];
  }
  return text;
}
std::string hex(const Cdb& cdb) { return hex(std::span{cdb.bytes}.first(cdb.size)); }
std::string hex(std::span<const std::byte> bytes) {
  return hex(std::span{reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()});
}

std::vector<std::byte> bytes(std::string_view text) {
  std::vector<std::byte> made;
  std::string digits;
  for (char c : text)
    if (c != ' ') digits += c;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
    made.push_back(std::byte(std::stoi(digits.substr(i, 2), nullptr, 16)));
  return made;
}

std::string text_as_hex(std::string_view text) {
  return hex(std::as_bytes(std::span{text.data(), text.size()}));
}

}  // namespace

TEST_CASE("commands are built as the standards draw them") {
  CHECK(hex(test_unit_ready_cdb()) == "000000000000");
  CHECK(hex(inquiry_cdb(255)) == "12000000ff00");
  CHECK(hex(inquiry_page_cdb(0x83, 1024)) == "120183040000");
  CHECK(hex(read_capacity_cdb(32)) == "9e100000000000000000000000200000");
  CHECK(hex(mode_sense_cdb(8, 252)) == "5a08080000000000fc00");
  CHECK(hex(report_opcode_cdb(0x93, 256)) == "a30c01930000000001000000");
  CHECK(hex(read_cdb(0x01020304, 0x0506)) == "28000102030400050600");
  CHECK(hex(read_cdb(0x0102030405, 6)) == "88000000000102030405000000060000");
  CHECK(hex(read_cdb(1, 0x10000)) == "88000000000000000001000100000000");
  CHECK(hex(write_cdb(1, 2, false)) == "2a000000000100000200");
  CHECK(hex(write_cdb(1, 2, true)) == "2a080000000100000200");
  CHECK(hex(write_cdb(1ull << 32, 2, true)) == "8a080000000100000000000000020000");
  CHECK(hex(synchronize_cache_cdb()) == "35000000000000000000");
  CHECK(hex(write_same_cdb(7, 9)) == "93000000000000000007000000090000");
  CHECK(hex(unmap_cdb(24)) == "42000000000000001800");
  std::array ranges{BlockRange{1, 2}, BlockRange{0x1122334455667788, 0x99aabbcc}};
  CHECK(hex(unmap_parameters(ranges)) ==
        "002600200000000000000000000000010000000200000000112233445566778899aabbcc00000000");
  CHECK(hex(reserve_in_cdb(ReserveIn::read_full_status, 4096)) == "5e030000000000100000");
  CHECK(hex(reserve_out_cdb(ReserveOut::preempt_and_abort,
                            ReservationType::exclusive_access_all_registrants)) ==
        "5f050800000000001800");
  CHECK(hex(reserve_out_cdb(ReserveOut::register_and_ignore_existing_key, ReservationType::none)) ==
        "5f060000000000001800");
  CHECK(hex(reserve_out_parameters(Key{0x0102030405060708}, Key{0x1112131415161718}, true)) ==
        "010203040506070811121314151617180000000001000000");
}

TEST_CASE("INQUIRY says who it is, without spaces and unprintables") {
  auto answer = bytes("00 00 05 02 1f 00 00 02" + text_as_hex("LIO-ORG ") +
                      text_as_hex("disk \x01 one      ") + text_as_hex("4.0 "));
  auto found = parse_inquiry(answer);
  REQUIRE(found);
  CHECK(found->qualifier == 0);
  CHECK(found->type == 0);
  CHECK(found->vendor == "LIO-ORG");
  CHECK(found->product == "disk ? one");
  CHECK(found->revision == "4.0");
  answer[0] = std::byte{0x7f};
  CHECK(parse_inquiry(answer)->qualifier == 3);
  CHECK(!parse_inquiry(std::span{answer}.first(35)));
}

TEST_CASE("the LUN's best identity is taken, its target port's and damaged ones are not") {
  auto t10 = "02 01 00 08" + text_as_hex("IET 0001");
  auto naa = "01 03 00 08 6001405c5f000001";
  auto port = "01 93 00 08 5001405c5f000009";
  auto page = [](const std::string& designators) {
    auto body = bytes(designators);
    auto all = bytes("00 83 00 00");
    all[3] = std::byte(body.size());
    all.insert(all.end(), body.begin(), body.end());
    return all;
  };
  CHECK(parse_identity(page(t10)) == "t10.IET 0001");
  CHECK(parse_identity(page(t10 + naa)) == "naa.6001405c5f000001");
  CHECK(parse_identity(page(naa + t10 + port)) == "naa.6001405c5f000001");
  CHECK(parse_identity(page(port)).empty());
  auto cut = page(t10 + naa);
  CHECK(parse_identity(std::span{cut}.first(cut.size() - 1)) == "t10.IET 0001");
  cut[3] = std::byte{0xff};
  CHECK(parse_identity(cut) == "naa.6001405c5f000001");
}

TEST_CASE("capacity gives blocks and sizes, and refuses what we cannot use") {
  auto answer = bytes("00000000 0001ffff 00000200 00 03 c0 00 00000000000000000000000000000000");
  auto found = parse_capacity(answer);
  REQUIRE(found);
  CHECK(found->geometry.block_size == 512);
  CHECK(found->geometry.block_count == 0x20000);
  CHECK(found->geometry.physical_block_size == 4096);
  CHECK(found->thin);
  CHECK(found->reads_zeroes);
  answer[10] = std::byte{4};
  answer[11] = std::byte{8};  // 1032-byte blocks
  CHECK(parse_capacity(answer).error() == Errc::refused);
  auto huge = bytes("ffffffff ffffffff 00000200 00000000");
  CHECK(parse_capacity(huge).error() == Errc::refused);
  CHECK(!parse_capacity(std::span{huge}.first(11)));
}

TEST_CASE("the caching page is found behind the block descriptors; without it nothing is known") {
  auto answer = bytes(
      "001a 00 10 00 00 0000"
      "08 12 14 00 ffff 0000 ffff ffff 80 14 0000 000000");
  auto found = parse_caching(answer);
  REQUIRE(found);
  CHECK(found->fua);
  CHECK(!found->write_protected);
  CHECK(found->write_cache == true);
  answer[10] = std::byte{0x10};
  CHECK(parse_caching(answer)->write_cache == false);
  auto described = bytes(
      "0022 00 90 00 00 0008"
      "0000000000000200"
      "08 12 04 00");
  CHECK(parse_caching(described)->write_cache == true);
  CHECK(parse_caching(described)->write_protected);
  auto empty = bytes("0006 00 00 00 00 0000");
  CHECK(!parse_caching(empty)->write_cache);
  CHECK(!parse_caching(std::span{empty}.first(7)));
}

TEST_CASE("limits are read as far as the page goes") {
  auto page = bytes(
      "00 b0 003c 00 80 0000 00000800 00000000 00000000 00100000 00000004"
      "00000000 00000000 0000000000008000"
      "0000000000000000 0000000000000000 00000000");
  auto limits = parse_block_limits(page);
  CHECK(limits.max_transfer_blocks == 0x800);
  CHECK(limits.max_unmap_blocks == 0x100000);
  CHECK(limits.max_unmap_ranges == 4);
  CHECK(limits.max_write_same_blocks == 0x8000);
  page[3] = std::byte{0x10};  // the page of older devices
  limits = parse_block_limits(page);
  CHECK(limits.max_transfer_blocks == 0x800);
  CHECK(limits.max_unmap_blocks == 0);
  CHECK(limits.max_write_same_blocks == 0);
  page[1] = std::byte{0xb1};
  CHECK(parse_block_limits(page).max_transfer_blocks == 0);
  CHECK(parse_provisioning(bytes("00 b2 0004 00 84 02 00")).unmap);
  CHECK(parse_provisioning(bytes("00 b2 0004 00 84 02 00")).reads_zeroes);
  CHECK(!parse_provisioning(bytes("00 b2 0004 00 44 02 00")).unmap);
  CHECK(parse_vpd_list(bytes("00 00 0003 00 83 b0")) == std::vector<std::uint8_t>{0, 0x83, 0xb0});
  CHECK(parse_vpd_list(bytes("00 00 0009 00 83")) == std::vector<std::uint8_t>{0, 0x83});
  CHECK(parse_opcode_supported(bytes("00 03 0010")) == true);
  CHECK(parse_opcode_supported(bytes("00 01 0000")) == false);
  CHECK(!parse_opcode_supported(bytes("00 00 0000")));
  CHECK(!parse_opcode_supported(bytes("00")));
}

TEST_CASE("keys, reservation and capabilities are what the target said") {
  auto keys = parse_keys(bytes("00000007 00000010 4711010000000001 4711020000000002"));
  REQUIRE(keys);
  CHECK(keys->generation == 7);
  CHECK(keys->keys == std::vector{Key{0x4711010000000001}, Key{0x4711020000000002}});
  CHECK(parse_keys(bytes("00000007 00000000"))->keys.empty());
  // An answer that was cut must not look like one with fewer keys.
  CHECK(!parse_keys(bytes("00000007 00000010 4711010000000001")));

  auto none = parse_reservation(bytes("00000007 00000000"));
  REQUIRE(none);
  CHECK(none->type == ReservationType::none);
  auto held = parse_reservation(bytes("00000007 00000010 4711010000000001 00000000 00 06 0000"));
  REQUIRE(held);
  CHECK(held->type == ReservationType::exclusive_access_registrants_only);
  CHECK(held->holder == Key{0x4711010000000001});
  CHECK(!parse_reservation(bytes("00000007 00000010 4711010000000001 00000000 00 00 0000")));
  CHECK(!parse_reservation(bytes("00000007 00000010 4711010000000001 00000000 00")));

  auto can = parse_capabilities(bytes("0008 05 80 ea01 0000"));
  REQUIRE(can);
  CHECK(can->persist_through_power_loss);
  CHECK(can->all_target_ports);
  CHECK(can->type_mask == (1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8));
  CHECK(parse_capabilities(bytes("0008 00 00 ea01 0000"))->type_mask == 0);
}

TEST_CASE("full status names the initiators, iSCSI ones by name") {
  auto name = text_as_hex("iqn.2026-01.org.csvfs:node1,i,0x800000000001");
  auto id = "45 00 0030" + name + "00000000";
  auto whole = "4711010000000001 00000000 01 08 00000000 0001 00000034" + id;
  auto fc = std::string{"4711020000000002 00000000 00 00 00000000 0002 00000018"} +
            "00000000000000002100001122334455 0000000000000000";
  auto body = bytes(whole + fc);
  auto answer = bytes("00000009 00000000");
  answer[7] = std::byte(body.size());
  answer.insert(answer.end(), body.begin(), body.end());
  auto found = parse_full_status(answer);
  REQUIRE(found);
  REQUIRE(found->size() == 2);
  CHECK((*found)[0].key == Key{0x4711010000000001});
  CHECK((*found)[0].holder);
  CHECK((*found)[0].type == ReservationType::exclusive_access_all_registrants);
  CHECK((*found)[0].initiator == "iqn.2026-01.org.csvfs:node1,i,0x800000000001");
  CHECK((*found)[0].relative_port == 1);
  CHECK(!(*found)[1].holder);
  CHECK((*found)[1].initiator.starts_with("00000000000000002100001122334455"));
  for (std::size_t length = 0; length < answer.size(); ++length)
    CHECK(!parse_full_status(std::span{answer}.first(length)));
}

TEST_CASE("answers of any bytes are read without reading past them") {
  Random random{11};
  const std::array pages{0x00, 0x83, 0xb0, 0xb2};
  for (int i = 0; i < 30000; ++i) {
    std::vector<std::byte> noise(random.below(120));
    for (auto& each : noise) each = random.chance(1, 2) ? std::byte{0} : std::byte(random.next());
    if (noise.size() > 1 && random.chance(1, 2)) noise[1] = std::byte(pages[random.below(4)]);
    (void)parse_inquiry(noise);
    (void)parse_vpd_list(noise);
    (void)parse_identity(noise);
    (void)parse_block_limits(noise);
    (void)parse_provisioning(noise);
    if (auto found = parse_capacity(noise)) CHECK(found->geometry.size_bytes() > 0);
    (void)parse_caching(noise);
    (void)parse_opcode_supported(noise);
    (void)parse_reservation(noise);
    (void)parse_capabilities(noise);
    if (auto found = parse_keys(noise)) CHECK(found->keys.size() * 8 <= noise.size());
    if (auto found = parse_full_status(noise)) CHECK(found->size() * 24 <= noise.size());
  }
}
