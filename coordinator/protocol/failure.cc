#include "coordinator/protocol/failure.h"

namespace csv::protocol {

wire::Failure encode(const Error& error) {
  wire::Failure out;
  auto code = error.code();
  if (code.category() == csv_category()) {
    out.set_code(static_cast<std::uint32_t>(code.value()));
  } else {
    out.set_generic(true);
    out.set_code(static_cast<std::uint32_t>(error.to_errno()));
  }
  out.set_message(error.message());
  return out;
}

Error decode(const wire::Failure& failure) {
  constexpr std::uint32_t kMaxErrno = 4095;
  if (failure.code() == 0) return {};
  if (failure.generic() && failure.code() <= kMaxErrno)
    return Error{std::error_code{static_cast<int>(failure.code()), std::generic_category()},
                 failure.message()};
  if (!failure.generic() && failure.code() <= static_cast<std::uint32_t>(Errc::not_durable))
    return Error{static_cast<Errc>(failure.code()), failure.message()};
  return Error{std::errc::io_error, failure.message()};
}

}  // namespace csv::protocol
