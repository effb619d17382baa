#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <span>
#include <utility>

#include "csvfs/base/check.h"

namespace csv {

/// Zeros with one owner, of which a page takes memory only once it is written: for what may grow
/// large and must not be moved when it does, since for a moment both would be there. What was
/// written stays, locked if the process locks its memory.
class UntouchedBuffer {
 public:
  UntouchedBuffer() = default;
  explicit UntouchedBuffer(std::size_t size) : size_{size} {
    if (size == 0) return;
    auto* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CSV_CHECK(data != MAP_FAILED);
    data_ = static_cast<std::byte*>(data);
  }
  ~UntouchedBuffer() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }
  UntouchedBuffer(UntouchedBuffer&& other) noexcept
      : data_{std::exchange(other.data_, nullptr)}, size_{std::exchange(other.size_, 0)} {}
  UntouchedBuffer& operator=(UntouchedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  [[nodiscard]] std::byte* data() noexcept { return data_; }
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::span<std::byte> span() noexcept { return {data_, size_}; }
  [[nodiscard]] std::span<const std::byte> span() const noexcept { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace csv
