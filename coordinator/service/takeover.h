#pragma once
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/service/fencing.h"
#include "coordinator/service/tenure.h"
#include "coordinator/service/volume_service.h"

namespace csv::service {

/// A volume taken over: nobody else can change its catalog, whatever they believe, and every key on
/// the LUN is our own or has a live row.
struct Taken {
  TenureRef tenure;
  std::unique_ptr<Fencing> fencing;  ///< Uses tenure->lun.
  Key key{};
  Epoch epoch{};
  std::uint32_t key_generation = 0;  ///< PRGENERATION, as the catalog has it now.
  std::uint64_t verifier = 0;        ///< Grows when the target was found to have lost its memory.
  /// The former coordinator was waited for: nothing it told anybody holds any more.
  bool outwaited = false;
  /// Otherwise: whatever it vouched for to mounts holds until then at most; nullopt: not known.
  std::optional<TimePoint> vouched_until;
  TimePoint proven_at{};  ///< A command sent then found our key in force, after the fence.
  std::vector<volume::SessionRow> sessions;      ///< Ended ones too.
  std::vector<volume::AdmissionRow> admissions;  ///< Live ones only.
  std::vector<volume::SuspendedRow> suspended;
};

/// Whether the target has lost power, and so what its volatile cache held, since the catalog last
/// said something of it. `before`: its keys before anything was done to them. A power on sets
/// PRGENERATION back to 0 (SPC-4 5.13.11), and without APTPL no key is left of those whose live
/// rows say that nobody has preempted them. `generation_then`: when the catalog last noted it.
bool target_lost_memory(const iscsi::KeyList& before, std::uint32_t generation_then,
                        std::span<const volume::AdmissionRow> live);

/// In the order that makes it safe, each step with its reason in the .cc file. On an error nothing
/// of it goes on: the LUN is closed, and our key is withdrawn if nothing had been changed yet.
Task<Expected<Taken>> take_over_volume(Surroundings surroundings);

/// A loss of the target's memory is counted (Catalog::TargetMemory).
Expected<void> note_loss(volume::Catalog& catalog);
/// The same on the writer thread, by the catalog as it is on the LUN, opened again. It is closed
/// afterwards.
Expected<void> note_loss_afresh(Tenure& on, std::uint64_t page_cache);

}  // namespace csv::service
