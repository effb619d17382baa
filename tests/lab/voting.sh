#!/usr/bin/env bash
# Nodes that vote: whatever one of them does, the others go on by themselves, and whoever was left behind stops.
source "$(dirname "$0")/cluster.sh"

with_corosync
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
program=$here/voting.py

says() { on "$1" csvctl cluster status 2>/dev/null | grep -qF -- "$2"; }

# fails NAME NAMES_MS DIRECT_MS NODES DURATION COMMAND...: with programs at work on NODES the COMMAND is done; none of them waits longer
# (than so, and than a busy machine lets whoever only sleeps), and what the last of them has written directly the first one reads.
fails() {
  local name=$1 names=$2 direct=$3 nodes=$4 duration=$5 each waited lag
  shift 5
  for each in $nodes; do begin "$name-$each" on "$each" python3 "$program" names "$volume/$name-$each" "$duration"; done
  begin "$name-direct" on "${nodes##* }" python3 "$program" direct "$volume/direct" "$duration" "$work/$name.numbers"
  begin "$name-slept" on "${nodes##* }" python3 "$program" slept - "$duration"
  for each in $nodes; do wait_for_entries "$each" "$name-$each" 10; done
  "$@"
  await "$name-slept" 60
  lag=$(<"$work/$name-slept.log")
  note "$name: the machine was late by $lag ms at most"
  for each in $nodes; do
    await "$name-$each" 60
    waited=$(<"$work/$name-$each.log")
    note "$name: a name on $each waited $waited ms at most"
    ((waited <= names + lag)) || die "$name: a name on $each waited $waited ms, more than $names"
  done
  await "$name-direct" 60
  waited=$(<"$work/$name-direct.log")
  note "$name: a direct write waited $waited ms at most"
  ((waited <= direct + lag)) || die "$name: a direct write waited $waited ms, more than $direct"
  on "${nodes%% *}" python3 "$here/checked.py" blocks "$volume/direct" "$work/$name.numbers" "${nodes##* }" ||
    die "$name: ${nodes%% *} does not find what ${nodes##* } has written"
}
# left_behind NAME NODE: also works there, and will have to wait; comes_back NAME NODE: it goes on by itself, and another node finds what
# was acknowledged there.
left_behind() {
  mkdir "$work/$1"
  begin "$1-left" on "$2" python3 "$here/checked.py" work "$volume/$1-left" "$work/$1" 1
  python "$here/checked.py" progress "$work/$1" 5 60 "$2" || die "$1: no work on $2"
}
comes_back() {
  local each
  python "$here/checked.py" progress "$work/$1" 5 60 "$2" || die "$1: work on $2 does not go on"
  : >"$work/$1/stop"
  await "$1-left" 60
  for each in node1 node2 node3; do on "$each" python3 "$here/checked.py" verify "$volume/$1-left" "$work/$1" || die "$1: $each does not find what $2 has done"; done
}
cut_off() { local each; for each in private public ${2:-}; do lab cut "$1" "$each"; done; }

cluster_up 1G
wait_for 30 "three votes" is_whole

# The machine may be busy. Aimed at are 1500, 4000 and 300 ms for names, 100 ms for direct writes.
say "csvd of the coordinator is killed"
fails killed 3000 200 "node1 node2 node3" 10 lab kill node1 csvd
coordinated_by node3 node2 || coordinated_by node3 node3 || die "nobody has taken the volume over"
on node1 timeout 10 sh -c 'echo on >"$1"' - "$volume/without-csvd" || die "the mount of node1, whose csvd was killed, does not go on"
[[ $(on node2 cat "$volume/without-csvd") == on ]] || die "node2 does not see what was written on node1"
lab start node1 csvd
wait_for 30 "three votes" is_whole

say "the coordinator's node vanishes"
lab coordinator 1
left_behind vanished node1
fails vanished 6000 200 "node2 node3" 14 cut_off node1 storage
says node1 'no quorum' || die "node1 does not say that it has no quorum"
on node1 timeout 5 ls "$volume/killed-node2" >/dev/null 2>&1 && die "node1, cut off, still shows names"
lab heal
wait_for 60 "three votes" is_whole
wait_for 60 "node1's mount" is_direct node1
made=$(on node2 cat "$volume/vanished-node2/f1")
[[ -n $made && $(on node1 cat "$volume/vanished-node2/f1") == "$made" ]] || die "node1, back again, does not see what was written meanwhile"
comes_back vanished node1

say "a node that does not coordinate is cut off: nobody waits long for it, and it stops within its lease"
lab coordinator 2
left_behind apart node3
fails apart 1000 200 "node1 node2" 12 cut_off node3
says node3 'no quorum' || die "node3 does not say that it has no quorum"
lab heal
wait_for 60 "three votes" is_whole
comes_back apart node3

# stops_within MS NODE COMMAND...: a program there writes directly; the COMMAND is done, and from so long after it on nothing is written any more.
stops_within() {
  local limit=$1 node=$2 from last
  shift 2
  touch -d @0 "$work/last"
  on "$node" python3 "$program" touch "$volume/touched-$node" "$work/last" >"$work/touch.log" 2>&1 &
  background+=($!)
  wait_for 20 "writes on $node" is_fresh
  from=$(date +%s%3N)
  "$@"
  sleep 8
  last=$(date -r "$work/last" +%s%3N)
  note "the last direct write on $node came $((last - from)) ms after it was cut off"
  ((last - from > 0)) || die "nothing was written on $node when it was cut off"
  ((last - from <= limit)) || die "$node wrote for $((last - from)) ms, more than $limit"
}
is_fresh() { (($(date +%s%3N) - $(date -r "$work/last" +%s%3N) < 1000)); }

say "who is cut off, but not from the LUN, stops within the lease's term: with its csvd, without, and with one that stands still"
stops_within 3300 node3 cut_off node3
lab heal
wait_for 60 "three votes" is_whole
wait_for 60 "node3's mount" is_direct node3
lab kill node3 csvd
stops_within 3300 node3 cut_off node3
lab heal
lab start node3 csvd
wait_for 60 "three votes" is_whole
wait_for 60 "node3's mount" is_direct node3
lab freeze node3 csvd
stops_within 3300 node3 cut_off node3
lab heal
lab thaw node3
wait_for 60 "three votes" is_whole
wait_for 60 "node3's mount" is_direct node3

say "a volume is moved under load"
fails moved 1500 200 "node1 node2 node3" 6 lab coordinator 3

say "every csvd is killed at once; then they start again"
for node in node1 node2 node3; do lab kill "$node" csvd; done
for node in node1 node2 node3; do lab start "$node" csvd; done
wait_for 60 "three votes" is_whole
for node in node1 node2 node3; do wait_for 60 "the mount of $node" is_direct "$node"; done

say "all is off, and begins again"
for node in node1 node2 node3; do for each in csvfs csvd corosync; do lab kill "$node" "$each"; done; done
from=$(date +%s%3N)
for node in node1 node2 node3; do (lab start "$node" corosync; lab start "$node" csvd) & background+=($!); done
wait "${background[@]: -3}"
lab mount
for node in node1 node2 node3; do is_direct "$node" || die "$node's mount is not direct"; done
note "mounted everywhere $(($(date +%s%3N) - from)) ms after the start"
(($(date +%s%3N) - from <= 20000)) || die "that is more than 20 s"
on node2 sh -c 'echo again >"$1"' - "$volume/again"
[[ $(on node1 cat "$volume/again") == again ]] || die "node1 does not see what node2 has written"

end_clean
