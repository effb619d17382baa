#pragma once
#include <cstdint>

#include "csvfs/base/ids.h"

namespace csv::volume {

/// For who goes from a directory to the one above, and on: tells when the way goes round in a
/// circle, which only a damaged catalog has (Brent's algorithm).
class ParentChain {
 public:
  /// `at` is the next on the way. True: it has been there.
  bool circles(InodeId at) {
    if (at == mark_) return true;
    if (++steps_ == limit_) {
      mark_ = at;
      steps_ = 0;
      limit_ *= 2;
    }
    return false;
  }

 private:
  InodeId mark_{};
  std::uint64_t steps_ = 0, limit_ = 8;
};

}  // namespace csv::volume
