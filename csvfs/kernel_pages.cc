#include "csvfs/kernel_pages.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace csv {
namespace {

constexpr std::uint64_t kPage = 4096;
/// How long a page that was handed over is left alone, and how long it may take to get there.
constexpr Duration kUse = 2ms, kPatience = 50ms;
constexpr std::size_t kMostRanges = 4096;  ///< Of a file; beyond, gaps count as held.
/// Before the lease ends others must not be able to see what our programs do not: pages go early.
constexpr Duration kLeaseLook = 100ms, kLeaseLeft = 500ms;
constexpr auto kEnd = std::numeric_limits<std::uint64_t>::max();

std::uint64_t up(std::uint64_t value) {
  return value > kEnd - kPage ? kEnd / kPage * kPage : (value + kPage - 1) / kPage * kPage;
}

Error over() {
  return Error{std::errc::io_error, "the session under which it was opened has ended"};
}

/// A request of the page cache that has not been answered.
class Reading {
 public:
  Reading(FilePtr file, Range range) : file_{std::move(file)} {
    auto& all = file_->pages.reading;
    at_ = all.insert(all.end(), {range});
  }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;
  ~Reading() { file_->pages.reading.erase(at_); }
  [[nodiscard]] bool overtaken() const { return at_->overtaken; }
  /// Somebody else may ask for them now, and get them.
  void given_up() { at_->range = {}; }
  void begins() { at_->overtaken = at_->granted = false; }
  void granted() { at_->granted = true; }

 private:
  FilePtr file_;
  std::list<FilePages::Reading>::iterator at_;
};

}  // namespace

bool FilePages::is_closed(Range range) const {
  return std::any_of(closed.begin(), closed.end(),
                     [&](const auto& each) { return each.range.overlaps(range); });
}

std::optional<TimePoint> FilePages::recalled_since(Range range) const {
  std::optional<TimePoint> since;
  for (const auto& each : closed)
    if (each.recalled && each.range.overlaps(range))
      since = std::min(since.value_or(*each.recalled), *each.recalled);
  return since;
}

void FilePages::trim(std::uint64_t size) {
  Range beyond{up(size), kEnd};
  clean.remove(beyond);
  dirty.remove(beyond);
}

void FilePages::forget() {
  clean.clear();
  dirty.clear();
  held.clear();
}

Range KernelPages::pages_of(std::uint64_t offset, std::uint64_t length) {
  auto end = length > kEnd - offset ? kEnd : offset + length;
  return {offset / kPage * kPage, up(end)};
}

KernelPages::Closed::Closed(FilePtr file, Range range, std::optional<TimePoint> recalled)
    : file_{std::move(file)} {
  auto& pages = file_->pages;
  at_ = pages.closed.insert(pages.closed.end(), {range, recalled});
  for (auto& each : pages.reading)
    if (each.range.overlaps(range)) each.overtaken = true;
}

KernelPages::Closed::~Closed() {
  file_->pages.closed.erase(at_);
  file_->changed.notify();
}

Task<Expected<Mount::Content>> KernelPages::read(FilePtr file, std::uint64_t offset,
                                                 std::uint32_t length, Interrupt* interrupt) {
  auto range = pages_of(offset, length);
  auto& pages = file->pages;
  // The kernel asks for what it does not have. Whatever drops pages may stand behind this request,
  // which may have to wait: so nobody waits for that any more.
  pages.held.remove(range);
  for (auto& pass : pages.passes) {
    if (!pass->ranges.overlaps(range)) continue;
    pass->ranges.remove(range);
    pass->overtaken = true;
    file->changed.notify();
  }
  if (!std::exchange(watching_, true)) tasks_.spawn(watch_lease());
  Reading reading{file, range};
  auto given_up = [&reading, &file] {
    reading.given_up();
    file->changed.notify();
  };
  Interrupt::Watch watch{interrupt, given_up};
  for (;;) {
    while (!file->ended && pages.is_closed(range) && !(interrupt && interrupt->raised()))
      co_await file->changed.wait();
    if (file->ended) co_return over();
    if (interrupt && interrupt->raised()) co_return Error{std::errc::interrupted};
    if (!lease_lasts()) {  // they would have to go again at once
      co_await sleep(*loop_, kLeaseLook);
      continue;
    }
    reading.begins();
    auto until = range.end;  // as far as this request is answered
    std::uint64_t size = kEnd;
    if (bool dirty = pages.writers > 0; !pages.claimed(range, dirty)) {
      auto claim = co_await io_->claim(file, range, dirty);
      if (!claim) co_return claim.error();
      if (!*claim) continue;
      size = **claim;
      // Of a page beyond the end nothing is claimed, nor answered.
      until = std::max(range.begin, std::min(until, up(size)));
      if (until > range.begin && !pages.claimed({range.begin, until}, dirty)) continue;
    }
    reading.granted();
    Mount::Content content;
    auto wanted = std::min<std::uint64_t>(length, until - std::min(until, offset));
    if (wanted > 0) {
      auto got = co_await io_->read(file, offset, static_cast<std::uint32_t>(wanted));
      if (!got) co_return got.error();
      content = *std::move(got);
    }
    if (file->ended) co_return over();
    bool still = !reading.overtaken() && !pages.is_closed(range) && lease_lasts() &&
                 !(interrupt && interrupt->raised()) &&
                 (until == range.begin || pages.claimed({range.begin, until}, pages.writers > 0));
    // To the kernel a short answer is the end of the file.
    bool grew = until < range.end && wanted > 0 && content.length == wanted && size < until;
    if (!still || grew) continue;
    pages.held.add(range);
    pages.held.coarsen(kMostRanges);
    pages.handed_over = loop_->now();
    if (until < range.end)
      tasks_.spawn(drop_beyond_end(file, {std::max(until, range.begin), range.end}));
    co_return std::move(content);
  }
}

/// Pages beyond the end are nobody's: nothing would recall them, should the file grow.
Task<void> KernelPages::drop_beyond_end(FilePtr file, Range range) {
  co_await yield(*loop_);
  co_await clear(file, range);
}

Task<void> KernelPages::clear(FilePtr file, Range range, Interrupt* interrupt) {
  auto& pages = file->pages;
  Interrupt::Watch watch{interrupt, [&file] { file->changed.notify(); }};
  auto over = [&] { return file->ended || (interrupt && interrupt->raised()); };
  while (!over()) {
    // With gaps counted as held: these are known to be absent, and would only be waited for.
    for (const auto& each : pages.reading) pages.held.remove(each.range);
    auto there = pages.held.within(range);
    if (there.empty()) {
      bool running = std::any_of(pages.passes.begin(), pages.passes.end(), [&](const auto& each) {
        return !each->overtaken && each->ranges.overlaps(range);
      });
      if (!running) co_return;
      co_await file->changed.wait();
      continue;
    }
    auto pass = std::make_shared<FilePages::Pass>();
    for (auto each : there) {
      pass->ranges.add(each);
      pages.held.remove(each);
    }
    if (!drop_) continue;  // no kernel
    pages.passes.push_back(pass);
    drop_(file->inode, std::move(there), pages.writers == 0, [pass, file] {
      pass->done = true;
      file->changed.notify();
    });
    while (!pass->done && !pass->overtaken && !over()) co_await file->changed.wait();
    std::erase(pages.passes, pass);
    if (!pass->done)
      for (auto each : pass->ranges.all()) pages.held.add(each);
    file->changed.notify();
  }
}

/// Two nodes that store into one page would only ever pass it on, if neither were given the time to
/// use it: what was claimed is handed over, and left to the program for a moment.
Task<void> KernelPages::let_use(FilePtr file, Range range) {
  auto& pages = file->pages;
  auto patience = loop_->now() + kPatience;
  co_await yield(*loop_);  // an answer that came before the recall may not have been looked at
  while (!file->ended && loop_->now() < patience) {
    bool coming = std::any_of(pages.reading.begin(), pages.reading.end(), [&](const auto& each) {
      return each.granted && each.range.overlaps(range);
    });
    auto until = pages.handed_over + kUse;
    bool in_use = pages.held.overlaps(range) && loop_->now() < until;
    if (!coming && !in_use) co_return;
    co_await sleep(*loop_, coming ? kUse / 4 : until - loop_->now());
  }
}

Task<void> KernelPages::give_up(FilePtr file, Range range, std::uint64_t sequence,
                                Function<void()> answer) {
  co_await let_use(file, range);
  Closed closed{file, range, loop_->now()};
  co_await clear(file, range);
  auto& pages = file->pages;
  pages.clean.remove(range);
  pages.dirty.remove(range);
  pages.recalled = std::max(pages.recalled, sequence);
  answer();
}

namespace {

/// A page that cannot be written just now must keep few others from going, and no more than a part
/// of the threads that make them go busy.
std::vector<Range> parts(const std::vector<Range>& ranges) {
  constexpr std::size_t kMost = 32;
  std::uint64_t all = 0;
  for (auto each : ranges) all += each.end - each.begin;
  auto most = std::max<std::uint64_t>(all / kPage / kMost, 1) * kPage;
  std::vector<Range> out;
  std::uint64_t room = 0;  // in the last one
  for (auto each : ranges) {
    while (!each.empty()) {
      if (room == 0) {
        out.push_back({each.begin, each.begin});
        room = most;
      }
      auto taken = std::min(room, each.end - each.begin);
      each.begin += taken;
      room -= taken;
      out.back().end = each.begin;  // with the gaps in between, of which nothing is held
    }
  }
  return out;
}

}  // namespace

void KernelPages::target_lost() {
  ++losses_;
  for (const auto& [inode, file] : io_->files().all()) {
    for (auto& each : file->pages.reading) each.overtaken = true;  // perhaps read before it
    for (auto part : parts(file->pages.held.all())) tasks_.spawn(renew(file, part));
  }
}

/// In parts: one that cannot be written just now must keep few reads waiting.
Task<void> KernelPages::renew(FilePtr file, Range part) {
  auto& all = file->pages.renewed;
  auto at = all.insert(all.end(), part);
  {
    Closed closed{file, part};  // programs could bring them back faster than they go
    co_await clear(file, part);
  }
  all.erase(at);
  file->changed.notify();
}

// --- The lease --------------------------------------------------------------------------------

bool KernelPages::lease_lasts() const { return open_until_() > loop_->now() + kLeaseLeft; }

/// What programs see in pages is answered by nobody: without a lease it has to go.
Task<void> KernelPages::watch_lease() {
  for (;;) {
    co_await sleep(*loop_, kLeaseLook);
    if (lease_lasts()) continue;
    for (const auto& [inode, file] : io_->files().all()) {
      auto left = file->pages.held;
      for (auto each : file->pages.lapsing) left.remove(each);
      for (auto part : parts(left.all())) tasks_.spawn(lapse(file, part));
    }
  }
}

Task<void> KernelPages::lapse(FilePtr file, Range part) {
  auto& all = file->pages.lapsing;
  auto at = all.insert(all.end(), part);
  co_await clear(file, part);
  all.erase(at);
}

}  // namespace csv
