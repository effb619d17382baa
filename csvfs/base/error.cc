#include "csvfs/base/error.h"

#include <cerrno>

namespace csv {
namespace {

class Category final : public std::error_category {
  const char* name() const noexcept override { return "csv"; }

  std::string message(int code) const override {
    switch (static_cast<Errc>(code)) {
      case Errc::stale_epoch: return "a newer coordinator has taken over";
      case Errc::not_coordinator: return "another node coordinates this volume";
      case Errc::fenced: return "this process has been fenced off the LUN";
      case Errc::corrupt: return "stored data failed its checksum";
      case Errc::unknown_outcome: return "the command may or may not have taken effect";
      case Errc::lun_lost: return "the path to the LUN is lost";
      case Errc::stale_commit: return "the file's mapping changed since the grant";
      case Errc::session_ended: return "the session has ended at the coordinator";
      case Errc::refused: return "refused";
      case Errc::closed: return "the connection ended";
      case Errc::unsupported_by_target: return "the target does not support this command";
      case Errc::reservation_conflict: return "reservation conflict";
      case Errc::superseded: return "a newer owner has this volume";
      case Errc::retry: return "try again";
      case Errc::not_durable: return "the storage lost data that had not been flushed";
      case Errc::reset_unanswered: return "the target does not answer a LUN RESET";
      case Errc::bad_medium: return "the storage cannot read or write there";
    }
    return "csv error " + std::to_string(code);
  }

  std::error_condition default_error_condition(int code) const noexcept override {
    switch (static_cast<Errc>(code)) {
      case Errc::stale_epoch:
      case Errc::not_coordinator:
      case Errc::retry: return std::errc::resource_unavailable_try_again;
      case Errc::refused: return std::errc::invalid_argument;
      default: return std::errc::io_error;
    }
  }
};

}  // namespace

const std::error_category& csv_category() noexcept {
  static const Category category;
  return category;
}

int Error::to_errno() const noexcept {
  if (!code_) return 0;
  auto seen = code_.default_error_condition();
  return seen.category() == std::generic_category() ? seen.value() : EIO;
}

Error errno_error(int number, std::string_view doing) {
  std::error_code code{number, std::generic_category()};
  return doing.empty() ? Error{code} : Error{code, std::string{doing} + ": " + code.message()};
}

}  // namespace csv
