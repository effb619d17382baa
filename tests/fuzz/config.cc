// csvd.toml. A refusal names the file and, but for what is missing as a whole, line and column.
#include "csvfs/base/config.h"

#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {

void run(std::span<const std::byte> bytes) {
  auto found = parse_config(text_of(bytes), "f");
  if (!found) {
    CSV_CHECK(found.error().message().starts_with("f:"));
    return;
  }
  CSV_CHECK(found->cluster > 0 && raw(found->node) >= 1 && raw(found->node) <= 63);
  for (const auto& peer : found->peers) CSV_CHECK(raw(peer.id) >= 1 && raw(peer.id) <= 63);
  for (const auto& volume : found->volumes)
    CSV_CHECK(volume.sessions >= 1 && volume.sessions <= 8 && !volume.name.empty());
}

std::vector<Seed> seeds() {
  const std::string node =
      "[cluster]\nid = 7\n[node]\nid = 1\nname = \"n1\"\nlisten = \"192.0.2.1:7400\"\n";
  const std::string volume = "[[volume]]\nname = \"v\"\nlun = \"file:/tmp/x\"\n";
  std::string deep, wide = node;
  for (int i = 0; i < 400; ++i) deep += "[";
  for (int i = 0; i < 300; ++i) wide += "[[peer]]\n";
  return {
      {"least", node},
      {"whole",
       node +
           "initiator = \"iqn.2026-01.org.example:n1\"\n[[peer]]\nid = 2\nname = \"n2\"\n"
           "address = \"[2001:db8::2]:7400\"\n" +
           volume +
           "sessions = 2\ncoordinate = true\nchap_user = \"u\"\nchap_secret_file = \"/s\"\n"
           "header_digest = true\ndata_digest = false\nwrite_cache = \"safe\"\n"},
      {"isolation",
       "[cluster]\nid = 7\nisolation_addresses = [\"192.0.2.254\"]\non_isolation = \"stop\"\n" +
           node.substr(node.find("[node]"))},
      {"unknown-key", node + "colour = 1\n"},
      {"unknown-table", node + "[colours]\n"},
      {"twice", node + "[[peer]]\nid = 1\nname = \"n2\"\naddress = \"192.0.2.2:7400\"\n"},
      {"types", "[cluster]\nid = 1979-05-27\n[node]\nid = 1.5\nname = []\n"},
      {"not-a-table", "cluster = 3\nnode = []\n"},
      {"array", "[cluster]\nid = 7\n" + node + "volume = [1]\n"},
      {"negative", "[cluster]\nid = -9223372036854775808\n"},
      {"deep", "a = " + deep},
      {"deep-tables", "a = " + std::string(2000, '{')},
      {"keys", std::string("a") +
                   [] {
                     std::string dots;
                     for (int i = 0; i < 2000; ++i) dots += ".a";
                     return dots;
                   }() +
                   " = 1"},
      {"wide", wide},
      {"bytes", "[cluster]\nid = 7\n\xff\xfe\n"},
      {"string", "[node]\nname = \"\"\"\n\\uD800\"\"\"\n"},
      {"empty", ""},
  };
}

}  // namespace csv::fuzz
