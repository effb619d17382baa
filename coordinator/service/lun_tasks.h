#pragma once
#include "csvfs/base/task.h"
#include "iscsi/lun.h"

// A Lun's reservation commands as tasks, for code on its home loop. Destroying a waiting task
// leaves the command on its way; its answer then finds nobody. Commands with buffers are not here:
// their buffers must outlive the task (content.h).

namespace csv::service {

inline Task<Expected<void>> register_key(iscsi::Lun& lun, Key key) {
  co_return co_await completion<Expected<void>>(
      [&lun, key](auto done) { lun.register_key(key, std::move(done)); });
}
inline Task<Expected<void>> reserve(iscsi::Lun& lun, Key mine, iscsi::ReservationType type) {
  co_return co_await completion<Expected<void>>(
      [&lun, mine, type](auto done) { lun.reserve(mine, type, std::move(done)); });
}
struct Preempt {
  Key mine{}, victim{};
  iscsi::ReservationType type{};
  bool abort = false;
};
inline Task<Expected<void>> preempt(iscsi::Lun& lun, Preempt what) {
  co_return co_await completion<Expected<void>>([&lun, what](auto done) {
    lun.preempt(what.mine, what.victim, what.type, what.abort, std::move(done));
  });
}
inline Task<Expected<void>> reset(iscsi::Lun& lun) {
  co_return co_await completion<Expected<void>>([&lun](auto done) { lun.reset(std::move(done)); });
}
inline Task<Expected<iscsi::KeyList>> read_keys(iscsi::Lun& lun) {
  co_return co_await completion<Expected<iscsi::KeyList>>(
      [&lun](auto done) { lun.read_keys(std::move(done)); });
}
inline Task<Expected<iscsi::Reservation>> read_reservation(iscsi::Lun& lun) {
  co_return co_await completion<Expected<iscsi::Reservation>>(
      [&lun](auto done) { lun.read_reservation(std::move(done)); });
}
inline Task<Expected<iscsi::ReservationCapabilities>> report_capabilities(iscsi::Lun& lun) {
  co_return co_await completion<Expected<iscsi::ReservationCapabilities>>(
      [&lun](auto done) { lun.report_capabilities(std::move(done)); });
}

}  // namespace csv::service
