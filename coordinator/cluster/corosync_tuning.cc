#include "coordinator/cluster/corosync_tuning.h"

#include <corosync/cmap.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>
#include <utility>

#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

constexpr std::string_view kOurs = "# Written by csvfs.";

Error refused(std::string why) { return {Errc::refused, "corosync.conf: " + std::move(why)}; }

/// `key: value` in a line of its own, however deep: the value is another one. How often.
int replace_values(std::string& text, std::string_view key, const std::string& value) {
  int count = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    auto end = std::min(text.find('\n', at), text.size());
    auto from = text.find_first_not_of(" \t", at);
    if (from < end && text.compare(from, key.size(), key) == 0 && from + key.size() < end &&
        text[from + key.size()] == ':') {
      auto rest = from + key.size() + 1;
      auto with = " " + value;
      text.replace(rest, end - rest, with);
      end = rest + with.size();
      ++count;
    }
    at = end + 1;
  }
  return count;
}

Error from_corosync(cs_error_t error, const std::string& doing) {
  return {std::errc::io_error, fmt::format("{}: Corosync says {}", doing, static_cast<int>(error))};
}

Expected<void> tell_corosync(const Heartbeat& heartbeat) {
  cmap_handle_t handle = 0;
  if (auto error = cmap_initialize(&handle); error != CS_OK)
    return from_corosync(error, "reaching its settings (cmap)");
  struct Finalize {
    cmap_handle_t handle;
    ~Finalize() { cmap_finalize(handle); }
  } finalize{handle};
  auto token = static_cast<std::uint32_t>(heartbeat.delay * heartbeat.threshold / 1ms);
  struct Setting {
    const char* key;
    std::uint32_t value;
  };
  for (auto [key, value] :
       {Setting{"totem.token_retransmits_before_loss_const", heartbeat.threshold},
        Setting{"totem.token", token}})
    if (auto error = cmap_set_uint32(handle, key, value); error != CS_OK)
      return from_corosync(error, fmt::format("setting {} to {}", key, value));
  std::uint32_t now = 0;
  if (auto error = cmap_get_uint32(handle, "runtime.config.totem.token", &now); error != CS_OK)
    return from_corosync(error, "reading its token back");
  if (now != token)
    return Error{std::errc::io_error,
                 fmt::format("Corosync goes on with a token of {} ms, not {}", now, token)};
  return {};
}

Expected<void> write_file(const std::string& path, const Heartbeat& heartbeat) {
  std::ifstream in{path};
  if (!in) return errno_error(ENOENT, "reading " + path);
  std::string text{std::istreambuf_iterator<char>{in}, {}};
  auto wanted = with_heartbeat(text, heartbeat);
  if (!wanted) return wanted.error();
  if (*wanted == text) return {};
  auto temporary = path + ".csvd";
  std::FILE* out = std::fopen(temporary.c_str(), "w");
  if (out == nullptr) return errno_error(errno, "writing " + temporary);
  bool written = std::fwrite(wanted->data(), 1, wanted->size(), out) == wanted->size() &&
                 std::fflush(out) == 0 && ::fchmod(::fileno(out), 0644) == 0 &&
                 ::fsync(::fileno(out)) == 0;
  auto why = errno;
  if (std::fclose(out) != 0 || !written || std::rename(temporary.c_str(), path.c_str()) != 0) {
    if (written) why = errno;
    (void)std::remove(temporary.c_str());
    return errno_error(why, "writing " + path);
  }
  return {};
}

}  // namespace

Expected<std::string> with_heartbeat(std::string_view conf, const Heartbeat& heartbeat) {
  if (!conf.starts_with(kOurs)) return refused("it was not written by csvfs, and is left alone");
  auto token = heartbeat.delay * heartbeat.threshold;
  auto ms = [](Duration time) { return std::to_string(time / 1ms); };
  std::string out{conf};
  if (replace_values(out, "token", ms(token)) != 1 ||
      replace_values(out, "token_retransmits_before_loss_const",
                     std::to_string(heartbeat.threshold)) != 1)
    return refused("it has no heartbeats to be changed: csvctl cluster prepare");
  // As render() has them.
  replace_values(out, "knet_ping_interval", ms(token / 10));
  replace_values(out, "knet_ping_timeout", ms(token * 4 / 10));
  return out;
}

struct CorosyncTuning::Shared {
  std::mutex mutex;
  Loop* loop;  ///< Null once the owner is gone.
};

CorosyncTuning::CorosyncTuning(Loop& loop, std::string conf)
    : conf_{std::move(conf)}, shared_{std::make_shared<Shared>()} {
  shared_->loop = &loop;
}

CorosyncTuning::~CorosyncTuning() {
  std::lock_guard lock{shared_->mutex};
  shared_->loop = nullptr;
}

void CorosyncTuning::apply(const Heartbeat& heartbeat, Function<void(Expected<void>)> done) {
  busy_ = true;
  auto work = [this, shared = shared_, heartbeat, conf = conf_, done = std::move(done)]() mutable {
    auto told = tell_corosync(heartbeat);
    auto written = write_file(conf, heartbeat);
    auto result = told ? written : told;
    std::lock_guard lock{shared->mutex};
    if (shared->loop == nullptr) return;
    shared->loop->post([this, shared, result, done = std::move(done)]() mutable {
      {
        std::lock_guard inside{shared->mutex};
        if (shared->loop == nullptr) return;
      }
      busy_ = false;
      done(result);
    });
  };
  std::thread{std::move(work)}.detach();
}

}  // namespace csv::cluster
