#pragma once
#include <memory>
#include <string>

#include "csvfs/base/loop.h"

namespace boost::asio {
class io_context;
}

namespace csv {

/// A Loop on Boost.Asio. Either run() is called by a thread of the owner's, or start() gives it a
/// thread of its own, with SIGPIPE blocked. stop() may be called from any thread, also from the
/// loop's own.
class AsioLoop final : public Loop {
 public:
  AsioLoop();
  ~AsioLoop() override;  ///< Stops, and joins the thread that start() made.

  [[nodiscard]] TimePoint now() const override;
  [[nodiscard]] WallTime wall_now() const override;
  void post(Function<void()> work) override;
  TimerId after(Duration delay, Function<void()> work) override;
  void cancel(TimerId timer) override;
  [[nodiscard]] bool here() const override;

  void run();                           ///< Until stop().
  void start(const std::string& name);  ///< A thread of its own, named so (15 characters).
  void stop();
  void join();                         ///< Stops, and waits for the thread that start() made.
  boost::asio::io_context& context();  ///< For those who need sockets and descriptors.

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace csv
