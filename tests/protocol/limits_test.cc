#include "coordinator/protocol/limits.h"

#include <doctest/doctest.h>

#include <functional>

#include "coordinator/protocol/failure.h"
#include "coordinator/protocol/frame.h"

using namespace csv;
using namespace csv::protocol;

namespace {

using Build = std::function<void(wire::Frame&)>;

struct Case {
  const char* what;
  Build build;
  std::size_t bulk = 0;
};

Expected<void> judged(const Case& one) {
  wire::Frame frame;
  one.build(frame);
  return check_limits(frame, one.bulk);
}

wire::Request& request(wire::Frame& frame) { return *frame.mutable_request(); }

}  // namespace

TEST_CASE("limits: what a healthy peer may say passes") {
  const Case cases[] = {
      {"beat", [](auto& f) { f.mutable_beat()->set_node(63); }},
      {"longest name a kernel sends",
       [](auto& f) { request(f).mutable_lookup()->set_name(std::string(1024, 'x')); }},
      {"name of any bytes",
       [](auto& f) { request(f).mutable_lookup()->set_name(std::string("\xff\x00/", 3)); }},
      {"longest xattr",
       [](auto& f) {
         request(f).mutable_set_xattr()->set_name(std::string(255, 'x'));
         request(f).mutable_set_xattr()->set_value(std::string(65'536, 'x'));
       }},
      {"write of a mebibyte at the largest offset",
       [](auto& f) { request(f).mutable_write()->set_offset(kMaxOffset - (1u << 20)); }, 1u << 20},
      {"layout of all of a file",
       [](auto& f) { request(f).mutable_layout()->set_length(kMaxOffset); }},
      {"recall of everything",
       [](auto& f) { f.mutable_notice()->mutable_recall()->set_length(~0ull); }},
      {"as many closed files as are gathered",
       [](auto& f) {
         for (int i = 0; i < kMaxReleased; ++i) request(f).mutable_release()->add_also(1);
       }},
      {"reply without result", [](auto& f) { f.mutable_reply(); }},
      {"reply with content", [](auto& f) { f.mutable_reply(); }, kMaxBulk},
      {"failed hello", [](auto& f) { f.mutable_hello_reply()->mutable_failure()->set_code(2); }},
  };
  for (const auto& one : cases) {
    CAPTURE(one.what);
    CHECK(judged(one));
  }
}

TEST_CASE(
    "limits: a Hello may name as many open files as a mount can have, whatever their numbers") {
  wire::Frame frame;
  frame.set_epoch(~0ull);
  frame.set_coordinator_key(~0ull);
  auto& hello = *frame.mutable_hello();
  hello.set_protocol(1);
  hello.set_volume(std::string(protocol::kMaxVolumeName, 'v'));
  hello.set_node(protocol::kMaxNode);
  hello.set_incarnation(~0ull);
  hello.set_session(~0ull);
  constexpr std::uint64_t kLargest = (1ull << 48) - 1;  // lives are counted above it
  for (std::size_t i = 0; i < protocol::kMostOpenFiles; ++i) {
    hello.add_open_inodes(kLargest - i);
    hello.add_write_inodes(kLargest - i);
    hello.add_page_inodes(kLargest - i);
  }
  hello.set_layouts_unlisted(true);
  CHECK(hello.ByteSizeLong() <= protocol::kMostHelloBytes);
  CHECK(frame.ByteSizeLong() <= protocol::kMaxHead);
  CHECK(protocol::kMostHelloBytes < protocol::kMaxHead);
  CHECK(protocol::check_limits(frame, 0));
}

TEST_CASE("limits: what lies outside is refused, whatever the message") {
  const Case cases[] = {
      {"no body", [](auto& f) { f.set_id(1); }},
      {"node 0", [](auto& f) { f.mutable_beat(); }},
      {"node 64", [](auto& f) { f.mutable_beat()->set_node(64); }},
      {"beat with bulk data", [](auto& f) { f.mutable_beat()->set_node(1); }, 1},
      {"too many coordinated volumes",
       [](auto& f) {
         f.mutable_beat_echo()->set_node(1);
         for (int i = 0; i < 65; ++i) f.mutable_beat_echo()->add_coordinates()->set_volume("v");
       }},
      {"echo with a nameless volume",
       [](auto& f) {
         f.mutable_beat_echo()->set_node(1);
         f.mutable_beat_echo()->add_coordinates();
       }},
      {"hello without volume", [](auto& f) { f.mutable_hello()->set_node(1); }},
      {"hello with a long volume",
       [](auto& f) {
         f.mutable_hello()->set_node(1);
         f.mutable_hello()->set_volume(std::string(64, 'v'));
       }},
      {"hello with too many layouts",
       [](auto& f) {
         f.mutable_hello()->set_node(1);
         f.mutable_hello()->set_volume("v");
         for (int i = 0; i <= kMaxLayoutInodes; ++i) f.mutable_hello()->add_layout_inodes(1);
       }},
      {"hello reply without volume id", [](auto& f) { f.mutable_hello_reply(); }},
      {"request without operation", [](auto& f) { request(f).set_slot(1); }},
      {"slot 64",
       [](auto& f) {
         request(f).set_slot(64);
         request(f).mutable_stat_fs();
       }},
      {"bulk data beside a look-up", [](auto& f) { request(f).mutable_lookup(); }, 10},
      {"name too long",
       [](auto& f) { request(f).mutable_make()->set_name(std::string(1025, 'x')); }},
      {"target too long",
       [](auto& f) { request(f).mutable_make()->set_target(std::string(4097, 'x')); }},
      {"mode", [](auto& f) { request(f).mutable_make()->set_mode(0x10000); }},
      {"size", [](auto& f) { request(f).mutable_set_attr()->set_size(kMaxOffset + 1); }},
      {"rename flags", [](auto& f) { request(f).mutable_rename()->set_flags(8); }},
      {"xattr value",
       [](auto& f) { request(f).mutable_set_xattr()->set_value(std::string(65'537, 'x')); }},
      {"write past the end of numbers",
       [](auto& f) { request(f).mutable_write()->set_offset(kMaxOffset); }, 1},
      {"read past the end of numbers",
       [](auto& f) {
         request(f).mutable_read()->set_offset(~0ull - 10);
         request(f).mutable_read()->set_length(20);
       }},
      {"read too long", [](auto& f) { request(f).mutable_read()->set_length(kMaxBulk + 1); }},
      {"layout that overflows",
       [](auto& f) {
         request(f).mutable_layout()->set_offset(1);
         request(f).mutable_layout()->set_length(kMaxOffset);
       }},
      {"too many closed files",
       [](auto& f) {
         for (int i = 0; i <= kMaxReleased; ++i) request(f).mutable_release()->add_also(1);
       }},
      {"segment's state",
       [](auto& f) { f.mutable_reply()->mutable_layout()->add_segments()->set_state(3); }},
      {"segment that overflows",
       [](auto& f) {
         auto* segment = f.mutable_reply()->mutable_layout()->add_segments();
         segment->set_lun_offset(kMaxOffset);
         segment->set_length(4096);
       }},
      {"entry without name", [](auto& f) { f.mutable_reply()->mutable_entries()->add_entries(); }},
      {"notice without news", [](auto& f) { f.mutable_notice(); }},
      {"error text",
       [](auto& f) {
         f.mutable_reply()->mutable_failure()->set_message(std::string(kMaxText + 1, 'x'));
       }},
  };
  for (const auto& one : cases) {
    CAPTURE(one.what);
    auto verdict = judged(one);
    REQUIRE_FALSE(verdict);
    CHECK(verdict.error() == Errc::refused);
  }
}

TEST_CASE("failure: an error with any bytes in its text crosses the wire") {
  for (std::string text : {std::string("plain"), std::string("M\xc3\xbcll \xe2\x82\xac"),
                           std::string("bad \xff\xfe \xc3 \xed\xa0\x80 \xf4\x90\x80\x80"),
                           std::string(10'000, '\xc3'), std::string("\xe2\x82")}) {
    Message message;
    *message.frame.mutable_reply()->mutable_failure() =
        encode(Error{std::errc::no_such_file_or_directory, text});
    auto bytes = encode_message(message);
    auto back = decode_message(std::as_bytes(std::span{bytes}));
    REQUIRE(back);
    auto error = decode(back->frame.reply().failure());
    CHECK(error == std::errc::no_such_file_or_directory);
    if (text.starts_with("plain") || text.starts_with("M")) CHECK(error.message() == text);
  }
}

TEST_CASE("failure: our own codes come back as they went, unknown ones as an I/O error") {
  CHECK(decode(encode(Error{Errc::stale_commit})) == Errc::stale_commit);
  CHECK(decode(encode(Error{})).code() == std::error_code{});
  wire::Failure unknown;
  unknown.set_code(999);
  CHECK(decode(unknown) == std::errc::io_error);
}
