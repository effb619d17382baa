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

/// Whether a reservation keeps this nexus from a command.
Task<Expected<bool>> conflicts(ScsiAsker& asker, Cdb cdb, std::span<std::byte> in,
                               std::span<const std::byte> out) {
  auto said = co_await try_command(asker, cdb, in, out, ScsiPurpose::question);
  if (said) co_return false;
  if (said.error() == Errc::lun_lost) co_return said.error();
  co_return said.error() == Errc::reservation_conflict;
}

bool is_lio(const TargetProfile& profile) {
  return profile.vendor == "LIO-ORG" || profile.identity.starts_with("naa.6001405");
}

/// Its administrator may give it any vendor's name, so every target without PREEMPT AND ABORT,
/// which all complete implementations have, is taken for one. LIO has been dealt with.
bool is_tgt(const TargetProfile& profile) {
  return profile.vendor == "IET" || profile.product == "VIRTUAL-DISK" || !profile.preempt_and_abort;
}

/// Whether a reservation is applied to WRITE SAME and UNMAP, where one is in force that keeps this
/// nexus from reading. Neither probe can change anything: one lies beyond the end of the LUN, the
/// other names no blocks.
Task<Expected<void>> check_guarded(ScsiAsker& asker, LunDescription& lun) {
  std::vector<std::byte> block(lun.geometry.block_size);
  CSV_CO_TRY(kept_out, co_await conflicts(asker, read_cdb(0, 1), block, {}));
  if (!kept_out) co_return Expected<void>{};

  // A target that looks at the place of a command before it looks at reservations says nothing with
  // its answer.
  auto beyond = lun.geometry.known() ? lun.geometry.block_count : ~std::uint64_t{0} - 1;
  CSV_CO_TRY(telling, co_await conflicts(asker, read_cdb(beyond, 1), block, {}));
  if (telling) {
    std::vector<std::byte> zeroes(lun.geometry.block_size);
    CSV_CO_TRY(guarded, co_await conflicts(asker, write_same_cdb(beyond, 1), {}, zeroes));
    if (!guarded) lun.profile.write_same = false;
  } else if (!is_lio(lun.profile)) {  // of which it is known
    lun.profile.write_same = false;
  }

  CSV_CO_TRY(guarded, co_await conflicts(asker, unmap_cdb(0), {}, {}));
  if (!guarded) lun.profile.unmap = false;
  co_return Expected<void>{};
}

/// What is known of makes (docs/targets.md).
void apply_quirks(TargetProfile& profile) {
  // tgt applies reservations neither to WRITE SAME nor to UNMAP, so that a fence does not stop
  // them; and under an all-registrants type it goes on using the registration of whoever reserved
  // after that was preempted.
  if (is_tgt(profile)) {
    profile.write_same = false;
    profile.unmap = false;
    profile.all_registrants = false;
  }
  // LIO keeps for each initiator's name and LUN whether "it" is registered, and lets commands pass
  // by that; and its PREEMPT AND ABORT looks for commands by the key of whoever held the
  // reservation when they came, so that it ends those of the holder only.
  if (is_lio(profile)) {
    profile.name_is_nexus = true;
    profile.preempt_and_abort = false;
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

/// LIO keeps its size from whom a reservation keeps out.
Task<Expected<void>> ask_capacity(ScsiAsker& asker, LunDescription& lun) {
  auto answer = co_await ask(asker, read_capacity_cdb(32), 32);
  if (!answer && answer.error() == Errc::reservation_conflict) {
    log::info("lun cannot be asked about its size before a key is registered");
    co_return Expected<void>{};
  }
  if (!answer) co_return answer.error();
  CSV_CO_TRY(capacity, parse_capacity(*answer));
  lun.geometry = capacity.geometry;
  lun.profile.thin = capacity.thin;
  lun.profile.unmap_zeroes = capacity.thin && capacity.reads_zeroes;
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

std::string_view advice_on(const TargetProfile& profile) {
  if (is_lio(profile) || !is_tgt(profile)) return {};
  return "A target like tgt answers no LUN RESET, and so ends no fence, before every node has "
         "taken "
         "its answers. On its machine set net.ipv4.tcp_retries2 to 5, so that it soon gives up a "
         "node that has vanished (docs/targets.md).";
}

void leave_out_broken_types(const TargetProfile& profile, ReservationCapabilities& capabilities) {
  if (profile.all_registrants) return;
  constexpr std::uint16_t kOthers = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6;
  auto& mask = capabilities.type_mask;
  mask = mask == 0 ? kOthers : mask & kOthers;
}

namespace {

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

}  // namespace

Task<Expected<void>> ask_again(ScsiAsker& asker, LunDescription& lun) {
  if (!lun.geometry.known()) {
    CSV_CO_CHECK(co_await ask_capacity(asker, lun));
    if (!lun.geometry.known()) co_return Expected<void>{};  // a type that admits its holder only
    // What was named in blocks; but what has been found out about UNMAP stands.
    bool unmap = lun.profile.unmap;
    CSV_CO_CHECK(co_await ask_limits(asker, lun));
    lun.profile.unmap = unmap;
    lun.profile.unmap_zeroes = lun.profile.unmap_zeroes && unmap;
  }
  if (!lun.cache_known) CSV_CO_CHECK(co_await ask_cache(asker, lun));
  co_return Expected<void>{};
}

Task<Expected<LunDescription>> describe_lun(ScsiAsker& asker) {
  LunDescription lun;
  CSV_CO_CHECK(co_await ask_identity(asker, lun));
  CSV_CO_CHECK(co_await ask_capacity(asker, lun));
  CSV_CO_CHECK(co_await ask_limits(asker, lun));
  CSV_CO_CHECK(co_await ask_cache(asker, lun));
  CSV_CO_CHECK(co_await ask_commands(asker, lun));
  CSV_CO_CHECK(co_await check_guarded(asker, lun));
  apply_quirks(lun.profile);
  lun.profile.unmap_zeroes = lun.profile.unmap_zeroes && lun.profile.unmap;
  co_return lun;
}

}  // namespace csv::iscsi
