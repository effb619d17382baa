#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>

#include "csvfs/base/ids.h"

namespace csv {

/// Where ranges of one file lie on the LUN and what the mount may do there by itself, as the
/// coordinator laid them out. Only what stays true until it is recalled is kept: never a hole. An
/// ordinary data structure; one thread.
class ExtentMap {
 public:
  enum class State : std::uint8_t {
    read,     ///< Written, below the file's size when laid out: may be read.
    write,    ///< The same, and may be written in place.
    granted,  ///< Beyond the size, nobody else can see it: may be written, then committed.
  };
  struct Extent {
    std::uint64_t offset = 0;  ///< In the file, bytes.
    std::uint64_t length = 0;
    std::uint64_t lun_offset = 0;
    State state{};
    GrantId grant{};               ///< Of a granted one.
    std::uint64_t truncation = 0;  ///< The file's counter when it was granted.
    [[nodiscard]] std::uint64_t end() const { return offset + length; }
  };

  /// Takes what the coordinator said into the map, over whatever was known of the range; but a
  /// right to write that has not been recalled is not lost to an answer that only says `read`.
  void insert(Extent extent);
  /// Forgets [begin, end).
  void drop(std::uint64_t begin, std::uint64_t end);
  /// Write rights of [begin, end) are gone: what is written may still be read, grants are
  /// forgotten.
  void drop_writes(std::uint64_t begin, std::uint64_t end);
  /// [begin, end) of the grant has become a part of the file: what of it is still known (has not
  /// been recalled since) may from now on be read and written in place.
  void committed(GrantId grant, std::uint64_t begin, std::uint64_t end);
  void drop_grant(GrantId grant);
  void clear() { extents_.clear(); }

  /// The part of an extent that begins at `offset`; nothing where nothing is known.
  [[nodiscard]] std::optional<Extent> at(std::uint64_t offset) const;
  [[nodiscard]] std::size_t size() const { return extents_.size(); }
  [[nodiscard]] bool empty() const { return extents_.empty(); }
  [[nodiscard]] bool any_but_reads() const {
    return std::any_of(extents_.begin(), extents_.end(),
                       [](const auto& each) { return each.second.state != State::read; });
  }

 private:
  using Map = std::map<std::uint64_t, Extent>;  // by offset; they do not overlap
  void cut_at(std::uint64_t offset);
  Map::iterator join(Map::iterator later);
  Map extents_;
};

}  // namespace csv
