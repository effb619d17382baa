#include "coordinator/volume/bitmap.h"

#include <doctest/doctest.h>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::volume;

TEST_CASE("bitmap: does what a string of zeros and ones does") {
  constexpr std::size_t kSize = 256;
  Random random{7};
  Bitmap<kSize> bits, other;
  std::string model(kSize, '0'), other_model(kSize, '0');
  for (int i = 0; i < 5000; ++i) {
    auto first = random.below(kSize + 1), count = random.below(kSize - first + 1);
    bool to = random.chance(1, 2);
    bits.set(first, count, to);
    model.replace(first, count, count, to ? '1' : '0');
    other.set(count, first, !to);
    other_model.replace(count, first, first, to ? '0' : '1');
    auto part = model.substr(first, count);
    CHECK(bits.count(first, count) ==
          static_cast<std::size_t>(std::count(part.begin(), part.end(), '1')));
    auto next = model.find(to ? '1' : '0', first);
    CHECK(bits.next(to, first, first + count) == std::min(next, first + count));
    auto slice = bits.slice(first, count);
    for (std::size_t at = 0; at < kSize; ++at)
      REQUIRE(slice.get(at) == (at < count && model[first + at] == '1'));
    CHECK(Bitmap<kSize>::from_bytes(slice.bytes(count)) == slice);
    if (i % 10 == 0) {
      bits.paste(other, first, count);
      model.replace(first, count, other_model, 0, count);
    }
    for (std::size_t at = 0; at < kSize; ++at) REQUIRE(bits.get(at) == (model[at] == '1'));
  }
}
