#include "csvfs/second_walks.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace csv {
namespace {

constexpr std::size_t kMost = 1024;  // each may keep a file open
constexpr int kTries = 200;          // each a question and its answer

}  // namespace

void SecondWalks::begins(pid_t thread) {
  if (walks_.size() >= kMost && !walks_.contains(thread))
    ends(std::min_element(walks_.begin(), walks_.end(), [](const auto& a, const auto& b) {
           return std::pair{a.second.waiting > 0, a.second.until} <
                  std::pair{b.second.waiting > 0, b.second.until};
         })->first);
  walks_[thread].until = loop_.now() + lasts_;
  if (!std::exchange(timed_, true)) tasks_.spawn(end_in_time());
}

bool SecondWalks::waits(pid_t thread) {
  auto walk = walks_.find(thread);
  if (walk == walks_.end()) return false;
  if (walk->second.waiting++ == 0) walk->second.since = loop_.now();
  return true;
}

void SecondWalks::has_waited(pid_t thread) {
  auto walk = walks_.find(thread);
  // It may be another walk by now.
  if (walk == walks_.end() || walk->second.waiting == 0 || --walk->second.waiting > 0) return;
  walk->second.until += loop_.now() - walk->second.since;
}

Task<Expected<wire::Attr>> SecondWalks::lookup(pid_t thread, InodeId parent, std::string name) {
  waits(thread);
  Expected<wire::Attr> found = std::errc::no_such_file_or_directory;
  for (int tries = kTries; tries > 0; --tries) {
    found = co_await mount_.lookup(parent, name);
    if (!found || S_ISDIR(found->mode())) break;
    auto opened = co_await mount_.open(InodeId{found->inode()}, {});
    if (opened) keep(thread, opened->handle);
    // Removed in between: there may be another one by now.
    if (opened || opened.error().to_errno() != ESTALE) break;
  }
  has_waited(thread);
  co_return std::move(found);
}

void SecondWalks::keep(pid_t thread, Mount::Handle found) {
  auto walk = walks_.find(thread);
  // Threads that we cannot tell apart (number 0) end each other's walks.
  auto before = walk == walks_.end() ? found : std::exchange(walk->second.kept, found);
  if (before) tasks_.spawn(mount_.close(*before));
}

void SecondWalks::ends(pid_t thread) {
  auto walk = walks_.extract(thread);
  if (!walk.empty() && walk.mapped().kept) tasks_.spawn(mount_.close(*walk.mapped().kept));
}

Task<void> SecondWalks::end_in_time() {
  while (!walks_.empty()) {
    auto now = loop_.now();
    auto next = now + lasts_;
    for (auto walk = walks_.begin(); walk != walks_.end();) {
      auto [thread, what] = *walk++;
      if (what.waiting > 0) continue;
      if (what.until <= now)
        ends(thread);
      else
        next = std::min(next, what.until);
    }
    co_await sleep(loop_, next - now);
  }
  timed_ = false;
}

}  // namespace csv
