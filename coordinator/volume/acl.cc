#include "coordinator/volume/acl.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "csvfs/base/endian.h"

namespace csv::volume {
namespace {

constexpr std::uint32_t kVersion = 2;
struct RawHeader {
  Le32 version;
};
struct RawEntry {
  Le16 tag, permissions;
  Le32 id;
};
constexpr std::size_t kHeader = sizeof(RawHeader), kEntry = sizeof(RawEntry);
static_assert(kHeader == 4 && kEntry == 8);
constexpr std::uint32_t kNobody = 0xffffffff;

Error invalid(const char* what) {
  return Error{std::errc::invalid_argument, std::string{"an access control list "} + what};
}

bool names_somebody(Acl::Tag tag) { return tag == Acl::Tag::user || tag == Acl::Tag::named_group; }

}  // namespace

Expected<Acl> Acl::parse(std::string_view bytes) {
  RawHeader header;
  if (bytes.size() < kHeader || (bytes.size() - kHeader) % kEntry != 0)
    return invalid("of unknown form");
  std::memcpy(&header, bytes.data(), kHeader);
  if (header.version != kVersion) return invalid("of unknown form");
  Acl acl;
  std::uint16_t last = 0;
  std::size_t singles = 0;
  bool named = false, masked = false;
  for (auto at = kHeader; at < bytes.size(); at += kEntry) {
    RawEntry raw;
    std::memcpy(&raw, bytes.data() + at, kEntry);
    const std::uint16_t tag = raw.tag;
    Entry entry{Tag{tag}, raw.permissions, raw.id};
    bool known = tag <= 0x20 && std::has_single_bit(tag);
    if (!known || entry.permissions > 7) return invalid("with an unknown entry");
    bool somebody = names_somebody(entry.tag);
    if (tag < last || (tag == last && !somebody)) return invalid("that is not in order");
    if (somebody && entry.id == kNobody) return invalid("that names nobody");
    named = named || somebody;
    masked = masked || entry.tag == Tag::mask;
    if (entry.tag == Tag::owner || entry.tag == Tag::group || entry.tag == Tag::others) ++singles;
    if (!somebody) entry.id = kNobody;
    last = tag;
    acl.entries_.push_back(entry);
  }
  if (singles != 3 || (named && !masked)) return invalid("that is not complete");
  return acl;
}

std::string Acl::encode() const {
  std::string bytes(kHeader + entries_.size() * kEntry, '\0');
  RawHeader header{kVersion};
  std::memcpy(bytes.data(), &header, kHeader);
  auto* at = bytes.data() + kHeader;
  for (const auto& entry : entries_) {
    RawEntry raw{static_cast<std::uint16_t>(entry.tag), entry.permissions, entry.id};
    std::memcpy(at, &raw, kEntry);
    at += kEntry;
  }
  return bytes;
}

Acl::Entry& Acl::first(Tag tag) {
  return *std::find_if(entries_.begin(), entries_.end(),
                       [tag](const Entry& each) { return each.tag == tag; });
}

const Acl::Entry* Acl::find(Tag tag) const {
  auto found = std::find_if(entries_.begin(), entries_.end(),
                            [tag](const Entry& each) { return each.tag == tag; });
  return found == entries_.end() ? nullptr : &*found;
}

std::uint32_t Acl::mode() const {
  return std::uint32_t{find(Tag::owner)->permissions} << 6 |
         std::uint32_t{find(of_group())->permissions} << 3 | find(Tag::others)->permissions;
}

bool Acl::is_minimal() const { return entries_.size() == 3; }

void Acl::set_mode(std::uint32_t mode) {
  first(Tag::owner).permissions = mode >> 6 & 7;
  first(of_group()).permissions = mode >> 3 & 7;
  first(Tag::others).permissions = mode & 7;
}

std::uint32_t Acl::inherit(std::uint32_t mode) {
  first(Tag::owner).permissions &= mode >> 6 & 7;
  first(of_group()).permissions &= mode >> 3 & 7;
  first(Tag::others).permissions &= mode & 7;
  return (mode & ~std::uint32_t{0777}) | this->mode();
}

}  // namespace csv::volume
