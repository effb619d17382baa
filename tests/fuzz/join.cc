// Tokens of new nodes, and what the cluster sends to who has one. What is read is whole; what is
// refused is so with a reason.
#include "coordinator/admin/join_commands.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

protocol::JoinToken token() {
  protocol::JoinToken out;
  out.cluster = 7;
  out.endpoint = "192.0.2.1:40123";
  return out;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  std::string text{text_of(bytes)};
  if (text.starts_with("{")) {
    auto bundle = admin::parse_join_bundle(text, token());
    if (!bundle) return CSV_CHECK(!bundle.error().message().empty());
    CSV_CHECK(admin::parse_join_bundle(admin::to_text(*bundle), token()));
    return;
  }
  auto read = protocol::parse_join_token(text);
  if (!read) return CSV_CHECK(!read.error().message().empty());
  CSV_CHECK(protocol::to_text(*read) == text);
}

std::vector<Seed> seeds() {
  admin::JoinBundle bundle{"[cluster]\nid = 7\n", "# Written by csvfs.\n",
                           std::string(128, 'k'), "ca",
                           "certificate",         "key"};
  auto text = protocol::to_text(token());
  return {
      {"token", text},
      {"cut", text.substr(0, text.size() - 2)},
      {"prefix", "csvfs-join-"},
      {"version", "csvfs-join-02"},
      {"bundle", admin::to_text(bundle)},
      {"no-object", "{"},
      {"fields", R"({"version":1,"config":5,"corosync":[]})"},
  };
}

}  // namespace csv::fuzz
