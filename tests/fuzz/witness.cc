// What lies on witnesses: header, slots and configuration of a disk, slots of a share's file; and
// the list of mounts that says what a share is. A valid one with changes, and mostly a right
// checksum.
//
//   kind and flags (1 byte: 0 header, 1 slot, 2 copy, 3 share, 4 mounts; + 0x80: checksum left
//   wrong; + 0x40: raw content), then patches
#include "coordinator/cluster/share_witness.h"
#include "coordinator/cluster/witness_format.h"
#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using namespace csv::cluster;

constexpr disk::WitnessId kWitness = {std::byte{0xa5}, std::byte{7}};
constexpr auto kMounts =
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "30 22 0:45 / /mnt/w\\040x rw shared:2 - nfs4 server:/w rw,vers=4.1,local_lock=none\n";

/// `bytes` as the input changes them; their checksum covers `summed` of them.
void change(Input& input, std::span<std::byte> bytes, std::uint8_t flags, std::size_t summed) {
  if ((flags & 0x40) != 0) {
    auto rest = input.rest();
    if (!rest.empty()) std::memcpy(bytes.data(), rest.data(), std::min(rest.size(), bytes.size()));
  }
  patch(input, bytes);
  if ((flags & 0x80) != 0) return;
  Le32 crc{crc32c(bytes.first(summed).subspan(12))};
  std::memcpy(bytes.data() + 8, &crc, sizeof crc);
}

void header(Input& input, std::uint8_t flags) {
  auto bytes = disk::encode(disk::WitnessHeader{kWitness, 4711});
  change(input, bytes, flags, bytes.size());
  auto found = disk::decode_header(bytes);
  if (found) CSV_CHECK(disk::decode_header(disk::encode(*found)).error() == std::error_code{});
}

void slot(Input& input, std::uint8_t flags) {
  auto bytes = disk::encode(disk::WitnessSlot{Key{5}, 3, 9, 17, WallTime{1}}, kWitness);
  change(input, bytes, flags, bytes.size());
  auto found = disk::decode_slot(bytes, kWitness);
  if (!found) return;
  CSV_CHECK(found->hold != 0 && found->key != Key{});
  auto again = disk::decode_slot(disk::encode(*found, kWitness), kWitness);
  CSV_CHECK(again && *again == *found);
}

void copy(Input& input, std::uint8_t flags) {
  auto encoded = disk::encode(Witness::Memory{{1, 2, 3}, std::string(5000, 'c')}, kWitness);
  auto bytes = Buffer::zeroed(disk::kCopySize);
  std::memcpy(bytes.data(), encoded->data(), encoded->size());
  // The sum covers as much as the length that stands there says.
  Input first = input;
  change(first, bytes.span(), static_cast<std::uint8_t>(flags | 0x80), 0);
  Le64 length;
  std::memcpy(&length, bytes.data() + 56, sizeof length);
  auto summed = std::min<std::uint64_t>(length, disk::kMaxConfiguration) + disk::kCopyHeaderSize;
  Input none{{}};
  change(none, bytes.span(), static_cast<std::uint8_t>(flags & 0x80), summed);
  auto found = disk::decode_copy(bytes.span(), kWitness);
  if (!found) return;
  CSV_CHECK(found->configuration.size() <= disk::kMaxConfiguration);
  CSV_CHECK(bool{disk::encode(*found, kWitness)});
}

void share(Input& input, std::uint8_t flags) {
  ShareTag tag{6, 4711, NodeId{2}, 77, 5, {1, 2, 3}};
  TagFile::Content content{encode(tag), {}};
  tag.sequence = 7;
  content[1] = encode(tag);
  change(input, content[1], flags, TagFile::kSlot);
  auto found = newest_share_tag(content);
  if (found) CSV_CHECK(found->sequence >= 6);
  auto one = decode_share_tag(content[1]);
  if (one) CSV_CHECK(*decode_share_tag(encode(*one)) == *one);
}

void mounts(Input& input, std::uint8_t flags) {
  std::string text = kMounts;
  if ((flags & 0x40) != 0) text = text_of(input.rest());
  patch(input, std::as_writable_bytes(std::span{text}));
  auto found = mount_of(text, "/mnt/w x/tag");
  if (found) (void)check_share(*found);
}

std::string start(int kind, const std::string& rest = {}) {
  return std::string(1, static_cast<char>(kind)) + rest;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto what = input.take();
  switch (what & 0x0f) {
    case 0: return header(input, what);
    case 1: return slot(input, what);
    case 2: return copy(input, what);
    case 3: return share(input, what);
    case 4: return mounts(input, what);
    default: return;
  }
}

std::vector<Seed> seeds() {
  auto zeros = std::string(8, '\0');
  return {
      {"header", start(0)},
      {"header-cluster", start(0, patch_of(32, "\x01"))},
      {"header-version", start(0, patch_of(12, "\x02"))},
      {"header-torn", start(0x80, patch_of(2000, "torn"))},
      {"slot", start(1)},
      {"slot-no-hold", start(1, patch_of(40, zeros))},
      {"slot-no-key", start(1, patch_of(32, zeros))},
      {"slot-other-witness", start(1, patch_of(16, "x"))},
      {"slot-raw", start(0x41, "CSVWSLO\x1a")},
      {"copy", start(2)},
      {"copy-long", start(2, patch_of(56, "\xff\xff\xff\xff\xff\xff\xff\xff"))},
      {"copy-short", start(2, patch_of(56, std::string("\x10\0", 2)))},
      {"copy-torn", start(0x82, patch_of(6000, "torn"))},
      {"share", start(3)},
      {"share-older", start(3, patch_of(16, "\x01"))},
      {"share-text", start(0xc3, "some text that is no witness")},
      {"mounts", start(4)},
      {"mounts-local", start(4, patch_of(130, "local_lock=all"))},
      {"mounts-raw", start(0x44, "1 2 3:4 / / rw - nfs4 x vers=4\n - - - -\n\n\\999 \\04")},
  };
}

}  // namespace csv::fuzz
