#pragma once
#include <span>
#include <string>
#include <string_view>

#include "csvfs/base/error.h"
#include "csvfs/base/function.h"
#include "csvfs/base/task.h"
#include "iscsi/lun.h"
#include "iscsi/scsi.h"
#include "iscsi/scsi_commands.h"

namespace csv::iscsi {

/// Asks one logical unit one thing at a time: a session, or SG_IO. Answers on the loop that the
/// asking task runs on. Unit attentions are dealt with beneath.
class ScsiAsker {
 public:
  virtual ~ScsiAsker() = default;
  struct Question {
    Cdb cdb;
    std::span<std::byte> in;
    std::span<const std::byte> out;
    ScsiPurpose purpose = ScsiPurpose::question;
  };
  /// How many bytes of `in` came, or what went wrong (scsi.h).
  virtual void ask(Question question, Function<void(Expected<std::size_t>)> done) = 0;
};

/// What a logical unit is and can do. Sizes in the profile are those the target names, 0 where it
/// names none.
struct LunDescription {
  Geometry geometry;
  TargetProfile profile;
  /// Where these are not known, ask_again() has to be asked by a registered nexus.
  bool cache_known = false;
  [[nodiscard]] bool complete() const { return cache_known && geometry.known(); }
};

/// Finds out by asking, without changing anything: INQUIRY and its pages, READ CAPACITY(16), MODE
/// SENSE, PERSISTENT RESERVE IN, REPORT SUPPORTED OPERATION CODES. Refuses what is not a disk or
/// has a geometry that we do not support. Meant for a nexus that has not registered a key: the
/// probe for PREEMPT AND ABORT names a key that nobody has.
///
/// What a make is known to do wrong (docs/targets.md) is taken out of the profile. Where a
/// reservation keeps this nexus out, that is used to see whether the target applies it to WRITE
/// SAME and UNMAP too: a command that a fence does not stop is one we must not use. It may also
/// keep us from asking for the size.
Task<Expected<LunDescription>> describe_lun(ScsiAsker& asker);

/// What the administrator of such a target has to see to, for people; empty where that is nothing.
std::string_view advice_on(const TargetProfile& profile);

/// Takes the reservation types out that this target is known to do wrong.
void leave_out_broken_types(const TargetProfile& profile, ReservationCapabilities& capabilities);

/// What describe_lun() could not find out because a reservation kept its nexus out: the size, and
/// what MODE SENSE says of write cache, FUA and write protection. Where the target still refuses to
/// say, the careful thing: no known size; a volatile cache without FUA.
Task<Expected<void>> ask_again(ScsiAsker& asker, LunDescription& lun);

}  // namespace csv::iscsi
