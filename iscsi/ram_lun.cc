#include "iscsi/ram_lun.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "csvfs/base/guarded.h"
#include "csvfs/base/log.h"
#include "iscsi/reservation_table.h"

namespace csv::iscsi {
namespace {

constexpr std::uint64_t kChunk = 64 << 10;

/// An image file mapped shared and locked, for as long as the object lives.
struct Image {
  int fd = -1;
  std::byte* base = nullptr;
  std::uint64_t size = 0;
  bool read_only = false;

  Image() = default;
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  ~Image() {
    if (base != nullptr) ::munmap(base, size);
    if (fd >= 0) ::close(fd);
  }
  static Expected<std::unique_ptr<Image>> open(const std::string& path) {
    auto image = std::make_unique<Image>();
    image->fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (image->fd < 0 && (errno == EACCES || errno == EROFS)) {
      image->read_only = true;
      image->fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    }
    if (image->fd < 0) return errno_error(errno, "opening the image " + path);
    struct ::stat about = {};
    if (::fstat(image->fd, &about) != 0) return errno_error(errno, "looking at " + path);
    if (!S_ISREG(about.st_mode) || about.st_size < static_cast<off_t>(kChunk)) {
      return Error{Errc::refused, path + " is not an image file of at least 64 KiB"};
    }
    if (::flock(image->fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) {
        return Error{Errc::refused, "the image " + path + " is in use by another process"};
      }
      return errno_error(errno, "locking the image " + path);
    }
    image->size = static_cast<std::uint64_t>(about.st_size);
    int access = image->read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    void* base = ::mmap(nullptr, image->size, access, MAP_SHARED, image->fd, 0);
    if (base == MAP_FAILED) return errno_error(errno, "mapping the image " + path);
    image->base = static_cast<std::byte*>(base);
    return image;
  }
};

/// The blocks, and which of them a power loss could still take back.
class Medium {
 public:
  Medium(const RamDiskOptions& options, std::unique_ptr<Image> image)
      : thin_bytes{options.thin_bytes},
        options_{&options},
        block_{options.geometry.block_size},
        image_{std::move(image)} {}

  std::uint64_t thin_bytes;  ///< Beyond this much allocated, writes fail.

  void read(std::uint64_t offset, std::span<std::byte> out) const {
    if (image_) {
      std::memcpy(out.data(), image_->base + offset, out.size());
      return;
    }
    each_chunk(offset, out.size(),
               [&](std::uint64_t chunk, std::size_t at, std::size_t done, std::size_t count) {
                 auto found = chunks_.find(chunk);
                 if (found == chunks_.end()) {
                   std::memset(out.data() + done, untouched(chunk), count);
                 } else {
                   std::memcpy(out.data() + done, found->second.get() + at, count);
                 }
               });
  }

  Expected<void> write(std::uint64_t offset, std::span<const std::byte> data, bool durable) {
    if (image_) {
      std::memcpy(image_->base + offset, data.data(), data.size());
      return durable ? sync() : Expected<void>{};
    }
    std::uint64_t fresh = 0;
    each_chunk(offset, data.size(),
               [&](std::uint64_t chunk, std::size_t, std::size_t, std::size_t) {
                 fresh += chunks_.contains(chunk) ? 0 : 1;
               });
    if (fresh > 0 && (chunks_.size() + fresh) * kChunk > thin_bytes) {
      return Error{std::errc::no_space_on_device, "the thin LUN has no space left (07h/27h/07h)"};
    }
    remember(offset, data.size(), durable);
    each_chunk(offset, data.size(),
               [&](std::uint64_t chunk, std::size_t at, std::size_t done, std::size_t count) {
                 std::memcpy(touch(chunk) + at, data.data() + done, count);
               });
    return {};
  }

  /// Zeros; chunks wholly covered are given back if `deallocate`.
  Expected<void> zero(std::uint64_t offset, std::uint64_t length, bool deallocate) {
    if (image_) {
      if (::fallocate(image_->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(offset), static_cast<off_t>(length)) != 0) {
        std::memset(image_->base + offset, 0, length);
      }
      return {};
    }
    each_chunk(offset, length,
               [&](std::uint64_t chunk, std::size_t at, std::size_t, std::size_t count) {
                 if (!chunks_.contains(chunk) && untouched(chunk) == 0) return;
                 remember(chunk * kChunk + at, count, false);
                 if (count == kChunk && (deallocate || !chunks_.contains(chunk))) {
                   chunks_.erase(chunk);
                   if (options_->found != std::byte{}) zeroed_.insert(chunk);
                 } else {
                   std::memset(touch(chunk) + at, 0, count);
                 }
               });
    return {};
  }

  Expected<void> flush() {
    std::erase_if(former_, [this](const auto& each) { return !missed_.contains(each.first); });
    return image_ ? sync() : Expected<void>{};
  }

  void power_loss(Random& random) {
    auto former = std::exchange(former_, {});
    missed_.clear();
    for (auto& [block, versions] : former) {
      auto pick = random.below(versions.size() + 1);
      if (pick == versions.size()) continue;  // The newest had been written out.
      auto& old = versions[pick];
      each_chunk(block * block_, block_,
                 [&](std::uint64_t chunk, std::size_t at, std::size_t done, std::size_t count) {
                   std::memcpy(touch(chunk) + at, old.data() + done, count);
                 });
    }
  }

  /// No flush writes out any more what the cache holds now.
  void miss() {
    for (const auto& [block, versions] : former_) missed_.insert(block);
  }

  /// Takes back all that the cache held.
  void forget() {
    missed_.clear();
    for (auto& [block, versions] : std::exchange(former_, {})) {
      const auto& old = versions.front();
      each_chunk(block * block_, block_,
                 [&](std::uint64_t chunk, std::size_t at, std::size_t done, std::size_t count) {
                   std::memcpy(touch(chunk) + at, old.data() + done, count);
                 });
    }
  }

  [[nodiscard]] std::uint64_t unflushed() const { return former_.size(); }
  [[nodiscard]] std::uint64_t allocated() const {
    return image_ ? image_->size : chunks_.size() * kChunk;
  }

 private:
  template <typename F>
  static void each_chunk(std::uint64_t offset, std::uint64_t length, F&& f) {
    for (std::uint64_t done = 0; done < length;) {
      auto at = (offset + done) % kChunk;
      auto count = std::min(kChunk - at, length - done);
      f((offset + done) / kChunk, static_cast<std::size_t>(at), static_cast<std::size_t>(done),
        static_cast<std::size_t>(count));
      done += count;
    }
  }

  /// What every byte of a chunk reads as that nothing is kept of.
  [[nodiscard]] int untouched(std::uint64_t chunk) const {
    return zeroed_.contains(chunk) ? 0 : std::to_integer<int>(options_->found);
  }
  std::byte* touch(std::uint64_t chunk) {
    auto& bytes = chunks_[chunk];
    if (!bytes) {
      bytes = std::make_unique_for_overwrite<std::byte[]>(kChunk);
      std::memset(bytes.get(), untouched(chunk), kChunk);
    }
    return bytes.get();
  }

  /// Keeps what the blocks had, so that a power loss may bring it back; forgets it if what comes
  /// goes past the cache.
  void remember(std::uint64_t offset, std::uint64_t length, bool durable) {
    if (!options_->write_cache) return;
    for (auto block = offset / block_; block < (offset + length) / block_; ++block) {
      missed_.erase(block);
      if (durable) {
        former_.erase(block);
        continue;
      }
      std::vector<std::byte> old(block_);
      read(block * block_, old);
      former_[block].push_back(std::move(old));
    }
  }

  Expected<void> sync() {
    if (::fdatasync(image_->fd) != 0)
      return Error{Errc::not_durable, errno_error(errno, "flushing the image").message()};
    return {};
  }

  const RamDiskOptions* options_;
  std::uint64_t block_;
  std::unique_ptr<Image> image_;
  std::unordered_map<std::uint64_t, std::unique_ptr<std::byte[]>> chunks_;
  std::unordered_set<std::uint64_t> zeroed_;  ///< Nothing is kept of, and not as they were found.
  /// By block: its contents since the last flush, oldest (the durable one) first, the newest not
  /// among them. Ordered, because a power loss draws a number for each.
  std::map<std::uint64_t, std::vector<std::vector<std::byte>>> former_;
  std::unordered_set<std::uint64_t> missed_;  ///< Of those: what flushes leave as it is.
};

struct Session {
  std::uint64_t id = 0;
  Loop* home = nullptr;
  LunOptions options;
  RamPlan plan;
  std::vector<Nexus> paths;
  std::vector<std::string> ports;
  std::size_t next_path = 0;
  std::atomic<bool> sized{true};  ///< The target has told the size.
  bool registered = false;  ///< We asked for it; that it is so no longer is how a fence shows.
  bool owed_loss = false;   ///< The target has forgotten something, and has not said so here.
  bool ended = false, by_itself = false;
  bool gone = false;  ///< The Lun was destroyed: nobody is told anything. Home loop only.
  Error why;
  Function<void(Error)> on_lost;
  LunCounters counters;
};

/// On the home loop, unless the Lun is gone by then.
void tell(const std::shared_ptr<Session>& session, Done done, Expected<void> what) {
  session->home->post([session, done = std::move(done), what = std::move(what)]() mutable {
    if (!session->gone) done(std::move(what));
  });
}

class Disk;
class Target;

struct Command {
  enum class Place { travelling, inside, returning };
  std::uint64_t id = 0;
  RamCommand::Kind kind{};
  std::uint64_t offset = 0, length = 0;
  std::span<std::byte> out;
  std::span<const std::byte> in;
  std::vector<std::byte> kept;  ///< Of a late write: the initiator's buffer is not ours any more.
  bool fua = false;
  Function<Expected<void>(Target&, Nexus)> act;  ///< Of reservation commands.
  bool repeatable = true;
  std::size_t path = 0;
  RamFate fate;
  Place place = Place::travelling;
  bool late = false;  ///< Nobody waits for it: its session has ended and was told so.
  std::shared_ptr<Session> session;
  Expected<void> result;
  Done done;

  [[nodiscard]] Nexus nexus() const { return session->paths[path]; }
  [[nodiscard]] bool changes() const {
    return kind == RamCommand::Kind::write || kind == RamCommand::Kind::zero ||
           kind == RamCommand::Kind::unmap;
  }
};

/// All that the disk's mutex guards. Its functions run under it; they never call out, but post.
class Target {
 public:
  Target(Disk& disk, const RamDiskOptions& options, Loop* clock, std::unique_ptr<Image> image)
      : disk_{&disk}, options_{&options}, clock_{clock}, medium{options, std::move(image)} {}

  Expected<std::shared_ptr<Session>> login(Loop& home, LunOptions options, RamPlan plan);
  void submit(std::shared_ptr<Command> command);
  void arrive(std::uint64_t id);
  void take_effect(std::uint64_t id);
  void answer(std::uint64_t id);
  void expire(std::uint64_t id, const std::shared_ptr<Session>& session);
  void end(const std::shared_ptr<Session>& session, Error why, bool by_itself);
  void lose_sessions_of(const std::string& initiator);
  [[nodiscard]] bool tells_size(const Session& session) const;
  void power_loss(Random& random);
  Expected<void> apply(const ReservationTable::Result& result, bool abort);
  void abort_all(std::uint64_t except);
  std::vector<FullStatusEntry> full_status() const;
  [[nodiscard]] std::size_t late() const;

 private:
  friend class Disk;
  void later(Duration delay, std::uint64_t id, void (Target::*step)(std::uint64_t));
  void finish(Command& command, Expected<void> result);
  Expected<void> execute(Command& command);
  Expected<void> tear(Command& command);
  void requeue(const std::shared_ptr<Command>& command);

  Disk* disk_;
  const RamDiskOptions* options_;
  Loop* clock_;

 public:
  Medium medium;
  ReservationTable reservations;
  std::set<std::string> unreachable;

 private:
  std::map<std::uint64_t, std::shared_ptr<Command>> commands_;
  std::map<std::uint64_t, std::shared_ptr<Session>> sessions_;
  std::map<std::string, Nexus> ports_;       ///< The nexus a port has now.
  std::map<Nexus, std::string> port_names_;  ///< Of every nexus there ever was.
  std::map<Nexus, ReservationTable::Notice> notices_;
  std::uint64_t next_command_ = 1, next_session_ = 1, next_nexus_ = 1;
};

class Disk final : public RamDisk, public std::enable_shared_from_this<Disk> {
 public:
  Disk(RamDiskOptions options, Loop* clock, std::unique_ptr<Image> image)
      : options_{std::move(options)}, target_{*this, options_, clock, std::move(image)} {}

  Expected<std::unique_ptr<Lun>> connect(Loop& home, LunOptions options, RamPlan plan) override;
  void set_reachable(const std::string& initiator, bool reachable) override {
    auto target = target_.lock();
    if (reachable) {
      target->unreachable.erase(initiator);
    } else if (target->unreachable.insert(initiator).second) {
      target->lose_sessions_of(initiator);
    }
  }
  void power_loss(Random& random) override { target_.lock()->power_loss(random); }
  void set_thin_bytes(std::uint64_t most) override { target_.lock()->medium.thin_bytes = most; }
  void peek(std::uint64_t offset, std::span<std::byte> out) const override {
    target_.lock()->medium.read(offset, out);
  }
  void poke(std::uint64_t offset, std::span<const std::byte> data) override {
    (void)target_.lock()->medium.write(offset, data, true);
  }
  std::uint64_t unflushed_blocks() const override { return target_.lock()->medium.unflushed(); }
  std::uint64_t allocated_bytes() const override { return target_.lock()->medium.allocated(); }
  std::size_t late_commands() const override { return target_.lock()->late(); }
  std::vector<Key> registered_keys() const override {
    return target_.lock()->reservations.keys().keys;
  }
  const RamDiskOptions& options() const override { return options_; }

  Guarded<Target>::Held lock() { return target_.lock(); }

 private:
  RamDiskOptions options_;
  mutable Guarded<Target> target_;
};

// ---------------------------------------------------------------------------- the target

void Target::later(Duration delay, std::uint64_t id, void (Target::*step)(std::uint64_t)) {
  if (clock_ == nullptr || delay <= Duration::zero()) return (this->*step)(id);
  auto run = [disk = disk_->weak_from_this(), id, step] {
    if (auto still = disk.lock()) ((*still->lock()).*step)(id);
  };
  if (clock_->here()) {
    clock_->after(delay, run);
  } else {
    clock_->post([clock = clock_, delay, run] { clock->after(delay, run); });
  }
}

Expected<std::shared_ptr<Session>> Target::login(Loop& home, LunOptions options, RamPlan plan) {
  if (unreachable.contains(options.initiator)) {
    return Error{Errc::lun_lost, "no path from " + options.initiator + " to the LUN"};
  }
  auto session = std::make_shared<Session>();
  session->id = next_session_++;
  session->home = &home;
  session->plan = std::move(plan);
  for (int index = 0; index < std::max(1, options.sessions); ++index) {
    auto seed = options.isid_seed != 0 ? options.isid_seed : (1ull << 41) + session->id;
    auto isid = (seed * 64 + static_cast<std::uint64_t>(index)) & 0xffffffffffffull;
    session->ports.push_back(fmt::format("{},i,0x{:012x}", options.initiator, isid));
  }
  session->options = std::move(options);
  for (const auto& port : session->ports) {
    // Session reinstatement: the older session under this name ends first, with what it had on
    // its way. What is inside a target that knows instances only runs to its end.
    for (auto [id, other] : std::map{sessions_}) {
      if (std::find(other->ports.begin(), other->ports.end(), port) == other->ports.end()) continue;
      end(other, Error{Errc::lun_lost, "another login took the name " + port}, true);
    }
    auto known = ports_.find(port);
    if (known != ports_.end()) {
      std::erase_if(commands_, [&](const auto& each) {
        const auto& command = *each.second;
        return command.nexus() == known->second &&
               (command.place == Command::Place::travelling || !options_->zombies);
      });
    }
    if (known == ports_.end() || options_->zombies) {
      ports_[port] = Nexus{next_nexus_++};
      port_names_[ports_[port]] = port;
    }
    notices_.erase(ports_[port]);
    session->paths.push_back(ports_[port]);
  }
  sessions_[session->id] = session;
  session->sized = tells_size(*session);
  return session;
}

bool Target::tells_size(const Session& session) const {
  return options_->size_for_all ||
         reservations.may(session.paths.front(), ReservationTable::Access::read);
}

void Target::submit(std::shared_ptr<Command> command) {
  auto& session = command->session;
  if (session->ended) {
    tell(session, std::move(command->done), Error{Errc::lun_lost, session->why.message()});
    return;
  }
  command->id = next_command_++;
  commands_[command->id] = command;
  if (session->plan) {
    command->fate = session->plan({.kind = command->kind,
                                   .offset = command->offset,
                                   .length = command->length,
                                   .initiator = session->options.initiator,
                                   .number = command->id});
  }
  const auto& fate = command->fate;
  auto total = fate.to_target + fate.inside + fate.to_initiator;
  if (clock_ != nullptr && total > session->options.deadline) {
    auto run = [disk = disk_->weak_from_this(), id = command->id, session] {
      if (auto still = disk.lock()) still->lock()->expire(id, session);
    };
    auto deadline = session->options.deadline;
    clock_->post([clock = clock_, deadline, run] { clock->after(deadline, run); });
  }
  later(fate.to_target, command->id, &Target::arrive);
}

void Target::expire(std::uint64_t id, const std::shared_ptr<Session>& session) {
  auto found = commands_.find(id);
  if (found == commands_.end() || session->ended || found->second->late) return;
  ++session->counters.timeouts;
  end(session, Error{Errc::lun_lost, "a command exceeded its deadline"}, true);
}

void Target::arrive(std::uint64_t id) {
  auto found = commands_.find(id);
  if (found == commands_.end()) return;
  auto command = found->second;
  if (command->late && command->fate.late_by > Duration::zero())
    return later(std::exchange(command->fate.late_by, {}), id, &Target::arrive);
  auto nexus = command->nexus();
  using Kind = RamCommand::Kind;
  if (command->late && command->fate.late_if_reserved &&
      reservations.reservation().type == ReservationType::none) {
    commands_.erase(found);
    return;
  }
  if (!command->late && !command->fate.unfenced && notices_.contains(nexus) &&
      command->kind != Kind::reset) {
    auto code = static_cast<int>(notices_[nexus]);
    notices_.erase(nexus);
    finish(*command, Error{Errc::fenced, fmt::format("unit attention 2Ah/{:02x}h", code)});
    return;
  }
  bool reads = command->kind == Kind::read;
  if (reads || command->changes() || command->kind == Kind::flush) {
    using Access = ReservationTable::Access;
    auto access = reads ? Access::read : Access::write;
    if (!command->fate.unfenced && !reservations.may(nexus, access)) {
      ++command->session->counters.conflicts;
      bool fenced = command->session->registered;
      finish(*command,
             Error{fenced ? Errc::fenced : Errc::reservation_conflict, "RESERVATION CONFLICT"});
      return;
    }
  }
  if (command->changes() && options_->write_protected) {
    finish(*command, Error{std::errc::io_error, "the LUN is write-protected (07h/27h/00h)"});
    return;
  }
  command->place = Command::Place::inside;
  if (command->fate.early && !command->late) {
    command->late = true;
    tell(command->session, std::move(command->done), {});
  }
  later(command->fate.inside, id, &Target::take_effect);
}

void Target::take_effect(std::uint64_t id) {
  auto found = commands_.find(id);
  if (found == commands_.end()) return;
  auto command = found->second;
  Expected<void> result;
  bool data = command->changes() || command->kind == RamCommand::Kind::read ||
              command->kind == RamCommand::Kind::flush;
  if (data && !command->late && std::exchange(command->session->owed_loss, false)) {
    result = Error{Errc::not_durable, "deferred MEDIUM ERROR"};
    if (command->fate.failed) command->fate.failed();
  } else if (command->fate.failure.code()) {
    result = tear(*command);
  } else if (!command->fate.lies) {
    result = execute(*command);
  } else if (command->kind == RamCommand::Kind::flush && command->fate.forgets) {
    medium.forget();
  }
  if (!commands_.contains(id)) return;  // It ended itself, or with its session.
  command->place = Command::Place::returning;
  command->result = std::move(result);
  if (command->late) {
    commands_.erase(id);
    return;
  }
  later(command->fate.to_initiator, id, &Target::answer);
}

void Target::answer(std::uint64_t id) {
  auto found = commands_.find(id);
  if (found == commands_.end()) return;
  auto command = found->second;
  if (command->fate.answer_lost) {
    end(command->session, Error{Errc::lun_lost, "the connection broke before an answer"}, true);
    return;
  }
  finish(*command, command->result);
}

Expected<void> Target::tear(Command& command) {
  if (command.kind == RamCommand::Kind::write && command.fate.torn_blocks > 0) {
    auto bytes = std::min<std::uint64_t>(command.fate.torn_blocks * options_->geometry.block_size,
                                         command.in.size());
    (void)medium.write(command.offset, command.in.first(bytes), false);
    if (command.fate.took_effect) command.fate.took_effect(command.offset, command.in.first(bytes));
  }
  if (command.kind != RamCommand::Kind::flush) return command.fate.failure;
  if (command.fate.forgets) medium.forget();
  if (command.fate.misses) medium.miss();
  if (command.fate.forgets && command.fate.tells_all)
    for (auto& [id, session] : sessions_) session->owed_loss = session != command.session;
  if (command.fate.failed) command.fate.failed();
  return command.fate.failure;
}

Expected<void> Target::execute(Command& command) {
  switch (command.kind) {
    case RamCommand::Kind::read: medium.read(command.offset, command.out); return {};
    case RamCommand::Kind::write:
      if (command.fate.took_effect) command.fate.took_effect(command.offset, command.in);
      return medium.write(command.offset, command.in, command.fua && options_->fua);
    case RamCommand::Kind::flush: return medium.flush();
    case RamCommand::Kind::zero: return medium.zero(command.offset, command.length, false);
    case RamCommand::Kind::unmap:
      if (!options_->unmap_zeroes) return {};
      return medium.zero(command.offset, command.length, true);
    case RamCommand::Kind::reset: abort_all(command.id); return {};
    case RamCommand::Kind::reservation:
    case RamCommand::Kind::keys: return command.act(*this, command.nexus());
  }
  return Errc::refused;
}

/// The end of a command's life; a fence ends its session too.
void Target::finish(Command& command, Expected<void> result) {
  auto keep = commands_.at(command.id);
  commands_.erase(command.id);
  if (command.late) return;
  auto error = result.error();
  tell(command.session, std::move(command.done), std::move(result));
  if (error == Errc::fenced) end(command.session, error, true);
}

void Target::end(const std::shared_ptr<Session>& session, Error why, bool by_itself) {
  if (session->ended) return;
  session->ended = true;
  session->by_itself = by_itself;
  session->why = why;
  sessions_.erase(session->id);
  std::vector<Done> told;
  for (auto each = commands_.begin(); each != commands_.end();) {
    auto& command = *each->second;
    if (command.session != session || command.late) {
      ++each;
      continue;
    }
    told.push_back(std::move(command.done));
    bool lands = command.place == Command::Place::inside ||
                 (command.place == Command::Place::travelling && command.fate.lands_late);
    bool matters = command.changes() || command.kind == RamCommand::Kind::reservation ||
                   command.kind == RamCommand::Kind::reset;
    if (!lands || !matters || clock_ == nullptr) {
      each = commands_.erase(each);
      continue;
    }
    command.late = true;
    command.kept.assign(command.in.begin(), command.in.end());
    command.in = command.kept;
    ++each;
  }
  for (auto& done : told) tell(session, std::move(done), Error{Errc::lun_lost, why.message()});
  if (!by_itself || !session->on_lost) return;
  session->home->post([session, handler = std::move(session->on_lost), why]() mutable {
    if (!session->gone) handler(why);
  });
}

void Target::lose_sessions_of(const std::string& initiator) {
  for (auto [id, session] : std::map{sessions_}) {
    if (session->options.initiator != initiator) continue;
    end(session, Error{Errc::lun_lost, "the path of " + initiator + " was lost"}, true);
  }
}

Expected<void> Target::apply(const ReservationTable::Result& result, bool abort) {
  if (result.verdict == ReservationTable::Verdict::conflict) {
    return Error{Errc::reservation_conflict, "RESERVATION CONFLICT"};
  }
  if (result.verdict == ReservationTable::Verdict::illegal) {
    return Error{Errc::unsupported_by_target, "ILLEGAL REQUEST (05h/26h/00h)"};
  }
  for (auto [nexus, notice] : result.notices) {
    // That a reservation was released takes nothing from a nexus: repeated inside.
    if (notice != ReservationTable::Notice::reservations_released) notices_[nexus] = notice;
  }
  if (!abort) return {};
  std::vector<std::shared_ptr<Command>> aborted;
  for (const auto& [id, command] : commands_) {
    if (command->place != Command::Place::inside || command->fate.unfenced) continue;
    if (std::find(result.removed.begin(), result.removed.end(), command->nexus()) ==
        result.removed.end()) {
      continue;
    }
    aborted.push_back(command);
  }
  for (const auto& command : aborted) {
    if (!commands_.contains(command->id)) continue;  // Ended with the session of one before.
    finish(*command, Error{Errc::fenced, "TASK ABORTED, registration preempted"});
  }
  return {};
}

void Target::abort_all(std::uint64_t except) {
  std::vector<std::shared_ptr<Command>> aborted;
  for (const auto& [id, command] : commands_) {
    // A reset is no command that another one could end.
    if (id == except || command->kind == RamCommand::Kind::reset || command->fate.unfenced)
      continue;
    if (command->place == Command::Place::inside) aborted.push_back(command);
  }
  for (const auto& command : aborted) {
    commands_.erase(command->id);
    if (!command->late) requeue(command);
  }
}

void Target::requeue(const std::shared_ptr<Command>& command) {
  auto& session = command->session;
  if (!command->repeatable) {
    tell(session, std::move(command->done), Error{Errc::unknown_outcome, "TASK ABORTED"});
    return;
  }
  ++session->counters.retries;
  command->place = Command::Place::travelling;
  command->fate = {};
  submit(command);
}

void Target::power_loss(Random& random) {
  for (const auto& [id, command] : commands_) {
    if (command->place != Command::Place::inside || command->kind != RamCommand::Kind::write) {
      continue;
    }
    auto block = options_->geometry.block_size;
    for (std::uint64_t at = 0; at < command->in.size(); at += block) {
      if (!random.chance(1, 2)) continue;
      (void)medium.write(command->offset + at, command->in.subspan(at, block), false);
    }
  }
  std::erase_if(commands_, [](const auto& each) { return each.second->late; });
  for (auto& [id, command] : commands_) command->place = Command::Place::returning;
  for (auto [id, session] : std::map{sessions_}) {
    end(session, Error{Errc::lun_lost, "the target lost power"}, true);
  }
  medium.power_loss(random);
  reservations.power_loss(options_->aptpl);
  notices_.clear();
  if (!options_->aptpl) ports_.clear();
}

std::vector<FullStatusEntry> Target::full_status() const {
  std::vector<FullStatusEntry> all;
  for (auto [nexus, key] : reservations.registrations()) {
    bool holder = reservations.holds(nexus);
    all.push_back({.key = key,
                   .holder = holder,
                   .type = holder ? reservations.reservation().type : ReservationType::none,
                   .initiator = port_names_.at(nexus),
                   .relative_port = 1});
  }
  return all;
}

std::size_t Target::late() const {
  return static_cast<std::size_t>(std::count_if(
      commands_.begin(), commands_.end(), [](const auto& each) { return each.second->late; }));
}

// ---------------------------------------------------------------------------- the Lun

class RamLun final : public Lun {
 public:
  RamLun(std::shared_ptr<Disk> disk, std::shared_ptr<Session> session)
      : disk_{std::move(disk)}, session_{std::move(session)} {
    const auto& options = disk_->options();
    profile_ = {.vendor = "CSVFS",
                .product = "RAM LUN",
                .revision = "1",
                .identity = options.identity,
                .write_protected = options.write_protected,
                .write_cache = options.write_cache,
                .fua = options.fua,
                .write_same = options.write_same,
                .thin = options.thin,
                .unmap = options.unmap,
                .unmap_zeroes = options.unmap && options.unmap_zeroes,
                .preempt_and_abort = options.preempt_and_abort,
                .read_full_status = options.read_full_status,
                .aptpl = options.aptpl,
                .all_registrants = options.all_registrants,
                .max_transfer = options.max_transfer,
                .max_write_same = options.write_same ? options.max_write_same : 0,
                .max_unmap = options.unmap ? options.max_unmap : 0};
  }
  ~RamLun() override {
    session_->gone = true;
    RamLun::close();
  }

  const Geometry& geometry() const override {
    static const Geometry kUnknown{};
    return session_->sized ? disk_->options().geometry : kUnknown;
  }
  const TargetProfile& profile() const override { return profile_; }
  LunCounters counters() const override {
    auto target = disk_->lock();
    return session_->counters;
  }
  void on_lost(Function<void(Error)> handler) override {
    auto target = disk_->lock();
    if (!session_->ended) {
      session_->on_lost = std::move(handler);
    } else if (session_->by_itself) {
      session_->home->post(
          [handler = std::move(handler), why = session_->why]() mutable { handler(why); });
    }
  }
  void close() override {
    auto target = disk_->lock();
    target->end(session_, Error{Errc::lun_lost, "closed"}, false);
  }

  void read(std::uint64_t offset, std::span<std::byte> out, Done done) override {
    if (!accepts(offset, out.size(), &LunCounters::reads, &LunCounters::read_bytes, done)) return;
    split(offset, out.size(), profile_.max_transfer, std::move(done),
          [out, offset](std::uint64_t at, std::uint64_t length) {
            auto command = make(RamCommand::Kind::read);
            command->out = out.subspan(at - offset, length);
            return command;
          });
  }
  void write(std::uint64_t offset, std::span<const std::byte> data, WriteOptions options,
             Done done) override {
    if (!accepts(offset, data.size(), &LunCounters::writes, &LunCounters::write_bytes, done))
      return;
    if (options.fua && profile_.write_cache && !profile_.fua) {
      done = [disk = disk_, session = session_,
              done = std::move(done)](Expected<void> said) mutable {
        if (!said) return done(std::move(said));
        submit(*disk, session, make(RamCommand::Kind::flush), std::move(done));
      };
    }
    split(offset, data.size(), profile_.max_transfer, std::move(done),
          [data, offset, fua = options.fua](std::uint64_t at, std::uint64_t length) {
            auto command = make(RamCommand::Kind::write);
            command->in = data.subspan(at - offset, length);
            command->fua = fua;
            return command;
          });
  }
  void flush(Done done) override {
    bool nothing_to_do = false;
    {
      auto target = disk_->lock();
      ++session_->counters.flushes;
      nothing_to_do = !profile_.write_cache && !session_->ended;
    }
    if (nothing_to_do) return say(std::move(done), {});
    submit(*disk_, session_, make(RamCommand::Kind::flush), std::move(done));
  }
  void write_zeroes(std::uint64_t offset, std::uint64_t length, Done done) override {
    if (!accepts(offset, length, &LunCounters::zeroes, nullptr, done)) return;
    auto limit = profile_.write_same ? profile_.max_write_same : profile_.max_transfer;
    split(offset, length, limit, std::move(done),
          [](std::uint64_t, std::uint64_t) { return make(RamCommand::Kind::zero); });
  }
  void unmap(std::uint64_t offset, std::uint64_t length, Done done) override {
    if (!accepts(offset, length, &LunCounters::unmaps, nullptr, done)) return;
    if (!profile_.unmap) return say(std::move(done), {});
    split(offset, length, profile_.max_unmap, std::move(done),
          [](std::uint64_t, std::uint64_t) { return make(RamCommand::Kind::unmap); });
  }

  void register_key(Key key, Done done) override {
    std::vector<std::shared_ptr<Command>> commands;
    for (std::size_t path = 0; path < session_->paths.size(); ++path) {
      auto command = reservation([key, session = session_](Target& target, Nexus nexus) {
        auto result = target.apply(target.reservations.register_key(nexus, {}, key), false);
        if (result) session->registered = raw(key) != 0;
        return result;
      });
      command->path = path;
      commands.push_back(std::move(command));
    }
    submit_all(std::move(commands), std::move(done));
  }
  void register_exactly(Key existing, Key key, Done done) override {
    submit(*disk_, session_,
           reservation([existing, key, session = session_](Target& target, Nexus nexus) {
             auto result =
                 target.apply(target.reservations.register_key(nexus, existing, key), false);
             if (result) session->registered = raw(key) != 0;
             return result;
           }),
           std::move(done));
  }
  void reserve(Key mine, ReservationType type, Done done) override {
    submit(*disk_, session_, reservation([mine, type](Target& target, Nexus nexus) {
      return target.apply(target.reservations.reserve(nexus, mine, type), false);
    }),
           std::move(done));
  }
  void release(Key mine, ReservationType type, Done done) override {
    submit(*disk_, session_, reservation([mine, type](Target& target, Nexus nexus) {
      return target.apply(target.reservations.release(nexus, mine, type), false);
    }),
           std::move(done));
  }
  void clear(Key mine, Done done) override {
    submit(*disk_, session_, reservation([mine, session = session_](Target& target, Nexus nexus) {
      auto result = target.apply(target.reservations.clear(nexus, mine), false);
      if (result) session->registered = false;
      return result;
    }),
           std::move(done));
  }
  void preempt(Key mine, Key victim, ReservationType type, bool abort, Done done) override {
    if (abort && !profile_.preempt_and_abort) {
      return say(std::move(done), Error{Errc::unsupported_by_target, "PREEMPT AND ABORT"});
    }
    auto command = reservation([mine, victim, type, abort](Target& target, Nexus nexus) {
      return target.apply(target.reservations.preempt(nexus, mine, victim, type), abort);
    });
    command->repeatable = false;
    submit(*disk_, session_, std::move(command), std::move(done));
  }
  void reset(Done done) override {
    submit(*disk_, session_, make(RamCommand::Kind::reset), std::move(done));
  }

  void read_keys(Function<void(Expected<KeyList>)> done) override {
    ask<KeyList>([](Target& target) { return target.reservations.keys(); }, std::move(done));
  }
  void read_reservation(Function<void(Expected<Reservation>)> done) override {
    ask<Reservation>([](Target& target) { return target.reservations.reservation(); },
                     std::move(done));
  }
  void report_capabilities(Function<void(Expected<ReservationCapabilities>)> done) override {
    ReservationCapabilities can{.persist_through_power_loss = profile_.aptpl,
                                .all_target_ports = false,
                                .type_mask = static_cast<std::uint16_t>(
                                    profile_.all_registrants ? 0b1'1110'1010 : 0b0'0110'1010)};
    ask<ReservationCapabilities>([can](Target&) { return can; }, std::move(done));
  }
  void read_full_status(Function<void(Expected<std::vector<FullStatusEntry>>)> done) override {
    if (!profile_.read_full_status) {
      session_->home->post([done = std::move(done)]() mutable {
        done(Error{Errc::unsupported_by_target, "READ FULL STATUS"});
      });
      return;
    }
    ask<std::vector<FullStatusEntry>>([](Target& target) { return target.full_status(); },
                                      std::move(done));
  }

 private:
  static std::shared_ptr<Command> make(RamCommand::Kind kind) {
    auto command = std::make_shared<Command>();
    command->kind = kind;
    return command;
  }
  /// Whatever it does, the size is asked for afterwards if it is not known.
  std::shared_ptr<Command> reservation(Function<Expected<void>(Target&, Nexus)> act) {
    auto command = make(RamCommand::Kind::reservation);
    command->act = [session = session_, act = std::move(act)](Target& target, Nexus nexus) mutable {
      auto result = act(target, nexus);
      if (!session->sized) session->sized = target.tells_size(*session);
      return result;
    };
    return command;
  }
  void say(Done done, Expected<void> what) { tell(session_, std::move(done), std::move(what)); }
  /// Counts the request, and answers it at once if nothing is to be sent.
  bool accepts(std::uint64_t offset, std::uint64_t length, std::uint64_t LunCounters::*requests,
               std::uint64_t LunCounters::*bytes, Done& done) {
    auto block = geometry().block_size;
    auto size = geometry().size_bytes();
    if (!session_->sized) {
      say(std::move(done), Error{Errc::reservation_conflict, "the size is not known"});
      return false;
    }
    if (offset % block != 0 || length % block != 0 || length > size || offset > size - length) {
      say(std::move(done),
          Error{Errc::refused, fmt::format("bytes [{}, +{}) are not blocks of a LUN of {} bytes",
                                           offset, length, size)});
      return false;
    }
    if (length == 0) {
      say(std::move(done), {});
      return false;
    }
    auto target = disk_->lock();
    ++(session_->counters.*requests);
    if (bytes != nullptr) session_->counters.*bytes += length;
    return true;
  }
  static void submit(Disk& disk, const std::shared_ptr<Session>& session,
                     std::shared_ptr<Command> command, Done done) {
    command->session = session;
    command->done = std::move(done);
    disk.lock()->submit(std::move(command));
  }
  /// One answer for several commands: the first error, after all have answered. The answers come
  /// on one thread, the home loop's.
  void submit_all(std::vector<std::shared_ptr<Command>> commands, Done done) {
    if (commands.size() == 1) return submit(*disk_, session_, commands[0], std::move(done));
    struct Gather {
      std::size_t missing;
      Expected<void> result;
      Done done;
    };
    auto gather = std::make_shared<Gather>(Gather{commands.size(), {}, std::move(done)});
    for (auto& command : commands) {
      submit(*disk_, session_, std::move(command), [gather](Expected<void> said) {
        if (!said && gather->result) gather->result = std::move(said);
        if (--gather->missing == 0) gather->done(std::move(gather->result));
      });
    }
  }
  template <typename F>
  void split(std::uint64_t offset, std::uint64_t length, std::uint64_t limit, Done done,
             F&& piece) {
    std::vector<std::shared_ptr<Command>> commands;
    for (std::uint64_t at = offset; at < offset + length; at += limit) {
      auto count = std::min(limit, offset + length - at);
      auto command = piece(at, count);
      command->offset = at;
      command->length = count;
      command->path = next_path();
      commands.push_back(std::move(command));
    }
    submit_all(std::move(commands), std::move(done));
  }
  std::size_t next_path() {
    auto target = disk_->lock();
    return session_->next_path++ % session_->paths.size();
  }
  template <typename T>
  void ask(Function<T(Target&)> question, Function<void(Expected<T>)> done) {
    auto answer = std::make_shared<T>();
    auto command = make(RamCommand::Kind::keys);
    command->act = [answer, question = std::move(question)](Target& target, Nexus) mutable {
      *answer = question(target);
      return Expected<void>{};
    };
    submit(*disk_, session_, std::move(command),
           [answer, done = std::move(done)](Expected<void> said) mutable {
             if (!said) return done(said.error());
             done(std::move(*answer));
           });
  }

  std::shared_ptr<Disk> disk_;
  std::shared_ptr<Session> session_;
  TargetProfile profile_;
};

Expected<std::unique_ptr<Lun>> Disk::connect(Loop& home, LunOptions options, RamPlan plan) {
  auto session = CSV_TRY(target_.lock()->login(home, std::move(options), std::move(plan)));
  return std::unique_ptr<Lun>{std::make_unique<RamLun>(shared_from_this(), std::move(session))};
}

}  // namespace

RamDiskOptions RamDiskOptions::like_lio() {
  RamDiskOptions options;
  options.preempt_and_abort = false;
  options.size_for_all = false;
  return options;
}

RamDiskOptions RamDiskOptions::like_tgt() {
  RamDiskOptions options;
  options.preempt_and_abort = false;
  options.read_full_status = false;
  options.aptpl = false;
  options.all_registrants = false;
  options.write_same = false;
  options.unmap = false;
  options.zombies = true;
  return options;
}

std::shared_ptr<RamDisk> RamDisk::create(RamDiskOptions options, Loop* clock) {
  return std::make_shared<Disk>(std::move(options), clock, nullptr);
}

Expected<std::shared_ptr<RamDisk>> RamDisk::open_file(const std::string& path,
                                                      std::uint32_t block_size) {
  using FileId = std::pair<::dev_t, ::ino_t>;
  static Guarded<std::map<FileId, std::weak_ptr<RamDisk>>> open_images;
  struct ::stat about = {};
  if (::stat(path.c_str(), &about) != 0) return errno_error(errno, "opening the image " + path);
  auto images = open_images.lock();
  auto& known = (*images)[{about.st_dev, about.st_ino}];
  if (auto disk = known.lock()) {
    if (disk->options().geometry.block_size == block_size) return disk;
    return Error{Errc::refused, path + " is open with another block size"};
  }
  auto image = CSV_TRY(Image::open(path));
  auto options = RamDiskOptions::like_tgt();
  options.geometry = {.block_size = block_size,
                      .block_count = image->size / block_size,
                      .physical_block_size = 4096};
  options.identity = fmt::format("t10.CSVFS   image-{:x}-{:x}", about.st_dev, about.st_ino);
  options.preempt_and_abort = true;
  options.read_full_status = true;
  options.all_registrants = true;
  options.write_same = true;
  options.unmap = true;
  options.write_cache = true;
  options.fua = false;
  options.write_protected = image->read_only;
  std::shared_ptr<RamDisk> disk = std::make_shared<Disk>(options, nullptr, std::move(image));
  known = disk;
  return disk;
}

LunOpener RamDisk::opener(std::shared_ptr<RamDisk> disk, Loop& home, RamPlan plan, Duration login) {
  using Opened = Function<void(Expected<std::unique_ptr<Lun>>)>;
  return [disk = std::move(disk), &home, plan = std::move(plan), login](LunOptions options,
                                                                        Opened done) {
    auto open = [disk, &home, plan, options = std::move(options),
                 done = std::move(done)]() mutable {
      done(disk->connect(home, std::move(options), plan));
    };
    if (login <= Duration::zero()) return home.post(std::move(open));
    home.post(
        [&home, login, open = std::move(open)]() mutable { home.after(login, std::move(open)); });
  };
}

}  // namespace csv::iscsi
