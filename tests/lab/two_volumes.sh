#!/usr/bin/env bash
# Two volumes behind one target, and nodes that do not vote: one volume is stopped, moved and taken over while the other goes on, and
# whoever comes back takes nothing that another node coordinates.
source "$(dirname "$0")/cluster.sh"

unset CSVFS_LAB_ENGINE
program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/volumes.py
# An emulated target takes its time, and so does a busy machine.
patience=$([[ ${CSVFS_LAB_TARGET:-tgt} == lio ]] && echo 4000 || echo 1000)

# coordinators NODE: as it sees them, of volume1 and of volume2; 0 where it knows none.
coordinators() { on "$1" csvctl status --json 2>/dev/null | python "$lib/status.py" coordinators | awk '{ print $2 }' | xargs; }
are() { local each; for each in "${@:3}"; do [[ $(coordinators "$each") == "$1 $2" ]] || return 1; done; }
# must_be ONE TWO [NODE...]: these coordinate volume1 and volume2, as the nodes see it.
must_be() {
  local seen=("${@:3}")
  ((${#seen[@]})) || seen=(node1 node2)
  wait_for 30 "volume1 and volume2 to be coordinated by $1 and $2" are "$1" "$2" "${seen[@]}"
}
# is_in_mode NODE VOLUME MODE: its mount.
is_in_mode() {
  [[ $(on "$1" csvctl status --json | python -c '
import json, sys
print(*(each["mount"]["mode"] for each in json.load(sys.stdin)["volumes"] if each["name"] == sys.argv[1]))' "$2") == "$3" ]]
}
are_direct() { local node volume; for node in node1 node2; do for volume in volume1 volume2; do is_in_mode "$node" "$volume" direct || return 1; done; done; }

# begin_work NAME VOLUME: names and direct writes on both nodes, until end_work NAME LONGEST: the longest that one may have waited, in ms.
begin_work() {
  local each
  for each in node1 node2; do begin "$1-$each" on "$each" python3 "$program" "$1-$each" "$work/$1" "$2"; done
  for each in node1 node2; do wait_for 120 "programs on $each" test -e "$work/$1.$1-$each.works"; done
}
end_work() {
  local each worst
  : >"$work/$1.stop"
  for each in node1 node2; do await "$1-$each" 120; done
  # Less what the machine let those wait for that only slept.
  worst=$(cat "$work/$1"-node?.log | awk '{ for (i = 2; i <= 3; ++i) if ($i - $4 > worst) worst = $i - $4 } END { print worst + 0 }')
  note "$1: the longest wait was $worst ms"
  ((worst <= $2)) || die "$1: a program waited for $worst ms, more than $2"
}

lab up --nodes 2 --volumes 2 --size 1G
lab format
lab mount
must_be 1 1
wait_for 30 "mounts that are direct" are_direct

say "each kind of work, on both volumes and both nodes at once"
kinds=("node1 volume1 images" "node2 volume2 images")
[[ ${CSVFS_LAB_TARGET:-tgt} == lio ]] || kinds+=("node2 volume1 tar" "node1 volume2 tar")
# work NODE VOLUME [verify-]KIND
work() { on "$1" bash "$lib/work.sh" "$3" "/clusterstorage/$2/${3#verify-}" /usr/include 1; }
# shellcheck disable=SC2086
for each in "${kinds[@]}"; do begin "${each// /-}" work $each; done
for each in "${kinds[@]}"; do await "${each// /-}" 400; done
verified_elsewhere() {
  local each node volume kind
  for each in "${kinds[@]}"; do
    read -r node volume kind <<<"$each"
    work "$([[ $node == node1 ]] && echo node2 || echo node1)" "$volume" "verify-$kind" >"$work/said" 2>&1 || { cat "$work/said"; die "$kind of $node on $volume is not what it was"; }
  done
}
verified_elsewhere

say "volume2 is stopped, and started on the other node; volume1 does not notice"
begin_work beside volume1
begin_work moved volume2
on node1 csvctl volume stop volume2
must_be 1 0
wait_for 20 "volume2's mount on node1 to be paused" is_in_mode node1 volume2 paused
is_in_mode node1 volume1 direct || die "volume1 is paused, too"
on node2 csvctl volume start volume2
must_be 1 2
end_work beside "$patience"
end_work moved 30000
wait_for 30 "mounts that are direct" are_direct

say "csvd of node1 is killed: volume1 waits for it, volume2 goes on, and stays where it is"
begin_work waits volume1
begin_work goes-on volume2
lab kill node1 csvd
wait_for 20 "volume1's mount on node2 to be paused" is_in_mode node2 volume1 paused
lab start node1 csvd
must_be 1 2
end_work goes-on "$patience"
end_work waits 40000
wait_for 30 "mounts that are direct" are_direct

say "csvd of node2 is killed, and node1 takes volume2 over"
begin_work beside-again volume1
begin_work taken volume2
lab kill node2 csvd
on node1 csvctl volume start volume2
must_be 1 1 node1
lab start node2 csvd
must_be 1 1
end_work beside-again "$patience"
end_work taken 40000
wait_for 30 "mounts that are direct" are_direct

say "a mount is killed: the node's other one goes on"
begin_work spared volume2
lab kill node2 csvfs volume1
end_work spared "$patience"
lab mount node2
wait_for 30 "mounts that are direct" are_direct

say "the target is lost and comes back"
begin_work lost-1 volume1
begin_work lost-2 volume2
lab san restart
end_work lost-1 120000
end_work lost-2 120000
wait_for 60 "mounts that are direct" are_direct
verified_elsewhere
# Both nodes have coordinated volume2, so that either may have taken it when the target was back.
number=0
for node in $(coordinators node1); do
  number=$((number + 1))
  on "node$node" csvctl volume check "volume$number" >"$work/check" || { cat "$work/check"; die "volume$number is not clean"; }
done
((number == 2)) || die "there are not two volumes"
end_clean
