#include "coordinator/volume/bad_blocks.h"

#include <algorithm>

#include "csvfs/base/buffer.h"
#include "csvfs/base/log.h"

namespace csv::volume {
namespace {
constexpr std::uint64_t kPiece = 4096;
}

bool is_bad_block(const Error& error) { return error == Errc::bad_medium; }

void BadBlocks::add(std::uint64_t offset, std::uint64_t length, const Error& why) {
  blocks_.push_back({offset, length, why.message()});
}

void BadBlocks::add(const BadBlocks& more) {
  blocks_.insert(blocks_.end(), more.blocks_.begin(), more.blocks_.end());
}

std::string BadBlocks::within(std::uint64_t offset, std::uint64_t length) const {
  auto found = std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& block) {
    return block.offset < offset + length && offset < block.offset + block.length;
  });
  return found == blocks_.end()
             ? std::string{}
             : fmt::format("LUN offset {} cannot be read: {}", found->offset, found->why);
}

Expected<void> BadBlocks::check_still_bad(iscsi::BlockingLun& lun) const {
  for (const auto& block : blocks_) {
    Buffer content{block.length};
    auto got = lun.read(block.offset, content.span());
    if (got)
      return Error{Errc::refused,
                   fmt::format("LUN offset {} could not be read a moment ago ({}), and can be now: "
                               "see to the LUN, and begin anew",
                               block.offset, block.why)};
    if (!is_bad_block(got.error())) return got;
  }
  return {};
}

Expected<BadBlocks> read_around_bad_blocks(iscsi::BlockingLun& lun,
                                           std::span<const iscsi::BlockingLun::Read> reads,
                                           int depth) {
  BadBlocks bad;
  auto all = lun.read(reads, depth);
  if (all) return bad;
  if (!is_bad_block(all.error())) return all.error();
  for (const auto& read : reads) {
    auto whole = lun.read(read.offset, read.out);
    if (!whole && !is_bad_block(whole.error())) return whole.error();
    for (std::uint64_t at = 0; !whole && at < read.out.size(); at += kPiece) {
      auto piece = read.out.subspan(at, std::min<std::uint64_t>(kPiece, read.out.size() - at));
      auto got = lun.read(read.offset + at, piece);
      if (got) continue;
      if (!is_bad_block(got.error())) return got.error();
      std::fill(piece.begin(), piece.end(), std::byte{});
      bad.add(read.offset + at, piece.size(), got.error());
    }
  }
  return bad;
}

}  // namespace csv::volume
