# What tests share that run in an emulated machine of their own. Sourced first by each; skips the test where there can be none.
# What the machine does is a script, tests/lab/NAME_machine, that begins with what is in machine_begin: it tells what happens on its console:
# "SAYS UPTIME WORDS", and at last "DONE" or "FAILED".
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/common.sh"
source "$csvfs_root/scripts/lib/lio.sh"

for tool in python3 objcopy ldd; do
  command -v "$tool" >/dev/null || { echo "skipped: the test needs the program $tool"; exit 77; }
done
if why=$(lio_obstacle); then :; else
  echo "skipped: the emulated machine $why"
  exit 77
fi

test_name=$(basename "$0" .sh)
work=$(mktemp -d "/var/tmp/csvfs-$test_name-$$.XXXXXX")
shared=$work/shared
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

mkdir -p "$(dirname "$lio_images")" "$shared/root/bin"
make_lio_image
install -m 644 "$csvfs_root/tests/lab/machine_begin" "$shared/begin"
install -m 755 "$csvfs_root/tests/lab/${test_name}_machine" "$shared/instead"

# unpack NAME PACKAGE...: $packages is a folder with what these packages of Debian's hold: downloaded once, not installed, kept beside the labs.
packages=
unpack() {
  local name=$1 made each
  shift
  packages=$lio_images/$name
  [[ ! -d $packages ]] || return 0
  made=$(mktemp -d "$lio_images/making.XXXXXX")
  mkdir "$made/root"
  (cd "$made" && timeout 300 apt-get -q -o APT::Sandbox::User=root download "$@" >"$made/log" 2>&1) ||
    die "$* could not be downloaded: $(tail -n 1 "$made/log") (apt-get update may help)"
  for each in "$made"/*.deb; do dpkg-deb -x "$each" "$made/root"; done
  mv "$made/root" "$packages"
  rm -rf "$made"
}

# put PROGRAM...: into the machine's /bin, without symbols, and the libraries that they need.
put() {
  local program
  for program in "$@"; do
    objcopy --strip-all "$program" "$shared/root/bin/$(basename "$program")"
    put_needed "$program"
  done
}
# put_libraries FILE...: what is loaded by its name, where it is, and what that needs.
put_libraries() {
  local library
  for library in "$@"; do
    install -D -m 755 "$(realpath "$library")" "$shared/root${library#"$packages"}"
    put_needed "$library"
  done
}
# What lies below $packages is put as if it lay below /.
put_needed() {
  local library libraries folder=$packages/usr/lib/x86_64-linux-gnu
  libraries=$(LD_LIBRARY_PATH=${packages:+$folder:$packages/lib/x86_64-linux-gnu:$folder/samba} ldd "$1") || die "ldd $1: $libraries"
  ! grep -F 'not found' <<<"$libraries" || die "$1 needs a library that is not there"
  grep -o '/[^ ]*' <<<"$libraries" | sort -u | while read -r library; do
    [[ -f $shared/root${library#"$packages"} ]] || install -D -m 755 "$(realpath "$library")" "$shared/root${library#"$packages"}"
  done
}

# run WHAT [OPTIONS [OF-QEMU...]]: a machine that does it, until it ends; what it told is in console.log and events.
run() {
  local what=$1 options=${2:-}
  shift $(($# < 2 ? $# : 2))
  say "$what${options:+ ($options)}"
  printf 'what=%s\noptions=%s\n' "$what" "$options" >"$shared/what"
  rm -f "$work"/{console.log,qmp,events,qemu.log}
  emulation "$work" "$shared"
  "${emulation[@]}" "$@" </dev/null >"$work/qemu.log" 2>&1 &
  machine=$!
  wait_for 20 "QEMU's socket (see $work/qemu.log)" test -S "$work/qmp" || { cat "$work/qemu.log"; die "QEMU did not start"; }
  python "$csvfs_root/scripts/lib/qmp.py" "$work/qmp" events >"$work/events" &
  wait_for "${machine_seconds:-300}" "the machine to end" lacks_process "$machine" || die "$what: the machine goes on"
  wait "$machine" || true
  machine=
  sed -n 's/\r$//; s/^SAYS /    /p' "$work/console.log"
}
lacks_process() { ! grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status"; }
# When the machine said something, and when it last said anything; in hundredths of a second since it began.
first() { sed -n "s/\r\$//; s/^SAYS \([0-9.]*\) $1\$/\1/p" "$work/console.log" | head -n 1 | tr -d .; }
last() { sed -n 's/^SAYS \([0-9.]*\) .*/\1/p' "$work/console.log" | tail -n 1 | tr -d .; }
is_done() { grep -q '^SAYS [0-9.]* DONE' "$work/console.log"; }
