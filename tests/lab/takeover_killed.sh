#!/usr/bin/env bash
# Whoever takes a volume over is killed, too, at each step of it that its log names: a third node completes it.
source "$(dirname "$0")/cluster.sh"

with_corosync
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
nodes=(node1 node2 node3 node4 node5)
logs=${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name

all_are_here() { local each; for each in "${nodes[@]}"; do [[ $(on "$each" csvctl cluster status --json 2>/dev/null | grep -c '"counts": 1') == 5 ]] || return 1; done; }
# The node that coordinates, as NODE sees it.
coordinator() { on "$1" csvctl status --json | python "$lib/status.py" coordinators | sed 's/.* /node/'; }
is_coordinated() { local now; now=$(coordinator "$1") && [[ $now != node0 && $now != "$2" && $now != "$3" ]]; }
csvd_of() { on "$1" pgrep -xo csvd; }

# killed_at STEP DELAY_MS PATTERN: the coordinator's csvd is killed, then that of whoever takes over, where its log has the PATTERN.
killed_at() {
  local first second each hit=$work/hit-$((++trials))
  first=$(coordinator node1)
  for each in "${nodes[@]}"; do
    [[ $each == "$first" ]] ||
      begin "at-$trials-$each" on "$each" python3 "$here/at_line.py" "$logs/$each/csvd.log" "$(stat -c %s "$logs/$each/csvd.log")" "$3" "$2" "$(csvd_of "$each")" "$hit"
  done
  lab kill "$first" csvd >/dev/null
  wait_for 20 "the node that takes over to be killed ($1)" test -s "$hit.node" || die "nobody took over: $1"
  second=$(<"$hit.node")
  for each in "${nodes[@]}"; do [[ $each == "$first" ]] || await "at-$trials-$each" 10; done
  for each in "${nodes[@]}"; do
    [[ $each == "$first" || $each == "$second" ]] || wait_for 20 "a third node to coordinate ($1)" is_coordinated "$each" "$first" "$second" || die "nobody completed it: $1"
  done
  note "$1: $first was killed, then $second; $(coordinator "$each") coordinates"
  lab start "$first" csvd
  lab start "$second" csvd
  wait_for 30 "five votes" all_are_here
}
trials=0

lab up --nodes 5 --size 1G
lab format
lab mount
wait_for 30 "five votes" all_are_here
for each in node4 node5; do begin "work-$each" on "$each" python3 "$here/volumes.py" "$each" "$work/work" volume1; done
for each in node4 node5; do wait_for 60 "programs on $each" test -e "$work/work.$each.works"; done

say "who takes over is killed"
killed_at "it begins" 0 'coordination volume=volume1 state="taking over"'
killed_at "its LUN is open" 0 'csvd.* lun open '
killed_at "the former coordinator is fenced" 0 'csvd.* fence key='
for delay in 5 20 60; do killed_at "$delay ms after the fence" $delay 'csvd.* fence key='; done
killed_at "the catalog is open" 0 'takeover volume=volume1 epoch='
killed_at "it serves" 0 'coordination volume=volume1 state="serving"'
killed_at "mounts come back" 0 'csvd.* session connected '

: >"$work/work.stop"
for each in node4 node5; do
  await "work-$each" 60
  read -r _ names direct _ <"$work/work-$each.log"
  note "on $each a name waited $names ms at most, a direct write $direct ms"
  ((direct <= 300)) || die "a direct write waited $direct ms"
done
for each in node4 node5; do wait_for 20 "the mount of $each to be direct" is_direct "$each" || die "the mount of $each is not direct"; done

end_clean
