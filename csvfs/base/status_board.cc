#include "csvfs/base/status_board.h"

#include <unistd.h>

#include <array>
#include <boost/interprocess/mapped_region.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"

namespace csv {
namespace {

namespace ipc = boost::interprocess;

using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 8);

/// `size` words that change together: two copies, and a version whose lowest bit says which one is
/// in force. One writer, which writes the other copy and then raises the version: if it dies half
/// way, what was in force stays so. A reader takes the copy in force and looks whether the version
/// is still the same; only a writer that keeps writing makes it look again, never one that stopped.
template <std::size_t size>
class Record {
 public:
  using Words = std::array<std::uint64_t, size>;

  void write(const Words& words) {
    auto next = version_.load(std::memory_order_relaxed) + 1;
    // A reader that sees any of these words must also see the version that took the copy out of
    // force, or it would believe that it still is.
    std::atomic_thread_fence(std::memory_order_release);
    auto& copy = copies_[next & 1];
    for (std::size_t i = 0; i < size; ++i) copy[i].store(words[i], std::memory_order_relaxed);
    version_.store(next, std::memory_order_release);
  }

  /// Nothing where nobody has written yet.
  [[nodiscard]] std::optional<Words> read() const {
    Words words;
    auto before = version_.load(std::memory_order_acquire);
    for (;;) {
      if (before == 0) return std::nullopt;
      const auto& copy = copies_[before & 1];
      for (std::size_t i = 0; i < size; ++i) words[i] = copy[i].load(std::memory_order_relaxed);
      std::atomic_thread_fence(std::memory_order_acquire);
      auto after = version_.load(std::memory_order_relaxed);
      if (after == before) return words;
      before = version_.load(std::memory_order_acquire);
    }
  }

 private:
  Word version_;
  std::array<std::array<Word, size>, 2> copies_;
};

/// Writes fields into words one after another, and reads them back in the same order.
class Packer {
 public:
  explicit Packer(std::span<std::uint64_t> words) : words_{words} {}
  void number(std::uint64_t value) { words_[at_++] = value; }
  /// Cut to what `words` words hold with the NUL at the end.
  void text(const std::string& text, std::size_t words) {
    std::memset(&words_[at_], 0, words * 8);
    std::memcpy(&words_[at_], text.data(), std::min(text.size(), words * 8 - 1));
    at_ += words;
  }

 private:
  std::span<std::uint64_t> words_;
  std::size_t at_ = 0;
};
class Unpacker {
 public:
  explicit Unpacker(std::span<const std::uint64_t> words) : words_{words} {}
  std::uint64_t number() { return words_[at_++]; }
  std::string text(std::size_t words) {
    const auto* begin = reinterpret_cast<const char*>(&words_[at_]);
    at_ += words;
    return {begin, ::strnlen(begin, words * 8)};
  }

 private:
  std::span<const std::uint64_t> words_;
  std::size_t at_ = 0;
};

constexpr std::size_t kNameWords = 8, kEndpointWords = 8, kReasonWords = 16;
constexpr std::size_t kCounters = 18;

/// One volume of a node. The name's words are written once, by whoever claimed the place.
struct Place {
  Word claim;  ///< Hash of the name, 0: free.
  std::array<Word, kNameWords> name;
  Word open_until;  ///< ns of CLOCK_BOOTTIME.
  Record<kEndpointWords + 3> volume;
  Record<3 + kReasonWords + kCounters> mount;
};

/// The whole board. Whoever finds another magic, version or size does not use it.
struct Board {
  static constexpr std::uint64_t kMagic = 0x6472616f42565343ull;  // "CSVBoard"
  static constexpr std::uint64_t kVersion = 2;
  Word magic, version, size;
  std::array<Word, 5> reserved;
  std::array<Place, StatusBoard::kVolumes> places;
};
static_assert(alignof(Board) == 8);

std::uint64_t hash_of(const std::string& name) {
  std::uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash == 0 ? 1 : hash;
}

std::uint64_t to_word(TimePoint time) {
  return static_cast<std::uint64_t>(time.time_since_epoch().count());
}
TimePoint to_time(std::uint64_t word) {
  return TimePoint{Duration{static_cast<Duration::rep>(word)}};
}

/// The mode's word has the moment beside it, above these bits: mounts of an earlier version leave
/// it zero, which is what they know.
constexpr int kModeBits = 8;
std::uint64_t to_milliseconds(TimePoint time) {
  return static_cast<std::uint64_t>(time.time_since_epoch() / std::chrono::milliseconds{1});
}

/// The coordinator's word has this above it.
constexpr std::uint64_t kStoppedBit = 1ull << 8;

/// So does the process' word.
constexpr std::uint64_t kClosedBit = 1ull << 32;
constexpr int kSaidShift = 33;
constexpr Duration kSaidUnit = 100ms;  // rounded down: never later than it was
std::uint64_t to_word_beside_pid(const BoardMount& mount) {
  auto said = static_cast<std::uint64_t>(mount.said.time_since_epoch() / kSaidUnit);
  return (mount.gate_closed ? kClosedBit : 0) | said << kSaidShift;
}

class MappedBoard final : public StatusBoard {
 public:
  explicit MappedBoard(ipc::mapped_region region)
      : region_{std::move(region)}, board_{static_cast<Board*>(region_.get_address())} {}

  std::size_t find(const std::string& volume, bool add) override {
    auto hash = hash_of(volume);
    for (std::size_t at = 0; at < kVolumes; ++at) {
      auto& place = board_->places[at];
      auto claim = place.claim.load(std::memory_order_acquire);
      if (claim == 0) {
        // Places are taken in order and never given back: behind a free one there is none.
        if (!add) return kVolumes;
        if (place.claim.compare_exchange_strong(claim, hash, std::memory_order_acq_rel)) {
          std::array<std::uint64_t, kNameWords> words{};
          Packer{words}.text(volume, kNameWords);
          for (std::size_t i = 0; i < kNameWords; ++i)
            place.name[i].store(words[i], std::memory_order_relaxed);
          return at;
        }
      }
      if (claim == hash) return at;
    }
    return kVolumes;
  }

  void publish(std::size_t at, const BoardVolume& volume) override {
    std::array<std::uint64_t, kEndpointWords + 3> words{};
    Packer out{words};
    out.text(volume.endpoint, kEndpointWords);
    out.number(raw(volume.epoch));
    out.number(raw(volume.coordinator_key));
    out.number(raw(volume.coordinator) | (volume.stopped ? kStoppedBit : 0));
    place(at).volume.write(words);
  }

  [[nodiscard]] std::optional<BoardVolume> volume(std::size_t at) const override {
    auto words = place(at).volume.read();
    if (!words) return std::nullopt;
    Unpacker in{*words};
    BoardVolume out;
    out.name = name(at);
    out.endpoint = in.text(kEndpointWords);
    out.epoch = Epoch{in.number()};
    out.coordinator_key = Key{in.number()};
    auto word = in.number();
    out.coordinator = NodeId{static_cast<std::uint8_t>(word)};
    out.stopped = (word & kStoppedBit) != 0;
    return out;
  }

  void set_open_until(std::size_t at, TimePoint deadline) override {
    place(at).open_until.store(to_word(deadline), std::memory_order_release);
  }
  [[nodiscard]] TimePoint open_until(std::size_t at) const override {
    return to_time(place(at).open_until.load(std::memory_order_acquire));
  }

  void publish(std::size_t at, const BoardMount& mount) override {
    std::array<std::uint64_t, 3 + kReasonWords + kCounters> words{};
    Packer out{words};
    out.number(mount.pid | to_word_beside_pid(mount));
    out.number(static_cast<std::uint64_t>(mount.mode) | to_milliseconds(mount.reached)
                                                            << kModeBits);
    out.number(to_word(mount.since));
    out.text(mount.reason, kReasonWords);
    for (auto value : counters(mount.counters)) out.number(value);
    place(at).mount.write(words);
  }

  [[nodiscard]] std::optional<BoardMount> mount(std::size_t at) const override {
    auto words = place(at).mount.read();
    if (!words) return std::nullopt;
    Unpacker in{*words};
    BoardMount out;
    auto word = in.number();
    out.pid = static_cast<std::uint32_t>(word);
    out.gate_closed = (word & kClosedBit) != 0;
    out.said = TimePoint{kSaidUnit * static_cast<Duration::rep>(word >> kSaidShift)};
    word = in.number();
    auto mode = word & ((1u << kModeBits) - 1);
    out.reached = TimePoint{std::chrono::milliseconds{word >> kModeBits}};
    out.mode = mode <= static_cast<std::uint64_t>(AccessMode::redirected)
                   ? static_cast<AccessMode>(mode)
                   : AccessMode::unavailable;
    out.since = to_time(in.number());
    out.reason = in.text(kReasonWords);
    auto& c = out.counters;
    for (auto* value :
         {&c.operations, &c.direct_reads, &c.direct_read_bytes, &c.direct_writes,
          &c.direct_write_bytes, &c.redirected_reads, &c.redirected_read_bytes,
          &c.redirected_writes, &c.redirected_write_bytes, &c.requests, &c.reconnects, &c.recalls,
          &c.readmissions, &c.stale_commits, &c.reads, &c.read_us, &c.writes, &c.write_us})
      *value = in.number();
    return out;
  }

 private:
  static std::array<std::uint64_t, kCounters> counters(const MountCounters& c) {
    static_assert(sizeof(MountCounters) == kCounters * 8, "every counter has its word");
    return {c.operations,
            c.direct_reads,
            c.direct_read_bytes,
            c.direct_writes,
            c.direct_write_bytes,
            c.redirected_reads,
            c.redirected_read_bytes,
            c.redirected_writes,
            c.redirected_write_bytes,
            c.requests,
            c.reconnects,
            c.recalls,
            c.readmissions,
            c.stale_commits,
            c.reads,
            c.read_us,
            c.writes,
            c.write_us};
  }
  [[nodiscard]] Place& place(std::size_t at) const {
    CSV_CHECK(at < kVolumes);
    return board_->places[at];
  }
  [[nodiscard]] std::string name(std::size_t at) const {
    std::array<std::uint64_t, kNameWords> words;
    for (std::size_t i = 0; i < kNameWords; ++i)
      words[i] = place(at).name[i].load(std::memory_order_relaxed);
    return Unpacker{words}.text(kNameWords);
  }

  ipc::mapped_region region_;
  Board* board_;
};

Error from_boost(const ipc::interprocess_exception& why, const std::string& doing) {
  return errno_error(why.get_native_error() == 0 ? EIO : why.get_native_error(), doing);
}

Expected<ipc::mapped_region> map(const std::string& name) {
  try {
    ipc::shared_memory_object object{ipc::open_only, name.c_str(), ipc::read_write};
    ipc::offset_t size = 0;
    if (!object.get_size(size) || size < static_cast<ipc::offset_t>(sizeof(Board)))
      return Error{Errc::refused, "the status board " + name + " is of another version"};
    ipc::mapped_region region{object, ipc::read_write, 0, sizeof(Board)};
    const auto* board = static_cast<const Board*>(region.get_address());
    if (board->magic.load() != Board::kMagic || board->version.load() != Board::kVersion ||
        board->size.load() != sizeof(Board))
      return Error{Errc::refused, "the status board " + name + " is of another version"};
    return region;
  } catch (const ipc::interprocess_exception& why) {
    return from_boost(why, "opening the status board " + name);
  }
}

/// Makes a board under a temporary name and renames it into place, complete.
Expected<void> make(const std::string& name) {
  auto temporary = name + "." + std::to_string(::getpid());
  try {
    ipc::shared_memory_object::remove(temporary.c_str());
    ipc::permissions owner_only{0600};
    ipc::shared_memory_object object{ipc::create_only, temporary.c_str(), ipc::read_write,
                                     owner_only};
    object.truncate(sizeof(Board));  // zeros
    ipc::mapped_region region{object, ipc::read_write, 0, sizeof(Board)};
    auto* board = static_cast<Board*>(region.get_address());
    board->version.store(Board::kVersion);
    board->size.store(sizeof(Board));
    board->magic.store(Board::kMagic);
  } catch (const ipc::interprocess_exception& why) {
    ipc::shared_memory_object::remove(temporary.c_str());
    return from_boost(why, "making the status board " + name);
  }
  // The library has no rename; a shared memory object of Linux is a file of /dev/shm.
  if (std::rename(("/dev/shm/" + temporary).c_str(), ("/dev/shm/" + name).c_str()) != 0) {
    auto why = errno_error(errno, "putting the status board " + name + " into place");
    ipc::shared_memory_object::remove(temporary.c_str());
    return why;
  }
  return {};
}

}  // namespace

Expected<std::unique_ptr<StatusBoard>> StatusBoard::create(const std::string& name) {
  auto region = map(name);
  if (!region) {
    // Not there, or of another version of the program: mounts of that one keep what they mapped,
    // and pause at the end of its last lease.
    if (region.error() == Errc::refused)
      log::warning("status_board_replaced name={} why=\"{}\"", name, region.error().message());
    CSV_TRY(make(name));
    region = map(name);
  }
  return std::unique_ptr<StatusBoard>{std::make_unique<MappedBoard>(CSV_TRY(std::move(region)))};
}

Expected<std::unique_ptr<StatusBoard>> StatusBoard::open(const std::string& name) {
  return std::unique_ptr<StatusBoard>{std::make_unique<MappedBoard>(CSV_TRY(map(name)))};
}

}  // namespace csv
