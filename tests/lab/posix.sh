#!/usr/bin/env bash
# Every claim of posix.py, true of a local file system, is true of the mount.
source "$(dirname "$0")/cluster.sh"

claims=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/posix.py
say "a local file system keeps the claims"
mkdir "$work/local"
# A file system in memory cannot keep all of them.
if [[ $(stat -f -c %T "$work/local") == tmpfs ]]; then note "none here: left out"; else python "$claims" "$work/local" --reference; fi

export CSVFS_LAB_MOUNT_OPTIONS=shared_mmap
cluster_up 3G
say "the mount keeps them"
on node1 mkdir "$volume/on-the-coordinator"
on node2 mkdir "$volume/beside-it"
# 65 000 links are as many transactions: a unit test makes them faster.
on node1 bash -c 'source "$1/common.sh"; python "$2" "$3" --skip "most links" --many 2000' - "$lib" "$claims" "$volume/on-the-coordinator"
# As without any option: files are opened with other flags then.
lab umount node2
CSVFS_LAB_MOUNT_OPTIONS='' lab mount node2
on node2 bash -c 'source "$1/common.sh"; python "$2" "$3" --skip "most links" --not-shared' - "$lib" "$claims" "$volume/beside-it"
lab umount node2
lab mount node2

say "a mapping's changes reach the other nodes when they are synced; a remote change shows at the next look at the file"
shared='
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
area = mmap.mmap(fd, 8192)
area[0:5] = b"first"
area.flush()
print("synced", flush=True)
sys.stdin.readline()
os.stat(sys.argv[1])
assert area[4096:4102] == b"remote", area[4096:4102]
area[100:105] = b"close"
'
on node2 sh -c 'head -c 8192 /dev/zero >"$1"' - "$volume/mapped"
mkfifo "$work/go"
exec {go}<>"$work/go"
# begin() gives its commands no input.
(if on node2 python3 -c "$shared" "$volume/mapped" <"$work/go" >"$work/mapper.log" 2>&1; then echo 0; else echo 1; fi >"$work/rc.mapper"; mv "$work/rc.mapper" "$work/mapper.rc") &
background+=($!)
is_synced() { grep -q synced "$work/mapper.log"; }
wait_for 60 "the mapping to be synced" is_synced
[[ $(on node3 head -c 5 "$volume/mapped") == first ]] || die "node3 does not see what node2 synced"
on node3 python3 -c 'import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), b"remote", 4096)' "$volume/mapped"
echo >&"$go"
await mapper 60
[[ $(on node3 sh -c 'tail -c +101 "$1" | head -c 5' - "$volume/mapped") == close ]] || die "node3 does not see what node2 left at its end"

say "a file handle holds across unmounting; options hold"
handles=$(dirname "$claims")/handles.py
on node3 sh -c 'echo by handle >"$1"; cp /usr/bin/id "$2"; chmod 4755 "$2"' - "$volume/file" "$volume/tool"
on node3 python3 "$handles" save "$volume/file" "$work/handle"
lab umount node3
on node1 bash -c 'mknod "$1" c 1 3; chmod 666 "$1"' - "$volume/null"
as_nobody() { on node3 setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
on node3 csvfs volume1 "$volume" -o nosuid
[[ $(as_nobody "$volume/tool" -u) == 65534 ]] || die "nosuid: a program runs as its owner"
as_nobody sh -c 'echo >"$1"' - "$volume/null" || die "a device of the volume cannot be used"
lab umount node3
on node3 csvfs volume1 "$volume" -o nodev
[[ $(as_nobody "$volume/tool" -u) == 0 ]] || die "a set-user-ID program does not run as its owner"
if as_nobody sh -c 'echo >"$1"' - "$volume/null" 2>/dev/null; then die "nodev: a device of the volume can be used"; fi
lab umount node3
on node3 csvfs volume1 "$volume" -o ro,nosuid,nodev,noexec,noatime
[[ $(on node3 python3 "$handles" open "$work/handle" "$volume") == "by handle" ]] || die "the handle does not open its file"
on node1 touch -a -d @10 "$volume/file"
on node3 cat "$volume/file" >/dev/null
[[ $(on node3 stat -c %X "$volume/file") == 10 ]] || die "noatime keeps no access time"
if on node3 touch "$volume/file" 2>/dev/null; then die "a read-only mount is written to"; fi
if on node3 "$volume/tool" 2>/dev/null; then die "noexec executes"; fi
# Of all words for it, only this one makes mount(8) and the kernel forget a noatime.
on node3 mount -i -o remount,rw,exec,suid,strictatime "$volume"
on node3 "$volume/tool" >/dev/null
on node3 touch "$volume/again"
on node1 touch -a -d @10 "$volume/file"
on node3 cat "$volume/file" >/dev/null
[[ $(on node3 stat -c %X "$volume/file") != 10 ]] || die "after a remount access times are not kept"
end_clean
