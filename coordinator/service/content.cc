#include "coordinator/service/content.h"

#include <utility>

#include "iscsi/scsi.h"

namespace csv::service {

/// A flush that several wait for.
struct Content::Flush {
  explicit Flush(Loop& loop) : ended{loop} {}
  bool done = false;
  Expected<void> outcome;
  Signal ended;
};

struct Content::State {
  explicit State(Loop& loop) : settled{loop} {}
  std::size_t underway = 0;
  Signal settled;
  std::shared_ptr<Flush> running, waiting;
  bool forgotten = false;  ///< The target has lost content that it had answered.

  void heard(const Error& error) { forgotten = forgotten || error == Errc::not_durable; }
  void one_less() {
    if (--underway == 0) settled.notify();
  }
};

Content::Content(Loop& loop, iscsi::Lun& lun)
    : loop_{&loop}, lun_{&lun}, state_{std::make_shared<State>(loop)} {}

// A flush on its way must not start the next: nobody waits, and the Lun may be gone by then.
Content::~Content() { state_->waiting = nullptr; }

Task<Expected<void>> Content::all(std::size_t count, Send send) {
  if (count == 0) co_return Expected<void>{};
  struct Gather {
    std::size_t left = 0;
    Expected<void> error;  // that says most
    std::optional<Completion<bool>::Done> done;
  };
  auto gather = std::make_shared<Gather>();
  gather->left = count;
  // By reference: g++ 12 destroys what a lambda within a co_await has captured by value twice.
  co_await completion<bool>([this, &send, &gather, count](auto done) {
    gather->done.emplace(std::move(done));
    for (std::size_t i = 0; i < count; ++i) {
      ++state_->underway;
      send(i, [state = state_, gather = gather](Expected<void> result) {
        state->one_less();
        if (!result) {
          state->heard(result.error());
          if (iscsi::outweighs(result.error(), gather->error.error()))
            gather->error = std::move(result);
        }
        if (--gather->left == 0) (*gather->done)(true);
      });
    }
  });
  co_return std::move(gather->error);
}

Task<Expected<void>> Content::read(BufferRef into, std::vector<Piece> pieces) {
  for (const auto& piece : pieces) read_bytes_ += piece.length;
  Send send = [this, &into, &pieces](std::size_t i, iscsi::Done done) {
    const auto& piece = pieces[i];
    lun_->read(
        piece.lun_offset, into->span().subspan(piece.at, piece.length),
        [into, done = std::move(done)](Expected<void> result) mutable { done(std::move(result)); });
  };
  co_return co_await all(pieces.size(), std::move(send));
}

Task<Expected<void>> Content::write(BufferRef from, std::vector<Piece> pieces, Durable durable,
                                    Landed landed) {
  for (const auto& piece : pieces) write_bytes_ += piece.length;
  if (landed) landed->assign(pieces.size(), false);
  iscsi::Lun::WriteOptions options;
  options.fua = durable == Durable::yes && lun_->profile().fua;
  Send send = [this, &from, &pieces, &options, &landed](std::size_t i, iscsi::Done done) {
    const auto& piece = pieces[i];
    lun_->write(piece.lun_offset, from->span().subspan(piece.at, piece.length), options,
                [from, landed, i, done = std::move(done)](Expected<void> result) mutable {
                  if (landed && result) (*landed)[i] = true;
                  done(std::move(result));
                });
  };
  CSV_CO_CHECK(co_await all(pieces.size(), std::move(send)));
  if (durable == Durable::no || options.fua) co_return Expected<void>{};
  co_return co_await flush();
}

Task<Expected<void>> Content::zero(std::vector<Extent> extents) {
  Send send = [this, &extents](std::size_t i, iscsi::Done done) {
    lun_->write_zeroes(extents[i].lun_offset, extents[i].length, std::move(done));
  };
  co_return co_await all(extents.size(), std::move(send));
}

Task<Expected<void>> Content::unmap(std::vector<Extent> extents) {
  Send send = [this, &extents](std::size_t i, iscsi::Done done) {
    lun_->unmap(extents[i].lun_offset, extents[i].length, std::move(done));
  };
  co_return co_await all(extents.size(), std::move(send));
}

Task<Expected<void>> Content::flush() {
  if (!lun_->profile().write_cache) co_return Expected<void>{};
  auto& slot = state_->running ? state_->waiting : state_->running;
  if (!slot) {
    slot = std::make_shared<Flush>(*loop_);
    if (slot == state_->running) start_flush(state_, *lun_);
  }
  auto mine = slot;
  while (!mine->done) co_await mine->ended.wait();
  co_return mine->outcome;
}

void Content::start_flush(const std::shared_ptr<State>& state, iscsi::Lun& lun) {
  ++state->underway;
  lun.flush([weak = std::weak_ptr{state}, &lun](Expected<void> result) {
    auto still = weak.lock();
    if (!still) return;
    auto ended = std::exchange(still->running, std::exchange(still->waiting, nullptr));
    if (still->running) start_flush(still, lun);
    still->one_less();
    ended->done = true;
    // What it was to cover may be what was lost, and was told to somebody else.
    if (result && still->forgotten)
      result = Error{Errc::retry, "the target has lost what its write cache held"};
    if (!result) still->heard(result.error());
    ended->outcome = std::move(result);
    ended->ended.notify();
  });
}

void Content::forget() { state_->forgotten = true; }
bool Content::forgotten() const { return state_->forgotten; }

Task<void> Content::idle() {
  while (state_->underway > 0) co_await state_->settled.wait();
}

}  // namespace csv::service
