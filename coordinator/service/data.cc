// Layouts, grants, and the content that the coordinator reads and writes itself.
//
// What keeps operations on one file apart (docs/coordinator.md):
//  - the inode's lock, never held while waiting for a mount. What gives blocks another meaning
//    (truncate, punch, reap), and what changes content through us, takes the whole file
//    exclusively; making a range stable takes the range; reads, commits and new layouts share.
//  - holds, under which layouts are recalled and new ones wait.
#include <linux/falloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "coordinator/service/service.h"
#include "csvfs/base/check.h"

namespace csv::service {
namespace {

using volume::BlockState;
using volume::Catalog;
using volume::kBlockSize;
using volume::Mapping;
using volume::Run;

constexpr std::uint64_t kMaxSize = kLastBlock * kBlockSize;  ///< 16 TiB
constexpr std::uint64_t kStep = 256;  ///< 1 MiB: made stable, or granted, at least at once.
constexpr std::uint64_t kLargestGrant = 16'384;  ///< 64 MiB
constexpr std::uint64_t kMostAsked = 4'096;      ///< Blocks of one request that are seen to.
constexpr std::uint64_t kMostUnshared = 256;     ///< Blocks copied for one request at once.
constexpr std::uint64_t kReach = 16'384;  ///< What is laid out along with them, where it is ready.
constexpr std::uint64_t kPagesReach = 4'096;  ///< The same for the page cache.
constexpr int kMostSegments = 512;
constexpr std::size_t kMostRuns = 64;
/// A layout waits this long for a recall of its range; then the mount gets its content through us.
constexpr Duration kHoldPatience = 200ms;
constexpr int kLayoutRounds = 16;
/// How often space is freed in the hope that there is enough then.
constexpr int kFreeingRounds = 200;

Error session_ended() { return Error{Errc::session_ended, "the session has ended"}; }

std::uint64_t blocks_up(std::uint64_t bytes) { return (bytes + kBlockSize - 1) / kBlockSize; }
std::uint64_t step_down(std::uint64_t block) { return block / kStep * kStep; }
std::uint64_t step_up(std::uint64_t block) { return step_down(block + kStep - 1); }
Blocks blocks_of(std::uint64_t offset, std::uint64_t length) {
  return {offset / kBlockSize, blocks_up(offset + length)};
}
Blocks blocks_of(const Mapping& piece) {
  return {piece.file_block, piece.file_block + piece.count};
}

/// The part of `piece` within `range`; count 0 if there is none.
Mapping part(const Mapping& piece, Blocks range) {
  auto first = std::max(piece.file_block, range.first);
  auto end = std::min(blocks_of(piece).end, range.end);
  auto out = piece;
  out.count = first < end ? end - first : 0;
  if (out.count == 0) return out;
  if (piece.state != BlockState::hole) out.lun_block += first - piece.file_block;
  out.file_block = first;
  return out;
}

bool is_space_short(const Error& error) {
  return error == std::error_code{ENOSPC, std::generic_category()};
}

/// Or it has yet to become free, for which it was waited in vain.
bool is_space_wanting(const Error& error) { return is_space_short(error) || error == Errc::retry; }

Expected<void> must_be_file(const volume::Attr& attr) {
  if (S_ISREG(attr.mode)) return {};
  return errno_error(S_ISDIR(attr.mode) ? EISDIR : EINVAL, "not a regular file");
}

/// Runs handed out to holes, in order.
class Handout {
 public:
  explicit Handout(std::vector<Run> runs) : runs_{std::move(runs)} {}
  std::vector<Run> take(std::uint64_t count) {
    std::vector<Run> taken;
    while (count > 0) {
      CSV_CHECK(at_ < runs_.size());  // as much was reserved as there are holes
      auto& run = runs_[at_];
      auto now = std::min(count, run.count);
      taken.push_back({run.lun_block, now});
      run.lun_block += now;
      run.count -= now;
      count -= now;
      if (run.count == 0) ++at_;
    }
    return taken;
  }

 private:
  std::vector<Run> runs_;
  std::size_t at_ = 0;
};

/// What a write to holes and unwritten space changes in the mapping.
struct Gain {
  struct Placement {
    std::uint64_t file_block = 0;
    std::vector<Run> runs;
    bool instead = false;  ///< Of shared blocks; else of a hole.
  };
  std::vector<Placement> placements;
  std::vector<Blocks> unwritten;
  [[nodiscard]] bool any() const { return !placements.empty() || !unwritten.empty(); }

  Expected<void> apply(Catalog& catalog, InodeId inode) const {
    for (const auto& one : placements) {
      if (one.instead)
        CSV_TRY(catalog.replace(inode, one.file_block, one.runs));
      else
        CSV_TRY(catalog.place(inode, one.file_block, one.runs, BlockState::written, GrantId{}));
    }
    for (auto range : unwritten) CSV_TRY(catalog.mark_written(inode, range.first, range.count()));
    return {};
  }
};

bool is_content(const Mapping& piece) {
  return piece.state == BlockState::written || piece.state == BlockState::shared;
}

/// Where a write needs space: nobody writes to what is shared.
bool needs_space(const Mapping& piece) {
  return piece.state == BlockState::hole || piece.state == BlockState::shared;
}

std::uint64_t space_needed(const std::vector<Mapping>& pieces) {
  std::uint64_t blocks = 0;
  for (const auto& piece : pieces)
    if (needs_space(piece)) blocks += piece.count;
  return blocks;
}

bool any_shared(const std::vector<Mapping>& pieces) {
  return std::any_of(pieces.begin(), pieces.end(),
                     [](const auto& piece) { return piece.state == BlockState::shared; });
}

bool any_granted(const std::vector<Mapping>& pieces) {
  return std::any_of(pieces.begin(), pieces.end(),
                     [](const auto& piece) { return piece.state == BlockState::granted; });
}

/// Of a shared mapping, of a part of the file that is no more.
Answer dropped_pages(std::uint64_t offset, std::uint64_t length) {
  Answer answer;
  auto& written = *answer.reply.mutable_written();
  written.set_offset(offset);
  written.set_length(static_cast<std::uint32_t>(length));
  written.set_durable(true);
  return answer;
}

Answer shipped_answer() {
  Answer answer;
  answer.reply.mutable_layout()->set_shipped(true);
  return answer;
}

void add_segment(wire::LayoutReply& layout, const Mapping& piece, std::uint32_t state) {
  auto& out = *layout.add_segments();
  out.set_offset(piece.file_block * kBlockSize);
  out.set_length(piece.count * kBlockSize);
  if (state != 0) out.set_lun_offset(piece.lun_block * kBlockSize);
  out.set_state(state);
}

constexpr std::uint32_t kZeros = 0, kWritten = 1, kGranted = 2;

/// For reading: what is written below the size, for good; the rest of what was asked for, for now.
void lay_out_for_reading(wire::LayoutReply& layout, const std::vector<Mapping>& map, Blocks asked,
                         std::uint64_t size) {
  Blocks inside{0, blocks_up(size)};
  for (const auto& piece : map) {
    if (layout.segments_size() >= kMostSegments) return;
    auto below = part(piece, inside);
    if (below.count == 0) return;
    if (is_content(below)) {
      add_segment(layout, below, kWritten);
    } else if (auto wanted = part(below, asked); wanted.count > 0) {
      add_segment(layout, wanted, kZeros);
    }
  }
}

/// For writing: what is written below the size, and the session's own grant. Returns how many
/// blocks from the start of `asked` on can be written under it.
std::uint64_t lay_out_for_writing(wire::LayoutReply& layout, const std::vector<Mapping>& map,
                                  Blocks asked, std::uint64_t size, GrantId grant) {
  Blocks inside{0, blocks_up(size)};
  auto ready = asked.first;
  for (const auto& piece : map) {
    if (layout.segments_size() >= kMostSegments) break;
    if (piece.state == BlockState::granted && piece.grant == grant && grant != GrantId{}) {
      add_segment(layout, piece, kGranted);
      layout.set_grant(raw(grant));
      if (piece.file_block <= ready) ready = blocks_of(piece).end;
    } else if (piece.state == BlockState::written) {
      auto below = part(piece, inside);
      if (below.count == 0) continue;
      add_segment(layout, below, kWritten);
      if (below.file_block <= ready) ready = blocks_of(below).end;
    }
  }
  return std::min(ready, asked.end) - asked.first;
}

}  // namespace

Task<Expected<Service::Look>> Service::look(InodeId inode, Blocks range, bool privileges) {
  auto body = [inode, range, privileges](Catalog& catalog) -> Expected<Look> {
    Look seen;
    seen.attr = CSV_TRY(catalog.attr(inode));
    CSV_TRY(must_be_file(seen.attr));
    if (privileges) seen.privileged = CSV_TRY(catalog.has_privileges(inode));
    if (range.first < range.end) seen.map = CSV_TRY(catalog.map(inode, range.first, range.count()));
    return seen;
  };
  co_return co_await writer_.read(std::move(body));
}

// ---------------------------------------------------------------------------- layouts

Task<Service::Outcome> Service::layout(CallRef call) {
  const auto& asked = call->request.layout();
  auto session = call->session;
  InodeId inode{asked.inode()};
  auto kind = asked.write() ? Layouts::Kind::write : Layouts::Kind::read;
  // It was asked for before the mount's way to the LUN was lost, and is repeated to a successor.
  if (session->key == Key{}) {
    if (asked.pages() == 0) co_return shipped_answer();
    co_return Error{Errc::retry, "the session has no admitted key to do I/O with"};
  }
  if (asked.offset() >= kMaxSize) co_return errno_error(EFBIG, "layout");
  auto range = blocks_of(asked.offset(),
                         std::clamp<std::uint64_t>(asked.length(), 1, kMaxSize - asked.offset()));
  range.end = std::min(range.end, range.first + kMostAsked);

  if (asked.pages() != 0) co_return co_await claim_pages(call, inode, range);
  Layouts::Hold hold;
  bool prepared = false;  // as far as it can be
  for (int round = 0; round < kLayoutRounds; ++round) {
    if (asked.write() && layouts_.shipped(inode)) co_return shipped_answer();
    // Who has not come back yet may have mapped it. Through us it can be read at once, and written
    // when that is known.
    if (any_unknown_holder(inode)) co_return shipped_answer();
    // No longer: whoever recalls may be waiting for a lease to end (A18).
    if (!co_await layouts_.wait_while_held(inode, range, kind, kHoldPatience))
      co_return shipped_answer();
    auto lock = co_await locks_.lock(inode, range, InodeLocks::Mode::shared);
    if (session->ending) co_return session_ended();
    if (layouts_.held_back(inode, range, kind)) continue;
    if (layouts_.pages_in_the_way(inode, range, asked.write(), session->id)) {
      lock.release();
      hold = layouts_.hold_pages(inode, range);
      InTheWay pages{.pages = range, .clean_too = asked.write()};
      CSV_CO_CHECK(co_await recall_pages(session, inode, pages));
      continue;
    }
    Blocks reach{range.first, std::min(kLastBlock, std::max(range.end, range.first + kReach))};
    if (layouts_.held_back(inode, reach, kind) ||
        layouts_.pages_in_the_way(inode, reach, asked.write(), session->id))
      reach = range;
    // Recorded and numbered before the mapping is looked up, without a wait in between: a recall
    // that starts from here on asks this session, and its number tells the mount that this answer,
    // should it come after it, is void.
    layouts_.add(inode, session->id, reach, kind);
    // What is written directly changes times: nobody else may know them by heart.
    if (asked.write()) unwatch({&inode, 1}, session->id);
    auto sequence = recall_sequence_;
    if (asked.write()) {
      CSV_CO_CHECK(co_await touches(session, inode, Touch::content));
    }
    auto seen = co_await look(inode, reach, asked.write());
    if (!seen) {
      if (is_stale(seen.error())) layouts_.drop(inode, session->id);
      co_return seen.error();
    }
    // Each write of it has to pass here, so that the right ones take the privileges away.
    if (asked.write() && seen->privileged) co_return shipped_answer();
    Answer answer;
    auto& layout = *answer.reply.mutable_layout();
    layout.set_size(seen->attr.size);
    layout.set_truncation(seen->attr.truncation);
    layout.set_sequence(sequence);
    layout.set_write(asked.write());
    if (!asked.write()) {
      lay_out_for_reading(layout, seen->map, range, seen->attr.size);
      keep_layouts_bounded(session);
      co_return std::move(answer);
    }
    auto ready = lay_out_for_writing(layout, seen->map, range, seen->attr.size,
                                     layouts_.grant(inode, session->id));
    if (ready == range.count() || prepared || (ready > 0 && round > 0)) {
      keep_layouts_bounded(session);
      co_return std::move(answer);
    }
    lock.release();
    CSV_CO_TRY(can_be, co_await prepare_write(session, inode, range, seen->attr.size));
    if (can_be == Prepared::no) co_return shipped_answer();
    prepared = can_be == Prepared::as_far_as_it_is;
  }
  // Others keep taking away what was made ready: let the coordinator do it.
  co_return shipped_answer();
}

/// For the page cache of the session's kernel: nobody else changes the range as long as it has
/// pages of it, nor reads it if programs may store into them. With it comes a layout to read.
Task<Service::Outcome> Service::claim_pages(CallRef call, InodeId inode, Blocks range) {
  auto session = call->session;
  bool dirty = call->request.layout().pages() == 2;
  auto in_the_way = [dirty](Blocks of) {
    return InTheWay{
        .layouts = of, .reads_too = dirty, .own_too = false, .pages = of, .clean_too = dirty};
  };
  Layouts::Hold hold;
  bool held = false;
  for (;;) {
    if (!held &&
        !co_await layouts_.wait_while_held(inode, range, Layouts::Kind::pages, kHoldPatience))
      co_return shipped_answer();  // the mount asks again
    auto lock = co_await locks_.lock(inode, range, InodeLocks::Mode::shared);
    if (session->ending) co_return session_ended();
    if (!held && layouts_.held_back(inode, range, Layouts::Kind::pages)) continue;
    if (anything_in_the_way(session, inode, in_the_way(range))) {
      lock.release();
      hold = layouts_.hold(inode, range, dirty);
      held = true;
      CSV_CO_CHECK(co_await recall(session, inode, in_the_way(range)));
      continue;
    }
    auto reach = range;
    if (!held) {
      Blocks further{range.first, std::min(kLastBlock, range.first + kPagesReach)};
      if (further.end > range.end && !layouts_.held_back(inode, further, Layouts::Kind::pages) &&
          !anything_in_the_way(session, inode, in_the_way(further)))
        reach = further;
    }
    // In this order for the reason that layouts are.
    auto claim = layouts_.add_pages(inode, session->id, reach, dirty);
    layouts_.add(inode, session->id, reach, Layouts::Kind::read);
    auto sequence = recall_sequence_;
    if (dirty) {
      CSV_CO_CHECK(co_await touches(session, inode, Touch::content));
    }
    auto seen = co_await look(inode, reach);
    if (!seen) {
      if (is_stale(seen.error())) layouts_.drop(inode, session->id);
      co_return seen.error();
    }
    Answer answer;
    auto& layout = *answer.reply.mutable_layout();
    layout.set_size(seen->attr.size);
    layout.set_truncation(seen->attr.truncation);
    layout.set_sequence(sequence);
    lay_out_for_reading(layout, seen->map, range, seen->attr.size);
    // Beyond the end others may be granted space without asking this session.
    auto end = std::min(reach.end, blocks_up(seen->attr.size));
    if (end > reach.first) {
      layout.set_pages_offset(reach.first * kBlockSize);
      layout.set_pages_length((end - reach.first) * kBlockSize);
    }
    layouts_.trim_pages(inode, session->id, {std::max(end, reach.first), reach.end}, claim);
    co_return std::move(answer);
  }
}

/// Makes what it can of `asked` writable under a layout: below the end stable, beyond it granted.
/// `no` where neither is possible.
Task<Expected<Service::Prepared>> Service::prepare_write(SessionRef session, InodeId inode,
                                                         Blocks asked, std::uint64_t size_seen) {
  bool beyond = asked.end > blocks_up(size_seen);
  Blocks steps{step_down(asked.first), std::min(kLastBlock, step_up(asked.end))};
  auto lock = co_await locks_.lock(inode, {steps.first, beyond ? kLastBlock : steps.end},
                                   InodeLocks::Mode::exclusive);
  if (session->ending) co_return session_ended();
  CSV_CO_TRY(seen, co_await look(inode, steps));
  auto mine = layouts_.grant(inode, session->id);
  auto inside = blocks_up(seen.attr.size);

  Blocks shared{kLastBlock, 0};
  bool others_grant = false, missing = false;
  std::vector<Mapping> pieces;
  for (const auto& each : seen.map) {
    auto wanted = part(each, asked);
    if (wanted.count > 0 && each.state == BlockState::granted && each.grant != mine)
      others_grant = true;
    if (wanted.count > 0 && each.state == BlockState::shared)
      shared = {std::min(shared.first, wanted.file_block), blocks_of(wanted).end};
    auto below = part(each, {0, inside});
    if (below.count == 0 ||
        (below.state != BlockState::hole && below.state != BlockState::unwritten))
      continue;
    pieces.push_back(below);
    missing = missing || part(below, asked).count > 0;
  }
  if (others_grant) {
    // Two sessions write beyond the end of one file, or what a session was granted by a former
    // coordinator is still there. All grants come back; should it go on, the file is shipped.
    lock.release();
    layouts_.note_contended_write(inode, session->id, around_.timing.shipped_for);
    auto alone = co_await quiet(session, inode, {.layouts = kWholeFile});
    if (!alone) co_return alone.error();
    CSV_CO_CHECK(co_await drop_unknown_grants(inode));
    co_return Prepared::yes;
  }
  if (shared.first < shared.end) {
    // Its place changes, for which others' layouts to read must come back.
    lock.release();
    shared.end = std::min(shared.end, shared.first + kMostUnshared);
    auto moved = co_await unshare(session, inode, shared);
    // There may be enough for the blocks that are written, of which a redirected write copies no
    // more.
    if (!moved && is_space_wanting(moved.error())) co_return Prepared::no;
    if (!moved) co_return moved.error();
    co_return Prepared::yes;
  }
  if (missing) {
    auto stable = co_await make_stable(session, inode, std::move(pieces));
    // As above: what is written alone may find room where the whole step does not.
    if (!stable && is_space_wanting(stable.error())) co_return Prepared::no;
    if (!stable) co_return stable.error();
  }
  if (asked.end <= inside || !beyond) co_return Prepared::yes;

  // A commit would put what is behind an end inside of a block into the middle of the file, and
  // cannot clear it: others may be writing there. Who writes through us does, and then goes on from
  // a block's boundary. An end that a commit leaves inside of a block has zeros behind it, and
  // whatever else moves the end takes the grants back.
  if (auto last = seen.attr.size / kBlockSize; last < inside) {
    CSV_CO_TRY(end, co_await look(inode, {last, last + 1}));
    if (is_content(end.map.front())) co_return Prepared::as_far_as_it_is;
  }
  auto from = std::max(asked.first, inside);
  auto step = std::clamp(blocks_up(seen.attr.size) / 8, kStep, kLargestGrant);
  Blocks ahead{from, std::min(kLastBlock, std::max(from + step, asked.end))};
  CSV_CO_TRY(room, co_await look(inode, ahead));
  for (const auto& each : room.map) {
    if (each.state == BlockState::granted && each.grant == mine) continue;
    // Space that fallocate put beyond the end: writing there directly, before the size says so,
    // would leave content beyond the end. What was found before it can be used.
    if (each.state != BlockState::hole)
      co_return each.file_block > from ? Prepared::yes : Prepared::no;
    if (each.file_block >= asked.end) co_return Prepared::yes;
    auto least = asked.end - each.file_block;
    auto given = co_await give_grant(session, inode, blocks_of(each), least);
    if (!given && is_space_wanting(given.error()))
      co_return each.file_block > from ? Prepared::yes : Prepared::no;
    if (!given) co_return given.error();
    co_return Prepared::yes;
  }
  co_return Prepared::yes;
}

/// Pieces below the end that are holes or unwritten become written zeros: from then on their
/// mapping cannot change under a write (A8).
Task<Expected<void>> Service::make_stable(SessionRef on_behalf, InodeId inode,
                                          std::vector<Mapping> pieces) {
  CSV_CO_TRY(runs, co_await reserve(on_behalf, inode, space_needed(pieces), kMostRuns));
  Gain gain;
  std::vector<Content::Extent> zeros;
  Handout handout{runs};
  for (const auto& piece : pieces) {
    if (piece.state == BlockState::unwritten) {
      gain.unwritten.push_back(blocks_of(piece));
      zeros.push_back({piece.lun_block * kBlockSize, piece.count * kBlockSize});
      continue;
    }
    gain.placements.push_back({piece.file_block, handout.take(piece.count), false});
    for (auto run : gain.placements.back().runs)
      zeros.push_back({run.lun_block * kBlockSize, run.count * kBlockSize});
  }
  auto done = judge(co_await content_.zero(std::move(zeros)));
  // Past the volatile cache before the state says so, or a power loss could show old content (A7).
  if (done) done = judge(co_await content_.flush());
  if (done) {
    auto body = [inode, gain](Catalog& catalog) { return gain.apply(catalog, inode); };
    done = co_await writer_.change(std::move(body));
  }
  if (!done) cancel_reservation(std::move(runs));
  co_return std::move(done);
}

/// Blocks beyond the end, of a hole, that this session alone may write and then commit.
Task<Expected<void>> Service::give_grant(SessionRef session, InodeId inode, Blocks hole,
                                         std::uint64_t least) {
  least = std::min(least, hole.count());
  auto reserved = co_await reserve(session, inode, hole.count(), kMostRuns);
  if (!reserved && is_space_wanting(reserved.error()) && least < hole.count())
    reserved = co_await reserve(session, inode, least, kMostRuns);
  if (!reserved) co_return reserved.error();
  auto runs = std::move(*reserved);
  std::uint64_t count = 0;
  for (auto run : runs) count += run.count;
  auto body = [id = session->id, inode, first = hole.first, runs,
               had = layouts_.grant(inode, session->id)](Catalog& catalog) -> Expected<GrantId> {
    if (had != GrantId{}) {
      auto more = catalog.place(inode, first, runs, BlockState::granted, had);
      if (more) return had;
      // A grant that was committed to its last block has ended.
      if (more.error() != Errc::refused) return more.error();
    }
    auto grant = CSV_TRY(catalog.new_grant(id, inode));
    CSV_TRY(catalog.place(inode, first, runs, BlockState::granted, grant));
    return grant;
  };
  auto grant = co_await writer_.change(std::move(body));
  if (!grant) {
    cancel_reservation(std::move(runs));
    co_return grant.error();
  }
  layouts_.set_grant(inode, session->id, *grant, {hole.first, hole.first + count});
  co_return Expected<void>{};
}

Task<Service::Outcome> Service::layout_return(CallRef call) {
  const auto& asked = call->request.layout_return();
  InodeId inode{asked.inode()};
  if (asked.wrote()) CSV_CO_CHECK(co_await touch(inode));
  if (layouts_.may_have_grant(inode, call->session_id))
    CSV_CO_CHECK(co_await drop_grants(call->session_id, inode));
  layouts_.drop(inode, call->session_id);
  co_return Answer{};
}

/// A commit waits for no recall: a mount may have to finish it before it can answer one.
Task<Service::Outcome> Service::commit(CallRef call) {
  const auto& asked = call->request.commit();
  auto end = asked.offset() + asked.length();
  if (asked.grant() == 0 || asked.length() == 0 || asked.offset() % kBlockSize != 0 ||
      end > kMaxSize)
    co_return Error{Errc::refused, "a commit names blocks of a grant"};
  // What was written before the target lost its cache may be gone: the mount writes it again.
  if (asked.verifier() != verifier_) {
    ++stale_commits_;
    co_return Error{Errc::stale_commit, "the target has lost power since this was written"};
  }
  InodeId inode{asked.inode()};
  auto range = blocks_of(asked.offset(), asked.length());
  auto lock = co_await locks_.lock(inode, range, InodeLocks::Mode::shared);
  // The session's writes were answered before it sent this, so a flush that starts now covers them.
  CSV_CO_CHECK(judge(co_await content_.flush()));
  auto body = [call, inode, range, end,
               now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
    const auto& what = call->request.commit();
    CSV_TRY(catalog.commit_grant(call->session_id, inode, GrantId{what.grant()}, range.first,
                                 range.count(), what.truncation()));
    auto attr = CSV_TRY(catalog.attr(inode));
    attr = CSV_TRY(end > attr.size ? catalog.grow(inode, end, now) : catalog.touch(inode, now));
    wire::Reply reply;
    fill(*reply.mutable_attr(), attr);
    return reply;
  };
  auto outcome = co_await settle(call, std::move(body));
  if (!outcome && outcome.error() == Errc::stale_commit) ++stale_commits_;
  co_return std::move(outcome);
}

// ---------------------------------------------------------------------------- space

/// Space in memory, or what there is after freeing what is about to become free. In at most so many
/// runs: with as many as blocks it is short only if there is not enough.
Task<Expected<std::vector<Run>>> Service::reserve(SessionRef on_behalf, InodeId inode,
                                                  std::uint64_t count, std::size_t most_runs) {
  if (count == 0) co_return std::vector<Run>{};
  for (int round = 0;; ++round) {
    auto body = [inode, count, most_runs](Catalog& catalog) {
      return catalog.reserve_space(inode, count, 0, most_runs);
    };
    auto freed_before = times_freed_;
    auto runs = co_await writer_.read(std::move(body));
    if (runs || !is_space_short(runs.error()) || round >= kFreeingRounds) co_return std::move(runs);
    CSV_CO_TRY(freed, co_await free_space(on_behalf, freed_before));
    if (!freed) co_return std::move(runs);
  }
}

void Service::cancel_reservation(std::vector<Run> runs) {
  if (!runs.empty()) tasks_.spawn(cancel_reservation_now(std::move(runs)));
}

Task<void> Service::cancel_reservation_now(std::vector<Run> runs) {
  auto body = [runs = std::move(runs)](Catalog& catalog) -> Expected<void> {
    catalog.cancel_reservation(runs);
    return {};
  };
  (void)co_await writer_.read(std::move(body));
}

// ---------------------------------------------------------------------------- content

Task<Service::Outcome> Service::read(CallRef call) {
  const auto& asked = call->request.read();
  InodeId inode{asked.inode()};
  if (asked.offset() >= kMaxSize || asked.length() == 0) co_return Answer{};
  auto length = std::min<std::uint64_t>(asked.length(), kMaxSize - asked.offset());
  auto range = blocks_of(asked.offset(), length);
  // A program may have stored into a mapping of which we have yet to hear, and said so.
  CSV_CO_CHECK(co_await all_holders_known(call->session, inode));
  auto lock = co_await locks_.lock(inode, range, InodeLocks::Mode::shared);
  Layouts::Hold hold;
  while (layouts_.pages_in_the_way(inode, range, false, call->session_id)) {
    lock.release();
    if (call->session->ending) co_return session_ended();
    hold = layouts_.hold_pages(inode, range);
    CSV_CO_CHECK(co_await recall_pages(call->session, inode, {.pages = range, .clean_too = false}));
    lock = co_await locks_.lock(inode, range, InodeLocks::Mode::shared);
  }
  if (call->session->ending) co_return session_ended();
  CSV_CO_TRY(seen, co_await look(inode, range));
  if (asked.offset() >= seen.attr.size) co_return Answer{};
  length = std::min(length, seen.attr.size - asked.offset());
  range = blocks_of(asked.offset(), length);
  auto buffer = std::make_shared<Buffer>(Buffer::zeroed(range.count() * kBlockSize));
  std::vector<Content::Piece> pieces;
  for (const auto& each : seen.map) {
    auto wanted = part(each, range);
    if (wanted.count == 0 || !is_content(wanted)) continue;
    pieces.push_back({wanted.lun_block * kBlockSize, (wanted.file_block - range.first) * kBlockSize,
                      wanted.count * kBlockSize});
  }
  CSV_CO_CHECK(judge(co_await content_.read(buffer, std::move(pieces))));
  call->session->read_bytes += length;
  Answer answer;
  auto skip = asked.offset() % kBlockSize;
  if (skip == 0) {
    answer.bulk = std::move(*buffer);
    answer.bulk.cut(length);
  } else {
    answer.bulk = Buffer::copy_of(buffer->span().subspan(skip, length));
  }
  co_return std::move(answer);
}

/// Unaligned, appending, or small: done here, alone with the file, so that two of them cannot each
/// put back what the other has just replaced (A9).
Task<Service::Outcome> Service::write(CallRef call) {
  const auto& asked = call->request.write();
  InodeId inode{asked.inode()};
  auto session = call->session;
  std::uint64_t length = call->content->size();
  if (length == 0) co_return Error{Errc::refused, "a write of nothing"};
  if (!asked.append() && (asked.offset() >= kMaxSize || length > kMaxSize - asked.offset()))
    co_return errno_error(EFBIG, "write");
  layouts_.note_contended_write(inode, session->id, around_.timing.shipped_for);

  Blocks range = asked.append() ? Blocks{} : blocks_of(asked.offset(), length);
  auto pages = range;
  if (layouts_.shipped(inode)) range = kWholeFile;
  bool clear_grants = false, moves = false;
  for (;;) {
    auto alone =
        co_await quiet(session, inode, {.layouts = range, .reads_too = moves, .pages = pages});
    if (!alone) co_return alone.error();
    bool cleared = std::exchange(clear_grants, false);
    if (cleared) CSV_CO_CHECK(co_await drop_unknown_grants(inode));
    CSV_CO_TRY(seen, co_await look_where_to_write(call));
    if (asked.within() && seen.offset + length > seen.attr.size) {
      cancel_reservation(std::move(seen.reserved));
      if (seen.offset >= seen.attr.size) co_return dropped_pages(seen.offset, length);
      length = seen.attr.size - seen.offset;
      call->content->cut(length);
      continue;
    }
    auto needed = blocks_of(seen.offset, length);
    pages = needed;
    // What others may do at the end of the file (grants, the last block) is affected by a new end.
    if (seen.offset + length > seen.attr.size) {
      needed = {std::min(needed.first, seen.attr.size / kBlockSize), kLastBlock};
      pages.first = needed.first;
    }
    // What is shared is written elsewhere: layouts to read it must come back, too.
    moves = any_shared(seen.map) || seen.last == BlockState::shared;
    InTheWay all{.layouts = needed, .reads_too = moves, .pages = pages};
    if (anything_in_the_way(session, inode, all)) {
      range = needed;
    } else if (any_granted(seen.map)) {
      if (cleared) {
        cancel_reservation(std::move(seen.reserved));
        co_return Error{Errc::corrupt, "blocks of inode " + std::to_string(raw(inode)) +
                                           " are granted to a session that there is not"};
      }
      // Granted to nobody that holds it: left from before a takeover. Certain only once nobody
      // holds anything of the file.
      range = kWholeFile;
      clear_grants = true;
    } else {
      co_return co_await write_alone(call, std::move(seen));
    }
    cancel_reservation(std::move(seen.reserved));
  }
}

/// What a redirected write meets, in one turn of the writer: where it goes, what is there, and
/// space for its holes and instead of what is shared, if there is some.
Task<Expected<Service::WriteLook>> Service::look_where_to_write(CallRef call) {
  auto body = [call](Catalog& catalog) -> Expected<WriteLook> {
    const auto& asked = call->request.write();
    InodeId inode{asked.inode()};
    std::uint64_t length = call->content->size();
    WriteLook seen;
    seen.attr = CSV_TRY(catalog.attr(inode));
    CSV_TRY(must_be_file(seen.attr));
    seen.offset = asked.append() ? seen.attr.size : asked.offset();
    if (length > kMaxSize - seen.offset) return errno_error(EFBIG, "write");
    auto range = blocks_of(seen.offset, length);
    seen.map = CSV_TRY(catalog.map(inode, range.first, range.count()));
    auto last = seen.attr.size / kBlockSize;
    if (last < range.first && seen.attr.size % kBlockSize != 0)
      seen.last = CSV_TRY(catalog.map(inode, last, 1)).front().state;
    auto needed = space_needed(seen.map);
    if (needed == 0) return seen;
    auto runs = catalog.reserve_space(inode, needed, 0, needed);
    if (!runs && !is_space_short(runs.error())) return runs.error();
    if (runs) seen.reserved = *std::move(runs);
    return seen;
  };
  co_return co_await writer_.read(std::move(body));
}

/// One transaction: new space comes from a reservation, is written, and then placed as written
/// together with the size and the answer.
Task<Service::Outcome> Service::write_alone(CallRef call, WriteLook seen) {
  InodeId inode{call->request.write().inode()};
  if (auto noted = co_await touches(call->session, inode, Touch::content); !noted) {
    cancel_reservation(std::move(seen.reserved));
    co_return noted.error();
  }
  auto offset = seen.offset;
  std::uint64_t length = call->content->size();
  auto end = offset + length;
  auto range = blocks_of(offset, length);
  auto runs = std::move(seen.reserved);
  // An earlier try of it may have been seen, and written over, in part.
  const auto& request = call->request;
  auto& before = call->session->slots[request.slot()].landed;
  if (before.sequence != request.sequence() || before.truncation != seen.attr.truncation)
    before = {};
  auto composed = co_await compose(call, offset, seen.map, seen.attr.size, before.bytes);
  if (composed && seen.last) {
    auto cleared = co_await clear_behind_end(call->session, inode, seen.attr.size);
    if (!cleared) composed = cleared.error();
  }
  if (!composed) {
    cancel_reservation(std::move(runs));
    co_return composed.error();
  }
  auto image = *std::move(composed);
  if (runs.empty()) {
    auto needed = space_needed(seen.map);
    auto freed = co_await reserve(call->session, inode, needed, needed);
    if (!freed) co_return freed.error();
    runs = *std::move(freed);
  }
  bool repeats_durable = before.bytes.empty() || before.durable;
  RangeSet there;  // blocks in which there is nothing left to do
  for (auto had : before.bytes.within({offset, end}))
    there.add({had.begin / kBlockSize, had.end == end ? range.end : had.end / kBlockSize});
  Gain gain;
  Handout handout{runs};
  std::vector<Content::Piece> pieces;
  std::vector<Range> in_place;  // by piece, if it is
  auto add = [&](std::uint64_t file_block, Run run, bool replaces = false) {
    pieces.push_back({run.lun_block * kBlockSize, (file_block - range.first) * kBlockSize,
                      run.count * kBlockSize});
    in_place.resize(pieces.size());
    if (replaces) in_place.back() = {file_block, file_block + run.count};
  };
  // One command each: what failed may be written in part.
  auto most = std::max<std::uint64_t>(tenure_->lun->profile().max_transfer / kBlockSize, 1);
  auto replace = [&](const Mapping& piece) {
    auto of = blocks_of(piece);
    for (auto at = of.first; at < of.end;) {
      Range next{at, std::min(of.end, at + most)};
      if (auto had = there.within(next); !had.empty()) {
        if (had.front().begin == at) {
          at = had.front().end;
          continue;
        }
        next.end = had.front().begin;
      }
      add(at, {piece.lun_block + (at - of.first), next.end - at}, true);
      at = next.end;
    }
  };
  for (const auto& piece : seen.map) {
    if (needs_space(piece)) {
      gain.placements.push_back(
          {piece.file_block, handout.take(piece.count), piece.state == BlockState::shared});
      auto file_block = piece.file_block;
      for (auto run : gain.placements.back().runs) {
        add(file_block, run);
        file_block += run.count;
      }
      continue;
    }
    if (piece.state != BlockState::unwritten) {
      replace(piece);
      continue;
    }
    gain.unwritten.push_back(blocks_of(piece));
    add(piece.file_block, {piece.lun_block, piece.count});
  }
  // What becomes part of the file is past the volatile cache before its transaction (A7).
  bool joins = gain.any() || end > seen.attr.size;
  auto durable = joins ? Content::Durable::yes : Content::Durable::no;
  auto landed = std::make_shared<std::vector<bool>>();
  auto io = co_await content_.write(image, std::move(pieces), durable, landed);
  if (io.error() == std::errc::no_space_on_device && request.sequence() > 0) {
    // What is behind the end nobody has seen, nor what was no content.
    before.durable = joins && repeats_durable;
    before.sequence = request.sequence();
    before.truncation = seen.attr.truncation;
    for (std::size_t i = 0; i < landed->size(); ++i) {
      Range bytes{in_place[i].begin * kBlockSize,
                  std::min(in_place[i].end * kBlockSize, seen.attr.size)};
      if ((*landed)[i] && !bytes.empty()) before.bytes.add(bytes);
    }
  }
  // It would be put off until the session is ended, which loses everything.
  if (io.error() == std::errc::no_space_on_device && request.write().within() &&
      owes_pages(*call->session, inode, range)) {
    cancel_reservation(std::move(runs));
    co_return errno_error(ENOSPC, "the thin LUN has no space for pages that others wait for");
  }
  auto done = judge(std::move(io));
  if (!done) {
    cancel_reservation(std::move(runs));
    co_return done.error();
  }
  auto body = [call, inode, offset, length, end, gain, durably = joins && repeats_durable,
               verifier = verifier_, now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
    CSV_TRY(gain.apply(catalog, inode));
    auto attr = CSV_TRY(catalog.attr(inode));
    attr = CSV_TRY(end > attr.size ? catalog.grow(inode, end, now) : catalog.touch(inode, now));
    if (!call->request.write().within())
      attr = CSV_TRY(catalog.drop_privileges(inode, call->request.write().drop_set_id(), now));
    wire::Reply reply;
    auto& written = *reply.mutable_written();
    written.set_offset(offset);
    written.set_length(static_cast<std::uint32_t>(length));
    written.set_durable(durably);
    written.set_verifier(verifier);
    fill(*written.mutable_attr(), attr);
    return reply;
  };
  auto outcome = co_await settle(call, std::move(body));
  if (!outcome) {
    cancel_reservation(std::move(runs));
  } else {
    call->session->write_bytes += length;
  }
  co_return std::move(outcome);
}

/// Whole blocks as they are to stand: the request's content, around it, and where some of it has
/// `landed` before, what is there now of the file with this `size`, and zeros where nothing is.
Task<Expected<Content::BufferRef>> Service::compose(CallRef call, std::uint64_t offset,
                                                    std::vector<Mapping> map, std::uint64_t size,
                                                    RangeSet landed) {
  std::uint64_t length = call->content->size();
  auto range = blocks_of(offset, length);
  auto skip = offset % kBlockSize;
  Range whole{offset, offset + length};
  bool repeats = landed.overlaps(whole);
  if (skip == 0 && length % kBlockSize == 0 && !repeats) co_return call->content;
  auto image = std::make_shared<Buffer>(Buffer::zeroed(range.count() * kBlockSize));
  std::vector<Content::Piece> pieces;
  auto keep = [&](std::uint64_t block) {
    for (const auto& each : map) {
      auto one = part(each, {block, block + 1});
      if (one.count > 0 && is_content(one))
        pieces.push_back(
            {one.lun_block * kBlockSize, (block - range.first) * kBlockSize, kBlockSize});
    }
  };
  for (auto block = range.first; block < range.end; ++block) {
    bool partly = (block == range.first && skip != 0) ||
                  (block == range.end - 1 && whole.end % kBlockSize != 0);
    if (partly || (repeats && landed.overlaps({block * kBlockSize, (block + 1) * kBlockSize})))
      keep(block);
  }
  CSV_CO_CHECK(judge(co_await content_.read(image, std::move(pieces))));
  auto inside = size - std::min(size, range.first * kBlockSize);
  auto behind = image->span().subspan(std::min<std::uint64_t>(inside, image->size()));
  std::fill(behind.begin(), behind.end(), std::byte{});
  RangeSet ours;
  ours.add(whole);
  for (auto had : landed.within(whole)) ours.remove(had);
  for (auto part : ours.all()) {
    auto from = call->content->span().subspan(part.begin - offset, part.end - part.begin);
    auto to = image->span().subspan(part.begin - range.first * kBlockSize);
    std::copy(from.begin(), from.end(), to.begin());
  }
  co_return image;
}

// ---------------------------------------------------------------------------- other mappings

Task<Service::Outcome> Service::truncate(CallRef call, InodeId inode, std::uint64_t size,
                                         std::optional<volume::AttrChange> change,
                                         bool drop_set_id) {
  if (size > kMaxSize) co_return errno_error(EFBIG, "truncate");
  InTheWay all{.layouts = kWholeFile,
               .reads_too = true,
               .pages = {size / kBlockSize, kLastBlock},
               .truncates = true};
  auto alone = co_await quiet(call->session, inode, all);
  if (!alone) co_return alone.error();
  CSV_CO_TRY(seen, co_await look(inode, {}));
  // A file that becomes longer has another last block, but only its former size tells where.
  while (seen.attr.size / kBlockSize < all.pages.first) {
    all.pages.first = seen.attr.size / kBlockSize;
    if (!anything_in_the_way(call->session, inode, all)) break;
    alone = Quiet{};
    alone = co_await quiet(call->session, inode, all);
    if (!alone) co_return alone.error();
    CSV_CO_TRY(again, co_await look(inode, {}));
    seen = std::move(again);
  }
  CSV_CO_CHECK(co_await touches(call->session, inode, Touch::content));
  auto former = seen.attr.size;
  if (size > former) CSV_CO_CHECK(co_await clear_behind_end(call->session, inode, former));
  auto body = [inode, size, change, drop_set_id,
               now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
    CSV_TRY(catalog.truncate(inode, size, now));
    auto attr = CSV_TRY(catalog.drop_privileges(inode, drop_set_id, now));
    if (change) attr = CSV_TRY(catalog.change(inode, *change, now));
    wire::Reply reply;
    fill(*reply.mutable_attr(), attr);
    return reply;
  };
  auto outcome = co_await settle(call, std::move(body));
  // Not before: it would be gone from a file that stays as long as it was, should we die, or the
  // session end, in between. So it may also be left undone.
  if (outcome && size < former)
    (void)co_await zero_bytes(call->session, inode, size, blocks_up(size) * kBlockSize,
                              {.of_shared = false});
  co_return std::move(outcome);
}

/// Behind the end of a file, up to the end of its block, there may be anything: a write that ended
/// before its transaction, what a truncation cut off, of a shared block the rest of the other file.
/// Nobody reads it. Whoever moves the end on, and does not write from it on, first comes here,
/// alone with the block (with those who read under a layout, if it is not shared).
Task<Expected<void>> Service::clear_behind_end(SessionRef on_behalf, InodeId inode,
                                               std::uint64_t size) {
  // Past the volatile cache before the transaction that shows it.
  co_return co_await zero_bytes(on_behalf, inode, size, blocks_up(size) * kBlockSize,
                                {.durable = Content::Durable::yes});
}

/// As quiet(), of the whole file, for what may move the end to `end` and does not write from the
/// former one on.
Task<Expected<Service::Quiet>> Service::quiet_to_grow(SessionRef on_behalf, InodeId inode,
                                                      InTheWay what, std::uint64_t end) {
  for (;;) {
    auto alone = co_await quiet(on_behalf, inode, what);
    if (!alone) co_return alone.error();
    CSV_CO_TRY(file, co_await look(inode, {}));
    auto size = file.attr.size, last = size / kBlockSize;
    if (end <= size || size % kBlockSize == 0) co_return std::move(alone);
    CSV_CO_TRY(seen, co_await look(inode, {last, last + 1}));
    auto state = seen.map.front().state;
    what.layouts = {std::min(what.layouts.first, last), std::max(what.layouts.end, last + 1)};
    what.reads_too = what.reads_too || state == BlockState::shared;  // it moves
    if (anything_in_the_way(on_behalf, inode, what)) continue;
    CSV_CO_CHECK(co_await clear_behind_end(on_behalf, inode, size));
    co_return std::move(alone);
  }
}

/// [from, to) lies in one block, of which nobody has a layout.
Task<Expected<void>> Service::zero_bytes(SessionRef on_behalf, InodeId inode, std::uint64_t from,
                                         std::uint64_t to, Zeros how) {
  if (from >= to) co_return Expected<void>{};
  auto block = from / kBlockSize;
  CSV_CO_TRY(seen, co_await look(inode, {block, block + 1}));
  const auto& piece = seen.map.front();
  if (!is_content(piece)) co_return Expected<void>{};
  if (piece.state == BlockState::shared && !how.of_shared) co_return Expected<void>{};
  auto buffer = std::make_shared<Buffer>(kBlockSize);
  std::vector<Content::Piece> whole{{piece.lun_block * kBlockSize, 0, kBlockSize}};
  CSV_CO_CHECK(judge(co_await content_.read(buffer, whole)));
  auto part_to_clear = buffer->span().subspan(from % kBlockSize, to - from);
  std::fill(part_to_clear.begin(), part_to_clear.end(), std::byte{});
  if (piece.state == BlockState::shared)
    co_return co_await move_to_own(on_behalf, inode, piece, buffer);
  CSV_CO_CHECK(judge(co_await content_.write(buffer, whole, how.durable)));
  co_return Expected<void>{};
}

Task<Service::Outcome> Service::allocate(CallRef call) {
  const auto& asked = call->request.allocate();
  if (asked.length() == 0) co_return errno_error(EINVAL, "fallocate");
  if (asked.offset() >= kMaxSize || asked.length() > kMaxSize - asked.offset())
    co_return errno_error(EFBIG, "fallocate");
  switch (asked.mode()) {
    case 0:
    case FALLOC_FL_KEEP_SIZE: co_return co_await fill_space(call);
    case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: co_return co_await punch(call);
    case FALLOC_FL_ZERO_RANGE:
    case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE: co_return co_await zero_range(call);
    default: co_return errno_error(EOPNOTSUPP, "fallocate");
  }
}

/// Gives every hole of the range unwritten space, in as many transactions as that takes.
Task<Expected<void>> Service::fill_holes(SessionRef on_behalf, InodeId inode, Blocks range) {
  int rounds = 0;
  while (range.first < range.end) {
    CSV_CO_CHECK(may_change(*on_behalf));
    auto body = [inode, range](Catalog& catalog) {
      return catalog.fill(inode, range.first, range.count());
    };
    auto freed_before = times_freed_;
    auto progress = co_await writer_.change(std::move(body));
    if (progress) {
      range.first += progress->done;
      continue;
    }
    if (!is_space_short(progress.error()) || rounds++ >= kFreeingRounds) co_return progress.error();
    CSV_CO_TRY(freed, co_await free_space(on_behalf, freed_before));
    if (!freed) co_return progress.error();
  }
  co_return Expected<void>{};
}

/// The end of an allocation: the size, unless it is to be kept. Under quiet_to_grow().
Task<Service::Outcome> Service::settle_size(CallRef call, bool keep_size) {
  const auto& asked = call->request.allocate();
  InodeId inode{asked.inode()};
  auto end = asked.offset() + asked.length();
  auto body = [inode, end, keep_size, drop = asked.drop_set_id(),
               now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
    auto attr = CSV_TRY(catalog.drop_privileges(inode, drop, now));
    if (end > attr.size && keep_size) CSV_TRY(catalog.keep_beyond_end(inode));
    bool grows = end > attr.size && !keep_size;
    attr = CSV_TRY(grows ? catalog.grow(inode, end, now) : catalog.touch(inode, now));
    wire::Reply reply;
    fill(*reply.mutable_attr(), attr);
    return reply;
  };
  co_return co_await settle(call, std::move(body));
}

Task<Service::Outcome> Service::fill_space(CallRef call) {
  const auto& asked = call->request.allocate();
  InodeId inode{asked.inode()};
  auto range = blocks_of(asked.offset(), asked.length());
  bool keep_size = (asked.mode() & FALLOC_FL_KEEP_SIZE) != 0;
  auto end = keep_size ? 0 : asked.offset() + asked.length();
  auto alone = co_await quiet_to_grow(call->session, inode, {.layouts = kWholeFile}, end);
  if (!alone) co_return alone.error();
  CSV_CO_CHECK(co_await touches(call->session, inode, Touch::content));
  CSV_CO_TRY(seen, co_await look(inode, range));
  // Granted blocks are not holes, but would become some again when the grant ends.
  if (any_granted(seen.map)) CSV_CO_CHECK(co_await drop_unknown_grants(inode));
  CSV_CO_CHECK(co_await fill_holes(call->session, inode, range));
  co_return co_await settle_size(call, keep_size);
}

/// Zeros in the blocks that a range covers only in part. Returns those that it covers wholly, where
/// a block that holds the end of the file counts as whole if nothing of the file follows the range.
Task<Expected<Blocks>> Service::zero_edges(SessionRef on_behalf, InodeId inode,
                                           std::uint64_t offset, std::uint64_t end) {
  CSV_CO_TRY(seen, co_await look(inode, {}));
  bool to_the_end = end >= seen.attr.size;
  Blocks inner{blocks_up(offset), to_the_end ? blocks_up(end) : end / kBlockSize};
  CSV_CO_CHECK(
      co_await zero_bytes(on_behalf, inode, offset, std::min(end, inner.first * kBlockSize), {}));
  if (!to_the_end && inner.end >= inner.first)
    CSV_CO_CHECK(co_await zero_bytes(on_behalf, inode, inner.end * kBlockSize, end, {}));
  // Before the transaction that answers for it.
  CSV_CO_CHECK(judge(co_await content_.flush()));
  co_return inner;
}

Task<Service::Outcome> Service::punch(CallRef call) {
  const auto& asked = call->request.allocate();
  InodeId inode{asked.inode()};
  auto end = asked.offset() + asked.length();
  auto range = blocks_of(asked.offset(), asked.length());
  auto alone =
      co_await quiet(call->session, inode, {.layouts = range, .reads_too = true, .pages = range});
  if (!alone) co_return alone.error();
  CSV_CO_CHECK(co_await touches(call->session, inode, Touch::content));
  CSV_CO_TRY(inner, co_await zero_edges(call->session, inode, asked.offset(), end));
  auto body = [inode, inner, drop = asked.drop_set_id(),
               now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
    auto attr = CSV_TRY(catalog.drop_privileges(inode, drop, now));
    if (inner.first < inner.end) {
      attr = CSV_TRY(catalog.punch(inode, inner.first, inner.count(), false, now)).attr;
    } else {
      attr = CSV_TRY(catalog.touch(inode, now));
    }
    wire::Reply reply;
    fill(*reply.mutable_attr(), attr);
    return reply;
  };
  co_return co_await settle(call, std::move(body));
}

Task<Service::Outcome> Service::zero_range(CallRef call) {
  const auto& asked = call->request.allocate();
  InodeId inode{asked.inode()};
  auto end = asked.offset() + asked.length();
  auto range = blocks_of(asked.offset(), asked.length());
  bool keep_size = (asked.mode() & FALLOC_FL_KEEP_SIZE) != 0;
  InTheWay all{.layouts = {range.first, kLastBlock}, .reads_too = true, .pages = range};
  auto alone = co_await quiet_to_grow(call->session, inode, all, keep_size ? 0 : end);
  if (!alone) co_return alone.error();
  CSV_CO_CHECK(co_await touches(call->session, inode, Touch::content));
  CSV_CO_TRY(inner, co_await zero_edges(call->session, inode, asked.offset(), end));
  while (inner.first < inner.end) {
    CSV_CO_CHECK(may_change(*call->session));
    auto body = [inode, inner, now = wall_now()](Catalog& catalog) {
      return catalog.punch(inode, inner.first, inner.count(), true, now);
    };
    CSV_CO_TRY(progress, co_await writer_.change(std::move(body)));
    inner.first += progress.done;
  }
  CSV_CO_CHECK(co_await fill_holes(call->session, inode, range));
  co_return co_await settle_size(call, keep_size);
}

}  // namespace csv::service
