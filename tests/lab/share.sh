#!/usr/bin/env bash
# The share witness on real shares, NFS 4.2 and SMB 3.1.1: Debian's servers and two of their clients, in an emulated machine. The tests of the real
# file; then two halves of a cluster that want it, one of which is cut off, also in the middle of a write; and a server that begins anew.
# Usage: share.sh [nfs|smb]
source "$(dirname "$0")/machine.sh"

program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/share_holds.py
unpack nfs nfs-kernel-server nfs-common libnfsidmap1 libtirpc3 libevent-core-2.1-7 libwrap0 libkeyutils1 libdevmapper1.02.1
put "$packages"/usr/sbin/{exportfs,rpc.mountd,rpc.nfsd,nfsdcld} "$packages/sbin/mount.nfs" "$(command -v ip)"
unpack smb samba samba-common-bin samba-libs libwbclient0 libtalloc2 libtdb1 libtevent0 libldb2 liblmdb0
put "$packages/usr/sbin/smbd" "$packages/usr/bin/smbpasswd"
packages=
put "$csvfs_build/tests/cluster_test" "$csvfs_build/tests/lab/share_probe"

# Who judges would see it.
printf '1 took until=3001\n' >"$work/node1"
printf '2000 took until=5000\n' >"$work/node2"
! said=$(python "$program" "$work/node1" "$work/node2" 2>&1) && [[ $said == *'node2 held it at 2000, and '*'node1 until 3001'* ]] || die "two holders at once are not seen: $said"

machine_seconds=600
for kind in ${1:-nfs smb}; do
  rm -rf "$shared/logs"
  mkdir "$shared/logs"
  run tests $kind
  is_done || die "$kind: the tests of the real file failed"
  grep -q '^SAYS [0-9.]* tested 5 of' "$work/console.log" || die "$kind: not all tests were run"
  run halves $kind
  is_done || die "$kind: the halves failed"
  python "$program" "$shared/logs"/node?
done
