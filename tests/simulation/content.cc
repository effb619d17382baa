#include "tests/simulation/content.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "csvfs/base/check.h"
#include "csvfs/base/log.h"
#include "csvfs/base/random.h"

namespace csv::sim {
namespace {

/// The least a LUN writes whole: two writes under way may mix at this grain.
constexpr std::uint64_t kGrain = 512;
constexpr std::uint64_t kRecordMagic = 0x5245434f52443a29ull;

std::uint64_t word(std::uint64_t index, Stamp stamp) {
  return stamp == 0 ? 0 : Random{stamp * 0x9e3779b97f4a7c15ull + index}.next();
}

bool shows(std::uint64_t offset, std::span<const std::byte> got, Stamp stamp) {
  for (std::size_t at = 0; at < got.size();) {
    auto place = offset + at;
    auto value = word(place / 8, stamp);
    std::byte bytes[8];
    std::memcpy(bytes, &value, 8);
    auto count = std::min<std::size_t>(8 - place % 8, got.size() - at);
    if (std::memcmp(got.data() + at, bytes + place % 8, count) != 0) return false;
    at += count;
  }
  return true;
}

}  // namespace

void fill_pattern(std::span<std::byte> out, std::uint64_t offset, Stamp stamp) {
  for (std::size_t at = 0; at < out.size();) {
    auto place = offset + at;
    auto value = word(place / 8, stamp);
    std::byte bytes[8];
    std::memcpy(bytes, &value, 8);
    auto count = std::min<std::size_t>(8 - place % 8, out.size() - at);
    std::memcpy(out.data() + at, bytes + place % 8, count);
    at += count;
  }
}

FileContent::Id FileContent::begin(std::uint64_t from, std::uint64_t to, Stamp stamp, Duration now,
                                   How how) {
  if (writes_.size() > prune_at_) {
    prune();
    prune_at_ = writes_.size() * 2 + 64;
  }
  auto id = next_++;
  writes_[id] = {
      .from = from, .to = to, .stamp = stamp, .began = now, .by = how.by, .durable = how.durable};
  return id;
}

void FileContent::end(Id write, Duration now) {
  auto found = writes_.find(write);
  if (found == writes_.end()) return;
  auto& over = found->second;
  over.ended = now;
  over.answered = true;
  if (over.durable) over.flushed = true;
  if (over.flushed) over.doubtful = false;
  if (!over.durable) unsynced_[over.by] = now;
  over.certain = !over.doubtful;
}

void FileContent::power_loss() {
  for (auto& [id, write] : writes_) {
    if (write.flushed) continue;
    write.doubtful = true;
    if (write.answered) write.certain = false;
  }
  for (const auto& [by, when] : unsynced_) sorry_.insert(by);
}

void FileContent::synced(Writer by, Duration since) {
  if (auto own = unsynced_.find(by); own != unsynced_.end() && own->second <= since)
    unsynced_.erase(own);
  for (auto& [id, write] : writes_) {
    if (write.ended > since || (write.doubtful && write.by != by)) continue;
    write.doubtful = false;
    write.flushed = true;
    if (write.answered) write.certain = true;
  }
}

bool FileContent::told_of_loss(Writer by) {
  bool any = sorry_.erase(by) > 0;
  for (auto& [id, write] : writes_) {
    if (!write.doubtful || write.by != by) continue;
    any = true;
    write.doubtful = write.answered = false;  // Nobody claims it any more.
  }
  return any;
}

void FileContent::settle(Id write, Duration now) {
  auto found = writes_.find(write);
  if (found == writes_.end()) return;
  found->second.ended = now;
  found->second.certain = false;
}

/// Forgets what is wholly under one later write that had ended before any read that is under way
/// began.
void FileContent::prune() {
  std::set<Id> covered;
  auto oldest = reads_.empty() ? Duration::max() - 1ns : *reads_.begin();
  for (const auto& [id, old] : writes_) {
    for (const auto& [other, later] : writes_) {
      if (later.ended > oldest || later.began <= old.ended || !later.certain || !later.flushed)
        continue;
      if (later.from <= old.from && old.to <= later.to) covered.insert(id);
    }
  }
  for (auto id : covered) {
    // That it is covered does not mean that its writer has been told.
    if (writes_.at(id).doubtful) sorry_.insert(writes_.at(id).by);
    writes_.erase(id);
  }
}

std::optional<std::string> FileContent::judge(std::uint64_t offset, std::span<const std::byte> got,
                                              Duration since, Duration now) {
  auto end = offset + got.size();
  std::vector<Write> decided;
  std::set<std::uint64_t> cuts{offset, end};
  for (const auto& [id, write] : writes_) {
    if (write.from > offset && write.from < end) cuts.insert(write.from);
    if (write.to > offset && write.to < end) cuts.insert(write.to);
  }
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    auto from = *cut, to = *std::next(cut);
    std::vector<const Write*> over;
    for (const auto& [id, write] : writes_) {
      if (write.from <= from && to <= write.to && write.began < now) over.push_back(&write);
    }
    // Before all others, the zeros of a new file.
    std::set<Stamp> possible;
    auto later_than = [&](Duration ended) {
      return std::any_of(over.begin(), over.end(), [&](const Write* write) {
        return write->began > ended && write->ended <= since && write->certain;
      });
    };
    if (!later_than(Duration::min())) possible.insert(0);
    for (const auto* write : over) {
      if (!later_than(write->ended)) possible.insert(write->stamp);
    }
    bool undecided = std::any_of(over.begin(), over.end(), [since](const Write* write) {
      return !write->certain && write->ended <= since;
    });
    for (auto at = from; at < to;) {
      auto stop = possible.size() == 1 ? to : std::min(to, (at / kGrain + 1) * kGrain);
      auto piece = got.subspan(at - offset, stop - at);
      auto shown = std::find_if(possible.begin(), possible.end(),
                                [&](Stamp stamp) { return shows(at, piece, stamp); });
      if (shown == possible.end()) {
        auto text = fmt::format("bytes [{}, {}) show ", at, stop);
        std::string what = "what nobody wrote there";
        if (shows(at, piece, 0)) what = "zeros";
        for (const auto& [id, write] : writes_) {
          if (write.stamp != 0 && shows(at, piece, write.stamp)) {
            what = fmt::format("write {}", write.stamp);
          }
        }
        text += what + ", could show";
        for (auto stamp : possible) text += fmt::format(" {}", stamp);
        return text;
      }
      // What was there at some moment of this read is as good as written then.
      if (undecided && possible.size() > 1) {
        if (!decided.empty() && decided.back().to == at && decided.back().stamp == *shown) {
          decided.back().to = stop;
        } else {
          decided.push_back({.from = at, .to = stop, .stamp = *shown, .began = since});
          decided.back().answered = true;
        }
      }
      at = stop;
    }
  }
  for (auto& write : decided) {
    write.ended = now;
    writes_[next_++] = write;
  }
  return {};
}

std::vector<std::byte> LogContent::record(Stamp stamp, std::size_t length) {
  CSV_CHECK(length >= kLeast);
  std::vector<std::byte> bytes(length);
  fill_pattern(bytes, 0, stamp);
  std::uint64_t head[3] = {kRecordMagic, stamp, length};
  std::memcpy(bytes.data(), head, sizeof head);
  return bytes;
}

void LogContent::begin(Stamp stamp, Duration now) { records_[stamp].began = now; }
void LogContent::end(Stamp stamp, Duration now) { records_[stamp].ended = now; }

std::optional<std::string> LogContent::judge(std::span<const std::byte> all, Duration since) {
  ++looks_;
  if (all.size() < known_.size() || !std::equal(known_.begin(), known_.end(), all.begin())) {
    known_.clear();
    order_.clear();
  }
  for (auto& [stamp, record] : order_) record->found_in = looks_;
  for (auto at = known_.size(); at < all.size();) {
    std::uint64_t head[3] = {};
    if (all.size() - at < sizeof head) return fmt::format("a record is cut off at {}", at);
    std::memcpy(head, all.data() + at, sizeof head);
    auto [magic, stamp, length] = head;
    if (magic != kRecordMagic || length < kLeast || length > all.size() - at) {
      return fmt::format("no record begins at {} of {}", at, all.size());
    }
    auto written = records_.find(stamp);
    if (written == records_.end()) return fmt::format("record {} was never written", stamp);
    auto whole = record(stamp, length);
    if (std::memcmp(whole.data(), all.data() + at, length) != 0) {
      return fmt::format("record {} at {} is not what was written", stamp, at);
    }
    if (std::exchange(written->second.found_in, looks_) == looks_)
      return fmt::format("record {} stands twice", stamp);
    order_.emplace_back(stamp, &written->second);
    known_.insert(known_.end(), whole.begin(), whole.end());
    at += length;
  }
  for (const auto& [stamp, record] : records_) {
    if (record.ended < since && record.found_in != looks_) {
      return fmt::format("record {} was answered and is not there", stamp);
    }
  }
  // Each must not come after one that began only when it had been answered.
  Duration latest_begin = Duration::min();
  for (const auto& [stamp, record] : order_) {
    if (record->ended < latest_begin) {
      return fmt::format("record {} stands after one that was begun later", stamp);
    }
    latest_begin = std::max(latest_begin, record->began);
  }
  return {};
}

}  // namespace csv::sim
