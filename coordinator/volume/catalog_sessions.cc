// Sessions, their last results, admissions and the numbers of keys.
#include "coordinator/volume/catalog_sql.h"

namespace csv::volume {

Expected<void> SqlCatalog::live_session(SessionId session) {
  auto row = database_->use(sql_->get_session, session);
  if (!CSV_TRY(row.row()) || row.i64(0) != 0)
    return Error{Errc::session_ended, "session " + std::to_string(raw(session))};
  return {};
}

Expected<SessionRow> SqlCatalog::new_session(NodeId node, std::uint64_t incarnation) {
  CSV_TRY(may_change(Pages::freed));
  SessionRow session{SessionId{counters_.next_session++}, node, incarnation, false};
  CSV_TRY(database_->run(sql_->insert_session, session.id, node, incarnation));
  return session;
}

Expected<std::vector<SessionRow>> SqlCatalog::sessions() {
  std::vector<SessionRow> found;
  auto row = database_->use(sql_->list_sessions);
  while (CSV_TRY(row.row()))
    found.push_back({SessionId{row.u64(0)}, NodeId{static_cast<std::uint8_t>(row.u64(1))},
                     row.u64(2), row.i64(3) != 0});
  return found;
}

Expected<void> SqlCatalog::end_session(SessionId session) {
  CSV_TRY(may_change(Pages::freed));
  if (CSV_TRY(database_->run(sql_->end_session, session)) == 0)
    return Error{Errc::session_ended, "session " + std::to_string(raw(session))};
  return {};
}

Expected<void> SqlCatalog::forget_session(SessionId session) {
  CSV_TRY(may_change(Pages::freed));
  {
    auto row = database_->use(sql_->grant_of_session, session);
    if (CSV_TRY(row.row()))
      return Error{Errc::refused, "session " + std::to_string(raw(session)) + " still has grants"};
  }
  CSV_TRY(database_->run(sql_->delete_slots, session));
  CSV_TRY(database_->run(sql_->delete_admissions_of, session));
  if (CSV_TRY(database_->run(sql_->delete_session, session)) == 0)
    return Error{Errc::session_ended, "session " + std::to_string(raw(session))};
  return {};
}

Expected<void> SqlCatalog::suspend(SuspendedRow& row) {
  CSV_TRY(forget_suspended(row.node));
  // One that is written anew from an older row has no marks of what was made since that.
  row.next_inode = std::min(row.next_inode, InodeId{counters_.next_inode});
  CSV_TRY(database_->run(sql_->put_suspended, row.node, row.session, row.incarnation, row.listed,
                         row.next_inode));
  counters_.schema = kSchemaVersion;
  return touch_suspended(row.node, row.files);
}

Expected<void> SqlCatalog::touch_suspended(NodeId node, const std::map<InodeId, Touch>& files) {
  CSV_TRY(may_change(Pages::freed));
  constexpr std::size_t kRowsOfAPage = 128;
  extra_cost_ += files.size() / kRowsOfAPage;
  for (auto [inode, touched] : files)
    CSV_TRY(database_->run(sql_->touch_suspended, node, inode, touched));
  return {};
}

Expected<void> SqlCatalog::forget_suspended(NodeId node) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(database_->run(sql_->delete_suspended, node));
  CSV_TRY(database_->run(sql_->delete_suspended_files, node));
  return {};
}

Expected<std::vector<SuspendedRow>> SqlCatalog::suspended() {
  std::vector<SuspendedRow> found;
  {
    auto row = database_->use(sql_->list_suspended);
    while (CSV_TRY(row.row())) {
      SuspendedRow one;
      one.node = NodeId{static_cast<std::uint8_t>(row.u64(0))};
      one.session = SessionId{row.u64(1)};
      one.incarnation = row.u64(2);
      one.listed = row.u64(3) != 0;
      one.next_inode = InodeId{row.u64(4)};
      found.push_back(std::move(one));
    }
  }
  for (auto& one : found) {
    auto row = database_->use(sql_->list_suspended_files, one.node);
    while (CSV_TRY(row.row()))
      one.files[InodeId{row.u64(0)}] = Touch{static_cast<std::uint8_t>(row.u64(1))};
  }
  return found;
}

Catalog::TargetMemory SqlCatalog::target_memory() const {
  return {counters_.target_losses, static_cast<std::uint32_t>(counters_.key_generation)};
}

Expected<void> SqlCatalog::set_target_memory(TargetMemory now) {
  CSV_TRY(may_change(Pages::freed));
  counters_.target_losses = now.losses;
  counters_.key_generation = now.key_generation;
  return {};
}

Expected<std::uint64_t> SqlCatalog::new_key_number() {
  CSV_TRY(may_change(Pages::freed));
  if (counters_.next_key >= 1ull << 38) return Error{Errc::refused, "all key numbers were used"};
  return counters_.next_key++;
}

Expected<void> SqlCatalog::put_admission(const AdmissionRow& row) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(database_->run(sql_->put_admission, row.key, row.session, row.node, row.incarnation,
                         row.state));
  return {};
}

Expected<void> SqlCatalog::remove_admission(Key key) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(database_->run(sql_->delete_admission, key));
  return {};
}

Expected<std::vector<AdmissionRow>> SqlCatalog::admissions() {
  std::vector<AdmissionRow> found;
  auto row = database_->use(sql_->list_admissions);
  while (CSV_TRY(row.row()))
    found.push_back({Key{row.u64(0)}, SessionId{row.u64(1)},
                     NodeId{static_cast<std::uint8_t>(row.u64(2))}, row.u64(3),
                     AdmissionState{static_cast<std::uint8_t>(row.u64(4))}});
  return found;
}

Expected<std::optional<SlotResult>> SqlCatalog::slot(SessionId session, std::uint32_t slot) {
  auto row = database_->use(sql_->get_slot, session, slot);
  if (!CSV_TRY(row.row())) return std::optional<SlotResult>{};
  return std::optional{SlotResult{row.u64(0), std::string{row.bytes(1)}}};
}

Expected<void> SqlCatalog::put_slot(SessionId session, std::uint32_t slot,
                                    const SlotResult& result) {
  CSV_TRY(may_change(Pages::freed));
  CSV_TRY(live_session(session));
  extra_cost_ += result.reply.size() / 4096;
  CSV_TRY(database_->run(sql_->put_slot, session, slot, result.sequence, result.reply));
  return {};
}

}  // namespace csv::volume
