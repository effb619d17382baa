#!/usr/bin/env bash
# csvd and a watchdog of the kernel's, in an emulated machine that has one (QEMU's i6300esb): when it counts, when it does not, and that
# the machine is reset.
source "$(dirname "$0")/machine.sh"

put "$csvfs_build/csvd" "$csvfs_build/csvctl"

# runs WHAT [OPTIONS-OF-THE-DRIVER]
runs() { run "$1" "${2:-}" -device i6300esb -action watchdog=reset; }
was_reset() { grep -q '"event": "WATCHDOG"' "$work/events"; }
ends_by_itself() { runs "$@"; ! was_reset || die "$1: the machine was reset"; is_done || die "$1: failed"; }
# is_reset WHAT WORDS: so many seconds after it has said WORDS: as the device counts, and not at once.
is_reset() {
  local seconds
  runs "$1" "${3:-}"
  was_reset || die "$1: the machine was not reset"
  ! grep -q '^SAYS [0-9.]* \(DONE\|FAILED\)' "$work/console.log" || die "$1: failed"
  [[ $(first "$2") ]] || die "$1: it did not come to that"
  seconds=$((($(last) - $(first "$2")) / 100))
  note "reset, $seconds s later"
  # It was petted within the second before.
  ((seconds >= 7 && seconds <= 11)) || die "$1: the machine was reset after $seconds s, and the device counts to 10"
}

ends_by_itself nothing
ends_by_itself lives
is_reset killed killed
is_reset hangs 'stands still'
is_reset keeps 'csvd was stopped' nowayout=1
runs crashes
was_reset || die "a machine that has crashed was not reset"
note "reset"
