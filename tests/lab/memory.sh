#!/usr/bin/env bash
# csvd and csvfs where memory is short: what they touch is locked, whoever takes too much beside them goes first, and work goes on.
source "$(dirname "$0")/cluster.sh"

# A group of processes whose memory is bounded together: of either kind of cgroups.
if [[ $(cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null) == *memory* ]]; then
  group=/sys/fs/cgroup/csvfs-memory-$$ bound=memory.max
  echo +memory 2>/dev/null >/sys/fs/cgroup/cgroup.subtree_control || true
else
  group=/sys/fs/cgroup/memory/csvfs-memory-$$ bound=memory.limit_in_bytes
fi
if ! mkdir "$group" 2>/dev/null || [[ ! -w $group/$bound ]]; then
  rmdir "$group" 2>/dev/null || true
  echo "skipped: the test needs a cgroup whose memory can be bounded"
  exit 77
fi
after_lab() { rmdir "$group"; }
# doomed COMMAND...: on node1 within that bound, and the first to be killed there, also where nobody can be spared.
doomed() { on node1 sh -c 'echo $$ >"$1"; echo 1000 >/proc/self/oom_score_adj; shift; exec "$@"' - "$group/cgroup.procs" "$@"; }

make_tree 8 300
cluster_up 1G
pid_of() { on node1 pidof "$1"; }
status_of() { on node1 sed -n "s/^$2:[^0-9]*\([0-9]*\).*/\1/p" "/proc/$(pid_of "$1")/status"; }

say "what they touch is locked, and they are spared"
spares() { (echo -900 >/proc/self/oom_score_adj) 2>/dev/null; }
spares || note "nobody may be spared on this machine: that is left out"
for each in csvd csvfs; do
  (($(status_of "$each" VmLck) > 1024)) || die "$each has locked $(status_of "$each" VmLck) KiB"
  ! spares || [[ $(on node1 cat "/proc/$(pid_of "$each")/oom_score_adj") == -900 ]] || die "$each is not spared by the OOM killer"
done

say "64 MiB for what they need from now on, for a program that copies, and for one that takes all it can get"
before="$(pid_of csvd) $(pid_of csvfs)"
echo $((64 << 20)) >"$group/$bound"
for each in csvd csvfs; do on node1 sh -c 'echo "$1" >"$2"' - "$(pid_of "$each")" "$group/cgroup.procs"; done
begin copy on node1 sh -c 'echo $$ >"$1"; exec cp -a "$2" "$3"' - "$group/cgroup.procs" "$work/tree" "$volume/copy"
# The kernel looks for the next one to kill when the last is dead and its memory still on its way back: where nobody can be spared,
# there have to be some who come before csvd then.
for each in {1..30}; do begin "idle$each" doomed sleep 900; done
hogs=0
while ((hogs < 5)); do
  if doomed python3 -c 'b"x" * (512 << 20)' 2>/dev/null; then die "512 MiB were there to be had"; fi
  hogs=$((hogs + 1))
done
await copy 300
note "$hogs programs were killed meanwhile"
[[ "$(pid_of csvd) $(pid_of csvfs)" == "$before" ]] || die "csvd or csvfs is another process than before"
for each in csvd csvfs; do [[ $(status_of "$each" VmSwap) == 0 ]] || die "$each is swapped out"; done
is_direct node1 || die "the mount of node1 is not direct"
compare node2 copy
end_clean
