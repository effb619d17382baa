// A mount whose coordinator says whatever it likes, while programs use it. It may wait for ever,
// and programs may get errors; nothing else.
//
//   first byte: bit 0 the coordinator greets by itself as it should, bit 1 and admits too; then
//   steps: what (1 byte), arguments as below
#include "csvfs/mount.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <deque>
#include <list>

#include "coordinator/protocol/limits.h"
#include "coordinator/protocol/memory_transport.h"
#include "coordinator/volume/volume.h"
#include "csvfs/base/check.h"
#include "tests/fuzz/bench.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {
namespace {

enum Step : std::uint8_t {
  greet,    ///< Length (1), bytes over a good HelloReply.
  reply,    ///< Length (1), length of the bulk data (2), to the oldest request: any Reply.
  again,    ///< The last reply once more, to the next request.
  notice,   ///< Id (1), length (1), any Notice.
  frame,    ///< Length (2), any frame.
  wait,     ///< Steps of 50 ms (1).
  leave,    ///< The connection ends.
  program,  ///< What a program does (1), where (1).
  newer,    ///< The epoch grows from now on.
  kSteps
};

class Coordinator {
 public:
  Coordinator(fakes::ManualLoop& loop, bool greets, bool admits)
      : loop_{&loop}, greets_{greets}, admits_{admits} {}
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  void connect(protocol::Connected done) {
    auto [mine, theirs] = protocol::connection_pair(*loop_, "coordinator", "mount");
    connection_ = std::move(mine);
    requests_.clear();
    connection_->start([this](protocol::Message message) { came(std::move(message)); },
                       [](const Error&) {});
    done(std::move(theirs));
  }
  void send(wire::Frame frame, std::span<const std::byte> bulk = {}) {
    if (!connection_ || frame.ByteSizeLong() == 0) return;
    if (frame.epoch() == 0) frame.set_epoch(epoch);
    if (frame.coordinator_key() == 0) frame.set_coordinator_key(1234);
    connection_->send({std::move(frame), Buffer::copy_of(bulk)});
    loop_->settle();
  }
  void greet_with(std::span<const std::byte> bytes) {
    const auto& info = image().info;
    wire::Frame one;
    auto& body = *one.mutable_hello_reply();
    body.set_session(5);
    body.set_volume_id(std::string{text_of(info.id)});
    body.set_lun_identity(info.lun_identity);
    body.set_cluster(info.cluster);
    body.set_slot_offset(slot_offset(info, NodeId{2}, KeyRole::mount));
    body.set_lun_size(info.lun_size);
    if (!body.MergeFromString(std::string{text_of(bytes)})) return;
    send(std::move(one));
  }
  void answer(std::span<const std::byte> bytes, std::span<const std::byte> bulk) {
    if (!last_.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
    bulk_.assign(bulk.begin(), bulk.end());
    answer_again();
  }
  void answer_again() {
    if (requests_.empty()) return;
    wire::Frame one;
    one.set_id(requests_.front());
    requests_.pop_front();
    *one.mutable_reply() = last_;
    send(std::move(one), bulk_);
  }
  void leave() { connection_.reset(); }

  std::uint64_t epoch = 3;

 private:
  void came(protocol::Message message) {
    auto& frame = message.frame;
    if (frame.has_hello() && greets_) return greet_with({});
    if (!frame.has_request()) return;
    bool begins = frame.request().has_admit_begin();
    if (admits_ && (begins || frame.request().has_admit_done())) {
      wire::Frame one;
      one.set_id(frame.id());
      auto& body = *one.mutable_reply();
      if (begins) {
        body.mutable_admission()->set_key(
            raw(make_key({kCluster, NodeId{2}, KeyRole::mount, ++key_number_})));
        body.mutable_admission()->set_reservation_type(8);
      }
      return send(std::move(one));
    }
    if (requests_.size() < 1000) requests_.push_back(frame.id());
  }

  fakes::ManualLoop* loop_;
  bool greets_, admits_;
  std::uint64_t key_number_ = 100;
  std::deque<std::uint64_t> requests_;
  wire::Reply last_;
  std::vector<std::byte> bulk_;
  std::unique_ptr<protocol::Connection> connection_;
};

/// What a program does.
enum class Doing : std::uint8_t {
  look_up,
  see,
  open,
  create,
  list,
  ask_space,
  truncate,
  read_link,
  list_xattrs,
  get_xattr,
  set_xattr,
  remove_xattr,
  make,
  link,
  unlink,
  rename,
  change,
  interrupt,  ///< The oldest call that can be interrupted and has not been.
  read,       ///< From here on of an open file.
  write,
  append,
  write_durably,
  sync,
  seek,
  clone,
  allocate,
  lock,
  unlock,
  test_lock,
  flush,
  truncate_through,
  close,
  kDoings
};

/// Programs that use the mount.
class Programs {
 public:
  explicit Programs(Mount& mount) : mount_{&mount} { content_.fill(std::byte{'p'}); }
  Programs(const Programs&) = delete;
  Programs& operator=(const Programs&) = delete;

  void begin(unsigned what, unsigned where) {
    if (tasks_.running() > 50) return;
    tasks_.spawn(act(static_cast<Doing>(what % static_cast<unsigned>(Doing::kDoings)), where));
  }
  void watch_ready() { tasks_.spawn(ready()); }

 private:
  Task<void> ready() {
    auto task = mount_->ready();
    (void)co_await task;
  }
  template <typename T>
  static Task<void> ignore(Task<T> task) {
    (void)co_await task;
  }
  /// Any handle: those that were never given out belong to nobody.
  [[nodiscard]] Mount::Handle handle(unsigned where) const {
    return handles_.empty() ? Mount::Handle{where} : handles_[where % handles_.size()];
  }
  /// A call that may be interrupted, by one that comes later.
  template <typename Start>
  Task<void> interruptible(Start start) {
    auto& own = interrupts_.emplace_back();
    auto task = start(&own);
    (void)co_await task;
    interrupts_.remove_if([&own](const Interrupt& each) { return &each == &own; });
  }
  template <typename Start>
  Task<void> opening(Start start) {
    auto& own = interrupts_.emplace_back();
    auto task = start(&own);
    auto opened = co_await task;
    interrupts_.remove_if([&own](const Interrupt& each) { return &each == &own; });
    if (opened) handles_.push_back(opened->handle);
  }
  Task<void> nothing() { co_return; }
  Task<void> act(Doing what, unsigned where) {
    bool also = where % 2 != 0, too = where / 2 % 2 != 0;
    wire::Make made;
    made.set_parent(1);
    made.set_name(also ? "made" : "file");
    made.set_mode(too ? S_IFDIR | 0755 : S_IFREG | 0644);
    wire::SetAttr set;
    set.set_inode(33);
    if (what == Doing::truncate || what == Doing::truncate_through) set.set_size(where);
    if (what == Doing::change) {
      set.set_mode(06755);
      set.set_uid(where);
      set.set_mtime_now(also);
    }
    switch (what) {
      case Doing::look_up: return ignore(mount_->lookup(also ? InodeId{2} : kRootInode, "file"));
      case Doing::see: return ignore(mount_->attr(also ? kRootInode : InodeId{33}));
      case Doing::open:
        return opening([this, also, too](Interrupt* by) {
          return mount_->open(InodeId{33}, {.truncate = also, .writes = too}, by);
        });
      case Doing::create:
        made.set_mode(S_IFREG | 0644);
        made.set_nameless(too);
        if (too) made.clear_name();
        return opening([this, made](Interrupt* by) {
          return mount_->create(Caller{}, made, {.writes = true}, by);
        });
      case Doing::list:
        return ignore(mount_->list(kRootInode, where, {.limit = 10, .accessed = also}));
      case Doing::ask_space: return ignore(mount_->statistics());
      case Doing::truncate:
      case Doing::change:
        return interruptible([this, set](Interrupt* by) { return mount_->change(set, by); });
      case Doing::read_link: return ignore(mount_->read_link(InodeId{34}, also));
      case Doing::list_xattrs: return ignore(mount_->list_xattrs(InodeId{33}));
      case Doing::get_xattr: return ignore(mount_->xattr(InodeId{33}, name_of(where)));
      case Doing::set_xattr: {
        wire::SetXattr value;
        value.set_inode(33);
        value.set_name(name_of(where));
        value.set_value(std::string(where, 'v'));
        return interruptible([this, value](Interrupt* by) { return mount_->set_xattr(value, by); });
      }
      case Doing::remove_xattr:
        return interruptible([this, where](Interrupt* by) {
          return mount_->remove_xattr(InodeId{33}, name_of(where), by);
        });
      case Doing::make:
        return interruptible([this, made](Interrupt* by) {
          return mount_->make(Caller{1000, 1000}, made, by);
        });
      case Doing::link:
        return interruptible(
            [this](Interrupt* by) { return mount_->link(InodeId{33}, kRootInode, "again", by); });
      case Doing::unlink:
        return interruptible([this, also](Interrupt* by) {
          return mount_->unlink(kRootInode, also ? "folder" : "file", also, by);
        });
      case Doing::rename: {
        wire::Rename to;
        to.set_parent(1);
        to.set_name("file");
        to.set_new_parent(also ? 2 : 1);
        to.set_new_name("renamed");
        to.set_flags(where / 2 % 3);
        return interruptible([this, to](Interrupt* by) { return mount_->rename(to, by); });
      }
      case Doing::interrupt: {
        for (auto& each : interrupts_)
          if (!each.raised()) {
            each.raise();
            break;
          }
        return nothing();
      }
      default: break;
    }
    if (handles_.empty()) return ignore(mount_->attr(kRootInode));
    return act_on(what, where, set);
  }
  Task<void> act_on(Doing what, unsigned where, const wire::SetAttr& set) {
    // Offsets that matter: inside, over a block's edge, at the end, far away.
    const std::uint64_t at =
        (where % 4) * 2048 + (where / 4 % 4) * (60ull * 4096) + (where / 16 % 2) * (1ull << 43);
    auto data = std::span{content_}.first(where % 2 == 0 ? content_.size() : 4096);
    auto writing = [&](Mount::WriteOptions how) {
      return interruptible([this, where, at, data, how](Interrupt* by) {
        return mount_->write(handle(where), at, data, how, by);
      });
    };
    Mount::LockWish wish;
    wish.kind = where % 2 == 0 ? LockKind::bytes : LockKind::whole_file;
    wish.type = where / 2 % 2 == 0 ? LockType::write : LockType::read;
    wish.owner = 1 + where / 4 % 4;
    wish.pid = 100;
    if (wish.kind == LockKind::bytes) wish.range = {where, where + 10};
    wish.wait = where / 16 % 2 != 0;
    switch (what) {
      case Doing::read:
        if (where % 8 == 7)
          return interruptible([this, where, at](Interrupt* by) {
            return mount_->read_pages(handle(where), at / 4096 * 4096, 8192, by);
          });
        return ignore(mount_->read(handle(where), at, 10000));
      case Doing::write: return writing({.pages = where % 8 == 7});
      case Doing::append: return writing({.append = true});
      case Doing::write_durably: return writing({.durable = true});
      case Doing::sync:
        return interruptible([this, where](Interrupt* by) {
          return mount_->sync(handle(where), where % 2 != 0, by);
        });
      case Doing::seek:
        return ignore(mount_->seek(handle(where), at, where % 2 ? SEEK_DATA : SEEK_HOLE));
      case Doing::clone: {
        Mount::CloneWish from{.from = handle(where),
                              .into = handle(where / 4),
                              .offset = at,
                              .into_offset = at / 2,
                              .length = where * 4096};
        return interruptible([this, from](Interrupt* by) { return mount_->clone(from, by); });
      }
      case Doing::allocate: {
        wire::Allocate space;
        space.set_inode(33);
        space.set_offset(at);
        space.set_length(1 + where * 1000ull);
        space.set_mode(where / 4 % 4);
        return interruptible([this, where, space](Interrupt* by) {
          return mount_->allocate(handle(where), space, by);
        });
      }
      case Doing::lock:
        return interruptible(
            [this, where, wish](Interrupt* by) { return mount_->lock(handle(where), wish, by); });
      case Doing::unlock: return ignore(mount_->unlock(handle(where), wish));
      case Doing::test_lock: return ignore(mount_->test_lock(handle(where), wish));
      case Doing::flush: return wait_for(mount_->flush(handle(where), wish.owner));
      case Doing::truncate_through:
        return interruptible(
            [this, where, set](Interrupt* by) { return mount_->change(set, by, handle(where)); });
      default: {
        auto closing = handle(where);
        std::erase(handles_, closing);
        return wait_for(mount_->close(closing));
      }
    }
  }
  static std::string name_of(unsigned where) {
    return where % 2 == 0 ? "user.a" : "system.posix_acl_access";
  }
  static Task<void> wait_for(Task<void> task) { co_await task; }

  Mount* mount_;
  std::array<std::byte, 70000> content_;
  std::vector<Mount::Handle> handles_;
  std::list<Interrupt> interrupts_;  ///< Of calls that have not answered.
  TaskScope tasks_;
};

void act(Input& input, Coordinator& coordinator, Programs& programs, fakes::ManualLoop& loop) {
  switch (static_cast<Step>(input.take() % kSteps)) {
    case greet: return coordinator.greet_with(input.take(input.take()));
    case reply: {
      auto length = input.take();
      auto bulk = input.take<std::uint16_t>();
      auto bytes = input.take(length);
      return coordinator.answer(bytes, input.take(bulk));
    }
    case again: return coordinator.answer_again();
    case notice: {
      wire::Frame one;
      one.set_id(input.take());
      auto bytes = input.take(input.take());
      if (one.mutable_notice()->ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
        coordinator.send(std::move(one));
      return;
    }
    case frame: {
      auto bytes = input.take(input.take<std::uint16_t>());
      wire::Frame any;
      if (any.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
        coordinator.send(std::move(any));
      return;
    }
    case wait: return loop.run_for(input.take() * 50ms);
    case leave: return coordinator.leave();
    case program: {
      auto what = input.take();
      programs.begin(what, input.take());
      return loop.settle();
    }
    case newer: ++coordinator.epoch; return;
    case kSteps: break;
  }
}

// --- Seeds

std::string step(int what, const std::string& rest = {}) {
  return std::string(1, static_cast<char>(what)) + rest;
}
std::string sized(const std::string& bytes) {
  return std::string(1, static_cast<char>(bytes.size())) + bytes;
}
std::string replied(const wire::Reply& what, const std::string& bulk = {}) {
  auto bytes = what.SerializeAsString();
  return step(reply, std::string(1, static_cast<char>(bytes.size())) +
                         number(static_cast<std::uint16_t>(bulk.size())) + bytes + bulk);
}
std::string noticed(int id, const wire::Notice& what) {
  return step(notice, std::string(1, static_cast<char>(id)) + sized(what.SerializeAsString()));
}
std::string does(Doing what, int where = 0) {
  return step(program, std::string(1, static_cast<char>(what)) + static_cast<char>(where));
}

}  // namespace

void run(std::span<const std::byte> bytes) {
  fakes::ManualLoop loop;
  auto disk = disk_of(image(), loop);
  Random random{7};
  Input input{bytes};
  auto how = input.take();
  {
    Coordinator coordinator{loop, (how & 1) != 0, (how & 2) != 0};
    MountSurroundings around;
    around.loop = &loop;
    around.random = &random;
    around.open_lun = iscsi::RamDisk::opener(disk, loop);
    around.connect = [&](protocol::Connected done) { coordinator.connect(std::move(done)); };
    around.open_until = [&loop] { return loop.now() + 1h; };
    around.volume = "volume1";
    around.node = NodeId{2};
    auto mount = Mount::start(std::move(around));
    Programs programs{*mount};
    programs.watch_ready();
    loop.run_for(200ms);
    for (int steps = 0; !input.empty() && steps < 200; ++steps)
      act(input, coordinator, programs, loop);
    loop.run_for(2s);
    mount.reset();
  }
  loop.run_for(1s);
}

std::vector<Seed> seeds() {
  std::vector<Seed> all;
  auto add = [&](const std::string& name, int how, const std::string& steps) {
    all.push_back({name, std::string(1, static_cast<char>(how)) + steps});
  };
  wire::Reply attr, opened, layout, grant, hole, shipped, written, entries, none, refused, retry,
      ended, fs, position;
  auto file = [](wire::Attr& out, std::uint64_t size) {
    out.set_inode(33);
    out.set_generation(1);
    out.set_mode(S_IFREG | 0644);
    out.set_nlink(1);
    out.set_size(size);
  };
  file(*attr.mutable_attr(), 64 * 4096);
  auto segment = [](wire::Reply& out, std::uint64_t at, std::uint64_t length, std::uint64_t lun,
                    unsigned state) {
    auto& one = *out.mutable_layout()->add_segments();
    one.set_offset(at);
    one.set_length(length);
    one.set_lun_offset(lun);
    one.set_state(state);
    out.mutable_layout()->set_size(64 * 4096);
    out.mutable_layout()->set_sequence(3ull << 32);
  };
  segment(layout, 0, 64 * 4096, 300ull << 20, 1);
  layout.mutable_layout()->set_write(true);
  segment(hole, 0, 64 * 4096, 0, 0);
  segment(grant, 60 * 4096, 1 << 20, 301ull << 20, 2);
  grant.mutable_layout()->set_grant(9);
  grant.mutable_layout()->set_write(true);
  shipped.mutable_layout()->set_shipped(true);
  written.mutable_written()->set_length(4096);
  file(*written.mutable_written()->mutable_attr(), 64 * 4096);
  auto& entry = *entries.mutable_entries()->add_entries();
  entry.set_name("file");
  entry.set_cookie(3);
  file(*entry.mutable_attr(), 5);
  refused.mutable_failure()->set_code(2);
  refused.mutable_failure()->set_generic(true);
  retry.mutable_failure()->set_code(static_cast<unsigned>(Errc::retry));
  ended.mutable_failure()->set_code(static_cast<unsigned>(Errc::session_ended));
  fs.mutable_fs_stat()->set_total_blocks(1000);
  position.mutable_position()->set_offset(5);
  wire::Notice recall, query, fenced;
  recall.mutable_recall()->set_inode(33);
  recall.mutable_recall()->set_length(~0ull);
  recall.mutable_recall()->set_reads_too(true);
  recall.mutable_recall()->set_sequence((3ull << 32) + 5);
  query.mutable_query_wrote()->set_inode(33);
  fenced.mutable_fenced()->set_reason("because");
  wire::Reply watching = attr, value, cloned, found, resumed;
  watching.add_watched(33);
  watching.add_watched(1);
  watching.set_vouched_ms(2000);
  file(*watching.add_also(), 5);
  value.mutable_bytes()->set_value(std::string("user.a\0", 7));
  cloned.mutable_cloned()->set_length(4 * 4096);
  file(*cloned.mutable_cloned()->mutable_attr(), 64 * 4096);
  found.mutable_lock_found()->set_type(2);
  found.mutable_lock_found()->set_last(~0ull);
  resumed.mutable_resumed()->add_inodes(33);
  resumed.mutable_resumed()->add_inodes(99);
  wire::Notice unwatch;
  unwatch.mutable_unwatch()->add_inodes(33);
  unwatch.mutable_unwatch()->add_attributes(1);
  const std::string content(60000, 'c');
  auto open = does(Doing::open) + replied(attr);

  add("silent", 0, step(wait, "\xff"));
  add("greeted", 1, step(wait, "\x40"));
  add("admitted", 3,
      does(Doing::look_up) + replied(attr) + does(Doing::see) + replied(attr) +
          does(Doing::ask_space) + replied(fs));
  add("by-hand", 0, step(greet, sized("")) + replied(none) + replied(none) + step(wait, "\x05"));
  add("foreign-volume", 0, step(greet, sized([] {
                                  wire::HelloReply other;
                                  other.set_volume_id(std::string(16, 'x'));
                                  return other.SerializeAsString();
                                }())));
  add("foreign-lun", 0,
      step(greet, sized([] {
             wire::HelloReply other;
             other.set_lun_identity("naa.another");
             return other.SerializeAsString();
           }())) +
          step(wait, "\x14"));
  add("slot-outside", 2,
      step(greet, sized([] {
             wire::HelloReply other;
             other.set_slot_offset((1ull << 63) - 5000);
             return other.SerializeAsString();
           }())) +
          step(wait, "\x14"));
  add("no-session", 2,
      step(greet, sized([] {
             wire::HelloReply other;
             other.mutable_failure()->set_code(static_cast<unsigned>(Errc::session_ended));
             return other.SerializeAsString();
           }())) +
          step(wait, "\x14"));
  add("read", 3,
      open + does(Doing::read) + replied(layout) + step(wait, "\x02") + does(Doing::read, 1) +
          does(Doing::close));
  add("read-hole", 3, open + does(Doing::read) + replied(hole) + step(wait, "\x02"));
  add("read-shipped", 3, open + does(Doing::read) + replied(shipped) + replied(none, content));
  add("read-too-much", 3, open + does(Doing::read) + replied(shipped) + replied(position, content));
  add("write", 3,
      open + does(Doing::write) + replied(layout) + step(wait, "\x02") + does(Doing::sync) +
          does(Doing::close));
  add("write-grant", 3,
      open + does(Doing::write, 16) + replied(grant) + step(wait, "\x02") + replied(none) +
          replied(attr));
  add("write-shipped", 3,
      open + does(Doing::write) + replied(shipped) + replied(written) + does(Doing::append) +
          replied(written));
  add(
      "written-much", 3, open + does(Doing::append) + [&] {
        auto more = written;
        more.mutable_written()->set_length(~0u);
        return replied(more);
      }());
  add(
      "layout-outside", 3, open + does(Doing::read) + [&] {
        wire::Reply far;
        segment(far, 0, 64 * 4096, (1ull << 62), 1);
        return replied(far) + step(wait, "\x05");
      }());
  add(
      "layout-odd", 3, open + does(Doing::read) + [&] {
        wire::Reply odd;
        segment(odd, 1, 3, 7, 1);
        segment(odd, 0, 0, 0, 2);
        segment(odd, 100, 64 * 4096, 513, 1);
        return replied(odd) + step(wait, "\x05") + step(again) + step(again);
      }());
  add(
      "layout-nothing", 3, open + does(Doing::read) + [&] {
        wire::Reply nothing;
        nothing.mutable_layout();
        return replied(nothing) + step(again) + step(again) + step(again) + step(again);
      }());
  add("wrong-result", 3,
      does(Doing::look_up) + replied(entries) + does(Doing::list) + replied(attr) +
          does(Doing::open) + replied(none) + does(Doing::read_link) + replied(fs) + open +
          does(Doing::read) + replied(attr));
  add("errors", 3,
      does(Doing::look_up) + replied(refused) + does(Doing::see) + replied(retry) +
          step(wait, "\x02") + replied(ended) + step(wait, "\x05"));
  add("recall", 3,
      open + does(Doing::read) + replied(layout) + noticed(1, recall) + does(Doing::read) +
          replied(layout) + noticed(2, query) + step(wait, "\x02"));
  add("recall-in-flight", 3,
      open + does(Doing::write) + noticed(1, recall) + replied(layout) + noticed(1, recall) +
          step(wait, "\x02"));
  wire::Reply claim = layout;
  claim.mutable_layout()->set_pages_length(16 * 4096);
  wire::Notice pages;
  pages.mutable_recall()->set_inode(33);
  pages.mutable_recall()->set_length(3 * 4096);
  pages.mutable_recall()->set_sequence(4ull << 32);
  pages.mutable_recall()->set_pages(true);
  add("pages", 3,
      does(Doing::open, 2) + replied(attr) + does(Doing::read, 7) + replied(claim) +
          step(wait, "\x02") + noticed(1, pages) + step(wait, "\x02") + does(Doing::read, 7) +
          replied(claim) + does(Doing::write) + step(wait, "\x02"));
  add("pages-recalled-in-flight", 3,
      open + does(Doing::read, 7) + noticed(1, pages) + replied(claim) + step(wait, "\x02") +
          replied(shipped) + replied(none));
  add("names", 3,
      does(Doing::make) + replied(attr) + does(Doing::link) + replied(attr) + does(Doing::rename) +
          replied(attr) + does(Doing::unlink) + replied(attr) + does(Doing::make, 3) +
          replied(entries) + does(Doing::unlink, 1) + replied(refused));
  add("names-that-are-watched", 3,
      does(Doing::look_up) + replied(watching) + does(Doing::look_up) + does(Doing::see) +
          noticed(1, unwatch) + does(Doing::see) + replied(watching) + does(Doing::rename, 1) +
          replied(attr) + does(Doing::look_up) + replied(none));
  add("attributes", 3,
      does(Doing::set_xattr, 20) + replied(none) + does(Doing::get_xattr) + replied(value) +
          does(Doing::list_xattrs) + replied(value) + does(Doing::remove_xattr) + replied(attr) +
          does(Doing::set_xattr, 5) + replied(refused) + does(Doing::change, 1) + replied(attr) +
          does(Doing::truncate, 9) + replied(none) + does(Doing::read_link, 1) + replied(value));
  add("allocated", 3,
      open + does(Doing::allocate, 4) + replied(none) + does(Doing::allocate, 12) +
          replied(written) + does(Doing::seek) + replied(position) + does(Doing::seek, 1) +
          replied(attr) + does(Doing::truncate_through, 7) + replied(attr));
  add("cloned", 3,
      open + does(Doing::clone, 4) + replied(cloned) + does(Doing::clone, 5) + replied(none) +
          does(Doing::clone, 6) + replied(written));
  add("locked", 3,
      open + does(Doing::lock) + replied(none) + does(Doing::test_lock, 4) + replied(found) +
          does(Doing::lock, 20) + replied(none) + does(Doing::unlock) + replied(none) +
          does(Doing::lock, 1) + replied(refused) + does(Doing::flush) + replied(none) +
          does(Doing::test_lock) + replied(position) + does(Doing::close) + replied(none));
  add("locked-and-interrupted", 3,
      open + does(Doing::lock, 16) + does(Doing::interrupt) + replied(none) + replied(none) +
          does(Doing::lock, 21) + step(leave) + step(wait, "\x04") + does(Doing::interrupt));
  add("locked-and-reconnected", 3,
      open + does(Doing::lock) + replied(none) + does(Doing::lock, 20) + step(leave) + step(newer) +
          step(wait, "\x20") + replied(none) + replied(none) + does(Doing::unlock));
  add("interrupted", 3,
      open + does(Doing::write) + does(Doing::interrupt) + replied(layout) + does(Doing::unlink) +
          does(Doing::interrupt) + replied(attr) + does(Doing::set_xattr) + step(leave) +
          does(Doing::interrupt) + step(wait, "\x04"));
  add("resumed", 3,
      open + does(Doing::lock) + replied(none) + step(leave) +
          step(greet, sized([] {
                 wire::HelloReply other;
                 other.mutable_failure()->set_code(static_cast<unsigned>(Errc::session_ended));
                 return other.SerializeAsString();
               }())) +
          step(wait, "\x20") + replied(resumed) + step(wait, "\x04") + replied(none) +
          does(Doing::read) + replied(layout));
  add("nameless", 3,
      does(Doing::create, 2) + replied(attr) + does(Doing::write) + replied(grant) +
          step(wait, "\x02") + replied(none) + does(Doing::close) + replied(none));
  add("fenced", 3,
      open + does(Doing::write) + replied(layout) + noticed(1, fenced) + step(wait, "\x20"));
  add("reconnect", 3,
      open + does(Doing::write) + step(leave) + step(newer) + step(wait, "\x20") + replied(layout) +
          step(wait, "\x02"));
  add("stranger", 0, step(frame, [] {
        wire::Frame beat;
        beat.mutable_beat()->set_node(1);
        auto bytes = beat.SerializeAsString();
        return number(static_cast<std::uint16_t>(bytes.size())) + bytes;
      }()));
  add(
      "list", 3, does(Doing::list) + replied(entries) + does(Doing::list_xattrs) + [&] {
        wire::Reply bytes;
        bytes.mutable_bytes()->set_value("no end");
        return replied(bytes);
      }());
  return all;
}

}  // namespace csv::fuzz
