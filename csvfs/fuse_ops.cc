#include "csvfs/fuse_ops.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/file.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace csv {
namespace {

// The kernel's, newer than Debian 12's <linux/fuse.h>.
constexpr std::uint32_t kParallelDirectWrites = 1u << 6;
constexpr std::uint32_t kOpenFlags = FOPEN_DIRECT_IO | kParallelDirectWrites;
constexpr std::size_t kMaxTransfer = 1 << 20;
constexpr std::size_t kSpareBuffers = 32;
constexpr std::uint32_t kKillSetId = 1u << 2;      // of fuse_write_in.write_flags
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

std::int64_t from_time(const timespec& time) {
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

fuse_entry_out to_entry(const wire::Attr& attr) {
  fuse_entry_out out{};
  auto seen = to_stat(attr);
  out.nodeid = attr.inode();
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

fuse_entry_param to_entry_param(const wire::Attr& attr) {
  fuse_entry_param entry{};
  entry.ino = attr.inode();
  entry.generation = attr.generation();
  entry.attr = to_stat(attr);
  return entry;
}

}  // namespace

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

void Reply::entry(const wire::Attr& attr) && {
  auto out = to_entry_param(attr);
  if (waits()) fuse_reply_entry(take(), &out);
}

void Reply::attr(const wire::Attr& attr) && {
  auto seen = to_stat(attr);
  if (waits()) fuse_reply_attr(take(), &seen, 0);
}

bool Reply::opened(std::uint64_t handle) && {
  if (!waits()) return false;
  fuse_open_out out{};
  out.fh = handle;
  out.open_flags = kOpenFlags;
  return fuse_reply_buf(take(), reinterpret_cast<const char*>(&out), sizeof out) != -ENOENT;
}

bool Reply::created(const wire::Attr& attr, std::uint64_t handle) && {
  if (!waits()) return false;
  struct {
    fuse_entry_out entry;
    fuse_open_out open;
  } out{};
  static_assert(sizeof out == sizeof(fuse_entry_out) + sizeof(fuse_open_out));
  out.entry = to_entry(attr);
  out.open.fh = handle;
  out.open.open_flags = kOpenFlags;
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

FuseState& state_of(fuse_req_t request) {
  return *static_cast<FuseState*>(fuse_req_userdata(request));
}

constexpr bool kLooks = false, kChanges = true;

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

Caller caller_of(fuse_req_t request) {
  const auto* context = fuse_req_ctx(request);
  return {context->uid, context->gid};
}

Mount::Handle handle_of(const fuse_file_info* file) { return Mount::Handle{file->fh}; }

bool unreachable(const Mount& mount) {
  auto mode = mount.state().mode;
  return mode == AccessMode::paused || mode == AccessMode::unavailable;
}

// --- One task a request that must wait ------------------------------------------------------

Task<void> lookup(FuseState& state, Reply reply, InodeId parent, std::string name) {
  // "." and ".." are asked for by those who export the volume.
  if (name == "..") {
    auto listed = co_await state.mount->list(parent, 0, 1);
    if (!listed) {
      std::move(reply).error(listed.error());
      co_return;
    }
    parent = InodeId{listed->parent()};
  }
  Expected<wire::Attr> found = std::errc::no_such_file_or_directory;
  if (name == "." || name == "..")
    found = co_await state.mount->attr(parent);
  else
    found = co_await state.mount->lookup(parent, std::move(name));
  if (found)
    std::move(reply).entry(*found);
  else
    std::move(reply).error(found.error());
}

void answer_attr(FuseState& state, Reply reply, const Expected<wire::Attr>& attr) {
  if (!attr) return std::move(reply).error(attr.error());
  if (attr->inode() == raw(kRootInode)) state.root = *attr;
  std::move(reply).attr(*attr);
}

Task<void> get_attr(FuseState& state, Reply reply, InodeId inode) {
  auto attr = co_await state.mount->attr(inode);
  answer_attr(state, std::move(reply), attr);
}

Task<void> set_attr(FuseState& state, Reply reply, wire::SetAttr to,
                    std::optional<Mount::Handle> through) {
  auto attr = co_await state.mount->change(std::move(to), reply.interrupt(), through);
  answer_attr(state, std::move(reply), attr);
}

Task<void> read_link(FuseState& state, Reply reply, InodeId inode) {
  auto target = co_await state.mount->read_link(inode);
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
  std::move(reply).result(result);
}

Task<void> rename(FuseState& state, Reply reply, wire::Rename what) {
  auto result = co_await state.mount->rename(std::move(what), reply.interrupt());
  std::move(reply).result(result);
}

Task<void> link(FuseState& state, Reply reply, InodeId inode, InodeId parent, std::string name) {
  auto made = co_await state.mount->link(inode, parent, std::move(name), reply.interrupt());
  if (made)
    std::move(reply).entry(*made);
  else
    std::move(reply).error(made.error());
}

Task<void> close(FuseState& state, Mount::Handle handle) {
  state.set_id.erase(raw(handle));
  co_await state.mount->close(handle);
}

void remember_set_id(FuseState& state, const Mount::Opened& opened) {
  if (opened.attr.mode() & (S_ISUID | S_ISGID))
    state.set_id[raw(opened.handle)] = opened.attr.mode();
}

Task<void> open(FuseState& state, Reply reply, InodeId inode, bool truncate) {
  auto opened = co_await state.mount->open(inode, truncate, reply.interrupt());
  if (!opened) {
    std::move(reply).error(opened.error());
    co_return;
  }
  remember_set_id(state, *opened);
  if (!std::move(reply).opened(raw(opened->handle))) co_await close(state, opened->handle);
}

Task<void> create(FuseState& state, Reply reply, Caller caller, wire::Make what, int flags) {
  // The kernel sends CREATE for a name it did not find; another node may have made it since. Then,
  // without O_EXCL, it is an open of that file.
  wire::Make again = what;
  auto made = co_await state.mount->create(caller, std::move(what), reply.interrupt());
  while (!made && made.error() == std::errc::file_exists && (flags & O_EXCL) == 0) {
    auto found = co_await state.mount->lookup(InodeId{again.parent()}, again.name());
    if (found) {
      made = co_await state.mount->open(InodeId{found->inode()}, (flags & O_TRUNC) != 0,
                                        reply.interrupt());
      break;
    }
    if (!(found.error() == std::errc::no_such_file_or_directory)) {
      made = found.error();
      break;
    }
    wire::Make once_more = again;
    made = co_await state.mount->create(caller, std::move(once_more), reply.interrupt());
  }
  if (!made) {
    std::move(reply).error(made.error());
    co_return;
  }
  remember_set_id(state, *made);
  if (!std::move(reply).created(made->attr, raw(made->handle))) co_await close(state, made->handle);
}

Task<void> release(FuseState& state, Reply reply, Mount::Handle handle) {
  co_await close(state, handle);
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

/// A write by who may not keep them takes the bits away, before it.
Task<Expected<void>> strip_set_id(FuseState& state, InodeId inode, Mount::Handle handle,
                                  Interrupt* interrupt) {
  auto found = state.set_id.find(raw(handle));
  if (found == state.set_id.end()) co_return Expected<void>{};
  auto had = found->second;
  state.set_id.erase(found);
  auto mode = had & ~std::uint32_t{S_ISUID};
  if ((mode & S_IXGRP) != 0) mode &= ~std::uint32_t{S_ISGID};  // without it the bit means locking
  if (mode == had) co_return Expected<void>{};
  wire::SetAttr to;
  to.set_inode(raw(inode));
  to.set_mode(mode & 07777);
  auto attr = co_await state.mount->change(std::move(to), interrupt);
  if (!attr) co_return attr.error();
  co_return Expected<void>{};
}

Task<void> write(FuseState& state, Reply reply, Mount::Handle handle, std::uint64_t offset,
                 std::span<const std::byte> data, Mount::WriteOptions options,
                 std::optional<InodeId> strip, FuseState::RequestBuffer owner) {
  if (strip) {
    auto stripped = co_await strip_set_id(state, *strip, handle, reply.interrupt());
    if (!stripped) {
      std::move(reply).error(stripped.error());
      co_return;
    }
  }
  auto written = co_await state.mount->write(handle, offset, data, options, reply.interrupt());
  if (written)
    std::move(reply).written(*written);
  else
    std::move(reply).error(written.error());
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

Task<void> list_xattrs(FuseState& state, Reply reply, InodeId inode, std::size_t room) {
  auto names = co_await state.mount->list_xattrs(inode);
  if (names)
    std::move(reply).xattr(*names, room);
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
                std::size_t room, bool plus) {
  constexpr std::size_t kLeastEntry = 32;  // bytes an entry takes at least
  constexpr std::uint32_t kMostEntries = 1024;
  auto limit =
      static_cast<std::uint32_t>(std::clamp<std::size_t>(room / kLeastEntry, 1, kMostEntries));
  auto listed = co_await state.mount->list(directory, position <= 2 ? 0 : position - 2, limit);
  if (!listed) {
    std::move(reply).error(listed.error());
    co_return;
  }
  if (!reply.waits()) co_return;
  Buffer out{room};
  std::size_t used = 0;
  auto add = [&](const char* name, const fuse_entry_param& entry, std::uint64_t next) {
    auto* at = reinterpret_cast<char*>(out.data()) + used;
    auto size = plus ? fuse_add_direntry_plus(reply.request(), at, room - used, name, &entry,
                                              static_cast<off_t>(next))
                     : fuse_add_direntry(reply.request(), at, room - used, name, &entry.attr,
                                         static_cast<off_t>(next));
    if (size > room - used) return false;
    used += size;
    return true;
  };
  // An inode of 0 in a plus entry means that it is no look-up.
  fuse_entry_param dot{};
  dot.attr.st_mode = S_IFDIR;
  dot.attr.st_ino = raw(directory);
  bool more = position > 0 || add(".", dot, 1);
  dot.attr.st_ino = listed->parent() != 0 ? listed->parent() : raw(directory);
  more = more && (position > 1 || add("..", dot, 2));
  for (int i = 0; more && i < listed->entries_size(); ++i) {
    const auto& entry = listed->entries(i);
    more = add(entry.name().c_str(), to_entry_param(entry.attr()), entry.cookie() + 2);
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
  want(FUSE_CAP_READDIRPLUS, true);
  want(FUSE_CAP_READDIRPLUS_AUTO, true);
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
  state.requests.spawn(lookup(state, reply_to(request, kLooks), InodeId{parent}, name));
}

void op_forget(fuse_req_t request, fuse_ino_t, std::uint64_t) { Reply{request}.none(); }

void op_forget_multi(fuse_req_t request, std::size_t, fuse_forget_data*) { Reply{request}.none(); }

void op_getattr(fuse_req_t request, fuse_ino_t inode, fuse_file_info*) {
  auto& state = state_of(request);
  if (inode == raw(kRootInode) && state.root && unreachable(*state.mount))
    return Reply{request}.attr(*state.root);
  state.requests.spawn(get_attr(state, reply_to(request, kLooks), InodeId{inode}));
}

void op_setattr(fuse_req_t request, fuse_ino_t inode, struct stat* to, int set,
                fuse_file_info* file) {
  auto& state = state_of(request);
  wire::SetAttr change;
  change.set_inode(inode);
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

void op_readlink(fuse_req_t request, fuse_ino_t inode) {
  auto& state = state_of(request);
  state.requests.spawn(read_link(state, reply_to(request, kLooks), InodeId{inode}));
}

wire::Make what_to_make(fuse_ino_t parent, const char* name, mode_t mode) {
  wire::Make what;
  what.set_parent(parent);
  what.set_name(name);
  what.set_mode(mode);
  return what;
}

void op_mknod(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
  auto& state = state_of(request);
  auto what = what_to_make(parent, name, mode);
  what.set_rdev(device);
  state.requests.spawn(
      make(state, reply_to(request, kChanges), caller_of(request), std::move(what)));
}

void op_mkdir(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
  auto& state = state_of(request);
  auto what = what_to_make(parent, name, S_IFDIR | (mode & 07777));
  state.requests.spawn(
      make(state, reply_to(request, kChanges), caller_of(request), std::move(what)));
}

void op_symlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
  auto& state = state_of(request);
  auto what = what_to_make(parent, name, S_IFLNK | 0777);
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

void op_link(fuse_req_t request, fuse_ino_t inode, fuse_ino_t parent, const char* name) {
  auto& state = state_of(request);
  state.requests.spawn(
      link(state, reply_to(request, kChanges), InodeId{inode}, InodeId{parent}, name));
}

void op_open(fuse_req_t request, fuse_ino_t inode, fuse_file_info* file) {
  auto& state = state_of(request);
  bool truncate = (file->flags & O_TRUNC) != 0;
  state.requests.spawn(open(state, reply_to(request, truncate), InodeId{inode}, truncate));
}

void op_create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
               fuse_file_info* file) {
  auto& state = state_of(request);
  auto what = what_to_make(parent, name, S_IFREG | (mode & 07777));
  state.requests.spawn(
      create(state, reply_to(request, kChanges), caller_of(request), std::move(what), file->flags));
}

void op_read(fuse_req_t request, fuse_ino_t, std::size_t size, off_t offset, fuse_file_info* file) {
  auto& state = state_of(request);
  auto length = static_cast<std::uint32_t>(std::min(size, kMaxTransfer));
  state.requests.spawn(read(state, reply_to(request, kLooks), handle_of(file),
                            static_cast<std::uint64_t>(offset), length));
}

void op_write(fuse_req_t request, fuse_ino_t inode, const char* data, std::size_t size,
              off_t offset, fuse_file_info* file) {
  auto& state = state_of(request);
  Mount::WriteOptions options;
  options.append = (file->flags & O_APPEND) != 0;
  options.durable = (file->flags & (O_SYNC | O_DSYNC)) != 0;
  auto content = std::as_bytes(std::span{data, size});
  // libfuse does not hand on the flags that only the request itself tells.
  fuse_write_in itself{};
  std::memcpy(&itself, static_cast<const char*>(state.current.buffer.mem) + sizeof(fuse_in_header),
              sizeof itself);
  std::optional<InodeId> strip;
  if ((itself.write_flags & kKillSetId) != 0 && !state.set_id.empty()) strip = InodeId{inode};
  auto owner = std::move(state.current);  // the content lies in it
  state.requests.spawn(write(state, reply_to(request, kChanges), handle_of(file),
                             static_cast<std::uint64_t>(offset), content, options, strip,
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

void op_setlk(fuse_req_t request, fuse_ino_t, fuse_file_info* file, struct flock* lock, int wait) {
  auto& state = state_of(request);
  auto wish = wish_of(file, lock);
  if (lock->l_type == F_UNLCK)
    return state.requests.spawn(unlock(state, reply_to(request, kChanges), handle_of(file), wish));
  wish.wait = wait != 0;
  state.requests.spawn(
      set_lock(state, reply_to(request, kChanges, wish.wait), handle_of(file), wish));
}

void op_flock(fuse_req_t request, fuse_ino_t, fuse_file_info* file, int operation) {
  auto& state = state_of(request);
  Mount::LockWish wish;
  wish.kind = LockKind::whole_file;
  wish.owner = file->lock_owner;
  wish.pid = pid_of_lock(state);
  if ((operation & LOCK_UN) != 0)
    return state.requests.spawn(unlock(state, reply_to(request, kChanges), handle_of(file), wish));
  wish.type = (operation & LOCK_SH) != 0 ? LockType::read : LockType::write;
  wish.wait = (operation & LOCK_NB) == 0;
  state.requests.spawn(
      set_lock(state, reply_to(request, kChanges, wish.wait), handle_of(file), wish));
}

void op_release(fuse_req_t request, fuse_ino_t, fuse_file_info* file) {
  auto& state = state_of(request);
  state.requests.spawn(release(state, reply_to(request, kLooks), handle_of(file)));
}

void op_fsync(fuse_req_t request, fuse_ino_t, int content_only, fuse_file_info* file) {
  auto& state = state_of(request);
  state.requests.spawn(
      sync(state, reply_to(request, kChanges), handle_of(file), content_only != 0));
}

void op_opendir(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
  fuse_open_out out{};
  fuse_reply_buf(request, reinterpret_cast<const char*>(&out), sizeof out);
}

void op_readdir(fuse_req_t request, fuse_ino_t inode, std::size_t size, off_t offset,
                fuse_file_info*) {
  auto& state = state_of(request);
  state.requests.spawn(list(state, reply_to(request, kLooks), InodeId{inode},
                            static_cast<std::uint64_t>(offset), std::min(size, kMaxTransfer),
                            false));
}

void op_readdirplus(fuse_req_t request, fuse_ino_t inode, std::size_t size, off_t offset,
                    fuse_file_info*) {
  auto& state = state_of(request);
  state.requests.spawn(list(state, reply_to(request, kLooks), InodeId{inode},
                            static_cast<std::uint64_t>(offset), std::min(size, kMaxTransfer),
                            true));
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

/// Access control lists are not kept; programs that copy files ask for them first.
bool is_acl(const char* name) { return std::string_view{name}.starts_with("system.posix_acl_"); }

void op_setxattr(fuse_req_t request, fuse_ino_t inode, const char* name, const char* value,
                 std::size_t size, int flags) {
  auto& state = state_of(request);
  if (is_acl(name)) return Reply{request}.error(EOPNOTSUPP);
  wire::SetXattr what;
  what.set_inode(inode);
  what.set_name(name);
  what.set_value(value, size);
  what.set_flags(static_cast<std::uint32_t>(flags));
  state.requests.spawn(set_xattr(state, reply_to(request, kChanges), std::move(what)));
}

void op_getxattr(fuse_req_t request, fuse_ino_t inode, const char* name, std::size_t size) {
  auto& state = state_of(request);
  if (is_acl(name)) return Reply{request}.error(EOPNOTSUPP);
  state.requests.spawn(get_xattr(state, reply_to(request, kLooks), InodeId{inode}, name, size));
}

void op_listxattr(fuse_req_t request, fuse_ino_t inode, std::size_t size) {
  auto& state = state_of(request);
  state.requests.spawn(list_xattrs(state, reply_to(request, kLooks), InodeId{inode}, size));
}

void op_removexattr(fuse_req_t request, fuse_ino_t inode, const char* name) {
  auto& state = state_of(request);
  state.requests.spawn(remove_xattr(state, reply_to(request, kChanges), InodeId{inode}, name));
}

void op_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length,
                  fuse_file_info* file) {
  auto& state = state_of(request);
  wire::Allocate what;
  what.set_inode(inode);
  what.set_offset(static_cast<std::uint64_t>(offset));
  what.set_length(static_cast<std::uint64_t>(length));
  what.set_mode(static_cast<std::uint32_t>(mode));
  state.requests.spawn(
      allocate(state, reply_to(request, kChanges), handle_of(file), std::move(what)));
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
    made.readdir = op_readdir;
    made.readdirplus = op_readdirplus;
    made.releasedir = op_releasedir;
    made.fsyncdir = op_fsyncdir;
    made.statfs = op_statfs;
    made.setxattr = op_setxattr;
    made.getxattr = op_getxattr;
    made.listxattr = op_listxattr;
    made.removexattr = op_removexattr;
    made.fallocate = op_fallocate;
    made.lseek = op_lseek;
    made.ioctl = op_ioctl;
    return made;
  }();
  return ops;
}

}  // namespace csv
