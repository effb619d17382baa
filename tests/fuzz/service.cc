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
              second);
}
std::string admitted(bool second = false) {
  wire::Request begin, done;
  begin.mutable_admit_begin();
  // The number of the first key after the image's.
  done.mutable_admit_done()->set_key(
      raw(make_key({kCluster, second ? NodeId{4} : NodeId{3}, KeyRole::mount, second ? 3u : 2u})));
  return step(greet, sized(""), second) + step(resumed, "", second) + ask(0, begin, "", second) +
         step(wait, "\x05", second) + step(enter_key, "", second) + ask(0, done, "", second) +
         step(wait, "\x05", second);
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
  // The root's "file" is inode 33 in the image: root, folder and its 30 files come before.
  constexpr std::uint64_t kFile = 33;
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
  return all;
}

}  // namespace csv::fuzz
