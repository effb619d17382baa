#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <semaphore>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"
#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/random.h"
#include "csvfs/base/systemd.h"
#include "csvfs/base/thread_worker.h"
#include "csvfs/base/untouched_buffer.h"

using namespace csv;

TEST_CASE(
    "untouched buffer: zeros that take memory where they were written, and stay where they are") {
  UntouchedBuffer buffer{64 << 20};
  auto resident = [&buffer] {
    std::vector<unsigned char> pages(buffer.size() / 4096);
    REQUIRE(::mincore(buffer.data(), buffer.size(), pages.data()) == 0);
    return std::count_if(pages.begin(), pages.end(), [](auto page) { return (page & 1) != 0; });
  };
  CHECK(resident() == 0);
  buffer.span()[buffer.size() - 1] = std::byte{7};
  CHECK(buffer.span()[12345] == std::byte{});
  CHECK(resident() < (4 << 20) / 4096);  // where the kernel takes large pages, two of them
  auto* where = buffer.data();
  UntouchedBuffer moved = std::move(buffer);
  CHECK(moved.data() == where);
  CHECK(moved.span().back() == std::byte{7});
  CHECK(UntouchedBuffer{}.span().empty());
}

TEST_CASE("crc32c: gives the values of RFC 3720 B.4, whole and in pieces") {
  std::array<std::byte, 32> zeros{};
  CHECK(crc32c(zeros) == 0x8a9136aau);
  std::array<std::byte, 32> rising{};
  for (std::size_t i = 0; i < rising.size(); ++i) rising[i] = static_cast<std::byte>(i);
  CHECK(crc32c(rising) == 0x46dd794eu);
  for (std::size_t cut = 0; cut <= rising.size(); ++cut) {
    auto all = std::span{rising};
    CHECK(crc32c(all.subspan(cut), crc32c(all.first(cut))) == 0x46dd794eu);
  }
}

TEST_CASE("key: its parts come back as they went in, and roles make different keys") {
  KeyParts parts{0xbeef, NodeId{63}, KeyRole::heartbeat, (1ull << 38) - 1};
  CHECK(parts_of(make_key(parts)) == parts);
  parts.role = KeyRole::mount;
  CHECK(parts_of(make_key(parts)) == parts);
}

TEST_CASE("error: keeps its errno and says what was being done") {
  auto error = errno_error(ENOSPC, "writing").within("copying");
  CHECK(error.to_errno() == ENOSPC);
  CHECK(error.message().starts_with("copying: writing: "));
  CHECK(Error{Errc::fenced}.to_errno() == EIO);
  CHECK(Error{}.to_errno() == 0);
}

TEST_CASE(
    "systemd: only what it connected with the journal leads there, not what came in its place") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  struct stat status {};
  REQUIRE(::fstat(ends[1], &status) == 0);
  ::unsetenv("JOURNAL_STREAM");
  CHECK_FALSE(leads_to_journal(ends[1]));
  auto stream = std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino);
  ::setenv("JOURNAL_STREAM", stream.c_str(), 1);
  CHECK(leads_to_journal(ends[1]));
  ::setenv("JOURNAL_STREAM", (stream + "1").c_str(), 1);
  CHECK_FALSE(leads_to_journal(ends[1]));
  ::unsetenv("JOURNAL_STREAM");
  for (int each : ends) ::close(each);
}

TEST_CASE("random: below() stays below, and a seed gives the same stream again") {
  Random a{7}, b{7};
  for (int i = 0; i < 1000; ++i) {
    auto x = a.below(10);
    CHECK(x < 10);
    CHECK(x == b.below(10));
  }
}

TEST_CASE("worker: runs everything posted, in order, and may wait for another thread in it") {
  std::vector<int> order;
  {
    ThreadWorker worker{"test"};
    worker.post([&] {
      worker.blocking().wait([](std::function<void()> wake) { std::thread{wake}.detach(); });
      order.push_back(1);
    });
    worker.post([&] { order.push_back(2); });
  }
  CHECK(order == std::vector{1, 2});
}

// The thread sanitizer sees whether post() still uses what the other thread has ended.
TEST_CASE("worker: may be ended by another thread as soon as it did what was posted") {
  auto worker = std::make_unique<ThreadWorker>("test");
  std::binary_semaphore ran{0};
  bool done = false;
  std::thread other{[&] {
    ran.acquire();
    worker.reset();
  }};
  worker->post([&] {
    done = true;
    ran.release();
  });
  other.join();
  CHECK(done);
}

namespace {

struct Numbers {
  std::array<char, 8> magic;
  Le32 crc;
  Le32 version;
  std::array<std::byte, 16> id;
  Le64 one, two, three;
  Le16 four;
  std::array<std::byte, 38> reserved;
};
static_assert(sizeof(Numbers) == 96 && alignof(Numbers) == 1);

/// As structures that are written come about: begun by one function, filled in by another.
Numbers begin_numbers(const std::array<std::byte, 16>& id) {
  Numbers numbers{};
  numbers.version = 0x01020304u;
  numbers.id = id;
  return numbers;
}
std::array<std::byte, 96> encode_numbers(std::uint64_t value) {
  auto numbers = begin_numbers({});
  numbers.one = value;
  numbers.two = value + 1;
  numbers.three = value + 2;
  numbers.four = std::uint16_t{0x0506};
  std::array<std::byte, 96> bytes;
  std::memcpy(bytes.data(), &numbers, sizeof numbers);
  return bytes;
}

}  // namespace

TEST_CASE(
    "little-endian: numbers lie lowest byte first, also where the compiler joins their stores") {
  auto bytes = encode_numbers(0x1112131415161718ull);
  auto at = [&](std::size_t i) { return std::to_integer<int>(bytes[i]); };
  for (int i = 0; i < 4; ++i) CHECK(at(12 + static_cast<std::size_t>(i)) == 4 - i);
  for (std::size_t number = 0; number < 3; ++number) {
    CHECK(at(32 + 8 * number) == 0x18 + static_cast<int>(number));
    for (std::size_t i = 1; i < 8; ++i)
      CHECK(at(32 + 8 * number + i) == 0x18 - static_cast<int>(i));
  }
  CHECK(at(56) == 6);
  CHECK(at(57) == 5);
  static_assert(std::uint32_t{Le32{0xdeadbeefu}} == 0xdeadbeefu);
}
