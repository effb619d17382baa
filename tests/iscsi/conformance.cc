#include "tests/iscsi/conformance.h"

#include <doctest/doctest.h>

#include <atomic>
#include <future>
#include <vector>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/buffer.h"
#include "csvfs/base/random.h"
#include "iscsi/blocking_lun.h"

namespace csv::iscsi {
namespace {

using Type = ReservationType;
constexpr Key kA{0x4711'0100'0000'0001}, kB{0x4711'0200'0000'0002}, kC{0x4711'0300'0000'0003};
constexpr Type kAllTypes[] = {Type::write_exclusive,
                              Type::exclusive_access,
                              Type::write_exclusive_registrants_only,
                              Type::exclusive_access_registrants_only,
                              Type::write_exclusive_all_registrants,
                              Type::exclusive_access_all_registrants};

bool all_registrants(Type type) {
  return type == Type::write_exclusive_all_registrants ||
         type == Type::exclusive_access_all_registrants;
}
bool for_registrants(Type type) { return raw(type) >= 5; }
bool readable_by_all(Type type) {
  return type == Type::write_exclusive || type == Type::write_exclusive_registrants_only ||
         type == Type::write_exclusive_all_registrants;
}

/// Refused because of a reservation, as somebody who has a key or who never had one.
bool kept_out(const Expected<void>& result) {
  return result.error() == Errc::reservation_conflict || result.error() == Errc::fenced;
}

struct Nodes {
  explicit Nodes(const ConformanceTarget& to) : target{to} {
    loop.start("conformance");
    // Whoever was here before must not matter.
    auto first = open("janitor", 0);
    BlockingLun lun{*first, blocking};
    REQUIRE(lun.register_key(kC));
    REQUIRE(lun.clear(kC));
    drop(std::move(first));
  }
  std::unique_ptr<Lun> open(const std::string& name, int index) {
    auto lun = target.connect(loop, "iqn.2026-01.org.csvfs.conformance:" + name, index);
    REQUIRE(lun);
    return lun;
  }

  /// Luns are destroyed on their home loop.
  void drop(std::unique_ptr<Lun> lun) {
    std::promise<void> gone;
    loop.post([&, lun = std::move(lun)]() mutable {
      lun.reset();
      gone.set_value();
    });
    gone.get_future().get();
  }

  const ConformanceTarget& target;
  ThreadBlocking blocking;
  AsioLoop loop;
};

/// One initiator's Lun, with synchronous calls.
struct Node : BlockingLun {
  Node(Nodes& nodes, const std::string& name, int index = 1)
      : Node{nodes, nodes.open(name, index)} {}
  Node(Nodes& nodes, std::unique_ptr<Lun> lun)
      : BlockingLun{*lun, nodes.blocking}, home{nodes}, owned{std::move(lun)} {}
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node() { home.drop(std::move(owned)); }
  std::size_t block() const { return lun().geometry().block_size; }
  Expected<void> write_one(std::byte fill) {
    std::vector<std::byte> bytes(block(), fill);
    return BlockingLun::write(0, bytes);
  }
  Expected<std::byte> read_one() {
    std::vector<std::byte> bytes(block());
    CSV_TRY(BlockingLun::read(0, bytes));
    return bytes[0];
  }
  Expected<void> look() {
    CSV_TRY(read_one());
    return {};
  }
  std::vector<Key> keys() {
    auto list = read_keys();
    REQUIRE(list);
    return list->keys;
  }
  Nodes& home;
  std::unique_ptr<Lun> owned;
};

Buffer noise(std::size_t size, std::uint64_t seed) {
  Buffer made{size};
  Random random{seed};
  for (std::size_t at = 0; at + 8 <= size; at += 8) {
    auto value = random.next();
    std::memcpy(made.data() + at, &value, 8);
  }
  return made;
}

bool same(const Buffer& a, const Buffer& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

void check_content(Nodes& nodes) {
  Node a{nodes, "a"}, b{nodes, "b"};
  const auto block = a.block();

  SUBCASE("what one node wrote, of any length, is what another reads") {
    for (auto blocks : {std::size_t{1}, std::size_t{3}, (std::size_t{3} << 20) / block + 1}) {
      auto out = noise(blocks * block, blocks), in = Buffer{blocks * block};
      REQUIRE(a.write(7 * block, out.span()));
      REQUIRE(b.read(7 * block, in.span()));
      CHECK(same(out, in));
    }
  }
  SUBCASE("neighbours of a written block keep their content") {
    auto before = noise(3 * block, 1), middle = noise(block, 2), after = Buffer{3 * block};
    REQUIRE(a.write(0, before.span()));
    REQUIRE(b.write(block, middle.span()));
    REQUIRE(a.read(0, after.span()));
    std::memcpy(before.data() + block, middle.data(), block);
    CHECK(same(before, after));
  }
  SUBCASE("many commands at once each do their own work") {
    std::vector<Buffer> out, in;
    std::vector<BlockingLun::Write> writes;
    std::vector<BlockingLun::Read> reads;
    for (std::size_t i = 0; i < 96; ++i) {
      out.push_back(noise(2 * block, 100 + i));
      in.emplace_back(2 * block);
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      writes.push_back({i * 4 * block, out[i].span()});
      reads.push_back({i * 4 * block, in[i].span()});
    }
    REQUIRE(a.write(writes));
    REQUIRE(b.read(reads));
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(same(out[i], in[i]));
  }
  SUBCASE("zeroed ranges read as zeros, and only they") {
    auto out = noise(64 * block, 3), in = Buffer{64 * block};
    REQUIRE(a.write(0, out.span()));
    REQUIRE(a.write_zeroes(8 * block, 40 * block));
    REQUIRE(b.read(0, in.span()));
    std::memset(out.data() + 8 * block, 0, 40 * block);
    CHECK(same(out, in));
  }
  SUBCASE("an unmapped range can be read and written again, and is zero where that is promised") {
    auto out = noise(std::size_t{1} << 20, 4), in = Buffer{std::size_t{1} << 20};
    REQUIRE(a.write(1 << 20, out.span()));
    REQUIRE(a.unmap(1 << 20, 1 << 20));
    REQUIRE(b.read(1 << 20, in.span()));
    if (a.lun().profile().unmap && a.lun().profile().unmap_zeroes) {
      CHECK(same(in, Buffer::zeroed(in.size())));
    }
    REQUIRE(a.write(1 << 20, out.span()));
    REQUIRE(b.read(1 << 20, in.span()));
    CHECK(same(out, in));
  }
  SUBCASE("writes past the cache and flushes succeed, with a cache or without") {
    auto out = noise(block, 5), in = Buffer{block};
    REQUIRE(a.write(0, out.span(), {.fua = true}));
    REQUIRE(a.flush());
    REQUIRE(b.read(0, in.span()));
    CHECK(same(out, in));
  }
  SUBCASE("what does not consist of blocks of this LUN is refused, and the Lun lives on") {
    Buffer bytes{2 * block};
    auto size = a.lun().geometry().size_bytes();
    CHECK(a.read(1, bytes.span().first(block)).error() == Errc::refused);
    CHECK(a.read(0, bytes.span().first(block - 1)).error() == Errc::refused);
    CHECK(a.write(size, bytes.span().first(block)).error() == Errc::refused);
    CHECK(a.write(size - block, bytes.span()).error() == Errc::refused);
    CHECK(a.write_zeroes(block / 2, block).error() == Errc::refused);
    CHECK(a.unmap(~std::uint64_t{0} - block + 1, block).error() == Errc::refused);
    CHECK(a.look());
  }
  SUBCASE("a closed Lun answers everything with lun_lost, and others do not notice") {
    a.lun().close();
    a.lun().close();
    CHECK(a.look().error() == Errc::lun_lost);
    CHECK(a.write_one(std::byte{1}).error() == Errc::lun_lost);
    CHECK(a.read_keys().error() == Errc::lun_lost);
    CHECK(b.look());
  }
  SUBCASE("commands in flight when the Lun is closed are answered exactly once") {
    constexpr int kCount = 64;
    std::vector<Buffer> buffers;
    std::atomic<int> answers{0}, odd{0};
    std::promise<void> all;
    for (int i = 0; i < kCount; ++i) buffers.emplace_back(block);
    for (auto& each : buffers) {
      a.lun().read(0, each.span(), [&](Expected<void> said) {
        if (!said && !(said.error() == Errc::lun_lost)) ++odd;
        if (++answers == kCount) all.set_value();
      });
    }
    a.lun().close();
    REQUIRE(all.get_future().wait_for(10s) == std::future_status::ready);
    nodes.blocking.wait([&](std::function<void()> wake) {
      nodes.loop.post([wake = std::move(wake)]() mutable { wake(); });
    });
    CHECK(answers == kCount);
    CHECK(odd == 0);
  }
  SUBCASE("counters count what was asked for") {
    auto out = noise(4 * block, 6);
    REQUIRE(a.write(0, out.span()));
    REQUIRE(a.read(0, out.span()));
    CHECK(a.lun().counters().writes == 1);
    CHECK(a.lun().counters().write_bytes == 4 * block);
    CHECK(a.lun().counters().reads == 1);
    CHECK(a.lun().counters().read_bytes == 4 * block);
  }
}

void check_registrations(Nodes& nodes) {
  Node a{nodes, "a"}, b{nodes, "b"};

  SUBCASE("a registered key is listed until it is unregistered, and the generation grows") {
    auto before = a.read_keys();
    REQUIRE(before);
    REQUIRE(a.register_key(kA));
    REQUIRE(b.register_key(kB));
    CHECK(a.keys() == std::vector{kA, kB});
    auto after = b.read_keys();
    REQUIRE(after);
    CHECK(after->generation == before->generation + 2);
    REQUIRE(a.register_key(Key{}));
    CHECK(b.keys() == std::vector{kB});
  }
  SUBCASE("a key may stand once for each nexus") {
    Node second{nodes, "a", 2};
    REQUIRE(a.register_key(kA));
    REQUIRE(second.register_key(kA));
    CHECK(b.keys() == std::vector{kA, kA});
  }
  SUBCASE("registering replaces whatever key the nexus had") {
    REQUIRE(a.register_key(kA));
    REQUIRE(a.register_key(kC));
    CHECK(b.keys() == std::vector{kC});
  }
  SUBCASE("registering exactly fails unless the key is the one given") {
    auto exactly = [&](Key existing, Key key) {
      Expected<void> result;
      nodes.blocking.wait([&](std::function<void()> wake) {
        a.lun().register_exactly(existing, key, [&, wake](Expected<void> said) {
          result = std::move(said);
          wake();
        });
      });
      return result;
    };
    CHECK(exactly(kB, kA).error() == Errc::reservation_conflict);
    CHECK(b.keys().empty());
    REQUIRE(exactly(Key{}, kA));
    CHECK(exactly(kB, kC).error() == Errc::reservation_conflict);
    REQUIRE(exactly(kA, kC));
    CHECK(b.keys() == std::vector{kC});
  }
  SUBCASE("a registration outlives the session it was made on") {
    REQUIRE(a.register_key(kA));
    a.lun().close();
    CHECK(b.keys() == std::vector{kA});
  }
  SUBCASE("clearing takes every key and the reservation") {
    REQUIRE(a.register_key(kA));
    REQUIRE(b.register_key(kB));
    REQUIRE(a.reserve(kA, Type::exclusive_access_all_registrants));
    REQUIRE(a.clear(kA));
    CHECK(a.keys().empty());
    auto none = a.read_reservation();
    REQUIRE(none);
    CHECK(none->type == Type::none);
    // The other one is told that it lost its registration.
    CHECK(kept_out(b.write_one(std::byte{1})));
  }
  SUBCASE("clearing needs a registration") {
    REQUIRE(b.register_key(kB));
    CHECK(a.clear(kA).error() == Errc::reservation_conflict);
    CHECK(a.keys() == std::vector{kB});
  }
  SUBCASE("the target says which types it knows, or nothing") {
    std::optional<Expected<ReservationCapabilities>> can;
    nodes.blocking.wait([&](std::function<void()> wake) {
      a.lun().report_capabilities([&, wake](Expected<ReservationCapabilities> said) {
        can.emplace(std::move(said));
        wake();
      });
    });
    REQUIRE(*can);
    auto mask = (*can)->type_mask;
    auto all = a.lun().profile().all_registrants;
    for (auto type : kAllTypes)
      if (mask != 0) CHECK((mask >> raw(type) & 1) == (all || !all_registrants(type)));
  }
  SUBCASE("full status names each nexus and the holder, where the target has it") {
    REQUIRE(a.register_key(kA));
    REQUIRE(b.register_key(kB));
    REQUIRE(a.reserve(kA, Type::exclusive_access_registrants_only));
    std::optional<Expected<std::vector<FullStatusEntry>>> full;
    nodes.blocking.wait([&](std::function<void()> wake) {
      b.lun().read_full_status([&, wake](Expected<std::vector<FullStatusEntry>> said) {
        full.emplace(std::move(said));
        wake();
      });
    });
    if (!a.lun().profile().read_full_status) {
      CHECK(full->error() == Errc::unsupported_by_target);
      return;
    }
    REQUIRE(*full);
    REQUIRE((*full)->size() == 2);
    for (const auto& entry : **full) {
      bool is_a = entry.key == kA;
      CHECK(entry.holder == is_a);
      if (is_a) CHECK(entry.type == Type::exclusive_access_registrants_only);
      CHECK(entry.initiator.starts_with(std::string{"iqn.2026-01.org.csvfs.conformance:"} +
                                        (is_a ? "a" : "b")));
    }
  }
}

void check_reservations(Nodes& nodes) {
  for (auto type : kAllTypes) {
    CAPTURE(raw(type));
    Node a{nodes, "a"}, b{nodes, "b"}, stranger{nodes, "stranger"};
    REQUIRE(a.register_key(kA));
    REQUIRE(b.register_key(kB));
    CHECK(stranger.reserve(kC, type).error() == Errc::reservation_conflict);
    REQUIRE(a.reserve(kA, type));
    CHECK(a.reserve(kA, type));

    auto now = stranger.read_reservation();
    REQUIRE(now);
    CHECK(now->type == type);
    if (!all_registrants(type)) CHECK(now->holder == kA);

    // The table of who may do what.
    CHECK(a.write_one(std::byte{raw(type)}));
    CHECK(a.look());
    CHECK(kept_out(stranger.write_one(std::byte{1})));
    CHECK(kept_out(stranger.write_zeroes(0, stranger.block())));
    if (readable_by_all(type)) {
      CHECK(stranger.look());
    } else {
      CHECK(kept_out(stranger.look()));
    }
    if (for_registrants(type)) {
      CHECK(b.look());
      CHECK(b.write_one(std::byte{raw(type)}));
      CHECK(b.flush());
    } else if (readable_by_all(type)) {
      CHECK(b.look());
      CHECK(kept_out(b.write_one(std::byte{2})));
    } else {
      CHECK(kept_out(b.look()));
    }
    auto content = a.read_one();
    REQUIRE(content);
    CHECK(*content == std::byte{raw(type)});

    // Others cannot take it, and letting go of what one does not hold does nothing.
    Node c{nodes, "c"};
    REQUIRE(c.register_key(kC));
    auto other = type == Type::write_exclusive ? Type::exclusive_access : Type::write_exclusive;
    CHECK(c.reserve(kC, other).error() == Errc::reservation_conflict);
    CHECK(bool(c.reserve(kC, type)) == all_registrants(type));
    if (!all_registrants(type)) {
      CHECK(c.release(kC, type));
      now = c.read_reservation();
      REQUIRE(now);
      CHECK(now->type == type);
    }
    CHECK(!a.release(kA, other));
    REQUIRE(a.release(kA, type));
    now = a.read_reservation();
    REQUIRE(now);
    CHECK(now->type == Type::none);
    Node late{nodes, "late"};
    CHECK(late.write_one(std::byte{9}));
    REQUIRE(a.clear(kA));
  }
}

void check_end_of_reservation(Nodes& nodes) {
  SUBCASE("a holder that unregisters lets go, with all registrants only the last") {
    for (auto type : kAllTypes) {
      CAPTURE(raw(type));
      Node a{nodes, "a"}, b{nodes, "b"}, watcher{nodes, "watcher"};
      REQUIRE(a.register_key(kA));
      REQUIRE(b.register_key(kB));
      REQUIRE(a.reserve(kA, type));
      REQUIRE(a.register_key(Key{}));
      auto now = watcher.read_reservation();
      REQUIRE(now);
      CHECK(now->type == (all_registrants(type) ? type : Type::none));
      if (all_registrants(type)) {
        REQUIRE(b.register_key(Key{}));
        now = watcher.read_reservation();
        REQUIRE(now);
        CHECK(now->type == Type::none);
      } else {
        REQUIRE(watcher.register_key(kC));
        REQUIRE(watcher.clear(kC));
      }
    }
  }
}

void check_preempt(Nodes& nodes) {
  Node a{nodes, "a"}, b{nodes, "b"}, c{nodes, "c"};
  REQUIRE(a.register_key(kA));
  REQUIRE(b.register_key(kB));

  SUBCASE("a preempted registrant is fenced: its Lun ends, its key is gone, the others go on") {
    REQUIRE(a.clear(kA));
    for (auto type :
         {Type::exclusive_access_all_registrants, Type::exclusive_access_registrants_only}) {
      CAPTURE(raw(type));
      int index = 10 + raw(type);
      Node fencer{nodes, "fencer", index}, other{nodes, "other", index};
      Node victim{nodes, "victim", index};
      std::promise<Error> lost;
      victim.lun().on_lost([&](Error why) { lost.set_value(std::move(why)); });
      REQUIRE(fencer.register_key(kA));
      REQUIRE(other.register_key(kB));
      REQUIRE(victim.register_key(kC));
      REQUIRE(fencer.reserve(kA, type));
      REQUIRE(victim.write_one(std::byte{1}));
      REQUIRE(fencer.preempt(kA, kC, type, false));
      CHECK(fencer.keys() == std::vector{kA, kB});
      CHECK(victim.write_one(std::byte{2}).error() == Errc::fenced);
      auto why = lost.get_future();
      REQUIRE(why.wait_for(10s) == std::future_status::ready);
      CHECK(why.get() == Errc::fenced);
      CHECK(!victim.look());
      auto content = other.read_one();
      REQUIRE(content);
      CHECK(*content == std::byte{1});
      auto now = fencer.read_reservation();
      REQUIRE(now);
      CHECK(now->type == type);
      REQUIRE(fencer.clear(kA));
    }
  }
  SUBCASE("preempting a key that nobody has is a conflict, which ends nothing") {
    CHECK(a.preempt(kA, kC, Type::exclusive_access_all_registrants, false).error() ==
          Errc::reservation_conflict);
    CHECK(a.write_one(std::byte{1}));
    CHECK(a.keys() == std::vector{kA, kB});
  }
  SUBCASE("preempting needs a registration with the key one gives") {
    CHECK(c.preempt(kC, kB, Type::exclusive_access_all_registrants, false).error() ==
          Errc::reservation_conflict);
    CHECK(a.preempt(kB, kB, Type::exclusive_access_all_registrants, false).error() ==
          Errc::reservation_conflict);
    CHECK(c.keys() == std::vector{kA, kB});
  }
  SUBCASE("preempting the holder takes the reservation over") {
    for (auto type :
         {Type::write_exclusive, Type::exclusive_access, Type::exclusive_access_registrants_only}) {
      CAPTURE(raw(type));
      Node holder{nodes, "holder", static_cast<int>(raw(type))};
      REQUIRE(holder.register_key(kC));
      REQUIRE(holder.reserve(kC, type));
      REQUIRE(a.preempt(kA, kC, type, false));
      auto now = a.read_reservation();
      REQUIRE(now);
      CHECK(now->type == type);
      CHECK(now->holder == kA);
      CHECK(a.keys() == std::vector{kA, kB});
      CHECK(holder.write_one(std::byte{1}).error() == Errc::fenced);
      CHECK(a.write_one(std::byte{2}));
      if (!for_registrants(type)) REQUIRE(a.release(kA, type));
    }
  }
  SUBCASE("with all registrants, preempting everybody changes the type and leaves one") {
    REQUIRE(a.reserve(kA, Type::write_exclusive_all_registrants));
    REQUIRE(a.preempt(kA, Key{}, Type::exclusive_access_registrants_only, false));
    CHECK(a.keys() == std::vector{kA});
    auto now = a.read_reservation();
    REQUIRE(now);
    CHECK(now->type == Type::exclusive_access_registrants_only);
    CHECK(now->holder == kA);
    CHECK(kept_out(b.look()));
  }
  SUBCASE("one preempt removes the key from every nexus that has it, dead sessions too") {
    Node first{nodes, "many", 1}, second{nodes, "many", 2};
    REQUIRE(first.register_key(kC));
    REQUIRE(second.register_key(kC));
    REQUIRE(a.reserve(kA, Type::exclusive_access_all_registrants));
    second.lun().close();
    REQUIRE(a.preempt(kA, kC, Type::exclusive_access_all_registrants, false));
    CHECK(a.keys() == std::vector{kA, kB});
    CHECK(kept_out(first.look()));
  }
  SUBCASE("PREEMPT AND ABORT fences as PREEMPT does, or is refused as unsupported") {
    REQUIRE(a.reserve(kA, Type::exclusive_access_all_registrants));
    auto result = a.preempt(kA, kB, Type::exclusive_access_all_registrants, true);
    if (!a.lun().profile().preempt_and_abort) {
      CHECK(result.error() == Errc::unsupported_by_target);
      CHECK(a.keys() == std::vector{kA, kB});
      CHECK(b.look());
    } else {
      REQUIRE(result);
      CHECK(a.keys() == std::vector{kA});
      CHECK(kept_out(b.look()));
    }
  }
  SUBCASE("a reset of the LUN takes no registration and ends nobody's Lun") {
    REQUIRE(a.reserve(kA, Type::exclusive_access_all_registrants));
    REQUIRE(a.reset());
    CHECK(a.write_one(std::byte{3}));
    CHECK(b.look());
    CHECK(a.keys() == std::vector{kA, kB});
    CHECK(kept_out(c.look()));
  }
}

}  // namespace

void check_conformance(const ConformanceTarget& target) {
  Nodes nodes{target};
  SUBCASE("content") { check_content(nodes); }
  SUBCASE("registrations") { check_registrations(nodes); }
  SUBCASE("reservations: each type keeps out whom it must, and nobody else") {
    check_reservations(nodes);
  }
  SUBCASE("the end of a reservation") { check_end_of_reservation(nodes); }
  SUBCASE("preempt") { check_preempt(nodes); }
}

}  // namespace csv::iscsi
