// Files that share blocks (A16): clones, and how what is shared comes apart before it is written.
//
// Nobody writes to shared blocks, under a layout or through us: what is to be written there gets
// blocks of its own before. The content is in them, past the target's volatile cache, before the
// transaction that puts them in the place of the shared ones; until then the shared ones are in
// force, and hold what has been synced.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "coordinator/service/service.h"

namespace csv::service {
namespace {

using volume::BlockState;
using volume::Catalog;
using volume::kBlockSize;
using volume::Mapping;
using volume::Run;

constexpr std::uint64_t kMaxSize = kLastBlock * kBlockSize;
/// Copied together, at multiples of it: a write of 4 KiB costs little more than itself, and a file
/// that is written here and there does not fall into single blocks. It is what disk images use.
constexpr std::uint64_t kUnit = (64u << 10) / kBlockSize;
/// Less is copied by whoever asked: it costs him little, and later writes nothing.
constexpr std::uint64_t kLeastCloned = 64u << 10;
constexpr std::uint64_t kMostCloned = 1ull << 30;

Error session_ended() { return Error{Errc::session_ended, "the session has ended"}; }
Error not_cloned() { return errno_error(EOPNOTSUPP, "no whole blocks, or too few, to be cloned"); }

Expected<void> must_be_file(const volume::Attr& attr) {
  if (S_ISREG(attr.mode)) return {};
  return errno_error(S_ISDIR(attr.mode) ? EISDIR : EINVAL, "not a regular file");
}

struct Sizes {
  std::uint64_t from = 0, into = 0;
};

/// How many of the bytes asked for can share blocks. The last block may be shared although the file
/// ends inside of it, if that becomes the end of the other one as well.
std::uint64_t whole_blocks(const wire::Clone& asked, Sizes sizes) {
  auto left = sizes.from - std::min(sizes.from, asked.offset());
  auto bytes = std::min({asked.length(), kMostCloned, left});
  auto rest = bytes % kBlockSize;
  if (rest != 0 && (bytes != left || asked.into_offset() + bytes < sizes.into)) bytes -= rest;
  return bytes;
}

}  // namespace

/// As quiet(), with the locks in the order of the inodes' numbers. Nobody waits for a mount while
/// he has one, so nor does who waits for the other.
Task<Expected<Service::QuietTwo>> Service::quiet_two(SessionRef on_behalf, InodeId from,
                                                     InTheWay source, InodeId into,
                                                     InTheWay target) {
  QuietTwo quiet;
  for (;;) {
    quiet.lower =
        co_await locks_.lock(std::min(from, into), kWholeFile, InodeLocks::Mode::exclusive);
    if (from != into)
      quiet.higher =
          co_await locks_.lock(std::max(from, into), kWholeFile, InodeLocks::Mode::exclusive);
    if (on_behalf->ending) co_return session_ended();
    bool of_source = anything_in_the_way(on_behalf, from, source);
    bool of_target = anything_in_the_way(on_behalf, into, target);
    if (!of_source && !of_target) co_return std::move(quiet);
    quiet.lower.release();
    quiet.higher.release();
    auto hull = [](const InTheWay& what) {
      if (what.pages.first >= what.pages.end) return what.layouts;
      return Blocks{std::min(what.layouts.first, what.pages.first),
                    std::max(what.layouts.end, what.pages.end)};
    };
    if (of_source) {
      quiet.from_hold = layouts_.hold(from, hull(source), source.reads_too);
      CSV_CO_CHECK(co_await recall(on_behalf, from, source));
    }
    if (of_target) {
      quiet.into_hold = layouts_.hold(into, hull(target), target.reads_too);
      CSV_CO_CHECK(co_await recall(on_behalf, into, target));
    }
  }
}

Task<Service::Outcome> Service::clone(CallRef call) {
  const auto& asked = call->request.clone();
  InodeId from{asked.inode()}, into{asked.into()};
  auto session = call->session;
  if (asked.into_offset() >= kMaxSize) co_return errno_error(EFBIG, "clone");
  if (asked.offset() % kBlockSize != 0 || asked.into_offset() % kBlockSize != 0 ||
      asked.offset() >= kMaxSize)
    co_return not_cloned();
  auto length = std::min({asked.length(), kMostCloned, kMaxSize - asked.offset()});
  if (length > kMaxSize - asked.into_offset()) co_return errno_error(EFBIG, "clone");
  if (length < kLeastCloned) co_return not_cloned();
  auto blocks = (length + kBlockSize - 1) / kBlockSize;
  Blocks source_blocks{asked.offset() / kBlockSize, asked.offset() / kBlockSize + blocks};
  Blocks target_blocks{asked.into_offset() / kBlockSize, asked.into_offset() / kBlockSize + blocks};
  if (from == into && source_blocks.overlaps(target_blocks))
    co_return errno_error(EINVAL, "a range cloned onto itself");

  // Reading goes on where the content comes from: it stays where it is.
  InTheWay source{.layouts = source_blocks, .pages = source_blocks, .clean_too = false};
  InTheWay target{.layouts = target_blocks, .reads_too = true, .pages = target_blocks};
  bool clear_grants = false;
  for (;;) {
    auto alone = co_await quiet_two(session, from, source, into, target);
    if (!alone) co_return alone.error();
    if (std::exchange(clear_grants, false)) {
      CSV_CO_CHECK(co_await drop_unknown_grants(from));
      CSV_CO_CHECK(co_await drop_unknown_grants(into));
    }
    auto look_at_both = [from, into](Catalog& catalog) -> Expected<Sizes> {
      auto one = CSV_TRY(catalog.attr(from)), other = CSV_TRY(catalog.attr(into));
      CSV_TRY(must_be_file(one));
      CSV_TRY(must_be_file(other));
      return Sizes{one.size, other.size};
    };
    CSV_CO_TRY(sizes, co_await writer_.read(std::move(look_at_both)));
    if (asked.offset() >= sizes.from) {
      Answer nothing;
      nothing.reply.mutable_cloned();
      co_return std::move(nothing);
    }
    auto bytes = whole_blocks(asked, sizes);
    if (bytes < kLeastCloned) co_return not_cloned();
    // What others may do at the end of the file (grants, the last block) is affected by a new end,
    // and by another block where the file ends: what is behind the end in that one is not zeros,
    // and who was granted space further on makes the file longer without clearing it.
    if (auto end = sizes.into / kBlockSize;
        (asked.into_offset() + bytes > sizes.into || bytes % kBlockSize != 0) &&
        (target.layouts.end != kLastBlock || end < target.layouts.first)) {
      target.layouts = {std::min(target_blocks.first, end), kLastBlock};
      target.pages = target.layouts;
      if (anything_in_the_way(session, into, target)) continue;
    }
    CSV_CO_CHECK(co_await touches(session, into, Touch::content));
    if (asked.into_offset() > sizes.into)
      CSV_CO_CHECK(co_await clear_behind_end(session, into, sizes.into));
    // What was written there is as durable as the clone is: who syncs the one file has it.
    CSV_CO_CHECK(judge(co_await content_.flush()));
    auto body = [call, bytes, now = wall_now()](Catalog& catalog) -> Expected<wire::Reply> {
      const auto& what = call->request.clone();
      InodeId source_of{what.inode()}, copy{what.into()};
      auto count = (bytes + kBlockSize - 1) / kBlockSize;
      auto progress = CSV_TRY(catalog.clone(source_of, what.offset() / kBlockSize, count, copy,
                                            what.into_offset() / kBlockSize));
      auto done = std::min(bytes, progress.done * kBlockSize);
      auto end = what.into_offset() + done;
      auto attr = CSV_TRY(end > progress.attr.size ? catalog.grow(copy, end, now)
                                                   : catalog.touch(copy, now));
      attr = CSV_TRY(catalog.drop_privileges(copy, what.drop_set_id(), now));
      wire::Reply reply;
      reply.mutable_cloned()->set_length(done);
      fill(*reply.mutable_cloned()->mutable_attr(), attr);
      return reply;
    };
    auto outcome = co_await settle(call, std::move(body));
    if (outcome || outcome.error() != Errc::refused) co_return std::move(outcome);
    if (source.layouts.end == kLastBlock) co_return std::move(outcome);
    // Granted to nobody that holds it: left from before a takeover. Certain only once nobody holds
    // anything of the files.
    source = {.layouts = kWholeFile, .pages = kWholeFile, .clean_too = false};
    target = {.layouts = kWholeFile, .reads_too = true, .pages = kWholeFile};
    clear_grants = true;
  }
}

Task<Expected<void>> Service::unshare(SessionRef on_behalf, InodeId inode, Blocks range) {
  Blocks units{range.first / kUnit * kUnit,
               std::min(kLastBlock, (range.end + kUnit - 1) / kUnit * kUnit)};
  // The lock is of the units only, and a layout asked for elsewhere reaches further than its own:
  // even if nobody holds anything now, it must not be given what is about to move.
  auto hold = layouts_.hold(inode, units, true);
  // The content stays, so kernels may keep their pages. But it moves.
  auto alone = co_await quiet(on_behalf, inode, {.layouts = units, .reads_too = true}, units);
  if (!alone) co_return alone.error();
  CSV_CO_TRY(seen, co_await look(inode, units));
  for (const auto& piece : seen.map)
    if (piece.state == BlockState::shared)
      CSV_CO_CHECK(co_await move_to_own(on_behalf, inode, piece));
  co_return Expected<void>{};
}

Task<Expected<void>> Service::move_to_own(SessionRef on_behalf, InodeId inode, Mapping piece,
                                          Content::BufferRef content) {
  CSV_CO_TRY(runs, co_await reserve(on_behalf, inode, piece.count, piece.count));
  Expected<void> done;
  if (!content) {
    content = std::make_shared<Buffer>(piece.count * kBlockSize);
    std::vector<Content::Piece> whole{{piece.lun_block * kBlockSize, 0, piece.count * kBlockSize}};
    done = judge(co_await content_.read(content, std::move(whole)));
  }
  if (done) {
    std::vector<Content::Piece> pieces;
    std::size_t at = 0;
    for (auto run : runs) {
      pieces.push_back({run.lun_block * kBlockSize, at, run.count * kBlockSize});
      at += run.count * kBlockSize;
    }
    // Past the volatile cache before its transaction: what the shared blocks hold may have been
    // synced, and would be gone with a power loss.
    done = judge(co_await content_.write(content, std::move(pieces), Content::Durable::yes));
  }
  if (done) {
    auto body = [inode, first = piece.file_block, runs](Catalog& catalog) {
      return catalog.replace(inode, first, runs);
    };
    done = co_await writer_.change(std::move(body));
  }
  if (!done) cancel_reservation(std::move(runs));
  co_return std::move(done);
}

}  // namespace csv::service
