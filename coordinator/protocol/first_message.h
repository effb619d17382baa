#pragma once
#include <functional>
#include <map>
#include <memory>

#include "coordinator/protocol/connection.h"
#include "csvfs/base/loop.h"

namespace csv::protocol {

/// Accepted connections that have not said yet what they are for. The first message decides: it and
/// the connection are handed over together, the connection as one that nobody has started. What
/// comes meanwhile is kept. One that ends, or says nothing for `patience`, is dropped; so is the
/// oldest of more than `most`. One loop; must not be destroyed from inside the handler.
class FirstMessages {
 public:
  using Handler = std::function<void(std::unique_ptr<Connection>, Message)>;
  FirstMessages(Loop& loop, Duration patience, std::size_t most, Handler handler);
  ~FirstMessages();
  void add(std::unique_ptr<Connection> connection);
  [[nodiscard]] std::size_t waiting() const { return waiting_.size(); }

 private:
  struct Waiting;
  void drop(std::uint64_t id);

  Loop* loop_;
  Duration patience_;
  std::size_t most_;
  Handler handler_;
  std::map<std::uint64_t, std::unique_ptr<Waiting>> waiting_;
  std::uint64_t next_ = 1;
};

}  // namespace csv::protocol
