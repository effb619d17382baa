#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/volume/volume.h"
#include "csvfs/base/blocking.h"
#include "iscsi/ram_lun.h"
#include "tests/fakes/manual_loop.h"

namespace csv::fuzz {

/// Everything on one thread and in virtual time, so that an input always does the same.
class Turns final : public Blocking {
 public:
  explicit Turns(fakes::ManualLoop& loop) : loop_{&loop} {}
  /// Whoever waits lets the loop go on meanwhile.
  void wait(Function<void(std::function<void()> wake)> start) override;

 private:
  fakes::ManualLoop* loop_;
};

/// A volume's writer without a thread: its work runs on the loop, one piece after the other.
class InlineWorker final : public Worker {
 public:
  explicit InlineWorker(fakes::ManualLoop& loop)
      : state_{std::make_shared<State>(loop)}, turns_{loop} {}
  ~InlineWorker() override;
  void post(Function<void()> work) override;
  Blocking& blocking() override { return turns_; }

 private:
  struct State {
    explicit State(fakes::ManualLoop& on) : loop{&on} {}
    fakes::ManualLoop* loop;
    std::deque<Function<void()>> queue;
    bool busy = false;
  };
  static void pump(const std::shared_ptr<State>& state);
  std::shared_ptr<State> state_;
  Turns turns_;
};

inline constexpr std::uint64_t kLunSize = 512ull << 20;
inline constexpr std::uint16_t kCluster = 4711;

/// A volume with a few files, made once a process: what is not zero of its LUN.
struct Image {
  volume::VolumeInfo info;
  std::vector<std::pair<std::uint64_t, std::vector<std::byte>>> parts;
};
const Image& image();

/// A LUN that holds the image.
std::shared_ptr<iscsi::RamDisk> disk_of(const Image& image, fakes::ManualLoop& loop);

/// Runs the loop, some of its time, until `done`; false if it never is.
bool run_until(fakes::ManualLoop& loop, const std::function<bool()>& done, Duration limit);

}  // namespace csv::fuzz
