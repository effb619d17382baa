// A cluster's configuration: its bytes as nodes keep and send them, and its text as administrators
// do. What is taken is sane, and comes back the same.
//
//   kind (1 byte): 'b' bytes, 'p' patches on good bytes (input.h), else text
#include "coordinator/cluster/configuration.h"

#include "coordinator/cluster/configuration_text.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

cluster::Configuration good() {
  cluster::Configuration out;
  out.tag = {1, 9, 4};
  out.cluster = 7;
  out.name = "demo";
  for (std::uint8_t i = 1; i <= 3; ++i) {
    out.nodes[NodeId{i}] = {"n" + std::to_string(i), "192.0.2." + std::to_string(i) + ":7400"};
    out.ballot.now.nodes[NodeId{i}] = 1;
  }
  out.ballot.before = out.ballot.now;
  out.volumes["v"] = {NodeId{1}, NodeId{2}, 3};
  out.witness = {cluster::WitnessKind::share, "/srv/witness", false};
  out.heartbeat.isolation_addresses = {"192.0.2.254"};
  return out;
}

void bytes_in(std::string_view bytes) {
  auto read = cluster::decode(bytes);
  if (!read) return;
  CSV_CHECK(static_cast<bool>(cluster::validate(*read)));
  auto again = cluster::decode(cluster::encode(*read));
  CSV_CHECK(again && *again == *read);
  (void)cluster::to_toml(*read);
}

void text_in(std::string_view text) {
  auto read = cluster::from_toml(text, "f");
  if (!read) {
    CSV_CHECK(read.error() == Errc::refused && !read.error().message().empty());
    return;
  }
  CSV_CHECK(static_cast<bool>(cluster::validate(*read)));
  auto again = cluster::from_toml(cluster::to_toml(*read), "f");
  CSV_CHECK(again && *again == *read);
  if (auto then = cluster::replaced(good(), *read)) (void)cluster::differences(good(), *then);
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto kind = input.take();
  if (kind == 'b') return bytes_in(text_of(input.rest()));
  if (kind != 'p') return text_in(text_of(input.rest()));
  auto patched = cluster::encode(good());
  patch(input, std::as_writable_bytes(std::span{patched}));
  bytes_in(patched);
}

std::vector<Seed> seeds() {
  auto encoded = cluster::encode(good());
  auto text = cluster::to_toml(good());
  return {
      {"bytes", "b" + encoded},
      {"bytes-cut", "b" + encoded.substr(0, encoded.size() / 2)},
      {"bytes-twice", "b" + encoded + encoded},
      {"bytes-empty", "b"},
      {"patched", "p" + patch_of(0, std::string("\x08\x02", 2))},
      {"patched-names", "p" + patch_of(12, "\xff\xfe") + patch_of(40, "n1")},
      {"text", "t" + text},
      {"text-cut", "t" + text.substr(0, text.size() / 3)},
      {"text-empty", "t"},
      {"text-deep", "tx = " + std::string(1000, '[')},
      {"text-types", "tcluster = 1\nnode = [1]\nvolume = {}\n"},
      {"text-nothing", "t[cluster]\nid = 1\nname = \"c\"\n[[node]]\n"},
      {"text-escapes",
       "t[cluster]\nid = 7\nname = \"c\"\n[witness]\nkind = \"disk\"\nplace = "
       "\"/dev/\\u00e9\\\"\"\n"
       "[[node]]\nid = 1\nname = \"n\"\naddress = \"[2001:db8::1]:7400\"\n"},
  };
}

}  // namespace csv::fuzz
