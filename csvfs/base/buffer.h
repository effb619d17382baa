#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "csvfs/base/check.h"

namespace csv {

/// Bytes with one owner, aligned to 4096 so that they can go to a LUN as they are. Not zeroed when
/// made. size() may be cut, never grown.
class Buffer {
 public:
  static constexpr std::size_t kAlignment = 4096;

  Buffer() = default;
  explicit Buffer(std::size_t size) : size_{size} {
    if (size == 0) return;
    auto whole = (size + kAlignment - 1) / kAlignment * kAlignment;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole)));
    CSV_CHECK(data_ != nullptr);
  }
  static Buffer zeroed(std::size_t size) {
    Buffer made{size};
    if (size > 0) std::memset(made.data_.get(), 0, size);
    return made;
  }
  static Buffer copy_of(std::span<const std::byte> bytes) {
    Buffer made{bytes.size()};
    if (!bytes.empty()) std::memcpy(made.data_.get(), bytes.data(), bytes.size());
    return made;
  }

  [[nodiscard]] std::byte* data() noexcept { return data_.get(); }
  [[nodiscard]] const std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] std::span<std::byte> span() noexcept { return {data_.get(), size_}; }
  [[nodiscard]] std::span<const std::byte> span() const noexcept { return {data_.get(), size_}; }
  void cut(std::size_t size) {
    CSV_CHECK(size <= size_);
    size_ = size;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const noexcept { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace csv
