#include "iscsi/scsi.h"

#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

using Action = Verdict::Action;
using Purpose = ScsiPurpose;

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> made;
  for (auto each : values) made.push_back(std::byte(each));
  return made;
}

Sense sense(int key, int code) {
  return {.key = static_cast<std::uint8_t>(key), .code = static_cast<std::uint16_t>(code)};
}

}  // namespace

TEST_CASE("sense data is read in both formats, and nothing is made up where it is cut") {
  auto fixed = bytes({0x70, 0, 0x06, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 0x05, 0, 0, 0, 0});
  CHECK(parse_sense(fixed) == sense(6, 0x2a05));
  auto descriptor = bytes({0x72, 0x05, 0x20, 0x00, 0, 0, 0, 0});
  CHECK(parse_sense(descriptor) == sense(5, 0x2000));
  auto late = bytes({0x71, 0, 0x03, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x0c, 0x00, 0, 0, 0, 0});
  CHECK(parse_sense(late)->deferred);
  CHECK(parse_sense(bytes({0x73, 0x03, 0x0c, 0x00}))->deferred);

  // The key alone, where the additional length ends before ASC and ASCQ.
  auto brief = bytes({0x70, 0, 0x02, 0, 0, 0, 0, 0});
  CHECK(parse_sense(brief) == sense(2, 0));
  CHECK(!parse_sense({}));
  CHECK(!parse_sense(bytes({0x70, 0})));
  CHECK(!parse_sense(bytes({0x72, 6, 0x29})));
  CHECK(!parse_sense(bytes({0x00, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0})));
  for (std::size_t length = 0; length < fixed.size(); ++length) {
    CAPTURE(length);
    auto cut = parse_sense(std::span{fixed}.first(length));
    CHECK(bool(cut) == (length >= 3));
    if (cut) CHECK(cut->code == (length >= 14 ? 0x2a05 : 0));
  }
}

TEST_CASE("sense data of any bytes is read without reading past them") {
  Random random{7};
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> noise(random.below(24));
    for (auto& each : noise) each = std::byte(random.next());
    if (!noise.empty() && random.chance(3, 4)) noise[0] = std::byte(0x70 + random.below(4));
    auto found = parse_sense(noise);
    if (found) CHECK(found->key < 16);
    for (auto purpose :
         {Purpose::data, Purpose::reservation, Purpose::preempt, Purpose::question, Purpose::flush})
      (void)judge(ScsiStatus::check_condition, found, purpose, random.chance(1, 2));
  }
}

TEST_CASE("each status and sense leads to the one right reaction") {
  struct Row {
    const char* what;
    ScsiStatus status;
    std::optional<Sense> sense;
    Purpose purpose;
    bool registered;
    Action action;
    std::error_code error = {};
  };
  const auto check = ScsiStatus::check_condition;
  const std::array rows{
      Row{"good", ScsiStatus::good, {}, Purpose::data, true, Action::done},
      Row{"condition met", ScsiStatus::condition_met, {}, Purpose::data, true, Action::done},
      Row{"recovered", check, sense(1, 0x1701), Purpose::data, true, Action::done},
      Row{"conflict, registered",
          ScsiStatus::reservation_conflict,
          {},
          Purpose::data,
          true,
          Action::end,
          make_error_code(Errc::fenced)},
      Row{"conflict, never registered",
          ScsiStatus::reservation_conflict,
          {},
          Purpose::data,
          false,
          Action::fail,
          make_error_code(Errc::reservation_conflict)},
      Row{"conflict of a PR OUT, registered",
          ScsiStatus::reservation_conflict,
          {},
          Purpose::reservation,
          true,
          Action::fail,
          make_error_code(Errc::reservation_conflict)},
      Row{"conflict of a PREEMPT, registered",
          ScsiStatus::reservation_conflict,
          {},
          Purpose::preempt,
          true,
          Action::fail,
          make_error_code(Errc::reservation_conflict)},
      Row{"busy", ScsiStatus::busy, {}, Purpose::data, true, Action::repeat_later},
      Row{"task set full",
          ScsiStatus::task_set_full,
          {},
          Purpose::preempt,
          true,
          Action::repeat_later},
      Row{"aborted", ScsiStatus::task_aborted, {}, Purpose::data, true, Action::repeat},
      Row{"aborted reservation command",
          ScsiStatus::task_aborted,
          {},
          Purpose::reservation,
          true,
          Action::repeat},
      Row{"aborted preempt",
          ScsiStatus::task_aborted,
          {},
          Purpose::preempt,
          true,
          Action::fail,
          make_error_code(Errc::unknown_outcome)},
      Row{"aca",
          ScsiStatus::aca_active,
          {},
          Purpose::data,
          true,
          Action::fail,
          std::make_error_code(std::errc::io_error)},
      Row{"unknown status",
          ScsiStatus{0x7e},
          {},
          Purpose::data,
          true,
          Action::fail,
          std::make_error_code(std::errc::io_error)},
      Row{"no sense to read",
          check,
          {},
          Purpose::data,
          true,
          Action::fail,
          std::make_error_code(std::errc::io_error)},

      Row{"power on", check, sense(6, 0x2900), Purpose::data, true, Action::repeat},
      Row{"power on before a preempt", check, sense(6, 0x2900), Purpose::preempt, true,
          Action::repeat},
      Row{"commands cleared", check, sense(6, 0x2f00), Purpose::data, true, Action::repeat},
      Row{"capacity changed", check, sense(6, 0x2a09), Purpose::data, true, Action::repeat},
      Row{"mode parameters changed", check, sense(6, 0x2a01), Purpose::data, true, Action::end,
          make_error_code(Errc::lun_lost)},
      Row{"mode parameters changed, while it is being opened", check, sense(6, 0x2a01),
          Purpose::question, false, Action::repeat},
      Row{"inquiry data changed", check, sense(6, 0x3f03), Purpose::flush, true, Action::end,
          make_error_code(Errc::lun_lost)},
      Row{"LUNs changed", check, sense(6, 0x3f0e), Purpose::data, true, Action::repeat},
      Row{"reservations preempted", check, sense(6, 0x2a03), Purpose::data, true, Action::end,
          make_error_code(Errc::fenced)},
      Row{"registrations preempted", check, sense(6, 0x2a05), Purpose::question, true, Action::end,
          make_error_code(Errc::fenced)},
      Row{"registrations preempted, told to a stranger", check, sense(6, 0x2a05), Purpose::data,
          false, Action::repeat},
      Row{"reservations released", check, sense(6, 0x2a04), Purpose::data, true, Action::repeat},

      Row{"becoming ready", check, sense(2, 0x0401), Purpose::data, true, Action::repeat_later},
      Row{"no medium", check, sense(2, 0x3a00), Purpose::data, true, Action::fail,
          std::make_error_code(std::errc::io_error)},
      Row{"medium error", check, sense(3, 0x1100), Purpose::data, true, Action::fail,
          make_error_code(Errc::bad_medium)},
      Row{"hardware error", check, sense(4, 0x4400), Purpose::data, true, Action::fail,
          make_error_code(Errc::bad_medium)},
      Row{"LIO's backend cannot be reached", check, sense(2, 0x0800), Purpose::data, true,
          Action::fail, std::make_error_code(std::errc::io_error)},
      Row{"no such command", check, sense(5, 0x2000), Purpose::data, true, Action::fail,
          make_error_code(Errc::unsupported_by_target)},
      Row{"no such service action", check, sense(5, 0x2400), Purpose::preempt, true, Action::fail,
          make_error_code(Errc::unsupported_by_target)},
      Row{"bad parameters", check, sense(5, 0x2600), Purpose::reservation, true, Action::fail,
          make_error_code(Errc::unsupported_by_target)},
      Row{"bad field of a write", check, sense(5, 0x2400), Purpose::data, true, Action::fail,
          std::make_error_code(std::errc::io_error)},
      Row{"beyond the end", check, sense(5, 0x2100), Purpose::data, true, Action::fail,
          std::make_error_code(std::errc::io_error)},
      Row{"the LUN was taken away", check, sense(5, 0x2500), Purpose::data, true, Action::end,
          make_error_code(Errc::lun_lost)},
      Row{"write protected", check, sense(7, 0x2700), Purpose::data, true, Action::fail,
          std::make_error_code(std::errc::read_only_file_system)},
      Row{"thin LUN full", check, sense(7, 0x2707), Purpose::data, true, Action::fail,
          std::make_error_code(std::errc::no_space_on_device)},
      Row{"thin LUN full, as others say it", check, sense(7, 0x3807), Purpose::data, true,
          Action::fail, std::make_error_code(std::errc::no_space_on_device)},
      Row{"thin LUN nearly full", check, sense(6, 0x3807), Purpose::data, true, Action::repeat},
      Row{"thin LUN gets space", check, sense(2, 0x0414), Purpose::data, true,
          Action::repeat_later},
      Row{"LIO: this nexus is not registered", check, sense(2, 0x0800), Purpose::reservation, false,
          Action::fail, make_error_code(Errc::reservation_conflict)},
      Row{"LIO: nowhere to keep registrations", check, sense(2, 0x0800), Purpose::registration,
          true, Action::fail, std::make_error_code(std::errc::io_error)},
      Row{"aborted command", check, sense(0xb, 0x4700), Purpose::data, true, Action::repeat},
      Row{"aborted command of a preempt", check, sense(0xb, 0x4700), Purpose::preempt, true,
          Action::fail, make_error_code(Errc::unknown_outcome)},
      Row{"deferred error", check, Sense{.key = 3, .code = 0x0c00, .deferred = true}, Purpose::data,
          true, Action::fail, make_error_code(Errc::not_durable)},

      Row{"flush, medium error", check, sense(3, 0x0c00), Purpose::flush, true, Action::fail,
          make_error_code(Errc::not_durable)},
      Row{"flush, LIO's fsync failed", check, sense(2, 0x0800), Purpose::flush, true, Action::fail,
          make_error_code(Errc::not_durable)},
      Row{"flush, no space behind it", check, sense(7, 0x2707), Purpose::flush, true, Action::fail,
          make_error_code(Errc::not_durable)},
      Row{"flush, no such command", check, sense(5, 0x2000), Purpose::flush, true, Action::fail,
          make_error_code(Errc::unsupported_by_target)},
      Row{"flush, bad field", check, sense(5, 0x2400), Purpose::flush, true, Action::fail,
          make_error_code(Errc::unsupported_by_target)},
      Row{"flush, the LUN was taken away", check, sense(5, 0x2500), Purpose::flush, true,
          Action::end, make_error_code(Errc::lun_lost)},
      Row{"flush, busy", ScsiStatus::busy, {}, Purpose::flush, true, Action::repeat_later},
      Row{"flush, power on", check, sense(6, 0x2900), Purpose::flush, true, Action::repeat},
      Row{"flush, conflict, registered",
          ScsiStatus::reservation_conflict,
          {},
          Purpose::flush,
          true,
          Action::end,
          make_error_code(Errc::fenced)},
      Row{"flush, conflict, never registered",
          ScsiStatus::reservation_conflict,
          {},
          Purpose::flush,
          false,
          Action::fail,
          make_error_code(Errc::reservation_conflict)},
  };
  for (const auto& row : rows) {
    CAPTURE(row.what);
    auto verdict = judge(row.status, row.sense, row.purpose, row.registered);
    CHECK(verdict.action == row.action);
    CHECK(verdict.error.code() == row.error);
    if (row.error) CHECK(!verdict.error.message().empty());
  }
}

TEST_CASE("what is said of sense names key and code") {
  CHECK(describe(sense(6, 0x2a05)) == "UNIT ATTENTION 2A/05 (registrations preempted)");
  CHECK(describe(sense(3, 0x1177)) == "MEDIUM ERROR 11/77");
  CHECK(describe(ScsiStatus::task_set_full) == "TASK SET FULL");
}
