#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "csvfs/base/error.h"

namespace csv::iscsi {

/// What a target says about a command that has ended (SAM-5 table 42).
enum class ScsiStatus : std::uint8_t {
  good = 0x00,
  check_condition = 0x02,
  condition_met = 0x04,
  busy = 0x08,
  reservation_conflict = 0x18,
  task_set_full = 0x28,
  aca_active = 0x30,
  task_aborted = 0x40,
};

/// Why a command ended in CHECK CONDITION (SPC-4, 4.5). `code` is ASC and ASCQ in one number, as
/// they are usually written: 2A/05 is 0x2a05.
struct Sense {
  std::uint8_t key = 0;
  std::uint16_t code = 0;
  bool deferred = false;  ///< About an earlier command that had been answered GOOD.

  friend bool operator==(const Sense&, const Sense&) = default;
};

/// Sense keys (SPC-4 table 48) that we act on.
namespace sense_key {
inline constexpr std::uint8_t no_sense = 0x0, recovered_error = 0x1, not_ready = 0x2,
                              medium_error = 0x3, hardware_error = 0x4, illegal_request = 0x5,
                              unit_attention = 0x6, data_protect = 0x7, aborted_command = 0xb;
}

/// Both formats of sense data; nothing where the bytes are none of them or too short to say.
std::optional<Sense> parse_sense(std::span<const std::byte> bytes);

/// "UNIT ATTENTION 2A/05 (registrations preempted)", for messages.
std::string describe(const Sense& sense);
std::string describe(ScsiStatus status);

/// What a command was, as far as the meaning of its failure depends on it.
enum class ScsiPurpose : std::uint8_t {
  data,          ///< Reads, writes and the like: obeys reservations, may be repeated.
  reservation,   ///< PERSISTENT RESERVE OUT: a conflict says something about its own parameters.
  registration,  ///< As reservation, of those that need no registration: REGISTER.
  preempt,       ///< As reservation, and never repeated once the target may have begun it.
  question,      ///< Changes nothing.
  flush,         ///< As data; where it fails, what was answered before may be gone (not_durable).
};

/// Whether the error says that the nexus is lost, or may not be used: what was under way on it may
/// have taken effect, and may yet.
bool is_loss(const Error& error);
/// Which of two errors of parts of one request says more: a loss leaves parts of unknown outcome,
/// so it must not hide behind a part that simply failed; nor must that earlier answers are void.
bool outweighs(const Error& one, const Error& other);

/// What to do with an answer. The one place that knows the meaning of statuses and sense.
struct Verdict {
  enum class Action : std::uint8_t {
    done,          ///< It succeeded.
    fail,          ///< It failed with `error`; the nexus goes on.
    repeat,        ///< The target did not do it, or not all of it: send it again.
    repeat_later,  ///< As repeat, after a moment: the target has no room or is not ready.
    end,           ///< The nexus is of no more use: it ends with `error`.
  };
  Action action = Action::done;
  Error error;
};

/// `registered`: whether this nexus holds a registration as far as we know. Decides between fenced
/// (it had one and lost it) and reservation_conflict (it never had).
Verdict judge(ScsiStatus status, const std::optional<Sense>& sense, ScsiPurpose purpose,
              bool registered);

}  // namespace csv::iscsi
