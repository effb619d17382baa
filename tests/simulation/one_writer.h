#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/volume/volume.h"
#include "iscsi/ram_lun.h"

namespace csv::sim {

/// Judges that a volume has one writer of metadata: from the moment at which somebody's epoch
/// stands on the LUN, nobody else changes superblock, log or catalog any more, whatever he
/// believes, and whenever what he had sent arrives. It sees what takes effect, not what is sent.
class OneWriter {
 public:
  /// A connection to the LUN: a process that loses one and makes another is another writer.
  using Writer = std::uint64_t;

  /// Of a volume that nobody has taken over yet.
  OneWriter(volume::VolumeInfo info, std::function<void(std::string)> violation);

  /// Whether a write there is anything that it judges.
  [[nodiscard]] bool concerned(std::uint64_t offset, std::uint64_t length) const;
  void wrote(Writer writer, const std::string& name, std::uint64_t offset,
             std::span<const std::byte> data);
  /// The disk has lost power: who coordinated has lost his connection.
  void power_loss(const iscsi::RamDisk& disk);
  /// It has lost what its cache held, and nobody his connection.
  void forgot(const iscsi::RamDisk& disk);

 private:
  void superblock(Writer writer, const std::string& name, const volume::VolumeInfo& found);
  void fail(const std::string& name, const std::string& what) const;

  volume::VolumeInfo newest_;
  Writer owner_ = 0;
  std::string owner_name_ = "nobody";
  std::function<void(std::string)> violation_;
};

}  // namespace csv::sim
