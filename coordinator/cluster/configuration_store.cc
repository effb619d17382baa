#include "coordinator/cluster/configuration_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

/// In front of the configuration.
struct Header {
  std::array<char, 8> magic{'c', 's', 'v', 'c', 'o', 'n', 'f', '1'};
  Le32 length, crc;              ///< Of what follows the checksum; CRC-32C.
  Le64 forced, epoch, sequence;  ///< What was promised.
};
static_assert(sizeof(Header) == 40);
constexpr std::size_t kUnchecked = 16;
constexpr std::size_t kMost = 4u << 20;
const std::array<const char*, 2> kNames{"cluster-a", "cluster-b"};
const char* const kPrevents = "prevent-quorum";

struct Fd {
  int fd;
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};

/// Nothing where there is no such file.
Expected<std::optional<Kept>> read_one(const std::string& path) {
  Fd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) {
    if (errno == ENOENT) return std::optional<Kept>{};
    return errno_error(errno, "opening " + path);
  }
  std::string text;
  std::array<char, 65536> piece{};
  for (;;) {
    auto n = ::read(file.fd, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, "reading " + path);
    if (n == 0) break;
    text.append(piece.data(), static_cast<std::size_t>(n));
    if (text.size() > kMost) return Error{Errc::corrupt, path + " is too long"};
  }
  Header header;
  if (text.size() < sizeof header) return Error{Errc::corrupt, path + " is cut short"};
  std::memcpy(&header, text.data(), sizeof header);
  auto checked = std::string_view{text}.substr(kUnchecked);
  if (header.magic != Header{}.magic || header.length != checked.size() ||
      header.crc != crc32c(std::as_bytes(std::span{checked})))
    return Error{Errc::corrupt, path + ": its checksum is wrong"};
  Kept out;
  out.promised = {header.forced, header.epoch, header.sequence};
  if (text.size() > sizeof header) {
    auto read = decode(std::string_view{text}.substr(sizeof header));
    if (!read) return read.error().within(path);
    out.configuration = *std::move(read);
  }
  return std::optional<Kept>{std::move(out)};
}

std::string file_of(const Kept& kept) {
  Header header;
  header.forced = kept.promised.forced;
  header.epoch = kept.promised.epoch;
  header.sequence = kept.promised.sequence;
  std::string text{reinterpret_cast<const char*>(&header), sizeof header};
  if (kept.configuration) text += encode(*kept.configuration);
  auto checked = std::string_view{text}.substr(kUnchecked);
  header.length = static_cast<std::uint32_t>(checked.size());
  header.crc = crc32c(std::as_bytes(std::span{checked}));
  std::memcpy(text.data(), &header, kUnchecked);
  return text;
}

Expected<void> sync_folder(const std::string& folder) {
  Fd directory{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (directory.fd < 0) return errno_error(errno, "opening " + folder);
  if (::fsync(directory.fd) != 0) return errno_error(errno, "naming what is in " + folder);
  return {};
}

Expected<void> write_one(const std::string& folder, const char* name, std::string_view text) {
  auto path = folder + "/" + name, part = path + ".part";
  {
    Fd file{::open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    if (file.fd < 0) return errno_error(errno, "making " + part);
    for (auto rest = text; !rest.empty();) {
      auto n = ::write(file.fd, rest.data(), rest.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return errno_error(errno, "writing " + part);
      rest.remove_prefix(static_cast<std::size_t>(n));
    }
    if (::fsync(file.fd) != 0) return errno_error(errno, "writing " + part);
  }
  if (::rename(part.c_str(), path.c_str()) != 0) return errno_error(errno, "naming " + path);
  return sync_folder(folder);
}

}  // namespace

Expected<ConfigurationFiles::Found> ConfigurationFiles::read(const std::string& folder) {
  Found out;
  bool any = false, whole = false;
  for (const auto* name : kNames) {
    auto one = read_one(folder + "/" + name);
    if (!one) {
      // Of a newer format, or unreadable: whatever the other file says may be older than this.
      if (!(one.error() == Errc::corrupt)) return one.error();
      out.damage += (out.damage.empty() ? "" : "; ") + one.error().message();
      any = true;
    } else if (*one) {
      any = whole = true;
      auto& kept = **one;
      out.kept.promised = std::max(out.kept.promised, kept.promised);
      if (kept.configuration &&
          (!out.kept.configuration || kept.configuration->tag > out.kept.configuration->tag))
        out.kept.configuration = std::move(kept.configuration);
    }
  }
  if (any && !whole)
    return Error{Errc::corrupt,
                 out.damage +
                     ". Put the file of another node here, or remove both: this node then "
                     "takes the configuration of the others when it meets them"};
  auto mark = folder + "/" + kPrevents;
  out.kept.prevents = ::access(mark.c_str(), F_OK) == 0;
  // Whether it is there must be known: to go on without a look could be what was forbidden.
  if (!out.kept.prevents && errno != ENOENT) return errno_error(errno, "looking for " + mark);
  return out;
}

Expected<void> ConfigurationFiles::prevent(const std::string& folder, bool prevents) {
  auto mark = folder + "/" + kPrevents;
  if (!prevents) {
    if (::unlink(mark.c_str()) != 0 && errno != ENOENT)
      return errno_error(errno, "removing " + mark);
    // Also of one that is gone: whoever removed it may have failed at this, and a crash undo it.
    if (::access(folder.c_str(), F_OK) != 0 && errno == ENOENT) return {};
    return sync_folder(folder);
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Error{error, "making " + folder + ": " + error.message()};
  Fd file{::open(mark.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600)};
  if (file.fd < 0) return errno_error(errno, "making " + mark);
  return sync_folder(folder);
}

ConfigurationFiles::ConfigurationFiles(Loop& loop, std::unique_ptr<Worker> worker,
                                       std::string folder)
    : loop_{&loop}, folder_{std::move(folder)}, worker_{std::move(worker)} {}

ConfigurationFiles::~ConfigurationFiles() = default;

void ConfigurationFiles::save(const Kept& kept, Function<void(Expected<void>)> done) {
  worker_->post([loop = loop_, folder = folder_, content = file_of(kept), prevents = kept.prevents,
                 alive = std::weak_ptr{alive_}, done = std::move(done)]() mutable {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    // Both, one after the other: a file that goes bad later must not bring back an old
    // configuration, as what is read is the newer of those that are whole.
    auto result = prevents ? prevent(folder, true) : Expected<void>{};
    if (result) result = write_one(folder, kNames[0], content);
    if (result) result = write_one(folder, kNames[1], content);
    if (result && !prevents) result = prevent(folder, false);
    loop->post(
        [result = std::move(result), alive = std::move(alive), done = std::move(done)]() mutable {
          if (alive.lock()) done(std::move(result));
        });
  });
}

}  // namespace csv::cluster
