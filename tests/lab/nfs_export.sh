#!/usr/bin/env bash
# A volume that the kernel's nfsd exports, in an emulated machine with a target of its own: a client's file handles hold when csvfs is mounted anew, when
# it and csvd have died and begun again, and when nfsd begins anew; what was removed meanwhile is gone, and nothing else.
source "$(dirname "$0")/machine.sh"

unpack nfs nfs-kernel-server nfs-common libnfsidmap1 libtirpc3 libevent-core-2.1-7 libwrap0 libkeyutils1 libdevmapper1.02.1
put "$packages"/usr/sbin/{exportfs,rpc.mountd,rpc.nfsd,nfsdcld} "$packages/sbin/mount.nfs" "$(command -v ip)"
packages=
put "$csvfs_build/csvd" "$csvfs_build/csvfs" "$csvfs_build/csvctl"
truncate -s 512M "$work/lun.img"
machine_seconds=600
run export '' -m 1024 -drive "if=none,id=lun1,file=$work/lun.img,format=raw,cache=writeback,discard=unmap" -device virtio-blk-pci,drive=lun1
is_done || die "the machine failed"
