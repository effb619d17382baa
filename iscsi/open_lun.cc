#include "iscsi/open_lun.h"

#include <utility>

#include "iscsi/iscsi_lun.h"
#include "iscsi/local_lun.h"
#include "iscsi/lun_url.h"
#include "iscsi/ram_lun.h"

namespace csv::iscsi {
namespace {

using Opened = Function<void(Expected<std::unique_ptr<Lun>>)>;

void answer(Loop& home, Opened done, Expected<std::unique_ptr<Lun>> result) {
  home.post(
      [done = std::move(done), result = std::move(result)]() mutable { done(std::move(result)); });
}

void open_address(AsioLoop& home, IscsiAddress address, LunOptions options, Opened done) {
  IscsiLun::open(home, std::move(address), std::move(options), std::move(done));
}

void open_address(AsioLoop& home, ImagePath image, LunOptions options, Opened done) {
  auto disk = RamDisk::open_file(image.path);
  if (!disk) return answer(home, std::move(done), disk.error());
  answer(home, std::move(done), (*disk)->connect(home, std::move(options)));
}

void open_address(AsioLoop& home, DevicePath device, LunOptions options, Opened done) {
  LocalLun::open(home, std::move(device.path), std::move(options), BlockDevice::Kind::device,
                 std::move(done));
}

}  // namespace

void open_lun(AsioLoop& home, std::string url, LunOptions options, Opened done) {
  auto address = parse_lun_url(url);
  if (!address) return answer(home, std::move(done), address.error());
  std::visit(
      [&](auto&& each) {
        open_address(home, std::move(each), std::move(options), std::move(done));
      },
      std::move(*address));
}

}  // namespace csv::iscsi
