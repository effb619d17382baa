#include "coordinator/configured_witness.h"

#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "coordinator/cluster/disk_witness.h"
#include "coordinator/cluster/share_witness.h"
#include "csvfs/base/log.h"
#include "iscsi/configured_lun.h"

namespace csv {
namespace {

using cluster::WitnessKind;

iscsi::LunOpener opener(AsioLoop& loop, const Config& config,
                        const cluster::WitnessRecord& record) {
  VolumeConfig lun;
  lun.name = "witness";
  lun.lun = record.place;
  lun.sessions = 1;
  return iscsi::configured_opener(loop, config, lun);
}

std::string path_of(const Config& config, const cluster::WitnessRecord& record) {
  return record.place + "/csvfs-witness-" + std::to_string(config.cluster);
}

std::uint64_t share_id(const std::string& text) {
  std::uint64_t id = 0;
  std::from_chars(text.data(), text.data() + text.size(), id, 16);
  return id;
}

std::optional<cluster::disk::WitnessId> disk_id(const std::string& text) {
  cluster::disk::WitnessId id{};
  if (text.size() != 2 * id.size()) return std::nullopt;
  for (std::size_t i = 0; i < id.size(); ++i) {
    unsigned byte = 0;
    std::from_chars(text.data() + 2 * i, text.data() + 2 * i + 2, byte, 16);
    id[i] = static_cast<std::byte>(byte);
  }
  return id;
}

/// A share's witness and its file.
class OnShare final : public cluster::Witness {
 public:
  OnShare(AsioLoop& loop, Random& random, const Config& config,
          const cluster::WitnessRecord& record, std::function<ClusterTag()> own_tag)
      : file_{loop, {.path = path_of(config, record)}},
        witness_{{.loop = &loop,
                  .random = &random,
                  .file = &file_,
                  .cluster = config.cluster,
                  .node = config.node,
                  .own_tag = std::move(own_tag),
                  .id = share_id(record.id)}} {}

  Task<Expected<Memory>> read() override { return witness_.read(); }
  Task<Expected<void>> store(Memory memory) override { return witness_.store(std::move(memory)); }
  Task<Expected<Hold>> confirm(std::uint64_t ring) override { return witness_.confirm(ring); }
  Task<Expected<Hold>> challenge(std::uint64_t ring) override { return witness_.challenge(ring); }
  [[nodiscard]] std::optional<NodeId> holder() const override { return witness_.holder(); }

 private:
  cluster::SharedTagFile file_;
  cluster::ShareWitness witness_;
};

}  // namespace

std::unique_ptr<cluster::Witness> configured_witness(AsioLoop& loop, Random& random,
                                                     const Config& config,
                                                     const cluster::WitnessRecord& record,
                                                     std::function<ClusterTag()> own_tag) {
  switch (record.kind) {
    case WitnessKind::none: return nullptr;
    case WitnessKind::disk:
      return std::make_unique<cluster::DiskWitness>(
          cluster::DiskWitness::Surroundings{.loop = &loop,
                                             .random = &random,
                                             .open_lun = opener(loop, config, record),
                                             .cluster = config.cluster,
                                             .node = config.node,
                                             .id = disk_id(record.id)});
    case WitnessKind::share:
      return std::make_unique<OnShare>(loop, random, config, record, std::move(own_tag));
  }
  return nullptr;
}

Task<Expected<std::string>> prepare_witness(AsioLoop& loop, Random& random, const Config& config,
                                            cluster::WitnessRecord record) {
  if (record.kind == WitnessKind::none) co_return std::string{};
  auto what = "the witness " + record.place;
  if (record.kind == WitnessKind::share) {
    cluster::SharedTagFile file{loop, {.path = path_of(config, record), .create = true}};
    auto prepare = cluster::prepare_share_witness(file, config.cluster, random);
    auto id = co_await prepare;
    if (!id) co_return id.error().within(what);
    co_return fmt::format("{:016x}", *id);
  }
  record.id.clear();
  auto witness = configured_witness(loop, random, config, record, [] { return ClusterTag{}; });
  auto read = witness->read();
  auto memory = co_await read;
  witness.reset();
  auto open = opener(loop, config, record);
  auto opened = co_await completion<Expected<std::unique_ptr<iscsi::Lun>>>(
      [&open](auto done) { open(iscsi::LunOptions{}, std::move(done)); });
  if (!opened) co_return opened.error().within(what);
  if (!memory) {
    auto format = cluster::format_witness(**opened, config.cluster, random);
    auto made = co_await format;
    if (!made) co_return made.error().within(what);
    log::info("witness_formatted place={}", record.place);
  }
  auto look = cluster::witness_id(**opened, config.cluster);
  auto id = co_await look;
  if (!id) co_return id.error().within(what);
  std::string text;
  for (auto byte : *id) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  co_return text;
}

}  // namespace csv
