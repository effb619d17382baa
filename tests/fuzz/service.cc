// A coordinator and two mounts that send it whatever they like. Whatever they do, the coordinator
// goes on, and the catalog is whole afterwards.
//
//   bit 0 of the first byte: without the checker at the end; then steps: what and who (1 byte: bit
//   7 the second mount), arguments as below
#include <sys/stat.h>

#include <array>
#include <deque>
#include <optional>

#include "coordinator/protocol/limits.h"
#include "coordinator/protocol/memory_transport.h"
#include "coordinator/service/volume_service.h"
#include "coordinator/volume/check.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/bench.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

enum Step : std::uint8_t {
  greet,      ///< A new connection, with a Hello: length (1), bytes over a good one's.
  request,    ///< How (1), length (1) of the request, length (2) of its bulk data, both.
  frame,      ///< Length (2), any frame.
  wait,       ///< Steps of 20 ms (1).
  answer,     ///< To the oldest notice: length (1), bytes.
  enter_key,  ///< The key of the last admission is registered on the LUN.
  leave,      ///< The connection ends.
  resumed,    ///< ResumeDone.
  kSteps
};
/// How a request is sent.
enum How : std::uint8_t { next_sequence = 1, again = 2, stale = 4, same_id = 8 };

class Mount {
 public:
  Mount(fakes::ManualLoop& loop, std::shared_ptr<iscsi::RamDisk> disk, unsigned node)
      : loop_{&loop}, disk_{std::move(disk)}, node_{node} {}
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;

  void greet_with(service::VolumeService& service, std::span<const std::byte> bytes) {
    protocol::Message hello;
    auto& body = *hello.frame.mutable_hello();
    body.set_protocol(1);
    body.set_volume("volume1");
    body.set_node(node_);
    body.set_incarnation(70 + node_);
    body.set_session(session_);
    (void)body.MergeFromString(std::string{text_of(bytes)});
    if (!protocol::check_limits(hello.frame, 0)) return;
    auto [mine, theirs] = protocol::connection_pair(*loop_, "mount", "coordinator");
    connection_ = std::move(mine);
    connection_->start([this](protocol::Message message) { came(message); }, [](const Error&) {});
    service.accept(std::move(theirs), std::move(hello));
    loop_->settle();
  }
  void send(wire::Frame frame, std::span<const std::byte> bulk) {
    if (!connection_ || frame.ByteSizeLong() == 0 || bulk.size() > (1u << 20)) return;
    connection_->send({std::move(frame), Buffer::copy_of(bulk)});
    loop_->settle();
  }
  void ask(std::uint8_t how, std::span<const std::byte> bytes, std::span<const std::byte> bulk) {
    wire::Frame one;
    if ((how & again) != 0) {
      one = last_;
    } else {
      if (!one.mutable_request()->ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
        return;
      if ((how & next_sequence) != 0) one.mutable_request()->set_sequence(++sequence_);
      one.set_id((how & same_id) != 0 ? id_ : ++id_);
    }
    stamp(one);
    if ((how & stale) != 0) one.set_epoch(1);
    last_ = one;
    send(std::move(one), bulk);
  }
  void answer_notice(std::span<const std::byte> bytes) {
    wire::Frame one;
    if (!one.mutable_notice_reply()->ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
      return;
    stamp(one);
    one.set_id(notices_.empty() ? 1 : notices_.front());
    if (!notices_.empty()) notices_.pop_front();
    send(std::move(one), {});
  }
  void resume_done() {
    wire::Frame one;
    one.mutable_resume_done();
    stamp(one);
    send(std::move(one), {});
  }
  void register_key() {
    iscsi::LunOptions options;
    options.isid_seed = node_;
    lun_.reset();
    auto lun = disk_->connect(*loop_, options);
    if (!lun) return;
    lun_ = std::move(*lun);
    lun_->register_key(Key{key_}, [](const Expected<void>&) {});
    loop_->settle();
  }
  void leave() { connection_.reset(); }

 private:
  void stamp(wire::Frame& frame) const {
    if (frame.epoch() == 0) frame.set_epoch(epoch_);
    if (frame.coordinator_key() == 0) frame.set_coordinator_key(coordinator_key_);
  }
  void came(const protocol::Message& message) {
    const auto& frame = message.frame;
    if (frame.has_hello_reply() && frame.hello_reply().failure().code() == 0) {
      session_ = frame.hello_reply().session();
      epoch_ = frame.epoch();
      coordinator_key_ = frame.coordinator_key();
    }
    if (frame.has_reply() && frame.reply().has_admission()) key_ = frame.reply().admission().key();
    if (frame.has_notice() && notices_.size() < 100) notices_.push_back(frame.id());
  }

  fakes::ManualLoop* loop_;
  std::shared_ptr<iscsi::RamDisk> disk_;
  unsigned node_;
  std::uint64_t session_ = 0, epoch_ = 0, coordinator_key_ = 0, key_ = 0;
  std::uint64_t id_ = 0, sequence_ = 0;
  wire::Frame last_;
  std::deque<std::uint64_t> notices_;
  std::unique_ptr<iscsi::Lun> lun_;
  std::unique_ptr<protocol::Connection> connection_;
};

Task<void> take(service::Surroundings around, std::unique_ptr<service::VolumeService>& service) {
  auto task = service::VolumeService::take_over(std::move(around));
  auto taken = co_await task;
  CSV_CHECK(taken);
  service = *std::move(taken);
}

void act(Input& input, service::VolumeService& service, std::array<Mount*, 2> mounts,
         fakes::ManualLoop& loop) {
  auto what = input.take();
  auto& mount = *mounts[what >> 7];
  switch (static_cast<Step>((what & 0x7f) % kSteps)) {
    case greet: return mount.greet_with(service, input.take(input.take()));
    case request: {
      auto how = input.take();
      auto length = input.take();
      auto bulk = input.take<std::uint16_t>();
      auto bytes = input.take(length);
      return mount.ask(how, bytes, input.take(bulk));
    }
    case frame: {
      auto bytes = input.take(input.take<std::uint16_t>());
      wire::Frame any;
      if (any.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
        mount.send(std::move(any), {});
      return;
    }
    case wait: return loop.run_for(input.take() * 20ms);
    case answer: return mount.answer_notice(input.take(input.take()));
    case enter_key: return mount.register_key();
    case leave: return mount.leave();
    case resumed: return mount.resume_done();
    case kSteps: break;
  }
}

void must_be_whole(fakes::ManualLoop& loop, iscsi::RamDisk& disk) {
  Turns turns{loop};
  auto lun = *disk.connect(loop, {});
  iscsi::BlockingLun io{*lun, turns};
  CSV_CHECK(io.register_key(make_key({kCluster, NodeId{63}, KeyRole::mount, 1})));
  auto report = volume::check(io);
  CSV_CHECK(report);
  for (const auto& each : report->problems) std::fprintf(stderr, "problem: %s\n", each.c_str());
  CSV_CHECK(report->problems.empty());
}

// --- Seeds

std::string step(int what, const std::string& rest = {}, bool second = false) {
  return std::string(1, static_cast<char>(what | (second ? 0x80 : 0))) + rest;
}
std::string sized(const std::string& bytes) {
  return std::string(1, static_cast<char>(bytes.size())) + bytes;
}
std::string ask(int how, const wire::Request& what, const std::string& bulk = {},
                bool second = false) {
  auto bytes = what.SerializeAsString();
  return step(request,
              std::string(1, static_cast<char>(how)) + static_cast<char>(bytes.size()) +
                  number(static_cast<std::uint16_t>(bulk.size())) + bytes + bulk,
              second) +
         // A change that has not answered keeps its slot, of which seeds have but one.
         ((how & next_sequence) != 0 ? step(wait, "\1", second) : "");
}
/// The image has key 1, so that the first to be admitted has 2.
std::string admitted(bool second = false, std::uint64_t key = 0, const std::string& hello = {}) {
  wire::Request begin, done;
  begin.mutable_admit_begin();
  if (key == 0) key = second ? 3 : 2;
  done.mutable_admit_done()->set_key(
      raw(make_key({kCluster, second ? NodeId{4} : NodeId{3}, KeyRole::mount, key})));
  return step(greet, sized(hello), second) + step(resumed, "", second) + ask(0, begin, "", second) +
         step(wait, "\x05", second) + step(enter_key, "", second) + ask(0, done, "", second) +
         step(wait, "\x05", second);
}

// The root's "file" is inode 33 in the image: root, folder and its 30 files come before.
constexpr std::uint64_t kFile = 33, kSymlink = 34;

struct LockSeed {
  unsigned kind = 0, type = 2;
  std::uint64_t owner = 1, first = 0, last = (1ull << 63) - 1;
  operator wire::LockOf() const {  // NOLINT(google-explicit-constructor): a literal of one
    wire::LockOf out;
    out.set_inode(kFile);
    out.set_kind(kind);
    out.set_owner(owner);
    out.set_process(owner);
    out.set_pid(100);
    out.set_first(first);
    out.set_last(last);
    out.set_type(type);
    return out;
  }
};
wire::Request lock(const wire::LockOf& what, std::uint64_t ticket = 0) {
  wire::Request out;
  *out.mutable_lock()->mutable_what() = what;
  out.mutable_lock()->set_ticket(ticket);
  return out;
}
wire::Request unlock(const wire::LockOf& what, bool forget = false) {
  wire::Request out;
  *out.mutable_unlock()->mutable_what() = what;
  out.mutable_unlock()->set_forget(forget);
  return out;
}
wire::Request test_lock(const wire::LockOf& what) {
  wire::Request out;
  *out.mutable_test_lock()->mutable_what() = what;
  return out;
}
wire::Request taken(std::uint64_t ticket, bool really = true) {
  wire::Request out;
  if (really)
    out.mutable_lock_taken()->set_ticket(ticket);
  else
    out.mutable_lock_cancel()->set_ticket(ticket);
  return out;
}

/// What sessions hold besides layouts: locks, and what goes on after a fence.
std::vector<Seed> seeds_of_holding() {
  std::vector<Seed> all;
  auto add = [&](const std::string& name, const std::string& steps) {
    all.push_back({name, std::string(1, '\0') + steps});
  };
  auto both = admitted() + admitted(true);
  wire::Request open, held, resume, done, goodbye, append;
  open.mutable_open()->set_inode(kFile);
  open.mutable_open()->set_writes(true);
  append.mutable_write()->set_inode(kFile);
  append.mutable_write()->set_append(true);
  goodbye.mutable_goodbye();
  *held.mutable_held_locks()->add_held() = LockSeed{.last = 9};
  *held.mutable_held_locks()->add_held() = LockSeed{.kind = 1, .type = 1, .owner = 2};
  // The image has session 1.
  auto& again = *resume.mutable_resume();
  again.set_session(2);
  again.add_files()->set_inode(kFile);
  again.mutable_files(0)->set_writes(true);
  *again.add_locks() = LockSeed{.last = 9};
  done.mutable_resume()->set_session(2);
  done.mutable_resume()->set_done(true);
  auto opened = both + ask(0, open) + ask(0, open, "", true) + step(wait, "\1");
  auto mine = LockSeed{.last = 9}, theirs = LockSeed{.owner = 7, .first = 5, .last = 20},
       whole = LockSeed{.kind = 1, .owner = 3};
  add("locks", opened + ask(0, lock(mine)) + ask(0, lock(theirs), "", true) +
                   ask(0, test_lock(theirs), "", true) + ask(0, unlock(mine)) +
                   ask(0, lock(theirs), "", true) + ask(0, test_lock(mine)) + ask(0, lock(whole)) +
                   ask(0, unlock(whole, true)));
  add("locks-waited-for", opened + ask(0, lock(mine)) + ask(0, lock(theirs, 1), "", true) +
                              ask(0, unlock(mine)) + ask(0, taken(1), "", true) +
                              ask(0, lock(mine, 5)) + ask(0, taken(5, false)) +
                              ask(0, lock(mine, 6)) + ask(0, unlock(theirs), "", true) +
                              ask(0, taken(6, false)) + step(wait, "\x32"));
  add("locks-not-offered", opened + ask(0, taken(9)) + ask(0, taken(9, false)) +
                               ask(0, unlock(mine)) + ask(0, lock(mine, 1)) + ask(0, taken(1)) +
                               ask(0, taken(1)) + ask(0, lock(mine, 1)));
  add("locks-in-a-circle", opened + ask(0, lock(mine)) +
                               ask(0, lock(LockSeed{.owner = 7, .first = 50}), "", true) +
                               ask(0, lock(LockSeed{.first = 60, .last = 70}, 1)) +
                               ask(0, lock(theirs, 2), "", true) + step(wait, "\x32"));
  add("locks-that-cannot-be",
      opened + ask(0, lock(LockSeed{.kind = 9})) + ask(0, lock(LockSeed{.type = 0})) +
          ask(0, lock(LockSeed{.first = 9, .last = 3})) + ask(0, lock(LockSeed{.last = ~0ull})) +
          ask(0, test_lock(LockSeed{.type = 7})));
  add("locks-of-who-leaves", opened + ask(0, lock(mine)) + ask(0, lock(theirs, 1), "", true) +
                                 ask(0, goodbye) + ask(0, taken(1), "", true));
  add("locks-of-who-is-fenced", opened + ask(0, lock(mine)) + ask(0, lock(theirs, 1), "", true) +
                                    step(leave) + step(wait, "\x64") + ask(0, taken(1), "", true));
  add("locks-held", both + ask(0, held) + ask(0, open) + ask(0, held) + step(leave) +
                        step(greet, sized("")) + ask(0, held) + step(resumed) +
                        ask(0, test_lock(theirs), "", true));
  // Fenced with its connection lost, it comes back under a session of its own.
  auto back = step(leave) + step(wait, "\x96");
  const std::string fresh("\x28\0", 2);  // session = 0
  add("resume", opened + ask(0, lock(mine)) + back + admitted(false, 4, fresh) + ask(0, resume) +
                    ask(0, resume) + ask(0, done) + ask(0, test_lock(theirs), "", true));
  add("resume-touched", opened + back + ask(1, append, std::string(5000, 'c'), true) +
                            ask(0, lock(theirs), "", true) + admitted(false, 4, fresh) +
                            ask(0, resume) + ask(0, done) + ask(0, resume));
  add("resume-too-early", opened + ask(0, resume) + ask(0, done));
  add("resume-of-another",
      opened + back + ask(0, resume, "", true) + admitted(false, 4, fresh) + ask(0, resume));
  add("resume-before-admission", opened + back + step(greet, sized(fresh)) + step(resumed) +
                                     ask(0, resume) + ask(0, open) + ask(0, done));
  return all;
}

/// Attributes and what else has a request of its own.
std::vector<Seed> seeds_of_attributes() {
  std::vector<Seed> all;
  auto add = [&](const std::string& name, const std::string& steps) {
    all.push_back({name, std::string(1, '\0') + steps});
  };
  auto xattr = [](const std::string& name, const std::string& value, std::uint64_t inode = kFile) {
    wire::Request out;
    out.mutable_set_xattr()->set_inode(inode);
    out.mutable_set_xattr()->set_name(name);
    out.mutable_set_xattr()->set_value(value);
    return out;
  };
  wire::Request get, list, remove, target, space, lost, wrote, asked, times, owner, nameless, name,
      open, release, made, directory, below;
  get.mutable_get_xattr()->set_inode(kFile);
  get.mutable_get_xattr()->set_name("user.a");
  list.mutable_list_xattr()->set_inode(kFile);
  remove.mutable_remove_xattr()->set_inode(kFile);
  remove.mutable_remove_xattr()->set_name("user.a");
  target.mutable_read_link()->set_inode(kSymlink);
  target.mutable_read_link()->set_accessed(true);
  space.mutable_stat_fs();
  lost.mutable_stat_fs();
  lost.set_lost_under(1);
  wrote.mutable_wrote()->set_inode(kFile);
  asked.mutable_get_attr()->set_inode(kFile);
  asked.mutable_get_attr()->set_wrote(true);
  asked.mutable_get_attr()->set_accessed(true);
  times.mutable_set_attr()->set_inode(kFile);
  times.mutable_set_attr()->set_atime(-5);
  times.mutable_set_attr()->set_mtime(1ll << 62);
  owner.mutable_set_attr()->set_inode(kFile);
  owner.mutable_set_attr()->set_uid(1000);
  owner.mutable_set_attr()->set_gid(~0u);
  owner.mutable_set_attr()->set_mode(06777);
  nameless.mutable_make()->set_parent(1);
  nameless.mutable_make()->set_mode(S_IFREG | 0600);
  nameless.mutable_make()->set_open(true);
  nameless.mutable_make()->set_nameless(true);
  // Behind the image's last inode.
  name.mutable_link()->set_inode(37);
  name.mutable_link()->set_parent(1);
  name.mutable_link()->set_name("named");
  open.mutable_open()->set_inode(kFile);
  release.mutable_release()->set_inode(37);
  made.mutable_make()->set_parent(2);
  made.mutable_make()->set_name("made");
  made.mutable_make()->set_mode(S_IFREG | 0666);
  made.mutable_make()->set_umask(022);
  directory = made;
  directory.mutable_make()->set_name("below");
  directory.mutable_make()->set_mode(S_IFDIR | 0777);
  below.mutable_unlink()->set_parent(2);
  below.mutable_unlink()->set_name("below");
  below.mutable_unlink()->set_directory(true);
  // owner rw, user 1000 rw, group r, mask r, others r
  auto list_of = [](std::initializer_list<std::array<std::uint32_t, 3>> entries) {
    std::string out = number(std::uint32_t{2});
    for (auto [tag, permissions, id] : entries)
      out += number(static_cast<std::uint16_t>(tag)) +
             number(static_cast<std::uint16_t>(permissions)) + number(id);
    return out;
  };
  auto acl = list_of({{1, 6, ~0u}, {2, 6, 1000}, {4, 4, ~0u}, {16, 4, ~0u}, {32, 4, ~0u}});
  auto out_of_order = list_of({{4, 4, ~0u}, {1, 6, ~0u}, {32, 4, ~0u}});
  auto no_mask = list_of({{1, 6, ~0u}, {2, 6, 1000}, {4, 4, ~0u}, {32, 4, ~0u}});
  const std::string access{"system.posix_acl_access"}, preset{"system.posix_acl_default"};
  add("attributes", admitted() + ask(0, get) + ask(0, list) + ask(1, xattr("user.b", "value")) +
                        ask(1, remove) + ask(0, get) + ask(1, remove) + ask(0, list));
  add("attributes-odd", admitted() + ask(1, xattr("", "")) + ask(1, xattr("user.\0b", "")) +
                            ask(1, xattr("nobody's", "x")) +
                            ask(1, xattr("user." + std::string(240, 'n'), "x")));
  add("access-list", admitted() + ask(1, xattr(access, acl)) + ask(0, list) + ask(1, owner) +
                         ask(1, xattr(access, out_of_order)) + ask(1, xattr(access, no_mask)) +
                         ask(1, xattr(access, acl.substr(0, 13))));
  add("default-list", admitted() + ask(1, xattr(preset, acl, 2)) + ask(1, made) +
                          ask(1, directory) + ask(1, xattr(preset, acl)) + ask(1, below) +
                          ask(1, xattr(preset, "", 2)));
  add("times", admitted() + ask(0, open) + ask(1, times) + ask(0, asked) + ask(1, owner) +
                   ask(1, wrote) + ask(0, asked));
  add("nameless", admitted() + ask(1, nameless) + ask(1, name) + ask(0, release) +
                      ask(1, nameless) + step(leave) + step(wait, "\x96"));
  add("reads", admitted() + ask(0, target) + ask(0, space) + ask(0, lost) + step(wait, "\x32"));
  return all;
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  fakes::ManualLoop loop;
  auto disk = disk_of(image(), loop);
  Random random{7};
  service::Surroundings around;
  around.loop = &loop;
  around.random = &random;
  around.open_lun = iscsi::RamDisk::opener(disk, loop);
  around.make_worker = [&loop] { return std::make_unique<InlineWorker>(loop); };
  around.open_until = [&loop] { return loop.now() + 1h; };
  around.node = NodeId{1};
  around.cluster = kCluster;
  around.volume = "volume1";
  // Shorter than in earnest, or most of a run would be waiting.
  around.timing.key_sweep = 500ms;
  around.timing.lease_term = 500ms;
  around.timing.reconnect_grace = 1s;
  around.timing.recall_patience = 1s;
  std::unique_ptr<service::VolumeService> service;
  std::optional<Error> stopped;
  {
    TaskScope tasks;
    tasks.spawn(take(around, service));
    CSV_CHECK(run_until(
        loop, [&] { return service != nullptr; }, 60s));
  }
  service->on_stopped([&](Error why) { stopped = std::move(why); });
  Input input{bytes};
  bool unchecked = (input.take() & 1) != 0;
  {
    Mount one{loop, disk, 3}, two{loop, disk, 4};
    for (int steps = 0; !input.empty() && steps < 200; ++steps)
      act(input, *service, {&one, &two}, loop);
    loop.run_for(1s);
  }
  loop.run_for(3s);  // their sessions end
  CSV_CHECK(!stopped);
  service.reset();
  loop.run_for(1s);
  if (!unchecked) must_be_whole(loop, *disk);
}

std::vector<Seed> seeds() {
  std::vector<Seed> all;
  auto add = [&](const std::string& name, const std::string& steps) {
    all.push_back({name, std::string(1, '\0') + steps});
  };
  auto both = admitted() + admitted(true);
  wire::Request make, open, release, write, append, read, layout, commit, truncate, unlink, rename,
      allocate, list, xattr, link, seek, punch, goodbye, returned, look, clone, shared;
  make.mutable_make()->set_parent(1);
  make.mutable_make()->set_name("made");
  make.mutable_make()->set_mode(S_IFREG | 0644);
  make.mutable_make()->set_open(true);
  open.mutable_open()->set_inode(kFile);
  release.mutable_release()->set_inode(kFile);
  write.mutable_write()->set_inode(kFile);
  write.mutable_write()->set_offset(4000);
  append.mutable_write()->set_inode(kFile);
  append.mutable_write()->set_append(true);
  read.mutable_read()->set_inode(kFile);
  read.mutable_read()->set_length(100000);
  layout.mutable_layout()->set_inode(kFile);
  layout.mutable_layout()->set_length(1 << 20);
  auto claim = layout, map = layout;
  claim.mutable_layout()->set_pages(1);
  map.mutable_layout()->set_pages(2);
  auto grant = layout;
  grant.mutable_layout()->set_write(true);
  grant.mutable_layout()->set_offset(64 * 4096);
  commit.mutable_commit()->set_inode(kFile);
  commit.mutable_commit()->set_grant(2);
  commit.mutable_commit()->set_offset(64 * 4096);
  commit.mutable_commit()->set_length(5000);
  truncate.mutable_set_attr()->set_inode(kFile);
  truncate.mutable_set_attr()->set_size(5);
  unlink.mutable_unlink()->set_parent(1);
  unlink.mutable_unlink()->set_name("file");
  rename.mutable_rename()->set_parent(1);
  rename.mutable_rename()->set_name("file");
  rename.mutable_rename()->set_new_parent(2);
  rename.mutable_rename()->set_new_name("file1");
  allocate.mutable_allocate()->set_inode(kFile);
  allocate.mutable_allocate()->set_offset(1 << 20);
  allocate.mutable_allocate()->set_length(3 << 20);
  punch.mutable_allocate()->set_inode(kFile);
  punch.mutable_allocate()->set_length(20000);
  punch.mutable_allocate()->set_mode(3);
  list.mutable_read_dir()->set_inode(2);
  list.mutable_read_dir()->set_limit(~0u);
  xattr.mutable_set_xattr()->set_inode(kFile);
  xattr.mutable_set_xattr()->set_name("user.b");
  xattr.mutable_set_xattr()->set_value("value");
  link.mutable_link()->set_inode(kFile);
  link.mutable_link()->set_parent(2);
  link.mutable_link()->set_name("again");
  seek.mutable_seek()->set_inode(kFile);
  seek.mutable_seek()->set_whence(4);
  goodbye.mutable_goodbye();
  returned.mutable_layout_return()->set_inode(kFile);
  look.mutable_lookup()->set_parent(1);
  look.mutable_lookup()->set_name("file");
  clone.mutable_clone()->set_inode(kFile);
  clone.mutable_clone()->set_length(48 * 4096);
  clone.mutable_clone()->set_into(4);
  shared = layout;
  shared.mutable_layout()->set_inode(4);
  shared.mutable_layout()->set_write(true);
  const std::string content(5000, 'c');

  add("nobody", "");
  add("silent", step(wait, "\xff"));
  add("greeted", step(greet, sized("")));
  add("before-hello", ask(0, look) + step(frame, number(std::uint16_t{0})));
  add("before-admission", step(greet, sized("")) + step(resumed) + ask(0, look) + ask(1, make) +
                              ask(1, write, content) + ask(0, layout));
  add("no-resume-done", step(greet, sized("")) + ask(1, make) + step(wait, "\x64"));
  add("admitted", both);
  add("names", admitted() + ask(1, make) + ask(0, look) + ask(1, link) + ask(1, rename) +
                   ask(1, unlink) + ask(0, list) + ask(1, xattr));
  add("written", admitted() + ask(0, open) + ask(1, write, content) + ask(1, append, content) +
                     ask(0, read) + ask(1, truncate) + ask(0, seek) + ask(0, release));
  add("granted", admitted() + ask(0, open) + ask(0, grant) + step(wait, "\x05") + ask(1, commit) +
                     ask(1, commit) + ask(0, returned) + step(wait, "\x32"));
  add("recalled", both + ask(0, open) + ask(0, layout) + ask(1, write, content, true) +
                      step(answer, sized("\x08\x01")) + step(wait, "\x32"));
  add("pages", both + ask(0, open) + ask(0, claim) + ask(0, claim, "", true) +
                   ask(0, map, "", true) + step(answer, sized("\x08\x01")) + ask(0, layout) +
                   step(answer, sized("\x08\x01")) + ask(1, truncate, "", true) +
                   step(wait, "\x32"));
  add("no-answer",
      both + ask(0, layout) + ask(1, truncate, "", true) + step(wait, "\xff") + step(wait, "\xff"));
  add("foreign-grant", both + ask(0, grant) + step(wait, "\x05") + ask(1, commit, "", true));
  add("allocated", admitted() + ask(0, open) + ask(1, allocate) + ask(1, punch) + ask(0, read));
  add("cloned", both + ask(0, layout, "", true) + ask(1, clone) + step(answer, sized("\x08\x01")) +
                    ask(0, shared) + ask(1, write, content) + ask(1, truncate) + ask(1, punch) +
                    step(wait, "\x32"));
  add("again", admitted() + ask(1, make) + ask(2, make) + ask(2, make) + step(leave) +
                   step(greet, sized("")) + ask(2, make) + step(resumed));
  add("same-id", admitted() + ask(1, make) + ask(9, unlink) + ask(8, look));
  add("stale", admitted() + ask(5, make));
  add(
      "sequence-back", admitted() + [&] {
        auto back = make;
        back.set_sequence(5);
        auto older = unlink;
        older.set_sequence(4);
        return ask(0, back) + ask(0, older) + ask(0, back);
      }());
  add("sequence-none", admitted() + ask(0, make) + ask(0, write, content));
  add("release-not-open", admitted() + ask(0, release) + ask(0, returned) + ask(1, commit));
  add("open-unlinked", admitted() + ask(0, open) + ask(1, unlink) + step(wait, "\x32") +
                           ask(0, release) + step(wait, "\x32"));
  add("goodbye", both + ask(0, layout) + ask(0, goodbye) + step(wait, "\x32"));
  add("hello-twice", step(greet, sized("")) + step(frame, [] {
                       wire::Frame again;
                       again.mutable_hello()->set_volume("volume1");
                       again.mutable_hello()->set_node(3);
                       auto bytes = again.SerializeAsString();
                       return number(static_cast<std::uint16_t>(bytes.size())) + bytes;
                     }()));
  add("others-session", admitted() + step(greet, sized([] {
                                            wire::Hello hello;
                                            hello.set_session(1);
                                            return hello.SerializeAsString();
                                          }()),
                                          true));
  add(
      "far", admitted() + [&] {
        std::string steps;
        for (auto* one : {&read, &layout, &allocate, &write}) {
          auto far = *one;
          if (far.has_read()) far.mutable_read()->set_offset((1ull << 63) - 200000);
          if (far.has_layout()) far.mutable_layout()->set_length((1ull << 63) - 1);
          if (far.has_allocate()) far.mutable_allocate()->set_length((1ull << 63) - (2 << 20));
          if (far.has_write()) far.mutable_write()->set_offset((1ull << 44) - 100);
          steps += ask(1, far, far.has_write() ? content : "");
        }
        return steps;
      }());
  for (auto* more : {&seeds_of_holding, &seeds_of_attributes})
    for (auto& seed : more()) all.push_back(std::move(seed));
  return all;
}

}  // namespace csv::fuzz
