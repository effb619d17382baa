#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

using namespace std::string_view_literals;

constexpr std::uint64_t kHead = 2ull << 20;  ///< Looked at from the start of the LUN.
constexpr std::uint64_t kTail = 1ull << 20;  ///< And up to its end.

/// The start and the end of a LUN in memory; what lies between reads as nothing.
class Ends {
 public:
  static Expected<Ends> read(iscsi::BlockingLun& lun) {
    Ends ends;
    auto size = lun.lun().geometry().size_bytes();
    ends.size_ = size;
    ends.head_ = Buffer{std::min(kHead, size)};
    ends.tail_ = Buffer{std::min(kTail, size)};
    const std::array<iscsi::BlockingLun::Read, 2> reads = {
        {{0, ends.head_.span()}, {size - ends.tail_.size(), ends.tail_.span()}}};
    if (auto read = lun.read(reads); !read)
      return read.error().within("looking at what is on the LUN");
    return ends;
  }
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] std::span<const std::byte> head() const { return head_.span(); }
  [[nodiscard]] std::span<const std::byte> tail() const { return tail_.span(); }

  /// Empty where it was not read.
  [[nodiscard]] std::string_view text(std::uint64_t at, std::size_t length) const {
    auto from = [&](const Buffer& part, std::uint64_t start) -> std::optional<std::string_view> {
      if (at < start || at - start > part.size() || length > part.size() - (at - start)) return {};
      return std::string_view{reinterpret_cast<const char*>(part.data()) + (at - start), length};
    };
    if (auto found = from(head_, 0)) return *found;
    return from(tail_, size_ - tail_.size()).value_or(""sv);
  }
  [[nodiscard]] bool has(std::uint64_t at, std::string_view what) const {
    return text(at, what.size()) == what;
  }
  /// 0 where it was not read.
  [[nodiscard]] std::uint32_t le32(std::uint64_t at) const {
    std::uint32_t value = 0;
    auto bytes = text(at, 4);
    for (auto c = bytes.rbegin(); c != bytes.rend(); ++c)
      value = (value << 8) | static_cast<unsigned char>(*c);
    return value;
  }
  /// As a name to show: up to the first NUL, nothing unprintable.
  [[nodiscard]] std::string label(std::uint64_t at, std::size_t length) const {
    std::string shown;
    for (unsigned char c : text(at, length)) {
      if (c == 0) break;
      shown += c < ' ' || c == 0x7f ? '?' : static_cast<char>(c);
    }
    while (!shown.empty() && shown.back() == ' ') shown.pop_back();
    return shown;
  }

 private:
  std::uint64_t size_ = 0;
  Buffer head_, tail_;
};

std::string named(std::string what, const std::string& label) {
  return label.empty() ? what : fmt::format("{} with label \"{}\"", what, label);
}

// Each of these says what it found, or nothing.

std::string ours(const Ends& lun) {
  if (lun.size() < disk::kSuperblockSize) return {};
  auto found = decode_superblock(lun.head().first(disk::kSuperblockSize), Copy::a);
  switch (found.state) {
    case FoundSuperblock::State::absent: return {};
    case FoundSuperblock::State::valid:
      return fmt::format("the csvfs volume \"{}\" (id {}) of cluster {}", found.info.label,
                         to_string(found.info.id), found.info.cluster);
    case FoundSuperblock::State::newer: return "a csvfs volume of a newer version";
    case FoundSuperblock::State::damaged: break;
  }
  return "a csvfs volume with a damaged superblock";
}

std::string ext(const Ends& lun) {
  if (!lun.has(1024 + 56, "\x53\xef"sv)) return {};
  constexpr std::uint32_t kJournal = 0x4, kJournalDevice = 0x8;
  constexpr std::uint32_t kExtents = 0x40, k64Bit = 0x80, kFlexGroups = 0x200;
  auto compatible = lun.le32(1024 + 92), incompatible = lun.le32(1024 + 96);
  auto label = lun.label(1024 + 120, 16);
  if ((incompatible & kJournalDevice) != 0) return named("an external journal of ext4", label);
  if ((incompatible & (kExtents | k64Bit | kFlexGroups)) != 0)
    return named("an ext4 file system", label);
  return named((compatible & kJournal) != 0 ? "an ext3 file system" : "an ext2 file system", label);
}

std::string lvm(const Ends& lun) {
  for (std::uint64_t at = 0; at < 2048; at += 512)
    if (lun.has(at, "LABELONE"sv) && lun.has(at + 24, "LVM2 001"sv))
      return "an LVM physical volume";
  return {};
}

std::string md_raid(const Ends& lun) {
  constexpr auto kMagic = "\xfc\x4e\x2b\xa9"sv;
  auto last = lun.size() / 512 * 512;
  std::vector<std::uint64_t> places = {0, 4096};                                   // 1.1, 1.2
  if (last >= 16 * 512) places.push_back((last - 16 * 512) / 4096 * 4096);         // 1.0
  if (lun.size() >= 131072) places.push_back(lun.size() / 65536 * 65536 - 65536);  // 0.90
  for (auto at : places)
    if (lun.has(at, kMagic)) return "a member of a Linux software RAID (md)";
  return {};
}

std::string zfs(const Ends& lun) {
  constexpr std::uint64_t kLabel = 256 << 10, kUberblocks = 128 << 10;
  auto whole = lun.size() / kLabel * kLabel;
  if (whole < 4 * kLabel) return {};
  for (auto label : {std::uint64_t{0}, kLabel, whole - 2 * kLabel, whole - kLabel})
    for (auto at = label + kUberblocks; at < label + kLabel; at += 1024)
      if (lun.has(at, "\x0c\xb1\xba\x00"sv) || lun.has(at + 4, "\x00\xba\xb1\x0c"sv))
        return "a member of a ZFS pool";
  return {};
}

std::string swap_space(const Ends& lun) {
  for (std::uint64_t page = 4096; page <= 65536; page *= 2)
    for (auto magic : {"SWAPSPACE2"sv, "SWAP-SPACE"sv, "S1SUSPEND\0"sv, "LINHIB0001"sv})
      if (lun.has(page - 10, magic))
        return magic.starts_with("SWAP") ? "Linux swap space" : "a hibernated Linux system";
  return {};
}

std::string ocfs2(const Ends& lun) {
  for (std::uint64_t block = 512; block <= 4096; block *= 2)
    if (lun.has(2 * block, "OCFSV2"sv)) return "an OCFS2 file system";
  return {};
}

std::string drbd(const Ends& lun) {
  if (lun.size() < 8192) return {};
  auto magic = lun.text(lun.size() / 4096 * 4096 - 4096 + 60, 4);
  for (auto known :
       {"\x83\x74\x02\x67"sv, "\x83\x74\x02\x6b"sv, "\x83\x74\x02\x6c"sv, "\x83\x74\x02\x6d"sv})
    if (magic == known) return "a DRBD device";
  return {};
}

/// What a boot sector with the 55 AA mark is.
std::string boot_sector(const Ends& lun) {
  if (!lun.has(510, "\x55\xaa"sv)) return {};
  if (lun.has(3, "NTFS    "sv)) return "an NTFS file system";
  if (lun.has(3, "EXFAT   "sv)) return "an exFAT file system";
  if (lun.has(3, "-FVE-FS-"sv)) return "a BitLocker volume";
  if (lun.has(54, "FAT1"sv)) return "a FAT file system";
  if (lun.has(82, "FAT32"sv)) return "a FAT file system";
  bool used = false, protective = false;
  for (std::uint64_t entry = 446; entry < 510; entry += 16) {
    auto type = lun.text(entry + 4, 1);
    used = used || type != "\0"sv;
    protective = protective || type == "\xee"sv;
  }
  if (protective) return "a GPT partition table";
  return used ? "an MBR partition table" : "a boot sector";
}

std::string gpt(const Ends& lun) {
  auto last = lun.size();
  for (std::uint64_t at : {std::uint64_t{512}, std::uint64_t{4096}, last - 512, last - 4096})
    if (lun.has(at, "EFI PART"sv)) return "a GPT partition table";
  return {};
}

struct Signature {
  std::uint64_t at;
  std::string_view bytes;
  const char* what;
  std::uint64_t label = 0;
  std::size_t label_length = 0;
};
constexpr Signature kSignatures[] = {
    {0, "XFSB"sv, "an XFS file system", 108, 12},
    {65536 + 64, "_BHRfS_M"sv, "a Btrfs file system", 65536 + 299, 64},
    {0, "LUKS\xba\xbe"sv, "a LUKS-encrypted volume"},
    {0x4000, "SKUL\xba\xbe"sv, "a LUKS-encrypted volume"},
    {1 << 20, "\x0d\xd0\x01\xc0"sv, "a VMFS volume"},
    {65536, "\x01\x16\x19\x70"sv, "a GFS2 file system"},
    {1024, "\x10\x20\xf5\xf2"sv, "an F2FS file system"},
    {3, "ReFS\0\0\0\0"sv, "a ReFS file system"},
    {32769, "CD001"sv, "an ISO 9660 file system", 32768 + 40, 32},
    {4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"sv,
     "a bcache device"},
    {4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"sv,
     "a bcachefs file system"},
    {0, "bluestore block device"sv, "a Ceph OSD"},
    {32, "ORCLDISK"sv, "an Oracle ASM disk"},
    {65536 + 52, "ReIsEr"sv, "a ReiserFS file system"},
    {32768, "JFS1"sv, "a JFS file system"},
};

std::string by_table(const Ends& lun) {
  for (const auto& each : kSignatures)
    if (lun.has(each.at, each.bytes))
      return named(each.what, lun.label(each.label, each.label_length));
  return {};
}

std::string anything(const Ends& lun) {
  auto first = lun.head().first(std::min<std::size_t>(lun.head().size(), 1 << 20));
  bool zero = std::all_of(first.begin(), first.end(), [](std::byte b) { return b == std::byte{}; });
  return zero ? "" : "data of an unknown kind";
}

/// Superblock B lies where the ends do not reach; it stands alone when A was overwritten.
Expected<std::string> ours_by_copy_b(iscsi::BlockingLun& lun) {
  if (lun.lun().geometry().size_bytes() < disk::kSuperblockB + disk::kSuperblockSize)
    return std::string{};
  Buffer bytes{disk::kSuperblockSize};
  if (auto read = lun.read(disk::kSuperblockB, bytes.span()); !read)
    return read.error().within("looking at what is on the LUN");
  auto found = decode_superblock(bytes.span(), Copy::b);
  if (found.state != FoundSuperblock::State::valid) return std::string{};
  return fmt::format("the csvfs volume \"{}\" (id {}) with superblock A overwritten",
                     found.info.label, to_string(found.info.id));
}

}  // namespace

Expected<std::string> recognise(iscsi::BlockingLun& lun) {
  if (lun.lun().geometry().size_bytes() == 0) return std::string{};
  auto ends = CSV_TRY(Ends::read(lun));
  // In the order of certainty: what may contain another's signature comes before it.
  for (auto* look :
       {ours, lvm, md_raid, by_table, ext, zfs, ocfs2, swap_space, gpt, boot_sector, drbd})
    if (auto found = look(ends); !found.empty()) return found;
  auto copy_b = CSV_TRY(ours_by_copy_b(lun));
  return copy_b.empty() ? anything(ends) : copy_b;
}

}  // namespace csv::volume
