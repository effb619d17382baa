#include <doctest/doctest.h>

#include <future>

#include "csvfs/base/asio_loop.h"
#include "csvfs/base/buffer.h"
#include "iscsi/blocking_lun.h"
#include "iscsi/open_lun.h"
#include "tests/iscsi/conformance.h"
#include "tests/iscsi/tgt.h"

using namespace csv;
using namespace csv::iscsi;

namespace {

Expected<std::unique_ptr<Lun>> open_waiting(Loop& home, const std::string& url,
                                            LunOptions options) {
  std::promise<Expected<std::unique_ptr<Lun>>> opened;
  open_lun(home, url, std::move(options),
           [&](auto result) { opened.set_value(std::move(result)); });
  return opened.get_future().get();
}

}  // namespace

TEST_CASE("an iSCSI LUN keeps the promises of every Lun, against tgt") {
  auto tgt = Tgt::start({});
  if (!tgt) return;
  check_conformance({.connect = [&](Loop& home, const std::string& initiator, int index) {
    LunOptions options;
    options.initiator = initiator;
    options.isid_seed = static_cast<std::uint64_t>(index) + 1;
    auto lun = open_waiting(home, tgt->url(), options);
    REQUIRE_MESSAGE(lun, lun.error().message());
    return *std::move(lun);
  }});
}
