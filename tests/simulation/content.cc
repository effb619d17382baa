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

/// Calls `piece` with parts of the pattern from `offset` on, each of up to a word, until it says
/// false.
template <typename F>
bool each_word(std::uint64_t offset, std::size_t length, Stamp stamp, F piece) {
  std::size_t at = 0;
  auto part = [&](std::size_t most) {
    auto place = offset + at;
    auto value = word(place / 8, stamp);
    std::byte bytes[8];
    std::memcpy(bytes, &value, 8);
    auto count = std::min<std::size_t>(8 - place % 8, most);
    auto go_on = piece(at, bytes + place % 8, count);
    at += count;
    return go_on;
  };
  if (offset % 8 != 0 && length > 0 && !part(length)) return false;
  // Nearly all of it: whole words.
  for (auto index = (offset + at) / 8; length - at >= 8; at += 8, ++index) {
    auto value = word(index, stamp);
    if (!piece(at, reinterpret_cast<const std::byte*>(&value), std::size_t{8})) return false;
  }
  return at == length || part(length - at);
}

bool shows(std::uint64_t offset, std::span<const std::byte> got, Stamp stamp,
           std::int64_t behind = 0) {
  offset -= static_cast<std::uint64_t>(behind);
  return each_word(offset, got.size(), stamp,
                   [&](std::size_t at, const std::byte* bytes, std::size_t count) {
                     return std::memcmp(got.data() + at, bytes, count) == 0;
                   });
}

}  // namespace

void fill_pattern(std::span<std::byte> out, std::uint64_t offset, Stamp stamp) {
  each_word(offset, out.size(), stamp,
            [&](std::size_t at, const std::byte* bytes, std::size_t count) {
              std::memcpy(out.data() + at, bytes, count);
              return true;
            });
}

FileContent::Id FileContent::begin(std::uint64_t from, std::uint64_t to, Stamp stamp, Duration now,
                                   How how) {
  if (writes_.size() > prune_at_) {
    prune();
    prune_at_ = writes_.size() * 2 + 64;
  }
  auto id = next_++;
  writes_[id] = {.from = from,
                 .to = to,
                 .stamp = stamp,
                 .began = now,
                 .by = how.by,
                 .durable = how.durable,
                 .mapped = how.mapped};
  tell({from, to, stamp, 0});
  return id;
}

// A clone shows what its source showed at some moment: what that can be is gathered as long as it
// is under way.

FileContent::Id FileContent::begin_copy(std::uint64_t from, std::uint64_t to, FileContent& source,
                                        std::int64_t behind, Duration now) {
  auto id = next_++;
  writes_[id] = {.from = from, .to = to, .copy = true, .began = now, .durable = true};
  Follower follower{this,
                    id,
                    from - static_cast<std::uint64_t>(behind),
                    to - static_cast<std::uint64_t>(behind),
                    behind,
                    now};
  source.followers_.push_back(follower);
  source.tell_all(follower, now + 1ns);
  return id;
}

void FileContent::shorten(Id copy, std::uint64_t to) {
  auto found = writes_.find(copy);
  if (found == writes_.end()) return;
  if (to <= found->second.from)
    writes_.erase(found);
  else
    found->second.to = std::min(found->second.to, to);
}

std::vector<FileContent::Part> FileContent::parts_of(const Write& write) {
  if (!write.copy) return {{write.from, write.to, write.stamp, write.behind}};
  std::vector<Part> parts;
  for (auto part : write.parts) {
    part.to = std::min(part.to, write.to);
    if (part.from < part.to) parts.push_back(part);
  }
  return parts;
}

/// Whoever copies from here may have that, too.
void FileContent::tell(const Part& part) {
  std::erase_if(followers_, [](const Follower& each) {
    auto copy = each.into->writes_.find(each.id);
    return copy == each.into->writes_.end() || copy->second.ended != Duration::max();
  });
  auto all = followers_;  // a file may follow itself
  for (const auto& each : all) {
    auto from = std::max(part.from, each.from), to = std::min(part.to, each.to);
    if (from >= to) continue;
    auto by = static_cast<std::uint64_t>(each.behind);
    each.into->add_part(
        each.id, {from + by, to + by, part.stamp, part.stamp == 0 ? 0 : part.behind + each.behind});
  }
}

void FileContent::add_part(Id copy, Part part) {
  auto found = writes_.find(copy);
  if (found != writes_.end() && found->second.parts.insert(part).second) tell(part);
}

void FileContent::tell_all(const Follower& follower, Duration until) {
  std::set<std::uint64_t> cuts{follower.from, follower.to};
  for (const auto& [id, write] : writes_)
    for (const auto& part : parts_of(write))
      for (auto cut : {part.from, part.to})
        if (cut > follower.from && cut < follower.to) cuts.insert(cut);
  auto by = static_cast<std::uint64_t>(follower.behind);
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    auto from = *cut, to = *std::next(cut);
    for (auto [stamp, behind] : possible(from, to, follower.began, over(from, to, until)))
      follower.into->add_part(
          follower.id, {from + by, to + by, stamp, stamp == 0 ? 0 : behind + follower.behind});
  }
}

std::vector<const FileContent::Write*> FileContent::over(std::uint64_t from, std::uint64_t to,
                                                         Duration until) const {
  std::vector<const Write*> found;
  for (const auto& [id, write] : writes_)
    if (write.from <= from && to <= write.to && write.began < until) found.push_back(&write);
  return found;
}

std::set<FileContent::What> FileContent::possible(std::uint64_t from, std::uint64_t to,
                                                  Duration since,
                                                  const std::vector<const Write*>& over) const {
  std::set<What> found;
  auto later_than = [&](Duration ended) {
    return std::any_of(over.begin(), over.end(), [&](const Write* write) {
      return write->began > ended && write->ended <= since && write->certain;
    });
  };
  // Before all others, the zeros of a new file.
  if (!later_than(Duration::min())) found.insert({0, 0});
  for (const auto* write : over) {
    if (later_than(write->ended)) continue;
    for (const auto& part : parts_of(*write))
      if (part.from <= from && to <= part.to) found.insert({part.stamp, part.behind});
  }
  return found;
}

void FileContent::end(Id write, Duration now) {
  auto found = writes_.find(write);
  if (found == writes_.end()) return;
  auto& over = found->second;
  over.ended = now;
  over.answered = true;
  if (over.durable) over.flushed = true;
  if (over.flushed) over.doubtful = false;
  over.certain = !over.doubtful;
  if (over.durable) return;
  unsynced_[over.by] = now;
  // It was on its way while others were told, and may be part of what was lost.
  auto told = told_.find(over.by);
  if (told != told_.end() && told->second.first && over.began <= *told->second.first)
    sorry_.insert(over.by);
}

void FileContent::power_loss() {
  for (auto& [id, write] : writes_) {
    if (write.flushed) continue;
    write.doubtful = true;
    if (write.answered) write.certain = false;
  }
  // What was certain is not.
  auto all = followers_;
  for (const auto& each : all) tell_all(each, Duration::max());
}

void FileContent::suspect(Writer by, Duration since) {
  auto own = unsynced_.find(by);
  bool any = own != unsynced_.end() && own->second >= since;
  for (const auto& [id, write] : writes_)
    any = any || (write.by == by && write.ended == Duration::max());
  if (any) sorry_.insert(by);
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

/// What it wrote and was lost is nothing that anybody claims any more.
bool FileContent::unclaim(Writer by) {
  bool any = false;
  for (auto& [id, write] : writes_) {
    if (!write.doubtful || write.by != by) continue;
    any = true;
    write.doubtful = write.answered = false;
  }
  return any;
}

void FileContent::failed(Writer by) {
  if (unclaim(by)) sorry_.insert(by);
}

bool FileContent::told_of_loss(const Refused& who) {
  auto known = told_.find(who.by);
  if (sorry_.erase(who.by) > 0) {
    unclaim(who.by);
    known = told_.insert_or_assign(who.by, Told{}).first;
  }
  if (known == told_.end()) return false;
  auto& told = known->second;
  if (told.first && who.since > *told.first) return false;
  if (who.handle != 0 && !told.handles.insert(who.handle).second) return false;
  if (!told.first) told.first = who.now;
  return true;
}

void FileContent::settle(Id write, Duration now) {
  auto found = writes_.find(write);
  if (found == writes_.end()) return;
  found->second.ended = now;
  found->second.certain = false;
}

void FileContent::ends_at(std::uint64_t size, Duration since) {
  for (auto at = writes_.begin(); at != writes_.end();) {
    auto& write = at->second;
    bool over = write.ended <= since && !write.certain && !write.answered && !write.doubtful;
    bool shows = write.copy || write.stamp != 0;
    if (over && shows && !write.mapped) write.to = std::min(write.to, size);
    at = write.to <= write.from ? writes_.erase(at) : std::next(at);
  }
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
    writes_.erase(id);
  }
}

std::set<std::uint64_t> FileContent::cuts_in(std::uint64_t from, std::uint64_t to) const {
  std::set<std::uint64_t> cuts{from, to};
  auto add = [&](std::uint64_t cut) {
    if (cut > from && cut < to) cuts.insert(cut);
  };
  for (const auto& [id, write] : writes_) {
    add(write.from), add(write.to);
    for (const auto& part : write.parts) add(part.from), add(part.to);
  }
  return cuts;
}

std::optional<std::string> FileContent::judge_hole(std::uint64_t from, std::uint64_t to,
                                                   Duration since, Duration now) const {
  if (from >= to) return {};
  auto cuts = cuts_in(from, to);
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    auto allowed = possible(*cut, *std::next(cut), since, over(*cut, *std::next(cut), now));
    bool zeros =
        std::any_of(allowed.begin(), allowed.end(), [](const What& one) { return one.first == 0; });
    if (!zeros)
      return fmt::format("bytes [{}, {}) are a hole, could show {}", *cut, *std::next(cut),
                         allowed.begin()->first);
  }
  return {};
}

std::optional<std::string> FileContent::judge(std::uint64_t offset, std::span<const std::byte> got,
                                              Duration since, Duration now) {
  std::vector<Write> decided;
  auto cuts = cuts_in(offset, offset + got.size());
  for (auto cut = cuts.begin(); std::next(cut) != cuts.end(); ++cut) {
    auto from = *cut, to = *std::next(cut);
    auto covering = over(from, to, now);
    auto allowed = possible(from, to, since, covering);
    bool undecided = std::any_of(covering.begin(), covering.end(), [since](const Write* write) {
      return (write->copy || !write->certain) && write->ended <= since;
    });
    for (auto at = from; at < to;) {
      auto stop = allowed.size() == 1 ? to : std::min(to, (at / kGrain + 1) * kGrain);
      auto piece = got.subspan(at - offset, stop - at);
      auto shown = std::find_if(allowed.begin(), allowed.end(), [&](const What& one) {
        return shows(at, piece, one.first, one.second);
      });
      if (shown == allowed.end()) {
        auto text = fmt::format("bytes [{}, {}) show ", at, stop);
        std::string what = "what nobody wrote there";
        if (shows(at, piece, 0)) what = "zeros";
        for (const auto& [id, write] : writes_) {
          if (write.stamp != 0 && shows(at, piece, write.stamp)) {
            what = fmt::format("write {}", write.stamp);
          }
        }
        text += what + ", could show";
        for (auto [stamp, behind] : allowed)
          text += behind == 0 ? fmt::format(" {}", stamp) : fmt::format(" {}@{}", stamp, behind);
        return text;
      }
      // What was there at some moment of this read is as good as written then.
      if (undecided && allowed.size() > 1) {
        auto [stamp, behind] = *shown;
        if (!decided.empty() && decided.back().to == at && decided.back().stamp == stamp &&
            decided.back().behind == behind) {
          decided.back().to = stop;
        } else {
          decided.push_back(
              {.from = at, .to = stop, .stamp = stamp, .behind = behind, .began = since});
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
  bool grew = known_.empty() || (all.size() >= known_.size() &&
                                 std::memcmp(known_.data(), all.data(), known_.size()) == 0);
  if (!grew) {
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
