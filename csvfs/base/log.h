#pragma once
#include <spdlog/fmt/fmt.h>

#include <string>
#include <string_view>

namespace csv::log {

/// The door to logging (spdlog). One line a transition, "event key=value key=value", at the place
/// that decided it. Any thread.
enum class Level { debug, info, warning, error };
void set_up(const std::string& program,
            Level least);  ///< To stderr; as the journal wants it where that leads there.
bool enabled(Level level);
void write(Level level, std::string_view line);

template <typename... Args>
void debug(fmt::format_string<Args...> text, Args&&... args) {
  if (enabled(Level::debug)) write(Level::debug, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void info(fmt::format_string<Args...> text, Args&&... args) {
  if (enabled(Level::info)) write(Level::info, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> text, Args&&... args) {
  if (enabled(Level::warning))
    write(Level::warning, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void error(fmt::format_string<Args...> text, Args&&... args) {
  if (enabled(Level::error)) write(Level::error, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace csv::log
