#!/usr/bin/env bash
# Whoever takes a volume over is killed, too, or stands still, at each step of it that its log names: a third node completes it, and who
# stood still has nothing to say any more when it goes on.
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

# ended_at KILL|STOP STEP DELAY_MS PATTERN: the coordinator's csvd is killed; then that of whoever takes over is, or is stopped, where its
# log has the PATTERN.
ended_at() {
  local how=$1 first second each hit=$work/hit-$((++trials))
  shift
  first=$(coordinator node1)
  for each in "${nodes[@]}"; do
    [[ $each == "$first" ]] ||
      begin "at-$trials-$each" on "$each" python3 "$here/at_line.py" "$logs/$each/csvd.log" "$(stat -c %s "$logs/$each/csvd.log")" "$3" "$2" "$(csvd_of "$each")" "$hit" "$how"
  done
  lab kill "$first" csvd >/dev/null
  wait_for 20 "the node that takes over to be met ($1)" test -s "$hit.node" || die "nobody took over: $1"
  second=$(<"$hit.node")
  harmed[$first]=1 harmed[$second]=1
  for each in "${nodes[@]}"; do [[ $each == "$first" ]] || await "at-$trials-$each" 10; done
  for each in "${nodes[@]}"; do
    [[ $each == "$first" || $each == "$second" ]] || wait_for 30 "a third node to coordinate ($1)" is_coordinated "$each" "$first" "$second" || die "nobody completed it: $1"
  done
  note "$1: $first was killed, then $second ($how); $(coordinator "$each") coordinates"
  lab start "$first" csvd
  if [[ $how == STOP ]]; then lab thaw "$second"; else lab start "$second" csvd; fi
  wait_for 30 "five votes" all_are_here
  is_coordinated node1 "$first" "$second" || [[ $how == KILL ]] || die "$second, which went on, coordinates again: $1"
}
trials=0
declare -A harmed=()  # whose csvd was killed, or stood still

lab up --nodes 5 --size 1G
lab format
lab mount
wait_for 30 "five votes" all_are_here
# There programs work: they are given the volume where nobody else is to be had only.
for each in node4 node5; do on node1 csvctl node drain "$each"; done
for each in node4 node5; do begin "work-$each" on "$each" python3 "$here/volumes.py" "$each" "$work/work" volume1; done
for each in node4 node5; do wait_for 60 "programs on $each" test -e "$work/work.$each.works"; done

say "who takes over is killed"
ended_at KILL "it begins" 0 'coordination volume=volume1 state="taking over"'
ended_at KILL "its LUN is open" 0 'csvd.* lun open '
ended_at KILL "the former coordinator is fenced" 0 'csvd.* fence key='
for delay in 5 20 60; do ended_at KILL "$delay ms after the fence" $delay 'csvd.* fence key='; done
ended_at KILL "the catalog is open" 0 'takeover volume=volume1 epoch='
ended_at KILL "it serves" 0 'coordination volume=volume1 state="serving"'
ended_at KILL "mounts come back" 0 'csvd.* session connected '

say "who takes over stands still, and goes on when another has done it"
ended_at STOP "it begins" 0 'coordination volume=volume1 state="taking over"'
# At once after the PREEMPT: the log is being read then, more of it than a fresh connection takes.
for delay in 0 20; do ended_at STOP "$delay ms after the fence" $delay 'csvd.* fence key='; done
ended_at STOP "the catalog is open" 0 'takeover volume=volume1 epoch='
ended_at STOP "it serves" 0 'coordination volume=volume1 state="serving"'

: >"$work/work.stop"
for each in node4 node5; do
  await "work-$each" 60
  read -r _ names direct _ <"$work/work-$each.log"
  note "on $each a name waited $names ms at most, a direct write $direct ms"
  # Without a coordinator and without its own csvd a node has no lease, and waits.
  [[ ${harmed[$each]:-} ]] || ((direct <= 300)) || die "a direct write waited $direct ms on $each, whose csvd was never harmed"
done
[[ ! ${harmed[node4]:-} || ! ${harmed[node5]:-} ]] || die "csvd was harmed on both nodes whose programs are watched: nothing was shown"
for each in node4 node5; do wait_for 20 "the mount of $each to be direct" is_direct "$each" || die "the mount of $each is not direct"; done

end_clean
