#!/usr/bin/env bash
# At each step of a takeover that the log of who takes over names, something else is harmed: its csvfs or its corosync is killed or stands
# still, the target stands still, or the former coordinator, which stood still, goes on. Somebody else coordinates in the end, programs go
# on, and what they wrote is there.
#
# Usage: takeover_harmed.sh [WHOM...]     csvfs corosync target former: all without a word
source "$(dirname "$0")/cluster.sh"

with_corosync
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
takers=(node1 node2 node3)
logs=${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name
whom=("$@")
((${#whom[@]})) || whom=(csvfs corosync target former)

all_are_here() { local each; for each in "${takers[@]}" node4 node5; do [[ $(on "$each" csvctl cluster status --json 2>/dev/null | grep -c '"counts": 1') == 5 ]] || return 1; done; }
# The node that coordinates, as NODE sees it.
coordinator() { on "$1" csvctl status --json | python "$lib/status.py" coordinators | sed 's/.* /node/'; }
is_coordinated() { local now; now=$(coordinator "$1") && [[ $now != node0 && $now != "$2" && $now != "$3" ]]; }
# Of a program of a machine, by its number here: what harms it follows a log of another one.
pid_here() { pgrep --ns "$(pgrep -P "$(cut -d' ' -f1 "$logs/$1/holder")")" --nslist pid -xo "$2"; }
victim_of() {  # WHOM TAKER FORMER
  case $1 in
    target) pid_here san tgtd ;;
    former) pid_here "$3" csvd ;;
    *) pid_here "$2" "$1" ;;
  esac
}

# harmed_at WHOM HOW STEP PATTERN: the coordinator's csvd is killed (or, for WHOM=former, stands still); once the log of whoever takes over
# has the PATTERN, WHOM gets the signal HOW.
harmed_at() {
  local who=$1 how=$2 step="$3: $1, $2" first second each hit=$work/hit-$((++trials))
  first=$(coordinator node4)
  for each in "${takers[@]}"; do
    [[ $each == "$first" ]] || begin "at-$trials-$each" python3 "$here/at_line.py" "$logs/$each/csvd.log" "$(stat -c %s "$logs/$each/csvd.log")" "$4" 0 "$(victim_of "$who" "$each" "$first")" "$hit" "$how" "$each"
  done
  # Its number must still be its own when it goes on.
  if [[ $who == former ]]; then lab freeze "$first" csvd >/dev/null; else lab kill "$first" csvd >/dev/null; fi
  wait_for 30 "the node that takes over to be met ($step)" test -s "$hit.node" || die "nobody took over: $step"
  second=$(<"$hit.node")
  for each in "${takers[@]}"; do [[ $each == "$first" ]] || await "at-$trials-$each" 10; done
  if [[ $who == target ]]; then
    sleep 3  # that long it stands still: longer than a lease
    lab san thaw >/dev/null
  fi
  # Without its corosync it has no lease, so that a third one has to.
  wait_for 60 "somebody else to coordinate ($step)" is_coordinated node4 "$first" "$([[ $who == corosync ]] && echo "$second")" || die "nobody completed it: $step"
  note "$step of $second, after $first: $(coordinator node4) coordinates"
  [[ $who == former ]] || lab start "$first" csvd >/dev/null
  case $who-$how in
    csvfs-KILL) lab mount "$second" >/dev/null ;;
    corosync-KILL) lab start "$second" corosync >/dev/null ;;
    csvfs-STOP | corosync-STOP) lab thaw "$second" >/dev/null ;;
  esac
  wait_for 60 "five votes ($step)" all_are_here
  for each in "${takers[@]}" node4 node5; do wait_for 60 "the mount of $each to be direct ($step)" is_direct "$each" || die "the mount of $each is not direct: $step"; done
}
trials=0

lab up --nodes 5 --size 1G
lab format
lab mount
wait_for 30 "five votes" all_are_here
# There programs work, so nothing that they need is harmed but what they share with all.
for each in node4 node5; do on node4 csvctl node drain "$each"; done
begin work on node4 python3 "$here/volumes.py" node4 "$work/work" volume1
wait_for 60 "programs on node4" test -e "$work/work.node4.works"

for each in "${whom[@]}"; do
  say "$each"
  case $each in former) hows=(CONT) ;; target) hows=(STOP) ;; *) hows=(KILL STOP) ;; esac
  for how in "${hows[@]}"; do
    harmed_at "$each" "$how" "it begins" 'coordination volume=volume1 state="taking over"'
    harmed_at "$each" "$how" "the former coordinator is fenced" 'csvd.* fence key='
    harmed_at "$each" "$how" "the catalog is open" 'takeover volume=volume1 epoch='
    harmed_at "$each" "$how" "it serves" 'coordination volume=volume1 state="serving"'
  done
done

: >"$work/work.stop"
await work 120
note "on node4: $(<"$work/work.log")"
on node1 python3 "$here/checked.py" blocks "$volume/node4.direct" "$work/work.node4.volume1" node4 || die "what was written directly is not there"
end_clean
