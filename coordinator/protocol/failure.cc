#include "coordinator/protocol/failure.h"

#include <string>

#include "coordinator/protocol/limits.h"

namespace csv::protocol {
namespace {

/// Length of the UTF-8 sequence at `at`, 0 where there is no whole valid one.
std::size_t sequence_at(const std::string& text, std::size_t at) {
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t length = byte(at) < 0x80                       ? 1
                       : byte(at) >= 0xc2 && byte(at) < 0xe0 ? 2
                       : byte(at) >= 0xe0 && byte(at) < 0xf0 ? 3
                       : byte(at) >= 0xf0 && byte(at) < 0xf5 ? 4
                                                             : 0;
  if (length == 0 || at + length > text.size()) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  // Overlong forms, surrogates and what lies beyond U+10FFFF show in the second byte.
  if (length >= 3) {
    auto first = byte(at), second = byte(at + 1);
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0) ||
        (first == 0xf0 && second < 0x90) || (first == 0xf4 && second >= 0x90))
      return 0;
  }
  return length;
}

/// A `string` of the schema must be UTF-8, or the receiver refuses the whole message; names of
/// files inside an error need not be.
std::string sendable(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size() && out.size() < kMaxText - 4;) {
    auto length = sequence_at(text, at);
    if (length == 0)
      out += '?';
    else
      out.append(text, at, length);
    at += length == 0 ? 1 : length;
  }
  return out;
}

}  // namespace

wire::Failure encode(const Error& error) {
  wire::Failure out;
  auto code = error.code();
  if (code.category() == csv_category()) {
    out.set_code(static_cast<std::uint32_t>(code.value()));
  } else {
    out.set_generic(true);
    out.set_code(static_cast<std::uint32_t>(error.to_errno()));
  }
  out.set_message(sendable(error.message()));
  return out;
}

Error decode(const wire::Failure& failure) {
  constexpr std::uint32_t kMaxErrno = 4095;
  if (failure.code() == 0) return {};
  if (failure.generic() && failure.code() <= kMaxErrno)
    return Error{std::error_code{static_cast<int>(failure.code()), std::generic_category()},
                 failure.message()};
  if (!failure.generic() && failure.code() <= static_cast<std::uint32_t>(kLastErrc))
    return Error{static_cast<Errc>(failure.code()), failure.message()};
  return Error{std::errc::io_error, failure.message()};
}

}  // namespace csv::protocol
