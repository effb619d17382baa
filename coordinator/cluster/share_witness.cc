#include "coordinator/cluster/share_witness.h"

#include <algorithm>
#include <cstring>

#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/endian.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"

namespace csv::cluster {
namespace {

/// Little-endian; reserved bytes are written as zero and not looked at.
///
///   offset  size
///        0     8  magic           "CSVSHAR\x1a"
///        8     4  crc             CRC-32C of bytes [12, 4096): a torn write
///       12     4  format_version
///       16     8  sequence        which of the two slots is in force
///       24     8  life            the holder's: a former life of the same node
///       32     8  ring            the membership he holds it for; changes with each proof
///       40     8  forced          of the configuration's tag: a partition in time
///       48     8  epoch
///       56     8  tag_sequence
///       64     2  cluster         another cluster's file
///       66     1  node            the holder
///       67     5  reserved
///       72     8  promised_forced what may still be stored: one who forms a cluster has to know
///       80     8  promised_epoch
///       88     8  id              a file that was made anew, and has forgotten
///       96  4000  reserved
///
/// Version 1 ended with the node; what was promised stood in place of the tag.
struct SlotBlock {
  std::array<char, 8> magic;
  Le32 crc;
  Le32 format_version;
  Le64 sequence;
  Le64 life;
  Le64 ring;
  Le64 forced;
  Le64 epoch;
  Le64 tag_sequence;
  Le16 cluster;
  std::uint8_t node;
  std::array<std::byte, 5> reserved;
  Le64 promised_forced;
  Le64 promised_epoch;
  Le64 id;
  std::array<std::byte, 4000> reserved_to_end;
};
static_assert(sizeof(SlotBlock) == TagFile::kSlot && alignof(SlotBlock) == 1);
static_assert(offsetof(SlotBlock, forced) == 40 && offsetof(SlotBlock, node) == 66);
static_assert(offsetof(SlotBlock, promised_forced) == 72 && offsetof(SlotBlock, id) == 88);

constexpr std::array<char, 8> kMagic = {'C', 'S', 'V', 'S', 'H', 'A', 'R', '\x1a'};
constexpr std::uint32_t kFormatVersion = 2;
constexpr std::uint32_t kFormerVersion = 1;
constexpr std::size_t kSummedFrom = 12;
constexpr int kTries = 8;  ///< Of an exchange that others of our own side overtake.

ClusterTag promise_of(const ClusterTag& tag) { return {tag.forced, tag.epoch, 0}; }

bool both_have(const TagFile::Content& content, const ShareTag& wanted) {
  return std::all_of(content.begin(), content.end(), [&](const auto& slot) {
    auto found = decode_share_tag(slot);
    return found && found->tag == wanted.tag && found->promised == wanted.promised;
  });
}

constexpr std::string_view kHowToReplace =
    ": its vote cannot count. csvctl cluster witness none takes it away, and then it can be made "
    "one again";

}  // namespace

TagFile::Slot encode(const ShareTag& tag) {
  SlotBlock block{};
  block.magic = kMagic;
  block.format_version = kFormatVersion;
  block.sequence = tag.sequence;
  block.life = tag.life;
  block.ring = tag.ring;
  block.forced = tag.tag.forced;
  block.epoch = tag.tag.epoch;
  block.tag_sequence = tag.tag.sequence;
  block.cluster = tag.cluster;
  block.node = raw(tag.node);
  block.promised_forced = tag.promised.forced;
  block.promised_epoch = tag.promised.epoch;
  block.id = tag.id;
  TagFile::Slot bytes;
  std::memcpy(bytes.data(), &block, sizeof block);
  block.crc = crc32c(std::span{bytes}.subspan(kSummedFrom));
  std::memcpy(bytes.data(), &block, sizeof block);
  return bytes;
}

Expected<ShareTag> decode_share_tag(std::span<const std::byte> slot) {
  if (slot.size() != sizeof(SlotBlock))
    return Error{Errc::corrupt, fmt::format("a witness file's slot of {} bytes", slot.size())};
  if (std::all_of(slot.begin(), slot.end(), [](std::byte b) { return b == std::byte{}; }))
    return Error{std::errc::no_such_file_or_directory, "the slot was never written"};
  SlotBlock block;
  std::memcpy(&block, slot.data(), sizeof block);
  if (block.crc != crc32c(slot.subspan(kSummedFrom)))
    return Error{Errc::corrupt, "a slot of the witness file is damaged"};
  if (block.magic != kMagic)
    return Error{Errc::refused, "the file is not a witness: something else lies there"};
  std::uint32_t version = block.format_version;
  if (version != kFormatVersion && version != kFormerVersion)
    return Error{Errc::refused, fmt::format("the witness file has format version {}, this program "
                                            "knows {}",
                                            std::uint32_t{block.format_version}, kFormatVersion)};
  ShareTag out{block.sequence, block.cluster, NodeId{block.node},
               block.life,     block.ring,    {block.forced, block.epoch, block.tag_sequence}};
  out.promised = promise_of(out.tag);
  if (version == kFormerVersion) return out;
  out.promised = {block.promised_forced, block.promised_epoch, 0};
  out.id = block.id;
  return out;
}

Expected<ShareTag> newest_share_tag(const TagFile::Content& content) {
  std::optional<ShareTag> best;
  Error damaged;
  int written = 0;
  for (const auto& slot : content) {
    auto found = decode_share_tag(slot);
    if (!found && found.error() == std::errc::no_such_file_or_directory) continue;
    ++written;
    if (!found && found.error() == Errc::refused) return found.error();
    if (!found) {
      damaged = found.error();
      continue;
    }
    if (!best || found->sequence > best->sequence) best = *found;
  }
  if (best) return *best;
  if (written == 0) return ShareTag{};
  return damaged.within(
      "the witness file cannot be used, nor told from another kind of file; if "
      "it is nothing else, remove it");
}

struct ShareWitness::Seen {
  TagFile::Content content;
  ShareTag now;
  bool damaged = false;  ///< One of the slots, which may have been a later one.
  bool alone = false;    ///< The other slot says nothing: it was never written, or is damaged.
};

/// Of a call that failed after its write had begun that write may still come, once the share is
/// there again, over whatever stands in its slot by then: nothing but its sequence says that it is
/// late. Whoever takes the witness leaves out the number that the former holder may have used last,
/// so that what comes late is not the newest; and does not take the place of what alone is left.
constexpr std::uint64_t kNext = 1;
constexpr std::uint64_t kTaking = 2, kTakingAlone = 3;

ShareWitness::ShareWitness(Surroundings around)
    : around_{std::move(around)}, life_{around_.random->next() | 1} {
  CSV_CHECK(around_.timing.safe());
}

Task<Expected<ShareWitness::Seen>> ShareWitness::look() {
  auto content = co_await completion<Expected<TagFile::Content>>(
      [this](auto done) { around_.file->read(std::move(done)); });
  if (!content) co_return content.error();
  CSV_CO_TRY(now, newest_share_tag(*content));
  if (now.sequence == 0)
    co_return Error{Errc::refused, "the witness file is empty, and has forgotten what it stored" +
                                       std::string{kHowToReplace}};
  if (now.cluster != around_.cluster)
    co_return Error{Errc::refused, fmt::format("the file is the witness of cluster {}, not of {}",
                                               now.cluster, around_.cluster)};
  if (around_.id != 0 && now.id != around_.id)
    co_return Error{Errc::refused, "the witness file is another one than was made the witness" +
                                       std::string{kHowToReplace}};
  if (raw(now.node) != 0) holder_ = now.node;
  bool damaged = std::any_of(content->begin(), content->end(), [](const auto& slot) {
    return decode_share_tag(slot).error() == Errc::corrupt;
  });
  auto readable = std::count_if(content->begin(), content->end(),
                                [](const auto& slot) { return bool(decode_share_tag(slot)); });
  co_return Seen{*content, now, damaged, readable < 2};
}

Task<Expected<void>> ShareWitness::change(const Seen& seen, ShareTag next, std::uint64_t step) {
  next.sequence = seen.now.sequence + step;
  next.cluster = around_.cluster;
  auto slot = encode(next);
  auto place = static_cast<std::size_t>(next.sequence % 2);
  co_return co_await completion<Expected<void>>(
      [&, this](auto done) { around_.file->exchange(seen.content, place, slot, std::move(done)); });
}

Expected<void> ShareWitness::check_own(const ShareTag& found) const {
  auto own = around_.own_tag();
  if (own >= found.tag) return {};
  return Error{Errc::superseded,
               fmt::format("the witness knows configuration {}.{}.{}, this side has {}.{}.{}: it "
                           "must wait for a node that has the newer one",
                           found.tag.forced, found.tag.epoch, found.tag.sequence, own.forced,
                           own.epoch, own.sequence)};
}

Task<Expected<Witness::Memory>> ShareWitness::read() {
  CSV_CO_TRY(seen, co_await look());
  co_return Memory{seen.now.tag, {}, seen.now.promised};
}

Task<Expected<void>> ShareWitness::store(Memory memory) {
  bool promises = memory.promised > memory.tag;
  auto number = promise_of(promises ? memory.promised : memory.tag);
  for (int tries = 0;; ++tries) {
    CSV_CO_TRY(seen, co_await look());
    auto next = seen.now;
    next.promised = std::max(next.promised, number);
    if (!promises) next.tag = memory.tag;
    // What is stored was proposed by its number, so that is nobody's to be promised any more.
    bool late = number < seen.now.promised || memory.tag < seen.now.tag ||
                (promises && number <= promise_of(seen.now.tag));
    if (late)
      co_return Error{Errc::superseded,
                      fmt::format("the witness knows configuration {}.{}.{}, and has promised "
                                  "{}.{}",
                                  seen.now.tag.forced, seen.now.tag.epoch, seen.now.tag.sequence,
                                  seen.now.promised.forced, seen.now.promised.epoch)};
    // In both slots, so that the loss of one brings nothing older back.
    if (both_have(seen.content, next)) co_return Expected<void>{};
    auto done = co_await change(seen, next, kNext);
    if (!done && (!(done.error() == Errc::retry) || tries == kTries)) co_return std::move(done);
  }
}

Task<Expected<Witness::Hold>> ShareWitness::confirm(std::uint64_t ring) {
  for (int tries = 0;; ++tries) {
    CSV_CO_TRY(seen, co_await look());
    if (seen.now.life != life_ || seen.now.node != around_.node)
      co_return Error{Errc::superseded,
                      fmt::format("node {} holds the witness", raw(seen.now.node))};
    if (seen.damaged)
      co_return Error{Errc::superseded,
                      "a slot of the witness file is damaged: it may have been taken"};
    CSV_CO_CHECK(check_own(seen.now));
    auto next = seen.now;
    next.ring = ring;
    auto sent = around_.loop->now();
    auto done = co_await change(seen, next, kNext);
    if (done) co_return Hold{sent};
    if (!(done.error() == Errc::retry) || tries == kTries) co_return done.error();
  }
}

Task<Expected<Witness::Hold>> ShareWitness::challenge(std::uint64_t ring) {
  CSV_CO_TRY(first, co_await look());
  bool ours = first.now.life == life_ && first.now.node == around_.node;
  if (ours && !first.damaged) co_return co_await confirm(ring);
  auto since = around_.loop->now();
  for (;;) {
    CSV_CO_CHECK(check_own(first.now));
    if (around_.loop->now() - since > around_.timing.over_after) break;
    co_await sleep(*around_.loop, around_.look_interval);
    CSV_CO_TRY(again, co_await look());
    if (again.content != first.content)
      co_return Error{Errc::refused,
                      fmt::format("node {} holds the witness, and moves", raw(again.now.node))};
  }
  auto next = first.now;
  next.node = around_.node;
  next.life = life_;
  next.ring = ring;
  auto sent = around_.loop->now();
  auto done = co_await change(first, next, first.alone ? kTakingAlone : kTaking);
  if (!done && done.error() == Errc::retry)
    co_return Error{Errc::refused, "another node was faster, or the holder moved after all"};
  if (!done) {
    // It may come late, over what another one has taken meanwhile: it is not ours then.
    life_ = around_.random->next() | 1;
    co_return done.error();
  }
  holder_ = around_.node;
  log::info("witness taken file ring={} node={}", ring, raw(around_.node));
  events::report(
      events::Severity::info, "witness", "",
      fmt::format("node {} took the witness file", raw(around_.node)),
      raw(first.now.node) != 0 ? fmt::format("node {} held it", raw(first.now.node)) : "");
  // It lies where what comes late would lie: that would be the newest again. Not beside one more.
  if (first.alone) co_return co_await confirm(ring);
  co_return Hold{sent};
}

Task<Expected<std::uint64_t>> prepare_share_witness(TagFile& file, std::uint16_t cluster,
                                                    Random& random) {
  for (int tries = 0;; ++tries) {
    auto content = co_await completion<Expected<TagFile::Content>>(
        [&file](auto done) { file.read(std::move(done)); });
    if (!content) co_return content.error();
    CSV_CO_TRY(now, newest_share_tag(*content));
    if (now.sequence != 0 && now.cluster != cluster)
      co_return Error{Errc::refused, fmt::format("the file is the witness of cluster {}, not of {}",
                                                 now.cluster, cluster)};
    // What it remembers it goes on remembering.
    if (now.id != 0) co_return now.id;
    ++now.sequence;
    now.cluster = cluster;
    now.id = random.next() | 1;
    auto slot = encode(now);
    auto place = static_cast<std::size_t>(now.sequence % 2);
    auto done = co_await completion<Expected<void>>(
        [&](auto answer) { file.exchange(*content, place, slot, std::move(answer)); });
    if (done) co_return now.id;
    if (!(done.error() == Errc::retry) || tries == kTries) co_return done.error();
  }
}

}  // namespace csv::cluster
