#include "csvfs/lun_path.h"

#include <utility>

#include "iscsi/scsi.h"

namespace csv {

bool is_path_loss(const Error& error) { return iscsi::is_loss(error); }

/// Several commands with one answer.
class LunPath::Together {
 public:
  Together(std::size_t count, Completion<Expected<void>>::Done done)
      : left_{count}, done_{std::move(done)} {}
  void answered(Expected<void> result) {
    if (!result && iscsi::outweighs(result.error(), result_.error())) result_ = std::move(result);
    if (--left_ == 0) done_(std::move(result_));
  }

 private:
  std::size_t left_;
  Expected<void> result_;
  Completion<Expected<void>>::Done done_;
};

iscsi::Done LunPath::one_of(const std::shared_ptr<Together>& together, std::shared_ptr<Buffer> keep,
                            Landed landed, std::size_t index) {
  ++in_flight_;
  // `keep` goes before the others hear of it: they may be the last to know its owner.
  return [this, self = shared_from_this(), together, keep = std::move(keep),
          landed = std::move(landed), index](Expected<void> result) mutable {
    auto path = std::move(self);
    keep.reset();
    if (landed && result) (*landed)[index] = true;
    if (result.error() == Errc::not_durable && forgot_) forgot_(result.error());
    together->answered(std::move(result));
    path->answered();
  };
}

void LunPath::answered() {
  if (--in_flight_ > 0) return;
  idle_.notify();
  if (!closed_) return;
  // Not inside the Lun's own call.
  loop_->post([self = shared_from_this()] { self->lun_.reset(); });
}

Task<Expected<void>> LunPath::read(std::vector<Read> pieces, std::shared_ptr<Buffer> keep) {
  if (pieces.empty()) co_return Expected<void>{};
  if (closed_) co_return Errc::lun_lost;
  co_return co_await completion<Expected<void>>([&](auto done) {
    auto together = std::make_shared<Together>(pieces.size(), std::move(done));
    for (auto& piece : pieces) lun_->read(piece.lun_offset, piece.out, one_of(together, keep));
  });
}

Task<Expected<void>> LunPath::write(std::vector<Write> pieces, iscsi::Lun::WriteOptions options,
                                    std::shared_ptr<Buffer> keep, Landed landed) {
  if (landed) landed->assign(pieces.size(), false);
  if (pieces.empty()) co_return Expected<void>{};
  if (closed_) co_return Errc::lun_lost;
  co_return co_await completion<Expected<void>>([&](auto done) {
    auto together = std::make_shared<Together>(pieces.size(), std::move(done));
    for (std::size_t i = 0; i < pieces.size(); ++i)
      lun_->write(pieces[i].lun_offset, pieces[i].data, options, one_of(together, keep, landed, i));
  });
}

Task<Expected<void>> LunPath::flush() {
  if (closed_) co_return Errc::lun_lost;
  co_return co_await completion<Expected<void>>([&](auto done) {
    lun_->flush(one_of(std::make_shared<Together>(1, std::move(done)), nullptr));
  });
}

Task<Expected<void>> LunPath::register_key(Key key) {
  if (closed_) co_return Errc::lun_lost;
  co_return co_await completion<Expected<void>>([&](auto done) {
    lun_->register_key(key, one_of(std::make_shared<Together>(1, std::move(done)), nullptr));
  });
}

Task<void> LunPath::drained() {
  auto self = shared_from_this();
  while (in_flight_ > 0) co_await idle_.wait();
}

void LunPath::close() {
  if (std::exchange(closed_, true)) return;
  lun_->close();
  if (in_flight_ == 0) loop_->post([self = shared_from_this()] { self->lun_.reset(); });
}

void LunPath::destroy() {
  closed_ = true;
  lun_.reset();
}

}  // namespace csv
