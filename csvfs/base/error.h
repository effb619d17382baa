#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>

namespace csv {

/// Failures a caller of ours may want to act on. Anything the kernel or a library already names
/// (ENOSPC, ETIMEDOUT, ...) stays a std::errc. Append only: the numbers travel in replies.
enum class Errc : std::uint16_t {
  stale_epoch = 1,      ///< The sender's view is old: a newer coordinator exists. Refresh, retry.
  not_coordinator = 2,  ///< This node does not coordinate the volume: ask the status board again.
  fenced = 3,           ///< Our key is gone from the LUN: issue no further I/O on this admission.
  corrupt = 4,          ///< A checksum or structure check failed: the bytes must not be used.
  unknown_outcome = 5,  ///< The command may or may not have taken, or may yet take, effect.
  lun_lost = 6,      ///< The way to the LUN is gone; every command in flight is of unknown outcome.
  stale_commit = 7,  ///< The mapping changed since the grant was given: nothing was applied.
  session_ended = 8,  ///< The coordinator no longer knows the session: its state is gone.
  refused = 9,        ///< Bad input or a state that forbids it; nothing changed. See the message.
  closed = 10,        ///< The connection ended; whether the peer saw the request is unknown.
  unsupported_by_target = 11,  ///< The target does not have this command (ILLEGAL REQUEST).
  reservation_conflict = 12,   ///< The target refused because of somebody's reservation.
  superseded = 13,        ///< A newer cluster or coordinator owns this volume: stop serving it.
  retry = 14,             ///< Not now; the same request may be sent again unchanged.
  not_durable = 15,       ///< The target lost what its volatile cache held.
  reset_unanswered = 16,  ///< The target serves, but does not answer a LUN RESET. Repeat it.
  bad_medium = 17,        ///< The LUN cannot read or write there, and says that this will stay so.
};
/// The last of them.
inline constexpr Errc kLastErrc = Errc::bad_medium;

const std::error_category& csv_category() noexcept;
inline std::error_code make_error_code(Errc e) noexcept {
  return {static_cast<int>(e), csv_category()};
}
}  // namespace csv
template <>
struct std::is_error_code_enum<csv::Errc> : std::true_type {};

namespace csv {

/// Why something failed: a code to act on, and a sentence for the person who must act (what failed,
/// on what, why, and where there is one, what to do). A value; cheap to move.
class [[nodiscard]] Error {
 public:
  Error() = default;
  Error(std::error_code code, std::string message = {})
      : code_{code}, message_{std::move(message)} {}
  Error(Errc code, std::string message = {}) : Error{make_error_code(code), std::move(message)} {}
  Error(std::errc code, std::string message = {})
      : Error{std::make_error_code(code), std::move(message)} {}

  [[nodiscard]] std::error_code code() const noexcept { return code_; }
  /// The sentence; the code's own text where none was given.
  [[nodiscard]] std::string message() const {
    return message_.empty() ? code_.message() : message_;
  }
  /// The same error seen from one level up: "reading superblock A: <message>".
  [[nodiscard]] Error within(std::string_view doing) const {
    return Error{code_, std::string{doing} + ": " + message()};
  }
  /// What a program sees if the error reaches its system call (a positive errno).
  [[nodiscard]] int to_errno() const noexcept;

  friend bool operator==(const Error& a, std::error_code b) { return a.code_ == b; }
  friend bool operator==(const Error& a, Errc b) { return a.code_ == make_error_code(b); }
  /// What a program would see of it, so a csv error may equal one, too: most equal EIO.
  friend bool operator==(const Error& a, std::errc b) { return a.code_ == b; }

 private:
  std::error_code code_;
  std::string message_;
};

/// An errno as an Error, with what was being done.
Error errno_error(int number, std::string_view doing = {});

/// A T or the reason there is none: the subset of std::expected<T, Error> we use, until the
/// toolchain has it.
template <typename T>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : state_{std::in_place_index<0>, std::move(value)} {}
  Expected(Error why) : state_{std::in_place_index<1>, std::move(why)} {}
  Expected(Errc why) : Expected{Error{why}} {}
  Expected(std::errc why) : Expected{Error{why}} {}

  explicit operator bool() const noexcept { return state_.index() == 0; }
  T& operator*() & { return *std::get_if<0>(&state_); }
  const T& operator*() const& { return *std::get_if<0>(&state_); }
  T operator*() && { return std::move(*std::get_if<0>(&state_)); }
  T* operator->() { return std::get_if<0>(&state_); }
  const T* operator->() const { return std::get_if<0>(&state_); }
  [[nodiscard]] Error error() const { return *this ? Error{} : *std::get_if<1>(&state_); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Expected<void> {
 public:
  Expected() = default;
  Expected(Error why) : why_{std::move(why)} {}
  Expected(Errc why) : why_{why} {}
  Expected(std::errc why) : why_{why} {}
  explicit operator bool() const noexcept { return !why_.code(); }
  void operator*() const noexcept {}
  [[nodiscard]] Error error() const { return why_; }

 private:
  Error why_;
};

/// The value of `expr`, or return its error from the enclosing function.
#define CSV_TRY(expr)                                   \
  __extension__({                                       \
    auto csv_try_result = (expr);                       \
    if (!csv_try_result) return csv_try_result.error(); \
    *std::move(csv_try_result);                         \
  })

/// Declares `name` as the value of `expr`, or co_returns its error. A declaration and not an
/// expression, because g++ 12 crashes on co_return inside a statement expression.
#define CSV_CO_TRY(name, expr)                             \
  auto name##_or_error = (expr);                           \
  if (!name##_or_error) co_return name##_or_error.error(); \
  auto& name = *name##_or_error

/// The same for an Expected<void>.
#define CSV_CO_CHECK(expr)                                                   \
  do {                                                                       \
    if (auto csv_result = (expr); !csv_result) co_return csv_result.error(); \
  } while (false)

}  // namespace csv
