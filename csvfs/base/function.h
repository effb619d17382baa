#pragma once
#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

namespace csv {

template <typename Signature>
class Function;

/// A callable that is moved, never copied, so that it may own what it needs
/// (std::move_only_function of C++23, until the toolchain has it). Calling an empty one is a bug
/// and aborts by a null call.
template <typename R, typename... Args>
class Function<R(Args...)> {
 public:
  Function() = default;
  Function(std::nullptr_t) {}
  template <typename F>
  requires(!std::same_as<std::remove_cvref_t<F>, Function> &&
           std::is_invocable_r_v<R, std::remove_cvref_t<F>&, Args...>) Function(F&& f)
      : target_{std::make_unique<Holder<std::remove_cvref_t<F>>>(std::forward<F>(f))} {}

  explicit operator bool() const noexcept { return target_ != nullptr; }
  R operator()(Args... args) { return target_->call(std::forward<Args>(args)...); }

 private:
  struct Target {
    Target() = default;
    Target(const Target&) = delete;
    Target& operator=(const Target&) = delete;
    virtual ~Target() = default;
    virtual R call(Args... args) = 0;
  };
  template <typename F>
  struct Holder final : Target {
    template <typename G>
    explicit Holder(G&& g) : f{std::forward<G>(g)} {}
    R call(Args... args) override { return f(std::forward<Args>(args)...); }
    F f;
  };
  std::unique_ptr<Target> target_;
};

}  // namespace csv
