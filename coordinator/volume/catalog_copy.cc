#include "coordinator/volume/catalog_copy.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <map>

#include "coordinator/volume/bad_blocks.h"
#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/superblock.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

constexpr std::size_t kPagesAtOnce = (1u << 20) / disk::kPageSize;

std::uint64_t place_in(const CatalogCopy& copy, std::uint64_t page) {
  auto group = (page - 1) / disk::kPagesPerCopyGroup;
  return copy.places[group] + disk::kCopyPagesOffset +
         (page - 1) % disk::kPagesPerCopyGroup * disk::kPageSize;
}

std::uint32_t sum_of(std::span<const std::byte> page) {
  disk::PageTail tail;
  std::memcpy(&tail, page.data() + disk::kPageSize - sizeof tail, sizeof tail);
  return tail.crc;
}

std::uint32_t sum_of_sums(std::span<const std::uint32_t> sums) {
  std::uint32_t crc = 0;
  for (auto sum : sums) {
    Le32 stored{sum};
    crc = crc32c(std::as_bytes(std::span{&stored, 1}), crc);
  }
  return crc;
}

/// The pages of a copy that group `index` holds: from, to (from 1).
std::pair<std::uint64_t, std::uint64_t> pages_of(std::uint64_t pages, std::size_t index) {
  auto first = index * disk::kPagesPerCopyGroup + 1;
  return {first, std::min<std::uint64_t>(first + disk::kPagesPerCopyGroup, pages + 1)};
}

std::optional<disk::CopyHeader> decode(std::span<const std::byte> bytes, std::uint64_t at) {
  disk::CopyHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != disk::kCopyMagic || header.crc != crc32c(bytes.subspan(12)) ||
      header.format_version != disk::kFormatVersion || header.lun_offset != at ||
      header.slot >= kCopySlots || header.groups == 0 || header.groups > kMaxChunks ||
      header.index >= header.groups)
    return {};
  return header;
}

}  // namespace

std::string in_words(const CatalogCopy& copy) {
  auto seconds = static_cast<std::time_t>(static_cast<std::int64_t>(copy.taken_at) / 1'000'000'000);
  std::tm parts{};
  std::array<char, 32> text{};
  if (::gmtime_r(&seconds, &parts) == nullptr ||
      std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &parts) == 0)
    return fmt::format("copy {} of the catalog", copy.slot);
  return fmt::format("copy {} of the catalog, taken {} UTC", copy.slot, text.data());
}

Buffer encode_copy_header(const CatalogCopy& copy, std::size_t index) {
  disk::CopyHeader header{};
  header.magic = disk::kCopyMagic;
  header.format_version = disk::kFormatVersion;
  header.volume_id = copy.info.id;
  header.lun_offset = copy.places[index];
  header.slot = copy.slot;
  header.index = static_cast<std::uint32_t>(index);
  header.sequence = copy.sequence;
  header.taken_at = static_cast<std::uint64_t>(copy.taken_at);
  header.pages = copy.pages;
  header.groups = static_cast<std::uint32_t>(copy.places.size());
  header.sums = copy.sums[index];
  header.epoch = raw(copy.info.epoch);
  header.crc = crc32c(std::as_bytes(std::span{&header, 1}).subspan(12));
  return Buffer::copy_of(std::as_bytes(std::span{&header, 1}));
}

Expected<CopyMark> read_copy_mark(iscsi::BlockingLun& lun, const VolumeId& volume,
                                  std::uint64_t place) {
  Buffer bytes{sizeof(disk::CopyHeader)};
  const std::array<iscsi::BlockingLun::Read, 1> read = {{{place, bytes.span()}}};
  CSV_TRY(read_around_bad_blocks(lun, read));
  auto header = decode(bytes.span(), place);
  if (!header || header->volume_id != volume) return CopyMark{};
  return CopyMark{header->sequence,
                  WallTime{static_cast<std::int64_t>(std::uint64_t{header->taken_at})}};
}

Expected<std::vector<CatalogCopy>> find_copies(iscsi::BlockingLun& lun,
                                               const std::optional<VolumeId>& volume,
                                               std::uint64_t first, std::uint64_t step) {
  struct Key {
    VolumeId volume{};
    std::uint32_t slot = 0;
    std::uint64_t sequence = 0;
    auto operator<=>(const Key&) const = default;
  };
  std::map<Key, std::map<std::uint32_t, disk::CopyHeader>> found;
  constexpr std::size_t kAtOnce = 64;
  std::vector<Buffer> headers(kAtOnce);
  for (auto& each : headers) each = Buffer{sizeof(disk::CopyHeader)};
  auto end = lun.lun().geometry().size_bytes();
  for (auto at = first; at + kGroupSize <= end;) {
    std::vector<iscsi::BlockingLun::Read> reads;
    for (; reads.size() < kAtOnce && at + kGroupSize <= end; at += step)
      reads.push_back({at, headers[reads.size()].span()});
    CSV_TRY(read_around_bad_blocks(lun, reads));
    for (const auto& one : reads)
      if (auto header = decode(one.out, one.offset);
          header && (!volume || header->volume_id == *volume))
        found[{header->volume_id, header->slot, header->sequence}][header->index] = *header;
  }
  std::vector<CatalogCopy> copies;
  for (const auto& [key, groups] : found) {
    const auto& any = groups.begin()->second;
    if (groups.size() != any.groups || copy_groups(any.pages) != any.groups) continue;
    CatalogCopy copy;
    copy.slot = key.slot;
    copy.sequence = key.sequence;
    copy.taken_at = WallTime{static_cast<std::int64_t>(std::uint64_t{any.taken_at})};
    copy.pages = any.pages;
    for (const auto& [index, header] : groups) {
      copy.places.push_back(header.lun_offset);
      copy.sums.push_back(header.sums);
    }
    Buffer superblock{disk::kSuperblockSize};
    const std::array<iscsi::BlockingLun::Read, 1> read = {
        {{copy.places.front() + disk::kCopySuperblockOffset, superblock.span()}}};
    CSV_TRY(read_around_bad_blocks(lun, read));
    auto decoded = decode_superblock(superblock.span(), Copy::c);
    if (decoded.state != FoundSuperblock::State::valid || decoded.info.id != key.volume) continue;
    copy.info = std::move(decoded.info);
    copies.push_back(std::move(copy));
  }
  std::sort(copies.begin(), copies.end(),
            [](const auto& a, const auto& b) { return a.sequence > b.sequence; });
  return copies;
}

Expected<void> extract_copy(iscsi::BlockingLun& lun, const CatalogCopy& copy,
                            const std::string& path) {
  std::ofstream file{path, std::ios::binary | std::ios::trunc};
  auto damaged = [&](std::uint64_t page) {
    return Error{Errc::corrupt,
                 fmt::format("the copy of the catalog in slot {} is damaged at page {}, LUN offset "
                             "{}",
                             copy.slot, page, place_in(copy, page))};
  };
  Buffer piece{kPagesAtOnce * disk::kPageSize};
  for (std::size_t index = 0; index < copy.places.size(); ++index) {
    auto [first, end] = pages_of(copy.pages, index);
    std::vector<std::uint32_t> sums;
    for (auto page = first; page < end;) {
      auto count = std::min<std::uint64_t>(kPagesAtOnce, end - page);
      auto bytes = piece.span().first(count * disk::kPageSize);
      // What the LUN cannot read is zeros, whose sums are wrong.
      const std::array<iscsi::BlockingLun::Read, 1> read = {{{place_in(copy, page), bytes}}};
      CSV_TRY(read_around_bad_blocks(lun, read));
      for (std::uint64_t i = 0; i < count; ++i) {
        auto one = bytes.subspan(i * disk::kPageSize, disk::kPageSize);
        sums.push_back(sum_of(one));
        if (sums.back() != page_checksum(copy.info.id, static_cast<std::uint32_t>(page + i), one))
          return damaged(page + i);
      }
      file.write(reinterpret_cast<const char*>(bytes.data()),
                 static_cast<std::streamsize>(bytes.size()));
      page += count;
    }
    // Whole pages of an older copy have good sums of their own.
    if (sum_of_sums(sums) != copy.sums[index]) return damaged(first);
  }
  file.flush();
  if (!file) return Error{std::errc::io_error, "writing " + path};
  return {};
}

// --- Taking ---------------------------------------------------------------------------

Expected<std::unique_ptr<CopyTaker>> CopyTaker::begin(CatalogStore& store, CatalogCopy target) {
  auto* images = images_of(store);
  if (images == nullptr)
    return Error{Errc::refused, "no image of this catalog's pages can be taken"};
  std::unique_ptr<CopyTaker> taker{new CopyTaker{store, *images, std::move(target)}};
  auto& copy = taker->copy_;
  copy.info = store.info();
  copy.pages = CSV_TRY(images->begin_image());
  taker->sums_.resize(copy.pages);
  if (copy.places.size() < copy_groups(copy.pages)) copy.places.clear();
  if (!copy.places.empty()) copy.places.resize(copy_groups(copy.pages));
  // What was there counts no more, before a byte of it changes.
  auto cleared = taker->put([&copy, &lun = store.lun()]() -> Expected<void> {
    for (auto at : copy.places) CSV_TRY(lun.write_zeroes(at, sizeof(disk::CopyHeader)));
    return lun.flush();
  });
  if (!cleared) return cleared.error();
  return taker;
}

CopyTaker::~CopyTaker() { images_->end_image(); }

/// A thin LUN without space has no copy, as one that has no group left; the file is made all the
/// same.
Expected<void> CopyTaker::put(const std::function<Expected<void>()>& write) {
  if (!on_lun()) return {};
  auto written = write();
  if (written || !(written.error() == std::errc::no_space_on_device)) return written;
  log::warning("no copy of the catalog on its LUN volume={} why=\"{}\"", copy_.info.label,
               written.error().message());
  copy_.places.clear();
  return {};
}

Expected<std::vector<CopyTaker::Piece>> CopyTaker::next() {
  auto pages = CSV_TRY(images_->more_image(kPagesAtOnce));
  std::vector<Piece> pieces;
  // Neighbours together: the pages come in order, but for those that were saved from the catalog.
  for (std::size_t i = 0; i < pages.size();) {
    auto end = i + 1;
    auto same_group = [&](std::size_t at) {
      return (pages[at].page - 1) / disk::kPagesPerCopyGroup ==
             (pages[i].page - 1) / disk::kPagesPerCopyGroup;
    };
    while (end < pages.size() && end - i < kPagesAtOnce &&
           pages[end].page == pages[end - 1].page + 1 && same_group(end))
      ++end;
    Piece piece{pages[i].page, Buffer{(end - i) * disk::kPageSize}};
    for (auto at = i; at < end; ++at) {
      sums_[pages[at].page - 1] = sum_of(pages[at].content.span());
      std::memcpy(piece.content.data() + (at - i) * disk::kPageSize, pages[at].content.data(),
                  disk::kPageSize);
    }
    CSV_TRY(put(
        [&] { return store_->lun().write(place_in(copy_, piece.page), piece.content.span()); }));
    pieces.push_back(std::move(piece));
    i = end;
  }
  done_ += pages.size();
  return pieces;
}

Expected<void> CopyTaker::finish() {
  if (!on_lun()) return {};
  auto& lun = store_->lun();
  copy_.sums.clear();
  for (std::size_t i = 0; i < copy_.places.size(); ++i) {
    auto [first, end] = pages_of(copy_.pages, i);
    copy_.sums.push_back(sum_of_sums(std::span{sums_}.subspan(first - 1, end - first)));
  }
  return put([&]() -> Expected<void> {
    CSV_TRY(lun.write(copy_.places.front() + disk::kCopySuperblockOffset,
                      encode_superblock(copy_.info, Copy::c).span()));
    CSV_TRY(lun.flush());
    for (std::size_t i = 0; i < copy_.places.size(); ++i)
      CSV_TRY(lun.write(copy_.places[i], encode_copy_header(copy_, i).span()));
    return lun.flush();
  });
}

}  // namespace csv::volume
