#include "coordinator/volume/catalog_pages.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "coordinator/volume/bad_blocks.h"
#include "coordinator/volume/superblock.h"
#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {

static_assert(kChunkSize == (disk::kPagesPerChunk + 1ull) * disk::kPageSize);

constexpr std::uint64_t kWriteSize = 1ull << 20;
constexpr int kWriteDepth = 32;
constexpr std::size_t kHeaderSize = 100;  ///< SQLite's, of the first page.

std::uint32_t chunk_of(std::uint32_t page) { return (page - 1) / disk::kPagesPerChunk; }

bool zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{}; });
}

std::uint32_t big_endian(std::span<const std::byte> bytes) {
  std::uint32_t value = 0;
  for (auto b : bytes) value = (value << 8) | std::to_integer<std::uint32_t>(b);
  return value;
}

/// SQLite's header says: pages of 4096 bytes, 8 of them reserved for us.
bool leaves_our_bytes_alone(std::span<const std::byte> first_page) {
  return big_endian(first_page.subspan(16, 2)) == disk::kPageSize &&
         big_endian(first_page.subspan(20, 1)) == disk::kPageReserve;
}

}  // namespace

Buffer encode_chunk_header(const VolumeId& volume, std::uint32_t index, std::uint64_t at,
                           std::uint64_t sequence) {
  disk::ChunkHeader block{};
  block.magic = disk::kChunkMagic;
  block.format_version = disk::kFormatVersion;
  block.volume_id = volume;
  block.lun_offset = at;
  block.index = index;
  block.sequence = sequence;
  block.crc = crc32c(std::as_bytes(std::span{&block, 1}).subspan(12));
  return Buffer::copy_of(std::as_bytes(std::span{&block, 1}));
}

std::string chunk_header_problem(std::span<const std::byte> bytes, const VolumeInfo& info,
                                 std::uint32_t index) {
  disk::ChunkHeader block;
  CSV_CHECK(bytes.size() == sizeof block && index < info.chunks.size());
  std::memcpy(&block, bytes.data(), sizeof block);
  if (block.magic != disk::kChunkMagic) return "there is no chunk header";
  if (block.crc != crc32c(bytes.subspan(12))) return "the header's checksum is wrong";
  if (block.format_version != disk::kFormatVersion)
    return fmt::format("the header has format version {}", +block.format_version);
  if (block.volume_id != info.id)
    return fmt::format("the header is of another volume, {}", to_string(block.volume_id));
  if (block.index != index) return fmt::format("the header is chunk {}'s", +block.index);
  if (block.lun_offset != info.chunks[index])
    return fmt::format("the header belongs at offset {}", +block.lun_offset);
  return {};
}

Expected<std::vector<ChunkHeaderFound>> read_chunk_headers(iscsi::BlockingLun& lun,
                                                           const VolumeInfo& info,
                                                           std::uint32_t first,
                                                           std::uint32_t count) {
  std::vector<Buffer> headers;
  std::vector<iscsi::BlockingLun::Read> reads;
  for (std::uint32_t i = first; i < first + count; ++i)
    reads.push_back({info.chunks[i], headers.emplace_back(sizeof(disk::ChunkHeader)).span()});
  auto bad = CSV_TRY(read_around_bad_blocks(lun, reads));
  std::vector<ChunkHeaderFound> found(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    found[i].problem = bad.within(reads[i].offset, sizeof(disk::ChunkHeader));
    if (found[i].problem.empty())
      found[i].problem = chunk_header_problem(headers[i].span(), info, first + i);
    if (!found[i].problem.empty()) continue;
    disk::ChunkHeader header;
    std::memcpy(&header, headers[i].data(), sizeof header);
    found[i].sequence = header.sequence;
  }
  return found;
}

std::uint64_t place_of_page(const VolumeInfo& info, std::uint32_t page) {
  CSV_CHECK(page > 0 && chunk_of(page) < info.chunks.size());
  auto within = (page - 1) % disk::kPagesPerChunk + 1ull;  // Behind the chunk's header.
  return info.chunks[chunk_of(page)] + within * disk::kPageSize;
}

std::uint32_t page_checksum(const VolumeId& volume, std::uint32_t page,
                            std::span<const std::byte> bytes) {
  Le32 number{page};
  auto crc = crc32c(volume);
  crc = crc32c(std::as_bytes(std::span{&number, 1}), crc);
  return crc32c(bytes.first(disk::kPageSize - disk::kPageReserve), crc);
}

Expected<CatalogPages> CatalogPages::open(iscsi::BlockingLun& lun, const VolumeInfo& info) {
  CatalogPages pages{lun, info};
  if (info.chunks.empty()) return pages;
  CSV_TRY(pages.verify_chunk(0));
  Buffer first{disk::kPageSize};
  auto fetched = pages.fetch(1, first.span());
  if (!fetched && fetched.error() != Errc::corrupt) return fetched.error();
  if (fetched && zero(first.span())) return pages;  // Never used.
  // A first page torn by an interrupted checkpoint is whole in the log, which then also says the
  // size; if not, SQLite meets the bad page.
  pages.size_ = fetched && pages.verify(1, first.span())
                    ? std::uint64_t{big_endian(first.span().subspan(28, 4))} * disk::kPageSize
                    : std::uint64_t{pages.mapped_pages()} * disk::kPageSize;
  return pages;
}

std::uint32_t CatalogPages::mapped_pages() const {
  return static_cast<std::uint32_t>(info_->chunks.size() * disk::kPagesPerChunk);
}

Expected<void> CatalogPages::verify_chunk(std::uint32_t index) {
  verified_.resize(info_->chunks.size());
  if (verified_[index]) return {};
  if (auto found = CSV_TRY(read_chunk_headers(*lun_, *info_, index, 1)).front();
      !found.problem.empty())
    return Error{Errc::corrupt, fmt::format("catalog chunk {} at LUN offset {}: {}", index,
                                            info_->chunks[index], found.problem)};
  verified_[index] = true;
  return {};
}

Expected<void> CatalogPages::fetch(std::uint32_t page, std::span<std::byte> out) {
  if (auto held = held_.find(page); held != held_.end()) {
    std::memcpy(out.data(), held->second.data(), disk::kPageSize);
    return {};
  }
  if (page > mapped_pages())
    return Error{Errc::corrupt, fmt::format("catalog page {} lies behind the {} mapped chunks",
                                            page, info_->chunks.size())};
  CSV_TRY(verify_chunk(chunk_of(page)));
  auto at = place_of_page(*info_, page);
  auto read = lun_->read(at, out.first(disk::kPageSize));
  if (read) return {};
  if (is_bad_block(read.error())) read = Error{Errc::corrupt, read.error().message()};
  return read.error().within(fmt::format("reading catalog page {} at LUN offset {}", page, at));
}

Expected<void> CatalogPages::verify(std::uint32_t page, std::span<const std::byte> bytes) const {
  disk::PageTail tail;
  std::memcpy(&tail, bytes.data() + disk::kPageSize - sizeof tail, sizeof tail);
  if (tail.crc == page_checksum(info_->id, page, bytes)) return {};
  return Error{Errc::corrupt,
               fmt::format("catalog page {} of volume {} at LUN offset {}: its checksum is wrong",
                           page, info_->label, place_of_page(*info_, page))};
}

Expected<std::size_t> CatalogPages::read(std::uint64_t offset, std::span<std::byte> out) {
  auto page = static_cast<std::uint32_t>(offset / disk::kPageSize) + 1;
  auto within = offset % disk::kPageSize;
  bool look = page == 1 && within + out.size() <= kHeaderSize;
  // What size pages have SQLite takes from the first one's header, which may say anything.
  if (within + out.size() > disk::kPageSize ||
      (page == 1 && !look && out.size() != disk::kPageSize))
    return Error{Errc::corrupt,
                 fmt::format("the catalog of volume {} does not have pages of {} bytes: {} were "
                             "asked for",
                             info_->label, disk::kPageSize, out.size())};
  if (offset >= size_) {
    std::memset(out.data(), 0, out.size());
    return std::size_t{0};
  }
  auto whole = Buffer::zeroed(disk::kPageSize);
  auto fetched = fetch(page, whole.span());
  if (!fetched && !(look && fetched.error() == Errc::corrupt)) return fetched.error();
  if (!look) CSV_TRY(verify(page, whole.span()));
  std::memcpy(out.data(), whole.data() + within, out.size());
  return out.size();
}

Expected<void> CatalogPages::write(std::uint64_t offset, std::span<const std::byte> data) {
  auto page = offset / disk::kPageSize + 1;
  if (offset % disk::kPageSize != 0 || data.size() != disk::kPageSize)
    return Error{Errc::refused, fmt::format("a write of {} bytes at {} is not a catalog page",
                                            data.size(), offset)};
  if (page > mapped_pages())
    return Error{Errc::refused, fmt::format("catalog page {} lies behind the {} mapped chunks",
                                            page, info_->chunks.size())};
  if (page == 1 && !leaves_our_bytes_alone(data))
    return Error{Errc::refused, "the catalog's pages must have 4096 bytes, 8 of them reserved"};
  auto number = static_cast<std::uint32_t>(page);
  auto copy = Buffer::copy_of(data);
  disk::PageTail tail{page_checksum(info_->id, number, copy.span()), 0};
  std::memcpy(copy.data() + disk::kPageSize - sizeof tail, &tail, sizeof tail);
  held_.insert_or_assign(number, std::move(copy));
  size_ = std::max(size_, offset + data.size());
  return {};
}

void CatalogPages::truncate(std::uint64_t size) {
  size_ = std::min(size_, size);
  held_.erase(held_.upper_bound(static_cast<std::uint32_t>(size_ / disk::kPageSize)), held_.end());
}

Expected<std::uint32_t> CatalogPages::begin_image() {
  if (!held_.empty()) return Error{Errc::refused, "pages wait to be written"};
  auto pages = static_cast<std::uint32_t>(size_ / disk::kPageSize);
  image_ = Image{};
  image_->taken.resize(pages + 1ull);
  image_->unused.resize(pages + 1ull);
  if (pages > 0) CSV_TRY(find_unused());
  return pages;
}

/// The leaves of SQLite's free list (its file format, 1.5).
Expected<void> CatalogPages::find_unused() {
  Buffer page{disk::kPageSize};
  CSV_TRY(fetch(1, page.span()));
  CSV_TRY(verify(1, page.span()));
  // Where SQLite's locks would be it never has a page.
  constexpr std::uint32_t kLockPage = 0x40000000 / disk::kPageSize + 1;
  if (kLockPage < image_->unused.size()) image_->unused[kLockPage] = true;
  auto trunk = big_endian(page.span().subspan(32, 4));
  std::vector<bool> seen(image_->unused.size());
  while (trunk != 0) {
    if (trunk >= seen.size() || seen[trunk])
      return Error{Errc::corrupt, "the catalog's list of free pages is damaged"};
    seen[trunk] = true;
    CSV_TRY(fetch(trunk, page.span()));
    CSV_TRY(verify(trunk, page.span()));
    auto leaves = big_endian(page.span().subspan(4, 4));
    for (std::uint64_t i = 0; i < leaves && 8 + 4 * i + 4 <= disk::kPageSize; ++i)
      if (auto leaf = big_endian(page.span().subspan(8 + 4 * i, 4)); leaf < seen.size())
        image_->unused[leaf] = true;
    trunk = big_endian(page.span().first(4));
  }
  return {};
}

/// Reads pages of the LUN, whatever is held, and verifies them.
Expected<void> CatalogPages::fetch_all(std::vector<CatalogImages::ImagePage>& pages) {
  std::vector<iscsi::BlockingLun::Read> reads;
  for (auto& each : pages) {
    if (image_->unused[each.page]) {
      each.content = Buffer::zeroed(disk::kPageSize);
      disk::PageTail tail{page_checksum(info_->id, each.page, each.content.span()), 0};
      std::memcpy(each.content.data() + disk::kPageSize - sizeof tail, &tail, sizeof tail);
      continue;
    }
    CSV_TRY(verify_chunk(chunk_of(each.page)));
    each.content = Buffer{disk::kPageSize};
    reads.push_back({place_of_page(*info_, each.page), each.content.span()});
  }
  auto bad = CSV_TRY(read_around_bad_blocks(*lun_, reads, kWriteDepth));
  for (const auto& read : reads)
    if (auto why = bad.within(read.offset, read.out.size()); !why.empty())
      return Error{Errc::corrupt, "a catalog page: " + why};
  for (const auto& each : pages) CSV_TRY(verify(each.page, each.content.span()));
  return {};
}

Expected<void> CatalogPages::keep_for_image() {
  std::vector<CatalogImages::ImagePage> pages;
  for (const auto& [page, content] : held_) {
    if (page >= image_->taken.size() || image_->taken[page]) continue;
    image_->taken[page] = true;
    pages.push_back({page, {}});
  }
  CSV_TRY(fetch_all(pages));
  for (auto& each : pages) image_->kept.push_back(std::move(each));
  return {};
}

Expected<std::vector<CatalogImages::ImagePage>> CatalogPages::more_image(std::size_t limit) {
  if (!image_) return Error{Errc::refused, "there is no image"};
  CSV_TRY(Expected<void>{image_->failed});
  std::vector<CatalogImages::ImagePage> pages;
  for (; pages.size() < limit && image_->next < image_->taken.size(); ++image_->next) {
    if (image_->taken[image_->next]) continue;
    image_->taken[image_->next] = true;
    pages.push_back({image_->next, {}});
  }
  CSV_TRY(fetch_all(pages));
  auto kept = std::exchange(image_->kept, {});
  for (auto& each : kept) pages.push_back(std::move(each));
  return pages;
}

Expected<void> CatalogPages::sync() {
  if (held_.empty()) return {};
  if (image_ && image_->failed) {
    auto kept = keep_for_image();
    if (!kept && kept.error() != Errc::corrupt) return kept;
    image_->failed = kept;
  }
  struct RunOfPages {
    std::uint64_t at = 0;
    std::vector<const Buffer*> pages;
  };
  std::vector<RunOfPages> runs;
  for (const auto& [page, content] : held_) {
    CSV_TRY(verify_chunk(chunk_of(page)));  // Not over something that is not the catalog.
    auto at = place_of_page(*info_, page);
    bool joins = !runs.empty() && runs.back().pages.size() < kWriteSize / disk::kPageSize &&
                 runs.back().at + runs.back().pages.size() * disk::kPageSize == at;
    if (!joins) runs.push_back({at, {}});
    runs.back().pages.push_back(&content);
  }
  std::sort(runs.begin(), runs.end(), [](auto& a, auto& b) { return a.at < b.at; });
  std::vector<Buffer> content;
  std::vector<iscsi::BlockingLun::Write> writes;
  for (const auto& run : runs) {
    auto& bytes = content.emplace_back(run.pages.size() * disk::kPageSize);
    for (std::size_t i = 0; i < run.pages.size(); ++i)
      std::memcpy(bytes.data() + i * disk::kPageSize, run.pages[i]->data(), disk::kPageSize);
    writes.push_back({run.at, bytes.span()});
  }
  CSV_TRY(lun_->write(writes, {}, kWriteDepth));
  if (lun_->lun().profile().write_cache) CSV_TRY(lun_->flush());
  held_.clear();
  return {};
}

Expected<std::vector<std::string>> chunk_problems(iscsi::BlockingLun& lun, const VolumeInfo& info) {
  auto count = static_cast<std::uint32_t>(info.chunks.size());
  auto found = CSV_TRY(read_chunk_headers(lun, info, 0, count));
  std::vector<std::string> problems;
  for (std::uint32_t i = 0; i < count; ++i)
    if (!found[i].problem.empty())
      problems.push_back(fmt::format("catalog chunk {} at LUN offset {}: {}", i, info.chunks[i],
                                     found[i].problem));
  return problems;
}

}  // namespace csv::volume
