#include "iscsi/block_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/pr.h>
#include <scsi/sg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <fstream>

#include "csvfs/base/log.h"

namespace csv::iscsi {
namespace {

constexpr unsigned kSgTimeoutMs = 10'000;
/// How often a question is asked again after unit attentions; several may be queued.
constexpr int kMostRepeats = 32;

std::uint32_t kernel_type(ReservationType type) {
  switch (type) {
    case ReservationType::none: return 0;
    case ReservationType::write_exclusive: return PR_WRITE_EXCLUSIVE;
    case ReservationType::exclusive_access: return PR_EXCLUSIVE_ACCESS;
    case ReservationType::write_exclusive_registrants_only: return PR_WRITE_EXCLUSIVE_REG_ONLY;
    case ReservationType::exclusive_access_registrants_only: return PR_EXCLUSIVE_ACCESS_REG_ONLY;
    case ReservationType::write_exclusive_all_registrants: return PR_WRITE_EXCLUSIVE_ALL_REGS;
    case ReservationType::exclusive_access_all_registrants: return PR_EXCLUSIVE_ACCESS_ALL_REGS;
  }
  return 0;
}

std::uint64_t to_number(const std::string& text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// Answers at once: the thread of a BlockDevice may wait.
class SgAsker final : public ScsiAsker {
 public:
  explicit SgAsker(BlockDevice& device) : device_{&device} {}
  void ask(Question question, Function<void(Expected<std::size_t>)> done) override {
    done(device_->scsi(question));
  }

 private:
  BlockDevice* device_;
};

}  // namespace

Expected<std::unique_ptr<BlockDevice>> BlockDevice::open(const std::string& path, Kind kind) {
  std::unique_ptr<BlockDevice> made{new BlockDevice};
  made->path_ = path;
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return errno_error(errno, path);
  if (S_ISBLK(status.st_mode)) {
    made->sysfs_ =
        fmt::format("/sys/dev/block/{}:{}/", major(status.st_rdev), minor(status.st_rdev));
  } else if (kind == Kind::file_for_test && S_ISREG(status.st_mode)) {
    made->regular_ = true;
  } else {
    return Error{Errc::refused, path + " is not a block device"};
  }
  int exclusive = made->regular_ ? 0 : O_EXCL;
  made->fd_ = ::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC | exclusive);
  if (made->fd_ < 0 && (errno == EROFS || errno == EACCES)) {
    made->read_only_ = true;
    made->fd_ = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC | exclusive);
  }
  if (made->fd_ < 0 && errno == EBUSY)
    return Error{
        Errc::refused,
        path +
            " is in use: mounted, part of another device, or opened by another program; of "
            "csvfs, csvd while this node coordinates the volume and its mount here cannot "
            "both use a local device (docs/configuration.md)"};
  if (made->fd_ < 0) return errno_error(errno, "opening " + path);
  CSV_TRY(made->read_geometry());
  return made;
}

BlockDevice::~BlockDevice() {
  if (fd_ >= 0) ::close(fd_);
}

Expected<void> BlockDevice::read_geometry() {
  std::uint64_t size = 0;
  int logical = 512, read_only = 0;
  unsigned physical = 4096;
  if (regular_) {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) return errno_error(errno, path_);
    size = static_cast<std::uint64_t>(status.st_size);
  } else {
    if (::ioctl(fd_, BLKGETSIZE64, &size) != 0 || ::ioctl(fd_, BLKSSZGET, &logical) != 0 ||
        ::ioctl(fd_, BLKPBSZGET, &physical) != 0 || ::ioctl(fd_, BLKROGET, &read_only) != 0)
      return errno_error(errno, "asking for the size of " + path_);
  }
  if (logical != 512 && logical != 4096)
    return Error{
        Errc::refused,
        fmt::format("{}: logical blocks of {} bytes; 512 and 4096 are supported", path_, logical)};
  read_only_ = read_only_ || read_only != 0;
  geometry_ = {.block_size = static_cast<std::uint32_t>(logical),
               .block_count = size / static_cast<std::uint32_t>(logical),
               .physical_block_size = physical};
  alignment_ = geometry_.block_size;
  return {};
}

std::string BlockDevice::attribute(const std::string& name) const {
  // A partition has no queue of its own; its disk is the folder above.
  for (const auto* place : {"", "../"}) {
    std::ifstream file{sysfs_ + place + name};
    std::string line;
    if (!sysfs_.empty() && std::getline(file, line)) {
      auto end = line.find_last_not_of(" \t\n");
      return end == std::string::npos ? std::string{} : line.substr(0, end + 1);
    }
  }
  return {};
}

LunDescription BlockDevice::describe_by_kernel() const {
  LunDescription lun;
  lun.geometry = geometry_;
  lun.cache_known = true;
  auto& profile = lun.profile;
  profile.vendor = attribute("device/vendor");
  profile.product = attribute("device/model");
  profile.revision = attribute("device/rev");
  for (const auto* name : {"wwid", "device/wwid", "dm/uuid"})
    if (profile.identity.empty()) profile.identity = attribute(name);
  profile.write_protected = read_only_;
  profile.write_cache = regular_ || attribute("queue/write_cache") != "write through";
  profile.fua = true;  // RWF_DSYNC: the kernel flushes where the device has no FUA
  profile.write_same = true;
  profile.max_unmap = to_number(attribute("queue/discard_max_bytes"));
  profile.unmap = profile.max_unmap > 0;
  profile.thin = profile.unmap;  // of which the kernel says nothing else
  return lun;
}

Expected<LunDescription> BlockDevice::describe() {
  auto lun = describe_by_kernel();
  std::vector<std::byte> answer(36);
  ScsiAsker::Question inquiry;
  inquiry.cdb = inquiry_cdb(36);
  inquiry.in = answer;
  if (regular_ || !scsi(inquiry)) return lun;

  SgAsker asker{*this};
  std::optional<Expected<LunDescription>> asked;
  {
    // It never waits, so it has ended when spawn() returns.
    TaskScope scope;
    auto task = [](ScsiAsker& whom, std::optional<Expected<LunDescription>>& into) -> Task<void> {
      into.emplace(co_await describe_lun(whom));
    };
    scope.spawn(task(asker, asked));
  }
  if (!*asked) return asked->error().within(path_);
  auto found = *std::move(*asked);
  // All processes of this machine have one initiator's name there, or one port's: a fence of one of
  // them would not keep out what its device still has queued (docs/targets.md).
  if (found.profile.name_is_nexus)
    return Error{Errc::refused,
                 path_ +
                     " is a LUN of LIO, which tells apart initiators by name only, and not the "
                     "processes of one machine: use it by iscsi://HOST:PORT/TARGET/LUN"};
  // What the kernel made of it is what we get: its limits, its size, its view of the cache.
  found.geometry = lun.geometry;
  found.profile.write_protected = found.profile.write_protected || read_only_;
  found.profile.write_cache = lun.profile.write_cache;
  found.profile.fua = true;
  found.profile.unmap = found.profile.unmap && lun.profile.unmap;
  found.profile.unmap_zeroes = found.profile.unmap_zeroes && found.profile.unmap;
  found.profile.max_unmap = lun.profile.max_unmap;
  found.profile.max_transfer = 0;
  found.profile.max_write_same = 0;
  found.cache_known = true;
  return found;
}

Expected<std::size_t> BlockDevice::scsi(const ScsiAsker::Question& question) {
  for (int attempt = 0;; ++attempt) {
    auto cdb = question.cdb;
    std::array<unsigned char, 64> sense{};
    sg_io_hdr_t header{};
    header.interface_id = 'S';
    header.cmd_len = cdb.size;
    header.cmdp = cdb.bytes.data();
    header.mx_sb_len = sense.size();
    header.sbp = sense.data();
    header.timeout = kSgTimeoutMs;
    header.dxfer_direction = SG_DXFER_NONE;
    if (!question.in.empty()) {
      header.dxfer_direction = SG_DXFER_FROM_DEV;
      header.dxferp = question.in.data();
      header.dxfer_len = static_cast<unsigned>(question.in.size());
    } else if (!question.out.empty()) {
      header.dxfer_direction = SG_DXFER_TO_DEV;
      header.dxferp = const_cast<std::byte*>(question.out.data());  // only read
      header.dxfer_len = static_cast<unsigned>(question.out.size());
    }
    if (::ioctl(fd_, SG_IO, &header) != 0) {
      if (errno == ENOTTY || errno == EINVAL || errno == EOPNOTSUPP)
        return Error{Errc::unsupported_by_target, path_ + " takes no SCSI commands"};
      return errno_error(errno, "SG_IO on " + path_);
    }
    if (header.host_status != 0)
      return Error{Errc::lun_lost, fmt::format("{}: the path failed (host status {:02x})", path_,
                                               header.host_status)};
    auto written = std::as_bytes(std::span{sense})
                       .first(std::min<std::size_t>(header.sb_len_wr, sense.size()));
    // A registration of ours that is gone shows in the reads and writes; here nothing ends.
    auto verdict = judge(static_cast<ScsiStatus>(header.status), parse_sense(written),
                         question.purpose, false);
    switch (verdict.action) {
      case Verdict::Action::done:
        return question.in.size() -
               std::min<std::size_t>(question.in.size(),
                                     static_cast<std::size_t>(std::max(header.resid, 0)));
      case Verdict::Action::fail:
      case Verdict::Action::end: return verdict.error.within(path_);
      case Verdict::Action::repeat:
      case Verdict::Action::repeat_later:
        if (attempt >= kMostRepeats)
          return Error{std::errc::device_or_resource_busy, path_ + " is not ready for commands"};
    }
  }
}

Expected<void> BlockDevice::control(const char* what, unsigned long request, void* argument,
                                    Repeat repeat) {
  int result = ::ioctl(fd_, request, argument);
  // The kernel does not say which sense it got; most often it is a unit attention.
  for (int i = 0; repeat == Repeat::yes && i < kMostRepeats; ++i) {
    if (result != static_cast<int>(ScsiStatus::check_condition)) break;
    result = ::ioctl(fd_, request, argument);
  }
  if (result == 0) return {};
  if (result < 0) {
    if (errno == ENOTTY || errno == EOPNOTSUPP || errno == EINVAL)
      return Error{Errc::unsupported_by_target, fmt::format("{} does not support {}", path_, what)};
    if (errno == EBADE)
      return Error{Errc::reservation_conflict, fmt::format("{}: RESERVATION CONFLICT", what)};
    return errno_error(errno, fmt::format("{} on {}", what, path_));
  }
  // Above 0 it is what the device said: a SCSI status, in newer kernels also a failed path.
  auto status = static_cast<ScsiStatus>(result & 0xff);
  if (result <= 0xff && status == ScsiStatus::reservation_conflict)
    return Error{Errc::reservation_conflict, fmt::format("{}: RESERVATION CONFLICT", what)};
  if (result <= 0xff)
    return Error{std::errc::io_error,
                 fmt::format("{} on {}: {}", what, path_, iscsi::describe(status))};
  return Error{Errc::lun_lost,
               fmt::format("{} on {}: the path failed ({:x})", what, path_, result)};
}

Expected<void> BlockDevice::discard(std::uint64_t offset, std::uint64_t length) {
  std::uint64_t range[2] = {offset, length};
  return control("discard", BLKDISCARD, range);
}

Expected<void> BlockDevice::register_key(Key existing, Key key, bool ignore_existing) {
  pr_registration argument{};
  argument.old_key = raw(existing);
  argument.new_key = raw(key);
  argument.flags = ignore_existing ? PR_FL_IGNORE_KEY : 0;
  return control("REGISTER", IOC_PR_REGISTER, &argument);
}

Expected<void> BlockDevice::reserve(Key mine, ReservationType type) {
  pr_reservation argument{};
  argument.key = raw(mine);
  argument.type = kernel_type(type);
  return control("RESERVE", IOC_PR_RESERVE, &argument);
}

Expected<void> BlockDevice::release(Key mine, ReservationType type) {
  pr_reservation argument{};
  argument.key = raw(mine);
  argument.type = kernel_type(type);
  return control("RELEASE", IOC_PR_RELEASE, &argument);
}

Expected<void> BlockDevice::clear(Key mine) {
  pr_clear argument{};
  argument.key = raw(mine);
  return control("CLEAR", IOC_PR_CLEAR, &argument);
}

Expected<void> BlockDevice::preempt(Key mine, Key victim, ReservationType type, bool abort) {
  // Whatever their names say, the first is sent as the RESERVATION KEY and the second as the
  // SERVICE ACTION RESERVATION KEY.
  pr_preempt argument{};
  argument.old_key = raw(mine);
  argument.new_key = raw(victim);
  argument.type = kernel_type(type);
  return control(abort ? "PREEMPT AND ABORT" : "PREEMPT",
                 abort ? IOC_PR_PREEMPT_ABORT : IOC_PR_PREEMPT, &argument, Repeat::no);
}

Expected<void> BlockDevice::reset() {
  // Without the flag, which glibc's header lacks, the kernel goes on to the target, the bus and the
  // adapter until one of these resets succeeds, and says just that: one of our own adapter ends
  // nothing of what another node has at the LUN.
  constexpr int kNoEscalate = 0x100;
  int what = SG_SCSI_RESET_DEVICE | kNoEscalate;
  return control("LUN RESET", SG_SCSI_RESET, &what);
}

Expected<std::vector<std::byte>> BlockDevice::reserve_in(ReserveIn action) {
  constexpr std::size_t kLargest = 0xfff8;
  for (std::size_t allocation = 4096;; allocation = kLargest) {
    std::vector<std::byte> answer(allocation);
    ScsiAsker::Question question;
    question.cdb = reserve_in_cdb(action, static_cast<std::uint16_t>(allocation));
    question.in = answer;
    auto got = CSV_TRY(scsi(question));
    answer.resize(got);
    auto whole =
        action == ReserveIn::report_capabilities ? answer.size() : reserve_in_length(answer);
    if (whole <= allocation || allocation == kLargest) return answer;
  }
}

}  // namespace csv::iscsi
