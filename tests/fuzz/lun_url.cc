// LUN URLs. What is refused is refused with a reason, and never with the CHAP secret in it.
#include "iscsi/lun_url.h"

#include "csvfs/base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/input.h"

namespace csv::fuzz {

void run(std::span<const std::byte> bytes) {
  auto text = text_of(bytes);
  auto found = iscsi::parse_lun_url(text);
  if (!found) {
    CSV_CHECK(!found.error().message().empty());
    return;
  }
  if (const auto* address = std::get_if<iscsi::IscsiAddress>(&*found)) {
    CSV_CHECK(!address->portals.empty() && !address->target.empty());
    CSV_CHECK(address->lun >= 0 && address->lun <= 16383);
    CSV_CHECK(address->target.find('\0') == std::string::npos);
  } else if (const auto* device = std::get_if<iscsi::DevicePath>(&*found)) {
    CSV_CHECK(device->path.find('\0') == std::string::npos);
  } else {
    CSV_CHECK(std::get<iscsi::ImagePath>(*found).path.find('\0') == std::string::npos);
  }
}

std::vector<Seed> seeds() {
  using namespace std::string_literals;
  return {
      {"plain", "iscsi://192.0.2.1:3260/iqn.2026-01.org.csvfs:t1/1"},
      {"portals", "iscsi://192.0.2.1,192.0.2.2:3261,[2001:db8::1]:3260/eui.0123456789abcdef/16383"},
      {"chap", "iscsi://user%secret@192.0.2.1/naa.6001405c5f000001/0"},
      {"chap-at", "iscsi://user%se@cr/et@192.0.2.1/iqn.x:y/0"},
      {"device", "/dev/disk/by-id/wwn-0x6001405c5f000001"},
      {"image", "file:/var/lib/csvfs/lun.img"},
      {"no-lun", "iscsi://192.0.2.1/iqn.2026-01.org.csvfs:t1/"},
      {"huge-lun", "iscsi://192.0.2.1/iqn.2026-01.org.csvfs:t1/99999999999999999999"},
      {"negative-lun", "iscsi://192.0.2.1/iqn.2026-01.org.csvfs:t1/-1"},
      {"name", "iscsi://storage.example:3260/iqn.2026-01.org.csvfs:t1/1"},
      {"no-bracket", "iscsi://[2001:db8::1/iqn.x:y/1"},
      {"port", "iscsi://192.0.2.1:65536/iqn.x:y/1"},
      {"nul", "file:/a\0b"s},
      {"nul-target", "iscsi://192.0.2.1/iqn.x\0:y/1"s},
      {"empty", ""},
  };
}

}  // namespace csv::fuzz
