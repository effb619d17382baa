#include "csvfs/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdlib>

namespace csv::log {
namespace {

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::debug: return spdlog::level::debug;
    case Level::info: return spdlog::level::info;
    case Level::warning: return spdlog::level::warn;
    case Level::error: return spdlog::level::err;
  }
  return spdlog::level::err;
}

}  // namespace

void set_up(const std::string& program, Level least) {
  auto logger = spdlog::stderr_logger_mt(program);
  // Under systemd the journal has the time, and takes the priority from a prefix.
  logger->set_pattern(std::getenv("JOURNAL_STREAM") ? "%n: %v"
                                                    : "%Y-%m-%dT%H:%M:%S.%e %n[%P] %l %v");
  logger->set_level(to_spdlog(least));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
}

bool enabled(Level level) { return spdlog::default_logger_raw()->should_log(to_spdlog(level)); }
void write(Level level, std::string_view line) {
  spdlog::default_logger_raw()->log(to_spdlog(level), fmt::string_view{line.data(), line.size()});
}

}  // namespace csv::log
