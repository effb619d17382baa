#pragma once
#include "csvfs/base/task.h"
#include "iscsi/lun.h"

// A Lun's reservation commands as tasks, for code on its home loop. Destroying a waiting task
// leaves the command on its way; its answer then finds nobody. Commands with buffers are not here:
// their buffers must outlive the task (content.h).

namespace csv::iscsi {

inline Task<Expected<void>> register_key(Lun& lun, Key key) {
  co_return co_await completion<Expected<void>>(
      [&lun, key](auto done) { lun.register_key(key, std::move(done)); });
}
inline Task<Expected<void>> reserve(Lun& lun, Key mine, ReservationType type) {
  co_return co_await completion<Expected<void>>(
      [&lun, mine, type](auto done) { lun.reserve(mine, type, std::move(done)); });
}
struct Preempt {
  Key mine{}, victim{};
  ReservationType type{};
  bool abort = false;
};
inline Task<Expected<void>> preempt(Lun& lun, Preempt what) {
  co_return co_await completion<Expected<void>>([&lun, what](auto done) {
    lun.preempt(what.mine, what.victim, what.type, what.abort, std::move(done));
  });
}
inline Task<Expected<void>> reset(Lun& lun) {
  co_return co_await completion<Expected<void>>([&lun](auto done) { lun.reset(std::move(done)); });
}
inline Task<Expected<KeyList>> read_keys(Lun& lun) {
  co_return co_await completion<Expected<KeyList>>(
      [&lun](auto done) { lun.read_keys(std::move(done)); });
}
inline Task<Expected<Reservation>> read_reservation(Lun& lun) {
  co_return co_await completion<Expected<Reservation>>(
      [&lun](auto done) { lun.read_reservation(std::move(done)); });
}
inline Task<Expected<ReservationCapabilities>> report_capabilities(Lun& lun) {
  co_return co_await completion<Expected<ReservationCapabilities>>(
      [&lun](auto done) { lun.report_capabilities(std::move(done)); });
}

}  // namespace csv::iscsi
