#!/usr/bin/env bash
# A node that has a machine of its own, as no namespace is one: its clock is set, and it reboots itself where it is told to. An emulated machine
# with csvd, a mount, and LIO as its own target.
source "$(dirname "$0")/machine.sh"

put "$csvfs_build/csvd" "$csvfs_build/csvfs" "$csvfs_build/csvctl"
truncate -s 512M "$work/lun.img"
machine_seconds=600
# runs WHAT: it does it, with what the last one left on its LUN.
runs() {
  run "$1" '' -m 1024 -drive "if=none,id=lun1,file=$work/lun.img,format=raw,cache=writeback,discard=unmap" -device virtio-blk-pci,drive=lun1
}

clock() {
  runs clock
  is_done || die "clock: failed"
}
# It loses its quorum with its Corosync, for good: the gate, a ping of an address that does not answer, csvd begun anew once, and the reboot.
reboot() {
  local seconds each
  if ! command -v corosync >/dev/null; then
    note "without Corosync, which is not installed, no node loses its quorum"
    return
  fi
  put "$(command -v corosync)" "$(command -v corosync-cfgtool)"
  # What Corosync's encryption loads by name: its door to NSS, and NSS's own parts.
  put_libraries /usr/lib/x86_64-linux-gnu/{kronosnet/crypto_nss,libsoftokn3,libfreebl3,libfreeblpriv3}.so
  runs reboot
  ! is_done || die "the machine was not rebooted"
  ! grep '^SAYS [0-9.]* FAILED' "$work/console.log" || die "reboot: failed"
  for each in 'corosync is killed' 'the gate is closed' 'step=pinging' 'step=restarting' 'a new life of csvd'; do
    grep -q "^SAYS .*$each" "$work/console.log" || die "it did not come to this: $each"
  done
  (($(grep -c '^SAYS .* a new life of csvd' "$work/console.log") == 1)) || die "csvd was begun anew more than once"
  # No power-off, and nobody's watchdog.
  grep -q '"event": "SHUTDOWN".*"reason": "guest-reset"' "$work/events" || die "the machine ended otherwise: $(tail -n 2 "$work/events")"
  seconds=$((($(last) - $(first 'corosync is killed')) / 100))
  note "rebooted $seconds s after it had lost its quorum"
  ((seconds >= 60 && seconds <= 100)) || die "and not when a restart of csvd had not helped"
  runs after
  is_done || die "after the reboot: failed"
}

# whole_node.sh [CASE...]
for each in ${@:-clock reboot}; do "$each"; done
