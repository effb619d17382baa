#include "coordinator/configured_witness.h"

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

/// A share's witness and its file.
class OnShare final : public cluster::Witness {
 public:
  OnShare(AsioLoop& loop, Random& random, const Config& config,
          const cluster::WitnessRecord& record, std::function<ClusterTag()> own_tag)
      : file_{loop, {.path = record.place + "/csvfs-witness-" + std::to_string(config.cluster)}},
        witness_{{.loop = &loop,
                  .random = &random,
                  .file = &file_,
                  .cluster = config.cluster,
                  .node = config.node,
                  .own_tag = std::move(own_tag)}} {}

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
                                             .node = config.node});
    case WitnessKind::share:
      return std::make_unique<OnShare>(loop, random, config, record, std::move(own_tag));
  }
  return nullptr;
}

Task<Expected<void>> prepare_witness(AsioLoop& loop, Random& random, const Config& config,
                                     cluster::WitnessRecord record) {
  if (record.kind == WitnessKind::none) co_return Expected<void>{};
  auto witness = configured_witness(loop, random, config, record, [] { return ClusterTag{}; });
  auto read = witness->read();
  auto memory = co_await read;
  if (memory) co_return Expected<void>{};
  auto why = memory.error().within("the witness " + record.place);
  if (record.kind != WitnessKind::disk) co_return why;
  witness.reset();
  auto open = opener(loop, config, record);
  auto opened = co_await completion<Expected<std::unique_ptr<iscsi::Lun>>>(
      [&open](auto done) { open(iscsi::LunOptions{}, std::move(done)); });
  if (!opened) co_return why;
  auto format = cluster::format_witness(**opened, config.cluster, random);
  auto made = co_await format;
  if (!made) co_return made.error().within("the witness " + record.place);
  log::info("witness_formatted place={}", record.place);
  co_return Expected<void>{};
}

}  // namespace csv
