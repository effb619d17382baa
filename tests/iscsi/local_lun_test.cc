#include "iscsi/local_lun.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <string>
#include <vector>

#include "csvfs/base/buffer.h"
#include "csvfs/base/random.h"
#include "tests/iscsi/lun_waiting.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

/// A file that has no name, in a folder where direct I/O works.
struct Image {
  explicit Image(std::uint64_t size) {
    // /tmp may be in memory, where there is no direct I/O; the working folder is not.
    auto folder = std::filesystem::current_path().string();
    fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0);
    REQUIRE(::ftruncate(fd, static_cast<off_t>(size)) == 0);
    path = "/proc/self/fd/" + std::to_string(fd);
  }
  ~Image() { ::close(fd); }
  int fd = -1;
  std::string path;
};

/// A loop device over an image; the kernel takes it down when nobody has it open, also after a
/// crash.
struct LoopDevice {
  LoopDevice(const Image& image, std::uint32_t block_size, __u32 flags = 0) {
    int control = ::open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0) return;
    for (int attempt = 0; attempt < 20 && fd < 0; ++attempt) {
      int number = ::ioctl(control, LOOP_CTL_GET_FREE);
      if (number < 0) break;
      auto name = "/dev/loop" + std::to_string(number);
      int candidate = ::open(name.c_str(), O_RDWR | O_CLOEXEC);
      if (candidate < 0) break;
      loop_config config{};
      config.fd = static_cast<__u32>(image.fd);
      config.block_size = block_size;
      config.info.lo_flags = LO_FLAGS_AUTOCLEAR | flags;
      if (::ioctl(candidate, LOOP_CONFIGURE, &config) == 0)
        fd = candidate, path = name;
      else
        ::close(candidate);  // somebody was faster
    }
    ::close(control);
  }
  ~LoopDevice() {
    if (fd >= 0) ::close(fd);
  }
  int fd = -1;
  std::string path;
};

Expected<std::unique_ptr<Lun>> open_file(Home& home, const std::string& path,
                                         LunOptions options = {}) {
  return home.wait<std::unique_ptr<Lun>>([&](auto done) {
    LocalLun::open(home.loop, path, std::move(options), BlockDevice::Kind::file_for_test,
                   std::move(done));
  });
}

/// Random commands against a LUN and an array; in the end both must be the same.
void check_against_model(Home& home, Lun& lun, std::uint64_t seed) {
  auto calls = home.calls(lun);
  const auto block = lun.geometry().block_size;
  const auto blocks = std::min<std::uint64_t>(lun.geometry().block_count, (8 << 20) / block);
  std::vector<std::byte> model(blocks * block), buffer((3 << 20) + 512);
  auto zeroed = calls.write_zeroes(0, model.size());
  REQUIRE_MESSAGE(zeroed, zeroed.error().message());
  Random random{seed};
  for (int i = 0; i < 300; ++i) {
    auto count = 1 + random.below(random.chance(1, 8) ? (2 << 20) / block : 16);
    auto at = random.below(blocks - count + 1) * block;
    auto length = count * block;
    // As often as not, memory that direct I/O cannot use as it is.
    auto memory = std::span{buffer}.subspan(random.below(2) * (1 + random.below(511)), length);
    switch (random.below(4)) {
      case 0: {
        for (auto& each : memory) each = std::byte(random.next());
        REQUIRE(calls.write(at, memory, {.fua = random.chance(1, 4)}));
        std::copy(memory.begin(), memory.end(), model.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      }
      case 1:
        REQUIRE(calls.write_zeroes(at, length));
        std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(at), length, std::byte{0});
        break;
      case 2: REQUIRE(calls.flush()); break;
      default:
        REQUIRE(calls.read(at, memory));
        REQUIRE(std::equal(memory.begin(), memory.end(),
                           model.begin() + static_cast<std::ptrdiff_t>(at)));
    }
  }
  std::vector<std::byte> all(model.size());
  REQUIRE(calls.read(0, all));
  CHECK(all == model);
}

}  // namespace

TEST_CASE("a local LUN reads back what was written, from memory of any alignment") {
  Image image{16 << 20};
  Home home;
  auto lun = open_file(home, image.path);
  REQUIRE_MESSAGE(lun, lun.error().message());
  for (std::uint64_t seed = 1; seed <= 4; ++seed) check_against_model(home, **lun, seed);
  home.drop(*std::move(lun));
}

TEST_CASE("a local LUN on a block device behaves so with either block size") {
  for (std::uint32_t block : {512u, 4096u}) {
    CAPTURE(block);
    Image image{16 << 20};
    LoopDevice device{image, block};
    if (device.fd < 0) {
      MESSAGE("skipped: no loop device can be had here");
      return;
    }
    Home home;
    auto lun = home.open(device.path);
    REQUIRE_MESSAGE(lun, lun.error().message());
    CHECK((*lun)->geometry().block_size == block);
    CHECK((*lun)->geometry().size_bytes() == 16 << 20);
    check_against_model(home, **lun, block);
    auto calls = home.calls(**lun);
    if ((*lun)->profile().unmap) {
      std::vector<std::byte> bytes(1 << 20, std::byte{7});
      REQUIRE(calls.write(0, bytes));
      CHECK(calls.unmap(0, bytes.size()));
      CHECK(calls.read(0, bytes));
    }
    // This device has no reservations, and says so.
    CHECK(calls.register_key(Key{1}).error() == Errc::unsupported_by_target);
    CHECK(calls.preempt(Key{1}, Key{2}, ReservationType::exclusive_access_registrants_only, false)
              .error() == Errc::unsupported_by_target);
    CHECK(calls.read_keys().error() == Errc::unsupported_by_target);
    CHECK(calls.reset().error() == Errc::unsupported_by_target);
    CHECK((*lun)->counters().timeouts == 0);
    home.drop(*std::move(lun));
  }
}

TEST_CASE("a device that somebody has, or that is none, is refused with the reason") {
  Home home;
  CHECK(home.open("/dev/null").error() == Errc::refused);
  CHECK(home.open("/dev/no-such-device").error() == std::errc::no_such_file_or_directory);
  Image image{1 << 20};
  LoopDevice device{image, 512};
  if (device.fd < 0) {
    MESSAGE("partly skipped: no loop device can be had here");
    return;
  }
  auto first = home.open(device.path);
  REQUIRE(first);
  auto second = home.open(device.path);
  CHECK(second.error() == Errc::refused);
  CHECK(second.error().message().find("in use") != std::string::npos);
  CHECK(second.error().message().find("csvd") != std::string::npos);
  home.drop(*std::move(first));
}

TEST_CASE("a device that is write-protected says so in its profile and refuses writes") {
  Image image{1 << 20};
  LoopDevice device{image, 512, LO_FLAGS_READ_ONLY};
  if (device.fd < 0) {
    MESSAGE("skipped: no loop device can be had here");
    return;
  }
  Home home;
  auto lun = home.open(device.path);
  REQUIRE_MESSAGE(lun, lun.error().message());
  CHECK((*lun)->profile().write_protected);
  std::vector<std::byte> bytes(512);
  CHECK(home.calls(**lun).read(0, bytes));
  CHECK(!home.calls(**lun).write(0, bytes));
  home.drop(*std::move(lun));
}

TEST_CASE("a local LUN that has shrunk fails the read, and does not make something up") {
  Image image{1 << 20};
  Home home;
  auto lun = open_file(home, image.path);
  REQUIRE(lun);
  REQUIRE(::ftruncate(image.fd, 512 << 10) == 0);
  std::vector<std::byte> bytes(4096);
  CHECK(home.calls(**lun).read(0, bytes));
  CHECK(home.calls(**lun).read(768 << 10, bytes).error() == std::errc::io_error);
  home.drop(*std::move(lun));
}

TEST_CASE("an error of the block layer says whether the device has answered") {
  using Kind = IoRing::Operation::Kind;
  // A path that is gone: nobody knows what becomes of the command, and the Lun ends.
  for (int number : {EIO, ENODEV, ENXIO, ENOLINK, ETIMEDOUT}) {
    CAPTURE(number);
    for (auto kind : {Kind::read, Kind::write, Kind::zero}) {
      auto verdict = judge_device(number, kind, true);
      CHECK(verdict.error == Errc::lun_lost);
      CHECK(verdict.ends.has_value());
    }
    CHECK(!was_answered(errno_error(number, "discard")));
  }
  for (int number : {ENODATA, EREMOTEIO}) {
    CAPTURE(number);
    CHECK(judge_device(number, Kind::read, true).error == std::errc::io_error);
    CHECK((judge_device(number, Kind::read, true).error == Errc::bad_medium) ==
          (number == ENODATA));
    CHECK(!judge_device(number, Kind::read, true).ends);
    CHECK(judge_device(number, Kind::flush, true).error == Errc::not_durable);
    CHECK(!judge_device(number, Kind::flush, true).ends);
    CHECK(was_answered(errno_error(number, "discard")));
  }
  CHECK(judge_device(EIO, Kind::flush, true).error == Errc::not_durable);
  CHECK(judge_device(EIO, Kind::flush, true).ends->code() == make_error_code(Errc::lun_lost));
  CHECK(judge_device(ENODEV, Kind::flush, true).error == Errc::lun_lost);
  CHECK(judge_device(EOPNOTSUPP, Kind::flush, true).error != Errc::not_durable);
  CHECK(judge_device(EBADE, Kind::flush, true).error == Errc::fenced);
  CHECK(judge_device(EBADE, Kind::flush, false).error == Errc::reservation_conflict);
  CHECK(judge_device(ENOSPC, Kind::write, true).error == std::errc::no_space_on_device);
  CHECK(!was_answered(errno_error(ENOMEM, "discard")));
  CHECK(was_answered(Error{Errc::unsupported_by_target}));
}

TEST_CASE("everything given to a local LUN is answered once, closed in the middle or not") {
  for (bool close : {false, true}) {
    CAPTURE(close);
    Image image{16 << 20};
    Home home;
    auto lun = open_file(home, image.path);
    REQUIRE(lun);
    constexpr int kCount = 1000;
    std::vector<Buffer> buffers;
    for (int i = 0; i < kCount; ++i) buffers.emplace_back(4096);
    std::atomic<int> answers{0}, odd{0};
    std::promise<void> all;
    for (int i = 0; i < kCount; ++i) {
      if (close && i == kCount / 2) (*lun)->close();
      (*lun)->write(static_cast<std::uint64_t>(i) * 4096,
                    buffers[static_cast<std::size_t>(i)].span(), {}, [&](Expected<void> result) {
                      if (!result && !(close && result.error() == Errc::lun_lost)) ++odd;
                      if (++answers == kCount) all.set_value();
                    });
    }
    REQUIRE(all.get_future().wait_for(10s) == std::future_status::ready);
    home.settle();
    CHECK(answers == kCount);
    CHECK(odd == 0);
    if (close) {
      CHECK(home.calls(**lun).flush().error() == Errc::lun_lost);
      CHECK(home.calls(**lun).read_keys().error() == Errc::lun_lost);
    }
    home.drop(*std::move(lun));
  }
}
