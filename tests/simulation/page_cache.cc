#include "tests/simulation/page_cache.h"

#include <algorithm>
#include <cerrno>
#include <limits>

namespace csv::sim {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr auto kEnd = std::numeric_limits<std::uint64_t>::max();
/// What a mount that goes on after it stood still needs to take pages away.
constexpr Duration kAwake = 250ms;
constexpr Duration kLook = 10ms;

Error over() { return errno_error(EIO, "the session has ended"); }

}  // namespace

PageCache::PageCache(SimLoop& loop, Mount& mount, std::function<TimePoint()> open_until)
    : loop_{&loop}, mount_{&mount}, open_until_{std::move(open_until)}, changed_{loop} {
  mount.drop_pages_with(
      [this](InodeId inode, std::vector<Range> ranges, bool, Function<void()> done) {
        tasks_.spawn(drop(inode, std::move(ranges), std::move(done)));
      });
}

/// The page once nobody has it locked; null where there is none.
Task<PageCache::Page*> PageCache::unlocked(Key key) {
  for (;;) {
    auto found = pages_.find(key);
    if (found == pages_.end()) co_return nullptr;
    if (!found->second.locked) co_return &found->second;
    co_await changed_.wait();
  }
}

Task<Expected<void>> PageCache::fault(File file, std::uint64_t index) {
  Key key{file.inode, index};
  for (;;) {
    if (mount_->state().session != file.session) co_return over();
    auto* page = co_await unlocked(key);
    if (page != nullptr && page->by.session == file.session) co_return Expected<void>{};
    if (page != nullptr) {  // of a former session: another inode to the kernel
      pages_.erase(key);
      continue;
    }
    Page coming;
    coming.locked = true;
    coming.by = file;
    pages_[key] = std::move(coming);
    auto got = co_await mount_->read_pages(file.handle, index * kPage, kPage);
    if (got) {
      auto bytes = got->buffer.span().subspan(got->skip, got->length);
      pages_.at(key).content.assign(bytes.begin(), bytes.end());
      pages_.at(key).locked = false;
    } else {
      pages_.erase(key);
    }
    changed_.notify();
    if (!got) co_return got.error();
    // That there is nothing the fault itself says, of a page beyond the end.
    if (pages_.at(key).content.empty()) co_return Expected<void>{};
    // The program runs when the scheduler lets it; the page may be gone again by then.
    co_await yield(*loop_);
  }
}

/// Past the lease nothing clean is left, but while the mount stands still, and a moment longer: a
/// program may go on before it. What is dirty cannot go before it is written.
Task<void> PageCache::until_mount_has_seen_to(Key key) {
  for (;;) {
    bool over = open_until_() <= loop_->now();
    // Whoever is fenced while it stands still, under a lease that its csvd keeps, may wake up with
    // pages that others have changed: nobody could take them away (docs/mount.md, "Limits").
    bool just_woke = loop_->stood_still_within(kAwake);
    if (!over && !just_woke) co_return;
    auto found = pages_.find(key);
    if (found == pages_.end()) co_return;  // the fault waits, too
    bool keeps = found->second.dirty || found->second.locked;
    if (!keeps && !just_woke) co_return;
    co_await sleep(*loop_, kLook);
  }
}

Task<Expected<std::vector<std::byte>>> PageCache::load(File file, std::uint64_t offset,
                                                       std::size_t length) {
  co_await until_mount_has_seen_to({file.inode, offset / kPage});
  CSV_CO_CHECK(co_await fault(file, offset / kPage));
  const auto& content = pages_.at({file.inode, offset / kPage}).content;
  auto at = offset % kPage;
  if (at + length > content.size()) co_return errno_error(EFAULT, "beyond the end");
  auto from = content.begin() + static_cast<std::ptrdiff_t>(at);
  co_return std::vector<std::byte>{from, from + static_cast<std::ptrdiff_t>(length)};
}

Task<Expected<void>> PageCache::store(File file, std::uint64_t offset,
                                      std::vector<std::byte> data) {
  Key key{file.inode, offset / kPage};
  auto failures = failures_[file.inode];
  CSV_CO_CHECK(co_await fault(file, key.second));
  auto& page = pages_.at(key);
  if (offset % kPage + data.size() > page.content.size())
    co_return errno_error(EFAULT, "beyond the end");
  std::copy(data.begin(), data.end(),
            page.content.begin() + static_cast<std::ptrdiff_t>(offset % kPage));
  page.dirty = true;
  page.by = file;
  CSV_CO_CHECK(co_await write_back(key));
  if (failures_[file.inode] != failures) co_return over();
  co_return Expected<void>{};
}

Task<Expected<void>> PageCache::write_back(Key key) {
  for (;;) {
    auto* page = co_await unlocked(key);
    if (page == nullptr || !page->dirty) co_return Expected<void>{};
    if (truncating_[key.first] == 0) break;
    co_await changed_.wait();
  }
  auto& page = pages_.at(key);
  page.locked = true;
  page.dirty = false;
  auto content = page.content;  // what is stored meanwhile makes it dirty again
  Mount::WriteOptions options;
  options.pages = true;
  auto written = co_await mount_->write(page.by.handle, key.second * kPage, content, options);
  if (written)
    pages_.at(key).locked = false;
  else
    pages_.erase(key);  // as the mount has it dropped at once
  changed_.notify();
  if (written) co_return Expected<void>{};
  ++failures_[key.first];
  co_return written.error();
}

Task<void> PageCache::drop_page(Key key, bool discard) {
  for (;;) {
    auto* page = co_await unlocked(key);
    if (page == nullptr) co_return;
    if (discard || !page->dirty) break;
    (void)co_await write_back(key);
  }
  pages_.erase(key);
  changed_.notify();
}

std::vector<PageCache::Key> PageCache::pages_of(InodeId inode, Range bytes) const {
  std::vector<Key> all;
  for (auto at = pages_.lower_bound({inode, bytes.begin / kPage});
       at != pages_.end() && at->first.first == inode && at->first.second * kPage < bytes.end; ++at)
    all.push_back(at->first);
  return all;
}

Task<void> PageCache::drop_range(InodeId inode, std::uint64_t offset, std::uint64_t length,
                                 bool discard) {
  auto end = length > kEnd - offset ? kEnd : offset + length;
  for (auto key : pages_of(inode, {offset, end})) co_await drop_page(key, discard);
}

Task<void> PageCache::drop(InodeId inode, std::vector<Range> ranges, Function<void()> done) {
  co_await yield(*loop_);  // it is another thread's
  if (drop_takes > Duration::zero()) co_await sleep(*loop_, drop_takes);
  for (auto range : ranges)
    if (!keeps_pages) co_await drop_range(inode, range.begin, range.end - range.begin, false);
  done();
}

Task<void> PageCache::before_read(InodeId inode, std::uint64_t offset, std::uint64_t length) {
  for (auto key : pages_of(inode, {offset, offset + length})) (void)co_await write_back(key);
}

Task<void> PageCache::before_write(InodeId inode, std::uint64_t offset, std::uint64_t length) {
  co_await drop_range(inode, offset, length, false);
}

Task<void> PageCache::before_truncate(InodeId inode) {
  ++truncating_[inode];
  // Those under way come to their end first.
  for (auto key : pages_of(inode, {0, kEnd})) {
    auto found = pages_.find(key);
    while (found != pages_.end() && found->second.locked && !found->second.content.empty()) {
      co_await changed_.wait();
      found = pages_.find(key);
    }
  }
}

Task<void> PageCache::after_truncate(InodeId inode, std::uint64_t size, bool done) {
  --truncating_[inode];
  changed_.notify();
  if (!done) co_return;
  co_await drop_range(inode, (size + kPage - 1) / kPage * kPage, kEnd, true);
  Key last{inode, size / kPage};
  if (auto* page = co_await unlocked(last); page != nullptr && page->content.size() > size % kPage)
    page->content.resize(size % kPage);
}

Task<void> PageCache::after_punch(InodeId inode, std::uint64_t offset, std::uint64_t length) {
  co_await drop_range(inode, offset, length, false);
}

Task<void> PageCache::after_open(InodeId inode) { co_await drop_range(inode, 0, kEnd, false); }

Task<void> PageCache::before_close(File file) {
  for (auto key : pages_of(file.inode, {0, kEnd})) {
    auto found = pages_.find(key);
    if (found != pages_.end() && found->second.by.handle == file.handle)
      co_await drop_page(key, false);
  }
}

}  // namespace csv::sim
