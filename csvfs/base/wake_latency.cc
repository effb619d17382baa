#include "csvfs/base/wake_latency.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <string>

#include "csvfs/base/log.h"

namespace csv {
namespace {

constexpr Duration kWithin = 32ms;
constexpr Duration kLookEvery = 20ms;
constexpr std::uint32_t kStillMany =
    10;  ///< Between two looks: half the rate, so it does not flap.

constexpr const char* kBound = "/dev/cpu_dma_latency";
constexpr const char* kIdleDriver = "/sys/devices/system/cpu/cpuidle/current_driver";

class Descriptor {
 public:
  explicit Descriptor(int number) : number_{number} {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(number_); }

  /// Microseconds. A bound that is refused is one that is not held.
  void bound(std::int32_t value) const {
    if (::write(number_, &value, sizeof value) != sizeof value)
      log::warning("wake_latency bound={} error=\"{}\"", value, std::strerror(errno));
  }

 private:
  int number_;
};

/// A processor that wakes within 2 us may halt (C1), and leaves its core to its sibling. Virtual
/// machines know only one kind of sleep, an exit to the hypervisor: there it must not sleep at all.
std::int32_t quick_us() {
  std::string driver;
  std::ifstream{kIdleDriver} >> driver;
  return driver == "haltpoll" ? 0 : 2;
}

}  // namespace

WakeLatency::~WakeLatency() {
  if (!held_) return;
  loop_->cancel(timer_);
  hold_(false);
}

void WakeLatency::many() {
  since_ = 0;
  auto now = loop_->now();
  bool quickly = now - std::exchange(from_, now) <= kWithin;
  if (!hold_ || !quickly) return;
  held_ = true;
  hold_(true);
  look();
}

void WakeLatency::look() {
  timer_ = loop_->after(kLookEvery, [this] {
    if (std::exchange(since_, 0) >= kStillMany) return look();
    held_ = false;
    from_ = loop_->now();
    hold_(false);
  });
}

Function<void(bool)> machine_wake_latency() {
  int number = ::open(kBound, O_WRONLY | O_CLOEXEC);
  if (number < 0) {
    log::info("wake_latency unused why=\"{}: {}\"", kBound, std::strerror(errno));
    return {};
  }
  auto device = std::make_shared<Descriptor>(number);
  auto none = std::numeric_limits<std::int32_t>::max();  // more than the kernel's default: no bound
  return [device, quick = quick_us(), none](bool held) { device->bound(held ? quick : none); };
}

}  // namespace csv
