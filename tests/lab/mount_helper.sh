#!/usr/bin/env bash
# mount(8), umount(8) and fstab with csvfs's helpers: what an administrator types, and what is answered when it cannot be.
source "$(dirname "$0")/cluster.sh"

# What ends what: its exit code and its words.
# expect CODE PATTERN COMMAND...: on node1; the words (both streams) must match the pattern.
expect() {
  local code=$1 pattern=$2 got=0 words
  shift 2
  words=$(on node1 "$@" 2>&1) || got=$?
  [[ $got == "$code" ]] || die "'$*' ended with $got, not $code: $words"
  [[ $words =~ $pattern ]] || die "'$*' said '$words', not '$pattern'"
  note "$* -> $code${words:+: $(head -n 1 <<<"$words")}"
}
is_mounted() { on node1 grep -q " $volume fuse.csvfs" /proc/self/mounts; }
options() { on node1 findmnt -no OPTIONS "$volume"; }
csvfs_pid() { on node1 pgrep -xo csvfs; }
runs_no_csvfs() { ! csvfs_pid; }
mount_keys() { on node1 csvctl reservation show --json "$lun" | grep -c '"role": "mount"' || true; }

lab up --nodes 2 --size 1G
lab format
lun=iscsi://10.77.0.1:3260/iqn.2026-01.org.csvfs.lab:san/1
on node1 test -L /sbin/mount.csvfs || die "the lab's nodes have no /sbin/mount.csvfs"

say "what cannot be mounted is refused, with the reason"
expect 32 'no volume volume2 in .*; it has: volume1' mount -t csvfs volume2 /clusterstorage/volume2
expect 1 "does not know the mount option 'usrquota'" mount -t csvfs -o usrquota volume1 "$volume"
expect 1 "cannot mount with 'sync'" mount -t csvfs -o sync volume1 "$volume"
expect 32 'mount point /nowhere: No such file' mount -t csvfs volume1 /nowhere
expect 32 'mount point /etc/hostname is not a directory' mount -t csvfs volume1 /etc/hostname
expect 32 'cannot be used: .*csvd is not running' mount -t csvfs -o timeout=2 volume1 "$volume"
! is_mounted && runs_no_csvfs || die "a mount that failed left something"

say "nobody coordinates: said so after the time given"
on node1 sed -i 's/^coordinate = true/coordinate = false/' /etc/csvfs/csvd.toml
on node1 setsid csvd >/dev/null 2>&1 </dev/null &
background+=($!)
wait_for 20 "csvd of node1" on node1 csvctl status
expect 32 'no node coordinates volume volume1' mount -t csvfs -o timeout=3 volume1 "$volume"
runs_no_csvfs || die "a csvfs that nobody waits for goes on"

say "interrupted while it waits: nothing is left behind"
on node1 bash -c 'mount -t csvfs volume1 "$1" >/run/out 2>&1 & mounting=$!
  until pgrep -x csvfs >/dev/null; do sleep 0.05; done
  kill -INT "$(pgrep -xo mount.csvfs)"; wait $mounting; echo "code $?"; cat /run/out' - "$volume" >"$work/interrupted"
grep -q 'code 8' "$work/interrupted" && grep -q 'given up' "$work/interrupted" || die "$(<"$work/interrupted")"
wait_for 10 "csvfs to end" runs_no_csvfs
! is_mounted || die "an interrupted mount is there"
on node1 csvctl volume start volume1

say "fstab, and the directory is made"
echo "volume1 $volume csvfs _netdev,nofail,noatime,x-systemd.after=csvd.service 0 0" >"$work/fstab"
on node1 bash -c 'cat >/run/fstab; mount --bind /run/fstab /etc/fstab; rmdir "$1"' - "$volume" <"$work/fstab"
expect 0 '^$' mount "$volume"
is_mounted || die "it is not mounted"
[[ $(options) == *rw*noatime* ]] || die "options: $(options)"
on node1 sh -c 'echo content >"$1/file"' - "$volume"
expect 0 '^$' mount -a
[[ $(on node1 grep -c " $volume " /proc/self/mounts) == 1 ]] || die "mount -a mounted it twice"
expect 32 'already mounted on this node, at .*process [0-9]+' mount -t csvfs volume1 /mnt
expect 32 'already mounted' csvfs volume1

say "remount"
expect 0 '^$' mount -o remount,ro "$volume"
expect 1 'Read-only file system' touch "$volume/file"
expect 0 '^$' mount -o remount,rw,noexec "$volume"
on node1 sh -c 'printf "#!/bin/sh\n" >"$1/script"; chmod +x "$1/script"' - "$volume"
expect 126 'Permission denied' bash -c "$volume/script"
expect 0 '^$' mount -o remount,exec "$volume"
expect 0 '^$' bash -c "$volume/script"
on node1 bash -c 'exec 5>>"$1/file"; : >/run/open; while [[ -e /run/open ]]; do sleep 0.05; done' - "$volume" &
background+=($!)
wait_for 10 "a file to be open" on node1 test -e /run/open
expect 32 "cannot become read-only while it is written to:.*bash \([0-9]+\) writes to $volume/file" mount -o remount,ro "$volume"

say "umount: who is in the way, and done when it returns"
expect 32 "is busy:.*bash \([0-9]+\) writes to $volume/file" umount "$volume"
on node1 rm /run/open
wait_for 10 "the file to be closed" bash -c "! '$csvfs_root/scripts/lab' --name $lab_name exec node1 fuser -s '$volume/file'"
[[ $(mount_keys) == 1 ]] || die "$(mount_keys) mount keys on the LUN, not 1"
expect 0 '^$' umount "$volume"
runs_no_csvfs || die "csvfs goes on after umount returned"
[[ $(mount_keys) == 0 ]] || die "the key of the mount is left on the LUN"
expect 0 'is mounted at' mount -v -t csvfs -o ro volume1 "$volume"
expect 1 'Read-only' touch "$volume/file"
expect 0 '' umount "$volume"

say "crashes: csvfs killed, then mounted anew over what it left"
expect 0 '^$' mount "$volume"
on node1 kill -9 "$(csvfs_pid)"
expect 2 'not connected|connection abort' ls "$volume"
expect 0 'detached' mount "$volume"
expect 0 'content' cat "$volume/file"
on node1 kill -9 "$(csvfs_pid)"
expect 0 '^$' umount "$volume"
! is_mounted || die "a dead mount cannot be unmounted"

say "a csvfs that hangs is left alone"
expect 0 '^$' mount "$volume"
pid=$(csvfs_pid)
on node1 kill -STOP "$pid"
expect 32 "process $pid" mount "$volume"
[[ $(csvfs_pid) == "$pid" ]] || die "it was killed"
on node1 kill -CONT "$pid"

say "no coordinator to say goodbye to: said so"
on node1 csvctl volume stop volume1
expect 0 'not in good order: no coordinator' umount "$volume"
runs_no_csvfs || die "csvfs goes on after umount returned"
on node1 csvctl volume start volume1

say "in the foreground, as a unit runs it, it says that it is ready"
on node1 python3 - "$volume" <<'PYTHON'
import os, socket, subprocess, sys
at = "/run/notify"
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
told.bind(at)
told.settimeout(30)
csvfs = subprocess.Popen(["csvfs", "--foreground", "volume1"], env={**os.environ, "NOTIFY_SOCKET": at})
word = told.recv(4096).decode()
assert word.startswith("READY=1"), word
assert os.path.ismount(sys.argv[1])
subprocess.run(["umount", sys.argv[1]], check=True)
assert csvfs.wait(timeout=1) == 0
PYTHON
lab umount
lab check
