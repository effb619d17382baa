#include "coordinator/admin/tool.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <iostream>

#include "coordinator/service/volume_service.h"
#include "coordinator/volume/superblock.h"
#include "csvfs/base/log.h"

namespace csv::admin {
namespace {

constexpr Duration kQuietFor = 2s, kBetween = 200ms;

bool write_all(int fd, const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    auto n = ::write(fd, text.data() + at, text.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;  // nobody reads any more
    at += static_cast<std::size_t>(n);
  }
  return true;
}

}  // namespace

Terminal Terminal::standard(const Clock& clock) {
  return {clock, ::isatty(STDIN_FILENO) == 1 && ::isatty(STDERR_FILENO) == 1,
          ::isatty(STDERR_FILENO) == 1};
}

bool Terminal::out(const std::string& text) const { return write_all(STDOUT_FILENO, text); }
void Terminal::note(const std::string& text) const { write_all(STDERR_FILENO, text + "\n"); }

bool Terminal::confirm(const std::string& question) const {
  if (!may_ask_) return false;
  write_all(STDERR_FILENO, question + " Type yes to go on: ");
  std::string answer;
  return std::getline(std::cin, answer) && answer == "yes";
}

std::string Terminal::read_line(const std::string& question) const {
  if (may_ask_) write_all(STDERR_FILENO, question);
  std::string line;
  std::getline(std::cin, line);
  return line;
}

void Terminal::progress(const std::string& text) {
  if (!shows_progress_) return;
  if (text.empty()) {
    if (std::exchange(on_screen_, false)) write_all(STDERR_FILENO, "\r\033[K");
    return;
  }
  auto now = clock_->now();
  if (started_ == TimePoint{}) started_ = now;
  if (now - started_ < kQuietFor || now - shown_ < kBetween) return;
  shown_ = now;
  on_screen_ = true;
  write_all(STDERR_FILENO, "\r\033[K" + text);
}

void Terminal::progress(const std::string& doing, std::uint64_t done, std::uint64_t of) {
  progress(fmt::format("{}: {} %", doing, of == 0 ? 100 : done * 100 / of));
}

void Terminal::progress(const std::string& doing, Duration waited) {
  progress(fmt::format("{}: {} s", doing,
                       std::chrono::duration_cast<std::chrono::seconds>(waited).count()));
}

Expected<std::unique_ptr<ToolLun>> ToolLun::open(const std::string& url,
                                                 iscsi::LunOptions options) {
  std::unique_ptr<ToolLun> made{new ToolLun};
  made->loop_.start("csvctl-lun");
  Expected<std::unique_ptr<iscsi::Lun>> opened = Errc::lun_lost;
  made->wait_.wait([&](std::function<void()> wake) {
    iscsi::open_lun(made->loop_, url, std::move(options), [&opened, wake](auto result) {
      opened = std::move(result);
      wake();
    });
  });
  if (!opened) return opened.error().within("opening the LUN " + url);
  made->lun_ = *std::move(opened);
  made->blocking_ = std::make_unique<iscsi::BlockingLun>(*made->lun_, made->wait_);
  return made;
}

ToolLun::~ToolLun() {
  if (!lun_) return;
  // On its home loop, like everything that ends a Lun.
  wait_.wait([this](std::function<void()> wake) {
    loop_.post([this, wake] {
      blocking_.reset();
      lun_.reset();
      wake();
    });
  });
}

Expected<std::unique_ptr<TemporaryKey>> TemporaryKey::enter(iscsi::BlockingLun& lun,
                                                            Random& random) {
  auto held = CSV_TRY(lun.read_reservation());
  if (held.type == iscsi::ReservationType::none)
    return std::unique_ptr<TemporaryKey>{new TemporaryKey{lun, Key{}}};
  auto keys = CSV_TRY(lun.read_keys());
  KeyParts parts{.role = KeyRole::coordinator};
  if (!keys.keys.empty()) parts.cluster = parts_of(keys.keys.front()).cluster;
  parts.number = 1 + random.below((1ull << 38) - 1);
  auto key = make_key(parts);
  auto registered = lun.register_key(key);
  if (!registered) return registered.error().within("registering a temporary key");
  return std::unique_ptr<TemporaryKey>{new TemporaryKey{lun, key}};
}

Expected<void> TemporaryKey::leave() {
  if (key_ == Key{}) return {};
  key_ = Key{};
  return lun_->register_key(Key{});
}

Expected<std::unique_ptr<SoleUse>> SoleUse::enter(ToolLun& lun, std::uint16_t cluster,
                                                  Random& random) {
  auto& io = lun.blocking();
  // The volume's, so that its coordinator may remove a key that a crash of ours leaves.
  auto list = io.read_keys();
  if (!list) return list.error().within("reading the LUN's keys");
  for (auto key : list->keys)
    if (parts_of(key).cluster != 0) cluster = parts_of(key).cluster;
  auto held = CSV_TRY(io.read_reservation());
  if (held.type == iscsi::ReservationType::none) {
    auto copies = CSV_TRY(volume::read_superblock_copies(io));
    for (const auto* each : {&copies.c, &copies.b, &copies.a})
      if (each->state == volume::FoundSuperblock::State::valid) cluster = each->info.cluster;
  }
  auto key = make_key({.cluster = cluster,
                       .role = KeyRole::coordinator,
                       .number = 1 + random.below((1ull << 38) - 1)});
  if (auto registered = io.register_key(key); !registered)
    return registered.error().within("registering a key");
  std::unique_ptr<SoleUse> made{new SoleUse{lun, key}};
  made->users_ = CSV_TRY(service::look_for_users(io, key));
  return made;
}

Expected<void> SoleUse::take() {
  taken_ = true;
  return lun_->run([this] {
    return service::take_for_one(lun_->loop(), lun_->lun(), key_, users_,
                                 service::Timing{}.lease_term);
  });
}

SoleUse::~SoleUse() {
  bool in_the_way = cluster_ && *cluster_ != parts_of(key_).cluster;
  if (!taken_ || in_the_way) (void)lun_->blocking().register_key(Key{});
}

std::string tool_initiator(const std::string& config_file) {
  if (auto config = load_config(config_file)) return config->initiator;
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) return default_initiator("csvctl");
  return default_initiator(host.data());
}

}  // namespace csv::admin
