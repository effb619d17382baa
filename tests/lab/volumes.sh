#!/usr/bin/env bash
# Several volumes at once: their coordinators are spread, each goes to another node for itself, and what befalls one disturbs no other.
source "$(dirname "$0")/cluster.sh"

with_corosync
program=$(dirname "$(realpath "${BASH_SOURCE[0]}")")/volumes.py
hold=4
volumes=(volume1 volume2 volume3 volume4)
nodes=(node1 node2 node3)

# coordinators NODE: as it sees them, a line each: VOLUME NODE
coordinators() { on "$1" csvctl status --json | python "$lib/status.py" coordinators | sed 's/ / node/'; }
# coordinated NODE BY: the volumes that BY coordinates, as NODE sees it.
coordinated() { coordinators "$1" | awk -v by="$2" '$2 == by { print $1 }'; }
# is_spread NODE...: these coordinate all volumes, as each of them sees it, and none more than one more than another.
is_spread() {
  local each
  for each in "$@"; do
    coordinators "$each" >"$work/now" && awk -v nodes="$*" '
      { ++of[$2] }
      END {
        count = split(nodes, all); least = most = of[all[1]] + 0
        for (i = 1; i <= count; ++i) { mine = of[all[i]] + 0; sum += mine; if (mine < least) least = mine; if (mine > most) most = mine }
        exit sum != NR || most > least + 1
      }' "$work/now" || return 1
  done
}
busiest() { coordinators "$1" | awk '{ ++of[$2] } END { for (node in of) if (of[node] > most) { most = of[node]; it = node } print it }'; }
others() { printf '%s\n' "${nodes[@]}" | grep -vx -- "$1" | xargs; }
are_direct() { [[ $(on "$1" csvctl status --json 2>/dev/null | grep -c '"mode": "direct"') == "${2:-${#volumes[@]}}" ]]; }
is_all_well() { local each; is_whole && for each in "${nodes[@]}"; do are_direct "$each" || return 1; done; }
# How often the cluster has given a volume to a node; has_moved COUNT: since the last call so many times, and no more.
moves() { cat "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name"/node*/csvd.log | grep -c ' volume_placed .* made=yes$' || true; }
are_moved() { (($(moves) == moved)); }
has_moved() {
  moved=$((moved + $1))
  wait_for 5 "$1 volumes to be given to another node" are_moved || die "$(moves) volumes were given to a node until now, not $moved"
}

# start_writers NAME NODES [VOLUMES] / end_writers NAME NODES: the longest waits go to $work/NAME-NODE.log; what was written directly is
# read on another one of the nodes (or on any, where there is only one).
start_writers() {
  local each
  for each in $2; do begin "$1-$each" on "$each" python3 "$program" "$1-$each" "$work/$1" ${3:-${volumes[@]}}; done
  for each in $2; do wait_for 60 "programs on $each" test -e "$work/$1.$1-$each.works"; done
}
end_writers() {
  local each reader numbers
  : >"$work/$1.stop"
  for each in $2; do await "$1-$each" 60; done
  for each in $2; do
    reader=$(printf '%s\n' $2 $(others "$each") | awk -v it="$each" '$0 != it && !found++')
    for numbers in "$work/$1.$1-$each".volume*; do
      on "$reader" python3 "${program%/*}/checked.py" blocks "/clusterstorage/${numbers##*.}/$1-$each.direct" "$numbers" "$each" ||
        die "$1: $reader does not find what $each has written on ${numbers##*.}"
    done
  done
}
# must_not_wait NAME NODES NAMES_MS DIRECT_MS [VOLUMES]: longer than so, and than a busy machine lets whoever only sleeps.
must_not_wait() {
  local volume each names direct lag
  for each in $2; do sed "s/\$/ $each/" "$work/$1-$each.log"; done >"$work/waits"
  for volume in ${5:-${volumes[@]}}; do
    read -r names each < <(awk -v volume="$volume" '$1 == volume { print $2, $5 }' "$work/waits" | sort -n | tail -n 1)
    read -r direct < <(awk -v volume="$volume" '$1 == volume { print $3 }' "$work/waits" | sort -n | tail -n 1)
    read -r lag < <(awk -v volume="$volume" '$1 == volume { print $4 }' "$work/waits" | sort -n | tail -n 1)
    note "$1: on $volume a name waited $names ms at most (on $each), a direct write $direct ms; the machine was late by $lag ms"
    ((names <= $3 + lag)) || die "$1: on $volume a name waited $names ms, more than $3"
    ((direct <= $4 + lag)) || die "$1: on $volume a direct write waited $direct ms, more than $4"
  done
}

lab up --nodes 3 --volumes 4 --size 1G
lab format
lab mount
on node1 csvctl cluster policy hold=$hold
wait_for 30 "three votes, and mounts that are direct" is_all_well
wait_for 30 "coordinators to be spread" is_spread "${nodes[@]}"
# At once, and not by moves for balance.
moved=0
has_moved 4

# The machine may be busy: some writes were seen to wait for 0.2 s, on all volumes at once. Aimed at are 1500, 4000 and 300 ms for names, 100 ms for direct writes.
who=$(busiest node1) rest=$(others "$who")
mapfile -t had < <(coordinated "$who" "$who")
say "csvd of $who is killed, which coordinates ${had[*]}"
((${#had[@]} == 2)) || die "$who coordinates ${#had[@]} volumes, not 2"
start_writers killed "${nodes[*]}"
lab kill "$who" csvd
wait_for 20 "coordinators to be spread over $rest" is_spread $rest
has_moved 2
end_writers killed "${nodes[*]}"
must_not_wait killed "${nodes[*]}" 3000 300
lab start "$who" csvd
wait_for 30 "coordinators to be spread again" is_spread "${nodes[@]}"
wait_for 30 "three votes, and mounts that are direct" is_all_well
has_moved 1

who=$(busiest node1) rest=$(others "$who")
mapfile -t had < <(coordinated "$who" "$who")
say "$who vanishes, which coordinates ${had[*]}"
start_writers vanished "$rest"
for each in storage private public; do lab cut "$who" "$each"; done
wait_for 30 "coordinators to be spread over $rest" is_spread $rest
has_moved 2
end_writers vanished "$rest"
must_not_wait vanished "$rest" 6000 300
lab heal
wait_for 60 "three votes, and mounts that are direct" is_all_well
wait_for 30 "coordinators to be spread again" is_spread "${nodes[@]}"
for volume in "${volumes[@]}"; do
  for each in $rest; do
    made=$(on "$each" cat "/clusterstorage/$volume/vanished-$each/f1")
    [[ -n $made && $(on "$who" cat "/clusterstorage/$volume/vanished-$each/f1") == "$made" ]] ||
      die "$who, back again, does not see what $each has written on $volume meanwhile"
  done
done

who=$(busiest node1) rest=$(others "$who")
mapfile -t had < <(coordinated "$who" "$who")
lost=${had[0]}
mapfile -t well < <(printf '%s\n' "${volumes[@]}" | grep -vx "$lost")
say "$who loses its way to $lost, which it coordinates, and to no other"
start_writers path-others "$who" "${well[*]}"
start_writers path "$rest"
lab cut "$who" "$lost"
is_judged() { on "${rest%% *}" csvctl cluster status | grep -q "$1: storage path lost: .*($2)\$"; }
is_elsewhere() { local now; now=$(coordinators "${rest%% *}" | awk -v volume="$lost" '$1 == volume { print $2 }'); [[ $now == node* && $now != "$who" && $now != node0 ]]; }
wait_for 30 "$lost to be coordinated by another node" is_elsewhere
end_writers path "$rest"
end_writers path-others "$who"
must_not_wait path-others "$who" 1000 300 "${well[*]}"
must_not_wait path "$rest" 1000 300 "${well[*]}"
must_not_wait path "$rest" 10000 300 "$lost"
wait_for 20 "$who's mount of $lost to be paused, and no other" are_direct "$who" 3
wait_for 20 "the verdict on $who to name $lost, and no other" is_judged "$who" "$lost"
lab heal
wait_for 60 "three votes, and mounts that are direct" is_all_well
wait_for 30 "coordinators to be spread again" is_spread "${nodes[@]}"

who=$(busiest node1) rest=$(others "$who")
say "$who is drained"
start_writers drained "${nodes[*]}"
on "$who" csvctl node drain "$who"
wait_for 20 "coordinators to be spread over $rest" is_spread $rest
[[ -z $(coordinated "${rest%% *}" "$who") ]] || die "$who coordinates a volume, and is drained"
end_writers drained "${nodes[*]}"
must_not_wait drained "${nodes[*]}" 1500 300
on "$who" csvctl node resume "$who"
wait_for 30 "coordinators to be spread again" is_spread "${nodes[@]}"

say "every volume is checked where it is coordinated, while it is used"
while read -r volume node; do
  on "$node" csvctl volume check "$volume" >"$work/check" || { cat "$work/check"; die "$volume is not clean"; }
done < <(coordinators node1)

end_clean
