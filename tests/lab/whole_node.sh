#!/usr/bin/env bash
# A node that has a machine of its own, as no namespace is one: its clock is set. An emulated machine with csvd, a mount, and
# LIO as its own target.
source "$(dirname "$0")/machine.sh"

put "$csvfs_build/csvd" "$csvfs_build/csvfs" "$csvfs_build/csvctl"
truncate -s 512M "$work/lun.img"
machine_seconds=600
# runs WHAT: it does it, with what the last one left on its LUN.
runs() {
  run "$1" '' -m 1024 -drive "if=none,id=lun1,file=$work/lun.img,format=raw,cache=writeback,discard=unmap" -device virtio-blk-pci,drive=lun1
}

runs clock
is_done || die "clock: failed"
