#include <doctest/doctest.h>

#include <array>
#include <cerrno>
#include <string_view>
#include <thread>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/error.h"
#include "csvfs/base/ids.h"
#include "csvfs/base/random.h"
#include "csvfs/base/thread_worker.h"

using namespace csv;

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
