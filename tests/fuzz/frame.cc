// The stream of messages on a connection: header, head, bulk data, cut into pieces anywhere.
//
//   how (1 byte: bit 0 checksums left as they are; bits 1..7 size of the pieces, 0: whole), then
//   with checksums made right: pairs of a head (2 bytes of length) and bulk data (2 bytes of
//   length) without: the stream as it is
#include "coordinator/protocol/frame.h"

#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

using namespace protocol;

std::string with_header(std::string_view head, std::string_view bulk) {
  FrameHeader header{};
  header.magic = {'C', 'S', 'V', 'F'};
  header.version = kFrameVersion;
  header.head_length = static_cast<std::uint32_t>(head.size());
  header.bulk_length = static_cast<std::uint32_t>(bulk.size());
  header.head_crc = crc32c(std::as_bytes(std::span{head}));
  header.crc = crc32c(std::as_bytes(std::span{&header, 1}).first(offsetof(FrameHeader, crc)));
  return std::string{reinterpret_cast<const char*>(&header), sizeof header} + std::string{head} +
         std::string{bulk};
}

std::string stream_of(Input& input, bool as_it_is) {
  if (as_it_is) return std::string{text_of(input.rest())};
  std::string stream;
  while (!input.empty()) {
    auto head = input.take(input.take<std::uint16_t>());
    auto bulk = input.take(input.take<std::uint16_t>());
    stream += with_header(text_of(head), text_of(bulk));
  }
  return stream;
}

/// What was accepted can be sent on: nothing in it exceeds what this side may send.
void must_travel(const Message& message) {
  auto bytes = encode_message(message);
  auto again = decode_message(std::as_bytes(std::span{bytes}));
  CSV_CHECK(again && again->frame.SerializeAsString() == message.frame.SerializeAsString());
}

void read_all(std::string_view stream, std::size_t piece) {
  FrameReader reader{64};  // so that heads outgrow it
  auto bytes = std::as_bytes(std::span{stream});
  while (true) {
    auto next = reader.next();
    if (!next) {
      CSV_CHECK(!next.error().message().empty());
      return;
    }
    if (*next) {
      must_travel(**next);
      continue;
    }
    if (bytes.empty()) return;
    std::size_t filled = 0;
    for (auto space : reader.space()) {
      auto length = std::min({space.size(), bytes.size(), piece - filled});
      if (length > 0) std::memcpy(space.data(), bytes.data(), length);
      bytes = bytes.subspan(length);
      filled += length;
    }
    CSV_CHECK(filled > 0);
    reader.filled(filled);
  }
}

std::string part(const std::string& bytes) {
  return number(static_cast<std::uint16_t>(bytes.size())) + bytes;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto how = input.take();
  auto stream = stream_of(input, (how & 1) != 0);
  std::size_t piece = how >> 1 == 0 ? ~std::size_t{0} : how >> 1;
  read_all(stream, piece);
}

std::vector<Seed> seeds() {
  std::vector<Seed> all;
  auto add = [&](const std::string& name, const wire::Frame& frame, const std::string& bulk = {}) {
    all.push_back({name, std::string(1, '\0') + part(frame.SerializeAsString()) + part(bulk)});
  };
  wire::Frame frame;
  frame.set_epoch(3);
  frame.set_coordinator_key(0x1234);
  frame.set_id(7);
  auto hello = frame;
  hello.mutable_hello()->set_protocol(1);
  hello.mutable_hello()->set_volume("volume1");
  hello.mutable_hello()->set_node(2);
  hello.mutable_hello()->set_incarnation(99);
  hello.mutable_hello()->add_open_inodes(1);
  add("hello", hello);
  auto greeted = frame;
  greeted.mutable_hello_reply()->set_volume_id(std::string(16, 'i'));
  greeted.mutable_hello_reply()->set_lun_identity("naa.1");
  add("hello-reply", greeted);
  auto beat = frame;
  beat.mutable_beat()->set_node(2);
  beat.mutable_beat()->set_sent_at(-1);
  add("beat", beat);
  auto echo = frame;
  echo.mutable_beat_echo()->set_node(63);
  echo.mutable_beat_echo()->add_coordinates()->set_volume("volume1");
  add("beat-echo", echo);
  auto write = frame;
  write.mutable_request()->set_slot(63);
  write.mutable_request()->set_sequence(1);
  write.mutable_request()->mutable_write()->set_inode(5);
  add("write", write, std::string(5000, 'w'));
  auto commit = frame;
  commit.mutable_request()->mutable_commit()->set_offset(~0ull);
  add("commit-far", commit);
  auto layout = frame;
  auto& segment = *layout.mutable_reply()->mutable_layout()->add_segments();
  segment.set_length(1 << 20);
  segment.set_state(1);
  add("layout", layout);
  auto entries = frame;
  auto& entry = *entries.mutable_reply()->mutable_entries()->add_entries();
  entry.set_name("name");
  entry.mutable_attr()->set_inode(5);
  add("entries", entries);
  auto recall = frame;
  recall.mutable_notice()->mutable_recall()->set_length(~0ull);
  add("recall", recall);
  auto fenced = frame;
  fenced.mutable_notice()->mutable_fenced()->set_reason("\xff not UTF-8");
  add("fenced-no-text", fenced);
  auto answered = frame;
  answered.mutable_notice_reply()->set_wrote(true);
  add("notice-reply", answered);
  all.push_back({"two", "\x0e" + part(beat.SerializeAsString()) + part("") +
                            part(echo.SerializeAsString()) + part("")});
  all.push_back({"raw", "\x01" + encode_message({write, Buffer::zeroed(100)})});
  all.push_back({"raw-bytewise", "\x03" + encode_message({hello, {}})});
  all.push_back({"stranger", "\x01GET / HTTP/1.1\r\n\r\nthat is no frame"});
  std::string nested;
  for (int i = 0; i < 200; ++i)
    nested = std::string("\xba\x01") + static_cast<char>(nested.size() % 128) + nested;
  all.push_back({"nested", std::string(1, '\0') + part(nested) + part("")});
  return all;
}

}  // namespace csv::fuzz
