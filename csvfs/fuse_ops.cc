#include "csvfs/fuse_ops.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>

#include "coordinator/protocol/limits.h"

namespace csv {
namespace {

// The kernel's, newer than Debian 12's <linux/fuse.h>.
constexpr std::uint32_t kParallelDirectWrites = 1u << 6;
constexpr std::size_t kMaxTransfer = 1 << 20;
constexpr std::size_t kMaxCloned = 1 << 30;  ///< FUSE answers with 32 bits.
constexpr std::size_t kSpareBuffers = 32;
/// While that many writes keep the buffers that they came in, which are made for the largest
/// request there is, further small ones are moved into buffers of their size: on a volume that is
/// paused any number of programs can wait, and the memory is locked.
constexpr std::size_t kMostKept = kSpareBuffers;
constexpr std::size_t kMovedUpTo = kMaxTransfer / 2;
constexpr std::uint32_t kKillSetId = 1u << 2;  // of fuse_write_in.write_flags
constexpr std::size_t kMostGhosts = 64 * 1024;
constexpr int kMakeTries = 200;                    // each a question and its answer
constexpr int kLifeShift = 48;                     // in node ids
constexpr std::uint32_t kPreferredIo = 64 * 1024;  // each read or write is a message: not too small

void set_time(timespec& out, std::int64_t ns) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  auto seconds = ns / kSecond;
  auto rest = ns % kSecond;
  if (rest < 0) {
    --seconds;
    rest += kSecond;
  }
  out.tv_sec = seconds;
  out.tv_nsec = rest;
}

/// The years 1677 to 2262 can be kept; beyond them the nearest that can, as Linux has it.
std::int64_t from_time(const timespec& time) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  if (time.tv_sec > kMost / kSecond - 1) return kMost / kSecond * kSecond;
  if (time.tv_sec < -(kMost / kSecond)) return -(kMost / kSecond) * kSecond;
  return std::int64_t{time.tv_sec} * kSecond + time.tv_nsec;
}

fuse_entry_out to_entry(const FuseState& state, const wire::Attr& attr) {
  fuse_entry_out out{};
  auto seen = to_stat(attr);
  out.nodeid = state.node_of(attr.inode());
  out.generation = attr.generation();
  out.attr.ino = seen.st_ino;
  out.attr.size = static_cast<std::uint64_t>(seen.st_size);
  out.attr.blocks = static_cast<std::uint64_t>(seen.st_blocks);
  out.attr.atime = static_cast<std::uint64_t>(seen.st_atim.tv_sec);
  out.attr.atimensec = static_cast<std::uint32_t>(seen.st_atim.tv_nsec);
  out.attr.mtime = static_cast<std::uint64_t>(seen.st_mtim.tv_sec);
  out.attr.mtimensec = static_cast<std::uint32_t>(seen.st_mtim.tv_nsec);
  out.attr.ctime = static_cast<std::uint64_t>(seen.st_ctim.tv_sec);
  out.attr.ctimensec = static_cast<std::uint32_t>(seen.st_ctim.tv_nsec);
  out.attr.mode = seen.st_mode;
  out.attr.nlink = static_cast<std::uint32_t>(seen.st_nlink);
  out.attr.uid = seen.st_uid;
  out.attr.gid = seen.st_gid;
  out.attr.rdev = static_cast<std::uint32_t>(seen.st_rdev);
  out.attr.blksize = static_cast<std::uint32_t>(seen.st_blksize);
  return out;
}

fuse_entry_param to_entry_param(const FuseState& state, const wire::Attr& attr) {
  fuse_entry_param entry{};
  entry.ino = state.node_of(attr.inode());
  entry.generation = attr.generation();
  entry.attr = to_stat(attr);
  return entry;
}

FuseState& state_of(fuse_req_t request) {
  return *static_cast<FuseState*>(fuse_req_userdata(request));
}

// Linux 6.6; Debian 12's <linux/fuse.h> does not have it.
struct StatxTime {
  std::int64_t seconds;
  std::uint32_t nanoseconds;
  std::int32_t reserved;
};
struct StatxOut {
  std::uint64_t attr_valid;
  std::uint32_t attr_valid_nsec, flags;
  std::uint64_t spare[2];
  std::uint32_t mask, blksize;
  std::uint64_t attributes;
  std::uint32_t nlink, uid, gid;
  std::uint16_t mode, spare0;
  std::uint64_t ino, size, blocks, attributes_mask;
  StatxTime atime, btime, ctime, mtime;
  std::uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
  std::uint64_t spare2[14];
};
static_assert(sizeof(StatxOut) == 32 + 256);

StatxTime to_statx_time(std::int64_t ns) {
  timespec time{};
  set_time(time, ns);
  return {time.tv_sec, static_cast<std::uint32_t>(time.tv_nsec), 0};
}

}  // namespace

fuse_ino_t FuseState::node_of(std::uint64_t inode) const {
  auto found = lives.find(inode);
  return found == lives.end() ? inode : inode | found->second << kLifeShift;
}

InodeId FuseState::inode_of(fuse_ino_t node) {
  return InodeId{node & ((std::uint64_t{1} << kLifeShift) - 1)};
}

FuseState::RequestBuffer FuseState::RequestBuffer::made() {
  constexpr std::size_t kBeforeContent = sizeof(fuse_in_header) + sizeof(fuse_write_in);
  // libfuse reads up to a mebibyte of content and a page for the headers.
  RequestBuffer made;
  made.memory = Buffer{kMaxTransfer + 3 * Buffer::kAlignment};
  made.buffer.mem = made.memory.data() + Buffer::kAlignment - kBeforeContent;
  return made;
}

struct stat to_stat(const wire::Attr& attr) {
  struct stat out {};
  out.st_ino = attr.inode();
  out.st_mode = attr.mode();
  out.st_nlink = attr.nlink();
  out.st_uid = attr.uid();
  out.st_gid = attr.gid();
  out.st_rdev = attr.rdev();
  out.st_size = static_cast<off_t>(attr.size());
  out.st_blocks = static_cast<blkcnt_t>(attr.blocks());
  out.st_blksize = kPreferredIo;
  set_time(out.st_atim, attr.atime());
  set_time(out.st_mtim, attr.mtime());
  set_time(out.st_ctim, attr.ctime());
  return out;
}

void Reply::error(int number) && {
  if (!waits()) return;
  if (number == ESTALE) state_of(request()).second_walks.begins(fuse_req_ctx(request())->pid);
  fuse_reply_err(take(), number);
}

void Reply::entry(const wire::Attr& attr) && {
  if (!waits()) return;
  auto out = to_entry_param(state_of(request()), attr);
  fuse_reply_entry(take(), &out);
}

void Reply::statx(const wire::Attr& attr) && {
  auto seen = to_stat(attr);
  StatxOut out{};
  out.mask = STATX_BASIC_STATS | STATX_BTIME;
  out.blksize = static_cast<std::uint32_t>(seen.st_blksize);
  out.nlink = static_cast<std::uint32_t>(seen.st_nlink);
  out.uid = seen.st_uid;
  out.gid = seen.st_gid;
  out.mode = static_cast<std::uint16_t>(seen.st_mode);
  out.ino = seen.st_ino;
  out.size = attr.size();
  out.blocks = attr.blocks();
  out.atime = to_statx_time(attr.atime());
  out.btime = to_statx_time(attr.btime());
  out.ctime = to_statx_time(attr.ctime());
  out.mtime = to_statx_time(attr.mtime());
  out.rdev_major = major(seen.st_rdev);
  out.rdev_minor = minor(seen.st_rdev);
  if (waits()) fuse_reply_buf(take(), reinterpret_cast<const char*>(&out), sizeof out);
}

void Reply::attr(const wire::Attr& attr) && {
  auto seen = to_stat(attr);
  if (waits()) fuse_reply_attr(take(), &seen, 0);
}

bool Reply::opened(std::uint64_t handle, std::uint32_t open_flags) && {
  if (!waits()) return false;
  fuse_open_out out{};
  out.fh = handle;
  out.open_flags = open_flags;
  return fuse_reply_buf(take(), reinterpret_cast<const char*>(&out), sizeof out) != -ENOENT;
}

bool Reply::created(const wire::Attr& attr, std::uint64_t handle, std::uint32_t open_flags) && {
  if (!waits()) return false;
  struct {
    fuse_entry_out entry;
    fuse_open_out open;
  } out{};
  static_assert(sizeof out == sizeof(fuse_entry_out) + sizeof(fuse_open_out));
  out.entry = to_entry(state_of(request()), attr);
  out.open.fh = handle;
  out.open.open_flags = open_flags;
  return fuse_reply_buf(take(), reinterpret_cast<const char*>(&out), sizeof out) != -ENOENT;
}

void Reply::xattr(const std::string& value, std::size_t room) && {
  if (!waits()) return;
  if (room == 0)
    fuse_reply_xattr(take(), value.size());
  else if (value.size() > room)
    fuse_reply_err(take(), ERANGE);
  else
    fuse_reply_buf(take(), value.data(), value.size());
}

void Reply::statistics(const wire::FsStat& stat) && {
  struct statvfs out {};
  out.f_bsize = out.f_frsize = 4096;
  out.f_blocks = stat.total_blocks();
  out.f_bfree = out.f_bavail = stat.free_blocks();
  // Inodes cost space only: as many as there are blocks.
  out.f_files = stat.inodes() + stat.free_blocks();
  out.f_ffree = out.f_favail = stat.free_blocks();
  out.f_namemax = 255;
  if (waits()) fuse_reply_statfs(take(), &out);
}

namespace {

/// kLooks: also what changes nothing that others could have changed since, however late it lands.
constexpr bool kLooks = false, kChanges = true;

constexpr std::uint32_t kStatx = 52;  // Linux 6.6's opcode

/// For a request that may have to wait: it hears of interrupts.
Reply reply_to(fuse_req_t request, bool changes, bool any_signal = false) {
  auto owed = std::make_shared<Owed>(request, changes, any_signal);
  // The owed answer outlives libfuse's interest in the request, which ends with the answer.
  auto on_interrupt = [](fuse_req_t interrupted, void* data) {
    state_of(interrupted).on_interrupt(static_cast<Owed*>(data)->weak_from_this());
  };
  fuse_req_interrupt_func(request, on_interrupt, owed.get());
  return Reply{std::move(owed)};
}

pid_t thread_of(fuse_req_t request) { return fuse_req_ctx(request)->pid; }

Caller caller_of(fuse_req_t request) {
  const auto* context = fuse_req_ctx(request);
  return {context->uid, context->gid};
}

Mount::Handle handle_of(const fuse_file_info* file) { return Mount::Handle{file->fh}; }

bool unreachable(const Mount& mount) {
  auto mode = mount.state().mode;
  return mode == AccessMode::paused || mode == AccessMode::unavailable;
}

/// What a look-up of a name is answered with, where that was found.
Expected<wire::Attr> as_the_kernel_knows_it(FuseState& state, InodeId parent,
                                            const std::string& name, Expected<wire::Attr> found) {
  auto& directories = state.directories;
  auto known = directories.find(parent, name);
  if (found && S_ISDIR(found->mode())) {
    directories.learn(parent, name, InodeId{found->inode()}, *found);
    return found;
  }
  if (known.attr == nullptr) return found;
  auto failed = found ? 0 : found.error().to_errno();
  if (failed == EIO) return *known.attr;
  if (failed == 0 || failed == ENOENT || failed == ESTALE)
    directories.forget(std::array{known.inode});
  return found;
}

// --- One task a request that must wait ------------------------------------------------------

Task<void> lookup(FuseState& state, Reply reply, InodeId parent, std::string name) {
  auto thread = thread_of(reply.request());
  // "." and ".." are asked for by those who export the volume.
  if (name == "..") {
    auto listed = co_await state.mount->list(parent, 0, {.limit = 1});
    if (!listed) {
      std::move(reply).error(listed.error());
      co_return;
    }
    parent = InodeId{listed->parent()};
  }
  Expected<wire::Attr> found = std::errc::no_such_file_or_directory;
  if (name == "." || name == "..") {
    found = co_await state.mount->attr(parent);
    // A handle of what has been removed, even if somebody has it open.
    if (found && found->nlink() == 0) found = errno_error(ESTALE, "removed");
  } else {
    auto second = state.second_walks.under_way(thread);
    auto looking = second ? state.second_walks.lookup(thread, parent, name)
                          : state.mount->lookup(parent, name);
    found = co_await looking;
    found = as_the_kernel_knows_it(state, parent, name, std::move(found));
  }
  if (found)
    std::move(reply).entry(*found);
  else
    std::move(reply).error(found.error());
}

void answer_attr(FuseState& state, Reply reply, const Expected<wire::Attr>& attr,
                 bool statx = false) {
  if (!attr) return std::move(reply).error(attr.error());
  if (attr->inode() == raw(kRootInode)) state.root = *attr;
  if (statx)
    std::move(reply).statx(*attr);
  else
    std::move(reply).attr(*attr);
}

Task<void> get_attr(FuseState& state, Reply reply, InodeId inode, bool statx) {
  auto attr = co_await state.mount->attr(inode);
  if (!attr && attr.error().to_errno() == ESTALE)
    if (auto ghost = state.ghosts.find(raw(inode)); ghost != state.ghosts.end())
      attr = ghost->second;
  answer_attr(state, std::move(reply), attr, statx);
}

void remember_ghost(FuseState& state, const wire::Attr& gone) {
  if (gone.inode() == 0 || gone.nlink() != 0) return;
  if (state.ghosts.size() >= kMostGhosts) state.ghosts.erase(state.ghosts.begin());
  state.ghosts[gone.inode()] = gone;
}

Task<void> set_attr(FuseState& state, Reply reply, wire::SetAttr to,
                    std::optional<Mount::Handle> through) {
  auto attr = co_await state.mount->change(std::move(to), reply.interrupt(), through);
  answer_attr(state, std::move(reply), attr);
}

Task<void> read_link(FuseState& state, Reply reply, InodeId inode) {
  auto target = co_await state.mount->read_link(inode, state.access_times);
  if (target)
    std::move(reply).link_target(*target);
  else
    std::move(reply).error(target.error());
}

Task<void> make(FuseState& state, Reply reply, Caller caller, wire::Make what) {
  auto made = co_await state.mount->make(caller, std::move(what), reply.interrupt());
  if (made)
    std::move(reply).entry(*made);
  else
    std::move(reply).error(made.error());
}

Task<void> unlink(FuseState& state, Reply reply, InodeId parent, std::string name, bool directory) {
  auto result = co_await state.mount->unlink(parent, std::move(name), directory, reply.interrupt());
  if (result) remember_ghost(state, *result);
  std::move(reply).error(result ? 0 : result.error().to_errno());
}

Task<void> rename(FuseState& state, Reply reply, wire::Rename what) {
  auto result = co_await state.mount->rename(std::move(what), reply.interrupt());
  if (result) remember_ghost(state, *result);
  std::move(reply).error(result ? 0 : result.error().to_errno());
}

Task<void> link(FuseState& state, Reply reply, InodeId inode, InodeId parent, std::string name) {
  auto made = co_await state.mount->link(inode, parent, std::move(name), reply.interrupt());
  if (made)
    std::move(reply).entry(*made);
  else
    std::move(reply).error(made.error());
}

/// How the kernel does the I/O of what is opened with O_... `flags`. A first mapping waits in the
/// kernel, with the memory of its process locked, for parallel writes of the file that are under
/// way; one of the same process whose buffer is not in memory yet waits for that memory: for ever,
/// beyond SIGKILL. So where files are mapped shared, only who asked for direct I/O writes in
/// parallel, as virtual machines do, which map nothing.
std::uint32_t open_flags_for(const FuseState& state, int flags) {
  bool mapped = (state.taken & FuseState::kDirectIoAllowMmap) != 0;
  bool parallel = !mapped || (flags & O_DIRECT) != 0;
  return FOPEN_DIRECT_IO | (parallel ? kParallelDirectWrites : 0);
}

Task<void> open(FuseState& state, Reply reply, fuse_ino_t node, int flags,
                Mount::OpenOptions options) {
  auto thread = thread_of(reply.request());
  state.second_walks.waits(thread);
  auto opened = co_await state.mount->open(FuseState::inode_of(node), options, reply.interrupt());
  state.second_walks.ends(thread);
  if (!opened) {
    std::move(reply).error(opened.error());
    co_return;
  }
  // Its session ended meanwhile: what old mappings of it still store must not find a good handle.
  if (state.is_past(node)) {
    std::move(reply).error(ESTALE);
    co_await state.mount->close(opened->handle);
    co_return;
  }
  if (!std::move(reply).opened(raw(opened->handle), open_flags_for(state, flags)))
    co_await state.mount->close(opened->handle);
}

/// Whether the kernel would let `caller` open it so, as its owner: neither groups nor an access
/// control list have a say then.
bool owner_may_open(const wire::Attr& attr, const Caller& caller, int flags) {
  if (!S_ISREG(attr.mode()) || attr.uid() != caller.uid) return false;
  int how = flags & O_ACCMODE;
  bool reads = how != O_WRONLY;
  bool writes = how != O_RDONLY || (flags & O_TRUNC) != 0;
  return (!reads || (attr.mode() & S_IRUSR) != 0) && (!writes || (attr.mode() & S_IWUSR) != 0);
}

/// The kernel sends CREATE for a name that it did not find; another node may have made it since.
/// Without O_EXCL it is then an open of that, but the kernel, to which it is the program's own new
/// file, would not check whether the program may, nor what it is. ESTALE makes it walk the path
/// once more, and find and check it. A second time it would tell the program. So that programs
/// which make and remove one name do not see that, their owner's files are opened here, and for a
/// name that went and came again it is tried until it is gone.
Task<void> create(FuseState& state, Reply reply, Caller caller, wire::Make what, int flags,
                  Mount::OpenOptions options) {
  wire::Make again = what;
  auto thread = thread_of(reply.request());
  int tries = state.second_walks.waits(thread) ? kMakeTries : 0;
  auto made = co_await state.mount->create(caller, std::move(what), options, reply.interrupt());
  while (!made && made.error() == std::errc::file_exists && (flags & O_EXCL) == 0) {
    auto found = co_await state.mount->lookup(InodeId{again.parent()}, again.name());
    if (found && owner_may_open(*found, caller, flags)) {
      auto how = options;
      how.truncate = (flags & O_TRUNC) != 0;
      made = co_await state.mount->open(InodeId{found->inode()}, how, reply.interrupt());
      if (made || made.error().to_errno() != ESTALE) break;
    } else if (found && tries-- == 0) {
      made = errno_error(ESTALE, "create");
      break;
    } else if (found) {
      // Others make and remove it all the time: it will be gone in a moment.
    } else if (!(found.error() == std::errc::no_such_file_or_directory)) {
      made = found.error();
      break;
    }
    // Removed since.
    wire::Make once_more = again;
    made = co_await state.mount->create(caller, std::move(once_more), options, reply.interrupt());
  }
  // A new coordinator that answered from its predecessor's notes may have freed it before it heard
  // that somebody has it open. Nobody has seen it, so another one will do.
  if (!made && again.nameless() && made.error().to_errno() == ESTALE)
    made = co_await state.mount->create(caller, std::move(again), options, reply.interrupt());
  state.second_walks.ends(thread);
  if (!made) {
    std::move(reply).error(made.error());
    co_return;
  }
  if (!std::move(reply).created(made->attr, raw(made->handle), open_flags_for(state, flags)))
    co_await state.mount->close(made->handle);
}

Task<void> release(FuseState& state, Reply reply, Mount::Handle handle) {
  co_await state.mount->close(handle);
  std::move(reply).ok();
}

Task<void> read(FuseState& state, Reply reply, Mount::Handle handle, std::uint64_t offset,
                std::uint32_t length) {
  auto content = co_await state.mount->read(handle, offset, length);
  if (content)
    std::move(reply).bytes(content->buffer.span().subspan(content->skip, content->length));
  else
    std::move(reply).error(content.error());
}

Task<void> read_pages(FuseState& state, Reply reply, Mount::Handle handle, std::uint64_t offset,
                      std::uint32_t length) {
  auto content = co_await state.mount->read_pages(handle, offset, length, reply.interrupt());
  if (content)
    std::move(reply).bytes(content->buffer.span().subspan(content->skip, content->length));
  else
    std::move(reply).error(content.error());
}

Task<void> write(FuseState& state, Reply reply, Mount::Handle handle, std::uint64_t offset,
                 std::span<const std::byte> data, Mount::WriteOptions options,
                 FuseState::RequestBuffer owner) {
  auto written = co_await state.mount->write(handle, offset, data, options, reply.interrupt());
  if (written)
    std::move(reply).written(*written);
  else
    std::move(reply).error(written.error());
  if (owner.buffer.mem == nullptr) co_return;  // one of its size
  --state.kept;
  if (state.spare.size() < kSpareBuffers) state.spare.push_back(std::move(owner));
}

Task<void> sync(FuseState& state, Reply reply, Mount::Handle handle, bool content_only) {
  auto result = co_await state.mount->sync(handle, content_only, reply.interrupt());
  std::move(reply).result(result);
}

Task<void> allocate(FuseState& state, Reply reply, Mount::Handle handle, wire::Allocate what) {
  auto result = co_await state.mount->allocate(handle, std::move(what), reply.interrupt());
  std::move(reply).result(result);
}

Task<void> clone(FuseState& state, Reply reply, Mount::CloneWish what) {
  auto cloned = co_await state.mount->clone(what, reply.interrupt());
  if (cloned)
    std::move(reply).written(*cloned);
  else
    std::move(reply).error(cloned.error());
}

Task<void> seek(FuseState& state, Reply reply, Mount::Handle handle, std::uint64_t offset,
                std::uint32_t whence) {
  auto position = co_await state.mount->seek(handle, offset, whence);
  if (position)
    std::move(reply).position(*position);
  else
    std::move(reply).error(position.error());
}

Task<void> statistics(FuseState& state, Reply reply) {
  auto stat = co_await state.mount->statistics();
  if (!stat) {
    std::move(reply).error(stat.error());
    co_return;
  }
  state.statistics = *stat;
  std::move(reply).statistics(*stat);
}

Task<void> get_xattr(FuseState& state, Reply reply, InodeId inode, std::string name,
                     std::size_t room) {
  auto value = co_await state.mount->xattr(inode, std::move(name));
  if (value)
    std::move(reply).xattr(*value, room);
  else
    std::move(reply).error(value.error());
}

/// `trusted` ones are shown to those who may read them.
std::string visible(std::string_view names, bool privileged) {
  std::string seen;
  while (!names.empty()) {
    auto one = names.substr(0, names.find('\0') + 1);
    names.remove_prefix(one.size());
    if (privileged || !one.starts_with("trusted.")) seen += one;
  }
  return seen;
}

Task<void> list_xattrs(FuseState& state, Reply reply, InodeId inode, std::size_t room,
                       bool privileged) {
  auto names = co_await state.mount->list_xattrs(inode);
  if (names)
    std::move(reply).xattr(visible(*names, privileged), room);
  else
    std::move(reply).error(names.error());
}

Task<void> set_xattr(FuseState& state, Reply reply, wire::SetXattr what) {
  auto result = co_await state.mount->set_xattr(std::move(what), reply.interrupt());
  std::move(reply).result(result);
}

Task<void> remove_xattr(FuseState& state, Reply reply, InodeId inode, std::string name) {
  auto result = co_await state.mount->remove_xattr(inode, std::move(name), reply.interrupt());
  std::move(reply).result(result);
}

Task<void> set_lock(FuseState& state, Reply reply, Mount::Handle handle, Mount::LockWish wish) {
  auto result = co_await state.mount->lock(handle, wish, reply.interrupt());
  std::move(reply).result(result);
}

Task<void> unlock(FuseState& state, Reply reply, Mount::Handle handle, Mount::LockWish wish) {
  auto result = co_await state.mount->unlock(handle, wish);
  std::move(reply).result(result);
}

Task<void> test_lock(FuseState& state, Reply reply, Mount::Handle handle, Mount::LockWish wish) {
  auto found = co_await state.mount->test_lock(handle, wish);
  if (!found) {
    std::move(reply).error(found.error());
    co_return;
  }
  struct flock lock {};
  lock.l_whence = SEEK_SET;
  lock.l_type = F_UNLCK;
  if (const auto& held = *found) {
    lock.l_type = held->type == LockType::read ? F_RDLCK : F_WRLCK;
    lock.l_start = static_cast<off_t>(held->range.first);
    if (held->range.last != LockRange::kLast)
      lock.l_len = static_cast<off_t>(held->range.last - held->range.first + 1);
    lock.l_pid = static_cast<pid_t>(held->pid);
  }
  std::move(reply).lock(lock);
}

Task<void> flush(FuseState& state, Reply reply, Mount::Handle handle, std::uint64_t owner) {
  co_await state.mount->flush(handle, owner);
  std::move(reply).ok();
}

/// Positions in a directory, as programs see them: 0 is before ".", 1 before "..", and after an
/// entry with cookie c it is c + 2. So they hold for ever, like the cookies.
Task<void> list(FuseState& state, Reply reply, InodeId directory, std::uint64_t position,
                std::size_t room) {
  constexpr std::uint32_t kMostEntries = 1024;
  auto dots = (position < 1 ? protocol::room_of_entry(1) : 0) +
              (position < 2 ? protocol::room_of_entry(2) : 0);
  Mount::ListOptions options;
  options.room = static_cast<std::uint32_t>(std::max(room, dots + 1) - dots);
  options.limit = std::clamp<std::uint32_t>(
      options.room / static_cast<std::uint32_t>(protocol::room_of_entry(1)), 1, kMostEntries);
  options.accessed = position == 0 && state.access_times;
  auto listed = co_await state.mount->list(directory, position <= 2 ? 0 : position - 2, options);
  if (!listed) {
    std::move(reply).error(listed.error());
    co_return;
  }
  if (!reply.waits()) co_return;
  Buffer out{room};
  std::size_t used = 0;
  auto add = [&](const char* name, const struct stat& attr, std::uint64_t next) {
    auto* at = reinterpret_cast<char*>(out.data()) + used;
    auto size =
        fuse_add_direntry(reply.request(), at, room - used, name, &attr, static_cast<off_t>(next));
    if (size > room - used) return false;
    used += size;
    return true;
  };
  struct stat dot {};
  dot.st_mode = S_IFDIR;
  dot.st_ino = raw(directory);
  bool more = position > 0 || add(".", dot, 1);
  dot.st_ino = listed->parent() != 0 ? listed->parent() : raw(directory);
  more = more && (position > 1 || add("..", dot, 2));
  for (int i = 0; more && i < listed->entries_size(); ++i) {
    const auto& entry = listed->entries(i);
    more = add(entry.name().c_str(), to_stat(entry.attr()), entry.cookie() + 2);
  }
  std::move(reply).bytes(out.span().first(used));
}

// --- What libfuse calls -----------------------------------------------------------------------

void op_init(void*, fuse_conn_info* connection) {
  auto want = [&](unsigned capability, bool wanted) {
    if (wanted && (connection->capable & capability) != 0)
      connection->want |= capability;
    else
      connection->want &= ~capability;
  };
  want(FUSE_CAP_ATOMIC_O_TRUNC, true);
  want(FUSE_CAP_PARALLEL_DIROPS, true);
  want(FUSE_CAP_ASYNC_READ, true);
  want(FUSE_CAP_ASYNC_DIO, true);
  want(FUSE_CAP_EXPORT_SUPPORT, true);
  // Permissions of what is made follow the directory's default ACL, or else the umask.
  want(FUSE_CAP_DONT_MASK, true);
  want(FUSE_CAP_POSIX_ACL, true);
  // Pages go when they are recalled: times that change say nothing more.
  want(FUSE_CAP_AUTO_INVAL_DATA, false);
  // It would own sizes and times, and its dirty pages would survive a change of mode.
  want(FUSE_CAP_WRITEBACK_CACHE, false);
  // Locks hold on all nodes.
  want(FUSE_CAP_POSIX_LOCKS, true);
  want(FUSE_CAP_FLOCK_LOCKS, true);
  // Content is taken from the request's own buffer.
  want(FUSE_CAP_SPLICE_READ, false);
  want(FUSE_CAP_SPLICE_WRITE, false);
  want(FUSE_CAP_SPLICE_MOVE, false);
  connection->max_write = kMaxTransfer;
  connection->max_readahead = kMaxTransfer;
  connection->max_background = 256;
  connection->congestion_threshold = 192;
  connection->time_gran = 1;
}

void op_destroy(void* userdata) {
  auto& state = *static_cast<FuseState*>(userdata);
  if (state.on_destroy) state.on_destroy();
}

void op_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  auto& state = state_of(request);
  // By a handle of a former life: the kernel takes no other node id for an answer.
  if (state.is_past(parent)) return Reply{request}.error(ESTALE);
  state.requests.spawn(lookup(state, reply_to(request, kLooks), FuseState::inode_of(parent), name));
}

void op_forget(fuse_req_t request, fuse_ino_t node, std::uint64_t) {
  state_of(request).ghosts.erase(raw(FuseState::inode_of(node)));
  Reply{request}.none();
}

void op_forget_multi(fuse_req_t request, std::size_t count, fuse_forget_data* forgets) {
  auto& state = state_of(request);
  for (const auto& each : std::span{forgets, count})
    state.ghosts.erase(raw(FuseState::inode_of(each.ino)));
  Reply{request}.none();
}

void op_getattr(fuse_req_t request, fuse_ino_t node, fuse_file_info*) {
  auto& state = state_of(request);
  auto inode = FuseState::inode_of(node);
  bool statx = state.opcode == kStatx;
  if (inode == kRootInode && state.root && unreachable(*state.mount)) {
    wire::Attr known = *state.root;
    return answer_attr(state, Reply{request}, known, statx);
  }
  state.requests.spawn(get_attr(state, reply_to(request, kLooks), inode, statx));
}

/// The body of the request, as the kernel sent it.
template <typename T>
T body_of(const FuseState& state) {
  T body{};
  std::memcpy(&body, static_cast<const char*>(state.current.buffer.mem) + sizeof(fuse_in_header),
              sizeof body);
  return body;
}

void op_setattr(fuse_req_t request, fuse_ino_t node, struct stat* to, int set,
                fuse_file_info* file) {
  auto& state = state_of(request);
  // What a program opened under a former session, it cannot change any more.
  if (state.is_past(node) && (set & FUSE_SET_ATTR_SIZE) != 0) return Reply{request}.error(EIO);
  wire::SetAttr change;
  change.set_inode(raw(FuseState::inode_of(node)));
  change.set_drop_set_id((body_of<fuse_setattr_in>(state).valid & FATTR_KILL_SUIDGID) != 0);
  if (set & FUSE_SET_ATTR_MODE) change.set_mode(to->st_mode & 07777);
  if (set & FUSE_SET_ATTR_UID) change.set_uid(to->st_uid);
  if (set & FUSE_SET_ATTR_GID) change.set_gid(to->st_gid);
  if (set & FUSE_SET_ATTR_SIZE) change.set_size(static_cast<std::uint64_t>(to->st_size));
  if (set & FUSE_SET_ATTR_ATIME_NOW)
    change.set_atime_now(true);
  else if (set & FUSE_SET_ATTR_ATIME)
    change.set_atime(from_time(to->st_atim));
  if (set & FUSE_SET_ATTR_MTIME_NOW)
    change.set_mtime_now(true);
  else if (set & FUSE_SET_ATTR_MTIME)
    change.set_mtime(from_time(to->st_mtim));
  std::optional<Mount::Handle> through;
  if (file != nullptr) through = handle_of(file);
  state.requests.spawn(set_attr(state, reply_to(request, kChanges), std::move(change), through));
}

void op_readlink(fuse_req_t request, fuse_ino_t node) {
  auto& state = state_of(request);
  state.requests.spawn(read_link(state, reply_to(request, kLooks), FuseState::inode_of(node)));
}

wire::Make what_to_make(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  wire::Make what;
  what.set_umask(fuse_req_ctx(request)->umask & 0777);
  what.set_parent(parent);
  what.set_name(name);
  what.set_mode(mode);
  return what;
}

void op_mknod(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
  auto& state = state_of(request);
  auto what = what_to_make(request, parent, name, mode);
  what.set_rdev(device);
  state.requests.spawn(
      make(state, reply_to(request, kChanges), caller_of(request), std::move(what)));
}

void op_mkdir(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  auto& state = state_of(request);
  auto what = what_to_make(request, parent, name, S_IFDIR | (mode & 07777));
  state.requests.spawn(
      make(state, reply_to(request, kChanges), caller_of(request), std::move(what)));
}

void op_symlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
  auto& state = state_of(request);
  auto what = what_to_make(request, parent, name, S_IFLNK | 0777);
  what.set_target(target);
  state.requests.spawn(
      make(state, reply_to(request, kChanges), caller_of(request), std::move(what)));
}

void op_unlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
  auto& state = state_of(request);
  state.requests.spawn(unlink(state, reply_to(request, kChanges), InodeId{parent}, name, false));
}

void op_rmdir(fuse_req_t request, fuse_ino_t parent, const char* name) {
  auto& state = state_of(request);
  state.requests.spawn(unlink(state, reply_to(request, kChanges), InodeId{parent}, name, true));
}

void op_rename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
               const char* new_name, unsigned flags) {
  auto& state = state_of(request);
  wire::Rename what;
  what.set_parent(parent);
  what.set_name(name);
  what.set_new_parent(new_parent);
  what.set_new_name(new_name);
  what.set_flags(flags);
  state.requests.spawn(rename(state, reply_to(request, kChanges), std::move(what)));
}

void op_link(fuse_req_t request, fuse_ino_t node, fuse_ino_t parent, const char* name) {
  auto& state = state_of(request);
  state.requests.spawn(
      link(state, reply_to(request, kChanges), FuseState::inode_of(node), InodeId{parent}, name));
}

Mount::OpenOptions open_options(const FuseState& state, int flags, std::uint32_t open_flags) {
  Mount::OpenOptions options;
  options.drop_set_id = (open_flags & FUSE_OPEN_KILL_SUIDGID) != 0;
  options.accessed = state.access_times && (flags & O_NOATIME) == 0;
  options.writes = (flags & O_ACCMODE) != O_RDONLY;
  return options;
}

void op_open(fuse_req_t request, fuse_ino_t node, fuse_file_info* file) {
  auto& state = state_of(request);
  if (state.is_past(node)) return Reply{request}.error(ESTALE);
  auto options = open_options(state, file->flags, body_of<fuse_open_in>(state).open_flags);
  options.truncate = (file->flags & O_TRUNC) != 0;
  state.requests.spawn(
      open(state, reply_to(request, options.truncate), node, file->flags, options));
}

void op_create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
               fuse_file_info* file) {
  auto& state = state_of(request);
  auto what = what_to_make(request, parent, name, S_IFREG | (mode & 07777));
  int flags = file->flags;
  if (state.opcode == FUSE_TMPFILE) {
    what.set_nameless(true);
    what.clear_name();
    flags |= O_EXCL;
  }
  auto options = open_options(state, flags, body_of<fuse_create_in>(state).open_flags);
  state.requests.spawn(create(state, reply_to(request, kChanges), caller_of(request),
                              std::move(what), flags, options));
}

void op_read(fuse_req_t request, fuse_ino_t, std::size_t size, off_t offset, fuse_file_info* file) {
  auto& state = state_of(request);
  auto length = static_cast<std::uint32_t>(std::min(size, kMaxTransfer));
  // A program's own read says whose locks it goes by; the page cache reads for nobody.
  if ((body_of<fuse_read_in>(state).read_flags & FUSE_READ_LOCKOWNER) == 0)
    return state.requests.spawn(read_pages(state, reply_to(request, kLooks), handle_of(file),
                                           static_cast<std::uint64_t>(offset), length));
  state.requests.spawn(read(state, reply_to(request, kLooks), handle_of(file),
                            static_cast<std::uint64_t>(offset), length));
}

void op_write(fuse_req_t request, fuse_ino_t, const char* data, std::size_t size, off_t offset,
              fuse_file_info* file) {
  auto& state = state_of(request);
  // libfuse does not hand on the flags that only the request itself tells.
  auto itself = body_of<fuse_write_in>(state);
  Mount::WriteOptions options;
  options.append = (file->flags & O_APPEND) != 0;
  options.durable = (file->flags & (O_SYNC | O_DSYNC)) != 0;
  options.drop_set_id = (itself.write_flags & kKillSetId) != 0;
  options.pages = (itself.write_flags & FUSE_WRITE_CACHE) != 0;
  if (options.pages) options.append = false;
  auto content = std::as_bytes(std::span{data, size});
  FuseState::RequestBuffer owner;  // the content lies in it
  if (size <= kMovedUpTo && state.kept >= kMostKept) {
    owner.memory = Buffer::copy_of(content);
    content = owner.memory.span();
  } else {
    owner = std::move(state.current);
    ++state.kept;
  }
  state.requests.spawn(write(state, reply_to(request, kChanges), handle_of(file),
                             static_cast<std::uint64_t>(offset), content, options,
                             std::move(owner)));
}

// Nothing is held back until close: what write() answered, others see. But locks go.
void op_flush(fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
  auto& state = state_of(request);
  state.requests.spawn(flush(state, reply_to(request, kLooks), handle_of(file), file->lock_owner));
}

std::uint32_t pid_of_lock(const FuseState& state) {
  // libfuse does not hand it on to flock.
  fuse_lk_in itself{};
  std::memcpy(&itself, static_cast<const char*>(state.current.buffer.mem) + sizeof(fuse_in_header),
              sizeof itself);
  return itself.lk.pid;
}

Mount::LockWish wish_of(const fuse_file_info* file, const struct flock* lock) {
  Mount::LockWish wish;
  wish.kind = LockKind::bytes;
  wish.owner = file->lock_owner;
  wish.pid = static_cast<std::uint32_t>(lock->l_pid);
  wish.range.first = static_cast<std::uint64_t>(lock->l_start);
  if (lock->l_len > 0)
    wish.range.last = wish.range.first + static_cast<std::uint64_t>(lock->l_len) - 1;
  wish.type = lock->l_type == F_RDLCK ? LockType::read : LockType::write;
  return wish;
}

void op_getlk(fuse_req_t request, fuse_ino_t, fuse_file_info* file, struct flock* lock) {
  auto& state = state_of(request);
  state.requests.spawn(
      test_lock(state, reply_to(request, kLooks), handle_of(file), wish_of(file, lock)));
}

// A lock that comes too late is nobody's, and given back (HeldLocks).
void op_setlk(fuse_req_t request, fuse_ino_t, fuse_file_info* file, struct flock* lock, int wait) {
  auto& state = state_of(request);
  auto wish = wish_of(file, lock);
  if (lock->l_type == F_UNLCK)
    return state.requests.spawn(unlock(state, reply_to(request, kLooks), handle_of(file), wish));
  wish.wait = wait != 0;
  state.requests.spawn(
      set_lock(state, reply_to(request, kLooks, wish.wait), handle_of(file), wish));
}

void op_flock(fuse_req_t request, fuse_ino_t, fuse_file_info* file, int operation) {
  auto& state = state_of(request);
  Mount::LockWish wish;
  wish.kind = LockKind::whole_file;
  wish.owner = file->lock_owner;
  wish.pid = pid_of_lock(state);
  if ((operation & LOCK_UN) != 0)
    return state.requests.spawn(unlock(state, reply_to(request, kLooks), handle_of(file), wish));
  wish.type = (operation & LOCK_SH) != 0 ? LockType::read : LockType::write;
  wish.wait = (operation & LOCK_NB) == 0;
  state.requests.spawn(
      set_lock(state, reply_to(request, kLooks, wish.wait), handle_of(file), wish));
}

void op_release(fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
  auto& state = state_of(request);
  state.requests.spawn(release(state, reply_to(request, kLooks), handle_of(file)));
}

void op_fsync(fuse_req_t request, fuse_ino_t, int content_only, fuse_file_info* file) {
  auto& state = state_of(request);
  state.requests.spawn(sync(state, reply_to(request, kLooks), handle_of(file), content_only != 0));
}

void op_opendir(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
  fuse_open_out out{};
  fuse_reply_buf(request, reinterpret_cast<const char*>(&out), sizeof out);
}

void op_readdir(fuse_req_t request, fuse_ino_t inode, std::size_t size, off_t offset,
                fuse_file_info*) {
  auto& state = state_of(request);
  state.requests.spawn(list(state, reply_to(request, kLooks), InodeId{inode},
                            static_cast<std::uint64_t>(offset), std::min(size, kMaxTransfer)));
}

void op_releasedir(fuse_req_t request, fuse_ino_t, fuse_file_info*) { Reply{request}.ok(); }

// A change of names is answered when it is durable.
void op_fsyncdir(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) { Reply{request}.ok(); }

void op_ioctl(fuse_req_t request, fuse_ino_t, unsigned, void*, fuse_file_info*, unsigned,
              const void*, std::size_t, std::size_t) {
  Reply{request}.error(ENOTTY);
}

void op_statfs(fuse_req_t request, fuse_ino_t) {
  auto& state = state_of(request);
  if (state.statistics && unreachable(*state.mount))
    return Reply{request}.statistics(*state.statistics);
  state.requests.spawn(statistics(state, reply_to(request, kLooks)));
}

/// The names that Linux knows; others it refuses, and a name must have something behind its prefix.
int trouble_with_name(std::string_view name) {
  if (name == "system.posix_acl_access" || name == "system.posix_acl_default") return 0;
  for (std::string_view prefix : {"user.", "trusted.", "security."})
    if (name.starts_with(prefix)) return name == prefix ? EINVAL : 0;
  return EOPNOTSUPP;
}

void op_setxattr(fuse_req_t request, fuse_ino_t node, const char* name, const char* value,
                 std::size_t size, int flags) {
  auto& state = state_of(request);
  if (int trouble = trouble_with_name(name); trouble != 0) return Reply{request}.error(trouble);
  wire::SetXattr what;
  what.set_inode(raw(FuseState::inode_of(node)));
  what.set_name(name);
  what.set_value(value, size);
  what.set_flags(static_cast<std::uint32_t>(flags));
  what.set_drop_set_gid((state.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID) != 0);
  state.requests.spawn(set_xattr(state, reply_to(request, kChanges), std::move(what)));
}

void op_getxattr(fuse_req_t request, fuse_ino_t node, const char* name, std::size_t size) {
  auto& state = state_of(request);
  if (int trouble = trouble_with_name(name); trouble != 0) return Reply{request}.error(trouble);
  state.requests.spawn(
      get_xattr(state, reply_to(request, kLooks), FuseState::inode_of(node), name, size));
}

void op_listxattr(fuse_req_t request, fuse_ino_t node, std::size_t size) {
  auto& state = state_of(request);
  bool privileged = fuse_req_ctx(request)->uid == 0;
  state.requests.spawn(
      list_xattrs(state, reply_to(request, kLooks), FuseState::inode_of(node), size, privileged));
}

void op_removexattr(fuse_req_t request, fuse_ino_t node, const char* name) {
  auto& state = state_of(request);
  if (int trouble = trouble_with_name(name); trouble != 0) return Reply{request}.error(trouble);
  state.requests.spawn(
      remove_xattr(state, reply_to(request, kChanges), FuseState::inode_of(node), name));
}

void op_fallocate(fuse_req_t request, fuse_ino_t node, int mode, off_t offset, off_t length,
                  fuse_file_info* file) {
  auto& state = state_of(request);
  wire::Allocate what;
  // The kernel does not say whether the program may keep the bits: root may.
  what.set_drop_set_id(fuse_req_ctx(request)->uid != 0);
  what.set_inode(raw(FuseState::inode_of(node)));
  what.set_offset(static_cast<std::uint64_t>(offset));
  what.set_length(static_cast<std::uint64_t>(length));
  what.set_mode(static_cast<std::uint32_t>(mode));
  state.requests.spawn(
      allocate(state, reply_to(request, kChanges), handle_of(file), std::move(what)));
}

/// EOPNOTSUPP, and the kernel copies by itself, this once.
void op_copy_file_range(fuse_req_t request, fuse_ino_t, off_t offset, fuse_file_info* file,
                        fuse_ino_t, off_t into_offset, fuse_file_info* into, std::size_t length,
                        int) {
  auto& state = state_of(request);
  Mount::CloneWish what;
  what.from = handle_of(file);
  what.into = handle_of(into);
  what.offset = static_cast<std::uint64_t>(offset);
  what.into_offset = static_cast<std::uint64_t>(into_offset);
  // So much can be answered.
  what.length = std::min(length, kMaxCloned);
  what.drop_set_id = fuse_req_ctx(request)->uid != 0;  // as for fallocate
  state.requests.spawn(clone(state, reply_to(request, kChanges), what));
}

void op_lseek(fuse_req_t request, fuse_ino_t, off_t offset, int whence, fuse_file_info* file) {
  auto& state = state_of(request);
  state.requests.spawn(seek(state, reply_to(request, kLooks), handle_of(file),
                            static_cast<std::uint64_t>(offset),
                            static_cast<std::uint32_t>(whence)));
}

}  // namespace

const fuse_lowlevel_ops& fuse_ops() {
  static const fuse_lowlevel_ops ops = [] {
    fuse_lowlevel_ops made{};
    made.init = op_init;
    made.destroy = op_destroy;
    made.lookup = op_lookup;
    made.forget = op_forget;
    made.forget_multi = op_forget_multi;
    made.getattr = op_getattr;
    made.setattr = op_setattr;
    made.readlink = op_readlink;
    made.mknod = op_mknod;
    made.mkdir = op_mkdir;
    made.symlink = op_symlink;
    made.unlink = op_unlink;
    made.rmdir = op_rmdir;
    made.rename = op_rename;
    made.link = op_link;
    made.open = op_open;
    made.create = op_create;
    made.read = op_read;
    made.write = op_write;
    made.flush = op_flush;
    made.getlk = op_getlk;
    made.setlk = op_setlk;
    made.flock = op_flock;
    made.release = op_release;
    made.fsync = op_fsync;
    made.opendir = op_opendir;
    // No readdirplus: names are looked up again before each use, so that its look-ups would be made
    // for nothing.
    made.readdir = op_readdir;
    made.releasedir = op_releasedir;
    made.fsyncdir = op_fsyncdir;
    made.statfs = op_statfs;
    made.setxattr = op_setxattr;
    made.getxattr = op_getxattr;
    made.listxattr = op_listxattr;
    made.removexattr = op_removexattr;
    made.fallocate = op_fallocate;
    made.lseek = op_lseek;
    made.copy_file_range = op_copy_file_range;
    made.ioctl = op_ioctl;
    return made;
  }();
  return ops;
}

}  // namespace csv
