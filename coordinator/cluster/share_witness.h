#pragma once
#include <functional>
#include <optional>
#include <span>

#include "coordinator/cluster/lease_timing.h"
#include "coordinator/cluster/tag_file.h"
#include "coordinator/cluster/witness.h"
#include "csvfs/base/random.h"

namespace csv::cluster {

/// What stands in the slot of a tag file that is in force: the valid one of the higher sequence.
struct ShareTag {
  std::uint64_t sequence = 0;  ///< Grows with every write, which goes to slot sequence % 2.
  std::uint16_t cluster = 0;
  NodeId node{};           ///< Who holds it; 0: nobody yet.
  std::uint64_t life = 0;  ///< His object's; another one for another life.
  std::uint64_t ring = 0;
  ClusterTag tag;            ///< Of the newest configuration that was stored.
  ClusterTag promised = {};  ///< Nothing below it is stored any more; its sequence is 0.
  std::uint64_t id = 0;      ///< Of the file, given when it was made; 0: by an older version.
  bool operator==(const ShareTag&) const = default;
};
TagFile::Slot encode(const ShareTag& tag);
/// Never written: std::errc::no_such_file_or_directory. Errc::corrupt: damaged. Errc::refused:
/// something else, or of a newer format.
Expected<ShareTag> decode_share_tag(std::span<const std::byte> slot);
/// The one in force. All zeros: sequence 0. Errc::refused, Errc::corrupt: not one that can be used.
Expected<ShareTag> newest_share_tag(const TagFile::Content& content);

/// Makes a witness of a file that is there, and empty; of one that is a witness of this cluster
/// already it changes nothing. Its id. Errc::refused: it is something else.
Task<Expected<std::uint64_t>> prepare_share_witness(TagFile& file, std::uint16_t cluster,
                                                    Random& random);

/// A file on a share as witness: it keeps the configuration's tag only. Every change is an exchange
/// of the whole content under a lock, so a takeover that succeeds proves by itself that the holder
/// has not moved since the challenger's last look; the times are the disk witness's.
///
/// A side whose own configuration is older than the tag that is stored may not go on with it, and
/// cannot get the newer one here: confirm() and challenge() say Errc::superseded ("a partition in
/// time"), and it has to wait for a node that has it. store() does not need the hold. A slot that
/// is damaged may have been a later one: confirm() then says Errc::superseded too, and challenge()
/// repairs it. A file that is empty, or not the one that was made the witness, has forgotten what
/// it stored and promised: every call says Errc::refused.
class ShareWitness final : public Witness {
 public:
  struct Surroundings {
    Loop* loop = nullptr;
    Random* random = nullptr;
    TagFile* file = nullptr;
    std::uint16_t cluster = 0;
    NodeId node{};
    std::function<ClusterTag()> own_tag;  ///< Of the newest configuration on this node's side.
    /// Of the file that was made a witness; 0: made by an older version, any will do.
    std::uint64_t id = 0;
    LeaseTiming timing = {};
    Duration look_interval = 250ms;
  };
  explicit ShareWitness(Surroundings around);

  Task<Expected<Memory>> read() override;
  Task<Expected<void>> store(Memory memory) override;
  Task<Expected<Hold>> confirm(std::uint64_t ring) override;
  Task<Expected<Hold>> challenge(std::uint64_t ring) override;
  [[nodiscard]] std::optional<NodeId> holder() const override { return holder_; }

 private:
  struct Seen;
  Task<Expected<Seen>> look();
  Task<Expected<void>> change(const Seen& seen, ShareTag next, std::uint64_t step);
  Expected<void> check_own(const ShareTag& found) const;

  Surroundings around_;
  std::uint64_t life_;  ///< Another one after each taking that may have failed or not.
  std::optional<NodeId> holder_;
};

}  // namespace csv::cluster
