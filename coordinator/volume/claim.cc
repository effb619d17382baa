#include "coordinator/volume/claim.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "coordinator/volume/bad_blocks.h"
#include "csvfs/base/buffer.h"
#include "iscsi/scsi.h"

namespace csv::volume {

Expected<void> claim(iscsi::BlockingLun& lun, std::uint64_t from, std::uint64_t size) {
  if (!lun.lun().profile().thin) return {};
  // Something other than zeros: arrays recognise those and give the space back.
  constexpr std::uint64_t kPieceSize = 1ull << 20;
  constexpr std::string_view kText = "csvfs: space for the catalog    ";
  static_assert(kPieceSize % kText.size() == 0);
  Buffer piece{kPieceSize};
  for (std::size_t i = 0; i < piece.size(); i += kText.size())
    std::memcpy(piece.data() + i, kText.data(), kText.size());
  std::vector<iscsi::BlockingLun::Write> writes;
  for (std::uint64_t at = 0; at < size; at += kPieceSize)
    writes.push_back({from + at, piece.span().first(std::min(kPieceSize, size - at))});
  auto written = lun.write(writes);
  if (!written &&
      (is_bad_block(written.error()) || written.error() == std::errc::no_space_on_device)) {
    auto given_back = lun.unmap(from, size);
    // A target that refuses to take it keeps it, and that is all.
    if (!given_back && iscsi::is_loss(given_back.error())) return given_back;
  }
  return written;
}

}  // namespace csv::volume
