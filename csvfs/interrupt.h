#pragma once
#include <utility>

#include "csvfs/base/function.h"

namespace csv {

/// That a program no longer waits for a call's answer (it is being killed). Whoever makes the call
/// owns it and raises it at most once; the call it was handed to answers EINTR if it has not begun
/// to take effect, and otherwise goes on, but begins nothing further. One thread.
class Interrupt {
 public:
  Interrupt() = default;
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  [[nodiscard]] bool raised() const { return raised_; }
  void raise() {
    raised_ = true;
    if (auto act = std::exchange(act_, {})) act();
  }

  /// To be asked before anything is sent that changes what others see: false if it must not be any
  /// more. Once something has been, whoever waits must not go before its outcome is known.
  [[nodiscard]] bool may_begin() {
    begun_ = begun_ || !raised_;
    return !raised_;
  }
  [[nodiscard]] bool begun() const { return begun_; }

  /// What a raise does while this lives: the call waits in one place at a time.
  class Watch {
   public:
    Watch(Interrupt* interrupt, Function<void()> act) : interrupt_{interrupt} {
      if (interrupt_) interrupt_->act_ = std::move(act);
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
    ~Watch() {
      if (interrupt_) interrupt_->act_ = {};
    }

   private:
    Interrupt* interrupt_;
  };

 private:
  bool raised_ = false, begun_ = false;
  Function<void()> act_;
};

}  // namespace csv
