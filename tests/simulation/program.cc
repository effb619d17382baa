#include "tests/simulation/program.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "csvfs/base/log.h"

namespace csv::sim {
namespace {

Outcome outcome_of(const Error& error) {
  Outcome out;
  out.error = error.to_errno();
  out.text = error.message();
  return out;
}

Outcome outcome_of(const wire::Attr& attr) {
  Outcome out;
  out.inode = attr.inode();
  out.mode = attr.mode();
  out.nlink = attr.nlink();
  out.uid = attr.uid();
  out.gid = attr.gid();
  out.rdev = attr.rdev();
  out.atime = attr.atime();
  out.mtime = attr.mtime();
  out.size = attr.size();
  return out;
}

Outcome outcome_of(const Expected<wire::Attr>& result) {
  return result ? outcome_of(*result) : outcome_of(result.error());
}

Outcome outcome_of(const Expected<void>& result) {
  return result ? Outcome{} : outcome_of(result.error());
}

std::uint64_t kForever = ~0ull;

bool needs_space(Op::Kind kind) {
  switch (kind) {
    case Op::Kind::make_file:
    case Op::Kind::make_nameless:
    case Op::Kind::make_directory:
    case Op::Kind::make_symlink:
    case Op::Kind::make_special:
    case Op::Kind::link:
    case Op::Kind::truncate:  // in the middle of a block that another file shares
    case Op::Kind::write:
    case Op::Kind::append:
    case Op::Kind::set_xattr: return true;
    default: return false;
  }
}

}  // namespace

/// One operation from its call to its answer. Destroyed unanswered (its mount was killed), it
/// leaves to the workload what must happen when it is over.
class Program::Call {
 public:
  Call(Program& program, Op op) : Call{program} {
    op_ = op;
    text_ = describe(op);
    id_ = ground_.history.begin(std::move(op));
    note();
  }
  /// Of which the history has nothing to say.
  Call(Program& program, std::string text) : Call{program} {
    text_ = std::move(text);
    note();
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    workload_.under_way_.erase(number_);
    if (over_ || workload_.dying_ == nullptr) return;
    ++workload_.counts.abandoned;
    if (id_) ground_.history.abandon(*id_);
    workload_.dying_->settle.push_back(
        [&ground = ground_, &world = workload_.world_, id = id_, end = std::move(end_)] {
          if (id) ground.history.settle(*id);
          for (const auto& each : end) each(world.now(), false);
        });
  }

  /// Content that is written from now on until the call is over.
  void writes(Number inode, std::uint64_t from, std::uint64_t to, Stamp stamp,
              FileContent::How how = {nullptr, true}) {
    auto& content = ground_.files[inode];
    auto id = content.begin(from, to, stamp, began_, how);
    end_.push_back([&content, id](Duration now, bool certain) {
      certain ? content.end(id, now) : content.settle(id, now);
    });
  }
  /// What the range of `from` shows until the copy is told to be over, with how much it was.
  std::function<void(std::uint64_t)> copies(Number from, std::uint64_t offset, Number into,
                                            std::uint64_t into_offset, std::uint64_t length) {
    auto& content = ground_.files[into];
    auto behind = static_cast<std::int64_t>(into_offset) - static_cast<std::int64_t>(offset);
    auto id =
        content.begin_copy(into_offset, into_offset + length, ground_.files[from], behind, began_);
    auto over = std::make_shared<bool>(false);
    end_.push_back([&content, id, over](Duration now, bool) {
      if (!std::exchange(*over, true)) content.settle(id, now);
    });
    return [&content, id, over, into_offset, &world = workload_.world_](std::uint64_t done) {
      *over = true;
      content.shorten(id, into_offset + done);
      content.end(id, world.now());
    };
  }
  void reads(Number inode) {
    auto& content = ground_.files[inode];
    content.begin_read(began_);
    end_.push_back([&content, began = began_](Duration, bool) { content.end_read(began); });
  }
  void answered(const Outcome& outcome) {
    over_ = true;
    auto& world = workload_.world_;
    world.note(name_ + " " + text_ + " -> " + describe(outcome));
    for (const auto& each : end_) each(world.now(), outcome.error == 0);
    if (id_ && !ground_.history.end(*id_, outcome)) {
      workload_.fail(ground_.name + " " + name_ + ": " + ground_.history.why());
    }
  }
  void shortened(std::uint64_t length) {
    op_.length = length;
    if (id_ && !ground_.history.shorten(*id_, length))
      workload_.fail(ground_.name + " " + name_ + ": " + ground_.history.why());
  }
  void refused(const Outcome& outcome) {
    over_ = true;
    workload_.world_.note(name_ + " " + text_ + " -> refused, " + describe(outcome));
    for (const auto& each : end_) each(workload_.world_.now(), false);
    if (id_ && !ground_.history.refuse(*id_)) {
      workload_.fail(ground_.name + " " + name_ + ": " + ground_.history.why());
    }
  }
  /// It failed without saying whether anything happened, but nothing more will.
  void settled(const Outcome& outcome) {
    over_ = true;
    auto& world = workload_.world_;
    world.note(name_ + " " + text_ + " -> perhaps, " + describe(outcome));
    for (const auto& each : end_) each(world.now(), false);
    if (id_) ground_.history.settle(*id_);
  }
  [[nodiscard]] Duration began() const { return began_; }
  [[nodiscard]] const Op& op() const { return op_; }

 private:
  explicit Call(Program& program)
      : workload_{program.workload_},
        ground_{program.ground_},
        name_{program.name_},
        began_{workload_.world_.now()},
        number_{workload_.next_call_++} {
    ++workload_.counts.operations;
  }
  void note() {
    workload_.under_way_[number_] = fmt::format("{} {} {} since {:.3f}", ground_.name, name_, text_,
                                                static_cast<double>(began_.count()) / 1e9);
  }

  Workload& workload_;
  Playground& ground_;
  std::string name_, text_;
  Duration began_;
  std::uint64_t number_;
  Op op_;
  std::optional<History::Id> id_;
  std::vector<std::function<void(Duration, bool certain)>> end_;
  bool over_ = false;
};

Program::Program(Workload& workload, Playground& ground, std::size_t node, Csvfs& csvfs,
                 std::uint64_t seed)
    : workload_{workload},
      ground_{ground},
      node_{node},
      csvfs_{csvfs},
      random_{seed},
      name_{fmt::format("node{}.{}", node + 1, seed % 1000)},
      directories_{ground.root} {
  ++workload_.running_;
}

Program::~Program() {
  --workload_.running_;
  for (const auto& each : open_) ground_.open.erase(ground_.open.find(each.inode));
}

Task<void> Program::think(Duration most) {
  auto most_ns = static_cast<std::uint64_t>(most.count());
  co_await sleep(*csvfs_.process().loop,
                 Duration{static_cast<Duration::rep>(random_.below(most_ns + 1))});
}

Task<void> Program::finish(Call& call, Outcome outcome, SessionId under) {
  if (outcome.error == ENOSPC && needs_space(call.op().kind)) {
    ++workload_.counts.no_space;
    call.refused(outcome);  // The size included; of a write's content, parts may have been made.
    co_return;
  }
  if (outcome.error != EIO) {
    // What was open under an ended session is open no longer.
    bool lost = call.op().open && session() != under;
    if (lost && (outcome.error == ESTALE || outcome.error == ENOENT)) {
      call.settled(outcome);
    } else {
      call.answered(outcome);
    }
    co_return;
  }
  ++workload_.counts.eio;
  call.settled(outcome);
  // Its own command, or one that its coordinator sent for it, was not done.
  if (workload_.was_refused(node_, call.began())) co_return;
  // Only the end of the session excuses it; the mount may take a moment to show that.
  for (int round = 0; round < 120; ++round) {
    if (session() != under) co_return;
    co_await sleep(*csvfs_.process().loop, 500ms);
  }
  workload_.fail(
      fmt::format("{} {}: EIO, though the session goes on", ground_.name, describe(call.op())));
}

Task<void> Program::run() {
  // What nobody judges any more is no use, and its sizes are not known.
  while (!workload_.winding_down_ && workload_.violation().empty() && !ground_.history.gave_up()) {
    co_await think(workload_.options_.most_thinking);
    switch (ground_.kind) {
      case Playground::Kind::names: co_await work_with_names(); break;
      case Playground::Kind::images: co_await work_with_images(); break;
      case Playground::Kind::logs: co_await work_with_logs(); break;
    }
    if (ground_.history.pending() == 0) {
      std::set<Number> used{ground_.open.begin(), ground_.open.end()};
      ground_.history.forget_orphans(used);
    }
  }
  while (!open_.empty()) co_await close(0);
}

Number Program::any_directory() { return directories_[random_.below(directories_.size())]; }

Number Program::any_file() {
  return files_.empty() ? ground_.root : files_[random_.below(files_.size())];
}

std::optional<Number> Program::any_regular() {
  if (files_.empty()) return {};
  auto file = any_file();
  if (not_regular_.contains(file)) return {};
  return file;
}

std::string Program::any_name() {
  constexpr const char* kNames[] = {"a", "b", "c", "d", "x", "y"};
  return kNames[random_.below(6)];
}

void Program::learn(Number number, std::uint32_t mode) {
  if (!S_ISREG(mode) && !S_ISDIR(mode)) not_regular_.insert(number);
  auto& known = S_ISDIR(mode) ? directories_ : files_;
  if (std::find(known.begin(), known.end(), number) != known.end()) return;
  known.push_back(number);
  // What is gone is forgotten by and by; the root of the playground never.
  if (known.size() > 6) known.erase(known.begin() + 1);
}

std::optional<std::size_t> Program::any_open() {
  if (open_.empty()) return {};
  return random_.below(open_.size());
}

bool Program::is_open(Number inode) {
  auto at = handle_of(inode);
  return at && mount().session_of(open_[*at].handle) == session();
}

/// As it stands now: a handle that nobody took away goes on with its mount's next session.
Program::Open Program::opened(std::size_t at) {
  auto open = open_[at];
  auto now = mount().session_of(open.handle);
  if (now == SessionId{} || now == open.session) return open;
  ++workload_.counts.resumed;
  if (workload_.was_touched(ground_, open.inode, node_, open.session))
    workload_.fail(fmt::format("{} inode {}: a handle goes on, though another node has opened it",
                               ground_.name, open.inode));
  open_[at].session = now;
  open.session = now;
  return open;
}

bool Program::goes_on(const Open& open) { return mount().session_of(open.handle) != SessionId{}; }

/// The end of a session says nothing of what was lost: that is still to be told.
bool Program::tells_of_loss(const Open& open, const Call& call, bool durable_write) {
  if (!goes_on(open)) return false;
  if (workload_.was_refused(node_, call.began())) {
    ground_.files[open.inode].failed(&csvfs_);
    return true;
  }
  FileContent::Refused who{.by = &csvfs_,
                           .handle = durable_write ? 0 : static_cast<std::uint64_t>(open.handle),
                           .since = durable_write ? call.began() : open.since,
                           .now = workload_.world_.now()};
  return ground_.files[open.inode].told_of_loss(who);
}

std::optional<std::size_t> Program::handle_of(Number inode) const {
  for (std::size_t at = 0; at < open_.size(); ++at) {
    if (open_[at].inode == inode) return at;
  }
  return {};
}

Task<void> Program::work_with_names() {
  if (random_.chance(1, 7)) co_return co_await work_with_what_is_rare();
  auto dice = random_.below(100);
  if (dice < 12) {
    (void)co_await lookup(any_directory(), any_name());
  } else if (dice < 20) {
    co_await make(any_directory(), any_name(), Op::Kind::make_file);
  } else if (dice < 26) {
    co_await make(any_directory(), any_name(), Op::Kind::make_directory);
  } else if (dice < 29) {
    co_await make(any_directory(), any_name(), Op::Kind::make_symlink);
  } else if (dice < 34) {
    co_await link(any_file(), any_directory(), any_name());
  } else if (dice < 42) {
    co_await remove(any_directory(), any_name(), false);
  } else if (dice < 46) {
    co_await remove(any_directory(), any_name(), true);
  } else if (dice < 56) {
    co_await rename();
  } else if (dice < 63) {
    (void)co_await list(any_directory());
  } else if (dice < 68) {
    (void)co_await attr(random_.chance(1, 3) ? any_directory() : any_file());
  } else if (dice < 71) {
    co_await chmod(any_file());
  } else if (dice < 73) {
    co_await read_link(any_file());
  } else if (dice < 76) {
    co_await set_xattr(any_file());
  } else if (dice < 79) {
    co_await look_at_xattr(any_file());
  } else if (dice < 80) {
    co_await remove_xattr(any_file());
  } else if (dice < 83) {
    if (auto file = any_regular()) co_await truncate(*file, random_.below(9000));
  } else if (open_.size() < 3) {
    if (random_.chance(1, 3)) {
      co_await create(any_directory(), any_name());
    } else if (auto file = any_regular()) {
      co_await open(*file);
    }
  } else if (dice < 92) {
    if (auto at = any_open()) co_await write(*at, random_.below(9000), 1 + random_.below(3000));
  } else if (dice < 97) {
    if (auto at = any_open()) co_await read(*at, random_.below(4096), 16384);
  } else if (auto at = any_open()) {
    co_await close(*at);
  }
}

Task<void> Program::work_with_what_is_rare() {
  auto any = random_.chance(1, 4) ? any_directory() : any_file();
  switch (random_.below(11)) {
    case 0:
      if (open_.size() < 3) co_await make_nameless(any_directory());
      break;
    case 1: co_await make_special(any_directory(), any_name()); break;
    case 2: co_await chown(any); break;
    case 3: co_await set_times(any); break;
    case 4: (void)co_await attr(any); break;
    case 5: co_await set_access_list(any, kAccessList); break;
    case 6: co_await set_access_list(any_directory(), kDefaultList); break;
    case 7: co_await look_at_xattr(any, random_.chance(1, 3) ? kDefaultList : kAccessList); break;
    case 8: co_await remove_xattr(any, random_.chance(1, 2) ? kDefaultList : kAccessList); break;
    case 9: co_await list_in_pieces(any_directory()); break;
    default: co_await statistics(); break;
  }
}

Task<void> Program::work_with_images() {
  constexpr std::uint64_t kBlock = 4096;
  if (open_.empty() || (open_.size() < 2 && random_.chance(1, 20))) {
    auto image = fmt::format("img{}", random_.below(2));
    auto found = co_await lookup(ground_.root, image);
    if (found && found->error == 0) {
      co_await open(found->inode);
    } else if (found) {
      co_await create(ground_.root, image);
    }
    co_return;
  }
  auto at = *any_open();
  auto dice = random_.below(100);
  auto sizes = ground_.history.sizes(open_[at].inode);
  auto blocks = std::max<std::uint64_t>(sizes.most / kBlock, 16);
  if (workload_.options_.mappings && sizes.least > 0 && random_.chance(1, 4)) {
    auto offset = random_.below(std::min<std::uint64_t>(sizes.least, 8 * kBlock));
    auto room = std::min(kBlock - offset % kBlock, sizes.least - offset);
    auto length = 1 + random_.below(std::min<std::uint64_t>(room, 700));
    if (random_.chance(1, 2)) co_return co_await look_at_mapping(at, offset, length);
    co_return co_await store_into_mapping(at, offset, length);
  }
  if (random_.chance(1, 14)) co_return co_await clone(*any_open(), at);
  if (random_.chance(1, 40)) co_return co_await set_times(open_[at].inode);
  if (random_.chance(1, 20))
    co_return co_await seek(at, random_.below(sizes.most + kBlock), random_.chance(1, 2));
  if (dice < 32) {
    auto count = random_.chance(1, 12) ? 128 + random_.below(129) : 1 + random_.below(16);
    // Half of all goes to a few blocks, so that writes meet.
    auto block = random_.chance(1, 2) ? random_.below(8) : random_.below(blocks);
    co_await write(at, block * kBlock, count * kBlock);
  } else if (dice < 40) {
    // At the end, as a growing image does.
    auto count = random_.chance(1, 3) ? 16 + random_.below(200) : 1 + random_.below(16);
    if (sizes.most < (12u << 20)) {
      co_await write(at, (sizes.most + kBlock - 1) / kBlock * kBlock, count * kBlock);
    }
  } else if (dice < 47) {
    co_await write(at, random_.below(blocks * kBlock), 1 + random_.below(9000));
  } else if (dice < 50) {
    co_await write(at, random_.below(blocks * kBlock / 512) * 512, 512 * (1 + random_.below(16)));
  } else if (dice < 78) {
    auto length = random_.chance(1, 10) ? 1u << 20 : 4096 * (1 + random_.below(32));
    auto block = random_.chance(1, 2) ? random_.below(8) : random_.below(blocks);
    (void)co_await read(at, block * kBlock, static_cast<std::uint32_t>(length));
  } else if (dice < 82) {
    (void)co_await read(at, random_.below(blocks * kBlock),
                        static_cast<std::uint32_t>(1 + random_.below(20000)));
  } else if (dice < 84) {
    co_await truncate(open_[at].inode, random_.below(sizes.most + 100000));
  } else if (dice < 86) {
    co_await truncate(open_[at].inode, random_.below(64) * kBlock);
  } else if (dice < 88) {
    co_await allocate(at, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      random_.below(blocks * kBlock), 1 + random_.below(200000));
  } else if (dice < 90) {
    co_await allocate(at, random_.chance(1, 2) ? 0 : FALLOC_FL_KEEP_SIZE,
                      random_.below(blocks) * kBlock, kBlock * (1 + random_.below(512)));
  } else if (dice < 92) {
    co_await allocate(at, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                      random_.below(blocks * kBlock), 1 + random_.below(100000));
  } else if (dice < 94) {
    co_await sync(at);
  } else if (dice < 96) {
    (void)co_await attr(open_[at].inode);
  } else if (dice < 98) {
    co_await close(at);
  } else {
    co_await remove(ground_.root, fmt::format("img{}", random_.below(2)), false);
  }
}

Task<void> Program::work_with_logs() {
  if (open_.empty()) {
    auto found = co_await lookup(ground_.root, "log");
    if (found && found->error == 0) {
      co_await open(found->inode);
    } else if (found) {
      co_await create(ground_.root, "log");
    }
    co_return;
  }
  auto dice = random_.below(100);
  if (dice < 60) {
    auto length = LogContent::kLeast + random_.below(random_.chance(1, 8) ? 9000 : 400);
    if (ground_.history.sizes(open_[0].inode).most < (900u << 10)) co_await append(0, length);
  } else if (dice < 90) {
    co_await read_log(0);
  } else if (dice < 96) {
    (void)co_await attr(open_[0].inode);
  } else {
    co_await close(0);
  }
}

// ---------------------------------------------------------------------------- names

Task<std::optional<Outcome>> Program::lookup(Number parent, std::string name) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::lookup;
  op.parent = parent;
  op.name = name;
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().lookup(InodeId{parent}, std::move(name)));
  co_await finish(call, outcome, under);
  if (outcome.error == 0) learn(outcome.inode, outcome.mode);
  if (outcome.error == EIO) co_return std::nullopt;
  co_return outcome;
}

Task<std::optional<Outcome>> Program::attr(Number inode) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::attr;
  op.inode = inode;
  op.open = is_open(inode);
  op.times = !workload_.options_.mappings;  // the history does not know of stores
  Call call{*this, op};
  auto found = co_await mount().attr(InodeId{inode});
  auto outcome = outcome_of(found);
  if (found) look_at_ctime(*found, call.began());
  co_await finish(call, outcome, under);
  if (outcome.error == EIO) co_return std::nullopt;
  co_return outcome;
}

/// Whatever clocks say, it never goes back.
void Program::look_at_ctime(const wire::Attr& attr, Duration began) {
  constexpr std::size_t kMost = 32;
  auto& seen = ground_.ctimes[attr.inode()];
  auto before = seen.lower_bound(began);
  if (before != seen.begin() && std::prev(before)->second > attr.ctime())
    workload_.fail(fmt::format("{} {} inode {}: ctime {} was {} before", ground_.name, name_,
                               attr.inode(), attr.ctime(), std::prev(before)->second));
  auto latest = seen.empty() ? attr.ctime() : std::max(attr.ctime(), seen.rbegin()->second);
  seen[workload_.world_.now()] = latest;
  if (seen.size() > kMost) seen.erase(seen.begin());
}

Task<std::optional<Outcome>> Program::list(Number directory) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::list;
  op.inode = directory;
  Call call{*this, op};
  Outcome outcome;
  auto entries = co_await mount().list(InodeId{directory}, 0, {});
  if (!entries) {
    outcome = outcome_of(entries.error());
  } else {
    for (const auto& entry : entries->entries()) {
      if (entry.name() == "." || entry.name() == "..") continue;
      outcome.entries.push_back({.name = entry.name(),
                                 .inode = entry.attr().inode(),
                                 .mode = entry.attr().mode(),
                                 .size = entry.attr().size()});
      learn(entry.attr().inode(), entry.attr().mode());
    }
  }
  co_await finish(call, outcome, under);
  if (outcome.error == EIO) co_return std::nullopt;
  co_return outcome;
}

/// With other work in between, and perhaps another coordinator.
Task<void> Program::list_in_pieces(Number directory) {
  constexpr std::uint32_t kPieces = 30;
  auto under = session();
  Op op;
  op.kind = Op::Kind::list_in_pieces;
  op.inode = directory;
  Call call{*this, op};
  Outcome outcome;
  std::uint64_t cookie = 0;
  for (std::uint32_t piece = 0;; ++piece) {
    // By their number, or by the room for them.
    Mount::ListOptions options;
    if (piece < kPieces && random_.chance(1, 2))
      options.limit = 1 + static_cast<std::uint32_t>(random_.below(3));
    else if (piece < kPieces)
      options.room = 1 + static_cast<std::uint32_t>(random_.below(120));
    auto entries = co_await mount().list(InodeId{directory}, cookie, options);
    if (!entries) {
      outcome = outcome_of(entries.error());
      break;
    }
    for (const auto& entry : entries->entries()) {
      cookie = entry.cookie();
      if (entry.name() == "." || entry.name() == "..") continue;
      outcome.entries.push_back(
          {.name = entry.name(), .inode = entry.attr().inode(), .mode = entry.attr().mode()});
    }
    if (entries->end()) break;
    co_await think(workload_.options_.most_thinking / 4);
  }
  co_await finish(call, outcome, under);
}

Task<void> Program::make_special(Number parent, std::string name) {
  constexpr std::uint32_t kTypes[] = {S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK};
  auto under = session();
  Op op;
  op.kind = Op::Kind::make_special;
  op.parent = parent;
  op.name = name;
  op.mode = kTypes[random_.below(4)] | 0644;
  if (S_ISCHR(op.mode) || S_ISBLK(op.mode)) op.rdev = 1 + random_.below(0xffff);
  wire::Make what;
  what.set_parent(parent);
  what.set_name(name);
  what.set_mode(op.mode);
  what.set_rdev(op.rdev);
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().make(Caller{}, std::move(what)));
  if (outcome.error == 0) learn(outcome.inode, outcome.mode);
  co_await finish(call, outcome, under);
}

Task<void> Program::make(Number parent, std::string name, Op::Kind kind) {
  auto under = session();
  Op op;
  op.kind = kind;
  op.parent = parent;
  op.name = name;
  wire::Make what;
  what.set_parent(parent);
  what.set_name(name);
  if (kind == Op::Kind::make_directory) {
    op.mode = 0755;
    what.set_mode(S_IFDIR | 0755);
  } else if (kind == Op::Kind::make_symlink) {
    op.mode = 0777;
    op.text = fmt::format("to/{}", random_.below(1000));
    what.set_mode(S_IFLNK | 0777);
    what.set_target(op.text);
  } else {
    op.mode = 0644;
    what.set_mode(S_IFREG | 0644);
  }
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().make(Caller{}, std::move(what)));
  if (outcome.error == 0) learn(outcome.inode, outcome.mode);
  co_await finish(call, outcome, under);
}

Task<void> Program::link(Number inode, Number parent, std::string name) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::link;
  op.inode = inode;
  op.parent = parent;
  op.name = name;
  op.open = is_open(inode);
  Call call{*this, op};
  auto outcome =
      outcome_of(co_await mount().link(InodeId{inode}, InodeId{parent}, std::move(name)));
  co_await finish(call, outcome, under);
}

Task<void> Program::remove(Number parent, std::string name, bool directory) {
  auto under = session();
  Op op;
  op.kind = directory ? Op::Kind::rmdir : Op::Kind::unlink;
  op.parent = parent;
  op.name = name;
  Call call{*this, op};
  auto removed = co_await mount().unlink(InodeId{parent}, std::move(name), directory);
  auto outcome = outcome_of(removed ? Expected<void>{} : Expected<void>{removed.error()});
  co_await finish(call, outcome, under);
}

Task<void> Program::rename() {
  auto under = session();
  Op op;
  op.kind = Op::Kind::rename;
  op.parent = any_directory();
  op.name = any_name();
  op.new_parent = any_directory();
  op.new_name = any_name();
  auto dice = random_.below(10);
  op.flags = dice < 6 ? 0u : dice < 8 ? RENAME_NOREPLACE : RENAME_EXCHANGE;
  wire::Rename what;
  what.set_parent(op.parent);
  what.set_name(op.name);
  what.set_new_parent(op.new_parent);
  what.set_new_name(op.new_name);
  what.set_flags(op.flags);
  Call call{*this, op};
  auto replaced = co_await mount().rename(std::move(what));
  auto outcome = outcome_of(replaced ? Expected<void>{} : Expected<void>{replaced.error()});
  co_await finish(call, outcome, under);
}

Task<void> Program::chmod(Number inode) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::chmod;
  op.inode = inode;
  constexpr std::uint32_t kModes[] = {0600, 0666, 0755, 06755, 02644};
  op.mode = kModes[random_.below(5)];
  wire::SetAttr to;
  to.set_inode(inode);
  to.set_mode(op.mode);
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().change(std::move(to)));
  co_await finish(call, outcome, under);
}

Task<void> Program::read_link(Number inode) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::read_link;
  op.inode = inode;
  op.open = is_open(inode);
  Call call{*this, op};
  auto got = co_await mount().read_link(InodeId{inode});
  auto outcome = got ? Outcome{} : outcome_of(got.error());
  if (got) outcome.text = *got;
  co_await finish(call, outcome, under);
}

Task<void> Program::chown(Number inode) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::chown;
  op.inode = inode;
  op.uid = static_cast<std::uint32_t>(random_.below(1000));
  op.gid = static_cast<std::uint32_t>(random_.below(1000));
  wire::SetAttr to;
  to.set_inode(inode);
  to.set_uid(op.uid);
  to.set_gid(op.gid);
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().change(std::move(to)));
  co_await finish(call, outcome, under);
}

Task<void> Program::set_times(Number inode) {
  auto under = session();
  auto any_time = [this] { return 1 + static_cast<std::int64_t>(random_.below(kClocks - 1)); };
  Op op;
  op.kind = Op::Kind::set_times;
  op.inode = inode;
  wire::SetAttr to;
  to.set_inode(inode);
  auto which = random_.below(4);
  if (which != 1) to.set_atime(*(op.atime = any_time()));
  if (which == 1 || which == 2) to.set_mtime(*(op.mtime = any_time()));
  if (which == 3) to.set_mtime_now(true), op.mtime = 0;
  // What another node has written may come to be known later (docs/mount.md).
  auto writers = ground_.writers.find(inode);
  op.times = writers == ground_.writers.end() ||
             (writers->second.size() == 1 && writers->second.contains(csvfs_.incarnation()));
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().change(std::move(to)));
  co_await finish(call, outcome, under);
}

Task<void> Program::set_xattr(Number inode, std::string name, std::string value,
                              std::uint32_t flags) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::set_xattr;
  op.inode = inode;
  op.name = std::move(name);
  op.text = std::move(value);
  op.flags = flags;
  wire::SetXattr what;
  what.set_inode(inode);
  what.set_name(op.name);
  what.set_value(op.text);
  what.set_flags(flags);
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().set_xattr(std::move(what)));
  co_await finish(call, outcome, under);
}

Task<void> Program::set_xattr(Number inode) {
  auto dice = random_.below(4);
  std::uint32_t flags = dice == 0 ? XATTR_CREATE : dice == 1 ? XATTR_REPLACE : 0;
  co_await set_xattr(inode, "user.k", fmt::format("v{}", random_.below(100000)), flags);
}

Task<void> Program::set_access_list(Number inode, const char* name) {
  auto any = [this] { return static_cast<std::uint32_t>(random_.below(8)); };
  AccessList list{any(), any(), any(), {}};
  if (random_.chance(3, 4)) list.named = AccessList::Named{any(), any()};
  co_await set_xattr(inode, name, list.encode(), 0);
}

Task<void> Program::look_at_xattr(Number inode, std::string name) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::xattr;
  op.inode = inode;
  op.name = name;
  Call call{*this, op};
  auto got = co_await mount().xattr(InodeId{inode}, std::move(name));
  auto outcome = got ? Outcome{} : outcome_of(got.error());
  if (got) outcome.text = *got;
  co_await finish(call, outcome, under);
}

Task<void> Program::remove_xattr(Number inode, std::string name) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::remove_xattr;
  op.inode = inode;
  op.name = name;
  Call call{*this, op};
  auto outcome = outcome_of(co_await mount().remove_xattr(InodeId{inode}, std::move(name)));
  co_await finish(call, outcome, under);
}

Task<void> Program::statistics() {
  auto under = session();
  Call call{*this, "statfs"};
  auto found = co_await mount().statistics();
  if (found) workload_.judge(*found);
  auto outcome = found ? Outcome{} : outcome_of(found.error());
  co_await finish(call, outcome, under);
}

// ---------------------------------------------------------------------------- open files

Task<void> Program::create(Number parent, std::string name) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::make_file;
  op.parent = parent;
  op.name = name;
  op.mode = 0644;
  wire::Make what;
  what.set_parent(parent);
  what.set_name(name);
  what.set_mode(S_IFREG | 0644);
  Call call{*this, op};
  auto made = co_await mount().create(Caller{}, std::move(what), {.writes = true});
  auto outcome = made ? outcome_of(made->attr) : outcome_of(made.error());
  if (made) {
    open_.push_back({made->handle, outcome.inode, session(), workload_.world_.now()});
    ground_.open.insert(outcome.inode);
    learn(outcome.inode, outcome.mode);
  }
  // Made, and removed by others before this mount's word that it is open counted: the kernel begins
  // anew.
  if (outcome.error == ESTALE) {
    if (parent == ground_.root)
      ++workload_.counts.anew;  // else it may be the directory that is gone
    co_return call.settled(outcome);
  }
  co_await finish(call, outcome, under);
}

/// O_TMPFILE, and linkat, mostly.
Task<void> Program::make_nameless(Number parent) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::make_nameless;
  op.parent = parent;
  op.mode = 0600;
  wire::Make what;
  what.set_parent(parent);
  what.set_mode(S_IFREG | 0600);
  what.set_nameless(true);
  Call call{*this, op};
  auto made = co_await mount().create(Caller{}, what, {.writes = true});
  // As the file system does: a new coordinator did not know that somebody has it open.
  if (!made && made.error().to_errno() == ESTALE)
    made = co_await mount().create(Caller{}, std::move(what), {.writes = true});
  auto outcome = made ? outcome_of(made->attr) : outcome_of(made.error());
  if (made) {
    open_.push_back({made->handle, outcome.inode, session(), workload_.world_.now()});
    ground_.open.insert(outcome.inode);
  }
  co_await finish(call, outcome, under);
  if (!made || random_.chance(1, 4)) co_return;
  co_await think(workload_.options_.most_thinking);
  if (auto at = handle_of(outcome.inode); at && random_.chance(1, 2))
    co_await write(*at, 0, 1 + random_.below(9000));
  if (!is_open(outcome.inode)) co_return;
  co_await link(outcome.inode, any_directory(), any_name());
  (void)co_await attr(outcome.inode);
  learn(outcome.inode, outcome.mode);
}

Task<void> Program::open(Number inode) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::attr;  // It answers with the attributes, and changes nothing.
  op.inode = inode;
  Call call{*this, op};
  auto opened = co_await mount().open(InodeId{inode}, {.writes = true});
  if (opened) ground_.openings[inode][node_] = {call.began(), workload_.world_.now()};
  if (opened) co_await csvfs_.pages().after_open(InodeId{inode});
  auto outcome = opened ? outcome_of(opened->attr) : outcome_of(opened.error());
  if (opened) {
    open_.push_back({opened->handle, inode, session(), workload_.world_.now()});
    ground_.open.insert(inode);
  }
  co_await finish(call, outcome, under);
}

Task<void> Program::close(std::size_t at) {
  auto open = open_[at];
  open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(at));
  Call call{*this, fmt::format("close inode={}", open.inode)};
  co_await csvfs_.pages().before_close({InodeId{open.inode}, open.session, open.handle});
  co_await mount().close(open.handle);
  ground_.open.erase(ground_.open.find(open.inode));
  call.answered({});
}

Task<void> Program::write(std::size_t at, std::uint64_t offset, std::uint64_t length) {
  auto open = opened(at);
  auto stamp = workload_.next_stamp_++;
  ++workload_.counts.writes;
  Op op;
  op.kind = Op::Kind::write;
  op.inode = open.inode;
  op.offset = offset;
  op.length = length;
  op.open = true;
  op.text = fmt::format("w{}", stamp);
  Buffer data{length};
  fill_pattern(data.span(), offset, stamp);
  Call call{*this, op};
  Mount::WriteOptions options;
  options.durable = random_.chance(1, 10);
  call.writes(open.inode, offset, offset + length, stamp, {&csvfs_, options.durable});
  writes(open.inode);
  co_await csvfs_.pages().before_write(InodeId{open.inode}, offset, length);
  auto written = co_await mount().write(open.handle, offset, data.span(), options);
  auto outcome = written ? Outcome{} : outcome_of(written.error());
  if (written && *written != length) workload_.fail("a short write");
  // A durable write tells of itself: what its handle has to be told by a sync is told besides.
  if (outcome.error == EIO && options.durable && tells_of_loss(open, call, true)) {
    call.settled(outcome);
    co_return;
  }
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
}

Task<std::uint64_t> Program::read(std::size_t at, std::uint64_t offset, std::uint32_t length) {
  auto open = opened(at);
  ++workload_.counts.reads;
  Op op;
  op.kind = Op::Kind::read;
  op.inode = open.inode;
  op.offset = offset;
  op.length = length;
  op.open = true;
  Call call{*this, op};
  call.reads(open.inode);
  co_await csvfs_.pages().before_read(InodeId{open.inode}, offset, length);
  auto got = co_await mount().read(open.handle, offset, length);
  auto outcome = got ? Outcome{} : outcome_of(got.error());
  if (got) {
    outcome.length = got->length;
    std::span<const std::byte> bytes{};
    if (got->length > 0) bytes = got->buffer.span().subspan(got->skip, got->length);
    auto wrong =
        ground_.files[open.inode].judge(offset, bytes, call.began(), workload_.world_.now());
    if (wrong) {
      workload_.fail(fmt::format("{} {} inode {}: {}", ground_.name, name_, open.inode, *wrong));
    }
    if (got->length < length) ground_.files[open.inode].ends_at(offset + got->length, call.began());
  }
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
  co_return outcome.length;
}

Task<void> Program::truncate(Number inode, std::uint64_t size) {
  auto under = session();
  Op op;
  op.kind = Op::Kind::truncate;
  op.inode = inode;
  op.length = size;
  wire::SetAttr to;
  to.set_inode(inode);
  to.set_size(size);
  Call call{*this, op};
  call.writes(inode, size, kForever, 0);
  co_await csvfs_.pages().before_truncate(InodeId{inode});
  auto outcome = outcome_of(co_await mount().change(std::move(to)));
  co_await csvfs_.pages().after_truncate(InodeId{inode}, size, outcome.error == 0);
  if (outcome.error == EAGAIN) {  // another node, and both have mapped what the other cuts off
    call.refused(outcome);
    co_return;
  }
  co_await finish(call, outcome, under);
}

/// A load is judged as a read is; a mapping shows at any moment what reading would.
Task<void> Program::look_at_mapping(std::size_t at, std::uint64_t offset, std::size_t length) {
  auto open = open_[at];
  ++workload_.counts.loads;
  Call call{*this, fmt::format("load inode={} {}+{}", open.inode, offset, length)};
  call.reads(open.inode);
  PageCache::File file{InodeId{open.inode}, open.session, open.handle};
  auto got = co_await csvfs_.pages().load(file, offset, length);
  auto outcome = got ? Outcome{} : outcome_of(got.error());
  if (got) {
    auto wrong =
        ground_.files[open.inode].judge(offset, *got, call.began(), workload_.world_.now());
    if (wrong)
      workload_.fail(
          fmt::format("{} {} inode {}, mapped: {}", ground_.name, name_, open.inode, *wrong));
  }
  if (outcome.error == EFAULT) outcome = {};
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
}

/// From the store to the end of its msync it is a write like others. What others write into the
/// same page meanwhile must not be undone by it.
Task<void> Program::store_into_mapping(std::size_t at, std::uint64_t offset, std::size_t length) {
  auto open = open_[at];
  auto stamp = workload_.next_stamp_++;
  ++workload_.counts.stores;
  std::vector<std::byte> data(length);
  fill_pattern(data, offset, stamp);
  Call call{*this, fmt::format("store inode={} {}+{} w{}", open.inode, offset, length, stamp)};
  call.writes(open.inode, offset, offset + length, stamp, {&csvfs_, false, true});
  PageCache::File file{InodeId{open.inode}, open.session, open.handle};
  auto stored = co_await csvfs_.pages().store(file, offset, std::move(data));
  auto outcome = stored ? Outcome{} : outcome_of(stored.error());
  // Behind the end of the file, as it may be by now, nothing is kept.
  bool inside = offset + length <= ground_.history.sizes(open.inode).least;
  if (outcome.error == EFAULT || outcome.error == ENOSPC || (outcome.error == 0 && !inside)) {
    call.settled(outcome);
    co_return;
  }
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
}

Task<void> Program::allocate(std::size_t at, std::uint32_t mode, std::uint64_t offset,
                             std::uint64_t length) {
  auto open = open_[at];
  auto zeroes = (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0;
  Op op;
  op.kind = Op::Kind::write;  // As to the size.
  op.inode = open.inode;
  op.offset = offset;
  op.length = (mode & FALLOC_FL_KEEP_SIZE) != 0 ? 0 : length;
  if (op.length == 0) op.offset = 0;
  op.open = true;
  op.text = fmt::format("allocate {} {}+{}", mode, offset, length);
  Call call{*this, op};
  writes(open.inode);
  if (zeroes) call.writes(open.inode, offset, offset + length, 0);
  wire::Allocate what;
  what.set_offset(offset);
  what.set_length(length);
  what.set_mode(mode);
  if (zeroes) co_await csvfs_.pages().before_read(InodeId{open.inode}, offset, length);
  auto outcome = outcome_of(co_await mount().allocate(open.handle, std::move(what)));
  if (zeroes) co_await csvfs_.pages().after_punch(InodeId{open.inode}, offset, length);
  if (outcome.error == EOPNOTSUPP) {
    call.settled(outcome);
    co_return;
  }
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
}

/// As cp does: what cannot be cloned is written, and the one may go well where the other does not.
Task<void> Program::clone(std::size_t at, std::size_t into_at) {
  constexpr std::uint64_t kBlock = 4096, kLeast = 16, kMost = 256;
  auto from = open_[at], into = open_[into_at];
  auto size = ground_.history.sizes(from.inode).least;
  if (size < kLeast * kBlock || from.session != into.session) co_return;
  auto blocks = size / kBlock;
  auto count = kLeast + random_.below(std::min(blocks, kMost) - kLeast + 1);
  auto offset = random_.below(blocks - count + 1) * kBlock, length = count * kBlock;
  // Or up to the end, inside of a block.
  if (random_.chance(1, 4) && size - offset < kMost * kBlock) length = size - offset;
  auto into_offset = random_.chance(1, 2) ? offset : random_.below(300) * kBlock;
  if (from.inode == into.inode && offset < into_offset + length && into_offset < offset + length)
    co_return;
  Op op;
  op.kind = Op::Kind::write;
  op.inode = into.inode;
  op.offset = into_offset;
  op.length = length;
  op.open = true;
  auto stamp = workload_.next_stamp_++;
  op.text = fmt::format("clone of {} {}+{}, rest w{}", from.inode, offset, length, stamp);
  Call call{*this, op};
  auto copied = call.copies(from.inode, offset, into.inode, into_offset, length);
  writes(into.inode);
  co_await csvfs_.pages().before_read(InodeId{from.inode}, offset, length);
  co_await csvfs_.pages().before_read(InodeId{into.inode}, into_offset, length);
  Mount::CloneWish what{from.handle, into.handle, offset, into_offset, length};
  auto cloned = co_await mount().clone(what);
  auto done = cloned ? *cloned : 0;
  auto outcome = cloned ? Outcome{} : outcome_of(cloned.error());
  bool certain = cloned || outcome.error == EOPNOTSUPP || outcome.error == ENOSPC;
  if (certain) copied(done);
  if (done > 0) {
    ++workload_.counts.clones;
    co_await csvfs_.pages().after_punch(InodeId{into.inode}, into_offset, done);
  }
  if (outcome.error == EOPNOTSUPP) outcome = {};
  std::optional<Call> rest;
  if (done > 0 && done < length) {
    call.shortened(done);
    co_await finish(call, outcome, into.session);
    op.offset += done;
    op.length -= done;
    rest.emplace(*this, op);
  }
  auto& last = rest ? *rest : call;
  if (outcome.error == 0 && done < length) {
    Buffer data{length - done};
    fill_pattern(data.span(), into_offset + done, stamp);
    last.writes(into.inode, into_offset + done, into_offset + length, stamp, {&csvfs_, false});
    co_await csvfs_.pages().before_write(InodeId{into.inode}, into_offset + done, length - done);
    auto written = co_await mount().write(into.handle, into_offset + done, data.span(), {});
    if (!written) outcome = outcome_of(written.error());
  }
  co_await finish(last, outcome, into.session);
  if (outcome.error == EIO)
    for (auto inode : {from.inode, into.inode})
      if (handle_of(inode)) co_await close(*handle_of(inode));
}

Task<void> Program::seek(std::size_t at, std::uint64_t offset, bool data) {
  auto open = opened(at);
  Op op;
  op.kind = Op::Kind::seek;
  op.inode = open.inode;
  op.offset = offset;
  op.flags = data ? SEEK_DATA : SEEK_HOLE;
  op.open = true;
  Call call{*this, op};
  call.reads(open.inode);
  auto found = co_await mount().seek(open.handle, offset, op.flags);
  auto outcome = found ? Outcome{} : outcome_of(found.error());
  if (found) outcome.size = *found;
  // Up to data, and where a hole begins, is nothing but zeros.
  std::optional<std::string> wrong;
  auto judge = [&](std::uint64_t from, std::uint64_t to) {
    wrong = ground_.files[open.inode].judge_hole(from, to, call.began(), workload_.world_.now());
  };
  if (data && (found || outcome.error == ENXIO)) judge(offset, found ? *found : kForever);
  if (!data && found) judge(*found, *found + 1);
  if (wrong)
    workload_.fail(fmt::format("{} {} inode {}: {}", ground_.name, name_, open.inode, *wrong));
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
}

Task<void> Program::sync(std::size_t at) {
  auto open = opened(at);
  Call call{*this, fmt::format("sync inode={}", open.inode)};
  auto outcome = outcome_of(co_await mount().sync(open.handle));
  if (outcome.error == 0) ground_.files[open.inode].synced(&csvfs_, call.began());
  if (outcome.error == EIO && tells_of_loss(open, call, false)) {
    ++workload_.counts.losses;
    call.settled(outcome);
    co_return;
  }
  co_await finish(call, outcome, open.session);
  if (outcome.error != 0 && outcome.error != EIO) workload_.fail("a sync failed");
}

Task<void> Program::append(std::size_t at, std::size_t length) {
  auto open = opened(at);
  auto stamp = workload_.next_stamp_++;
  ++workload_.counts.writes;
  Op op;
  op.kind = Op::Kind::append;
  op.inode = open.inode;
  op.length = length;
  op.open = true;
  op.text = fmt::format("w{}", stamp);
  auto record = LogContent::record(stamp, length);
  Call call{*this, op};
  auto& log = ground_.logs[open.inode];
  log.begin(stamp, workload_.world_.now());
  writes(open.inode);
  Mount::WriteOptions options;
  options.append = true;
  // The kernel says where it believes the end to be, and may be wrong.
  auto written = co_await mount().write(open.handle, random_.below(100000), record, options);
  auto outcome = written ? Outcome{} : outcome_of(written.error());
  if (written) log.end(stamp, workload_.world_.now());
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
}

Task<void> Program::read_log(std::size_t at) {
  auto open = opened(at);
  ++workload_.counts.reads;
  Op op;
  op.kind = Op::Kind::read;
  op.inode = open.inode;
  op.length = 1 << 20;
  op.open = true;
  Call call{*this, op};
  auto got = co_await mount().read(open.handle, 0, 1 << 20);
  auto outcome = got ? Outcome{} : outcome_of(got.error());
  if (got) {
    outcome.length = got->length;
    std::span<const std::byte> bytes{};
    if (got->length > 0) bytes = got->buffer.span().subspan(got->skip, got->length);
    auto wrong = ground_.logs[open.inode].judge(bytes, call.began());
    if (wrong) {
      workload_.fail(fmt::format("{} {} log {}: {}", ground_.name, name_, open.inode, *wrong));
    }
  }
  co_await finish(call, outcome, open.session);
  if (outcome.error == EIO && handle_of(open.inode)) co_await close(*handle_of(open.inode));
}

// ---------------------------------------------------------------------------- in the end

Task<void> Program::look_at_everything() {
  std::vector<Number> left{ground_.root};
  while (!left.empty() && workload_.violation().empty()) {
    auto directory = left.back();
    left.pop_back();
    auto entries = co_await list(directory);
    if (!entries) continue;
    co_await list_in_pieces(directory);
    for (const auto& entry : entries->entries) {
      (void)co_await attr(entry.inode);
      if (S_ISDIR(entry.mode)) left.push_back(entry.inode);
      if (S_ISLNK(entry.mode)) co_await read_link(entry.inode);
      if (!S_ISREG(entry.mode)) continue;
      co_await look_at_xattr(entry.inode);
      co_await open(entry.inode);
      auto at = handle_of(entry.inode);
      if (!at) continue;
      if (ground_.kind == Playground::Kind::logs) {
        co_await read_log(*at);
      } else {
        for (std::uint64_t offset = 0;;) {
          auto got = co_await read(*at, offset, 1 << 20);
          offset += got;
          at = handle_of(entry.inode);
          if (got == 0 || !at) break;
        }
      }
      if ((at = handle_of(entry.inode))) co_await close(*at);
    }
  }
}

Task<void> Program::remove_everything() {
  std::vector<Number> path{ground_.root};
  std::vector<std::string> names;
  while (!path.empty() && workload_.violation().empty()) {
    auto entries = co_await list(path.back());
    if (!entries) co_return;
    if (entries->entries.empty()) {
      path.pop_back();
      if (path.empty()) break;
      co_await remove(path.back(), names.back(), true);
      names.pop_back();
      continue;
    }
    auto entry = entries->entries.front();
    if (S_ISDIR(entry.mode)) {
      path.push_back(entry.inode);
      names.push_back(entry.name);
    } else {
      co_await remove(path.back(), entry.name, false);
    }
  }
}

}  // namespace csv::sim
