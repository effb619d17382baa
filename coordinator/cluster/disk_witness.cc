#include "coordinator/cluster/disk_witness.h"

#include <algorithm>
#include <cstring>

#include "csvfs/base/check.h"
#include "csvfs/base/crc32c.h"
#include "csvfs/base/events.h"
#include "csvfs/base/log.h"
#include "iscsi/lun_tasks.h"

namespace csv::cluster {
namespace {

using iscsi::ReservationType;
using BufferRef = std::shared_ptr<Buffer>;
using Answer = Completion<Expected<void>>;

constexpr Duration kPause = 200ms;  ///< Before a LUN that failed is opened anew.

Task<Expected<BufferRef>> read_blocks(iscsi::Lun& lun, std::uint64_t at, std::size_t length) {
  auto buffer = std::make_shared<Buffer>(length);
  Function<void(Answer::Done)> start = [&lun, at, buffer](Answer::Done done) {
    lun.read(at, buffer->span(), [buffer, done = std::move(done)](Expected<void> said) mutable {
      done(std::move(said));
    });
  };
  Answer answer{std::move(start)};
  auto said = co_await answer;
  if (!said) co_return said.error();
  co_return buffer;
}

/// Durable when it has answered.
Task<Expected<void>> write_blocks(iscsi::Lun& lun, std::uint64_t at, BufferRef data) {
  Function<void(Answer::Done)> start = [&lun, at, data](Answer::Done done) {
    lun.write(
        at, data->span(), {.fua = true},
        [data, done = std::move(done)](Expected<void> said) mutable { done(std::move(said)); });
  };
  Answer answer{std::move(start)};
  co_return co_await answer;
}

BufferRef shared(std::span<const std::byte> bytes) {
  return std::make_shared<Buffer>(Buffer::copy_of(bytes));
}

std::uint64_t place_of(NodeId node) { return disk::kSlotsAt + raw(node) * disk::kSlotSize; }

std::span<const std::byte> slot_of(const Buffer& slots, std::size_t node) {
  return slots.span().subspan(node * disk::kSlotSize, disk::kSlotSize);
}

/// Another connection would not change it.
bool is_final(const Error& error) {
  return error == Errc::refused || error == Errc::corrupt || error == Errc::superseded ||
         error == Errc::unsupported_by_target;
}

bool ended(const Expected<void>& said) {
  return !said && (said.error() == Errc::lun_lost || said.error() == Errc::fenced);
}

/// What slots say, taken together.
struct Holds {
  std::uint64_t most = 0;
  std::optional<NodeId> holder;  ///< Whose slot says the most.
  std::uint64_t own = 0, own_counter = 0;
  std::uint64_t most_of_others = 0;
  bool all_empty = true;
  bool other_damaged = false;  ///< It may say anything.
};

Holds read_holds(const Buffer& slots, NodeId self, const disk::WitnessId& witness) {
  Holds holds;
  for (std::size_t i = 0; i < disk::kSlots; ++i) {
    auto slot = disk::decode_slot(slot_of(slots, i), witness);
    if (!slot && slot.error() == std::errc::no_such_file_or_directory) continue;
    holds.all_empty = false;
    bool mine = i == raw(self);
    if (!slot || raw(parts_of(slot->key).node) != i) {
      holds.other_damaged |= !mine;
      continue;
    }
    if (slot->hold > holds.most) {
      holds.most = slot->hold;
      holds.holder = NodeId{static_cast<std::uint8_t>(i)};
    }
    if (mine) {
      holds.own = slot->hold;
      holds.own_counter = slot->counter;
    } else {
      holds.most_of_others = std::max(holds.most_of_others, slot->hold);
    }
  }
  return holds;
}

Error foreign(Key key, std::uint16_t cluster) {
  return Error{Errc::refused,
               fmt::format("the LUN of the witness is in use by somebody else: key {:016x} is not "
                           "of cluster {}. If that is a leftover: csvctl reservation clear",
                           raw(key), cluster)};
}

template <typename T>
struct Outcome {
  explicit Outcome(Loop& loop) : changed{loop} {}
  Signal changed;
  std::optional<Expected<T>> result;
  bool late = false;
};

template <typename T>
Task<void> into(Task<Expected<T>> call, std::shared_ptr<Outcome<T>> outcome) {
  outcome->result.emplace(co_await call);
  outcome->changed.notify();
}

}  // namespace

struct DiskWitness::Connection {
  std::unique_ptr<iscsi::Lun> lun;
  Key key{};
  disk::WitnessHeader header;
  bool enrolled = false;   ///< `key` is registered.
  bool exclusive = false;  ///< The reservation is ours, and all that came before has ended.
};

/// What a challenger has seen of the others, from one connection to the next.
struct DiskWitness::Watch {
  Slots slots;
  TimePoint since{};  ///< Nothing was seen to move since.
  BufferRef attempt;  ///< What we have tried to write ourselves.

  [[nodiscard]] std::optional<NodeId> moved(const Buffer& now, NodeId self) const {
    for (std::size_t i = 0; i < disk::kSlots; ++i) {
      auto one = slot_of(now, i);
      auto same = [one](std::span<const std::byte> other) {
        return std::equal(one.begin(), one.end(), other.begin(), other.end());
      };
      if (same(slot_of(*slots, i))) continue;
      if (i == raw(self) && attempt && same(attempt->span())) continue;
      return NodeId{static_cast<std::uint8_t>(i)};
    }
    return std::nullopt;
  }
};

struct DiskWitness::Newest {
  Memory memory;
  std::size_t place = 1;  ///< Which copy has it.
  bool twice = false;     ///< Both have.
};

DiskWitness::DiskWitness(Surroundings around) : around_{std::move(around)}, free_{*around_.loop} {
  CSV_CHECK(raw(around_.node) > 0 && raw(around_.node) < disk::kSlots);
  CSV_CHECK(around_.timing.safe());
}

DiskWitness::~DiskWitness() = default;

// ---------------------------------------------------------------------------- calls

template <typename T>
Task<Expected<T>> DiskWitness::one_at_a_time(Duration limit, Task<Expected<T>> call,
                                             std::string_view what) {
  while (busy_) co_await free_.wait();
  busy_ = true;
  struct Turn {
    bool* busy;
    Signal* free;
    ~Turn() {
      *busy = false;
      free->notify();
    }
  } turn{&busy_, &free_};
  trouble_ = {};
  auto outcome = std::make_shared<Outcome<T>>(*around_.loop);
  TaskScope scope;
  scope.spawn(into<T>(std::move(call), outcome));
  Function<void()> expire = [outcome] {
    outcome->late = true;
    outcome->changed.notify();
  };
  auto timer = around_.loop->after(limit, std::move(expire));
  while (!outcome->result && !outcome->late) co_await outcome->changed.wait();
  around_.loop->cancel(timer);
  if (outcome->result) co_return std::move(*outcome->result);
  // What was on its way is of unknown outcome.
  drop();
  co_return Error{std::errc::timed_out, fmt::format("{}: no answer in {} ms{}{}", what, limit / 1ms,
                                                    trouble_.code() ? "; last: " : "",
                                                    trouble_.code() ? trouble_.message() : "")};
}

Task<Expected<Witness::Memory>> DiskWitness::read() {
  return one_at_a_time<Memory>(around_.deadline, read_now(), "reading the witness disk");
}
Task<Expected<void>> DiskWitness::store(Memory memory) {
  // One number says what is stored and what is promised: the configuration has its own, too.
  memory.tag = std::max(memory.tag, memory.promised);
  return one_at_a_time<void>(around_.deadline, store_now(std::move(memory)),
                             "storing the configuration on the witness disk");
}
Task<Expected<Witness::Hold>> DiskWitness::confirm(std::uint64_t ring) {
  return one_at_a_time<Hold>(around_.deadline, confirm_now(ring), "confirming the witness disk");
}
Task<Expected<Witness::Hold>> DiskWitness::challenge(std::uint64_t ring) {
  return one_at_a_time<Hold>(around_.deadline + 2 * around_.timing.over_after, challenge_now(ring),
                             "taking the witness disk");
}

Task<bool> DiskWitness::hopeless(Error error) {
  if (is_final(error)) co_return true;
  trouble_ = std::move(error);
  drop();
  co_await sleep(*around_.loop, kPause);
  co_return false;
}

Task<Expected<Witness::Memory>> DiskWitness::read_now() {
  for (;;) {
    auto read = co_await read_once();
    if (read) co_return std::move(read);
    bool give_up = co_await hopeless(read.error());
    if (give_up) co_return read.error();
  }
}

Task<Expected<Witness::Memory>> DiskWitness::read_once() {
  CSV_CO_TRY(on, co_await connection());
  CSV_CO_TRY(slots, co_await look(*on));
  (void)slots;
  CSV_CO_TRY(found, co_await newest(*on));
  found.memory.promised = found.memory.tag;
  co_return std::move(found.memory);
}

Task<Expected<void>> DiskWitness::store_now(Memory memory) {
  for (;;) {
    auto stored = co_await store_once(memory);
    if (stored) co_return Expected<void>{};
    bool give_up = co_await hopeless(stored.error());
    if (give_up) co_return stored.error();
  }
}

Task<Expected<void>> DiskWitness::store_once(const Memory& memory) {
  if (!held_)
    co_return Error{Errc::refused,
                    "this node does not hold the witness, and cannot store anything on it"};
  CSV_CO_TRY(on, co_await hold_on());
  CSV_CO_TRY(bytes, disk::encode(memory, on->header.id));
  CSV_CO_TRY(found, co_await newest(*on));
  auto tag = found.memory.tag;
  bool same = tag == memory.tag;
  if (tag > memory.tag || (same && found.memory.configuration != memory.configuration))
    co_return Error{Errc::superseded,
                    fmt::format("the witness stores configuration {}.{}.{}, this one is {}.{}.{}{}",
                                tag.forced, tag.epoch, tag.sequence, memory.tag.forced,
                                memory.tag.epoch, memory.tag.sequence, same ? " and another" : "")};
  if (same && found.twice) co_return Expected<void>{};
  // First over the older copy, so that the newest stands until another one does.
  auto data = std::make_shared<Buffer>(std::move(bytes));
  CSV_CO_CHECK(co_await write_blocks(*on->lun, disk::kCopyAt[1 - found.place], data));
  if (!same) CSV_CO_CHECK(co_await write_blocks(*on->lun, disk::kCopyAt[found.place], data));
  co_return Expected<void>{};
}

Task<Expected<Witness::Hold>> DiskWitness::confirm_now(std::uint64_t ring) {
  for (;;) {
    auto proven = co_await confirm_once(ring);
    if (proven) co_return std::move(proven);
    bool give_up = co_await hopeless(proven.error());
    if (give_up) co_return proven.error();
  }
}

Task<Expected<Witness::Hold>> DiskWitness::confirm_once(std::uint64_t ring) {
  if (!held_) co_return Error{Errc::superseded, "this node has not taken the witness, or lost it"};
  CSV_CO_TRY(on, co_await hold_on());
  auto slot = next_slot(*on, held_->hold, ring);
  auto sent = around_.loop->now();
  auto written = co_await write_blocks(*on->lun, place_of(around_.node), slot);
  if (!written) co_return written.error();
  holder_ = around_.node;
  co_return Hold{sent};
}

Task<Expected<Witness::Hold>> DiskWitness::challenge_now(std::uint64_t ring) {
  if (held_) {
    auto still = co_await confirm_now(ring);
    if (still || !(still.error() == Errc::superseded)) co_return std::move(still);
  }
  Watch watch;
  for (;;) {
    auto taken = co_await challenge_once(watch, ring);
    if (taken) co_return std::move(taken);
    bool give_up = co_await hopeless(taken.error());
    if (give_up) co_return taken.error();
  }
}

Task<Expected<Witness::Hold>> DiskWitness::challenge_once(Watch& watch, std::uint64_t ring) {
  CSV_CO_TRY(on, co_await connection());
  CSV_CO_CHECK(co_await enroll(*on));
  BufferRef slots;
  for (;;) {
    CSV_CO_CHECK(co_await wait_for_silence(*on, watch));
    if (!on->exclusive) CSV_CO_CHECK(co_await take_reservation(*on, true));
    CSV_CO_TRY(again, co_await look(*on));
    slots = again;
    if (!watch.moved(*slots, around_.node)) break;
    // He confirmed between our last look and the PREEMPT: that counts for a term, though he is
    // shut out now.
    watch.slots = slots;
    watch.since = around_.loop->now();
  }
  auto holds = read_holds(*slots, around_.node, on->header.id);
  counter_ = std::max(counter_, holds.own_counter);
  Held next{on->header.id, holds.most + 1};
  watch.attempt = next_slot(*on, next.hold, ring);
  auto sent = around_.loop->now();
  auto written = co_await write_blocks(*on->lun, place_of(around_.node), watch.attempt);
  if (!written) co_return written.error();
  CSV_CO_TRY(back, co_await read_blocks(*on->lun, place_of(around_.node), disk::kSlotSize));
  if (std::memcmp(back->data(), watch.attempt->data(), disk::kSlotSize) != 0)
    co_return Error{std::errc::io_error, "the witness disk does not keep what is written to it"};
  held_ = next;
  holder_ = around_.node;
  log::info("witness taken hold={} ring={} node={}", next.hold, ring, raw(around_.node));
  events::report(events::Severity::info, "witness", "",
                 fmt::format("node {} took the witness disk", raw(around_.node)),
                 holds.holder ? fmt::format("node {} held it", raw(*holds.holder)) : "");
  co_return Hold{sent};
}

/// Until nothing has moved for longer than a hold is worth. Errc::refused if something does.
Task<Expected<void>> DiskWitness::wait_for_silence(Connection& on, Watch& watch) {
  for (;;) {
    CSV_CO_TRY(slots, co_await look(on));
    auto now = around_.loop->now();
    if (!watch.slots) {
      watch.slots = slots;
      watch.since = now;
      // Nobody has ever held it, so there is nobody to wait for.
      if (read_holds(*slots, around_.node, on.header.id).all_empty)
        watch.since = now - 2 * around_.timing.over_after;
    } else if (auto who = watch.moved(*slots, around_.node)) {
      co_return Error{Errc::refused,
                      fmt::format("node {} holds the witness, and moves", raw(*who))};
    }
    if (now - watch.since > around_.timing.over_after) co_return Expected<void>{};
    co_await sleep(*around_.loop, around_.look_interval);
  }
}

// ---------------------------------------------------------------------------- the LUN

Task<Expected<DiskWitness::ConnectionRef>> DiskWitness::connection() {
  if (connection_) co_return connection_;
  iscsi::LunOptions options;
  options.deadline = around_.command_deadline;
  // Fixed, so that a new login ends what an earlier life of ours left, and nobody else's.
  auto name = crc32c(std::as_bytes(std::span{std::string_view{"witness"}}));
  options.isid_seed = (std::uint64_t{name} << 16) | (std::uint64_t{raw(around_.node)} << 2) |
                      raw(KeyRole::heartbeat);
  options.role = "witness";
  auto opened = co_await completion<Expected<std::unique_ptr<iscsi::Lun>>>(
      [this, &options](auto done) { around_.open_lun(options, std::move(done)); });
  if (!opened) co_return opened.error().within("opening the LUN of the witness");
  auto made = std::make_shared<Connection>();
  made->lun = *std::move(opened);
  auto size = made->lun->geometry().size_bytes();
  if (size < disk::kWitnessSize)
    co_return Error{Errc::refused, fmt::format("the LUN has {} bytes, a witness needs {}", size,
                                               disk::kWitnessSize)};
  CSV_CO_TRY(block, co_await read_blocks(*made->lun, 0, disk::kHeaderSize));
  CSV_CO_TRY(header, disk::decode_header(block->span()));
  if (header.cluster != around_.cluster)
    co_return Error{Errc::refused, fmt::format("the LUN is the witness of cluster {}, not of {}",
                                               header.cluster, around_.cluster)};
  if (around_.id && header.id != *around_.id)
    co_return Error{Errc::refused,
                    "the LUN was formatted anew since it was made the witness, and has forgotten "
                    "what it stored: its vote cannot count. csvctl cluster witness none takes it "
                    "away, and then it can be made one again"};
  made->header = header;
  connection_ = std::move(made);
  co_return connection_;
}

void DiskWitness::drop() {
  if (!connection_) return;
  connection_->lun->close();
  // Not from inside an answer of its own.
  around_.loop->post([gone = std::move(connection_)] {});
  connection_ = nullptr;
}

/// Registers a key, once it is sure that this LUN is nobody else's.
Task<Expected<void>> DiskWitness::enroll(Connection& on) {
  if (on.enrolled) co_return Expected<void>{};
  if (on.lun->profile().write_protected)
    co_return Error{Errc::refused, "the LUN of the witness is write-protected"};
  CSV_CO_TRY(list, co_await read_keys(*on.lun));
  for (auto key : list.keys)
    if (parts_of(key).cluster != around_.cluster) co_return foreign(key, around_.cluster);
  CSV_CO_TRY(found, co_await reservation(on));
  (void)found;
  constexpr std::uint64_t kNumbers = (1ull << 38) - 1;
  on.key = make_key(
      {around_.cluster, around_.node, KeyRole::heartbeat, 1 + around_.random->below(kNumbers)});
  CSV_CO_CHECK(co_await register_key(*on.lun, on.key));
  keys_.push_back(on.key);
  on.enrolled = true;
  co_return Expected<void>{};
}

/// Refuses what is not one of ours.
Task<Expected<iscsi::Reservation>> DiskWitness::reservation(Connection& on) {
  CSV_CO_TRY(found, co_await read_reservation(*on.lun));
  if (found.type == ReservationType::none) co_return found;
  if (found.type != ReservationType::write_exclusive)
    co_return Error{Errc::refused,
                    fmt::format("a reservation of type {} stands on the LUN of the witness, which "
                                "is not one of ours",
                                static_cast<int>(found.type))};
  if (parts_of(found.holder).cluster != around_.cluster)
    co_return foreign(found.holder, around_.cluster);
  co_return found;
}

/// From its end on nobody else's write is accepted, and none that was is still to be executed.
/// Errc::refused if another node was faster. Unless `from_anybody` it is taken from none but keys
/// of this life: whoever has come after we looked has waited for it.
Task<Expected<void>> DiskWitness::take_reservation(Connection& on, bool from_anybody) {
  CSV_CO_TRY(found, co_await reservation(on));
  bool ours = found.type == ReservationType::none ||
              std::find(keys_.begin(), keys_.end(), found.holder) != keys_.end();
  if (!ours && !from_anybody) {
    held_.reset();
    holder_ = parts_of(found.holder).node;
    co_return Error{Errc::superseded, fmt::format("node {} has taken the witness", raw(*holder_))};
  }
  bool aborted = false;
  if (found.type == ReservationType::none) {
    auto said = co_await reserve(*on.lun, on.key, ReservationType::write_exclusive);
    if (ended(said)) co_return said.error();
  } else if (found.holder != on.key) {
    bool abort = on.lun->profile().preempt_and_abort;
    iscsi::Preempt what{on.key, found.holder, ReservationType::write_exclusive, abort};
    auto said = co_await preempt(*on.lun, what);
    if (ended(said)) co_return said.error();
    aborted = abort && said;
  }
  // The status proves nothing, what stands does.
  CSV_CO_TRY(now, co_await reservation(on));
  if (now.type == ReservationType::none)
    co_return Error{std::errc::io_error, "the target reports no reservation after accepting ours"};
  if (now.holder != on.key)
    co_return Error{Errc::refused, fmt::format("node {} has just taken the witness",
                                               raw(parts_of(now.holder).node))};
  auto reset_said = co_await reset(*on.lun);
  if (!reset_said && !(aborted && reset_said.error() == Errc::unsupported_by_target))
    co_return reset_said.error().within("ending what a former holder of the witness had sent");
  co_await forget_former_keys(on);
  on.exclusive = true;
  co_return Expected<void>{};
}

/// Where a registration outlives its session they would add up.
Task<void> DiskWitness::forget_former_keys(Connection& on) {
  auto list = co_await read_keys(*on.lun);
  if (!list) co_return;
  for (auto key : list->keys) {
    auto parts = parts_of(key);
    if (key == on.key || parts.node != around_.node || parts.role != KeyRole::heartbeat) continue;
    iscsi::Preempt what{on.key, key, ReservationType::write_exclusive, false};
    (void)co_await preempt(*on.lun, what);
  }
}

/// A connection through which we hold what we held. Errc::superseded if somebody has taken it.
Task<Expected<DiskWitness::ConnectionRef>> DiskWitness::hold_on() {
  CSV_CO_TRY(on, co_await connection());
  if (on->exclusive) co_return on;
  if (on->header.id != held_->witness) {
    held_.reset();
    co_return Error{Errc::superseded, "the witness was formatted anew"};
  }
  CSV_CO_CHECK(co_await enroll(*on));
  CSV_CO_TRY(found, co_await reservation(*on));
  if (found.type != ReservationType::none &&
      std::find(keys_.begin(), keys_.end(), found.holder) == keys_.end()) {
    held_.reset();
    holder_ = parts_of(found.holder).node;
    co_return Error{Errc::superseded, fmt::format("node {} has taken the witness", raw(*holder_))};
  }
  // Looked at before anything is taken, and once more when nobody else can change it.
  CSV_CO_CHECK(co_await still_last(*on));
  CSV_CO_CHECK(co_await take_reservation(*on, false));
  CSV_CO_CHECK(co_await still_last(*on));
  co_return on;
}

/// Errc::superseded unless what we hold is the last hold there was. A slot that cannot be read may
/// be a later one.
Task<Expected<void>> DiskWitness::still_last(Connection& on) {
  CSV_CO_TRY(slots, co_await look(on));
  auto holds = read_holds(*slots, around_.node, on.header.id);
  if (!holds.other_damaged && holds.most_of_others < held_->hold && holds.own <= held_->hold)
    co_return Expected<void>{};
  held_.reset();
  on.exclusive = false;
  co_return Error{Errc::superseded,
                  holds.other_damaged
                      ? std::string{"a slot of the witness cannot be read: it may have been taken"}
                      : fmt::format("node {} has taken the witness since", raw(*holds.holder))};
}

Task<Expected<DiskWitness::Slots>> DiskWitness::look(Connection& on) {
  CSV_CO_TRY(slots, co_await read_blocks(*on.lun, disk::kSlotsAt, disk::kSlots * disk::kSlotSize));
  auto holds = read_holds(*slots, around_.node, on.header.id);
  if (holds.holder) holder_ = holds.holder;
  co_return slots;
}

DiskWitness::Slots DiskWitness::next_slot(const Connection& on, std::uint64_t hold,
                                          std::uint64_t ring) {
  disk::WitnessSlot slot{on.key, hold, ++counter_, ring, around_.loop->wall_now()};
  return shared(disk::encode(slot, on.header.id));
}

Task<Expected<DiskWitness::Newest>> DiskWitness::newest(Connection& on) {
  // A holder may be writing one copy just now, and by our second look the other.
  constexpr int kLooks = 3;
  Error why;
  for (int looks = 0; looks < kLooks; ++looks) {
    if (looks > 0) co_await sleep(*around_.loop, kPause);
    std::array<std::optional<Memory>, 2> copies;
    for (std::size_t i = 0; i < copies.size(); ++i) {
      CSV_CO_TRY(bytes, co_await read_blocks(*on.lun, disk::kCopyAt[i], disk::kCopySize));
      auto copy = disk::decode_copy(bytes->span(), on.header.id);
      // What a newer program wrote may be the newest.
      if (!copy && copy.error() == Errc::refused) co_return copy.error();
      if (copy)
        copies[i] = *std::move(copy);
      else
        why = copy.error();
    }
    if (!copies[0] && !copies[1]) continue;
    Newest found;
    bool first = !copies[1] || (copies[0] && copies[0]->tag > copies[1]->tag);
    found.place = first ? 0 : 1;
    found.twice = copies[0] && copies[1] && copies[0]->tag == copies[1]->tag &&
                  copies[0]->configuration == copies[1]->configuration;
    found.memory = std::move(*copies[found.place]);
    co_return found;
  }
  co_return Error{Errc::corrupt,
                  "both copies of the configuration on the witness are damaged (" + why.message() +
                      "): take the witness out of the configuration, and format it anew"};
}

// ---------------------------------------------------------------------------- formatting

Task<Expected<void>> format_witness(iscsi::Lun& lun, std::uint16_t cluster, Random& random) {
  auto size = lun.geometry().size_bytes();
  if (size < disk::kWitnessSize)
    co_return Error{Errc::refused, fmt::format("the LUN has {} bytes, a witness needs {}", size,
                                               disk::kWitnessSize)};
  if (lun.profile().write_protected) co_return Error{Errc::refused, "the LUN is write-protected"};
  CSV_CO_TRY(list, co_await read_keys(lun));
  CSV_CO_TRY(reservation, co_await read_reservation(lun));
  if (!list.keys.empty() || reservation.type != ReservationType::none)
    co_return Error{Errc::refused,
                    "the LUN is in use: it has registered keys or a reservation. If that is a "
                    "leftover: csvctl reservation clear"};
  // The end too: some keep a copy of what matters to them there.
  constexpr std::uint64_t kEnd = 64 << 10;
  auto end = size / 4096 * 4096 - kEnd;
  CSV_CO_TRY(front, co_await read_blocks(lun, 0, disk::kWitnessSize));
  CSV_CO_TRY(back, co_await read_blocks(lun, end, kEnd));
  for (const auto& part : {front, back}) {
    auto bytes = part->span();
    if (std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{}; }))
      co_return Error{Errc::refused,
                      "the LUN is not empty. If nothing on it is needed, overwrite its first "
                      "mebibyte and its last with zeros"};
  }
  disk::WitnessHeader header;
  header.cluster = cluster;
  for (auto& byte : header.id) byte = static_cast<std::byte>(random.below(256));
  auto block = shared(disk::encode(header));
  CSV_CO_CHECK(co_await write_blocks(lun, 0, block));
  CSV_CO_TRY(kept, co_await read_blocks(lun, 0, disk::kHeaderSize));
  if (std::memcmp(kept->data(), block->data(), disk::kHeaderSize) != 0)
    co_return Error{std::errc::io_error, "the LUN does not keep what is written to it"};
  co_return Expected<void>{};
}

Task<Expected<disk::WitnessId>> witness_id(iscsi::Lun& lun, std::uint16_t cluster) {
  CSV_CO_TRY(block, co_await read_blocks(lun, 0, disk::kHeaderSize));
  CSV_CO_TRY(header, disk::decode_header(block->span()));
  if (header.cluster != cluster)
    co_return Error{Errc::refused, fmt::format("the LUN is the witness of cluster {}, not of {}",
                                               header.cluster, cluster)};
  co_return header.id;
}

}  // namespace csv::cluster
