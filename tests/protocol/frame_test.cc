#include "coordinator/protocol/frame.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "coordinator/protocol/limits.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/random.h"

using namespace csv;
using namespace csv::protocol;

namespace {

Message lookup(std::uint64_t id, std::size_t bulk = 0) {
  Message out;
  out.frame.set_epoch(7);
  out.frame.set_coordinator_key(0x4711);
  out.frame.set_id(id);
  auto* request = out.frame.mutable_request();
  request->set_slot(63);
  request->set_sequence(12);
  if (bulk > 0) {
    request->mutable_write()->set_inode(5);
    out.bulk = Buffer{bulk};
    for (std::size_t i = 0; i < bulk; ++i)
      out.bulk.data()[i] = static_cast<std::byte>((i * 31 + id) & 0xff);
  } else {
    request->mutable_lookup()->set_parent(1);
    request->mutable_lookup()->set_name("a name");
  }
  return out;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span{text});
}

bool same(const Message& a, const Message& b) {
  return a.frame.SerializeAsString() == b.frame.SerializeAsString() &&
         std::ranges::equal(a.bulk.span(), b.bulk.span());
}

/// Feeds `stream` to a reader in pieces of `step` bytes and collects what comes out.
Expected<std::vector<Message>> read_all(FrameReader& reader, std::span<const std::byte> stream,
                                        std::size_t step) {
  std::vector<Message> out;
  while (!stream.empty()) {
    auto left = std::min(step, stream.size());
    std::size_t filled = 0;
    for (auto space : reader.space()) {
      auto taken = std::min(space.size(), left);
      if (taken == 0) continue;
      std::memcpy(space.data(), stream.data(), taken);
      stream = stream.subspan(taken);
      left -= taken;
      filled += taken;
    }
    if (filled == 0) return Error{Errc::corrupt, "the reader takes nothing more"};
    reader.filled(filled);
    for (;;) {
      auto next = CSV_TRY(reader.next());
      if (!next) break;
      out.push_back(std::move(*next));
    }
  }
  return out;
}

/// A header that is intact and says `header`, whatever that is.
std::string sealed(FrameHeader header) {
  header.crc = crc32c(std::as_bytes(std::span{&header, 1}).first(offsetof(FrameHeader, crc)));
  return {reinterpret_cast<const char*>(&header), sizeof header};
}

FrameHeader header_of(const Message& message) {
  auto encoded = encode_message(message);
  return *decode_header(bytes_of(encoded));
}

}  // namespace

TEST_CASE("frame: the header lies on the wire byte for byte as it is drawn") {
  Message message;
  message.frame.set_id(1);
  message.frame.mutable_resume_done();
  auto encoded = encode_message(message);
  const unsigned char expected[] = {
      'C',  'S',  'V',  'F',   // magic
      0x01, 0x00,              // version
      0x00, 0x00,              // reserved
      0x05, 0x00, 0x00, 0x00,  // head_length: id = 1 (18 01), resume_done = {} (c2 01 00)
      0x00, 0x00, 0x00, 0x00,  // bulk_length
  };
  REQUIRE(encoded.size() == kHeaderSize + 5);
  CHECK(std::memcmp(encoded.data(), expected, sizeof expected) == 0);
  CHECK(encoded.substr(kHeaderSize) == std::string{"\x18\x01\xc2\x01\x00", 5});
  auto crc_at = [&](std::size_t at) {
    Le32 value;
    std::memcpy(&value, encoded.data() + at, 4);
    return std::uint32_t{value};
  };
  CHECK(crc_at(16) == crc32c(bytes_of(encoded).subspan(kHeaderSize)));
  CHECK(crc_at(20) == crc32c(bytes_of(encoded).first(20)));
}

TEST_CASE("frame: messages come back as they were sent, however the stream is cut into pieces") {
  std::vector<Message> sent;
  std::string stream;
  for (std::size_t bulk : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{0},
                           std::size_t{100'000}, std::size_t{1} << 20}) {
    sent.push_back(lookup(sent.size() + 1, bulk));
    stream += encode_message(sent.back());
  }
  for (std::size_t step : {std::size_t{1}, std::size_t{7}, std::size_t{24}, std::size_t{4096},
                           std::size_t{65'536}, stream.size()}) {
    CAPTURE(step);
    FrameReader reader;
    auto got = read_all(reader, bytes_of(stream), step);
    REQUIRE(got);
    REQUIRE(got->size() == sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i) CHECK(same((*got)[i], sent[i]));
    CHECK(reader.at_boundary());
  }
}

TEST_CASE("frame: a head longer than the reader's buffer still fits") {
  Message hello;
  auto* body = hello.frame.mutable_hello();
  body->set_volume("volume1");
  body->set_node(1);
  for (std::uint64_t i = 0; i < 60'000; ++i) body->add_open_inodes((1ull << 40) + i);
  auto encoded = encode_message(hello);
  REQUIRE(encoded.size() > 256 * 1024);
  FrameReader reader{4096};
  auto got = read_all(reader, bytes_of(encoded), 1500);
  REQUIRE(got);
  REQUIRE(got->size() == 1);
  CHECK(same(got->front(), hello));
}

TEST_CASE("frame: a damaged byte anywhere in header or head is never taken for a message") {
  auto message = lookup(9);
  auto intact = encode_message(message);
  for (std::size_t at = 0; at < intact.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      CAPTURE(at);
      CAPTURE(bit);
      auto damaged = intact;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      CHECK_FALSE(decode_message(bytes_of(damaged)));
      FrameReader reader;
      auto got = read_all(reader, bytes_of(damaged), damaged.size());
      CHECK_FALSE(got);
    }
  }
}

TEST_CASE("frame: a message cut short anywhere is incomplete, never wrong") {
  auto message = lookup(9, 5000);
  auto whole = encode_message(message);
  for (std::size_t length = 0; length < whole.size(); length += length < 300 ? 1 : 41) {
    CAPTURE(length);
    FrameReader reader;
    auto got = read_all(reader, bytes_of(whole).first(length), 4096);
    REQUIRE(got);
    CHECK(got->empty());
    CHECK(reader.at_boundary() == (length == 0));
    CHECK_FALSE(decode_message(bytes_of(whole).first(length)));
  }
}

TEST_CASE("frame: lengths over the limits are refused before anything is allocated for them") {
  auto header = header_of(lookup(1));
  SUBCASE("head") { header.head_length = static_cast<std::uint32_t>(kMaxHead) + 1; }
  SUBCASE("empty head") { header.head_length = 0u; }
  SUBCASE("bulk") { header.bulk_length = static_cast<std::uint32_t>(kMaxBulk) + 1; }
  SUBCASE("largest number") { header.bulk_length = 0xffffffffu; }
  SUBCASE("a newer version") { header.version = std::uint16_t{kFrameVersion + 1}; }
  SUBCASE("version 0") { header.version = std::uint16_t{0}; }
  SUBCASE("reserved bytes in use") { header.reserved = std::uint16_t{1}; }
  auto text = sealed(header);
  auto decoded = decode_header(bytes_of(text));
  REQUIRE_FALSE(decoded);
  CHECK(decoded.error() == Errc::refused);
  FrameReader reader;
  CHECK_FALSE(read_all(reader, bytes_of(text), text.size()));
}

TEST_CASE("frame: a stranger is told from the first bytes") {
  std::string http = "GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n";
  auto decoded = decode_header(bytes_of(http));
  REQUIRE_FALSE(decoded);
  CHECK(decoded.error() == Errc::refused);
}

TEST_CASE("frame: random bytes, and valid streams with random damage, crash nothing") {
  Random random{20260101};
  std::uint64_t refused = 0, accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string stream;
    for (int i = 0; i < 3; ++i) stream += encode_message(lookup(random.next(), random.below(300)));
    if (random.chance(1, 4)) {
      for (auto& c : stream) c = static_cast<char>(random.next());
    } else {
      for (auto damage = random.below(4); damage > 0; --damage)
        stream[random.below(stream.size())] = static_cast<char>(random.next());
    }
    // Damage in the schema's bytes themselves is only seen once the checksums fit.
    FrameReader reader{1 + random.below(200)};
    auto got = read_all(reader, bytes_of(stream), 1 + random.below(100));
    (got ? accepted : refused)++;
  }
  CHECK(refused > 1000);
  CHECK(accepted > 100);
}

TEST_CASE("frame: random heads behind intact checksums are refused or within the limits") {
  Random random{42};
  std::uint64_t parsed = 0;
  for (int round = 0; round < 20'000; ++round) {
    auto head = lookup(random.next()).frame.SerializeAsString();
    for (auto changes = 1 + random.below(6); changes > 0; --changes)
      head[random.below(head.size())] = static_cast<char>(random.next());
    auto header = header_of(lookup(1));
    header.head_length = static_cast<std::uint32_t>(head.size());
    header.head_crc = crc32c(bytes_of(head));
    auto decoded = decode_message(bytes_of(sealed(header) + head));
    if (!decoded) continue;
    ++parsed;
    CHECK(check_limits(decoded->frame, decoded->bulk.size()));
  }
  CHECK(parsed > 100);
}
