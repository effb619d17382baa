#include "csvfs/base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>

#include "csvfs/base/systemd.h"

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

/// The priority by which the journal sorts (`journalctl -p warning`).
class JournalPriority : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& to) override {
    std::string_view word = message.level >= spdlog::level::err    ? "<3>"
                            : message.level == spdlog::level::warn ? "<4>"
                            : message.level == spdlog::level::info ? "<6>"
                                                                   : "<7>";
    to.append(word.data(), word.data() + word.size());
  }
  [[nodiscard]] std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<JournalPriority>();
  }
};

}  // namespace

void set_up(const std::string& program, Level least) {
  auto logger = spdlog::stderr_logger_mt(program);
  auto pattern = std::make_unique<spdlog::pattern_formatter>();
  // The journal has name, process and time by itself, and takes the priority from a prefix.
  if (leads_to_journal(STDERR_FILENO))
    pattern->add_flag<JournalPriority>('*').set_pattern("%*%v");
  else
    pattern->set_pattern("%Y-%m-%dT%H:%M:%S.%e %n[%P] %l %v");
  logger->set_formatter(std::move(pattern));
  logger->set_level(to_spdlog(least));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
}

bool enabled(Level level) { return spdlog::default_logger_raw()->should_log(to_spdlog(level)); }
void write(Level level, std::string_view line) {
  spdlog::default_logger_raw()->log(to_spdlog(level), fmt::string_view{line.data(), line.size()});
}

}  // namespace csv::log
