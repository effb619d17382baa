#!/usr/bin/env bash
# csvd and a watchdog of the kernel's, in an emulated machine that has one (QEMU's i6300esb): when it counts, when it does not, and that
# the machine is reset.
source "$(dirname "$0")/../../scripts/lib/common.sh"
source "$csvfs_root/scripts/lib/lio.sh"

for tool in python3 objcopy ldd; do
  command -v "$tool" >/dev/null || { echo "skipped: the test needs the program $tool"; exit 77; }
done
if why=$(lio_obstacle); then :; else
  echo "skipped: the emulated machine $why"
  exit 77
fi

work=$(mktemp -d "/var/tmp/csvfs-watchdog-$$.XXXXXX")
machine=
finish() {
  local status=$?
  [[ ! $machine ]] || kill -9 "$machine" 2>/dev/null || true
  ((status == 0 || status == 77)) || [[ ! -f $work/console.log ]] || tail -n 60 "$work/console.log"
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

mkdir -p "$(dirname "$lio_images")"
make_lio_image

# The programs, and the libraries that they need.
shared=$work/shared
mkdir -p "$shared/root/bin"
for program in csvd csvctl; do
  objcopy --strip-all "$csvfs_build/$program" "$shared/root/bin/$program"
  ldd "$csvfs_build/$program" | grep -o '/[^ ]*' | sort -u
done | sort -u | while read -r library; do install -D -m 755 "$(realpath "$library")" "$shared/root$library"; done
install -m 755 "$csvfs_root/tests/lab/watchdog_machine" "$shared/instead"

# run WHAT [OPTIONS-OF-THE-DRIVER]: a machine that does it, until it ends; what it told is in console.log and events.
run() {
  local what=$1
  say "$what${2:+ ($2)}"
  printf 'what=%s\noptions=%s\n' "$what" "${2:-}" >"$shared/what"
  rm -f "$work"/{console.log,qmp,events,qemu.log}
  emulation "$work" "$shared"
  "${emulation[@]}" -device i6300esb -action watchdog=reset </dev/null >"$work/qemu.log" 2>&1 &
  machine=$!
  wait_for 20 "QEMU's socket (see $work/qemu.log)" test -S "$work/qmp"
  python "$csvfs_root/scripts/lib/qmp.py" "$work/qmp" events >"$work/events" &
  wait_for 300 "the machine to end" lacks_process "$machine"
  wait "$machine" || true
  machine=
  sed -n 's/\r$//; s/^SAYS /    /p' "$work/console.log"
}
lacks_process() { ! grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status"; }
# When the machine said something, and when it last said anything; in hundredths of a second since it began.
first() { sed -n "s/\r\$//; s/^SAYS \([0-9.]*\) $1\$/\1/p" "$work/console.log" | head -n 1 | tr -d .; }
last() { sed -n 's/^SAYS \([0-9.]*\) .*/\1/p' "$work/console.log" | tail -n 1 | tr -d .; }
was_reset() { grep -q '"event": "WATCHDOG"' "$work/events"; }
ends_by_itself() { run "$@"; ! was_reset || die "$1: the machine was reset"; grep -q '^SAYS [0-9.]* DONE' "$work/console.log" || die "$1: failed"; }
# is_reset WHAT WORDS: so many seconds after it has said WORDS: as the device counts, and not at once.
is_reset() {
  local seconds
  run "$1" "${3:-}"
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
run crashes
was_reset || die "a machine that has crashed was not reset"
note "reset"
