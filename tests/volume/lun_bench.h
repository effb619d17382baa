#pragma once
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/volume/catalog_pages.h"
#include "coordinator/volume/superblock.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/blocking.h"
#include "iscsi/blocking_lun.h"
#include "iscsi/ram_lun.h"

namespace csv::volume {

/// A way to the bench's LUN.
struct Path {
  std::unique_ptr<iscsi::Lun> lun;
  iscsi::BlockingLun io;
};

/// A LUN in memory and a loop for its answers.
class LunBench {
 public:
  explicit LunBench(iscsi::RamDiskOptions options = {}, std::uint64_t mib = 512) {
    options.geometry.block_count = (mib << 20) / options.geometry.block_size;
    disk = iscsi::RamDisk::create(std::move(options));
    loop.start("lun-bench");
  }
  Path connect(iscsi::RamPlan plan = {}) {
    auto lun = disk->connect(loop, {}, std::move(plan));
    REQUIRE(lun);
    auto* raw_lun = lun->get();
    return {*std::move(lun), iscsi::BlockingLun{*raw_lun, blocking}};
  }
  [[nodiscard]] std::vector<std::byte> content(std::uint64_t at, std::size_t size) const {
    auto block = disk->options().geometry.block_size;
    std::vector<std::byte> bytes((size + block - 1) / block * block);
    disk->peek(at, bytes);
    bytes.resize(size);
    return bytes;
  }
  void flip_bit(std::uint64_t at) {
    auto block = disk->options().geometry.block_size;
    auto bytes = content(at / block * block, block);
    bytes[at % block] ^= std::byte{4};
    disk->poke(at / block * block, bytes);
  }
  /// Larger or smaller, for ways that are connected from now on.
  void resize(std::uint64_t mib) {
    iscsi::RamDiskOptions options;
    options.geometry.block_count = (mib << 20) / options.geometry.block_size;
    auto other = iscsi::RamDisk::create(options);
    auto both = std::min(disk->options().geometry.size_bytes(), options.geometry.size_bytes());
    std::vector<std::byte> piece(1 << 20);
    const std::vector<std::byte> zeros(1 << 20);
    for (std::uint64_t at = 0; at < both; at += piece.size()) {
      disk->peek(at, piece);
      if (piece != zeros) other->poke(at, piece);
    }
    disk = other;
  }

  AsioLoop loop;
  ThreadBlocking blocking;
  std::shared_ptr<iscsi::RamDisk> disk;
};

/// What format() would say of the bench's LUN.
inline VolumeInfo example_info(const LunBench& bench, std::uint64_t wal_size = 8ull << 20) {
  VolumeInfo info;
  info.sequence = 7;
  for (std::size_t i = 0; i < info.id.size(); ++i) info.id[i] = static_cast<std::byte>(0xa0 + i);
  info.label = "volume1";
  info.lun_identity = "naa.6001405c5f000001";
  info.cluster = 4711;
  info.epoch = Epoch{3};
  info.coordinator = NodeId{2};
  info.coordinator_key = make_key({4711, NodeId{2}, KeyRole::coordinator, 99});
  info.tag = {1, 2, 3};
  info.formatted_at = WallTime{1'700'000'000'000'000'000};
  info.lun_size = bench.disk->options().geometry.size_bytes();
  info.slots_offset = disk::kSlotsOffset;
  info.wal_offset = disk::kWalOffset;
  info.wal_size = wal_size;
  info.data_offset = info.wal_offset + info.wal_size;
  info.data_size = info.lun_size - disk::kTailSize - info.data_offset;
  info.chunks = {info.data_offset};
  return info;
}

/// The LUN as an empty catalog wants to find it.
inline VolumeInfo prepared(LunBench& bench, std::uint64_t wal_size = 8ull << 20) {
  auto info = example_info(bench, wal_size);
  for (std::uint32_t i = 0; i < info.chunks.size(); ++i)
    bench.disk->poke(info.chunks[i],
                     encode_chunk_header(info.id, i, info.chunks[i], info.sequence).span());
  return info;
}

}  // namespace csv::volume
