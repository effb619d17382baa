#include "csvfs/extent_map.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "csvfs/base/check.h"

namespace csv {
namespace {

using Extent = ExtentMap::Extent;

/// `extent` without what lies outside [begin, end), which must overlap it.
Extent part(Extent extent, std::uint64_t begin, std::uint64_t end) {
  auto from = std::max(extent.offset, begin), to = std::min(extent.end(), end);
  extent.lun_offset += from - extent.offset;
  extent.offset = from;
  extent.length = to - from;
  return extent;
}

bool continues(const Extent& a, const Extent& b) {
  return a.end() == b.offset && a.lun_offset + a.length == b.lun_offset && a.state == b.state &&
         a.grant == b.grant && a.truncation == b.truncation;
}

}  // namespace

void ExtentMap::cut_at(std::uint64_t offset) {
  auto next = extents_.upper_bound(offset);
  if (next == extents_.begin()) return;
  auto& whole = std::prev(next)->second;
  if (whole.offset >= offset || whole.end() <= offset) return;
  auto tail = part(whole, offset, whole.end());
  whole.length = offset - whole.offset;
  extents_.emplace(offset, tail);
}

ExtentMap::Map::iterator ExtentMap::join(Map::iterator later) {
  if (later == extents_.begin() || later == extents_.end()) return later;
  auto earlier = std::prev(later);
  if (!continues(earlier->second, later->second)) return later;
  earlier->second.length += later->second.length;
  extents_.erase(later);
  return earlier;
}

void ExtentMap::insert(Extent extent) {
  if (extent.length == 0) return;
  std::vector<Extent> kept;  // write rights that stay
  if (extent.state == State::read) {
    for (auto at = extent.offset; at < extent.end();) {
      auto known = this->at(at);
      if (!known) {
        auto next = extents_.upper_bound(at);
        if (next == extents_.end()) break;
        at = next->first;
        continue;
      }
      auto piece = part(*known, at, extent.end());
      if (piece.state == State::write &&
          piece.lun_offset == extent.lun_offset + (at - extent.offset))
        kept.push_back(piece);
      at = piece.end();
    }
  }
  drop(extent.offset, extent.end());
  extents_.emplace(extent.offset, extent);
  for (const auto& right : kept) {
    drop(right.offset, right.end());
    extents_.emplace(right.offset, right);
  }
  // Neighbours that became one are joined, so that a file written in steps stays one extent.
  auto first = extents_.lower_bound(extent.offset);
  while (first != extents_.end() && first->first < extent.end()) first = std::next(join(first));
  join(first);
}

void ExtentMap::drop(std::uint64_t begin, std::uint64_t end) {
  if (begin >= end) return;
  cut_at(begin);
  cut_at(end);
  extents_.erase(extents_.lower_bound(begin), extents_.lower_bound(end));
}

void ExtentMap::drop_writes(std::uint64_t begin, std::uint64_t end) {
  if (begin >= end) return;
  cut_at(begin);
  cut_at(end);
  for (auto at = extents_.lower_bound(begin); at != extents_.end() && at->first < end;) {
    if (at->second.state == State::granted) {
      at = extents_.erase(at);
    } else {
      at->second.state = State::read;
      ++at;
    }
  }
}

void ExtentMap::committed(GrantId grant, std::uint64_t begin, std::uint64_t end) {
  if (begin >= end) return;
  cut_at(begin);
  cut_at(end);
  auto at = extents_.lower_bound(begin);
  for (; at != extents_.end() && at->first < end; ++at) {
    auto& extent = at->second;
    if (extent.state != State::granted || extent.grant != grant) continue;
    extent.state = State::write;
    extent.grant = {};
    extent.truncation = 0;
    at = join(at);
  }
  join(at);
}

void ExtentMap::drop_grant(GrantId grant) {
  std::erase_if(extents_, [grant](const auto& each) {
    return each.second.state == State::granted && each.second.grant == grant;
  });
}

std::optional<Extent> ExtentMap::at(std::uint64_t offset) const {
  auto next = extents_.upper_bound(offset);
  if (next == extents_.begin()) return std::nullopt;
  const auto& extent = std::prev(next)->second;
  if (extent.end() <= offset) return std::nullopt;
  return part(extent, offset, extent.end());
}

}  // namespace csv
