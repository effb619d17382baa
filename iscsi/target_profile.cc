#include "iscsi/target_profile.h"

#include <algorithm>
#include <vector>

#include "csvfs/base/log.h"

namespace csv::iscsi {
namespace {

using Bytes = std::vector<std::byte>;

Task<Expected<Bytes>> ask(ScsiAsker& asker, Cdb cdb, std::size_t allocation) {
  Bytes answer(allocation);
  auto got = co_await completion<Expected<std::size_t>>([&](auto done) {
    ScsiAsker::Question question;
    question.cdb = cdb;
    question.in = answer;
    asker.ask(question, std::move(done));
  });
  if (!got) co_return got.error();
  answer.resize(std::min(*got, allocation));
  co_return answer;
}

/// Nothing where the target refuses the question; an error only where it cannot be asked at all.
Task<Expected<Bytes>> ask_if_known(ScsiAsker& asker, Cdb cdb, std::size_t allocation) {
  auto answer = co_await ask(asker, cdb, allocation);
  if (!answer && answer.error() != Errc::lun_lost) co_return Bytes{};
  co_return answer;
}

Task<Expected<std::optional<bool>>> supports(ScsiAsker& asker, std::uint8_t opcode) {
  auto answer = co_await ask_if_known(asker, report_opcode_cdb(opcode, 256), 256);
  if (!answer) co_return answer.error();
  co_return parse_opcode_supported(*answer);
}

Task<Expected<std::size_t>> try_command(ScsiAsker& asker, Cdb cdb, std::span<std::byte> in,
                                        std::span<const std::byte> out, ScsiPurpose purpose) {
  co_return co_await completion<Expected<std::size_t>>([&](auto done) {
    ScsiAsker::Question question;
    question.cdb = cdb;
    question.in = in;
    question.out = out;
    question.purpose = purpose;
    asker.ask(question, std::move(done));
  });
}

/// A PREEMPT AND ABORT that cannot do anything: sent with a key that this nexus does not have, so a
/// target that knows it must answer RESERVATION CONFLICT.
Task<Expected<bool>> probe_preempt_and_abort(ScsiAsker& asker) {
  constexpr Key kNobodys{0xffff'ff00'6373'7600};  // cluster 65535 with role 3, which is never given
  auto parameters = reserve_out_parameters(kNobodys, kNobodys, false);
  auto cdb = reserve_out_cdb(ReserveOut::preempt_and_abort,
                             ReservationType::exclusive_access_all_registrants);
  auto got = co_await try_command(asker, cdb, {}, parameters, ScsiPurpose::preempt);
  if (got) co_return true;
  if (got.error() == Errc::lun_lost) co_return got.error();
  co_return got.error() == Errc::reservation_conflict;
}

/// Whether a reservation is applied to WRITE SAME and UNMAP, where one is in force that keeps this
/// nexus from reading. Neither probe can change anything: one lies beyond the end of the LUN, the
/// other names no blocks.
Task<Expected<void>> check_guarded(ScsiAsker& asker, LunDescription& lun) {
  std::vector<std::byte> block(lun.geometry.block_size);
  auto kept_out = co_await try_command(asker, read_cdb(0, 1), block, {}, ScsiPurpose::question);
  if (!kept_out && kept_out.error() == Errc::lun_lost) co_return kept_out.error();
  if (kept_out || kept_out.error() != Errc::reservation_conflict) co_return Expected<void>{};

  std::vector<std::byte> zeroes(lun.geometry.block_size);
  auto beyond = write_same_cdb(lun.geometry.block_count, 1);
  auto same = co_await try_command(asker, beyond, {}, zeroes, ScsiPurpose::question);
  if (!same && same.error() == Errc::lun_lost) co_return same.error();
  if (same || same.error() != Errc::reservation_conflict) lun.profile.write_same = false;

  auto nothing = unmap_cdb(0);
  auto unmap = co_await try_command(asker, nothing, {}, {}, ScsiPurpose::question);
  if (!unmap && unmap.error() == Errc::lun_lost) co_return unmap.error();
  if (unmap || unmap.error() != Errc::reservation_conflict) lun.profile.unmap = false;
  co_return Expected<void>{};
}

/// What is known of makes (docs/targets.md).
void apply_quirks(TargetProfile& profile) {
  // tgt applies reservations neither to WRITE SAME nor to UNMAP, so that a fence does not stop
  // them; and under an all-registrants type it goes on using the registration of whoever reserved
  // after that was preempted. Its administrator may give it any vendor's name, so every target
  // without PREEMPT AND ABORT, which all complete implementations have, is taken for one.
  if (profile.vendor == "IET" || profile.product == "VIRTUAL-DISK" || !profile.preempt_and_abort) {
    profile.write_same = false;
    profile.unmap = false;
    profile.all_registrants = false;
  }
}

Task<Expected<void>> ask_identity(ScsiAsker& asker, LunDescription& lun) {
  CSV_CO_TRY(standard, co_await ask(asker, inquiry_cdb(255), 255));
  CSV_CO_TRY(inquiry, parse_inquiry(standard));
  if (inquiry.qualifier != 0 || inquiry.type == 0x1f)
    co_return Error{Errc::refused, "the target has no LUN with this number"};
  if (inquiry.type != 0)
    co_return Error{Errc::refused, fmt::format("not a disk (\"{} {}\", peripheral device type {})",
                                               inquiry.vendor, inquiry.product, inquiry.type)};
  lun.profile.vendor = inquiry.vendor;
  lun.profile.product = inquiry.product;
  lun.profile.revision = inquiry.revision;
  co_return Expected<void>{};
}

Task<Expected<void>> ask_limits(ScsiAsker& asker, LunDescription& lun) {
  CSV_CO_TRY(listed, co_await ask_if_known(asker, inquiry_page_cdb(0x00, 255), 255));
  auto pages = parse_vpd_list(listed);
  auto has = [&](std::uint8_t page) {
    return std::find(pages.begin(), pages.end(), page) != pages.end();
  };
  auto block = lun.geometry.block_size;
  if (has(0x83)) {
    CSV_CO_TRY(page, co_await ask_if_known(asker, inquiry_page_cdb(0x83, 1024), 1024));
    lun.profile.identity = parse_identity(page);
  }
  BlockLimits limits;
  if (has(0xb0)) {
    CSV_CO_TRY(page, co_await ask_if_known(asker, inquiry_page_cdb(0xb0, 255), 255));
    limits = parse_block_limits(page);
  }
  lun.profile.max_transfer = std::uint64_t{limits.max_transfer_blocks} * block;
  lun.profile.max_unmap = std::uint64_t{limits.max_unmap_blocks} * block;
  constexpr std::uint64_t kMost = std::uint64_t{1} << 40;  // a target may name 2^64 - 1 blocks
  lun.profile.max_write_same = std::min(limits.max_write_same_blocks, kMost / block) * block;
  if (has(0xb2)) {
    CSV_CO_TRY(page, co_await ask_if_known(asker, inquiry_page_cdb(0xb2, 255), 255));
    auto provisioning = parse_provisioning(page);
    lun.profile.unmap = provisioning.unmap && limits.max_unmap_blocks != 0;
    lun.profile.unmap_zeroes = lun.profile.unmap_zeroes || provisioning.reads_zeroes;
  }
  co_return Expected<void>{};
}

Task<Expected<void>> ask_commands(ScsiAsker& asker, LunDescription& lun) {
  // Where the target does not say, WRITE SAME is tried at first use; write_zeroes falls back.
  CSV_CO_TRY(same, co_await supports(asker, 0x93));
  lun.profile.write_same = same.value_or(true);

  CSV_CO_TRY(answer,
             co_await ask_if_known(asker, reserve_in_cdb(ReserveIn::report_capabilities, 8), 8));
  if (auto capabilities = parse_capabilities(answer))
    lun.profile.aptpl = capabilities->persist_through_power_loss;
  CSV_CO_TRY(status,
             co_await ask_if_known(asker, reserve_in_cdb(ReserveIn::read_full_status, 8), 8));
  lun.profile.read_full_status = status.size() >= 8;

  // Tried rather than asked: tgt reports every service action of a command it knows.
  CSV_CO_TRY(probed, co_await probe_preempt_and_abort(asker));
  lun.profile.preempt_and_abort = probed;
  co_return Expected<void>{};
}

}  // namespace

void leave_out_broken_types(const TargetProfile& profile, ReservationCapabilities& capabilities) {
  if (profile.all_registrants) return;
  constexpr std::uint16_t kOthers = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6;
  auto& mask = capabilities.type_mask;
  mask = mask == 0 ? kOthers : mask & kOthers;
}

Task<Expected<void>> ask_cache(ScsiAsker& asker, LunDescription& lun) {
  lun.profile.write_cache = true;
  lun.profile.fua = false;
  lun.cache_known = false;
  CSV_CO_TRY(answer, co_await ask_if_known(asker, mode_sense_cdb(0x08, 252), 252));
  auto caching = parse_caching(answer);
  if (!caching) {
    log::info("lun cannot be asked about its write cache: taken for volatile for now lun={}",
              lun.profile.identity);
    co_return Expected<void>{};
  }
  lun.cache_known = true;
  lun.profile.write_protected = caching->write_protected;
  lun.profile.fua = caching->fua;
  lun.profile.write_cache = caching->write_cache.value_or(true);
  co_return Expected<void>{};
}

Task<Expected<LunDescription>> describe_lun(ScsiAsker& asker) {
  LunDescription lun;
  CSV_CO_CHECK(co_await ask_identity(asker, lun));
  CSV_CO_TRY(answer, co_await ask(asker, read_capacity_cdb(32), 32));
  CSV_CO_TRY(capacity, parse_capacity(answer));
  lun.geometry = capacity.geometry;
  lun.profile.unmap_zeroes = capacity.thin && capacity.reads_zeroes;
  CSV_CO_CHECK(co_await ask_limits(asker, lun));
  CSV_CO_CHECK(co_await ask_cache(asker, lun));
  CSV_CO_CHECK(co_await ask_commands(asker, lun));
  CSV_CO_CHECK(co_await check_guarded(asker, lun));
  apply_quirks(lun.profile);
  lun.profile.unmap_zeroes = lun.profile.unmap_zeroes && lun.profile.unmap;
  co_return lun;
}

}  // namespace csv::iscsi
