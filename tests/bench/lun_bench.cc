// Measures a Lun by itself: commands of one size, a fixed number in flight, for a while. Prints one
// JSON object. Overwrites the LUN when asked to write.
//
//   csv_lun_bench URL [--op read|write] [--pattern random|sequential] [--block BYTES] [--depth N]
//                 [--threads N] [--seconds S] [--sessions N] [--range BYTES] [--key HEX]
//                 [--initiator IQN] [--seed N]
//
// --threads instead of --depth: so many threads that each wait for one command at a time, as
// programs do that call pread and pwrite.
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstdio>
#include <map>
#include <thread>
#include <vector>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/blocking.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/log.h"
#include "csvfs/base/random.h"
#include "iscsi/blocking_lun.h"
#include "iscsi/open_lun.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

struct Settings {
  std::string url;
  bool write = false, random = true;
  std::uint64_t block = 4096, depth = 32, seconds = 5, sessions = 1, range = 0, key = 0, seed = 1;
  std::uint64_t threads = 0;  ///< That wait, `depth` of them then; 0: the loop keeps `depth` going.
  std::string initiator = "iqn.2026-01.org.csvfs:bench";
};

/// Durations by powers of two, each in 16 steps: 6 % at worst.
class Histogram {
 public:
  void add(const Histogram& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    total_ += other.total_;
    sum_ += other.sum_;
    most_ = std::max(most_, other.most_);
  }
  void add(std::uint64_t nanoseconds) {
    ++counts_[index_of(nanoseconds)];
    ++total_;
    sum_ += nanoseconds;
    most_ = std::max(most_, nanoseconds);
  }
  [[nodiscard]] double mean() const {
    return total_ ? static_cast<double>(sum_) / static_cast<double>(total_) : 0;
  }
  [[nodiscard]] std::uint64_t most() const { return most_; }
  [[nodiscard]] std::uint64_t quantile(double q) const {
    auto wanted = static_cast<std::uint64_t>(q * static_cast<double>(total_));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen > wanted) return value_of(i);
    }
    return most_;
  }

 private:
  static std::size_t index_of(std::uint64_t value) {
    if (value < 16) return value;
    auto power = static_cast<std::size_t>(std::bit_width(value)) - 5;
    return 16 * (power + 1) + static_cast<std::size_t>((value >> power) - 16);
  }
  static std::uint64_t value_of(std::size_t index) {
    if (index < 16) return index;
    auto power = index / 16 - 1;
    return (16 + index % 16) << power;
  }
  std::array<std::uint64_t, 16 * 62> counts_{};
  std::uint64_t total_ = 0, sum_ = 0, most_ = 0;
};

/// Keeps `depth` commands in flight until the time is over: by the loop itself, or each by a thread
/// that waits for it.
class Bench {
 public:
  Bench(AsioLoop& loop, Lun& lun, const Settings& settings)
      : loop_{&loop}, lun_{&lun}, settings_{settings}, random_{settings.seed} {
    auto range = settings.range ? std::min(settings.range, lun.geometry().size_bytes())
                                : lun.geometry().size_bytes();
    blocks_ = range / settings.block;
    for (std::uint64_t i = 0; i < settings.depth; ++i) {
      buffers_.emplace_back(settings.block);
      for (auto& each : buffers_.back().span()) each = std::byte(random_.next());
    }
  }
  [[nodiscard]] bool possible() const { return blocks_ > 0; }

  void start() {
    started_ = loop_->now();
    ends_ = started_ + std::chrono::seconds{settings_.seconds};
    if (settings_.threads == 0) {
      for (std::size_t i = 0; i < buffers_.size(); ++i) submit(i);
      return;
    }
    for (std::size_t i = 0; i < buffers_.size(); ++i)
      threads_.emplace_back([this, i] { keep_waiting(i); });
  }

  [[nodiscard]] std::string json() const {
    auto seconds = std::chrono::duration<double>(stopped_ - started_).count();
    rusage used{};
    ::getrusage(RUSAGE_SELF, &used);
    auto cpu = static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    auto counters = lun_->counters();
    auto micro = [](double nanoseconds) { return nanoseconds / 1000; };
    return fmt::format(
        "{{\"op\": \"{}\", \"pattern\": \"{}\", \"block\": {}, \"depth\": {}, \"threads\": {}, "
        "\"sessions\": {}, \"seconds\": {:.3f}, \"iops\": {:.0f}, \"mib_per_second\": {:.1f}, "
        "\"latency_us\": "
        "{{\"mean\": {:.1f}, "
        "\"p50\": {:.1f}, \"p99\": {:.1f}, \"p999\": {:.1f}, \"max\": {:.1f}}}, \"cpu_seconds\": "
        "{:.2f}, "
        "\"errors\": {}, \"retries\": {}}}",
        settings_.write ? "write" : "read", settings_.random ? "random" : "sequential",
        settings_.block, settings_.depth, settings_.threads, settings_.sessions, seconds,
        static_cast<double>(done_) / seconds,
        static_cast<double>(done_ * settings_.block) / seconds / (1 << 20), micro(latency_.mean()),
        micro(static_cast<double>(latency_.quantile(0.5))),
        micro(static_cast<double>(latency_.quantile(0.99))),
        micro(static_cast<double>(latency_.quantile(0.999))),
        micro(static_cast<double>(latency_.most())), cpu, errors_, counters.retries);
  }
  [[nodiscard]] std::uint64_t errors() const { return errors_; }

 private:
  void submit(std::size_t index) {
    auto block = settings_.random ? random_.below(blocks_) : next_++ % blocks_;
    auto at = block * settings_.block;
    auto sent = loop_->now();
    auto answered = [this, index, sent](Expected<void> result) {
      auto now = loop_->now();
      latency_.add(static_cast<std::uint64_t>((now - sent).count()));
      ++done_;
      if (!result) {
        if (errors_++ == 0) std::fprintf(stderr, "error: %s\n", result.error().message().c_str());
      }
      if (now < ends_ && errors_ == 0) return submit(index);
      if (--running_ > 0) return;
      stopped_ = now;
      loop_->stop();
    };
    if (settings_.write)
      lun_->write(at, buffers_[index].span(), {}, std::move(answered));
    else
      lun_->read(at, buffers_[index].span(), std::move(answered));
  }

  /// On a thread of its own.
  void keep_waiting(std::size_t index) {
    ThreadBlocking blocking;
    BlockingLun lun{*lun_, blocking};
    Random random{settings_.seed + index};
    Histogram latency;
    std::uint64_t done = 0, errors = 0;
    auto now = loop_->now();
    for (; now < ends_ && errors == 0; ++done) {
      auto block =
          settings_.random ? random.below(blocks_) : (index + done * settings_.threads) % blocks_;
      auto sent = now;
      auto result = settings_.write ? lun.write(block * settings_.block, buffers_[index].span())
                                    : lun.read(block * settings_.block, buffers_[index].span());
      now = loop_->now();
      latency.add(static_cast<std::uint64_t>((now - sent).count()));
      if (result) continue;
      ++errors;
      std::fprintf(stderr, "error: %s\n", result.error().message().c_str());
    }
    loop_->post([this, latency, done, errors, now] {
      latency_.add(latency);
      done_ += done;
      errors_ += errors;
      stopped_ = std::max(stopped_, now);
      if (--running_ == 0) loop_->stop();
    });
  }

  AsioLoop* loop_;
  Lun* lun_;
  Settings settings_;
  Random random_;
  std::vector<Buffer> buffers_;
  std::uint64_t blocks_ = 0, next_ = 0, done_ = 0, errors_ = 0;
  std::uint64_t running_ = settings_.depth;
  TimePoint started_{}, ends_{}, stopped_{};
  Histogram latency_;
  std::vector<std::jthread> threads_;  ///< Last: they end first.
};

bool parse(int count, char** arguments, Settings& settings) {
  std::map<std::string, std::uint64_t*> numbers{
      {"--block", &settings.block},       {"--depth", &settings.depth},
      {"--seconds", &settings.seconds},   {"--range", &settings.range},
      {"--sessions", &settings.sessions}, {"--threads", &settings.threads},
      {"--seed", &settings.seed},         {"--key", &settings.key}};
  for (int i = 1; i < count; ++i) {
    std::string name = arguments[i];
    if (!name.starts_with("--")) {
      settings.url = name;
      continue;
    }
    if (++i == count) return false;
    std::string value = arguments[i];
    if (auto found = numbers.find(name); found != numbers.end()) {
      auto base = name == "--key" ? 16 : 10;
      auto [end, error] =
          std::from_chars(value.data(), value.data() + value.size(), *found->second, base);
      if (error != std::errc{} || end != value.data() + value.size()) return false;
    } else if (name == "--op" && (value == "read" || value == "write")) {
      settings.write = value == "write";
    } else if (name == "--pattern" && (value == "random" || value == "sequential")) {
      settings.random = value == "random";
    } else if (name == "--initiator") {
      settings.initiator = value;
    } else {
      return false;
    }
  }
  if (settings.threads > 0) settings.depth = settings.threads;
  return !settings.url.empty() && settings.block > 0 && settings.depth > 0 &&
         settings.sessions > 0 && settings.sessions <= 32 && settings.threads <= 256;
}

}  // namespace

int main(int count, char** arguments) {
  Settings settings;
  if (!parse(count, arguments, settings)) {
    std::fprintf(
        stderr,
        "usage: csv_lun_bench URL [--op read|write] [--pattern random|sequential] [--block BYTES] "
        "[--depth N | --threads N]\n                     [--seconds S] [--sessions N] [--range "
        "BYTES] "
        "[--key HEX] [--initiator IQN] [--seed N]\n");
    return 2;
  }
  log::set_up("csv_lun_bench", log::Level::warning);
  AsioLoop loop;
  LunOptions options;
  options.initiator = settings.initiator;
  options.sessions = static_cast<int>(settings.sessions);
  std::unique_ptr<Lun> lun;
  std::unique_ptr<Bench> bench;
  int status = 1;
  auto fail = [&](const Error& why) {
    std::fprintf(stderr, "%s: %s\n", settings.url.c_str(), why.message().c_str());
    loop.stop();
  };
  auto start = [&] {
    bench = std::make_unique<Bench>(loop, *lun, settings);
    if (!bench->possible()) return fail({Errc::refused, "smaller than one block"});
    status = 0;
    bench->start();
  };
  open_lun(loop, settings.url, options, [&](Expected<std::unique_ptr<Lun>> opened) {
    if (!opened) return fail(opened.error());
    lun = *std::move(opened);
    if (settings.key == 0) return start();
    lun->register_key(Key{settings.key},
                      [&](Expected<void> result) { result ? start() : fail(result.error()); });
  });
  loop.run();
  if (status == 0) {
    std::printf("%s\n", bench->json().c_str());
    if (bench->errors() > 0) status = 1;
  }
  lun.reset();
  return status;
}
