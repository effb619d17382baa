#pragma once
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>

#include "coordinator/service/tenure.h"

namespace csv::service {

/// The bridge from the loop to the volume's catalog: requests hand in bodies, which are gathered
/// into group commits on the writer thread; a task goes on once its body's group is durable.
///
/// A body may run twice (catalog.h) and may outlive the task that handed it in, so it owns what it
/// uses and writes to nothing but its result. Look-ups go in groups of their own, which cost no
/// commit, in turn with the changes.
///
/// `changed` hears of the inodes that a group changed, when it is durable and before any task that
/// waited for it goes on. What a task reads is the state when its group ran, and the task goes on
/// in the turn of the loop in which that group is told to be finished: in order with `changed`.
///
/// When a group fails its outcome is unknown: no task that waits for it or comes later goes on, and
/// `failed` is called once. Loop's thread.
class Writer {
 public:
  /// Told, with the attributes as they are after the group, of as many as were looked at.
  using Changed = Function<void(const volume::Catalog::Changed&)>;
  Writer(TenureRef tenure, Changed changed, Function<void(Error)> failed);
  ~Writer();

  template <typename F>
  auto change(F body) -> Task<std::invoke_result_t<F&, volume::Catalog&>> {
    return submit<std::invoke_result_t<F&, volume::Catalog&>>(std::move(body), false);
  }
  template <typename F>
  auto read(F body) -> Task<std::invoke_result_t<F&, volume::Catalog&>> {
    return submit<std::invoke_result_t<F&, volume::Catalog&>>(std::move(body), true);
  }
  /// Changes that were handed in and have not begun are not made: whoever waits for them waits for
  /// ever.
  void drop_waiting();
  /// One round of Catalog::maintain(), between two groups.
  Task<void> maintain();
  /// Everything handed in has been answered. Hand in nothing meanwhile.
  Task<void> idle();
  /// The log goes into the database, for a good end. Tells its error, unlike a change.
  Task<Expected<void>> checkpoint();

  [[nodiscard]] volume::Catalog::Statistics statistics() const;

 private:
  using Body = Function<Expected<void>(volume::Catalog&)>;
  struct State;

  template <typename R>
  Task<R> submit(Function<R(volume::Catalog&)> body, bool read_only) {
    auto result = std::make_shared<std::optional<R>>();
    Body erased = [result, body = std::move(body)](volume::Catalog& catalog) mutable {
      result->emplace(body(catalog));
      return **result ? Expected<void>{} : Expected<void>{(*result)->error()};
    };
    auto outcome = co_await completion<Expected<void>>([this, &erased, read_only](auto done) {
      enqueue(std::move(erased), read_only, std::move(done));
    });
    if (!outcome) co_return outcome.error();
    co_return std::move(**result);
  }
  void enqueue(Body body, bool read_only, Completion<Expected<void>>::Done done);

  std::shared_ptr<State> state_;
};

}  // namespace csv::service
