#include "iscsi/scsi.h"

#include <string_view>

#include "csvfs/base/log.h"

namespace csv::iscsi {
namespace {

std::uint8_t at(std::span<const std::byte> bytes, std::size_t index) {
  return std::to_integer<std::uint8_t>(bytes[index]);
}

std::string_view name_of_key(std::uint8_t key) {
  switch (key) {
    case sense_key::no_sense: return "NO SENSE";
    case sense_key::recovered_error: return "RECOVERED ERROR";
    case sense_key::not_ready: return "NOT READY";
    case sense_key::medium_error: return "MEDIUM ERROR";
    case sense_key::hardware_error: return "HARDWARE ERROR";
    case sense_key::illegal_request: return "ILLEGAL REQUEST";
    case sense_key::unit_attention: return "UNIT ATTENTION";
    case sense_key::data_protect: return "DATA PROTECT";
    case sense_key::aborted_command: return "ABORTED COMMAND";
    default: return "SENSE KEY";
  }
}

std::string_view name_of_code(std::uint16_t code) {
  switch (code) {
    case 0x0401: return "becoming ready";
    case 0x040a: return "asymmetric access state transition";
    case 0x0414: return "space allocation in progress";
    case 0x0800: return "logical unit communication failure";
    case 0x1a00: return "parameter list length error";
    case 0x2000: return "invalid command operation code";
    case 0x2100: return "logical block address out of range";
    case 0x2400: return "invalid field in CDB";
    case 0x2500: return "logical unit not supported";
    case 0x2600: return "invalid field in parameter list";
    case 0x2604: return "invalid release of persistent reservation";
    case 0x2700: return "write protected";
    case 0x2707: return "space allocation failed";
    case 0x2900: return "power on or reset";
    case 0x2901: return "power on";
    case 0x2902: return "bus reset";
    case 0x2903: return "device reset";
    case 0x2907: return "nexus loss";
    case 0x2a01: return "mode parameters changed";
    case 0x2a03: return "reservations preempted";
    case 0x2a04: return "reservations released";
    case 0x2a05: return "registrations preempted";
    case 0x2a09: return "capacity changed";
    case 0x2f00: return "commands cleared by another initiator";
    case 0x3807: return "thin provisioning soft threshold reached";
    case 0x3a00: return "medium not present";
    case 0x3f03: return "inquiry data changed";
    case 0x3f0e: return "reported LUNs changed";
    default: return {};
  }
}

Verdict fail(Error error) { return {Verdict::Action::fail, std::move(error)}; }
Verdict end(Error error) { return {Verdict::Action::end, std::move(error)}; }
Verdict repeat() { return {Verdict::Action::repeat, {}}; }
Verdict repeat_later() { return {Verdict::Action::repeat_later, {}}; }

/// A unit attention is told instead of doing the command, so any command may follow it again; but
/// some tell us that we may not.
Verdict unit_attention(const Sense& sense, bool registered) {
  // 2A/04, reservations released, leaves our registration as it was.
  if (registered && (sense.code == 0x2a03 || sense.code == 0x2a05))
    return end({Errc::fenced, "our registration was taken away: " + describe(sense)});
  // Its cache may be switched on now, or it may be another one: whoever opens it again asks. Before
  // a key is registered nothing is written, and opening it asks anyway.
  if (registered && (sense.code == 0x2a01 || sense.code == 0x3f03))
    return end({Errc::lun_lost, "the LUN is no more what it was when opened: " + describe(sense)});
  return repeat();
}

Verdict illegal_request(const Sense& sense, ScsiPurpose purpose) {
  // Not even begun, so nothing is lost by it.
  if (purpose == ScsiPurpose::flush && sense.code != 0x2500)
    return fail({Errc::unsupported_by_target, describe(sense)});
  switch (sense.code) {
    case 0x2000: return fail({Errc::unsupported_by_target, describe(sense)});
    case 0x2500: return end({Errc::lun_lost, "the LUN is gone: " + describe(sense)});
    case 0x2400:
    case 0x2600:
      // For reads and writes only a bug of ours leads here; elsewhere a target says with it which
      // service actions and options it lacks.
      if (purpose != ScsiPurpose::data) return fail({Errc::unsupported_by_target, describe(sense)});
      return fail({std::errc::io_error, describe(sense)});
    case 0x2100:
      return fail(
          {std::errc::io_error, "beyond the end of the LUN; has it shrunk? " + describe(sense)});
    default: return fail({std::errc::io_error, describe(sense)});
  }
}

/// LIO's ways to say that it did not do what a PERSISTENT RESERVE OUT asks for.
Verdict not_ready(const Sense& sense, ScsiPurpose purpose) {
  if (sense.code == 0x0401 || sense.code == 0x040a || sense.code == 0x0414) return repeat_later();
  if (sense.code == 0x0800 && purpose == ScsiPurpose::reservation)
    return fail({Errc::reservation_conflict, "this nexus is not registered: " + describe(sense)});
  if (sense.code == 0x0800 && purpose == ScsiPurpose::registration)
    return fail({std::errc::io_error,
                 "the target cannot keep registrations (LIO needs the folder /var/target/pr): " +
                     describe(sense)});
  return fail({std::errc::io_error, describe(sense)});
}

Verdict check_condition(const Sense& sense, ScsiPurpose purpose, bool registered) {
  if (sense.key == sense_key::recovered_error || sense.key == sense_key::no_sense) return {};
  if (sense.deferred && sense.key != sense_key::unit_attention)
    return fail(
        {Errc::not_durable, "an earlier, answered command failed later: " + describe(sense)});
  switch (sense.key) {
    case sense_key::unit_attention: return unit_attention(sense, registered);
    case sense_key::illegal_request: return illegal_request(sense, purpose);
    case sense_key::not_ready: return not_ready(sense, purpose);
    case sense_key::data_protect:
      // Some say with the code of the soft threshold that the hard one has been met.
      if (sense.code == 0x2707 || sense.code == 0x3807)
        return fail(
            {std::errc::no_space_on_device, "the thin LUN has no space left: " + describe(sense)});
      return fail({std::errc::read_only_file_system, describe(sense)});
    case sense_key::aborted_command:
      if (purpose == ScsiPurpose::preempt)
        return fail({Errc::unknown_outcome, "PREEMPT was aborted: " + describe(sense)});
      return repeat();
    case sense_key::medium_error:
    case sense_key::hardware_error: return fail({Errc::bad_medium, describe(sense)});
    default: return fail({std::errc::io_error, describe(sense)});
  }
}

Verdict judge_one(ScsiStatus status, const std::optional<Sense>& sense, ScsiPurpose purpose,
                  bool registered) {
  switch (status) {
    case ScsiStatus::good:
    case ScsiStatus::condition_met: return {};
    case ScsiStatus::check_condition:
      if (!sense) return fail({std::errc::io_error, "CHECK CONDITION without readable sense"});
      return check_condition(*sense, purpose, registered);
    case ScsiStatus::reservation_conflict:
      if ((purpose == ScsiPurpose::data || purpose == ScsiPurpose::flush) && registered)
        return end({Errc::fenced, "RESERVATION CONFLICT on a registered nexus"});
      return fail({Errc::reservation_conflict, "RESERVATION CONFLICT"});
    case ScsiStatus::busy:
    case ScsiStatus::task_set_full: return repeat_later();
    case ScsiStatus::task_aborted:
      if (purpose == ScsiPurpose::preempt)
        return fail({Errc::unknown_outcome, "PREEMPT was aborted by a reset"});
      return repeat();
    case ScsiStatus::aca_active: break;
  }
  return fail({std::errc::io_error, describe(status)});
}

}  // namespace

std::optional<Sense> parse_sense(std::span<const std::byte> bytes) {
  if (bytes.empty()) return std::nullopt;
  auto format = at(bytes, 0) & 0x7f;
  if (format == 0x70 || format == 0x71) {
    if (bytes.size() < 3) return std::nullopt;
    Sense sense{.key = static_cast<std::uint8_t>(at(bytes, 2) & 0xf), .deferred = format == 0x71};
    // The additional length (byte 7) says whether ASC and ASCQ are there.
    if (bytes.size() >= 14 && at(bytes, 7) >= 6)
      sense.code = static_cast<std::uint16_t>((at(bytes, 12) << 8) | at(bytes, 13));
    return sense;
  }
  if (format == 0x72 || format == 0x73) {
    if (bytes.size() < 4) return std::nullopt;
    return Sense{.key = static_cast<std::uint8_t>(at(bytes, 1) & 0xf),
                 .code = static_cast<std::uint16_t>((at(bytes, 2) << 8) | at(bytes, 3)),
                 .deferred = format == 0x73};
  }
  return std::nullopt;
}

std::string describe(const Sense& sense) {
  auto text = fmt::format("{}{} {:02X}/{:02X}", sense.deferred ? "deferred " : "",
                          name_of_key(sense.key), sense.code >> 8, sense.code & 0xff);
  if (auto name = name_of_code(sense.code); !name.empty()) text += fmt::format(" ({})", name);
  return text;
}

std::string describe(ScsiStatus status) {
  switch (status) {
    case ScsiStatus::good: return "GOOD";
    case ScsiStatus::check_condition: return "CHECK CONDITION";
    case ScsiStatus::condition_met: return "CONDITION MET";
    case ScsiStatus::busy: return "BUSY";
    case ScsiStatus::reservation_conflict: return "RESERVATION CONFLICT";
    case ScsiStatus::task_set_full: return "TASK SET FULL";
    case ScsiStatus::aca_active: return "ACA ACTIVE";
    case ScsiStatus::task_aborted: return "TASK ABORTED";
  }
  return fmt::format("SCSI status {:02X}", static_cast<unsigned>(status));
}

bool is_loss(const Error& error) {
  return error == Errc::lun_lost || error == Errc::fenced || error == Errc::reservation_conflict ||
         error == Errc::unknown_outcome;
}

bool outweighs(const Error& one, const Error& other) {
  auto weight = [](const Error& error) {
    if (!error.code()) return 0;
    return is_loss(error) ? 3 : error == Errc::not_durable ? 2 : 1;
  };
  return weight(one) > weight(other);
}

Verdict judge(ScsiStatus status, const std::optional<Sense>& sense, ScsiPurpose purpose,
              bool registered) {
  auto verdict = judge_one(status, sense, purpose, registered);
  // Targets report what they could not write out once, and go on: the next flush is answered GOOD,
  // and what this one was about is not there (a failed fsync of the file or disk behind them).
  if (purpose == ScsiPurpose::flush && verdict.action == Verdict::Action::fail &&
      verdict.error != Errc::unsupported_by_target && verdict.error != Errc::reservation_conflict)
    verdict.error = {Errc::not_durable, "a flush failed: " + verdict.error.message()};
  return verdict;
}

}  // namespace csv::iscsi
