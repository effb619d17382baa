#pragma once
#include <map>
#include <memory>

#include "coordinator/cluster/pinger.h"
#include "csvfs/base/asio_loop.h"
#include "csvfs/base/random.h"

namespace csv::cluster {

/// ICMP: by an unprivileged ping socket, or a raw one where that is not allowed and root runs this.
class IcmpPinger final : public Pinger {
 public:
  explicit IcmpPinger(AsioLoop& loop);
  ~IcmpPinger() override;
  void ping(const std::string& address, Duration patience, Function<void(bool)> done) override;

 private:
  struct Asked;
  void read(std::uint64_t id);
  void answer(std::uint64_t id, bool answered);

  AsioLoop& loop_;
  Random random_;
  std::map<std::uint64_t, std::unique_ptr<Asked>> asked_;
  std::uint64_t next_ = 1;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace csv::cluster
