#include "iscsi/ram_lun.h"

#include <doctest/doctest.h>

#include <vector>

#include "tests/iscsi/conformance.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

void conform(RamDiskOptions options, std::uint32_t block_size) {
  options.geometry = {.block_size = block_size, .block_count = (64u << 20) / block_size};
  auto disk = RamDisk::create(options);
  check_conformance({.connect = [&](Loop& home, const std::string& initiator, int index) {
    LunOptions login;
    login.initiator = initiator;
    login.isid_seed = static_cast<std::uint64_t>(index);
    auto lun = disk->connect(home, login);
    REQUIRE(lun);
    return *std::move(lun);
  }});
}

}  // namespace

TEST_CASE("ram lun, full profile, 512: it does what lun.h says") { conform({}, 512); }
TEST_CASE("ram lun, full profile, 4096: it does what lun.h says") { conform({}, 4096); }
TEST_CASE("ram lun, like tgt, 512: it does what lun.h says") {
  conform(RamDiskOptions::like_tgt(), 512);
}
TEST_CASE("ram lun, like tgt, 4096, volatile cache: it does what lun.h says") {
  auto options = RamDiskOptions::like_tgt();
  options.write_cache = true;
  conform(options, 4096);
}
