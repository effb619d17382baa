#include "csvfs/base/events.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "csvfs/base/crc32c.h"

namespace csv::events {
namespace {

using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 8);

constexpr std::size_t kShortWords = 2, kNameWords = 8, kTextWords = 26;
constexpr std::size_t kBodyWords = 6 + 2 * kShortWords + kNameWords + 2 * kTextWords;
constexpr Duration kFoldWithin = 1min;
constexpr std::size_t kMostRemembered = 64;

/// `version` says whose the slot is: 2 * sequence + 1 while it is written, + 2 when it is whole, so
/// that it only grows. The checksum is for what that cannot tell: a repeat that is counted
/// meanwhile, and a writer that slept through a whole turn of the ring.
struct Slot {
  Word version;
  std::array<Word, kBodyWords> body;
  Word crc;
};

struct Header {
  static constexpr std::uint64_t kMagic = 0x746E657645565343ull;  // "CSVEvent"
  static constexpr std::uint64_t kVersion = 1;
  Word magic, version, size, next, order;
  std::array<Word, 3> reserved;
  std::array<Slot, Ring::kSlots> slots;
};

using Body = std::array<std::uint64_t, kBodyWords>;

/// At most `size` bytes, and no part of a character.
std::string_view cut(std::string_view text, std::size_t size) {
  if (text.size() <= size) return text;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80) --size;
  return text.substr(0, size);
}

std::uint64_t checksum(const Body& body) { return crc32c(std::as_bytes(std::span{body})); }

class Fields {
 public:
  explicit Fields(Body& body) : body_{body} {}
  void put(std::uint64_t number) { body_[at_++] = number; }
  void put(std::string_view text, std::size_t words) {
    text = cut(text, words * 8 - 1);
    std::memset(&body_[at_], 0, words * 8);
    std::memcpy(&body_[at_], text.data(), text.size());
    at_ += words;
  }
  std::uint64_t number() { return body_[at_++]; }
  std::string text(std::size_t words) {
    const auto* begin = reinterpret_cast<const char*>(&body_[at_]);
    at_ += words;
    return {begin, ::strnlen(begin, words * 8)};
  }

 private:
  Body& body_;
  std::size_t at_ = 0;
};

Body packed(const Event& event) {
  Body body;
  Fields to{body};
  to.put(event.sequence);
  to.put(event.order);
  to.put(static_cast<std::uint64_t>(event.first));
  to.put(static_cast<std::uint64_t>(event.last));
  to.put(static_cast<std::uint64_t>(event.severity) | std::uint64_t{event.count} << 8);
  to.put(event.pid);
  to.put(event.program, kShortWords);
  to.put(event.what, kShortWords);
  to.put(event.volume, kNameWords);
  to.put(event.text, kTextWords);
  to.put(event.cause, kTextWords);
  return body;
}

Event unpacked(Body body) {
  Event event;
  Fields from{body};
  event.sequence = from.number();
  event.order = from.number();
  event.first = static_cast<WallTime>(from.number());
  event.last = static_cast<WallTime>(from.number());
  auto word = from.number();
  event.severity = static_cast<Severity>(std::min<std::uint64_t>(word & 0xff, 2));
  event.count = static_cast<std::uint32_t>(word >> 8);
  event.pid = static_cast<std::uint32_t>(from.number());
  event.program = from.text(kShortWords);
  event.what = from.text(kShortWords);
  event.volume = from.text(kNameWords);
  event.text = from.text(kTextWords);
  event.cause = from.text(kTextWords);
  return event;
}

class MappedRing final : public Ring {
 public:
  explicit MappedRing(Header* header) : header_{header} {}
  ~MappedRing() override { ::munmap(header_, sizeof(Header)); }
  MappedRing(const MappedRing&) = delete;
  MappedRing& operator=(const MappedRing&) = delete;

  [[nodiscard]] std::uint64_t latest() const override {
    return header_->order.load(std::memory_order_acquire);
  }

  [[nodiscard]] std::vector<Event> after(std::uint64_t order) const override {
    std::vector<Event> out;
    for (const auto& slot : header_->slots) {
      auto event = read(slot);
      if (event && event->order > order) out.push_back(*std::move(event));
    }
    std::sort(out.begin(), out.end(),
              [](const auto& a, const auto& b) { return a.order < b.order; });
    return out;
  }

  std::uint64_t add(Event event) override {
    event.sequence = header_->next.fetch_add(1, std::memory_order_relaxed);
    event.order = next_order();
    auto& slot = slot_of(event.sequence);
    auto now = slot.version.load(std::memory_order_relaxed);
    do {
      if (now > writing(event.sequence)) return event.sequence;  // overtaken by a whole turn
    } while (!slot.version.compare_exchange_weak(now, writing(event.sequence)));
    write(slot, event);
    return event.sequence;
  }

  bool repeat(std::uint64_t sequence, WallTime now, std::string_view cause) override {
    auto& slot = slot_of(sequence);
    auto event = read(slot);
    if (!event || event->sequence != sequence) return false;
    auto version = whole(sequence);
    if (!slot.version.compare_exchange_strong(version, writing(sequence))) return false;
    ++event->count;
    event->last = now;
    event->order = next_order();
    event->cause = cause;
    write(slot, *event);
    return true;
  }

 private:
  static std::uint64_t writing(std::uint64_t sequence) { return 2 * sequence + 1; }
  static std::uint64_t whole(std::uint64_t sequence) { return 2 * sequence + 2; }
  Slot& slot_of(std::uint64_t sequence) const { return header_->slots[sequence % kSlots]; }
  // From 1: who has seen nothing asks for what is after 0.
  std::uint64_t next_order() { return header_->order.fetch_add(1, std::memory_order_acq_rel) + 1; }

  static void write(Slot& slot, const Event& event) {
    auto body = packed(event);
    std::atomic_thread_fence(std::memory_order_release);
    for (std::size_t i = 0; i < kBodyWords; ++i)
      slot.body[i].store(body[i], std::memory_order_relaxed);
    slot.crc.store(checksum(body), std::memory_order_relaxed);
    auto mine = writing(event.sequence);
    slot.version.compare_exchange_strong(mine, whole(event.sequence), std::memory_order_release);
  }

  static std::optional<Event> read(const Slot& slot) {
    auto version = slot.version.load(std::memory_order_acquire);
    if (version == 0 || version % 2 != 0) return std::nullopt;
    Body body;
    for (std::size_t i = 0; i < kBodyWords; ++i)
      body[i] = slot.body[i].load(std::memory_order_relaxed);
    auto crc = slot.crc.load(std::memory_order_relaxed);
    if (crc != checksum(body)) return std::nullopt;
    return unpacked(body);
  }

  Header* header_;
};

struct Descriptor {
  int fd;
  explicit Descriptor(int of) : fd{of} {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

Expected<std::unique_ptr<Ring>> map(int fd, const std::string& path, bool writable) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return errno_error(errno, "examining " + path);
  Error other{Errc::refused, "the events in " + path + " are of another version"};
  if (status.st_size != sizeof(Header)) return other;
  void* at = ::mmap(nullptr, sizeof(Header), writable ? PROT_READ | PROT_WRITE : PROT_READ,
                    MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return errno_error(errno, "mapping " + path);
  auto* header = static_cast<Header*>(at);
  auto ring = std::make_unique<MappedRing>(header);
  if (header->magic.load() != Header::kMagic || header->version.load() != Header::kVersion ||
      header->size.load() != sizeof(Header))
    return other;
  return std::unique_ptr<Ring>{std::move(ring)};
}

/// Writes the header of a file that is new.
Expected<void> begin(int fd, const std::string& path) {
  if (::ftruncate(fd, sizeof(Header)) != 0) return errno_error(errno, "making " + path);
  std::array<std::uint64_t, 3> first{Header::kMagic, Header::kVersion, sizeof(Header)};
  if (::pwrite(fd, first.data(), sizeof first, 0) != sizeof first)
    return errno_error(errno, "making " + path);
  return {};
}

WallTime wall_now() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<WallTime>(now.tv_sec * 1'000'000'000ll + now.tv_nsec);
}

/// Where this process reports to.
struct Sink {
  std::mutex mutex;
  std::unique_ptr<Ring> ring;
  std::string program;
  struct Known {
    std::uint64_t sequence = 0;
    WallTime last{};
  };
  std::map<std::string, Known> known;  ///< By kind, volume and text.
};
Sink& sink() {
  static Sink one;
  return one;
}

}  // namespace

std::string_view to_text(Severity severity) {
  switch (severity) {
    case Severity::info: return "info";
    case Severity::warning: return "warning";
    case Severity::error: return "error";
  }
  return "";
}

Expected<std::unique_ptr<Ring>> Ring::make(const std::string& path) {
  for (int attempt = 0; attempt < 3; ++attempt) {
    Descriptor file{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)};
    if (file.fd < 0) return errno_error(errno, "opening " + path);
    // Only for as long as its header is written.
    if (::flock(file.fd, LOCK_EX) != 0) return errno_error(errno, "locking " + path);
    struct stat status {};
    if (::fstat(file.fd, &status) == 0 && status.st_size == 0) CSV_TRY(begin(file.fd, path));
    auto ring = map(file.fd, path, true);
    // By hand: the mapping keeps the file open, and with it the lock.
    (void)::flock(file.fd, LOCK_UN);
    if (ring || !(ring.error() == Errc::refused)) return ring;
    // Of another version of the program: those who have it mapped keep theirs.
    if (::unlink(path.c_str()) != 0 && errno != ENOENT)
      return errno_error(errno, "replacing " + path);
  }
  return Error{Errc::refused, "the events in " + path + " are of another version"};
}

Expected<std::unique_ptr<Ring>> Ring::read_only(const std::string& path) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) return errno_error(errno, "opening " + path);
  return map(file.fd, path, false);
}

Expected<void> open(const std::string& program, const std::string& path) {
  std::error_code error;  // if it fails the next line says why
  std::filesystem::create_directories(std::filesystem::path{path}.parent_path(), error);
  auto ring = CSV_TRY(Ring::make(path));
  auto& to = sink();
  std::lock_guard lock{to.mutex};
  to.ring = std::move(ring);
  to.program = program;
  to.known.clear();
  return {};
}

void close() {
  auto& to = sink();
  std::lock_guard lock{to.mutex};
  to.ring.reset();
}

void report(Severity severity, std::string_view what, std::string_view volume,
            std::string_view text, std::string_view cause) {
  auto& to = sink();
  std::lock_guard lock{to.mutex};
  if (!to.ring) return;
  auto now = wall_now();
  auto key = std::string{what} + '\n' + std::string{volume} + '\n' + std::string{text};
  auto known = to.known.find(key);
  if (known != to.known.end()) {
    auto since =
        Duration{static_cast<std::int64_t>(now) - static_cast<std::int64_t>(known->second.last)};
    if (since >= Duration{} && since < kFoldWithin &&
        to.ring->repeat(known->second.sequence, now, cause)) {
      known->second.last = now;
      return;
    }
  }
  if (to.known.size() >= kMostRemembered) to.known.clear();
  Event event;
  event.severity = severity;
  event.pid = static_cast<std::uint32_t>(::getpid());
  event.program = to.program;
  event.what = what;
  event.volume = volume;
  event.text = text;
  event.cause = cause;
  event.first = event.last = now;
  to.known[key] = {to.ring->add(std::move(event)), now};
}

}  // namespace csv::events
