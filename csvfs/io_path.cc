#include "csvfs/io_path.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "csvfs/base/log.h"

namespace csv {
namespace {

constexpr std::uint64_t kBlock = 4096;  ///< The volume's; space is given out in these.
constexpr std::uint64_t kLeastGrant =
    64 * 1024;  ///< Shorter writes at the end go through the coordinator.
constexpr std::uint64_t kAskAhead = 16ull << 20;    ///< Read layouts are asked for this far.
constexpr std::uint32_t kMostRedirected = 1 << 20;  ///< Of one message.
constexpr int kTries = 8;  ///< Layouts that recalls kept taking away; then the coordinator does it.
constexpr Duration kShippedFor = 1s;    ///< How long an answer `shipped` saves asking again.
constexpr Duration kGatePoll = 20ms;    ///< The gate is a number in shared memory: nobody calls.
constexpr Duration kSpacePoll = 250ms;  ///< Nor does a target say when it has space again.
/// So long after another node has begun to wait for pages they are tried to be written; the whole
/// session would be ended not much later. The coordinator has the same (sessions.cc).
constexpr Duration kSpaceForOthers = 5s;
constexpr std::size_t kMostVolatile = 4096;
constexpr Duration kVolatileFor = 5s;  ///< As local file systems have it.
/// Of what may be kept of files: so much is given back at once, and between two counts comes in.
constexpr std::size_t kPart = 16;

constexpr std::uint64_t down(std::uint64_t value, std::uint64_t unit) {
  return value - value % unit;
}
constexpr std::uint64_t up(std::uint64_t value, std::uint64_t unit) {
  return down(value + unit - 1, unit);
}

std::uint64_t end_of(std::uint64_t offset, std::uint64_t length) {
  constexpr auto kMost = std::numeric_limits<std::uint64_t>::max();
  return length > kMost - offset ? kMost : offset + length;
}

Error over() {
  return Error{std::errc::io_error, "the session under which it was opened has ended"};
}

/// That a layout was asked for and may yet be given.
class Asking {
 public:
  explicit Asking(FilePtr file) : file_{std::move(file)} { ++file_->asking; }
  Asking(const Asking&) = delete;
  Asking& operator=(const Asking&) = delete;
  ~Asking() {
    --file_->asking;
    file_->changed.notify();
  }

 private:
  FilePtr file_;
};

}  // namespace

IoPath::IoPath(Loop& loop, CoordinatorClient& client, Admission& admission, FileTable& files,
               std::uint64_t memory, std::function<TimePoint()> open_until, MountCounters& counters)
    : loop_{&loop},
      client_{&client},
      admission_{&admission},
      files_{&files},
      memory_{memory},
      open_until_{std::move(open_until)},
      counters_{&counters},
      flushed_{loop} {
  admission.on_forgot([this] {
    ++told_lost_;
    forgot();
    // Said under what the target's memory was when it told us: the same loss is not to count twice.
    // With no coordinator there the next one may have counted another by now.
    if (client_->connected())
      tell_loss(verifier_.value_or(0));
    else
      tell_next_ = true;
  });
}

bool IoPath::gate_open() const { return loop_->now() < open_until_(); }

std::uint64_t IoPath::block_size() const { return admission_->path()->lun().geometry().block_size; }

bool IoPath::usable_now(const File& file) const {
  return !file.ended && admission_->path() && gate_open();
}

/// Until I/O may be sent. What follows it without a wait in between may rely on that.
Task<Expected<void>> IoPath::usable(FilePtr file, Interrupt* interrupt) {
  Interrupt::Watch watch{interrupt, [this] { admission_->changed().notify(); }};
  for (;;) {
    if (file->ended) co_return over();
    if (usable_now(*file)) co_return Expected<void>{};
    if (interrupt && interrupt->raised()) co_return Error{std::errc::interrupted};
    if (admission_->path())
      co_await sleep(*loop_, kGatePoll);
    else
      co_await admission_->changed().wait();
  }
}

/// Until a later admission has fenced the key under which the commands were sent: none of them can
/// take effect any more.
Task<void> IoPath::outcome_known(FilePtr file, std::shared_ptr<LunPath> lost) {
  while (!file->ended && (!admission_->path() || admission_->path() == lost))
    co_await admission_->changed().wait();
}

// --- Layouts ----------------------------------------------------------------------------------

Task<Expected<IoPath::Layout>> IoPath::ask(FilePtr file, std::uint64_t offset, std::uint64_t length,
                                           bool write, Interrupt* interrupt, Pages pages) {
  while (file->returning && !file->ended) co_await file->changed.wait();
  Asking asking{file};
  wire::Request request;
  auto& body = *request.mutable_layout();
  body.set_inode(raw(file->inode));
  body.set_offset(offset);
  body.set_length(length);
  body.set_write(write);
  body.set_pages(static_cast<std::uint32_t>(pages));
  CoordinatorClient::CallOptions options;
  options.session = file->session;
  options.interrupt = interrupt;
  CSV_CO_TRY(answer, co_await client_->call(std::move(request), options));
  const auto& reply = answer.reply.layout();
  Layout layout;
  if (reply.shipped()) {  // and says nothing else
    layout.shipped = true;
    if (write) file->shipped_until = loop_->now() + kShippedFor;
    co_return layout;
  }
  layout.size = reply.size();
  file->size = reply.size();
  file->truncation = std::max(file->truncation, reply.truncation());
  layout.crossed = file->ended || reply.sequence() < file->recalled;
  if (pages != Pages::none && !file->ended) {
    // Recalls of pages and of layouts do not concern each other.
    if (reply.sequence() < file->pages.recalled) {
      layout.crossed = true;
      co_return layout;
    }
    auto& claims = pages == Pages::clean ? file->pages.clean : file->pages.dirty;
    claims.add({reply.pages_offset(), reply.pages_offset() + reply.pages_length()});
    if (layout.crossed) {
      layout.crossed = false;
      co_return layout;
    }
  }
  if (layout.crossed) co_return layout;
  for (const auto& segment : reply.segments()) {
    ExtentMap::Extent extent;
    extent.offset = segment.offset();
    extent.lun_offset = segment.lun_offset();
    auto end = segment.offset() + segment.length();
    if (segment.state() == 0) {
      layout.zeros.emplace_back(segment.offset(), end);
      continue;
    }
    if (extent.offset % kBlock != 0 || extent.lun_offset % kBlock != 0) continue;
    if (segment.state() == 1) {
      // Bytes beyond the size are nobody's yet: they may be written without a recall.
      end = std::min(end, reply.size());
      extent.state = reply.write() ? ExtentMap::State::write : ExtentMap::State::read;
    } else {
      extent.state = ExtentMap::State::granted;
      extent.grant = GrantId{reply.grant()};
      extent.truncation = reply.truncation();
    }
    if (end <= extent.offset) continue;
    extent.length = end - extent.offset;
    file->extents.insert(extent);
    ++inserted_;
  }
  files_->touch(*file);
  keep_bounded();
  co_return layout;
}

Task<Expected<std::optional<std::uint64_t>>> IoPath::claim(FilePtr file, Range pages,
                                                           bool to_store) {
  if (!usable_now(*file)) CSV_CO_CHECK(co_await usable(file, nullptr));
  auto kind = to_store ? Pages::dirty : Pages::clean;
  CSV_CO_TRY(layout,
             co_await ask(file, pages.begin, pages.end - pages.begin, false, nullptr, kind));
  if (layout.shipped || layout.crossed) co_return std::optional<std::uint64_t>{};
  co_return std::optional{layout.size};
}

void IoPath::keep_bounded() {
  if (inserted_ * (FileTable::kFileBytes + FileTable::kExtentBytes) < memory_ / kPart) return;
  inserted_ = 0;
  auto held = files_->bytes();
  if (held <= memory_) return;
  for (const auto& file : files_->unused_first()) {
    if (held <= memory_ / kPart * (kPart - 1)) return;
    held -= FileTable::bytes(*file);
    file->extents.clear();
    file->returning = true;
    tasks_.spawn(give_back(file));
  }
}

Task<void> IoPath::give_back(FilePtr file) {
  wire::Request request;
  request.mutable_layout_return()->set_inode(raw(file->inode));
  request.mutable_layout_return()->set_wrote(std::exchange(file->wrote, false));
  CoordinatorClient::CallOptions options;
  options.session = file->session;
  // A failure means that the session has ended, and everything with it.
  (void)co_await client_->call(std::move(request), options);
  file->returning = false;
  file->changed.notify();
  files_->forget_unused(file);
}

Task<void> IoPath::recall(wire::Recall what) {
  auto file = files_->find(InodeId{what.inode()});
  if (!file) co_return;
  auto begin = what.offset(), end = end_of(what.offset(), what.length());
  file->recalled = std::max(file->recalled, what.sequence());
  if (what.reads_too())
    file->extents.drop(begin, end);
  else
    file->extents.drop_writes(begin, end);
  while (!file->ended && file->busy(begin, end, !what.reads_too())) co_await file->changed.wait();
}

// --- Reading ----------------------------------------------------------------------------------

IoPath::Plan IoPath::plan_read(const File& file, std::uint64_t offset, std::uint64_t end,
                               const Zeros& zeros) {
  Plan plan;
  plan.covered = offset;
  while (plan.covered < end) {
    auto at = plan.covered;
    auto extent = file.extents.at(at);
    if (extent && extent->state != ExtentMap::State::granted) {
      plan.covered = std::min(end, extent->end());
      plan.pieces.push_back({at, plan.covered, extent->lun_offset, extent->state, {}, 0});
      continue;
    }
    auto hole = std::find_if(zeros.begin(), zeros.end(), [at](const auto& each) {
      return each.first <= at && at < each.second;
    });
    if (hole == zeros.end()) break;
    // A later answer may know more than the hole of an earlier one: go no further than it says.
    plan.covered = std::min(end, hole->second);
  }
  return plan;
}

Task<Expected<Mount::Content>> IoPath::read(FilePtr file, std::uint64_t offset,
                                            std::uint32_t length) {
  Zeros zeros;  // holes that hold for this read alone: they were so after it began
  std::optional<std::uint64_t> size;
  int asked = 0;
  for (;;) {
    if (!usable_now(*file)) CSV_CO_CHECK(co_await usable(file, nullptr));
    if (asked > kTries) co_return co_await read_redirected(file, offset, length);
    auto end = offset + length;
    if (size) end = std::min(end, std::max(*size, offset));
    auto plan = plan_read(*file, offset, end, zeros);
    if (plan.covered < end) {
      ++asked;
      auto ahead = std::max<std::uint64_t>(end - plan.covered, kAskAhead);
      auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      ahead = std::min(ahead, most - plan.covered);
      CSV_CO_TRY(layout, co_await ask(file, plan.covered, ahead, false, nullptr));
      if (layout.shipped) co_return co_await read_redirected(file, offset, length);
      if (layout.crossed) continue;
      size = layout.size;
      zeros.insert(zeros.end(), layout.zeros.begin(), layout.zeros.end());
      continue;
    }
    if (end == offset) co_return Mount::Content{};

    auto path = admission_->path();
    auto unit = block_size();
    auto from = down(offset, unit), to = up(end, unit);
    auto buffer = std::make_shared<Buffer>(to - from);
    std::vector<LunPath::Read> reads;
    std::uint64_t filled = from;
    for (const auto& piece : plan.pieces) {
      auto begin = down(piece.begin, unit), upto = up(piece.end, unit);
      if (begin > filled) std::memset(buffer->data() + (filled - from), 0, begin - filled);
      reads.push_back({piece.lun_offset - (piece.begin - begin),
                       buffer->span().subspan(begin - from, upto - begin)});
      filled = upto;
    }
    if (filled < to) std::memset(buffer->data() + (filled - from), 0, to - filled);
    files_->touch(*file);
    {
      InFlight in_flight{file, {from, to, false, false}};
      auto done = co_await path->read(std::move(reads), buffer);
      if (!done) {
        if (!is_path_loss(done.error())) co_return done.error();
        // Its sessions are dropped, and a read that is still executed changes nothing.
        admission_->lost(path, done.error());
        continue;
      }
    }
    if (file->ended) co_return over();
    // Answered past the lease it might tell what another node has already replaced.
    if (!gate_open()) continue;
    if (!plan.pieces.empty()) {
      ++counters_->direct_reads;
      counters_->direct_read_bytes += end - offset;
    }
    co_return Mount::Content{std::move(*buffer), offset - from, end - offset};
  }
}

Task<Expected<Mount::Content>> IoPath::read_redirected(FilePtr file, std::uint64_t offset,
                                                       std::uint32_t length) {
  Mount::Content content;
  for (;;) {
    auto most = std::min<std::uint32_t>(length - static_cast<std::uint32_t>(content.length),
                                        kMostRedirected);
    wire::Request request;
    auto& body = *request.mutable_read();
    body.set_inode(raw(file->inode));
    body.set_offset(offset + content.length);
    body.set_length(most);
    CoordinatorClient::CallOptions options;
    options.session = file->session;
    CSV_CO_TRY(answer, co_await client_->call(std::move(request), options));
    auto got = std::min<std::size_t>(answer.bulk.size(), most);
    ++counters_->redirected_reads;
    counters_->redirected_read_bytes += got;
    if (content.length == 0 && (got < most || got == length)) {  // nearly always
      content.buffer = std::move(answer.bulk);
      content.length = got;
      co_return content;
    }
    if (content.buffer.empty()) content.buffer = Buffer{length};
    std::memcpy(content.buffer.data() + content.length, answer.bulk.data(), got);
    content.length += got;
    if (got < most || content.length == length) co_return content;
  }
}

// --- Writing ----------------------------------------------------------------------------------

/// Where all of [offset, end) may be written by this node, or nothing. In place only whole blocks
/// of the LUN; into a grant also a last block that is then padded with zeros, since nobody else can
/// see it.
std::optional<IoPath::Plan> IoPath::plan_write(const File& file, std::uint64_t offset,
                                               std::uint64_t end) const {
  auto unit = block_size();
  if (offset % unit != 0) return std::nullopt;
  Plan plan;
  plan.covered = offset;
  while (plan.covered < end) {
    auto at = plan.covered;
    auto extent = file.extents.at(at);
    if (!extent || extent->state == ExtentMap::State::read) return std::nullopt;
    plan.covered = std::min(end, extent->end());
    if (extent->state == ExtentMap::State::granted) {
      if (at % kBlock != 0 || extent->end() < up(plan.covered, kBlock)) return std::nullopt;
    } else if (plan.covered % unit != 0) {
      return std::nullopt;
    }
    plan.pieces.push_back(
        {at, plan.covered, extent->lun_offset, extent->state, extent->grant, extent->truncation});
  }
  return plan;
}

bool IoPath::worth_a_layout(const File& file, std::uint64_t offset, std::uint64_t end) const {
  auto unit = block_size();
  if (offset % unit != 0) return false;
  if (end <= file.size) return end % unit == 0;
  return offset % kBlock == 0 && end - offset >= kLeastGrant;
}

Task<Expected<std::uint32_t>> IoPath::write(FilePtr file, std::uint64_t offset,
                                            std::span<const std::byte> data,
                                            Mount::WriteOptions options, Interrupt* interrupt) {
  Unanswered change{file};
  auto result = co_await write_however(file, offset, data, options, interrupt, change);
  if (result) change.succeeded();
  co_return std::move(result);
}

/// What is in flight under a layout nobody else sees before our session has ended, and by then it
/// counts that he did. Whatever loses that protection and is not answered may show.
Task<Expected<std::uint32_t>> IoPath::write_however(FilePtr file, std::uint64_t offset,
                                                    std::span<const std::byte> data,
                                                    Mount::WriteOptions options,
                                                    Interrupt* interrupt, Unanswered& change) {
  auto end = offset + data.size();
  int asked = 0;
  // What was written in place. Once a recall has been let pass another node may have read it, and
  // written there since: it is not written a second time.
  RangeSet landed;
  std::uint64_t done = 0;  // of it, from the start
  for (;;) {
    if (!usable_now(*file)) CSV_CO_CHECK(co_await usable(file, interrupt));
    if (auto head = landed.within({offset, end}); !head.empty() && head.front().begin == offset) {
      auto more = head.front().end - offset;
      if (more == data.size()) {
        // All of it in the end, if not at once.
        co_return static_cast<std::uint32_t>(done + more);
      }
      done += more;
      offset += more;
      data = data.subspan(more);
    }
    // Whoever recalls pages holds new layouts back until these are written.
    bool recalled = options.pages && file->pages.recalled_since({offset, end});
    if (options.append || loop_->now() < file->shipped_until)
      co_return co_await write_rest(file, offset, data, options, interrupt, change, done, landed);
    auto plan = plan_write(*file, offset, end);
    // Pages never make a file longer, and into a grant is longer.
    if (plan && options.pages && plan->pieces.back().state == ExtentMap::State::granted)
      co_return co_await write_rest(file, offset, data, options, interrupt, change, done, landed);
    if (!plan) {
      if (recalled || ++asked > kTries || !worth_a_layout(*file, offset, end))
        co_return co_await write_rest(file, offset, data, options, interrupt, change, done, landed);
      CSV_CO_TRY(layout, co_await ask(file, offset, data.size(), true, interrupt));
      // It answered, and it is not enough: asking again would bring the same.
      bool enough = !layout.shipped && (layout.crossed || !usable_now(*file) ||
                                        plan_write(*file, offset, end).has_value());
      if (!enough)
        co_return co_await write_rest(file, offset, data, options, interrupt, change, done, landed);
      continue;
    }
    auto last_granted = plan->pieces.back().state == ExtentMap::State::granted;
    bool pads = last_granted && end % kBlock != 0;
    File::Range range{offset, pads ? up(end, kBlock) : end, true, pads};
    if (file->collides(range)) {
      co_await file->changed.wait();
      continue;
    }
    // Also before each further attempt: whoever takes over from a program that is being killed has
    // perhaps written there by now.
    if (interrupt && !interrupt->may_begin()) co_return Error{std::errc::interrupted};
    files_->touch(*file);
    auto path = admission_->path();
    std::optional<InFlight> in_flight{std::in_place, file, range};
    auto verifier = verifier_.value_or(0);
    auto forgotten = forgotten_, told_lost = told_lost_;
    auto written = co_await write_pieces(path, *plan, offset, data, options.durable, landed);
    bool in_place = !landed.within({offset, end}).empty();
    // Perhaps answered before it was lost.
    bool repeats = forgotten_ != forgotten;
    if (in_place && !options.durable) written_volatile(file);
    // A durable write without FUA is one with a flush of its own, which a loss may have come
    // before.
    bool kept = options.durable && path->lun().profile().fua;
    if (in_place && repeats && !kept) {
      if (options.durable)
        landed.clear();
      else
        lost(file->inode);
    }
    // Of the volume's own space only the coordinator speaks: this is the thin LUN's.
    if (!written && written.error() == std::errc::no_space_on_device) {
      in_flight.reset();
      change.may_show();
      admission_->waits(written.error());
      file->wrote = true;  // some of it perhaps
      // It never becomes an error: space can be had by deleting files, or from who runs the
      // storage.
      if (interrupt && interrupt->raised()) co_return Error{std::errc::interrupted};
      // But for what another node waits to see: it is lost then, and msync says so.
      auto since = options.pages ? file->pages.recalled_since({offset, end}) : std::nullopt;
      if (since && loop_->now() - *since >= kSpaceForOthers) co_return written.error();
      co_await sleep(*loop_, kSpacePoll);
      continue;
    }
    if (!written) {
      if (!is_path_loss(written.error())) co_return written.error();
      admission_->lost(path, written.error());
      // Still in flight as far as anybody knows: a recall waits for this too.
      co_await outcome_known(file, path);
      if (!file->ended) change.may_show();
      continue;
    }
    auto granted = [](const auto& piece) { return piece.state == ExtentMap::State::granted; };
    bool grows = std::any_of(plan->pieces.begin(), plan->pieces.end(), granted);
    file->wrote = true;
    if (in_place && grows && !file->ended) change.may_show();
    if (grows) in_flight->landed();
    if (repeats && (grows || landed.empty())) continue;
    auto committed = co_await commit(file, *plan, verifier, change);
    if (!committed) {
      if (committed.error() == Errc::session_ended) co_return over();
      if (committed.error() != Errc::stale_commit) co_return committed.error();
      ++counters_->stale_commits;
      if (++asked > kTries)
        co_return co_await write_rest(file, offset, data, options, interrupt, change, done, landed);
      continue;
    }
    // The coordinator may have flushed after we were told of a loss; of one it knows itself the
    // verifier tells it.
    if (grows && told_lost_ != told_lost) {
      lost(file->inode);
      if (options.durable) {
        std::uint64_t told = 0;
        CSV_CO_CHECK(nothing_lost(*file, told));
      }
    }
    // Still in flight meanwhile: it would be written again over what others may write then.
    if (!usable_now(*file)) CSV_CO_CHECK(co_await usable(file, nullptr));
    in_flight.reset();
    ++counters_->direct_writes;
    counters_->direct_write_bytes += data.size();
    co_return static_cast<std::uint32_t>(done + data.size());
  }
}

/// What is left of a write of which `done` bytes were written in place, and of the rest what has
/// `landed`: others may have written there since.
Task<Expected<std::uint32_t>> IoPath::write_rest(FilePtr file, std::uint64_t offset,
                                                 std::span<const std::byte> data,
                                                 Mount::WriteOptions options, Interrupt* interrupt,
                                                 Unanswered& change, std::uint64_t done,
                                                 const RangeSet& landed) {
  while (!data.empty()) {
    auto had = landed.within({offset, offset + data.size()});
    auto next = had.empty() ? data.size() : had.front().begin - offset;
    if (next > 0) {
      CSV_CO_TRY(wrote, co_await write_redirected(file, offset, data.first(next), options,
                                                  interrupt, change));
      done += wrote;
    }
    if (!had.empty()) {
      auto there = had.front().end - had.front().begin;
      done += there;
      next += there;
    }
    offset += next;
    data = data.subspan(next);
  }
  co_return static_cast<std::uint32_t>(done);
}

Task<Expected<void>> IoPath::write_pieces(std::shared_ptr<LunPath> path, const Plan& plan,
                                          std::uint64_t offset, std::span<const std::byte> data,
                                          bool durable, RangeSet& landed) {
  std::vector<LunPath::Write> writes;
  std::vector<Range> in_place;  // by write: where in the file
  std::shared_ptr<Buffer> padded;
  // One command each: what failed may be written in part.
  auto most = std::max<std::uint64_t>(path->lun().profile().max_transfer, kBlock);
  for (const auto& piece : plan.pieces) {
    auto content = data.subspan(piece.begin - offset, piece.end - piece.begin);
    if (piece.state == ExtentMap::State::write) {
      for (auto at = piece.begin; at < piece.end;) {
        Range next{at, std::min(piece.end, at + most)};
        if (auto had = landed.within(next); !had.empty()) {
          if (had.front().begin == at) {
            at = had.front().end;
            continue;
          }
          next.end = had.front().begin;
        }
        at = next.end;
        writes.push_back({piece.lun_offset + (next.begin - piece.begin),
                          data.subspan(next.begin - offset, next.end - next.begin)});
        in_place.resize(writes.size());
        in_place.back() = next;
      }
      continue;
    }
    auto rest = piece.end % kBlock;
    auto whole = content.size() - rest;
    if (whole > 0) writes.push_back({piece.lun_offset, content.first(whole)});
    if (rest == 0) continue;
    padded = std::make_shared<Buffer>(Buffer::zeroed(kBlock));
    std::memcpy(padded->data(), content.data() + whole, rest);
    writes.push_back({piece.lun_offset + whole, padded->span()});
  }
  // What goes into a grant becomes durable with its commit.
  iscsi::Lun::WriteOptions options;
  options.fua = durable && !in_place.empty();
  in_place.resize(writes.size());
  auto which = std::make_shared<std::vector<bool>>();
  auto written = co_await path->write(std::move(writes), options, padded, which);
  for (std::size_t i = 0; i < which->size(); ++i)
    if ((*which)[i] && !in_place[i].empty()) landed.add(in_place[i]);
  co_return std::move(written);
}

/// Makes what was written into grants part of the file, in order of offset.
Task<Expected<void>> IoPath::commit(FilePtr file, const Plan& plan, std::uint64_t verifier,
                                    Unanswered& change) {
  for (std::size_t i = 0; i < plan.pieces.size(); ++i) {
    auto piece = plan.pieces[i];
    if (piece.state != ExtentMap::State::granted) continue;
    while (i + 1 < plan.pieces.size() && plan.pieces[i + 1].grant == piece.grant)
      piece.end = plan.pieces[++i].end;
    wire::Request request;
    auto& body = *request.mutable_commit();
    body.set_inode(raw(file->inode));
    body.set_grant(raw(piece.grant));
    body.set_offset(piece.begin);
    body.set_length(piece.end - piece.begin);
    body.set_truncation(piece.truncation);
    body.set_verifier(verifier);
    CoordinatorClient::CallOptions options;
    options.changes = true;
    options.session = file->session;
    options.sent = change.sent();
    auto answer = co_await client_->call(std::move(request), options);
    if (!answer) {
      if (answer.error() == Errc::stale_commit) file->extents.drop_grant(piece.grant);
      co_return answer.error();
    }
    file->extents.committed(piece.grant, piece.begin, piece.end);
    // The rest of the last block is zeros, and no longer ours alone.
    file->extents.drop(piece.end, up(piece.end, kBlock));
    file->size =
        answer->reply.has_attr() ? answer->reply.attr().size() : std::max(file->size, piece.end);
    file->truncation = std::max(file->truncation, answer->reply.attr().truncation());
  }
  co_return Expected<void>{};
}

Task<Expected<std::uint32_t>> IoPath::write_redirected(FilePtr file, std::uint64_t offset,
                                                       std::span<const std::byte> data,
                                                       Mount::WriteOptions options,
                                                       Interrupt* interrupt, Unanswered& change) {
  std::uint64_t done = 0;
  while (done < data.size()) {
    auto part = data.subspan(done, std::min<std::size_t>(data.size() - done, kMostRedirected));
    wire::Request request;
    auto& body = *request.mutable_write();
    body.set_inode(raw(file->inode));
    body.set_offset(offset + done);
    body.set_append(options.append && done == 0);
    body.set_drop_set_id(options.drop_set_id);
    body.set_within(options.pages);
    CoordinatorClient::CallOptions how;
    how.changes = true;
    how.session = file->session;
    how.bulk = part;
    how.interrupt = interrupt;
    how.sent = change.sent();
    auto told_lost = told_lost_;
    CSV_CO_TRY(answer, co_await client_->call(std::move(request), how));
    const auto& written = answer.reply.written();
    if (written.length() == 0 || written.length() > part.size())
      co_return Error{std::errc::io_error, "the coordinator wrote nothing"};
    if (options.append && done == 0) offset = written.offset();
    if (written.has_attr()) {
      file->size = written.attr().size();
      file->truncation = std::max(file->truncation, written.attr().truncation());
    }
    if (!written.durable()) {
      written_volatile(file);
      // Executed before a loss that we have heard of since, and answered only now.
      if (written.verifier() != verifier_.value_or(0)) lost(file->inode);
    }
    // A target says so once, and it was us it told: the coordinator's flush may have succeeded.
    if (told_lost_ != told_lost) lost(file->inode);
    done += written.length();
    ++counters_->redirected_writes;
    counters_->redirected_write_bytes += written.length();
  }
  // The target has one cache: a flush through our own path covers what the coordinator wrote.
  if (options.durable) {
    // What some handle has been told of already is not this write's.
    auto told = told_of(file->inode);
    CSV_CO_CHECK(co_await flush(file, interrupt, told));
  }
  co_return static_cast<std::uint32_t>(done);
}

// --- Flushing ---------------------------------------------------------------------------------

Task<Expected<void>> IoPath::flush(FilePtr file, Interrupt* interrupt, Told told) {
  auto flushed = co_await flush_everything(file, interrupt);
  if (!flushed && flushed.error() != Errc::not_durable) co_return flushed.error();
  CSV_CO_CHECK(nothing_lost(*file, *told));
  co_return std::move(flushed);
}

/// A flush is of the whole LUN: one that starts after the call serves every caller until then, so
/// at most one runs and one waits.
Task<Expected<void>> IoPath::flush_everything(FilePtr file, Interrupt* interrupt) {
  auto ticket = ++flush_asked_;
  while (flush_done_ < ticket) {
    if (flushing_) {
      co_await flushed_.wait();
      continue;
    }
    if (!usable_now(*file)) CSV_CO_CHECK(co_await usable(file, interrupt));
    if (flushing_ || flush_done_ >= ticket) continue;
    auto path = admission_->path();
    if (!path->lun().profile().write_cache) co_return Expected<void>{};
    flushing_ = true;
    auto covers = flush_asked_;
    being_flushed_ = std::exchange(volatile_, {});
    auto result = co_await path->flush();
    flushing_ = false;
    if (result)
      flush_done_ = std::max(flush_done_, covers);
    else
      volatile_.merge(being_flushed_);
    being_flushed_.clear();
    flushed_.notify();
    if (result) continue;
    if (!is_path_loss(result.error())) co_return result.error();
    admission_->lost(path, result.error());
  }
  if (file->ended) co_return over();
  co_return Expected<void>{};
}

// --- A target that forgets --------------------------------------------------------------------

/// Content of `file` was answered that a power loss of the target would take back.
void IoPath::written_volatile(const FilePtr& file) {
  const auto& path = admission_->path();
  if (path && !path->lun().profile().write_cache) return;
  if (volatile_.empty()) volatile_since_ = loop_->now();
  volatile_.insert(file->inode);
  // Nobody may ever ask for a flush, but the list is to stay short.
  if (volatile_.size() < kMostVolatile || trimming_) return;
  trimming_ = true;
  tasks_.spawn(trim_volatile(file));
}

Task<void> IoPath::trim_volatile(FilePtr file) {
  (void)co_await flush_everything(file, nullptr);  // What fails is left to the next write.
  trimming_ = false;
}

void IoPath::flush_old() {
  if (volatile_.empty() || trimming_ || loop_->now() - volatile_since_ < kVolatileFor) return;
  auto file = files_->find(*volatile_.begin());
  // Any will do, and it may be open no more.
  if (!file) file = std::make_shared<File>(*loop_, *volatile_.begin(), client_->session());
  trimming_ = true;
  tasks_.spawn(trim_volatile(file));
}

bool IoPath::verified(std::uint64_t verifier) {
  bool changed = verifier_ && *verifier_ != verifier;
  verifier_ = verifier;
  if (std::exchange(tell_next_, false)) tell_loss(verifier);
  if (!changed) return false;
  forgot();
  return true;
}

/// The target has lost what it had answered: with its power, or because a flush failed, which it
/// tells once. Whatever was not flushed by now may be gone, also of what was answered while that
/// flush ran; a later one that succeeds says nothing of it.
void IoPath::forgot() {
  ++forgotten_;
  for (const auto* some : {&volatile_, &being_flushed_})
    for (auto inode : *some) lost(inode);
  volatile_.clear();
  being_flushed_.clear();
  if (when_forgot_) when_forgot_();
}

/// It may have been others' content as well, and a target tells it once: nobody but us may hear of
/// it. The coordinator counts it, and tells everybody.
void IoPath::tell_loss(std::uint64_t under) {
  untold_ = under;
  if (!std::exchange(telling_loss_, true)) tasks_.spawn(tell_losses());
}

Task<void> IoPath::tell_losses() {
  while (auto under = std::exchange(untold_, std::nullopt)) {
    wire::Request request;
    request.mutable_stat_fs();
    request.set_lost_under(*under);
    CoordinatorClient::CallOptions options;
    options.outlasts = true;  // until it is answered, over takeovers too
    (void)co_await client_->call(std::move(request), options);
  }
  telling_loss_ = false;
}

void IoPath::lost(InodeId inode) { lost_[inode] = {++losses_, false}; }

IoPath::Told IoPath::told_of(InodeId inode) const {
  auto found = lost_.find(inode);
  bool past = found != lost_.end() && found->second.told;
  return std::make_shared<std::uint64_t>(past ? found->second.number : 0);
}

void IoPath::closed(InodeId inode) {
  auto found = lost_.find(inode);
  if (found != lost_.end() && found->second.told) lost_.erase(found);
}

Expected<void> IoPath::nothing_lost(const File& file, std::uint64_t& told) {
  auto found = lost_.find(file.inode);
  if (found == lost_.end() || found->second.number <= told) return {};
  told = found->second.number;
  found->second.told = true;
  return Error{std::errc::io_error,
               fmt::format("the target lost power, or could not write out what its cache held, "
                           "before what was written to inode {} had been flushed: some of it may "
                           "be gone",
                           raw(file.inode))};
}

}  // namespace csv
