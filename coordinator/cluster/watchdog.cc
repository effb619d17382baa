#include "coordinator/cluster/watchdog.h"

#include <fcntl.h>
#include <linux/watchdog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "coordinator/cluster/lease_timing.h"
#include "csvfs/base/config.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

constexpr Duration kTick = 1s;

// A lease that lapses while all is well, for a restart of csvd or a moment without a quorum, must
// not reset the machine: its mounts have until then to say that they are closed, once a second.
static_assert(kShortestWatchdog >= LeaseTiming{}.over_after + 4 * kTick);

Error failed(const char* what) {
  return Error{std::error_code{errno, std::generic_category()},
               std::string{"the watchdog: "} + what};
}

class DescriptorWatchdog final : public WatchdogDevice {
 public:
  explicit DescriptorWatchdog(int descriptor) : descriptor_{descriptor} {}
  ~DescriptorWatchdog() override { ::close(descriptor_); }

  Expected<Duration> set_timeout(Duration timeout) override {
    int seconds = static_cast<int>(timeout / 1s);
    if (::ioctl(descriptor_, WDIOC_SETTIMEOUT, &seconds) != 0) return failed("setting its timeout");
    return Duration{std::chrono::seconds{seconds}};
  }
  Expected<void> pet() override { return say('\0', "petting it"); }
  /// The magic character: closed after it, it stops.
  Expected<void> disarm() override { return say('V', "disarming it"); }

 private:
  Expected<void> say(char what, const char* doing) {
    if (::write(descriptor_, &what, 1) != 1) return failed(doing);
    return {};
  }
  int descriptor_;
};

}  // namespace

bool sends_nothing(const BoardMount& mount, TimePoint open_until) {
  return mount.pid == 0 || (mount.gate_closed && mount.said >= open_until);
}

std::unique_ptr<WatchdogDevice> watchdog_on(int descriptor) {
  return std::make_unique<DescriptorWatchdog>(descriptor);
}

Expected<std::unique_ptr<WatchdogDevice>> open_watchdog(const std::string& path) {
  int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const char* hint = errno == ENOENT ? "load its driver (softdog is one without hardware)"
                       : errno == EBUSY
                           ? "another program has it: systemd's RuntimeWatchdogSec, or sbd"
                           : "csvd must be able to write to it";
    return Error{Errc::refused, fmt::format("watchdog {} cannot be opened ({}): {}", path,
                                            std::generic_category().message(errno), hint)};
  }
  auto device = watchdog_on(descriptor);
  struct watchdog_info about {};
  if (::ioctl(descriptor, WDIOC_GETSUPPORT, &about) == 0) return device;
  auto why = std::generic_category().message(errno);
  (void)device->disarm();
  return Error{Errc::refused, fmt::format("{} is no watchdog ({})", path, why)};
}

Expected<std::unique_ptr<Watchdog>> Watchdog::start(std::unique_ptr<WatchdogDevice> device,
                                                    Duration timeout, Surroundings with) {
  auto counts_to = device->set_timeout(timeout);
  if (!counts_to || *counts_to < kShortestWatchdog) {
    (void)device->disarm();
    if (!counts_to) return counts_to.error();
    return Error{
        Errc::refused,
        fmt::format("the watchdog counts to {} s at most: a lease that lapses for a moment "
                    "would reset the machine; {} s is the least",
                    *counts_to / 1s, kShortestWatchdog / 1s)};
  }
  if (*counts_to != timeout)
    log::warning("watchdog_timeout asked_s={} set_s={}", timeout / 1s, *counts_to / 1s);
  std::unique_ptr<Watchdog> made{new Watchdog{std::move(device), *counts_to, std::move(with)}};
  if (auto petted = made->pet(); !petted) {
    made->disarm();
    return petted.error();
  }
  log::info("watchdog_armed timeout_s={}", *counts_to / 1s);
  return made;
}

Watchdog::Watchdog(std::unique_ptr<WatchdogDevice> device, Duration timeout, Surroundings with)
    : device_{std::move(device)}, with_{std::move(with)} {
  state_.timeout = timeout;
  timer_ = with_.loop->after(kTick, [this] { tick(); });
}

Watchdog::~Watchdog() { with_.loop->cancel(timer_); }

Expected<void> Watchdog::pet() {
  CSV_TRY(device_->pet());
  state_.petted = with_.loop->now();
  return {};
}

void Watchdog::tick() {
  timer_ = with_.loop->after(kTick, [this] { tick(); });
  auto why = why_not();
  if (why.empty())
    if (auto petted = pet(); !petted) why = petted.error().message();
  if (why == state_.withheld) return;
  if (why.empty()) {
    log::info("watchdog_petted_again");
    events::report(events::Severity::info, "watchdog", "", "it is petted again", state_.withheld);
  } else {
    log::error("watchdog_withheld timeout_s={} why=\"{}\"", state_.timeout / 1s, why);
    events::report(
        events::Severity::error, "watchdog", "",
        fmt::format("it is not petted: the machine is reset within {} s", state_.timeout / 1s),
        why);
  }
  state_.withheld = std::move(why);
}

void Watchdog::give_up(std::string why) {
  given_up_ = true;
  state_.withheld = std::move(why);
}

std::string Watchdog::why_not() const {
  if (given_up_) return state_.withheld;
  return with_.lease_runs() ? "" : with_.not_closed();
}

void Watchdog::end() {
  with_.loop->cancel(timer_);
  if (device_ == nullptr) return;
  auto why = why_not();
  if (why.empty()) return disarm();
  log::warning("watchdog_counts_on timeout_s={} why=\"{}\"", state_.timeout / 1s, why);
  device_.reset();
}

void Watchdog::disarm() {
  with_.loop->cancel(timer_);
  if (auto disarmed = device_->disarm(); !disarmed)
    log::warning("watchdog_not_disarmed why=\"{}\"", disarmed.error().message());
  device_.reset();
}

}  // namespace csv::cluster
