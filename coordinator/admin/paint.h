#pragma once
#include <string>
#include <string_view>

namespace csv::admin {

/// Colours for people who look at a terminal; elsewhere texts pass through as they are.
class Paint {
 public:
  explicit Paint(bool on = false) : on_{on} {}
  /// By what the standard output is, $NO_COLOR and $TERM.
  static Paint standard();

  [[nodiscard]] std::string bold(std::string_view text) const { return in("1", text); }
  [[nodiscard]] std::string faint(std::string_view text) const { return in("2", text); }
  [[nodiscard]] std::string good(std::string_view text) const { return in("32", text); }
  [[nodiscard]] std::string warning(std::string_view text) const { return in("33", text); }
  [[nodiscard]] std::string bad(std::string_view text) const { return in("1;31", text); }
  [[nodiscard]] bool on() const { return on_; }

 private:
  [[nodiscard]] std::string in(std::string_view code, std::string_view text) const {
    if (!on_ || text.empty()) return std::string{text};
    return "\033[" + std::string{code} + "m" + std::string{text} + "\033[0m";
  }
  bool on_;
};

}  // namespace csv::admin
