#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tests/fuzz/bench.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {

/// What of a volume is changed; docs/volume-format.md says what each is. Append only: inputs have
/// the numbers.
enum class Place : std::uint8_t {
  superblock_a,
  superblock_b,
  chunk,  ///< A catalog chunk's header.
  page,
  log_header,
  log_frame,
  slots,
  superblock_c,
  log_mark,
  copy_header,  ///< From here on of an image that has copies of its catalog.
  copy_superblock,
  copy_page,
  file_page,  ///< Of the file that is a copy: bytes that `file()` has.
  kPlaces
};

/// Changes to a LUN that holds an image, as an input has them: a place (1 byte), which of them (2),
/// an offset (2), a length (1) and that many bytes.
class Damage {
 public:
  /// `sums`: what is changed gets right checksums, so that wrong content behind them is met too.
  Damage(const Image& image, iscsi::RamDisk& lun, bool sums)
      : image_{&image}, lun_{&lun}, sums_{sums}, file_{image.file} {}

  /// All that is left of the input.
  void apply(Input& input);
  /// The image's copy of the catalog as a file, as changed.
  [[nodiscard]] const std::vector<std::byte>& file() const { return file_; }

 private:
  void change(Place place, std::uint16_t which, std::uint16_t at,
              std::span<const std::byte> content);
  std::vector<std::byte> patched(std::uint64_t where, std::size_t size, std::uint16_t at,
                                 std::span<const std::byte> content);
  void change_block(std::uint64_t where, std::size_t size, std::uint16_t at,
                    std::span<const std::byte> content);
  void change_page(std::uint64_t where, std::uint32_t number, std::uint16_t at,
                   std::span<const std::byte> content);
  void change_log(std::size_t from, std::size_t size, std::uint16_t at,
                  std::span<const std::byte> content);
  void sum_page(std::span<std::byte> bytes, std::uint32_t number) const;
  std::vector<std::byte> whole_log();
  void sum_log();
  void sum_copy(const Image::Copy& copy);

  const Image* image_;
  iscsi::RamDisk* lun_;
  bool sums_, log_changed_ = false, copies_changed_ = false;
  std::vector<std::byte> file_;
};

/// The seeds' side of it.
std::string change_of(Place place, std::uint16_t which, std::uint16_t at,
                      const std::string& content);

}  // namespace csv::fuzz
