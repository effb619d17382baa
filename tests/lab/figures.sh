#!/usr/bin/env bash
# How long programs wait when something of three nodes that vote fails, and how soon who is cut off stops: rounds in turn; medians and the
# longest of them beside what is aimed at. It fails if a median is above. For a machine that has nothing else to do.
#
# Usage: figures.sh [ROUNDS [CASE...]]     5 without a word, and all of killed vanishes move cut start; with CSVFS_FIGURES=FILE every value is
#                                          written there, a line each, and with CSVFS_FIGURES_LOGS=FOLDER the logs are kept
source "$(dirname "$0")/cluster.sh"

with_corosync
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
program=$here/voting.py
rounds=${1:-5}
cases=" ${*:2} "
[[ $cases =~ [a-z] ]] || cases=" killed vanishes move cut start "
values=${CSVFS_FIGURES:-$work/values}
: >"$values"

turns=0

value() { printf '%s\t%s\n' "$1" "$2" >>"$values"; note "$1: $2 ms"; }

# waits NAME NODES SECONDS COMMAND...: the longest wait of programs on NODES for names, and of one on the last of them that writes directly,
# while the COMMAND is done.
waits() {
  local name=$1 nodes=$2 seconds=$3 each longest=0 waited turn=$((++turns))
  shift 3
  for each in $nodes; do begin "names-$each-$turn" on "$each" python3 "$program" names "$volume/names-$each" "$seconds"; done
  begin "direct-$turn" on "${nodes##* }" python3 "$program" direct "$volume/direct-${nodes##* }" "$seconds"
  for each in $nodes; do wait_for_entries "$each" "names-$each" 10; done
  "$@"
  for each in $nodes; do
    await "names-$each-$turn" 60
    waited=$(<"$work/names-$each-$turn.log")
    ((waited <= longest)) || longest=$waited
  done
  await "direct-$turn" 60
  value "$name: names" "$longest"
  value "$name: direct writes" "$(<"$work/direct-$turn.log")"
  for each in $nodes; do on "$each" rm -r "$volume/names-$each"; done
}
is_to_be_tried() { [[ $cases == *" $1 "* ]]; }
is_fresh() { (($(date +%s%3N) - $(date -r "$work/last" +%s%3N) < 1000)); }
# stops NAME NODE: how long a program there writes directly after the node was cut off. Counted from when the network that csvd speaks over is
# cut, since no beat is answered then that is sent later: what its lease rests on.
stops() {
  local from last
  touch -d @0 "$work/last"
  on "$2" python3 "$program" touch "$volume/touched" "$work/last" >"$work/touch.log" 2>&1 &
  background+=($!)
  wait_for 20 "writes on $2" is_fresh
  lab cut "$2" private
  from=$(date +%s%3N)
  lab cut "$2" public
  sleep 6  # whoever still writes then is late for certain
  last=$(date -r "$work/last" +%s%3N)
  ((last > from)) || die "nothing was written on $2 when it was cut off"
  value "$1" $((last - from))
  rm "$work/last"  # the program ends with its next write
}
cut_off() { local each; for each in private public ${2:-}; do lab cut "$1" "$each"; done; }
all_well() {
  wait_for 60 "three votes" is_whole
  for each in node1 node2 node3; do wait_for 60 "the mount of $each" is_direct "$each"; done
}

# given_to NODE: the volume. A node that has lost its way to the LUN says for half a minute that it cannot take it.
given_to() { wait_for 60 "node$1 to take the volume" lab coordinator "$1"; }
killed() {
  given_to 1
  waits "csvd of the coordinator is killed" "node1 node2 node3" 8 lab kill node1 csvd
  lab start node1 csvd
  all_well
}
vanishes() {
  given_to 1
  waits "the coordinator's node vanishes" "node2 node3" 12 cut_off node1 storage
  lab heal
  all_well
}
move() {
  given_to 1
  waits "a planned move under load" "node1 node2 node3" 5 lab coordinator 2
}
cut() {
  given_to 2
  stops "the last write of who is cut off, with its csvd" node3
  lab heal
  all_well
  lab kill node3 csvd
  stops "the last write of who is cut off, without its csvd" node3
  lab heal
  lab start node3 csvd
  all_well
}
start() {
  local node each from starts=()
  for node in node1 node2 node3; do for each in csvfs csvd corosync; do lab kill "$node" "$each"; done; done
  from=$(date +%s%3N)
  for node in node1 node2 node3; do (lab start "$node" corosync; lab start "$node" csvd) & starts+=($!); done
  wait "${starts[@]}"
  lab mount
  value "a cold start of three nodes, until mounted" $(($(date +%s%3N) - from))
  all_well
}

cluster_up 1G
all_well
for ((round = 1; round <= rounds; round++)); do
  say "round $round of $rounds"
  for each in killed vanishes move cut start; do ! is_to_be_tried "$each" || "$each"; done
done
[[ ! ${CSVFS_FIGURES_LOGS:-} ]] || for node in node1 node2 node3; do
  install -D -m 644 -t "$CSVFS_FIGURES_LOGS/$node" "${CSVFS_LAB_DIR:-/var/tmp/csvfs-lab}/$lab_name/$node"/*.log
done

python - "$values" <<'PYTHON' || die "not reached on this machine"
import statistics
import sys

AIMS = {
    "csvd of the coordinator is killed: names": 1500,
    "csvd of the coordinator is killed: direct writes": 100,
    "the coordinator's node vanishes: names": 4000,
    "the coordinator's node vanishes: direct writes": 100,
    "a planned move under load: names": 300,
    "a planned move under load: direct writes": 100,
    "the last write of who is cut off, with its csvd": 3000,
    "the last write of who is cut off, without its csvd": 3000,
    "a cold start of three nodes, until mounted": 10000,
}
values = {}
for line in open(sys.argv[1]):
    name, ms = line.rstrip("\n").split("\t")
    values.setdefault(name, []).append(int(ms))
print(f"{'ms':<52} {'median':>7} {'longest':>8} {'aim':>6}")
above = False
for name, aim in AIMS.items():
    if name not in values:
        continue
    median = statistics.median(values[name])
    above |= median > aim
    print(f"{name:<52} {median:>7.0f} {max(values[name]):>8} {aim:>6}{'  above' if median > aim else ''}")
sys.exit(above)
PYTHON
end_clean
