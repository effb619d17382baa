#define FUSE_USE_VERSION 314
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "csvfs/fuse_session.h"
#include "tests/csvfs/world.h"

using namespace csv;
using tests::pattern;
using tests::World;

namespace {

/// Plays the kernel at the other end of a socket: the real session, operations and mount, without
/// /dev/fuse.
class Kernel {
 public:
  /// `more`: of INIT's 64 flags, what this kernel offers beside the usual.
  explicit Kernel(World& world, int node = 1, std::uint64_t more = 0, MountFlags flags = {},
                  Duration second_walk = FuseSession::Options{}.second_walk)
      : world_{&world} {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    fd_ = ends[1];
    int room = 4 << 20;
    for (int end : ends) {
      ::setsockopt(end, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
      ::setsockopt(end, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    }
    auto& mount = world.mount(node);
    world.post([&] {
      FuseSession::Options options;
      options.dying = [this](pid_t) { return dying.load(); };
      options.flags = flags;
      options.second_walk = second_walk;
      auto session = FuseSession::start(
          world.loop(), mount, "", options, [this] { ended = true; }, ends[0]);
      REQUIRE(session);
      session_ = *std::move(session);
    });
    fuse_init_in init{};
    init.major = FUSE_KERNEL_VERSION;
    init.minor = 36;
    init.max_readahead = 1 << 20;
    init.flags = FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_ASYNC_DIO |
                 FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;
    if (more != 0) {
      init.flags |= FUSE_INIT_EXT | static_cast<std::uint32_t>(more);
      init.flags2 = static_cast<std::uint32_t>(more >> 32);
    }
    REQUIRE(call(FUSE_INIT, 0, bytes(init)) == 0);
    auto answer = body<fuse_init_out>();
    CHECK(answer.max_write == 1 << 20);
    CHECK((answer.flags & FUSE_ATOMIC_O_TRUNC) != 0);
    CHECK((answer.flags & FUSE_WRITEBACK_CACHE) == 0);
    CHECK((answer.flags & FUSE_POSIX_LOCKS) != 0);
    CHECK((answer.flags & FUSE_FLOCK_LOCKS) != 0);
    taken = answer.flags | std::uint64_t{answer.flags2} << 32;
  }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  ~Kernel() {
    world_->post([&] { session_.reset(); });
    ::close(fd_);
  }

  template <typename T>
  static std::string bytes(const T& value) {
    return {reinterpret_cast<const char*>(&value), sizeof value};
  }
  static std::string name(const std::string& text) { return text + '\0'; }

  std::uint64_t send(std::uint32_t opcode, std::uint64_t node, const std::string& argument) {
    fuse_in_header header{};
    header.len = static_cast<std::uint32_t>(sizeof header + argument.size());
    header.opcode = opcode;
    header.unique = unique_ += 2;
    header.nodeid = node;
    header.uid = uid;
    header.pid = thread;
    iovec parts[] = {{&header, sizeof header},
                     {const_cast<char*>(argument.data()), argument.size()}};
    REQUIRE(::writev(fd_, parts, 2) == static_cast<ssize_t>(header.len));
    return header.unique;
  }
  /// The error of the answer to `unique`; its content is left in body().
  int answer(std::uint64_t unique) {
    while (answers_.count(unique) == 0) {
      std::string bytes(2 << 20, '\0');
      auto got = ::read(fd_, bytes.data(), bytes.size());
      REQUIRE(got >= static_cast<ssize_t>(sizeof(fuse_out_header)));
      fuse_out_header header;
      std::memcpy(&header, bytes.data(), sizeof header);
      REQUIRE(header.len == static_cast<std::uint32_t>(got));
      answers_[header.unique] = {
          -header.error,
          bytes.substr(sizeof header, static_cast<std::size_t>(got) - sizeof header)};
    }
    auto found = answers_.extract(unique).mapped();
    body_ = std::move(found.second);
    return found.first;
  }
  int call(std::uint32_t opcode, std::uint64_t node, const std::string& argument = {}) {
    return answer(send(opcode, node, argument));
  }
  bool answered_within(std::uint64_t unique, Duration limit) {
    auto fd_timeout = std::chrono::duration_cast<std::chrono::microseconds>(limit);
    timeval time{fd_timeout.count() / 1'000'000, fd_timeout.count() % 1'000'000};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd_, &set);
    return answers_.count(unique) > 0 || ::select(fd_ + 1, &set, nullptr, nullptr, &time) > 0;
  }
  template <typename T>
  T body(std::size_t offset = 0) const {
    T value{};
    REQUIRE(body_.size() >= offset + sizeof value);
    std::memcpy(&value, body_.data() + offset, sizeof value);
    return value;
  }
  [[nodiscard]] const std::string& body() const { return body_; }

  // What programs' calls come to.
  struct Made {
    std::uint64_t node = 0, handle = 0;
    std::uint32_t open_flags = 0;
  };
  Made create(const std::string& called, std::uint32_t mode = 0644) {
    fuse_create_in in{};
    in.flags = O_RDWR | O_CREAT;
    in.mode = S_IFREG | mode;
    REQUIRE(call(FUSE_CREATE, FUSE_ROOT_ID, bytes(in) + name(called)) == 0);
    auto entry = body<fuse_entry_out>();
    auto open = body<fuse_open_out>(sizeof entry);
    CHECK(entry.entry_valid == 0);
    CHECK(entry.attr_valid == 0);
    return {entry.nodeid, open.fh, open.open_flags};
  }
  std::uint64_t send_write(const Made& file, std::uint64_t offset,
                           const std::vector<std::byte>& data, std::uint32_t flags = 0,
                           std::uint32_t write_flags = 0) {
    fuse_write_in in{};
    in.fh = file.handle;
    in.offset = offset;
    in.size = static_cast<std::uint32_t>(data.size());
    in.flags = flags;
    in.write_flags = write_flags;
    return send(FUSE_WRITE, file.node,
                bytes(in) + std::string{reinterpret_cast<const char*>(data.data()), data.size()});
  }
  int write(const Made& file, std::uint64_t offset, const std::vector<std::byte>& data,
            std::uint32_t flags = 0, std::uint32_t write_flags = 0) {
    return answer(send_write(file, offset, data, flags, write_flags));
  }
  std::vector<std::byte> read(const Made& file, std::uint64_t offset, std::uint32_t size) {
    fuse_read_in in{};
    in.fh = file.handle;
    in.offset = offset;
    in.size = size;
    in.read_flags = FUSE_READ_LOCKOWNER;  // or it is the page cache that reads
    REQUIRE(call(FUSE_READ, file.node, bytes(in)) == 0);
    std::vector<std::byte> out(body_.size());
    if (!out.empty()) std::memcpy(out.data(), body_.data(), out.size());
    return out;
  }
  /// What is said of an inode without a name, which the coordinator reaps in the background.
  int attr_once_reaped(std::uint64_t node) {
    auto seen = call(FUSE_GETATTR, node, bytes(fuse_getattr_in{}));
    for (int i = 0; i < 500 && seen == 0; ++i) {
      std::this_thread::sleep_for(10ms);
      seen = call(FUSE_GETATTR, node, bytes(fuse_getattr_in{}));
    }
    return seen;
  }
  fuse_attr attr(std::uint64_t node) {
    REQUIRE(call(FUSE_GETATTR, node, bytes(fuse_getattr_in{})) == 0);
    return body<fuse_attr_out>().attr;
  }
  int lookup(const std::string& called, std::uint64_t parent = FUSE_ROOT_ID) {
    return call(FUSE_LOOKUP, parent, name(called));
  }
  int release(const Made& file) {
    fuse_release_in in{};
    in.fh = file.handle;
    return call(FUSE_RELEASE, file.node, bytes(in));
  }

  std::uint64_t send_lock(const Made& file, std::uint64_t owner, std::uint32_t type,
                          std::uint32_t opcode, bool whole_file = false) {
    fuse_lk_in in{};
    in.fh = file.handle;
    in.owner = owner;
    in.lk.end = 0x7fffffffffffffff;
    in.lk.type = type;
    in.lk.pid = 77;
    if (whole_file) in.lk_flags = FUSE_LK_FLOCK;
    return send(opcode, file.node, bytes(in));
  }
  int lock(const Made& file, std::uint64_t owner, std::uint32_t type, bool whole_file = false) {
    return answer(send_lock(file, owner, type, FUSE_SETLK, whole_file));
  }
  int flush(const Made& file, std::uint64_t owner) {
    fuse_flush_in in{};
    in.fh = file.handle;
    in.lock_owner = owner;
    return call(FUSE_FLUSH, file.node, bytes(in));
  }
  Made open(std::uint64_t node) {
    fuse_open_in in{};
    in.flags = O_RDWR;
    REQUIRE(call(FUSE_OPEN, node, bytes(in)) == 0);
    return {node, body<fuse_open_out>().fh, 0};
  }

  std::atomic<bool> dying{false}, ended{false};
  std::uint32_t uid = 0, thread = 4242;
  std::uint64_t taken = 0;  ///< What the answer to INIT said.

 private:
  World* world_;
  int fd_ = -1;
  std::uint64_t unique_ = 0;
  std::map<std::uint64_t, std::pair<int, std::string>> answers_;
  std::string body_;
  std::unique_ptr<FuseSession> session_;
};

struct Listed {
  std::string name;
  std::uint64_t inode = 0, offset = 0;
};
std::vector<Listed> entries_in(const std::string& body) {
  std::vector<Listed> all;
  for (std::size_t at = 0; at + FUSE_NAME_OFFSET <= body.size();) {
    fuse_dirent entry{};
    std::memcpy(&entry, body.data() + at, FUSE_NAME_OFFSET);
    all.push_back({body.substr(at + FUSE_NAME_OFFSET, entry.namelen), entry.ino, entry.off});
    at += FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + entry.namelen);
  }
  return all;
}

}  // namespace

TEST_CASE("fuse: a file that is created, written, read and removed, as the kernel asks for it") {
  World world;
  Kernel kernel{world};
  CHECK(kernel.lookup("file") == ENOENT);
  auto file = kernel.create("file");
  // Parallel writes to one file, and nothing cached.
  CHECK((file.open_flags & FOPEN_DIRECT_IO) != 0);
  CHECK((file.open_flags & (1u << 6)) != 0);
  auto data = pattern(1 << 20, 1), more = pattern(777, 2);
  CHECK(kernel.write(file, 0, data) == 0);
  CHECK(kernel.body<fuse_write_out>().size == data.size());
  CHECK(kernel.write(file, 4096 + 5, more) == 0);
  std::copy(more.begin(), more.end(), data.begin() + 4096 + 5);
  CHECK(kernel.read(file, 0, 1 << 20) == data);
  CHECK(kernel.read(file, data.size(), 4096).empty());
  CHECK(kernel.write(file, 0, more, O_APPEND) == 0);
  auto attr = kernel.attr(file.node);
  CHECK(attr.size == data.size() + more.size());
  CHECK(attr.ino == file.node);
  CHECK(kernel.lookup("file") == 0);
  CHECK(kernel.body<fuse_entry_out>().nodeid == file.node);
  CHECK(kernel.release(file) == 0);
  CHECK(kernel.call(FUSE_UNLINK, FUSE_ROOT_ID, Kernel::name("file")) == 0);
  CHECK(kernel.lookup("file") == ENOENT);
  CHECK(kernel.attr(file.node).nlink == 0);
  kernel.send(FUSE_FORGET, file.node, Kernel::bytes(fuse_forget_in{1}));
  CHECK(kernel.attr_once_reaped(file.node) == ESTALE);
}

TEST_CASE(
    "fuse: a listing read in small pieces has each entry once, and . and .. with their inodes") {
  World world;
  Kernel kernel{world};
  fuse_mkdir_in mkdir{};
  mkdir.mode = 0755;
  REQUIRE(kernel.call(FUSE_MKDIR, FUSE_ROOT_ID, Kernel::bytes(mkdir) + Kernel::name("folder")) ==
          0);
  auto folder = kernel.body<fuse_entry_out>().nodeid;
  for (int i = 0; i < 40; ++i) {
    fuse_mknod_in mknod{};
    mknod.mode = S_IFREG | 0600;
    REQUIRE(kernel.call(FUSE_MKNOD, folder,
                        Kernel::bytes(mknod) + Kernel::name("entry" + std::to_string(i))) == 0);
  }
  std::map<std::string, int> seen;
  for (std::uint64_t offset = 0;;) {
    fuse_read_in in{};
    in.offset = offset;
    in.size = 300;
    REQUIRE(kernel.call(FUSE_READDIR, folder, Kernel::bytes(in)) == 0);
    auto some = entries_in(kernel.body());
    if (some.empty()) break;
    for (const auto& each : some) {
      ++seen[each.name];
      if (each.name == ".") CHECK(each.inode == folder);
      if (each.name == "..") CHECK(each.inode == FUSE_ROOT_ID);
    }
    offset = some.back().offset;
  }
  CHECK(seen.size() == 42);
  for (const auto& [name, times] : seen) CHECK_MESSAGE(times == 1, name);
  CHECK(kernel.lookup("..", folder) == 0);
  CHECK(kernel.body<fuse_entry_out>().nodeid == FUSE_ROOT_ID);
}

TEST_CASE("fuse: a write by who may not keep it takes the set-user-ID bit away") {
  World world;
  Kernel kernel{world};
  auto file = kernel.create("tool", 04755);
  constexpr std::uint32_t kKillSetId = 1u << 2;
  CHECK(kernel.write(file, 0, pattern(100, 1)) == 0);
  CHECK((kernel.attr(file.node).mode & S_ISUID) != 0);  // root may
  CHECK(kernel.write(file, 0, pattern(100, 1), 0, kKillSetId) == 0);
  CHECK((kernel.attr(file.node).mode & 07777) == 0755);
}

TEST_CASE("fuse: extended attributes say their size, and ERANGE where there is too little room") {
  World world;
  Kernel kernel{world};
  auto file = kernel.create("file");
  auto set = [&](const std::string& called, const std::string& value) {
    struct {
      std::uint32_t size, flags;
    } in{static_cast<std::uint32_t>(value.size()), 0};
    return kernel.call(FUSE_SETXATTR, file.node, Kernel::bytes(in) + Kernel::name(called) + value);
  };
  auto get = [&](std::uint32_t opcode, const std::string& called, std::uint32_t room) {
    fuse_getxattr_in in{};
    in.size = room;
    return kernel.call(opcode, file.node, Kernel::bytes(in) + called);
  };
  REQUIRE(set("user.one", "value") == 0);
  CHECK(get(FUSE_GETXATTR, Kernel::name("user.one"), 0) == 0);
  CHECK(kernel.body<fuse_getxattr_out>().size == 5);
  CHECK(get(FUSE_GETXATTR, Kernel::name("user.one"), 3) == ERANGE);
  CHECK(get(FUSE_GETXATTR, Kernel::name("user.one"), 64) == 0);
  CHECK(kernel.body() == "value");
  CHECK(get(FUSE_GETXATTR, Kernel::name("user.two"), 64) == ENODATA);
  CHECK(get(FUSE_LISTXATTR, {}, 64) == 0);
  CHECK(kernel.body() == Kernel::name("user.one"));
  CHECK(set("system.posix_acl_access", "x") == EINVAL);
  CHECK(set("system.other", "x") == EOPNOTSUPP);
  CHECK(set("user.", "x") == EINVAL);
  CHECK(get(FUSE_GETXATTR, Kernel::name("system.posix_acl_access"), 64) == ENODATA);
  REQUIRE(set("trusted.one", "value") == 0);
  kernel.uid = 1000;
  CHECK(get(FUSE_LISTXATTR, {}, 64) == 0);
  CHECK(kernel.body() == Kernel::name("user.one"));
}

TEST_CASE(
    "fuse: a signal that a program handles interrupts nothing, a killed program does not wait") {
  World world;
  Kernel kernel{world};
  auto file = kernel.create("file");
  auto interrupt = [&](std::uint64_t unique) {
    fuse_interrupt_in in{};
    in.unique = unique;
    kernel.send(FUSE_INTERRUPT, 0, Kernel::bytes(in));
  };
  world.crash_coordinator();
  world.wait(sleep(world.loop(), 50ms));
  auto looking = kernel.send(FUSE_LOOKUP, FUSE_ROOT_ID, Kernel::name("file"));
  fuse_mkdir_in mkdir{};
  mkdir.mode = 0755;
  auto making = kernel.send(FUSE_MKDIR, FUSE_ROOT_ID, Kernel::bytes(mkdir) + Kernel::name("never"));
  interrupt(looking);
  interrupt(making);
  CHECK_FALSE(kernel.answered_within(looking, 600ms));
  kernel.dying = true;
  CHECK(kernel.answer(looking) == EINTR);
  CHECK(kernel.answer(making) == EINTR);
  kernel.dying = false;
  world.take_over();
  CHECK(kernel.lookup("never") == ENOENT);
  CHECK(kernel.release(file) == 0);
}

TEST_CASE(
    "fuse: a killed program waits for what it has sent, and nothing of it lands after its "
    "successor") {
  World world;
  Kernel kernel{world, 2};  // not the coordinator's: the LUN will be out of its reach
  auto file = kernel.create("file");
  REQUIRE(kernel.write(file, 0, pattern(1 << 20, 1)) == 0);
  auto& other = world.mount(3);
  auto successor = world.wait(other.open(InodeId{file.node}, {.writes = true}));
  REQUIRE(successor);
  std::atomic<int> predecessor{0};
  world.post([&] {
    world.mount_plan = [&](const iscsi::RamCommand& command) {
      iscsi::RamFate fate;
      bool its = command.kind == iscsi::RamCommand::Kind::write && command.length == 65536;
      if (its && ++predecessor == 1) fate.to_target = 10s;
      return fate;
    };
  });
  auto writing = kernel.send_write(file, 0, pattern(65536, 2));
  auto reading = [&](std::uint64_t offset) {
    fuse_read_in in{};
    in.fh = file.handle;
    in.offset = offset;
    in.size = 4096;
    in.read_flags = FUSE_READ_LOCKOWNER;
    return kernel.send(FUSE_READ, file.node, Kernel::bytes(in));
  };
  auto interrupt = [&](std::uint64_t unique) {
    fuse_interrupt_in in{};
    in.unique = unique;
    kernel.send(FUSE_INTERRUPT, 0, Kernel::bytes(in));
  };
  world.wait(sleep(world.loop(), 50ms));
  world.post([&] { world.disk().set_reachable("iqn.2026-01.org.csvfs:n2", false); });
  world.wait(sleep(world.loop(), 50ms));
  // Of these nothing has been sent.
  auto looks = reading(0), waits = kernel.send_write(file, 1 << 19, pattern(32768, 3));
  fuse_mkdir_in mkdir{};
  mkdir.mode = 0755;
  world.post([&] { world.lose_answers_of = 2; });
  auto making = kernel.send(FUSE_MKDIR, FUSE_ROOT_ID, Kernel::bytes(mkdir) + Kernel::name("made"));
  world.wait(sleep(world.loop(), 50ms));
  kernel.dying = true;
  for (auto each : {looks, waits, writing, making}) interrupt(each);
  CHECK(kernel.answer(looks) == EINTR);
  CHECK(kernel.answer(waits) == EINTR);
  CHECK_FALSE(kernel.answered_within(writing, 3500ms));
  CHECK_FALSE(kernel.answered_within(making, 0ms));
  REQUIRE(world.wait(other.write(successor->handle, 0, pattern(32768, 4), {})));
  world.post([&] {
    world.lose_answers_of = 0;
    world.disk().set_reachable("iqn.2026-01.org.csvfs:n2", true);
  });
  world.take_over();
  CHECK(kernel.answer(writing) == EINTR);
  CHECK(kernel.answer(making) == 0);
  CHECK(predecessor == 1);
  kernel.dying = false;
  CHECK(kernel.read(file, 0, 32768) == pattern(32768, 4));
}

TEST_CASE("fuse: the end of the session ends a killed program's waiting") {
  World::Options options;
  options.timing.reconnect_grace = 300ms;
  options.timing.lease_term = 300ms;
  options.timing.key_sweep = 50ms;
  World world{options};
  Kernel kernel{world};
  auto file = kernel.create("file");
  REQUIRE(kernel.write(file, 0, pattern(8192, 1)) == 0);
  (void)world.mount(2);
  auto session = world.mount(1).state().session;
  world.post([&] { world.lose_answers_of = 1; });
  auto appending = kernel.send_write(file, 0, pattern(100, 2), O_APPEND);
  world.wait(sleep(world.loop(), 50ms));
  world.cut_off(1);
  fuse_interrupt_in in{};
  in.unique = appending;
  kernel.dying = true;
  kernel.send(FUSE_INTERRUPT, 0, Kernel::bytes(in));
  CHECK_FALSE(kernel.answered_within(appending, 3500ms));
  world.post([&] { world.lose_answers_of = 0; });
  world.cut_off(0);
  CHECK(kernel.answer(appending) == EINTR);
  CHECK(world.mount(1).state().session != session);
}

TEST_CASE("fuse: what another node makes of a name meanwhile is opened by nobody unchecked") {
  World world;
  Kernel one{world, 1}, two{world, 2};
  auto create = [](Kernel& kernel, std::uint32_t flags) {
    fuse_create_in in{};
    in.flags = flags | O_CREAT;
    in.mode = S_IFREG | 0644;
    return kernel.call(FUSE_CREATE, FUSE_ROOT_ID, Kernel::bytes(in) + Kernel::name("name"));
  };
  two.uid = 1000;
  auto mode = 0600u;
  std::uint32_t opening = O_RDWR | O_TRUNC;
  SUBCASE("to somebody else the file is checked by the kernel") { one.uid = 2000; }
  SUBCASE("also to who could open it, perhaps") {
    one.uid = 2000;
    mode = 0666;
  }
  SUBCASE("to its owner what he may not") {
    one.uid = 1000;
    mode = 0200;
  }
  SUBCASE("to its owner, who may not truncate it") {
    one.uid = 1000;
    mode = 0400;
    opening = O_RDONLY | O_TRUNC;
  }
  auto file = two.create("name", mode);
  REQUIRE(two.write(file, 0, pattern(8192, 1)) == 0);
  CHECK(create(one, opening) == ESTALE);
  CHECK(two.read(file, 0, 8192) == pattern(8192, 1));
  CHECK(create(one, O_RDWR | O_EXCL) == EEXIST);
  CHECK(two.release(file) == 0);
}

TEST_CASE("fuse: a name that another node makes and removes all the time is made in the end") {
  World world;
  Kernel one{world, 1}, two{world, 2};
  one.uid = 2000;
  two.uid = 1000;
  fuse_create_in in{};
  in.flags = O_RDWR | O_CREAT;
  in.mode = S_IFREG | 0644;
  auto what = Kernel::bytes(in) + Kernel::name("name");
  auto file = two.create("name");
  CHECK(one.call(FUSE_CREATE, FUSE_ROOT_ID, what) == ESTALE);
  // The kernel looked once more, and the name was gone just then.
  auto again = one.send(FUSE_CREATE, FUSE_ROOT_ID, what);
  CHECK(two.call(FUSE_UNLINK, FUSE_ROOT_ID, Kernel::name("name")) == 0);
  CHECK(one.answer(again) == 0);
  CHECK(one.body<fuse_entry_out>().attr.uid == 2000);
  CHECK(two.release(file) == 0);
}

namespace {

/// What `one` has just found `two` removes. The program's requests are those of one thread; others,
/// of another, are the test's own looks.
struct Removing {
  explicit Removing(Duration second_walk = 60s) : one{world, 1, 0, {}, second_walk} {}
  World world;
  Kernel one, two{world, 2};

  std::uint64_t made(const std::string& called) {
    auto file = two.create(called, 0666);
    CHECK(two.write(file, 0, pattern(4096, file.node)) == 0);
    CHECK(two.release(file) == 0);
    return file.node;
  }
  int said_once_reaped(std::uint64_t node) {
    auto program = std::exchange(one.thread, 77u);
    auto said = one.attr_once_reaped(node);
    one.thread = program;
    return said;
  }
  /// It is reaped before this returns, unless somebody has it open.
  void remove(const std::string& called) {
    CHECK(two.call(FUSE_UNLINK, FUSE_ROOT_ID, Kernel::name(called)) == 0);
    auto later = made("later");
    CHECK(two.call(FUSE_UNLINK, FUSE_ROOT_ID, Kernel::name("later")) == 0);
    CHECK(said_once_reaped(later) == ESTALE);
  }
  std::uint64_t found(const std::string& called) {
    REQUIRE(one.lookup(called) == 0);
    return one.body<fuse_entry_out>().nodeid;
  }
  int open(std::uint64_t node) {
    fuse_open_in in{};
    in.flags = O_RDWR;
    return one.call(FUSE_OPEN, node, Kernel::bytes(in));
  }
  /// The program's kernel is told ESTALE.
  void first_walk() {
    auto gone = made("name");
    CHECK(found("name") == gone);
    remove("name");
    CHECK(open(gone) == ESTALE);
  }
};

}  // namespace

TEST_CASE("fuse: a file that is removed once more between look-up and open is opened") {
  Removing nodes;
  auto& one = nodes.one;
  nodes.first_walk();
  auto file = nodes.made("name");
  CHECK(nodes.found("name") == file);
  CHECK(nodes.found("name") == file);  // as the kernel asks if it knew another file by the name
  SUBCASE("under the same coordinator") {}
  SUBCASE("though there is another coordinator by then") { nodes.world.take_over(); }
  nodes.remove("name");
  CHECK(one.attr(file).nlink == 0);
  REQUIRE(nodes.open(file) == 0);
  Kernel::Made opened{file, one.body<fuse_open_out>().fh};
  CHECK(one.read(opened, 0, 4096) == pattern(4096, file));
  CHECK(one.release(opened) == 0);
  CHECK(nodes.said_once_reaped(file) == ESTALE);  // nothing else keeps it
  // And the walk is over: what is found is not kept any more.
  auto next = nodes.made("name");
  CHECK(nodes.found("name") == next);
  nodes.remove("name");
  CHECK(nodes.open(next) == ESTALE);
}

TEST_CASE("fuse: nor is what was removed once more gone for what else is asked by path") {
  Removing nodes;
  auto& one = nodes.one;
  nodes.first_walk();
  auto file = nodes.made("name");
  CHECK(nodes.found("name") == file);
  nodes.remove("name");
  CHECK(one.attr(file).nlink == 0);
  fuse_setattr_in mode{};
  mode.valid = FATTR_MODE;
  mode.mode = 0640;
  CHECK(one.call(FUSE_SETATTR, file, Kernel::bytes(mode)) == 0);
  CHECK((one.attr(file).mode & 07777) == 0640);
  CHECK(one.call(FUSE_LISTXATTR, file, Kernel::bytes(fuse_getxattr_in{})) == 0);
  // What is found next is kept in its place.
  REQUIRE(nodes.two.call(FUSE_SYMLINK, FUSE_ROOT_ID,
                         Kernel::name("link") + Kernel::name("target")) == 0);
  auto link = nodes.found("link");
  CHECK(nodes.said_once_reaped(file) == ESTALE);
  nodes.remove("link");
  REQUIRE(one.call(FUSE_READLINK, link) == 0);
  CHECK(one.body() == "target");
}

// The kernel would detach what is mounted below one that is not found any more.
TEST_CASE("fuse: a directory that the kernel may know is found though the node is kept out") {
  World::Options options;
  options.timing.reconnect_grace = options.timing.lease_term = 300ms;
  options.timing.key_sweep = 50ms;
  World world{options};
  Kernel one{world, 1}, two{world, 2};
  fuse_mkdir_in directory{};
  directory.mode = 0755;
  auto make = [&](const std::string& called, std::uint64_t parent) {
    REQUIRE(two.call(FUSE_MKDIR, parent, Kernel::bytes(directory) + Kernel::name(called)) == 0);
    return two.body<fuse_entry_out>().nodeid;
  };
  auto outer = make("outer", FUSE_ROOT_ID), inner = make("inner", outer);
  make("unseen", outer);
  make("removed", outer);
  make("replaced", outer);
  CHECK(one.release(one.create("file")) == 0);
  REQUIRE(two.lookup("outer") == 0);
  for (const char* called : {"inner", "removed", "replaced"})
    REQUIRE(two.lookup(called, outer) == 0);
  REQUIRE(two.lookup("file") == 0);
  for (const char* called : {"removed", "replaced"})
    REQUIRE(one.call(FUSE_RMDIR, outer, Kernel::name(called)) == 0);
  REQUIRE(one.call(FUSE_SYMLINK, outer, Kernel::name("replaced") + Kernel::name("target")) == 0);
  CHECK(two.lookup("removed", outer) == ENOENT);
  CHECK(two.lookup("replaced", outer) == 0);
  world.post([&] {
    world.fenced_node = 2;
    world.fences = 1;
  });
  auto seen = [&] { return two.call(FUSE_GETATTR, outer, Kernel::bytes(fuse_getattr_in{})); };
  for (int i = 0; i < 1000 && seen() == 0; ++i) std::this_thread::sleep_for(5ms);
  CHECK(seen() == EIO);
  REQUIRE(two.lookup("outer") == 0);
  CHECK(two.body<fuse_entry_out>().nodeid == outer);
  CHECK(two.body<fuse_entry_out>().entry_valid == 0);
  REQUIRE(two.lookup("inner", outer) == 0);
  CHECK(two.body<fuse_entry_out>().nodeid == inner);
  for (const char* called : {"unseen", "removed", "replaced"})
    CHECK(two.lookup(called, outer) == EIO);
  CHECK(two.lookup("file") == EIO);
  CHECK(two.call(FUSE_MKDIR, inner, Kernel::bytes(directory) + Kernel::name("made")) == EIO);
  world.post([&] { world.fenced_node = 0; });
  for (int i = 0; i < 1000 && seen() != 0; ++i) std::this_thread::sleep_for(5ms);
  CHECK(two.lookup("unseen", outer) == 0);
  CHECK(two.lookup("made", inner) == ENOENT);
}

TEST_CASE("fuse: what a second walk has found is not kept for whoever does not come back") {
  Removing nodes{100ms};
  nodes.first_walk();
  auto file = nodes.made("name");
  CHECK(nodes.found("name") == file);
  nodes.remove("name");
  CHECK(nodes.said_once_reaped(file) == ESTALE);
}

TEST_CASE("fuse: what a second walk has found is kept while its opening waits for a coordinator") {
  Removing nodes{100ms};
  auto& one = nodes.one;
  nodes.first_walk();
  auto file = nodes.made("name");
  CHECK(nodes.found("name") == file);
  CHECK(nodes.two.call(FUSE_UNLINK, FUSE_ROOT_ID, Kernel::name("name")) == 0);
  nodes.world.crash_coordinator();
  fuse_open_in in{};
  in.flags = O_RDWR;
  auto opening = one.send(FUSE_OPEN, file, Kernel::bytes(in));
  CHECK_FALSE(one.answered_within(opening, 400ms));
  nodes.world.take_over();
  REQUIRE(one.answer(opening) == 0);
  CHECK(one.release({file, one.body<fuse_open_out>().fh}) == 0);
  CHECK(nodes.said_once_reaped(file) == ESTALE);
}

TEST_CASE("fuse: a mount ends in good order while a second walk keeps something") {
  Removing nodes;
  auto& two = nodes.two;
  nodes.first_walk();
  auto file = nodes.made("name");
  CHECK(nodes.found("name") == file);
  nodes.remove("name");
  two.send(FUSE_FORGET, file, Kernel::bytes(fuse_forget_in{1}));
  CHECK(two.attr(file).nlink == 0);
  auto& mount = nodes.world.mount(1);
  nodes.world.wait(mount.end());
  CHECK(mount.farewell_trouble().empty());
  CHECK(two.attr_once_reaped(file) == ESTALE);
}

TEST_CASE("fuse: after an ESTALE of whatever kind a name that is in the way is waited for") {
  Removing nodes;
  auto& one = nodes.one;
  one.uid = 2000;
  nodes.two.uid = 1000;
  auto& mount = nodes.world.mount(1);
  auto requests = [&] {
    std::uint64_t made = 0;
    nodes.world.post([&] { made = mount.counters().requests; });
    return made;
  };
  nodes.first_walk();
  CHECK(one.lookup("name") == ENOENT);
  nodes.made("name");
  fuse_create_in in{};
  in.flags = O_RDWR | O_CREAT;
  in.mode = S_IFREG | 0644;
  auto before = requests();
  CHECK(one.call(FUSE_CREATE, FUSE_ROOT_ID, Kernel::bytes(in) + Kernel::name("name")) == ESTALE);
  CHECK(requests() - before > 100);  // it has waited for the name to go
}

TEST_CASE("fuse: an owner's own name, made by another node meanwhile, is opened; only if a file") {
  World world;
  Kernel one{world, 1}, two{world, 2};
  one.uid = two.uid = 1000;
  auto file = two.create("name", 0600);
  REQUIRE(two.write(file, 0, pattern(8192, 1)) == 0);
  auto again = one.create("name");
  CHECK(again.node == file.node);
  CHECK(one.read(again, 0, 8192) == pattern(8192, 1));
  CHECK(one.release(again) == 0);
  fuse_mkdir_in mkdir{};
  mkdir.mode = 0755;
  REQUIRE(two.call(FUSE_MKDIR, FUSE_ROOT_ID, Kernel::bytes(mkdir) + Kernel::name("folder")) == 0);
  fuse_create_in in{};
  in.flags = O_RDWR | O_CREAT;
  in.mode = S_IFREG | 0644;
  CHECK(one.call(FUSE_CREATE, FUSE_ROOT_ID, Kernel::bytes(in) + Kernel::name("folder")) == ESTALE);
}

TEST_CASE("fuse: locks of two nodes, as the kernel asks for them") {
  World world;
  Kernel one{world, 1}, two{world, 2};
  auto file = one.create("file");
  auto other = two.open(file.node);
  for (bool whole : {false, true}) {
    CAPTURE(whole);
    CHECK(one.lock(file, 1, F_RDLCK, whole) == 0);
    CHECK(two.lock(other, 2, F_RDLCK, whole) == 0);
    CHECK(two.lock(other, 2, F_WRLCK, whole) == EAGAIN);
    CHECK(two.lock(other, 2, F_UNLCK, whole) == 0);
    CHECK(one.lock(file, 1, F_WRLCK, whole) == 0);
    CHECK(two.lock(other, 2, F_RDLCK, whole) == EAGAIN);
  }
  REQUIRE(two.answer(two.send_lock(other, 2, F_RDLCK, FUSE_GETLK)) == 0);
  auto found = two.body<fuse_lk_out>().lk;
  CHECK(found.type == F_WRLCK);
  CHECK(found.start == 0);
  CHECK(found.end == 0x7fffffffffffffff);
  CHECK(found.pid == 0);
  REQUIRE(one.answer(one.send_lock(file, 3, F_RDLCK, FUSE_GETLK)) == 0);
  CHECK(one.body<fuse_lk_out>().lk.pid == 77);
  // A process closes a descriptor: what it had locked of the bytes goes, flock stays.
  CHECK(one.flush(file, 9) == 0);
  CHECK(two.lock(other, 2, F_RDLCK) == EAGAIN);
  CHECK(one.flush(file, 1) == 0);
  CHECK(two.lock(other, 2, F_RDLCK) == 0);
  CHECK(two.lock(other, 2, F_RDLCK, true) == EAGAIN);
  // Another descriptor of the same node does not matter, the last of this one does.
  CHECK(one.release(one.open(file.node)) == 0);
  CHECK(two.lock(other, 2, F_RDLCK, true) == EAGAIN);
  CHECK(one.release(file) == 0);
  CHECK(two.lock(other, 2, F_RDLCK, true) == 0);
}

TEST_CASE("fuse: whatever signal ends waiting for a lock, and the lock is not taken later") {
  World world;
  Kernel one{world, 1}, two{world, 2};
  auto file = one.create("file");
  auto other = two.open(file.node);
  for (bool whole : {false, true}) {
    CAPTURE(whole);
    REQUIRE(one.lock(file, 1, F_WRLCK, whole) == 0);
    auto waits = two.send_lock(other, 2, F_WRLCK, FUSE_SETLKW, whole);
    auto patient = two.send_lock(other, 3, F_WRLCK, FUSE_SETLKW, whole);
    CHECK_FALSE(two.answered_within(waits, 50ms));
    fuse_interrupt_in in{};
    in.unique = waits;
    two.send(FUSE_INTERRUPT, 0, Kernel::bytes(in));
    CHECK(two.answer(waits) == EINTR);
    CHECK_FALSE(two.answered_within(patient, 50ms));
    CHECK(one.lock(file, 1, F_UNLCK, whole) == 0);
    CHECK(two.answer(patient) == 0);
    CHECK(two.lock(other, 3, F_UNLCK, whole) == 0);
    CHECK(one.lock(file, 1, F_WRLCK, whole) == 0);
    CHECK(one.lock(file, 1, F_UNLCK, whole) == 0);
  }
  // One that came too late changes nothing.
  auto got = two.send_lock(other, 2, F_WRLCK, FUSE_SETLKW);
  CHECK(two.answer(got) == 0);
  fuse_interrupt_in in{};
  in.unique = got;
  two.send(FUSE_INTERRUPT, 0, Kernel::bytes(in));
  CHECK(one.lock(file, 1, F_WRLCK) == EAGAIN);
}

TEST_CASE("fuse: any number of writes wait for a coordinator, each keeping what it writes") {
  World world;
  Kernel kernel{world};
  auto file = kernel.create("file");
  world.crash_coordinator();
  constexpr std::uint64_t kWrites = 100;  // more than may keep the buffer they came in
  auto length_of = [](std::uint64_t i) { return i % 10 == 9 ? std::size_t{256} << 10 : 3000 + i; };
  std::vector<std::uint64_t> sent;
  for (std::uint64_t i = 0; i < kWrites; ++i)
    sent.push_back(kernel.send_write(file, i << 20, pattern(length_of(i), i + 1)));
  CHECK_FALSE(kernel.answered_within(sent.back(), 100ms));
  world.take_over();
  for (auto each : sent) CHECK(kernel.answer(each) == 0);
  for (std::uint64_t i = 0; i < kWrites; ++i)
    CHECK(kernel.read(file, i << 20, static_cast<std::uint32_t>(length_of(i))) ==
          pattern(length_of(i), i + 1));
  CHECK(kernel.release(file) == 0);
}

TEST_CASE("fuse: what waits when the session goes is answered") {
  World world;
  int unanswered = 0;
  {
    Kernel kernel{world};
    world.crash_coordinator();
    world.wait(sleep(world.loop(), 50ms));
    kernel.send(FUSE_LOOKUP, FUSE_ROOT_ID, Kernel::name("file"));
    world.wait(sleep(world.loop(), 50ms));
    ++unanswered;
  }
  CHECK(unanswered == 1);  // and nothing was leaked or touched afterwards (sanitizers)
}

TEST_CASE("fuse: what a newer kernel offers is taken, though libfuse does not know it") {
  constexpr std::uint64_t kMmap = 1ull << 36, kOther = 1ull << 37;
  World world;
  constexpr auto kOffered = FUSE_SETXATTR_EXT | FUSE_HANDLE_KILLPRIV_V2 | kMmap | kOther;
  Kernel kernel{world, 1, kOffered, {.flags = 0, .shared_mappings = true}};
  CHECK((kernel.taken & kMmap) != 0);
  CHECK((kernel.taken & FUSE_HANDLE_KILLPRIV_V2) != 0);
  CHECK((kernel.taken & FUSE_INIT_EXT) != 0);
  CHECK((kernel.taken & kOther) == 0);
  auto file = kernel.create("file", 02755);
  CHECK((file.open_flags & (1u << 6)) == 0);  // parallel writes, beside mappings
  // The longer form of SETXATTR, by who is not in the file's group.
  auto entry = [](unsigned tag, unsigned permissions) {
    std::string bytes(8, '\xff');
    bytes[0] = static_cast<char>(tag);
    bytes[2] = static_cast<char>(permissions);
    bytes[1] = bytes[3] = 0;
    return bytes;
  };
  std::string acl{2, 0, 0, 0};
  acl += entry(1, 7) + entry(4, 5) + entry(32, 0);
  fuse_setxattr_in in{};
  in.size = static_cast<std::uint32_t>(acl.size());
  in.setxattr_flags = FUSE_SETXATTR_ACL_KILL_SGID;
  CHECK(kernel.call(FUSE_SETXATTR, file.node,
                    Kernel::bytes(in) + Kernel::name("system.posix_acl_access") + acl) == 0);
  CHECK((kernel.attr(file.node).mode & 07777) == 0750);
  Kernel careful{world, 3, kOffered};
  CHECK((careful.taken & (kMmap | kOther)) == 0);
  CHECK((careful.taken & FUSE_HANDLE_KILLPRIV_V2) != 0);
  Kernel older{world, 2};
  CHECK((older.taken & (kMmap | FUSE_INIT_EXT | FUSE_HANDLE_KILLPRIV_V2)) == 0);
}

TEST_CASE("fuse: a file without a name gets one; statx tells when it was made") {
  World world;
  Kernel kernel{world};
  fuse_create_in in{};
  in.flags = O_RDWR;
  in.mode = S_IFREG | 0666;
  in.umask = 026;
  REQUIRE(kernel.call(FUSE_TMPFILE, FUSE_ROOT_ID, Kernel::bytes(in) + Kernel::name("/")) == 0);
  auto node = kernel.body<fuse_entry_out>().nodeid;
  CHECK(kernel.body<fuse_entry_out>().attr.nlink == 0);
  CHECK((kernel.body<fuse_entry_out>().attr.mode & 07777) == 0640);
  Kernel::Made file{node, kernel.body<fuse_open_out>(sizeof(fuse_entry_out)).fh};
  CHECK(kernel.write(file, 0, pattern(5000, 1)) == 0);
  fuse_link_in link{node};
  REQUIRE(kernel.call(FUSE_LINK, FUSE_ROOT_ID, Kernel::bytes(link) + Kernel::name("named")) == 0);
  CHECK(kernel.lookup("named") == 0);
  CHECK(kernel.body<fuse_entry_out>().attr.nlink == 1);
  CHECK(kernel.release(file) == 0);
  CHECK(kernel.attr(node).size == 5000);
  constexpr std::uint32_t kStatx = 52, kBasicAndBirth = 0xfff;
  REQUIRE(kernel.call(kStatx, node, std::string(24, '\0')) == 0);
  CHECK(kernel.body<std::uint32_t>(32) == kBasicAndBirth);
  CHECK(kernel.body<std::uint64_t>(32 + 40) == 5000);
}

TEST_CASE("fuse: pages that the kernel read are dropped before another node's write is answered") {
  World world;
  Kernel kernel{world};
  auto file = kernel.create("file");
  REQUIRE(kernel.write(file, 0, pattern(3 * 4096, 1)) == 0);
  fuse_read_in in{};
  in.fh = file.handle;
  in.offset = 4096;
  in.size = 8192;
  REQUIRE(kernel.call(FUSE_READ, file.node, Kernel::bytes(in)) == 0);
  CHECK(kernel.body().size() == 8192);
  Kernel other{world, 2};
  REQUIRE(other.lookup("file") == 0);
  fuse_open_in open{};
  open.flags = O_RDWR;
  REQUIRE(other.call(FUSE_OPEN, file.node, Kernel::bytes(open)) == 0);
  Kernel::Made opened{file.node, other.body<fuse_open_out>().fh};
  CHECK(other.write(opened, 5000, pattern(10, 2)) == 0);
  CHECK(kernel.answer(0) == -FUSE_NOTIFY_INVAL_INODE);
  auto dropped = kernel.body<fuse_notify_inval_inode_out>();
  CHECK(dropped.ino == file.node);
  CHECK(dropped.off == 4096);
  CHECK(dropped.len == 4096);
}

TEST_CASE("fuse: pages of a mapping never make a file longer") {
  World world;
  Kernel kernel{world};
  auto file = kernel.create("file");
  REQUIRE(kernel.write(file, 0, pattern(10'000, 1)) == 0);
  auto pages = pattern(8192, 2);
  CHECK(kernel.write(file, 8192, pages, 0, FUSE_WRITE_CACHE) == 0);
  CHECK(kernel.body<fuse_write_out>().size == pages.size());
  CHECK(kernel.write(file, 65536, pages, 0, FUSE_WRITE_CACHE) == 0);
  CHECK(kernel.attr(file.node).size == 10'000);
  pages.resize(10'000 - 8192);
  CHECK(kernel.read(file, 8192, 8192) == pages);
}

TEST_CASE("fuse: what was removed can be stated as long as the kernel knows it") {
  World world;
  Kernel kernel{world};
  fuse_mkdir_in mkdir{};
  mkdir.mode = 0755;
  REQUIRE(kernel.call(FUSE_MKDIR, FUSE_ROOT_ID, Kernel::bytes(mkdir) + Kernel::name("d")) == 0);
  auto node = kernel.body<fuse_entry_out>().nodeid;
  REQUIRE(kernel.call(FUSE_RMDIR, FUSE_ROOT_ID, Kernel::name("d")) == 0);
  CHECK(kernel.attr(node).nlink == 0);
  CHECK(kernel.lookup(".", node) == ESTALE);
  fuse_forget_in forget{1};
  kernel.send(FUSE_FORGET, node, Kernel::bytes(forget));
  CHECK(kernel.attr_once_reaped(node) == ESTALE);
}

TEST_CASE(
    "fuse: a file whose handles a fence has ended is another one to the kernel, if it was mapped") {
  World::Options options;
  options.timing.reconnect_grace = 300ms;
  options.timing.lease_term = 300ms;
  options.timing.key_sweep = 50ms;
  World world{options};
  constexpr std::uint64_t kMmap = 1ull << 36;
  // Programs may store into mappings of it, now or later; or it has pages that were only read.
  bool shared = false, paged = false;
  SUBCASE("it may be mapped") { shared = true; }
  SUBCASE("it has pages") { paged = true; }
  SUBCASE("neither") {}
  MountFlags flags;
  flags.shared_mappings = shared;
  Kernel kernel{world, 1, kMmap, flags};
  auto file = kernel.create("file");
  REQUIRE(kernel.write(file, 0, pattern(8192, 1)) == 0);
  if (paged) {
    fuse_read_in page{};
    page.fh = file.handle;
    page.size = 4096;
    REQUIRE(kernel.call(FUSE_READ, file.node, Kernel::bytes(page)) == 0);
  }
  auto& mount = world.mount(1);
  auto session = mount.state().session;
  auto kept = kernel.create("kept");
  REQUIRE(kernel.write(kept, 0, pattern(8192, 3)) == 0);
  auto& other = world.mount(2);
  world.cut_off(1);
  world.wait(sleep(world.loop(), 1500ms));
  auto same = world.wait(other.open(InodeId{file.node}, {.writes = true}));
  REQUIRE(same);
  world.wait(other.close(same->handle));
  fuse_open_in in{};
  in.flags = O_RDWR;
  auto crossing = kernel.send(FUSE_OPEN, file.node, Kernel::bytes(in));
  world.wait(sleep(world.loop(), 50ms));
  world.cut_off(0);
  for (int i = 0;
       i < 1000 && (mount.state().session == session || mount.state().mode != AccessMode::direct);
       ++i)
    world.wait(sleep(world.loop(), 50ms));
  CHECK(kernel.read(kept, 0, 8192) == pattern(8192, 3));  // nobody has touched it
  CHECK(kernel.write(kept, 0, pattern(4096, 4)) == 0);
  CHECK(kernel.release(kept) == 0);
  // What a program left in an old mapping is refused, and its inode opens no new way.
  CHECK(kernel.write(file, 0, pattern(4096, 2), 0, FUSE_WRITE_CACHE) == EIO);
  bool another = shared || paged;
  // Nor does what was under way over the end.
  auto opened = kernel.answer(crossing);
  CHECK(opened == (another ? ESTALE : 0));
  if (opened == 0) CHECK(kernel.release({file.node, kernel.body<fuse_open_out>().fh}) == 0);
  // As a handle of NFS that was made before would have it.
  CHECK(kernel.lookup(".", file.node) == (another ? ESTALE : 0));
  if (another) CHECK(kernel.call(FUSE_OPEN, file.node, Kernel::bytes(in)) == ESTALE);
  REQUIRE(kernel.lookup("file") == 0);
  auto entry = kernel.body<fuse_entry_out>();
  CHECK((entry.nodeid != file.node) == another);
  CHECK(kernel.lookup(".", entry.nodeid) == 0);
  CHECK(kernel.body<fuse_entry_out>().nodeid == entry.nodeid);
  CHECK(entry.attr.ino == file.node);
  REQUIRE(kernel.call(FUSE_OPEN, entry.nodeid, Kernel::bytes(in)) == 0);
  Kernel::Made again{entry.nodeid, kernel.body<fuse_open_out>().fh};
  CHECK(kernel.read(again, 0, 8192) == pattern(8192, 1));
  CHECK(kernel.release(again) == 0);
  CHECK(kernel.release(file) == 0);
}
