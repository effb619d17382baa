// A cluster's configuration: its bytes as nodes keep and send them, its text as administrators do,
// and the files of a node. What is taken is sane, and comes back the same.
//
//   kind (1 byte): 'b' bytes, 'p' patches on good bytes (input.h), 'f' a file beside a good one,
//   'a' a file alone, 'q' patches on a good file that get a right checksum, else text
#include "coordinator/cluster/configuration.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "coordinator/cluster/configuration_store.h"
#include "coordinator/cluster/configuration_text.h"
#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"
#include "tests/fakes/inline_worker.h"
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

/// A node's folder.
class Folder {
 public:
  Folder() : path_{std::filesystem::temp_directory_path() / "csv-fuzz-XXXXXX"} {
    CSV_CHECK(::mkdtemp(path_.data()) != nullptr);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string content_of(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  return std::string{std::istreambuf_iterator<char>{file}, {}};
}

void save(const std::string& folder, const cluster::Kept& kept) {
  fakes::ManualLoop loop;
  cluster::ConfigurationFiles files{loop, std::make_unique<fakes::InlineWorker>(loop), folder};
  bool saved = false;
  files.save(kept, [&saved](const Expected<void>& done) { saved = static_cast<bool>(done); });
  loop.settle();
  CSV_CHECK(saved);
}

constexpr ClusterTag kPromised{1, 9, 5};

/// The two files that a node has when all is well; they are the same.
const std::string& good_file() {
  static const std::string made = [] {
    Folder folder;
    save(folder.path(), {good(), kPromised});
    return content_of(folder.path() + "/cluster-a");
  }();
  return made;
}

void file_in(std::string_view bytes, bool alone) {
  Folder folder;
  auto put = [&](const char* name, std::string_view content) {
    std::ofstream file{folder.path() + "/" + name, std::ios::binary};
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    CSV_CHECK(file.flush());
  };
  put("cluster-b", bytes);
  if (!alone) put("cluster-a", good_file());
  auto read = cluster::ConfigurationFiles::read(folder.path());
  if (!read) {
    CSV_CHECK(!read.error().message().empty());
    // One that is whole is used, whatever the other is, unless that may be of a newer program.
    CSV_CHECK(alone || !(read.error() == Errc::corrupt));
    return;
  }
  // What was promised, and stored, by the good one is not forgotten.
  if (!alone) {
    CSV_CHECK(read->kept.configuration && !(read->kept.configuration->tag < good().tag));
    CSV_CHECK(!(read->kept.promised < kPromised));
  }
  if (read->kept.configuration)
    CSV_CHECK(static_cast<bool>(cluster::validate(*read->kept.configuration)));
  save(folder.path(), read->kept);
  auto again = cluster::ConfigurationFiles::read(folder.path());
  CSV_CHECK(again && again->kept == read->kept && again->damage.empty());
}

/// The header's length and checksum, which cover all behind its first 16 bytes.
void sum(std::string& file) {
  if (file.size() < 16) return;
  Le32 length{static_cast<std::uint32_t>(file.size() - 16)};
  Le32 crc{crc32c(std::as_bytes(std::span{file}).subspan(16))};
  std::memcpy(file.data() + 8, &length, sizeof length);
  std::memcpy(file.data() + 12, &crc, sizeof crc);
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  Input input{bytes};
  auto kind = input.take();
  if (kind == 'f' || kind == 'a') return file_in(text_of(input.rest()), kind == 'a');
  if (kind == 'q') {
    auto file = good_file();
    patch(input, std::as_writable_bytes(std::span{file}));
    sum(file);
    return file_in(file, false);
  }
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
      {"file", "a" + good_file()},
      {"file-beside", "f" + good_file()},
      {"file-cut", "f" + good_file().substr(0, 39)},
      {"file-header-only", "f" + good_file().substr(0, 40)},
      {"file-empty", "a"},
      {"file-promise", "q" + patch_of(16, std::string(8, '\xff'))},
      {"file-newer", "q" + patch_of(40, "\xff\xff\xff\xff")},
      {"file-tag", "q" + patch_of(44, "\x09")},
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
