#include "csvfs/admission.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "csvfs/base/crc32c.h"
#include "csvfs/base/events.h"
#include "csvfs/base/heartbeat_slot.h"
#include "csvfs/base/log.h"
#include "iscsi/kept_identity.h"

namespace csv {
namespace {

constexpr Duration kFirstBackoff = 100ms, kLongestBackoff = 2s;
constexpr Duration kBeat = 1s;
/// A path that lasted no longer is no reason to try the next one at once.
constexpr Duration kLasting = 5s;
/// Longer than what waits takes until it is tried again.
constexpr Duration kToldFor = 2s;

/// With the sessions' indices it makes the ISIDs, so it must be the same after every reconnect, and
/// another one for every process of this node that logs in to the same target.
std::uint64_t isid_seed(const std::string& volume, NodeId node) {
  auto name = crc32c(std::as_bytes(std::span{volume}));
  return (std::uint64_t{name} << 16) | (std::uint64_t{raw(node)} << 2) | raw(KeyRole::mount);
}

}  // namespace

Admission::Admission(Setup setup, CoordinatorClient& client)
    : setup_{std::move(setup)}, client_{&client}, changed_{*setup_.loop} {
  tasks_.spawn(keep_admitted());
}

Admission::~Admission() {
  tasks_.cancel_all();
  if (path_) path_->destroy();
  if (candidate_) candidate_->destroy();
  if (left_) left_->destroy();
}

void Admission::session_began(const wire::HelloReply& about) {
  about_ = about;
  std::memcpy(volume_id_.data(), about.volume_id().data(),
              std::min(volume_id_.size(), about.volume_id().size()));
  trouble_ = Error{Errc::retry, "not admitted yet"};
  changed_.notify();
}

void Admission::lun_has(std::uint64_t bytes) {
  if (!about_ || about_->lun_size() >= bytes) return;
  about_->set_lun_size(bytes);
  // A way that was opened before it grew does not reach the new blocks.
  if (path_ && path_->lun().geometry().size_bytes() < bytes)
    lost(std::shared_ptr{path_}, Error{Errc::lun_lost, "the LUN was enlarged"});
}

void Admission::session_ended() {
  about_.reset();
  trouble_ = Error{Errc::retry, "the session has ended"};
  if (auto path = std::exchange(path_, nullptr)) path->close();
  if (auto path = std::exchange(candidate_, nullptr)) path->close();
  if (left_) left_->close();
  changed_.notify();
}

void Admission::lost(std::shared_ptr<LunPath> path, const Error& why) {
  if (!path) return;
  if (path == candidate_) {
    path->close();  // whoever is admitting over it will see it fail
    return;
  }
  if (path != path_) return;
  log::warning("mount path lost volume={} key={:x} why=\"{}\"", setup_.volume, raw(path->key()),
               why.message());
  events::report(events::Severity::warning, "lun", setup_.volume,
                 "this node's path to the LUN was lost", why.message());
  path_ = nullptr;
  path->close();
  trouble_ = why.within("the path to the LUN was lost");
  changed_.notify();
}

void Admission::waits(const Error& why) {
  waiting_ = why;
  waiting_until_ = setup_.loop->now() + kToldFor;
  changed_.notify();
}

const Error* Admission::waiting() const {
  return setup_.loop->now() < waiting_until_ ? &waiting_ : nullptr;
}

Task<void> Admission::keep_admitted() {
  auto backoff = kFirstBackoff;
  TimePoint tried_at{};  // lately: an attempt that failed, or came to a path
  for (;;) {
    while (path_ || !about_ || leaving_) co_await changed_.wait();
    if (setup_.loop->now() - tried_at > kLasting) {
      backoff = kFirstBackoff;
    } else {
      co_await sleep(*setup_.loop, backoff);
      backoff = std::min(backoff * 2, kLongestBackoff);
      if (path_ || !about_ || leaving_) continue;
    }
    auto session = client_->session();
    auto admitted = co_await admit();
    candidate_ = nullptr;
    if (admitted && session == client_->session() && !(*admitted)->closed() && !leaving_) {
      path_ = *admitted;
      trouble_ = {};
      tried_at = setup_.loop->now();
      ++admissions_;
      log::info("mount admitted volume={} session={} key={:x}", setup_.volume, raw(session),
                raw(path_->key()));
      tasks_.spawn(beat(path_));
      changed_.notify();
      continue;
    }
    if (admitted) {
      (*admitted)->close();
      continue;
    }
    auto why = admitted.error();
    if (why == Errc::session_ended) continue;
    if (trouble_.message() != why.message())
      log::warning("mount not admitted volume={} session={} why=\"{}\"", setup_.volume,
                   raw(session), why.message());
    if (trouble_.message() != why.message())
      events::report(events::Severity::warning, "lun", setup_.volume, "not admitted to the LUN",
                     why.message());
    trouble_ = why;
    tried_at = setup_.loop->now();
    changed_.notify();
  }
}

/// The order is that of docs/safety.md: only the answer to AdmitDone, which the coordinator gives
/// after it has seen the key on the target, opens the path for I/O.
Task<Expected<std::shared_ptr<LunPath>>> Admission::admit() {
  CoordinatorClient::CallOptions options;
  options.early = true;
  options.session = client_->session();
  wire::Request begin;
  begin.mutable_admit_begin();
  CSV_CO_TRY(answer, co_await client_->call(std::move(begin), options));
  Key key{answer.reply.admission().key()};
  if (key == Key{}) co_return Error{Errc::refused, "the coordinator gave no key"};

  auto lun = co_await open();
  auto fits = lun ? check(**lun) : Expected<void>{lun.error()};
  wrong_lun_ = !fits && fits.error() == Errc::refused;
  if (!fits) co_return fits.error();
  auto path = std::make_shared<LunPath>(*setup_.loop, *std::move(lun), key);
  candidate_ = path;
  path->lun().on_lost([this, alive = std::weak_ptr{alive_}, weak = std::weak_ptr{path}](Error why) {
    auto strong = weak.lock();
    if (strong && !alive.expired()) lost(strong, why);
  });
  path->on_forgot([this, alive = std::weak_ptr{alive_}](const Error& why) {
    if (alive.expired()) return;
    log::error("the target lost what its write cache held volume={} why=\"{}\"", setup_.volume,
               why.message());
    events::report(events::Severity::error, "lun", setup_.volume,
                   "the target could not keep what its write cache held: files written and not "
                   "synced since will answer one fsync with EIO",
                   why.message());
    if (forgot_) forgot_();
  });
  auto registered = co_await path->register_key(key);
  if (registered) {
    registered = check(path->lun());  // now that it has to say its size
    wrong_lun_ = !registered && registered.error() == Errc::refused;
  }
  if (registered) registered = co_await write_slot(path);
  if (!registered) {
    path->close();
    co_return registered.error().within("admission");
  }
  wire::Request done;
  done.mutable_admit_done()->set_key(raw(key));
  auto admitted = co_await client_->call(std::move(done), options);
  if (!admitted) {
    path->close();
    co_return admitted.error();
  }
  co_return path;
}

Task<Expected<std::unique_ptr<iscsi::Lun>>> Admission::open() {
  iscsi::LunOptions options;
  options.isid_seed = isid_seed(setup_.volume, setup_.node);
  options.role = "mount";
  co_return co_await completion<Expected<std::unique_ptr<iscsi::Lun>>>(
      [&](auto done) { setup_.open_lun(options, std::move(done)); });
}

Expected<void> Admission::check(iscsi::Lun& lun) const {
  if (!about_) return Error{Errc::session_ended};
  const auto& profile = lun.profile();
  const auto& geometry = lun.geometry();
  if (auto identity = iscsi::kept_identity(profile.identity); identity != about_->lun_identity())
    return Error{Errc::refused,
                 fmt::format("this is not the LUN of volume {}: it is {}, the volume was formatted "
                             "on {}",
                             setup_.volume, identity, about_->lun_identity())};
  if (geometry.known() && geometry.size_bytes() < about_->lun_size())
    return Error{Errc::refused,
                 fmt::format("the LUN of volume {} has {} bytes, fewer than the volume's {}",
                             setup_.volume, geometry.size_bytes(), about_->lun_size())};
  if (profile.write_protected)
    return Error{Errc::refused,
                 fmt::format("the LUN of volume {} is write-protected", setup_.volume)};
  return {};
}

Task<Expected<void>> Admission::write_slot(std::shared_ptr<LunPath> path) {
  if (!about_) co_return Errc::session_ended;
  auto sent = setup_.loop->now();
  HeartbeatSlot slot{path->key(), ++counter_, 0, setup_.loop->wall_now()};
  if (setup_.open_until) slot.quorate = sent < setup_.open_until();
  auto bytes = std::make_shared<Buffer>(Buffer::copy_of(encode(slot, volume_id_)));
  std::vector<LunPath::Write> pieces{{about_->slot_offset(), bytes->span()}};
  auto written = co_await path->write(std::move(pieces), {}, bytes);
  if (written) reached_ = sent;
  co_return written;
}

/// A conflict on one's own slot is how a fence is noticed, within a second, also without I/O.
Task<void> Admission::beat(std::shared_ptr<LunPath> path) {
  while (path == path_) {
    co_await sleep(*setup_.loop, kBeat);
    if (path != path_) co_return;
    auto written = co_await write_slot(path);
    if (!written && written.error() == std::errc::no_space_on_device)
      waits(written.error());  // and not fenced
    else if (!written)
      lost(path, written.error().within("writing the heartbeat slot"));
  }
}

Task<void> Admission::leave() {
  leaving_ = true;
  // From here on nothing more is sent: programs may still have files open.
  auto path = left_ = std::exchange(path_, nullptr);
  trouble_ = Error{Errc::closed, "unmounting"};
  changed_.notify();
  if (!path) co_return;
  // What the target has may pass its check of reservations, and be executed after the key is gone.
  co_await path->drained();
  auto gone = co_await path->register_key(Key{});
  if (!gone)
    log::warning("mount key not unregistered volume={} key={:x} why=\"{}\"", setup_.volume,
                 raw(path->key()), gone.error().message());
  path->close();
}

}  // namespace csv
